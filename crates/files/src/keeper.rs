//! The keeper: a process that does nothing but watch over a mount, so that no reader hangs with the daemon.
//!
//! It asks the mount for something each second. If no answer comes for [`SILENCE`] - the daemon is stopped, starved, or hangs so that not
//! even its clock answers - it has the kernel end the connection: all who wait get an error at once, and so does whoever comes later. The
//! daemon mounts anew when it is back. If the daemon dies, its end of the pipe closes, and the mount is taken away, so that the path is an
//! empty folder instead of an error.

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a mount may give no answer.
pub const SILENCE: Duration = Duration::from_secs(10);
/// How often it is asked.
const PERIOD: Duration = Duration::from_secs(1);
/// What the daemon's program is called with to be a keeper.
const WORD: &str = "files-keeper";

/// How a keeper is started: a program and its first arguments; mount point and limit in milliseconds follow.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program.
    pub program: PathBuf,
    /// What comes first.
    pub args: Vec<OsString>,
    /// How long the mount may give no answer.
    pub silence: Duration,
}

impl Program {
    /// This program, which calls [`be_one_if_asked`] first of all.
    ///
    /// # Errors
    /// If the program's path is not known.
    pub fn this() -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, args: vec![WORD.into()], silence: SILENCE })
    }

    /// Starts one over a mount. It ends when its standard input does, which the child holds.
    pub(crate) fn start(&self, path: &Path) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg(path).arg(self.silence.as_millis().to_string());
        // It must outlive a signal to the daemon's group, or it could not tidy up.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
    }
}

/// If this process was started to be a keeper, it is one, and ends here.
pub fn be_one_if_asked() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_none_or(|word| word != WORD) {
        return;
    }
    let (Some(path), Some(ms)) = (args.next(), args.next().and_then(|ms| ms.to_str()?.parse().ok())) else {
        std::process::exit(2);
    };
    keep(Path::new(&path), Duration::from_millis(ms));
    std::process::exit(0);
}

enum News {
    Answered,
    /// The mount is not there any more, or ends.
    Gone,
    /// Something else lies over it.
    Covered,
    DaemonEnded,
}

/// Keeps a mount until the daemon, at the other end of standard input, ends, or the mount does.
pub fn keep(path: &Path, silence: Duration) {
    let mine = which(path);
    let (tell, hear) = channel();
    let (asker, asked) = (tell.clone(), path.to_owned());
    let device = Arc::new(AtomicU64::new(0));
    let found = device.clone();
    std::thread::spawn(move || {
        loop {
            // Nothing that the kernel could answer by itself.
            let news = match rustix::fs::statvfs(&asked) {
                Ok(_) => match rustix::fs::stat(&asked) {
                    Ok(stat)
                        if found.load(Ordering::Relaxed) == 0
                            || found.load(Ordering::Relaxed) == stat.st_dev =>
                    {
                        found.store(stat.st_dev, Ordering::Relaxed);
                        News::Answered
                    }
                    Ok(_) => News::Covered,
                    Err(_) => News::Gone,
                },
                // Those are answers, too.
                Err(Errno::IO | Errno::ACCESS) => News::Answered,
                Err(_) => News::Gone,
            };
            let is_last = matches!(news, News::Gone | News::Covered);
            if asker.send(news).is_err() || is_last {
                return;
            }
            std::thread::sleep(PERIOD.min(silence / 4));
        }
    });
    std::thread::spawn(move || {
        // Nothing is ever written to it.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = tell.send(News::DaemonEnded);
    });
    let mut until = Instant::now() + silence;
    loop {
        match hear.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(News::Answered) => until = Instant::now() + silence,
            // Nobody reaches it, and it is not there to be asked; it ends with the daemon all the same.
            Ok(News::Covered) => until = Instant::now() + Duration::from_secs(u64::from(u32::MAX)),
            // The connection has ended, or the daemon has: a dead mount would be an error to all who look.
            Ok(News::Gone | News::DaemonEnded) => return end(path, mine.as_ref()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                eprintln!("stead: the files at {} do not answer: they are taken away", path.display());
                return end(path, mine.as_ref());
            }
        }
    }
}

/// A mount of ours, as the kernel tells it from others: its number, and the device by which it knows the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Which {
    id: String,
    minor: String,
}

/// The mount of ours that was made last at a path, if nothing else was made over it.
pub(crate) fn which(path: &Path) -> Option<Which> {
    find(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, path)
}

fn find(mounts: &str, path: &Path) -> Option<Which> {
    let at = |line: &&str| {
        line.split(' ').nth(4).is_some_and(|at| unescape(at).as_slice() == path.as_os_str().as_bytes())
    };
    let last = mounts.lines().rev().find(at)?;
    let ours = last.split(" - ").nth(1).is_some_and(|t| t.starts_with(crate::mount::TYPE));
    let mut words = last.split(' ');
    let (id, device) = (words.next()?, words.nth(1)?);
    ours.then(|| Some(Which { id: id.to_owned(), minor: device.split_once(':')?.1.to_owned() }))?
}

/// Ends the connection behind a mount, so that all who wait are answered, and takes the mount away; not one that another daemon has made
/// there since.
pub(crate) fn end(path: &Path, mine: Option<&Which>) {
    let Some(mine) = mine else { return };
    // By the kernel's own file for it, where those are mounted.
    let _ = std::fs::write(format!("/sys/fs/fuse/connections/{}/abort", mine.minor), b"1");
    // And where they are not, by force.
    if which(path).as_ref() == Some(mine)
        && unmount(path, UnmountFlags::FORCE | UnmountFlags::DETACH).is_err()
    {
        let _ = unmount(path, UnmountFlags::DETACH);
    }
}

/// A path as the kernel writes it in lists of mounts.
pub(crate) fn unescape(word: &str) -> Vec<u8> {
    let bytes = word.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let code = octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_of_a_mount_is_found() {
        let mounts = "22 1 0:21 / /proc rw - proc proc rw\n\
            40 1 0:55 / /etc/pve rw,nosuid - fuse.stead stead rw,user_id=0\n\
            41 1 0:56 / /with\\040blank rw - fuse.stead stead rw\n\
            42 1 0:57 / /other rw - fuse.stead x rw\n\
            43 1 0:58 / /other rw - fuse.sshfs x rw\n";
        let found = |path: &str| find(mounts, Path::new(path)).map(|w| (w.id, w.minor));
        assert_eq!(found("/etc/pve"), Some(("40".into(), "55".into())));
        assert_eq!(found("/with blank"), Some(("41".into(), "56".into())));
        assert_eq!(found("/other"), None, "somebody else's lies over it");
        assert_eq!(found("/none"), None);
    }
}
