//! `/nodes/{node}/startall` and its like: all guests of a node.

use crate::framework::{Access, Caller, Error};
use stead_api_derive::Params;
use stead_model::{NodeName, Upid, Vmid};
use stead_ops::bulk::{Bulk, Which, Work};

/// Refuses unless the privilege is held on each guest that is named, or without names on any.
pub(crate) fn touches(caller: &Caller, vms: &[Vmid], privilege: &'static str) -> Result<(), Error> {
    for vmid in vms {
        caller.require(&format!("/vms/{vmid}"), &[privilege])?;
    }
    let guests = |path: &str| path == "/" || path == "/vms" || path.starts_with("/vms/");
    let overview = caller.directory.overview(&caller.id, caller.now);
    if overview.iter().any(|(path, held)| guests(path) && held.contains_key(privilege)) {
        return Ok(());
    }
    caller.require("/vms", &[privilege])
}

/// Who may change what runs.
pub(crate) const POWER: Access = Access::Inside(
    "VM.PowerMgmt on each guest that is named; without names it is done with the guests on which it is held",
);
/// Who may move.
pub(crate) const MIGRATE: Access = Access::Inside(
    "VM.Migrate on each guest that is named; without names it is done with the guests on which it is held",
);

#[derive(Params)]
pub struct StartAll {
    /// The node.
    node: NodeName,
    /// Those too that do not start with their node (`onboot`).
    #[param(default = "0")]
    force: bool,
    /// These alone.
    vms: Vec<Vmid>,
    /// How many at a time: one without it.
    #[param(name = "max-workers", min = 1, max = 64)]
    workers: Option<u32>,
}

#[derive(Params)]
pub struct StopAll {
    /// The node.
    node: NodeName,
    /// Stop a guest that has not shut down in time.
    #[param(name = "force-stop", default = "1")]
    force: bool,
    /// Seconds that each may take, unless its `startup` says `down`.
    #[param(min = 0, max = 7200, default = "180")]
    timeout: u64,
    /// These alone.
    vms: Vec<Vmid>,
    /// How many at a time: `max_workers` of the cluster's options without it, else 4.
    #[param(name = "max-workers", min = 1, max = 64)]
    workers: Option<u32>,
}

#[derive(Params)]
pub struct SuspendAll {
    /// The node.
    node: NodeName,
    /// These alone.
    vms: Vec<Vmid>,
    /// How many at a time: `max_workers` of the cluster's options without it, else 4.
    #[param(name = "max-workers", min = 1, max = 64)]
    workers: Option<u32>,
}

#[derive(Params)]
pub struct MigrateAll {
    /// The node.
    node: NodeName,
    /// Where to.
    target: NodeName,
    /// These alone.
    vms: Vec<Vmid>,
    /// How many at a time: `max_workers` of the cluster's options without it, else one.
    #[param(name = "max-workers", min = 1, max = 64)]
    workers: Option<u32>,
    /// The older name of `max-workers`.
    #[param(min = 1, max = 64)]
    maxworkers: Option<u32>,
    /// Volumes that the target has not go along with those that run, too.
    #[param(name = "with-local-disks", default = "0")]
    with_local_disks: bool,
}

/// As use cases count.
pub(crate) fn count(workers: Option<u32>) -> Option<usize> {
    workers.and_then(|n| usize::try_from(n).ok())
}

fn here(vms: Vec<Vmid>) -> Which {
    Which { here: true, vms: vms.into_iter().collect(), ..Which::default() }
}

endpoint! {
    /// Starts a node's guests that shall start with it, or all, in their order.
    PostStart = post("/nodes/{node}/startall"), AtNode, POWER;
    authorize: |caller, p| touches(caller, &p.vms, "VM.PowerMgmt");
    fn call(cx, p: StartAll) -> Upid {
        cx.ops().member(&p.node)?;
        let which = Which { onboot: !p.force, ..here(p.vms) };
        let (work, workers) = (Work::Start { timeout: None }, count(p.workers));
        Ok(cx.ops().bulk(&cx.actor(), Bulk { worker: "startall", work, which, workers })?)
    }
}

endpoint! {
    /// Shuts a node's guests down, in the reverse of their order.
    PostStop = post("/nodes/{node}/stopall"), AtNode, POWER;
    authorize: |caller, p| touches(caller, &p.vms, "VM.PowerMgmt");
    fn call(cx, p: StopAll) -> Upid {
        cx.ops().member(&p.node)?;
        let (work, workers) = (Work::Shutdown { timeout: p.timeout, force: p.force }, count(p.workers));
        Ok(cx.ops().bulk(&cx.actor(), Bulk { worker: "stopall", work, which: here(p.vms), workers })?)
    }
}

endpoint! {
    /// Stops the CPUs of a node's guests, in the reverse of their order.
    PostSuspend = post("/nodes/{node}/suspendall"), AtNode, POWER;
    authorize: |caller, p| touches(caller, &p.vms, "VM.PowerMgmt");
    fn call(cx, p: SuspendAll) -> Upid {
        cx.ops().member(&p.node)?;
        let bulk = Bulk {
            worker: "suspendall", work: Work::Suspend, which: here(p.vms), workers: count(p.workers),
        };
        Ok(cx.ops().bulk(&cx.actor(), bulk)?)
    }
}

endpoint! {
    /// Moves a node's guests to another: those that run, while they run.
    PostMigrate = post("/nodes/{node}/migrateall"), AtNode, MIGRATE;
    authorize: |caller, p| touches(caller, &p.vms, "VM.Migrate");
    fn call(cx, p: MigrateAll) -> Upid {
        cx.ops().member(&p.node)?;
        let work = Work::Migrate { target: p.target, online: None, with_local_disks: p.with_local_disks };
        let workers = count(p.workers.or(p.maxworkers));
        Ok(cx.ops().bulk(&cx.actor(), Bulk { worker: "migrateall", work, which: here(p.vms), workers })?)
    }
}
