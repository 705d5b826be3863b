//! `storage.cfg`: the cluster's storages. A [`SectionConfig`], so that types and options of other versions stay.

use crate::sectionconfig::{Section, SectionConfig, SectionError};
use crate::text::{FormatError, parse_bool, split_list};
use crate::{IdError, NodeName, StorageId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The known types.
pub const TYPES: &[&str] = &[
    "btrfs",
    "cephfs",
    "cifs",
    "dir",
    "esxi",
    "iscsi",
    "iscsidirect",
    "lvm",
    "lvmthin",
    "nfs",
    "pbs",
    "rbd",
    "zfs",
    "zfspool",
];

/// What a storage can be for.
pub const CONTENTS: &[&str] = &["images", "rootdir", "iso", "vztmpl", "backup", "snippets", "import", "none"];

/// Types whose storages are the same on all nodes.
const SHARED_TYPES: &[&str] = &["cephfs", "cifs", "esxi", "iscsi", "iscsidirect", "nfs", "pbs", "rbd", "zfs"];

/// Every option of the known types, without the two that make the section's head.
const OPTIONS: &[&str] = &[
    "authsupported",
    "base",
    "blocksize",
    "bwlimit",
    "comstar_hg",
    "comstar_tg",
    "content",
    "content-dirs",
    "create-base-path",
    "create-subdirs",
    "data-pool",
    "datastore",
    "disable",
    "domain",
    "encryption-key",
    "export",
    "fingerprint",
    "format",
    "fs-name",
    "fuse",
    "is_mountpoint",
    "iscsiprovider",
    "keyring",
    "krbd",
    "lio_tpg",
    "master-pubkey",
    "max-protected-backups",
    "mkdir",
    "monhost",
    "mountpoint",
    "namespace",
    "nocow",
    "nodes",
    "nowritecache",
    "options",
    "password",
    "path",
    "pool",
    "port",
    "portal",
    "preallocation",
    "prune-backups",
    "saferemove",
    "saferemove-stepsize",
    "saferemove_throughput",
    "server",
    "share",
    "shared",
    "skip-cert-verification",
    "smbversion",
    "snapshot-as-volume-chain",
    "sparse",
    "subdir",
    "tagged_only",
    "target",
    "thinpool",
    "username",
    "vgname",
    "zfs-base-path",
];

/// Options that say, beside its type, where a storage's content lies: they can't be changed once it is there.
pub const FIXED: &[&str] = &[
    "authsupported",
    "base",
    "datastore",
    "export",
    "iscsiprovider",
    "path",
    "portal",
    "share",
    "target",
    "thinpool",
    "vgname",
];

/// A storage that cannot be as it is asked for, or as the file has it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageCfgError {
    /// An id that is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// An option with a wrong value.
    #[error("{key}: {why}")]
    Option {
        /// The option, as the API names the parameter.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The storage is there, or is not.
    #[error("storage ID {0}")]
    Section(#[from] SectionError),
}

fn refuse<T>(key: &str, why: impl Into<String>) -> Result<T, StorageCfgError> {
    Err(StorageCfgError::Option { key: key.to_owned(), why: why.into() })
}

/// One storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Its name.
    pub id: StorageId,
    /// Its type, e.g. `dir`; may be one that this version does not know.
    pub kind: String,
    /// What it is for; without the option, images and containers' file systems.
    pub content: BTreeSet<String>,
    /// The nodes that have it; `None`: all.
    pub nodes: Option<BTreeSet<NodeName>>,
    /// Whether it is switched off.
    pub disable: bool,
    /// Whether it is the same on all its nodes.
    pub shared: bool,
    /// All options, those above too. What is given without a value is `1`.
    pub options: BTreeMap<String, String>,
}

impl Storage {
    /// Reads a section.
    fn read(section: &Section) -> Result<Self, StorageCfgError> {
        let options = section.options();
        let flag = |key: &str, default: bool| match options.get(key) {
            None => Ok(default),
            Some(text) => parse_bool(text)
                .map_or_else(|| refuse(key, format!("'{text}' is not a boolean (1 or 0)")), Ok),
        };
        let content = match options.get("content") {
            Some(text) => split_list(text).filter(|c| *c != "none").map(str::to_owned).collect(),
            None => ["images", "rootdir"].iter().map(|&c| c.to_owned()).collect(),
        };
        let nodes = match options.get("nodes") {
            Some(text) => Some(split_list(text).map(str::parse).collect::<Result<_, _>>()?),
            None => None,
        };
        Ok(Self {
            id: section.id().parse()?,
            kind: section.kind().to_owned(),
            content,
            nodes,
            disable: flag("disable", false)?,
            shared: flag("shared", SHARED_TYPES.contains(&section.kind()))?,
            options,
        })
    }

    /// Whether a node has it and it is switched on.
    pub fn is_enabled_on(&self, node: &NodeName) -> bool {
        !self.disable && self.nodes.as_ref().is_none_or(|nodes| nodes.contains(node))
    }

    /// Whether it is for that.
    pub fn holds(&self, content: &str) -> bool {
        self.content.contains(content)
    }
}

/// Every option that a storage of a known type can have, without the two that make the section's head.
pub fn option_names() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().copied()
}

/// Checks an option that somebody sets; returns what is stored.
///
/// # Errors
/// If there is no such option, or the value is wrong for every type. What is wrong for one type alone is that
/// type's driver's to refuse.
pub fn accept(key: &str, value: &str) -> Result<String, StorageCfgError> {
    if !OPTIONS.contains(&key) {
        return refuse(key, "there is no such option of a storage");
    }
    let value = value.trim();
    if value.is_empty() || value.chars().any(char::is_control) {
        return refuse(key, "value must be one line of text");
    }
    if matches!(key, "content" | "nodes") && split_list(value).next().is_none() {
        return refuse(key, "the list must not be empty");
    }
    match key {
        "disable" | "shared" | "mkdir" | "create-base-path" | "create-subdirs" | "sparse" | "krbd"
        | "fuse" => match parse_bool(value) {
            Some(on) => Ok(if on { "1" } else { "0" }.to_owned()),
            None => refuse(key, format!("'{value}' is not a boolean (1 or 0)")),
        },
        "content" => match split_list(value).find(|c| !CONTENTS.contains(c)) {
            Some(other) => refuse(key, format!("value '{other}' is not one of {}", CONTENTS.join(", "))),
            None => Ok(split_list(value).collect::<Vec<_>>().join(",")),
        },
        "nodes" => {
            for node in split_list(value) {
                node.parse::<NodeName>().or_else(|e| refuse(key, e.to_string()))?;
            }
            Ok(split_list(value).collect::<Vec<_>>().join(","))
        }
        "path" | "export" | "subdir" | "mountpoint"
            if !value.starts_with('/') || value.split('/').any(|part| part == "..") =>
        {
            refuse(key, format!("'{value}' is not an absolute path without '..'"))
        }
        "format" if !["raw", "qcow2", "subvol", "vmdk"].contains(&value) => {
            refuse(key, format!("value '{value}' is not one of raw, qcow2, subvol, vmdk"))
        }
        // Read and kept where a file has them, refused when somebody sets them: nothing acts on them yet.
        "bwlimit" | "max-protected-backups" => refuse(key, "not supported yet"),
        "prune-backups" if value != "keep-all=1" => {
            refuse(key, "not supported yet, except as keep-all=1: nothing is ever removed")
        }
        "snapshot-as-volume-chain" if parse_bool(value) != Some(false) => refuse(key, "not supported yet"),
        "preallocation" if !["off", "metadata", "falloc", "full"].contains(&value) => {
            refuse(key, format!("value '{value}' is not one of off, metadata, falloc, full"))
        }
        _ => Ok(value.to_owned()),
    }
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageCfg {
    sections: SectionConfig,
}

impl StorageCfg {
    /// Reads the file's text; `Display` prints it.
    ///
    /// # Errors
    /// Names the line that cannot be read.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        Ok(Self { sections: text.parse()? })
    }

    /// Every storage that can be read, in order, and why the others cannot: one with a wrong value must not
    /// hide the rest.
    pub fn list(&self) -> (Vec<Storage>, Vec<(String, StorageCfgError)>) {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for section in self.sections.iter() {
            match Storage::read(section) {
                Ok(storage) => good.push(storage),
                Err(e) => bad.push((section.id().to_owned(), e)),
            }
        }
        (good, bad)
    }

    /// One storage.
    ///
    /// # Errors
    /// If it does not exist or a value in the file is wrong.
    pub fn get(&self, id: &StorageId) -> Result<Storage, StorageCfgError> {
        let missing = || SectionError::Missing(id.to_string());
        Storage::read(self.sections.get(id.as_str()).ok_or_else(missing)?)
    }

    /// Adds a storage. `options` are what the user gave, checked here.
    ///
    /// # Errors
    /// If the type or an option is wrong or the name is taken.
    pub fn add<'a>(
        &mut self,
        id: &StorageId,
        kind: &str,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Storage, StorageCfgError> {
        if !TYPES.contains(&kind) {
            return refuse("type", format!("value '{kind}' is not one of {}", TYPES.join(", ")));
        }
        let mut section = Section::new(kind, id.as_str())?;
        for (key, value) in options {
            section.set(key, &accept(key, value)?)?;
        }
        let storage = Storage::read(&section)?;
        self.sections.insert(section)?;
        Ok(storage)
    }

    /// Changes a storage: first `delete`, then `set`, all or nothing.
    ///
    /// # Errors
    /// If it does not exist or an option is wrong.
    pub fn update<'a>(
        &mut self,
        id: &StorageId,
        set: impl IntoIterator<Item = (&'a str, &'a str)>,
        delete: impl IntoIterator<Item = &'a str>,
    ) -> Result<Storage, StorageCfgError> {
        let old = self.sections.get_mut(id.as_str())?;
        let mut new = old.clone();
        for key in delete {
            if !OPTIONS.contains(&key) {
                return refuse(key, "there is no such option of a storage");
            }
            new.remove(key);
        }
        for (key, value) in set {
            new.set(key, &accept(key, value)?)?;
        }
        let storage = Storage::read(&new)?;
        *old = new;
        Ok(storage)
    }

    /// Takes a storage out.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn remove(&mut self, id: &StorageId) -> Result<(), StorageCfgError> {
        self.sections.remove(id.as_str())?;
        Ok(())
    }

    /// Storages whose content would be elsewhere, or nowhere, by another version of the file: each with the first option that says so
    /// (`type`, or one of [`FIXED`]), or with none if it is left out there. Also those that can't be read.
    pub fn displaced(&self, by: &Self) -> Vec<(&str, Option<&'static str>)> {
        let differs = |old: &Section| {
            let Some(new) = by.sections.get(old.id()) else { return Some(None) };
            if old.kind() != new.kind() {
                return Some(Some("type"));
            }
            let (old, new) = (old.options(), new.options());
            FIXED.iter().find(|key| old.get(**key) != new.get(**key)).map(|key| Some(*key))
        };
        self.sections.iter().filter_map(|old| Some((old.id(), differs(old)?))).collect()
    }

    /// See [`crate::vmconfig::digest`].
    pub fn digest(&self) -> String {
        crate::vmconfig::digest(&self.to_string())
    }
}

impl fmt::Display for StorageCfg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sections.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = "\
dir: local
\tpath /srv/local
\tcontent iso,snippets

dir: pool1
\tpath /mnt/pool1
\tshared 1
\tnodes n1,n2

nfs: far
\tserver 192.0.2.9
\texport /x
\tdisable
\tcontent none
\tfuture-option yes
";

    fn id(text: &str) -> StorageId {
        text.parse().unwrap()
    }

    #[test]
    fn storages_are_typed() {
        let cfg = StorageCfg::parse(GOLDEN).unwrap();
        assert_eq!(cfg.to_string(), GOLDEN);
        let (all, bad) = cfg.list();
        assert!(bad.is_empty());
        let [local, pool, far] = all.as_slice() else { panic!("three storages") };
        assert!(local.holds("iso") && !local.holds("images") && !local.shared);
        assert!(pool.holds("images") && pool.shared);
        let node = |name: &str| name.parse::<NodeName>().unwrap();
        assert!(pool.is_enabled_on(&node("n2")) && !pool.is_enabled_on(&node("n3")));
        assert!(local.is_enabled_on(&node("n3")) && !far.is_enabled_on(&node("n1")));
        assert!(far.shared && far.content.is_empty());
    }

    #[test]
    fn where_a_storage_s_content_lies_is_told_from_what_may_change() {
        let cfg = StorageCfg::parse(GOLDEN).unwrap();
        let after = |from: &str, to: &str| {
            let new = StorageCfg::parse(&GOLDEN.replacen(from, to, 1)).unwrap();
            cfg.displaced(&new).into_iter().map(|(id, key)| (id.to_owned(), key)).collect::<Vec<_>>()
        };
        assert_eq!(after("dir: pool1", "btrfs: pool1"), [("pool1".to_owned(), Some("type"))]);
        assert_eq!(after("path /mnt/pool1", "path /mnt/pool2"), [("pool1".to_owned(), Some("path"))]);
        assert_eq!(after("\texport /x\n", ""), [("far".to_owned(), Some("export"))]);
        assert_eq!(after("nfs: far", "nfs: near"), [("far".to_owned(), None)]);
        assert_eq!(after("nodes n1,n2", "nodes n1"), []);
        assert_eq!(after("content none", "content images"), []);
        assert!(FIXED.iter().all(|key| OPTIONS.contains(key)));
    }

    #[test]
    fn a_wrong_storage_does_not_hide_the_others() {
        let cfg = StorageCfg::parse("dir: a1\n\tdisable maybe\n\ndir: b1\n\tpath /x\n\ndir: 9\n").unwrap();
        let (good, bad) = cfg.list();
        assert_eq!(good.len(), 1);
        assert_eq!(bad[0].1.to_string(), "disable: 'maybe' is not a boolean (1 or 0)");
        assert_eq!(bad[1].0, "9");
    }

    #[test]
    fn storages_change_and_wrong_ones_are_refused() {
        let mut cfg = StorageCfg::parse(GOLDEN).unwrap();
        cfg.add(&id("new"), "dir", [("path", "/mnt/new"), ("shared", "yes"), ("content", "images iso")])
            .unwrap();
        cfg.update(&id("pool1"), [("nodes", "n3")], ["shared"]).unwrap();
        assert!(!cfg.get(&id("pool1")).unwrap().shared);
        cfg.remove(&id("far")).unwrap();
        cfg.remove(&id("local")).unwrap();
        let text = "dir: pool1\n\tpath /mnt/pool1\n\tnodes n3\n\ndir: new\n\tpath /mnt/new\n\tshared 1\n\tcontent images,iso\n";
        assert_eq!(cfg.to_string(), text);

        let mut said = |kind: &str, key: &str, value: &str| {
            cfg.add(&id("x1"), kind, [(key, value)]).unwrap_err().to_string()
        };
        assert!(said("floppy", "path", "/x").starts_with("type: value 'floppy' is not one of btrfs, "));
        assert_eq!(said("dir", "path", "a/b"), "path: 'a/b' is not an absolute path without '..'");
        assert_eq!(said("dir", "colour", "blue"), "colour: there is no such option of a storage");
        assert_eq!(said("dir", "path", "/a\n\tshared 1"), "path: value must be one line of text");
        assert!(said("dir", "content", "music").starts_with("content: value 'music' is not one of images, "));
        assert!(said("dir", "nodes", "n1,-x").starts_with("nodes: '-x' is not a valid node name"));
        assert_eq!(said("dir", "nodes", ","), "nodes: the list must not be empty");
        assert_eq!(said("dir", "bwlimit", "default=10"), "bwlimit: not supported yet");
        assert_eq!(said("dir", "max-protected-backups", "5"), "max-protected-backups: not supported yet");
        assert_eq!(
            said("dir", "snapshot-as-volume-chain", "1"),
            "snapshot-as-volume-chain: not supported yet"
        );
        assert!(said("dir", "prune-backups", "keep-last=3").starts_with("prune-backups: not supported yet"));
        assert_eq!(accept("prune-backups", "keep-all=1").unwrap(), "keep-all=1");
        assert_eq!(accept("snapshot-as-volume-chain", "0").unwrap(), "0");
        let twice = cfg.add(&id("new"), "nfs", []).unwrap_err();
        assert_eq!(twice.to_string(), "storage ID 'new' already exists");
        let gone = cfg.update(&id("gone"), [], []).unwrap_err();
        assert_eq!(gone.to_string(), "storage ID 'gone' does not exist");
        assert_eq!(cfg.to_string(), text, "a refused change leaves nothing behind");
    }
}
