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

/// Why a change is refused before it begins.
async fn change_error(node: &Node, set: &[(&str, &str)]) -> String {
    let change = ConfigChange { set: map(set), ..ConfigChange::default() };
    let refused = node.ops.configure_task(&root(), vmid(100), change, Asked::default()).await;
    refused.err().map_or_else(String::new, |e| e.to_string())
}

fn config(node: &Node) -> VmConfig {
    VmConfig::parse(&node.ops.guest_at(vmid(100)).unwrap().config.value).unwrap()
}

async fn has(node: &Node, key: &str) -> bool {
    node.ops.guests.inventory(vmid(100)).await.unwrap().devices.contains(key)
}

async fn volumes(node: &Node) -> usize {
    node.ops.volumes(&"local".parse().unwrap(), None, Some(vmid(100))).await.unwrap().len()
}

#[tokio::test]
async fn devices_come_and_go_and_a_card_is_exchanged() {
    let node = running().await;
    assert_eq!(
        change(&node, &[("net1", "virtio=02:00:00:00:00:02"), ("virtio1", "local:1")], &[], false).await,
        "OK"
    );
    assert!(has(&node, "net1").await && has(&node, "virtio1").await);
    assert_eq!(change(&node, &[("net0", "e1000=02:00:00:00:00:01")], &[], false).await, "OK");
    let now = config(&node);
    assert!(now.pending.is_empty(), "{now}");
    assert_eq!(now.current.get("net0"), Some("e1000=02:00:00:00:00:01"));

    assert_eq!(change(&node, &[], &["net1", "virtio1"], false).await, "OK");
    assert!(!has(&node, "net1").await && !has(&node, "virtio1").await);
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
    assert_eq!(change(&node, &[("virtio1", "local:1")], &[], false).await, "OK");
    node.machines.hold_devices("n1", vmid(100), true);
    assert_eq!(change(&node, &[], &["virtio1"], true).await, "OK", "it is pending, which is no failure");
    let waits = config(&node);
    assert_eq!(waits.pending.delete.get("virtio1"), Some(&true), "{waits}");
    assert!(waits.current.get("virtio1").is_some() && has(&node, "virtio1").await);
    node.ops.reconcile().await.unwrap();
    assert_eq!(volumes(&node).await, 1, "the guest still writes to it");
    assert_eq!(config(&node), waits);

    node.machines.hold_devices("n1", vmid(100), false);
    node.ops.reconcile().await.unwrap();
    let now = config(&node);
    assert!(now.pending.is_empty() && now.current.get("virtio1").is_none(), "{now}");
    assert_eq!((volumes(&node).await, now.current.get("unused0")), (0, None), "by force: with its volume");
}

#[tokio::test]
async fn what_the_machine_refuses_stays_pending_and_is_told() {
    let node = running().await;
    let ended = change(&node, &[("net1", "virtio=02:00:00:00:00:02,bridge=nowhere")], &[], false).await;
    assert!(ended.contains("net1: could not plug a device into") && ended.contains("pending"), "{ended}");
    let now = config(&node);
    assert!(now.pending.set.get("net1").is_some() && now.current.get("net1").is_none(), "{now}");
    // One that can't be looked into is not changed where its machine may be another than is written.
    node.machines.set_state("n1", vmid(100), RunState::Unresponsive);
    let ended = change(&node, &[("virtio1", "local:1")], &["net0"], false).await;
    assert!(ended.contains("could not look into") && volumes(&node).await == 0, "{ended}");
    assert_eq!(config(&node), now);
}

/// Nobody can take back what a guest was asked for.
#[tokio::test]
async fn what_a_guest_was_asked_for_is_nobody_s_to_change() {
    let node = running().await;
    node.machines.hold_devices("n1", vmid(100), true);
    assert_eq!(change(&node, &[], &["net0"], false).await, "OK");
    let taken_back = ConfigChange { revert: vec!["net0".into()], ..ConfigChange::default() };
    let refused = node.ops.configure(&root(), vmid(100), taken_back.clone(), Asked::default()).await;
    assert!(refused.unwrap_err().to_string().starts_with("net0: the guest has been asked"), "revert");
    let set = change(&node, &[("net0", "virtio=02:00:00:00:00:01,link_down=1")], &[], false).await;
    assert!(set.contains("asked to let go"), "{set}");
    assert_eq!(change(&node, &[], &["net0"], false).await, "OK", "asked once more");
    assert_eq!(change(&node, &[("name", "other")], &[], false).await, "OK", "all else is free");
    node.machines.hold_devices("n1", vmid(100), false);
    node.ops.device_gone(vmid(100)).await.unwrap();
    assert_eq!(config(&node).current.get("net0"), None);
    // What goes without having been asked for is there again from the next start on.
    assert_eq!(change(&node, &[("net0", "virtio=02:00:00:00:00:01")], &[], false).await, "OK");
    node.ops.guests.unplug(vmid(100), "net0", "", std::time::Duration::ZERO).await.unwrap();
    node.ops.device_gone(vmid(100)).await.unwrap();
    let now = config(&node);
    assert!(now.current.get("net0").is_none() && now.pending.set.get("net0").is_some(), "{now}");
}

/// A change whose device is there, and which could not be written, is written before another one takes its place.
#[tokio::test]
async fn a_disk_that_is_there_is_not_taken_for_another() {
    let node = running().await;
    let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
    let text = "boot: order=virtio1;net0\nnet0: virtio=02:00:00:00:00:01\n\n[PENDING]\nvirtio1: local:100/vm-100-disk-7.raw\n";
    node.commit(Txn::new("test").put(path, text)).await;
    node.ops.guests.plug(vmid(100), "virtio1", "virtio1: local:100/vm-100-disk-7.raw\n", None).await.unwrap();
    assert_eq!(change(&node, &[("virtio1", "local:1")], &[], false).await, "OK");
    let now = config(&node);
    assert_eq!(now.current.get("virtio1"), Some("local:100/vm-100-disk-7.raw"), "{now}");
    assert!(now.pending.set.get("virtio1").is_some(), "the other waits for the next start: {now}");
    // A device that the order of boot names can go, and everything can be changed all the same.
    assert_eq!(change(&node, &[], &["net0"], false).await, "OK");
    assert_eq!(change(&node, &[("description", "without it")], &[], false).await, "OK");
    let missing = change_error(&node, &[("boot", "order=net7")]).await;
    assert!(missing.contains("device 'net7' does not exist"), "{missing}");
}

#[tokio::test]
async fn a_card_is_not_given_up_for_one_that_cannot_come() {
    let node = running().await;
    node.machines.refuse_launches("n1", Some("net0: bridge 'vmbr9' does not exist"));
    let ended = change(&node, &[("net0", "e1000=02:00:00:00:00:01,bridge=vmbr9")], &[], false).await;
    assert!(ended.contains("bridge 'vmbr9' does not exist"), "{ended}");
    assert!(has(&node, "net0").await && config(&node).current.get("net0").is_some());
}

#[tokio::test]
async fn a_protected_vm_keeps_a_volume_that_was_to_be_removed_before() {
    let node = running().await;
    assert_eq!(change(&node, &[("virtio1", "local:1")], &[], false).await, "OK");
    node.machines.hold_devices("n1", vmid(100), true);
    assert_eq!(change(&node, &[], &["virtio1"], true).await, "OK");
    assert_eq!(change(&node, &[("protection", "1")], &[], false).await, "OK");
    node.machines.hold_devices("n1", vmid(100), false);
    node.ops.device_gone(vmid(100)).await.unwrap();
    assert!(config(&node).current.get("unused0").is_some());
    assert_eq!(volumes(&node).await, 1);
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
    node.ops.device_gone(vmid(100)).await.unwrap();
    assert_eq!(config(&node).to_string(), "cores: 4\nhotplug: cpu\nvcpus: 2\n");
}

#[tokio::test]
async fn as_much_memory_is_written_as_is_there() {
    let node = running().await;
    let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
    let machine = "hotplug: memory\nmemory: 1024\nnuma: 1\n";
    node.commit(Txn::new("test").put(path.clone(), machine)).await;
    let with = |memory: &str| machine.replace("1024", memory);
    assert_eq!(change(&node, &[("memory", "2048")], &[], false).await, "OK");
    assert_eq!(config(&node).to_string(), with("2048"));
    node.machines.hold_devices("n1", vmid(100), true);
    assert_eq!(change(&node, &[("memory", "1536")], &[], false).await, "OK");
    assert_eq!(config(&node).to_string(), format!("{}\n[PENDING]\nmemory: 1536\n", with("2048")));
    let refused = change(&node, &[("memory", "1024")], &[], false).await;
    assert!(refused.contains("has been asked to let go of it"), "{refused}");
    node.machines.hold_devices("n1", vmid(100), false);
    node.ops.device_gone(vmid(100)).await.unwrap();
    assert_eq!(config(&node).to_string(), with("1536"));

    // What came while nobody was there to write it.
    node.ops.guests.set_modules(vmid(100), &with("2560"), std::time::Duration::ZERO).await.unwrap();
    node.commit(Txn::new("test").put(path, format!("{}\n[PENDING]\nmemory: 2560\n", with("1536")))).await;
    node.ops.reconcile().await.unwrap();
    assert_eq!(config(&node).to_string(), with("2560"));

    // Places for modules are part of the machine, and need a size that is made of them.
    let refused = change_error(&node, &[("memory", "2000")]).await;
    assert!(refused.contains("memory") && refused.contains("1536 and 2048"), "{refused}");
    assert_eq!(change(&node, &[("hotplug", "disk")], &[], false).await, "OK");
    assert_eq!(config(&node).to_string(), format!("{}\n[PENDING]\nhotplug: disk\n", with("2560")));
    assert_eq!(change(&node, &[("hotplug", "memory,disk")], &[], false).await, "OK");
    assert!(config(&node).pending.is_empty(), "it makes no other machine");
}
