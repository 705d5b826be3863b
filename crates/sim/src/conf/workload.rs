//! What the nodes are asked to do, and what may be said of the answers.

use super::dice::Dice;
use super::invariants::{Invariants, clients};
use crate::linear::{Answer, Call};
use stead_conf::driver::{Input, MemberChange, Outcome, RequestId};
use stead_conf::{Check, Machine, Refusal, Txn, TxnError};
use stead_model::RaftId;

/// A question that was asked.
#[derive(Debug, Clone)]
pub enum Asked {
    /// A transaction with this mark as its note.
    Txn { mark: u64 },
    /// A barrier, when the newest revision applied anywhere was this, and then what lies at the path.
    Barrier { newest: u64, path: String },
    /// A confirmation, when the newest term known to be led was this.
    Confirm { newest: u64 },
    /// A change of members.
    Member,
}

/// A random transaction against what a node sees. Few paths, so that they meet.
pub fn txn(mark: u64, machine: &Machine, dice: &mut Dice) -> Txn {
    let txn = Txn::new(format!("n{mark}")).note(mark.to_string());
    let tree = machine.tree();
    let path = format!("k/{}", dice.below(6));
    let vmid = 100 + dice.below(4);
    let guest = |node: u64| format!("nodes/n{node}/qemu-server/{vmid}.conf");
    let node = dice.below(3);
    match dice.below(10) {
        0..=3 => {
            let size = dice.pick(&[4, 60, 60, 900]).unwrap_or(4);
            txn.put(path, format!("{mark:x<0$}", usize::try_from(size).unwrap_or(4)))
        }
        4..=6 => match tree.get(&path) {
            Some(entry) => txn.unchanged(path.clone(), entry.revision).put(path, mark.to_string()),
            None => txn.check(Check::Absent(path.clone())).put(path, mark.to_string()),
        },
        7 => txn.delete(path),
        8 => txn.put(guest(node), mark.to_string()),
        _ => txn.rename(guest(node), guest(dice.below(3))),
    }
}

/// A random change of members, as a node sees them.
pub fn member_change(machine: &Machine, fresh: u64, dice: &mut Dice) -> MemberChange {
    let members = machine.members();
    let voters: Vec<u64> = members.voters.iter().copied().collect();
    let learners: Vec<u64> = members.learners.iter().copied().collect();
    let (voter, learner) = (dice.pick(&voters), dice.pick(&learners));
    match (dice.below(6), voter, learner) {
        (0, Some(voter), _) if voters.len() > 2 => MemberChange::Remove(RaftId(voter)),
        (1, Some(voter), _) => MemberChange::Demote(RaftId(voter)),
        (2, Some(old), Some(new)) => MemberChange::Replace { old: RaftId(old), new: RaftId(new) },
        (3 | 4, _, Some(learner)) => MemberChange::Promote(RaftId(learner)),
        _ => MemberChange::AddLearner(RaftId(fresh)),
    }
}

/// The input that asks, and what to remember of it.
pub fn question(
    request: RequestId,
    machine: &Machine,
    mark: u64,
    invariants: &Invariants,
    dice: &mut Dice,
) -> (Input, Asked) {
    match dice.below(8) {
        0 | 1 => {
            let path = format!("k/{}", dice.below(6));
            let path = if dice.chance(300) {
                format!("nodes/n{}/qemu-server/{}.conf", dice.below(3), 100 + dice.below(4))
            } else {
                path
            };
            (Input::Barrier { request }, Asked::Barrier { newest: invariants.reads.newest_revision(), path })
        }
        2 => (Input::Confirm { request }, Asked::Confirm { newest: invariants.reads.newest_term() }),
        _ => (Input::Transact { request, txn: txn(mark, machine, dice), at_ms: mark }, Asked::Txn { mark }),
    }
}

/// What is asked, as the history of clients has it.
pub fn call(asked: &Asked, input: &Input, invariants: &Invariants) -> Result<Option<Call>, String> {
    match (asked, input) {
        (Asked::Txn { mark }, Input::Transact { txn, .. }) => {
            clients::call(*mark, txn, &invariants.durable).map(Some)
        }
        (Asked::Barrier { path, .. }, _) => Ok(Some(Call::Read(path.clone()))),
        _ => Ok(None),
    }
}

/// What is answered, as the history of clients has it; none: nothing has come of it, nor will.
pub fn answer(
    asked: &Asked,
    outcome: &Outcome,
    machine: &Machine,
    invariants: &Invariants,
) -> Result<Option<Answer>, String> {
    match (asked, outcome) {
        (Asked::Txn { .. }, Outcome::Txn(Ok(_))) => Ok(Some(Answer::Done)),
        // A node that takes no part any more asks for nothing.
        (Asked::Txn { .. }, Outcome::Txn(Err(TxnError::Refused(Refusal::NotMember { .. })))) => Ok(None),
        (Asked::Txn { .. }, Outcome::Txn(Err(TxnError::Refused(_)))) => Ok(Some(Answer::Refused)),
        (Asked::Txn { .. }, Outcome::Txn(Err(TxnError::Unknown { .. }))) => Ok(Some(Answer::Unknown)),
        (Asked::Barrier { path, .. }, Outcome::Barrier(Ok(()))) => {
            clients::read(machine, path, &invariants.durable).map(Some)
        }
        _ => Ok(None),
    }
}

/// Judges an answer.
pub fn answered(
    node: u64,
    asked: &Asked,
    outcome: &Outcome,
    machine: &Machine,
    invariants: &mut Invariants,
) -> Result<(), String> {
    match (asked, outcome) {
        (Asked::Txn { mark }, Outcome::Txn(result)) => match result {
            Ok(commit) => {
                invariants.figures.commits += 1;
                if machine.tree().revision() < commit.revision {
                    return Err(format!("node {node} answered {mark} before applying it"));
                }
                invariants.durable.acknowledged(*mark, commit.revision.0)
            }
            Err(TxnError::Refused(_)) => {
                invariants.figures.refused += 1;
                invariants.durable.never(*mark)
            }
            Err(TxnError::NoQuorum { .. }) => invariants.durable.never(*mark),
            Err(TxnError::Unknown { .. }) => {
                invariants.figures.unknown += 1;
                Ok(())
            }
            Err(stopped @ TxnError::Stopped { .. }) => Err(stopped.to_string()),
        },
        (Asked::Barrier { newest, .. }, Outcome::Barrier(Ok(()))) => {
            invariants.figures.barriers += 1;
            invariants.reads.barrier(node, *newest, machine.tree().revision().0)
        }
        (Asked::Confirm { newest }, Outcome::Confirm(Ok(term))) => {
            invariants.figures.confirmations += 1;
            invariants.reads.confirmed(node, *newest, term.0)
        }
        (Asked::Member, Outcome::Member(result)) => {
            invariants.figures.member_changes += u64::from(result.is_ok());
            Ok(())
        }
        (Asked::Barrier { .. }, Outcome::Barrier(Err(_)))
        | (Asked::Confirm { .. }, Outcome::Confirm(Err(_))) => Ok(()),
        (asked, outcome) => Err(format!("{asked:?} was answered by {outcome:?}")),
    }
}
