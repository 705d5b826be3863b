//! Open files, and what was written to them and is not committed yet.
//!
//! An inode is a name that the kernel or an open file knows. What is written to it is its *draft*, one for all who have it open:
//!
//! ```text
//!  opened to write ──▶ clean ──written──▶ written ──close, fsync──▶ committed: clean
//!                        ▲ └──made, emptied──▶ made ──last close, fsync──▶ committed
//!                        └── refused: the draft stays until the last close, and is then gone
//! ```
//!
//! A draft names the version that it began with; over any other its commit is refused (`EBUSY`). The state's lock is never held while
//! something is committed; an inode's turn is, so that two closes of one file do not meet.

use crate::inodes::{Dirt, Draft, Handle, State, now};
use crate::layout::{self, Kind};
use crate::special::{self, Special};
use crate::store::Store;
use bytes::Bytes;
use rustix::io::Errno;
use serde_json::json;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stead_conf::{Entry, MAX_FILE, MAX_TREE, Revision, check_path};
use stead_ops::files::{FileChange, FileFault, Why, may_touch};

/// What a call answers.
pub type Answer<T> = Result<T, Errno>;

/// The top's inode.
pub const TOP: u64 = 1;
/// How many refusals are remembered.
const ERRORS: usize = 20;

/// What is told of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Mode bits.
    pub perm: u16,
    /// When it was written last.
    pub modified: SystemTime,
}

/// How much of the room is taken, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All.
    pub total: u64,
    /// Taken.
    pub used: u64,
    /// How many files there are.
    pub files: u64,
}

/// What a file that is opened to write begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// What it has.
    AsItIs,
    /// Nothing.
    Emptied,
}

/// When a draft is committed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// A descriptor was closed.
    Close,
    /// Somebody asked for it.
    Now,
    /// The last descriptor was: what was refused before is not tried again.
    Last,
}

/// The files of a node.
pub struct Files<S> {
    store: S,
    state: Mutex<State>,
    /// The time of what has none.
    started: SystemTime,
}

fn errno(why: Why) -> Errno {
    match why {
        Why::Invalid => Errno::INVAL,
        Why::Never => Errno::PERM,
        Why::NoQuorum => Errno::ACCESS,
        Why::Busy => Errno::BUSY,
        Why::Exists => Errno::EXIST,
        Why::Missing => Errno::NOENT,
        Why::FileSize => Errno::FBIG,
        Why::TreeSize => Errno::NOSPC,
        Why::Unknown => Errno::IO,
    }
}

impl<S: Store> Files<S> {
    /// Nothing is open.
    pub fn new(store: S) -> Self {
        let mut state = State { next_ino: TOP - 1, ..State::default() };
        state.ino("");
        Self { store, state: Mutex::new(state), started: now() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, path: &str) -> Option<Kind> {
        let mut found = None;
        self.store.view(&mut |tree| found = layout::look(tree, path, self.store.me()));
        found
    }

    fn entry(&self, path: &str) -> Option<Entry> {
        let mut found = None;
        self.store.view(&mut |tree| found = tree.get(path).cloned());
        found
    }

    /// A file's content, and which version that is.
    fn content(&self, path: &str) -> Answer<Option<(Bytes, Revision)>> {
        let Some(entry) = self.entry(path) else { return Ok(None) };
        let data = self.store.open(path, &entry.data).map_err(|fault| self.refused(&fault))?;
        Ok(Some((data, entry.revision)))
    }

    /// Notes why something was refused, for the log and for who asks.
    pub(crate) fn refused(&self, fault: &FileFault) -> Errno {
        tracing::warn!("{fault}");
        let at = now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut state = self.state();
        state.errors.push_front(format!("{at} {fault}\n"));
        state.errors.truncate(ERRORS);
        errno(fault.why)
    }

    fn must_be_writable(&self) -> Answer<()> {
        if self.store.is_writable() { Ok(()) } else { Err(Errno::ACCESS) }
    }

    fn may_touch(&self, path: &str) -> Answer<()> {
        may_touch(path).map_err(|fault| self.refused(&fault))
    }

    pub(crate) fn child(&self, parent: u64, name: &OsStr) -> Answer<String> {
        let name = name.to_str().ok_or(Errno::INVAL)?;
        if name.len() > 255 {
            return Err(Errno::NAMETOOLONG);
        }
        let folder = self.state().path(parent)?;
        let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        check_path(&path).map_err(|_| Errno::INVAL)?;
        Ok(path)
    }

    fn modified(&self, path: &str, kind: &Kind) -> SystemTime {
        let Kind::File { revision, .. } = kind else { return self.started };
        if let Some((seen, at)) = self.state().times.get(path)
            && seen == revision
        {
            return *at;
        }
        let known = self.store.modified_ms(path, *revision).map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
        // Two versions of one millisecond differ, too: programs tell by the time that a file has changed.
        let at = known.unwrap_or(self.started) + Duration::from_nanos(revision.0 % 1_000_000);
        self.state().times.insert(path.to_owned(), (*revision, at));
        at
    }

    /// `known`: the kernel will count it as looked up.
    fn attr_of(&self, path: &str, known: bool) -> Answer<Attr> {
        let kind = self.look(path);
        let draft = {
            let state = self.state();
            state
                .draft_at(path)
                .filter(|d| d.dirt != Dirt::Clean || kind.is_none())
                .map(|d| (d.data.len(), d.changed))
        };
        let writable = self.store.is_writable();
        let (kind, size, modified) = match (kind, draft) {
            (None, None) => return Err(Errno::NOENT),
            (kind, Some((size, changed))) => {
                let kind = kind.unwrap_or(Kind::File { revision: Revision(0), stored: size });
                (kind, size as u64, changed)
            }
            (Some(kind), None) => {
                let size = match &kind {
                    Kind::Folder => 0,
                    Kind::Link(to) => to.len() as u64,
                    Kind::Special(special) => self.made(*special).len() as u64,
                    Kind::File { .. } if path.starts_with("priv/") => {
                        self.content(path)?.map_or(0, |(data, _)| data.len() as u64)
                    }
                    Kind::File { stored, .. } => *stored as u64,
                };
                let modified = self.modified(path, &kind);
                (kind, size, modified)
            }
        };
        let perm = layout::permissions(path, &kind, writable);
        let mut state = self.state();
        let ino = state.ino(path);
        let attr = Attr { ino, kind, size, perm, modified };
        if let Some(inode) = state.inodes.get_mut(&ino) {
            inode.last = Some(attr.clone());
            inode.lookups += u64::from(known);
        }
        Ok(attr)
    }

    /// A name in a folder. The kernel knows its inode from now on, until it says otherwise.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Answer<Attr> {
        let path = self.child(parent, name)?;
        self.attr_of(&path, true)
    }

    /// The kernel has forgotten an inode as often as that.
    pub fn forget(&self, ino: u64, times: u64) {
        let mut state = self.state();
        if let Some(inode) = state.inodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(times);
        }
        state.forget_if_unused(ino);
    }

    /// What is known of an inode.
    pub fn attr(&self, ino: u64) -> Answer<Attr> {
        let path = self.state().path(ino);
        match path {
            Ok(path) => self.attr_of(&path, false),
            Err(gone) => {
                let mut state = self.state();
                let size = state.draft(ino).map(|d| d.data.len() as u64);
                let last = state.inodes.get(&ino).and_then(|i| i.last.clone()).ok_or(gone)?;
                Ok(Attr { size: size.unwrap_or(last.size), ..last })
            }
        }
    }

    /// Where a link leads.
    pub fn link(&self, ino: u64) -> Answer<String> {
        let path = self.state().path(ino)?;
        match self.look(&path) {
            Some(Kind::Link(to)) => Ok(to),
            _ => Err(Errno::INVAL),
        }
    }

    fn made(&self, special: Special) -> Bytes {
        let facts = || self.store.facts();
        let mut value = json!(null);
        match special {
            Special::LastError => return self.state().errors.iter().cloned().collect::<String>().into(),
            Special::ClusterLog => value = json!({"data": self.store.log()}),
            Special::Members => {
                let facts = facts();
                self.store.view(&mut |tree| value = special::members(tree, &facts, self.store.me()));
            }
            Special::VmList => self.store.view(&mut |tree| value = special::vm_list(tree)),
            Special::Version => {
                let facts = facts();
                self.store.view(&mut |tree| value = special::version(tree, &facts));
            }
        }
        format!("{value}\n").into()
    }

    /// Opens a file, to write if that is said, and emptied if that is. One that is open to read stays the version that it was.
    pub fn open(&self, ino: u64, write: Option<Begin>) -> Answer<u64> {
        let path = self.state().path(ino)?;
        let kind = self.look(&path);
        if let Some(begin) = write {
            return self.open_to_write(ino, &path, kind.as_ref(), begin);
        }
        let data = match kind {
            Some(Kind::Special(special)) => {
                let data = self.made(special);
                self.state().share(special, data)
            }
            Some(Kind::Folder) => return Err(Errno::ISDIR),
            Some(Kind::Link(_)) => return Err(Errno::LOOP),
            Some(Kind::File { .. }) | None => match self.content(&path)? {
                Some((data, _)) => data,
                // It may be new, and not in the tree yet.
                None => self.state().draft_at(&path).map(|_| Bytes::new()).ok_or(Errno::NOENT)?,
            },
        };
        Ok(self.state().handle(Handle::Read { ino, data }))
    }

    fn open_to_write(&self, ino: u64, path: &str, kind: Option<&Kind>, begin: Begin) -> Answer<u64> {
        match kind {
            Some(Kind::Folder) => return Err(Errno::ISDIR),
            Some(Kind::Special(_) | Kind::Link(_)) => return Err(Errno::PERM),
            Some(Kind::File { .. }) | None => {}
        }
        self.may_touch(path)?;
        self.must_be_writable()?;
        let found = self.content(path)?;
        let mut state = self.state();
        match (state.draft(ino), found) {
            (Some(draft), found) => {
                draft.refresh(found);
                draft.writers += 1;
            }
            (None, Some((data, revision))) => {
                let draft = Draft::begin(data.to_vec(), Some(revision), Dirt::Clean);
                state.inodes.get_mut(&ino).ok_or(Errno::NOENT)?.draft = Some(draft);
            }
            (None, None) => return Err(Errno::NOENT),
        }
        if let (Begin::Emptied, Some(draft)) = (begin, state.draft(ino)) {
            draft.resize(0);
        }
        Ok(state.handle(Handle::Write { ino }))
    }

    /// Empties a file that was opened so, and waits for nothing.
    pub fn empty(&self, handle: u64) {
        let Ok(ino) = self.writer(handle) else { return };
        if let Some(draft) = self.state().draft(ino) {
            draft.resize(0);
        }
    }

    /// Makes a file and opens it to write. The cluster knows of it when it is closed.
    pub fn create(&self, parent: u64, name: &OsStr, exclusive: bool, begin: Begin) -> Answer<(Attr, u64)> {
        let path = self.child(parent, name)?;
        self.may_touch(&path)?;
        self.must_be_writable()?;
        let folder = self.state().path(parent)?;
        if self.look(&folder) != Some(Kind::Folder) {
            return Err(Errno::NOENT);
        }
        let there = self.look(&path).is_some() || self.state().draft_at(&path).is_some();
        if there && exclusive {
            return Err(Errno::EXIST);
        }
        let handle = if there {
            let ino = self.state().ino(&path);
            self.open(ino, Some(begin))?
        } else {
            let mut state = self.state();
            let ino = state.ino(&path);
            state.fresh.insert(path.clone());
            state.inodes.get_mut(&ino).ok_or(Errno::NOENT)?.draft =
                Some(Draft::begin(vec![], None, Dirt::Made));
            state.handle(Handle::Write { ino })
        };
        // Nobody hears of the handle.
        let attr = self.attr_of(&path, true).inspect_err(|_| self.abandon(handle))?;
        Ok((attr, handle))
    }

    /// Some of an open file's bytes.
    pub fn read(&self, handle: u64, offset: u64, size: usize) -> Answer<Bytes> {
        let mut state = self.state();
        let part = |data: &[u8]| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
            from..from.saturating_add(size).min(data.len())
        };
        let (ino, snapshot) = match state.handles.get(&handle) {
            Some(Handle::Read { ino, data }) => (*ino, Some(data.clone())),
            Some(Handle::Write { ino }) => (*ino, None),
            Some(Handle::Listing { .. }) => return Err(Errno::ISDIR),
            None => return Err(Errno::BADF),
        };
        let changed = state.draft(ino).filter(|d| d.dirt != Dirt::Clean || snapshot.is_none());
        match (changed, snapshot) {
            (Some(draft), _) => Ok(Bytes::copy_from_slice(&draft.data[part(&draft.data)])),
            (None, Some(data)) => Ok(data.slice(part(&data))),
            (None, None) => Err(Errno::BADF),
        }
    }

    pub(crate) fn writer(&self, handle: u64) -> Answer<u64> {
        match self.state().handles.get(&handle) {
            Some(Handle::Write { ino }) => Ok(*ino),
            _ => Err(Errno::BADF),
        }
    }

    /// Before the first change of a draft, if nothing of it was committed yet: what others have committed since it was opened is what is changed.
    fn renew(&self, ino: u64) -> Answer<()> {
        let path = {
            let mut state = self.state();
            let Ok(path) = state.path(ino) else { return Ok(()) };
            if state.draft(ino).is_none_or(|d| d.dirt != Dirt::Clean || d.kept) {
                return Ok(());
            }
            path
        };
        let found = self.content(&path)?;
        if let Some(draft) = self.state().draft(ino) {
            draft.refresh(found);
        }
        Ok(())
    }

    /// Writes to an open file; nobody but this node sees it yet.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Answer<usize> {
        let ino = self.writer(handle)?;
        self.renew(ino)?;
        let from = usize::try_from(offset).map_err(|_| Errno::FBIG)?;
        let end = from.checked_add(data.len()).filter(|end| *end <= MAX_FILE).ok_or(Errno::FBIG)?;
        let mut state = self.state();
        let draft = state.draft(ino).ok_or(Errno::BADF)?;
        if draft.data.len() < end {
            draft.data.resize(end, 0);
        }
        draft.data[from..end].copy_from_slice(data);
        draft.touch(Dirt::Written);
        Ok(data.len())
    }

    /// Cuts a file, or fills it with zeros: one that is open to write as by a write, another one at once.
    pub fn resize(&self, ino: u64, size: u64) -> Answer<Attr> {
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_FILE).ok_or(Errno::FBIG)?;
        let is_open = self.state().draft(ino).is_some();
        let own = if is_open { None } else { Some(self.open(ino, Some(Begin::AsItIs))?) };
        self.renew(ino)?;
        self.state().draft(ino).ok_or(Errno::BADF)?.resize(size);
        if let Some(own) = own {
            let kept = self.settle(ino, When::Now);
            self.release(own);
            kept?;
        }
        self.attr(ino)
    }

    /// Whether a mode that somebody asks for is taken: modes follow from the path. None may be thought stricter than it is, and nobody that a
    /// file can be executed, or be written by others.
    pub fn may_have_mode(&self, ino: u64, mode: u32) -> Answer<Attr> {
        let attr = self.attr(ino)?;
        let perm = u32::from(attr.perm);
        let too_open = perm & !mode & 0o055;
        // That others read it, or root writes, is often asked for by who copies a file, and is no promise to anybody.
        let is_folder = attr.kind == Kind::Folder;
        let not_given = mode & !perm & if is_folder { 0o7022 } else { 0o7133 };
        if too_open == 0 && not_given == 0 { Ok(attr) } else { Err(Errno::PERM) }
    }

    /// A descriptor was closed: what was written is committed.
    pub fn flush(&self, handle: u64) -> Answer<()> {
        match self.writer(handle) {
            Ok(ino) => self.settle(ino, When::Close),
            Err(_) => Ok(()),
        }
    }

    /// What was written is committed.
    pub fn sync(&self, handle: u64) -> Answer<()> {
        match self.writer(handle) {
            Ok(ino) => self.settle(ino, When::Now),
            Err(_) => Ok(()),
        }
    }

    /// The last descriptor was closed. Nobody hears of an error any more, but for the log.
    pub fn release(&self, handle: u64) {
        if let Ok(ino) = self.writer(handle)
            && let Err(e) = self.settle(ino, When::Last)
        {
            tracing::debug!("a file was closed and its content not kept: {e}");
        }
        self.abandon(handle);
    }

    /// A handle goes. What was written and not committed goes with a file's last one.
    pub fn abandon(&self, handle: u64) {
        let mut state = self.state();
        let Some(closed) = state.handles.remove(&handle) else { return };
        let (Handle::Read { ino, .. } | Handle::Write { ino } | Handle::Listing { ino, .. }) = closed;
        let Some(inode) = state.inodes.get_mut(&ino) else { return };
        inode.handles -= 1;
        if let (Handle::Write { .. }, Some(draft)) = (&closed, inode.draft.as_mut()) {
            draft.writers -= 1;
            if draft.writers == 0 {
                let draft = inode.draft.take();
                let path = inode.path.clone();
                // A new file that was refused was never there.
                if let (Some(path), true) = (path, draft.is_some_and(|d| d.base.is_none())) {
                    state.unlink(&path);
                }
            }
        }
        state.forget_if_unused(ino);
    }

    fn turn(&self, ino: u64) -> Arc<Mutex<()>> {
        self.state().inodes.get(&ino).map(|i| i.turn.clone()).unwrap_or_default()
    }

    fn turn_at(&self, path: &str) -> Arc<Mutex<()>> {
        let ino = self.state().by_path.get(path).copied();
        ino.map(|ino| self.turn(ino)).unwrap_or_default()
    }

    /// Commits a draft, if there is something to commit.
    fn settle(&self, ino: u64, when: When) -> Answer<()> {
        let turn = self.turn(ino);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle_in_turn(ino, when)
    }

    fn settle_in_turn(&self, ino: u64, when: When) -> Answer<()> {
        let (path, base, data, version, spoiled) = {
            let mut state = self.state();
            // What has no name any more is nobody's but its holder's.
            let Ok(path) = state.path(ino) else { return Ok(()) };
            let Some(draft) = state.draft(ino) else { return Ok(()) };
            match (draft.dirt, when) {
                (Dirt::Clean, _) | (Dirt::Made, When::Close) => return Ok(()),
                (_, When::Last) if draft.refused == Some(draft.version) => return Ok(()),
                (Dirt::Made, When::Now | When::Last) | (Dirt::Written, _) => {}
            }
            if draft.spoiled {
                draft.refused = Some(draft.version);
            }
            (path, draft.base, Bytes::copy_from_slice(&draft.data), draft.version, draft.spoiled)
        };
        if spoiled {
            let reason = "a write to it was told to have failed: nothing of it is kept; open it again";
            return Err(self.refused(&FileFault::new(Why::Unknown, &path, reason)));
        }
        let mut own = base;
        let same = base.is_some() && self.content(&path)?.is_some_and(|(d, r)| Some(r) == base && d == data);
        if !same {
            let change = FileChange::Put { path: path.clone(), over: base, data };
            let done = self
                .must_be_writable()
                .and_then(|()| self.store.change(change).map_err(|f| self.refused(&f)));
            match done {
                Ok(revision) => own = revision,
                Err(e) => {
                    if let Some(draft) = self.state().draft(ino) {
                        draft.refused = Some(version);
                    }
                    return Err(e);
                }
            }
        }
        // What a guest's node has made of it is read again; what others have made of it since is not ours.
        let found = if own.is_none() { self.content(&path)? } else { None };
        let mut state = self.state();
        state.fresh.remove(&path);
        if let Some(draft) = state.draft(ino) {
            if draft.version == version {
                let kept = draft.kept || !same;
                draft.dirt = Dirt::Clean;
                draft.refresh(found);
                draft.kept = kept;
            }
            // Where the version is not known, what was written meanwhile stays over the old one, and is refused.
            draft.base = own.or(draft.base);
        }
        Ok(())
    }

    /// Removes a file.
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Answer<()> {
        let path = self.child(parent, name)?;
        let turn = self.turn_at(&path);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        match self.look(&path) {
            Some(Kind::Folder) => return Err(Errno::ISDIR),
            Some(Kind::Special(_) | Kind::Link(_)) => return Err(Errno::PERM),
            Some(Kind::File { revision, .. }) => {
                self.must_be_writable()?;
                let change = FileChange::Remove { path: path.clone(), at: revision };
                self.store.change(change).map_err(|f| self.refused(&f))?;
            }
            None if self.state().draft_at(&path).is_none() => return Err(Errno::NOENT),
            None => {}
        }
        self.state().unlink(&path);
        Ok(())
    }

    /// Makes a folder: of all nodes that make one of a name, one does.
    pub fn make_folder(&self, parent: u64, name: &OsStr) -> Answer<Attr> {
        let path = self.child(parent, name)?;
        if self.look(&path).is_some() || self.state().draft_at(&path).is_some() {
            return Err(Errno::EXIST);
        }
        self.must_be_writable()?;
        let change = FileChange::MakeFolder { path: path.clone() };
        let made = self.store.change(change);
        made.map_err(|f| match f.why {
            // Another node was quicker.
            Why::Busy => Errno::EXIST,
            _ => self.refused(&f),
        })?;
        self.attr_of(&path, true)
    }

    /// Removes a folder that is empty.
    pub fn remove_folder(&self, parent: u64, name: &OsStr) -> Answer<()> {
        let path = self.child(parent, name)?;
        match self.look(&path) {
            Some(Kind::Folder) => {}
            Some(_) => return Err(Errno::NOTDIR),
            None => return Err(Errno::NOENT),
        }
        self.may_be_removed(&path)?;
        let change = FileChange::RemoveFolder { path: path.clone() };
        self.store.change(change).map_err(|f| self.refused(&f))?;
        self.state().unlink(&path);
        Ok(())
    }

    fn may_be_removed(&self, path: &str) -> Answer<()> {
        let mut fixed = false;
        self.store.view(&mut |tree| fixed = layout::is_fixed(tree, path));
        if fixed {
            return Err(Errno::PERM);
        }
        self.may_touch(path)?;
        self.must_be_writable()?;
        if self.names(path).is_empty() { Ok(()) } else { Err(Errno::NOTEMPTY) }
    }

    /// Gives a file, or a folder that is empty, another name; what has that is replaced.
    pub fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), replace: bool) -> Answer<()> {
        let (from, to) = (self.child(from.0, from.1)?, self.child(to.0, to.1)?);
        if from == to {
            return Ok(());
        }
        if to.strip_prefix(&from).is_some_and(|rest| rest.starts_with('/')) {
            return Err(Errno::INVAL);
        }
        let known = |path: &str| self.state().by_path.get(path).copied();
        let inodes: BTreeSet<u64> = [known(&from), known(&to)].into_iter().flatten().collect();
        // In order of their numbers, so that two renames do not wait for each other.
        let turns: Vec<Arc<Mutex<()>>> = inodes.into_iter().map(|ino| self.turn(ino)).collect();
        let _turns: Vec<_> = turns.iter().map(|t| t.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        if let Some(ino) = known(&from) {
            self.settle_in_turn(ino, When::Now)?;
        }
        let there = self.look(&to);
        if !replace && (there.is_some() || self.state().draft_at(&to).is_some()) {
            return Err(Errno::EXIST);
        }
        self.must_be_writable()?;
        match (self.look(&from), there) {
            (None, _) => Err(Errno::NOENT),
            (Some(Kind::Special(_) | Kind::Link(_)), _) | (_, Some(Kind::Special(_) | Kind::Link(_))) => {
                Err(Errno::PERM)
            }
            (Some(Kind::Folder), None) => self.rename_folder(&from, &to),
            (Some(Kind::Folder), Some(Kind::Folder)) => Err(Errno::NOTEMPTY),
            (Some(Kind::Folder), Some(Kind::File { .. })) => Err(Errno::NOTDIR),
            (Some(Kind::File { .. }), Some(Kind::Folder)) => Err(Errno::ISDIR),
            (Some(Kind::File { .. }), there) => self.rename_file(&from, &to, there.as_ref()),
        }
    }

    /// Who moves a folder that is not empty copies its files and removes them: `mv` does, told so.
    fn rename_folder(&self, from: &str, to: &str) -> Answer<()> {
        self.may_be_removed(from).map_err(|e| if e == Errno::NOTEMPTY { Errno::XDEV } else { e })?;
        let refused = |f: FileFault| self.refused(&f);
        self.store.change(FileChange::MakeFolder { path: to.to_owned() }).map_err(refused)?;
        self.store.change(FileChange::RemoveFolder { path: from.to_owned() }).map_err(refused)?;
        self.renamed(from, to, None);
        Ok(())
    }

    fn rename_file(&self, from: &str, to: &str, there: Option<&Kind>) -> Answer<()> {
        let (data, revision) = self.content(from)?.ok_or(Errno::NOENT)?;
        let over = match there {
            Some(Kind::File { revision, .. }) => Some(*revision),
            _ => None,
        };
        let change = FileChange::Move { from: (from.to_owned(), revision), data, to: (to.to_owned(), over) };
        let own = self.store.change(change).map_err(|f| self.refused(&f))?;
        self.renamed(from, to, own);
        Ok(())
    }

    fn renamed(&self, from: &str, to: &str, own: Option<Revision>) {
        let now_at = own.or_else(|| self.entry(to).map(|e| e.revision));
        let mut state = self.state();
        state.unlink(to);
        state.times.remove(from);
        if let Some(ino) = state.by_path.remove(from) {
            state.by_path.insert(to.to_owned(), ino);
            if let Some(inode) = state.inodes.get_mut(&ino) {
                inode.path = Some(to.to_owned());
                if let Some(draft) = &mut inode.draft {
                    draft.base = now_at;
                }
            }
            state.forget_if_unused(ino);
        }
    }

    /// The names in a folder, new files that are not in the tree yet too.
    fn names(&self, path: &str) -> Vec<String> {
        let mut names = vec![];
        self.store.view(&mut |tree| names = layout::list(tree, path));
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let state = self.state();
        let fresh = state.fresh.range(prefix.clone()..).take_while(|p| p.starts_with(&prefix));
        let fresh = fresh.map(|p| p[prefix.len()..].to_owned()).filter(|n| !n.contains('/'));
        let before = names.len();
        names.extend(fresh);
        if names.len() > before {
            names.sort();
            names.dedup();
        }
        names
    }

    /// Opens a folder; what is listed is what it holds now.
    pub fn open_folder(&self, ino: u64) -> Answer<u64> {
        let path = self.state().path(ino)?;
        if self.look(&path) != Some(Kind::Folder) {
            return Err(Errno::NOTDIR);
        }
        let names = self.names(&path);
        let mut state = self.state();
        let names = state.share_names(ino, names);
        Ok(state.handle(Handle::Listing { ino, names }))
    }

    /// The names of an open folder, and what it is.
    pub fn listing(&self, handle: u64) -> Answer<(u64, Arc<Vec<String>>)> {
        match self.state().handles.get(&handle) {
            Some(Handle::Listing { ino, names }) => Ok((*ino, names.clone())),
            _ => Err(Errno::BADF),
        }
    }

    /// What is known of a name in an open folder; none if it is gone. `known`: the kernel will count it as looked up.
    pub fn listed(&self, folder: u64, name: &str, known: bool) -> Option<Attr> {
        let path = self.child(folder, OsStr::new(name)).ok()?;
        self.attr_of(&path, known).ok()
    }

    /// How full the tree is.
    pub fn room(&self) -> Room {
        let mut room = Room { total: MAX_TREE, used: 0, files: 0 };
        self.store.view(&mut |tree| (room.used, room.files) = (tree.bytes(), tree.len() as u64));
        room
    }

    /// How many inodes and open files are kept, for tests.
    pub fn kept(&self) -> (usize, usize) {
        let state = self.state();
        (state.inodes.len(), state.handles.len())
    }
}
