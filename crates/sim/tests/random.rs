//! Scenarios drawn at random: whatever users and machines do, no guest runs twice, and all is well when it is over.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;
use stead_model::ha_cfg::{HaResource, RequestedState};
use stead_model::{NodeName, ServiceId};
use stead_sim::cluster::play;
use stead_sim::scenario::{Command, Hardware, Scenario, Setup, Step, Story, folder};

/// What is done at random, between words for a node `N`, another one `M` and a service `S`.
const COMMANDS: [&str; 27] = [
    "power N off",
    "power N off",
    "power N on",
    "power N on",
    "network N off",
    "network N off",
    "network N on",
    "network N on",
    "shutdown N",
    "reboot N",
    "restart-lrm N",
    "crm N stop",
    "crm N enable-node-maintenance",
    "crm N disable-node-maintenance",
    "crm N disarm-ha freeze",
    "crm N disarm-ha ignore",
    "crm N arm-ha",
    "service S started",
    "service S stopped",
    "service S disabled",
    "service S migrate N",
    "service S relocate N",
    "service S stop 0",
    "service S die",
    "service S lock backup",
    "service S unlock",
    "service S set-dynamic-stats cpu 9 mem 9000",
];

const RULES: [&str; 6] = [
    "",
    "node-affinity: a\n\tresources vm:101,vm:102\n\tnodes n1:2,n2\n\tstrict 1\n",
    "node-affinity: a\n\tresources vm:101,ct:103\n\tnodes n2\n",
    "resource-affinity: b\n\tresources vm:101,vm:102\n\taffinity positive\n",
    "resource-affinity: b\n\tresources vm:101,vm:102\n\taffinity negative\n",
    "resource-affinity: b\n\tresources vm:101,ct:103\n\taffinity positive\n\nresource-affinity: c\n\tresources vm:101,vm:102\n\taffinity negative\n",
];

fn draw(seed: u64) -> Scenario {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = rng.random_range(3..=5);
    let nodes: Vec<NodeName> = (1..=count).map(|n| format!("n{n}").parse().unwrap()).collect();
    let sids = ["vm:101", "vm:102", "ct:103", "vm:104"];
    let mut at = 10.0;
    let mut steps: Vec<Step> = vec![];
    let mut say = |at: f64, text: &str| {
        steps.push(Step { at: Duration::from_secs_f64(at), command: Command::parse(text).unwrap() });
    };
    for _ in 0..rng.random_range(4..=16) {
        at += f64::from(rng.random_range(0..=250u32)) / 10.0;
        let text = COMMANDS.choose(&mut rng).unwrap();
        let text = text.replace('N', nodes.choose(&mut rng).unwrap().as_str());
        say(at, &text.replace('S', sids.choose(&mut rng).unwrap()));
    }
    // A node that goes down on its own is down by then.
    at += 60.0;
    say(at, "crm n1 arm-ha");
    for node in &nodes {
        say(at, &format!("power {node} on"));
        say(at, &format!("crm {node} disable-node-maintenance"));
    }
    for sid in sids {
        say(at, &format!("service {sid} unlock"));
        say(at + 30.0, &format!("service {sid} disabled"));
        say(at + 60.0, &format!("service {sid} started"));
    }
    let service = |sid: &str, node: &NodeName| {
        let sid: ServiceId = sid.parse().unwrap();
        Setup {
            resource: HaResource { state: RequestedState::Started, ..HaResource::new(sid) },
            ..Setup::new(sid, node.clone())
        }
    };
    let services = sids.iter().map(|sid| service(sid, nodes.choose(&mut rng).unwrap())).collect();
    let policy = ["", "shutdown_policy=migrate", "shutdown_policy=freeze", "shutdown_policy=failover"];
    let crs = ["", "ha=static", "ha=dynamic,ha-auto-rebalance=1", "ha=static,ha-rebalance-on-start=1"];
    Scenario {
        nodes: nodes.into_iter().map(Hardware::new).collect(),
        services,
        rules: folder::rules(RULES.choose(&mut rng).unwrap()).unwrap(),
        ha: (*policy.choose(&mut rng).unwrap()).to_owned(),
        crs: (*crs.choose(&mut rng).unwrap()).to_owned(),
        steps,
        end: Duration::from_secs_f64(at + 150.0),
        round: Duration::from_secs(10),
        ..Scenario::default()
    }
}

/// What is wrong at the end, when every node is back and every service wanted.
fn wrong(scenario: &Scenario, story: &Story) -> Vec<String> {
    let mut found: Vec<String> = story.broken.clone().into_iter().collect();
    found.extend(story.unsafe_starts());
    for (sid, s) in &story.services {
        if s.running_on.is_none() || s.state.as_deref() != Some("started") {
            found.push(format!("{sid} does not run: {s:?}"));
        }
    }
    let on = |sid: &str| story.services[sid].running_on.clone();
    for rule in scenario.rules.iter().filter(|r| !story.rules.contains_key(&r.id)) {
        let names: Vec<String> = rule.resources.iter().map(ToString::to_string).collect();
        let kept = match &rule.kind {
            stead_model::HaRuleKind::NodeAffinity { nodes, strict: true, .. } => names
                .iter()
                .all(|s| on(s).is_none_or(|n| nodes.contains_key(&n.parse::<NodeName>().unwrap()))),
            stead_model::HaRuleKind::NodeAffinity { .. } => true,
            stead_model::HaRuleKind::ResourceAffinity { positive } => {
                let places: std::collections::BTreeSet<_> = names.iter().map(|s| on(s)).collect();
                if *positive { places.len() == 1 } else { places.len() == names.len() }
            }
        };
        if !kept {
            found.push(format!("rule '{}' is not kept", rule.id));
        }
    }
    found
}

#[test]
fn whatever_happens_no_guest_runs_twice_and_all_ends_well() {
    let seeds = std::env::var("STEAD_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(100);
    for seed in 0..seeds {
        let scenario = draw(seed);
        let story = play(&scenario).unwrap();
        let found = wrong(&scenario, &story);
        assert!(found.is_empty(), "seed {seed}: {}\n{}\n{}", found.join("\n"), scenario.crs, story.to_text());
    }
}
