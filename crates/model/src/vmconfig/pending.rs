//! Changes of a VM's options: at once, or with its next start.

use super::devices::as_disk;
use super::host;
use super::keys::{KeyError, accept, removable};
use super::{Bus, Disk, DiskSource, Settings, VmConfig};
use crate::cloudinit;
use crate::{Vmid, VolumeId};

/// A change of one option, checked. Made by [`Change::set`] and [`Change::delete`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new value.
    Set {
        /// The option.
        key: String,
        /// As it is stored.
        value: String,
    },
    /// Back to the default; of a disk: taken off the VM.
    Delete {
        /// The option.
        key: String,
        /// Whether its volume is removed rather than kept as unused.
        force: bool,
    },
}

impl Change {
    /// What a user sets. An empty description or list of tags takes the option out.
    ///
    /// # Errors
    /// See [`accept`].
    pub fn set(key: &str, value: &str) -> Result<Self, KeyError> {
        let (key, value) = accept(key, value)?;
        if value.is_empty() {
            return Ok(Self::Delete { key: key.to_owned(), force: false });
        }
        Ok(Self::Set { key: key.to_owned(), value })
    }

    /// What a user takes out. Options that do not work yet can be taken out.
    ///
    /// # Errors
    /// If there is no such option, or it is the system's own.
    pub fn delete(key: &str, force: bool) -> Result<Self, KeyError> {
        Ok(Self::Delete { key: removable(key)?.to_owned(), force })
    }

    /// If only the built-in administrator may make this change, since it reaches into the host itself: the end of the
    /// sentence "only root can set 'serial0' ...".
    pub fn needs_root(&self) -> Option<&'static str> {
        let Self::Set { key, value } = self else { return None };
        if key == "args" {
            return Some("config");
        }
        if key.starts_with("serial") && value != "socket" {
            return Some("for real devices");
        }
        if key.starts_with("parallel") {
            return Some("for real devices");
        }
        let of_host = host::as_usb(key).is_some() || host::as_hostpci(key).is_some();
        if of_host && !value.split(',').any(|part| part.starts_with("mapping=")) {
            return Some("for real devices");
        }
        if key.starts_with("rng") && value.contains("/dev/hwrng") {
            return Some("to the host's hardware generator");
        }
        let disk = Disk::parse(key, value);
        if let Ok(Ok(Some(DiskSource::Path(_)))) = disk.as_ref().map(Disk::import_from) {
            return Some("to import a file of the host");
        }
        match disk.map(|disk| disk.source) {
            Ok(DiskSource::Path(_) | DiskSource::HostDrive) => Some("to a path or drive of the host"),
            _ => None,
        }
    }

    /// Whether it makes another machine of the VM, which a running one cannot become: memory has places for modules from its start on,
    /// or never.
    pub fn makes_room_for_modules(&self, current: &Settings) -> bool {
        let mut then = current.clone();
        let changed = match self {
            Self::Set { key, value } if key == "hotplug" => then.set(key, value).is_ok(),
            Self::Delete { key, .. } if key == "hotplug" => then.remove(key).is_some(),
            _ => return false,
        };
        let has = |settings: &Settings| settings.hotplug().contains(&"memory");
        changed && has(&then) != has(current)
    }

    /// The option.
    pub fn key(&self) -> &str {
        match self {
            Self::Set { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

/// What became of changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Options that have changed now.
    pub applied: Vec<String>,
    /// Options that change with the next start.
    pub pending: Vec<String>,
    /// Volumes that no option names any more and that are to be removed from their storages.
    pub freed: Vec<VolumeId>,
}

/// An option as `pending` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingItem {
    /// The option.
    pub key: String,
    /// What the VM has.
    pub value: Option<String>,
    /// What it will have.
    pub pending: Option<String>,
    /// 1: it will go away; 2: by force.
    pub delete: Option<u8>,
}

/// Whether a volume is the guest's own by its name: `100/vm-100-disk-0.qcow2`, `vm-100-disk-1`, `base-100-...`.
fn owned(volume: &VolumeId, vmid: Vmid) -> bool {
    let own = volume.own_name();
    let file = own.rsplit('/').next().unwrap_or_default();
    ["vm", "base", "subvol"].iter().any(|kind| file.starts_with(&format!("{kind}-{vmid}-")))
        || own.starts_with(&format!("{vmid}/"))
}

impl VmConfig {
    /// Carries changes out, in order. `at_once` says of each whether it can be applied now: of a stopped VM any,
    /// of a running one those with [`Live::Now`](super::Live::Now) and those that its driver has just applied.
    /// The others become pending.
    ///
    /// A disk that is taken off without force, or replaced, becomes an `unusedN`, if its volume is the guest's; by force, too, if a
    /// snapshot has it. A cloud-init drive is removed: it holds nothing that the options do not.
    ///
    /// # Errors
    /// If a value cannot stand in the file, no `unusedN` is free, or the volume of one that is taken out is a snapshot's; the
    /// configuration is then partly changed and must be dropped.
    pub fn change(
        &mut self,
        vmid: Vmid,
        changes: &[Change],
        at_once: impl Fn(&Change) -> bool,
    ) -> Result<Changed, KeyError> {
        let mut changed = Changed::default();
        for change in changes {
            if at_once(change) {
                self.apply(vmid, change, &mut changed)?;
            } else {
                self.pend(change, &mut changed)?;
            }
        }
        Ok(changed)
    }

    /// Takes pending changes of one option back; whether there was one.
    pub fn revert(&mut self, key: &str) -> bool {
        let set = self.pending.set.remove(key).is_some();
        self.pending.delete.remove(key).is_some() || set
    }

    /// Makes all that is pending current, as before a start.
    ///
    /// # Errors
    /// See [`Self::change`].
    pub fn apply_pending(&mut self, vmid: Vmid) -> Result<Changed, KeyError> {
        let pending = std::mem::take(&mut self.pending);
        let mut changed = Changed::default();
        for (key, force) in pending.delete {
            self.apply(vmid, &Change::Delete { key, force }, &mut changed)?;
        }
        for (key, value) in pending.set.iter() {
            let change = Change::Set { key: key.to_owned(), value: value.to_owned() };
            self.apply(vmid, &change, &mut changed)?;
        }
        Ok(changed)
    }

    /// Makes what is pending of one option current: its device was plugged in.
    ///
    /// # Errors
    /// See [`Self::change`].
    pub fn plugged(&mut self, vmid: Vmid, key: &str) -> Result<Changed, KeyError> {
        let mut changed = Changed::default();
        if let Some(value) = self.pending.set.get(key).map(str::to_owned) {
            self.apply(vmid, &Change::Set { key: key.to_owned(), value }, &mut changed)?;
        }
        Ok(changed)
    }

    /// Takes an option out, whose device was unplugged. What is to come in its place stays pending. `keep`: a volume that was to be
    /// removed is kept as unused.
    ///
    /// # Errors
    /// See [`Self::change`].
    pub fn unplugged(&mut self, vmid: Vmid, key: &str, keep: bool) -> Result<Changed, KeyError> {
        let next = self.pending.set.get(key).map(str::to_owned);
        let force = self.pending.delete.get(key).copied().unwrap_or(false) && !keep;
        let mut changed = Changed::default();
        self.apply(vmid, &Change::Delete { key: key.to_owned(), force }, &mut changed)?;
        if let Some(value) = next {
            self.pending.set.set(key, &value)?;
        }
        Ok(changed)
    }

    /// A running VM has not the device of an option any more, though nobody wanted that: it has it again from its next start on.
    ///
    /// # Errors
    /// See [`Self::change`].
    pub fn lost(&mut self, key: &str) -> Result<(), KeyError> {
        match self.current.remove(key) {
            Some(value) => self.pending.set.set(key, &value),
            None => Ok(()),
        }
    }

    /// Writes down how many CPUs a running VM has. Another number that is wanted stays pending.
    ///
    /// # Errors
    /// See [`Self::change`].
    pub fn has_cpus(&mut self, number: u32) -> Result<(), KeyError> {
        let number = number.to_string();
        self.current.set("vcpus", &number)?;
        if self.pending.set.get("vcpus") == Some(&number) {
            self.pending.set.remove("vcpus");
        }
        Ok(())
    }

    /// Writes down how much memory a running VM has by the modules that are there. Another size that is wanted stays pending.
    ///
    /// # Errors
    /// If its memory is not made of modules.
    pub fn has_modules(&mut self, number: usize) -> Result<(), KeyError> {
        let Some(modules) = self.current.modules()? else {
            return KeyError::value("memory", "nothing of it comes or goes");
        };
        let memory = modules.memory_of(number);
        self.current.set("memory", &memory.0.to_string())?;
        if self.pending.set.get("memory").is_some() && self.pending.set.memory()? == memory {
            self.pending.set.remove("memory");
        }
        Ok(())
    }

    /// Every option, current or pending, by name.
    pub fn pending_items(&self) -> Vec<PendingItem> {
        let mut keys: Vec<&str> =
            self.current.iter().chain(self.pending.set.iter()).map(|(k, _)| k).collect();
        keys.extend(self.pending.delete.keys().map(String::as_str));
        keys.sort_unstable();
        keys.dedup();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        keys.into_iter()
            .map(|key| PendingItem {
                key: key.to_owned(),
                value: owned(self.current.get(key)),
                pending: owned(self.pending.set.get(key)),
                delete: self.pending.delete.get(key).map(|force| if *force { 2 } else { 1 }),
            })
            .collect()
    }

    fn apply(&mut self, vmid: Vmid, change: &Change, changed: &mut Changed) -> Result<(), KeyError> {
        let key = change.key();
        self.revert(key);
        let before = self.current.get(key).map(str::to_owned);
        match change {
            Change::Set { value, .. } => self.current.set(key, value)?,
            Change::Delete { .. } => drop(self.current.remove(key)),
        }
        if before.as_deref() != self.current.get(key) {
            changed.applied.push(key.to_owned());
            if let Some(before) = before {
                self.settle(vmid, change, &before, changed)?;
            }
        }
        // A volume that is in use again is no longer unused.
        if let (Some((bus, _)), Some(value)) = (as_disk(key), self.current.get(key))
            && bus != Bus::Unused
            && let Some(volume) = Disk::parse(key, value)?.volume()
        {
            let again: Vec<String> = self
                .current
                .volumes()
                .into_iter()
                .filter(|(k, v)| v == volume && as_disk(k).is_some_and(|(bus, _)| bus == Bus::Unused))
                .map(|(k, _)| k.to_owned())
                .collect();
            for key in again {
                self.current.remove(&key);
                changed.applied.push(key);
            }
        }
        Ok(())
    }

    /// Finds a place for the volume that an option has just lost.
    fn settle(
        &mut self,
        vmid: Vmid,
        change: &Change,
        before: &str,
        changed: &mut Changed,
    ) -> Result<(), KeyError> {
        let key = change.key();
        let Some((bus, _)) = as_disk(key) else { return Ok(()) };
        // A value that cannot be read has no volume to keep.
        let Ok(disk) = Disk::parse(key, before) else { return Ok(()) };
        let told = disk.cloudinit().is_some();
        let Some(volume) = disk.volume().filter(|v| (told || !disk.cdrom) && owned(v, vmid)) else {
            return Ok(());
        };
        if told {
            // Nobody may take a drive that is made later for the one of which this speaks.
            self.special.remove(cloudinit::SECTION);
        }
        if self.is_in_use(volume) {
            return Ok(());
        }
        let kept_by = self.snapshot_with(volume);
        match (kept_by, bus) {
            (Some(name), Bus::Unused) => {
                let why =
                    format!("snapshot '{name}' still has its volume '{volume}': delete that snapshot first");
                return KeyError::value(key, why);
            }
            // It goes with the snapshot.
            (Some(_), _) if told => return Ok(()),
            (None, Bus::Unused) => {
                changed.freed.push(volume.clone());
                return Ok(());
            }
            (None, _) if told || matches!(change, Change::Delete { force: true, .. }) => {
                changed.freed.push(volume.clone());
                return Ok(());
            }
            // What a snapshot has is kept, whatever was asked for.
            _ => {}
        }
        changed.applied.extend(self.keep_unused(vmid, volume)?);
        Ok(())
    }

    /// Whether an option names a volume, now or with the next start.
    fn is_in_use(&self, volume: &VolumeId) -> bool {
        let sections = [&self.current, &self.pending.set].into_iter().chain(self.special.values());
        sections.flat_map(Settings::volumes).any(|(_, v)| v == *volume)
    }

    /// A snapshot that names a volume.
    fn snapshot_with(&self, volume: &VolumeId) -> Option<&str> {
        let names = |s: &Settings| s.volumes().iter().any(|(_, v)| v == volume);
        self.snapshots.iter().find(|(_, s)| names(s)).map(|(name, _)| name.as_str())
    }

    /// Makes a volume an `unusedN`, if it is the guest's own by its name and no option names it. Returns that option.
    ///
    /// # Errors
    /// If no `unusedN` is free.
    pub fn keep_unused(&mut self, vmid: Vmid, volume: &VolumeId) -> Result<Option<String>, KeyError> {
        if !owned(volume, vmid) || self.is_in_use(volume) {
            return Ok(None);
        }
        let Some(unused) = self.current.first_free(Bus::Unused.as_str()) else {
            return KeyError::value("unused", "there are too many unused volumes; remove some first");
        };
        self.current.set(&unused, &volume.to_string())?;
        Ok(Some(unused))
    }

    fn pend(&mut self, change: &Change, changed: &mut Changed) -> Result<(), KeyError> {
        let key = change.key();
        self.revert(key);
        match change {
            Change::Set { value, .. } if self.current.get(key) == Some(value) => return Ok(()),
            Change::Set { value, .. } => self.pending.set.set(key, value)?,
            Change::Delete { .. } if self.current.get(key).is_none() => return Ok(()),
            Change::Delete { force, .. } => drop(self.pending.delete.insert(key.to_owned(), *force)),
        }
        changed.pending.push(key.to_owned());
        Ok(())
    }
}
