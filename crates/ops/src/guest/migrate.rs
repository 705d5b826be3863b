//! Migration, seen from the source: carries out the commands of [`stead_guest::migration`].
//!
//! A quick migration goes over a storage that both nodes have: the VM's memory is written there while it runs, the hand-over is
//! committed, and the target reads it. The two need not reach each other for it. Disks that go along while the VM runs are
//! [`super::along`]'s.

use super::Asked;
use super::along::Along;
use super::carry::{Carried, HandedOver};
use super::incoming::{ContinueRequest, IncomingRequest, Prepared};
use super::loose;
use super::preconditions::Found;
pub use super::quick::{GO_ON_CALL, Quick};
use super::tunnel::Tunnel;
use crate::peers::{PeerError, call};
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_conf::{Tree, TxnError};
use stead_driver::guest::{GuestError, Incoming, MigrationPhase, MigrationProgress, RunState, Sending};
pub use stead_guest::carried::StorageMap;
use stead_guest::migration::{Command, Event, Migration};
use stead_guest::request::{Process, Request, Verdict};
use stead_guest::saved;
use stead_model::network::Network;
use stead_model::{Epoch, NodeName, NodeRecord, Ownership, Upid, Vmid, paths};
use stead_tasks::TaskContext;

/// The lock of a guest that moves while it runs.
pub(super) const LOCK: &str = "migrate";
/// How long a target may take to make its process.
const PREPARE: Duration = Duration::from_secs(60);
/// Between two questions to a configuration that does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct MigrateOptions {
    /// Where to.
    pub target: NodeName,
    /// While it runs.
    pub online: bool,
    /// KiB/s; none or 0: no limit.
    pub bwlimit: Option<u64>,
    /// Over a storage.
    pub quick: Option<Quick>,
    /// Where volumes go that the target has not: those of a VM that does not run go along.
    pub storages: StorageMap,
    /// Those of a VM that runs go along, too.
    pub with_local_disks: bool,
    /// By which network its memory and disks go; none: by that of the cluster's options.
    pub network: Option<Network>,
}

impl MigrateOptions {
    /// With nothing said but where to and how.
    pub fn to(target: NodeName, online: bool) -> Self {
        Self {
            target,
            online,
            bwlimit: None,
            quick: None,
            storages: StorageMap::default(),
            with_local_disks: false,
            network: None,
        }
    }
}

/// A hand-over that was not seen to commit.
#[derive(Debug, thiserror::Error)]
enum HandoverError {
    #[error(transparent)]
    Txn(#[from] TxnError),
    #[error(transparent)]
    Ops(#[from] OpsError),
}

pub(super) struct Source<'a> {
    pub(super) ops: &'a Ops,
    pub(super) cx: &'a TaskContext,
    pub(super) guest: GuestAt,
    pub(super) target: NodeRecord,
    /// The target by those of its links that streams go by.
    pub(super) far: NodeRecord,
    target_revision: stead_conf::Revision,
    pub(super) bytes_per_second: Option<u64>,
    ha: bool,
    quick: bool,
    /// Its memory is on disk, and it is to go on with it.
    was_suspended: bool,
    /// Its user had paused it.
    was_paused: bool,
    /// Names this attempt to the target.
    attempt: u64,
    /// The disks that go along while it runs.
    pub(super) along: Option<Along>,
    /// The stream of its memory, while it is sent.
    stream: Mutex<Option<Tunnel>>,
    /// How many streams its memory goes by: as many as are wanted, and then as many as the target takes.
    streams: AtomicU8,
    /// After how many rounds that did not suffice its target fetches the rest; 0: never.
    pub(super) postcopy: AtomicU8,
    /// A proposal is on its way of which nobody knows what became of it.
    is_open: AtomicBool,
    /// It could not be continued, or its disks may still be copied: its lock stays, for whoever finds it to end that.
    pub(super) is_stuck: AtomicBool,
}

impl Ops {
    /// Moves a VM of this node; of one under HA, asks HA to.
    pub async fn migrate(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        options: MigrateOptions,
        asked: Asked,
    ) -> Result<Upid, OpsError> {
        let guest = self.vm_at(vmid)?;
        let running = self.guests.state(vmid).await.is_some();
        let request = if running && options.online { Request::MigrateLive } else { Request::MigrateOffline };
        if options.target == self.me.name {
            return Err(OpsError::invalid("target", "target is local node."));
        }
        self.migration_target(&options.target)?;
        if let Some(quick) = &options.quick {
            self.may_save(actor, &guest, quick.storage.clone())?;
        }
        match self.admit(&guest, request, asked).await? {
            Verdict::Refuse(why) => return Err(OpsError::Failed(why)),
            Verdict::ByHa if options.quick.is_some() => {
                return Err(OpsError::failed(format!(
                    "VM {vmid} is under HA, which moves it live: take it from under HA first, or migrate it live"
                )));
            }
            Verdict::ByHa if running && options.with_local_disks && !self.shares_all(&guest)? => {
                return Err(OpsError::failed(format!(
                    "VM {vmid} is under HA, which moves no VM with disks that its node alone has while it runs: take it from under HA \
                     first, or stop it"
                )));
            }
            Verdict::ByHa => {
                return self.ha_move(actor, vmid, &options.target, running && options.online).await;
            }
            Verdict::Accept | Verdict::Already => {}
        }
        let ops = self.clone();
        self.task("qmigrate", &vmid.to_string(), &actor.who, move |cx| async move {
            let _place = match running {
                true => Some(ops.place_to_send(&cx).await?),
                false => None,
            };
            ops.migrate_now(&cx, vmid, &options).await
        })
    }

    /// The target's record, if it is a member that reports.
    pub(crate) fn migration_target(&self, name: &NodeName) -> Result<store::At<NodeRecord>, OpsError> {
        let node = self
            .node_record(name)
            .map_err(|_| OpsError::invalid("target", format!("no such cluster node '{name}'")))?;
        if node.value.witness {
            return Err(OpsError::invalid(
                "target",
                format!("node '{name}' is a witness: it runs no guests"),
            ));
        }
        // Silence decides nothing here: whether it answers is found out by asking it.
        if node.value.state.is_lost() {
            return Err(OpsError::failed(format!("target node '{name}' is not online")));
        }
        Ok(node)
    }

    async fn migrate_now(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        options: &MigrateOptions,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        self.is_whole(vmid).await?;
        let guest = self.own_guest(vmid).await?;
        let facts = self.facts(&guest).await?;
        let live = facts.process != Process::Absent;
        let request = if live { Request::MigrateLive } else { Request::MigrateOffline };
        if live && !options.online {
            return Err(OpsError::failed(format!("can't migrate running VM {vmid} without --online")));
        }
        let by_ha = Asked { by_ha: true, skiplock: false };
        if let Verdict::Refuse(why) = self.admit(&guest, request, by_ha).await? {
            return Err(OpsError::Failed(why));
        }
        if live {
            // The target is made by the configuration, which must say what the machine is.
            self.true_up(vmid).await?;
        }
        let guest = self.own_guest(vmid).await?;
        let config = super::config::parse(&guest.config.value)?;
        if let Some(storage) = self.silent_disk(&config).filter(|_| !live) {
            return Err(OpsError::failed(format!(
                "can't hand VM {vmid} over: storage '{storage}' does not answer on this node, and what the VM has written there may \
                 still arrive. Try again when it answers"
            )));
        }
        let target = self.migration_target(&options.target)?;
        let Found { mut why, silent, carried } =
            self.obstacles(&guest, &target.value, &options.storages, options.with_local_disks).await?;
        if let Some(silent) = silent {
            match &options.quick {
                Some(_) => cx.warn(format!("{silent}: whether it can take the VM is not known")),
                None => why.push(silent),
            }
        }
        if options.quick.is_some() && facts.process != Process::Running {
            let else_how = "it does not run, or is paused, and would run there: migrate it live, or offline";
            why.push(else_how.to_owned());
        }
        if options.quick.is_some() && self.ha_maintains(vmid)? {
            why.push("it is under HA now, which moves it live".to_owned());
        }
        if !why.is_empty() {
            return Err(OpsError::failed(format!(
                "can't migrate VM {vmid} to node '{}': {}",
                options.target,
                why.join("; ")
            )));
        }
        let own = super::config::parse(&guest.config.value)?.current.migrate_speed()?;
        let limit = super::copies::limit(options.bwlimit).or(own);
        let far = self.streams_to(cx, &target.value, options.network.as_ref())?;
        let stead_model::datacenter::Migration { streams, postcopy, .. } =
            self.datacenter()?.0.migration()?;
        // One that stands changes nothing.
        let postcopy = if facts.process == Process::Paused { 0 } else { postcopy };
        let ha = self.ha_maintains(vmid)?;
        let guest = match &options.quick {
            Some(quick) => self.make_room_to_save(cx, vmid, LOCK, self.shared_room(quick, &config)?).await?,
            None if live || !carried.is_empty() => self.set_lock(guest, LOCK, cx.upid()).await?,
            None => guest,
        };
        let source = Source {
            ops: self,
            cx,
            guest,
            far,
            target: target.value,
            target_revision: target.revision,
            bytes_per_second: limit,
            ha,
            quick: options.quick.is_some(),
            was_suspended: saved::is_saved(&config),
            was_paused: facts.process == Process::Paused,
            attempt: rand::random(),
            along: None,
            stream: Mutex::default(),
            streams: AtomicU8::new(streams),
            postcopy: AtomicU8::new(postcopy),
            is_open: AtomicBool::new(false),
            is_stuck: AtomicBool::new(false),
        };
        match (live, carried.is_empty()) {
            (true, true) => source.live().await,
            (true, false) => source.live_along(&carried).await,
            (false, _) => source.offline(&carried).await,
        }
    }

    /// A target by those of its links that are in the network which was asked for, or which the cluster's options name.
    fn streams_to(
        &self,
        cx: &TaskContext,
        target: &NodeRecord,
        asked: Option<&Network>,
    ) -> Result<NodeRecord, OpsError> {
        let none = |network: &Network| format!("node '{}' has no address in network {network}", target.name);
        if let Some(network) = asked {
            return target
                .within(network)
                .ok_or_else(|| OpsError::invalid("migration_network", none(network)));
        }
        let Some(network) = self.datacenter()?.0.migration()?.network else { return Ok(target.clone()) };
        Ok(target.within(&network).unwrap_or_else(|| {
            cx.warn(format!("{}, which the cluster's options name for moves: any is taken", none(&network)));
            target.clone()
        }))
    }
}

impl Source<'_> {
    pub(super) fn vmid(&self) -> Vmid {
        self.guest.vmid
    }

    pub(super) async fn live(&self) -> Result<(), OpsError> {
        let vmid = self.vmid();
        self.cx.log(format!(
            "starting migration of VM {vmid} to node '{}' ({})",
            self.target.name, self.far.addr
        ));
        let (target, with_disks) = (self.target.name.clone(), self.along.is_some());
        let (mut plan, first) = Migration::begin(vmid, target, self.guest.own.value.epoch, with_disks);
        let mut queue = VecDeque::from([first]);
        while let Some(command) = queue.pop_front() {
            if let Command::Finish(result) = command {
                // Memory that may still be written is ended by whoever finds the lock.
                if result.is_err() && !self.quick && !self.is_stuck.load(Ordering::Relaxed) {
                    self.ops.clear_lock(vmid).await;
                }
                return result.map_err(|why| OpsError::failed(format!("migration aborted: {why}")));
            }
            if let Some(event) = self.carry_out(command).await {
                queue.extend(plan.on(event));
            }
        }
        // The plan always ends with Finish; an end without it would be a defect worth hearing of.
        Err(OpsError::failed(format!("migration of VM {vmid} ended without a result")))
    }

    async fn carry_out(&self, command: Command) -> Option<Event> {
        let ops = self.ops;
        match command {
            // Whoever reads its memory from a storage is made when it is handed over.
            Command::PrepareTarget { .. } if self.quick => Some(Event::TargetReady),
            Command::Send if self.quick => Some(match ops.save(self.cx, &self.guest).await {
                Ok(()) => Event::Completed,
                Err(e) => Event::Failed(e.to_string()),
            }),
            Command::AskTargetToRun if self.quick => Some(self.ask_target_to_go_on().await),
            Command::EndTarget if self.quick => Some(Event::TargetEnded),
            Command::ContinueSource if self.quick => Some(match ops.unsave(self.vmid()).await {
                Ok(()) => Event::SourceRuns,
                Err(e) => Event::SourceStuck(e.to_string()),
            }),
            Command::PrepareTarget { epoch } => Some(self.prepare_target(epoch).await),
            Command::MirrorDisks => Some(self.mirror_disks().await),
            Command::Send => Some(self.send().await),
            Command::SettleDisks => Some(self.settle_disks().await),
            Command::SendRest => Some(self.send_rest().await),
            Command::BeginFetching => Some(self.begin_fetching().await),
            Command::LetFetch => Some(self.let_fetch().await),
            Command::FollowFetching => Some(self.follow_fetching().await),
            Command::EndMirrors => {
                self.end_mirrors().await;
                None
            }
            Command::CancelSending => Some(match ops.guests.cancel_migration(self.vmid()).await {
                Ok(p) => self.ended(&p),
                Err(e) => Event::Failed(e.to_string()),
            }),
            Command::ProposeHandover { to, .. } => Some(self.propose(to).await),
            Command::AskTargetToRun => Some(self.ask_target_to_run().await),
            Command::EndSource => {
                self.end_source().await;
                None
            }
            Command::EndTarget => Some(self.end_target().await),
            Command::ContinueSource => Some(self.continue_source().await),
            Command::Finish(_) => None,
        }
    }

    async fn prepare_target(&self, epoch: Epoch) -> Event {
        let process = match self.ops.running(self.vmid()).await {
            Ok(p) => p,
            Err(e) => return Event::Failed(e.to_string()),
        };
        let fetch = self.may_be_fetched();
        // QEMU fetches by one stream.
        let wanted = if fetch { 1 } else { self.streams.load(Ordering::Relaxed) };
        let streams = self.ops.guests.streams(Some(self.vmid()), wanted).await;
        let config = match self.config_there() {
            Ok(config) => config,
            Err(e) => return Event::Failed(e.to_string()),
        };
        let request = IncomingRequest {
            vmid: self.vmid(),
            epoch,
            source: self.ops.me.name.clone(),
            config,
            incoming: Incoming { streams, ..process.as_incoming() },
            ha: self.ha,
            attempt: self.attempt,
            paused: self.was_paused,
            lends: self.along.as_ref().map(Along::keys).unwrap_or_default(),
            fetch,
        };
        // A version that takes one stream alone says nothing.
        let prepared =
            call::<_, Option<Prepared>>(&*self.ops.peers, &self.target, "guest/incoming", &request, PREPARE);
        let prepared = tokio::select! {
            done = prepared => done,
            // What the target has made by then, it ends when it is told to, or when it hears that nothing is sent.
            () = self.cx.cancelled() => return Event::CancelRequested,
        };
        match prepared {
            Ok(prepared) => {
                let streams = prepared.as_ref().map_or(1, |p| p.streams);
                self.note_fetching(prepared.as_ref());
                self.streams.store(streams, Ordering::Relaxed);
                let by = if streams > 1 { format!(", by {streams} streams") } else { String::new() };
                self.cx.log(format!("node '{}' waits for the state{by}", self.target.name));
                Event::TargetReady
            }
            Err(e) => Event::Failed(e.to_string()),
        }
    }

    /// Joins QEMU's socket with a stream to the target, and follows the migration to its end.
    async fn send(&self) -> Event {
        let path: PathBuf = self.ops.me.dir.join("run").join(format!("mig-{}.sock", self.vmid()));
        let sent = self.send_over(&path).await;
        // The name is only needed to connect; what is left of it is replaced next time.
        let _ = std::fs::remove_file(&path);
        sent.unwrap_or_else(|e| Event::Failed(e.to_string()))
    }

    async fn send_over(&self, path: &Path) -> Result<Event, OpsError> {
        let vmid = self.vmid();
        let tunnel = self.tunnel(path, &format!("guest/migration-stream/{vmid}")).await?;
        self.keep_stream(Some(tunnel));
        let how = Sending {
            to: path.to_owned(),
            bytes_per_second: self.bytes_per_second,
            hold: self.along.is_some(),
            fetch: self.may_be_fetched(),
            streams: self.streams.load(Ordering::Relaxed),
        };
        match self.ops.guests.migrate(vmid, &how).await {
            Err(e) if how.fetch => {
                self.not_fetched(&e.to_string());
                self.ops.guests.migrate(vmid, &Sending { fetch: false, ..how }).await?;
            }
            sent => sent?,
        }
        let event = self.follow(MigrationPhase::None).await;
        // After a terminal phase nothing more is sent.
        if !matches!(event, Ok(Event::Held | Event::NoEnd)) {
            self.keep_stream(None);
        }
        event
    }

    pub(super) fn keep_stream(&self, tunnel: Option<Tunnel>) {
        *self.stream() = tunnel;
    }

    /// The stream of its memory.
    pub(super) fn stream(&self) -> MutexGuard<'_, Option<Tunnel>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what is held go on, to its end.
    async fn send_rest(&self) -> Event {
        let sent = async {
            self.ops.guests.send_rest(self.vmid()).await?;
            self.follow(MigrationPhase::Held).await
        };
        let event = sent.await.unwrap_or_else(|e: OpsError| Event::Failed(e.to_string()));
        self.keep_stream(None);
        event
    }

    async fn follow(&self, mut seen: MigrationPhase) -> Result<Event, OpsError> {
        let mut last_log = std::time::Instant::now();
        // Once it was held its disks are not copied any more.
        let is_first = seen == MigrationPhase::None;
        let mut copied =
            pin!(async { if is_first { self.mirrors_fail().await } else { std::future::pending().await } });
        loop {
            let progress = tokio::select! {
                p = self.ops.guests.migration_changed(self.vmid(), seen) => p?,
                () = self.cx.cancelled() => return Ok(Event::CancelRequested),
                why = &mut copied => {
                    self.ops.guests.cancel_migration(self.vmid()).await?;
                    return Ok(Event::Failed(why));
                }
            };
            seen = progress.phase;
            if seen.is_terminal() {
                return Ok(self.ended(&progress));
            }
            if seen == MigrationPhase::Held && is_first {
                return Ok(Event::Held);
            }
            if is_first && self.has_no_end(&progress) {
                return Ok(Event::NoEnd);
            }
            if last_log.elapsed() >= Duration::from_secs(1) {
                last_log = std::time::Instant::now();
                self.cx.log(told(&progress));
            }
        }
    }

    pub(super) fn ended(&self, p: &MigrationProgress) -> Event {
        ended(self.cx, p)
    }

    /// Commits the target as owner: configuration and record in one transaction, if both are as they were and
    /// the target is still a member.
    async fn propose(&self, to: Epoch) -> Event {
        match self.handover(to, true, self.along.as_ref().map(|a| &a.handed)).await {
            Ok(()) => Event::Committed,
            Err(HandoverError::Txn(TxnError::Refused(_))) => self.read_outcome(to).await,
            // Nothing was proposed: the configuration cannot be read any more.
            Err(HandoverError::Ops(e)) if !self.is_open.load(Ordering::Relaxed) => {
                Event::RefusedStillOurs(e.to_string())
            }
            Err(e) => {
                self.is_open.store(true, Ordering::Relaxed);
                self.cx.log(format!("hand-over: {e}; asking again"));
                tokio::time::sleep(ASK_AGAIN).await;
                Event::Unknown(e.to_string())
            }
        }
    }

    async fn handover(
        &self,
        to: Epoch,
        running: bool,
        carried: Option<&HandedOver>,
    ) -> Result<(), HandoverError> {
        let mut config = super::config::parse(&self.guest.config.value)?;
        match self.quick || self.was_suspended {
            // It goes on with its memory wherever it is.
            true => config.current.set("lock", saved::SAVED).map_err(OpsError::from)?,
            false => drop(config.current.remove("lock")),
        }
        let old = &self.guest.own.value;
        let new = Ownership {
            owner: self.target.name.clone(),
            epoch: to,
            armed: running && self.ha && !self.quick,
            running,
            ..old.clone()
        };
        let mut txn =
            store::txn("root@pam", format!("guest {}: migrated to '{}'", self.vmid(), self.target.name));
        let record = store::bytes(&new)?;
        store::put_over(&mut txn, &paths::ownership(self.vmid()), Some(self.guest.own.revision), record);
        txn.checks.push(stead_conf::Check::Revision(paths::node(&self.target.name), self.target_revision));
        txn.checks.push(stead_conf::Check::Revision(self.guest.path(), self.guest.config.revision));
        txn.ops.push(stead_conf::Op::Delete(self.guest.path()));
        if let Some(carried) = carried {
            stead_guest::carried::rename(&mut config, &carried.names).map_err(OpsError::from)?;
        }
        let path = paths::guest(&self.target.name, old.kind, self.vmid());
        txn.ops.push(stead_conf::Op::Put(path, config.to_string().into_bytes().into()));
        self.ops.conf.view(|t| super::lock::release(t, self.vmid(), &mut txn));
        if let Some(carried) = carried {
            let (here, there) = ((&self.ops.me.name, self.vmid()), (&self.target.name, self.vmid()));
            let (made, left) = ((there, carried.revision), carried.left());
            let said = |t: &Tree| loose::hand_over(t, &mut txn, made, (here, &left));
            self.ops.conf.view(said)?;
        }
        self.ops.conf.transact(txn).await?;
        Ok(())
    }

    /// A check failed: for good. Who owns the guest now?
    async fn read_outcome(&self, to: Epoch) -> Event {
        if let Err(e) = self.ops.conf.barrier().await {
            tokio::time::sleep(ASK_AGAIN).await;
            return Event::Unknown(e.to_string());
        }
        match self.ops.ownership(self.vmid()) {
            Ok(Some(own)) if own.owner == self.target.name && own.epoch == to => Event::Committed,
            Ok(Some(own)) if own.owner == self.ops.me.name && own.epoch == self.guest.own.value.epoch => {
                let why = format!("node '{}' or the configuration changed meanwhile", self.target.name);
                Event::RefusedStillOurs(why)
            }
            Ok(Some(own)) => {
                Event::RefusedNotOurs(format!("the guest was recovered on '{}' meanwhile", own.owner))
            }
            Ok(None) => Event::RefusedNotOurs("the guest was removed meanwhile".to_owned()),
            Err(e) => {
                self.cx.log(format!("hand-over: {e}; asking again"));
                tokio::time::sleep(ASK_AGAIN).await;
                Event::Unknown(e.to_string())
            }
        }
    }

    /// Names the copy at the target.
    pub(super) fn copy_there(&self) -> ContinueRequest {
        let epoch = self.guest.own.value.epoch.next();
        ContinueRequest { vmid: self.vmid(), epoch, attempt: self.attempt }
    }

    async fn ask_target_to_run(&self) -> Event {
        let body = self.copy_there();
        let limit = Duration::from_secs(20);
        match call::<_, ()>(&*self.ops.peers, &self.target, "guest/continue", &body, limit).await {
            Ok(()) => {
                self.cx.log(format!("VM {} runs on node '{}'", self.vmid(), self.target.name));
                Event::TargetRuns
            }
            Err(e) => Event::TargetSilent(e.to_string()),
        }
    }

    async fn end_source(&self) {
        let vmid = self.vmid();
        match self.ops.guests.kill(vmid).await {
            Ok(()) | Err(GuestError::NotRunning(_)) => {}
            Err(e) => {
                tracing::error!("guest {vmid}: the migrated copy could not be ended: {e}");
                return;
            }
        }
        if let Err(e) = self.ops.fence.forget(vmid).await {
            tracing::warn!("guest {vmid}: {e}");
        }
    }

    async fn end_target(&self) -> Event {
        let body = self.copy_there();
        let limit = Duration::from_secs(10);
        match call::<_, ()>(&*self.ops.peers, &self.target, "guest/abort", &body, limit).await {
            Ok(()) => {}
            // It ends its copy by itself: its record never comes.
            Err(PeerError::Unreachable { .. } | PeerError::Refused(_) | PeerError::Outcast { .. }) => {
                tracing::info!(
                    "guest {}: '{}' could not be told of the abort",
                    self.vmid(),
                    self.target.name
                );
            }
        }
        Event::TargetEnded
    }

    async fn continue_source(&self) -> Event {
        match self.ops.go_on_unmoved(&self.guest, self.was_paused).await {
            Ok(()) => Event::SourceRuns,
            Err(e) => {
                self.is_stuck.store(true, Ordering::Relaxed);
                Event::SourceStuck(e.to_string())
            }
        }
    }

    /// A guest without a process changes its owner by one transaction. Volumes that the target has not are there before.
    async fn offline(self, carried: &[Carried]) -> Result<(), OpsError> {
        let vmid = self.vmid();
        if carried.is_empty() {
            self.hand_over_offline(None).await?;
        } else {
            let moved = async {
                let limit = self.bytes_per_second;
                let sent =
                    self.ops.carry(self.cx, &self.guest, (&self.target, &self.far), carried, limit).await?;
                self.hand_over_offline(Some(&sent)).await
            };
            if let Err(e) = moved.await {
                self.ops.give_up_room(vmid, &self.target).await;
                self.give_back().await;
                return Err(e);
            }
            if let Err(e) = self.ops.free_loose(vmid).await {
                self.cx.warn(e.to_string());
            }
        }
        self.cx.log(format!("VM {vmid} now belongs to node '{}'", self.target.name));
        Ok(())
    }

    async fn hand_over_offline(&self, carried: Option<&HandedOver>) -> Result<(), OpsError> {
        let epoch = self.guest.own.value.epoch.next();
        loop {
            match self.handover(epoch, false, carried).await {
                Ok(()) => return Ok(()),
                Err(HandoverError::Txn(TxnError::Refused(why))) => match self.read_outcome(epoch).await {
                    Event::Committed => return Ok(()),
                    Event::Unknown(_) => {}
                    _ => return Err(OpsError::failed(format!("migration aborted: {why}"))),
                },
                // What was sent may be the guest's: it is asked again until that is known.
                Err(HandoverError::Txn(e @ TxnError::Unknown { .. })) if carried.is_some() => {
                    self.cx.log(format!("hand-over: {e}; asking again"));
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                Err(e) => return Err(OpsError::failed(format!("migration aborted: {e}"))),
            }
        }
    }

    /// The lock that the VM had before.
    async fn give_back(&self) {
        let vmid = self.vmid();
        if !self.was_suspended {
            return self.ops.clear_lock(vmid).await;
        }
        let back = async {
            let guest = self.ops.own_guest(vmid).await?;
            let mut config = super::config::parse(&guest.config.value)?;
            config.current.set("lock", saved::SAVED)?;
            let txn = store::txn("root@pam", format!("guest {vmid}: not moved"));
            self.ops.commit_released(&guest, &config, txn).await
        };
        if let Err(e) = back.await {
            self.cx.warn(format!("VM {vmid} could not be given its lock '{}' back: {e}", saved::SAVED));
        }
    }
}

impl Ops {
    /// Makes sure that a VM which was to be moved runs here, or is paused as it was.
    pub(super) async fn go_on_unmoved(&self, guest: &GuestAt, was_paused: bool) -> Result<(), OpsError> {
        let (vmid, own) = (guest.vmid, &guest.own.value);
        let state = self.guests.state(vmid).await.map(|p| p.state);
        match state {
            None => Err(OpsError::failed(format!("VM {vmid} has ended"))),
            Some(RunState::Running) => Ok(()),
            Some(RunState::Paused) if was_paused => Ok(()),
            Some(_) if own.armed => self.run_under_lease(vmid, own.epoch).await,
            Some(_) => self.guests.resume(vmid).await.map_err(OpsError::from),
        }?;
        // What was sent to its end has to be continued before it can be paused.
        if was_paused && state != Some(RunState::Paused) {
            self.guests.pause(vmid).await?;
        }
        Ok(())
    }
}

/// What became of a sending that has ended.
pub(super) fn ended(cx: &TaskContext, p: &MigrationProgress) -> Event {
    match p.phase {
        MigrationPhase::Completed => {
            cx.log(format!(
                "state sent: {} in {} ms, paused for {} ms",
                mib(p.transferred),
                p.total_ms,
                p.downtime_ms
            ));
            Event::Completed
        }
        MigrationPhase::Cancelled => Event::Failed("cancelled".into()),
        _ => Event::Failed(p.error.clone().unwrap_or_else(|| "the VM's process gave up".into())),
    }
}

/// How far it is.
pub(super) fn told(now: &MigrationProgress) -> String {
    let [sent, total, left] = [now.transferred, now.total, now.remaining].map(mib);
    format!("migration {:?}: {sent} of {total} sent, {left} left, round {}", now.phase, now.rounds)
}

pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
