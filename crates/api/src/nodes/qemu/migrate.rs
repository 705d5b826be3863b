//! `/nodes/{node}/qemu/{vmid}/migrate`.

use super::asked;
use crate::framework::{Access, Error, Json};
use serde::Serialize;
use std::collections::BTreeMap;
use stead_api_derive::{Params, Schema};
use stead_model::network::Network;
use stead_model::{NodeName, StorageId, Upid, Vmid};
use stead_ops::guest::migrate::{MigrateOptions, Quick as QuickMove, StorageMap};
use stead_ops::guest::preconditions::{LocalVolume, Preconditions};

const MIGRATE: Access = Access::All("/vms/{vmid}", &["VM.Migrate"]);

choice! {
    /// How the stream is carried.
    pub enum Carried { Secure = "secure", Insecure = "insecure" }
}

#[derive(Params)]
pub struct AskMigration {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Ask about this node alone.
    target: Option<NodeName>,
}

#[derive(Params)]
pub struct Migrate {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Where to.
    target: NodeName,
    /// While it runs.
    #[param(default = "0")]
    online: bool,
    /// KiB a second at most; 0: no limit.
    #[param(min = 0)]
    bwlimit: Option<u64>,
    /// How the stream is carried: `secure` alone.
    migration_type: Option<Carried>,
    /// The network by whose addresses its memory and disks go, as `10.1.0.0/16`; without it that of `migration` in the cluster's
    /// options. It is one of the nodes' links.
    migration_network: Option<String>,
    /// Where volumes go that the target has not, if not to storages of the same names: `STORAGE` for all, or pairs
    /// `FROM:TO`, separated by commas.
    targetstorage: Option<String>,
    /// Volumes of a VM that runs go along, too; those of one that does not run do in any case.
    #[param(name = "with-local-disks", default = "0")]
    with_local_disks: bool,
}

/// Why a node cannot take the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct NotAllowed {
    /// In words.
    reasons: Vec<String>,
}

/// A volume that the other nodes do not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct LocalDisk {
    /// The volume.
    volid: String,
    /// It is a CD.
    cdrom: bool,
    /// The VM does not use it.
    is_unused: bool,
    /// Its size in bytes, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

/// A device under a name of the cluster's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct MappedResource {
    /// The name.
    name: String,
}

/// What speaks against a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct MigrationCheck {
    /// The VM runs.
    running: bool,
    /// Nodes that can take it.
    allowed_nodes: Vec<NodeName>,
    /// Nodes that cannot, with the reasons.
    not_allowed_nodes: BTreeMap<String, NotAllowed>,
    /// Volumes that other nodes do not have.
    local_disks: Vec<LocalDisk>,
    /// Options that give it devices of the host.
    local_resources: Vec<String>,
    /// Options that give it devices of the host under names of the cluster's.
    #[serde(rename = "mapped-resources")]
    mapped_resources: Vec<String>,
    /// Their names.
    #[serde(rename = "mapped-resource-info")]
    mapped_resource_info: BTreeMap<String, MappedResource>,
    /// There is no such state.
    #[serde(rename = "has-dbus-vmstate")]
    has_dbus_vmstate: bool,
}

fn shown(p: Preconditions, target: Option<&NodeName>) -> MigrationCheck {
    let wanted = |n: &NodeName| target.is_none_or(|t| t == n);
    let refused = p.not_allowed.into_iter().filter(|(n, _)| wanted(n));
    let disk =
        |v: LocalVolume| LocalDisk { volid: v.volid, cdrom: v.cdrom, is_unused: v.is_unused, size: v.size };
    MigrationCheck {
        running: p.running,
        allowed_nodes: p.allowed_nodes.into_iter().filter(wanted).collect(),
        not_allowed_nodes: refused.map(|(n, reasons)| (n.to_string(), NotAllowed { reasons })).collect(),
        local_disks: p.local_volumes.into_iter().map(disk).collect(),
        local_resources: p.local_resources,
        mapped_resources: p.mapped_resources.iter().map(|(key, _)| key.clone()).collect(),
        mapped_resource_info: p
            .mapped_resources
            .into_iter()
            .map(|(key, name)| (key, MappedResource { name }))
            .collect(),
        has_dbus_vmstate: false,
    }
}

endpoint! {
    /// What speaks against a migration.
    Ask = get("/nodes/{node}/qemu/{vmid}/migrate"), AtGuest, MIGRATE;
    fn call(cx, p: AskMigration) -> Json<MigrationCheck> {
        cx.ops().member(&p.node)?;
        let found = cx.ops().migrate_preconditions(p.vmid).await?;
        Ok(Json(shown(found, p.target.as_ref())))
    }
}

endpoint! {
    /// Moves a VM to another node.
    Post = post("/nodes/{node}/qemu/{vmid}/migrate"), AtGuest, MIGRATE;
    missing: &[
        "force: devices of the host can't be migrated",
        "with-conntrack-state: there is no firewall yet",
    ];
    fn call(cx, p: Migrate) -> Upid {
        cx.ops().member(&p.node)?;
        if p.migration_type == Some(Carried::Insecure) {
            return Err(Error::parameter("migration_type", "a VM's memory never leaves a node unencrypted"));
        }
        let storages: StorageMap = match p.targetstorage.as_deref().unwrap_or_default().parse() {
            Ok(map) => map,
            Err(why) => return Err(Error::parameter("targetstorage", why)),
        };
        for storage in storages.targets() {
            cx.caller.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
        }
        let network = match p.migration_network.as_deref().map(str::parse::<Network>).transpose() {
            Ok(network) => network,
            Err(why) => return Err(Error::parameter("migration_network", why.to_string())),
        };
        let Migrate { vmid, target, online, bwlimit, with_local_disks, .. } = p;
        let options = MigrateOptions { target, online, bwlimit, quick: None, storages, with_local_disks, network };
        Ok(cx.ops().migrate(&cx.actor(), vmid, options, asked(false)).await?)
    }
}

#[derive(Params)]
pub struct QuickMigrate {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Where to.
    target: NodeName,
    /// The shared storage for its memory: without it that of `vmstatestorage`, or of one of its disks.
    statestorage: Option<StorageId>,
}

endpoint! {
    /// Moves a running VM over a shared storage: its memory is written there while it runs, and read by the other node. The nodes need not
    /// reach each other.
    Quick = post("/nodes/{node}/qemu/{vmid}/quick_migrate"), AtGuest, MIGRATE;
    fn call(cx, p: QuickMigrate) -> Upid {
        cx.ops().member(&p.node)?;
        let quick = Some(QuickMove { storage: p.statestorage });
        let options = MigrateOptions { quick, ..MigrateOptions::to(p.target, true) };
        Ok(cx.ops().migrate(&cx.actor(), p.vmid, options, asked(false)).await?)
    }
}
