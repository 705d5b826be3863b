//! Snapshots: what becomes of disks and configuration, and what of either when it fails, or is cut off, half-way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_conf::Txn;
use stead_driver::guest::RunState;
use stead_driver::storage::StorageDriver;
use stead_model::vmconfig::VmConfig;
use stead_model::{GuestKind, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::config::ConfigChange;
use stead_ops::guest::destroy::DestroyOptions;
use stead_ops::storage::Resize;
use stead_ops_testing::{Node, name, root, vmid};

const DISKS: [(&str, &str); 3] =
    [("scsi0", "shared:1,format=qcow2"), ("scsi1", "local:1,format=qcow2"), ("ide2", "none,media=cdrom")];
const ONE: &str = "100/vm-100-disk-0.qcow2";
const DEAD: &str = "UPID:n1:00000001:00000001:00000001:qmsnapshot:100:root@pam:";

async fn made(options: &[(&str, &str)]) -> Node {
    let node = Node::start().await;
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    node
}

async fn started(options: &[(&str, &str)]) -> Node {
    let node = made(options).await;
    start(&node).await;
    node
}

async fn start(node: &Node) {
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}

async fn take(node: &Node, snapshot: &str) -> (String, String) {
    let upid = node.ops.take_snapshot(&root(), vmid(100), snapshot, "as it was", false).await.unwrap();
    node.ended(&upid).await
}

async fn take_with_memory(node: &Node, snapshot: &str) -> (String, String) {
    let upid = node.ops.take_snapshot(&root(), vmid(100), snapshot, "", true).await.unwrap();
    node.ended(&upid).await
}

async fn remove(node: &Node, snapshot: &str, force: bool) -> (String, String) {
    let upid = node.ops.remove_snapshot(&root(), vmid(100), snapshot, force).await.unwrap();
    node.ended(&upid).await
}

async fn back(node: &Node, snapshot: &str, start: bool) -> (String, String) {
    let upid = node.ops.roll_back(&root(), vmid(100), snapshot, start).await.unwrap();
    node.ended(&upid).await
}

fn config(node: &Node) -> VmConfig {
    VmConfig::parse(&node.ops.guest_at(vmid(100)).unwrap().config.value).unwrap()
}

async fn set(node: &Node, key: &str, value: &str) {
    let set = [(key.to_owned(), value.to_owned())].into();
    let change = ConfigChange { set, ..ConfigChange::default() };
    node.ops.configure(&root(), vmid(100), change, Asked::default()).await.unwrap();
}

async fn delete(node: &Node, key: &str, force: bool) -> Result<(), stead_ops::OpsError> {
    let change = ConfigChange { delete: vec![key.to_owned()], force, ..ConfigChange::default() };
    node.ops.configure(&root(), vmid(100), change, Asked::default()).await
}

/// What the images of both disks keep.
async fn kept(node: &Node) -> [Vec<String>; 2] {
    [
        node.storage("shared").snapshots(ONE).await.unwrap(),
        node.storage("local").snapshots(ONE).await.unwrap(),
    ]
}

fn holder(node: &Node) -> bool {
    node.ops.conf.view(|t| t.get("stead/lock/100").is_some())
}

/// Nothing of a snapshot is there, nor a lock.
async fn nothing_is_left(node: &Node) {
    let config = config(node);
    assert_eq!((config.snapshots.len(), config.current.lock()), (0, None), "{config}");
    assert_eq!(kept(node).await, [[""; 0], [""; 0]]);
    assert!(!holder(node));
}

/// Every disk as it was for the same name, and both ways to it.
async fn whole_cycle(node: Node) {
    let running = node.ops.guests.state(vmid(100)).await.is_some();
    let (status, log) = take(&node, "one").await;
    assert_eq!(status, "OK", "{log}");
    assert_eq!(kept(&node).await, [["one"], ["one"]]);
    let c = config(&node);
    assert_eq!((c.current.parent(), c.current.lock()), (Some("one"), None));
    let taken = &c.snapshots["one"];
    assert_eq!((taken.get("snapstate"), taken.description()), (None, Some("as it was")));
    assert_eq!(taken.get("scsi0"), c.current.get("scsi0"));
    assert!(!holder(&node));
    assert_eq!(take(&node, "two").await.0, "OK");
    let listed = node.ops.snapshots(vmid(100)).await.unwrap();
    let told: Vec<_> = listed.iter().map(|s| (s.name.as_str(), s.parent.as_deref(), s.running)).collect();
    assert_eq!(
        told,
        [("one", None, None), ("two", Some("one"), None), ("current", Some("two"), Some(running))]
    );
    assert_eq!(listed[2].digest, Some(config(&node).digest()));
    assert_eq!(remove(&node, "one", false).await.0, "OK");
    assert_eq!(kept(&node).await, [["two"], ["two"]]);
    assert_eq!(config(&node).snapshots["two"].parent(), None);
    assert_eq!(node.ops.guests.state(vmid(100)).await.is_some(), running, "it runs as before");
    let (status, log) = back(&node, "two", false).await;
    assert_eq!(status, "OK", "{log}");
    assert!(!node.own(100).running && node.machines.state("n1", vmid(100)).is_none());
    assert_eq!(log.contains("stopping VM"), running);
    assert_eq!(remove(&node, "two", false).await.0, "OK");
    nothing_is_left(&node).await;
}

#[tokio::test]
async fn of_a_stopped_vm() {
    whole_cycle(made(&DISKS).await).await;
}

#[tokio::test]
async fn of_a_running_vm() {
    whole_cycle(started(&DISKS).await).await;
}

#[tokio::test]
async fn a_paused_vm_stays_paused() {
    let node = started(&DISKS).await;
    node.machines.set_state("n1", vmid(100), RunState::Paused);
    assert_eq!(take(&node, "one").await.0, "OK");
    assert_eq!(remove(&node, "one", false).await.0, "OK");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Paused));
    node.machines.set_state("n1", vmid(100), RunState::Unresponsive);
    let refused = node.ops.take_snapshot(&root(), vmid(100), "one", "", false).await.unwrap_err().to_string();
    assert!(refused.contains("while it is Unresponsive"), "{refused}");
}

#[tokio::test]
async fn options_sizes_and_generation_go_back() {
    let node = made(&[DISKS[0], DISKS[1], ("vmgenid", "1"), ("memory", "512")]).await;
    let before = config(&node);
    assert_eq!(take(&node, "one").await.0, "OK");
    set(&node, "memory", "1024").await;
    let upid = node.ops.resize_disk(&root(), vmid(100), "scsi0".into(), Resize::By(1 << 30)).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    set(&node, "scsi2", "shared:2,format=qcow2").await;
    let (status, log) = back(&node, "one", true).await;
    assert_eq!(status, "OK", "{log}");
    let after = config(&node);
    assert_eq!(after.current.get("memory"), Some("512"));
    assert_eq!(after.current.get("scsi0"), before.current.get("scsi0"));
    assert_eq!(node.storage("shared").info(ONE).await.unwrap().size, 1 << 30);
    assert_eq!(after.current.get("unused0"), Some("shared:100/vm-100-disk-1.qcow2"), "a later disk is kept");
    assert_ne!(after.current.vmgenid(), before.current.vmgenid(), "the guest must learn of it");
    let upid = log.split_once("started: ").unwrap().1.lines().next().unwrap().parse().unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
}

#[tokio::test]
async fn what_can_keep_nothing_is_refused_by_name_and_nothing_is_done() {
    let node = made(&[DISKS[0], ("scsi1", "local:1,format=raw")]).await;
    let (status, _) = take(&node, "one").await;
    assert!(status.contains("disk 'scsi1'") && status.contains("raw"), "{status}");
    let c = config(&node);
    assert!(c.snapshots.is_empty() && c.current.lock().is_none(), "{c}");
    assert_eq!(node.storage("shared").snapshots(ONE).await.unwrap(), [""; 0]);
    let (can, _) = node.ops.can_snapshot(vmid(100), None).await.unwrap();
    assert!(!can);
    let refused =
        node.ops.take_snapshot(&root(), vmid(100), "current", "", false).await.unwrap_err().to_string();
    assert!(refused.starts_with("snapname: 'current'"), "{refused}");
    for e in [
        node.ops.remove_snapshot(&root(), vmid(100), "no", true).await.unwrap_err(),
        node.ops.roll_back(&root(), vmid(100), "no", false).await.unwrap_err(),
        node.ops.describe_snapshot(&root(), vmid(100), "no", "x").await.unwrap_err(),
        node.ops.can_snapshot(vmid(100), Some("no")).await.unwrap_err(),
    ] {
        assert_eq!(e.to_string(), "snapshot 'no' does not exist");
    }
}

#[tokio::test]
async fn a_name_that_an_image_has_already_is_not_taken_for_the_new_one() {
    let node = made(&DISKS).await;
    node.storage("local").snapshot(ONE, "one").await.unwrap();
    let (status, _) = take(&node, "one").await;
    assert!(status.contains("'scsi1' keeps something under that name"), "{status}");
    assert_eq!(kept(&node).await, [vec![], vec!["one".to_owned()]], "neither made nor removed");
    assert!(config(&node).snapshots.is_empty());
}

#[tokio::test]
async fn a_disk_that_fails_leaves_no_snapshot_of_any() {
    for failing in ["shared", "local"] {
        let node = made(&DISKS).await;
        node.storage(failing).set_failing(Some(("snapshot", 0)));
        let (status, log) = take(&node, "one").await;
        assert!(status.contains("the medium is worn out"), "{status}");
        assert_eq!(log.contains("(shared:"), failing == "local", "the first one was taken: {log}");
        nothing_is_left(&node).await;
        node.storage(failing).set_failing(None);
        assert_eq!(take(&node, "one").await.0, "OK");
    }
}

#[tokio::test]
async fn what_cannot_be_undone_is_undone_when_it_can() {
    let node = made(&DISKS).await;
    node.storage("shared").set_failing(Some(("delete_snapshot", 0)));
    node.storage("local").set_failing(Some(("snapshot", 0)));
    let (status, _) = take(&node, "one").await;
    assert!(status.contains("could not be removed yet") && status.contains("stays locked"), "{status}");
    assert_eq!(config(&node).current.lock(), Some("snapshot"));
    node.ops.reconcile().await.unwrap();
    assert_eq!(config(&node).current.lock(), Some("snapshot"), "it still can't");
    node.storage("shared").set_failing(None);
    node.ops.reconcile().await.unwrap();
    nothing_is_left(&node).await;
}

#[tokio::test]
async fn a_running_vm_that_refuses_keeps_nothing() {
    let node = started(&DISKS).await;
    node.machines.refuse_snapshots("n1", Some("it is frozen"));
    let (status, _) = take(&node, "one").await;
    assert!(status.contains("it is frozen") && status.contains("stays locked"), "{status}");
    node.machines.refuse_snapshots("n1", None);
    node.ops.reconcile().await.unwrap();
    nothing_is_left(&node).await;
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
}

/// What a daemon leaves that is killed while it takes a snapshot: `disks` of the images have it.
async fn cut_off(node: &Node, disks: usize) {
    for storage in ["shared", "local"].into_iter().take(disks) {
        node.storage(storage).snapshot(ONE, "one").await.unwrap();
    }
    let mut config = config(node);
    let new = stead_guest::snapshots::New { name: "one".into(), description: String::new(), time: 1 };
    stead_guest::snapshots::prepare(&mut config, &new).unwrap();
    config.current.set("lock", "snapshot").unwrap();
    left(node, &config, "snapshot").await;
}

/// A configuration whose lock a dead task holds.
async fn left(node: &Node, config: &VmConfig, what: &str) {
    let holder = format!(r#"{{"what":"{what}","task":"{DEAD}","epoch":{}}}"#, node.own(100).epoch.0);
    let txn = Txn::new("test")
        .put(paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)), config.to_string())
        .put("stead/lock/100", holder);
    node.commit(txn).await;
}

#[tokio::test]
async fn a_daemon_that_dies_while_it_takes_one_leaves_nothing_in_the_end() {
    for running in [false, true] {
        for disks in 0..=2 {
            let node = if running { started(&DISKS).await } else { made(&DISKS).await };
            cut_off(&node, disks).await;
            let locked = node.ops.take_snapshot(&root(), vmid(100), "two", "", false).await.unwrap_err();
            assert_eq!(locked.to_string(), "VM is locked (snapshot)");
            node.ops.reconcile().await.unwrap();
            nothing_is_left(&node).await;
        }
    }
}

#[tokio::test]
async fn a_recovery_that_drops_the_lock_leaves_nothing_either() {
    let node = made(&DISKS).await;
    cut_off(&node, 1).await;
    let mut unlocked = config(&node);
    unlocked.current.remove("lock");
    let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
    node.commit(Txn::new("test").put(path, unlocked.to_string())).await;
    node.ops.reconcile().await.unwrap();
    nothing_is_left(&node).await;
}

#[tokio::test]
async fn half_a_snapshot_without_a_lock_is_shown_not_gone_back_to_and_removed() {
    let node = made(&DISKS).await;
    cut_off(&node, 1).await;
    let mut unlocked = config(&node);
    unlocked.current.remove("lock");
    let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
    let txn = Txn::new("test").put(path, unlocked.to_string()).delete("stead/lock/100");
    node.commit(txn).await;
    node.ops.reconcile().await.unwrap();
    assert_eq!(node.ops.snapshots(vmid(100)).await.unwrap()[0].snapstate.as_deref(), Some("prepare"));
    let refused = node.ops.roll_back(&root(), vmid(100), "one", false).await.unwrap_err().to_string();
    assert!(refused.contains("half done"), "{refused}");
    assert_eq!(remove(&node, "one", false).await.0, "OK");
    nothing_is_left(&node).await;
}

#[tokio::test]
async fn a_removal_that_fails_half_way_is_repeated_or_forced() {
    let node = made(&DISKS).await;
    take(&node, "one").await;
    node.storage("local").set_failing(Some(("delete_snapshot", 0)));
    let (status, _) = remove(&node, "one", false).await;
    assert!(status.contains("disk 'scsi1'") && status.contains("remove it again"), "{status}");
    let c = config(&node);
    assert_eq!((c.current.lock(), c.snapshots["one"].get("snapstate")), (None, Some("delete")));
    assert_eq!(kept(&node).await, [vec![], vec!["one".to_owned()]]);
    assert!(node.ops.roll_back(&root(), vmid(100), "one", false).await.is_err(), "one disk has it no more");
    start(&node).await;
    node.machines.crash("n1", vmid(100));
    let (status, log) = remove(&node, "one", true).await;
    assert!(status.starts_with("WARNINGS") && log.contains("left by force: disk 'scsi1'"), "{status} {log}");
    assert!(config(&node).snapshots.is_empty());
}

#[tokio::test]
async fn a_daemon_that_dies_while_it_removes_one_leaves_it_to_be_removed_again() {
    let node = made(&DISKS).await;
    take(&node, "one").await;
    node.storage("shared").delete_snapshot(ONE, "one").await.unwrap();
    let mut c = config(&node);
    stead_guest::snapshots::begin_removal(&mut c, "one").unwrap();
    c.current.set("lock", "snapshot-delete").unwrap();
    left(&node, &c, "snapshot-delete").await;
    node.ops.reconcile().await.unwrap();
    assert_eq!(config(&node).current.lock(), None);
    assert_eq!(remove(&node, "one", false).await.0, "OK");
    nothing_is_left(&node).await;
}

#[tokio::test]
async fn a_rollback_that_fails_half_way_keeps_the_vm_locked_until_it_is_repeated() {
    for failing in ["shared", "local"] {
        let node = started(&DISKS).await;
        take(&node, "one").await;
        set(&node, "name", "later").await;
        node.storage(failing).set_failing(Some(("rollback_snapshot", 0)));
        let (status, _) = back(&node, "one", true).await;
        assert!(status.contains("stays locked (rollback)") && status.contains("roll back again"), "{status}");
        let c = config(&node);
        assert_eq!((c.current.lock(), c.current.name()), (Some("rollback"), Some("later")));
        assert!(!node.own(100).running, "its end is recorded");
        // Nobody else undoes this: its disks may be of two times.
        node.ops.reconcile().await.unwrap();
        assert_eq!(config(&node).current.lock(), Some("rollback"));
        let refused = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap_err();
        assert_eq!(refused.to_string(), "VM is locked (rollback)");
        node.storage(failing).set_failing(None);
        assert_eq!(back(&node, "one", false).await.0, "OK");
        let c = config(&node);
        assert_eq!((c.current.lock(), c.current.name()), (None, None));
        assert!(!holder(&node));
        start(&node).await;
    }
}

/// What changes images is no process that a fence stops: a node that was given up in the middle goes no further by itself.
#[tokio::test]
async fn a_node_that_was_given_up_stops_at_the_next_disk() {
    for operation in ["snapshot", "delete_snapshot", "rollback_snapshot"] {
        let node = made(&DISKS).await;
        if operation != "snapshot" {
            assert_eq!(take(&node, "one").await.0, "OK");
        }
        let before = kept(&node).await;
        let gate = node.storage("shared").set_gate(operation);
        let lost = async {
            gate.reached().await;
            // Another node has it, or this one again; what it was begun under is over.
            let own = node.own(100);
            let next = stead_model::Ownership { epoch: own.epoch.next(), ..own };
            let text = stead_ops::store::bytes(&next).unwrap();
            node.commit(Txn::new("test").put(paths::ownership(vmid(100)), text)).await;
            gate.open();
        };
        let work = async {
            match operation {
                "snapshot" => take(&node, "one").await,
                "delete_snapshot" => remove(&node, "one", false).await,
                _ => back(&node, "one", false).await,
            }
        };
        let ((status, _), ()) = tokio::join!(work, lost);
        assert!(status.contains("was given to this node anew"), "{operation}: {status}");
        let after = kept(&node).await;
        assert_eq!(after[1], before[1], "{operation}: the second disk was touched");
    }
}

#[tokio::test]
async fn a_daemon_that_dies_while_it_rolls_back_leaves_the_lock() {
    let node = made(&DISKS).await;
    take(&node, "one").await;
    let mut c = config(&node);
    c.current.set("lock", "rollback").unwrap();
    left(&node, &c, "rollback").await;
    node.ops.reconcile().await.unwrap();
    assert_eq!(config(&node).current.lock(), Some("rollback"));
    assert_eq!(back(&node, "one", false).await.0, "OK");
    assert_eq!(config(&node).current.lock(), None);
}

#[tokio::test]
async fn what_a_disk_does_not_have_is_not_gone_back_to_and_nothing_is_stopped() {
    let node = started(&DISKS).await;
    take(&node, "one").await;
    node.storage("local").delete_snapshot(ONE, "one").await.unwrap();
    let (status, _) = back(&node, "one", false).await;
    assert!(status.contains("'scsi1' keeps nothing under that name"), "{status}");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
    assert_eq!(config(&node).current.lock(), None);
}

#[tokio::test]
async fn what_ha_would_start_is_not_rolled_back() {
    let node = made(&DISKS).await;
    take(&node, "one").await;
    let resources =
        |state: &str| Txn::new("test").put(paths::HA_RESOURCES, format!("vm: 100\n\tstate {state}\n"));
    node.commit(resources("started")).await;
    let refused = node.ops.roll_back(&root(), vmid(100), "one", false).await.unwrap_err().to_string();
    assert!(refused.contains("HA would start it"), "{refused}");
    assert_eq!(take(&node, "two").await.0, "OK", "a snapshot changes nothing of it");
    node.commit(resources("stopped")).await;
    assert_eq!(back(&node, "one", false).await.0, "OK");
}

#[tokio::test]
async fn file_systems_are_frozen_and_thawed_whatever_happens() {
    let asked = |node: &Node| -> Vec<String> {
        node.machines.asked("n1", vmid(100)).into_iter().map(|(command, _)| command).collect()
    };
    let all = ["guest-ping", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"];
    let node = started(&[DISKS[0], DISKS[1], ("agent", "1")]).await;
    assert_eq!(take(&node, "one").await.0, "OK");
    assert_eq!(asked(&node), all);
    node.machines.refuse_snapshots("n1", Some("no room"));
    assert!(take(&node, "two").await.0.contains("no room"));
    assert_eq!(asked(&node), all);
    node.machines.refuse_snapshots("n1", None);
    // A daemon that dies in between may have left them frozen.
    node.ops.reconcile().await.unwrap();
    assert_eq!(asked(&node), ["guest-ping", "guest-fsfreeze-thaw"]);
    assert_eq!(remove(&node, "one", false).await.0, "OK");
    nothing_is_left(&node).await;
    node.machines.set_state("n1", vmid(100), RunState::Paused);
    assert_eq!(take(&node, "paused").await.0, "OK");
    assert_eq!(asked(&node), [""; 0], "one that stands still answers nothing");
    let node = started(&[DISKS[0], ("agent", "1,freeze-fs=0")]).await;
    assert_eq!(take(&node, "one").await.0, "OK");
    assert_eq!(asked(&node), [""; 0]);
}

#[tokio::test]
async fn file_systems_that_cannot_be_thawed_keep_the_vm_locked_until_they_are() {
    let node = started(&[DISKS[0], DISKS[1], ("agent", "1")]).await;
    node.machines.refuse_agent("n1", Some("guest-fsfreeze-thaw"));
    let (status, _) = take(&node, "one").await;
    assert!(status.contains("could not be thawed") && status.contains("fsfreeze-thaw"), "{status}");
    assert_eq!(config(&node).current.lock(), Some("snapshot"));
    node.machines.refuse_agent("n1", None);
    node.machines.asked("n1", vmid(100));
    node.ops.reconcile().await.unwrap();
    let asked: Vec<String> = node.machines.asked("n1", vmid(100)).into_iter().map(|(c, _)| c).collect();
    assert_eq!(asked, ["guest-ping", "guest-fsfreeze-thaw"]);
    nothing_is_left(&node).await;
    // One that is slow to thaw is asked again, one that refuses is not.
    for (delayed, refused, lock) in [(true, false, Some("snapshot")), (false, true, None)] {
        node.machines.delay_agent("n1", Some("guest-fsfreeze-thaw"));
        assert!(take(&node, "slow").await.0.contains("could not be thawed"));
        node.machines.delay_agent("n1", delayed.then_some("guest-fsfreeze-thaw"));
        node.machines.refuse_agent("n1", refused.then_some("guest-fsfreeze-thaw"));
        node.ops.reconcile().await.unwrap();
        assert_eq!(config(&node).current.lock(), lock);
        node.machines.delay_agent("n1", None);
        node.ops.reconcile().await.unwrap();
        nothing_is_left(&node).await;
    }
    // A freeze that may come yet is thawed, too.
    node.machines.refuse_agent("n1", Some("guest-fsfreeze-thaw"));
    node.machines.delay_agent("n1", Some("guest-fsfreeze-freeze"));
    assert!(take(&node, "late").await.0.contains("could not be thawed"));
    node.machines.delay_agent("n1", None);
    node.ops.reconcile().await.unwrap();
    // One that can't be frozen is taken all the same, and said so.
    node.machines.refuse_agent("n1", Some("guest-fsfreeze"));
    let (status, log) = take(&node, "two").await;
    assert!(status.starts_with("WARNINGS") && log.contains("in the middle of something"), "{status} {log}");
    assert_eq!(config(&node).current.lock(), None, "an agent that can't freeze can't thaw");
}

#[tokio::test]
async fn what_a_snapshot_has_is_kept_and_counted_and_goes_with_the_vm() {
    let node = started(&DISKS).await;
    assert_eq!(take_with_memory(&node, "one").await.0, "OK");
    let upid = node.ops.power(&root(), vmid(100), STOP, Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    delete(&node, "scsi1", true).await.unwrap();
    assert_eq!(config(&node).current.get("unused0"), Some("local:100/vm-100-disk-0.qcow2"));
    let refused = delete(&node, "unused0", true).await.unwrap_err().to_string();
    assert!(refused.contains("snapshot 'one'"), "{refused}");
    // A VM that has nothing on a local storage now, and in a snapshot.
    let mut c = config(&node);
    c.current.remove("unused0");
    let local = node.ops.local_volumes(&c).unwrap();
    assert_eq!(local, ["local:100/vm-100-disk-0.qcow2"]);
    c.snapshots.clear();
    assert_eq!(node.ops.local_volumes(&c).unwrap(), [""; 0]);
    let options = DestroyOptions::default();
    let upid = node.ops.destroy(&root(), vmid(100), options, Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    for storage in ["shared", "local"] {
        assert_eq!(node.storage(storage).list(None, Some(vmid(100))).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_disk_that_only_a_removed_snapshot_had_becomes_unused() {
    let node = made(&DISKS).await;
    take(&node, "one").await;
    set(&node, "scsi1", "shared:1,format=qcow2").await;
    delete(&node, "unused0", false).await.unwrap_err();
    let (status, log) = remove(&node, "one", false).await;
    assert_eq!(status, "OK", "{log}");
    assert_eq!(config(&node).current.get("unused0"), Some("local:100/vm-100-disk-0.qcow2"));
    assert_eq!(kept(&node).await, [[""; 0], [""; 0]], "also of a disk that it has no more");
    delete(&node, "unused0", false).await.unwrap();
    assert_eq!(node.storage("local").list(None, Some(vmid(100))).await.unwrap(), []);
}

#[tokio::test]
async fn what_is_said_of_one_can_be_changed() {
    let node = made(&DISKS).await;
    take(&node, "one").await;
    node.ops.describe_snapshot(&root(), vmid(100), "one", "two\nlines").await.unwrap();
    assert_eq!(config(&node).snapshots["one"].description(), Some("two\nlines"));
    node.ops.describe_snapshot(&root(), vmid(100), "one", "").await.unwrap();
    assert_eq!(config(&node).snapshots["one"].description(), None);
    let (can, nodes) = node.ops.can_snapshot(vmid(100), Some("one")).await.unwrap();
    assert_eq!((can, nodes), (true, vec![name("n1")]));
}

const STATE: &str = "100/vm-100-state-one.raw";

#[tokio::test]
async fn memory_is_kept_and_given_back() {
    let node = started(&DISKS).await;
    let (status, log) = take_with_memory(&node, "one").await;
    assert_eq!(status, "OK", "{log}");
    assert_eq!(kept(&node).await, [["one"], ["one"]]);
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
    let c = config(&node);
    let taken = &c.snapshots["one"];
    assert_eq!(taken.get("vmstate"), Some(format!("shared:{STATE}").as_str()), "where other nodes see it");
    assert_eq!((taken.get("runningmachine"), taken.get("runningaccel")), (Some("fake-1.0"), Some("tcg")));
    node.storage("shared").info(STATE).await.unwrap();
    assert_eq!(node.ops.snapshots(vmid(100)).await.unwrap()[0].vmstate, Some(true));
    for running in [true, false] {
        let (status, log) = back(&node, "one", running).await;
        assert_eq!(status, "OK", "{log}");
        assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running), "it goes on");
        assert!(node.own(100).running && log.contains("with the memory that it had"), "{log}");
        let upid = node.ops.power(&root(), vmid(100), STOP, Asked::default()).await.unwrap();
        assert_eq!(node.ended(&upid).await.0, "OK");
    }
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, "vm: 100\n\tstate stopped\n")).await;
    let (status, log) = back(&node, "one", false).await;
    assert!(status.starts_with("WARNINGS") && log.contains("HA keeps it stopped"), "{status} {log}");
    assert!(!node.own(100).running);
    // As another program writes it.
    let mut c = config(&node);
    c.snapshots.get_mut("one").unwrap().remove("runningaccel");
    node.commit(Txn::new("test").put(paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)), c.to_string()))
        .await;
    node.commit(Txn::new("test").delete(paths::HA_RESOURCES)).await;
    let (status, log) = back(&node, "one", false).await;
    assert!(status.starts_with("WARNINGS") && log.contains("by another program"), "{status} {log}");
    assert_eq!(remove(&node, "one", false).await.0, "OK");
    nothing_is_left(&node).await;
    node.storage("shared").info(STATE).await.unwrap_err();
}

const STOP: stead_ops::guest::power::PowerAction =
    stead_ops::guest::power::PowerAction::Stop { timeout: std::time::Duration::from_secs(1) };

#[tokio::test]
async fn memory_is_that_of_a_vm_that_runs_and_has_a_disk() {
    let node = made(&DISKS).await;
    let by = root();
    let memory = || node.ops.take_snapshot(&by, vmid(100), "one", "", true);
    assert!(memory().await.unwrap_err().to_string().starts_with("vmstate: "));
    start(&node).await;
    node.machines.set_state("n1", vmid(100), RunState::Paused);
    assert!(
        memory().await.unwrap_err().to_string().starts_with("vmstate: "),
        "its user would have it paused after"
    );
    let node = started(&[("memory", "64")]).await;
    let (status, _) = take_with_memory(&node, "one").await;
    assert!(status.contains("no disk"), "{status}");
    assert_eq!((config(&node).current.lock(), config(&node).snapshots.len()), (None, 0));
    let node = started(&[DISKS[0], DISKS[1], ("vmstatestorage", "local")]).await;
    assert_eq!(take_with_memory(&node, "one").await.0, "OK");
    node.storage("local").info(STATE).await.unwrap();
    set(&node, "vmstatestorage", "gone").await;
    let (status, _) = take_with_memory(&node, "two").await;
    assert!(status.contains("storage 'gone' does not exist"), "{status}");
    assert_eq!((config(&node).current.lock(), config(&node).snapshots.len()), (None, 1));
}

/// As the fence process cancels it, and where disks or monitor refuse: the VM goes on, and nothing is kept.
#[tokio::test]
async fn memory_that_is_not_written_to_its_end_leaves_nothing() {
    for cancelled in [true, false] {
        let node = started(&DISKS).await;
        node.machines.break_memory("n1", cancelled);
        node.machines.refuse_snapshots("n1", Some("no room").filter(|_| !cancelled));
        let (status, _) = take_with_memory(&node, "one").await;
        assert!(status.starts_with("could not take snapshot 'one'"), "{status}");
        assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
        node.machines.refuse_snapshots("n1", None);
        node.ops.reconcile().await.unwrap();
        nothing_is_left(&node).await;
        node.storage("shared").info(STATE).await.unwrap_err();
    }
}

async fn make_state(node: &Node) {
    let new = stead_driver::storage::NewVolume {
        vmid: vmid(100),
        name: Some("vm-100-state-one.raw".into()),
        format: Some("raw".into()),
        size: 1 << 20,
    };
    node.storage("shared").alloc(&new).await.unwrap();
}

/// A daemon that dies while the VM stands for its snapshot: whoever comes next has it go on. The place of its memory is named before
/// it is made.
#[tokio::test]
async fn a_vm_that_was_left_standing_goes_on() {
    for made in [true, false] {
        let node = started(&DISKS).await;
        if made {
            make_state(&node).await;
        }
        cut_off(&node, 2).await;
        let mut c = config(&node);
        c.snapshots.get_mut("one").unwrap().set("vmstate", &format!("shared:{STATE}")).unwrap();
        left(&node, &c, "snapshot").await;
        node.machines.set_state("n1", vmid(100), RunState::Paused);
        node.ops.reconcile().await.unwrap();
        assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
        nothing_is_left(&node).await;
        node.storage("shared").info(STATE).await.unwrap_err();
    }
}

/// A volume of that name which no snapshot names is not taken, and stays.
#[tokio::test]
async fn memory_is_not_written_over_what_is_there() {
    let node = started(&DISKS).await;
    make_state(&node).await;
    let (status, _) = take_with_memory(&node, "one").await;
    assert!(status.contains("there may be a volume 'shared:100/vm-100-state-one.raw' already"), "{status}");
    nothing_is_left(&node).await;
    node.storage("shared").info(STATE).await.unwrap();
}

/// A snapshot without memory stops nothing: who stands was paused by its user, or by the fence process.
#[tokio::test]
async fn a_vm_that_others_have_paused_is_not_continued() {
    let node = started(&DISKS).await;
    cut_off(&node, 1).await;
    node.machines.set_state("n1", vmid(100), RunState::Paused);
    node.ops.reconcile().await.unwrap();
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Paused));
    nothing_is_left(&node).await;
}

/// One that the fence process guards is continued by it alone.
#[tokio::test]
async fn a_guarded_vm_is_continued_by_the_fence_process_or_not_at_all() {
    let node = made(&DISKS).await;
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, "vm: 100\n\tstate started\n")).await;
    let by_ha = Asked { by_ha: true, ..Asked::default() };
    let upid = node.ops.start(&root(), vmid(100), by_ha).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert!(node.own(100).armed);
    // The fence process of this test tells what it was asked, and does not reach the machines: it is asked once more.
    let runs = || node.machines.set_state("n1", vmid(100), RunState::Running);
    runs();
    let before = node.fence.ran().len();
    let (status, log) = take_with_memory(&node, "one").await;
    assert_eq!((status.as_str(), node.fence.ran().len()), ("OK", before + 2), "{log}");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Paused), "nobody else has continued it");
    runs();
    node.fence.set_gone(true);
    let (status, _) = take_with_memory(&node, "two").await;
    assert!(status.contains("could not be continued"), "{status}");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Paused));
    assert_eq!(node.ops.snapshots(vmid(100)).await.unwrap().len(), 2, "the first one, and what it is now");
}

/// What only root may give a VM comes back by nobody else's rollback.
#[tokio::test]
async fn what_reaches_into_the_host_comes_back_by_root_alone() {
    let node = made(&DISKS).await;
    set(&node, "affinity", "0").await;
    assert_eq!(take(&node, "pinned").await.0, "OK");
    delete(&node, "affinity", false).await.unwrap();
    // Nor goes by it what only root may take out.
    assert_eq!(take(&node, "free").await.0, "OK");
    let keeper = stead_ops::Actor::new("keeper@pve", false, std::sync::Arc::new(|_: &str, _: &str| true));
    let refused = node.ops.roll_back(&keeper, vmid(100), "pinned", false).await.unwrap_err();
    assert!(
        refused.to_string().contains("only root can go back to a snapshot with another 'affinity'"),
        "{refused}"
    );
    assert_eq!(config(&node).current.get("affinity"), None);
    set(&node, "affinity", "0").await;
    let upid = node.ops.roll_back(&keeper, vmid(100), "pinned", false).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK", "nothing of that kind changes");
    let refused = node.ops.roll_back(&keeper, vmid(100), "free", false).await.unwrap_err();
    assert!(refused.to_string().contains("'affinity'"), "{refused}");
}

/// A locked VM's images may be in other hands.
#[tokio::test]
async fn a_disk_of_a_locked_vm_keeps_its_size() {
    let node = made(&DISKS).await;
    node.commit(Txn::new("test").put(
        paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)),
        format!("lock: rollback\n{}", node.ops.guest_at(vmid(100)).unwrap().config.value),
    ))
    .await;
    let upid = node.ops.resize_disk(&root(), vmid(100), "scsi0".into(), Resize::By(1 << 20)).unwrap();
    assert_eq!(node.ended(&upid).await.0, "VM is locked (rollback)");
}

/// What a cloud-init drive holds, a hash of a password perhaps, does not outlive the last that names it.
#[tokio::test]
async fn a_drive_that_only_a_snapshot_had_goes_with_it() {
    let node = made(&[DISKS[0], ("ide2", "local:cloudinit")]).await;
    assert_eq!(take(&node, "one").await.0, "OK");
    delete(&node, "ide2", false).await.unwrap();
    let drives = async || {
        let all = node.ops.volumes(&"local".parse().unwrap(), None, Some(vmid(100))).await.unwrap();
        all.into_iter().filter(|v| v.volid.name.contains("cloudinit")).count()
    };
    assert_eq!(drives().await, 1, "the snapshot names it");
    assert_eq!(remove(&node, "one", false).await.0, "OK");
    assert_eq!(drives().await, 0);
    // One that came after the snapshot goes when the VM goes back.
    assert_eq!(take(&node, "two").await.0, "OK");
    set(&node, "ide2", "local:cloudinit").await;
    assert_eq!(drives().await, 1);
    assert_eq!(back(&node, "two", false).await.0, "OK");
    assert_eq!(drives().await, 0);
}
