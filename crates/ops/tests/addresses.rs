//! The addresses of VMs, by the word of the agents in them: when these are asked, how long that counts, and who sees it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;
use stead_conf::Txn;
use stead_model::VmConfig;
use stead_ops::Actor;
use stead_ops::guest::Asked;
use stead_ops::guest::power::PowerAction;
use stead_ops::status::NodeReport;
use stead_ops_testing::{Node, name, root, vmid};

async fn running(agent: &str) -> Node {
    let node = Node::start().await;
    let options = [("agent".to_owned(), agent.to_owned())].into();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    start(&node).await;
    node
}

async fn start(node: &Node) {
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}

/// What `status/current` shows.
async fn shown(node: &Node) -> Vec<String> {
    node.ops.vm_status(&root(), vmid(100)).await.unwrap().status.addresses.unwrap_or_default()
}

/// One round. How often the VM's agent was asked.
async fn round(node: &Node) -> usize {
    node.ops.ask_addresses().await;
    node.machines.asked("n1", vmid(100)).len()
}

async fn power(node: &Node, action: PowerAction) {
    let upid = node.ops.power(&root(), vmid(100), action, Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}

#[tokio::test]
async fn they_are_shown_everywhere_to_who_may_ask() {
    let node = running("1").await;
    assert!(shown(&node).await.is_empty());
    assert_eq!((round(&node).await, shown(&node).await), (1, vec!["10.0.0.5".to_owned()]));
    let report = NodeReport {
        addresses: node.ops.status.own_addresses(&node.ops.guests.list().await),
        guests: node.ops.guests.list().await,
        ..stead_ops_testing::report("n1")
    };
    // As it reaches other nodes.
    let report: NodeReport = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    node.ops.take_report(&report);
    let listed = |actor: &Actor| node.ops.vm_list(actor, &name("n1"))[0].addresses.clone();
    assert_eq!(listed(&root()), Some(vec!["10.0.0.5".to_owned()]));
    let resources = node.ops.resources(&root(), None).unwrap();
    assert!(resources.iter().any(|r| r.addresses.is_some()));
    let auditor = Actor::new("u@pve", false, Arc::new(|_: &str, what: &str| what == "VM.Audit"));
    assert_eq!(listed(&auditor), None);
    let current = node.ops.vm_status(&auditor, vmid(100)).await.unwrap();
    assert_eq!(current.status.addresses, None);
}

#[tokio::test]
async fn what_was_told_counts_for_a_while_and_for_one_process() {
    let node = running("1").await;
    assert_eq!(round(&node).await, 1);
    node.machines.refuse_agent("n1", Some("guest-network"));
    // One that does not answer is asked less and less.
    let mut asked = 0;
    for _ in 0..5 {
        asked += round(&node).await;
        assert_eq!(shown(&node).await, ["10.0.0.5"]);
    }
    assert_eq!(asked, 4);
    round(&node).await;
    assert!(shown(&node).await.is_empty());
    node.machines.refuse_agent("n1", None);
    assert_eq!((round(&node).await, shown(&node).await), (1, vec!["10.0.0.5".to_owned()]));
    power(&node, PowerAction::Stop { timeout: Duration::from_secs(5) }).await;
    assert_eq!((round(&node).await, shown(&node).await.len()), (0, 0));
    start(&node).await;
    assert!(shown(&node).await.is_empty(), "that was another process");
}

#[tokio::test]
async fn nobody_is_asked_who_has_no_agent_or_stands_or_is_locked() {
    let none = running("0").await;
    assert_eq!(round(&none).await, 0);
    let node = running("1").await;
    power(&node, PowerAction::Suspend).await;
    assert_eq!(round(&node).await, 0);
    power(&node, PowerAction::Resume).await;
    let guest = node.ops.guest_at(vmid(100)).unwrap();
    let mut config = VmConfig::parse(&guest.config.value).unwrap();
    config.current.set("lock", "backup").unwrap();
    node.commit(Txn::new("test").put(guest.path(), config.to_string())).await;
    assert_eq!(round(&node).await, 0);
}
