//! Another cluster, as its user names it: where it answers, how it is known, and the API token that it lets in.
//!
//! `apitoken=PVEAPIToken=USER@REALM!TOKEN=SECRET,host=ADDRESS[,fingerprint=FP][,port=PORT]`
//!
//! What is wrong with such a text is said without quoting it, and what was read of it shows no secret: neither ends up in a log.

use crate::{PropertyString, TokenId};
use std::fmt;
use std::str::FromStr;

/// Where a cluster answers unless it is said.
pub const PORT: u16 = 8006;
/// What begins a token, as in the header that shows it.
const SCHEME: &str = "PVEAPIToken=";
/// The properties that there are.
const KNOWN: [&str; 4] = ["apitoken", "host", "fingerprint", "port"];

/// Why a text names no cluster. Holds nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRemote {
    /// It is no property string.
    #[error(
        "it must be of the form apitoken=PVEAPIToken=USER@REALM!TOKEN=SECRET,host=ADDRESS[,fingerprint=FP][,port=PORT]"
    )]
    Form,
    /// A property that has to be there.
    #[error("'{0}' is missing")]
    Missing(&'static str),
    /// The token.
    #[error("apitoken must be of the form PVEAPIToken=USER@REALM!TOKEN=SECRET")]
    Token,
    /// The host.
    #[error("host must be a name or an address, without a port")]
    Host,
    /// The port.
    #[error("port must be a number from 1 to 65535")]
    Port,
    /// The fingerprint.
    #[error("fingerprint must be the SHA-256 of a certificate: 32 pairs of hex digits, separated by colons")]
    Fingerprint,
}

/// Another cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Remote {
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whose rights are used there.
    pub token: TokenId,
    secret: String,
    /// The SHA-256 of the certificate that it shows, in hex; none: the certificate must be one that is trusted anyway.
    pub fingerprint: Option<String>,
}

impl Remote {
    /// The value of the header `Authorization`. Contains the secret.
    pub fn authorization(&self) -> String {
        format!("{SCHEME}{}={}", self.token, self.secret)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("at", &self.to_string()).finish_non_exhaustive()
    }
}

/// `HOST:PORT`, for people.
impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Remote {
    type Err = BadRemote;

    fn from_str(text: &str) -> Result<Self, BadRemote> {
        let read: PropertyString = text.parse().map_err(|_| BadRemote::Form)?;
        if read.iter().any(|(key, _)| key.is_none_or(|key| !KNOWN.contains(&key))) {
            return Err(BadRemote::Form);
        }
        let token = read.get("apitoken").ok_or(BadRemote::Missing("apitoken"))?;
        let (token, secret) =
            token.strip_prefix(SCHEME).and_then(|t| t.split_once('=')).ok_or(BadRemote::Token)?;
        if secret.is_empty() || !secret.chars().all(|c| c.is_ascii_graphic()) {
            return Err(BadRemote::Token);
        }
        let host = read.get("host").ok_or(BadRemote::Missing("host"))?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = match read.get("port").map(str::parse::<u16>) {
            None => PORT,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return Err(BadRemote::Port),
        };
        let fingerprint = read.get("fingerprint").map(fingerprint).transpose()?;
        let token = token.parse().map_err(|_| BadRemote::Token)?;
        if !is_host(host) {
            return Err(BadRemote::Host);
        }
        Ok(Self { host: host.to_owned(), port, token, secret: secret.to_owned(), fingerprint })
    }
}

/// Whether a text is a name or an address. One with a colon is an address of version 6 or nothing.
fn is_host(text: &str) -> bool {
    if text.contains(':') {
        return text.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let part = |p: &str| !p.is_empty() && p.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    text.len() <= 253 && text.trim_end_matches('.').split('.').all(part)
}

fn fingerprint(text: &str) -> Result<String, BadRemote> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    match digits.len() == 64 && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        true => Ok(digits),
        false => Err(BadRemote::Fingerprint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "apitoken=PVEAPIToken=mover@pve!away=5eC=ret,";

    fn read(rest: &str) -> Result<Remote, BadRemote> {
        format!("{TOKEN}{rest}").parse()
    }

    #[test]
    fn a_cluster_is_named_as_clients_do() {
        let plain = read("host=pve1.example.net").unwrap();
        assert_eq!((plain.host.as_str(), plain.port), ("pve1.example.net", 8006));
        assert_eq!(plain.token.to_string(), "mover@pve!away");
        assert_eq!(plain.authorization(), "PVEAPIToken=mover@pve!away=5eC=ret");
        assert_eq!(plain.fingerprint, None);
        let print = ["AB"; 32].join(":");
        let full: Remote = format!("host=[fd00::1], port=443,fingerprint={print},{TOKEN}").parse().unwrap();
        assert_eq!(full.to_string(), "[fd00::1]:443");
        assert_eq!(full.fingerprint, Some("AB".repeat(32)));
        assert_eq!(read("host=192.0.2.1").unwrap().to_string(), "192.0.2.1:8006");
    }

    #[test]
    fn what_names_none_is_told_apart() {
        use BadRemote as B;
        assert_eq!("host=x".parse::<Remote>(), Err(B::Missing("apitoken")));
        assert_eq!(read(""), Err(B::Missing("host")));
        for bad in ["host=a:8006", "host=https://a", "host=a b", "host=-/", "host=a..b", "host=fd00::g"] {
            assert_eq!(read(bad), Err(B::Host), "{bad}");
        }
        for bad in ["0", "65536", "x"] {
            assert_eq!(read(&format!("host=a,port={bad}")), Err(B::Port), "{bad}");
        }
        for bad in ["AB", "zz", &"A".repeat(63)] {
            assert_eq!(read(&format!("host=a,fingerprint={bad}")), Err(B::Fingerprint), "{bad}");
        }
        for bad in
            ["mover@pve!away=x", "PVEAPIToken=mover@pve!away", "PVEAPIToken=mover=x", "PVEAPIToken=a@b!c="]
        {
            let text = format!("apitoken={bad},host=a");
            assert!(matches!(text.parse::<Remote>(), Err(B::Token | B::Form)), "{bad}");
        }
        assert_eq!(read("host=a,more=1"), Err(B::Form));
        assert_eq!(read("a"), Err(B::Form));
    }

    #[test]
    fn no_error_and_no_log_shows_the_secret() {
        assert!(!format!("{:?}", read("host=a").unwrap()).contains("5eC"));
        for bad in ["", "host=a,host=a", "host=a b", "host=a,x", "5eC=ret"] {
            let why = read(bad).unwrap_err();
            assert!(!format!("{why} {why:?}").contains("5eC"), "{bad}");
        }
    }
}
