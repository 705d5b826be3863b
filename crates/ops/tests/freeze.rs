//! A guest that is left standing at its start.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_conf::Txn;
use stead_driver::guest::RunState;
use stead_model::paths;
use stead_ops::guest::Asked;
use stead_ops::guest::power::PowerAction;
use stead_ops_testing::{Node, root, vmid};

async fn frozen() -> Node {
    let node = Node::start().await;
    let options = [("freeze".to_owned(), "1".to_owned())].into();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    node
}

#[tokio::test]
async fn it_stands_until_somebody_continues_it() {
    let node = frozen().await;
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Paused));
    assert!(node.own(100).running, "its process is there");
    // It is not taken for a start that was cut short.
    node.ops.reconcile().await.unwrap();
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Paused));
    let upid = node.ops.power(&root(), vmid(100), PowerAction::Resume, Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
}

/// The fence process lets run what it guards when a lease comes back: nobody would have continued it.
#[tokio::test]
async fn under_ha_it_is_refused() {
    let node = frozen().await;
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, "vm: 100\n\tstate started\n")).await;
    let by_ha = Asked { by_ha: true, ..Asked::default() };
    let upid = node.ops.start(&root(), vmid(100), by_ha).await.unwrap();
    let (status, _) = node.ended(&upid).await;
    assert!(status.contains("freeze") && status.contains("HA"), "{status}");
    assert_eq!((node.machines.state("n1", vmid(100)), node.own(100).running), (None, false));
}
