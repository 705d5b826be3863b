//! `/nodes/{node}/qemu/{vmid}/snapshot` and below.

use super::OneVm;
use crate::framework::{Access, Json, Null};
use std::collections::BTreeMap;
use stead_api_derive::Params;
use stead_model::{NodeName, Upid, Vmid};
use stead_ops::guest::snapshots::SnapshotEntry;
use stead_ops::guest::view::NumberOrText;

const SNAPSHOT: Access = Access::All("/vms/{vmid}", &["VM.Snapshot"]);
const ROLLBACK: Access = Access::Any("/vms/{vmid}", &["VM.Snapshot", "VM.Snapshot.Rollback"]);
const LOOK: Access = Access::Any("/vms/{vmid}", &["VM.Snapshot", "VM.Snapshot.Rollback", "VM.Audit"]);
const AUDIT: Access = Access::All("/vms/{vmid}", &["VM.Audit"]);

#[derive(Params)]
pub struct TakeSnapshot {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The snapshot's name: 2 to 40 letters, digits, `-` and `_`, the first a letter.
    #[param(max_length = 40)]
    snapname: String,
    /// What is to be remembered of it.
    #[param(max_length = 8192)]
    description: Option<String>,
    /// Keep the memory of a VM that runs, too.
    #[param(default = "0")]
    vmstate: bool,
}

#[derive(Params)]
pub struct OneSnapshot {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The snapshot.
    #[param(max_length = 40)]
    snapname: String,
}

#[derive(Params)]
pub struct RemoveSnapshot {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The snapshot.
    #[param(max_length = 40)]
    snapname: String,
    /// Take it out of the configuration, even where a disk does not let go of it.
    #[param(default = "0")]
    force: bool,
}

#[derive(Params)]
pub struct DescribeSnapshot {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The snapshot.
    #[param(max_length = 40)]
    snapname: String,
    /// What is to be remembered of it; empty takes it out.
    #[param(max_length = 8192)]
    description: Option<String>,
}

#[derive(Params)]
pub struct RollBack {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The snapshot.
    #[param(max_length = 40)]
    snapname: String,
    /// Start the VM afterwards.
    #[param(default = "0")]
    start: bool,
}

endpoint! {
    /// A VM's snapshots, and as `current` what it is now.
    List = get("/nodes/{node}/qemu/{vmid}/snapshot"), AtGuest, AUDIT;
    fn call(cx, p: OneVm) -> Json<Vec<SnapshotEntry>> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().snapshots(p.vmid).await?))
    }
}

endpoint! {
    /// Takes a snapshot of a VM: of its options and its disks, also while it runs, and of its memory.
    Take = post("/nodes/{node}/qemu/{vmid}/snapshot"), AtGuest, SNAPSHOT;
    fn call(cx, p: TakeSnapshot) -> Upid {
        cx.ops().member(&p.node)?;
        let description = p.description.unwrap_or_default();
        Ok(cx.ops().take_snapshot(&cx.actor(), p.vmid, &p.snapname, &description, p.vmstate).await?)
    }
}

endpoint! {
    /// Removes a snapshot.
    Remove = delete("/nodes/{node}/qemu/{vmid}/snapshot/{snapname}"), AtGuest, SNAPSHOT;
    fn call(cx, p: RemoveSnapshot) -> Upid {
        cx.ops().member(&p.node)?;
        Ok(cx.ops().remove_snapshot(&cx.actor(), p.vmid, &p.snapname, p.force).await?)
    }
}

endpoint! {
    /// The options of a VM in a snapshot.
    ReadConfig = get("/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/config"), AtGuest, LOOK;
    fn call(cx, p: OneSnapshot) -> Json<BTreeMap<String, NumberOrText>> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().vm_config(p.vmid, true, Some(&p.snapname))?))
    }
}

endpoint! {
    /// Changes what is said of a snapshot.
    PutConfig = put("/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/config"), AtGuest, SNAPSHOT;
    fn call(cx, p: DescribeSnapshot) -> Null {
        cx.ops().member(&p.node)?;
        if let Some(description) = &p.description {
            cx.ops().describe_snapshot(&cx.actor(), p.vmid, &p.snapname, description).await?;
        }
        Ok(Null)
    }
}

endpoint! {
    /// Has a VM go back to a snapshot. One that runs is stopped for it; with the memory that it had it runs on.
    PostRollback = post("/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback"), AtGuest, ROLLBACK;
    fn call(cx, p: RollBack) -> Upid {
        cx.ops().member(&p.node)?;
        Ok(cx.ops().roll_back(&cx.actor(), p.vmid, &p.snapname, p.start).await?)
    }
}
