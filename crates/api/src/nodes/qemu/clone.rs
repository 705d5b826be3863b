//! `/nodes/{node}/qemu/{vmid}/clone`, `template` and `feature`.

use crate::framework::{Access, Caller, Error, Json};
use serde::Serialize;
use stead_api_derive::{Params, Schema};
use stead_model::{NodeName, StorageId, Upid, Vmid};
use stead_ops::guest::clone::CloneOptions;
use stead_ops::guest::template;

choice! {
    /// How a disk is kept.
    pub enum Format { Raw = "raw", Qcow2 = "qcow2", Vmdk = "vmdk" }
}

choice! {
    /// What may be done with a VM's disks.
    pub enum Ability { Snapshot = "snapshot", Clone = "clone", Copy = "copy" }
}

#[derive(Params)]
pub struct CloneVm {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The clone's number.
    newid: Vmid,
    /// The clone's name. Default: `Copy-of-` and its source's.
    #[param(format = "dns-name")]
    name: Option<String>,
    /// What is to be remembered of it. Default: what is of its source.
    #[param(max_length = 8192)]
    description: Option<String>,
    /// Copy all disks, rather than keep what differs from a template's. Default: where it has to be.
    full: Option<bool>,
    /// Of the VM as it was in this snapshot.
    #[param(max_length = 40)]
    snapname: Option<String>,
    /// Where a full clone's disks are to lie. Default: where its source's do.
    storage: Option<StorageId>,
    /// The format of a full clone's disks: `raw` or `qcow2`. Default: that of its source's.
    format: Option<Format>,
    /// The node that is to have it, which must see all of its disks.
    target: Option<NodeName>,
    /// KiB a second at most; 0: no limit.
    #[param(min = 0)]
    bwlimit: Option<u64>,
}

#[derive(Params)]
pub struct MakeTemplate {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Only this disk becomes one of which others are made.
    disk: Option<String>,
}

#[derive(Params)]
pub struct AskFeature {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// What is asked for: snapshots, linked clones, copies.
    feature: Ability,
    /// Ask of the VM as it is in this snapshot.
    #[param(max_length = 40)]
    snapname: Option<String>,
}

/// Whether it can be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct Feature {
    /// It can.
    #[serde(rename = "hasFeature")]
    has_feature: bool,
    /// The nodes that see all of the VM's volumes.
    nodes: Vec<NodeName>,
}

fn may_clone(caller: &Caller, p: &CloneVm) -> Result<(), Error> {
    caller.require(&format!("/vms/{}", p.vmid), &["VM.Clone"])?;
    caller.require(&format!("/vms/{}", p.newid), &["VM.Allocate"])
}

endpoint! {
    /// Makes another VM of one, or of a template.
    Post = post("/nodes/{node}/qemu/{vmid}/clone"), AtGuest, Access::Inside(
        "VM.Clone on /vms/{vmid}, VM.Allocate on /vms/{newid}, and Datastore.AllocateSpace on each storage");
    missing: &["pool: changing pools is not supported yet"];
    authorize: may_clone;
    fn call(cx, p: CloneVm) -> Upid {
        cx.ops().member(&p.node)?;
        let options = CloneOptions {
            newid: p.newid,
            name: p.name,
            description: p.description,
            storage: p.storage,
            format: p.format.map(|f| f.word().to_owned()),
            full: p.full,
            snapshot: p.snapname,
            target: p.target,
            bwlimit: p.bwlimit,
        };
        Ok(cx.ops().clone_vm(&cx.actor(), p.vmid, options).await?)
    }
}

endpoint! {
    /// Makes a template of a VM: it never runs again, and others are made of it.
    PostTemplate = post("/nodes/{node}/qemu/{vmid}/template"), AtGuest, Access::All("/vms/{vmid}", &["VM.Allocate"]);
    fn call(cx, p: MakeTemplate) -> Upid {
        cx.ops().member(&p.node)?;
        Ok(cx.ops().make_template(&cx.actor(), p.vmid, p.disk).await?)
    }
}

endpoint! {
    /// Whether something can be done with a VM's disks.
    ReadFeature = get("/nodes/{node}/qemu/{vmid}/feature"), AtGuest, Access::All("/vms/{vmid}", &["VM.Audit"]);
    fn call(cx, p: AskFeature) -> Json<Feature> {
        cx.ops().member(&p.node)?;
        let feature = match p.feature {
            Ability::Snapshot => template::Feature::Snapshot,
            Ability::Clone => template::Feature::Clone,
            Ability::Copy => template::Feature::Copy,
        };
        let (has_feature, nodes) = cx.ops().has_feature(p.vmid, feature, p.snapname.as_deref()).await?;
        Ok(Json(Feature { has_feature, nodes }))
    }
}
