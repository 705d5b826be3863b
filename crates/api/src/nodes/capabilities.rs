//! `/nodes/{node}/capabilities`: what a node's QEMU can make of guests.

use super::OneNode;
use crate::cluster::qemu::{Accel, Arch};
use crate::framework::{Access, Json};
use serde::Serialize;
use stead_api_derive::{Params, Schema};
use stead_model::NodeName;
use stead_ops::cpu::{FlagView, MachineView, ModelView};

#[derive(Params)]
pub struct OfFamily {
    /// The node.
    node: NodeName,
    /// Of this family: only x86_64 has any here.
    arch: Option<Arch>,
}

#[derive(Params)]
pub struct ListFlags {
    /// The node.
    node: NodeName,
    /// Under this accelerator.
    #[param(default = "kvm")]
    accel: Accel,
    /// Of this family: only x86_64 has any here.
    arch: Option<Arch>,
}

/// What a node can do in migrations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct MigrationView {
    /// 0: there is no such state.
    #[serde(rename = "has-dbus-vmstate")]
    has_dbus_vmstate: bool,
}

endpoint! {
    /// The models of CPUs that a VM can have on a node, those of administrators too, each with what the node lacks of it.
    Cpu = get("/nodes/{node}/capabilities/qemu/cpu"), AtNode, Access::Authenticated;
    fn call(cx, p: OfFamily) -> Json<Vec<ModelView>> {
        cx.ops().member(&p.node)?;
        if p.arch == Some(Arch::Arm) {
            return Ok(Json(vec![]));
        }
        Ok(Json(cx.ops().cpu_models_here().await?))
    }
}

endpoint! {
    /// Features of CPUs, and whether guests of the node can have them.
    Flags = get("/nodes/{node}/capabilities/qemu/cpu-flags"), AtNode, Access::Authenticated;
    fn call(cx, p: ListFlags) -> Json<Vec<FlagView>> {
        cx.ops().member(&p.node)?;
        if p.arch == Some(Arch::Arm) {
            return Ok(Json(vec![]));
        }
        Ok(Json(cx.ops().cpu_flags(p.accel.word(), Some(&p.node))))
    }
}

endpoint! {
    /// The types of machines that a VM can have on a node, of each kind the newest first.
    Machines = get("/nodes/{node}/capabilities/qemu/machines"), AtNode, Access::Authenticated;
    fn call(cx, p: OfFamily) -> Json<Vec<MachineView>> {
        cx.ops().member(&p.node)?;
        if p.arch == Some(Arch::Arm) {
            return Ok(Json(vec![]));
        }
        Ok(Json(cx.ops().machine_types().await?))
    }
}

endpoint! {
    /// What a node can do in migrations beyond the usual.
    Migration = get("/nodes/{node}/capabilities/qemu/migration"), AtNode, Access::All("/nodes/{node}", &["Sys.Audit"]);
    fn call(cx, p: OneNode) -> Json<MigrationView> {
        cx.ops().member(&p.node)?;
        Ok(Json(MigrationView { has_dbus_vmstate: false }))
    }
}
