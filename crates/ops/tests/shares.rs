//! Directories of the host: what their names become where a VM starts, who may give them, and what can't be done with such a VM.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use stead_model::{MappingKind, VmConfig};
use stead_ops::Actor;
use stead_ops::guest::Asked;
use stead_ops::guest::config::ConfigChange;
use stead_ops::guest::preconditions::FitsRequest;
use stead_ops::mapping::MappingOptions;
use stead_ops_testing::{Node, name, root, vmid};

fn map(options: &[(&str, &str)]) -> BTreeMap<String, String> {
    options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

async fn mapping(node: &Node, id: &str, entries: &[&str]) {
    let given = MappingOptions {
        map: entries.iter().map(|e| (*e).to_owned()).collect(),
        ..MappingOptions::default()
    };
    node.ops.mapping_add(&root(), MappingKind::Dir, id, given).await.unwrap();
}

/// A node with a directory, and a VM.
async fn node_with(options: &[(&str, &str)]) -> (Node, tempfile::TempDir) {
    let node = Node::of_three().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    mapping(&node, "share", &[&format!("node=n1,path={path}"), "node=n3,path=/srv/share"]).await;
    mapping(&node, "far", &["node=n3,path=/srv/far"]).await;
    std::fs::write(dir.path().join("file"), b"").unwrap();
    mapping(&node, "file", &[&format!("node=n1,path={path}/file")]).await;
    mapping(&node, "none", &[&format!("node=n1,path={path}/none")]).await;
    let upid = node.ops.create_vm(&root(), vmid(100), &map(options), false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    (node, dir)
}

async fn start(node: &Node) -> String {
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    node.ended(&upid).await.0
}

async fn change(node: &Node, set: &[(&str, &str)], delete: &[&str]) -> String {
    let delete = delete.iter().map(|key| (*key).to_owned()).collect();
    let change = ConfigChange { set: map(set), delete, ..ConfigChange::default() };
    let upid = node.ops.configure_task(&root(), vmid(100), change, Asked::default()).await.unwrap();
    node.ended(&upid).await.0
}

fn stored(node: &Node) -> VmConfig {
    VmConfig::parse(&node.ops.guest_at(vmid(100)).unwrap().config.value).unwrap()
}

#[tokio::test]
async fn a_name_becomes_the_node_s_directory_with_the_next_start() {
    let (node, dir) = node_with(&[("virtiofs0", "share,cache=never")]).await;
    assert_eq!(start(&node).await, "OK");
    let told = node.machines.config("n1", vmid(100)).unwrap();
    let line = format!("virtiofs0: share,cache=never,path={}\n", dir.path().display());
    assert!(told.contains(&line), "{line} in\n{told}");
    assert_eq!(stored(&node).current.get("virtiofs0"), Some("share,cache=never"));
    assert_eq!(change(&node, &[("virtiofs1", "dirid=far")], &["virtiofs0"]).await, "OK");
    let after = stored(&node);
    assert!(after.current.get("virtiofs0").is_some() && after.pending.set.get("virtiofs1").is_some());
}

#[tokio::test]
async fn what_is_no_directory_here_stops_a_start() {
    let (node, dir) = node_with(&[("virtiofs0", "far")]).await;
    assert_eq!(start(&node).await, "virtiofs0: dir mapping 'far' has nothing for node 'n1'");
    let path = dir.path().display();
    for (id, why) in [
        ("nosuch", "dir mapping 'nosuch' does not exist".to_owned()),
        ("file", format!("dir mapping 'file': '{path}/file' is no directory")),
        ("none", format!("dir mapping 'none': the directory '{path}/none': No such file")),
    ] {
        assert_eq!(change(&node, &[("virtiofs0", id)], &[]).await, "OK");
        let said = start(&node).await;
        assert!(said.starts_with(&format!("virtiofs0: {why}")), "{said}");
    }
    let set = map(&[("virtiofs0", "share"), ("virtiofs1", "dirid=share")]);
    let twice = ConfigChange { set, ..ConfigChange::default() };
    let twice =
        node.ops.configure(&root(), vmid(100), twice, Asked::default()).await.unwrap_err().to_string();
    assert!(twice.contains("virtiofs1") && twice.contains("is virtiofs0 already"), "{twice}");
}

#[tokio::test]
async fn directories_are_given_by_who_may_use_their_names() {
    let (node, _dir) = node_with(&[]).await;
    let allows = |path: &str, what: &str| {
        (path == "/vms/100" && what == "VM.Config.Options")
            || (path == "/mapping/dir/share" && what == "Mapping.Use")
    };
    let user = Actor::new("u@pve", false, Arc::new(allows));
    let ask = async |value: &str| {
        let change = ConfigChange { set: map(&[("virtiofs0", value)]), ..ConfigChange::default() };
        node.ops.configure(&user, vmid(100), change, Asked::default()).await.map_err(|e| e.to_string())
    };
    assert_eq!(ask("dirid=share").await, Ok(()));
    let not = "Permission check failed (/mapping/dir/far, Mapping.Use)";
    assert_eq!(ask("far").await, Err(not.to_owned()));
    let told = ask("share,path=/etc").await.unwrap_err();
    assert!(told.contains("there is no property 'path'"), "{told}");
}

#[tokio::test]
async fn a_vm_with_a_directory_moves_while_it_is_stopped() {
    let (node, _dir) = node_with(&[("virtiofs0", "share")]).await;
    let why = async || {
        let found = node.ops.migrate_preconditions(vmid(100)).await.unwrap();
        let of_n3 = found.not_allowed.into_iter().find(|(n, _)| n.as_str() == "n3").unwrap().1;
        (of_n3.join("\n"), found.mapped_resources)
    };
    let (stopped, mapped) = why().await;
    assert!(!stopped.contains("virtiofs0"), "{stopped}");
    assert_eq!(mapped, [("virtiofs0".to_owned(), "share".to_owned())]);
    assert_eq!(start(&node).await, "OK");
    let (running, _) = why().await;
    assert!(running.contains("virtiofs0: a running VM can't move with the directory 'share'"), "{running}");
    // As the target of a VM that has what this node has not.
    let asked = |config: &str| FitsRequest {
        vmid: vmid(105),
        config: config.to_owned(),
        incoming: None,
        source: Some(name("n3")),
        carried: vec![],
    };
    let theirs = node.ops.fits(asked("virtiofs3: far\n")).await.unwrap().join("\n");
    assert!(
        theirs.contains("on node 'n1': virtiofs3: dir mapping 'far' has nothing for node 'n1'"),
        "{theirs}"
    );
    assert!(!node.ops.fits(asked("virtiofs3: share\n")).await.unwrap().join("\n").contains("virtiofs3"));
}

#[tokio::test]
async fn the_memory_of_a_vm_with_a_directory_is_not_kept() {
    let (node, _dir) = node_with(&[("virtiofs2", "share")]).await;
    assert_eq!(start(&node).await, "OK");
    let why = |e: stead_ops::OpsError| e.to_string();
    let ram = node.ops.take_snapshot(&root(), vmid(100), "ram", "", true).await.map_err(why).unwrap_err();
    assert!(
        ram.starts_with("can't keep in a snapshot the memory of VM 100: ") && ram.contains("'virtiofs2'"),
        "{ram}"
    );
    let disk = node.ops.suspend_to_disk(&root(), vmid(100), None, Asked::default()).await;
    let disk = disk.map_err(why).unwrap_err();
    assert!(disk.starts_with("can't suspend to disk VM 100: ") && disk.contains("'virtiofs2'"), "{disk}");
    assert!(stored(&node).current.lock().is_none());
    let upid = node.ops.take_snapshot(&root(), vmid(100), "disks", "", false).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}

#[tokio::test]
async fn a_snapshot_gives_back_what_its_user_may_have() {
    let (node, _dir) = node_with(&[("virtiofs2", "share")]).await;
    let upid = node.ops.take_snapshot(&root(), vmid(100), "one", "", false).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert_eq!(change(&node, &[], &["virtiofs2"]).await, "OK");
    let user = Actor::new("u@pve", false, Arc::new(|path: &str, _: &str| !path.starts_with("/mapping/")));
    let refused = node.ops.roll_back(&user, vmid(100), "one", false).await.unwrap_err().to_string();
    assert_eq!(refused, "Permission check failed (/mapping/dir/share, Mapping.Use)");
}
