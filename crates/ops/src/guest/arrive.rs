//! A VM that comes from another cluster: the target's side of [`stead_guest::remote`].
//!
//! The other cluster is no part of this one. What it sends is taken as from the user whose token it shows: each option, storage and
//! bridge needs what that user would need to set it, and an image may name no file of this host. The VM is in the making (lock
//! `create`) until the other side says that it is given away: its volumes are named in its configuration before they are made, so
//! that whatever ends half-way is removed by this task, or by whoever finds its lock.

mod live;
mod take;

use super::carry::{Carried, SMALL};
use super::copies::file_of;
use super::images::{STALLED, answered, write_parts};
use crate::peers::Duplex;
use crate::remote::Lines;
use crate::{Actor, Ops, OpsError, store};
use futures_util::future::pending;
use live::Waiting;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_driver::guest::{Launch, ResolvedVolume};
use stead_driver::storage::{Content, NewVolume};
use stead_guest::carried::{self, Bridge};
use stead_guest::clones::MAKING;
use stead_guest::remote::{
    Answer, Channel, GIVEN_UP, PROTOCOL, Runs, Say, Sent, bound, check_protocol, outfit, shown,
};
use stead_model::vmconfig::devices::as_disk;
use stead_model::vmconfig::{Change, Settings, VmConfig};
use stead_model::{Epoch, StorageId, Upid, Vmid, VolumeId, cloudinit};
use stead_tasks::TaskContext;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long what became of a move can be asked after its end.
const KEPT: Duration = Duration::from_secs(600);
/// How long whoever asks that may take.
const ASKING: Duration = Duration::from_secs(10);
/// Bytes on their way between a WebSocket and its reader.
const BUFFER: usize = 1 << 20;
/// Moves from other clusters to one node that may be under way at once.
const AT_ONCE: usize = 32;
/// Options that the system keeps, which say nothing to the host.
const OWN: [&str; 3] = ["meta", "parent", "snaptime"];

/// The moves to this node, those that are over for a while too.
#[derive(Default)]
pub struct Tunnels {
    all: Mutex<Vec<Arc<Tunnel>>>,
    waits: Mutex<Waits>,
}

/// How long the sides of a move wait for each other.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// At the target: how long nothing may be heard of the source.
    pub heard: Duration,
    /// At the source: how long it is asked what became of a VM that was given away. At the target: how long it may be proposed that it is
    /// there.
    pub outcome: Duration,
    /// At the source: how long nothing may be taken of what is sent.
    pub stalled: Duration,
    /// At the source: how long nothing may be answered by what a VM waits for that runs.
    pub mute: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        let [mute, heard, outcome] = [30, 60, 120].map(Duration::from_secs);
        Self { heard, outcome, stalled: STALLED, mute }
    }
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnels").finish_non_exhaustive()
    }
}

/// One of them.
struct Tunnel {
    vmid: Vmid,
    /// Who may use it.
    user: String,
    /// The digest of its ticket: comparing digests tells nothing of what was compared.
    ticket: [u8; 32],
    channels: mpsc::Sender<(Channel, DuplexStream)>,
    /// What became of it, if that is known, and when.
    ended: Mutex<Option<(Option<Answer>, Instant)>>,
}

impl Tunnel {
    fn ended(&self) -> MutexGuard<'_, Option<(Option<Answer>, Instant)>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What opens a tunnel's channels. Contains a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    /// The task that serves it.
    pub upid: Upid,
    /// Opens them.
    pub ticket: String,
    /// The first one.
    pub socket: String,
}

/// Why a channel is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoChannel {
    /// The ticket is of no move that goes on, or of another user's or VM's.
    #[error("this ticket opens no tunnel for the VM: it is another's, or the move is over")]
    Ticket,
    /// There is no channel of that name.
    #[error("a tunnel has the sockets 'control', 'disk:N', 'disks' and 'memory'")]
    Socket,
}

fn digest(ticket: &str) -> [u8; 32] {
    Sha256::digest(ticket).into()
}

type Channels = mpsc::Receiver<(Channel, DuplexStream)>;

impl Tunnels {
    fn all(&self) -> MutexGuard<'_, Vec<Arc<Tunnel>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long is waited.
    pub fn waits(&self) -> Waits {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it is waited so long.
    pub fn set_waits(&self, waits: Waits) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = waits;
    }

    /// None: there are too many.
    fn begin(&self, vmid: Vmid, user: &str) -> Option<(String, Arc<Tunnel>, Channels)> {
        let secret: [u8; 32] = rand::random();
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let ticket = format!("PVETUNNEL:{hex}");
        let (channels, taken) = mpsc::channel(4);
        let (user, digest) = (user.to_owned(), digest(&ticket));
        let tunnel = Arc::new(Tunnel { vmid, user, ticket: digest, channels, ended: Mutex::default() });
        let mut all = self.all();
        all.retain(|t| t.ended().as_ref().is_none_or(|(_, at)| at.elapsed() < KEPT));
        if all.iter().filter(|t| t.ended().is_none()).count() >= AT_ONCE {
            return None;
        }
        all.push(tunnel.clone());
        Some((ticket, tunnel, taken))
    }

    fn find(&self, user: &str, vmid: Vmid, ticket: &str) -> Option<Arc<Tunnel>> {
        let shown = digest(ticket);
        let fits = |t: &&Arc<Tunnel>| t.vmid == vmid && t.user == user && t.ticket == shown;
        let fresh = |t: &Arc<Tunnel>| t.ended().as_ref().is_none_or(|(_, at)| at.elapsed() < KEPT);
        self.all().iter().find(fits).filter(|t| fresh(t)).cloned()
    }
}

/// Tells what became of a move that is over.
async fn tell(io: DuplexStream, ended: Answer) {
    let mut control = Lines::new(Box::new(io));
    let told = async {
        while let Some(say) = control.next::<Say>().await? {
            let answer = match say {
                Say::Hello { protocol, .. } => greeted(protocol).unwrap_or_else(|why| Answer::Gone { why }),
                Say::Alive => continue,
                _ => ended.clone(),
            };
            control.send(&answer).await?;
        }
        Ok::<(), std::io::Error>(())
    };
    // Whoever does not hear it asks again.
    let _ = tokio::time::timeout(ASKING, told).await;
}

fn greeted(protocol: u32) -> Result<Answer, String> {
    check_protocol(protocol).map(|()| Answer::Hello { protocol: PROTOCOL, live: true })
}

fn of_bridge(bridge: &Bridge) -> String {
    format!("/sdn/zones/localnet/{bridge}")
}

fn broke(e: impl std::fmt::Display) -> OpsError {
    OpsError::failed(format!("the other cluster is not heard any more: {e}"))
}

impl Ops {
    /// Opens the way for a VM of another cluster, which is to come to this node under a number that nobody has: the number is
    /// reserved, and the task ends with the move. `storages` and `bridges`: those that it will want.
    pub async fn open_tunnel(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        storages: &[StorageId],
        bridges: &[Bridge],
    ) -> Result<Opened, OpsError> {
        for storage in storages {
            actor.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
            let found = self.storage(storage).map_err(|e| OpsError::invalid("storages", e.to_string()))?;
            if !self.uses(&found) || found.disable || !found.holds("images") {
                let why = format!("storage '{storage}' holds no disks on node '{}'", self.me.name);
                return Err(OpsError::invalid("storages", why));
            }
        }
        for bridge in bridges {
            actor.require(&of_bridge(bridge), &["SDN.Use"])?;
        }
        if self.me.witness {
            return Err(OpsError::failed(format!("node '{}' is a witness: it runs no guests", self.me.name)));
        }
        self.check_free(vmid)?;
        let begun = self.guest_locks.tunnels.begin(vmid, &actor.who);
        let (ticket, tunnel, channels) = begun.ok_or_else(|| {
            OpsError::failed(format!(
                "{AT_ONCE} VMs are on their way to node '{}' from other clusters: try again when one has come",
                self.me.name
            ))
        })?;
        let (ops, by) = (self.clone(), actor.clone());
        let upid = self.task("qmtunnel", &vmid.to_string(), &actor.who, move |cx| async move {
            Arriving { ops: &ops, cx: &cx, actor: &by, vmid }.serve(&tunnel, channels).await
        })?;
        Ok(Opened { upid, ticket, socket: Channel::Control.name() })
    }

    /// A channel of a tunnel, for the user who has opened it.
    pub async fn tunnel_channel(
        &self,
        user: &str,
        vmid: Vmid,
        ticket: &str,
        socket: &str,
    ) -> Result<DuplexStream, NoChannel> {
        let tunnel = self.guest_locks.tunnels.find(user, vmid, ticket).ok_or(NoChannel::Ticket)?;
        let channel = Channel::named(socket).ok_or(NoChannel::Socket)?;
        let (near, far) = tokio::io::duplex(BUFFER);
        let ended = tunnel.ended().as_ref().map(|(answer, _)| answer.clone());
        match (ended, channel) {
            (Some(Some(ended)), Channel::Control) => drop(tokio::spawn(tell(far, ended))),
            (Some(_), _) => return Err(NoChannel::Ticket),
            // One that ends just now takes none: it is asked again.
            (None, channel) => {
                drop(tokio::time::timeout(ASKING, tunnel.channels.send((channel, far))).await);
            }
        }
        Ok(near)
    }
}

/// A move to this node, by the task that serves it.
struct Arriving<'a> {
    ops: &'a Arc<Ops>,
    cx: &'a TaskContext,
    actor: &'a Actor,
    vmid: Vmid,
}

/// What was agreed on so far.
#[derive(Default)]
struct Agreed {
    greeted: bool,
    /// What fits.
    fits: Option<(VmConfig, Vec<Sent>, Option<Runs>)>,
    /// What was made for it; none: that was not asked yet.
    made: Option<Vec<VolumeId>>,
    /// Which of these were begun.
    begun: BTreeSet<usize>,
    /// Which of these are on disk.
    kept: BTreeSet<usize>,
    /// How it runs there; none: it does not.
    runs: Option<Runs>,
    /// The volumes that are mirrored, and the options of their disks.
    mirrored: BTreeMap<usize, String>,
    /// The process that waits for its memory.
    waiting: Option<Waiting>,
    /// Nobody can tell whether it was this node's.
    is_unclear: bool,
}

impl Agreed {
    /// Refuses to go on without all that is sent as it lies.
    fn check_come(&self) -> Result<(), OpsError> {
        match &self.made {
            Some(made) if made.len() == self.kept.len() + self.mirrored.len() => Ok(()),
            _ => Err(OpsError::failed("not all of it has come")),
        }
    }

    /// Waits for what its source has heard to be on disk before this task did.
    async fn settle(&mut self, writers: &mut Writers, patience: Duration) -> Result<(), OpsError> {
        let rest = async {
            while let Some(done) = writers.join_next().await {
                self.kept.insert(done.map_err(|e| OpsError::failed(e.to_string()))??);
            }
            Ok::<(), OpsError>(())
        };
        let late = |_| OpsError::failed("a volume that was begun has not come");
        tokio::time::timeout(patience, rest).await.map_err(late)?
    }
}

type Writers = JoinSet<Result<usize, OpsError>>;

impl Arriving<'_> {
    async fn serve(&self, tunnel: &Tunnel, mut channels: Channels) -> Result<(), OpsError> {
        let (vmid, mut control, mut agreed) = (self.vmid, None, Agreed::default());
        let what = "to come from another cluster";
        let reserved = self.ops.begin_making(self.cx, self.actor, vmid, Settings::default(), what).await;
        let done = match reserved {
            Ok(()) => {
                self.cx.log(format!("VM {vmid} is reserved for a VM of another cluster"));
                let done = self.converse(&mut agreed, &mut control, &mut channels).await;
                match &done {
                    Err(e) if agreed.is_unclear => self.leave(e, agreed.waiting.take()).await,
                    Err(e) => self.undo(e, agreed.waiting.take()).await,
                    Ok(()) => {}
                }
                done
            }
            Err(e) => Err(e),
        };
        let answer = match &done {
            Ok(()) => Some(Answer::Committed),
            Err(_) if agreed.is_unclear => None,
            Err(e) => Some(Answer::Gone { why: e.to_string() }),
        };
        *tunnel.ended() = Some((answer.clone(), Instant::now()));
        if let (Some(mut control), Some(answer)) = (control, answer) {
            // Whoever does not hear it asks.
            let _ = tokio::time::timeout(ASKING, control.send(&answer)).await;
        }
        done
    }

    /// Removes what there is of the VM. What can't be removed now is by whoever finds the lock.
    async fn undo(&self, why: &OpsError, waiting: Option<Waiting>) {
        let undone = async {
            let _lock = match waiting {
                Some(waiting) => {
                    // It has never run here.
                    self.ops.destroy_copy(self.vmid).await?;
                    waiting.into_lock()
                }
                None => self.ops.guest_locks.lock(self.vmid).await?,
            };
            let guest = self.ops.own_guest(self.vmid).await?;
            if super::config::parse(&guest.config.value)?.current.lock() != Some(MAKING) {
                return Err(OpsError::failed(
                    "somebody has unlocked it, so it stays. Not all of its disks have come, and what has come was perhaps not looked into, \
                     and may name files of this host: don't start it, remove it",
                ));
            }
            self.ops.end_half_made(&guest).await
        };
        match undone.await {
            Ok(()) => self.cx.log(format!("nothing of VM {} is left here: {why}", self.vmid)),
            Err(e) => {
                self.cx.warn(format!("VM {}, which is not whole, could not be removed yet: {e}", self.vmid));
            }
        }
    }

    /// Leaves what may be somebody's. The process has never run here, and is none of that.
    async fn leave(&self, why: &OpsError, waiting: Option<Waiting>) {
        if let Some(waiting) = waiting
            && let Err(e) = self.ops.destroy_copy(self.vmid).await
        {
            let _lock = waiting.into_lock();
            tracing::warn!("guest {}: a process that waited could not be ended yet: {e}", self.vmid);
        }
        self.cx.warn(format!("what there is of VM {} stays: {why}", self.vmid));
    }

    /// Carries out what the other side says, until the VM is this node's: then without an error, and in no other case.
    async fn converse(
        &self,
        agreed: &mut Agreed,
        control: &mut Option<Lines>,
        channels: &mut Channels,
    ) -> Result<(), OpsError> {
        let mut writers = Writers::new();
        let patience = self.ops.guest_locks.tunnels.waits().heard;
        let mut until = Instant::now() + patience;
        loop {
            let heard = async {
                match control {
                    Some(control) => control.next::<Say>().await,
                    None => pending().await,
                }
            };
            let say = tokio::select! {
                heard = heard => heard.map_err(broke)?,
                Some(done) = writers.join_next(), if !writers.is_empty() => {
                    agreed.kept.insert(done.map_err(|e| OpsError::failed(e.to_string()))??);
                    continue;
                }
                Some((channel, io)) = channels.recv() => {
                    match channel {
                        Channel::Control if control.is_none() => *control = Some(Lines::new(Box::new(io))),
                        Channel::Control => {}
                        Channel::Disk(n) => self.take_disk(agreed, &mut writers, n, io)?,
                        Channel::Disks | Channel::Memory => self.take_stream(agreed, channel, io)?,
                    }
                    continue;
                }
                () = self.cx.cancelled() => return Err(OpsError::failed("it was stopped at the target")),
                () = tokio::time::sleep_until(until) => {
                    let seconds = patience.as_secs();
                    return Err(OpsError::failed(format!("nothing was heard of the other cluster for {seconds} s")));
                }
            };
            let Some(say) = say else { return Err(broke("it has ended")) };
            if matches!(say, Say::Commit | Say::Wait) {
                // What was kept just now has told its source so before it told this task.
                agreed.settle(&mut writers, patience).await?;
            }
            if say == Say::Commit {
                return self.take_over(agreed).await;
            }
            let answer = self.answer(agreed, say).await?;
            if let (Some(answer), Some(control)) = (answer, control.as_mut()) {
                control.send(&answer).await.map_err(broke)?;
            }
            until = Instant::now() + patience;
        }
    }

    async fn answer(&self, agreed: &mut Agreed, say: Say) -> Result<Option<Answer>, OpsError> {
        let order = |what: &str| OpsError::failed(format!("the other cluster said '{what}' out of its turn"));
        match say {
            Say::Hello { protocol, version } => {
                let answer = greeted(protocol).map_err(OpsError::failed)?;
                self.cx
                    .log(format!("the other cluster speaks version {protocol} (Stead {})", shown(&version)));
                agreed.greeted = true;
                Ok(Some(answer))
            }
            _ if !agreed.greeted => Err(order("anything before 'hello'")),
            Say::Fits { .. } if agreed.made.is_some() => Err(order("fits")),
            Say::Fits { config, volumes, runs } => {
                let mut config = super::config::parse(&config)?;
                outfit(&mut config);
                let why = self.obstacles(&config, &volumes, runs.as_ref()).await?;
                agreed.fits = why.is_empty().then_some((config, volumes, runs));
                Ok(Some(Answer::Obstacles { why }))
            }
            Say::Make => {
                let (config, sent, runs) = agreed.fits.take().ok_or_else(|| order("make"))?;
                let volumes = self.make(config, &sent).await?;
                agreed.made = Some(volumes.clone());
                agreed.runs = runs;
                let disks = sent.into_iter().enumerate().filter_map(|(n, s)| Some((n, s.disk?.0)));
                agreed.mirrored = disks.collect();
                Ok(Some(Answer::Made { volumes }))
            }
            Say::Wait => {
                agreed.waiting = Some(self.wait(agreed).await?);
                Ok(Some(Answer::Waits))
            }
            Say::Settle => {
                self.settle(agreed).await?;
                Ok(Some(Answer::Settled))
            }
            Say::Alive => Ok(None),
            Say::Quit | Say::Outcome => Err(OpsError::failed(GIVEN_UP)),
            Say::Commit => Err(order("commit")),
        }
    }

    /// All that speaks against taking it.
    async fn obstacles(
        &self,
        config: &VmConfig,
        sent: &[Sent],
        runs: Option<&Runs>,
    ) -> Result<Vec<String>, OpsError> {
        let ops = self.ops;
        let mut why = bound(config);
        why.extend(runs.into_iter().flat_map(|runs| self.live_obstacles(config, runs)));
        why.extend(live::mirrored_otherwise(config, sent, runs.is_some()));
        let refused = |result: Result<(), OpsError>| result.err().map(|e| e.to_string());
        why.extend(self.options(config));
        why.extend(refused(config.current.check().map_err(OpsError::from)));
        why.extend(refused(config.current.check_boot().map_err(OpsError::from)));
        for bridge in carried::bridges(config)? {
            why.extend(refused(self.actor.require(&of_bridge(&bridge), &["SDN.Use"])));
        }
        for storage in sent.iter().map(|s| &s.storage).collect::<BTreeSet<_>>() {
            why.extend(refused(
                self.actor.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"]),
            ));
        }
        why.extend(self.volumes(config, sent).await);
        let coming = sent.iter().map(|s| Carried {
            volume: s.volume.clone(),
            storage: s.storage.clone(),
            format: s.format.clone(),
            size: s.size,
            disk: s.disk.clone(),
        });
        why.extend(ops.no_room(&coming.collect::<Vec<_>>()).await);
        let mut current = config.current.clone();
        let unknown = ops.spell_out(&mut current, runs.is_some_and(|r| r.cpu.is_some())).await;
        why.extend(unknown.into_iter().map(|e| format!("on node '{}': {e}", ops.me.name)));
        // Also of one that does not run: whoever moves it wants to start it.
        let volumes = current.volumes().into_iter().map(|(_, v)| ResolvedVolume {
            format: sent
                .iter()
                .find(|s| s.volume == v)
                .map_or_else(|| "raw".to_owned(), |s| s.format.clone()),
            volume: v.to_string(),
            path: "/".into(),
        });
        let launch = Launch {
            vmid: self.vmid,
            epoch: Epoch(0),
            volumes: volumes.collect(),
            config: VmConfig { current, ..VmConfig::default() }.to_string(),
            recovered: false,
            // What nothing here may say is named already.
            incoming: runs.filter(|r| r.obstacle().is_none()).map(live::incoming),
        };
        let theirs = ops.guests.obstacles(&launch).await;
        why.extend(theirs.into_iter().map(|e| format!("on node '{}': {e}", ops.me.name)));
        Ok(why)
    }

    /// Options that the user of this cluster could not set, in whichever section.
    fn options(&self, config: &VmConfig) -> BTreeSet<String> {
        let mut why = BTreeSet::new();
        for section in carried::sections(config) {
            for (key, value) in section.iter().filter(|(key, _)| !OWN.contains(key)) {
                let may = self.may_set(key, value);
                why.extend(may.err().map(|e| e.to_string()));
            }
        }
        why
    }

    fn may_set(&self, key: &str, value: &str) -> Result<(), OpsError> {
        Ops::may_configure(self.actor, self.vmid, [(key, Some(value))].into_iter())?;
        let change = Change::set(key, value)?;
        // Where its disks come from is no storage of this cluster's; where they go was asked.
        match as_disk(key) {
            Some(_) => Ok(()),
            None => Ops::may_use_storages(self.actor, &[change]),
        }
    }

    /// What of the volumes that it names can't be had: each comes along, or is a CD that is here.
    async fn volumes(&self, config: &VmConfig, sent: &[Sent]) -> Vec<String> {
        let mut why = vec![];
        let named = config.all_volumes();
        for (n, s) in sent.iter().enumerate() {
            if !named.contains(&s.volume) || sent[..n].iter().any(|other| other.volume == s.volume) {
                why.push(format!("volume '{}' comes along, and is not one of the VM's", s.volume));
            }
            if !matches!(s.format.as_str(), "raw" | "qcow2") {
                why.push(format!(
                    "volume '{}' is in the format '{}', which is not known",
                    s.volume, s.format
                ));
            }
        }
        for volume in named.iter().filter(|v| !sent.iter().any(|s| s.volume == **v)) {
            let is_cd = carried::sections(config).all(|section| {
                let names = section.volumes().iter().any(|(_, v)| v == volume);
                !names || carried::is_cd(section, volume)
            });
            if !is_cd || cloudinit::is_drive(volume) {
                why.push(format!("volume '{volume}' does not come along"));
                continue;
            }
            let place = format!("/storage/{}", volume.storage);
            let there = match self.actor.require(&place, &["Datastore.Audit"]) {
                Ok(()) => self.ops.volume_info(volume).await,
                Err(e) => Err(e),
            };
            match there {
                Ok(info) if info.content == Content::Iso => {}
                Ok(_) => why.push(format!("the CD '{volume}' is no CD image here: take it out")),
                Err(e) => {
                    why.push(format!("the CD '{volume}' is not there ({e}): bring it there, or take it out"));
                }
            }
        }
        why
    }

    /// Names the volumes, and makes them.
    async fn make(&self, mut config: VmConfig, sent: &[Sent]) -> Result<Vec<VolumeId>, OpsError> {
        let (ops, vmid) = (self.ops, self.vmid);
        let _lock = ops.guest_locks.lock(vmid).await?;
        let guest = ops.own_guest(vmid).await?;
        if super::config::parse(&guest.config.value)?.current.lock() != Some(MAKING) {
            return Err(OpsError::failed(format!("somebody has unlocked VM {vmid} in the middle")));
        }
        let (mut names, mut map) = (vec![], BTreeMap::new());
        for s in sent {
            let driver = ops.active(&s.storage).await?;
            // Where a disk of that format lies. What is undone goes by its name: it is called as no other is, and as nobody else can call
            // one before it is made, as on a storage that both clusters have.
            let mut name = driver.next_name(vmid, Some(&s.format), None, &names).await?;
            let folder = name.name.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
            name.name = format!("{folder}vm-{vmid}-disk-{:016x}.{}", rand::random::<u64>(), s.format);
            if cloudinit::is_drive(&s.volume) {
                // It goes by its name.
                name.name = format!("{folder}vm-{vmid}-cloudinit.{}", s.format);
                if ops.volume_info(&name).await.is_ok() {
                    return Err(OpsError::failed(format!("'{name}' is there already: remove it first")));
                }
            }
            map.insert(s.volume.clone(), name.clone());
            names.push(name);
        }
        carried::rename(&mut config, &map)?;
        config.current.set("lock", MAKING)?;
        let txn = store::txn(&self.actor.who, format!("VM {vmid}: what comes of another cluster"));
        ops.commit_with(&guest, &config, txn).await?;
        for (name, s) in names.iter().zip(sent) {
            let format = Some(s.format.clone());
            // What is mirrored is of the size that the VM sees; what is sent brings its own.
            let size = s.disk.as_ref().map_or(SMALL, |(_, size)| *size);
            let made = ops.alloc(&name.storage, &NewVolume { vmid, name: file_of(name), format, size }).await;
            let made = made.map_err(|e| OpsError::failed(format!("no room for '{}': {e}", s.volume)))?;
            if made.volid != *name {
                return Err(OpsError::failed(format!(
                    "'{name}' was made under another name, '{}'",
                    made.volid
                )));
            }
            if s.disk.is_some() && made.size != size {
                return Err(OpsError::failed(format!(
                    "storage '{}' makes '{}' {} bytes large, and the running VM's disk has {size}: stop the VM, or choose another storage",
                    name.storage, s.volume, made.size
                )));
            }
            self.cx.log(format!("made volume '{name}', for {} MiB", s.size >> 20));
        }
        Ok(names)
    }

    /// Begins to write one of the volumes.
    fn take_disk(
        &self,
        agreed: &mut Agreed,
        writers: &mut Writers,
        n: usize,
        io: DuplexStream,
    ) -> Result<(), OpsError> {
        let volume = agreed.made.iter().flatten().nth(n).cloned();
        let volume = volume.filter(|_| !agreed.mirrored.contains_key(&n) && agreed.begun.insert(n));
        let volume = volume.ok_or_else(|| OpsError::failed(format!("no volume {n} is awaited")))?;
        let (ops, cx) = (self.ops.clone(), self.cx.clone());
        writers.spawn(async move {
            answered(io, async |io| ops.take_image(&volume, io).await).await?;
            cx.log(format!("'{volume}' is on disk"));
            Ok(n)
        });
        Ok(())
    }
}

impl Ops {
    /// Writes a volume, and refuses one that names files of this host.
    async fn take_image(&self, volume: &VolumeId, from: &mut impl Duplex) -> Result<(), OpsError> {
        let path = self.resolve_volume(volume).await?.path;
        write_parts(&path, from)
            .await
            .map_err(|e| OpsError::failed(format!("could not write '{volume}': {e}")))?;
        Ok(self.active(&volume.storage).await?.check_brought(&volume.name).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ticket_is_its_user_s_and_its_vm_s_and_ends() {
        let all = Tunnels::default();
        let [a, b] = [100, 101].map(|n| Vmid::new(n).unwrap());
        let (ticket, tunnel, _channels) = all.begin(a, "u@pve!t").unwrap();
        let (other, ..) = all.begin(a, "u@pve!t").unwrap();
        assert_ne!(ticket, other);
        assert!(all.find("u@pve!t", a, &ticket).is_some());
        for (user, vmid, shown) in [
            ("u@pve", a, ticket.as_str()),
            ("u@pve!t", b, &ticket),
            ("u@pve!t", a, "PVETUNNEL:"),
            ("u@pve!t", a, ""),
        ] {
            assert!(all.find(user, vmid, shown).is_none(), "{user} {vmid} {shown}");
        }
        *tunnel.ended() = Some((Some(Answer::Committed), Instant::now()));
        assert!(all.find("u@pve!t", a, &ticket).is_some(), "what became of it can be asked");
        *tunnel.ended() = Some((Some(Answer::Committed), Instant::now().checked_sub(KEPT).unwrap()));
        assert!(all.find("u@pve!t", a, &ticket).is_none());
        assert!(all.find("u@pve!t", a, &other).is_some(), "the other one goes on");
        let more = std::iter::from_fn(|| all.begin(b, "u@pve!t")).take(2 * AT_ONCE).count();
        assert_eq!(more, AT_ONCE - 1, "those that have ended do not count");
    }
}
