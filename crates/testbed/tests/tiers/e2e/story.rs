//! The whole story without faults: a cluster, a VM, its life, moves while it runs, daemons that come and go.

use super::super::support::{BOOT, cluster, loopback, node_is, one_writer, runs_on, start};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use stead_testbed::api::until;
use stead_testbed::cluster::is_refused;
use stead_testbed::poll::Poller;

const VM: u32 = 100;

#[test]
fn a_vm_lives_moves_and_outlives_its_daemon() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        cluster.create_http_guest(0, VM, "web").await?;
        start(&cluster, &api, 0, VM).await?;
        let poller = Poller::start(cluster.guest_places(VM));
        let first = poller.wait(BOOT, |_| true).await.context("the first answer")?;

        // Asked at a node that does not run it: forwarded.
        let other = cluster.api(2).await?;
        let path = format!("/nodes/n1/qemu/{VM}/migrate");
        other
            .post_and_wait(&path, &[("target", "n2"), ("online", "1")], BOOT)
            .await
            .context("the migration")?;
        runs_on(&cluster, &other, VM, BOOT, |n| n == 1).await?;
        let moved = poller.wait(BOOT, |s| s.place == 1).await.context("an answer from n2")?;
        ensure!(moved.answer.boot_id == first.answer.boot_id, "booted anew instead of migrated");

        // The guest belongs to the operating system: the daemon comes back and finds it.
        cluster.node(1).kill_daemon()?;
        let without = poller.wait(BOOT, |s| s.answer.counter > moved.answer.counter + 10).await?;
        ensure!(without.answer.boot_id == first.answer.boot_id);
        cluster.node(1).start_daemon()?;
        cluster.wait_up(cluster.node(1)).await?;
        let api = cluster.api(1).await?;
        runs_on(&cluster, &api, VM, BOOT, |n| n == 1).await.context("adopted")?;
        node_is(&cluster, &api, 2, true).await?;
        api.post_and_wait(
            &format!("/nodes/n2/qemu/{VM}/migrate"),
            &[("target", "n3"), ("online", "1")],
            BOOT,
        )
        .await
        .context("a migration of an adopted guest")?;
        let back = poller.wait(BOOT, |s| s.place == 2).await?;
        ensure!(back.answer.boot_id == first.answer.boot_id && back.answer.conflicts == 0, "{back:?}");

        // The power button, which the guest obeys.
        api.post_and_wait(&format!("/nodes/n3/qemu/{VM}/status/shutdown"), &[("timeout", "30")], BOOT)
            .await?;
        let row = cluster.guest_row(&api, VM).await?;
        ensure!(row["status"] == "stopped" && row["node"] == "n3", "{row}");
        ensure!(!cluster.node(2).runs_a_guest(), "its process is still there");
        one_writer(&cluster, VM)?;
        ensure!(cluster.disk_log(VM)?.boots.len() == 1, "one boot over all moves");
        api.call(http::Method::DELETE, &format!("/nodes/n3/qemu/{VM}"), &[]).await?;
        gone(&cluster, &api).await
    });
}

async fn gone(cluster: &stead_testbed::Cluster, api: &stead_testbed::ApiClient) -> Result<()> {
    until("the VM is gone everywhere", BOOT, async || {
        let rows = api.get("/cluster/resources?type=vm").await?;
        Ok(rows.as_array().is_some_and(Vec::is_empty).then_some(()))
    })
    .await?;
    ensure!(!cluster.disk_path(VM, 0).exists() && !cluster.disk_path(VM, 1).exists(), "its disks are left");
    Ok(())
}

#[test]
fn many_guests_start_move_and_stop_by_one_task() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        for n in 0..3 {
            cluster.create_tick_guest(n, VM + u32::try_from(n)?).await?;
        }
        let states = async || {
            let rows = api.get("/cluster/resources?type=vm").await?;
            let of = |r: &serde_json::Value| {
                Some(format!("{} {} {}", r["vmid"], r["node"].as_str()?, r["status"].as_str()?))
            };
            let mut all: Vec<_> = rows.as_array().context("no guests")?.iter().filter_map(of).collect();
            all.sort();
            anyhow::Ok(all)
        };
        // Guests of other nodes are started by these; the task ends when all run.
        api.post_and_wait("/cluster/bulk-action/guest/start", &[], BOOT).await?;
        ensure!(
            states().await? == ["100 n1 running", "101 n2 running", "102 n3 running"],
            "{:?}",
            states().await?
        );
        // Asked at a node that has none of them: forwarded.
        api.post_and_wait("/nodes/n2/migrateall", &[("target", "n3"), ("maxworkers", "2")], BOOT).await?;
        ensure!(
            states().await? == ["100 n1 running", "101 n3 running", "102 n3 running"],
            "{:?}",
            states().await?
        );
        api.post_and_wait("/nodes/n3/stopall", &[("timeout", "1")], BOOT).await?;
        ensure!(
            states().await? == ["100 n1 running", "101 n3 stopped", "102 n3 stopped"],
            "{:?}",
            states().await?
        );
        let back = [("target", "n1"), ("online", "1"), ("vms", "101,102")];
        api.post_and_wait("/cluster/bulk-action/guest/migrate", &back, BOOT).await?;
        ensure!(
            states().await? == ["100 n1 running", "101 n1 stopped", "102 n1 stopped"],
            "{:?}",
            states().await?
        );
        Ok(())
    });
}

#[test]
fn a_guest_that_dies_is_noticed_within_a_second_and_started_again_under_ha() {
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(1)).await?;
        let api = cluster.api(0).await?;
        cluster.create_tick_guest(0, VM).await?;
        start(&cluster, &api, 0, VM).await?;
        let kill = || {
            for p in cluster.node(0).processes().iter().filter(|p| p.is_qemu()) {
                let pid = rustix::process::Pid::from_raw(p.pid).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
        };
        kill();
        until("the crash is noticed", Duration::from_secs(2), async || {
            Ok((cluster.guest_row(&api, VM).await?["status"] == "stopped").then_some(()))
        })
        .await?;
        super::super::support::ha_started(&api, VM).await?;
        runs_on(&cluster, &api, VM, BOOT, |_| true).await?;
        kill();
        until("it is down", Duration::from_secs(5), async || {
            Ok((!cluster.node(0).runs_a_guest()).then_some(()))
        })
        .await?;
        runs_on(&cluster, &api, VM, BOOT, |_| true).await.context("restarted by HA")?;
        Ok(())
    });
}

#[test]
fn a_join_with_a_wrong_password_or_fingerprint_says_so_and_changes_nothing() {
    loopback(async |builder| {
        let cluster = builder.nodes(2).start().await?;
        let (member, newcomer) = (cluster.api(0).await?, cluster.api(1).await?);
        let info = member.get("/cluster/config/join").await?;
        let fingerprint = info["nodelist"][0]["pve_fp"].as_str().context("no fingerprint")?.to_owned();
        let hostname = cluster.node(0).addr().to_string();
        let wrong_print = "00:".repeat(31) + "00";
        for (fingerprint, password) in [(&fingerprint, "wrong"), (&wrong_print, cluster.password())] {
            let form =
                [("hostname", hostname.as_str()), ("fingerprint", fingerprint), ("password", password)];
            let joined = match newcomer.post("/cluster/config/join", &form).await {
                Ok(task) => newcomer.wait_task(&task, BOOT).await,
                Err(e) => Err(e),
            };
            let why = format!("{:#}", joined.err().context("the join went through")?);
            ensure!(
                why.contains("password") || why.contains("fingerprint") || why.contains("certificate"),
                "{why}"
            );
        }
        let nodes = member.get("/cluster/config/nodes").await?;
        ensure!(nodes.as_array().is_some_and(|n| n.len() == 1), "{nodes}");
        cluster.join(1).await
    });
}

#[test]
fn what_is_not_there_answers_501() {
    loopback(async |builder| {
        let cluster = builder.nodes(1).start().await?;
        let api = cluster.api(0).await?;
        let e = api.get("/cluster/no/such/thing").await.unwrap_err();
        ensure!(is_refused(&e, 501), "{e:#}");
        ensure!(api.get("/version").await?["version"].as_str().is_some_and(|v| v.starts_with("9.")));
        Ok(())
    });
}
