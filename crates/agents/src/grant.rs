//! The shell of [`stead_membership::grantor`]: one task that owns the grantor, on every node; it grants only
//! while its node leads. It decides nothing: heartbeats, confirmations, committed members and time go in,
//! confirmation rounds, answers and declarations of loss come out.

use crate::clock::boottime;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use stead_conf::TxnError;
use stead_membership::grantor::{DeclareFailure, Declared, Grantor, GrantorCommand, Member, PowerOff};
use stead_membership::wire::{Heartbeat, HeartbeatAnswer};
use stead_model::{NodeName, NodeState, PoweredOff, paths};
use stead_ops::store::{self, At};
use stead_ops::{Ops, OpsError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

enum Input {
    Heartbeat(Heartbeat, oneshot::Sender<HeartbeatAnswer>),
    Confirmed { round: u64, term: Option<u64> },
    Declared { node: NodeName, outcome: Result<(), DeclareFailure> },
    Powered { order: PowerOff, done: Result<PoweredOff, OpsError> },
    Settled(NodeName, oneshot::Sender<bool>),
}

/// Hands heartbeats to the grantor.
#[derive(Clone)]
pub struct GrantHandle(mpsc::Sender<Input>);

impl GrantHandle {
    /// Answers a heartbeat, or nothing when the grantor is overwhelmed or ending.
    pub async fn heartbeat(&self, beat: Heartbeat) -> Option<HeartbeatAnswer> {
        let (answer, wait) = oneshot::channel();
        self.0.send(Input::Heartbeat(beat, answer)).await.ok()?;
        wait.await.ok()
    }

    /// Whether nothing of a lost node can run any more, by this leader's own count. That the loss is committed is not
    /// enough: an older leader may have decided it, and a newer one granted a lease since.
    pub async fn settled(&self, node: &NodeName) -> bool {
        let (answer, wait) = oneshot::channel();
        let asked = self.0.send(Input::Settled(node.clone(), answer)).await.is_ok();
        asked && wait.await.unwrap_or(false)
    }
}

struct Shell {
    ops: Arc<Ops>,
    grantor: Grantor,
    send: mpsc::Sender<Input>,
    /// Who waits for the answer to which nonce: a heartbeat may come by several links.
    waiting: HashMap<(NodeName, u64), Vec<oneshot::Sender<HeartbeatAnswer>>>,
    /// Orders to fence devices that are under way: who is dropped ends its agents.
    striking: HashMap<NodeName, JoinSet<()>>,
    /// What devices have confirmed, until it is committed.
    confirmed: HashMap<NodeName, PoweredOff>,
    /// Why fence devices are not used, as it was told last.
    unusable: Option<String>,
}

/// Starts the task.
pub fn start(ops: Arc<Ops>) -> GrantHandle {
    let (send, receive) = mpsc::channel(1024);
    let (profile, previous) =
        ops.cluster_record().map(|c| (c.value.profile, c.value.previous_profile)).unwrap_or_default();
    let grantor = Grantor::new(boottime(), profile, previous);
    let shell = Shell {
        ops,
        grantor,
        send: send.clone(),
        waiting: HashMap::new(),
        striking: HashMap::new(),
        confirmed: HashMap::new(),
        unusable: None,
    };
    tokio::spawn(shell.run(receive));
    GrantHandle(send)
}

impl Shell {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut raft = self.ops.conf.status();
        let mut watch = self.ops.conf.watch();
        self.read_members();
        loop {
            let leads = {
                let s = raft.borrow_and_update();
                s.is_leader.then_some(s.term)
            };
            let commands = match leads {
                Some(term) => self.grantor.lead(boottime(), term),
                None => self.grantor.depose(),
            };
            self.carry_out(commands);
            let wake = self.grantor.next_wake().map(|at| at.saturating_sub(boottime()));
            let commands = tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
                changed = raft.changed() => {
                    if changed.is_err() { return; }
                    vec![]
                }
                event = watch.next() => match event {
                    Some(event) if !store::touches(&event, "stead/") => {
                        if store::touches(&event, "ha/") {
                            self.read_devices();
                        }
                        vec![]
                    }
                    Some(_) => { self.read_members(); vec![] }
                    None => return,
                },
                () = sleep(wake) => {
                    // Who goes down in order has said so by a report, not by a commit.
                    self.read_devices();
                    self.grantor.step(boottime())
                }
            };
            self.carry_out(commands);
        }
    }

    /// What is committed goes in before anything that depends on it.
    fn read_members(&mut self) {
        let now = boottime();
        let nodes = self.ops.guest_nodes();
        self.grantor.set_members(now, nodes.iter().map(|n| (n.name.clone(), Member::from(n))).collect());
        if let Ok(cluster) = self.ops.cluster_record() {
            self.grantor.set_profile(now, cluster.value.profile, cluster.value.previous_profile);
        }
        self.read_devices();
    }

    /// Without a list that can be read nobody is powered off.
    fn read_devices(&mut self) {
        let (devices, unusable) = match self.ops.fence_delays() {
            Ok(devices) => (devices, None),
            Err(e) => (std::collections::BTreeMap::new(), Some(e.to_string())),
        };
        if let Some(why) = unusable.as_ref().filter(|why| self.unusable.as_ref() != Some(*why)) {
            tracing::error!("fence devices are not used: {why}");
        }
        self.unusable = unusable;
        self.grantor.set_devices(devices);
        self.grantor.set_elsewhere(self.ops.elsewhere());
    }

    fn take(&mut self, input: Input) -> Vec<GrantorCommand> {
        match input {
            Input::Heartbeat(beat, answer) => {
                self.waiting.retain(|_, all| {
                    all.retain(|w| !w.is_closed());
                    !all.is_empty()
                });
                let copies = self.waiting.entry((beat.node.clone(), beat.nonce)).or_default();
                copies.push(answer);
                // It is being answered already. That counts from its first coming, which is before this one's.
                if copies.len() > 1 { vec![] } else { self.grantor.heartbeat(boottime(), beat) }
            }
            Input::Confirmed { round, term: Some(term) } => {
                self.read_members();
                self.grantor.confirmed(round, term)
            }
            Input::Confirmed { round, term: None } => self.grantor.unconfirmed(round),
            Input::Declared { node, outcome } => {
                // A commit has been applied here when it is answered.
                self.read_members();
                match outcome {
                    Ok(()) => self.grantor.declared(boottime(), &node),
                    Err(failure) => self.grantor.declare_failed(&node, failure),
                }
                vec![]
            }
            Input::Powered { order, done } => {
                let PowerOff { node, boot, .. } = &order;
                self.striking.remove(node);
                match done {
                    Ok(off) => {
                        tracing::warn!("node '{node}' is off, by {}, after {} ms", off.devices, off.took_ms);
                        self.say(node, "off", &off.devices);
                        self.confirmed.insert(node.clone(), off);
                        self.grantor.powered_off(node, boot);
                    }
                    Err(e) => {
                        tracing::error!("node '{node}' could not be powered off, and is waited for: {e}");
                        self.say(node, "not off", &e.to_string());
                        self.grantor.power_off_failed(node, boot);
                    }
                }
                vec![]
            }
            Input::Settled(node, answer) => {
                self.grantor.set_elsewhere(self.ops.elsewhere());
                // The asker may have given up.
                let _ = answer.send(self.grantor.settled(boottime(), &node));
                vec![]
            }
        }
    }

    fn say(&self, node: &NodeName, power: &str, why: &str) {
        self.ops.events.emit(
            "ha",
            format!("node:{node}"),
            serde_json::json!({"power": power, "reason": why}),
        );
    }

    /// Has a node's power taken, beside everything else.
    fn strike(&mut self, order: PowerOff) {
        let silent = order.silent.as_millis();
        tracing::warn!(
            "node '{}' has had no lease for {silent} ms: its fence devices take its power",
            order.node
        );
        self.say(&order.node, "ordered off", &format!("no lease for {silent} ms"));
        let (ops, send, node) = (self.ops.clone(), self.send.clone(), order.node.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let done = ops.power_off(&order.node, &order.boot).await;
            // The task that owns the grantor may have ended.
            let _ = send.send(Input::Powered { order, done }).await;
        });
        self.striking.insert(node, task);
    }

    fn carry_out(&mut self, commands: Vec<GrantorCommand>) {
        for command in commands {
            match command {
                GrantorCommand::Answer { node, answer } => {
                    for wait in self.waiting.remove(&(node, answer.nonce)).unwrap_or_default() {
                        // The asker may have given up.
                        let _ = wait.send(answer.clone());
                    }
                }
                GrantorCommand::Confirm { round } => {
                    let (ops, send) = (self.ops.clone(), self.send.clone());
                    tokio::spawn(async move {
                        let term = ops.conf.confirm_leadership().await.ok().map(|l| l.term);
                        // The task that owns the grantor may have ended.
                        let _ = send.send(Input::Confirmed { round, term }).await;
                    });
                }
                GrantorCommand::SettleProfile(previous) => {
                    let ops = self.ops.clone();
                    tokio::spawn(async move {
                        // It is asked for again until it is done.
                        if let Err(e) = ops.settle_profile(previous).await {
                            tracing::warn!("the end of the change from profile '{previous}': {e}");
                        }
                    });
                }
                GrantorCommand::PowerOff(order) => self.strike(order),
                GrantorCommand::CallOff { node } => {
                    if self.striking.remove(&node).is_some() {
                        tracing::info!("node '{node}': what its fence devices have under way is called off");
                        self.ops.status.called_off(&node);
                    }
                }
                GrantorCommand::PowerOn { node } => {
                    let ops = self.ops.clone();
                    tokio::spawn(async move {
                        if let Err(e) = ops.power_on(&node).await {
                            tracing::warn!("node '{node}' was not given its power back: {e}");
                        }
                    });
                }
                GrantorCommand::DeclareLost(declared) => {
                    let (ops, send) = (self.ops.clone(), self.send.clone());
                    let of_it = |off: &&PoweredOff| declared.off && off.boot == declared.boot;
                    let off = self.confirmed.get(&declared.node).filter(of_it).cloned();
                    tokio::spawn(async move {
                        let outcome = declare(&ops, &declared, off).await;
                        // The task that owns the grantor may have ended.
                        let _ = send.send(Input::Declared { node: declared.node, outcome }).await;
                    });
                }
            }
        }
    }
}

async fn sleep(wake: Option<Duration>) {
    match wake {
        Some(d) => tokio::time::sleep(d).await,
        None => std::future::pending().await,
    }
}

/// Commits a node lost, over its unchanged record; and off, if its devices have confirmed that.
async fn declare(ops: &Ops, declared: &Declared, off: Option<PoweredOff>) -> Result<(), DeclareFailure> {
    let Ok(At { value: mut node, revision }) = ops.node_record(&declared.node) else {
        return Err(DeclareFailure::Refused);
    };
    let lost = NodeState::Lost { boot: declared.boot.clone() };
    let member = node.state == (NodeState::Member { boot: declared.boot.clone() });
    if !member && (off.is_none() || node.state != lost) {
        return Err(DeclareFailure::Refused);
    }
    // It was marked, or unmarked, since: there may be a restart lease that was not waited for.
    if off.is_none() && node.may_restart() != declared.restart {
        return Err(DeclareFailure::Refused);
    }
    node.state = lost;
    let silent = declared.silent.as_millis();
    let why = match &off {
        None => format!("no lease for {silent} ms"),
        Some(off) => {
            format!("powered off by {} in {} ms, after {silent} ms without a lease", off.devices, off.took_ms)
        }
    };
    node.off = off.or(node.off);
    tracing::warn!("node '{}' is lost: {why}", declared.node);
    let mut txn = store::txn("root@pam", format!("node '{}' lost: {why}", declared.node));
    let Ok(bytes) = store::bytes(&node) else { return Err(DeclareFailure::Refused) };
    store::put_over(&mut txn, &paths::node(&declared.node), Some(revision), bytes);
    match ops.conf.transact(txn).await {
        Ok(_) => Ok(()),
        Err(e) => {
            tracing::warn!("node '{}': its loss could not be committed: {e}", declared.node);
            Err(if matches!(e, TxnError::Refused(_)) {
                DeclareFailure::Refused
            } else {
                DeclareFailure::Unknown
            })
        }
    }
}
