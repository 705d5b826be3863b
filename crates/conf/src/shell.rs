//! The threads that run a [`Driver`]: they own the clock, the disk and the channels, and decide nothing.
//!
//! ```text
//!  handles ──calls──►┌──────────────┐──persists──►┌───────────┐
//!  peers ───frames──►│ conf thread  │             │ conf-disk │ one fsync for all that is waiting
//!                    │ driver       │◄──persisted─└───────────┘
//!  outbox ◄──frames──│ machine (w)  │──events──► watches
//!                    └──────────────┘
//! ```
//!
//! Heartbeats go on while the disk is busy. The consensus has threads of its own so that a busy runtime does not make
//! a leader fall silent.

use crate::conf::Options;
use crate::driver::{
    Command, Driver, HaltReason, Input, LeadershipTerm, MemberChange, Outcome, Persist, Recovered, RequestId,
    Settings,
};
use crate::engine::EngineFault;
use crate::error::{ConfError, MemberError, NotLeader, StoreError, TxnError};
use crate::machine::{CommittedEntry, Machine};
use crate::seal::ClusterKey;
use crate::status::RaftStatus;
use crate::store::{Disk, Store};
use crate::txn::{Commit, Txn};
use crate::watch::{Feed, WATCH_BACKLOG};
use bytes::Bytes;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
use stead_model::RaftId;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// Frames that may wait for the transport; more are dropped, and sent again in time.
const OUTBOX: usize = 4096;
/// Inputs taken in before what they cause is carried out.
const BATCH: usize = 256;

/// What a handle asks for.
pub(crate) enum Call {
    Transact { txn: Txn, at_ms: u64, reply: oneshot::Sender<Result<Commit, TxnError>> },
    Barrier { reply: oneshot::Sender<Result<(), ConfError>> },
    Confirm { reply: oneshot::Sender<Result<LeadershipTerm, NotLeader>> },
    Member { change: MemberChange, reply: oneshot::Sender<Result<(), MemberError>> },
    Transfer { to: RaftId },
    Hold(bool),
    Frame(Bytes),
    Shutdown { reply: oneshot::Sender<()> },
}

enum Event {
    Call(Call),
    Persisted(u64),
    DiskFailed(StoreError),
}

/// What handles see of the thread.
pub(crate) struct Shared {
    pub core: Arc<Core>,
    pub outbox: Mutex<Option<mpsc::Receiver<(RaftId, Bytes)>>>,
    pub key: ClusterKey,
    calls: Sender<Event>,
}

/// What the thread writes and everyone reads. Outlives the thread.
pub(crate) struct Core {
    pub machine: RwLock<Machine>,
    pub feed: broadcast::Sender<Feed>,
    pub status: watch::Sender<RaftStatus>,
}

impl Shared {
    /// Hands a call to the thread; if that has ended, the call's reply channel closes.
    pub fn call(&self, call: Call) {
        let _ended = self.calls.send(Event::Call(call));
    }
}

pub(crate) fn create(options: Options, initial: &Txn, at_ms: u64) -> Result<Arc<Shared>, StoreError> {
    let machine = Machine::found(options.id.0, initial, at_ms)?;
    let store = Store::create(&options.dir, options.id.0, &machine)?;
    start(options, store)
}

pub(crate) fn join(options: Options) -> Result<Arc<Shared>, StoreError> {
    let store = Store::create(&options.dir, options.id.0, &Machine::default())?;
    start(options, store)
}

pub(crate) fn open(options: Options) -> Result<Arc<Shared>, StoreError> {
    let store = Store::open(&options.dir, options.id.0)?;
    start(options, store)
}

fn start(options: Options, opened: (Store, Recovered, u64)) -> Result<Arc<Shared>, StoreError> {
    let (store, recovered, boot) = opened;
    // An epoch's mark is random, so that epochs of one cluster are as strange to each other as two clusters are.
    let tag = options.key.tag() ^ options.era.mark();
    let settings = Settings::new(options.id, boot, tag, options.tick, options.timeout);
    let settings = if options.patient { settings.patient() } else { settings };
    let damaged =
        |reason: HaltReason| StoreError::Damaged { dir: options.dir.clone(), what: reason.to_string() };
    let (mut driver, machine) = Driver::new(settings, recovered, Duration::ZERO).map_err(damaged)?;
    driver.handle(Duration::ZERO, Input::Hold(options.held));
    let core = Arc::new(Core {
        machine: RwLock::new(machine),
        feed: broadcast::channel(WATCH_BACKLOG).0,
        status: watch::channel(RaftStatus::of(options.id)).0,
    });
    let (calls, events) = channel();
    let (persists, to_disk) = channel();
    let reports = calls.clone();
    let disk = Builder::new()
        .name(format!("conf-disk-{}", options.id))
        .spawn(move || run_disk(store, &to_disk, &reports))
        .map_err(StoreError::Thread)?;
    let (outbox, frames) = mpsc::channel(OUTBOX);
    let host = Host {
        driver,
        core: Arc::clone(&core),
        boot,
        began: Instant::now(),
        tick: options.tick,
        next_request: 0,
        replies: HashMap::new(),
        persists,
        outbox,
        stopped: None,
        lost: false,
    };
    Builder::new()
        .name(format!("conf-{}", options.id))
        .spawn(move || run(host, &events, disk))
        .map_err(StoreError::Thread)?;
    Ok(Arc::new(Shared { core, outbox: Mutex::new(Some(frames)), key: options.key, calls }))
}

/// Writes what is waiting, all of it with one fsync, until nobody sends any more.
fn run_disk(mut store: Store, persists: &Receiver<Persist>, reports: &Sender<Event>) {
    while let Ok(first) = persists.recv() {
        let mut batch = vec![first];
        batch.extend(persists.try_iter());
        let last = batch.last().map_or(0, |persist| persist.number);
        let report = match store.write(&batch) {
            Ok(()) => Event::Persisted(last),
            Err(error) => Event::DiskFailed(error),
        };
        let failed = matches!(report, Event::DiskFailed(_));
        if reports.send(report).is_err() || failed {
            return;
        }
    }
}

fn run(mut host: Host, events: &Receiver<Event>, disk: JoinHandle<()>) {
    let ended = catch_unwind(AssertUnwindSafe(|| host.run(events)));
    let (reply, reason) = match ended {
        Ok(reply) => (reply, host.stopped.take()),
        Err(panic) => {
            let what = panic.downcast_ref::<String>().cloned();
            let what = what.or_else(|| panic.downcast_ref::<&str>().map(|what| (*what).to_owned()));
            (None, Some(format!("the consensus failed: {}", what.unwrap_or_default())))
        }
    };
    if let Some(reason) = &reason {
        tracing::error!(%reason, "the configuration store has stopped");
    }
    let reason = reason.unwrap_or_else(|| "it was shut down".to_owned());
    host.core.status.send_modify(|status| {
        status.leader = None;
        status.is_leader = false;
        status.quorate = false;
        status.lost = host.lost;
        status.stopped = Some(reason);
    });
    // Replies that are dropped here tell their callers; the disk's thread ends with its channel, then the file closes.
    drop(host);
    if disk.join().is_err() {
        tracing::error!("the configuration store's disk thread failed");
    }
    if let Some(reply) = reply {
        let _gone = reply.send(());
    }
}

enum Reply {
    Txn(oneshot::Sender<Result<Commit, TxnError>>),
    Barrier(oneshot::Sender<Result<(), ConfError>>),
    Confirm(oneshot::Sender<Result<LeadershipTerm, NotLeader>>),
    Member(oneshot::Sender<Result<(), MemberError>>),
}

struct Host {
    driver: Driver,
    core: Arc<Core>,
    boot: u64,
    began: Instant,
    tick: Duration,
    next_request: u64,
    replies: HashMap<RequestId, Reply>,
    persists: Sender<Persist>,
    outbox: mpsc::Sender<(RaftId, Bytes)>,
    stopped: Option<String>,
    lost: bool,
}

impl Host {
    /// Until shut down (with whom to tell), stopped, or no handle is left.
    fn run(&mut self, events: &Receiver<Event>) -> Option<oneshot::Sender<()>> {
        self.carry_out();
        let mut next_tick = self.began.elapsed() + self.tick;
        while self.stopped.is_none() {
            let wait = next_tick.saturating_sub(self.began.elapsed());
            match events.recv_timeout(wait) {
                Ok(event) => {
                    for event in std::iter::once(event).chain(events.try_iter().take(BATCH)) {
                        if let Some(reply) = self.event(event) {
                            return Some(reply);
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
            let now = self.began.elapsed();
            if now >= next_tick {
                self.driver.handle(now, Input::Tick);
                // After a long pause ticks are not made up for: what has arrived meanwhile counts first.
                next_tick = (next_tick + self.tick).max(now);
            }
            self.carry_out();
        }
        None
    }

    fn event(&mut self, event: Event) -> Option<oneshot::Sender<()>> {
        let now = self.began.elapsed();
        let input = match event {
            Event::Persisted(number) => Input::Persisted(number),
            Event::DiskFailed(error) => {
                self.stopped = Some(error.to_string());
                return None;
            }
            Event::Call(Call::Shutdown { reply }) => return Some(reply),
            Event::Call(Call::Frame(frame)) => Input::Frame(frame),
            Event::Call(Call::Transfer { to }) => Input::Transfer { to: to.0 },
            Event::Call(Call::Hold(hold)) => Input::Hold(hold),
            Event::Call(Call::Transact { txn, at_ms, reply }) => {
                Input::Transact { request: self.await_reply(Reply::Txn(reply)), txn, at_ms }
            }
            Event::Call(Call::Barrier { reply }) => {
                Input::Barrier { request: self.await_reply(Reply::Barrier(reply)) }
            }
            Event::Call(Call::Confirm { reply }) => {
                Input::Confirm { request: self.await_reply(Reply::Confirm(reply)) }
            }
            Event::Call(Call::Member { change, reply }) => {
                Input::Member { request: self.await_reply(Reply::Member(reply)), change }
            }
        };
        self.driver.handle(now, input);
        None
    }

    fn await_reply(&mut self, reply: Reply) -> RequestId {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.replies.insert(request, reply);
        request
    }

    fn carry_out(&mut self) {
        loop {
            let commands = self.driver.poll();
            if commands.is_empty() || self.stopped.is_some() {
                return;
            }
            for command in commands {
                self.command(command);
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Persist(persist) => {
                // If the thread has ended, it has said why before.
                let _ended = self.persists.send(persist);
            }
            Command::Send { to, frame } => {
                let _dropped = self.outbox.try_send((RaftId(to), frame));
            }
            Command::Apply(entries) => self.apply(entries),
            Command::Install(machine) => self.install(*machine),
            Command::Encode => self.encode(),
            Command::Done(request, outcome) => self.done(request, outcome),
            Command::Status(status) => self.publish(*status),
            Command::Halt(reason) => {
                self.lost = matches!(reason, HaltReason::Engine(EngineFault::Lost { .. }));
                self.stopped = Some(reason.to_string());
            }
        }
    }

    fn apply(&mut self, entries: Vec<(u64, CommittedEntry)>) {
        let core = Arc::clone(&self.core);
        let mut machine = core.machine.write().unwrap_or_else(PoisonError::into_inner);
        let mut applied = Vec::with_capacity(entries.len());
        for (index, entry) in entries {
            match machine.apply(index, entry) {
                Ok(done) => {
                    if let Some(event) = &done.event {
                        // Sent while the lock is held, so that view and subscription see one order.
                        let _nobody = core.feed.send(Feed::Commit(Arc::clone(event)));
                    }
                    applied.push(done);
                }
                Err(fault) => {
                    self.stopped = Some(fault.to_string());
                    return;
                }
            }
        }
        let (revision, hash) = (machine.tree().revision(), machine.hash());
        drop(machine);
        self.driver.handle(self.began.elapsed(), Input::Applied { applied, revision, hash });
    }

    fn install(&mut self, machine: Machine) {
        let outcomes = machine.outcomes(self.core.status.borrow().id.0, self.boot);
        let (revision, hash) = (machine.tree().revision(), machine.hash());
        {
            let mut current = self.core.machine.write().unwrap_or_else(PoisonError::into_inner);
            *current = machine;
            let _nobody = self.core.feed.send(Feed::Reset(revision));
        }
        self.driver.handle(self.began.elapsed(), Input::Installed { outcomes, revision, hash });
    }

    fn encode(&mut self) {
        let core = Arc::clone(&self.core);
        let machine = core.machine.read().unwrap_or_else(PoisonError::into_inner);
        match machine.encode() {
            Ok(image) => {
                let (index, members) = (machine.applied(), machine.members().clone());
                drop(machine);
                let input = Input::Encoded { index, members, image: image.into() };
                self.driver.handle(self.began.elapsed(), input);
            }
            Err(error) => self.stopped = Some(error.to_string()),
        }
    }

    /// A caller that has gone away is not told.
    fn done(&mut self, request: RequestId, outcome: Outcome) {
        match (self.replies.remove(&request), outcome) {
            (Some(Reply::Txn(reply)), Outcome::Txn(result)) => drop(reply.send(result)),
            (Some(Reply::Barrier(reply)), Outcome::Barrier(result)) => drop(reply.send(result)),
            (Some(Reply::Confirm(reply)), Outcome::Confirm(result)) => drop(reply.send(result)),
            (Some(Reply::Member(reply)), Outcome::Member(result)) => drop(reply.send(result)),
            _ => {}
        }
    }

    fn publish(&self, status: RaftStatus) {
        let before = self.core.status.borrow();
        if before.leader != status.leader || before.term != status.term {
            let leader = status.leader.map(|id| id.0);
            tracing::info!(id = %status.id, term = status.term, ?leader, "configuration's leader");
        }
        drop(before);
        self.core.status.send_replace(status);
    }
}
