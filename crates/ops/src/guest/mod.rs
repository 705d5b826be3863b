//! Guests: what is known of one, and what may be done with it now.

pub(crate) mod addresses;
pub mod agent;
pub mod along;
pub mod arrive;
mod balloon;
pub mod carry;
pub mod clone;
pub mod cloudinit;
pub mod config;
pub mod console;
pub mod copies;
pub mod create;
pub mod depart;
pub mod destroy;
pub mod fetch;
mod held;
mod hook;
mod hotplug;
mod images;
pub mod import;
pub mod incoming;
pub mod lock;
pub(crate) mod loose;
pub mod migrate;
pub mod move_disk;
mod note;
pub mod places;
pub mod power;
pub mod preconditions;
mod quick;
mod reassign;
pub mod reconcile;
mod snapshot_memory;
pub mod snapshots;
pub(crate) mod spelled;
mod suspend;
pub mod template;
mod tunnel;
pub mod view;

use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use stead_driver::guest::{GuestProcess, RunState};
use stead_guest::request::{Facts, Process, Request, Verdict, decide};
use stead_model::{Ownership, ServiceId, Vmid, paths};

/// How a request was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// By the HA agent, which carries out what HA decided.
    pub by_ha: bool,
    /// Over a lock (root@pam alone).
    pub skiplock: bool,
}

/// What the process's state means for requests.
pub fn process_of(state: Option<RunState>) -> Process {
    match state {
        None => Process::Absent,
        Some(RunState::Running | RunState::Unresponsive) => Process::Running,
        Some(RunState::Inmigrate | RunState::Received | RunState::Postmigrate | RunState::Serving) => {
            Process::Migrating
        }
        Some(RunState::Prelaunch | RunState::Paused | RunState::Shutdown) => Process::Paused,
    }
}

impl Ops {
    /// Whether HA maintains the guest: it is a resource whose requested state is not *ignored*.
    pub fn ha_maintains(&self, vmid: Vmid) -> Result<bool, OpsError> {
        let (text, _) = self.file(paths::HA_RESOURCES)?;
        crate::ha::maintains(&text, vmid)
    }

    /// What is known of a guest of this node.
    pub async fn facts(&self, guest: &GuestAt) -> Result<Facts, OpsError> {
        let config = crate::guest::config::parse(&guest.config.value)?;
        let process = self.guests.state(guest.vmid).await;
        Ok(Facts {
            vmid: guest.vmid,
            process: process_of(process.map(|p| p.state)),
            lock: config.current.lock().map(str::to_owned),
            template: config.current.template(),
            protection: config.current.protection(),
            ha: self.ha_maintains(guest.vmid)?,
        })
    }

    /// Decides a request on a guest of this node. `Ok(true)`: go on; `Ok(false)`: nothing to do.
    pub async fn admit(&self, guest: &GuestAt, request: Request, asked: Asked) -> Result<Verdict, OpsError> {
        let facts = self.facts(guest).await?;
        Ok(decide(&facts, request, asked.skiplock, asked.by_ha))
    }

    /// The guest, checked to be this node's by a read that is as new as any commit before the call, with this
    /// node a member in this boot. Nothing is started or handed over on an older view.
    pub async fn own_guest(&self, vmid: Vmid) -> Result<GuestAt, OpsError> {
        self.conf.barrier().await?;
        let guest = self.guest_at(vmid)?;
        let node = self.node_record(&self.me.name)?;
        if guest.own.value.owner != self.me.name {
            let owner = &guest.own.value.owner;
            return Err(OpsError::failed(format!("guest {vmid} is not on this node but on '{owner}'")));
        }
        if node.value.uuid != self.me.uuid
            || node.value.state.is_lost()
            || *node.value.state.boot() != self.me.boot
        {
            return Err(OpsError::failed(format!(
                "node '{}' has not re-entered the cluster yet: its guests can't be touched",
                self.me.name
            )));
        }
        Ok(guest)
    }

    /// Commits what the ownership record of one of our guests says of its process, over the record as read. *Running*
    /// is recorded only while this node is a member in this very boot: a node that is given up starts nothing.
    pub async fn mark(&self, guest: &GuestAt, running: bool, armed: bool) -> Result<(), OpsError> {
        // That it may run is committed also where the record says so already, of a process whose end nobody has recorded: the commit
        // is what says that this node may run it still.
        if !running && !guest.own.value.running && guest.own.value.armed == armed {
            return Ok(());
        }
        let new = Ownership { running, armed, ..guest.own.value.clone() };
        let mut txn =
            store::txn("root@pam", format!("guest {}: running {running}, armed {armed}", guest.vmid));
        store::put_over(
            &mut txn,
            &paths::ownership(guest.vmid),
            Some(guest.own.revision),
            store::bytes(&new)?,
        );
        if running {
            let me = self.node_record(&self.me.name)?;
            if me.value.state.is_lost() || *me.value.state.boot() != self.me.boot {
                return Err(OpsError::failed(format!(
                    "node '{}' was given up by the cluster and has not entered it again yet",
                    self.me.name
                )));
            }
            txn.checks.push(stead_conf::Check::Revision(paths::node(&self.me.name), me.revision));
        }
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// The process of a guest of this node, or the error that it does not run.
    pub async fn running(&self, vmid: Vmid) -> Result<GuestProcess, OpsError> {
        self.guests.state(vmid).await.ok_or_else(|| OpsError::failed(format!("VM {vmid} not running")))
    }

    /// Refuses `skiplock` to all but root@pam.
    pub fn check_skiplock(actor: &Actor, skiplock: bool) -> Result<(), OpsError> {
        if skiplock && !actor.root {
            return Err(OpsError::invalid("skiplock", "Only root may use this option."));
        }
        Ok(())
    }
}

/// A VM's name as an HA resource.
pub fn service(vmid: Vmid) -> ServiceId {
    ServiceId { kind: stead_model::GuestKind::Qemu, vmid }
}
