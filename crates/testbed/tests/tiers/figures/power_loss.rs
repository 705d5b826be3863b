//! Power loss under a guest → its CPUs run on another node, for each fence profile.
//!
//! As a power cut looks to the others: the node's network goes first, then all that it runs is killed, so that no
//! connection is closed and no word said. Every third is on the leader's node.

use super::super::bench::failover::{VM, place};
use super::super::bench::trace::Traces;
use super::super::bench::{Figures, Report, now, runs, set, verdict};
use super::super::support::{BOOT, RECOVERY, cluster, ha_settled, ha_started, namespaces, node_is, start};
use super::{Samples, picture};
use anyhow::{Context, Result, ensure};
use stead_testbed::Cluster;
use stead_testbed::api::until;
use stead_testbed::guest::tick;
use stead_testbed::procs::Process;

/// The aims of a profile, in seconds.
struct Aim {
    profile: &'static str,
    p50: Option<f64>,
    p99: Option<f64>,
}

/// In the order of the picture.
const AIMS: [Aim; 3] = [
    Aim { profile: "fast", p50: None, p99: Some(5.0) },
    Aim { profile: "default", p50: Some(8.0), p99: Some(10.0) },
    Aim { profile: "wan", p50: None, p99: None },
];

#[test]
fn power_loss_fast() {
    measured(&AIMS[0], 100);
}

#[test]
fn power_loss_default() {
    measured(&AIMS[1], 300);
}

#[test]
fn power_loss_wan() {
    measured(&AIMS[2], 100);
}

fn file(profile: &str) -> String {
    format!("power-loss-{profile}")
}

fn measured(aim: &Aim, wanted: usize) {
    namespaces(async |builder| {
        let samples = Samples::of(&file(aim.profile))?;
        let wanted = runs(wanted);
        let mut cluster = cluster(builder).await?;
        let done = all(&cluster, aim, &samples, wanted).await;
        if done.is_err() {
            cluster.keep_logs();
        }
        done?;
        report(aim, samples.read())?;
        draw()
    });
}

async fn all(cluster: &Cluster, aim: &Aim, samples: &Samples, wanted: usize) -> Result<()> {
    let traces = Traces::new(cluster.dir())?;
    prepare(cluster, &traces, aim.profile).await?;
    for n in samples.read().len()..wanted {
        let on_leader = n % 3 == 0;
        let took = one(cluster, &traces, on_leader).await.with_context(|| format!("run {n}"))?;
        println!("{} run {n}{}: {took:.2} s", aim.profile, if on_leader { " (leader)" } else { "" });
        samples.add(took, if on_leader { "leader" } else { "other" })?;
    }
    Ok(())
}

/// The profile is in force, and the guest under HA.
pub async fn prepare(cluster: &Cluster, traces: &Traces, profile: &str) -> Result<()> {
    let api = cluster.api(0).await?;
    api.put("/cluster/ha/profile", &[("profile", profile)]).await?;
    until("the profile is in force", RECOVERY, async || {
        let now = api.get("/cluster/ha/profile").await?;
        Ok((now["profile"] == profile && now["previous"].is_null()).then_some(()))
    })
    .await?;
    cluster.create_tick_guest(0, VM).await?;
    set(cluster, &api, 0, VM, &[("args", &traces.args())]).await?;
    start(cluster, &api, 0, VM).await?;
    ha_started(&api, VM).await?;
    ha_settled(&api, VM).await
}

async fn one(cluster: &Cluster, traces: &Traces, on_leader: bool) -> Result<f64> {
    let (at, watch) = place(cluster, on_leader).await?;
    let known = traces.living()?;
    let begin = now();
    cluster.node(at).power_off()?;
    let trace = traces.new_running(&known, RECOVERY).await?;
    let running = trace.running().context("it ran, and did not")?;
    let is_it = |p: &Process| p.pid == trace.pid;
    let on = cluster.nodes().iter().position(|n| n.processes().iter().any(is_it));
    ensure!(on.is_some_and(|n| n != at), "the new QEMU is not on another node: {on:?}");
    cluster.node(at).power_on()?;
    cluster.wait_up(cluster.node(at)).await?;
    node_is(cluster, &watch, at, true).await?;
    ha_settled(&watch, VM).await?;
    let cell = until("the guest writes", BOOT, async || tick::read_cell(&cluster.disk_path(VM, 0))).await?;
    ensure!(cell.conflicts == 0, "the guest ran twice: {cell:?}");
    Ok(running - begin)
}

fn report(aim: &Aim, all: Vec<f64>) -> Result<()> {
    let all = Figures(all);
    let mut report = Report::new(&format!("Power loss, profile `{}`", aim.profile));
    report.table("seconds until the vCPUs run elsewhere | n | min | p50 | p90 | p99 | max | aim");
    let met =
        |name: &str, limit: Option<f64>, is: f64| limit.map(|l| verdict(&format!("{name} ≤ {l}"), is <= l));
    let aims = [met("p50", aim.p50, all.p50()), met("p99", aim.p99, all.quantile(0.99))];
    let aims: Vec<String> = aims.into_iter().flatten().collect();
    let (p50, p90, p99) = (all.p50(), all.quantile(0.90), all.quantile(0.99));
    report.row(&format!(
        "profile {} | {} | {:.2} | {p50:.2} | {p90:.2} | {p99:.2} | {:.2} | {}",
        aim.profile,
        all.0.len(),
        all.min(),
        all.max(),
        aims.join(", ")
    ));
    report.publish()
}

/// Draws what was measured of all profiles so far.
fn draw() -> Result<()> {
    let mut panels = Vec::new();
    for aim in &AIMS {
        let values = Figures(Samples::of(&file(aim.profile))?.read());
        if !values.0.is_empty() {
            panels.push(picture::Panel { title: format!("profile {}", aim.profile), values });
        }
    }
    let path = Samples::folder()?.join("power-loss.svg");
    std::fs::write(&path, picture::draw("Power loss → vCPUs run on another node", "seconds", &panels))?;
    println!("drawn: {}", path.display());
    Ok(())
}
