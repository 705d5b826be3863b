//! A guest's lock: `lock: WHAT` in its configuration, as administrators know it, and beside it a record of who holds it.
//!
//! The record names the task and the epoch. A lock whose task is dead, or which was taken under another epoch, is void,
//! and the guest's owner removes it, once the guest's process says that nothing of the task goes on. A lock that a user
//! has set by hand has no record, and stays; so does that of a rollback, whose disks may be of two times.

use crate::store::{self, GuestAt};
use crate::{Ops, OpsError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use stead_conf::{Check, Op, Tree, Txn};
use stead_driver::guest::RunState;
use stead_guest::{clones, saved, snapshots};
use stead_model::vmconfig::VmConfig;
use stead_model::{Epoch, Upid, Vmid, VolumeId, paths};

/// Below it: who holds a guest's lock.
const LOCKS: &str = "stead/lock/";

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    /// What for, as the configuration says it.
    what: String,
    /// The task.
    task: Upid,
    /// The ownership under which it was taken.
    epoch: Epoch,
    /// Volumes that the task makes, or removes, and which are to go with it unless the configuration names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    making: Vec<VolumeId>,
    /// The VM was suspended to disk before, and is so again when the task has come to nothing.
    #[serde(default)]
    was_suspended: bool,
    /// The VM ran when it was locked: whatever has paused it since was the task.
    #[serde(default)]
    ran: bool,
}

/// What a VM was when it was locked, and is to be again when the task has come to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Before {
    /// Suspended to disk.
    pub(super) suspended: bool,
    /// Running.
    pub(super) ran: bool,
}

fn path(vmid: Vmid) -> String {
    format!("{LOCKS}{vmid}")
}

/// Adds to a transaction that a task holds a guest's lock, and makes these volumes.
pub(super) fn hold(
    vmid: Vmid,
    what: &str,
    task: &Upid,
    epoch: Epoch,
    making: Vec<VolumeId>,
    before: Before,
    txn: &mut Txn,
) -> Result<(), OpsError> {
    let Before { suspended: was_suspended, ran } = before;
    let holder = Holder { what: what.to_owned(), task: task.clone(), epoch, making, was_suspended, ran };
    // What an earlier one has left is void: the configuration had no lock, or that of what is repeated now.
    txn.ops.push(Op::Put(path(vmid), store::bytes(&holder)?.into()));
    Ok(())
}

/// Adds to a transaction that nobody holds a guest's lock any more.
pub(crate) fn release(tree: &Tree, vmid: Vmid, txn: &mut Txn) {
    let path = path(vmid);
    if let Some(entry) = tree.get(&path) {
        txn.checks.push(Check::Revision(path.clone(), entry.revision));
        txn.ops.push(Op::Delete(path));
    }
}

/// The guests whose lock somebody holds, or held last.
pub(crate) fn held(tree: &Tree) -> BTreeSet<Vmid> {
    tree.list(LOCKS).filter_map(|(p, _)| p.strip_prefix(LOCKS)?.parse().ok()).collect()
}

/// Whether a guest ran when its lock was taken.
pub(super) fn ran(tree: &Tree, vmid: Vmid) -> Result<bool, OpsError> {
    Ok(store::record::<Holder>(tree, &path(vmid))?.is_some_and(|h| h.value.ran))
}

/// Whether a guest was given to another cluster: it does not run, its lock is one of a move, and no task of this cluster holds it. It
/// stays with a recovery, whoever recovers it: it may run there.
pub fn is_given_away(tree: &Tree, guest: &GuestAt, config: &VmConfig) -> bool {
    let locked = config.current.lock() == Some(super::migrate::LOCK);
    locked && !guest.own.value.running && tree.get(&path(guest.vmid)).is_none()
}

/// The volumes that whoever holds a guest's lock makes of it.
pub(super) fn making(tree: &Tree, vmid: Vmid) -> Result<Vec<VolumeId>, OpsError> {
    let holder = store::record::<Holder>(tree, &path(vmid))?;
    Ok(holder.map(|h| h.value.making).unwrap_or_default())
}

/// Whether a lock that a configuration names is void. `lives`: whether a task still runs.
fn is_void(lock: &str, holder: Option<&Holder>, epoch: Epoch, lives: impl Fn(&Upid) -> bool) -> bool {
    holder.is_some_and(|h| h.what == lock && (h.epoch != epoch || !lives(&h.task)))
}

impl Ops {
    /// Writes `lock: what` into the configuration of one of our guests, for a task of this node.
    pub(crate) async fn set_lock(
        &self,
        guest: GuestAt,
        what: &str,
        task: &Upid,
    ) -> Result<GuestAt, OpsError> {
        let config = super::config::parse(&guest.config.value)?;
        let note = format!("guest {}: lock {what}", guest.vmid);
        self.lock_with(guest, config, what, task, store::txn("root@pam", note)).await
    }

    /// As [`Self::set_lock`], together with a change of the configuration. `txn` says whose it is.
    pub(crate) async fn lock_with(
        &self,
        guest: GuestAt,
        config: VmConfig,
        what: &str,
        task: &Upid,
        txn: Txn,
    ) -> Result<GuestAt, OpsError> {
        self.lock_making(guest, config, (what, task), vec![], txn).await
    }

    /// As [`Self::lock_with`], for a task that makes these volumes. Whoever finds the lock void removes those that the configuration
    /// does not name by then.
    pub(super) async fn lock_making(
        &self,
        guest: GuestAt,
        mut config: VmConfig,
        (what, task): (&str, &Upid),
        making: Vec<VolumeId>,
        mut txn: Txn,
    ) -> Result<GuestAt, OpsError> {
        let runs = self.guests.state(guest.vmid).await.map(|p| p.state) == Some(RunState::Running);
        let before = Before { suspended: saved::is_saved(&config), ran: runs };
        config.current.set("lock", what)?;
        hold(guest.vmid, what, task, guest.own.value.epoch, making, before, &mut txn)?;
        self.commit_with(&guest, &config, txn).await
    }

    /// Writes a configuration without a lock, together with the record of nobody holding it. `txn` says whose change it is.
    pub(crate) async fn commit_unlocked(
        &self,
        guest: &GuestAt,
        mut config: VmConfig,
        txn: Txn,
    ) -> Result<(), OpsError> {
        config.current.remove("lock");
        self.commit_released(guest, &config, txn).await
    }

    /// Writes a configuration, together with the record of nobody holding its lock. `txn` says whose change it is.
    pub(crate) async fn commit_released(
        &self,
        guest: &GuestAt,
        config: &VmConfig,
        mut txn: Txn,
    ) -> Result<(), OpsError> {
        self.conf.view(|t| release(t, guest.vmid, &mut txn));
        self.commit_with(guest, config, txn).await.map(drop)
    }

    /// Writes a guest's configuration over the one that was read, if it is still ours, and reads it again. `txn` says whose change
    /// it is.
    pub(crate) async fn commit_with(
        &self,
        guest: &GuestAt,
        config: &VmConfig,
        mut txn: Txn,
    ) -> Result<GuestAt, OpsError> {
        store::put_over(&mut txn, &guest.path(), Some(guest.config.revision), config.to_string());
        txn.checks.push(Check::Revision(paths::ownership(guest.vmid), guest.own.revision));
        self.conf.transact(txn).await?;
        self.vm_at(guest.vmid)
    }

    /// Removes the lock, if the guest is still ours; what can't be removed now, reconciliation removes.
    pub(crate) async fn clear_lock(&self, vmid: Vmid) {
        let cleared = async { self.unlock(&self.own_guest(vmid).await?).await };
        if let Err(e) = cleared.await {
            tracing::warn!("guest {vmid}: its lock could not be removed yet: {e}");
        }
    }

    /// Removes the lock and the record of who holds it, as far as they are there.
    pub(super) async fn unlock(&self, guest: &GuestAt) -> Result<(), OpsError> {
        let mut config = super::config::parse(&guest.config.value)?;
        let mut txn = store::txn("root@pam", format!("guest {}: unlock", guest.vmid));
        if config.current.remove("lock").is_some() {
            store::put_over(&mut txn, &guest.path(), Some(guest.config.revision), config.to_string());
        }
        self.conf.view(|t| release(t, guest.vmid, &mut txn));
        if txn.ops.is_empty() {
            return Ok(());
        }
        txn.checks.push(Check::Revision(paths::ownership(guest.vmid), guest.own.revision));
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Removes the lock of one of our guests if it is void. To be called under the guest's mutex.
    pub(crate) async fn free_void_lock(&self, guest: &GuestAt) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        let config = super::config::parse(&guest.config.value)?;
        let holder = self.conf.view(|t| store::record::<Holder>(t, &path(vmid)))?.map(|h| h.value);
        let lives = |task: &Upid| {
            // A task of another node was ended by the change of owner that brought the guest here.
            let runs = |t: &Upid| self.tasks.get(t).is_some_and(|t| t.endtime.is_none());
            task.node == self.me.name && (runs(task) || self.guest_locks.readers.any(vmid))
        };
        let making = holder.as_ref().map(|h| h.making.clone()).unwrap_or_default();
        let lock = match (config.current.lock(), &holder) {
            (Some(lock), _) => lock,
            // The lock went with a recovery, which knows no more of it.
            (None, Some(h)) if h.what == snapshots::TAKING => return self.end_half_taken(guest).await,
            (None, Some(h)) if !making.is_empty() && !lives(&h.task) => {
                // On another node it may be out of reach.
                if let Err(e) = self.end_half_copied(guest, &making).await {
                    tracing::warn!("guest {vmid}: what a dead task has made of it may be left over: {e}");
                }
                return self.unlock(&self.vm_at(vmid)?).await;
            }
            // Recovered in the middle of a move: its memory is whole all the same.
            (None, Some(h)) if h.was_suspended && config.current.get("vmstate").is_some() => {
                let mut config = config;
                config.current.set("lock", saved::SAVED)?;
                let txn = store::txn("root@pam", format!("guest {vmid}: not moved"));
                return self.commit_released(guest, &config, txn).await;
            }
            (None, Some(_)) => return self.unlock(guest).await,
            (None, None) => return Ok(()),
        };
        if !is_void(lock, holder.as_ref(), guest.own.value.epoch, lives) {
            return Ok(());
        }
        match lock {
            // Only its user can go on with it.
            snapshots::ROLLBACK => return Ok(()),
            snapshots::TAKING => return self.end_half_taken(guest).await,
            clones::MAKING => return self.end_half_made(guest).await,
            clones::CLONING => return self.end_half_copied(guest, &making).await,
            _ if holder.as_ref().is_some_and(|h| h.was_suspended) => {
                let mut config = config;
                config.current.set("lock", saved::SAVED)?;
                let txn = store::txn("root@pam", format!("guest {vmid}: not moved"));
                return self.commit_released(guest, &config, txn).await;
            }
            _ if config.current.get("vmstate").is_some() => return self.unsave(vmid).await,
            _ => {}
        }
        if self.guests.state(vmid).await.is_some() {
            let ended = self.guests.cancel_migration(vmid).await?;
            // Disks that were to go along.
            self.guests.end_copies(vmid).await?;
            match self.guests.state(vmid).await.map(|p| p.state) {
                None | Some(RunState::Running | RunState::Paused | RunState::Shutdown) => {}
                // All was sent: the guest is taken back first, which removes the lock, too.
                Some(state) => {
                    return Err(OpsError::failed(format!(
                        "the task that has locked it ({lock}) is dead, and it is {state:?}, its migration {:?}: it stays locked for \
                         now",
                        ended.phase
                    )));
                }
            }
        }
        tracing::warn!("guest {vmid}: the task that has locked it ({lock}) is dead: unlocked");
        self.unlock(guest).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_lives_as_long_as_its_task_and_its_epoch() {
        let task: Upid = "UPID:n1:00000001:00000001:00000001:qmigrate:100:root@pam:".parse().unwrap();
        let holder = Holder {
            what: "migrate".into(),
            was_suspended: false,
            ran: true,
            task,
            epoch: Epoch(3),
            making: vec![],
        };
        assert!(!is_void("migrate", Some(&holder), Epoch(3), |_| true));
        assert!(is_void("migrate", Some(&holder), Epoch(3), |_| false), "its task is dead");
        assert!(is_void("migrate", Some(&holder), Epoch(4), |_| true), "recovered since");
        assert!(!is_void("backup", Some(&holder), Epoch(3), |_| false), "another lock");
        assert!(!is_void("migrate", None, Epoch(3), |_| false), "set by hand");
    }
}
