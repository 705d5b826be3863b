//! An operator's word that a lost node is off.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_conf::Txn;
use stead_model::{Epoch, NodeName, paths};
use stead_ops_testing::{Node, UUID, name, root, vmid};

const SHARED: &str = "name: web\nlock: migrate\nscsi0: shared:100/vm-100-disk-0.raw\n";

async fn say(node: &Node, target: Option<&str>) -> (String, String) {
    let target = target.map(name);
    let upid = node.ops.confirm_off(&root(), &name("n2"), target).await.unwrap();
    node.ended(&upid).await
}

#[tokio::test]
async fn guests_of_a_node_that_is_off_are_set_free() {
    let node = Node::of_three().await;
    node.record_guest(199, "n1", |_| {}, "name: here\n").await;
    node.record_guest(100, "n2", |o| o.running = true, SHARED).await;
    node.record_guest(101, "n2", |o| o.running = true, "scsi0: local:101/vm-101-disk-0.raw\n").await;
    node.record_guest(102, "n2", |o| o.running = true, "name: unguarded\n").await;
    node.record_guest(103, "n2", |o| (o.running, o.armed) = (true, true), "name: guarded\n").await;
    node.record_guest(104, "n2", |_| {}, "name: off\n").await;
    let ha = "vm: 102\n\tstate started\n\nvm: 103\n\tstate started\n\nvm: 104\n\tstate disabled\n";
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, ha)).await;

    let (status, log) = say(&node, None).await;
    assert_eq!(status, "WARNINGS: 1", "{log}");
    // Not under HA: stopped, elsewhere, under the next epoch, so that an old copy is destroyed.
    let web = node.own(100);
    assert_eq!(
        (web.owner.as_str(), web.epoch, web.running, web.recovered),
        ("n3", Epoch(8), false, false),
        "{log}"
    );
    let config = node.ops.guest_at(vmid(100)).unwrap().config.value;
    assert!(config.contains("name: web") && !config.contains("lock"), "{config}");
    // Its disks are nowhere else.
    assert_eq!((node.own(101).owner.as_str(), node.own(101).epoch), ("n2", Epoch(7)));
    assert!(
        log.contains("VM 101 stays with node 'n2': no other node has its disks: local:101/vm-101-disk-0.raw"),
        "{log}"
    );
    // HA waited, since it may have run without a guard; now the record says that it does not.
    let unguarded = node.own(102);
    assert_eq!((unguarded.owner.as_str(), unguarded.epoch, unguarded.running), ("n2", Epoch(8), false));
    // HA does it alone.
    assert_eq!((node.own(103).epoch, node.own(103).armed), (Epoch(7), true));
    // HA leaves the disabled alone.
    assert_eq!(node.own(104).owner.as_str(), "n1", "{log}");

    let said = node.ops.history(Some("stead/off/n2"), 10);
    assert!(said[0].author == "root@pam" && said[0].note.contains("is off"), "{said:?}");
}

/// What a dead task has left half done keeps its lock, whoever has the VM then.
#[tokio::test]
async fn a_vm_that_has_gone_back_half_way_stays_locked() {
    let node = Node::of_three().await;
    let config = |lock: &str| SHARED.replace("migrate", lock);
    node.record_guest(100, "n2", |o| o.running = true, &config("rollback")).await;
    node.record_guest(101, "n2", |o| o.running = true, &config("snapshot")).await;
    let (status, log) = say(&node, Some("n1")).await;
    assert_eq!(status, "OK", "{log}");
    let told = |n: u32| node.ops.guest_at(vmid(n)).unwrap().config.value;
    assert!(
        told(100).contains("lock: rollback") && !told(101).contains("lock"),
        "{} {}",
        told(100),
        told(101)
    );
}

/// It may run there.
#[tokio::test]
async fn what_was_given_to_another_cluster_stays_locked() {
    let node = Node::of_three().await;
    node.record_guest(100, "n2", |_| {}, SHARED).await;
    assert!(SHARED.contains("lock: migrate"));
    let (status, log) = say(&node, Some("n1")).await;
    assert_eq!((status.as_str(), node.own(100).owner.as_str()), ("OK", "n1"), "{log}");
    assert!(node.ops.guest_at(vmid(100)).unwrap().config.value.contains("lock: migrate"));
}

#[tokio::test]
async fn the_operator_may_say_where_to() {
    let node = Node::of_three().await;
    node.record_guest(100, "n2", |o| o.running = true, SHARED).await;
    let wrong = node.ops.confirm_off(&root(), &name("n2"), Some(name("n9"))).await.unwrap_err();
    assert_eq!(wrong.to_string(), "target: no such cluster node 'n9'");
    let (status, log) = say(&node, Some("n1")).await;
    assert_eq!((status.as_str(), node.own(100).owner.as_str()), ("OK", "n1"), "{log}");
    let (status, log) = say(&node, None).await;
    assert_eq!(status, "OK", "saying it again is no error: {log}");
}

#[tokio::test]
async fn a_node_that_lives_is_not_off_whatever_is_said() {
    let node = Node::of_three().await;
    let refused = |n: &str| {
        let (ops, n): (_, NodeName) = (node.ops.clone(), name(n));
        async move { ops.confirm_off(&root(), &n, None).await.unwrap_err().to_string() }
    };
    assert!(refused("n3").await.starts_with("node 'n3' is not lost"));
    assert!(refused("n1").await.starts_with("node 'n1' is not lost"));
    assert!(refused("n9").await.contains("no such cluster node 'n9'"));
    node.report_of("n2");
    assert!(refused("n2").await.starts_with("node 'n2' is not off: it has reported"));
}

#[tokio::test]
async fn the_word_is_gone_with_the_node() {
    let node = Node::of_three().await;
    say(&node, None).await;
    let word = |n: &Node| n.ops.conf.view(|t| t.get("stead/off/n2").is_some());
    assert!(word(&node));
    node.ops.remove_node(&root(), &name("n2")).await.unwrap();
    assert!(!word(&node));
    assert_eq!(node.ops.me.uuid.as_str(), UUID);
}
