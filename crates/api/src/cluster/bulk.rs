//! `/cluster/bulk-action/guest`: guests of all nodes.

use crate::nodes::bulk::{MIGRATE, POWER, count, touches};
use stead_api_derive::Params;
use stead_model::{NodeName, Upid, Vmid};
use stead_ops::bulk::{Bulk, Which, Work};

/// Which guests, and how many at a time.
#[derive(Params)]
pub struct Chosen {
    /// These alone.
    vms: Vec<Vmid>,
    /// How many at a time.
    #[param(name = "max-workers", min = 1, max = 64)]
    workers: Option<u32>,
    /// The older name of `max-workers`.
    #[param(min = 1, max = 64)]
    maxworkers: Option<u32>,
}

impl Chosen {
    /// How many at a time, `default` unless something else is said.
    fn workers(&self, default: usize) -> Option<usize> {
        count(self.workers.or(self.maxworkers)).or(Some(default))
    }

    fn which(self) -> Which {
        Which { vms: self.vms.into_iter().collect(), ..Which::default() }
    }
}

#[derive(Params)]
pub struct Start {
    /// Seconds within which each must run, or it is ended again; without it each step has its own limit.
    #[param(min = 0)]
    timeout: Option<u64>,
    /// Which.
    #[param(flatten)]
    chosen: Chosen,
}

#[derive(Params)]
pub struct Shutdown {
    /// Stop a guest that has not shut down in time.
    #[param(name = "force-stop", default = "1")]
    force: bool,
    /// Seconds that each may take, unless its `startup` says `down`.
    #[param(min = 0, default = "180")]
    timeout: u64,
    /// Which.
    #[param(flatten)]
    chosen: Chosen,
}

#[derive(Params)]
pub struct Suspend {
    /// Which.
    #[param(flatten)]
    chosen: Chosen,
}

#[derive(Params)]
pub struct Migrate {
    /// Where to.
    target: NodeName,
    /// Those that run, while they run.
    online: Option<bool>,
    /// Volumes that the target has not go along with those that run, too.
    #[param(name = "with-local-disks", default = "0")]
    with_local_disks: bool,
    /// Which.
    #[param(flatten)]
    chosen: Chosen,
}

/// At a time, unless something else is said.
const WORKERS: usize = 4;

endpoint! {
    /// Starts guests, in their order.
    PostStart = post("/cluster/bulk-action/guest/start"), Anywhere, POWER;
    authorize: |caller, p| touches(caller, &p.chosen.vms, "VM.PowerMgmt");
    fn call(cx, p: Start) -> Upid {
        let work = Work::Start { timeout: p.timeout };
        let workers = p.chosen.workers(WORKERS);
        Ok(cx.ops().bulk(&cx.actor(), Bulk { worker: "bulkstart", work, which: p.chosen.which(), workers })?)
    }
}

endpoint! {
    /// Shuts guests down, in the reverse of their order.
    PostShutdown = post("/cluster/bulk-action/guest/shutdown"), Anywhere, POWER;
    authorize: |caller, p| touches(caller, &p.chosen.vms, "VM.PowerMgmt");
    fn call(cx, p: Shutdown) -> Upid {
        let work = Work::Shutdown { timeout: p.timeout, force: p.force };
        let workers = p.chosen.workers(WORKERS);
        Ok(cx.ops().bulk(&cx.actor(), Bulk { worker: "bulkshutdown", work, which: p.chosen.which(), workers })?)
    }
}

endpoint! {
    /// Stops the CPUs of guests, in the reverse of their order.
    PostSuspend = post("/cluster/bulk-action/guest/suspend"), Anywhere, POWER;
    missing: &[
        "statestorage: suspending to disk is not supported yet",
        "to-disk: suspending to disk is not supported yet",
    ];
    authorize: |caller, p| touches(caller, &p.chosen.vms, "VM.PowerMgmt");
    fn call(cx, p: Suspend) -> Upid {
        let workers = p.chosen.workers(WORKERS);
        let bulk = Bulk { worker: "bulksuspend", work: Work::Suspend, which: p.chosen.which(), workers };
        Ok(cx.ops().bulk(&cx.actor(), bulk)?)
    }
}

endpoint! {
    /// Moves guests to a node.
    PostMigrate = post("/cluster/bulk-action/guest/migrate"), Anywhere, MIGRATE;
    authorize: |caller, p| touches(caller, &p.chosen.vms, "VM.Migrate");
    fn call(cx, p: Migrate) -> Upid {
        let work = Work::Migrate { target: p.target, online: p.online, with_local_disks: p.with_local_disks };
        let workers = p.chosen.workers(1);
        Ok(cx.ops().bulk(&cx.actor(), Bulk { worker: "bulkmigrate", work, which: p.chosen.which(), workers })?)
    }
}
