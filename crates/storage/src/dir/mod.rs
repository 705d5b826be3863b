//! `dir`: volumes are files of a directory, in the layout that administrators know.
//!
//! ```text
//! path/images/100/vm-100-disk-0.qcow2   100/vm-100-disk-0.qcow2
//! path/images/101/vm-101-disk-0.qcow2   100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2, a linked clone
//! path/template/iso/x.iso               iso/x.iso
//! path/template/cache/x.tar.zst         vztmpl/x.tar.zst
//! path/snippets/x, import/x, dump/x     snippets/x, import/x, backup/x
//! path/.stead-spool/UUID/               being made or uploaded
//! ```
//!
//! A volume appears under its name in one step, complete and on disk (written in the spool, `fsync`, `link`
//! without overwriting): a crash or a full disk leaves nothing half made, and two nodes that allocate on a
//! shared directory at once get two names.

mod beneath;
mod copies;
mod mounts;
mod names;
mod options;
mod probe;
mod snapshots;
mod spool;

use crate::qcow2;
use crate::qemu_img::{self, ImageError};
use async_trait::async_trait;
use beneath::Beneath;
use names::Volume;
use options::{Format, Options, Preallocation};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use spool::Spool;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use stead_driver::guest::ResolvedVolume;
use stead_driver::storage::{
    Content, NewCopy, NewVolume, Space, StorageDriver, StorageError, StorageType, VolumeInfo, Watch,
};
use stead_model::{StorageId, Vmid, VolumeId};

/// The type `dir` of `storage.cfg`.
#[derive(Debug, Default, Clone, Copy)]
pub struct DirType;

impl StorageType for DirType {
    fn name(&self) -> &'static str {
        "dir"
    }

    fn open(
        &self,
        id: &StorageId,
        options: &BTreeMap<String, String>,
    ) -> Result<Arc<dyn StorageDriver>, StorageError> {
        Ok(Arc::new(DirStorage::new(id.clone(), options)?))
    }
}

/// One directory.
#[derive(Debug, Clone)]
pub struct DirStorage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: StorageId,
    options: Options,
    /// Made when first needed, so that a directory that cannot be written can still be read.
    spool: Mutex<Option<Arc<Spool>>>,
    swept: Mutex<bool>,
    /// The directory, as the last probe that went well has seen it.
    known: Mutex<Option<probe::Identity>>,
}

type Answer<T> = Result<T, StorageError>;

impl DirStorage {
    /// Checks the options; touches nothing yet.
    pub fn new(id: StorageId, options: &BTreeMap<String, String>) -> Answer<Self> {
        let options = Options::parse(options)?;
        Ok(Self(Arc::new(Inner {
            id,
            options,
            spool: Mutex::default(),
            swept: Mutex::default(),
            known: Mutex::default(),
        })))
    }

    /// Runs blocking work off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Inner) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        let inner = self.0.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(answer) => answer,
            Err(e) => Err(self.0.failed(what, e)),
        }
    }
}

impl Inner {
    fn failed(&self, what: &str, why: impl std::fmt::Display) -> StorageError {
        StorageError::Failed { what: what.to_owned(), storage: self.id.clone(), why: why.to_string() }
    }

    /// An errno in a caller's words.
    fn errno(&self, what: &str, e: Errno) -> StorageError {
        match e {
            Errno::NOSPC | Errno::DQUOT => {
                StorageError::Full { storage: self.id.clone(), what: what.to_owned() }
            }
            e => self.failed(what, std::io::Error::from(e)),
        }
    }

    fn io(&self, what: &str, e: &std::io::Error) -> StorageError {
        match Errno::from_io_error(e) {
            Some(errno) => self.errno(what, errno),
            None => self.failed(what, e),
        }
    }

    fn image(&self, what: &str, e: ImageError) -> StorageError {
        match e {
            ImageError::Full => StorageError::Full { storage: self.id.clone(), what: what.to_owned() },
            e => self.failed(what, e),
        }
    }

    /// The directory, if it is there and (where asked for) mounted.
    fn root(&self) -> Answer<Beneath> {
        let unavailable = |why: String| StorageError::Unavailable { storage: self.id.clone(), why };
        if let Some(point) = &self.options.mountpoint
            && !mounts::is_mounted(point).map_err(|e| self.io("read the list of mounts", &e))?
        {
            return Err(unavailable(format!(
                "nothing is mounted at '{}' (option is_mountpoint)",
                point.display()
            )));
        }
        Beneath::open(&self.options.path).map_err(|e| {
            unavailable(format!("directory '{}': {}", self.options.path.display(), std::io::Error::from(e)))
        })
    }

    fn activate(&self) -> Answer<()> {
        let root = match self.root() {
            Err(StorageError::Unavailable { .. })
                if self.options.create_base && self.options.mountpoint.is_none() =>
            {
                std::fs::create_dir_all(&self.options.path).map_err(|e| self.io("make the directory", &e))?;
                self.root()?
            }
            other => other?,
        };
        if self.options.create_subdirs {
            for content in &self.options.content {
                let dir = self.options.layout.dir(*content);
                root.make_dirs(dir).map_err(|e| self.errno("make the sub-directories", e))?;
            }
        }
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if !*swept {
            match spool::sweep(&root, self.options.shared) {
                Ok(0) => {}
                Ok(n) => tracing::info!(storage = %self.id, files = n, "removed a dead daemon's files"),
                Err(e) => tracing::warn!(storage = %self.id, error = %e, "could not clean the spool folder"),
            }
            *swept = true;
        }
        Ok(())
    }

    fn volume(&self, name: &str) -> Answer<Volume> {
        self.options.layout.volume(name)
    }

    /// Maps a missing file to the error that clients decide by.
    fn lookup(&self, name: &str, e: Errno) -> StorageError {
        match e {
            Errno::NOENT | Errno::NOTDIR => StorageError::NoVolume(format!("{}:{name}", self.id)),
            Errno::XDEV | Errno::LOOP => StorageError::Unsupported {
                storage: self.id.clone(),
                what: format!("'{name}': a symbolic link leads out of the directory"),
            },
            e => self.errno(&format!("open volume '{name}'"), e),
        }
    }

    fn open_volume(&self, root: &Beneath, name: &str, flags: OFlags) -> Answer<(Volume, File)> {
        let volume = self.volume(name)?;
        let file = root.file(&volume.path, flags, 0).map_err(|e| self.lookup(name, e))?;
        Ok((volume, file))
    }

    fn info(&self, root: &Beneath, name: &str) -> Answer<VolumeInfo> {
        let (volume, file) = self.open_volume(root, name, OFlags::RDONLY)?;
        let meta = file.metadata().map_err(|e| self.io("read a volume's size", &e))?;
        let (mut size, mut parent) = (meta.len(), None);
        if volume.format == "qcow2" {
            let mut bytes = [0; qcow2::LENGTH];
            if file.read_exact_at(&mut bytes, 0).is_ok()
                && let Some(header) = qcow2::parse(&bytes)
            {
                size = header.virtual_size;
                parent = header.backing.and_then(|(at, length)| {
                    let mut name = vec![0; length as usize];
                    file.read_exact_at(&mut name, at).ok()?;
                    Some(String::from_utf8_lossy(&name).into_owned())
                });
            }
        }
        // A linked clone is known by what it is built on, whatever name it was asked for by.
        let own = match volume.vmid.filter(|_| volume.content == Content::Images) {
            Some(vmid) => format!("{vmid}/{}", volume.path.rsplit('/').next().unwrap_or_default()),
            None => name.to_owned(),
        };
        let base = parent.as_deref().and_then(|backing| names::base_of(&self.options.layout, backing));
        let name = base.map_or_else(|| own.clone(), |base| format!("{base}/{own}"));
        Ok(VolumeInfo {
            volid: VolumeId { storage: self.id.clone(), name },
            content: volume.content,
            format: volume.format,
            size,
            used: meta.blocks() * 512,
            vmid: volume.vmid,
            ctime: u64::try_from(meta.ctime()).unwrap_or(0),
            parent,
        })
    }

    /// The names of all volumes of one content.
    fn names(&self, root: &Beneath, content: Content, vmid: Option<Vmid>) -> Answer<Vec<String>> {
        let what = "list the volumes";
        let dir = self.options.layout.dir(content);
        if content != Content::Images {
            let files = root.names(dir).map_err(|e| self.errno(what, e))?;
            let name = |f: &std::ffi::OsString| self.options.layout.name(content, None, f.to_str()?);
            return Ok(files.iter().filter_map(name).collect());
        }
        let mut names = Vec::new();
        for owner in root.names(dir).map_err(|e| self.errno(what, e))? {
            let Some(owner) = owner.to_str().and_then(|t| t.parse::<Vmid>().ok()) else { continue };
            if vmid.is_some_and(|v| v != owner) {
                continue;
            }
            let files = root.names(&format!("{dir}/{owner}")).map_err(|e| self.errno(what, e))?;
            let name = |f: &std::ffi::OsString| self.options.layout.name(content, Some(owner), f.to_str()?);
            names.extend(files.iter().filter_map(name));
        }
        Ok(names)
    }

    fn list(&self, content: Option<Content>, vmid: Option<Vmid>) -> Answer<Vec<VolumeInfo>> {
        let root = self.root()?;
        let mut found = Vec::new();
        for kind in &self.options.content {
            // Containers' disks share the images' directory and are not told apart by name.
            if content.is_some_and(|c| c != *kind) || *kind == Content::Rootdir {
                continue;
            }
            for name in self.names(&root, *kind, vmid)? {
                match self.info(&root, &name) {
                    Ok(info) if vmid.is_none() || info.vmid == vmid => found.push(info),
                    // Removed since, or nothing that a guest may open.
                    Ok(_) | Err(StorageError::NoVolume(_) | StorageError::Unsupported { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(found)
    }

    fn spool(&self, root: &Beneath) -> Answer<Arc<Spool>> {
        let mut slot = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spool) = &*slot {
            return Ok(spool.clone());
        }
        let made =
            Spool::create(root, &self.options.path).map_err(|e| self.errno("make the spool folder", e))?;
        Ok(slot.insert(Arc::new(made)).clone())
    }

    fn holds(&self, content: Content) -> Answer<()> {
        if self.options.content.contains(&content) {
            return Ok(());
        }
        let what = format!("content type '{}'", options::content_word(content));
        Err(StorageError::Unsupported { storage: self.id.clone(), what })
    }

    /// Creates the file of a raw disk, of `size` bytes.
    fn fill_raw(&self, file: &mut File, size: u64) -> Answer<()> {
        let what = "allocate a disk";
        match self.options.preallocation {
            Preallocation::Off | Preallocation::Metadata => file.set_len(size).map_err(|e| self.io(what, &e)),
            Preallocation::Falloc => rustix::fs::fallocate(&*file, FallocateFlags::empty(), 0, size)
                .map_err(|e| self.errno(what, e)),
            Preallocation::Full => {
                let zeros = vec![0; 1 << 20];
                let mut left = size;
                while left > 0 {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
                    file.write_all(&zeros[..n]).map_err(|e| self.io(what, &e))?;
                    left -= n as u64;
                }
                Ok(())
            }
        }
    }

    /// Gives a complete file its volume's name, durably.
    fn publish(&self, root: &Beneath, spooled: &str, name: &str, mode: u32) -> Answer<()> {
        let what = format!("make volume '{name}'");
        let volume = self.volume(name)?;
        let file = root.file(spooled, OFlags::RDWR, 0).map_err(|e| self.errno(&what, e))?;
        file.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(|e| self.io(&what, &e))?;
        file.sync_all().map_err(|e| self.io(&what, &e))?;
        let dir = volume.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        // Another node may remove the directory, empty at that moment, between the two steps.
        for _ in 0..3 {
            root.make_dirs(dir).map_err(|e| self.errno(&what, e))?;
            match root.publish(spooled, &volume.path) {
                Ok(()) => return Ok(()),
                Err(Errno::NOENT) => {}
                Err(Errno::EXIST) => return Err(StorageError::Exists(format!("{}:{name}", self.id))),
                Err(e) => return Err(self.errno(&what, e)),
            }
        }
        Err(self.errno(&what, Errno::NOENT))
    }

    fn stem(&self, kind: &str, vmid: Vmid, n: u32) -> String {
        format!("{vmid}/{kind}-{vmid}-disk-{n}")
    }

    /// Whether a disk has a name of this stem, in any format.
    fn is_taken(&self, root: &Beneath, stem: &str) -> bool {
        [Format::Raw, Format::Qcow2].into_iter().any(|format| {
            let path = self.volume(&format!("{stem}.{}", format.as_str())).map(|v| v.path);
            path.is_ok_and(|p| root.at(&p, OFlags::PATH | OFlags::NOFOLLOW, 0).is_ok())
        })
    }

    /// Gives a new disk the name asked for, or the first free one.
    fn publish_disk(&self, root: &Beneath, spooled: &str, plan: &Plan) -> Answer<VolumeInfo> {
        if let Some(file) = &plan.file {
            let name = format!("{}/{file}", plan.vmid);
            self.publish(root, spooled, &name, 0o640)?;
            return self.info(root, &name);
        }
        for n in 0..10_000 {
            let stem = self.stem("vm", plan.vmid, n);
            if self.is_taken(root, &stem) {
                continue;
            }
            let name = format!("{stem}.{}", plan.format.as_str());
            match self.publish(root, spooled, &name, 0o640) {
                Ok(()) => return self.info(root, &name),
                Err(StorageError::Exists(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Err(self.failed("allocate a disk", "no free name is left"))
    }

    fn free(&self, name: &str) -> Answer<()> {
        let root = self.root()?;
        let (volume, _) = self.open_volume(&root, name, OFlags::RDONLY)?;
        if volume.is_base() {
            self.check_no_clones(&root, name, &volume)?;
        }
        root.unlink(&volume.path).map_err(|e| self.lookup(name, e))?;
        if volume.content == Content::Images
            && let Some((dir, _)) = volume.path.rsplit_once('/')
        {
            // Fails, as it should, while other disks are there.
            let _ = root.rmdir(dir);
        }
        Ok(())
    }

    /// The relative name of a file that this instance has spooled.
    fn own(&self, root: &Beneath, spooled: &Path) -> Answer<String> {
        self.spool(root)?.own(spooled).ok_or_else(|| {
            let why = format!("'{}' was not spooled on this storage", spooled.display());
            StorageError::Invalid { parameter: "filename", why }
        })
    }

    /// Gives a complete file the name of a disk, durably, in the place of what has it.
    fn replace(&self, root: &Beneath, spooled: &str, name: &str) -> Answer<VolumeInfo> {
        let what = format!("write volume '{name}'");
        let volume = self.volume(name)?;
        let file = root.file(spooled, OFlags::RDWR, 0).map_err(|e| self.errno(&what, e))?;
        file.set_permissions(std::fs::Permissions::from_mode(0o640)).map_err(|e| self.io(&what, &e))?;
        file.sync_all().map_err(|e| self.io(&what, &e))?;
        root.replace(spooled, &volume.path).map_err(|e| self.errno(&what, e))?;
        self.info(root, name)
    }

    fn adopt(&self, spooled: &Path, content: Content, name: &str) -> Answer<VolumeInfo> {
        self.holds(content)?;
        let root = self.root()?;
        let full = if name.contains('/') {
            name.to_owned()
        } else {
            format!("{}/{name}", options::content_word(content))
        };
        if self.volume(&full)?.content != content {
            let why = format!("'{name}' is no name of content '{}'", options::content_word(content));
            return Err(StorageError::Invalid { parameter: "volume", why });
        }
        let own = self.own(&root, spooled)?;
        let mode = if content == Content::Images { 0o640 } else { 0o644 };
        self.publish(&root, &own, &full, mode)?;
        self.info(&root, &full)
    }
}

/// A checked [`NewVolume`].
#[derive(Debug)]
struct Plan {
    vmid: Vmid,
    file: Option<String>,
    format: Format,
    size: u64,
}

impl Plan {
    fn of(new: &NewVolume, default: Format) -> Answer<Self> {
        if new.size == 0 || new.size > 1 << 60 {
            let why = format!("{} bytes: a disk has 1 byte to 1 EiB", new.size);
            return Err(StorageError::Invalid { parameter: "size", why });
        }
        // Disks are made of sectors.
        let size = new.size.next_multiple_of(512);
        Ok(Self { size, ..Self::named(new.vmid, new.name.as_deref(), new.format.as_deref(), default)? })
    }

    /// A disk of which all but its size is known.
    fn named(vmid: Vmid, name: Option<&str>, format: Option<&str>, default: Format) -> Answer<Self> {
        let invalid = |parameter, why| Err(StorageError::Invalid { parameter, why });
        let asked = match format {
            None => None,
            Some(text) => match Format::parse(text) {
                None => return invalid("format", format!("'{text}' is not supported: use raw or qcow2")),
                some => some,
            },
        };
        let mut file = name.map(str::to_owned);
        let mut format = asked.unwrap_or(default);
        if let Some(name) = &mut file {
            if !names::is_disk_of(vmid, name) {
                return invalid(
                    "filename",
                    format!("illegal name '{}' - should be 'vm-{vmid}-*'", name.escape_debug()),
                );
            }
            match name.rsplit_once('.').and_then(|(_, s)| Format::parse(s)) {
                Some(named) if asked.is_some_and(|a| a != named) => {
                    return invalid("format", format!("does not fit the name '{name}'"));
                }
                Some(named) => format = named,
                None => *name = format!("{name}.{}", format.as_str()),
            }
        }
        Ok(Self { vmid, file, format, size: 0 })
    }
}

/// Removes a spooled file that got no name.
struct Discard {
    inner: Arc<Inner>,
    spooled: String,
    kept: bool,
}

impl Discard {
    /// Leaves the file to someone else.
    fn keep(mut self) -> String {
        self.kept = true;
        std::mem::take(&mut self.spooled)
    }
}

impl Drop for Discard {
    fn drop(&mut self) {
        // Nothing is there any more once it was published.
        if !self.kept
            && let Ok(root) = self.inner.root()
        {
            let _ = root.unlink(&self.spooled);
        }
    }
}

impl DirStorage {
    fn begin(&self, root: &Beneath) -> Answer<(Discard, File)> {
        let spooled = self.0.spool(root)?.fresh();
        let file = root
            .file(&spooled, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR, 0o600)
            .map_err(|e| self.0.errno("make a file in the spool folder", e))?;
        Ok((Discard { inner: self.0.clone(), spooled, kept: false }, file))
    }

    /// Makes the disk's file in the spool folder. The returned guard removes it unless it was published.
    async fn make_disk(&self, plan: &Plan) -> Answer<Discard> {
        let me = self.clone();
        let (format, size) = (plan.format, plan.size);
        let discard = self
            .blocking("allocate a disk", move |inner| {
                let (discard, mut file) = me.begin(&inner.root()?)?;
                if format == Format::Raw {
                    inner.fill_raw(&mut file, size)?;
                }
                Ok(discard)
            })
            .await?;
        if format == Format::Qcow2 {
            let path = self.0.options.path.join(&discard.spooled);
            let how = format!("preallocation={}", self.0.options.preallocation.as_str());
            let args = ["create", "-q", "-f", "qcow2", "-o", &how];
            let size = size.to_string();
            let args = args.iter().map(std::ffi::OsStr::new).chain([path.as_os_str(), size.as_ref()]);
            qemu_img::run(args).await.map_err(|e| self.0.image("allocate a disk", e))?;
        }
        Ok(discard)
    }
}

#[async_trait]
impl StorageDriver for DirStorage {
    fn id(&self) -> &StorageId {
        &self.0.id
    }

    async fn activate(&self) -> Answer<()> {
        self.blocking("activate", Inner::activate).await
    }

    async fn space(&self) -> Answer<Space> {
        self.blocking("read the free space", |inner| inner.space_of(&inner.root()?)).await
    }

    async fn probe(&self) -> Answer<Space> {
        self.blocking("write to the directory", Inner::probe).await
    }

    async fn list(&self, content: Option<Content>, vmid: Option<Vmid>) -> Answer<Vec<VolumeInfo>> {
        self.blocking("list the volumes", move |inner| inner.list(content, vmid)).await
    }

    async fn info(&self, name: &str) -> Answer<VolumeInfo> {
        let name = name.to_owned();
        self.blocking("read a volume", move |inner| inner.info(&inner.root()?, &name)).await
    }

    async fn alloc(&self, new: &NewVolume) -> Answer<VolumeInfo> {
        self.0.holds(Content::Images)?;
        let plan = Plan::of(new, self.0.options.format)?;
        let discard = self.make_disk(&plan).await?;
        self.publish_made("allocate a disk", discard, plan).await
    }

    async fn free(&self, name: &str) -> Answer<()> {
        let name = name.to_owned();
        self.blocking("remove a volume", move |inner| inner.free(&name)).await
    }

    async fn resize(&self, name: &str, size: u64) -> Answer<()> {
        let what = format!("resize volume '{name}'");
        let info = self.info(name).await?;
        let format = Format::parse(&info.format).filter(|_| info.content == Content::Images);
        let Some(format) = format else {
            return Err(StorageError::Unsupported { storage: self.0.id.clone(), what });
        };
        let size = size.next_multiple_of(512);
        if size < info.size {
            let why = format!("shrinking disks is not supported ({} to {size} bytes)", info.size);
            return Err(StorageError::Invalid { parameter: "size", why });
        }
        let volume = self.0.volume(name)?;
        if format == Format::Qcow2 {
            let path = self.0.options.path.join(&volume.path);
            let (args, size) = (["resize", "-q", "-f", "qcow2"], size.to_string());
            let args = args.iter().map(std::ffi::OsStr::new).chain([path.as_os_str(), size.as_ref()]);
            return qemu_img::run(args).await.map_err(|e| self.0.image(&what, e));
        }
        let reserve = matches!(self.0.options.preallocation, Preallocation::Falloc | Preallocation::Full);
        self.blocking("resize a volume", move |inner| {
            let root = inner.root()?;
            let file = root.file(&volume.path, OFlags::RDWR, 0).map_err(|e| inner.errno(&what, e))?;
            if reserve && size > info.size {
                rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, info.size, size - info.size)
                    .map_err(|e| inner.errno(&what, e))?;
            }
            file.set_len(size).and_then(|()| file.sync_all()).map_err(|e| inner.io(&what, &e))
        })
        .await
    }

    async fn replace(&self, name: &str, spooled: PathBuf) -> Answer<VolumeInfo> {
        let (what, name) = (format!("write volume '{name}'"), name.to_owned());
        let own = self.blocking(&what, move |inner| inner.own(&inner.root()?, &spooled)).await?;
        let mut new = Discard { inner: self.0.clone(), spooled: own, kept: false };
        let info = self.info(&name).await?;
        let format = Format::parse(&info.format).filter(|_| info.content == Content::Images);
        match format {
            None => return Err(StorageError::Unsupported { storage: self.0.id.clone(), what }),
            Some(Format::Raw) => {}
            Some(Format::Qcow2) => {
                let me = self.clone();
                let made = self.blocking(&what, move |inner| Ok(me.begin(&inner.root()?)?.0)).await?;
                let [from, to] = [&new, &made].map(|file| self.0.options.path.join(&file.spooled));
                let args = ["convert", "-q", "-f", "raw", "-O", "qcow2"].map(std::ffi::OsStr::new);
                let args = args.into_iter().chain([from.as_os_str(), to.as_os_str()]);
                qemu_img::run(args).await.map_err(|e| self.0.image(&what, e))?;
                new = made;
            }
        }
        self.blocking(&what, move |inner| inner.replace(&inner.root()?, &new.spooled, &name)).await
    }

    async fn snapshots(&self, name: &str) -> Answer<Vec<String>> {
        self.list_snapshots(name).await
    }

    async fn snapshot(&self, name: &str, snapshot: &str) -> Answer<()> {
        self.take_snapshot(name, snapshot).await
    }

    async fn delete_snapshot(&self, name: &str, snapshot: &str) -> Answer<()> {
        self.change_snapshot(snapshots::Change::Delete, name, snapshot).await
    }

    async fn rollback_snapshot(&self, name: &str, snapshot: &str) -> Answer<()> {
        self.change_snapshot(snapshots::Change::Apply, name, snapshot).await
    }

    async fn next_name(
        &self,
        vmid: Vmid,
        format: Option<&str>,
        base: Option<&str>,
        besides: &[VolumeId],
    ) -> Answer<VolumeId> {
        self.find_name(vmid, format, base, besides).await
    }

    async fn copy(&self, new: &NewCopy, watch: Watch<'_>) -> Answer<VolumeInfo> {
        self.make_copy(new, watch).await
    }

    async fn clone_base(&self, base: &str, vmid: Vmid, name: Option<&str>) -> Answer<VolumeInfo> {
        self.make_clone(base, vmid, name).await
    }

    async fn make_base(&self, name: &str) -> Answer<VolumeInfo> {
        let name = name.to_owned();
        self.blocking("make a base volume", move |inner| inner.make_base(&name)).await
    }

    async fn rename(&self, name: &str, vmid: Vmid, to: Option<&str>) -> Answer<VolumeInfo> {
        let (name, to) = (name.to_owned(), to.map(str::to_owned));
        self.blocking("rename a volume", move |inner| inner.rename(&name, vmid, to.as_deref())).await
    }

    async fn check_brought(&self, name: &str) -> Answer<()> {
        let name = name.to_owned();
        self.blocking("look into a disk", move |inner| inner.check_brought(&inner.root()?, &name)).await
    }

    async fn resolve(&self, name: &str) -> Answer<ResolvedVolume> {
        let name = name.to_owned();
        self.blocking("find a volume", move |inner| {
            let root = inner.root()?;
            let (volume, _) = inner.open_volume(&root, &name, OFlags::RDONLY)?;
            // What a guest reads from a CD or a raw image is the file itself.
            let format = if volume.format == "qcow2" { "qcow2" } else { "raw" };
            Ok(ResolvedVolume {
                volume: format!("{}:{name}", inner.id),
                path: root.path(&volume.path),
                format: format.to_owned(),
            })
        })
        .await
    }

    async fn spool(&self) -> Answer<PathBuf> {
        let me = self.clone();
        self.blocking("make a file in the spool folder", move |inner| {
            let root = inner.root()?;
            let (discard, _) = me.begin(&root)?;
            // From now on the caller's; what it leaves goes with the folder.
            Ok(root.path(&discard.keep()))
        })
        .await
    }

    async fn adopt_file(&self, spooled: PathBuf, content: Content, name: &str) -> Answer<VolumeInfo> {
        let name = name.to_owned();
        self.blocking("take in a file", move |inner| inner.adopt(&spooled, content, &name)).await
    }
}
