//! Disks that go along with a VM while it runs.

use super::super::support::{BOOT, RECOVERY, cluster, loopback, runs_on, start};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use stead_testbed::api::{ApiClient, escape, until};
use stead_testbed::cluster::Cluster;
use stead_testbed::guest::tick;

const VM: u32 = 100;
const NOISE: u64 = 24 << 20;

/// A VM on n1 whose disks n1 alone has: the one that it ticks on, one with noise in it, and an unused one.
struct Story {
    cluster: Cluster,
    api: ApiClient,
    folders: [PathBuf; 2],
    noise: Vec<u8>,
}

impl Story {
    async fn begin(cluster: Cluster) -> Result<Self> {
        let api = cluster.api(0).await?;
        let folders =
            [cluster.add_local_storage(0, "here").await?, cluster.add_local_storage(1, "there").await?];
        cluster.create_tick_guest(0, VM).await?;
        let vm = format!("/nodes/n1/qemu/{VM}");
        let form = [("disk", "virtio0"), ("storage", "here"), ("delete", "1")];
        api.post_and_wait(&format!("{vm}/move_disk"), &form, BOOT).await.context("the first disk")?;
        let form = [("scsi1", "here:1,format=qcow2"), ("scsi2", "here:1,format=raw")];
        api.post_and_wait(&format!("{vm}/config"), &form, BOOT).await.context("more disks")?;
        let mut noise = vec![0_u8; usize::try_from(NOISE)?];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
        let story = Self { cluster, api, folders, noise };
        let raw = story.image("scsi2", 0).await?;
        std::fs::File::options().write(true).open(&raw)?.write_all_at(&story.noise, 5 << 20)?;
        story.api.put(&format!("{vm}/config"), &[("delete", "scsi1")]).await?;
        start(&story.cluster, &story.api, 0, VM).await?;
        story.ticks(0).await?;
        Ok(story)
    }

    fn files(&self, n: usize) -> Vec<String> {
        let all = std::fs::read_dir(self.folders[n].join(format!("images/{VM}")));
        all.into_iter().flatten().flatten().map(|f| f.file_name().to_string_lossy().into_owned()).collect()
    }

    /// How many bytes that node's images take.
    fn written(&self, n: usize) -> Result<u64> {
        let all = std::fs::read_dir(self.folders[n].join(format!("images/{VM}")))?;
        Ok(all.flatten().filter_map(|f| f.metadata().ok()).map(|m| m.blocks() * 512).sum())
    }

    async fn config(&self, n: usize) -> Result<Value> {
        self.api.get(&format!("/nodes/n{}/qemu/{VM}/config", n + 1)).await
    }

    /// The image of a disk of the VM, which is on that node.
    async fn image(&self, disk: &str, n: usize) -> Result<PathBuf> {
        let config = self.config(n).await?;
        let volume = config[disk].as_str().and_then(|v| v.split([':', ',']).nth(1));
        Ok(self.folders[n].join("images").join(volume.with_context(|| format!("no {disk}: {config}"))?))
    }

    /// It writes to its disk on that node, and has run nowhere else meanwhile.
    async fn ticks(&self, n: usize) -> Result<()> {
        let disk = self.image("virtio0", n).await?;
        let before = tick::read_cell(&disk)?.map_or(0, |c| c.count);
        let more = async || Ok(tick::read_cell(&disk)?.filter(|c| c.count > before + 5));
        let cell = until("it ticks", BOOT, more).await?;
        ensure!(cell.conflicts == 0, "VM {VM} ran twice: {cell:?}");
        Ok(())
    }

    async fn migrate(&self, from: usize, more: &[(&str, &str)]) -> Result<Value> {
        let names = ["n1", "n2"];
        let map = ["here:there", "there:here"][from];
        let mut form = vec![("target", names[1 - from]), ("online", "1"), ("targetstorage", map)];
        form.extend(more);
        self.api.post(&format!("/nodes/{}/qemu/{VM}/migrate", names[from]), &form).await
    }

    /// A move from n1 that takes long, once it mirrors.
    async fn slowly(&self) -> Result<Value> {
        let upid = self.migrate(0, &[("with-local-disks", "1"), ("bwlimit", "512")]).await?;
        let task = format!("/nodes/n1/tasks/{}", escape(upid.as_str().unwrap_or_default()));
        until("it is being mirrored", BOOT, async || {
            let log = self.api.get(&format!("{task}/log")).await?.to_string();
            let status = self.api.get(&format!("{task}/status")).await?;
            ensure!(status["status"] == "running", "{status} {log}");
            Ok((log.contains("mirroring") && self.written(1)? > 2 << 20).then_some(()))
        })
        .await?;
        Ok(upid)
    }

    /// It runs on n1, unlocked, with its disks, and n2 has nothing of it.
    async fn stayed(&self) -> Result<()> {
        until("nothing of it is left on n2", RECOVERY, async || {
            Ok((self.files(1).is_empty() && !self.cluster.node(1).runs_a_guest()).then_some(()))
        })
        .await?;
        until("it is unlocked", RECOVERY, async || Ok(self.config(0).await?["lock"].is_null().then_some(())))
            .await?;
        ensure!(self.files(0).len() == 3, "{:?}", self.files(0));
        runs_on(&self.cluster, &self.api, VM, BOOT, |n| n == 0).await?;
        self.ticks(0).await
    }

    /// It is on that node, with all that it has.
    async fn came(&self, n: usize) -> Result<()> {
        runs_on(&self.cluster, &self.api, VM, BOOT, |m| m == n).await?;
        ensure!(self.files(1 - n).is_empty(), "{:?}", self.files(1 - n));
        ensure!(self.files(n).len() == 3, "{:?}", self.files(n));
        let config = self.config(n).await?;
        let storage = ["here:", "there:"][n];
        for key in ["virtio0", "scsi2", "unused0"] {
            ensure!(config[key].as_str().is_some_and(|v| v.starts_with(storage)), "{key}: {config}");
        }
        ensure!(config["lock"].is_null(), "{config}");
        let mut came = vec![0_u8; self.noise.len()];
        std::fs::File::open(self.image("scsi2", n).await?)?.read_exact_at(&mut came, 5 << 20)?;
        ensure!(came == self.noise, "it is not what it was");
        self.ticks(n).await
    }
}

#[test]
fn a_vm_that_runs_takes_its_disks_along() {
    loopback(async |builder| {
        let mut story = Story::begin(cluster(builder).await?).await?;
        let upid = story.migrate(0, &[]).await?;
        let refused = story.api.wait_task(&upid, BOOT).await.expect_err("nobody has said so").to_string();
        ensure!(refused.contains("with-local-disks") && refused.contains("here:"), "{refused}");

        let upid = story.slowly().await?;
        let task = format!("/nodes/n1/tasks/{}", escape(upid.as_str().context("no task")?));
        story.api.delete(&task).await?;
        ensure!(story.api.wait_task(&upid, BOOT).await.is_err(), "it was given up");
        story.stayed().await.context("after it was given up")?;

        let upid = story.slowly().await?;
        story.cluster.node(1).kill_daemon()?;
        ensure!(story.api.wait_task(&upid, BOOT).await.is_err(), "its target has died");
        story.ticks(0).await.context("while its target is away")?;
        story.cluster.node(1).start_daemon()?;
        story.cluster.wait_up(story.cluster.node(1)).await?;
        story.stayed().await.context("after its target's daemon has died")?;

        story.slowly().await?;
        story.cluster.node(0).kill_daemon()?;
        story.cluster.node(0).start_daemon()?;
        story.cluster.wait_up(story.cluster.node(0)).await?;
        story.api = story.cluster.api(0).await?;
        story.stayed().await.context("after its own daemon has died")?;

        let nowhere = [("with-local-disks", "1"), ("migration_network", "10.77.0.0/16")];
        let upid = story.migrate(0, &nowhere).await?;
        let refused = story.api.wait_task(&upid, BOOT).await.expect_err("no node is there").to_string();
        ensure!(refused.contains("has no address in network 10.77.0.0/16"), "{refused}");
        story.stayed().await?;

        let ways: [&[_]; 2] = [&[], &[("migration_network", "127.0.0.0/8")]];
        story.api.put("/cluster/options", &[("migration", "secure,streams=2")]).await?;
        for (from, way) in ways.into_iter().enumerate() {
            let upid = story.migrate(from, &[&[("with-local-disks", "1")], way].concat()).await?;
            story.api.wait_task(&upid, BOOT).await.with_context(|| format!("the move from n{}", from + 1))?;
            story.came(1 - from).await?;
        }
        Ok(())
    });
}
