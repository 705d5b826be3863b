//! Calls to other nodes over the cluster's TLS, for the use cases.

use async_trait::async_trait;
use serde_json::Value;
use std::time::Duration;
use stead_model::NodeRecord;
use stead_ops::peers::{Duplex, PeerError, PeerLink};
use stead_transport::{ClientError, Peer, PeerClient, Purpose};

/// [`PeerLink`] over the transport.
#[derive(Debug, Clone)]
pub struct Link(pub PeerClient);

fn error(to: &NodeRecord, e: ClientError) -> PeerError {
    match e {
        ClientError::Refused(answer) => PeerError::Refused(answer.message()),
        e => PeerError::Unreachable { node: to.name.clone(), why: e.to_string() },
    }
}

#[async_trait]
impl PeerLink for Link {
    async fn call(
        &self,
        to: &NodeRecord,
        call: &str,
        body: Value,
        limit: Duration,
    ) -> Result<Value, PeerError> {
        let purpose = if call == "heartbeat" { Purpose::Heartbeat } else { Purpose::Control };
        self.0.json(&Peer::from(to), purpose, call, &body, limit).await.map_err(|e| error(to, e))
    }

    async fn open(&self, to: &NodeRecord, call: &str) -> Result<Box<dyn Duplex>, PeerError> {
        let stream = self.0.open(&Peer::from(to), Purpose::Bulk, call).await.map_err(|e| error(to, e))?;
        Ok(Box::new(stream))
    }
}
