//! `/nodes/{node}/qemu/{vmid}/status` and below.

use super::{OneVm, asked};
use crate::framework::{Access, Json};
use std::time::Duration;
use stead_api_derive::Params;
use stead_model::{NodeName, StorageId, Upid, Vmid};
use stead_ops::guest::power::{PowerAction, SHUTDOWN_TIMEOUT, STOP_TIMEOUT};
use stead_ops::guest::view::VmCurrent;

const POWER: Access = Access::All("/vms/{vmid}", &["VM.PowerMgmt"]);

#[derive(Params)]
pub struct Start {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Over a lock; root@pam alone.
    #[param(default = "0")]
    skiplock: bool,
    /// Seconds within which it must run, or it is ended again; without it, or with 0, each step has its own limit. HA, which
    /// starts what it maintains, has limits of its own.
    #[param(min = 0)]
    timeout: Option<u64>,
}

#[derive(Params)]
pub struct Stop {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Over a lock; root@pam alone.
    #[param(default = "0")]
    skiplock: bool,
    /// Seconds that its process may take to flush its disks and end by itself, before it is killed; 10 without it.
    #[param(min = 0)]
    timeout: Option<u64>,
    /// Volumes are never switched off, so they stay as they are in any case.
    #[param(name = "keepActive", default = "0")]
    keep_active: bool,
    /// Ask graceful shutdowns that are under way to give up first.
    #[param(name = "overrule-shutdown", default = "0")]
    overrule: bool,
}

#[derive(Params)]
pub struct Shutdown {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Over a lock; root@pam alone.
    #[param(default = "0")]
    skiplock: bool,
    /// Seconds to wait for the VM's system.
    #[param(min = 0)]
    timeout: Option<u64>,
    /// Stop it if its system has not shut down in time.
    #[param(name = "forceStop", default = "0")]
    force: bool,
    /// Volumes are never switched off, so they stay as they are in any case.
    #[param(name = "keepActive", default = "0")]
    keep_active: bool,
}

#[derive(Params)]
pub struct Reboot {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Seconds to wait for the VM's system.
    #[param(min = 0)]
    timeout: Option<u64>,
}

#[derive(Params)]
pub struct Suspend {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Over a lock; root@pam alone.
    #[param(default = "0")]
    skiplock: bool,
    /// Write its memory to disk and end its process: its next start has it go on.
    #[param(default = "0")]
    todisk: bool,
    /// The storage for its memory: without it that of `vmstatestorage`, or of one of its disks.
    #[param(requires = "todisk")]
    statestorage: Option<StorageId>,
}

#[derive(Params)]
pub struct Simple {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Over a lock; root@pam alone.
    #[param(default = "0")]
    skiplock: bool,
}

fn limit(seconds: Option<u64>) -> Duration {
    seconds.map_or(SHUTDOWN_TIMEOUT, Duration::from_secs)
}

endpoint! {
    /// How a VM stands.
    Current = get("/nodes/{node}/qemu/{vmid}/status/current"), AtGuest, Access::All("/vms/{vmid}", &["VM.Audit"]);
    fn call(cx, p: OneVm) -> Json<VmCurrent> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().vm_status(&cx.actor(), p.vmid).await?))
    }
}

endpoint! {
    /// Starts a VM.
    PostStart = post("/nodes/{node}/qemu/{vmid}/status/start"), AtGuest, POWER;
    missing: &[
        "force-cpu: it is internal",
        "machine: it is internal",
        "migratedfrom: it is internal",
        "migration_network: it is internal",
        "migration_type: it is internal",
        "nets-host-mtu: it is internal",
        "stateuri: it is internal",
        "targetstorage: it is internal",
        "with-conntrack-state: it is internal",
    ];
    fn call(cx, p: Start) -> Upid {
        cx.ops().member(&p.node)?;
        let limit = p.timeout.map(Duration::from_secs);
        Ok(cx.ops().start_within(&cx.actor(), p.vmid, asked(p.skiplock), limit).await?)
    }
}

endpoint! {
    /// Stops a VM at once, as by pulling its plug.
    PostStop = post("/nodes/{node}/qemu/{vmid}/status/stop"), AtGuest, POWER;
    missing: &["migratedfrom: it is internal"];
    fn call(cx, p: Stop) -> Upid {
        cx.ops().member(&p.node)?;
        // Taken since clients send it.
        let _no_effect = p.keep_active;
        let timeout = p.timeout.map_or(STOP_TIMEOUT, Duration::from_secs);
        if p.overrule {
            cx.ops().abort_shutdowns(p.vmid);
        }
        Ok(cx.ops().power(&cx.actor(), p.vmid, PowerAction::Stop { timeout }, asked(p.skiplock)).await?)
    }
}

endpoint! {
    /// Asks a VM's system to shut down.
    PostShutdown = post("/nodes/{node}/qemu/{vmid}/status/shutdown"), AtGuest, POWER;
    fn call(cx, p: Shutdown) -> Upid {
        cx.ops().member(&p.node)?;
        // Taken since clients send it.
        let _no_effect = p.keep_active;
        let action = PowerAction::Shutdown { timeout: limit(p.timeout), force: p.force };
        Ok(cx.ops().power(&cx.actor(), p.vmid, action, asked(p.skiplock)).await?)
    }
}

endpoint! {
    /// Asks a VM's system to restart.
    PostReboot = post("/nodes/{node}/qemu/{vmid}/status/reboot"), AtGuest, POWER;
    fn call(cx, p: Reboot) -> Upid {
        cx.ops().member(&p.node)?;
        let action = PowerAction::Reboot { timeout: limit(p.timeout) };
        Ok(cx.ops().power(&cx.actor(), p.vmid, action, asked(false)).await?)
    }
}

endpoint! {
    /// Presses a VM's reset button.
    PostReset = post("/nodes/{node}/qemu/{vmid}/status/reset"), AtGuest, POWER;
    fn call(cx, p: Simple) -> Upid {
        cx.ops().member(&p.node)?;
        Ok(cx.ops().power(&cx.actor(), p.vmid, PowerAction::Reset, asked(p.skiplock)).await?)
    }
}

endpoint! {
    /// Stops a VM's CPUs, or has it go on later with its memory on disk.
    PostSuspend = post("/nodes/{node}/qemu/{vmid}/status/suspend"), AtGuest, POWER;
    fn call(cx, p: Suspend) -> Upid {
        cx.ops().member(&p.node)?;
        if p.todisk {
            let (actor, asked) = (cx.actor(), asked(p.skiplock));
            return Ok(cx.ops().suspend_to_disk(&actor, p.vmid, p.statestorage, asked).await?);
        }
        Ok(cx.ops().power(&cx.actor(), p.vmid, PowerAction::Suspend, asked(p.skiplock)).await?)
    }
}

endpoint! {
    /// Continues a VM's CPUs.
    PostResume = post("/nodes/{node}/qemu/{vmid}/status/resume"), AtGuest, POWER;
    missing: &["nocheck: it is internal"];
    fn call(cx, p: Simple) -> Upid {
        cx.ops().member(&p.node)?;
        Ok(cx.ops().power(&cx.actor(), p.vmid, PowerAction::Resume, asked(p.skiplock)).await?)
    }
}
