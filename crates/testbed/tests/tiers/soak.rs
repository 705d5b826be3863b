//! Faults on a real cluster, over and over, as long as `STEAD_SOAK_MINUTES` says.

use super::support::{
    BOOT, RECOVERY, cluster, ha_settled, ha_started, loopback, node_is, one_writer, runs_on,
};
use anyhow::Context;
use rand::seq::IndexedRandom;
use std::time::{Duration, Instant};
use stead_testbed::poll::Poller;

const VM: u32 = 100;

#[derive(Debug, Clone, Copy)]
enum Fault {
    PowerOff,
    KillDaemon,
    RestartDaemon,
    ShortHang,
    LongHang,
    Migrate,
}

#[test]
fn faults_over_and_over() {
    const FAULTS: [Fault; 6] = [
        Fault::PowerOff,
        Fault::KillDaemon,
        Fault::RestartDaemon,
        Fault::ShortHang,
        Fault::LongHang,
        Fault::Migrate,
    ];
    let minutes = std::env::var("STEAD_SOAK_MINUTES").ok().and_then(|m| m.parse().ok()).unwrap_or(30);
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        cluster.create_http_guest(0, VM, "soak").await?;
        let api = cluster.api(0).await?;
        ha_started(&api, VM).await?;
        let poller = Poller::start(cluster.guest_places(VM));
        let end = Instant::now() + Duration::from_secs(60 * minutes);
        let mut round = 0u32;
        while Instant::now() < end {
            round += 1;
            let fault = *FAULTS.choose(&mut rand::rng()).context("no faults")?;
            let hit = rand::random_range(0..3);
            let watch = cluster.api((hit + 1) % 3).await?;
            let at = runs_on(&cluster, &watch, VM, RECOVERY, |_| true).await?;
            ha_settled(&watch, VM).await?;
            println!("round {round}: {fault:?} on n{}, VM on n{}", hit + 1, at + 1);
            let node = cluster.node(hit);
            match fault {
                Fault::PowerOff => node.power_off()?,
                Fault::KillDaemon => node.kill_daemon()?,
                Fault::RestartDaemon => node.restart_daemon()?,
                Fault::ShortHang => {
                    node.freeze();
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    node.thaw();
                }
                Fault::LongHang => {
                    node.hang_daemon();
                    tokio::time::sleep(Duration::from_secs(15)).await;
                    node.wake_daemon();
                }
                Fault::Migrate => {
                    let to = cluster.node((at + 1) % 3).name();
                    let path = format!("/nodes/{}/qemu/{VM}/migrate", cluster.node(at).name());
                    watch.post_and_wait(&path, &[("target", to), ("online", "1")], BOOT).await?;
                }
            }
            let now = poller.now();
            poller.wait(RECOVERY, |s| s.at > now).await.context("an answer after the fault")?;
            node.power_on()?;
            cluster.wait_up(node).await?;
            node_is(&cluster, &watch, hit, true).await?;
            one_writer(&cluster, VM)?;
        }
        println!("{round} faults, one writer");
        Ok(())
    });
}
