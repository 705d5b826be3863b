//! Whether guests could use the directory now.
//!
//! That a directory can be opened says little: the kernel answers from its memory while the disk or the server behind it
//! is gone. So where guests' disks may lie a few bytes are written through to the medium (`O_DSYNC`), over and over in a
//! file of this instance's own folder in the spool. That finds what is read-only, answers errors, or hangs.
//!
//! The file is also how a directory is known again. Where a file system was mounted and is not any more, the directory
//! below it is as good as any; but it is another one, and without the folder.

use super::spool::FOLDER;
use super::{Answer, Inner};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;
use stead_driver::storage::{Content, Space, StorageError};

use super::beneath::Beneath;

/// Which directory it is: its file system and its number there.
pub(super) type Identity = (u64, u64);

const TEXT: &[u8] = b"A node writes this over and over, to see that it can.\n";

impl Inner {
    pub(super) fn probe(&self) -> Answer<Space> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            // What was never there may be made; what was there and is gone may not.
            self.activate()?;
        }
        let root = self.root()?;
        let what = "look at the directory";
        let stat = rustix::fs::fstat(root.fd()).map_err(|e| self.errno(what, e))?;
        let identity = (stat.st_dev, stat.st_ino);
        if self.options.content.iter().any(|c| matches!(c, Content::Images | Content::Rootdir)) {
            match self.write_through(&root, known.is_none_or(|k| k == identity)) {
                // Full, but there.
                Ok(()) | Err(StorageError::Full { .. }) => {}
                Err(e) => return Err(e),
            }
        } else {
            root.names(".").map_err(|e| self.errno(what, e))?;
        }
        *known = Some(identity);
        self.space_of(&root)
    }

    pub(super) fn space_of(&self, root: &Beneath) -> Answer<Space> {
        let s = rustix::fs::fstatvfs(root.fd()).map_err(|e| self.errno("read the free space", e))?;
        let total = s.f_blocks * s.f_frsize;
        let used = total - (s.f_bfree * s.f_frsize).min(total);
        Ok(Space { total, used, avail: s.f_bavail * s.f_frsize })
    }

    /// `same`: it is the directory that was seen last, or the first one.
    fn write_through(&self, root: &Beneath, same: bool) -> Answer<()> {
        let what = "write to the directory";
        let file = match self.own_file(root)? {
            Ok(file) => file,
            Err(Errno::NOENT) if same || root.dir(FOLDER).is_ok() => {
                // The folder was tidied away by somebody.
                *self.spool.lock().unwrap_or_else(PoisonError::into_inner) = None;
                self.own_file(root)?.map_err(|e| self.errno(what, e))?
            }
            Err(Errno::NOENT) => {
                let path = self.options.path.display();
                let why =
                    format!("directory '{path}' is another one than before: is its file system mounted?");
                return Err(StorageError::Unavailable { storage: self.id.clone(), why });
            }
            Err(e) => return Err(self.errno(what, e)),
        };
        file.write_all_at(TEXT, 0).map_err(|e| self.io(what, &e))
    }

    fn own_file(&self, root: &Beneath) -> Answer<Result<File, Errno>> {
        let name = self.spool(root)?.alive();
        Ok(root.file(&name, OFlags::WRONLY | OFlags::CREATE | OFlags::DSYNC, 0o600))
    }
}
