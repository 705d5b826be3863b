//! FUSE around [`Files`]: requests are handed to workers, and each is answered within its time.
//!
//! The thread that reads requests never waits for anything. Looking and reading has workers of its own, which those that commit can't
//! keep busy. A request that no worker has answered in time is answered by the clock ([`crate::lane`]).

use crate::files::{Attr, Begin, Files, Room};
use crate::lane::{Fate, Lane, Otherwise, Refuse};
use crate::late::About;
use crate::layout::Kind;
use crate::store::Store;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long an answer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of what only looks.
    pub read: Duration,
    /// Of what commits. Longer than a commit may take until it is given up.
    pub write: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { read: Duration::from_secs(5), write: Duration::from_secs(20) }
    }
}

/// For how long the kernel may take what it knows for true: changes of other nodes are seen after that.
const TTL: Duration = Duration::from_secs(1);
/// Threads that look and read, and threads that commit.
const WORKERS: (usize, usize) = (4, 8);
const BLOCK: u32 = 4096;
/// How many names of a folder are told at once: the kernel asks for more.
const AT_ONCE: usize = 64;

macro_rules! refuse {
    ($($reply:ty),*) => { $(impl Refuse for $reply {
        fn refuse(self, e: Errno) {
            self.error(e);
        }
    })* };
}
refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite
);

/// The files, as the kernel asks for them.
pub struct Shell<S> {
    files: Arc<Files<S>>,
    look: Lane,
    commit: Lane,
    /// Whose group the files are.
    gid: u32,
}

impl<S: Store> Shell<S> {
    /// Starts the workers.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn new(files: Arc<Files<S>>, limits: Limits, gid: u32) -> io::Result<Self> {
        let look = Lane::start("look", WORKERS.0, limits.read)?;
        let commit = Lane::start("commit", WORKERS.1, limits.write)?;
        Ok(Self { files, look, commit, gid })
    }

    /// Nobody is left to be told of an error, but the log and who closes the file.
    fn hears(&self, about: About) -> impl Fn(Fate) + Send + Sync + 'static {
        let files = self.files.clone();
        move |fate| files.given_up(&about, fate)
    }

    /// Of what makes or removes a name.
    fn named<T: 'static>(&self, parent: INodeNo, name: &OsStr) -> Otherwise<T> {
        Otherwise::default().given_up(self.hears(About::Name(parent.0, name.to_owned())))
    }

    /// Of what makes a name that the kernel knows then.
    fn known(&self) -> Otherwise<Attr> {
        let files = self.files.clone();
        Otherwise::unheard(move |attr| files.unheard_name(&attr))
    }

    fn told(&self) -> impl Fn(&Attr) -> FileAttr + Send + 'static {
        let gid = self.gid;
        move |attr| file_attr(attr, gid)
    }
}

fn file_attr(attr: &Attr, gid: u32) -> FileAttr {
    let kind = match attr.kind {
        Kind::Folder => FileType::Directory,
        Kind::Link(_) => FileType::Symlink,
        Kind::File { .. } | Kind::Special(_) => FileType::RegularFile,
    };
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.modified,
        mtime: attr.modified,
        ctime: attr.modified,
        crtime: attr.modified,
        kind,
        perm: attr.perm,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: 0,
        gid,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

/// For how long it may be taken for true: what is not committed, or made anew each time, not at all.
fn ttl(attr: &Attr) -> Duration {
    match &attr.kind {
        Kind::File { revision, stored } if revision.0 == 0 || *stored as u64 != attr.size => Duration::ZERO,
        Kind::Special(_) => Duration::ZERO,
        _ => TTL,
    }
}

/// Each reader has the version that it opened, and nothing is to be told of its close.
const READ: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_NOFLUSH);

impl<S: Store> Filesystem for Shell<S> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // An older kernel has not all of it, and does without.
        let _ = config.add_capabilities(InitFlags::FUSE_DO_READDIRPLUS);
        let _ = config.add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        let _ = config.set_max_write(1 << 17);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (files, name, told) = (self.files.clone(), name.to_owned(), self.told());
        let job = move || files.lookup(parent.0, &name);
        self.look.run(reply, job, move |r, a| r.entry(&ttl(&a), &told(&a), Generation(0)), self.known());
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.files.forget(ino.0, times);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let (files, told) = (self.files.clone(), self.told());
        let answer = move |r: ReplyAttr, a| r.attr(&ttl(&a), &told(&a));
        self.look.run(reply, move || files.attr(ino.0), answer, Otherwise::default());
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (files, told) = (self.files.clone(), self.told());
        let job = move || {
            // All files are root's: who gives one away would lose it.
            if uid.is_some_and(|uid| uid != 0) {
                return Err(rustix::io::Errno::PERM);
            }
            if let Some(mode) = mode {
                files.may_have_mode(ino.0, mode)?;
            }
            match size {
                Some(size) => files.resize(ino.0, size),
                None => files.attr(ino.0),
            }
        };
        let answer = move |r: ReplyAttr, a| r.attr(&ttl(&a), &told(&a));
        if size.is_some() {
            let otherwise = Otherwise::default().given_up(self.hears(About::Size(ino.0)));
            self.commit.run(reply, job, answer, otherwise);
        } else {
            self.look.run(reply, job, answer, Otherwise::default());
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let files = self.files.clone();
        let job = move || files.link(ino.0);
        self.look.run(reply, job, |r, to: String| r.data(to.as_bytes()), Otherwise::default());
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let otherwise = self.known().given_up(self.hears(About::Name(parent.0, name.to_owned())));
        let (files, name, told) = (self.files.clone(), name.to_owned(), self.told());
        let job = move || {
            // A plain file: no pipe, device or socket is replicated.
            if mode & 0o170_000 != 0o100_000 {
                return Err(rustix::io::Errno::PERM);
            }
            let (attr, handle) = files.create(parent.0, &name, true, Begin::AsItIs)?;
            let kept = files.sync(handle);
            files.release(handle);
            kept.inspect_err(|_| files.unheard_name(&attr))?;
            Ok(attr)
        };
        let answer = move |r: ReplyEntry, a| r.entry(&Duration::ZERO, &told(&a), Generation(0));
        self.commit.run(reply, job, answer, otherwise);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let otherwise = self.known().given_up(self.hears(About::Name(parent.0, name.to_owned())));
        let (files, name, told) = (self.files.clone(), name.to_owned(), self.told());
        let job = move || files.make_folder(parent.0, &name);
        self.commit.run(reply, job, move |r, a| r.entry(&TTL, &told(&a), Generation(0)), otherwise);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let otherwise = self.named(parent, name);
        let (files, name) = (self.files.clone(), name.to_owned());
        self.commit.run(reply, move || files.unlink(parent.0, &name), |r, ()| r.ok(), otherwise);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let otherwise = self.named(parent, name);
        let (files, name) = (self.files.clone(), name.to_owned());
        self.commit.run(reply, move || files.remove_folder(parent.0, &name), |r, ()| r.ok(), otherwise);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        let otherwise = self.named(new_parent, new_name);
        let (files, name, new_name) = (self.files.clone(), name.to_owned(), new_name.to_owned());
        let job = move || files.rename((parent.0, &name), (new_parent.0, &new_name), replace);
        self.commit.run(reply, job, |r, ()| r.ok(), otherwise);
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // It is emptied once it is sure that somebody hears of it.
        let write = (flags.acc_mode() != fuser::OpenAccMode::O_RDONLY).then_some(Begin::AsItIs);
        let empties = write.is_some() && begin(flags.0) == Begin::Emptied;
        let (files, then, back) = (self.files.clone(), self.files.clone(), self.files.clone());
        let how = if write.is_some() { FopenFlags::FOPEN_DIRECT_IO } else { READ };
        let answer = move |r: ReplyOpen, h| {
            if empties {
                then.empty(h);
            }
            r.opened(FileHandle(h), how);
        };
        let otherwise = Otherwise::unheard(move |h| back.abandon(h));
        self.look.run(reply, move || files.open(ino.0, write), answer, otherwise);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let exclusive = has(flags, OFlags::EXCL);
        let empties = begin(flags) == Begin::Emptied;
        let (files, name, told) = (self.files.clone(), name.to_owned(), self.told());
        let (then, back) = (files.clone(), files.clone());
        let job = move || files.create(parent.0, &name, exclusive, Begin::AsItIs);
        let answer = move |r: ReplyCreate, (mut a, h): (Attr, u64)| {
            if empties {
                then.empty(h);
                a.size = 0;
            }
            r.created(&ttl(&a), &told(&a), Generation(0), FileHandle(h), FopenFlags::FOPEN_DIRECT_IO);
        };
        let otherwise = Otherwise::unheard(move |(a, h): (Attr, u64)| back.unheard_file(&a, h));
        self.look.run(reply, job, answer, otherwise);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let files = self.files.clone();
        let job = move || files.read(handle.0, offset, usize::try_from(size).unwrap_or(usize::MAX));
        self.look.run(reply, job, |r, data| r.data(&data), Otherwise::default());
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (files, data) = (self.files.clone(), data.to_owned());
        let job = move || files.write(handle.0, offset, &data);
        let otherwise = Otherwise::default().given_up(self.hears(About::Write(handle.0)));
        self.look.run(reply, job, |r, n| r.written(u32::try_from(n).unwrap_or(u32::MAX)), otherwise);
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let files = self.files.clone();
        let otherwise = Otherwise::default().given_up(self.hears(About::Close(handle.0)));
        self.commit.run(reply, move || files.flush(handle.0), |r, ()| r.ok(), otherwise);
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let files = self.files.clone();
        let otherwise = Otherwise::default().given_up(self.hears(About::Close(handle.0)));
        self.commit.run(reply, move || files.sync(handle.0), |r, ()| r.ok(), otherwise);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        flags: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let files = self.files.clone();
        let reads = flags.acc_mode() == fuser::OpenAccMode::O_RDONLY;
        let lane = if reads { &self.look } else { &self.commit };
        let job = move |in_time| if in_time { files.release(handle.0) } else { files.close_late(handle.0) };
        lane.run_anyway(reply, job, |r: ReplyEmpty| r.ok());
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let (files, back) = (self.files.clone(), self.files.clone());
        let job = move || files.open_folder(ino.0);
        let otherwise = Otherwise::unheard(move |h| back.abandon(h));
        self.look.run(reply, job, |r, h| r.opened(FileHandle(h), FopenFlags::empty()), otherwise);
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        // Only a kernel that can't ask for all at once asks for names alone; it asks this thread, since there is no such kernel any more.
        let Ok((folder, names)) = self.files.listing(handle.0) else { return reply.error(Errno::EBADF) };
        for (at, name) in entries(&names, offset) {
            let attr =
                if at < 2 { self.files.attr(folder).ok() } else { self.files.listed(folder, name, false) };
            let Some(attr) = attr else { continue };
            let told = file_attr(&attr, self.gid);
            if reply.add(told.ino, at + 1, told.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (files, told) = (self.files.clone(), self.told());
        let (listed, back) = (files.clone(), files.clone());
        let job = move || {
            let (folder, names) = listed.listing(handle.0)?;
            let attr = |(at, name): (u64, &str)| {
                let attr = if at < 2 { listed.attr(folder).ok() } else { listed.listed(folder, name, true) };
                Some((at, name.to_owned(), attr?))
            };
            Ok(entries(&names, offset).take(AT_ONCE).filter_map(attr).collect::<Vec<_>>())
        };
        let answer = move |mut reply: ReplyDirectoryPlus, all: Vec<(u64, String, Attr)>| {
            let mut is_full = false;
            for (at, name, a) in all {
                is_full =
                    is_full || reply.add(INodeNo(a.ino), at + 1, &name, &ttl(&a), &told(&a), Generation(0));
                // What had no room is not known to the kernel.
                if is_full && at >= 2 {
                    files.unheard_name(&a);
                }
            }
            reply.ok();
        };
        let otherwise = Otherwise::unheard(move |all: Vec<(u64, String, Attr)>| {
            all.iter().filter(|(at, ..)| *at >= 2).for_each(|(.., a)| back.unheard_name(a));
        });
        self.look.run(reply, job, answer, otherwise);
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.files.release(handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let files = self.files.clone();
        let job = move || Ok(files.room());
        let answer = |r: ReplyStatfs, room: Room| {
            let block = u64::from(BLOCK);
            let free = room.total.saturating_sub(room.used) / block;
            r.statfs(room.total / block, free, free, room.files, free, BLOCK, 255, BLOCK);
        };
        self.look.run(reply, job, answer, Otherwise::default());
    }
}

fn has(flags: i32, one: OFlags) -> bool {
    OFlags::from_bits_retain(flags.cast_unsigned()).contains(one)
}

fn begin(flags: i32) -> Begin {
    if has(flags, OFlags::TRUNC) { Begin::Emptied } else { Begin::AsItIs }
}

/// What is listed from an offset on: the folder itself and the one above it, then its names.
fn entries(names: &[String], offset: u64) -> impl Iterator<Item = (u64, &str)> {
    let dots = [".", ".."].into_iter();
    let all = dots.chain(names.iter().map(String::as_str));
    (0..).zip(all).skip(usize::try_from(offset).unwrap_or(usize::MAX))
}
