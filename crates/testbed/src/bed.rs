//! A testbed's folder: where its nodes keep everything, and how leftovers of one that was killed are found.
//!
//! The folder is locked as long as its testbed lives. One that nobody holds belongs to a testbed that was killed: its
//! processes are ended (they carry the folder's path) and it is removed, by whoever starts the next testbed.

use crate::node::FILES;
use crate::procs;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, IFlags, Mode, OFlags, flock, ioctl_getflags, ioctl_setflags};
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const PREFIX: &str = "stead-bed-";

/// A folder that is removed, with all its processes, when dropped.
#[derive(Debug)]
pub struct Bed {
    dir: PathBuf,
    keep: bool,
    _lock: File,
}

impl Bed {
    /// Makes a folder with a short path: sockets lie in it, and their paths may have 108 bytes.
    pub fn make() -> Result<Self> {
        sweep();
        let base = std::env::temp_dir();
        for _ in 0..100 {
            let dir = base.join(format!("{PREFIX}{:06x}", rand::random_range(0..0x0100_0000)));
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => {
                    let lock = File::create(dir.join("lock"))?;
                    // Whoever sweeps just now may have taken it for a leftover: then another one is made.
                    let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
                    if locked && is_there(&dir, &lock) {
                        let keep = std::env::var_os("STEAD_KEEP").is_some_and(|v| v == "1");
                        return Ok(Self { dir, keep, _lock: lock });
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| format!("making {}", dir.display())),
            }
        }
        bail!("no free name for a testbed's folder in {}", base.display())
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps the folder, for its logs: after a failed test. Its processes are ended all the same.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(e) = procs::kill_all(procs::BED_DIR, &self.dir) {
            eprintln!("testbed {}: {e:#}", self.dir.display());
        } else if self.keep || std::thread::panicking() {
            let _ = fs::remove_file(self.dir.join("lock"));
            eprintln!("testbed: logs are kept in {}", self.dir.display());
        } else if let Err(e) = remove(&self.dir) {
            eprintln!("testbed {}: not removed: {e}", self.dir.display());
        }
    }
}

/// Whether a folder's lock is the one that is held.
fn is_there(dir: &Path, lock: &File) -> bool {
    let of = |m: &fs::Metadata| (m.dev(), m.ino());
    matches!((fs::metadata(dir.join("lock")), lock.metadata()), (Ok(a), Ok(b)) if of(&a) == of(&b))
}

/// Ends and removes what killed testbeds of this user have left.
fn sweep() {
    let me = rustix::process::geteuid().as_raw();
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for dir in
        entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX)).map(|e| e.path())
    {
        // Kept logs have no lock file.
        let Ok(lock) = File::open(dir.join("lock")) else { continue };
        let mine = fs::metadata(&dir).is_ok_and(|m| m.uid() == me);
        if mine
            && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && procs::kill_all(procs::BED_DIR, &dir).is_ok()
        {
            let _ = remove(&dir);
        }
    }
}

/// Removes a testbed's folder. Where nodes have shown the configuration as files, they have left folders in which nothing can be changed.
fn remove(dir: &Path) -> std::io::Result<()> {
    for held in fs::read_dir(dir)?.flatten().map(|node| node.path().join(FILES)) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(held) = rustix::fs::open(held, flags, Mode::empty()) else { continue };
        let _ = ioctl_getflags(&held).and_then(|set| ioctl_setflags(&held, set - IFlags::IMMUTABLE));
    }
    fs::remove_dir_all(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_testbed_left_is_swept_and_what_lives_is_not() {
        let living = Bed::make().unwrap();
        let killed = Bed::make().unwrap();
        let dir = killed.dir().to_owned();
        let mut child =
            std::process::Command::new("sleep").arg("600").env(procs::BED_DIR, &dir).spawn().unwrap();
        // A kill leaves the folder and the process, and frees the lock.
        flock(&killed._lock, FlockOperation::Unlock).unwrap();
        std::mem::forget(killed);
        let next = Bed::make().unwrap();
        assert!(!child.wait().unwrap().success());
        // Another program's sweep may have been quicker, and be at it still.
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while dir.exists() && std::time::Instant::now() < limit {
            std::thread::yield_now();
        }
        assert!(!dir.exists() && living.dir().exists() && next.dir().exists());
    }

    /// Several programs begin at once, each of which sweeps.
    #[test]
    fn a_folder_that_is_being_made_is_no_leftover() {
        let make = || (0..200).map(|_| Bed::make().unwrap()).all(|bed| bed.dir().join("lock").exists());
        std::thread::scope(|all| {
            let made: Vec<_> = (0..4).map(|_| all.spawn(make)).collect();
            assert!(made.into_iter().all(|made| made.join().unwrap()));
        });
    }
}
