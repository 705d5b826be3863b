//! `stead demo` and `stead demo-failover`: a cluster on one's own machine, to look at or to see it fail over.
//!
//! Both start three nodes on loopback addresses as an ordinary user, and end all that they started: at the end, on Ctrl-C,
//! and, should they be killed, when the next one starts. No power over the machine is involved: a node's power switch is
//! a socket of the testbed.

mod failover;
mod show;
mod steps;

use crate::Cluster;
use crate::api::ApiClient;
use crate::cluster::Builder;
use crate::guest::image;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::time::Duration;
use steps::Steps;
use tokio::signal::unix::{SignalKind, signal};

pub use steps::Out;

/// What is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Play {
    /// Starts the cluster with a running VM and waits for Ctrl-C.
    Show,
    /// Plays migration and failover unattended, prints a timeline of measured times, fails if a step fails.
    Failover,
}

/// The VM of the demo.
const VMID: u32 = 100;

/// Plays, printing to `out`. Ctrl-C ends the show well, and the failover with an error; either way nothing is left.
pub async fn run(play: Play, out: Out) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let steps = Steps::new(out);
    let played = async {
        match play {
            Play::Show => show::play(&steps).await,
            Play::Failover => failover::play(&steps).await,
        }
    };
    // What was started is dropped, and so ended, with the future.
    let interrupted = tokio::select! {
        done = played => return done,
        _ = interrupt.recv() => "interrupted",
        _ = terminate.recv() => "asked to end",
        _ = hangup.recv() => "the terminal is gone",
    };
    steps.say(&format!("\n{interrupted}: everything that was started is ended."));
    match play {
        Play::Show => Ok(()),
        Play::Failover => bail!("{interrupted} before the story's end"),
    }
}

/// Three nodes, one cluster, shared storage, a VM of the HTTP guest; the VM is not started yet.
async fn set_up(steps: &Steps, builder: Builder) -> Result<Cluster> {
    steps.say(
        "  needs about 300 MB of disk in the folder for temporary files, 1 GiB of memory, and half a minute",
    );
    let progress = steps.clone();
    steps
        .step("guest image: Debian's kernel and busybox", async move {
            tokio::task::spawn_blocking(move || image::http_guest(&|text| progress.note(text))).await?
        })
        .await?;
    let cluster =
        steps.step("three nodes start, each a cluster of its own", builder.nodes(3).start()).await?;
    for n in 1..3 {
        let name = cluster.node(n).name();
        steps.step(&format!("{name} joins n1's cluster"), cluster.join(n)).await?;
    }
    steps.step("storage that all nodes share", cluster.add_shared_storage()).await?;
    steps
        .step(&format!("VM {VMID} with a system and a data disk"), cluster.create_http_guest(0, VMID, "demo"))
        .await?;
    Ok(cluster)
}

/// Puts the VM under HA, which starts it, and waits until its CPUs run.
async fn start_under_ha(cluster: &Cluster, api: &ApiClient) -> Result<()> {
    api.post("/cluster/ha/resources", &[("sid", &format!("vm:{VMID}")), ("state", "started")])
        .await
        .context("putting the VM under HA")?;
    running_on(cluster, api, |_| true, Duration::from_secs(60)).await.map(drop)
}

/// Waits until the VM's CPUs run on a node that `wanted` accepts; gives the node's number.
async fn running_on(
    cluster: &Cluster,
    api: &ApiClient,
    wanted: impl Fn(usize) -> bool,
    within: Duration,
) -> Result<usize> {
    crate::api::until(&format!("VM {VMID} runs"), within, async || {
        let row = cluster.guest_row(api, VMID).await?;
        let node = cluster.number(row["node"].as_str().unwrap_or(""))?;
        if !wanted(node) || row["status"] != "running" {
            return Ok(None);
        }
        let status =
            api.get(&format!("/nodes/{}/qemu/{VMID}/status/current", cluster.node(node).name())).await?;
        Ok((status["qmpstatus"] == "running").then_some(node))
    })
    .await
}

/// How a node stands in `/cluster/status`.
async fn node_online(api: &ApiClient, name: &str) -> Result<Option<()>> {
    let rows = api.get("/cluster/status").await?;
    let online = |r: &Value| r["type"] == "node" && r["name"] == name && r["online"] == 1 && r["lost"] != 1;
    Ok(rows.as_array().is_some_and(|rows| rows.iter().any(online)).then_some(()))
}
