//! A storage: a place for volumes.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use stead_model::{StorageId, Vmid, VolumeId};

use crate::guest::ResolvedVolume;

/// What a storage may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Disks of VMs.
    Images,
    /// Container file systems.
    Rootdir,
    /// CD images.
    Iso,
    /// Container templates.
    Vztmpl,
    /// Backups.
    Backup,
    /// Hook scripts, cloud-init files.
    Snippets,
    /// Images to import.
    Import,
}

impl Content {
    /// How the names of files of this content end that a user may bring, in small letters; no others are taken. Empty:
    /// files of this content are not brought.
    pub fn brought(self) -> &'static [&'static str] {
        match self {
            Self::Iso => &["iso", "img"],
            Self::Vztmpl => &["tar.gz", "tar.xz", "tar.zst", "tar.bz2", "tar"],
            Self::Import => &["qcow2", "raw", "vmdk", "ova", "ovf"],
            Self::Images | Self::Rootdir | Self::Backup | Self::Snippets => &[],
        }
    }

    /// The one of [`Self::brought`] that a file's name ends in, in letters of any size; none if it does not fit.
    pub fn suffix_of(self, file: &str) -> Option<&'static str> {
        let name = file.to_ascii_lowercase();
        let ends = |s: &&&str| {
            name.strip_suffix(**s)
                .and_then(|stem| stem.strip_suffix('.'))
                .is_some_and(|stem| !stem.is_empty())
        };
        self.brought().iter().find(ends).copied()
    }
}

/// Whether a file's name is one path component, visible, of characters that clients and logs survive.
pub fn is_plain_name(file: &str) -> bool {
    (1..=255).contains(&file.len())
        && !file.starts_with('.')
        && !file.contains(['/', '\\', ':'])
        && !file.chars().any(char::is_control)
}

/// A volume as `content` lists it. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// The volume.
    pub volid: VolumeId,
    /// What it is.
    pub content: Content,
    /// `raw`, `qcow2`, `iso`, `snippet`, ...
    pub format: String,
    /// What a guest sees.
    pub size: u64,
    /// What it takes.
    pub used: u64,
    /// Whose it is.
    pub vmid: Option<Vmid>,
    /// Made, seconds since 1970.
    pub ctime: u64,
    /// The base image below it.
    pub parent: Option<String>,
}

/// Space in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// Taken.
    pub used: u64,
    /// Left.
    pub avail: u64,
}

/// A failed operation on a storage.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Its text carries "does not exist": clients decide by it.
    #[error("volume '{0}' does not exist")]
    NoVolume(String),
    /// The name is taken.
    #[error("volume '{0}' already exists")]
    Exists(String),
    /// The volume has no snapshot of that name.
    #[error("snapshot '{snapshot}' of volume '{volume}' does not exist")]
    NoSnapshot {
        /// The volume.
        volume: String,
        /// The snapshot.
        snapshot: String,
    },
    /// The volume has a snapshot of that name.
    #[error("volume '{volume}' has a snapshot '{snapshot}' already")]
    SnapshotExists {
        /// The volume.
        volume: String,
        /// The snapshot.
        snapshot: String,
    },
    /// Other volumes are built on it.
    #[error("base volume '{volume}' is still in use by linked clones ({clones}): remove them first")]
    HasClones {
        /// The volume.
        volume: String,
        /// Some of them.
        clones: String,
    },
    /// The storage may not hold this.
    #[error("storage '{storage}' does not support {what}")]
    Unsupported {
        /// The storage.
        storage: StorageId,
        /// What was asked of it.
        what: String,
    },
    /// A value that cannot be.
    #[error("{parameter}: {why}")]
    Invalid {
        /// Which one.
        parameter: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Not enough room; what was begun is removed.
    #[error("storage '{storage}' is full: could not {what}")]
    Full {
        /// The storage.
        storage: StorageId,
        /// What was attempted.
        what: String,
    },
    /// The storage is not there: not mounted, server away.
    #[error("storage '{storage}' is not available: {why}")]
    Unavailable {
        /// The storage.
        storage: StorageId,
        /// Why.
        why: String,
    },
    /// A question has had no answer. Whoever uses it may hang, and what they have written may still arrive.
    #[error("storage '{storage}' is not available: it has not answered for {seconds} s")]
    Silent {
        /// The storage.
        storage: StorageId,
        /// Since when.
        seconds: u64,
    },
    /// Anything else.
    #[error("could not {what} on storage '{storage}': {why}")]
    Failed {
        /// What was attempted.
        what: String,
        /// The storage.
        storage: StorageId,
        /// The cause.
        why: String,
    },
}

fn no(what: &str, storage: &StorageId) -> StorageError {
    StorageError::Unsupported { storage: storage.clone(), what: what.to_owned() }
}

fn no_snapshots(storage: &StorageId) -> StorageError {
    no("snapshots", storage)
}

/// What [`StorageDriver::alloc`] is to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Whose.
    pub vmid: Vmid,
    /// Its name (`vm-100-disk-0.qcow2`), or none: the first free `vm-VMID-disk-N`.
    pub name: Option<String>,
    /// `raw` or `qcow2`; none: the storage's default.
    pub format: Option<String>,
    /// Bytes.
    pub size: u64,
}

/// An image that is copied. No process may write to it meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The path of a file or block device.
    pub path: PathBuf,
    /// `raw`, `qcow2` or `vmdk`.
    pub format: String,
    /// The state that it keeps under this name, rather than its present one.
    pub snapshot: Option<String>,
    /// Somebody has brought it: one that names other files is refused, since it could name any of this host.
    pub foreign: bool,
    /// Where it is in the file: from which byte on, and how many; none: the file is the image.
    pub within: Option<(u64, u64)>,
}

/// What [`StorageDriver::copy`] is to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCopy {
    /// Whose.
    pub vmid: Vmid,
    /// Its name (`vm-100-disk-0.qcow2`), or none: the first free one.
    pub name: Option<String>,
    /// `raw` or `qcow2`; none: the storage's default.
    pub format: Option<String>,
    /// Of what.
    pub of: Image,
    /// How large that is for a guest, in bytes, where it is known.
    pub size: Option<u64>,
    /// Bytes a second at most.
    pub limit: Option<u64>,
}

/// Is told which share is done: 0 to 1.
pub type Watch<'a> = &'a (dyn Fn(f64) + Send + Sync);

/// One configured storage of one type. Blocking work runs off the async threads.
#[async_trait]
pub trait StorageDriver: Send + Sync {
    /// Its name.
    fn id(&self) -> &StorageId;
    /// Makes it usable on this node; repeated calls are cheap.
    async fn activate(&self) -> Result<(), StorageError>;
    /// How full it is.
    async fn space(&self) -> Result<Space, StorageError>;
    /// Whether guests could use it now, and how full it is. Unlike [`Self::activate`] it makes nothing that was there
    /// before and is gone, and where guests write it has something written, by the medium itself. Takes as long as the
    /// storage does, which may be for ever.
    async fn probe(&self) -> Result<Space, StorageError> {
        self.activate().await?;
        self.space().await
    }
    /// Its volumes, of one content and guest or all.
    async fn list(
        &self,
        content: Option<Content>,
        vmid: Option<Vmid>,
    ) -> Result<Vec<VolumeInfo>, StorageError>;
    /// One volume.
    async fn info(&self, name: &str) -> Result<VolumeInfo, StorageError>;
    /// Makes a disk. After an error, or a crash in the middle, no volume with a valid name is half made.
    async fn alloc(&self, new: &NewVolume) -> Result<VolumeInfo, StorageError>;
    /// Removes a volume; not one that others are built on.
    async fn free(&self, name: &str) -> Result<(), StorageError>;
    /// Grows a disk that no guest has open, to `size` bytes.
    async fn resize(&self, name: &str, size: u64) -> Result<(), StorageError>;
    /// Gives a disk another content in one step: that of a spooled file, raw, which is gone then. Who has the disk open
    /// goes on reading what it had. After an error, or a crash in the middle, the disk holds one of the two.
    async fn replace(&self, name: &str, spooled: PathBuf) -> Result<VolumeInfo, StorageError>;
    /// The names under which it keeps states of a volume, also while a guest has it open. Refuses a volume of which it can't keep
    /// any: those that do not say otherwise can't.
    async fn snapshots(&self, _name: &str) -> Result<Vec<String>, StorageError> {
        Err(no_snapshots(self.id()))
    }
    /// Keeps the present state of a volume that no guest has open. After an error there is none of that name, unless there was
    /// before.
    async fn snapshot(&self, _name: &str, _snapshot: &str) -> Result<(), StorageError> {
        Err(no_snapshots(self.id()))
    }
    /// Forgets a state of a volume that no guest has open. After an error it may be gone, or half gone: it is repeated.
    async fn delete_snapshot(&self, _name: &str, _snapshot: &str) -> Result<(), StorageError> {
        Err(no_snapshots(self.id()))
    }
    /// Gives a volume that no guest has open a state back, its size included; what it is now is lost. After an error it
    /// may be neither: it is repeated.
    async fn rollback_snapshot(&self, _name: &str, _snapshot: &str) -> Result<(), StorageError> {
        Err(no_snapshots(self.id()))
    }
    /// The name that a guest's next disk would get, were it made now and were there those `besides`: with a `base`, a
    /// linked clone of that. So a configuration can name it before it is made.
    async fn next_name(
        &self,
        _vmid: Vmid,
        _format: Option<&str>,
        _base: Option<&str>,
        _besides: &[VolumeId],
    ) -> Result<VolumeId, StorageError> {
        Err(no("copies", self.id()))
    }
    /// Makes a disk with the content of an image, which lies on any storage. After an error, and where it is dropped or
    /// cut off, nothing of it has a name.
    async fn copy(&self, _new: &NewCopy, _watch: Watch<'_>) -> Result<VolumeInfo, StorageError> {
        Err(no("copies", self.id()))
    }
    /// Makes a disk of a guest, `name` being its file's, that holds only what differs from a base volume of this storage.
    async fn clone_base(
        &self,
        _base: &str,
        _vmid: Vmid,
        _name: Option<&str>,
    ) -> Result<VolumeInfo, StorageError> {
        Err(no("linked clones", self.id()))
    }
    /// Gives a disk that nobody has open the name of a base volume, and lets nobody write it. Until its old name is freed it may
    /// have both, so that a configuration can be changed in between; repeated, it does the rest.
    async fn make_base(&self, _name: &str) -> Result<VolumeInfo, StorageError> {
        Err(no("base volumes", self.id()))
    }
    /// Gives a disk that nobody has open to another guest, under a name of its own or the first free one. Until its old name
    /// is freed it may have both.
    async fn rename(&self, _name: &str, _vmid: Vmid, _to: Option<&str>) -> Result<VolumeInfo, StorageError> {
        Err(no("other names of its volumes", self.id()))
    }
    /// Refuses a disk whose content was brought by somebody who may not choose files of this host, if it names any: an image that is
    /// built on another. Those that do not say otherwise can't tell.
    async fn check_brought(&self, _name: &str) -> Result<(), StorageError> {
        Err(no("disks of other clusters", self.id()))
    }
    /// What a guest's process opens.
    async fn resolve(&self, name: &str) -> Result<ResolvedVolume, StorageError>;
    /// A file on the storage's own file system to spool an upload into; removed at the next start if left over.
    async fn spool(&self) -> Result<PathBuf, StorageError>;
    /// Makes a spooled file a volume, in one step.
    async fn adopt_file(
        &self,
        spooled: PathBuf,
        content: Content,
        name: &str,
    ) -> Result<VolumeInfo, StorageError>;
}

/// Makes drivers of one storage type from their section of `storage.cfg`.
pub trait StorageType: Send + Sync {
    /// The type's name in `storage.cfg`, e.g. `dir`.
    fn name(&self) -> &'static str;
    /// Checks a section's options and makes its driver. `options` are the section's keys and values.
    fn open(
        &self,
        id: &StorageId,
        options: &std::collections::BTreeMap<String, String>,
    ) -> Result<std::sync::Arc<dyn StorageDriver>, StorageError>;
}
