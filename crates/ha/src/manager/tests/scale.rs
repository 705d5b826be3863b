//! How long a round takes on the largest clusters. Ignored by default: `cargo test --release -p stead-ha scale -- --ignored
//! --nocapture` prints the figures.

use super::*;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

fn large(nodes: u32, services: u32) -> Lab {
    let mut rules = String::new();
    for i in 0..services / 100 {
        let (a, b, c) = (1000 + i * 100, 1001 + i * 100, 1002 + i * 100);
        let _ = write!(
            rules,
            "resource-affinity: with-{i}\n    resources vm:{a},vm:{b}\n    affinity positive\n\n"
        );
        let _ = write!(
            rules,
            "resource-affinity: apart-{i}\n    resources vm:{b},vm:{c}\n    affinity negative\n\n"
        );
        let n = i % (nodes - 1) + 1;
        let _ = write!(
            rules,
            "node-affinity: near-{i}\n    resources vm:{}\n    nodes n{n}:2,n{}\n\n",
            1003 + i * 100,
            n + 1
        );
    }
    let mut lab = Lab::new(nodes).ruled(&rules).options("", "ha=dynamic,ha-auto-rebalance=1");
    for i in 0..services {
        let s = lab.add(sid(1000 + i), i % nodes + 1);
        (s.running, s.armed, s.process) = (true, true, Process::Running);
    }
    lab
}

fn rounds(lab: &mut Lab, n: u32) -> Duration {
    let began = Instant::now();
    for _ in 0..n {
        crate::step(lab.now, &lab.view, &mut lab.state);
    }
    began.elapsed() / n
}

/// Whatever is on its way arrives.
fn arrive(lab: &mut Lab) {
    for _ in 0..6 {
        crate::step(lab.now, &lab.view, &mut lab.state);
        for (sid, s) in &lab.state.service_status {
            if let Some(target) = &s.target {
                lab.view.services.get_mut(sid).unwrap().owner = target.clone();
            }
        }
    }
}

#[test]
#[ignore = "measures time: run it in a release build"]
fn scale_of_a_round() {
    for (nodes, services) in [(10, 200), (100, 2_000), (1_000, 20_000)] {
        let mut lab = large(nodes, services);
        let first = rounds(&mut lab, 1);
        arrive(&mut lab);
        let quiet = rounds(&mut lab, 20);
        lab.lose(3);
        let recovery = rounds(&mut lab, 1);
        let bytes = serde_json::to_vec(&lab.state).unwrap().len();
        println!(
            "{nodes} nodes, {services} services: first round {first:?}, quiet round {quiet:?}, round of a recovery {recovery:?}; \
             state {} KiB",
            bytes / 1024
        );
        if nodes == 1_000 && !cfg!(debug_assertions) {
            assert!(quiet.max(recovery) <= Duration::from_millis(50));
        }
    }
}
