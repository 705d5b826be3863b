//! Guests without machines: a driver whose processes are entries of a map.
//!
//! It stays whole, since it is all of one trait.

use super::images::{self, Kept};
use super::machines::{FakeMachines, Process, World, modules_of, no_migration};
use crate::capabilities::Capabilities;
use crate::fence::Registration;
use crate::guest::{
    CopyKind, CopyPhase, CopyProgress, CopyTo, DiskCopy, GuestDriver, GuestError, GuestEvent, GuestProcess,
    Inventory, Launch, MigrationPhase, MigrationProgress, ResolvedVolume, RunState, Sending,
};
use crate::hardware::Hardware;
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;
use stead_model::vmconfig::EfiVariables;
use stead_model::{Epoch, Vmid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, watch};

/// What a fake guest's migration sends.
const RAM: u64 = 1 << 20;

/// The driver of one fake node. Migrations go through real sockets below its folder, so that what lies between
/// two nodes is tested too; a disk is *broken* when its path ends in `broken`.
#[derive(Debug, Clone)]
pub struct FakeGuests {
    machines: FakeMachines,
    node: String,
    folder: PathBuf,
}

type Answer<T> = Result<T, GuestError>;

/// The CPU that a configuration names.
fn cpu_of(config: &str) -> Option<String> {
    config.lines().find_map(|line| line.strip_prefix("cpu: ")).map(str::to_owned)
}

impl FakeGuests {
    /// The driver of `node`; sockets lie in `folder`, whose path must be short.
    pub fn new(machines: &FakeMachines, node: &str, folder: &Path) -> Self {
        Self { machines: machines.clone(), node: node.to_owned(), folder: folder.to_owned() }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.machines.world()
    }

    /// Changes or reads a guest's process.
    fn with<T>(&self, vmid: Vmid, f: impl FnOnce(&mut Process) -> T) -> Answer<T> {
        let mut world = self.world();
        world.node(&self.node).guests.get_mut(&vmid).map(f).ok_or(GuestError::NotRunning(vmid))
    }

    fn enter(&self, vmid: Vmid, state: RunState) {
        self.world().enter(&self.node, vmid, state);
    }

    fn inlet(&self, vmid: Vmid) -> PathBuf {
        self.folder.join(format!("{}-{vmid}.mig", self.node))
    }

    fn registration(&self, vmid: Vmid, epoch: Epoch) -> Registration {
        let path = |what: &str| self.folder.join(format!("{}-{vmid}.{what}", self.node));
        Registration {
            vmid,
            epoch,
            cgroup: None,
            monitor: path("fence"),
            pidfile: path("pid"),
            fetches: false,
        }
    }

    /// Ends the process and removes what it left.
    fn end(&self, vmid: Vmid, clean: bool) -> Answer<()> {
        let _ = std::fs::remove_file(self.inlet(vmid));
        if self.world().end(&self.node, vmid, clean) { Ok(()) } else { Err(GuestError::NotRunning(vmid)) }
    }

    fn end_copy(&self, vmid: Vmid, pid: u32) {
        let mut world = self.world();
        if let Some(process) = world.node(&self.node).guests.get_mut(&vmid).filter(|p| p.pid == pid) {
            // A task must not abort itself by its end.
            process.listening = None;
            world.end(&self.node, vmid, false);
            let _ = std::fs::remove_file(self.inlet(vmid));
        }
    }

    /// Waits for the source's state, takes it, and says so.
    fn listen(&self, vmid: Vmid) -> std::io::Result<tokio::task::AbortHandle> {
        let path = self.inlet(vmid);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let me = self.clone();
        let own = self.with(vmid, |p| p.pid).map_err(std::io::Error::other)?;
        let task = tokio::spawn(async move {
            let taken = async {
                let (mut stream, _) = listener.accept().await?;
                let mut left = RAM;
                let mut part = vec![0; 64 << 10];
                while left > 0 {
                    let n = stream.read(&mut part).await?;
                    if n == 0 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                    left = left.saturating_sub(n as u64);
                }
                me.enter(vmid, RunState::Received);
                stream.write_all(b"1").await
            };
            if taken.await.is_err() {
                // As QEMU does: a copy whose source is gone ends. Not one that has taken its place meanwhile.
                me.end_copy(vmid, own);
            }
        });
        Ok(task.abort_handle())
    }

    /// Sends a guest's state; the source stands still before the last part.
    async fn send(&self, vmid: Vmid, how: Sending) -> std::io::Result<()> {
        let mut stream = UnixStream::connect(how.to).await?;
        let part = vec![0; 4 << 10];
        let rate = how.bytes_per_second.map(|r| f64::from(u32::try_from(r).unwrap_or(u32::MAX)));
        let pause = rate.map(|r| Duration::from_secs_f64(4096.0 / r));
        for sent in (0..RAM).step_by(part.len()) {
            if sent + part.len() as u64 == RAM {
                self.enter(vmid, RunState::Paused);
                if how.hold {
                    let told = self.with(vmid, |p| p.go_on.clone()).map_err(std::io::Error::other)?;
                    self.progress(vmid, |p| p.phase = MigrationPhase::Held);
                    told.notified().await;
                    self.lent_are_free(vmid)?;
                }
                self.progress(vmid, |p| p.phase = MigrationPhase::Switchover);
            }
            // It writes faster than it is sent, until it is stopped for the rest to be fetched.
            self.progress(vmid, |p| p.rounds += u64::from(how.fetch));
            if self.with(vmid, |p| p.stands).is_ok_and(|stands| stands) {
                std::future::pending::<()>().await;
            }
            stream.write_all(&part).await?;
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            self.progress(vmid, |p| {
                p.transferred = sent + part.len() as u64;
                p.remaining = RAM - p.transferred;
            });
        }
        let mut taken = [0];
        stream.read_exact(&mut taken).await?;
        Ok(())
    }

    /// As with QEMU: disks that are still copied can't be handed over.
    fn lent_are_free(&self, vmid: Vmid) -> std::io::Result<()> {
        match self.with(vmid, |p| p.copies.is_some()) {
            Ok(false) => Ok(()),
            _ => Err(std::io::Error::other("its disks are being copied")),
        }
    }

    fn progress(&self, vmid: Vmid, change: impl FnOnce(&mut MigrationProgress)) {
        let _ = self.with(vmid, |p| p.migration.send_modify(change));
    }

    /// Ends a migration and returns the source to what it was.
    fn conclude(&self, vmid: Vmid, phase: MigrationPhase, error: Option<String>) {
        match phase {
            MigrationPhase::Completed => self.enter(vmid, RunState::Postmigrate),
            // Nothing but a word has it go on.
            _ if self.with(vmid, |p| p.stands).is_ok_and(|stands| stands) => {}
            _ => self.enter(vmid, RunState::Running),
        }
        let _ = self.with(vmid, |p| p.sending = None);
        self.progress(vmid, |p| {
            p.phase = phase;
            p.error = error;
        });
    }

    fn report(&self, p: &Process) -> GuestProcess {
        let incoming = p.launch.incoming.as_ref();
        GuestProcess {
            vmid: p.launch.vmid,
            epoch: p.launch.epoch,
            pid: p.pid,
            state: p.state,
            stands: p.stands,
            uptime: 0,
            cpu: 0.0,
            mem: RAM,
            balloon: p.balloon.map(Box::new),
            net_in: 0,
            net_out: 0,
            disk_read: 0,
            disk_write: 0,
            machine: incoming.map_or_else(|| "fake-1.0".to_owned(), |i| i.machine.clone()),
            accel: incoming.map_or_else(|| "tcg".to_owned(), |i| i.accel.clone()),
            version: "1.0.0".to_owned(),
            model: incoming.and_then(|i| i.cpu.clone()).or_else(|| cpu_of(&p.launch.config)),
        }
    }

    /// Whether its monitor answers, and snapshots are not to fail.
    fn answers(&self, vmid: Vmid, what: &'static str) -> Answer<()> {
        let why = self.world().node(&self.node).refuse_snapshots.clone();
        match (why, self.with(vmid, |p| p.state)?) {
            (_, RunState::Unresponsive) => Self::refused(vmid, what, "it does not answer"),
            (Some(why), _) => Self::refused(vmid, what, &why),
            _ => Ok(()),
        }
    }

    /// Whether its monitor is not silent, as a test may have it for a while.
    fn hears(&self, vmid: Vmid, what: &'static str) -> Answer<()> {
        let mut world = self.world();
        let left = &mut world.node(&self.node).silent;
        let is_silent = *left > 0;
        *left = left.saturating_sub(1);
        if is_silent { Self::refused(vmid, what, "its monitor did not answer") } else { Ok(()) }
    }

    /// The image of one of its disks.
    fn image(&self, vmid: Vmid, disk: &str) -> Answer<PathBuf> {
        self.with(vmid, |p| {
            let line = format!("{disk}: ");
            let volume = p.launch.config.lines().find_map(|l| l.strip_prefix(&line)).unwrap_or_default();
            let volume = volume.split(',').next().unwrap_or_default();
            match p.launch.volumes.iter().find(|v| v.volume == volume) {
                Some(v) => Ok(v.path.clone()),
                None => Self::refused(vmid, "find a disk of", "there is no such disk"),
            }
        })?
    }

    fn refused<T>(vmid: Vmid, what: &'static str, why: &str) -> Answer<T> {
        Err(GuestError::Refused { what, vmid, why: why.to_owned() })
    }
}

#[async_trait]
impl GuestDriver for FakeGuests {
    async fn adopt(&self) -> Vec<GuestProcess> {
        self.list().await
    }

    async fn prepare(&self, vmid: Vmid, epoch: Epoch) -> Answer<Registration> {
        if self.world().node(&self.node).guests.get(&vmid).is_some_and(|p| p.launch.epoch != epoch) {
            return Err(GuestError::Running(vmid));
        }
        Ok(self.registration(vmid, epoch))
    }

    async fn launch(&self, launch: Launch) -> Answer<GuestProcess> {
        let vmid = launch.vmid;
        let failed = |why: String| GuestError::Launch { vmid, why };
        let waits = launch.incoming.as_ref().is_some_and(|i| i.state.is_none());
        let saved = launch.incoming.as_ref().and_then(|i| i.state.clone());
        if let Some(saved) = &saved
            && std::fs::metadata(&saved.path).map_or(0, |m| m.len()) < RAM
        {
            return Err(failed(format!("'{}' holds no state", saved.path.display())));
        }
        {
            let mut world = self.world();
            let pid = world.fresh_pid();
            let node = world.node(&self.node);
            if node.guests.contains_key(&vmid) {
                return Err(GuestError::Running(vmid));
            }
            if let Some(why) = &node.refuse {
                return Err(failed(why.clone()));
            }
            if let Some(volume) = launch.volumes.iter().find(|v| v.path.ends_with("broken")) {
                return Err(failed(format!("could not open '{}'", volume.path.display())));
            }
            let state = match (waits, &saved) {
                (true, _) => RunState::Inmigrate,
                (false, Some(_)) => RunState::Received,
                (false, None) => RunState::Prelaunch,
            };
            let process = Process {
                launch,
                pid,
                state,
                ran: false,
                stands: false,
                fetched: false,
                migration: no_migration(),
                sending: None,
                listening: None,
                asked: vec![],
                asked_back: BTreeSet::new(),
                holds_devices: false,
                cpus: None,
                copies: None,
                go_on: Arc::default(),
                lends: vec![],
                copying: watch::Sender::default(),
                balloon: None,
                modules: None,
            };
            node.guests.insert(vmid, process);
        }
        if waits {
            match self.listen(vmid) {
                Ok(task) => self.with(vmid, |p| p.listening = Some(task))?,
                Err(e) => {
                    self.end(vmid, false)?;
                    return Err(failed(e.to_string()));
                }
            }
        }
        self.with(vmid, |p| self.report(p))
    }

    async fn capabilities(&self) -> Answer<Capabilities> {
        let known = self.world().node(&self.node).capabilities.clone();
        known.ok_or_else(|| GuestError::Config { key: "cpu".into(), why: "nothing is known of it".into() })
    }

    async fn hardware(&self) -> Hardware {
        self.world().node(&self.node).hardware.clone()
    }

    async fn efi_variables(&self, of: EfiVariables) -> Answer<PathBuf> {
        let path = self.folder.join("vars.fd");
        let size = if of.large { 540_672 } else { 131_072 };
        let failed =
            |e: std::io::Error| GuestError::Config { key: "efidisk0".to_owned(), why: e.to_string() };
        std::fs::write(&path, vec![u8::from(of.enrolled); size]).map_err(failed)?;
        Ok(path)
    }

    async fn obstacles(&self, _launch: &Launch) -> Vec<String> {
        self.world().node(&self.node).refuse.iter().cloned().collect()
    }

    async fn describe(&self, launch: &Launch) -> Answer<Vec<String>> {
        Ok(vec!["fake".to_owned(), launch.vmid.to_string()])
    }

    async fn list(&self) -> Vec<GuestProcess> {
        self.world().node(&self.node).guests.values().map(|p| self.report(p)).collect()
    }

    async fn state(&self, vmid: Vmid) -> Option<GuestProcess> {
        self.with(vmid, |p| self.report(p)).ok()
    }

    fn events(&self) -> broadcast::Receiver<GuestEvent> {
        self.world().node(&self.node).events.subscribe()
    }

    async fn resume(&self, vmid: Vmid) -> Answer<()> {
        if self.with(vmid, |p| p.state)? == RunState::Inmigrate {
            return Self::refused(vmid, "continue", "it has not received all of its state yet");
        }
        self.enter(vmid, RunState::Running);
        Ok(())
    }

    async fn pause(&self, vmid: Vmid) -> Answer<()> {
        self.with(vmid, |_| ())?;
        self.enter(vmid, RunState::Paused);
        Ok(())
    }

    async fn reset(&self, vmid: Vmid) -> Answer<()> {
        self.with(vmid, |_| ())
    }

    async fn shutdown(&self, vmid: Vmid, timeout: Duration) -> Answer<()> {
        if self.with(vmid, |p| p.state)? == RunState::Running {
            return self.end(vmid, true);
        }
        tokio::time::sleep(timeout).await;
        Err(GuestError::TimedOut { what: "the shutdown", vmid, seconds: timeout.as_secs() })
    }

    async fn reboot(&self, vmid: Vmid, timeout: Duration) -> Answer<()> {
        if self.with(vmid, |p| p.state)? == RunState::Running {
            return Ok(());
        }
        tokio::time::sleep(timeout).await;
        Err(GuestError::TimedOut { what: "the restart", vmid, seconds: timeout.as_secs() })
    }

    async fn stop(&self, vmid: Vmid) -> Answer<()> {
        self.end(vmid, true)
    }

    async fn kill(&self, vmid: Vmid) -> Answer<()> {
        self.end(vmid, false)
    }

    async fn migration_inlet(&self, vmid: Vmid) -> Answer<PathBuf> {
        if self.with(vmid, |p| p.state)? != RunState::Inmigrate {
            return Self::refused(vmid, "migrate into", "it does not wait for a migration");
        }
        Ok(self.inlet(vmid))
    }

    async fn lend_disks(&self, vmid: Vmid, disks: &[String]) -> Answer<PathBuf> {
        for disk in disks {
            self.image(vmid, disk)?;
        }
        self.with(vmid, |p| p.lends = disks.to_vec())?;
        self.disk_inlet(vmid).await
    }

    async fn disk_inlet(&self, vmid: Vmid) -> Answer<PathBuf> {
        match self.with(vmid, |p| p.lends.is_empty())? {
            false => Ok(self.folder.join(format!("{}-{vmid}.nbd", self.node))),
            true => Self::refused(vmid, "write disks of", "it lends none"),
        }
    }

    async fn end_lending(&self, vmid: Vmid) -> Answer<()> {
        self.with(vmid, |p| p.lends.clear())
    }

    async fn send_rest(&self, vmid: Vmid) -> Answer<()> {
        self.hears(vmid, "migrate")?;
        let held = self.with(vmid, |p| p.migration.borrow().phase == MigrationPhase::Held)?;
        if !held {
            return Self::refused(vmid, "migrate", "it does not wait");
        }
        if self.with(vmid, |p| p.stands)? {
            self.enter(vmid, RunState::Serving);
            self.progress(vmid, |p| p.phase = MigrationPhase::Fetching);
            return Ok(());
        }
        self.with(vmid, |p| p.go_on.notify_one())
    }

    async fn can_fetch(&self, vmid: Vmid) -> Answer<()> {
        self.with(vmid, |_| ())
    }

    async fn begin_fetching(&self, vmid: Vmid) -> Answer<bool> {
        if self.world().node(&self.node).hang_fetching {
            std::future::pending::<()>().await;
        }
        if !self.with(vmid, |p| p.fetched && p.sending.is_some())? {
            return Self::refused(vmid, "fetch memory of", "nothing of it is to be fetched");
        }
        self.with(vmid, |p| p.stands = true)?;
        self.enter(vmid, RunState::Postmigrate);
        self.progress(vmid, |p| p.phase = MigrationPhase::Held);
        Ok(true)
    }

    async fn send_again(&self, vmid: Vmid, _to: &Path) -> Answer<()> {
        self.hears(vmid, "fetch memory of")?;
        self.progress(vmid, |p| p.phase = MigrationPhase::Fetching);
        Ok(())
    }

    async fn migrate(&self, vmid: Vmid, how: &Sending) -> Answer<()> {
        if self.with(vmid, |p| p.sending.is_some())? {
            return Self::refused(vmid, "migrate", "a migration is under way");
        }
        self.progress(vmid, |p| {
            *p = MigrationProgress {
                phase: MigrationPhase::Active,
                total: RAM,
                remaining: RAM,
                ..MigrationProgress::default()
            };
        });
        self.with(vmid, |p| p.fetched = how.fetch)?;
        let (me, how) = (self.clone(), how.clone());
        let task = tokio::spawn(async move {
            match me.send(vmid, how).await {
                Ok(()) => me.conclude(vmid, MigrationPhase::Completed, None),
                Err(e) => me.conclude(vmid, MigrationPhase::Failed, Some(e.to_string())),
            }
        });
        let handle = task.abort_handle();
        // It may have come to its end already.
        self.with(vmid, |p| {
            p.sending = (!p.migration.borrow().phase.is_terminal()).then_some(handle);
        })
    }

    async fn save(&self, vmid: Vmid, to: &Path) -> Answer<()> {
        self.answers(vmid, "save the state of")?;
        let failed = |e: std::io::Error| GuestError::Refused { what: "save", vmid, why: e.to_string() };
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        std::fs::write(to, vec![0; RAM as usize]).map_err(failed)?;
        let broken = self.world().node(&self.node).break_memory;
        let phase = if broken { MigrationPhase::Failed } else { MigrationPhase::Completed };
        if !broken {
            self.enter(vmid, RunState::Postmigrate);
        }
        self.progress(vmid, |p| *p = MigrationProgress { phase, total: RAM, ..MigrationProgress::default() });
        Ok(())
    }

    async fn migration(&self, vmid: Vmid) -> Answer<MigrationProgress> {
        self.with(vmid, |p| p.migration.borrow().clone())
    }

    async fn migration_changed(&self, vmid: Vmid, seen: MigrationPhase) -> Answer<MigrationProgress> {
        if matches!(
            self.with(vmid, |p| p.migration.borrow().phase)?,
            MigrationPhase::Fetching | MigrationPhase::Broken
        ) {
            self.hears(vmid, "follow the migration of")?;
        }
        let mut progress = self.with(vmid, |p| p.migration.subscribe())?;
        let differs = progress.wait_for(|p| p.phase != seen);
        let _ = tokio::time::timeout(Duration::from_secs(1), differs).await;
        self.migration(vmid).await
    }

    async fn cancel_migration(&self, vmid: Vmid) -> Answer<MigrationProgress> {
        let phase = self.with(vmid, |p| p.migration.borrow().phase)?;
        if matches!(phase, MigrationPhase::Fetching | MigrationPhase::Broken) {
            // As QEMU does: what is fetched can't be cancelled, and its connection is cut by the attempt.
            self.progress(vmid, |p| p.phase = MigrationPhase::Broken);
            return Self::refused(vmid, "cancel the migration of", "it fetches memory");
        }
        if let Some(task) = self.with(vmid, |p| p.sending.take())? {
            task.abort();
            self.conclude(vmid, MigrationPhase::Cancelled, None);
        }
        self.migration(vmid).await
    }

    async fn resize_disk(&self, vmid: Vmid, device: &str, size: u64) -> Answer<()> {
        let known = self.with(vmid, |p| p.launch.config.contains(&format!("{device}:")))?;
        if known && size > 0 {
            Ok(())
        } else {
            Self::refused(vmid, "resize a disk of", "there is no such disk")
        }
    }

    async fn change_medium(&self, vmid: Vmid, device: &str, medium: Option<ResolvedVolume>) -> Answer<()> {
        self.with(vmid, |p| {
            if !p.launch.config.contains(&format!("{device}:")) {
                return Self::refused(vmid, "change a medium of", "there is no such drive");
            }
            p.launch.volumes.extend(medium);
            Ok(())
        })?
    }

    async fn tune(&self, vmid: Vmid, key: &str, config: &str) -> Answer<()> {
        self.with(vmid, |p| {
            if p.state == RunState::Unresponsive {
                return Self::refused(vmid, "tune", "it does not answer");
            }
            if !p.launch.config.contains(&format!("{key}:"))
                && !matches!(key, "balloon" | "cpulimit" | "cpuunits" | "migrate_downtime")
            {
                return Self::refused(vmid, "tune", "there is no such device");
            }
            config.clone_into(&mut p.launch.config);
            Ok(())
        })?
    }

    async fn set_balloon(&self, vmid: Vmid, bytes: u64) -> Answer<()> {
        self.with(vmid, |p| match &mut p.balloon {
            Some(balloon) => {
                balloon.actual = bytes;
                Ok(())
            }
            None => Self::refused(vmid, "tune", "it has no balloon"),
        })?
    }

    async fn inventory(&self, vmid: Vmid) -> Answer<Inventory> {
        self.with(vmid, |p| match p.state {
            RunState::Unresponsive => Self::refused(vmid, "look into", "it does not answer"),
            _ => Ok(Inventory {
                devices: p.devices(),
                asked: p.asked_back.clone(),
                cpus: p.cpus.unwrap_or(1),
                modules: p.modules(),
            }),
        })?
    }

    async fn plug(&self, vmid: Vmid, key: &str, config: &str, volume: Option<ResolvedVolume>) -> Answer<()> {
        let device = format!("{key}:");
        let line = config.lines().find(|line| line.starts_with(&device)).unwrap_or_default();
        self.with(vmid, |p| {
            if p.state == RunState::Unresponsive || line.contains("bridge=nowhere") {
                return Self::refused(vmid, "plug a device into", "it does not take it");
            }
            if p.has(key) {
                return Self::refused(vmid, "plug a device into", "it has one of that name");
            }
            // What a configuration says stands before its sections.
            p.launch.config.insert_str(0, &format!("{line}\n"));
            p.launch.volumes.extend(volume);
            Ok(())
        })?
    }

    async fn unplug(&self, vmid: Vmid, key: &str, _config: &str, patience: Duration) -> Answer<()> {
        self.with(vmid, |p| {
            if p.has(key) && p.holds_devices {
                p.asked_back.insert(key.to_owned());
                return Err(GuestError::TimedOut {
                    what: "the unplugging",
                    vmid,
                    seconds: patience.as_secs(),
                });
            }
            p.take_out(key);
            Ok(())
        })?
    }

    async fn set_cpus(&self, vmid: Vmid, config: &str, _: Duration) -> Answer<u32> {
        let wanted = config.lines().find_map(|line| line.strip_prefix("vcpus: ")?.parse().ok()).unwrap_or(1);
        self.with(vmid, |p| {
            let there = p.cpus.unwrap_or(1);
            if p.holds_devices && wanted < there {
                p.asked_back.insert("vcpus".to_owned());
                return there;
            }
            *p.cpus.insert(wanted)
        })
    }

    async fn set_modules(&self, vmid: Vmid, config: &str, _: Duration) -> Answer<usize> {
        let wanted = modules_of(config);
        self.with(vmid, |p| {
            let there = p.modules();
            if p.holds_devices && wanted < there {
                p.asked_back.insert("memory".to_owned());
                return there;
            }
            *p.modules.insert(wanted)
        })
    }

    async fn snapshot_disks(&self, vmid: Vmid, disks: &[String], name: &str) -> Answer<()> {
        self.answers(vmid, "take a snapshot of")?;
        let images = disks.iter().map(|d| self.image(vmid, d)).collect::<Answer<Vec<_>>>()?;
        let keeps = |image: &PathBuf| images::read(image).iter().any(|k| k.name == name);
        if images.iter().any(keeps) {
            return Self::refused(vmid, "take a snapshot of", "there is one of that name");
        }
        for image in images {
            let mut all = images::read(&image);
            all.push(Kept { name: name.to_owned(), size: None });
            let failed = |e: std::io::Error| GuestError::Refused { what: "keep", vmid, why: e.to_string() };
            images::write(&image, &all).map_err(failed)?;
        }
        Ok(())
    }

    async fn snapshot_with_memory(&self, vmid: Vmid, disks: &[String], name: &str, to: &Path) -> Answer<()> {
        self.enter(vmid, RunState::Paused);
        self.snapshot_disks(vmid, disks, name).await?;
        let failed = |e: std::io::Error| GuestError::Refused { what: "keep", vmid, why: e.to_string() };
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        std::fs::write(to, vec![0; RAM as usize]).map_err(failed)?;
        let broken = self.world().node(&self.node).break_memory;
        let phase = if broken { MigrationPhase::Cancelled } else { MigrationPhase::Completed };
        self.progress(vmid, |p| *p = MigrationProgress { phase, total: RAM, ..MigrationProgress::default() });
        Ok(())
    }

    async fn forget_disk_snapshot(&self, vmid: Vmid, disk: &str, name: &str) -> Answer<()> {
        self.answers(vmid, "remove a snapshot of")?;
        let image = self.image(vmid, disk)?;
        let mut all = images::read(&image);
        all.retain(|k| k.name != name);
        let failed = |e: std::io::Error| GuestError::Refused { what: "forget", vmid, why: e.to_string() };
        images::write(&image, &all).map_err(failed)
    }

    async fn copy_disks(
        &self,
        vmid: Vmid,
        copies: &[DiskCopy],
        kind: CopyKind,
        _: Option<u64>,
    ) -> Answer<()> {
        const WHAT: &str = "copy disks of";
        for copy in copies {
            self.image(vmid, &copy.disk)?;
        }
        let hold = self.world().node(&self.node).hold_copies;
        self.with(vmid, |p| {
            if p.copies.is_some() {
                return Self::refused(vmid, WHAT, "copies are under way");
            }
            if p.state == RunState::Unresponsive {
                return Self::refused(vmid, WHAT, "it does not answer");
            }
            p.copies = Some((copies.to_vec(), kind));
            let phase = if hold { CopyPhase::Active } else { p.whole() };
            p.copying.send_replace(CopyProgress { phase, done: 1, total: 2, error: None });
            Ok(())
        })?
    }

    async fn copies_changed(&self, vmid: Vmid, seen: CopyPhase) -> Answer<CopyProgress> {
        let mut progress = self.with(vmid, |p| p.copying.subscribe())?;
        let differs = progress.wait_for(|p| p.phase != seen);
        let _ = tokio::time::timeout(Duration::from_secs(1), differs).await;
        self.with(vmid, |p| p.copying.borrow().clone())
    }

    async fn pivot(&self, vmid: Vmid, disk: &str) -> Answer<()> {
        let refuse = self.world().node(&self.node).refuse_pivot;
        let stood = self.with(vmid, |p| {
            let copy = p.copies.take().and_then(|(all, _)| all.into_iter().find(|c| c.disk == disk));
            let in_step = p.copying.borrow().phase == CopyPhase::InStep;
            p.copying.send_replace(CopyProgress::default());
            let Some(copy) = copy.filter(|_| in_step && !refuse) else {
                return Self::refused(vmid, "move a disk of", "the copy is gone");
            };
            let line = format!("{disk}: ");
            let old = p.launch.config.lines().find(|l| l.starts_with(&line)).unwrap_or_default().to_owned();
            let CopyTo::Volume(to) = copy.to else {
                return Self::refused(vmid, "move a disk of", "another process has it");
            };
            let new = format!("{line}{}", to.volume);
            p.launch.config = p.launch.config.replacen(&old, &new, 1);
            p.launch.volumes.push(to);
            Ok(p.state)
        })?;
        self.world().node(&self.node).pivoted.push(stood?);
        Ok(())
    }

    async fn end_mirrors(&self, vmid: Vmid) -> Answer<()> {
        self.with(vmid, |p| {
            let in_step = p.copying.borrow().phase == CopyPhase::InStep;
            if !in_step || p.copies.take().is_none() || p.state == RunState::Running {
                return Self::refused(vmid, "copy disks of", "a copy was not in step to its end");
            }
            p.copying.send_replace(CopyProgress::default());
            Ok(())
        })?
    }

    async fn end_copies(&self, vmid: Vmid) -> Answer<()> {
        self.with(vmid, |p| {
            p.copies = None;
            p.copying.send_replace(CopyProgress::default());
        })
    }

    async fn disk_place(&self, vmid: Vmid, disk: &str) -> Answer<PathBuf> {
        self.image(vmid, disk)
    }

    async fn agent(
        &self,
        vmid: Vmid,
        command: &str,
        arguments: &serde_json::Value,
        _: Duration,
    ) -> Answer<serde_json::Value> {
        let begins = |of: &Option<String>| of.as_deref().is_some_and(|c| command.starts_with(c));
        let (fails, late) = {
            let mut world = self.world();
            let node = world.node(&self.node);
            (begins(&node.refuse_agent), begins(&node.delay_agent))
        };
        self.with(vmid, |p| {
            if !p.launch.config.contains("agent:") {
                return Err(GuestError::Agent("No QEMU guest agent configured".to_owned()));
            }
            p.asked.push((command.to_owned(), arguments.clone()));
            if fails {
                return Err(GuestError::Agent(format!("guest agent: {command}: it fails")));
            }
            if late {
                return Err(GuestError::AgentLate(format!("guest agent: {command}: it may still do it")));
            }
            agent_answer(command, arguments)
        })?
    }

    async fn monitor(&self, vmid: Vmid, line: &str) -> Answer<String> {
        self.with(vmid, |p| match line.strip_prefix("sendkey ") {
            Some(keys)
                if keys.split('-').all(|k| k.len() > 1 || k.chars().all(|c| c.is_ascii_lowercase())) =>
            {
                String::new()
            }
            Some(keys) => format!("invalid parameter: {keys}\r\n"),
            None => format!("{line}: {:?}\r\n", p.state),
        })
    }

    async fn screen(&self, vmid: Vmid, password: &str) -> Answer<UnixStream> {
        self.with(vmid, |_| ())?;
        greeting(vmid, format!("RFB 003.008\n{password}"))
    }

    async fn terminal(&self, vmid: Vmid, port: &str) -> Answer<UnixStream> {
        self.with(vmid, |_| ())?;
        greeting(vmid, format!("{port}\r\n"))
    }
}

/// A guest's agent that has one file and one program, which both say "hi", and tells of all else what it was asked.
fn agent_answer(command: &str, arguments: &serde_json::Value) -> Answer<serde_json::Value> {
    use serde_json::json;
    Ok(match command {
        "guest-get-osinfo" => return Err(GuestError::Agent(format!("guest agent: {command}: no such file"))),
        "guest-network-get-interfaces" => json!([
            { "name": "lo", "ip-addresses": [{ "ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8 }] },
            { "name": "eth0", "hardware-address": "bc:24:11:00:00:01", "ip-addresses": [
                { "ip-address": "10.0.0.5", "ip-address-type": "ipv4", "prefix": 24 },
                { "ip-address": "fe80::be24:11ff:fe00:1", "ip-address-type": "ipv6", "prefix": 64 },
            ] },
        ]),
        "guest-file-open" => json!(7),
        "guest-file-read" => json!({ "count": 2, "buf-b64": "aGk=", "eof": true }),
        "guest-file-write" => json!({ "count": 2, "eof": false }),
        "guest-exec" => json!({ "pid": 42 }),
        "guest-exec-status" => {
            json!({ "exited": true, "exitcode": 0, "out-data": "aGk=", "out-truncated": true })
        }
        _ => json!({ "command": command, "arguments": arguments }),
    })
}

/// A connection whose other side says one thing and then returns what it hears.
fn greeting(vmid: Vmid, words: String) -> Answer<UnixStream> {
    let failed = |e: std::io::Error| GuestError::Refused { what: "connect to", vmid, why: e.to_string() };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    tokio::spawn(async move {
        let (mut read, mut write) = theirs.into_split();
        if write.write_all(words.as_bytes()).await.is_ok() {
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    Ok(ours)
}
