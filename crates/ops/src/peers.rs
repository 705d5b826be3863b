//! Calls to other nodes, as the use cases need them; `agents` carries them over the cluster's TLS.

use crate::OpsError;
use crate::status::LinkReport;
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;
use stead_model::{NodeName, NodeRecord};
use tokio::io::{AsyncRead, AsyncWrite};

/// A two-way byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A failed call to another node.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// It could not be reached, or did not answer in time: whether it did something is not known.
    #[error("node '{node}' cannot be reached: {why}")]
    Unreachable {
        /// Which.
        node: NodeName,
        /// Why.
        why: String,
    },
    /// It answered that it could not.
    #[error("{0}")]
    Refused(String),
    /// It is there, and knows this node as one that was removed.
    #[error("node '{node}' says that this node is no member of its cluster any more")]
    Outcast {
        /// Which.
        node: NodeName,
    },
}

impl From<PeerError> for OpsError {
    fn from(e: PeerError) -> Self {
        match e {
            PeerError::Unreachable { node, why } => Self::Unreachable { node, why },
            e @ PeerError::Outcast { .. } => Self::Failed(e.to_string()),
            PeerError::Refused(text) => Self::Failed(text),
        }
    }
}

/// The way to other nodes.
#[async_trait]
pub trait PeerLink: Send + Sync {
    /// `POST /peer/v1/{call}` with a JSON body.
    async fn call(
        &self,
        to: &NodeRecord,
        call: &str,
        body: Value,
        limit: Duration,
    ) -> Result<Value, PeerError>;
    /// Opens a stream: an HTTP upgrade of `POST /peer/v1/{call}`.
    async fn open(&self, to: &NodeRecord, call: &str) -> Result<Box<dyn Duplex>, PeerError>;
    /// Which of a node's links answer, as far as they were tried; nothing of a node with one alone.
    fn links(&self, _to: &NodeRecord) -> Vec<LinkReport> {
        vec![]
    }
}

/// [`PeerLink::call`] with types.
pub async fn call<Q: Serialize + Sync, A: DeserializeOwned>(
    link: &dyn PeerLink,
    to: &NodeRecord,
    name: &str,
    body: &Q,
    limit: Duration,
) -> Result<A, PeerError> {
    let refuse = |e: serde_json::Error| PeerError::Refused(format!("{name} on node '{}': {e}", to.name));
    let body = serde_json::to_value(body).map_err(refuse)?;
    let answer = link.call(to, name, body, limit).await?;
    serde_json::from_value(answer).map_err(refuse)
}
