//! The VM driver: every guest of this node, by number.
//!
//! It stays whole, since it is all of one trait; what takes more than a few lines is a module beside this one.

use crate::agent::AgentError;
use crate::cgroup::Cgroup;
use crate::command::{passed_addresses, shared_file, shared_files};
use crate::firmware;
use crate::guest::Guest;
use crate::helpers::{self, Helpers};
use crate::launch::{self, Job};
use crate::plug::{self, Plug};
use crate::probe::{self, Machines};
use crate::process::{self, Process};
use crate::rundir::{self, RunDir};
use crate::vfio::Mdev;
use crate::{
    Accel, QemuOptions, agent, copies, cpu_group, huge, lent, migration, net, postcopy, snapshots, sys,
};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use stead_driver::capabilities::Capabilities;
use stead_driver::fence::Registration;
use stead_driver::guest::{
    CopyKind, CopyPhase, CopyProgress, DiskCopy, GuestDriver, GuestError, GuestEvent, GuestProcess,
    Inventory, Launch, MigrationPhase, MigrationProgress, ResolvedVolume, RunState, Sending,
};
use stead_driver::hardware::Hardware;
use stead_model::vmconfig::{EfiVariables, VmConfig};
use stead_model::{Epoch, Vmid};
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, broadcast};
use tokio::task::AbortHandle;

/// How long QEMU may take to flush its disks and end.
const QUIT: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a killed process.
const KILL: Duration = Duration::from_secs(30);
/// How long the guest agent may take to answer before the power button is pressed instead.
const AGENT: Duration = Duration::from_secs(3);

/// Runs guests as QEMU processes. Dropping it leaves them running.
#[derive(Debug)]
pub struct QemuDriver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: QemuOptions,
    accel: Accel,
    guests: Mutex<BTreeMap<Vmid, Slot>>,
    adopted: OnceCell<()>,
    probed: tokio::sync::Mutex<Option<(Stamp, Arc<Machines>)>>,
    events: broadcast::Sender<GuestEvent>,
}

/// Tells an upgraded program from the one that was asked.
type Stamp = (u64, i64, u64);

#[derive(Debug)]
enum Slot {
    /// With the shared memory that it is to have.
    Launching(Option<PathBuf>),
    Here(Arc<Guest>, AbortHandle),
}

type Answer<T> = Result<T, GuestError>;

impl Drop for Inner {
    fn drop(&mut self) {
        for slot in self.guests().values() {
            if let Slot::Here(_, watcher) = slot {
                watcher.abort();
            }
        }
    }
}

impl QemuDriver {
    /// A driver for the guests of one run directory. Nothing is started or looked for yet.
    pub fn new(mut options: QemuOptions) -> Self {
        // Guests work in `/`, not where this process does. Without a current directory the path stays as it is.
        options.run_dir = std::path::absolute(&options.run_dir).unwrap_or(options.run_dir);
        let accel = options.accel.unwrap_or_else(Accel::probe);
        Self(Arc::new(Inner {
            options,
            accel,
            guests: Mutex::default(),
            adopted: OnceCell::new(),
            probed: tokio::sync::Mutex::default(),
            events: broadcast::channel(1024).0,
        }))
    }

    /// The accelerator that new guests get.
    pub fn accel(&self) -> Accel {
        self.0.accel
    }

    async fn guest(&self, vmid: Vmid) -> Answer<Arc<Guest>> {
        self.0.adopt_once().await;
        self.0.here(vmid).ok_or(GuestError::NotRunning(vmid))
    }
}

impl Inner {
    fn guests(&self) -> MutexGuard<'_, BTreeMap<Vmid, Slot>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn here(&self, vmid: Vmid) -> Option<Arc<Guest>> {
        match self.guests().get(&vmid) {
            Some(Slot::Here(guest, _)) => Some(guest.clone()),
            _ => None,
        }
    }

    fn all(&self) -> Vec<Arc<Guest>> {
        let here = |slot: &Slot| match slot {
            Slot::Here(guest, _) => Some(guest.clone()),
            Slot::Launching(_) => None,
        };
        self.guests().values().filter_map(here).collect()
    }

    /// Takes a guest in and watches it from now on.
    fn take_in(self: &Arc<Self>, guest: Guest) -> Arc<Guest> {
        let guest = Arc::new(guest);
        let watcher = tokio::spawn(watch(Arc::downgrade(self), guest.clone(), self.events.clone()));
        self.guests().insert(guest.vmid, Slot::Here(guest.clone(), watcher.abort_handle()));
        guest
    }

    /// Finds the guests of an earlier daemon, before anything else is done.
    async fn adopt_once(self: &Arc<Self>) {
        self.adopted
            .get_or_init(|| async {
                let processes = process::find_by_pidfile(&self.options.run_dir);
                let mut left = vec![];
                for vmid in rundir::guests(&self.options.run_dir) {
                    left.extend(self.adopt_one(vmid, &processes).await);
                }
                // Those that run may have it too.
                self.release_shared(left);
            })
            .await;
    }

    /// Takes a guest in, or removes what it has left. Which shared memory it had, if it is gone.
    async fn adopt_one(self: &Arc<Self>, vmid: Vmid, processes: &[(u32, PathBuf)]) -> Vec<PathBuf> {
        let dir = RunDir::new(&self.options.run_dir, vmid);
        let meta = dir.load();
        if let Some(meta) = &meta
            && let Some((pid, start)) = meta.process
            && let Ok(process) = Process::open(pid, Some(start))
        {
            tracing::info!(%vmid, pid, "adopted a running guest");
            let helpers = Helpers::find(meta, |key, pid| helpers::lost(vmid, key, pid));
            self.take_in(Guest::new(dir, meta.clone(), process, helpers, None));
            return vec![];
        }
        // A launch that was cut short: it never ran, since nobody was told of it.
        let cgroup = meta.as_ref().and_then(|meta| Cgroup::at(meta.cgroup.clone()?));
        if let Some(cgroup) = &cgroup {
            let _ = cgroup.kill();
        }
        let of_it = |path: &PathBuf| *path == dir.pidfile() || *path == dir.tpm_pid();
        for (pid, _) in processes.iter().filter(|(_, path)| of_it(path)) {
            if let Ok(process) = Process::open(*pid, None) {
                tracing::warn!(%vmid, pid, "ending what an unfinished launch left");
                let _ = process.kill();
                process.exited().await;
                process.reap();
            }
        }
        if let Some(meta) = &meta {
            Helpers::find(meta, |_, _| {}).gone(false).await;
        }
        if let Some(cgroup) = &cgroup {
            cgroup.emptied().await;
        }
        dir.remove();
        let Some(meta) = meta else { return vec![] };
        if let Some(cgroup) = cgroup {
            cgroup.remove();
        }
        cpu_group::clear(meta.cpu_cgroup);
        huge::give_back(&meta.huge);
        meta.mdevs.iter().for_each(Mdev::remove);
        shared_files(&meta.argv)
    }

    /// What a guest needs to be launched.
    fn job<'a>(&'a self, machines: &'a Machines, launch: &'a Launch) -> Answer<Job<'a>> {
        let mut job = Job::new(&self.options, machines, self.accel, launch)?;
        let others = self.all().into_iter().filter(|guest| guest.vmid != launch.vmid);
        job.taken = others.flat_map(|guest| passed_addresses(&guest.meta().argv)).collect();
        Ok(job)
    }

    /// Removes the shared memory of a guest that has ended, unless another one has it too.
    fn release_shared(&self, files: impl IntoIterator<Item = PathBuf>) {
        // Held until they are gone: a launch that comes now makes them anew.
        let guests = self.guests();
        let of = |slot: &Slot| match slot {
            Slot::Here(guest, _) => shared_files(&guest.meta().argv),
            Slot::Launching(file) => file.iter().cloned().collect(),
        };
        let used: Vec<PathBuf> = guests.values().flat_map(of).collect();
        for file in files.into_iter().filter(|file| !used.contains(file)) {
            // One that somebody has removed is removed.
            let _ = std::fs::remove_file(file);
        }
    }

    /// What the program can do, asked again when it was replaced.
    async fn machines(&self) -> Answer<Arc<Machines>> {
        let path = process::resolve(&self.options.binary);
        let stamp = std::fs::metadata(&path).map_or((0, 0, 0), |m| (m.ino(), m.mtime(), m.size()));
        let mut probed = self.probed.lock().await;
        if let Some((known, machines)) = &*probed
            && *known == stamp
        {
            return Ok(machines.clone());
        }
        let asked = probe::machines(&self.options.binary, self.accel).await;
        let machines = Arc::new(asked.or_else(|e| crate::command::refuse("qemu", e.to_string()))?);
        *probed = Some((stamp, machines.clone()));
        Ok(machines)
    }

    async fn launch(self: Arc<Self>, launch: Launch) -> Answer<GuestProcess> {
        self.adopt_once().await;
        let vmid = launch.vmid;
        let memory = VmConfig::parse(&launch.config).ok().and_then(|config| config.current.ivshmem().ok()?);
        let shared = memory.map(|memory| shared_file(vmid, &memory));
        {
            let mut guests = self.guests();
            if guests.contains_key(&vmid) {
                return Err(GuestError::Running(vmid));
            }
            guests.insert(vmid, Slot::Launching(shared.clone()));
        }
        let result = async {
            let machines = self.machines().await?;
            self.job(&machines, &launch)?.run().await
        };
        match result.await {
            Ok(guest) => Ok(self.take_in(guest).report().await),
            Err(e) => {
                self.guests().remove(&vmid);
                self.release_shared(shared);
                Err(e)
            }
        }
    }

    fn prepare(&self, vmid: Vmid, epoch: Epoch) -> Answer<Registration> {
        let launch = |e: std::io::Error| GuestError::Launch { vmid, why: e.to_string() };
        if let Some(guest) = self.here(vmid) {
            // A process keeps the ownership that it was launched under: another is another process.
            if guest.meta().epoch != epoch {
                return Err(GuestError::Running(vmid));
            }
            return Ok(guest.registration());
        }
        if self.guests().contains_key(&vmid) {
            return Err(GuestError::Running(vmid));
        }
        let cgroup = launch::make_room(&self.options, vmid).map_err(launch)?;
        let dir = RunDir::new(&self.options.run_dir, vmid);
        Ok(Registration {
            vmid,
            epoch,
            cgroup: cgroup.map(|c| c.path().to_owned()),
            monitor: dir.fence(),
            pidfile: dir.pidfile(),
            fetches: false,
        })
    }
}

/// Follows a guest to its end and tells of it.
async fn watch(inner: Weak<Inner>, guest: Arc<Guest>, events: broadcast::Sender<GuestEvent>) {
    let clean = guest.watch(&events).await;
    let (vmid, epoch) = (guest.vmid, guest.meta().epoch);
    tracing::info!(%vmid, %epoch, clean, "a guest's process has ended");
    guest.clear().await;
    if let Some(inner) = inner.upgrade() {
        inner.guests().remove(&vmid);
        inner.release_shared(shared_files(&guest.meta().argv));
    }
    guest.announce_gone();
    // Nobody listening is no error.
    let _ = events.send(GuestEvent::Gone { vmid, epoch, clean });
}

fn seconds(timeout: Duration) -> u64 {
    timeout.as_secs()
}

async fn connect(vmid: Vmid, what: &'static str, path: &Path) -> Answer<UnixStream> {
    let refused = |e: std::io::Error| GuestError::Refused { what, vmid, why: e.to_string() };
    UnixStream::connect(path).await.map_err(refused)
}

/// Asks the guest's system by its agent; returns whether it was asked.
async fn ask_agent(guest: &Guest, mode: &str) -> bool {
    if !guest.meta().agent {
        return false;
    }
    // Who is at it for long, as a trim of its disks is, is not waited for: there is the button.
    let Ok(_turn) = tokio::time::timeout(AGENT, guest.agent.lock()).await else {
        tracing::warn!(vmid = %guest.vmid, "the guest agent is busy; pressing the power button instead");
        return false;
    };
    match agent::shutdown(&guest.dir.agent(), mode, AGENT).await {
        Ok(()) => true,
        Err(e) => {
            tracing::warn!(vmid = %guest.vmid, "{e}; pressing the power button instead");
            false
        }
    }
}

/// After so long without effect the power button is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(8);

/// Restarts a guest without agent: the power button switches it off, and QEMU is told to stay.
async fn restart_by_button(guest: &Guest) -> Answer<()> {
    const WHAT: &str = "reboot";
    let qmp = guest.monitor(WHAT).await?;
    let mut events = qmp.events();
    guest.ask(WHAT, "set-action", json!({ "shutdown": "pause" })).await?;
    guest.ask(WHAT, "system_powerdown", json!({})).await?;
    wait_for(guest, &mut events, "SHUTDOWN").await?;
    guest.ask(WHAT, "system_reset", json!({})).await?;
    wait_for(guest, &mut events, "RESET").await?;
    guest.ask(WHAT, "set-action", guest.usual_actions()).await?;
    guest.ask(WHAT, "cont", json!({})).await?;
    Ok(())
}

async fn wait_for(
    guest: &Guest,
    events: &mut broadcast::Receiver<crate::qmp::Event>,
    name: &str,
) -> Answer<()> {
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) if event.name == name => return Ok(()),
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Err(GuestError::NotRunning(guest.vmid)),
            },
            () = guest.gone() => return Err(GuestError::NotRunning(guest.vmid)),
        }
    }
}

async fn kill(guest: &Guest) -> Answer<()> {
    let refused =
        |e: std::io::Error| GuestError::Refused { what: "kill", vmid: guest.vmid, why: e.to_string() };
    guest.kill().map_err(refused)?;
    let late = |_| GuestError::TimedOut { what: "the end", vmid: guest.vmid, seconds: seconds(KILL) };
    tokio::time::timeout(KILL, guest.gone()).await.map_err(late)
}

#[async_trait]
impl GuestDriver for QemuDriver {
    async fn adopt(&self) -> Vec<GuestProcess> {
        self.list().await
    }

    async fn prepare(&self, vmid: Vmid, epoch: Epoch) -> Answer<Registration> {
        self.0.adopt_once().await;
        self.0.prepare(vmid, epoch)
    }

    async fn launch(&self, launch: Launch) -> Answer<GuestProcess> {
        let vmid = launch.vmid;
        // A task of its own: it comes to its end even if the caller goes away.
        let task = tokio::spawn(self.0.clone().launch(launch));
        task.await.unwrap_or_else(|e| Err(GuestError::Launch { vmid, why: e.to_string() }))
    }

    async fn check(&self, config: &str) -> Answer<()> {
        let config = match VmConfig::parse(config) {
            Ok(config) => config,
            Err(e) => return crate::command::refuse("config", e.to_string()),
        };
        crate::sys::encrypted(&self.0.options.dev, &config.current)?;
        let cpu = config.current.cpu().map_err(crate::command::unusable)?;
        if config.current.get("cpu").is_none() {
            return Ok(());
        }
        match self.0.machines().await {
            Ok(machines) => crate::command::check_cpu(&cpu, &machines),
            // That the program is missing is no fault of the configuration: a start will say so.
            Err(_) => Ok(()),
        }
    }

    async fn capabilities(&self) -> Answer<Capabilities> {
        let machines = self.0.machines().await?;
        let cpuinfo = tokio::fs::read_to_string("/proc/cpuinfo").await.unwrap_or_default();
        let vendor = cpuinfo.lines().find_map(|line| line.strip_prefix("vendor_id")?.split_once(": "));
        Ok(Capabilities {
            accel: self.0.accel.to_string(),
            version: machines.version.clone(),
            vendor: vendor.map(|(_, name)| name.trim().to_owned()).unwrap_or_default(),
            machines: machines.names.clone(),
            models: machines.cpus.clone(),
            flags: machines.flags.clone(),
            features: machines.features.clone(),
        })
    }

    async fn hardware(&self) -> Hardware {
        let root = self.0.options.sys.clone();
        // Some drivers are slow to tell.
        tokio::task::spawn_blocking(move || sys::hardware(&root)).await.unwrap_or_default()
    }

    async fn efi_variables(&self, of: EfiVariables) -> Answer<PathBuf> {
        firmware::variables(of)
    }

    async fn obstacles(&self, launch: &Launch) -> Vec<String> {
        let machines = match self.0.machines().await {
            Ok(machines) => machines,
            Err(e) => return vec![e.to_string()],
        };
        match self.0.job(&machines, launch) {
            Ok(job) => job.obstacles().await,
            Err(e) => vec![e.to_string()],
        }
    }

    async fn warnings(&self, launch: &Launch) -> Vec<String> {
        let Ok(machines) = self.0.machines().await else { return vec![] };
        match self.0.job(&machines, launch) {
            Ok(job) => job.warnings().await,
            Err(_) => vec![],
        }
    }

    async fn describe(&self, launch: &Launch) -> Answer<Vec<String>> {
        let machines = self.0.machines().await?;
        self.0.job(&machines, launch)?.describe().await
    }

    async fn list(&self) -> Vec<GuestProcess> {
        self.0.adopt_once().await;
        let guests = self.0.all();
        futures_util::future::join_all(guests.iter().map(|g| g.report())).await
    }

    async fn state(&self, vmid: Vmid) -> Option<GuestProcess> {
        Some(self.guest(vmid).await.ok()?.report().await)
    }

    fn events(&self) -> broadcast::Receiver<GuestEvent> {
        self.0.events.subscribe()
    }

    async fn resume(&self, vmid: Vmid) -> Answer<()> {
        let guest = self.guest(vmid).await?;
        match guest.run_state().await {
            RunState::Running => return Ok(()),
            // QEMU would take it as an order for the end of the migration.
            RunState::Inmigrate => {
                let why = "it has not received all of its state yet".to_owned();
                return Err(GuestError::Refused { what: "continue", vmid, why });
            }
            _ => guest.ask("continue", "cont", json!({})).await?,
        };
        guest.note_goes();
        match guest.run_state().await {
            RunState::Running => Ok(()),
            other => {
                let why = format!("it was continued and is {other:?}");
                Err(GuestError::Refused { what: "continue", vmid, why })
            }
        }
    }

    async fn pause(&self, vmid: Vmid) -> Answer<()> {
        let guest = self.guest(vmid).await?;
        if guest.is_frozen() {
            return Ok(());
        }
        guest.ask("pause", "stop", json!({})).await?;
        guest.note_goes();
        if matches!(guest.run_state().await, RunState::Prelaunch | RunState::Received) {
            // It is not one whose start was cut short, nor a copy that waits.
            guest.note_ran();
        }
        Ok(())
    }

    async fn reset(&self, vmid: Vmid) -> Answer<()> {
        self.guest(vmid).await?.ask("reset", "system_reset", json!({})).await.map(drop)
    }

    async fn shutdown(&self, vmid: Vmid, timeout: Duration) -> Answer<()> {
        let guest = self.guest(vmid).await?;
        let off = async {
            if ask_agent(&guest, "powerdown").await {
                guest.gone().await;
                return Ok(());
            }
            // A system that does not listen yet misses the button: it is pressed again, as a person would.
            loop {
                match guest.ask("shut down", "system_powerdown", json!({})).await {
                    Ok(_) => {}
                    Err(_) if self.0.here(vmid).is_none() => return Ok(()),
                    Err(e) => return Err(e),
                }
                if tokio::time::timeout(PRESS_AGAIN, guest.gone()).await.is_ok() {
                    return Ok(());
                }
            }
        };
        let late = |_| GuestError::TimedOut { what: "the shutdown", vmid, seconds: seconds(timeout) };
        tokio::time::timeout(timeout, off).await.map_err(late)?
    }

    async fn reboot(&self, vmid: Vmid, timeout: Duration) -> Answer<()> {
        const WHAT: &str = "reboot";
        let guest = self.guest(vmid).await?;
        let again = async {
            let mut events = guest.monitor(WHAT).await?.events();
            if guest.ends_by_restart() {
                // This one shall not end it.
                guest.ask(WHAT, "set-action", json!({ "reboot": "reset" })).await?;
            }
            if ask_agent(&guest, "reboot").await {
                return wait_for(&guest, &mut events, "RESET").await;
            }
            restart_by_button(&guest).await
        };
        let answer = tokio::time::timeout(timeout, again).await;
        // Also where it has not come to that: it may still switch itself off, which must then end it as usual.
        let _ = guest.ask(WHAT, "set-action", guest.usual_actions()).await;
        let late = |_| GuestError::TimedOut { what: "the restart", vmid, seconds: seconds(timeout) };
        answer.map_err(late)?
    }

    async fn stop(&self, vmid: Vmid) -> Answer<()> {
        self.stop_within(vmid, QUIT).await
    }

    async fn stop_within(&self, vmid: Vmid, limit: Duration) -> Answer<()> {
        let guest = self.guest(vmid).await?;
        cpu_group::unbound(&self.0.options, vmid);
        if !guest.is_frozen() && !limit.is_zero() {
            let quit = async {
                // The answer may be lost with the connection: what counts is the end.
                let _ = guest.ask("stop", "quit", json!({})).await;
                guest.gone().await;
            };
            if tokio::time::timeout(limit, quit).await.is_ok() {
                return Ok(());
            }
        }
        kill(&guest).await
    }

    async fn kill(&self, vmid: Vmid) -> Answer<()> {
        let guest = self.guest(vmid).await?;
        cpu_group::unbound(&self.0.options, vmid);
        kill(&guest).await
    }

    async fn migration_inlet(&self, vmid: Vmid) -> Answer<PathBuf> {
        let guest = self.guest(vmid).await?;
        if guest.run_state().await != RunState::Inmigrate {
            let why = "it does not wait for a migration".to_owned();
            return Err(GuestError::Refused { what: "migrate into", vmid, why });
        }
        Ok(guest.dir.inlet())
    }

    async fn streams(&self, of: Option<Vmid>, wanted: u8) -> u8 {
        let version = async {
            Ok::<_, GuestError>(match of {
                Some(vmid) => self.guest(vmid).await?.monitor("ask for the version of").await?.version(),
                None => self.0.machines().await?.numbers,
            })
        };
        version.await.map_or(1, |version| migration::streams(version, wanted))
    }

    async fn lend_disks(&self, vmid: Vmid, disks: &[String]) -> Answer<PathBuf> {
        lent::lend(&*self.guest(vmid).await?, disks).await
    }

    async fn disk_inlet(&self, vmid: Vmid) -> Answer<PathBuf> {
        lent::inlet(&*self.guest(vmid).await?).await
    }

    async fn end_lending(&self, vmid: Vmid) -> Answer<()> {
        lent::end(&*self.guest(vmid).await?).await
    }

    async fn migrate(&self, vmid: Vmid, how: &Sending) -> Answer<()> {
        migration::send(&*self.guest(vmid).await?, how).await
    }

    async fn send_rest(&self, vmid: Vmid) -> Answer<()> {
        migration::send_rest(&*self.guest(vmid).await?).await
    }

    async fn can_fetch(&self, vmid: Vmid) -> Answer<()> {
        postcopy::ready(&*self.guest(vmid).await?).await
    }

    async fn begin_fetching(&self, vmid: Vmid) -> Answer<bool> {
        postcopy::begin(&*self.guest(vmid).await?).await
    }

    async fn fetch_again(&self, vmid: Vmid) -> Answer<PathBuf> {
        postcopy::wait_again(&*self.guest(vmid).await?).await
    }

    async fn send_again(&self, vmid: Vmid, to: &Path) -> Answer<()> {
        postcopy::send_again(&*self.guest(vmid).await?, to).await
    }

    async fn save(&self, vmid: Vmid, to: &Path) -> Answer<()> {
        migration::save(&*self.guest(vmid).await?, to).await
    }

    async fn migration(&self, vmid: Vmid) -> Answer<MigrationProgress> {
        migration::progress(&*self.guest(vmid).await?).await
    }

    async fn migration_changed(&self, vmid: Vmid, seen: MigrationPhase) -> Answer<MigrationProgress> {
        migration::changed(&*self.guest(vmid).await?, seen, Duration::from_secs(1)).await
    }

    async fn cancel_migration(&self, vmid: Vmid) -> Answer<MigrationProgress> {
        let guest = self.guest(vmid).await?;
        let ended = migration::cancel(&guest).await?;
        // It answers in order: what it was told before, it has done.
        guest.has_turned();
        Ok(ended)
    }

    async fn resize_disk(&self, vmid: Vmid, device: &str, size: u64) -> Answer<()> {
        const WHAT: &str = "resize a disk of";
        let guest = self.guest(vmid).await?;
        let node = copies::drive(&guest, WHAT, device).await?;
        guest.ask(WHAT, "block_resize", json!({ "node-name": node, "size": size })).await.map(drop)
    }

    async fn change_medium(&self, vmid: Vmid, device: &str, medium: Option<ResolvedVolume>) -> Answer<()> {
        plug::change_medium(&*self.guest(vmid).await?, device, medium).await
    }

    async fn tune(&self, vmid: Vmid, key: &str, config: &str) -> Answer<()> {
        let config = VmConfig::parse(config).or_else(|e| crate::command::refuse("config", e.to_string()))?;
        let guest = self.guest(vmid).await?;
        if matches!(key, "cpulimit" | "cpuunits") {
            let share = config.current.cpu_share().map_err(crate::command::unusable)?;
            return cpu_group::give(&self.0.options, &guest, share)
                .or_else(|e| crate::command::refuse(key, e.to_string()));
        }
        let (command, arguments) = crate::tune::command(&config.current, key)?;
        guest.ask("tune", command, arguments).await?;
        let nets = config.current.nets().map_err(crate::command::unusable)?;
        match nets.iter().find(|net| net.key == key) {
            Some(net) => net::attach_again(vmid, net, &guest.meta().taps)
                .await
                .or_else(|why| crate::command::refuse(key, why)),
            None => Ok(()),
        }
    }

    async fn set_balloon(&self, vmid: Vmid, bytes: u64) -> Answer<()> {
        let wanted = json!({ "value": bytes });
        self.guest(vmid).await?.ask("set the balloon of", "balloon", wanted).await.map(drop)
    }

    async fn inventory(&self, vmid: Vmid) -> Answer<Inventory> {
        plug::inventory(&*self.guest(vmid).await?).await
    }

    async fn plug(&self, vmid: Vmid, key: &str, config: &str, volume: Option<ResolvedVolume>) -> Answer<()> {
        let guest = self.guest(vmid).await?;
        let plug = Plug::new(key, config)?;
        let plan = match plug.net() {
            Some(net) => {
                let QemuOptions { bridges, forward, .. } = &self.0.options;
                // The first device of all has the forwarded port.
                let forward = if plug.is_only_net()? { forward.as_ref() } else { None };
                let plans = net::plan(vmid, std::slice::from_ref(net), *bridges, forward).await;
                plans.or_else(|(key, why)| crate::command::refuse(&key, why))?.pop()
            }
            None => None,
        };
        let volumes: Vec<ResolvedVolume> = volume.into_iter().collect();
        plug.plug(&guest, &volumes, plan.as_ref()).await
    }

    async fn unplug(&self, vmid: Vmid, key: &str, config: &str, patience: Duration) -> Answer<()> {
        Plug::new(key, config)?.unplug(&*self.guest(vmid).await?, patience).await
    }

    async fn set_cpus(&self, vmid: Vmid, config: &str, patience: Duration) -> Answer<u32> {
        plug::set_cpus(&*self.guest(vmid).await?, config, patience).await
    }

    async fn set_modules(&self, vmid: Vmid, config: &str, patience: Duration) -> Answer<usize> {
        let guest = self.guest(vmid).await?;
        let there = plug::set_modules(&guest, config, patience).await?;
        // The balloon has taken so much, whatever the memory is; what is wanted of it is what it leaves.
        let settings =
            VmConfig::parse(config).or_else(|e| crate::command::refuse("config", e.to_string()))?.current;
        // One that follows what the host has left is where that has it.
        let follows = settings.shares().is_ok_and(|shares| shares != 0);
        if !follows && settings.balloon().is_ok_and(|target| target.is_some_and(|t| t.0 > 0)) {
            let (command, arguments) = crate::tune::command(&settings, "balloon")?;
            guest.ask("tune", command, arguments).await?;
        }
        Ok(there)
    }

    async fn snapshot_disks(&self, vmid: Vmid, disks: &[String], name: &str) -> Answer<()> {
        snapshots::take(&*self.guest(vmid).await?, disks, name).await
    }

    async fn snapshot_with_memory(&self, vmid: Vmid, disks: &[String], name: &str, to: &Path) -> Answer<()> {
        snapshots::take_with_memory(&*self.guest(vmid).await?, disks, name, to).await
    }

    async fn forget_disk_snapshot(&self, vmid: Vmid, disk: &str, name: &str) -> Answer<()> {
        snapshots::forget(&*self.guest(vmid).await?, disk, name).await
    }

    async fn copy_disks(
        &self,
        vmid: Vmid,
        disks: &[DiskCopy],
        kind: CopyKind,
        bytes_per_second: Option<u64>,
    ) -> Answer<()> {
        copies::begin(&*self.guest(vmid).await?, disks, kind, bytes_per_second).await
    }

    async fn copies_changed(&self, vmid: Vmid, seen: CopyPhase) -> Answer<CopyProgress> {
        copies::changed(&*self.guest(vmid).await?, seen, Duration::from_secs(1)).await
    }

    async fn pivot(&self, vmid: Vmid, disk: &str) -> Answer<()> {
        copies::pivot(&*self.guest(vmid).await?, disk).await
    }

    async fn end_mirrors(&self, vmid: Vmid) -> Answer<()> {
        copies::end_mirrors(&*self.guest(vmid).await?).await
    }

    async fn end_copies(&self, vmid: Vmid) -> Answer<()> {
        copies::end(&*self.guest(vmid).await?).await
    }

    async fn disk_place(&self, vmid: Vmid, disk: &str) -> Answer<PathBuf> {
        copies::place(&*self.guest(vmid).await?, disk).await
    }

    async fn agent(&self, vmid: Vmid, command: &str, arguments: &Value, patience: Duration) -> Answer<Value> {
        let guest = self.guest(vmid).await?;
        if !guest.meta().agent {
            return Err(GuestError::Agent("No QEMU guest agent configured".to_owned()));
        }
        // Of one that is frozen nothing may be asked: it would be done at an unforeseen time after a thaw.
        guest.monitor("ask the agent of").await?;
        let failed = |why: String| GuestError::Agent(format!("guest agent: {command}: {why}"));
        let Ok(_turn) = tokio::time::timeout(patience, guest.agent.lock()).await else {
            return Err(GuestError::AgentLate(format!(
                "guest agent: {command}: it is busy with another command"
            )));
        };
        agent::call(&guest.dir.agent(), command, arguments, patience).await.map_err(|e| match e {
            // By these words clients know that nothing was asked, and that they are to ask again later.
            AgentError::Silent => GuestError::Agent("QEMU guest agent is not running".to_owned()),
            AgentError::Refused(why) => failed(why),
            e @ AgentError::Late(_) => GuestError::AgentLate(format!("guest agent: {command}: {e}")),
            other => failed(other.to_string()),
        })
    }

    async fn monitor(&self, vmid: Vmid, line: &str) -> Answer<String> {
        let args = json!({ "command-line": line });
        let answer = self.guest(vmid).await?.ask("ask", "human-monitor-command", args).await?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    async fn screen(&self, vmid: Vmid, password: &str) -> Answer<UnixStream> {
        const WHAT: &str = "open the screen of";
        let guest = self.guest(vmid).await?;
        if password.is_empty() || password.len() > 8 {
            let why = "a VNC password has 1 to 8 characters".to_owned();
            return Err(GuestError::Refused { what: WHAT, vmid, why });
        }
        guest.ask(WHAT, "set_password", json!({ "protocol": "vnc", "password": password })).await?;
        guest.ask(WHAT, "expire_password", json!({ "protocol": "vnc", "time": "+30" })).await?;
        connect(vmid, WHAT, &guest.dir.vnc()).await
    }

    async fn terminal(&self, vmid: Vmid, port: &str) -> Answer<UnixStream> {
        const WHAT: &str = "open the terminal of";
        let guest = self.guest(vmid).await?;
        if !matches!(port, "serial0" | "serial1" | "serial2" | "serial3") {
            let why = format!("'{port}' is no serial port: serial0 to serial3");
            return Err(GuestError::Refused { what: WHAT, vmid, why });
        }
        connect(vmid, WHAT, &guest.dir.serial(port)).await
    }
}
