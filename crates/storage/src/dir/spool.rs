//! Where files are made before they get a volume's name.
//!
//! `.stead-spool/UUID/` lies on the storage's own file system, so that giving a name is one step. Each
//! driver instance has a folder of its own and holds a lock on its `lock` file as long as it lives: a folder
//! whose lock is free was left by a daemon that died, and the next start removes it. On a shared directory a
//! free lock is not enough, since a network file system may keep locks to one node: there the folder must
//! also have been at rest for [`REST`].

use super::beneath::Beneath;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// The hidden folder below the storage's directory.
pub const FOLDER: &str = ".stead-spool";
const LOCK: &str = "lock";
/// Written over and over, to see that it can be.
const ALIVE: &str = "alive";
/// Nobody uploads or writes zeros for that long without touching the file.
const REST: Duration = Duration::from_secs(900);

/// This instance's folder, locked.
#[derive(Debug)]
pub struct Spool {
    base: PathBuf,
    name: String,
    _lock: File,
}

impl Spool {
    /// Makes a folder and locks it.
    pub fn create(root: &Beneath, base: &Path) -> rustix::io::Result<Self> {
        let name = format!("{FOLDER}/{}", Uuid::new_v4());
        root.make_dirs(&name)?;
        let lock =
            root.file(&format!("{name}/{LOCK}"), OFlags::CREATE | OFlags::EXCL | OFlags::RDWR, 0o600)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            // A file system without locks: others go by the rest time then.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => {}
            Err(e) => return Err(e),
        }
        Ok(Self { base: base.to_owned(), name, _lock: lock })
    }

    /// A name for a new file, relative to the storage's directory.
    pub fn fresh(&self) -> String {
        format!("{}/{}", self.name, Uuid::new_v4())
    }

    /// The file of this instance's own that is written to see that the storage can be, relative to its directory.
    pub fn alive(&self) -> String {
        format!("{}/{ALIVE}", self.name)
    }

    /// The relative name of a spooled file, if `path` is one of this instance's.
    pub fn own(&self, path: &Path) -> Option<String> {
        let folder = self.base.join(&self.name);
        let file = path.strip_prefix(&folder).ok()?.to_str()?;
        let plain = !file.is_empty()
            && !file.contains('/')
            && !file.starts_with('.')
            && ![LOCK, ALIVE].contains(&file);
        plain.then(|| format!("{}/{file}", self.name))
    }
}

impl Drop for Spool {
    /// Removes the folder when nothing is spooled; what is left goes at the next start.
    fn drop(&mut self) {
        let Ok(root) = Beneath::open(&self.base) else { return };
        // Without probes there is none.
        let _ = root.unlink(&self.alive());
        if root.names(&self.name).is_ok_and(|n| n.len() == 1)
            && root.unlink(&format!("{}/{LOCK}", self.name)).is_ok()
        {
            let _ = root.rmdir(&self.name);
        }
    }
}

/// Removes the folders of instances that are gone. Returns how many files that freed.
pub fn sweep(root: &Beneath, shared: bool) -> rustix::io::Result<usize> {
    let mut removed = 0;
    for name in root.names(FOLDER)? {
        let Some(name) = name.to_str().filter(|n| Uuid::parse_str(n).is_ok()) else { continue };
        let folder = format!("{FOLDER}/{name}");
        if abandoned(root, &folder, shared)? {
            for file in root.names(&folder)? {
                let Some(file) = file.to_str() else { continue };
                match root.unlink(&format!("{folder}/{file}")) {
                    Ok(()) => removed += usize::from(![LOCK, ALIVE].contains(&file)),
                    Err(Errno::NOENT) => {}
                    Err(e) => return Err(e),
                }
            }
            match root.rmdir(&folder) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(removed)
}

fn abandoned(root: &Beneath, folder: &str, shared: bool) -> rustix::io::Result<bool> {
    match root.file(&format!("{folder}/{LOCK}"), OFlags::RDWR, 0) {
        Ok(lock) => match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if !shared => return Ok(true),
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => {}
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(e) => return Err(e),
        },
        // Without a lock file it is being made or being removed right now, or a sweep was cut short.
        Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    at_rest(root, folder)
}

fn at_rest(root: &Beneath, folder: &str) -> rustix::io::Result<bool> {
    let mut newest = modified(&File::from(root.at(folder, OFlags::DIRECTORY, 0)?));
    for file in root.names(folder)? {
        if let Some(file) = file.to_str()
            && let Ok(file) = root.file(&format!("{folder}/{file}"), OFlags::RDONLY, 0)
        {
            newest = newest.max(modified(&file));
        }
    }
    Ok(newest.is_some_and(|t| SystemTime::now().duration_since(t).is_ok_and(|d| d > REST)))
}

fn modified(file: &File) -> Option<SystemTime> {
    file.metadata().and_then(|m| m.modified()).ok()
}
