//! The fence profile, changed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_model::FenceProfile;
use stead_ops_testing::{Node, root};

#[tokio::test]
async fn a_change_is_settled_before_the_next() {
    let node = Node::start().await;
    let profiles = || {
        let cluster = node.ops.cluster_record().unwrap().value;
        (cluster.profile, cluster.previous_profile)
    };
    node.ops.set_profile(&root(), FenceProfile::Default).await.unwrap();
    assert_eq!(profiles(), (FenceProfile::Default, None), "no change");
    node.ops.set_profile(&root(), FenceProfile::Wan).await.unwrap();
    assert_eq!(profiles(), (FenceProfile::Wan, Some(FenceProfile::Default)));
    let refused = node.ops.set_profile(&root(), FenceProfile::Fast).await.unwrap_err().to_string();
    assert!(
        refused.contains("from profile 'default' to 'wan' is not over") && refused.contains("8 s"),
        "{refused}"
    );
    node.ops.settle_profile(FenceProfile::Fast).await.unwrap();
    assert_eq!(profiles().1, Some(FenceProfile::Default), "another change is not settled by it");
    node.ops.settle_profile(FenceProfile::Default).await.unwrap();
    assert_eq!(profiles(), (FenceProfile::Wan, None));
    node.ops.set_profile(&root(), FenceProfile::Fast).await.unwrap();
}
