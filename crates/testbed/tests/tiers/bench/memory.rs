//! A daemon's memory, without guests and with many.

use super::super::support::{BOOT, cluster, loopback};
use super::{Report, pid_of, verdict};
use anyhow::{Context, Result};
use stead_testbed::node::Node;

const GUESTS: u32 = 50;
const SIGN_INS: usize = 100;
const UPLOAD_MIB: usize = 256;

/// MiB of one process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Resident, what is shared with others included.
    pub(super) rss: f64,
    /// Resident, what is shared counted by shares.
    pub(super) pss: f64,
    /// Its own: heap and stacks.
    pub(super) anonymous: f64,
}

impl Memory {
    /// That of a program which a node runs once.
    pub(super) fn of(node: &Node, program: &str) -> Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pid_of(node, program)?))?;
        let mib = |key: &str| {
            let line = text.lines().find(|l| l.starts_with(key)).with_context(|| format!("no {key}"))?;
            let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
            anyhow::Ok(kib / 1024.0)
        };
        Ok(Self { rss: mib("Rss:")?, pss: mib("Pss:")?, anonymous: mib("Anonymous:")? })
    }

    fn cells(self) -> String {
        format!("{:.1} | {:.1} | {:.1}", self.rss, self.pss, self.anonymous)
    }
}

#[test]
fn memory_of_a_daemon() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        let node = cluster.node(0);
        let mut report = Report::new("Memory of a node's daemon");
        report.table("MiB | RSS | PSS | anonymous | aim (RSS)");
        let mut rows = |when: &str, aim: Option<f64>| -> Result<()> {
            let daemon = Memory::of(node, "steadd")?;
            let aim = aim.map_or_else(String::new, |mib| verdict(&format!("≤ {mib}"), daemon.rss <= mib));
            report.row(&format!("`steadd`, {when} | {} | {aim}", daemon.cells()));
            let fence = Memory::of(node, "stead-fenced")?;
            report.row(&format!("`stead-fenced`, {when} | {} |", fence.cells()));
            println!("{when}: steadd {daemon:.1?}, stead-fenced {fence:.1?}");
            Ok(())
        };
        rows("no guests", Some(50.0))?;
        for vmid in 200..200 + GUESTS {
            cluster.create_tick_guest(0, vmid).await?;
            let path = format!("/nodes/{}/qemu/{vmid}/status/start", node.name());
            api.post_and_wait(&path, &[], BOOT).await?;
        }
        rows(&format!("{GUESTS} guests"), Some(50.0 + 0.2 * f64::from(GUESTS)))?;
        for _ in 0..SIGN_INS {
            cluster.api(0).await?;
        }
        rows(&format!("{SIGN_INS} sign-ins later"), None)?;
        let image = vec![0x5a; UPLOAD_MIB << 20];
        api.upload_iso(node.name(), "shared", "here.iso", &image).await?;
        rows(&format!("an upload of {UPLOAD_MIB} MiB later"), None)?;
        api.upload_iso(cluster.node(1).name(), "shared", "there.iso", &image).await?;
        rows(&format!("another one, handed on to n2, of {UPLOAD_MIB} MiB later"), None)?;
        report.publish()
    });
}
