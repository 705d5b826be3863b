//! Memory that the target of a move fetches, while the VM runs there already.
//!
//! ```text
//!  source  sends ─▶ no end ─▶ its CPUs are stopped, held ─▶ the hand-over is committed ─▶ the rest ─▶ serves ─────▶ all is fetched: ended
//!  target  waits ──────────────────────────────────────────────────────────────▶ runs on the commit, and fetches ─▶ whole
//! ```
//!
//! The commit comes before, since neither copy can go on alone after. A connection that breaks is made anew by the source, for as long as
//! both processes are there: also by a daemon that was started since, which finds its process serving. When that does not come about,
//! whichever of the two knows ends its own copy, and the other one's follows: the VM is as after a crash, and started again from its
//! disks by whatever starts VMs that have crashed.

use super::incoming::{ContinueRequest, Prepared};
use super::migrate::{Source, told};
use super::tunnel::{Tunnel, tunnel};
use crate::peers::call;
use crate::{Ops, OpsError};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stead_driver::guest::{GuestError, MigrationPhase, MigrationProgress, RunState};
use stead_guest::migration::Event;
use stead_model::{Epoch, NodeName, NodeRecord, Vmid};
use tokio::time::Instant;

/// What the stream is called that takes the place of one that has broken: the guest follows.
pub const STREAM: &str = "guest/fetch-stream/";
/// Asks a source whether its process still serves a copy.
pub const SERVES_CALL: &str = "guest/serves";
/// Asks a target whether its copy is still there.
pub const FETCHES_CALL: &str = "guest/fetches";

/// How long the devices' state may take.
const OPENS: Duration = Duration::from_secs(30);
/// How long a source tries to make a broken connection anew, and how long its target waits for that: longer.
const ANEW: Duration = Duration::from_secs(60);
const LOST: Duration = Duration::from_secs(90);
/// How long one attempt may take, and until the next one.
const ATTEMPT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(500);
/// How often the two look whether the other one is there. One that lost its power closes no connection.
const LOOK: Duration = Duration::from_secs(5);
/// How long another node may take to say what it knows.
const ASK: Duration = Duration::from_secs(3);

/// What a target keeps of a guest that may fetch: a daemon that is started later knows by it from whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    epoch: Epoch,
    source: NodeName,
}

impl Source<'_> {
    pub(super) fn may_be_fetched(&self) -> bool {
        self.postcopy.load(Ordering::Relaxed) > 0
    }

    /// It is sent as ever.
    pub(super) fn not_fetched(&self, why: &str) {
        self.postcopy.store(0, Ordering::Relaxed);
        self.cx.warn(format!(
            "memory that changes faster than it is sent can't be fetched in the end (postcopy): {why}"
        ));
    }

    /// What the target has said of it.
    pub(super) fn note_fetching(&self, prepared: Option<&Prepared>) {
        if self.may_be_fetched() && !prepared.is_some_and(|p| p.fetches) {
            let why = prepared.and_then(|p| p.why_not.clone());
            self.not_fetched(&format!(
                "node '{}': {}",
                self.target.name,
                why.as_deref().unwrap_or("its version does not know of it")
            ));
        }
    }

    /// Whether more rounds were made than are to be.
    pub(super) fn has_no_end(&self, now: &MigrationProgress) -> bool {
        let bound = self.postcopy.load(Ordering::Relaxed);
        bound > 0 && now.phase == MigrationPhase::Active && now.rounds > u64::from(bound)
    }

    /// Stops the VM for good, and waits until its sending waits.
    pub(super) async fn begin_fetching(&self) -> Event {
        let (vmid, guests) = (self.vmid(), &self.ops.guests);
        let begun = async {
            self.cx.log(format!(
                "memory changes faster than it is sent: node '{}' is to fetch what is left",
                self.target.name
            ));
            let fetches = guests.begin_fetching(vmid).await?;
            let mut seen = MigrationPhase::Active;
            loop {
                let now = tokio::select! {
                    now = guests.migration_changed(vmid, seen) => now?,
                    () = self.cx.cancelled() => return Ok(Event::CancelRequested),
                };
                seen = now.phase;
                match seen {
                    // After the commit it would be too late to find out.
                    MigrationPhase::Held if self.stream().as_ref().is_none_or(Tunnel::has_ended) => {
                        return Ok(Event::Failed("the connection is broken".to_owned()));
                    }
                    MigrationPhase::Held if fetches => return Ok(Event::Standing),
                    MigrationPhase::Held => return Ok(Event::Held),
                    seen if seen.is_terminal() => return Ok(self.ended(&now)),
                    _ => {}
                }
            }
        };
        begun.await.unwrap_or_else(|e: GuestError| Event::Failed(e.to_string()))
    }

    /// Has the devices' state go over.
    pub(super) async fn let_fetch(&self) -> Event {
        let (vmid, guests) = (self.vmid(), &self.ops.guests);
        let until = Instant::now() + OPENS;
        let opened = async {
            guests.send_rest(vmid).await?;
            let mut seen = MigrationPhase::Held;
            loop {
                let now = guests.migration_changed(vmid, seen).await?;
                seen = now.phase;
                match seen {
                    MigrationPhase::Fetching | MigrationPhase::Broken | MigrationPhase::Completed => {
                        return Ok(Event::Fetching);
                    }
                    seen if seen.is_terminal() => return Ok(self.ended(&now)),
                    _ if Instant::now() > until => {
                        let why = format!("its devices' state was not sent within {} s", OPENS.as_secs());
                        return Ok(Event::Failed(why));
                    }
                    _ => {}
                }
            }
        };
        opened.await.unwrap_or_else(|e: GuestError| Event::Failed(e.to_string()))
    }

    /// Sees all of it fetched.
    pub(super) async fn follow_fetching(&self) -> Event {
        let log = |line: String| self.cx.log(line);
        let serving = Serving {
            ops: self.ops,
            copy: self.copy_there(),
            target: &self.target,
            far: &self.far,
            log: &log,
        };
        let stream = self.stream().take();
        let mut served = pin!(serving.to_its_end(stream));
        let served = tokio::select! {
            served = &mut served => served,
            () = self.cx.cancelled() => {
                self.cx.log("it can't be stopped any more: the VM runs there, and needs what it has not fetched yet");
                served.await
            }
        };
        match served {
            Ok(now) => self.ended(&now),
            Err(why) => Event::Lost(why),
        }
    }
}

/// A source from which is fetched.
struct Serving<'a> {
    ops: &'a Ops,
    /// The copy that fetches.
    copy: ContinueRequest,
    target: &'a NodeRecord,
    far: &'a NodeRecord,
    log: &'a (dyn Fn(String) + Send + Sync),
}

impl Serving<'_> {
    /// Sees all of it fetched; else why that can't be.
    async fn to_its_end(&self, mut stream: Option<Tunnel>) -> Result<MigrationProgress, String> {
        let vmid = self.copy.vmid;
        let (mut seen, mut broken) = (MigrationPhase::Fetching, None);
        let (mut logged, mut looked) = (Instant::now(), Instant::now());
        loop {
            let now = match self.ops.guests.migration_changed(vmid, seen).await {
                Ok(now) => now,
                Err(e) if self.ops.guests.state(vmid).await.is_none() => {
                    return Err(format!("its old process has ended: {e}"));
                }
                // One that does not answer for a while is as one whose connection is broken.
                Err(e) => MigrationProgress {
                    phase: MigrationPhase::Broken,
                    error: Some(e.to_string()),
                    ..MigrationProgress::default()
                },
            };
            seen = now.phase;
            match seen {
                MigrationPhase::Completed => return Ok(now),
                MigrationPhase::Broken => {
                    let since = *broken.get_or_insert_with(|| {
                        (self.log)(format!(
                            "the connection to node '{}' is broken: it is made anew",
                            self.target.name
                        ));
                        Instant::now()
                    });
                    self.is_awaited().await?;
                    if since.elapsed() > ANEW {
                        return Err(format!(
                            "the connection could not be made anew within {} s",
                            ANEW.as_secs()
                        ));
                    }
                    drop(stream.take());
                    match self.join_again().await {
                        Ok(again) => stream = Some(again),
                        Err(e) => {
                            tracing::info!("guest {vmid}: its connection is not made anew yet: {e}");
                            tokio::time::sleep(AGAIN).await;
                        }
                    }
                }
                seen if seen.is_terminal() || seen == MigrationPhase::None => {
                    return Err(now
                        .error
                        .unwrap_or_else(|| format!("its old process says that it is {seen:?}")));
                }
                _ => broken = None,
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.is_awaited().await?;
            }
            if logged.elapsed() >= Duration::from_secs(1) && broken.is_none() {
                logged = Instant::now();
                (self.log)(told(&now));
            }
        }
    }

    /// An error where nobody waits for what it has any more.
    async fn is_awaited(&self) -> Result<(), String> {
        let ContinueRequest { vmid, epoch, .. } = self.copy;
        let own = self.ops.ownership(vmid).map_err(|e| e.to_string())?;
        if !own.is_some_and(|o| o.owner == self.target.name && o.epoch == epoch) {
            return Err("it is another's by now".to_owned());
        }
        // Silence is no answer.
        match call::<_, bool>(&*self.ops.peers, self.target, FETCHES_CALL, &self.copy, ASK).await {
            Ok(false) => Err(format!("its process on node '{}' has ended", self.target.name)),
            Ok(true) | Err(_) => Ok(()),
        }
    }

    /// One attempt.
    async fn join_again(&self) -> Result<Tunnel, OpsError> {
        let (vmid, guests) = (self.copy.vmid, &self.ops.guests);
        let path = self.ops.me.dir.join("run").join(format!("mig-{vmid}.sock"));
        let made = async {
            let stream = tunnel(self.ops, vmid, self.far, &path, &format!("{STREAM}{vmid}")).await?;
            guests.send_again(vmid, &path).await?;
            let until = Instant::now() + ATTEMPT;
            while guests.migration_changed(vmid, MigrationPhase::Broken).await?.phase
                == MigrationPhase::Broken
            {
                if Instant::now() > until || stream.has_ended() {
                    return Err(OpsError::failed("the other side does not take it".to_owned()));
                }
            }
            Ok(stream)
        };
        let made = made.await;
        let _ = std::fs::remove_file(&path);
        made
    }
}

impl Ops {
    /// A daemon that was started since takes up what an earlier one has left: a process of ours that another node's fetches from.
    pub(super) fn serve(self: &Arc<Self>, vmid: Vmid) {
        let ops = self.clone();
        tokio::spawn(async move {
            // Held to its end, as by a move.
            let Ok(_lock) = ops.guest_locks.lock(vmid).await else { return };
            if let Err(e) = ops.serve_now(vmid).await {
                tracing::error!("guest {vmid}: {e}");
            }
        });
    }

    async fn serve_now(&self, vmid: Vmid) -> Result<(), OpsError> {
        let serving = self.guests.state(vmid).await.filter(|p| p.state == RunState::Serving);
        let (Some(process), Some(own)) = (serving, self.ownership(vmid)?) else { return Ok(()) };
        if own.epoch != process.epoch.next() || own.owner == self.me.name {
            return Ok(());
        }
        let target = self.node_record(&own.owner)?.value;
        let network = self.datacenter()?.0.migration()?.network;
        let far = network.and_then(|network| target.within(&network)).unwrap_or_else(|| target.clone());
        let log = |line: String| tracing::info!("guest {vmid}: {line}");
        let copy = ContinueRequest { vmid, epoch: own.epoch, attempt: 0 };
        let serving = Serving { ops: self, copy, target: &target, far: &far, log: &log };
        let served = serving.to_its_end(None).await;
        self.destroy_copy(vmid).await?;
        served.map(drop).map_err(|why| {
            OpsError::failed(format!(
                "node '{}' has not fetched all of its memory, and never will: {why}",
                target.name
            ))
        })
    }

    /// Whether a process of ours serves that copy.
    pub async fn serves(&self, copy: &ContinueRequest) -> bool {
        self.guests.state(copy.vmid).await.is_some_and(|p| p.epoch.next() == copy.epoch)
    }

    /// Whether that copy is here.
    pub async fn fetches(&self, copy: &ContinueRequest) -> bool {
        self.guests.state(copy.vmid).await.is_some_and(|p| p.epoch == copy.epoch)
    }

    fn fetch_note(&self, vmid: Vmid) -> PathBuf {
        self.me.dir.join("run").join(format!("fetch-{vmid}.json"))
    }

    /// From whom a copy of ours may fetch.
    fn fetch_source(&self, vmid: Vmid, epoch: Epoch) -> Option<NodeName> {
        let text = std::fs::read(self.fetch_note(vmid)).ok()?;
        let note: Note = serde_json::from_slice(&text).ok()?;
        (note.epoch == epoch).then_some(note.source)
    }

    /// Has a copy that waits be ready to fetch, and notes from whom.
    pub(super) async fn may_fetch(
        &self,
        vmid: Vmid,
        epoch: Epoch,
        source: &NodeName,
    ) -> Result<(), OpsError> {
        self.guests.can_fetch(vmid).await?;
        let path = self.fetch_note(vmid);
        let failed =
            |e: &dyn std::fmt::Display| OpsError::failed(format!("could not write {}: {e}", path.display()));
        let note = serde_json::to_vec(&Note { epoch, source: source.clone() }).map_err(|e| failed(&e))?;
        std::fs::write(&path, note).map_err(|e| failed(&e))
    }

    /// Where a stream goes that takes the place of one that has broken, for the node from which is fetched.
    pub async fn fetch_inlet(&self, from: &NodeName, vmid: Vmid) -> Result<tokio::net::UnixStream, OpsError> {
        let process = self.running(vmid).await?;
        if self.fetch_source(vmid, process.epoch).as_ref() != Some(from) {
            return Err(OpsError::failed(format!("VM {vmid} fetches nothing from node '{from}'")));
        }
        let path = self.guests.fetch_again(vmid).await?;
        tokio::net::UnixStream::connect(&path)
            .await
            .map_err(|e| OpsError::failed(format!("could not connect to VM {vmid}, which fetches: {e}")))
    }

    /// Watches a guest of ours that may fetch, until it is whole, or is ended since it never can be. Repeating it is no error: one
    /// task does it.
    pub(super) fn see_it_fetched(self: &Arc<Self>, vmid: Vmid, epoch: Epoch) {
        let Some(source) = self.fetch_source(vmid, epoch) else { return };
        if !self.guest_locks.incoming.begin_watch(vmid, epoch) {
            return;
        }
        let ops = self.clone();
        tokio::spawn(async move {
            let copy = ContinueRequest { vmid, epoch, attempt: 0 };
            let ended = match ops.fetched(&copy, &source).await {
                Ok(()) => Ok(()),
                Err(why) => {
                    tracing::error!(
                        "guest {vmid}: what it has not fetched of its memory from node '{source}' is lost ({why}): it is ended, and is \
                         as after a crash"
                    );
                    ops.end_torn(&copy).await
                }
            };
            match ended {
                Ok(()) => drop(std::fs::remove_file(ops.fetch_note(vmid))),
                // It is watched anew by the next round of reconciliation.
                Err(e) => tracing::error!("guest {vmid}: it could not be ended: {e}"),
            }
            ops.guest_locks.incoming.end_watch(vmid, epoch);
        });
    }

    /// Refuses what takes a guest's memory from one that has not all of it.
    pub(super) async fn is_whole(&self, vmid: Vmid) -> Result<(), OpsError> {
        // Whoever watches hears a moment later that it has all.
        if !self.guest_locks.incoming.is_watched(vmid)
            || self.guests.migration(vmid).await?.phase.is_terminal()
        {
            return Ok(());
        }
        Err(OpsError::failed(format!(
            "VM {vmid} still fetches memory from the node that it came from: try again when it has all of it"
        )))
    }

    /// Returns when a guest is whole, or gone; an error says why it never will be whole.
    async fn fetched(&self, copy: &ContinueRequest, source: &NodeName) -> Result<(), String> {
        let vmid = copy.vmid;
        let (mut seen, mut broken) = (MigrationPhase::None, None);
        let (mut looked, mut alone) = (Instant::now(), false);
        loop {
            let now = self.guests.migration_changed(vmid, seen).await;
            let Some(process) = self.guests.state(vmid).await.filter(|p| p.epoch == copy.epoch) else {
                return Ok(());
            };
            match now {
                Ok(now) if now.phase.is_terminal() || now.phase == MigrationPhase::None => return Ok(()),
                Ok(now) if now.phase != MigrationPhase::Broken => {
                    (seen, broken) = (now.phase, None);
                    if looked.elapsed() >= LOOK {
                        looked = Instant::now();
                        let is_gone = self.is_gone(copy, source).await;
                        // A source that has served to its end ends a moment before that is seen here.
                        if is_gone && alone {
                            return Err("the process that it fetches from is gone".to_owned());
                        }
                        alone = is_gone;
                    }
                    continue;
                }
                // Frozen, with the lease of this node.
                Err(_) if process.state == RunState::Paused => broken = None,
                Ok(_) | Err(_) => {
                    let since = *broken.get_or_insert_with(Instant::now);
                    if since.elapsed() > LOST {
                        return Err(format!("nothing came for {} s", LOST.as_secs()));
                    }
                    if self.is_gone(copy, source).await {
                        return Err("the process that it fetched from is gone".to_owned());
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether a node's process from which a copy fetches is known not to be there. Silence is no answer.
    async fn is_gone(&self, copy: &ContinueRequest, source: &NodeName) -> bool {
        let Ok(record) = self.node_record(source) else { return true };
        // One that is lost has ended its processes, or has frozen them for good.
        record.value.state.is_lost()
            || matches!(call::<_, bool>(&*self.peers, &record.value, SERVES_CALL, copy, ASK).await, Ok(false))
    }

    /// Ends a copy of ours whose memory is torn.
    async fn end_torn(&self, copy: &ContinueRequest) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(copy.vmid).await?;
        if !self.fetches(copy).await {
            return Ok(());
        }
        match self.guests.kill(copy.vmid).await {
            Ok(()) | Err(GuestError::NotRunning(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
