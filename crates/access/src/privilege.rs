//! The privileges, named as administrators know them.

use std::fmt;

macro_rules! privileges {
    ($($name:literal),* $(,)?) => {
        /// Every privilege's name, sorted.
        pub const ALL: &[&str] = &[$($name),*];
    };
}

privileges![
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "Datastore.Audit",
    "Group.Allocate",
    "Mapping.Audit",
    "Mapping.Modify",
    "Mapping.Use",
    "Permissions.Modify",
    "Pool.Allocate",
    "Pool.Audit",
    "Realm.Allocate",
    "Realm.AllocateUser",
    "SDN.Allocate",
    "SDN.Audit",
    "SDN.Use",
    "Sys.AccessNetwork",
    "Sys.Audit",
    "Sys.Console",
    "Sys.Incoming",
    "Sys.Modify",
    "Sys.PowerMgmt",
    "Sys.Syslog",
    "User.Modify",
    "VM.Allocate",
    "VM.Audit",
    "VM.Backup",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.Console",
    "VM.GuestAgent.Audit",
    "VM.GuestAgent.FileRead",
    "VM.GuestAgent.FileSystemMgmt",
    "VM.GuestAgent.FileWrite",
    "VM.GuestAgent.Unrestricted",
    "VM.Migrate",
    "VM.PowerMgmt",
    "VM.Replicate",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
];

const _: () = assert!(ALL.len() <= 64, "a set has 64 bits");

/// One privilege.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Privilege(u8);

impl Privilege {
    /// Finds a privilege by its name.
    pub fn named(name: &str) -> Option<Self> {
        ALL.binary_search(&name).ok().and_then(|i| u8::try_from(i).ok()).map(Self)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        ALL[usize::from(self.0)]
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0u8..).take(ALL.len()).map(Self)
    }
}

impl fmt::Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of privileges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrivilegeSet(u64);

impl PrivilegeSet {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// All of them.
    pub fn full() -> Self {
        Privilege::all().collect()
    }

    /// Whether it holds one.
    pub fn has(self, p: Privilege) -> bool {
        self.0 & (1 << p.0) != 0
    }

    /// What both hold.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What either holds.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it holds all that `other` holds.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether it holds none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What it holds, by name.
    pub fn iter(self) -> impl Iterator<Item = Privilege> {
        Privilege::all().filter(move |p| self.has(*p))
    }
}

impl FromIterator<Privilege> for PrivilegeSet {
    fn from_iter<I: IntoIterator<Item = Privilege>>(iter: I) -> Self {
        Self(iter.into_iter().fold(0, |set, p| set | 1 << p.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_sorted_so_that_they_can_be_found() {
        assert!(ALL.is_sorted());
        for (i, name) in ALL.iter().enumerate() {
            assert_eq!(Privilege::named(name).map(|p| usize::from(p.0)), Some(i));
        }
        assert_eq!(Privilege::named("VM.Monitor"), None, "gone since version 9");
    }
}
