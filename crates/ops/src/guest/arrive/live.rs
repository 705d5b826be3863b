//! A VM that comes from another cluster while it runs there: a process that waits for its memory, and lends its disks meanwhile.
//!
//! The process is this task's, which has the VM's mutex from before the process is made until the VM runs or is nothing. Whoever finds
//! the process without the task ends it: the record says that the VM does not run. It says so until the other side has given the VM
//! away, and the process is continued only after it says that it does.

use super::{Agreed, Arriving, broke};
use crate::OpsError;
use crate::guest::tunnel::join;
use std::path::PathBuf;
use stead_driver::guest::{Incoming, RunState};
use stead_guest::carried;
use stead_guest::clones::MAKING;
use stead_guest::remote::{Channel, Runs, Sent, unknown_cpu};
use stead_model::Epoch;
use stead_model::vmconfig::VmConfig;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;

/// Channels at once besides one for each disk: its memory's, and some that take another's place.
const SPARE: usize = 4;

/// A process that waits, with what makes it this task's alone.
pub(super) struct Waiting {
    lock: OwnedMutexGuard<()>,
    /// Of the VM that it was made for.
    pub(super) epoch: Epoch,
    /// The fence process guards it.
    pub(super) guarded: bool,
    paused: bool,
    /// Nobody writes its disks any more.
    settled: bool,
    /// What carries its disks and its memory.
    streams: JoinSet<()>,
}

impl Waiting {
    /// Its mutex. Nothing comes any more.
    pub(super) fn into_lock(self) -> OwnedMutexGuard<()> {
        self.lock
    }
}

/// What the process has in common with that which runs.
pub(super) fn incoming(runs: &Runs) -> Incoming {
    Incoming { cpu: runs.cpu.clone(), ..Incoming::stream(runs.machine.as_str(), runs.accel.as_str()) }
}

/// What of the volumes does not fit to how the VM runs.
pub(super) fn mirrored_otherwise(config: &VmConfig, sent: &[Sent], runs: bool) -> Vec<String> {
    let mut why = vec![];
    for s in sent {
        let written = if runs { carried::written(&config.current, &s.volume).ok().flatten() } else { None };
        match (&s.disk, written) {
            (None, None) => {}
            (Some((key, size)), Some(disk)) if *key == disk && *size > 0 => {}
            _ => why.push(format!("volume '{}' comes in another way than the VM writes it", s.volume)),
        }
    }
    why
}

impl Arriving<'_> {
    /// What speaks against taking a VM that runs: whoever sends it has it run here.
    pub(super) fn live_obstacles(&self, config: &VmConfig, runs: &Runs) -> Vec<String> {
        let mut why = vec![];
        // What it runs with counts more than what its configuration says.
        for right in ["VM.PowerMgmt", "VM.Config.CPU", "VM.Config.HWType"] {
            let refused = self.actor.require(&format!("/vms/{}", self.vmid), &[right]).err();
            why.extend(refused.map(|e| e.to_string()));
        }
        why.extend(runs.obstacle());
        let model = config.current.cpu().ok().and_then(|cpu| cpu.model).filter(|_| runs.cpu.is_none());
        why.extend(model.and_then(|model| unknown_cpu(&model)));
        let free =
            self.ops.status.node(&self.ops.me.name).map(|r| r.stats.maxmem.saturating_sub(r.stats.mem));
        if let (Ok(wanted), Some(free)) = (config.current.memory(), free)
            && wanted.0 << 20 > free
        {
            why.push(format!(
                "node '{}' has {} MiB of memory free, and the VM has {} MiB",
                self.ops.me.name,
                free >> 20,
                wanted.0
            ));
        }
        why
    }

    /// Has a process wait for the memory.
    pub(super) async fn wait(&self, agreed: &Agreed) -> Result<Waiting, OpsError> {
        let (ops, vmid) = (self.ops, self.vmid);
        let order = || OpsError::failed("the other cluster said 'wait' out of its turn");
        let runs = agreed.runs.as_ref().filter(|_| agreed.waiting.is_none()).ok_or_else(order)?;
        agreed.check_come()?;
        let lock = ops.guest_locks.lock(vmid).await?;
        let guest = ops.own_guest(vmid).await?;
        if crate::guest::config::parse(&guest.config.value)?.current.lock() != Some(MAKING) {
            return Err(OpsError::failed(format!("somebody has unlocked VM {vmid} in the middle")));
        }
        let guarded = ops.ha_maintains(vmid)?;
        let lends: Vec<String> = agreed.mirrored.values().cloned().collect();
        ops.launch_waiting(&guest, incoming(runs), (guarded, false), &lends).await?;
        self.cx.log(format!("a process waits for the memory of VM {vmid}"));
        let settled = lends.is_empty();
        let epoch = guest.own.value.epoch;
        Ok(Waiting { lock, epoch, guarded, paused: runs.paused, settled, streams: JoinSet::new() })
    }

    /// Joins a channel with the process that waits.
    pub(super) fn take_stream(
        &self,
        agreed: &mut Agreed,
        channel: Channel,
        io: DuplexStream,
    ) -> Result<(), OpsError> {
        let Some(waiting) = &mut agreed.waiting else {
            return Err(OpsError::failed(format!("nothing awaits the channel '{}'", channel.name())));
        };
        while waiting.streams.try_join_next().is_some() {}
        if waiting.streams.len() >= agreed.mirrored.len() + SPARE {
            return Err(OpsError::failed("the other cluster opens more channels than it has disks"));
        }
        let (ops, vmid) = (self.ops.clone(), self.vmid);
        waiting.streams.spawn(async move {
            let carried = async {
                let path: PathBuf = match channel {
                    Channel::Memory => ops.guests.migration_inlet(vmid).await?,
                    _ => ops.guests.disk_inlet(vmid).await?,
                };
                let near = UnixStream::connect(&path).await.map_err(broke)?;
                join(near, io).await
            };
            // Whoever sends finds that it has ended.
            let done: Result<(), OpsError> = carried.await;
            if let Err(e) = done {
                tracing::info!("guest {vmid}: a channel '{}' of another cluster ended: {e}", channel.name());
            }
        });
        Ok(())
    }

    /// Nobody writes the disks of the process any more, and what was written is on disk.
    pub(super) async fn settle(&self, agreed: &mut Agreed) -> Result<(), OpsError> {
        let made = agreed.made.iter().flatten().enumerate();
        let volumes: Vec<_> =
            made.filter(|(n, _)| agreed.mirrored.contains_key(n)).map(|(_, v)| v.clone()).collect();
        let Some(waiting) = agreed.waiting.as_mut().filter(|w| !w.settled) else {
            return Err(OpsError::failed("the other cluster said 'settle' out of its turn"));
        };
        self.ops.guests.end_lending(self.vmid).await?;
        self.ops.keep_on_disk(&volumes).await?;
        waiting.settled = true;
        Ok(())
    }

    /// Refuses a process that could not go on.
    pub(super) async fn check_received(&self, waiting: &Waiting) -> Result<(), OpsError> {
        if !waiting.settled {
            return Err(OpsError::failed("its disks were not settled"));
        }
        self.ops.await_received(self.vmid).await?;
        match self.ops.running(self.vmid).await?.state {
            RunState::Received => Ok(()),
            other => {
                Err(OpsError::failed(format!("its process is {other:?}, and has not received its memory")))
            }
        }
    }

    /// It is this node's by a commit: has it go on, as it went on there. What can't be continued now, reconciliation continues.
    pub(super) async fn go_on(&self, waiting: Waiting) {
        let (ops, vmid) = (self.ops, self.vmid);
        let went_on = async {
            match (waiting.paused, waiting.guarded) {
                (true, _) => ops.guests.pause(vmid).await?,
                (false, true) => ops.run_under_lease(vmid, waiting.epoch).await?,
                (false, false) => ops.guests.resume(vmid).await?,
            }
            Ok::<(), OpsError>(())
        };
        match went_on.await {
            Ok(()) => self.cx.log(format!("VM {vmid} goes on here")),
            Err(e) => self.cx.warn(format!("VM {vmid} is here, and could not be continued yet: {e}")),
        }
        ops.flush.now().await;
    }
}
