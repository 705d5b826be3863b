//! Directories of the host that a guest mounts, `virtiofs0` to `virtiofs9`.
//!
//! Which directory it is a mapping says, for each node its own. The mapping's name is what the guest mounts:
//! `mount -t virtiofs NAME /mnt`.

use super::check::Rules;
use super::devices::{flag, spelled, spelled_prop};
use super::keys::{KeyError, split_index};
use super::{Settings, keys};
use crate::mapping::is_mapping_id;
use crate::property::PropertyString;
use std::fmt;
use std::path::PathBuf;

spelled!(
    /// How long a guest may rely on what it knows of a shared directory.
    ShareCache {
        /// For a second, and of a file's content until it is opened again.
        Auto = "auto",
        /// For as long as it likes: nobody else changes anything there.
        Always = "always",
        /// As `always` of names and attributes, as `never` of content.
        Metadata = "metadata",
        /// Not at all.
        Never = "never",
    }
);

/// The longest name that a guest can be told, in bytes.
const MAX_TAG: usize = 36;

/// A directory of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Virtiofs {
    /// The option.
    pub key: String,
    /// Its number.
    pub index: u32,
    /// The mapping, and the name under which the guest mounts it.
    pub dirid: String,
    /// Where it is on this host, in a configuration that is spelled out.
    pub path: Option<PathBuf>,
    /// What the guest keeps of it.
    pub cache: ShareCache,
    /// Whether a file that the guest opens past its cache is opened past the host's, too.
    pub direct_io: bool,
    /// Whether the guest sees extended attributes.
    pub xattr: bool,
    /// Whether it sees access control lists, which are extended attributes.
    pub acl: bool,
}

impl Virtiofs {
    /// Reads an option.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        let Some(dirid) = props.get_default("dirid") else {
            return KeyError::value(key, "it names no directory: give 'dirid'");
        };
        if !is_mapping_id(dirid) {
            return KeyError::value(key, format_args!("dirid: '{dirid}' is no name of a mapping"));
        }
        if dirid.len() > MAX_TAG {
            return KeyError::value(
                key,
                format_args!(
                    "dirid: '{dirid}' is what the guest mounts, which has at most {MAX_TAG} characters"
                ),
            );
        }
        let cache = spelled_prop(key, &props, "cache", ShareCache::from_text, ShareCache::ALL)?;
        let acl = flag(key, &props, "expose-acl", false)?;
        Ok(Self {
            key: key.to_owned(),
            index: split_index(key).map_or(0, |(_, n)| n),
            dirid: dirid.to_owned(),
            path: props.get("path").map(PathBuf::from),
            cache: cache.unwrap_or(ShareCache::Auto),
            direct_io: flag(key, &props, "direct-io", false)?,
            xattr: flag(key, &props, "expose-xattr", false)? || acl,
            acl,
        })
    }
}

/// Whether the option is a shared directory's, and which.
pub fn as_virtiofs(key: &str) -> Option<u32> {
    split_index(key).filter(|(name, _)| *name == "virtiofs" && keys::lookup(key).is_some()).map(|(_, n)| n)
}

pub(super) fn virtiofs(key: &str, value: &str) -> Result<(), KeyError> {
    let works = &["cache", "direct-io", "expose-acl", "expose-xattr"];
    Rules { default: "dirid", works, later: &[] }.check(key, value)?;
    Virtiofs::parse(key, value).map(drop)
}

impl Settings {
    /// Shared directories by number.
    ///
    /// # Errors
    /// If one cannot be read, or two have one name, of which the guest would see the first alone.
    pub fn virtiofs(&self) -> Result<Vec<Virtiofs>, KeyError> {
        let mut all: Vec<Virtiofs> = vec![];
        for (key, value) in self.family("virtiofs") {
            let one = Virtiofs::parse(key, value)?;
            if let Some(other) = all.iter().find(|other| other.dirid == one.dirid) {
                let why =
                    format!("dirid: '{}' is {} already: a guest knows it by its name", one.dirid, other.key);
                return KeyError::value(key, why);
            }
            all.push(one);
        }
        Ok(all)
    }

    /// Whether its memory must be one that other programs of the host see: those that carry shared directories.
    pub fn shares_memory(&self) -> bool {
        self.family("virtiofs").next().is_some()
    }

    /// The first option that keeps the memory of a running VM from being moved and kept: what its guest has open behind a shared
    /// directory is known to one process of this host, which can't tell another of it.
    pub fn bound_by(&self) -> Option<&str> {
        self.family("virtiofs").next().map(|(key, _)| key)
    }

    /// The configuration with an option that says where on this host its directory is.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn spell_out_path(&mut self, key: &str, path: &str) -> Result<(), KeyError> {
        let text = self.get(key).unwrap_or_default();
        let mut props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        props.set("path", path).or_else(|e| KeyError::value(key, e))?;
        self.set(key, &props.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmconfig::VmConfig;

    #[test]
    fn a_directory_has_a_name_and_may_be_spelled_out() {
        let plain = Virtiofs::parse("virtiofs3", "share").unwrap();
        assert_eq!((plain.index, plain.dirid.as_str(), plain.path), (3, "share", None));
        assert_eq!(
            (plain.cache, plain.direct_io, plain.xattr, plain.acl),
            (ShareCache::Auto, false, false, false)
        );
        let text = "virtiofs0: cache=never,direct-io=1,dirid=share,expose-acl=1\n";
        let mut settings = VmConfig::parse(text).unwrap().current;
        settings.spell_out_path("virtiofs0", "/srv/a=b").unwrap();
        let one = settings.virtiofs().unwrap().remove(0);
        assert_eq!(one.path, Some("/srv/a=b".into()));
        assert!(
            one.cache == ShareCache::Never && one.direct_io && one.acl && one.xattr,
            "ACLs are attributes"
        );
        assert!(settings.spell_out_path("virtiofs0", "/srv/a,b").is_err());
        assert!(settings.shares_memory() && settings.bound_by() == Some("virtiofs0"));
    }

    #[test]
    fn nobody_sets_a_path_and_no_two_have_one_name() {
        let long = format!("dirid={}", "a".repeat(37));
        for wrong in [
            "path=/etc,dirid=share",
            "cache=auto",
            "dirid=a b",
            "share,cache=none",
            "share,writeback=1",
            &long,
        ] {
            assert!(virtiofs("virtiofs0", wrong).is_err(), "{wrong}");
        }
        assert!(virtiofs("virtiofs0", "dirid=share,cache=metadata,expose-xattr=1").is_ok());
        let twice = VmConfig::parse("virtiofs0: share\nvirtiofs4: dirid=share,cache=never\n").unwrap();
        let e = twice.current.virtiofs().unwrap_err().to_string();
        assert!(e.starts_with("virtiofs4: dirid: 'share' is virtiofs0 already"), "{e}");
        assert_eq!(
            (as_virtiofs("virtiofs9"), as_virtiofs("virtiofs10"), as_virtiofs("virtio1")),
            (Some(9), None, None)
        );
    }
}
