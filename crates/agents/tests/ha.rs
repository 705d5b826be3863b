//! The HA agent's shell over one node's use cases.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::time::Duration;
use stead_conf::Txn;
use stead_ha::{ManagerState, Outcome, Service, ServiceState};
use stead_model::{GuestKind, ServiceId, paths};
use stead_ops::guest::Asked;
use stead_ops::store;
use stead_ops_testing::{Node, name, root, vmid};
use tokio::sync::watch;

#[tokio::test]
async fn an_ending_is_told_also_when_the_manager_s_state_could_not_be_read_just_then() {
    let node = Node::start().await;
    let upid = node.ops.create_vm(&root(), vmid(100), &BTreeMap::new(), false).unwrap();
    node.ended(&upid).await;
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    node.ended(&upid).await;

    let sid = ServiceId { kind: GuestKind::Qemu, vmid: vmid(100) };
    let service = Service {
        state: ServiceState::RequestStop,
        node: name("n1"),
        target: None,
        uid: 1,
        reason: "test".into(),
        failed_nodes: [].into(),
        relocate_tries: 0,
        maintenance_node: None,
        timeout: None,
        retry_at: None,
    };
    let state = ManagerState { service_status: [(sid, service)].into(), ..ManagerState::default() };
    let good = Txn::new("test")
        .put(paths::HA_RESOURCES, "vm: 100\n\tstate stopped\n")
        .put(paths::HA_STATUS, store::bytes(&state).unwrap());
    // The attempt waits for the guest's mutex, and ends while the state is damaged.
    let held = node.ops.guest_locks.lock(vmid(100)).await.unwrap();
    let (reports, mut reported) = watch::channel(stead_agents::ha::Reports::default());
    let mut tasks = node.ops.tasks.events();
    tokio::spawn(stead_agents::ha::agent(node.ops.clone(), reports));
    node.commit(good.clone()).await;
    let began = async {
        loop {
            if let stead_tasks::TaskEvent::Started(t) = tasks.recv().await.unwrap()
                && t.upid.worker == "qmshutdown"
            {
                return t.upid;
            }
        }
    };
    let upid = tokio::time::timeout(Duration::from_secs(30), began).await.unwrap();
    node.commit(Txn::new("test").put(paths::HA_STATUS, "{")).await;
    drop(held);
    assert_eq!(node.ended(&upid).await.0, "OK");
    // All runs in this one thread, so whatever is ready runs before this goes on: the ending comes to the agent, which
    // cannot read the manager's state.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    node.commit(good).await;
    let done = reported.wait_for(|r| r.services.get(&sid).is_some_and(|r| r.outcome == Outcome::Done));
    tokio::time::timeout(Duration::from_secs(10), done).await.expect("the agent was never told").unwrap();
}
