//! The story, unattended: start, live migration, power-off, recovery, return; with measured times.

use super::steps::Steps;
use super::{VMID, node_online, running_on, set_up, start_under_ha};
use crate::api::ApiClient;
use crate::poll::{Counts, Poller};
use crate::{Cluster, api};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// How long the guest may take to boot.
const BOOT: Duration = Duration::from_secs(60);
/// How long a recovery may take: far above what it takes, so that a slow machine shows a figure and not an error.
const RECOVERY: Duration = Duration::from_secs(90);

pub(super) async fn play(steps: &Steps) -> Result<()> {
    steps.say("Stead fails over: the story unattended, with measured times.");
    let cluster = set_up(steps, Cluster::builder()).await?;
    steps.say("\n  Timeline");
    let poller = Poller::start(cluster.guest_places(VMID));
    start(steps, &cluster, &poller).await?;
    migrate(steps, &cluster, &poller).await?;
    let lost = power_off(steps, &cluster, &poller).await?;
    bring_back(steps, &cluster, lost).await?;
    steps.say("\n  Every step has succeeded. Everything that was started is ended.");
    Ok(())
}

fn seconds(since: Instant) -> String {
    format!("{:.2} s", since.elapsed().as_secs_f64())
}

fn describe(counts: &Counts) -> String {
    let Counts { answered, lost, longest_gap } = counts;
    format!("{answered} requests answered, {lost} lost, longest silence {:.2} s", longest_gap.as_secs_f64())
}

async fn start(steps: &Steps, cluster: &Cluster, poller: &Poller) -> Result<()> {
    let begin = Instant::now();
    let api = cluster.api(0).await?;
    steps.event(&format!("VM {VMID} is put under HA, requested state: started"));
    start_under_ha(cluster, &api).await?;
    steps.event(&format!("its vCPUs run on n1 after {}", seconds(begin)));
    let first = poller.wait(BOOT, |_| true).await.context("the VM's first HTTP answer")?;
    steps.event(&format!("first HTTP answer after {} (boot {})", seconds(begin), &first.answer.boot_id[..8]));
    Ok(())
}

async fn migrate(steps: &Steps, cluster: &Cluster, poller: &Poller) -> Result<()> {
    let before = poller.wait(BOOT, |_| true).await?;
    poller.take_counts();
    let api = cluster.api(0).await?;
    let begin = Instant::now();
    steps.event("live migration from n1 to n2, a client asking the VM every 20 ms");
    let form = [("target", cluster.node(1).name()), ("online", "1")];
    api.post_and_wait(&format!("/nodes/n1/qemu/{VMID}/migrate"), &form, BOOT)
        .await
        .context("the migration")?;
    running_on(cluster, &api, |n| n == 1, BOOT).await?;
    steps.event(&format!("it runs on n2 after {}", seconds(begin)));
    // Some more answers from there, so that the silence of the switch is over and counted.
    let after = poller.wait(BOOT, |s| s.place == 1 && s.answer.counter > before.answer.counter + 5).await?;
    ensure!(after.answer.boot_id == before.answer.boot_id, "the VM was booted anew instead of migrated");
    steps.event(&format!("the same boot goes on; {}", describe(&poller.take_counts())));
    Ok(())
}

/// Takes the power of the node under the VM away and follows it to another; gives the node that was lost.
async fn power_off(steps: &Steps, cluster: &Cluster, poller: &Poller) -> Result<usize> {
    let lost = 1;
    let watcher = cluster.api(2).await?;
    let before = poller.wait(BOOT, |_| true).await?;
    let node = cluster.node(lost);
    let processes = node.processes();
    let qemus = processes.iter().filter(|p| p.is_qemu()).count();
    ensure!(qemus > 0, "{} runs no guest", node.name());
    poller.take_counts();
    let begin = Instant::now();
    node.power_off()?;
    steps.event(&format!(
        "{} loses its power: {} processes are gone, {qemus} QEMU among them ({})",
        node.name(),
        processes.len(),
        seconds(begin)
    ));
    let to = running_on(cluster, &watcher, |n| n != lost, RECOVERY).await.context("the recovery")?;
    steps.event(&format!(
        "recovered: its vCPUs run on {} {} after the power-off",
        cluster.node(to).name(),
        seconds(begin)
    ));
    let first = poller.wait(RECOVERY, |s| s.answer.boot_id != before.answer.boot_id).await?;
    steps.event(&format!(
        "first HTTP answer {} after the power-off; {}",
        seconds(begin),
        describe(&poller.take_counts())
    ));
    ensure!(first.answer.counter >= before.answer.counter, "numbers that the VM had written are lost");
    let log = cluster.disk_log(VMID)?;
    if let Some(why) = log.two_writers() {
        anyhow::bail!("the VM ran twice:\n{why}");
    }
    steps.event(&format!(
        "its data disk tells of {} boots, one after the other, {} writes",
        log.boots.len(),
        log.last()
    ));
    Ok(lost)
}

async fn bring_back(steps: &Steps, cluster: &Cluster, lost: usize) -> Result<()> {
    let node = cluster.node(lost);
    let begin = Instant::now();
    steps.event(&format!("{} gets its power back", node.name()));
    node.power_on()?;
    cluster.wait_up(node).await?;
    for n in 0..cluster.nodes().len() {
        let watcher: ApiClient = cluster.api(n).await?;
        let what = format!("{} sees {} as a member", cluster.node(n).name(), node.name());
        api::until(&what, RECOVERY, async || node_online(&watcher, node.name()).await).await?;
    }
    steps.event(&format!("{} is a member again after {}; every node sees it", node.name(), seconds(begin)));
    let at = running_on(cluster, &cluster.api(lost).await?, |_| true, BOOT).await?;
    ensure!(!node.runs_a_guest(), "{} runs the VM that was recovered elsewhere", node.name());
    steps.event(&format!("VM {VMID} still runs on {}, and there alone", cluster.node(at).name()));
    Ok(())
}
