//! What goes wrong, and how all of it ends.

use super::world::{Event, World};
use rand::RngExt;
use std::time::Duration;

impl World {
    /// One fault, and the time of the next.
    pub fn fault(&mut self) {
        if self.healing {
            return;
        }
        let gap = self.ms(200, 6000);
        self.after(gap, Event::Fault);
        let node = self.rng.random_range(0..self.nodes.len());
        match self.rng.random_range(0..12) {
            0 => self.partition(),
            1 => self.cut_one_way(node),
            2 => {
                self.note(|| "the network is whole again".to_owned());
                self.mend();
            }
            3 => self.weather(),
            4 => self.crash(node),
            5 => self.pause_daemon(node),
            6 => self.pause_fenced(node),
            7 => self.pause_machine(node),
            8 => self.kill_daemon(node),
            9 => self.kill_fenced(node),
            10 => self.hang_guest(node),
            _ => self.kill_guest(node),
        }
    }

    /// All faults end, and stay away.
    pub fn heal(&mut self) {
        self.note(|| "HEALING".to_owned());
        self.healing = true;
        self.mend();
        (self.loss, self.late) = (0, 0);
        for node in &mut self.nodes {
            node.copies.values_mut().for_each(|c| c.hung = false);
        }
    }

    fn mend(&mut self) {
        self.cut.iter_mut().flatten().for_each(|c| *c = false);
    }

    fn partition(&mut self) {
        let side: Vec<bool> = self.nodes.iter().map(|_| self.rng.random()).collect();
        self.note(|| format!("the network is split: {side:?}"));
        for (from, row) in self.cut.iter_mut().enumerate() {
            for (to, cut) in row.iter_mut().enumerate() {
                *cut = side[from] != side[to];
            }
        }
    }

    fn cut_one_way(&mut self, node: usize) {
        let outward = self.rng.random::<bool>();
        self.note(|| format!("n{}: cut off, {}", node + 1, if outward { "outward" } else { "inward" }));
        for other in (0..self.nodes.len()).filter(|o| *o != node) {
            let (from, to) = if outward { (node, other) } else { (other, node) };
            self.cut[from][to] = true;
        }
    }

    fn weather(&mut self) {
        self.loss = [0, 0, 20, 200, 500][self.rng.random_range(0..5)];
        self.late = [0, 10, 100, 400][self.rng.random_range(0..4)];
        let (loss, late) = (self.loss, self.late);
        self.note(|| format!("of 1000 messages {loss} are lost, {late} late"));
    }

    fn crash(&mut self, node: usize) {
        if self.nodes[node].on {
            self.note(|| format!("n{}: power off", node + 1));
            self.lose_power(node);
            let time = self.ms(500, 25_000);
            self.after(time, Event::PowerOn { node });
        }
    }

    fn pause(&mut self) -> Duration {
        let long = self.chance(500);
        if long { self.ms(3000, 15_000) } else { self.ms(100, 3000) }
    }

    fn pause_daemon(&mut self, node: usize) {
        let until = self.now + self.pause();
        self.note(|| format!("n{}: daemon stands still until {until:?}", node + 1));
        if let Some(d) = self.daemon(node) {
            d.paused_until = until;
        }
    }

    fn pause_fenced(&mut self, node: usize) {
        let until = self.now + self.pause();
        self.note(|| format!("n{}: fence process stands still until {until:?}", node + 1));
        if let Some(f) = self.nodes[node].fenced.as_mut() {
            f.paused_until = until;
        }
    }

    fn pause_machine(&mut self, node: usize) {
        let until = self.now + self.pause();
        self.note(|| format!("n{}: machine stands still until {until:?}", node + 1));
        self.nodes[node].paused_until = until;
    }

    fn kill_daemon(&mut self, node: usize) {
        if self.nodes[node].on {
            self.note(|| format!("n{}: daemon is killed", node + 1));
            self.nodes[node].daemon = None;
            let (time, boots) = (self.ms(100, 8000), self.nodes[node].boots);
            self.after(time, Event::StartDaemon { node, boots });
        }
    }

    /// Whoever is paused is not started again before its time.
    fn kill_fenced(&mut self, node: usize) {
        if self.nodes[node].on {
            self.note(|| format!("n{}: fence process is killed", node + 1));
            self.nodes[node].fenced = None;
            let (time, boots) = (self.ms(50, 8000), self.nodes[node].boots);
            self.after(time, Event::StartFenced { node, boots });
        }
    }

    fn hang_guest(&mut self, node: usize) {
        if let Some((vmid, copy)) = self.nodes[node].copies.iter_mut().next() {
            copy.hung = true;
            let vmid = *vmid;
            self.note(|| format!("n{}: guest {vmid} hangs", node + 1));
        }
    }

    fn kill_guest(&mut self, node: usize) {
        if let Some((vmid, _)) = self.nodes[node].copies.pop_first() {
            self.note(|| format!("n{}: guest {vmid} dies", node + 1));
        }
    }
}
