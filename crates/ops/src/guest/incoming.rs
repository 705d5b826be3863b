//! Migration, seen from the target: a copy that waits, and runs only on the commit that makes it the owner's.
//!
//! It is continued under the guest's mutex, and only while it has never run here, which its driver keeps on disk. The source's word
//! may come late: the guest may have been paused by its user since, or sent on to a third node, and a copy that was sent on must
//! never run again unless its hand-over was taken back. For the same reason a word to end a copy names the attempt that made it.

use super::loose;
use crate::peers::call;
use crate::store::GuestAt;
use crate::{Ops, OpsError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_driver::fence::Registration;
use stead_driver::guest::{Incoming, RunState};
use stead_guest::copy::{Claim, claim};
use stead_model::vmconfig::Disk;
use stead_model::{Epoch, NodeName, Ownership, Vmid, VolumeId, paths};

/// How often the source is asked whether it still migrates, while no commit comes.
const ASK_SOURCE: Duration = Duration::from_secs(5);

/// The source's request to prepare a copy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IncomingRequest {
    /// The guest.
    pub vmid: Vmid,
    /// The ownership that the hand-over will commit.
    pub epoch: Epoch,
    /// Who sends.
    pub source: NodeName,
    /// The configuration that runs.
    pub config: String,
    /// What the processes must have in common.
    pub incoming: Incoming,
    /// HA maintains it: the fence process must know it before it is executed.
    pub ha: bool,
    /// Names this attempt: each under the same ownership makes a copy of the same epoch.
    #[serde(default)]
    pub attempt: u64,
    /// The options of the disks that it is to lend while it waits.
    #[serde(default)]
    pub lends: Vec<String>,
    /// Its user has paused it, and it stays so.
    #[serde(default)]
    pub paused: bool,
    /// What is left of its memory may be fetched while it runs here.
    #[serde(default)]
    pub fetch: bool,
}

/// What a prepared copy waits for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepared {
    /// By how many streams its memory may come.
    pub streams: u8,
    /// It can fetch memory while it runs.
    #[serde(default)]
    pub fetches: bool,
    /// Why it can't, if it was to.
    #[serde(default)]
    pub why_not: Option<String>,
}

/// Names a copy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContinueRequest {
    /// The guest.
    pub vmid: Vmid,
    /// The ownership that the hand-over commits.
    pub epoch: Epoch,
    /// Whose copy it is, as the source has named it.
    #[serde(default)]
    pub attempt: u64,
}

/// A move to this node that was announced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Move {
    epoch: Epoch,
    source: NodeName,
    /// As the source has named it; none if this daemon has not heard it.
    attempt: Option<u64>,
    /// Somebody watches the record for it.
    followed: bool,
    /// The guest was paused by its user when it was announced. What a daemon has not heard of is not.
    paused: bool,
}

/// The latest move of each guest to this node: who sends, and that one task at most follows it. What is over is kept
/// until the next move of that guest, since its source may still ask.
#[derive(Debug, Default)]
pub struct Incomings {
    moves: Mutex<BTreeMap<Vmid, Move>>,
    /// Copies of which somebody sees all of their memory come.
    watched: Mutex<BTreeSet<(Vmid, Epoch)>>,
}

impl Incomings {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Vmid, Move>> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> MutexGuard<'_, BTreeSet<(Vmid, Epoch)>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody watches it yet; whoever asks does from now on.
    pub(super) fn begin_watch(&self, vmid: Vmid, epoch: Epoch) -> bool {
        self.watched().insert((vmid, epoch))
    }

    /// Nobody watches it any more.
    pub(super) fn end_watch(&self, vmid: Vmid, epoch: Epoch) {
        self.watched().remove(&(vmid, epoch));
    }

    /// Notes a move that its source has announced.
    fn announce(&self, vmid: Vmid, epoch: Epoch, source: &NodeName, attempt: u64, paused: bool) {
        let mut all = self.all();
        let followed = all.get(&vmid).is_some_and(|m| m.epoch == epoch && m.followed);
        all.insert(vmid, Move { epoch, source: source.clone(), attempt: Some(attempt), followed, paused });
    }

    /// Notes a move; none if it is followed already.
    fn follow(&self, vmid: Vmid, epoch: Epoch, source: &NodeName) -> Option<Following<'_>> {
        let mut all = self.all();
        let known = all.get(&vmid).filter(|m| m.epoch == epoch);
        if known.is_some_and(|m| m.followed) {
            return None;
        }
        let (attempt, paused) = (known.and_then(|m| m.attempt), known.is_some_and(|m| m.paused));
        all.insert(vmid, Move { epoch, source: source.clone(), attempt, followed: true, paused });
        Some(Following { all: self, vmid, epoch })
    }

    /// Whether a word about an attempt is about the latest one; where this daemon has heard of none, it may be.
    fn is_latest(&self, vmid: Vmid, epoch: Epoch, attempt: u64) -> bool {
        let known = self.all().get(&vmid).filter(|m| m.epoch == epoch).and_then(|m| m.attempt);
        known.is_none_or(|latest| latest == attempt)
    }

    /// Whether it is to stay paused.
    fn stays_paused(&self, vmid: Vmid, epoch: Epoch) -> bool {
        self.all().get(&vmid).is_some_and(|m| m.epoch == epoch && m.paused)
    }

    /// Who sends a guest under that epoch.
    pub(super) fn source(&self, vmid: Vmid, epoch: Epoch) -> Option<NodeName> {
        self.all().get(&vmid).filter(|m| m.epoch == epoch).map(|m| m.source.clone())
    }
}

/// A move that is followed, until this is dropped.
struct Following<'a> {
    all: &'a Incomings,
    vmid: Vmid,
    epoch: Epoch,
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        if let Some(m) = self.all.all().get_mut(&self.vmid).filter(|m| m.epoch == self.epoch) {
            m.followed = false;
        }
    }
}

/// Whether `from` may speak of a move to this node: it is the one that sends.
fn may_speak(from: &NodeName, announced: Option<&NodeName>, own: Option<&Ownership>, epoch: Epoch) -> bool {
    match announced {
        Some(source) => source == from,
        // A daemon that was started since knows it by the record alone.
        None => own.is_some_and(|o| o.owner == *from && o.epoch.next() == epoch),
    }
}

/// What the record says of a copy that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is the owner's: run.
    Ours,
    /// The hand-over may still come.
    Wait,
    /// It can never be the owner's any more.
    Never,
}

fn fate(own: Option<&Ownership>, me: &NodeName, epoch: Epoch) -> Fate {
    match claim(own, me, epoch) {
        // A hand-over of a running guest says so. A recovery, or a move of a stopped guest, may have made the same owner
        // and epoch: then this copy's memory is older than the disk.
        Claim::Owner if own.is_some_and(|o| o.running) => Fate::Ours,
        Claim::Heir => Fate::Wait,
        Claim::Owner | Claim::Old => Fate::Never,
    }
}

impl Ops {
    /// Prepares a copy: registered with the fence process, then executed with stopped CPUs.
    pub async fn incoming(self: &Arc<Self>, mut rq: IncomingRequest) -> Result<Prepared, OpsError> {
        let _lock = self.guest_locks.lock(rq.vmid).await?;
        self.conf.barrier().await?;
        let mut guest = self.guest_at(rq.vmid)?;
        if guest.own.value.owner != rq.source || guest.own.value.epoch.next() != rq.epoch {
            return Err(OpsError::failed(format!(
                "guest {} belongs to '{}' under epoch {}, not to '{}' before epoch {}",
                rq.vmid, guest.own.value.owner, guest.own.value.epoch, rq.source, rq.epoch
            )));
        }
        let me = self.node_record(&self.me.name)?.value;
        if me.state.is_lost() || *me.state.boot() != self.me.boot {
            return Err(OpsError::failed(format!(
                "node '{}' has not re-entered the cluster yet",
                self.me.name
            )));
        }
        self.guest_locks.incoming.announce(rq.vmid, rq.epoch, &rq.source, rq.attempt, rq.paused);
        let lent = self.may_lend(&rq)?;
        guest.config.value = rq.config;
        guest.own.value.epoch = rq.epoch;
        let streams = self.guests.streams(None, rq.incoming.streams).await;
        rq.incoming.streams = streams;
        self.launch_waiting(&guest, rq.incoming, (rq.ha, rq.fetch), &lent).await?;
        let (fetches, why_not) = match rq.fetch {
            false => (false, None),
            true => match self.may_fetch(rq.vmid, rq.epoch, &rq.source).await {
                Ok(()) => (true, None),
                Err(e) => {
                    self.will_not_fetch(rq.vmid, rq.epoch, rq.ha).await?;
                    (false, Some(e.to_string()))
                }
            },
        };
        self.await_handover(rq.vmid, rq.epoch, rq.source);
        Ok(Prepared { streams, fetches, why_not })
    }

    /// It was registered as one that may fetch memory, which it can't: it is no other than any.
    async fn will_not_fetch(&self, vmid: Vmid, epoch: Epoch, ha: bool) -> Result<(), OpsError> {
        if !ha {
            return Ok(());
        }
        let told =
            async { Ok::<_, OpsError>(self.fence.register(self.guests.prepare(vmid, epoch).await?).await?) };
        if let Err(e) = told.await {
            self.destroy_copy(vmid).await?;
            return Err(e);
        }
        Ok(())
    }

    /// Executes a process that waits for the state of a guest, registered before where it is HA's, and has it lend disks. `fetches`:
    /// it may fetch memory while it runs. After an error nothing of it is left.
    pub(super) async fn launch_waiting(
        &self,
        guest: &GuestAt,
        incoming: Incoming,
        (ha, fetches): (bool, bool),
        lends: &[String],
    ) -> Result<(), OpsError> {
        let (vmid, epoch) = (guest.vmid, guest.own.value.epoch);
        let launch = self.launch_spec(guest, Some(incoming)).await?;
        self.forget_fetching(vmid);
        let registration = self.guests.prepare(vmid, epoch).await?;
        if ha {
            // From the first moment on: one that fetches may be beyond saying so.
            self.fence.register(Registration { fetches, ..registration }).await?;
        }
        if let Err(e) = self.guests.launch(launch).await {
            // Nothing was executed or nothing of it is left.
            let _ = self.fence.forget(vmid).await;
            return Err(e.into());
        }
        if !lends.is_empty()
            && let Err(e) = self.guests.lend_disks(vmid, lends).await
        {
            self.destroy_copy(vmid).await?;
            return Err(e.into());
        }
        Ok(())
    }

    /// Refuses a node that speaks of a move which is another's.
    pub fn check_source(&self, from: &NodeName, vmid: Vmid, epoch: Epoch) -> Result<(), OpsError> {
        let own = self.ownership(vmid)?;
        if may_speak(from, self.guest_locks.incoming.source(vmid, epoch).as_ref(), own.as_ref(), epoch) {
            return Ok(());
        }
        Err(OpsError::failed(format!("node '{from}' does not move guest {vmid} here under epoch {epoch}")))
    }

    /// Where the stream of a prepared copy goes, for the node that sends it.
    pub async fn migration_inlet(
        &self,
        from: &NodeName,
        vmid: Vmid,
    ) -> Result<tokio::net::UnixStream, OpsError> {
        self.check_source(from, vmid, self.running(vmid).await?.epoch)?;
        let path = self.guests.migration_inlet(vmid).await?;
        tokio::net::UnixStream::connect(&path)
            .await
            .map_err(|e| OpsError::failed(format!("could not connect to the waiting VM {vmid}: {e}")))
    }

    /// Where the disks of a prepared copy are written, for the node that sends them.
    pub async fn disk_inlet(&self, from: &NodeName, vmid: Vmid) -> Result<tokio::net::UnixStream, OpsError> {
        self.check_source(from, vmid, self.running(vmid).await?.epoch)?;
        let path = self.guests.disk_inlet(vmid).await?;
        tokio::net::UnixStream::connect(&path).await.map_err(|e| {
            OpsError::failed(format!("could not connect to the disks of the waiting VM {vmid}: {e}"))
        })
    }

    /// The disks that a copy is to lend: on volumes that this node has made for that source alone.
    fn may_lend(&self, rq: &IncomingRequest) -> Result<Vec<String>, OpsError> {
        if rq.lends.is_empty() {
            return Ok(vec![]);
        }
        let made = self.conf.view(|t| loose::of(t, &self.me.name, rq.vmid))?.map(|found| found.value);
        let made = made.filter(|made| made.source.as_ref() == Some(&rq.source) && !made.claimed);
        let made = made.map(|made| made.volumes).unwrap_or_default();
        let disks = super::config::parse(&rq.config)?.current.disks()?;
        for key in &rq.lends {
            let volume = disks.iter().find(|d| d.key == *key).and_then(Disk::volume);
            if !volume.is_some_and(|v| made.iter().any(|m| m.is_same(v))) {
                return Err(OpsError::failed(format!(
                    "disk '{key}' of guest {} is on nothing that node '{}' has made for node '{}'",
                    rq.vmid, self.me.name, rq.source
                )));
            }
        }
        Ok(rq.lends.clone())
    }

    /// The source has sent all of the disks: nobody writes them any more until the copy runs.
    pub async fn disks_sent(&self, copy: &ContinueRequest) -> Result<(), OpsError> {
        let vmid = copy.vmid;
        let process = self.running(vmid).await?;
        if process.epoch != copy.epoch || !self.guest_locks.incoming.is_latest(vmid, copy.epoch, copy.attempt)
        {
            return Err(OpsError::failed(format!(
                "VM {vmid} waits for another move under epoch {}",
                process.epoch
            )));
        }
        self.guests.end_lending(vmid).await?;
        // Also of a disk whose own options have nothing flushed: the source's is removed soon.
        let made = self.conf.view(|t| loose::of(t, &self.me.name, vmid))?.map(|found| found.value.volumes);
        self.keep_on_disk(&made.unwrap_or_default()).await
    }

    /// Has what was written of volumes survive a power cut.
    pub(super) async fn keep_on_disk(&self, volumes: &[VolumeId]) -> Result<(), OpsError> {
        for volume in volumes {
            let path = self.resolve_volume(volume).await?.path;
            let kept = move || std::fs::File::open(&path)?.sync_all();
            let kept =
                tokio::task::spawn_blocking(kept).await.map_err(|e| OpsError::failed(e.to_string()))?;
            kept.map_err(|e| OpsError::failed(format!("'{volume}' could not be kept on disk: {e}")))?;
        }
        Ok(())
    }

    /// Watches the record of a copy that waits: continues it on the commit, ends it when that can't come. Repeating it is
    /// no error: one task does it.
    pub fn await_handover(self: &Arc<Self>, vmid: Vmid, epoch: Epoch, source: NodeName) {
        let ops = self.clone();
        tokio::spawn(async move {
            let Some(_following) = ops.guest_locks.incoming.follow(vmid, epoch, &source) else { return };
            if let Err(e) = ops.follow_handover(vmid, epoch, &source).await {
                tracing::error!("guest {vmid}: incoming copy of epoch {epoch}: {e}");
            }
        });
    }

    async fn follow_handover(
        self: &Arc<Self>,
        vmid: Vmid,
        epoch: Epoch,
        source: &NodeName,
    ) -> Result<(), OpsError> {
        let mut watch = self.conf.watch();
        let path = paths::ownership(vmid);
        loop {
            match self.fate_of(vmid, epoch)? {
                Fate::Ours => {
                    // One that is to fetch is its own before it has what it runs by.
                    self.see_it_fetched(vmid, epoch);
                    match self.continue_incoming(vmid, epoch).await {
                        Ok(()) => return Ok(()),
                        Err(e) => tracing::warn!(
                            "guest {vmid}: incoming copy of epoch {epoch} is not continued yet: {e}"
                        ),
                    }
                }
                Fate::Never => return self.end_incoming(vmid, epoch).await,
                Fate::Wait => {}
            }
            if self.guests.state(vmid).await.is_none_or(|p| p.epoch != epoch) {
                return Ok(());
            }
            let changed = async {
                loop {
                    match watch.next().await {
                        Some(event) if !crate::store::touches(&event, &path) => {}
                        _ => return,
                    }
                }
            };
            if tokio::time::timeout(ASK_SOURCE, changed).await.is_err()
                && !self.source_still_sends(vmid, source).await
            {
                // It has given up: the record decides.
                match self.end_incoming(vmid, epoch).await {
                    Ok(()) => return Ok(()),
                    // Its own after all, or nobody can tell now.
                    Err(e) => tracing::debug!("guest {vmid}: incoming copy of epoch {epoch} is kept: {e}"),
                }
            }
        }
    }

    fn fate_of(&self, vmid: Vmid, epoch: Epoch) -> Result<Fate, OpsError> {
        match fate(self.ownership(vmid)?.as_ref(), &self.me.name, epoch) {
            // Handed over was its memory on disk, and this copy is of an earlier move that came to nothing.
            Fate::Ours if super::suspend::is_saved(&self.guest_at(vmid)?) => Ok(Fate::Never),
            fate => Ok(fate),
        }
    }

    /// Whether the source says that it migrates the guest. Silence counts as yes: it may be committing.
    pub(super) async fn source_still_sends(&self, vmid: Vmid, source: &NodeName) -> bool {
        let Ok(record) = self.node_record(source) else { return false };
        if record.value.state.is_lost() {
            return false;
        }
        let limit = Duration::from_secs(3);
        call::<_, bool>(&*self.peers, &record.value, "guest/migrating", &vmid, limit).await.unwrap_or(true)
    }

    /// Continues a copy whose hand-over is committed. Repeating it is no error, and does nothing to a guest that has run here.
    pub async fn continue_incoming(self: &Arc<Self>, vmid: Vmid, epoch: Epoch) -> Result<(), OpsError> {
        if self.fate_of(vmid, epoch)? != Fate::Ours {
            self.conf.barrier().await?;
        }
        self.await_received(vmid).await?;
        // Whoever sends it on holds the mutex, for as long as it is open whose it is.
        let _lock = self.guest_locks.lock(vmid).await?;
        if self.fate_of(vmid, epoch)? != Fate::Ours {
            return Err(OpsError::failed(format!("guest {vmid} was not handed over under epoch {epoch}")));
        }
        let guest = self.guest_at(vmid)?;
        let process = self.running(vmid).await?;
        if process.epoch != epoch {
            return Err(OpsError::failed(format!("VM {vmid} runs under epoch {}", process.epoch)));
        }
        let paused = self.guest_locks.incoming.stays_paused(vmid, epoch);
        match process.state {
            RunState::Running => return Ok(()),
            RunState::Paused if paused => return Ok(()),
            RunState::Received if paused => self.guests.pause(vmid).await?,
            RunState::Received if guest.own.value.armed => self.run_under_lease(vmid, epoch).await?,
            RunState::Received => self.guests.resume(vmid).await?,
            other => {
                return Err(OpsError::failed(format!(
                    "VM {vmid} is {other:?}: only a copy that has never run here is continued"
                )));
            }
        }
        tracing::info!("guest {vmid} runs here under epoch {epoch}");
        self.see_it_fetched(vmid, epoch);
        self.flush.now().await;
        Ok(())
    }

    /// The source gives an attempt up. What it says of an earlier one comes too late to matter.
    pub async fn abort_incoming(&self, vmid: Vmid, epoch: Epoch, attempt: u64) -> Result<(), OpsError> {
        if self.guest_locks.incoming.is_latest(vmid, epoch, attempt) {
            return self.end_incoming(vmid, epoch).await;
        }
        Ok(())
    }

    /// Waits until the process has taken all of its state.
    pub(super) async fn await_received(&self, vmid: Vmid) -> Result<(), OpsError> {
        let mut events = self.guests.events();
        let received = async {
            while self.guests.state(vmid).await.is_some_and(|p| p.state == RunState::Inmigrate) {
                // An event, or having missed some: ask again.
                let _ = tokio::time::timeout(Duration::from_millis(200), events.recv()).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(15), received)
            .await
            .map_err(|_| OpsError::failed(format!("VM {vmid} has not received all of its state")))
    }

    /// Ends a copy that never ran. That it still waits is read as new as any commit before: the word of a source may come late,
    /// when a later move of the same guest has been handed over.
    pub async fn end_incoming(&self, vmid: Vmid, epoch: Epoch) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        if self.fate_of(vmid, epoch)? == Fate::Wait {
            self.conf.barrier().await?;
        }
        if self.fate_of(vmid, epoch)? == Fate::Ours {
            return Err(OpsError::failed(format!("guest {vmid} is this node's: its copy is not ended")));
        }
        if self.guests.state(vmid).await.is_none_or(|p| p.epoch != epoch) {
            return Ok(());
        }
        if self.ownership(vmid)?.is_some_and(|own| own.owner == self.me.name) {
            // As reconciliation does with a copy of a guest whose memory is on disk.
            self.shut_out(&self.guest_at(vmid)?).await?;
        }
        self.destroy_copy(vmid).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::GuestKind;

    #[test]
    fn a_move_is_followed_once_and_by_its_source_alone() {
        let all = Incomings::default();
        let vmid = Vmid::new(100).unwrap();
        let [n1, n3]: [NodeName; 2] = ["n1", "n3"].map(|n| n.parse().unwrap());
        let first = all.follow(vmid, Epoch(8), &n1);
        assert!(first.is_some());
        // As reconciliation does every few seconds while a long migration goes on.
        assert!((0..100).all(|_| all.follow(vmid, Epoch(8), &n1).is_none()));
        assert_eq!(all.source(vmid, Epoch(8)), Some(n1.clone()));
        drop(first);
        assert_eq!(
            all.source(vmid, Epoch(8)),
            Some(n1.clone()),
            "the source may still ask what became of it"
        );
        assert!(all.follow(vmid, Epoch(8), &n1).is_some(), "over, and begun again");
        let old = all.follow(vmid, Epoch(8), &n1);
        let next = all.follow(vmid, Epoch(9), &n3);
        drop(old);
        assert!(
            next.is_some() && all.follow(vmid, Epoch(9), &n3).is_none(),
            "the end of an old one ends no new one"
        );
        assert_eq!(all.source(vmid, Epoch(8)), None);
    }

    #[test]
    fn only_who_sends_may_speak_of_a_move() {
        let [n1, n3]: [NodeName; 2] = ["n1", "n3"].map(|n| n.parse().unwrap());
        let before = own("n1", 7);
        assert!(may_speak(&n1, Some(&n1), Some(&before), Epoch(8)));
        assert!(may_speak(&n1, Some(&n1), Some(&own("n2", 8)), Epoch(8)), "after the commit");
        assert!(!may_speak(&n3, Some(&n1), Some(&before), Epoch(8)));
        assert!(may_speak(&n1, None, Some(&before), Epoch(8)), "known by the record");
        assert!(!may_speak(&n3, None, Some(&before), Epoch(8)));
        assert!(!may_speak(&n1, None, Some(&own("n2", 8)), Epoch(8)));
        assert!(!may_speak(&n1, None, None, Epoch(8)));
    }

    fn own(owner: &str, epoch: u64) -> Ownership {
        Ownership {
            kind: GuestKind::Qemu,
            owner: owner.parse().unwrap(),
            epoch: Epoch(epoch),
            armed: true,
            running: true,
            recovered: false,
        }
    }

    #[test]
    fn a_copy_runs_on_its_own_commit_alone() {
        let me: NodeName = "n2".parse().unwrap();
        let at = |o: &str, e: u64| fate(Some(&own(o, e)), &me, Epoch(8));
        assert_eq!(at("n2", 8), Fate::Ours);
        assert_eq!(at("n1", 7), Fate::Wait);
        // Recovered elsewhere, claimed back by the source, recovered twice, gone.
        assert_eq!(at("n3", 8), Fate::Never);
        assert_eq!(at("n1", 8), Fate::Never);
        assert_eq!(at("n2", 9), Fate::Never);
        // Recovered to here, or moved here while stopped: not this copy.
        let cold = Ownership { running: false, ..own("n2", 8) };
        assert_eq!(fate(Some(&cold), &me, Epoch(8)), Fate::Never);
        assert_eq!(fate(None, &me, Epoch(8)), Fate::Never);
    }
}
