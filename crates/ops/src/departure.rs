//! A host that goes down in order: what HA has here leaves as the shutdown policy says, other guests are shut down in the
//! reverse order of their start, and only then the power is asked for.
//!
//! ```text
//!   wished ──▶ HA moves, freezes or gives up its services ──▶ may go ──▶ other guests are shut down ──▶ all that is fetched from
//!     │                                                                        here is (not for ever) ──▶ at rest ──▶ power
//!     │ stopped by its user, or a step failed: the wish is taken back, the node stays
//! ```
//!
//! A host that goes down by itself (its service manager was told to) asks for the same without the power
//! ([`Ops::come_to_rest`]); so does a host that goes down because this asked for the power, and then all is done.
//!
//! While it is wished, nothing is put here: the manager knows of it by the agent's report. The agent decides
//! when the node may go ([`stead_ha::Agent::may_leave`]); this carries the wish to it and its word back.

use crate::admin::HostPower;
use crate::bulk::{Bulk, Which, Work};
use crate::guest::Asked;
use crate::guest::power::PowerAction;
use crate::{Actor, Ops, OpsError};
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use stead_ha::Leave;
use stead_model::{Upid, Vmid};
use stead_tasks::TaskContext;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a guest has to shut down, unless its `startup` says otherwise; then it is stopped.
const SHUTDOWN: u64 = 180;
/// A host that goes down by itself waits no longer than this for a lease that its node has lost.
pub const WITHOUT_LEASE: Duration = Duration::from_secs(120);
/// How long it is waited until others have fetched what they fetch from here. Where the cluster can't be asked nothing else ends that.
const FETCHED: Duration = Duration::from_secs(600);
/// How often a wait tells that it goes on.
const TELL: Duration = Duration::from_secs(10);

/// The wish to go, whether the agent agrees, and whether all is done.
#[derive(Debug)]
pub struct Departure {
    wish: watch::Sender<Option<Leave>>,
    may: watch::Sender<bool>,
    /// Nothing runs here any more, and nothing is to start here again.
    at_rest: watch::Sender<bool>,
}

impl Default for Departure {
    fn default() -> Self {
        Self {
            wish: watch::Sender::new(None),
            may: watch::Sender::new(false),
            at_rest: watch::Sender::new(false),
        }
    }
}

impl Departure {
    /// Follows the wish.
    pub fn wish(&self) -> watch::Receiver<Option<Leave>> {
        self.wish.subscribe()
    }

    /// The agent's word: whether the node may go, as far as HA is concerned.
    pub fn may_go(&self, may: bool) {
        self.may.send_if_modified(|m| std::mem::replace(m, may) != may);
    }

    /// Wishes, unless it is wished already; dropped, the wish is taken back.
    fn begin(&self, leave: Leave) -> Option<Wished<'_>> {
        let begun = self.wish.send_if_modified(|w| {
            // What the agent said of an earlier wish; it hears of this one later.
            w.is_none() && {
                self.may_go(false);
                w.replace(leave).is_none()
            }
        });
        // Made only where it is true: dropped, it would take back another's wish.
        begun.then(|| Wished(self))
    }
}

struct Wished<'a>(&'a Departure);

impl Wished<'_> {
    /// The power goes: until then nothing is to start here again.
    fn keep(self) {
        self.0.at_rest.send_replace(true);
        std::mem::forget(self);
    }
}

impl Drop for Wished<'_> {
    fn drop(&mut self) {
        self.0.wish.send_replace(None);
    }
}

impl Ops {
    /// Brings this host down in order, as a task; `power` is the last step.
    pub fn depart<F>(self: &Arc<Self>, actor: &Actor, what: HostPower, power: F) -> Result<Upid, OpsError>
    where
        F: FnOnce() -> Result<(), OpsError> + Send + 'static,
    {
        let ops = self.clone();
        let (worker, leave) = leaving(what);
        self.task(worker, self.me.name.as_str(), &actor.who, move |cx| async move {
            let Some(wished) = ops.departure.begin(leave) else {
                return Err(OpsError::failed("this host is going down already"));
            };
            ops.let_ha_go(&cx).await?;
            ops.shut_the_rest_down(&cx).await?;
            cx.log("nothing runs here any more: asking for the power switch");
            power()?;
            wished.keep();
            Ok(())
        })
    }

    /// Brings the guests of this host to rest, as a task, as [`Self::depart`] does, and leaves the power alone: the host goes
    /// down by itself. A departure that is under way is waited for; after one that has come to its end there is nothing to do.
    ///
    /// Without a lease HA can do nothing here. When there has been none for `patience` ([`WITHOUT_LEASE`] unless a test says
    /// otherwise) the rest is shut down all the same: whoever switches all nodes off at once must not wait for a majority.
    pub fn come_to_rest(
        self: &Arc<Self>,
        actor: &Actor,
        what: HostPower,
        patience: Duration,
    ) -> Result<Upid, OpsError> {
        let ops = self.clone();
        let (worker, leave) = leaving(what);
        self.task(worker, self.me.name.as_str(), &actor.who, move |cx| async move {
            let wished = loop {
                if let Some(wished) = ops.departure.begin(leave) {
                    break wished;
                }
                if ops.another_departs(&cx).await? {
                    cx.log("nothing runs here any more");
                    return Ok(());
                }
            };
            tokio::select! {
                went = ops.let_ha_go(&cx) => went?,
                () = ops.without_lease_for(patience) => cx.warn(format!(
                    "no lease for {} s, and none is to be expected: not waiting for HA any longer",
                    patience.as_secs()
                )),
            }
            ops.shut_the_rest_down(&cx).await?;
            cx.log("nothing runs here any more: the host may go");
            wished.keep();
            Ok(())
        })
    }

    /// Waits for the departure that is under way: true when it has come to its end, false when it was given up.
    async fn another_departs(&self, cx: &TaskContext) -> Result<bool, OpsError> {
        let (mut wish, mut at_rest) = (self.departure.wish.subscribe(), self.departure.at_rest.subscribe());
        cx.log("this host is going down already: waiting until its guests have come to rest");
        // Both senders live as long as the use cases.
        tokio::select! {
            _ = at_rest.wait_for(|rest| *rest) => Ok(true),
            _ = wish.wait_for(Option::is_none) => Ok(false),
            () = cx.cancelled() => Err(OpsError::failed("stopped: the guests run on")),
        }
    }

    /// Returns when the node has had no lease for so long.
    async fn without_lease_for(&self, patience: Duration) {
        let mut lease = self.lease.clone();
        loop {
            if lease.wait_for(|l| !l.held).await.is_err() {
                // Nobody renews it any more, since the daemon ends.
                return std::future::pending().await;
            }
            let back = tokio::time::timeout(patience, lease.wait_for(|l| l.held)).await;
            if back.is_err() {
                return;
            }
        }
    }

    async fn let_ha_go(&self, cx: &TaskContext) -> Result<(), OpsError> {
        if self.me.witness {
            // It has neither guests nor an agent.
            return Ok(());
        }
        let mut may = self.departure.may.subscribe();
        cx.log("waiting for HA to bring its services here to rest");
        while !*may.borrow_and_update() {
            tokio::select! {
                changed = may.changed() => {
                    changed.map_err(|_| OpsError::failed("the HA agent has ended"))?;
                }
                () = cx.cancelled() => return Err(OpsError::failed("stopped: the host stays up")),
                () = tokio::time::sleep(TELL) => {
                    let here = self.guests.list().await.into_iter().map(|p| p.vmid);
                    let here = here.filter(|v| self.ha_maintains(*v).unwrap_or(true)).map(|v| v.to_string());
                    let here: Vec<String> = here.collect();
                    cx.log(format!("HA has not let the host go yet; of its guests run here: {}", here.join(", ")));
                }
            }
        }
        Ok(())
    }

    /// Guests that have moved away may still fetch memory from here, which would be lost with the host.
    async fn let_all_be_fetched(&self, cx: &TaskContext) -> Result<(), OpsError> {
        let mut events = self.guests.events();
        let mut told: Option<Instant> = None;
        let until = Instant::now() + FETCHED;
        loop {
            let here = self.guests.list().await.into_iter();
            let serves = here.filter(|p| self.is_or_will_be_fetched_from(p)).map(|p| p.vmid.to_string());
            let serves: Vec<String> = serves.collect();
            if serves.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                cx.warn(format!(
                    "the nodes that they are on have not all of the memory of VMs {} after {} s: not waiting any longer",
                    serves.join(", "),
                    FETCHED.as_secs()
                ));
                return Ok(());
            }
            if told.is_none_or(|told| told.elapsed() >= TELL) {
                told = Some(Instant::now());
                cx.log(format!(
                    "waiting until the nodes that they are on have all of the memory of VMs {}",
                    serves.join(", ")
                ));
            }
            tokio::select! {
                // The end of one tells, and a missed event is asked for.
                _ = tokio::time::timeout(Duration::from_secs(1), events.recv()) => {}
                () = cx.cancelled() => return Err(OpsError::failed("stopped: the host stays up")),
            }
        }
    }

    /// Whoever may bring the host down may stop what runs on it.
    async fn shut_the_rest_down(self: &Arc<Self>, cx: &TaskContext) -> Result<(), OpsError> {
        if self.guests.list().await.is_empty() {
            return Ok(());
        }
        let work = Work::Shutdown { timeout: SHUTDOWN, force: true };
        let which = Which { here: true, without_ha: true, ..Which::default() };
        let upid = self.bulk(&Actor::system(), Bulk { worker: "stopall", work, which, workers: None })?;
        cx.log(format!("shutting down the guests that HA does not maintain: task {upid}"));
        tokio::select! {
            _ = self.tasks.wait(&upid) => {}
            () = cx.cancelled() => {
                self.tasks.stop(&upid);
                return Err(OpsError::failed("stopped: the host stays up"));
            }
        }
        // What is fetched from here is nobody's to shut down, and has had all that time.
        self.let_all_be_fetched(cx).await?;
        // HA has let these be: it is disarmed, or has given them up. What it is asked for stays as it is.
        let left = self.guests.list().await.into_iter().map(|p| self.shut_down(cx, p.vmid));
        join_all(left).await;
        let left: Vec<String> = self.guests.list().await.into_iter().map(|p| p.vmid.to_string()).collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(OpsError::failed(format!("guests {} still run: the host stays up", left.join(", "))))
    }

    async fn shut_down(self: &Arc<Self>, cx: &TaskContext, vmid: Vmid) {
        let action = PowerAction::Shutdown { timeout: Duration::from_secs(SHUTDOWN), force: true };
        let asked = Asked { by_ha: true, skiplock: false };
        match self.power(&Actor::system(), vmid, action, asked).await {
            Ok(upid) => {
                cx.log(format!("shutting down VM {vmid}: task {upid}"));
                self.tasks.wait(&upid).await;
            }
            Err(e) => cx.log(format!("VM {vmid}: {e}")),
        }
    }
}

/// The task's name, and the wish.
fn leaving(what: HostPower) -> (&'static str, Leave) {
    match what {
        HostPower::Reboot => ("nodereboot", Leave::Reboot),
        HostPower::Shutdown => ("nodeshutdown", Leave::Shutdown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_one_and_ends_with_who_had_it() {
        let departure = Departure::default();
        let wish = departure.wish();
        departure.may_go(true);
        let wished = departure.begin(Leave::Reboot).unwrap();
        assert_eq!(*wish.borrow(), Some(Leave::Reboot));
        assert!(!*departure.may.borrow(), "an old word counts no more");
        departure.may_go(true);
        assert!(departure.begin(Leave::Shutdown).is_none());
        assert_eq!(*wish.borrow(), Some(Leave::Reboot), "whoever is refused takes nothing back");
        assert!(*departure.may.borrow());
        drop(wished);
        assert_eq!(*wish.borrow(), None);
        departure.begin(Leave::Shutdown).unwrap().keep();
        assert_eq!(*wish.borrow(), Some(Leave::Shutdown), "the host is about to go");
    }
}
