//! Volume names of a directory, and where their files lie.
//!
//! A name is checked here as text; that the file cannot lie elsewhere through a symbolic link is the
//! kernel's word (see [`super::beneath`]).

use super::options::{CONTENTS, content_word};
use std::collections::BTreeMap;
use stead_driver::storage::{Content, StorageError, is_plain_name};
use stead_model::Vmid;

/// Which sub-directory holds which content, relative to the storage's directory.
#[derive(Debug, Clone)]
pub struct Layout(BTreeMap<Content, String>);

impl Layout {
    /// The known layout, changed by `content-dirs` (`iso=my/isos,backup=dumps`).
    pub fn parse(overrides: &str) -> Result<Self, StorageError> {
        let mut dirs: BTreeMap<Content, String> = CONTENTS
            .into_iter()
            .map(|c| {
                let dir = match c {
                    Content::Images | Content::Rootdir => "images",
                    Content::Iso => "template/iso",
                    Content::Vztmpl => "template/cache",
                    Content::Backup => "dump",
                    Content::Snippets => "snippets",
                    Content::Import => "import",
                };
                (c, dir.to_owned())
            })
            .collect();
        for pair in overrides.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let bad = || StorageError::Invalid {
                parameter: "content-dirs",
                why: format!("'{pair}' is not of the form content=relative/path"),
            };
            let (word, dir) = pair.split_once('=').ok_or_else(bad)?;
            let content = CONTENTS.into_iter().find(|c| content_word(*c) == word).ok_or_else(bad)?;
            let dir = dir.trim_matches('/');
            if dir.split('/').any(|part| !is_plain_name(part)) {
                return Err(bad());
            }
            dirs.insert(content, dir.to_owned());
        }
        Ok(Self(dirs))
    }

    /// The sub-directory of a content.
    pub fn dir(&self, content: Content) -> &str {
        self.0.get(&content).map_or("images", String::as_str)
    }

    /// Reads a volume's name.
    pub fn volume(&self, name: &str) -> Result<Volume, StorageError> {
        let bad = |why: &str| StorageError::Invalid {
            parameter: "volume",
            why: format!("unable to parse volume name '{}': {why}", name.escape_debug()),
        };
        if let Some((base, own)) = linked(name) {
            // The file is the clone's alone: what it is built on stands in the file.
            let base = self.volume(base)?;
            let own = self.volume(own)?;
            let disks = base.content == Content::Images && own.content == Content::Images;
            if !disks || own.format != "qcow2" || !base.is_base() {
                return Err(bad("a linked clone is BASE/VMID/FILE.qcow2"));
            }
            return Ok(own);
        }
        let Some((first, file)) = name.split_once('/') else {
            return Err(bad("it has no '/'"));
        };
        if !is_plain_name(file) {
            return Err(bad("the file must be one plain name that does not begin with a dot"));
        }
        if first.bytes().all(|b| b.is_ascii_digit()) {
            let vmid: Vmid = first.parse().map_err(|_| bad("it does not begin with a VMID"))?;
            let Some(format) = suffix(file, &["raw", "qcow2"]) else {
                return Err(bad("a disk ends in .raw or .qcow2"));
            };
            let path = format!("{}/{vmid}/{file}", self.dir(Content::Images));
            return Ok(Volume {
                content: Content::Images,
                vmid: Some(vmid),
                path,
                format: format.to_owned(),
            });
        }
        let (content, format) = match first {
            "iso" => (Content::Iso, Content::Iso.suffix_of(file).map(|_| "iso")),
            "vztmpl" => (Content::Vztmpl, Content::Vztmpl.suffix_of(file)),
            "backup" => (Content::Backup, backup_format(file)),
            "snippets" => (Content::Snippets, Some("snippet")),
            "import" => (Content::Import, Content::Import.suffix_of(file)),
            _ => return Err(bad("it names no known content")),
        };
        let format = format.ok_or_else(|| bad("the file's suffix does not fit its content"))?;
        let vmid = if content == Content::Backup { backup_vmid(file) } else { None };
        let path = format!("{}/{file}", self.dir(content));
        Ok(Volume { content, vmid, path, format: format.to_owned() })
    }

    /// A volume's name from a file found in a content's directory; none when it is no volume.
    pub fn name(&self, content: Content, vmid: Option<Vmid>, file: &str) -> Option<String> {
        let name = match (content, vmid) {
            (Content::Images, Some(vmid)) => format!("{vmid}/{file}"),
            (Content::Images | Content::Rootdir, _) => return None,
            (other, _) => format!("{}/{file}", content_word(other)),
        };
        self.volume(&name).ok().map(|_| name)
    }
}

/// A parsed name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What it is.
    pub content: Content,
    /// Whose it is.
    pub vmid: Option<Vmid>,
    /// Its file, relative to the storage's directory.
    pub path: String,
    /// `raw`, `qcow2`, `iso`, ...
    pub format: String,
}

impl Volume {
    /// Whether others may be built on it.
    pub fn is_base(&self) -> bool {
        let file = self.path.rsplit('/').next().unwrap_or_default();
        self.vmid.is_some_and(|vmid| file.starts_with(&format!("base-{vmid}-")))
    }
}

/// The two halves of a linked clone's name: `100/base-100-disk-0.qcow2` and `101/vm-101-disk-0.qcow2`.
fn linked(name: &str) -> Option<(&str, &str)> {
    let (second, _) = name.match_indices('/').nth(1)?;
    let (base, own) = (&name[..second], &name[second + 1..]);
    (own.matches('/').count() == 1).then_some((base, own))
}

/// Below what a file stands whose header names `backing`, if that is one of this storage's base volumes.
pub fn base_of(layout: &Layout, backing: &str) -> Option<String> {
    let name = backing.strip_prefix("../")?;
    layout.volume(name).ok().filter(Volume::is_base).map(|_| name.to_owned())
}

fn suffix<'a>(file: &str, suffixes: &[&'a str]) -> Option<&'a str> {
    suffixes.iter().copied().find(|s| {
        file.strip_suffix(s).and_then(|stem| stem.strip_suffix('.')).is_some_and(|stem| !stem.is_empty())
    })
}

fn backup_format(file: &str) -> Option<&'static str> {
    suffix(file, &["vma.zst", "vma.gz", "vma.lzo", "vma", "tar.zst", "tar.gz", "tar.lzo", "tar"])
}

/// `vzdump-qemu-100-2026_11_21-04_05_06.vma.zst`.
fn backup_vmid(file: &str) -> Option<Vmid> {
    let rest = file.strip_prefix("vzdump-")?;
    rest.split('-').nth(1)?.parse().ok()
}

/// The stem of a disk's name that `alloc` may make: `vm-VMID-anything`.
pub fn is_disk_of(vmid: Vmid, file: &str) -> bool {
    ["vm", "base"].iter().any(|kind| {
        file.strip_prefix(&format!("{kind}-{vmid}-"))
            .is_some_and(|rest| rest.chars().next().is_some_and(|c| c.is_ascii_alphanumeric()))
    }) && file.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_files() {
        let layout = Layout::parse("iso=my/isos").unwrap();
        for (name, path, content) in [
            ("100/vm-100-disk-0.qcow2", "images/100/vm-100-disk-0.qcow2", Content::Images),
            ("iso/a b.iso", "my/isos/a b.iso", Content::Iso),
            ("iso/A.ISO", "my/isos/A.ISO", Content::Iso),
            ("snippets/hook.pl", "snippets/hook.pl", Content::Snippets),
            ("import/x.qcow2", "import/x.qcow2", Content::Import),
            ("vztmpl/d.tar.zst", "template/cache/d.tar.zst", Content::Vztmpl),
        ] {
            let v = layout.volume(name).unwrap();
            assert_eq!((v.path.as_str(), v.content), (path, content));
            let file = name.rsplit_once('/').unwrap().1;
            assert_eq!(layout.name(content, v.vmid, file).as_deref(), Some(name));
        }
        let clone = layout.volume("100/base-100-disk-0.raw/101/vm-101-disk-0.qcow2").unwrap();
        assert_eq!((clone.path.as_str(), clone.is_base()), ("images/101/vm-101-disk-0.qcow2", false));
        assert_eq!(
            base_of(&layout, "../100/base-100-disk-0.raw").as_deref(),
            Some("100/base-100-disk-0.raw")
        );
        assert_eq!(base_of(&layout, "../100/vm-100-disk-0.raw"), None);
        assert_eq!(base_of(&layout, "/etc/passwd"), None);
        let b = layout.volume("backup/vzdump-qemu-100-2026_11_21-04_05_06.vma.zst").unwrap();
        assert_eq!((b.vmid.unwrap().get(), b.format.as_str()), (100, "vma.zst"));
    }

    #[test]
    fn what_is_no_volume() {
        let layout = Layout::parse("").unwrap();
        for name in [
            "",
            "a",
            "/etc/passwd",
            "100/",
            "100/..",
            "100/../x.raw",
            "100/a/b.raw",
            "100/.raw",
            "100/.x.raw",
            "100/x.vmdk",
            "99/vm-99-disk-0.raw",
            "0100/x.raw",
            "iso/x",
            "iso/.iso",
            "iso/a/b.iso",
            "iso/a\n.iso",
            "elsewhere/x.iso",
            "100/vm-100-disk-0.qcow2/101/vm-101-disk-0.qcow2",
            "100/base-100-disk-0.qcow2/101/vm-101-disk-0.raw",
            "100/base-100-disk-0.qcow2/iso/x.iso",
            "100/base-100-disk-0.qcow2/../x.qcow2",
            "snippets/..",
        ] {
            assert!(layout.volume(name).is_err(), "{name}");
        }
    }

    #[test]
    fn disks_carry_their_guest() {
        let vmid = Vmid::new(100).unwrap();
        assert!(is_disk_of(vmid, "vm-100-disk-0.raw") && is_disk_of(vmid, "base-100-disk-0.raw"));
        for wrong in ["vm-101-disk-0.raw", "vm-100-", "vm-100-/x", "vm-100-..", "disk-0.raw", "vm-100- x"] {
            assert!(!is_disk_of(vmid, wrong), "{wrong}");
        }
    }
}
