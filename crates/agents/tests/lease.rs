//! A node enters its cluster.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;
use stead_agents::lease::enter;
use stead_agents::restart::Restart;
use stead_conf::Txn;
use stead_model::{BootId, NodeRecord, NodeState, PoweredOff, paths};
use stead_ops::store;
use stead_ops_testing::{Node, name};

const EARLIER: &str = "33333333-3333-4333-8333-333333333333";

/// What n1's record says after n1 has entered with `state` and with that boot confirmed off.
async fn entered(state: impl FnOnce(BootId) -> NodeState, off: Option<BootId>) -> NodeRecord {
    let node = Node::start().await;
    let mut record = node.ops.node_record(&name("n1")).unwrap().value;
    let boot = node.ops.me.boot.clone();
    record.state = state(boot.clone());
    let off = off.unwrap_or(boot);
    record.off = Some(PoweredOff { boot: off, devices: "pdu1".into(), took_ms: 900 });
    node.commit(Txn::new("test").put(paths::node(&record.name), store::bytes(&record).unwrap())).await;
    enter(&node.ops).await.unwrap();
    let record = node.ops.node_record(&name("n1")).unwrap().value;
    assert_eq!(record.state, NodeState::Member { boot: node.ops.me.boot.clone() });
    record
}

#[tokio::test]
async fn a_boot_that_enters_was_never_off() {
    let lost = entered(|boot| NodeState::Lost { boot }, None).await;
    assert_eq!(lost.off, None, "no later loss of this boot may be settled by what was no power-off");
    let member = entered(|boot| NodeState::Member { boot }, None).await;
    assert_eq!(member.off, None);
}

#[tokio::test]
async fn what_is_known_of_an_earlier_boot_stays() {
    let earlier: BootId = EARLIER.parse().unwrap();
    let after = entered(|_| NodeState::Lost { boot: EARLIER.parse().unwrap() }, Some(earlier.clone())).await;
    assert_eq!(after.off.map(|off| off.boot), Some(earlier));
}

async fn marked(node: &Node) {
    let mut record = node.ops.node_record(&name("n1")).unwrap().value;
    record.restart = Some(node.ops.me.boot.clone());
    node.commit(Txn::new("test").put(paths::node(&record.name), store::bytes(&record).unwrap())).await;
}

const LEASE: Duration = Duration::from_secs(4);

#[tokio::test]
async fn the_mark_of_a_restart_goes_only_once_the_fence_process_has_let_go() {
    let node = Node::start().await;
    marked(&node).await;
    let is_marked = || node.ops.node_record(&name("n1")).unwrap().value.may_restart();
    let restart = Restart::default();
    // The lease that it was given last is the long one.
    restart.end(&node.ops, LEASE).await.unwrap_err();
    assert!(is_marked(), "it holds to the long lease");
    let nonce = node.ops.fence.nonce().await.unwrap();
    node.ops.fence.renew(nonce, 4000, 1000, 2000).await.unwrap();
    node.fence.set_gone(true);
    restart.end(&node.ops, LEASE).await.unwrap_err();
    assert!(is_marked(), "it may hold to the long lease");
    node.fence.set_gone(false);
    restart.end(&node.ops, LEASE).await.unwrap();
    assert!(!is_marked());
    assert_eq!(node.fence.shortened(), 1);
    restart.end(&node.ops, LEASE).await.unwrap();
    assert_eq!(node.fence.shortened(), 1, "there is no mark any more");
}

#[tokio::test]
async fn who_is_to_end_ends_no_mark_and_marks_anew() {
    let node = Node::start().await;
    marked(&node).await;
    let guest = stead_driver::fence::Registration {
        vmid: stead_ops_testing::vmid(100),
        epoch: stead_model::Epoch(3),
        cgroup: None,
        monitor: "m".into(),
        pidfile: "p".into(),
        fetches: false,
    };
    node.ops.fence.register(guest.clone()).await.unwrap();
    node.ops.fence.run(guest.vmid, guest.epoch).await.unwrap();
    let nonce = node.ops.fence.nonce().await.unwrap();
    node.ops.fence.renew(nonce, 4000, 1000, 2000).await.unwrap();
    let record = || node.ops.node_record(&name("n1")).unwrap();
    let before = record().revision;
    let restart = Restart::default();
    // Nobody grants anything here: it gives up. By then it has marked the node anew, over the old mark.
    restart.prepare(&node.ops).await;
    assert!(record().revision > before && record().value.may_restart());
    restart.end(&node.ops, LEASE).await.unwrap();
    assert!(record().value.may_restart(), "its own mark, for a lease that may come yet");
}

#[tokio::test]
async fn a_node_without_guests_takes_no_restart_lease() {
    let node = Node::start().await;
    Restart::default().prepare(&node.ops).await;
    assert!(!node.ops.node_record(&name("n1")).unwrap().value.may_restart());
}
