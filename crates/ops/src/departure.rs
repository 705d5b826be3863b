//! A host that goes down in order: what HA has here leaves as the shutdown policy says, other guests are shut down in the
//! reverse order of their start, and only then the power is asked for.
//!
//! ```text
//!   wished ──▶ HA moves, freezes or gives up its services ──▶ may go ──▶ the rest is shut down ──▶ power
//!     │ stopped by its user, or a step failed: the wish is taken back, the node stays
//! ```
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

/// How long a guest has to shut down, unless its `startup` says otherwise; then it is stopped.
const SHUTDOWN: u64 = 180;
/// How often a wait tells that it goes on.
const TELL: Duration = Duration::from_secs(10);

/// The wish to go, and whether the agent agrees.
#[derive(Debug)]
pub struct Departure {
    wish: watch::Sender<Option<Leave>>,
    may: watch::Sender<bool>,
}

impl Default for Departure {
    fn default() -> Self {
        Self { wish: watch::Sender::new(None), may: watch::Sender::new(false) }
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
        // What the agent said of an earlier wish.
        self.may_go(false);
        self.wish.send_if_modified(|w| w.is_none() && w.replace(leave).is_none()).then_some(Wished(self))
    }
}

struct Wished<'a>(&'a Departure);

impl Wished<'_> {
    /// The power was asked for: until it goes, nothing is to start here again.
    fn keep(self) {
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
        let (worker, leave) = match what {
            HostPower::Reboot => ("nodereboot", Leave::Reboot),
            HostPower::Shutdown => ("nodeshutdown", Leave::Shutdown),
        };
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

    async fn let_ha_go(&self, cx: &TaskContext) -> Result<(), OpsError> {
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
        assert!(departure.begin(Leave::Shutdown).is_none());
        drop(wished);
        assert_eq!(*wish.borrow(), None);
        departure.begin(Leave::Shutdown).unwrap().keep();
        assert_eq!(*wish.borrow(), Some(Leave::Shutdown), "the host is about to go");
    }
}
