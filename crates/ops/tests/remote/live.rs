//! The same of VMs that run: whatever is cut, one of the two runs it in the end, and never both.

use super::*;
use std::sync::atomic::AtomicBool;
use stead_driver::guest::RunState;

const LIVE: &str = "memory: 16\nname: web\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n\
    scsi0: local:100/vm-100-disk-0.qcow2,discard=on,size=3M\nunused0: shared:100/vm-100-disk-1.raw\n";

/// Two clusters of a node each, and a VM that runs at the first.
struct Story {
    near: Node,
    far: Node,
    twice: Arc<AtomicBool>,
}

impl Story {
    async fn begin() -> Self {
        Self::of(LIVE).await
    }

    /// With another configuration.
    async fn of(config: &str) -> Self {
        let (near, far) = (Node::start().await, Node::start().await);
        near.record_guest(100, "n1", |_| {}, config).await;
        fill(&near).await;
        std::fs::create_dir_all(near.dir.path().join("run")).unwrap();
        let upid = near.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
        assert_eq!(near.ended(&upid).await.0, "OK");
        let twice = Arc::new(AtomicBool::new(false));
        let (here, there, seen) = (near.machines.clone(), far.machines.clone(), twice.clone());
        tokio::spawn(async move {
            loop {
                if !here.running(vmid(100)).is_empty() && !there.running(vmid(200)).is_empty() {
                    seen.store(true, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        });
        Self { near, far, twice }
    }

    async fn begun(&self, cut: Cut, options: RemoteOptions) -> stead_model::Upid {
        self.near.remotes.set(Arc::new(Link::new(&self.far, cut)));
        self.near.ops.remote_migrate(&root(), vmid(100), options).await.unwrap()
    }

    async fn moved(&self, cut: Cut, options: RemoteOptions) -> (String, String) {
        self.near.ended(&self.begun(cut, options).await).await
    }

    fn here(&self) -> Option<RunState> {
        self.near.machines.state("n1", vmid(100))
    }

    fn there(&self) -> Option<RunState> {
        self.far.machines.state("n1", vmid(200))
    }

    async fn until_there_is(&self, state: Option<RunState>) {
        while self.there() != state {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// It runs where it was, and the other side has nothing of it.
    async fn has_stayed(&self, what: &str) {
        is_nothing(&self.far).await;
        assert_eq!((self.here(), self.there()), (Some(RunState::Running), None), "{what}");
        self.near.ops.reconcile().await.unwrap();
        assert_eq!(config(&self.near, 100).unwrap(), LIVE, "{what}");
        assert!(self.near.own(100).running, "{what}");
        assert!(self.near.machines.copied("n1", vmid(100)).is_empty(), "{what}");
        assert_eq!(self.here(), Some(RunState::Running), "{what}");
        assert!(!self.near.ops.conf.view(|t| t.get("stead/lock/100").is_some()), "{what}");
        assert_eq!(volumes(&self.near, 100).await.len(), 2, "{what}");
        assert!(!self.twice.load(Ordering::Relaxed), "{what}");
    }

    /// It runs there, and nobody takes it for anything else.
    async fn runs_there(&self) {
        self.far.ops.reconcile().await.unwrap();
        assert_eq!(self.there(), Some(RunState::Running));
        let text = config(&self.far, 200).unwrap();
        let config = VmConfig::parse(&text).unwrap();
        assert_eq!(config.current.lock(), None, "{text}");
        assert!(config.current.get("scsi0").unwrap().starts_with("shared:200/"), "{text}");
        assert_eq!(config.current.get("net0"), Some("virtio=BC:24:11:00:00:01,bridge=lan"), "{text}");
        let own = self.far.own(200);
        assert!(own.running && !own.armed);
        assert!(!self.far.ops.conf.view(|t| t.get("stead/lock/200").is_some()));
        assert_eq!(volumes(&self.far, 200).await.len(), 2);
        assert!(!self.twice.load(Ordering::Relaxed));
    }

    /// It is locked where it was, without a process, and stays so.
    async fn is_given_away(&self) {
        self.near.ops.reconcile().await.unwrap();
        assert_eq!(config(&self.near, 100).unwrap(), LIVE.replacen("memory", "lock: migrate\nmemory", 1));
        assert_eq!(self.here(), None);
        assert!(!self.near.own(100).running);
        let refused = self.near.ops.start(&root(), vmid(100), Asked::default()).await.unwrap_err();
        assert_eq!(refused.to_string(), "VM is locked (migrate)");
    }
}

fn live() -> RemoteOptions {
    RemoteOptions { online: true, ..options() }
}

/// So slow that something can be done meanwhile.
fn slow() -> RemoteOptions {
    RemoteOptions { bwlimit: Some(256), ..live() }
}

#[tokio::test]
async fn a_vm_that_runs_goes_to_another_cluster() {
    let story = Story::begin().await;
    let (status, log) = story.moved(Cut::Never, live()).await;
    assert_eq!(status, "OK", "{log}");
    story.runs_there().await;
    story.is_given_away().await;
    // Its other volume came as it lies; what it writes is the mirror's.
    let config = VmConfig::parse(&config(&story.far, 200).unwrap()).unwrap();
    let unused = config.current.get("unused0").unwrap().replacen(':', "/", 1);
    let image = std::fs::read(story.far.dir.path().join(unused)).unwrap();
    assert!(image[2 << 20..].starts_with(b"vm-100-disk-1.raw"));

    let story = Story::begin().await;
    let (status, log) = story.moved(Cut::Never, RemoteOptions { delete: true, ..live() }).await;
    assert_eq!(status, "OK", "{log}");
    story.runs_there().await;
    assert_eq!((config_of(&story.near), volumes(&story.near, 100).await.len()), (None, 0));
}

fn config_of(near: &Node) -> Option<String> {
    config(near, 100)
}

/// Said are: hello, fits, make, wait, settle, commit; answered in the same order.
#[tokio::test]
async fn a_tunnel_that_is_cut_leaves_it_running_where_it_was() {
    let before = (0..=5).map(Cut::BeforeSaid);
    let cuts = before.chain((0..=4).map(Cut::BeforeHeard)).chain([0, 1, 100_000, 900_000].map(Cut::Memory));
    for cut in cuts {
        let story = Story::begin().await;
        let (status, log) = story.moved(cut, RemoteOptions { delete: true, ..live() }).await;
        assert!(!status.starts_with("OK") && !status.starts_with("WARN"), "{cut:?}: {log}");
        story.has_stayed(&format!("{cut:?}: {status}\n{log}")).await;
    }
}

#[tokio::test]
async fn a_word_whose_answer_is_lost_is_asked_about_while_its_process_stands() {
    let story = Story::begin().await;
    let (status, log) = story.moved(Cut::BeforeHeard(5), live()).await;
    assert_eq!(status, "OK", "{log}");
    assert!(log.contains("asking again"), "{log}");
    story.runs_there().await;
    story.is_given_away().await;
}

#[tokio::test]
async fn a_word_that_nobody_answers_ends_its_process_and_leaves_it_locked() {
    let story = Story::begin().await;
    let waits = Waits { outcome: Duration::ZERO, ..Waits::default() };
    story.near.ops.guest_locks.tunnels.set_waits(waits);
    let (status, log) = story.moved(Cut::ForGood(5), RemoteOptions { delete: true, ..live() }).await;
    assert!(status.contains("is not known") && status.contains("Never start both"), "{status}\n{log}");
    story.is_given_away().await;
    story.runs_there().await;
    assert_eq!(volumes(&story.near, 100).await.len(), 2);
}

/// Its CPUs stand for that: it is waited for as long as a guest bears it.
#[tokio::test]
async fn a_target_that_takes_the_rest_and_says_nothing_leaves_it_here() {
    let no_disk: String =
        LIVE.lines().filter(|l| !l.starts_with("scsi0")).map(|l| format!("{l}\n")).collect();
    for (config, bytes) in [(LIVE, 1 << 20), (LIVE, (1 << 20) - 100), (&no_disk, 1 << 20)] {
        let story = Story::of(config).await;
        let waits = Waits { mute: Duration::from_millis(100), ..Waits::default() };
        story.near.ops.guest_locks.tunnels.set_waits(waits);
        let (status, log) = story.moved(Cut::MuteMemory(bytes), live()).await;
        assert!(status.contains("has not taken the rest of its memory"), "{status}\n{log}");
        is_nothing(&story.far).await;
        assert_eq!((story.here(), story.there()), (Some(RunState::Running), None), "{log}");
        assert!(story.near.own(100).running && !story.twice.load(Ordering::Relaxed));
    }
    let story = Story::of(&no_disk).await;
    let (status, log) = story.moved(Cut::Never, live()).await;
    assert_eq!(
        (status.as_str(), story.here(), story.there()),
        ("OK", None, Some(RunState::Running)),
        "{log}"
    );
}

#[tokio::test]
async fn it_can_be_stopped_at_either_side_while_it_is_sent() {
    for at_target in [false, true] {
        let story = Story::begin().await;
        let upid = story.begun(Cut::Never, slow()).await;
        story.until_there_is(Some(RunState::Inmigrate)).await;
        match at_target {
            false => drop(story.near.ops.tasks.stop(&upid)),
            true => {
                let task = story.far.ops.tasks.list(&every_task()).0.remove(0);
                story.far.ops.tasks.stop(&task.upid);
            }
        }
        let (status, log) = story.near.ended(&upid).await;
        assert_ne!(status, "OK", "{log}");
        story.has_stayed(&format!("at the target: {at_target}: {status}\n{log}")).await;
    }
}

/// As the fence process does when a lease ends, or a storage that fails.
#[tokio::test]
async fn a_mirror_that_fails_is_no_copy() {
    let story = Story::begin().await;
    let upid = story.begun(Cut::Never, slow()).await;
    story.until_there_is(Some(RunState::Inmigrate)).await;
    while !story.near.log(&upid).await.contains("mirroring") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    story.near.machines.end_copies("n1", vmid(100));
    let (status, log) = story.near.ended(&upid).await;
    assert!(status.contains("mirroring its disks has failed"), "{status}\n{log}");
    story.has_stayed(&log).await;
}

#[tokio::test]
async fn a_process_that_ends_there_leaves_it_here() {
    let story = Story::begin().await;
    let upid = story.begun(Cut::Never, slow()).await;
    story.until_there_is(Some(RunState::Inmigrate)).await;
    // Reconciliation leaves it alone: it is its task's.
    story.far.ops.reconcile().await.unwrap();
    assert_eq!(story.there(), Some(RunState::Inmigrate));
    assert!(story.far.machines.crash("n1", vmid(200)));
    let (status, log) = story.near.ended(&upid).await;
    assert_ne!(status, "OK", "{log}");
    story.has_stayed(&log).await;
}

#[tokio::test]
async fn one_that_is_paused_stays_so() {
    let story = Story::begin().await;
    story.near.ops.guests.pause(vmid(100)).await.unwrap();
    let (status, log) = story.moved(Cut::BeforeSaid(5), live()).await;
    assert_ne!(status, "OK", "{log}");
    assert_eq!(story.here(), Some(RunState::Paused));
    is_nothing(&story.far).await;
    let (status, log) = story.moved(Cut::Never, live()).await;
    assert_eq!(status, "OK", "{log}");
    assert_eq!((story.here(), story.there()), (None, Some(RunState::Paused)));
    assert!(story.far.own(200).running);
}

/// The source's daemon dies: what is found then, and what becomes of it.
#[tokio::test]
async fn a_source_without_its_task_runs_until_it_is_given_away_and_is_ended_then() {
    let held = json!({"what": "migrate", "task": "UPID:n1:00000001:00000001:00000001:qmigrate:100:root@pam:", "epoch": 7});
    let locked = LIVE.replacen("memory", "lock: migrate\nmemory", 1);
    let path = paths::guest(&stead_ops_testing::name("n1"), stead_model::GuestKind::Qemu, vmid(100));
    for state in [RunState::Running, RunState::Postmigrate] {
        let story = Story::begin().await;
        let txn = Txn::new("test").put("stead/lock/100", held.to_string()).put(path.clone(), locked.clone());
        story.near.commit(txn).await;
        story.near.machines.set_state("n1", vmid(100), state);
        story.near.ops.reconcile().await.unwrap();
        story.near.ops.reconcile().await.unwrap();
        story.has_stayed(&format!("{state:?}")).await;
    }
    let story = Story::begin().await;
    let own = stead_model::Ownership { running: false, ..story.near.own(100) };
    let txn = Txn::new("test")
        .put(path, locked)
        .put(paths::ownership(vmid(100)), stead_ops::store::bytes(&own).unwrap());
    story.near.commit(txn).await;
    story.near.machines.set_state("n1", vmid(100), RunState::Postmigrate);
    story.near.ops.reconcile().await.unwrap();
    story.is_given_away().await;
}

/// The target's daemon dies, before and after it has recorded that the VM is its own.
#[tokio::test]
async fn a_target_without_its_task_is_nothing_until_its_record_says_that_it_runs() {
    for (state, running) in
        [(RunState::Inmigrate, false), (RunState::Received, false), (RunState::Received, true)]
    {
        let story = Story::begin().await;
        let upid = story.begun(Cut::Never, slow()).await;
        story.until_there_is(Some(RunState::Inmigrate)).await;
        // Another daemon finds the same: here one whose fake machines are the first one's is made by hand.
        let dead = Node::start().await;
        let text = config(&story.far, 200).unwrap();
        let text = if running { text.replacen("lock: create\n", "", 1) } else { text };
        dead.record_guest(200, "n1", |own| own.running = running, &text).await;
        story.near.ops.tasks.stop(&upid);
        story.near.ended(&upid).await;
        if !running {
            let held = json!({"what": "create", "task": "UPID:n1:00000001:00000001:00000001:qmtunnel:200:u@pve!t:", "epoch": 7});
            dead.commit(Txn::new("test").put("stead/lock/200", held.to_string())).await;
        }
        dead.record_guest(201, "n1", |_| {}, "memory: 16\n").await;
        let launch = stead_driver::guest::Launch {
            vmid: vmid(200),
            epoch: stead_model::Epoch(7),
            config: text,
            volumes: vec![],
            recovered: false,
            incoming: Some(stead_driver::guest::Incoming::stream("fake-1.0", "tcg")),
        };
        dead.ops.guests.launch(launch).await.unwrap();
        dead.machines.set_state("n1", vmid(200), state);
        dead.ops.reconcile().await.unwrap();
        dead.ops.reconcile().await.unwrap();
        match running {
            true => assert_eq!(dead.machines.state("n1", vmid(200)), Some(RunState::Running)),
            false => {
                assert_eq!(dead.machines.state("n1", vmid(200)), None);
                is_nothing(&dead).await;
            }
        }
    }
}

#[tokio::test]
async fn what_can_t_go_while_it_runs_is_named_before_anything_begins() {
    let refused = async |story: &Story, link: Link| {
        story.near.remotes.set(Arc::new(link));
        let upid = story.near.ops.remote_migrate(&root(), vmid(100), live()).await.unwrap();
        let (status, _) = story.near.ended(&upid).await;
        assert!(status.starts_with("can't migrate VM 100"), "{status}");
        assert_eq!((story.here(), story.there()), (Some(RunState::Running), None));
        status
    };
    // Snapshots in the image of a disk that is mirrored.
    let story = Story::begin().await;
    let path = paths::guest(&stead_ops_testing::name("n1"), stead_model::GuestKind::Qemu, vmid(100));
    let with = format!("{LIVE}\n[one]\nscsi0: local:100/vm-100-disk-0.qcow2,size=3M\nsnaptime: 1\n");
    story.near.commit(Txn::new("test").put(path, with)).await;
    let why = refused(&story, Link::new(&story.far, Cut::Never)).await;
    assert!(why.contains("keeps snapshots in its image"), "{why}");
    // Whoever sends it has it run there.
    let story = Story::begin().await;
    // What it runs with counts, whatever its configuration says.
    for right in ["VM.PowerMgmt", "VM.Config.CPU", "VM.Config.HWType"] {
        let link = Link { actor: without("/vms/200", right), ..Link::new(&story.far, Cut::Never) };
        let why = refused(&story, link).await;
        assert!(why.contains(&format!("(/vms/200, {right})")), "{why}");
        story.has_stayed(&why).await;
    }
    // A version that does not know of it.
    let why = refused(&story, Link::new(&story.far, Cut::Old)).await;
    assert!(why.contains("takes only VMs that do not run"), "{why}");
    story.has_stayed(&why).await;
    // Not asked to go while it runs.
    let asked = story.near.ops.remote_migrate(&root(), vmid(100), options()).await.unwrap_err();
    assert!(asked.to_string().contains("without --online"), "{asked}");
}

#[tokio::test]
async fn a_source_that_says_it_runs_brings_all_of_it() {
    const RUNS: &str = r#"{"machine":"fake-1.0","accel":"tcg","cpu":null,"paused":false}"#;
    let runs: Value = serde_json::from_str(RUNS).unwrap();
    let volumes = json!([{"volume": "aa:1/x.raw", "storage": "local", "format": "raw", "size": 10, "disk": ["scsi0", 1 << 20]}]);
    let fits = |config: &str, volumes: &Value, runs: &Value| {
        json!({"say": "fits", "config": config, "volumes": volumes, "runs": runs}).to_string()
    };
    // Disks that are none of the VM's, or come in another way than it writes them; what would be words of a command line.
    let far = Node::start().await;
    let (mut hand, ..) = by_hand(&far).await;
    hand.say(HELLO).await;
    let plain = json!([{"volume": "aa:1/x.raw", "storage": "local", "format": "raw", "size": 10}]);
    let bad = json!({"machine": "pc,dumpdtb=x", "accel": "tcg", "cpu": null, "paused": false});
    for (config, volumes, runs, why) in [
        ("scsi1: aa:1/x.raw\n", &volumes, &runs, "in another way"),
        ("scsi0: aa:1/x.raw\n", &plain, &runs, "in another way"),
        ("scsi0: aa:1/x.raw\n", &volumes, &Value::Null, "in another way"),
        ("scsi0: aa:1/x.raw\n", &volumes, &bad, "is no machine type"),
        ("cpu: host\nscsi0: aa:1/x.raw\n", &volumes, &runs, "all that the CPU of its node can do"),
    ] {
        let answer = hand.say(&fits(config, volumes, runs)).await;
        assert!(answer.contains(why), "{answer}");
    }
    // More channels than anything needs.
    let far = Node::start().await;
    let (mut hand, ticket, upid) = by_hand(&far).await;
    hand.say(HELLO).await;
    hand.say(&fits("scsi0: aa:1/x.raw\n", &volumes, &runs)).await;
    hand.say(r#"{"say":"make"}"#).await;
    assert!(hand.say(r#"{"say":"wait"}"#).await.contains("waits"));
    let mut open = vec![];
    for _ in 0..20 {
        open.extend(far.ops.tunnel_channel(WHO, vmid(200), &ticket, "memory").await);
    }
    let (status, log) = far.ended(&upid).await;
    assert!(status.contains("more channels than it has disks"), "{status}\n{log}");
    is_nothing(&far).await;
    // What is said too early, or left out, ends it.
    for (says, why) in [
        (vec![r#"{"say":"commit"}"#], "its memory has not come"),
        (vec![r#"{"say":"settle"}"#], "'settle' out of its turn"),
        (vec![r#"{"say":"wait"}"#, r#"{"say":"commit"}"#], "were not settled"),
        (vec![r#"{"say":"wait"}"#, r#"{"say":"wait"}"#], "'wait' out of its turn"),
    ] {
        let far = Node::start().await;
        let (mut hand, _, upid) = by_hand(&far).await;
        hand.say(HELLO).await;
        let answer = hand.say(&fits("scsi0: aa:1/x.raw\n", &volumes, &runs)).await;
        assert_eq!(answer.trim(), r#"{"answer":"obstacles","why":[]}"#);
        assert!(hand.say(r#"{"say":"make"}"#).await.contains("made"));
        let mut last = String::new();
        for say in says {
            last = hand.say(say).await;
        }
        assert!(last.contains("gone") && last.contains(why), "{last}");
        assert!(far.ended(&upid).await.0.contains(why));
        assert_eq!(far.machines.state("n1", vmid(200)), None);
        is_nothing(&far).await;
    }
}
