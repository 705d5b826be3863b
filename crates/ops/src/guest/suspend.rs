//! Suspending a VM to disk, and having it go on: see [`stead_guest::saved`].
//!
//! That its memory is on disk and that it does not run is one commit. Before it the process can go on, and does when anything fails;
//! after it the process is destroyed, whoever finds it. In the same way it goes on: that the memory is of no use any more is
//! committed while the new process stands, and whoever finds that one afterwards has it run.

use super::Asked;
use super::hook::{BRIEF, LIMIT, Phase};
use super::lock;
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use std::sync::Arc;
use stead_driver::guest::RunState;
use stead_guest::request::{Request, Verdict};
use stead_guest::saved;
use stead_guest::snapshots::Held;
use stead_model::vmconfig::VmConfig;
use stead_model::{Ownership, StorageId, Upid, Vmid, paths};
use stead_tasks::TaskContext;

impl Ops {
    /// Writes the memory of a VM of this node to disk, on this storage if one is named, and ends its process.
    pub async fn suspend_to_disk(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        storage: Option<StorageId>,
        asked: Asked,
    ) -> Result<Upid, OpsError> {
        Self::check_skiplock(actor, asked.skiplock)?;
        let guest = self.vm_at(vmid)?;
        if let Verdict::Refuse(why) = self.admit(&guest, Request::Suspend, asked).await? {
            return Err(OpsError::Failed(why));
        }
        actor.require(&format!("/vms/{vmid}"), &["VM.Config.Disk"])?;
        let config = super::config::parse(&guest.config.value)?;
        Self::check_memory_is_whole(vmid, &config.current, "suspend to disk")?;
        self.may_save(actor, &guest, storage.clone())?;
        let ops = self.clone();
        self.task("qmsuspend", &vmid.to_string(), &actor.who, move |cx| async move {
            ops.suspend_now(&cx, vmid, storage, asked).await
        })
    }

    /// Refuses who may not have a volume where the memory of a VM would go.
    pub(super) fn may_save(
        &self,
        actor: &Actor,
        guest: &GuestAt,
        storage: Option<StorageId>,
    ) -> Result<(), OpsError> {
        let config = super::config::parse(&guest.config.value)?;
        let storage = self.memory_storage(&config, &volumes_beside(&config)?, storage)?;
        actor.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])
    }

    async fn suspend_now(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        storage: Option<StorageId>,
        asked: Asked,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        let guest = self.own_guest(vmid).await?;
        if let Verdict::Refuse(why) = self.admit(&guest, Request::Suspend, asked).await? {
            return Err(OpsError::Failed(why));
        }
        let guest = self.make_room_to_save(cx, vmid, saved::SAVING, storage).await?;
        let saved = async {
            self.save(cx, &guest).await?;
            self.record_saved(&guest).await
        };
        match saved.await {
            Ok(()) => {}
            // The next round of reconciliation reads whether it was.
            Err(e @ OpsError::Undecided(_)) => return Err(e),
            Err(e) => {
                self.unsave(vmid).await?;
                return Err(OpsError::failed(format!("VM {vmid} was not suspended: {e}")));
            }
        }
        cx.log(format!("VM {vmid} is suspended to disk: its next start has it go on"));
        self.undo_start(cx, vmid).await;
        Ok(())
    }

    /// Makes a volume for the memory of a VM that runs and locks the VM, which names the volume from then on. Under its mutex.
    pub(super) async fn make_room_to_save(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        lock: &str,
        storage: Option<StorageId>,
    ) -> Result<GuestAt, OpsError> {
        // The configuration must say what the machine is.
        self.true_up(vmid).await?;
        let guest = self.own_guest(vmid).await?;
        let mut config = super::config::parse(&guest.config.value)?;
        if config.current.get("vmstate").is_some() {
            return Err(OpsError::failed(format!(
                "VM {vmid} has memory on disk already (vmstate), which is not that of the VM as it runs, and goes with its next start"
            )));
        }
        Self::check_memory_is_whole(vmid, &config.current, "suspend to disk")?;
        let disks = volumes_beside(&config)?;
        // As no other is: what an earlier one may have left is not in its way, and is not taken for it.
        let name = format!("suspend-{}-{:08x}", guest.own.value.epoch, rand::random::<u32>());
        let (memory, room) = self.room_for_memory(vmid, &config, &disks, storage, &name).await?;
        saved::begin(&mut config, &memory)?;
        let txn = store::txn("root@pam", format!("guest {vmid}: its memory goes to '{}'", memory.volume));
        let guest = self.lock_with(guest, config, lock, cx.upid(), txn).await?;
        if let Err(e) = self.make_memory_room(&room).await {
            self.unsave(vmid).await?;
            return Err(e);
        }
        Ok(guest)
    }

    /// Writes the memory of a VM to where its configuration says. At the end its CPUs stand.
    pub(super) async fn save(&self, cx: &TaskContext, guest: &GuestAt) -> Result<(), OpsError> {
        self.is_whole(guest.vmid).await?;
        let config = super::config::parse(&guest.config.value)?;
        let Some(memory) = saved::memory(&config) else {
            return Err(OpsError::failed("its configuration names no place for its memory"));
        };
        cx.log(format!("writing the memory of VM {} to '{}'", guest.vmid, memory.volume));
        let to = self.resolve_volume(&memory.volume).await?.path;
        self.guests.save(guest.vmid, &to).await?;
        self.follow_memory(cx, guest.vmid, &to).await
    }

    /// The VM does not run, and its memory is on disk: one commit.
    async fn record_saved(&self, guest: &GuestAt) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        if self.ha_maintains(vmid)? {
            return Err(OpsError::failed("it is under HA now, which would start it again"));
        }
        let mut config = super::config::parse(&guest.config.value)?;
        config.current.set("lock", saved::SAVED)?;
        let mut txn = store::txn("root@pam", format!("guest {vmid}: suspended to disk"));
        let record = Ownership { running: false, armed: false, ..guest.own.value.clone() };
        let record = store::bytes(&record)?;
        store::put_over(&mut txn, &paths::ownership(vmid), Some(guest.own.revision), record);
        store::put_over(&mut txn, &guest.path(), Some(guest.config.revision), config.to_string());
        self.conf.view(|t| lock::release(t, vmid, &mut txn));
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// What is half saved is not: the VM runs on, and names no memory on disk. Under its mutex.
    pub(super) async fn unsave(&self, vmid: Vmid) -> Result<(), OpsError> {
        let guest = self.own_guest(vmid).await?;
        if self.guests.state(vmid).await.is_some() {
            self.guests.cancel_migration(vmid).await?;
        }
        // All was written: no commit that says so may come any more.
        let state = self.guests.state(vmid).await.map(|p| p.state);
        if state == Some(RunState::Postmigrate) {
            return self.reclaim(guest, RunState::Postmigrate).await;
        }
        // Before it runs: whoever finds it later must not take what is on disk for its memory.
        let mut config = super::config::parse(&guest.config.value)?;
        let volume = saved::forget(&mut config);
        let mut txn = store::txn("root@pam", format!("guest {vmid}: not saved"));
        self.leave(&mut txn, vmid, volume.as_slice())?;
        self.commit_unlocked(&guest, config, txn).await?;
        self.free_left(vmid).await;
        match state {
            Some(_) => self.go_on(&self.own_guest(vmid).await?).await,
            None => Ok(()),
        }
    }

    /// Has a VM go on whose memory is on disk. Under its mutex.
    pub(super) async fn start_saved(
        &self,
        cx: &TaskContext,
        guest: GuestAt,
        config: &VmConfig,
        wait: std::time::Duration,
    ) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        let Some(memory) = saved::memory(config) else {
            return Err(OpsError::failed(format!(
                "VM {vmid} was suspended by another program, whose state can't be read: unlock it to start it without"
            )));
        };
        let launch = self.launch_with_memory(&guest, &memory, true).await?;
        let ha = self.begin_start(cx, &guest, &launch, LIMIT).await?;
        cx.log(format!("resuming suspended VM {vmid} on node '{}', epoch {}", self.me.name, launch.epoch));
        let epoch = launch.epoch;
        let given_up = async {
            self.launch_and_load(cx, launch).await?;
            self.give_up_memory(vmid).await
        };
        match given_up.await {
            Ok(()) => {}
            Err(e @ OpsError::Undecided(_)) => return Err(e),
            Err(e) => {
                self.undo_start(cx, vmid).await;
                return Err(OpsError::failed(format!(
                    "VM {vmid} could not go on: {e}. Its memory is kept: try again, or unlock the VM to start it without"
                )));
            }
        }
        // From here on the process is all there is of its memory.
        let runs = match ha {
            true => self.run_within(vmid, epoch, wait).await,
            false => self.guests.resume(vmid).await.map_err(OpsError::from),
        };
        self.free_left(vmid).await;
        runs.map_err(|e| {
            OpsError::failed(format!("VM {vmid} has its memory again, and runs as soon as it may: {e}"))
        })?;
        self.hook_or_warn(cx, &guest, Phase::PostStart, BRIEF).await;
        Ok(())
    }

    /// Commits that the memory on disk is of no use any more.
    async fn give_up_memory(&self, vmid: Vmid) -> Result<(), OpsError> {
        let guest = self.own_guest(vmid).await?;
        let mut config = super::config::parse(&guest.config.value)?;
        let memory = saved::forget(&mut config);
        let mut txn = store::txn("root@pam", format!("guest {vmid}: goes on with its memory"));
        self.leave(&mut txn, vmid, memory.as_slice())?;
        self.commit_unlocked(&guest, config, txn).await
    }

    /// A VM is started without memory that it has on disk, since somebody has unlocked it: that is of another time from now on.
    pub(super) async fn without_memory(&self, cx: &TaskContext, guest: GuestAt) -> Result<GuestAt, OpsError> {
        let mut config = super::config::parse(&guest.config.value)?;
        let Some(volume) = saved::forget(&mut config) else { return Ok(guest) };
        cx.warn(format!(
            "its memory on disk ('{volume}') is given up: the VM was unlocked since it was suspended, or recovered from another node"
        ));
        let mut txn = store::txn("root@pam", format!("guest {}: starts without its memory", guest.vmid));
        self.leave(&mut txn, guest.vmid, &[volume])?;
        let guest = self.commit_with(&guest, &config, txn).await?;
        self.free_left(guest.vmid).await;
        Ok(guest)
    }

    /// As another node asks for it: that the VM came here is read, and not believed.
    ///
    /// # Errors
    /// If it can't be read now.
    pub async fn resume_if_moved(self: &Arc<Self>, vmid: Vmid) -> Result<(), OpsError> {
        self.conf.barrier().await?;
        let guest = self.vm_at(vmid)?;
        if guest.own.value.owner == self.me.name && guest.own.value.running && is_saved(&guest) {
            self.resume_moved(vmid);
        }
        Ok(())
    }

    /// A VM that came here with its memory on disk goes on. One that can't stays suspended, until somebody starts it.
    pub(super) fn resume_moved(self: &Arc<Self>, vmid: Vmid) {
        let ops = self.clone();
        let work = move |cx: TaskContext| async move { ops.go_on_here(&cx, vmid).await };
        if let Err(e) = self.task("qmstart", &vmid.to_string(), &Actor::system().who, work) {
            tracing::error!("guest {vmid}: {e}");
        }
    }

    async fn go_on_here(&self, cx: &TaskContext, vmid: Vmid) -> Result<(), OpsError> {
        self.conf.barrier().await?;
        let _lock = self.guest_locks.lock(vmid).await?;
        let guest = self.own_guest(vmid).await?;
        let config = super::config::parse(&guest.config.value)?;
        if self.guests.state(vmid).await.is_some() || !guest.own.value.running || !saved::is_saved(&config) {
            // Another has been faster.
            return Ok(());
        }
        let result = self.start_saved(cx, guest, &config, super::power::LEASE_WAIT).await;
        if result.is_err() && self.guests.state(vmid).await.is_none() {
            self.after_exit(vmid).await;
        }
        result
    }
}

/// The disks beside which memory may go.
fn volumes_beside(config: &VmConfig) -> Result<Vec<Held>, OpsError> {
    let disks = config.current.disks()?.into_iter().filter(|d| !d.cdrom);
    let held = |d: stead_model::vmconfig::Disk| {
        d.volume().cloned().map(|volume| Held { key: d.key.clone(), volume })
    };
    Ok(disks.filter_map(held).collect())
}

/// Whether a guest's memory is on disk: it goes on with it.
pub(super) fn is_saved(guest: &GuestAt) -> bool {
    super::config::parse(&guest.config.value).is_ok_and(|config| saved::is_saved(&config))
}
