//! A guest's process: made, watched, moved and ended by a driver.
//!
//! ```text
//!             launch                fence.run / resume            exit, kill
//!   absent ───────────▶ prelaunch ───────────────────▶ running ─────────────▶ absent
//!             incoming              migration completes ▲   │ pause
//!   absent ───────────▶ inmigrate ──▶ postmigrate ──────┘   ▼
//!                                                         paused
//! ```
//!
//! The process belongs to the operating system: a driver that is restarted finds it again by [`GuestDriver::adopt`].

use crate::capabilities::Capabilities;
use crate::fence::Registration;
use crate::hardware::Hardware;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_model::vmconfig::EfiVariables;
use stead_model::{Epoch, Vmid};
use tokio::net::UnixStream;
use tokio::sync::broadcast;

/// A disk's file or address, resolved by its storage before launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedVolume {
    /// The volume as the configuration names it.
    pub volume: String,
    /// The path (of a file or block device) to open.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
}

/// Everything that a driver needs to make the process. The driver decides nothing more.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The guest.
    pub vmid: Vmid,
    /// The ownership under which it will run (see [`Registration::epoch`]).
    pub epoch: Epoch,
    /// Its configuration's text, in the known format.
    pub config: String,
    /// Each volume that the configuration names.
    pub volumes: Vec<ResolvedVolume>,
    /// The guest was recovered from a lost node, where a frozen copy may still hold the locks of its images:
    /// they are passed over. Never set otherwise: the lock is the last net below everything else.
    pub recovered: bool,
    /// For an incoming migration: the source's running machine type, accelerator and what else must be alike.
    pub incoming: Option<Incoming>,
}

/// What an incoming migration's process must have in common with its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// The versioned machine type, e.g. `pc-i440fx-10.0`.
    pub machine: String,
    /// `kvm` or `tcg`: a guest never moves between the two.
    pub accel: String,
    /// The CPU that runs, in the driver's own words. None, from a version that does not say: the configuration's.
    #[serde(default)]
    pub cpu: Option<String>,
    /// By how many streams its memory comes; 0, from a version that does not say: by one.
    #[serde(default)]
    pub streams: u8,
    /// The file with its state, which it reads by itself; none: it waits for a stream. A matter of its node's alone.
    #[serde(skip)]
    pub state: Option<SavedState>,
}

impl Incoming {
    /// What waits for a stream.
    pub fn stream(machine: impl Into<String>, accel: impl Into<String>) -> Self {
        Self { machine: machine.into(), accel: accel.into(), cpu: None, streams: 1, state: None }
    }
}

/// A file with a guest's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedState {
    /// Where.
    pub path: PathBuf,
    /// Each page has its place in it, as [`GuestDriver::save`] writes it; else they follow each other as they were sent.
    pub mapped: bool,
}

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// The process is there, its CPUs have never run here.
    Prelaunch,
    /// Waits for or receives a migration.
    Inmigrate,
    /// Its CPUs run.
    Running,
    /// Paused, by its user or by the fence process.
    Paused,
    /// It has received a migration and was never continued since.
    Received,
    /// Its state was migrated away, or waits for it with its CPUs stopped for good: only a word has it go on.
    Postmigrate,
    /// Its state was migrated away, but for memory that its target fetches while the guest runs there. It never runs again.
    Serving,
    /// Switched itself off or panicked; the process is still there.
    Shutdown,
    /// The process answers no question.
    Unresponsive,
}

/// What a guest's balloon has left it, and what its system tells of its memory. Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// Its memory without what the balloon has taken.
    pub actual: u64,
    /// What its system says; none where it has no driver for it, or has said nothing yet.
    pub stats: Option<BalloonStats>,
}

/// What a guest's system tells of its memory; none of what it does not know. Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStats {
    /// When it was told: seconds since 1970.
    pub at: u64,
    /// All that it can use.
    pub total: Option<u64>,
    /// What nothing is in.
    pub free: Option<u64>,
    /// Read back from disk since its start.
    pub swapped_in: Option<u64>,
    /// Put out to disk since its start.
    pub swapped_out: Option<u64>,
    /// Pages that had to be read, since its start.
    pub major_faults: Option<u64>,
    /// Pages that only had to be found, since its start.
    pub minor_faults: Option<u64>,
}

/// A running guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestProcess {
    /// The guest.
    pub vmid: Vmid,
    /// The ownership it was launched under.
    pub epoch: Epoch,
    /// Its process.
    pub pid: u32,
    /// Where it stands.
    pub state: RunState,
    /// Its CPUs were stopped so that its target can fetch memory (see [`GuestDriver::begin_fetching`]), and nobody has had it run since: one
    /// that does not answer now may serve. Only its own node knows it.
    #[serde(skip)]
    pub stands: bool,
    /// Seconds since launch.
    pub uptime: u64,
    /// Share of its CPUs used since the last question: 0 to 1.
    pub cpu: f64,
    /// Resident memory in bytes.
    pub mem: u64,
    /// Its balloon, if it has one that answers.
    #[serde(default)]
    pub balloon: Option<Box<Balloon>>,
    /// Bytes received and sent by its network devices, read and written on its disks: since launch.
    pub net_in: u64,
    /// See `net_in`.
    pub net_out: u64,
    /// See `net_in`.
    pub disk_read: u64,
    /// See `net_in`.
    pub disk_write: u64,
    /// The versioned machine type that runs.
    pub machine: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// The program's version, e.g. `10.0.2`.
    pub version: String,
    /// The CPU that runs, in the driver's own words. Only its own node knows it.
    #[serde(skip)]
    pub model: Option<String>,
}

impl GuestProcess {
    /// What a process that takes its place must have in common with it.
    pub fn as_incoming(&self) -> Incoming {
        Incoming { cpu: self.model.clone(), ..Incoming::stream(self.machine.as_str(), self.accel.as_str()) }
    }
}

/// What a running machine has of all that can come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The options (`net0`, `scsi1`) whose devices are there.
    pub devices: BTreeSet<String>,
    /// Those of them that its guest was asked for and may let go of at any time; `vcpus` for CPUs, `memory` for its
    /// modules. Nobody can take that back.
    pub asked: BTreeSet<String>,
    /// The first CPU and those that were plugged in.
    pub cpus: u32,
    /// Modules of memory.
    pub modules: usize,
}

/// What a driver noticed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// The process ended. Announced within a second.
    Gone {
        /// The guest.
        vmid: Vmid,
        /// The ownership it was launched under.
        epoch: Epoch,
        /// Whether it switched itself off (shutdown from inside or by request) rather than crashed or was killed.
        clean: bool,
    },
    /// Its run state changed.
    State {
        /// The guest.
        vmid: Vmid,
        /// The new one.
        state: RunState,
    },
    /// It has let go of a device, by request or by itself.
    Unplugged {
        /// The guest.
        vmid: Vmid,
    },
}

/// A migration's progress. Bytes; milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationProgress {
    /// Where it stands.
    pub phase: MigrationPhase,
    /// Sent so far.
    pub transferred: u64,
    /// Left to send.
    pub remaining: u64,
    /// RAM in total.
    pub total: u64,
    /// Rounds over all RAM.
    pub rounds: u64,
    /// Pause: expected while it runs, measured once it has completed.
    pub downtime_ms: u64,
    /// Time since it began.
    pub total_ms: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// A migration's phase, seen from the source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MigrationPhase {
    /// None was begun.
    #[default]
    None,
    /// RAM is being sent.
    Active,
    /// The source's CPUs have stopped, and it waits to be told to send the rest.
    Held,
    /// The source's CPUs have stopped, the rest is being sent.
    Switchover,
    /// The target can run the guest, and fetches what memory it has not. Nobody can cancel it; the source's CPUs stand and stay so.
    Fetching,
    /// The same, and their connection is broken: the guest stands where it needs what is not there.
    Broken,
    /// All was sent and received; the source is paused and stays so.
    Completed,
    /// It failed; the source's CPUs run, or can be continued.
    Failed,
    /// Cancelled; the source goes on.
    Cancelled,
}

impl MigrationPhase {
    /// Whether it will not change any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// A disk of a running guest that is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCopy {
    /// Its option.
    pub disk: String,
    /// What the option says.
    pub value: String,
    /// Where to.
    pub to: CopyTo,
}

/// Where a disk is copied to: something of exactly its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyTo {
    /// A volume, which nobody has open.
    Volume(ResolvedVolume),
    /// The disk of the same option that a waiting process lends by this socket: see [`GuestDriver::lend_disks`].
    Lent(PathBuf),
}

/// How a guest's state is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sending {
    /// The unix socket.
    pub to: PathBuf,
    /// At most; none: no limit.
    pub bytes_per_second: Option<u64>,
    /// Once the guest's CPUs stand it waits, in [`MigrationPhase::Held`], for [`GuestDriver::send_rest`].
    pub hold: bool,
    /// The target may be had to fetch what is left: [`GuestDriver::begin_fetching`]. It has to be able to, and to hold is part of it.
    pub fetch: bool,
    /// By how many streams its memory goes: as many as whoever waits was made for.
    pub streams: u8,
}

impl Sending {
    /// As fast as it goes, to its end.
    pub fn to(to: impl Into<PathBuf>) -> Self {
        Self { to: to.into(), bytes_per_second: None, hold: false, fetch: false, streams: 1 }
    }
}

/// What a copy is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKind {
    /// Of the disks as they are at the moment when it begins, the same moment for all.
    Moment,
    /// Of disks as they go on, so that the guest can go over to it: [`GuestDriver::pivot`], or a process that lends them:
    /// [`GuestDriver::end_mirrors`].
    Mirror,
}

/// How copies stand, all of a guest's together. Bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyProgress {
    /// Where they stand.
    pub phase: CopyPhase,
    /// Copied so far.
    pub done: u64,
    /// In all; it may grow while the guest writes.
    pub total: u64,
    /// Why they failed.
    pub error: Option<String>,
}

/// A copy's phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CopyPhase {
    /// None was begun, or what was is gone: somebody has ended it. Never a success.
    #[default]
    None,
    /// On its way.
    Active,
    /// A mirror is whole, and the guest hears of no write that has not reached both places.
    InStep,
    /// Whole.
    Completed,
    /// It failed, or was cancelled.
    Failed,
}

fn no_fetching<T>(vmid: Vmid) -> Result<T, GuestError> {
    let why = "its driver moves memory before the guest alone".to_owned();
    Err(GuestError::Refused { what: "fetch memory of", vmid, why })
}

fn no_copies<T>(vmid: Vmid) -> Result<T, GuestError> {
    let why = "its driver copies no disks while they are in use: stop it first".to_owned();
    Err(GuestError::Refused { what: "copy disks of", vmid, why })
}

/// A failed operation on a guest's process.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No process of that guest.
    #[error("guest {0} is not running")]
    NotRunning(Vmid),
    /// A process of that guest is already there.
    #[error("guest {0} is already running")]
    Running(Vmid),
    /// The configuration asks for what this driver or machine cannot do.
    #[error("{key}: {why}")]
    Config {
        /// The option.
        key: String,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// The program could not be started or ended at once.
    #[error("could not start guest {vmid}: {why}")]
    Launch {
        /// The guest.
        vmid: Vmid,
        /// The program's own words.
        why: String,
    },
    /// The process refused or did not answer.
    #[error("could not {what} guest {vmid}: {why}")]
    Refused {
        /// What was attempted.
        what: &'static str,
        /// On which guest.
        vmid: Vmid,
        /// Why it failed.
        why: String,
    },
    /// The agent in the guest did not do it.
    #[error("{0}")]
    Agent(String),
    /// The agent in the guest did not do it in time: it is at something else, or was asked and may do it yet.
    #[error("{0}")]
    AgentLate(String),
    /// It took longer than allowed.
    #[error("{what} of guest {vmid} did not end within {seconds} s")]
    TimedOut {
        /// What was attempted.
        what: &'static str,
        /// On which guest.
        vmid: Vmid,
        /// The limit.
        seconds: u64,
    },
}

/// A driver for one kind of guest.
///
/// Every method may be called again after the daemon was restarted in its middle. A future that is dropped
/// leaves the process in a state that `state` tells.
#[async_trait]
pub trait GuestDriver: Send + Sync {
    /// Finds the guests that an earlier daemon started, and watches them from now on.
    async fn adopt(&self) -> Vec<GuestProcess>;
    /// What the fence process must know before [`Self::launch`]. Makes the cgroup and the run directory.
    async fn prepare(&self, vmid: Vmid, epoch: Epoch) -> Result<Registration, GuestError>;
    /// Starts the process with stopped CPUs and waits until it answers. After an error nothing of it is left.
    async fn launch(&self, launch: Launch) -> Result<GuestProcess, GuestError>;
    /// Refuses a configuration (its text) that the program of this node cannot take, as far as that shows without its
    /// volumes. An answer of yes is no promise.
    async fn check(&self, _config: &str) -> Result<(), GuestError> {
        Ok(())
    }
    /// What its program can make of guests.
    async fn capabilities(&self) -> Result<Capabilities, GuestError> {
        Err(GuestError::Config {
            key: "cpu".to_owned(),
            why: "this driver does not tell what it can do".to_owned(),
        })
    }
    /// What the host has that could be given to a guest.
    async fn hardware(&self) -> Hardware {
        Hardware::default()
    }
    /// A file with the variables that the UEFI firmware of a new guest begins with.
    async fn efi_variables(&self, of: EfiVariables) -> Result<PathBuf, GuestError>;
    /// All that speaks against a launch on this node, for people: nothing is made. An answer of nothing is no promise.
    async fn obstacles(&self, _launch: &Launch) -> Vec<String> {
        vec![]
    }
    /// What a launch would do otherwise than its configuration says, for people.
    async fn warnings(&self, _launch: &Launch) -> Vec<String> {
        vec![]
    }
    /// What the command line would be, for people.
    async fn describe(&self, launch: &Launch) -> Result<Vec<String>, GuestError>;
    /// Every guest with a process.
    async fn list(&self) -> Vec<GuestProcess>;
    /// One guest's process.
    async fn state(&self, vmid: Vmid) -> Option<GuestProcess>;
    /// Events from now on.
    fn events(&self) -> broadcast::Receiver<GuestEvent>;
    /// Continues the CPUs: after a pause, or for the first time where the fence process does not do it.
    async fn resume(&self, vmid: Vmid) -> Result<(), GuestError>;
    /// Stops the CPUs; returns when they have stopped. Of a guest whose CPUs have never run, its start is complete by this, or its
    /// move.
    async fn pause(&self, vmid: Vmid) -> Result<(), GuestError>;
    /// Presses the reset button.
    async fn reset(&self, vmid: Vmid) -> Result<(), GuestError>;
    /// Asks the guest's system to shut down (agent where enabled, else the power button) and waits.
    async fn shutdown(&self, vmid: Vmid, timeout: Duration) -> Result<(), GuestError>;
    /// Asks the guest's system to restart and waits until it has.
    async fn reboot(&self, vmid: Vmid, timeout: Duration) -> Result<(), GuestError>;
    /// Ends the process in order: the program's own quit (disks flushed), SIGKILL of its cgroup after 10 s.
    async fn stop(&self, vmid: Vmid) -> Result<(), GuestError>;
    /// As [`Self::stop`], with another limit; none at all with zero.
    async fn stop_within(&self, vmid: Vmid, limit: Duration) -> Result<(), GuestError> {
        if limit.is_zero() { self.kill(vmid).await } else { self.stop(vmid).await }
    }
    /// SIGKILL of its cgroup without a thaw or a word before; waits until nothing of it is left.
    async fn kill(&self, vmid: Vmid) -> Result<(), GuestError>;
    /// By how many streams the program of a running guest, or without one that of this node, sends or takes memory when so many are
    /// wanted: at least one.
    async fn streams(&self, _of: Option<Vmid>, _wanted: u8) -> u8 {
        1
    }
    /// Where an incoming guest takes its migration stream.
    async fn migration_inlet(&self, vmid: Vmid) -> Result<PathBuf, GuestError>;
    /// Has an incoming guest that waits lend disks, by their options, so that another process can write them; where.
    async fn lend_disks(&self, vmid: Vmid, _disks: &[String]) -> Result<PathBuf, GuestError> {
        no_copies(vmid)
    }
    /// Where an incoming guest lends its disks.
    async fn disk_inlet(&self, vmid: Vmid) -> Result<PathBuf, GuestError> {
        no_copies(vmid)
    }
    /// Nobody can write its disks any more but itself.
    async fn end_lending(&self, vmid: Vmid) -> Result<(), GuestError> {
        no_copies(vmid)
    }
    /// Begins to send the guest's state into a unix socket. At the end the source stays paused.
    async fn migrate(&self, vmid: Vmid, how: &Sending) -> Result<(), GuestError>;
    /// Has a migration that is held go on.
    async fn send_rest(&self, vmid: Vmid) -> Result<(), GuestError>;
    /// Has an incoming guest that waits be ready to fetch memory while it runs, if its source has it so. An error says why it can't.
    async fn can_fetch(&self, vmid: Vmid) -> Result<(), GuestError> {
        no_fetching(vmid)
    }
    /// Stops the CPUs of a guest that is sent, and has the target fetch what is left: sending is held before. Nothing but a word lets
    /// the CPUs go on from then on, however the sending ends; [`RunState::Postmigrate`] says so. False: it had come to its end by itself,
    /// and is held as one that is not fetched.
    async fn begin_fetching(&self, vmid: Vmid) -> Result<bool, GuestError> {
        no_fetching(vmid)
    }
    /// Has a guest whose fetching is [`MigrationPhase::Broken`] wait for its source anew; where.
    async fn fetch_again(&self, vmid: Vmid) -> Result<PathBuf, GuestError> {
        no_fetching(vmid)
    }
    /// Has a source from which was fetched go on with it over another connection.
    async fn send_again(&self, vmid: Vmid, _to: &Path) -> Result<(), GuestError> {
        no_fetching(vmid)
    }
    /// Begins to write the guest's state to a file while it runs, from which a process can go on (see [`SavedState`]). At the end
    /// the guest stays paused, and never needs to be continued; how it goes on [`Self::migration`] tells.
    async fn save(&self, vmid: Vmid, to: &Path) -> Result<(), GuestError>;
    /// How the migration stands.
    async fn migration(&self, vmid: Vmid) -> Result<MigrationProgress, GuestError>;
    /// Waits until the phase differs from `seen`, or a second has passed.
    async fn migration_changed(
        &self,
        vmid: Vmid,
        seen: MigrationPhase,
    ) -> Result<MigrationProgress, GuestError>;
    /// Cancels it; returns in a terminal phase.
    async fn cancel_migration(&self, vmid: Vmid) -> Result<MigrationProgress, GuestError>;
    /// Tells a running guest that a disk has grown. Bytes.
    async fn resize_disk(&self, vmid: Vmid, device: &str, size: u64) -> Result<(), GuestError>;
    /// Puts a medium in (or with none, out of) a CD drive of a running guest.
    async fn change_medium(
        &self,
        vmid: Vmid,
        device: &str,
        medium: Option<ResolvedVolume>,
    ) -> Result<(), GuestError>;
    /// Tells a running guest what an option says in this configuration, where no device comes or goes by it: limits of a disk,
    /// a network device's link, the balloon's target, its share of the CPUs.
    async fn tune(&self, vmid: Vmid, key: &str, config: &str) -> Result<(), GuestError>;
    /// Has a running guest's balloon leave it so many bytes.
    async fn set_balloon(&self, vmid: Vmid, bytes: u64) -> Result<(), GuestError>;
    /// What is in the running machine of all that can come and go.
    async fn inventory(&self, vmid: Vmid) -> Result<Inventory, GuestError>;
    /// Plugs in the device that an option of this configuration names, and which is not there. After an error nothing of it is left,
    /// but for a device that its guest has to let go of: the inventory says so.
    async fn plug(
        &self,
        vmid: Vmid,
        key: &str,
        config: &str,
        volume: Option<ResolvedVolume>,
    ) -> Result<(), GuestError>;
    /// Asks the guest to let go of the device that an option of this configuration, under which it was plugged in, names, and
    /// waits for so long. What stands behind a device that is gone goes too. After [`GuestError::TimedOut`] the guest may still let go
    /// of it, which [`GuestEvent::Unplugged`] tells; this is then called again.
    async fn unplug(&self, vmid: Vmid, key: &str, config: &str, patience: Duration)
    -> Result<(), GuestError>;
    /// Gives a running guest as many CPUs as `vcpus` of this configuration says, or asks it to let go of some and waits for so long.
    /// How many are there then.
    async fn set_cpus(&self, vmid: Vmid, config: &str, patience: Duration) -> Result<u32, GuestError>;
    /// Gives a running guest as many modules of memory as this configuration has, or asks it to let go of some and waits for so long.
    /// What stands behind those that are gone goes too. How many are there then.
    async fn set_modules(&self, vmid: Vmid, config: &str, patience: Duration) -> Result<usize, GuestError>;
    /// Keeps the present state of these disks (by their options) under a name, in their images, all at one moment. After an error
    /// none has it, unless the process did not answer in time.
    async fn snapshot_disks(&self, vmid: Vmid, disks: &[String], name: &str) -> Result<(), GuestError>;
    /// As [`Self::snapshot_disks`], and begins to write the memory of the same moment to a file. Whatever it returns, the CPUs of
    /// a guest that ran may stand then, and whoever may continue them does: the memory is that of the moment all the same. How
    /// its writing goes on [`Self::migration`] tells.
    async fn snapshot_with_memory(
        &self,
        vmid: Vmid,
        disks: &[String],
        name: &str,
        to: &Path,
    ) -> Result<(), GuestError>;
    /// Has the image of one of its disks forget what it keeps under a name; one that keeps nothing under it is no error.
    async fn forget_disk_snapshot(&self, vmid: Vmid, disk: &str, name: &str) -> Result<(), GuestError>;
    /// Begins to copy disks, to volumes one alone with a mirror. Of copies there are those of one call at a time. Somebody who ends
    /// jobs, as the fence process does when a lease is lost, ends them too.
    async fn copy_disks(
        &self,
        vmid: Vmid,
        _copies: &[DiskCopy],
        _kind: CopyKind,
        _bytes_per_second: Option<u64>,
    ) -> Result<(), GuestError> {
        no_copies(vmid)
    }
    /// How the copies stand, as soon as their phase differs from `seen`, or after a second.
    async fn copies_changed(&self, vmid: Vmid, _seen: CopyPhase) -> Result<CopyProgress, GuestError> {
        no_copies(vmid)
    }
    /// Has the guest go over to a mirror that is in step. After an error [`Self::disk_place`] tells where it is.
    async fn pivot(&self, vmid: Vmid, _disk: &str) -> Result<(), GuestError> {
        no_copies(vmid)
    }
    /// Ends the mirrors of a guest whose CPUs stand, when they are in step: both places hold the same then, to disk, and the guest
    /// stays on its own. An error where one was not in step to its end.
    async fn end_mirrors(&self, vmid: Vmid) -> Result<(), GuestError> {
        no_copies(vmid)
    }
    /// Ends all copies, and closes all that the guest does not use; a guest without any is left as it is. When it returns no
    /// copy can be written to any more.
    async fn end_copies(&self, _vmid: Vmid) -> Result<(), GuestError> {
        Ok(())
    }
    /// The path that a disk is on.
    async fn disk_place(&self, vmid: Vmid, _disk: &str) -> Result<PathBuf, GuestError> {
        no_copies(vmid)
    }
    /// Asks the agent in the guest; null where it answers only when it fails. One conversation at a time: others wait, which
    /// counts.
    async fn agent(
        &self,
        vmid: Vmid,
        command: &str,
        arguments: &serde_json::Value,
        patience: Duration,
    ) -> Result<serde_json::Value, GuestError>;
    /// A line for the program's human monitor.
    async fn monitor(&self, vmid: Vmid, line: &str) -> Result<String, GuestError>;
    /// Sets the VNC password (8 characters) and connects to the screen.
    async fn screen(&self, vmid: Vmid, password: &str) -> Result<UnixStream, GuestError>;
    /// Connects to a serial terminal: `serial0` to `serial3`.
    async fn terminal(&self, vmid: Vmid, port: &str) -> Result<UnixStream, GuestError>;
}
