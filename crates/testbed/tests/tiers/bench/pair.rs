//! The same guest by hand: QEMU moves from the network of one node to that of another, over TCP between the two, with the capabilities
//! and the bandwidth that Stead sets; as plain bytes, or under QEMU's own TLS.

use super::hand::{Hand, Line, run_dir};
use super::migration::{Move, VM};
use super::now;
use super::trace::Traces;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use stead_testbed::guest::image;
use stead_testbed::netns::{guest_ip, node_ip};
use stead_testbed::{Cluster, addr};

/// Whose number it is that gives the guest its address.
const NUMBER: u32 = 101;
/// Where the waiting QEMU listens.
const PORT: u16 = 49_000;

/// Copies of a VM's disks, made before it has run: of the system, and an empty one for data.
pub fn copy_disks(cluster: &Cluster, dir: &Path) -> Result<[PathBuf; 2]> {
    fs::create_dir_all(dir)?;
    let (system, data) = (cluster.disk_path(VM, 0), cluster.disk_path(VM, 1));
    let name =
        |disk: &Path| Ok::<_, anyhow::Error>(dir.join(disk.file_name().context("a disk without a name")?));
    let copies = [name(&system)?, name(&data)?];
    image::copy_disk(&system, &copies[0])?;
    // Empty as yet, and sparse.
    File::create(&copies[1])?.set_len(fs::metadata(&data)?.len())?;
    Ok(copies)
}

/// One QEMU, and the place for the next.
pub struct Pair<'a> {
    cluster: &'a Cluster,
    dir: PathBuf,
    /// Its command line, with `@DIR@` for what differs.
    line: Option<Line>,
    qemu: Option<Hand>,
    at: usize,
}

impl<'a> Pair<'a> {
    /// Copies the disks before either guest has run.
    pub fn prepare(cluster: &'a Cluster) -> Result<Self> {
        let dir = cluster.dir().join("hand");
        copy_disks(cluster, &dir)?;
        // A key for QEMU's TLS, where it looks for one.
        fs::write(dir.join("keys.psk"), format!("qemu:{:032x}\n", rand::random::<u128>()))?;
        Ok(Self { cluster, dir, line: None, qemu: None, at: 0 })
    }

    /// Where it answers, wherever it runs.
    pub fn place() -> SocketAddr {
        addr::socket(guest_ip(NUMBER).0, 80)
    }

    /// Boots from a command line of Stead's, on the first node.
    pub fn begin(&mut self, line: &Line) -> Result<()> {
        let disks = self.cluster.disk_path(VM, 0);
        let disks = disks.parent().and_then(Path::to_str).context("no folder for disks")?;
        let line = line
            .with(disks, &self.dir.display().to_string())
            .with(&run_dir(self.cluster.node(0), VM), "@DIR@")
            .with(&format!("tap{VM}i0"), &tap())
            .with(&guest_ip(VM).1, &guest_ip(NUMBER).1)
            .with(&guest_ip(VM).1.to_lowercase(), &guest_ip(NUMBER).1);
        ensure!(
            line.contains(&tap()) && line.contains(&guest_ip(NUMBER).1),
            "it would be the same guest: {line:?}"
        );
        self.line = Some(line);
        let mut qemu = self.start(0, false)?;
        qemu.ask("cont", &json!({}))?;
        self.qemu = Some(qemu);
        Ok(())
    }

    fn start(&self, n: usize, waiting: bool) -> Result<Hand> {
        let slot = self.dir.join(["a", "b"][n]);
        let line = self.line.as_ref().context("it has not begun")?.with("@DIR@", &slot.display().to_string());
        let line = if waiting { line.waiting() } else { line };
        let network = self.cluster.network()?.node(n as u8 + 1);
        let qemu = line.start(&slot, Some(network))?;
        let mut plug = Command::new("ip");
        plug.args(["link", "set", &tap(), "master", "vmbr0", "up"]);
        ensure!(network.inside(&mut plug).status()?.success(), "its network device is not on the bridge");
        Ok(qemu)
    }

    /// Moves it to a process of its own making, on the other node.
    pub fn migrate(&mut self, traces: &Traces, tls: bool) -> Result<Move> {
        let to = 1 - self.at;
        let uri = json!({"uri": format!("tcp:{}:{PORT}", node_ip(to as u8 + 1))});
        let mut source = self.qemu.take().context("it does not run")?;
        let begin = now();
        let mut target = self.start(to, true)?;
        target.ask("migrate-set-capabilities", &on(&["events", "return-path", "late-block-activate"]))?;
        self.set_tls(&mut target, tls, "server")?;
        target.ask("migrate-incoming", &uri)?;
        source.ask("migrate-set-capabilities", &on(&["events", "return-path", "auto-converge"]))?;
        source.ask("migrate-set-parameters", &json!({"max-bandwidth": 1u64 << 40}))?;
        self.set_tls(&mut source, tls, "client")?;
        source.ask("migrate", &uri)?;
        source.migrated()?;
        target.ask("cont", &json!({}))?;
        let sent =
            source.ask("query-migrate", &json!({}))?["ram"]["transferred"].as_f64().unwrap_or(f64::NAN);
        let (old, new) = (source.pid()?, target.pid()?);
        drop(source);
        self.qemu = Some(target);
        self.at = to;
        Move::of(traces, old, new, begin, sent / f64::from(1 << 20))
    }

    /// Sets the way of the stream: plain, or under TLS with the key at hand.
    fn set_tls(&self, qemu: &mut Hand, tls: bool, endpoint: &str) -> Result<()> {
        let creds = if tls { endpoint } else { "" };
        if tls {
            let dir = self.dir.display().to_string();
            let object =
                json!({"qom-type": "tls-creds-psk", "id": endpoint, "dir": dir, "endpoint": endpoint});
            qemu.ask("object-add", &object)?;
        }
        qemu.ask("migrate-set-parameters", &json!({"tls-creds": creds})).map(drop)
    }
}

fn tap() -> String {
    format!("tap{NUMBER}i0")
}

fn on(names: &[&str]) -> Value {
    let all: Vec<_> = names.iter().map(|n| json!({"capability": n, "state": true})).collect();
    json!({"capabilities": all})
}
