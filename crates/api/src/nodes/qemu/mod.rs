//! `/nodes/{node}/qemu` and below: VMs.

pub mod agent;
pub mod clone;
pub mod cloudinit;
pub mod config;
pub mod console;
pub mod disks;
pub mod migrate;
pub mod options;
pub mod remote;
pub mod snapshot;
pub mod status;

use crate::framework::{Access, Caller, Error, Json};
use std::collections::BTreeMap;
use stead_api_derive::Params;
use stead_model::{NodeName, Upid, Vmid};
use stead_ops::guest::Asked;
use stead_ops::guest::destroy::DestroyOptions;
use stead_ops::guest::view::VmStatus;

#[derive(Params)]
pub struct ListVms {
    /// The node.
    node: NodeName,
    /// Their status too. It is always shown: nodes know it anyway.
    full: Option<bool>,
}

/// One VM.
#[derive(Params)]
pub struct OneVm {
    /// The node.
    pub node: NodeName,
    /// The VM.
    pub vmid: Vmid,
}

#[derive(Params)]
pub struct CreateVm {
    /// The node.
    node: NodeName,
    /// The new VM's number.
    vmid: Vmid,
    /// Start it once it is made.
    #[param(default = "0")]
    start: bool,
    /// Its options.
    #[param(rest = options::all)]
    options: BTreeMap<String, String>,
}

#[derive(Params)]
pub struct RemoveVm {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Remove volumes, too, that are the VM's by name and that its configuration does not name.
    #[param(name = "destroy-unreferenced-disks", default = "0")]
    unreferenced: bool,
    /// Take it out of HA, too.
    #[param(default = "0")]
    purge: bool,
    /// Over a lock; root@pam alone.
    #[param(default = "0")]
    skiplock: bool,
}

/// The context of a request by a user.
pub fn asked(skiplock: bool) -> Asked {
    Asked { by_ha: false, skiplock }
}

/// Making a VM needs what its options need; space and addresses of disks are checked as they are made.
fn may_create(caller: &Caller, p: &CreateVm) -> Result<(), Error> {
    caller.require(&format!("/vms/{}", p.vmid), &["VM.Allocate"])
}

endpoint! {
    /// A node's VMs that the caller may see.
    List = get("/nodes/{node}/qemu"), Anywhere, Access::Authenticated;
    fn call(cx, p: ListVms) -> Json<Vec<VmStatus>> {
        // Shown in either case; the parameter is taken since clients send it.
        let _always = p.full;
        cx.ops().member(&p.node)?;
        let seen = cx.ops().vm_list(&cx.actor(), &p.node).into_iter();
        let seen = seen.filter(|vm| cx.caller.may(&format!("/vms/{}", vm.vmid), "VM.Audit"));
        Ok(Json(seen.collect()))
    }
}

endpoint! {
    /// Makes a VM.
    Create = post("/nodes/{node}/qemu"), AtNode, Access::Inside(
        "VM.Allocate on /vms/{vmid}, for each option what changing it needs, and Datastore.AllocateSpace on each storage");
    missing: &[
        "archive: restoring is not supported yet",
        "bwlimit: restoring is not supported yet",
        "force: restoring is not supported yet",
        "ha-managed: make it an HA resource once it is there (POST /cluster/ha/resources)",
        "import-working-storage: importing is not supported yet",
        "live-restore: restoring is not supported yet",
        "pool: changing pools is not supported yet",
        "storage: restoring is not supported yet",
        "unique: restoring is not supported yet",
    ];
    authorize: may_create;
    fn call(cx, p: CreateVm) -> Upid {
        cx.ops().member(&p.node)?;
        cx.ops().check_options(&p.options).await?;
        Ok(cx.ops().create_vm(&cx.actor(), p.vmid, &p.options, p.start)?)
    }
}

endpoint! {
    /// Removes a VM with its disks.
    Remove = delete("/nodes/{node}/qemu/{vmid}"), AtGuest, Access::All("/vms/{vmid}", &["VM.Allocate"]);
    fn call(cx, p: RemoveVm) -> Upid {
        cx.ops().member(&p.node)?;
        let options = DestroyOptions { purge: p.purge, unreferenced: p.unreferenced };
        Ok(cx.ops().destroy(&cx.actor(), p.vmid, options, asked(p.skiplock)).await?)
    }
}
