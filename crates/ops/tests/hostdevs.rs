//! Devices of the host: what their names become where a VM starts, who may give them, and what they say against a move.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use stead_conf::Txn;
use stead_driver::hardware::{Hardware, PciDevice, UsbDevice};
use stead_model::MappingKind;
use stead_ops::Actor;
use stead_ops::guest::Asked;
use stead_ops::guest::config::ConfigChange;
use stead_ops::mapping::MappingOptions;
use stead_ops_testing::{Node, root, vmid};

fn map(options: &[(&str, &str)]) -> BTreeMap<String, String> {
    options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn hardware() -> Hardware {
    let card = |address: &str| PciDevice {
        address: address.into(),
        vendor: "10de".into(),
        device: "2204".into(),
        iommu_group: Some(1),
        ..PciDevice::default()
    };
    let stick = UsbDevice {
        bus: 1,
        ports: Some("2".into()),
        vendor: "046d".into(),
        product: "c52b".into(),
        ..UsbDevice::default()
    };
    Hardware { pci: vec![card("0000:01:00.0"), card("0000:02:00.0")], usb: vec![stick] }
}

async fn mapping(node: &Node, kind: MappingKind, id: &str, entries: &[&str], live: bool) {
    let given = MappingOptions {
        map: entries.iter().map(|e| (*e).to_owned()).collect(),
        live_migration: live.then_some(true),
        ..MappingOptions::default()
    };
    node.ops.mapping_add(&root(), kind, id, given).await.unwrap();
}

async fn node_with(options: &[(&str, &str)]) -> Node {
    let node = Node::of_three().await;
    node.machines.set_hardware("n1", hardware());
    mapping(&node, MappingKind::Usb, "key", &["node=n1,id=046d:c52b,path=1-2"], false).await;
    mapping(&node, MappingKind::Usb, "any", &["node=n1,id=046d:c52b"], false).await;
    let cards = ["node=n1,id=10de:2204,path=0000:01:00.0", "node=n1,id=10de:2204,path=0000:02:00"];
    mapping(&node, MappingKind::Pci, "gpu", &cards, false).await;
    mapping(&node, MappingKind::Pci, "vf", &["node=n1,id=10de:2204,path=0000:02:00.0"], true).await;
    mapping(&node, MappingKind::Pci, "far", &["node=n3,id=10de:2204,path=0000:02:00.0"], false).await;
    let upid = node.ops.create_vm(&root(), vmid(100), &map(options), false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    node
}

async fn start(node: &Node) -> String {
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    node.ended(&upid).await.0
}

async fn change(node: &Node, set: &[(&str, &str)], delete: &[&str]) -> String {
    let delete = delete.iter().map(|key| (*key).to_owned()).collect();
    let change = ConfigChange { set: map(set), delete, ..ConfigChange::default() };
    let upid = node.ops.configure_task(&root(), vmid(100), change, Asked::default()).await.unwrap();
    node.ended(&upid).await.0
}

#[tokio::test]
async fn a_name_becomes_what_the_node_has() {
    let node =
        node_with(&[("usb0", "mapping=key"), ("usb1", "mapping=any"), ("hostpci0", "mapping=gpu,pcie=1")])
            .await;
    assert_eq!(start(&node).await, "OK");
    let told = node.machines.config("n1", vmid(100)).unwrap();
    for line in
        ["usb0: host=1-2\n", "usb1: host=046d:c52b\n", "hostpci0: pcie=1,host=0000:01:00.0|0000:02:00\n"]
    {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    let stored = node.ops.guest_at(vmid(100)).unwrap().config.value;
    assert!(
        stored.contains("usb0: mapping=key\n") && stored.contains("hostpci0: mapping=gpu,pcie=1\n"),
        "{stored}"
    );
}

#[tokio::test]
async fn a_name_that_means_nothing_here_stops_a_start() {
    let node = node_with(&[("hostpci3", "mapping=far")]).await;
    assert_eq!(start(&node).await, "hostpci3: pci mapping 'far' has nothing for node 'n1'");
    assert_eq!(change(&node, &[("hostpci3", "mapping=nosuch")], &[]).await, "OK");
    assert_eq!(start(&node).await, "hostpci3: pci mapping 'nosuch' does not exist");
    assert_eq!(change(&node, &[("usb0", "mapping=key")], &["hostpci3"]).await, "OK");
    node.machines.set_hardware("n1", Hardware::default());
    assert_eq!(start(&node).await, "usb0: usb mapping 'key': no USB device is plugged in at 1-2");
}

#[tokio::test]
async fn a_usb_device_comes_and_goes_while_the_vm_runs() {
    let node = node_with(&[]).await;
    assert_eq!(start(&node).await, "OK");
    assert_eq!(change(&node, &[("usb3", "mapping=key")], &[]).await, "OK");
    let has = async || node.ops.guests.inventory(vmid(100)).await.unwrap().devices.contains("usb3");
    assert!(has().await);
    let stored =
        || stead_model::VmConfig::parse(&node.ops.guest_at(vmid(100)).unwrap().config.value).unwrap();
    assert!(stored().pending.is_empty() && stored().current.get("usb3") == Some("mapping=key"));
    // What the name means now counts for nothing when the device goes.
    node.machines.set_hardware("n1", Hardware::default());
    assert_eq!(change(&node, &[], &["usb3"]).await, "OK");
    assert!(!has().await && stored().current.get("usb3").is_none());
    let failed = change(&node, &[("usb4", "mapping=key")], &[]).await;
    assert!(failed.contains("which is pending") && failed.contains("no USB device"), "{failed}");
    assert_eq!(change(&node, &[("hostpci0", "mapping=gpu")], &[]).await, "OK");
    assert_eq!(stored().pending.set.get("hostpci0"), Some("mapping=gpu"), "with its next start");
}

#[tokio::test]
async fn devices_are_given_by_root_or_by_who_may_use_their_names() {
    let node = node_with(&[]).await;
    let allows = |path: &str, what: &str| {
        (path == "/vms/100" && what == "VM.Config.HWType")
            || (path == "/mapping/usb/key" && what == "Mapping.Use")
    };
    let user = Actor::new("u@pve", false, Arc::new(allows));
    let ask = async |key: &str, value: &str| {
        let change = ConfigChange { set: map(&[(key, value)]), ..ConfigChange::default() };
        match node.ops.configure(&user, vmid(100), change, Asked::default()).await {
            Ok(()) => String::new(),
            Err(e) => e.to_string(),
        }
    };
    assert_eq!(ask("usb0", "mapping=key").await, "");
    let not = "Permission check failed (/mapping/usb/any, Mapping.Use)";
    assert_eq!(ask("usb1", "mapping=any").await, not);
    assert!(ask("hostpci0", "mapping=gpu").await.contains("/mapping/pci/gpu"));
    for (key, value) in
        [("usb2", "046d:c52b"), ("usb2", "host=1-2"), ("hostpci0", "01:00"), ("ivshmem", "size=4")]
    {
        let why = ask(key, value).await;
        assert!(why.contains(&format!("only root can set '{key}'")), "{why}");
    }
    // What root has given, root takes away.
    assert_eq!(change(&node, &[("usb2", "host=1-2")], &[]).await, "OK");
    let put = ask("usb2", "mapping=key").await;
    assert!(put.contains("only root can change 'usb2' for real devices"), "{put}");
    let gone = ConfigChange { delete: vec!["usb2".into()], ..ConfigChange::default() };
    let gone = node.ops.configure(&user, vmid(100), gone, Asked::default()).await.unwrap_err().to_string();
    assert!(gone.contains("only root can change 'usb2'"), "{gone}");
}

#[tokio::test]
async fn what_a_vm_has_of_its_host_speaks_against_a_move() {
    let node = node_with(&[
        ("usb0", "host=1-2"),
        ("usb1", "mapping=any"),
        ("hostpci0", "mapping=gpu"),
        ("hostpci1", "mapping=vf"),
        ("ivshmem", "size=4"),
    ])
    .await;
    let why = async || {
        let found = node.ops.migrate_preconditions(vmid(100)).await.unwrap();
        let of_n3 = found.not_allowed.into_iter().find(|(n, _)| n.as_str() == "n3").unwrap().1;
        (of_n3, found.local_resources, found.mapped_resources)
    };
    let (stopped, local, mapped) = why().await;
    let mine: Vec<_> = stopped.iter().filter(|w| !w.contains("n3")).collect();
    assert_eq!(mine, ["usb0 is a device of node 'n1'"], "of what is mapped the target knows");
    assert_eq!(local, ["usb0", "ivshmem"]);
    let names: Vec<_> = mapped.iter().map(|(key, id)| format!("{key}={id}")).collect();
    assert_eq!(names, ["usb1=any", "hostpci0=gpu", "hostpci1=vf"]);
    assert_eq!(start(&node).await, "OK");
    let (running, ..) = why().await;
    let said = running.join("\n");
    for part in [
        "usb0 is",
        "usb1 (usb mapping 'any')",
        "hostpci0 (pci mapping 'gpu')",
        "live-migration-capable",
        "ivshmem is",
    ] {
        assert!(said.contains(part), "{part} in\n{said}");
    }
    assert!(!said.contains("hostpci1"), "{said}");
}

/// On the node that recovers it, what has that address is another device.
#[tokio::test]
async fn a_recovered_vm_takes_no_device_by_its_address() {
    let node = node_with(&[("hostpci0", "01:00.0")]).await;
    let own = stead_model::Ownership { recovered: true, ..node.own(100) };
    let record = stead_ops::store::bytes(&own).unwrap();
    node.commit(Txn::new("test").put(stead_model::paths::ownership(vmid(100)), record)).await;
    let why = start(&node).await;
    assert!(why.contains("was recovered from another node, whose device hostpci0 is"), "{why}");
    assert_eq!(change(&node, &[], &["hostpci0"]).await, "OK");
    assert_eq!(start(&node).await, "OK");
}

#[tokio::test]
async fn a_device_that_is_given_away_in_parts_is_not_taken_whole() {
    let node = node_with(&[("hostpci0", "mapping=gpu")]).await;
    let parts = MappingOptions { mdev: Some(true), ..MappingOptions::default() };
    node.ops.mapping_change(&root(), MappingKind::Pci, "gpu", parts, &[], None).await.unwrap();
    assert_eq!(start(&node).await, "hostpci0: 'gpu' is given away in parts: say which (mdev=TYPE)");
    assert_eq!(change(&node, &[("hostpci0", "mapping=gpu,mdev=nvidia-63")], &[]).await, "OK");
    assert_eq!(start(&node).await, "OK");
}

#[tokio::test]
async fn a_snapshot_gives_back_what_its_user_may_have() {
    let node = node_with(&[("hostpci0", "mapping=gpu")]).await;
    let upid = node.ops.take_snapshot(&root(), vmid(100), "one", "", false).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert_eq!(change(&node, &[], &["hostpci0"]).await, "OK");
    let user = Actor::new("u@pve", false, Arc::new(|path: &str, _: &str| !path.starts_with("/mapping/")));
    let refused = node.ops.roll_back(&user, vmid(100), "one", false).await.unwrap_err().to_string();
    assert_eq!(refused, "Permission check failed (/mapping/pci/gpu, Mapping.Use)");
    let upid = node.ops.roll_back(&root(), vmid(100), "one", false).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}
