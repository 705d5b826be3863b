//! VMs whose memory is on disk: suspended, going on, moved so; and what becomes of them when it fails, or is cut off, half-way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;
use stead_conf::Txn;
use stead_driver::guest::RunState;
use stead_driver::storage::StorageDriver;
use stead_model::vmconfig::VmConfig;
use stead_model::{GuestKind, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::config::ConfigChange;
use stead_ops::guest::migrate::{MigrateOptions, Quick};
use stead_ops::store;
use stead_ops_testing::{Node, name, root, vmid};

const DISKS: [(&str, &str); 2] = [("scsi0", "shared:1,format=qcow2"), ("ide2", "none,media=cdrom")];
const DEAD: &str = "UPID:n1:00000001:00000001:00000001:qmsuspend:100:root@pam:";

async fn created(node: &Node) {
    let options = DISKS.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert_eq!(start(node).await.0, "OK");
    assert_eq!(state(node), Some(RunState::Running));
}

async fn running() -> Node {
    let node = Node::start().await;
    created(&node).await;
    node
}

fn state(node: &Node) -> Option<RunState> {
    node.machines.state("n1", vmid(100))
}

async fn suspend(node: &Node) -> (String, String) {
    let upid = node.ops.suspend_to_disk(&root(), vmid(100), None, Asked::default()).await.unwrap();
    node.ended(&upid).await
}

async fn start(node: &Node) -> (String, String) {
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    node.ended(&upid).await
}

fn config(node: &Node) -> VmConfig {
    VmConfig::parse(&node.ops.guest_at(vmid(100)).unwrap().config.value).unwrap()
}

/// The volumes that could have the VM's memory.
async fn memories(node: &Node) -> Vec<String> {
    let all = node.storage("shared").list(None, Some(vmid(100))).await.unwrap();
    all.into_iter().map(|v| v.volid.name).filter(|n| n.contains("state-suspend")).collect()
}

/// It runs, and nothing says that its memory was ever on disk.
async fn as_before(node: &Node) {
    let c = config(node).current;
    assert_eq!(state(node), Some(RunState::Running));
    assert!(node.own(100).running);
    assert_eq!((c.lock(), c.get("vmstate"), c.get("runningmachine")), (None, None, None));
    assert_eq!(memories(node).await, [""; 0]);
    assert_eq!(node.ops.conf.view(|t| t.list("stead/lock/").count()), 0);
}

/// Its memory is on disk, and it does not run.
async fn on_disk(node: &Node) {
    let c = config(node).current;
    assert_eq!((state(node), node.own(100).running), (None, false));
    let [memory] = &memories(node).await[..] else { panic!("{:?}", memories(node).await) };
    assert_eq!((c.lock(), c.get("vmstate")), (Some("suspended"), Some(format!("shared:{memory}").as_str())));
}

/// The configuration as a dead daemon has left it.
async fn left(node: &Node, lock: &str, held: bool) {
    let mut c = config(node);
    c.current.set("lock", lock).unwrap();
    let mut txn = Txn::new("test").put(paths::guest(&name("n1"), GuestKind::Qemu, vmid(100)), c.to_string());
    if held {
        let epoch = node.own(100).epoch.0;
        txn = txn.put("stead/lock/100", format!(r#"{{"what":"{lock}","task":"{DEAD}","epoch":{epoch}}}"#));
    }
    node.commit(txn).await;
}

async fn record_running(node: &Node) {
    let mut own = node.own(100);
    own.running = true;
    node.commit(Txn::new("test").put(paths::ownership(vmid(100)), store::bytes(&own).unwrap())).await;
}

#[tokio::test]
async fn it_goes_on_with_its_memory_once() {
    let node = running().await;
    let (status, log) = suspend(&node).await;
    assert_eq!(status, "OK", "{log}");
    on_disk(&node).await;
    let refused = node.ops.configure(&root(), vmid(100), ConfigChange::default(), Asked::default()).await;
    assert!(refused.is_err_and(|e| e.to_string() == "VM is locked (suspended)"));
    let (status, log) = start(&node).await;
    assert!(status == "OK" && log.contains("resuming suspended VM 100"), "{status} {log}");
    as_before(&node).await;
}

#[tokio::test]
async fn what_is_not_written_to_its_end_leaves_the_vm_as_it_was() {
    let node = running().await;
    node.machines.break_memory("n1", true);
    let (status, _) = suspend(&node).await;
    assert!(status.starts_with("VM 100 was not suspended"), "{status}");
    as_before(&node).await;
}

#[tokio::test]
async fn a_paused_vm_and_one_under_ha_are_refused() {
    let node = running().await;
    let refused = async || {
        let asked = node.ops.suspend_to_disk(&root(), vmid(100), None, Asked::default()).await;
        asked.unwrap_err().to_string()
    };
    node.machines.set_state("n1", vmid(100), RunState::Paused);
    assert!(refused().await.contains("it is paused"));
    node.machines.set_state("n1", vmid(100), RunState::Running);
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, "vm: 100\n\tstate started\n")).await;
    assert!(refused().await.contains("it is under HA"));
}

/// While memory is written, and when all of it was and the commit had not come.
#[tokio::test]
async fn a_daemon_that_dies_while_it_suspends_has_the_vm_go_on() {
    for all_written in [false, true] {
        let node = running().await;
        let new = stead_driver::storage::NewVolume {
            vmid: vmid(100),
            name: Some("vm-100-state-suspend-2.raw".into()),
            format: Some("raw".into()),
            size: 1 << 20,
        };
        node.storage("shared").alloc(&new).await.unwrap();
        let mut c = config(&node);
        c.current.set("vmstate", "shared:100/vm-100-state-suspend-2.raw").unwrap();
        c.current.set("runningmachine", "fake-1.0").unwrap();
        let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
        node.commit(Txn::new("test").put(path, c.to_string())).await;
        left(&node, "suspending", true).await;
        if all_written {
            node.machines.set_state("n1", vmid(100), RunState::Postmigrate);
        }
        node.ops.reconcile().await.unwrap();
        as_before(&node).await;
    }
}

#[tokio::test]
async fn what_was_suspended_is_destroyed_by_whoever_finds_it() {
    let node = running().await;
    assert_eq!(suspend(&node).await.0, "OK");
    // As if the daemon had died between the commit and the end of the process.
    let launch = node.ops.launch_spec(&node.ops.vm_at(vmid(100)).unwrap(), None).await.unwrap();
    node.ops.guests.launch(launch).await.unwrap();
    node.machines.set_state("n1", vmid(100), RunState::Postmigrate);
    node.ops.reconcile().await.unwrap();
    on_disk(&node).await;
}

/// Before a process was made, and when one had read it all.
#[tokio::test]
async fn a_daemon_that_dies_while_a_vm_is_to_go_on_has_it_go_on() {
    for read in [false, true] {
        let node = running().await;
        assert_eq!(suspend(&node).await.0, "OK");
        record_running(&node).await;
        if read {
            let launch = node.ops.launch_spec(&node.ops.vm_at(vmid(100)).unwrap(), None).await.unwrap();
            node.ops.guests.launch(launch).await.unwrap();
            node.machines.set_state("n1", vmid(100), RunState::Received);
        }
        node.ops.reconcile().await.unwrap();
        let goes_on = async {
            let mut events = node.ops.guests.events();
            while state(&node) != Some(RunState::Running) || config(&node).current.lock().is_some() {
                let _ = tokio::time::timeout(Duration::from_millis(50), events.recv()).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), goes_on).await.unwrap();
        // Whoever had it go on still removes what is of no use any more.
        while node.ops.guest_locks.lock(vmid(100)).await.is_err() {}
        as_before(&node).await;
    }
}

/// What is of no use any more is named as that by the commit that says so: it goes, whoever dies when.
#[tokio::test]
async fn memory_of_no_use_goes_when_it_can() {
    let node = running().await;
    assert_eq!(suspend(&node).await.0, "OK");
    node.storage("shared").set_failing(Some(("free", 0)));
    assert_eq!(start(&node).await.0, "OK");
    assert_eq!((state(&node), memories(&node).await.len()), (Some(RunState::Running), 1));
    node.storage("shared").set_failing(None);
    node.ops.reconcile().await.unwrap();
    as_before(&node).await;
    assert_eq!(node.ops.conf.view(|t| t.list("stead/loose/").count()), 0);
}

#[tokio::test]
async fn memory_that_cannot_be_read_is_kept_until_it_is_given_up() {
    let node = running().await;
    assert_eq!(suspend(&node).await.0, "OK");
    let path = node.storage("shared").resolve(&memories(&node).await[0]).await.unwrap().path;
    std::fs::write(&path, "short").unwrap();
    let (status, _) = start(&node).await;
    assert!(status.contains("Its memory is kept"), "{status}");
    on_disk(&node).await;
    // Nobody starts it again and again.
    node.ops.reconcile().await.unwrap();
    on_disk(&node).await;
    let unlock = ConfigChange { delete: vec!["lock".into()], ..ConfigChange::default() };
    let asked = Asked { skiplock: true, ..Asked::default() };
    node.ops.configure(&root(), vmid(100), unlock, asked).await.unwrap();
    let (status, log) = start(&node).await;
    assert!(status.starts_with("WARNINGS") && log.contains("is given up"), "{status} {log}");
    as_before(&node).await;
}

fn quick(to: &str) -> MigrateOptions {
    MigrateOptions { quick: Some(Quick::default()), ..MigrateOptions::to(name(to), true) }
}

/// Nobody reaches anybody here, which a quick migration does not need.
#[tokio::test]
async fn it_moves_to_a_node_that_cannot_be_reached() {
    let node = Node::of_three().await;
    created(&node).await;
    let before = node.own(100).epoch;
    let upid = node.ops.migrate(&root(), vmid(100), quick("n3"), Asked::default()).await.unwrap();
    let mut watch = node.ops.conf.watch();
    while node.own(100).owner != name("n3") {
        watch.next().await;
    }
    let own = node.own(100);
    let mut c = config(&node);
    assert!(own.running && !own.armed && own.epoch == before.next());
    assert_eq!(c.current.lock(), Some("suspended"));
    assert_ne!(state(&node), Some(RunState::Running));
    // As n3 does when it has read it.
    assert_eq!(stead_guest::saved::forget(&mut c).map(|v| v.storage.to_string()).as_deref(), Some("shared"));
    c.current.remove("lock");
    let path = paths::guest(&name("n3"), GuestKind::Qemu, vmid(100));
    node.commit(Txn::new("test").put(path, c.to_string())).await;
    let (status, log) = node.ended(&upid).await;
    assert!(status.starts_with("WARNINGS") && log.contains("is not known"), "{status} {log}");
    assert_eq!(state(&node), None);
    assert!(log.contains("VM 100 runs on node 'n3'"), "{log}");
}

#[tokio::test]
async fn a_quick_migration_that_fails_leaves_the_vm_as_it_was() {
    let node = Node::of_three().await;
    created(&node).await;
    node.machines.break_memory("n1", true);
    let upid = node.ops.migrate(&root(), vmid(100), quick("n3"), Asked::default()).await.unwrap();
    let (status, _) = node.ended(&upid).await;
    assert!(status.contains("migration aborted"), "{status}");
    as_before(&node).await;
    assert_eq!(node.own(100).owner, name("n1"));
    // Where the target could not read it.
    node.machines.break_memory("n1", false);
    let local =
        MigrateOptions { quick: Some(Quick { storage: Some("local".parse().unwrap()) }), ..quick("n3") };
    let upid = node.ops.migrate(&root(), vmid(100), local, Asked::default()).await.unwrap();
    let (status, _) = node.ended(&upid).await;
    assert!(status.contains("storage 'local' is not shared"), "{status}");
    as_before(&node).await;
}

/// Of a move that was cut off: memory that was whole before stays the VM's, and what was only being written is given up.
#[tokio::test]
async fn a_move_that_was_cut_off_leaves_no_half_of_a_memory() {
    for was_suspended in [true, false] {
        let node = running().await;
        assert_eq!(suspend(&node).await.0, "OK");
        let mut c = config(&node);
        c.current.set("lock", "migrate").unwrap();
        let epoch = node.own(100).epoch.0;
        let holder = format!(
            r#"{{"what":"migrate","task":"{DEAD}","epoch":{epoch},"was_suspended":{was_suspended}}}"#
        );
        let path = paths::guest(&name("n1"), GuestKind::Qemu, vmid(100));
        node.commit(Txn::new("test").put(path, c.to_string()).put("stead/lock/100", holder)).await;
        node.ops.reconcile().await.unwrap();
        if was_suspended {
            on_disk(&node).await;
            continue;
        }
        let c = config(&node).current;
        assert_eq!((c.lock(), c.get("vmstate"), state(&node)), (None, None, None));
        assert_eq!(memories(&node).await, [""; 0]);
    }
}

#[tokio::test]
async fn what_would_run_there_though_nobody_wants_it_to_is_not_moved_quickly() {
    let node = Node::of_three().await;
    created(&node).await;
    node.machines.set_state("n1", vmid(100), RunState::Paused);
    let upid = node.ops.migrate(&root(), vmid(100), quick("n3"), Asked::default()).await.unwrap();
    let (status, _) = node.ended(&upid).await;
    assert!(status.contains("or is paused, and would run there"), "{status}");
    assert_eq!(state(&node), Some(RunState::Paused));
    assert_eq!(memories(&node).await, [""; 0]);
}

/// Its memory is a disk that somebody makes.
#[tokio::test]
async fn who_may_make_no_disk_may_not_suspend_to_one() {
    let node = running().await;
    let may = |_: &str, privilege: &str| privilege == "VM.PowerMgmt";
    let by = stead_ops::Actor::new("user@pve", false, std::sync::Arc::new(may));
    let refused = node.ops.suspend_to_disk(&by, vmid(100), None, Asked::default()).await.unwrap_err();
    assert!(matches!(refused, stead_ops::OpsError::Forbidden { .. }), "{refused}");
    assert_eq!(state(&node), Some(RunState::Running));
}
