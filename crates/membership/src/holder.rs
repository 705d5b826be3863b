//! The node's half: what its fence process decides.
//!
//! A guest's state, as the fence process sees it:
//!
//! ```text
//!             run, lease good             lease over                verified safe
//!  Registered ───────────────▶ Released ─────────────▶ Stopping ─────────────────▶ Held
//!      ▲ ▲                         ▲                     │   │                      │
//!      │ └── its process is gone ──┼─────────────────────┘   │ not by L + D         │
//!      │                           └──── run, lease good ────┼──────────────────────┘
//!      └────────────── its process is gone ──────── Unsafe ◀─┘
//! ```
//!
//! Held is left by an explicit [`Holder::run`] under a good lease alone: that the lease has come back does not mean
//! that the guest is still this node's. Whoever asks has read the epoch linearizably.
//!
//! The lease's end is counted from the moment its nonce was issued, which is before the heartbeat was sent.
//! 1 % is taken off every wait, for a clock that is slow. Where a grant and the one before it differ in length
//! (the profile was changed, or a restart lease is alive), the one that ends later counts; the leader counts the longest
//! that it gave. [`Holder::shorten`] ends a longer one, and from its answer on it counts no more on either side.
//!
//! The watchdog may be fed while the lease is good or while no guest can run. Fed last at the lease's end at the
//! latest, with a time-out of D + W, it fires by L + D + W even if this process hangs. (Feeding on renewals alone
//! would fire before L where W + D < L.)

use crate::{Moment, less_drift};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use stead_model::{Epoch, Vmid};

/// Nonces that wait for an answer. At the slowest profile this is more than two minutes of heartbeats.
const NONCES: usize = 64;
/// How long after a failed attempt to make a guest safe the next one begins.
const RETRY: Duration = Duration::from_millis(50);
/// D for guests that an earlier process had registered before any lease.
const ADOPT: Duration = Duration::from_secs(5);
/// How long after a reset that did not happen it is asked for again.
const RESET_AGAIN: Duration = Duration::from_secs(1);

/// Where a registered guest stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Registered, with CPUs that were never continued (or with no process any more).
    Registered,
    /// Continued under a good lease.
    Released,
    /// The lease is over: being made safe.
    Stopping,
    /// Verified paused, then frozen. Waits for a decision.
    Held,
    /// Could not be verified safe by L + D; the power switch was asked.
    Unsafe,
}

/// What is to be done. The shell carries it out, and reports on the first by [`Holder::report`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HolderCommand {
    /// Make the guest safe: end its migration, jobs and exports, stop its CPUs, *verify* all of it, freeze its
    /// cgroup, verify that too. Takes the place of whatever is under way for this guest.
    /// Answer: [`Report::Safe`], [`Report::Gone`] or [`Report::Failed`].
    MakeSafe {
        /// The guest.
        vmid: Vmid,
        /// By when, on this machine's clock, it must be reported.
        by: Moment,
    },
    /// Continue the guest: thaw where it is frozen, then `cont`, and verify that it runs.
    Cont {
        /// The guest.
        vmid: Vmid,
        /// The ownership that was confirmed.
        epoch: Epoch,
        /// Whether it is frozen.
        thaw: bool,
    },
    /// Ask the power switch to reset this machine *now*: these guests could not be verified safe.
    Reset {
        /// The guests.
        unverified: Vec<Vmid>,
    },
    /// Feed the watchdog, whose time-out is this long.
    FeedWatchdog {
        /// D + W, less drift.
        timeout: Duration,
    },
}

/// What came of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Verified paused and frozen.
    Safe,
    /// The guest's process does not exist any more (or not yet).
    Gone,
    /// It was tried and could not be verified.
    Failed,
}

/// A renewal that does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// The nonce was never issued by this process, or so long ago that it was forgotten, or a newer one was
    /// renewed since.
    #[error("the grant answers nonce {0}, which is unknown or older than one that was renewed already")]
    Nonce(u64),
    /// The answer took so long that the lease is over already.
    #[error("the grant for nonce {0} came after its end")]
    TooLate(u64),
    /// L, D or W is zero or above an hour.
    #[error("the grant's times make no sense")]
    Times,
    /// The reset of this machine was asked for; nothing is taken back.
    #[error("this machine is about to be reset")]
    Resetting,
    /// The lease granted last is longer than the one to hold to.
    #[error("a longer lease was granted since")]
    Longer,
    /// The lease granted last is over, or there was none.
    #[error("the lease that was granted last is over")]
    NothingLeft,
}

/// A guest that may not be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The lease is over, or will be before a continued guest could be trusted to be noted.
    #[error("this node holds no lease")]
    NoLease,
    /// Not registered under that epoch.
    #[error("guest {0} is not registered under epoch {1}")]
    Unknown(Vmid, Epoch),
    /// It is being made safe; ask again when it is held.
    #[error("guest {0} is just being made safe")]
    Stopping(Vmid),
    /// The reset of this machine was asked for because of it.
    #[error("guest {0} could not be made safe, this machine is about to be reset")]
    Unsafe(Vmid),
}

/// A registration or its end that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// A process of that guest lives under another epoch.
    #[error("guest {vmid} is registered under epoch {registered} and its process lives; destroy it first")]
    Alive {
        /// The guest.
        vmid: Vmid,
        /// The epoch under which it lives.
        registered: Epoch,
    },
    /// The epoch lies before the registered one.
    #[error("guest {vmid} was registered under the later epoch {registered}")]
    Older {
        /// The guest.
        vmid: Vmid,
        /// The later one.
        registered: Epoch,
    },
}

/// A registered guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The ownership under which it may run.
    pub epoch: Epoch,
    /// Where it stands.
    pub hold: Hold,
    /// When the next attempt to make it safe begins; none while one is under way.
    retry: Option<Moment>,
}

/// A lease as granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    ends: Moment,
    lease: Duration,
    drain: Duration,
    watchdog: Duration,
}

impl Lease {
    fn reset_at(&self) -> Moment {
        self.ends + less_drift(self.drain)
    }
}

/// The fence process's state. Serializable, so that a newer program can go on where an older one was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    next_nonce: u64,
    issued: VecDeque<(u64, Moment)>,
    lease: Option<Lease>,
    /// The one granted last: `lease`, or one that ends before it.
    latest: Option<Lease>,
    guests: BTreeMap<Vmid, Guest>,
    /// The end of `lease` was seen, and what was registered then is being made safe.
    over: bool,
    /// D and W of the last lease.
    times: Option<(Duration, Duration)>,
    fed: Option<Moment>,
    reset_asked: Option<Moment>,
    /// While no lease was granted to *this* process: by when adopted guests must be safe.
    adopted_by: Option<Moment>,
}

impl Holder {
    /// A holder without guests or lease. `first_nonce` must be above every nonce issued since boot by an earlier
    /// process; nanoseconds since boot are.
    pub fn new(first_nonce: u64) -> Self {
        Self {
            next_nonce: first_nonce,
            issued: VecDeque::new(),
            lease: None,
            latest: None,
            guests: BTreeMap::new(),
            over: false,
            times: None,
            fed: None,
            reset_asked: None,
            adopted_by: None,
        }
    }

    /// A holder after an earlier process died: what had been registered is made safe first, since nobody knows
    /// whether it still has a lease. What is verified held, or has no process (`Registered`), is left as it is; `drain` and `watchdog` are D and W of the last one.
    pub fn adopt(
        first_nonce: u64,
        now: Moment,
        (drain, watchdog): (Duration, Duration),
        guests: impl IntoIterator<Item = (Vmid, Epoch, Hold)>,
    ) -> Self {
        let mut holder = Self::new(first_nonce);
        holder.times = Some((drain, watchdog)).filter(|(d, w)| !d.is_zero() && !w.is_zero());
        // With no lease ever nothing was continued; there is no hurry, and a reset would be for nothing.
        let drain = if drain.is_zero() { ADOPT } else { drain };
        holder.adopted_by = Some(now + less_drift(drain));
        for (vmid, epoch, hold) in guests {
            let (hold, retry) = match hold {
                Hold::Registered | Hold::Held => (hold, None),
                Hold::Released | Hold::Stopping | Hold::Unsafe => (Hold::Stopping, Some(now)),
            };
            holder.guests.insert(vmid, Guest { epoch, hold, retry });
        }
        holder
    }

    /// A nonce for a heartbeat. A lease granted to it counts from `now`.
    pub fn nonce(&mut self, now: Moment) -> u64 {
        let nonce = self.next_nonce;
        self.next_nonce += 1;
        if self.issued.len() == NONCES {
            self.issued.pop_front();
        }
        self.issued.push_back((nonce, now));
        nonce
    }

    /// The leader granted a lease to the heartbeat with `nonce`.
    pub fn renew(
        &mut self,
        now: Moment,
        nonce: u64,
        lease: Duration,
        drain: Duration,
        watchdog: Duration,
    ) -> Result<(), RenewError> {
        let at = self.answers(nonce, lease, drain, watchdog)?;
        let granted = Lease { ends: self.issued[at].1 + less_drift(lease), lease, drain, watchdog };
        // Answers to this and to older heartbeats count no more.
        self.issued.drain(..=at);
        if granted.ends <= now {
            return Err(RenewError::TooLate(nonce));
        }
        // The watchdog counts the times of before, or (where the grant was admitted) those of a lease that is not the one that counts.
        // It gets those that count now at once: a longer time-out would outlast L + D + W, a shorter one fire before it is fed.
        if self.times != Some((drain, watchdog)) {
            self.fed = None;
        }
        self.latest = Some(granted);
        if self.lease.is_none_or(|old| old.ends < granted.ends) {
            self.lease = Some(granted);
            self.times = Some((drain, watchdog));
        }
        self.over = false;
        self.adopted_by = None;
        Ok(())
    }

    /// D and W that count after [`Self::shorten`], if it would be carried out now.
    pub fn may_shorten(&self, now: Moment, most: Duration) -> Result<(Duration, Duration), RenewError> {
        let latest = self.latest.filter(|l| l.ends > now).ok_or(RenewError::NothingLeft)?;
        if latest.lease > most {
            return Err(RenewError::Longer);
        }
        if self.guests.values().any(|g| g.hold == Hold::Unsafe) {
            return Err(RenewError::Resetting);
        }
        Ok((latest.drain, latest.watchdog))
    }

    /// Holds to the lease granted last alone, although one before it ends later. Refused where nothing would be left, and where that
    /// lease was granted for longer than `most`: then it is another one than the caller knows of.
    ///
    /// No heartbeat of before counts any more, so that what was, or will be, granted to one of them is ended for ever. The watchdog must have
    /// [`Self::may_shorten`]'s times before this is answered.
    pub fn shorten(&mut self, now: Moment, most: Duration) -> Result<(), RenewError> {
        self.times = Some(self.may_shorten(now, most)?);
        self.lease = self.latest;
        self.issued.clear();
        self.fed = None;
        Ok(())
    }

    /// Whether a grant would count now: to be asked before anything is done for it.
    pub fn may_renew(
        &self,
        now: Moment,
        nonce: u64,
        lease: Duration,
        drain: Duration,
        watchdog: Duration,
    ) -> Result<(), RenewError> {
        let at = self.answers(nonce, lease, drain, watchdog)?;
        if self.issued[at].1 + less_drift(lease) <= now { Err(RenewError::TooLate(nonce)) } else { Ok(()) }
    }

    /// The place of the nonce that a grant answers.
    fn answers(
        &self,
        nonce: u64,
        lease: Duration,
        drain: Duration,
        watchdog: Duration,
    ) -> Result<usize, RenewError> {
        let sane = |d: Duration| !d.is_zero() && d <= Duration::from_secs(3600);
        if !(sane(lease) && sane(drain) && sane(watchdog)) {
            return Err(RenewError::Times);
        }
        if self.guests.values().any(|g| g.hold == Hold::Unsafe) {
            return Err(RenewError::Resetting);
        }
        self.issued.iter().position(|(n, _)| *n == nonce).ok_or(RenewError::Nonce(nonce))
    }

    /// Makes a guest known before its process is executed. `gone` says that it has no process now. Repeating it
    /// changes nothing.
    pub fn register(&mut self, vmid: Vmid, epoch: Epoch, gone: bool) -> Result<(), RegisterError> {
        if let Some(old) = self.guests.get(&vmid) {
            if epoch < old.epoch {
                return Err(RegisterError::Older { vmid, registered: old.epoch });
            }
            if !gone && epoch > old.epoch {
                return Err(RegisterError::Alive { vmid, registered: old.epoch });
            }
            if !gone {
                return Ok(());
            }
        }
        self.guests.insert(vmid, Guest { epoch, hold: Hold::Registered, retry: None });
        Ok(())
    }

    /// Forgets a guest. `gone` says that it has no process; while it has one it stays guarded.
    pub fn forget(&mut self, vmid: Vmid, gone: bool) -> Result<(), RegisterError> {
        match self.guests.get(&vmid) {
            Some(guest) if !gone => Err(RegisterError::Alive { vmid, registered: guest.epoch }),
            _ => {
                self.guests.remove(&vmid);
                Ok(())
            }
        }
    }

    /// First `cont`, or the thaw of a held guest whose epoch was confirmed unchanged. Under a good lease alone.
    ///
    /// From here on the guest counts as running, whatever becomes of the command: if it fails, ask again.
    pub fn run(&mut self, now: Moment, vmid: Vmid, epoch: Epoch) -> Result<HolderCommand, RunError> {
        let good = self.lease_left(now).is_some_and(|left| left > self.margin());
        let Some(guest) = self.guests.get_mut(&vmid).filter(|g| g.epoch == epoch) else {
            return Err(RunError::Unknown(vmid, epoch));
        };
        match guest.hold {
            Hold::Unsafe => return Err(RunError::Unsafe(vmid)),
            _ if !good => return Err(RunError::NoLease),
            Hold::Stopping => return Err(RunError::Stopping(vmid)),
            Hold::Registered | Hold::Released | Hold::Held => {}
        }
        let thaw = guest.hold == Hold::Held;
        guest.hold = Hold::Released;
        Ok(HolderCommand::Cont { vmid, epoch, thaw })
    }

    /// A held guest was thawed and could not be continued. It is made safe again, and then held as before, for whoever
    /// asked to ask again.
    pub fn thaw_failed(&mut self, now: Moment, vmid: Vmid) {
        if let Some(guest) = self.guests.get_mut(&vmid).filter(|g| g.hold == Hold::Released) {
            (guest.hold, guest.retry) = (Hold::Stopping, Some(now));
        }
    }

    /// What came of making a guest safe. `Gone` is true and welcome at any time.
    pub fn report(&mut self, now: Moment, vmid: Vmid, report: Report) {
        let Some(guest) = self.guests.get_mut(&vmid) else { return };
        match (report, guest.hold) {
            (Report::Gone, _) => (guest.hold, guest.retry) = (Hold::Registered, None),
            (Report::Safe, Hold::Stopping | Hold::Unsafe) => (guest.hold, guest.retry) = (Hold::Held, None),
            (Report::Failed, Hold::Stopping | Hold::Unsafe) => guest.retry = Some(now + RETRY),
            // Late words about a guest that was released since.
            (Report::Safe | Report::Failed, Hold::Registered | Hold::Released | Hold::Held) => {}
        }
        if !self.guests.values().any(|g| g.hold == Hold::Unsafe) {
            self.reset_asked = None;
        }
    }

    /// What is to be done now. To be called whenever [`Self::next_wake`] has come, and after every other call.
    pub fn step(&mut self, now: Moment) -> Vec<HolderCommand> {
        let mut out = Vec::new();
        let good = self.lease_left(now).is_some();
        if !good && self.lease.is_some() && !self.over {
            // Once only: a guest registered after this waits for a lease with CPUs that have never run.
            self.over = true;
            for guest in self.guests.values_mut() {
                if matches!(guest.hold, Hold::Registered | Hold::Released) {
                    (guest.hold, guest.retry) = (Hold::Stopping, Some(now));
                }
            }
        }
        // With a lease that came back meanwhile there is time until the end of that one.
        let by = self.lease.map(|l| l.reset_at()).or(self.adopted_by).unwrap_or(now);
        for (&vmid, guest) in &mut self.guests {
            if !good && now >= by && guest.hold == Hold::Stopping {
                guest.hold = Hold::Unsafe;
            }
            if guest.retry.is_some_and(|at| now >= at) {
                guest.retry = None;
                out.push(HolderCommand::MakeSafe { vmid, by });
            }
        }
        self.reset(now, &mut out);
        self.feed(now, &mut out);
        out
    }

    /// Time until the lease ends; none where there is none.
    pub fn lease_left(&self, now: Moment) -> Option<Duration> {
        self.lease.and_then(|l| l.ends.checked_sub(now)).filter(|left| !left.is_zero())
    }

    /// Every registered guest.
    pub fn guests(&self) -> impl Iterator<Item = (Vmid, &Guest)> {
        self.guests.iter().map(|(v, g)| (*v, g))
    }

    /// D and W of the last lease, for the record that outlives this process.
    pub fn times(&self) -> Option<(Duration, Duration)> {
        self.times
    }

    /// When [`Self::step`] must be called next, if nothing else happens.
    pub fn next_wake(&self, now: Moment) -> Option<Moment> {
        let mut wakes: Vec<Moment> = self.guests.values().filter_map(|g| g.retry).collect();
        if let Some(lease) = &self.lease {
            wakes.extend((!self.over).then_some(lease.ends));
            wakes.extend(Some(lease.reset_at()).filter(|at| *at > now));
        }
        if let Some(every) = self.feed_every().filter(|_| self.may_feed(now)) {
            wakes.push(self.fed.map_or(now, |at| at + every));
        }
        wakes.extend(self.adopted_by.filter(|at| *at > now));
        wakes.extend(self.reset_asked.map(|at| at + RESET_AGAIN));
        wakes.into_iter().min()
    }

    /// Whether the watchdog may be fed: the lease is good, or no guest can run.
    pub fn may_feed(&self, now: Moment) -> bool {
        self.lease_left(now).is_some()
            || self.guests.values().all(|g| matches!(g.hold, Hold::Registered | Hold::Held))
    }

    /// A guest is not continued so near the end of a lease that the lease may end before `cont` is answered.
    fn margin(&self) -> Duration {
        self.lease.map_or(Duration::ZERO, |l| l.lease / 10)
    }

    /// Asks the power switch as long as a guest is unsafe.
    fn reset(&mut self, now: Moment, out: &mut Vec<HolderCommand>) {
        let is_unsafe = self.guests.iter().filter(|(_, g)| g.hold == Hold::Unsafe);
        let unverified: Vec<Vmid> = is_unsafe.map(|(v, _)| *v).collect();
        let due = self.reset_asked.is_none_or(|at| now >= at + RESET_AGAIN);
        if !unverified.is_empty() && due {
            self.reset_asked = Some(now);
            out.push(HolderCommand::Reset { unverified });
        }
    }

    fn feed(&mut self, now: Moment, out: &mut Vec<HolderCommand>) {
        let Some(((drain, watchdog), every)) = self.times.zip(self.feed_every()) else { return };
        if self.may_feed(now) && self.fed.is_none_or(|at| now >= at + every) {
            self.fed = Some(now);
            out.push(HolderCommand::FeedWatchdog { timeout: less_drift(drain + watchdog) });
        }
    }

    fn feed_every(&self) -> Option<Duration> {
        self.times.map(|(drain, watchdog)| (drain + watchdog) / 4)
    }
}

#[cfg(test)]
mod tests;
