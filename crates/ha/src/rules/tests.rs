use super::*;
use stead_model::ha_cfg::{HaRules, nodes};

/// Rules as they are written in the file, on a cluster of `n` nodes.
fn read(text: &str) -> Vec<HaRule> {
    let text = text.replace("    ", "\t");
    let (rules, bad) = HaRules::parse(&text).unwrap().list();
    assert_eq!(bad, []);
    rules
}

fn cluster(n: usize) -> BTreeSet<NodeName> {
    nodes(&(1..=n).map(|i| format!("n{i}")).collect::<Vec<_>>().join(",")).unwrap().into_keys().collect()
}

fn told(text: &str, n: usize) -> Vec<String> {
    conflicts(&read(text), &cluster(n)).into_iter().map(|c| c.reason).collect()
}

fn sid(n: u32) -> ServiceId {
    format!("vm:{n}").parse().unwrap()
}

#[test]
fn rules_that_agree_are_kept() {
    let text = "node-affinity: disks\n    resources vm:101\n    nodes n1,n2\n    strict 1\n\n\
                resource-affinity: web\n    resources vm:101,vm:102\n    affinity positive\n\n\
                resource-affinity: apart\n    resources vm:102,vm:103,vm:104\n    affinity negative\n";
    assert_eq!(told(text, 3), [""; 0]);
    let rules = Rules::compile(&read(text), &cluster(3));
    assert_eq!(rules.errors, BTreeMap::new());
    let (number, web) = rules.of(sid(102)).unwrap();
    assert_eq!(rules.of(sid(101)).map(|(n, _)| n), Some(number), "one unit");
    assert_eq!(web.members, [sid(101), sid(102)]);
    assert!(web.node_rule.as_ref().is_some_and(|r| r.strict && r.id == "disks"), "inherited");
    assert_eq!(web.apart.len(), 1);
    assert!(rules.of(sid(200)).is_none());
}

#[test]
fn together_goes_over_several_rules() {
    let text = "resource-affinity: a\n    resources vm:101,vm:102\n    affinity positive\n\n\
                resource-affinity: b\n    resources vm:103,vm:104\n    affinity positive\n\n\
                resource-affinity: c\n    resources vm:102,vm:103\n    affinity positive\n";
    let rules = Rules::compile(&read(text), &cluster(2));
    assert_eq!(rules.of(sid(104)).unwrap().1.members, [sid(101), sid(102), sid(103), sid(104)]);
}

#[test]
fn each_conflict_is_named_with_its_rules() {
    let cases = [
        (
            "resource-affinity: lonely\n    resources vm:101\n    affinity positive\n",
            "a resource-affinity rule must name at least two resources",
        ),
        (
            "node-affinity: a\n    resources vm:101\n    nodes n1\n\n\
             node-affinity: b\n    resources vm:101,vm:102\n    nodes n2\n",
            "vm:101 is named by more than one node-affinity rule: 'a', 'b'",
        ),
        (
            "node-affinity: none\n    resources vm:101\n    nodes n1,n2\n    affinity negative\n",
            "it excludes every node of the cluster",
        ),
        (
            "resource-affinity: many\n    resources vm:101,vm:102,vm:103\n    affinity negative\n",
            "it keeps 3 resources apart, but the cluster has 2 nodes",
        ),
        (
            "resource-affinity: a\n    resources vm:101,vm:102\n    affinity positive\n\n\
             resource-affinity: b\n    resources vm:102,vm:103\n    affinity positive\n\n\
             resource-affinity: c\n    resources vm:101,vm:103\n    affinity negative\n",
            "vm:101, vm:103 cannot be kept together and apart at once: 'a', 'b', 'c'",
        ),
        (
            "node-affinity: ladder\n    resources vm:101\n    nodes n1:2,n2\n\n\
             resource-affinity: b\n    resources vm:101,vm:102\n    affinity negative\n",
            "vm:101 is in a resource-affinity rule and in a node-affinity rule with several priorities: 'b', 'ladder'",
        ),
        (
            "node-affinity: x\n    resources vm:101\n    nodes n1\n\n\
             node-affinity: y\n    resources vm:102\n    nodes n1\n\n\
             resource-affinity: b\n    resources vm:101,vm:102\n    affinity positive\n",
            "resources that are to be together are in different node-affinity rules: 'b', 'x', 'y'",
        ),
        (
            "node-affinity: x\n    resources vm:101,vm:102\n    nodes n1\n    strict 1\n\n\
             resource-affinity: b\n    resources vm:101,vm:102\n    affinity negative\n",
            "2 resources are to be apart on 1 nodes: 'b', 'x'",
        ),
    ];
    for (text, why) in cases {
        assert_eq!(told(text, 2), [why], "{text}");
        let rules = Rules::compile(&read(text), &cluster(2));
        assert!(rules.is_empty(), "what contradicts is left out: {text}");
        assert!(rules.errors.values().all(|e| e == why) && !rules.errors.is_empty());
    }
}

#[test]
fn what_is_switched_off_contradicts_nothing() {
    let text = "resource-affinity: a\n    resources vm:101,vm:102\n    affinity positive\n\n\
                resource-affinity: b\n    disable\n    resources vm:101,vm:102\n    affinity negative\n";
    assert_eq!(told(text, 2), [""; 0]);
    assert_eq!(Rules::compile(&read(text), &cluster(2)).of(sid(101)).unwrap().1.apart, [0; 0]);
}

#[test]
fn a_conflict_leaves_the_other_rules_in_force() {
    let text = "resource-affinity: many\n    resources vm:101,vm:102,vm:103\n    affinity negative\n\n\
                resource-affinity: web\n    resources vm:101,vm:102\n    affinity positive\n";
    let rules = Rules::compile(&read(text), &cluster(2));
    assert_eq!(
        rules.errors.keys().collect::<Vec<_>>(),
        ["many"],
        "it goes first, and with it the other conflict"
    );
    assert_eq!(rules.of(sid(101)).unwrap().1.members.len(), 2);
}

#[test]
fn nodes_are_ranked_by_priority() {
    let rule = |text: &str| {
        Rules::compile(&read(text), &cluster(3)).of(sid(101)).unwrap().1.node_rule.clone().unwrap()
    };
    let name = |n: &str| n.parse::<NodeName>().unwrap();
    let ladder = rule("node-affinity: a\n    resources vm:101\n    nodes n1:2,n2:1,n3\n");
    assert!(
        ladder.rank(&name("n1")) < ladder.rank(&name("n2"))
            && ladder.rank(&name("n2")) < ladder.rank(&name("n3"))
    );
    let but = rule("node-affinity: a\n    resources vm:101\n    nodes n1\n    affinity negative\n");
    assert_eq!((but.rank(&name("n1")), but.rank(&name("n2"))), (None, Some(0)));
}

#[test]
fn a_move_is_previewed_with_those_that_go_along_and_those_in_its_way() {
    let text = "resource-affinity: with\n    resources vm:101,vm:102\n    affinity positive\n\n\
                resource-affinity: apart\n    resources vm:102,vm:103\n    affinity negative\n\n\
                node-affinity: disks\n    resources vm:101\n    nodes n1,n2\n    strict 1\n";
    let service = |state: &str, node: &str| {
        let json = serde_json::json!({"state": state, "node": node, "uid": 1, "reason": "test"});
        serde_json::from_value::<crate::state::Service>(json).unwrap()
    };
    let mut state = ManagerState::default();
    for (n, node) in [(101, "n1"), (102, "n1"), (103, "n2"), (104, "n1")] {
        state.service_status.insert(sid(n), service("started", node));
    }
    let look = |state: &ManagerState, n: u32, node: &str| {
        preview(&read(text), &cluster(3), state, sid(n), &node.parse().unwrap())
    };
    let to_n2 = look(&state, 101, "n2");
    assert_eq!((to_n2.with, to_n2.blocked_by), (vec![sid(102)], vec![(sid(103), Cause::ResourceAffinity)]));
    assert_eq!(look(&state, 102, "n3").blocked_by, [(sid(102), Cause::NodeAffinity)]);
    assert_eq!(look(&state, 104, "n3"), MovePreview::default());
    state.service_status.insert(sid(101), service("stopped", "n1"));
    assert_eq!(look(&state, 101, "n2"), MovePreview::default(), "what is stopped goes alone");
}
