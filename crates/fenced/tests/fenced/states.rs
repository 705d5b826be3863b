//! Every state that a guest can be in when its lease ends. Each is judged by what reaches the disks: nothing does once the
//! guest is held, and nothing when it is only thawed (a thaw is no permission to run).

use super::bench::{Bench, Cgroup, CpuGroup, D, L, Qemu, W, allowance, cgroups};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use stead_fenced::protocol::{Op, Registration};
use stead_membership::Hold;
use stead_testbed::guest::tick;

/// Long enough for several writes of a guest that writes five times a second.
const WATCHED: Duration = Duration::from_millis(500);

/// Every file below a folder that is a disk.
fn disks(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut disks: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "disk")).collect();
    disks.sort();
    disks.into_iter().map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
}

/// Whether anything is written while it is watched. There is no event for *nothing happens*.
fn changed(dir: &Path) -> Vec<PathBuf> {
    let before = disks(dir);
    assert!(!before.is_empty());
    std::thread::sleep(WATCHED);
    let pairs = before.into_iter().zip(disks(dir));
    pairs.filter(|(a, b)| a != b).map(|((path, _), _)| path).collect()
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < limit, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Arguments for a guest on one disk, whose protocol layer is `file`.
fn on_disk(file: &str) -> [&str; 6] {
    let raw = "driver=raw,file=file,node-name=disk";
    ["-blockdev", file, "-blockdev", raw, "-device", "ide-hd,drive=disk,werror=stop"]
}

/// A guest that writes to its disk, and a fence process.
struct Case {
    bench: Bench,
    qemu: Qemu,
    /// Ended with the case.
    helpers: Vec<Child>,
}

impl Drop for Case {
    fn drop(&mut self) {
        for helper in &mut self.helpers {
            helper.kill().ok();
            helper.wait().ok();
        }
    }
}

impl Case {
    /// The tick guest runs under a lease, and has written to a disk of its own.
    fn start(power: &str) -> Option<Self> {
        Self::start_by(power, |disk| format!("driver=file,filename={}", disk.display()))
    }

    /// As [`Case::start`]; `file` gives the protocol layer of the disk at a path.
    fn start_by(power: &str, file: impl FnOnce(&Path) -> String) -> Option<Self> {
        let bench = Bench::start(power)?;
        let disk = bench.dir.path().join("guest.disk");
        tick::write_disk(&disk).unwrap();
        Some(Self::run(bench, &file(&disk), &disk))
    }

    /// As [`Case::start`], with the disk behind a server.
    fn start_on(server: &Server, file: &str) -> Option<Self> {
        Some(Self::run(Bench::start("socket")?, file, &server.dir.path().join("guest.disk")))
    }

    fn run(mut bench: Bench, file: &str, disk: &Path) -> Self {
        let qemu = bench.guest_with(100, None, &on_disk(&format!("{file},node-name=file")));
        bench.lease(LEASE);
        bench.run(100, 3).unwrap();
        until("the guest writes", || tick::read_cell(disk).unwrap().is_some_and(|c| c.count > 1));
        Self { bench, qemu, helpers: vec![] }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bench.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A second disk, full of sevens, under the node name `name`.
    fn add_disk(&mut self, name: &str, mib: usize) {
        let file = self.path(&format!("{name}.disk"));
        std::fs::write(&file, vec![7; mib << 20]).unwrap();
        let file = json!({ "driver": "file", "filename": file });
        self.qemu.qmp("blockdev-add", &json!({ "driver": "raw", "node-name": name, "file": file }));
    }

    /// Waits for the lease's end and judges.
    fn ends_held(self) {
        drop(self.when_held());
    }

    /// As [`Case::ends_held`]; what it was can be looked at then.
    fn when_held(mut self) -> Self {
        let writes = !changed(self.bench.dir.path()).is_empty();
        println!("before the end the disks {}", if writes { "change" } else { "rest" });
        self.bench.wait_for(100, Hold::Held, L * 2 + D);
        let dir = self.bench.dir.path().to_owned();
        assert_eq!(changed(&dir), Vec::<PathBuf>::new(), "written after it was held");
        self.qemu.thaw(None);
        let status = self.qemu.qmp("query-status", &json!({}));
        assert_eq!(status["running"], false, "{status}");
        assert_eq!(self.qemu.qmp("query-block-exports", &json!({})), json!([]));
        let jobs = self.qemu.qmp("query-jobs", &json!({}));
        let ended = |j: &Value| j["status"] == "concluded" || j["status"] == "null";
        assert!(jobs.as_array().unwrap().iter().all(ended), "{jobs}");
        assert_eq!(changed(&dir), Vec::<PathBuf>::new(), "written by a mere thaw");
        self
    }
}

impl Case {
    /// For states in which a guest may be beyond being verified: either all are held (or gone) and nothing is
    /// written, or the machine is reset in time.
    fn ends_safe_or_reset(mut self, vmids: &[u32]) {
        let begun = Instant::now();
        let end = begun + LEASE + D + W;
        loop {
            let holds: Vec<Hold> = vmids.iter().map(|v| self.bench.hold(*v)).collect();
            if holds.contains(&Hold::Unsafe) {
                self.bench.switch_asked(end);
                println!("the machine was reset after {:?}", begun.elapsed());
                return;
            }
            let begun_to_end = holds.contains(&Hold::Held);
            if begun_to_end && holds.iter().all(|h| matches!(h, Hold::Held | Hold::Registered)) {
                println!("{holds:?} after {:?}", begun.elapsed());
                assert_eq!(changed(self.bench.dir.path()), Vec::<PathBuf>::new());
                return;
            }
            assert!(Instant::now() < end, "{holds:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

const LEASE: Duration = Duration::from_millis(2200);

#[test]
fn running() {
    let Some(case) = Case::start("none") else { return };
    assert!(!changed(case.bench.dir.path()).is_empty(), "the check would see a writer");
    case.ends_held();
}

#[test]
fn paused_by_its_user() {
    let Some(mut case) = Case::start("none") else { return };
    case.qemu.qmp("stop", &json!({}));
    case.ends_held();
}

#[test]
fn stopped_by_a_write_error() {
    // The fourth write fails, and the guest stops as it does when a thin disk's storage is full.
    let rules = "set-state.0.event=write_aio,set-state.0.state=1,set-state.0.new_state=2,\
        set-state.1.event=write_aio,set-state.1.state=2,set-state.1.new_state=3,\
        set-state.2.event=write_aio,set-state.2.state=3,set-state.2.new_state=4,\
        inject-error.0.event=write_aio,inject-error.0.state=4,inject-error.0.errno=28,inject-error.0.once=off";
    let file =
        |disk: &Path| format!("driver=blkdebug,image.driver=file,image.filename={},{rules}", disk.display());
    let Some(mut case) = Case::start_by("none", file) else { return };
    case.qemu.event("STOP", |_| true);
    assert_eq!(case.qemu.status(), "io-error");
    case.ends_held();
}

#[test]
fn sending_its_state() {
    let Some(mut case) = Case::start("none") else { return };
    let path = case.text("mig");
    let sink = std::os::unix::net::UnixListener::bind(&path).unwrap();
    case.qemu.qmp("migrate-set-parameters", &json!({ "max-bandwidth": 1024 }));
    case.qemu.qmp("migrate", &json!({ "uri": format!("unix:{path}") }));
    let _held_open = sink.accept().unwrap();
    case.ends_held();
}

/// Starts a migration of `case` to another QEMU, registered as guest 101; with post-copy if wanted.
fn migrate(case: &mut Case, capabilities: &[&str], bandwidth: u64) -> Qemu {
    let uri = format!("unix:{}", case.text("mig"));
    let disk = format!("driver=file,filename={},node-name=file", case.text("guest.disk"));
    let mut target =
        case.bench.guest_with(101, None, &[&["-incoming", "defer"], &on_disk(&disk)[..]].concat());
    let on: Vec<Value> =
        capabilities.iter().chain(&["events"]).map(|c| json!({ "capability": c, "state": true })).collect();
    for qemu in [&mut case.qemu, &mut target] {
        qemu.qmp("migrate-set-capabilities", &json!({ "capabilities": on }));
    }
    target.qmp("migrate-incoming", &json!({ "uri": uri }));
    case.qemu.qmp("migrate-set-parameters", &json!({ "max-bandwidth": bandwidth }));
    case.qemu.qmp("migrate", &json!({ "uri": uri }));
    target
}

fn comes_to(qemu: &mut Qemu, phase: &str) {
    qemu.event("MIGRATION", |data| data["status"] == phase);
}

/// Its main loop is bound like its CPUs: it would answer a word each tenth of a second.
#[test]
fn with_a_hundredth_of_a_cpu() {
    let group = CpuGroup::make();
    if !allowance(group.is_some(), "the cpu controller of cgroups") {
        return;
    }
    let group = group.unwrap();
    let Some(case) = Case::start("socket") else { return };
    group.bound(&std::fs::read_to_string(case.path("100.pid")).unwrap());
    case.ends_held();
    let limit = group.limit();
    assert!(limit.starts_with("-1") || limit.starts_with("max"), "{limit}");
}

#[test]
fn just_before_it_is_handed_over() {
    let Some(mut case) = Case::start("none") else { return };
    let _target = migrate(&mut case, &["pause-before-switchover"], 1 << 30);
    comes_to(&mut case.qemu, "pre-switchover");
    case.ends_held();
}

#[test]
fn receiving_its_state() {
    let Some(mut case) = Case::start("none") else { return };
    let mut target = migrate(&mut case, &[], 4096);
    comes_to(&mut case.qemu, "active");
    case.bench.wait_for(100, Hold::Held, LEASE + D);
    // A target whose stream breaks ends by itself.
    until("the target is safe", || matches!(case.bench.hold(101), Hold::Held | Hold::Registered));
    if case.bench.hold(101) == Hold::Registered {
        target.wait_for_end(W);
    }
    case.ends_held();
}

#[test]
fn in_post_copy() {
    let userfault = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    let root = rustix::process::getuid().is_root();
    if !allowance(root || userfault.is_ok_and(|v| v.trim() == "1"), "userfaultfd for ordinary users") {
        return;
    }
    let Some(mut case) = Case::start("socket") else { return };
    let mut target = migrate(&mut case, &["postcopy-ram"], 64 << 10);
    comes_to(&mut case.qemu, "active");
    case.qemu.qmp("migrate-start-postcopy", &json!({}));
    comes_to(&mut case.qemu, "postcopy-active");
    case.bench.run(101, 3).unwrap();
    // Its CPUs may stand in a page that does not come: it is killed then.
    until("both are safe", || {
        let holds = [100, 101].map(|v| case.bench.hold(v));
        assert!(!holds.contains(&Hold::Unsafe), "{holds:?}");
        holds[0] == Hold::Held && matches!(holds[1], Hold::Held | Hold::Registered)
    });
    if case.bench.hold(101) == Hold::Registered {
        target.wait_for_end(W);
    }
    assert_eq!(changed(case.bench.dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn mirroring_its_disk() {
    let Some(mut case) = Case::start("none") else { return };
    case.add_disk("target", 1);
    let mirror =
        json!({ "job-id": "m", "device": "disk", "target": "target", "sync": "full", "speed": 65536 });
    case.qemu.qmp("blockdev-mirror", &mirror);
    case.ends_held();
}

#[test]
fn with_a_mirror_that_is_ready() {
    let Some(mut case) = Case::start("none") else { return };
    case.add_disk("target", 1);
    let mirror = json!({ "job-id": "m", "device": "disk", "target": "target", "sync": "full",
        "copy-mode": "write-blocking" });
    case.qemu.qmp("blockdev-mirror", &mirror);
    case.qemu.event("BLOCK_JOB_READY", |data| data["device"] == "m");
    let case = case.when_held();
    // The VM's disk may be recorded as the copy by now: what the guest was told is written must be there, too.
    let [disk, copy] = ["guest.disk", "target.disk"].map(|name| std::fs::read(case.path(name)).unwrap());
    assert!(copy.starts_with(&disk) || disk.starts_with(&copy), "a write has reached one place alone");
}

#[test]
fn being_backed_up() {
    let Some(mut case) = Case::start("none") else { return };
    case.add_disk("target", 1);
    let backup =
        json!({ "job-id": "b", "device": "disk", "target": "target", "sync": "full", "speed": 65536 });
    case.qemu.qmp("blockdev-backup", &backup);
    case.ends_held();
}

#[test]
fn exporting_a_disk_that_is_written() {
    let Some(mut case) = Case::start("none") else { return };
    case.add_disk("exported", 4);
    let socket = case.text("nbd");
    let nbd = json!({ "addr": { "type": "unix", "data": { "path": socket } } });
    case.qemu.qmp("nbd-server-start", &nbd);
    let export = json!({ "id": "x", "type": "nbd", "node-name": "exported", "name": "x", "writable": true });
    case.qemu.qmp("block-export-add", &export);
    let writer = Command::new("qemu-img")
        .args(["bench", "-w", "-f", "raw", "-c", "100000000", "-d", "1", "-s", "512", "--pattern=9"])
        .arg(format!("nbd+unix:///x?socket={socket}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    case.helpers.push(writer.unwrap());
    until("the export is written", || std::fs::read(case.path("exported.disk")).unwrap().contains(&9));
    case.ends_held();
}

#[test]
fn saving_a_snapshot() {
    let Some(mut case) = Case::start("socket") else { return };
    let file = case.text("snap.disk");
    assert!(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", &file, "64M"])
            .status()
            .unwrap()
            .success()
    );
    // So slow that the lease ends while the RAM is being saved.
    let limits = json!({ "qom-type": "throttle-group", "id": "slow", "limits": { "bps-total": 200_000 } });
    case.qemu.qmp("object-add", &limits);
    let file = json!({ "driver": "throttle", "throttle-group": "slow",
        "file": { "driver": "file", "filename": file } });
    case.qemu.qmp("blockdev-add", &json!({ "driver": "qcow2", "node-name": "snap", "file": file }));
    let save = json!({ "job-id": "s", "tag": "one", "vmstate": "snap", "devices": ["snap"] });
    case.qemu.qmp("snapshot-save", &save);
    // While it writes the RAM this QEMU answers nothing.
    case.ends_safe_or_reset(&[100]);
}

/// A disk behind a server that stops answering: its connections are cut, so that `stop` ends.
#[test]
fn with_network_storage_that_hangs() {
    let Some(server) = Server::nbd() else { return };
    let file = format!("driver=nbd,server.type=unix,server.path={},export=x", server.socket.display());
    let Some(case) = Case::start_on(&server, &file) else { return };
    server.hang();
    let mut case = case;
    case.bench.wait_for(100, Hold::Held, LEASE + D + W);
    drop(case);
}

/// A disk on a file system that stops answering: nothing can be verified, and the machine is reset in time.
#[test]
fn with_a_file_system_that_hangs() {
    let fuse = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    if !allowance(fuse && rustix::process::getuid().is_root(), "FUSE for a file system that hangs") {
        return;
    }
    let Some(server) = Server::fuse() else { return };
    let file = format!("driver=file,locking=off,filename={}", server.socket.display());
    let begun = Instant::now();
    let Some(case) = Case::start_on(&server, &file) else { return };
    server.hang();
    let asked = case.bench.switch_asked(begun + Duration::from_secs(20) + LEASE + D + W);
    println!("the machine was reset {:?} after the lease began", asked.duration_since(begun));
    drop(server);
    drop(case);
}

/// A helper process beside QEMU, in the guest's cgroup: it is frozen with it, and goes on with it.
#[test]
fn with_a_tpm_beside_it() {
    let there = Command::new("swtpm").arg("--version").stdout(Stdio::null()).status().is_ok();
    let found = cgroups();
    if !allowance(there && !found.is_empty(), "swtpm and a writable cgroup with a freezer") {
        return;
    }
    for cgroup in found.iter().map(Cgroup::path) {
        let Some(mut bench) = Bench::start("none") else { return };
        let (state, socket) = (bench.dir.path().join("tpm"), bench.dir.path().join("tpm.socket"));
        std::fs::create_dir(&state).unwrap();
        let tpm = Command::new("swtpm")
            .args(["socket", "--tpm2", "--terminate", "--tpmstate", &format!("dir={}", state.display())])
            .args(["--ctrl", &format!("type=unixio,path={}", socket.display())])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = tpm.id().to_string();
        std::fs::write(cgroup.join("cgroup.procs"), &pid).unwrap();
        until("the TPM listens", || socket.exists());
        let disk = bench.dir.path().join("guest.disk");
        tick::write_disk(&disk).unwrap();
        let file = format!("driver=file,filename={},node-name=file", disk.display());
        let chardev = format!("socket,id=tpm,path={}", socket.display());
        let device = [
            "-chardev",
            &chardev,
            "-tpmdev",
            "emulator,id=tpm0,chardev=tpm",
            "-device",
            "tpm-crb,tpmdev=tpm0",
        ];
        let qemu = bench.guest_with(100, Some(cgroup), &[on_disk(&file).as_slice(), &device].concat());
        let mut case = Case { bench, qemu, helpers: vec![tpm] };
        case.bench.lease(LEASE);
        case.bench.run(100, 3).unwrap();
        until("the guest writes", || tick::read_cell(&disk).unwrap().is_some_and(|c| c.count > 1));
        assert!(std::fs::read_dir(&state).unwrap().next().is_some(), "the TPM has kept nothing");

        case.bench.wait_for(100, Hold::Held, LEASE + D);
        assert!(case.qemu.is_frozen(Some(cgroup)));
        let inside = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        assert!(inside.lines().any(|line| line == pid), "the TPM runs outside of what is frozen: {inside}");
        assert_eq!(changed(case.bench.dir.path()), Vec::<PathBuf>::new(), "written after it was held");

        case.bench.lease(L * 20);
        case.bench.run(100, 3).unwrap();
        assert_eq!(case.qemu.status(), "running");
        assert!(case.helpers[0].try_wait().unwrap().is_none(), "the TPM has ended");
    }
}

/// What the guest's agent answers. The lease goes on while it is waited for.
fn ask(bench: &mut Bench, agent: &mut BufReader<UnixStream>, command: &str) -> Value {
    writeln!(agent.get_mut(), "{}", json!({ "execute": command })).unwrap();
    let limit = Instant::now() + Duration::from_secs(60);
    let mut line = String::new();
    while !line.ends_with('\n') {
        assert!(Instant::now() < limit, "the agent does not answer {command}");
        bench.lease(LEASE);
        if let Err(e) = agent.read_line(&mut line) {
            assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock, "{e}");
        }
    }
    let answer: Value = serde_json::from_str(&line).unwrap();
    assert!(answer.get("error").is_none(), "{command}: {answer}");
    answer["return"].clone()
}

/// A Linux whose agent has frozen its file systems, as a backup begins: it is held like any other, and when it may run again its
/// agent still knows, and thaws them.
#[test]
fn with_file_systems_that_its_agent_has_frozen() {
    let there = |program: &str| {
        ["/usr/sbin", "/usr/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).exists())
    };
    if !allowance(there("qemu-ga") && there("mkfs.ext4"), "qemu-guest-agent and e2fsprogs") {
        return;
    }
    let image = stead_testbed::guest::image::agent_guest(&|what| eprintln!("{what}")).unwrap();
    let Some(mut bench) = Bench::start("none") else { return };
    let (disk, socket) = (bench.dir.path().join("guest.disk"), bench.dir.path().join("agent"));
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).arg("16M").status();
    assert!(made.unwrap().success());
    let drive = |name: &str, file: &Path, read_only: &str| {
        let file = file.display();
        let block = format!(
            "driver=raw,node-name={name},read-only={read_only},file.driver=file,file.filename={file}"
        );
        ["-blockdev".to_owned(), block, "-device".to_owned(), format!("virtio-blk-pci,drive={name}")]
    };
    let port = format!("socket,id=agent,server=on,wait=off,path={}", socket.display());
    let agent = ["-m", "256", "-chardev", &port, "-device", "virtio-serial-pci", "-device"];
    let agent = agent.into_iter().chain(["virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
    let drives = [drive("system", &image, "on"), drive("data", &disk, "off")].concat();
    let args: Vec<&str> = agent.chain(drives.iter().map(String::as_str)).collect();
    let qemu = bench.guest_with(100, None, &args);
    bench.lease(LEASE);
    bench.run(100, 3).unwrap();
    let stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut agent = BufReader::new(stream);
    ask(&mut bench, &mut agent, "guest-ping");
    let blank = std::fs::read(&disk).unwrap();
    until("its file system is written", || {
        bench.lease(LEASE);
        std::fs::read(&disk).unwrap() != blank
    });

    assert_eq!(ask(&mut bench, &mut agent, "guest-fsfreeze-freeze"), 1);
    assert_eq!(
        changed(bench.dir.path()),
        Vec::<PathBuf>::new(),
        "written though its file systems are frozen"
    );
    let mut case = Case { bench, qemu, helpers: vec![] };
    case.bench.wait_for(100, Hold::Held, LEASE + D);

    case.bench.lease(LEASE);
    case.bench.run(100, 3).unwrap();
    assert_eq!(ask(&mut case.bench, &mut agent, "guest-fsfreeze-status"), "frozen");
    assert_eq!(ask(&mut case.bench, &mut agent, "guest-fsfreeze-thaw"), 1);
    let frozen = std::fs::read(&disk).unwrap();
    until("it writes again", || {
        case.bench.lease(LEASE);
        std::fs::read(&disk).unwrap() != frozen
    });
    case.ends_held();
}

/// A storage server that can hang.
struct Server {
    dir: tempfile::TempDir,
    /// The NBD server's socket, or the file that is mounted.
    socket: PathBuf,
    process: std::cell::RefCell<Child>,
}

impl Server {
    fn start(kind: impl Fn(&Path, &Path) -> Vec<String>) -> Option<Self> {
        let there =
            Command::new("qemu-storage-daemon").arg("--version").stdout(Stdio::null()).status().is_ok();
        if !allowance(there, "qemu-storage-daemon") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (disk, socket) = (dir.path().join("guest.disk"), dir.path().join("x"));
        tick::write_disk(&disk).unwrap();
        let process = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &format!("driver=file,filename={},node-name=d", disk.display())])
            .args(kind(&disk, &socket))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { dir, socket, process: process.into() })
    }

    fn nbd() -> Option<Self> {
        let server = Self::start(|_, socket| {
            let socket = format!("addr.type=unix,addr.path={}", socket.display());
            ["--nbd-server", &socket, "--export", "type=nbd,id=x,name=x,node-name=d,writable=on"]
                .map(ToOwned::to_owned)
                .into()
        })?;
        until("the server listens", || server.socket.exists());
        Some(server)
    }

    fn fuse() -> Option<Self> {
        let server = Self::start(|_, file| {
            std::fs::write(file, "").unwrap();
            let export = format!("type=fuse,id=x,node-name=d,writable=on,mountpoint={}", file.display());
            vec!["--export".to_owned(), export]
        })?;
        until("the file is mounted", || {
            std::fs::metadata(&server.socket).is_ok_and(|m| m.len() == tick::DISK_BYTES)
        });
        Some(server)
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.borrow().id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    fn hang(&self) {
        self.signal("STOP");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It takes its mount along when it ends in peace.
        self.signal("TERM");
        self.signal("CONT");
        self.process.get_mut().wait().ok();
    }
}

/// A program beside the guest outlives its process, and could write for it still: it does not outlive the lease.
#[test]
fn with_what_has_outlived_it() {
    let found = cgroups();
    if !allowance(!found.is_empty(), "a writable cgroup with a freezer") {
        return;
    }
    for cgroup in found.iter().map(Cgroup::path) {
        let Some(mut bench) = Bench::start("none") else { return };
        let mut qemu = bench.guest(100, Some(cgroup));
        let mut beside = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        std::fs::write(cgroup.join("cgroup.procs"), beside.id().to_string()).unwrap();
        bench.lease(LEASE);
        bench.run(100, 3).unwrap();
        qemu.kill();
        assert!(beside.try_wait().unwrap().is_none(), "the lease goes on, and so does it");
        let until = Instant::now() + LEASE + D;
        while beside.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                let _ = beside.kill();
                panic!("it lives after the lease has ended");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A guest's process that is a script: a monitor whose main loop may hang, which out-of-band commands do not, beside a process that
/// does nothing.
struct Scripted {
    process: Child,
    hangs: Arc<AtomicBool>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Scripted {
    /// Registered with the fence process, as one that may fetch or not; it says that it does.
    fn start(bench: &mut Bench, fetches: bool) -> Self {
        let registration = Registration { fetches, ..bench.registration(100, None) };
        bench.fenced.call(Op::Register(registration.clone())).unwrap();
        let listener = UnixListener::bind(&registration.monitor).unwrap();
        let process = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        std::fs::write(&registration.pidfile, process.id().to_string()).unwrap();
        let (hangs, told) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<String>>>::default());
        let (hang, tell) = (hangs.clone(), told.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (hang, tell) = (hang.clone(), tell.clone());
                std::thread::spawn(move || Self::answer(&stream, &hang, &tell));
            }
        });
        Self { process, hangs, told }
    }

    fn answer(mut stream: &UnixStream, hangs: &AtomicBool, told: &Mutex<Vec<String>>) {
        let version = json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 } });
        writeln!(stream, "{}", json!({ "QMP": { "version": version, "capabilities": ["oob"] } })).unwrap();
        let mut running = true;
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let asked: Value = serde_json::from_str(&line).unwrap();
            let is_oob = asked["exec-oob"].is_string();
            let command = asked["exec-oob"].as_str().or(asked["execute"].as_str()).unwrap().to_owned();
            told.lock().unwrap().push(command.clone());
            if hangs.load(Ordering::SeqCst) && !is_oob {
                continue;
            }
            running = match command.as_str() {
                "stop" => false,
                "cont" => true,
                _ => running,
            };
            let answer = match command.as_str() {
                "query-status" => {
                    json!({ "status": if running { "running" } else { "paused" }, "running": running })
                }
                "query-migrate" => json!({ "status": "postcopy-active" }),
                "query-yank" => json!([{ "type": "migration" }, { "type": "block-node", "node-name": "d" }]),
                name if name.starts_with("query-") => json!([]),
                _ => json!({}),
            };
            if writeln!(stream, "{}", json!({ "return": answer, "id": asked["id"] })).is_err() {
                return;
            }
        }
    }

    fn was_told(&self, command: &str) -> bool {
        self.told.lock().unwrap().iter().any(|c| c == command)
    }
}

/// It can't say that it fetches, since it hangs in a page that does not come: it keeps its connection, and is killed before the machine
/// would be reset.
#[test]
fn fetching_and_beyond_saying_so() {
    // A fence process that was just started has to open its monitor first.
    for restarted in [false, true] {
        let Some(mut bench) = Bench::start("socket") else { return };
        let mut guest = Scripted::start(&mut bench, true);
        bench.lease(L);
        bench.run(100, 3).unwrap();
        guest.hangs.store(true, Ordering::SeqCst);
        if restarted {
            bench.restart();
        }
        until("it is gone", || {
            let hold = bench.hold(100);
            assert_ne!(hold, Hold::Unsafe, "the machine is reset");
            hold == Hold::Registered || guest.process.try_wait().unwrap().is_some()
        });
        assert!(!guest.was_told("yank"), "by what it fetched was cut");
    }
}

/// What was found at one end of the lease, or registered once, says nothing of the next one: its storage may hang, which is cut.
#[test]
fn whole_again_and_beyond_saying_so() {
    let Some(mut bench) = Bench::start("socket") else { return };
    let guest = Scripted::start(&mut bench, true);
    bench.lease(L);
    bench.run(100, 3).unwrap();
    bench.wait_for(100, Hold::Held, L + D);
    assert!(!guest.was_told("yank"));
    let whole = bench.registration(100, None);
    bench.fenced.call(Op::Register(whole)).unwrap();
    bench.lease(L);
    bench.run(100, 3).unwrap();
    guest.hangs.store(true, Ordering::SeqCst);
    until("its connections are cut", || guest.was_told("yank"));
}

/// The source of a guest that fetches: its CPUs stand for good, and it goes on serving when the lease is back.
#[test]
fn thawed_alone() {
    let Some(mut bench) = Bench::start("none") else { return };
    let guest = Scripted::start(&mut bench, false);
    bench.lease(L);
    bench.run(100, 3).unwrap();
    bench.wait_for(100, Hold::Held, L + D);
    let thaw = Op::Thaw { vmid: stead_model::Vmid::new(100).unwrap(), epoch: stead_model::Epoch(3) };
    assert!(bench.fenced.call(thaw.clone()).is_err(), "without a lease");
    bench.lease(L);
    bench.fenced.call(thaw).unwrap();
    assert_eq!(bench.hold(100), Hold::Released);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", guest.process.id())).unwrap();
    assert!(!stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T'), "{stat}");
    assert!(!guest.was_told("cont"), "it runs");
    bench.wait_for(100, Hold::Held, L + D);
}
