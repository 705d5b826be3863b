//! Hook scripts around the starts and stops of a guest.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use stead_driver::guest::RunState;
use stead_driver::storage::{Content, StorageDriver};
use stead_model::Upid;
use stead_ops::Actor;
use stead_ops::guest::Asked;
use stead_ops::guest::config::ConfigChange;
use stead_ops::guest::power::PowerAction;
use stead_ops_testing::{Node, root, vmid};
use tokio::io::AsyncReadExt;

const SCRIPT: &str = "shared:snippets/hook.sh";
const STORAGES: &str = "dir: shared\n\tpath /fake/shared\n\tcontent images,snippets\n\tshared 1\n\n\
    dir: plain\n\tpath /fake/plain\n\tcontent images\n";

/// A script that notes each phase in a file, fails in the phase that another file names, and hangs in that of a third, which it
/// says into a pipe.
const TEXT: &str = "#!/bin/sh
echo \"phase $2\"
echo $1 $2 >>DIR/phases
grep -qsx $2 DIR/hangs && { echo >DIR/hanging; sleep 600; }
! grep -qsx $2 DIR/fails
";

async fn put_script(node: &Node) -> PathBuf {
    let storage = node.storage("shared");
    let spooled = storage.spool().await.unwrap();
    storage.adopt_file(spooled, Content::Snippets, "hook.sh").await.unwrap();
    let path = storage.resolve("snippets/hook.sh").await.unwrap().path;
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        node.dir.path().join("hanging"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    std::fs::write(&path, TEXT.replace("DIR", node.dir.path().to_str().unwrap())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

async fn node() -> Node {
    let addr = "127.0.0.1:8006".parse().unwrap();
    let (node, mut flushes) = Node::begin(addr, STORAGES, |txn, _| txn).await;
    tokio::spawn(async move {
        while let Some(done) = flushes.recv().await {
            let _ = done.send(());
        }
    });
    node
}

/// VM 100 with the script.
async fn hooked() -> (Node, PathBuf) {
    let node = node().await;
    let path = put_script(&node).await;
    let options = [("hookscript".to_owned(), SCRIPT.to_owned())].into();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    (node, path)
}

/// The phases so far, of VM 100.
fn phases(node: &Node) -> String {
    let text = std::fs::read_to_string(node.dir.path().join("phases")).unwrap_or_default();
    text.lines().map(|l| l.strip_prefix("100 ").unwrap()).collect::<Vec<_>>().join(" ")
}

fn say(node: &Node, file: &str, phase: &str) {
    std::fs::write(node.dir.path().join(file), format!("{phase}\n")).unwrap();
}

async fn begin(node: &Node) -> Upid {
    node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap()
}

async fn start(node: &Node) -> (String, String) {
    node.ended(&begin(node).await).await
}

async fn power(node: &Node, action: PowerAction) -> (String, String) {
    let upid = node.ops.power(&root(), vmid(100), action, Asked::default()).await.unwrap();
    node.ended(&upid).await
}

const STOP: PowerAction = PowerAction::Stop { timeout: Duration::from_secs(10) };

/// Waits until the script hangs.
async fn hanging(node: &Node) {
    let path = node.dir.path().join("hanging");
    let mut pipe = tokio::net::unix::pipe::OpenOptions::new().open_receiver(path).unwrap();
    let read = pipe.read_u8();
    tokio::time::timeout(Duration::from_secs(30), read).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_script_is_run_around_a_start_and_a_stop() {
    let (node, _) = hooked().await;
    let (status, log) = start(&node).await;
    assert_eq!(status, "OK", "{log}");
    let (before, after) = (log.find("phase pre-start").unwrap(), log.find("phase post-start").unwrap());
    let begun = log.find("starting VM 100").unwrap();
    assert!(before < begun && begun < after, "{log}");
    assert_eq!(phases(&node), "pre-start post-start");
    let shutdown = PowerAction::Shutdown { timeout: Duration::from_secs(60), force: false };
    let (status, log) = power(&node, shutdown).await;
    assert_eq!(status, "OK", "{log}");
    assert_eq!(phases(&node), "pre-start post-start pre-stop post-stop");
    assert_eq!(power(&node, STOP).await.0, "OK", "nothing to stop, and nothing to run");
    assert_eq!(phases(&node), "pre-start post-start pre-stop post-stop");
}

#[tokio::test]
async fn before_a_start_alone_it_has_a_veto() {
    let (node, path) = hooked().await;
    say(&node, "fails", "pre-start");
    let (status, _) = start(&node).await;
    let why = "hook script 'shared:snippets/hook.sh' of VM 100, pre-start: exit status: 1";
    assert!(status.contains(why), "{status}");
    assert_eq!((node.machines.state("n1", vmid(100)), node.own(100).running), (None, false));
    assert_eq!(phases(&node), "pre-start", "nothing was begun, and nothing has ended");
    say(&node, "fails", "post-start");
    let (status, log) = start(&node).await;
    assert!(
        status.starts_with("WARNINGS: 1") && log.contains("post-start: exit status: 1"),
        "{status}: {log}"
    );
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Running));
    say(&node, "fails", "pre-stop");
    assert!(power(&node, STOP).await.0.starts_with("WARNINGS: 1"));
    assert_eq!((node.machines.state("n1", vmid(100)), node.own(100).running), (None, false));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(start(&node).await.0.contains("chmod +x"));
    std::fs::remove_file(path).unwrap();
    assert!(start(&node).await.0.contains("pre-start"), "a script that is gone is no success");
}

#[tokio::test]
async fn a_start_that_fails_after_its_first_phase_has_the_last_one_too() {
    let (node, _) = hooked().await;
    node.machines.refuse_launches("n1", Some("no memory"));
    let (status, log) = start(&node).await;
    assert!(status.contains("no memory"), "{status}: {log}");
    assert_eq!(phases(&node), "pre-start post-stop");
    assert!(!node.own(100).running);
    node.ops.reconcile().await.unwrap();
    assert_eq!(phases(&node), "pre-start post-stop");
}

/// Whoever records an end first runs the script, and nobody else.
#[tokio::test]
async fn an_end_that_nobody_asked_for_has_its_phase_once() {
    let (node, _) = hooked().await;
    assert_eq!(start(&node).await.0, "OK");
    node.machines.crash("n1", vmid(100));
    node.ops.reconcile().await.unwrap();
    node.ops.reconcile().await.unwrap();
    // The script holds the guest's mutex until it has ended.
    drop(node.ops.guest_locks.lock(vmid(100)).await.unwrap());
    node.ops.after_exit(vmid(100)).await;
    assert_eq!(phases(&node), "pre-start post-start post-stop");
    // A start that comes before anybody has noticed the end.
    assert_eq!(start(&node).await.0, "OK");
    node.machines.crash("n1", vmid(100));
    assert_eq!(start(&node).await.0, "OK");
    let twice = "pre-start post-start post-stop pre-start post-start post-stop pre-start post-start";
    assert_eq!(phases(&node), twice);
}

/// What is handed over has not ended: not where it was, and where it comes it was not started.
#[tokio::test]
async fn a_guest_that_is_another_node_s_has_no_phase_here() {
    let (node, _) = hooked().await;
    let config = node.ops.guest_at(vmid(100)).unwrap().config.value;
    node.record_guest(101, "n2", |own| own.running = true, &config).await;
    node.ops.after_exit(vmid(101)).await;
    assert!(node.own(101).running);
    assert_eq!(phases(&node), "");
}

#[tokio::test]
async fn who_stops_the_task_stops_the_script_and_the_start() {
    let (node, _) = hooked().await;
    say(&node, "hangs", "pre-start");
    let upid = begin(&node).await;
    hanging(&node).await;
    assert!(node.ops.tasks.stop(&upid));
    let (status, _) = node.ended(&upid).await;
    assert!(status.contains("interrupted"), "{status}");
    assert_eq!((node.machines.state("n1", vmid(100)), node.own(100).running), (None, false));
}

#[tokio::test]
async fn a_script_has_the_time_of_what_it_is_part_of() {
    let (node, _) = hooked().await;
    say(&node, "hangs", "pre-start");
    let limit = Some(Duration::from_millis(1500));
    let upid = node.ops.start_within(&root(), vmid(100), Asked::default(), limit).await.unwrap();
    let (status, _) = node.ended(&upid).await;
    assert!(status.contains("pre-start: it has not ended within 1 s, and was killed"), "{status}");
    say(&node, "hangs", "pre-stop");
    assert_eq!(start(&node).await.0, "OK");
    let shutdown = PowerAction::Shutdown { timeout: Duration::from_secs(4), force: false };
    let (status, log) = power(&node, shutdown).await;
    assert!(
        status.starts_with("WARNINGS: 1") && log.contains("pre-stop: it has not ended within 2 s"),
        "{log}"
    );
    assert!(!node.own(100).running, "the guest had the other half of the time");
}

#[tokio::test]
async fn a_script_is_set_by_root_alone_and_only_where_it_can_be_run() {
    let (node, path) = hooked().await;
    let set = async |by: &Actor, script: &str| {
        let set = BTreeMap::from([("hookscript".to_owned(), script.to_owned())]);
        let change = ConfigChange { set, ..ConfigChange::default() };
        node.ops.configure(by, vmid(100), change, Asked::default()).await.map_err(|e| e.to_string())
    };
    assert_eq!(set(&root(), SCRIPT).await, Ok(()));
    let mut other = root();
    other.root = false;
    assert!(set(&other, SCRIPT).await.unwrap_err().contains("only root can set 'hookscript'"));
    for (script, why) in [
        ("shared:snippets/none.sh", "does not exist"),
        ("plain:snippets/hook.sh", "storage 'plain' holds no snippets"),
        ("nowhere:snippets/hook.sh", "nowhere"),
        ("shared:100/vm-100-disk-0.raw", "STORAGE:snippets/FILE is expected"),
    ] {
        let e = set(&root(), script).await.unwrap_err();
        assert!(e.contains("hookscript") && e.contains(why), "{script}: {e}");
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(set(&root(), SCRIPT).await.unwrap_err().contains("not executable"));
}
