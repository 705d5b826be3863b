//! Where things are: a guest on its node, a storage that is used.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_ops_testing::{Node, member, name, root, uuid, vmid};

#[tokio::test]
async fn who_changes_a_guest_names_the_node_that_it_is_on() {
    let node = Node::start().await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.record_guest(206, "n2", |_| {}, "name: theirs\n").await;
    assert_eq!(node.ops.guest_of("n2", vmid(206)).await.unwrap(), name("n2"));
    for wrong in ["n1", "nowhere"] {
        let e = node.ops.guest_of(wrong, vmid(206)).await.unwrap_err().to_string();
        assert!(e.starts_with(&format!("VM 206 does not exist on node '{wrong}'")), "{e}");
        assert!(!e.contains("n2"), "who may not see the guest is not told where it is: {e}");
    }
    assert!(node.ops.guest_of("n1", vmid(207)).await.unwrap_err().to_string().contains("does not exist"));
}

#[tokio::test]
async fn a_storage_that_guests_use_is_not_removed() {
    let node = Node::start().await;
    node.record_guest(100, "n1", |_| {}, "scsi0: local:100/vm-100-disk-0.raw\n").await;
    node.record_guest(101, "n1", |_| {}, "name: x\n[PENDING]\nide2: local:iso/a.iso,media=cdrom\n").await;
    let local = "local".parse().unwrap();
    let e = node.ops.remove_storage(&root(), &local).await.unwrap_err().to_string();
    assert!(e.starts_with("storage 'local' is used by VM 100, 101:"), "{e}");
    assert!(node.ops.storage(&local).is_ok());
    node.ops.remove_storage(&root(), &"shared".parse().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_terminal_is_on_a_serial_port_that_the_vm_has() {
    let node = Node::start().await;
    node.record_guest(100, "n1", |_| {}, "serial1: socket\n").await;
    let serial = |named| node.ops.serial(vmid(100), named).map_err(|e| e.to_string());
    assert_eq!(serial(None).unwrap(), "serial1");
    assert_eq!(serial(Some("serial1")).unwrap(), "serial1");
    assert_eq!(serial(Some("serial3")).unwrap_err(), "serial: VM 100 has no serial3");
}
