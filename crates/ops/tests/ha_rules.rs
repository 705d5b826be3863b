//! HA rules: made, changed, and refused where they can't be kept together.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_ops::ha_rules::RuleOptions;
use stead_ops_testing::{Node, member, root};

async fn three_nodes() -> Node {
    let node = Node::start().await;
    for (name, id) in [("n2", 2), ("n3", 3)] {
        node.record_node(name, id, stead_ops_testing::uuid(u32::try_from(id).unwrap()).as_str(), member())
            .await;
    }
    for vmid in [100, 101, 102] {
        node.record_guest(vmid, "n1", |_| {}, "memory: 32\n").await;
        node.ops.ha_add(&root(), format!("vm:{vmid}").parse().unwrap(), &[]).await.unwrap();
    }
    node
}

fn given(resources: &str, nodes: Option<&str>, affinity: Option<&str>) -> RuleOptions {
    RuleOptions {
        resources: Some(resources.into()),
        nodes: nodes.map(Into::into),
        affinity: affinity.map(Into::into),
        ..RuleOptions::default()
    }
}

#[tokio::test]
async fn a_rule_is_made_changed_shown_and_taken_out() {
    let node = three_nodes().await;
    let (ops, root) = (&node.ops, root());
    let on = given("vm:100", Some("n1:2,n2"), None);
    ops.ha_rule_add(&root, "home", "node-affinity", on.clone()).await.unwrap();
    let twice = ops.ha_rule_add(&root, "home", "node-affinity", on).await.unwrap_err();
    assert_eq!(twice.to_string(), "rule: HA rule 'home' is defined already");
    let shown = ops.ha_rule("home").unwrap();
    assert_eq!(
        (&*shown.kind, shown.nodes.as_deref(), &*shown.affinity),
        ("node-affinity", Some("n1:2,n2"), "positive")
    );
    let strict = RuleOptions { strict: Some(true), comment: Some("kept".into()), ..RuleOptions::default() };
    ops.ha_rule_change(&root, "home", "node-affinity", strict, &[], Some(&shown.digest)).await.unwrap();
    let late = RuleOptions { disable: Some(true), ..RuleOptions::default() };
    let late = ops.ha_rule_change(&root, "home", "node-affinity", late, &[], Some(&shown.digest)).await;
    assert!(late.unwrap_err().to_string().contains("file changed by other user"));
    let shown = ops.ha_rule("home").unwrap();
    assert_eq!(
        (shown.strict, shown.comment.as_deref(), &*shown.resources),
        (Some(1), Some("kept"), "vm:100")
    );
    let delete = ["strict".to_owned(), "comment".to_owned()];
    ops.ha_rule_change(&root, "home", "node-affinity", RuleOptions::default(), &delete, None).await.unwrap();
    let shown = ops.ha_rule("home").unwrap();
    assert_eq!((shown.strict, shown.comment), (None, None));
    assert_eq!(ops.ha_rules(Some("resource-affinity"), None).unwrap(), []);
    assert_eq!(ops.ha_rules(None, Some("vm:100".parse().unwrap())).unwrap().len(), 1);
    ops.ha_rule_remove(&root, "home").await.unwrap();
    assert!(ops.ha_rule("home").is_err());
}

#[tokio::test]
async fn what_cannot_be_kept_together_is_refused_with_the_reason() {
    let node = three_nodes().await;
    let (ops, root) = (&node.ops, root());
    let apart = given("vm:100,vm:101", None, Some("negative"));
    ops.ha_rule_add(&root, "apart", "resource-affinity", apart).await.unwrap();
    let together = given("vm:101,vm:100", None, Some("positive"));
    let refused = ops.ha_rule_add(&root, "together", "resource-affinity", together).await.unwrap_err();
    assert!(refused.to_string().starts_with("resources: the rules would conflict: "), "{refused}");
    assert!(ops.ha_rule("together").is_err());
    for (kind, options, names) in [
        ("resource-affinity", given("vm:100,vm:102", None, None), "affinity"),
        ("resource-affinity", given("vm:100,vm:102", Some("n1"), Some("positive")), "nodes"),
        ("node-affinity", given("vm:100", None, None), "nodes"),
        ("node-affinity", given("vm:100", Some("n9"), None), "nodes"),
        ("node-affinity", given("nonsense", Some("n1"), None), "resources"),
    ] {
        let refused = ops.ha_rule_add(&root, "new", kind, options).await.unwrap_err().to_string();
        assert!(refused.starts_with(&format!("{names}: ")), "{refused}");
    }
    // A resource that goes takes a rule along that says nothing without it.
    ops.ha_delete(&root, "vm:101".parse().unwrap(), true).await.unwrap();
    assert!(ops.ha_rule("apart").is_err());
}
