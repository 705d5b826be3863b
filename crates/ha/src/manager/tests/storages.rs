//! Nodes that lose a storage while they are well.

use super::lab::*;
use crate::state::*;
use std::sync::Arc;
use stead_model::RequestedState;

fn storage(name: &str) -> stead_model::StorageId {
    name.parse().unwrap()
}

fn gone(seconds: u64) -> StorageLoss {
    StorageLoss { fault: StorageFault::Inactive { why: "no such folder".into() }, seconds }
}

fn silent(seconds: u64) -> StorageLoss {
    StorageLoss { fault: StorageFault::Silent, seconds }
}

impl Lab {
    fn storing(mut self, name: &str, shared: bool, nodes: Option<&[u32]>) -> Self {
        let nodes = nodes.map(|n| n.iter().map(|n| super::lab::name(*n)).collect());
        self.view.storages.insert(storage(name), StorageView { shared, nodes, disabled: false });
        self
    }

    fn uses(&mut self, n: u32, storages: &[(&str, Use)]) {
        let all = storages.iter().map(|(name, how)| (storage(name), *how));
        self.seen(sid(n)).storages = Arc::new(all.collect());
    }

    fn loses(&mut self, node: u32, name: &str, loss: StorageLoss) {
        self.node(node).lost_storages.insert(storage(name), loss);
    }

    fn reason(&self, n: u32) -> &str {
        &self.status(sid(n)).reason
    }
}

/// Three nodes and their shared storage, on which vm:100 of n1 has its disk.
fn three() -> Lab {
    let lab = Lab::new(3).storing("nfs1", true, None).with(&[(100, 1), (101, 2)]);
    let mut lab = lab.options("storage_loss=move", "");
    lab.uses(100, &[("nfs1", Use::Disk)]);
    lab.settle();
    lab.story(sid(100));
    lab
}

#[test]
fn what_was_lost_for_long_enough_is_left_by_stop_and_start() {
    let mut lab = three();
    lab.loses(1, "nfs1", gone(29));
    lab.settle();
    assert_eq!(lab.is(sid(100)), "started n1");
    let why = "; waits: 'n1' has lost storage 'nfs1' (no such folder): it is moved if that lasts for 30 s";
    assert!(lab.reason(100).ends_with(why), "{}", lab.reason(100));
    lab.loses(1, "nfs1", gone(30));
    lab.step();
    let s = lab.status(sid(100));
    assert_eq!((s.state, s.timeout), (ServiceState::Relocate, Some(10)));
    assert_eq!(
        lab.reason(100),
        "'n1' has lost storage 'nfs1' (no such folder); to 'n3': the node with the fewest services (0)"
    );
    lab.settle();
    assert_eq!(lab.running(), ["100@n3", "101@n2"]);
    assert_eq!(lab.story(sid(100)), ["started", "relocate", "started"]);
    // It is back: nothing asks for the service to be.
    lab.node(1).lost_storages.clear();
    lab.settle();
    assert_eq!(lab.is(sid(100)), "started n3");
}

#[test]
fn what_passes_leaves_no_trace_but_in_the_history() {
    let mut lab = three();
    let before = lab.reason(100).to_owned();
    lab.loses(1, "nfs1", gone(5));
    lab.settle();
    assert_ne!(lab.reason(100), before);
    lab.node(1).lost_storages.clear();
    lab.settle();
    assert_eq!((lab.is(sid(100)).as_str(), lab.reason(100)), ("started n1", before.as_str()));
    assert_eq!(lab.story(sid(100)), ["started"]);
}

#[test]
fn where_a_storage_does_not_answer_nothing_is_even_tried() {
    let mut lab = three();
    lab.loses(1, "nfs1", silent(3600));
    lab.settle();
    assert_eq!(lab.running(), ["100@n1", "101@n2"]);
    assert!(
        lab.reason(100).contains("waits: storage 'nfs1', which does not answer on 'n1'"),
        "{}",
        lab.reason(100)
    );
    // Not for maintenance either, nor to even out the load.
    lab.ask(Request::Maintenance { node: name(1), on: true });
    lab.settle();
    assert_eq!(lab.is(sid(100)), "started n1");
    // With a second storage gone it is no better.
    lab.uses(100, &[("also", Use::Disk), ("nfs1", Use::Disk)]);
    lab.loses(1, "also", gone(7200));
    lab.settle();
    assert_eq!(lab.is(sid(100)), "started n1");
    // It answers again, if only with errors.
    lab.node(1).lost_storages.clear();
    lab.loses(1, "nfs1", gone(40));
    lab.settle();
    assert_eq!(lab.is(sid(100)), "started n3");
}

#[test]
fn what_cannot_be_stopped_stays_and_is_tried_again_later() {
    let mut lab = three();
    lab.stuck.insert(sid(100));
    lab.loses(1, "nfs1", gone(40));
    for _ in 0..100 {
        lab.step();
        assert_eq!(lab.seen(sid(100)).owner, name(1), "silence is never taken for stopped");
    }
    let tries = lab.story(sid(100)).iter().filter(|s| *s == "relocate").count();
    assert!((3..8).contains(&tries), "{tries}");
    lab.stuck.clear();
    for _ in 0..30 {
        lab.step();
    }
    assert_eq!(lab.is(sid(100)), "started n3");
}

#[test]
fn by_policy_it_is_only_reported() {
    let mut lab = three().options("storage_loss=report", "");
    lab.loses(1, "nfs1", gone(3600));
    lab.settle();
    assert_eq!(lab.is(sid(100)), "started n1");
    assert!(lab.reason(100).ends_with("by the cluster's option 'ha: storage_loss'"), "{}", lab.reason(100));
}

#[test]
fn it_is_not_placed_where_its_storages_are_not() {
    let mut lab = Lab::new(5)
        .storing("nfs1", true, Some(&[1, 2, 3, 4]))
        .storing("local", false, None)
        .with(&[(100, 1), (101, 2), (102, 2)]);
    lab.uses(100, &[("nfs1", Use::Disk), ("local", Use::Medium)]);
    lab.loses(3, "nfs1", silent(1));
    lab.loses(4, "local", gone(1));
    for (target, why) in [
        (3, "node 'n3' can't run it: storage 'nfs1' does not answer"),
        (4, "node 'n4' can't run it: storage 'local' can't be used: no such folder"),
        (5, "node 'n5' can't run it: storage 'nfs1' is not for this node"),
    ] {
        lab.ask_move(sid(100), target);
        lab.settle();
        assert_eq!(lab.dropped.pop().unwrap(), (false, why.to_owned()));
    }
    lab.lose(1);
    lab.settle();
    assert_eq!(
        lab.running(),
        ["100@n2", "101@n2", "102@n2"],
        "where there is most on, but also its storages"
    );
    lab.lose(2);
    lab.settle();
    let why = "(n1, n2: not online; n4: storage 'local' can't be used: no such folder; n3: storage 'nfs1' does not \
               answer; n5: storage 'nfs1' is not for this node)";
    assert!(lab.reason(100).ends_with(why), "{}", lab.reason(100));
    lab.node(3).lost_storages.clear();
    lab.settle();
    assert!(lab.running().contains(&"100@n3".to_owned()), "{:?}", lab.running());
}

#[test]
fn a_disk_that_only_one_node_has_keeps_its_guest_with_it() {
    let mut lab = Lab::new(3).storing("local", false, None).with(&[(100, 1)]);
    lab.uses(100, &[("local", Use::Disk)]);
    lab.lose(1);
    lab.settle();
    let why = "(n1: not online; n2, n3: storage 'local' is not shared, and its disk is on another node)";
    assert!(lab.reason(100).ends_with(why), "{}", lab.reason(100));
    lab.boot(1);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1"]);
}

#[test]
fn what_is_to_start_starts_where_its_storage_is() {
    let mut lab = three();
    lab.want(sid(100), RequestedState::Stopped);
    lab.settle();
    lab.loses(1, "nfs1", gone(1));
    lab.want(sid(100), RequestedState::Started);
    lab.settle();
    assert_eq!(lab.is(sid(100)), "started n3");
}

/// Its process is gone, and what it wrote may not have arrived.
#[test]
fn what_was_stopped_on_a_silent_storage_starts_nowhere_else() {
    let mut lab = three();
    lab.want(sid(100), RequestedState::Stopped);
    lab.settle();
    lab.loses(1, "nfs1", silent(600));
    lab.ask_move(sid(100), 2);
    lab.settle();
    let (taken, why) = lab.dropped.pop().unwrap();
    assert!(!taken && why.starts_with("it can't leave 'n1': storage 'nfs1'"), "{why}");
    lab.want(sid(100), RequestedState::Started);
    for on in [true, false] {
        lab.ask(Request::Maintenance { node: name(1), on });
        lab.settle();
        assert_eq!(lab.seen(sid(100)).owner, name(1));
        assert!(
            lab.reason(100).contains("waits: storage 'nfs1', which does not answer on 'n1'"),
            "{}",
            lab.reason(100)
        );
    }
    lab.node(1).lost_storages.clear();
    lab.settle();
    assert_eq!(lab.is(sid(100)), "started n1");
}

#[test]
fn a_node_that_is_to_be_empty_is_left_live_and_not_by_force() {
    let mut lab = three();
    lab.loses(1, "nfs1", gone(600));
    lab.ask(Request::Maintenance { node: name(1), on: true });
    lab.settle();
    let story = lab.story(sid(100));
    assert!(story.contains(&"migrate".to_owned()) && !story.contains(&"relocate".to_owned()), "{story:?}");
}

#[test]
fn those_together_leave_together_and_those_apart_stay_apart() {
    let mut lab = three().ruled(
        "resource-affinity: with\n    resources vm:100,vm:102\n    affinity positive\n\n\
         resource-affinity: without\n    resources vm:100,vm:101\n    affinity negative\n",
    );
    lab.add(sid(102), 1);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1", "101@n2", "102@n1"]);
    lab.loses(1, "nfs1", gone(31));
    lab.settle();
    assert_eq!(lab.running(), ["100@n3", "101@n2", "102@n3"]);
    lab.node(1).lost_storages.clear();
    lab.settle();
    assert_eq!(lab.running(), ["100@n3", "101@n2", "102@n3"]);
}

#[test]
fn where_nobody_has_it_all_stay() {
    let mut lab = three();
    for node in 1..=3 {
        lab.loses(node, "nfs1", gone(60));
    }
    lab.settle();
    assert_eq!(lab.running(), ["100@n1", "101@n2"]);
    assert!(lab.reason(100).contains("but no node can take it"), "{}", lab.reason(100));
}

#[test]
fn a_medium_that_is_gone_moves_nothing_that_runs() {
    let mut lab = three();
    lab.uses(100, &[("nfs1", Use::Medium)]);
    lab.loses(1, "nfs1", gone(600));
    lab.settle();
    assert_eq!(lab.running(), ["100@n1", "101@n2"]);
}
