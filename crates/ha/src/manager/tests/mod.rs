//! What becomes of services, feature by feature.

use super::*;
use crate::agent::{AgentMode, Leave};
use crate::state::{DisarmMode, NodeStatus};
use lab::{Lab, ct, name, sid};

pub(crate) mod lab;
mod places;
mod random;
mod storages;

use RequestedState::{Disabled, Ignored, Started, Stopped};

#[test]
fn a_new_service_is_kept_where_it_is_and_then_nothing_is_written() {
    let mut lab = Lab::new(3).with(&[(100, 1)]);
    assert_eq!(lab.is(sid(100)), "started n1");
    assert_eq!(lab.story(sid(100)), ["request_start", "started"]);
    let before = lab.state.clone();
    assert_eq!(lab.step(), []);
    assert_eq!(lab.state, before);
}

#[test]
fn every_requested_state_is_reached() {
    let mut lab = Lab::new(2);
    for (n, state) in [(100, Started), (101, Stopped), (102, Disabled), (103, Ignored)] {
        lab.add(sid(n), 1).resource.state = state;
    }
    lab.add(ct(104), 2);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1", "104@n2"]);
    assert_eq!([101, 102].map(|n| lab.is(sid(n))), ["stopped n1", "stopped n1"]);
    assert!(!lab.state.service_status.contains_key(&sid(103)));
    for state in [Stopped, Started, Disabled, Started] {
        lab.want(sid(100), state);
        lab.settle();
        assert_eq!(lab.seen(sid(100)).process == Process::Running, state == Started);
    }
    lab.want(sid(100), Ignored);
    lab.settle();
    assert_eq!(lab.story(sid(100)).last().map(String::as_str), Some("-"), "HA lets go of it");
    assert_eq!(lab.running(), ["100@n1", "104@n2"], "and leaves it alone");
}

#[test]
fn silence_moves_nothing_and_a_committed_loss_does() {
    let mut lab = Lab::new(3).with(&[(100, 1)]);
    lab.silence(1);
    lab.settle();
    assert_eq!(
        (lab.is(sid(100)), lab.state.node_status[&name(1)]),
        ("started n1".into(), NodeStatus::Unknown)
    );
    lab.lose(1);
    lab.history.clear();
    let commands = lab.step();
    assert!(
        commands.iter().any(|c| matches!(c, Command::Recover { to, .. } if *to == name(2))),
        "{commands:?}"
    );
    assert_eq!(lab.state.node_status[&name(1)], NodeStatus::Fence);
    lab.settle();
    assert_eq!(lab.story(sid(100)), ["fence", "recovery", "recovery", "started"]);
    assert_eq!(lab.running(), ["100@n2"]);
    assert!(lab.status(sid(100)).reason.starts_with("node 'n1' is lost; to 'n2': "));
}

#[test]
fn stopped_services_are_recovered_too_and_disabled_ones_stay() {
    let mut lab = Lab::new(3);
    lab.add(sid(100), 1).resource.state = Stopped;
    lab.add(sid(101), 1).resource.state = Disabled;
    lab.settle();
    lab.lose(1);
    lab.settle();
    assert_eq!([100, 101].map(|n| lab.is(sid(n))), ["stopped n2", "stopped n1"]);
    let mut lab = Lab::new(3).with(&[(100, 1)]);
    lab.silence(1);
    lab.want(sid(100), Disabled);
    lab.settle();
    lab.lose(1);
    lab.settle();
    assert_eq!((lab.is(sid(100)), lab.running()), ("stopped n1".into(), vec![]), "its copy is safe");
}

#[test]
fn an_unguarded_guest_is_not_recovered() {
    let mut lab = Lab::new(3).with(&[(100, 1)]);
    lab.lose(1);
    lab.seen(sid(100)).armed = false;
    lab.settle();
    assert_eq!(lab.is(sid(100)), "recovery n1");
    assert!(lab.status(sid(100)).reason.contains("waits: it may run there without a guard"));
    lab.seen(sid(100)).running = false;
    lab.settle();
    assert_eq!(lab.running(), ["100@n2"]);
}

#[test]
fn a_recovery_without_an_allowed_node_waits_says_why_and_goes_on() {
    let rule = "node-affinity: disks\n    resources vm:100\n    nodes n1,n2\n    strict 1\n";
    let mut lab = Lab::new(3).ruled(rule).with(&[(100, 1)]);
    lab.lose(2);
    lab.lose(1);
    lab.settle();
    assert_eq!(lab.is(sid(100)), "recovery n1");
    assert_eq!(
        lab.status(sid(100)).reason,
        "node 'n1' is lost; waits: no node that its rule 'disks' allows can take it (n1, n2: not online)"
    );
    // So a user's move has no end either, unless it is refused.
    lab.ask_move(sid(100), 3);
    lab.step();
    let refused = "it waits: no node that its rule 'disks' allows can take it (n1, n2: not online)";
    assert_eq!(lab.dropped, [(false, refused.to_owned())]);
    lab.boot(2);
    lab.settle();
    assert_eq!(lab.running(), ["100@n2"]);
}

#[test]
fn a_target_that_was_chosen_stays_chosen_until_something_speaks_against_it() {
    let mut lab = Lab::new(4).with(&[(100, 1)]);
    lab.lose(1);
    let mut state = lab.state.clone();
    let target = |c: &[Command]| {
        c.iter()
            .find_map(|c| if let Command::Recover { to, .. } = c { Some(to.clone()) } else { None })
            .unwrap()
    };
    assert_eq!(target(&crate::step(1, &lab.view, &mut state)), name(2));
    let mut other = lab.view.services[&sid(100)].clone();
    other.resource.sid = sid(200);
    other.owner = name(2);
    lab.view.services.insert(sid(200), other);
    let again = crate::step(2, &lab.view, &mut state);
    assert_eq!(target(&again), name(2), "although others are emptier by now");
    lab.node(2).word = NodeWord::Unknown;
    assert_eq!(target(&crate::step(3, &lab.view, &mut state)), name(3));
}

#[test]
fn a_lock_that_ended_with_its_node_goes_and_another_stays() {
    for (lock, gone) in [("backup", true), ("migrate", true), ("create", false), ("rollback", false)] {
        let mut lab = Lab::new(2).with(&[(100, 1)]);
        lab.seen(sid(100)).lock = Some(lock.into());
        lab.lose(1);
        lab.settle();
        assert_eq!(lab.seen(sid(100)).lock.is_none(), gone, "{lock}");
        assert_eq!(lab.is(sid(100)).starts_with("started"), gone);
    }
}

#[test]
fn restarts_and_relocations_are_counted_then_it_is_error_until_disabled() {
    let mut lab = Lab::new(4);
    lab.add(sid(100), 1).resource.max_relocate = 2;
    lab.broken = (1..=4).map(|n| (sid(100), name(n))).collect();
    lab.settle();
    assert_eq!(
        lab.story(sid(100)),
        [
            "request_start",
            "started",
            "request_start",
            "relocate",
            "started",
            "request_start",
            "relocate",
            "started",
            "error"
        ]
    );
    let nodes: Vec<&str> = lab.status(sid(100)).failed_nodes.iter().map(NodeName::as_str).collect();
    assert_eq!((lab.is(sid(100)), nodes), ("error n3".into(), vec!["n1", "n2", "n3"]));
    lab.want(sid(100), Stopped);
    lab.settle();
    assert_eq!(lab.is(sid(100)), "error n3", "left only by disabling");
    lab.want(sid(100), Disabled);
    lab.settle();
    assert_eq!(lab.is(sid(100)), "stopped n3");
    // The count begins anew with a start that works, not with a wish.
    lab.want(sid(100), Started);
    lab.settle();
    assert_eq!(lab.is(sid(100)), "error n3");
    lab.want(sid(100), Disabled);
    lab.settle();
    lab.broken.clear();
    lab.want(sid(100), Started);
    lab.settle();
    assert_eq!((lab.is(sid(100)), lab.status(sid(100)).relocate_tries), ("started n3".into(), 0));
    assert!(lab.status(sid(100)).failed_nodes.is_empty());
}

#[test]
fn a_failed_service_is_tried_again_where_it_is_if_no_other_node_can_take_it() {
    let mut lab = Lab::new(1);
    lab.add(sid(100), 1);
    lab.broken.insert((sid(100), name(1)));
    lab.settle();
    assert_eq!(
        lab.story(sid(100)),
        ["request_start", "started", "request_start", "started", "error"],
        "max_relocate is 1"
    );
}

#[test]
fn what_cannot_be_stopped_is_an_error_and_is_tried_until_it_stops_once_disabled() {
    let mut lab = Lab::new(2).with(&[(100, 1)]);
    lab.stuck.insert(sid(100));
    lab.want(sid(100), Disabled);
    lab.settle();
    assert_eq!(lab.is(sid(100)), "error n1");
    assert!(lab.status(sid(100)).reason.starts_with("could not be stopped: it hangs"));
    lab.stuck.clear();
    for _ in 0..3 {
        lab.step();
    }
    lab.settle();
    assert_eq!(lab.is(sid(100)), "stopped n1");
}

#[test]
fn a_stop_takes_the_time_that_its_user_names() {
    let mut lab = Lab::new(2).with(&[(100, 1)]);
    lab.want(sid(100), Stopped);
    lab.ask(Request::Stop { sid: sid(100), timeout: 37 });
    crate::step(1, &lab.view, &mut lab.state);
    assert_eq!((lab.is(sid(100)), lab.status(sid(100)).timeout), ("request_stop n1".into(), Some(37)));
    let uid = lab.status(sid(100)).uid;
    // It hangs in its shutdown, and its user loses patience.
    lab.view.requests.clear();
    lab.ask(Request::Stop { sid: sid(100), timeout: 0 });
    crate::step(2, &lab.view, &mut lab.state);
    assert_eq!(lab.status(sid(100)).timeout, Some(0));
    assert!(lab.status(sid(100)).uid > uid, "the agent begins anew");
    lab.settle();
    assert_eq!((lab.is(sid(100)), lab.status(sid(100)).timeout), ("stopped n1".into(), None));
}

#[test]
fn users_move_services_and_are_told_why_not() {
    let mut lab = Lab::new(3).with(&[(100, 1)]);
    lab.add(ct(101), 1);
    lab.settle();
    lab.ask_move(sid(100), 3);
    lab.ask_move(ct(101), 2);
    lab.history.clear();
    lab.settle();
    assert_eq!(lab.running(), ["100@n3", "101@n2"]);
    assert_eq!(lab.dropped, [(true, "taken".into()), (true, "taken".into())]);
    assert!(lab.history.iter().any(|(s, c)| *s == sid(100) && c.state == Some(ServiceState::Migrate)));
    assert!(lab.history.iter().any(|(s, c)| *s == ct(101) && c.state == Some(ServiceState::Relocate)));
    lab.dropped.clear();
    lab.silence(1);
    lab.ask_move(sid(100), 1);
    lab.ask_move(sid(100), 3);
    lab.ask_move(sid(777), 1);
    lab.settle();
    let said: BTreeSet<&str> = lab.dropped.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(said, ["node 'n1' is not online", "it is on 'n3' already", "vm:777 is no HA resource"].into());
    assert!(lab.view.requests.is_empty());
}

#[test]
fn a_move_of_what_no_node_may_start_is_refused() {
    let rule = "node-affinity: disks\n    resources vm:100\n    nodes n1,n2\n    strict 1\n";
    let mut lab = Lab::new(3).ruled(rule);
    lab.add(sid(100), 3);
    for n in [1, 2] {
        lab.silence(n);
    }
    lab.settle();
    assert_eq!(lab.is(sid(100)), "request_start n3");
    lab.ask_move(sid(100), 3);
    lab.ask(Request::Stop { sid: sid(100), timeout: 7 });
    lab.step();
    let why = "it waits: no node that its rule 'disks' allows can take it (n1, n2: not online)";
    let stop = (true, "taken".to_owned());
    assert_eq!(lab.dropped, [stop, (false, why.to_owned())], "it is to run: that it was to stop is over");
    lab.dropped.clear();
    lab.boot(2);
    lab.ask_move(sid(100), 2);
    lab.settle();
    assert_eq!(lab.running(), ["100@n2"]);
}

#[test]
fn a_stopped_service_moves_and_stays_stopped() {
    let mut lab = Lab::new(2);
    lab.add(sid(100), 1).resource.state = Stopped;
    lab.settle();
    lab.ask_move(sid(100), 2);
    lab.settle();
    assert_eq!((lab.is(sid(100)), lab.running()), ("stopped n2".into(), vec![]));
}

#[test]
fn a_move_that_fails_leaves_it_where_it_is() {
    let mut lab = Lab::new(2).with(&[(100, 1)]);
    lab.stuck.insert(sid(100));
    lab.ask_move(sid(100), 2);
    lab.settle();
    assert_eq!((lab.is(sid(100)), lab.running()), ("started n1".into(), vec!["100@n1".to_owned()]));
    assert_eq!(lab.status(sid(100)).reason, "could not be moved: it hangs");
}

#[test]
fn the_record_is_what_counts() {
    let mut lab = Lab::new(3).with(&[(100, 1)]);
    lab.seen(sid(100)).owner = name(3);
    lab.settle();
    assert_eq!(lab.is(sid(100)), "started n3");
    assert_eq!(lab.status(sid(100)).reason, "it is on 'n3'");
}

#[test]
fn maintenance_empties_a_node_and_its_end_brings_everything_back() {
    let mut lab = Lab::new(3).with(&[(100, 1), (101, 1)]);
    lab.add(ct(102), 1);
    lab.add(sid(103), 1).resource.state = Stopped;
    lab.settle();
    lab.ask(Request::Maintenance { node: name(1), on: true });
    lab.settle();
    assert_eq!(lab.running(), ["100@n3", "101@n2", "102@n2"]);
    assert_eq!(lab.is(sid(103)), "stopped n1", "what does not run can stay");
    assert_eq!(lab.state.node_status[&name(1)], NodeStatus::Maintenance);
    lab.ask_move(sid(101), 1);
    lab.settle();
    assert_eq!(lab.dropped.last().unwrap().1, "node 'n1' is in maintenance, or goes down");
    lab.lose(1);
    lab.settle();
    lab.boot(1);
    lab.settle();
    assert_eq!(lab.state.node_status[&name(1)], NodeStatus::Maintenance, "a reboot does not end it");
    // Whom his user has moved meanwhile stays where he is.
    lab.ask_move(sid(101), 3);
    lab.settle();
    lab.ask(Request::Maintenance { node: name(1), on: false });
    lab.settle();
    assert_eq!(lab.running(), ["100@n1", "101@n3", "102@n1"]);
    assert!(lab.state.node_memory.is_empty());
}

#[test]
fn maintenance_without_another_node_waits() {
    let mut lab = Lab::new(2).with(&[(100, 1)]);
    lab.silence(2);
    lab.ask(Request::Maintenance { node: name(1), on: true });
    lab.settle();
    let why =
        "added to HA; waits: 'n1' is to be empty, but no node can take it (n2: not online; n1: to be empty)";
    assert_eq!((lab.is(sid(100)), lab.status(sid(100)).reason.as_str()), ("started n1".into(), why));
    lab.boot(2);
    lab.settle();
    assert_eq!(lab.running(), ["100@n2"]);
}

/// A node with a running and a stopped service goes down; returns where they are when it has gone, and when it is back.
fn goes_down(policy: &str, leave: Leave) -> (Vec<String>, Vec<String>, AgentMode) {
    let mut lab = Lab::new(3).options(&format!("shutdown_policy={policy}"), "").with(&[(100, 3)]);
    lab.add(ct(102), 3);
    lab.settle();
    lab.leave(3, leave);
    lab.settle();
    assert!(lab.may_leave(3), "{policy} {leave:?}");
    let mode = lab.node(3).agent.as_ref().unwrap().mode;
    lab.lose(3);
    lab.settle();
    let told = |lab: &Lab| vec![lab.is(sid(100)), lab.is(ct(102))];
    let gone = told(&lab);
    lab.boot(3);
    lab.settle();
    assert!(lab.state.node_memory.is_empty());
    (gone, lab.running(), mode)
}

#[test]
fn the_shutdown_policy_says_what_becomes_of_services() {
    let frozen = vec!["freeze n3".to_owned(), "freeze n3".to_owned()];
    let elsewhere = vec!["started n2".to_owned(), "started n1".to_owned()];
    let (back, stay) = (["100@n3", "102@n3"], ["100@n2", "102@n1"]);
    for (policy, leave, gone, after, mode) in [
        ("freeze", Leave::Shutdown, &frozen, back, AgentMode::Freeze),
        ("freeze", Leave::Reboot, &frozen, back, AgentMode::Freeze),
        ("conditional", Leave::Reboot, &frozen, back, AgentMode::Freeze),
        ("conditional", Leave::Shutdown, &elsewhere, stay, AgentMode::Shutdown),
        ("failover", Leave::Reboot, &elsewhere, stay, AgentMode::Shutdown),
        ("failover", Leave::Shutdown, &elsewhere, stay, AgentMode::Shutdown),
        ("migrate", Leave::Shutdown, &elsewhere, back, AgentMode::Maintenance),
        ("migrate", Leave::Reboot, &elsewhere, back, AgentMode::Maintenance),
    ] {
        let (was, then, told) = goes_down(policy, leave);
        assert_eq!((&was, told), (gone, mode), "{policy} {leave:?}");
        assert_eq!(then, after, "{policy} {leave:?}");
    }
}

#[test]
fn a_restart_of_the_daemon_freezes_until_it_is_back_or_its_node_is_lost() {
    let mut lab = Lab::new(3).with(&[(100, 3)]);
    lab.leave(3, Leave::Restart);
    lab.settle();
    assert_eq!((lab.is(sid(100)), lab.running()), ("freeze n3".into(), vec!["100@n3".to_owned()]));
    assert!(lab.may_leave(3));
    lab.ask_move(sid(100), 1);
    lab.settle();
    assert_eq!(lab.dropped, [(false, "it is frozen".into())]);
    lab.silence(3);
    lab.settle();
    assert_eq!(lab.is(sid(100)), "freeze n3");
    lab.lose(3);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1"]);
}

#[test]
fn a_stopped_service_waits_for_a_node_that_went_down_in_order_unless_it_is_to_run() {
    let mut lab = Lab::new(3).options("shutdown_policy=migrate", "");
    lab.add(sid(100), 1).resource.state = Stopped;
    lab.settle();
    lab.leave(1, Leave::Shutdown);
    lab.settle();
    lab.lose(1);
    lab.settle();
    assert_eq!(lab.is(sid(100)), "stopped n1");
    lab.want(sid(100), Started);
    lab.settle();
    assert_eq!(lab.running(), ["100@n2"]);
}

#[test]
fn disarmed_by_freezing_nothing_happens_until_armed() {
    let mut lab = Lab::new(3).with(&[(100, 1), (101, 2)]);
    lab.ask(Request::Disarm { mode: DisarmMode::Freeze });
    lab.settle();
    assert!(lab.state.disarm.is_some_and(|d| d.ready && d.done));
    assert_eq!(lab.is(sid(100)), "freeze n1");
    lab.want(sid(101), Stopped);
    lab.ask_move(sid(100), 3);
    lab.ask(Request::Disarm { mode: DisarmMode::Ignore });
    lab.lose(1);
    lab.settle();
    assert_eq!((lab.is(sid(100)), lab.running()), ("freeze n1".into(), vec!["101@n2".to_owned()]));
    let said: BTreeSet<&str> = lab.dropped.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(said, ["disarming", "HA is disarmed", "HA is disarmed already"].into());
    lab.ask(Request::Arm);
    lab.settle();
    assert_eq!((lab.is(sid(101)), lab.running()), ("stopped n2".into(), vec!["100@n2".to_owned()]));
    lab.ask(Request::Arm);
    lab.settle();
    assert_eq!(lab.dropped.last().unwrap().1, "HA is armed already");
}

#[test]
fn a_state_of_a_backup_rests_until_armed() {
    let mut lab = Lab::new(3).with(&[(100, 1), (101, 2), (102, 1)]);
    lab.want(sid(102), Stopped);
    lab.settle();
    // One was on its way when the backup was made.
    lab.ask_move(sid(101), 3);
    lab.step();
    lab.view.requests.clear();
    for n in 100..=102 {
        lab.seen(sid(n)).process = Process::Absent;
        lab.seen(sid(n)).armed = false;
    }
    lab.state.rest();
    // Agents act by the state alone, before any manager has looked.
    lab.settle();
    assert_eq!((lab.running(), lab.is(sid(101))), (vec![], "freeze n2".into()));
    lab.ask(Request::Disarm { mode: DisarmMode::Freeze });
    lab.settle();
    assert_eq!(lab.dropped.last().unwrap().1, "HA is disarmed already");
    lab.ask(Request::Arm);
    lab.settle();
    assert_eq!(lab.running(), ["100@n1", "101@n3"], "where the records say");
    assert_eq!(lab.is(sid(102)), "stopped n1");
}

#[test]
fn disarmed_by_ignoring_users_do_as_they_like_and_arming_takes_it_as_it_is() {
    let mut lab = Lab::new(3).with(&[(100, 1)]);
    lab.ask(Request::Disarm { mode: DisarmMode::Ignore });
    lab.settle();
    assert!(lab.state.service_status.is_empty() && lab.state.disarm.is_some_and(|d| d.done));
    lab.seen(sid(100)).owner = name(3);
    lab.settle();
    lab.ask(Request::Arm);
    lab.settle();
    assert_eq!((lab.is(sid(100)), lab.running()), ("started n3".into(), vec!["100@n3".to_owned()]));
}

#[test]
fn disarming_waits_for_recoveries_and_moves() {
    let mut lab = Lab::new(3).with(&[(100, 1), (101, 2)]);
    lab.lose(1);
    lab.seen(sid(100)).armed = false;
    lab.step();
    assert_eq!(lab.is(sid(100)), "recovery n1");
    lab.ask(Request::Disarm { mode: DisarmMode::Freeze });
    lab.settle();
    assert!(lab.state.disarm.is_some_and(|d| !d.ready), "a recovery is under way");
    assert!(lab.agent_view(&name(2)).wants_guard());
    lab.seen(sid(100)).armed = true;
    lab.settle();
    assert!(lab.state.disarm.is_some_and(|d| d.done));
    assert_eq!(lab.is(sid(100)), "freeze n3");
}

#[test]
fn an_error_outlives_disarming() {
    let mut lab = Lab::new(1);
    lab.add(sid(100), 1).resource.max_relocate = 0;
    lab.broken.insert((sid(100), name(1)));
    lab.settle();
    lab.ask(Request::Disarm { mode: DisarmMode::Freeze });
    lab.settle();
    lab.ask(Request::Arm);
    lab.settle();
    assert_eq!(lab.is(sid(100)), "error n1");
}

#[test]
fn what_is_taken_out_of_ha_is_forgotten() {
    let mut lab = Lab::new(2).with(&[(100, 1)]);
    lab.history.clear();
    lab.view.services.clear();
    lab.settle();
    assert!(lab.state.service_status.is_empty());
    assert_eq!(lab.history[0].1.reason, "taken out of HA");
}

#[test]
fn the_state_is_written_as_administrators_know_it_and_older_ones_are_read() {
    let lab = Lab::new(2).with(&[(100, 1)]);
    let json = serde_json::to_value(&lab.state).unwrap();
    assert_eq!(json["service_status"]["vm:100"]["state"], "started");
    assert_eq!(json["master_node"], "n1");
    assert_eq!(json["node_status"]["n1"], "online");
    assert_eq!(serde_json::from_value::<ManagerState>(json).unwrap(), lab.state);
    let old = r#"{"version":1,"master_node":"n1","timestamp":5,"node_status":{"n1":"online"},"last_uid":2,"service_status":
                 {"vm:100":{"state":"started","node":"n1","uid":2,"reason":"added to HA","failed_nodes":["n2"],"relocate_tries":1}}}"#;
    let old: ManagerState = serde_json::from_str(old).unwrap();
    assert_eq!(old.service_status[&sid(100)].relocate_tries, 1);
}
