//! VMs that go to another cluster.

use super::super::support::{BOOT, RECOVERY, loopback};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use stead_testbed::api::{ApiClient, escape, until};
use stead_testbed::cluster::Cluster;
use stead_testbed::guest::tick;

const NOISE: u64 = 24 << 20;
/// A VM that ticks five times a second may stand so long while it goes over, on a machine that does other things, too.
const PAUSE: Duration = Duration::from_secs(5);

/// Two clusters of a node each. The first has VM 100, whose two disks have something in them.
struct Story {
    cluster: Cluster,
    apis: [ApiClient; 2],
    noise: Vec<u8>,
}

impl Story {
    async fn begin(cluster: Cluster) -> Result<Self> {
        let apis = [cluster.api(0).await?, cluster.api(1).await?];
        let mut noise = vec![0_u8; usize::try_from(NOISE)?];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
        let story = Self { cluster, apis, noise };
        let form = [
            ("vmid", "100"),
            ("name", "traveller"),
            ("memory", "32"),
            ("boot", "order=virtio0"),
            ("serial0", "socket"),
            ("virtio0", "local:1,format=raw"),
            ("scsi1", "local:1,format=qcow2"),
            ("net0", "virtio"),
        ];
        story.apis[0].post_and_wait("/nodes/n1/qemu", &form, BOOT).await.context("the VM")?;
        tick::write_disk(&story.image(0, 100, "virtio0").await?)?;
        let raw = std::fs::File::options().write(true).open(story.image(0, 100, "virtio0").await?)?;
        raw.set_len(1 << 30)?;
        raw.write_all_at(&story.noise, 500 << 20)?;
        Ok(story)
    }

    fn name(n: usize) -> &'static str {
        ["n1", "n2"][n]
    }

    async fn config(&self, n: usize, vmid: u32) -> Result<Value> {
        self.apis[n].get(&format!("/nodes/{}/qemu/{vmid}/config", Self::name(n))).await
    }

    /// The image of a disk.
    async fn image(&self, n: usize, vmid: u32, disk: &str) -> Result<PathBuf> {
        let config = self.config(n, vmid).await?;
        let volume = config[disk].as_str().and_then(|v| v.split([':', ',']).nth(1));
        let volume = volume.with_context(|| format!("no {disk}: {config}"))?;
        Ok(self.cluster.dir().join(Self::name(n)).join("local/images").join(volume))
    }

    fn files(&self, n: usize, vmid: u32) -> usize {
        let folder = self.cluster.dir().join(Self::name(n)).join(format!("local/images/{vmid}"));
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    /// How the other node's API is named to that one's, with a new token of its root's.
    async fn endpoint(&self, n: usize, token: &str) -> Result<String> {
        let made =
            self.apis[n].post(&format!("/access/users/root@pam/token/{token}"), &[("privsep", "0")]).await?;
        let secret = made["value"].as_str().context("no secret")?.to_owned();
        let join = self.apis[n].get("/cluster/config/join").await?;
        let print = join["nodelist"][0]["pve_fp"].as_str().context("no fingerprint")?.to_owned();
        let addr = self.cluster.node(n).addr();
        Ok(format!(
            "apitoken=PVEAPIToken=root@pam!{token}={secret},host={},port={},fingerprint={print}",
            addr.ip(),
            addr.port()
        ))
    }

    async fn send(&self, from: usize, vmid: u32, endpoint: &str, more: &[(&str, &str)]) -> Result<()> {
        let mut form = vec![("target-endpoint", endpoint), ("target-storage", "1"), ("target-bridge", "1")];
        form.extend(more);
        let path = format!("/nodes/{}/qemu/{vmid}/remote_migrate", Self::name(from));
        self.apis[from].post_and_wait(&path, &form, BOOT).await
    }

    /// It writes to its disk on that node, is the same that it was, and has run nowhere else meanwhile.
    async fn ticks(&self, n: usize, vmid: u32, boot: Option<u64>) -> Result<u64> {
        let disk = self.image(n, vmid, "virtio0").await?;
        let before = tick::read_cell(&disk)?.map_or(0, |c| c.count);
        let cell =
            until("it ticks", BOOT, async || Ok(tick::read_cell(&disk)?.filter(|c| c.count > before + 5)))
                .await?;
        ensure!(cell.conflicts == 0, "VM {vmid} ran twice: {cell:?}");
        ensure!(boot.is_none_or(|id| id == cell.id), "VM {vmid} was started anew: {cell:?}");
        Ok(cell.id)
    }

    /// The longest time in which neither of two folders had a disk on which the count rose, until the task has ended.
    async fn longest_pause(&self, n: usize, upid: &Value, folders: [PathBuf; 2]) -> Result<Duration> {
        let status =
            format!("/nodes/{}/tasks/{}/status", Self::name(n), escape(upid.as_str().unwrap_or_default()));
        let (mut most, mut rose, mut longest, mut asked) =
            (0, Instant::now(), Duration::ZERO, Instant::now());
        loop {
            let now = folders.iter().filter_map(|folder| count_in(folder)).max().unwrap_or(0);
            if now > most {
                longest = longest.max(rose.elapsed());
                (most, rose) = (now, Instant::now());
            }
            if asked.elapsed() > Duration::from_millis(300) {
                asked = Instant::now();
                if self.apis[n].get(&status).await?["status"] != "running" {
                    return Ok(longest.max(rose.elapsed()));
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn folder(&self, n: usize, vmid: u32) -> PathBuf {
        self.cluster.dir().join(Self::name(n)).join(format!("local/images/{vmid}"))
    }

    /// Begins to move a VM that runs.
    async fn go_live(&self, from: usize, vmid: u32, endpoint: &str, more: &[(&str, &str)]) -> Result<Value> {
        let mut form = vec![
            ("target-endpoint", endpoint),
            ("target-storage", "1"),
            ("target-bridge", "1"),
            ("online", "1"),
        ];
        form.extend(more);
        self.apis[from].post(&format!("/nodes/{}/qemu/{vmid}/remote_migrate", Self::name(from)), &form).await
    }

    /// Begins to move VM 300 of n1 so slowly that it is in the middle for long.
    async fn go_slowly(&self, endpoint: &str) -> Result<Value> {
        let upid = self.go_live(0, 300, endpoint, &[("target-vmid", "400"), ("bwlimit", "1024")]).await?;
        let task = format!("/nodes/n1/tasks/{}", escape(upid.as_str().unwrap_or_default()));
        until("it is being mirrored", BOOT, async || {
            let log = self.apis[0].get(&format!("{task}/log")).await?.to_string();
            let status = self.apis[0].get(&format!("{task}/status")).await?;
            ensure!(status["status"] == "running", "{status} {log}");
            Ok(log.contains("mirroring").then_some(()))
        })
        .await?;
        ensure!(self.cluster.node(1).runs_a_guest(), "a process waits there");
        Ok(upid)
    }

    /// VM 300 runs on n1 as it did, unlocked, and n2 has nothing of it.
    async fn stayed(&self, boot: u64) -> Result<()> {
        until("nothing of it is left", RECOVERY, async || {
            let there = self.config(1, 400).await.is_ok() || self.cluster.node(1).runs_a_guest();
            Ok((!there && self.files(1, 400) == 0).then_some(()))
        })
        .await?;
        until("it is unlocked", RECOVERY, async || {
            Ok(self.config(0, 300).await?["lock"].is_null().then_some(()))
        })
        .await?;
        self.ticks(0, 300, Some(boot)).await?;
        self.came(0, 300).await
    }

    async fn came(&self, n: usize, vmid: u32) -> Result<()> {
        let config = self.config(n, vmid).await?;
        ensure!(config["lock"].is_null() && config["name"] == "traveller", "{config}");
        ensure!(self.files(n, vmid) == 2, "{}", self.files(n, vmid));
        let mut came = vec![0_u8; self.noise.len()];
        std::fs::File::open(self.image(n, vmid, "virtio0").await?)?.read_exact_at(&mut came, 500 << 20)?;
        ensure!(came == self.noise, "it is not what it was");
        Ok(())
    }
}

/// The highest count on a raw disk there.
fn count_in(folder: &Path) -> Option<u32> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|f| f.path());
    files
        .filter(|path| path.extension().is_some_and(|e| e == "raw"))
        .filter_map(|path| Some(tick::read_cell(&path).ok()??.count))
        .max()
}

#[test]
fn a_vm_goes_to_another_cluster_and_back() {
    loopback(async |builder| {
        let mut story = Story::begin(builder.nodes(2).start().await?).await?;
        let there = story.endpoint(1, "away").await?;

        // Its clusters know nothing of each other: another certificate, another secret.
        let (plain, _) = there.split_once(",fingerprint=").context("no fingerprint")?;
        let wrong = format!("{plain},fingerprint={}", ["00"; 32].join(":"));
        let refused = story.send(0, 100, &wrong, &[]).await.expect_err("another certificate").to_string();
        ensure!(refused.contains("another certificate than expected"), "{refused}");
        let other = there.replacen("away=", "away=0", 1);
        let refused = story.send(0, 100, &other, &[]).await.expect_err("another secret").to_string();
        ensure!(refused.contains("refused to say its version"), "{refused}");
        let refused = story.send(0, 100, plain, &[]).await.expect_err("who is it?").to_string();
        ensure!(refused.contains("no TLS session") && refused.contains("'fingerprint'"), "{refused}");
        ensure!(story.config(0, 100).await?["lock"].is_null(), "it stays as it was");

        story.send(0, 100, &there, &[("target-vmid", "200")]).await.context("there")?;
        story.came(1, 200).await?;
        let left = story.config(0, 100).await?;
        ensure!(left["lock"] == "migrate" && story.files(0, 100) == 2, "{left}");
        let refused = story.apis[0].post("/nodes/n1/qemu/100/status/start", &[]).await;
        ensure!(refused.is_err(), "what is given away does not start");

        // It is a VM like any other.
        story.apis[1].post_and_wait("/nodes/n2/qemu/200/status/start", &[], BOOT).await?;
        let disk = story.image(1, 200, "virtio0").await?;
        until("it ticks", BOOT, async || Ok(tick::read_cell(&disk)?.filter(|c| c.count > 5))).await?;
        let back = story.endpoint(0, "back").await?;
        let refused = story.send(1, 200, &back, &[]).await.expect_err("it runs").to_string();
        ensure!(refused.contains("without --online"), "{refused}");
        story.apis[1].post_and_wait("/nodes/n2/qemu/200/status/stop", &[], BOOT).await?;

        let taken =
            story.send(1, 200, &back, &[("target-vmid", "100")]).await.expect_err("taken").to_string();
        ensure!(taken.contains("unable to create VM 100"), "{taken}");
        story.send(1, 200, &back, &[("target-vmid", "300"), ("delete", "1")]).await.context("back")?;
        story.came(0, 300).await?;
        ensure!(story.config(1, 200).await.is_err() && story.files(1, 200) == 0, "it was to be removed");

        // A source that dies in the middle leaves nothing there, and itself unlocked.
        let slow = [("bwlimit", "1024"), ("target-vmid", "400")];
        let mut form =
            vec![("target-endpoint", there.as_str()), ("target-storage", "1"), ("target-bridge", "1")];
        form.extend(slow);
        story.apis[0].post("/nodes/n1/qemu/300/remote_migrate", &form).await?;
        until("it is being sent", BOOT, async || Ok((story.files(1, 400) > 0).then_some(()))).await?;
        story.cluster.node(0).kill_daemon()?;
        until("nothing is left of it", BOOT, async || {
            Ok((story.files(1, 400) == 0 && story.config(1, 400).await.is_err()).then_some(()))
        })
        .await?;
        story.cluster.node(0).start_daemon()?;
        story.cluster.wait_up(story.cluster.node(0)).await?;
        story.apis[0] = story.cluster.api(0).await?;
        until("it is unlocked", BOOT, async || {
            Ok(story.config(0, 300).await?["lock"].is_null().then_some(()))
        })
        .await?;
        story.came(0, 300).await
    });
}

#[test]
fn a_vm_that_runs_goes_to_another_cluster_and_back() {
    loopback(async |builder| {
        let mut story = Story::begin(builder.nodes(2).start().await?).await?;
        let (there, back) = (story.endpoint(1, "away").await?, story.endpoint(0, "back").await?);
        story.apis[0].post_and_wait("/nodes/n1/qemu/100/status/start", &[], BOOT).await?;
        let boot = story.ticks(0, 100, None).await?;

        let upid = story.go_live(0, 100, &there, &[("target-vmid", "200")]).await?;
        let pause = story.longest_pause(0, &upid, [story.folder(0, 100), story.folder(1, 200)]).await?;
        story.apis[0].wait_task(&upid, BOOT).await.context("there")?;
        ensure!(pause < PAUSE, "it stood for {pause:?}");
        story.ticks(1, 200, Some(boot)).await?;
        story.came(1, 200).await?;
        ensure!(!story.cluster.node(0).runs_a_guest(), "one of the two runs");
        let left = story.config(0, 100).await?;
        ensure!(left["lock"] == "migrate" && story.files(0, 100) == 2, "{left}");
        let refused = story.apis[0].post("/nodes/n1/qemu/100/status/start", &[]).await;
        ensure!(refused.is_err(), "what is given away does not start");

        let upid = story.go_live(1, 200, &back, &[("target-vmid", "300"), ("delete", "1")]).await?;
        story.apis[1].wait_task(&upid, BOOT).await.context("back")?;
        story.ticks(0, 300, Some(boot)).await?;
        story.came(0, 300).await?;
        ensure!(story.config(1, 200).await.is_err() && story.files(1, 200) == 0, "it was to be removed");
        ensure!(!story.cluster.node(1).runs_a_guest(), "one of the two runs");

        let upid = story.go_slowly(&there).await?;
        story.cluster.node(1).kill_daemon()?;
        ensure!(story.apis[0].wait_task(&upid, BOOT).await.is_err(), "its tunnel was cut");
        story.ticks(0, 300, Some(boot)).await.context("while its target is away")?;
        story.cluster.node(1).start_daemon()?;
        story.cluster.wait_up(story.cluster.node(1)).await?;
        story.apis[1] = story.cluster.api(1).await?;
        story.stayed(boot).await.context("after its target's daemon has died")?;

        story.go_slowly(&there).await?;
        story.cluster.node(0).kill_daemon()?;
        story.cluster.node(0).start_daemon()?;
        story.cluster.wait_up(story.cluster.node(0)).await?;
        story.apis[0] = story.cluster.api(0).await?;
        story.stayed(boot).await.context("after its own daemon has died")
    });
}
