//! Where members are that have moved: who is believed what.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use async_trait::async_trait;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stead_conf::Txn;
use stead_model::{NodeRecord, paths};
use stead_ops::contacts::{HERE_CALL, Here};
use stead_ops::peers::{Duplex, PeerError, PeerLink};
use stead_ops::store;
use stead_ops_testing::{Node, STORAGES, lost, member, name, uuid};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// `n1`, where others could reach it, with n2 and n3.
async fn three() -> Node {
    let (node, flushes) = Node::begin(at("192.0.2.1:8006"), STORAGES, |txn, _| txn).await;
    // Nobody asks for reports here.
    drop(flushes);
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.record_node("n3", 3, uuid(3).as_str(), member()).await;
    node
}

fn record(node: &Node, of: &str) -> NodeRecord {
    node.ops.node_record(&name(of)).unwrap().value
}

/// Where a member is tried.
fn tried(node: &Node, of: &str) -> Vec<SocketAddr> {
    node.ops.contacts.peer(&record(node, of)).addrs.into_values().collect()
}

fn here(text: &str) -> Here {
    Here { at: at(text), others: vec![] }
}

#[tokio::test]
async fn a_member_that_has_moved_is_tried_there_too_until_it_has_entered() {
    let node = three().await;
    let old = at("127.0.0.2:8006");
    assert_eq!(tried(&node, "n2"), [old]);
    let answer = node.ops.hear_where(&name("n2"), &here("192.0.2.22:8006")).unwrap();
    assert_eq!(answer, Here { others: vec![(uuid(2), at("192.0.2.22:8006"))], ..here("192.0.2.1:8006") });
    assert_eq!(tried(&node, "n2"), [old, at("192.0.2.22:8006")]);
    assert_eq!(tried(&node, "n3"), [at("127.0.0.3:8006")]);
    let mut entered = record(&node, "n2");
    entered.addr = at("192.0.2.22:8006");
    node.commit(Txn::new("test").put(paths::node(&name("n2")), store::bytes(&entered).unwrap())).await;
    assert_eq!(tried(&node, "n2"), [at("192.0.2.22:8006")]);
}

#[tokio::test]
async fn what_is_no_other_machine_s_address_is_refused() {
    let node = three().await;
    let bad =
        ["127.0.0.9:8006", "0.0.0.0:8006", "[::]:8006", "224.0.0.1:8006", "192.0.2.9:0", "192.0.2.1:8006"];
    for bad in bad {
        let why = node.ops.hear_where(&name("n2"), &here(bad)).unwrap_err().to_string();
        assert!(why.contains("can't be reached"), "{why}");
        // By hearsay as well.
        let gossip = Here { others: vec![(uuid(3), at(bad))], ..here("127.0.0.2:8006") };
        let _refused = node.ops.hear_where(&name("n2"), &gossip);
        assert_eq!(tried(&node, "n3"), [at("127.0.0.3:8006")]);
    }
    assert_eq!(tried(&node, "n2"), [at("127.0.0.2:8006")]);
    assert!(node.ops.hear_where(&name("n9"), &here("192.0.2.9:8006")).is_err(), "no member");
}

#[tokio::test]
async fn hearsay_is_tried_beside_and_a_node_s_own_word_counts_for_more() {
    let node = three().await;
    let said = |of: u32, place: &str| Here { others: vec![(uuid(of), at(place))], ..here("192.0.2.22:8006") };
    node.ops.hear_where(&name("n2"), &said(3, "192.0.2.33:8006")).unwrap();
    assert_eq!(tried(&node, "n3"), [at("127.0.0.3:8006"), at("192.0.2.33:8006")]);
    node.ops.hear_where(&name("n3"), &here("192.0.2.34:8006")).unwrap();
    node.ops.hear_where(&name("n2"), &said(3, "192.0.2.35:8006")).unwrap();
    assert_eq!(tried(&node, "n3"), [at("127.0.0.3:8006"), at("192.0.2.34:8006")]);
    // Of who is no member, and of this node itself, nothing is kept.
    node.ops.hear_where(&name("n2"), &said(9, "192.0.2.99:8006")).unwrap();
    let own =
        Here { others: vec![(node.ops.me.uuid.clone(), at("192.0.2.98:8006"))], ..here("192.0.2.22:8006") };
    let answer = node.ops.hear_where(&name("n2"), &own).unwrap();
    assert_eq!(answer.others.len(), 2, "{answer:?}");
    assert_eq!(tried(&node, "n1"), [at("192.0.2.1:8006")]);
    assert!(!node.ops.has_moved());
}

/// Answers at one address; whoever is called elsewhere is silent.
struct At(SocketAddr, Mutex<Vec<Value>>);

#[async_trait]
impl PeerLink for At {
    async fn call(&self, to: &NodeRecord, call: &str, body: Value, _: Duration) -> Result<Value, PeerError> {
        if to.addrs() != [self.0] {
            return Err(PeerError::Unreachable { node: to.name.clone(), why: "nobody is there".into() });
        }
        assert_eq!(call, HERE_CALL);
        self.1.lock().unwrap().push(body);
        Ok(json!({"at": self.0, "others": [[uuid(3), "192.0.2.33:8006"]]}))
    }
    async fn open(&self, to: &NodeRecord, _: &str) -> Result<Box<dyn Duplex>, PeerError> {
        Err(PeerError::Unreachable { node: to.name.clone(), why: "not in this test".into() })
    }
}

#[tokio::test]
async fn an_operator_s_word_counts_once_the_node_has_answered_there() {
    let node = three().await;
    let link = Arc::new(At(at("192.0.2.22:8006"), Mutex::default()));
    node.peers.set(link.clone());
    for (who, place) in
        [("n2", "192.0.2.23"), ("n1", "192.0.2.22"), ("n9", "192.0.2.22"), ("n2", "n2"), ("n2", "0.0.0.0")]
    {
        node.ops.meet(&name(who), place).await.unwrap_err();
    }
    assert_eq!(tried(&node, "n2"), [at("127.0.0.2:8006")]);
    assert!(link.1.lock().unwrap().is_empty());
    // Without a port it is the one that it had.
    assert_eq!(node.ops.meet(&name("n2"), "192.0.2.22").await.unwrap(), at("192.0.2.22:8006"));
    assert_eq!(*link.1.lock().unwrap(), [json!({"at": "192.0.2.1:8006", "others": []})]);
    assert_eq!(tried(&node, "n2"), [at("127.0.0.2:8006"), at("192.0.2.22:8006")]);
    assert_eq!(tried(&node, "n3"), [at("127.0.0.3:8006"), at("192.0.2.33:8006")]);
}

#[tokio::test]
async fn a_node_that_has_moved_records_its_address_and_nothing_else() {
    let node = three().await;
    let moved = |state| {
        let mut record = record(&node, "n1");
        record.addr = at("192.0.2.77:8006");
        record.links = [(1, "192.0.2.1".parse().unwrap()), (2, "198.51.100.1".parse().unwrap())].into();
        record.state = state;
        record
    };
    for state in [member(), lost()] {
        let before = moved(state);
        node.commit(Txn::new("test").put(paths::node(&name("n1")), store::bytes(&before).unwrap())).await;
        assert!(node.ops.has_moved());
        node.ops.record_where().await.unwrap();
        assert!(!node.ops.has_moved());
        let mut after = before;
        after.addr = at("192.0.2.1:8006");
        // What was a link is link 0 now.
        after.links.remove(&1);
        assert_eq!(record(&node, "n1"), after);
    }
    // Another machine has come under this name.
    let mut other = moved(member());
    other.uuid = uuid(9);
    node.commit(Txn::new("test").put(paths::node(&name("n1")), store::bytes(&other).unwrap())).await;
    node.ops.record_where().await.unwrap();
    assert_eq!(record(&node, "n1"), other);
}
