use super::*;
use crate::manager::tests::lab::{GIB, Lab, name, sid};
use crate::state::{DisarmMode, Load, Request, Stats};
use proptest::prelude::*;

/// The cluster of a lab, in which the first three nodes vote.
fn now(lab: &Lab) -> Now {
    Now {
        at: 5000,
        view: lab.view.clone(),
        state: lab.state.clone(),
        unmanaged: BTreeMap::new(),
        voters: lab.view.nodes.keys().take(3).cloned().collect(),
        witnesses: BTreeSet::new(),
    }
}

fn without(now: &Now, nodes: &[u32]) -> WhatIf {
    Forecast::new(now).without(&nodes.iter().map(|n| name(*n)).collect())
}

/// `VMID from>to`, with `-` for what stays down, `p` for what is paused, `s` for what is stopped there.
fn told(found: &WhatIf) -> Vec<String> {
    let one = |g: &GuestFate| {
        let to = match &g.fate {
            Fate::Moves { to, runs: true } => to.to_string(),
            Fate::Moves { to, runs: false } => format!("{to} s"),
            Fate::Down => "-".into(),
            Fate::Paused => "p".into(),
        };
        format!("{} {}>{to}", g.sid.vmid, g.from)
    };
    found.guests.iter().map(one).collect()
}

fn reason(found: &WhatIf, n: u32) -> &str {
    &found.guests.iter().find(|g| g.sid == sid(n)).unwrap().reason
}

#[test]
fn guests_go_where_the_manager_would_send_them_and_nothing_is_changed_by_the_question() {
    let lab = Lab::new(3).with(&[(100, 1), (101, 1), (102, 2), (103, 3)]);
    let now = now(&lab);
    let before = now.clone();
    let found = without(&now, &[1]);
    assert_eq!(now, before);
    assert_eq!(told(&found), ["100 n1>n2", "101 n1>n3"]);
    assert_eq!(reason(&found, 100), "node 'n1' is lost; to 'n2': the node with the fewest services (1)");
    assert!(found.survives() && found.quorate && found.settled && found.broken.is_empty());
    let room = |n: u32| found.nodes[&name(n)];
    assert_eq!(room(1), Room { total: 128 * GIB, used: 4 * GIB, after: None });
    // What has just been started counts with all that it may use.
    assert_eq!(room(2), Room { total: 128 * GIB, used: 2 * GIB, after: Some(6 * GIB) });
    let mut really = lab;
    really.lose(1);
    really.settle();
    assert_eq!(really.running(), ["100@n2", "101@n3", "102@n2", "103@n3"]);
}

#[test]
fn who_fits_nowhere_stays_down_with_figures() {
    let mut lab = Lab::new(3).with(&[(100, 1), (101, 1)]);
    for n in [2, 3] {
        lab.node(n).others.used.mem = 123 * GIB + u64::from(n) * GIB / 2;
    }
    let now = now(&lab);
    let found = without(&now, &[1]);
    assert_eq!(told(&found), ["100 n1>n2", "101 n1>-"]);
    assert_eq!(
        reason(&found, 101),
        "node 'n1' is lost; waits: no node can take it (n1: not online; n2, n3: too little memory left for the 4096 MiB \
         that it may use, at most 3584 MiB are free)"
    );
    assert!(!found.survives());
    let outlook = Forecast::new(&now).any_one();
    assert_eq!((outlook.survives, outlook.nodes, outlook.failing), (false, 3, 1));
    assert_eq!(outlook.without, [name(1)]);
    assert!(
        outlook.to_string().starts_with(
            "this cluster survives the loss of any one node: no, because without 'n1' vm:101 does not run again: node"
        ),
        "{outlook}"
    );
}

#[test]
fn several_nodes_at_once_and_the_majority() {
    let lab = Lab::new(5).with(&[(100, 1), (101, 2), (102, 4), (103, 5)]);
    let now = now(&lab);
    let found = without(&now, &[2, 4]);
    assert_eq!(told(&found), ["101 n2>n3", "102 n4>n1"], "each sees where the other goes");
    let found = without(&now, &[4, 5]);
    assert!(found.survives(), "they don't vote");
    let found = without(&now, &[1, 2]);
    assert_eq!(told(&found), ["100 n1>-", "101 n2>-", "102 n4>p", "103 n5>p"]);
    assert!(!found.quorate && !found.survives());
    assert_eq!(
        reason(&found, 100),
        "no majority is left (1 of 3 votes): nothing is recovered until one is back"
    );
    let two = Lab::new(2).with(&[(100, 1)]);
    let outlook = Forecast::new(&self::now(&two)).any_one();
    assert_eq!(outlook.failing, 2);
    assert!(outlook.to_string().contains("without 'n1' no majority is left"), "{outlook}");
}

#[test]
fn a_witness_makes_a_majority_of_two_nodes() {
    let lab = Lab::new(2).with(&[(100, 1)]);
    let mut now = now(&lab);
    now.voters.insert(name(9));
    assert_eq!(told(&without(&now, &[1])), ["100 n1>-"], "it is away");
    now.witnesses.insert(name(9));
    assert_eq!(told(&without(&now, &[1])), ["100 n1>n2"]);
    let outlook = Forecast::new(&now).any_one();
    assert_eq!((outlook.survives, outlook.nodes), (true, 3), "it may be lost itself");
    let both = without(&now, &[1, 9]);
    assert_eq!((told(&both), both.quorate, both.nodes.len()), (vec!["100 n1>-".to_owned()], false, 2));
}

#[test]
fn whom_ha_does_not_recover_is_named() {
    let mut lab = Lab::new(3).with(&[(100, 1), (101, 1), (102, 1), (103, 1), (104, 1), (110, 2)]);
    lab.want(sid(101), RequestedState::Stopped);
    lab.want(sid(102), RequestedState::Disabled);
    lab.want(sid(103), RequestedState::Ignored);
    lab.settle();
    lab.seen(sid(104)).armed = false;
    let mut now = now(&lab);
    let of = |n: u32, running| (sid(n), Unmanaged { owner: name(1), running });
    now.unmanaged.extend([of(105, true), of(106, false)]);
    let found = without(&now, &[1]);
    assert_eq!(
        told(&found),
        ["100 n1>n3", "101 n1>n2 s", "102 n1>-", "103 n1>-", "104 n1>-", "105 n1>-", "106 n1>-"]
    );
    assert_eq!(reason(&found, 102), "its user wants it disabled");
    assert_eq!(reason(&found, 103), "HA ignores it");
    assert_eq!(reason(&found, 105), "it is not under HA");
    let unguarded = reason(&found, 104);
    assert!(unguarded.contains("waits: it may run there without a guard"), "{unguarded}");
    let promises: Vec<u32> =
        found.guests.iter().filter(|g| g.breaks_promise()).map(|g| g.sid.vmid.get()).collect();
    assert_eq!((promises, found.unmanaged_down()), (vec![104], 2));
    lab.seen(sid(104)).armed = true;
    now.view = lab.view.clone();
    let outlook = Forecast::new(&now).any_one();
    assert_eq!(
        outlook.to_string(),
        "this cluster survives the loss of any one node: yes, HA starts all of its guests elsewhere (2 guests that run are not \
         under HA, and stay down with their nodes)"
    );
}

#[test]
fn rules_are_kept_or_named() {
    let rules = "node-affinity: disks\n    resources vm:100\n    nodes n1\n    strict 1\n\n\
                 node-affinity: rather\n    resources vm:101\n    nodes n1\n\n\
                 resource-affinity: with\n    resources vm:102,vm:103\n    affinity positive\n\n\
                 resource-affinity: apart\n    resources vm:104,vm:105,vm:106\n    affinity negative\n";
    let lab = Lab::new(3).ruled(rules).with(&[
        (100, 1),
        (101, 1),
        (102, 1),
        (103, 1),
        (104, 1),
        (105, 2),
        (106, 3),
        (107, 2),
    ]);
    let now = now(&lab);
    let found = without(&now, &[1]);
    assert_eq!(told(&found), ["100 n1>-", "101 n1>n3", "102 n1>n2", "103 n1>n2", "104 n1>-"]);
    assert!(reason(&found, 100).contains("no node that its rule 'disks' allows can take it"));
    assert!(reason(&found, 104).contains("kept apart by rule 'apart'"));
    assert_eq!(found.broken, BTreeMap::from([("rather".to_owned(), "vm:101 on 'n3'".to_owned())]));
    assert!(without(&now, &[2]).broken.is_empty(), "they are kept");
}

#[test]
fn the_group_of_a_guest_that_must_go_goes_along() {
    // vm:101 alone may not leave n2 for n1, but with n3 gone both find room on n1 alone.
    let rules = "resource-affinity: with\n    resources vm:100,vm:101\n    affinity positive\n\n\
                 node-affinity: where\n    resources vm:100\n    nodes n1,n3\n    strict 1\n";
    let lab = Lab::new(3).ruled(rules).with(&[(100, 3), (101, 3)]);
    let found = without(&now(&lab), &[3]);
    assert_eq!(told(&found), ["100 n3>n1", "101 n3>n1"]);
}

#[test]
fn locks_disarming_and_requests_are_taken_as_they_are() {
    let mut lab = Lab::new(3).with(&[(100, 1), (101, 1), (102, 2)]);
    lab.seen(sid(100)).lock = Some("backup".into());
    lab.seen(sid(101)).lock = Some("rollback".into());
    let found = without(&now(&lab), &[1]);
    assert_eq!(told(&found), ["100 n1>n3", "101 n1>-"]);
    assert!(reason(&found, 101).contains("it is locked (rollback)"), "{}", reason(&found, 101));
    lab.ask_move(sid(102), 3);
    let found = without(&now(&lab), &[1]);
    assert!(told(&found).contains(&"102 n2>n3".to_owned()), "what is asked for goes on: {:?}", told(&found));
    lab.ask(Request::Disarm { mode: DisarmMode::Freeze });
    lab.settle();
    let found = without(&now(&lab), &[1]);
    assert_eq!(told(&found), ["100 n1>-", "101 n1>-"]);
    assert_eq!(reason(&found, 100), "HA is disarmed");
    assert!(!Forecast::new(&now(&lab)).any_one().survives);
}

/// A cluster of some nodes and services, with rules among the first of them.
fn any_lab() -> impl Strategy<Value = (u32, Vec<(u32, u32, usize)>, usize, usize)> {
    (3..6u32).prop_flat_map(|nodes| {
        let service = (1..=nodes, 1..60u32, 0..8usize);
        (Just(nodes), proptest::collection::vec(service, 1..14), 0..4usize, 0..3usize)
    })
}

const RULES: [&str; 4] = [
    "",
    "node-affinity: disks\n    resources vm:100,vm:101\n    nodes n1:2,n2\n    strict 1\n",
    "resource-affinity: with\n    resources vm:100,vm:101,vm:102\n    affinity positive\n\n\
     node-affinity: rather\n    resources vm:103\n    nodes n2\n",
    "resource-affinity: apart\n    resources vm:100,vm:101,vm:102\n    affinity negative\n",
];

fn build((nodes, services, rules, mode): &(u32, Vec<(u32, u32, usize)>, usize, usize)) -> Lab {
    let mut lab = Lab::new(*nodes).ruled(RULES[*rules]);
    lab = lab.options("", ["ha=basic", "ha=static", "ha=dynamic"][*mode]);
    for (i, (node, gib, wish)) in services.iter().enumerate() {
        let mem = u64::from(*gib) * GIB;
        let s = lab.add(sid(100 + i as u32), *node);
        s.stats = Stats { max: Load { cpu: 2.0, mem }, used: Load { cpu: f64::from(gib % 3) + 0.5, mem } };
        (s.running, s.armed, s.process) = (true, true, Process::Running);
        match wish {
            0 => s.resource.state = RequestedState::Stopped,
            1 => s.resource.state = RequestedState::Disabled,
            2 => s.resource.failback = false,
            _ => {}
        }
    }
    lab.settle();
    lab
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn what_it_says_is_what_happens((shape, lost) in (any_lab(), 1..4u32)) {
        let mut lab = build(&shape);
        let now = now(&lab);
        let found = without(&now, &[lost]);
        lab.lose(lost);
        lab.settle();
        for (sid, seen) in &lab.view.services {
            let told = found.guests.iter().find(|g| g.sid == *sid);
            let before = &now.view.services[sid];
            let really = match (seen.owner == before.owner, seen.process == Process::Running) {
                (false, runs) => Some(Fate::Moves { to: seen.owner.clone(), runs }),
                (true, false) if seen.owner == name(lost) => Some(Fate::Down),
                (true, _) => None,
            };
            prop_assert_eq!(told.map(|g| g.fate.clone()), really, "{}: {:?}", sid, told);
        }
    }

    #[test]
    fn what_is_summed_up_changes_no_answer((shape, lost) in (any_lab(), proptest::collection::btree_set(1..6u32, 1..3))) {
        let lab = build(&shape);
        let now = now(&lab);
        let lost = lost.into_iter().map(name).collect();
        let (summed, plain) = (Forecast::summing_up(&now, true), Forecast::summing_up(&now, false));
        prop_assert_eq!(summed.without(&lost), plain.without(&lost));
    }
}

#[test]
fn a_large_cluster_is_asked_node_by_node_at_little_cost() {
    // To be measured: STEAD_MEASURE says how many rules there are.
    let (nodes, services, rules) = match std::env::var("STEAD_MEASURE") {
        Ok(rules) => (1000, 20_000, rules.parse().unwrap()),
        Err(_) => (60, 1200, 60),
    };
    let mut lab = Lab::new(nodes);
    for i in 0..services {
        let s = lab.add(sid(100 + i), 1 + i % nodes);
        (s.running, s.armed, s.process) = (true, true, Process::Running);
    }
    lab.view.rules = (0..rules)
        .map(|i| HaRule {
            id: format!("apart-{i}"),
            resources: [sid(100 + 2 * i), sid(101 + 2 * i)].into(),
            disable: false,
            comment: None,
            kind: HaRuleKind::ResourceAffinity { positive: false },
        })
        .collect();
    for _ in 0..2 {
        crate::step(lab.now, &lab.view, &mut lab.state);
    }
    let now = now(&lab);
    let began = std::time::Instant::now();
    let forecast = Forecast::new(&now);
    let ready = began.elapsed();
    let ruled = 2 * rules as usize;
    assert_eq!(forecast.view.services.len(), ruled, "all others are summed up");
    let outlook = forecast.any_one();
    println!("{nodes} nodes, {services} services: ready in {ready:?}, all nodes in {:?}", began.elapsed());
    assert_eq!((outlook.survives, outlook.nodes), (true, nodes as usize), "{outlook}");
}

#[test]
fn what_has_its_storage_nowhere_else_stays_down() {
    use crate::state::{StorageFault, StorageLoss, Use};
    let mut lab = Lab::new(3).with(&[(100, 1), (101, 1)]);
    let nfs1: stead_model::StorageId = "nfs1".parse().unwrap();
    lab.seen(sid(100)).storages = std::sync::Arc::new([(nfs1.clone(), Use::Disk)].into());
    for (node, fault) in [(2, StorageFault::Silent), (3, StorageFault::Inactive { why: "gone".into() })] {
        lab.node(node).lost_storages.insert(nfs1.clone(), StorageLoss { fault, seconds: 1 });
    }
    let now = now(&lab);
    let found = without(&now, &[1]);
    assert_eq!(told(&found), ["100 n1>-", "101 n1>n2"]);
    let why = "(n1: not online; n3: storage 'nfs1' can't be used: gone; n2: storage 'nfs1' does not answer)";
    assert!(reason(&found, 100).ends_with(why), "{}", reason(&found, 100));
    let outlook = Forecast::new(&now).any_one();
    let said = outlook.to_string();
    let warns = ". Look at this: storage 'nfs1' does not answer on 'n2'; 'n3' has lost storage 'nfs1' (gone)";
    assert!(said.ends_with(warns), "{said}");
    assert_eq!((outlook.survives, outlook.without), (false, vec![name(1)]));
    lab.node(2).lost_storages.clear();
    let now = self::now(&lab);
    assert!(Forecast::new(&now).any_one().survives);
}
