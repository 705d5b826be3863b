//! One node of a testbed: its daemon, kept running as systemd would, and what can be done to it.
//!
//! ```text
//!            power_on                 daemon ends by itself
//!   off ───────────────▶ running ───────────────────────────▶ started again
//!    ▲                   │  ▲  │
//!    │ power_off, reset  │  │  │ kill_daemon            start_daemon
//!    └───────────────────┘  │  └───────────▶ without daemon ──────▶ running
//!                     thaw  │ freeze
//!                         frozen
//! ```
//!
//! `power_off` takes the network first, then kills all that the node runs, guests and fence process included, and empties
//! the run folder, which no boot survives. `kill_daemon` ends the daemon alone: guests go on.
//!
//! Of a node that is a [`Machine`] the process that is watched is the whole machine: it is started again when it has asked
//! for a reboot, and stays off when it has gone down. What happens to its daemon is up to its own systemd, which
//! [`Node::shell`] speaks to.

use crate::machine::{self, Machine};
use crate::netns::{self, Network};
use crate::power::Switch;
use crate::procs::{self, BED_DIR, NODE_DIR};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A daemon that ends by itself so often in a minute is not started again.
const RESTARTS_A_MINUTE: usize = 10;
/// Where in its folder a node shows the configuration as files.
pub(crate) const FILES: &str = "pve";

/// How long an end may take that was not asked for politely, or by a signal.
const ENDED_WITHIN: Duration = Duration::from_secs(20);

/// How a node is started.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    /// What its folder, its log and its power switch are called.
    pub(crate) folder: String,
    /// From 1.
    pub(crate) number: u8,
    pub(crate) bed: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) daemon: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) network: Option<Arc<Network>>,
    pub(crate) own_mounts: bool,
    pub(crate) machine: Option<Machine>,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    inner: Arc<Inner>,
    switch: Switch,
}

#[derive(Debug)]
struct Inner {
    plan: Plan,
    dir: PathBuf,
    state: Mutex<State>,
    /// The daemon has ended or was started.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The daemon's process, as long as it is not reaped.
    daemon: Option<Pid>,
    /// Whether it is started again when it ends.
    wanted: bool,
    /// When it ended by itself.
    ended: Vec<Instant>,
    /// How wrong its clock is from the next start of its daemon on, as `faketime` puts it: `+3y`.
    clock: Option<String>,
    /// Where its port is from the next start of its daemon on, if it has moved.
    moved: Option<SocketAddr>,
}

/// The library that shows a program another time of day. The clock that leases count by is not concerned.
fn wrong_clock(ahead: &str) -> Result<[(&'static str, String); 3]> {
    let place = |dir: fs::DirEntry| dir.path().join("faketime/libfaketimeMT.so.1");
    let dirs = fs::read_dir("/usr/lib").context("looking for libfaketime")?.flatten();
    let library = dirs.map(place).find(|p| p.is_file()).context("libfaketime is missing: make deps")?;
    let library = library.to_str().context("a path that is no text")?.to_owned();
    Ok([
        ("LD_PRELOAD", library),
        ("FAKETIME", ahead.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
    ])
}

impl Node {
    /// Prepares the node; it is off.
    pub(crate) fn new(plan: Plan) -> Result<Self> {
        let dir = plan.bed.join(&plan.folder);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let switch_path = plan.bed.join(format!("{}.power", plan.folder));
        let inner = Arc::new(Inner { plan, dir, state: Mutex::default(), changed: Condvar::new() });
        let reset = Arc::clone(&inner);
        let switch = Switch::start(&switch_path, move || {
            if let Err(e) = reset.power_off() {
                eprintln!("testbed: reset of {}: {e:#}", reset.plan.name);
            }
        })?;
        Ok(Self { inner, switch })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.plan.name
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Where its one port is.
    pub fn addr(&self) -> SocketAddr {
        self.inner.lock().moved.unwrap_or(self.inner.plan.listen)
    }

    /// Gives it another address, from the next start of its daemon on. Loopback shape only.
    pub fn move_to(&self, addr: SocketAddr) {
        self.inner.lock().moved = Some(addr);
    }

    /// The daemon's output.
    pub fn log(&self) -> PathBuf {
        self.inner.log()
    }

    /// How often its fence process has reset it.
    pub fn resets(&self) -> u32 {
        self.switch.resets()
    }

    /// How often its watchdog has reset it.
    pub fn bites(&self) -> u32 {
        self.switch.bites()
    }

    /// How often it has gone down in order.
    pub fn orders(&self) -> u32 {
        self.switch.orders()
    }

    /// Whether its daemon runs.
    pub fn is_running(&self) -> bool {
        self.inner.lock().daemon.is_some()
    }

    /// All processes of the node.
    pub fn processes(&self) -> Vec<procs::Process> {
        match &self.inner.plan.machine {
            Some(machine) => machine.processes(),
            None => procs::find(NODE_DIR, &self.inner.dir),
        }
    }

    /// Runs a shell's script in a node that is a machine, and gives what it prints.
    ///
    /// # Errors
    /// The node is no machine, is off, or the script has failed.
    pub async fn shell(&self, script: &str) -> Result<String> {
        let script = script.to_owned();
        self.aside(move |inner| inner.machine()?.shell(&script)).await
    }

    /// Waits until a node that is a machine has started all that it shall.
    ///
    /// # Errors
    /// It has not, or a unit has failed.
    pub async fn wait_booted(&self) -> Result<()> {
        self.aside(|inner| inner.machine()?.wait_booted()).await
    }

    /// Waits until a node that is a machine has gone down by itself.
    ///
    /// # Errors
    /// It has not within `limit`.
    pub async fn wait_down(&self, limit: Duration) -> Result<()> {
        self.aside(move |inner| inner.wait_ended(limit)).await
    }

    /// Installs the package on a machine that is booting.
    pub(crate) async fn install(&self, deb: &Path) -> Result<()> {
        let deb = deb.to_owned();
        let work = move |inner: &Inner| {
            let machine = inner.machine()?;
            machine.wait_booted()?;
            machine.install(&deb)
        };
        self.aside(work).await
    }

    /// Does what takes its time beside all else: pollers and clients go on meanwhile.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner)).await?
    }

    /// Whether a guest's process is there, running or not.
    pub fn runs_a_guest(&self) -> bool {
        self.processes().iter().any(procs::Process::is_qemu)
    }

    /// Plugs the network in and starts the daemon.
    pub fn power_on(&self) -> Result<()> {
        if let Some(network) = &self.inner.plan.network {
            network.link(self.inner.plan.number, true)?;
        }
        self.start_daemon()
    }

    /// Takes the network, then kills everything that the node runs. Returns when nothing is left.
    pub fn power_off(&self) -> Result<()> {
        let off = self.inner.power_off();
        self.switch.unplug();
        off
    }

    /// Stops all processes of the node where they are, as a pause of a virtual machine would. A cluster that was built with
    /// watchdogs ([`crate::cluster::Builder::watchdog`]) resets it, as a real one does.
    pub fn freeze(&self) {
        procs::freeze(NODE_DIR, &self.inner.dir);
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self) {
        procs::thaw(NODE_DIR, &self.inner.dir);
    }

    /// Stops the daemon alone where it is: no heartbeats, no answers. The fence process and the guests go on.
    pub fn hang_daemon(&self) {
        self.inner.signal_daemon(Signal::STOP);
    }

    /// Lets a daemon that hangs go on.
    pub fn wake_daemon(&self) {
        self.inner.signal_daemon(Signal::CONT);
    }

    /// Kills the fence process in such a way that the daemon cannot start another: its record cannot be read.
    pub fn break_fence(&self) -> Result<()> {
        let record = self.dir().join("run/fenced.sock.state");
        std::fs::write(&record, "damaged").with_context(|| format!("can't damage {}", record.display()))?;
        self.signal_fence(Signal::KILL)
    }

    /// Stops the fence process where it is: it answers nothing, and guards nothing.
    pub fn hang_fence(&self) -> Result<()> {
        self.signal_fence(Signal::STOP)
    }

    fn signal_fence(&self, signal: Signal) -> Result<()> {
        let fence = self.processes().into_iter().find(procs::Process::is_fence);
        fence.with_context(|| format!("{} has no fence process", self.name()))?.signal(signal);
        Ok(())
    }

    /// A shell that runs a script among the mounts of a node that has its own; the script's arguments follow.
    ///
    /// # Errors
    /// The node has none of its own, or is off.
    pub fn in_its_mounts(&self, script: &str) -> Result<Command> {
        let daemon = self.inner.lock().daemon.filter(|_| self.inner.plan.own_mounts);
        let daemon = daemon.with_context(|| format!("{} has no mounts of its own now", self.name()))?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", daemon.as_raw_pid())).args(["sh", "-c", script, "sh"]);
        Ok(command)
    }

    /// Where it shows the configuration as files, among its own mounts, with the builder's `files()`.
    pub fn files(&self) -> PathBuf {
        self.inner.dir.join(FILES)
    }

    /// Kills the daemon alone; it stays away until [`Self::start_daemon`].
    pub fn kill_daemon(&self) -> Result<()> {
        self.inner.end_daemon(Signal::KILL)
    }

    /// Asks the daemon to end; it stays away until [`Self::start_daemon`].
    pub fn stop_daemon(&self) -> Result<()> {
        self.inner.end_daemon(Signal::TERM)
    }

    /// Asks the daemon to end, and starts it again.
    pub fn restart_daemon(&self) -> Result<()> {
        self.stop_daemon()?;
        self.start_daemon()
    }

    /// Starts the daemon and keeps it running.
    pub fn start_daemon(&self) -> Result<()> {
        let mut state = self.inner.lock();
        state.wanted = true;
        state.ended.clear();
        if state.daemon.is_some() {
            return Ok(());
        }
        let child = self.inner.spawn(&state)?;
        state.daemon = Some(Pid::from_child(&child));
        drop(state);
        let inner = Arc::clone(&self.inner);
        std::thread::Builder::new()
            .name(format!("watch {}", self.name()))
            .spawn(move || inner.supervise(child))?;
        Ok(())
    }

    /// Sets the node's clock wrong, or right again, and starts its daemon anew. `ahead` as `faketime` puts it: `+3y`, `-40d`.
    pub fn set_clock(&self, ahead: Option<&str>) -> Result<()> {
        self.stop_daemon()?;
        self.inner.lock().clock = ahead.map(str::to_owned);
        self.start_daemon()
    }

    /// Fills the file system that the node's folder lies on; only where that is its own (see the builder's `disk`).
    pub fn fill_disk(&self) -> Result<()> {
        let own = File::open(self.inner.dir.join(".own-disk"));
        own.context("this node's disk is not its own: ask the builder for a `disk`")?;
        let mut file = File::create(self.inner.dir.join(".filler"))?;
        for size in [1 << 20, 1 << 12] {
            let block = vec![0u8; size];
            while std::io::Write::write_all(&mut file, &block).is_ok() {}
        }
        Ok(())
    }

    /// Makes room again.
    pub fn free_disk(&self) -> Result<()> {
        fs::remove_file(self.inner.dir.join(".filler")).context("the disk was not filled")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(e) = self.inner.power_off() {
            eprintln!("testbed: {e:#}");
        }
        if let Some(machine) = &self.inner.plan.machine {
            machine.clear();
        }
    }
}

impl Inner {
    fn machine(&self) -> Result<&Machine> {
        self.plan.machine.as_ref().with_context(|| format!("{} is no machine", self.plan.name))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
        self.plan.bed.join(format!("{}.log", self.plan.folder))
    }

    fn power_off(&self) -> Result<()> {
        self.lock().wanted = false;
        if let Some(network) = &self.plan.network {
            network.link(self.plan.number, false)?;
        }
        // Without a network of its own the node falls silent by being stopped, which `kill_all` does before it kills.
        procs::kill_all(NODE_DIR, &self.dir).with_context(|| format!("powering {} off", self.plan.name))?;
        self.wait_ended(ENDED_WITHIN)?;
        if let Some(machine) = &self.plan.machine {
            machine.wait_empty()?;
        }
        match fs::remove_dir_all(self.dir.join("run")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("emptying the run folder"),
            _ => Ok(()),
        }
    }

    fn signal_daemon(&self, signal: Signal) {
        if let Some(pid) = self.lock().daemon {
            // It may have ended since it was seen.
            let _ = kill_process(pid, signal);
        }
    }

    fn end_daemon(&self, signal: Signal) -> Result<()> {
        let mut state = self.lock();
        state.wanted = false;
        if let Some(pid) = state.daemon {
            kill_process(pid, signal).with_context(|| format!("ending the daemon of {}", self.plan.name))?;
        }
        drop(state);
        self.wait_ended(ENDED_WITHIN)
    }

    /// Waits until the daemon is reaped, or the machine.
    fn wait_ended(&self, limit: Duration) -> Result<()> {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |s| s.daemon.is_some());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.daemon.is_some() {
            bail!(
                "the daemon of {} has not ended within {limit:?}; see {}",
                self.plan.name,
                self.log().display()
            );
        }
        Ok(())
    }

    fn spawn(&self, state: &State) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = match &self.plan.machine {
            Some(machine) => machine.command()?,
            None => {
                let mut command = Command::new(&self.plan.daemon);
                let mut arguments = self.plan.arguments.clone();
                if let Some(addr) = state.moved
                    && let Some(at) = arguments.iter().position(|a| a == "--listen")
                {
                    arguments[at + 1] = addr.to_string();
                }
                command.args(arguments);
                command
            }
        };
        command
            .env(NODE_DIR, &self.dir)
            .env(BED_DIR, &self.plan.bed)
            // What a service manager tells its services is not for these.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal is the testbed's to handle, not the nodes'.
            .process_group(0);
        if let Some(ahead) = &state.clock {
            command.envs(wrong_clock(ahead)?);
        }
        if let Some(network) = &self.plan.network {
            network.node(self.plan.number).inside(&mut command);
        }
        if self.plan.own_mounts {
            netns::own_mounts(&mut command);
        }
        command.spawn().with_context(|| format!("starting {}", self.plan.daemon.display()))
    }

    /// Starts the daemon again each time it ends by itself, as a service manager would; a machine when it asks for that.
    fn supervise(&self, mut child: Child) {
        loop {
            let pid = Pid::from_child(&child);
            // Seen ended but not reaped, the process id is still its own; so nobody else is signalled by it.
            while waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).is_err() {}
            let mut state = self.lock();
            let ended = child.wait();
            state.daemon = None;
            let now = Instant::now();
            state.ended.retain(|t| now - *t < Duration::from_secs(60));
            state.ended.push(now);
            let asked = self.plan.machine.is_none()
                || ended.is_ok_and(|status| status.code() == Some(machine::REBOOT));
            let again = state.wanted && asked && state.ended.len() <= RESTARTS_A_MINUTE;
            match again.then(|| self.spawn(&state)) {
                Some(Ok(next)) => {
                    state.daemon = Some(Pid::from_child(&next));
                    child = next;
                }
                Some(Err(e)) => eprintln!("testbed: {}: {e:#}", self.plan.name),
                None => {}
            }
            self.changed.notify_all();
            if state.daemon.is_none() {
                return;
            }
        }
    }
}
