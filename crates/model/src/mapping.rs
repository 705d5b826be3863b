//! Resource mappings, `mapping/{pci,usb,dir}.cfg`: one name for what each node has of its own, so that a VM can be configured once
//! and run on any of them.
//!
//! ```text
//! gpu
//!     description a card a node
//!     map id=10de:2204,iommugroup=14,node=pve1,path=0000:01:00.0
//!     map id=10de:2204,node=pve2,path=0000:02:00.0
//!     map id=10de:2204,node=pve2,path=0000:03:00.0
//! ```
//!
//! A section begins with a name alone; its options are indented, by a tab when printed. `map` may be there several times: of a PCI
//! mapping also for one node, which then has several of them to give away.

use crate::property::PropertyString;
use crate::text::{FormatError, is_config_id, parse_bool};
use crate::{NodeName, paths};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// What is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MappingKind {
    /// PCI devices.
    Pci,
    /// USB devices.
    Usb,
    /// Directories.
    Dir,
}

/// What is wrong with a mapping that somebody sets, and with which of its options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct MappingError {
    /// The option, as the API names the parameter.
    pub key: &'static str,
    /// What is wrong.
    pub why: String,
}

fn wrong<T>(key: &'static str, why: impl Into<String>) -> Result<T, MappingError> {
    Err(MappingError { key, why: why.into() })
}

impl MappingKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pci, Self::Usb, Self::Dir];

    /// Its word in paths: `pci`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::Usb => "usb",
            Self::Dir => "dir",
        }
    }

    /// Where the file lies.
    pub fn file(self) -> &'static str {
        match self {
            Self::Pci => paths::MAPPING_PCI,
            Self::Usb => paths::MAPPING_USB,
            Self::Dir => paths::MAPPING_DIR,
        }
    }

    /// The path that permissions are given on.
    pub fn acl(self, id: &str) -> String {
        format!("/mapping/{}/{id}", self.as_str())
    }

    /// The properties of an entry: those that must be there, and all in the order in which they are printed.
    fn properties(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Pci => (
                &["id", "node", "path"],
                &["description", "id", "iommugroup", "node", "path", "subsystem-id"],
            ),
            Self::Usb => (&["id", "node"], &["description", "id", "node", "path"]),
            Self::Dir => (&["node", "path"], &["node", "path"]),
        }
    }
}

impl fmt::Display for MappingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one node has behind a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingEntry {
    /// The node.
    pub node: NodeName,
    /// Where it is: of PCI `0000:01:00.0` or, of all functions, `0000:01:00`, several with `;`; of USB `1-2.3`, or none for wherever it is
    /// plugged in; of a directory its path.
    pub path: Option<String>,
    /// Vendor and product: `10de:2204`. Of devices alone.
    pub id: Option<String>,
    /// Vendor and product of its subsystem.
    pub subsystem_id: Option<String>,
    /// The group of devices that the host can't keep apart.
    pub iommugroup: Option<i64>,
    /// For people.
    pub description: Option<String>,
}

/// `10de:2204`: two numbers of four hexadecimal digits.
pub fn is_device_id(text: &str) -> bool {
    let part = |p: &str| p.len() == 4 && p.bytes().all(|b| b.is_ascii_hexdigit());
    text.split_once(':').is_some_and(|(vendor, product)| part(vendor) && part(product))
}

/// `1-2.3`: a bus, and the ports on the way.
pub fn is_usb_path(text: &str) -> bool {
    let number = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    text.split_once('-').is_some_and(|(bus, ports)| number(bus) && ports.split('.').all(number))
}

/// `0000:01:00.0`, or `0000:01:00` for all functions.
pub fn is_pci_path(text: &str) -> bool {
    let hex = |n: &str| !n.is_empty() && n.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let (slot, function) = text.split_once('.').map_or((text, None), |(slot, f)| (slot, Some(f)));
    let parts: Vec<&str> = slot.split(':').collect();
    let sized = parts.len() == 3 && parts[0].len() >= 4 && parts[1].len() == 2 && parts[2].len() == 2;
    sized && parts.iter().all(|p| hex(p)) && function.is_none_or(|f| f.len() == 1 && hex(f))
}

impl MappingEntry {
    /// Reads a `map`.
    ///
    /// # Errors
    /// If it is no entry of such a mapping.
    pub fn parse(kind: MappingKind, text: &str) -> Result<Self, MappingError> {
        let props: PropertyString = text.parse().or_else(|e| wrong("map", format!("{e}")))?;
        let (needed, all) = kind.properties();
        for (name, value) in props.iter() {
            match name {
                Some(name) if all.contains(&name) => {}
                Some(name) => return wrong("map", format!("there is no property '{name}'")),
                None => return wrong("map", format!("'{value}' has no name")),
            }
        }
        if let Some(missing) = needed.iter().find(|name| props.get(name).is_none()) {
            return wrong("map", format!("'{missing}' is missing in '{text}'"));
        }
        let get = |name: &str| props.get(name).map(str::to_owned);
        let node = props.get("node").unwrap_or_default();
        let node = node.parse().or_else(|e| wrong("map", format!("node: {e}")))?;
        for name in ["id", "subsystem-id"] {
            if props.get(name).is_some_and(|id| !is_device_id(id)) {
                return wrong(
                    "map",
                    format!("{name}: '{}' is not of the form 10de:2204", props.get(name).unwrap_or_default()),
                );
            }
        }
        let iommugroup = props
            .get("iommugroup")
            .map(|n| n.parse().or_else(|_| wrong("map", "iommugroup: it must be a number")));
        if let Some(path) = props.get("path") {
            let fits = match kind {
                MappingKind::Pci => path.split(';').all(is_pci_path),
                MappingKind::Usb => is_usb_path(path),
                MappingKind::Dir => path.starts_with('/') && !path.split('/').any(|part| part == ".."),
            };
            let form = match kind {
                MappingKind::Pci => "0000:01:00.0 or 0000:01:00",
                MappingKind::Usb => "1-2.3",
                MappingKind::Dir => "an absolute path without '..'",
            };
            if !fits {
                return wrong("map", format!("path: '{path}' is not of the form {form}"));
            }
        }
        Ok(Self {
            node,
            path: get("path"),
            id: get("id").map(|id| id.to_ascii_lowercase()),
            subsystem_id: get("subsystem-id").map(|id| id.to_ascii_lowercase()),
            iommugroup: iommugroup.transpose()?,
            description: get("description"),
        })
    }
}

impl fmt::Display for MappingEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = self.iommugroup.map(|n| n.to_string());
        let node = Some(self.node.to_string());
        let all = [
            ("description", &self.description),
            ("id", &self.id),
            ("iommugroup", &group),
            ("node", &node),
            ("path", &self.path),
            ("subsystem-id", &self.subsystem_id),
        ];
        let words: Vec<String> =
            all.iter().filter_map(|(k, v)| Some(format!("{k}={}", v.as_ref()?))).collect();
        f.write_str(&words.join(","))
    }
}

/// One mapping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    /// For people.
    pub description: Option<String>,
    /// Of PCI: what is given away are mediated devices that the device makes.
    pub mdev: bool,
    /// Of PCI: a running VM can move with it.
    pub live_migration: bool,
    /// What the nodes have.
    pub entries: Vec<MappingEntry>,
    /// Options of another version.
    others: Vec<(String, String)>,
}

impl Mapping {
    /// What a node has.
    pub fn at<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = &'a MappingEntry> {
        self.entries.iter().filter(move |e| e.node == *node)
    }

    /// Checks what no entry can tell alone.
    ///
    /// # Errors
    /// Names the option at fault.
    pub fn check(&self, kind: MappingKind) -> Result<(), MappingError> {
        if self.entries.is_empty() {
            return wrong("map", "a mapping is of at least one node");
        }
        let node = |e: &MappingEntry| (kind != MappingKind::Pci).then_some(e.node.clone());
        for (i, entry) in self.entries.iter().enumerate() {
            let twin = self.entries[..i]
                .iter()
                .any(|e| e == entry || node(e).is_some_and(|n| Some(n) == node(entry)));
            if twin {
                return wrong("map", format!("node '{}' is there twice", entry.node));
            }
        }
        Ok(())
    }
}

/// A whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mappings {
    kind: MappingKind,
    /// By name.
    pub all: BTreeMap<String, Mapping>,
}

impl Mappings {
    /// Reads a file.
    ///
    /// # Errors
    /// Names the line that cannot be read.
    pub fn parse(kind: MappingKind, text: &str) -> Result<Self, FormatError> {
        let mut read = Self { kind, all: BTreeMap::new() };
        let mut current: Option<&mut Mapping> = None;
        for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            if !line.starts_with([' ', '\t']) {
                if !is_mapping_id(trimmed) || read.all.contains_key(trimmed) {
                    return FormatError::at(
                        number,
                        format!("'{trimmed}' is no name of a mapping, or there twice"),
                    );
                }
                current = Some(read.all.entry(trimmed.to_owned()).or_default());
                continue;
            }
            let Some(mapping) = current.as_deref_mut() else {
                return FormatError::at(number, "an option stands above the first mapping");
            };
            let (key, value) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
            mapping.take(kind, key, value.trim()).or_else(|e| FormatError::at(number, e.to_string()))?;
        }
        Ok(read)
    }
}

impl Mapping {
    fn take(&mut self, kind: MappingKind, key: &str, value: &str) -> Result<(), MappingError> {
        let is_on = || value.is_empty() || parse_bool(value) == Some(true);
        match key {
            "description" => self.description = Some(value.to_owned()),
            "map" => self.entries.push(MappingEntry::parse(kind, value)?),
            "mdev" => self.mdev = is_on(),
            "live-migration-capable" => self.live_migration = is_on(),
            _ => self.others.push((key.to_owned(), value.to_owned())),
        }
        Ok(())
    }
}

/// Whether a mapping may be called so.
pub fn is_mapping_id(text: &str) -> bool {
    (2..=128).contains(&text.len()) && is_config_id(text)
}

impl fmt::Display for Mappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (id, mapping)) in self.all.iter().enumerate() {
            let mut text = format!("{}{id}\n", if i > 0 { "\n" } else { "" });
            let mut option = |key: &str, value: &str| {
                // Writing into a String cannot fail.
                let _ = writeln!(text, "\t{key} {value}");
            };
            mapping.description.iter().for_each(|d| option("description", d));
            if mapping.live_migration {
                option("live-migration-capable", "1");
            }
            mapping.entries.iter().for_each(|e| option("map", &e.to_string()));
            if mapping.mdev {
                option("mdev", "1");
            }
            mapping.others.iter().for_each(|(key, value)| option(key, value));
            f.write_str(&text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "gpu\n\tdescription one a node\n\tlive-migration-capable 1\n\
        \tmap id=10de:2204,iommugroup=14,node=n1,path=0000:01:00.0,subsystem-id=1458:403b\n\
        \tmap id=10de:2204,node=n2,path=0000:02:00;0000:03:00.1\n\tmdev 1\n\tlater yes\n\n\
        nic\n\tmap id=8086:1572,node=n1,path=0000:05:00.0\n";

    #[test]
    fn a_file_prints_as_it_was_read() {
        let read = Mappings::parse(MappingKind::Pci, TEXT).unwrap();
        assert_eq!(read.to_string(), TEXT);
        let gpu = &read.all["gpu"];
        assert!(gpu.mdev && gpu.live_migration && gpu.check(MappingKind::Pci).is_ok());
        let n1 = "n1".parse().unwrap();
        let first: Vec<_> = gpu.at(&n1).map(|e| (e.path.as_deref(), e.iommugroup)).collect();
        assert_eq!(first, [(Some("0000:01:00.0"), Some(14))]);
        let commented = format!("# made by hand\n{TEXT}");
        assert_eq!(Mappings::parse(MappingKind::Pci, &commented).unwrap(), read);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        let why = |kind, text| Mappings::parse(kind, text).unwrap_err().to_string();
        for (text, said) in [
            ("\tmap x", "above the first"),
            ("gpu\n\tmap node=n1,id=1:2,path=0000:01:00.0\n", "10de:2204"),
            ("gpu\ngpu\n", "twice"),
            ("gpu\n\tmap node=n1,id=10de:2204\n", "'path' is missing"),
            ("gpu\n\tmap node=n1,id=10de:2204,path=01:00.0\n", "0000:01:00.0"),
            ("gpu\n\tmap node=n1,id=10de:2204,path=0000:01:00.0,host=1\n", "no property 'host'"),
        ] {
            let e = why(MappingKind::Pci, text);
            assert!(e.contains(said), "{text}: {e}");
        }
        assert!(why(MappingKind::Usb, "key\n\tmap node=n1,id=10de:2204,path=1-\n").contains("1-2.3"));
        assert!(why(MappingKind::Dir, "share\n\tmap node=n1,path=/srv/../etc\n").contains("absolute"));
    }

    #[test]
    fn a_node_has_one_directory_and_several_cards() {
        let of = |kind, text: &str| {
            Mappings::parse(kind, text).unwrap().all["x1"].check(kind).map_err(|e| e.to_string())
        };
        let two = "x1\n\tmap node=n1,path=/srv\n\tmap node=n1,path=/home\n";
        assert_eq!(of(MappingKind::Dir, two).unwrap_err(), "map: node 'n1' is there twice");
        let cards =
            "x1\n\tmap id=10de:2204,node=n1,path=0000:01:00\n\tmap id=10de:2204,node=n1,path=0000:02:00\n";
        assert_eq!(of(MappingKind::Pci, cards), Ok(()));
        assert!(of(MappingKind::Usb, "x1\n").unwrap_err().contains("at least one"));
    }
}
