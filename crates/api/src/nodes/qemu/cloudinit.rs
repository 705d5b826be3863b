//! `/nodes/{node}/qemu/{vmid}/cloudinit` and below: what a VM's options tell its guest.

use super::OneVm;
use crate::framework::{Access, Json, Null};
use serde::Serialize;
use stead_api_derive::{Params, Schema};
use stead_model::cloudinit::Part;
use stead_model::{NodeName, Vmid};

/// An option that the guest is told.
#[derive(Serialize, Schema)]
pub struct Told {
    /// Its name.
    key: String,
    /// As the drive has it; `**********` of a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// As the drive will have it when it is written next, if that is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<String>,
    /// 1: the drive will have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    delete: Option<u8>,
}

endpoint! {
    /// What a VM's cloud-init drive holds, and what it will hold when it is written next.
    Read = get("/nodes/{node}/qemu/{vmid}/cloudinit"), AtGuest, Access::All("/vms/{vmid}", &["VM.Audit"]);
    fn call(cx, p: OneVm) -> Json<Vec<Told>> {
        cx.ops().member(&p.node)?;
        let all = cx.ops().cloudinit_pending(p.vmid)?.into_iter().map(|told| Told {
            key: told.key,
            value: told.value,
            pending: told.pending,
            delete: told.delete.then_some(1),
        });
        Ok(Json(all.collect()))
    }
}

endpoint! {
    /// Writes a VM's cloud-init drive as its options are now; a running guest finds another medium.
    Update = put("/nodes/{node}/qemu/{vmid}/cloudinit"), AtGuest,
        Access::All("/vms/{vmid}", &["VM.Config.Cloudinit"]);
    fn call(cx, p: OneVm) -> Null {
        cx.ops().member(&p.node)?;
        cx.ops().update_cloudinit(&cx.actor(), p.vmid).await?;
        Ok(Null)
    }
}

choice! {
    /// A part of what the guest is told.
    pub enum Which {
        User = "user", Network = "network", Meta = "meta",
    }
}

#[derive(Params)]
pub struct OnePart {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Which part.
    #[param(name = "type")]
    which: Which,
}

endpoint! {
    /// What a VM's cloud-init drive would hold if it were written now, without the hash of a password.
    Dump = get("/nodes/{node}/qemu/{vmid}/cloudinit/dump"), AtGuest, Access::All("/vms/{vmid}", &["VM.Audit"]);
    fn call(cx, p: OnePart) -> Json<String> {
        cx.ops().member(&p.node)?;
        let part = match p.which {
            Which::User => Part::User,
            Which::Network => Part::Network,
            Which::Meta => Part::Meta,
        };
        Ok(Json(cx.ops().cloudinit_dump(p.vmid, part).await?))
    }
}
