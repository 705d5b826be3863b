//! A VM that goes to another cluster: the source's side of [`stead_guest::remote`].
//!
//! The two clusters share no record, so the order is all there is: the VM is given away in this cluster's configuration before the
//! other one is told that it may have it, and is taken back on that one's definite *no* alone. Given away is a VM that does not run
//! and whose lock, `migrate`, no task holds: no restart of this daemon and no recovery takes that off, its user can.

mod live;

use super::along::mirrored;
use super::carry::Carried;
use super::images::{Pace, send_image};
use super::migrate::LOCK;
use super::{Asked, copies};
use crate::remote::{Ask, Lines, RemoteError};
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use stead_guest::carried;
pub use stead_guest::carried::{Bridge, BridgeMap, StorageMap};
use stead_guest::clones::MAKING;
use stead_guest::remote::{Answer, Channel, PROTOCOL, Runs, Say, Sent, bound, outfit, shown};
use stead_guest::request::{Request, Verdict};
use stead_model::vmconfig::VmConfig;
use stead_model::{Ownership, Remote, Upid, Vmid, VolumeId, cloudinit, paths};
use stead_tasks::TaskContext;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How long a call of the other cluster's API may take.
const CALL: Duration = Duration::from_secs(30);
/// How long an answer by the tunnel may take: storages that answer slowly, and blocks that are written.
const ANSWER: Duration = Duration::from_secs(180);
/// How long the answer to the last word about a VM whose process stands may take before it is asked for by a new connection.
const COMMIT: Duration = Duration::from_secs(20);
/// So often the other side hears that somebody is there.
const ALIVE: Duration = Duration::from_secs(10);
/// Between two questions what became of the VM.
const AGAIN: Duration = Duration::from_secs(2);

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct RemoteOptions {
    /// Where to.
    pub remote: Remote,
    /// Its number there; none: the same.
    pub target_vmid: Option<Vmid>,
    /// Where its volumes go.
    pub storages: StorageMap,
    /// What its network devices are attached to.
    pub bridges: BridgeMap,
    /// While it runs.
    pub online: bool,
    /// Remove it here once it is there.
    pub delete: bool,
    /// KiB/s; none or 0: no limit.
    pub bwlimit: Option<u64>,
}

/// What the other cluster opens for it. Contains a secret.
#[derive(Deserialize)]
struct Opened {
    upid: Upid,
    ticket: String,
    socket: String,
}

/// What became of a VM that was given away.
enum Fate {
    /// It is the other cluster's.
    There,
    /// It never will be.
    Not(String),
    /// Nobody can tell.
    Unknown(String),
}

/// The next answer. Its words are another cluster's, and are shown to people here.
async fn answer(lines: &mut Lines) -> std::io::Result<Option<Answer>> {
    Ok(lines.next::<Answer>().await?.map(Answer::shown))
}

fn unawaited(answer: &Answer) -> String {
    format!("it answers with {}", shown(&format!("{answer:?}")))
}

/// A question that was not answered.
fn lost(at: &Remote, why: impl std::fmt::Display) -> OpsError {
    OpsError::failed(format!("the connection to the cluster at {at} broke: {why}"))
}

impl Ops {
    /// Moves a VM of this node to another cluster.
    pub async fn remote_migrate(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        options: RemoteOptions,
    ) -> Result<Upid, OpsError> {
        let guest = self.vm_at(vmid)?;
        if options.delete {
            actor.require(&format!("/vms/{vmid}"), &["VM.Allocate"])?;
        }
        self.may_depart(&guest, &options).await?;
        let running = self.guests.state(vmid).await.is_some();
        let (ops, who) = (self.clone(), actor.who.clone());
        self.task("qmigrate", &vmid.to_string(), &actor.who, move |cx| async move {
            let _place = match running {
                true => Some(ops.place_to_send(&cx).await?),
                false => None,
            };
            let _lock = ops.guest_locks.lock(vmid).await?;
            let mut guest = ops.own_guest(vmid).await?;
            ops.may_depart(&guest, &options).await?;
            if ops.guests.state(vmid).await.is_some() {
                ops.is_whole(vmid).await?;
                // The process there is made by the configuration, which must say what the machine is.
                ops.true_up(vmid).await?;
                guest = ops.own_guest(vmid).await?;
            }
            Departing { ops: &ops, cx: &cx, who: &who, vmid, options: &options }.go(guest).await
        })
    }

    async fn may_depart(&self, guest: &GuestAt, options: &RemoteOptions) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        let runs = self.guests.state(vmid).await.is_some();
        let request = if runs && options.online { Request::MigrateLive } else { Request::MigrateOffline };
        match self.admit(guest, request, Asked::default()).await? {
            Verdict::Refuse(why) => return Err(OpsError::Failed(why)),
            Verdict::ByHa => {
                return Err(OpsError::failed(format!(
                    "VM {vmid} is under HA, which would keep it in this cluster: take it from under HA first"
                )));
            }
            Verdict::Accept | Verdict::Already => {}
        }
        if options.delete && self.facts(guest).await?.protection {
            let why = format!(
                "VM {vmid} is protected from removal: take 'protection' out, or move it without 'delete'"
            );
            return Err(OpsError::Failed(why));
        }
        Ok(())
    }
}

/// A move from this node, by the task that carries it out under the VM's mutex.
struct Departing<'a> {
    ops: &'a Ops,
    cx: &'a TaskContext,
    who: &'a str,
    vmid: Vmid,
    options: &'a RemoteOptions,
}

/// The way to the VM's place in the other cluster.
struct Far {
    /// `/nodes/NODE/qemu/VMID`.
    path: String,
    opened: Opened,
    ca: String,
}

impl Departing<'_> {
    fn there(&self) -> Vmid {
        self.options.target_vmid.unwrap_or(self.vmid)
    }

    async fn go(&self, guest: GuestAt) -> Result<(), OpsError> {
        let (vmid, at) = (self.vmid, &self.options.remote);
        self.cx.log(format!(
            "moving VM {vmid} to the cluster at {at}, as VM {}, with the rights of '{}' there",
            self.there(),
            at.token
        ));
        let runs = self.ops.guests.state(vmid).await.as_ref().map(live::runs);
        let (config, volumes, why) = self.outfitted(&guest, runs.is_some()).await?;
        let ready = async {
            let ca = self.ops.file(paths::CA_CERT)?.0;
            self.check_is_stead(&ca).await?;
            let far = self.open(ca).await?;
            let (lines, takes_live) = self.control(&far).await?;
            if runs.is_some() && !takes_live {
                let why = "its version takes only VMs that do not run: bring it to that of this one, or shut the VM down";
                return Err(self.strange(why));
            }
            Ok::<_, OpsError>((far, Wire::start(lines)))
        };
        let (far, wire, why) = match self.or_cancelled(ready).await {
            Ok((far, wire)) => {
                let fits = self.ask_fits(&wire, &config, &volumes, runs.clone(), why);
                let why = self.or_cancelled(fits).await?;
                (far, wire, why)
            }
            // What speaks against it here is named all the same.
            Err(e) => return Err(self.refused(why.into_iter().chain([e.to_string()]))),
        };
        if !why.is_empty() {
            return Err(self.refused(why.into_iter()));
        }
        let guest = self.ops.set_lock(guest, LOCK, self.cx.upid()).await?;
        if let Some(runs) = runs {
            return self.live(&far, wire, guest, &volumes, runs.paused).await;
        }
        let sent = self.or_cancelled(self.send(&far, &wire, &guest, &volumes)).await;
        let given = match sent {
            Ok(()) => self.give_away(&guest).await,
            Err(e) => Err(e),
        };
        if let Err(e) = given {
            // Nobody has told the other side that it may have it: it hears that it may not, or finds out.
            drop(wire);
            self.take_back().await;
            return Err(OpsError::failed(format!("migration aborted: {e}")));
        }
        self.conclude(self.hand_over(&far, wire, ANSWER).await).await
    }

    async fn or_cancelled<T>(&self, work: impl Future<Output = Result<T, OpsError>>) -> Result<T, OpsError> {
        self.cx.or_cancelled(work).await.map_err(|e| OpsError::failed(e.to_string()))?
    }

    fn refused(&self, why: impl Iterator<Item = String>) -> OpsError {
        let why: Vec<String> = why.collect();
        OpsError::failed(format!(
            "can't migrate VM {} to the cluster at {}: {}",
            self.vmid,
            self.options.remote,
            why.join("; ")
        ))
    }

    /// The configuration as it is to be there, its volumes, and all that speaks against it here.
    async fn outfitted(
        &self,
        guest: &GuestAt,
        runs: bool,
    ) -> Result<(VmConfig, Vec<Carried>, Vec<String>), OpsError> {
        let (ops, storages) = (self.ops, &self.options.storages);
        let mut config = super::config::parse(&guest.config.value)?;
        let mut why = bound(&config);
        if let Some(storage) = ops.silent_disk(&config) {
            why.push(format!("storage '{storage}' does not answer on this node: try again when it does"));
        }
        let (mut volumes, mut cds) = (vec![], vec![]);
        for volume in config.all_volumes() {
            if carried::sections(&config).any(|s| carried::is_cd(s, &volume)) && !cloudinit::is_drive(&volume)
            {
                let there = VolumeId { storage: storages.of(&volume.storage), name: volume.name.clone() };
                cds.push((volume, there));
                continue;
            }
            let found = async {
                let info = ops.own_image(self.vmid, &volume).await?;
                let disk = if runs { mirrored(&config, &volume)? } else { None };
                Ok::<_, OpsError>((disk.map(|key| (key, info.size)), info))
            };
            match found.await {
                Ok((disk, info)) => {
                    let storage = storages.of(&volume.storage);
                    volumes.push(Carried { volume, storage, format: info.format, size: info.used, disk });
                }
                Err(e) => why.push(e.to_string()),
            }
        }
        outfit(&mut config);
        carried::rename(&mut config, &cds.into_iter().collect())?;
        carried::rename_bridges(&mut config, &self.options.bridges)?;
        for section in carried::sections_mut(&mut config) {
            let memory = section.get("vmstatestorage").and_then(|id| id.parse().ok());
            if let Some(storage) = memory {
                section.set("vmstatestorage", storages.of(&storage).as_str())?;
            }
        }
        Ok((config, volumes, why))
    }

    async fn call(&self, ca: &str, ask: &Ask) -> Result<serde_json::Value, RemoteError> {
        self.ops.remotes.call(&self.options.remote, ca, ask, CALL).await
    }

    fn strange(&self, why: impl Into<String>) -> OpsError {
        RemoteError::Strange { at: self.options.remote.to_string(), why: why.into() }.into()
    }

    fn unawaited(&self, answer: &Answer) -> OpsError {
        self.strange(unawaited(answer))
    }

    /// What its tunnel carries is Stead's own.
    async fn check_is_stead(&self, ca: &str) -> Result<(), OpsError> {
        let version = self.call(ca, &Ask::get("/version", "say its version")).await?;
        match version["stead"].as_str() {
            Some(version) => {
                self.cx.log(format!("the cluster at {} runs Stead {}", self.options.remote, shown(version)));
                Ok(())
            }
            None => Err(self.strange("it is no cluster of Stead's: a VM moves to one of these alone")),
        }
    }

    /// Has its place reserved.
    async fn open(&self, ca: String) -> Result<Far, OpsError> {
        let join = |all: Vec<String>| all.join(",");
        let storages = self.options.storages.targets().map(ToString::to_string).collect();
        let bridges = self.options.bridges.targets().map(ToString::to_string).collect();
        let mut ask = Ask::post(format!("/nodes/localhost/qemu/{}/mtunnel", self.there()), "open a tunnel");
        for (name, list) in [("storages", join(storages)), ("bridges", join(bridges))] {
            if !list.is_empty() {
                ask = ask.with(name, list);
            }
        }
        let opened = self.call(&ca, &ask).await?;
        let opened: Opened = serde_json::from_value(opened)
            .map_err(|e| self.strange(format!("its tunnel can't be understood: {e}")))?;
        self.cx.log(format!("its task there is {}", opened.upid));
        // Whichever node answers next at that address: this one has the tunnel.
        let path = format!("/nodes/{}/qemu/{}", opened.upid.node, self.there());
        Ok(Far { path, opened, ca })
    }

    fn channel_ask(&self, far: &Far, socket: String) -> Ask {
        Ask::get(format!("{}/mtunnelwebsocket", far.path), "open a channel of the tunnel")
            .with("ticket", far.opened.ticket.clone())
            .with("socket", socket)
    }

    async fn channel(&self, far: &Far, socket: String) -> Result<Box<dyn crate::peers::Duplex>, OpsError> {
        Ok(self.ops.remotes.open(&self.options.remote, &far.ca, &self.channel_ask(far, socket)).await?)
    }

    /// Messages, after the first has been exchanged, and whether it takes VMs that run.
    async fn control(&self, far: &Far) -> Result<(Lines, bool), OpsError> {
        let at = &self.options.remote;
        let greeted = async {
            let mut lines = Lines::new(self.channel(far, far.opened.socket.clone()).await?);
            let hello = Say::Hello { protocol: PROTOCOL, version: self.ops.me.version.to_owned() };
            lines.send(&hello).await.map_err(|e| lost(at, e))?;
            match answer(&mut lines).await.map_err(|e| lost(at, e))? {
                Some(Answer::Hello { protocol: PROTOCOL, live }) => Ok((lines, live)),
                Some(Answer::Gone { why }) => Err(OpsError::Failed(why)),
                Some(other) => Err(self.unawaited(&other)),
                None => Err(lost(at, "it has closed the tunnel")),
            }
        };
        let timed = tokio::time::timeout(CALL, greeted).await;
        timed.unwrap_or_else(|_| Err(lost(at, format!("no greeting within {} s", CALL.as_secs()))))
    }

    async fn say(&self, wire: &Wire, say: Say) -> Result<Answer, OpsError> {
        match wire.say(say, ANSWER).await {
            Ok(Answer::Gone { why }) => Err(OpsError::Failed(why)),
            Ok(answer) => Ok(answer),
            Err(e) => Err(lost(&self.options.remote, e)),
        }
    }

    /// All that speaks against it, here and there.
    async fn ask_fits(
        &self,
        wire: &Wire,
        config: &VmConfig,
        volumes: &[Carried],
        runs: Option<Runs>,
        mut why: Vec<String>,
    ) -> Result<Vec<String>, OpsError> {
        let sent = |c: &Carried| Sent {
            volume: c.volume.clone(),
            storage: c.storage.clone(),
            format: c.format.clone(),
            size: c.size,
            disk: c.disk.clone(),
        };
        let volumes = volumes.iter().map(sent).collect();
        let fits = Say::Fits { config: config.to_string(), volumes, runs };
        match self.say(wire, fits).await {
            Ok(Answer::Obstacles { why: theirs }) => {
                let new: Vec<String> = theirs.into_iter().filter(|w| !why.contains(w)).collect();
                why.extend(new.into_iter().map(|w| format!("there: {w}")));
            }
            Ok(other) => why.push(self.unawaited(&other).to_string()),
            Err(e) => why.push(e.to_string()),
        }
        Ok(why)
    }

    /// Sends all volumes but those that are mirrored. They are on the other side's disks then.
    async fn send(
        &self,
        far: &Far,
        wire: &Wire,
        guest: &GuestAt,
        volumes: &[Carried],
    ) -> Result<(), OpsError> {
        let config = super::config::parse(&guest.config.value)?;
        let limit = copies::limit(self.options.bwlimit).or(config.current.migrate_speed()?);
        let made = match self.say(wire, Say::Make).await? {
            Answer::Made { volumes: made } if made.len() == volumes.len() => made,
            other => return Err(self.unawaited(&other)),
        };
        let to = format!("the cluster at {}", self.options.remote);
        for (n, (from, name)) in
            volumes.iter().zip(&made).enumerate().filter(|(_, (from, _))| from.disk.is_none())
        {
            self.cx.log(format!("sending '{}' to '{name}' there: {} MiB", from.volume, from.size >> 20));
            let path = self.ops.resolve_volume(&from.volume).await?.path;
            let io = self.channel(far, Channel::Disk(n).name()).await?;
            let pace = Pace { limit, patience: self.ops.guest_locks.tunnels.waits().stalled };
            let (volume, tell) = (from.volume.to_string(), |sent| from.tell(self.cx, sent));
            let bytes = match send_image(io, &path, (&volume, &to), pace, tell).await {
                Ok(bytes) => bytes,
                // It may have said why it takes no more of it.
                Err(e) => match wire.say(Say::Outcome, CALL).await {
                    Ok(Answer::Gone { why }) => return Err(OpsError::failed(format!("{e} ({why})"))),
                    _ => return Err(e),
                },
            };
            self.cx.log(format!("'{}' is there: {} MiB were sent", from.volume, bytes >> 20));
        }
        Ok(())
    }

    /// Records that the VM is not this cluster's any more, whatever becomes of this daemon: its lock is held by no task.
    async fn give_away(&self, guest: &GuestAt) -> Result<(), OpsError> {
        let mut config = super::config::parse(&guest.config.value)?;
        config.current.set("lock", LOCK)?;
        let note = format!("VM {}: given to the cluster at {}", self.vmid, self.options.remote);
        let mut txn = store::txn(self.who, note);
        // It has no process. That the record says so, too, is what keeps its lock through a recovery.
        let own = Ownership { running: false, armed: false, ..guest.own.value.clone() };
        store::put_over(
            &mut txn,
            &paths::ownership(self.vmid),
            Some(guest.own.revision),
            store::bytes(&own)?,
        );
        self.ops.commit_released(guest, &config, txn).await?;
        self.cx.log(format!(
            "all of it is there: VM {} is given away. From here on it stays locked ({LOCK}) unless the other cluster says that it has it \
             not. Should this log end here, look there: {}. Never start both",
            self.vmid,
            self.what_to_do()
        ));
        Ok(())
    }

    /// Unlocks the VM, which is this cluster's and nobody else's. That it was given away may have been recorded, and nobody but this task
    /// knows better: it tries for as long as it would ask the other side.
    async fn take_back(&self) {
        let until = Instant::now() + self.ops.guest_locks.tunnels.waits().outcome;
        loop {
            let unlocked = async { self.ops.unlock(&self.ops.own_guest(self.vmid).await?).await };
            let Err(e) = unlocked.await else { return };
            if Instant::now() >= until {
                self.cx.warn(format!(
                    "VM {0} was not given away, and could not be unlocked: {e}. If it stays locked ({LOCK}), unlock it (stead vm unlock {0})",
                    self.vmid
                ));
                return;
            }
            self.cx.log(format!("it could not be unlocked: {e}; trying again"));
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What a person who looks at the other cluster makes of it.
    fn what_to_do(&self) -> String {
        format!(
            "if there is a VM {1} that is not locked, it is this one, and this one can be removed; if there is one that is locked \
             ({MAKING}), it is not decided yet: wait until it is unlocked or gone, and start neither; if there is none, unlock this one \
             (stead vm unlock {0})",
            self.vmid,
            self.there()
        )
    }

    /// Tells the other side that the VM is its own, and hears whether it is. `limit`: how long the first answer may take.
    async fn hand_over(&self, far: &Far, wire: Wire, limit: Duration) -> Fate {
        let mut why = match wire.say(Say::Commit, limit).await {
            Ok(Answer::Committed) => return Fate::There,
            Ok(Answer::Gone { why }) => return Fate::Not(why),
            Ok(other) => unawaited(&other),
            Err(e) => e,
        };
        drop(wire);
        let until = Instant::now() + self.ops.guest_locks.tunnels.waits().outcome;
        loop {
            self.cx.log(format!("whether the VM is there is not known ({why}); asking again"));
            match self.outcome(far).await {
                Ok(Answer::Committed) => return Fate::There,
                Ok(Answer::Gone { why }) => return Fate::Not(why),
                Ok(other) => why = unawaited(&other),
                Err(e) => why = e.to_string(),
            }
            if Instant::now() >= until {
                return Fate::Unknown(why);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Asks what became of it, by a new connection.
    async fn outcome(&self, far: &Far) -> Result<Answer, OpsError> {
        let at = &self.options.remote;
        let asked = async {
            let (mut lines, _) = self.control(far).await?;
            lines.send(&Say::Outcome).await.map_err(|e| lost(at, e))?;
            answer(&mut lines).await.map_err(|e| lost(at, e))?.ok_or_else(|| lost(at, "no answer"))
        };
        match tokio::time::timeout(CALL, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(lost(at, "no answer in time")),
        }
    }

    async fn conclude(&self, fate: Fate) -> Result<(), OpsError> {
        let (vmid, there, at) = (self.vmid, self.there(), &self.options.remote);
        match fate {
            Fate::There => self.cx.log(format!("it is VM {there} of the cluster at {at}")),
            Fate::Not(why) => {
                self.take_back().await;
                return Err(OpsError::failed(format!("migration aborted: {why}")));
            }
            Fate::Unknown(why) => {
                return Err(OpsError::failed(format!(
                    "whether VM {vmid} is at the cluster at {at} is not known: all of it was sent, and nobody answers whether it was taken \
                     ({why}). Here it is whole, stopped and locked ({LOCK}). Look there: {}. Never start both",
                    self.what_to_do()
                )));
            }
        }
        if !self.options.delete {
            self.cx.log(format!(
                "VM {vmid} stays here, stopped and locked ({LOCK}): remove it when the other one is as it should be. Unlocked and \
                 started, there would be two of it"
            ));
            return Ok(());
        }
        let removed = async {
            let guest = self.ops.own_guest(vmid).await?;
            self.ops.remove_whole(self.cx, self.who, &guest, false).await
        };
        if let Err(e) = removed.await {
            self.cx.warn(format!(
                "VM {vmid} is there, and could not be removed here: {e}. Unlock and remove it"
            ));
        }
        Ok(())
    }
}

/// The control channel, kept alive until this is dropped: then it says that nothing more comes.
struct Wire(mpsc::Sender<(Say, oneshot::Sender<Result<Answer, String>>)>);

impl Wire {
    fn start(lines: Lines) -> Self {
        let (asks, asked) = mpsc::channel(1);
        tokio::spawn(speak(lines, asked));
        Self(asks)
    }

    /// Says something, and gives what is answered.
    async fn say(&self, say: Say, limit: Duration) -> Result<Answer, String> {
        let closed = || "the tunnel was closed".to_owned();
        let (back, answer) = oneshot::channel();
        self.0.send((say, back)).await.map_err(|_| closed())?;
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(closed())),
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
        }
    }
}

async fn speak(mut lines: Lines, mut asked: mpsc::Receiver<(Say, oneshot::Sender<Result<Answer, String>>)>) {
    let (mut alive, mut is_open) = (tokio::time::interval(ALIVE), true);
    loop {
        let (say, mut back) = tokio::select! {
            ask = asked.recv() => match ask {
                Some(ask) => ask,
                // Whoever does not hear it finds out.
                None => return drop(lines.send(&Say::Quit).await),
            },
            _ = alive.tick(), if is_open => {
                // What it has said before it went away is heard by the next question.
                is_open = lines.send(&Say::Alive).await.is_ok();
                continue;
            }
        };
        let heard = async {
            // It may have gone with a word of why.
            let sent = lines.send(&say).await;
            match (answer(&mut lines).await, sent) {
                (Ok(Some(answer)), _) => Ok(answer),
                (Ok(None), _) => Err("it has closed the tunnel".to_owned()),
                (Err(e), _) => Err(e.to_string()),
            }
        };
        let heard = tokio::select! {
            heard = heard => heard,
            // Whoever asked has given up: an answer that comes now would be taken for that to the next question.
            () = back.closed() => return,
        };
        let ended = heard.is_err();
        if back.send(heard).is_err() || ended {
            return;
        }
    }
}
