//! Another cluster, as the use cases need it: calls of its API and WebSockets of it, under a token that its user has given. `agents`
//! carries them over TLS.
//!
//! Nothing here keeps the token, or writes it down: whoever has the value can call, and nobody else.

use crate::OpsError;
use crate::peers::Duplex;
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;
use stead_guest::remote::LONGEST;
use stead_model::Remote;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// A failed call of another cluster. `at` is its address.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoteError {
    /// It could not be reached, or did not answer in time: whether it did something is not known.
    #[error("the cluster at {at} cannot be reached: {why}")]
    Unreachable {
        /// Where.
        at: String,
        /// Why.
        why: String,
    },
    /// It answered that it would not or could not.
    #[error("the cluster at {at} refused to {what}: {why}")]
    Refused {
        /// Where.
        at: String,
        /// What was asked of it.
        what: &'static str,
        /// Why, in its words.
        why: String,
    },
    /// What it answers can't be understood.
    #[error("the cluster at {at}: {why}")]
    Strange {
        /// Where.
        at: String,
        /// What is wrong.
        why: String,
    },
}

impl From<RemoteError> for OpsError {
    fn from(e: RemoteError) -> Self {
        Self::Failed(e.to_string())
    }
}

/// A call of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Below `/api2/json`.
    pub path: String,
    /// Its parameters.
    pub params: Vec<(&'static str, String)>,
    /// What it is to do, for people: the end of "refused to ...".
    pub what: &'static str,
}

impl Ask {
    /// Something that is only looked at.
    pub fn get(path: impl Into<String>, what: &'static str) -> Self {
        Self { method: "GET", path: path.into(), params: vec![], what }
    }

    /// Something that changes.
    pub fn post(path: impl Into<String>, what: &'static str) -> Self {
        Self { method: "POST", ..Self::get(path, what) }
    }

    /// With one more parameter.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.params.push((name, value.into()));
        self
    }
}

/// The way to other clusters. `ca`: certificates in PEM that are trusted besides the system's.
#[async_trait]
pub trait RemoteLink: Send + Sync {
    /// Calls, and gives the answer's `data`.
    async fn call(&self, to: &Remote, ca: &str, ask: &Ask, limit: Duration) -> Result<Value, RemoteError>;
    /// Opens a WebSocket; the bytes that it carries.
    async fn open(&self, to: &Remote, ca: &str, ask: &Ask) -> Result<Box<dyn Duplex>, RemoteError>;
}

/// Messages on a byte stream: a line of JSON each.
pub(crate) struct Lines {
    io: BufReader<Box<dyn Duplex>>,
    line: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(io: Box<dyn Duplex>) -> Self {
        Self { io: BufReader::new(io), line: vec![] }
    }

    /// The next message; none at the end. Cancel-safe: what was read of it stays.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> std::io::Result<Option<T>> {
        let bad = |why: String| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
        loop {
            let found = self.io.fill_buf().await?;
            if found.is_empty() {
                return Ok(None);
            }
            let end = found.iter().position(|b| *b == b'\n');
            let taken = end.map_or(found.len(), |end| end + 1);
            self.line.extend_from_slice(&found[..taken]);
            self.io.consume(taken);
            if self.line.len() > LONGEST {
                return Err(bad("a message is too long".to_owned()));
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| bad(format!("a message can't be read: {e}")));
            }
        }
    }

    /// Sends a message. Not cancel-safe: end the stream instead.
    pub(crate) async fn send<T: Serialize>(&mut self, message: &T) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.io.get_mut().write_all(&line).await?;
        self.io.get_mut().flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use stead_guest::remote::{Answer, Say};
    use tokio::io::duplex;

    #[tokio::test]
    async fn messages_arrive_whole_and_what_is_none_is_an_error() {
        let (near, far) = duplex(7);
        let (mut near, mut far) = (Lines::new(Box::new(near)), Lines::new(Box::new(far)));
        let sent = tokio::spawn(async move {
            for say in [Say::Make, Say::Fits { config: "x".repeat(1000), volumes: vec![], runs: None }] {
                near.send(&say).await.unwrap();
            }
            assert_eq!(near.next::<Answer>().await.unwrap(), Some(Answer::Committed));
        });
        assert_eq!(far.next::<Say>().await.unwrap(), Some(Say::Make));
        // Given up in its middle, it is read on.
        for _ in 0..3 {
            assert!(far.next::<Say>().now_or_never().is_none());
        }
        assert!(
            matches!(far.next::<Say>().await.unwrap(), Some(Say::Fits { config, .. }) if config.len() == 1000)
        );
        far.send(&Answer::Committed).await.unwrap();
        sent.await.unwrap();
        assert_eq!(far.next::<Say>().await.unwrap(), None);
        for bad in ["{\"say\":\"dance\"}\n", "nothing\n"] {
            let (mut near, far) = duplex(64);
            near.write_all(bad.as_bytes()).await.unwrap();
            assert!(Lines::new(Box::new(far)).next::<Say>().await.is_err(), "{bad}");
        }
        let (mut near, far) = duplex(1 << 16);
        let endless = tokio::spawn(async move { while near.write_all(&[b'x'; 1 << 16]).await.is_ok() {} });
        assert!(Lines::new(Box::new(far)).next::<Say>().await.is_err());
        endless.await.unwrap();
    }
}
