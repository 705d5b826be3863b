//! Clones, templates and moves of disks.

use super::Fake;
use serde_json::Value;

#[tokio::test]
async fn vms_are_cloned_and_their_disks_moved() {
    const VM: &str = "/nodes/pve1/qemu/100";
    let all = ["clone", "template", "move_disk"].map(|below| format!("POST {VM}/{below}"));
    let fake = Fake::new(&all.each_ref().map(|call| (call.as_str(), Value::Null))).await;
    for words in [
        "stead vm clone 100 101 --name web2 --full --storage nfs",
        "stead vm template 100 --yes",
        "stead vm move-disk 100 scsi0 nfs --format qcow2 --delete",
        "stead vm reassign 100 scsi1 101 --target-disk scsi2",
        "qm clone 100 101 --snapname s1",
        "qm template 100",
        "qm disk move 100 scsi0 nfs --delete",
        "qm disk reassign 100 scsi1 --target-vmid 101",
        "qm move_disk 100 scsi0 nfs",
    ] {
        let ended = fake.run(&words.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(ended.code, 0, "{words}: {ended:?}");
    }
    let asked = fake.run(&["stead", "vm", "template", "100"]).await;
    assert!(asked.code == 2 && asked.err.contains("give --yes"), "{asked:?}");
    let [clone, template, moves] = &all;
    assert_eq!(
        fake.changes(),
        [
            format!("{clone} name=web2&full=1&storage=nfs&newid=101"),
            template.clone(),
            format!("{moves} storage=nfs&format=qcow2&delete=1&disk=scsi0"),
            format!("{moves} target-vmid=101&target-disk=scsi2&disk=scsi1"),
            format!("{clone} snapname=s1&newid=101"),
            template.clone(),
            format!("{moves} delete=1&storage=nfs&disk=scsi0"),
            format!("{moves} target-vmid=101&disk=scsi1"),
            format!("{moves} storage=nfs&disk=scsi0"),
        ]
    );
}

#[tokio::test]
async fn images_become_disks() {
    const VM: &str = "/nodes/pve1/qemu/100";
    let fake = Fake::new(&[
        (&format!("GET {VM}/config"), serde_json::json!({"scsi0": "local:100/vm-100-disk-0.raw"})),
        (&format!("POST {VM}/config"), Value::Null),
        (&format!("PUT {VM}/unlink"), Value::Null),
    ])
    .await;
    for words in [
        "stead vm import 100 nas:import/x.qcow2 local --format qcow2",
        "stead vm import 100 nas:import/x.ova/d.vmdk local --disk sata0",
        "qm disk import 100 nas:import/x.raw local --target-disk scsi3",
        "qm importdisk 100 nas:import/x.raw local",
    ] {
        let ended = fake.run(&words.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(ended.code, 0, "{words}: {ended:?}");
    }
    let sent: Vec<String> =
        fake.changes().iter().map(|c| c.replace("%3A", ":").replace("%2F", "/")).collect();
    assert_eq!(sent.len(), 5, "{sent:?}");
    assert!(sent[0].contains("scsi1=local:0") && sent[0].contains("x.qcow2"), "{sent:?}");
    assert!(sent[1].contains("sata0=local:0") && sent[2].contains("scsi3=local:0"), "{sent:?}");
    assert!(sent[4].contains("unlink idlist=scsi1"), "{sent:?}");
}
