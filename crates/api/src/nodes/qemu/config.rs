//! `/nodes/{node}/qemu/{vmid}/config` and `pending`.

use super::{OneVm, asked, options};
use crate::framework::{Access, Json, Null};
use std::collections::BTreeMap;
use stead_api_derive::Params;
use stead_model::{NodeName, Upid, Vmid};
use stead_ops::guest::config::ConfigChange;
use stead_ops::guest::view::{NumberOrText, PendingOption};

/// Who may change options at all; which of them is checked by option.
const CHANGE: Access = Access::Any(
    "/vms/{vmid}",
    &[
        "VM.Config.Disk",
        "VM.Config.CDROM",
        "VM.Config.CPU",
        "VM.Config.Memory",
        "VM.Config.Network",
        "VM.Config.HWType",
        "VM.Config.Options",
        "VM.Config.Cloudinit",
    ],
);

#[derive(Params)]
pub struct ReadConfig {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Leave out what takes effect with the next start.
    #[param(default = "0")]
    current: bool,
    /// The configuration of this snapshot.
    #[param(max_length = 40)]
    snapshot: Option<String>,
}

#[derive(Params)]
pub struct ChangeConfig {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Options to take out.
    delete: Vec<String>,
    /// Pending changes to take back.
    revert: Vec<String>,
    /// Change only if the configuration is still this version.
    #[param(max_length = 40)]
    digest: Option<String>,
    /// Remove the volumes of disks that are taken out, instead of keeping them as unused.
    #[param(default = "0")]
    force: bool,
    /// Over a lock; root@pam alone.
    #[param(default = "0")]
    skiplock: bool,
    /// Options to set.
    #[param(rest = options::all)]
    set: BTreeMap<String, String>,
}

impl ChangeConfig {
    fn change(self) -> (Vmid, ConfigChange, stead_ops::guest::Asked) {
        let change = ConfigChange {
            set: self.set,
            delete: self.delete,
            revert: self.revert,
            digest: self.digest,
            force: self.force,
        };
        (self.vmid, change, asked(self.skiplock))
    }
}

endpoint! {
    /// A VM's options, with pending changes in place unless `current`.
    Read = get("/nodes/{node}/qemu/{vmid}/config"), AtGuest, Access::All("/vms/{vmid}", &["VM.Audit"]);
    fn call(cx, p: ReadConfig) -> Json<BTreeMap<String, NumberOrText>> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().vm_config(p.vmid, p.current, p.snapshot.as_deref())?))
    }
}

endpoint! {
    /// Changes a VM's options as a task.
    Post = post("/nodes/{node}/qemu/{vmid}/config"), AtGuest, CHANGE;
    missing: &[
        "background_delay: the answer is always the task",
        "import-working-storage: importing is not supported yet",
    ];
    fn call(cx, p: ChangeConfig) -> Upid {
        cx.ops().member(&p.node)?;
        let (vmid, change, asked) = p.change();
        Ok(cx.ops().configure_task(&cx.actor(), vmid, change, asked).await?)
    }
}

endpoint! {
    /// Changes a VM's options.
    Put = put("/nodes/{node}/qemu/{vmid}/config"), AtGuest, CHANGE;
    fn call(cx, p: ChangeConfig) -> Null {
        cx.ops().member(&p.node)?;
        let (vmid, change, asked) = p.change();
        cx.ops().configure(&cx.actor(), vmid, change, asked).await?;
        Ok(Null)
    }
}

endpoint! {
    /// A VM's options with what is pending.
    Pending = get("/nodes/{node}/qemu/{vmid}/pending"), AtGuest, Access::All("/vms/{vmid}", &["VM.Audit"]);
    fn call(cx, p: OneVm) -> Json<Vec<PendingOption>> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().vm_pending(p.vmid)?))
    }
}
