//! The same guest under libvirt: a daemon in the network of each of two nodes, and `virsh migrate --live` between them.
//!
//! Each daemon has mounts and a host name of its own, so that both can keep their state where libvirt keeps it, and neither sees what
//! the machine's own libvirt has. They are children of this process and are ended as such; nothing is left to a service manager.

use super::migration::{MEMORY_MIB, Move};
use super::pair::copy_disks;
use super::trace::Traces;
use super::{now, pids_since};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use stead_testbed::api::until;
use stead_testbed::netns::{guest_ip, node_ip};
use stead_testbed::{Cluster, addr};

/// Whose number it is that gives the guest its address.
const NUMBER: u32 = 102;
const NAME: &str = "bench";
/// Where the waiting QEMU listens.
const PORT: u16 = 49_152;
/// A daemon may take so long to answer, an order so long to be carried out.
const ANSWERS: Duration = Duration::from_secs(60);

/// What a daemon's shell does before it becomes the daemon: `$1` is its folder, `$2` its host name. What it binds over is libvirt's own state.
const BEGIN: &str = r#"set -e
mount --make-rprivate /
hostname "$2"
mount -t sysfs sysfs /sys
for place in run:/run/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt etc:/etc/libvirt; do
    mkdir -p "$1/${place%%:*}" "${place#*:}"
    mount --bind "$1/${place%%:*}" "${place#*:}"
done
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$1/pid"
"#;

/// No cgroups, no other user, no labels: what Stead's and the guest by hand have not got here either.
const QEMU_CONF: &str = "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\n\
    security_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\nstdio_handler = \"file\"\n";

/// Two daemons and their guest; all of it is ended when this is dropped.
pub struct Libvirt {
    dir: PathBuf,
    disks: [PathBuf; 2],
    daemons: Vec<Child>,
    at: usize,
    qemu: i32,
}

impl Libvirt {
    /// Why it cannot be measured here, if it cannot.
    pub fn missing() -> Option<String> {
        let is_there = |name: &&str| {
            let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
            places.iter().any(|place| Path::new(place).join(name).exists())
        };
        let missing = ["libvirtd", "virsh", "unshare"].into_iter().find(|name| !is_there(name))?;
        Some(format!("libvirt is left out: there is no {missing} here (`scripts/deps.sh bench`)"))
    }

    /// Copies the disks before any guest has run.
    pub fn prepare(cluster: &Cluster) -> Result<Self> {
        let dir = cluster.dir().join("virt");
        let disks = copy_disks(cluster, &dir)?;
        Ok(Self { dir, disks, daemons: Vec::new(), at: 0, qemu: 0 })
    }

    /// Which libvirt it is.
    pub fn version() -> String {
        let out = Command::new("virsh").arg("--version").output();
        out.map_or_else(|e| e.to_string(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// Where it answers, wherever it runs.
    pub fn place() -> SocketAddr {
        addr::socket(guest_ip(NUMBER).0, 80)
    }

    /// Starts both daemons, and the guest on the first node.
    pub async fn begin(&mut self, cluster: &Cluster, traces: &Traces) -> Result<()> {
        for n in 0..2 {
            let child = self.start_daemon(cluster, n)?;
            self.daemons.push(child);
        }
        for n in 0..2 {
            // It finds out what its QEMU can do, once; no migration is to wait for that.
            until("libvirtd answers", ANSWERS, async || {
                Ok(self.virsh(n, &["domcapabilities", "--virttype", "qemu"]).is_ok().then_some(()))
            })
            .await
            .with_context(|| fs::read_to_string(self.slot(n).join("out")).unwrap_or_default())?;
        }
        let xml = self.dir.join("guest.xml");
        fs::write(&xml, self.domain(&traces.args()))?;
        let known = traces.pids();
        self.virsh(0, &["create", &xml.display().to_string()])?;
        self.qemu = pids_since(traces, &known)?;
        Ok(())
    }

    /// Has virsh move it to the other node.
    pub fn migrate(&mut self, traces: &Traces) -> Result<Move> {
        let to = 1 - self.at;
        let known = traces.living()?;
        let uri = format!("tcp://{}:{PORT}", node_ip(to as u8 + 1));
        let begin = now();
        // Whether both see the same disks it judges by the kind of file system, and this one is a local one.
        let words =
            ["migrate", "--live", "--unsafe", "--auto-converge", NAME, &self.uri(to), "--migrateuri", &uri];
        self.virsh(self.at, &words)?;
        let new = pids_since(traces, &known)?;
        self.at = to;
        let stats = self.virsh(to, &["domjobinfo", NAME, "--completed", "--rawstats"])?;
        let bytes =
            stats.lines().find_map(|l| l.trim().strip_prefix("data_processed:")?.trim().parse::<f64>().ok());
        let bytes = bytes.with_context(|| format!("libvirt does not say how much was sent: {stats}"))?;
        let old = std::mem::replace(&mut self.qemu, new);
        Move::of(traces, old, new, begin, bytes / f64::from(1 << 20))
    }

    fn slot(&self, n: usize) -> PathBuf {
        self.dir.join(["a", "b"][n])
    }

    fn uri(&self, n: usize) -> String {
        format!("qemu+unix:///system?socket={}/sock/libvirt-sock", self.slot(n).display())
    }

    fn virsh(&self, n: usize, words: &[&str]) -> Result<String> {
        let mut command = Command::new("timeout");
        command.args([&ANSWERS.as_secs().to_string(), "virsh", "-q", "-c", &self.uri(n)]).args(words);
        let out = command.stdin(Stdio::null()).output().context("running virsh")?;
        let error = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "virsh {}: {} ({})", words.join(" "), error.trim(), out.status);
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn start_daemon(&self, cluster: &Cluster, n: usize) -> Result<Child> {
        let slot = self.slot(n);
        fs::create_dir_all(slot.join("etc"))?;
        fs::create_dir_all(slot.join("sock"))?;
        fs::write(slot.join("etc/qemu.conf"), QEMU_CONF)?;
        // Two daemons of one host would refuse to move a guest between them.
        let host = format!("0000000{n}-0000-4000-8000-{:012x}", rand::random::<u32>());
        let conf = format!(
            "unix_sock_dir = \"{0}/sock\"\nauth_unix_rw = \"none\"\nhost_uuid = \"{host}\"\nlog_outputs = \"3:file:{0}/daemon.log\"\n",
            slot.display()
        );
        fs::write(slot.join("etc/libvirtd.conf"), conf)?;
        let out = fs::File::create(slot.join("out"))?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "sh", "-c", BEGIN, "sh"]).arg(&slot).arg(cluster.node(n).name());
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let network = cluster.network()?.node(n as u8 + 1);
        network.inside(&mut command).spawn().context("starting libvirtd")
    }

    /// As near to Stead's as libvirt's words go: the machine, the memory, the disks and how they are written, the network card.
    fn domain(&self, trace: &str) -> String {
        let mut xml = format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>{NAME}</name>\
             <memory unit='MiB'>{MEMORY_MIB}</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
             <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>\
             <clock offset='utc'/><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>"
        );
        for (disk, name) in self.disks.iter().zip(["vda", "vdb"]) {
            let boot = if name == "vda" { "<boot order='1'/>" } else { "" };
            let _ = write!(
                xml,
                "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/>\
                 <source file='{}'/><target dev='{name}' bus='virtio'/>{boot}</disk>",
                disk.display()
            );
        }
        let _ = write!(
            xml,
            "<interface type='bridge'><source bridge='vmbr0'/><mac address='{}'/><model type='virtio'/></interface>\
             <serial type='null'/><memballoon model='virtio'/><video><model type='vga'/></video></devices>\
             <qemu:commandline>",
            guest_ip(NUMBER).1
        );
        for word in trace.split_whitespace() {
            let _ = write!(xml, "<qemu:arg value='{word}'/>");
        }
        xml + "</qemu:commandline></domain>"
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        if self.qemu != 0 {
            // A guest outlives its daemon.
            let _ = self.virsh(self.at, &["destroy", NAME]);
        }
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
