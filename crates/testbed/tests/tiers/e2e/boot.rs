//! Guests that start with their node.

use super::super::support::{BOOT, RECOVERY, cluster, loopback, node_is};
use anyhow::ensure;
use stead_testbed::api::until;

#[test]
fn a_vm_starts_with_its_node_and_not_with_its_daemon() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        let vm = [("vmid", "200"), ("memory", "16"), ("onboot", "1"), ("start", "1")];
        api.post_and_wait("/nodes/n2/qemu", &vm, BOOT).await?;
        let status = async || {
            let path = "/nodes/n2/qemu/200/status/current";
            anyhow::Ok(
                api.get(path)
                    .await
                    .map(|s| s["status"].as_str().unwrap_or_default().to_owned())
                    .unwrap_or_default(),
            )
        };
        let becomes = async |wanted: &str| {
            until("the VM's state", RECOVERY, async || Ok((status().await? == wanted).then_some(()))).await
        };
        becomes("running").await?;

        // The loss of power: it ran, and starts again with its node.
        cluster.node(1).power_off()?;
        cluster.node(1).power_on()?;
        cluster.wait_up(cluster.node(1)).await?;
        node_is(&cluster, &api, 1, true).await?;
        becomes("running").await?;
        ensure!(cluster.node(1).runs_a_guest());

        // Who stopped it meant it: a new daemon is no new boot.
        api.post_and_wait("/nodes/n2/qemu/200/status/stop", &[], BOOT).await?;
        cluster.node(1).restart_daemon()?;
        cluster.wait_up(cluster.node(1)).await?;
        node_is(&cluster, &api, 1, true).await?;
        // Its first reconciliation, after which a start would come, is over when a change of its own goes through.
        api.put("/nodes/n2/qemu/200/config", &[("description", "still off")]).await?;
        let tasks = api.get("/nodes/n2/tasks?typefilter=qmstart&limit=5").await?;
        ensure!(status().await? == "stopped" && !cluster.node(1).runs_a_guest(), "it was started: {tasks}");
        Ok(())
    });
}
