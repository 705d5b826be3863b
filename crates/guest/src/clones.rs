//! Clones of a VM, and templates: what they are to its configuration.
//!
//! ```text
//!  full clone     a copy of each disk, as it is now or in a snapshot
//!  linked clone   of a template: what differs from its base volumes
//!  template       each disk under the name of a base volume, which nobody writes
//! ```
//!
//! What makes a VM one of its kind is made anew: hardware addresses, the generation id, the UUID. What is of its own past is left
//! out: snapshots, pending changes, unused volumes.

use stead_model::vmconfig::devices::as_net;
use stead_model::vmconfig::{Disk, DiskSource, KeyError, Net, Settings, VmConfig};
use stead_model::{StorageId, VolumeId, cloudinit};

/// The lock of a VM whose disks are being copied.
pub const CLONING: &str = "clone";
/// The lock of a VM that is being made.
pub const MAKING: &str = "create";

/// Options that stay with the VM that has them.
const APART: [&str; 11] = [
    "lock",
    "parent",
    "running-nets-host-mtu",
    "runningaccel",
    "runningcpu",
    "runningmachine",
    "snapstate",
    "snaptime",
    "template",
    "tpmstate0",
    "vmstate",
];

/// Why it can't be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloneError {
    /// There is no such snapshot.
    #[error("snapshot '{0}' does not exist")]
    NoSnapshot(String),
    /// It is half taken or half removed.
    #[error("snapshot '{name}' is half done (snapstate '{state}'): remove it")]
    Unfinished {
        /// Which.
        name: String,
        /// What was under way.
        state: String,
    },
    /// The VM has snapshots, whose disks nobody could give back any more.
    #[error("you can't convert a VM with snapshots to a template: remove them first ({0})")]
    Snapshots(String),
    /// A disk of which there can be no copy.
    #[error("disk '{key}' {why}")]
    Disk {
        /// The option.
        key: String,
        /// What speaks against it, and what to do.
        why: String,
    },
    /// An option that can't be read.
    #[error(transparent)]
    Option(#[from] KeyError),
}

fn refuse<T>(key: &str, why: impl Into<String>) -> Result<T, CloneError> {
    Err(CloneError::Disk { key: key.to_owned(), why: why.into() })
}

/// A disk of a clone, to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A copy of a volume.
    Copy {
        /// The disk.
        disk: Disk,
        /// Its volume at the source.
        from: VolumeId,
    },
    /// What differs from a base volume.
    Link {
        /// The disk.
        disk: Disk,
        /// The base volume.
        base: VolumeId,
    },
    /// A cloud-init drive: made anew, since it is of the VM's own options.
    Drive {
        /// The disk.
        disk: Disk,
        /// On which storage the source has its own.
        storage: StorageId,
    },
}

/// The options of a VM as it is, or as it was in a snapshot.
///
/// # Errors
/// If there is no such snapshot, or it is half done.
pub fn source<'a>(config: &'a VmConfig, snapshot: Option<&str>) -> Result<&'a Settings, CloneError> {
    let Some(name) = snapshot else { return Ok(&config.current) };
    let from = config.snapshots.get(name).ok_or_else(|| CloneError::NoSnapshot(name.to_owned()))?;
    match from.get("snapstate") {
        Some(state) => Err(CloneError::Unfinished { name: name.to_owned(), state: state.to_owned() }),
        None => Ok(from),
    }
}

/// The disks that a clone has of its own. The media of CD drives are both VMs'. `linked`: the disks are base volumes.
///
/// # Errors
/// Names the first disk of which there can be no copy, or no linked clone.
pub fn parts(from: &Settings, linked: bool) -> Result<Vec<Part>, CloneError> {
    if from.get("tpmstate0").is_some() {
        return refuse("tpmstate0", "is not supported yet, so its state would be lost: take it out first");
    }
    let mut parts = vec![];
    for disk in from.disks()? {
        if let Some(drive) = disk.cloudinit() {
            let storage = drive.storage.clone();
            parts.push(Part::Drive { disk, storage });
            continue;
        }
        if disk.cdrom {
            continue;
        }
        match disk.source.clone() {
            DiskSource::Volume(base) if linked && base.is_base() => parts.push(Part::Link { disk, base }),
            DiskSource::Volume(volume) if linked => {
                let why = format!("('{volume}') is no base volume: make a full clone (full=1)");
                return refuse(&disk.key, why);
            }
            DiskSource::Volume(from) => parts.push(Part::Copy { disk, from }),
            _ => return refuse(&disk.key, "is a path of the host and not a volume of a storage"),
        }
    }
    Ok(parts)
}

/// What a clone has anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anew {
    /// Its name; none: what it is a copy of.
    pub name: Option<String>,
    /// What is said of it; none: what is said of its source.
    pub description: Option<String>,
    /// Its generation id, if its source has one.
    pub generation: String,
    /// Its UUID, if its source has one.
    pub uuid: String,
}

/// Whether an option is of the VM alone, and not of its clones.
pub fn stays(key: &str) -> bool {
    APART.contains(&key) || key.starts_with("unused")
}

/// The options of a clone, still with the disks of its source. `mac` makes hardware addresses.
///
/// # Errors
/// If an option can't be read or written.
pub fn options(
    from: &Settings,
    of: &str,
    anew: &Anew,
    mut mac: impl FnMut() -> String,
) -> Result<Settings, CloneError> {
    let mut new = Settings::default();
    for (key, value) in from.iter().filter(|(key, _)| !stays(key)) {
        match key {
            _ if as_net(key).is_some() => new.set(key, &Net::parse(key, value)?.with_mac(&mac())?)?,
            "vmgenid" if value != "0" => new.set(key, &anew.generation)?,
            "smbios1" => new.set(key, &with_uuid(key, value, &anew.uuid)?)?,
            _ => new.set(key, value)?,
        }
    }
    match &anew.name {
        Some(name) => new.set("name", name)?,
        None => new.set("name", &format!("Copy-of-{}", from.get("name").unwrap_or(of)))?,
    }
    if let Some(text) = &anew.description {
        new.set("description", text)?;
    }
    Ok(new)
}

fn with_uuid(key: &str, value: &str, uuid: &str) -> Result<String, KeyError> {
    let mut props: stead_model::PropertyString = value.parse().or_else(|e| KeyError::value(key, e))?;
    if props.get("uuid").is_some() {
        props.set("uuid", uuid).or_else(|e| KeyError::value(key, e))?;
    }
    Ok(props.to_string())
}

/// The disks that become base volumes: all of a VM's own, or one. Those that are already stay.
///
/// # Errors
/// If the VM has snapshots, or there is no such disk, or it can't be one.
pub fn bases(config: &VmConfig, only: Option<&str>) -> Result<Vec<(Disk, VolumeId)>, CloneError> {
    if !config.snapshots.is_empty() {
        let names: Vec<&str> = config.snapshots.keys().map(String::as_str).collect();
        return Err(CloneError::Snapshots(names.join(", ")));
    }
    let mut out = vec![];
    let disks = config.current.disks()?.into_iter().filter(|d| !d.cdrom);
    for disk in disks.filter(|d| only.is_none_or(|key| d.key == key)) {
        match disk.source.clone() {
            DiskSource::Volume(volume) => out.push((disk, volume)),
            _ => return refuse(&disk.key, "is a path of the host and not a volume of a storage"),
        }
    }
    match only {
        Some(key) if out.is_empty() => refuse(key, "does not exist, or is no disk"),
        _ => Ok(out),
    }
}

/// Whether an option is a disk of a template's own, of which others may be made.
pub fn is_fixed(config: &VmConfig, key: &str) -> bool {
    let disk = config.current.get(key).and_then(|value| Disk::parse(key, value).ok());
    config.current.template()
        && disk
            .is_some_and(|d| !d.cdrom && d.volume().is_some_and(|v| v.is_base() && !cloudinit::is_drive(v)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> VmConfig {
        VmConfig::parse(text).unwrap()
    }

    const VM: &str = "cores: 2\nefidisk0: aa:100/vm-100-disk-1.raw,size=528K\nide2: aa:iso/x.iso,media=cdrom\n\
        ide3: aa:100/vm-100-cloudinit.qcow2,media=cdrom\nname: web\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n\
        parent: one\nscsi0: bb:100/vm-100-disk-0.qcow2,size=1G\nsmbios1: uuid=1d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10\n\
        unused0: aa:100/vm-100-disk-7.raw\nvmgenid: 1d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10\n";

    fn anew() -> Anew {
        let id = "2d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10".to_owned();
        Anew { name: None, description: None, generation: id.clone(), uuid: id }
    }

    #[test]
    fn a_clone_is_another_vm() {
        let c = config(VM);
        let new = options(&c.current, "VM-100", &anew(), || "BC:24:11:00:00:02".into()).unwrap();
        let new = VmConfig { current: new, ..VmConfig::default() }.to_string();
        let differs = [
            ("name: web", "name: Copy-of-web"),
            ("00:01", "00:02"),
            ("parent: one\n", ""),
            ("unused0: aa:100/vm-100-disk-7.raw\n", ""),
            ("1d0f", "2d0f"),
        ];
        let expected = differs.iter().fold(VM.to_owned(), |text, (from, to)| text.replace(from, to));
        assert_eq!(new, expected);
        let named = Anew { name: Some("db".into()), description: Some("mine".into()), ..anew() };
        let new = options(&c.current, "VM-100", &named, String::new);
        assert!(new.is_err(), "no address");
    }

    #[test]
    fn each_disk_is_copied_linked_or_made_anew() {
        let c = config(VM);
        let kinds = |parts: Vec<Part>| -> Vec<String> {
            let kind = |p| match p {
                Part::Copy { disk, .. } => format!("copy {}", disk.key),
                Part::Link { disk, .. } => format!("link {}", disk.key),
                Part::Drive { disk, storage } => format!("drive {} {storage}", disk.key),
            };
            parts.into_iter().map(kind).collect()
        };
        let full = kinds(parts(&c.current, false).unwrap());
        assert_eq!(full, ["drive ide3 aa", "copy scsi0", "copy efidisk0"]);
        assert!(parts(&c.current, true).unwrap_err().to_string().contains("scsi0"));
        let bases = VM.replace("vm-100-disk", "base-100-disk");
        let linked = kinds(parts(&config(&bases).current, true).unwrap());
        assert_eq!(linked, ["drive ide3 aa", "link scsi0", "link efidisk0"]);
        let path = config("scsi0: /dev/sdb\n");
        assert!(parts(&path.current, false).is_err());
    }

    #[test]
    fn a_template_has_no_past() {
        let c = config(VM);
        let keys: Vec<String> = bases(&c, None).unwrap().into_iter().map(|(d, _)| d.key).collect();
        assert_eq!(keys, ["scsi0", "efidisk0"]);
        assert_eq!(bases(&c, Some("scsi0")).unwrap().len(), 1);
        assert!(bases(&c, Some("scsi1")).is_err() && bases(&c, Some("ide2")).is_err());
        let with = config(&format!("{VM}\n[one]\nsnaptime: 1\n"));
        assert!(bases(&with, None).unwrap_err().to_string().contains("(one)"));
        let half = config(&format!("{VM}\n[one]\nsnapstate: prepare\n"));
        assert!(source(&half, Some("one")).is_err() && source(&half, Some("two")).is_err());
        let t = config("scsi0: aa:100/base-100-disk-0.raw\nscsi1: aa:100/vm-100-disk-1.raw\ntemplate: 1\n");
        assert!(is_fixed(&t, "scsi0") && !is_fixed(&t, "scsi1") && !is_fixed(&c, "scsi0"));
    }
}
