//! How long a round of the manager takes, and how that grows: `cargo run --release -p stead-ha --example scale`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stead_ha::{
    AgentReport, Load, ManagerState, NodeView, NodeWord, Process, ServiceView, Stats, StorageView, Use, View,
    step,
};
use stead_model::ha_cfg::{HaResource, HaRules};
use stead_model::{Epoch, HaOptions, NodeName, ServiceId};

const GIB: u64 = 1 << 30;

fn name(n: u32) -> Result<NodeName, Box<dyn Error>> {
    Ok(format!("n{n}").parse()?)
}

fn sid(n: u32) -> Result<ServiceId, Box<dyn Error>> {
    Ok(format!("vm:{n}").parse()?)
}

/// Three rules of different kinds for each hundred services.
fn rules(nodes: u32, services: u32) -> String {
    let some = |i: u32| {
        let (a, n) = (1000 + i * 100, i % (nodes - 1) + 1);
        format!(
            "resource-affinity: with-{i}\n\tresources vm:{a},vm:{}\n\taffinity positive\n\n\
             resource-affinity: apart-{i}\n\tresources vm:{},vm:{}\n\taffinity negative\n\n\
             node-affinity: near-{i}\n\tresources vm:{}\n\tnodes n{n}:2,n{}\n\n",
            a + 1,
            a + 1,
            a + 2,
            a + 3,
            n + 1,
        )
    };
    (0..services / 100).map(some).collect()
}

fn view(nodes: u32, services: u32) -> Result<View, Box<dyn Error>> {
    let node = NodeView {
        word: NodeWord::Online,
        agent: Some(AgentReport::default()),
        capacity: Load { cpu: 24.0, mem: 128 * GIB },
        others: Stats::default(),
        lost_storages: BTreeMap::new(),
    };
    let all: Result<BTreeMap<NodeName, NodeView>, Box<dyn Error>> =
        (1..=nodes).map(|n| Ok((name(n)?, node.clone()))).collect();
    let stats = Stats { max: Load { cpu: 4.0, mem: 4 * GIB }, used: Load { cpu: 0.5, mem: 2 * GIB } };
    let service = |i: u32| -> Result<(ServiceId, ServiceView), Box<dyn Error>> {
        let sid = sid(1000 + i)?;
        let service = ServiceView {
            resource: HaResource::new(sid),
            owner: name(i % nodes + 1)?,
            epoch: Epoch(1),
            running: true,
            armed: true,
            process: Process::Running,
            stats,
            lock: None,
            storages: Arc::new([("shared".parse()?, Use::Disk)].into()),
        };
        Ok((sid, service))
    };
    let services: Result<BTreeMap<_, _>, Box<dyn Error>> = (0..services).map(service).collect();
    let services = services?;
    Ok(View {
        me: name(1)?,
        nodes: all?,
        rules: HaRules::parse(&rules(nodes, u32::try_from(services.len())?))?.list().0,
        services,
        options: HaOptions::parse(None, Some("ha=dynamic,ha-auto-rebalance=1"))?,
        storages: [("shared".parse()?, StorageView { shared: true, nodes: None, disabled: false })].into(),
        requests: BTreeMap::new(),
        round: 10,
    })
}

/// Whatever is on its way arrives at once.
fn arrive(view: &mut View, state: &mut ManagerState) {
    for _ in 0..6 {
        step(1000, view, state);
        for (sid, s) in &state.service_status {
            if let (Some(target), Some(seen)) = (&s.target, view.services.get_mut(sid)) {
                seen.owner = target.clone();
            }
        }
    }
}

/// The fastest and the median of so many rounds, each over the same state.
fn rounds(view: &View, state: &mut ManagerState, n: usize) -> (Duration, Duration) {
    let mut all: Vec<Duration> = (0..n)
        .map(|_| {
            let mut state = state.clone();
            let began = Instant::now();
            step(1000, view, &mut state);
            began.elapsed()
        })
        .collect();
    all.sort();
    step(1000, view, state);
    (all[0], all[n / 2])
}

fn main() -> Result<(), Box<dyn Error>> {
    for (nodes, services) in [(10, 200), (30, 600), (100, 2_000), (300, 6_000), (1_000, 20_000)] {
        let (mut view, mut state) = (view(nodes, services)?, ManagerState::default());
        let first = rounds(&view, &mut state, 3);
        arrive(&mut view, &mut state);
        let quiet = rounds(&view, &mut state, 50);
        let lost = name(3)?;
        if let Some(node) = view.nodes.get_mut(&lost) {
            (node.word, node.agent) = (NodeWord::Lost, None);
        }
        let recovery = rounds(&view, &mut state, 20);
        let size = serde_json::to_vec(&state)?.len() / 1024;
        println!(
            "{nodes} nodes, {services} services (fastest, median): first round {first:.1?}, quiet round {quiet:.1?}, \
             round of a recovery {recovery:.1?}; state {size} KiB"
        );
    }
    Ok(())
}
