//! The VM driver: a guest is a QEMU process of its own.
//!
//! ```text
//!  driver ── launch ─▶ command (pure: configuration → command line) ─▶ process (own session, own cgroup)
//!    │                                                                    │
//!    ├── qmp ◀──── its own monitor ─────────────────────────────────── QEMU ──── monitor of the fence process
//!    └── watch ◀── pidfd: the end of the process, however it came ────────┘
//! ```
//!
//! The process belongs to the operating system: all that the driver knows of it lies in the run directory
//! (`meta.json`, pid file, sockets), from which a later daemon adopts it. QEMU is always started with
//! stopped CPUs; who gives the first push is not this driver's business.

pub mod accel;
mod agent;
mod balloon;
mod cgroup;
pub mod command;
mod copies;
mod cpu_group;
mod driver;
mod firmware;
mod guest;
mod helpers;
mod huge;
mod jobs;
mod launch;
mod lent;
mod migration;
mod net;
mod plug;
mod postcopy;
mod probe;
mod process;
pub mod qmp;
mod rundir;
mod share;
mod snapshots;
mod stats;
mod sys;
mod tpm;
mod tune;
mod vfio;

pub use accel::Accel;
pub use cgroup::find_cgroup_root;
pub use cpu_group::{CpuRoot, find_cpu_root};
pub use driver::QemuDriver;
pub use net::{Bridges, Forward};
pub use process::find_by_pidfile;

use std::path::PathBuf;

/// How guests are run on this node.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// Where each running guest has a directory. Its length is limited: sockets lie in it, whose paths have
    /// at most 107 bytes.
    pub run_dir: PathBuf,
    /// A cgroup (v2, or v1 freezer) below which each guest gets its own; see [`find_cgroup_root`].
    pub cgroup_root: Option<PathBuf>,
    /// Where guests get their share of the CPUs; see [`find_cpu_root`]. None: `cpulimit` and `cpuunits` are without effect.
    pub cpu_root: Option<CpuRoot>,
    /// The accelerator; none: KVM where it is usable, else TCG.
    pub accel: Option<Accel>,
    /// The program.
    pub binary: PathBuf,
    /// The program that is a guest's TPM.
    pub tpm: PathBuf,
    /// The program that carries a directory of the host's to a guest, virtiofsd; none: where the search path or packages have it.
    pub virtiofsd: Option<PathBuf>,
    /// How network devices with a bridge are attached.
    pub bridges: Bridges,
    /// Where the kernel tells of the host's devices: `/sys`.
    pub sys: PathBuf,
    /// Where its device files are: `/dev`.
    pub dev: PathBuf,
    /// A port of guests in a user-mode network that is reachable from outside.
    pub forward: Option<Forward>,
}

impl QemuOptions {
    /// The defaults, with `qemu-system-x86_64` and `swtpm` from the search path.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            cgroup_root: None,
            cpu_root: None,
            accel: None,
            binary: "qemu-system-x86_64".into(),
            tpm: tpm::program(),
            virtiofsd: None,
            bridges: Bridges::Auto,
            sys: "/sys".into(),
            dev: "/dev".into(),
            forward: None,
        }
    }
}
