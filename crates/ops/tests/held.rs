//! What becomes of guests that the fence process holds, when the lease is back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_conf::{Check, Txn, TxnError};
use stead_driver::fence::{Fence, Hold};
use stead_driver::guest::RunState;
use stead_model::{Epoch, GuestKind, Ownership, Vmid, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::power::PowerAction;
use stead_ops::store;
use stead_ops_testing::{Node, member, name, root, uuid, vmid};

/// A running guest that is armed, with that configuration.
async fn armed(config: &str) -> (Node, Epoch) {
    let node = Node::start().await;
    let upid = node.ops.create_vm(&root(), vmid(100), &Default::default(), false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, "vm: 100\n\tstate started\n")).await;
    let upid = node.ops.start(&root(), vmid(100), Asked { by_ha: true, ..Asked::default() }).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let own = node.own(100);
    assert!(own.armed && own.running, "{own:?}");
    let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
    node.commit(Txn::new("test").put(path, config.to_owned())).await;
    (node, own.epoch)
}

/// The lease ends, and comes back.
async fn lapse(node: &Node) -> Vec<(Vmid, Epoch, Hold)> {
    node.fence.end_lease();
    let nonce = node.fence.nonce().await.unwrap();
    node.fence.renew(nonce, 4000, 1000, 2000).await.unwrap();
    let held = node.fence.status().await.unwrap().guests;
    assert!(held.iter().all(|g| g.2 == Hold::Held) && held.len() == 1, "{held:?}");
    held
}

/// What a migration of the guest to `n2` proposes, built on what is there now.
fn proposal(node: &Node) -> Txn {
    let guest = node.ops.guest_at(vmid(100)).unwrap();
    let old = guest.own.value.clone();
    let new = Ownership { owner: name("n2"), epoch: old.epoch.next(), ..old };
    let mut txn = Txn::new("test");
    store::put_over(
        &mut txn,
        &paths::ownership(vmid(100)),
        Some(guest.own.revision),
        store::bytes(&new).unwrap(),
    );
    txn.checks.push(Check::Revision(guest.path(), guest.config.revision));
    txn
}

#[tokio::test]
async fn a_guest_whose_epoch_is_unchanged_goes_on() {
    let (node, epoch) = armed("memory: 512\n").await;
    let held = lapse(&node).await;
    let before = node.ops.conf.view(stead_conf::Tree::revision);
    node.ops.decide_held(&held).await;
    assert_eq!(node.fence.ran().last(), Some(&(vmid(100), epoch)));
    assert_eq!(node.ops.conf.view(stead_conf::Tree::revision), before, "nothing had to be written for it");
}

#[tokio::test]
async fn a_guest_in_a_migration_is_taken_back_before_it_goes_on() {
    let (node, epoch) = armed("memory: 512\nlock: migrate\n").await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    // All was sent, and the proposal to hand the guest over is on its way.
    let open = proposal(&node);
    let ran = node.fence.ran().len();
    let held = lapse(&node).await;
    node.ops.decide_held(&held).await;
    assert_eq!(node.fence.ran().len(), ran + 1, "it goes on here");
    let refused = node.ops.conf.transact(open).await;
    assert!(matches!(refused, Err(TxnError::Refused(_))), "the target could run as well: {refused:?}");
    assert_eq!((node.own(100).owner, node.own(100).epoch), (name("n1"), epoch));
}

#[tokio::test]
async fn a_guest_that_was_handed_over_meanwhile_is_destroyed() {
    let (node, epoch) = armed("memory: 512\nlock: migrate\n").await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    let handed = proposal(&node);
    let held = lapse(&node).await;
    let ran = node.fence.ran().len();
    let mut handed = handed;
    handed.ops.push(stead_conf::Op::Move {
        from: paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)),
        to: paths::guest(&name("n2"), GuestKind::Qemu, vmid(100)),
    });
    node.commit(handed).await;
    node.ops.decide_held(&held).await;
    assert_eq!(node.fence.ran().len(), ran, "never continued");
    assert_eq!(node.machines.state("n1", vmid(100)), None);
    assert_eq!(node.own(100).epoch, epoch.next());
}

/// Given to another cluster, or about to come from one: its process stands until its task has heard whose it is.
#[tokio::test]
async fn a_copy_that_is_not_recorded_as_running_is_its_task_s() {
    let (node, _) = armed("memory: 512\nlock: migrate\n").await;
    let held = lapse(&node).await;
    let ran = node.fence.ran().len();
    let own = Ownership { running: false, ..node.own(100) };
    node.commit(Txn::new("test").put(paths::ownership(vmid(100)), store::bytes(&own).unwrap())).await;
    let task = node.ops.guest_locks.lock(vmid(100)).await.unwrap();
    node.ops.decide_held(&held).await;
    assert!(node.machines.state("n1", vmid(100)).is_some(), "a definite no may still come");
    drop(task);
    node.ops.decide_held(&held).await;
    assert_eq!(node.machines.state("n1", vmid(100)), None);
    assert_eq!(node.fence.ran().len(), ran, "never continued");
    let text = node.ops.guest_at(vmid(100)).unwrap().config.value;
    assert!(text.contains("lock: migrate"), "{text}");
}

/// Whoever has unlocked it may have started another.
#[tokio::test]
async fn a_process_that_is_not_recorded_as_running_is_not_resumed() {
    let (node, _) = armed("memory: 512\n").await;
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, "")).await;
    node.machines.set_state("n1", vmid(100), RunState::Paused);
    let own = Ownership { running: false, armed: false, ..node.own(100) };
    node.commit(Txn::new("test").put(paths::ownership(vmid(100)), store::bytes(&own).unwrap())).await;
    let ended = match node.ops.power(&root(), vmid(100), PowerAction::Resume, Asked::default()).await {
        Ok(upid) => node.ended(&upid).await.0,
        Err(e) => e.to_string(),
    };
    assert!(ended.contains("recorded as not running"), "{ended}");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Paused));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_destroys_nothing() {
    let (node, _) = armed("memory: 512\n").await;
    let held = lapse(&node).await;
    let text = br#"{"kind":"something newer"}"#.to_vec();
    node.commit(Txn::new("test").put(paths::ownership(vmid(100)), text)).await;
    let ran = node.fence.ran().len();
    node.ops.decide_held(&held).await;
    assert!(node.ops.destroy_old_copies().await.is_err());
    let _ = node.ops.reconcile().await;
    assert_eq!(node.fence.ran().len(), ran, "and continues nothing");
    assert!(node.machines.state("n1", vmid(100)).is_some(), "nor kills what it knows nothing of");
}

/// As a leader recovers it that holds n1 for lost.
async fn recovered(node: &Node) {
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    let own = node.own(100);
    let (owner, epoch) = (name("n2"), own.epoch.next());
    let own = Ownership { owner, epoch, armed: false, running: false, ..own };
    let mut txn = Txn::new("test").put(paths::ownership(vmid(100)), store::bytes(&own).unwrap());
    txn.ops.push(stead_conf::Op::Move {
        from: paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)),
        to: paths::guest(&name("n2"), GuestKind::Qemu, vmid(100)),
    });
    node.commit(txn).await;
}

#[tokio::test]
async fn an_entry_is_refused_where_a_guest_whose_copy_it_keeps_was_recovered_meanwhile() {
    let (node, epoch) = armed("memory: 512\n").await;
    let kept = node.ops.destroy_old_copies().await.unwrap();
    assert_eq!(kept.len(), 1);
    recovered(&node).await;
    let mut entry = Txn::new("n1").put("stead/entry", "n1 enters");
    entry.checks = kept;
    let refused = node.ops.conf.transact(entry).await;
    assert!(matches!(refused, Err(TxnError::Refused(_))), "{refused:?}");
    // The next one knows better.
    assert!(node.ops.destroy_old_copies().await.unwrap().is_empty());
    assert_eq!(node.machines.state("n1", vmid(100)), None);
    assert!(node.fence.run(vmid(100), epoch).await.is_err(), "a start under way may still ask for it");
}

#[tokio::test]
async fn a_start_commits_that_it_may_run_although_the_record_says_so_already() {
    let (node, epoch) = armed("memory: 512\n").await;
    let read = node.ops.guest_at(vmid(100)).unwrap();
    let before = read.own.revision;
    node.ops.mark(&read, true, true).await.unwrap();
    let read = node.ops.guest_at(vmid(100)).unwrap();
    assert_eq!((read.own.value.epoch, read.own.revision > before), (epoch, true));
    // Between its reading and its commit the guest was recovered.
    recovered(&node).await;
    assert!(node.ops.mark(&read, true, true).await.is_err());
}

/// The fence process takes a limit of CPUs off, and whoever is about to stop the guest does.
#[tokio::test]
async fn a_limit_of_cpus_is_set_again_under_a_lease() {
    let (node, _) = armed("cpulimit: 1\nmemory: 512\n").await;
    node.machines.set_state("n1", vmid(100), RunState::Running);
    let told = || node.machines.config("n1", vmid(100)).unwrap().contains("cpulimit: 1");
    node.lease.send_modify(|lease| lease.held = false);
    node.ops.reconcile().await.unwrap();
    assert!(!told(), "what makes the guest safe must not wait for it");
    node.lease.send_modify(|lease| lease.held = true);
    node.ops.reconcile().await.unwrap();
    assert!(told());
}
