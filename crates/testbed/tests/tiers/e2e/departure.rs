//! A host that goes down in order.

use super::super::support::{
    BOOT, RECOVERY, cluster, ha_settled, ha_started, loopback, node_is, one_writer, runs_on, start,
};
use anyhow::ensure;
use stead_testbed::api::until;
use stead_testbed::poll::Poller;

const MOVES: u32 = 100;
const STOPS: u32 = 200;

#[test]
fn a_host_goes_down_when_its_guests_have_left() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        api.put("/cluster/options", &[("ha", "shutdown_policy=migrate")]).await?;
        cluster.create_http_guest(1, MOVES, "moves").await?;
        start(&cluster, &api, 1, MOVES).await?;
        ha_started(&api, MOVES).await?;
        ha_settled(&api, MOVES).await?;
        let poller = Poller::start(cluster.guest_places(MOVES));
        poller.wait(BOOT, |_| true).await?;
        cluster.create_tick_guest(1, STOPS).await?;
        // It hears no power button.
        api.put(&format!("/nodes/n2/qemu/{STOPS}/config"), &[("startup", "down=2")]).await?;
        start(&cluster, &api, 1, STOPS).await?;

        api.post("/nodes/n2/status", &[("command", "shutdown")]).await?;
        until("n2 is off", RECOVERY, async || Ok((cluster.node(1).orders() == 1).then_some(()))).await?;
        ensure!(cluster.node(1).resets() == 0, "it was reset");
        runs_on(&cluster, &api, MOVES, BOOT, |n| n != 1).await?;
        one_writer(&cluster, MOVES)?;
        // What HA does not maintain was stopped, and is known to be.
        let own = api.get("/cluster/resources?type=vm").await?;
        let stopped = own.as_array().into_iter().flatten().find(|r| r["vmid"] == STOPS);
        ensure!(stopped.is_some_and(|r| r["status"] != "running"), "{own}");

        cluster.node(1).power_on()?;
        cluster.wait_up(cluster.node(1)).await?;
        node_is(&cluster, &api, 1, true).await?;
        // It comes back with its node.
        runs_on(&cluster, &api, MOVES, RECOVERY, |n| n == 1).await?;
        one_writer(&cluster, MOVES)
    });
}

#[test]
fn a_host_stays_up_when_its_user_thinks_better_of_it() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        cluster.create_tick_guest(1, STOPS).await?;
        start(&cluster, &api, 1, STOPS).await?;
        api.post("/nodes/n2/status", &[("command", "reboot")]).await?;
        let task = until("the task", BOOT, async || {
            let running = api.get("/nodes/n2/tasks?source=active&typefilter=nodereboot").await?;
            Ok(running[0]["upid"].as_str().map(stead_testbed::api::escape))
        })
        .await?;
        api.delete(&format!("/nodes/n2/tasks/{task}")).await?;
        until("the task's end", BOOT, async || {
            let status = api.get(&format!("/nodes/n2/tasks/{task}/status")).await?;
            Ok((status["status"] == "stopped").then_some(()))
        })
        .await?;
        ensure!(cluster.node(1).orders() == 0 && cluster.node(1).runs_a_guest(), "it went down all the same");
        // And the node takes guests as before.
        cluster.create_tick_guest(1, STOPS + 1).await?;
        start(&cluster, &api, 1, STOPS + 1).await
    });
}
