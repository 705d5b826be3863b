//! `/cluster`: the cluster as a whole.

pub mod bulk;
pub mod config;
pub mod epoch;
pub mod events;
pub mod ha;
pub mod history;
pub mod mapping;
pub mod off;
pub mod options;
pub mod qdevice;
pub mod qemu;

use crate::framework::{Access, Json};
use crate::version::Nothing;
use stead_api_derive::Params;
use stead_model::Vmid;
use stead_ops::cluster::{Resource, ResourceKind, StatusEntry};
use stead_ops::datacenter::LogEntry;
use stead_ops::task_view::TaskRow;

choice! {
    /// What a resource is.
    pub enum ResourceType {
        /// Guests.
        Vm = "vm",
        /// Storages.
        Storage = "storage",
        /// Nodes.
        Node = "node",
        /// Networks.
        Sdn = "sdn",
    }
}

#[derive(Params)]
pub struct ListResources {
    /// Resources of this kind alone.
    #[param(name = "type")]
    kind: Option<ResourceType>,
}

#[derive(Params)]
pub struct NextId {
    /// Ask whether this one is free.
    vmid: Option<Vmid>,
}

#[derive(Params)]
pub struct ReadLog {
    /// How many entries at most.
    #[param(min = 1, max = 10000)]
    max: Option<usize>,
}

/// How many entries the log shows unless asked.
const LOG_ENTRIES: usize = 100;

endpoint! {
    /// The cluster and its nodes: who is there, and whether they are a majority.
    Status = get("/cluster/status"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, _p: Nothing) -> Json<Vec<StatusEntry>> {
        Ok(Json(cx.ops().cluster_status()?))
    }
}

endpoint! {
    /// Guests, storages and nodes that the caller may see.
    Resources = get("/cluster/resources"), Anywhere, Access::Authenticated;
    fn call(cx, p: ListResources) -> Json<Vec<Resource>> {
        let kind = match p.kind {
            // Of these there are none yet.
            Some(ResourceType::Sdn) => return Ok(Json(vec![])),
            Some(ResourceType::Vm) => Some(ResourceKind::Vm),
            Some(ResourceType::Storage) => Some(ResourceKind::Storage),
            Some(ResourceType::Node) => Some(ResourceKind::Node),
            None => None,
        };
        Ok(Json(cx.ops().resources(&cx.actor(), kind)?))
    }
}

endpoint! {
    /// The lowest VMID that is free.
    Next = get("/cluster/nextid"), Anywhere, Access::Authenticated;
    fn call(cx, p: NextId) -> Json<Vmid> {
        Ok(Json(cx.ops().next_id(p.vmid)?))
    }
}

endpoint! {
    /// Tasks of all nodes that the caller may see, the latest first.
    Tasks = get("/cluster/tasks"), Anywhere, Access::Authenticated;
    fn call(cx, _p: Nothing) -> Json<Vec<TaskRow>> {
        Ok(Json(cx.ops().cluster_tasks_of(&cx.actor())))
    }
}

endpoint! {
    /// Who changed what, the latest first.
    Log = get("/cluster/log"), Anywhere, Access::Authenticated;
    fn call(cx, p: ReadLog) -> Json<Vec<LogEntry>> {
        Ok(Json(cx.ops().cluster_log(&cx.actor(), p.max.unwrap_or(LOG_ENTRIES))))
    }
}
