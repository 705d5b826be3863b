//! What is known of files by number: the names that the kernel knows, what is open, and drafts.

use crate::files::{Attr, TOP};
use crate::special::Special;
use bytes::Bytes;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;
use stead_conf::Revision;

pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dirt {
    Clean,
    /// New or emptied, and nothing written since.
    Made,
    Written,
}

#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) data: Vec<u8>,
    /// The version that it began with; none: the file is new.
    pub(crate) base: Option<Revision>,
    pub(crate) dirt: Dirt,
    /// Grows with each change.
    pub(crate) version: u64,
    /// The change that was refused last.
    pub(crate) refused: Option<u64>,
    /// Something of it was committed since it was opened: what others do from then on is a conflict, not what is changed.
    pub(crate) kept: bool,
    /// A write was told to have failed, and may be missing: nothing of the draft is committed any more.
    pub(crate) spoiled: bool,
    pub(crate) writers: u32,
    pub(crate) changed: SystemTime,
}

#[derive(Debug)]
pub(crate) struct Inode {
    /// None once it was removed or replaced.
    pub(crate) path: Option<String>,
    pub(crate) lookups: u64,
    pub(crate) handles: u32,
    pub(crate) draft: Option<Draft>,
    /// What was told of it last: what is told once it has no path.
    pub(crate) last: Option<Attr>,
    /// Held while its draft is committed, or its name changes.
    pub(crate) turn: Arc<Mutex<()>>,
    /// What was listed last of a folder, as long as somebody has that open.
    pub(crate) names: Weak<Vec<String>>,
}

#[derive(Debug)]
pub(crate) enum Handle {
    Read { ino: u64, data: Bytes },
    Write { ino: u64 },
    Listing { ino: u64, names: Arc<Vec<String>> },
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) inodes: HashMap<u64, Inode>,
    pub(crate) by_path: HashMap<String, u64>,
    /// Paths of new files that are not in the tree yet.
    pub(crate) fresh: BTreeSet<String>,
    pub(crate) handles: HashMap<u64, Handle>,
    pub(crate) next_ino: u64,
    pub(crate) next_handle: u64,
    pub(crate) times: HashMap<String, (Revision, SystemTime)>,
    pub(crate) errors: VecDeque<String>,
    /// What was made last of each: many who read it have it once.
    pub(crate) made: BTreeMap<Special, Bytes>,
}

impl State {
    pub(crate) fn ino(&mut self, path: &str) -> u64 {
        if let Some(ino) = self.by_path.get(path) {
            return *ino;
        }
        self.next_ino += 1;
        let (ino, path) = (self.next_ino, path.to_owned());
        let path_too = Some(path.clone());
        self.by_path.insert(path, ino);
        let inode = Inode {
            path: path_too,
            lookups: 0,
            handles: 0,
            draft: None,
            last: None,
            turn: Arc::default(),
            names: Weak::new(),
        };
        self.inodes.insert(ino, inode);
        ino
    }

    pub(crate) fn path(&self, ino: u64) -> Result<String, Errno> {
        self.inodes.get(&ino).and_then(|i| i.path.clone()).ok_or(Errno::NOENT)
    }

    pub(crate) fn draft_at(&self, path: &str) -> Option<&Draft> {
        self.inodes.get(self.by_path.get(path)?)?.draft.as_ref()
    }

    pub(crate) fn draft(&mut self, ino: u64) -> Option<&mut Draft> {
        self.inodes.get_mut(&ino)?.draft.as_mut()
    }

    pub(crate) fn handle(&mut self, handle: Handle) -> u64 {
        let (Handle::Read { ino, .. } | Handle::Write { ino } | Handle::Listing { ino, .. }) = &handle;
        if let Some(inode) = self.inodes.get_mut(ino) {
            inode.handles += 1;
        }
        self.next_handle += 1;
        self.handles.insert(self.next_handle, handle);
        self.next_handle
    }

    /// The same bytes as were made last, if these are the same.
    pub(crate) fn share(&mut self, special: Special, data: Bytes) -> Bytes {
        let last = self.made.entry(special).or_default();
        if *last != data {
            *last = data;
        }
        last.clone()
    }

    /// The same names as others have open of a folder, if these are the same.
    pub(crate) fn share_names(&mut self, ino: u64, names: Vec<String>) -> Arc<Vec<String>> {
        let Some(inode) = self.inodes.get_mut(&ino) else { return Arc::new(names) };
        if let Some(last) = inode.names.upgrade().filter(|last| **last == names) {
            return last;
        }
        let names = Arc::new(names);
        inode.names = Arc::downgrade(&names);
        names
    }

    /// The name is gone or means another file: whoever has the old one open keeps that.
    pub(crate) fn unlink(&mut self, path: &str) {
        self.fresh.remove(path);
        self.times.remove(path);
        if let Some(ino) = self.by_path.remove(path) {
            if let Some(inode) = self.inodes.get_mut(&ino) {
                inode.path = None;
            }
            self.forget_if_unused(ino);
        }
    }

    pub(crate) fn forget_if_unused(&mut self, ino: u64) {
        let used = |i: &Inode| i.lookups > 0 || i.handles > 0;
        if ino != TOP && self.inodes.get(&ino).is_some_and(|i| !used(i)) {
            let path = self.inodes.remove(&ino).and_then(|i| i.path);
            if let Some(path) = path {
                self.by_path.remove(&path);
                self.fresh.remove(&path);
                self.times.remove(&path);
            }
        }
    }
}

impl Draft {
    pub(crate) fn begin(data: Vec<u8>, base: Option<Revision>, dirt: Dirt) -> Self {
        Self {
            data,
            base,
            dirt,
            version: 0,
            refused: None,
            kept: false,
            spoiled: false,
            writers: 1,
            changed: now(),
        }
    }

    /// Takes what is committed, unless something was changed.
    pub(crate) fn refresh(&mut self, found: Option<(Bytes, Revision)>) {
        if self.dirt == Dirt::Clean {
            self.kept = false;
        }
        if let (Dirt::Clean, Some((data, revision))) = (self.dirt, found)
            && (self.base != Some(revision) || self.data != data)
        {
            self.base = Some(revision);
            self.data = data.to_vec();
        }
    }

    pub(crate) fn resize(&mut self, size: usize) {
        if self.data.len() != size {
            self.data.resize(size, 0);
            self.touch(if size == 0 { Dirt::Made } else { Dirt::Written });
        }
    }

    pub(crate) fn touch(&mut self, dirt: Dirt) {
        self.dirt = dirt;
        self.version += 1;
        self.changed = now();
    }
}
