//! Calls to other nodes over the cluster's TLS, for the use cases.

use async_trait::async_trait;
use serde_json::Value;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stead_model::NodeRecord;
use stead_ops::peers::{Duplex, PeerError, PeerLink};
use stead_ops::status::LinkReport;
use stead_transport::{ClientError, Peer, PeerClient, Purpose};

/// One heartbeat in so many goes by every link at once: one that has died behind another's back is noticed.
const EVERY_LINK: u32 = 10;

/// [`PeerLink`] over the transport.
#[derive(Debug)]
pub struct Link {
    client: PeerClient,
    heartbeats: AtomicU32,
}

impl Link {
    /// Over this client.
    pub fn new(client: PeerClient) -> Self {
        Self { client, heartbeats: AtomicU32::new(0) }
    }
}

fn error(to: &NodeRecord, e: ClientError) -> PeerError {
    match e {
        ClientError::Refused(answer) => PeerError::Refused(answer.message()),
        e if e.is_outcast() => PeerError::Outcast { node: to.name.clone() },
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
        let peer = Peer::from(to);
        let answer = if call == "heartbeat" {
            let every = self.heartbeats.fetch_add(1, Ordering::Relaxed).is_multiple_of(EVERY_LINK);
            self.client.heartbeat(&peer, call, &body, limit, every).await
        } else {
            self.client.json(&peer, Purpose::Control, call, &body, limit).await
        };
        answer.map_err(|e| error(to, e))
    }

    async fn open(&self, to: &NodeRecord, call: &str) -> Result<Box<dyn Duplex>, PeerError> {
        let stream =
            self.client.open(&Peer::from(to), Purpose::Bulk, call).await.map_err(|e| error(to, e))?;
        Ok(Box::new(stream))
    }

    fn links(&self, to: &NodeRecord) -> Vec<LinkReport> {
        let known = to.links().filter_map(|(link, addr)| Some((link, self.client.link(&to.uuid, addr)?)));
        let since = |t: SystemTime| t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        known
            .map(|(link, s)| LinkReport {
                to: to.name.clone(),
                link,
                answers: s.answers,
                since: since(s.since),
            })
            .collect()
    }
}
