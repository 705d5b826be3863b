//! A VM's configuration file.
//!
//! ```text
//! #the description, a line each, percent-encoded
//! key: value                 the current configuration
//!
//! [PENDING]                  what changes with the next start
//! key: value
//! delete: key,!key
//!
//! [special:cloudinit]        kept for a later version
//!
//! [snapshot]                 the configuration at a snapshot
//! key: value
//! ```
//!
//! Parse → print → parse is the identity: unknown options, sections and properties are kept. Printing sorts
//! options by name, as administrators know it; the order within a value stays. What may be *set* is decided by
//! [`keys::accept`], what a running VM takes at once by [`pending`](VmConfig::change).

mod check;
pub mod devices;
mod doc;
pub mod host;
pub mod keys;
mod limits;
mod memory;
mod pending;
pub mod shares;
mod typed;
mod values;

pub use devices::{
    Aio, Bus, Cache, Disk, DiskDetails, DiskSource, EfiVariables, Net, NetModel, OnError, TpmVersion,
};
pub use doc::options_page;
pub use host::{HostPci, Ivshmem, PciSource, Usb, UsbSource};
pub use keys::{KeyError, KeySpec, Kind, Live, Refusal, Support};
pub use limits::{Limits, Rate, Rates};
pub use memory::{Modules, NumaNode, NumaPolicy};
pub use pending::{Change, Changed, PendingItem};
pub use shares::{ShareCache, Virtiofs};
pub use values::{
    Agent, Audio, Bios, Boot, Cpu, CpuShare, OsType, PhysBits, Rng, ScsiHw, Serial, Startup, Vga, Watchdog,
    WatchdogModel, split_words,
};

use crate::text::{FormatError, decode, encode, is_config_id, split_list};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

/// The options of one section: the current ones, those of a snapshot, those pending.
///
/// Values are one line, without blanks at their ends; only the description has lines. So no value can end its
/// line and begin another option.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    description: String,
    values: BTreeMap<String, String>,
}

impl Settings {
    /// The value of `key`, which may be `description`.
    pub fn get(&self, key: &str) -> Option<&str> {
        if key == "description" {
            return (!self.description.is_empty()).then_some(self.description.as_str());
        }
        self.values.get(key).map(String::as_str)
    }

    /// The description: lines without a line break at the end.
    pub fn description(&self) -> Option<&str> {
        self.get("description")
    }

    /// Sets an option as it is, without the rules for users ([`keys::accept`]). An empty description is none.
    ///
    /// # Errors
    /// If the key or the value cannot stand in the file.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), KeyError> {
        if key == "description" {
            value.trim_end_matches('\n').clone_into(&mut self.description);
            return Ok(());
        }
        if !is_key(key) || key == "delete" {
            return KeyError::value(key, "this is no name of an option");
        }
        let value = value.trim();
        if value.is_empty() || value.chars().any(char::is_control) {
            return KeyError::value(key, "value must be one line of text");
        }
        self.values.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    /// Takes an option out; returns its value.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        if key == "description" {
            let old = std::mem::take(&mut self.description);
            return (!old.is_empty()).then_some(old);
        }
        self.values.remove(key)
    }

    /// Every option with its value, the description first, the others by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let description = self.description().map(|d| ("description", d));
        description.into_iter().chain(self.values.iter().map(|(k, v)| (k.as_str(), v.as_str())))
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.description.is_empty() && self.values.is_empty()
    }

    /// The first free number of a family: `first_free("scsi")` is `scsi0` on a new VM.
    pub fn first_free(&self, family: &str) -> Option<String> {
        (0..)
            .map(|i| format!("{family}{i}"))
            .take_while(|key| keys::lookup(key).is_some())
            .find(|key| self.get(key).is_none())
    }

    pub(crate) fn print(&self, out: &mut String) {
        if !self.description.is_empty() {
            for line in self.description.split('\n') {
                // Writing into a String cannot fail.
                let _ = writeln!(out, "#{}", encode(line));
            }
        }
        for (key, value) in &self.values {
            let _ = writeln!(out, "{key}: {value}");
        }
    }

    /// Reads a section's lines; what `delete` lists comes apart.
    pub(crate) fn parse<'a>(
        lines: impl Iterator<Item = (usize, &'a str)>,
    ) -> Result<(Self, Vec<&'a str>), FormatError> {
        let (mut read, mut described, mut delete) = (Self::default(), Vec::new(), Vec::new());
        for (number, line) in lines {
            if let Some(text) = line.strip_prefix('#') {
                described.push(decode(text));
                continue;
            }
            if line.trim().is_empty() {
                continue;
            }
            let Some((key, value)) = line.split_once(':') else {
                return FormatError::at(
                    number,
                    format!("'{}' is not of the form 'key: value'", line.escape_debug()),
                );
            };
            match key.trim() {
                "description" => described.push(decode(value.trim())),
                "delete" => delete.extend(split_list(value)),
                key => read.set(key, value).or_else(|e| FormatError::at(number, e.to_string()))?,
            }
        }
        described.join("\n").trim_end_matches('\n').clone_into(&mut read.description);
        Ok((read, delete))
    }
}

fn is_key(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// What changes with the next start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    /// Options with their new values.
    pub set: Settings,
    /// Options that go away; `true`: with their volumes, by force.
    pub delete: BTreeMap<String, bool>,
}

impl Pending {
    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.delete.is_empty()
    }
}

/// A whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmConfig {
    /// What the VM has, or had at its last start.
    pub current: Settings,
    /// What changes with the next start.
    pub pending: Pending,
    /// Special sections by their names, e.g. `cloudinit`.
    pub special: BTreeMap<String, Settings>,
    /// Snapshots by their names.
    pub snapshots: BTreeMap<String, Settings>,
}

/// Whether a snapshot may be called so: 2 to 40 characters that begin with a letter, none of the words with a
/// meaning of their own.
pub fn is_snapshot_name(name: &str) -> bool {
    let reserved = ["current", "pending"].iter().any(|r| name.eq_ignore_ascii_case(r));
    (2..=40).contains(&name.len()) && is_config_id(name) && !reserved
}

impl FromStr for VmConfig {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let mut config = Self::default();
        let lines: Vec<(usize, &str)> = text
            .split('\n')
            .map(|l| l.strip_suffix('\r').unwrap_or(l))
            .enumerate()
            .map(|(i, l)| (i + 1, l))
            .collect();
        let mut seen: Vec<&str> = Vec::new();
        for part in lines.chunk_by(|_, (_, next)| section_name(next).is_none()) {
            let (number, first) = part[0];
            let name = section_name(first).unwrap_or("");
            if seen.contains(&name) {
                return FormatError::at(number, format!("section [{name}] is there twice"));
            }
            seen.push(name);
            let body = usize::from(section_name(first).is_some());
            let (settings, delete) = Settings::parse(part[body..].iter().copied())?;
            if name.eq_ignore_ascii_case("pending") {
                config.pending = Pending { set: settings, delete: BTreeMap::new() };
                for key in delete {
                    let (key, force) = key.strip_prefix('!').map_or((key, false), |key| (key, true));
                    if !is_key(key) {
                        return FormatError::at(number, format!("delete: '{key}' is no name of an option"));
                    }
                    config.pending.delete.insert(key.to_owned(), force);
                }
                continue;
            }
            if !delete.is_empty() {
                return FormatError::at(number, "'delete' belongs in the section [PENDING]");
            }
            if body == 0 {
                config.current = settings;
            } else if let Some(name) = name.strip_prefix("special:") {
                config.special.insert(name.to_owned(), settings);
            } else if is_config_id(name) {
                config.snapshots.insert(name.to_owned(), settings);
            } else {
                return FormatError::at(number, format!("'{name}' is no name of a section"));
            }
        }
        Ok(config)
    }
}

/// The name in a line `[name]`.
fn section_name(line: &str) -> Option<&str> {
    let name = line.trim_end().strip_prefix('[')?.strip_suffix(']')?;
    (!name.is_empty()).then_some(name)
}

impl fmt::Display for VmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.current.print(&mut out);
        if !self.pending.is_empty() {
            out.push_str("\n[PENDING]\n");
            self.pending.set.print(&mut out);
            if !self.pending.delete.is_empty() {
                let marked: Vec<String> = self
                    .pending
                    .delete
                    .iter()
                    .map(|(k, force)| format!("{}{k}", if *force { "!" } else { "" }))
                    .collect();
                let _ = writeln!(out, "delete: {}", marked.join(","));
            }
        }
        for (name, settings) in &self.special {
            let _ = writeln!(out, "\n[special:{name}]");
            settings.print(&mut out);
        }
        for (name, settings) in &self.snapshots {
            let _ = writeln!(out, "\n[{name}]");
            settings.print(&mut out);
        }
        f.write_str(&out)
    }
}

impl VmConfig {
    /// Reads a file's text.
    ///
    /// # Errors
    /// Names the line that cannot be read.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        text.parse()
    }

    /// What clients send back to say which version they have seen: see [`digest`].
    pub fn digest(&self) -> String {
        digest(&self.to_string())
    }

    /// Every volume named anywhere, also by snapshots and pending changes, each once.
    pub fn all_volumes(&self) -> Vec<crate::VolumeId> {
        let sections = [&self.current, &self.pending.set].into_iter();
        let mut all: Vec<crate::VolumeId> = sections
            .chain(self.snapshots.values())
            .chain(self.special.values())
            .flat_map(Settings::volumes)
            .map(|(_, volume)| volume)
            .collect();
        all.sort();
        all.dedup();
        all
    }
}

/// A text's digest: 40 hexadecimal digits, as clients expect of a SHA-1, from the first 20 bytes of its SHA-256.
pub fn digest(text: &str) -> String {
    let mut out = String::with_capacity(40);
    for byte in Sha256::digest(text.as_bytes()).iter().take(20) {
        // Writing into a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

#[cfg(test)]
mod tests;
