//! Storages that a node can't use, as its probes find them and as the manager sees them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;
use stead_conf::Txn;
use stead_ha::{StorageFault, Use};
use stead_model::{StorageId, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::migrate::MigrateOptions;
use stead_ops::ha_view::{self, Known};
use stead_ops::storage_health::{Found, Health};
use stead_ops_testing::{Node, member, name, root, uuid, vmid};

#[tokio::test]
async fn what_a_probe_finds_reaches_the_manager_and_whoever_asks() {
    let node = Node::start().await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    let local: StorageId = "local".parse().unwrap();
    let fake = node.storage("local");
    let probed = async || {
        let found = node.ops.probe_storages().await;
        found.into_iter().find(|(id, _)| *id == local).unwrap()
    };
    assert!(matches!(probed().await.1, Found::Usable(_)));
    fake.set_away(Some("gone for lunch"));
    let found = probed().await;
    assert_eq!(found.1, Found::Inactive("gone for lunch".into()));

    let (storages, news) = Health::default().note(Duration::from_secs(100), vec![found]);
    assert_eq!(news, ["storage 'local' can't be used: gone for lunch"]);
    node.report_of("n2");
    let mut report = node.ops.status.node(&name("n2")).unwrap();
    (report.seq, report.storages) = (2, storages);
    let sent = serde_json::to_value(&report).unwrap();
    node.ops.take_report(&serde_json::from_value(sent).unwrap());

    node.record_guest(100, "n2", |_| {}, "scsi0: local:100/vm-100-disk-0.raw\n").await;
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, "vm: 100\n\tstate started\n")).await;
    let view = ha_view::view(&node.ops, &mut Known::default(), |_| false).unwrap();
    let lost = &view.nodes[&name("n2")].lost_storages;
    assert_eq!(lost[&local].fault, StorageFault::Inactive { why: "gone for lunch".into() });
    assert!(!view.storages[&local].shared);
    let service = view.services.values().next().unwrap();
    assert_eq!(*service.storages, [(local.clone(), Use::Disk)].into());
    let rows = node.ops.ha_status().unwrap();
    let row = rows.iter().find(|r| r["id"] == "lrm:n2").unwrap();
    assert_eq!(row["status"], "n2 (active, storage 'local' can't be used: gone for lunch)");
    let outlook = ha_view::now(&node.ops, &mut Known::default(), |_| false).unwrap();
    let said = stead_ha::Forecast::new(&outlook).any_one().to_string();
    assert!(said.ends_with("'n2' has lost storage 'local' (gone for lunch)"), "{said}");
}

#[tokio::test]
async fn a_stopped_vm_is_not_handed_over_while_its_storage_does_not_answer() {
    let node = Node::start().await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.report_of("n2");
    node.record_guest(100, "n1", |_| {}, "scsi0: local:100/vm-100-disk-0.raw\n").await;
    let local: StorageId = "local".parse().unwrap();
    let moved = async |seq: u64, found: Found| {
        let (storages, _) = Health::default().note(Duration::from_secs(100), vec![(local.clone(), found)]);
        node.report_of("n1");
        let mut report = node.ops.status.node(&name("n1")).unwrap();
        (report.seq, report.storages) = (seq, storages);
        node.ops.take_report(&report);
        let options = MigrateOptions::to(name("n2"), false);
        let task = node.ops.migrate(&root(), vmid(100), options, Asked::default()).await.unwrap();
        let (status, _) = node.ended(&task).await;
        status
    };
    let status = moved(2, Found::Silent(60)).await;
    assert!(
        status.contains("can't hand VM 100 over: storage 'local' does not answer on this node"),
        "{status}"
    );
    // What stands in its way then is another thing.
    let status = moved(3, Found::Inactive("gone".into())).await;
    assert!(status.contains("volume 'local:100/vm-100-disk-0.raw' does not exist"), "{status}");
}
