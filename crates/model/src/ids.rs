//! Identifiers. Each parses from and prints to the text that Proxmox VE's API and files use.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A text that is not the identifier it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a valid {what}: {why}")]
pub struct IdError {
    /// What was expected, as a user would name it.
    pub what: &'static str,
    /// What was given.
    pub text: String,
    /// The rule that it breaks.
    pub why: &'static str,
}

fn bad<T>(what: &'static str, text: &str, why: &'static str) -> Result<T, IdError> {
    Err(IdError { what, text: text.to_owned(), why })
}

/// Serde, `FromStr` for `&str` construction and `Display` for a newtype over `String` with a check.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps `text`.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(why) => bad($what, &text, why),
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl From<$name> for String {
            fn from(v: $name) -> String {
                v.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

fn is_dns_label(s: &str) -> Result<(), &'static str> {
    let b = s.as_bytes();
    let edge = |c: u8| c.is_ascii_alphanumeric();
    if b.is_empty() || b.len() > 63 {
        return Err("it must have 1 to 63 characters");
    }
    if !edge(b[0]) || !edge(b[b.len() - 1]) {
        return Err("it must begin and end with a letter or digit");
    }
    if !b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-') {
        return Err("only letters, digits and '-' are allowed");
    }
    Ok(())
}

fn is_pve_id(s: &str) -> Result<(), &'static str> {
    let b = s.as_bytes();
    if b.len() < 2 || b.len() > 128 {
        return Err("it must have 2 to 128 characters");
    }
    if !b[0].is_ascii_alphabetic() {
        return Err("it must begin with a letter");
    }
    if !b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.')) {
        return Err("only letters, digits, '-', '_' and '.' are allowed");
    }
    if !b[b.len() - 1].is_ascii_alphanumeric() {
        return Err("it must end with a letter or digit");
    }
    Ok(())
}

fn is_hex_uuid(s: &str) -> Result<(), &'static str> {
    if uuid::Uuid::parse_str(s).is_ok_and(|u| u.hyphenated().to_string() == s) {
        Ok(())
    } else {
        Err("it must be a UUID in lower case with hyphens")
    }
}

text_id!(
    /// A node's name: one DNS label, its short host name.
    NodeName, "node name", is_dns_label
);
text_id!(
    /// A node's identity, made when it first starts; a node that left and came back has another.
    NodeUuid, "node UUID", is_hex_uuid
);
text_id!(
    /// One boot of a node's daemon-independent state: the kernel's boot id, or a random UUID written to the
    /// run directory on systems whose `/proc` is shared by several nodes (demo, tests).
    BootId, "boot id", is_hex_uuid
);
text_id!(
    /// A storage's name in `storage.cfg`.
    StorageId, "storage ID", is_pve_id
);
text_id!(
    /// A fence device's name in `ha/fence.cfg`.
    DeviceId, "name of a fence device", |s| match crate::text::is_config_id(s) && s.len() <= 64 {
        true => Ok(()),
        false => Err("it must have 1 to 64 letters, digits, '-' and '_', and begin with a letter"),
    }
);
text_id!(
    /// The name of a site or a rack.
    DomainName, "name of a site or rack", |s| {
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match s.len() <= 64 && s.starts_with(|c: char| c.is_ascii_alphanumeric()) && s.chars().all(named) {
            true => Ok(()),
            false => Err("it must have 1 to 64 letters, digits, '-', '_' and '.', and begin with a letter or digit"),
        }
    }
);
text_id!(
    /// `user@realm`.
    UserId, "user ID", |s| {
        let Some((user, realm)) = s.rsplit_once('@') else { return Err("it must be of the form user@realm") };
        if user.is_empty() || user.len() > 60 {
            return Err("the user must have 1 to 60 characters");
        }
        if user.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/' | '!')) {
            return Err("the user must have no blanks, ':', '/' or '!'");
        }
        is_pve_id(realm)
    }
);

impl UserId {
    /// The built-in administrator.
    pub const ROOT: &'static str = "root@pam";

    /// Whether this is the built-in administrator, who may do everything.
    pub fn is_root(&self) -> bool {
        self.as_str() == Self::ROOT
    }

    /// The part behind the last `@`.
    pub fn realm(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(_, r)| r)
    }

    /// The part before the last `@`.
    pub fn user(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(u, _)| u)
    }
}

/// An API token: `user@realm!name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId {
    /// Whose token it is.
    pub user: UserId,
    /// The token's name among those of its user.
    pub name: String,
}

impl FromStr for TokenId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let Some((user, name)) = s.split_once('!') else {
            return bad("token ID", s, "it must be of the form user@realm!name");
        };
        if let Err(why) = is_pve_id(name) {
            return bad("token ID", s, why);
        }
        Ok(Self { user: user.parse()?, name: name.to_owned() })
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}!{}", self.user, self.name)
    }
}

/// A guest's number, unique in the cluster: 100 to 999999999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vmid(u32);

impl Vmid {
    /// The smallest VMID.
    pub const MIN: u32 = 100;
    /// The largest VMID.
    pub const MAX: u32 = 999_999_999;

    /// Checks and wraps a number.
    pub fn new(n: u32) -> Result<Self, IdError> {
        if (Self::MIN..=Self::MAX).contains(&n) {
            Ok(Self(n))
        } else {
            bad("VMID", &n.to_string(), "it must lie in 100 to 999999999")
        }
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vmid {
    type Error = IdError;
    fn try_from(n: u32) -> Result<Self, IdError> {
        Self::new(n)
    }
}

impl From<Vmid> for u32 {
    fn from(v: Vmid) -> u32 {
        v.0
    }
}

impl FromStr for Vmid {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        match s.parse::<u32>() {
            Ok(n) if !s.starts_with(['+', '0']) => Self::new(n),
            _ => bad("VMID", s, "it must be a number"),
        }
    }
}

impl fmt::Display for Vmid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What kind of guest a VMID names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestKind {
    /// A virtual machine.
    Qemu,
    /// A system container.
    Lxc,
}

impl GuestKind {
    /// `qemu` or `lxc`, as the API's paths name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Lxc => "lxc",
        }
    }
}

/// An HA resource: `vm:100` or `ct:101`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// The kind of guest.
    pub kind: GuestKind,
    /// The guest.
    pub vmid: Vmid,
}

impl FromStr for ServiceId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let (kind, id) = match s.split_once(':') {
            Some(("vm", id)) => (GuestKind::Qemu, id),
            Some(("ct", id)) => (GuestKind::Lxc, id),
            Some(_) => return bad("HA resource ID", s, "the type must be 'vm' or 'ct'"),
            // The API takes a bare VMID as a VM's.
            None => (GuestKind::Qemu, s),
        };
        Ok(Self { kind, vmid: id.parse()? })
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            GuestKind::Qemu => "vm",
            GuestKind::Lxc => "ct",
        };
        write!(f, "{kind}:{}", self.vmid)
    }
}

impl Serialize for ServiceId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The number of an ownership: grows by one each time a guest's owner changes (see [`crate::Ownership`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The one that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A voter's or learner's number in Raft; never used again once its node is gone. Zero is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RaftId(pub u64);

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A volume: `storage:name`. The name is the storage driver's, e.g. `100/vm-100-disk-0.qcow2` or `iso/a.iso`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId {
    /// The storage it lies on.
    pub storage: StorageId,
    /// Its name there; never empty, never absolute, with no `.` or `..` component.
    pub name: String,
}

impl VolumeId {
    /// Its own part of the name: of a linked clone (`100/base-100-disk-0.raw/101/vm-101-disk-0.qcow2`) what is not its
    /// base's.
    pub fn own_name(&self) -> &str {
        match self.name.rmatch_indices('/').nth(1) {
            Some((at, _)) => &self.name[at + 1..],
            None => &self.name,
        }
    }

    /// The base volume that a linked clone is built on, as its name says.
    pub fn base(&self) -> Option<Self> {
        let (at, _) = self.name.rmatch_indices('/').nth(1)?;
        Some(Self { storage: self.storage.clone(), name: self.name[..at].to_owned() })
    }

    /// Whether it is a base volume, which nobody writes.
    pub fn is_base(&self) -> bool {
        self.name.rsplit('/').next().is_some_and(|file| file.starts_with("base-"))
    }

    /// Whether both name the same volume: a linked clone may be named with or without its base.
    pub fn is_same(&self, other: &Self) -> bool {
        self.storage == other.storage && self.own_name() == other.own_name()
    }
}

impl FromStr for VolumeId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let Some((storage, name)) = s.split_once(':') else {
            return bad("volume ID", s, "it must be of the form storage:name");
        };
        if name.is_empty() || name.len() > 1024 {
            return bad("volume ID", s, "the name must have 1 to 1024 characters");
        }
        if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return bad(
                "volume ID",
                s,
                "the name must be relative and must not contain '.', '..' or empty parts",
            );
        }
        if name.chars().any(char::is_control) {
            return bad("volume ID", s, "the name must not contain control characters");
        }
        Ok(Self { storage: storage.parse()?, name: name.to_owned() })
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.storage, self.name)
    }
}

impl TryFrom<String> for VolumeId {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}

impl From<VolumeId> for String {
    fn from(v: VolumeId) -> String {
        v.to_string()
    }
}

/// A task's id: `UPID:node:pid:pstart:starttime:type:id:user:`, numbers in hexadecimal.
///
/// Stead's tasks are no processes: `pid` is the daemon's, `pstart` a counter that makes the id unique.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upid {
    /// The node that carries the task out.
    pub node: NodeName,
    /// The daemon's process id.
    pub pid: u32,
    /// Makes tasks of one second and type distinct.
    pub pstart: u64,
    /// Start, seconds since 1970.
    pub starttime: u32,
    /// The worker type, e.g. `qmstart`.
    pub worker: String,
    /// What it works on, e.g. the VMID; may be empty.
    pub id: String,
    /// `user@realm` or `user@realm!token`.
    pub user: String,
}

impl FromStr for Upid {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        const SHAPE: &str = "it must be of the form UPID:node:pid:pstart:starttime:type:id:user:";
        let f: Vec<&str> = s.split(':').collect();
        let [tag, node, pid, pstart, start, worker, id, user, end] = f.as_slice() else {
            return bad("UPID", s, SHAPE);
        };
        let hex = |t: &str| if t.len() >= 8 { u64::from_str_radix(t, 16).ok() } else { None };
        let plain = |t: &str, more: &str| t.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
        let (Some(pid), Some(pstart), Some(start)) = (hex(pid), hex(pstart), hex(start)) else {
            return bad("UPID", s, SHAPE);
        };
        let (Ok(pid), Ok(starttime)) = (u32::try_from(pid), u32::try_from(start)) else {
            return bad("UPID", s, SHAPE);
        };
        let ok = *tag == "UPID" && end.is_empty() && !worker.is_empty() && !user.is_empty();
        if !ok || !plain(worker, "_-") || !plain(id, "_-.@!%") || user.contains(['/', ' ']) {
            return bad("UPID", s, SHAPE);
        }
        Ok(Self {
            node: node.parse()?,
            pid,
            pstart,
            starttime,
            worker: (*worker).to_owned(),
            id: (*id).to_owned(),
            user: (*user).to_owned(),
        })
    }
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, pid, pstart, starttime, worker, id, user } = self;
        write!(f, "UPID:{node}:{pid:08X}:{pstart:08X}:{starttime:08X}:{worker}:{id}:{user}:")
    }
}

impl TryFrom<String> for Upid {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}

impl From<Upid> for String {
    fn from(v: Upid) -> String {
        v.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_upid_reads_as_it_prints() {
        let text = "UPID:n1:00001F3A:0000000B:6740A1B2:qmstart:100:root@pam!ci:";
        let upid: Upid = text.parse().unwrap();
        assert_eq!(upid.worker, "qmstart");
        assert_eq!(upid.to_string(), text);
        for wrong in ["", "UPID:n1:1:2:3:a:b:c:", "UPID:n1:00001F3A:0000000B:6740A1B2:qmstart:../x:root@pam:"]
        {
            assert!(wrong.parse::<Upid>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn volumes_cannot_climb_out_of_their_storage() {
        for wrong in
            ["local", "local:", "local:../x", "local:a/../b", "local:/etc/passwd", "local:a//b", "1:x"]
        {
            assert!(wrong.parse::<VolumeId>().is_err(), "{wrong}");
        }
        assert_eq!("local:iso/a b.iso".parse::<VolumeId>().unwrap().name, "iso/a b.iso");
    }

    #[test]
    fn a_linked_clone_is_the_same_by_both_of_its_names() {
        let volume = |text: &str| text.parse::<VolumeId>().unwrap();
        let (long, short) = (
            volume("aa:100/base-100-disk-0.raw/101/vm-101-disk-0.qcow2"),
            volume("aa:101/vm-101-disk-0.qcow2"),
        );
        assert!(long.is_same(&short) && !long.is_same(&volume("bb:101/vm-101-disk-0.qcow2")));
        let base = long.base().unwrap();
        assert_eq!(base, volume("aa:100/base-100-disk-0.raw"));
        assert!(base.is_base() && !long.is_base() && !short.is_base());
        assert_eq!((short.base(), volume("aa:iso/x.iso").own_name()), (None, "iso/x.iso"));
    }

    #[test]
    fn ids_say_what_is_wrong_with_them() {
        assert_eq!(
            "99".parse::<Vmid>().unwrap_err().to_string(),
            "'99' is not a valid VMID: it must lie in 100 to 999999999"
        );
        assert!("0100".parse::<Vmid>().is_err());
        assert!("-n1".parse::<NodeName>().is_err());
        assert_eq!("root@pam!ci".parse::<TokenId>().unwrap().user.realm(), "pam");
        assert_eq!("ct:101".parse::<ServiceId>().unwrap().to_string(), "ct:101");
        assert_eq!("101".parse::<ServiceId>().unwrap().to_string(), "vm:101");
    }
}
