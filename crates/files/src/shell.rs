//! FUSE around [`Files`]: requests are handed to workers, and each is answered within its time.
//!
//! The thread that reads requests never waits for anything. Looking and reading has workers of its own, which those that commit can't
//! keep busy. A request that no worker has answered in time is answered by the clock; its worker goes on, and its answer is nobody's.

use crate::files::{Answer, Attr, Begin, Files};
use crate::layout::Kind;
use crate::store::Store;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

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

type Job = Box<dyn FnOnce() + Send>;

/// An answer that can be an error.
trait Refuse: Send + 'static {
    fn refuse(self, e: Errno);
}

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

/// A reply that is given once, by whoever takes it first.
struct Slot<R>(Mutex<Option<R>>);

impl<R> Slot<R> {
    fn take(&self) -> Option<R> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

trait Expire: Send + Sync {
    fn expire(&self);
}

impl<R: Refuse> Expire for Slot<R> {
    fn expire(&self) {
        if let Some(reply) = self.take() {
            reply.refuse(Errno::EIO);
        }
    }
}

/// Requests of one kind: workers, and the times by which they are answered, in order.
struct Lane {
    jobs: Sender<Job>,
    limit: Duration,
    due: Arc<(Mutex<Due>, Condvar)>,
}

#[derive(Default)]
struct Due {
    queue: VecDeque<(Instant, Weak<dyn Expire>)>,
    ended: bool,
}

impl Lane {
    fn start(name: &str, workers: usize, limit: Duration) -> io::Result<Self> {
        let (jobs, taken) = channel::<Job>();
        let taken = Arc::new(Mutex::new(taken));
        for _ in 0..workers {
            let taken = taken.clone();
            std::thread::Builder::new().name(format!("files-{name}")).spawn(move || work(&taken))?;
        }
        let due: Arc<(Mutex<Due>, Condvar)> = Arc::default();
        let watched = due.clone();
        std::thread::Builder::new().name(format!("files-{name}-due")).spawn(move || watch(&watched))?;
        Ok(Self { jobs, limit, due })
    }

    /// Has `job` done, and its result answered, or an error once its time is over.
    fn run<R: Refuse, T>(
        &self,
        reply: R,
        job: impl FnOnce() -> Answer<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        let slot = Arc::new(Slot(Mutex::new(Some(reply))));
        let as_expire: Arc<dyn Expire> = slot.clone();
        {
            let mut due = self.due.0.lock().unwrap_or_else(PoisonError::into_inner);
            while due.queue.front().is_some_and(|(_, slot)| slot.strong_count() == 0) {
                due.queue.pop_front();
            }
            due.queue.push_back((Instant::now() + self.limit, Arc::downgrade(&as_expire)));
            if due.queue.len() == 1 {
                self.due.1.notify_one();
            }
        }
        let failed = slot.clone();
        let sent = self.jobs.send(Box::new(move || {
            let done = job();
            let Some(reply) = slot.take() else { return };
            match done {
                Ok(done) => answer(reply, done),
                Err(e) => reply.refuse(Errno::from_i32(e.raw_os_error())),
            }
        }));
        if sent.is_err() {
            failed.expire();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.due.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.due.1.notify_one();
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job();
    }
}

fn watch(due: &(Mutex<Due>, Condvar)) {
    let mut held = due.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !held.ended {
        let now = Instant::now();
        held = match held.queue.front() {
            None => due.1.wait(held).unwrap_or_else(PoisonError::into_inner),
            Some((at, _)) if *at > now => {
                let left = *at - now;
                due.1.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0
            }
            Some(_) => {
                let late = held.queue.pop_front().and_then(|(_, slot)| slot.upgrade());
                drop(held);
                if let Some(late) = late {
                    late.expire();
                }
                due.0.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
    }
}

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
        self.look.run(reply, job, move |r, a| r.entry(&ttl(&a), &told(&a), Generation(0)));
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.files.forget(ino.0, times);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let (files, told) = (self.files.clone(), self.told());
        self.look.run(reply, move || files.attr(ino.0), move |r, a| r.attr(&ttl(&a), &told(&a)));
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
        let lane = if size.is_some() { &self.commit } else { &self.look };
        lane.run(reply, job, move |r, a| r.attr(&ttl(&a), &told(&a)));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let files = self.files.clone();
        self.look.run(reply, move || files.link(ino.0), |r, to| r.data(to.as_bytes()));
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
        let (files, name, told) = (self.files.clone(), name.to_owned(), self.told());
        let job = move || {
            // A plain file: no pipe, device or socket is replicated.
            if mode & 0o170_000 != 0o100_000 {
                return Err(rustix::io::Errno::PERM);
            }
            let (attr, handle) = files.create(parent.0, &name, true, Begin::AsItIs)?;
            let kept = files.sync(handle);
            files.release(handle);
            kept.map(|()| attr)
        };
        self.commit.run(reply, job, move |r, a| r.entry(&Duration::ZERO, &told(&a), Generation(0)));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let (files, name, told) = (self.files.clone(), name.to_owned(), self.told());
        let job = move || files.make_folder(parent.0, &name);
        self.commit.run(reply, job, move |r, a| r.entry(&TTL, &told(&a), Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (files, name) = (self.files.clone(), name.to_owned());
        self.commit.run(reply, move || files.unlink(parent.0, &name), |r, ()| r.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (files, name) = (self.files.clone(), name.to_owned());
        self.commit.run(reply, move || files.remove_folder(parent.0, &name), |r, ()| r.ok());
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
        let (files, name, new_name) = (self.files.clone(), name.to_owned(), new_name.to_owned());
        let job = move || files.rename((parent.0, &name), (new_parent.0, &new_name), replace);
        self.commit.run(reply, job, |r, ()| r.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let write = (flags.acc_mode() != fuser::OpenAccMode::O_RDONLY).then_some(begin(flags.0));
        let files = self.files.clone();
        let how = if write.is_some() { FopenFlags::FOPEN_DIRECT_IO } else { READ };
        self.look.run(reply, move || files.open(ino.0, write), move |r, h| r.opened(FileHandle(h), how));
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
        let (files, name, told) = (self.files.clone(), name.to_owned(), self.told());
        let job = move || files.create(parent.0, &name, exclusive, begin(flags));
        self.look.run(reply, job, move |r, (a, h)| {
            r.created(&ttl(&a), &told(&a), Generation(0), FileHandle(h), FopenFlags::FOPEN_DIRECT_IO);
        });
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
        self.look.run(reply, job, |r, data| r.data(&data));
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
        self.look.run(reply, job, |r, n| r.written(u32::try_from(n).unwrap_or(u32::MAX)));
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let files = self.files.clone();
        self.commit.run(reply, move || files.flush(handle.0), |r, ()| r.ok());
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let files = self.files.clone();
        self.commit.run(reply, move || files.sync(handle.0), |r, ()| r.ok());
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
        let job = move || {
            files.release(handle.0);
            Ok(())
        };
        lane.run(reply, job, |r, ()| r.ok());
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let files = self.files.clone();
        let job = move || files.open_folder(ino.0);
        self.look.run(reply, job, |r, h| r.opened(FileHandle(h), FopenFlags::empty()));
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
        let (listed, then) = (files.clone(), files.clone());
        let job = move || listed.listing(handle.0);
        self.look.run(reply, job, move |mut reply, (folder, names)| {
            for (at, name) in entries(&names, offset) {
                let dots = at < 2;
                let attr = if dots { then.attr(folder).ok() } else { then.listed(folder, name, true) };
                let Some(attr) = attr else { continue };
                if reply.add(INodeNo(attr.ino), at + 1, name, &ttl(&attr), &told(&attr), Generation(0)) {
                    // It had no room, and is not known to the kernel.
                    if !dots {
                        files.forget(attr.ino, 1);
                    }
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.files.release(handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let files = self.files.clone();
        let job = move || Ok(files.room());
        self.look.run(reply, job, |r, room| {
            let block = u64::from(BLOCK);
            let free = room.total.saturating_sub(room.used) / block;
            r.statfs(room.total / block, free, free, room.files, free, BLOCK, 255, BLOCK);
        });
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
