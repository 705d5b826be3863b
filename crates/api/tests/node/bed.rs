//! One node's use cases over fakes, behind the API on a loopback socket.

use async_trait::async_trait;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use stead_access::{ShadowStore, TokenStore};
use stead_api::framework::{Body, Error, From};
use stead_api::{Api, Backend, Cluster, ConnInfo, Place, Target};
use stead_conf::{ClusterKey, Txn};
use stead_model::{NodeName, Upid, paths};
use stead_ops::admin::{Admin, HostPower, JoinRequest};
use stead_ops::links::LinkWish;
use stead_ops::status::NodeReport;
use stead_ops::{Actor, Ops, OpsError};
use stead_ops_testing::Flushes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const PASSWORD: &str = "correct horse";

/// The daemon and the cluster around the API.
struct Alone;

static NAME: std::sync::LazyLock<NodeName> = std::sync::LazyLock::new(|| "n1".parse().unwrap());

fn refused<T>() -> Result<T, OpsError> {
    Err(OpsError::failed("not in this test"))
}

#[async_trait]
impl Admin for Alone {
    async fn create_cluster(&self, _: &Actor, _: &str, _: LinkWish) -> Result<Upid, OpsError> {
        refused()
    }
    async fn join_information(
        &self,
        actor: &Actor,
        node: Option<&NodeName>,
        with_token: bool,
    ) -> Result<Value, OpsError> {
        let by = node.map_or("n1", NodeName::as_str);
        let mut answer = serde_json::json!({
            "config_digest": "", "preferred_node": by, "nodelist": [],
            "totem": {"cluster_name": "test", "version": "2"}, "information": format!("for {}", actor.who),
        });
        if with_token {
            answer["token"] = "secret".into();
        }
        Ok(answer)
    }
    async fn join_cluster(&self, _: &Actor, _: JoinRequest) -> Result<Upid, OpsError> {
        refused()
    }
    async fn remove_node(&self, _: &Actor, _: &NodeName) -> Result<(), OpsError> {
        refused()
    }
    async fn host_power(&self, _: &Actor, _: HostPower) -> Result<(), OpsError> {
        refused()
    }
}

#[async_trait]
impl Cluster for Alone {
    fn me(&self) -> &NodeName {
        &NAME
    }
    async fn place(&self, _: &Target<'_>) -> Result<Place, Error> {
        Ok(Place::Here)
    }
    async fn forward(&self, _: &NodeName, _: http::Request<Body>) -> Result<http::Response<Body>, Error> {
        Err(Error::new(595, "this test has one node"))
    }
}

pub struct Node {
    pub addr: SocketAddr,
    pub ops: Arc<Ops>,
    /// What it stands on.
    pub below: stead_ops_testing::Node,
}

const STORAGES: &str = "dir: local\n\tpath /fake\n\tcontent images,iso\n\tshared 1\n";

/// Users with [`PASSWORD`], and a `user.cfg`.
fn with_users(txn: Txn, key: &ClusterKey, user_cfg: &str, users: &[&str]) -> Txn {
    let mut shadow = ShadowStore::default();
    for user in users {
        shadow.set(&user.parse().unwrap(), PASSWORD, &[1; 16]).unwrap();
    }
    let secrets = [
        (paths::AUTH_KEY, vec![9; 32]),
        (paths::SHADOW_CFG, shadow.to_text().into_bytes()),
        (paths::TOKEN_CFG, TokenStore::default().to_text().into_bytes()),
    ];
    let sealed = secrets.into_iter().fold(txn, |txn, (path, secret)| {
        let sealed = key.seal(path, &secret).unwrap();
        txn.put(path, sealed)
    });
    sealed.put(paths::USER_CFG, user_cfg.to_owned())
}

/// What this node reports of itself.
async fn report(ops: &Ops, seq: u64) -> NodeReport {
    let guests = ops.guests.list().await;
    NodeReport {
        boot: ops.me.boot.clone(),
        seq,
        started: ops.me.started,
        listens: ops.events.listens(std::time::Instant::now()),
        fingerprint: None,
        guests,
        ..stead_ops_testing::report(ops.me.name.as_str())
    }
}

impl Node {
    /// A node whose `user.cfg` is given; each of `users` has [`PASSWORD`].
    pub async fn start(user_cfg: &str, users: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let users = |txn, key: &_| with_users(txn, key, user_cfg, users);
        let (below, flushes) = stead_ops_testing::Node::begin(addr, STORAGES, users).await;
        let ops = below.ops.clone();
        tokio::spawn(reporter(ops.clone(), flushes));
        ops.flush.now().await;
        let after = ops.flush.clone();
        ops.tasks.on_end(move |_| {
            let flush = after.clone();
            async move { flush.now().await }
        });
        let backend = Arc::new(Backend::new(ops.clone(), Arc::new(Alone)));
        let api = Arc::new(Api::new(stead_api::registry(), backend, Arc::new(Alone)));
        tokio::spawn(listen(listener, api));
        Self { addr, ops, below }
    }

    /// Sends a request and reads the whole answer.
    pub async fn ask(&self, who: &Who, method: &str, path: &str, form: &str) -> Answer {
        let auth = match who {
            Who::Nobody => String::new(),
            Who::Ticket(ticket, csrf) => {
                format!("Cookie: PVEAuthCookie={ticket}\r\nCSRFPreventionToken: {csrf}\r\n")
            }
            Who::Token(token) => format!("Authorization: PVEAPIToken={token}\r\n"),
        };
        let body = if form.is_empty() {
            "\r\n".to_owned()
        } else {
            let kind = "application/x-www-form-urlencoded";
            format!("Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{form}", form.len())
        };
        let rq =
            format!("{method} /api2/json{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{auth}{body}");
        let mut s = TcpStream::connect(self.addr).await.unwrap();
        s.write_all(rq.as_bytes()).await.unwrap();
        let mut text = String::new();
        s.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let line = head.lines().next().unwrap().trim_start_matches("HTTP/1.1 ").to_owned();
        let answer = Answer { line, body: serde_json::from_str(body).unwrap() };
        answer.is_as_declared(method, path);
        answer
    }

    pub async fn sign_in(&self, user: &str) -> Who {
        self.sign_in_with(user, PASSWORD).await
    }

    pub async fn sign_in_with(&self, user: &str, password: &str) -> Who {
        let form = format!("username={user}&password={}", password.replace(' ', "+"));
        let data = self.ask(&Who::Nobody, "POST", "/access/ticket", &form).await.data();
        let text = |key: &str| data[key].as_str().unwrap().to_owned();
        Who::Ticket(text("ticket"), text("CSRFPreventionToken"))
    }

    /// Waits for a task; its exit status.
    pub async fn done(&self, upid: &Value) -> String {
        let upid: Upid = upid.as_str().unwrap().parse().unwrap();
        self.ops.tasks.wait(&upid).await.unwrap().exitstatus.unwrap()
    }
}

async fn reporter(ops: Arc<Ops>, mut flushes: Flushes) {
    let mut seq = 0;
    while let Some(done) = flushes.recv().await {
        seq += 1;
        ops.take_report(&report(&ops, seq).await);
        let _ = done.send(());
    }
}

async fn listen(listener: TcpListener, api: Arc<Api<Backend>>) {
    while let Ok((stream, remote)) = listener.accept().await {
        let api = api.clone();
        let service = service_fn(move |rq: http::Request<hyper::body::Incoming>| {
            let (api, conn) = (api.clone(), ConnInfo { remote: Some(remote), from: From::Public });
            async move { Ok::<_, std::convert::Infallible>(api.handle(rq, conn).await) }
        });
        let conn = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(conn.with_upgrades());
    }
}

/// How a request shows who makes it.
pub enum Who {
    Nobody,
    Ticket(String, String),
    Token(String),
}

/// An answer: the status with its phrase, and the JSON.
#[derive(Debug)]
pub struct Answer {
    pub line: String,
    pub body: Value,
}

impl Answer {
    /// Holds a success against what its endpoint declares to answer.
    fn is_as_declared(&self, method: &str, path: &str) {
        let registry = stead_api::registry();
        let found = registry.find(method, path.split('?').next().unwrap());
        let Some((endpoint, _)) = found.filter(|_| self.line == "200 OK") else { return };
        let faults = crate::schema::faults(&endpoint.meta().returns, &self.body["data"]);
        assert!(faults.is_empty(), "{method} {path}: {}\nin {}", faults.join("\n"), self.body);
    }

    pub fn data(&self) -> Value {
        assert_eq!(self.line, "200 OK", "{}", self.body);
        self.body["data"].clone()
    }
}
