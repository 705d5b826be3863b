//! A host that goes down in order: what happens before the power is asked for.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::time::Duration;
use stead_conf::Txn;
use stead_driver::guest::RunState;
use stead_model::{GuestKind, Ownership, paths};
use stead_ops::admin::HostPower;
use stead_ops::departure::WITHOUT_LEASE;
use stead_ops::guest::Asked;
use stead_ops::{Actor, Lease, OpsError};
use stead_ops_testing::{Node, root, vmid};
use tokio::sync::mpsc;

/// A node with a running guest, and an agent that lets it go at once when it wishes to.
async fn node() -> Node {
    let node = running().await;
    let (ops, mut wish) = (node.ops.clone(), node.ops.departure.wish());
    tokio::spawn(async move {
        while wish.changed().await.is_ok() {
            let wished = wish.borrow_and_update().is_some();
            ops.departure.may_go(wished);
        }
    });
    node
}

/// A node with a running guest, and no agent.
async fn running() -> Node {
    let node = Node::start().await;
    let upid = node.ops.create_vm(&root(), vmid(100), &BTreeMap::new(), false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
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

#[tokio::test]
async fn a_host_that_goes_by_itself_only_comes_to_rest() {
    let node = node().await;
    let upid = node.ops.come_to_rest(&Actor::system(), HostPower::Reboot, WITHOUT_LEASE).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert!(node.machines.state("n1", vmid(100)).is_none() && !node.own(100).running);
    assert!(node.ops.departure.wish().borrow().is_some(), "nothing is to start here any more");
    // The power was asked for by `depart`, and the host's own way down asks again.
    let upid = node.ops.come_to_rest(&Actor::system(), HostPower::Shutdown, WITHOUT_LEASE).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}

#[tokio::test]
async fn a_departure_that_was_given_up_is_taken_up() {
    let node = running().await;
    let power = || Err(OpsError::failed("nobody asks for it"));
    let first = node.ops.depart(&Actor::system(), HostPower::Shutdown, power).unwrap();
    let mut wish = node.ops.departure.wish();
    wish.wait_for(Option::is_some).await.unwrap();
    let second = node.ops.come_to_rest(&Actor::system(), HostPower::Reboot, WITHOUT_LEASE).unwrap();
    while !node.log(&second).await.contains("going down already") {
        tokio::task::yield_now().await;
    }
    node.ops.tasks.stop(&first);
    assert!(node.ended(&first).await.0.contains("interrupted"));
    // The second one's wish, which only now an agent hears of.
    wish.wait_for(|w| *w == Some(stead_ha::Leave::Reboot)).await.unwrap();
    node.ops.departure.may_go(true);
    assert_eq!(node.ended(&second).await.0, "OK");
    assert!(wish.borrow().is_some() && !node.own(100).running);
}

#[tokio::test]
async fn a_host_that_goes_by_itself_does_not_wait_for_a_majority_for_ever() {
    // No agent lets it go.
    let node = running().await;
    node.lease.send_replace(Lease { held: false });
    let patience = Duration::from_millis(50);
    let upid = node.ops.come_to_rest(&Actor::system(), HostPower::Shutdown, patience).unwrap();
    let (status, log) = node.ended(&upid).await;
    assert_eq!(status, "WARNINGS: 1", "{log}");
    assert!(log.contains("not waiting for HA any longer") && !node.own(100).running, "{log}");
}

/// Its memory would be lost with the host.
#[tokio::test]
async fn who_is_fetched_from_is_waited_for() {
    let node = node().await;
    node.record_node("n2", 2, stead_ops_testing::uuid(2).as_str(), stead_ops_testing::member()).await;
    let own = node.own(100);
    let new = Ownership { owner: stead_ops_testing::name("n2"), epoch: own.epoch.next(), ..own };
    let mut txn = Txn::new("test").put(paths::ownership(vmid(100)), stead_ops::store::bytes(&new).unwrap());
    txn.ops.push(stead_conf::Op::Move {
        from: paths::guest(&node.ops.me.name, GuestKind::Qemu, vmid(100)),
        to: paths::guest(&new.owner, GuestKind::Qemu, vmid(100)),
    });
    node.commit(txn).await;
    node.machines.set_state("n1", vmid(100), RunState::Serving);
    let (asked, mut was) = mpsc::unbounded_channel();
    let power = move || {
        asked.send(()).unwrap();
        Ok(())
    };
    let upid = node.ops.depart(&Actor::system(), HostPower::Shutdown, power).unwrap();
    while !node.log(&upid).await.contains("all of the memory of VMs 100") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(was.try_recv().is_err(), "the power is off, and what was not fetched is lost");
    // All is fetched.
    node.machines.crash("n1", vmid(100));
    assert_eq!(node.ended(&upid).await.0, "OK");
    was.try_recv().unwrap();
}
