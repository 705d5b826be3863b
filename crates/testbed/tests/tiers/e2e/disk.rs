//! A node whose disk is full.

use super::super::support::{BOOT, cluster, namespaces, node_is};
use anyhow::ensure;

#[test]
fn a_full_disk_is_said_and_heals() {
    namespaces(async |builder| {
        let cluster = cluster(builder.disk(64 << 20)).await?;
        let api = cluster.api(0).await?;
        cluster.create_tick_guest(0, 100).await?;
        cluster.node(2).fill_disk()?;
        // The others go on: one of three cannot keep what is committed.
        api.put("/nodes/n1/qemu/100/config", &[("description", "while a disk is full")]).await?;
        cluster.node(2).free_disk()?;
        cluster.node(2).restart_daemon()?;
        cluster.wait_up(cluster.node(2)).await?;
        node_is(&cluster, &api, 2, true).await?;
        let third = cluster.api(2).await?;
        let seen = stead_testbed::api::until("n3 has caught up", BOOT, async || {
            let config = third.get("/nodes/n1/qemu/100/config").await?;
            Ok(config["description"].as_str().map(str::to_owned))
        });
        let seen = seen.await?;
        ensure!(seen.trim() == "while a disk is full", "{seen}");
        Ok(())
    });
}
