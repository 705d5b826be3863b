//! Which server is meant, and signing in there.

use crate::api::{Api, Auth, Ticket};
use crate::failure::Failure;
use http::HeaderValue;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use stead_transport::{ClientError, Fingerprint, HttpClient, Target, Trust};

/// The data directory of a packaged daemon.
const DEFAULT_DIR: &str = "/var/lib/stead";
const DEFAULT_PORT: u16 = 8006;

/// The options of all commands that say where to connect and as whom. Each has an environment variable, so that
/// scripts name no password on their command line. Ids that a command's own arguments could have, too, are made
/// different, since clap would take the one for the other.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// Data directory of the local daemon to speak to (default: the packaged one)
    #[arg(long, global = true, env = "STEAD_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Speak to another machine: HOST, HOST:PORT or https://HOST:PORT
    #[arg(long, global = true, env = "STEAD_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// Who signs in at --server
    #[arg(long = "user", id = "as-user", global = true, env = "STEAD_USER", value_name = "USER@REALM")]
    pub user: Option<String>,
    /// The password; asked for when it is missing
    #[arg(long, global = true, env = "STEAD_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    pub password: Option<String>,
    /// File whose first line is the password
    #[arg(
        long,
        global = true,
        env = "STEAD_PASSWORD_FILE",
        value_name = "FILE",
        conflicts_with = "password"
    )]
    pub password_file: Option<PathBuf>,
    /// An API token instead of a password
    #[arg(
        long = "api-token",
        id = "api-token",
        global = true,
        env = "STEAD_TOKEN",
        hide_env_values = true,
        value_name = "USER@REALM!NAME=SECRET"
    )]
    pub token: Option<String>,
    /// SHA-256 fingerprint that the server's certificate must have
    #[arg(long, global = true, env = "STEAD_FINGERPRINT", value_name = "HEX")]
    pub fingerprint: Option<String>,
    /// File with the CA that has issued the server's certificate (a cluster's: pve-root-ca.pem)
    #[arg(long, global = true, env = "STEAD_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Accept any certificate; anyone in between can read and change everything
    #[arg(long, global = true)]
    pub insecure: bool,
}

impl Connection {
    /// What the environment says alone, for the tools that know none of these options.
    pub fn from_env() -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        Self {
            dir: var("STEAD_DIR").map(Into::into),
            server: var("STEAD_SERVER"),
            user: var("STEAD_USER"),
            password: var("STEAD_PASSWORD"),
            password_file: var("STEAD_PASSWORD_FILE").map(Into::into),
            token: var("STEAD_TOKEN"),
            fingerprint: var("STEAD_FINGERPRINT"),
            ca_file: var("STEAD_CA_FILE").map(Into::into),
            insecure: false,
        }
    }

    /// A password was given that nobody is signed in with.
    pub fn has_idle_password(&self) -> bool {
        self.server.is_none() && (self.password.is_some() || self.password_file.is_some())
    }

    /// Whether somebody is spoken to: another machine, or a daemon that takes connections here.
    pub fn is_on(&self) -> bool {
        let socket = self.dir.as_deref().unwrap_or(Path::new(DEFAULT_DIR)).join("run/api.sock");
        self.server.is_some() || std::os::unix::net::UnixStream::connect(socket).is_ok()
    }

    /// Connects and signs in.
    pub async fn open(&self) -> Result<Api, Failure> {
        let Some(server) = &self.server else {
            let path = self.dir.as_deref().unwrap_or(Path::new(DEFAULT_DIR)).join("run/api.sock");
            let http = local(&path)?;
            return Ok(Api::new(http, self.given_token()?.unwrap_or(Auth::Local)));
        };
        let (host, port) = host_and_port(server)?;
        let trust = self.trust()?;
        let unknown = trust.is_none();
        // Without anything to go by, an impossible fingerprint brings the real one to light and sends nothing.
        let trust = trust.unwrap_or(Trust::Fingerprint(Fingerprint([0; 32])));
        let http = HttpClient::new(Target::Tls { host, port, trust })?;
        if unknown {
            return Err(match http.raw().await {
                Err(ClientError::WrongFingerprint { seen, .. }) => Failure::usage(format!(
                    "it is not known whether {server} is the right server. Its fingerprint is\n  {seen}\n  compare it \
                     with what the node itself says ('pve_fp' in 'stead cluster join-info -o json' there), then give --fingerprint, or --ca-file"
                )),
                Err(e) => e.into(),
                Ok(_) => Failure::failed("the server has shown an impossible certificate"),
            });
        }
        let auth = match self.given_token()? {
            Some(auth) => auth,
            None => self.sign_in(&http).await?,
        };
        Ok(Api::new(http, auth))
    }

    fn trust(&self) -> Result<Option<Trust>, Failure> {
        if self.insecure {
            return Ok(Some(Trust::Insecure));
        }
        if let Some(hex) = &self.fingerprint {
            let print = hex.parse().map_err(|e| Failure::usage(format!("--fingerprint: {e}")))?;
            return Ok(Some(Trust::Fingerprint(print)));
        }
        let Some(file) = &self.ca_file else { return Ok(None) };
        let named = |e: &dyn std::fmt::Display| Failure::usage(format!("--ca-file {}: {e}", file.display()));
        let pem = std::fs::read_to_string(file).map_err(|e| named(&e))?;
        Ok(Some(Trust::ca_pem(&pem).map_err(|e| named(&e))?))
    }

    fn given_token(&self) -> Result<Option<Auth>, Failure> {
        let Some(token) = &self.token else { return Ok(None) };
        if !token.contains('!') || !token.contains('=') {
            return Err(Failure::usage("--api-token must be of the form USER@REALM!NAME=SECRET"));
        }
        let mut value = HeaderValue::try_from(format!("PVEAPIToken={token}"))
            .map_err(|_| Failure::usage("--api-token has characters that no token has"))?;
        value.set_sensitive(true);
        Ok(Some(Auth::Token(value)))
    }

    async fn sign_in(&self, http: &HttpClient) -> Result<Auth, Failure> {
        let user = self.user.clone().unwrap_or_else(|| "root@pam".into());
        let password = match (&self.password, &self.password_file) {
            (Some(password), _) => password.clone(),
            (None, Some(file)) => first_line(file)?,
            (None, None) => ask_password(
                &format!("Password of {user} at {}: ", http.to()),
                "set STEAD_PASSWORD, or give --password-file",
            )?,
        };
        Ok(Auth::Ticket(Ticket::get(http, &user, &password).await?))
    }
}

/// The password in a file; what stands behind its first line is a remark.
fn first_line(file: &Path) -> Result<String, Failure> {
    let wrong =
        |why: &dyn std::fmt::Display| Failure::usage(format!("--password-file {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| wrong(&e))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(wrong(&"its first line is empty")),
    }
}

fn local(path: &Path) -> Result<HttpClient, Failure> {
    // Told here rather than by a failed connection, since the hint differs.
    match std::fs::metadata(path) {
        Ok(_) => Ok(HttpClient::new(Target::Unix(path.to_owned()))?),
        Err(e) => Err(Failure::failed(format!(
            "no daemon can be reached at {}: {e}\n  start steadd, name its data directory with --dir, or another \
             machine with --server",
            path.display()
        ))),
    }
}

/// `HOST`, `HOST:PORT`, `[V6]:PORT`, each with or without `https://`.
pub fn host_and_port(server: &str) -> Result<(String, u16), Failure> {
    let wrong = |why: &str| Failure::usage(format!("--server '{server}': {why}"));
    let rest = match server.split_once("://") {
        Some(("https", rest)) => rest,
        Some((scheme, _)) => return Err(wrong(&format!("{scheme} is not spoken, only https"))),
        None => server,
    };
    let rest = rest.trim_end_matches('/');
    if rest.is_empty() || rest.contains(['/', '@', '?', ' ']) {
        return Err(wrong("it must be HOST, HOST:PORT or https://HOST:PORT"));
    }
    let port = |text: &str| text.parse::<u16>().map_err(|_| wrong(&format!("'{text}' is not a port")));
    if let Some(v6) = rest.strip_prefix('[') {
        let (host, after) = v6.split_once(']').ok_or_else(|| wrong("a ']' is missing"))?;
        return match after.strip_prefix(':') {
            Some(text) => Ok((host.to_owned(), port(text)?)),
            None if after.is_empty() => Ok((host.to_owned(), DEFAULT_PORT)),
            None => Err(wrong("only a port may follow ']'")),
        };
    }
    match rest.split_once(':') {
        // An address of version 6 without brackets has more than one colon.
        Some((_, more)) if more.contains(':') => Ok((rest.to_owned(), DEFAULT_PORT)),
        Some((host, text)) => Ok((host.to_owned(), port(text)?)),
        None => Ok((rest.to_owned(), DEFAULT_PORT)),
    }
}

/// Asks on the terminal, without showing what is typed; `instead` is what can be done where there is none.
pub fn ask_password(prompt: &str, instead: &str) -> Result<String, Failure> {
    let no_terminal =
        |_| Failure::usage(format!("a password is needed and there is no terminal to ask on: {instead}"));
    let mut terminal = File::options().read(true).write(true).open("/dev/tty").map_err(no_terminal)?;
    let before = tcgetattr(&terminal).map_err(|e| Failure::failed(e.to_string()))?;
    let mut quiet = before.clone();
    quiet.local_modes -= LocalModes::ECHO;
    terminal.write_all(prompt.as_bytes())?;
    tcsetattr(&terminal, OptionalActions::Flush, &quiet).map_err(|e| Failure::failed(e.to_string()))?;
    let mut line = String::new();
    let read = BufReader::new(&terminal).read_line(&mut line);
    tcsetattr(&terminal, OptionalActions::Flush, &before).map_err(|e| Failure::failed(e.to_string()))?;
    terminal.write_all(b"\n")?;
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_in_many_ways() {
        let read = |s| host_and_port(s).unwrap();
        assert_eq!(read("pve1"), ("pve1".into(), 8006));
        assert_eq!(read("https://pve1/"), ("pve1".into(), 8006));
        assert_eq!(read("https://192.0.2.1:443"), ("192.0.2.1".into(), 443));
        assert_eq!(read("[fd00::1]:8007"), ("fd00::1".into(), 8007));
        assert_eq!(read("[fd00::1]"), ("fd00::1".into(), 8006));
        assert_eq!(read("fd00::1"), ("fd00::1".into(), 8006));
        for bad in ["", "http://x", "x:y", "x:99999", "https://x/y", "[::1", "[::1]x", "a@b"] {
            assert!(matches!(host_and_port(bad), Err(Failure::Usage(_))), "{bad}");
        }
    }
}
