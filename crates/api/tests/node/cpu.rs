//! CPUs over the API: models, features, machine types, and what all nodes can run.

use crate::bed::Node;
use serde_json::{Value, json};
use stead_driver::capabilities::Capabilities;
use stead_model::cpu::level_features;

const USERS: &str = "user:modeller@pve:1:0:::::\nuser:user@pve:1:0:::::\n\
    acl:1:/mapping/cpu:modeller@pve:PVEMappingAdmin:\nacl:1:/vms:user@pve:PVEVMAdmin:\n";
const ALL: [&str; 3] = ["root@pam", "modeller@pve", "user@pve"];

fn can() -> Capabilities {
    let features = level_features("x86-64-v3").unwrap().into_iter().chain(["pcid"]);
    Capabilities {
        accel: "tcg".into(),
        version: "10.0.2".into(),
        vendor: "GenuineIntel".into(),
        machines: ["pc-q35-9.2", "pc-q35-10.0", "pc-i440fx-10.0", "isapc"].map(str::to_owned).into(),
        models: [("EPYC".to_owned(), vec!["topoext".to_owned()]), ("max".to_owned(), vec![])].into(),
        features: features.map(str::to_owned).collect(),
        flags: ["aes".to_owned()].into(),
    }
}

#[tokio::test]
async fn what_a_node_can_run_is_listed() {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    let none = node.ask(&root, "GET", "/cluster/qemu/common", "").await;
    assert!(none.line.contains("is not recorded yet"), "{none:?}");
    node.below.machines.set_capabilities("n1", can());
    node.ops.record_cpu().await.unwrap();
    let get = async |path: &str| node.ask(&root, "GET", path, "").await.data();
    let common = get("/cluster/qemu/common").await;
    assert_eq!((&common["cpu"], &common["accel"]), (&json!("x86-64-v3,flags=+pcid"), &json!("tcg")));
    assert!(common["lacking"]["x86-64-v4"]["n1"].as_array().unwrap().contains(&json!("avx512f")));
    let below = "/nodes/n1/capabilities/qemu";
    let machines = get(&format!("{below}/machines")).await;
    let ids: Vec<_> = machines.as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["pc-i440fx-10.0", "pc-q35-10.0", "pc-q35-9.2"]);
    let models = get(&format!("{below}/cpu")).await;
    let find = |name: &str| models.as_array().unwrap().iter().find(|m| m["name"] == name).unwrap().clone();
    assert_eq!(
        find("EPYC"),
        json!({"name": "EPYC", "custom": 0, "vendor": "AuthenticAMD", "unavailable-features": ["topoext"]})
    );
    assert!(find("x86-64-v4")["unavailable-features"].is_array() && find("cluster")["vendor"] == "default");
    let flags = get(&format!("{below}/cpu-flags?accel=tcg")).await;
    let aes = flags.as_array().unwrap().iter().find(|f| f["name"] == "aes").unwrap().clone();
    assert_eq!(aes, json!({"name": "aes", "description": "AES encryption", "supported-on": ["n1"]}));
    assert_eq!(get("/cluster/qemu/cpu-flags").await[0]["supported-on"], json!([]), "no node has KVM");
    assert_eq!(get(&format!("{below}/migration")).await, json!({"has-dbus-vmstate": 0}));
    assert_eq!(get("/nodes/n1/capabilities").await, json!([{"name": "qemu"}]));
}

#[tokio::test]
async fn a_model_is_made_by_who_may_and_used_by_whom_it_is_for() {
    let node = Node::start(USERS, &ALL).await;
    let (root, modeller) = (node.sign_in("root@pam").await, node.sign_in("modeller@pve").await);
    let user = node.sign_in("user@pve").await;
    let models = "/cluster/qemu/custom-cpu-models";
    let form = "cputype=fast&reported-model=Haswell&flags=%2Baes%3B-pcid&level=13";
    assert!(node.ask(&user, "POST", models, form).await.line.starts_with("403"));
    assert_eq!(node.ask(&modeller, "POST", models, form).await.data(), Value::Null);
    let listed = node.ask(&modeller, "GET", models, "").await.data();
    assert_eq!((&listed[0]["cputype"], &listed[0]["level"]), (&json!("custom-fast"), &json!(13)));
    assert_eq!(node.ask(&user, "GET", models, "").await.data(), json!([]));
    let change = format!("hidden=1&delete=level&digest={}", listed[0]["digest"].as_str().unwrap());
    assert_eq!(node.ask(&modeller, "PUT", &format!("{models}/fast"), &change).await.data(), Value::Null);
    let read = node.ask(&modeller, "GET", &format!("{models}/fast"), "").await.data();
    assert_eq!((&read["hidden"], &read["level"]), (&json!(1), &Value::Null));
    let wrong = node.ask(&modeller, "POST", models, "cputype=two&reported-model=Haswell&flags=aes").await;
    assert!(wrong.body["errors"]["flags"].as_str().is_some(), "{wrong:?}");
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu", "vmid=100&memory=64").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let config = "/nodes/n1/qemu/100/config";
    let not = node.ask(&user, "PUT", config, "cpu=custom-fast").await;
    assert!(not.line.contains("/mapping/cpu/fast, Mapping.Use"), "{not:?}");
    assert_eq!(node.ask(&root, "PUT", config, "cpu=custom-fast").await.data(), Value::Null);
    let none = node.ask(&root, "PUT", config, "cpu=custom-slow").await;
    assert!(none.body["errors"]["cpu"].as_str().unwrap().contains("does not exist"), "{none:?}");
    assert_eq!(node.ask(&modeller, "DELETE", &format!("{models}/custom-fast"), "").await.data(), Value::Null);
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu/100/status/start", "").await.data();
    assert_eq!(node.done(&upid).await, "cpu: CPU model 'custom-fast' does not exist");
}
