//! VMs that go to another cluster.

use super::super::support::{BOOT, loopback};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use stead_testbed::api::{ApiClient, until};
use stead_testbed::cluster::Cluster;
use stead_testbed::guest::tick;

const NOISE: u64 = 24 << 20;

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
        let refused = story.send(1, 200, &back, &[("online", "1")]).await.expect_err("it runs").to_string();
        ensure!(refused.contains("shut it down first"), "{refused}");
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
