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
use stead_driver::guest::{GuestError, GuestProcess, MigrationPhase, MigrationProgress, RunState};
use stead_guest::migration::Event;
use stead_model::{Epoch, NodeName, NodeRecord, Ownership, Vmid};
use tokio::time::Instant;

/// What the stream is called that takes the place of one that has broken: the guest follows.
pub const STREAM: &str = "guest/fetch-stream/";
/// Asks a source whether its process still serves a copy.
pub const SERVES_CALL: &str = "guest/serves";
/// Asks a target whether its copy is still there.
pub const FETCHES_CALL: &str = "guest/fetches";

/// How long a VM may stand before it is handed over.
const STANDS: Duration = Duration::from_secs(15);
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
            let fetches = tokio::select! {
                begun = guests.begin_fetching(vmid) => begun?,
                () = self.cx.cancelled() => return Ok(Event::CancelRequested),
            };
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
        // The VM stands meanwhile. Until the commit it can go on here.
        match tokio::time::timeout(STANDS, begun).await {
            Ok(begun) => begun.unwrap_or_else(|e: GuestError| Event::Failed(e.to_string())),
            Err(_) => Event::Failed(format!("it was not ready to be fetched within {} s", STANDS.as_secs())),
        }
    }

    /// Has the devices' state go over. The VM is the target's, and all that it has is here: a monitor that does not answer is no reason to
    /// give it up while its process is there.
    pub(super) async fn let_fetch(&self) -> Event {
        let (vmid, guests) = (self.vmid(), &self.ops.guests);
        let (mut seen, mut answered) = (MigrationPhase::Held, Instant::now());
        let mut told: Option<Instant> = None;
        loop {
            let asked = async {
                if told.is_none() {
                    guests.send_rest(vmid).await?;
                    told = Some(Instant::now());
                }
                guests.migration_changed(vmid, seen).await
            };
            match asked.await {
                Ok(now) => {
                    (seen, answered) = (now.phase, Instant::now());
                    match seen {
                        MigrationPhase::Fetching | MigrationPhase::Broken | MigrationPhase::Completed => {
                            return Event::Fetching;
                        }
                        seen if seen.is_terminal() => return self.ended(&now),
                        _ if told.is_some_and(|told| told.elapsed() > OPENS) => {
                            let why = format!("its devices' state was not sent within {} s", OPENS.as_secs());
                            return Event::Failed(why);
                        }
                        _ => {}
                    }
                }
                Err(e) if guests.state(vmid).await.is_none() => {
                    return Event::Failed(format!("its old process has ended: {e}"));
                }
                Err(e) if answered.elapsed() > ANEW => return Event::Failed(e.to_string()),
                Err(e) => {
                    tracing::info!("guest {vmid}: it is told again to go over: {e}");
                    tokio::time::sleep(AGAIN).await;
                    // The word may have come to it, though its answer did not come back.
                    let goes =
                        guests.migration(vmid).await.is_ok_and(|now| now.phase != MigrationPhase::Held);
                    told = goes.then(|| told.unwrap_or_else(Instant::now));
                }
            }
        }
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

/// An error when a connection has been broken for too long.
fn within_anew(since: Instant) -> Result<(), String> {
    if since.elapsed() <= ANEW {
        return Ok(());
    }
    Err(format!("the connection could not be made anew within {} s", ANEW.as_secs()))
}

/// Whether a process here is one that the guest's owner fetches from, as far as is known: it says so, or it says nothing now, or is
/// frozen with the lease of this node, and was stopped to be fetched from.
pub(super) fn may_serve(
    state: RunState,
    epoch: Epoch,
    stands: bool,
    own: Option<&Ownership>,
    me: &NodeName,
) -> bool {
    let is_handed = own.is_some_and(|o| o.owner != *me && o.epoch == epoch.next() && o.running);
    let serves = match state {
        RunState::Serving => true,
        RunState::Paused | RunState::Unresponsive => stands,
        _ => false,
    };
    is_handed && serves
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
        let mut unknown = None;
        loop {
            let now = match self.ops.guests.migration_changed(vmid, seen).await {
                Ok(now) => now,
                Err(e) => {
                    self.is_silent(&e, stream.as_ref(), &mut broken).await?;
                    continue;
                }
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
                    within_anew(since)?;
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
                MigrationPhase::Fetching => (broken, unknown) = (None, None),
                // Who was to have it go over has ended, and its connection with it.
                _ if unknown.get_or_insert_with(Instant::now).elapsed() > OPENS => {
                    return Err(format!("its old process says that it is {seen:?}, and nobody fetches"));
                }
                _ => {}
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

    /// Waits a little for a process that does not answer, as one that is frozen with the lease of its node. While its connection is there
    /// it may serve all the same, and is left alone.
    async fn is_silent(
        &self,
        why: &GuestError,
        stream: Option<&Tunnel>,
        broken: &mut Option<Instant>,
    ) -> Result<(), String> {
        if self.ops.guests.state(self.copy.vmid).await.is_none() {
            return Err(format!("its old process has ended: {why}"));
        }
        self.is_awaited().await?;
        if stream.is_none_or(Tunnel::has_ended) {
            within_anew(*broken.get_or_insert_with(Instant::now))?;
        }
        tokio::time::sleep(AGAIN).await;
        Ok(())
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
        let (Some(process), Some(own)) = (self.guests.state(vmid).await, self.ownership(vmid)?) else {
            return Ok(());
        };
        if !self.may_be_fetched_from(&process) {
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

    /// Whether another node's guest may fetch memory from a process of ours.
    pub(crate) fn may_be_fetched_from(&self, process: &GuestProcess) -> bool {
        let own = self.ownership(process.vmid).ok().flatten();
        may_serve(process.state, process.epoch, process.stands, own.as_ref(), &self.me.name)
    }

    /// The same, or it will be: its CPUs stand for that, it is another node's, and QEMU has not begun yet.
    pub(crate) fn is_or_will_be_fetched_from(&self, process: &GuestProcess) -> bool {
        let own = self.ownership(process.vmid).ok().flatten();
        let handed_over = own
            .is_some_and(|own| own.running && own.owner != self.me.name && own.epoch == process.epoch.next());
        self.may_be_fetched_from(process) || (process.stands && handed_over)
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

    /// What an earlier copy was to fetch is none of the next one's.
    pub(super) fn forget_fetching(&self, vmid: Vmid) {
        if let Err(e) = std::fs::remove_file(self.fetch_note(vmid))
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("guest {vmid}: {} could not be removed: {e}", self.fetch_note(vmid).display());
        }
    }

    /// Whether a copy of ours may fetch, or is not known to be whole yet.
    pub(super) fn is_to_fetch(&self, vmid: Vmid, epoch: Epoch) -> bool {
        self.fetch_source(vmid, epoch).is_some()
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
                Ok(()) => ops.end_fetching(&copy).await,
                // It is watched anew by the next round of reconciliation.
                Err(e) => tracing::error!("guest {vmid}: it could not be ended: {e}"),
            }
            ops.guest_locks.incoming.end_watch(vmid, epoch);
        });
    }

    /// A copy is whole, or gone: nobody is to take it for one that fetches.
    async fn end_fetching(&self, copy: &ContinueRequest) {
        let vmid = copy.vmid;
        // Whoever registers it holds its mutex.
        let Ok(_lock) = self.guest_locks.lock(vmid).await else { return };
        if self.fetch_source(vmid, copy.epoch).is_none() {
            return;
        }
        let told = async {
            let known = self.fence.status().await?.guests;
            if self.fetches(copy).await && known.iter().any(|g| (g.0, g.1) == (vmid, copy.epoch)) {
                self.fence.register(self.guests.prepare(vmid, copy.epoch).await?).await?;
            }
            Ok::<_, OpsError>(())
        };
        match told.await {
            Ok(()) => self.forget_fetching(vmid),
            // It would be ended sooner than others if it hung when the lease ends, until the next round of reconciliation tells it.
            Err(e) => {
                tracing::warn!(
                    "guest {vmid}: the fence process was not told that it has all of its memory: {e}"
                );
            }
        }
    }

    /// Refuses what takes a guest's memory from one that has not all of it.
    pub(super) async fn is_whole(&self, vmid: Vmid) -> Result<(), OpsError> {
        // By what is on disk: also before anybody watches it again.
        let process = self.guests.state(vmid).await;
        if !process.is_some_and(|p| self.is_to_fetch(vmid, p.epoch)) {
            return Ok(());
        }
        let phase = self.guests.migration(vmid).await?.phase;
        if phase.is_terminal() || phase == MigrationPhase::None {
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
        let mut fetched = false;
        loop {
            let now = self.guests.migration_changed(vmid, seen).await;
            let Some(process) = self.guests.state(vmid).await.filter(|p| p.epoch == copy.epoch) else {
                return Ok(());
            };
            match now {
                Ok(now) if now.phase.is_terminal() || now.phase == MigrationPhase::None => return Ok(()),
                // It is whole, and sent on already.
                Ok(now) if fetched && matches!(now.phase, MigrationPhase::Active | MigrationPhase::Held) => {
                    return Ok(());
                }
                Ok(now) if now.phase != MigrationPhase::Broken => {
                    fetched |= now.phase == MigrationPhase::Fetching;
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
