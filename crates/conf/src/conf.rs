//! The handle that the rest of a node holds. Everything here is a short read of the applied state or a message to
//! the node's consensus thread ([`shell`](crate::shell)).

use crate::backup::Backup;
use crate::driver::{LeadershipTerm, MemberChange};
use crate::error::{ConfError, MemberError, NotLeader, SecretError, StoreError, TxnError};
use crate::history::{Change, History, Moment, Past, PastError};
use crate::machine::Machine;
use crate::seal::{ClusterKey, SealError};
use crate::shell::{self, Call, Shared};
use crate::status::RaftStatus;
use crate::tree::Tree;
use crate::txn::{Commit, Txn};
use crate::watch::Watch;
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLockReadGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stead_model::{Era, RaftId};
use tokio::sync::{mpsc, oneshot, watch};

/// How a node's configuration store is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of the store; made if need be.
    pub dir: PathBuf,
    /// The cluster's key.
    pub key: ClusterKey,
    /// This node's number in Raft; never used before in this cluster.
    pub id: RaftId,
    /// The consensus' unit of time, 50 ms by default: a leader's heartbeat is two of it, an election starts after
    /// 14 to 23 without one. The same on all nodes.
    pub tick: Duration,
    /// It is to lead only if no other node can, false by default: for a witness.
    pub patient: bool,
    /// It stands for no election until [`Conf::hold`] says so, false by default.
    pub held: bool,
    /// The cluster epoch: frames of any other are dropped. The first by default.
    pub era: Era,
    /// How long a transaction, barrier or change of members may take before it is given up, 5 s by default.
    pub timeout: Duration,
}

impl Options {
    /// With the defaults.
    pub fn new(dir: impl Into<PathBuf>, key: ClusterKey, id: RaftId) -> Self {
        let (tick, timeout) = (Duration::from_millis(50), Duration::from_secs(5));
        Self { dir: dir.into(), key, id, tick, patient: false, held: false, era: Era::FIRST, timeout }
    }
}

/// Proof that this node led the cluster at a moment after it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    /// The term in which it leads.
    pub term: u64,
}

/// A node's part of the replicated configuration. A clone is another handle to the same.
#[derive(Clone)]
pub struct Conf {
    shared: Arc<Shared>,
}

impl Conf {
    /// Founds a cluster of this one node, whose tree is what `initial` makes of an empty one.
    pub fn create(options: Options, initial: &Txn) -> Result<Self, StoreError> {
        Ok(Self { shared: shell::create(options, initial, now_ms())? })
    }

    /// Makes an empty store that waits to be added to a cluster as a learner and to be sent the tree.
    pub fn join(options: Options) -> Result<Self, StoreError> {
        Ok(Self { shared: shell::join(options)? })
    }

    /// Opens the store of a node that was in a cluster before.
    pub fn open(options: Options) -> Result<Self, StoreError> {
        Ok(Self { shared: shell::open(options)? })
    }

    /// Whether a folder holds a store that [`Conf::open`] would open.
    pub fn exists(dir: &std::path::Path) -> bool {
        crate::store::exists(dir)
    }

    fn machine(&self) -> RwLockReadGuard<'_, Machine> {
        self.shared.core.machine.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the locally applied tree. `f` must be short: commits wait for it.
    pub fn view<R>(&self, f: impl FnOnce(&Tree) -> R) -> R {
        f(self.machine().tree())
    }

    /// Reads the tree and subscribes to all that is committed after what was read.
    pub fn watch_from<R>(&self, f: impl FnOnce(&Tree) -> R) -> (R, Watch) {
        let machine = self.machine();
        let seen = machine.tree().revision();
        let core = Arc::clone(&self.shared.core);
        let current =
            Box::new(move || core.machine.read().unwrap_or_else(PoisonError::into_inner).tree().revision());
        let watch = Watch::new(self.shared.core.feed.subscribe(), seen, current);
        (f(machine.tree()), watch)
    }

    /// Every change committed from now on, in order.
    pub fn watch(&self) -> Watch {
        self.watch_from(|_| ()).1
    }

    /// A path's changes, oldest first. Empty for what has no history: secrets and ownership.
    pub fn history(&self, path: &str) -> Vec<Change> {
        self.machine().history().of(path).cloned().collect()
    }

    /// The last `limit` changes of all paths, newest first.
    pub fn recent(&self, limit: usize) -> Vec<Change> {
        self.machine().history().all().rev().take(limit).cloned().collect()
    }

    /// Looks through the changes that are kept. `f` must be short: commits wait for it.
    pub fn changes<R>(&self, f: impl FnOnce(&History) -> R) -> R {
        f(self.machine().history())
    }

    /// What a path held at a moment.
    ///
    /// # Errors
    /// If what is kept does not tell.
    pub fn past(&self, path: &str, moment: Moment) -> Result<Past, PastError> {
        let machine = self.machine();
        let newest = machine.tree().revision();
        if let Moment::Revision(wanted) = moment
            && wanted > newest
        {
            return Err(PastError::Future { wanted, newest });
        }
        machine.history().past(path, machine.tree().get(path), moment)
    }

    /// Commits a transaction, wherever the leader is, and returns once it is applied here, so that the caller reads
    /// its own write. It takes effect once or not at all, also if leaders change meanwhile. Dropping the future
    /// does not take it back.
    pub async fn transact(&self, txn: Txn) -> Result<Commit, TxnError> {
        let at_ms = now_ms();
        self.ask(|reply| Call::Transact { txn, at_ms, reply })
            .await
            .unwrap_or_else(|| Err(TxnError::Stopped { reason: self.stopped() }))
    }

    /// Waits until the local tree holds every transaction that was committed anywhere before the call.
    pub async fn barrier(&self) -> Result<(), ConfError> {
        self.ask(|reply| Call::Barrier { reply })
            .await
            .unwrap_or_else(|| Err(ConfError::Stopped { reason: self.stopped() }))
    }

    /// Has a majority confirm that this node leads, in a round begun after the call. Calls share rounds.
    pub async fn confirm_leadership(&self) -> Result<Leadership, NotLeader> {
        let answer: Result<LeadershipTerm, NotLeader> = self
            .ask(|reply| Call::Confirm { reply })
            .await
            .unwrap_or_else(|| Err(NotLeader::Stopped { reason: self.stopped() }));
        answer.map(|LeadershipTerm(term)| Leadership { term })
    }

    /// What is known of the consensus, now and at every change.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.shared.core.status.subscribe()
    }

    /// Takes in a frame that a peer's [`Conf::outbox`] gave out for this node. Damaged and foreign frames are
    /// dropped.
    #[expect(clippy::unused_async, reason = "a later queue with a limit will wait here")]
    pub async fn step(&self, frame: Bytes) {
        self.shared.call(Call::Frame(frame));
    }

    /// The frames to be carried to other nodes. May be lost, repeated or reordered on the way, at the price of
    /// time. Taken once: a second call gives a closed channel.
    pub fn outbox(&self) -> mpsc::Receiver<(RaftId, Bytes)> {
        let taken = self.shared.outbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Adds a node that holds the tree without a vote. It must have called [`Conf::join`] and be reachable; its id
    /// must be new.
    pub async fn add_learner(&self, id: RaftId) -> Result<(), MemberError> {
        self.change(MemberChange::AddLearner(id)).await
    }

    /// Gives a learner that has caught up a vote.
    pub async fn promote(&self, id: RaftId) -> Result<(), MemberError> {
        self.change(MemberChange::Promote(id)).await
    }

    /// Makes a voter a learner. A leader hands its office over first.
    pub async fn demote(&self, id: RaftId) -> Result<(), MemberError> {
        self.change(MemberChange::Demote(id)).await
    }

    /// Gives the vote of one node to another at once, so that there is no moment with one voter more or less.
    pub async fn replace_voter(&self, old: RaftId, new: RaftId) -> Result<(), MemberError> {
        self.change(MemberChange::Replace { old, new }).await
    }

    /// Removes a member for good: its id is never used again. A leader hands its office over first.
    pub async fn remove(&self, id: RaftId) -> Result<(), MemberError> {
        self.change(MemberChange::Remove(id)).await
    }

    async fn change(&self, change: MemberChange) -> Result<(), MemberError> {
        self.ask(|reply| Call::Member { change, reply })
            .await
            .unwrap_or_else(|| Err(MemberError::Stopped { reason: self.stopped() }))
    }

    /// Asks the leader, if that is this node, to hand its office to a voter. Follow [`Conf::status`] to see it
    /// happen; it does not if the voter is not up to date or not there.
    #[expect(clippy::unused_async, reason = "the handle's other requests are awaited too")]
    pub async fn transfer_leader(&self, to: RaftId) {
        self.shared.call(Call::Transfer { to });
    }

    /// Whether this node stands for no election from now on, and leads no more: it still follows others and votes for them.
    pub fn hold(&self, hold: bool) {
        self.shared.call(Call::Hold(hold));
    }

    /// All that this node has applied, to be kept elsewhere: by `node`, in the cluster epoch `era`. Its file holds secrets.
    pub fn backup(&self, node: &str, era: Era) -> Backup {
        // A copy shares the values: commits wait no longer than it takes to copy the paths.
        let machine = self.machine().clone();
        Backup::of(machine, self.shared.key.clone(), node, era, now_ms())
    }

    /// Seals a value, to be put at `path` (below `priv/`) within a larger transaction.
    pub fn seal(&self, path: &str, plain: &[u8]) -> Result<Bytes, SealError> {
        self.shared.key.seal(path, plain)
    }

    /// Opens a value that was sealed for `path`.
    pub fn unseal(&self, path: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        self.shared.key.unseal(path, sealed)
    }

    /// Seals and commits one secret.
    pub async fn put_secret(
        &self,
        author: &str,
        note: &str,
        path: &str,
        plain: &[u8],
    ) -> Result<Commit, SecretError> {
        let sealed = self.seal(path, plain)?;
        Ok(self.transact(Txn::new(author).note(note).put(path, sealed)).await?)
    }

    /// Opens a secret of the local tree; `None` if there is none.
    pub fn secret(&self, path: &str) -> Result<Option<Vec<u8>>, SealError> {
        let sealed = self.view(|tree| tree.get(path).map(|entry| entry.data.clone()));
        sealed.map(|sealed| self.shared.key.unseal(path, &sealed)).transpose()
    }

    /// Ends the consensus thread and closes the store; what was not committed yet ends as unknown. Every handle is
    /// dead afterwards; reading the last tree still works.
    pub async fn shutdown(self) {
        let _ended: Option<()> = self.ask(|reply| Call::Shutdown { reply }).await;
    }

    async fn ask<R>(&self, call: impl FnOnce(oneshot::Sender<R>) -> Call) -> Option<R> {
        let (reply, answer) = oneshot::channel();
        self.shared.call(call(reply));
        answer.await.ok()
    }

    fn stopped(&self) -> String {
        self.shared.core.status.borrow().stopped.clone().unwrap_or_else(|| "it was shut down".to_owned())
    }
}

/// Wall time in milliseconds since 1970, for the history.
fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
