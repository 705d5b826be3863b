//! Machines with the Debian package: what their service manager does, guests live through or come to rest before.

use super::super::support::{
    BOOT, RECOVERY, cluster, ha_settled, ha_started, machines, one_writer, runs_on, start,
};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use stead_testbed::api::until;
use stead_testbed::guest::tick::{Cell, read_cell};
use stead_testbed::machine::{self, Debian};
use stead_testbed::node::Node;
use stead_testbed::poll::Poller;
use stead_testbed::procs::Process;
use stead_testbed::{ApiClient, Cluster, netns, skip};

/// Under HA: it only counts.
const MOVES: u32 = 200;
/// Not under HA: it hears the power button.
const STOPS: u32 = 100;
/// On the node that starts anew; it hears nothing.
const TICKS: u32 = 201;
/// No second may be lost, on a machine that is busy.
const UNNOTICED: Duration = Duration::from_millis(1000);
/// How often it is looked whether a guest has counted; it does five times a second.
const LOOK: Duration = Duration::from_millis(20);

/// The guests' processes, and those that guard them.
fn kept(node: &Node) -> BTreeSet<i32> {
    let kept = |p: &Process| p.is_qemu() || p.is_fence();
    node.processes().iter().filter(|p| kept(p)).map(|p| p.pid).collect()
}

/// What a unit has said in all boots.
async fn said(node: &Node, unit: &str) -> Result<String> {
    node.shell(&format!("journalctl --output=cat --unit={unit}")).await
}

fn cell(cluster: &Cluster, vmid: u32) -> Result<Cell> {
    read_cell(&cluster.disk_path(vmid, 0))?.with_context(|| format!("VM {vmid} has not counted yet"))
}

/// Does the work; how long a counting guest has paused meanwhile, at most. It is the same boot of it, and the only one.
async fn counting(cluster: &Cluster, vmid: u32, work: impl Future<Output = Result<()>>) -> Result<Duration> {
    let mut work = std::pin::pin!(work);
    let mut look = tokio::time::interval(LOOK);
    let (first, mut longest, mut done) = (cell(cluster, vmid)?, Duration::ZERO, false);
    let (mut last, mut counted) = (first, Instant::now());
    loop {
        tokio::select! {
            ended = &mut work, if !done => {
                ended?;
                done = true;
            }
            _ = look.tick() => {
                let now = cell(cluster, vmid)?;
                ensure!(now.id == first.id && now.conflicts == 0, "VM {vmid}: {first:?} has become {now:?}");
                ensure!(counted.elapsed() < BOOT, "VM {vmid} counts no more: {now:?}");
                if now.count != last.count {
                    longest = longest.max(counted.elapsed());
                    (last, counted) = (now, Instant::now());
                    if done {
                        return Ok(longest);
                    }
                }
            }
        }
    }
}

/// The daemon is started anew by `script`: guests don't notice.
async fn unnoticed(cluster: &Cluster, api: &ApiClient, stops: &Poller, script: &str) -> Result<()> {
    let node = cluster.node(1);
    let before = kept(node);
    ensure!(before.len() == 3, "two guests and a fence process, not {before:?}");
    let daemon = node.shell("systemctl show --property=MainPID steadd").await?;
    stops.take_counts();
    let begin = Instant::now();
    let work = async {
        node.shell(script).await?;
        // The guard is confirmed by the new daemon.
        ha_settled(api, MOVES).await?;
        let done = stops.now();
        stops.wait(BOOT, |s| s.at > done).await.map(drop)
    };
    let paused = counting(cluster, MOVES, work).await?;
    let gap = stops.take_counts().longest_gap;
    println!("'{script}': done in {:.2?}, guests paused for {paused:.0?} and {gap:.0?}", begin.elapsed());
    ensure!(paused < UNNOTICED && gap < UNNOTICED, "guests paused for {paused:?} and {gap:?}");
    ensure!(
        node.shell("systemctl show --property=MainPID steadd").await? != daemon,
        "the daemon is the same"
    );
    ensure!(kept(node) == before, "{before:?} have become {:?}", kept(node));
    // Programs that it asks what they can do end at once.
    until("nothing but the daemon is in its unit", BOOT, async || {
        let unit = node.shell("cat /sys/fs/cgroup/system.slice/steadd.service/cgroup.procs").await?;
        Ok((unit.lines().count() == 1).then_some(()))
    })
    .await?;
    ensure!(node.resets() == 0, "it was reset");
    Ok(())
}

/// The host goes down by its own service manager: what is under HA moves, the rest is shut down, then all units stop.
async fn goes_down(cluster: &Cluster, api: &ApiClient) -> Result<()> {
    let node = cluster.node(1);
    let begin = Instant::now();
    let work = async {
        node.shell("systemctl poweroff").await?;
        node.wait_down(RECOVERY).await?;
        println!("poweroff with two guests: {:.2?}", begin.elapsed());
        runs_on(cluster, api, MOVES, BOOT, |n| n != 1).await.map(drop)
    };
    let paused = counting(cluster, MOVES, work).await?;
    println!("moved meanwhile, paused for {paused:.0?}");
    ensure!(node.resets() == 0 && node.orders() == 0, "its switch was used");
    let row = cluster.guest_row(api, STOPS).await?;
    ensure!(row["status"] != "running" && row["node"] == "n2", "{row}");
    one_writer(cluster, STOPS)
}

/// It comes back as a member, with what was moved and what starts with it.
async fn comes_back(cluster: &Cluster, api: &ApiClient) -> Result<()> {
    let node = cluster.node(1);
    node.power_on()?;
    node.wait_booted().await?;
    let (rest, daemon) = (said(node, "stead-guests").await?, said(node, "steadd").await?);
    let fence = said(node, "stead-fenced").await?;
    ensure!(rest.contains("the host may go"), "{rest}");
    let clean = format!("guest {STOPS} ");
    ensure!(daemon.lines().any(|l| l.contains(&clean) && l.ends_with("has shut down")), "{daemon}");
    ensure!(fence.contains("no guest is guarded: ending"), "{fence}");
    runs_on(cluster, api, STOPS, RECOVERY, |n| n == 1).await?;
    runs_on(cluster, api, MOVES, RECOVERY, |n| n == 1).await?;
    ensure!(cell(cluster, MOVES)?.conflicts == 0, "VM {MOVES} ran twice");
    one_writer(cluster, STOPS)
}

/// A node that starts anew is a member again, and starts its guests, with nobody's help.
async fn reboots(cluster: &Cluster, api: &ApiClient) -> Result<()> {
    let node = cluster.node(2);
    cluster.create_tick_guest(2, TICKS).await?;
    // It hears no power button.
    let options = [("startup", "down=1"), ("onboot", "1")];
    api.put(&format!("/nodes/n3/qemu/{TICKS}/config"), &options).await?;
    start(cluster, api, 2, TICKS).await?;
    let boot = async || node.shell("cat /proc/sys/kernel/random/boot_id").await;
    let (before, guest) = (boot().await?, kept(node));
    let begin = Instant::now();
    node.shell("systemctl reboot").await?;
    until("n3 boots", RECOVERY, async || Ok(boot().await.ok().filter(|b| *b != before))).await?;
    node.wait_booted().await?;
    runs_on(cluster, api, TICKS, RECOVERY, |n| n == 2).await?;
    println!("reboot to the guest running again: {:.2?}", begin.elapsed());
    ensure!(kept(node).is_disjoint(&guest) && node.resets() == 0, "it was reset, or has not gone");
    Ok(())
}

/// A fence process that guards nothing is replaced with its program. The package stays as long as guests run, and leaves
/// nothing running.
async fn removed(cluster: &Cluster, api: &ApiClient) -> Result<()> {
    let node = cluster.node(2);
    let old = kept(node);
    node.shell("dpkg --install /srv/stead.deb").await?;
    let before = kept(node);
    ensure!(before.len() == 2 && before.intersection(&old).count() == 1, "{old:?} have become {before:?}");
    let refused = node.shell("dpkg --purge stead").await.err().context("it was removed under a guest")?;
    ensure!(format!("{refused:#}").contains(&format!("guests run here ({TICKS} )")), "{refused:#}");
    ensure!(kept(node) == before && !before.is_empty(), "{before:?} have become {:?}", kept(node));
    ensure!(
        node.shell("systemctl stop stead-fenced").await.is_err(),
        "the fence process can be stopped by hand"
    );
    api.post_and_wait(&format!("/nodes/n3/qemu/{TICKS}/status/stop"), &[], BOOT).await?;
    node.shell("dpkg --purge stead").await?;
    ensure!(kept(node).is_empty(), "{:?} still run", kept(node));
    node.shell("test ! -e /etc/default/stead && test -d /var/lib/stead/conf").await.map(drop)
}

#[test]
fn a_machine_is_upgraded_goes_down_and_comes_back() {
    machines(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        let node = cluster.node(1);
        // It is a container, and gets no power over what is below.
        node.shell("test ! -e /etc/stead/host-armed").await?;
        api.put("/cluster/options", &[("ha", "shutdown_policy=migrate")]).await?;
        cluster.create_http_guest(1, STOPS, "stops").await?;
        api.put(&format!("/nodes/n2/qemu/{STOPS}/config"), &[("onboot", "1")]).await?;
        start(&cluster, &api, 1, STOPS).await?;
        let stops = Poller::start(cluster.guest_places(STOPS));
        cluster.create_tick_guest(1, MOVES).await?;
        start(&cluster, &api, 1, MOVES).await?;
        ha_started(&api, MOVES).await?;
        ha_settled(&api, MOVES).await?;
        stops.wait(BOOT, |_| true).await?;

        unnoticed(&cluster, &api, &stops, "systemctl restart steadd").await?;
        unnoticed(&cluster, &api, &stops, "dpkg --install /srv/stead.deb").await?;
        // What is stopped is the watch for the host's end alone.
        node.shell("systemctl restart stead-guests").await?;
        ensure!(kept(node).len() == 3, "{:?}", kept(node));
        drop(stops);
        goes_down(&cluster, &api).await?;
        comes_back(&cluster, &api).await?;
        reboots(&cluster, &api).await?;
        removed(&cluster, &api).await
    });
}

#[test]
fn only_the_package_gives_power_over_a_host() {
    if let Some(why) = machine::missing() {
        skip!("{why}");
    }
    netns::enter_own().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let check = || -> Result<()> {
        let debian = Debian::new(&dir.path().join("host"))?;
        let armed = debian.root().join("etc/stead/host-armed");
        ensure!(!armed.exists(), "the tree is armed");
        debian.install(&machine::package(dir.path())?)?;
        ensure!(armed.exists(), "the package has not armed its host");
        debian.command(&["sh", "-c", "stead --version && qm help && test -L /etc/systemd/system/multi-user.target.wants/steadd.service"])?;
        debian.command(&["dpkg", "--purge", "stead"])?;
        ensure!(!armed.exists(), "power over the host is left behind");
        debian.clear();
        Ok(())
    };
    check().unwrap();
}
