//! A disk of one VM becomes another's.
//!
//! The volume gets a name of its new owner; then one transaction takes it out of one configuration and puts it into the other; then the
//! old name goes. Of the two names one is nobody's at any time, and recorded so ([`loose`]): whatever is cut off, that one goes.

use super::Asked;
use super::copies::file_of;
use super::loose;
use super::move_disk::{MoveOptions, own_disk};
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use std::sync::Arc;
use stead_conf::{Check, Revision};
use stead_guest::request::{Request, Verdict};
use stead_model::vmconfig::{Bus, Change, Disk, VmConfig};
use stead_model::{Size, Upid, Vmid, VolumeId, paths};
use stead_tasks::TaskContext;

impl Ops {
    /// Gives a disk of a VM of this node to another one of this node.
    pub(super) async fn reassign(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        target: Vmid,
        options: MoveOptions,
    ) -> Result<Upid, OpsError> {
        if vmid == target {
            let why = "must be different than source VMID to reassign disk to another VM";
            return Err(OpsError::invalid("target-vmid", why));
        }
        if let Some(storage) = &options.storage {
            let why = format!("a disk goes to another VM or to a storage ('{storage}'), not to both at once");
            return Err(OpsError::invalid("storage", why));
        }
        actor.require(&format!("/vms/{target}"), &["VM.Config.Disk"])?;
        self.plan_reassign(actor, &self.vm_at(vmid)?, &self.target_at(target)?, &options).await?;
        let (ops, by) = (self.clone(), actor.clone());
        self.task("qmmove", &vmid.to_string(), &actor.who, move |cx| async move {
            ops.reassign_now(&cx, &by, vmid, target, &options).await
        })
    }

    /// The other VM, which must be here, too.
    fn target_at(&self, target: Vmid) -> Result<GuestAt, OpsError> {
        let named = |e: OpsError| OpsError::invalid("target-vmid", e.to_string());
        let guest = self.vm_at(target).map_err(named)?;
        let owner = &guest.own.value.owner;
        if *owner != self.me.name {
            let why = format!("VM {target} is on node '{owner}': both must be on the same node");
            return Err(OpsError::invalid("target-vmid", why));
        }
        Ok(guest)
    }

    async fn plan_reassign(
        &self,
        actor: &Actor,
        from: &GuestAt,
        to: &GuestAt,
        options: &MoveOptions,
    ) -> Result<(Disk, VolumeId, String), OpsError> {
        for guest in [from, to] {
            if let Verdict::Refuse(why) = self.admit(guest, Request::MoveDisk, Asked::default()).await? {
                return Err(OpsError::Failed(why));
            }
        }
        let (config, theirs) =
            (super::config::parse(&from.config.value)?, super::config::parse(&to.config.value)?);
        super::config::check_digest(options.digest.as_deref(), &config)?;
        super::config::check_digest(options.target_digest.as_deref(), &theirs)
            .map_err(|e| OpsError::failed(format!("VM {}: {e}", to.vmid)))?;
        let (disk, volume) = own_disk(&config, &options.disk)?;
        actor.require(&format!("/storage/{}", volume.storage), &["Datastore.AllocateSpace"])?;
        let refuse = |why: String| Err(OpsError::invalid("disk", why));
        if disk.bus != Bus::Unused && self.guests.state(from.vmid).await.is_some() {
            return refuse(format!("'{}' is in use: stop VM {}, or take it out first", disk.key, from.vmid));
        }
        if config.snapshots.values().any(|s| s.volumes().iter().any(|(_, v)| v.is_same(&volume))) {
            return refuse("a disk that is part of a snapshot can't be given to another VM".to_owned());
        }
        if config.current.protection() {
            return Err(OpsError::failed(format!(
                "can't take a disk from VM {}: it is protected",
                from.vmid
            )));
        }
        let key = options.target_disk.clone().unwrap_or_else(|| disk.key.clone());
        let wrong = |why: String| Err(OpsError::invalid("target-disk", why));
        match stead_model::vmconfig::devices::as_disk(&key) {
            None => return wrong(format!("'{key}' is no disk")),
            Some((bus, _)) if bus != Bus::Unused && self.guests.state(to.vmid).await.is_some() => {
                return wrong(format!(
                    "VM {} runs: give it as an unused disk (unused0), or stop it",
                    to.vmid
                ));
            }
            Some(_) => {}
        }
        if theirs.current.template() {
            return Err(OpsError::invalid("target-vmid", "a template gets no disks"));
        }
        if theirs.current.get(&key).is_some() || theirs.pending.set.get(&key).is_some() {
            return wrong(format!("VM {} has a disk '{key}' already", to.vmid));
        }
        value_at(&disk, &key, &volume)?;
        Ok((disk, volume, key))
    }

    async fn reassign_now(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        target: Vmid,
        options: &MoveOptions,
    ) -> Result<(), OpsError> {
        // Always in the same order, so that two tasks do not wait for each other.
        let _first = self.guest_locks.lock(vmid.min(target)).await?;
        let _second = self.guest_locks.lock(vmid.max(target)).await?;
        let (from, to) = (self.own_guest(vmid).await?, self.own_guest(target).await?);
        let (disk, volume, key) = self.plan_reassign(actor, &from, &to, options).await?;
        let driver = self.active(&volume.storage).await?;
        let format = self.volume_info(&volume).await?.format;
        let name = driver.next_name(target, Some(&format), None, &[]).await?;
        // Of two names one is always nobody's, and is recorded so: whoever dies when, it goes.
        self.free_loose(target).await?;
        let revision = self.name_loose(target, None, std::slice::from_ref(&name)).await?;
        let moved = async {
            let made = driver.rename(&volume.name, target, file_of(&name).as_deref()).await?.volid;
            let (given, got) = ((&from, &disk, &volume), (&to, key.as_str()));
            self.commit_reassign(actor, given, got, (&made, revision)).await.map(|()| made)
        };
        let made = match moved.await {
            Ok(made) => made,
            Err(e) => {
                // Where nobody knows what was recorded, this has it decided first.
                if let Err(left) = self.free_loose(target).await {
                    cx.warn(left.to_string());
                }
                return Err(e);
            }
        };
        cx.log(format!("{} of VM {vmid} is {key} of VM {target}: '{volume}' is '{made}' now", disk.key));
        if let Err(e) = self.free_loose(vmid).await {
            cx.warn(e.to_string());
        }
        Ok(())
    }

    async fn commit_reassign(
        &self,
        actor: &Actor,
        (from, disk, volume): (&GuestAt, &Disk, &VolumeId),
        (to, key): (&GuestAt, &str),
        (made, revision): (&VolumeId, Revision),
    ) -> Result<(), OpsError> {
        let (vmid, target) = (from.vmid, to.vmid);
        let mut ours = super::config::parse(&from.config.value)?;
        let mut theirs: VmConfig = super::config::parse(&to.config.value)?;
        ours.current.remove(&disk.key);
        ours.revert(&disk.key);
        theirs.current.set(key, &value_at(disk, key, made)?)?;
        theirs.current.check()?;
        let said = format!("disk '{}' of VM {vmid} goes to VM {target} ('{key}')", disk.key);
        let mut txn = store::txn(&actor.who, said);
        for (guest, config) in [(from, &ours), (to, &theirs)] {
            store::put_over(&mut txn, &guest.path(), Some(guest.config.revision), config.to_string());
            txn.checks.push(Check::Revision(paths::ownership(guest.vmid), guest.own.revision));
        }
        let (theirs, ours) = (((&self.me.name, target), revision), (&self.me.name, vmid));
        let left = std::slice::from_ref(volume);
        self.conf.view(|t| loose::hand_over(t, &mut txn, theirs, (ours, left)))?;
        self.conf.transact(txn).await?;
        Ok(())
    }
}

/// What another option says of a disk, as far as it can be said there.
fn value_at(disk: &Disk, key: &str, volume: &VolumeId) -> Result<String, OpsError> {
    let unused = matches!(stead_model::vmconfig::devices::as_disk(key), Some((Bus::Unused, _)));
    if unused {
        return Ok(volume.to_string());
    }
    let value = disk.with_volume(volume, disk.size.map(|s| Size::bytes(s.get())))?;
    match Change::set(key, &value) {
        Ok(_) => Ok(value),
        Err(e) => Err(OpsError::invalid("target-disk", format!("'{}' can't be '{key}': {e}", disk.key))),
    }
}
