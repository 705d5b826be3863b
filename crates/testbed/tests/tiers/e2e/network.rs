//! Networks that are cut, in namespaces: as root.

use super::super::support::{BOOT, RECOVERY, armed, cluster, namespaces, node_is, one_writer, runs_on};
use anyhow::{Context, ensure};
use std::time::Duration;
use stead_testbed::api::until;

const VM: u32 = 100;
const OUTAGE: Duration = Duration::from_secs(30);

#[test]
fn a_node_that_is_cut_off_loses_its_vm_and_destroys_its_copy() {
    namespaces(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        cluster.network()?.link(2, false)?;
        let api = cluster.api(2).await?;
        runs_on(&cluster, &api, VM, RECOVERY, |n| n != 1).await.context("the recovery")?;
        poller.wait(RECOVERY, |s| s.answer.uptime_ms < 60_000).await?;
        one_writer(&cluster, VM)?;
        cluster.network()?.heal()?;
        until("the old copy is destroyed", RECOVERY, async || {
            Ok((!cluster.node(1).runs_a_guest()).then_some(()))
        })
        .await?;
        node_is(&cluster, &api, 1, true).await?;
        one_writer(&cluster, VM)
    });
}

#[test]
fn a_dead_switch_is_a_pause_and_no_reboot() {
    namespaces(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        let before = poller.wait(BOOT, |_| true).await?;
        // Nobody has a majority: every guest is paused where it is, and goes on when the switch is back.
        for n in 1..=3 {
            cluster.network()?.link(n, false)?;
        }
        // Far past lease and fence time of the default profile.
        tokio::time::sleep(OUTAGE).await;
        cluster.network()?.heal()?;
        let after = poller.wait(RECOVERY, |s| s.at > before.at + OUTAGE).await?;
        ensure!(after.answer.boot_id == before.answer.boot_id, "it was booted anew");
        let resets: u32 = cluster.nodes().iter().map(stead_testbed::node::Node::resets).sum();
        ensure!(resets == 0, "{resets} nodes were reset for a dead switch");
        one_writer(&cluster, VM)
    });
}

#[test]
fn a_connection_survives_a_migration_on_a_bridge() {
    namespaces(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 0, VM).await?;
        let before = poller.wait(BOOT, |_| true).await?;
        poller.take_counts();
        let api = cluster.api(2).await?;
        api.post_and_wait(
            &format!("/nodes/n1/qemu/{VM}/migrate"),
            &[("target", "n2"), ("online", "1")],
            BOOT,
        )
        .await?;
        runs_on(&cluster, &api, VM, BOOT, |n| n == 1).await?;
        let after = poller.wait(BOOT, |s| s.answer.counter > before.answer.counter + 20).await?;
        ensure!(after.answer.boot_id == before.answer.boot_id);
        let counts = poller.take_counts();
        println!("{counts:?}");
        ensure!(counts.longest_gap < Duration::from_secs(3), "{counts:?}");
        Ok(())
    });
}

#[test]
fn one_way_and_partial_partitions_never_run_a_vm_twice() {
    namespaces(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        let network = cluster.network()?;
        // Its answers do not arrive; the others' do.
        network.one_way(2, 1)?;
        network.one_way(2, 3)?;
        let api = cluster.api(2).await?;
        runs_on(&cluster, &api, VM, RECOVERY, |n| n != 1).await.context("heard by nobody")?;
        one_writer(&cluster, VM)?;
        network.heal()?;
        node_is(&cluster, &api, 1, true).await?;
        one_writer(&cluster, VM)?;
        // Two that do not hear each other, and a third that hears both: the VM stays or moves, and runs once.
        network.partition(1, 2)?;
        tokio::time::sleep(Duration::from_secs(10)).await;
        network.heal()?;
        let now = poller.now();
        poller.wait(RECOVERY, |s| s.at > now).await?;
        one_writer(&cluster, VM)
    });
}
