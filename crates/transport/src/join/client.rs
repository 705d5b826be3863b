//! The joining node's half.

use super::{BadJoinInfo, JOIN_PATH, JoinAnswer, JoinInfo, JoinRefusal, JoinRequest, TOKEN_SCHEME};
use crate::ca::{NodeKey, PeerIdentity, certificate, public_key};
use crate::{Answer, CaError, ClientError, HttpClient, Target, Trust, full, trust};
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE};
use http::{HeaderValue, Method, Request, StatusCode};
use rustls::RootCertStore;
use rustls::pki_types::UnixTime;
use serde::Deserialize;
use std::fmt;
use std::time::Duration;
use stead_model::UserId;

/// How long a member may take to let a node in: it commits a change of the cluster's membership.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
const CSRF: &str = "csrfpreventiontoken";

/// How the administrator shows that the node may join.
#[derive(Clone)]
pub enum JoinAuth {
    /// By an administrator's password.
    Password {
        /// Who.
        user: UserId,
        /// Secret.
        password: String,
    },
    /// By a one-time token.
    Token(String),
}

impl fmt::Debug for JoinAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => {
                f.debug_struct("Password").field("user", user).finish_non_exhaustive()
            }
            Self::Token(_) => f.write_str("Token(..)"),
        }
    }
}

/// Why joining failed. Until the answer was checked, nothing has changed on the joining node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The copied string.
    #[error(transparent)]
    Info(#[from] BadJoinInfo),
    /// No member could be reached.
    #[error("no member of cluster '{cluster}' can be reached: {}", .tried.join("; "))]
    NoMember {
        /// The cluster's name.
        cluster: String,
        /// What became of each address.
        tried: Vec<String>,
    },
    /// The server is not the one that the join information was made on, or the connection broke.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// User and password were refused.
    #[error("the cluster has refused user '{user}': {why}")]
    WrongPassword {
        /// Who.
        user: UserId,
        /// In the member's words.
        why: String,
    },
    /// A member has said no.
    #[error("the cluster has refused this node: {0}")]
    Refused(#[from] JoinRefusal),
    /// A member has failed.
    #[error("the cluster could not take this node in: {0}")]
    Failed(String),
    /// The answer is not for this node or not of this cluster. It was not used.
    #[error("the cluster's answer cannot be used: {0}")]
    BadAnswer(String),
}

impl From<CaError> for JoinError {
    fn from(e: CaError) -> Self {
        Self::BadAnswer(e.to_string())
    }
}

/// A member that has shown the pinned certificate.
#[derive(Debug)]
pub struct JoinClient {
    client: HttpClient,
    info: JoinInfo,
}

impl JoinClient {
    /// Finds a member at the addresses of the join information. A wrong certificate ends the search at once:
    /// someone may be in between.
    pub async fn reach(info: JoinInfo) -> Result<Self, JoinError> {
        let mut tried = vec![];
        for addr in &info.addrs {
            let trust = Trust::Fingerprint(info.fingerprint);
            let target = Target::Tls { host: addr.ip().to_string(), port: addr.port(), trust };
            let client = HttpClient::new(target)?;
            match client.raw().await {
                Ok(_) => return Ok(Self { client, info }),
                Err(e @ ClientError::Connect { .. }) => tried.push(e.to_string()),
                Err(e) => return Err(e.into()),
            }
        }
        Err(JoinError::NoMember { cluster: info.cluster, tried })
    }

    /// The member, as a user would name it.
    pub fn member(&self) -> String {
        self.client.to()
    }

    /// Asks to be let in, with the request signed by `key`; the answer was checked. The request's clock must be
    /// fresh.
    pub async fn join(
        &self,
        auth: &JoinAuth,
        request: &JoinRequest,
        key: &NodeKey,
    ) -> Result<JoinAnswer, JoinError> {
        let failed = |e: &dyn fmt::Display| JoinError::Failed(e.to_string());
        let body = serde_json::to_vec(request).map_err(|e| failed(&e))?;
        let mut post = Request::builder()
            .method(Method::POST)
            .uri(JOIN_PATH)
            .header(CONTENT_TYPE, "application/json")
            .body(full(body))
            .map_err(|e| failed(&e))?;
        let secret = |text: String| HeaderValue::try_from(text).map_err(|e| failed(&e));
        match auth {
            JoinAuth::Token(token) => {
                let value = secret(format!("{TOKEN_SCHEME} {}", token.trim()))?;
                post.headers_mut().insert(AUTHORIZATION, value);
            }
            JoinAuth::Password { user, password } => {
                let ticket = self.sign_in(user, password).await?;
                post.headers_mut().insert(COOKIE, secret(format!("PVEAuthCookie={}", ticket.ticket))?);
                post.headers_mut().insert(CSRF, secret(ticket.csrf)?);
            }
        }
        let answer = self.ask(post).await?;
        if answer.status != StatusCode::OK {
            return Err(refused(&answer));
        }
        let answer: JoinAnswer = answer.json().map_err(|e| JoinError::BadAnswer(e.to_string()))?;
        self.check(request, key, &answer)?;
        Ok(answer)
    }

    async fn sign_in(&self, user: &UserId, password: &str) -> Result<Ticket, JoinError> {
        let form = format!("username={}&password={}", encode(user.as_str()), encode(password));
        let request = Request::builder()
            .method(Method::POST)
            .uri("/api2/json/access/ticket")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(full(form))
            .map_err(|e| JoinError::Failed(e.to_string()))?;
        let answer = self.ask(request).await?;
        let why = match answer.status {
            StatusCode::OK => match answer.json::<Data<Ticket>>() {
                Ok(Data { data }) => return Ok(data),
                Err(_) => "it needs a second factor; use a one-time token instead of the password".into(),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => answer.message(),
            _ => return Err(JoinError::Failed(answer.message())),
        };
        Err(JoinError::WrongPassword { user: user.clone(), why })
    }

    async fn ask(&self, request: Request<crate::Body>) -> Result<Answer, JoinError> {
        match tokio::time::timeout(JOIN_LIMIT, self.client.whole(request)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(ClientError::Timeout { to: self.client.to(), after: JOIN_LIMIT }.into()),
        }
    }

    /// The certificate must be this node's, for this node's key, of the CA in the answer; the cluster must be
    /// the one asked for.
    fn check(&self, request: &JoinRequest, key: &NodeKey, answer: &JoinAnswer) -> Result<(), JoinError> {
        let bad = |why: &str| Err(JoinError::BadAnswer(why.to_owned()));
        let (cert, ca) = (certificate(&answer.cert)?, certificate(&answer.ca)?);
        let me = PeerIdentity { name: request.name.clone(), uuid: request.uuid.clone() };
        if !self.info.uuid.is_empty() && answer.cluster_uuid != self.info.uuid {
            return bad("it comes from another cluster than the join information");
        }
        if PeerIdentity::of(&cert)? != me || public_key(&cert)? != key.public() {
            return bad("the certificate is not this node's");
        }
        if !answer.members.iter().any(|m| m.uuid == me.uuid && m.raft_id == answer.raft_id) {
            return bad("this node is not among the members");
        }
        let mut roots = RootCertStore::empty();
        let signed = roots.add(ca).and_then(|()| trust::check_signed(&cert, &roots, UnixTime::now()));
        match signed {
            Ok(()) => Ok(()),
            Err(e) => bad(&format!("the certificate is not of the cluster's CA: {e}")),
        }
    }
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct Ticket {
    ticket: String,
    #[serde(rename = "CSRFPreventionToken")]
    csrf: String,
}

#[derive(Deserialize)]
struct RefusalBody {
    refusal: JoinRefusal,
}

fn refused(answer: &Answer) -> JoinError {
    match answer.json::<RefusalBody>() {
        Ok(body) => JoinError::Refused(body.refusal),
        Err(_) => JoinError::Failed(answer.message()),
    }
}

/// Percent-encodes a form's value.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
