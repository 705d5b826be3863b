//! Fence devices: kept without their secrets, and used by real processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::PermissionsExt;
use stead_conf::Txn;
use stead_model::{DeviceId, NodeState, PoweredOff, paths};
use stead_ops::fence_devices::DeviceOptions;
use stead_ops::store;
use stead_ops_testing::{BOOT, Node, lost, member, name, root, uuid};

/// An agent that keeps the power in a file a plug, and fails where a file `PLUG.broken` is; where one is
/// that is called `PLUG.stuck`, it says that it did what it did not.
const AGENT: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
while IFS='=' read -r key value; do
    case $key in plug) plug=$value ;; action) action=$value ;; password) password=$value ;; esac
done
echo "$plug $action" >> log
[ "$password" = 'open sesame' ] || { echo "no $password" >&2; exit 1; }
[ -e "$plug.broken" ] && { echo "Failed: no answer of $plug" >&2; exit 1; }
case $action in
status) [ -e "$plug.off" ] && exit 2; exit 0 ;;
off) [ -e "$plug.off" ] && echo "Success: Already OFF"; [ -e "$plug.stuck" ] || touch "$plug.off" ;;
on) rm -f "$plug.off" ;;
esac
"#;

fn device(id: &str) -> DeviceId {
    id.parse().unwrap()
}

/// n1 and n2; n2 has two power supplies, at plugs 3 and 4 of one device.
async fn cluster() -> Node {
    let node = Node::start().await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    let agents = node.dir.path().join("agents");
    std::fs::create_dir(&agents).unwrap();
    std::fs::write(agents.join("fence_test"), AGENT).unwrap();
    std::fs::set_permissions(agents.join("fence_test"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let given = DeviceOptions {
        agent: Some("fence_test".into()),
        options: Some("ip=192.0.2.9".into()),
        connect: Some("node=n2 plug=3\nnode=n2 plug=4".into()),
        secrets: Some("password=\"open sesame\"".into()),
        delay: None,
    };
    node.ops.fence_device_add(&root(), &device("pdu"), given).await.unwrap();
    node
}

fn file(node: &Node, name: &str) -> std::path::PathBuf {
    node.dir.path().join("agents").join(name)
}

fn log(node: &Node) -> Vec<String> {
    let text = std::fs::read_to_string(file(node, "log")).unwrap_or_default();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

async fn off(node: &Node) -> Result<PoweredOff, String> {
    node.ops.power_off(&name("n2"), &BOOT.parse().unwrap()).await.map_err(|e| e.to_string())
}

#[tokio::test]
async fn passwords_are_sealed_and_never_shown() {
    let node = cluster().await;
    let shown = node.ops.fence_devices().unwrap();
    assert_eq!(
        (shown[0].options.as_str(), &shown[0].secrets[..]),
        ("ip=192.0.2.9", &["password".to_owned()][..])
    );
    assert_eq!(shown[0].connect, ["node=n2 plug=3", "node=n2 plug=4"]);
    let (file, _) = node.ops.file(paths::FENCE_CFG).unwrap();
    assert_eq!(
        file,
        "device pdu fence_test ip=192.0.2.9\nconnect pdu node=n2 plug=3\nconnect pdu node=n2 plug=4\n"
    );
    let sealed = node.ops.conf.view(|t| t.get(paths::FENCE_SECRETS).unwrap().data.clone());
    assert!(stead_conf::is_sealed(&sealed));
    let history = format!("{:?}", node.ops.history(None, 1000));
    assert!(history.contains("pdu") && !history.contains("sesame"), "{history}");
    assert!(!format!("{shown:?}").contains("sesame"));

    // A device that is removed takes its secrets with it, and a node its connections.
    node.commit(
        Txn::new("test").put(
            paths::node(&name("n2")),
            store::bytes(&stead_model::NodeRecord {
                state: lost(),
                ..node.ops.node_record(&name("n2")).unwrap().value
            })
            .unwrap(),
        ),
    )
    .await;
    node.ops.remove_node(&root(), &name("n2")).await.unwrap();
    assert_eq!(node.ops.fence_device(&device("pdu")).unwrap().connect, [""; 0]);
    node.ops.fence_device_remove(&root(), &device("pdu")).await.unwrap();
    assert!(node.ops.fence_devices().unwrap().is_empty());
    assert_eq!(node.ops.conf.secret(paths::FENCE_SECRETS).unwrap().unwrap(), b"");
}

#[tokio::test]
async fn what_makes_no_device_is_refused_by_name() {
    let node = cluster().await;
    let none = DeviceOptions::default;
    for (given, says) in [
        (DeviceOptions { agent: Some("sh".into()), ..none() }, "agent: 'sh' is no fence agent"),
        (DeviceOptions { agent: Some("fence_other".into()), ..none() }, "install the package fence-agents"),
        (DeviceOptions { options: Some("password=x".into()), ..none() }, "'password' is a secret"),
        (DeviceOptions { secrets: Some("ip=x".into()), ..none() }, "'ip' is no secret"),
        (DeviceOptions { connect: Some("node=n9".into()), ..none() }, "no node 'n9'"),
        (DeviceOptions { connect: Some("node=n2\nnode=n2".into()), ..none() }, "twice"),
        (DeviceOptions { delay: Some("-1".into()), ..none() }, "delay: '-1' is no delay"),
    ] {
        let e = node.ops.fence_device_change(&root(), &device("pdu"), given, &[], None).await.unwrap_err();
        assert!(e.to_string().contains(says), "{e} does not say: {says}");
    }
    let delete = ["plug".to_owned()];
    assert!(node.ops.fence_device_change(&root(), &device("pdu"), none(), &delete, None).await.is_err());
    assert!(node.ops.fence_device_change(&root(), &device("pdu"), none(), &[], Some("0")).await.is_err());
    assert!(node.ops.fence_device_change(&root(), &device("other"), none(), &[], None).await.is_err());
}

#[tokio::test]
async fn off_is_what_every_device_says_after_every_order() {
    let node = cluster().await;
    let done = off(&node).await.unwrap();
    assert_eq!((done.devices.as_str(), done.boot.as_str()), ("pdu, pdu", BOOT));
    assert_eq!(log(&node), ["3 off", "3 status", "4 off", "4 status"]);
    assert_eq!(node.ops.status.own_fenced()[0].took_ms, Some(done.took_ms));
    // What was taken is given back.
    node.ops.power_on(&name("n2")).await.unwrap();
    assert!(!file(&node, "3.off").exists() && !file(&node, "4.off").exists());
    // What was off before stays off.
    std::fs::write(file(&node, "3.off"), "").unwrap();
    std::fs::write(file(&node, "4.off"), "").unwrap();
    off(&node).await.unwrap();
    node.ops.power_on(&name("n2")).await.unwrap();
    assert!(file(&node, "3.off").exists() && file(&node, "4.off").exists());
}

#[tokio::test]
async fn one_outlet_that_stays_on_is_no_power_off_and_the_other_is_given_back() {
    let node = cluster().await;
    std::fs::write(file(&node, "4.broken"), "").unwrap();
    let e = off(&node).await.unwrap_err();
    assert!(e.contains("pdu: 'off' failed (exit status: 1): Failed: no answer of 4"), "{e}");
    assert!(!file(&node, "3.off").exists(), "the other outlet is on again");
    std::fs::remove_file(file(&node, "4.broken")).unwrap();
    std::fs::write(file(&node, "4.stuck"), "").unwrap();
    let e = off(&node).await.unwrap_err();
    assert_eq!(e, "pdu: it took the order, and says that the power is on");
    assert!(!file(&node, "3.off").exists(), "the other outlet is on again");
    let mut n2 = node.ops.node_record(&name("n2")).unwrap().value;
    n2.state = NodeState::Member { boot: BOOT.parse().unwrap() };
    assert!(node.ops.fenced_words(&n2).unwrap().starts_with("not powered off after "));
    // Another password; and the agent's words do not tell it.
    let given = DeviceOptions { secrets: Some("password=else".into()), ..DeviceOptions::default() };
    node.ops.fence_device_change(&root(), &device("pdu"), given, &[], None).await.unwrap();
    let e = off(&node).await.unwrap_err();
    assert!(e.contains("no <password>") && !e.contains("else"), "{e}");
    let said = node.ops.fence_test(&name("n2")).await.unwrap();
    assert!(said.iter().all(|s| s.power.is_none() && s.error.is_some()), "{said:?}");
    assert!(node.ops.fence_test(&name("n1")).await.unwrap_err().to_string().contains("has no fence device"));
}

#[tokio::test]
async fn who_leaves_in_order_and_everybody_while_ha_is_disarmed_is_left_alone() {
    let node = cluster().await;
    let due = || node.ops.fence_delays().unwrap().into_keys().collect::<Vec<_>>();
    assert_eq!(due(), [name("n2")]);
    node.report_of("n2");
    assert_eq!(due(), [name("n2")], "it reports, and does not leave");
    let mut leaves = node.ops.status.node(&name("n2")).unwrap();
    (leaves.seq, leaves.ha) = (leaves.seq + 1, serde_json::json!({"mode": "freeze"}));
    node.ops.take_report(&leaves);
    assert_eq!(due(), []);
    (leaves.seq, leaves.ha) = (leaves.seq + 1, serde_json::Value::Null);
    node.ops.take_report(&leaves);
    assert_eq!(due(), [name("n2")]);
    node.commit(Txn::new("test").put(paths::HA_STATUS, r#"{"disarm":{"mode":"freeze","ready":false}}"#))
        .await;
    assert_eq!(due(), []);
    node.commit(Txn::new("test").put(paths::FENCE_CFG, "device")).await;
    assert!(node.ops.fence_delays().unwrap_err().to_string().contains("line 1"));
}

#[tokio::test]
async fn a_node_that_is_off_needs_nobodys_word() {
    let node = cluster().await;
    let mut record = node.ops.node_record(&name("n2")).unwrap().value;
    let boot = record.state.boot().clone();
    record.off = Some(PoweredOff { boot: boot.clone(), devices: "pdu".into(), took_ms: 1340 });
    assert!(!record.is_off() && node.ops.fenced_words(&record).is_none(), "it has entered again");
    record.state = NodeState::Lost { boot: boot.clone() };
    assert!(record.is_off());
    assert_eq!(node.ops.fenced_words(&record).unwrap(), "powered off by pdu in 1.3 s");
    record.state = NodeState::Lost { boot: uuid(9).as_str().parse().unwrap() };
    assert!(!record.is_off(), "that was another boot");
}
