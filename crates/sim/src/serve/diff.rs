//! What has changed since somebody looked last: each row has the number of the look that found it changed.

use crate::cluster::lab::{GuestRow, NodeRow, View};
use serde_json::{Value, json};

/// The rows as they were seen last.
#[derive(Debug, Default)]
pub(super) struct Rows {
    look: u64,
    nodes: Vec<(u64, NodeRow)>,
    guests: Vec<(u64, GuestRow)>,
}

fn take<R: PartialEq>(known: &mut Vec<(u64, R)>, now: Vec<R>, look: u64) {
    known.truncate(now.len());
    for (index, row) in now.into_iter().enumerate() {
        match known.get_mut(index) {
            Some((_, old)) if *old == row => {}
            Some(entry) => *entry = (look, row),
            None => known.push((look, row)),
        }
    }
}

impl Rows {
    /// Takes up what is seen now.
    pub fn take(&mut self, view: View) {
        self.look += 1;
        take(&mut self.nodes, view.nodes, self.look);
        take(&mut self.guests, view.guests, self.look);
    }

    /// The number of the last look.
    pub fn look(&self) -> u64 {
        self.look
    }

    /// How many rows there are, of nodes and guests.
    pub fn size(&self) -> (usize, usize) {
        (self.nodes.len(), self.guests.len())
    }

    /// The machines that have changed after that look: number, name, lease, leads, status, what is out.
    pub fn nodes(&self, since: u64) -> Vec<Value> {
        let row = |(i, (_, n)): (usize, &(u64, NodeRow))| {
            json!([i, n.name, n.lease, u8::from(n.leads), n.status, n.out])
        };
        self.nodes.iter().enumerate().filter(|(_, (look, _))| *look > since).map(row).collect()
    }

    /// The guests that have changed after that look: number of the row, name, node, state, what is wanted, HA's state.
    pub fn guests(&self, since: u64) -> Vec<Value> {
        let row = |(i, (_, g)): (usize, &(u64, GuestRow))| {
            json!([i, g.sid.to_string(), g.node, g.state, g.want, g.ha])
        };
        self.guests.iter().enumerate().filter(|(_, (look, _))| *look > since).map(row).collect()
    }
}
