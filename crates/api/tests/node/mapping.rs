//! Resource mappings and a node's devices over the API.

use crate::bed::Node;
use serde_json::{Value, json};
use stead_driver::hardware::{Hardware, MdevType, PciDevice, UsbDevice};

const USERS: &str = "user:mapper@pve:1:0:::::\nuser:user@pve:1:0:::::\n\
    acl:1:/mapping/usb:mapper@pve:PVEMappingAdmin:\nacl:1:/mapping/usb/key:user@pve:PVEMappingUser:\n";
const ALL: [&str; 3] = ["root@pam", "mapper@pve", "user@pve"];

fn hardware() -> Hardware {
    let mdev = MdevType {
        kind: "nvidia-63".into(),
        name: Some("GRID".into()),
        description: "small".into(),
        available: 3,
    };
    let card = PciDevice {
        address: "0000:01:00.0".into(),
        class: "030000".into(),
        vendor: "10de".into(),
        device: "2204".into(),
        iommu_group: Some(14),
        mdevs: vec![mdev],
        ..PciDevice::default()
    };
    let bridge = PciDevice { address: "0000:00:01.0".into(), class: "060400".into(), ..PciDevice::default() };
    let stick = UsbDevice {
        bus: 1,
        number: 7,
        ports: Some("2.3".into()),
        class: 8,
        speed: "480".into(),
        vendor: "046d".into(),
        product: "c52b".into(),
        product_name: Some("Stick".into()),
        ..UsbDevice::default()
    };
    Hardware { pci: vec![bridge, card], usb: vec![stick] }
}

#[tokio::test]
async fn a_mapping_is_made_seen_used_and_removed_by_who_may() {
    let node = Node::start(USERS, &ALL).await;
    let (root, mapper) = (node.sign_in("root@pam").await, node.sign_in("mapper@pve").await);
    let user = node.sign_in("user@pve").await;
    let usb = "/cluster/mapping/usb";
    let form = "id=key&map=node%3Dn1%2Cid%3D046d%3Ac52b&description=a+key";
    assert_eq!(
        node.ask(&user, "POST", usb, form).await.line,
        "403 Permission check failed (/mapping/usb, Mapping.Modify)"
    );
    assert_eq!(node.ask(&mapper, "POST", usb, form).await.data(), Value::Null);
    node.below.machines.set_hardware("n1", Hardware::default());
    let listed = node.ask(&user, "GET", &format!("{usb}?check-node=n1"), "").await.data();
    assert_eq!(listed[0]["map"], json!(["id=046d:c52b,node=n1"]));
    assert_eq!(listed[0]["error"][0]["message"], "no USB device 046d:c52b is plugged in");
    let read = node.ask(&user, "GET", &format!("{usb}/key"), "").await.data();
    assert_eq!((&read["id"], &read["description"]), (&json!("key"), &json!("a key")));
    let change = format!(
        "map=node%3Dn1%2Cid%3D046d%3Ac52b%2Cpath%3D1-2.3&digest={}",
        read["digest"].as_str().unwrap()
    );
    assert!(node.ask(&user, "PUT", &format!("{usb}/key"), &change).await.line.starts_with("403"));
    assert_eq!(node.ask(&mapper, "PUT", &format!("{usb}/key"), &change).await.data(), Value::Null);
    node.below.machines.set_hardware("n1", hardware());
    let listed = node.ask(&root, "GET", &format!("{usb}?check-node=n1"), "").await.data();
    assert_eq!(listed[0]["error"], json!([]));
    let wrong = node.ask(&mapper, "POST", usb, "id=two&map=node%3Dn1").await;
    assert!(wrong.body["errors"]["map"].as_str().unwrap().contains("'id' is missing"), "{wrong:?}");
    assert_eq!(node.ask(&mapper, "DELETE", &format!("{usb}/key"), "").await.data(), Value::Null);
    assert!(node.ask(&root, "GET", &format!("{usb}/key"), "").await.line.contains("does not exist"));
    let kinds = node.ask(&user, "GET", "/cluster/mapping", "").await.data();
    assert_eq!(kinds, json!([{"name": "dir"}, {"name": "pci"}, {"name": "usb"}]));
}

#[tokio::test]
async fn a_nodes_devices_are_listed() {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    node.below.machines.set_hardware("n1", hardware());
    let pci = node.ask(&root, "GET", "/nodes/n1/hardware/pci", "").await.data();
    assert_eq!(pci.as_array().unwrap().len(), 1, "bridges are left out");
    assert_eq!(
        (&pci[0]["vendor"], &pci[0]["iommugroup"], &pci[0]["mdev"]),
        (&json!("0x10de"), &json!(14), &json!(1))
    );
    let all =
        node.ask(&root, "GET", "/nodes/n1/hardware/pci?pci-class-blacklist=&verbose=0", "").await.data();
    assert_eq!(all, json!([{"id": "0000:00:01.0"}, {"id": "0000:01:00.0"}]));
    let below = node.ask(&root, "GET", "/nodes/n1/hardware/pci/0000:01:00.0", "").await.data();
    assert_eq!(below, json!([{"method": "mdev"}]));
    let form = "id=gpu&mdev=1&map=node%3Dn1%2Cid%3D10de%3A2204%2Cpath%3D0000%3A01%3A00.0";
    node.ask(&root, "POST", "/cluster/mapping/pci", form).await.data();
    for device in ["0000:01:00.0", "gpu"] {
        let kinds = node.ask(&root, "GET", &format!("/nodes/n1/hardware/pci/{device}/mdev"), "").await.data();
        assert_eq!(
            kinds,
            json!([{"type": "nvidia-63", "name": "GRID", "description": "small", "available": 3}])
        );
    }
    let usb = node.ask(&root, "GET", "/nodes/n1/hardware/usb", "").await.data();
    let stick = &usb[0];
    assert_eq!((&stick["usbpath"], &stick["level"], &stick["port"]), (&json!("2.3"), &json!(2), &json!(2)));
}
