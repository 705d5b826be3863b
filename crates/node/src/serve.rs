//! Who answers which request: the API, other nodes' calls, joining, the console.

use crate::web;
use async_trait::async_trait;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use stead_agents::raft;
use stead_agents::rpc::Rpc;
use stead_agents::streams;
use stead_api::framework::auth::identify;
use stead_api::framework::{Body, Error, From, Runs, Services};
use stead_api::{Api, Backend, Cluster, Place, Target};
use stead_conf::Conf;
use stead_model::{Era, NodeName};
use stead_ops::epochs::{EPOCH_CALL, REJOIN_CALL};
use stead_ops::{Ops, OpsError};
use stead_transport::join::{JOIN_PATH, JoinRefusal, JoinRequest, TOKEN_SCHEME, refusal_response};
use stead_transport::stream::accept_upgrade;
use stead_transport::{
    ClientError, ConnInfo, ConnKind, EPOCH, Handler, Peer, PeerClient, PeerIdentity, Purpose, full,
};

/// The longest body of a call between nodes: a report of a thousand guests fits well.
const MAX_CALL: usize = 16 << 20;

/// How long another node may take to answer a request that has been handed on to it: what takes longer is a task.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The same for a file, which is written to its disk before it is answered for.
const FILE_LIMIT: Duration = Duration::from_secs(600);

/// Whether a request brings a file.
fn is_file(request: &Request<Body>) -> bool {
    let kind = request.headers().get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    kind.is_some_and(|k| k.trim_start().to_ascii_lowercase().starts_with("multipart/"))
}

/// Everything that answers.
pub struct Router {
    /// The API.
    pub api: Api<Backend>,
    /// The API's services, to see who asks to join.
    pub backend: Arc<Backend>,
    /// Other nodes' calls.
    pub rpc: Rpc,
    /// The configuration.
    pub conf: Conf,
    /// Which of Raft's frames were heard of whom.
    pub heard: raft::Heard,
}

/// Whom requests of the API are handed on to.
pub struct Others {
    /// The use cases, for who owns what.
    pub ops: Arc<Ops>,
    /// The way there.
    pub client: PeerClient,
}

#[async_trait]
impl Cluster for Others {
    fn me(&self) -> &NodeName {
        &self.ops.me.name
    }

    async fn place(&self, target: &Target<'_>) -> Result<Place, Error> {
        let me = &self.ops.me.name;
        let node = match (target.runs, target.node, target.vmid) {
            (Runs::AtGuest, Some(node), Some(vmid)) if target.changes => {
                self.ops.guest_of(node, vmid).await?
            }
            (Runs::AtGuest, _, Some(vmid)) => self.ops.guest_at(vmid)?.own.value.owner,
            (Runs::AtGuest | Runs::AtNode, Some(name), _) => {
                let name: NodeName =
                    name.parse().map_err(|_| Error::failed(format!("hostname lookup '{name}' failed")))?;
                let record = self.ops.member(&name).map_err(|_| {
                    Error::failed(format!("hostname lookup '{name}' failed - no such cluster node"))
                })?;
                if record.witness && target.changes {
                    return Err(Error::failed(format!("node '{name}' is a witness: it runs no guests")));
                }
                name
            }
            _ => return Ok(Place::Here),
        };
        Ok(if node == *me { Place::Here } else { Place::Node(node) })
    }

    async fn forward(&self, node: &NodeName, request: Request<Body>) -> Result<Response<Body>, Error> {
        let record = self.ops.member(node)?;
        let limit = if is_file(&request) { FILE_LIMIT } else { ANSWER_LIMIT };
        let sent = self.client.request_within(limit, &Peer::from(&record), Purpose::Bulk, request).await;
        let answer = sent.map_err(|e| {
            Error::new(
                595,
                match e {
                    ClientError::Timeout { after, .. } => format!(
                        "node '{node}' has not answered within {} s: its daemon hangs or was stopped. It may do what was \
                         asked once it goes on",
                        after.as_secs()
                    ),
                    e => format!("node '{node}' cannot be reached: {e}"),
                },
            )
        })?;
        Ok(answer.map(stead_transport::streaming))
    }
}

impl Router {
    /// As a handler of the server.
    pub fn handler(self: Arc<Self>) -> Handler {
        Arc::new(move |request, conn| {
            let router = self.clone();
            Box::pin(async move { router.answer(request, conn).await })
        })
    }

    async fn answer(&self, request: Request<Incoming>, conn: ConnInfo) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if let ConnKind::Peer(peer) = &conn.kind
            && let Some(refusal) = self.of_another_epoch(&request, peer)
        {
            return refusal;
        }
        if let (ConnKind::Peer(peer), Some(call)) = (&conn.kind, path.strip_prefix("/peer/v1/")) {
            return self.peer(request, peer, call).await;
        }
        if Api::<Backend>::is_for(&path) {
            let from = match &conn.kind {
                ConnKind::Public => From::Public,
                ConnKind::Peer(peer) => From::Peer { node: peer.name.clone() },
                ConnKind::Local { uid } => {
                    From::Local { trusted: *uid == 0 || *uid == rustix::process::geteuid().as_raw() }
                }
            };
            return self.api.handle(request, stead_api::ConnInfo { remote: conn.remote, from }).await;
        }
        if path == JOIN_PATH {
            return match self.join(request).await {
                Ok(answer) => json_answer(StatusCode::OK, &answer),
                Err(refusal) => refusal_response(&refusal),
            };
        }
        web::answer(&request)
    }

    /// Refuses whatever comes from another cluster epoch, but for the question which one this is, and to be let in again.
    fn of_another_epoch(&self, request: &Request<Incoming>, peer: &PeerIdentity) -> Option<Response<Body>> {
        let ops = &self.rpc.ops;
        let call = request.uri().path().strip_prefix("/peer/v1/");
        let era = match request.headers().get(EPOCH) {
            // A version that says nothing knows of one epoch alone.
            None => Some(Era::FIRST),
            Some(said) => said.to_str().ok().and_then(|said| said.parse().ok()),
        };
        let admitted = era.is_some_and(|era| ops.epochs.admits(ops.me.era, &peer.name, era));
        if admitted || matches!(call, Some(EPOCH_CALL | REJOIN_CALL)) {
            return None;
        }
        let message = format!(
            "node '{}' is in cluster epoch {}, node '{}' in {}: they have nothing to do with each other until one of them has gone \
             over; see 'stead cluster status' on both",
            ops.me.name,
            ops.me.era,
            peer.name,
            era.map_or_else(|| "one that cannot be read".to_owned(), |era| era.to_string())
        );
        Some(json_answer(StatusCode::CONFLICT, &json!({"message": message})))
    }

    async fn peer(&self, mut request: Request<Incoming>, peer: &PeerIdentity, call: &str) -> Response<Body> {
        if let Some((answer, stream)) = accept_upgrade(&mut request) {
            let (conf, ops, call) = (self.conf.clone(), self.rpc.ops.clone(), call.to_owned());
            let (heard, from, uuid) = (self.heard.clone(), peer.name.clone(), peer.uuid.clone());
            tokio::spawn(async move {
                let Ok(stream) = stream.await else { return };
                if call == "raft" {
                    raft::receive(conf, heard, uuid, stream).await;
                } else {
                    streams::take(&ops, &from, &call, stream).await;
                }
            });
            return answer;
        }
        match self.call(request, &peer.name, call).await {
            Ok(value) => json_answer(StatusCode::OK, &value),
            Err(e) => json_answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({"message": e.to_string()})),
        }
    }

    async fn call(&self, request: Request<Incoming>, from: &NodeName, call: &str) -> Result<Value, OpsError> {
        let body = Limited::new(request.into_body(), MAX_CALL).collect().await;
        let body = body.map_err(|e| OpsError::failed(format!("call {call}: {e}")))?.to_bytes();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).map_err(|e| OpsError::failed(format!("call {call}: {e}")))?
        };
        self.rpc.call(from, call, body).await
    }

    /// Lets a node in: root@pam's ticket or a one-time token shows that it may.
    async fn join(
        &self,
        request: Request<Incoming>,
    ) -> Result<stead_transport::join::JoinAnswer, JoinRefusal> {
        let headers = request.headers().clone();
        let scheme = format!("{TOKEN_SCHEME} ");
        let authorization = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let token = authorization.and_then(|a| a.strip_prefix(&scheme)).map(str::to_owned);
        if token.is_none() {
            self.is_root(&headers).map_err(|_| JoinRefusal::Permission)?;
        }
        let body = Limited::new(request.into_body(), 1 << 20).collect();
        let body = tokio::time::timeout(Duration::from_secs(10), body).await;
        let refuse = |why: String| JoinRefusal::Request { why };
        let body = body.map_err(|_| refuse("the request did not arrive in time".into()))?;
        let body = body.map_err(|e| refuse(e.to_string()))?.to_bytes();
        let asked: JoinRequest =
            serde_json::from_slice(&body).map_err(|e| refuse(format!("the request can't be read: {e}")))?;
        self.rpc.ops.let_in(&asked, token.as_deref()).await
    }
}

impl Router {
    /// Refuses unless a ticket and its CSRF token show root@pam: a member holds the cluster's keys and all secrets, so
    /// letting one in is more than any privilege.
    fn is_root(&self, headers: &http::HeaderMap) -> Result<(), Error> {
        let authority = self.backend.authority()?;
        let conn = stead_api::ConnInfo { remote: None, from: From::Public };
        let id = identify(&*self.backend, &authority, &conn, headers, true)?;
        let id = id.ok_or_else(|| Error::unauthorized("no ticket"))?;
        if id.is_root() { Ok(()) } else { Err(Error::forbidden("user != root@pam")) }
    }
}

fn json_answer<T: serde::Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut answer = Response::new(full(text));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    answer
}
