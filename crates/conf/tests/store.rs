//! The store: what was written is there again; what was damaged is noticed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::path::Path;
use stead_conf::driver::{Persist, StoredState};
use stead_conf::store::{Disk, Store};
use stead_conf::{
    CommittedEntry, Hard, LogBody, LogChange, LogEntry, Machine, Op, Proposal, ProposalId, StoreError, Txn,
};

fn machine() -> Machine {
    Machine::found(3, &Txn::new("root@pam").note("first").put("a", "1"), 1_000).unwrap()
}

fn entry(index: u64, term: u64, text: &'static str) -> LogEntry {
    LogEntry { index, term, body: LogBody::Data(text.into()) }
}

/// Index and term of entries.
type Places = Vec<(u64, u64)>;

/// Hard state, what was truncated, the log, the state's index, boots.
fn log(dir: &Path) -> (Hard, (u64, u64), Places, u64, u64) {
    let (_store, recovered, boot) = Store::open(dir, 3).unwrap();
    let entries = recovered.entries.iter().map(|entry| (entry.index, entry.term)).collect();
    (recovered.hard, recovered.truncated, entries, recovered.machine.applied(), boot)
}

#[test]
fn a_store_of_a_newer_feature_level_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("conf");
    let mut newer = machine().supporting(3);
    let id = ProposalId { origin: 3, boot: 1, seq: 1 };
    let raise = Proposal { id, floor: 0, needs: 1, at_ms: 0, txn: Txn::new("x").op(Op::Level(3)) };
    newer.apply(2, CommittedEntry::Proposal(Box::new(raise))).unwrap();
    drop(Store::create(&dir, 3, &newer).map(|_| ()));
    assert!(matches!(Store::open(&dir, 3), Err(StoreError::Level { found: 3, known: 2, .. })));
}

#[test]
fn what_is_written_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("conf");
    assert!(matches!(Store::open(&dir, 3), Err(StoreError::Missing { .. })));
    let (mut store, recovered, boot) = Store::create(&dir, 3, &machine()).unwrap();
    assert_eq!((recovered.truncated, boot), ((1, 1), 1));
    assert!(matches!(Store::create(&dir, 3, &machine()), Err(StoreError::Exists { .. })));
    let hard = Hard { term: 5, vote: 3, commit: 2 };
    let change = LogBody::Change(LogChange { transition: 0, steps: vec![(2, 4)] });
    store
        .write(&[
            Persist {
                number: 1,
                hard: Some(hard),
                entries: vec![entry(2, 1, "x"), entry(3, 1, "y")],
                ..Persist::default()
            },
            Persist {
                number: 2,
                entries: vec![LogEntry { index: 3, term: 5, body: change }],
                ..Persist::default()
            },
        ])
        .unwrap();
    drop(store);
    assert_eq!(log(&dir), (hard, (1, 1), vec![(2, 1), (3, 5)], 1, 2));

    // Compaction: the state of entry 2 takes the place of the log up to there.
    let (mut store, _, _) = Store::open(&dir, 3).unwrap();
    let mut later = machine();
    later.apply(2, CommittedEntry::Empty).unwrap();
    let state = StoredState { index: 2, image: later.encode().unwrap().into() };
    store.write(&[Persist { state: Some(state), truncate: Some((2, 1)), ..Persist::default() }]).unwrap();
    drop(store);
    assert_eq!(log(&dir), (hard, (2, 1), vec![(3, 5)], 2, 4));

    // A snapshot of another node replaces everything.
    let (mut store, _, _) = Store::open(&dir, 3).unwrap();
    later.apply(90, CommittedEntry::Empty).unwrap();
    let state = StoredState { index: 90, image: later.encode().unwrap().into() };
    let install = Persist { state: Some(state), truncate: Some((90, 6)), reset: true, ..Persist::default() };
    store.write(&[install]).unwrap();
    drop(store);
    assert_eq!(log(&dir), (hard, (90, 6), vec![], 90, 6));
    assert!(matches!(Store::open(&dir, 4), Err(StoreError::Identity { found: 3, expected: 4, .. })));
    let (_open, _, _) = Store::open(&dir, 3).unwrap();
    assert!(matches!(Store::open(&dir, 3), Err(StoreError::Io { .. })), "one process at a time");
}

#[test]
fn a_damaged_store_is_never_taken_for_a_good_or_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("conf");
    let (mut store, _, _) = Store::create(&dir, 3, &machine()).unwrap();
    let entries: Vec<_> = (2..60).map(|index| entry(index, 1, "some content of an entry")).collect();
    store.write(&[Persist { entries, ..Persist::default() }]).unwrap();
    drop(store);
    let file = dir.join("conf.redb");
    let good = fs::read(&file).unwrap();
    let (_, good_truncated, good_entries, good_applied, _) = log(&dir);
    let after_open = fs::read(&file).unwrap();

    fs::write(&file, b"").unwrap();
    assert!(matches!(Store::open(&dir, 3), Err(StoreError::Damaged { .. })));
    for len in [1, 100, 4096, good.len() / 2, good.len() - 4096] {
        fs::write(&file, &good[..len]).unwrap();
        assert!(Store::open(&dir, 3).is_err(), "cut to {len}");
    }
    // Every place where the content stands, and others: found, or without effect.
    let mut found = 0;
    let places: Vec<usize> = (0..after_open.len()).step_by(40_009).chain(text_places(&after_open)).collect();
    for at in places {
        let mut bad = after_open.clone();
        bad[at] ^= 0x10;
        fs::write(&file, &bad).unwrap();
        match Store::open(&dir, 3) {
            Err(_) => found += 1,
            Ok((_store, recovered, _)) => {
                let entries: Vec<_> =
                    recovered.entries.iter().map(|entry| (entry.index, entry.term)).collect();
                assert_eq!(
                    (recovered.truncated, entries),
                    (good_truncated, good_entries.clone()),
                    "byte {at}"
                );
                assert_eq!(recovered.machine.applied(), good_applied);
                assert!(
                    recovered
                        .entries
                        .iter()
                        .all(|entry| { entry.body == LogBody::Data("some content of an entry".into()) })
                );
            }
        }
    }
    assert!(found >= 58, "found {found}");
}

fn text_places(content: &[u8]) -> Vec<usize> {
    let text = b"some content of an entry";
    content.windows(text.len()).enumerate().filter(|(_, part)| part == text).map(|(at, _)| at + 3).collect()
}
