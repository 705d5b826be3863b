//! An operator's word that a lost node is off, and what it sets free.
//!
//! The cluster knows by itself that nothing of a lost node runs any more where the fence process guarded it. Of a guest
//! without that guard it can't know: the node may be cut off and run it still. There somebody must look, and say so. The word
//! is for one loss of one node: whatever is done on it is refused once the node has entered again.
//!
//! | a guest of the node | what the word does |
//! |---|---|
//! | under HA | its record says that it does not run; HA recovers it |
//! | not under HA, or disabled there | goes to another node, stopped |
//! | with disks that no other node has | stays |
//!
//! Each change raises the epoch: should the node have run the guest after all, or have a copy of it when it is back, the
//! copy is destroyed. Should it still run, the locks of its images are the last net: whoever starts the guest by hand
//! respects them.

use crate::clock::unix_ms;
use crate::guest::config::parse;
use crate::guest::lock::is_given_away;
use crate::store::{self, At, GuestAt};
use crate::{Actor, Ops, OpsError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stead_conf::{Check, Op, Revision, TxnError};
use stead_model::{GuestKind, NodeName, NodeRecord, Ownership, StorageId, Upid, Vmid, paths};
use stead_tasks::TaskContext;

/// Below it: who said of which node that it is off.
const WORDS: &str = "stead/off/";
/// How often a guest is looked at again that changes under our hands.
const LOOKS: usize = 5;

/// A word, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Word {
    /// Whose.
    by: String,
    /// When: milliseconds since 1970.
    at_ms: u64,
    /// Of which loss: the transaction that recorded the node lost.
    loss: Revision,
}

/// Where a node's word lies.
pub(crate) fn path(node: &NodeName) -> String {
    format!("{WORDS}{node}")
}

/// What becomes of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// HA recovers it; first the record must say that it does not run.
    ByHa { running: bool },
    /// It goes there.
    To(NodeName),
    /// It stays, and why.
    Stays(String),
}

/// A node that may take guests.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    name: NodeName,
    /// What it has.
    storages: BTreeSet<StorageId>,
    /// How many guests it owns.
    guests: usize,
}

/// The place with the fewest guests among those that have all the storages that a guest needs.
fn choose(places: &[Place], needs: &BTreeSet<StorageId>) -> Option<NodeName> {
    let able = places.iter().filter(|p| needs.is_subset(&p.storages));
    able.min_by_key(|p| (p.guests, &p.name)).map(|p| p.name.clone())
}

impl Ops {
    /// Takes the word that a lost node is off, as a task that tells what becomes of each guest. Those that HA does not recover
    /// go to `target`, or to the node that has the fewest.
    ///
    /// # Errors
    /// If the node is not lost, or has reported a moment ago.
    pub async fn confirm_off(
        self: &Arc<Self>,
        actor: &Actor,
        node: &NodeName,
        target: Option<NodeName>,
    ) -> Result<Upid, OpsError> {
        self.conf.barrier().await?;
        self.lost_and_silent(node)?;
        self.must_be_silent(node).await?;
        if let Some(target) = &target {
            let record = self
                .member(target)
                .map_err(|_| OpsError::invalid("target", format!("no such cluster node '{target}'")))?;
            if !self.online(&record) {
                return Err(OpsError::invalid("target", format!("node '{target}' is not online")));
            }
        }
        let (ops, by, node) = (self.clone(), actor.clone(), node.clone());
        self.task("confirmoff", node.clone().as_str(), &actor.who, move |cx| async move {
            ops.confirm_off_now(&cx, &by, &node, target.as_ref()).await
        })
    }

    /// Whether somebody has said that a node is off, of its present loss.
    pub(crate) fn is_said_off(&self, name: &NodeName) -> bool {
        let word = self.conf.view(|t| store::record::<Word>(t, &path(name))).ok().flatten();
        let node = self.node_record(name).ok().filter(|n| n.value.state.is_lost());
        word.zip(node).is_some_and(|(word, node)| word.value.loss == node.revision)
    }

    /// Fails if a node shows that it is on, of whatever cluster epoch it is.
    async fn must_be_silent(&self, name: &NodeName) -> Result<(), OpsError> {
        match self.sign_of_life(&self.node_record(name)?.value).await {
            None => Ok(()),
            Some(sign) => Err(OpsError::failed(format!(
                "node '{name}' is not off: {sign} answers. Switch its power off: guests may run where a kernel does, although a \
                 daemon does not. If another machine has its address by now, or a firewall answers for it, take that off the network \
                 while you say so"
            ))),
        }
    }

    /// The record of a node of which nothing is heard.
    fn lost_and_silent(&self, name: &NodeName) -> Result<At<NodeRecord>, OpsError> {
        let node = self.node_record(name)?;
        if !node.value.state.is_lost() {
            return Err(OpsError::failed(format!(
                "node '{name}' is not lost: switch it off, and wait until 'stead cluster status' shows it as lost"
            )));
        }
        if self.status.node(name).is_some() {
            return Err(OpsError::failed(format!(
                "node '{name}' is not off: it has reported its status within the last seconds"
            )));
        }
        Ok(node)
    }

    async fn confirm_off_now(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        name: &NodeName,
        target: Option<&NodeName>,
    ) -> Result<(), OpsError> {
        self.conf.barrier().await?;
        let node = self.lost_and_silent(name)?;
        let word = Word { by: actor.who.clone(), at_ms: unix_ms(), loss: node.revision };
        let mut txn = store::txn(&actor.who, format!("{} says that node '{name}' is off", actor.who));
        txn.checks.push(Check::Revision(paths::node(name), node.revision));
        txn.ops.push(Op::Put(path(name), store::bytes(&word)?.into()));
        self.conf.transact(txn).await?;
        cx.log(format!("{} says that node '{name}' is off", actor.who));
        let mut stuck = 0;
        for (vmid, own) in self.conf.view(store::guests) {
            if own.owner == *name
                && own.kind == GuestKind::Qemu
                && let Err(e) = self.set_free(cx, actor, vmid, &node, target).await
            {
                cx.warn(format!("VM {vmid}: {e}"));
                stuck += 1;
            }
        }
        match stuck {
            0 => Ok(()),
            n => Err(OpsError::failed(format!("{n} guests of node '{name}' are not free yet; say it again"))),
        }
    }

    /// Sets one guest free, over its record as read and a node that is lost as it was when the word was given.
    async fn set_free(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        node: &At<NodeRecord>,
        target: Option<&NodeName>,
    ) -> Result<(), OpsError> {
        let from = &node.value.name;
        for _ in 0..LOOKS {
            let Ok(guest) = self.guest_at(vmid) else { return Ok(()) };
            if guest.own.value.owner != *from {
                return Ok(());
            }
            let fate = self.fate_without(&guest, target)?;
            let (to, said) = match &fate {
                Fate::Stays(why) => {
                    cx.warn(format!("VM {vmid} stays with node '{from}': {why}"));
                    return Ok(());
                }
                Fate::ByHa { running: false } => {
                    cx.log(format!("VM {vmid}: HA recovers it"));
                    return Ok(());
                }
                Fate::ByHa { running: true } => (from, format!("VM {vmid}: it does not run; HA recovers it")),
                Fate::To(to) => (to, format!("VM {vmid} now belongs to node '{to}', stopped")),
            };
            let note = format!("VM {vmid} from '{from}' to '{to}': {} says that '{from}' is off", actor.who);
            if self.set_over(actor, &guest, node, to, note).await? {
                cx.log(said);
                return Ok(());
            }
            self.conf.barrier().await?;
            if self.node_record(from)?.revision != node.revision {
                return Err(OpsError::failed(format!("node '{from}' has entered the cluster again")));
            }
        }
        Err(OpsError::failed("it keeps changing"))
    }

    fn fate_without(&self, guest: &GuestAt, target: Option<&NodeName>) -> Result<Fate, OpsError> {
        let own = &guest.own.value;
        if self.ha_recovers(guest.vmid)? {
            return Ok(Fate::ByHa { running: own.running && !own.armed });
        }
        let config = parse(&guest.config.value)?;
        let local = self.local_volumes(&config)?;
        if !local.is_empty() {
            let why = format!("no other node has its disks: {}", local.join(", "));
            return Ok(Fate::Stays(why));
        }
        let needs = config.all_volumes().into_iter().map(|v| v.storage).collect();
        let places: Vec<Place> =
            self.places()?.into_iter().filter(|p| target.is_none_or(|t| *t == p.name)).collect();
        Ok(match choose(&places, &needs) {
            Some(to) => Fate::To(to),
            None => Fate::Stays("no node that may take it is online and has its storages".to_owned()),
        })
    }

    /// Whether HA recovers a guest whose node is lost.
    pub(crate) fn ha_recovers(&self, vmid: Vmid) -> Result<bool, OpsError> {
        if !self.ha_maintains(vmid)? {
            return Ok(false);
        }
        let resource = self.ha_resource(crate::guest::service(vmid))?;
        Ok(resource.get("state").and_then(serde_json::Value::as_str) != Some("disabled"))
    }

    fn places(&self) -> Result<Vec<Place>, OpsError> {
        let storages = self.storages()?;
        let mut owned: BTreeMap<NodeName, usize> = BTreeMap::new();
        for (_, own) in self.conf.view(store::guests) {
            *owned.entry(own.owner).or_default() += 1;
        }
        let online = self.guest_nodes().into_iter().filter(|n| self.online(n));
        let place = |n: NodeRecord| Place {
            storages: storages.iter().filter(|s| s.is_enabled_on(&n.name)).map(|s| s.id.clone()).collect(),
            guests: owned.get(&n.name).copied().unwrap_or(0),
            name: n.name,
        };
        Ok(online.map(place).collect())
    }

    /// Gives a guest that is known not to run to another node, over its record as read and the loss of its node; false: something
    /// has changed in between.
    pub(crate) async fn set_over(
        &self,
        actor: &Actor,
        guest: &GuestAt,
        node: &At<NodeRecord>,
        to: &NodeName,
        note: String,
    ) -> Result<bool, OpsError> {
        let (vmid, from) = (guest.vmid, &node.value.name);
        let new = free(&guest.own.value, to);
        let mut txn = store::txn(&actor.who, note);
        txn.checks.push(Check::Revision(paths::node(from), node.revision));
        let record = store::bytes(&new)?;
        store::put_over(&mut txn, &paths::ownership(vmid), Some(guest.own.revision), record);
        let mut config = parse(&guest.config.value)?;
        // A lock names a task of the lost node: it ended with it, unless it has left something half done.
        let given_away = self.conf.view(|t| is_given_away(t, guest, &config));
        if config.current.lock().is_some_and(stead_ha::lock_ends_with_its_node) && !given_away {
            config.current.remove("lock");
        }
        txn.checks.push(Check::Revision(guest.path(), guest.config.revision));
        if to != from {
            txn.ops.push(Op::Delete(guest.path()));
        }
        let path = paths::guest(to, guest.own.value.kind, vmid);
        txn.ops.push(Op::Put(path, config.to_string().into_bytes().into()));
        match self.conf.transact(txn).await {
            Ok(_) => Ok(true),
            Err(TxnError::Refused(_)) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

/// What a guest's record says when its node is known to be off.
fn free(old: &Ownership, to: &NodeName) -> Ownership {
    Ownership {
        owner: to.clone(),
        epoch: old.epoch.next(),
        armed: false,
        running: false,
        // The locks of its images are respected: who still holds one is not off.
        recovered: false,
        kind: old.kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, storages: &[&str], guests: usize) -> Place {
        let storages = storages.iter().map(|s| s.parse().unwrap()).collect();
        Place { name: name.parse().unwrap(), storages, guests }
    }

    #[test]
    fn a_guest_goes_where_its_storages_are_and_the_fewest_guests() {
        let places = [place("n1", &["shared", "fast"], 5), place("n3", &["shared"], 1), place("n4", &[], 0)];
        let needs = |s: &[&str]| s.iter().map(|s| s.parse().unwrap()).collect::<BTreeSet<StorageId>>();
        let to = |s: &[&str]| choose(&places, &needs(s)).map(|n| n.to_string());
        assert_eq!(to(&["shared"]).as_deref(), Some("n3"));
        assert_eq!(to(&["shared", "fast"]).as_deref(), Some("n1"));
        assert_eq!(to(&[]).as_deref(), Some("n4"));
        assert_eq!(to(&["other"]), None);
    }
}
