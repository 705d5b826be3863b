//! The cluster of a kind's cells, with its storages and its VM.

use super::super::bench::hand::run_dir;
use super::super::support::{BOOT, RECOVERY, cluster, node_is};
use super::kinds::{KEPT, Kind, Place, TAKEN};
use super::spot::files;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use stead_testbed::api::until;
use stead_testbed::cluster::Builder;
use stead_testbed::guest::tick::{self, Cell};
use stead_testbed::{ApiClient, Cluster, procs};

/// A VM's disk: the guest's sectors, and behind them what must come back as it is.
const DISK: usize = 4 << 20;
/// Where that begins.
const NOISE: usize = 64 << 10;
/// A storage that can be filled.
const SMALL: &str = "size=48m,mode=700";

/// File systems, until this is dropped: before the cluster, whose folder they lie in.
#[derive(Debug, Default)]
struct Mounts(Vec<PathBuf>);

impl Mounts {
    fn add(&mut self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let made = Command::new("mount").args(["-t", "tmpfs", "-o", SMALL, "small"]).arg(folder).status()?;
        ensure!(made.success(), "mounting {} failed", folder.display());
        self.0.push(folder.to_owned());
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = Command::new("umount").arg("-l").arg(folder).status();
        }
    }
}

/// See the module's description.
pub struct Bed {
    _mounts: Mounts,
    cluster: Cluster,
    session: ApiClient,
    place: Place,
    writes: bool,
    noise: Vec<u8>,
    folders: Vec<(String, PathBuf)>,
    vmid: u32,
}

impl Bed {
    /// Three nodes with the storage `shared`, the small one `far` that all have, and `s1` to `s3`, small ones that one has each.
    pub async fn make(builder: Builder, kind: &Kind) -> Result<Self> {
        let cluster = cluster(builder).await?;
        let session = cluster.api(0).await?;
        session.put("/cluster/ha/profile", &[("profile", "fast")]).await?;
        if kind.is_fetched {
            session.put("/cluster/options", &[("migration", "secure,postcopy=1")]).await?;
        }
        let mut mounts = Mounts::default();
        let mut folders = vec![("shared".to_owned(), cluster.shared_dir().to_owned())];
        for (id, node) in [("far", ""), ("s1", "n1"), ("s2", "n2"), ("s3", "n3")] {
            let folder = cluster.dir().join(id);
            mounts.add(&folder)?;
            let path = folder.display().to_string();
            let mut form = vec![("storage", id), ("type", "dir"), ("path", &path), ("content", "images")];
            form.push(if node.is_empty() { ("shared", "1") } else { ("nodes", node) });
            session.post("/storage", &form).await.with_context(|| format!("adding storage '{id}'"))?;
            folders.push((id.to_owned(), folder));
        }
        let noise = (NOISE..DISK).map(|_| rand::random()).collect();
        let (place, writes) = (kind.place, kind.is_fetched);
        let mut bed = Self { _mounts: mounts, cluster, session, place, writes, noise, folders, vmid: 100 };
        bed.create().await?;
        Ok(bed)
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub fn folders(&self) -> &[(String, PathBuf)] {
        &self.folders
    }

    pub fn vmid(&self) -> u32 {
        self.vmid
    }

    /// A storage's folder.
    pub fn folder(&self, storage: &str) -> Result<&Path> {
        let found = self.folders.iter().find(|(id, _)| id == storage);
        Ok(&found.with_context(|| format!("no storage '{storage}'"))?.1)
    }

    /// A new client of a node, with connections of its own: a node's may have died with it.
    pub fn api(&self, node: usize) -> Result<ApiClient> {
        self.session.at(self.cluster.node(node).addr())
    }

    /// The VM's place in the API, on a node.
    pub fn path(&self, node: usize) -> String {
        format!("/nodes/{}/qemu/{}", self.cluster.node(node).name(), self.vmid)
    }

    pub fn keep_logs(&mut self) {
        self.cluster.keep_logs();
    }

    /// The storage that a node alone has.
    pub fn own_storage(&self, node: usize) -> String {
        format!("s{}", node + 1)
    }

    /// Creates the VM on the first node and starts it.
    async fn create(&mut self) -> Result<()> {
        self.vmid += 1;
        let vmid = self.vmid;
        let storage = if self.place == Place::Local { self.own_storage(0) } else { "shared".to_owned() };
        let format = if self.place == Place::Snapshots { "qcow2" } else { "raw" };
        let file = format!("vm-{vmid}-disk-0.{format}");
        let disk = self.folder(&storage)?.join(format!("images/{vmid}")).join(&file);
        fs::create_dir_all(disk.parent().context("no folder")?)?;
        let raw = self.cluster.dir().join("new.raw");
        tick::write_disk_of(&raw, if self.writes { tick::WRITES } else { tick::SECTOR })?;
        let mut content = fs::read(&raw)?;
        content.resize(NOISE, 0);
        content.extend_from_slice(&self.noise);
        fs::write(&raw, content)?;
        convert(&raw, "raw", &disk, format)?;
        let form = [
            ("vmid", vmid.to_string()),
            ("name", format!("tick-{vmid}")),
            ("memory", "32".to_owned()),
            ("virtio0", format!("{storage}:{vmid}/{file},cache=none")),
            ("boot", "order=virtio0".to_owned()),
            ("serial0", "socket".to_owned()),
            ("vmstatestorage", "far".to_owned()),
        ];
        let form: Vec<(&str, &str)> = form.iter().map(|(k, v)| (*k, v.as_str())).collect();
        self.api(0)?.post_and_wait("/nodes/n1/qemu", &form, BOOT).await.context("creating the VM")?;
        self.api(0)?.post_and_wait(&format!("{}/status/start", self.path(0)), &[], BOOT).await?;
        let config = self.api(0)?.get(&format!("{}/config", self.path(0))).await?;
        if self.shows_writes() {
            until("it writes", BOOT, async || self.read_disk(&config)).await?;
        }
        if self.place == Place::Snapshots {
            let form = [("snapname", KEPT), ("vmstate", "1")];
            let path = format!("{}/snapshot", self.path(0));
            self.api(0)?.post_and_wait(&path, &form, BOOT).await.context("its snapshot")?;
        }
        Ok(())
    }

    /// After a cell that has failed: all that is broken is mended, and there is a new VM. What there is of the old one is left alone.
    pub async fn begin_anew(&mut self) -> Result<()> {
        self.mend().await?;
        // Whatever it does, it is in nobody's way: another VM is used from now on.
        let old = self.vmid;
        self.create().await.context("a new VM after a cell that has failed")?;
        let api = self.api(0)?;
        for n in 0..3 {
            let path = format!("/nodes/{}/qemu/{old}/status/stop", self.cluster.node(n).name());
            let _ = api.post(&path, &[("skiplock", "1")]).await;
        }
        Ok(())
    }

    /// Everything is on, connected, and has room; every node sees the others.
    pub async fn mend(&self) -> Result<()> {
        self.cluster.network()?.heal()?;
        for (_, folder) in &self.folders {
            let _ = fs::remove_file(folder.join("filler"));
        }
        for node in self.cluster.nodes() {
            node.power_on()?;
        }
        for n in 0..3 {
            self.cluster.wait_up(self.cluster.node(n)).await?;
        }
        for n in 0..3 {
            node_is(&self.cluster, &self.api(0)?, n, true).await?;
        }
        Ok(())
    }

    /// Fills a storage.
    pub fn fill(&self, storage: &str) -> Result<()> {
        let mut file = fs::File::create(self.folder(storage)?.join("filler"))?;
        for size in [1 << 20, 1 << 12] {
            let block = vec![0u8; size];
            while std::io::Write::write_all(&mut file, &block).is_ok() {}
        }
        Ok(())
    }

    /// The leader, as some node sees it.
    pub async fn leader(&self) -> Result<usize> {
        until("the cluster has a leader", RECOVERY, async || {
            Ok(Some(self.cluster.leader(&self.api(0)?).await?))
        })
        .await
    }

    /// The nodes on which a process of the VM is.
    pub fn copies(&self) -> Vec<usize> {
        let all = procs::all();
        let has = |n: &usize| {
            let dir = format!("{}/", run_dir(self.cluster.node(*n), self.vmid));
            all.iter().any(|p| p.is_qemu() && p.command.contains(&dir))
        };
        (0..3).filter(has).collect()
    }

    /// All that the configuration says, with its snapshots.
    async fn named(&self, api: &ApiClient, node: usize) -> Result<String> {
        let path = self.path(node);
        let mut all = api.get(&format!("{path}/config")).await?.to_string();
        for snapshot in [KEPT, TAKEN] {
            if let Ok(config) = api.get(&format!("{path}/snapshot/{snapshot}/config")).await {
                all += &config.to_string();
            }
        }
        Ok(all)
    }

    /// Files of the VM on any storage that its configuration does not name.
    pub async fn unnamed(&self, api: &ApiClient, node: usize) -> Result<Vec<String>> {
        let named = self.named(api, node).await?;
        let all = files(&self.folders, self.vmid).into_iter();
        let all = all.map(|(storage, file)| format!("{storage}:{}/{file}", self.vmid));
        Ok(all.filter(|volume| !named.contains(volume.as_str())).collect())
    }

    /// The files that there are, which a new one differs from.
    pub fn files(&self) -> BTreeSet<(String, String)> {
        files(&self.folders, self.vmid)
    }

    /// Reads the disk that a configuration names, also while it is open: what the guest has written, if its image is raw.
    pub fn read_disk(&self, config: &Value) -> Result<Option<Cell>> {
        let volume =
            config["virtio0"].as_str().and_then(|v| v.split(',').next()).context("it has no disk")?;
        let (storage, name) = volume.split_once(':').context("no volume")?;
        let path = self.folder(storage)?.join("images").join(name);
        let raw = if name.ends_with(".raw") {
            path
        } else {
            let raw = self.cluster.dir().join("read.raw");
            convert(&path, "qcow2", &raw, "raw")?;
            raw
        };
        let content = fs::read(&raw).with_context(|| format!("reading {}", raw.display()))?;
        let noise = content.get(NOISE..).unwrap_or_default();
        ensure!(noise == self.noise, "what was on its disk is not there any more ({})", raw.display());
        tick::read_cell(&raw)
    }

    /// Whether what the disk's file shows is what the guest has written last.
    pub fn shows_writes(&self) -> bool {
        self.place != Place::Snapshots
    }
}

/// Writes an image in another format, also one that is open.
fn convert(from: &Path, from_format: &str, to: &Path, format: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-U", "-f", from_format, "-O", format]).arg(from).arg(to).stdin(Stdio::null());
    let out = command.output().context("running qemu-img")?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}
