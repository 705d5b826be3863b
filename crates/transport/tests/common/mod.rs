//! A cluster's CA and nodes with real sockets on the loopback.

#![allow(dead_code, reason = "each test file uses a part of it")]

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use stead_model::NodeUuid;
use stead_transport::{
    Body, ClusterCa, ConnInfo, Credentials, Handler, HttpClient, Limits, NodeKey, Peer, PeerIdentity, Server,
    Target, Tls, Trust, full,
};
use tokio::net::TcpListener;

pub const CLUSTER_UUID: &str = "00000000-0000-4000-8000-00000000c1c1";

pub type Members = Arc<Mutex<HashSet<NodeUuid>>>;

/// Name and UUID of the node with a number.
pub fn identity(n: u32) -> PeerIdentity {
    PeerIdentity { name: format!("n{n}").parse().unwrap(), uuid: uuid(n) }
}

pub fn uuid(n: u32) -> NodeUuid {
    format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
}

pub fn ca() -> ClusterCa {
    ClusterCa::create("test", CLUSTER_UUID, SystemTime::now()).unwrap()
}

pub fn credentials(ca: &ClusterCa, n: u32) -> Credentials {
    credentials_of(ca, n, SystemTime::now())
}

/// As signed by a clock that says so.
pub fn credentials_of(ca: &ClusterCa, n: u32, now: SystemTime) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let me = identity(n);
    let request = key.signing_request(&me.name).unwrap();
    let ip = "127.0.0.1".parse().unwrap();
    Credentials {
        ca_pem: ca.cert_pem().to_owned(),
        cert_pem: ca.sign(&request, &me, &[ip], now).unwrap(),
        key_pem: key.to_pem(),
    }
}

pub fn members(ns: &[u32]) -> Members {
    Arc::new(Mutex::new(ns.iter().map(|n| uuid(*n)).collect()))
}

pub fn tls(ca: &ClusterCa, n: u32, members: &Members) -> Tls {
    let members = members.clone();
    let is_member = move |node: &NodeUuid| members.lock().unwrap().contains(node);
    Tls::new(&credentials(ca, n), None, Arc::new(is_member)).unwrap()
}

pub fn handler<F, R>(f: F) -> Handler
where
    F: Fn(Request<Incoming>, ConnInfo) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    Arc::new(move |request, info| -> BoxFuture<'static, Response<Body>> { Box::pin(f(request, info)) })
}

/// Answers with what is known about the connection.
pub fn tell_who() -> Handler {
    handler(|request, info| async move { Response::new(full(format!("{} {:?}", request.uri(), info.kind))) })
}

pub struct Node {
    pub server: Server,
    pub tls: Tls,
    pub peer: Peer,
}

/// A node that listens.
pub async fn node(tls: Tls, handler: Handler) -> Node {
    node_with(tls, handler, Limits::default()).await
}

pub async fn node_with(tls: Tls, handler: Handler, limits: Limits) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let me = tls.identity();
    let server = Server::new(tls.clone(), handler, limits);
    server.listen_tls(listener);
    Node { server, tls, peer: Peer { name: me.name, uuid: me.uuid, addrs: [(0, addr)].into() } }
}

pub fn public(addr: SocketAddr, trust: Trust) -> HttpClient {
    HttpClient::new(Target::Tls { host: addr.ip().to_string(), port: addr.port(), trust }).unwrap()
}

pub fn get(path: &str) -> Request<Body> {
    Request::builder().uri(path).body(stead_transport::empty()).unwrap()
}

pub async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A body of `count` chunks, made as it is asked for.
pub fn chunks(count: usize, size: usize) -> Body {
    let chunk = Bytes::from(vec![7; size]);
    let frames = (0..count).map(move |_| Ok::<_, std::io::Error>(http_body::Frame::data(chunk.clone())));
    stead_transport::streaming(http_body_util::StreamBody::new(futures_util::stream::iter(frames)))
}

/// Waits for what must come soon.
pub async fn soon<F: Future>(what: &str, f: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), f).await.unwrap_or_else(|_| panic!("no {what} within 20 s"))
}
