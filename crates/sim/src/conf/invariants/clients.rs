//! What clients were answered can have come of one copy of the tree: see [`crate::linear`]. Judged at the end of a run, over all that
//! was asked in it.

use super::durable::Acknowledged;
use crate::linear::{self, Answer, Call, Cell, Change, Check, Operation, Rules, State};
use std::collections::{BTreeMap, BTreeSet};
use stead_conf::driver::RequestId;
use stead_conf::{Check as TxnCheck, Machine, Op, Txn};

/// Node, life and name of a request.
pub type Key = (u64, u64, RequestId);

/// The history of all clients.
#[derive(Debug, Default)]
pub struct Clients {
    open: BTreeMap<Key, Operation>,
    closed: Vec<Operation>,
}

/// What a value is, by how the workload writes it: its transaction's mark first.
fn value(data: &[u8]) -> u64 {
    let digits = data.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// A transaction as one copy would see it. Which transaction has written what a check is about is read from the commits.
pub fn call(name: u64, txn: &Txn, commits: &Acknowledged) -> Result<Call, String> {
    let checks = txn.checks.iter().map(|check| match check {
        TxnCheck::Absent(path) => Ok(Check::Absent(path.clone())),
        TxnCheck::Revision(path, revision) => Ok(Check::Writer(path.clone(), commits.writer(*revision)?)),
        other => Err(format!("no model of {other:?}")),
    });
    let changes = txn.ops.iter().map(|op| match op {
        Op::Put(path, data) => Ok(Change::Put(path.clone(), value(data))),
        Op::Delete(path) => Ok(Change::Delete(path.clone())),
        Op::Move { from, to } => Ok(Change::Move(from.clone(), to.clone())),
        Op::Level(_) => Err("no model of levels".to_owned()),
    });
    Ok(Call::Transact {
        name,
        checks: checks.collect::<Result<_, _>>()?,
        changes: changes.collect::<Result<_, _>>()?,
    })
}

/// What a node's tree holds.
pub fn read(machine: &Machine, path: &str, commits: &Acknowledged) -> Result<Answer, String> {
    let Some(entry) = machine.tree().get(path) else { return Ok(Answer::Read(None)) };
    let writer = commits.writer(entry.revision)?;
    Ok(Answer::Read(Some(Cell { value: value(&entry.data), writer })))
}

impl Clients {
    /// Something is asked for.
    pub fn begin(&mut self, key: Key, now: u64, call: Call) {
        self.open
            .insert(key, Operation { begin: now, end: now, call, answer: Answer::Unknown, hint: u64::MAX });
    }

    /// It is answered; none: it is certain that nothing has come of it, nor will.
    pub fn end(&mut self, key: Key, now: u64, answer: Option<Answer>) {
        if let (Some(open), Some(answer)) = (self.open.remove(&key), answer) {
            self.closed.push(Operation { end: now, answer, ..open });
        }
    }

    /// Judges the history.
    pub fn judge(&self, commits: &Acknowledged) -> Result<(), String> {
        let never_answered = self.open.values().filter(|o| matches!(o.call, Call::Transact { .. }));
        let mut history: Vec<Operation> = self.closed.iter().chain(never_answered).cloned().collect();
        for operation in &mut history {
            if let Call::Transact { name, .. } = operation.call {
                operation.hint = commits.place(name).unwrap_or(u64::MAX);
            }
        }
        let founded = State::from([("k/0".to_owned(), Cell { value: 0, writer: 0 })]);
        let rules = Rules { allowed: one_configuration_each, part: guest_or_path };
        linear::check(&founded, &history, rules).map_err(|fault| fault.to_string())
    }

    /// How many answers were judged.
    pub fn count(&self) -> u64 {
        self.closed.len() as u64
    }
}

fn guest_or_path(path: &str) -> &str {
    path.rsplit_once("/qemu-server/").map_or(path, |(_, file)| file)
}

/// A guest has one configuration.
fn one_configuration_each(state: &State) -> bool {
    let mut seen = BTreeSet::new();
    state.keys().filter_map(|path| path.rsplit_once("/qemu-server/")).all(|(_, file)| seen.insert(file))
}
