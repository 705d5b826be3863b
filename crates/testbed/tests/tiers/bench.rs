//! The figures of docs/benchmarks.md: `make bench`. Ratios are taken within one run, side by side.

use super::support::{
    BOOT, RECOVERY, cluster, ha_settled, ha_started, loopback, node_is, one_writer, runs_on,
};
use anyhow::{Context, Result, ensure};
use std::time::Instant;
use stead_testbed::poll::Poller;
use stead_testbed::{ApiClient, Cluster};

const VM: u32 = 100;

fn report(what: &str, mut seconds: Vec<f64>) {
    seconds.sort_by(f64::total_cmp);
    if let (Some(min), Some(max)) = (seconds.first(), seconds.last()) {
        let p50 = seconds[seconds.len() / 2];
        println!("BENCH {what}: n {} min {min:.2} p50 {p50:.2} max {max:.2} s", seconds.len());
    }
}

/// Power-off under a guest → its vCPUs run on another node, and its first answer: 30 runs, the leader's node in ten.
#[test]
fn power_off_to_running_elsewhere() {
    let runs = std::env::var("STEAD_BENCH_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        cluster.create_http_guest(0, VM, "bench").await?;
        let api = cluster.api(0).await?;
        ha_started(&api, VM).await?;
        let poller = Poller::start(cluster.guest_places(VM));
        let (mut running, mut answering) = (Vec::new(), Vec::new());
        for run in 0..runs {
            let (at, watch) = place(&cluster, run % 3 == 0).await?;
            let before = poller.wait(BOOT, |s| s.place == at).await?;
            let begin = Instant::now();
            cluster.node(at).power_off()?;
            runs_on(&cluster, &watch, VM, RECOVERY, |n| n != at).await?;
            running.push(begin.elapsed().as_secs_f64());
            poller.wait(RECOVERY, |s| s.answer.boot_id != before.answer.boot_id).await?;
            answering.push(begin.elapsed().as_secs_f64());
            println!(
                "run {run}: vCPUs {:.2} s, answer {:.2} s",
                running[running.len() - 1],
                answering[answering.len() - 1]
            );
            cluster.node(at).power_on()?;
            cluster.wait_up(cluster.node(at)).await?;
            node_is(&cluster, &watch, at, true).await?;
            one_writer(&cluster, VM)?;
        }
        report("power-off to vCPUs running elsewhere", running);
        report("power-off to first HTTP answer elsewhere", answering);
        Ok(())
    });
}

/// Brings the guest to the leader's node, or off it; gives where it is and a client of a node that will stay.
async fn place(cluster: &Cluster, on_leader: bool) -> Result<(usize, ApiClient)> {
    let any = cluster.api(0).await?;
    let at = runs_on(cluster, &any, VM, RECOVERY, |_| true).await?;
    ha_settled(&any, VM).await?;
    let leader = cluster.leader(&any).await?;
    let mut to = at;
    if (at == leader) != on_leader {
        to = if on_leader { leader } else { (leader + 1) % 3 };
        let path = format!("/nodes/{}/qemu/{VM}/migrate", cluster.node(at).name());
        any.post_and_wait(&path, &[("target", cluster.node(to).name()), ("online", "1")], BOOT).await?;
        runs_on(cluster, &any, VM, BOOT, |n| n == to).await?;
        ha_settled(&any, VM).await?;
    }
    Ok((to, cluster.api((to + 1) % 3).await?))
}

/// A daemon's memory with 0 and 50 guests.
#[test]
fn memory_of_a_daemon() {
    const GUESTS: u32 = 50;
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(1)).await?;
        let api = cluster.api(0).await?;
        let empty = daemon_memory(&cluster)?;
        for vmid in 200..200 + GUESTS {
            cluster.create_tick_guest(0, vmid).await?;
            api.post_and_wait(&format!("/nodes/n1/qemu/{vmid}/status/start"), &[], BOOT).await?;
        }
        let full = daemon_memory(&cluster)?;
        println!("BENCH daemon's memory: {empty:.1} MiB without guests, {full:.1} MiB with {GUESTS}");
        let limit = 50.0 + 0.2 * f64::from(GUESTS);
        ensure!(empty <= 50.0 && full <= limit, "over 50 MiB + 0.2 MiB a guest: {empty:.1}, {full:.1}");
        Ok(())
    });
}

/// Proportional set size in MiB.
fn daemon_memory(cluster: &Cluster) -> Result<f64> {
    let processes = cluster.node(0).processes();
    let daemon = processes.iter().find(|p| p.command.contains("steadd --dir")).context("no daemon")?;
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", daemon.pid))?;
    let line = text.lines().find(|l| l.starts_with("Pss:")).context("no Pss")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kib / 1024.0)
}
