//! What the loss of nodes would mean, asked of the live cluster.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_conf::Txn;
use stead_ha::{Forecast, step};
use stead_model::{NodeName, paths};
use stead_ops::ha_view::{self, Known};
use stead_ops::status::{NodeReport, NodeStats};
use stead_ops::store;
use stead_ops::what_if::{FateWord, GuestForecast};
use stead_ops_testing::{Node, member, name, uuid};

const GIB: u64 = 1 << 30;

/// A fresh report of a node that has so much memory, `used` of it taken.
fn report(node: &Node, of: &str, total: u64, used: u64) {
    let stats = NodeStats { maxcpu: 4, maxmem: total, mem: used, ..NodeStats::default() };
    node.ops.take_report(&NodeReport { stats, ..stead_ops_testing::report(of) });
}

/// n1 to n3; n2 has two guests under HA and one that is not. The manager has seen them.
async fn cluster() -> Node {
    let node = Node::start().await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.record_node("n3", 3, uuid(3).as_str(), member()).await;
    report(&node, "n1", 8 * GIB, 7 * GIB);
    report(&node, "n2", 64 * GIB, GIB);
    report(&node, "n3", 16 * GIB, 2 * GIB);
    for n in [100, 101, 102] {
        let runs = |o: &mut stead_model::Ownership| (o.running, o.armed) = (true, n != 102);
        node.record_guest(n, "n2", runs, "memory: 8192\n").await;
    }
    let ha = "vm: 100\n\tstate started\n\nvm: 101\n\tstate started\n";
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, ha)).await;
    let view = ha_view::view(&node.ops, &mut Known::default(), |_| true).unwrap();
    let mut state = stead_ha::ManagerState::default();
    step(1000, &view, &mut state);
    node.commit(Txn::new("test").put(paths::HA_STATUS, store::bytes(&state).unwrap())).await;
    node
}

#[tokio::test]
async fn it_tells_where_guests_go_who_stays_and_what_memory_is_left() {
    let node = cluster().await;
    let found = node.ops.ha_what_if(vec![name("n2")]).await.unwrap();
    assert_eq!(found.any_one, None, "nobody has found that out yet");
    let loss = found.loss.unwrap();
    assert_eq!((loss.survives, loss.quorate, loss.lost), (false, true, vec![name("n2")]));
    let told = |g: &GuestForecast| (g.sid.to_string(), g.to.as_ref().map(NodeName::to_string), g.fate, g.ha);
    assert_eq!(
        loss.guests.iter().map(told).collect::<Vec<_>>(),
        [
            ("vm:100".to_owned(), Some("n3".to_owned()), FateWord::Runs, true),
            ("vm:101".to_owned(), None, FateWord::Down, true),
            ("vm:102".to_owned(), None, FateWord::Down, false),
        ]
    );
    assert!(
        loss.guests[1].reason.ends_with(
            "(n2: not online; n1, n3: too little memory left for the 8192 MiB that it may use, at most 6144 MiB are free)"
        ),
        "{}",
        loss.guests[1].reason
    );
    let room: Vec<_> = loss.nodes.iter().map(|n| (n.node.as_str(), n.left.map(|l| l / GIB))).collect();
    assert_eq!(room, [("n1", Some(1)), ("n2", None), ("n3", Some(6))]);
    let unknown = node.ops.ha_what_if(vec![name("n9")]).await.unwrap_err();
    assert_eq!(unknown.to_string(), "nodes: no such cluster node 'n9'");
}

#[tokio::test]
async fn what_the_leader_has_found_out_is_shown_in_the_status() {
    let node = cluster().await;
    let quorum = |node: &Node| node.ops.ha_status().unwrap().remove(0);
    assert!(quorum(&node).get("outlook").is_none());
    let now = ha_view::now(&node.ops, &mut Known::default(), |_| true).unwrap();
    let outlook = Forecast::new(&now).any_one();
    // From the report of the node that leads; another's own would come first.
    let mut leader = node.ops.status.node(&name("n3")).unwrap();
    (leader.seq, leader.outlook) = (2, Some(outlook.clone()));
    let sent = serde_json::to_value(&leader).unwrap();
    node.ops.take_report(&serde_json::from_value(sent).unwrap());
    let shown = quorum(&node);
    assert_eq!((&shown["type"], &shown["survives"]), (&"quorum".into(), &0.into()));
    let text = shown["outlook"].as_str().unwrap();
    assert!(
        text.starts_with("this cluster survives the loss of any one node: no, because without 'n1'"),
        "{text}"
    );
    let all = node.ops.ha_what_if(vec![]).await.unwrap();
    assert_eq!((all.loss, all.any_one.unwrap().text), (None, text.to_owned()));
    node.ops.status.foresee(Some(stead_ha::Outlook { survives: true, failing: 0, ..outlook }));
    assert_eq!(quorum(&node)["survives"], 1);
}

#[tokio::test]
async fn a_move_that_the_manager_would_refuse_is_refused_where_it_is_asked_for() {
    let node = cluster().await;
    let go = |target: &str| stead_ha::Request::Move {
        sid: "vm:100".parse().unwrap(),
        target: name(target),
        relocate: false,
    };
    node.ops.ha_request("root@pam", &go("n3")).await.unwrap();
    // It has come back, and has no lease yet.
    let mut state = ha_view::manager_state(&node.ops).unwrap().0;
    state.node_status.insert(name("n3"), stead_ha::NodeStatus::Unknown);
    node.commit(Txn::new("test").put(paths::HA_STATUS, store::bytes(&state).unwrap())).await;
    let why = node.ops.ha_request("root@pam", &go("n3")).await.unwrap_err().to_string();
    assert!(why.contains("does not count on target node 'n3' now (unknown)"), "{why}");
}

/// A member that is not counted on yet, and is in a moment.
#[tokio::test]
async fn a_move_waits_for_a_node_that_has_just_come_back() {
    let node = cluster().await;
    node.record_guest(103, "n1", |_| {}, "memory: 512\n").await;
    let ha = "vm: 103\n\tstate started\n";
    let mut state = ha_view::manager_state(&node.ops).unwrap().0;
    state.node_status.insert(name("n3"), stead_ha::NodeStatus::Unknown);
    let counted = |s: &stead_ha::ManagerState| store::bytes(s).unwrap();
    node.commit(Txn::new("test").put(paths::HA_RESOURCES, ha).put(paths::HA_STATUS, counted(&state))).await;
    let options = stead_ops::guest::migrate::MigrateOptions::to(name("n3"), false);
    let by_user = stead_ops::guest::Asked::default();
    let task = node
        .ops
        .migrate(&stead_ops_testing::root(), stead_ops_testing::vmid(103), options, by_user)
        .await
        .unwrap();
    state.node_status.insert(name("n3"), stead_ha::NodeStatus::Online);
    node.commit(Txn::new("test").put(paths::HA_STATUS, counted(&state))).await;
    let (status, log) = node.ended(&task).await;
    assert_eq!(status, "OK", "{log}");
}
