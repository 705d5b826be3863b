//! Templates: VMs that never run, of which others are made.

use super::Asked;
use super::loose;
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use std::sync::Arc;
use stead_driver::storage::StorageError;
use stead_guest::clones::{self, CloneError, Part};
use stead_guest::request::{Request, Verdict};
use stead_guest::snapshots;
use stead_model::vmconfig::{Disk, VmConfig};
use stead_model::{NodeName, Upid, Vmid, VolumeId};
use stead_tasks::TaskContext;

impl From<CloneError> for OpsError {
    fn from(e: CloneError) -> Self {
        match e {
            CloneError::NoSnapshot(_) => Self::invalid("snapname", e.to_string()),
            CloneError::Option(e) => e.into(),
            e => Self::failed(e.to_string()),
        }
    }
}

/// What may be done with a VM's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Snapshots of them.
    Snapshot,
    /// Linked clones of them.
    Clone,
    /// Copies of them.
    Copy,
}

impl Ops {
    /// Makes a template of a VM of this node: of all its disks, or of one.
    pub async fn make_template(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        disk: Option<String>,
    ) -> Result<Upid, OpsError> {
        self.plan_template(&self.vm_at(vmid)?, disk.as_deref()).await?;
        let (ops, by) = (self.clone(), actor.clone());
        self.task("qmtemplate", &vmid.to_string(), &actor.who, move |cx| async move {
            ops.make_template_now(&cx, &by, vmid, disk.as_deref()).await
        })
    }

    async fn plan_template(
        &self,
        guest: &GuestAt,
        only: Option<&str>,
    ) -> Result<(VmConfig, Vec<(Disk, VolumeId)>), OpsError> {
        let vmid = guest.vmid;
        if let Verdict::Refuse(why) = self.admit(guest, Request::Template, Asked::default()).await? {
            return Err(OpsError::Failed(why));
        }
        let mut config = super::config::parse(&guest.config.value)?;
        if config.current.template() && only.is_none() {
            return Err(OpsError::failed(format!("VM {vmid} is a template already")));
        }
        // Nobody applies it later: a template is never started.
        config.apply_pending(vmid)?;
        let disks = clones::bases(&config, only).map_err(|e| match e {
            CloneError::Disk { key, why } if Some(key.as_str()) == only => OpsError::invalid("disk", why),
            e => e.into(),
        })?;
        Ok((config, disks.into_iter().filter(|(_, volume)| !volume.is_base()).collect()))
    }

    /// The volumes get another name, then the configuration says so, and only then the old names go: wherever it is cut off, all that
    /// the configuration names is there.
    async fn make_template_now(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        only: Option<&str>,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        let guest = self.apply_pending(self.own_guest(vmid).await?).await?;
        let (mut config, disks) = self.plan_template(&guest, only).await?;
        let mut made = super::config::Made::default();
        let mut old = vec![];
        let named = async {
            for (disk, volume) in disks {
                let base = self.active(&volume.storage).await?.make_base(&volume.name).await?.volid;
                cx.log(format!("{}: '{volume}' is base volume '{base}' now", disk.key));
                config.current.set(&disk.key, &disk.with_volume(&base, disk.size)?)?;
                made.volumes.push(base);
                old.push(volume);
            }
            config.current.set("template", "1")?;
            let mut txn = store::txn(&actor.who, format!("VM {vmid}: made a template"));
            // By these names it could be written still.
            self.conf.view(|t| loose::leave(t, &mut txn, (&self.me.name, vmid), &old))?;
            self.commit_with(&guest, &config, txn).await.map(drop)
        };
        let named: Result<(), OpsError> = named.await;
        if let Err(e) = named {
            // Each has its old name still.
            self.undo_made(&e, &made).await;
            return Err(OpsError::failed(format!("could not make a template of VM {vmid}: {e}")));
        }
        if let Err(e) = self.free_loose(vmid).await {
            cx.warn(e.to_string());
        }
        Ok(())
    }

    /// Whether something can be done with the disks of a VM of this node, as it is or as it is in a snapshot; and the nodes
    /// that see all of its volumes.
    pub async fn has_feature(
        &self,
        vmid: Vmid,
        feature: Feature,
        snapshot: Option<&str>,
    ) -> Result<(bool, Vec<NodeName>), OpsError> {
        let (can_snapshot, nodes) = self.can_snapshot(vmid, snapshot).await?;
        let config = super::config::parse(&self.vm_at(vmid)?.config.value)?;
        let from = match snapshot {
            Some(name) => config.snapshots.get(name),
            None => Some(&config.current),
        };
        let can = match feature {
            Feature::Snapshot => can_snapshot,
            Feature::Clone => {
                let parts = from.map(|from| clones::parts(from, true));
                config.current.template() && parts.is_some_and(|parts| parts.is_ok())
            }
            // A snapshot of a disk is copied where its storage keeps it.
            Feature::Copy if snapshot.is_some() => {
                snapshots::held(&config, snapshot.unwrap_or_default()).is_ok()
            }
            Feature::Copy => from.is_some_and(|from| clones::parts(from, false).is_ok()),
        };
        Ok((can && self.can_copy(from, feature).await?, nodes))
    }

    /// Whether the storages of a VM's disks make copies, or linked clones.
    async fn can_copy(
        &self,
        from: Option<&stead_model::vmconfig::Settings>,
        feature: Feature,
    ) -> Result<bool, OpsError> {
        let Some(from) = from.filter(|_| feature != Feature::Snapshot) else { return Ok(true) };
        let any: Vmid = Vmid::new(100).map_err(|e| OpsError::failed(e.to_string()))?;
        for part in clones::parts(from, feature == Feature::Clone)? {
            let (volume, base) = match &part {
                Part::Copy { from, .. } => (from, None),
                Part::Link { base, .. } => (base, Some(base.name.as_str())),
                Part::Drive { .. } => continue,
            };
            match self.active(&volume.storage).await?.next_name(any, None, base, &[]).await {
                Ok(_) => {}
                Err(StorageError::Unsupported { .. }) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }
}
