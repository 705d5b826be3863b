//! Where services go: rules, failback, load, rebalancing.

use super::*;
use crate::state::{Load, Stats};
use lab::GIB;

const APART: &str = "resource-affinity: apart\n    resources vm:100,vm:101,vm:102\n    affinity negative\n";
const TOGETHER: &str = "resource-affinity: with\n    resources vm:100,vm:101,vm:102\n    affinity positive\n";
const LADDER: &str = "node-affinity: ladder\n    resources vm:100\n    nodes n1:2,n2:1\n";

#[test]
fn priorities_are_followed_down_and_failback_up_again() {
    let mut lab = Lab::new(4).ruled(LADDER).with(&[(100, 4)]);
    assert_eq!(lab.running(), ["100@n1"], "a better node draws it");
    lab.lose(1);
    lab.settle();
    assert_eq!(lab.running(), ["100@n2"]);
    lab.lose(2);
    lab.settle();
    assert_eq!(lab.running(), ["100@n3"], "the rule is not strict");
    lab.boot(2);
    lab.settle();
    assert_eq!(lab.running(), ["100@n2"]);
    lab.boot(1);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1"]);
}

#[test]
fn without_failback_it_stays_on_any_node_that_its_rule_allows() {
    let mut lab = Lab::new(3).ruled(&format!("{LADDER}    strict 1\n"));
    lab.add(sid(100), 1).resource.failback = false;
    lab.settle();
    lab.lose(1);
    lab.settle();
    lab.boot(1);
    lab.settle();
    assert_eq!(lab.running(), ["100@n2"]);
    lab.ask_move(sid(100), 1);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1"]);
    lab.ask_move(sid(100), 3);
    lab.settle();
    assert_eq!(
        (lab.running(), lab.dropped.last().unwrap().1.as_str()),
        (vec!["100@n1".to_owned()], "its rule 'ladder' does not allow 'n3'")
    );
    // Moved by hand to where a strict rule does not allow it: it comes back all the same.
    lab.seen(sid(100)).owner = name(3);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1"]);
}

#[test]
fn a_move_that_failback_would_undo_is_refused() {
    let mut lab = Lab::new(2).ruled(LADDER).with(&[(100, 1)]);
    lab.ask_move(sid(100), 2);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1"]);
    assert!(lab.dropped[0].1.contains("it would come back from 'n2' at once"), "{:?}", lab.dropped);
}

#[test]
fn a_negative_node_rule_keeps_it_from_nodes() {
    let rule =
        "node-affinity: not\n    resources vm:100\n    nodes n1,n2\n    affinity negative\n    strict 1\n";
    let lab = Lab::new(3).ruled(rule).with(&[(100, 1)]);
    assert_eq!(lab.running(), ["100@n3"]);
}

#[test]
fn what_is_to_be_apart_spreads_with_the_fewest_moves() {
    let mut lab = Lab::new(4).with(&[(100, 1), (101, 1), (102, 2), (103, 4)]);
    lab.view.rules = Lab::new(1).ruled(APART).view.rules;
    lab.history.clear();
    lab.settle();
    assert_eq!(lab.running(), ["100@n3", "101@n1", "102@n2", "103@n4"]);
    let moves = lab.history.iter().filter(|(_, c)| c.state == Some(ServiceState::Migrate)).count();
    assert_eq!(moves, 1);
    lab.ask_move(sid(100), 1);
    lab.settle();
    assert_eq!(lab.dropped[0].1, "rule 'apart' keeps it from 'n1', where another of its resources is");
    lab.lose(3);
    lab.settle();
    assert_eq!(lab.running(), ["100@n4", "101@n1", "102@n2", "103@n4"]);
    lab.lose(4);
    lab.settle();
    assert_eq!(lab.running()[..2], ["101@n1", "102@n2"]);
    assert!(
        lab.status(sid(100))
            .reason
            .ends_with("waits: no node can take it (n1, n2: kept apart by rule 'apart'; n3, n4: not online)")
    );
}

#[test]
fn what_is_to_be_together_gathers_moves_and_recovers_together() {
    let mut lab = Lab::new(3).with(&[(100, 1), (101, 2), (102, 2), (103, 1)]);
    lab.view.rules = Lab::new(1).ruled(TOGETHER).view.rules;
    lab.settle();
    assert_eq!(lab.running(), ["100@n2", "101@n2", "102@n2", "103@n1"], "where most of them are");
    lab.ask_move(sid(101), 1);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1", "101@n1", "102@n1", "103@n1"]);
    lab.lose(1);
    lab.settle();
    assert_eq!(lab.running(), ["100@n2", "101@n2", "102@n2", "103@n3"]);
}

#[test]
fn those_together_leave_for_maintenance_and_come_back_together() {
    let mut lab = Lab::new(3).ruled(TOGETHER).with(&[(100, 3), (101, 3), (102, 3)]);
    lab.ask(Request::Maintenance { node: name(3), on: true });
    lab.settle();
    assert_eq!(lab.running(), ["100@n1", "101@n1", "102@n1"]);
    lab.ask(Request::Maintenance { node: name(3), on: false });
    lab.settle();
    assert_eq!(lab.running(), ["100@n3", "101@n3", "102@n3"]);
}

#[test]
fn when_one_fails_to_start_those_that_are_to_be_with_it_follow_it() {
    let mut lab = Lab::new(3).ruled(TOGETHER).with(&[(100, 3), (101, 3), (102, 3), (103, 1)]);
    lab.broken.insert((sid(100), name(2)));
    lab.lose(3);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1", "101@n1", "102@n1", "103@n1"]);
    assert!(lab.status(sid(100)).failed_nodes.is_empty());
}

#[test]
fn apart_and_together_at_once() {
    let rules = "resource-affinity: a\n    resources vm:100,vm:101\n    affinity positive\n\n\
                 resource-affinity: b\n    resources vm:200,vm:201\n    affinity positive\n\n\
                 resource-affinity: not\n    resources vm:101,vm:200\n    affinity negative\n";
    let mut lab = Lab::new(3).ruled(rules).with(&[(100, 1), (101, 2), (200, 1), (201, 3)]);
    let at = |lab: &Lab, n| lab.status(sid(n)).node.clone();
    for round in 0..2 {
        assert_eq!((at(&lab, 100), at(&lab, 200)), (at(&lab, 101), at(&lab, 201)), "{round}");
        assert_ne!(at(&lab, 100), at(&lab, 200));
        let lost = at(&lab, 100).as_str()[1..].parse().unwrap();
        lab.lose(lost);
        lab.settle();
        lab.boot(lost);
        lab.settle();
    }
}

#[test]
fn a_move_of_what_goes_together_ends_where_one_of_it_waits() {
    let rules = "resource-affinity: a\n    resources vm:100,vm:101\n    affinity positive\n\n\
                 node-affinity: disks\n    resources vm:101\n    nodes n2\n    strict 1\n";
    let mut lab = Lab::new(3).ruled(rules).with(&[(100, 2), (101, 2)]);
    lab.want(sid(101), RequestedState::Stopped);
    lab.settle();
    lab.silence(2);
    lab.seen(sid(101)).owner = name(1);
    lab.seen(sid(100)).owner = name(1);
    lab.want(sid(101), RequestedState::Started);
    lab.settle();
    assert_eq!([100, 101].map(|n| lab.is(sid(n))), ["started n1", "request_start n1"]);
    lab.ask_move(sid(100), 3);
    lab.step();
    let (taken, why) = &lab.dropped[0];
    assert!(!taken && why.starts_with("vm:101, which goes with it, waits: "), "{why}");
    assert_eq!(lab.is(sid(100)), "started n1");
}

#[test]
fn rules_that_contradict_each_other_are_left_out_and_shown() {
    let lab = Lab::new(2).ruled(&format!("{TOGETHER}\n{APART}")).with(&[(100, 1), (101, 2), (102, 1)]);
    assert_eq!(lab.running(), ["100@n1", "101@n1", "102@n1"], "the other rule is in force");
    assert_eq!(lab.state.rule_errors["apart"], "it keeps 3 resources apart, but the cluster has 2 nodes");
    let lab = Lab::new(3).ruled(&format!("{TOGETHER}\n{APART}")).with(&[(100, 1)]);
    assert_eq!(lab.state.rule_errors.len(), 2);
}

#[test]
fn a_rule_in_force_later_moves_what_runs_elsewhere() {
    let mut lab = Lab::new(3).with(&[(100, 1)]);
    lab.view.rules =
        Lab::new(1).ruled("node-affinity: a\n    resources vm:100\n    nodes n3\n    strict 1\n").view.rules;
    lab.settle();
    assert_eq!(lab.running(), ["100@n3"]);
}

#[test]
fn a_guest_goes_only_where_there_is_memory_for_it() {
    let mut lab = Lab::new(3).with(&[(100, 1), (101, 2), (102, 2)]);
    lab.node(3).others =
        Stats { max: Load { cpu: 0.0, mem: 127 * GIB }, used: Load { cpu: 0.0, mem: 127 * GIB } };
    lab.lose(1);
    lab.settle();
    assert_eq!(lab.running(), ["100@n2", "101@n2", "102@n2"], "n3 has fewer services, but no memory");
    lab.seen(sid(101)).stats.max.mem = 126 * GIB;
    lab.lose(2);
    lab.node(3).others.used.mem = 118 * GIB;
    lab.settle();
    assert_eq!(lab.running(), ["100@n3", "102@n3"]);
    let why = "waits: no node can take it (n1, n2: not online; n3: too little memory left for the 129024 MiB that it may use, at most 6144 MiB are free)";
    assert!(lab.status(sid(101)).reason.ends_with(why), "{}", lab.status(sid(101)).reason);
}

#[test]
fn load_weighs_memory_first_and_goes_by_capacity() {
    let mut lab = Lab::new(3).options("shutdown_policy=migrate", "ha=static").with(&[]);
    for n in 0..6 {
        let s = lab.add(sid(100 + n), 1);
        s.stats.max = Load { cpu: 2.0, mem: 4 * GIB };
    }
    lab.node(2).capacity = Load { cpu: 64.0, mem: 200 * GIB };
    lab.node(3).capacity = Load { cpu: 32.0, mem: 100 * GIB };
    lab.settle();
    lab.ask(Request::Maintenance { node: name(1), on: true });
    lab.settle();
    assert_eq!(lab.running(), ["100@n2", "101@n2", "102@n3", "103@n2", "104@n2", "105@n3"]);
}

#[test]
fn what_is_started_goes_where_there_is_room_if_that_is_asked_for() {
    let mut lab = Lab::new(3).options("", "ha=dynamic,ha-rebalance-on-start=1").with(&[(190, 1), (191, 2)]);
    lab.add(sid(100), 1);
    lab.settle();
    assert_eq!(lab.running(), ["100@n3", "190@n1", "191@n2"]);
    let mut lab =
        Lab::new(3).options("", "ha=dynamic,ha-rebalance-on-start=1").with(&[(190, 1), (191, 1), (192, 1)]);
    assert_eq!(lab.running(), ["190@n1", "191@n1", "192@n1"], "what runs already is left alone");
    lab.want(sid(192), Stopped);
    lab.settle();
    lab.want(sid(192), Started);
    lab.settle();
    assert_eq!(lab.running(), ["190@n1", "191@n1", "192@n2"]);
}

const AUTO: &str = "ha=dynamic,ha-auto-rebalance=1";

#[test]
fn an_imbalance_that_lasts_is_evened_out_move_by_move() {
    for method in ["bruteforce", "topsis"] {
        let crs = format!("{AUTO},ha-auto-rebalance-method={method}");
        let mut lab = Lab::new(3).options("", &crs);
        for n in 0..4 {
            let s = lab.add(sid(100 + n), 1);
            (s.running, s.armed, s.process) = (true, true, Process::Running);
        }
        lab.step();
        let since = lab.now;
        while lab.history.iter().all(|(_, c)| c.state != Some(ServiceState::Migrate)) {
            lab.step();
        }
        assert_eq!(lab.now - since, 30, "three rounds of ten seconds");
        for _ in 0..100 {
            lab.step();
        }
        assert_eq!(lab.running(), ["100@n2", "101@n3", "102@n1", "103@n1"], "{method}");
        assert!(
            lab.status(sid(100)).reason.contains("imbalance 141 % → 94 %"),
            "{}",
            lab.status(sid(100)).reason
        );
    }
}

#[test]
fn what_ends_in_time_moves_nothing() {
    let mut lab = Lab::new(3).options("", AUTO).with(&[(100, 1), (101, 2), (102, 3)]);
    lab.seen(sid(100)).stats.used = Load { cpu: 20.0, mem: 90 * GIB };
    for _ in 0..25 {
        lab.step();
    }
    assert!(lab.state.imbalanced_since.is_some());
    lab.seen(sid(100)).stats.used = Load { cpu: 2.0, mem: 2 * GIB };
    for _ in 0..100 {
        lab.step();
    }
    assert_eq!(
        (lab.running(), lab.state.imbalanced_since),
        (vec!["100@n1".into(), "101@n2".into(), "102@n3".into()], None)
    );
}

#[test]
fn rebalancing_keeps_to_rules_locks_and_wishes() {
    let run = |change: fn(&mut Lab)| {
        let mut lab = Lab::new(3).options("", AUTO);
        for n in 0..3 {
            let s = lab.add(sid(100 + n), 1);
            (s.running, s.armed, s.process) = (true, true, Process::Running);
        }
        lab.seen(sid(102)).stats.used.cpu = 1.0;
        change(&mut lab);
        for _ in 0..200 {
            lab.step();
        }
        lab.running().join(" ")
    };
    assert_eq!(run(|_| {}), "100@n2 101@n3 102@n1");
    assert_eq!(run(|l| l.seen(sid(100)).resource.auto_rebalance = false), "100@n1 101@n2 102@n3");
    assert_eq!(run(|l| l.seen(sid(100)).lock = Some("backup".into())), "100@n1 101@n2 102@n3");
    assert_eq!(
        run(|l| l.view.rules = Lab::new(1)
            .ruled("node-affinity: a\n    resources vm:100,vm:101,vm:102\n    nodes n1,n3\n")
            .view
            .rules),
        "100@n3 101@n1 102@n1"
    );
    assert_eq!(
        run(|l| l.view.rules = Lab::new(1)
            .ruled("resource-affinity: a\n    resources vm:100,vm:101\n    affinity positive\n")
            .view
            .rules),
        "100@n2 101@n2 102@n1"
    );
}

/// An earlier choice's commit may come through after another node was chosen.
#[test]
fn what_was_recovered_elsewhere_than_chosen_last_counts_where_it_is() {
    let rules = "resource-affinity: apart\n    resources vm:100,vm:101\n    affinity negative\n";
    let mut lab = Lab::new(3).with(&[(100, 3), (101, 1)]);
    lab.lose(1);
    let s = lab.state.service_status.get_mut(&sid(101)).unwrap();
    (s.state, s.target) = (ServiceState::Recovery, Some(name(3)));
    let seen = lab.seen(sid(101));
    (seen.owner, seen.epoch) = (name(2), seen.epoch.next());
    (seen.running, seen.armed, seen.process) = (false, false, Process::Absent);
    let mut lab = lab.ruled(rules);
    lab.step();
    assert_eq!((lab.is(sid(100)), lab.is(sid(101))), ("started n3".to_owned(), "started n2".to_owned()));
}

/// What waits for its recovery on a node that is back in the same round runs there.
#[test]
fn what_waited_on_a_node_that_is_back_counts_there() {
    let rules = "resource-affinity: apart\n    resources vm:100,vm:101\n    affinity negative\n";
    let mut lab = Lab::new(2).with(&[(100, 1), (101, 2)]);
    for (n, node) in [(100, 1), (101, 2)] {
        lab.lose(node);
        let s = lab.state.service_status.get_mut(&sid(n)).unwrap();
        (s.state, s.node, s.target) = (ServiceState::Recovery, name(node), None);
    }
    lab.boot(2);
    let mut lab = lab.ruled(rules);
    lab.step();
    assert_eq!(lab.is(sid(101)), "started n2");
    assert_eq!((lab.is(sid(100)), lab.status(sid(100)).target.clone()), ("recovery n1".to_owned(), None));
}

/// What is started again where it is holds that node for those after it in the round.
#[test]
fn what_is_started_again_in_the_same_round_counts_where_it_is() {
    let rules = "resource-affinity: apart\n    resources vm:100,vm:101\n    affinity negative\n";
    for state in [ServiceState::RequestStop, ServiceState::Stopped] {
        for running in [true, false] {
            let mut lab = Lab::new(2).ruled(rules).with(&[(100, 1), (101, 2)]);
            lab.state.service_status.get_mut(&sid(100)).unwrap().state = state;
            let seen = lab.seen(sid(100));
            (seen.running, seen.armed, seen.process) = (running, running, Process::Absent);
            lab.ask_move(sid(101), 1);
            lab.step();
            assert_eq!(
                (lab.is(sid(100)), lab.is(sid(101))),
                ("started n1".to_owned(), "started n2".to_owned()),
                "{state:?} {running}"
            );
            assert_eq!(
                lab.dropped,
                [(false, "rule 'apart' keeps it from 'n1', where another of its resources is".to_owned())]
            );
        }
    }
}

/// What may run still is started where it is without a choice: it holds that node for those before it in the round, too.
#[test]
fn what_may_run_still_and_is_to_be_started_again_counts_where_it_is() {
    let rules = "resource-affinity: apart\n    resources vm:100,ct:102\n    affinity negative\n";
    for state in [ServiceState::RequestStop, ServiceState::Stopped] {
        let mut lab = Lab::new(2).ruled(rules).with(&[(100, 1)]);
        lab.add(ct(102), 2);
        lab.settle();
        lab.lose(2);
        lab.state.service_status.get_mut(&sid(100)).unwrap().state = state;
        lab.seen(sid(100)).process = Process::Absent;
        lab.step();
        assert_eq!(lab.is(sid(100)), "started n1");
        assert_eq!(
            (lab.is(ct(102)), lab.status(ct(102)).target.clone()),
            ("recovery n2".to_owned(), None),
            "{state:?}"
        );
    }
}

/// A recovery's commit came through after the manager took its node for back: what is started next sees it where it is.
#[test]
fn what_was_handed_over_unseen_counts_where_it_is_for_those_before_it() {
    let rules = "resource-affinity: apart\n    resources vm:100,ct:102\n    affinity negative\n";
    let mut lab = Lab::new(3).ruled(rules).with(&[(100, 1)]);
    lab.add(ct(102), 3);
    let seen = lab.seen(sid(100));
    (seen.owner, seen.epoch) = (name(3), seen.epoch.next());
    (seen.running, seen.armed, seen.process) = (false, false, Process::Absent);
    lab.step();
    assert_eq!(lab.is(sid(100)), "started n3");
    assert_eq!(
        (lab.is(ct(102)), lab.status(ct(102)).target.clone()),
        ("relocate n3".to_owned(), Some(name(1)))
    );
}

/// What was moved by hand holds the node where it is, and not the one that it left, whoever comes first in the round.
#[test]
fn what_was_moved_by_hand_counts_where_it_is() {
    let rules = "resource-affinity: apart\n    resources vm:100,vm:101\n    affinity negative\n";
    let refused = "rule 'apart' keeps it from 'n3', where another of its resources is".to_owned();
    for (moved, other) in [(101, 100), (100, 101)] {
        for (target, dropped) in [(3, (false, refused.clone())), (1, (true, "taken".to_owned()))] {
            let mut lab = Lab::new(3).ruled(rules).with(&[(moved, 1), (other, 2)]);
            let seen = lab.seen(sid(moved));
            (seen.owner, seen.epoch) = (name(3), seen.epoch.next());
            lab.ask_move(sid(other), target);
            lab.step();
            let to = dropped.0.then(|| name(target));
            assert_eq!(lab.dropped, [dropped], "{other} to n{target}");
            assert_eq!((lab.is(sid(moved)), &lab.status(sid(other)).target), ("started n3".to_owned(), &to));
        }
    }
}

/// What is stopped, and was moved by hand, is in nobody's way.
#[test]
fn what_is_stopped_and_was_moved_by_hand_holds_no_node() {
    let rules = "resource-affinity: apart\n    resources vm:100,vm:101\n    affinity negative\n";
    let mut lab = Lab::new(3).ruled(rules).with(&[(100, 1), (101, 2)]);
    lab.want(sid(100), Stopped);
    lab.settle();
    lab.seen(sid(100)).owner = name(3);
    lab.ask_move(sid(101), 3);
    lab.step();
    assert_eq!(lab.dropped, [(true, "taken".to_owned())]);
    assert_eq!(lab.is(sid(100)), "stopped n3");
    assert_eq!(lab.status(sid(101)).target, Some(name(3)));
}

/// Recoveries go on while HA is being disarmed: they see what was moved by hand where it is.
#[test]
fn what_was_moved_by_hand_counts_where_it_is_while_ha_is_being_disarmed() {
    let rules = "resource-affinity: apart\n    resources vm:100,vm:101\n    affinity negative\n";
    let mut lab = Lab::new(3).ruled(rules).with(&[(100, 1), (101, 3)]);
    lab.lose(3);
    let s = lab.state.service_status.get_mut(&sid(101)).unwrap();
    (s.state, s.target) = (ServiceState::Recovery, None);
    let seen = lab.seen(sid(100));
    (seen.owner, seen.epoch) = (name(2), seen.epoch.next());
    lab.ask(Request::Disarm { mode: DisarmMode::Freeze });
    lab.step();
    assert_eq!(lab.is(sid(100)), "started n2");
    assert_eq!(
        (lab.is(sid(101)), lab.status(sid(101)).target.clone()),
        ("recovery n3".to_owned(), Some(name(1)))
    );
}
