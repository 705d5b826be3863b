//! The one commit by which a VM of another cluster becomes this node's.
//!
//! Its source has given it away, and takes it back on a definite *no* alone. So whatever is answered has to be so for good: *committed*
//! after the commit was seen, *gone* after no commit can land any more. A commit that nobody answers for may land at any time, and is
//! looked for by a read that is as new as any commit before. While the lock stands it has not landed, and is proposed anew - for as long
//! as the source asks, and while what has come could still go on. After that it is shut out: its source may have stopped asking, and
//! whoever looks at the two clusters may have decided for it.

use super::live::Waiting;
use super::{Agreed, Arriving};
use crate::store::{self, At, GuestAt};
use crate::{OpsError, guest};
use std::time::Duration;
use stead_conf::Check;
use stead_guest::clones::MAKING;
use stead_guest::remote::{Landing, Seen, landing};
use stead_model::{Ownership, paths};
use tokio::time::Instant;

/// Between two attempts to find out, or to record, whose it is.
const AGAIN: Duration = Duration::from_millis(500);

/// How far it is.
struct Taking {
    /// As it was when the other side said that it is given away.
    before: At<Ownership>,
    /// From then on nothing is proposed any more.
    until: Instant,
    /// A proposal may have landed, or may land.
    proposed: bool,
    /// Why no other is made.
    given_up: Option<String>,
}

/// What came of an attempt.
enum Step {
    /// It is this node's.
    Done,
    /// It is not, and never will be.
    Never(OpsError),
    /// Nobody can tell.
    Unclear(OpsError),
    /// To be looked at again.
    Again(OpsError),
}

impl Arriving<'_> {
    /// The other side has given it away: it is this node's. Where nobody knows whether that is recorded it is asked until it is known.
    pub(super) async fn take_over(&self, agreed: &mut Agreed) -> Result<(), OpsError> {
        agreed.check_come()?;
        if agreed.runs.is_some() && agreed.waiting.is_none() {
            return Err(OpsError::failed("its memory has not come"));
        }
        let before = self.ops.own_guest(self.vmid).await?.own;
        if agreed.waiting.as_ref().is_some_and(|w| w.epoch != before.value.epoch) {
            return Err(OpsError::failed("it was recovered in the middle"));
        }
        let until = Instant::now() + self.ops.guest_locks.tunnels.waits().outcome;
        let mut taking = Taking { before, until, proposed: false, given_up: None };
        let mut said = String::new();
        loop {
            let why = match self.attempt(&mut taking, agreed.waiting.as_ref()).await {
                Step::Done => break,
                Step::Never(e) => return Err(e),
                Step::Unclear(e) => {
                    agreed.is_unclear = true;
                    return Err(e);
                }
                Step::Again(e) => format!("whether VM {} is on this node is not known ({e})", self.vmid),
            };
            if why != said {
                self.cx.log(format!("{why}; asking again"));
                said = why;
            }
            tokio::time::sleep(AGAIN).await;
        }
        if let Some(waiting) = agreed.waiting.take() {
            self.go_on(waiting).await;
        }
        self.cx.log(format!("VM {} is on node '{}'", self.vmid, self.ops.me.name));
        Ok(())
    }

    async fn attempt(&self, taking: &mut Taking, waiting: Option<&Waiting>) -> Step {
        // A waiting process has the mutex.
        let lock = match waiting {
            None => self.ops.guest_locks.lock(self.vmid).await.map(Some),
            Some(_) => Ok(None),
        };
        let _lock = match lock {
            Ok(lock) => lock,
            Err(e) => return taking.failed(e),
        };
        let (seen, guest) = match self.look(taking).await {
            Ok(found) => found,
            Err(e) => return taking.failed(e),
        };
        let vmid = self.vmid;
        match (landing(seen, taking.proposed, waiting.is_some()), guest) {
            (Landing::Landed, _) => Step::Done,
            (Landing::Open, Some(guest)) => self.propose(taking, waiting, &guest).await,
            (Landing::Open | Landing::Never, _) => Step::Never(OpsError::failed(format!(
                "somebody has unlocked or removed VM {vmid} in the middle"
            ))),
            (Landing::Unclear, _) => Step::Unclear(OpsError::failed(format!(
                "somebody has taken VM {vmid} from this node while it was not known whether it had come: look for it in this cluster. If it \
                 is here and not locked, it is the one that was moved"
            ))),
        }
    }

    /// Reads it as new as any commit before.
    async fn look(&self, taking: &Taking) -> Result<(Option<Seen>, Option<GuestAt>), OpsError> {
        self.ops.conf.barrier().await?;
        if self.ops.ownership(self.vmid)?.is_none() {
            return Ok((None, None));
        }
        let (guest, before) = (self.ops.guest_at(self.vmid)?, &taking.before);
        let (own, config) = (&guest.own, guest::config::parse(&guest.config.value)?);
        let seen = Seen {
            is_ours: own.value.owner == before.value.owner && own.value.epoch == before.value.epoch,
            is_made: config.current.lock() == Some(MAKING),
            is_rewritten: own.revision != before.revision,
            running: own.value.running,
        };
        Ok((Some(seen), Some(guest)))
    }

    /// Nobody's yet: has it be this node's, or nobody's for good.
    async fn propose(&self, taking: &mut Taking, waiting: Option<&Waiting>, guest: &GuestAt) -> Step {
        if taking.given_up.is_none() {
            taking.given_up = self.why_not(taking, waiting).await;
        }
        if let Some(why) = taking.given_up.clone().map(OpsError::Failed) {
            if !taking.proposed {
                return Step::Never(why);
            }
            return match self.ops.shut_out(guest).await {
                Ok(_) => Step::Never(why),
                Err(e) => Step::Again(e),
            };
        }
        match self.record(waiting, guest).await {
            Ok(()) => Step::Done,
            Err(e) => {
                taking.proposed |= matches!(e, OpsError::Undecided(_));
                taking.failed(e)
            }
        }
    }

    /// Why nothing is to be proposed any more.
    async fn why_not(&self, taking: &Taking, waiting: Option<&Waiting>) -> Option<String> {
        if taking.proposed && Instant::now() >= taking.until {
            let seconds = self.ops.guest_locks.tunnels.waits().outcome.as_secs();
            return Some(format!("it could not be recorded within {seconds} s that it is here"));
        }
        match waiting {
            Some(waiting) => self.check_received(waiting).await.err().map(|e| e.to_string()),
            None => None,
        }
    }

    /// Records that the VM is here, and runs if a process waits for that. It is nobody's any more that makes it.
    async fn record(&self, waiting: Option<&Waiting>, guest: &GuestAt) -> Result<(), OpsError> {
        let (ops, vmid, own) = (self.ops, self.vmid, &guest.own.value);
        let config = guest::config::parse(&guest.config.value)?;
        let what = if waiting.is_some() { ", and runs" } else { "" };
        let mut txn = store::txn(&self.actor.who, format!("VM {vmid} came from another cluster{what}"));
        let own = match waiting {
            Some(waiting) => Ownership { running: true, armed: waiting.guarded, ..own.clone() },
            None => own.clone(),
        };
        // Written also where nothing of it changes: that it was says that this commit has landed, and not somebody else's unlocking.
        let record = store::bytes(&own)?;
        store::put_over(&mut txn, &paths::ownership(vmid), Some(guest.own.revision), record);
        // As with every start: a node that is given up runs nothing.
        let me = ops.node_record(&ops.me.name)?;
        let (uuid, state) = (&me.value.uuid, &me.value.state);
        if *uuid != ops.me.uuid || state.is_lost() || *state.boot() != ops.me.boot {
            return Err(OpsError::failed(format!(
                "node '{}' has not re-entered the cluster yet",
                ops.me.name
            )));
        }
        txn.checks.push(Check::Revision(paths::node(&ops.me.name), me.revision));
        ops.commit_unlocked(guest, config, txn).await
    }
}

impl Taking {
    /// What a failure means that leaves open whose it is.
    fn failed(&self, e: OpsError) -> Step {
        match self.proposed {
            true => Step::Again(e),
            false => Step::Never(e),
        }
    }
}
