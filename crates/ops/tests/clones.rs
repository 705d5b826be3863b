//! Templates and clones: what becomes of both VMs, and what of either when it fails, or is cut off, half-way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_conf::Txn;
use stead_driver::storage::{StorageDriver, StorageError};
use stead_model::vmconfig::VmConfig;
use stead_model::{Epoch, GuestKind, paths};
use stead_ops::OpsError;
use stead_ops::guest::Asked;
use stead_ops::guest::clone::CloneOptions;
use stead_ops::guest::config::ConfigChange;
use stead_ops::guest::destroy::DestroyOptions;
use stead_ops::guest::template::Feature;
use stead_ops_testing::{Node, name, root, vmid};

const VM: [(&str, &str); 7] = [
    ("scsi0", "shared:1,format=qcow2,cache=writeback"),
    ("scsi1", "local:2"),
    ("ide2", "none,media=cdrom"),
    ("ide3", "shared:cloudinit"),
    ("net0", "virtio"),
    ("vmgenid", "1"),
    ("name", "web"),
];

async fn made(options: &[(&str, &str)]) -> Node {
    let node = Node::start().await;
    make(&node, options).await;
    node
}

async fn make(node: &Node, options: &[(&str, &str)]) {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}

fn to(newid: u32) -> CloneOptions {
    CloneOptions {
        newid: vmid(newid),
        name: None,
        description: None,
        storage: None,
        format: None,
        full: None,
        snapshot: None,
        target: None,
        bwlimit: None,
    }
}

async fn clone(node: &Node, options: CloneOptions) -> (String, String) {
    let upid = node.ops.clone_vm(&root(), vmid(100), options).await.unwrap();
    node.ended(&upid).await
}

async fn refused(node: &Node, options: CloneOptions) -> String {
    node.ops.clone_vm(&root(), vmid(100), options).await.unwrap_err().to_string()
}

async fn template(node: &Node) -> (String, String) {
    let upid = node.ops.make_template(&root(), vmid(100), None).await.unwrap();
    node.ended(&upid).await
}

fn config(node: &Node, n: u32) -> VmConfig {
    VmConfig::parse(&node.ops.guest_at(vmid(n)).unwrap().config.value).unwrap()
}

async fn names(node: &Node, storage: &str) -> Vec<String> {
    let all = node.storage(storage).list(None, None).await.unwrap();
    all.into_iter().map(|v| v.volid.name).collect()
}

/// Nothing of a clone is there, and its source is as it was.
async fn nothing_is_left(node: &Node, n: u32) {
    assert!(node.ops.guest_at(vmid(n)).is_err());
    for storage in ["shared", "local"] {
        let all = names(node, storage).await;
        assert!(!all.iter().any(|name| name.contains(&format!("-{n}-"))), "{all:?}");
    }
    let held = node.ops.conf.view(|t| t.list("stead/lock/").count());
    assert_eq!((config(node, 100).current.lock(), held), (None, 0));
}

#[tokio::test]
async fn a_full_clone_has_disks_of_its_own_and_is_another_vm() {
    let node = made(&VM).await;
    let options = CloneOptions { bwlimit: Some(100_000), ..to(101) };
    let (status, log) = clone(&node, options).await;
    assert_eq!(status, "OK", "{log}");
    assert!(
        log.contains("scsi1: copying 'local:100/vm-100-disk-0.raw' to 'local:101/vm-101-disk-0.raw'"),
        "{log}"
    );
    assert!(log.contains("copied 50 % of 1G"), "{log}");
    let (old, new) = (config(&node, 100), config(&node, 101));
    assert_eq!((old.current.lock(), new.current.lock()), (None, None));
    assert_eq!(new.current.get("name"), Some("Copy-of-web"));
    let scsi0 = "shared:101/vm-101-disk-0.qcow2,cache=writeback,size=1G";
    assert_eq!(new.current.get("scsi0"), Some(scsi0));
    assert_eq!(new.current.get("scsi1"), Some("local:101/vm-101-disk-0.raw,size=2G"));
    assert!(new.current.get("ide3").unwrap().starts_with("shared:101/vm-101-cloudinit.raw"));
    assert_eq!(new.current.get("ide2"), old.current.get("ide2"));
    for key in ["net0", "vmgenid"] {
        assert!(new.current.get(key).is_some() && new.current.get(key) != old.current.get(key), "{key}");
    }
    assert!(!node.own(101).running);
    let started = node.ops.start(&root(), vmid(101), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&started).await.0, "OK");
}

#[tokio::test]
async fn a_clone_lies_where_it_is_wanted_and_is_called_as_wanted() {
    let node = made(&VM[..3]).await;
    let options = CloneOptions {
        storage: Some("local".parse().unwrap()),
        format: Some("qcow2".into()),
        name: Some("db".into()),
        description: Some("mine".into()),
        ..to(101)
    };
    assert_eq!(clone(&node, options).await.0, "OK");
    let new = config(&node, 101).current;
    assert_eq!((new.get("name"), new.description()), (Some("db"), Some("mine")));
    assert_eq!(names(&node, "local").await.len(), 3);
    assert_eq!(new.get("scsi1"), Some("local:101/vm-101-disk-1.qcow2,size=2G"));
    let taken = refused(&node, to(101)).await;
    assert!(taken.contains("config file already exists"), "{taken}");
    let linked = refused(&node, CloneOptions { full: Some(false), ..to(102) }).await;
    assert!(linked.contains("disk 'scsi0'") && linked.contains("full=1"), "{linked}");
    let bad = refused(&node, CloneOptions { name: Some("a b".into()), ..to(102) }).await;
    assert!(bad.starts_with("name: "), "{bad}");
}

#[tokio::test]
async fn of_a_snapshot() {
    let node = made(&[("scsi0", "shared:1,format=qcow2"), ("memory", "512")]).await;
    let upid = node.ops.take_snapshot(&root(), vmid(100), "one", "", false).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let set = [("memory".to_owned(), "1024".to_owned())].into();
    let change = ConfigChange { set, ..ConfigChange::default() };
    node.ops.configure(&root(), vmid(100), change, Asked::default()).await.unwrap();
    let one = CloneOptions { snapshot: Some("one".into()), ..to(101) };
    assert_eq!(clone(&node, one).await.0, "OK");
    let new = config(&node, 101);
    assert_eq!((new.current.get("memory"), new.snapshots.len()), (Some("512"), 0));
    assert_eq!((new.current.parent(), new.current.get("snaptime")), (None, None));
    let gone = refused(&node, CloneOptions { snapshot: Some("two".into()), ..to(102) }).await;
    assert_eq!(gone, "snapname: snapshot 'two' does not exist");
}

#[tokio::test]
async fn a_template_has_linked_clones_and_stays_as_it_is() {
    let node = made(&VM).await;
    let (status, log) = template(&node).await;
    assert_eq!(status, "OK", "{log}");
    let t = config(&node, 100);
    assert!(t.current.template());
    assert_eq!(t.current.get("scsi1"), Some("local:100/base-100-disk-0.raw,size=2G"));
    assert!(
        !names(&node, "local").await.contains(&"100/vm-100-disk-0.raw".to_owned()),
        "the old name is gone"
    );
    let start = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap_err().to_string();
    assert!(start.contains("it is a template"), "{start}");
    let change = ConfigChange { delete: vec!["scsi0".into()], ..ConfigChange::default() };
    let changed = node.ops.configure(&root(), vmid(100), change, Asked::default()).await;
    assert!(changed.unwrap_err().to_string().contains("it is a template"));
    // Many at once.
    let (a, b) = tokio::join!(clone(&node, to(101)), clone(&node, to(102)));
    assert_eq!((a.0.as_str(), b.0.as_str()), ("OK", "OK"), "{a:?} {b:?}");
    let new = config(&node, 101);
    assert!(!new.current.template());
    assert_eq!(
        new.current.get("scsi1"),
        Some("local:100/base-100-disk-0.raw/101/vm-101-disk-0.qcow2,size=2G")
    );
    // Of its two disks one alone has clones any more: nothing of it goes.
    for n in [101, 102] {
        let volume = format!("100/base-100-disk-0.raw/{n}/vm-{n}-disk-0.qcow2");
        node.storage("local").free(&volume).await.unwrap();
    }
    let options = DestroyOptions::default();
    let upid = node.ops.destroy(&root(), vmid(100), options, Asked::default()).await.unwrap();
    let (status, _) = node.ended(&upid).await;
    assert!(status.contains("linked clones"), "{status}");
    assert!(names(&node, "local").await.contains(&"100/base-100-disk-0.raw".to_owned()));
    for n in [101, 102, 100] {
        let upid = node.ops.destroy(&root(), vmid(n), options, Asked::default()).await.unwrap();
        assert_eq!(node.ended(&upid).await.0, "OK", "{n}");
    }
    assert_eq!((names(&node, "local").await.len(), names(&node, "shared").await.len()), (0, 0));
}

#[tokio::test]
async fn what_can_be_done_with_disks_is_told() {
    let node = made(&VM[..3]).await;
    let has = async |feature| node.ops.has_feature(vmid(100), feature, None).await.unwrap().0;
    assert_eq!((has(Feature::Clone).await, has(Feature::Copy).await), (false, true));
    assert_eq!(template(&node).await.0, "OK");
    assert_eq!((has(Feature::Clone).await, has(Feature::Copy).await), (true, true));
    assert!(!has(Feature::Snapshot).await);
    // Elsewhere it is a copy.
    let elsewhere = CloneOptions { storage: Some("local".parse().unwrap()), ..to(101) };
    assert_eq!(clone(&node, elsewhere).await.0, "OK");
    assert_eq!(config(&node, 101).current.get("scsi1"), Some("local:101/vm-101-disk-1.raw,size=2G"));
    let linked = CloneOptions { storage: Some("local".parse().unwrap()), full: Some(false), ..to(102) };
    assert!(refused(&node, linked).await.starts_with("storage: a linked clone lies where its base does"));
}

#[tokio::test]
async fn what_runs_or_has_snapshots_is_no_template() {
    let node = made(&[("scsi0", "shared:1,format=qcow2")]).await;
    let refused = async || node.ops.make_template(&root(), vmid(100), None).await.unwrap_err().to_string();
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert!(refused().await.contains("running"));
    node.ops.guests.kill(vmid(100)).await.unwrap();
    let upid = node.ops.take_snapshot(&root(), vmid(100), "one", "", false).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert!(refused().await.contains("snapshots"));
}

#[tokio::test]
async fn a_template_that_fails_half_way_is_the_vm_that_it_was() {
    let node = made(&VM[..2]).await;
    let before = config(&node, 100);
    node.storage("local").set_failing(Some(("make_base", 0)));
    let (status, _) = template(&node).await;
    assert!(
        status.contains("could not make a template of VM 100") && status.contains("worn out"),
        "{status}"
    );
    assert_eq!(config(&node, 100), before);
    assert_eq!(names(&node, "shared").await, ["100/vm-100-disk-0.qcow2"]);
    node.storage("local").set_failing(None);
    // Cut off before the configuration said so.
    node.storage("shared").make_base("100/vm-100-disk-0.qcow2").await.unwrap();
    assert_eq!(template(&node).await.0, "OK");
    assert_eq!(names(&node, "shared").await, ["100/base-100-disk-0.qcow2"]);
}

#[tokio::test]
async fn a_clone_that_fails_half_way_leaves_nothing() {
    let node = made(&VM).await;
    for (storage, works) in [("shared", 0), ("local", 0)] {
        node.storage(storage).set_failing(Some(("copy", works)));
        let (status, log) = clone(&node, to(101)).await;
        assert!(status.contains("could not clone VM 100") && status.contains("worn out"), "{status}: {log}");
        nothing_is_left(&node, 101).await;
        node.storage(storage).set_failing(None);
    }
    assert_eq!(clone(&node, to(101)).await.0, "OK");
}

#[tokio::test]
async fn a_clone_that_is_stopped_leaves_nothing_and_its_source_is_locked_until_then() {
    let node = made(&VM).await;
    let gate = node.storage("local").set_gate("copy");
    let upid = node.ops.clone_vm(&root(), vmid(100), to(101)).await.unwrap();
    gate.reached().await;
    assert_eq!(config(&node, 100).current.lock(), Some("clone"));
    assert_eq!(config(&node, 101).current.lock(), Some("create"));
    let named = config(&node, 101).all_volumes();
    assert_eq!(named.len(), 3, "{named:?}");
    let start = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap_err().to_string();
    assert_eq!(start, "VM is locked (clone)");
    assert!(node.ops.reconcile().await.unwrap());
    assert_eq!(config(&node, 100).current.lock(), Some("clone"), "its task lives");
    assert!(node.ops.tasks.stop(&upid));
    assert!(node.ended(&upid).await.0.contains("interrupted"));
    nothing_is_left(&node, 101).await;
}

#[tokio::test]
async fn what_a_dead_task_has_left_is_removed() {
    let node = made(&VM).await;
    // Its task is one of an earlier daemon.
    let dead = "UPID:n1:00000001:00000001:00000001:qmclone:100:root@pam:";
    node.record_guest(
        101,
        "n1",
        |_| {},
        "ide2: shared:100/vm-100-disk-0.qcow2,media=cdrom\nlock: create\nscsi0: shared:101/vm-101-disk-0.raw\n\
         scsi1: local:101/vm-101-disk-0.raw\n",
    )
    .await;
    let new = |n| stead_driver::storage::NewVolume { vmid: vmid(n), name: None, format: None, size: 1 << 20 };
    node.storage("shared").alloc(&new(101)).await.unwrap();
    // Another one, of which it knows nothing, is not its own to remove.
    let other = node.storage("shared").alloc(&new(101)).await.unwrap();
    let holder = |what: &str, epoch| format!(r#"{{"what":"{what}","task":"{dead}","epoch":{epoch}}}"#);
    let source = node.ops.guest_at(vmid(100)).unwrap();
    let mut locked = config(&node, 100);
    locked.current.set("lock", "clone").unwrap();
    let Epoch(epoch) = source.own.value.epoch;
    let txn = Txn::new("test")
        .put("stead/lock/101", holder("create", 7))
        .put("stead/lock/100", holder("clone", epoch))
        .put(paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)), locked.to_string());
    node.commit(txn).await;
    node.storage("shared").set_away(Some("its server is away"));
    assert!(node.ops.reconcile().await.unwrap());
    assert_eq!(config(&node, 101).current.lock(), Some("create"), "tried again");
    node.storage("shared").set_away(None);
    assert!(node.ops.reconcile().await.unwrap());
    assert!(node.ops.guest_at(vmid(101)).is_err());
    assert_eq!(config(&node, 100).current.lock(), None);
    assert!(node.storage("shared").info(&other.volid.name).await.is_ok());
    let gone = node.storage("shared").info("101/vm-101-disk-0.raw").await;
    assert!(matches!(gone, Err(StorageError::NoVolume(_))));
    assert!(node.storage("shared").info("100/vm-100-disk-0.qcow2").await.is_ok(), "another VM's");
}

#[tokio::test]
async fn another_node_gets_what_it_sees() {
    let node = Node::of_three().await;
    make(&node, &VM[..1]).await;
    let there = CloneOptions { target: Some(name("n3")), ..to(101) };
    assert_eq!(clone(&node, there).await.0, "OK");
    let own = node.own(101);
    assert_eq!((own.owner, own.running), (name("n3"), false));
    assert_eq!(config(&node, 101).current.lock(), None);
    let local = CloneOptions { target: Some(name("n3")), storage: Some("local".parse().unwrap()), ..to(102) };
    let why = refused(&node, local).await;
    assert_eq!(why, "target: can't clone to node 'n3': storage 'local' is not shared with it");
    let lost = CloneOptions { target: Some(name("n2")), ..to(102) };
    assert!(refused(&node, lost).await.contains("not online"));
    assert!(matches!(
        node.ops.clone_vm(&root(), vmid(100), CloneOptions { target: Some(name("n9")), ..to(102) }).await,
        Err(OpsError::Invalid { parameter, .. }) if parameter == "target"
    ));
}

async fn start(node: &Node) {
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}

#[tokio::test]
async fn a_running_vm_is_copied_at_one_moment_and_runs_on() {
    let node = made(&[VM[0], VM[1], ("agent", "1"), ("efidisk0", "local:1")]).await;
    start(&node).await;
    let (status, log) = clone(&node, to(101)).await;
    assert_eq!(status, "OK", "{log}");
    assert!(log.contains("while VM 100 runs") && log.contains("freezing"), "{log}");
    let asked: Vec<String> = node.machines.asked("n1", vmid(100)).into_iter().map(|(c, _)| c).collect();
    assert_eq!(asked, ["guest-ping", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
    assert_eq!(config(&node, 101).all_volumes().len(), 3);
    assert!(node.machines.copied("n1", vmid(100)).is_empty());
    assert_eq!(config(&node, 100).current.lock(), None);
    assert!(node.own(100).running);
}

#[tokio::test]
async fn a_running_vm_whose_copies_vanish_has_no_clone() {
    let node = made(&VM[..2]).await;
    start(&node).await;
    node.machines.hold_copies("n1", true);
    for stopped in [false, true] {
        let upid = node.ops.clone_vm(&root(), vmid(100), to(101)).await.unwrap();
        while node.machines.copied("n1", vmid(100)).is_empty() {
            tokio::task::yield_now().await;
        }
        if stopped {
            assert!(node.ops.tasks.stop(&upid));
        } else {
            // As the fence process does.
            node.machines.end_copies("n1", vmid(100));
        }
        let (status, _) = node.ended(&upid).await;
        let why = if stopped { "interrupted" } else { "somebody has ended it" };
        assert!(status.contains(why), "{status}");
        assert!(node.machines.copied("n1", vmid(100)).is_empty());
        nothing_is_left(&node, 101).await;
    }
}

/// What somebody could not give a VM of their own they do not get by a clone either.
#[tokio::test]
async fn what_only_root_may_have_is_cloned_by_root_alone() {
    let node = made(&[VM[0], ("affinity", "0")]).await;
    let user = stead_ops::Actor::new("user@pve", false, std::sync::Arc::new(|_: &str, _: &str| true));
    let why = node.ops.clone_vm(&user, vmid(100), to(101)).await.unwrap_err().to_string();
    assert!(why.contains("only root can clone a VM with 'affinity: 0'"), "{why}");
    assert_eq!(clone(&node, to(101)).await.0, "OK");
    let node = made(&[VM[0]]).await;
    let with_cd =
        format!("ide2: local:iso/a.iso,media=cdrom\n{}", node.ops.guest_at(vmid(100)).unwrap().config.value);
    node.commit(Txn::new("test").put(paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)), with_cd)).await;
    let may = |path: &str, _: &str| path != "/storage/local";
    let user = stead_ops::Actor::new("user@pve", false, std::sync::Arc::new(may));
    let refused = node.ops.clone_vm(&user, vmid(100), to(101)).await.unwrap_err();
    assert!(matches!(refused, OpsError::Forbidden { .. }), "{refused}");
}
