//! The options of a `dir` section in `storage.cfg`.

use super::names::Layout;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use stead_driver::storage::{Content, StorageError};

/// How much of a new disk is written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    Off,
    /// The format's own tables; nothing for raw.
    Metadata,
    /// All blocks reserved.
    Falloc,
    /// All blocks written with zeros.
    Full,
}

impl Preallocation {
    /// As `qemu-img` and `storage.cfg` spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

/// A disk's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A plain file.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl Format {
    /// As names and options spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// Reads [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "raw" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            _ => None,
        }
    }
}

/// A checked section.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory; absolute.
    pub path: PathBuf,
    /// What it may hold.
    pub content: BTreeSet<Content>,
    /// Whether every node sees the same directory.
    pub shared: bool,
    /// The mount point without which the storage is not there.
    pub mountpoint: Option<PathBuf>,
    /// Whether the directory is made when it is missing.
    pub create_base: bool,
    /// Whether its sub-directories are made when they are missing.
    pub create_subdirs: bool,
    /// For new disks.
    pub preallocation: Preallocation,
    /// Of new disks that name none.
    pub format: Format,
    /// Where each content lies.
    pub layout: Layout,
}

fn invalid<T>(parameter: &'static str, why: impl Into<String>) -> Result<T, StorageError> {
    Err(StorageError::Invalid { parameter, why: why.into() })
}

fn boolean(
    options: &BTreeMap<String, String>,
    key: &'static str,
    default: bool,
) -> Result<bool, StorageError> {
    match options.get(key).map(|v| v.to_ascii_lowercase()) {
        None => Ok(default),
        Some(v) => match v.as_str() {
            "1" | "yes" | "on" | "true" => Ok(true),
            "0" | "no" | "off" | "false" => Ok(false),
            other => invalid(key, format!("'{other}' is not a boolean (0 or 1)")),
        },
    }
}

/// The word that `storage.cfg` uses for a content.
pub fn content_word(content: Content) -> &'static str {
    match content {
        Content::Images => "images",
        Content::Rootdir => "rootdir",
        Content::Iso => "iso",
        Content::Vztmpl => "vztmpl",
        Content::Backup => "backup",
        Content::Snippets => "snippets",
        Content::Import => "import",
    }
}

/// Every content that a directory may hold.
pub const CONTENTS: [Content; 7] = [
    Content::Images,
    Content::Rootdir,
    Content::Iso,
    Content::Vztmpl,
    Content::Backup,
    Content::Snippets,
    Content::Import,
];

fn contents(text: &str) -> Result<BTreeSet<Content>, StorageError> {
    let mut found = BTreeSet::new();
    for word in text.split([',', ';', ' ']).filter(|w| !w.is_empty() && *w != "none") {
        match CONTENTS.into_iter().find(|c| content_word(*c) == word) {
            Some(c) => found.insert(c),
            None => return invalid("content", format!("storage type 'dir' does not know content '{word}'")),
        };
    }
    Ok(found)
}

/// Keys that belong to every storage and are acted on above the driver.
const ABOVE: [&str; 6] =
    ["nodes", "disable", "bwlimit", "prune-backups", "max-protected-backups", "snapshot-as-volume-chain"];

const KNOWN: [&str; 11] = [
    "path",
    "content",
    "shared",
    "is_mountpoint",
    "mkdir",
    "create-base-path",
    "create-subdirs",
    "preallocation",
    "format",
    "content-dirs",
    "maxfiles",
];

fn absolute(parameter: &'static str, text: &str) -> Result<PathBuf, StorageError> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || text.chars().any(char::is_control) {
        return invalid(parameter, format!("'{text}' is not an absolute path"));
    }
    Ok(path)
}

impl Options {
    /// Checks the keys and values of a section.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self, StorageError> {
        if let Some(key) =
            options.keys().find(|k| !KNOWN.contains(&k.as_str()) && !ABOVE.contains(&k.as_str()))
        {
            return invalid("options", format!("storage type 'dir' has no option '{key}'"));
        }
        let Some(path) = options.get("path") else {
            return invalid("path", "property is missing and it is not optional");
        };
        let path = absolute("path", path)?;
        let mountpoint = match options.get("is_mountpoint").map(String::as_str) {
            None | Some("0" | "no" | "off" | "false") => None,
            Some("1" | "yes" | "on" | "true") => Some(path.clone()),
            Some(other) => Some(absolute("is_mountpoint", other)?),
        };
        let mkdir = boolean(options, "mkdir", true)?;
        let preallocation = match options.get("preallocation").map(String::as_str) {
            Some("off") => Preallocation::Off,
            None | Some("metadata") => Preallocation::Metadata,
            Some("falloc") => Preallocation::Falloc,
            Some("full") => Preallocation::Full,
            Some(other) => {
                return invalid("preallocation", format!("'{other}' is not a way of preallocation"));
            }
        };
        let format = match options.get("format") {
            None => Format::Raw,
            Some(text) => match Format::parse(text) {
                Some(format) => format,
                None => {
                    return invalid("format", format!("'{text}' is not supported: use raw or qcow2"));
                }
            },
        };
        Ok(Self {
            path,
            content: contents(options.get("content").map_or("images,rootdir", String::as_str))?,
            shared: boolean(options, "shared", false)?,
            mountpoint,
            create_base: boolean(options, "create-base-path", mkdir)?,
            create_subdirs: boolean(options, "create-subdirs", mkdir)?,
            preallocation,
            format,
            layout: Layout::parse(options.get("content-dirs").map_or("", String::as_str))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Options, StorageError> {
        Options::parse(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_section_as_administrators_write_it() {
        let o = parse(&[("path", "/srv/vm"), ("content", "images,iso"), ("shared", "1")]).unwrap();
        assert!(o.shared && o.create_base && o.mountpoint.is_none());
        assert_eq!(o.content.len(), 2);
        assert_eq!(o.format, Format::Raw);
        assert_eq!(o.preallocation, Preallocation::Metadata);
        let o = parse(&[("path", "/srv/vm"), ("is_mountpoint", "yes"), ("mkdir", "0")]).unwrap();
        assert_eq!(o.mountpoint, Some("/srv/vm".into()));
        assert!(!o.create_base && !o.create_subdirs);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (pairs, word) in [
            (vec![], "path"),
            (vec![("path", "srv")], "absolute"),
            (vec![("path", "/srv"), ("content", "images,holes")], "holes"),
            (vec![("path", "/srv"), ("server", "x")], "server"),
            (vec![("path", "/srv"), ("format", "vmdk")], "vmdk"),
            (vec![("path", "/srv"), ("shared", "maybe")], "maybe"),
            (vec![("path", "/srv"), ("content-dirs", "iso=../x")], "content-dirs"),
        ] {
            let text = parse(&pairs).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
    }
}
