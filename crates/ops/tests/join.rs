//! Letting nodes in that bring guests.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::time::SystemTime;
use stead_model::{NodeName, NodeState, paths};
use stead_ops::guest::Asked;
use stead_ops::join::JoinWish;
use stead_ops::links::LinkWish;
use stead_ops_testing::{BOOT, Node, STORAGES, member, name, root, uuid, vmid};
use stead_transport::join::{JOIN_PROTOCOL, JoinAuth, JoinRefusal, JoinRequest, JoinStorage};
use stead_transport::{Fingerprint, JoinInfo, NodeKey};

fn request(n: u32, vmids: &[u32]) -> JoinRequest {
    let node: NodeName = name(&format!("n{n}"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    JoinRequest {
        protocol: JOIN_PROTOCOL,
        csr: NodeKey::generate().unwrap().signing_request(&node).unwrap(),
        name: node,
        uuid: uuid(n),
        addr: format!("127.0.0.{n}:8006").parse().unwrap(),
        links: stead_model::link::Links::new(),
        ips: vec![],
        version: "0.1.0".into(),
        feature_level: stead_conf::SUPPORTED_LEVEL,
        vmids: vmids.iter().map(|v| vmid(*v)).collect(),
        storages: vec![],
        witness: false,
        wall_clock_ms: u64::try_from(now.as_millis()).unwrap(),
    }
}

fn clash(n: u32) -> JoinRefusal {
    JoinRefusal::Vmids { vmids: vec![vmid(n)] }
}

#[tokio::test]
async fn a_number_that_a_joining_node_brings_is_taken_from_then_on() {
    let node = Node::start().await;
    node.ops.let_in(&request(2, &[100, 101]), None).await.unwrap();
    // Another node with the same number; a guest made meanwhile.
    assert_eq!(node.ops.let_in(&request(3, &[101]), None).await.unwrap_err(), clash(101));
    let made = node.ops.create_vm(&root(), vmid(100), &BTreeMap::new(), false).unwrap_err();
    assert!(made.to_string().contains("already exists"), "{made}");
    assert!(node.ops.next_id(Some(vmid(100))).is_err());
    assert_eq!(node.ops.vms().len(), 0, "it is not here yet");
    node.ops.let_in(&request(3, &[102]), None).await.unwrap();
}

#[tokio::test]
async fn of_two_that_ask_at_once_one_is_told_why_not() {
    let node = Node::start().await;
    let (a, b) = (request(2, &[100]), request(3, &[100]));
    let (a, b) = tokio::join!(node.ops.let_in(&a, None), node.ops.let_in(&b, None));
    let refused = match (&a, &b) {
        (Ok(_), Err(e)) | (Err(e), Ok(_)) => e,
        other => panic!("one of two: {other:?}"),
    };
    assert_eq!(*refused, clash(100), "in words for people");
    // Two that don't clash disturb each other by no more than another look.
    let (c, d) = (request(4, &[104]), request(5, &[105]));
    let (c, d) = tokio::join!(node.ops.let_in(&c, None), node.ops.let_in(&d, None));
    assert_ne!(c.unwrap().raft_id, d.unwrap().raft_id);
}

#[tokio::test]
async fn a_node_that_did_not_come_may_ask_again_or_be_removed() {
    let node = Node::start().await;
    node.ops.let_in(&request(2, &[100, 101]), None).await.unwrap();
    // Cut off; meanwhile its administrator has removed one guest and made another.
    let again = node.ops.let_in(&request(2, &[101, 102]), None).await.unwrap();
    assert_eq!(again.raft_id.0, 3, "numbers in Raft are never used again");
    node.ops.let_in(&request(3, &[100]), None).await.unwrap();
    assert_eq!(node.ops.let_in(&request(4, &[102]), None).await.unwrap_err(), clash(102));
    node.ops.remove_node(&root(), &name("n2")).await.unwrap();
    node.ops.let_in(&request(4, &[101, 102]), None).await.unwrap();
}

#[tokio::test]
async fn guests_that_came_along_get_their_configurations_once_and_none_is_lost() {
    // Seen from the joiner, after its start as a member: here n1 plays it.
    let node = Node::start().await;
    node.record_guest(100, "n1", |_| {}, "gone").await;
    let alone = stead_conf::Txn::new("test").delete(paths::guest(&name("n1"), node.own(100).kind, vmid(100)));
    node.commit(alone).await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.record_guest(101, "n2", |_| {}, "name: another's\n").await;
    let carried = vec![(vmid(100), "name: web\n".to_owned()), (vmid(101), "name: mine\n".to_owned())];
    node.host.carried.lock().unwrap().clone_from(&carried);

    let homeless = node.ops.bring_guests().await.unwrap();
    assert_eq!(node.ops.guest_at(vmid(100)).unwrap().config.value, "name: web\n");
    assert_eq!(node.ops.guest_at(vmid(101)).unwrap().config.value, "name: another's\n");
    assert!(homeless.len() == 1 && homeless[0].starts_with("guest 101"), "{homeless:?}");
    assert_eq!(*node.host.carried.lock().unwrap(), carried, "what has no place is kept");
    // A number that was reserved for nobody brings nothing back to life.
    node.host.carried.lock().unwrap().clone_from(&vec![(vmid(100), "name: old\n".to_owned())]);
    assert!(node.ops.bring_guests().await.unwrap().is_empty());
    assert_eq!(node.ops.guest_at(vmid(100)).unwrap().config.value, "name: web\n");
    assert!(node.host.carried.lock().unwrap().is_empty());
}

#[tokio::test]
async fn storages_come_along_with_the_node_or_it_stays_out() {
    let node = Node::start().await;
    let storage = |id: &str, path: &str| JoinStorage {
        id: id.parse().unwrap(),
        kind: "dir".into(),
        options: [("path", path), ("content", "images")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        vmids: vec![vmid(100)],
    };
    let wrong = JoinRequest { storages: vec![storage("local", "/elsewhere")], ..request(2, &[100]) };
    let why = node.ops.let_in(&wrong, None).await.unwrap_err().to_string();
    assert!(why.contains("storage 'local' (used by VM 100)"), "{why}");
    assert!(node.ops.node_record(&name("n2")).is_err(), "nothing has changed");
    let good = JoinRequest {
        storages: vec![storage("local", "/fake/local"), storage("fast", "/mnt/fast")],
        ..wrong
    };
    node.ops.let_in(&good, None).await.unwrap();
    let (text, _) = node.ops.file(paths::STORAGE_CFG).unwrap();
    assert!(text.starts_with(STORAGES) && text.contains("dir: fast") && text.contains("nodes n2"), "{text}");
}

#[tokio::test]
async fn a_node_that_entered_is_not_removed_with_its_guests() {
    let node = Node::start().await;
    node.ops.let_in(&request(2, &[100]), None).await.unwrap();
    let lost = NodeState::Lost { boot: BOOT.parse().unwrap() };
    node.record_node("n2", 2, uuid(2).as_str(), lost).await;
    let why = node.ops.remove_node(&root(), &name("n2")).await.unwrap_err().to_string();
    assert!(why.contains("still owns guests: 100"), "{why}");
}

#[tokio::test]
async fn nothing_changes_on_a_node_while_it_joins() {
    let node = Node::start().await;
    let make = async |n: u32| {
        let upid = node.ops.create_vm(&root(), vmid(n), &BTreeMap::new(), false).unwrap();
        node.ended(&upid).await.0
    };
    assert_eq!(make(100).await, "OK");
    // A member that takes the connection and says nothing.
    let member = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let information = JoinInfo {
        v: 1,
        addrs: vec![member.local_addr().unwrap()],
        fingerprint: Fingerprint([1; 32]),
        cluster: "test".into(),
        uuid: String::new(),
        token: None,
    }
    .to_string();
    let wish = JoinWish { information, auth: JoinAuth::Token("a.b".into()), links: LinkWish::default() };
    let joining = node.ops.join_cluster(&root(), wish).unwrap();
    let (silent, _) = member.accept().await.unwrap();
    let refused = make(101).await;
    assert!(refused.contains("this node is joining a cluster"), "{refused}");
    let start = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    let refused = node.ended(&start).await.0;
    assert!(refused.contains("this node is joining a cluster"), "{refused}");
    // The join fails, and the node goes on as before.
    drop((silent, member));
    assert_ne!(node.ended(&joining).await.0, "OK");
    assert_eq!(make(101).await, "OK");
}

#[tokio::test]
async fn any_member_tells_how_to_join_by_any_other_that_is_there() {
    let node = Node::start().await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.record_node("n3", 3, uuid(3).as_str(), member()).await;
    node.report_of("n2");
    let by = async |n: Option<&str>| {
        let info = node.ops.join_information(&root(), n.map(name).as_ref(), false).await;
        info.map_err(|e| e.to_string())
    };
    let own = by(None).await.unwrap();
    assert_eq!(own["preferred_node"], "n1");
    let prints: Vec<_> = own["nodelist"].as_array().unwrap().iter().map(|n| n["pve_fp"].clone()).collect();
    let (first, second) = (Fingerprint([7; 32]), Fingerprint([9; 32]));
    assert_eq!(prints, [first.to_string(), second.to_string(), String::new()]);
    let other = by(Some("n2")).await.unwrap();
    assert_eq!(other["preferred_node"], "n2");
    let info: JoinInfo = other["information"].as_str().unwrap().parse().unwrap();
    assert_eq!((info.addrs, info.fingerprint), (vec!["127.0.0.2:8006".parse().unwrap()], second));
    assert_eq!(by(Some("n3")).await.unwrap_err(), "node: node 'n3' does not answer now: name another one");
    assert_eq!(by(Some("n9")).await.unwrap_err(), "node: no such cluster node 'n9'");
}
