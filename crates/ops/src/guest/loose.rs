//! Volumes on a node that are nobody's: made for a guest that is to come, or left by one that has gone.
//!
//! A record names them before they are made, and in the commit that hands the guest over: so nothing is left over unnamed, whoever
//! dies when. A node frees what its record names, unless the guest is its own now and its configuration names it too.
//!
//! Whoever frees them writes the record anew before. A hand-over that would make them the guest's names the revision of the record on
//! which it was built, so it can't be committed any more then: never is freed what a guest has.

use crate::store::{self, At};
use crate::{Ops, OpsError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use stead_conf::{Check, Op, Revision, Tree, Txn};
use stead_driver::storage::StorageError;
use stead_model::{NodeName, Vmid, VolumeId};

/// Below it, by node: whose volumes are nobody's.
const LOOSE: &str = "stead/loose/";

/// Volumes of a guest on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Loose {
    /// Which.
    pub volumes: Vec<VolumeId>,
    /// The node whose guest they are made for; none: they are of no use any more.
    pub source: Option<NodeName>,
    /// They are being freed.
    #[serde(default)]
    pub claimed: bool,
}

fn path(node: &NodeName, vmid: Vmid) -> String {
    format!("{LOOSE}{node}/{vmid}")
}

/// Adds to the removal of a node that what it has is gone with it: who comes under its name has nothing of that.
pub(crate) fn forget(tree: &Tree, txn: &mut Txn, node: &NodeName) {
    for vmid in all_of(tree, node) {
        txn.ops.push(Op::Delete(path(node, vmid)));
    }
}

/// The guests of which a node has such volumes.
pub(crate) fn all_of(tree: &Tree, node: &NodeName) -> BTreeSet<Vmid> {
    let prefix = format!("{LOOSE}{node}/");
    tree.list(&prefix).filter_map(|(p, _)| p.strip_prefix(&prefix)?.parse().ok()).collect()
}

/// What a node has of a guest.
pub(crate) fn of(tree: &Tree, node: &NodeName, vmid: Vmid) -> Result<Option<At<Loose>>, OpsError> {
    store::record(tree, &path(node, vmid))
}

/// Of which guest on which node volumes are.
pub(crate) type Place<'a> = (&'a NodeName, Vmid);

/// Adds to a hand-over that what was made for a guest is its own, and that there is no use any more for what was left by one: by
/// itself on another node, or by another guest.
pub(crate) fn hand_over(
    tree: &Tree,
    txn: &mut Txn,
    (target, made): (Place<'_>, Revision),
    (source, left): (Place<'_>, &[VolumeId]),
) -> Result<(), OpsError> {
    txn.checks.push(Check::Revision(path(target.0, target.1), made));
    txn.ops.push(Op::Delete(path(target.0, target.1)));
    leave(tree, txn, source, left)
}

/// Adds to a change that volumes are of no use any more.
pub(crate) fn leave(
    tree: &Tree,
    txn: &mut Txn,
    source: Place<'_>,
    left: &[VolumeId],
) -> Result<(), OpsError> {
    let before = of(tree, source.0, source.1)?;
    let mut volumes = before.as_ref().map(|b| b.value.volumes.clone()).unwrap_or_default();
    volumes.extend(left.iter().filter(|v| !volumes.contains(v)).cloned().collect::<Vec<_>>());
    let record = store::bytes(&Loose { volumes, ..Loose::default() })?;
    store::put_over(txn, &path(source.0, source.1), before.map(|b| b.revision), record);
    Ok(())
}

impl Ops {
    /// Adds to a change of a guest that volumes which this node can free are of no use any more. They go by [`Self::free_left`], or,
    /// whoever dies before that, by the next round of reconciliation.
    pub(super) fn leave(&self, txn: &mut Txn, vmid: Vmid, left: &[VolumeId]) -> Result<(), OpsError> {
        if left.is_empty() {
            return Ok(());
        }
        self.conf.view(|t| leave(t, txn, (&self.me.name, vmid), left))
    }

    /// Frees what was left, as far as it can be freed now. Under the guest's mutex.
    pub(super) async fn free_left(&self, vmid: Vmid) {
        if let Err(e) = self.free_loose(vmid).await {
            tracing::warn!("{e}");
        }
    }

    /// Names volumes that this node is to make for a guest: of another node, which sends it, or of its own. The record's revision.
    pub(super) async fn name_loose(
        &self,
        vmid: Vmid,
        source: Option<&NodeName>,
        volumes: &[VolumeId],
    ) -> Result<Revision, OpsError> {
        let loose = Loose { volumes: volumes.to_vec(), source: source.cloned(), claimed: false };
        self.write_loose(vmid, None, &loose).await
    }

    async fn write_loose(
        &self,
        vmid: Vmid,
        over: Option<Revision>,
        loose: &Loose,
    ) -> Result<Revision, OpsError> {
        let path = path(&self.me.name, vmid);
        let mut txn = store::txn("root@pam", format!("guest {vmid}: its volumes on node '{}'", self.me.name));
        store::put_over(&mut txn, &path, over, store::bytes(loose)?);
        self.conf.transact(txn).await?;
        let written = self.conf.view(|t| of(t, &self.me.name, vmid))?;
        let gone = || OpsError::failed(format!("the record '{path}' has gone at once"));
        Ok(written.ok_or_else(gone)?.revision)
    }

    /// Frees what this node has of a guest that is nobody's. Under the guest's mutex. What can't be freed now stays named, and is
    /// tried again.
    pub(super) async fn free_loose(&self, vmid: Vmid) -> Result<(), OpsError> {
        let Some(found) = self.conf.view(|t| of(t, &self.me.name, vmid))? else { return Ok(()) };
        let mut loose = found.value;
        loose.claimed = true;
        let revision = self.write_loose(vmid, Some(found.revision), &loose).await?;
        let named = self.named_here(vmid)?;
        let (mut failed, mut left) = (vec![], vec![]);
        for volume in loose.volumes.iter().filter(|v| !named.iter().any(|n| n.is_same(v))) {
            let freed = match self.active(&volume.storage).await {
                Ok(storage) => match storage.free(&volume.name).await {
                    Ok(()) | Err(StorageError::NoVolume(_)) => Ok(()),
                    Err(e) => Err(e.to_string()),
                },
                Err(e) => Err(e.to_string()),
            };
            if let Err(why) = freed {
                failed.push(format!("'{volume}': {why}"));
                left.push(volume.clone());
            }
        }
        if !failed.is_empty() {
            // What is freed is named no more: its name may be given to another volume by the time at which the rest can be freed.
            if left.len() < loose.volumes.len() {
                self.write_loose(vmid, Some(revision), &Loose { volumes: left, ..loose }).await?;
            }
            return Err(OpsError::failed(format!(
                "volumes of guest {vmid} that are of no use any more could not be freed yet: {}",
                failed.join("; ")
            )));
        }
        let path = path(&self.me.name, vmid);
        let mut txn =
            store::txn("root@pam", format!("guest {vmid}: nothing left on node '{}'", self.me.name));
        txn.checks.push(Check::Revision(path.clone(), revision));
        txn.ops.push(Op::Delete(path));
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// What is the guest's of what this node sees, by its configuration, or made for it now: of a guest of another node what is
    /// shared. A name of the past may be given anew.
    fn named_here(&self, vmid: Vmid) -> Result<Vec<VolumeId>, OpsError> {
        let Some(own) = self.ownership(vmid)? else { return Ok(vec![]) };
        let mut named = super::config::parse(&self.guest_at(vmid)?.config.value)?.all_volumes();
        named.extend(self.conf.view(|t| super::lock::making(t, vmid))?);
        let is_shared = |v: &VolumeId| self.storage(&v.storage).is_ok_and(|s| s.shared);
        named.retain(|v| own.owner == self.me.name || is_shared(v));
        Ok(named)
    }

    /// As [`Self::free_loose`], unless they are for a guest that is on its way.
    pub(super) async fn free_loose_unless_awaited(&self, vmid: Vmid) -> Result<(), OpsError> {
        let Some(found) = self.conf.view(|t| of(t, &self.me.name, vmid))? else { return Ok(()) };
        if let Some(source) = &found.value.source
            && !found.value.claimed
            && self.ownership(vmid)?.is_some_and(|own| own.owner == *source)
            && self.source_still_sends(vmid, source).await
        {
            return Ok(());
        }
        self.free_loose(vmid).await
    }
}
