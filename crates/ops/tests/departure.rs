//! A host that goes down in order: what happens before the power is asked for.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use stead_conf::Txn;
use stead_model::paths;
use stead_ops::admin::HostPower;
use stead_ops::guest::Asked;
use stead_ops::{Actor, OpsError};
use stead_ops_testing::{Node, root, vmid};
use tokio::sync::mpsc;

/// A node with a running guest, and an agent that lets it go at once when it wishes to.
async fn node() -> Node {
    let node = Node::start().await;
    let upid = node.ops.create_vm(&root(), vmid(100), &BTreeMap::new(), false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let (ops, mut wish) = (node.ops.clone(), node.ops.departure.wish());
    tokio::spawn(async move {
        while wish.changed().await.is_ok() {
            let wished = wish.borrow_and_update().is_some();
            ops.departure.may_go(wished);
        }
    });
    node
}

/// Goes down; whether the guest ran when the power was asked for, and how the task ended.
async fn down(node: &Node, answer: Result<(), OpsError>) -> (Option<bool>, String) {
    let (asked, mut was) = mpsc::unbounded_channel();
    let machines = node.machines.clone();
    let power = move || {
        asked.send(machines.state("n1", vmid(100)).is_some()).unwrap();
        answer
    };
    let upid = node.ops.depart(&Actor::system(), HostPower::Shutdown, power).unwrap();
    let status = node.ended(&upid).await.0;
    (was.recv().await, status)
}

#[tokio::test]
async fn the_power_is_asked_for_when_nothing_runs() {
    let node = node().await;
    assert_eq!(down(&node, Ok(())).await, (Some(false), "OK".into()));
    assert!(!node.own(100).running);
    assert!(node.ops.departure.wish().borrow().is_some(), "nothing is to start here any more");
}

#[tokio::test]
async fn a_power_switch_that_fails_leaves_the_node_in_service() {
    let node = node().await;
    let (_, status) = down(&node, Err(OpsError::failed("no such switch"))).await;
    assert!(status.contains("no such switch"), "{status}");
    assert!(node.ops.departure.wish().borrow().is_none());
}

#[tokio::test]
async fn what_ha_is_asked_for_stays_as_it_is() {
    let node = node().await;
    let resources = "vm: 100\n\tstate started\n";
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, resources)).await;
    // As while HA is disarmed: its agent lets the node go, though the guest runs.
    assert_eq!(down(&node, Ok(())).await, (Some(false), "OK".into()));
    let (text, _) = node.ops.file(paths::HA_RESOURCES).unwrap();
    assert_eq!(text, resources);
}
