//! Brings processes, fence process and records of this node's guests together again: after a restart of the
//! daemon, after a crash of a guest, after a change of what HA maintains.
//!
//! Every step rests on a read that is as new as any commit before it; without quorum nothing is decided.

use super::fetch::may_serve;
use super::service;
use crate::store::{self, GuestAt};
use crate::{Ops, OpsError};
use std::sync::Arc;
use stead_driver::fence::Registration;
use stead_driver::guest::{GuestError, GuestProcess, RunState};
use stead_guest::copy::{Claim, claim};
use stead_guest::saved;
use stead_model::{Epoch, NodeName, Ownership, Vmid, paths};

/// What to do with a process, or with a record that says *running*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All is well.
    Nothing,
    /// The process is an old copy: SIGKILL, never a thaw or a word before.
    Destroy,
    /// A copy that waits for its hand-over.
    Await,
    /// The guest is its target's, which fetches memory from it: it stays until all is fetched.
    Serve,
    /// It had sent its state, or not been continued yet, when its daemon ended: take it back, and run it.
    Reclaim,
    /// HA maintains it and it is not armed, or it is armed and the fence process does not know it: register it,
    /// then record it.
    Arm,
    /// The record says *running*, and no process is there.
    RecordStopped,
}

/// A process, as [`decide`] needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Where it stands.
    pub state: RunState,
    /// The ownership that it was launched under.
    pub epoch: Epoch,
    /// It was stopped to be fetched from, and has not run since.
    pub stands: bool,
}

/// Decides for one guest on node `me`. `guarded`: the fence process knows it under its epoch. `is_saved`: it is to go on with its memory
/// on disk.
pub fn decide(
    process: Option<Seen>,
    own: Option<&Ownership>,
    me: &NodeName,
    ha: bool,
    guarded: bool,
    is_saved: bool,
) -> Step {
    let Some(Seen { state, epoch, stands }) = process else {
        return match own {
            Some(o) if o.owner == *me && o.running => Step::RecordStopped,
            _ => Step::Nothing,
        };
    };
    match (claim(own, me, epoch), own) {
        (Claim::Owner, Some(o)) => match state {
            // A copy that waited for a hand-over which never came; the guest came here in another way.
            RunState::Inmigrate | RunState::Received | RunState::Postmigrate if !o.running => Step::Destroy,
            // What it has may be of another time: of a live move that came to nothing. What is on disk is whole, and is read anew.
            RunState::Inmigrate | RunState::Received if is_saved => Step::Destroy,
            RunState::Received | RunState::Postmigrate => Step::Reclaim,
            // It goes over after the commit alone, which this node has not heard of yet.
            RunState::Serving => Step::Nothing,
            // A start whose daemon ended half-way: it never ran, and whoever wants it running starts it again.
            RunState::Prelaunch => Step::Destroy,
            _ if ha && !o.armed => Step::Arm,
            // A fence process that lost its record would leave the guest unguarded while others trust that it is not.
            _ if o.armed && !guarded => Step::Arm,
            // What HA no longer maintains stays guarded until it stops: a guard is no harm.
            _ => Step::Nothing,
        },
        (Claim::Heir, _) => Step::Await,
        // Also while it does not answer: it is ended by whoever sees what it serves.
        (Claim::Old, own) if may_serve(state, epoch, stands, own, me) => Step::Serve,
        (Claim::Owner | Claim::Old, _) => Step::Destroy,
    }
}

impl Ops {
    /// Reconciles every guest of this node once. Guests in the middle of a request are passed over. Says whether it did: a
    /// node that has not entered the cluster in this boot decides nothing.
    pub async fn reconcile(self: &Arc<Self>) -> Result<bool, OpsError> {
        self.conf.barrier().await?;
        let member = self.node_record(&self.me.name)?.value;
        if member.state.is_lost() || *member.state.boot() != self.me.boot {
            return Ok(false);
        }
        let processes = self.guests.list().await;
        let mut vmids: Vec<Vmid> = processes.iter().map(|p| p.vmid).collect();
        let owned = self.conf.view(store::guests);
        let locked = self.conf.view(super::lock::held);
        let due = |v: &Vmid, o: &Ownership| o.owner == self.me.name && (o.running || locked.contains(v));
        vmids.extend(owned.iter().filter(|(v, o)| due(v, o)).map(|(v, _)| *v));
        vmids.extend(self.conf.view(|t| super::loose::all_of(t, &self.me.name)));
        vmids.sort_unstable();
        vmids.dedup();
        for vmid in vmids {
            let Some(lock) = self.guest_locks.try_lock(vmid) else { continue };
            // Asked under the guest's mutex, which whoever registers or forgets it holds.
            let guarded = match self.fence.status().await {
                Ok(status) => status.guests.iter().find(|g| g.0 == vmid).map(|g| g.1),
                Err(e) => return Err(e.into()),
            };
            match self.reconcile_one(vmid, guarded).await {
                Ok(Some(ended)) if super::hook::has_script(&ended) => {
                    let ops = self.clone();
                    // Beside the others, which need not wait for its script.
                    tokio::spawn(async move {
                        ops.hook_after_end(&ended).await;
                        drop(lock);
                    });
                }
                Ok(_) => {
                    if let Err(e) = self.free_loose_unless_awaited(vmid).await {
                        tracing::warn!("{e}");
                    }
                }
                Err(e) => tracing::warn!("guest {vmid}: could not be reconciled: {e}"),
            }
        }
        Ok(true)
    }

    /// Under the guest's mutex: everything is read afresh. The guest, if its end was recorded.
    async fn reconcile_one(
        self: &Arc<Self>,
        vmid: Vmid,
        guarded: Option<Epoch>,
    ) -> Result<Option<GuestAt>, OpsError> {
        let process = self.guests.state(vmid).await;
        let own = self.ownership(vmid)?;
        let guest = own.as_ref().map(|_| self.guest_at(vmid)).transpose()?;
        let owns = own.as_ref().is_some_and(|o| o.owner == self.me.name);
        let ha = self.ha_maintains(vmid)?;
        let seen = process.as_ref().map(|p| Seen { state: p.state, epoch: p.epoch, stands: p.stands });
        let guarded = guarded.is_some() && guarded == process.as_ref().map(|p| p.epoch);
        let is_saved = guest.as_ref().is_some_and(super::suspend::is_saved);
        let step = decide(seen, own.as_ref(), &self.me.name, ha, guarded, is_saved);
        if !matches!(step, Step::Nothing | Step::Await) {
            tracing::info!("guest {vmid} ({}): {step:?}", service(vmid));
        }
        match (step, process, guest) {
            (Step::Destroy, Some(_), Some(g)) if is_saved && owns => {
                // That its memory on disk is of no use any more may be proposed, and on its way: only what can't be committed any more is
                // known not to be.
                self.shut_out(&g).await?;
                self.destroy_copy(vmid).await?;
                if g.own.value.running {
                    self.resume_moved(vmid);
                }
            }
            (Step::Destroy, Some(_), _) => self.destroy_copy(vmid).await?,
            (Step::Serve, Some(_), _) => self.serve(vmid),
            (Step::Await, Some(p), Some(g)) => self.await_handover(vmid, p.epoch, g.own.value.owner),
            (Step::Reclaim, Some(p), Some(g)) => {
                if p.state == RunState::Received {
                    self.see_it_fetched(vmid, p.epoch);
                }
                self.reclaim(g, p.state).await?;
            }
            (Step::Arm, Some(p), Some(g)) => self.arm(&g, &p).await?,
            // It was moved here, or was to go on when its daemon ended.
            (Step::RecordStopped, None, Some(g)) if super::suspend::is_saved(&g) => self.resume_moved(vmid),
            (Step::RecordStopped, None, Some(g)) => {
                self.fence.forget(vmid).await?;
                self.mark(&g, false, false).await?;
                // The task that held its lock has ended with the node.
                if let Err(e) = self.free_void_lock(&self.guest_at(vmid)?).await {
                    tracing::warn!("guest {vmid}: its lock is looked at again: {e}");
                }
                return Ok(Some(g));
            }
            (Step::Nothing, process, Some(g)) if owns => {
                self.free_void_lock(&g).await?;
                if let Some(process) = process {
                    self.see_it_fetched(vmid, process.epoch);
                    self.true_up_by_and_by(&g, process.state).await;
                    if process.state == RunState::Running {
                        self.limit_again(&g).await;
                    }
                }
            }
            _ => {}
        }
        Ok(None)
    }

    /// A limit of CPUs goes when a guest is made safe or is to be stopped, and whatever came of that, it is set again here.
    async fn limit_again(&self, guest: &GuestAt) {
        let text = &guest.config.value;
        let limited = super::config::parse(text).is_ok_and(|c| c.current.get("cpulimit").is_some());
        if limited
            && self.lease.borrow().held
            && let Err(e) = self.guests.tune(guest.vmid, "cpulimit", text).await
        {
            tracing::debug!(vmid = %guest.vmid, "its limit of CPUs is not set again now: {e}");
        }
    }

    /// Ends an old copy.
    pub(super) async fn destroy_copy(&self, vmid: Vmid) -> Result<(), OpsError> {
        match self.guests.kill(vmid).await {
            Ok(()) | Err(GuestError::NotRunning(_)) => {
                self.forget_fetching(vmid);
                Ok(self.fence.forget(vmid).await?)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The daemon ended between *completed* and the outcome of its proposal, which may still be on its way. Writing
    /// the record anew, under the same epoch, decides: the proposal names the revision that it was built on, so either
    /// this commits and the proposal never can, or it finds the guest handed over.
    pub(super) async fn reclaim(&self, guest: GuestAt, state: RunState) -> Result<(), OpsError> {
        self.take_back(&guest).await?;
        // One that has sent its state may be held before its end. One that has received it may fetch what is left: what it fetches by is
        // left alone.
        if state != RunState::Received {
            self.guests.cancel_migration(guest.vmid).await?;
        }
        if guest.own.value.armed {
            self.run_under_lease(guest.vmid, guest.own.value.epoch).await
        } else {
            Ok(self.guests.resume(guest.vmid).await?)
        }
    }

    /// Writes the record and the configuration anew, without a lock: no proposal that was built on them can be committed
    /// any more.
    pub(super) async fn take_back(&self, guest: &GuestAt) -> Result<(), OpsError> {
        let mut txn =
            store::txn("root@pam", format!("guest {}: taken back after a broken migration", guest.vmid));
        let record = store::bytes(&guest.own.value)?;
        store::put_over(&mut txn, &paths::ownership(guest.vmid), Some(guest.own.revision), record);
        let mut config = super::config::parse(&guest.config.value)?;
        config.current.remove("lock");
        // The process has it all: what was written of it, or read by it, is of no use any more.
        let memory = saved::forget(&mut config);
        self.leave(&mut txn, guest.vmid, memory.as_slice())?;
        store::put_over(&mut txn, &guest.path(), Some(guest.config.revision), config.to_string());
        self.conf.view(|t| super::lock::release(t, guest.vmid, &mut txn));
        self.conf.transact(txn).await?;
        self.free_left(guest.vmid).await;
        Ok(())
    }

    /// HA has taken the running guest under its care: the fence process first, then the record. *Armed* says that the
    /// fence process can stop it, so a guest whose state nobody knows is not armed.
    async fn arm(&self, guest: &GuestAt, process: &GuestProcess) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        let registration = self.guests.prepare(vmid, process.epoch).await?;
        let fetches = self.is_to_fetch(vmid, process.epoch);
        self.fence.register(Registration { fetches, ..registration }).await?;
        match process.state {
            RunState::Running => self.run_under_lease(vmid, process.epoch).await?,
            RunState::Paused | RunState::Shutdown => {}
            RunState::Prelaunch
            | RunState::Inmigrate
            | RunState::Received
            | RunState::Postmigrate
            | RunState::Serving
            | RunState::Unresponsive => {
                return Err(OpsError::failed(format!(
                    "VM {vmid} is {:?} and cannot be guarded for HA now: it is tried again until it answers",
                    process.state
                )));
            }
        }
        self.mark(guest, true, true).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::GuestKind;

    /// Seen from `n1`.
    fn decided(
        process: Option<(&RunState, Epoch)>,
        own: Option<&Ownership>,
        ha: bool,
        guarded: bool,
    ) -> Step {
        let process = process.map(|(state, epoch)| Seen { state: *state, epoch, stands: false });
        decide(process, own, &"n1".parse().unwrap(), ha, guarded, false)
    }

    /// Another node's.
    fn theirs(mut own: Ownership) -> Ownership {
        own.owner = "n2".parse().unwrap();
        own
    }

    fn own(epoch: u64, armed: bool, running: bool) -> Ownership {
        Ownership {
            kind: GuestKind::Qemu,
            owner: "n1".parse().unwrap(),
            epoch: Epoch(epoch),
            armed,
            running,
            recovered: false,
        }
    }

    #[test]
    fn an_old_copy_is_destroyed_and_a_waiting_one_is_not() {
        let running = Some((&RunState::Running, Epoch(3)));
        assert_eq!(decided(running, Some(&own(3, true, true)), true, true), Step::Nothing);
        assert_eq!(decided(running, Some(&theirs(own(4, true, true))), true, true), Step::Destroy);
        assert_eq!(decided(running, Some(&own(4, true, true)), true, true), Step::Destroy);
        assert_eq!(decided(running, None, false, true), Step::Destroy);
        assert_eq!(
            decided(Some((&RunState::Inmigrate, Epoch(4))), Some(&theirs(own(3, true, true))), true, true),
            Step::Await
        );
    }

    #[test]
    fn a_waiting_copy_is_not_taken_for_a_recovered_guest() {
        for state in [RunState::Inmigrate, RunState::Received, RunState::Postmigrate] {
            let waits = Some((&state, Epoch(4)));
            assert_eq!(decided(waits, Some(&own(4, false, false)), true, true), Step::Destroy);
        }
    }

    #[test]
    fn a_copy_that_is_fetched_from_stays_until_all_is_fetched_or_the_guest_is_another_s() {
        let serves = Some((&RunState::Serving, Epoch(3)));
        assert_eq!(decided(serves, Some(&theirs(own(4, true, true))), true, true), Step::Serve);
        assert_eq!(decided(serves, Some(&theirs(own(5, true, true))), true, true), Step::Destroy);
        assert_eq!(decided(serves, Some(&own(4, true, true)), true, true), Step::Destroy, "it came back");
        assert_eq!(decided(serves, Some(&own(3, true, true)), true, true), Step::Nothing);
        let sent = Some((&RunState::Postmigrate, Epoch(3)));
        assert_eq!(decided(sent, Some(&theirs(own(4, true, true))), true, true), Step::Destroy);
    }

    /// Nobody can say that it does not serve: its monitor is busy, or it is frozen with the lease of its node.
    #[test]
    fn a_copy_that_does_not_answer_may_be_fetched_from() {
        let me = "n1".parse().unwrap();
        let step = |state, stands, own: &Ownership| {
            decide(Some(Seen { state, epoch: Epoch(3), stands }), Some(own), &me, true, true, false)
        };
        let handed = theirs(own(4, true, true));
        for state in [RunState::Paused, RunState::Unresponsive] {
            assert_eq!(step(state, true, &handed), Step::Serve, "{state:?}");
            assert_eq!(step(state, false, &handed), Step::Destroy, "{state:?}");
            assert_eq!(step(state, true, &theirs(own(5, true, true))), Step::Destroy, "{state:?}");
            let recovered = theirs(own(4, false, false));
            assert_eq!(step(state, true, &recovered), Step::Destroy, "{state:?}: nobody fetches");
        }
        for state in [RunState::Running, RunState::Postmigrate, RunState::Shutdown] {
            assert_eq!(step(state, true, &handed), Step::Destroy, "{state:?}");
        }
    }

    #[test]
    fn what_goes_on_from_disk_is_not_what_a_copy_has_that_waited() {
        let me = "n1".parse().unwrap();
        let seen = |state| Some(Seen { state, epoch: Epoch(4), stands: false });
        let step = |state| decide(seen(state), Some(&own(4, true, true)), &me, true, true, true);
        assert_eq!(step(RunState::Inmigrate), Step::Destroy);
        assert_eq!(step(RunState::Received), Step::Destroy);
        assert_eq!(step(RunState::Postmigrate), Step::Reclaim, "its memory is the last");
    }

    #[test]
    fn a_start_that_was_cut_off_is_undone() {
        let begun = Some((&RunState::Prelaunch, Epoch(3)));
        assert_eq!(decided(begun, Some(&own(3, true, true)), true, true), Step::Destroy);
    }

    #[test]
    fn arming_follows_what_ha_maintains() {
        let running = Some((&RunState::Running, Epoch(3)));
        assert_eq!(decided(running, Some(&own(3, false, true)), true, true), Step::Arm);
        assert_eq!(decided(running, Some(&own(3, true, true)), false, true), Step::Nothing);
        let forgotten = decided(running, Some(&own(3, true, true)), false, false);
        assert_eq!(forgotten, Step::Arm, "armed, and the fence process does not know it");
        assert_eq!(decided(None, Some(&own(3, true, true)), true, true), Step::RecordStopped);
        assert_eq!(decided(None, Some(&theirs(own(3, true, true))), true, true), Step::Nothing);
    }

    #[test]
    fn a_copy_whose_outcome_is_open_is_taken_back() {
        let sent = Some((&RunState::Postmigrate, Epoch(3)));
        assert_eq!(decided(sent, Some(&own(3, true, true)), true, true), Step::Reclaim);
    }
}
