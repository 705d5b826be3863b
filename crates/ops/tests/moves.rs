//! Disks that get another place or another VM: what becomes of configuration and volumes, and what of either when it fails, or is cut
//! off, half-way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_conf::Txn;
use stead_driver::guest::{CopyKind, CopyTo, DiskCopy, RunState};
use stead_driver::storage::{NewVolume, StorageDriver};
use stead_model::vmconfig::VmConfig;
use stead_model::{Epoch, GuestKind, Upid, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::move_disk::MoveOptions;
use stead_ops_testing::{Node, name, root, vmid};

const OLD: &str = "local:100/vm-100-disk-0.qcow2";
const NEW: &str = "shared:100/vm-100-disk-0.raw";

async fn made() -> Node {
    let node = Node::start().await;
    make(&node, 100, &[("scsi0", "local:1,format=qcow2,cache=writeback"), ("ide2", "none,media=cdrom")])
        .await;
    node
}

async fn make(node: &Node, n: u32, options: &[(&str, &str)]) {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let upid = node.ops.create_vm(&root(), vmid(n), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}

async fn started() -> Node {
    let node = made().await;
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    node
}

fn to_shared() -> MoveOptions {
    MoveOptions {
        disk: "scsi0".into(),
        storage: Some("shared".parse().unwrap()),
        format: Some("raw".into()),
        ..MoveOptions::default()
    }
}

async fn begin(node: &Node, options: MoveOptions) -> Upid {
    node.ops.move_disk(&root(), vmid(100), options).await.unwrap()
}

async fn moved(node: &Node, options: MoveOptions) -> (String, String) {
    let upid = begin(node, options).await;
    node.ended(&upid).await
}

async fn refused(node: &Node, options: MoveOptions) -> String {
    node.ops.move_disk(&root(), vmid(100), options).await.unwrap_err().to_string()
}

fn config(node: &Node, n: u32) -> VmConfig {
    VmConfig::parse(&node.ops.guest_at(vmid(n)).unwrap().config.value).unwrap()
}

async fn names(node: &Node, storage: &str) -> Vec<String> {
    let all = node.storage(storage).list(None, None).await.unwrap();
    all.into_iter().map(|v| v.volid.to_string()).collect()
}

async fn place(node: &Node) -> String {
    let path = node.ops.guests.disk_place(vmid(100), "scsi0").await.unwrap();
    path.strip_prefix(node.dir.path()).unwrap().display().to_string().replacen('/', ":", 1)
}

async fn state(node: &Node) -> RunState {
    node.ops.guests.state(vmid(100)).await.unwrap().state
}

/// The disk is at its new place, the old volume kept or removed, and nothing goes on.
async fn is_moved(node: &Node, kept: bool) {
    let c = config(node, 100);
    assert_eq!(c.current.get("scsi0"), Some(format!("{NEW},cache=writeback,size=1G").as_str()));
    assert_eq!((c.current.get("unused0"), c.current.lock()), (kept.then_some(OLD), None));
    assert_eq!(names(node, "local").await.len(), usize::from(kept));
    at_rest(node).await;
}

/// The disk is where it was, and nothing else is there.
async fn is_as_it_was(node: &Node) {
    let c = config(node, 100);
    assert!(c.current.get("scsi0").unwrap().starts_with(OLD), "{c}");
    assert_eq!((c.current.get("unused0"), c.current.lock()), (None, None), "{c}");
    assert_eq!((names(node, "local").await, names(node, "shared").await), (vec![OLD.to_owned()], vec![]));
    at_rest(node).await;
}

async fn at_rest(node: &Node) {
    assert!(!node.ops.conf.view(|t| t.get("stead/lock/100").is_some()));
    assert!(node.machines.copied("n1", vmid(100)).is_empty());
}

#[tokio::test]
async fn a_stopped_vm_s_disk_is_copied() {
    let node = made().await;
    assert_eq!(moved(&node, to_shared()).await.0, "OK");
    is_moved(&node, true).await;
    let node = made().await;
    let (status, log) = moved(&node, MoveOptions { delete: true, ..to_shared() }).await;
    assert_eq!(status, "OK");
    assert!(log.contains("copied 100 % of 1G") && log.contains("removed volume"), "{log}");
    is_moved(&node, false).await;
}

#[tokio::test]
async fn a_running_vm_goes_over() {
    for delete in [false, true] {
        let node = started().await;
        let (status, log) = moved(&node, MoveOptions { delete, ..to_shared() }).await;
        assert_eq!(status, "OK", "{log}");
        is_moved(&node, !delete).await;
        assert_eq!(place(&node).await, NEW);
        assert_eq!(node.machines.pivoted("n1"), [RunState::Paused], "nothing is written while it goes over");
        assert_eq!(state(&node).await, RunState::Running);
        assert!(node.own(100).running);
    }
}

#[tokio::test]
async fn what_cannot_be_moved_is_named() {
    let node = made().await;
    let on = |disk: &str| MoveOptions { disk: disk.into(), ..to_shared() };
    for (options, why) in [
        (on("scsi7"), "disk: disk 'scsi7' does not exist"),
        (on("ide2"), "disk: you can't move a cdrom"),
        (MoveOptions { storage: None, format: None, ..on("scsi0") }, "same storage with same format"),
        (MoveOptions { digest: Some("x".into()), ..on("scsi0") }, "detected modified configuration"),
        (
            MoveOptions { storage: Some("nowhere".parse().unwrap()), ..on("scsi0") },
            "'nowhere' does not exist",
        ),
    ] {
        let said = refused(&node, options).await;
        assert!(said.contains(why), "{said}");
    }
    let upid = node.ops.take_snapshot(&root(), vmid(100), "one", "", false).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let delete = refused(&node, MoveOptions { delete: true, ..to_shared() }).await;
    assert_eq!(delete, "delete: you can't move a disk with snapshots and delete the source");
    assert_eq!(moved(&node, to_shared()).await.0, "OK");
    let upid = node.ops.make_template(&root(), vmid(100), None).await;
    assert!(upid.unwrap_err().to_string().contains("snapshots"));
}

#[tokio::test]
async fn what_fails_or_is_stopped_leaves_the_disk_where_it_was() {
    let node = made().await;
    node.storage("shared").set_failing(Some(("copy", 0)));
    let (status, _) = moved(&node, to_shared()).await;
    assert!(
        status.contains("could not move disk 'scsi0' of VM 100") && status.contains("worn out"),
        "{status}"
    );
    is_as_it_was(&node).await;
    node.storage("shared").set_failing(None);
    let gate = node.storage("shared").set_gate("copy");
    let upid = begin(&node, to_shared()).await;
    gate.reached().await;
    assert_eq!(config(&node, 100).current.lock(), Some("clone"));
    assert!(node.ops.tasks.stop(&upid));
    assert!(node.ended(&upid).await.0.contains("interrupted"));
    is_as_it_was(&node).await;
}

#[tokio::test]
async fn a_mirror_that_vanishes_is_a_failure_whenever_it_does() {
    let node = started().await;
    node.machines.hold_copies("n1", true);
    for stopped in [false, true] {
        let upid = begin(&node, to_shared()).await;
        while node.machines.copied("n1", vmid(100)).is_empty() {
            tokio::task::yield_now().await;
        }
        // A long copy holds nobody up who asks what the VM is.
        assert!(node.ops.guest_locks.try_lock(vmid(100)).is_some());
        if stopped {
            assert!(node.ops.tasks.stop(&upid));
        } else {
            node.machines.end_copies("n1", vmid(100));
        }
        assert_ne!(node.ended(&upid).await.0, "OK");
        is_as_it_was(&node).await;
        assert_eq!(place(&node).await, OLD);
    }
    // After the new place was recorded.
    node.machines.hold_copies("n1", false);
    node.machines.refuse_pivot("n1", true);
    let (status, _) = moved(&node, to_shared()).await;
    assert!(status.contains("the copy is gone"), "{status}");
    assert_eq!(place(&node).await, OLD);
    assert_eq!(state(&node).await, RunState::Running);
    let c = config(&node, 100);
    assert!(c.current.get("scsi0").unwrap().starts_with(OLD), "{c}");
    assert_eq!(c.current.lock(), None);
    at_rest(&node).await;
}

/// What a daemon has left that died in a move: the lock of a dead task, and a mirror.
async fn cut_off(recorded: bool) -> Node {
    cut_off_of(recorded, true).await
}

/// `ran`: its user had not paused the VM.
async fn cut_off_of(recorded: bool, ran: bool) -> Node {
    let node = started().await;
    let new = NewVolume { vmid: vmid(100), name: None, format: Some("raw".into()), size: 1 << 30 };
    node.storage("shared").alloc(&new).await.unwrap();
    let to = node.ops.resolve_volume(&NEW.parse().unwrap()).await.unwrap();
    let copy = DiskCopy { disk: "scsi0".into(), value: OLD.into(), to: CopyTo::Volume(to) };
    node.ops.guests.copy_disks(vmid(100), &[copy], CopyKind::Mirror, None).await.unwrap();
    let mut c = config(&node, 100);
    c.current.set("lock", "clone").unwrap();
    if recorded {
        c.current.set("scsi0", NEW).unwrap();
        c.current.set("unused0", OLD).unwrap();
    }
    let Epoch(epoch) = node.own(100).epoch;
    let holder = format!(
        r#"{{"what":"clone","task":"UPID:n1:00000001:00000001:00000001:qmmove:100:root@pam:","epoch":{epoch},"making":["{NEW}"],"ran":{ran}}}"#
    );
    let txn = Txn::new("test")
        .put("stead/lock/100", holder)
        .put(paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)), c.to_string());
    node.commit(txn).await;
    node
}

#[tokio::test]
async fn a_dead_daemon_s_move_is_taken_back_or_finished() {
    let node = cut_off(false).await;
    assert!(node.ops.reconcile().await.unwrap());
    is_as_it_was(&node).await;
    let node = cut_off(true).await;
    assert!(node.ops.reconcile().await.unwrap());
    assert_eq!(place(&node).await, NEW);
    let c = config(&node, 100);
    assert_eq!((c.current.get("scsi0"), c.current.get("unused0")), (Some(NEW), Some(OLD)));
    assert_eq!(c.current.lock(), None);
    at_rest(&node).await;
}

#[tokio::test]
async fn a_dead_daemon_s_mirror_that_was_ended_is_written_back() {
    let node = cut_off(true).await;
    node.machines.end_copies("n1", vmid(100));
    assert!(node.ops.reconcile().await.unwrap());
    assert_eq!(place(&node).await, OLD);
    let c = config(&node, 100);
    assert!(c.current.get("scsi0").unwrap().starts_with(OLD), "{c}");
    assert_eq!((c.current.get("unused0"), c.current.lock()), (Some(NEW), None));
    at_rest(&node).await;
}

#[tokio::test]
async fn a_vm_that_stands_while_it_goes_over_is_continued_whoever_dies() {
    for recorded in [false, true] {
        let node = cut_off(recorded).await;
        node.ops.guests.pause(vmid(100)).await.unwrap();
        assert!(node.ops.reconcile().await.unwrap());
        assert_eq!(place(&node).await, if recorded { NEW } else { OLD });
        assert_eq!(state(&node).await, RunState::Running);
        at_rest(&node).await;
    }
}

#[tokio::test]
async fn a_vm_that_its_user_has_paused_stays_so() {
    let node = cut_off_of(true, false).await;
    node.ops.guests.pause(vmid(100)).await.unwrap();
    assert!(node.ops.reconcile().await.unwrap());
    assert_eq!((place(&node).await.as_str(), state(&node).await), (NEW, RunState::Paused));
    let node = started().await;
    node.ops.guests.pause(vmid(100)).await.unwrap();
    assert_eq!(moved(&node, to_shared()).await.0, "OK");
    assert_eq!((place(&node).await.as_str(), state(&node).await), (NEW, RunState::Paused));
}

/// The disk is at its new place by the commit, and the daemon died before the old one was removed.
#[tokio::test]
async fn an_old_place_goes_whoever_dies_before_it_is_removed() {
    let node = cut_off(true).await;
    node.ops.guests.pivot(vmid(100), "scsi0").await.unwrap();
    let mut c = config(&node, 100);
    c.current.remove("unused0");
    let Epoch(epoch) = node.own(100).epoch;
    let holder = format!(
        r#"{{"what":"clone","task":"UPID:n1:00000001:00000001:00000001:qmmove:100:root@pam:","epoch":{epoch},"making":["{OLD}"]}}"#
    );
    let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
    node.commit(Txn::new("test").put("stead/lock/100", holder).put(path, c.to_string())).await;
    node.ops.reconcile().await.unwrap();
    assert_eq!((names(&node, "local").await, names(&node, "shared").await), (vec![], vec![NEW.to_owned()]));
    assert_eq!(config(&node, 100).current.lock(), None);
    at_rest(&node).await;
}

#[tokio::test]
async fn an_old_place_that_can_t_be_removed_is_told() {
    let node = made().await;
    node.storage("local").set_failing(Some(("free", 0)));
    let (status, log) = moved(&node, MoveOptions { delete: true, ..to_shared() }).await;
    assert!(status.starts_with("WARNINGS") && log.contains("could not be freed yet"), "{status} {log}");
    assert_eq!(config(&node, 100).current.lock(), None);
    assert_eq!(names(&node, "local").await.len(), 1);
    node.storage("local").set_failing(None);
    node.ops.reconcile().await.unwrap();
    assert_eq!(names(&node, "local").await.len(), 0, "it goes when it can");
    at_rest(&node).await;
}

/// A name that is recorded as nobody's may be given to a copy that is being made.
#[tokio::test]
async fn what_is_being_made_is_not_freed_as_nobody_s() {
    let node = made().await;
    let gate = node.storage("shared").set_gate("copy");
    let upid = begin(&node, to_shared()).await;
    gate.reached().await;
    let new = NewVolume { vmid: vmid(100), name: None, format: Some("raw".into()), size: 1 << 30 };
    node.storage("shared").alloc(&new).await.unwrap();
    let record = format!(r#"{{"volumes":["{NEW}"],"source":null}}"#);
    node.commit(Txn::new("test").put("stead/loose/n1/100", record)).await;
    node.ops.reconcile().await.unwrap();
    assert_eq!(node.ops.conf.view(|t| t.list("stead/loose/").count()), 0);
    assert_eq!(names(&node, "shared").await, [NEW]);
    gate.open();
    node.ended(&upid).await;
}

#[tokio::test]
async fn a_disk_goes_to_another_vm() {
    let node = made().await;
    make(&node, 101, &[("scsi0", "shared:1")]).await;
    let to = |disk: Option<&str>| MoveOptions {
        disk: "scsi0".into(),
        target: Some(vmid(101)),
        target_disk: disk.map(str::to_owned),
        ..MoveOptions::default()
    };
    assert!(refused(&node, to(None)).await.starts_with("target-disk: VM 101 has a disk 'scsi0' already"));
    let itself = MoveOptions { target: Some(vmid(100)), ..to(None) };
    assert!(refused(&node, itself).await.starts_with("target-vmid: must be different"));
    node.storage("local").set_failing(Some(("rename", 0)));
    assert!(moved(&node, to(Some("virtio1"))).await.0.contains("worn out"));
    assert!(config(&node, 100).current.get("scsi0").is_some());
    node.storage("local").set_failing(None);
    let (status, log) = moved(&node, to(Some("virtio1"))).await;
    assert_eq!(status, "OK", "{log}");
    assert_eq!(config(&node, 100).all_volumes(), []);
    let theirs = config(&node, 101);
    assert_eq!(
        theirs.current.get("virtio1"),
        Some("local:101/vm-101-disk-0.qcow2,format=qcow2,cache=writeback,size=1G")
    );
    assert_eq!(names(&node, "local").await, ["local:101/vm-101-disk-0.qcow2"]);
    // Of a running VM only what it does not use, and only as what it does not use.
    let upid = node.ops.start(&root(), vmid(101), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let back = |disk: &str, there: &str| MoveOptions {
        disk: disk.into(),
        target: Some(vmid(100)),
        target_disk: Some(there.into()),
        ..MoveOptions::default()
    };
    let used =
        node.ops.move_disk(&root(), vmid(101), back("virtio1", "virtio1")).await.unwrap_err().to_string();
    assert!(used.contains("'virtio1' is in use: stop VM 101"), "{used}");
}

/// A disk on its way to another VM has two names, and one of them is nobody's.
#[tokio::test]
async fn a_disk_that_was_to_go_to_another_vm_has_one_name_in_the_end() {
    let node = made().await;
    make(&node, 101, &[("scsi0", "shared:1")]).await;
    let record = "stead/loose/n1/101";
    let named = r#"{"volumes":["local:101/vm-101-disk-0.qcow2"],"source":null}"#;
    node.commit(Txn::new("test").put(record, named)).await;
    let own = "100/vm-100-disk-0.qcow2";
    node.storage("local").rename(own, vmid(101), Some("vm-101-disk-0.qcow2")).await.unwrap();
    node.ops.reconcile().await.unwrap();
    assert_eq!(names(&node, "local").await, [OLD], "before the commit: it is the first one's");
    // After it: the old name is recorded as nobody's.
    let to = MoveOptions {
        disk: "scsi0".into(),
        target: Some(vmid(101)),
        target_disk: Some("scsi1".into()),
        ..MoveOptions::default()
    };
    node.storage("local").set_failing(Some(("free", 0)));
    let (status, log) = moved(&node, to).await;
    assert!(status.starts_with("WARNINGS") && log.contains("could not be freed yet"), "{status} {log}");
    assert_eq!(names(&node, "local").await.len(), 2);
    node.storage("local").set_failing(None);
    node.ops.reconcile().await.unwrap();
    assert_eq!(names(&node, "local").await, ["local:101/vm-101-disk-0.qcow2"]);
    assert_eq!(node.ops.conf.view(|t| t.list("stead/loose/").count()), 0);
}
