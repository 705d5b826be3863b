//! A node goes on alone in a new cluster epoch, while the others go on in the old one: neither takes anything of the other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Cluster, WAIT, grow, id, until};
use stead_conf::succession::{LEAP, ahead, succeed};
use stead_conf::{Conf, Options, Revision, Txn};
use stead_model::Era;

fn text(conf: &Conf, path: &str) -> Option<String> {
    conf.view(|tree| tree.text(path).map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_epochs_with_the_same_numbers_have_nothing_to_do_with_each_other() {
    let mut cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    let fork = second.transact(Txn::new("n2").put("a", "of both")).await.unwrap().revision;
    first.barrier().await.unwrap();
    cluster.cut(id(1));
    cluster.stop(id(1)).await;

    // The worst case: the survivor keeps its number, and nothing but the epoch parts it from the others.
    let era = Era::FIRST.next(7);
    let old = cluster.options(id(1)).dir;
    let options = Options { dir: cluster.options(id(9)).dir, era, ..cluster.options(id(1)) };
    let build = |_: &_, base: Revision| {
        // What the disk knows to be committed may be older.
        assert!(base <= fork, "{base:?}");
        Ok::<_, String>(vec![Txn::new("root@pam").put("epoch", "2")])
    };
    succeed((&old, id(1)), (&options.dir, id(1)), era, 9, build).unwrap();
    let alone = cluster.connect(id(1), Conf::open(options).unwrap());
    cluster.heal();
    until(&alone, |status| status.is_leader && status.voters == [id(1)]).await;

    for n in 0..20 {
        alone.transact(Txn::new("n1").put("b", n.to_string())).await.unwrap();
        second.transact(Txn::new("n2").put("c", n.to_string())).await.unwrap();
    }
    third.barrier().await.unwrap();
    assert!(alone.view(stead_conf::Tree::revision).0 > LEAP);
    assert!(third.view(stead_conf::Tree::revision).0 < LEAP);
    for (conf, has, lacks) in [(&alone, "b", "c"), (&second, "c", "b"), (&third, "c", "b")] {
        assert_eq!(text(conf, has).as_deref(), Some("19"));
        assert_eq!((text(conf, lacks), text(conf, "a").as_deref()), (None, Some("of both")));
        assert!(conf.status().borrow().quorate);
    }

    // One of the others comes over: under another number, from nothing; what it had alone is told by its old store.
    cluster.stop(id(2)).await;
    let had = ahead(&cluster.options(id(2)).dir, id(2), fork).unwrap();
    assert!(had.changes.iter().all(|c| c.path == "c") && had.changes.len() == 20, "{had:?}");
    let options = Options { era, ..cluster.options(id(4)) };
    let back = cluster.connect(id(4), Conf::join(options).unwrap());
    grow(&alone, id(4)).await;
    until(&back, |status| status.voters == [id(1), id(4)]).await;
    back.barrier().await.unwrap();
    assert_eq!((text(&back, "b").as_deref(), text(&back, "c")), (Some("19"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_held_leads_nothing_and_votes_all_the_same() {
    let mut cluster = Cluster::new();
    cluster.timeout = WAIT;
    let [first, second, third] = cluster.three().await;
    for (held, other) in [(&first, &second), (&second, &third)] {
        held.hold(true);
        until(held, |status| !status.is_leader).await;
        other.transact(Txn::new("root@pam").put("a", "by another")).await.unwrap();
        until(held, |status| status.leader.is_some() && !status.is_leader).await;
    }
    // Office is not taken by order either.
    until(&third, |status| status.is_leader).await;
    third.transfer_leader(id(2)).await;
    third.transact(Txn::new("root@pam").put("a", "by order")).await.unwrap();
    assert!(!second.status().borrow().is_leader);
    // The third needs a vote of those, who are told so again and again.
    let (told, mut looks) = (second.clone(), tokio::time::interval(std::time::Duration::from_millis(20)));
    let again = tokio::spawn(async move {
        loop {
            looks.tick().await;
            told.hold(true);
        }
    });
    cluster.stop(id(1)).await;
    third.transact(Txn::new("root@pam").put("b", "by two")).await.unwrap();
    until(&third, |status| status.is_leader).await;
    cluster.stop(id(3)).await;
    until(&second, |status| !status.quorate).await;
    let third = cluster.open(id(3));
    third.transact(Txn::new("root@pam").put("c", "by two again")).await.unwrap();
    again.abort();
    assert!(!second.status().borrow().is_leader);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_voter_that_is_opened_held_leads_when_it_is_let() {
    let mut cluster = Cluster::new();
    drop(cluster.create(id(1), &Txn::new("root@pam").put("a", "1")));
    cluster.stop(id(1)).await;
    let soon = std::time::Duration::from_millis(400);
    let options = Options { held: true, timeout: soon, ..cluster.options(id(1)) };
    let conf = cluster.connect(id(1), Conf::open(options).unwrap());
    conf.transact(Txn::new("root@pam").put("b", "2")).await.unwrap_err();
    assert!(!conf.status().borrow().quorate);
    conf.hold(false);
    until(&conf, |status| status.is_leader).await;
    conf.transact(Txn::new("root@pam").put("b", "2")).await.unwrap();
}
