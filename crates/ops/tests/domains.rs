//! Where nodes stand: said, shown, and forgotten with the node.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_conf::Txn;
use stead_model::{Place, paths};
use stead_ops::OpsError;
use stead_ops_testing::{Node, name, root};

fn place(site: &str, rack: &str) -> Place {
    let named = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
    Place { site: named(site), rack: named(rack) }
}

#[tokio::test]
async fn a_place_is_said_taken_back_and_forgotten_with_its_node() {
    let node = Node::of_three().await;
    let said = async |of: &str, wish: Place, delete: &[&str]| {
        let delete: Vec<String> = delete.iter().map(|d| (*d).to_owned()).collect();
        node.ops.set_place(&root(), &name(of), wish, &delete).await
    };
    assert_eq!(node.ops.spread(), None, "nobody is said to stand anywhere");
    said("n1", place("north", "r1"), &[]).await.unwrap();
    said("n2", place("south", ""), &[]).await.unwrap();
    said("n1", place("", "r2"), &[]).await.unwrap();
    let seen = node.ops.place(&name("n1")).unwrap();
    assert_eq!((seen.site, seen.rack), (place("north", "r2").site, place("north", "r2").rack));
    let told = node.ops.spread().unwrap();
    assert!(
        told.starts_with("votes by site: no site 0, 'north' 1, 'south' 0; no majority is left"),
        "{told}"
    );
    let rows = node.ops.cluster_status().unwrap();
    assert_eq!(rows[0].spread.as_ref(), Some(&told));
    assert_eq!(rows.iter().find(|r| r.name == "n2").unwrap().site, place("south", "").site);

    for (of, wish, delete, why) in
        [("n1", place("", ""), &[][..], "site"), ("n1", place("a", ""), &["row"][..], "delete")]
    {
        let e = said(of, wish, delete).await.unwrap_err();
        assert!(matches!(&e, OpsError::Invalid { parameter, .. } if parameter == why), "{e}");
    }
    assert!(said("n9", place("a", ""), &[]).await.unwrap_err().to_string().contains("no such cluster node"));

    let recorded = |of: &str| node.ops.conf.view(|t| t.get(&paths::place(&name(of))).is_some());
    said("n1", place("", ""), &["rack", "site"]).await.unwrap();
    said("n1", place("", ""), &["rack"]).await.unwrap();
    assert!(!recorded("n1") && recorded("n2"));
    // A later version's record says nothing here, and does no harm.
    node.commit(Txn::new("test").put(paths::place(&name("n3")), r#"{"site":["north","7"]}"#)).await;
    assert_eq!(node.ops.node_places().len(), 1);
    node.ops.remove_node(&root(), &name("n2")).await.unwrap();
    assert!(!recorded("n2") && node.ops.spread().is_none());
}
