//! Files of a directory that cannot lie outside of it.
//!
//! Every file is opened by the kernel's `openat2` with `RESOLVE_BENEATH`: neither `..` nor an absolute
//! symbolic link on the way can lead out, whoever planted it and whenever.

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// An open directory below which everything happens.
#[derive(Debug)]
pub struct Beneath {
    fd: OwnedFd,
    path: PathBuf,
}

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Repeats a lookup that raced with a rename, as `openat2` asks for.
fn again<T>(mut f: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    for _ in 0..32 {
        match f() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    f()
}

impl Beneath {
    /// Opens the directory at `path`.
    pub fn open(path: &Path) -> rustix::io::Result<Self> {
        let fd = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// The directory itself.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The path of something below, for other programs and for people.
    pub fn path(&self, below: &str) -> PathBuf {
        self.path.join(below)
    }

    /// Opens something below.
    pub fn at(&self, below: &str, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
        again(|| {
            rustix::fs::openat2(&self.fd, below, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode), RESOLVE)
        })
    }

    /// Opens a regular file below.
    pub fn file(&self, below: &str, flags: OFlags, mode: u32) -> rustix::io::Result<File> {
        // A FIFO planted under a volume's name must not block; regular files ignore the flag.
        let file = File::from(self.at(below, flags | OFlags::NONBLOCK, mode)?);
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if kind == rustix::fs::FileType::RegularFile { Ok(file) } else { Err(Errno::NOENT) }
    }

    /// Opens a directory below.
    pub fn dir(&self, below: &str) -> rustix::io::Result<Self> {
        Ok(Self { fd: self.at(below, OFlags::DIRECTORY, 0)?, path: self.path.join(below) })
    }

    /// Makes the directories of a path below that are missing.
    pub fn make_dirs(&self, below: &str) -> rustix::io::Result<()> {
        let mut done = String::new();
        for part in below.split('/').filter(|p| !p.is_empty()) {
            let parent = if done.is_empty() { None } else { Some(self.dir(&done)?) };
            let fd = parent.as_ref().map_or(&self.fd, |p| &p.fd);
            match rustix::fs::mkdirat(fd, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            if !done.is_empty() {
                done.push('/');
            }
            done.push_str(part);
        }
        Ok(())
    }

    /// Splits `a/b/c` into the open directory `a/b` and the name `c`.
    fn parent<'a>(&self, below: &'a str) -> rustix::io::Result<(OwnedFd, &'a str)> {
        match below.rsplit_once('/') {
            Some((dir, name)) => Ok((self.at(dir, OFlags::DIRECTORY, 0)?, name)),
            None => Ok((self.fd.try_clone().map_err(|_| Errno::MFILE)?, below)),
        }
    }

    /// Removes a file.
    pub fn unlink(&self, below: &str) -> rustix::io::Result<()> {
        let (dir, name) = self.parent(below)?;
        rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
        rustix::fs::fsync(&dir)
    }

    /// Removes a directory if it is empty.
    pub fn rmdir(&self, below: &str) -> rustix::io::Result<()> {
        let (dir, name) = self.parent(below)?;
        rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)
    }

    /// Gives the file `from` the name `to` in one step that survives a crash and never overwrites
    /// (`Errno::EXIST`), however many nodes try at once.
    pub fn publish(&self, from: &str, to: &str) -> rustix::io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        match rustix::fs::linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty()) {
            Ok(()) => rustix::fs::unlinkat(&from_dir, from_name, AtFlags::empty())?,
            // File systems without hard links (some FUSE and CIFS mounts).
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
                rustix::fs::renameat_with(&from_dir, from_name, &to_dir, to_name, RenameFlags::NOREPLACE)?;
            }
            Err(e) => return Err(e),
        }
        rustix::fs::fsync(&to_dir)
    }

    /// Gives the file `from` the name `to` too; never over what has it (`Errno::EXIST`). Where the file system knows no second names
    /// that is an error (`Errno::PERM`, `OPNOTSUPP`, `NOSYS`): whoever undoes it removes the second one.
    pub fn link(&self, from: &str, to: &str) -> rustix::io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        rustix::fs::linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty())?;
        rustix::fs::fsync(&to_dir)
    }

    /// Gives the file `from` the name `to` in one step that survives a crash, in the place of what has it.
    pub fn replace(&self, from: &str, to: &str) -> rustix::io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        rustix::fs::renameat(&from_dir, from_name, &to_dir, to_name)?;
        rustix::fs::fsync(&to_dir)
    }

    /// The names in a directory below, without `.` and `..`; none when it is missing.
    pub fn names(&self, below: &str) -> rustix::io::Result<Vec<OsString>> {
        let dir = match self.at(below, OFlags::DIRECTORY, 0) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(std::ffi::OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort();
        Ok(names)
    }
}
