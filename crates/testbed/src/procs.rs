//! The processes of a node: found by what they inherit from its daemon, stopped, gone on with, killed.
//!
//! A node's processes carry `STEAD_NODE_DIR` in their environment, which the daemon is started with and hands down to
//! the fence process and every guest. Whoever cleans its children's environment still names the node's folder in its
//! arguments. Nothing is ever found, or ended, by a program's name.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The variable that marks a node's processes; its value is the node's folder.
pub const NODE_DIR: &str = "STEAD_NODE_DIR";
/// The variable that marks all processes of a testbed; its value is the testbed's folder.
pub const BED_DIR: &str = "STEAD_TESTBED_DIR";

/// How long killed processes may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// How long a process may have a program and no arguments; one that was started without any has none for ever.
const ARGUMENTS_WITHIN: Duration = Duration::from_millis(500);

/// Runs a command to its end; an error, with its words, where it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(out.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

/// A process that runs (no zombie), as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its arguments, blanks between.
    pub command: String,
}

impl Process {
    /// Whether it is a guest's QEMU. One without a machine is asked by a daemon what it can do, and ends at once.
    pub fn is_qemu(&self) -> bool {
        let is_asked = self.command.contains(" -machine none ");
        self.program().is_some_and(|f| f.starts_with("qemu-system")) && !is_asked
    }

    /// Whether it is a node's fence process.
    pub fn is_fence(&self) -> bool {
        self.program() == Some("stead-fenced")
    }

    fn program(&self) -> Option<&str> {
        self.command.split(' ').next()?.rsplit('/').next()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            // It may have ended since it was seen.
            let _ = kill_process(pid, signal);
        }
    }
}

/// All processes of this machine.
pub fn all() -> Vec<Process> {
    pids().filter_map(|pid| Some(Process { pid, command: command_of(pid)? })).collect()
}

/// All processes that carry `variable=dir` or name a path below `dir` in their arguments, but for this one.
pub fn find(variable: &str, dir: &Path) -> Vec<Process> {
    let mark = [variable.as_bytes(), b"=", dir.as_os_str().as_encoded_bytes()].concat();
    let below = format!("{}/", dir.display());
    let me = rustix::process::getpid().as_raw_nonzero().get();
    pids().filter(|pid| *pid != me).filter_map(|pid| look(pid, &mark, &below)).collect()
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
}

/// Its arguments; none of a kernel thread or a zombie.
///
/// A process that is just becoming another program has none for a moment either, though whoever started it may know it by
/// then (exec(2) lets the parent go on before it has laid out the arguments). It has a program, which the others have not.
fn command_of(pid: i32) -> Option<String> {
    let begin = Instant::now();
    loop {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
        if !command.is_empty() {
            return Some(command);
        }
        if fs::read_link(format!("/proc/{pid}/exe")).is_err() || begin.elapsed() > ARGUMENTS_WITHIN {
            return None;
        }
        std::thread::yield_now();
    }
}

fn look(pid: i32, mark: &[u8], below: &str) -> Option<Process> {
    let command = command_of(pid)?;
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let marked = environ.split(|b| *b == 0).any(|v| v == mark);
    (marked || command.contains(below)).then_some(Process { pid, command })
}

/// Stops all processes of the node where they are.
pub fn freeze(variable: &str, dir: &Path) {
    // Twice: a process may have been made while the first round looked.
    for _ in 0..2 {
        find(variable, dir).iter().for_each(|p| p.signal(Signal::STOP));
    }
}

/// Lets them go on.
pub fn thaw(variable: &str, dir: &Path) {
    find(variable, dir).iter().for_each(|p| p.signal(Signal::CONT));
}

/// Kills them all and returns when none is left. They are stopped first, so that none acts on the death of another.
pub fn kill_all(variable: &str, dir: &Path) -> Result<()> {
    freeze(variable, dir);
    let begin = Instant::now();
    loop {
        let left = find(variable, dir);
        if left.is_empty() {
            return Ok(());
        }
        for process in &left {
            process.signal(Signal::KILL);
            thaw_cgroup(process.pid);
        }
        if begin.elapsed() > GONE_WITHIN {
            let names: Vec<String> = left.iter().map(|p| format!("{} ({})", p.pid, p.command)).collect();
            bail!("killed, but still there after {GONE_WITHIN:?}: {}", names.join("; "));
        }
        // The kernel tells nobody but the parent of a process's end.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A task in a frozen v1 cgroup dies only when it is thawed. The signal is pending by then, so it runs no instruction of
/// its program any more.
fn thaw_cgroup(pid: i32) {
    let Ok(groups) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return };
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if controllers.split(',').any(|c| c == "freezer") && path != "/" {
            let file = PathBuf::from(format!("/sys/fs/cgroup/freezer{path}/freezer.state"));
            if fs::read_to_string(&file).is_ok_and(|s| s.trim() != "THAWED") {
                let _ = fs::write(&file, "THAWED");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A process may be seen while it becomes another program, and then has no arguments for a moment.
    #[test]
    fn a_process_is_found_from_its_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..500 {
            let mut child = Command::new("sleep").arg("600").env(NODE_DIR, dir.path()).spawn().unwrap();
            let found = find(NODE_DIR, dir.path());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(found.len(), 1, "the {n}th was not found");
        }
    }

    #[test]
    fn a_node_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let mut parent = Command::new("sh")
            .args(["-c", "setsid sleep 600 & exec sleep 600"])
            .env(NODE_DIR, dir.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut other = Command::new("sleep").arg("600").env(NODE_DIR, "/elsewhere").spawn().unwrap();
        let begin = Instant::now();
        while find(NODE_DIR, dir.path()).iter().filter(|p| p.command == "sleep 600").count() < 2 {
            assert!(begin.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
        kill_all(NODE_DIR, dir.path()).unwrap();
        assert_eq!(find(NODE_DIR, dir.path()), []);
        assert!(!parent.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "another node's process was killed");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
