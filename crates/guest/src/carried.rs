//! Volumes that go along with a guest to a node which has them not: where to, and what its configuration says then.
//!
//! They never keep their names. A node may get the guest in another way while its disks are on their way, as by a recovery; then its
//! configuration names the old ones, and no half of a new one is taken for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use stead_model::vmconfig::devices::{Bus, as_disk};
use stead_model::vmconfig::{Disk, KeyError, Settings, VmConfig};
use stead_model::{StorageId, VolumeId};

/// What each thing of one place is at another: storages, bridges. As clients write it: `1` for the same, `NAME` for all, or
/// pairs `FROM:TO`, separated by commas; what is in no pair stays the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairMap<T> {
    all: Option<T>,
    pairs: BTreeMap<T, T>,
}

/// To which storage of the other node each storage's volumes go.
pub type StorageMap = PairMap<StorageId>;
/// To which bridge of the other node each bridge's devices go.
pub type BridgeMap = PairMap<Bridge>;

impl<T> Default for PairMap<T> {
    fn default() -> Self {
        Self { all: None, pairs: BTreeMap::new() }
    }
}

impl<T: Ord + Clone> PairMap<T> {
    /// What that is there.
    pub fn of(&self, one: &T) -> T {
        self.pairs.get(one).or(self.all.as_ref()).unwrap_or(one).clone()
    }

    /// What is named as a target.
    pub fn targets(&self) -> impl Iterator<Item = &T> {
        self.pairs.values().chain(&self.all)
    }
}

impl<T: FromStr<Err: fmt::Display> + Ord> FromStr for PairMap<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = |text: &str| text.parse::<T>().map_err(|e| e.to_string());
        let mut map = Self::default();
        for part in text.split([',', ';', ' ']).map(str::trim).filter(|p| !p.is_empty() && *p != "1") {
            match part.split_once(':') {
                Some((from, to)) => {
                    if map.pairs.insert(id(from)?, id(to)?).is_some() {
                        return Err(format!("'{from}' is in two pairs"));
                    }
                }
                None if map.all.is_none() => map.all = Some(id(part)?),
                None => return Err("only one can be that of all others".to_owned()),
            }
        }
        Ok(map)
    }
}

/// A bridge's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bridge(String);

impl Bridge {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Bridge {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        match (1..=15).contains(&text.len()) && !text.starts_with(['.', '-']) && text.chars().all(fits) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("'{}' is no name of a bridge", text.escape_debug())),
        }
    }
}

impl fmt::Display for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The sections of a configuration that say what a VM is, will be with its next start, and was.
pub fn sections(config: &VmConfig) -> impl Iterator<Item = &Settings> {
    [&config.current, &config.pending.set].into_iter().chain(config.snapshots.values())
}

/// The same, to be changed.
pub fn sections_mut(config: &mut VmConfig) -> impl Iterator<Item = &mut Settings> {
    [&mut config.current, &mut config.pending.set].into_iter().chain(config.snapshots.values_mut())
}

/// The bridges that a configuration names anywhere.
///
/// # Errors
/// If an option can't be read.
pub fn bridges(config: &VmConfig) -> Result<BTreeSet<Bridge>, KeyError> {
    let mut all = BTreeSet::new();
    for section in sections(config) {
        for net in section.nets()? {
            let Some(bridge) = &net.bridge else { continue };
            all.insert(bridge.parse().or_else(|e: String| KeyError::value(&net.key, e))?);
        }
    }
    Ok(all)
}

/// Has a configuration name other bridges.
///
/// # Errors
/// If an option can't be read.
pub fn rename_bridges(config: &mut VmConfig, to: &BridgeMap) -> Result<(), KeyError> {
    for section in sections_mut(config) {
        for net in section.nets()? {
            let Some(bridge) = &net.bridge else { continue };
            let bridge: Bridge = bridge.parse().or_else(|e: String| KeyError::value(&net.key, e))?;
            let mut props = net.props.clone();
            props.set("bridge", to.of(&bridge).as_str()).or_else(|e| KeyError::value(&net.key, e))?;
            section.set(&net.key, &props.to_string())?;
        }
    }
    Ok(())
}

/// Has a configuration name other volumes, wherever it names one of these.
///
/// # Errors
/// If an option can't be read.
pub fn rename(config: &mut VmConfig, to: &BTreeMap<VolumeId, VolumeId>) -> Result<(), KeyError> {
    let sections = [&mut config.current, &mut config.pending.set].into_iter();
    for section in sections.chain(config.snapshots.values_mut()).chain(config.special.values_mut()) {
        let renamed: Vec<(String, String)> = section
            .iter()
            .filter_map(|(key, value)| Some((key.to_owned(), renamed(key, value, to).transpose()?)))
            .map(|(key, value)| Ok((key, value?)))
            .collect::<Result<_, KeyError>>()?;
        for (key, value) in renamed {
            section.set(&key, &value)?;
        }
    }
    Ok(())
}

/// An option's new value, if it names one of these.
fn renamed(key: &str, value: &str, to: &BTreeMap<VolumeId, VolumeId>) -> Result<Option<String>, KeyError> {
    if as_disk(key).is_none() {
        let volume = Some(value).filter(|_| key == "vmstate").and_then(|v| v.parse().ok());
        return Ok(volume.and_then(|v: VolumeId| to.get(&v)).map(ToString::to_string));
    }
    let disk = Disk::parse(key, value)?;
    match disk.volume().and_then(|v| to.get(v)) {
        Some(new) => disk.with_volume(new, None).map(Some),
        None => Ok(None),
    }
}

/// The option of a disk that a running guest may write, if a volume is one's. State that its devices keep for themselves, as a TPM's,
/// goes along with its memory.
///
/// # Errors
/// If an option can't be read.
pub fn written(settings: &Settings, volume: &VolumeId) -> Result<Option<String>, KeyError> {
    let disks = settings.disks()?.into_iter();
    let is_it = |d: &Disk| {
        let drive = d.bus.has_drives() || d.bus == Bus::Efidisk;
        drive && !d.cdrom && !d.read_only && d.volume().is_some_and(|v| v.is_same(volume))
    };
    Ok(disks.filter(is_it).map(|d| d.key).next())
}

/// Whether a volume is in a drive for CDs, from which the guest alone reads: it is not the guest's own.
pub fn is_cd(settings: &Settings, volume: &VolumeId) -> bool {
    settings
        .iter()
        .filter(|(key, _)| as_disk(key).is_some())
        .any(|(key, value)| Disk::parse(key, value).is_ok_and(|d| d.cdrom && d.volume() == Some(volume)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storages_are_mapped_as_clients_write_it() {
        let map = |text: &str| text.parse::<StorageMap>();
        let of = |text: &str, s: &str| map(text).unwrap().of(&s.parse().unwrap()).to_string();
        for same in ["", "1"] {
            assert_eq!(of(same, "aa"), "aa");
        }
        assert_eq!(of("zz", "aa"), "zz");
        let each = |text: &str| ["aa", "bb", "cc"].map(|s| of(text, s));
        assert_eq!(each("aa:xx,bb:yy"), ["xx", "yy", "cc"]);
        assert_eq!(each("aa:xx,zz"), ["xx", "zz", "zz"]);
        assert!(map("aa:xx,aa:yy").is_err() && map("yy,zz").is_err() && map("aa:").is_err());
        assert_eq!(
            map("aa:xx,zz").unwrap().targets().map(ToString::to_string).collect::<Vec<_>>(),
            ["xx", "zz"]
        );
    }

    #[test]
    fn bridges_are_named_everywhere_and_all_else_stays() {
        let text = "memory: 16\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\nnet1: e1000=BC:24:11:00:00:02\n\n\
            [PENDING]\nnet2: virtio=BC:24:11:00:00:03,bridge=vmbr1\n\n[one]\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nsnaptime: 1\n";
        let mut config = VmConfig::parse(text).unwrap();
        assert_eq!(
            bridges(&config).unwrap().iter().map(Bridge::as_str).collect::<Vec<_>>(),
            ["vmbr0", "vmbr1"]
        );
        rename_bridges(&mut config, &"vmbr0:lan".parse().unwrap()).unwrap();
        let now = config.to_string();
        assert_eq!(now, text.replace("bridge=vmbr0", "bridge=lan"));
        rename_bridges(&mut config, &"all".parse().unwrap()).unwrap();
        assert_eq!(bridges(&config).unwrap().len(), 1);
        for bad in ["", "a/b", "-a", "a:b", "sixteen-letters-"] {
            assert!(bad.parse::<Bridge>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_configuration_names_them_everywhere_and_all_else_stays() {
        let text = "ide2: local:iso/a.iso,media=cdrom\nlock: suspended\nscsi0: local:100/a.qcow2,discard=on,size=1G\n\
            scsi1: shared:100/a.qcow2\nunused0: local:100/b.raw\nvmstate: local:100/s.raw\n\n\
            [PENDING]\nscsi2: local:100/c.raw\n\n[one]\nscsi0: local:100/a.qcow2,size=1G\nsnaptime: 1\n";
        let mut config = VmConfig::parse(text).unwrap();
        let v = |text: &str| text.parse::<VolumeId>().unwrap();
        let to = ["a.qcow2", "b.raw", "c.raw", "s.raw"];
        let to = to.iter().map(|n| (v(&format!("local:100/{n}")), v(&format!("far:100/new-{n}")))).collect();
        rename(&mut config, &to).unwrap();
        let now = config.to_string();
        assert!(!now.contains("local:100/"), "{now}");
        for line in [
            "scsi0: far:100/new-a.qcow2,discard=on,size=1G",
            "scsi1: shared:100/a.qcow2",
            "vmstate: far:100/new-s.raw",
        ] {
            assert!(now.lines().any(|l| l == line), "{now}");
        }
        assert_eq!(now.matches("far:100/new-a.qcow2").count(), 2);
        assert!(
            is_cd(&config.current, &v("local:iso/a.iso")) && !is_cd(&config.current, &v("far:100/new-b.raw"))
        );
    }
}
