//! The loss of the majority: a survivor begins a new cluster epoch, and the others come back to it.
//!
//! ```text
//!  a survivor                                             another node, when it is back
//!    an operator says that all others are off               asks the members for their epochs before it takes part
//!    epoch.json: what was agreed                             a newer one ──▶ asks to be let in again
//!    starts anew: the new epoch's store is made of the      rejoin.json: its new number
//!    old one, which is kept aside                            starts anew: its store is kept aside, and what it had alone is
//!    decides alone                                           told; it gets the state of the new epoch, and enters
//! ```
//!
//! What the new epoch's first state changes ([`succession`]), so that nothing runs twice by it:
//!
//! | of | what |
//! |---|---|
//! | all guests of other nodes | a new ownership epoch, *running* and not *armed*: HA recovers none without [`Ops::confirm_off`] |
//! | this node's guests | a new ownership epoch: a copy that is paused or guarded is destroyed, and HA starts the guest cold |
//! | those of them that run unguarded | nothing: nobody paused them, and nobody else could have been given them |
//! | other nodes | *lost*, with new numbers in Raft |
//!
//! docs/ha.md has the argument.

use crate::clock::unix_ms;
use crate::store::{self, At};
use crate::{Actor, Ops, OpsError};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_conf::{Check, Op, Revision, Tree, Txn};
use stead_driver::guest::RunState;
use stead_guest::copy::{Claim, claim};
use stead_membership::epochs::Lookout;
use stead_model::{
    BootId, ClusterRecord, Epoch, Era, Lineage, NodeName, NodeRecord, NodeState, RaftId, Succession, Vmid,
    paths,
};

/// Asks a member for its epoch; answered whatever the caller's is.
pub const EPOCH_CALL: &str = "epoch";
/// Asks a member of a newer epoch to be let in again; answered whatever the caller's is.
pub const REJOIN_CALL: &str = "epoch/rejoin";
/// Below it: what nodes that came back had alone, and where it lies.
const ASIDE: &str = "stead/aside/";
/// Numbers in Raft begin anew at a multiple of this: those that an old epoch may still give are left out.
const NUMBERS: u64 = 1000;
/// Ownership records in one transaction.
const RECORDS: usize = 4096;
/// Paths that are named to people in one line.
const NAMED: usize = 5;
/// Changes that a node tells of when it comes back; the others are in its old store.
const TOLD: usize = 100;

/// What a member says of its epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochAnswer {
    /// Its epoch.
    pub era: Era,
    /// How that came about.
    pub lineage: Lineage,
    /// It is in contact with a majority.
    pub quorate: bool,
    /// It leads nothing until an operator has decided.
    #[serde(default)]
    pub lets_go: bool,
}

/// What a node says that asks to be let in again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejoinRequest {
    /// Its epoch.
    pub era: Era,
    /// An operator wishes it, whatever became of that epoch.
    pub wished: bool,
    /// Its machine's boot: it may have been heard a moment ago, before it went to another epoch.
    #[serde(default)]
    pub boot: Option<BootId>,
}

/// What a node gets that is let in again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejoinAnswer {
    /// Its new number in Raft.
    pub raft_id: RaftId,
    /// The epoch.
    pub era: Era,
    /// The last revision of the node's own epoch that this one is known to have; 0: not known.
    pub base: u64,
    /// The members, for the first contact.
    pub members: Vec<NodeRecord>,
}

/// What was agreed when a majority was given up; the daemon keeps it, and carries it out at its next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochPlan {
    /// Which node goes on alone.
    pub survivor: NodeName,
    /// The epoch that begins.
    pub era: Era,
    /// The survivor's number in Raft there.
    pub raft_id: RaftId,
    /// Guests that run here unguarded, under these epochs: they run on.
    pub spared: Vec<(Vmid, Epoch)>,
    /// The nodes that were said to be off.
    pub off: Vec<NodeName>,
    /// Who said so.
    pub by: String,
    /// When: milliseconds since 1970.
    pub at_ms: u64,
}

/// What a node that came back had alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// The node.
    pub node: NodeName,
    /// The epoch that it came with.
    pub era: Era,
    /// When it was put aside: milliseconds since 1970.
    pub at_ms: u64,
    /// Where, in the node's folder.
    pub place: String,
    /// Its last revision.
    pub revision: u64,
    /// The last revision that both are known to have had.
    pub base: u64,
    /// The changes after it, oldest first; some may have reached both.
    pub changes: Vec<AsideChange>,
    /// How many more there are.
    pub more: usize,
    /// Why its store could not be read, if it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// A change that a node had alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideChange {
    /// The path.
    pub path: String,
    /// Who; empty of what has no history.
    pub by: String,
    /// Why.
    pub note: String,
    /// When: milliseconds since 1970; 0 of what has no history.
    pub at_ms: u64,
}

impl Aside {
    /// In one line, for people.
    pub fn line(&self) -> String {
        let of = format!("node '{}' came back with cluster epoch {}", self.node, self.era);
        let kept = format!("its configuration is kept in '{}' in its folder", self.place);
        if let Some(why) = &self.unreadable {
            return format!("{of}; {kept} and cannot be read: {why}");
        }
        let paths: BTreeSet<&str> = self.changes.iter().map(|c| c.path.as_str()).collect();
        if paths.is_empty() {
            return format!("{of}; it had nothing that is missing here; {kept}");
        }
        let named = paths.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        let more = match paths.len().saturating_sub(NAMED) + self.more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{of} and had changed {named}{more} alone: see 'stead cluster asides'; {kept}")
    }

    /// With the changes of a store after a revision.
    #[must_use]
    pub fn of(self, ahead: stead_conf::succession::Ahead) -> Self {
        let told = ahead.changes.into_iter().map(|c| AsideChange {
            path: c.path,
            by: c.author,
            note: c.note,
            at_ms: c.at_ms,
        });
        let silent = ahead.silent.into_iter().map(|path| AsideChange {
            path,
            by: String::new(),
            note: String::new(),
            at_ms: 0,
        });
        let mut changes: Vec<AsideChange> = told.chain(silent).collect();
        let more = changes.len().saturating_sub(TOLD);
        changes.truncate(TOLD);
        Self { revision: ahead.revision.0, changes, more, ..self }
    }
}

/// Which members were heard of that are in another epoch, and what this node makes of it.
#[derive(Debug, Default)]
pub struct Epochs {
    /// By their requests, which were refused.
    strangers: Mutex<BTreeMap<NodeName, Era>>,
    /// By what they answer.
    lookout: Mutex<Lookout>,
}

impl Epochs {
    /// Whether a request of a member may be answered: it is of this epoch. One that is not is remembered.
    pub fn admits(&self, own: Era, from: &NodeName, era: Era) -> bool {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if own == era {
            strangers.remove(from);
            return true;
        }
        if strangers.insert(from.clone(), era) != Some(era) {
            tracing::warn!(
                "node '{from}' is in cluster epoch {era}, this one in {own}: its requests are refused"
            );
        }
        false
    }

    /// The members that were refused last.
    pub fn strangers(&self) -> BTreeMap<NodeName, Era> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was seen of other epochs.
    pub fn lookout(&self) -> MutexGuard<'_, Lookout> {
        self.lookout.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ops {
    /// The other members, witnesses too.
    pub fn others(&self) -> Vec<NodeRecord> {
        self.node_records().into_iter().filter(|n| n.name != self.me.name).collect()
    }

    /// What this node says of its epoch. One that has no configuration yet knows no more than which it is.
    pub fn epoch_answer(&self) -> EpochAnswer {
        let lineage = self.cluster_record().map(|c| c.value.lineage).unwrap_or_default();
        EpochAnswer {
            era: self.me.era,
            lineage,
            quorate: self.quorate(),
            lets_go: self.epochs.lookout().lets_go(),
        }
    }

    /// The members that this node knows to be alive in another cluster epoch, by what it has heard itself.
    pub fn heard_elsewhere(&self) -> BTreeSet<NodeName> {
        let mut all: BTreeSet<NodeName> = self.epochs.strangers().into_keys().collect();
        {
            let lookout = self.epochs.lookout();
            all.extend(lookout.contested().keys().cloned());
            all.extend(lookout.outcast_by().iter().cloned());
        }
        all
    }

    /// The members that are known to be alive in another cluster epoch, where they may run their guests; by what other members have
    /// heard too, since this one may not reach them. An operator's word that such a node is off, given since it was lost, ends that.
    pub fn elsewhere(&self) -> BTreeSet<NodeName> {
        let mut all = self.heard_elsewhere();
        all.extend(self.status.elsewhere());
        all.retain(|node| !self.is_said_off(node));
        all
    }

    /// Begins a new cluster epoch in which this node decides alone, by the operator's word that all other members are `off`.
    /// The daemon starts anew to do so.
    ///
    /// # Errors
    /// If there is a majority, if the word does not name exactly the other members, or if one of them answers.
    pub async fn expect_one(&self, actor: &Actor, off: &[NodeName]) -> Result<(), OpsError> {
        if self.quorate() {
            return Err(OpsError::failed(
                "a majority of the cluster is in contact: there is nothing to give up. Remove nodes that are gone for \
                 good with 'stead cluster remove'",
            ));
        }
        let others = self.others();
        if others.is_empty() {
            return Err(OpsError::failed("this node is the only one of its cluster"));
        }
        if self.conf.status().borrow().lost {
            return Err(OpsError::failed(
                "this node's configuration is an older copy of what it has acknowledged: begin the new epoch on another node",
            ));
        }
        self.cluster_record()?;
        named_exactly(&others, off)?;
        self.all_silent(&others).await?;
        // Nothing starts or stops between here and the new epoch; on an error it goes on as before.
        let closed = self.guest_locks.close("this node begins a new cluster epoch")?;
        let plan = EpochPlan {
            survivor: self.me.name.clone(),
            era: self.me.era.next(rand::random()),
            raft_id: self.conf.view(next_numbers)?,
            spared: self.unguarded().await?,
            off: off.to_vec(),
            by: actor.who.clone(),
            at_ms: unix_ms(),
        };
        let keep = |why: String| OpsError::failed(format!("can't begin a new cluster epoch: {why}"));
        // What can't be changed is found out here, where somebody hears of it.
        self.conf.view(|t| succession(t, t.revision(), &plan)).map_err(|e| keep(e.to_string()))?;
        self.host.keep_epoch(&plan).map_err(keep)?;
        closed.keep();
        tracing::warn!("{} says that all other nodes are off: cluster epoch {} begins", actor.who, plan.era);
        self.host.restart();
        Ok(())
    }

    /// Refuses if one of these nodes shows that it is on, whatever its epoch.
    async fn all_silent(&self, others: &[NodeRecord]) -> Result<(), OpsError> {
        let asked = others.iter().map(|node| self.sign_of_life(node));
        let on: Vec<String> = join_all(asked).await.into_iter().flatten().collect();
        if on.is_empty() {
            return Ok(());
        }
        Err(OpsError::failed(format!(
            "not all other nodes are off: {} answer. Switch their power off: guests may run where a kernel does, although a \
             daemon does not. They come back to the new epoch by themselves. If another machine has the address of one by now, or \
             a firewall answers for it, take that off the network while you say so",
            on.join(", ")
        )))
    }

    /// The guests whose processes a new epoch would end here.
    ///
    /// # Errors
    /// If it can't be told which are guarded.
    pub async fn ends_with_epoch(&self) -> Result<Vec<Vmid>, OpsError> {
        let spared: BTreeSet<Vmid> = self.unguarded().await?.into_iter().map(|(vmid, _)| vmid).collect();
        let here = self.guests.list().await.into_iter().map(|p| p.vmid);
        Ok(here.filter(|vmid| !spared.contains(vmid)).collect())
    }

    /// The guests that run here without any guard, and are this node's.
    async fn unguarded(&self) -> Result<Vec<(Vmid, Epoch)>, OpsError> {
        let guarded: BTreeSet<Vmid> = if self.me.witness {
            BTreeSet::new()
        } else {
            self.fence.status().await?.guests.into_iter().map(|g| g.0).collect()
        };
        let mut out = vec![];
        for p in self.guests.list().await {
            let own = self.ownership(p.vmid)?;
            let is_it = claim(own.as_ref(), &self.me.name, p.epoch) == Claim::Owner
                && own.is_some_and(|o| o.running && !o.armed);
            // What is paused, or is being moved, may have gone on elsewhere.
            if is_it && p.state == RunState::Running && !guarded.contains(&p.vmid) {
                out.push((p.vmid, p.epoch));
            }
        }
        Ok(out)
    }

    /// Lets a node of an older epoch in again, under a new number in Raft: the member's half. It is *lost* until it
    /// enters.
    ///
    /// # Errors
    /// If its epoch is none that this one has followed and nobody wishes it, or there is no majority here.
    pub async fn let_in_again(
        &self,
        from: &NodeName,
        request: &RejoinRequest,
    ) -> Result<RejoinAnswer, OpsError> {
        self.conf.barrier().await?;
        let cluster = self.cluster_record()?.value;
        let after = cluster.lineage.after(request.era);
        // A node of this very epoch asks when its store is an older copy of what it was.
        if after.is_none() && request.era != self.me.era && !request.wished {
            return Err(OpsError::failed(format!(
                "cluster epoch {} of node '{from}' is none that {} has followed: run 'stead cluster rejoin' on it",
                request.era, self.me.era
            )));
        }
        // A store of this very epoch that is an older copy lacks what came later, and has nothing of its own.
        let same = (request.era == self.me.era).then(|| self.conf.view(|t| t.revision().0));
        let base = same.or(after.map(|s| s.base)).unwrap_or(0);
        let At { value: mut node, revision } = self.node_record(from)?;
        // Two machines of one name: the older one may be what a backup was restored beside, or a copy of the other's disk.
        let heard = self.status.node(from).filter(|_| self.online(&node));
        let is_another = heard.is_some_and(|report| request.boot != Some(report.boot));
        if *from == self.me.name || is_another {
            return Err(OpsError::failed(format!(
                "a node '{from}' is online in cluster epoch {} already: another machine has this name",
                self.me.era
            )));
        }
        let (raft_id, mut txn) = self.conf.view(|t| -> Result<_, OpsError> {
            let (next, old) = numbers(t)?;
            let mut txn =
                store::txn("root@pam", format!("node '{from}' comes back from epoch {}", request.era));
            store::put_over(&mut txn, NEXT_RAFT, old, store::bytes(&(next + 1))?);
            Ok((RaftId(next), txn))
        })?;
        node.raft_id = raft_id;
        if !node.witness {
            node.state = NodeState::Lost { boot: node.state.boot().clone() };
        }
        store::put_over(&mut txn, &paths::node(from), Some(revision), store::bytes(&node)?);
        self.conf.transact(txn).await?;
        tracing::info!("node '{from}' comes back from cluster epoch {}, as number {raft_id}", request.era);
        Ok(RejoinAnswer { raft_id, era: self.me.era, base, members: self.node_records() })
    }

    /// Gives up this node's epoch for that of `node`: its half. Unless that is `wished`, only while this one has no majority.
    ///
    /// # Errors
    /// If the other side does not let it in, or what was agreed can't be kept: then nothing has changed here.
    pub async fn rejoin(&self, node: &NodeRecord, wished: bool) -> Result<(), OpsError> {
        let failed = |why: &dyn std::fmt::Display| {
            OpsError::failed(format!("can't go over to node '{}': {why}", node.name))
        };
        let why = "a majority of this node's own cluster epoch is in contact";
        // First what can fail here: the other side gives a number away for each request.
        if !wished && self.quorate() {
            return Err(failed(&why));
        }
        let closed = self.guest_locks.close("this node goes over to another cluster epoch")?;
        let request = RejoinRequest { era: self.me.era, wished, boot: Some(self.me.boot.clone()) };
        let answer = crate::peers::call(&*self.peers, node, REJOIN_CALL, &request, Duration::from_secs(10));
        let mut answer: RejoinAnswer = answer.await.map_err(|e| failed(&e))?;
        // Back to an epoch that this one has followed: the other side knows nothing of what came after.
        let lineage = self.cluster_record().map(|c| c.value.lineage).unwrap_or_default();
        answer.base = answer.base.max(lineage.after(answer.era).map_or(0, |s| s.base));
        // It may have been there for a moment meanwhile, and have decided something. An older state of one epoch is another case.
        if !wished && answer.era != self.me.era && self.epochs.lookout().was_quorate() {
            return Err(failed(&why));
        }
        self.host.keep_rejoin(&answer).map_err(|e| failed(&e))?;
        closed.keep();
        tracing::warn!("this node goes over from cluster epoch {} to {}", self.me.era, answer.era);
        self.host.restart();
        Ok(())
    }

    /// An operator wishes that this node gives up its epoch for that of `to`, which goes on beside it; without `to`, for the only
    /// one that does.
    ///
    /// # Errors
    /// If none does, if several do and none is named, or if it does not let this node in.
    pub async fn give_up_epoch(&self, to: Option<&NodeName>) -> Result<(), OpsError> {
        let others = self.epochs.lookout().contested().clone();
        let Some((first, era)) = others.first_key_value() else {
            return Err(OpsError::failed(
                "no other cluster epoch is in contact: there is nothing to go over to",
            ));
        };
        let list = || others.iter().map(|(n, e)| format!("'{n}' ({e})")).collect::<Vec<_>>().join(", ");
        let name = match to {
            Some(to) if others.contains_key(to) => to,
            Some(to) => {
                let why = format!("node '{to}' is in no other epoch that goes on: {} are", list());
                return Err(OpsError::invalid("node", why));
            }
            None if others.values().all(|e| e == era) => first,
            None => {
                let why = format!(
                    "several epochs go on beside this one: say to which node's to go over: {}",
                    list()
                );
                return Err(OpsError::invalid("node", why));
            }
        };
        let node = self.node_record(name)?.value;
        self.rejoin(&node, true).await
    }

    /// Commits what this node had alone when it came back, so that it is seen everywhere.
    pub async fn tell_aside(&self) -> Result<(), OpsError> {
        let asides = self.host.asides();
        if asides.is_empty() {
            return Ok(());
        }
        for aside in asides {
            let path = format!("{ASIDE}{}/{}", aside.node, aside.at_ms);
            // A note is short; what was changed is in the record.
            let note = format!("what node '{}' had alone in cluster epoch {}", aside.node, aside.era);
            let mut txn = store::txn("root@pam", note);
            txn.ops.push(Op::Put(path, store::bytes(&aside)?.into()));
            self.conf.transact(txn).await?;
            tracing::warn!("{}", aside.line());
        }
        // Told twice after a crash between, at the same place.
        self.host.told_aside();
        Ok(())
    }

    /// What nodes that came back had alone.
    pub fn asides(&self) -> Vec<Aside> {
        self.conf.view(|t| t.list(ASIDE).filter_map(|(_, e)| serde_json::from_slice(&e.data).ok()).collect())
    }

    /// Forgets what a node had alone: somebody has looked. Its old store stays in its folder.
    pub async fn forget_aside(&self, actor: &Actor, node: &NodeName) -> Result<(), OpsError> {
        let below = format!("{ASIDE}{node}/");
        let paths: Vec<String> = self.conf.view(|t| t.list(&below).map(|(p, _)| p.to_owned()).collect());
        if paths.is_empty() {
            return Err(OpsError::failed(format!("nothing of node '{node}' was put aside")));
        }
        let mut txn = store::txn(&actor.who, format!("what node '{node}' had alone was looked at"));
        txn.ops.extend(paths.into_iter().map(Op::Delete));
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// What is wrong with the cluster's epochs, a line each, for people.
    pub fn epoch_warnings(&self) -> Vec<String> {
        let own = self.me.era;
        let (contested, outcast_by, lets_go, blocked_by) = {
            let lookout = self.epochs.lookout();
            let blocks = lookout.is_held() && !lookout.lets_go();
            let blocked_by = if blocks { lookout.blocked_by().clone() } else { BTreeSet::new() };
            (lookout.contested().clone(), lookout.outcast_by().clone(), lookout.lets_go(), blocked_by)
        };
        let beside = contested.iter().map(|(node, era)| {
            format!(
                "node '{node}' goes on in cluster epoch {era}, beside {own} here: they refuse each other, and neither recovers \
                 guests of the other. One of them must end: see 'When the others were not off' in docs/majority.md"
            )
        });
        let blocked = (!blocked_by.is_empty()).then(|| {
            format!(
                "this node stands for no election, since it has heard another cluster epoch of {}. If that is gone for good, start \
                 this node's daemon anew",
                blocked_by.iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ")
            )
        });
        let lets_go = lets_go.then(|| {
            format!(
                "a majority of another epoch is on: the word that it was off was wrong. This node leads nothing in epoch {own} \
                 before one of them has ended"
            )
        });
        // Where a majority is, it is the other one whose list is old.
        let outcast_by = if self.quorate() { BTreeSet::new() } else { outcast_by };
        let cast_out = outcast_by.into_iter().map(|node| {
            format!(
                "node '{node}' knows this node as none of its cluster: this one was removed while it was off, or that one's list is \
                 old. It is waited for; a node that was removed must be wiped, and join anew"
            )
        });
        let present: BTreeSet<NodeName> = self.others().into_iter().map(|n| n.name).collect();
        let strangers = self.epochs.strangers().into_iter();
        let strangers = strangers.filter(|(node, _)| present.contains(node) && !contested.contains_key(node));
        let strange = strangers.map(|(node, era)| {
            format!(
                "node '{node}' is still in cluster epoch {era}, and is refused until it is in {own}: it goes over by itself when it has \
                 no majority and no guest, or by 'stead cluster rejoin' there"
            )
        });
        let asides = self.asides();
        lets_go
            .into_iter()
            .chain(blocked)
            .chain(beside)
            .chain(cast_out)
            .chain(strange)
            .chain(asides.iter().map(Aside::line))
            .collect()
    }
}

/// The next number in Raft; numbers are never used again.
pub(crate) const NEXT_RAFT: &str = "stead/next_raft";

/// The next free number in Raft, and the revision of its record.
pub(crate) fn numbers(tree: &Tree) -> Result<(u64, Option<Revision>), OpsError> {
    let next = store::record::<u64>(tree, NEXT_RAFT)?;
    let highest = store::nodes(tree).iter().map(|n| n.raft_id.0).max().unwrap_or(0);
    Ok((next.as_ref().map_or(0, |n| n.value).max(highest + 1), next.map(|n| n.revision)))
}

/// The first number of a new epoch.
///
/// # Errors
/// If the record of numbers can't be read.
pub fn next_numbers(tree: &Tree) -> Result<RaftId, OpsError> {
    let (next, _) = numbers(tree)?;
    Ok(RaftId((next / NUMBERS + 1) * NUMBERS + 1))
}

/// Refuses unless the word names the others, all of them and nobody else.
///
/// # Errors
/// Who is missing, or is none of them.
pub fn named_exactly(others: &[NodeRecord], off: &[NodeName]) -> Result<(), OpsError> {
    let wanted: BTreeSet<&NodeName> = others.iter().map(|n| &n.name).collect();
    let named: BTreeSet<&NodeName> = off.iter().collect();
    let list = |names: Vec<&&NodeName>| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let (missing, strange) =
        (wanted.difference(&named).collect::<Vec<_>>(), named.difference(&wanted).collect::<Vec<_>>());
    if !strange.is_empty() {
        return Err(OpsError::invalid("off", format!("no other node of the cluster: {}", list(strange))));
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(OpsError::invalid(
        "off",
        format!("all other nodes must be off, and nobody has said so of {}", list(missing)),
    ))
}

/// What a new epoch changes in the tree of the old one. `base`: the last revision known to be committed there.
///
/// # Errors
/// If a record can't be read: then nothing must be guessed.
pub fn succession(tree: &Tree, base: Revision, plan: &EpochPlan) -> Result<Vec<Txn>, OpsError> {
    let mut out = vec![members_of(tree, base, plan)?];
    // The tree's revision leaves out more than the old epoch will ever have, so no copy of it has this number.
    let epoch = Epoch(tree.revision().0);
    let mut changed = vec![];
    for (path, _) in tree.list(paths::OWNERSHIP) {
        let unnamed = || OpsError::failed(format!("'{path}' names no guest"));
        let vmid: Vmid =
            path.strip_prefix(paths::OWNERSHIP).and_then(|v| v.parse().ok()).ok_or_else(unnamed)?;
        let Some(At { value: mut own, .. }) = store::record::<stead_model::Ownership>(tree, path)? else {
            continue;
        };
        if own.owner == plan.survivor && plan.spared.contains(&(vmid, own.epoch)) && own.running {
            continue;
        }
        own.epoch = epoch;
        own.armed = false;
        // Of what others do nothing is known any more: it may have been started since.
        own.running |= own.owner != plan.survivor;
        changed.push(Op::Put(path.to_owned(), store::bytes(&own)?.into()));
    }
    for ops in changed.chunks(RECORDS) {
        let mut txn = store::txn(&plan.by, format!("ownership in cluster epoch {}", plan.era));
        txn.ops = ops.to_vec();
        out.push(txn);
    }
    Ok(out)
}

/// What an epoch changes in the tree of a backup: as [`succession`]; and nothing starts by itself until an administrator has looked,
/// since the backup may not know where guests are by now. HA is disarmed, what was asked of it is not done, and
/// [`paths::RESTORED`] keeps guests from starting with their nodes. To arm HA ends all that.
///
/// # Errors
/// As [`succession`].
pub fn restored(tree: &Tree, base: Revision, plan: &EpochPlan) -> Result<Vec<Txn>, OpsError> {
    let mut out = succession(tree, base, plan)?;
    let mut txn =
        store::txn(&plan.by, "restored from a backup: HA is disarmed, and nothing starts by itself");
    // A state that can't be read is worth no more than none: the manager begins anew when HA is armed.
    let state = tree.get(paths::HA_STATUS).and_then(|e| serde_json::from_slice(&e.data).ok());
    let mut state: stead_ha::ManagerState = state.unwrap_or_default();
    state.rest();
    txn.ops.push(Op::Put(paths::HA_STATUS.to_owned(), store::bytes(&state)?.into()));
    txn.ops.extend(tree.list(crate::ha::COMMANDS).map(|(path, _)| Op::Delete(path.to_owned())));
    let mark = serde_json::json!({"era": plan.era, "at_ms": plan.at_ms});
    txn.ops.push(Op::Put(paths::RESTORED.to_owned(), store::bytes(&mark)?.into()));
    out.push(txn);
    Ok(out)
}

/// What is wrong with a state: as a store has it, and as a restore on `node` would begin with it.
pub fn faults(machine: &stead_conf::Machine, key: &stead_conf::ClusterKey, node: &NodeName) -> Vec<String> {
    let mut out = stead_conf::check::faults(machine, Some(key));
    let plan = EpochPlan {
        survivor: node.clone(),
        era: Era::FIRST.next(1),
        raft_id: RaftId(1),
        spared: vec![],
        off: vec![],
        by: String::new(),
        at_ms: 0,
    };
    let tree = machine.tree();
    if !tree.is_empty()
        && let Err(e) = restored(tree, Revision(0), &plan)
    {
        out.push(e.to_string());
    }
    out
}

/// The cluster's record, and its members: the others are lost, and all have new numbers.
fn members_of(tree: &Tree, base: Revision, plan: &EpochPlan) -> Result<Txn, OpsError> {
    let note = format!(
        "cluster epoch {} begins on '{}': {} says that the others are off",
        plan.era, plan.survivor, plan.by
    );
    let mut txn = store::txn(&plan.by, note);
    let cluster = store::record::<ClusterRecord>(tree, paths::CLUSTER)?;
    let mut cluster = cluster.ok_or_else(|| OpsError::failed("the cluster's record is missing"))?;
    cluster.value.epoch = Epoch(plan.era.number());
    cluster.value.lineage.0.push(Succession {
        era: plan.era,
        base: base.0,
        survivor: plan.survivor.clone(),
        off: plan.off.clone(),
        by: plan.by.clone(),
        at_ms: plan.at_ms,
    });
    store::put_over(&mut txn, paths::CLUSTER, Some(cluster.revision), store::bytes(&cluster.value)?);
    let mut number = plan.raft_id.0;
    for (path, entry) in tree.list(paths::NODES) {
        let unread = |e| OpsError::failed(format!("the record '{path}' cannot be read: {e}"));
        let mut node: NodeRecord = serde_json::from_slice(&entry.data).map_err(unread)?;
        if node.name == plan.survivor {
            node.raft_id = plan.raft_id;
        } else {
            number += 1;
            node.raft_id = RaftId(number);
            // A boot that was confirmed off may have been followed by another, in the old epoch.
            node.off = None;
            if !node.witness {
                node.state = NodeState::Lost { boot: node.state.boot().clone() };
            }
        }
        txn.checks.push(Check::Revision(path.to_owned(), entry.revision));
        txn.ops.push(Op::Put(path.to_owned(), store::bytes(&node)?.into()));
    }
    // One that was used up in the old epoch may not be known here to be.
    txn.ops.extend(tree.list(crate::join::JOIN_TOKENS).map(|(path, _)| Op::Delete(path.to_owned())));
    let next = numbers(tree)?.1;
    store::put_over(&mut txn, NEXT_RAFT, next, store::bytes(&(number + 1))?);
    Ok(txn)
}

#[cfg(test)]
mod tests;
