//! What there is to see of a cluster at a moment: the truth of the machines, beside what the cluster knows of them.

use super::{Lab, Outage};
use crate::cluster::node::{Copy, Node};
use crate::cluster::scene::status_word;
use crate::cluster::store::Tree;
use crate::scenario::Happening;
use std::collections::BTreeMap;
use std::time::Duration;
use stead_ha::ServiceState;
use stead_membership::Hold;
use stead_model::{ServiceId, Vmid};

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub name: String,
    /// `off`; `lost`: committed, and not entered again; `held`: it has a lease; `paused`: it has none, and its guests stand; `none`:
    /// it has none.
    pub lease: &'static str,
    /// It leads.
    pub leads: bool,
    /// The manager's word: online, maintenance, unknown, fence; none before it has one.
    pub status: String,
    /// What does not work: of `power`, `cable`, `daemon`, `fence`, `machine` those that are out, down or stand still.
    pub out: Vec<&'static str>,
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestRow {
    /// Which.
    pub sid: ServiceId,
    /// The number of the node that it executes on, else of the one that has its process, else of its owner.
    pub node: usize,
    /// `runs`, `paused`, `hung`, `moving`, `waits` (to be started, and has not run yet), `down` (to run, and does not any more, or was
    /// given up), `off`.
    pub state: &'static str,
    /// What its user wants; empty when HA does not have it.
    pub want: &'static str,
    /// The manager's state; empty when HA does not know it.
    pub ha: &'static str,
}

/// Figures of the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The moment.
    pub now: Duration,
    /// The latest moment that there is anything of.
    pub furthest: Duration,
    /// The leader's name, if a majority follows it.
    pub leader: Option<String>,
    /// Outages that last, and that are over.
    pub outages: (usize, u32),
    /// The longest outage that is over.
    pub longest: Duration,
    /// Recoveries, resets by fencing, thaws, moves of running guests.
    pub counts: [u32; 4],
    /// An invariant that was broken.
    pub broken: Option<String>,
    /// Rules, as they are written.
    pub rules: Vec<(String, String)>,
    /// What users wait for, since there is no leader.
    pub waiting: usize,
    /// Links that are cut or split, or messages that are lost.
    pub disturbed: bool,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Machines.
    pub nodes: Vec<NodeRow>,
    /// Guests, by their numbers.
    pub guests: Vec<GuestRow>,
    /// Figures.
    pub summary: Summary,
}

/// What there is to say of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestTale {
    /// Why it is where it is and as it is, by the manager's word.
    pub reason: String,
    /// Its owner by the record, and the epoch.
    pub owner: Option<(String, u64)>,
    /// By the record its owner may be running it; and guards it.
    pub running: bool,
    /// Its owner's fence process guards it.
    pub armed: bool,
    /// Its outages.
    pub outage: Outage,
    /// What happened to it, the latest first.
    pub history: Vec<Happening>,
}

/// So much of a guest's history is told.
const HISTORY: usize = 60;

impl Lab {
    /// What there is to see now.
    pub fn view(&self) -> View {
        let world = &self.world;
        let tree = world.store.newest();
        let leader = (0..world.nodes.len()).find(|n| world.leads(*n) == Some(world.store.term));
        let node = |(i, n): (usize, &Node)| self.node(i, n, tree, leader == Some(i));
        let mut places: BTreeMap<Vmid, (usize, &Copy)> = BTreeMap::new();
        for (i, n) in world.nodes.iter().enumerate() {
            for (vmid, copy) in &n.copies {
                let executes = copy.running && !copy.frozen;
                if executes || !places.get(vmid).is_some_and(|(_, c)| c.running && !c.frozen) {
                    places.insert(*vmid, (i, copy));
                }
            }
        }
        let guests = tree.owners.iter().map(|(vmid, own)| {
            let sid = ServiceId { kind: own.kind, vmid: *vmid };
            let want = tree.config.resources.get(&sid).map_or("", |r| r.state.as_str());
            let place = places.get(vmid).copied();
            let ha = tree.manager.0.service_status.get(&sid).map_or("", |s| s.state.as_str());
            let state = self.guest_state(sid, place, want, ha);
            let node = place.map(|(i, _)| i).or_else(|| world.index(&own.owner)).unwrap_or(0);
            GuestRow { sid, node, state, want, ha }
        });
        View {
            nodes: world.nodes.iter().enumerate().map(node).collect(),
            guests: guests.collect(),
            summary: self.summary(tree, leader.filter(|n| world.has_majority(*n))),
        }
    }

    fn summary(&self, tree: &Tree, leader: Option<usize>) -> Summary {
        let world = &self.world;
        let (lasting, over, longest) = self.outages.sum();
        let rule = |r: &stead_model::HaRule| (r.id.clone(), crate::cluster::config::told(r));
        let cables = world.scene.as_ref().map(|s| !s.cables.cut.is_empty() || !s.cables.side.is_empty());
        Summary {
            now: world.now,
            furthest: self.furthest(),
            leader: leader.map(|n| world.nodes[n].name.to_string()),
            outages: (lasting, over),
            longest,
            counts: [world.recoveries, world.resets, world.thaws, world.moves],
            broken: world.broken_by(),
            rules: tree.config.rules.iter().map(rule).collect(),
            waiting: world.edits.len(),
            disturbed: cables.unwrap_or(false) || world.loss + world.late + world.twice > 0,
        }
    }

    fn node(&self, index: usize, n: &Node, tree: &Tree, leads: bool) -> NodeRow {
        let now = self.world.now;
        let leased = n.fenced.as_ref().is_some_and(|f| f.holder.lease_left(n.clock(now)).is_some());
        let stands = n.holds().iter().any(|(.., hold)| *hold == Hold::Held);
        let lost = tree.nodes.get(&n.name).is_some_and(stead_model::NodeState::is_lost);
        let lease = match (n.on, lost, leased) {
            (_, true, _) => "lost",
            (false, ..) => "off",
            (true, _, true) => "held",
            (true, _, false) if stands => "paused",
            (true, ..) => "none",
        };
        let unplugged = self.world.scene.as_ref().is_some_and(|s| s.cables.unplugged.contains(&index));
        let waits = |until: Option<Duration>| n.on && until.is_none_or(|until| until > now);
        let faults = [
            ("power", !n.on),
            ("cable", unplugged),
            ("daemon", waits(n.daemon.as_ref().map(|d| d.paused_until))),
            ("fence", waits(n.fenced.as_ref().map(|f| f.paused_until))),
            ("machine", n.on && n.paused_until > now),
        ];
        NodeRow {
            name: n.name.to_string(),
            lease,
            leads,
            status: tree.manager.0.node_status.get(&n.name).map(|s| status_word(*s)).unwrap_or_default(),
            out: faults.into_iter().filter(|(_, is)| *is).map(|(what, _)| what).collect(),
        }
    }

    fn guest_state(
        &self,
        sid: ServiceId,
        place: Option<(usize, &Copy)>,
        want: &str,
        ha: &str,
    ) -> &'static str {
        let Some((node, copy)) = place else {
            let down = ha == ServiceState::Error.as_str() || self.outages.of(sid).since.is_some();
            return match want {
                "started" if down => "down",
                "started" => "waits",
                _ => "off",
            };
        };
        let stands = !self.world.nodes[node].executes(self.world.now);
        match copy {
            c if c.frozen || stands => "paused",
            c if c.hung => "hung",
            c if c.sending.is_some() || c.sent => "moving",
            c if c.running => "runs",
            _ => "waits",
        }
    }

    /// All that is known of one guest; none if there is none of that name.
    pub fn tale(&self, sid: ServiceId) -> Option<GuestTale> {
        let tree = self.world.store.newest();
        let own = tree.owners.get(&sid.vmid).filter(|o| o.kind == sid.kind)?;
        let name = sid.to_string();
        let its = self.log.iter().rev().filter(|h| h.service.as_ref() == Some(&name));
        Some(GuestTale {
            reason: tree.manager.0.service_status.get(&sid).map(|s| s.reason.clone()).unwrap_or_default(),
            owner: Some((own.owner.to_string(), own.epoch.0)),
            running: own.running,
            armed: own.armed,
            outage: self.outages.of(sid),
            history: its.take(HISTORY).cloned().collect(),
        })
    }
}
