//! An operator's word that a lost node is off: the way out for guests that HA does not guard.

use super::super::support::{BOOT, RECOVERY, cluster, loopback, namespaces, node_is, runs_on, start};
use anyhow::{Result, ensure};
use serde_json::Value;
use stead_testbed::api::until;
use stead_testbed::guest::tick;
use stead_testbed::{ApiClient, Cluster};

const VM: u32 = 100;
const SAY: &str = "/cluster/config/nodes/n2/confirm-off";

/// A running VM on node 1 that is not under HA.
async fn unguarded(cluster: &Cluster, api: &ApiClient) -> Result<()> {
    cluster.create_tick_guest(1, VM).await?;
    start(cluster, api, 1, VM).await?;
    ticks(cluster, 1).await.map(drop)
}

/// Waits until the guest has counted to `from`.
async fn ticks(cluster: &Cluster, from: u32) -> Result<u32> {
    let disk = cluster.disk_path(VM, 0);
    let cell = until("it ticks", BOOT, async || Ok(tick::read_cell(&disk)?.filter(|c| c.count >= from)));
    let cell = cell.await?;
    ensure!(cell.conflicts == 0, "VM {VM} ran twice: {cell:?}");
    Ok(cell.count)
}

/// Gives the word as soon as the node counts as lost and its last report is old.
async fn say(api: &ApiClient) -> Result<()> {
    let task = until("the word is taken", RECOVERY, async || match api.post(SAY, &[]).await {
        Ok(task) => Ok(Some(task)),
        Err(e) if e.to_string().contains("has reported") || e.to_string().contains("is not lost") => Ok(None),
        Err(e) => Err(e),
    });
    api.wait_task(&task.await?, BOOT).await
}

async fn row(cluster: &Cluster, api: &ApiClient) -> Result<(usize, Value)> {
    let row = cluster.guest_row(api, VM).await?;
    Ok((cluster.number(row["node"].as_str().unwrap_or(""))?, row["status"].clone()))
}

#[test]
fn a_vm_without_ha_starts_elsewhere_once_somebody_says_that_its_node_is_off() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        unguarded(&cluster, &api).await?;
        let alive = api.post(SAY, &[]).await;
        ensure!(alive.is_err(), "a node that lives was taken for off");
        cluster.node(1).power_off()?;
        node_is(&cluster, &api, 1, false).await?;
        say(&api).await?;
        let (to, status) = row(&cluster, &api).await?;
        ensure!(to != 1 && status == "stopped", "on node {to}, {status}");
        let before = ticks(&cluster, 1).await?;
        start(&cluster, &api, to, VM).await?;
        ticks(&cluster, before + 5).await?;

        cluster.node(1).power_on()?;
        cluster.wait_up(cluster.node(1)).await?;
        node_is(&cluster, &api, 1, true).await?;
        runs_on(&cluster, &cluster.api(1).await?, VM, BOOT, |n| n == to).await?;
        ensure!(!cluster.node(1).runs_a_guest(), "n2 runs what is not its own any more");
        ticks(&cluster, before + 10).await.map(drop)
    });
}

#[test]
fn a_node_that_was_not_off_ends_its_old_copy_when_it_is_back() {
    namespaces(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        unguarded(&cluster, &api).await?;
        let network = cluster.network()?;
        // A daemon that hangs on a machine that is on.
        cluster.node(1).hang_daemon();
        node_is(&cluster, &api, 1, false).await?;
        let refused = until("its report is old", RECOVERY, async || {
            let answer = api.post(SAY, &[]).await.err().map(|e| e.to_string());
            Ok(answer.filter(|e| !e.contains("has reported")))
        });
        let why = refused.await?;
        ensure!(why.contains("a kernel at"), "{why}");
        cluster.node(1).wake_daemon();
        node_is(&cluster, &api, 1, true).await?;

        network.partition(1, 2)?;
        network.partition(3, 2)?;
        say(&api).await?;
        let (to, status) = row(&cluster, &api).await?;
        ensure!(to != 1 && status == "stopped", "on node {to}, {status}");
        ensure!(cluster.node(1).runs_a_guest(), "nothing guards it: it should run on while it is cut off");
        // The last net below a wrong word: the disk is locked by whoever uses it.
        let path = format!("/nodes/{}/qemu/{VM}/status/start", cluster.node(to).name());
        ensure!(
            api.post_and_wait(&path, &[], BOOT).await.is_err(),
            "it was started over the lock of its disk"
        );
        network.heal()?;
        until("the old copy is gone", RECOVERY, async || Ok((!cluster.node(1).runs_a_guest()).then_some(())))
            .await?;
        node_is(&cluster, &api, 1, true).await?;
        start(&cluster, &api, to, VM).await
    });
}
