//! Memory that the target of a move fetches, of a VM that writes to it faster than it is sent.

use super::super::support::{
    BOOT, RECOVERY, cluster, ha_settled, ha_started, loopback, one_writer, runs_on, start,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::Duration;
use stead_testbed::api::{ApiClient, escape, until};
use stead_testbed::cluster::Cluster;
use stead_testbed::poll::{Poller, Sample, ask, write_memory};

const VM: u32 = 100;
const WRITTEN_MIB: u32 = 32;

/// How a move goes: after how many rounds the rest is fetched, and KiB a second, less than the VM writes on any machine.
struct How {
    rounds: u8,
    rate: &'static str,
}

const QUICKLY: How = How { rounds: 2, rate: "8192" };
/// So that it is fetched for a while.
const SLOWLY: How = How { rounds: 1, rate: "4096" };

struct Story {
    cluster: Cluster,
    api: ApiClient,
    poller: Poller,
    first: Sample,
    how: How,
}

impl Story {
    /// A VM on n1 that writes, and is not sent by rounds alone.
    async fn begin(cluster: Cluster, how: How) -> Result<Self> {
        let api = cluster.api(1).await?;
        let option = format!("secure,postcopy={}", how.rounds);
        api.put("/cluster/options", &[("migration", &option)]).await?;
        cluster.create_http_guest(0, VM, "writes").await?;
        start(&cluster, &api, 0, VM).await?;
        let places = cluster.guest_places(VM);
        let poller = Poller::start(places.clone());
        let first = poller.wait(BOOT, |_| true).await.context("the first answer")?;
        write_memory(places[0], WRITTEN_MIB, 200).await?;
        until("it writes", BOOT, async || {
            let now = ask(places[0], Duration::from_secs(1)).await?;
            Ok((now.written_mib > u64::from(2 * WRITTEN_MIB)).then_some(()))
        })
        .await?;
        Ok(Self { cluster, api, poller, first, how })
    }

    async fn migrate(&self) -> Result<Value> {
        let form = [("target", "n2"), ("online", "1"), ("bwlimit", self.how.rate)];
        self.api.post(&format!("/nodes/n1/qemu/{VM}/migrate"), &form).await
    }

    /// A move whose target runs the VM, and fetches.
    async fn fetching(&self) -> Result<()> {
        let upid = self.migrate().await?;
        let log = format!("/nodes/n1/tasks/{}/log", escape(upid.as_str().unwrap_or_default()));
        until("the target fetches", BOOT, async || {
            let log = self.api.get(&log).await?.to_string();
            ensure!(!log.contains("aborted"), "{log}");
            Ok(log.contains("runs on node 'n2'").then_some(()))
        })
        .await
    }

    /// It goes on at n2, where it has come without a boot, and n1 has nothing of it.
    async fn came(&self) -> Result<()> {
        runs_on(&self.cluster, &self.api, VM, BOOT, |n| n == 1).await?;
        let there = self.poller.wait(BOOT, |s| s.place == 1).await.context("an answer from n2")?;
        until("n1 has nothing of it", RECOVERY, async || {
            Ok((!self.cluster.node(0).runs_a_guest()).then_some(()))
        })
        .await?;
        let later = self.poller.wait(BOOT, |s| s.answer.counter > there.answer.counter + 10).await?;
        ensure!(later.place == 1 && later.answer.conflicts == 0, "{later:?}");
        ensure!(later.answer.boot_id == self.first.answer.boot_id, "booted anew instead of migrated");
        one_writer(&self.cluster, VM)?;
        ensure!(self.cluster.disk_log(VM)?.boots.len() == 1, "one boot over all");
        Ok(())
    }
}

#[test]
fn a_vm_that_writes_faster_than_it_is_sent_goes_over() {
    loopback(async |builder| {
        let story = Story::begin(cluster(builder).await?, QUICKLY).await?;
        let upid = story.migrate().await?;
        story.api.wait_task(&upid, BOOT).await?;
        let log = format!("/nodes/n1/tasks/{}/log", escape(upid.as_str().unwrap_or_default()));
        let log = story.api.get(&log).await?.to_string();
        ensure!(log.contains("to fetch what is left"), "{log}");
        story.came().await
    });
}

/// The stream goes through both daemons: whichever comes back, the two are joined anew.
#[test]
fn what_is_fetched_outlives_the_daemons() {
    loopback(async |builder| {
        let story = Story::begin(cluster(builder).await?, SLOWLY).await?;
        story.fetching().await?;
        for n in [0, 1] {
            story.cluster.node(n).kill_daemon()?;
            story.cluster.node(n).start_daemon()?;
            story.cluster.wait_up(story.cluster.node(n)).await?;
        }
        story.came().await
    });
}

/// Half of its memory is lost with the source: it is as after a crash, and its disk is whole.
#[test]
fn what_can_t_be_fetched_any_more_is_a_crash() {
    loopback(async |builder| {
        let story = Story::begin(cluster(builder).await?, SLOWLY).await?;
        story.fetching().await?;
        story.cluster.node(0).power_off()?;
        until("what is torn is ended", RECOVERY, async || {
            let row = story.cluster.guest_row(&story.api, VM).await?;
            Ok((row["status"] == "stopped" && !story.cluster.node(1).runs_a_guest()).then_some(()))
        })
        .await?;
        start(&story.cluster, &story.api, 1, VM).await?;
        let again = story.poller.wait(BOOT, |s| s.answer.boot_id != story.first.answer.boot_id).await?;
        ensure!(again.place == 1 && again.answer.conflicts == 0, "{again:?}");
        one_writer(&story.cluster, VM)
    });
}

/// The half that it has fetched is lost with the node that runs it, and the other half is of no use: HA starts it from its disk, once.
#[test]
fn what_was_torn_is_started_elsewhere_by_ha() {
    loopback(async |builder| {
        let story = Story::begin(cluster(builder).await?, SLOWLY).await?;
        let cluster = &story.cluster;
        let api = cluster.api(0).await?;
        // HA moves it as its own options say.
        api.put(&format!("/nodes/n1/qemu/{VM}/config"), &[("migrate_speed", "4")]).await?;
        ha_started(&api, VM).await?;
        ha_settled(&api, VM).await?;
        story.migrate().await?;
        story.poller.wait(BOOT, |s| s.place == 1).await.context("an answer from n2")?;
        ensure!(cluster.node(0).runs_a_guest(), "all was fetched before anything could befall it");
        cluster.node(1).power_off()?;
        let again = story.poller.wait(BOOT, |s| s.answer.boot_id != story.first.answer.boot_id).await?;
        ensure!(again.place != 1 && again.answer.conflicts == 0, "{again:?}");
        runs_on(cluster, &api, VM, BOOT, |n| n == again.place).await?;
        until("it is there once", RECOVERY, async || {
            let others = [0, 2].into_iter().filter(|n| *n != again.place);
            Ok((!others.into_iter().any(|n| cluster.node(n).runs_a_guest())).then_some(()))
        })
        .await?;
        one_writer(cluster, VM)?;
        ensure!(cluster.disk_log(VM)?.boots.len() == 2, "one boot more");
        Ok(())
    });
}
