//! `/nodes/{node}/qemu/{vmid}/migrate`.

use super::asked;
use crate::framework::{Access, Error, Json};
use serde_json::{Map, Value, json};
use stead_api_derive::Params;
use stead_model::{NodeName, Upid, Vmid};
use stead_ops::guest::migrate::{MigrateOptions, Preconditions};

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
}

fn shown(p: &Preconditions, target: Option<&NodeName>) -> Value {
    let wanted = |n: &NodeName| target.is_none_or(|t| t == n);
    let allowed: Vec<&NodeName> = p.allowed_nodes.iter().filter(|n| wanted(n)).collect();
    let refused: Map<String, Value> = p
        .not_allowed
        .iter()
        .filter(|(n, _)| wanted(n))
        .map(|(n, why)| (n.to_string(), json!({"reasons": why})))
        .collect();
    let disk = |v: &String| json!({"volid": v, "cdrom": 0, "is_unused": 0, "size": 0});
    json!({
        "running": p.running, "allowed_nodes": allowed, "not_allowed_nodes": refused,
        "local_disks": p.local_volumes.iter().map(disk).collect::<Vec<_>>(),
        "local_resources": [], "mapped-resources": [], "mapped-resource-info": {}, "has-dbus-vmstate": false,
    })
}

endpoint! {
    /// What speaks against a migration.
    Ask = get("/nodes/{node}/qemu/{vmid}/migrate"), AtGuest, MIGRATE;
    fn call(cx, p: AskMigration) -> Json<Value> {
        cx.ops().member(&p.node)?;
        let found = cx.ops().migrate_preconditions(p.vmid).await?;
        Ok(Json(shown(&found, p.target.as_ref())))
    }
}

endpoint! {
    /// Moves a VM to another node.
    Post = post("/nodes/{node}/qemu/{vmid}/migrate"), AtGuest, MIGRATE;
    missing: &[
        "force: devices of the host can't be migrated",
        "migration_network: nodes have one address each",
        "targetstorage: moving disks is not supported yet",
        "with-conntrack-state: there is no firewall yet",
        "with-local-disks: moving disks is not supported yet",
    ];
    fn call(cx, p: Migrate) -> Upid {
        cx.ops().member(&p.node)?;
        if p.migration_type == Some(Carried::Insecure) {
            return Err(Error::parameter("migration_type", "a VM's memory never leaves a node unencrypted"));
        }
        let options = MigrateOptions { target: p.target, online: p.online, bwlimit: p.bwlimit };
        Ok(cx.ops().migrate(&cx.actor(), p.vmid, options, asked(false)).await?)
    }
}
