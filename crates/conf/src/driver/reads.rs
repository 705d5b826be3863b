//! Rounds in which a majority confirms the leader: barriers (read what was committed before the call) and
//! confirmations of leadership share them.
//!
//! A round's waiters were all there before it began. While one is under way, new waiters gather for the next. A
//! round that is not answered is begun again under a new context, never the same one, since an answer to an old
//! message would then confirm a new question; an answer to any context of the round confirms it.

use super::{Command, Driver, LeadershipTerm, Outcome, RequestId};
use crate::engine::Engine;
use crate::error::{ConfError, NotLeader};
use std::time::Duration;
use stead_model::RaftId;

#[derive(Debug, Clone, Copy)]
struct Waiter {
    request: RequestId,
    deadline: Duration,
    /// For a confirmation: the term in which this node led when asked.
    leads: Option<u64>,
}

#[derive(Debug)]
struct Round {
    contexts: Vec<Vec<u8>>,
    asked: Duration,
    /// The term of the last asking.
    term: u64,
    waiters: Vec<Waiter>,
}

/// All questions under way.
#[derive(Debug)]
pub(super) struct Reads {
    id: u64,
    boot: u64,
    next: u64,
    queue: Vec<Waiter>,
    round: Option<Round>,
    /// Barriers that are answered and wait for an index to be applied.
    applying: Vec<(u64, Waiter)>,
}

impl Reads {
    pub fn new(id: u64, boot: u64) -> Self {
        Self { id, boot, next: 0, queue: Vec::new(), round: None, applying: Vec::new() }
    }

    pub fn barrier(&mut self, request: RequestId, deadline: Duration) {
        self.queue.push(Waiter { request, deadline, leads: None });
    }

    fn context(&mut self) -> Vec<u8> {
        self.next += 1;
        [self.id, self.boot, self.next].iter().flat_map(|part| part.to_le_bytes()).collect()
    }
}

impl Driver {
    pub(super) fn confirm(&mut self, request: RequestId) {
        if self.engine.leads() {
            let leads = Some(self.engine.term());
            self.reads.queue.push(Waiter { request, deadline: self.now + self.settings.timeout, leads });
        } else {
            self.not_leader(request);
        }
    }

    fn not_leader(&mut self, request: RequestId) {
        let leader = Some(self.engine.leader()).filter(|id| *id != 0 && *id != self.settings.id).map(RaftId);
        self.out.push(Command::Done(request, Outcome::Confirm(Err(NotLeader::Other { leader }))));
    }

    /// Begins the next round, or the present one again.
    pub(super) fn push_reads(&mut self) {
        if self.reads.round.is_none() && !self.reads.queue.is_empty() {
            let waiters = std::mem::take(&mut self.reads.queue);
            self.reads.round = Some(Round { contexts: Vec::new(), asked: Duration::ZERO, term: 0, waiters });
        }
        let can_ask = if self.engine.leads() { self.engine.settled() } else { self.engine.leader() != 0 };
        let (now, term) = (self.now, self.engine.term());
        let again = self.settings.tick * self.settings.heartbeat_ticks * 2;
        let Some(round) = &self.reads.round else { return };
        let due = round.contexts.is_empty() || round.term != term || now >= round.asked + again;
        if !can_ask || !due {
            return;
        }
        let context = self.reads.context();
        if let Some(round) = &mut self.reads.round {
            round.contexts.push(context.clone());
            round.asked = now;
            round.term = term;
            self.engine.read(context);
        }
    }

    pub(super) fn read_answered(&mut self, context: &[u8], index: u64) {
        if !self.reads.round.as_ref().is_some_and(|round| round.contexts.iter().any(|known| known == context))
        {
            return;
        }
        let Some(round) = self.reads.round.take() else { return };
        for waiter in round.waiters {
            match waiter.leads {
                None => self.reads.applying.push((index, waiter)),
                Some(term) if self.engine.leads() && self.engine.term() == term => {
                    let outcome = Outcome::Confirm(Ok(LeadershipTerm(term)));
                    self.out.push(Command::Done(waiter.request, outcome));
                }
                Some(_) => self.not_leader(waiter.request),
            }
        }
        self.finish_reads();
    }

    /// Ends the barriers whose index is applied.
    pub(super) fn finish_reads(&mut self) {
        let applied = self.applied;
        let done = self.reads.applying.extract_if(.., |(index, _)| *index <= applied);
        for (_, waiter) in done.collect::<Vec<_>>() {
            self.out.push(Command::Done(waiter.request, Outcome::Barrier(Ok(()))));
        }
    }

    /// Ends what has waited too long, and confirmations of an office that was lost.
    pub(super) fn expire_reads(&mut self) {
        let now = self.now;
        let (leads, term) = (self.engine.leads(), self.engine.term());
        let lost = |waiter: &Waiter| waiter.leads.is_some_and(|asked| !leads || asked != term);
        let over = |waiter: &mut Waiter| now >= waiter.deadline || lost(waiter);
        let mut ended: Vec<Waiter> = self.reads.queue.extract_if(.., over).collect();
        if let Some(round) = &mut self.reads.round {
            ended.extend(round.waiters.extract_if(.., over));
            if round.waiters.is_empty() {
                self.reads.round = None;
            }
        }
        let applying = self.reads.applying.extract_if(.., |(_, waiter)| now >= waiter.deadline);
        ended.extend(applying.map(|(_, waiter)| waiter));
        let waited = self.settings.timeout;
        for waiter in ended {
            match waiter.leads {
                Some(asked) if leads && asked == term => {
                    let outcome = Outcome::Confirm(Err(NotLeader::Unconfirmed { waited }));
                    self.out.push(Command::Done(waiter.request, outcome));
                }
                Some(_) => self.not_leader(waiter.request),
                None => {
                    let outcome = Outcome::Barrier(Err(ConfError::NoQuorum { waited }));
                    self.out.push(Command::Done(waiter.request, outcome));
                }
            }
        }
    }
}
