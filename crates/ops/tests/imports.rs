//! Disks that are made of images from elsewhere.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use stead_driver::storage::{Content, StorageDriver};
use stead_model::vmconfig::VmConfig;
use stead_ops::Actor;
use stead_ops::guest::Asked;
use stead_ops::guest::config::ConfigChange;
use stead_ops_testing::{Node, root, vmid};

const STORAGES: &str = "dir: local\n\tpath /fake/local\n\tcontent images,import\n";

async fn started() -> Node {
    let addr = "127.0.0.1:8006".parse().unwrap();
    let (node, mut flushes) = Node::begin(addr, STORAGES, |txn, _| txn).await;
    tokio::spawn(async move {
        while let Some(done) = flushes.recv().await {
            let _ = done.send(());
        }
    });
    node
}

async fn bring(node: &Node, name: &str, content: &[u8]) {
    let storage = node.storage("local");
    let spooled = storage.spool().await.unwrap();
    std::fs::write(&spooled, content).unwrap();
    storage.adopt_file(spooled, Content::Import, name).await.unwrap();
}

async fn create(node: &Node, scsi0: &str) -> (String, String) {
    let options = [("scsi0".to_owned(), scsi0.to_owned())].into();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    node.ended(&upid).await
}

fn config(node: &Node) -> VmConfig {
    VmConfig::parse(&node.ops.guest_at(vmid(100)).unwrap().config.value).unwrap()
}

async fn images(node: &Node) -> Vec<String> {
    let all = node.storage("local").list(Some(Content::Images), None).await.unwrap();
    all.into_iter().map(|v| v.volid.name).collect()
}

/// A tar archive.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = vec![];
    for (name, content) in files {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = b'0';
        header[257..262].copy_from_slice(b"ustar");
        out.extend(header);
        out.extend(*content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[tokio::test]
async fn an_image_becomes_a_disk_of_a_new_vm_and_of_one_that_is_there() {
    let node = started().await;
    bring(&node, "x.qcow2", b"QFI").await;
    let (status, log) = create(&node, "local:0,import-from=local:import/x.qcow2,cache=none").await;
    assert_eq!(status, "OK", "{log}");
    assert!(log.contains("scsi0: made volume 'local:100/vm-100-disk-0.raw'"), "{log}");
    assert_eq!(config(&node).current.get("scsi0"), Some("local:100/vm-100-disk-0.raw,cache=none,size=1M"));
    let set =
        |key: &str| [(key.to_owned(), "local:0,import-from=local:import/x.qcow2,format=qcow2".to_owned())];
    let change = |key| ConfigChange { set: set(key).into(), ..ConfigChange::default() };
    let upid = node.ops.configure_task(&root(), vmid(100), change("scsi1"), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert_eq!(config(&node).current.get("scsi1"), Some("local:100/vm-100-disk-1.qcow2,size=1M"));
    let late = node.ops.configure(&root(), vmid(100), change("scsi2"), Asked::default()).await.unwrap_err();
    assert!(late.to_string().starts_with("scsi2: import-from: it may take longer"), "{late}");
}

#[tokio::test]
async fn what_cannot_be_imported_is_named_and_leaves_nothing() {
    let node = started().await;
    bring(&node, "x.qcow2", b"QFI").await;
    bring(&node, "x.ovf", b"<Envelope/>").await;
    for (from, why) in [
        ("local:import/no.raw", "does not exist"),
        ("local:import/x.ovf", "is no image that can be imported"),
        ("/tmp/x.iso", "is no image that can be imported"),
        ("local:import/x.ova/d.vmdk", "does not exist"),
    ] {
        let (status, _) = create(&node, &format!("local:0,import-from={from}")).await;
        assert!(status.contains(why), "{from}: {status}");
        assert!(node.ops.guest_at(vmid(100)).is_err() && images(&node).await.is_empty());
    }
    node.storage("local").set_failing(Some(("copy", 1)));
    let from = "local:0,import-from=local:import/x.qcow2";
    let options = [("scsi0", from), ("scsi1", from)].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert!(node.ended(&upid).await.0.contains("worn out"));
    assert!(images(&node).await.is_empty(), "the first is removed with the second");
    node.storage("local").set_failing(None);
    let wrong = [("scsi0".to_owned(), "local:import/x.qcow2,import-from=local:import/x.qcow2".to_owned())];
    assert!(node.ops.create_vm(&root(), vmid(100), &wrong.into(), false).is_err());
    // A file of the host is root's alone.
    let user = Actor::new("user@pve", false, Arc::new(|_, _| true));
    let path = [("scsi0".to_owned(), "local:0,import-from=/etc/x.raw".to_owned())].into();
    let refused = node.ops.create_vm(&user, vmid(100), &path, false).unwrap_err().to_string();
    assert!(refused.contains("only root can set 'scsi0' to import a file of the host"), "{refused}");
}

#[tokio::test]
async fn an_archive_is_read_where_it_lies() {
    let node = started().await;
    let ovf = br#"<Envelope><References><File ovf:href="d.vmdk" ovf:id="f1"/></References>
        <DiskSection><Disk ovf:diskId="v1" ovf:fileRef="f1"/></DiskSection><VirtualSystem ovf:id="web 1"><Item>
        <ResourceType>4</ResourceType><VirtualQuantity>512</VirtualQuantity></Item><Item>
        <ResourceType>17</ResourceType><HostResource>ovf:/disk/v1</HostResource></Item></VirtualSystem></Envelope>"#;
    bring(&node, "x.ova", &archive(&[("x.ovf", ovf), ("d.vmdk", b"KDMV")])).await;
    let told = node.ops.import_metadata(&"local:import/x.ova".parse().unwrap()).await.unwrap();
    assert_eq!(told.disks, [("scsi0".to_owned(), "local:import/x.ova/d.vmdk".to_owned())].into());
    let options = [("memory", "512"), ("name", "web-1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(told.options, options.into());
    let (status, log) = create(&node, "local:0,import-from=local:import/x.ova/d.vmdk").await;
    assert_eq!(status, "OK", "{log}");
    assert_eq!(images(&node).await, ["100/vm-100-disk-0.raw"]);
}
