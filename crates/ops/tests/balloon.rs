//! Balloons of running VMs follow what their host has left.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_conf::Txn;
use stead_driver::guest::{Balloon, BalloonStats, RunState};
use stead_model::GuestKind;
use stead_model::paths;
use stead_ops::guest::Asked;
use stead_ops_testing::{Node, name, root, vmid};

const GIB: u64 = 1 << 30;
const TOLD: BalloonStats = BalloonStats {
    at: 7,
    total: Some(GIB),
    free: Some(GIB / 4),
    swapped_in: None,
    swapped_out: None,
    major_faults: None,
    minor_faults: None,
};

/// A node with VM 100, which runs with a balloon that has left it 1 GiB.
async fn running() -> Node {
    let node = Node::start().await;
    let options = [("memory", "2048"), ("balloon", "512")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    node.machines.set_balloon("n1", vmid(100), Some(Balloon { actual: GIB, stats: Some(TOLD) }));
    node
}

async fn left(node: &Node) -> u64 {
    node.ops.guests.state(vmid(100)).await.unwrap().balloon.unwrap().actual
}

#[tokio::test]
async fn a_balloon_follows_the_host_within_what_its_vm_was_given() {
    let node = running().await;
    let total = 100 * GIB;
    node.ops.balance_memory(total, 80 * GIB).await;
    assert_eq!(left(&node).await, GIB);
    node.ops.balance_memory(total, 20 * GIB).await;
    assert_eq!(left(&node).await, 2 * GIB, "all that it has");
    node.ops.balance_memory(total, 95 * GIB).await;
    assert_eq!(left(&node).await, GIB / 2, "its least");
}

#[tokio::test]
async fn a_balloon_that_is_not_to_follow_stays() {
    let node = running().await;
    let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
    for config in [
        "memory: 2048\n",
        "balloon: 0\nmemory: 2048\n",
        "balloon: 2048\nmemory: 2048\n",
        "balloon: 512\nmemory: 2048\nshares: 0\n",
        "balloon: 512\nlock: migrate\nmemory: 2048\n",
    ] {
        node.commit(Txn::new("test").put(path.clone(), config)).await;
        node.ops.balance_memory(100 * GIB, 10 * GIB).await;
        assert_eq!(left(&node).await, GIB, "{config}");
    }
    node.commit(Txn::new("test").put(path, "balloon: 512\nmemory: 2048\n")).await;
    node.machines.set_state("n1", vmid(100), RunState::Paused);
    node.ops.balance_memory(100 * GIB, 10 * GIB).await;
    assert_eq!(left(&node).await, GIB, "it is paused");
    node.machines.set_state("n1", vmid(100), RunState::Running);
    node.machines.set_balloon("n1", vmid(100), Some(Balloon { actual: GIB, stats: None }));
    node.ops.balance_memory(100 * GIB, 10 * GIB).await;
    assert_eq!(left(&node).await, GIB, "its system has no driver for it");
    node.machines.set_balloon("n1", vmid(100), Some(Balloon { actual: GIB, stats: Some(TOLD) }));
    let busy = node.ops.guest_locks.try_lock(vmid(100)).unwrap();
    node.ops.balance_memory(100 * GIB, 10 * GIB).await;
    assert_eq!(left(&node).await, GIB, "somebody is at it");
    let shortly = async {
        tokio::task::yield_now().await;
        drop(busy);
    };
    tokio::join!(node.ops.balance_memory(100 * GIB, 10 * GIB), shortly);
    assert_eq!(left(&node).await, 2 * GIB, "who was at it was done soon");
}

#[tokio::test]
async fn what_a_balloon_tells_is_shown() {
    let node = running().await;
    let shown = node.ops.vm_status(&root(), vmid(100)).await.unwrap();
    assert_eq!((shown.balloon, shown.freemem, shown.shares), (Some(GIB), Some(GIB / 4), Some(1000)));
    assert_eq!(shown.status.mem, GIB / 4 * 3, "by its system's word");
    let info = shown.ballooninfo.unwrap();
    assert_eq!((info.actual, info.max_mem, info.last_update), (GIB, 2 * GIB, Some(7)));
    node.machines.set_balloon("n1", vmid(100), None);
    let silent = node.ops.vm_status(&root(), vmid(100)).await.unwrap();
    assert_eq!((silent.balloon, &silent.ballooninfo), (None, &None));
    assert_eq!(Some(silent.status.mem), silent.status.memhost);
}
