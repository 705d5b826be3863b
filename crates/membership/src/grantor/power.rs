//! Power-off by fence devices: a confirmed one takes the place of the wait.
//!
//! ```text
//!         silent beyond lease and delay       leadership confirmed, still silent       every device says off
//!  None ───────────────────────────▶ Asked ────────────────────────────────▶ Out ─────────────────────▶ Off ──▶ committed
//!   ▲                                  │                                      │ one fails, or takes too long
//!   └────── heard, not confirmed ──────┘                                      ▼
//!   ▲                                                                       Failed ── as if nothing had been: the wait goes on
//!   └─── a lease granted, or entered again ─────────────────────────────────────
//! ```
//!
//! **Whom a confirmation is about.** Not a node but a boot of it: power that was off has ended every boot up to then, for ever. So
//! the commit names the boot and stays true under every later leader, and a node that has entered by another boot has nothing to
//! do with it.
//!
//! **Nobody orders it who only believes to lead**: between the suspicion and the order lies a round that confirms leadership, as it
//! does before a lease. A minority powers nobody off.
//!
//! **No lease after the order**, for whoever gets one would start what is about to die. That ends with the order: by its confirmation,
//! by its failure, and at the latest when the ordinary wait is over; then the node is lost as without devices, enters again, and
//! whatever is left of the order is called off.
//!
//! **What was taken is given back**: once the commit is there, the node is turned on again.

use super::{Grantor, GrantorCommand, Track};
use crate::Moment;
use std::collections::BTreeMap;
use std::time::Duration;
use stead_model::{BootId, NodeName, NodeState};

/// A node whose power is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerOff {
    /// The node.
    pub node: NodeName,
    /// The boot that is to end.
    pub boot: BootId,
    /// For how long it has had no lease from this leader.
    pub silent: Duration,
}

/// How far a power-off is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// None was thought of.
    None,
    /// To be ordered as soon as leadership is confirmed, unless a lease is granted before: then its end is another.
    Asked { order: PowerOff, safe_at: Moment },
    /// Ordered, for that boot.
    Out(BootId),
    /// That boot has ended.
    Off(BootId),
    /// It did not work. No other is ordered until the node was heard again.
    Failed,
}

impl Order {
    /// Whether the node gets no lease because of it.
    pub(super) fn refuses(&self) -> bool {
        matches!(self, Self::Out(_) | Self::Off(_))
    }

    /// Whether a commit is missing that says of this state, and of the boot that was last recorded off, that it is off.
    pub(super) fn is_unsaid(&self, state: &NodeState, recorded: Option<&BootId>) -> bool {
        matches!(self, Self::Off(boot) if state.boot() == boot && !(state.is_lost() && recorded == Some(boot)))
    }

    /// Whether it is committed that the boot is off.
    pub(super) fn is_done(&self, state: &NodeState, recorded: Option<&BootId>) -> bool {
        matches!(self, Self::Off(boot) if state.is_lost() && state.boot() == boot && recorded == Some(boot))
    }

    /// The node's state is another now, or was for a while. Says whether an order that is out is to be called off.
    pub(super) fn state_changed(&mut self, state: &NodeState) -> bool {
        let stays = match self {
            Self::Off(boot) => state.boot() == boot,
            Self::Out(boot) => state.is_lost() && state.boot() == boot,
            Self::Failed => state.is_lost(),
            Self::None | Self::Asked { .. } => false,
        };
        let out = matches!(self, Self::Out(_)) && !stays;
        if !stays {
            *self = Self::None;
        }
        out
    }
}

impl Grantor {
    /// The nodes that have fence devices, but for this one, and for how much longer than its lease each must be silent before it is
    /// powered off; none: for one heartbeat.
    pub fn set_devices(&mut self, devices: BTreeMap<NodeName, Option<Duration>>) {
        self.devices = devices;
        self.call_off_if(|g, node| !g.devices.contains_key(node));
    }

    /// Calls off what is ordered of those of whom that is true.
    pub(super) fn call_off_if(&mut self, holds: impl Fn(&Self, &NodeName) -> bool) {
        let out = self.tracks.iter().filter(|(_, track)| matches!(track.order, Order::Out(_)));
        let nodes: Vec<NodeName> = out.map(|(node, _)| node.clone()).filter(|n| holds(self, n)).collect();
        for node in nodes {
            if let Some(track) = self.tracks.get_mut(&node) {
                track.order = Order::None;
            }
            self.due.push(GrantorCommand::CallOff { node });
        }
    }

    /// Every device of the node has carried a [`GrantorCommand::PowerOff`] of that boot out, and has said afterwards that the
    /// power is off.
    pub fn powered_off(&mut self, node: &NodeName, boot: &BootId) {
        if let Some(order) = self.out(node, boot) {
            *order = Order::Off(boot.clone());
        }
    }

    /// A [`GrantorCommand::PowerOff`] of that boot has failed, or is not known to have worked.
    pub fn power_off_failed(&mut self, node: &NodeName, boot: &BootId) {
        if let Some(order) = self.out(node, boot) {
            *order = Order::Failed;
        }
    }

    /// The order of that boot, if it is out.
    fn out(&mut self, node: &NodeName, boot: &BootId) -> Option<&mut Order> {
        let order = &mut self.tracks.get_mut(node)?.order;
        matches!(order, Order::Out(b) if b == boot).then_some(order)
    }

    /// When a node is to be powered off that stays silent; none if it has no devices, or something else is under way with it.
    pub(super) fn strikes_at(&self, node: &NodeName, track: &Track) -> Option<Moment> {
        let delay = self.devices.get(node)?.unwrap_or(self.profile.heartbeat());
        let member = self.members.get(node).is_some_and(|m| !m.state.is_lost());
        let free = member && track.order == Order::None && track.declaring.is_none();
        let free = free && !self.elsewhere.contains(node);
        // The wait is over a fence time after the last grant; the lease by so much sooner.
        let since_lease = (self.profile.drain() + self.profile.watchdog()) * 101 / 100;
        let at = track.safe_at().saturating_sub(since_lease) + delay;
        (free && at < track.safe_at()).then_some(at)
    }

    /// Notes who is to be powered off, and asks for the round that must come before.
    pub(super) fn suspect(&mut self, now: Moment) -> Option<GrantorCommand> {
        let silent = |(node, track): (&NodeName, &Track)| {
            self.strikes_at(node, track).filter(|at| now > *at)?;
            let boot = self.members.get(node)?.state.boot().clone();
            Some(PowerOff { node: node.clone(), boot, silent: now.saturating_sub(track.heard) })
        };
        let orders: Vec<PowerOff> = self.tracks.iter().filter_map(silent).collect();
        for order in orders {
            let node = order.node.clone();
            if let Some(track) = self.tracks.get_mut(&node) {
                track.order = Order::Asked { order, safe_at: track.safe_at() };
                self.suspects.insert(node);
            }
        }
        self.begin()
    }

    /// Orders what a round was held for, now that leadership is confirmed: unless the node was heard meanwhile.
    pub(super) fn strike(&mut self, suspects: impl IntoIterator<Item = NodeName>) -> Vec<GrantorCommand> {
        let mut out = vec![];
        for node in suspects {
            let heard = self.pending.contains_key(&node);
            let Some(track) = self.tracks.get_mut(&node) else { continue };
            let Order::Asked { order, safe_at } = &track.order else { continue };
            let as_seen = self.members.get(&node).is_some_and(|m| m.state.boot() == &order.boot);
            if heard
                || self.elsewhere.contains(&node)
                || !as_seen
                || *safe_at != track.safe_at()
                || track.declaring.is_some()
            {
                track.order = Order::None;
                continue;
            }
            let order = order.clone();
            track.order = Order::Out(order.boot.clone());
            out.push(GrantorCommand::PowerOff(order));
        }
        out
    }

    /// The round that a suspicion was to wait for confirmed nothing.
    pub(super) fn unsuspect(&mut self, suspects: impl IntoIterator<Item = NodeName>) {
        for node in suspects {
            if let Some(track) = self.tracks.get_mut(&node)
                && matches!(track.order, Order::Asked { .. })
            {
                track.order = Order::None;
            }
        }
    }

    /// Calls every order off that is out.
    pub(super) fn call_all_off(&mut self) -> Vec<GrantorCommand> {
        self.suspects.clear();
        let out = self.tracks.iter().filter(|(_, t)| matches!(t.order, Order::Out(_)));
        let mut commands: Vec<_> =
            out.map(|(node, _)| GrantorCommand::CallOff { node: node.clone() }).collect();
        commands.append(&mut self.due);
        commands
    }
}
