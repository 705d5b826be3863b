//! Snapshots of VMs: taken, removed, gone back to.
//!
//! The order makes each of them safe to be cut off: what is under way is committed first, with the VM's lock; then the disks; then
//! the end, without it. A snapshot that was not finished is removed, by the task itself or by whoever finds the lock of a dead
//! task; one that was half removed is removed by asking again; a VM that has gone back half-way stays locked, since its
//! disks may be of two times, until it goes back again.

use super::Asked;
use super::power::STOP_TIMEOUT;
use super::spelled::takes_names;
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;
use stead_api_derive::Schema;
use stead_conf::Txn;
use stead_driver::guest::{GuestError, RunState};
use stead_driver::storage::StorageError;
use stead_guest::request::{Request, Verdict};
use stead_guest::snapshots::{self, Held, New, SnapshotError};
use stead_model::vmconfig::{Bios, Change, VmConfig};
use stead_model::{NodeName, Upid, Vmid, VolumeId, paths};
use stead_tasks::TaskContext;

impl From<SnapshotError> for OpsError {
    fn from(e: SnapshotError) -> Self {
        match e {
            SnapshotError::Name(_) => Self::invalid("snapname", e.to_string()),
            SnapshotError::Option(e) => e.into(),
            e => Self::failed(e.to_string()),
        }
    }
}

/// A snapshot as clients list it; the last one is what the VM is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct SnapshotEntry {
    /// Its name; `current` for what the VM is now.
    pub name: String,
    /// What its user says of it.
    pub description: String,
    /// The snapshot that it follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// When it was taken: seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snaptime: Option<u64>,
    /// It holds the VM's memory, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmstate: Option<bool>,
    /// `prepare` or `delete`: it is half taken or half removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapstate: Option<String>,
    /// Of what the VM is now: the configuration's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Of what the VM is now: it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<bool>,
}

fn txn(actor: &Actor, vmid: Vmid, what: &str) -> Txn {
    store::txn(&actor.who, format!("VM {vmid}: {what}"))
}

impl Ops {
    /// The snapshots of a VM of this node, and what it is now.
    pub async fn snapshots(&self, vmid: Vmid) -> Result<Vec<SnapshotEntry>, OpsError> {
        let config = super::config::parse(&self.vm_at(vmid)?.config.value)?;
        let entry = |s: snapshots::Listed| SnapshotEntry {
            name: s.name,
            description: s.description,
            parent: s.parent,
            snaptime: s.time,
            vmstate: Some(s.memory),
            snapstate: s.state,
            digest: None,
            running: None,
        };
        let mut all: Vec<_> = snapshots::list(&config).into_iter().map(entry).collect();
        all.push(SnapshotEntry {
            name: "current".to_owned(),
            description: "What the VM is now".to_owned(),
            parent: config.current.parent().map(str::to_owned),
            snaptime: None,
            vmstate: None,
            snapstate: None,
            digest: Some(config.digest()),
            running: Some(self.guests.state(vmid).await.is_some()),
        });
        Ok(all)
    }

    /// Takes a snapshot of a VM of this node: of its options and disks, and with `memory` of the memory of one that runs.
    pub async fn take_snapshot(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        name: &str,
        description: &str,
        memory: bool,
    ) -> Result<Upid, OpsError> {
        let new = New {
            name: name.to_owned(),
            description: description.to_owned(),
            time: crate::clock::unix_ms() / 1000,
        };
        self.plan_snapshot(&self.vm_at(vmid)?, &new, memory).await?;
        let (ops, by) = (self.clone(), actor.clone());
        self.task("qmsnapshot", &vmid.to_string(), &actor.who, move |cx| async move {
            ops.snapshot_now(&cx, &by, vmid, &new, memory).await
        })
    }

    /// What the configuration says while a snapshot is taken, and the disks; refuses what can be refused without a look at them.
    async fn plan_snapshot(
        &self,
        guest: &GuestAt,
        new: &New,
        memory: bool,
    ) -> Result<(VmConfig, Vec<Held>), OpsError> {
        if let Verdict::Refuse(why) = self.admit(guest, Request::Snapshot, Asked::default()).await? {
            return Err(OpsError::Failed(why));
        }
        let state = self.guests.state(guest.vmid).await.map(|p| p.state);
        if let Some(state @ (RunState::Prelaunch | RunState::Unresponsive)) = state {
            let why = format!("can't take a snapshot of VM {} while it is {state:?}", guest.vmid);
            return Err(OpsError::failed(why));
        }
        if memory && state != Some(RunState::Running) {
            let why = format!("can't keep the memory of VM {} in a snapshot: it does not run", guest.vmid);
            return Err(OpsError::invalid("vmstate", why));
        }
        let mut config = super::config::parse(&guest.config.value)?;
        if memory {
            Self::check_memory_is_whole(guest.vmid, &config.current, "keep in a snapshot the memory of")?;
        }
        let disks = snapshots::disks(&config.current, state.is_some())?;
        snapshots::prepare(&mut config, new)?;
        Ok((config, disks))
    }

    async fn snapshot_now(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        new: &New,
        memory: bool,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        if memory {
            // The state is of the machine, which the section must say.
            self.true_up(vmid).await?;
        }
        let guest = self.own_guest(vmid).await?;
        let (mut config, disks) = self.plan_snapshot(&guest, new, memory).await?;
        self.check_free_of(&disks, &new.name).await?;
        let room = match memory {
            true => Some(self.name_memory(vmid, &mut config, &disks, &new.name).await?),
            false => None,
        };
        let begun = txn(actor, vmid, &format!("snapshot '{}' begun", new.name));
        let guest = self.lock_with(guest, config, snapshots::TAKING, cx.upid(), begun).await?;
        let made = match &room {
            Some(room) => self.make_memory_room(room).await,
            None => Ok(()),
        };
        let taken = match made {
            Ok(()) => self.take_of_disks(cx, &guest, &disks, &new.name).await?,
            Err(e) => Err(e),
        };
        if let Err(e) = taken {
            let gone = self.discard(&guest, &new.name).await;
            let left = gone.err().map_or_else(String::new, |e| {
                format!(
                    "; what there is of it could not be removed yet ({e}), and the VM stays locked until then"
                )
            });
            return Err(OpsError::failed(format!("could not take snapshot '{}': {e}{left}", new.name)));
        }
        let mut config = super::config::parse(&guest.config.value)?;
        snapshots::finish(&mut config, &new.name)?;
        let done = txn(actor, vmid, &format!("snapshot '{}' taken", new.name));
        // Where this is not recorded now, nobody knows whether it will be: the disks keep what they have until that is known.
        self.commit_unlocked(&guest, config, done).await
    }

    /// Refuses disks that can keep no snapshot, and those that have one of that name of which the configuration knows nothing.
    async fn check_free_of(&self, disks: &[Held], name: &str) -> Result<(), OpsError> {
        for Held { key, volume } in disks {
            let kept = self.active(&volume.storage).await?.snapshots(&volume.name).await;
            let kept =
                kept.map_err(|e| OpsError::failed(format!("can't take a snapshot: disk '{key}': {e}")))?;
            if kept.iter().any(|k| k == name) {
                return Err(OpsError::failed(format!(
                    "can't take snapshot '{name}': volume '{volume}' of disk '{key}' keeps something under that name that no snapshot \
                     of the VM's names; take another name"
                )));
            }
        }
        Ok(())
    }

    /// Has every disk keep its state: inside, why it was not taken. Outside: the guest's file systems may still be frozen,
    /// and so it stays locked until whoever finds the lock has thawed them.
    async fn take_of_disks(
        &self,
        cx: &TaskContext,
        guest: &GuestAt,
        disks: &[Held],
        name: &str,
    ) -> Result<Result<(), OpsError>, OpsError> {
        let vmid = guest.vmid;
        let config = super::config::parse(&guest.config.value)?;
        let memory = snapshots::memory(&config, name);
        let process = match self.guests.state(vmid).await {
            Some(process) => process,
            None if memory.is_some() => return Ok(Err(OpsError::failed("the VM has ended"))),
            None => return Ok(self.take_offline(cx, guest, disks, name).await),
        };
        let keys: Vec<String> = disks.iter().map(|d| d.key.clone()).collect();
        if let Some(memory) = memory {
            // What the guest has not written yet is in its memory.
            return Ok(self.take_with_memory(cx, guest, &keys, name, &memory).await);
        }
        if keys.is_empty() {
            return Ok(Ok(()));
        }
        let freezes = process.state == RunState::Running && self.can_freeze(vmid, &config).await;
        let mut frozen = false;
        if freezes {
            cx.log("freezing the guest's file systems");
            frozen = match self.order_agent(vmid, "guest-fsfreeze-freeze", &json!({})).await {
                Ok(_) => true,
                Err(e) => {
                    cx.warn(format!("the guest's file systems may be in the middle of something: {e}"));
                    matches!(e, GuestError::AgentLate(_))
                }
            };
        }
        let taken = self.guests.snapshot_disks(vmid, &keys, name).await;
        if freezes && let Err(e) = self.agent(vmid, "guest-fsfreeze-thaw", &json!({})).await {
            // An agent that can't freeze can't thaw either.
            if frozen {
                return Err(OpsError::failed(format!(
                    "the guest's file systems could not be thawed, so snapshot '{name}' is given up: {e}. Thaw them by 'stead vm agent \
                     {vmid} fsfreeze-thaw'; it is tried again"
                )));
            }
        }
        if taken.is_ok() {
            cx.log(format!("snapshot of {} taken while the VM runs", keys.join(", ")));
        }
        Ok(taken.map_err(OpsError::from))
    }

    async fn take_offline(
        &self,
        cx: &TaskContext,
        guest: &GuestAt,
        disks: &[Held],
        name: &str,
    ) -> Result<(), OpsError> {
        for Held { key, volume } in disks {
            self.still_own(guest).await?;
            self.active(&volume.storage).await?.snapshot(&volume.name, name).await?;
            cx.log(format!("snapshot of {key} ({volume}) taken"));
        }
        Ok(())
    }

    /// The VM is this node's still, under the same ownership: what changes its images is no process that a fence could stop.
    pub(super) async fn still_own(&self, guest: &GuestAt) -> Result<(), OpsError> {
        let now = self.own_guest(guest.vmid).await?.own.value.epoch;
        if now == guest.own.value.epoch {
            return Ok(());
        }
        let vmid = guest.vmid;
        Err(OpsError::failed(format!("VM {vmid} was given to this node anew (epoch {now}) in the meantime")))
    }

    /// Whether the guest's agent is there and is to freeze file systems.
    pub(super) async fn can_freeze(&self, vmid: Vmid, config: &VmConfig) -> bool {
        let agent = config.current.agent().is_ok_and(|a| a.enabled && a.freeze);
        agent && self.agent(vmid, "guest-ping", &json!({})).await.is_ok()
    }

    /// Removes what there is of a snapshot that was not finished, and the lock with it. Marked anew first, since the commit of
    /// its end may still be on its way: either that is refused now, or this is.
    async fn discard(&self, guest: &GuestAt, name: &str) -> Result<(), OpsError> {
        let (actor, vmid) = (Actor::system(), guest.vmid);
        let mut config = super::config::parse(&guest.config.value)?;
        snapshots::begin_removal(&mut config, name)?;
        let marked = txn(&actor, vmid, &format!("unfinished snapshot '{name}' is removed"));
        let guest = self.commit_with(guest, &config, marked).await?;
        self.remove_marked(&actor, &guest, name, false).await.map(drop)
    }

    /// Ends what a task has left that died while it took a snapshot.
    pub(super) async fn end_half_taken(&self, guest: &GuestAt) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        let config = super::config::parse(&guest.config.value)?;
        if snapshots::half_taken_with_memory(&config) {
            self.end_memory(guest).await?;
        }
        let runs = self.guests.state(vmid).await.is_some_and(|p| p.state == RunState::Running);
        let freezes = config.current.agent().is_ok_and(|a| a.enabled && a.freeze);
        if runs && freezes {
            let thawed = match self.order_agent(vmid, "guest-ping", &json!({})).await {
                Ok(_) => self.order_agent(vmid, "guest-fsfreeze-thaw", &json!({})).await,
                silent => silent,
            };
            if let Err(e) = thawed {
                let why = format!("its file systems may be frozen by a snapshot that was cut off: {e}");
                // One that is at it is asked again. One that is not there, or refuses, never will thaw.
                if matches!(e, GuestError::AgentLate(_)) {
                    return Err(OpsError::failed(why));
                }
                tracing::warn!("guest {vmid}: {why}");
            }
        }
        let mut guest = guest.clone();
        for name in snapshots::unfinished(&config) {
            tracing::warn!(
                "guest {vmid}: the task that took snapshot '{name}' is dead: what there is of it is removed"
            );
            self.discard(&guest, &name).await?;
            guest = self.vm_at(vmid)?;
        }
        self.unlock(&guest).await
    }

    /// Removes a snapshot of a VM of this node; with `force` also one that its disks don't let go of.
    pub async fn remove_snapshot(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        name: &str,
        force: bool,
    ) -> Result<Upid, OpsError> {
        self.plan_removal(&self.vm_at(vmid)?, name).await?;
        let (ops, by, name) = (self.clone(), actor.clone(), name.to_owned());
        self.task("qmdelsnapshot", &vmid.to_string(), &actor.who, move |cx| async move {
            ops.remove_snapshot_now(&cx, &by, vmid, &name, force).await
        })
    }

    async fn plan_removal(&self, guest: &GuestAt, name: &str) -> Result<VmConfig, OpsError> {
        if let Verdict::Refuse(why) = self.admit(guest, Request::RemoveSnapshot, Asked::default()).await? {
            return Err(OpsError::Failed(why));
        }
        let mut config = super::config::parse(&guest.config.value)?;
        snapshots::begin_removal(&mut config, name)?;
        Ok(config)
    }

    async fn remove_snapshot_now(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        name: &str,
        force: bool,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        let guest = self.own_guest(vmid).await?;
        let config = self.plan_removal(&guest, name).await?;
        let begun = txn(actor, vmid, &format!("snapshot '{name}' is removed"));
        let guest = self.lock_with(guest, config, snapshots::REMOVING, cx.upid(), begun).await?;
        match self.remove_marked(actor, &guest, name, force).await {
            Ok(left) => {
                left.iter().for_each(|told| cx.warn(format!("left by force: {told}")));
                Ok(())
            }
            Err(e) => {
                self.clear_lock(vmid).await;
                Err(OpsError::failed(format!(
                    "could not remove snapshot '{name}': {e}. It is half removed: remove it again, or by force"
                )))
            }
        }
    }

    /// Removes a snapshot that is marked so: from the disks, then from the configuration, the lock with it. By force what can't be
    /// removed is left and told.
    async fn remove_marked(
        &self,
        actor: &Actor,
        guest: &GuestAt,
        name: &str,
        force: bool,
    ) -> Result<Vec<String>, OpsError> {
        let vmid = guest.vmid;
        let mut config = super::config::parse(&guest.config.value)?;
        let mut left = vec![];
        for disk in snapshots::held(&config, name)? {
            self.still_own(guest).await?;
            match self.forget(vmid, &config, &disk, name).await {
                Err(e) if force => left.push(format!("disk '{}' ({}): {e}", disk.key, disk.volume)),
                Err(e) => return Err(OpsError::failed(format!("disk '{}': {e}", disk.key))),
                Ok(()) => {}
            }
        }
        for volume in snapshots::memory_of(&config, name) {
            if self.is_own_volume(&volume, vmid).await {
                match self.free_if_there(&volume).await {
                    Err(e) if force => left.push(format!("memory ({volume}): {e}")),
                    Err(e) => return Err(e),
                    Ok(_) => {}
                }
            }
        }
        let before = config.clone();
        snapshots::finish_removal(&mut config, vmid, name)?;
        let dropped = snapshots::dropped_drives(&before, &config);
        let done = txn(actor, vmid, &format!("snapshot '{name}' removed"));
        self.commit_unlocked(guest, config, done).await?;
        self.free_own(vmid, dropped).await;
        Ok(left)
    }

    /// Has a disk forget a snapshot; one that has none of that name, or is gone, is no error.
    async fn forget(&self, vmid: Vmid, config: &VmConfig, disk: &Held, name: &str) -> Result<(), OpsError> {
        // No process has open what is kept for a firmware that it has not; what a TPM keeps is none of its disks.
        let open = |key: &str| match key {
            "efidisk0" => config.current.bios().is_ok_and(|b| b == Bios::Ovmf),
            key => key != "tpmstate0",
        };
        if let Some(key) = snapshots::attached(config, &disk.volume).filter(|key| open(key))
            && self.guests.state(vmid).await.is_some()
        {
            return Ok(self.guests.forget_disk_snapshot(vmid, key, name).await?);
        }
        match self.active(&disk.volume.storage).await?.delete_snapshot(&disk.volume.name, name).await {
            Ok(()) | Err(StorageError::NoSnapshot { .. } | StorageError::NoVolume(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Has a VM of this node go back to a snapshot. One that runs is stopped for it; `start` has it run afterwards.
    pub async fn roll_back(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        name: &str,
        start: bool,
    ) -> Result<Upid, OpsError> {
        self.plan_rollback(actor, &self.vm_at(vmid)?, name).await?;
        let (ops, by, name) = (self.clone(), actor.clone(), name.to_owned());
        self.task("qmrollback", &vmid.to_string(), &actor.who, move |cx| async move {
            let runs = ops.rollback_now(&cx, &by, vmid, &name).await?;
            if start && !runs {
                let upid = ops.start(&by, vmid, Asked::default()).await?;
                cx.log(format!("started: {upid}"));
            }
            Ok(())
        })
    }

    async fn plan_rollback(
        &self,
        actor: &Actor,
        guest: &GuestAt,
        name: &str,
    ) -> Result<(VmConfig, Vec<Held>), OpsError> {
        let vmid = guest.vmid;
        if let Verdict::Refuse(why) = self.admit(guest, Request::Rollback, Asked::default()).await? {
            return Err(OpsError::Failed(why));
        }
        let (resources, _) = self.file(paths::HA_RESOURCES)?;
        if crate::ha::wants_running(&resources, vmid)? {
            return Err(OpsError::failed(format!(
                "can't roll back VM {vmid}: HA would start it in the middle. Have HA stop it first (state stopped of its HA resource)"
            )));
        }
        let config = super::config::parse(&guest.config.value)?;
        let disks = snapshots::rollback_disks(&config, name)?;
        // All that can be known of it before anything is lost.
        let mut then = config.clone();
        snapshots::roll_back(&mut then, vmid, name, &uuid::Uuid::nil().to_string())?;
        let again = config.current.lock() == Some(snapshots::ROLLBACK);
        if let Some(memory) = snapshots::memory(&config, name)
            && !again
            && !self.ha_maintains(vmid)?
        {
            self.volume_info(&memory.volume).await?;
        }
        let new = then.current.iter().filter(|(key, value)| config.current.get(key) != Some(*value));
        let new: Vec<(&str, &str)> = new.collect();
        let named = new.iter().filter(|(key, _)| *key == "cpu" || takes_names(key));
        let named: Vec<Change> =
            named.map(|(k, v)| Change::Set { key: (*k).to_owned(), value: (*v).to_owned() }).collect();
        Self::may_use_storages(actor, &named)?;
        let mut reach = new.into_iter().filter(|(key, value)| root_only(key, value)).map(|(key, _)| key);
        let gone = |key: &&&str| {
            **key != "lock" && config.current.get(key).is_some() && then.current.get(key).is_none()
        };
        let taken = || super::config::ROOT_ONLY.iter().find(gone).copied();
        match reach.next().or_else(taken).filter(|_| !actor.root) {
            Some(key) => Err(OpsError::Forbidden {
                path: format!("/vms/{vmid}"),
                privilege: format!("only root can go back to a snapshot with another '{key}'"),
            }),
            None => Ok((config, disks)),
        }
    }

    /// Says whether the VM runs then: with the memory that it had.
    async fn rollback_now(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        name: &str,
    ) -> Result<bool, OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        let guest = self.own_guest(vmid).await?;
        let (config, disks) = self.plan_rollback(actor, &guest, name).await?;
        for Held { key, volume } in &disks {
            let kept = self.active(&volume.storage).await?.snapshots(&volume.name).await?;
            if !kept.iter().any(|k| k == name) {
                let why = format!("volume '{volume}' of its disk '{key}' keeps nothing under that name");
                return Err(OpsError::failed(format!("can't go back to snapshot '{name}': {why}")));
            }
        }
        let memory = snapshots::memory(&config, name);
        let with_memory = !snapshots::memory_of(&config, name).is_empty();
        let repeated = config.current.lock().is_some();
        let begun = txn(actor, vmid, &format!("goes back to snapshot '{name}'"));
        let mut guest = self.lock_with(guest, config, snapshots::ROLLBACK, cx.upid(), begun).await?;
        if self.guests.state(vmid).await.is_some() {
            cx.log(format!("stopping VM {vmid}"));
            if let Err(e) = self.stop_now(cx, vmid, STOP_TIMEOUT).await {
                // Nothing has changed yet, unless by an earlier one.
                if !repeated {
                    self.clear_lock(vmid).await;
                }
                return Err(e);
            }
            guest = self.vm_at(vmid)?;
        }
        self.go_back(cx, actor, &guest, &disks, name).await.map_err(|e| {
            OpsError::failed(format!(
                "could not go back to snapshot '{name}': {e}. VM {vmid} stays locked (rollback), since some of its disks may have gone back \
                 and others not: roll back again"
            ))
        })?;
        match memory {
            Some(_) if self.ha_maintains(vmid)? => {
                cx.warn("HA keeps it stopped: the memory that it had is not given back to it");
                Ok(false)
            }
            Some(memory) => self.start_with_memory(cx, vmid, memory).await.map(|()| true),
            None if with_memory => {
                cx.warn("the memory in this snapshot was written by another program: it is not given back");
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// The disks, and then the options.
    async fn go_back(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        guest: &GuestAt,
        disks: &[Held],
        name: &str,
    ) -> Result<(), OpsError> {
        for Held { key, volume } in disks {
            self.still_own(guest).await?;
            self.active(&volume.storage).await?.rollback_snapshot(&volume.name, name).await?;
            cx.log(format!("{key} ({volume}) has gone back to snapshot '{name}'"));
        }
        let mut config = super::config::parse(&guest.config.value)?;
        let generation = uuid::Uuid::from_bytes(rand::random()).to_string();
        let before = config.clone();
        snapshots::roll_back(&mut config, guest.vmid, name, &generation)?;
        let dropped = snapshots::dropped_drives(&before, &config);
        let done = txn(actor, guest.vmid, &format!("has gone back to snapshot '{name}'"));
        self.commit_unlocked(guest, config, done).await?;
        self.free_own(guest.vmid, dropped).await;
        Ok(())
    }

    /// Removes volumes that no configuration names any more, if they are the VM's.
    async fn free_own(&self, vmid: Vmid, volumes: Vec<VolumeId>) {
        let mut own = vec![];
        for volume in volumes {
            if self.is_own_volume(&volume, vmid).await {
                own.push(volume);
            }
        }
        self.free_volumes(&own).await;
    }

    /// Changes what is said of a snapshot.
    pub async fn describe_snapshot(
        &self,
        actor: &Actor,
        vmid: Vmid,
        name: &str,
        text: &str,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock_for_request(vmid).await?;
        let guest = self.own_guest(vmid).await?;
        if let Verdict::Refuse(why) = self.admit(&guest, Request::Configure, Asked::default()).await? {
            return Err(OpsError::Failed(why));
        }
        let mut config = super::config::parse(&guest.config.value)?;
        snapshots::describe(&mut config, name, text)?;
        let said = txn(actor, vmid, &format!("description of snapshot '{name}'"));
        self.commit_with(&guest, &config, said).await.map(drop)
    }

    /// Whether snapshots can be taken of a VM of this node as it is, or as it is in a snapshot; and the nodes that
    /// see all of its volumes.
    pub async fn can_snapshot(
        &self,
        vmid: Vmid,
        snapshot: Option<&str>,
    ) -> Result<(bool, Vec<NodeName>), OpsError> {
        let guest = self.vm_at(vmid)?;
        let config = super::config::parse(&guest.config.value)?;
        let settings = match snapshot {
            None => &config.current,
            Some(name) => {
                config.snapshots.get(name).ok_or_else(|| SnapshotError::Missing(name.to_owned()))?
            }
        };
        let mut nodes = self.guest_nodes();
        for (_, volume) in settings.volumes() {
            let storage = self.storage(&volume.storage)?;
            nodes.retain(|n| storage.is_enabled_on(&n.name) && (storage.shared || n.name == self.me.name));
        }
        let nodes = nodes.into_iter().map(|n| n.name).collect();
        let running = self.guests.state(vmid).await.is_some();
        let disks = match snapshots::disks(settings, running) {
            Ok(disks) if !settings.template() => disks,
            _ => return Ok((false, nodes)),
        };
        for Held { volume, .. } in &disks {
            match self.active(&volume.storage).await?.snapshots(&volume.name).await {
                Ok(_) => {}
                Err(StorageError::Unsupported { .. }) => return Ok((false, nodes)),
                Err(e) => return Err(e.into()),
            }
        }
        Ok((true, nodes))
    }
}

/// Whether only root may give a VM this option, by whatever way.
pub(super) fn root_only(key: &str, value: &str) -> bool {
    let change = Change::Set { key: key.to_owned(), value: value.to_owned() };
    super::config::ROOT_ONLY.contains(&key) || change.needs_root().is_some()
}
