//! Where things lie in the configuration tree. Keys look as the files that administrators know.

use crate::{GuestKind, NodeName, Vmid};

/// The cluster's own record.
pub const CLUSTER: &str = "stead/cluster";
/// Below it: a record a node.
pub const NODES: &str = "stead/nodes/";
/// Below it: a record a node of what its CPU can do.
pub const CPUS: &str = "stead/cpu/";
/// Below it: of nodes of which that is said, where they stand.
pub const PLACES: &str = "stead/place/";
/// Below it: an ownership record a guest. Outside history and rollback.
pub const OWNERSHIP: &str = "stead/owner/";
/// Below it: secrets. Sealed; outside history, events and logs.
pub const PRIVATE: &str = "priv/";
/// How much of the configuration's past is kept; its form is the replicated state's own (`stead_conf::HistoryLimits`).
pub const HISTORY: &str = "stead/history";
/// That the configuration is of a backup, and nothing starts by itself; gone when an administrator has armed HA.
pub const RESTORED: &str = "stead/restored";
/// Storages.
pub const STORAGE_CFG: &str = "storage.cfg";
/// Users, groups, tokens' comments, ACLs, pools.
pub const USER_CFG: &str = "user.cfg";
/// Cluster-wide options.
pub const DATACENTER_CFG: &str = "datacenter.cfg";
/// HA resources.
pub const HA_RESOURCES: &str = "ha/resources.cfg";
/// HA rules.
pub const HA_RULES: &str = "ha/rules.cfg";
/// Groups of HA: the older form of rules.
pub const HA_GROUPS: &str = "ha/groups.cfg";
/// Fence devices, and which nodes they power.
pub const FENCE_CFG: &str = "ha/fence.cfg";
/// Fence devices' passwords (sealed).
pub const FENCE_SECRETS: &str = "priv/fence.cfg";
/// What nodes have of PCI devices, by names of the cluster's.
pub const MAPPING_PCI: &str = "mapping/pci.cfg";
/// The same of USB devices.
pub const MAPPING_USB: &str = "mapping/usb.cfg";
/// The same of directories.
pub const MAPPING_DIR: &str = "mapping/dir.cfg";
/// CPU models that administrators have made.
pub const CPU_MODELS: &str = "virtual-guest/cpu-models.conf";
/// The HA manager's state.
pub const HA_STATUS: &str = "ha/manager_status";
/// The cluster CA's certificate.
pub const CA_CERT: &str = "pve-root-ca.pem";
/// The cluster CA's key (sealed).
pub const CA_KEY: &str = "priv/pve-root-ca.key";
/// The key that signs tickets (sealed).
pub const AUTH_KEY: &str = "priv/authkey.key";
/// Tokens' secrets, hashed (sealed).
pub const TOKEN_CFG: &str = "priv/token.cfg";
/// Passwords, hashed (sealed).
pub const SHADOW_CFG: &str = "priv/shadow.cfg";

/// A node's record.
pub fn node(name: &NodeName) -> String {
    format!("{NODES}{name}")
}

/// What a node's CPU can do.
pub fn cpu(name: &NodeName) -> String {
    format!("{CPUS}{name}")
}

/// Where a node stands.
pub fn place(name: &NodeName) -> String {
    format!("{PLACES}{name}")
}

/// A guest's ownership record.
pub fn ownership(vmid: Vmid) -> String {
    format!("{OWNERSHIP}{vmid}")
}

/// A guest's configuration.
pub fn guest(node: &NodeName, kind: GuestKind, vmid: Vmid) -> String {
    match kind {
        GuestKind::Qemu => format!("nodes/{node}/qemu-server/{vmid}.conf"),
        GuestKind::Lxc => format!("nodes/{node}/lxc/{vmid}.conf"),
    }
}

/// Which guest's configuration a path is, if it is one.
pub fn as_guest(path: &str) -> Option<(NodeName, GuestKind, Vmid)> {
    let mut parts = path.strip_prefix("nodes/")?.split('/');
    let node = parts.next()?.parse().ok()?;
    let kind = match parts.next()? {
        "qemu-server" => GuestKind::Qemu,
        "lxc" => GuestKind::Lxc,
        _ => return None,
    };
    let vmid = parts.next()?.strip_suffix(".conf")?.parse().ok()?;
    parts.next().is_none().then_some((node, kind, vmid))
}
