//! Fence devices: two outlets a machine, and the agents that speak to them.
//!
//! A device says the truth of its outlets; what it can't say truly it does not say. What can go wrong is all before: an order that is
//! taken and has no effect, one outlet of two that stays on, a device that is slow, or gone together with the power of its
//! machine; an agent that goes on although its daemon has ended, or that nobody listens to any more. Devices are reached by a
//! network of their own, which is never cut: so a leader that was cut off could strike, if it wanted to.
//!
//! ```text
//!  order ──▶ both outlets are turned off, each in its time ──▶ both are asked ──▶ the daemon that ordered is told
//! ```

use super::script::Act;
use super::world::{Event, World};
use super::{Plan, Plant};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use stead_membership::grantor::PowerOff;
use stead_membership::{Heartbeat, HeartbeatAnswer, Outcome, wire};
use stead_model::{BootId, NodeName};

/// An agent is given up after this.
const PATIENCE: Duration = Duration::from_secs(15);

/// How a device works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Works {
    /// Within a second or two.
    Well,
    /// After this time.
    Slowly(Duration),
    /// Orders have no effect on this outlet, or on both.
    NotAt(Option<usize>),
}

/// A machine's fence device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// For how much longer than its lease its machine must be silent.
    pub delay: Option<Duration>,
    /// It has its power from its machine's, and answers nothing without.
    pub inside: bool,
    /// How it works now.
    pub works: Works,
    /// Which outlets are on.
    pub outlets: [bool; 2],
}

impl Device {
    /// All is well, and on.
    pub fn heal(&mut self) {
        (self.works, self.outlets) = (Works::Well, [true; 2]);
    }
}

impl super::node::Node {
    /// Whether any of its outlets is on.
    pub fn is_fed(&self) -> bool {
        self.device.as_ref().is_none_or(|d| d.outlets.contains(&true))
    }
}

/// An order that is being carried out, by a process on the machine of whoever ordered.
#[derive(Debug, Clone)]
pub struct Order {
    /// Who ordered: the machine, its boot, and the life of the daemon.
    by: (usize, u64, u64),
    /// The machine that is to be off.
    node: usize,
    /// Its boot, as whoever ordered knows it.
    boot: BootId,
    /// Which outlets have taken the order.
    taken: [bool; 2],
    /// Whoever ordered knows the result.
    told: bool,
}

/// What an agent does next.
#[derive(Debug, Clone, Copy)]
pub enum Does {
    /// It turns an outlet off.
    TurnOff(usize),
    /// It asks both outlets.
    Ask,
    /// It is given up.
    End,
}

/// The devices of a seed, and what befalls them: every other history has some. They have a source of chance of their own, so that all
/// else is as it would be without them.
pub fn draw(seed: u64, plan: &Plan, script: &mut Vec<(Duration, Act)>) -> Vec<Option<Device>> {
    if seed % 2 == 1 {
        return vec![None; plan.nodes];
    }
    let mut rng = ChaCha8Rng::seed_from_u64(!seed);
    let device = |rng: &mut ChaCha8Rng| {
        let delay = [None, None, Some(Duration::ZERO), Some(Duration::from_secs(2))][rng.random_range(0..4)];
        let inside = rng.random();
        let works = Works::Well;
        (rng.random_range(0..4) > 0).then_some(Device { delay, inside, works, outlets: [true; 2] })
    };
    let devices = (0..plan.nodes).map(|_| device(&mut rng)).collect();
    let last = u64::try_from(plan.faults.as_millis()).unwrap_or(u64::MAX).max(2);
    for _ in 0..rng.random_range(2..12) {
        let at = Duration::from_millis(rng.random_range(1..last));
        let works = match rng.random_range(0..5) {
            0 => Works::Well,
            1..3 => Works::Slowly(Duration::from_millis(rng.random_range(1500..12_000))),
            3 => Works::NotAt(None),
            _ => Works::NotAt(Some(rng.random_range(0..2))),
        };
        script.push((at, Act::Device { node: rng.random_range(0..plan.nodes), works }));
    }
    script.sort_by_key(|(at, _)| *at);
    devices
}

impl World {
    /// Whom a leader can power off, and how long each of them is waited for.
    pub fn devices_but(&self, me: usize) -> BTreeMap<NodeName, Option<Duration>> {
        let others = self.nodes.iter().enumerate().filter(|(i, _)| *i != me);
        others.filter_map(|(_, n)| Some((n.name.clone(), n.device.as_ref()?.delay))).collect()
    }

    /// A leader's agent begins.
    pub fn order_off(&mut self, by: usize, order: &PowerOff) {
        let Some(node) = self.index(&order.node) else { return };
        let Some(life) = self.nodes[by].daemon.as_ref().map(|d| d.life) else { return };
        self.note(|| {
            format!("n{}: orders that {} be powered off after {:?}", by + 1, order.node, order.silent)
        });
        self.next += 1;
        let id = self.next;
        let by = (by, self.nodes[by].boots, life);
        let order = Order { by, node, boot: order.boot.clone(), taken: [false; 2], told: false };
        self.orders.insert(id, order);
        for outlet in 0..2 {
            let slow = match self.nodes[node].device.as_ref().map(|d| d.works) {
                Some(Works::Slowly(time)) => time,
                _ => Duration::ZERO,
            };
            let takes = self.ms(by.0, 100, 1200) + slow;
            self.after(takes, Event::Agent { order: id, does: Does::TurnOff(outlet) });
        }
        self.after(PATIENCE, Event::Agent { order: id, does: Does::End });
    }

    /// What was taken is given back.
    pub fn order_on(&mut self, off: &NodeName) {
        if let Some(node) = self.index(off) {
            let takes = self.ms(node, 500, 3000);
            self.after(takes, Event::Restore { node });
        }
    }

    /// A leader ends its agent.
    pub fn call_off(&mut self, by: usize, of: &NodeName) {
        let Some(node) = self.index(of) else { return };
        self.orders.retain(|_, o| o.by.0 != by || o.node != node);
    }

    /// An agent goes on, if its machine does.
    pub fn agent_goes_on(&mut self, id: u64, does: Does) {
        let Some(order) = self.orders.get(&id).cloned() else { return };
        let host = &self.nodes[order.by.0];
        if !self.is_boot(order.by.0, order.by.1) {
            self.orders.remove(&id);
            return;
        }
        if host.paused_until > self.now {
            let at = host.paused_until;
            return self.at(at, Event::Agent { order: id, does });
        }
        match does {
            Does::TurnOff(outlet) => self.turn_off(id, &order, outlet),
            Does::Ask => self.ask_outlets(id, &order),
            Does::End => {
                self.tell_order(id, &order, false);
                self.orders.remove(&id);
            }
        }
    }

    fn turn_off(&mut self, id: u64, order: &Order, outlet: usize) {
        let node = order.node;
        let n = &mut self.nodes[node];
        let Some(device) = n.device.as_mut().filter(|d| n.on || !d.inside) else {
            return self.tell_order(id, order, false);
        };
        if !matches!(device.works, Works::NotAt(which) if which.is_none_or(|o| o == outlet)) {
            device.outlets[outlet] = false;
        }
        if n.on && !n.is_fed() {
            self.note(|| format!("n{}: its fence device has taken its power", node + 1));
            self.lose_power(node);
            let back = self.ms(node, 4000, 25_000);
            self.after(back, Event::Restore { node });
        }
        let Some(known) = self.orders.get_mut(&id) else { return };
        known.taken[outlet] = true;
        if known.taken == [true; 2] {
            if self.plan.plant == Plant::OffOnOrder {
                return self.tell_order(id, order, true);
            }
            let takes = self.ms(order.by.0, 50, 600);
            self.after(takes, Event::Agent { order: id, does: Does::Ask });
        } else if self.plan.plant == Plant::OffByOneOutlet
            && self.nodes[node].device.as_ref().is_some_and(|d| !d.outlets[outlet])
        {
            self.tell_order(id, order, true);
        }
    }

    fn ask_outlets(&mut self, id: u64, order: &Order) {
        let n = &self.nodes[order.node];
        // A device that has its power from the machine's mains still has it: outlets are not mains.
        let off = !n.is_fed();
        self.tell_order(id, order, off);
    }

    /// The result reaches the daemon that ordered, if it is still there and nothing was told before.
    fn tell_order(&mut self, id: u64, order: &Order, off: bool) {
        let told = self.orders.get_mut(&id).is_none_or(|o| std::mem::replace(&mut o.told, true));
        let (by, _, life) = order.by;
        if told || !self.daemon_is(by, life) {
            return;
        }
        let name = self.nodes[order.node].name.clone();
        self.note(|| format!("n{}: learns that {name} is {}", by + 1, if off { "off" } else { "not off" }));
        if let Some(d) = self.daemon(by) {
            if off {
                d.grantor.powered_off(&name, &order.boot);
            } else {
                d.grantor.power_off_failed(&name, &order.boot);
            }
        }
    }

    /// The outlets are on again, and the machine boots.
    pub fn restore(&mut self, node: usize) {
        if let Some(device) = self.nodes[node].device.as_mut()
            && device.outlets != [true; 2]
        {
            device.outlets = [true; 2];
            self.after(Duration::from_millis(500), Event::PowerOn { node });
        }
    }

    /// A planted mistake: whoever is to be powered off is granted a lease of which the grantor knows nothing.
    pub fn grants_uncounted(&mut self, node: usize, beat: &Heartbeat) -> bool {
        let out = |o: &Order| o.by.0 == node && !o.told && self.nodes[o.node].name == beat.node;
        let planted = self.plan.plant == Plant::LeaseAfterOrder && self.orders.values().any(out);
        if planted && let Some(to) = self.index(&beat.node) {
            let outcome = Outcome::granted(self.store.at(self.nodes[node].applied).profile);
            let answer = HeartbeatAnswer { v: wire::VERSION, nonce: beat.nonce, outcome };
            self.send(node, to, super::daemon::Msg::Answer(answer));
        }
        planted
    }
}

impl fmt::Display for Works {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Well => f.write_str("works"),
            Self::Slowly(time) => write!(f, "takes {:.1} s", time.as_secs_f64()),
            Self::NotAt(None) => f.write_str("takes orders, and does nothing"),
            Self::NotAt(Some(outlet)) => write!(f, "takes orders, and leaves outlet {} on", outlet + 1),
        }
    }
}
