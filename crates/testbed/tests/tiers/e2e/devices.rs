//! Fence devices: nodes that are cut off lose their power, and their guests run elsewhere without the wait.

use super::super::support::{
    BOOT, RECOVERY, cluster, ha_settled, ha_started, namespaces, node_is, runs_on, start,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};
use stead_testbed::api::until;
use stead_testbed::bmc::{self, Bmc, PASSWORD};
use stead_testbed::guest::tick;
use stead_testbed::{ApiClient, Cluster, skip};

const VM: u32 = 100;
const DEVICES: &str = "/cluster/ha/fence/devices";
/// L + D + W of the default profile, with drift: what a loss takes without devices.
const WAIT_MS: u64 = 7070;

/// Three nodes with a guest under HA that does not run on the leader's.
struct Bed {
    cluster: Cluster,
}

impl Bed {
    /// A client of a node that is not `but`.
    async fn api(&self, but: usize) -> Result<ApiClient> {
        self.cluster.api(usize::from(but == 0)).await
    }

    /// Cuts the node off that has the guest. Gives that node, the one where it runs then, and the time.
    async fn cut(&self, at: usize) -> Result<(usize, Duration)> {
        let api = self.api(at).await?;
        let begun = Instant::now();
        self.link(at, false)?;
        let to = runs_on(&self.cluster, &api, VM, RECOVERY, |n| n != at).await?;
        let took = begun.elapsed();
        ha_settled(&api, VM).await?;
        let cell = tick::read_cell(&self.cluster.disk_path(VM, 0))?.context("the guest has not ticked")?;
        ensure!(cell.conflicts == 0, "VM {VM} ran twice: {cell:?}");
        Ok((to, took))
    }

    fn link(&self, node: usize, up: bool) -> Result<()> {
        self.cluster.network()?.link(u8::try_from(node)? + 1, up)
    }

    /// What was said of the node's loss, by the transaction that recorded it.
    async fn loss(&self, at: usize) -> Result<String> {
        let name = self.cluster.node(at).name();
        let history = self.api(at).await?.get("/cluster/history").await?;
        let notes = history.as_array().context("the history is no list")?.iter();
        let mut notes = notes.filter_map(|row| row["note"].as_str());
        let lost = notes.find(|note| note.starts_with(&format!("node '{name}' lost")));
        Ok(lost
            .with_context(|| format!("the history does not say that {name} was lost: {history}"))?
            .to_owned())
    }

    /// HA's status of a node, for people.
    async fn fenced(&self, at: usize) -> Result<Option<String>> {
        let rows = self.api(at).await?.get("/cluster/ha/status/current").await?;
        let id = format!("lrm:{}", self.cluster.node(at).name());
        let row = rows.as_array().into_iter().flatten().find(|r| r["id"] == *id).cloned();
        Ok(row.and_then(|r| r["fenced"].as_str().map(str::to_owned)))
    }

    /// The node is plugged in again, and takes part.
    async fn mend(&self, at: usize) -> Result<()> {
        self.link(at, true)?;
        node_is(&self.cluster, &self.api(at).await?, at, true).await
    }
}

/// Milliseconds without a lease, as the transaction says.
fn silent(note: &str) -> Result<u64> {
    let words: Vec<&str> = note.split(' ').collect();
    let at = words.iter().rposition(|w| *w == "ms" || *w == "ms,").context("no time stands there")?;
    let number = if note.ends_with("without a lease") {
        words.iter().position(|w| *w == "without").and_then(|w| words.get(w - 2))
    } else {
        words.get(at - 1)
    };
    Ok(number.context("no time stands there")?.parse()?)
}

async fn with_devices(cluster: &Cluster, api: &ApiClient) -> Result<Vec<Option<Bmc>>> {
    let mut all = vec![];
    for n in 0..3 {
        let name = cluster.node(n).name();
        let bmc = Bmc::start(cluster.dir(), name, "10.86.0.1".parse()?)?;
        let (device, connect) = (format!("bmc-{name}"), format!("node={name}"));
        let secret = format!("password=\"{PASSWORD}\"");
        let form = [
            ("device", device.as_str()),
            ("agent", "fence_ipmilan"),
            ("options", &bmc.options()),
            ("connect", &connect),
            ("secrets", &secret),
        ];
        api.post(DEVICES, &form).await?;
        let said = api.get(&format!("/cluster/ha/fence/nodes/{name}")).await?;
        ensure!(said[0]["power"] == "on", "{said}");
        all.push(Some(bmc));
    }
    Ok(all)
}

/// Nothing of the passwords is anywhere where it could be read.
async fn sealed(cluster: &Cluster, api: &ApiClient) -> Result<()> {
    let shown = api.get(DEVICES).await?.to_string() + &api.get("/cluster/history").await?.to_string();
    ensure!(shown.contains("bmc-n1") && !shown.contains(PASSWORD), "a password is shown: {shown}");
    for n in 0..3 {
        let log = std::fs::read_to_string(cluster.node(n).log())?;
        ensure!(!log.contains(PASSWORD), "a password is in the log of node {n}");
    }
    Ok(())
}

async fn place(bed: &Bed) -> Result<usize> {
    let api = bed.cluster.api(0).await?;
    runs_on(&bed.cluster, &api, VM, BOOT, |_| true).await
}

#[test]
fn a_confirmed_power_off_takes_the_place_of_the_wait() {
    if let Some((program, package)) = bmc::missing() {
        skip!("{program} is missing (package {package})");
    }
    namespaces(async |builder| {
        let bed = Bed { cluster: cluster(builder).await? };
        let api = bed.cluster.api(0).await?;
        let leader = bed.cluster.leader(&api).await?;
        let first = (leader + 1) % 3;
        bed.cluster.create_tick_guest(first, VM).await?;
        start(&bed.cluster, &api, first, VM).await?;
        ha_started(&api, VM).await?;
        ha_settled(&api, VM).await?;

        let (_, without) = bed.cut(first).await?;
        let note = bed.loss(first).await?;
        ensure!(silent(&note)? >= WAIT_MS && !note.contains("powered off"), "{note}");
        ensure!(bed.cluster.node(first).is_running(), "it was cut off, no more");
        bed.mend(first).await?;

        let mut bmcs = with_devices(&bed.cluster, &api).await?;
        dead_device(&bed, &mut bmcs).await?;
        let at = place(&bed).await?;
        let (_, with) = bed.cut(at).await?;
        let note = bed.loss(at).await?;
        println!("power cut off: {without:.2?} without a fence device, {with:.2?} with one ({note})");
        ensure!(note.contains("powered off by bmc-") && silent(&note)? < WAIT_MS, "{note}");
        let said = bed.fenced(at).await?.context("HA's status says nothing of the power-off")?;
        ensure!(said.contains("powered off by bmc-"), "{said}");
        ensure!(
            !bed.cluster.node(at).is_running() && !bed.cluster.node(at).runs_a_guest(),
            "its power is on"
        );
        // What was taken is given back.
        let device = bmcs[at].as_ref().context("its device was ended before")?;
        until("the node is turned on", BOOT, async || Ok(device.is_on()?.then_some(()))).await?;
        bed.cluster.node(at).power_on()?;
        bed.mend(at).await?;

        sealed(&bed.cluster, &api).await
    });
}

/// The device has gone with the power of its node: the wait is what it is without one, and HA's status says why.
async fn dead_device(bed: &Bed, bmcs: &mut [Option<Bmc>]) -> Result<()> {
    let at = place(bed).await?;
    drop(bmcs[at].take());
    let (_, took) = bed.cut(at).await?;
    let note = bed.loss(at).await?;
    println!("power cut off, its device dead: {took:.2?} ({note})");
    ensure!(silent(&note)? >= WAIT_MS && !note.contains("powered off"), "{note}");
    let said = until("the failure is told", BOOT, async || {
        Ok(bed.fenced(at).await?.filter(|said| said.contains("not powered off")))
    });
    let said = said.await?;
    ensure!(said.contains("bmc-n") && said.contains("failed"), "{said}");
    bed.mend(at).await?;
    let rows: Value = bed.api(at).await?.get(DEVICES).await?;
    ensure!(rows.as_array().is_some_and(|r| r.len() == 3), "{rows}");
    Ok(())
}
