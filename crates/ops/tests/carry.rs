//! Volumes that go along with a VM: what a target makes, and what is left when nothing comes of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stead_conf::Txn;
use stead_driver::guest::{Incoming, RunState};
use stead_driver::storage::{NewVolume, StorageDriver};
use stead_model::{Epoch, GuestKind, Ownership, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::carry::{Carried, RoomRequest};
use stead_ops::guest::incoming::{ContinueRequest, IncomingRequest};
use stead_ops::guest::migrate::MigrateOptions;
use stead_ops::store;
use stead_ops_testing::{Node, name, root, vmid};

const CONFIG: &str = "scsi0: local:100/vm-100-disk-0.qcow2,size=1M\n";
const RECORD: &str = "stead/loose/n1/100";

/// A VM of n3, which asks n1 for room.
async fn asked() -> (Node, RoomRequest) {
    let node = Node::of_three().await;
    node.record_guest(100, "n3", |own| own.epoch = Epoch(4), CONFIG).await;
    let wanted = Carried {
        volume: "local:100/vm-100-disk-0.qcow2".parse().unwrap(),
        storage: "local".parse().unwrap(),
        format: "qcow2".into(),
        size: 1 << 20,
        disk: None,
    };
    let request = RoomRequest {
        vmid: vmid(100),
        epoch: Epoch(4),
        source: name("n3"),
        config: CONFIG.into(),
        volumes: vec![wanted],
    };
    (node, request)
}

fn record(node: &Node) -> Option<String> {
    node.ops.conf.view(|t| t.get(RECORD).map(|e| String::from_utf8(e.data.to_vec()).unwrap()))
}

async fn volumes(node: &Node) -> Vec<String> {
    let all = node.storage("local").list(None, Some(vmid(100))).await.unwrap();
    all.into_iter().map(|v| v.volid.to_string()).collect()
}

#[tokio::test]
async fn a_target_names_what_it_makes_and_never_as_the_source_does() {
    let (node, request) = asked().await;
    node.ops.make_room(request.clone()).await.unwrap();
    let [made] = &volumes(&node).await[..] else { panic!("{:?}", volumes(&node).await) };
    assert_ne!(made, "local:100/vm-100-disk-0.qcow2");
    let named = record(&node).unwrap();
    assert!(named.contains(made) && named.contains("n3"), "{named}");
    // Asked again, it begins anew.
    node.ops.make_room(request.clone()).await.unwrap();
    assert_eq!(volumes(&node).await.len(), 1);
    // Another node can't take it back; the one that asked can.
    node.ops.free_room(&name("n2"), vmid(100)).await.unwrap();
    assert!(record(&node).is_some());
    node.ops.free_room(&name("n3"), vmid(100)).await.unwrap();
    assert_eq!((record(&node), volumes(&node).await.len()), (None, 0));
    // One that does not own it asks for nothing.
    let refused = node.ops.make_room(RoomRequest { source: name("n2"), ..request.clone() }).await;
    assert!(refused.unwrap_err().to_string().contains("belongs to 'n3' under epoch 4"));
    let refused = node.ops.make_room(RoomRequest { epoch: Epoch(3), ..request }).await;
    assert!(refused.is_err() && record(&node).is_none());
}

#[tokio::test]
async fn what_can_not_be_made_leaves_nothing() {
    let (node, mut request) = asked().await;
    let second = Carried { storage: "gone".parse().unwrap(), ..request.volumes[0].clone() };
    request.volumes.push(second);
    let refused = node.ops.make_room(request).await.unwrap_err().to_string();
    assert!(refused.contains("storage 'gone' does not exist"), "{refused}");
    assert_eq!((record(&node), volumes(&node).await.len()), (None, 0));
}

/// The VM is n1's, whatever it was.
async fn owned_here(node: &Node, config: &str) {
    let own = Ownership { owner: name("n1"), epoch: Epoch(5), ..node.own(100) };
    let path = |n: &str| paths::guest(&name(n), GuestKind::Qemu, vmid(100));
    let txn = Txn::new("test").delete(path("n3")).put(path("n1"), config.to_owned());
    node.commit(txn.put(paths::ownership(vmid(100)), store::bytes(&own).unwrap())).await;
}

/// A source that cannot be reached may still be sending; one that has lost the VM is not.
#[tokio::test]
async fn what_nobody_sends_is_freed_in_the_end_and_what_is_the_vm_s_is_not() {
    let (node, request) = asked().await;
    node.ops.make_room(request.clone()).await.unwrap();
    node.ops.reconcile().await.unwrap();
    assert!(record(&node).is_some() && volumes(&node).await.len() == 1, "n3 is silent, and may be at it");
    // Recovered to this node meanwhile: its configuration names what n3 has.
    owned_here(&node, CONFIG).await;
    node.ops.reconcile().await.unwrap();
    assert_eq!((record(&node), volumes(&node).await.len()), (None, 0));

    // It came, and its record of before is still there: what it names is kept.
    let (node, request) = asked().await;
    node.ops.make_room(request).await.unwrap();
    let config = format!("scsi0: {},size=1M\n", volumes(&node).await[0]);
    owned_here(&node, &config).await;
    node.ops.reconcile().await.unwrap();
    assert_eq!((record(&node), volumes(&node).await.len()), (None, 1));
}

/// Nobody can be asked for room here: the VM stays, unlocked, with its disk.
#[tokio::test]
async fn a_vm_that_finds_no_room_stays_as_it_is() {
    let node = Node::of_three().await;
    node.record_guest(100, "n1", |_| {}, CONFIG).await;
    let new = NewVolume {
        vmid: vmid(100),
        name: Some("vm-100-disk-0.qcow2".into()),
        format: Some("qcow2".into()),
        size: 1 << 20,
    };
    node.storage("local").alloc(&new).await.unwrap();
    let to = MigrateOptions::to(name("n3"), false);
    let upid = node.ops.migrate(&root(), vmid(100), to, Asked::default()).await.unwrap();
    let (status, _) = node.ended(&upid).await;
    assert!(status.contains("node 'n3' does not answer"), "{status}");
    assert_eq!(node.ops.guest_at(vmid(100)).unwrap().config.value, CONFIG);
    assert_eq!(volumes(&node).await.len(), 1);
}

/// A source that died after the commit: what it had is named, and goes.
#[tokio::test]
async fn what_a_source_has_left_goes() {
    let node = Node::of_three().await;
    node.record_guest(100, "n3", |_| {}, "scsi0: local:100/vm-100-disk-7.qcow2\n").await;
    let new = NewVolume {
        vmid: vmid(100),
        name: Some("vm-100-disk-0.qcow2".into()),
        format: Some("qcow2".into()),
        size: 1 << 20,
    };
    node.storage("local").alloc(&new).await.unwrap();
    let left = r#"{"volumes":["local:100/vm-100-disk-0.qcow2","local:100/vm-100-disk-9.raw"],"source":null}"#;
    node.commit(Txn::new("test").put(RECORD, left)).await;
    node.ops.reconcile().await.unwrap();
    assert_eq!((record(&node), volumes(&node).await.len()), (None, 0));
}

/// Once its target frees what it has made, a hand-over that was on its way can't make it the VM's any more.
#[tokio::test]
async fn what_is_being_freed_is_out_of_reach_of_a_late_hand_over() {
    let (node, request) = asked().await;
    node.ops.make_room(request).await.unwrap();
    let known = node.ops.conf.view(|t| t.get(RECORD).unwrap().revision);
    node.storage("local").set_failing(Some(("free", 0)));
    let failed = node.ops.free_room(&name("n3"), vmid(100)).await.unwrap_err().to_string();
    assert!(failed.contains("could not be freed yet"), "{failed}");
    assert!(record(&node).unwrap().contains(r#""claimed":true"#) && volumes(&node).await.len() == 1);
    let mut late = Txn::new("n3").delete(RECORD);
    late.checks.push(stead_conf::Check::Revision(RECORD.to_owned(), known));
    node.ops.conf.transact(late).await.unwrap_err();
    // Nobody has to ask for the rest.
    node.storage("local").set_failing(None);
    node.ops.reconcile().await.unwrap();
    assert_eq!((record(&node), volumes(&node).await.len()), (None, 0));
}

/// A source that misbehaves names what it likes: lent is what was made for it, while it is.
#[tokio::test]
async fn a_copy_lends_what_was_made_for_its_source_and_nothing_else() {
    let (node, mut request) = asked().await;
    let incoming = |config: String| IncomingRequest {
        vmid: vmid(100),
        epoch: Epoch(5),
        source: name("n3"),
        config,
        incoming: Incoming::stream("fake-1.0", "tcg"),
        ha: false,
        attempt: 1,
        lends: vec!["scsi0".to_owned()],
        paused: false,
        fetch: false,
    };
    let refused = async |config: &str| {
        let why = node.ops.incoming(incoming(config.to_owned())).await.unwrap_err().to_string();
        assert!(why.contains("'scsi0'") && why.contains("has made for node 'n3'"), "{why}");
        assert!(node.ops.guests.state(vmid(100)).await.is_none());
    };
    refused(CONFIG).await;
    request.volumes[0].disk = Some(("scsi0".to_owned(), 1 << 20));
    node.ops.make_room(request).await.unwrap();
    let made = format!("scsi0: {},size=1M\n", volumes(&node).await[0]);
    for other in [CONFIG, "scsi0: /dev/sda\n", "scsi1: local:100/vm-100-disk-0.qcow2\n"] {
        refused(other).await;
    }
    node.ops.incoming(incoming(made)).await.unwrap();
    assert!(node.ops.guests.disk_inlet(vmid(100)).await.is_ok());
    let copy = |attempt| ContinueRequest { vmid: vmid(100), epoch: Epoch(5), attempt };
    assert!(node.ops.disks_sent(&copy(2)).await.is_err(), "another attempt");
    // It is kept on disk, for which it has to be there.
    let path = node.ops.resolve_volume(&volumes(&node).await[0].parse().unwrap()).await.unwrap().path;
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "").unwrap();
    node.ops.disks_sent(&copy(1)).await.unwrap();
    assert!(node.ops.guests.disk_inlet(vmid(100)).await.is_err(), "it lends none any more");
}

/// What its user has paused runs nowhere, also where it goes.
#[tokio::test]
async fn a_paused_vm_stays_paused_where_it_comes() {
    for paused in [true, false] {
        let node = Node::of_three().await;
        node.record_guest(100, "n3", |own| (own.epoch, own.running) = (Epoch(4), true), "memory: 16\n").await;
        let request = IncomingRequest {
            vmid: vmid(100),
            epoch: Epoch(5),
            source: name("n3"),
            config: "memory: 16\n".to_owned(),
            incoming: Incoming::stream("fake-1.0", "tcg"),
            ha: false,
            attempt: 1,
            lends: vec![],
            paused,
            fetch: true,
        };
        let prepared = node.ops.incoming(request).await.unwrap();
        let why = prepared.why_not.unwrap();
        assert!(!prepared.fetches && why.contains("fetch-100.json"), "from whom can't be noted: {why}");
        node.machines.set_state("n1", vmid(100), RunState::Received);
        let own = Ownership { owner: name("n1"), epoch: Epoch(5), running: true, ..node.own(100) };
        let path = |n: &str| paths::guest(&name(n), GuestKind::Qemu, vmid(100));
        let txn = Txn::new("test").delete(path("n3")).put(path("n1"), "memory: 16\n");
        node.commit(txn.put(paths::ownership(vmid(100)), store::bytes(&own).unwrap())).await;
        node.ops.continue_incoming(vmid(100), Epoch(5)).await.unwrap();
        let state = node.ops.guests.state(vmid(100)).await.unwrap().state;
        assert_eq!(state, if paused { RunState::Paused } else { RunState::Running });
        // The source's word and the record's both say so.
        node.ops.continue_incoming(vmid(100), Epoch(5)).await.unwrap();
    }
}

/// Where only some can be freed, the others' names are free: what is made under one of them later is not freed by it.
#[tokio::test]
async fn what_is_freed_is_named_no_more() {
    let node = Node::of_three().await;
    node.record_guest(100, "n3", |_| {}, "memory: 16\n").await;
    let new = |name: &str| NewVolume {
        vmid: vmid(100),
        name: Some(name.to_owned()),
        format: Some("qcow2".into()),
        size: 1 << 20,
    };
    node.storage("local").alloc(&new("vm-100-disk-0.qcow2")).await.unwrap();
    let left =
        r#"{"volumes":["local:100/vm-100-disk-0.qcow2","gone:100/vm-100-disk-1.qcow2"],"source":null}"#;
    node.commit(Txn::new("test").put(RECORD, left)).await;
    node.ops.reconcile().await.unwrap();
    let named = record(&node).unwrap();
    assert!(!named.contains("disk-0") && named.contains("disk-1"), "{named}");
    node.storage("local").alloc(&new("vm-100-disk-0.qcow2")).await.unwrap();
    node.ops.reconcile().await.unwrap();
    assert_eq!(volumes(&node).await.len(), 1);
}
