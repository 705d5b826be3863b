//! `/nodes`: one node.

pub mod bulk;
pub mod qemu;
pub mod storage;
pub mod tasks;

use crate::framework::{Access, Json, Null};
use crate::version::{Nothing, Versions, version};
use stead_api_derive::Params;
use stead_model::NodeName;
use stead_ops::admin::HostPower;
use stead_ops::cluster::{NodeStatus, Resource};

#[derive(Params)]
pub struct OneNode {
    /// The node.
    pub node: NodeName,
}

choice! {
    /// What to do with the host.
    pub enum Command { Reboot = "reboot", Shutdown = "shutdown" }
}

#[derive(Params)]
pub struct NodeCommand {
    /// The node.
    node: NodeName,
    /// What to do.
    command: Command,
}

endpoint! {
    /// The nodes. Their load is shown where the caller has Sys.Audit.
    List = get("/nodes"), Anywhere, Access::Authenticated;
    fn call(cx, _p: Nothing) -> Json<Vec<Resource>> {
        let shown = |node: Resource| {
            let audits = |n: &NodeName| cx.caller.may(&format!("/nodes/{n}"), "Sys.Audit");
            if node.node.as_ref().is_some_and(audits) { node } else { node.public() }
        };
        Ok(Json(cx.ops().node_list().into_iter().map(shown).collect()))
    }
}

endpoint! {
    /// A node's load, memory, and versions.
    Status = get("/nodes/{node}/status"), AtNode, Access::All("/nodes/{node}", &["Sys.Audit"]);
    fn call(cx, p: OneNode) -> Json<NodeStatus> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().node_status()?))
    }
}

endpoint! {
    /// Starts the host anew or switches it off, once its guests have left or are shut down: the task `nodereboot` or
    /// `nodeshutdown` does it. Refused where the host has no power switch that Stead may use.
    Power = post("/nodes/{node}/status"), AtNode, Access::All("/nodes/{node}", &["Sys.PowerMgmt"]);
    fn call(cx, p: NodeCommand) -> Null {
        cx.ops().member(&p.node)?;
        let what = match p.command {
            Command::Reboot => HostPower::Reboot,
            Command::Shutdown => HostPower::Shutdown,
        };
        cx.services.admin.host_power(&cx.actor(), what).await?;
        Ok(Null)
    }
}

endpoint! {
    /// A node's version.
    Version = get("/nodes/{node}/version"), AtNode, Access::Authenticated;
    fn call(cx, p: OneNode) -> Json<Versions> {
        cx.ops().member(&p.node)?;
        Ok(Json(version(cx.ops().me.version)))
    }
}
