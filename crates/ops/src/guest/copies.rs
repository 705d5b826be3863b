//! Copying disks: who reads a guest meanwhile, and how a copy is followed.
//!
//! A guest whose disks are read is locked (`clone`) by the first task that does, and unlocked by the last: many may make clones of
//! one template at once. No copy is made under the guest's mutex, since it may take hours: the mutex is taken to lock, and again for
//! what follows.

use super::lock;
use crate::store::{self, GuestAt};
use crate::{Ops, OpsError};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use stead_driver::guest::{CopyKind, CopyPhase, DiskCopy, GuestError, RunState};
use stead_driver::storage::{Image, NewCopy, VolumeInfo};
use stead_guest::clones::CLONING;
use stead_guest::request::{Request, Verdict};
use stead_model::vmconfig::{Disk, VmConfig};
use stead_model::{Size, StorageId, Upid, Vmid, VolumeId};
use stead_tasks::TaskContext;

/// How long a task waits for the mutex of a guest of which many clones are made at once.
const PATIENCE: Duration = Duration::from_secs(120);

/// The tasks of this daemon that read guests' disks.
#[derive(Debug, Default)]
pub struct Readers(Mutex<BTreeMap<Vmid, BTreeSet<Upid>>>);

impl Readers {
    fn change<T>(&self, f: impl FnOnce(&mut BTreeMap<Vmid, BTreeSet<Upid>>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn join(&self, vmid: Vmid, task: &Upid) {
        self.change(|all| all.entry(vmid).or_default().insert(task.clone()));
    }

    /// Whether nobody is left.
    fn leave(&self, vmid: Vmid, task: &Upid) -> bool {
        self.change(|all| {
            let left = all.get_mut(&vmid).is_some_and(|tasks| {
                tasks.remove(task);
                !tasks.is_empty()
            });
            if !left {
                all.remove(&vmid);
            }
            !left
        })
    }

    /// Whether a task reads a guest.
    pub(super) fn any(&self, vmid: Vmid) -> bool {
        self.change(|all| all.contains_key(&vmid))
    }
}

/// A limit in KiB a second as bytes; none and 0 are none.
pub(super) fn limit(kib: Option<u64>) -> Option<u64> {
    kib.filter(|k| *k > 0).map(|k| k.saturating_mul(1024))
}

/// Refuses formats in which nobody makes disks.
pub(super) fn check_format(format: Option<&str>) -> Result<(), OpsError> {
    match format {
        None | Some("raw" | "qcow2") => Ok(()),
        Some(other) => {
            Err(OpsError::invalid("format", format!("'{other}' is not supported: use raw or qcow2")))
        }
    }
}

/// A disk's value with another volume: what it was made as is the new storage's to say.
pub(super) fn placed(disk: &Disk, volume: &VolumeId, size: u64) -> Result<String, OpsError> {
    let mut disk = disk.clone();
    disk.props.remove("format");
    Ok(disk.with_volume(volume, Some(Size::bytes(size)))?)
}

/// The file's part of a volume's name.
pub(super) fn file_of(volume: &VolumeId) -> Option<String> {
    volume.name.rsplit('/').next().map(str::to_owned)
}

impl Ops {
    /// Locks a guest of this node for a task that reads its disks, beside others that do.
    pub(super) async fn begin_reading(&self, vmid: Vmid, task: &Upid) -> Result<GuestAt, OpsError> {
        let _lock = self.guest_locks.lock_within(vmid, PATIENCE).await?;
        let guest = self.own_guest(vmid).await?;
        if let Verdict::Refuse(why) = self.admit(&guest, Request::Clone, super::Asked::default()).await? {
            return Err(OpsError::Failed(why));
        }
        let locked = super::config::parse(&guest.config.value)?.current.lock().map(str::to_owned);
        let guest = match locked {
            None => self.set_lock(guest, CLONING, task).await?,
            Some(_) if self.guest_locks.readers.any(vmid) => guest,
            // Another task copies a disk that is to be its own.
            Some(lock) => return Err(OpsError::failed(format!("VM is locked ({lock})"))),
        };
        self.guest_locks.readers.join(vmid, task);
        Ok(guest)
    }

    /// The task reads it no more.
    pub(super) async fn end_reading(&self, vmid: Vmid, task: &Upid) {
        let lock = self.guest_locks.lock_within(vmid, PATIENCE).await;
        // Where the mutex can't be had, the next round of all guests finds a lock that nobody holds.
        let ours = || {
            let config = super::config::parse(&self.vm_at(vmid).ok()?.config.value).ok()?;
            (config.current.lock() == Some(CLONING)).then_some(())
        };
        if self.guest_locks.readers.leave(vmid, task) && lock.is_ok() && ours().is_some() {
            self.clear_lock(vmid).await;
        }
    }

    /// The image of a volume as it is, or as it was in a snapshot, and what is known of it.
    pub(super) async fn image_of(
        &self,
        volume: &VolumeId,
        snapshot: Option<&str>,
    ) -> Result<(Image, VolumeInfo), OpsError> {
        let info = self.volume_info(volume).await?;
        let found = self.resolve_volume(volume).await?;
        let snapshot = snapshot.map(str::to_owned);
        Ok((Image { path: found.path, format: found.format, snapshot, foreign: false, within: None }, info))
    }

    /// Refuses a storage that holds no disks.
    pub(super) fn check_holds_disks(&self, storage: &StorageId) -> Result<(), OpsError> {
        if self.storage(storage)?.holds("images") {
            return Ok(());
        }
        let why = format!("storage '{storage}' does not support content-type 'images'");
        Err(OpsError::invalid("storage", why))
    }

    /// Makes a copy, and tells the task's followers how far it is. It ends, and leaves nothing, when the task is to stop.
    pub(super) async fn copy_image(
        &self,
        cx: &TaskContext,
        storage: &StorageId,
        new: &NewCopy,
    ) -> Result<VolumeInfo, OpsError> {
        self.check_holds_disks(storage)?;
        let driver = self.active(storage).await?;
        let tell = Telling::new(cx, new.size);
        let watch = |share: f64| tell.share(share);
        let copied = cx.or_cancelled(driver.copy(new, &watch)).await;
        Ok(copied.map_err(|e| OpsError::failed(e.to_string()))??)
    }
}

impl Ops {
    /// Begins to copy disks of a running guest, as they are at one moment; its file systems are frozen in that if its agent does so.
    pub(super) async fn begin_copies(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        config: &VmConfig,
        copies: &[DiskCopy],
        limit: Option<u64>,
    ) -> Result<(), OpsError> {
        let mut frozen = false;
        if self.can_freeze(vmid, config).await {
            cx.log("freezing the guest's file systems");
            frozen = match self.order_agent(vmid, "guest-fsfreeze-freeze", &json!({})).await {
                Ok(_) => true,
                Err(e) => {
                    cx.warn(format!("the guest's file systems may be in the middle of something: {e}"));
                    matches!(e, GuestError::AgentLate(_))
                }
            };
        }
        let begun = self.guests.copy_disks(vmid, copies, CopyKind::Moment, limit).await;
        if frozen && let Err(e) = self.agent(vmid, "guest-fsfreeze-thaw", &json!({})).await {
            cx.warn(format!(
                "the guest's file systems may still be frozen: {e}. Thaw them by 'stead vm agent {vmid} fsfreeze-thaw'"
            ));
        }
        Ok(begun?)
    }

    /// Follows copies of a running guest's disks until they stand as wanted. One that is gone has failed.
    pub(super) async fn follow_copies(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        wanted: CopyPhase,
        tell: &Telling<'_>,
    ) -> Result<(), OpsError> {
        let mut seen = CopyPhase::None;
        loop {
            let now = tokio::select! {
                now = self.guests.copies_changed(vmid, seen) => now?,
                () = cx.cancelled() => return Err(OpsError::failed("interrupted by signal")),
            };
            seen = now.phase;
            match seen {
                phase if phase == wanted => {
                    tell.share(1.0);
                    return Ok(());
                }
                CopyPhase::Active => tell.share(now.done as f64 / now.total.max(1) as f64 * 0.999),
                CopyPhase::InStep | CopyPhase::Completed | CopyPhase::None | CopyPhase::Failed => {
                    let why = now.error.unwrap_or_else(|| "somebody has ended it".to_owned());
                    return Err(OpsError::failed(format!("copying has failed: {why}")));
                }
            }
        }
    }

    /// Writes down where the disks of a running guest are, if that is another of its volumes than the configuration says: it was to
    /// go over to it, or has, and whoever did that is no more. One that can still go over does. Under the guest's mutex.
    async fn settle_places(&self, guest: &GuestAt) -> Result<GuestAt, OpsError> {
        let vmid = guest.vmid;
        let mut config = super::config::parse(&guest.config.value)?;
        let mut changed = false;
        for disk in config.current.disks()?.into_iter().filter(|d| !d.cdrom && d.bus.has_drives()) {
            let Some(volume) = disk.volume() else { continue };
            let place = self.guests.disk_place(vmid, &disk.key).await?;
            if place == self.resolve_volume(volume).await?.path {
                continue;
            }
            let phase = self.guests.copies_changed(vmid, CopyPhase::InStep).await?.phase;
            if phase == CopyPhase::InStep && self.guests.pivot(vmid, &disk.key).await.is_ok() {
                continue;
            }
            // It may go over in this moment: where it is counts once nothing goes on any more.
            self.guests.end_copies(vmid).await?;
            let place = self.guests.disk_place(vmid, &disk.key).await?;
            if place == self.resolve_volume(volume).await?.path {
                continue;
            }
            let mut old = None;
            for unused in config.current.unused()? {
                if let Some(v) = unused.volume()
                    && self.resolve_volume(v).await.is_ok_and(|r| r.path == place)
                {
                    old = Some((unused.key.clone(), v.clone()));
                }
            }
            let Some((unused, old)) = old else {
                return Err(OpsError::failed(format!(
                    "its disk '{}' is on '{}', which its configuration does not name",
                    disk.key,
                    place.display()
                )));
            };
            tracing::warn!("guest {vmid}: its disk '{}' is on '{old}' still: written so", disk.key);
            let size = self.volume_info(&old).await?.size;
            config.current.remove(&unused);
            config.current.set(&disk.key, &placed(&disk, &old, size)?)?;
            config.keep_unused(vmid, volume)?;
            changed = true;
        }
        if !changed {
            return Ok(guest.clone());
        }
        let said = store::txn("root@pam", format!("VM {vmid}: where its disks are"));
        self.commit_with(guest, &config, said).await
    }

    /// Writes a configuration anew as it is: no proposal that was built on what is read now can be committed any more.
    pub(super) async fn shut_out(&self, guest: &GuestAt) -> Result<GuestAt, OpsError> {
        let config = super::config::parse(&guest.config.value)?;
        let said = store::txn("root@pam", format!("VM {}: what was left half-way is ended", guest.vmid));
        self.commit_with(guest, &config, said).await
    }

    /// Ends what a task has left that copied disks of a guest: the guest's part in it, and volumes that it made and the
    /// configuration does not name. Then the lock goes. Under the guest's mutex.
    pub(super) async fn end_half_copied(&self, guest: &GuestAt, making: &[VolumeId]) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        let ran = self.conf.view(|t| lock::ran(t, vmid))?
            && super::config::parse(&guest.config.value)?.current.lock() == Some(CLONING);
        let mut guest = self.shut_out(guest).await?;
        if let Some(process) = self.guests.state(vmid).await {
            guest = self.settle_places(&guest).await?;
            self.guests.end_copies(vmid).await?;
            // It stands while it goes over.
            if ran && process.state == RunState::Paused {
                self.go_on(&guest).await?;
            }
        }
        let named = super::config::parse(&guest.config.value)?.all_volumes();
        for volume in making.iter().filter(|v| !named.iter().any(|n| n.is_same(v))) {
            if self.free_if_there(volume).await? {
                tracing::warn!("guest {vmid}: '{volume}', a copy that was not whole, is removed");
            }
        }
        self.unlock(&guest).await
    }
}

/// Tells how far a copy is: its followers always, the log each tenth.
pub(super) struct Telling<'a> {
    cx: &'a TaskContext,
    size: Option<u64>,
    tenths: AtomicU32,
}

impl<'a> Telling<'a> {
    pub(super) fn new(cx: &'a TaskContext, size: Option<u64>) -> Self {
        Self { cx, size, tenths: AtomicU32::new(0) }
    }

    pub(super) fn share(&self, share: f64) {
        self.cx.progress(share);
        let tenths = (1..=10).take_while(|n| share * 10.0 >= f64::from(*n)).count();
        let tenths = u32::try_from(tenths).unwrap_or(10);
        if self.tenths.fetch_max(tenths, Ordering::Relaxed) < tenths {
            let of = self.size.map_or_else(String::new, |size| format!(" of {}", Size::bytes(size)));
            self.cx.log(format!("copied {tenths}0 %{of}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reader_puts_the_light_out() {
        let readers = Readers::default();
        let vmid: Vmid = "100".parse().unwrap();
        let task = |n: u8| -> Upid {
            format!("UPID:n1:00000001:{n:08}:00000001:qmclone:100:root@pam:").parse().unwrap()
        };
        assert!(!readers.any(vmid));
        readers.join(vmid, &task(1));
        readers.join(vmid, &task(2));
        assert!(!readers.leave(vmid, &task(1)) && readers.any(vmid));
        assert!(readers.leave(vmid, &task(2)) && !readers.any(vmid));
    }
}
