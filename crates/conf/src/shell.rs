//! Runs a node of its own: the first landing, for one node and in memory.

use crate::conf::Options;
use crate::driver::{LeadershipTerm, MemberChange};
use crate::error::{ConfError, MemberError, NotLeader, StoreError, TxnError};
use crate::machine::{CommittedEntry, Machine, Proposal, ProposalId};
use crate::seal::ClusterKey;
use crate::status::RaftStatus;
use crate::txn::{Commit, Txn};
use crate::watch::{Feed, WATCH_BACKLOG};
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use stead_model::RaftId;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// What a handle asks for.
pub(crate) enum Call {
    Transact { txn: Txn, at_ms: u64, reply: oneshot::Sender<Result<Commit, TxnError>> },
    Barrier { reply: oneshot::Sender<Result<(), ConfError>> },
    Confirm { reply: oneshot::Sender<Result<LeadershipTerm, NotLeader>> },
    Member { change: MemberChange, reply: oneshot::Sender<Result<(), MemberError>> },
    Transfer { to: RaftId },
    Frame(Bytes),
    Shutdown { reply: oneshot::Sender<()> },
}

/// What handles and thread share.
pub(crate) struct Shared {
    pub machine: RwLock<Machine>,
    pub feed: broadcast::Sender<Feed>,
    pub status: watch::Sender<RaftStatus>,
    pub outbox: Mutex<Option<mpsc::Receiver<(RaftId, Bytes)>>>,
    pub key: ClusterKey,
}

impl Shared {
    pub fn call(&self, call: Call) {
        match call {
            Call::Transact { txn, at_ms, reply } => {
                let id = self.status.borrow().id.0;
                let mut machine = self.machine.write().unwrap_or_else(PoisonError::into_inner);
                let index = machine.applied() + 1;
                let id = ProposalId { origin: id, boot: 1, seq: index };
                let proposal = Proposal { id, floor: index, needs: 1, at_ms, txn };
                let Ok(applied) = machine.apply(index, CommittedEntry::Proposal(Box::new(proposal))) else {
                    return;
                };
                if let Some(event) = applied.event {
                    let _subscribers = self.feed.send(Feed::Commit(event));
                }
                if let Some((_, Some(outcome))) = applied.outcome {
                    let _gone = reply.send(outcome.map_err(TxnError::Refused));
                }
            }
            Call::Barrier { reply } => drop(reply.send(Ok(()))),
            Call::Confirm { reply } => drop(reply.send(Ok(LeadershipTerm(1)))),
            Call::Member { change: _, reply } => {
                drop(reply.send(Err(MemberError::Timeout { waited: std::time::Duration::ZERO })));
            }
            Call::Transfer { to: _ } => {}
            Call::Frame(_) => {}
            Call::Shutdown { reply } => drop(reply.send(())),
        }
    }
}

pub(crate) fn create(options: Options, initial: &Txn, at_ms: u64) -> Result<Arc<Shared>, StoreError> {
    let machine = Machine::found(options.id.0, initial, at_ms)?;
    Ok(start(options, machine))
}

pub(crate) fn join(options: Options) -> Result<Arc<Shared>, StoreError> {
    Ok(start(options, Machine::default()))
}

pub(crate) fn open(options: Options) -> Result<Arc<Shared>, StoreError> {
    Err(StoreError::Missing { dir: options.dir })
}

fn start(options: Options, machine: Machine) -> Arc<Shared> {
    let mut status = RaftStatus::of(options.id);
    status.is_leader = true;
    status.quorate = true;
    status.leader = Some(options.id);
    Arc::new(Shared {
        machine: RwLock::new(machine),
        feed: broadcast::channel(WATCH_BACKLOG).0,
        status: watch::channel(status).0,
        outbox: Mutex::new(Some(mpsc::channel(1).1)),
        key: options.key,
    })
}
