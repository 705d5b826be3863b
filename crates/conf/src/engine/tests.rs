//! What the engine keeps raft-rs from.

use super::*;

fn snapshot(meta: SnapshotMeta) -> Message {
    Message {
        kind: MessageKind::Snapshot,
        from: 2,
        to: 1,
        term: 1,
        log_term: 0,
        index: 0,
        entries: vec![],
        commit: 0,
        commit_term: 0,
        reject: false,
        reject_hint: 0,
        request_snapshot: 0,
        context: Bytes::new(),
        snapshot: Some(meta),
    }
}

/// A disk takes its time to write a state that came from the leader, which then falls silent.
#[test]
fn who_has_a_state_that_is_not_on_its_disk_stands_for_no_election() {
    let members = Members { voters: [1, 2, 3].into(), ..Members::default() };
    let hard = Hard { term: 1, vote: 0, commit: 5 };
    let durable = Durable { hard, truncated: (5, 1), entries: vec![], members: members.clone(), applied: 5 };
    let timing = Timing { heartbeat: 2, election: 14, spread: 10, patience: 0, seed: 1 };
    let mut engine = RaftEngine::new(1, timing, &durable).unwrap();
    engine.step(snapshot(SnapshotMeta { index: 40, term: 1, members })).unwrap();
    let mut number = 0;
    for _ in 0..100 {
        while let Some(ready) = engine.ready().unwrap() {
            number = ready.number;
        }
        engine.tick();
        assert_eq!(engine.node.raft.state, StateRole::Follower);
    }
    engine.persisted(number);
    engine.applied(40);
    for _ in 0..100 {
        engine.tick();
    }
    assert_ne!(engine.node.raft.state, StateRole::Follower, "then it does");
}
