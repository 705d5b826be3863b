//! The built-in roles.

use crate::{Privilege, PrivilegeSet};

/// The role that takes away whatever others give.
pub const NO_ACCESS: &str = "NoAccess";

/// The built-in roles' names.
pub const BUILT_IN: &[&str] = &[
    "Administrator",
    NO_ACCESS,
    "PVEAdmin",
    "PVEAuditor",
    "PVEDatastoreAdmin",
    "PVEDatastoreUser",
    "PVEMappingAdmin",
    "PVEMappingUser",
    "PVEPoolAdmin",
    "PVEPoolUser",
    "PVESDNAdmin",
    "PVESDNUser",
    "PVESysAdmin",
    "PVETemplateUser",
    "PVEUserAdmin",
    "PVEVMAdmin",
    "PVEVMUser",
];

/// What PVEAdmin lacks: the settings of hosts, and permissions.
const ABOVE_ADMIN: &[&str] = &[
    "Mapping.Modify",
    "Permissions.Modify",
    "Realm.Allocate",
    "Sys.AccessNetwork",
    "Sys.Incoming",
    "Sys.Modify",
    "Sys.PowerMgmt",
    "VM.Replicate",
];

fn of(names: &[&str]) -> PrivilegeSet {
    names.iter().filter_map(|n| Privilege::named(n)).collect()
}

fn under(prefix: &str) -> PrivilegeSet {
    Privilege::all().filter(|p| p.name().starts_with(prefix)).collect()
}

/// What a built-in role gives; none if there is no such role.
pub fn built_in(role: &str) -> Option<PrivilegeSet> {
    Some(match role {
        "Administrator" => PrivilegeSet::full(),
        NO_ACCESS => PrivilegeSet::EMPTY,
        "PVEAdmin" => Privilege::all().filter(|p| !ABOVE_ADMIN.contains(&p.name())).collect(),
        "PVEAuditor" => Privilege::all().filter(|p| p.name().ends_with(".Audit")).collect(),
        "PVEDatastoreAdmin" => under("Datastore."),
        "PVEDatastoreUser" => of(&["Datastore.AllocateSpace", "Datastore.Audit"]),
        "PVEMappingAdmin" => under("Mapping."),
        "PVEMappingUser" => of(&["Mapping.Audit", "Mapping.Use"]),
        "PVEPoolAdmin" => under("Pool."),
        "PVEPoolUser" => of(&["Pool.Audit"]),
        "PVESDNAdmin" => under("SDN."),
        "PVESDNUser" => of(&["SDN.Audit", "SDN.Use"]),
        "PVESysAdmin" => of(&["Sys.Audit", "Sys.Console", "Sys.Syslog"]),
        "PVETemplateUser" => of(&["VM.Audit", "VM.Clone"]),
        "PVEUserAdmin" => of(&["Group.Allocate", "Realm.AllocateUser", "User.Modify"]),
        "PVEVMAdmin" => under("VM.").iter().filter(|p| p.name() != "VM.Replicate").collect(),
        "PVEVMUser" => of(&[
            "VM.Audit",
            "VM.Backup",
            "VM.Config.CDROM",
            "VM.Config.Cloudinit",
            "VM.Console",
            "VM.GuestAgent.Audit",
            "VM.PowerMgmt",
        ]),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_role_is_known_and_names_real_privileges() {
        for role in BUILT_IN {
            let set = built_in(role).unwrap();
            assert_eq!(set.is_empty(), *role == NO_ACCESS, "{role}");
        }
        assert!(ABOVE_ADMIN.iter().all(|n| Privilege::named(n).is_some()));
        assert_eq!(built_in("PVEVMUser").unwrap().iter().count(), 7);
    }
}
