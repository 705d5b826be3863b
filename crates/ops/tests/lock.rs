//! Locks whose task is dead, and what only the mutex of a guest prevents.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use stead_conf::Txn;
use stead_driver::guest::RunState;
use stead_model::{GuestKind, Ownership, paths};
use stead_ops::guest::Asked;
use stead_ops_testing::{Node, name, root, vmid};

const DEAD: &str = "UPID:n1:00000001:00000001:00000001:qmigrate:100:root@pam:";

/// A running guest that an earlier daemon has locked for a migration.
async fn locked() -> Node {
    let node = Node::start().await;
    let upid = node.ops.create_vm(&root(), vmid(100), &BTreeMap::new(), false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let own = node.own(100);
    let holder = format!(r#"{{"what":"migrate","task":"{DEAD}","epoch":{}}}"#, own.epoch.0);
    let txn = Txn::new("test")
        .put(paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)), "lock: migrate\n")
        .put("stead/lock/100", holder);
    node.commit(txn).await;
    node
}

fn is_locked(node: &Node) -> bool {
    node.ops.guest_at(vmid(100)).unwrap().config.value.contains("lock")
}

#[tokio::test]
async fn a_lock_whose_task_died_is_removed() {
    let node = locked().await;
    node.ops.reconcile().await.unwrap();
    assert!(!is_locked(&node));
    assert!(node.ops.conf.view(|t| t.get("stead/lock/100").is_none()));
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
}

#[tokio::test]
async fn the_guest_s_true_state_comes_first() {
    let node = locked().await;
    node.machines.set_state("n1", vmid(100), RunState::Unresponsive);
    node.ops.reconcile().await.unwrap();
    assert!(is_locked(&node), "nobody knows whether its migration goes on");
    // All was sent when the daemon died: it is taken back, which removes the lock, too.
    node.machines.set_state("n1", vmid(100), RunState::Postmigrate);
    node.ops.reconcile().await.unwrap();
    assert!(!is_locked(&node));
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
    assert!(node.ops.conf.view(|t| t.get("stead/lock/100").is_none()));
}

#[tokio::test]
async fn a_stopped_guest_is_unlocked_and_a_user_s_lock_stays() {
    let node = locked().await;
    node.machines.crash("n1", vmid(100));
    node.ops.reconcile().await.unwrap();
    assert!(!node.own(100).running);
    node.ops.reconcile().await.unwrap();
    assert!(!is_locked(&node));
    let by_hand =
        Txn::new("root@pam").put(paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)), "lock: backup\n");
    node.commit(by_hand).await;
    node.ops.reconcile().await.unwrap();
    assert!(is_locked(&node));
}

/// The word of an earlier source that comes late.
#[tokio::test]
async fn a_copy_that_was_handed_over_is_continued_once() {
    let node = locked().await;
    let epoch = node.own(100).epoch;
    node.machines.set_state("n1", vmid(100), RunState::Received);
    node.ops.continue_incoming(vmid(100), epoch).await.unwrap();
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
    node.ops.continue_incoming(vmid(100), epoch).await.unwrap();
    // Paused by its user, or sent on to another node.
    for state in [RunState::Paused, RunState::Postmigrate] {
        node.machines.set_state("n1", vmid(100), state);
        let refused = node.ops.continue_incoming(vmid(100), epoch).await.unwrap_err().to_string();
        assert!(refused.contains("only a copy that has never run here"), "{refused}");
        assert_eq!(node.machines.state("n1", vmid(100)), Some(state));
    }
}

#[tokio::test]
async fn a_copy_is_not_continued_while_its_mutex_is_held() {
    let node = locked().await;
    let own = node.own(100);
    let sends = node.ops.guest_locks.lock(vmid(100)).await.unwrap();
    node.machines.set_state("n1", vmid(100), RunState::Received);
    let late = tokio::spawn({
        let ops = node.ops.clone();
        async move { ops.continue_incoming(vmid(100), own.epoch).await }
    });
    let gone = Ownership { owner: name("n2"), epoch: own.epoch.next(), ..own };
    let txn = Txn::new("test").put(paths::ownership(vmid(100)), serde_json::to_vec(&gone).unwrap());
    node.commit(txn).await;
    drop(sends);
    let refused = late.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("was not handed over"), "{refused}");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Received));
}
