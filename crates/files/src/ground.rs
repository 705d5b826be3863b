//! The folder under the mount.
//!
//! While nothing is mounted - the daemon is being started, replaced, or was ended - the path is an ordinary folder, and what is written
//! there would go to no cluster and stand in the way of the next mount. So the folder is made immutable (`chattr +i`) once it is mounted
//! over: nobody makes a file in it, and a mount does not mind. What lies there already is somebody's: it is named, and left alone.
//!
//! Which folder that is, is noted in the node's own folder: another path, or none, sets it free, and so does the package's removal.

use crate::keeper;
use crate::mount::MountError;
use rustix::fs::{FileType, IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The note's name in the node's folder.
pub const NOTE: &str = "files-at";
/// How many names are told of what lies there.
const NAMES: usize = 5;

fn failed(path: &Path, action: &'static str, source: io::Error) -> MountError {
    MountError::Failed { path: path.to_owned(), action, source }
}

/// A path as the kernel spells it, with all folders above it, which are made if need be: whatever links, dots and slashes lead there.
pub(crate) fn place(path: &Path) -> Result<PathBuf, MountError> {
    let cannot = |e| failed(path, "find it", e);
    match std::fs::canonicalize(path) {
        Ok(found) => Ok(found),
        // Not there, or what is mounted there is dead: then it is known by the folder above it.
        Err(e)
            if matches!(
                Errno::from_io_error(&e),
                Some(Errno::NOENT | Errno::NOTCONN | Errno::CONNABORTED)
            ) =>
        {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(cannot(e)) };
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            std::fs::create_dir_all(parent).map_err(|e| failed(path, "make the folders above it", e))?;
            Ok(std::fs::canonicalize(parent).map_err(cannot)?.join(name))
        }
        Err(e) => Err(cannot(e)),
    }
}

/// Whether a path is where a mount of its own begins.
fn is_mount(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.into_iter().any(|at| keeper::unescape(at) == path.as_os_str().as_bytes())
}

/// Makes a path ready and opens the folder: what an earlier daemon has left is taken away; what is somebody else's is not touched.
pub(crate) fn prepare(path: &Path) -> Result<OwnedFd, MountError> {
    let taken = |what: String| MountError::Taken { path: path.to_owned(), what };
    loop {
        match rustix::fs::stat(path) {
            Err(Errno::NOENT) => {
                std::fs::create_dir(path).map_err(|e| failed(path, "make the folder", e))?;
            }
            // Its daemon has died.
            Err(Errno::NOTCONN | Errno::CONNABORTED) => {
                unmount(path, UnmountFlags::DETACH)
                    .map_err(|e| failed(path, "take an old mount away", e.into()))?;
            }
            Err(e) => return Err(failed(path, "look at it", e.into())),
            Ok(_) if is_mount(path) => return Err(taken("something is mounted there".to_owned())),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                return Err(taken("it is no folder".to_owned()));
            }
            Ok(_) => {
                let held = std::fs::read_dir(path).map_err(|e| failed(path, "look into it", e))?;
                let mut names: Vec<String> =
                    held.flatten().take(NAMES + 1).map(|e| shown(&e.file_name())).collect();
                if names.is_empty() {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    return rustix::fs::open(path, flags, Mode::empty())
                        .map_err(|e| failed(path, "open the folder", e.into()));
                }
                let is_more = names.len() > NAMES;
                names.truncate(NAMES);
                names.sort();
                names.extend(is_more.then(|| "...".to_owned()));
                return Err(taken(format!(
                    "the folder is not empty, and what is in it is in no cluster: move away {}",
                    names.join(", ")
                )));
            }
        }
    }
}

fn shown(name: &OsStr) -> String {
    name.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).take(80).collect()
}

/// The folder under the mount of a daemon, and where it is noted.
#[derive(Debug)]
pub struct Ground {
    note: PathBuf,
    warned: AtomicBool,
}

impl Ground {
    /// Notes it in that folder.
    pub fn new(dir: &Path) -> Self {
        Self { note: dir.join(NOTE), warned: AtomicBool::new(false) }
    }

    fn noted(&self) -> Vec<PathBuf> {
        let lines = std::fs::read(&self.note).unwrap_or_default();
        let lines = lines.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| OsStr::from_bytes(line).into()).collect()
    }

    fn write(&self, paths: &[PathBuf]) -> io::Result<()> {
        let lines: Vec<u8> = paths.iter().flat_map(|p| [p.as_os_str().as_bytes(), b"\n"].concat()).collect();
        std::fs::write(&self.note, lines)
    }

    /// Sets the folders free that earlier daemons have held, but for that one.
    pub fn hold_none_but(&self, path: Option<&Path>) {
        let mut noted = self.noted();
        if noted.is_empty() {
            return;
        }
        let stays = path.and_then(|path| place(path).ok());
        noted.retain(|at| {
            let free = stays.as_ref() != Some(at);
            let failed = free.then(|| let_go(at)).and_then(Result::err);
            if let Some(e) = &failed {
                tracing::warn!("the folder {} cannot be set free (chattr -i): {e}", at.display());
            }
            !free || failed.is_some()
        });
        let noted = if noted.is_empty() { std::fs::remove_file(&self.note) } else { self.write(&noted) };
        if let Err(e) = noted {
            tracing::warn!("{}: {e}", self.note.display());
        }
    }

    /// Notes a folder, so that it is set free one day.
    fn note(&self, path: &Path) -> io::Result<()> {
        let mut noted = self.noted();
        if noted.iter().any(|at| at == path) {
            return Ok(());
        }
        noted.push(path.to_owned());
        self.write(&noted)
    }

    /// Holds a folder that is mounted over: nothing is made in it any more. That it can't be is said once.
    pub(crate) fn hold(&self, under: &OwnedFd, path: &Path) {
        // What nobody would set free again is not held.
        let held = self.note(path).map_err(|e| (self.note.as_path(), e)).and_then(|()| {
            let set =
                ioctl_getflags(under).and_then(|flags| ioctl_setflags(under, flags | IFlags::IMMUTABLE));
            set.map_err(|e| (path, e.into()))
        });
        if let Err((at, e)) = held
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "{} cannot be made immutable ({}: {e}): while the daemon does not run, what is written there goes to no cluster",
                path.display(),
                at.display()
            );
        }
    }
}

/// Sets a folder free, if it is there and nothing is mounted over it: it is an ordinary one again.
///
/// # Errors
/// If that cannot be changed.
pub fn let_go(path: &Path) -> io::Result<()> {
    if is_mount(path) {
        return Err(io::Error::other("something is mounted there"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    if is_held(&folder)? {
        ioctl_setflags(&folder, ioctl_getflags(&folder)? - IFlags::IMMUTABLE)?;
    }
    Ok(())
}

fn is_held(folder: impl AsFd) -> io::Result<bool> {
    match ioctl_getflags(folder) {
        Ok(flags) => Ok(flags.contains(IFlags::IMMUTABLE)),
        // A file system without such flags.
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_however_it_is_spelled() {
        let dir = tempfile::tempdir().unwrap();
        let top = std::fs::canonicalize(dir.path()).unwrap();
        let found = |path: &str| place(&top.join(path)).unwrap();
        assert_eq!(found("a/b/"), top.join("a/b"), "what is above it is made");
        assert!(top.join("a").is_dir() && !top.join("a/b").exists());
        assert_eq!(found("a/../a/./b"), top.join("a/b"));
        std::os::unix::fs::symlink("a", top.join("link")).unwrap();
        assert_eq!(found("link/b"), top.join("a/b"));
        std::fs::create_dir(top.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a/b", top.join("whole")).unwrap();
        assert_eq!((found("whole"), found("whole/")), (top.join("a/b"), top.join("a/b")));
        assert!(place(Path::new("/nowhere-at-all/..")).is_err());
    }

    #[test]
    fn what_lies_in_a_folder_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("storage.cfg"), "mine").unwrap();
        let said = prepare(dir.path()).unwrap_err().to_string();
        assert!(said.contains("not empty") && said.contains("move away storage.cfg)"), "{said}");
        for n in 0..9 {
            std::fs::write(dir.path().join(format!("f{n}\n")), "").unwrap();
        }
        let said = prepare(dir.path()).unwrap_err().to_string();
        assert!(said.contains("...") && !said.contains('\n'), "{said}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 10);
    }

    #[test]
    fn another_path_sets_the_old_one_free() {
        let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = std::fs::canonicalize(dir.path()).unwrap().join("pve");
        let ground = Ground::new(home.path());
        let under = prepare(&at).unwrap();
        ground.hold(&under, &at);
        if !is_held(&under).unwrap() {
            eprintln!("SKIP another_path_sets_the_old_one_free: no immutable folders here");
            assert!(std::env::var_os("STEAD_STRICT").is_none() || !rustix::process::geteuid().is_root());
            return;
        }
        assert!(std::fs::write(at.join("x"), "").is_err(), "root can't, either");
        ground.hold_none_but(Some(&dir.path().join("./pve/")));
        assert!(is_held(&under).unwrap());
        ground.hold_none_but(Some(Path::new("/elsewhere")));
        assert!(!is_held(&under).unwrap() && !home.path().join(NOTE).exists());
        std::fs::write(at.join("x"), "").unwrap();
        ground.hold_none_but(None);
    }
}
