//! API call → QEMU runs, against the execution of the same command line by hand.

use super::super::support::{BOOT, cluster, loopback};
use super::hand::{Line, run_dir};
use super::trace::Traces;
use super::{Figures, Report, now, runs, set, verdict};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use stead_testbed::{ApiClient, Cluster};

const VM: u32 = 100;

/// Alternating; one of each goes ahead that is not counted.
#[test]
fn api_call_to_running() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let traces = Traces::new(cluster.dir())?;
        cluster.create_http_guest(1, VM, "start").await?;
        let api = cluster.api(1).await?;
        set(&cluster, &api, 1, VM, &[("args", &traces.args())]).await?;
        let (mut ours, mut by_hand) = (Figures::default(), Figures::default());
        let mut accelerator = String::new();
        for n in 0..=runs(20) {
            let (seconds, line) = through_api(&cluster, &api, &traces).await?;
            let hand = with_hands(&cluster, &line, &traces)?;
            line.option("-accel").unwrap_or("?").clone_into(&mut accelerator);
            println!("run {n}: by the API {:.0} ms, by hand {:.0} ms", seconds * 1e3, hand * 1e3);
            if n > 0 {
                ours.0.push(seconds * 1e3);
                by_hand.0.push(hand * 1e3);
            }
        }
        let more: Figures = ours.0.iter().zip(&by_hand.0).map(|(a, b)| a - b).collect();
        let mut report = Report::new("API call → QEMU runs");
        report.table("ms until the vCPUs run | n | min | p50 | max | aim");
        report.row(&format!("`POST …/status/start` | {} |", ours.cells(0)));
        report.row(&format!("exec of the same command line, `cont` by QMP | {} |", by_hand.cells(0)));
        let aim = verdict("≤ 150", more.p50() <= 150.0);
        report.row(&format!("more, pair by pair | {} | {aim}", more.cells(0)));
        report.text(&format!("Accelerator: `{accelerator}`."));
        report.publish()
    });
}

async fn through_api(cluster: &Cluster, api: &ApiClient, traces: &Traces) -> Result<(f64, Line)> {
    let node = cluster.node(1);
    let path = format!("/nodes/{}/qemu/{VM}/status", node.name());
    let known = traces.living()?;
    let begin = now();
    let task = api.post(&format!("{path}/start"), &[]).await?;
    let trace = traces.new_running(&known, BOOT).await?;
    api.wait_task(&task, BOOT).await?;
    let status = api.get(&format!("{path}/current")).await?;
    ensure!(status["qmpstatus"] == "running", "started, but: {status}");
    let line = Line::of(node, VM)?;
    api.post_and_wait(&format!("{path}/stop"), &[], BOOT).await?;
    Ok((trace.running().context("it ran, and did not")? - begin, line))
}

fn with_hands(cluster: &Cluster, line: &Line, traces: &Traces) -> Result<f64> {
    let dir = cluster.dir().join("hand");
    let line = line.with(&run_dir(cluster.node(1), VM), &dir.display().to_string());
    let begin = now();
    let mut qemu = line.start(&dir, None)?;
    qemu.ask("cont", &json!({}))?;
    let status = qemu.ask("query-status", &json!({}))?;
    ensure!(status["status"] == "running", "continued, but: {status}");
    Ok(traces.of(qemu.pid()?)?.running().context("it ran, and did not")? - begin)
}
