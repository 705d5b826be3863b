//! A fence process, QEMU processes and a power switch for the tests beside this file.

use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use stead_fenced::client::{CallError, Client};
use stead_fenced::protocol::{Answer, Op, Registration};
use stead_membership::Hold;
use stead_model::{Epoch, Vmid};

/// Times that leave a slow machine enough to be in time.
pub const L: Duration = Duration::from_millis(1500);
pub const D: Duration = Duration::from_millis(1500);
pub const W: Duration = Duration::from_millis(1500);

const QEMU: &str = "qemu-system-x86_64";

/// Skips by name what this machine cannot do; under `STEAD_STRICT=1` that is a failure. Returns whether it can.
#[must_use]
pub fn allowance(can: bool, what: &str) -> bool {
    if !can {
        assert!(std::env::var("STEAD_STRICT").as_deref() != Ok("1"), "this machine lacks {what}");
        eprintln!("skipped: this machine lacks {what}");
    }
    can
}

pub struct Bench {
    child: Child,
    power: String,
    switch: Option<Receiver<Instant>>,
    pub fenced: Client,
    pub dir: tempfile::TempDir,
}

impl Bench {
    /// A fence process; none where there is no QEMU.
    pub fn start(power: &str) -> Option<Self> {
        let qemu = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_ok();
        if !allowance(qemu, QEMU) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (power, switch) = match power {
            "socket" => {
                let path = dir.path().join("power");
                let switch = power_switch(&path);
                (format!("socket:{}", path.display()), Some(switch))
            }
            other => (other.to_owned(), None),
        };
        let socket = dir.path().join("s");
        let child = spawn(&socket, &power);
        let fenced = Client::connect(&socket).unwrap();
        Some(Self { child, power, switch, fenced, dir })
    }

    /// SIGKILL, and a new one.
    pub fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let socket = self.dir.path().join("s");
        self.child = spawn(&socket, &self.power);
        self.fenced = Client::connect(&socket).unwrap();
    }

    pub fn spawn_another(&self) -> Child {
        command(&self.dir.path().join("s"), "none").spawn().unwrap()
    }

    pub fn registration(&self, vmid: u32, cgroup: Option<&Path>) -> Registration {
        Registration {
            vmid: Vmid::new(vmid).unwrap(),
            epoch: Epoch(3),
            cgroup: cgroup.map(Path::to_owned),
            monitor: self.dir.path().join(format!("{vmid}.f")),
            pidfile: self.dir.path().join(format!("{vmid}.pid")),
            fetches: false,
        }
    }

    pub fn guest(&mut self, vmid: u32, cgroup: Option<&Path>) -> Qemu {
        self.guest_with(vmid, cgroup, &[])
    }

    /// Registers a guest of epoch 3, then starts its process.
    pub fn guest_with(&mut self, vmid: u32, cgroup: Option<&Path>, more: &[&str]) -> Qemu {
        let registration = self.registration(vmid, cgroup);
        self.fenced.call(Op::Register(registration.clone())).unwrap();
        Qemu::start(&registration, &self.dir.path().join(format!("{vmid}.q")), more)
    }

    /// A lease from now on.
    pub fn lease(&mut self, length: Duration) {
        let Ok(Answer::Nonce { nonce }) = self.fenced.call(Op::Nonce) else { panic!("no nonce") };
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap();
        self.fenced
            .call(Op::Renew { nonce, lease_ms: ms(length), drain_ms: ms(D), watchdog_ms: ms(W) })
            .unwrap();
    }

    pub fn run(&mut self, vmid: u32, epoch: u64) -> Result<Answer, CallError> {
        self.fenced.call(Op::Run { vmid: Vmid::new(vmid).unwrap(), epoch: Epoch(epoch) })
    }

    pub fn hold(&mut self, vmid: u32) -> Hold {
        let Ok(Answer::Status { guests, .. }) = self.fenced.call(Op::Status) else { panic!("no status") };
        let all: BTreeMap<_, _> = guests.into_iter().map(|(v, _, hold)| (v.get(), hold)).collect();
        all[&vmid]
    }

    /// Asks until the guest stands so.
    pub fn wait_for(&mut self, vmid: u32, hold: Hold, within: Duration) {
        let until = Instant::now() + within;
        while self.hold(vmid) != hold {
            assert!(Instant::now() < until, "guest {vmid} is {:?}, not {hold:?}", self.hold(vmid));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// When the power switch was asked to reset.
    pub fn switch_asked(&self, until: Instant) -> Instant {
        let switch = self.switch.as_ref().unwrap();
        switch.recv_timeout(until - Instant::now()).expect("the power switch was not asked")
    }

    /// The answer to bytes that no client would send.
    pub fn raw(&self, text: &str) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("s")).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn command(socket: &Path, power: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stead-fenced"));
    command.arg("--socket").arg(socket).args(["--power", power]).stderr(Stdio::piped());
    command
}

/// Starts a fence process and waits until it serves; its log goes on to the test's.
fn spawn(socket: &Path, power: &str) -> Child {
    let mut child = command(socket, power).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    loop {
        let line = log.next().expect("the fence process ended").unwrap();
        eprintln!("{line}");
        if line.contains("serving") {
            break;
        }
    }
    std::thread::spawn(move || log.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
    child
}

fn power_switch(path: &Path) -> Receiver<Instant> {
    let listener = UnixListener::bind(path).unwrap();
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut text = String::new();
            if { stream }.read_to_string(&mut text).is_ok()
                && text == "reset\n"
                && send.send(Instant::now()).is_err()
            {
                return;
            }
        }
    });
    receive
}

pub struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
    events: VecDeque<Value>,
    pub vmid: Vmid,
}

impl Qemu {
    fn start(registration: &Registration, monitor: &Path, more: &[&str]) -> Self {
        let qmp = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        let mut command = Command::new(QEMU);
        command
            .args("-S -nodefaults -display none -machine pc -accel tcg -m 16 -qmp".split(' '))
            .args([&qmp(&registration.monitor), "-qmp", &qmp(monitor), "-pidfile"])
            .arg(&registration.pidfile)
            .args(more)
            .stdin(Stdio::null());
        let child = command.spawn().unwrap();
        if let Some(cgroup) = &registration.cgroup {
            std::fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        let until = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match UnixStream::connect(monitor) {
                Ok(stream) if registration.pidfile.exists() => break stream,
                _ if Instant::now() > until => panic!("QEMU did not start"),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut qemu =
            Self { child, monitor: BufReader::new(stream), events: VecDeque::new(), vmid: registration.vmid };
        qemu.qmp("qmp_capabilities", &json!({}));
        qemu
    }

    /// A command on the daemon's monitor, not the fence process's.
    pub fn qmp(&mut self, command: &str, arguments: &Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments, "id": 1 });
        writeln!(self.monitor.get_mut(), "{line}").unwrap();
        loop {
            let answer = self.message();
            if answer.get("id").is_some() {
                assert!(answer.get("error").is_none(), "{command}: {answer}");
                return answer["return"].clone();
            }
            self.events.push_back(answer);
        }
    }

    /// Waits for an event, of those since the last one that was waited for.
    pub fn event(&mut self, name: &str, is: impl Fn(&Value) -> bool) {
        loop {
            let event = self.events.pop_front().unwrap_or_else(|| self.message());
            if event["event"] == name && is(&event["data"]) {
                return;
            }
        }
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.monitor.read_line(&mut line).unwrap() > 0, "QEMU ended");
        serde_json::from_str(&line).unwrap()
    }

    pub fn status(&mut self) -> String {
        self.qmp("query-status", &json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// A migration that does not get on, a mirror that is slow, and a writable export.
    pub fn busy(&mut self, at: &Path) {
        let name = |suffix: &str| at.with_extension(suffix).to_str().unwrap().to_owned();
        for disk in ["a", "b"] {
            let file = std::fs::File::create(name(disk)).unwrap();
            file.set_len(64 << 20).unwrap();
            let node = json!({ "driver": "raw", "node-name": disk, "file": { "driver": "file", "filename": name(disk) } });
            self.qmp("blockdev-add", &node);
        }
        std::fs::write(name("a"), vec![7; 8 << 20]).unwrap();
        let mirror = json!({ "job-id": "m", "device": "a", "target": "b", "sync": "full", "speed": 4096 });
        self.qmp("blockdev-mirror", &mirror);
        let nbd = json!({ "addr": { "type": "unix", "data": { "path": name("nbd") } } });
        self.qmp("nbd-server-start", &nbd);
        self.qmp("blockdev-add", &json!({ "driver": "null-co", "node-name": "n", "size": 1_048_576 }));
        self.qmp(
            "block-export-add",
            &json!({ "id": "x", "type": "nbd", "node-name": "n", "writable": true }),
        );
        let sink = UnixListener::bind(name("mig")).unwrap();
        self.qmp("migrate-set-parameters", &json!({ "max-bandwidth": 1024 }));
        self.qmp("migrate", &json!({ "uri": format!("unix:{}", name("mig")) }));
        // Held open and never read.
        std::mem::forget(sink.accept().unwrap());
        std::mem::forget(sink);
        assert_eq!(self.qmp("query-block-exports", &json!({})).as_array().unwrap().len(), 1);
        assert_eq!(self.qmp("query-jobs", &json!({})).as_array().unwrap().len(), 1);
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    pub fn is_frozen(&self, cgroup: Option<&Path>) -> bool {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        match cgroup {
            Some(dir) if dir.join("cgroup.events").exists() => {
                read(dir.join("cgroup.events")).contains("frozen 1")
            }
            Some(dir) => read(dir.join("freezer.state")).contains("FROZEN"),
            None => {
                let stat = read(format!("/proc/{}/stat", self.child.id()).into());
                stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
            }
        }
    }

    pub fn thaw(&self, cgroup: Option<&Path>) {
        match cgroup {
            Some(dir) if dir.join("cgroup.freeze").exists() => {
                std::fs::write(dir.join("cgroup.freeze"), "0").unwrap();
            }
            Some(dir) => std::fs::write(dir.join("freezer.state"), "THAWED").unwrap(),
            None => self.signal("CONT"),
        }
    }

    pub fn freeze(&self, cgroup: Option<&Path>) {
        match cgroup {
            Some(dir) if dir.join("cgroup.freeze").exists() => {
                std::fs::write(dir.join("cgroup.freeze"), "1").unwrap();
            }
            Some(dir) => std::fs::write(dir.join("freezer.state"), "FROZEN").unwrap(),
            None => self.signal("STOP"),
        }
        while !self.is_frozen(cgroup) {
            std::thread::yield_now();
        }
    }

    pub fn wait_for_end(&mut self, within: Duration) {
        let until = Instant::now() + within;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "QEMU still lives");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A cgroup of our own, removed at the end.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).ok();
    }
}

/// One of each kind that can be made here.
pub fn cgroups() -> Vec<Cgroup> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer"];
    let mut found = Vec::new();
    for root in roots {
        let dir = Path::new(root).join(format!("stead-test-{}", std::process::id()));
        if std::fs::create_dir(&dir).is_ok() {
            let cgroup = Cgroup(dir);
            if ["cgroup.freeze", "freezer.state"].iter().any(|f| cgroup.0.join(f).exists()) {
                found.push(cgroup);
            }
        }
    }
    found
}

/// A group of the CPUs' controller, below a folder that says it is Stead's. Without what is in it, it goes when dropped.
pub struct CpuGroup {
    dir: PathBuf,
    file: &'static str,
}

impl CpuGroup {
    /// None where this machine has no such controller.
    pub fn make() -> Option<Self> {
        let trees = [("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("/sys/fs/cgroup", "cpu.max")];
        trees.into_iter().find_map(|(tree, file)| {
            let dir = Path::new(tree).join("stead").join(format!("test-{}", std::process::id()));
            std::fs::create_dir_all(&dir).ok()?;
            let group = Self { dir, file };
            group.dir.join(file).exists().then_some(group)
        })
    }

    /// Takes a process in, and leaves it a hundredth of a CPU.
    pub fn bound(&self, pid: &str) {
        std::fs::write(self.dir.join("cgroup.procs"), pid.trim()).unwrap();
        std::fs::write(self.dir.join(self.file), "1000").unwrap();
    }

    /// What bounds it.
    pub fn limit(&self) -> String {
        std::fs::read_to_string(self.dir.join(self.file)).unwrap()
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.dir).ok();
    }
}
