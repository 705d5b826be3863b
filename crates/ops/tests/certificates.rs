//! Certificates are made anew: when, by whom, and by whom not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::Ordering;
use stead_conf::Txn;
use stead_model::{NodeRecord, paths};
use stead_ops::certificates::{RenewRequest, Renewal};
use stead_ops::{OpsError, store};
use stead_ops_testing::{Node, member, name, root, uuid};
use stead_transport::Facts;

const DAY: i64 = 86_400;
const YEAR: i64 = 365 * DAY;

/// Sets the cluster's clock ahead of this node's.
fn later(node: &Node, seconds: i64) {
    node.ops.status.is_ahead(-seconds * 1000);
}

async fn renew(node: &Node, force: bool) -> Result<Renewal, OpsError> {
    node.ops.renew_own(&RenewRequest { force, by: "root@pam".into() }).await
}

fn own(node: &Node) -> Facts {
    Facts::of(&node.ops.host.certificates().cert).unwrap()
}

fn ca(node: &Node) -> Facts {
    let shown = Facts::of(&node.ops.host.certificates().ca).unwrap();
    assert_eq!(shown, Facts::of(&node.ops.file(paths::CA_CERT).unwrap().0).unwrap(), "as it is committed");
    shown
}

async fn change(node: &Node, change: impl FnOnce(&mut NodeRecord)) {
    let mut record = node.ops.node_record(&name("n1")).unwrap().value;
    change(&mut record);
    node.commit(Txn::new("test").put(paths::node(&name("n1")), store::bytes(&record).unwrap())).await;
}

#[tokio::test]
async fn a_certificate_is_made_anew_when_a_third_is_left_and_the_ca_s_long_before_it_would_matter() {
    let node = Node::start().await;
    let (first, first_ca) = (own(&node), ca(&node));
    later(&node, YEAR);
    assert!(!renew(&node, false).await.unwrap().renewed);
    assert_eq!(own(&node), first);
    later(&node, YEAR + YEAR / 2);
    let renewed = renew(&node, false).await.unwrap();
    let second = own(&node);
    assert!(renewed.renewed && renewed.fingerprint == Some(second.fingerprint.to_string()));
    let gained = second.validity.not_after - first.validity.not_after;
    assert!((gained - YEAR - YEAR / 2).abs() < DAY, "{gained}");
    assert_eq!(second.addresses, first.addresses);
    assert_eq!(ca(&node), first_ca);
    // No certificate is ever cut short by the CA's.
    later(&node, 7 * YEAR);
    assert!(renew(&node, false).await.unwrap().renewed);
    assert!(ca(&node).validity.not_after >= first_ca.validity.not_after + 6 * YEAR);
    assert!(own(&node).validity.not_after > first.validity.not_after + 6 * YEAR);
    assert!(!renew(&node, false).await.unwrap().renewed, "once");
    let before = own(&node);
    assert!(renew(&node, true).await.unwrap().renewed, "whoever asks for it gets one");
    assert_ne!(own(&node), before);
}

#[tokio::test]
async fn when_all_has_ended_everything_is_made_anew_and_by_the_right_clock_again() {
    let node = Node::start().await;
    later(&node, 12 * YEAR);
    let first = own(&node);
    assert!(node.ops.cluster_status().unwrap()[0].warnings.as_ref().unwrap()[0].contains("has ended"));
    assert!(renew(&node, false).await.unwrap().renewed);
    assert!(own(&node).validity.not_after > first.validity.not_after + 11 * YEAR);
    assert!(ca(&node).validity.not_after > first.validity.not_after + 19 * YEAR);
    assert_eq!(node.ops.cluster_status().unwrap()[0].warnings, None);
    // It was the clocks that were wrong.
    let committed = ca(&node);
    later(&node, 0);
    assert!(node.ops.cluster_status().unwrap()[0].warnings.as_ref().unwrap()[0].contains("has not begun"));
    let ahead = own(&node);
    assert!(!node.ops.certificate_is_due(true).unwrap());
    assert!(!renew(&node, false).await.unwrap().renewed, "it may be this clock that is wrong");
    assert_eq!(own(&node), ahead);
    assert!(renew(&node, true).await.unwrap().renewed);
    let again = own(&node).validity;
    assert!((again.not_after - first.validity.not_after).abs() < DAY);
    assert_eq!(ca(&node), committed, "the CA's is good for both");
}

#[tokio::test]
async fn new_addresses_are_named_and_the_time_stays() {
    let node = Node::start().await;
    let first = own(&node);
    change(&node, |n| {
        n.addr = "192.0.2.77:8006".parse().unwrap();
        n.links.insert(1, "198.51.100.77".parse().unwrap());
    })
    .await;
    assert!(node.ops.certificate_is_due(false).unwrap());
    assert!(renew(&node, false).await.unwrap().renewed);
    let second = own(&node);
    assert_eq!(second.addresses, ["192.0.2.77".parse().unwrap(), "198.51.100.77".parse().unwrap()].into());
    assert_eq!(second.validity, first.validity);
    assert!(!node.ops.certificate_is_due(true).unwrap());
}

#[tokio::test]
async fn who_is_no_member_gets_none() {
    let node = Node::start().await;
    let before = node.ops.host.certificates();
    // Another machine has come under this one's name.
    change(&node, |n| n.uuid = uuid(9)).await;
    let why = renew(&node, true).await.unwrap_err().to_string();
    assert!(why.contains("another UUID"), "{why}");
    // It was removed.
    node.commit(Txn::new("test").delete(paths::node(&name("n1")))).await;
    renew(&node, true).await.unwrap_err();
    assert_eq!(node.ops.host.certificates(), before);
}

#[tokio::test]
async fn of_two_clocks_that_disagree_none_counts_unless_somebody_says_so() {
    let node = Node::start().await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    let mut report = stead_ops_testing::report("n2");
    report.ahead_ms = Some(3 * YEAR * 1000);
    node.ops.take_report(&report);
    node.report_of("n1");
    node.ops.status.knows_clock(true);
    later(&node, 3 * YEAR);
    let before = own(&node);
    let why = renew(&node, false).await.unwrap_err().to_string();
    assert!(why.contains("clocks disagree (see 'n2', 'n1')"), "{why}");
    assert_eq!(own(&node), before);
    // Names depend on no clock.
    change(&node, |n| n.addr = "192.0.2.77:8006".parse().unwrap()).await;
    assert!(renew(&node, false).await.unwrap().renewed);
    assert_eq!(own(&node).validity, before.validity);
    assert!(renew(&node, true).await.unwrap().renewed);
    assert!(own(&node).validity.not_after > before.validity.not_after + 2 * YEAR);
    // Of three the one that is wrong is outvoted.
    node.record_node("n3", 3, uuid(3).as_str(), member()).await;
    node.report_of("n3");
    later(&node, 0);
    renew(&node, false).await.unwrap();
}

/// What this node has reported of its clock was before it was told that it is wrong.
#[tokio::test]
async fn a_node_knows_its_own_clock_by_what_it_was_told_last() {
    let node = Node::start().await;
    node.record_node("n2", 2, uuid(2).as_str(), member()).await;
    node.report_of("n2");
    node.report_of("n1");
    node.ops.status.knows_clock(true);
    later(&node, 3 * YEAR);
    let before = own(&node);
    let why = renew(&node, false).await.unwrap_err().to_string();
    assert!(why.contains("clocks disagree (see 'n1')"), "{why}");
    assert_eq!(own(&node), before);
}

#[tokio::test]
async fn a_clock_that_is_behind_replaces_nothing_and_what_has_ended_is_always_due() {
    let node = Node::start().await;
    let before = own(&node);
    later(&node, -30 * YEAR);
    assert!(!renew(&node, false).await.unwrap().renewed);
    assert_eq!(own(&node), before);
    later(&node, YEAR + YEAR / 2);
    assert!(!node.ops.certificate_is_due(false).unwrap(), "it has time");
    later(&node, 3 * YEAR);
    assert!(node.ops.certificate_is_due(false).unwrap(), "it has ended");
}

#[tokio::test]
async fn one_that_is_longer_than_its_kind_warns_by_its_kind() {
    let node = Node::start().await;
    later(&node, 7 * YEAR);
    renew(&node, false).await.unwrap();
    let of_ca = |node: &Node| {
        let all = node.ops.cluster_status().unwrap()[0].warnings.clone().unwrap();
        all.into_iter().any(|w| w.contains("cluster's CA"))
    };
    // It lives for seventeen years, and those of its kind for ten.
    later(&node, 14 * YEAR + YEAR / 2);
    assert!(!of_ca(&node));
    later(&node, 15 * YEAR + YEAR / 2);
    assert!(of_ca(&node));
}

#[tokio::test]
async fn a_disk_that_is_full_leaves_the_old_one_and_says_why() {
    let node = Node::start().await;
    let before = node.ops.host.certificates();
    node.host.full.store(true, Ordering::Relaxed);
    later(&node, 3 * YEAR);
    let why = renew(&node, false).await.unwrap_err().to_string();
    assert_eq!(why, "the new certificate could not be kept: the disk is full");
    assert_eq!(node.ops.host.certificates(), before);
    let warned = node.ops.cluster_status().unwrap()[0].warnings.clone().unwrap();
    assert!(warned[0].contains("the disk is full") && warned[0].contains("renew-certificates"), "{warned:?}");
    node.host.full.store(false, Ordering::Relaxed);
    renew(&node, false).await.unwrap();
    assert_eq!(node.ops.cluster_status().unwrap()[0].warnings, None);
}

#[tokio::test]
async fn one_command_asks_every_member_and_tells_who_could_not() {
    let node = Node::of_three().await;
    node.report_of("n1");
    node.ops.status.knows_clock(true);
    let done = node.ops.renew_certificates(&root(), None, true).await.unwrap();
    let rows: Vec<_> = done.iter().map(|r| (r.node.as_str(), r.renewed, r.error.is_some())).collect();
    assert_eq!(rows, [("n1", true, false), ("n2", false, true), ("n3", false, true)]);
    assert!(node.ops.renew_certificates(&root(), Some(&name("n9")), true).await.is_err());
}

#[tokio::test]
async fn the_api_is_told_what_a_certificate_says() {
    let node = Node::start().await;
    let [ca, own] = &node.ops.certificate_info().unwrap()[..] else { panic!("two") };
    assert_eq!((ca.filename, own.filename), ("pve-root-ca.pem", "pve-ssl.pem"));
    assert_eq!(own.issuer, ca.subject);
    assert_eq!(own.subject, "/CN=n1");
    assert!(own.san.contains(&"127.0.0.1".to_owned()));
    assert_eq!((own.public_key_type.as_str(), own.public_key_bits), ("id-ecPublicKey", 256));
    assert!(own.pem.starts_with("-----BEGIN CERTIFICATE-----"));
}
