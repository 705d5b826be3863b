//! The agent in a VM over the API: what it is asked, what is made of its answers, and who may.

use crate::bed::{Answer, Node, Who};
use serde_json::{Value, json};

const USERS: &str = "user:looker@pve:1:0:::::\nuser:reader@pve:1:0:::::\nuser:owner@pve:1:0:::::\n\
    acl:1:/vms:looker@pve:Look:\nacl:1:/vms:reader@pve:Read:\nacl:1:/vms:owner@pve:Power:\n\
    role:Look:VM.GuestAgent.Audit:\nrole:Read:VM.GuestAgent.FileRead:\nrole:Power:VM.PowerMgmt:\n";
const ALL: [&str; 4] = ["root@pam", "looker@pve", "reader@pve", "owner@pve"];
const AGENT: &str = "/nodes/n1/qemu/100/agent";

async fn start(options: &str) -> (Node, Who) {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    let form = format!("vmid=100&memory=64{options}");
    for (path, form) in [("/nodes/n1/qemu", form.as_str()), ("/nodes/n1/qemu/100/status/start", "")] {
        let upid = node.ask(&root, "POST", path, form).await.data();
        assert_eq!(node.done(&upid).await, "OK");
    }
    (node, root)
}

async fn ask(node: &Node, who: &Who, method: &str, below: &str, form: &str) -> Answer {
    node.ask(who, method, &format!("{AGENT}/{below}"), form).await
}

#[tokio::test]
async fn commands_are_passed_on_and_answers_returned() {
    let (node, root) = start("&agent=1").await;
    for (method, name) in [
        ("POST", "ping"),
        ("GET", "get-vcpus"),
        ("POST", "fsfreeze-freeze"),
        ("GET", "info"),
        ("POST", "fstrim"),
    ] {
        let expected = json!({ "result": { "command": format!("guest-{name}"), "arguments": {} } });
        assert_eq!(ask(&node, &root, method, name, "").await.data(), expected);
        let by_name = node.ask(&root, "POST", AGENT, &format!("command={name}")).await.data();
        assert_eq!(by_name, expected);
    }
    let refused = ask(&node, &root, "GET", "get-osinfo", "").await;
    assert_eq!(refused.line, "500 guest agent: guest-get-osinfo: no such file");
    let listed = node.ask(&root, "GET", AGENT, "").await.data();
    let names: Vec<&str> =
        listed.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"exec") && names.contains(&"get-osinfo") && names.len() == 25, "{names:?}");
    assert_eq!(
        node.ask(&root, "POST", AGENT, "command=set-user-password").await.line,
        "400 Parameter verification failed."
    );
}

#[tokio::test]
async fn programs_files_and_passwords() {
    let (node, root) = start("&agent=1").await;
    let form = "command=/bin/sh&command=-c&command=echo%20a,b%3Bc&input-data=x";
    assert_eq!(ask(&node, &root, "POST", "exec", form).await.data(), json!({ "pid": 42 }));
    let asked = || node.below.machines.asked("n1", "100".parse().unwrap());
    let arguments = json!({ "path": "/bin/sh", "arg": ["-c", "echo a,b;c"], "input-data": "eA==", "capture-output": true });
    assert_eq!(asked(), [("guest-exec".to_owned(), arguments)]);
    assert_eq!(
        ask(&node, &root, "POST", "exec", "command=").await.body["errors"]["command"],
        "it names no program"
    );
    assert_eq!(ask(&node, &root, "POST", "exec", "").await.line, "400 Parameter verification failed.");
    let status = ask(&node, &root, "GET", "exec-status", "pid=42").await.data();
    assert_eq!(status, json!({ "exited": 1, "exitcode": 0, "out-data": "hi", "out-truncated": 1 }));
    let read = async |form: &str| ask(&node, &root, "GET", "file-read", form).await.data();
    assert_eq!(read("file=/etc/motd").await, json!({ "content": "hi" }));
    assert_eq!(read("file=/etc/motd&decode=0").await, json!({ "content": "aGk=" }));
    assert_eq!(read("file=/etc/motd&count=1").await, json!({ "content": "h", "truncated": 1 }));
    asked();
    assert_eq!(read("file=/etc/motd&offset=3&count=9").await, json!({ "content": "hi" }));
    let file = json!({ "handle": 7 });
    let names: Vec<(String, Value)> = asked();
    assert_eq!(names[0], ("guest-file-open".to_owned(), json!({ "path": "/etc/motd", "mode": "r" })));
    assert_eq!(
        names[1],
        ("guest-file-seek".to_owned(), json!({ "handle": 7, "offset": 3, "whence": "set" }))
    );
    assert_eq!(names[2], ("guest-file-read".to_owned(), json!({ "handle": 7, "count": 10 })));
    assert_eq!(names[3..], [("guest-file-close".to_owned(), file.clone())]);
    let written = ask(&node, &root, "POST", "file-write", "file=/a&content=h%C3%A4h").await;
    assert_eq!(written.data(), Value::Null);
    let parts: Vec<(String, Value)> = asked();
    assert_eq!(parts[0], ("guest-file-open".to_owned(), json!({ "path": "/a", "mode": "wb" })));
    // Two bytes are taken at a time.
    assert_eq!(parts[1].1["buf-b64"], "aMOkaA==");
    assert_eq!(parts.last(), Some(&("guest-file-close".to_owned(), file)));
    let wrong = ask(&node, &root, "POST", "file-write", "file=/a&content=%21&encode=0").await;
    assert_eq!(wrong.body["errors"]["content"], "it is not in base64");
    let set = ask(&node, &root, "POST", "set-user-password", "username=ann&password=secret").await.data();
    let arguments = json!({ "username": "ann", "password": "c2VjcmV0", "crypted": 0 });
    assert_eq!(set["result"]["arguments"], arguments);
    let short = ask(&node, &root, "POST", "set-user-password", "username=ann&password=1234").await;
    assert!(short.body["errors"]["password"].as_str().unwrap().contains("at least 5"));
}

#[tokio::test]
async fn each_needs_its_privilege_a_running_vm_and_an_agent() {
    let (node, root) = start("").await;
    assert_eq!(ask(&node, &root, "POST", "ping", "").await.line, "500 No QEMU guest agent configured");
    let form = "vmid=101&agent=1";
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu", form).await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let stopped = node.ask(&root, "POST", "/nodes/n1/qemu/101/agent/ping", "").await;
    assert_eq!(stopped.line, "500 VM 101 is not running");
    for (who, method, below, form, may) in [
        ("looker@pve", "GET", "info", "", true),
        ("looker@pve", "POST", "fsfreeze-status", "", true),
        ("looker@pve", "POST", "fsfreeze-freeze", "", false),
        ("looker@pve", "POST", "exec", "command=a", false),
        ("looker@pve", "GET", "file-read", "file=/a", false),
        ("reader@pve", "GET", "file-read", "file=/a", true),
        ("reader@pve", "POST", "file-write", "file=/a&content=b", false),
        ("reader@pve", "GET", "info", "", false),
        ("owner@pve", "POST", "shutdown", "", true),
        ("owner@pve", "POST", "set-user-password", "username=a&password=secret", false),
    ] {
        let who = node.sign_in(who).await;
        let answer = ask(&node, &who, method, below, form).await;
        assert_eq!(!answer.line.starts_with("403 "), may, "{below}: {}", answer.line);
    }
    assert!(node.ask(&root, "POST", AGENT, "").await.body["errors"]["command"] != Value::Null);
}
