//! What the administrator copies: join information and one-time tokens.

use crate::Fingerprint;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use rustls::crypto::GetRandomFailed;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use stead_model::NodeName;

/// How to reach a cluster and know it again: one copyable string, base64 of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinInfo {
    /// The version of this format: 1.
    pub v: u32,
    /// Members' TLS ports; the first is that whose certificate is pinned, and the only one that it fits.
    pub addrs: Vec<SocketAddr>,
    /// Of the certificate that the member at the first address shows.
    pub fingerprint: Fingerprint,
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's identity; empty if it is not known and the fingerprint must do.
    pub uuid: String,
    /// A one-time token, if the string alone shall suffice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A text that is no join information.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadJoinInfo {
    /// It is cut off or something else.
    #[error(
        "this is not join information ({0}); copy the whole string that 'stead cluster join-info' prints on a member"
    )]
    Unreadable(String),
    /// It was made by a newer version.
    #[error("this join information has format {0}, this node knows format 1; bring both to the same version")]
    Version(u32),
}

impl JoinInfo {
    /// What an administrator knows who names a member and its fingerprint by hand.
    pub fn by_hand(member: SocketAddr, fingerprint: Fingerprint) -> Self {
        Self {
            v: 1,
            addrs: vec![member],
            fingerprint,
            cluster: String::new(),
            uuid: String::new(),
            token: None,
        }
    }
}

impl fmt::Display for JoinInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        f.write_str(&STANDARD.encode(json))
    }
}

impl FromStr for JoinInfo {
    type Err = BadJoinInfo;

    /// Blanks and line ends, as terminals and mail add them, don't matter.
    fn from_str(text: &str) -> Result<Self, BadJoinInfo> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let unreadable = |why: String| BadJoinInfo::Unreadable(why);
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let json =
            STANDARD_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| unreadable(e.to_string()))?;
        let version: Version = serde_json::from_slice(&json).map_err(|e| unreadable(e.to_string()))?;
        if version.v != 1 {
            return Err(BadJoinInfo::Version(version.v));
        }
        let info: Self = serde_json::from_slice(&json).map_err(|e| unreadable(e.to_string()))?;
        if info.addrs.is_empty() { Err(unreadable("it has no address".into())) } else { Ok(info) }
    }
}

/// A secret that lets one node in, once: `ID.SECRET`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken(String);

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}

impl JoinToken {
    /// A new token and what is kept of it. `expires` is in seconds since 1970.
    pub fn generate(expires: u64) -> Result<(Self, TokenRecord), GetRandomFailed> {
        let mut random = [0; 40];
        crate::tls::provider().secure_random.fill(&mut random)?;
        let (id, secret) = random.split_at(8);
        let (id, secret) = (hex(id), hex(secret));
        let record = TokenRecord { id: id.clone(), secret_sha256: digest(&secret), expires, admits: None };
        Ok((Self(format!("{id}.{secret}")), record))
    }

    /// The text, to be shown once.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The one node that a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admits {
    /// By its name.
    pub node: NodeName,
    /// At this address alone, on any port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
}

/// What is kept of a token, at a path that its id names; deleted by the very transaction that lets the node in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Names the token; no secret.
    pub id: String,
    /// SHA-256 of the secret part, hex.
    pub secret_sha256: String,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// Whom it lets in; none: any one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admits: Option<Admits>,
}

impl TokenRecord {
    /// The id in a token's text, to find its record by.
    pub fn id_of(token: &str) -> Option<&str> {
        let (id, _) = token.split_once('.')?;
        (id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
    }

    /// Whether `token` is the one, at `now` (seconds since 1970).
    pub fn accepts(&self, token: &str, now: u64) -> bool {
        // Hashes are compared: how far they agree tells nothing about the secret.
        let secret = token.split_once('.').filter(|(id, _)| *id == self.id).map(|(_, secret)| digest(secret));
        now < self.expires && secret.as_ref() == Some(&self.secret_sha256)
    }

    /// Whether the token is for a node of that name at that address.
    pub fn is_for(&self, node: &NodeName, addr: SocketAddr) -> bool {
        self.admits.as_ref().is_none_or(|a| a.node == *node && a.ip.is_none_or(|ip| ip == addr.ip()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn digest(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> JoinInfo {
        JoinInfo {
            v: 1,
            addrs: vec!["127.0.0.11:8006".parse().unwrap(), "[fd00::1]:8006".parse().unwrap()],
            fingerprint: Fingerprint([0xab; 32]),
            cluster: "prod".into(),
            uuid: "7a3c1f52-8f0e-4d9b-9d5f-0d4f1c2b3a49".into(),
            token: None,
        }
    }

    #[test]
    fn join_information_survives_copying() {
        let text = info().to_string();
        assert_eq!(text.parse(), Ok(info()));
        let (start, end) = text.split_at(40);
        assert_eq!(format!("  {start}\r\n  {}\n", end.trim_end_matches('=')).parse(), Ok(info()));
    }

    #[test]
    fn what_is_cut_off_empty_or_newer_says_so() {
        let text = info().to_string();
        assert!(matches!(text[..60].parse::<JoinInfo>(), Err(BadJoinInfo::Unreadable(_))));
        assert!(matches!("".parse::<JoinInfo>(), Err(BadJoinInfo::Unreadable(_))));
        let newer = JoinInfo { v: 2, ..info() }.to_string();
        assert_eq!(newer.parse::<JoinInfo>(), Err(BadJoinInfo::Version(2)));
        let nowhere = JoinInfo { addrs: vec![], ..info() }.to_string();
        assert!(matches!(nowhere.parse::<JoinInfo>(), Err(BadJoinInfo::Unreadable(_))));
    }

    #[test]
    fn a_token_opens_only_its_own_record_and_only_in_time() {
        let (token, record) = JoinToken::generate(1000).unwrap();
        let (other, _) = JoinToken::generate(1000).unwrap();
        assert_eq!(TokenRecord::id_of(token.as_str()), Some(record.id.as_str()));
        assert!(record.accepts(token.as_str(), 999));
        assert!(!record.accepts(token.as_str(), 1000));
        assert!(!record.accepts(other.as_str(), 999));
        assert!(!record.accepts(&format!("{}.", record.id), 999));
        assert!(!format!("{record:?}").contains(token.as_str().split_once('.').unwrap().1));
        assert_eq!(TokenRecord::id_of("../../x.y"), None);
    }

    #[test]
    fn a_token_for_one_node_is_for_no_other() {
        let (_, any) = JoinToken::generate(1000).unwrap();
        let [pve4, pve5]: [NodeName; 2] = ["pve4", "pve5"].map(|n| n.parse().unwrap());
        let [here, there]: [SocketAddr; 2] = ["192.0.2.4:8006", "192.0.2.5:8006"].map(|a| a.parse().unwrap());
        assert!(any.is_for(&pve4, here) && any.is_for(&pve5, there));
        let by_name = TokenRecord { admits: Some(Admits { node: pve4.clone(), ip: None }), ..any.clone() };
        assert!(by_name.is_for(&pve4, there) && !by_name.is_for(&pve5, here));
        let by_both = TokenRecord { admits: Some(Admits { node: pve4.clone(), ip: Some(here.ip()) }), ..any };
        assert!(by_both.is_for(&pve4, here) && !by_both.is_for(&pve4, there));
        let kept = r#"{"id":"a","secret_sha256":"b","expires":1}"#;
        assert_eq!(serde_json::from_str::<TokenRecord>(kept).unwrap().admits, None, "records of before");
    }
}
