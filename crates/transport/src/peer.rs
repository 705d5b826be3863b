//! Calls to the cluster's other nodes.

use crate::client::{collect, upgraded};
use crate::dial::{Dial, PeerDial};
use crate::io::Cuts;
use crate::links::{Health, LinkState, first_of};
use crate::pool::Pool;
use crate::within::answered_within;
use crate::{Answer, Body, ClientError, Stream, Tls};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
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
    /// Where: by its links, the first of which is used while it answers.
    pub addrs: Vec<SocketAddr>,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node '{}' at ", self.name)?;
        for (i, addr) in self.addrs.iter().enumerate() {
            write!(f, "{}{addr}", if i > 0 { " or " } else { "" })?;
        }
        Ok(())
    }
}

impl From<&NodeRecord> for Peer {
    fn from(n: &NodeRecord) -> Self {
        Self { name: n.name.clone(), uuid: n.uuid.clone(), addrs: n.addrs() }
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

/// Of the time that a heartbeat's answer may take, a link has one part in so many before the next is asked as well.
const HEARTBEATS_WITHIN: u32 = 6;

/// A client for all peers; clones share its connections.
#[derive(Debug, Clone)]
pub struct PeerClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tls: Tls,
    cuts: Cuts,
    health: Health,
    pools: Mutex<Pools>,
}

/// Connections to a peer, by one of its links or by whichever answers, for a purpose.
type Pools = HashMap<(Peer, Option<SocketAddr>, Purpose), Arc<Pool>>;

impl PeerClient {
    /// A client with this node's identity.
    pub fn new(tls: Tls) -> Self {
        Self(Arc::new(Inner {
            tls,
            cuts: Cuts::default(),
            health: Health::default(),
            pools: Mutex::default(),
        }))
    }

    fn pools(&self) -> MutexGuard<'_, Pools> {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self, peer: &Peer, only: Option<SocketAddr>, purpose: Purpose) -> Arc<Pool> {
        let mut pools = self.pools();
        // A node that has moved leaves a pool behind that nobody will ask for again.
        pools.retain(|(p, _, _), _| p.uuid != peer.uuid || p == peer);
        let make = || {
            let Inner { tls, cuts, health, .. } = &*self.0;
            let (tls, cuts, health) = (tls.clone(), cuts.clone(), health.clone());
            let dial = Dial::Peer(PeerDial { peer: peer.clone(), only, tls, cuts, health });
            Arc::new(Pool::new(dial, purpose.at_once()))
        };
        pools.entry((peer.clone(), only, purpose)).or_insert_with(make).clone()
    }

    /// Sends a request and gives the answer, its body still streaming. Only its path, method, headers and body
    /// count. Cancel-safe; it waits as long as its caller does.
    pub async fn request(
        &self,
        peer: &Peer,
        purpose: Purpose,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, ClientError> {
        self.request_by(None, peer, purpose, request).await
    }

    async fn request_by(
        &self,
        only: Option<SocketAddr>,
        peer: &Peer,
        purpose: Purpose,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, ClientError> {
        self.check(peer)?;
        self.pool(peer, only, purpose).send(request).await
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
        answer.unwrap_or_else(|| Err(ClientError::Timeout { to: peer.to_string(), after: limit }))
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
        let question = Question::new(&format!("{call} on {peer}"), call, question)?;
        question.read(&self.ask(None, peer, purpose, &question, limit).await?)
    }

    /// The same as a heartbeat, by the peer's first link that answers: the next is asked as well when one has failed or
    /// takes long. What is asked must be such that the peer may hear it several times.
    ///
    /// With `every` link asked at once, what is known of all of them is fresh afterwards.
    pub async fn heartbeat<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        peer: &Peer,
        call: &str,
        question: &Q,
        limit: Duration,
        every: bool,
    ) -> Result<A, ClientError> {
        let question = Arc::new(Question::new(&format!("{call} on {peer}"), call, question)?);
        let asked = self.0.health.in_order(peer).into_iter().map(|link| {
            let (client, peer, question) = (self.clone(), peer.clone(), question.clone());
            async move {
                let answer = client.ask(Some(link), &peer, Purpose::Heartbeat, &question, limit).await;
                match answer {
                    // A refusal is an answer: no other link would bring another.
                    Ok(answer) => Ok(Ok(answer)),
                    Err(e @ ClientError::Refused(_)) => Ok(Err(e)),
                    Err(e) => {
                        client.0.health.note(&peer, link, Some(&e));
                        return Err(e);
                    }
                }
                .inspect(|_| client.0.health.note(&peer, link, None))
            }
        });
        let stagger = if every { Duration::ZERO } else { limit / HEARTBEATS_WITHIN };
        match first_of(asked, stagger).await {
            Some(Ok(answer)) => question.read(&answer?),
            Some(Err(e)) => Err(e),
            None => Err(ClientError::Protocol { to: question.to.clone(), why: "it has no address".into() }),
        }
    }

    async fn ask(
        &self,
        only: Option<SocketAddr>,
        peer: &Peer,
        purpose: Purpose,
        question: &Question,
        limit: Duration,
    ) -> Result<Answer, ClientError> {
        let whole = async {
            let response = self.request_by(only, peer, purpose, question.request()?).await?;
            collect(&question.to, response).await
        };
        match tokio::time::timeout(limit, whole).await {
            Ok(Ok(answer)) if answer.status.is_success() => Ok(answer),
            Ok(Ok(answer)) => Err(ClientError::Refused(Box::new(answer))),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(ClientError::Timeout { to: question.to.clone(), after: limit }),
        }
    }

    /// What is known of one of a peer's links. Nothing is, of a peer with one link alone, or until it was tried.
    pub fn link(&self, node: &NodeUuid, link: SocketAddr) -> Option<LinkState> {
        self.0.health.of(node, link)
    }

    /// Opens a stream: `POST /peer/v1/{call}` upgraded. Ends with the stream, on either side.
    pub async fn open(&self, peer: &Peer, purpose: Purpose, call: &str) -> Result<Stream, ClientError> {
        self.upgrade(peer, purpose, post(&format!("{call} on {peer}"), call, crate::empty())?).await
    }

    /// The same by one of the peer's links alone.
    pub async fn open_by(
        &self,
        link: SocketAddr,
        peer: &Peer,
        purpose: Purpose,
        call: &str,
    ) -> Result<Stream, ClientError> {
        let request = post(&format!("{call} on {peer}"), call, crate::empty())?;
        self.upgrade_by(Some(link), peer, purpose, request).await
    }

    /// Sends a request that asks for an upgrade to a stream.
    pub async fn upgrade(
        &self,
        peer: &Peer,
        purpose: Purpose,
        request: Request<Body>,
    ) -> Result<Stream, ClientError> {
        self.upgrade_by(None, peer, purpose, request).await
    }

    async fn upgrade_by(
        &self,
        only: Option<SocketAddr>,
        peer: &Peer,
        purpose: Purpose,
        mut request: Request<Body>,
    ) -> Result<Stream, ClientError> {
        crate::stream::ask_for_upgrade(request.headers_mut());
        let response = self.request_by(only, peer, purpose, request).await?;
        upgraded(&peer.to_string(), response).await
    }

    /// Cuts every connection with a node that was removed, streams included; gives how many there were.
    pub fn drop_peer(&self, node: &NodeUuid) -> usize {
        self.0.health.forget(node);
        self.pools().retain(|(p, _, _), pool| {
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

/// A call with JSON, which can be asked several times.
struct Question {
    /// What is asked of whom, for messages.
    to: String,
    call: String,
    body: Bytes,
}

impl Question {
    fn new<Q: Serialize + ?Sized>(to: &str, call: &str, question: &Q) -> Result<Self, ClientError> {
        let body = serde_json::to_vec(question)
            .map_err(|e| ClientError::Protocol { to: to.to_owned(), why: e.to_string() })?;
        Ok(Self { to: to.to_owned(), call: call.to_owned(), body: body.into() })
    }

    fn read<A: DeserializeOwned>(&self, answer: &Answer) -> Result<A, ClientError> {
        answer.json().map_err(|e| ClientError::Protocol { to: self.to.clone(), why: e.to_string() })
    }

    fn request(&self) -> Result<Request<Body>, ClientError> {
        let mut request = post(&self.to, &self.call, crate::full(self.body.clone()))?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(request)
    }
}

fn post(to: &str, call: &str, body: Body) -> Result<Request<Body>, ClientError> {
    let uri = format!("/peer/v1/{}", call.trim_start_matches('/'));
    let made = Request::builder().method(Method::POST).uri(uri).body(body);
    made.map_err(|e| ClientError::Protocol { to: to.to_owned(), why: e.to_string() })
}
