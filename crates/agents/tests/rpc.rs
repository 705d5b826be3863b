//! Who may say what to a node.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use serde_json::{Value, json};
use stead_agents::rpc::Rpc;
use stead_model::Epoch;
use stead_ops_testing::{Node, lost, member, name, uuid, vmid};

/// n1 (here) leads; n2 and n3 are members.
async fn cluster() -> (Node, Rpc) {
    let node = Node::start().await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.record_node("n3", 3, uuid(3).as_str(), member()).await;
    let grant = stead_agents::grant::start(node.ops.clone());
    let rpc = Rpc { ops: node.ops.clone(), grant };
    (node, rpc)
}

async fn refused(rpc: &Rpc, from: &str, call: &str, body: Value) -> String {
    rpc.call(&name(from), call, body).await.unwrap_err().to_string()
}

#[tokio::test]
async fn other_nodes_status_comes_from_the_leader_alone() {
    let (node, rpc) = cluster().await;
    node.report_of("n3");
    let report = serde_json::to_value(node.ops.status.node(&name("n3")).unwrap()).unwrap();
    node.ops.status.forget(&name("n3"));
    let why = refused(&rpc, "n2", "status/merge", report.clone()).await;
    assert_eq!(why, "node 'n2' does not lead: it can't speak for others");
    assert!(node.ops.status.node(&name("n3")).is_none(), "nothing was taken");
    let own = {
        let mut own = report.clone();
        own["node"] = json!("n1");
        own
    };
    assert_eq!(refused(&rpc, "n1", "status/merge", own).await, "node 'n1' knows its own status");
    rpc.call(&name("n1"), "status/merge", report).await.unwrap();
    assert!(node.ops.status.node(&name("n3")).is_some());
}

#[tokio::test]
async fn only_the_source_of_a_move_ends_or_continues_its_copy() {
    let (node, rpc) = cluster().await;
    node.record_guest(100, "n2", |o| o.running = true, "name: web\n").await;
    let body = json!({"vmid": vmid(100), "epoch": Epoch(8)});
    for call in ["guest/abort", "guest/continue"] {
        let why = refused(&rpc, "n3", call, body.clone()).await;
        assert_eq!(why, "node 'n3' does not move guest 100 here under epoch 8", "{call}");
    }
    assert!(node.ops.migration_inlet(&name("n3"), vmid(100)).await.is_err());
    // The source, which the record names: there is nothing to end, and nothing was handed over.
    rpc.call(&name("n2"), "guest/abort", body.clone()).await.unwrap();
    assert!(refused(&rpc, "n2", "guest/continue", body).await.contains("was not handed over under epoch 8"));
}

#[tokio::test]
async fn a_node_acts_on_its_own_guests_for_another() {
    let (node, rpc) = cluster().await;
    node.record_guest(100, "n1", |_| {}, "name: web\n").await;
    let act = |vmid_: u32| json!({"who": "someone@pve", "vmid": vmid(vmid_), "work": {"do": "start", "timeout": null}});
    let upid = rpc.call(&name("n2"), "guest/act", act(100)).await.unwrap();
    assert!(upid.as_str().unwrap().contains(":qmstart:100:someone@pve:"), "{upid}");
    assert_eq!(rpc.call(&name("n2"), "task/wait", upid.clone()).await.unwrap(), "OK");
    assert_eq!(rpc.call(&name("n2"), "task/stop", upid).await.unwrap(), false, "it has ended");
    node.record_guest(101, "n3", |_| {}, "name: away\n").await;
    assert!(rpc.call(&name("n2"), "guest/act", act(101)).await.is_err(), "it is not here");
}

#[tokio::test]
async fn a_node_that_was_given_up_speaks_for_no_guest_that_was_recovered() {
    let (node, rpc) = cluster().await;
    node.record_node("n2", 2, uuid(2).as_str(), lost()).await;
    node.record_guest(100, "n1", |o| o.epoch = Epoch(8), "name: web\n").await;
    let body = json!({"vmid": vmid(100), "epoch": Epoch(8)});
    assert!(refused(&rpc, "n2", "guest/abort", body).await.contains("does not move guest 100 here"));
}

#[tokio::test]
async fn a_heartbeat_that_comes_by_two_links_is_granted_by_both() {
    let (node, rpc) = cluster().await;
    let boot = node.ops.node_record(&name("n2")).unwrap().value.state.boot().clone();
    for nonce in 0..20 {
        let beat = json!({
            "v": stead_membership::wire::VERSION, "node": "n2", "uuid": uuid(2), "boot": boot, "nonce": nonce,
        });
        let from = name("n2");
        let (first, second) = tokio::join!(
            rpc.call(&from, "heartbeat", beat.clone()),
            rpc.call(&from, "heartbeat", beat.clone())
        );
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(first, second);
        assert_eq!(first["nonce"], nonce, "{first}");
        assert!(first.to_string().contains("granted"), "{first}");
    }
}
