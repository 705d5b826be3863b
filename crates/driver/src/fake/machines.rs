//! The machines below [`super::FakeGuests`]: what stays when a daemon ends.

use crate::capabilities::Capabilities;
use crate::guest::{
    Balloon, CopyKind, CopyPhase, CopyProgress, DiskCopy, GuestEvent, Launch, MigrationPhase,
    MigrationProgress, RunState,
};
use crate::hardware::Hardware;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stead_model::Vmid;
use stead_model::vmconfig::VmConfig;
use tokio::sync::{Notify, broadcast, watch};

/// How many modules of memory a configuration has.
pub(super) fn modules_of(config: &str) -> usize {
    let modules = VmConfig::parse(config).ok().and_then(|config| config.current.modules().ok()?);
    modules.map_or(0, |modules| modules.number)
}

/// A guest's process on a fake node.
#[derive(Debug)]
pub(super) struct Process {
    pub launch: Launch,
    pub pid: u32,
    pub state: RunState,
    pub ran: bool,
    /// It was stopped so that its memory can be fetched.
    pub stands: bool,
    /// It is sent so that it can be.
    pub fetched: bool,
    pub migration: watch::Sender<MigrationProgress>,
    pub sending: Option<tokio::task::AbortHandle>,
    pub listening: Option<tokio::task::AbortHandle>,
    /// What its agent was asked.
    pub asked: Vec<(String, serde_json::Value)>,
    /// Devices that were asked for and that it has not let go of.
    pub asked_back: BTreeSet<String>,
    /// Whether it lets go of devices that it is asked for.
    pub holds_devices: bool,
    /// How many CPUs it was given, if somebody has.
    pub cpus: Option<u32>,
    /// The copies of its disks that are under way.
    pub copies: Option<(Vec<DiskCopy>, CopyKind)>,
    pub copying: watch::Sender<CopyProgress>,
    /// Has a migration that is held go on.
    pub go_on: Arc<Notify>,
    /// The disks that it lends while it waits.
    pub lends: Vec<String>,
    /// Its balloon.
    pub balloon: Option<Balloon>,
    /// Its modules of memory, once they were changed.
    pub modules: Option<usize>,
}

impl Process {
    /// Whether its machine has the device of an option.
    pub fn has(&self, key: &str) -> bool {
        self.machine().0.lines().any(|line| line.starts_with(&format!("{key}:")))
    }

    /// The options whose devices its machine has.
    pub fn devices(&self) -> BTreeSet<String> {
        let keys = self.machine().0.lines().filter_map(|line| line.split_once(':')).map(|(key, _)| key);
        let is_device = |key: &&str| {
            let kind = key.trim_end_matches(|c: char| c.is_ascii_digit());
            matches!(kind, "net" | "scsi" | "virtio" | "ide" | "sata" | "usb") && kind.len() < key.len()
        };
        keys.filter(is_device).map(str::to_owned).collect()
    }

    /// What its copies are in once they are whole.
    pub fn whole(&self) -> CopyPhase {
        match self.copies {
            Some((_, CopyKind::Moment)) => CopyPhase::Completed,
            Some((_, CopyKind::Mirror)) => CopyPhase::InStep,
            None => CopyPhase::None,
        }
    }

    /// How many modules of memory it has.
    pub fn modules(&self) -> usize {
        self.modules.unwrap_or_else(|| modules_of(&self.launch.config))
    }

    /// The device of an option leaves its machine.
    pub fn take_out(&mut self, key: &str) {
        let device = format!("{key}:");
        let (machine, rest) = self.machine();
        let kept = machine.lines().filter(|line| !line.starts_with(&device));
        let text: String = kept.map(|line| format!("{line}\n")).chain([rest.to_owned()]).collect();
        self.launch.config = text;
    }

    /// What the configuration says of the machine, and its sections.
    fn machine(&self) -> (&str, &str) {
        let text = &self.launch.config;
        text.split_at(text.find("\n[").map_or(text.len(), |at| at + 1))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for task in [&self.sending, &self.listening].into_iter().flatten() {
            task.abort();
        }
    }
}

#[derive(Debug)]
pub(super) struct Node {
    pub guests: BTreeMap<Vmid, Process>,
    pub events: broadcast::Sender<GuestEvent>,
    pub refuse: Option<String>,
    pub refuse_snapshots: Option<String>,
    /// Somebody cancels the writing of memory.
    pub break_memory: bool,
    /// A command that the agents of its guests fail at.
    pub refuse_agent: Option<String>,
    pub delay_agent: Option<String>,
    /// Copies are on their way until somebody ends them.
    pub hold_copies: bool,
    /// Guests go over to no copy.
    pub refuse_pivot: bool,
    /// How many more questions about migrations nobody answers.
    pub silent: u32,
    /// No guest comes to be fetched.
    pub hang_fetching: bool,
    /// How each guest was that went over to a copy.
    pub pivoted: Vec<RunState>,
    /// What could be given to guests.
    pub hardware: Hardware,
    /// What its program can do, if it tells.
    pub capabilities: Option<Capabilities>,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub nodes: BTreeMap<String, Node>,
    ticks: BTreeMap<Vmid, u64>,
    pids: u32,
}

impl World {
    pub fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.entry(name.to_owned()).or_insert_with(|| Node {
            guests: BTreeMap::new(),
            events: broadcast::channel(256).0,
            refuse: None,
            refuse_snapshots: None,
            break_memory: false,
            refuse_agent: None,
            delay_agent: None,
            hold_copies: false,
            refuse_pivot: false,
            silent: 0,
            hang_fetching: false,
            pivoted: vec![],
            hardware: Hardware::default(),
            capabilities: None,
        })
    }

    pub fn fresh_pid(&mut self) -> u32 {
        self.pids += 1;
        // Above what any kernel gives out.
        (1 << 23) + self.pids
    }

    /// Changes a guest's state and tells of it.
    pub fn enter(&mut self, name: &str, vmid: Vmid, state: RunState) {
        let node = self.node(name);
        let Some(process) = node.guests.get_mut(&vmid) else { return };
        if process.state != state {
            process.state = state;
            process.ran |= state == RunState::Running;
            process.stands &= state != RunState::Running;
            let _ = node.events.send(GuestEvent::State { vmid, state });
        }
    }

    /// Ends a guest's process and tells of it.
    pub fn end(&mut self, name: &str, vmid: Vmid, clean: bool) -> bool {
        let node = self.node(name);
        let Some(process) = node.guests.remove(&vmid) else { return false };
        let _ = node.events.send(GuestEvent::Gone { vmid, epoch: process.launch.epoch, clean });
        true
    }
}

/// Nodes without hardware, shared by the drivers of a test. A guest ticks each time that someone looks, while a
/// copy of it runs anywhere.
#[derive(Debug, Clone, Default)]
pub struct FakeMachines(Arc<Mutex<World>>);

impl FakeMachines {
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often the guest has ticked.
    pub fn ticks(&self, vmid: Vmid) -> u64 {
        let running = !self.running(vmid).is_empty();
        let mut world = self.world();
        let ticks = world.ticks.entry(vmid).or_default();
        *ticks += u64::from(running);
        *ticks
    }

    /// The nodes on which a copy of the guest runs: more than one is what must never be.
    pub fn running(&self, vmid: Vmid) -> Vec<String> {
        let world = self.world();
        let runs = |node: &&String| {
            let process = world.nodes.get(*node).and_then(|n| n.guests.get(&vmid));
            process.is_some_and(|p| p.state == RunState::Running)
        };
        world.nodes.keys().filter(runs).cloned().collect()
    }

    /// What the guest's agent was asked since the last time: commands and their arguments.
    pub fn asked(&self, node: &str, vmid: Vmid) -> Vec<(String, serde_json::Value)> {
        self.world()
            .node(node)
            .guests
            .get_mut(&vmid)
            .map(|p| std::mem::take(&mut p.asked))
            .unwrap_or_default()
    }

    /// Gives the guest a balloon, or takes it; what it has now.
    pub fn set_balloon(&self, node: &str, vmid: Vmid, balloon: Option<Balloon>) {
        if let Some(process) = self.world().node(node).guests.get_mut(&vmid) {
            process.balloon = balloon;
        }
    }

    /// Makes the guest keep the devices that it is asked for, or let go of all that it was asked for.
    pub fn hold_devices(&self, node: &str, vmid: Vmid, hold: bool) {
        let mut world = self.world();
        let node = world.node(node);
        let Some(process) = node.guests.get_mut(&vmid) else { return };
        process.holds_devices = hold;
        if !hold {
            for key in std::mem::take(&mut process.asked_back) {
                if key == "vcpus" {
                    process.cpus = process.cpus.map(|n| n - 1);
                }
                if key == "memory" {
                    process.modules = Some(process.modules().saturating_sub(1));
                }
                process.take_out(&key);
                let _ = node.events.send(GuestEvent::Unplugged { vmid });
            }
        }
    }

    /// What the guest's process on a node has opened, what was put into its CD drives last.
    pub fn volumes(&self, node: &str, vmid: Vmid) -> Vec<crate::guest::ResolvedVolume> {
        self.world().node(node).guests.get(&vmid).map(|p| p.launch.volumes.clone()).unwrap_or_default()
    }

    /// The state of the guest's process on a node.
    pub fn state(&self, node: &str, vmid: Vmid) -> Option<RunState> {
        self.world().node(node).guests.get(&vmid).map(|p| p.state)
    }

    /// Ends the guest's process on a node as an accident does. Returns whether there was one.
    pub fn crash(&self, node: &str, vmid: Vmid) -> bool {
        self.world().end(node, vmid, false)
    }

    /// Ends all that runs on a node without telling anybody.
    pub fn power_off(&self, node: &str) {
        self.world().node(node).guests.clear();
    }

    /// Sets a guest's state by hand, as the fence process or an accident would.
    pub fn set_state(&self, node: &str, vmid: Vmid, state: RunState) {
        self.world().enter(node, vmid, state);
    }

    /// Sets by hand how the migration of a guest's process stands, as the other node would; of one that is fetched from, also that it
    /// stands for that.
    pub fn set_migration(&self, node: &str, vmid: Vmid, phase: MigrationPhase, stands: bool) {
        if let Some(process) = self.world().node(node).guests.get_mut(&vmid) {
            process.stands = stands;
            process.migration.send_modify(|p| p.phase = phase);
        }
    }

    /// How the migration of a guest's process stands.
    pub fn migration(&self, node: &str, vmid: Vmid) -> Option<MigrationPhase> {
        self.world().node(node).guests.get(&vmid).map(|p| p.migration.borrow().phase)
    }

    /// Has a node's guests that are fetched from, or are to be, not answer the next questions and words about it.
    pub fn silence(&self, node: &str, questions: u32) {
        self.world().node(node).silent = questions;
    }

    /// How many of them are left.
    pub fn unheard(&self, node: &str) -> u32 {
        self.world().node(node).silent
    }

    /// Has no guest of a node come to be fetched, or again.
    pub fn hang_fetching(&self, node: &str, hang: bool) {
        self.world().node(node).hang_fetching = hang;
    }

    /// Makes snapshots of guests that run on a node fail, and their removal, or (with none) work again.
    pub fn refuse_snapshots(&self, node: &str, why: Option<&str>) {
        self.world().node(node).refuse_snapshots = why.map(str::to_owned);
    }

    /// Has the writing of memory on a node cancelled, as the fence process does.
    pub fn break_memory(&self, node: &str, broken: bool) {
        self.world().node(node).break_memory = broken;
    }

    /// Makes the agents of guests on a node fail at commands that begin so, or (with none) at none any more.
    pub fn refuse_agent(&self, node: &str, command: Option<&str>) {
        self.world().node(node).refuse_agent = command.map(str::to_owned);
    }

    /// Makes the agents of guests on a node too slow for commands that begin so, or (with none) for none any more.
    pub fn delay_agent(&self, node: &str, command: Option<&str>) {
        self.world().node(node).delay_agent = command.map(str::to_owned);
    }

    /// Keeps copies of disks on a node on their way, or lets those that are begun from now on come to their end at once.
    pub fn hold_copies(&self, node: &str, hold: bool) {
        self.world().node(node).hold_copies = hold;
    }

    /// Makes guests on a node go over to no copy: the copy ends instead.
    pub fn refuse_pivot(&self, node: &str, refuse: bool) {
        self.world().node(node).refuse_pivot = refuse;
    }

    /// How each of a node's guests was when it went over to a copy.
    pub fn pivoted(&self, node: &str) -> Vec<RunState> {
        self.world().node(node).pivoted.clone()
    }

    /// Ends the copies of a guest's disks, as the fence process does.
    pub fn end_copies(&self, node: &str, vmid: Vmid) {
        if let Some(process) = self.world().node(node).guests.get_mut(&vmid) {
            process.copies = None;
            process.copying.send_replace(CopyProgress::default());
        }
    }

    /// The disks of a guest that are being copied.
    pub fn copied(&self, node: &str, vmid: Vmid) -> Vec<String> {
        let mut world = self.world();
        let copies = world.node(node).guests.get(&vmid).and_then(|p| p.copies.as_ref());
        copies.map(|(all, _)| all.iter().map(|c| c.disk.clone()).collect()).unwrap_or_default()
    }

    /// Has a guest's mirror be in step.
    pub fn finish_copies(&self, node: &str, vmid: Vmid) {
        if let Some(process) = self.world().node(node).guests.get_mut(&vmid) {
            let phase = process.whole();
            process.copying.send_modify(|p| p.phase = phase);
        }
    }

    /// What a node has that could be given to guests.
    pub fn set_hardware(&self, node: &str, hardware: Hardware) {
        self.world().node(node).hardware = hardware;
    }

    /// What the program of a node can do.
    pub fn set_capabilities(&self, node: &str, capabilities: Capabilities) {
        self.world().node(node).capabilities = Some(capabilities);
    }

    /// What the guest's process on a node was told of its configuration last.
    pub fn config(&self, node: &str, vmid: Vmid) -> Option<String> {
        self.world().node(node).guests.get(&vmid).map(|p| p.launch.config.clone())
    }

    /// Makes launches on a node fail, or (with none) work again.
    pub fn refuse_launches(&self, node: &str, why: Option<&str>) {
        self.world().node(node).refuse = why.map(str::to_owned);
    }
}

/// A migration that has not begun.
pub(super) fn no_migration() -> watch::Sender<MigrationProgress> {
    watch::channel(MigrationProgress { phase: MigrationPhase::None, ..MigrationProgress::default() }).0
}
