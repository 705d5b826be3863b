//! How a guest's processes are frozen: a v2 cgroup, a v1 freezer, or stop signals where no cgroup can be written.
//!
//! Signals are the weaker way: they reach the guest's own process and none of its helpers, and anybody with its
//! uid can undo them.

use crate::process::Process;
use rustix::process::Signal;
use std::path::{Path, PathBuf};

/// The way in which one guest is frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Freezer {
    V2(PathBuf),
    V1(PathBuf),
    Signals,
}

impl Freezer {
    /// The strongest way there is. A cgroup counts only with the guest's process in it: freezing an empty one would
    /// be verified and mean nothing.
    pub fn find(cgroup: Option<&Path>, process: Option<&Process>) -> Self {
        let Some(dir) = cgroup.filter(|dir| process.is_none_or(|p| pids(dir).contains(&p.pid))) else {
            return Self::Signals;
        };
        if dir.join("cgroup.freeze").exists() {
            Self::V2(dir.to_owned())
        } else if dir.join("freezer.state").exists() {
            Self::V1(dir.to_owned())
        } else {
            Self::Signals
        }
    }

    /// Asks for the freeze. What counts is [`Self::is_frozen`].
    pub fn freeze(&self, process: Option<&Process>) -> std::io::Result<()> {
        match self {
            Self::V2(dir) => std::fs::write(dir.join("cgroup.freeze"), "1"),
            Self::V1(dir) => std::fs::write(dir.join("freezer.state"), "FROZEN"),
            Self::Signals => process.map_or(Ok(()), |p| p.signal(Signal::STOP)),
        }
    }

    /// Undoes it.
    pub fn thaw(&self, process: Option<&Process>) -> std::io::Result<()> {
        match self {
            Self::V2(dir) => std::fs::write(dir.join("cgroup.freeze"), "0"),
            Self::V1(dir) => std::fs::write(dir.join("freezer.state"), "THAWED"),
            Self::Signals => process.map_or(Ok(()), |p| p.signal(Signal::CONT)),
        }
    }

    /// Whether all of it is frozen now, by the kernel's own word.
    pub fn is_frozen(&self, process: Option<&Process>) -> bool {
        let read = |dir: &Path, file| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        match self {
            Self::V2(dir) => read(dir, "cgroup.events").lines().any(|l| l == "frozen 1"),
            Self::V1(dir) => read(dir, "freezer.state").trim() == "FROZEN",
            Self::Signals => process.is_some_and(Process::is_stopped),
        }
    }

    /// SIGKILL to all of it. A frozen v1 cgroup dies when it is thawed, a frozen v2 cgroup at once.
    pub fn kill(&self, process: Option<&Process>) -> std::io::Result<()> {
        match self {
            Self::V2(dir) if dir.join("cgroup.kill").exists() => std::fs::write(dir.join("cgroup.kill"), "1"),
            Self::V2(dir) | Self::V1(dir) => {
                let all: Vec<Process> = pids(dir).into_iter().filter_map(Process::of).collect();
                // One that ended meanwhile is no failure.
                all.iter().for_each(|p| drop(p.signal(Signal::KILL)));
                Ok(())
            }
            Self::Signals => process.map_or(Ok(()), |p| p.signal(Signal::KILL)),
        }
    }
}

/// Whether nobody is in a cgroup, or there is none.
pub(crate) fn is_empty(dir: &Path) -> bool {
    pids(dir).is_empty()
}

fn pids(dir: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).collect()
}
