//! Resource mappings: how they are made, and what is wrong with them on a node.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_driver::hardware::{Hardware, PciDevice, UsbDevice};
use stead_model::MappingKind;
use stead_ops::Actor;
use stead_ops::mapping::{MappingOptions, Severity};
use stead_ops_testing::{Node, name, root};

fn given(map: &[&str]) -> MappingOptions {
    MappingOptions { map: map.iter().map(|m| (*m).to_owned()).collect(), ..MappingOptions::default() }
}

/// A card at 01:00.0, and a stick at 1-2.
fn hardware(group: Option<u32>) -> Hardware {
    Hardware {
        pci: vec![PciDevice {
            address: "0000:01:00.0".into(),
            vendor: "10de".into(),
            device: "2204".into(),
            subsystem_vendor: Some("1458".into()),
            subsystem_device: Some("403b".into()),
            iommu_group: group,
            ..PciDevice::default()
        }],
        usb: vec![UsbDevice {
            bus: 1,
            ports: Some("2".into()),
            vendor: "046d".into(),
            product: "c52b".into(),
            ..UsbDevice::default()
        }],
    }
}

async fn wrong(node: &Node, kind: MappingKind, id: &str) -> Vec<String> {
    let n1 = name("n1");
    let all = node.ops.mappings(&root(), kind, Some(&n1)).await.unwrap();
    let found = all.into_iter().find(|m| m.id == id).unwrap();
    let faults = found.checks.or(found.error).unwrap();
    faults.into_iter().map(|f| f.message).collect()
}

#[tokio::test]
async fn a_mapping_is_made_changed_and_removed() {
    let node = Node::start().await;
    let (by, kind) = (root(), MappingKind::Pci);
    let gpu = ["node=n1,path=0000:01:00.0,id=10de:2204", "node=n2,path=0000:02:00,id=10de:2204"];
    node.ops.mapping_add(&by, kind, "gpu", given(&gpu)).await.unwrap();
    let again = node.ops.mapping_add(&by, kind, "gpu", given(&gpu)).await.unwrap_err().to_string();
    assert_eq!(again, "id: pci mapping 'gpu' already exists");
    let first = node.ops.mapping_view(kind, "gpu").unwrap();
    assert_eq!(first.map[0], "id=10de:2204,node=n1,path=0000:01:00.0");
    let change =
        MappingOptions { mdev: Some(true), description: Some("fast".into()), ..MappingOptions::default() };
    node.ops.mapping_change(&by, kind, "gpu", change.clone(), &[], Some(&first.digest)).await.unwrap();
    let late = node.ops.mapping_change(&by, kind, "gpu", change, &[], Some(&first.digest)).await.unwrap_err();
    assert!(late.to_string().contains("modified"), "{late}");
    let now = node.ops.mapping_view(kind, "gpu").unwrap();
    assert_eq!((now.mdev, now.description.as_deref(), now.map.len()), (Some(1), Some("fast"), 2));
    let out = ["mdev".to_owned(), "description".to_owned()];
    node.ops.mapping_change(&by, kind, "gpu", given(&gpu[..1]), &out, None).await.unwrap();
    let now = node.ops.mapping_view(kind, "gpu").unwrap();
    assert_eq!((now.mdev, now.description, now.map.len()), (None, None, 1));
    let no = node.ops.mapping_change(&by, kind, "gpu", given(&[]), &["map".into()], None).await.unwrap_err();
    assert!(no.to_string().starts_with("delete: "), "{no}");
    for (id, map, why) in [
        ("x", gpu[0], "id: a name"),
        ("two", "node=n1,path=0000:01:00.0", "map: 'id' is missing"),
        ("two", "node=n1,path=1:0.0,id=10de:2204", "map: path"),
    ] {
        let e = node.ops.mapping_add(&by, kind, id, given(&[map])).await.unwrap_err().to_string();
        assert!(e.starts_with(why), "{e}");
    }
    node.ops.mapping_remove(&by, kind, "gpu").await.unwrap();
    let gone = node.ops.mapping_view(kind, "gpu").unwrap_err().to_string();
    assert_eq!(gone, "pci mapping 'gpu' does not exist");
}

#[tokio::test]
async fn who_has_no_privilege_on_a_mapping_does_not_see_it() {
    let node = Node::start().await;
    for id in ["mine", "yours"] {
        node.ops.mapping_add(&root(), MappingKind::Dir, id, given(&["node=n1,path=/tmp"])).await.unwrap();
    }
    let allows = |path: &str, what: &str| path == "/mapping/dir/mine" && what == "Mapping.Use";
    let user = Actor::new("u@pve", false, std::sync::Arc::new(allows));
    let seen = node.ops.mappings(&user, MappingKind::Dir, None).await.unwrap();
    assert_eq!(seen.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["mine"]);
}

#[tokio::test]
async fn what_a_node_does_not_have_is_said() {
    let node = Node::start().await;
    let add = async |kind, id: &str, map: &str| {
        node.ops.mapping_add(&root(), kind, id, given(&[map])).await.unwrap();
    };
    use MappingKind::{Dir, Pci, Usb};
    add(Pci, "gpu", "node=n1,path=0000:01:00,id=10de:2204,iommugroup=14,subsystem-id=1458:403b").await;
    add(Pci, "other", "node=n1,path=0000:01:00.0,id=10de:ffff").await;
    add(Pci, "far", "node=n2,path=0000:01:00.0,id=10de:2204").await;
    add(Usb, "stick", "node=n1,path=1-2,id=046d:c52b").await;
    add(Usb, "roaming", "node=n1,id=046d:0001").await;
    add(Dir, "tmp", "node=n1,path=/tmp").await;
    add(Dir, "none", "node=n1,path=/no/such/place").await;
    node.machines.set_hardware("n1", hardware(Some(14)));
    assert_eq!(wrong(&node, Pci, "gpu").await, [""; 0]);
    assert_eq!(wrong(&node, Pci, "other").await, ["the PCI device 0000:01:00.0 is 10de:2204, not 10de:ffff"]);
    assert_eq!(wrong(&node, Pci, "far").await, ["it has nothing for node 'n1'"]);
    assert_eq!(wrong(&node, Usb, "stick").await, [""; 0]);
    assert_eq!(wrong(&node, Usb, "roaming").await, ["no USB device 046d:0001 is plugged in"]);
    assert_eq!(wrong(&node, Dir, "tmp").await, [""; 0]);
    assert!(wrong(&node, Dir, "none").await[0].contains("/no/such/place"));
    node.machines.set_hardware("n1", hardware(None));
    assert!(wrong(&node, Pci, "gpu").await[0].contains("no IOMMU group"));
    node.machines.set_hardware("n1", Hardware::default());
    assert_eq!(wrong(&node, Usb, "stick").await, ["no USB device is plugged in at 1-2"]);
    let severities = node.ops.mapping_faults("pci".into()).await.unwrap();
    assert_eq!(severities["far"][0].severity, Severity::Warning);
    assert_eq!(severities["gpu"][0].severity, Severity::Error);
    let away = node.ops.mappings(&root(), Pci, Some(&name("n2"))).await.unwrap_err().to_string();
    assert!(away.contains("n2"), "{away}");
}
