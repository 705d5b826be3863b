//! The tree's invariants, by example and against a simple model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use proptest::prelude::*;
use std::collections::BTreeMap;
use stead_conf::{
    Change, ChangeKind, CommittedEntry, Expected, Found, HistoryLimits, MAX_FILE, MAX_TXN, Machine,
    MachineFault, Members, Moment, Op, PastError, PathFault, Proposal, ProposalId, Refusal, Revision, Tree,
    Txn, check_path,
};

const VM: &str = "nodes/a/qemu-server/100.conf";

fn tree(txn: &Txn) -> Tree {
    let mut tree = Tree::new();
    tree.apply(txn).unwrap();
    tree
}

#[test]
fn a_vmid_exists_once_in_the_whole_cluster() {
    let mut tree = tree(&Txn::new("x").put(VM, "a"));
    for other in ["nodes/b/qemu-server/100.conf", "nodes/a/lxc/100.conf", "nodes/Odd_Name/lxc/0100.conf"] {
        let refused = tree.apply(&Txn::new("x").put(other, "b")).unwrap_err();
        assert_eq!(refused, Refusal::Duplicate { vmid: 100, path: other.into(), other: VM.into() });
        assert_eq!(
            refused.to_string(),
            format!("VMID 100 is already in use: '{other}' cannot be made while '{VM}' exists")
        );
    }
    let both = Txn::new("x").put("nodes/a/lxc/7.conf", "").put("nodes/b/lxc/7.conf", "");
    assert!(matches!(tree.apply(&both), Err(Refusal::Duplicate { vmid: 7, .. })));
    // Within one transaction the order does not matter, the end does.
    let moved = Txn::new("x").put("nodes/b/qemu-server/100.conf", "b").delete(VM);
    tree.apply(&moved).unwrap();
    assert_eq!(tree.guest(100), Some("nodes/b/qemu-server/100.conf"));
    tree.apply(&Txn::new("x").rename("nodes/b/qemu-server/100.conf", VM)).unwrap();
    assert_eq!(tree.guests().collect::<Vec<_>>(), [(100, VM)]);
    // What is no guest's configuration is not counted.
    tree.apply(&Txn::new("x").put("nodes/b/qemu-server/100.conf.tmp", "").put("backup/100.conf", ""))
        .unwrap();
}

#[test]
fn a_move_keeps_the_value_and_takes_a_new_revision() {
    let mut tree = tree(&Txn::new("x").put("a", "1"));
    let changed = tree.apply(&Txn::new("x").rename("a", "b")).unwrap();
    assert_eq!(tree.get("a"), None);
    assert_eq!((tree.text("b"), tree.get("b").unwrap().revision), (Some("1"), Revision(2)));
    assert_eq!(changed[0].kind, ChangeKind::MovedTo("b".into()));
    assert_eq!(changed[1].kind, ChangeKind::MovedFrom("a".into()));
    assert_eq!(tree.apply(&Txn::new("x").rename("a", "c")), Err(Refusal::Missing { path: "a".into() }));
    tree.apply(&Txn::new("x").put("a", "2")).unwrap();
    assert_eq!(tree.apply(&Txn::new("x").rename("a", "b")), Err(Refusal::Occupied { path: "b".into() }));
    assert_eq!(tree.apply(&Txn::new("x").rename("a", "a")).unwrap().len(), 1, "onto itself: written anew");
}

#[test]
fn checks_say_what_they_expected_and_found() {
    let mut tree = tree(&Txn::new("x").put("a", "1"));
    let refused = |tree: &mut Tree, txn: Txn| match tree.apply(&txn).unwrap_err() {
        Refusal::Check { path, expected, found } => (path, expected, found),
        other => panic!("{other}"),
    };
    let here = Found::At(Revision(1));
    assert_eq!(refused(&mut tree, Txn::new("x").absent("a")), ("a".into(), Expected::Absent, here));
    assert_eq!(refused(&mut tree, Txn::new("x").exists("b")), ("b".into(), Expected::Exists, Found::Absent));
    assert_eq!(
        refused(&mut tree, Txn::new("x").unchanged("a", Revision(7))),
        ("a".into(), Expected::At(Revision(7)), here)
    );
    assert_eq!(refused(&mut tree, Txn::new("x").equals("a", "2")), ("a".into(), Expected::Content, here));
    let good = Txn::new("x").exists("a").absent("b").unchanged("a", Revision(1)).equals("a", "1");
    assert_eq!(tree.apply(&good), Ok(Vec::new()));
    assert_eq!(tree.revision(), Revision(1), "without operations nothing has changed");
}

#[test]
fn paths_values_and_folders_are_checked() {
    for (path, why) in [
        ("", PathFault::Empty),
        ("/a", PathFault::Slash),
        ("a/", PathFault::Slash),
        ("a//b", PathFault::Slash),
        ("a/../b", PathFault::Dots),
        (".", PathFault::Dots),
        ("a\nb", PathFault::Control),
        (&"x".repeat(256), PathFault::Long),
        (&"x/".repeat(600), PathFault::Long),
    ] {
        assert!(
            matches!(check_path(path), Err(Refusal::Path { why: found, .. }) if found == why),
            "{path:?}"
        );
    }
    check_path("nodes/ä b/..hidden").unwrap();
    let mut tree = tree(&Txn::new("x").put("a/b", "1"));
    for path in ["a", "a/b/c"] {
        assert!(matches!(tree.apply(&Txn::new("x").put(path, "")), Err(Refusal::Folder { .. })), "{path}");
    }
    assert!(matches!(tree.apply(&Txn::new("x").put("n", "").put("n/m", "")), Err(Refusal::Folder { .. })));
    tree.apply(&Txn::new("x").delete("a/b").put("a", "")).unwrap();
    let big = vec![0; MAX_FILE + 1];
    assert!(matches!(tree.apply(&Txn::new("x").put("big", big)), Err(Refusal::FileSize { .. })));
    let mut txn = Txn::new("x");
    for n in 0..=MAX_TXN / MAX_FILE {
        txn = txn.put(format!("big/{n}"), vec![0; MAX_FILE]);
    }
    assert!(matches!(tree.apply(&txn), Err(Refusal::TxnSize { .. })));
    let note = "x".repeat(2000);
    assert!(matches!(tree.apply(&Txn::new(note).put("b", "")), Err(Refusal::TxnSize { .. })));
}

#[test]
fn the_tree_has_a_limit() {
    let mut tree = Tree::new();
    let refused =
        (0..).find_map(|n| tree.apply(&Txn::new("x").put(format!("f/{n}"), vec![0; MAX_FILE])).err());
    assert!(matches!(refused, Some(Refusal::TreeSize { .. })));
    assert!(
        tree.bytes() <= stead_conf::MAX_TREE && tree.bytes() > stead_conf::MAX_TREE - 2 * MAX_FILE as u64
    );
}

/// Operations on few paths, so that they meet.
fn ops() -> impl Strategy<Value = Vec<Vec<Op>>> {
    let path = prop::sample::select(vec![
        "a",
        "a/b",
        "c",
        VM,
        "nodes/b/qemu-server/100.conf",
        "nodes/b/lxc/100.conf",
        "nodes/b/lxc/101.conf",
        "stead/owner/100",
        "../x",
    ]);
    let op = prop_oneof![
        3 => (path.clone(), "[a-c]{0,4}").prop_map(|(path, data)| Op::Put(path.into(), data.into())),
        1 => path.clone().prop_map(|path| Op::Delete(path.into())),
        2 => (path.clone(), path).prop_map(|(from, to)| Op::Move { from: from.into(), to: to.into() }),
    ];
    prop::collection::vec(prop::collection::vec(op, 1..4), 1..40)
}

/// What a transaction does, said as simply as can be.
fn model(before: &BTreeMap<String, Vec<u8>>, ops: &[Op]) -> Option<BTreeMap<String, Vec<u8>>> {
    let mut after = before.clone();
    for op in ops {
        match op {
            Op::Put(path, data) => {
                check_path(path).ok()?;
                after.insert(path.clone(), data.to_vec());
            }
            Op::Delete(path) => drop(after.remove(path)?),
            Op::Move { from, to } => {
                check_path(to).ok()?;
                let data = after.remove(from)?;
                if after.insert(to.clone(), data).is_some() {
                    return None;
                }
            }
            Op::Level(_) => {}
        }
    }
    let mut vmids: Vec<&str> = after
        .keys()
        .filter(|path| path.starts_with("nodes/"))
        .filter_map(|path| path.rsplit('/').next())
        .collect();
    let count = vmids.len();
    vmids.sort_unstable();
    vmids.dedup();
    let folders = after.keys().any(|path| after.keys().any(|other| other.starts_with(&format!("{path}/"))));
    (vmids.len() == count && !folders).then_some(after)
}

proptest! {
    #[test]
    fn apply_does_what_the_model_does(txns in ops()) {
        let mut tree = Tree::new();
        let mut simple = BTreeMap::new();
        for ops in txns {
            let txn = Txn { ops: ops.clone(), ..Txn::new("x") };
            let (hash, revision) = (tree.hash(), tree.revision());
            match (tree.apply(&txn), model(&simple, &ops)) {
                (Ok(_), Some(after)) => {
                    prop_assert_eq!(tree.revision(), Revision(revision.0 + 1));
                    simple = after;
                }
                (Err(_), None) => {
                    prop_assert_eq!(tree.hash(), hash, "a refusal changes nothing");
                    prop_assert_eq!(tree.revision(), revision);
                }
                (real, simple) => prop_assert!(false, "{ops:?}: {real:?}, {simple:?}"),
            }
            let content: BTreeMap<String, Vec<u8>> =
                tree.list("").map(|(path, entry)| (path.to_owned(), entry.data.to_vec())).collect();
            prop_assert_eq!(&content, &simple);
            let bytes: usize = content.iter().map(|(path, data)| path.len() + data.len()).sum();
            prop_assert_eq!(tree.bytes(), bytes as u64);
        }
    }

    #[test]
    fn a_state_survives_its_encoding(txns in ops()) {
        let mut machine = Machine::found(1, &Txn::new("x"), 0).unwrap();
        for (seq, ops) in (1..).zip(txns) {
            let txn = Txn { ops, ..Txn::new("x") };
            machine.apply(seq + 1, proposal(1, seq, 0, txn)).unwrap();
        }
        let image = machine.encode().unwrap();
        let again = Machine::decode(&image).unwrap();
        prop_assert_eq!(again.hash(), machine.hash());
        prop_assert_eq!(again.encode().unwrap(), image);
        prop_assert_eq!(
            again.history().all().cloned().collect::<Vec<Change>>(),
            machine.history().all().cloned().collect::<Vec<Change>>()
        );
    }
}

fn proposal(boot: u64, seq: u64, floor: u64, txn: Txn) -> CommittedEntry {
    let id = ProposalId { origin: 1, boot, seq };
    CommittedEntry::Proposal(Box::new(Proposal { id, floor, needs: 1, at_ms: seq, txn }))
}

#[test]
fn a_proposal_takes_effect_once() {
    let mut machine = Machine::found(1, &Txn::new("x").put("n", "0"), 0).unwrap();
    let add = |n: u64| Txn::new("x").put("n", n.to_string()).put(format!("n{n}"), "");
    let first = machine.apply(2, proposal(1, 1, 1, add(1))).unwrap();
    assert!(first.event.is_some());
    let again = machine.apply(3, proposal(1, 1, 1, add(1))).unwrap();
    assert_eq!((again.outcome, again.event), (first.outcome, None), "the same answer, no effect");
    // Refusals are remembered as well: what was refused once does not take effect later.
    let refused = machine.apply(4, proposal(1, 2, 1, Txn::new("x").absent("n").put("z", ""))).unwrap();
    machine.apply(5, proposal(1, 3, 1, Txn::new("x").delete("n"))).unwrap();
    let later = machine.apply(6, proposal(1, 2, 1, Txn::new("x").absent("n").put("z", ""))).unwrap();
    assert_eq!(later.outcome, refused.outcome);
    // Below the floor nothing is applied, nor of an earlier boot.
    machine.apply(7, proposal(1, 9, 9, add(9))).unwrap();
    let stale = machine.apply(8, proposal(1, 5, 1, add(5))).unwrap();
    assert_eq!(stale.outcome.unwrap().1, None);
    machine.apply(9, proposal(2, 1, 1, add(20))).unwrap();
    let stale = machine.apply(10, proposal(1, 10, 9, add(10))).unwrap();
    assert_eq!(stale.outcome.unwrap().1, None);
    assert_eq!(machine.tree().text("n"), Some("20"));
    assert_eq!(machine.tree().get("n5"), None);
    assert_eq!(machine.tree().get("n10"), None);
}

#[test]
fn who_is_no_member_changes_nothing() {
    let mut machine = Machine::found(1, &Txn::new("x"), 0).unwrap();
    let members = |voters: &[u64]| Members { voters: voters.iter().copied().collect(), ..Members::default() };
    machine.apply(2, CommittedEntry::Members(members(&[1, 2]))).unwrap();
    machine.apply(3, CommittedEntry::Members(members(&[2]))).unwrap();
    assert!(machine.removed().contains(&1));
    let late = machine.apply(4, proposal(1, 1, 1, Txn::new("x").put("a", ""))).unwrap();
    assert_eq!(late.outcome.unwrap().1, Some(Err(Refusal::NotMember { id: 1 })));
    assert_eq!(machine.tree().get("a"), None);
}

#[test]
fn a_version_that_does_not_understand_a_level_stops() {
    let raise = proposal(1, 1, 1, Txn::new("x").op(Op::Level(3)));
    let mut old = Machine::found(1, &Txn::new("x"), 0).unwrap();
    let mut new = old.clone().supporting(3);
    assert_eq!(old.apply(2, raise.clone()), Err(MachineFault::Level { level: 3, supported: 2 }));
    assert_eq!(old.applied(), 1);
    let mut needs = Proposal {
        id: ProposalId { origin: 1, boot: 1, seq: 2 },
        floor: 1,
        needs: 3,
        at_ms: 0,
        txn: Txn::new("x").put("a", ""),
    };
    let early = new.apply(2, CommittedEntry::Proposal(Box::new(needs.clone()))).unwrap();
    assert_eq!(early.outcome.unwrap().1, Some(Err(Refusal::Level { needs: 3, level: 1 })));
    new.apply(3, raise).unwrap();
    assert_eq!(new.tree().level(), 3);
    needs.id.seq = 3;
    new.apply(4, CommittedEntry::Proposal(Box::new(needs))).unwrap();
    assert!(new.tree().get("a").is_some());
    let image = new.encode().unwrap();
    let read = Machine::decode(&image).map(|machine| machine.applied());
    assert_eq!(read, Err(MachineFault::Level { level: 3, supported: 2 }), "a snapshot or a store of it");
}

#[test]
fn the_history_is_bounded_and_keeps_no_secrets_or_owners() {
    let key = stead_conf::ClusterKey::from([1; 32]);
    let mut machine = Machine::found(1, &Txn::new("x"), 0).unwrap();
    for n in 1..=200u64 {
        let txn = Txn::new("root@pam")
            .note(format!("step {n}"))
            .put("a", n.to_string())
            .put("priv/s", key.seal("priv/s", b"secret").unwrap())
            .put("stead/owner/100", n.to_string())
            .put(format!("big/{}", n % 40), vec![b'x'; 400_000]);
        machine.apply(n + 1, proposal(1, n, n, txn)).unwrap();
    }
    let history = machine.history();
    assert_eq!(history.of("priv/s").count() + history.of("stead/owner/100").count(), 0);
    assert!(history.all().all(|change| change.path == "a" || change.path.starts_with("big/")));
    let last = history.of("a").next_back().unwrap();
    assert_eq!(last.revision, Revision(200));
    assert_eq!((last.author.as_str(), last.note.as_str(), last.at_ms), ("root@pam", "step 200", 200));
    assert_eq!((last.old.as_deref(), last.new.as_deref()), (Some(&b"199"[..]), Some(&b"200"[..])));
    assert!(history.of("a").count() <= 64);
    let bytes: usize = history
        .all()
        .map(|change| {
            change.old.as_ref().map_or(0, bytes::Bytes::len)
                + change.new.as_ref().map_or(0, bytes::Bytes::len)
        })
        .sum();
    assert!(bytes <= 16 << 20, "{bytes}");
    assert!(bytes > 8 << 20, "{bytes}");
}

#[test]
fn the_history_keeps_what_the_tree_says_and_is_the_same_where_a_snapshot_was_read() {
    const DAY: u64 = 86_400_000;
    let mut machine = Machine::found(1, &Txn::new("x"), 0).unwrap();
    let mut seq = 0;
    let mut put = |machine: &mut Machine, at_ms: u64, txn: Txn| {
        seq += 1;
        let id = ProposalId { origin: 1, boot: 1, seq };
        let entry = Proposal { id, floor: seq, needs: 1, at_ms, txn };
        let outcome = machine.apply(seq + 1, CommittedEntry::Proposal(Box::new(entry))).unwrap().outcome;
        outcome.unwrap().1.unwrap().unwrap();
    };
    for day in 0..400 {
        put(&mut machine, day * DAY, Txn::new("x").put(format!("n/{day}"), vec![b'x'; 5000]));
    }
    let limits = HistoryLimits { max_bytes: 1 << 20, max_age_ms: Some(30 * DAY) };
    assert_eq!(HistoryLimits::parse(&limits.text()), Some(limits));
    let said = Txn::new("x").put("stead/history", limits.text());
    put(&mut machine, 400 * DAY, said.clone());
    assert_eq!(machine.history().len(), 401, "before that level they are not understood");
    put(&mut machine, 400 * DAY, said.op(Op::Level(HistoryLimits::LEVEL)));
    // By age all but a few would go.
    assert!(machine.history().len() <= 256 && machine.history().bytes() <= 1 << 20);
    assert!(machine.history().bytes() > 1_000_000, "no more than must");
    let small = HistoryLimits { max_bytes: 1 << 20, max_age_ms: Some(DAY) };
    put(&mut machine, 401 * DAY, Txn::new("x").put("stead/history", small.text()));
    for n in 0..300 {
        put(&mut machine, 401 * DAY + n, Txn::new("x").put("m", n.to_string()).put(format!("m{n}"), "m"));
    }
    let mut other = Machine::decode(&machine.encode().unwrap()).unwrap();
    assert!(machine.history().all().all(|c| c.at_ms >= 401 * DAY), "all that is over 256 is young");
    // A clock that is far ahead leaves 256, and one that is behind drops none.
    for machine in [&mut machine, &mut other] {
        seq = 1000;
        let mut put = |at_ms: u64, path: &str| {
            seq += 1;
            let id = ProposalId { origin: 1, boot: 1, seq };
            let entry = Proposal { id, floor: seq, needs: 1, at_ms, txn: Txn::new("x").put(path, "z") };
            machine.apply(seq + 1, CommittedEntry::Proposal(Box::new(entry))).unwrap();
            machine.history().len()
        };
        assert_eq!(put(100_000 * DAY, "z"), 256);
        assert_eq!(put(0, "y"), 257);
    }
    assert_eq!(machine.encode().unwrap(), other.encode().unwrap());
    for text in ["max-bytes", "max-bytes x\n", "max-bytes 5\nwhat 1\n"] {
        assert_eq!(HistoryLimits::parse(text), None, "{text}");
    }
    assert_eq!(HistoryLimits::parse("max-bytes 1\n").unwrap().max_bytes, 1 << 20);
    assert_eq!(HistoryLimits::parse(""), Some(HistoryLimits::default()));
}

#[test]
fn the_latest_change_stays_however_large() {
    let mut machine = Machine::found(1, &Txn::new("x"), 0).unwrap();
    let mut txn = Txn::new("x").put("stead/history", "max-bytes 1048576\n").put("a", vec![b'x'; 900_000]);
    txn.ops.push(stead_conf::Op::Level(HistoryLimits::LEVEL));
    machine.apply(2, proposal(1, 1, 1, txn)).unwrap();
    machine.apply(3, proposal(1, 2, 2, Txn::new("bob@pve").put("a", vec![b'y'; 900_000]))).unwrap();
    let all: Vec<&str> = machine.history().all().map(|c| c.author.as_str()).collect();
    assert_eq!(all, ["bob@pve"], "with what was there before it is larger than all may be");
}

#[test]
fn a_folder_lists_what_lies_directly_in_it() {
    let mut tree = Tree::new();
    let paths = ["a", "b/c", "b/d/e", "b/d/f", "b.x", "b0", "c/d/e/f"];
    tree.apply(&paths.iter().fold(Txn::new("x"), |txn, path| txn.put(*path, *path))).unwrap();
    let of = |folder: &str| {
        let found = tree.children(folder).into_iter().map(|(name, entry)| (name.to_owned(), entry.is_some()));
        found.collect::<Vec<_>>()
    };
    let named = |all: &[(&str, bool)]| all.iter().map(|(n, f)| ((*n).to_owned(), *f)).collect::<Vec<_>>();
    assert_eq!(of(""), named(&[("a", true), ("b.x", true), ("b", false), ("b0", true), ("c", false)]));
    assert_eq!(of("b"), named(&[("c", true), ("d", false)]));
    assert_eq!(of("b/d"), named(&[("e", true), ("f", true)]));
    assert_eq!(of("a"), vec![]);
    assert!(
        tree.is_folder("") && tree.is_folder("c/d") && !tree.is_folder("a") && !tree.is_folder("c/d/e/f")
    );
}

#[test]
fn the_history_tells_what_each_path_held_or_that_it_does_not_know() {
    let mut machine = Machine::found(1, &Txn::new("x"), 0).unwrap();
    let mut then: Vec<std::collections::BTreeMap<String, String>> = vec![Default::default()];
    for n in 1..=300u64 {
        // One path often, one seldom, one that comes and goes, one moved back and forth.
        let mut txn = Txn::new("root@pam").put("often", n.to_string());
        let mut now = then.last().unwrap().clone();
        now.insert("often".into(), n.to_string());
        if n % 100 == 50 {
            txn = txn.put("seldom", n.to_string());
            now.insert("seldom".into(), n.to_string());
        }
        match n % 7 {
            1 => {
                txn = txn.put("guest", n.to_string());
                now.insert("guest".into(), n.to_string());
            }
            4 => {
                txn = txn.delete("guest");
                now.remove("guest");
            }
            _ => {}
        }
        machine.apply(n + 1, proposal(1, n, n, txn)).unwrap();
        then.push(now);
    }
    let newest = machine.tree().revision();
    assert_eq!(newest, Revision(300));
    let (mut told, mut forgotten) = (0, 0);
    for path in ["often", "seldom", "guest", "never"] {
        for (revision, held) in (0..).zip(&then).skip(1) {
            let value = held.get(path).map(String::as_str);
            for moment in [Moment::Revision(Revision(revision)), Moment::Time(revision)] {
                match machine.history().past(path, machine.tree().get(path), moment) {
                    Ok(past) => {
                        assert_eq!(
                            past.value.as_deref().map(|v| std::str::from_utf8(v).unwrap()),
                            value,
                            "{path} {moment:?}"
                        );
                        told += 1;
                    }
                    Err(PastError::Forgotten { since, .. }) => {
                        assert!(since > Revision(revision), "{path} {moment:?}: {since}");
                        forgotten += 1;
                    }
                    Err(e) => panic!("{path} {moment:?}: {e}"),
                }
            }
        }
    }
    // 64 are kept of each.
    assert!(forgotten > 2 * (300 - 64) && told > 2 * 3 * 200, "{told} told, {forgotten} forgotten");
    assert!(matches!(
        machine.history().past("priv/shadow.cfg", None, Moment::Time(0)),
        Err(PastError::Never(_))
    ));
}
