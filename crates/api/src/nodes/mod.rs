//! `/nodes`: one node.

pub mod bulk;
pub mod capabilities;
pub mod certificates;
pub mod hardware;
pub mod place;
pub mod qemu;
pub mod storage;
pub mod tasks;

use crate::framework::{Access, Json, Null};
use crate::version::{Nothing, Versions, version};
use stead_api_derive::Params;
use stead_model::{NodeName, Upid};
use stead_ops::admin::HostPower;
use stead_ops::cluster::{NodeStatus, Resource};
use stead_ops::departure::WITHOUT_LEASE;

#[derive(Params)]
pub struct OneNode {
    /// The node.
    pub node: NodeName,
}

choice! {
    /// What to do with the host.
    pub enum Command { Reboot = "reboot", Shutdown = "shutdown" }
}

impl From<Command> for HostPower {
    fn from(command: Command) -> Self {
        match command {
            Command::Reboot => Self::Reboot,
            Command::Shutdown => Self::Shutdown,
        }
    }
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
        cx.services.admin.host_power(&cx.actor(), p.command.into()).await?;
        Ok(Null)
    }
}

endpoint! {
    /// Brings a node's guests to rest as for a reboot or shutdown, and leaves the power alone: for a host that goes down by
    /// itself. Nothing starts there again until its daemon does.
    Depart = post("/nodes/{node}/depart"), AtNode, Access::All("/nodes/{node}", &["Sys.PowerMgmt"]);
    fn call(cx, p: NodeCommand) -> Upid {
        cx.ops().member(&p.node)?;
        Ok(cx.ops().come_to_rest(&cx.actor(), p.command.into(), WITHOUT_LEASE)?)
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
