//! One node's use cases over fakes, for the tests of `ops` and of what stands on it: the configuration, the tasks and
//! the use cases are real; guests, storages and the fence process are the drivers' fakes. Other nodes are records alone.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use async_trait::async_trait;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use stead_conf::{ClusterKey, Conf, Options, Txn};
use stead_driver::fake::{FakeCds, FakeGuests, FakeMachines, FakeStorage};
use stead_driver::fake_fence::FakeFence;
use stead_driver::storage::{StorageDriver, StorageError, StorageType};
use stead_model::{
    ClusterRecord, Epoch, Era, FenceProfile, GuestKind, NodeName, NodeRecord, NodeState, NodeUuid, Ownership,
    RaftId, Remote, StorageId, Upid, Vmid, paths,
};
use stead_ops::epochs::{Aside, EpochPlan, RejoinAnswer};
use stead_ops::join::{Host, JoinMaterial};
use stead_ops::peers::{Duplex, PeerError, PeerLink};
use stead_ops::remote::{Ask, RemoteError, RemoteLink};
use stead_ops::status::{NodeReport, NodeStats};
use stead_ops::{Actor, Flush, Lease, Me, Ops, store};
use stead_tasks::Tasks;
use stead_transport::{ClusterCa, Fingerprint, NodeKey, PeerIdentity};
use tokio::sync::{mpsc, oneshot, watch};

/// This node's boot, and that of other members.
pub const BOOT: &str = "11111111-1111-4111-8111-111111111111";
/// This node's identity, and the cluster's.
pub const UUID: &str = "22222222-2222-4222-8222-222222222222";
/// `storage.cfg` of [`Node::start`].
pub const STORAGES: &str = "dir: local\n\tpath /fake/local\n\tcontent images,iso\n\n\
    dir: shared\n\tpath /fake/shared\n\tcontent images\n\tshared 1\n";

/// Storages in memory, the same one for the same name.
#[derive(Clone)]
struct Fakes(Arc<Mutex<BTreeMap<StorageId, Arc<FakeStorage>>>>, PathBuf);

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

/// Nobody answers.
struct Alone;

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

/// The way to other nodes, as a test sets it.
#[derive(Default)]
pub struct Peers(Mutex<Option<Arc<dyn PeerLink>>>);

impl Peers {
    /// From now on it is this one.
    pub fn set(&self, link: Arc<dyn PeerLink>) {
        *self.0.lock().unwrap() = Some(link);
    }

    fn link(&self) -> Arc<dyn PeerLink> {
        self.0.lock().unwrap().clone().unwrap_or_else(|| Arc::new(Alone))
    }
}

#[async_trait]
impl PeerLink for Peers {
    async fn call(
        &self,
        to: &NodeRecord,
        call: &str,
        body: Value,
        limit: Duration,
    ) -> Result<Value, PeerError> {
        self.link().call(to, call, body, limit).await
    }
    async fn open(&self, to: &NodeRecord, call: &str) -> Result<Box<dyn Duplex>, PeerError> {
        self.link().open(to, call).await
    }
}

/// The way to other clusters, as a test sets it.
#[derive(Default)]
pub struct Elsewhere(Mutex<Option<Arc<dyn RemoteLink>>>);

impl Elsewhere {
    /// From now on it is this one.
    pub fn set(&self, link: Arc<dyn RemoteLink>) {
        *self.0.lock().unwrap() = Some(link);
    }

    fn link(&self, to: &Remote) -> Result<Arc<dyn RemoteLink>, RemoteError> {
        let nobody =
            || RemoteError::Unreachable { at: to.to_string(), why: "this test has one cluster".into() };
        self.0.lock().unwrap().clone().ok_or_else(nobody)
    }
}

#[async_trait]
impl RemoteLink for Elsewhere {
    async fn call(&self, to: &Remote, ca: &str, ask: &Ask, limit: Duration) -> Result<Value, RemoteError> {
        self.link(to)?.call(to, ca, ask, limit).await
    }
    async fn open(&self, to: &Remote, ca: &str, ask: &Ask) -> Result<Box<dyn Duplex>, RemoteError> {
        self.link(to)?.open(to, ca, ask).await
    }
}

/// What a join has left for the daemon to carry, and the node's certificates.
pub struct Kept {
    /// The CA's certificate and the node's.
    pub certificates: Mutex<Option<stead_ops::certificates::Kept>>,
    /// No certificate can be kept.
    pub full: std::sync::atomic::AtomicBool,
    key: NodeKey,
    /// Guests that wait for their place in the cluster.
    pub carried: Mutex<Vec<(Vmid, String)>>,
    /// The cluster epoch that was to begin.
    pub epoch: Mutex<Option<EpochPlan>>,
    /// What the node had alone, until it is told.
    pub aside: Mutex<Vec<Aside>>,
}

impl Kept {
    /// With a certificate of that CA's, for that address.
    fn of(ca: &ClusterCa, addr: SocketAddr) -> Self {
        let key = NodeKey::generate().unwrap();
        let me = PeerIdentity { name: name("n1"), uuid: UUID.parse().unwrap() };
        let request = key.signing_request(&me.name).unwrap();
        let cert = ca.sign(&request, &me, &[addr.ip()], SystemTime::now()).unwrap();
        let kept = stead_ops::certificates::Kept { ca: ca.cert_pem().to_owned(), cert };
        Self {
            certificates: Mutex::new(Some(kept)),
            full: false.into(),
            key,
            carried: Mutex::default(),
            epoch: Mutex::default(),
            aside: Mutex::default(),
        }
    }
}

impl Host for Kept {
    fn keep_join(&self, join: &JoinMaterial) -> Result<(), String> {
        self.carried.lock().unwrap().clone_from(&join.guests);
        Ok(())
    }
    fn keep_leave(&self, _: &str) -> Result<(), String> {
        Err("this test leaves nothing".into())
    }
    fn keep_epoch(&self, plan: &EpochPlan) -> Result<(), String> {
        *self.epoch.lock().unwrap() = Some(plan.clone());
        Ok(())
    }
    fn keep_rejoin(&self, _: &RejoinAnswer) -> Result<(), String> {
        Err("this test has one epoch".into())
    }
    fn asides(&self) -> Vec<Aside> {
        self.aside.lock().unwrap().clone()
    }
    fn told_aside(&self) {
        self.aside.lock().unwrap().clear();
    }
    fn restart(&self) {}
    fn bringing(&self) -> Vec<(Vmid, String)> {
        self.carried.lock().unwrap().clone()
    }
    fn brought(&self) {
        self.carried.lock().unwrap().clear();
    }
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint([7; 32])
    }
    fn seal_key(&self) -> [u8; 32] {
        [5; 32]
    }
    fn certificates(&self) -> stead_ops::certificates::Kept {
        self.certificates.lock().unwrap().clone().unwrap()
    }
    fn signing_request(&self) -> Result<String, String> {
        self.key.signing_request(&name("n1")).map_err(|e| e.to_string())
    }
    fn keep_certificates(&self, kept: &stead_ops::certificates::Kept) -> Result<(), String> {
        if self.full.load(std::sync::atomic::Ordering::Relaxed) {
            return Err("the disk is full".into());
        }
        *self.certificates.lock().unwrap() = Some(kept.clone());
        Ok(())
    }
}

/// What a node reports that lives, and of which nothing else is to be told.
pub fn report(node: &str) -> NodeReport {
    NodeReport {
        node: name(node),
        boot: BOOT.parse().unwrap(),
        seq: 1,
        started: 1,
        clock_ms: 0,
        ahead_ms: None,
        lease: true,
        links: vec![],
        listens: false,
        fingerprint: Some(stead_transport::Fingerprint([9; 32])),
        stats: NodeStats::default(),
        guests: vec![],
        storages: vec![],
        tasks: vec![],
        ha: Value::Null,
        outlook: None,
        fenced: vec![],
        elsewhere: BTreeSet::new(),
        addresses: vec![],
    }
}

/// A node with what lies below it.
pub struct Node {
    /// Its use cases.
    pub ops: Arc<Ops>,
    /// Its guests' processes.
    pub machines: FakeMachines,
    /// Its fence process.
    pub fence: Arc<FakeFence>,
    /// What makes its images of CDs.
    pub cds: Arc<FakeCds>,
    /// The daemon around it.
    pub host: Arc<Kept>,
    /// Other nodes: none answers, until a test says otherwise.
    pub peers: Arc<Peers>,
    /// Other clusters: there are none, until a test says otherwise.
    pub remotes: Arc<Elsewhere>,
    /// Its lease: held, until a test says otherwise.
    pub lease: watch::Sender<Lease>,
    storages: Fakes,
    /// Its folder.
    pub dir: tempfile::TempDir,
}

/// What a node asks of whoever reports its status: to answer when it has been.
pub type Flushes = mpsc::Receiver<oneshot::Sender<()>>;

/// A node's name.
pub fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// A guest's number.
pub fn vmid(n: u32) -> Vmid {
    Vmid::new(n).unwrap()
}

fn record(node: &str, raft_id: u64, uuid: &str, addr: SocketAddr, state: NodeState) -> NodeRecord {
    NodeRecord {
        name: name(node),
        uuid: uuid.parse().unwrap(),
        raft_id: RaftId(raft_id),
        addr,
        links: stead_model::link::Links::new(),
        state,
        version: "0.1.0".into(),
        witness: false,
        off: None,
        restart: None,
    }
}

fn found(
    dir: &std::path::Path,
    addr: SocketAddr,
    storages: &str,
    ca: &ClusterCa,
    more: impl FnOnce(Txn, &ClusterKey) -> Txn,
) -> Conf {
    let key = ClusterKey::generate().unwrap();
    let cluster = ClusterRecord {
        name: "test".into(),
        uuid: UUID.into(),
        epoch: Epoch(1),
        profile: FenceProfile::default(),
        previous_profile: None,
        lineage: stead_model::Lineage::default(),
    };
    let node = record("n1", 1, UUID, addr, member());
    let mut txn = stead_ops::join::found(&cluster, &node, ca.cert_pem(), storages).unwrap();
    txn = txn.put(paths::CA_KEY, key.seal(paths::CA_KEY, ca.key_pem().as_bytes()).unwrap());
    let txn = more(txn, &key);
    Conf::create(Options::new(dir.join("conf"), key, RaftId(1)), &txn).unwrap()
}

impl Node {
    /// `n1`, which leads a cluster of its own. Nobody reports its status.
    pub async fn start() -> Self {
        let addr = "127.0.0.1:8006".parse().unwrap();
        let (node, flushes) = Self::begin(addr, STORAGES, |txn, _| txn).await;
        tokio::spawn(flushed(flushes));
        node
    }

    /// `n1`, at that address, with that `storage.cfg`; `more` adds to the transaction that founds its cluster. Whoever
    /// starts it answers its flushes.
    pub async fn begin(
        addr: SocketAddr,
        storages: &str,
        more: impl FnOnce(Txn, &ClusterKey) -> Txn,
    ) -> (Self, Flushes) {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::create("test", UUID, SystemTime::now()).unwrap();
        let conf = found(dir.path(), addr, storages, &ca, more);
        conf.status().wait_for(|s| s.quorate && s.is_leader).await.unwrap();
        let (lease, leased) = watch::channel(Lease { held: true });
        let (flush, flushes) = mpsc::channel(16);
        let (machines, fence) = (FakeMachines::default(), Arc::new(FakeFence::leased()));
        let (host, cds) = (Arc::new(Kept::of(&ca, addr)), Arc::new(FakeCds::default()));
        let storages = Fakes(Arc::default(), dir.path().to_owned());
        let remotes = Arc::new(Elsewhere::default());
        let peers = Arc::new(Peers::default());
        let ops = Arc::new(Ops {
            me: Me {
                name: name("n1"),
                uuid: UUID.parse().unwrap(),
                boot: BOOT.parse().unwrap(),
                addr,
                dir: dir.path().to_owned(),
                started: 1,
                era: Era::FIRST,
                version: "0.1.0",
                witness: false,
            },
            conf,
            tasks: Tasks::open(dir.path().join("tasks"), name("n1")).unwrap(),
            guests: Arc::new(FakeGuests::new(&machines, "n1", dir.path())),
            fence: fence.clone(),
            fence_agents: stead_ops::fence_devices::agent::Agents::new(&dir.path().join("agents")),
            cds: cds.clone(),
            storage_types: vec![Arc::new(storages.clone())],
            epochs: stead_ops::epochs::Epochs::default(),
            certificates: stead_ops::certificates::Certificates::default(),
            peers: peers.clone(),
            remotes: remotes.clone(),
            status: stead_ops::status::ClusterStatus::default(),
            events: stead_ops::events::Events::new(1),
            lease: leased,
            flush: Flush(flush),
            host: host.clone(),
            guest_locks: stead_ops::GuestLocks::default(),
            sign_ins: stead_ops::access::SignIns::default(),
            departure: stead_ops::departure::Departure::default(),
        });
        (Self { ops, machines, fence, cds, host, lease, peers, remotes, storages, dir }, flushes)
    }

    /// A storage, as it stands behind its driver.
    pub fn storage(&self, id: &str) -> Arc<FakeStorage> {
        let id: StorageId = id.parse().unwrap();
        self.ops.driver(&id).unwrap();
        self.storages.0.lock().unwrap()[&id].clone()
    }

    /// Commits, whatever it is.
    pub async fn commit(&self, txn: Txn) {
        self.ops.conf.transact(txn).await.unwrap();
    }

    /// Records another node, over what is there.
    pub async fn record_node(&self, node: &str, raft_id: u64, uuid: &str, state: NodeState) {
        let addr = format!("127.0.0.{raft_id}:8006").parse().unwrap();
        let bytes = store::bytes(&record(node, raft_id, uuid, addr, state)).unwrap();
        self.commit(Txn::new("test").put(paths::node(&name(node)), bytes)).await;
    }

    /// The first of three nodes: n3 is online, n2 is lost.
    pub async fn of_three() -> Self {
        let node = Self::start().await;
        node.record_node("n2", 2, uuid(2).as_str(), lost()).await;
        node.record_node("n3", 3, uuid(3).as_str(), member()).await;
        node.report_of("n3");
        node
    }

    /// Records a guest of any node.
    pub async fn record_guest(&self, n: u32, owner: &str, own: impl FnOnce(&mut Ownership), config: &str) {
        let mut new = Ownership {
            kind: GuestKind::Qemu,
            owner: name(owner),
            epoch: Epoch(7),
            armed: false,
            running: false,
            recovered: false,
        };
        own(&mut new);
        let txn = Txn::new("test")
            .put(paths::ownership(vmid(n)), store::bytes(&new).unwrap())
            .put(paths::guest(&name(owner), GuestKind::Qemu, vmid(n)), config.to_owned());
        self.commit(txn).await;
    }

    /// Takes a report of another node, as if it were alive.
    pub fn report_of(&self, node: &str) {
        self.ops.take_report(&report(node));
    }

    /// A task's end: its status, and its log.
    pub async fn ended(&self, upid: &Upid) -> (String, String) {
        let status = self.ops.tasks.wait(upid).await.unwrap().exitstatus.unwrap();
        (status, self.log(upid).await)
    }

    /// What a task has said so far.
    pub async fn log(&self, upid: &Upid) -> String {
        let log = self.ops.tasks.log(upid, 0, 0).await.unwrap();
        let lines: Vec<String> = log.lines.into_iter().map(|l| l.t).collect();
        lines.join("\n")
    }

    /// Who may run a guest.
    pub fn own(&self, n: u32) -> Ownership {
        self.ops.guest_at(vmid(n)).unwrap().own.value
    }
}

/// Other nodes' identities.
pub fn uuid(n: u32) -> NodeUuid {
    format!("33333333-3333-4333-8333-{n:012}").parse().unwrap()
}

/// A member's state.
pub fn member() -> NodeState {
    NodeState::Member { boot: BOOT.parse().unwrap() }
}

/// A lost node's state.
pub fn lost() -> NodeState {
    NodeState::Lost { boot: BOOT.parse().unwrap() }
}

/// Who may do all.
pub fn root() -> Actor {
    Actor::system()
}

async fn flushed(mut flushes: mpsc::Receiver<oneshot::Sender<()>>) {
    while let Some(done) = flushes.recv().await {
        // Whoever asked may have gone on.
        let _ = done.send(());
    }
}
