//! Files that administrators write: checked as the API checks, guests changed and handed over by their own rules.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use stead_conf::Txn;
use stead_driver::storage::{NewVolume, StorageDriver};
use stead_model::vmconfig::VmConfig;
use stead_model::{NodeState, paths};
use stead_ops::files::guests::GuestFile;
use stead_ops::files::{FileChange, FileFault, Why};
use stead_ops::guest::Asked;
use stead_ops_testing::{Node, lost, name, root, uuid, vmid};

const SHARED: &str = "shared:100/vm-100-disk-0.raw";

async fn put(node: &Node, path: &str, text: &str) -> Result<(), FileFault> {
    let over = node.ops.conf.view(|t| t.get(path).map(|e| e.revision));
    let data = Bytes::copy_from_slice(text.as_bytes());
    node.ops.change_file(&root(), FileChange::Put { path: path.into(), over, data }).await.map(drop)
}

async fn rename(node: &Node, from: &str, to: &str) -> Result<(), FileFault> {
    let entry = |path: &str| node.ops.conf.view(|t| t.get(path).cloned());
    let (old, over) = (entry(from).unwrap(), entry(to).map(|e| e.revision));
    let change =
        FileChange::Move { from: (from.into(), old.revision), data: old.data, to: (to.into(), over) };
    node.ops.change_file(&root(), change).await.map(drop)
}

async fn remove(node: &Node, path: &str) -> Result<(), FileFault> {
    let at = node.ops.conf.view(|t| t.get(path).unwrap().revision);
    node.ops.change_file(&root(), FileChange::Remove { path: path.into(), at }).await.map(drop)
}

async fn make_folder(node: &Node, path: &str) -> Result<(), FileFault> {
    node.ops.change_file(&root(), FileChange::MakeFolder { path: path.into() }).await.map(drop)
}

fn of(node: &str, n: u32) -> String {
    format!("nodes/{node}/qemu-server/{n}.conf")
}

fn text(node: &Node, path: &str) -> String {
    node.ops.conf.view(|t| t.text(path).unwrap().to_owned())
}

fn config(node: &Node, n: u32) -> VmConfig {
    VmConfig::parse(&node.ops.guest_at(vmid(n)).unwrap().config.value).unwrap()
}

fn why(done: Result<(), FileFault>) -> Why {
    done.unwrap_err().why
}

/// A VM of this node with a disk that all have.
async fn with_vm() -> Node {
    let node = Node::of_three().await;
    let options = [("scsi0".into(), "shared:1,format=raw".into()), ("cores".into(), "1".into())].into();
    let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    node
}

async fn start(node: &Node, n: u32) {
    let upid = node.ops.start(&root(), vmid(n), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}

#[tokio::test]
async fn a_known_file_is_checked_and_what_is_in_use_stays() {
    let node = with_vm().await;
    let before = text(&node, "storage.cfg");
    let broken = put(&node, "storage.cfg", &format!("{before}\nnonsense\n")).await.unwrap_err();
    assert_eq!((broken.why, broken.line), (Why::Invalid, Some(before.lines().count() + 2)));
    let gone = put(&node, "storage.cfg", "dir: local\n\tpath /fake/local\n\tcontent images,iso\n")
        .await
        .unwrap_err();
    assert_eq!(gone.why, Why::Busy);
    assert!(gone.reason.contains("'shared' is used by VM 100"), "{gone}");
    let kind =
        put(&node, "storage.cfg", &format!("{before}\nzfspool: tank\n\tpool tank\n")).await.unwrap_err();
    assert_eq!(kind.why, Why::Invalid, "{kind}");
    assert_eq!(text(&node, "storage.cfg"), before);
    put(&node, "storage.cfg", &format!("{before}\ndir: more\n\tpath /fake/more\n\tcontent images\n"))
        .await
        .unwrap();
    assert!(node.ops.storage(&"more".parse().unwrap()).is_ok());
    assert_eq!(
        why(put(&node, "ha/resources.cfg", "vm: 999\n\tstate started\n").await),
        Why::Invalid,
        "no such guest"
    );
    put(&node, "ha/resources.cfg", "vm: 100\n\tstate ignored\n").await.unwrap();
    assert_eq!(why(remove(&node, "storage.cfg").await), Why::Never);
    assert_eq!(why(rename(&node, "storage.cfg", "storage.cfg.old").await), Why::Never);
    put(&node, "new.cfg", "nonsense\n").await.unwrap();
    assert_eq!(
        why(rename(&node, "new.cfg", "storage.cfg").await),
        Why::Invalid,
        "checked by what it becomes"
    );
    remove(&node, "new.cfg").await.unwrap();
}

/// `storage.cfg` with that said otherwise.
async fn put_storages(node: &Node, from: &str, to: &str) -> Result<(), FileFault> {
    let text = text(node, "storage.cfg");
    assert!(text.contains(from), "{text}");
    put(node, "storage.cfg", &text.replacen(from, to, 1)).await
}

#[tokio::test]
async fn a_storage_that_a_guest_names_stays_what_and_where_it_is() {
    let node = with_vm().await;
    let before = text(&node, "storage.cfg");
    for (from, to, key) in [
        ("dir: shared", "btrfs: shared", "type"),
        ("path /fake/shared", "path /fake/other", "path"),
        ("\tpath /fake/shared\n", "", "path"),
    ] {
        let refused = put_storages(&node, from, to).await.unwrap_err();
        assert_eq!(refused.why, Why::Busy, "{refused}");
        assert!(
            refused.reason.starts_with(&format!("{key}: storage 'shared' is used by VM 100")),
            "{refused}"
        );
        assert_eq!(refused.line, before.lines().position(|l| l.ends_with(": shared")).map(|n| n + 1));
    }
    assert_eq!(text(&node, "storage.cfg"), before);
    // What does not move it is taken, and so is all of one that nobody names.
    put_storages(&node, "\tcontent images\n", "\tcontent images,iso\n").await.unwrap();
    put_storages(&node, "path /fake/local", "path /fake/elsewhere").await.unwrap();
    // A snapshot's volume, or one that waits, is one, too.
    node.record_guest(200, "n3", |_| {}, "cores: 1\n\n[old]\nscsi0: local:200/vm-200-disk-0.raw\n").await;
    assert_eq!(why(put_storages(&node, "path /fake/elsewhere", "path /fake/local").await), Why::Busy);
    assert_eq!(why(put_storages(&node, "dir: local", "dir: here").await), Why::Busy);
}

#[tokio::test]
async fn records_of_stead_s_own_are_no_files_to_write() {
    let node = Node::of_three().await;
    for own in ["ha/crm_commands/100", "ha/history/100", "priv/join/abc"] {
        let sealed = own.starts_with("priv/").then(|| node.ops.conf.seal(own, b"{}").unwrap());
        node.commit(Txn::new("x").put(own, sealed.unwrap_or("{}".into())).put("mine", "x")).await;
        let at = || node.ops.conf.view(|t| t.get(own).map(|e| e.revision));
        let before = at();
        assert_eq!(why(put(&node, own, "x").await), Why::Never, "{own} written");
        assert_eq!(why(put(&node, &format!("{own}-new"), "x").await), Why::Never, "{own} made");
        assert_eq!(why(remove(&node, own).await), Why::Never, "{own} removed");
        assert_eq!(why(rename(&node, own, "notes").await), Why::Never, "{own} renamed");
        assert_eq!(why(rename(&node, "mine", own).await), Why::Never, "{own} replaced");
        let folder = own.rsplit_once('/').unwrap().0;
        assert_eq!(
            why(make_folder(&node, &format!("{folder}/sub")).await),
            Why::Never,
            "a folder in {folder}"
        );
        let change = FileChange::RemoveFolder { path: folder.into() };
        assert_eq!(
            why(node.ops.change_file(&root(), change).await.map(drop)),
            Why::Never,
            "{folder} removed"
        );
        assert_eq!(at(), before, "{own}");
    }
}

#[tokio::test]
async fn no_folder_takes_the_name_of_a_file_that_stead_reads() {
    let node = Node::of_three().await;
    for name in
        [of("n1", 100), of("n1", 7), "nodes/n1/lxc/100.conf".into(), "ha/rules.cfg".into(), "user.cfg".into()]
    {
        assert_eq!(why(make_folder(&node, &name).await), Why::Never, "{name}");
    }
    make_folder(&node, "nodes/n1/qemu-server/old").await.unwrap();
    make_folder(&node, "ha/rules").await.unwrap();
}

#[tokio::test]
async fn a_resource_that_is_left_out_takes_what_was_asked_of_it_along() {
    let node = with_vm().await;
    node.record_guest(101, "n1", |_| {}, "cores: 1\n").await;
    put(&node, paths::HA_RESOURCES, "vm: 100\n\tstate ignored\n\nvm: 101\n\tstate ignored\n").await.unwrap();
    let asked = ["100", "stop-100", "101", "maintenance-n1"].map(|what| format!("ha/crm_commands/{what}"));
    for command in &asked {
        node.commit(Txn::new("x").put(command.as_str(), "{}")).await;
    }
    put(&node, paths::HA_RESOURCES, "vm: 101\n\tstate ignored\n").await.unwrap();
    let left: Vec<bool> = asked.iter().map(|c| node.ops.conf.view(|t| t.get(c).is_some())).collect();
    assert_eq!(left, [false, false, true, true]);
}

#[tokio::test]
async fn who_is_lost_or_a_witness_changes_no_guest() {
    let node = with_vm().await;
    let path = of("n1", 100);
    let n = vmid(100);
    let asked = || {
        let over = node.ops.conf.view(|t| t.get(&path).unwrap().revision);
        GuestFile::Write {
            vmid: n,
            over,
            text: text(&node, &path).replace("cores: 1", "cores: 2"),
            reason: None,
        }
    };
    let refused = node.ops.guest_file_of(&name("n2"), asked()).await.unwrap_err();
    assert!(refused.why == Why::Never && refused.reason.contains("'n2' is lost"), "{refused}");
    assert_eq!(why(node.ops.guest_file_of(&name("n9"), asked()).await), Why::Never, "no member");
    let record = text(&node, "stead/nodes/n3");
    let witness = record.trim_end().trim_end_matches('}').to_owned() + ",\"witness\":true}";
    node.commit(Txn::new("x").put("stead/nodes/n3", witness)).await;
    let refused = node.ops.guest_file_of(&name("n3"), asked()).await.unwrap_err();
    assert!(refused.why == Why::Never && refused.reason.contains("'n3' is a witness"), "{refused}");
    assert_eq!(config(&node, 100).current.get("cores"), Some("1"));
    node.commit(Txn::new("x").put("stead/nodes/n3", record)).await;
    node.ops.guest_file_of(&name("n3"), asked()).await.unwrap();
    assert_eq!(config(&node, 100).current.get("cores"), Some("2"));
}

#[tokio::test]
async fn a_vm_s_file_is_a_change_of_the_vm() {
    let node = with_vm().await;
    let path = of("n1", 100);
    put(&node, &path, &text(&node, &path).replace("cores: 1", "cores: 2\nname: web")).await.unwrap();
    assert_eq!(
        (config(&node, 100).current.get("cores"), config(&node, 100).current.get("name")),
        (Some("2"), Some("web"))
    );
    let broken = put(&node, &path, "cores: 2\nwhat\n").await.unwrap_err();
    assert_eq!((broken.why, broken.line), (Why::Invalid, Some(2)));
    let wrong =
        put(&node, &path, &text(&node, &path).replace("cores: 2", "memory: 0\ncores: 2")).await.unwrap_err();
    assert!(wrong.why == Why::Invalid && wrong.line.is_some() && wrong.reason.contains("memory"), "{wrong}");
    // A disk that is left out is kept, and is not freed by leaving that out.
    put(&node, &path, "cores: 2\nname: web\n").await.unwrap();
    assert_eq!(config(&node, 100).current.get("unused0"), Some(SHARED));
    assert_eq!(why(put(&node, &path, "cores: 2\nname: web\n").await), Why::Never);
    assert_eq!(node.storage("shared").list(None, None).await.unwrap().len(), 1);
    // Another VM's volume is not had by its name.
    let volume = NewVolume { vmid: vmid(101), name: None, format: Some("raw".into()), size: 1 << 20 };
    let other = node.storage("shared").alloc(&volume).await.unwrap();
    let stolen = format!("{}scsi1: {}\n", text(&node, &path), other.volid);
    assert_eq!(why(put(&node, &path, &stolen).await), Why::Invalid);
}

#[tokio::test]
async fn a_running_vm_takes_at_its_next_start_what_it_cannot_take_now() {
    let node = with_vm().await;
    start(&node, 100).await;
    let path = of("n1", 100);
    let owner = node.own(100);
    put(&node, &path, &text(&node, &path).replace("cores: 1", "cores: 4\nname: web")).await.unwrap();
    let now = config(&node, 100);
    assert_eq!(
        (now.current.get("cores"), now.pending.set.get("cores"), now.current.get("name")),
        (Some("1"), Some("4"), Some("web"))
    );
    assert_eq!(node.own(100), owner, "the record is no file");
    put(&node, &path, &text(&node, &path).replace("[PENDING]\ncores: 4\n", "")).await.unwrap();
    assert!(config(&node, 100).pending.is_empty(), "taken back");
}

#[tokio::test]
async fn a_locked_vm_s_file_waits_and_its_lock_is_no_text() {
    let node = with_vm().await;
    let path = of("n1", 100);
    let before = text(&node, &path);
    node.commit(Txn::new("x").put(path.as_str(), format!("{before}lock: backup\n"))).await;
    assert_eq!(why(put(&node, &path, &before).await), Why::Never, "the lock is not taken out");
    assert_eq!(why(put(&node, &path, &format!("{before}lock: backup\nname: x\n")).await), Why::Busy);
    put(&node, &path, &format!("{before}lock: backup\n")).await.unwrap();
}

#[tokio::test]
async fn an_old_version_is_not_written_over() {
    let node = with_vm().await;
    let path = of("n1", 100);
    let over = node.ops.conf.view(|t| t.get(&path).map(|e| e.revision));
    put(&node, &path, &text(&node, &path).replace("cores: 1", "cores: 2")).await.unwrap();
    let late = FileChange::Put { path: path.clone(), over, data: Bytes::from_static(b"cores: 8\n") };
    assert_eq!(why(node.ops.change_file(&root(), late).await.map(drop)), Why::Busy);
    assert_eq!(config(&node, 100).current.get("cores"), Some("2"));
}

#[tokio::test]
async fn a_new_file_is_a_new_vm_with_its_record() {
    let node = with_vm().await;
    put(
        &node,
        &of("n1", 102),
        "cores: 2\nscsi0: local:1\nnet0: virtio,bridge=vmbr0\nmeta: creation-qemu=9\n",
    )
    .await
    .unwrap();
    let own = node.own(102);
    assert!(own.owner == name("n1") && !own.running && own.epoch.0 > 0);
    assert_eq!(config(&node, 102).current.get("scsi0"), Some("local:102/vm-102-disk-0.raw,size=1G"));
    for (path, text) in [
        (of("n1", 103), ""),
        (of("n1", 103), "lock: create\n"),
        (of("n1", 103), "scsi0: local:102/vm-102-disk-0.raw\n"),
        ("nodes/n1/qemu-server/0104.conf".to_owned(), "cores: 1\n"),
        ("nodes/n1/lxc/104.conf".to_owned(), "cores: 1\n"),
    ] {
        assert!(put(&node, &path, text).await.is_err(), "{path} {text}");
        assert!(node.ops.conf.view(|t| t.get(&path).is_none()));
    }
    // A number is a guest's, on whichever node.
    assert_eq!(
        why(put(&node, &of("n1", 102).replace("n1", "n2"), "cores: 1\n").await),
        Why::Busy,
        "n2 is lost"
    );
    assert_eq!(why(remove(&node, &of("n1", 102)).await), Why::Never);
    assert_eq!(why(rename(&node, &of("n1", 102), &of("n1", 105)).await), Why::Never);
    assert_eq!(why(rename(&node, &of("n1", 102), "nodes/n1/qemu-server/102.bak").await), Why::Never);
}

#[tokio::test]
async fn what_an_editor_puts_in_its_place_is_a_change() {
    let node = with_vm().await;
    let (path, beside) = (of("n1", 100), "nodes/n1/qemu-server/sedX1".to_owned());
    put(&node, &beside, &text(&node, &path).replace("cores: 1", "cores: 3")).await.unwrap();
    rename(&node, &beside, &path).await.unwrap();
    assert_eq!(config(&node, 100).current.get("cores"), Some("3"));
    assert!(node.ops.conf.view(|t| t.get(&beside).is_none()));
    put(&node, &beside, "nonsense\n").await.unwrap();
    assert_eq!(why(rename(&node, &beside, &path).await), Why::Invalid);
    assert!(node.ops.conf.view(|t| t.get(&beside).is_some()), "what was refused is kept");
    // What could not go from where it is changes nothing, either.
    let entry = |path: &str| node.ops.conf.view(|t| t.get(path).cloned()).unwrap();
    let (old, over) = (entry(&beside), entry(&path).revision);
    put(&node, &beside, "cores: 4\n").await.unwrap();
    let text = Bytes::from(text(&node, &path).replace("cores: 3", "cores: 5"));
    let late =
        FileChange::Move { from: (beside.clone(), old.revision), data: text, to: (path.clone(), Some(over)) };
    assert_eq!(why(node.ops.change_file(&root(), late).await.map(drop)), Why::Busy);
    let (own, over) = (entry("stead/nodes/n3"), entry(&path).revision);
    let from = ("stead/nodes/n3".to_owned(), own.revision);
    let stolen = FileChange::Move { from, data: Bytes::from_static(b"cores: 6\n"), to: (path, Some(over)) };
    assert_eq!(why(node.ops.change_file(&root(), stolen).await.map(drop)), Why::Never);
    assert_eq!(config(&node, 100).current.get("cores"), Some("3"));
}

#[tokio::test]
async fn a_running_guest_is_never_handed_over_by_a_rename() {
    let node = with_vm().await;
    start(&node, 100).await;
    let before = node.own(100);
    assert_eq!(why(rename(&node, &of("n1", 100), &of("n3", 100)).await), Why::Busy);
    // Of another node nobody here knows whether it runs: that node is asked, and does not answer.
    node.record_guest(200, "n3", |_| {}, "cores: 1\n").await;
    assert_eq!(why(rename(&node, &of("n3", 200), &of("n1", 200)).await), Why::Unknown);
    assert_eq!((node.own(100), node.own(200).owner), (before, name("n3")));
}

#[tokio::test]
async fn a_stopped_guest_of_this_node_goes_by_the_rules_of_a_move() {
    let node = with_vm().await;
    node.commit(Txn::new("x").put(paths::HA_RESOURCES, "vm: 100\n\tstate stopped\n")).await;
    assert_eq!(why(rename(&node, &of("n1", 100), &of("n3", 100)).await), Why::Busy, "HA has it");
    node.commit(Txn::new("x").put(paths::HA_RESOURCES, "")).await;
    node.record_guest(300, "n1", |_| {}, "scsi0: local:300/vm-300-disk-0.raw\n").await;
    assert_eq!(
        why(rename(&node, &of("n1", 300), &of("n3", 300)).await),
        Why::Busy,
        "its disks are here alone"
    );
    assert_eq!(why(rename(&node, &of("n1", 100), &of("n2", 100)).await), Why::Busy, "n2 is lost");
    assert_eq!(node.own(100).owner, name("n1"));
}

#[tokio::test]
async fn a_lost_node_s_guest_is_handed_over_if_nothing_of_it_can_run() {
    let node = Node::of_three().await;
    node.record_guest(100, "n2", |_| {}, "cores: 1\n").await;
    rename(&node, &of("n2", 100), &of("n1", 100)).await.unwrap();
    let own = node.own(100);
    assert_eq!((own.owner, own.epoch.0, own.running), (name("n1"), 8, false));
    assert!(node.ops.conf.view(|t| t.get(&of("n2", 100)).is_none()));
    // It may run there, unguarded or guarded: only who knows that the node is off may say otherwise.
    for (n, armed) in [(101, false), (102, true)] {
        let runs = |o: &mut stead_model::Ownership| (o.running, o.armed) = (true, armed);
        node.record_guest(n, "n2", runs, "cores: 1\n").await;
        let refused = rename(&node, &of("n2", n), &of("n1", n)).await.unwrap_err();
        assert_eq!(refused.why, Why::Busy);
        assert!(refused.reason.contains("confirm-off"), "{refused}");
        assert_eq!((node.own(n).owner, node.own(n).epoch.0), (name("n2"), 7));
    }
    // A task that works on it there would go on.
    node.record_guest(104, "n2", |_| {}, "cores: 1\nlock: clone\n").await;
    let refused = rename(&node, &of("n2", 104), &of("n1", 104)).await.unwrap_err();
    assert!(refused.why == Why::Busy && refused.reason.contains("worked on"), "{refused}");
    assert_eq!(node.own(104).owner, name("n2"));
    node.commit(Txn::new("x").put(paths::HA_RESOURCES, "vm: 103\n\tstate started\n")).await;
    node.record_guest(103, "n2", |_| {}, "cores: 1\n").await;
    assert_eq!(why(rename(&node, &of("n2", 103), &of("n1", 103)).await), Why::Busy, "HA recovers it");
    // Its text is not changed while nobody can ask its node.
    assert_eq!(why(put(&node, &of("n2", 101), "cores: 2\n").await), Why::Busy);
}

#[tokio::test]
async fn a_node_that_is_back_keeps_its_guests() {
    let node = Node::of_three().await;
    node.record_guest(100, "n2", |_| {}, "cores: 1\n").await;
    let back = NodeState::Member { boot: "44444444-4444-4444-8444-444444444444".parse().unwrap() };
    node.record_node("n2", 2, uuid(2).as_str(), back).await;
    assert_eq!(
        why(rename(&node, &of("n2", 100), &of("n1", 100)).await),
        Why::Unknown,
        "it is asked, and does not answer"
    );
    assert_eq!(node.own(100).owner, name("n2"));
    node.record_node("n2", 2, uuid(2).as_str(), lost()).await;
    rename(&node, &of("n2", 100), &of("n1", 100)).await.unwrap();
}

#[tokio::test]
async fn a_secret_is_sealed_and_read_again() {
    let node = Node::of_three().await;
    put(&node, "priv/notes", "geheim").await.unwrap();
    let stored = node.ops.conf.view(|t| t.get("priv/notes").unwrap().data.clone());
    assert!(!stored.windows(6).any(|w| w == b"geheim"));
    assert_eq!(node.ops.read_file("priv/notes", &stored).unwrap(), "geheim");
    assert_eq!(why(put(&node, "priv/shadow.cfg", "nonsense").await), Why::Invalid);
    for own in [
        paths::CA_KEY,
        paths::AUTH_KEY,
        paths::CA_CERT,
        "stead/owner/100",
        "stead/x",
        paths::HA_STATUS,
        "nodes/n1/priv/key",
    ] {
        assert_eq!(why(put(&node, own, "x").await), Why::Never, "{own}");
    }
}
