//! Copies of disks, base volumes, and the linked clones that are built on them.
//!
//! A base volume is a disk under another name (`base-100-disk-0.qcow2`) that nobody may write. A linked clone is a qcow2 image whose
//! header names it by a relative path, so that the directory may be mounted anywhere. What is copied is made in the spool, like
//! everything else. `qemu-img` is told each format: what a guest has written into its disk must not choose it.

use super::names::Volume;
use super::options::{Format, Preallocation};
use super::{Answer, Beneath, Content, DirStorage, Discard, Inner, Plan};
use crate::{qcow2, qemu_img};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::sync::Arc;
use stead_driver::storage::{Image, NewCopy, StorageError, VolumeInfo, Watch};
use stead_model::{Vmid, VolumeId};

const COPY: &str = "copy a disk";
const CLONE: &str = "make a linked clone";
const BASE: &str = "make a base volume";
const RENAME: &str = "rename a volume";

/// The formats that are read.
const READ: [&str; 3] = ["raw", "qcow2", "vmdk"];

/// An image of a given format, as `qemu-img` reads it.
fn opened(image: &Image) -> OsString {
    let driver = if image.path.starts_with("/dev") { "host_device" } else { "file" };
    let file = json!({ "driver": driver, "filename": image.path.to_string_lossy() });
    let file = match image.within {
        Some((offset, size)) => json!({ "driver": "raw", "offset": offset, "size": size, "file": file }),
        None => file,
    };
    let mut node = json!({ "driver": image.format, "file": file });
    if image.foreign && image.format == "qcow2" {
        // Whatever its header says.
        node["backing"] = serde_json::Value::Null;
    }
    if image.snapshot.is_some() {
        // What an image keeps does not change while a guest writes to it.
        node["force-share"] = true.into();
    }
    format!("json:{node}").into()
}

impl Inner {
    /// Refuses a disk that names other files. Only its header is read, and by this process: whatever it names is not opened.
    pub(super) fn check_brought(&self, root: &Beneath, name: &str) -> Answer<()> {
        let (volume, file) = self.open_volume(root, name, OFlags::RDONLY)?;
        if volume.format != "qcow2" {
            return Ok(());
        }
        let mut header = [0; qcow2::WHOLE];
        let read = file.read_exact_at(&mut header, 0).map_err(|e| e.to_string());
        read.and_then(|()| qcow2::check_alone(&header)).map_err(|why| StorageError::Invalid {
            parameter: "volume",
            why: format!("the image '{}:{name}' can't be taken: {why}", self.id),
        })
    }

    /// Refuses what others are built on. Each image of the storage says so itself.
    pub(super) fn check_no_clones(&self, root: &Beneath, name: &str, base: &Volume) -> Answer<()> {
        let mut tail = base.path.rsplit('/');
        let (file, vmid) = (tail.next().unwrap_or_default(), tail.next().unwrap_or_default());
        let backing = format!("../{vmid}/{file}");
        let mut clones = vec![];
        for other in self.names(root, Content::Images, None)? {
            match self.info(root, &other) {
                Ok(info) if info.parent.as_deref() == Some(&backing) => clones.push(other),
                Ok(_) | Err(StorageError::NoVolume(_) | StorageError::Unsupported { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        if clones.is_empty() {
            return Ok(());
        }
        clones.truncate(5);
        let volume = format!("{}:{name}", self.id);
        Err(StorageError::HasClones { volume, clones: clones.join(", ") })
    }

    /// Whether two names are those of one file.
    fn is_one(&self, root: &Beneath, a: &str, b: &str) -> bool {
        let id = |path: &str| {
            let file = root.file(path, OFlags::RDONLY, 0).ok()?;
            file.metadata().ok().map(|m| (m.dev(), m.ino()))
        };
        id(a).is_some_and(|a| id(b) == Some(a))
    }

    pub(super) fn make_base(&self, name: &str) -> Answer<VolumeInfo> {
        let root = self.root()?;
        let (volume, file) = self.open_volume(&root, name, OFlags::RDONLY)?;
        let (Some(vmid), Content::Images) = (volume.vmid, volume.content) else {
            return Err(self.not_a_disk(name));
        };
        if volume.is_base() {
            return self.info(&root, name);
        }
        let own = volume.path.rsplit('/').next().unwrap_or_default();
        let Some(rest) = own.strip_prefix(&format!("vm-{vmid}-")) else {
            return Err(self.not_a_disk(name));
        };
        let to = format!("{vmid}/base-{vmid}-{rest}");
        let path = self.volume(&to)?.path;
        match root.link(&volume.path, &path) {
            Ok(()) => {}
            // By one that was cut off.
            Err(Errno::EXIST) if self.is_one(&root, &volume.path, &path) => {}
            Err(Errno::EXIST) => return Err(StorageError::Exists(format!("{}:{to}", self.id))),
            Err(e) => return Err(self.errno(BASE, e)),
        }
        file.set_permissions(std::fs::Permissions::from_mode(0o440)).map_err(|e| self.io(BASE, &e))?;
        self.info(&root, &to)
    }

    fn not_a_disk(&self, name: &str) -> StorageError {
        let what = format!("'{name}' as what only a disk of a VM can be");
        StorageError::Unsupported { storage: self.id.clone(), what }
    }

    pub(super) fn rename(&self, name: &str, vmid: Vmid, to: Option<&str>) -> Answer<VolumeInfo> {
        let root = self.root()?;
        let (volume, _) = self.open_volume(&root, name, OFlags::RDONLY)?;
        let format = Format::parse(&volume.format).filter(|_| volume.content == Content::Images);
        let Some(format) = format.filter(|_| !volume.is_base()) else { return Err(self.not_a_disk(name)) };
        let plan = Plan::named(vmid, to, Some(format.as_str()), format)?;
        for n in 0..10_000 {
            let stem = self.stem("vm", vmid, n);
            let new = match &plan.file {
                Some(file) => format!("{vmid}/{file}"),
                None if self.is_taken(&root, &stem) => continue,
                None => format!("{stem}.{}", format.as_str()),
            };
            let path = self.volume(&new)?.path;
            let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
            root.make_dirs(dir).map_err(|e| self.errno(RENAME, e))?;
            match root.link(&volume.path, &path) {
                Ok(()) => return self.info(&root, &new),
                Err(Errno::EXIST) if plan.file.is_none() => {}
                Err(Errno::EXIST) => return Err(StorageError::Exists(format!("{}:{new}", self.id))),
                Err(e) => return Err(self.errno(RENAME, e)),
            }
        }
        Err(self.failed(RENAME, "no free name is left"))
    }

    /// The size of what a base volume holds, and its path from another volume's folder.
    fn base(&self, root: &Beneath, name: &str) -> Answer<(u64, String, String)> {
        let (volume, file) = self.open_volume(root, name, OFlags::RDONLY)?;
        if !volume.is_base() {
            let why = format!("'{name}' is no base volume: only what nobody writes can have linked clones");
            return Err(StorageError::Invalid { parameter: "volume", why });
        }
        let mut size = file.metadata().map_err(|e| self.io(CLONE, &e))?.len();
        if volume.format == "qcow2" {
            let mut bytes = [0; qcow2::LENGTH];
            file.read_exact_at(&mut bytes, 0).map_err(|e| self.io(CLONE, &e))?;
            let header =
                qcow2::parse(&bytes).ok_or_else(|| self.failed(CLONE, "its base is no qcow2 image"))?;
            size = header.virtual_size;
        }
        let mut tail = volume.path.rsplit('/');
        let (file, vmid) = (tail.next().unwrap_or_default(), tail.next().unwrap_or_default());
        Ok((size.next_multiple_of(512), format!("../{vmid}/{file}"), volume.format))
    }
}

impl DirStorage {
    pub(super) async fn find_name(
        &self,
        vmid: Vmid,
        format: Option<&str>,
        base: Option<&str>,
        besides: &[VolumeId],
    ) -> Answer<VolumeId> {
        let format = if base.is_some() { Some("qcow2") } else { format };
        let format = Plan::named(vmid, None, format, self.0.options.format)?.format;
        let besides: Vec<String> =
            besides.iter().filter(|v| v.storage == self.0.id).map(|v| v.name.clone()).collect();
        let base = base.map(|base| format!("{base}/")).unwrap_or_default();
        self.blocking("find a name for a disk", move |inner| {
            let root = inner.root()?;
            let free = |n: &u32| {
                let stem = inner.stem("vm", vmid, *n);
                let named = |name: &String| name.contains(&format!("{stem}."));
                !inner.is_taken(&root, &stem)
                    && !inner.is_taken(&root, &inner.stem("base", vmid, *n))
                    && !besides.iter().any(named)
            };
            let n = (0..10_000).find(free);
            let n = n.ok_or_else(|| inner.failed("find a name for a disk", "no free name is left"))?;
            let name = format!("{base}{}.{}", inner.stem("vm", vmid, n), format.as_str());
            Ok(VolumeId { storage: inner.id.clone(), name })
        })
        .await
    }

    pub(super) async fn make_copy(&self, new: &NewCopy, watch: Watch<'_>) -> Answer<VolumeInfo> {
        self.0.holds(Content::Images)?;
        let plan = Plan::named(new.vmid, new.name.as_deref(), new.format.as_deref(), self.0.options.format)?;
        if !READ.contains(&new.of.format.as_str()) {
            let why = format!("'{}' is not supported: images are {}", new.of.format, READ.join(", "));
            return Err(StorageError::Invalid { parameter: "format", why });
        }
        let from = opened(&new.of);
        if new.of.foreign {
            self.check_foreign(&from).await?;
        }
        let spooled = self.fresh(COPY).await?;
        let to = self.0.options.path.join(&spooled.spooled);
        let mut args: Vec<OsString> =
            ["convert", "-p", "-O", plan.format.as_str()].map(OsString::from).into();
        if let Some(snapshot) = &new.of.snapshot {
            args.extend(["-l".into(), format!("snapshot.name={snapshot}").into()]);
        }
        if let Some(limit) = new.limit {
            args.extend(["-r".into(), limit.to_string().into()]);
        }
        let all = self.0.options.preallocation;
        if plan.format == Format::Qcow2 || matches!(all, Preallocation::Falloc | Preallocation::Full) {
            args.extend(["-o".into(), format!("preallocation={}", all.as_str()).into()]);
        }
        args.extend([from, to.into_os_string()]);
        qemu_img::follow(args, watch).await.map_err(|e| self.0.image(COPY, e))?;
        self.publish_made(COPY, spooled, plan).await
    }

    /// Refuses an image that names other files.
    async fn check_foreign(&self, image: &OsString) -> Answer<()> {
        let args = ["info", "--output=json"].map(OsString::from).into_iter().chain([image.clone()]);
        let told = qemu_img::ask(args).await.map_err(|e| self.0.image("look into an image", e))?;
        qemu_img::check_alone(&told).map_err(|why| StorageError::Invalid {
            parameter: "import-from",
            why: format!("the image can't be taken: {why}"),
        })
    }

    pub(super) async fn make_clone(&self, base: &str, vmid: Vmid, name: Option<&str>) -> Answer<VolumeInfo> {
        self.0.holds(Content::Images)?;
        let plan = Plan::named(vmid, name, Some("qcow2"), Format::Qcow2)?;
        let below = base.to_owned();
        let (size, path, format) = self
            .blocking(CLONE, move |inner| {
                let root = inner.root()?;
                inner.base(&root, &below)
            })
            .await?;
        let spooled = self.fresh(CLONE).await?;
        let to = self.0.options.path.join(&spooled.spooled);
        // Unseen: from the spool's folder the relative path leads nowhere.
        let args = ["create", "-q", "-u", "-f", "qcow2", "-F", &format, "-b", &path].map(OsString::from);
        let args = args.into_iter().chain([to.into_os_string(), size.to_string().into()]);
        qemu_img::run(args).await.map_err(|e| self.0.image(CLONE, e))?;
        self.publish_made(CLONE, spooled, plan).await
    }

    /// An empty file in the spool.
    async fn fresh(&self, what: &str) -> Answer<Discard> {
        let me = self.clone();
        self.blocking(what, move |inner| Ok(me.begin(&inner.root()?)?.0)).await
    }

    /// Who does not wait for it any more has no volume.
    pub(super) async fn publish_made(&self, what: &str, made: Discard, plan: Plan) -> Answer<VolumeInfo> {
        let published = self.blocking(what, move |inner| {
            let info = inner.publish_disk(&inner.root()?, &made.spooled, &plan)?;
            Ok(Published { inner: made.inner.clone(), info: Some(info) })
        });
        published.await?.keep().ok_or_else(|| self.0.failed(what, "it was told of no volume"))
    }
}

/// A volume of which nobody has heard yet: unless somebody does, it goes.
struct Published {
    inner: Arc<Inner>,
    info: Option<VolumeInfo>,
}

impl Published {
    fn keep(mut self) -> Option<VolumeInfo> {
        self.info.take()
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Some(info) = &self.info
            && let Err(e) = self.inner.free(&info.volid.name)
        {
            tracing::warn!("'{}', which nobody waits for any more, could not be removed: {e}", info.volid);
        }
    }
}
