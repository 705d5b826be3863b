//! Memory that is fetched (post-copy): what becomes of both copies when a monitor, a lease or a daemon is away for a moment.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use async_trait::async_trait;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stead_conf::Txn;
use stead_driver::fence::{Fence, Hold};
use stead_driver::guest::{Incoming, MigrationPhase, RunState};
use stead_model::{Epoch, GuestKind, NodeRecord, Ownership, Upid, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::incoming::IncomingRequest;
use stead_ops::guest::migrate::MigrateOptions;
use stead_ops::peers::{Duplex, PeerError, PeerLink};
use stead_ops::store;
use stead_ops_testing::{Node, member, name, root, uuid, vmid};

/// A node that takes what is sent to it, and says that it has the copy.
#[derive(Default)]
struct Target {
    calls: Mutex<Vec<String>>,
    opened: AtomicUsize,
    closed: Arc<AtomicBool>,
}

#[async_trait]
impl PeerLink for Target {
    async fn call(&self, _: &NodeRecord, call: &str, _: Value, _: Duration) -> Result<Value, PeerError> {
        self.calls.lock().unwrap().push(call.to_owned());
        Ok(match call {
            "guest/fits" => json!([]),
            "guest/incoming" => json!({ "streams": 1, "fetches": true }),
            "guest/fetches" | "guest/serves" | "guest/migrating" => json!(true),
            _ => Value::Null,
        })
    }

    async fn open(&self, _: &NodeRecord, _: &str) -> Result<Box<dyn Duplex>, PeerError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let closed = self.closed.clone();
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut far, &mut tokio::io::sink()).await;
            closed.store(true, Ordering::SeqCst);
        });
        Ok(Box::new(near))
    }
}

impl Target {
    fn was_told(&self, call: &str) -> bool {
        self.calls.lock().unwrap().iter().any(|c| c == call)
    }
}

/// n2 is there.
async fn alone() -> (Node, Arc<Target>) {
    let node = Node::start().await;
    std::fs::create_dir_all(node.dir.path().join("run")).unwrap();
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    let target = Arc::new(Target::default());
    node.peers.set(target.clone());
    (node, target)
}

/// n1 runs a guest; n2 is there.
async fn node() -> (Node, Arc<Target>) {
    let (node, target) = alone().await;
    let upid = node.ops.create_vm(&root(), vmid(100), &BTreeMap::new(), false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    (node, target)
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(tokio::time::Instant::now() < limit, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A move that sends so slowly that the rest is to be fetched after one round.
async fn move_away(node: &Node) -> Upid {
    node.commit(Txn::new("test").put(paths::DATACENTER_CFG, "migration: secure,postcopy=1\n")).await;
    let options = MigrateOptions { bwlimit: Some(64), ..MigrateOptions::to(name("n2"), true) };
    node.ops.migrate(&root(), vmid(100), options, Asked::default()).await.unwrap()
}

fn all_is_fetched(node: &Node) {
    node.machines.set_migration("n1", vmid(100), MigrationPhase::Completed, true);
}

async fn serves(node: &Node) {
    until("it is fetched from", || node.machines.state("n1", vmid(100)) == Some(RunState::Serving)).await;
}

fn is_n2_s(node: &Node) -> bool {
    node.ops.ownership(vmid(100)).unwrap().unwrap().owner == name("n2")
}

/// The guest is n2's under the next epoch, as a hand-over commits it.
async fn hand_over(node: &Node) {
    let own = node.own(100);
    let new = Ownership { owner: name("n2"), epoch: own.epoch.next(), running: true, ..own };
    let mut txn = Txn::new("test").put(paths::ownership(vmid(100)), store::bytes(&new).unwrap());
    txn.ops.push(stead_conf::Op::Move {
        from: paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)),
        to: paths::guest(&name("n2"), GuestKind::Qemu, vmid(100)),
    });
    node.commit(txn).await;
}

#[tokio::test]
async fn a_monitor_that_is_slow_costs_no_memory() {
    let (node, target) = node().await;
    // Three words to go over are not heard.
    node.machines.silence("n1", 3);
    let upid = move_away(&node).await;
    serves(&node).await;
    assert!(is_n2_s(&node) && target.was_told("guest/incoming"));
    // Nor are the next questions; what is fetched goes on meanwhile.
    until("the target is to run it", || target.was_told("guest/continue")).await;
    node.machines.silence("n1", 3);
    until("it is asked again", || node.machines.unheard("n1") == 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(target.opened.load(Ordering::SeqCst), 1, "its connection was given up");
    assert!(!target.closed.load(Ordering::SeqCst), "its connection was cut");
    all_is_fetched(&node);
    let (status, log) = node.ended(&upid).await;
    assert_eq!(status, "OK", "{log}");
    assert_eq!(node.machines.state("n1", vmid(100)), None);
}

#[tokio::test]
async fn one_that_does_not_come_to_be_fetched_is_kept_by_its_user_s_word() {
    let (node, target) = node().await;
    node.machines.hang_fetching("n1", true);
    let upid = move_away(&node).await;
    let begun = async {
        while !node.log(&upid).await.contains("to fetch what is left") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), begun).await.unwrap();
    node.ops.tasks.stop(&upid);
    let (status, log) = node.ended(&upid).await;
    assert!(status.contains("interrupted"), "{status}: {log}");
    assert!(target.was_told("guest/abort"));
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
    assert!(!is_n2_s(&node));
}

#[tokio::test]
async fn a_daemon_that_comes_later_leaves_alone_by_what_a_target_fetches() {
    let (node, _) = node().await;
    // Handed over to here, and not continued yet, when its daemon ended.
    node.machines.set_state("n1", vmid(100), RunState::Received);
    node.machines.set_migration("n1", vmid(100), MigrationPhase::Fetching, false);
    node.ops.reconcile().await.unwrap();
    assert_eq!(node.machines.migration("n1", vmid(100)), Some(MigrationPhase::Fetching), "it was cut");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
}

#[tokio::test]
async fn a_source_that_does_not_answer_is_kept_until_all_is_fetched() {
    let (node, target) = node().await;
    hand_over(&node).await;
    node.machines.set_migration("n1", vmid(100), MigrationPhase::Fetching, true);
    node.machines.set_state("n1", vmid(100), RunState::Unresponsive);
    node.machines.silence("n1", u32::MAX);
    node.ops.reconcile().await.unwrap();
    until("somebody serves", || target.was_told("guest/fetches")).await;
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Unresponsive));
    node.machines.set_state("n1", vmid(100), RunState::Serving);
    node.machines.silence("n1", 0);
    all_is_fetched(&node);
    until("it is ended", || node.machines.state("n1", vmid(100)).is_none()).await;
}

#[tokio::test]
async fn a_source_serves_on_when_the_lease_is_back() {
    for stands in [true, false] {
        let (node, _) = node().await;
        let epoch = node.own(100).epoch;
        let registration = node.ops.guests.prepare(vmid(100), epoch).await.unwrap();
        node.fence.register(registration).await.unwrap();
        node.fence.run(vmid(100), epoch).await.unwrap();
        hand_over(&node).await;
        node.machines.set_state("n1", vmid(100), RunState::Paused);
        node.machines.set_migration("n1", vmid(100), MigrationPhase::Broken, stands);
        node.fence.end_lease();
        let nonce = node.fence.nonce().await.unwrap();
        node.fence.renew(nonce, 4000, 1000, 2000).await.unwrap();
        let ran = node.fence.ran().len();
        let held = node.fence.status().await.unwrap().guests;
        node.ops.decide_held(&held).await;
        assert_eq!(node.fence.ran().len(), ran, "its CPUs never run again");
        let there = node.machines.state("n1", vmid(100)).is_some();
        assert_eq!(there, stands);
        let hold = node.fence.status().await.unwrap().guests.first().map(|g| g.2);
        assert_eq!(hold, stands.then_some(Hold::Released));
    }
}

/// A guest of n2 that is on its way here, under HA.
async fn on_its_way() -> Node {
    let (node, _) = alone().await;
    assert!(prepared(&node).await);
    node
}

/// A copy of it is made that waits; whether it may fetch.
async fn prepared(node: &Node) -> bool {
    node.record_guest(100, "n2", |own| (own.running, own.armed) = (true, true), "memory: 512\n").await;
    let request = IncomingRequest {
        vmid: vmid(100),
        epoch: Epoch(8),
        source: name("n2"),
        config: "memory: 512\n".to_owned(),
        incoming: Incoming::stream("fake-1.0", "tcg"),
        ha: true,
        attempt: 1,
        lends: vec![],
        paused: false,
        fetch: true,
    };
    node.ops.incoming(request).await.unwrap().fetches
}

/// Were it taken for one that fetches, it would be killed sooner than others for good.
#[tokio::test]
async fn who_can_t_fetch_is_known_as_no_other() {
    let (node, _) = alone().await;
    // Its note can't be written.
    std::fs::create_dir_all(node.dir.path().join("run/fetch-100.json/in-the-way")).unwrap();
    assert!(!prepared(&node).await);
    assert_eq!(node.fence.may_fetch(vmid(100)), Some(false));
}

fn note(node: &Node) -> bool {
    node.dir.path().join("run/fetch-100.json").exists()
}

#[tokio::test]
async fn who_may_fetch_is_known_as_such_until_it_is_whole() {
    let node = on_its_way().await;
    assert_eq!(node.fence.may_fetch(vmid(100)), Some(true), "before its process says so");
    assert!(note(&node));
    let own = node.own(100);
    let new = Ownership { owner: name("n1"), epoch: Epoch(8), ..own };
    let mut txn = Txn::new("test").put(paths::ownership(vmid(100)), store::bytes(&new).unwrap());
    txn.ops.push(stead_conf::Op::Move {
        from: paths::guest(&name("n2"), GuestKind::Qemu, vmid(100)),
        to: paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)),
    });
    node.commit(txn).await;
    node.machines.set_migration("n1", vmid(100), MigrationPhase::Fetching, false);
    node.machines.set_state("n1", vmid(100), RunState::Received);
    until("it runs", || !node.fence.ran().is_empty()).await;
    node.machines.set_state("n1", vmid(100), RunState::Running);
    // It is not sent on before.
    let options = MigrateOptions::to(name("n2"), true);
    let by_ha = Asked { by_ha: true, ..Asked::default() };
    let upid = node.ops.migrate(&root(), vmid(100), options, by_ha).await.unwrap();
    let status = node.ended(&upid).await.0;
    assert!(status.contains("still fetches"), "{status}");
    node.machines.set_migration("n1", vmid(100), MigrationPhase::Completed, false);
    until("it is whole", || !note(&node)).await;
    until("that is known", || node.fence.may_fetch(vmid(100)) == Some(false)).await;
}

#[tokio::test]
async fn what_an_undone_move_was_to_fetch_is_forgotten() {
    let node = on_its_way().await;
    node.ops.end_incoming(vmid(100), Epoch(8)).await.unwrap();
    assert_eq!((note(&node), node.machines.state("n1", vmid(100))), (false, None));
}

/// By what is on disk: nobody may watch it yet.
#[tokio::test]
async fn a_daemon_that_was_just_started_knows_who_fetches() {
    let (node, _) = node().await;
    let epoch = node.own(100).epoch;
    let text = json!({ "epoch": epoch, "source": "n2" }).to_string();
    std::fs::write(node.dir.path().join("run/fetch-100.json"), text).unwrap();
    node.machines.set_migration("n1", vmid(100), MigrationPhase::Fetching, false);
    let options = MigrateOptions::to(name("n2"), true);
    let upid = node.ops.migrate(&root(), vmid(100), options, Asked::default()).await.unwrap();
    let status = node.ended(&upid).await.0;
    assert!(status.contains("still fetches"), "{status}");
}
