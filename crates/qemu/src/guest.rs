//! One running guest: its process, its monitor, and the task that watches both.

use crate::cgroup::Cgroup;
use crate::command::{self, REBOOT_ENDS};
use crate::helpers::Helpers;
use crate::process::{self, Process};
use crate::qmp::{Event, Qmp, QmpError};
use crate::rundir::{Meta, RunDir};
use crate::stats::{self, CpuMeter};
use crate::vfio::Mdev;
use crate::{accel::Accel, balloon, cpu_group, huge, net, postcopy};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use stead_driver::fence::Registration;
use stead_driver::guest::{Balloon, GuestError, GuestEvent, GuestProcess, RunState};
use stead_model::Vmid;
use tokio::sync::{broadcast, watch};

/// How long a question for the state may take.
const STATE: Duration = Duration::from_secs(2);
/// What QEMU may say before its file is begun anew.
const STDERR_LIMIT: u64 = 256 << 10;

/// A guest that has a process.
#[derive(Debug)]
pub struct Guest {
    /// Which.
    pub vmid: Vmid,
    /// Its directory.
    pub dir: RunDir,
    /// Its process.
    pub process: Process,
    /// The programs beside it.
    helpers: Helpers,
    /// Its cgroup.
    pub cgroup: Option<Cgroup>,
    meta: Mutex<Meta>,
    link: watch::Sender<Option<Arc<Qmp>>>,
    gone: watch::Sender<bool>,
    ran: AtomicBool,
    /// It is being stopped for good: that it ran a moment ago says nothing.
    turning: AtomicBool,
    meter: Mutex<CpuMeter>,
    /// Held by whoever speaks with its agent.
    pub agent: tokio::sync::Mutex<()>,
}

impl Guest {
    /// A guest with its monitor, or one whose monitor is yet to be reached.
    pub fn new(dir: RunDir, meta: Meta, process: Process, helpers: Helpers, qmp: Option<Qmp>) -> Self {
        Self {
            vmid: meta.vmid,
            process,
            helpers,
            cgroup: meta.cgroup.clone().and_then(Cgroup::at),
            meta: Mutex::new(meta),
            link: watch::channel(qmp.map(Arc::new)).0,
            gone: watch::channel(false).0,
            ran: AtomicBool::new(dir.ran().exists()),
            turning: AtomicBool::default(),
            meter: Mutex::default(),
            agent: tokio::sync::Mutex::default(),
            dir,
        }
    }

    /// Its record.
    pub fn meta(&self) -> Meta {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes its record.
    pub fn note(&self, change: impl FnOnce(&mut Meta)) -> std::io::Result<()> {
        let mut meta = self.meta.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = meta.clone();
        change(&mut new);
        self.dir.store(&new)?;
        *meta = new;
        Ok(())
    }

    /// Whether its configuration says that a restart from inside ends it.
    pub fn ends_by_restart(&self) -> bool {
        self.meta().argv.iter().any(|word| word == REBOOT_ENDS)
    }

    /// What its shutdown and its restart do to its process, while no request is in the middle of one.
    pub fn usual_actions(&self) -> Value {
        // What else says so, as `args` may, is not touched.
        if self.ends_by_restart() {
            json!({ "shutdown": "poweroff", "reboot": "shutdown" })
        } else {
            json!({ "shutdown": "poweroff" })
        }
    }

    /// What the fence process is told of it.
    pub fn registration(&self) -> Registration {
        Registration {
            vmid: self.vmid,
            epoch: self.meta().epoch,
            cgroup: self.cgroup.as_ref().map(|c| c.path().to_owned()),
            monitor: self.dir.fence(),
            pidfile: self.dir.pidfile(),
            fetches: false,
        }
    }

    /// Whether it is frozen, by its cgroup or by a signal: it answers nothing then.
    pub fn is_frozen(&self) -> bool {
        self.cgroup.as_ref().is_some_and(Cgroup::is_frozen) || stats::is_stopped(self.process.pid)
    }

    /// Its monitor; waits up to `limit` until it can be reached.
    pub async fn qmp(&self, limit: Duration) -> Result<Arc<Qmp>, QmpError> {
        let mut link = self.link.subscribe();
        let found = tokio::time::timeout(limit, link.wait_for(Option::is_some)).await;
        match found {
            Ok(Ok(qmp)) => qmp.clone().ok_or(QmpError::Closed),
            Ok(Err(_)) => Err(QmpError::Closed),
            Err(_) => Err(QmpError::Connect(format!("no answer within {} s", limit.as_secs()))),
        }
    }

    fn refused(&self, what: &'static str, why: &dyn std::fmt::Display) -> GuestError {
        GuestError::Refused { what, vmid: self.vmid, why: why.to_string() }
    }

    /// Its monitor for a request that is called `what`.
    pub async fn monitor(&self, what: &'static str) -> Result<Arc<Qmp>, GuestError> {
        if self.is_frozen() {
            // A command would wait in the socket, and be carried out at an unforeseen time after a thaw.
            return Err(self.refused(what, &"it is frozen, since this node had lost its lease"));
        }
        self.qmp(crate::qmp::PATIENCE).await.map_err(|e| self.refused(what, &e))
    }

    /// Carries out a command for a request that is called `what`.
    pub async fn ask(&self, what: &'static str, command: &str, args: Value) -> Result<Value, GuestError> {
        self.ask_within(what, command, args, crate::qmp::PATIENCE).await
    }

    /// As [`Self::ask`], for a command that may take long.
    pub async fn ask_within(
        &self,
        what: &'static str,
        command: &str,
        args: Value,
        limit: Duration,
    ) -> Result<Value, GuestError> {
        let qmp = self.monitor(what).await?;
        qmp.execute_within(command, args, limit).await.map_err(|e| self.refused(what, &e))
    }

    /// Where it stands.
    pub async fn run_state(&self) -> RunState {
        if self.is_frozen() {
            return RunState::Paused;
        }
        let Ok(qmp) = self.qmp(STATE).await else { return RunState::Unresponsive };
        let Ok(status) = qmp.execute_within("query-status", json!({}), STATE).await else {
            return if self.is_frozen() { RunState::Paused } else { RunState::Unresponsive };
        };
        let waits = self.meta().incoming && !self.ran.load(Ordering::Relaxed);
        let state = run_state(status["status"].as_str().unwrap_or(""), waits);
        match state {
            RunState::Running => {
                self.note_ran();
                if !self.turning.load(Ordering::Relaxed) {
                    self.note_goes();
                }
            }
            RunState::Paused | RunState::Postmigrate if self.meta().stands => {
                return postcopy::state_of_source(&qmp, STATE).await;
            }
            // After a reset while its CPUs stood, QEMU says so of a guest that has run.
            RunState::Prelaunch if self.ran.load(Ordering::Relaxed) => return RunState::Paused,
            _ => {}
        }
        state
    }

    /// Notes on disk that its CPUs have run here, or stand since they were told to: a later daemon could not tell.
    pub fn note_ran(&self) {
        if !self.ran.swap(true, Ordering::Relaxed)
            && let Err(e) = std::fs::write(self.dir.ran(), b"")
        {
            tracing::warn!(vmid = %self.vmid, error = %e, "could not note that the guest has run");
        }
    }

    /// Notes on disk that its CPUs stand for the sake of those who fetch from it: before they are stopped.
    pub fn note_stands(&self) -> std::io::Result<()> {
        self.turning.store(true, Ordering::Relaxed);
        let noted = self.note(|meta| meta.stands = true);
        if noted.is_err() {
            self.turning.store(false, Ordering::Relaxed);
        }
        noted
    }

    /// No word to stop is on its way any more: whatever it says now is as it is.
    pub fn has_turned(&self) {
        self.turning.store(false, Ordering::Relaxed);
    }

    /// Notes that its CPUs run, or may: they do not stand for that any more.
    pub fn note_goes(&self) {
        self.turning.store(false, Ordering::Relaxed);
        if self.meta().stands
            && let Err(e) = self.note(|meta| meta.stands = false)
        {
            tracing::warn!(vmid = %self.vmid, error = %e, "could not note that the guest does not stand any more");
        }
    }

    /// All that is known of it.
    pub async fn report(&self) -> GuestProcess {
        let state = self.run_state().await;
        let meta = self.meta();
        let ((disk_read, disk_write), balloon) = match state {
            RunState::Unresponsive => ((0, 0), None),
            _ => (self.disk_bytes().await, self.balloon().await),
        };
        let (net_in, net_out) = net::traffic(&meta.taps);
        let pid = self.process.pid;
        let stat = process::stat(pid);
        let cpu = stat.map_or(0.0, |s| {
            let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
            meter.read(Instant::now(), s.ticks, stats::ticks_per_second(), meta.cpus)
        });
        self.bound_stderr();
        GuestProcess {
            vmid: self.vmid,
            epoch: meta.epoch,
            pid,
            state,
            stands: meta.stands,
            uptime: stat.as_ref().map_or(0, stats::uptime),
            cpu,
            mem: stats::resident(pid),
            balloon: balloon.map(Box::new),
            net_in,
            net_out,
            disk_read,
            disk_write,
            machine: meta.machine,
            accel: Accel::as_str(meta.accel).to_owned(),
            version: meta.version,
            model: command::cpu_of(&meta.argv).map(str::to_owned),
        }
    }

    async fn disk_bytes(&self) -> (u64, u64) {
        let Ok(qmp) = self.monitor("ask").await else { return (0, 0) };
        let Ok(answer) = qmp.execute_within("query-blockstats", json!({}), STATE).await else {
            return (0, 0);
        };
        let sum = |which: &str| {
            let disks = answer.as_array().map(Vec::as_slice).unwrap_or_default();
            disks.iter().filter_map(|d| d["stats"][which].as_u64()).sum()
        };
        (sum("rd_bytes"), sum("wr_bytes"))
    }

    async fn balloon(&self) -> Option<Balloon> {
        balloon::ask(&*self.monitor("ask").await.ok()?, STATE).await
    }

    /// QEMU appends to the file, so that it goes on at its new beginning.
    fn bound_stderr(&self) {
        let path = self.dir.stderr();
        if std::fs::metadata(&path).is_ok_and(|m| m.len() > STDERR_LIMIT)
            && let Ok(file) = std::fs::File::options().write(true).open(&path)
        {
            let _ = file.set_len(0);
        }
    }

    /// SIGKILL to all of it.
    pub fn kill(&self) -> std::io::Result<()> {
        let group = self.cgroup.as_ref().map_or(Ok(()), Cgroup::kill);
        // Where a process could not be made a member, it must die all the same.
        self.process.kill()?;
        self.helpers.kill()?;
        group
    }

    /// Returns when nothing of it is left.
    pub async fn gone(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// Watches it to its end. Returns whether it switched itself off.
    pub async fn watch(&self, announce: &broadcast::Sender<GuestEvent>) -> bool {
        tokio::select! {
            clean = self.watch_process(announce) => clean,
            () = self.helpers.watch(self.vmid) => false,
        }
    }

    async fn watch_process(&self, announce: &broadcast::Sender<GuestEvent>) -> bool {
        let mut exited = std::pin::pin!(self.process.exited());
        let mut last = None;
        loop {
            let link = self.link.borrow().clone();
            let qmp = match link {
                Some(qmp) => qmp,
                None => tokio::select! {
                    () = &mut exited => return is_clean(None).await,
                    qmp = self.reach() => qmp,
                },
            };
            let follow = self.follow(&qmp, &mut last, announce);
            tokio::select! {
                () = &mut exited => return is_clean(Some(&qmp)).await,
                () = follow => { self.link.send_replace(None); }
            }
            // The connection ended; as a rule since the process is ending.
            let grace = tokio::time::timeout(Duration::from_secs(1), &mut exited).await;
            if grace.is_ok() {
                return is_clean(Some(&qmp)).await;
            }
        }
    }

    /// Connects to a monitor that an earlier daemon had.
    async fn reach(&self) -> Arc<Qmp> {
        loop {
            match Qmp::connect(&self.dir.qmp()).await {
                Ok(qmp) => {
                    let qmp = Arc::new(qmp);
                    self.link.send_replace(Some(qmp.clone()));
                    // An earlier daemon may have died in the middle of a restart of the guest.
                    let _ = qmp.execute("set-action", self.usual_actions()).await;
                    return qmp;
                }
                Err(e) => {
                    tracing::warn!(vmid = %self.vmid, error = %e, "the guest's monitor cannot be reached");
                    // Nothing announces that it can be; its process's end ends this wait.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Follows its events until the connection ends.
    async fn follow(&self, qmp: &Qmp, last: &mut Option<RunState>, announce: &broadcast::Sender<GuestEvent>) {
        let mut events = qmp.events();
        loop {
            let state = self.run_state().await;
            if *last != Some(state) {
                *last = Some(state);
                // Nobody listening is no error.
                let _ = announce.send(GuestEvent::State { vmid: self.vmid, state });
            }
            loop {
                let event = tokio::select! {
                    biased;
                    event = events.recv() => event,
                    () = qmp.closed() => return,
                };
                match event {
                    Ok(event) if changes_state(&event) => {
                        if event.name == "RESUME" {
                            self.note_goes();
                        }
                        break;
                    }
                    Ok(event) if event.name == "DEVICE_DELETED" && event.data["device"].is_string() => {
                        let _ = announce.send(GuestEvent::Unplugged { vmid: self.vmid });
                    }
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => break,
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        }
    }

    /// Removes what it leaves, once its process has ended, and waits for the end of the programs beside it.
    pub async fn clear(&self) {
        self.process.reap();
        self.helpers.gone(true).await;
        if let Some(cgroup) = &self.cgroup {
            // Whoever says that the guest has ended says that nobody writes for it.
            if let Err(e) = cgroup.kill() {
                tracing::warn!(vmid = %self.vmid, error = %e, "what has outlived the guest's process could not be killed");
            }
            cgroup.emptied().await;
        }
        self.dir.remove();
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        let meta = self.meta();
        cpu_group::clear(meta.cpu_cgroup);
        huge::give_back(&meta.huge);
        meta.mdevs.iter().for_each(Mdev::remove);
    }

    /// Tells those who wait that nothing is left.
    pub fn announce_gone(&self) {
        self.gone.send_replace(true);
    }
}

/// Whether QEMU ended since its guest was switched off, from inside or by request.
async fn is_clean(qmp: Option<&Qmp>) -> bool {
    let Some(qmp) = qmp else { return false };
    // The last words are still in the socket when the process has ended.
    let _ = tokio::time::timeout(Duration::from_secs(1), qmp.closed()).await;
    // A reset is the end of a guest alone whose configuration says so.
    let meant = ["guest-shutdown", "host-qmp-quit", "host-ui", "guest-reset", "host-qmp-system-reset"];
    qmp.shutdown_reason().is_some_and(|reason| meant.contains(&reason.as_str()))
}

fn changes_state(event: &Event) -> bool {
    matches!(
        event.name.as_str(),
        "STOP"
            | "RESUME"
            | "RESET"
            | "SHUTDOWN"
            | "MIGRATION"
            | "SUSPEND"
            | "WAKEUP"
            | "GUEST_PANICKED"
            | "WATCHDOG"
            | "BLOCK_IO_ERROR"
    )
}

/// QEMU's run state in this driver's words. `waits`: it received a migration and never ran here.
fn run_state(status: &str, waits: bool) -> RunState {
    match status {
        "running" | "suspended" => RunState::Running,
        // One that stood at its source, and never ran, is sent so.
        "prelaunch" if !waits => RunState::Prelaunch,
        "inmigrate" => RunState::Inmigrate,
        "postmigrate" => RunState::Postmigrate,
        "paused" | "prelaunch" if waits => RunState::Received,
        "paused" | "finish-migrate" | "save-vm" | "restore-vm" | "io-error" | "watchdog" | "debug"
        | "colo" => RunState::Paused,
        "shutdown" | "guest-panicked" | "internal-error" => RunState::Shutdown,
        _ => RunState::Unresponsive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_received_guest_is_no_paused_one_until_it_runs() {
        assert_eq!(run_state("paused", true), RunState::Received);
        assert_eq!(run_state("paused", false), RunState::Paused);
        assert_eq!(run_state("prelaunch", true), RunState::Received);
        assert_eq!(run_state("prelaunch", false), RunState::Prelaunch);
        assert_eq!(run_state("inmigrate", true), RunState::Inmigrate);
        assert_eq!(run_state("something new", false), RunState::Unresponsive);
    }
}
