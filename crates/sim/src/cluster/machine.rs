//! What happens on a machine: power, the fence process and its commands, guests' processes.

use super::Plant;
use super::node::Copy;
use super::tasks::Task;
use super::world::{Call, Event, World};
use crate::scenario::Kind;
use std::time::Duration;
use stead_membership::{HolderCommand, Outcome as Granted, Report, RunError};
use stead_model::{Epoch, Vmid};

/// After a guest that could not be continued for want of a lease.
const ASKS_AGAIN: Duration = Duration::from_millis(500);

impl World {
    pub fn power_on(&mut self, node: usize) {
        self.note(|| format!("n{}: has power, and boots", node + 1));
        self.conf_starts(node);
        self.nodes[node].power_on(self.now, &self.store);
        self.fence(node);
        self.begin_ticking(node);
    }

    pub fn begin_ticking(&mut self, node: usize) {
        let life = self.nodes[node].lives;
        self.after(Duration::from_millis(1), Event::Tick { node, life });
        self.conf_began(node);
    }

    /// The machine is reset, and boots some time later.
    pub fn reset(&mut self, node: usize) {
        self.resets += 1;
        self.lose_power(node);
        // In a scenario that leaves nothing to chance a machine stays off until it is told otherwise.
        if self.scene.is_none() || !self.plan.calm {
            let time = self.ms(node, 2000, 12_000);
            self.after(time, Event::PowerOn { node });
        }
    }

    /// Power goes, and with it whatever runs there.
    pub fn lose_power(&mut self, node: usize) {
        let lost: Vec<Vmid> =
            self.nodes[node].copies.iter().filter(|(_, c)| c.ran && !c.lost).map(|(v, _)| *v).collect();
        for vmid in lost {
            self.tell_guest(Kind::Lost, vmid, node);
        }
        self.nodes[node].power_off();
    }

    /// A call to the fence process; none if there is no such process.
    pub fn ask_fenced(&mut self, node: usize, call: Call) -> bool {
        let Some(life) = self.nodes[node].fenced.as_ref().map(|f| f.life) else { return false };
        self.after(Duration::from_micros(100), Event::Call { node, life, call });
        true
    }

    pub fn call(&mut self, node: usize, life: u64, call: Call) {
        let now = self.now;
        let n = &mut self.nodes[node];
        let at = n.clock(now);
        let Some(fenced) = n.fenced.as_mut().filter(|f| f.life == life) else {
            if let Call::Run { task, .. } = call {
                self.answer_run(node, task, false, Duration::ZERO);
            }
            return;
        };
        match call {
            Call::Renew { nonce, outcome: Granted::Granted { lease_ms, drain_ms, watchdog_ms } } => {
                let ms = Duration::from_millis;
                let nonce =
                    if self.plan.plant == Plant::LeaseFromAnswer { fenced.holder.nonce(at) } else { nonce };
                let renewed = fenced.holder.renew(at, nonce, ms(lease_ms), ms(drain_ms), ms(watchdog_ms));
                if let (Ok(()), Some(left), Some(times)) =
                    (renewed, fenced.holder.lease_left(at), fenced.holder.times())
                {
                    n.fenced_itself = false;
                    n.times = times;
                    n.lease_ends = n.lease_ends.max(n.when(at + left));
                    self.renewed(node, ms(lease_ms));
                }
            }
            Call::Renew { .. } => {}
            Call::Shorten { revision, most } => {
                let skips = self.plan.plant == Plant::UnmarkUnshortened;
                let shortened = skips || fenced.holder.shorten(at, most).is_ok();
                if let (true, Some(left), Some(times)) =
                    (shortened, fenced.holder.lease_left(at), fenced.holder.times())
                {
                    n.times = times;
                    n.lease_ends = n.when(at + left);
                    self.unmark(node, revision);
                }
            }
            Call::Run { vmid, epoch, task } => {
                let begun = fenced.holder.run(at, vmid, epoch);
                match begun {
                    Ok(HolderCommand::Cont { thaw, .. }) => self.cont(node, vmid, epoch, thaw, task),
                    Err(RunError::NoLease) if self.awaits(node, task.as_ref()) => {
                        self.after(
                            ASKS_AGAIN,
                            Event::Call { node, life, call: Call::Run { vmid, epoch, task } },
                        );
                    }
                    _ => self.answer_run(node, task, false, Duration::ZERO),
                }
            }
        }
        self.fence(node);
    }

    /// Whether the daemon that has asked to continue a guest still waits for a lease.
    fn awaits(&self, node: usize, task: Option<&(u64, Task)>) -> bool {
        task.is_some_and(|(life, task)| self.now < task.until && self.daemon_is(node, *life))
    }

    fn answer_run(&mut self, node: usize, task: Option<(u64, Task)>, ok: bool, after: Duration) {
        if let Some((life, task)) = task {
            self.after(after + Duration::from_micros(100), Event::Resume { node, life, task, ok });
        }
    }

    /// The fence process continues a guest. The command takes effect a little later, whatever happens to the sender.
    fn cont(&mut self, node: usize, vmid: Vmid, epoch: Epoch, thaw: bool, task: Option<(u64, Task)>) {
        let delay = self.ms(node, 1, 30);
        let at = self.now + delay;
        let n = &mut self.nodes[node];
        if let Some(entry) = n.record.get_mut(&vmid) {
            entry.1 = false;
        }
        let boots = n.boots;
        let Some(copy) = n.copies.get_mut(&vmid).filter(|c| c.epoch == epoch) else {
            return self.answer_run(node, task, false, delay);
        };
        copy.frozen = false;
        copy.cont_at = at;
        self.thaws += u32::from(thaw);
        self.note(|| {
            let how = if thaw { "thawed and continued" } else { "continued" };
            format!("n{}: guest {vmid} of epoch {epoch} is {how}", node + 1)
        });
        self.at(at, Event::Cont { node, boots, vmid, epoch, thaw });
        self.answer_run(node, task, true, delay);
    }

    pub fn thaw_failed(&mut self, node: usize, vmid: Vmid) {
        let at = self.nodes[node].clock(self.now);
        if let Some(fenced) = self.nodes[node].fenced.as_mut() {
            fenced.holder.thaw_failed(at, vmid);
            self.fence(node);
        }
    }

    /// Lets the fence process do what is due.
    pub fn fence(&mut self, node: usize) {
        loop {
            let now = self.now;
            let n = &mut self.nodes[node];
            let at = n.clock(now);
            let Some(fenced) = n.fenced.as_mut() else { return };
            let commands = fenced.holder.step(at);
            let wake = fenced.holder.next_wake(at);
            fenced.timer += 1;
            let (life, timer) = (fenced.life, fenced.timer);
            if let Some(wake) = wake {
                let wake = n.when(wake);
                self.at(wake, Event::Fence { node, life, timer });
            }
            if commands.is_empty() {
                break;
            }
            for command in commands {
                self.carry_out(node, command);
            }
        }
    }

    fn carry_out(&mut self, node: usize, command: HolderCommand) {
        match command {
            HolderCommand::MakeSafe { vmid, .. } => {
                let takes = self.ms(node, 5, 300);
                let (now, job) = (self.now, self.next);
                let n = &mut self.nodes[node];
                let at = n.clock(now);
                let Some(fenced) = n.fenced.as_mut() else { return };
                let Some(copy) = n.copies.get(&vmid) else {
                    return fenced.holder.report(at, vmid, Report::Gone);
                };
                fenced.jobs.insert(vmid, job);
                let life = fenced.life;
                // QEMU carries out its commands in their order.
                let done = (now + takes).max(copy.cont_at + Duration::from_millis(1));
                self.at(done, Event::Job { node, life, vmid, job });
            }
            HolderCommand::Reset { .. } if self.plan.plant == Plant::NoReset => {}
            HolderCommand::Reset { unverified } => {
                self.note(|| {
                    format!("n{}: is reset, since guests {unverified:?} are not verified safe", node + 1)
                });
                self.tell(Kind::SelfFence, None, Some(node), Some("reset".to_owned()));
                self.reset(node);
            }
            HolderCommand::FeedWatchdog { .. } if self.plan.plant == Plant::NoReset => {}
            HolderCommand::FeedWatchdog { timeout } => {
                let factor = if self.plan.plant == Plant::SlowWatchdog { 4 } else { 1 };
                self.feed(node, timeout * factor);
            }
            HolderCommand::Cont { .. } => {}
        }
    }

    fn feed(&mut self, node: usize, timeout: Duration) {
        let n = &mut self.nodes[node];
        if n.on {
            n.watchdog = Some(self.now + timeout);
            let boots = n.boots;
            self.after(timeout, Event::Watchdog { node, boots });
        }
    }

    pub fn made_safe(&mut self, node: usize, life: u64, vmid: Vmid, job: u64) {
        let now = self.now;
        let n = &mut self.nodes[node];
        let at = n.clock(now);
        let Some(fenced) = n.fenced.as_mut().filter(|f| f.life == life && f.jobs.get(&vmid) == Some(&job))
        else {
            return;
        };
        let (unverified, mut broken) = (self.plan.plant == Plant::StopUnverified, None);
        let report = match n.copies.get_mut(&vmid) {
            None => Report::Gone,
            // It answers nothing, so nothing is reported until it does.
            Some(copy) if copy.hung => {
                return self.after(Duration::from_millis(500), Event::Job { node, life, vmid, job });
            }
            // Acknowledged is not verified: what is being sent may be continued by QEMU itself.
            Some(copy) if unverified && copy.sending.is_some() => {
                copy.running = false;
                Report::Safe
            }
            Some(copy) => {
                (copy.running, copy.frozen) = (false, true);
                broken = copy.sending.take().map(|s| s.lives.0);
                n.record.entry(vmid).and_modify(|entry| entry.1 = true);
                Report::Safe
            }
        };
        fenced.holder.report(at, vmid, report);
        if let Some(life) = broken {
            self.after(Duration::from_millis(1), Event::Streamed { node, life, vmid, ok: false });
        }
        self.note(|| match report {
            Report::Safe => format!("n{}: guest {vmid} is paused and frozen", node + 1),
            Report::Gone | Report::Failed => format!("n{}: guest {vmid} has no process", node + 1),
        });
        if report == Report::Safe {
            self.paused(node, vmid);
        }
        self.fence(node);
    }

    fn paused(&mut self, node: usize, vmid: Vmid) {
        let first = !std::mem::replace(&mut self.nodes[node].fenced_itself, true);
        if first {
            self.tell(Kind::SelfFence, None, Some(node), Some("pause".to_owned()));
        }
        if self.nodes[node].copies.get(&vmid).is_some_and(|c| c.ran) {
            self.tell_guest(Kind::Pause, vmid, node);
        }
    }

    /// A guest's process was started, with stopped CPUs.
    pub fn add_copy(&mut self, node: usize, vmid: Vmid, epoch: Epoch) {
        let copy = Copy {
            epoch,
            running: false,
            frozen: false,
            hung: false,
            cont_at: Duration::ZERO,
            ran: false,
            lost: false,
            sending: None,
            sent: false,
            incoming: None,
            received: false,
        };
        self.nodes[node].copies.insert(vmid, copy);
    }

    /// Ends a guest's process; `told` is what that is in the story.
    pub fn destroy(&mut self, node: usize, vmid: Vmid, told: Option<Kind>) {
        let Some((ran, lost)) = self.nodes[node].copies.get(&vmid).map(|c| (c.ran, c.lost)) else {
            return self.nodes[node].destroy(self.now, vmid);
        };
        self.nodes[node].destroy(self.now, vmid);
        let told = if lost { Some(Kind::Destroyed) } else { told };
        if let Some(kind) = told.filter(|_| ran) {
            self.tell_guest(kind, vmid, node);
        }
    }
}
