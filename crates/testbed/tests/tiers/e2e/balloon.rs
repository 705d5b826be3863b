//! A guest's balloon, as its own system and its host see it.

use super::super::support::{BOOT, cluster, loopback, start};
use anyhow::{Context, ensure};
use stead_testbed::api::until;

const VM: u32 = 100;
const MIB: u64 = 1 << 20;

#[test]
fn a_guest_gets_the_memory_that_its_host_has() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        cluster.create_agent_guest(0, VM, "balloon").await?;
        let config = format!("/nodes/n1/qemu/{VM}/config");
        api.put(&config, &[("memory", "512"), ("balloon", "256"), ("shares", "0")]).await?;
        start(&cluster, &api, 0, VM).await?;
        let current = async || api.get(&format!("/nodes/n1/qemu/{VM}/status/current")).await;
        let told = until("its system tells of its memory", BOOT, async || {
            let now = current().await?;
            // What it tells follows what the balloon takes by some seconds.
            let total = now["ballooninfo"]["total_mem"].as_u64().unwrap_or(u64::MAX);
            Ok((now["balloon"] == 256 * MIB && total < 256 * MIB).then_some(now))
        })
        .await?;
        ensure!(told["freemem"].is_u64() && told["mem"].as_u64() < told["memhost"].as_u64(), "{told}");
        let node = api.get("/nodes/n1/status").await?;
        let (used, all) = (node["memory"]["used"].as_u64(), node["memory"]["total"].as_u64());
        let busy = used.zip(all).is_none_or(|(used, all)| used / 78 > all / 100);
        ensure!(!busy, "this machine's memory is taken: the guest would get none");

        api.put(&config, &[("shares", "2000")]).await?;
        let mut last = None;
        let full = until("it has all of its memory", BOOT, async || {
            let now = last.insert(current().await?);
            let total = now["ballooninfo"]["total_mem"].as_u64().unwrap_or_default();
            Ok((now["balloon"] == 512 * MIB && now["shares"] == 2000 && total > 256 * MIB).then_some(()))
        })
        .await;
        full.with_context(|| format!("{last:?}"))
    });
}
