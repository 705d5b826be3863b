//! The loss of the majority: `expected 1` on the node that is left, with the others really off and really on, and both back.

use super::super::support::{
    BOOT, RECOVERY, about, cluster, ha_settled, ha_started, loopback, namespaces, node_is, runs_on, start,
    warnings,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use stead_testbed::api::until;
use stead_testbed::cluster::program;
use stead_testbed::guest::tick;
use stead_testbed::node::Node;
use stead_testbed::{ApiClient, Cluster};

/// Under HA on the node that is left.
const OWN: u32 = 100;
/// Says that the other two are off.
const ALL_OFF: [&str; 7] = ["cluster", "expected", "1", "--off", "n2", "--off", "n3"];
/// Not under HA, there.
const UNGUARDED: u32 = 101;
/// Under HA on another node.
const OTHER: u32 = 102;

/// `stead` as root on a node, which must do it.
pub(super) async fn done(node: &Node, words: &[&str]) -> Result<String> {
    stead(node, words).await?.map_err(|e| anyhow::anyhow!("{words:?}: {e}"))
}

/// `stead` as root on a node: what it says, or why it refuses.
pub(super) async fn stead(node: &Node, words: &[&str]) -> Result<std::result::Result<String, String>> {
    let mut command = tokio::process::Command::new(program("stead")?);
    command.arg("--dir").arg(node.dir()).args(words).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let out = tokio::time::timeout(BOOT, command.output()).await.context("stead hangs")??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stderr)) })
}

pub(super) async fn refused(node: &Node, words: &[&str], why: &str) -> Result<()> {
    match stead(node, words).await? {
        Ok(said) => bail!("{words:?} was done: {said}"),
        Err(e) => {
            ensure!(e.contains(why), "{words:?}: {e}");
            Ok(())
        }
    }
}

/// Waits until a node stands so, in its own view.
pub(super) async fn stands(
    cluster: &Cluster,
    node: usize,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> Result<ApiClient> {
    until(&format!("node {node} is {what}"), RECOVERY, async || {
        let Ok(api) = cluster.api(node).await else { return Ok(None) };
        Ok(about(&api).await.ok().filter(|row| is(row)).map(|_| api))
    })
    .await
}

pub(super) fn is_second(row: &Value) -> bool {
    row["quorate"] == 1 && row["epoch"].as_str().is_some_and(|e| e.starts_with("2-"))
}

fn warned(row: &Value, what: &str) -> bool {
    warnings(row).any(|w| w.contains(what))
}

/// Waits until a VM's counter has grown by some from here.
async fn ticks_on(cluster: &Cluster, vmid: u32) -> Result<u32> {
    let disk = cluster.disk_path(vmid, 0);
    let before = tick::read_cell(&disk)?.map_or(0, |c| c.count);
    let what = format!("VM {vmid} ticks on");
    let cell = until(&what, BOOT, async || Ok(tick::read_cell(&disk)?.filter(|c| c.count > before + 3)));
    let cell = cell.await?;
    ensure!(cell.conflicts == 0, "VM {vmid} ran twice: {cell:?}");
    Ok(cell.count)
}

/// The process of a VM on the node that is left.
fn pid(cluster: &Cluster, vmid: u32) -> Result<i32> {
    let disk = format!("vm-{vmid}-disk");
    let all = cluster.node(0).processes();
    let of_it = all.iter().find(|p| p.is_qemu() && p.command.contains(&disk));
    Ok(of_it.with_context(|| format!("VM {vmid} has no process"))?.pid)
}

async fn guarded(cluster: &Cluster, api: &ApiClient, node: usize, vmid: u32) -> Result<()> {
    cluster.create_tick_guest(node, vmid).await?;
    start(cluster, api, node, vmid).await?;
    ha_started(api, vmid).await?;
    ha_settled(api, vmid).await
}

pub(super) async fn all_vote(cluster: &Cluster, api: &ApiClient) -> Result<()> {
    for n in 0..3 {
        node_is(cluster, api, n, true).await?;
    }
    until("all three vote", RECOVERY, async || {
        let rows = api.get("/cluster/status").await?;
        let votes = rows.as_array().into_iter().flatten().filter(|r| r["votes"] == 1).count();
        Ok((votes == 3).then_some(()))
    })
    .await
}

#[test]
fn a_survivor_goes_on_alone_and_both_others_come_back() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        guarded(&cluster, &api, 0, OWN).await?;
        cluster.create_tick_guest(0, UNGUARDED).await?;
        start(&cluster, &api, 0, UNGUARDED).await?;
        guarded(&cluster, &api, 1, OTHER).await?;
        refused(cluster.node(0), &ALL_OFF, "a majority of the cluster").await?;
        // One after the other; the second one runs a guest that HA guards.
        cluster.node(2).power_off()?;
        node_is(&cluster, &api, 2, false).await?;
        cluster.node(1).power_off()?;
        stands(&cluster, 0, "without a majority", |row| row["quorate"] == 0).await?;
        refused(cluster.node(0), &["cluster", "expected", "1", "--off", "n2"], "n3").await?;
        refused(
            cluster.node(0),
            &["cluster", "expected", "1", "--off", "n2", "--yes"],
            "nobody has said so of n3",
        )
        .await?;
        let afar =
            api.post("/cluster/config/expected", &[("votes", "1"), ("off", "n2"), ("off", "n3")]).await;
        let Err(why) = afar else { bail!("it was taken from afar") };
        ensure!(why.to_string().contains("only on the node itself"), "{why}");
        let processes = (pid(&cluster, OWN)?, pid(&cluster, UNGUARDED)?);
        done(cluster.node(0), &ALL_OFF).await?;
        let api = stands(&cluster, 0, "alone in epoch 2", is_second).await?;

        // Its own guest starts cold, what was never guarded has run on, and no other node's guest is touched.
        runs_on(&cluster, &api, OWN, RECOVERY, |n| n == 0).await?;
        ticks_on(&cluster, OWN).await?;
        runs_on(&cluster, &api, UNGUARDED, BOOT, |n| n == 0).await?;
        ticks_on(&cluster, UNGUARDED).await?;
        let now = (pid(&cluster, OWN)?, pid(&cluster, UNGUARDED)?);
        ensure!(now.0 != processes.0 && now.1 == processes.1, "{processes:?} -> {now:?}");
        until("HA says what it waits for", RECOVERY, async || {
            let rows = api.get("/cluster/ha/status/current").await?;
            let row =
                rows.as_array().and_then(|r| r.iter().find(|r| r["sid"] == format!("vm:{OTHER}"))).cloned();
            Ok(row.filter(|r| r.to_string().contains("confirm-off")).map(drop))
        })
        .await?;
        let row = cluster.guest_row(&api, OTHER).await?;
        ensure!(row["node"] == cluster.node(1).name(), "it was recovered without a word: {row}");

        // Both come back at once: together they were the old majority.
        cluster.node(1).power_on()?;
        cluster.node(2).power_on()?;
        all_vote(&cluster, &api).await?;
        runs_on(&cluster, &api, OTHER, RECOVERY, |n| n == 1).await?;
        for n in 1..3 {
            stands(&cluster, n, "in epoch 2", is_second).await?;
            ensure!(cluster.node(n).dir().join("conf.epoch-1/conf.redb").is_file(), "its old store is gone");
        }
        until("what they had alone is told", RECOVERY, async || {
            let row = about(&api).await?;
            let both = (1..3).all(|n| warned(&row, &format!("node '{}' came back", cluster.node(n).name())));
            Ok(both.then_some(()))
        })
        .await?;
        done(cluster.node(0), &["cluster", "forget-aside", cluster.node(1).name()]).await?;
        ensure!(!warned(&about(&api).await?, "node 'n2' came back"), "it is warned of what was looked at");
        for vmid in [OWN, UNGUARDED, OTHER] {
            ticks_on(&cluster, vmid).await?;
        }
        // The new majority is one: any node may be lost.
        cluster.node(0).power_off()?;
        let api = cluster.api(1).await?;
        runs_on(&cluster, &api, OWN, RECOVERY, |n| n != 0).await?;
        ticks_on(&cluster, OWN).await.map(drop)
    });
}

#[test]
fn a_survivor_whose_others_were_on_is_refused_by_them_until_it_gives_way() {
    namespaces(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(1).await?;
        guarded(&cluster, &api, 1, OTHER).await?;
        let network = cluster.network()?;
        network.partition(1, 2)?;
        network.partition(1, 3)?;
        stands(&cluster, 0, "without a majority", |row| row["quorate"] == 0).await?;
        done(cluster.node(0), &ALL_OFF).await?;
        stands(&cluster, 0, "alone in epoch 2", is_second).await?;
        api.put("/cluster/options", &[("description", "the majority goes on")]).await?;

        network.heal()?;
        // Both sides say so, and none takes anything of the other. The survivor lets go: the word was wrong.
        for (n, epoch, quorate) in [(0, "1", 0), (1, "2-", 1)] {
            let seen = format!("in cluster epoch {epoch}");
            stands(&cluster, n, "warning of the other epoch", |row| {
                row["quorate"] == quorate && warned(row, &seen)
            })
            .await?;
        }
        let row = about(&cluster.api(0).await?).await?;
        ensure!(warned(&row, "the word that it was off was wrong"), "{row}");
        let row = cluster.guest_row(&api, OTHER).await?;
        ensure!(row["node"] == cluster.node(1).name() && row["status"] == "running", "{row}");
        ticks_on(&cluster, OTHER).await?;

        // A daemon of the majority that starts anew does not change sides by itself.
        cluster.node(2).restart_daemon()?;
        stands(&cluster, 2, "in epoch 1 still", |row| row["quorate"] == 1 && row["epoch"] == "1").await?;
        done(cluster.node(0), &["cluster", "rejoin", "--yes"]).await?;
        all_vote(&cluster, &api).await?;
        let first =
            stands(&cluster, 0, "in epoch 1 again", |row| row["quorate"] == 1 && row["epoch"] == "1").await?;
        ensure!(first.get("/cluster/options").await?["description"] == "the majority goes on");
        until("what the survivor had alone can be read", RECOVERY, async || {
            let asides = done(cluster.node(1), &["cluster", "asides"]).await?;
            Ok(asides.contains("begins on 'n1': root@pam says that the others are off").then_some(()))
        })
        .await?;
        ticks_on(&cluster, OTHER).await.map(drop)
    });
}

/// One node goes on alone in epoch 2, with a guest that HA guards, and is switched off too.
async fn alone_and_off(cluster: &Cluster) -> Result<()> {
    let api = cluster.api(0).await?;
    guarded(cluster, &api, 0, OWN).await?;
    cluster.node(2).power_off()?;
    cluster.node(1).power_off()?;
    stands(cluster, 0, "without a majority", |row| row["quorate"] == 0).await?;
    done(cluster.node(0), &ALL_OFF).await?;
    let api = stands(cluster, 0, "alone in epoch 2", is_second).await?;
    runs_on(cluster, &api, OWN, RECOVERY, |n| n == 0).await?;
    ticks_on(cluster, OWN).await?;
    cluster.node(0).power_off()
}

#[test]
fn the_old_majority_waits_for_a_survivor_that_is_switched_on_with_it() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        alone_and_off(&cluster).await?;
        // The one whose word counts is the last.
        for n in [2, 1, 0] {
            cluster.node(n).power_on()?;
        }
        let api = stands(&cluster, 0, "in epoch 2", is_second).await?;
        all_vote(&cluster, &api).await?;
        for n in 1..3 {
            stands(&cluster, n, "in epoch 2", is_second).await?;
        }
        runs_on(&cluster, &api, OWN, RECOVERY, |_| true).await?;
        ticks_on(&cluster, OWN).await.map(drop)
    });
}

#[test]
fn a_survivor_that_boots_beside_the_old_majority_starts_nothing() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        alone_and_off(&cluster).await?;
        cluster.node(1).power_on()?;
        cluster.node(2).power_on()?;
        // They know nothing of another epoch, and recover what ran there.
        let api = stands(&cluster, 1, "in a majority", |row| row["quorate"] == 1).await?;
        let at = runs_on(&cluster, &api, OWN, RECOVERY, |n| n != 0).await?;
        cluster.node(0).power_on()?;
        let lets_go = |row: &Value| row["quorate"] == 0 && warned(row, "the word that it was off was wrong");
        stands(&cluster, 0, "without office", lets_go).await?;
        for _ in 0..3 {
            ticks_on(&cluster, OWN).await?;
            ensure!(!cluster.node(0).runs_a_guest(), "it runs beside the other copy");
        }
        refused(cluster.node(0), &ALL_OFF, "n2 (its daemon), n3 (its daemon) answer").await?;
        done(cluster.node(0), &["cluster", "rejoin", "--yes"]).await?;
        all_vote(&cluster, &api).await?;
        runs_on(&cluster, &cluster.api(0).await?, OWN, BOOT, |n| n == at).await?;
        ticks_on(&cluster, OWN).await.map(drop)
    });
}

#[test]
fn a_node_that_was_away_for_long_or_comes_back_as_an_older_copy_is_brought_up_to_date() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        guarded(&cluster, &api, 2, OWN).await?;
        cluster.create_tick_guest(2, UNGUARDED).await?;
        cluster.node(2).power_off()?;
        let to = runs_on(&cluster, &api, OWN, RECOVERY, |n| n != 2).await?;
        let older = cluster.dir().join("older");
        copy(&cluster.node(2).dir().join("conf"), &older)?;
        // More than is kept of the log, so that what it misses comes as a whole.
        let wide = "x".repeat(5_000);
        for n in 0..1_200 {
            api.put("/cluster/options", &[("description", &format!("{n} {wide}"))]).await?;
        }
        cluster.node(2).power_on()?;
        all_vote(&cluster, &api).await?;
        ensure!(!cluster.node(2).runs_a_guest(), "it runs what was recovered elsewhere");
        runs_on(&cluster, &cluster.api(2).await?, OWN, BOOT, |n| n == to).await?;

        // As a folder that was restored from a backup.
        cluster.node(2).power_off()?;
        node_is(&cluster, &api, 2, false).await?;
        let conf = cluster.node(2).dir().join("conf");
        std::fs::remove_dir_all(&conf)?;
        copy(&older, &conf)?;
        cluster.node(2).power_on()?;
        all_vote(&cluster, &api).await?;
        ensure!(cluster.node(2).dir().join("conf.epoch-1").is_dir(), "it was not noticed");
        let api = cluster.api(2).await?;
        runs_on(&cluster, &api, OWN, BOOT, |n| n == to).await?;
        ensure!(!cluster.node(2).runs_a_guest(), "it runs what was recovered elsewhere");
        // It takes part: with it, the others can lose one.
        cluster.node(1 - to).power_off()?;
        let without = |row: &Value| row["quorate"] == 1 && row["leader"] != Value::Null;
        let api = stands(&cluster, 2, "in a majority", without).await?;
        node_is(&cluster, &api, 1 - to, false).await?;
        api.put("/cluster/options", &[("description", "by two of three")]).await?;
        ticks_on(&cluster, OWN).await.map(drop)
    });
}

/// Copies the files of a folder.
fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
