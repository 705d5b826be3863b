use super::*;
use stead_model::{FenceProfile, GuestKind, Ownership, PoweredOff};

const BOOT: &str = "33333333-3333-4333-8333-333333333333";

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn node(n: u8) -> NodeRecord {
    let boot: stead_model::BootId = BOOT.parse().unwrap();
    NodeRecord {
        name: name(&format!("n{n}")),
        uuid: format!("{n}1111111-1111-4111-8111-111111111111").parse().unwrap(),
        raft_id: RaftId(n.into()),
        addr: format!("127.0.0.{n}:8006").parse().unwrap(),
        links: stead_model::link::Links::new(),
        state: NodeState::Member { boot: boot.clone() },
        version: String::new(),
        witness: n == 4,
        off: (n == 3).then_some(PoweredOff { boot, devices: "pdu".into(), took_ms: 1 }),
        restart: None,
    }
}

fn own(owner: &str, epoch: u64, armed: bool, running: bool) -> Ownership {
    let kind = GuestKind::Qemu;
    Ownership { kind, owner: name(owner), epoch: Epoch(epoch), armed, running, recovered: false }
}

fn vmid(n: u32) -> Vmid {
    Vmid::new(n).unwrap()
}

fn tree(guests: &[(u32, Ownership)]) -> Tree {
    let cluster = ClusterRecord {
        name: "test".into(),
        uuid: "u".into(),
        epoch: Epoch(1),
        profile: FenceProfile::default(),
        previous_profile: None,
        lineage: Lineage::default(),
    };
    let mut txn = store::txn("root@pam", "founded");
    store::put_over(&mut txn, paths::CLUSTER, None, store::bytes(&cluster).unwrap());
    for n in 1..=4 {
        store::put_over(&mut txn, &paths::node(&node(n).name), None, store::bytes(&node(n)).unwrap());
    }
    for (v, own) in guests {
        store::put_over(&mut txn, &paths::ownership(vmid(*v)), None, store::bytes(own).unwrap());
    }
    let mut tree = Tree::new();
    tree.apply(&txn).unwrap();
    tree
}

fn plan(spared: &[(u32, u64)]) -> EpochPlan {
    EpochPlan {
        survivor: name("n1"),
        era: Era::FIRST.next(9),
        raft_id: RaftId(1001),
        spared: spared.iter().map(|(v, e)| (vmid(*v), Epoch(*e))).collect(),
        off: vec![name("n2"), name("n3")],
        by: "root@pam".into(),
        at_ms: 7,
    }
}

fn after(guests: &[(u32, Ownership)], plan: &EpochPlan) -> Tree {
    let mut tree = tree(guests);
    for txn in succession(&tree, Revision(1), plan).unwrap() {
        tree.apply(&txn).unwrap();
    }
    tree
}

#[test]
fn the_others_are_lost_with_new_numbers_and_no_confirmation_counts() {
    let tree = after(&[], &plan(&[]));
    let nodes = store::nodes(&tree);
    assert_eq!(nodes.iter().map(|n| n.raft_id.0).collect::<Vec<_>>(), [1001, 1002, 1003, 1004]);
    assert_eq!(nodes.iter().map(|n| n.state.is_lost()).collect::<Vec<_>>(), [false, true, true, false]);
    assert!(nodes.iter().all(|n| n.off.is_none()));
    let cluster = store::record::<ClusterRecord>(&tree, paths::CLUSTER).unwrap().unwrap().value;
    assert_eq!((cluster.epoch, cluster.lineage.era()), (Epoch(2), plan(&[]).era));
    assert_eq!(cluster.lineage.after(Era::FIRST).unwrap().base, 1);
    assert_eq!(numbers(&tree).unwrap().0, 1005);
}

#[test]
fn no_guest_of_another_node_is_recoverable_and_no_guarded_copy_is_the_guest_any_more() {
    let before = [
        (100, own("n1", 3, true, true)),
        (101, own("n1", 4, false, true)),
        (102, own("n1", 4, false, false)),
        (103, own("n2", 5, true, true)),
        (104, own("n2", 6, false, false)),
    ];
    let tree = after(&before, &plan(&[(101, 4)]));
    let now: BTreeMap<Vmid, Ownership> = store::guests(&tree).into_iter().collect();
    let (mine, other) = (name("n1"), name("n2"));
    assert_eq!(claim(now.get(&vmid(100)), &mine, Epoch(3)), Claim::Old, "guarded: destroyed, started cold");
    assert_eq!(claim(now.get(&vmid(101)), &mine, Epoch(4)), Claim::Owner, "nobody paused it");
    for (v, own) in &now {
        assert!(!own.armed, "{v}");
        assert_eq!(own.running, *v != vmid(102), "{v}");
    }
    for (v, old) in [(103, 5), (104, 6)] {
        for epoch in old..old + 5 {
            assert_eq!(claim(now.get(&vmid(v)), &other, Epoch(epoch)), Claim::Old, "{v} under {epoch}");
        }
    }
}

#[test]
fn a_spared_guest_is_spared_under_its_epoch_alone() {
    // It was handed over by an entry that was applied only when the new epoch was made.
    let tree = after(
        &[(100, own("n1", 4, false, true)), (101, own("n2", 5, false, true))],
        &plan(&[(100, 3), (101, 4)]),
    );
    let now: BTreeMap<Vmid, Ownership> = store::guests(&tree).into_iter().collect();
    assert_eq!(claim(now.get(&vmid(100)), &name("n1"), Epoch(3)), Claim::Old);
    assert_eq!(claim(now.get(&vmid(101)), &name("n1"), Epoch(4)), Claim::Old);
}

#[test]
fn the_word_must_cover_every_other_node() {
    let others = [node(2), node(3)];
    assert!(named_exactly(&others, &[name("n3"), name("n2")]).is_ok());
    let missing = named_exactly(&others, &[name("n2")]).unwrap_err().to_string();
    assert!(missing.contains("n3"), "{missing}");
    assert!(named_exactly(&others, &[name("n2"), name("n3"), name("n1")]).is_err());
}

fn aside(changes: usize) -> Aside {
    // Names of which every other is the same, as history has them.
    let change = |n: usize| {
        let path = format!("nodes/n2/qemu-server/{}.conf", 100 + n / 2);
        stead_conf::Change {
            revision: Revision(n as u64),
            author: "root@pam".into(),
            note: String::new(),
            at_ms: 0,
            path,
            kind: stead_conf::ChangeKind::Put,
            old: None,
            new: None,
        }
    };
    let ahead = stead_conf::succession::Ahead {
        revision: Revision(9),
        changes: (0..changes).map(change).collect(),
        silent: vec![],
    };
    let none = Aside {
        node: name("n2"),
        era: Era::FIRST,
        at_ms: 7,
        place: "conf.epoch-1".into(),
        revision: 0,
        base: 1,
        changes: vec![],
        more: 0,
        unreadable: None,
    };
    none.of(ahead)
}

#[test]
fn what_a_node_had_alone_is_named_in_one_line_and_counted() {
    assert!(aside(0).line().contains("nothing that is missing here"));
    let few = aside(3).line();
    assert!(
        few.contains("had changed nodes/n2/qemu-server/100.conf, nodes/n2/qemu-server/101.conf alone"),
        "{few}"
    );
    let many = aside(TOLD + 77).line();
    assert!(many.contains("104.conf and 122 more alone"), "{many}");
    assert!(many.len() < stead_conf::MAX_NOTE, "{many}");
}

#[test]
fn what_a_backup_s_state_would_do_by_itself_waits_and_what_was_asked_then_is_dropped() {
    let mut tree = tree(&[(100, own("n1", 3, true, true))]);
    let command = format!("{}100", crate::ha::COMMANDS);
    let mut txn = store::txn("bob@pve", "move");
    for (path, data) in [(command.as_str(), "{}"), (paths::HA_STATUS, "damaged")] {
        store::put_over(&mut txn, path, None, data);
    }
    tree.apply(&txn).unwrap();
    for txn in restored(&tree, Revision(1), &plan(&[])).unwrap() {
        tree.apply(&txn).unwrap();
    }
    let state = store::record::<stead_ha::ManagerState>(&tree, paths::HA_STATUS).unwrap().unwrap().value;
    assert!(state.disarm.is_some_and(|d| d.ready));
    assert!(tree.get(&command).is_none() && tree.get(paths::RESTORED).is_some());
}
