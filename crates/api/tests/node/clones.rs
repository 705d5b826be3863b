//! Clones, templates and moves of disks over the API: how they go, and who may.

use crate::bed::{Node, Who};
use serde_json::{Value, json};

const USERS: &str = "user:cloner@pve:1:0:::::\nuser:keeper@pve:1:0:::::\nuser:mover@pve:1:0:::::\n\
    acl:1:/vms/100:cloner@pve,keeper@pve:Clone:\nrole:Clone:VM.Clone:\n\
    acl:1:/vms/101:keeper@pve:Make:\nrole:Make:VM.Allocate:\n\
    acl:1:/vms:mover@pve:Disk:\nrole:Disk:VM.Config.Disk:\n";
const ALL: [&str; 4] = ["root@pam", "cloner@pve", "keeper@pve", "mover@pve"];
const VM: &str = "/nodes/n1/qemu/100";

async fn start() -> (Node, Who) {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    let form = "vmid=100&memory=64&name=web&scsi0=local:1,format=qcow2";
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu", form).await.data();
    assert_eq!(node.done(&upid).await, "OK");
    (node, root)
}

async fn done(node: &Node, who: &Who, below: &str, form: &str) -> String {
    let upid = node.ask(who, "POST", &format!("{VM}{below}"), form).await.data();
    node.done(&upid).await
}

async fn scsi0(node: &Node, root: &Who, vmid: u32) -> Value {
    node.ask(root, "GET", &format!("/nodes/n1/qemu/{vmid}/config"), "").await.data()["scsi0"].clone()
}

#[tokio::test]
async fn a_vm_becomes_a_template_and_is_cloned() {
    let (node, root) = start().await;
    // As Ansible sends it.
    assert_eq!(done(&node, &root, "/clone", "newid=101&name=web2&full=1&format=raw").await, "OK");
    assert_eq!(scsi0(&node, &root, 101).await, "local:101/vm-101-disk-0.raw,size=1G");
    assert_eq!(done(&node, &root, "/move_disk", "disk=scsi0&format=raw&delete=1").await, "OK");
    assert_eq!(scsi0(&node, &root, 100).await, "local:100/vm-100-disk-1.raw,size=1G");
    assert_eq!(done(&node, &root, "/template", "").await, "OK");
    let feature = node.ask(&root, "GET", &format!("{VM}/feature?feature=clone"), "").await.data();
    assert_eq!(feature, json!({"hasFeature": 1, "nodes": ["n1"]}));
    assert_eq!(done(&node, &root, "/clone", "newid=102").await, "OK");
    let linked = "local:100/base-100-disk-1.raw/102/vm-102-disk-0.qcow2";
    assert_eq!(scsi0(&node, &root, 102).await, format!("{linked},size=1G"));
    let listed = node.ask(&root, "GET", "/nodes/n1/storage/local/content?vmid=102", "").await.data();
    assert_eq!(listed[0]["volid"], linked);
    let base = "/nodes/n1/storage/local/content/local:100/base-100-disk-1.raw";
    assert!(node.ask(&root, "DELETE", base, "").await.line.contains("used by VM 100"));
    let used = format!("/nodes/n1/storage/local/content/{}", "local:102/vm-102-disk-0.qcow2");
    assert!(node.ask(&root, "DELETE", &used, "").await.line.contains("used by VM 102"), "by its short name");
    let vms = node.ask(&root, "GET", "/nodes/n1/qemu", "").await.data();
    let templates: Vec<_> = vms.as_array().unwrap().iter().map(|vm| &vm["template"]).collect();
    assert_eq!(templates.iter().filter(|t| **t == &json!(1)).count(), 1);
    let pool = node.ask(&root, "POST", &format!("{VM}/clone"), "newid=103&pool=p").await;
    assert!(pool.body["errors"]["pool"].as_str().unwrap().contains("not supported yet"), "{pool:?}");
    let vmdk = node.ask(&root, "POST", &format!("{VM}/clone"), "newid=103&full=1&format=vmdk").await;
    assert!(vmdk.body["errors"]["format"].as_str().unwrap().contains("'vmdk' is not supported"));
}

#[tokio::test]
async fn each_needs_its_privileges() {
    let (node, _) = start().await;
    for (who, below, form, needs) in [
        ("cloner@pve", "/clone", "newid=101", "/vms/101, VM.Allocate"),
        ("keeper@pve", "/clone", "newid=101", "/storage/local, Datastore.AllocateSpace"),
        ("keeper@pve", "/clone", "newid=102", "/vms/102, VM.Allocate"),
        ("mover@pve", "/clone", "newid=101", "/vms/100, VM.Clone"),
        ("cloner@pve", "/template", "", "/vms/100, VM.Allocate"),
        ("cloner@pve", "/move_disk", "disk=scsi0&format=raw", "/vms/100, VM.Config.Disk"),
        ("mover@pve", "/move_disk", "disk=scsi0&format=raw", "/storage/local, Datastore.AllocateSpace"),
    ] {
        let who = node.sign_in(who).await;
        let line = node.ask(&who, "POST", &format!("{VM}{below}"), form).await.line;
        assert_eq!(line, format!("403 Permission check failed ({needs})"), "{below} {form}");
    }
}
