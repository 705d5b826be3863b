//! Snapshots over the API: their life, how they are shown, and who may.

use crate::bed::{Answer, Node, Who};
use serde_json::{Value, json};

const USERS: &str = "user:keeper@pve:1:0:::::\nuser:returner@pve:1:0:::::\nuser:looker@pve:1:0:::::\nuser:setter@pve:1:0:::::\n\
    acl:1:/vms:setter@pve:Set:\nrole:Set:VM.Config.Options:\n\
    acl:1:/vms:keeper@pve:Keep:\nacl:1:/vms:returner@pve:Return:\nacl:1:/vms:looker@pve:Look:\n\
    role:Keep:VM.Snapshot:\nrole:Return:VM.Snapshot.Rollback:\nrole:Look:VM.Audit:\n";
const ALL: [&str; 5] = ["root@pam", "keeper@pve", "returner@pve", "looker@pve", "setter@pve"];
const SNAPSHOTS: &str = "/nodes/n1/qemu/100/snapshot";

async fn start(disk: &str) -> (Node, Who) {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    let form = format!("vmid=100&memory=64&scsi0={disk}");
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu", &form).await.data();
    assert_eq!(node.done(&upid).await, "OK");
    (node, root)
}

async fn ask(node: &Node, who: &Who, method: &str, below: &str, form: &str) -> Answer {
    node.ask(who, method, &format!("{SNAPSHOTS}{below}"), form).await
}

async fn done(node: &Node, who: &Who, method: &str, below: &str, form: &str) -> String {
    let upid = ask(node, who, method, below, form).await.data();
    node.done(&upid).await
}

#[tokio::test]
async fn a_snapshot_is_taken_shown_gone_back_to_and_removed() {
    let (node, root) = start("local:1,format=qcow2").await;
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu/100/status/start", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    // As Ansible sends it.
    assert_eq!(done(&node, &root, "POST", "", "snapname=one&description=as+it+was&vmstate=0").await, "OK");
    assert_eq!(done(&node, &root, "POST", "", "snapname=two&vmstate=1").await, "OK");
    let listed = ask(&node, &root, "GET", "", "").await.data();
    let rows = listed.as_array().unwrap();
    let told: Vec<_> = rows.iter().map(|r| (&r["name"], &r["parent"], &r["vmstate"])).collect();
    let null = Value::Null;
    assert_eq!(
        told,
        [
            (&json!("one"), &null, &json!(0)),
            (&json!("two"), &json!("one"), &json!(1)),
            (&json!("current"), &json!("two"), &null),
        ]
    );
    assert_eq!((&rows[0]["description"], &rows[2]["running"]), (&json!("as it was"), &json!(1)));
    assert!(rows[0]["snaptime"].as_u64().unwrap() > 1_700_000_000);
    let config = node.ask(&root, "GET", "/nodes/n1/qemu/100/config", "").await.data();
    assert_eq!((&config["parent"], &config["digest"]), (&json!("two"), &rows[2]["digest"]));
    assert_eq!(
        ask(&node, &root, "GET", "/one", "").await.data(),
        json!([{"cmd": "config"}, {"cmd": "rollback"}])
    );
    assert_eq!(ask(&node, &root, "PUT", "/one/config", "description=better").await.data(), null);
    let one = ask(&node, &root, "GET", "/one/config", "").await.data();
    assert_eq!(
        (&one["description"], &one["memory"], &one["scsi0"]),
        (&json!("better"), &config["memory"], &config["scsi0"])
    );
    assert_eq!(done(&node, &root, "POST", "/one/rollback", "start=1").await, "OK");
    assert_eq!(done(&node, &root, "DELETE", "/one", "").await, "OK");
    assert_eq!(done(&node, &root, "DELETE", "/two?force=1", "").await, "OK");
    assert_eq!(ask(&node, &root, "GET", "", "").await.data().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_its_reason() {
    let (node, root) = start("local:1,format=raw").await;
    let memory = ask(&node, &root, "POST", "", "snapname=one&vmstate=1").await;
    assert!(memory.body["errors"]["vmstate"].as_str().unwrap().contains("does not run"), "{memory:?}");
    for wrong in ["a", "1a", "current", "a%20b"] {
        let refused = ask(&node, &root, "POST", "", &format!("snapname={wrong}")).await;
        assert!(refused.body["errors"]["snapname"].as_str().is_some(), "{refused:?}");
    }
    let raw = done(&node, &root, "POST", "", "snapname=one").await;
    assert!(raw.contains("scsi0") && raw.contains("raw"), "{raw}");
    for (method, below, form) in [
        ("DELETE", "/no", ""),
        ("GET", "/no/config", ""),
        ("PUT", "/no/config", "description=x"),
        ("POST", "/no/rollback", ""),
    ] {
        let refused = ask(&node, &root, method, below, form).await;
        assert_eq!(refused.line, "500 snapshot 'no' does not exist", "{method} {below}");
    }
    let feature = |name: &'static str| {
        let (node, root) = (&node, &root);
        async move {
            node.ask(root, "GET", &format!("/nodes/n1/qemu/100/feature?feature={name}"), "").await.data()
        }
    };
    assert_eq!(feature("snapshot").await, json!({"hasFeature": 0, "nodes": ["n1"]}));
    let (node, root) = start("local:1,format=qcow2").await;
    for (name, has) in [("snapshot", 1), ("clone", 0), ("copy", 1)] {
        let path = format!("/nodes/n1/qemu/100/feature?feature={name}");
        let told = node.ask(&root, "GET", &path, "").await.data();
        assert_eq!(told["hasFeature"], has, "{name}");
    }
}

#[tokio::test]
async fn each_needs_its_privilege() {
    let (node, root) = start("local:1,format=qcow2").await;
    let config = "/nodes/n1/qemu/100/config";
    for (who, may) in [("setter@pve", false), ("root@pam", true)] {
        let who = node.sign_in(who).await;
        let answer = node.ask(&who, "PUT", config, "vmstatestorage=local").await;
        assert_eq!(answer.line.starts_with("200 "), may, "room on a storage is needed: {}", answer.line);
    }
    assert_eq!(done(&node, &root, "POST", "", "snapname=one").await, "OK");
    for (who, method, below, form, may) in [
        ("looker@pve", "GET", "", "", true),
        ("looker@pve", "GET", "/one/config", "", true),
        ("looker@pve", "POST", "", "snapname=two", false),
        ("looker@pve", "POST", "/one/rollback", "", false),
        ("looker@pve", "DELETE", "/one", "", false),
        ("returner@pve", "POST", "/one/rollback", "", true),
        ("returner@pve", "GET", "/one/config", "", true),
        ("returner@pve", "DELETE", "/one", "", false),
        ("returner@pve", "PUT", "/one/config", "description=x", false),
        ("keeper@pve", "GET", "", "", false),
        ("keeper@pve", "POST", "", "snapname=two", true),
        ("keeper@pve", "PUT", "/one/config", "description=x", true),
    ] {
        let who = node.sign_in(who).await;
        let answer = ask(&node, &who, method, below, form).await;
        assert_eq!(!answer.line.starts_with("403 "), may, "{method} {below}: {}", answer.line);
        if answer.line.starts_with("200 ") && method == "POST" {
            assert_eq!(node.done(&answer.data()).await, "OK");
        }
    }
}
