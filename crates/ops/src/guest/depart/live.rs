//! A VM that goes to another cluster while it runs: the plan of a live move within one ([`stead_guest::migration`]), carried out through
//! a tunnel.
//!
//! Its hand-over is that of a VM that does not run. When all is sent its CPUs stand, and stay so whatever becomes of the sending; only
//! then is it given away, and only then is the other side told that it may have it. Its process, and with it the memory, stands until
//! that is answered: a definite *no* has it go on here. Who was not answered ends it. What becomes of it then is its user's to find
//! out, and a process that stands could go on by mistake beside the one that runs there.

use super::{COMMIT, Departing, Far, Fate, Wire, lost};
use crate::guest::along::SETTLE;
use crate::guest::carry::Carried;
use crate::guest::copies::{self, Telling};
use crate::guest::migrate::{ended, told};
use crate::guest::tunnel::{Opens, Tunnel, joined};
use crate::store::{self, GuestAt};
use crate::{Ops, OpsError};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use stead_driver::guest::{
    CopyKind, CopyPhase, CopyTo, DiskCopy, GuestProcess, MigrationPhase, RunState, Sending,
};
use stead_guest::migration::{Command, Event, Migration};
use stead_guest::remote::{Answer, Channel, GIVEN_UP, Runs, Say};
use stead_model::{Ownership, Vmid, paths};
use stead_tasks::TaskContext;

/// Between two attempts to record that a VM stays.
const AGAIN: Duration = Duration::from_millis(300);
/// How long the other side may take to say why it has ended. The VM may stand meanwhile.
const WHY: Duration = Duration::from_secs(2);

/// What a process has that is to take this one's place.
pub(super) fn runs(process: &GuestProcess) -> Runs {
    let now = process.as_incoming();
    Runs { machine: now.machine, accel: now.accel, cpu: now.cpu, paused: process.state == RunState::Paused }
}

/// A live move, by the task that carries it out.
struct Away<'a> {
    by: &'a Departing<'a>,
    far: &'a Far,
    /// None once the other side has heard the last word.
    wire: Option<Wire>,
    /// As it was locked.
    guest: GuestAt,
    was_paused: bool,
    disks: Vec<DiskCopy>,
    /// Bytes that these have.
    size: u64,
    limit: Option<u64>,
    /// Where its disks and its memory seem to go, and what carries them.
    mirrors: (PathBuf, Option<Tunnel>),
    memory: (PathBuf, Option<Tunnel>),
    /// It may have been given away, or its sending may go on: its lock is not this task's to take off.
    stays_locked: bool,
    /// Why nobody knows whose it is.
    unknown: Option<String>,
}

impl Departing<'_> {
    /// Moves a VM whose volumes the other side has agreed to. It is locked.
    pub(super) async fn live(
        &self,
        far: &Far,
        wire: Wire,
        guest: GuestAt,
        volumes: &[Carried],
        was_paused: bool,
    ) -> Result<(), OpsError> {
        if let Err(e) = self.or_cancelled(self.send(far, &wire, &guest, volumes)).await {
            drop(wire);
            self.ops.clear_lock(self.vmid).await;
            return Err(OpsError::failed(format!("migration aborted: {e}")));
        }
        let config = crate::guest::config::parse(&guest.config.value)?;
        let run = |what: &str| self.ops.me.dir.join("run").join(format!("{what}-{}.sock", self.vmid));
        let mirrors = (run("nbd"), None);
        let disks = volumes.iter().filter_map(|c| c.disk.as_ref()).map(|(key, _)| DiskCopy {
            disk: key.clone(),
            value: config.current.get(key).unwrap_or_default().to_owned(),
            to: CopyTo::Lent(mirrors.0.clone()),
        });
        let mut away = Away {
            by: self,
            far,
            wire: Some(wire),
            was_paused,
            disks: disks.collect(),
            size: volumes.iter().filter_map(|c| c.disk.as_ref()).map(|(_, size)| size).sum(),
            limit: copies::limit(self.options.bwlimit).or(config.current.migrate_speed()?),
            mirrors,
            memory: (run("mig"), None),
            guest,
            stays_locked: false,
            unknown: None,
        };
        let done = away.go().await;
        away.cut_disks();
        away.cut_memory();
        done
    }
}

impl Away<'_> {
    fn ops(&self) -> &Ops {
        self.by.ops
    }

    fn cx(&self) -> &TaskContext {
        self.by.cx
    }

    fn vmid(&self) -> Vmid {
        self.by.vmid
    }

    async fn go(&mut self) -> Result<(), OpsError> {
        // The plan speaks of a node; what it says of it is not said here.
        let target = self.ops().me.name.clone();
        let (mut plan, first) =
            Migration::begin(self.vmid(), target, self.guest.own.value.epoch, !self.disks.is_empty());
        let mut queue = VecDeque::from([first]);
        while let Some(command) = queue.pop_front() {
            if let Command::Finish(result) = command {
                return self.finish(result).await;
            }
            if let Some(event) = self.carry_out(command).await {
                queue.extend(plan.on(event));
            }
        }
        // The plan always ends with Finish; an end without it would be a defect worth hearing of.
        Err(OpsError::failed(format!("the move of VM {} ended without a result", self.vmid())))
    }

    async fn carry_out(&mut self, command: Command) -> Option<Event> {
        let failed = |e: OpsError| Event::Failed(e.to_string());
        match command {
            Command::PrepareTarget { .. } => Some(self.prepare().await.unwrap_or_else(failed)),
            Command::MirrorDisks => Some(self.mirror().await.unwrap_or_else(failed)),
            Command::Send => Some(self.send().await.unwrap_or_else(failed)),
            Command::SettleDisks => Some(self.settle().await.unwrap_or_else(failed)),
            Command::SendRest => Some(self.send_rest().await.unwrap_or_else(failed)),
            Command::CancelSending => Some(match self.ops().guests.cancel_migration(self.vmid()).await {
                Ok(p) => ended(self.cx(), &p),
                Err(e) => Event::Failed(e.to_string()),
            }),
            Command::EndMirrors => {
                self.end_mirrors().await;
                None
            }
            Command::ProposeHandover { .. } => Some(self.hand_over().await),
            // It does so by its own commit, and has said that this is done.
            Command::AskTargetToRun => Some(Event::TargetRuns),
            Command::EndSource => {
                if let Err(e) = self.ops().destroy_copy(self.vmid()).await {
                    tracing::error!("guest {}: the copy that was sent could not be ended: {e}", self.vmid());
                }
                None
            }
            Command::EndTarget => Some(self.end_target().await),
            Command::ContinueSource => {
                Some(match self.ops().go_on_unmoved(&self.guest, self.was_paused).await {
                    Ok(()) => Event::SourceRuns,
                    Err(e) => {
                        self.stays_locked = true;
                        Event::SourceStuck(e.to_string())
                    }
                })
            }
            // Nothing is fetched between clusters: it was never begun.
            Command::BeginFetching | Command::LetFetch | Command::FollowFetching | Command::Finish(_) => None,
        }
    }

    async fn say(&self, say: Say) -> Result<Answer, OpsError> {
        match &self.wire {
            Some(wire) => self.by.say(wire, say).await,
            None => Err(lost(&self.by.options.remote, "it has heard the last word")),
        }
    }

    async fn prepare(&self) -> Result<Event, OpsError> {
        let answer = tokio::select! {
            answer = self.say(Say::Wait) => answer?,
            () = self.cx().cancelled() => return Ok(Event::CancelRequested),
        };
        match answer {
            Answer::Waits => {
                self.cx().log("a process there waits for the state");
                Ok(Event::TargetReady)
            }
            other => Err(self.by.unawaited(&other)),
        }
    }

    fn opens(&self, channel: Channel) -> Opens {
        let remotes = self.ops().remotes.clone();
        let (to, ca) = (self.by.options.remote.clone(), self.far.ca.clone());
        let ask = self.by.channel_ask(self.far, channel.name());
        Arc::new(move || {
            let (remotes, to, ca, ask) = (remotes.clone(), to.clone(), ca.clone(), ask.clone());
            Box::pin(async move { Ok(remotes.open(&to, &ca, &ask).await?) })
        })
    }

    /// `mute`: how long what is sent may be answered by nothing.
    async fn joined(
        &self,
        path: &Path,
        channel: Channel,
        mute: Option<Duration>,
    ) -> Result<Tunnel, OpsError> {
        let to = format!("the cluster at {}", self.by.options.remote);
        joined(self.vmid(), to, path, self.opens(channel), mute).await
    }

    /// Mirrors the disks, until they are in step.
    async fn mirror(&mut self) -> Result<Event, OpsError> {
        let mirrored = async {
            // What its guest writes waits for the other side, too.
            let joined = self.joined(&self.mirrors.0, Channel::Disks, Some(self.mute()));
            let tunnel = self.by.or_cancelled(joined).await?;
            self.mirrors.1 = Some(tunnel);
            let keys: Vec<&str> = self.disks.iter().map(|d| d.disk.as_str()).collect();
            self.cx().log(format!(
                "mirroring {} to the cluster at {}",
                keys.join(", "),
                self.by.options.remote
            ));
            let number = u64::try_from(self.disks.len()).unwrap_or(1).max(1);
            let limit = self.limit.map(|rate| (rate / number).max(1));
            self.ops().guests.copy_disks(self.vmid(), &self.disks, CopyKind::Mirror, limit).await?;
            let tell = Telling::new(self.cx(), Some(self.size));
            self.ops().follow_copies(self.cx(), self.vmid(), CopyPhase::InStep, &tell).await
        };
        let done: Result<(), OpsError> = mirrored.await;
        match done {
            Ok(()) => Ok(Event::DisksInStep),
            Err(e) => {
                self.cut_disks();
                match self.cx().is_cancelled() {
                    true => Ok(Event::CancelRequested),
                    false => Err(e),
                }
            }
        }
    }

    /// Sends its memory, to its end or until its CPUs stand.
    async fn send(&mut self) -> Result<Event, OpsError> {
        let tunnel = self.by.or_cancelled(self.joined(&self.memory.0, Channel::Memory, None)).await?;
        self.memory.1 = Some(tunnel);
        // Held also without disks: from there on the VM stands, which nobody may have last.
        let how = Sending { bytes_per_second: self.limit, hold: true, ..Sending::to(&self.memory.0) };
        self.ops().guests.migrate(self.vmid(), &how).await?;
        let event = self.follow(MigrationPhase::None).await;
        if !matches!(event, Ok(Event::Held)) {
            self.cut_memory();
        }
        event
    }

    fn mute(&self) -> Duration {
        self.ops().guest_locks.tunnels.waits().mute
    }

    /// Has what is held go on, to its end. The VM stands: what is not taken in time is taken back.
    async fn send_rest(&mut self) -> Result<Event, OpsError> {
        self.ops().guests.send_rest(self.vmid()).await?;
        let limit = self.mute();
        let event = match tokio::time::timeout(limit, self.follow(MigrationPhase::Held)).await {
            Ok(event) => event,
            Err(_) => {
                // What was sent to its end all the same has come: whether it was taken is asked.
                let now = self.ops().guests.cancel_migration(self.vmid()).await;
                match now.map(|p| ended(self.cx(), &p)) {
                    Ok(Event::Failed(_)) => Ok(Event::Failed(format!(
                        "the other side has not taken the rest of its memory within {limit:?}, the VM standing"
                    ))),
                    other => other.map_err(OpsError::from),
                }
            }
        };
        self.cut_memory();
        event
    }

    async fn follow(&self, mut seen: MigrationPhase) -> Result<Event, OpsError> {
        let (ops, vmid, mut last_log) = (self.ops(), self.vmid(), std::time::Instant::now());
        // Once it was held its disks are not copied any more.
        let is_first = seen == MigrationPhase::None;
        let copies = is_first && !self.disks.is_empty();
        let mut copied =
            pin!(async { if copies { ops.mirrors_fail(vmid).await } else { std::future::pending().await } });
        loop {
            let progress = tokio::select! {
                p = ops.guests.migration_changed(vmid, seen) => p?,
                () = self.cx().cancelled() => return Ok(Event::CancelRequested),
                why = &mut copied => {
                    ops.guests.cancel_migration(vmid).await?;
                    return Ok(Event::Failed(why));
                }
            };
            seen = progress.phase;
            if seen.is_terminal() {
                return Ok(ended(self.cx(), &progress));
            }
            if seen == MigrationPhase::Held && is_first {
                return Ok(Event::Held);
            }
            if last_log.elapsed() >= Duration::from_secs(1) {
                last_log = std::time::Instant::now();
                self.cx().progress(progress.transferred as f64 / progress.total.max(1) as f64);
                self.cx().log(told(&progress));
            }
        }
    }

    /// Makes sure, the VM standing, that both sides' disks hold the same, and that those there belong to the process that waits alone.
    async fn settle(&mut self) -> Result<Event, OpsError> {
        let begun = std::time::Instant::now();
        let settled = async {
            self.ops().guests.end_mirrors(self.vmid()).await?;
            match self.say(Say::Settle).await? {
                Answer::Settled => Ok(()),
                other => Err(self.by.unawaited(&other)),
            }
        };
        let late = || {
            let seconds = SETTLE.as_secs();
            OpsError::failed(format!(
                "its disks were not the same on both sides within {seconds} s of its standing still"
            ))
        };
        let settled: Result<(), OpsError> =
            tokio::time::timeout(SETTLE, settled).await.unwrap_or_else(|_| Err(late()));
        self.cut_disks();
        settled?;
        let ms = begun.elapsed().as_millis();
        self.cx().log(format!("the disks are the same on both sides ({ms} ms)"));
        Ok(Event::DisksSettled)
    }

    /// Cuts the connections to the other side's disks: whatever waits for one that hangs has failed then.
    fn cut_disks(&mut self) {
        self.mirrors.1 = None;
        let _ = std::fs::remove_file(&self.mirrors.0);
    }

    fn cut_memory(&mut self) {
        self.memory.1 = None;
        let _ = std::fs::remove_file(&self.memory.0);
    }

    /// Ends mirrors of a VM that stays.
    async fn end_mirrors(&mut self) {
        self.cut_disks();
        if let Err(e) = self.ops().guests.end_copies(self.vmid()).await {
            self.stays_locked = true;
            self.cx().warn(format!("copies of its disks may still be under way: {e}"));
        }
    }

    /// All is sent, and its CPUs stand: gives it away, and says so only then.
    async fn hand_over(&mut self) -> Event {
        let Some(wire) = self.wire.take() else {
            return Event::RefusedStillOurs("the other side has heard the last word".to_owned());
        };
        // From here on its lock says whose it is.
        self.stays_locked = true;
        let fate = match self.by.give_away(&self.guest).await {
            Ok(()) => self.by.hand_over(self.far, wire, COMMIT).await,
            // Where nobody knows whether that is recorded, the other side has not heard of it either.
            Err(e) => {
                drop(wire);
                Fate::Not(e.to_string())
            }
        };
        match fate {
            Fate::There => Event::Committed,
            Fate::Not(why) => self.take_back(why).await,
            Fate::Unknown(why) => {
                self.unknown = Some(why.clone());
                Event::RefusedNotOurs(why)
            }
        }
    }

    /// The other side has not got it, and never will: records that it runs here. Asked again until that is known, since a record that is
    /// on its way may still say otherwise.
    async fn take_back(&mut self, why: String) -> Event {
        loop {
            let e = match self.record_taken_back().await {
                Ok(()) => {
                    self.stays_locked = false;
                    return Event::RefusedStillOurs(why);
                }
                Err(e) => e,
            };
            let is_read = self.ops().conf.barrier().await.is_ok();
            if is_read && !self.is_ours() {
                return Event::RefusedNotOurs(format!("{why}; and it is not this node's any more: {e}"));
            }
            self.cx().log(format!("taking it back: {e}; asking again"));
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn is_ours(&self) -> bool {
        let before = &self.guest.own.value;
        let is_it = |own: &Ownership| own.owner == before.owner && own.epoch == before.epoch;
        self.ops().ownership(self.vmid()).is_ok_and(|own| own.as_ref().is_some_and(is_it))
    }

    async fn record_taken_back(&self) -> Result<(), OpsError> {
        let (ops, vmid) = (self.ops(), self.vmid());
        let guest = ops.own_guest(vmid).await?;
        if !self.is_ours() {
            return Err(OpsError::failed(format!("VM {vmid} was recovered meanwhile")));
        }
        let config = crate::guest::config::parse(&guest.config.value)?;
        let mut txn = store::txn(self.by.who, format!("VM {vmid}: not moved"));
        let own = Ownership { running: true, armed: self.guest.own.value.armed, ..guest.own.value.clone() };
        let record = store::bytes(&own)?;
        store::put_over(&mut txn, &paths::ownership(vmid), Some(guest.own.revision), record);
        ops.commit_unlocked(&guest, config, txn).await
    }

    /// The other side ends what it has, when it hears that nothing more comes.
    async fn end_target(&mut self) -> Event {
        if let Some(wire) = self.wire.take()
            && let Ok(Answer::Gone { why }) = wire.say(Say::Outcome, WHY).await
            && why != GIVEN_UP
        {
            self.cx().log(format!("the other cluster has ended it: {why}"));
        }
        Event::TargetEnded
    }

    async fn finish(&self, result: Result<(), String>) -> Result<(), OpsError> {
        let vmid = self.vmid();
        if let Some(why) = &self.unknown {
            let what = "what stands could go on beside what may run there";
            match self.ops().guests.state(vmid).await {
                None => self.cx().log(format!("its process here was ended: {what}")),
                Some(_) => self.cx().warn(format!(
                    "its process here could not be ended yet, and is when it answers. Don't unlock VM {vmid} before: {what}"
                )),
            }
            return self.by.conclude(Fate::Unknown(why.clone())).await;
        }
        match result {
            Ok(()) if self.ops().guests.state(vmid).await.is_some() => {
                self.cx().warn(format!(
                    "VM {vmid} runs there. Its process here, which stands, could not be ended yet: it stays locked until it is unlocked and \
                     removed"
                ));
                Ok(())
            }
            Ok(()) => self.by.conclude(Fate::There).await,
            Err(why) => {
                if !self.stays_locked {
                    self.ops().clear_lock(vmid).await;
                }
                Err(OpsError::failed(format!("migration aborted: {why}")))
            }
        }
    }
}
