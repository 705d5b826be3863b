//! Going back to what a file of the configuration was.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use stead_conf::Txn;
use stead_model::vmconfig::VmConfig;
use stead_ops::history::{Moment, Revision};
use stead_ops::{Actor, OpsError};
use stead_ops_testing::{Node, root, vmid};

const VM: &str = "nodes/n1/qemu-server/100.conf";

fn now(node: &Node, path: &str) -> u64 {
    node.ops.conf.view(|t| t.get(path).unwrap().revision.0)
}

fn text(node: &Node, path: &str) -> Option<String> {
    node.ops.conf.view(|t| t.text(path).map(str::to_owned))
}

async fn back(node: &Node, path: &str, to: u64) -> Result<(), OpsError> {
    node.ops.roll_back_file(&root(), path, Moment::Revision(Revision(to)), None).await
}

fn why(done: Result<(), OpsError>) -> String {
    done.unwrap_err().to_string()
}

async fn with_vm() -> Node {
    let node = Node::of_three().await;
    let options = [("scsi0".into(), "shared:1,format=raw".into()), ("cores".into(), "1".into())].into();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    node
}

#[tokio::test]
async fn a_file_goes_back_as_a_new_change_that_says_so() {
    let node = Node::start().await;
    node.commit(Txn::new("bob@pve").note("first words").put("notes/a", "one")).await;
    let first = now(&node, "notes/a");
    node.commit(Txn::new("bob@pve").put("notes/a", "two")).await;
    let second = now(&node, "notes/a");
    // What was shown is not what is there.
    let moment = Moment::Revision(Revision(first));
    let late = node.ops.roll_back_file(&root(), "notes/a", moment, Some(first)).await;
    assert!(why(late).contains(&format!("it is at revision {second}")));
    node.ops.roll_back_file(&root(), "notes/a", moment, Some(second)).await.unwrap();
    assert_eq!(text(&node, "notes/a").unwrap(), "one");
    let last = node.ops.history(Some("notes/a"), 1).remove(0);
    assert_eq!((last.revision, last.author.as_str()), (second + 1, "root@pam"));
    assert_eq!(last.note, format!("rolled back to revision {first} (first words), on node 'n1'"));
    back(&node, "notes/a", first).await.unwrap();
    assert_eq!(now(&node, "notes/a"), second + 1, "what is so already is not written again");
    // Where it was not there, it goes; and comes again.
    back(&node, "notes/a", first - 1).await.unwrap();
    assert_eq!(text(&node, "notes/a"), None);
    let moment = Moment::Revision(Revision(second));
    let late = node.ops.roll_back_file(&root(), "notes/a", moment, Some(second)).await;
    assert!(why(late).contains("it is not there"));
    node.ops.roll_back_file(&root(), "notes/a", moment, Some(0)).await.unwrap();
    assert_eq!(text(&node, "notes/a").unwrap(), "two");
}

#[tokio::test]
async fn what_a_file_may_not_say_does_not_come_back() {
    let node = with_vm().await;
    let good = text(&node, "storage.cfg").unwrap();
    node.commit(Txn::new("x").put("storage.cfg", "dir: local\n\tpath /fake/local\n\tcontent images\n")).await;
    let unused = now(&node, "storage.cfg");
    node.commit(Txn::new("x").put("storage.cfg", good.clone())).await;
    assert!(why(back(&node, "storage.cfg", unused).await).contains("'shared' is used by VM 100"));
    node.commit(Txn::new("x").put("storage.cfg", "no storages at all")).await;
    let broken = now(&node, "storage.cfg");
    node.commit(Txn::new("x").put("storage.cfg", good.clone())).await;
    assert!(why(back(&node, "storage.cfg", broken).await).contains("line 1"));
    assert_eq!(text(&node, "storage.cfg").unwrap(), good);
    assert!(why(back(&node, "stead/nodes/n2", 1).await).contains("Stead's own"));
    assert!(why(back(&node, "stead/owner/100", 1).await).contains("no history"));
    assert!(why(back(&node, "priv/shadow.cfg", 1).await).contains("no history"));
    assert!(why(back(&node, "storage.cfg", 1 << 40).await).contains("no revision"));
    // What Stead reads, and a guest, are not removed.
    let before = now(&node, VM);
    assert!(why(back(&node, VM, before - 1).await).contains("qm destroy"));
}

#[tokio::test]
async fn a_vm_goes_back_by_the_rules_of_its_file() {
    let node = with_vm().await;
    let one = now(&node, VM);
    let more = text(&node, VM).unwrap().replace("cores: 1", "cores: 2\nname: web");
    node.commit(Txn::new("x").put(VM, more.clone())).await;
    node.commit(Txn::new("x").put(VM, format!("{more}lock: backup\n"))).await;
    let locked = now(&node, VM);
    assert!(why(back(&node, VM, one).await).contains("lock"));
    node.commit(Txn::new("x").put(VM, more)).await;
    assert!(why(back(&node, VM, locked).await).contains("lock"));
    back(&node, VM, one).await.unwrap();
    let config = VmConfig::parse(&text(&node, VM).unwrap()).unwrap();
    assert_eq!((config.current.get("cores"), config.current.get("name")), (Some("1"), None));
    let note = node.ops.history(Some(VM), 1).remove(0).note;
    assert!(note.starts_with("VM 100: cores, name removed; rolled back to revision "), "{note}");
}

#[tokio::test]
async fn who_goes_back_may_change_what_the_file_says() {
    let node = with_vm().await;
    node.commit(Txn::new("x").put("user.cfg", "user:a@pve:1:0:::::\n")).await;
    let (users, vm, storages) = (now(&node, "user.cfg"), now(&node, VM), now(&node, "storage.cfg"));
    node.commit(Txn::new("x").put("user.cfg", "")).await;
    let allow = |those: &'static [&'static str]| {
        Actor::new("bob@pve", false, Arc::new(move |_: &str, privilege: &str| those.contains(&privilege)))
    };
    let ask = async |actor: Actor, path: &str, to: u64| {
        node.ops.roll_back_file(&actor, path, Moment::Revision(Revision(to)), None).await
    };
    let all = &["Sys.Modify", "Permissions.Modify", "VM.Config.CPU"];
    for (path, to) in [("user.cfg", users), (VM, vm), ("storage.cfg", storages)] {
        let refused = ask(allow(all), path, to).await;
        assert!(matches!(refused, Err(OpsError::Forbidden { .. })), "{path}: {refused:?}");
    }
    node.commit(Txn::new("x").put("firewall/cluster.fw", "enable: 1\n")).await;
    let unknown = now(&node, "firewall/cluster.fw");
    node.commit(Txn::new("x").put("firewall/cluster.fw", "enable: 0\n")).await;
    let refused = ask(allow(all), "firewall/cluster.fw", unknown).await;
    assert!(matches!(refused, Err(OpsError::Forbidden { .. })), "whoever reads it: {refused:?}");
    assert!(ask(allow(&[]), "notes/a", users).await.is_err());
    ask(allow(&["Sys.Modify", "Datastore.Allocate"]), "storage.cfg", storages).await.unwrap();
    assert_eq!(text(&node, "user.cfg").unwrap(), "");
}

#[tokio::test]
async fn a_backup_that_could_not_be_restored_is_not_given() {
    let node = Node::of_three().await;
    let (data, newest) = node.ops.backup(&root()).await.unwrap();
    assert!(stead_conf::Backup::decode(&data).is_ok() && newest);
    node.commit(Txn::new("x").put("stead/nodes/n9", "no record")).await;
    let refused = node.ops.backup(&root()).await.unwrap_err().to_string();
    assert!(refused.contains("stead/nodes/n9"), "{refused}");
}

#[tokio::test]
async fn how_much_is_kept_is_said_and_seen() {
    let node = Node::start().await;
    let before = node.ops.history_status();
    assert_eq!((before.max_size, before.max_age, before.level), (16, None, 1));
    assert!(
        before.changes > 0 && before.history_bytes > 0 && before.oldest.is_some() && before.store_bytes > 0
    );
    for (size, age) in [(Some(0), None), (Some(65), None), (Some(u64::MAX), Some(u64::MAX))] {
        assert!(why(node.ops.limit_history(&root(), size, age).await).contains("max-size"));
    }
    node.ops.limit_history(&root(), Some(2), Some(30)).await.unwrap();
    node.ops.limit_history(&root(), None, None).await.unwrap();
    let after = node.ops.history_status();
    assert_eq!((after.max_size, after.max_age, after.level), (2, Some(30), 2));
    for n in 0..4 {
        node.commit(Txn::new("x").put(format!("big/{n}"), vec![b'x'; 900_000])).await;
    }
    assert!(node.ops.history_status().history_bytes <= 2 << 20);
    assert!(node.ops.history(Some("big"), 9).len() == 2);
    node.ops.limit_history(&root(), None, Some(0)).await.unwrap();
    assert_eq!(node.ops.history_status().max_age, None);
}
