//! What a node makes of members that are in another cluster epoch, and of what they had alone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use stead_model::{Era, NodeName};
use stead_ops::epochs::{Aside, AsideChange, RejoinRequest};
use stead_ops::status::NodeReport;
use stead_ops_testing::{Node, lost, member, name, report, root, uuid};

#[tokio::test]
async fn who_comes_with_another_epoch_is_elsewhere_until_it_comes_with_this_one_or_is_said_off() {
    let node = Node::of_three().await;
    let (own, other) = (node.ops.me.era, Era::FIRST.next(7));
    let hear = |n: &str, era: Era| node.ops.epochs.admits(own, &name(n), era);
    let elsewhere = || node.ops.elsewhere();
    assert!(hear("n2", own) && elsewhere().is_empty());
    assert!(!hear("n2", other) && !hear("n3", other));
    assert_eq!(elsewhere(), ["n2", "n3"].map(name).into());
    let warned = node.ops.epoch_warnings();
    assert!(warned.len() == 2 && warned[0].contains("'n2' is still in cluster epoch 2-"), "{warned:?}");
    assert!(hear("n3", own));
    assert_eq!(elsewhere(), [name("n2")].into());
    let upid = node.ops.confirm_off(&root(), &name("n2"), None).await.unwrap();
    let (status, log) = node.ended(&upid).await;
    assert_eq!((status.as_str(), elsewhere()), ("OK", BTreeSet::<NodeName>::new()), "{log}");
    // The word was about that loss alone.
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.record_node("n2", 2, uuid(2).as_str(), lost()).await;
    assert_eq!(elsewhere(), [name("n2")].into());
}

#[tokio::test]
async fn what_another_member_has_heard_counts_as_long_as_it_says_so() {
    let node = Node::of_three().await;
    let heard = |elsewhere: &[&str]| elsewhere.iter().map(|n| name(n)).collect::<BTreeSet<_>>();
    let says = |seq, elsewhere: &[&str]| {
        node.ops.take_report(&NodeReport { seq, elsewhere: heard(elsewhere), ..report("n3") });
    };
    says(2, &["n2"]);
    assert_eq!((node.ops.elsewhere(), node.ops.heard_elsewhere()), (heard(&["n2"]), heard(&[])));
    says(3, &[]);
    assert_eq!(node.ops.elsewhere(), heard(&[]));
}

#[tokio::test]
async fn a_machine_whose_name_is_taken_in_this_epoch_is_not_let_in_again() {
    let node = Node::of_three().await;
    let back = |era| RejoinRequest { era, wished: true, boot: None };
    // n1 asks n1, and n3 is online; n2 is lost, and awaited.
    for taken in ["n1", "n3"] {
        let refused = node.ops.let_in_again(&name(taken), &back(Era::FIRST.next(7))).await.unwrap_err();
        assert!(refused.to_string().contains("another machine has this name"), "{taken}: {refused}");
    }
    // An older copy of this very epoch: never in the place of the machine that is alive, which keeps its number.
    let own = node.ops.me.era;
    let before = node.ops.node_record(&name("n3")).unwrap().value;
    for boot in [None, Some(uuid(9).as_str().parse().unwrap())] {
        let copy = RejoinRequest { boot, ..back(own) };
        let refused = node.ops.let_in_again(&name("n3"), &copy).await.unwrap_err();
        assert!(refused.to_string().contains("another machine has this name"), "{refused}");
    }
    assert_eq!(node.ops.node_record(&name("n3")).unwrap().value, before);
    node.ops.let_in_again(&name("n2"), &back(Era::FIRST.next(7))).await.unwrap();
    // The machine itself, which was heard a moment ago.
    let boot = Some(node.ops.status.node(&name("n3")).unwrap().boot);
    node.ops.let_in_again(&name("n3"), &RejoinRequest { boot, ..back(Era::FIRST.next(7)) }).await.unwrap();
    let boot = Some(node.ops.status.node(&name("n3")).unwrap().boot);
    node.ops.let_in_again(&name("n3"), &RejoinRequest { boot, ..back(own) }).await.unwrap();
    node.ops.let_in_again(&name("n2"), &back(own)).await.unwrap();
}

#[tokio::test]
async fn nobody_is_warned_of_strangers_that_are_no_members() {
    let node = Node::of_three().await;
    assert!(!node.ops.epochs.admits(node.ops.me.era, &name("n9"), Era::FIRST.next(7)));
    assert!(node.ops.epoch_warnings().is_empty());
}

#[tokio::test]
async fn however_much_a_node_had_alone_it_is_told() {
    let node = Node::of_three().await;
    let change = |n: usize| AsideChange {
        // As long as a path may be.
        path: format!("{}/{n:0>20}", ["x"; 4].map(|x| x.repeat(250)).join("/")),
        by: "root@pam".into(),
        note: "set".into(),
        at_ms: 1,
    };
    let aside = Aside {
        node: name("n1"),
        era: Era::FIRST,
        at_ms: 7,
        place: "conf.epoch-1".into(),
        revision: 300,
        base: 100,
        changes: (0..200).map(change).collect(),
        more: 3,
        unreadable: None,
    };
    node.host.aside.lock().unwrap().push(aside.clone());
    node.ops.tell_aside().await.unwrap();
    assert!(node.host.aside.lock().unwrap().is_empty());
    assert_eq!(node.ops.asides(), [aside]);
    assert_eq!(node.ops.epoch_warnings().len(), 1);
    let nobody = node.ops.forget_aside(&root(), &name("n3")).await.unwrap_err();
    assert!(nobody.to_string().contains("nothing of node 'n3'"), "{nobody}");
    node.ops.forget_aside(&root(), &name("n1")).await.unwrap();
    assert!(node.ops.asides().is_empty() && node.ops.epoch_warnings().is_empty());
}
