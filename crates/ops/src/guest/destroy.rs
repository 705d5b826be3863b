//! Removing a VM with its disks.

use super::Asked;
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use std::sync::Arc;
use stead_conf::{Check, Op};
use stead_driver::storage::Content;
use stead_guest::request::{Request, Verdict};
use stead_model::{Upid, Vmid, VolumeId, paths};
use stead_tasks::TaskContext;

/// What goes with it.
#[derive(Debug, Clone, Copy, Default)]
pub struct DestroyOptions {
    /// Remove it from HA, too.
    pub purge: bool,
    /// Remove volumes that are the guest's by name and that no option names.
    pub unreferenced: bool,
}

impl Ops {
    /// Removes a VM of this node.
    pub async fn destroy(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        options: DestroyOptions,
        asked: Asked,
    ) -> Result<Upid, OpsError> {
        Self::check_skiplock(actor, asked.skiplock)?;
        self.check_destroy(vmid, options, asked).await?;
        let (ops, by) = (self.clone(), actor.clone());
        self.task("qmdestroy", &vmid.to_string(), &actor.who, move |cx| async move {
            ops.destroy_now(&cx, &by, vmid, options, asked).await
        })
    }

    async fn check_destroy(&self, vmid: Vmid, options: DestroyOptions, asked: Asked) -> Result<(), OpsError> {
        let guest = self.vm_at(vmid)?;
        let mut facts = self.facts(&guest).await?;
        facts.ha &= !options.purge;
        match stead_guest::request::decide(&facts, Request::Destroy, asked.skiplock, true) {
            Verdict::Refuse(why) => Err(OpsError::Failed(why)),
            _ => Ok(()),
        }
    }

    /// The volumes go first: if it fails half-way, the configuration still names what is left, and removing
    /// the VM again finishes the work.
    async fn destroy_now(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        options: DestroyOptions,
        asked: Asked,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        let guest = self.own_guest(vmid).await?;
        self.check_destroy(vmid, options, asked).await?;
        if options.purge {
            self.ha_remove_quietly(actor, vmid).await?;
        }
        self.remove_whole(cx, &actor.who, &guest, options.unreferenced).await
    }

    /// Removes a guest's volumes, and then the guest. Under its mutex, and after all that speaks against it was asked. `who` does it.
    pub(super) async fn remove_whole(
        &self,
        cx: &TaskContext,
        who: &str,
        guest: &GuestAt,
        unreferenced: bool,
    ) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        let config = super::config::parse(&guest.config.value)?;
        let mut volumes: Vec<VolumeId> = vec![];
        for volume in config.all_volumes() {
            if self.is_own_volume(&volume, vmid).await {
                volumes.push(volume);
            }
        }
        if unreferenced {
            volumes.extend(self.volumes_of(vmid).await?);
        }
        volumes.sort();
        volumes.dedup();
        self.check_no_clones(&volumes).await?;
        for volume in &volumes {
            match self.free_if_there(volume).await {
                Ok(true) => cx.log(format!("removed volume '{volume}'")),
                Ok(false) => cx.log(format!("volume '{volume}' is gone already")),
                Err(e) => {
                    return Err(OpsError::failed(format!(
                        "could not remove volume '{volume}' of VM {vmid}: {e}"
                    )));
                }
            }
        }
        let mut txn = store::txn(who, format!("VM {vmid} removed"));
        txn.checks.push(Check::Revision(paths::ownership(vmid), guest.own.revision));
        txn.ops.push(Op::Delete(paths::ownership(vmid)));
        txn.ops.push(Op::Delete(guest.path()));
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Refuses before anything is removed: a template of which only some disks have clones would be left in pieces.
    async fn check_no_clones(&self, volumes: &[VolumeId]) -> Result<(), OpsError> {
        for base in volumes.iter().filter(|v| v.is_base()) {
            let all = self.volumes(&base.storage, Some(Content::Images), None).await?;
            let backing = format!("../{}", base.name);
            if let Some(clone) = all.iter().find(|v| v.parent.as_deref() == Some(&backing)) {
                return Err(OpsError::failed(format!(
                    "base volume '{base}' is still in use by linked clones ('{}'): remove them first",
                    clone.volid
                )));
            }
        }
        Ok(())
    }
}
