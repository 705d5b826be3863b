//! Removing VMs whose volumes are gone, or out of reach.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_driver::storage::StorageDriver;
use stead_ops::guest::Asked;
use stead_ops::guest::destroy::DestroyOptions;
use stead_ops_testing::{Node, root, vmid};

async fn destroy(node: &Node) -> (String, String) {
    let upid =
        node.ops.destroy(&root(), vmid(100), DestroyOptions::default(), Asked::default()).await.unwrap();
    node.ended(&upid).await
}

#[tokio::test]
async fn a_volume_that_is_gone_is_no_error_and_one_out_of_reach_is() {
    let node = Node::start().await;
    let options = [("scsi0".to_owned(), "shared:1".to_owned())].into();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let storage = node.storage("shared");
    // Words that look like those of a volume that is gone.
    storage.set_away(Some("the export does not exist"));
    let (status, log) = destroy(&node).await;
    assert!(status.contains("could not remove volume"), "{log}");
    assert!(node.ops.guest_at(vmid(100)).is_ok(), "its configuration still names what is left");
    storage.set_away(None);
    let volume = storage.list(None, Some(vmid(100))).await.unwrap()[0].volid.name.clone();
    storage.free(&volume).await.unwrap();
    let (status, log) = destroy(&node).await;
    assert_eq!(status, "OK", "{log}");
    assert!(log.contains("is gone already"), "{log}");
    assert!(node.ops.guest_at(vmid(100)).is_err());
}
