//! What concerns nodes, and HA as a whole: maintenance, nodes that go down on purpose, disarming.
//!
//! ```text
//!          disarm                    no recovery, no move        all agents
//!  armed ─────────▶ moves end, others ────────────▶ ready ─────────────────▶ disarmed
//!    ▲              are frozen or forgotten                 have let go          │
//!    └───────────────────────────────── arm ─────────────────────────────────────┘
//! ```

use super::{Clerk, DISARMED, Round, in_order};
use crate::agent::AgentMode;
use crate::state::{
    Disarm, DisarmMode, ManagerState, NodeMemory, NodeStatus, NodeWord, Request, ServiceState, View,
};
use std::collections::{BTreeMap, BTreeSet};
use stead_model::NodeName;

impl Clerk<'_, '_> {
    /// Notes what agents say that their nodes are up to; a silent node's last word stays.
    pub(super) fn note_nodes(&mut self) {
        let view = self.view;
        let mut memory: BTreeMap<NodeName, NodeMemory> = self.state.node_memory.clone();
        memory.retain(|n, _| view.nodes.contains_key(n));
        for (name, node) in &view.nodes {
            let Some(agent) = &node.agent else { continue };
            if agent.mode != AgentMode::Active || memory.contains_key(name) {
                memory.entry(name.clone()).or_default().mode = agent.mode;
            }
        }
        memory.retain(|_, m| *m != NodeMemory::default());
        self.assign(|s| &mut s.node_memory, memory);
    }

    /// Takes the requests that are not about a service.
    pub(super) fn take_requests(&mut self) {
        let view = self.view;
        for (id, request) in &view.requests {
            match request {
                Request::Maintenance { node, on } => self.maintain(id, node, *on),
                Request::Disarm { mode } if self.state.disarm.is_none() => {
                    let disarm = Disarm { mode: *mode, ready: false, done: false };
                    self.assign(|s| &mut s.disarm, Some(disarm));
                    self.assign(|s| &mut s.imbalanced_since, None);
                    self.drop_request(id, true, "disarming");
                }
                Request::Disarm { .. } => self.drop_request(id, false, "HA is disarmed already"),
                Request::Arm if self.state.disarm.is_some() => {
                    self.assign(|s| &mut s.disarm, None);
                    self.drop_request(id, true, "armed");
                }
                Request::Arm => self.drop_request(id, false, "HA is armed already"),
                Request::Move { .. } | Request::Stop { .. } => {}
            }
        }
    }

    fn maintain(&mut self, id: &str, node: &NodeName, on: bool) {
        if !self.view.nodes.contains_key(node) {
            return self.drop_request(id, false, format!("there is no node '{node}'"));
        }
        let mut memory = self.state.node_memory.clone();
        memory.entry(node.clone()).or_default().maintenance = on;
        memory.retain(|_, m| *m != NodeMemory::default());
        self.assign(|s| &mut s.node_memory, memory);
        self.drop_request(id, true, if on { "maintenance begins" } else { "maintenance ends" });
    }

    /// Nodes on which nothing is placed although they may be online.
    pub(super) fn closed(&self) -> BTreeSet<NodeName> {
        self.state.node_memory.keys().cloned().collect()
    }

    /// Whether a node is to be empty.
    pub(super) fn drains(&self, node: &NodeName) -> bool {
        let memory = self.state.memory(node);
        memory.maintenance || memory.mode == AgentMode::Maintenance
    }

    /// Disarming has ended when every node that takes part has let go.
    pub(super) fn end_disarming(&mut self) {
        let Some(disarm) = self.state.disarm.filter(|d| d.ready && !d.done) else { return };
        let done = self
            .view
            .nodes
            .values()
            .filter(|n| n.word == NodeWord::Online)
            .all(|n| n.agent.as_ref().is_some_and(|a| a.disarmed));
        if done {
            self.assign(|s| &mut s.disarm, Some(Disarm { done: true, ..disarm }));
        }
    }

    /// What is shown of each node.
    pub(super) fn show_nodes(&mut self) {
        let recovering: BTreeSet<&NodeName> = self
            .state
            .service_status
            .values()
            .filter(|s| matches!(s.state, ServiceState::Fence | ServiceState::Recovery))
            .map(|s| &s.node)
            .collect();
        let shown = |name: &NodeName, word| match word {
            NodeWord::Lost if recovering.contains(name) => NodeStatus::Fence,
            _ if self.drains(name) => NodeStatus::Maintenance,
            NodeWord::Online => NodeStatus::Online,
            NodeWord::Unknown | NodeWord::Lost => NodeStatus::Unknown,
        };
        let status = self.view.nodes.iter().map(|(n, v)| (n.clone(), shown(n, v.word))).collect();
        self.assign(|s| &mut s.node_status, status);
    }
}

impl ManagerState {
    /// Disarms HA at once, where no guest runs and none is on its way: all is frozen where it is, but for what was given up. Nothing is
    /// started before HA is armed.
    pub fn rest(&mut self) {
        for s in self.service_status.values_mut().filter(|s| s.state != ServiceState::Error) {
            self.last_uid += 1;
            (s.state, s.target, s.uid, s.reason) =
                (ServiceState::Freeze, None, self.last_uid, DISARMED.to_owned());
            (s.timeout, s.retry_at) = (None, None);
        }
        self.imbalanced_since = None;
        self.disarm = Some(Disarm { mode: DisarmMode::Freeze, ready: true, done: false });
    }
}

impl<'v> Round<'v, '_> {
    /// While HA is, or is being, disarmed.
    pub(super) fn disarm(&mut self, view: &'v View) {
        let Some(disarm) = self.state.disarm else { return };
        let open: Vec<_> = self.requests.values().flatten().map(|(id, _)| (*id).to_owned()).collect();
        for id in open {
            self.drop_request(&id, false, "HA is disarmed");
        }
        self.requests.clear();
        if disarm.ready {
            return;
        }
        let mut under_way = 0;
        for (sid, seen) in in_order(view) {
            let state = |r: &Self| r.state.service_status.get(&sid).map(|s| s.state);
            let moves = |s: Option<ServiceState>| {
                s.is_some_and(|s| s.is_move() || matches!(s, ServiceState::Fence | ServiceState::Recovery))
            };
            if moves(state(self)) {
                self.advance(sid, seen);
                under_way += usize::from(moves(state(self)));
            }
        }
        if under_way > 0 {
            return;
        }
        for (sid, _) in in_order(view) {
            let Some(s) = self.state.service_status.get(&sid) else { continue };
            let node = s.node.clone();
            match (disarm.mode, s.state) {
                (DisarmMode::Ignore, _) => self.forget(sid, "HA is disarmed, and lets go of it"),
                // What was given up stays so.
                (DisarmMode::Freeze, ServiceState::Error | ServiceState::Freeze) => {}
                (DisarmMode::Freeze, _) => {
                    self.enter(sid, ServiceState::Freeze, &node, None, DISARMED.into());
                }
            }
        }
        self.assign(|s| &mut s.disarm, Some(Disarm { ready: true, ..disarm }));
    }
}
