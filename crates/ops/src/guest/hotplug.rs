//! Devices that are put into a running VM, and taken out of it.
//!
//! A change is pending first, and committed so. Then the device comes or goes, and only then the change is written as done: whatever is
//! cut short in between is found, and written, by the next round of [`Ops::reconcile`], since each step may be taken again.

use super::config::parse;
use crate::store::GuestAt;
use crate::{Actor, Ops, OpsError};
use std::sync::Arc;
use std::time::Duration;
use stead_driver::guest::GuestError;
use stead_guest::hotplug::{Step, due, next};
use stead_model::vmconfig::{Disk, Settings, VmConfig, devices};
use stead_model::{Vmid, VolumeId};
use tokio::sync::OwnedMutexGuard;

/// How long a guest is waited for while somebody waits for the answer: clients give up after five seconds.
pub(super) const IN_REQUEST: Duration = Duration::from_secs(2);
/// How long it is waited for by a task.
pub(super) const IN_TASK: Duration = Duration::from_secs(15);

impl Ops {
    /// Carries out which of these pending changes can be. Comes to its end even if the caller goes away. A guest that has not let
    /// go of a device yet is no failure: the change stays pending, and is written when it has.
    pub(super) async fn hotplug(
        self: &Arc<Self>,
        lock: OwnedMutexGuard<()>,
        actor: &Actor,
        vmid: Vmid,
        keys: Vec<String>,
        patience: Duration,
    ) -> Result<(), OpsError> {
        let (ops, by) = (self.clone(), actor.clone());
        let work = tokio::spawn(async move {
            let _lock = lock;
            let mut failed = vec![];
            for key in keys {
                match ops.hotplug_one(&by, vmid, &key, patience).await {
                    Ok(()) => {}
                    Err(e @ OpsError::Invalid { .. }) => failed.push(e.to_string()),
                    Err(e) => failed.push(format!("{key}: {e}")),
                }
            }
            failed
        });
        let failed = work.await.unwrap_or_else(|e| vec![e.to_string()]);
        if failed.is_empty() {
            return Ok(());
        }
        Err(OpsError::failed(format!(
            "VM {vmid} is configured as asked, but not all of it while it runs: it has the rest, which is pending, from its next \
             start on ({})",
            failed.join("; ")
        )))
    }

    /// Takes the steps that one option has before it, under the guest's mutex, as far as the guest goes along in time.
    async fn hotplug_one(
        &self,
        actor: &Actor,
        vmid: Vmid,
        key: &str,
        patience: Duration,
    ) -> Result<(), OpsError> {
        loop {
            let guest = self.vm_at(vmid)?;
            let mut config = parse(&guest.config.value)?;
            let changed = match next(&config, key) {
                None => return Ok(()),
                Some(Step::Plug { with, value }) => {
                    let volume = match volume_of(key, &value)? {
                        Some(volume) => Some(self.resolve_volume(&volume).await?),
                        None => None,
                    };
                    let with = VmConfig { current: with, ..VmConfig::default() };
                    self.guests.plug(vmid, key, &with.to_string(), volume).await?;
                    config.plugged(vmid, key)?
                }
                Some(Step::Unplug) => {
                    match self.guests.unplug(vmid, key, &only_current(&config), patience).await {
                        Err(e @ GuestError::TimedOut { .. }) => {
                            tracing::info!(%vmid, key, "its deletion stays pending: {e}");
                            return Ok(());
                        }
                        done => done?,
                    }
                    config.unplugged(vmid, key)?
                }
                Some(Step::Cpus { with }) => {
                    return self.hotplug_cpus(actor, &guest, config, with, patience).await;
                }
            };
            self.commit_config(actor, &guest, &config).await?;
            // Nobody has them open any more.
            self.free_volumes(&changed.freed).await;
        }
    }

    async fn hotplug_cpus(
        &self,
        actor: &Actor,
        guest: &GuestAt,
        mut config: VmConfig,
        with: Settings,
        patience: Duration,
    ) -> Result<(), OpsError> {
        let before = config.current.vcpus()?;
        let with = VmConfig { current: with, ..VmConfig::default() };
        let there = self.guests.set_cpus(guest.vmid, &with.to_string(), patience).await?;
        if before == Some(there) {
            return Ok(());
        }
        config.has_cpus(there)?;
        self.commit_config(actor, guest, &config).await
    }

    /// Writes what has come true of a running VM's pending changes without anybody there to write it: a device that its guest let go
    /// of late, one that was put in by a daemon which then ended. Under the guest's mutex.
    pub(crate) async fn true_up(&self, vmid: Vmid) -> Result<(), OpsError> {
        let config = parse(&self.vm_at(vmid)?.config.value)?;
        for key in due(&config) {
            let there = self.guests.is_plugged(vmid, &key).await?;
            let is_true = match next(&config, &key) {
                Some(Step::Plug { .. }) => there,
                Some(Step::Unplug) => !there,
                // Told by how many are there.
                Some(Step::Cpus { .. }) => true,
                None => false,
            };
            if is_true {
                tracing::debug!(%vmid, key, "its pending change is written as far as it has come true");
                self.hotplug_one(&Actor::system(), vmid, &key, Duration::ZERO).await?;
            }
        }
        Ok(())
    }
}

/// The configuration without what is pending and without its snapshots.
fn only_current(config: &VmConfig) -> String {
    VmConfig { current: config.current.clone(), ..VmConfig::default() }.to_string()
}

/// The volume behind a disk.
fn volume_of(key: &str, value: &str) -> Result<Option<VolumeId>, OpsError> {
    if devices::as_disk(key).is_none() {
        return Ok(None);
    }
    Ok(Disk::parse(key, value)?.volume().cloned())
}
