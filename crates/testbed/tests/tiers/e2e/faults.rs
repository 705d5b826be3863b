//! Power, hangs and deaths, on loopback nodes: no privileges needed.

use super::super::support::{
    BOOT, RECOVERY, armed, cluster, ha_settled, ha_started, ha_takes, loopback, node_is, one_writer, runs_on,
    start,
};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use stead_testbed::Cluster;
use stead_testbed::api::until;
use stead_testbed::guest::tick;
use stead_testbed::node::Node;
use stead_testbed::poll::Poller;

const VM: u32 = 100;

/// It runs elsewhere, answers, and has run alone; gives where.
async fn recovered(cluster: &Cluster, poller: &Poller, lost: usize, began: Instant) -> Result<usize> {
    let watcher = if lost == 2 { 0 } else { 2 };
    let api = cluster.api(watcher).await?;
    let to = runs_on(cluster, &api, VM, RECOVERY, |n| n != lost).await.context("the recovery")?;
    println!("runs on {} after {:.2} s", cluster.node(to).name(), began.elapsed().as_secs_f64());
    poller.wait(RECOVERY, |s| s.place == to).await.context("an answer after the recovery")?;
    println!("answers after {:.2} s", began.elapsed().as_secs_f64());
    one_writer(cluster, VM)?;
    Ok(to)
}

/// Where the VM would go if its node were lost now, asked at a node that does not lead; the cluster says that it survives that.
async fn foreseen(cluster: &Cluster, node: usize) -> Result<String> {
    let leader = cluster.leader(&cluster.api(0).await?).await?;
    let api = cluster.api((0..3).find(|n| *n != leader && *n != node).unwrap_or(0)).await?;
    until("the cluster knows that it survives the loss of any one node", RECOVERY, async || {
        let status = api.get("/cluster/ha/status/current").await?;
        Ok(status.as_array().is_some_and(|all| all.iter().any(|r| r["survives"] == 1)).then_some(()))
    })
    .await?;
    let found = api.get(&format!("/cluster/ha/what-if?nodes={}", cluster.node(node).name())).await?;
    let guests = found["loss"]["guests"].as_array().context("no guests")?;
    ensure!(
        guests.len() == 1 && guests[0]["sid"] == format!("vm:{VM}") && guests[0]["fate"] == "runs",
        "{found}"
    );
    Ok(guests[0]["to"].as_str().context("no target")?.to_owned())
}

#[test]
fn a_vm_is_recovered_when_its_node_loses_power() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        let foreseen = foreseen(&cluster, 1).await?;
        let began = Instant::now();
        cluster.node(1).power_off()?;
        let to = recovered(&cluster, &poller, 1, began).await?;
        ensure!(cluster.node(to).name() == foreseen, "'{foreseen}' was foreseen");

        cluster.node(1).power_on()?;
        cluster.wait_up(cluster.node(1)).await?;
        for n in 0..3 {
            node_is(&cluster, &cluster.api(n).await?, 1, true).await?;
        }
        ensure!(!cluster.node(1).runs_a_guest(), "n2 runs what was recovered");
        let api = cluster.api(1).await?;
        runs_on(&cluster, &api, VM, BOOT, |n| n == to).await?;
        // The node is good for guests again, once it has a lease.
        ha_takes(&cluster, &api, 1).await?;
        let from = cluster.node(to).name();
        api.post_and_wait(
            &format!("/nodes/{from}/qemu/{VM}/migrate"),
            &[("target", "n2"), ("online", "1")],
            BOOT,
        )
        .await?;
        runs_on(&cluster, &api, VM, BOOT, |n| n == 1).await?;
        one_writer(&cluster, VM)
    });
}

#[test]
fn the_leader_s_node_may_be_the_one_that_dies() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        let leader = cluster.leader(&api).await?;
        cluster.create_http_guest(leader, VM, "web").await?;
        start(&cluster, &api, leader, VM).await?;
        ha_started(&api, VM).await?;
        ha_settled(&api, VM).await?;
        let poller = Poller::start(cluster.guest_places(VM));
        poller.wait(BOOT, |_| true).await.context("the first answer")?;
        let began = Instant::now();
        cluster.node(leader).power_off()?;
        recovered(&cluster, &poller, leader, began).await.map(drop)
    });
}

#[test]
fn a_daemon_that_hangs_and_wakes_does_not_run_the_vm_twice() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        let began = Instant::now();
        cluster.node(1).hang_daemon();
        // Its fence process pauses and freezes the VM when the lease ends; the others recover it.
        recovered(&cluster, &poller, 1, began).await?;
        ensure!(cluster.node(1).runs_a_guest(), "the old copy was killed, not held, while its daemon hung");
        cluster.node(1).wake_daemon();
        // It finds its copy to be old, and destroys it without a thaw.
        until("the old copy is gone", RECOVERY, async || Ok((!cluster.node(1).runs_a_guest()).then_some(())))
            .await?;
        let api = cluster.api(0).await?;
        node_is(&cluster, &api, 1, true).await?;
        one_writer(&cluster, VM)
    });
}

#[test]
fn the_profile_changes_under_a_running_vm() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        let api = cluster.api(0).await?;
        poller.take_counts();
        for profile in ["wan", "fast"] {
            until("the change before is over", RECOVERY, async || {
                let now = api.get("/cluster/ha/profile").await?;
                Ok(now["previous"].is_null().then_some(()))
            })
            .await?;
            api.put("/cluster/ha/profile", &[("profile", profile)]).await?;
            let refused = api.put("/cluster/ha/profile", &[("profile", "default")]).await.unwrap_err();
            ensure!(refused.to_string().contains("is not over"), "{refused}");
        }
        until("the last change is over", RECOVERY, async || {
            Ok(api.get("/cluster/ha/profile").await?["previous"].is_null().then_some(()))
        })
        .await?;
        let counts = poller.take_counts();
        println!("{counts:?}");
        ensure!(counts.longest_gap < Duration::from_secs(1), "the VM stood still: {counts:?}");

        let began = Instant::now();
        cluster.node(1).power_off()?;
        runs_on(&cluster, &api, VM, RECOVERY, |n| n != 1).await?;
        let took = began.elapsed();
        println!("fast: runs elsewhere after {took:?}");
        ensure!(took < Duration::from_secs(6), "as slow as by default: {took:?}");
        one_writer(&cluster, VM)
    });
}

#[test]
fn without_a_fence_process_the_daemon_ends_what_nobody_guards() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        for way in [Node::break_fence, Node::hang_fence] {
            let at = runs_on(&cluster, &cluster.api(0).await?, VM, BOOT, |_| true).await?;
            let began = Instant::now();
            way(cluster.node(at))?;
            until("the unguarded VM is ended", RECOVERY, async || {
                Ok((!cluster.node(at).runs_a_guest()).then_some(()))
            })
            .await?;
            println!("ended on {} after {:.2} s", cluster.node(at).name(), began.elapsed().as_secs_f64());
            // By the end of L + D: nobody may start it elsewhere before L + D + W.
            ensure!(began.elapsed().as_secs_f64() < 6.0, "the others may have started it already");
            recovered(&cluster, &poller, at, began).await?;
        }
        Ok(())
    });
}

#[test]
fn a_daemon_that_dies_under_a_migration_leaves_one_copy() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        for dies in [1, 2] {
            let api = cluster.api(0).await?;
            let at = runs_on(&cluster, &api, VM, BOOT, |_| true).await?;
            let target = if at == 1 { 2 } else { 1 };
            let path = format!("/nodes/{}/qemu/{VM}/migrate", cluster.node(at).name());
            let name = cluster.node(target).name();
            api.post(&path, &[("target", name), ("online", "1")]).await?;
            cluster.node(dies).kill_daemon()?;
            cluster.node(dies).start_daemon()?;
            cluster.wait_up(cluster.node(dies)).await?;
            let now =
                runs_on(&cluster, &api, VM, RECOVERY, |_| true).await.context("after the daemon died")?;
            let copies: Vec<usize> = (0..3).filter(|n| cluster.node(*n).runs_a_guest()).collect();
            until("one copy", RECOVERY, async || {
                let copies = (0..3).filter(|n| cluster.node(*n).runs_a_guest());
                Ok((copies.count() == 1).then_some(()))
            })
            .await
            .with_context(|| format!("configured on {}, copies on {copies:?}", cluster.node(now).name()))?;
            poller.wait(BOOT, |_| true).await?;
            one_writer(&cluster, VM)?;
        }
        Ok(())
    });
}

#[test]
fn many_small_vms_are_recovered() {
    const MANY: u32 = 10;
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        for vmid in 200..200 + MANY {
            cluster.create_tick_guest(1, vmid).await?;
            ha_started(&api, vmid).await?;
        }
        for vmid in 200..200 + MANY {
            runs_on(&cluster, &api, vmid, BOOT, |_| true).await?;
            ha_settled(&api, vmid).await?;
        }
        let mut counts = Vec::new();
        for vmid in 200..200 + MANY {
            let disk = cluster.disk_path(vmid, 0);
            let ticks = until("it ticks", BOOT, async || Ok(tick::read_cell(&disk)?.filter(|c| c.count > 0)));
            counts.push(ticks.await?.count);
        }
        let began = Instant::now();
        cluster.node(1).power_off()?;
        for (vmid, before) in (200..).zip(counts) {
            runs_on(&cluster, &api, vmid, RECOVERY, |n| n != 1).await?;
            let disk = cluster.disk_path(vmid, 0);
            let more = until("it ticks on", BOOT, async || {
                Ok(tick::read_cell(&disk)?.filter(|c| c.count > before + 5))
            });
            let cell = more.await?;
            ensure!(cell.conflicts == 0, "VM {vmid} ran twice: {cell:?}");
        }
        println!("{MANY} recovered and ticking after {:.2} s", began.elapsed().as_secs_f64());
        Ok(())
    });
}
