//! Snapshots of a VM, as changes of its configuration: which may be taken, removed and gone back to, and what the
//! configuration says before and after.
//!
//! ```text
//!  take     lock, [name] snapstate: prepare ──disks──▶ [name], parent: name
//!  remove   lock, [name] snapstate: delete  ──disks──▶ its children get its parent
//!  go back  lock: rollback                  ──disks──▶ the options of [name], parent: name
//! ```
//!
//! What is written first says what is under way, so that whoever finds it half done knows what to do: what was half taken is
//! removed, what was half removed is removed again, and a VM that has half gone back stays locked until it goes back
//! again.

use std::collections::BTreeSet;
use stead_model::vmconfig::{Bios, Bus, Disk, DiskSource, KeyError, Settings, VmConfig, is_snapshot_name};
use stead_model::{StorageId, Vmid, VolumeId, cloudinit};

/// The lock while a snapshot is taken.
pub const TAKING: &str = "snapshot";
/// The lock while one is removed.
pub const REMOVING: &str = "snapshot-delete";
/// The lock while a VM goes back to one; it stays when that fails half-way.
pub const ROLLBACK: &str = "rollback";

/// What a section is in whose work is under way, or was cut off.
const PREPARE: &str = "prepare";
const DELETE: &str = "delete";

/// Options that are a snapshot's own, or the VM's own beside it, and never go from one to the other.
const APART: [&str; 9] = [
    "description",
    "lock",
    "running-nets-host-mtu",
    "runningaccel",
    "runningcpu",
    "runningmachine",
    "snapstate",
    "snaptime",
    "vmstate",
];

/// Why it can't be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot can be called so.
    #[error(
        "'{0}' is no name of a snapshot: 2 to 40 letters, digits, '-' and '_', the first a letter; 'current' and 'pending' are taken"
    )]
    Name(String),
    /// There is one of that name.
    #[error("snapshot name '{0}' already used")]
    Taken(String),
    /// There is none of that name.
    #[error("snapshot '{0}' does not exist")]
    Missing(String),
    /// It is half taken or half removed.
    #[error("can't go back to snapshot '{name}': it is half done (snapstate '{state}'); remove it")]
    Unfinished {
        /// Which.
        name: String,
        /// What was under way.
        state: String,
    },
    /// A disk of which no snapshot can be taken.
    #[error("can't take a snapshot: disk '{key}' {why}")]
    Disk {
        /// The option.
        key: String,
        /// What speaks against it, and what to do.
        why: String,
    },
    /// The VM's memory can't be kept.
    #[error("can't keep the VM's memory: {0}")]
    Memory(&'static str),
    /// An option that can't be read, or has no place.
    #[error(transparent)]
    Option(#[from] KeyError),
}

/// A disk whose state a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The option.
    pub key: String,
    /// Its volume.
    pub volume: VolumeId,
}

/// The VM's memory as a snapshot holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// In which volume.
    pub volume: VolumeId,
    /// The versioned machine type that it is of.
    pub machine: String,
    /// `kvm` or `tcg`: no memory goes from one to the other.
    pub accel: String,
    /// The CPU that it ran with, in the driver's words; none, of one of an older version: the configuration's.
    pub cpu: Option<String>,
}

/// A snapshot to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct New {
    /// Its name.
    pub name: String,
    /// What its user says of it.
    pub description: String,
    /// When: seconds since 1970.
    pub time: u64,
}

/// A snapshot as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What its user says of it.
    pub description: String,
    /// The snapshot that it follows.
    pub parent: Option<String>,
    /// When it was taken: seconds since 1970.
    pub time: Option<u64>,
    /// Whether it holds the VM's memory, too.
    pub memory: bool,
    /// `prepare` or `delete`, of one that is half taken or half removed.
    pub state: Option<String>,
}

fn section<'a>(config: &'a VmConfig, name: &str) -> Result<&'a Settings, SnapshotError> {
    config.snapshots.get(name).ok_or_else(|| SnapshotError::Missing(name.to_owned()))
}

fn section_mut<'a>(config: &'a mut VmConfig, name: &str) -> Result<&'a mut Settings, SnapshotError> {
    config.snapshots.get_mut(name).ok_or_else(|| SnapshotError::Missing(name.to_owned()))
}

fn is_unused(key: &str) -> bool {
    matches!(stead_model::vmconfig::devices::as_disk(key), Some((Bus::Unused, _)))
}

/// What goes from the VM to a snapshot and back.
fn shared(from: &Settings) -> impl Iterator<Item = (&str, &str)> {
    from.iter().filter(|(key, _)| !APART.contains(key) && !is_unused(key))
}

/// The disks of a VM whose state a snapshot of it holds. CDs hold nothing of the VM's own, unused volumes are none of
/// its disks. `running`: it has a process, which opens only what is no option of the firmware's or the TPM's.
///
/// # Errors
/// Names the first disk of which no snapshot can be taken.
pub fn disks(settings: &Settings, running: bool) -> Result<Vec<Held>, SnapshotError> {
    let refuse = |key: &str, why: &str| Err(SnapshotError::Disk { key: key.to_owned(), why: why.to_owned() });
    if running && settings.get("tpmstate0").is_some() {
        let why =
            "is what the VM's TPM keeps, in which it may be writing at any moment: shut the VM down first";
        return refuse("tpmstate0", why);
    }
    if running && settings.get("efidisk0").is_some() && settings.bios()? != Bios::Ovmf {
        return refuse("efidisk0", "is of no use to the VM, whose firmware is not UEFI: take it out first");
    }
    let mut out = vec![];
    for disk in settings.disks()?.into_iter().filter(|d| !d.cdrom) {
        match disk.source {
            DiskSource::Volume(_) if disk.read_only && running => {
                return refuse(&disk.key, "is read-only: shut the VM down first");
            }
            DiskSource::Volume(volume) => out.push(Held { key: disk.key, volume }),
            _ => return refuse(&disk.key, "is a path of the host and not a volume of a storage"),
        }
    }
    Ok(out)
}

/// The disks whose state a snapshot holds.
///
/// # Errors
/// If there is no such snapshot, or one of its disks can't be read.
pub fn held(config: &VmConfig, name: &str) -> Result<Vec<Held>, SnapshotError> {
    let disks = section(config, name)?.disks()?.into_iter().filter(|d| !d.cdrom);
    Ok(disks.filter_map(|d| d.volume().cloned().map(|volume| Held { key: d.key, volume })).collect())
}

/// The volumes in which a snapshot holds the VM's memory.
pub fn memory_of(config: &VmConfig, name: &str) -> Vec<VolumeId> {
    let all = config.snapshots.get(name).map(Settings::volumes).unwrap_or_default();
    all.into_iter().filter(|(key, _)| *key == "vmstate").map(|(_, volume)| volume).collect()
}

/// The option by which a VM has a volume as a disk now.
pub fn attached<'a>(config: &'a VmConfig, volume: &VolumeId) -> Option<&'a str> {
    config.current.volumes().into_iter().find(|(key, v)| v == volume && !is_unused(key)).map(|(key, _)| key)
}

/// Writes down that a snapshot is being taken.
///
/// # Errors
/// If its name can't be, or is taken.
pub fn prepare(config: &mut VmConfig, new: &New) -> Result<(), SnapshotError> {
    if !is_snapshot_name(&new.name) {
        return Err(SnapshotError::Name(new.name.clone()));
    }
    if config.snapshots.contains_key(&new.name) {
        return Err(SnapshotError::Taken(new.name.clone()));
    }
    let mut taken = Settings::default();
    for (key, value) in shared(&config.current) {
        taken.set(key, value)?;
    }
    taken.set("description", &new.description)?;
    taken.set("snaptime", &new.time.to_string())?;
    taken.set("snapstate", PREPARE)?;
    config.snapshots.insert(new.name.clone(), taken);
    Ok(())
}

/// Where the memory of a VM may be kept: beside one of its disks, on a storage that other nodes see, too, if it has one.
///
/// # Errors
/// If it has no disk.
pub fn room_for_memory(
    disks: &[Held],
    shared: impl Fn(&StorageId) -> bool,
) -> Result<StorageId, SnapshotError> {
    let storages = || disks.iter().map(|d| &d.volume.storage);
    let found = storages().find(|id| shared(id)).or_else(|| storages().next());
    found.cloned().ok_or(SnapshotError::Memory("it has no disk beside which that could be"))
}

/// Writes down where a snapshot that is being taken keeps the VM's memory.
///
/// # Errors
/// If there is no such snapshot.
pub fn keep_memory(config: &mut VmConfig, name: &str, memory: &Memory) -> Result<(), SnapshotError> {
    let taken = section_mut(config, name)?;
    taken.set("vmstate", &memory.volume.to_string())?;
    taken.set("runningmachine", &memory.machine)?;
    if let Some(cpu) = &memory.cpu {
        taken.set("runningcpu", cpu)?;
    }
    Ok(taken.set("runningaccel", &memory.accel)?)
}

/// The memory that a snapshot holds. One that does not say how it was made, as those made elsewhere, is none that could be read.
pub fn memory(config: &VmConfig, name: &str) -> Option<Memory> {
    let from = config.snapshots.get(name)?;
    Some(Memory {
        volume: from.get("vmstate")?.parse().ok()?,
        machine: from.get("runningmachine")?.to_owned(),
        accel: from.get("runningaccel")?.to_owned(),
        cpu: from.get("runningcpu").map(str::to_owned),
    })
}

/// Writes down that a snapshot was taken: what the VM is from now on follows it.
///
/// # Errors
/// If there is no such snapshot.
pub fn finish(config: &mut VmConfig, name: &str) -> Result<(), SnapshotError> {
    section_mut(config, name)?.remove("snapstate");
    config.current.set("parent", name)?;
    Ok(())
}

/// The snapshots that are half taken or half removed.
pub fn unfinished(config: &VmConfig) -> Vec<String> {
    let half = config.snapshots.iter().filter(|(_, s)| s.get("snapstate").is_some());
    half.map(|(name, _)| name.clone()).collect()
}

/// Whether a snapshot is half taken that was to hold the VM's memory: the VM ran when it was begun.
pub fn half_taken_with_memory(config: &VmConfig) -> bool {
    let half = |s: &Settings| s.get("snapstate") == Some(PREPARE) && s.get("vmstate").is_some();
    config.snapshots.values().any(half)
}

/// Writes down that a snapshot is being removed. It need not be whole.
///
/// # Errors
/// If there is no such snapshot.
pub fn begin_removal(config: &mut VmConfig, name: &str) -> Result<(), SnapshotError> {
    section_mut(config, name)?.set("snapstate", DELETE)?;
    Ok(())
}

/// Takes a snapshot out that was removed from the disks: those that followed it follow the one before it, and disks that it
/// alone had are the VM's unused ones.
///
/// # Errors
/// If there is no such snapshot, or too many volumes are unused.
pub fn finish_removal(config: &mut VmConfig, vmid: Vmid, name: &str) -> Result<(), SnapshotError> {
    let held = held(config, name)?;
    let removed = config.snapshots.remove(name).unwrap_or_default();
    let before = removed.parent().filter(|p| *p != name && config.snapshots.contains_key(*p));
    let sections = config.snapshots.values_mut().chain([&mut config.current]);
    for follows in sections.filter(|s| s.parent() == Some(name)) {
        match before {
            Some(before) => follows.set("parent", before)?,
            None => drop(follows.remove("parent")),
        }
    }
    keep(config, vmid, held.into_iter().map(|h| h.volume))
}

/// Volumes that nothing names any more become unused ones.
fn keep(
    config: &mut VmConfig,
    vmid: Vmid,
    volumes: impl IntoIterator<Item = VolumeId>,
) -> Result<(), SnapshotError> {
    for volume in volumes.into_iter().collect::<BTreeSet<_>>() {
        if !config.all_volumes().contains(&volume) {
            config.keep_unused(vmid, &volume)?;
        }
    }
    Ok(())
}

/// The disks that go back to their state in a snapshot.
///
/// # Errors
/// If there is no such snapshot, or it is half done.
pub fn rollback_disks(config: &VmConfig, name: &str) -> Result<Vec<Held>, SnapshotError> {
    let from = section(config, name)?;
    if let Some(state) = from.get("snapstate") {
        return Err(SnapshotError::Unfinished { name: name.to_owned(), state: state.to_owned() });
    }
    held(config, name)
}

/// Gives a VM whose disks have gone back the options that it had then. What was pending is dropped; the description and the
/// unused volumes stay as they are, and disks that it did not have then are unused ones. `generation` is its new
/// generation id, if it has one: a guest must learn that its time went back.
///
/// # Errors
/// If there is no such snapshot, or too many volumes are unused.
pub fn roll_back(
    config: &mut VmConfig,
    vmid: Vmid,
    name: &str,
    generation: &str,
) -> Result<(), SnapshotError> {
    let mut new = Settings::default();
    for (key, value) in shared(section(config, name)?) {
        new.set(key, value)?;
    }
    for (key, value) in config.current.iter().filter(|(key, _)| *key == "description" || is_unused(key)) {
        new.set(key, value)?;
    }
    if new.get("vmgenid").is_some_and(|id| id != "0") {
        new.set("vmgenid", generation)?;
    }
    new.set("parent", name)?;
    // What a drive holds is of another time.
    config.special.remove(cloudinit::SECTION);
    let before = std::mem::replace(&mut config.current, new);
    let pending = std::mem::take(&mut config.pending).set;
    let again: Vec<String> = config
        .current
        .volumes()
        .into_iter()
        .filter(|(key, volume)| is_unused(key) && attached(config, volume).is_some())
        .map(|(key, _)| key.to_owned())
        .collect();
    for key in again {
        config.current.remove(&key);
    }
    keep(config, vmid, [&before, &pending].into_iter().flat_map(own_disks))
}

/// Volumes that are no CDs.
fn own_disks(settings: &Settings) -> Vec<VolumeId> {
    let disk = |(key, volume)| {
        let cdrom = settings.get(key).is_some_and(|v| Disk::parse(key, v).is_ok_and(|d| d.cdrom));
        (!cdrom).then_some(volume)
    };
    settings.volumes().into_iter().filter_map(disk).collect()
}

/// Every volume but CDs that pending changes and snapshots name: what the VM needs beside what it has now.
pub fn further_volumes(config: &VmConfig) -> BTreeSet<VolumeId> {
    config.snapshots.values().chain([&config.pending.set]).flat_map(own_disks).collect()
}

/// Cloud-init drives that a configuration named and does not name any more: they hold nothing that the options do not.
pub fn dropped_drives(before: &VmConfig, after: &VmConfig) -> Vec<VolumeId> {
    let kept = after.all_volumes();
    before.all_volumes().into_iter().filter(|v| cloudinit::is_drive(v) && !kept.contains(v)).collect()
}

/// Changes what is said of a snapshot; an empty text is none.
///
/// # Errors
/// If there is no such snapshot.
pub fn describe(config: &mut VmConfig, name: &str, text: &str) -> Result<(), SnapshotError> {
    Ok(section_mut(config, name)?.set("description", text)?)
}

/// The snapshots, by name.
pub fn list(config: &VmConfig) -> Vec<Listed> {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    let listed = |(name, s): (&String, &Settings)| Listed {
        name: name.clone(),
        description: s.description().unwrap_or_default().to_owned(),
        parent: owned(s.parent()),
        time: s.get("snaptime").and_then(|t| t.parse().ok()),
        memory: s.get("vmstate").is_some(),
        state: owned(s.get("snapstate")),
    };
    config.snapshots.iter().map(listed).collect()
}

#[cfg(test)]
mod tests;
