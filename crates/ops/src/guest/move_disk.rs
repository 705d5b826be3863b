//! A disk of a VM gets another place, also while the VM runs.
//!
//! ```text
//!  locked (clone), what is made named ─▶ mirror ─▶ in step ─▶ the VM stands, and all that it wrote is on both disks
//!      ─▶ the new place is committed, the old one an unused volume ─▶ the guest goes over, and on ─▶ unlocked, the old place freed
//! ```
//!
//! From the moment when the mirror is in step until the guest has gone over, each write is in both places, and what is flushed is flushed
//! in the old one. So the VM stands while the configuration changes from one to the other: to stand, all is flushed everywhere, and a node
//! that dies then leaves two places that are the same. It is safe to be cut off anywhere. Whoever finds the lock of a dead task asks the guest where its disk is, and has it go over, or
//! writes down that it has not; a copy that no configuration names is removed. That a mirror has vanished, as it does when the fence
//! process makes a guest safe, is a failure.

use super::Asked;
use super::copies::{Telling, check_format, file_of, limit, placed};
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use std::sync::Arc;
use stead_driver::guest::{CopyKind, CopyPhase, CopyTo, DiskCopy, RunState};
use stead_driver::storage::{NewCopy, NewVolume, VolumeInfo};
use stead_guest::clones::CLONING;
use stead_guest::request::{Request, Verdict};
use stead_model::vmconfig::{Bus, Disk, VmConfig};
use stead_model::{StorageId, Upid, Vmid, VolumeId};
use stead_tasks::TaskContext;

/// Where a disk is to go.
#[derive(Debug, Clone, Default)]
pub struct MoveOptions {
    /// The disk's option.
    pub disk: String,
    /// The storage; none: the one where it is.
    pub storage: Option<StorageId>,
    /// The format; none: the one that it has.
    pub format: Option<String>,
    /// Remove the old volume, rather than keep it as an unused one.
    pub delete: bool,
    /// KiB a second at most.
    pub bwlimit: Option<u64>,
    /// The configuration's version that the user has seen.
    pub digest: Option<String>,
    /// The VM that is to have it.
    pub target: Option<Vmid>,
    /// The option by which that has it; none: the same.
    pub target_disk: Option<String>,
    /// The version of that VM's configuration that the user has seen.
    pub target_digest: Option<String>,
}

/// A move that can be.
struct Plan {
    config: VmConfig,
    disk: Disk,
    from: VolumeInfo,
    storage: StorageId,
    format: String,
}

impl Ops {
    /// Moves a disk of a VM of this node to another storage, format or VM.
    pub async fn move_disk(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        options: MoveOptions,
    ) -> Result<Upid, OpsError> {
        if let Some(target) = options.target {
            return self.reassign(actor, vmid, target, options).await;
        }
        let guest = self.vm_at(vmid)?;
        super::config::check_digest(options.digest.as_deref(), &super::config::parse(&guest.config.value)?)?;
        self.plan_move(actor, &guest, &options).await?;
        let (ops, by) = (self.clone(), actor.clone());
        self.task("qmmove", &vmid.to_string(), &actor.who, move |cx| async move {
            ops.move_now(&cx, &by, vmid, &options).await
        })
    }

    async fn plan_move(
        &self,
        actor: &Actor,
        guest: &GuestAt,
        options: &MoveOptions,
    ) -> Result<Plan, OpsError> {
        let vmid = guest.vmid;
        if let Verdict::Refuse(why) = self.admit(guest, Request::MoveDisk, Asked::default()).await? {
            return Err(OpsError::Failed(why));
        }
        check_format(options.format.as_deref())?;
        let config = super::config::parse(&guest.config.value)?;
        let (disk, volume) = own_disk(&config, &options.disk)?;
        let refuse = |why: &str| Err(OpsError::invalid("disk", format!("'{}' {why}", options.disk)));
        if disk.bus == Bus::Unused {
            return refuse("is not used: only another VM can get it (target-vmid)");
        }
        let runs = self.guests.state(vmid).await.map(|p| p.state);
        if runs.is_some() && disk.bus == Bus::Efidisk {
            return refuse("can't be moved while the VM runs: shut it down first");
        }
        if let Some(state @ (RunState::Prelaunch | RunState::Unresponsive)) = runs {
            return Err(OpsError::failed(format!("can't move a disk of VM {vmid} while it is {state:?}")));
        }
        if config.pending.set.get(&disk.key).is_some() || config.pending.delete.contains_key(&disk.key) {
            return refuse("has pending changes: revert them, or restart the VM first");
        }
        let storage = options.storage.clone().unwrap_or_else(|| volume.storage.clone());
        actor.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
        self.check_holds_disks(&storage)?;
        let from = self.volume_info(&volume).await?;
        let format = options.format.clone().unwrap_or_else(|| from.format.clone());
        if storage == volume.storage && format == from.format {
            let why = "you can't move to the same storage with same format".to_owned();
            return Err(OpsError::invalid("storage", why));
        }
        let kept = config.snapshots.values().any(|s| s.volumes().iter().any(|(_, v)| v.is_same(&volume)));
        if kept && options.delete {
            let why = "you can't move a disk with snapshots and delete the source".to_owned();
            return Err(OpsError::invalid("delete", why));
        }
        Ok(Plan { config, disk, from, storage, format })
    }

    async fn move_now(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        options: &MoveOptions,
    ) -> Result<(), OpsError> {
        let (guest, plan, to) = {
            let _lock = self.guest_locks.lock(vmid).await?;
            let guest = self.own_guest(vmid).await?;
            let config = super::config::parse(&guest.config.value)?;
            super::config::check_digest(options.digest.as_deref(), &config)?;
            let plan = self.plan_move(actor, &guest, options).await?;
            let driver = self.active(&plan.storage).await?;
            let to = driver.next_name(vmid, Some(&plan.format), None, &[]).await?;
            let begun = store::txn(&actor.who, format!("VM {vmid}: move of disk '{}' begun", plan.disk.key));
            let made = vec![to.clone()];
            let guest =
                self.lock_making(guest, plan.config.clone(), (CLONING, cx.upid()), made, begun).await?;
            (guest, plan, to)
        };
        cx.log(format!("{}: moving '{}' to '{to}'", plan.disk.key, plan.from.volid));
        let mut is_made = false;
        let done = match self.guests.state(vmid).await {
            Some(_) => self.move_live(cx, actor, &guest, &plan, (&to, &mut is_made), options).await,
            None => self.move_offline(cx, actor, &guest, &plan, (&to, &mut is_made), options).await,
        };
        let Err(e) = done else { return Ok(()) };
        let what = format!("could not move disk '{}' of VM {vmid}: {e}", plan.disk.key);
        // Where nobody knows whether the new place is recorded, whoever finds the lock asks the guest once that is known.
        if !matches!(e, OpsError::Undecided(_)) {
            let ended = async {
                let _lock = self.guest_locks.lock(vmid).await?;
                // What has that name else is another's.
                let made: Vec<VolumeId> = is_made.then_some(to).into_iter().collect();
                self.end_half_copied(&self.own_guest(vmid).await?, &made).await
            };
            if let Err(left) = ended.await {
                cx.warn(format!("what there is of it could not be ended yet: {left}"));
            }
        }
        Err(OpsError::failed(what))
    }

    /// The guest as it is now, still locked for this move and with the disk where it was.
    async fn still_moving(&self, guest: &GuestAt, plan: &Plan) -> Result<(GuestAt, VmConfig), OpsError> {
        self.still_own(guest).await?;
        let now = self.own_guest(guest.vmid).await?;
        let config = super::config::parse(&now.config.value)?;
        let same = config.current.get(&plan.disk.key) == plan.config.current.get(&plan.disk.key);
        if config.current.lock() != Some(CLONING) || !same {
            return Err(OpsError::failed("somebody has unlocked the VM, or changed the disk, in the middle"));
        }
        Ok((now, config))
    }

    async fn move_offline(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        guest: &GuestAt,
        plan: &Plan,
        (to, is_made): (&VolumeId, &mut bool),
        options: &MoveOptions,
    ) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        let new = NewCopy {
            vmid,
            name: file_of(to),
            format: Some(plan.format.clone()),
            of: self.image_of(&plan.from.volid, None).await?.0,
            size: Some(plan.from.size),
            limit: limit(options.bwlimit),
        };
        let made = self.copy_image(cx, &plan.storage, &new).await?;
        *is_made = true;
        let _lock = self.guest_locks.lock(vmid).await?;
        let (now, mut config) = self.still_moving(guest, plan).await?;
        config.current.set(&plan.disk.key, &placed(&plan.disk, to, made.size)?)?;
        if !options.delete {
            config.keep_unused(vmid, &plan.from.volid)?;
        }
        self.commit_moved(cx, actor, now, config, plan, options).await
    }

    async fn move_live(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        guest: &GuestAt,
        plan: &Plan,
        (to, is_made): (&VolumeId, &mut bool),
        options: &MoveOptions,
    ) -> Result<(), OpsError> {
        let (vmid, key) = (guest.vmid, &plan.disk.key);
        let (name, format) = (file_of(to), Some(plan.format.clone()));
        let new = NewVolume { vmid, name, format, size: plan.from.size };
        let made = self.active(&plan.storage).await?.alloc(&new).await?;
        *is_made = true;
        let value = plan.config.current.get(key).unwrap_or_default().to_owned();
        let copy = DiskCopy { disk: key.clone(), value, to: CopyTo::Volume(self.resolve_volume(to).await?) };
        self.guests.copy_disks(vmid, &[copy], CopyKind::Mirror, limit(options.bwlimit)).await?;
        let tell = Telling::new(cx, Some(plan.from.size));
        self.follow_copies(cx, vmid, CopyPhase::InStep, &tell).await?;
        let _lock = self.guest_locks.lock(vmid).await?;
        let (now, mut config) = self.still_moving(guest, plan).await?;
        config.current.set(key, &placed(&plan.disk, to, made.size)?)?;
        // Also one that is to be removed: until the guest has gone over it is the one in use.
        let unused = config.keep_unused(vmid, &plan.from.volid)?;
        let place = store::txn(&actor.who, format!("VM {vmid}: disk '{key}' goes over to '{to}'"));
        let ran = self.guests.state(vmid).await.map(|p| p.state) == Some(RunState::Running);
        if ran {
            self.guests.pause(vmid).await?;
        }
        let over = async {
            let now = self.commit_with(&now, &config, place).await?;
            self.guests.pivot(vmid, key).await?;
            Ok::<_, OpsError>(now)
        };
        let over = over.await;
        // Also where nobody knows whether it is committed: each write is in both places still.
        if ran && let Err(e) = self.go_on(guest).await {
            cx.warn(format!("VM {vmid} could not be continued yet: {e}"));
        }
        let now = over?;
        cx.log(format!("{key} is on '{to}'"));
        if let Some(unused) = unused.filter(|_| options.delete) {
            config.current.remove(&unused);
        }
        if let Err(e) = self.guests.end_copies(vmid).await {
            cx.warn(format!("the old place may still be open: {e}"));
        }
        self.commit_moved(cx, actor, now, config, plan, options).await
    }

    /// Records that the disk has moved, and removes the old volume where that is wanted, if it is the VM's own and nothing of it
    /// names it any more. Until it is gone the VM stays locked, and the lock names it: so it goes, whoever dies when.
    async fn commit_moved(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        guest: GuestAt,
        config: VmConfig,
        plan: &Plan,
        options: &MoveOptions,
    ) -> Result<(), OpsError> {
        let (vmid, from) = (guest.vmid, &plan.from.volid);
        let mut done = store::txn(&actor.who, format!("VM {vmid}: disk '{}' moved", plan.disk.key));
        let is_free = !config.all_volumes().iter().any(|v| v.is_same(from));
        if !options.delete || !is_free || !self.is_own_volume(from, vmid).await {
            if options.delete {
                cx.warn(format!("volume '{from}' is kept: the VM still names it, or it is another's"));
            }
            return self.commit_unlocked(&guest, config, done).await;
        }
        // Named as nobody's by the very commit by which the VM has it no more: it goes, also when it can't now.
        self.leave(&mut done, vmid, std::slice::from_ref(from))?;
        self.commit_unlocked(&guest, config, done).await?;
        match self.free_loose(vmid).await {
            Ok(()) => cx.log(format!("removed volume '{from}'")),
            Err(e) => cx.warn(e.to_string()),
        }
        Ok(())
    }
}

/// A disk that is the VM's to give away, and its volume.
pub(super) fn own_disk(config: &VmConfig, key: &str) -> Result<(Disk, VolumeId), OpsError> {
    let mut disks = config.current.disks()?;
    disks.extend(config.current.unused()?);
    let found = disks.into_iter().find(|d| d.key == key);
    let disk = found.ok_or_else(|| OpsError::invalid("disk", format!("disk '{key}' does not exist")))?;
    if disk.cdrom {
        return Err(OpsError::invalid("disk", "you can't move a cdrom"));
    }
    if stead_guest::clones::is_fixed(config, key) {
        let why = format!("'{key}' is a template's, and clones may be built on it");
        return Err(OpsError::invalid("disk", why));
    }
    match disk.volume().cloned() {
        Some(volume) => Ok((disk, volume)),
        None => Err(OpsError::invalid("disk", format!("'{key}' is a path of the host and no volume"))),
    }
}
