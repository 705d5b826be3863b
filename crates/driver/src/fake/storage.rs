//! A storage in memory.

use super::images::{self, Kept};
use crate::guest::ResolvedVolume;
use crate::storage::{
    Content, NewCopy, NewVolume, Space, StorageDriver, StorageError, VolumeInfo, Watch, is_plain_name,
};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stead_model::{StorageId, Vmid, VolumeId};
use tokio::sync::Semaphore;

/// A storage whose volumes are entries of a map. Clones are the same storage, as seen by other nodes.
///
/// Uploads are spooled as real files below the folder given to [`FakeStorage::new`].
#[derive(Debug, Clone)]
pub struct FakeStorage {
    id: StorageId,
    capacity: u64,
    folder: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    volumes: BTreeMap<String, VolumeInfo>,
    spooled: u64,
    away: Option<String>,
    read_only: Option<String>,
    /// An operation that fails, once it has worked so many times.
    failing: Option<(&'static str, usize)>,
    /// An operation that waits in the middle.
    gate: Option<(&'static str, Arc<Gate>)>,
}

/// Where an operation of a [`FakeStorage`] waits, so that a test can do something in its middle.
#[derive(Debug)]
pub struct Gate {
    reached: Semaphore,
    open: Semaphore,
}

impl Gate {
    /// Waits until the operation has come to it.
    pub async fn reached(&self) {
        let _ = self.reached.acquire().await;
    }

    /// Lets the operation go on.
    pub fn open(&self) {
        self.open.add_permits(1);
    }
}

impl FakeStorage {
    /// An empty storage of `capacity` bytes.
    pub fn new(id: StorageId, capacity: u64, folder: PathBuf) -> Self {
        Self { id, capacity, folder, state: Arc::default() }
    }

    /// Makes every call fail as if the server were away, or (with none) work again.
    pub fn set_away(&self, why: Option<&str>) {
        self.lock().away = why.map(str::to_owned);
    }

    /// Makes every replacement of a disk's content fail, or (with none) work again.
    pub fn set_read_only(&self, why: Option<&str>) {
        self.lock().read_only = why.map(str::to_owned);
    }

    /// Makes `snapshot`, `delete_snapshot`, `rollback_snapshot`, `copy`, `clone_base`, `make_base`, `rename`, `check_brought` or `free` fail once it has worked so many times; with none all work again.
    pub fn set_failing(&self, operation: Option<(&'static str, usize)>) {
        self.lock().failing = operation;
    }

    /// Has the next operation of that name wait at a gate.
    pub fn set_gate(&self, operation: &'static str) -> Arc<Gate> {
        let gate = Arc::new(Gate { reached: Semaphore::new(0), open: Semaphore::new(0) });
        self.lock().gate = Some((operation, gate.clone()));
        gate
    }

    async fn pass(&self, operation: &str) {
        let gate = self.lock().gate.take_if(|(at, _)| *at == operation);
        if let Some((_, gate)) = gate {
            gate.reached.add_permits(1);
            let _ = gate.open.acquire().await;
        }
    }

    /// The file that stands for a volume's image.
    fn image(&self, name: &str) -> PathBuf {
        self.folder.join(self.id.as_str()).join(name)
    }

    /// The snapshots of an image, before an operation on one of them.
    fn kept(
        &self,
        state: &mut State,
        name: &str,
        operation: &'static str,
    ) -> Result<Vec<Kept>, StorageError> {
        let volume = state.volumes.get(name).ok_or_else(|| self.missing(name))?;
        if volume.format != "qcow2" {
            let what = format!("snapshots of volume '{name}', which is {}", volume.format);
            return Err(StorageError::Unsupported { storage: self.id.clone(), what });
        }
        self.wear(state, operation)?;
        Ok(images::read(&self.image(name)))
    }

    /// Fails where it was told to.
    fn wear(&self, state: &mut State, operation: &'static str) -> Result<(), StorageError> {
        match &mut state.failing {
            Some((failing, 0)) if *failing == operation => {
                let why = "the medium is worn out".to_owned();
                return Err(StorageError::Failed {
                    what: operation.to_owned(),
                    storage: self.id.clone(),
                    why,
                });
            }
            Some((failing, left)) if *failing == operation => *left -= 1,
            _ => {}
        }
        Ok(())
    }

    /// The first name that no disk of a guest has, nor one of `besides`.
    fn free_name(&self, state: &State, id: Vmid, format: &str, besides: &[VolumeId]) -> String {
        let besides = besides.iter().filter(|v| v.storage == self.id).map(|v| &v.name);
        let names: Vec<&String> = state.volumes.keys().chain(besides).collect();
        let taken = |n: &u32| {
            let stems = ["vm", "base"].map(|kind| format!("{id}/{kind}-{id}-disk-{n}."));
            names.iter().any(|name| stems.iter().any(|stem| name.contains(stem)))
        };
        let n = (0..).find(|n| !taken(n)).unwrap_or(u32::MAX);
        format!("{id}/vm-{id}-disk-{n}.{format}")
    }

    /// A volume of a guest under a new name.
    fn add(
        &self,
        state: &mut State,
        name: String,
        (format, size): (&str, u64),
        vmid: Vmid,
        parent: Option<String>,
    ) -> Result<VolumeInfo, StorageError> {
        if state.volumes.contains_key(&name) {
            return Err(StorageError::Exists(format!("{}:{name}", self.id)));
        }
        let made = self.volume(name.clone(), Content::Images, format, size, Some(vmid));
        let made = VolumeInfo { parent, ..made };
        state.volumes.insert(name, made.clone());
        Ok(made)
    }

    /// Where a snapshot is among those of an image.
    fn find(&self, all: &[Kept], name: &str, snapshot: &str) -> Result<usize, StorageError> {
        let missing = || StorageError::NoSnapshot {
            volume: format!("{}:{name}", self.id),
            snapshot: snapshot.to_owned(),
        };
        all.iter().position(|k| k.name == snapshot).ok_or_else(missing)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn there(&self) -> Result<MutexGuard<'_, State>, StorageError> {
        let state = self.lock();
        match &state.away {
            None => Ok(state),
            Some(why) => Err(StorageError::Unavailable { storage: self.id.clone(), why: why.clone() }),
        }
    }

    fn room(&self, state: &State, more: u64, what: &str) -> Result<(), StorageError> {
        let used: u64 = state.volumes.values().map(|v| v.used).sum();
        if used.saturating_add(more) > self.capacity {
            return Err(StorageError::Full { storage: self.id.clone(), what: what.to_owned() });
        }
        Ok(())
    }

    fn volume(
        &self,
        name: String,
        content: Content,
        format: &str,
        size: u64,
        vmid: Option<Vmid>,
    ) -> VolumeInfo {
        VolumeInfo {
            volid: VolumeId { storage: self.id.clone(), name },
            content,
            format: format.to_owned(),
            size,
            used: size,
            vmid,
            ctime: 0,
            parent: None,
        }
    }

    fn missing(&self, name: &str) -> StorageError {
        StorageError::NoVolume(format!("{}:{name}", self.id))
    }
}

fn invalid<T>(parameter: &'static str, why: impl Into<String>) -> Result<T, StorageError> {
    Err(StorageError::Invalid { parameter, why: why.into() })
}

/// The folder of an upload's content, and the suffixes besides those of [`Content::brought`].
fn upload(content: Content) -> (&'static str, &'static [&'static str]) {
    match content {
        Content::Images | Content::Rootdir => ("images", &[".raw", ".qcow2"]),
        Content::Iso => ("iso", &[]),
        Content::Vztmpl => ("vztmpl", &[]),
        Content::Backup => ("backup", &[".vma", ".vma.zst"]),
        Content::Snippets => ("snippets", &[""]),
        Content::Import => ("import", &[]),
    }
}

#[async_trait]
impl StorageDriver for FakeStorage {
    fn id(&self) -> &StorageId {
        &self.id
    }

    async fn activate(&self) -> Result<(), StorageError> {
        self.there().map(|_| ())
    }

    async fn space(&self) -> Result<Space, StorageError> {
        let used = self.there()?.volumes.values().map(|v| v.used).sum();
        Ok(Space { total: self.capacity, used, avail: self.capacity.saturating_sub(used) })
    }

    async fn list(
        &self,
        content: Option<Content>,
        vmid: Option<Vmid>,
    ) -> Result<Vec<VolumeInfo>, StorageError> {
        let state = self.there()?;
        let wanted = |v: &&VolumeInfo| {
            content.is_none_or(|c| c == v.content) && vmid.is_none_or(|id| v.vmid == Some(id))
        };
        Ok(state.volumes.values().filter(wanted).cloned().collect())
    }

    async fn info(&self, name: &str) -> Result<VolumeInfo, StorageError> {
        self.there()?.volumes.get(name).cloned().ok_or_else(|| self.missing(name))
    }

    async fn alloc(&self, new: &NewVolume) -> Result<VolumeInfo, StorageError> {
        let mut state = self.there()?;
        let format = new.format.as_deref().unwrap_or("raw");
        if !matches!(format, "raw" | "qcow2") {
            return invalid("format", format!("'{format}' is not supported: use raw or qcow2"));
        }
        if new.size == 0 {
            return invalid("size", "a disk has at least one byte");
        }
        let size = new.size.next_multiple_of(512);
        self.room(&state, size, "allocate a disk")?;
        let id = new.vmid;
        let name = match &new.name {
            Some(file) => {
                let fits = file.strip_prefix(&format!("vm-{id}-")).is_some_and(|rest| !rest.is_empty());
                if !is_plain_name(file) || !fits {
                    return invalid("filename", format!("illegal name - should be 'vm-{id}-*'"));
                }
                let suffixed = file.ends_with(&format!(".{format}"));
                format!("{id}/{file}{}", if suffixed { String::new() } else { format!(".{format}") })
            }
            None => self.free_name(&state, id, format, &[]),
        };
        let made = self.add(&mut state, name, (format, size), id, None)?;
        // For those who write what it holds by themselves.
        images::make(&self.image(&made.volid.name)).map_err(|e| self.failed("allocate a disk", &e))?;
        Ok(made)
    }

    async fn next_name(
        &self,
        vmid: Vmid,
        format: Option<&str>,
        base: Option<&str>,
        besides: &[VolumeId],
    ) -> Result<VolumeId, StorageError> {
        let state = self.there()?;
        let name = match base {
            None => self.free_name(&state, vmid, format.unwrap_or("raw"), besides),
            Some(base) => format!("{base}/{}", self.free_name(&state, vmid, "qcow2", besides)),
        };
        Ok(VolumeId { storage: self.id.clone(), name })
    }

    async fn copy(&self, new: &NewCopy, watch: Watch<'_>) -> Result<VolumeInfo, StorageError> {
        drop(self.there()?);
        watch(0.5);
        self.pass("copy").await;
        let mut state = self.there()?;
        self.wear(&mut state, "copy")?;
        let format = new.format.as_deref().unwrap_or("raw");
        let size = new.size.unwrap_or(1 << 20);
        self.room(&state, size, "copy a disk")?;
        let name = match &new.name {
            Some(file) => format!("{}/{file}", new.vmid),
            None => self.free_name(&state, new.vmid, format, &[]),
        };
        watch(1.0);
        self.add(&mut state, name, (format, size), new.vmid, None)
    }

    async fn clone_base(
        &self,
        base: &str,
        vmid: Vmid,
        name: Option<&str>,
    ) -> Result<VolumeInfo, StorageError> {
        self.pass("clone_base").await;
        let mut state = self.there()?;
        self.wear(&mut state, "clone_base")?;
        let size = state.volumes.get(base).ok_or_else(|| self.missing(base))?.size;
        if !base.contains("/base-") {
            return invalid("volume", format!("'{base}' is no base volume"));
        }
        let name = match name {
            Some(file) => format!("{vmid}/{file}"),
            None => self.free_name(&state, vmid, "qcow2", &[]),
        };
        let parent = Some(format!("../{base}"));
        self.add(&mut state, format!("{base}/{name}"), ("qcow2", size), vmid, parent)
    }

    async fn make_base(&self, name: &str) -> Result<VolumeInfo, StorageError> {
        let mut state = self.there()?;
        self.wear(&mut state, "make_base")?;
        let old = state.volumes.get(name).cloned().ok_or_else(|| self.missing(name))?;
        let own = name.rsplit('/').next().unwrap_or_default();
        let (Some(vmid), Some(rest)) = (old.vmid, own.strip_prefix("vm-")) else { return Ok(old) };
        let base = format!("{vmid}/base-{rest}");
        if let Some(there) = state.volumes.get(&base) {
            return Ok(there.clone());
        }
        self.add(&mut state, base, (&old.format, old.size), vmid, old.parent)
    }

    async fn rename(&self, name: &str, vmid: Vmid, to: Option<&str>) -> Result<VolumeInfo, StorageError> {
        let mut state = self.there()?;
        self.wear(&mut state, "rename")?;
        let old = state.volumes.get(name).cloned().ok_or_else(|| self.missing(name))?;
        let own = match to {
            Some(file) => format!("{vmid}/{file}"),
            None => self.free_name(&state, vmid, &old.format, &[]),
        };
        let new = match old.parent.as_deref().and_then(|parent| parent.strip_prefix("../")) {
            Some(base) => format!("{base}/{own}"),
            None => own,
        };
        self.add(&mut state, new, (&old.format, old.size), vmid, old.parent)
    }

    async fn snapshots(&self, name: &str) -> Result<Vec<String>, StorageError> {
        let all = self.kept(&mut *self.there()?, name, "list")?;
        Ok(all.into_iter().map(|k| k.name).collect())
    }

    async fn snapshot(&self, name: &str, snapshot: &str) -> Result<(), StorageError> {
        self.pass("snapshot").await;
        let mut state = self.there()?;
        let mut all = self.kept(&mut state, name, "snapshot")?;
        if self.find(&all, name, snapshot).is_ok() {
            let volume = format!("{}:{name}", self.id);
            return Err(StorageError::SnapshotExists { volume, snapshot: snapshot.to_owned() });
        }
        let size = state.volumes.get(name).map(|v| v.size);
        all.push(Kept { name: snapshot.to_owned(), size });
        images::write(&self.image(name), &all).map_err(|e| self.failed("keep a state", &e))
    }

    async fn delete_snapshot(&self, name: &str, snapshot: &str) -> Result<(), StorageError> {
        self.pass("delete_snapshot").await;
        let mut all = self.kept(&mut *self.there()?, name, "delete_snapshot")?;
        all.remove(self.find(&all, name, snapshot)?);
        images::write(&self.image(name), &all).map_err(|e| self.failed("forget a state", &e))
    }

    async fn rollback_snapshot(&self, name: &str, snapshot: &str) -> Result<(), StorageError> {
        self.pass("rollback_snapshot").await;
        let mut state = self.there()?;
        let all = self.kept(&mut state, name, "rollback_snapshot")?;
        let size = all[self.find(&all, name, snapshot)?].size;
        if let (Some(volume), Some(size)) = (state.volumes.get_mut(name), size) {
            (volume.size, volume.used) = (size, size);
        }
        Ok(())
    }

    async fn free(&self, name: &str) -> Result<(), StorageError> {
        let mut state = self.there()?;
        self.wear(&mut state, "free")?;
        let backing = format!("../{name}");
        let built = |v: &&VolumeInfo| v.parent.as_deref() == Some(&backing);
        if let Some(clone) = state.volumes.values().find(built) {
            let (volume, clones) = (format!("{}:{name}", self.id), clone.volid.name.clone());
            return Err(StorageError::HasClones { volume, clones });
        }
        images::remove(&self.image(name));
        state.volumes.remove(name).map(|_| ()).ok_or_else(|| self.missing(name))
    }

    async fn resize(&self, name: &str, size: u64) -> Result<(), StorageError> {
        let mut state = self.there()?;
        let old = state.volumes.get(name).ok_or_else(|| self.missing(name))?.size;
        let size = size.next_multiple_of(512);
        if size < old {
            return invalid("size", "shrinking disks is not supported");
        }
        self.room(&state, size - old, &format!("resize volume '{name}'"))?;
        if let Some(volume) = state.volumes.get_mut(name) {
            (volume.size, volume.used) = (size, size);
        }
        Ok(())
    }

    async fn replace(&self, name: &str, spooled: PathBuf) -> Result<VolumeInfo, StorageError> {
        let mut state = self.there()?;
        if let Some(why) = &state.read_only {
            return Err(self.failed("replace a disk's content", &std::io::Error::other(why.clone())));
        }
        let volume = state.volumes.get_mut(name).ok_or_else(|| self.missing(name))?;
        let size =
            std::fs::metadata(&spooled).and_then(|meta| self.keep(&spooled, name).map(|()| meta.len()));
        volume.size = size.map_err(|e| self.failed("replace a disk's content", &e))?;
        Ok(volume.clone())
    }

    async fn check_brought(&self, name: &str) -> Result<(), StorageError> {
        self.wear(&mut *self.there()?, "check_brought")?;
        let info = self.info(name).await?;
        let whole = std::fs::read(self.image(name)).unwrap_or_default();
        match info.format == "qcow2" && whole.starts_with(b"backed") {
            true => invalid("volume", "it is built on another image"),
            false => Ok(()),
        }
    }

    async fn resolve(&self, name: &str) -> Result<ResolvedVolume, StorageError> {
        let info = self.info(name).await?;
        let format = if info.format == "qcow2" { "qcow2" } else { "raw" };
        let path = self.image(name);
        Ok(ResolvedVolume { volume: info.volid.to_string(), path, format: format.to_owned() })
    }

    async fn spool(&self) -> Result<PathBuf, StorageError> {
        let path = {
            let mut state = self.there()?;
            state.spooled += 1;
            self.folder.join(format!("spool-{}", state.spooled))
        };
        std::fs::write(&path, b"").map_err(|e| self.failed("spool a file", &e))?;
        Ok(path)
    }

    async fn adopt_file(
        &self,
        spooled: PathBuf,
        content: Content,
        name: &str,
    ) -> Result<VolumeInfo, StorageError> {
        let mut state = self.there()?;
        if !self.own(&spooled) {
            return invalid("filename", "not spooled on this storage");
        }
        let (folder, suffixes) = upload(content);
        let file = name.strip_prefix(&format!("{folder}/")).unwrap_or(name);
        let fits = content.suffix_of(file).is_some() || suffixes.iter().any(|s| file.ends_with(s));
        if !is_plain_name(file) || !fits {
            return invalid("volume", format!("unable to parse volume name '{}'", name.escape_debug()));
        }
        let full = format!("{folder}/{file}");
        if state.volumes.contains_key(&full) {
            return Err(StorageError::Exists(format!("{}:{full}", self.id)));
        }
        if !self.own(&spooled) {
            return invalid("filename", "not spooled on this storage");
        }
        let size = std::fs::metadata(&spooled).map_err(|e| self.failed("take in a file", &e))?.len();
        self.room(&state, size, "take in a file")?;
        self.keep(&spooled, &full).map_err(|e| self.failed("take in a file", &e))?;
        let format = match content {
            Content::Snippets => "snippet",
            Content::Iso => "iso",
            _ => file.rsplit_once('.').map_or("raw", |(_, suffix)| suffix),
        };
        let made = self.volume(full.clone(), content, format, size, None);
        state.volumes.insert(full, made.clone());
        Ok(made)
    }
}

impl FakeStorage {
    /// Whether a file is one that was spooled here.
    fn own(&self, file: &Path) -> bool {
        file.parent() == Some(&self.folder)
            && file.file_name().is_some_and(|n| n.to_str().is_some_and(|n| n.starts_with("spool-")))
    }

    /// Puts a spooled file where a volume's name resolves to.
    fn keep(&self, spooled: &Path, name: &str) -> std::io::Result<()> {
        let path = self.image(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        std::fs::rename(spooled, path)
    }

    fn failed(&self, what: &str, e: &std::io::Error) -> StorageError {
        StorageError::Failed { what: what.to_owned(), storage: self.id.clone(), why: e.to_string() }
    }
}
