//! How acts are carried out, and how all that is wrong ends.

use super::config::Edit;
use super::script::{Act, Ambush, Part, node as node_name};
use super::world::{Event, World};
use std::time::Duration;
use stead_ha::{Leave, Request, ServiceState};
use stead_model::{RequestedState, Vmid};

/// A machine whose leader was struck is back after so long.
const BACK: Duration = Duration::from_secs(8);

impl Act {
    /// Whether all that it is about is there.
    pub fn concerns(&self, nodes: usize, guests: u32) -> bool {
        match self {
            Self::OneWay { node, .. }
            | Self::Pause { node, .. }
            | Self::Kill { node, .. }
            | Self::Device { node, .. }
            | Self::Restart { node, .. }
            | Self::Leave { node, .. }
            | Self::Disks { node, .. } => *node < nodes,
            Self::Deaf { from, to } => *from < nodes && *to < nodes,
            Self::PowerOff { nodes: off, .. } => off.iter().all(|n| *n < nodes),
            Self::Hang { guest } | Self::Die { guest } | Self::Fails { guest, .. } => *guest < guests,
            Self::User(edit) => of_users(edit, nodes, guests),
            Self::Split(_)
            | Self::Mend
            | Self::Weather { .. }
            | Self::Stall { .. }
            | Self::Depose
            | Self::Ambush { .. } => true,
        }
    }
}

fn of_users(edit: &Edit, nodes: usize, guests: u32) -> bool {
    let there = |vmid: Vmid| vmid.get() < 100 + guests;
    match edit {
        Edit::Want(sid, _) | Edit::Remove(sid) | Edit::Ask(Request::Stop { sid, .. }) => there(sid.vmid),
        Edit::Ask(Request::Move { sid, target, .. }) => there(sid.vmid) && is_node(target, nodes),
        Edit::Ask(Request::Maintenance { node, .. }) | Edit::Off(node) => is_node(node, nodes),
        Edit::Add { resource, node, .. } => there(resource.sid.vmid) && is_node(node, nodes),
        Edit::Lock(vmid, _) | Edit::Moved { vmid, .. } => there(*vmid),
        Edit::Ask(Request::Disarm { .. } | Request::Arm) | Edit::Rules(_) | Edit::Profile(_) => true,
    }
}

fn is_node(name: &stead_model::NodeName, nodes: usize) -> bool {
    (0..nodes).any(|n| node_name(n) == *name)
}

impl World {
    /// Carries out an act.
    pub fn act(&mut self, act: Act) {
        let now = self.now;
        match act {
            Act::Split(parts) => self.links(|from, to| parts[from] != parts[to]),
            Act::OneWay { node, outward } => {
                self.cut_more(|from, to| if outward { from == node } else { to == node });
            }
            Act::Deaf { from: a, to: b } => self.cut_more(|from, to| (from, to) == (a, b)),
            Act::Mend => self.links(|_, _| false),
            Act::Weather { loss, late, twice } => (self.loss, self.late, self.twice) = (loss, late, twice),
            Act::PowerOff { nodes, time } => {
                for node in nodes.into_iter().filter(|n| self.nodes[*n].on).collect::<Vec<_>>() {
                    self.lose_power(node);
                    self.after(time, Event::PowerOn { node });
                }
            }
            Act::Pause { part, node, time } => self.pause(part, node, now + time),
            Act::Kill { part, node, time } => self.kill(part, node, time),
            Act::Hang { guest } => self.each_copy(guest, |copy| copy.hung = true),
            Act::Die { guest } => {
                let vmid = super::script::guest(guest).vmid;
                for node in &mut self.nodes {
                    node.copies.remove(&vmid);
                }
            }
            Act::Fails { guest, failing } => {
                self.failing.insert(super::script::guest(guest).vmid, failing);
            }
            Act::Stall { time } => self.stalls = now + time,
            Act::Depose => {
                let leader = (0..self.nodes.len()).find(|n| self.leads(*n) == Some(self.store.term));
                if let Some(leader) = leader {
                    self.step_down(leader);
                }
            }
            Act::Ambush { commits, how } => self.ambush = Some((commits, how)),
            Act::Leave { node, leave, time } => {
                self.set_leave(node, leave);
                if leave == Leave::Shutdown {
                    self.after(time, Event::PowerOn { node });
                }
            }
            Act::Restart { node, time } => self.plan_restart(node, time),
            Act::Device { node, works } => {
                self.nodes[node].device.iter_mut().for_each(|d| d.works = works);
            }
            Act::Disks { node, disks } => self.set_disks(node, disks),
            Act::User(edit) => self.edit(edit),
        }
    }

    fn each_copy(&mut self, guest: u32, change: impl Fn(&mut super::node::Copy)) {
        let vmid = super::script::guest(guest).vmid;
        self.nodes.iter_mut().filter_map(|n| n.copies.get_mut(&vmid)).for_each(change);
    }

    /// These links are cut, and no others.
    fn links(&mut self, is_cut: impl Fn(usize, usize) -> bool) {
        for (from, row) in self.cut.iter_mut().enumerate() {
            for (to, cut) in row.iter_mut().enumerate() {
                *cut = from != to && is_cut(from, to);
            }
        }
    }

    /// These links are cut too.
    fn cut_more(&mut self, is_cut: impl Fn(usize, usize) -> bool) {
        for (from, row) in self.cut.iter_mut().enumerate() {
            for (to, cut) in row.iter_mut().enumerate() {
                *cut |= from != to && is_cut(from, to);
            }
        }
    }

    pub fn pause(&mut self, part: Part, node: usize, until: Duration) {
        let n = &mut self.nodes[node];
        match part {
            Part::Machine => n.paused_until = until,
            Part::Daemon => n.daemon.iter_mut().for_each(|d| d.paused_until = until),
            Part::Fenced => n.fenced.iter_mut().for_each(|f| f.paused_until = until),
        }
    }

    /// Whoever is paused is not started again before its time.
    pub fn kill(&mut self, part: Part, node: usize, time: Duration) {
        if !self.nodes[node].on {
            return;
        }
        let boots = self.nodes[node].boots;
        match part {
            Part::Daemon => {
                self.nodes[node].daemon = None;
                self.after(time, Event::StartDaemon { node, boots });
            }
            Part::Fenced => {
                self.nodes[node].fenced = None;
                self.after(time, Event::StartFenced { node, boots });
            }
            Part::Machine => {
                self.lose_power(node);
                self.after(time, Event::PowerOn { node });
            }
        }
    }

    /// The leader has just committed: whether something befalls it now.
    pub fn spring(&mut self, node: usize) -> bool {
        let Some((commits, how)) = self.ambush else { return false };
        if commits > 1 {
            self.ambush = Some((commits - 1, how));
            return false;
        }
        self.ambush = None;
        self.note(|| format!("n{}: is struck right after its commit: {how:?}", node + 1));
        match how {
            Ambush::Depose => self.step_down(node),
            Ambush::Kill => self.kill(Part::Daemon, node, Duration::from_secs(1)),
            Ambush::PowerOff => self.kill(Part::Machine, node, BACK),
            Ambush::Pause => self.pause(Part::Daemon, node, self.now + BACK),
        }
        true
    }

    /// All faults end, and stay away; what users have put in the way is taken back.
    pub fn heal(&mut self) {
        self.note(|| "* all faults end".to_owned());
        self.healing = true;
        self.links(|_, _| false);
        (self.loss, self.late, self.twice) = (0, 0, 0);
        (self.stalls, self.ambush) = (Duration::ZERO, None);
        self.failing.clear();
        for node in 0..self.nodes.len() {
            let n = &mut self.nodes[node];
            n.copies.values_mut().for_each(|c| c.hung = false);
            n.disks = Default::default();
            n.daemon.iter_mut().for_each(|d| d.leave = None);
            n.device.iter_mut().for_each(super::power::Device::heal);
            if !n.on {
                self.after(Duration::from_secs(2), Event::PowerOn { node });
            }
            self.edit(Edit::Ask(Request::Maintenance { node: node_name(node), on: false }));
        }
        self.edit(Edit::Ask(Request::Arm));
        for guest in 0..self.plan.guests {
            self.edit(Edit::Lock(super::script::guest(guest).vmid, None));
        }
    }

    /// What was given up is left alone until its user disables it and wants it again.
    pub fn help_up(&mut self) {
        let tree = self.store.at(self.store.last());
        self.helped.retain(|sid| tree.config.resources.contains_key(sid));
        for (sid, resource) in &tree.config.resources {
            let state = tree.manager.0.service_status.get(sid).map(|s| s.state);
            match (resource.state, state) {
                (RequestedState::Started | RequestedState::Stopped, Some(ServiceState::Error))
                    if self.helped.insert(*sid) =>
                {
                    self.edit(Edit::Want(*sid, RequestedState::Disabled));
                }
                (RequestedState::Disabled, Some(ServiceState::Stopped)) if self.helped.remove(sid) => {
                    self.edit(Edit::Want(*sid, RequestedState::Started));
                }
                _ => {}
            }
        }
    }
}
