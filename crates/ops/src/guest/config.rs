//! Reading and changing a VM's configuration.

use super::spelled::{mapped, takes_names};
use super::{Asked, cloudinit, hotplug};
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_driver::guest::ResolvedVolume;
use stead_driver::storage::Content;
use stead_model::cloudinit::{is_told, options};
use stead_model::cpu::CUSTOM;
use stead_model::size::Size;
use stead_model::vmconfig::devices::{as_disk, as_net};
use stead_model::vmconfig::keys::{canonical_key, live, split_index};
use stead_model::vmconfig::{
    Bus, Change, Changed, Cpu, Disk, DiskDetails, DiskSource, KeyError, Live, Net, Settings, VmConfig,
};
use stead_model::{StorageId, Upid, Vmid, VolumeId};
use tokio::sync::OwnedMutexGuard;

impl From<KeyError> for OpsError {
    fn from(e: KeyError) -> Self {
        Self::invalid(e.key, e.why)
    }
}

/// Reads a configuration's text.
pub fn parse(text: &str) -> Result<VmConfig, OpsError> {
    VmConfig::parse(text).map_err(|e| OpsError::failed(format!("the VM's configuration cannot be read: {e}")))
}

/// What a user wants changed.
#[derive(Debug, Clone, Default)]
pub struct ConfigChange {
    /// Options to set.
    pub set: BTreeMap<String, String>,
    /// Options to take out.
    pub delete: Vec<String>,
    /// Pending changes to take back.
    pub revert: Vec<String>,
    /// The version that the user has seen.
    pub digest: Option<String>,
    /// Remove the volumes of disks that are taken out.
    pub force: bool,
}

impl ConfigChange {
    /// Refuses what the actor may not ask for.
    fn admit(&self, actor: &Actor, vmid: Vmid, asked: Asked) -> Result<(), OpsError> {
        Ops::check_skiplock(actor, asked.skiplock)?;
        let set = self.set.iter().map(|(k, v)| (k.as_str(), Some(v.as_str())));
        let others = self.delete.iter().chain(&self.revert).map(|k| (k.as_str(), None));
        Ops::may_configure(actor, vmid, set.chain(others))
    }

    /// The options to set and to take out, checked one by one.
    fn changes(&self) -> Result<Vec<Change>, OpsError> {
        let mut changes = vec![];
        for key in &self.delete {
            let named = |e: KeyError| OpsError::invalid("delete", e.to_string());
            changes.push(Change::delete(key, self.force).map_err(named)?);
        }
        for (key, value) in &self.set {
            changes.push(Change::set(key, value)?);
        }
        Ok(changes)
    }

    /// The options whose pending changes are taken back, as they are stored.
    fn revert_keys(&self) -> Result<Vec<&str>, OpsError> {
        let named = |e: KeyError| OpsError::invalid("revert", e.to_string());
        self.revert.iter().map(|key| canonical_key(key).map_err(named)).collect()
    }
}

/// An error of a disk under the name of its option: nobody has sent `volume` or `format`.
fn of_option(key: &str, e: OpsError) -> OpsError {
    match e {
        OpsError::Invalid { parameter, why } if parameter == key || parameter == "volume" => {
            OpsError::invalid(key, why)
        }
        OpsError::Invalid { parameter, why } => OpsError::invalid(key, format!("{parameter}: {why}")),
        other => other,
    }
}

/// How large the volume for a TPM's state is, in bytes: far more than that has, as elsewhere.
const TPM_STATE: u64 = 4 << 20;

/// Options that reach into the host, or take CPUs and memory from it and from other guests.
pub(super) const ROOT_ONLY: &[&str] =
    &["affinity", "args", "hookscript", "hugepages", "ivshmem", "keephugepages", "lock"];

/// Privileges that options need, beyond `VM.Config.Options`.
fn privilege_of(key: &str, value: Option<&str>) -> &'static str {
    let cdrom = value.is_some_and(|v| Disk::parse(key, v).is_ok_and(|d| d.cdrom));
    match as_disk(key) {
        Some(_) if cdrom => return "VM.Config.CDROM",
        Some(_) => return "VM.Config.Disk",
        None => {}
    }
    match key.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "net" => "VM.Config.Network",
        "ipconfig" | "cicustom" | "cipassword" | "citype" | "ciupgrade" | "ciuser" | "nameserver"
        | "searchdomain" | "sshkeys" => "VM.Config.Cloudinit",
        "cores" | "sockets" | "cpu" | "vcpus" | "cpulimit" | "cpuunits" | "numa" | "affinity" => {
            "VM.Config.CPU"
        }
        "memory" | "balloon" | "shares" => "VM.Config.Memory",
        "acpi" | "audio" | "bios" | "kvm" | "machine" | "parallel" | "rng" | "scsihw" | "serial"
        | "hostpci" | "tablet" | "usb" | "vga" | "watchdog" => "VM.Config.HWType",
        "bootdisk" => "VM.Config.Disk",
        _ => "VM.Config.Options",
    }
}

impl Ops {
    /// Refuses options that the actor may not set on the guest.
    pub(crate) fn may_configure<'a>(
        actor: &Actor,
        vmid: Vmid,
        keys: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Result<(), OpsError> {
        let forbidden = |privilege: String| OpsError::Forbidden { path: format!("/vms/{vmid}"), privilege };
        for (key, value) in keys {
            // `cdrom` needs what `ide2` needs. What is unknown is refused later, by name.
            let stored = canonical_key(key).unwrap_or(key);
            if ROOT_ONLY.contains(&stored) && !actor.root {
                return Err(forbidden(format!("only root can set '{key}' config")));
            }
            let change = value.and_then(|v| Change::set(key, v).ok());
            if let Some(what) = change.as_ref().and_then(Change::needs_root).filter(|_| !actor.root) {
                return Err(forbidden(format!("only root can set '{key}' {what}")));
            }
            let path = format!("/vms/{vmid}");
            // Who may change a VM's network may also tell its guest of it.
            let network = matches!(stored, "nameserver" | "searchdomain") || stored.starts_with("ipconfig");
            if network && actor.may(&path, "VM.Config.Network") {
                continue;
            }
            actor.require(&path, &[privilege_of(stored, value)])?;
        }
        Ok(())
    }

    /// Refuses disks on storages where the actor may not have them, and devices behind mappings that it may not use.
    pub(crate) fn may_use_storages(actor: &Actor, changes: &[Change]) -> Result<(), OpsError> {
        for change in changes {
            let Change::Set { key, value } = change else { continue };
            if key == "cicustom" {
                for volume in options::custom(value)?.values() {
                    actor.require(&format!("/storage/{}", volume.storage), &["Datastore.Audit"])?;
                }
            }
            if key == "vmstatestorage" {
                actor.require(&format!("/storage/{value}"), &["Datastore.AllocateSpace"])?;
            }
            if key == "cpu"
                && let Some(name) =
                    Cpu::parse(key, value)?.model.as_deref().and_then(|m| m.strip_prefix(CUSTOM))
            {
                actor.require(&format!("/mapping/cpu/{name}"), &["Mapping.Use"])?;
            }
            if takes_names(key) {
                let mut alone = Settings::default();
                alone.set(key, value)?;
                for one in mapped(&alone)? {
                    actor.require(&one.kind.acl(&one.id), &["Mapping.Use"])?;
                }
            }
            if as_disk(key).is_none() {
                continue;
            }
            let disk = Disk::parse(key, value)?;
            let (storage, what) = match &disk.source {
                DiskSource::New { storage, .. } | DiskSource::NewCloudInit { storage } => {
                    (storage, "Datastore.AllocateSpace")
                }
                DiskSource::Volume(v) if disk.cdrom => (&v.storage, "Datastore.Audit"),
                DiskSource::Volume(v) => (&v.storage, "Datastore.AllocateSpace"),
                DiskSource::Path(_) | DiskSource::HostDrive | DiskSource::Empty => continue,
            };
            actor.require(&format!("/storage/{storage}"), &[what])?;
        }
        Ok(())
    }

    /// Refuses to take a device of the host away, or to put another in its place, to who could not have given it.
    fn may_take_away(
        actor: &Actor,
        vmid: Vmid,
        current: &Settings,
        changes: &[Change],
    ) -> Result<(), OpsError> {
        for key in changes.iter().map(Change::key).filter(|key| takes_names(key)).filter(|_| !actor.root) {
            let old = current.get(key).and_then(|old| Change::set(key, old).ok());
            if let Some(what) = old.as_ref().and_then(Change::needs_root) {
                let privilege = format!("only root can change '{key}' {what}");
                return Err(OpsError::Forbidden { path: format!("/vms/{vmid}"), privilege });
            }
        }
        Ok(())
    }

    /// All that speaks against a change before anything of it is done.
    async fn check_change(
        &self,
        actor: &Actor,
        vmid: Vmid,
        config: &VmConfig,
        change: &ConfigChange,
        asked: Asked,
    ) -> Result<Vec<Change>, OpsError> {
        check_digest(change.digest.as_deref(), config)?;
        if let Some(lock) = config.current.lock()
            && !asked.skiplock
        {
            return Err(OpsError::failed(format!("VM is locked ({lock})")));
        }
        let changes = change.changes()?;
        if let Some(fixed) = changes.iter().find(|c| stead_guest::clones::is_fixed(config, c.key())) {
            return Err(OpsError::failed(format!(
                "can't change disk '{}' of VM {vmid}: it is a template, and clones may be built on it",
                fixed.key()
            )));
        }
        Self::may_use_storages(actor, &changes)?;
        Self::may_take_away(actor, vmid, &config.current, &changes)?;
        // What depends on the node.
        let by_node = ["cpu", "amd-sev", "intel-tdx"].into_iter();
        let by_node = by_node.filter_map(|key| Some((key.to_owned(), change.set.get(key)?.clone())));
        self.check_options(&by_node.collect()).await?;
        let gone = |c: &&Change| matches!(c, Change::Delete { key, .. } if as_disk(key).is_some());
        if let Some(change) = changes.iter().find(gone).filter(|_| config.current.protection()) {
            return Err(OpsError::failed(format!(
                "can't remove disk '{}' of VM {vmid}: the VM is protected; take 'protection' out first",
                change.key()
            )));
        }
        let running = self.guests.state(vmid).await.is_some();
        let mut new = config.clone();
        for key in change.revert_keys()? {
            new.revert(key);
        }
        new.change(vmid, &changes, |c| !running || is_now(&config.current, c))?;
        new.current.check()?;
        let touches = |keys: &[&str]| changes.iter().any(|c| keys.contains(&c.key()));
        // What its next start would make of it.
        if touches(&["boot", "hotplug", "memory"]) {
            new.apply_pending(vmid)?;
            new.current.modules()?;
            if change.set.contains_key("boot") {
                new.current.check_boot()?;
            }
        }
        cloudinit::check_password(&changes, &new.current)?;
        Ok(changes)
    }

    /// Changes a VM's configuration as a task. What can be refused is refused before.
    pub async fn configure_task(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        change: ConfigChange,
        asked: Asked,
    ) -> Result<Upid, OpsError> {
        change.admit(actor, vmid, asked)?;
        let config = parse(&self.vm_at(vmid)?.config.value)?;
        self.check_change(actor, vmid, &config, &change, asked).await?;
        let (ops, by) = (self.clone(), actor.clone());
        self.task("qmconfig", &vmid.to_string(), &actor.who, move |cx| async move {
            let mut made = Made::default();
            let change = match ops.import_for(&cx, &by, vmid, change, &mut made).await {
                Ok(change) => change,
                Err(e) => {
                    ops.undo_made(&e, &made).await;
                    return Err(e);
                }
            };
            let lock = match ops.guest_locks.lock(vmid).await {
                Ok(lock) => lock,
                Err(e) => {
                    ops.undo_made(&e, &made).await;
                    return Err(e);
                }
            };
            ops.configure_under(lock, &by, vmid, change, asked, made).await
        })
    }

    /// A change whose disks that are to hold images from elsewhere are there.
    async fn import_for(
        &self,
        cx: &stead_tasks::TaskContext,
        actor: &Actor,
        vmid: Vmid,
        mut change: ConfigChange,
        made: &mut Made,
    ) -> Result<ConfigChange, OpsError> {
        let sets = change.set.iter().map(|(key, value)| Change::set(key, value));
        let sets = sets.collect::<Result<Vec<_>, _>>()?;
        if super::import::imports(&sets).is_none() {
            return Ok(change);
        }
        for set in self.import_disks(cx, actor, vmid, sets, made).await? {
            if let Change::Set { key, value } = set
                && as_disk(&key).is_some()
            {
                change.set.insert(key, value);
            }
        }
        Ok(change)
    }

    /// Changes a VM's configuration within a request: at once where it can be, else with the next start.
    pub async fn configure(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        change: ConfigChange,
        asked: Asked,
    ) -> Result<(), OpsError> {
        change.admit(actor, vmid, asked)?;
        if let Some(key) = super::import::imports(&change.changes()?) {
            let why = "import-from: it may take longer than a request: use POST /nodes/{node}/qemu/{vmid}/config, which is a task";
            return Err(OpsError::invalid(key, why));
        }
        let lock = self.guest_locks.lock_for_request(vmid).await?;
        let made = Made { in_request: true, ..Made::default() };
        self.configure_under(lock, actor, vmid, change, asked, made).await
    }

    pub(crate) async fn configure_under(
        self: &Arc<Self>,
        lock: OwnedMutexGuard<()>,
        actor: &Actor,
        vmid: Vmid,
        change: ConfigChange,
        asked: Asked,
        mut made: Made,
    ) -> Result<(), OpsError> {
        let checked = async {
            let guest = self.true_before(self.own_guest(vmid).await?, &change).await?;
            let config = parse(&guest.config.value)?;
            let changes = self.check_change(actor, vmid, &config, &change, asked).await?;
            Ok((guest, config, changes))
        };
        let (guest, mut config, changes) = match checked.await {
            Ok(checked) => checked,
            Err(e) => {
                // What was imported for it.
                self.undo_made(&e, &made).await;
                return Err(e);
            }
        };
        for key in change.revert_keys()? {
            config.revert(key);
        }
        let result = self.apply_changes(actor, &guest, &mut config, changes, &mut made).await;
        match result {
            Ok((changed, live)) => {
                let told = self.change_process(vmid, live, &config).await;
                // Only now has the process let go of a medium that was taken out.
                self.free_volumes(&changed.freed).await;
                let told = match told {
                    Ok(()) => self.retell(actor, vmid, &config, &changed).await,
                    Err(e) => Err(e),
                };
                if self.guests.state(vmid).await.is_none() {
                    return told;
                }
                let patience = if made.in_request { hotplug::IN_REQUEST } else { hotplug::IN_TASK };
                let plugged = self.hotplug(lock, actor, vmid, changed.pending, patience).await;
                told.and(plugged)
            }
            Err(e) => {
                self.undo_made(&e, &made).await;
                Err(e)
            }
        }
    }

    async fn apply_changes(
        &self,
        actor: &Actor,
        guest: &GuestAt,
        config: &mut VmConfig,
        changes: Vec<Change>,
        made: &mut Made,
    ) -> Result<(Changed, LiveChanges), OpsError> {
        let vmid = guest.vmid;
        let changes = self.fulfil(actor, vmid, config, changes, made).await?;
        let running = self.guests.state(vmid).await.is_some();
        let those = |is: fn(&VmConfig, &Change) -> bool| -> Vec<String> {
            let found = changes.iter().filter(|c| running && is(config, c));
            found.map(|c| c.key().to_owned()).collect()
        };
        let (media, tuned) = (those(is_medium), those(is_tuning));
        for change in &changes {
            if let Change::Set { key, value } = change
                && as_net(key).is_some()
                && tuned.contains(key)
            {
                // It may be on another bridge then.
                self.check_card(vmid, key, value).await?;
            }
        }
        let by_process = |key: &str| media.iter().chain(&tuned).any(|k| k == key);
        let before = config.current.clone();
        let at_once = |c: &Change| !running || is_now(&before, c) || by_process(c.key());
        let changed = config.change(vmid, &changes, at_once)?;
        config.current.check()?;
        let mut loads = vec![];
        for key in media {
            let medium = match config.current.get(&key).map(|v| Disk::parse(&key, v)).transpose()? {
                Some(Disk { source: DiskSource::Volume(v), .. }) => Some(self.resolve_volume(&v).await?),
                _ => None,
            };
            loads.push((key, medium));
        }
        self.commit_config_for(actor, guest, config, made.reason.as_deref()).await?;
        Ok((changed, LiveChanges { loads, tuned }))
    }

    /// Changes a running VM, once its configuration says so: what is refused must not have happened.
    async fn change_process(
        &self,
        vmid: Vmid,
        changes: LiveChanges,
        config: &VmConfig,
    ) -> Result<(), OpsError> {
        let mut failed = vec![];
        for (key, medium) in changes.loads {
            if let Err(e) = self.guests.change_medium(vmid, &key, medium).await {
                failed.push(format!("{key}: {e}"));
            }
        }
        let text = config.to_string();
        for key in changes.tuned {
            if let Err(e) = self.guests.tune(vmid, &key, &text).await {
                failed.push(format!("{key}: {e}"));
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(OpsError::failed(format!(
            "VM {vmid} is configured as asked, but as it runs it did not take that ({}): set it again, or it has it from its \
             next start on",
            failed.join("; ")
        )))
    }

    /// Writes the cloud-init drive of a running VM whose option `hotplug` asks for that, if it tells of what has changed.
    async fn retell(
        &self,
        actor: &Actor,
        vmid: Vmid,
        config: &VmConfig,
        changed: &Changed,
    ) -> Result<(), OpsError> {
        let told = changed.applied.iter().any(|key| is_told(key));
        if !told
            || !config.current.hotplug().contains(&"cloudinit")
            || self.guests.state(vmid).await.is_none()
        {
            return Ok(());
        }
        self.renew_drive(actor, self.vm_at(vmid)?).await.map(drop)
    }

    /// Writes a guest's configuration over the one that was read.
    pub(crate) async fn commit_config(
        &self,
        actor: &Actor,
        guest: &GuestAt,
        config: &VmConfig,
    ) -> Result<(), OpsError> {
        self.commit_config_for(actor, guest, config, None).await
    }

    /// The same for a reason, which the history gives beside the options that are changed.
    async fn commit_config_for(
        &self,
        actor: &Actor,
        guest: &GuestAt,
        config: &VmConfig,
        reason: Option<&str>,
    ) -> Result<(), OpsError> {
        let mut said = super::note::said(guest.vmid, &parse(&guest.config.value)?, config);
        if let Some(reason) = reason {
            // What a note can't hold of the options is in the difference itself.
            said.truncate(said.floor_char_boundary(stead_conf::MAX_NOTE.saturating_sub(reason.len() + 2)));
            said = format!("{said}; {reason}");
        }
        let mut txn = store::txn(&actor.who, said);
        store::put_over(&mut txn, &guest.path(), Some(guest.config.revision), config.to_string());
        // The owner must still be this node in the very moment.
        txn.checks
            .push(stead_conf::Check::Revision(stead_model::paths::ownership(guest.vmid), guest.own.revision));
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Removes what was made for a change that failed; not where the change may have taken effect after all, since the
    /// configuration would name volumes that are gone.
    pub(crate) async fn undo_made(&self, why: &OpsError, made: &Made) {
        if !matches!(why, OpsError::Undecided(_)) {
            self.free_volumes(&made.volumes).await;
        } else if !made.volumes.is_empty() {
            let names: Vec<String> = made.volumes.iter().map(ToString::to_string).collect();
            tracing::warn!(
                "nobody knows whether the change was recorded: {} kept; remove what no configuration names",
                names.join(", ")
            );
        }
    }

    /// Makes what was asked for as new: volumes, hardware addresses. Volumes made are named in `made`.
    pub(crate) async fn fulfil(
        &self,
        actor: &Actor,
        vmid: Vmid,
        config: &VmConfig,
        changes: Vec<Change>,
        made: &mut Made,
    ) -> Result<Vec<Change>, OpsError> {
        let mut out = vec![];
        for change in changes {
            let Change::Set { key, value } = &change else {
                out.push(change);
                continue;
            };
            let value = if as_disk(key).is_some() {
                let made = self.fulfil_disk(actor, vmid, config, key, value, made).await;
                made.map_err(|e| of_option(key, e))?
            } else if key.starts_with("net") && split_index(key).is_some() {
                fulfil_net(config, key, value, self.mac_prefix()?)?
            } else if key == "vmgenid" && value == "1" {
                uuid::Uuid::from_bytes(rand::random()).to_string()
            } else if key == "cipassword" {
                cloudinit::hashed(value, config.current.get(key)).await?
            } else if key == "hookscript" {
                self.check_script(value).await?;
                value.clone()
            } else {
                value.clone()
            };
            out.push(Change::Set { key: key.clone(), value });
        }
        Ok(out)
    }

    async fn fulfil_disk(
        &self,
        actor: &Actor,
        vmid: Vmid,
        config: &VmConfig,
        key: &str,
        value: &str,
        made: &mut Made,
    ) -> Result<String, OpsError> {
        let disk = Disk::parse(key, value)?;
        match &disk.source {
            DiskSource::New { storage, .. } if disk.bus == Bus::Efidisk => {
                actor.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
                self.make_efidisk(vmid, &disk, storage, made).await
            }
            DiskSource::New { storage, .. } if disk.bus == Bus::Tpmstate => {
                actor.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
                self.make_tpmstate(vmid, &disk, storage, made).await
            }
            DiskSource::New { storage, size } => {
                actor.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
                if made.in_request {
                    self.check_quick(storage, key, size.get())?;
                }
                let info = self.alloc_disk(storage, vmid, disk.format.as_deref(), size.get()).await?;
                made.volumes.push(info.volid.clone());
                Ok(disk.with_volume(&info.volid, Some(Size::bytes(info.size)))?)
            }
            DiskSource::NewCloudInit { storage } => {
                actor.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
                self.allot_drive(vmid, config, &disk, storage, made).await
            }
            DiskSource::Volume(volume) => {
                let what = if disk.cdrom { "Datastore.Audit" } else { "Datastore.AllocateSpace" };
                actor.require(&format!("/storage/{}", volume.storage), &[what])?;
                let info = self.volume_info(volume).await?;
                if let Some(other) = info.vmid.filter(|v| *v != vmid) {
                    return Err(OpsError::invalid(key, format!("volume '{volume}' belongs to VM {other}")));
                }
                // A linked clone is written by the name that says what it is built on.
                let volume = &info.volid;
                let fits = match info.content {
                    Content::Iso => disk.cdrom,
                    Content::Images => info.vmid == Some(vmid),
                    _ => false,
                };
                if disk.bus == Bus::Tpmstate && info.format != "raw" {
                    let why = format!(
                        "volume '{volume}' is in the format {}, and a TPM reads raw alone",
                        info.format
                    );
                    return Err(OpsError::invalid(key, why));
                }
                if !fits {
                    let what = if disk.cdrom { "CD image" } else { "disk of this VM" };
                    return Err(OpsError::invalid(key, format!("volume '{volume}' is no {what}")));
                }
                Ok(disk.with_volume(volume, Some(Size::bytes(info.size)))?)
            }
            DiskSource::Path(_) | DiskSource::HostDrive if !actor.root => Err(OpsError::Forbidden {
                path: format!("/vms/{vmid}"),
                privilege: format!("only root can set '{key}' to a path or drive of the host"),
            }),
            DiskSource::Path(_) | DiskSource::HostDrive | DiskSource::Empty => Ok(value.to_owned()),
        }
    }

    /// A volume with the variables that the UEFI firmware begins with, exactly as large as they are.
    async fn make_efidisk(
        &self,
        vmid: Vmid,
        disk: &Disk,
        storage: &StorageId,
        made: &mut Made,
    ) -> Result<String, OpsError> {
        let variables = self.guests.efi_variables(disk.efi()?).await?;
        let failed = |e: std::io::Error| OpsError::failed(format!("{}: {e}", variables.display()));
        let size = tokio::fs::metadata(&variables).await.map_err(failed)?.len();
        let info = self.alloc_disk(storage, vmid, disk.format.as_deref(), size).await?;
        made.volumes.push(info.volid.clone());
        let spooled = self.spool_for(&info.volid).await?;
        let copied = tokio::fs::copy(&variables, &spooled).await.map(drop).map_err(failed);
        let info = self.fill(&info.volid, spooled, copied).await?;
        Ok(disk.with_volume(&info.volid, Some(Size::bytes(info.size)))?)
    }

    /// A volume for what a TPM keeps. It is empty, whatever was there before: another VM's secrets perhaps.
    async fn make_tpmstate(
        &self,
        vmid: Vmid,
        disk: &Disk,
        storage: &StorageId,
        made: &mut Made,
    ) -> Result<String, OpsError> {
        let info = self.alloc_disk(storage, vmid, Some("raw"), TPM_STATE).await?;
        made.volumes.push(info.volid.clone());
        let spooled = self.spool_for(&info.volid).await?;
        let emptied = async { tokio::fs::File::create(&spooled).await?.set_len(TPM_STATE).await };
        let failed = |e: std::io::Error| OpsError::failed(format!("{}: {e}", spooled.display()));
        let emptied = emptied.await.map_err(failed);
        let info = self.fill(&info.volid, spooled, emptied).await?;
        Ok(disk.with_volume(&info.volid, Some(Size::bytes(info.size)))?)
    }

    /// Makes pending changes current before a start.
    pub(crate) async fn apply_pending(&self, guest: GuestAt) -> Result<GuestAt, OpsError> {
        let mut config = parse(&guest.config.value)?;
        if config.pending.is_empty() {
            return Ok(guest);
        }
        let changed = config.apply_pending(guest.vmid)?;
        self.commit_config(&Actor::system(), &guest, &config).await?;
        self.free_volumes(&changed.freed).await;
        self.vm_at(guest.vmid)
    }
}

/// What comes with a change: volumes made for it, to be removed if it fails, and how it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub volumes: Vec<VolumeId>,
    /// Somebody waits for the answer: nothing may take long.
    pub in_request: bool,
    /// Why, for the history.
    pub reason: Option<String>,
}

/// Refuses a change that is built on another version.
pub fn check_digest(seen: Option<&str>, config: &VmConfig) -> Result<(), OpsError> {
    match seen {
        Some(d) if d != config.digest() => {
            Err(OpsError::failed("detected modified configuration - file changed by other user? Try again."))
        }
        _ => Ok(()),
    }
}

/// What a running process is told of a change.
#[derive(Debug, Default)]
struct LiveChanges {
    /// Media of its CD drives.
    loads: Vec<(String, Option<ResolvedVolume>)>,
    /// Options of whose new values it is told.
    tuned: Vec<String>,
}

/// Whether a running process has no part in a change.
fn is_now(current: &Settings, change: &Change) -> bool {
    live(change.key()) == Live::Now && !change.makes_room_for_modules(current)
}

/// Whether a change puts a medium into, or takes one out of, a CD drive that is there.
fn is_medium(config: &VmConfig, change: &Change) -> bool {
    let Change::Set { key, value } = change else { return false };
    let cd = |v: &str| Disk::parse(key, v).is_ok_and(|d| d.cdrom);
    // A cloud-init drive is written before a start.
    let told = Disk::parse(key, value).is_ok_and(|d| d.cloudinit().is_some());
    as_disk(key).is_some() && !told && cd(value) && config.current.get(key).is_some_and(cd)
}

/// Whether a change is one that a running process can be told, without a device that comes or goes: the limits of a disk, and
/// what is said of a disk that no process has a part in; whether a network device's link is up, what may pass it, and its bridge;
/// the balloon's target; its share of the CPUs; how long it may stand still when it moves.
fn is_tuning(config: &VmConfig, change: &Change) -> bool {
    let (key, new) = match change {
        Change::Set { key, value } => (key, Some(value.as_str())),
        Change::Delete { key, .. } => (key, None),
    };
    let old = config.current.get(key);
    if matches!(key.as_str(), "cpulimit" | "cpuunits" | "migrate_downtime") {
        return true;
    }
    if key == "balloon" {
        // 0 is none at all.
        return old != Some("0") && new != Some("0");
    }
    let (Some(old), Some(new)) = (old, new) else { return false };
    if as_disk(key).is_some_and(|(bus, _)| bus.has_drives()) {
        let (Ok(old), Ok(new)) = (Disk::parse(key, old), Disk::parse(key, new)) else { return false };
        let (Ok(before), Ok(after)) = (old.details(), new.details()) else { return false };
        let told = DiskDetails { limits: after.limits, ..before } == after;
        // What is written of its size follows its storage.
        let (backup, size, props) = (new.backup, new.size, new.props.clone());
        return told && !old.cdrom && Disk { backup, size, props, ..old } == new;
    }
    let (Ok(old), Ok(new)) = (Net::parse(key, old), Net::parse(key, new)) else { return false };
    if old.bridge.is_some() != new.bridge.is_some() {
        return false;
    }
    let (link_down, rate, bridge, props) = (new.link_down, new.rate, new.bridge.clone(), new.props.clone());
    Net { link_down, rate, bridge, props, ..old } == new
}

/// Keeps a device's address where the user gives none, and makes one for a new device.
fn fulfil_net(config: &VmConfig, key: &str, value: &str, prefix: String) -> Result<String, OpsError> {
    let net = Net::parse(key, value)?;
    if net.mac.is_some() {
        return Ok(value.to_owned());
    }
    let old = config.current.get(key).and_then(|v| Net::parse(key, v).ok()).and_then(|n| n.mac);
    Ok(net.with_mac(&old.unwrap_or_else(|| random_mac(prefix)))?)
}

/// A random address that begins as the cluster's option `mac_prefix` says.
pub(super) fn random_mac(prefix: String) -> String {
    let random: [u8; 6] = rand::random();
    let mut mac = prefix;
    for byte in &random[mac.split(':').count().min(6)..] {
        mac.push_str(&format!(":{byte:02X}"));
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_begin_as_the_cluster_wants_them() {
        for prefix in ["BC:24:11", "02", "02:01:02:03:04"] {
            let mac = random_mac(prefix.to_owned());
            assert!(mac.starts_with(prefix) && mac.len() == 17, "{mac}");
            let value = fulfil_net(&VmConfig::default(), "net0", "virtio", prefix.to_owned()).unwrap();
            assert!(value.starts_with(&format!("virtio={prefix}:")), "{value}");
        }
    }
}
