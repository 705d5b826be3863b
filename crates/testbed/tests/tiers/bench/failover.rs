//! Power-off under a guest → its CPUs run on another node, and its first answer.

use super::super::support::{
    BOOT, RECOVERY, cluster, ha_settled, ha_started, ha_takes, loopback, node_is, one_writer, runs_on,
};
use super::events::Follower;
use super::trace::Traces;
use super::{Figures, Report, now, runs, set, verdict};
use anyhow::{Context, Result, ensure};
use stead_testbed::api::until;
use stead_testbed::poll::Poller;
use stead_testbed::procs::Process;
use stead_testbed::{ApiClient, Cluster};

pub const VM: u32 = 100;

/// One power-off. Seconds after it.
#[derive(Debug)]
struct Run {
    on_leader: bool,
    /// Somebody else leads; where the leader went.
    elected: Option<f64>,
    /// The node's loss is committed.
    lost: f64,
    /// The new owner is committed.
    owned: f64,
    /// The new QEMU is executed.
    executed: f64,
    /// Its CPUs run, by its own word.
    running: f64,
    /// The guest has answered HTTP.
    answered: f64,
}

/// A figure of a run.
type Of = fn(&Run) -> f64;

/// 30 runs, with the leader's node in ten.
#[test]
fn power_off_to_running_elsewhere() {
    loopback(async |builder| {
        let mut cluster = cluster(builder).await?;
        let all = measure(&cluster).await;
        if all.is_err() {
            // Half an hour may pass until it happens again.
            cluster.keep_logs();
        }
        report(&all?)
    });
}

async fn measure(cluster: &Cluster) -> Result<Vec<Run>> {
    let traces = Traces::new(cluster.dir())?;
    cluster.create_http_guest(0, VM, "bench").await?;
    let api = cluster.api(0).await?;
    set(cluster, &api, 0, VM, &[("args", &traces.args())]).await?;
    ha_started(&api, VM).await?;
    let poller = Poller::start(cluster.guest_places(VM));
    let mut all = Vec::new();
    for n in 0..runs(30) {
        let run = one(cluster, &traces, &poller, n % 3 == 0).await.with_context(|| format!("run {n}"))?;
        println!(
            "run {n}{}: lost {:.2}, owner {:.2}, QEMU {:.2}, vCPUs {:.2}, answer {:.2} s",
            if run.on_leader { " (leader)" } else { "" },
            run.lost,
            run.owned,
            run.executed,
            run.running,
            run.answered
        );
        all.push(run);
    }
    Ok(all)
}

async fn one(cluster: &Cluster, traces: &Traces, poller: &Poller, on_leader: bool) -> Result<Run> {
    let (at, watch) = place(cluster, on_leader).await?;
    let before = poller.wait(BOOT, |s| s.place == at).await?;
    let known = traces.living()?;
    let events = Follower::start(&watch).await?;
    let begin = now();
    cluster.node(at).power_off()?;
    let election =
        async { if on_leader { Ok(Some(elected(cluster, &watch, at).await? - begin)) } else { Ok(None) } };
    let (trace, elected) = tokio::try_join!(traces.new_running(&known, RECOVERY), election)?;
    let running = trace.running().context("it ran, and did not")?;
    let is_it = |p: &Process| p.pid == trace.pid;
    let on = cluster.nodes().iter().position(|n| n.processes().iter().any(is_it));
    ensure!(on.is_some_and(|n| n != at), "the new QEMU is not on another node: {on:?}");
    poller.wait(RECOVERY, |s| s.answer.boot_id != before.answer.boot_id).await?;
    let answered = now() - begin;
    // By now it is told: both were committed before anything ran.
    let name = cluster.node(at).name();
    let lost =
        events.commit(&format!("stead/nodes/{name}"), "lost").context("no commit of the loss was heard")?;
    let owner = events.commit(&format!("stead/owner/{VM}"), "recovered");
    let owner = owner.context("no commit of the recovery was heard")?;
    cluster.node(at).power_on()?;
    cluster.wait_up(cluster.node(at)).await?;
    node_is(cluster, &watch, at, true).await?;
    one_writer(cluster, VM)?;
    Ok(Run {
        on_leader,
        elected,
        lost: lost - begin,
        owned: owner - begin,
        executed: trace.begun - begin,
        running: running - begin,
        answered,
    })
}

/// When `watch`'s node follows, or is, another leader than `old`.
async fn elected(cluster: &Cluster, watch: &ApiClient, old: usize) -> Result<f64> {
    until("another leader", RECOVERY, async || {
        let leader = cluster.leader(watch).await?;
        Ok((leader != old).then(now))
    })
    .await
}

/// Brings the guest to the leader's node, or off it; gives where it is and a client of a node that will stay.
pub async fn place(cluster: &Cluster, on_leader: bool) -> Result<(usize, ApiClient)> {
    let any = cluster.api(0).await?;
    let at = runs_on(cluster, &any, VM, RECOVERY, |_| true).await?;
    ha_settled(&any, VM).await?;
    let leader = cluster.leader(&any).await?;
    let mut to = at;
    if (at == leader) != on_leader {
        to = if on_leader { leader } else { (leader + 1) % 3 };
        ha_takes(cluster, &any, to).await?;
        let path = format!("/nodes/{}/qemu/{VM}/migrate", cluster.node(at).name());
        any.post_and_wait(&path, &[("target", cluster.node(to).name()), ("online", "1")], BOOT).await?;
        runs_on(cluster, &any, VM, BOOT, |n| n == to).await?;
        ha_settled(&any, VM).await?;
    }
    ensure!((cluster.leader(&any).await? == to) == on_leader, "the leader has changed meanwhile");
    Ok((to, cluster.api((to + 1) % 3).await?))
}

fn report(all: &[Run]) -> Result<()> {
    let of = |what: Of, on: Option<bool>| -> Figures {
        all.iter().filter(|r| on.is_none_or(|on| r.on_leader == on)).map(what).collect()
    };
    let mut report = Report::new("Power-off under a guest → it runs on another node");
    report.table("seconds after the power-off | n | min | p50 | max | aim");
    let running = of(|r| r.running, None);
    let p50 = verdict("p50 ≤ 8", running.p50() <= 8.0);
    let max = verdict("max ≤ 12", running.max() <= 12.0);
    report.row(&format!("vCPUs run | {} | {p50}, {max}", running.cells(2)));
    let lines: [(&str, Of, Option<bool>); 5] = [
        ("vCPUs run, the leader's node", |r| r.running, Some(true)),
        ("vCPUs run, another node", |r| r.running, Some(false)),
        ("first HTTP answer", |r| r.answered, None),
        ("first HTTP answer, the leader's node", |r| r.answered, Some(true)),
        ("first HTTP answer, another node", |r| r.answered, Some(false)),
    ];
    for (name, what, on) in lines {
        report.row(&format!("{name} | {} |", of(what, on).cells(2)));
    }
    report.text("Where the time goes (seconds of each step, p50 and max):");
    report.table("step | another node: p50 | max | the leader's node: p50 | max");
    let steps: [(&str, Of); 6] = [
        ("power-off → another leader (within the next step)", |r| r.elected.unwrap_or(f64::NAN)),
        ("power-off → the loss is committed: lease, drain, watchdog", |r| r.lost),
        ("→ the new owner is committed", |r| r.owned - r.lost),
        ("→ its QEMU is executed", |r| r.executed - r.owned),
        ("→ its vCPUs run", |r| r.running - r.executed),
        ("→ it answers HTTP (its boot)", |r| r.answered - r.running),
    ];
    for (name, what) in steps {
        let cell = |on| {
            let known: Figures = of(what, Some(on)).0.into_iter().filter(|x| !x.is_nan()).collect();
            if known.0.is_empty() {
                "- | -".to_owned()
            } else {
                format!("{:.2} | {:.2}", known.p50(), known.max())
            }
        };
        report.row(&format!("{name} | {} | {}", cell(false), cell(true)));
    }
    report.publish()
}
