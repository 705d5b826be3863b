//! What a running guest has on disk: its directory, and in it the record by which a later daemon finds it.

use crate::accel::Accel;
use crate::huge::Added;
use crate::vfio::Mdev;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use stead_model::{Epoch, Vmid};

/// The longest path of a unix socket, without its terminating zero.
const SOCKET_PATH: usize = 107;

/// `RUN/VMID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The directory of a guest; it need not exist.
    pub fn new(root: &Path, vmid: Vmid) -> Self {
        Self(root.join(vmid.to_string()))
    }

    /// The driver's own monitor.
    pub fn qmp(&self) -> PathBuf {
        self.0.join("qmp")
    }

    /// The fence process's monitor.
    pub fn fence(&self) -> PathBuf {
        self.0.join("fence")
    }

    /// Where QEMU writes its pid.
    pub fn pidfile(&self) -> PathBuf {
        self.0.join("pid")
    }

    /// The screen.
    pub fn vnc(&self) -> PathBuf {
        self.0.join("vnc")
    }

    /// A serial terminal: `serial0`.
    pub fn serial(&self, key: &str) -> PathBuf {
        self.0.join(key)
    }

    /// The guest agent.
    pub fn agent(&self) -> PathBuf {
        self.0.join("qga")
    }

    /// Its TPM.
    pub fn tpm(&self) -> PathBuf {
        self.0.join("tpm")
    }

    /// Where its TPM writes its pid.
    pub fn tpm_pid(&self) -> PathBuf {
        self.0.join("tpm.pid")
    }

    /// Where what carries a shared directory listens.
    pub fn share(&self, index: u32) -> PathBuf {
        self.0.join(format!("fs{index}"))
    }

    /// Where an incoming migration's stream goes.
    pub fn inlet(&self) -> PathBuf {
        self.0.join("mig")
    }

    /// Where disks are lent to another process.
    pub fn lending(&self) -> PathBuf {
        self.0.join("nbd")
    }

    /// What QEMU says.
    pub fn stderr(&self) -> PathBuf {
        self.0.join("stderr")
    }

    /// The variables of the UEFI firmware.
    pub fn firmware_vars(&self) -> PathBuf {
        self.0.join("vars.fd")
    }

    /// Exists once the CPUs have run here, or were left standing on purpose.
    pub fn ran(&self) -> PathBuf {
        self.0.join("ran")
    }

    fn meta(&self) -> PathBuf {
        self.0.join("meta.json")
    }

    /// Makes the directory, for its owner alone.
    pub fn create(&self) -> io::Result<()> {
        let longest = self.serial("serial0");
        if longest.as_os_str().len() > SOCKET_PATH {
            let why =
                format!("'{}' is too long for a unix socket: use a shorter run directory", longest.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    /// Removes all of it.
    pub fn remove(&self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.0.display(), error = %e, "could not remove a run directory");
        }
    }

    /// Reads the record; none when there is none that can be read.
    pub fn load(&self) -> Option<Meta> {
        let text = std::fs::read(self.meta()).ok()?;
        match serde_json::from_slice::<Meta>(&text) {
            Ok(meta) if meta.format == FORMAT => Some(meta),
            Ok(meta) => {
                tracing::error!(dir = %self.0.display(), format = meta.format, "a record of another format");
                None
            }
            Err(e) => {
                tracing::error!(dir = %self.0.display(), error = %e, "a record that cannot be read");
                None
            }
        }
    }

    /// Writes the record in one step.
    pub fn store(&self, meta: &Meta) -> io::Result<()> {
        let temporary = self.0.join("meta.new");
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(meta)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.meta())
    }
}

/// The record's format.
pub const FORMAT: u32 = 1;

/// The record of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The record's format.
    pub format: u32,
    /// The guest.
    pub vmid: Vmid,
    /// The ownership that it runs under.
    pub epoch: Epoch,
    /// The versioned machine type.
    pub machine: String,
    /// The accelerator.
    pub accel: Accel,
    /// The program's version; empty while it is being launched.
    pub version: String,
    /// Its CPUs' number.
    pub cpus: u32,
    /// Whether its system is said to run the guest agent.
    pub agent: bool,
    /// Whether it was started to receive a migration.
    pub incoming: bool,
    /// Its tap devices, in the order of the network devices.
    pub taps: Vec<String>,
    /// Its cgroup.
    pub cgroup: Option<PathBuf>,
    /// Its group for its share of the CPUs, where that is another one.
    #[serde(default)]
    pub cpu_cgroup: Option<PathBuf>,
    /// The huge pages that were added for it, and go back with its end.
    #[serde(default)]
    pub huge: Vec<Added>,
    /// Devices that were made for it, and go with its end.
    #[serde(default)]
    pub mdevs: Vec<Mdev>,
    /// The command line.
    pub argv: Vec<String>,
    /// The devices, by QEMU's ids, that its guest was asked for and has not let go of.
    #[serde(default)]
    pub asked: BTreeSet<String>,
    /// Its CPUs were stopped so that what is left of its memory can be fetched, and nobody has had it run since.
    #[serde(default)]
    pub stands: bool,
    /// Its process: pid and start in clock ticks since boot. None while it is being launched.
    pub process: Option<(u32, u64)>,
    /// The same of its TPM, if it has one.
    #[serde(default)]
    pub tpm: Option<(u32, u64)>,
    /// The same of what carries its shared directories, by their options.
    #[serde(default)]
    pub shares: BTreeMap<String, (u32, u64)>,
}

/// Every guest that has a directory.
pub fn guests(root: &Path) -> Vec<Vmid> {
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let mut all: Vec<Vmid> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_read_by_later_versions() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::new(root.path(), Vmid::new(100).unwrap());
        dir.create().unwrap();
        let golden = r#"{"format":1,"vmid":100,"epoch":3,"machine":"pc-i440fx-10.0","accel":"tcg","version":"10.0.2","cpus":2,
            "agent":true,"incoming":false,"taps":["tap100i0"],"cgroup":null,"argv":["-S"],"process":[7,99]}"#;
        std::fs::write(dir.meta(), golden).unwrap();
        let meta = dir.load().unwrap();
        assert_eq!((meta.epoch, meta.process), (Epoch(3), Some((7, 99))));
        dir.store(&meta).unwrap();
        assert_eq!(dir.load(), Some(meta));
        std::fs::write(dir.meta(), golden.replace(r#""format":1"#, r#""format":2"#)).unwrap();
        assert_eq!(dir.load(), None);
        assert_eq!(guests(root.path()), [Vmid::new(100).unwrap()]);
        dir.remove();
        assert_eq!(guests(root.path()), []);
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_at_once() {
        let long = Path::new("/tmp").join("x".repeat(100));
        let e = RunDir::new(&long, Vmid::new(100).unwrap()).create().unwrap_err();
        assert!(e.to_string().contains("too long"), "{e}");
    }
}
