//! Cloud-init drives: when they are written, what is said of them, and what a failure half-way leaves.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::time::Duration;
use stead_driver::storage::{Content, StorageDriver, StorageError};
use stead_model::cloudinit::Part;
use stead_ops::guest::Asked;
use stead_ops::guest::config::ConfigChange;
use stead_ops::guest::destroy::DestroyOptions;
use stead_ops::guest::power::PowerAction;
use stead_ops_testing::{Node, root, vmid};

const VOLUME: &str = "100/vm-100-cloudinit.raw";

fn options(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// A node with VM 100, which has a drive and these options.
async fn start(more: &[(&str, &str)]) -> Node {
    let node = Node::start().await;
    let all = [&[("ide2", "shared:cloudinit"), ("ciuser", "zoe"), ("name", "web")], more].concat();
    let upid = node.ops.create_vm(&root(), vmid(100), &options(&all), false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    node
}

async fn set(node: &Node, all: &[(&str, &str)]) {
    let change = ConfigChange { set: options(all), ..ConfigChange::default() };
    node.ops.configure(&root(), vmid(100), change, Asked::default()).await.unwrap();
}

/// A start: how its task ended, and its log.
async fn boot(node: &Node) -> (String, String) {
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    node.ended(&upid).await
}

async fn stop(node: &Node) {
    let stop = PowerAction::Stop { timeout: Duration::from_secs(1) };
    let upid = node.ops.power(&root(), vmid(100), stop, Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
}

fn config(node: &Node) -> String {
    node.ops.guest_at(vmid(100)).unwrap().config.value
}

/// What the drive holds.
async fn drive(node: &Node) -> String {
    let path = node.storage("shared").resolve(VOLUME).await.unwrap().path;
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len(), 4 << 20, "as large as its volume");
    String::from_utf8(bytes).unwrap().trim_end_matches('\0').to_owned()
}

/// Nothing is left of what was spooled.
fn spooled(node: &Node) -> usize {
    let names = std::fs::read_dir(node.dir.path()).unwrap().map(|e| e.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("spool-")).count()
}

#[tokio::test]
async fn a_drive_is_written_before_a_start_that_finds_it_differs() {
    let node = start(&[("net0", "virtio=BC:24:11:00:00:01")]).await;
    assert!(
        config(&node).contains("ide2: shared:100/vm-100-cloudinit.raw,media=cdrom,size=4M\n"),
        "{}",
        config(&node)
    );
    assert!(!config(&node).contains("[special:cloudinit]"), "nothing is written yet");
    let (status, log) = boot(&node).await;
    assert_eq!((status.as_str(), log.contains("writing the cloud-init drive")), ("OK", true), "{log}");
    let held = drive(&node).await;
    assert!(held.starts_with("label cidata\n== user-data\n#cloud-config\n"), "{held}");
    for part in
        ["hostname: \"web\"", "user: \"zoe\"", "bc:24:11:00:00:01", "type: \"dhcp4\"", "instance-id: "]
    {
        assert!(held.contains(part), "{part} in {held}");
    }
    let told = config(&node);
    assert!(told.contains("\n[special:cloudinit]\nciuser: zoe\ndigest: "), "{told}");
    let opened = node.machines.volumes("n1", vmid(100));
    assert_eq!(opened[0].volume, "shared:100/vm-100-cloudinit.raw");
    stop(&node).await;
    // All is as it was: neither the program nor a storage that takes writes is needed.
    node.cds.set_missing(Some("gone"));
    node.storage("shared").set_read_only(Some("full"));
    let (status, log) = boot(&node).await;
    assert_eq!((status.as_str(), log.contains("writing")), ("OK", false), "{log}");
    assert_eq!(config(&node), told);
}

#[tokio::test]
async fn what_fails_half_way_leaves_no_drive_that_is_taken_for_the_new_one() {
    let node = start(&[]).await;
    assert_eq!(boot(&node).await.0, "OK");
    stop(&node).await;
    let first = drive(&node).await;
    set(&node, &[("ciuser", "ada")]).await;

    node.cds.set_missing(Some("no such file"));
    let (status, _) = boot(&node).await;
    let named = status.contains("shared:100/vm-100-cloudinit.raw") && status.contains("is the package");
    assert!(named, "{status}");
    assert!(node.machines.state("n1", vmid(100)).is_none() && !node.own(100).running, "it does not run");
    assert!(!config(&node).contains("[special:cloudinit]"), "nobody knows what the drive holds");
    node.cds.set_missing(None);

    node.storage("shared").set_read_only(Some("read-only file system"));
    let (status, _) = boot(&node).await;
    assert!(status.contains("read-only file system"), "{status}");
    assert!(!config(&node).contains("[special:cloudinit]"));
    assert_eq!((drive(&node).await, spooled(&node)), (first.clone(), 0));
    // Back to what the drive holds: that it does is known to nobody, and it is written.
    set(&node, &[("ciuser", "zoe")]).await;
    assert!(boot(&node).await.0.contains("read-only"));
    node.storage("shared").set_read_only(None);
    assert_eq!(boot(&node).await.0, "OK");
    assert_eq!((drive(&node).await, spooled(&node)), (first, 0));
}

#[tokio::test]
async fn a_running_guest_finds_another_medium() {
    let node = start(&[]).await;
    let refused = async || node.ops.update_cloudinit(&root(), vmid(100)).await.unwrap_err().to_string();
    assert_eq!(boot(&node).await.0, "OK");
    let media = || node.machines.volumes("n1", vmid(100)).len();
    set(&node, &[("ciuser", "ada")]).await;
    let told = node.ops.cloudinit_pending(vmid(100)).unwrap();
    let user = told.iter().find(|told| told.key == "ciuser").unwrap();
    assert_eq!((user.value.as_deref(), user.pending.as_deref()), (Some("zoe"), Some("ada")));
    assert!(!drive(&node).await.contains("ada"));
    node.ops.update_cloudinit(&root(), vmid(100)).await.unwrap();
    assert!(drive(&node).await.contains("user: \"ada\""));
    assert_eq!(media(), 2);
    assert!(node.ops.cloudinit_pending(vmid(100)).unwrap().iter().all(|told| told.pending.is_none()));

    set(&node, &[("hotplug", "network,cloudinit")]).await;
    set(&node, &[("onboot", "1")]).await;
    assert_eq!(media(), 2, "a guest is not told of that");
    set(&node, &[("ciuser", "eve")]).await;
    assert!(drive(&node).await.contains("user: \"eve\""));
    assert_eq!(media(), 3);

    node.cds.set_missing(Some("gone"));
    assert!(refused().await.contains("is the package"));
    node.cds.set_missing(None);
    // The medium is taken out at once, and with it goes the drive.
    set(&node, &[("ide2", "none,media=cdrom")]).await;
    assert!(matches!(node.storage("shared").info(VOLUME).await, Err(StorageError::NoVolume(_))));
    assert!(!config(&node).contains("[special:cloudinit]"));
    assert!(refused().await.contains("has no cloud-init drive: give it one"));
    // A new one waits for its content.
    set(&node, &[("ide2", "shared:cloudinit")]).await;
    assert!(config(&node).contains("[PENDING]\nide2: shared:100/vm-100-cloudinit.raw"), "{}", config(&node));
    stop(&node).await;
    assert_eq!(boot(&node).await.0, "OK");
    assert!(drive(&node).await.contains("user: \"eve\""));
}

#[tokio::test]
async fn a_vm_has_one_drive_which_goes_with_it() {
    let node = start(&[]).await;
    let put = async |key: &str, value: &str| {
        let change = ConfigChange { set: options(&[(key, value)]), ..ConfigChange::default() };
        node.ops.configure(&root(), vmid(100), change, Asked::default()).await.map_err(|e| e.to_string())
    };
    let second = put("sata1", "shared:cloudinit").await.unwrap_err();
    assert!(
        second.starts_with("sata1: a VM has one cloud-init drive at most, and 'ide2' is that"),
        "{second}"
    );
    put("ide2", "shared:cloudinit").await.unwrap();
    assert_eq!(node.storage("shared").list(None, Some(vmid(100))).await.unwrap().len(), 1, "the same again");
    // To another storage: the old one is removed, and of the new one nothing is said yet.
    assert_eq!(boot(&node).await.0, "OK");
    stop(&node).await;
    put("ide2", "local:cloudinit,format=qcow2").await.unwrap();
    assert_eq!(node.storage("shared").list(None, Some(vmid(100))).await.unwrap(), []);
    let config = config(&node);
    assert!(config.contains("ide2: local:100/vm-100-cloudinit.qcow2,format=qcow2,media=cdrom"), "{config}");
    assert!(!config.contains("[special:cloudinit]"), "{config}");
    let told = node.ops.migrate_preconditions(vmid(100)).await.unwrap();
    assert!(told.local_volumes[0].cdrom && told.local_volumes[0].volid.ends_with("cloudinit.qcow2"));
    let upid =
        node.ops.destroy(&root(), vmid(100), DestroyOptions::default(), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    assert_eq!(node.storage("local").list(None, Some(vmid(100))).await.unwrap(), []);
}

#[tokio::test]
async fn a_password_is_kept_as_a_hash_and_shown_nowhere() {
    const SECRET: &str = "open, sesame";
    let node = start(&[("cipassword", SECRET)]).await;
    let hash = |node: &Node| {
        let config = config(node);
        config.lines().find_map(|l| l.strip_prefix("cipassword: ")).unwrap().to_owned()
    };
    let first = hash(&node);
    assert!(first.starts_with("$6$") && stead_access::secret::is_crypt_of(SECRET, &first), "{first}");
    let (status, log) = boot(&node).await;
    assert_eq!(status, "OK");
    assert!(drive(&node).await.contains(&first), "the guest gets the hash");
    set(&node, &[("cipassword", SECRET)]).await;
    assert_eq!(hash(&node), first, "the same password");
    set(&node, &[("cipassword", "$5$salt$hash")]).await;
    assert_eq!(hash(&node), "$5$salt$hash", "hashed already");
    set(&node, &[("cipassword", "another")]).await;
    let second = hash(&node);
    assert!(second != first && second.starts_with("$6$"));

    let ops = &node.ops;
    let history: Vec<String> =
        ops.conf.recent(1000).into_iter().map(|change| format!("{} {}", change.note, change.path)).collect();
    let shown = [
        format!("{:?}", ops.vm_config(vmid(100), false, None).unwrap()),
        format!("{:?}", ops.vm_pending(vmid(100)).unwrap()),
        format!("{:?}", ops.cloudinit_pending(vmid(100)).unwrap()),
        ops.cloudinit_dump(vmid(100), Part::User).await.unwrap(),
        ops.cloudinit_dump(vmid(100), Part::Meta).await.unwrap(),
        history.join("\n"),
        log,
    ];
    for (n, text) in shown.iter().enumerate() {
        for secret in [SECRET, "another", &first, &second, "$5$salt"] {
            assert!(!text.contains(secret), "{n}: {text}");
        }
    }
    assert!(shown[..4].iter().all(|text| text.contains("**********")));
    let windows = [("ostype", "win11"), ("cipassword", "x")];
    let change = ConfigChange { set: options(&windows), ..ConfigChange::default() };
    stop(&node).await;
    let e = ops.configure(&root(), vmid(100), change, Asked::default()).await.unwrap_err();
    assert!(e.to_string().starts_with("cipassword: a Windows guest"), "{e}");
}

#[tokio::test]
async fn a_snippet_that_is_gone_keeps_no_guest_from_starting_as_it_was() {
    let node = start(&[]).await;
    let snippets = options(&[("path", "/fake/snips"), ("content", "snippets")]);
    node.ops.add_storage(&root(), &"snips".parse().unwrap(), "dir", snippets).await.unwrap();
    let storage = node.storage("snips");
    let put = async |text: &str| {
        let spooled = storage.spool().await.unwrap();
        std::fs::write(&spooled, text).unwrap();
        storage.adopt_file(spooled, Content::Snippets, "snippets/user.yaml").await.unwrap();
    };
    put("#cloud-config\nown: 1\n").await;
    set(&node, &[("cicustom", "user=snips:snippets/user.yaml")]).await;
    assert_eq!(boot(&node).await.0, "OK");
    assert!(drive(&node).await.contains("== user-data\n#cloud-config\nown: 1\n"));
    stop(&node).await;
    storage.free("snippets/user.yaml").await.unwrap();
    let (status, log) = boot(&node).await;
    assert!(
        status.starts_with("WARNINGS")
            && log.contains("the cloud-init drive stays as it is: cicustom: snippet"),
        "{status}: {log}"
    );
    stop(&node).await;
    set(&node, &[("ciuser", "ada")]).await;
    let (status, _) = boot(&node).await;
    assert!(status.starts_with("cicustom: snippet 'snips:snippets/user.yaml': "), "{status}");
    put("#cloud-config\nown: 2\n").await;
    assert_eq!(boot(&node).await.0, "OK");
    assert!(drive(&node).await.contains("own: 2"));
    stop(&node).await;
    storage.free("snippets/user.yaml").await.unwrap();
    put(&"x".repeat((512 << 10) + 1)).await;
    set(&node, &[("ciuser", "eve")]).await;
    assert!(boot(&node).await.0.contains("larger than 512 KiB"));
}
