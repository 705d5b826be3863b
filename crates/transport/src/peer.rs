//! Calls to the cluster's other nodes.

use crate::client::{collect, upgraded};
use crate::dial::Dial;
use crate::io::Cuts;
use crate::pool::Pool;
use crate::within::answered_within;
use crate::{Body, ClientError, Stream, Tls, json_body};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_model::{NodeName, NodeRecord, NodeUuid};

/// A node to be called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its name, for messages.
    pub name: NodeName,
    /// Who must answer.
    pub uuid: NodeUuid,
    /// Where.
    pub addr: SocketAddr,
}

impl From<&NodeRecord> for Peer {
    fn from(n: &NodeRecord) -> Self {
        Self { name: n.name.clone(), uuid: n.uuid.clone(), addr: n.addr }
    }
}

/// What a call is for. Each purpose has connections of its own, so that no heartbeat waits behind an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Leases. Few, small, urgent.
    Heartbeat,
    /// Calls with short answers, and Raft's stream.
    Control,
    /// Uploads, migrations, forwarded requests.
    Bulk,
}

impl Purpose {
    /// So many calls may be under way at once with one peer; more wait.
    fn at_once(self) -> usize {
        match self {
            Self::Heartbeat => 4,
            Self::Control => 64,
            Self::Bulk => 128,
        }
    }
}

/// A client for all peers; clones share its connections.
#[derive(Debug, Clone)]
pub struct PeerClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tls: Tls,
    cuts: Cuts,
    pools: Mutex<HashMap<(Peer, Purpose), Arc<Pool>>>,
}

impl PeerClient {
    /// A client with this node's identity.
    pub fn new(tls: Tls) -> Self {
        Self(Arc::new(Inner { tls, cuts: Cuts::default(), pools: Mutex::default() }))
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<(Peer, Purpose), Arc<Pool>>> {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self, peer: &Peer, purpose: Purpose) -> Arc<Pool> {
        let mut pools = self.pools();
        // A node that has moved leaves a pool behind that nobody will ask for again.
        pools.retain(|(p, _), _| p.uuid != peer.uuid || p == peer);
        let make = || {
            let dial = Dial::Peer { peer: peer.clone(), tls: self.0.tls.clone(), cuts: self.0.cuts.clone() };
            Arc::new(Pool::new(dial, purpose.at_once()))
        };
        pools.entry((peer.clone(), purpose)).or_insert_with(make).clone()
    }

    /// Sends a request and gives the answer, its body still streaming. Only its path, method, headers and body
    /// count. Cancel-safe; it waits as long as its caller does.
    pub async fn request(
        &self,
        peer: &Peer,
        purpose: Purpose,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, ClientError> {
        self.check(peer)?;
        self.pool(peer, purpose).send(request).await
    }

    /// The same, the answer's head within `limit` after the request was sent whole.
    pub async fn request_within(
        &self,
        limit: Duration,
        peer: &Peer,
        purpose: Purpose,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, ClientError> {
        let answer = answered_within(limit, request, |request| self.request(peer, purpose, request)).await;
        let to = || format!("node '{}' at {}", peer.name, peer.addr);
        answer.unwrap_or_else(|| Err(ClientError::Timeout { to: to(), after: limit }))
    }

    /// `POST /peer/v1/{call}` with JSON both ways, within `limit`. Any status but 2xx is [`ClientError::Refused`].
    pub async fn json<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        peer: &Peer,
        purpose: Purpose,
        call: &str,
        question: &Q,
        limit: Duration,
    ) -> Result<A, ClientError> {
        let to = || format!("{call} on node '{}' at {}", peer.name, peer.addr);
        let protocol = |e: &dyn std::fmt::Display| ClientError::Protocol { to: to(), why: e.to_string() };
        let mut request =
            post(call, json_body(&question).map_err(|e| protocol(&e))?).map_err(|e| protocol(&e))?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let whole = async {
            let response = self.request(peer, purpose, request).await?;
            collect(&to(), response).await
        };
        let answer = match tokio::time::timeout(limit, whole).await {
            Ok(answer) => answer?,
            Err(_) => return Err(ClientError::Timeout { to: to(), after: limit }),
        };
        if !answer.status.is_success() {
            return Err(ClientError::Refused(Box::new(answer)));
        }
        answer.json().map_err(|e| protocol(&e))
    }

    /// Opens a stream: `POST /peer/v1/{call}` upgraded. Ends with the stream, on either side.
    pub async fn open(&self, peer: &Peer, purpose: Purpose, call: &str) -> Result<Stream, ClientError> {
        let to = format!("{call} on node '{}' at {}", peer.name, peer.addr);
        let request = post(call, crate::empty())
            .map_err(|e| ClientError::Protocol { to: to.clone(), why: e.to_string() })?;
        self.upgrade(peer, purpose, request).await
    }

    /// Sends a request that asks for an upgrade to a stream.
    pub async fn upgrade(
        &self,
        peer: &Peer,
        purpose: Purpose,
        mut request: Request<Body>,
    ) -> Result<Stream, ClientError> {
        crate::stream::ask_for_upgrade(request.headers_mut());
        let response = self.request(peer, purpose, request).await?;
        upgraded(&format!("node '{}' at {}", peer.name, peer.addr), response).await
    }

    /// Cuts every connection with a node that was removed, streams included; gives how many there were.
    pub fn drop_peer(&self, node: &NodeUuid) -> usize {
        self.pools().retain(|(p, _), pool| {
            let stays = p.uuid != *node;
            if !stays {
                pool.forget_idle();
            }
            stays
        });
        self.0.cuts.cut(node)
    }

    /// How many connections are open with a node.
    pub fn connections(&self, node: &NodeUuid) -> usize {
        self.0.cuts.count(node)
    }

    fn check(&self, peer: &Peer) -> Result<(), ClientError> {
        if self.0.tls.is_member(&peer.uuid) {
            Ok(())
        } else {
            Err(ClientError::NotAMember(peer.uuid.clone()))
        }
    }
}

fn post(call: &str, body: Body) -> Result<Request<Body>, http::Error> {
    let uri = Uri::try_from(format!("/peer/v1/{}", call.trim_start_matches('/')))?;
    Request::builder().method(Method::POST).uri(uri).body(body)
}
