//! Questions about, and actions on, many guests at once.

use crate::bed::{Node, Who};
use serde_json::json;

const USERS: &str = "user:owner@pve:1:0:::::\nuser:auditor@pve:1:0:::::\n\
    acl:1:/vms/100:owner@pve:PVEVMUser:\nacl:1:/:auditor@pve:PVEAuditor:\n";
const ALL: [&str; 3] = ["root@pam", "owner@pve", "auditor@pve"];

async fn with_vms(node: &Node, root: &Who) {
    for n in [100, 101] {
        let form = format!("vmid={n}&name=vm{n}&memory=64&cores=1");
        let upid = node.ask(root, "POST", "/nodes/n1/qemu", &form).await.data();
        assert_eq!(node.done(&upid).await, "OK");
    }
}

async fn running(node: &Node, root: &Who) -> Vec<u64> {
    let all = node.ask(root, "GET", "/cluster/resources?type=vm", "").await.data();
    let on = all.as_array().unwrap().iter().filter(|r| r["status"] == "running");
    on.map(|r| r["vmid"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn guests_of_a_node_are_started_and_stopped_by_those_who_may() {
    let node = Node::start(USERS, &ALL).await;
    let (root, owner) = (node.sign_in("root@pam").await, node.sign_in("owner@pve").await);
    let auditor = node.sign_in("auditor@pve").await;
    with_vms(&node, &root).await;
    let ask = async |who: &Who, path: &str, form: &str| node.ask(who, "POST", path, form).await;
    for path in ["/nodes/n1/startall", "/nodes/n1/stopall", "/cluster/bulk-action/guest/start"] {
        assert!(ask(&auditor, path, "").await.line.starts_with("403 "), "{path}");
    }
    let named = ask(&owner, "/nodes/n1/startall", "force=1&vms=100,101").await;
    assert_eq!(named.line, "403 Permission check failed (/vms/101, VM.PowerMgmt)");
    let upid = ask(&owner, "/nodes/n1/startall", "").await.data();
    assert_eq!((node.done(&upid).await.as_str(), running(&node, &root).await), ("OK", vec![]), "no onboot");
    let upid = ask(&owner, "/nodes/n1/startall", "force=1").await.data();
    assert_eq!(
        (node.done(&upid).await.as_str(), running(&node, &root).await),
        ("OK", vec![100]),
        "its own alone"
    );
    let upid = ask(&root, "/cluster/bulk-action/guest/start", "maxworkers=2").await.data();
    assert_eq!((node.done(&upid).await.as_str(), running(&node, &root).await), ("OK", vec![100, 101]));
    let upid = ask(&root, "/nodes/n1/suspendall", "vms=100").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let upid = ask(&root, "/nodes/n1/stopall", "timeout=5&max-workers=1").await.data();
    assert_eq!((node.done(&upid).await.as_str(), running(&node, &root).await), ("OK", vec![]));
    let too_many = ask(&root, "/nodes/n1/stopall", "max-workers=65").await;
    assert_eq!(too_many.body["errors"]["max-workers"], "value must have a maximum value of 64");
    let here = ask(&root, "/nodes/n1/migrateall", "target=n1").await;
    assert_eq!(here.body["errors"]["target"], "target is local node.");
    let below = node.ask(&root, "GET", "/cluster/bulk-action/guest", "").await.data();
    let names: Vec<_> = below.as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["migrate", "shutdown", "start", "suspend"]);
}

#[tokio::test]
async fn what_the_loss_of_a_node_would_mean_is_told_to_auditors() {
    let node = Node::start(USERS, &ALL).await;
    let (root, owner) = (node.sign_in("root@pam").await, node.sign_in("owner@pve").await);
    let auditor = node.sign_in("auditor@pve").await;
    with_vms(&node, &root).await;
    let refused = node.ask(&owner, "GET", "/cluster/ha/what-if?nodes=n1", "").await;
    assert_eq!(refused.line, "403 Permission check failed (/, Sys.Audit)");
    assert_eq!(node.ask(&auditor, "GET", "/cluster/ha/what-if", "").await.data(), json!({}));
    let unknown = node.ask(&auditor, "GET", "/cluster/ha/what-if?nodes=n1,n7", "").await;
    assert_eq!(unknown.body["errors"]["nodes"], "no such cluster node 'n7'");
    let found = node.ask(&auditor, "GET", "/cluster/ha/what-if?nodes=n1", "").await.data();
    let loss = &found["loss"];
    assert_eq!((&loss["quorate"], &loss["survives"], &loss["lost"]), (&0.into(), &0.into(), &json!(["n1"])));
    let first = json!({"sid": "vm:100", "from": "n1", "fate": "down", "ha": 0, "wanted": 0, "reason": "it is not under HA"});
    assert_eq!(loss["guests"][0], first);
}
