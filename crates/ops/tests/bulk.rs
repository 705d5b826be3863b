//! Many guests at once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use stead_conf::Txn;
use stead_driver::guest::RunState;
use stead_model::{Upid, paths};
use stead_ops::bulk::{Act, Bulk, Which, Work};
use stead_ops::{Actor, OpsError};
use stead_ops_testing::{Node, member, name, root, uuid, vmid};

const START: Work = Work::Start { timeout: None };

fn bulk(work: Work, which: Which) -> Bulk {
    Bulk { worker: "test", work, which: Which { here: true, ..which }, workers: None }
}

async fn all(node: &Node, actor: &Actor, work: Work) -> (String, Vec<String>) {
    did(node, node.ops.bulk(actor, bulk(work, Which::default()))).await
}

async fn did(node: &Node, upid: Result<Upid, OpsError>) -> (String, Vec<String>) {
    let (status, log) = node.ended(&upid.unwrap()).await;
    // Without the line that every task ends with.
    (status, log.lines().filter(|l| !l.starts_with("TASK ")).map(str::to_owned).collect())
}

/// The guests of the log's lines that say that something was begun.
fn begun(log: &[String]) -> Vec<u32> {
    let of = |l: &String| l.strip_prefix("VM ")?.split_once(" on node ")?.0.parse().ok();
    log.iter().filter_map(of).collect()
}

fn runs(node: &Node, n: u32) -> bool {
    node.machines.state("n1", vmid(n)).is_some()
}

/// 100 to 103 of n1, in the order 101, 103, 100, 102.
async fn four() -> Node {
    let node = Node::start().await;
    for (n, config) in [
        (100, "onboot: 1\nstartup: order=2\n"),
        (101, "onboot: 1\nstartup: order=1\n"),
        (102, "name: last\n"),
        (103, "onboot: 1\nstartup: order=1\n"),
    ] {
        node.record_guest(n, "n1", |_| {}, config).await;
    }
    node
}

#[tokio::test]
async fn guests_start_in_their_order_and_stop_the_other_way_round() {
    let node = four().await;
    let which = Which { onboot: true, ..Which::default() };
    let (status, log) = did(&node, node.ops.bulk(&root(), bulk(START, which))).await;
    assert_eq!((status.as_str(), begun(&log)), ("OK", vec![101, 103, 100]), "{log:?}");
    assert_eq!(log.last().unwrap(), "3 of 3 guests: done");
    assert!(!runs(&node, 102), "it does not start with its node");
    let (status, log) = all(&node, &root(), START).await;
    assert_eq!((status.as_str(), begun(&log)), ("OK", vec![102]), "{log:?}");
    let (status, log) = all(&node, &root(), START).await;
    assert_eq!((status.as_str(), log), ("OK", vec!["there is no guest to start".to_owned()]));

    let one_by_one = Bulk { workers: Some(1), ..bulk(Work::Suspend, Which::default()) };
    let (status, log) = did(&node, node.ops.bulk(&root(), one_by_one.clone())).await;
    assert_eq!((status.as_str(), begun(&log)), ("OK", vec![102, 100, 101, 103]), "{log:?}");
    assert_eq!(node.machines.state("n1", vmid(100)), Some(RunState::Paused));
    let work = Work::Shutdown { timeout: 5, force: true };
    let (status, log) = did(&node, node.ops.bulk(&root(), Bulk { work, ..one_by_one })).await;
    assert_eq!((status.as_str(), begun(&log)), ("OK", vec![102, 100, 101, 103]), "{log:?}");
    assert!((100..104).all(|n| !runs(&node, n)));
}

#[tokio::test]
async fn what_fails_for_one_guest_does_not_stop_the_others() {
    let node = four().await;
    node.record_guest(104, "n1", |_| {}, "lock: backup\nstartup: order=1\n").await;
    let (status, log) = all(&node, &root(), START).await;
    assert_eq!(status, "WARNINGS: 1", "{log:?}");
    assert!(log.contains(&"WARN: VM 104: could not start it: VM is locked (backup)".to_owned()), "{log:?}");
    assert!((100..104).all(|n| runs(&node, n)));
    for n in [100, 101] {
        node.machines.set_state("n1", vmid(n), RunState::Paused);
    }
    let only = |vms: &[u32]| Which { vms: vms.iter().map(|n| vmid(*n)).collect(), ..Which::default() };
    let gently = Work::Shutdown { timeout: 5, force: false };
    let (status, log) = did(&node, node.ops.bulk(&root(), bulk(gently, only(&[100, 101, 777])))).await;
    assert_eq!(status, "could not shut down any of these guests: 100, 101", "{log:?}");
    assert!(log.contains(&"VM 777 is left alone: there is nothing to shut down here".to_owned()), "{log:?}");
    assert!(runs(&node, 102) && runs(&node, 103), "they were not meant");
}

#[tokio::test]
async fn it_is_done_with_the_guests_that_the_actor_may_touch() {
    let node = four().await;
    let allows = |path: &str, privilege: &str| path == "/vms/101" && privilege == "VM.PowerMgmt";
    let someone = Actor::new("someone@pve", false, Arc::new(allows));
    let (status, log) = all(&node, &someone, START).await;
    assert_eq!((status.as_str(), begun(&log)), ("OK", vec![101]), "{log:?}");
    let (_, log) = all(&node, &someone, Work::Suspend).await;
    assert_eq!(begun(&log), [101]);
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.report_of("n2");
    let move_all = Work::Migrate { target: name("n2"), online: None, with_local_disks: false };
    let (_, log) = all(&node, &someone, move_all).await;
    assert_eq!(log, ["there is no guest to migrate"], "that needs another privilege");
}

#[tokio::test]
async fn who_stops_the_task_stops_what_is_under_way_and_nothing_more_is_begun() {
    let node = Node::start().await;
    node.record_guest(100, "n1", |_| {}, "startup: order=1,up=3600\n").await;
    node.record_guest(101, "n1", |_| {}, "startup: order=2\n").await;
    let upid = node.ops.bulk(&root(), bulk(START, Which::default())).unwrap();
    let mut tasks = node.ops.tasks.events();
    // The delay after the first has begun once its own task has ended.
    let first = async {
        loop {
            if let stead_tasks::TaskEvent::Ended(t) = tasks.recv().await.unwrap()
                && t.upid.worker == "qmstart"
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), first).await.unwrap();
    node.ops.tasks.stop(&upid);
    let (status, log) = node.ended(&upid).await;
    assert_eq!(status, "interrupted by signal", "{log}");
    assert!(runs(&node, 100) && !runs(&node, 101), "{log}");
}

#[tokio::test]
async fn guests_under_ha_go_through_ha_and_those_elsewhere_through_their_node() {
    let node = Node::start().await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.report_of("n2");
    node.record_guest(100, "n1", |_| {}, "name: ha\n").await;
    node.record_guest(101, "n2", |_| {}, "name: away\n").await;
    node.record_guest(102, "n1", |_| {}, "name: here\n").await;
    let txn = Txn::new("test").put(paths::HA_RESOURCES, "vm: 100\n\tstate stopped\n");
    node.commit(txn).await;
    let target = Work::Migrate { target: name("n2"), online: None, with_local_disks: false };
    let vms = BTreeSet::from([vmid(100)]);
    let (status, log) =
        did(&node, node.ops.bulk(&root(), bulk(target.clone(), Which { vms, ..Which::default() }))).await;
    assert_eq!(status, "OK", "{log:?}");
    let asked = node.ops.conf.view(|t| t.get("ha/crm_commands/100").is_some());
    assert!(asked, "the manager moves it: {log:?}");
    // Of the whole cluster: n2 does not answer in this test, and n1 goes on.
    let which = Which { vms: [vmid(101), vmid(102)].into(), ..Which::default() };
    let everywhere = Bulk { worker: "bulkstart", work: START, which, workers: Some(2) };
    let (status, log) = did(&node, node.ops.bulk(&root(), everywhere)).await;
    assert_eq!(status, "WARNINGS: 1", "{log:?}");
    assert!(
        log.iter().any(|l| l.contains("VM 101: could not start it: node 'n2' cannot be reached")),
        "{log:?}"
    );
    assert!(runs(&node, 102));
    // What n2 would do when it is asked.
    let act = Act { who: "someone@pve".into(), vmid: vmid(102), work: Work::Suspend };
    let upid = node.ops.act_for(&act).await.unwrap();
    assert_eq!(upid.user, "someone@pve");
    assert_eq!(node.ops.wait_a_little(&upid).await.unwrap().as_deref(), Some("OK"));
    assert!(node.ops.act_for(&Act { vmid: vmid(999), ..act }).await.is_err());
}

#[tokio::test]
async fn a_target_that_can_t_be_one_is_refused_at_once() {
    let node = four().await;
    let refused = |target: &str| {
        let work = Work::Migrate { target: name(target), online: None, with_local_disks: false };
        node.ops.bulk(&root(), bulk(work, Which::default())).unwrap_err().to_string()
    };
    assert_eq!(refused("n1"), "target: target is local node.");
    assert_eq!(refused("n9"), "target: no such cluster node 'n9'");
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    assert_eq!(refused("n2"), "target node 'n2' is not online");
}

#[tokio::test]
async fn what_starts_with_its_node_is_known_but_for_those_under_ha() {
    let node = four().await;
    node.record_guest(104, "n1", |_| {}, "onboot: 1\nstartup: order=1,up=30\n").await;
    node.record_guest(105, "n1", |o| o.running = true, "onboot: 1\n").await;
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, "vm: 101\n\tstate stopped\n")).await;
    let starting = node.ops.starting_with_node().await;
    let told: Vec<_> = starting.iter().map(|(vmid, wait)| (vmid.get(), wait.as_secs())).collect();
    assert_eq!(told, [(103, 0), (104, 30), (100, 0)]);
}
