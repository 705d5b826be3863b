//! Devices of a running VM: in what order they come, go, and are written.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use stead_conf::Txn;
use stead_driver::guest::RunState;
use stead_model::vmconfig::VmConfig;
use stead_model::{GuestKind, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::config::ConfigChange;
use stead_ops_testing::{Node, name, root, vmid};

const BASE: &[(&str, &str)] = &[("net0", "virtio=02:00:00:00:00:01"), ("scsihw", "virtio-scsi-single")];

fn map(options: &[(&str, &str)]) -> BTreeMap<String, String> {
    options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

async fn running() -> Node {
    let node = Node::start().await;
    let upid = node.ops.create_vm(&root(), vmid(100), &map(BASE), false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    node
}

/// Sets and takes out, by a task; how it ended.
async fn change(node: &Node, set: &[(&str, &str)], delete: &[&str], force: bool) -> String {
    let delete = delete.iter().map(|key| (*key).to_owned()).collect();
    let change = ConfigChange { set: map(set), delete, force, ..ConfigChange::default() };
    let upid = node.ops.configure_task(&root(), vmid(100), change, Asked::default()).await.unwrap();
    node.ended(&upid).await.0
}

fn config(node: &Node) -> VmConfig {
    VmConfig::parse(&node.ops.guest_at(vmid(100)).unwrap().config.value).unwrap()
}

async fn has(node: &Node, key: &str) -> bool {
    node.ops.guests.is_plugged(vmid(100), key).await.unwrap()
}

async fn volumes(node: &Node) -> usize {
    node.ops.volumes(&"local".parse().unwrap(), None, Some(vmid(100))).await.unwrap().len()
}

#[tokio::test]
async fn devices_come_and_go_and_a_card_is_exchanged() {
    let node = running().await;
    assert_eq!(
        change(&node, &[("net1", "virtio=02:00:00:00:00:02"), ("scsi1", "local:1")], &[], false).await,
        "OK"
    );
    assert!(has(&node, "net1").await && has(&node, "scsi1").await);
    assert_eq!(change(&node, &[("net0", "e1000=02:00:00:00:00:01")], &[], false).await, "OK");
    let now = config(&node);
    assert!(now.pending.is_empty(), "{now}");
    assert_eq!(now.current.get("net0"), Some("e1000=02:00:00:00:00:01"));

    assert_eq!(change(&node, &[], &["net1", "scsi1"], false).await, "OK");
    assert!(!has(&node, "net1").await && !has(&node, "scsi1").await);
    let now = config(&node);
    assert!(now.pending.is_empty() && now.current.get("unused0").is_some(), "{now}");
    assert_eq!(volumes(&node).await, 1);

    // What the machine can't take waits, as does what nobody allows.
    assert_eq!(change(&node, &[("sata0", "none,media=cdrom"), ("hotplug", "disk")], &[], false).await, "OK");
    assert_eq!(change(&node, &[("net2", "virtio")], &["net0"], false).await, "OK");
    let now = config(&node);
    let waits: Vec<&str> = now.pending.set.iter().map(|(key, _)| key).collect();
    assert_eq!((waits, now.pending.delete.len()), (vec!["net2", "sata0"], 1), "{now}");
    assert!(!has(&node, "net2").await && has(&node, "net0").await);
}

#[tokio::test]
async fn a_guest_that_does_not_let_go_keeps_its_disk_and_the_volume() {
    let node = running().await;
    assert_eq!(change(&node, &[("scsi1", "local:1")], &[], false).await, "OK");
    node.machines.hold_devices("n1", vmid(100), true);
    assert_eq!(change(&node, &[], &["scsi1"], true).await, "OK", "it is pending, which is no failure");
    let waits = config(&node);
    assert_eq!(waits.pending.delete.get("scsi1"), Some(&true), "{waits}");
    assert!(waits.current.get("scsi1").is_some() && has(&node, "scsi1").await);
    node.ops.reconcile().await.unwrap();
    assert_eq!(volumes(&node).await, 1, "the guest still writes to it");
    assert_eq!(config(&node), waits);

    node.machines.hold_devices("n1", vmid(100), false);
    node.ops.reconcile().await.unwrap();
    let now = config(&node);
    assert!(now.pending.is_empty() && now.current.get("scsi1").is_none(), "{now}");
    assert_eq!((volumes(&node).await, now.current.get("unused0")), (0, None), "by force: with its volume");
}

#[tokio::test]
async fn what_the_machine_refuses_stays_pending_and_is_told() {
    let node = running().await;
    let ended = change(&node, &[("net1", "virtio=02:00:00:00:00:02,bridge=nowhere")], &[], false).await;
    assert!(ended.contains("net1: could not plug a device into") && ended.contains("pending"), "{ended}");
    let now = config(&node);
    assert!(now.pending.set.get("net1").is_some() && now.current.get("net1").is_none(), "{now}");
    node.machines.set_state("n1", vmid(100), RunState::Unresponsive);
    let ended = change(&node, &[("scsi1", "local:1")], &["net0"], false).await;
    assert!(ended.contains("scsi1") && config(&node).pending.set.get("scsi1").is_some(), "{ended}");
    assert_eq!(volumes(&node).await, 1, "kept for the next start");
}

/// A daemon that ends between the device and the record.
#[tokio::test]
async fn what_was_cut_short_is_written_by_the_next_round() {
    let node = running().await;
    let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
    let text = "net0: virtio=02:00:00:00:00:01\n\n[PENDING]\nnet1: virtio=02:00:00:00:00:02\nnet2: virtio\ndelete: net0\n";
    node.commit(Txn::new("test").put(path, text)).await;
    let guests = &node.ops.guests;
    guests.plug(vmid(100), "net1", "net1: virtio=02:00:00:00:00:02\n", None).await.unwrap();
    guests.unplug(vmid(100), "net0", text, std::time::Duration::ZERO).await.unwrap();
    node.ops.reconcile().await.unwrap();
    let now = config(&node);
    assert_eq!(now.to_string(), "net1: virtio=02:00:00:00:00:02\n\n[PENDING]\nnet2: virtio\n");
    assert!(!has(&node, "net2").await, "nobody is there to see it come");
}

#[tokio::test]
async fn as_many_cpus_are_written_as_are_there() {
    let node = running().await;
    let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
    node.commit(Txn::new("test").put(path, "cores: 4\nhotplug: cpu\nvcpus: 1\n")).await;
    assert_eq!(change(&node, &[("vcpus", "4")], &[], false).await, "OK");
    assert_eq!(config(&node).to_string(), "cores: 4\nhotplug: cpu\nvcpus: 4\n");
    node.machines.hold_devices("n1", vmid(100), true);
    assert_eq!(change(&node, &[("vcpus", "2")], &[], false).await, "OK");
    assert_eq!(config(&node).to_string(), "cores: 4\nhotplug: cpu\nvcpus: 4\n\n[PENDING]\nvcpus: 2\n");
    node.machines.hold_devices("n1", vmid(100), false);
    node.ops.reconcile().await.unwrap();
    assert_eq!(config(&node).to_string(), "cores: 4\nhotplug: cpu\nvcpus: 2\n");
}
