//! Moves between two clusters: what becomes of both sides, however far it came.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use async_trait::async_trait;
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stead_conf::Txn;
use stead_driver::storage::{NewVolume, StorageDriver};
use stead_model::vmconfig::VmConfig;
use stead_model::{Remote, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::arrive::{NoChannel, Waits};
use stead_ops::guest::depart::RemoteOptions;
use stead_ops::peers::Duplex;
use stead_ops::remote::{Ask, RemoteError, RemoteLink};
use stead_ops::{Actor, Ops};
use stead_ops_testing::{Node, root, vmid};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};

#[path = "remote/live.rs"]
mod live;

const CONFIG: &str = "memory: 16\nname: web\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n\
    scsi0: local:100/vm-100-disk-0.qcow2,discard=on,size=3M\nunused0: shared:100/vm-100-disk-1.raw\n\n\
    [one]\nscsi0: local:100/vm-100-disk-0.qcow2,discard=on,size=3M\nsnaptime: 1\n";
const WHO: &str = "mover@pve!away";

/// Where a tunnel is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Nowhere.
    Never,
    /// The control channel, instead of the source's message of that number.
    BeforeSaid(usize),
    /// The control channel, instead of the target's answer of that number.
    BeforeHeard(usize),
    /// The same, and nobody answers any more.
    ForGood(usize),
    /// The first disk, after so many bytes.
    Disk(usize),
    /// Nowhere, and nothing is taken of the first disk after so many bytes.
    Stalled(usize),
    /// Nowhere, and the target is of a version that takes none that run.
    Old,
    /// The memory of one that runs, after so many bytes.
    Memory(usize),
    /// Nowhere, and nothing is taken of that memory after so many bytes, nor answered to it.
    MuteMemory(usize),
}

/// The other cluster, in this process. Its user's rights, as the other cluster knows them.
struct Link {
    far: Arc<Ops>,
    actor: Actor,
    cut: Mutex<Cut>,
    version: Value,
    controls: AtomicUsize,
    is_dead: Arc<std::sync::atomic::AtomicBool>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Link {
    fn new(far: &Node, cut: Cut) -> Self {
        Self {
            far: far.ops.clone(),
            actor: Actor::new(WHO, false, Arc::new(|_, _| true)),
            cut: Mutex::new(cut),
            version: json!({"version": "9.1", "stead": "0.1.0"}),
            controls: AtomicUsize::new(0),
            is_dead: Arc::default(),
            said: Arc::default(),
        }
    }
}

fn of(ask: &Ask, name: &str) -> String {
    ask.params.iter().find(|(k, _)| *k == name).map(|(_, v)| v.clone()).unwrap_or_default()
}

#[async_trait]
impl RemoteLink for Link {
    async fn call(&self, to: &Remote, _: &str, ask: &Ask, _: Duration) -> Result<Value, RemoteError> {
        let refused = |why: String| RemoteError::Refused { at: to.to_string(), what: ask.what, why };
        match ask.path.rsplit('/').next().unwrap() {
            "version" => Ok(self.version.clone()),
            "mtunnel" => {
                let vmid = ask.path.split('/').nth(4).unwrap().parse().unwrap();
                let list = |name| {
                    of(ask, name).split(',').filter(|p| !p.is_empty()).map(str::to_owned).collect::<Vec<_>>()
                };
                let storages: Vec<_> = list("storages").iter().map(|s| s.parse().unwrap()).collect();
                let bridges: Vec<_> = list("bridges").iter().map(|s| s.parse().unwrap()).collect();
                let opened = self.far.open_tunnel(&self.actor, vmid, &storages, &bridges).await;
                let o = opened.map_err(|e| refused(e.to_string()))?;
                Ok(json!({"upid": o.upid, "ticket": o.ticket, "socket": o.socket}))
            }
            other => panic!("{other}"),
        }
    }

    async fn open(&self, to: &Remote, _: &str, ask: &Ask) -> Result<Box<dyn Duplex>, RemoteError> {
        let gone = |why: &str| RemoteError::Unreachable { at: to.to_string(), why: why.to_owned() };
        if self.is_dead.load(Ordering::Relaxed) {
            return Err(gone("it is dead"));
        }
        let vmid = ask.path.split('/').nth(4).unwrap().parse().unwrap();
        let socket = of(ask, "socket");
        let far = self.far.tunnel_channel(WHO, vmid, &of(ask, "ticket"), &socket).await;
        let far = far.map_err(|e| gone(&e.to_string()))?;
        let (near, middle) = tokio::io::duplex(1 << 16);
        let cut = *self.cut.lock().unwrap();
        if socket == "control" && self.controls.fetch_add(1, Ordering::Relaxed) == 0 {
            tokio::spawn(between(middle, far, cut, self.is_dead.clone(), self.said.clone()));
        } else if let (Cut::Disk(bytes), "disk:0") | (Cut::Memory(bytes), "memory") = (cut, socket.as_str()) {
            tokio::spawn(async move {
                let (mut middle, mut far) = (middle, far);
                let mut part = vec![0; bytes];
                middle.read_exact(&mut part).await.unwrap();
                far.write_all(&part).await.unwrap();
            });
        } else if let (Cut::Stalled(bytes), "disk:0") | (Cut::MuteMemory(bytes), "memory") =
            (cut, socket.as_str())
        {
            tokio::spawn(async move {
                let (mut middle, _far) = (middle, far);
                middle.read_exact(&mut vec![0; bytes]).await.unwrap();
                std::future::pending::<()>().await;
            });
        } else {
            let said = self.said.clone();
            tokio::spawn(between(middle, far, Cut::Never, Arc::default(), said));
        }
        Ok(Box::new(near))
    }
}

/// Carries bytes, and messages line by line as far as they are to come.
async fn between(
    near: DuplexStream,
    far: DuplexStream,
    cut: Cut,
    is_dead: Arc<std::sync::atomic::AtomicBool>,
    said: Arc<Mutex<Vec<String>>>,
) {
    if cut == Cut::Never {
        let (mut near, mut far) = (near, far);
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        return;
    }
    let (near_read, mut near_write) = tokio::io::split(near);
    let (far_read, mut far_write) = tokio::io::split(far);
    let (mut says, mut answers) = (BufReader::new(near_read), BufReader::new(far_read));
    let there = async {
        let (mut n, mut line) = (0, String::new());
        while says.read_line(&mut line).await.unwrap_or(0) > 0 {
            if !line.contains("alive") {
                if cut == Cut::BeforeSaid(n) {
                    return;
                }
                said.lock().unwrap().push(line.trim().to_owned());
                n += 1;
            }
            if far_write.write_all(line.as_bytes()).await.is_err() {
                return;
            }
            line.clear();
        }
    };
    let back = async {
        let (mut n, mut line) = (0, String::new());
        while answers.read_line(&mut line).await.unwrap_or(0) > 0 {
            if cut == Cut::ForGood(n) {
                is_dead.store(true, Ordering::Relaxed);
                return;
            }
            if cut == Cut::BeforeHeard(n) {
                return;
            }
            n += 1;
            if cut == Cut::Old {
                line = line.replace(",\"live\":true", "");
            }
            near_write.write_all(line.as_bytes()).await.unwrap();
            line.clear();
        }
    };
    tokio::select! { () = there => {}, () = back => {} }
}

/// Two clusters of a node each; the first has a VM with two volumes.
async fn pair() -> (Node, Node) {
    let (near, far) = (Node::start().await, Node::start().await);
    near.record_guest(100, "n1", |_| {}, CONFIG).await;
    fill(&near).await;
    (near, far)
}

/// Makes the VM's volumes.
async fn fill(near: &Node) {
    for (storage, file, format) in
        [("local", "vm-100-disk-0.qcow2", "qcow2"), ("shared", "vm-100-disk-1.raw", "raw")]
    {
        let new = NewVolume {
            vmid: vmid(100),
            name: Some(file.into()),
            format: Some(format.into()),
            size: 3 << 20,
        };
        near.storage(storage).alloc(&new).await.unwrap();
        let path = near.dir.path().join(storage).join("100").join(file);
        let image = std::fs::File::options().write(true).open(path).unwrap();
        image.set_len(3 << 20).unwrap();
        image.write_all_at(file.as_bytes(), 2 << 20).unwrap();
    }
}

fn options() -> RemoteOptions {
    RemoteOptions {
        remote: "apitoken=PVEAPIToken=mover@pve!away=5eCret,host=192.0.2.1".parse().unwrap(),
        target_vmid: Some(vmid(200)),
        storages: "shared".parse().unwrap(),
        bridges: "vmbr0:lan".parse().unwrap(),
        online: false,
        delete: false,
        bwlimit: None,
    }
}

async fn moved(near: &Node, link: Link, options: RemoteOptions) -> (String, String) {
    near.remotes.set(Arc::new(link));
    let upid = near.ops.remote_migrate(&root(), vmid(100), options).await.unwrap();
    assert!(!upid.to_string().contains("5eCret"));
    let (status, log) = near.ended(&upid).await;
    assert!(!status.contains("5eCret") && !log.contains("5eCret"), "{status}\n{log}");
    (status, log)
}

fn config(node: &Node, n: u32) -> Option<String> {
    node.ops.guest_at(vmid(n)).ok().map(|g| g.config.value)
}

async fn volumes(node: &Node, n: u32) -> Vec<String> {
    let mut all = vec![];
    for storage in ["local", "shared"] {
        all.extend(node.storage(storage).list(None, Some(vmid(n))).await.unwrap());
    }
    all.into_iter().map(|v| v.volid.to_string()).collect()
}

/// Nothing of it is there, and its number is free.
async fn is_nothing(far: &Node) {
    // The target's task may be at it still.
    let tasks = far.ops.tasks.list(&every_task()).0;
    for task in tasks {
        far.ops.tasks.wait(&task.upid).await.unwrap();
    }
    assert_eq!((config(far, 200), volumes(far, 200).await.len()), (None, 0));
    assert!(
        !far.ops
            .conf
            .view(|t| t.get("stead/lock/200").is_some() || t.get(&paths::ownership(vmid(200))).is_some())
    );
}

fn every_task() -> stead_tasks::Filter {
    stead_tasks::Filter { source: stead_tasks::Source::All, ..stead_tasks::Filter::default() }
}

/// The VM is as it was.
async fn is_whole(near: &Node) {
    assert_eq!(config(near, 100).unwrap(), CONFIG);
    assert_eq!(volumes(near, 100).await.len(), 2);
    assert!(!near.ops.conf.view(|t| t.get("stead/lock/100").is_some()));
    assert_eq!(std::fs::read(near.dir.path().join("local/100/vm-100-disk-0.qcow2")).unwrap().len(), 3 << 20);
}

/// The VM is there, with all that its disks held.
async fn has_come(far: &Node) {
    let text = config(far, 200).unwrap();
    let config = VmConfig::parse(&text).unwrap();
    assert_eq!(config.current.lock(), None, "{text}");
    // They are called as no others are.
    let [disk, unused] = ["scsi0", "unused0"].map(|key| config.current.get(key).unwrap().to_owned());
    let disk_name =
        disk.strip_suffix(",discard=on,size=3M").unwrap().strip_prefix("shared:200/vm-200-disk-").unwrap();
    let unused_name = unused.strip_prefix("shared:200/vm-200-disk-").unwrap();
    let lengths = [disk_name, unused_name].map(str::len);
    assert_eq!(lengths, [16 + ".qcow2".len(), 16 + ".raw".len()], "{text}");
    assert_eq!(config.snapshots["one"].get("scsi0"), Some(disk.as_str()), "{text}");
    assert_eq!(config.current.get("net0"), Some("virtio=BC:24:11:00:00:01,bridge=lan"), "{text}");
    for (name, old) in [(disk_name, "vm-100-disk-0.qcow2"), (unused_name, "vm-100-disk-1.raw")] {
        let image = std::fs::read(far.dir.path().join(format!("shared/200/vm-200-disk-{name}"))).unwrap();
        assert!(image.len() == 3 << 20 && image[2 << 20..].starts_with(old.as_bytes()), "{name}");
    }
    assert!(!far.ops.conf.view(|t| t.get("stead/lock/200").is_some()));
    assert!(!far.own(200).running);
}

/// It is locked, and whoever looks at it leaves it so.
async fn is_given_away(near: &Node) {
    near.ops.reconcile().await.unwrap();
    let text = config(near, 100).unwrap();
    assert_eq!(text, CONFIG.replacen("memory", "lock: migrate\nmemory", 1));
    assert_eq!(volumes(near, 100).await.len(), 2);
    let refused = near.ops.start(&root(), vmid(100), Asked::default()).await.unwrap_err();
    assert_eq!(refused.to_string(), "VM is locked (migrate)");
}

#[tokio::test]
async fn a_vm_goes_to_another_cluster_and_stays_locked_where_it_was() {
    let (near, far) = pair().await;
    let (status, log) = moved(&near, Link::new(&far, Cut::Never), options()).await;
    assert_eq!(status, "OK", "{log}");
    assert!(
        log.contains("mover@pve!away") && log.contains("it is VM 200 of the cluster at 192.0.2.1:8006"),
        "{log}"
    );
    has_come(&far).await;
    is_given_away(&near).await;
}

/// A recovery goes by the record, which may say of a VM without a process that it runs.
#[tokio::test]
async fn what_is_given_away_is_recorded_as_without_a_process() {
    let (near, far) = pair().await;
    let own = near.ops.guest_at(vmid(100)).unwrap().own;
    let stale = stead_model::Ownership { running: true, ..own.value };
    let text = serde_json::to_string(&stale).unwrap();
    near.commit(Txn::new("test").put(paths::ownership(vmid(100)), text)).await;
    let (status, log) = moved(&near, Link::new(&far, Cut::Never), options()).await;
    assert_eq!(status, "OK", "{log}");
    assert!(!near.own(100).running);
    is_given_away(&near).await;
}

#[tokio::test]
async fn one_that_is_to_be_removed_is_gone_with_its_volumes() {
    let (near, far) = pair().await;
    let (status, log) =
        moved(&near, Link::new(&far, Cut::Never), RemoteOptions { delete: true, ..options() }).await;
    assert_eq!(status, "OK", "{log}");
    has_come(&far).await;
    assert_eq!((config(&near, 100), volumes(&near, 100).await.len()), (None, 0));
    // One that can't be removed whole is there all the same, and says so.
    let (near, far) = pair().await;
    near.storage("local").set_failing(Some(("free", 0)));
    let (status, log) =
        moved(&near, Link::new(&far, Cut::Never), RemoteOptions { delete: true, ..options() }).await;
    assert_eq!(status, "WARNINGS: 1", "{log}");
    has_come(&far).await;
    assert!(config(&near, 100).unwrap().contains("lock: migrate"));
}

/// Said are: hello, fits, make, commit; answered in the same order.
#[tokio::test]
async fn a_tunnel_that_is_cut_before_the_word_leaves_all_as_it_was() {
    let before = [0, 1, 2, 3].map(Cut::BeforeSaid).into_iter();
    let cuts = before.chain([0, 1, 2].map(Cut::BeforeHeard)).chain([1, 100, 2000].map(Cut::Disk));
    for cut in cuts {
        let (near, far) = pair().await;
        let (status, log) =
            moved(&near, Link::new(&far, cut), RemoteOptions { delete: true, ..options() }).await;
        assert!(!status.starts_with("OK") && !status.starts_with("WARN"), "{cut:?}: {log}");
        is_nothing(&far).await;
        is_whole(&near).await;
    }
}

#[tokio::test]
async fn a_target_that_takes_nothing_any_more_is_given_up() {
    let (near, far) = pair().await;
    let waits = Waits { stalled: Duration::from_millis(100), ..Waits::default() };
    near.ops.guest_locks.tunnels.set_waits(waits);
    let (status, log) = moved(&near, Link::new(&far, Cut::Stalled(100)), options()).await;
    assert!(
        status.contains("vm-100-disk-0.qcow2") && status.contains("nothing was taken"),
        "{status}\n{log}"
    );
    is_nothing(&far).await;
    is_whole(&near).await;
}

#[tokio::test]
async fn a_word_whose_answer_is_lost_is_asked_about() {
    let (near, far) = pair().await;
    let (status, log) = moved(&near, Link::new(&far, Cut::BeforeHeard(3)), options()).await;
    assert_eq!(status, "OK", "{log}");
    assert!(log.contains("asking again"), "{log}");
    has_come(&far).await;
    is_given_away(&near).await;
}

#[tokio::test]
async fn a_word_that_nobody_answers_leaves_it_locked_and_says_what_to_do() {
    let (near, far) = pair().await;
    near.ops.guest_locks.tunnels.set_waits(Waits { outcome: Duration::ZERO, ..Waits::default() });
    let (status, log) =
        moved(&near, Link::new(&far, Cut::ForGood(3)), RemoteOptions { delete: true, ..options() }).await;
    assert!(status.contains("is not known") && status.contains("Never start both"), "{status}\n{log}");
    // Whoever looks finds one of three, and the task's log says so before it may end.
    for text in [&status, &log] {
        assert!(text.contains("locked (create), it is not decided yet"), "{text}");
    }
    is_given_away(&near).await;
    has_come(&far).await;
}

/// The source's daemon dies at once after it has given the VM away: whoever comes next leaves the lock.
#[tokio::test]
async fn what_is_given_away_stays_so_without_its_task() {
    let near = Node::of_three().await;
    let locked = CONFIG.replacen("memory", "lock: migrate\nmemory", 1);
    near.record_guest(100, "n1", |_| {}, &locked).await;
    near.ops.reconcile().await.unwrap();
    assert_eq!(config(&near, 100).unwrap(), locked);
    // With a holder it is a task's, which has died.
    let held = json!({"what": "migrate", "task": "UPID:n1:00000001:00000001:00000001:qmigrate:100:root@pam:", "epoch": 7});
    near.commit(Txn::new("test").put("stead/lock/100", held.to_string())).await;
    near.ops.reconcile().await.unwrap();
    assert_eq!(config(&near, 100).unwrap(), CONFIG);
}

/// The target's daemon dies in the middle.
#[tokio::test]
async fn a_reservation_of_a_dead_task_goes_with_its_volumes() {
    let far = Node::start().await;
    let text = "lock: create\nscsi0: shared:200/vm-200-disk-0.raw\nscsi1: shared:200/vm-200-disk-1.raw\n";
    far.record_guest(200, "n1", |_| {}, text).await;
    let new = NewVolume { vmid: vmid(200), name: None, format: Some("raw".into()), size: 1 << 20 };
    far.storage("shared").alloc(&new).await.unwrap();
    let held = json!({"what": "create", "task": "UPID:n1:00000001:00000001:00000001:qmtunnel:200:u@pve!t:", "epoch": 7});
    far.commit(Txn::new("test").put("stead/lock/200", held.to_string())).await;
    far.ops.reconcile().await.unwrap();
    is_nothing(&far).await;
}

async fn refused(near: &Node, link: Link, options: RemoteOptions) -> String {
    let (status, _) = moved(near, link, options).await;
    assert!(status.starts_with("can't migrate VM 100"), "{status}");
    status
}

#[tokio::test]
async fn all_that_speaks_against_it_is_named_before_anything_begins() {
    let (near, far) = pair().await;
    let text = CONFIG.replacen(
        "name: web",
        "args: -S\nhostpci0: mapping=gpu\nide2: local:iso/a.iso,media=cdrom\nname: web",
        1,
    );
    near.record_guest(101, "n1", |_| {}, "memory: 16\n").await;
    let path = paths::guest(&stead_ops_testing::name("n1"), stead_model::GuestKind::Qemu, vmid(100));
    near.commit(Txn::new("test").put(path, text.clone())).await;
    far.machines.refuse_launches("n1", Some("bridge 'lan' does not exist"));
    let why = refused(&near, Link::new(&far, Cut::Never), options()).await;
    for part in [
        "hostpci0: it is a device",
        "only root can set 'args'",
        "the CD 'shared:iso/a.iso' is not there",
        "bridge 'lan' does not exist",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert_eq!(why.matches("hostpci0: it is").count(), 1, "{why}");
    is_nothing(&far).await;
    assert_eq!(config(&near, 100).unwrap(), text);

    // A number that is taken, a storage that is not there.
    let (near, far) = pair().await;
    far.record_guest(200, "n1", |_| {}, "memory: 32\n").await;
    let why = refused(&near, Link::new(&far, Cut::Never), options()).await;
    assert!(why.contains("unable to create VM 200"), "{why}");
    assert_eq!(config(&far, 200).unwrap(), "memory: 32\n");
    let gone = RemoteOptions { storages: "gone".parse().unwrap(), target_vmid: Some(vmid(201)), ..options() };
    let why = refused(&near, Link::new(&far, Cut::Never), gone).await;
    assert!(why.contains("storage 'gone' does not exist"), "{why}");
    is_whole(&near).await;

    // Another program's cluster.
    let (near, far) = pair().await;
    let link = Link { version: json!({"version": "9.1"}), ..Link::new(&far, Cut::Never) };
    assert!(refused(&near, link, options()).await.contains("no cluster of Stead's"));
    is_nothing(&far).await;
}

/// A user of the target, without one privilege.
fn without(path: &'static str, privilege: &'static str) -> Actor {
    Actor::new(WHO, false, Arc::new(move |p, r| !(r == privilege && p.starts_with(path))))
}

#[tokio::test]
async fn the_token_s_rights_are_all_that_counts_there() {
    for (path, privilege) in [
        ("/storage/shared", "Datastore.AllocateSpace"),
        ("/sdn/zones/localnet/lan", "SDN.Use"),
        ("/vms/200", "VM.Config.Disk"),
        ("/vms/200", "VM.Config.Memory"),
    ] {
        let (near, far) = pair().await;
        let link = Link { actor: without(path, privilege), ..Link::new(&far, Cut::Never) };
        let why = refused(&near, link, options()).await;
        assert!(why.contains(&format!("({path}, {privilege})")), "{why}");
        is_nothing(&far).await;
        is_whole(&near).await;
    }
}

#[tokio::test]
async fn a_tunnel_is_its_user_s_alone() {
    let far = Node::start().await;
    let actor = Actor::new(WHO, false, Arc::new(|_, _| true));
    let opened = far.ops.open_tunnel(&actor, vmid(200), &[], &[]).await.unwrap();
    let ask = async |who: &str, n: u32, ticket: &str, socket: &str| {
        far.ops.tunnel_channel(who, vmid(n), ticket, socket).await.err()
    };
    assert_eq!(ask("mover@pve", 200, &opened.ticket, "control").await, Some(NoChannel::Ticket));
    assert_eq!(ask(WHO, 201, &opened.ticket, "control").await, Some(NoChannel::Ticket));
    assert_eq!(ask(WHO, 200, "PVETUNNEL:00", "control").await, Some(NoChannel::Ticket));
    assert_eq!(ask(WHO, 200, &opened.ticket, "ram").await, Some(NoChannel::Socket));
    assert!(!opened.upid.to_string().contains(&opened.ticket));
    far.ops.tasks.stop(&opened.upid);
    let (status, log) = far.ended(&opened.upid).await;
    assert!(status != "OK" && log.contains("stopped at the target"), "{status}\n{log}");
    is_nothing(&far).await;
}

/// Speaks with a tunnel by hand.
struct Hand(BufReader<DuplexStream>);

impl Hand {
    async fn say(&mut self, text: &str) -> String {
        self.0.write_all(format!("{text}\n").as_bytes()).await.unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        line
    }
}

/// A tunnel of a source that misbehaves.
async fn by_hand(far: &Node) -> (Hand, String, stead_model::Upid) {
    let actor = Actor::new(WHO, false, Arc::new(|_, _| true));
    let opened = far.ops.open_tunnel(&actor, vmid(200), &[], &[]).await.unwrap();
    let control = far.ops.tunnel_channel(WHO, vmid(200), &opened.ticket, "control").await.unwrap();
    (Hand(BufReader::new(control)), opened.ticket, opened.upid)
}

const HELLO: &str = r#"{"say":"hello","protocol":1,"version":"0.1.0"}"#;

fn fits(config: &str, volumes: &Value) -> String {
    json!({"say": "fits", "config": config, "volumes": volumes}).to_string()
}

#[tokio::test]
async fn what_is_said_out_of_turn_or_in_another_version_ends_it() {
    for (says, why) in [
        (vec![r#"{"say":"hello","protocol":9,"version":"x"}"#], "version 9"),
        (vec![r#"{"say":"make"}"#], "before 'hello'"),
        (vec![HELLO, r#"{"say":"make"}"#], "'make' out of its turn"),
        (vec![HELLO, r#"{"say":"commit"}"#], "unlock"),
        (vec![HELLO, r#"{"say":"dance"}"#], "can't be read"),
    ] {
        let far = Node::start().await;
        let (mut hand, _, upid) = by_hand(&far).await;
        let mut last = String::new();
        for say in &says {
            last = hand.say(say).await;
        }
        // A VM of nothing, which was never asked about, is no VM.
        let why = if why == "unlock" { "not all of it has come" } else { why };
        assert!(last.contains(r#""answer":"gone""#) && last.contains(why), "{says:?}: {last}");
        assert!(far.ended(&upid).await.0.contains(why));
        is_nothing(&far).await;
    }
}

#[tokio::test]
async fn a_source_names_no_volume_that_it_does_not_bring() {
    let (_, far) = pair().await;
    far.record_guest(300, "n1", |_| {}, "scsi0: local:300/vm-300-disk-0.raw\n").await;
    let new = NewVolume { vmid: vmid(300), name: None, format: Some("raw".into()), size: 1 << 20 };
    far.storage("local").alloc(&new).await.unwrap();
    let sent =
        json!({"volume": "local:300/vm-300-disk-0.raw", "storage": "local", "format": "raw", "size": 1});
    for (config, volumes, why) in [
        ("scsi0: local:300/vm-300-disk-0.raw\n", json!([]), "does not come along"),
        ("ide2: local:300/vm-300-disk-0.raw,media=cdrom\n", json!([]), "is no CD image"),
        ("memory: 16\n", json!([sent.clone()]), "is not one of the VM's"),
        ("scsi0: /dev/sda\n", json!([]), "is a file of its host"),
        ("scsi0: local:8\n", json!([]), "names no volume"),
        ("memory: 16\n\n[one]\nargs: -S\nsnaptime: 1\n", json!([]), "only root can set 'args'"),
        ("memory: 16\n\n[PENDING]\nserial0: /dev/ttyS0\n", json!([]), "it is a device of its host"),
    ] {
        let (mut hand, ..) = by_hand(&far).await;
        hand.say(HELLO).await;
        let answer = hand.say(&fits(config, &volumes)).await;
        assert!(answer.contains(why), "{config}: {answer}");
        let gone = hand.say(r#"{"say":"make"}"#).await;
        assert!(gone.contains("gone"), "{gone}");
        is_nothing(&far).await;
    }
    assert_eq!(volumes(&far, 300).await.len(), 1);
}

#[tokio::test]
async fn an_image_that_names_files_of_the_host_is_not_taken() {
    let far = Node::start().await;
    let (mut hand, ticket, upid) = by_hand(&far).await;
    hand.say(HELLO).await;
    let volumes = json!([{"volume": "aa:1/x.qcow2", "storage": "local", "format": "qcow2", "size": 10}]);
    let answer = hand.say(&fits("scsi0: aa:1/x.qcow2\n", &volumes)).await;
    assert_eq!(answer.trim(), r#"{"answer":"obstacles","why":[]}"#);
    assert!(hand.say(r#"{"say":"make"}"#).await.contains("local:200/vm-200-disk-"));
    let mut disk = far.ops.tunnel_channel(WHO, vmid(200), &ticket, "disk:0").await.unwrap();
    disk.write_u64(0).await.unwrap();
    disk.write_u32(6).await.unwrap();
    disk.write_all(b"backed").await.unwrap();
    disk.write_u64(6).await.unwrap();
    disk.write_u32(0).await.unwrap();
    let mut answer = String::new();
    disk.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("built on another image"), "{answer}");
    drop(disk);
    assert!(far.ended(&upid).await.0.contains("built on another image"));
    is_nothing(&far).await;
}

/// It goes by its name, which undoing would free.
#[tokio::test]
async fn a_cloud_init_drive_takes_the_place_of_no_other() {
    let far = Node::start().await;
    let file = "vm-200-cloudinit.qcow2";
    let new =
        NewVolume { vmid: vmid(200), name: Some(file.into()), format: Some("qcow2".into()), size: 1 << 20 };
    let other = far.storage("local").alloc(&new).await.unwrap().volid;
    let (mut hand, _, upid) = by_hand(&far).await;
    hand.say(HELLO).await;
    let drive = "aa:150/vm-150-cloudinit.qcow2";
    let volumes = json!([{"volume": drive, "storage": "local", "format": "qcow2", "size": 10}]);
    hand.say(&fits(&format!("ide2: {drive},media=cdrom\n"), &volumes)).await;
    let answer = hand.say(r#"{"say":"make"}"#).await;
    assert!(answer.contains("gone") && answer.contains("is there already"), "{answer}");
    assert!(far.ended(&upid).await.0.contains("is there already"));
    assert_eq!(config(&far, 200), None);
    assert!(far.ops.volume_info(&other).await.is_ok());
}

#[tokio::test]
async fn a_tunnel_that_nobody_uses_ends() {
    let far = Node::start().await;
    far.ops.guest_locks.tunnels.set_waits(Waits { heard: Duration::from_millis(50), ..Waits::default() });
    let (_hand, _, upid) = by_hand(&far).await;
    assert!(far.ended(&upid).await.0.contains("nothing was heard"));
    is_nothing(&far).await;
}

#[tokio::test]
async fn one_that_runs_or_is_under_ha_or_protected_stays() {
    let (near, far) = pair().await;
    near.remotes.set(Arc::new(Link::new(&far, Cut::Never)));
    let ask =
        async |options| near.ops.remote_migrate(&root(), vmid(100), options).await.unwrap_err().to_string();
    near.commit(Txn::new("test").put(paths::HA_RESOURCES, "vm: 100\n\tstate stopped\n")).await;
    assert!(ask(options()).await.contains("under HA"));
    near.commit(Txn::new("test").put(paths::HA_RESOURCES, "")).await;
    let stranger = Actor::new("u@pve", false, Arc::new(|_, r| r != "VM.Allocate"));
    let delete = RemoteOptions { delete: true, ..options() };
    let refused = near.ops.remote_migrate(&stranger, vmid(100), delete.clone()).await.unwrap_err();
    assert_eq!(refused.to_string(), "Permission check failed (/vms/100, VM.Allocate)");
    let path = paths::guest(&stead_ops_testing::name("n1"), stead_model::GuestKind::Qemu, vmid(100));
    near.commit(Txn::new("test").put(path, "memory: 16\nprotection: 1\n")).await;
    assert!(ask(delete).await.contains("'protection'"));
    let upid = near.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(near.ended(&upid).await.0, "OK");
    assert!(ask(options()).await.contains("without --online"));
    is_nothing(&far).await;
}
