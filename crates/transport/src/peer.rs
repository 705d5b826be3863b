//! Calls to the cluster's other nodes.

use crate::client::{collect, upgraded};
use crate::dial::{Dial, PeerDial};
use crate::io::{Cuts, PATIENCE_MS, PATIENCE_URGENT_MS, PATIENCE_WITH_LINKS_MS};
use crate::links::{Copies, Health, LinkState, first_of};
use crate::pool::Pool;
use crate::within::answered_within;
use crate::{Answer, Body, ClientError, Stream, Tls};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use stead_model::link::Links;
use stead_model::{Era, NodeName, NodeRecord, NodeUuid};

/// Says in a request of a peer which cluster epoch it is in; without it, it is in the first.
pub const EPOCH: &str = "stead-epoch";

/// A node to be called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its name, for messages.
    pub name: NodeName,
    /// Who must answer.
    pub uuid: NodeUuid,
    /// Where: its links by their numbers, the lowest of which is used while it answers.
    pub addrs: BTreeMap<u8, SocketAddr>,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node '{}' at ", self.name)?;
        for (i, addr) in self.addrs.values().enumerate() {
            write!(f, "{}{addr}", if i > 0 { " or " } else { "" })?;
        }
        Ok(())
    }
}

impl From<&NodeRecord> for Peer {
    fn from(n: &NodeRecord) -> Self {
        Self { name: n.name.clone(), uuid: n.uuid.clone(), addrs: n.links().collect() }
    }
}

/// What a call is for. Each purpose has connections of its own, so that no heartbeat waits behind an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Leases. Few, small, urgent.
    Heartbeat,
    /// Raft's streams. As urgent.
    Raft,
    /// Calls with short answers.
    Control,
    /// Uploads, migrations, forwarded requests.
    Bulk,
}

impl Purpose {
    /// So many calls may be under way at once with one peer; more wait.
    fn at_once(self) -> usize {
        match self {
            Self::Heartbeat | Self::Raft => 4,
            Self::Control => 64,
            Self::Bulk => 128,
        }
    }

    /// How long sent bytes may stay unacknowledged, in milliseconds.
    fn patience_ms(self, peer: &Peer) -> u32 {
        match self {
            Self::Heartbeat | Self::Raft => PATIENCE_URGENT_MS,
            // Not so for bulk: a receiver that does not read for a while is slow, and no dead link.
            Self::Control if peer.addrs.len() > 1 => PATIENCE_WITH_LINKS_MS,
            Self::Control | Self::Bulk => PATIENCE_MS,
        }
    }
}

/// Of the time that a heartbeat's answer may take, all links are asked within one part in so many.
const HEARTBEATS_WITHIN: u32 = 3;

/// A client for all peers; clones share its connections.
#[derive(Debug, Clone)]
pub struct PeerClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tls: Tls,
    cuts: Cuts,
    health: Health,
    own: Arc<RwLock<Links>>,
    pools: Mutex<Pools>,
    epoch: HeaderValue,
}

/// Connections to a peer, by one of its links or by whichever answers, for a purpose.
type Pools = HashMap<(Peer, Option<SocketAddr>, Purpose), Arc<Pool>>;

impl PeerClient {
    /// A client with this node's identity, in a cluster's first epoch.
    pub fn new(tls: Tls) -> Self {
        Self::with(tls, HeaderValue::from_static("1"))
    }

    /// The same in some epoch, which every request names: others refuse what is of another one than theirs.
    pub fn of_epoch(tls: Tls, era: Era) -> Result<Self, http::header::InvalidHeaderValue> {
        Ok(Self::with(tls, HeaderValue::try_from(era.to_string())?))
    }

    fn with(tls: Tls, epoch: HeaderValue) -> Self {
        let (cuts, health, own) = (Cuts::default(), Health::default(), Arc::default());
        Self(Arc::new(Inner { tls, cuts, health, own, pools: Mutex::default(), epoch }))
    }

    /// Says which further links this node has: what goes to another's link of the same number comes from there.
    pub fn set_own_links(&self, links: &Links) {
        links.clone_into(&mut self.0.own.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn pools(&self) -> MutexGuard<'_, Pools> {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self, peer: &Peer, only: Option<SocketAddr>, purpose: Purpose) -> Arc<Pool> {
        let mut pools = self.pools();
        // A node that has moved leaves a pool behind that nobody will ask for again.
        pools.retain(|(p, _, _), _| p.uuid != peer.uuid || p == peer);
        let make = || {
            let Inner { tls, cuts, health, own, .. } = &*self.0;
            let (tls, cuts, health, own) = (tls.clone(), cuts.clone(), health.clone(), own.clone());
            let patience_ms = purpose.patience_ms(peer);
            let dial = Dial::Peer(PeerDial { peer: peer.clone(), only, patience_ms, tls, cuts, health, own });
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
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, ClientError> {
        self.check(peer)?;
        request.headers_mut().insert(EPOCH, self.0.epoch.clone());
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
        let (copies, end) = (Arc::new(Copies::default()), Instant::now() + limit);
        let links = self.0.health.in_order(peer);
        let stagger =
            if every { Duration::ZERO } else { limit / HEARTBEATS_WITHIN / (links.len().max(1) as u32) };
        let asked = links.into_iter().map(|link| {
            let (client, peer, question, copies) =
                (self.clone(), peer.clone(), question.clone(), copies.clone());
            async move {
                let began = Instant::now();
                let left = end.saturating_duration_since(began);
                let answer = client.ask(Some(link), &peer, Purpose::Heartbeat, &question, left).await;
                let health = &client.0.health;
                match &answer {
                    Ok(_) | Err(ClientError::Refused(_)) => copies.answered(health, &peer, link),
                    Err(e) => copies.silent(health, &peer, link, began, e),
                }
                answer
            }
        });
        match first_of(asked, stagger).await {
            Some(answer) => question.read(&answer?),
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

    /// The same by one of the peer's links alone, within `limit`.
    pub async fn open_by(
        &self,
        link: SocketAddr,
        peer: &Peer,
        purpose: Purpose,
        call: &str,
        limit: Duration,
    ) -> Result<Stream, ClientError> {
        let (to, began) = (format!("{call} on node '{}' at {link}", peer.name), Instant::now());
        let request = post(&to, call, crate::empty())?;
        let opened = tokio::time::timeout(limit, self.upgrade_by(Some(link), peer, purpose, request)).await;
        opened.unwrap_or_else(|_| {
            let late = ClientError::Timeout { to, after: limit };
            self.0.health.silent(peer, link, began, &late);
            Err(late)
        })
    }

    /// A stream by one of the peer's links has broken.
    pub fn broke(&self, link: SocketAddr, peer: &Peer, why: &dyn std::fmt::Display) {
        self.0.health.silent(peer, link, Instant::now(), why);
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
