//! Devices that come to a running guest and go, as its own system sees them, on both kinds of machine.

use super::super::support::{BOOT, cluster, loopback, runs_on, start};
use anyhow::{Context, Result, ensure};
use stead_testbed::api::until;
use stead_testbed::{ApiClient, Cluster};

const VM: u32 = 100;
const DISKS: [&str; 3] = ["scsi1", "virtio5", "virtio9"];
const CARDS: [&str; 3] = ["net1", "net5", "net9"];

/// What the guest's system answers to a line of shell.
pub(super) async fn ask(api: &ApiClient, node: usize, line: &str) -> Result<String> {
    let path = format!("/nodes/n{}/qemu/{VM}/agent", node + 1);
    let words = [("command", "/bin/busybox"), ("command", "sh"), ("command", "-c"), ("command", line)];
    let pid = api.post(&format!("{path}/exec"), &words).await?["pid"].to_string();
    let status = until("the program ends", BOOT, async || {
        let status = api.get(&format!("{path}/exec-status?pid={pid}")).await?;
        Ok((status["exited"] == 1).then_some(status))
    })
    .await?;
    Ok(status["out-data"].as_str().unwrap_or_default().to_owned())
}

/// Waits until the guest has so many network cards and disks with these serial numbers.
async fn sees(api: &ApiClient, node: usize, cards: usize, disks: &[&str]) -> Result<()> {
    // A SCSI disk tells its number by a page of its own, in which it follows four bytes.
    let line = "ls -d /sys/class/net/eth* | wc -l; \
                for f in /sys/block/vd*/serial; do cat $f; echo; done; \
                for f in /sys/block/sd*/device/vpd_pg80; do tail -c +5 $f; echo; done";
    let mut last = String::new();
    let seen = until("the guest sees its devices", BOOT, async || {
        last = ask(api, node, line).await?;
        let mut words = last.split_whitespace();
        let count = words.next().is_some_and(|n| n == cards.to_string());
        let mut serials: Vec<&str> = words.collect();
        serials.sort_unstable();
        Ok((count && serials == disks).then_some(()))
    });
    seen.await.with_context(|| format!("{cards} cards and {disks:?} wanted, it sees {last}"))
}

/// Waits until the guest's system has so many CPUs.
async fn has_cpus(api: &ApiClient, node: usize, number: usize) -> Result<()> {
    until(&format!("the guest has {number} CPUs"), BOOT, async || {
        let seen = ask(api, node, "ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l").await?;
        Ok((seen.trim() == number.to_string()).then_some(()))
    })
    .await
}

/// Waits until the guest's system uses so many MiB. It uses what comes so that it can give it back.
async fn has_memory(api: &ApiClient, node: usize, wanted: std::ops::Range<u64>) -> Result<()> {
    let line = "cd /sys/devices/system/memory; for f in memory*/state; do \
                grep -q offline $f && echo online_movable >$f; done; grep MemTotal /proc/meminfo";
    until(&format!("the guest has {wanted:?} MiB"), BOOT, async || {
        let seen = ask(api, node, line).await?;
        let kib = seen.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
        Ok(wanted.contains(&(kib.context(seen)? >> 10)).then_some(()))
    })
    .await
}

async fn config(api: &ApiClient, node: usize) -> Result<serde_json::Value> {
    api.get(&format!("/nodes/n{}/qemu/{VM}/pending", node + 1)).await
}

fn is_settled(pending: &serde_json::Value) -> bool {
    let rows = pending.as_array().map(Vec::as_slice).unwrap_or_default();
    !rows.iter().any(|row| row.get("pending").is_some() || row.get("delete").is_some())
}

pub(super) async fn moves(cluster: &Cluster, api: &ApiClient, from: usize, to: usize) -> Result<()> {
    let target = format!("n{}", to + 1);
    let form = [("target", target.as_str()), ("online", "1")];
    api.post_and_wait(&format!("/nodes/n{}/qemu/{VM}/migrate", from + 1), &form, BOOT).await?;
    runs_on(cluster, api, VM, BOOT, |n| n == to).await.map(drop)
}

/// Takes a CPU away, which a guest is refused that runs without KVM. How many it has then.
async fn fewer_cpus(api: &ApiClient, node: usize) -> Result<usize> {
    let path = format!("/nodes/n{}/qemu/{VM}/config", node + 1);
    match api.post_and_wait(&path, &[("vcpus", "2")], BOOT).await {
        Ok(_) => has_cpus(api, node, 2).await.map(|()| 2),
        Err(e) => {
            ensure!(format!("{e:#}").contains("it runs without KVM"), "taking a CPU away: {e:#}");
            ensure!(!is_settled(&config(api, node).await?), "it has to wait for the next start");
            api.put(&path, &[("revert", "vcpus")]).await.context("taking it back")?;
            has_cpus(api, node, 3).await.map(|()| 3)
        }
    }
}

fn come_go_and_move(machine: &'static str) {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        cluster.create_agent_guest(0, VM, "plug").await?;
        let path = |node: usize| format!("/nodes/n{}/qemu/{VM}/config", node + 1);
        let options = [
            ("machine", machine),
            ("scsihw", "virtio-scsi-single"),
            ("cores", "3"),
            ("vcpus", "1"),
            ("hotplug", "network,disk,cpu,memory"),
            ("numa", "1"),
            ("memory", "1024"),
        ];
        api.put(&path(0), &options).await?;
        start(&cluster, &api, 0, VM).await?;
        until("the agent answers", BOOT, async || {
            Ok(api.post(&format!("/nodes/n1/qemu/{VM}/agent/ping"), &[]).await.ok())
        })
        .await?;
        sees(&api, 0, 1, &[]).await?;

        let values = DISKS.map(|key| format!("shared:1,iothread=1,serial={key}"));
        let mut form: Vec<(&str, &str)> = DISKS.into_iter().zip(values.iter().map(String::as_str)).collect();
        form.extend(CARDS.map(|key| (key, "virtio")));
        form.extend([("vcpus", "3"), ("memory", "2048")]);
        api.post_and_wait(&path(0), &form, BOOT).await.context("plugging in")?;
        ensure!(is_settled(&config(&api, 0).await?), "pending: {}", config(&api, 0).await?);
        sees(&api, 0, 4, &DISKS).await?;
        has_cpus(&api, 0, 3).await?;
        has_memory(&api, 0, 1536..2048).await?;
        let disk = "$(grep -l virtio9 /sys/block/vd*/serial | cut -d/ -f4)";
        ask(&api, 0, &format!("echo kept >/dev/{disk}; sync")).await?;

        moves(&cluster, &api, 0, 1).await.context("with what was plugged in")?;
        sees(&api, 1, 4, &DISKS).await?;
        ensure!(ask(&api, 1, &format!("head -c 4 /dev/{disk}")).await? == "kept", "it lost what it wrote");

        let gone = DISKS.into_iter().chain(CARDS).collect::<Vec<_>>().join(",");
        let form = [("delete", gone.as_str()), ("memory", "1536")];
        api.post_and_wait(&path(1), &form, BOOT).await.context("unplugging")?;
        sees(&api, 1, 1, &[]).await?;
        has_memory(&api, 1, 1024..1536).await?;
        let cpus = fewer_cpus(&api, 1).await?;
        until("the configuration is without them", BOOT, async || {
            Ok(is_settled(&config(&api, 1).await?).then_some(()))
        })
        .await?;
        let now = api.get(&path(1)).await?;
        ensure!(now["net1"].is_null() && now["unused2"].is_string(), "{now}");
        ensure!(now["memory"] == "1536" || now["memory"] == 1536, "{now}");
        moves(&cluster, &api, 1, 2).await.context("without what was unplugged")?;
        sees(&api, 2, 1, &[]).await?;
        has_cpus(&api, 2, cpus).await?;
        has_memory(&api, 2, 1024..1536).await
    });
}

#[test]
fn devices_come_and_go_on_the_old_machine() {
    come_go_and_move("pc");
}

#[test]
fn devices_come_and_go_on_the_newer_machine() {
    come_go_and_move("q35");
}
