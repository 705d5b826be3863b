//! A process of the operating system: started, found again, watched, killed.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};
use rustix::thread::CpuSet;
use tokio::io::unix::AsyncFd;

/// A process, known by a descriptor that no later process can take over.
#[derive(Debug)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Its start, in clock ticks since boot.
    pub start: u64,
    pidfd: AsyncFd<OwnedFd>,
}

/// What `/proc/PID/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `T`, `Z`, ...
    pub state: char,
    /// Time on CPUs, in clock ticks.
    pub ticks: u64,
    /// Start, in clock ticks since boot.
    pub start: u64,
    /// Who started it.
    parent: u32,
}

/// Reads `/proc/PID/stat`.
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        ticks: number(11)? + number(12)?,
        start: number(19)?,
        parent: u32::try_from(number(1)?).ok()?,
    })
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    // The kernel need not list them.
    pids().filter(|child| stat(*child).is_some_and(|s| s.parent == pid)).collect()
}

/// Every process.
fn pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

impl Process {
    /// Takes hold of a process by pid and, where known, start. Must be called within a tokio runtime.
    pub fn open(pid: u32, start: Option<u64>) -> io::Result<Self> {
        let process = Self::any(pid)?;
        // Read after the descriptor was opened: it is this very process, or it is gone.
        let same = start.is_none_or(|known| known == process.start);
        if same && !process.has_ended()? { Ok(process) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// The same for a child that nobody reaps meanwhile: it may have ended.
    fn any(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let pidfd = pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        let start = stat(pid).map_or(0, |s| s.start);
        // SAFETY: the descriptor is owned by the `AsyncFd`, whose contents nobody replaces or closes.
        let pidfd = unsafe { AsyncFd::register(pidfd) }?;
        Ok(Self { pid, start, pidfd })
    }

    /// Whether its last thread has ended. A first thread that is a zombie does not tell.
    fn has_ended(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
    }

    /// Returns when it has ended; at once if it has.
    pub async fn exited(&self) {
        // Readable is what a pidfd becomes at the end, and stays.
        if let Err(e) = self.pidfd.readable().await {
            tracing::error!(pid = self.pid, error = %e, "a process cannot be watched any more");
            std::future::pending::<()>().await;
        }
    }

    /// SIGKILL to this very process.
    pub fn kill(&self) -> io::Result<()> {
        self.send(Signal::KILL)
    }

    /// SIGTERM to this very process.
    pub fn terminate(&self) -> io::Result<()> {
        self.send(Signal::TERM)
    }

    fn send(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes its exit status, if it is a child of this process, so that no zombie stays.
    pub fn reap(&self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// How readily the kernel kills a process for want of memory.
const OOM_SCORE: &std::ffi::CStr = c"/proc/self/oom_score_adj";

/// A program to be started.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its path, or a name in the search path.
    pub binary: &'a Path,
    /// Its arguments.
    pub argv: &'a [String],
    /// Descriptors that it inherits under the same numbers.
    pub inherit: &'a [OwnedFd],
    /// Its cgroups' entrances.
    pub cgroups: Vec<File>,
    /// The CPUs that it may run on.
    pub affinity: Option<CpuSet>,
    /// Takes what it says.
    pub stderr: File,
}

impl Program<'_> {
    /// Starts it in a session of its own, as a member of its cgroups from its first instruction. Must be
    /// called within a tokio runtime.
    pub fn spawn(self) -> io::Result<Process> {
        let inherit: Vec<RawFd> = self.inherit.iter().map(AsRawFd::as_raw_fd).collect();
        let (cgroups, affinity) = (self.cgroups, self.affinity);
        let mut command = Command::new(self.binary);
        command
            .args(self.argv)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.stderr);
        let enter = move || {
            rustix::process::setsid()?;
            for fd in &inherit {
                // SAFETY: these descriptors are open: the parent holds them until `spawn` has returned.
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            for entrance in &cgroups {
                rustix::io::write(entrance, b"0")?;
            }
            if let Some(cpus) = &affinity {
                rustix::thread::sched_setaffinity(None, cpus)?;
            }
            // The service manager keeps the daemon from being killed for want of memory; its guests are no part of that.
            // Where it cannot be written nothing was inherited either.
            if let Ok(file) = rustix::fs::open(OOM_SCORE, OFlags::WRONLY, Mode::empty()) {
                let _ = rustix::io::write(file, b"0");
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only; it neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        let child = command.spawn()?;
        Process::any(child.id())
    }
}

/// Where the search path finds a program.
pub fn resolve(binary: &Path) -> PathBuf {
    if binary.components().count() > 1 {
        return binary.to_owned();
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join(binary)).find(|p| p.exists());
    found.unwrap_or_else(|| binary.to_owned())
}

/// Every process whose command line has the words `-pidfile PATH`, or `--pid file=PATH`, for a path below `root`: pid and path.
pub fn find_by_pidfile(root: &Path) -> Vec<(u32, PathBuf)> {
    let found = pids().filter_map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let path = pidfile_of(&line)?;
        path.starts_with(root).then_some((pid, path))
    });
    found.collect()
}

fn pidfile_of(cmdline: &[u8]) -> Option<PathBuf> {
    let mut words = cmdline.split(|b| *b == 0);
    let flag = words.find(|w| matches!(*w, b"-pidfile" | b"--pid"))?;
    let path = std::str::from_utf8(words.next()?).ok()?;
    if flag == b"-pidfile" { Some(path.into()) } else { path.strip_prefix("file=").map(Into::into) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_inherits_nothing_of_how_readily_the_daemon_is_killed() {
        let own = "/proc/self/oom_score_adj";
        let before = std::fs::read_to_string(own).unwrap();
        std::fs::write(own, "100").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let stderr = File::create(dir.path().join("stderr")).unwrap();
        let argv = ["600".to_owned()];
        let program = Program {
            binary: Path::new("sleep"),
            argv: &argv,
            inherit: &[],
            cgroups: vec![],
            affinity: None,
            stderr,
        };
        let process = program.spawn().unwrap();
        std::fs::write(own, before).unwrap();
        let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", process.pid)).unwrap();
        process.kill().unwrap();
        process.exited().await;
        process.reap();
        assert_eq!(score.trim(), "0");
    }

    #[test]
    fn a_stat_line_with_a_nasty_name() {
        let mut line = String::from("7 (a) b (c) T");
        for n in 1..40 {
            line.push_str(&format!(" {n}"));
        }
        assert_eq!(parse_stat(&line), Some(Stat { state: 'T', ticks: 11 + 12, start: 19, parent: 1 }));
        assert_eq!(parse_stat("7 (a"), None);
        assert_eq!(pidfile_of(b"qemu\0-pidfile\0/r/100/pid\0-S\0").unwrap(), Path::new("/r/100/pid"));
        assert_eq!(pidfile_of(b"swtpm\0--pid\0file=/r/100/tpm.pid\0").unwrap(), Path::new("/r/100/tpm.pid"));
        assert_eq!(pidfile_of(b"qemu\0-S\0"), None);
    }

    #[tokio::test]
    async fn a_process_is_watched_and_killed_and_its_pid_is_not_mistaken() {
        let log = tempfile::tempfile().unwrap();
        let argv = ["3600".to_owned()];
        let program = Program {
            binary: Path::new("sleep"),
            argv: &argv,
            inherit: &[],
            cgroups: vec![],
            affinity: None,
            stderr: log,
        };
        let process = program.spawn().unwrap();
        assert!(Process::open(process.pid, Some(process.start)).is_ok());
        assert!(Process::open(process.pid, Some(process.start + 1)).is_err());
        process.kill().unwrap();
        process.exited().await;
        assert!(Process::open(process.pid, None).is_err(), "a zombie is no process");
        process.reap();
        process.kill().expect("killing what is gone is no error");
    }
}
