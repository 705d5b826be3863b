//! Devices that are put into a running VM, and taken out of it.
//!
//! A change is pending first, and committed so. Then the device comes or goes, and only then the change is written as done. Whatever is
//! cut short in between, and whatever a guest lets go of late, is found in the machine and written: by the next round of
//! [`Ops::reconcile`], before the next change of the VM, before it moves. What a guest was asked for is no longer anybody's to change.

use super::config::{ConfigChange, parse};
use crate::store::GuestAt;
use crate::{Actor, Ops, OpsError};
use std::sync::Arc;
use std::time::Duration;
use stead_driver::guest::{GuestError, Inventory, Launch, RunState};
use stead_guest::hotplug::{Machine, Step, Truth, next, truths};
use stead_model::vmconfig::{Disk, Settings, VmConfig, devices, host, keys};
use stead_model::{Vmid, VolumeId};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

/// How long guests are waited for while somebody waits for the answer: clients give up after five seconds.
pub(super) const IN_REQUEST: Duration = Duration::from_secs(2);
/// How long they are waited for by a task.
pub(super) const IN_TASK: Duration = Duration::from_secs(15);

impl Ops {
    /// Carries out which of these pending changes can be. Comes to its end even if the caller goes away. A guest that has not let
    /// go of a device in time is no failure: the change stays pending, and is written when it has.
    pub(super) async fn hotplug(
        self: &Arc<Self>,
        lock: OwnedMutexGuard<()>,
        actor: &Actor,
        vmid: Vmid,
        keys: Vec<String>,
        patience: Duration,
    ) -> Result<(), OpsError> {
        let (ops, by) = (self.clone(), actor.clone());
        let until = Instant::now() + patience;
        let work = tokio::spawn(async move {
            let _lock = lock;
            let mut failed = vec![];
            for key in keys {
                match ops.hotplug_one(&by, vmid, &key, until).await {
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
        until: Instant,
    ) -> Result<(), OpsError> {
        loop {
            let guest = self.own_guest(vmid).await?;
            let process = self.running(vmid).await?;
            if process.epoch != guest.own.value.epoch {
                return Err(OpsError::failed("its process is an old copy"));
            }
            let mut config = parse(&guest.config.value)?;
            let patience = until.saturating_duration_since(Instant::now());
            let freed = match next(&config, key) {
                None => return Ok(()),
                Some(Step::Plug { with, value }) => {
                    let volume = match volume_of(key, &value)? {
                        Some(volume) => Some(self.resolve_volume(&volume).await?),
                        None => None,
                    };
                    let with = self.spelled_for(key, with).await?;
                    self.guests.plug(vmid, key, &text(with), volume).await?;
                    config.plugged(vmid, key)?.freed
                }
                Some(Step::Unplug) => {
                    if let Some(new) = config.pending.set.get(key) {
                        self.check_card(vmid, key, new).await?;
                    }
                    match self.guests.unplug(vmid, key, &text(config.current.clone()), patience).await {
                        Err(e @ GuestError::TimedOut { .. }) => {
                            tracing::info!(%vmid, key, "its deletion stays pending: {e}");
                            return Ok(());
                        }
                        done => done?,
                    }
                    let keep = is_kept(&config);
                    config.unplugged(vmid, key, keep)?.freed
                }
                Some(Step::Cpus { with }) => {
                    let there = self.guests.set_cpus(vmid, &text(with), patience).await?;
                    if config.current.vcpus()? != Some(there) {
                        config.has_cpus(there)?;
                        self.write_devices(actor, &guest, &config, vec![]).await?;
                    }
                    return Ok(());
                }
                Some(Step::Memory { with }) => {
                    let there = self.guests.set_modules(vmid, &text(with), patience).await?;
                    let known = config.current.modules()?.map(|modules| modules.number);
                    if known != Some(there) {
                        config.has_modules(there)?;
                        self.write_devices(actor, &guest, &config, vec![]).await?;
                    }
                    return Ok(());
                }
            };
            self.write_devices(actor, &guest, &config, freed).await?;
        }
    }

    /// A configuration in which the name that one option has for its device is spelled out. What the others are called counts for
    /// nothing: their devices are there.
    async fn spelled_for(&self, key: &str, mut with: Settings) -> Result<Settings, OpsError> {
        let mut alone = Settings::default();
        let Some(value) = with.get(key) else { return Ok(with) };
        alone.set(key, value)?;
        if let Some(e) = self.spell_out(&mut alone, true).await.into_iter().next() {
            return Err(e);
        }
        if let Some(value) = alone.get(key) {
            with.set(key, value)?;
        }
        Ok(with)
    }

    /// Refuses a network device that this node could not give a VM, before another one is given up for it.
    pub(super) async fn check_card(&self, vmid: Vmid, key: &str, value: &str) -> Result<(), OpsError> {
        let mut alone = Settings::default();
        alone.set(key, value)?;
        let alone = self.spelled_for(key, alone).await?;
        let launch = Launch {
            vmid,
            epoch: stead_model::Epoch(0),
            config: text(alone),
            volumes: vec![],
            recovered: false,
            incoming: None,
        };
        match self.guests.obstacles(&launch).await {
            why if why.is_empty() => Ok(()),
            why => Err(OpsError::invalid(key, why.join("; "))),
        }
    }

    async fn write_devices(
        &self,
        actor: &Actor,
        guest: &GuestAt,
        config: &VmConfig,
        freed: Vec<VolumeId>,
    ) -> Result<(), OpsError> {
        if let Err(e) = self.commit_config(actor, guest, config).await {
            if matches!(e, OpsError::Undecided(_)) && !freed.is_empty() {
                let names: Vec<String> = freed.iter().map(ToString::to_string).collect();
                tracing::warn!(
                    vmid = %guest.vmid,
                    "nobody knows whether the change was recorded: {} kept; remove what no configuration names",
                    names.join(", ")
                );
            }
            return Err(e);
        }
        // Nobody has them open any more.
        self.free_volumes(&freed).await;
        Ok(())
    }

    /// Writes what has come true of a running VM's devices without anybody there to write it: one that its guest let go of late,
    /// one that was put in by a daemon which then ended. Under the guest's mutex. What is there now.
    pub(crate) async fn true_up(&self, vmid: Vmid) -> Result<Inventory, OpsError> {
        let found = self.guests.inventory(vmid).await?;
        let guest = self.vm_at(vmid)?;
        let mut config = parse(&guest.config.value)?;
        let Inventory { devices: there, asked, cpus, modules } = &found;
        let truths = truths(&config, Machine { there, asked, cpus: *cpus, modules: *modules });
        if truths.is_empty() {
            return Ok(found);
        }
        let (before, keep) = (text(config.current.clone()), is_kept(&config));
        let mut freed = vec![];
        for (key, truth) in truths {
            tracing::info!(%vmid, key, ?truth, "of a device of the running VM, as it is written now");
            match truth {
                Truth::Came => freed.extend(config.plugged(vmid, &key)?.freed),
                Truth::Cpus(number) => config.has_cpus(number)?,
                Truth::Memory(number) => {
                    config.has_modules(number)?;
                    // They are gone; what they were made of is not.
                    self.guests.set_modules(vmid, &text(config.current.clone()), Duration::ZERO).await?;
                }
                Truth::Went | Truth::Lost => {
                    // It is gone; what stood behind it is not.
                    self.guests.unplug(vmid, &key, &before, Duration::ZERO).await?;
                    match truth {
                        Truth::Went => freed.extend(config.unplugged(vmid, &key, keep)?.freed),
                        _ => config.lost(&key)?,
                    }
                }
            }
        }
        self.write_devices(&Actor::system(), &guest, &config, freed).await?;
        Ok(found)
    }

    /// As [`Self::true_up`], in the round of all guests, of one that has something pending. What can't be looked into now is so
    /// later.
    pub(super) async fn true_up_by_and_by(&self, guest: &GuestAt, state: RunState) {
        let waits = parse(&guest.config.value).is_ok_and(|config| !config.pending.is_empty());
        if waits
            && matches!(state, RunState::Running | RunState::Paused)
            && let Err(e) = self.true_up(guest.vmid).await
        {
            tracing::debug!(vmid = %guest.vmid, "its devices are not looked at now: {e}");
        }
    }

    /// A guest of this node has let go of a device: by request, or by itself.
    pub async fn device_gone(&self, vmid: Vmid) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        self.own_guest(vmid).await?;
        self.true_up(vmid).await?;
        // CPUs are asked for one after the other, and so is memory.
        let (system, until) = (Actor::system(), Instant::now() + IN_REQUEST);
        self.hotplug_one(&system, vmid, "vcpus", until).await?;
        self.hotplug_one(&system, vmid, "memory", until).await
    }

    /// Before a running VM is changed: its configuration says what its machine is, and nothing is changed of a device that its
    /// guest may let go of at any time.
    pub(super) async fn true_before(
        &self,
        guest: GuestAt,
        change: &ConfigChange,
    ) -> Result<GuestAt, OpsError> {
        let vmid = guest.vmid;
        let config = parse(&guest.config.value)?;
        if config.pending.is_empty() || self.guests.state(vmid).await.is_none() {
            return Ok(guest);
        }
        let named = change.set.keys().chain(&change.delete).chain(&change.revert);
        let named: Vec<&str> = named.filter_map(|key| keys::canonical_key(key).ok()).collect();
        let is_device = |key: &&str| {
            matches!(*key, "vcpus" | "memory")
                || devices::as_net(key).is_some()
                || devices::as_disk(key).is_some()
                || host::as_usb(key).is_some()
        };
        if !named.iter().any(is_device) {
            return Ok(guest);
        }
        let found = self.true_up(vmid).await?;
        let again = |key: &str| {
            let deleted = config.pending.delete.contains_key(key) && change.delete.iter().any(|k| k == key);
            let set = change.set.get(key).map(String::as_str);
            deleted || (set.is_some() && set == config.pending.set.get(key))
        };
        match named.into_iter().find(|key| found.asked.contains(*key) && !again(key)) {
            Some(key) => Err(OpsError::invalid(
                key,
                "the guest has been asked to let go of it, which can't be taken back: try again when it has, or stop the VM",
            )),
            None => self.own_guest(vmid).await,
        }
    }
}

/// A VM that is protected, or locked, keeps the volumes of its disks whatever was asked for before.
fn is_kept(config: &VmConfig) -> bool {
    config.current.protection() || config.current.lock().is_some()
}

/// A configuration without what is pending and without snapshots.
fn text(current: Settings) -> String {
    VmConfig { current, ..VmConfig::default() }.to_string()
}

/// The volume behind a disk.
fn volume_of(key: &str, value: &str) -> Result<Option<VolumeId>, OpsError> {
    if devices::as_disk(key).is_none() {
        return Ok(None);
    }
    Ok(Disk::parse(key, value)?.volume().cloned())
}
