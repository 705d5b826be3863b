#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
use super::*;
use std::collections::BTreeSet;

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn lab(text: &str) -> Lab {
    Lab::open(text).unwrap()
}

/// Everything that can be seen, and all that happened.
fn all(lab: &Lab) -> (View, Vec<Happening>) {
    let (_, lines) = lab.lines(0, usize::MAX);
    let lines = lines.cloned().collect();
    (lab.view(), lines)
}

fn places(lab: &Lab) -> BTreeSet<(String, String, &'static str)> {
    let view = lab.view();
    let place = |g: &GuestRow| (g.sid.to_string(), view.nodes[g.node].name.clone(), g.state);
    view.guests.iter().map(place).collect()
}

#[test]
fn a_plug_is_pulled_and_put_back_by_going_back() {
    let mut lab = lab("nodes 3\nguests 6\nseed 1\n");
    lab.advance(s(20.0));
    let before = all(&lab);
    assert!(before.0.guests.iter().all(|g| g.state == "runs"), "{before:?}");
    lab.act("power n2 off").unwrap();
    lab.advance(s(45.0));
    let moved = all(&lab);
    assert!(moved.0.guests.iter().all(|g| g.state == "runs" && g.node != 1), "{moved:?}");
    assert_eq!(moved.0.nodes[1].lease, "lost");
    let tale = lab.tale("vm:101".parse().unwrap()).unwrap();
    assert!(tale.reason.contains("node 'n2' is lost"), "{tale:?}");
    assert_eq!(tale.outage.count, 1);
    assert!((4..12).contains(&tale.outage.last.as_secs()), "{tale:?}");
    assert_eq!(moved.0.summary.outages, (0, 2));
    // Back, and forth again: the same act, with the same outcome.
    lab.rewind(s(20.0));
    lab.advance(s(20.0));
    let seen = |v: &View| (v.nodes.clone(), v.guests.clone());
    assert_eq!(seen(&lab.view()), seen(&before.0));
    assert_eq!(lab.acts().len(), 1, "the act is still to come");
    lab.advance(s(45.0));
    assert_eq!(all(&lab), moved);
    // Another story from there on.
    lab.rewind(s(19.5));
    lab.advance(s(19.5));
    lab.act("crm n2 enable-node-maintenance").unwrap();
    lab.advance(s(45.0));
    assert_eq!(lab.acts(), [(s(19.5), "crm n2 enable-node-maintenance".to_owned())]);
    assert!(lab.view().guests.iter().all(|g| g.state == "runs" && g.node != 1));
    assert_eq!(lab.view().nodes[1].lease, "held");
}

/// Whatever was done, and however time was moved meanwhile: the saved story alone leads to the same.
#[test]
fn a_story_leads_to_the_same_again() {
    let mut first = lab("nodes 5\nguests 10\nseed 3\nprofile fast\n");
    first.advance(s(15.0));
    for (at, act) in [
        (15.0, "split n1,n2"),
        (15.0, "service vm:101 migrate n5"),
        (21.3, "mend"),
        (30.0, "rule resource-affinity apart resources=vm:100,vm:105 affinity=negative"),
        (31.0, "pause machine n4 20"),
        (40.0, "service ct:900 add n3 started"),
        (41.0, "cut n1 n3 one-way"),
        (42.0, "weather 50 50 10"),
        (44.0, "kill daemon n3 3"),
        (50.0, "stall 5"),
        (52.0, "mend"),
        (54.0, "service vm:102 die"),
        (55.0, "profile default"),
        (60.0, "network n5 off"),
        (75.0, "network n5 on"),
        (80.0, "unrule apart"),
    ] {
        first.advance(s(at));
        if at == 41.0 {
            first.rewind(s(35.0));
            first.advance(s(at));
        }
        first.act(act).unwrap();
        first.step();
    }
    first.advance(s(160.0));
    assert_eq!(first.view().summary.broken, None);
    let mut second = lab(&first.story());
    second.advance(s(160.0));
    assert_eq!(second.story(), first.story());
    assert_eq!(all(&second), all(&first));
    assert!(first.view().guests.iter().all(|g| g.state == "runs"), "{:?}", places(&first));
    // The same by the command for scenarios, which knows no copies.
    let scenario = crate::scenario::text::read(&first.story()).unwrap();
    let story = crate::cluster::play(&scenario).unwrap();
    let told: Vec<Happening> = all(&first).1;
    assert_eq!(story.events.len(), told.len());
    assert_eq!(story.events, told);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut lab = lab("nodes 3\nguests 3\n");
    lab.advance(s(1500.0));
    assert!(lab.marks.len() <= lab.most_marks(), "{}", lab.marks.len());
    assert!(lab.marks.len() > 20);
    assert_eq!(lab.marks[0].at, Duration::ZERO);
    lab.rewind(s(3.0));
    assert!(lab.now() <= s(3.0));
    lab.advance(s(3.0));
    assert_eq!((lab.now(), lab.furthest()), (s(3.0), s(1500.0)));
}

#[test]
fn a_step_ends_where_something_happens() {
    let mut lab = lab("nodes 3\nguests 3\n");
    lab.step();
    let first = lab.next_line();
    assert!(first > 0);
    lab.step();
    assert!(lab.next_line() > first);
    assert_eq!(lab.now().subsec_nanos() % 1_000_000, 0);
}

#[test]
fn what_cannot_be_done_is_said_and_not_noted() {
    let mut lab = lab("nodes 3\nguests 3\n");
    lab.advance(s(5.0));
    let before = all(&lab);
    let mut said = |words: &str| lab.act(words).unwrap_err().to_string();
    assert_eq!(said("power n9 off"), "the cluster has no node 'n9'");
    assert_eq!(said("service vm:999 stopped"), "HA has no 'vm:999': add it first");
    assert!(said("explode n1").ends_with("no such command"));
    assert!(said("rule node-affinity x nodes=n1").contains("resources"));
    assert!(lab.acts().is_empty());
    assert_eq!(all(&lab), before);
    assert!(Lab::open("guests 3\n").is_err());
    assert!(Lab::open("nodes 1001\n").is_err());
    assert!(Lab::open("nodes 3\nat 5 power n7 off\n").is_err());
}
