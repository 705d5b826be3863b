//! Clones of VMs.
//!
//! ```text
//!  source locked (clone) ─▶ target recorded, locked (create), its volumes named ─▶ they are made ─▶ target unlocked, source unlocked
//! ```
//!
//! The target's configuration names every volume before it is made: whatever is cut off is found by that, and removed with the VM that
//! was never whole, by the task itself or by whoever finds the lock of a dead one.

use super::config::Made;
use super::copies::{Telling, check_format, file_of, limit, placed};
use super::lock::Before;
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_conf::{Check, Op};
use stead_driver::guest::{CopyPhase, CopyTo, DiskCopy};
use stead_driver::storage::{NewCopy, NewVolume};
use stead_guest::clones::{self, Anew, MAKING, Part};
use stead_guest::request::{Request, Verdict};
use stead_model::vmconfig::devices::as_disk;
use stead_model::vmconfig::{Bios, Change, Disk, Settings, VmConfig};
use stead_model::{Epoch, NodeName, Ownership, StorageId, Upid, Vmid, VolumeId, paths};
use stead_tasks::TaskContext;

/// What a clone is to be.
#[derive(Debug, Clone)]
pub struct CloneOptions {
    /// Its number.
    pub newid: Vmid,
    /// Its name; none: what it is a copy of.
    pub name: Option<String>,
    /// What is to be remembered of it; none: what its source's user says of that.
    pub description: Option<String>,
    /// Where its disks are to lie; none: where its source's do.
    pub storage: Option<StorageId>,
    /// The format of its disks; none: that of its source's.
    pub format: Option<String>,
    /// Whether its disks are copies; none: they are, unless it can be a linked clone of a template.
    pub full: Option<bool>,
    /// Of the VM as it was in this snapshot.
    pub snapshot: Option<String>,
    /// The node that is to have it; none: this one.
    pub target: Option<NodeName>,
    /// KiB a second at most.
    pub bwlimit: Option<u64>,
}

/// A disk that is to be made, under a name that is planned.
struct Making {
    part: Part,
    to: VolumeId,
    format: Option<String>,
    size: u64,
}

struct Plan {
    settings: Settings,
    making: Vec<Making>,
    made: Made,
}

impl Ops {
    /// Makes a clone of a VM of this node.
    pub async fn clone_vm(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        options: CloneOptions,
    ) -> Result<Upid, OpsError> {
        let guest = self.vm_at(vmid)?;
        if let Verdict::Refuse(why) = self.admit(&guest, Request::Clone, super::Asked::default()).await? {
            return Err(OpsError::Failed(why));
        }
        let config = super::config::parse(&guest.config.value)?;
        self.check_clone(actor, &config, &options)?;
        let (ops, by) = (self.clone(), actor.clone());
        self.task("qmclone", &vmid.to_string(), &actor.who, move |cx| async move {
            ops.clone_now(&cx, &by, vmid, options).await
        })
    }

    /// All that can be refused without a look at the disks.
    fn check_clone(&self, actor: &Actor, config: &VmConfig, options: &CloneOptions) -> Result<(), OpsError> {
        self.check_free(options.newid)?;
        let from = clones::source(config, options.snapshot.as_deref())?;
        let linked = is_linked(config, options);
        check_format(options.format.as_deref())?;
        if let Some(name) = &options.name {
            Change::set("name", name)?;
        }
        Self::check_comes_along(actor, from)?;
        if linked && options.format.is_some() {
            return Err(OpsError::invalid(
                "format",
                "a linked clone has a format of its own: leave it out, or use full=1",
            ));
        }
        if let Some(target) = options.target.as_ref().filter(|t| **t != self.me.name) {
            self.migration_target(target)?;
        }
        for part in clones::parts(from, linked)? {
            let storage = self.storage_of(&part, options);
            actor.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
            if linked && options.storage.as_ref().is_some_and(|s| *s != storage) {
                let why = format!("a linked clone lies where its base does ('{storage}'): use full=1");
                return Err(OpsError::invalid("storage", why));
            }
            self.check_holds_disks(&storage)?;
            self.check_seen(&storage, options)?;
        }
        for disk in from.disks()?.into_iter().filter(|d| d.cdrom && d.cloudinit().is_none()) {
            if let Some(medium) = disk.volume() {
                self.check_seen(&medium.storage, options)?;
            }
        }
        Ok(())
    }

    /// Refuses what the actor could not have given the clone: what reaches into the host, mappings, media of other storages.
    fn check_comes_along(actor: &Actor, from: &Settings) -> Result<(), OpsError> {
        let mut taken = vec![];
        for (key, value) in from.iter().filter(|(key, _)| !clones::stays(key)) {
            if !actor.root && super::snapshots::root_only(key, value) {
                return Err(OpsError::failed(format!(
                    "only root can clone a VM with '{key}: {value}', which only root can set"
                )));
            }
            let is_copied = as_disk(key).is_some() && {
                let disk = Disk::parse(key, value)?;
                !disk.cdrom && disk.volume().is_some()
            };
            if !is_copied {
                taken.push(Change::Set { key: key.to_owned(), value: value.to_owned() });
            }
        }
        Self::may_use_storages(actor, &taken)
    }

    /// Where a disk of a clone is to lie.
    fn storage_of(&self, part: &Part, options: &CloneOptions) -> StorageId {
        match part {
            Part::Link { base, .. } => base.storage.clone(),
            Part::Copy { from, .. } => options.storage.clone().unwrap_or_else(|| from.storage.clone()),
            Part::Drive { storage, .. } => options.storage.clone().unwrap_or_else(|| storage.clone()),
        }
    }

    /// Refuses a storage that the node that is to have the clone does not see as this one does.
    fn check_seen(&self, id: &StorageId, options: &CloneOptions) -> Result<(), OpsError> {
        let Some(target) = options.target.as_ref().filter(|t| **t != self.me.name) else { return Ok(()) };
        let storage = self.storage(id)?;
        if storage.shared && storage.is_enabled_on(target) {
            return Ok(());
        }
        let why = format!("can't clone to node '{target}': storage '{id}' is not shared with it");
        Err(OpsError::invalid("target", why))
    }

    async fn clone_now(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        options: CloneOptions,
    ) -> Result<(), OpsError> {
        let source = self.begin_reading(vmid, cx.upid()).await?;
        let done = self.clone_locked(cx, actor, &source, &options).await;
        self.end_reading(vmid, cx.upid()).await;
        done.map_err(|e| OpsError::failed(format!("could not clone VM {vmid}: {e}")))
    }

    async fn clone_locked(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        source: &GuestAt,
        options: &CloneOptions,
    ) -> Result<(), OpsError> {
        let newid = options.newid;
        let config = super::config::parse(&source.config.value)?;
        self.check_clone(actor, &config, options)?;
        let plan = self.plan_clone(source.vmid, &config, options).await?;
        let what = format!("a clone of VM {} begun", source.vmid);
        let begun = self.begin_making(cx, actor, newid, plan.settings, &what).await;
        if let Err(e) = begun {
            self.undo_made(&e, &plan.made).await;
            return Err(e);
        }
        let mut made = plan.made.volumes;
        let done = async {
            let sizes = self.make_parts(cx, source, options, &plan.making, &mut made).await?;
            self.finish_clone(actor, newid, &sizes, options.target.as_ref()).await
        };
        let done: Result<(), OpsError> = done.await;
        if let Err(e) = &done
            && !matches!(e, OpsError::Undecided(_))
        {
            let undone = self.undo_clone(newid, &made).await;
            if let Err(left) = undone {
                // Whoever finds the lock of this task tries again.
                cx.warn(format!("VM {newid}, which is not whole, could not be removed yet: {left}"));
            }
        }
        done
    }

    /// The clone's options with the names of its volumes. Its cloud-init drive is made.
    async fn plan_clone(
        &self,
        vmid: Vmid,
        config: &VmConfig,
        options: &CloneOptions,
    ) -> Result<Plan, OpsError> {
        let uuid = || uuid::Uuid::from_bytes(rand::random()).to_string();
        let from = clones::source(config, options.snapshot.as_deref())?;
        let (name, description) = (options.name.clone(), options.description.clone());
        let anew = Anew { name, description, generation: uuid(), uuid: uuid() };
        let prefix = self.mac_prefix()?;
        let mac = || super::config::random_mac(prefix.clone());
        let mut settings = clones::options(from, &format!("VM-{vmid}"), &anew, mac)?;
        let (mut making, mut made): (Vec<Making>, _) = (vec![], Made::default());
        for part in clones::parts(from, is_linked(config, options))? {
            let storage = self.storage_of(&part, options);
            let besides: Vec<VolumeId> = making.iter().map(|m| m.to.clone()).collect();
            let driver = self.active(&storage).await?;
            let (disk, base, format, size) = match &part {
                Part::Drive { disk, .. } => {
                    let mut disk = disk.clone();
                    disk.props.remove("format");
                    let none = VmConfig::default();
                    let value = self.allot_drive(options.newid, &none, &disk, &storage, &mut made).await?;
                    settings.set(&disk.key, &value)?;
                    continue;
                }
                Part::Link { disk, base } => (disk, Some(base), None, self.volume_info(base).await?.size),
                Part::Copy { disk, from } => {
                    let info = self.volume_info(from).await?;
                    (disk, None, Some(options.format.clone().unwrap_or(info.format)), info.size)
                }
            };
            let base = base.map(|b| b.name.as_str());
            let to = driver.next_name(options.newid, format.as_deref(), base, &besides).await?;
            settings.set(&disk.key, &placed(disk, &to, size)?)?;
            making.push(Making { part, to, format, size });
        }
        Ok(Plan { settings, making, made })
    }

    /// Records a VM that is being made, locked for this task. `what`: what of it is said.
    pub(super) async fn begin_making(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        mut settings: Settings,
        what: &str,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        self.conf.barrier().await?;
        self.check_free(vmid)?;
        settings.set("lock", MAKING)?;
        let config = VmConfig { current: settings, ..VmConfig::default() };
        let (mut txn, epoch) =
            self.new_guest(vmid, &config, store::txn(&actor.who, format!("VM {vmid}: {what}")))?;
        super::lock::hold(vmid, MAKING, cx.upid(), epoch, vec![], Before::default(), &mut txn)?;
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Makes the disks: those that a running VM has open all at once, the others one after the other. The sizes of these.
    async fn make_parts(
        &self,
        cx: &TaskContext,
        source: &GuestAt,
        options: &CloneOptions,
        making: &[Making],
        made: &mut Vec<VolumeId>,
    ) -> Result<BTreeMap<String, u64>, OpsError> {
        let snapshot = options.snapshot.as_deref();
        let mut sizes = BTreeMap::new();
        let mut rest: Vec<&Making> = making.iter().collect();
        if snapshot.is_none() && self.guests.state(source.vmid).await.is_some() {
            let config = super::config::parse(&source.config.value)?;
            // No process has open what is kept for a firmware that it has not.
            let ovmf = config.current.bios()? == Bios::Ovmf;
            let open = |m: &&Making| match &m.part {
                Part::Copy { disk, .. } => disk.key != "efidisk0" || ovmf,
                Part::Link { .. } | Part::Drive { .. } => false,
            };
            let live: Vec<&Making> = making.iter().filter(open).collect();
            rest.retain(|m| !open(m));
            self.copy_live(cx, source, &config, options, &live, made).await?;
        }
        for Making { part, to, format, size } in rest {
            self.still_own(source).await?;
            let (disk, info) = match part {
                Part::Link { disk, base } => {
                    let driver = self.active(&base.storage).await?;
                    cx.log(format!("{}: linked clone '{to}' of '{base}'", disk.key));
                    (disk, driver.clone_base(&base.name, options.newid, file_of(to).as_deref()).await?)
                }
                Part::Copy { disk, from } => {
                    cx.log(format!("{}: copying '{from}' to '{to}'", disk.key));
                    let new = NewCopy {
                        vmid: options.newid,
                        name: file_of(to),
                        format: format.clone(),
                        of: self.image_of(from, snapshot).await?.0,
                        size: Some(*size),
                        limit: limit(options.bwlimit),
                    };
                    (disk, self.copy_image(cx, &to.storage, &new).await?)
                }
                Part::Drive { .. } => continue,
            };
            made.push(info.volid);
            sizes.insert(disk.key.clone(), info.size);
        }
        Ok(sizes)
    }

    /// Copies the disks that a running VM has open, as they are at one moment.
    async fn copy_live(
        &self,
        cx: &TaskContext,
        source: &GuestAt,
        config: &VmConfig,
        options: &CloneOptions,
        live: &[&Making],
        made: &mut Vec<VolumeId>,
    ) -> Result<(), OpsError> {
        let vmid = source.vmid;
        let mut copies = vec![];
        for Making { part, to, format, size } in live {
            let Part::Copy { disk, from } = part else { continue };
            self.check_holds_disks(&to.storage)?;
            let new =
                NewVolume { vmid: options.newid, name: file_of(to), format: format.clone(), size: *size };
            made.push(self.active(&to.storage).await?.alloc(&new).await?.volid);
            cx.log(format!("{}: copying '{from}' to '{to}' while VM {vmid} runs", disk.key));
            let value = config.current.get(&disk.key).unwrap_or_default().to_owned();
            copies.push(DiskCopy {
                disk: disk.key.clone(),
                value,
                to: CopyTo::Volume(self.resolve_volume(to).await?),
            });
        }
        if copies.is_empty() {
            return Ok(());
        }
        let tell = Telling::new(cx, Some(live.iter().map(|m| m.size).sum()));
        // Where they were not begun, those under way are another task's.
        self.begin_copies(cx, vmid, config, &copies, limit(options.bwlimit)).await?;
        let copied = self.follow_copies(cx, vmid, CopyPhase::Completed, &tell).await;
        let ended = self.guests.end_copies(vmid).await;
        copied?;
        Ok(ended?)
    }

    /// Unlocks a clone that is whole, and gives it to the node that is to have it.
    async fn finish_clone(
        &self,
        actor: &Actor,
        newid: Vmid,
        sizes: &BTreeMap<String, u64>,
        target: Option<&NodeName>,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(newid).await?;
        let guest = self.own_guest(newid).await?;
        let mut config = super::config::parse(&guest.config.value)?;
        if config.current.lock() != Some(MAKING) {
            return Err(OpsError::failed(format!("somebody has unlocked VM {newid} in the middle")));
        }
        for disk in config.current.disks()? {
            if let (Some(size), Some(volume)) = (sizes.get(&disk.key), disk.volume()) {
                config.current.set(&disk.key, &placed(&disk, volume, *size)?)?;
            }
        }
        let mut txn = store::txn(&actor.who, format!("VM {newid} made"));
        let Some(target) = target.filter(|t| **t != self.me.name) else {
            return self.commit_unlocked(&guest, config, txn).await;
        };
        let node = self.migration_target(target)?;
        config.current.remove("lock");
        let old = &guest.own.value;
        let own = Ownership { owner: target.clone(), epoch: Epoch(old.epoch.0 + 1), ..old.clone() };
        store::put_over(&mut txn, &paths::ownership(newid), Some(guest.own.revision), store::bytes(&own)?);
        txn.checks.push(Check::Revision(paths::node(target), node.revision));
        txn.checks.push(Check::Revision(guest.path(), guest.config.revision));
        txn.ops.push(Op::Delete(guest.path()));
        let path = paths::guest(target, old.kind, newid);
        txn.ops.push(Op::Put(path, config.to_string().into_bytes().into()));
        self.conf.view(|t| super::lock::release(t, newid, &mut txn));
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Removes a clone that is not whole: what was made of it first, since its configuration names that.
    async fn undo_clone(&self, newid: Vmid, made: &[VolumeId]) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(newid).await?;
        let guest = self.own_guest(newid).await?;
        if super::config::parse(&guest.config.value)?.current.lock() != Some(MAKING) {
            return Err(OpsError::failed("somebody has unlocked it: it stays"));
        }
        for volume in made {
            self.free_if_there(volume).await?;
        }
        self.forget_guest(&guest).await
    }

    /// Ends what a task has left that died while it made a VM. Under the guest's mutex.
    pub(super) async fn end_half_made(&self, guest: &GuestAt) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        if guest.own.value.running || self.guests.state(vmid).await.is_some() {
            return Err(OpsError::failed("it was never whole, and runs: nothing of it is removed"));
        }
        tracing::warn!("guest {vmid}: the task that made it has ended: what there is of it is removed");
        let guest = &self.shut_out(guest).await?;
        for volume in super::config::parse(&guest.config.value)?.all_volumes() {
            if self.is_own_volume(&volume, vmid).await {
                self.free_if_there(&volume).await?;
            }
        }
        self.forget_guest(guest).await
    }

    async fn forget_guest(&self, guest: &GuestAt) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        let mut txn = store::txn("root@pam", format!("VM {vmid}, which was not whole, removed"));
        txn.checks.push(Check::Revision(paths::ownership(vmid), guest.own.revision));
        txn.checks.push(Check::Revision(guest.path(), guest.config.revision));
        txn.ops.push(Op::Delete(paths::ownership(vmid)));
        txn.ops.push(Op::Delete(guest.path()));
        self.conf.view(|t| super::lock::release(t, vmid, &mut txn));
        self.conf.transact(txn).await?;
        Ok(())
    }
}

/// Whether a clone is to be a linked one.
fn is_linked(config: &VmConfig, options: &CloneOptions) -> bool {
    let elsewhere = options.format.is_some()
        || options.storage.as_ref().is_some_and(|storage| {
            config.current.disks().is_ok_and(|disks| {
                let mut own = disks.iter().filter(|d| !d.cdrom).filter_map(|d| d.volume());
                own.any(|volume| volume.storage != *storage)
            })
        });
    match options.full {
        Some(full) => !full,
        None => config.current.template() && !elsewhere,
    }
}
