//! One node's use cases over fakes, behind the API on a loopback socket.
#![allow(dead_code, reason = "not every test file uses all of it")]

pub mod schema;

use async_trait::async_trait;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stead_access::{ShadowStore, TokenStore};
use stead_api::framework::{Body, Error, From};
use stead_api::{Api, Backend, Cluster, ConnInfo, Place, Target};
use stead_conf::{ClusterKey, Conf, Options};
use stead_driver::fake::{FakeGuests, FakeMachines, FakeStorage};
use stead_driver::fake_fence::FakeFence;
use stead_driver::storage::{StorageDriver, StorageError, StorageType};
use stead_model::{
    ClusterRecord, Epoch, FenceProfile, NodeName, NodeRecord, NodeState, RaftId, StorageId, Upid, Vmid, paths,
};
use stead_ops::admin::{Admin, HostPower, JoinRequest};
use stead_ops::peers::{Duplex, PeerError, PeerLink};
use stead_ops::status::{NodeReport, NodeStats};
use stead_ops::{Actor, Flush, Lease, Me, Ops, OpsError};
use stead_tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

pub const PASSWORD: &str = "correct horse";
const BOOT: &str = "11111111-1111-4111-8111-111111111111";
const UUID: &str = "22222222-2222-4222-8222-222222222222";

/// A storage in memory, the same one for the same name.
struct Fakes(Mutex<BTreeMap<StorageId, Arc<FakeStorage>>>, PathBuf);

impl StorageType for Fakes {
    fn name(&self) -> &'static str {
        "dir"
    }
    fn open(
        &self,
        id: &StorageId,
        _: &BTreeMap<String, String>,
    ) -> Result<Arc<dyn StorageDriver>, StorageError> {
        let make = || Arc::new(FakeStorage::new(id.clone(), 64 << 30, self.1.clone()));
        Ok(self.0.lock().unwrap().entry(id.clone()).or_insert_with(make).clone())
    }
}

/// Nobody else is there.
struct Alone;

static NAME: std::sync::LazyLock<NodeName> = std::sync::LazyLock::new(|| "n1".parse().unwrap());

fn away(to: &NodeRecord) -> PeerError {
    PeerError::Unreachable { node: to.name.clone(), why: "this test has one node".into() }
}

#[async_trait]
impl PeerLink for Alone {
    async fn call(&self, to: &NodeRecord, _: &str, _: Value, _: Duration) -> Result<Value, PeerError> {
        Err(away(to))
    }
    async fn open(&self, to: &NodeRecord, _: &str) -> Result<Box<dyn Duplex>, PeerError> {
        Err(away(to))
    }
}

impl stead_ops::join::Host for Alone {
    fn keep_join(&self, _: &stead_ops::join::JoinMaterial) -> Result<(), String> {
        Err("this test joins nothing".into())
    }
    fn keep_leave(&self, _: &str) -> Result<(), String> {
        Err("this test leaves nothing".into())
    }
    fn restart(&self) {}
    fn bringing(&self) -> Vec<(Vmid, String)> {
        vec![]
    }
    fn brought(&self) {}
    fn fingerprint(&self) -> stead_transport::Fingerprint {
        stead_transport::Fingerprint([7; 32])
    }
    fn seal_key(&self) -> [u8; 32] {
        [5; 32]
    }
}

fn refused<T>() -> Result<T, OpsError> {
    Err(OpsError::failed("not in this test"))
}

#[async_trait]
impl Admin for Alone {
    async fn create_cluster(&self, _: &Actor, _: &str) -> Result<Upid, OpsError> {
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
    _lease: watch::Sender<Lease>,
    _dir: tempfile::TempDir,
}

fn found(dir: &std::path::Path, user_cfg: &str, users: &[&str], addr: SocketAddr) -> Conf {
    let key = ClusterKey::generate().unwrap();
    let cluster = ClusterRecord {
        name: "test".into(),
        uuid: UUID.into(),
        epoch: Epoch(1),
        profile: FenceProfile::default(),
        previous_profile: None,
    };
    let node = NodeRecord {
        name: "n1".parse().unwrap(),
        uuid: UUID.parse().unwrap(),
        raft_id: RaftId(1),
        addr,
        state: NodeState::Member { boot: BOOT.parse().unwrap() },
        version: String::new(),
    };
    let storage = "dir: local\n\tpath /fake\n\tcontent images,iso\n\tshared 1\n";
    let mut txn = stead_ops::join::found(&cluster, &node, "a certificate", storage).unwrap();
    let mut shadow = ShadowStore::default();
    for user in users {
        shadow.set(&user.parse().unwrap(), PASSWORD, &[1; 16]).unwrap();
    }
    let secrets = [
        (paths::AUTH_KEY, vec![9; 32]),
        (paths::SHADOW_CFG, shadow.to_text().into_bytes()),
        (paths::TOKEN_CFG, TokenStore::default().to_text().into_bytes()),
    ];
    for (path, secret) in secrets {
        txn = txn.put(path, key.seal(path, &secret).unwrap());
    }
    txn = txn.put(paths::USER_CFG, user_cfg.to_owned());
    Conf::create(Options::new(dir.join("conf"), key, RaftId(1)), &txn).unwrap()
}

/// What this node reports of itself.
async fn report(ops: &Ops, seq: u64) -> NodeReport {
    let guests = ops.guests.list().await;
    NodeReport {
        node: ops.me.name.clone(),
        boot: ops.me.boot.clone(),
        seq,
        started: ops.me.started,
        lease: true,
        listens: ops.events.listens(std::time::Instant::now()),
        fingerprint: None,
        stats: NodeStats::default(),
        guests,
        storages: vec![],
        tasks: vec![],
        ha: Value::Null,
    }
}

impl Node {
    /// A node whose `user.cfg` is given; each of `users` has [`PASSWORD`].
    pub async fn start(user_cfg: &str, users: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let conf = found(dir.path(), user_cfg, users, addr);
        let mut status = conf.status();
        status.wait_for(|s| s.quorate && s.is_leader).await.unwrap();
        let name: NodeName = "n1".parse().unwrap();
        let (lease, leased) = watch::channel(Lease { held: true });
        let (flush, flushes) = mpsc::channel(16);
        let ops = Arc::new(Ops {
            me: Me {
                name: name.clone(),
                uuid: UUID.parse().unwrap(),
                boot: BOOT.parse().unwrap(),
                addr,
                dir: dir.path().to_owned(),
                started: 1,
                version: "0.0.0",
            },
            conf,
            tasks: Tasks::open(dir.path().join("tasks"), name).unwrap(),
            guests: Arc::new(FakeGuests::new(&FakeMachines::default(), "n1", dir.path())),
            fence: Arc::new(FakeFence::leased()),
            storage_types: vec![Arc::new(Fakes(Mutex::default(), dir.path().to_owned()))],
            peers: Arc::new(Alone),
            status: stead_ops::status::ClusterStatus::default(),
            events: stead_ops::events::Events::new(1),
            lease: leased,
            flush: Flush(flush),
            host: Arc::new(Alone),
            guest_locks: stead_ops::GuestLocks::default(),
            sign_ins: stead_ops::access::SignIns::default(),
        });
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
        Self { addr, ops, _lease: lease, _dir: dir }
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
        let form = format!("username={user}&password={}", PASSWORD.replace(' ', "+"));
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

async fn reporter(ops: Arc<Ops>, mut flushes: mpsc::Receiver<oneshot::Sender<()>>) {
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
        let faults = schema::faults(&endpoint.meta().returns, &self.body["data"]);
        assert!(faults.is_empty(), "{method} {path}: {}\nin {}", faults.join("\n"), self.body);
    }

    pub fn data(&self) -> Value {
        assert_eq!(self.line, "200 OK", "{}", self.body);
        self.body["data"].clone()
    }
}
