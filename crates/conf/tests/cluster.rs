//! The configuration as a daemon runs it: real threads, real stores, frames through channels.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Cluster, WAIT, grow, id, until};
use std::time::Duration;
use stead_conf::{
    Check, ClusterKey, Conf, ConfError, Expected, Found, MemberError, NotLeader, Op, Refusal, Revision,
    StoreError, Txn, TxnError, WatchEvent,
};

#[tokio::test(flavor = "multi_thread")]
async fn one_node_commits_and_keeps() {
    let mut cluster = Cluster::new();
    let conf = cluster.create(id(1), &Txn::new("root@pam").put("a", "1"));
    assert_eq!(conf.view(|tree| tree.text("a").map(str::to_owned)), Some("1".to_owned()));
    let commit = conf.transact(Txn::new("root@pam").note("why").put("b", "2")).await.unwrap();
    assert_eq!(commit.revision, Revision(2));
    let refused = conf.transact(Txn::new("x").absent("b").put("b", "3")).await;
    assert_eq!(
        refused,
        Err(TxnError::Refused(Refusal::Check {
            path: "b".into(),
            expected: Expected::Absent,
            found: Found::At(Revision(2)),
        }))
    );
    conf.barrier().await.unwrap();
    conf.confirm_leadership().await.unwrap();
    let dir = cluster.options(id(1));
    assert!(matches!(Conf::create(dir.clone(), &Txn::new("x")), Err(StoreError::Exists { .. })));
    cluster.stop(id(1)).await;
    assert!(matches!(conf.transact(Txn::new("x").put("c", "1")).await, Err(TxnError::Stopped { .. })));
    assert!(matches!(conf.barrier().await, Err(ConfError::Stopped { .. })));

    // Alone, it leads again at once: long before an election timeout would have passed.
    let began = std::time::Instant::now();
    let conf = cluster.open(id(1));
    until(&conf, |status| status.is_leader).await;
    assert!(began.elapsed() < Duration::from_millis(600), "took {:?}", began.elapsed());
    assert_eq!(conf.view(|tree| tree.text("b").map(str::to_owned)), Some("2".to_owned()));
    let history = conf.history("b");
    assert_eq!(history.len(), 1);
    assert_eq!((history[0].author.as_str(), history[0].note.as_str()), ("root@pam", "why"));
    conf.transact(Txn::new("root@pam").check(Check::Revision("b".into(), Revision(2))).delete("b"))
        .await
        .unwrap();
    assert_eq!(conf.history("b").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_survive_their_leader() {
    let mut cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    // A follower commits through the leader and reads its own write.
    second.transact(Txn::new("n2").put("x", "from second")).await.unwrap();
    assert_eq!(second.view(|tree| tree.text("x").map(str::to_owned)).as_deref(), Some("from second"));
    third.barrier().await.unwrap();
    assert_eq!(third.view(|tree| tree.text("x").map(str::to_owned)).as_deref(), Some("from second"));
    assert!(
        matches!(second.confirm_leadership().await, Err(NotLeader::Other { leader: Some(leader) }) if leader == id(1))
    );
    let term = first.confirm_leadership().await.unwrap().term;

    cluster.stop(id(1)).await;
    let began = std::time::Instant::now();
    let commit = third.transact(Txn::new("n3").put("y", "without first")).await.unwrap();
    println!("first commit after the loss of the leader: {:?}", began.elapsed());
    second.barrier().await.unwrap();
    assert_eq!(second.view(stead_conf::Tree::revision), commit.revision);
    let leader = second.status().borrow().leader.unwrap();
    let leader = if leader == id(2) { &second } else { &third };
    assert!(leader.confirm_leadership().await.unwrap().term > term);

    let first = cluster.open(id(1));
    first.barrier().await.unwrap();
    assert_eq!(first.view(stead_conf::Tree::hash), second.view(stead_conf::Tree::hash));
    first.transact(Txn::new("n1").rename("x", "z")).await.unwrap();
    second.barrier().await.unwrap();
    assert_eq!(second.view(|tree| tree.text("z").map(str::to_owned)).as_deref(), Some("from second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_promised() {
    let mut cluster = Cluster::new();
    cluster.timeout = Duration::from_secs(2);
    let [first, _second, _third] = cluster.three().await;
    cluster.cut(id(1));
    // Still believes to lead: handed to the log, outcome unknown.
    let outcome = first.transact(Txn::new("x").put("lost", "?")).await;
    assert!(matches!(outcome, Err(TxnError::Unknown { .. })), "{outcome:?}");
    until(&first, |status| !status.quorate).await;
    let outcome = first.transact(Txn::new("x").put("lost", "?")).await;
    assert!(matches!(outcome, Err(TxnError::NoQuorum { .. })), "{outcome:?}");
    assert!(matches!(first.barrier().await, Err(ConfError::NoQuorum { .. })));
    assert!(matches!(first.confirm_leadership().await, Err(NotLeader::Other { leader: None })));
    cluster.heal();
    first.transact(Txn::new("x").absent("lost").put("found", "1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_gets_the_whole_tree_and_members_come_and_go() {
    let mut cluster = Cluster::new();
    let big = vec![b'x'; 900_000];
    let mut initial = Txn::new("root@pam");
    for n in 0..4 {
        initial = initial.put(format!("big/{n}"), big.clone());
    }
    let first = cluster.create(id(1), &initial);
    let second = cluster.join(id(2));
    grow(&first, id(2)).await;
    second.barrier().await.unwrap();
    assert_eq!(second.view(|tree| tree.get("big/3").unwrap().data.len()), big.len());
    assert_eq!(second.view(stead_conf::Tree::hash), first.view(stead_conf::Tree::hash));

    let third = cluster.join(id(3));
    second.add_learner(id(3)).await.unwrap();
    assert!(matches!(second.promote(id(4)).await, Err(MemberError::Unknown { .. })));
    until(&first, |status| status.peers.iter().any(|peer| peer.id == id(3) && peer.matched > 0)).await;
    // A vote moves from one to another at once; the leader hands over first where it must.
    first.replace_voter(id(1), id(3)).await.unwrap();
    let status = until(&third, |status| status.voters == [id(2), id(3)] && status.outgoing.is_empty()).await;
    assert_eq!(status.learners, [id(1)]);
    third.remove(id(1)).await.unwrap();
    assert!(matches!(third.add_learner(id(1)).await, Err(MemberError::Used { .. })));
    third.remove(id(2)).await.unwrap();
    assert!(matches!(third.remove(id(3)).await, Err(MemberError::LastVoter { .. })));
    third.transact(Txn::new("n3").put("alone", "1")).await.unwrap();
    until(&third, |status| status.is_leader && status.voters == [id(3)] && status.learners.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_see_each_commit_once_and_in_order() {
    let mut cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    let (start, mut watch) = third.watch_from(stead_conf::Tree::revision);
    let writers = [first, second].map(|conf| {
        tokio::spawn(async move {
            for n in 0..100 {
                let me = conf.status().borrow().id;
                conf.transact(Txn::new(format!("n{me}")).put(format!("w/{me}/{n}"), "x")).await.unwrap();
            }
        })
    });
    let mut seen = start;
    while seen < Revision(start.0 + 200) {
        let event = tokio::time::timeout(WAIT, watch.next()).await.unwrap().unwrap();
        let WatchEvent::Commit(commit) = event else { panic!("{event:?}") };
        assert_eq!(commit.revision, Revision(seen.0 + 1));
        assert_eq!(commit.changes.len(), 1);
        seen = commit.revision;
    }
    for writer in writers {
        writer.await.unwrap();
    }

    // One that does not listen for long is told so, and goes on from there.
    let mut slow = third.watch();
    for n in 0..20 {
        let mut txns = tokio::task::JoinSet::new();
        for m in 0..100 {
            let third = third.clone();
            txns.spawn(async move {
                third.transact(Txn::new("n3").put(format!("s/{n}/{m}"), "x")).await.unwrap()
            });
        }
        txns.join_all().await;
    }
    let event = slow.next().await.unwrap();
    let WatchEvent::Snapshot { revision } = event else { panic!("{event:?}") };
    let commit = third.transact(Txn::new("n3").put("s/last", "x")).await.unwrap();
    assert!(revision < commit.revision);
    let mut last = revision;
    while last < commit.revision {
        let event = slow.next().await.unwrap();
        let WatchEvent::Commit(event) = event else { panic!("{event:?}") };
        assert_eq!(event.revision, Revision(last.0 + 1));
        last = event.revision;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_shared_and_sealed() {
    let mut cluster = Cluster::new();
    let [first, second, _third] = cluster.three().await;
    let mut watch = second.watch();
    first.put_secret("root@pam", "", "priv/token.cfg", b"very secret").await.unwrap();
    second.barrier().await.unwrap();
    assert_eq!(second.secret("priv/token.cfg").unwrap().unwrap(), b"very secret");
    assert_eq!(second.secret("priv/none").unwrap(), None);
    assert!(second.history("priv/token.cfg").is_empty());
    let WatchEvent::Commit(event) = watch.next().await.unwrap() else { panic!() };
    assert!(!format!("{event:?}").contains("secret"));
    let plain = first.transact(Txn::new("x").put("priv/token.cfg", "plain")).await;
    assert!(matches!(plain, Err(TxnError::Refused(Refusal::Unsealed { .. }))));
    let moved = first.transact(Txn::new("x").rename("priv/token.cfg", "open")).await;
    assert!(matches!(moved, Err(TxnError::Refused(Refusal::Bound { .. }))));
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_on_request() {
    let mut cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    first.transfer_leader(id(3)).await;
    until(&third, |status| status.is_leader).await;
    until(&second, |status| status.leader == Some(id(3))).await;
    third.demote(id(3)).await.unwrap();
    let status = until(&first, |status| status.learners == [id(3)]).await;
    assert_eq!(status.voters, [id(1), id(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_level_that_not_all_support_is_refused() {
    let mut cluster = Cluster::new();
    let [first, second, _third] = cluster.three().await;
    for conf in [&first, &second] {
        let refused = conf.transact(Txn::new("x").op(Op::Level(stead_conf::SUPPORTED_LEVEL + 1))).await;
        assert!(matches!(refused, Err(TxnError::Refused(Refusal::LevelSupport { .. }))), "{refused:?}");
    }
    assert_eq!(first.view(stead_conf::Tree::level), stead_conf::FIRST_LEVEL);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clusters_frames_are_not_taken() {
    let mut cluster = Cluster::new();
    let ours = cluster.create(id(1), &Txn::new("x"));
    let mut options = cluster.options(id(2));
    options.key = ClusterKey::from([1; 32]);
    let theirs = Conf::join(options).unwrap();
    let mut frames = ours.outbox();
    drop(frames.recv());
    ours.add_learner(id(2)).await.unwrap();
    until(&ours, |status| status.learners == [id(2)]).await;
    // Nothing of it reaches the other: it stays without members.
    assert!(!theirs.status().borrow().member);
}
