//! One machine: power, clock, watchdog, fence process, guests.

use super::daemon::Daemon;
use super::store::Store;
use crate::scenario::command::Disks;
use std::collections::BTreeMap;
use std::time::Duration;
use stead_membership::{Hold, Holder, Moment};
use stead_model::{BootId, Epoch, NodeName, NodeUuid, Vmid};

/// A guest's process.
#[derive(Debug, Clone)]
pub struct Copy {
    /// The ownership under which it was started.
    pub epoch: Epoch,
    /// Its CPUs run.
    pub running: bool,
    /// Its cgroup is frozen.
    pub frozen: bool,
    /// It answers nothing.
    pub hung: bool,
    /// A `cont` that QEMU has been sent takes effect at this moment, whatever becomes of its sender.
    pub cont_at: Duration,
    /// Its CPUs have executed.
    pub ran: bool,
    /// That it is lost has been told.
    pub lost: bool,
    /// Its state is being sent to another node.
    pub sending: Option<Sending>,
    /// All of it was sent: its CPUs stand.
    pub sent: bool,
    /// It waits for a hand-over, and has not run.
    pub incoming: Option<Incoming>,
    /// It has all of its state.
    pub received: bool,
}

/// A guest's state on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sending {
    /// Which sending: a later one has another number.
    pub id: u64,
    /// Where to.
    pub to: usize,
    /// The lives of both daemons, through which the stream goes.
    pub lives: (u64, u64),
    /// It will fail by itself.
    pub fails: bool,
}

/// A copy that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Who sends.
    pub from: usize,
    /// When that node was last asked whether it still does.
    pub asked: Duration,
}

/// The fence process.
#[derive(Debug, Clone)]
pub struct Fenced {
    /// Its decisions.
    pub holder: Holder,
    /// Grows with each start: what an earlier one had under way is void.
    pub life: u64,
    /// Not before this moment does it do anything.
    pub paused_until: Duration,
    /// The timer that counts: one set later makes earlier ones void.
    pub timer: u64,
    /// What is under way for a guest: a job begun later takes its place.
    pub jobs: BTreeMap<Vmid, u64>,
}

/// One machine.
#[derive(Debug, Clone)]
pub struct Node {
    /// Counted from 1.
    pub number: usize,
    /// Its name.
    pub name: NodeName,
    /// Its identity.
    pub uuid: NodeUuid,
    /// Its boot.
    pub boot: BootId,
    /// Per mille of true time by which its clock runs.
    pub rate: u32,
    /// What its clock showed at the beginning.
    pub offset: Duration,
    /// Has power.
    pub on: bool,
    /// Its fence device, if it has one.
    pub device: Option<super::power::Device>,
    /// The whole machine stands still until then; its watchdog goes on.
    pub paused_until: Duration,
    /// When the watchdog resets it.
    pub watchdog: Option<Duration>,
    /// None after it was killed, until it is started again.
    pub fenced: Option<Fenced>,
    /// Registrations and what is known of them, as recorded on disk: epoch, verified held.
    pub record: BTreeMap<Vmid, (Epoch, bool)>,
    /// D and W of the last lease. On disk.
    pub times: (Duration, Duration),
    /// None after it was killed, until it is started again.
    pub daemon: Option<Daemon>,
    /// The storage of all disks, as it is here, and since when.
    pub disks: (Disks, Duration),
    /// Processes of guests.
    pub copies: BTreeMap<Vmid, Copy>,
    /// Grows with each boot.
    pub boots: u64,
    /// Grows with each start of the fence process.
    pub lives: u64,
    /// Index of the last applied entry. On disk.
    pub applied: usize,
    /// The term it has voted in. On disk.
    pub term: u64,
    /// When, in true time, the last lease that its fence process accepted ends.
    pub lease_ends: Duration,
    /// Its fence process has acted since it last had a lease.
    pub fenced_itself: bool,
}

impl Node {
    /// What its clock shows.
    pub fn clock(&self, now: Duration) -> Moment {
        self.offset + now * self.rate / 1000
    }

    /// When, in true time, its clock will show `at`.
    pub fn when(&self, at: Moment) -> Duration {
        // Rounded up, so that a timer never rings too early.
        at.saturating_sub(self.offset) * 1000 / self.rate + Duration::from_micros(2)
    }

    /// Whether its CPUs execute anything.
    pub fn executes(&self, now: Duration) -> bool {
        self.on && now >= self.paused_until
    }

    /// Whether a guest's CPUs execute now.
    pub fn guest_executes(&self, now: Duration, vmid: Vmid) -> Option<Epoch> {
        let copy = self.copies.get(&vmid)?;
        (self.executes(now) && copy.running && !copy.frozen).then_some(copy.epoch)
    }

    /// Where its guests stand, by its fence process's word.
    pub fn holds(&self) -> Vec<(Vmid, Epoch, Hold)> {
        let fenced = self.fenced.as_ref();
        fenced.map(|f| f.holder.guests().map(|(v, g)| (v, g.epoch, g.hold)).collect()).unwrap_or_default()
    }

    /// Power goes: everything that is not on disk is gone.
    pub fn power_off(&mut self) {
        self.on = false;
        self.watchdog = None;
        self.fenced = None;
        self.daemon = None;
        self.copies.clear();
        self.record.clear();
        self.times = Default::default();
        self.lease_ends = Duration::ZERO;
    }

    /// Power comes: a new boot.
    pub fn power_on(&mut self, now: Duration, store: &Store) {
        self.on = true;
        self.boots += 1;
        self.paused_until = now;
        self.boot = boot_id(self.number, self.boots);
        self.applied = self.applied.min(store.last());
        self.start_fenced(now);
        self.start_daemon(now, store);
    }

    /// The fence process is started (again).
    pub fn start_fenced(&mut self, now: Duration) {
        let at = self.clock(now);
        let first = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let hold = |vmid: &Vmid, held: bool| match self.copies.get(vmid) {
            None => Hold::Registered,
            Some(copy) if held && copy.frozen => Hold::Held,
            Some(_) => Hold::Stopping,
        };
        let guests: Vec<_> = self.record.iter().map(|(v, (e, held))| (*v, *e, hold(v, *held))).collect();
        self.lives += 1;
        let holder = Holder::adopt(first, at, self.times, guests);
        let (timer, jobs) = (0, BTreeMap::new());
        self.fenced = Some(Fenced { holder, life: self.lives, paused_until: now, timer, jobs });
    }

    /// The daemon is started (again). A guest whose start the last one did not finish is ended: nobody waits for it.
    pub fn start_daemon(&mut self, now: Duration, store: &Store) {
        self.lives += 1;
        let tree = store.at(self.applied);
        self.daemon = Some(Daemon::new(self.clock(now), now, self.lives, &tree));
        let unfinished = |h: &(Vmid, Epoch, Hold)| h.2 == Hold::Registered;
        for (vmid, ..) in self.holds().into_iter().filter(unfinished) {
            if self.copies.get(&vmid).is_some_and(|c| !c.running && !c.sent && c.incoming.is_none()) {
                self.copies.remove(&vmid);
            }
        }
    }

    /// The fence process, if it answers now.
    pub fn answering(&mut self, now: Duration) -> Option<&mut Fenced> {
        let executes = self.executes(now);
        self.fenced.as_mut().filter(|f| executes && now >= f.paused_until)
    }

    /// Kills a guest and has it forgotten.
    pub fn destroy(&mut self, now: Duration, vmid: Vmid) {
        self.copies.remove(&vmid);
        let forgotten = self.answering(now).map(|f| f.holder.forget(vmid, true));
        if matches!(forgotten, Some(Ok(()))) {
            self.record.remove(&vmid);
        }
    }
}

/// A boot id for each boot.
pub fn boot_id(number: usize, boots: u64) -> BootId {
    let text = format!("{number:08x}-0000-4000-8000-{boots:012x}");
    BootId::new(text).unwrap_or_else(|e| unreachable!("a boot id by construction: {e}"))
}
