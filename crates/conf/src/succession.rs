//! How one node goes on alone: the first state of a new cluster epoch, made of the store of the old one.
//!
//! ```text
//!   old store ── its state ── its whole log ──▶ leap ── what the new epoch changes ──▶ new store, of one voter
//!   (not changed)             also what is not known to be committed
//! ```
//!
//! The whole log counts, not only what is known to be committed: the node may have stored an entry that a majority has
//! acknowledged without having heard so, and then it must not be lost. An entry of which that is not true was proposed by
//! somebody who does not know what came of it, and may find it done. The old store stays as it is.

use crate::backup::Backup;
use crate::codec;
use crate::driver::Recovered;
use crate::engine::Hard;
use crate::error::StoreError;
use crate::history::Change;
use crate::machine::{CommittedEntry, Machine, MachineFault, Members, Proposal};
use crate::store::{self, Inspected, Store};
use crate::tree::Tree;
use crate::txn::{Revision, Txn};
use crate::wire::{LogBody, LogChange};
use std::path::Path;
use stead_model::{Era, RaftId};

/// So many revisions are left out between two epochs: more than the old one will ever have, should it go on elsewhere. Numbers that
/// are drawn from revisions, as the epochs of ownerships are, then mean the same nowhere.
pub const LEAP: u64 = 1 << 32;

/// How many revisions an epoch leaves out: two survivors of one cluster hardly draw the same numbers.
pub fn leap(era: Era) -> u64 {
    LEAP * (1 + era.mark() % (1 << 16))
}

/// Makes the store of the new epoch `era` at `to` (folder, this node's new number) of the one at `from`, which nobody may have
/// open. `build` is given the tree, after the leap, and the last revision that was known to be committed, and says what is to be
/// changed. What is at `to` already was left by an earlier try and is removed.
///
/// # Errors
/// If the old store can't be read, or `build` or the tree refuses. Then there is nothing at `to` that counts.
pub fn succeed<E: std::fmt::Display>(
    from: (&Path, RaftId),
    to: (&Path, RaftId),
    era: Era,
    at_ms: u64,
    build: impl FnOnce(&Tree, Revision) -> Result<Vec<Txn>, E>,
) -> Result<(), StoreError> {
    let failed = |e: MachineFault| StoreError::Succession { dir: from.0.to_owned(), why: e.to_string() };
    let (store, recovered, _) = Store::open(from.0, from.1.0)?;
    drop(store);
    let (machine, base) = replay(recovered).map_err(failed)?;
    begin((machine, from.0), base, to, era, at_ms, build)
}

/// Makes the store of the new epoch `era` at `to` of a backup; all else is as in [`succeed`].
///
/// # Errors
/// If `build` or the tree refuses, or the store can't be written. Then there is nothing at `to` that counts.
pub fn restore<E: std::fmt::Display>(
    backup: Backup,
    to: (&Path, RaftId),
    era: Era,
    at_ms: u64,
    build: impl FnOnce(&Tree, Revision) -> Result<Vec<Txn>, E>,
) -> Result<(), StoreError> {
    let base = backup.tree().revision();
    begin((backup.into_machine(), to.0), base, to, era, at_ms, build)
}

/// The state of a store that nobody may have open, with its whole log, and what else it tells of itself. The store stays as it is.
///
/// # Errors
/// If it can't be read, or its log not be applied.
pub fn look(dir: &Path) -> Result<Seen, StoreError> {
    let Inspected { id, boots, recovered } = store::inspect(dir)?;
    let (entries, hard) = (recovered.entries.len() as u64, recovered.hard);
    let failed = |e: MachineFault| StoreError::Damaged { dir: dir.to_owned(), what: e.to_string() };
    let (machine, committed) = replay(recovered).map_err(failed)?;
    Ok(Seen { id, boots, entries, hard, machine, committed })
}

/// What a store holds.
#[derive(Debug)]
pub struct Seen {
    /// Whose it is, by its number in Raft.
    pub id: u64,
    /// How often it was opened.
    pub boots: u64,
    /// How many entries its log has.
    pub entries: u64,
    /// Term, vote, and up to which entry the log is known to be committed.
    pub hard: Hard,
    /// The state after the whole log.
    pub machine: Machine,
    /// The revision up to which it is known to be committed.
    pub committed: Revision,
}

/// Makes the first state of an epoch, and its store. Errors name the folder that comes with the state.
fn begin<E: std::fmt::Display>(
    (mut machine, dir): (Machine, &Path),
    base: Revision,
    to: (&Path, RaftId),
    era: Era,
    at_ms: u64,
    build: impl FnOnce(&Tree, Revision) -> Result<Vec<Txn>, E>,
) -> Result<(), StoreError> {
    let failed = |why: String| StoreError::Succession { dir: dir.to_owned(), why };
    machine.leap(leap(era));
    let txns = build(machine.tree(), base).map_err(|e| failed(e.to_string()))?;
    machine.succeed(to.1.0, &txns, at_ms).map_err(|e| failed(e.to_string()))?;
    match std::fs::remove_dir_all(to.0) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(StoreError::Io { action: "clear", dir: to.0.to_owned(), source });
        }
        _ => {}
    }
    Store::create(to.0, to.1.0, &machine).map(drop)
}

/// What a store holds of changes after a revision, oldest first, those not known to be committed too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// The last revision.
    pub revision: Revision,
    /// The changes of which there is a history.
    pub changes: Vec<Change>,
    /// The paths that were changed without a history: secrets and ownerships.
    pub silent: Vec<String>,
}

/// Looks what a store, which nobody may have open, holds after a revision.
///
/// # Errors
/// If it can't be read.
pub fn ahead(dir: &Path, id: RaftId, since: Revision) -> Result<Ahead, StoreError> {
    let (store, recovered, _) = Store::open(dir, id.0)?;
    drop(store);
    let failed = |e: MachineFault| StoreError::Damaged { dir: dir.to_owned(), what: e.to_string() };
    let (machine, _) = replay(recovered).map_err(failed)?;
    let changes: Vec<Change> =
        machine.history().all().filter(|change| change.revision > since).cloned().collect();
    let tree = machine.tree();
    let silent = tree
        .list("")
        .filter(|(path, entry)| entry.revision > since && !changes.iter().any(|change| change.path == *path));
    let silent = silent.map(|(path, _)| path.to_owned()).collect();
    Ok(Ahead { revision: tree.revision(), changes, silent })
}

/// The state after the whole log, and the revision up to which it is known to be committed.
fn replay(recovered: Recovered) -> Result<(Machine, Revision), MachineFault> {
    let Recovered { hard, entries, mut machine, .. } = recovered;
    let mut base = machine.tree().revision();
    for entry in entries {
        if entry.index <= machine.applied() {
            continue;
        }
        let committed = match entry.body {
            LogBody::Data(data) if data.is_empty() => CommittedEntry::Empty,
            LogBody::Data(data) => {
                CommittedEntry::Proposal(Box::new(codec::unpack::<Proposal>(codec::PROPOSAL, &data)?))
            }
            LogBody::Change(change) => CommittedEntry::Members(changed(machine.members(), &change)),
        };
        machine.apply(entry.index, committed)?;
        if entry.index <= hard.commit {
            base = machine.tree().revision();
        }
    }
    Ok((machine, base))
}

/// Who takes part after a change, in whatever role: that decides whose proposals count.
fn changed(before: &Members, change: &LogChange) -> Members {
    let mut members = before.clone();
    for (role, id) in &change.steps {
        match role {
            1 => {
                members.voters.remove(id);
                members.outgoing.remove(id);
                members.learners.remove(id);
                members.learners_next.remove(id);
            }
            _ => {
                members.learners.insert(*id);
            }
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Persist;
    use crate::engine::Hard;
    use crate::machine::ProposalId;
    use crate::store::Disk;
    use crate::wire::LogEntry;

    fn proposal(index: u64, seq: u64, txn: Txn) -> LogEntry {
        let id = ProposalId { origin: 2, boot: 1, seq };
        let proposal = Proposal { id, floor: 0, needs: 1, at_ms: 5, txn };
        let data = codec::pack(codec::PROPOSAL, &proposal).unwrap();
        LogEntry { index, term: 1, body: LogBody::Data(data.into()) }
    }

    /// A store of node 1 in a group of 1 and 2, in whose log one more entry is known to be committed and one is not.
    fn old(dir: &Path) {
        let mut machine = Machine::found(1, &Txn::new("root@pam").put("a", "1"), 1).unwrap();
        let both = Members { voters: [1, 2].into(), ..Members::default() };
        machine.apply(2, CommittedEntry::Members(both)).unwrap();
        let (mut store, _, _) = Store::create(dir, 1, &machine).unwrap();
        let entries = vec![
            proposal(3, 1, Txn::new("bob@pve").put("b", "2")),
            proposal(
                4,
                2,
                Txn::new("bob@pve").put(
                    "priv/owner",
                    crate::seal::ClusterKey::from([1; 32]).seal("priv/owner", b"x").unwrap(),
                ),
            ),
        ];
        let hard = Some(Hard { term: 1, vote: 2, commit: 3 });
        store.write(&[Persist { hard, entries, ..Persist::default() }]).unwrap();
    }

    #[test]
    fn the_new_epoch_has_all_of_the_log_and_one_member() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("old"), dir.path().join("new"));
        old(&from);
        // Left over from a try that was cut off.
        std::fs::create_dir_all(to.join("conf.redb.new")).unwrap();
        let build = |tree: &Tree, base: Revision| {
            assert_eq!((tree.revision(), base), (Revision(3 + LEAP), Revision(2)));
            Ok::<_, String>(vec![Txn::new("root@pam").put("c", "3")])
        };
        succeed((&from, RaftId(1)), (&to, RaftId(1001)), Era::FIRST, 9, build).unwrap();
        let (_store, recovered, boot) = Store::open(&to, 1001).unwrap();
        let machine = recovered.machine;
        assert_eq!((machine.members().all(), boot), ([1001].into(), 2));
        assert_eq!(*machine.removed(), [1, 2].into());
        assert_eq!(machine.tree().revision(), Revision(4 + LEAP));
        for (path, there) in [("a", true), ("b", true), ("priv/owner", true), ("c", true), ("d", false)] {
            assert_eq!(machine.tree().get(path).is_some(), there, "{path}");
        }
        // What a node of the old group has proposed counts no more.
        let mut machine = machine;
        let LogBody::Data(late) = proposal(0, 3, Txn::new("bob@pve").put("d", "4")).body else { panic!() };
        let late = codec::unpack::<Proposal>(codec::PROPOSAL, &late).unwrap();
        let index = machine.applied() + 1;
        machine.apply(index, CommittedEntry::Proposal(Box::new(late))).unwrap();
        assert!(machine.tree().get("d").is_none());
        // The old store is what it was.
        assert_eq!(Store::open(&from, 1).unwrap().1.entries.len(), 2);
    }

    #[test]
    fn a_store_is_looked_at_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        old(dir.path());
        let file = dir.path().join("conf.redb");
        let before = std::fs::read(&file).unwrap();
        let seen = look(dir.path()).unwrap();
        assert_eq!((seen.id, seen.boots, seen.entries, seen.hard.commit), (1, 1, 2, 3));
        assert_eq!((seen.committed, seen.machine.tree().revision()), (Revision(2), Revision(3)));
        assert_eq!(crate::check::faults(&seen.machine, None), Vec::<String>::new());
        assert_eq!(std::fs::read(&file).unwrap(), before);
        // Wherever a bit has changed, it is told or is of no meaning; nothing fails in another way.
        let whole = seen.machine.encode().unwrap();
        for at in (0..before.len()).step_by(before.len() / 200) {
            let mut bad = before.clone();
            bad[at] ^= 0x10;
            std::fs::write(&file, &bad).unwrap();
            if let Ok(seen) = look(dir.path()) {
                assert_eq!(seen.machine.encode().unwrap(), whole, "byte {at}");
            }
        }
        for bad in [&before[..before.len() / 2], b"", b"no database"] {
            std::fs::write(&file, bad).unwrap();
            assert!(matches!(look(dir.path()), Err(StoreError::Damaged { .. })), "{}", bad.len());
        }
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(look(dir.path()), Err(StoreError::Missing { .. })));
    }

    #[test]
    fn a_backup_begins_an_epoch_of_one_member() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("old"), dir.path().join("new"));
        old(&from);
        let seen = look(&from).unwrap();
        let key = crate::seal::ClusterKey::from([1; 32]);
        let data = Backup::of(seen.machine, key, "n1", Era::FIRST, 7).encode().unwrap();
        let era = Era::FIRST.next(3);
        let build =
            |_: &Tree, base: Revision| Ok::<_, String>(vec![Txn::new("x").put("c", base.to_string())]);
        restore(Backup::decode(&data).unwrap(), (&to, RaftId(1001)), era, 9, build).unwrap();
        let seen = look(&to).unwrap();
        assert_eq!((seen.id, seen.machine.members().all()), (1001, [1001].into()));
        let tree = seen.machine.tree();
        assert_eq!((tree.text("a"), tree.text("b"), tree.text("c")), (Some("1"), Some("2"), Some("3")));
        assert_eq!(tree.revision(), Revision(3 + leap(era) + 1));
        assert_eq!(crate::check::faults(&seen.machine, None), Vec::<String>::new());
    }

    #[test]
    fn a_refusal_leaves_no_new_store() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("old"), dir.path().join("new"));
        old(&from);
        let refused = succeed((&from, RaftId(1)), (&to, RaftId(9)), Era::FIRST, 9, |_, _| Err("no"));
        assert!(matches!(refused, Err(StoreError::Succession { .. })), "{refused:?}");
        let wrong = |_: &Tree, _| Ok::<_, String>(vec![Txn::new("x").put("a/b", "a folder and a file")]);
        assert!(succeed((&from, RaftId(1)), (&to, RaftId(9)), Era::FIRST, 9, wrong).is_err());
        assert!(!crate::store::exists(&to));
    }

    #[test]
    fn what_a_node_had_alone_is_told_with_its_author() {
        let dir = tempfile::tempdir().unwrap();
        old(dir.path());
        let all = ahead(dir.path(), RaftId(1), Revision(1)).unwrap();
        let told: Vec<_> = all.changes.iter().map(|c| (c.path.as_str(), c.author.as_str())).collect();
        assert_eq!(told, [("b", "bob@pve")]);
        assert_eq!((all.silent, all.revision), (vec!["priv/owner".to_owned()], Revision(3)));
        let none = ahead(dir.path(), RaftId(1), Revision(3)).unwrap();
        assert!(none.changes.is_empty() && none.silent.is_empty());
    }
}
