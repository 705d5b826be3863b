//! Changing who takes part. A request is a wish for a state of the members; it is repeated to whoever leads until
//! the members are so, which makes asking twice safe.

use super::{Command, Driver, Outcome, RequestId};
use crate::engine::Engine;
use crate::error::MemberError;
use crate::machine::Members;
use crate::wire::{Body, Change, LogChange, MemberFault};
use std::collections::BTreeMap;
use std::time::Duration;
use stead_model::RaftId;

/// The most voters there may be.
pub const MAX_VOTERS: usize = 7;
/// How many entries a learner may lack and still be given a vote: what is written while it is asked.
const MAX_BEHIND: u64 = 64;

const VOTER: u8 = 0;
const NONE: u8 = 1;
const LEARNER: u8 = 2;

/// A change of who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member without a vote.
    AddLearner(RaftId),
    /// A learner gets a vote.
    Promote(RaftId),
    /// A voter becomes a learner.
    Demote(RaftId),
    /// A voter's vote goes to a learner, at once.
    Replace {
        /// The voter, a learner afterwards.
        old: RaftId,
        /// The learner, a voter afterwards.
        new: RaftId,
    },
    /// A member leaves for good.
    Remove(RaftId),
}

impl From<MemberChange> for Change {
    fn from(change: MemberChange) -> Self {
        match change {
            MemberChange::AddLearner(id) => Self::AddLearner(id.0),
            MemberChange::Promote(id) => Self::Promote(id.0),
            MemberChange::Demote(id) => Self::Demote(id.0),
            MemberChange::Replace { old, new } => Self::Replace { old: old.0, new: new.0 },
            MemberChange::Remove(id) => Self::Remove(id.0),
        }
    }
}

impl From<MemberFault> for MemberError {
    fn from(fault: MemberFault) -> Self {
        match fault {
            MemberFault::Used(id) => Self::Used { id: RaftId(id) },
            MemberFault::Unknown(id) => Self::Unknown { id: RaftId(id) },
            MemberFault::Behind { id, behind } => Self::Behind { id: RaftId(id), behind },
            MemberFault::LastVoter(id) => Self::LastVoter { id: RaftId(id) },
            MemberFault::Full => Self::Full { max: MAX_VOTERS },
        }
    }
}

#[derive(Debug)]
struct Wish {
    request: RequestId,
    change: Change,
    since: Duration,
    asked: Option<Duration>,
}

/// The wishes of this node.
#[derive(Debug, Default)]
pub(super) struct MemberRequests {
    next: u64,
    wishes: BTreeMap<u64, Wish>,
}

/// Whether the members are as wished.
fn holds(change: Change, members: &Members) -> bool {
    if members.is_joint() {
        return false;
    }
    match change {
        Change::AddLearner(id) => members.contains(id),
        Change::Promote(id) => members.voters.contains(&id),
        Change::Demote(id) => members.learners.contains(&id),
        Change::Replace { old, new } => members.voters.contains(&new) && !members.voters.contains(&old),
        Change::Remove(id) => !members.contains(id),
    }
}

impl Driver {
    pub(super) fn member(&mut self, request: RequestId, change: MemberChange) {
        let token = self.member_requests.next;
        self.member_requests.next += 1;
        let wish = Wish { request, change: change.into(), since: self.now, asked: None };
        self.member_requests.wishes.insert(token, wish);
        self.review_members();
        self.push_members();
    }

    /// Ends the wishes that have come true.
    pub(super) fn review_members(&mut self) {
        let members = &self.members;
        let (id, removed) = (self.settings.id, &self.removed);
        // A node that is no member (yet) knows nothing of the members.
        if !members.contains(id) {
            return;
        }
        let settled: Vec<_> = self
            .member_requests
            .wishes
            .iter()
            .filter_map(|(token, wish)| match wish.change {
                Change::AddLearner(id) if removed.contains(&id) => Some((*token, Err(MemberFault::Used(id)))),
                change => holds(change, members).then_some((*token, Ok(()))),
            })
            .collect();
        for (token, result) in settled {
            self.end_wish(token, result.map_err(MemberError::from));
        }
    }

    fn end_wish(&mut self, token: u64, result: Result<(), MemberError>) {
        if let Some(wish) = self.member_requests.wishes.remove(&token) {
            self.out.push(Command::Done(wish.request, Outcome::Member(result)));
        }
    }

    pub(super) fn tick_members(&mut self) {
        let (now, timeout) = (self.now, self.settings.timeout);
        let over: Vec<_> = self
            .member_requests
            .wishes
            .iter()
            .filter(|(_, wish)| now >= wish.since + timeout)
            .map(|(token, wish)| (*token, now - wish.since))
            .collect();
        for (token, waited) in over {
            self.end_wish(token, Err(MemberError::Timeout { waited }));
        }
        self.push_members();
        // raft-rs leaves a joint configuration only if the leader that entered it is still there.
        if self.members.is_joint() && self.engine.settled() && !self.engine.change_pending() {
            self.engine.change(&LogChange::default());
        }
    }

    /// Asks the leader, again after a few heartbeats.
    fn push_members(&mut self) {
        let leader = self.engine.leader();
        if leader == 0 {
            return;
        }
        let (now, again) = (self.now, self.settings.tick * self.settings.heartbeat_ticks * 2);
        let mut due = Vec::new();
        for (token, wish) in &mut self.member_requests.wishes {
            if wish.asked.is_none_or(|asked| now >= asked + again) {
                wish.asked = Some(now);
                due.push((*token, wish.change));
            }
        }
        for (token, change) in due {
            if leader != self.settings.id {
                self.send(leader, Body::Member { token, change });
            } else if let Err(fault) = self.change_members(change) {
                self.end_wish(token, Err(fault.into()));
            }
        }
    }

    pub(super) fn member_asked(&mut self, from: u64, token: u64, change: Change) {
        if self.engine.leads()
            && self.members.contains(from)
            && let Err(fault) = self.change_members(change)
        {
            self.send(from, Body::MemberRefused { token, fault });
        }
    }

    pub(super) fn member_refused(&mut self, token: u64, fault: MemberFault) {
        self.end_wish(token, Err(fault.into()));
    }

    /// As leader: the next step towards a wish, if one can be made now.
    fn change_members(&mut self, change: Change) -> Result<(), MemberFault> {
        if !self.engine.settled() || self.engine.change_pending() || self.members.is_joint() {
            return Ok(());
        }
        if holds(change, &self.members) {
            return Ok(());
        }
        let voters = self.members.voters.len();
        let steps = match change {
            Change::AddLearner(id) if self.removed.contains(&id) => return Err(MemberFault::Used(id)),
            Change::AddLearner(id) => vec![(LEARNER, id)],
            Change::Promote(_) if voters >= MAX_VOTERS => return Err(MemberFault::Full),
            Change::Promote(id) => {
                self.check_caught_up(id)?;
                vec![(VOTER, id)]
            }
            Change::Replace { old, new } => {
                self.check_voter(old)?;
                self.check_caught_up(new)?;
                vec![(VOTER, new), (LEARNER, old)]
            }
            Change::Demote(id) | Change::Remove(id) => {
                if self.members.voters.contains(&id) && voters == 1 {
                    return Err(MemberFault::LastVoter(id));
                }
                if matches!(change, Change::Demote(_)) {
                    self.check_voter(id)?;
                    vec![(LEARNER, id)]
                } else {
                    vec![(NONE, id)]
                }
            }
        };
        if steps.iter().any(|(role, id)| *role != VOTER && *id == self.settings.id) {
            self.hand_over(&steps);
            return Ok(());
        }
        self.engine.change(&LogChange { transition: 0, steps });
        Ok(())
    }

    fn check_voter(&self, id: u64) -> Result<(), MemberFault> {
        if self.members.voters.contains(&id) { Ok(()) } else { Err(MemberFault::Unknown(id)) }
    }

    fn check_caught_up(&self, id: u64) -> Result<(), MemberFault> {
        if !self.members.learners.contains(&id) {
            return Err(MemberFault::Unknown(id));
        }
        let progress = self.engine.progress(id).ok_or(MemberFault::Unknown(id))?;
        let behind = self.engine.committed().saturating_sub(progress.matched);
        if behind > MAX_BEHIND || !progress.active || progress.matched == 0 {
            return Err(MemberFault::Behind { id, behind });
        }
        Ok(())
    }

    /// This leader is to lose its vote: another voter that stays must lead first.
    fn hand_over(&mut self, steps: &[(u8, u64)]) {
        let stays = |id: &u64| !steps.iter().any(|(role, gone)| gone == id && *role != VOTER);
        let best = self
            .members
            .voters
            .iter()
            .filter(|id| stays(id))
            .filter_map(|id| Some((self.engine.progress(*id)?, *id)))
            .filter(|(progress, _)| progress.active)
            .max_by_key(|(progress, _)| progress.matched);
        if let Some((_, id)) = best {
            self.engine.transfer(id);
        }
    }
}
