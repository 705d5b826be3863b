//! A client for one server's public side, or for the daemon on this machine.

use crate::dial::{Dial, Duplex};
use crate::pool::Pool;
use crate::stream::{self, Stream};
use crate::within::answered_within;
use crate::{Answer, Body, ClientError, Trust};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Answers that are read whole may have so many bytes.
const WHOLE_LIMIT: usize = 64 << 20;
/// So many requests may be under way at once; more wait.
const AT_ONCE: usize = 64;

/// Where a server is.
#[derive(Debug, Clone)]
pub enum Target {
    /// A node's TLS port.
    Tls {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
        /// What makes it trustworthy.
        trust: Trust,
    },
    /// A daemon's unix socket.
    Unix(PathBuf),
}

/// A client for one server; clones share its connections.
#[derive(Debug, Clone)]
pub struct HttpClient(Arc<Pool>);

impl HttpClient {
    /// A client. It connects when it is first used.
    pub fn new(target: Target) -> Result<Self, ClientError> {
        let dial = match target {
            Target::Unix(path) => Dial::Unix(path),
            Target::Tls { host, port, trust } => {
                let config = trust.config().map_err(|e| ClientError::Protocol {
                    to: format!("{host}:{port}"),
                    why: e.to_string(),
                })?;
                Dial::Public { host, port, trust, config: Arc::new(config) }
            }
        };
        Ok(Self(Arc::new(Pool::new(dial, AT_ONCE))))
    }

    /// The server, as a user would name it.
    pub fn to(&self) -> String {
        self.0.dial().to()
    }

    /// Sends a request and gives the answer, its body still streaming. Cancel-safe.
    pub async fn request(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        self.0.send(request).await
    }

    /// The same, the answer's head within `limit` after the request was sent whole.
    pub async fn request_within(
        &self,
        limit: Duration,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, ClientError> {
        let answer = answered_within(limit, request, |request| self.request(request)).await;
        answer.unwrap_or_else(|| Err(ClientError::Timeout { to: self.to(), after: limit }))
    }

    /// Sends a request and reads the answer whole, whatever its status.
    pub async fn whole(&self, request: Request<Body>) -> Result<Answer, ClientError> {
        collect(&self.to(), self.request(request).await?).await
    }

    /// The same, the answer's head within `limit` after the request was sent whole, and all of it within as much again.
    pub async fn whole_within(&self, limit: Duration, request: Request<Body>) -> Result<Answer, ClientError> {
        let answer = self.request_within(limit, request).await?;
        let whole = tokio::time::timeout(limit, collect(&self.to(), answer)).await;
        whole.unwrap_or_else(|_| Err(ClientError::Timeout { to: self.to(), after: limit }))
    }

    /// Sends a request that asks for an upgrade to a stream.
    pub async fn upgrade(&self, mut request: Request<Body>) -> Result<Stream, ClientError> {
        stream::ask_for_upgrade(request.headers_mut());
        let response = self.request(request).await?;
        upgraded(&self.to(), response).await
    }

    /// A connection of its own on which nothing was said yet, for another client's handshake (websockets).
    pub async fn raw(&self) -> Result<Box<dyn Duplex>, ClientError> {
        self.0.dial().raw().await
    }
}

/// The reason phrase of an answer: the server's own words, or the status' usual ones.
pub fn reason<B>(response: &Response<B>) -> String {
    match response.extensions().get::<ReasonPhrase>() {
        Some(own) => String::from_utf8_lossy(own.as_bytes()).into_owned(),
        None => response.status().canonical_reason().unwrap_or("unknown status").to_owned(),
    }
}

/// Reads an answer whole.
pub async fn collect(to: &str, response: Response<Incoming>) -> Result<Answer, ClientError> {
    let reason = reason(&response);
    let (head, body) = response.into_parts();
    let body = match Limited::new(body, WHOLE_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) => {
            let to = to.to_owned();
            return Err(match e.downcast::<hyper::Error>() {
                Ok(source) => ClientError::Broken { to, source: *source },
                Err(other) => ClientError::Protocol { to, why: other.to_string() },
            });
        }
    };
    Ok(Answer { status: head.status, reason, headers: head.headers, body })
}

/// Takes the stream out of an answer that grants an upgrade.
pub(crate) async fn upgraded(to: &str, response: Response<Incoming>) -> Result<Stream, ClientError> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(ClientError::Refused(Box::new(collect(to, response).await?)));
    }
    if !stream::is_our_upgrade(response.headers()) {
        let why = "it has upgraded to another protocol than was asked for".into();
        return Err(ClientError::Protocol { to: to.to_owned(), why });
    }
    let upgraded = hyper::upgrade::on(response).await;
    Ok(TokioIo::new(upgraded.map_err(|source| ClientError::Broken { to: to.to_owned(), source })?))
}
