//! A guest's process, known by pid *and* start time, so that a pid used again is not taken for it.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub pid: i32,
    /// Start, in clock ticks since boot.
    start: u64,
}

/// State letter and start time of a process or thread.
fn stat(path: &str) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(path).ok()?;
    // The name in parentheses may hold anything, blanks and parentheses too.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

impl Process {
    /// The process whose pid the file names, if there is one now.
    pub fn from_pidfile(path: &Path) -> Option<Self> {
        Self::of(std::fs::read_to_string(path).ok()?.trim().parse().ok()?)
    }

    /// The process that has this pid now.
    pub fn of(pid: i32) -> Option<Self> {
        let (_, start) = stat(&format!("/proc/{pid}/stat")).filter(|_| pid > 0)?;
        Some(Self { pid, start }).filter(Self::is_alive)
    }

    /// Whether any of its threads still lives. A main thread that is gone does not make the process gone.
    pub fn is_alive(&self) -> bool {
        match stat(&format!("/proc/{}/stat", self.pid)) {
            Some((state, start)) if start == self.start => {
                !matches!(state, 'Z' | 'X') || self.threads().len() > 1
            }
            _ => false,
        }
    }

    /// Whether every thread is stopped by a signal.
    pub fn is_stopped(&self) -> bool {
        let threads = self.threads();
        !threads.is_empty() && threads.iter().all(|state| *state == 'T')
    }

    fn threads(&self) -> Vec<char> {
        let Ok(dir) = std::fs::read_dir(format!("/proc/{}/task", self.pid)) else { return Vec::new() };
        let path = |e: std::fs::DirEntry| e.path().join("stat").to_str().and_then(stat);
        dir.flatten().filter_map(path).map(|(state, _)| state).collect()
    }

    /// Sends a signal to this very process, never to another that has its pid now.
    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        let pid = Pid::from_raw(self.pid).ok_or(std::io::ErrorKind::InvalidInput)?;
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        if !self.is_alive() {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        Ok(pidfd_send_signal(fd, signal)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_too() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        std::fs::write(&file, format!("{}\n", child.id())).unwrap();
        let process = Process::from_pidfile(&file).unwrap();
        assert!(process.is_alive() && !process.is_stopped());
        let other = Process { start: process.start + 1, ..process };
        assert!(!other.is_alive());
        assert!(other.signal(Signal::KILL).is_err());
        assert!(process.is_alive());
        process.signal(Signal::KILL).unwrap();
        // Not reaped yet: a zombie is not alive.
        while process.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(Process::from_pidfile(&file).is_none());
    }
}
