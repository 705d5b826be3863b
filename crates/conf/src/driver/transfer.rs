//! Snapshots on their way: the whole state in pieces, a window of them ahead of what has arrived, so that a large
//! one fits a link of any delay and heartbeats pass between the pieces.

use super::Driver;
use crate::engine::Engine;
use crate::machine::{Machine, MachineFault};
use crate::wire::{Body, Chunk, Message, MessageKind, SnapshotMeta};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The largest state that is taken in: the tree, its history and room for the rest.
const MAX_IMAGE: u64 = 256 << 20;
/// How many pieces may wait for one before them.
const MAX_EARLY: usize = 32;

#[derive(Debug)]
struct Outgoing {
    leads: u64,
    index: u64,
    term: u64,
    image: Bytes,
    acked: u64,
    sent: u64,
    /// When something arrived last there, and when it was tried last.
    progress: Duration,
    tried: Duration,
}

#[derive(Debug)]
struct Incoming {
    from: u64,
    leads: u64,
    index: u64,
    term: u64,
    total: u64,
    data: BytesMut,
    /// Pieces that came before their turn.
    early: BTreeMap<u64, Bytes>,
}

impl Incoming {
    fn new(from: u64, chunk: &Chunk) -> Self {
        let Chunk { leads, index, term, total, .. } = *chunk;
        Self { from, leads, index, term, total, data: BytesMut::new(), early: BTreeMap::new() }
    }

    fn is_of(&self, from: u64, chunk: &Chunk) -> bool {
        (self.from, self.leads, self.index, self.term, self.total)
            == (from, chunk.leads, chunk.index, chunk.term, chunk.total)
    }

    fn received(&self) -> u64 {
        self.data.len() as u64
    }

    /// Takes a piece, in its turn or not.
    fn take(&mut self, offset: u64, data: Bytes) {
        if offset >= self.received() && self.early.len() < MAX_EARLY {
            self.early.insert(offset, data);
        }
        while let Some(next) = self.early.remove(&self.received()) {
            let room = usize::try_from(self.total - self.received()).unwrap_or(usize::MAX);
            if next.is_empty() || next.len() > room {
                break;
            }
            self.data.extend_from_slice(&next);
        }
    }
}

#[derive(Debug)]
struct Arrived {
    index: u64,
    term: u64,
    machine: Machine,
    image: Bytes,
}

/// All snapshots under way.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    offer: Option<(u64, Bytes)>,
    outgoing: BTreeMap<u64, Outgoing>,
    incoming: Option<Incoming>,
    arrived: Option<Arrived>,
}

impl Transfers {
    /// The state as of an index, to be sent to whoever needs it.
    pub fn offer(&mut self, index: u64, image: Bytes) {
        self.offer = Some((index, image));
    }

    /// A snapshot that came in whole and that the engine has taken.
    pub fn arrived(&mut self, index: u64, term: u64) -> Option<(Machine, Bytes)> {
        let arrived = self.arrived.take_if(|arrived| arrived.index == index && arrived.term == term)?;
        Some((arrived.machine, arrived.image))
    }

    /// Members that are gone get nothing more.
    pub fn retain(&mut self, members: &BTreeSet<u64>) {
        self.outgoing.retain(|id, _| members.contains(id));
    }
}

impl Driver {
    /// The engine wants a snapshot sent.
    pub(super) fn start_transfer(&mut self, message: &Message) {
        let Some(meta) = &message.snapshot else { return };
        let Some((index, image)) = self.transfers.offer.clone().filter(|(index, _)| *index == meta.index)
        else {
            self.engine.snapshot_sent(message.to, false);
            return;
        };
        let outgoing = Outgoing {
            leads: message.term,
            index,
            term: meta.term,
            image,
            acked: 0,
            sent: 0,
            progress: self.now,
            tried: self.now,
        };
        self.transfers.outgoing.insert(message.to, outgoing);
        self.push_chunks(message.to);
    }

    fn push_chunks(&mut self, to: u64) {
        let size = self.settings.chunk.max(1) as u64;
        let mut chunks = Vec::new();
        if let Some(out) = self.transfers.outgoing.get_mut(&to) {
            let total = out.image.len() as u64;
            while out.sent < total && out.sent < out.acked + size * self.settings.window {
                let end = (out.sent + size).min(total);
                let range = usize::try_from(out.sent).unwrap_or(usize::MAX)
                    ..usize::try_from(end).unwrap_or(usize::MAX);
                chunks.push(Chunk {
                    leads: out.leads,
                    index: out.index,
                    term: out.term,
                    total,
                    offset: out.sent,
                    data: out.image.slice(range),
                });
                out.sent = end;
            }
        }
        for chunk in chunks {
            self.send(to, Body::Chunk(chunk));
        }
    }

    pub(super) fn chunk_ack(&mut self, from: u64, index: u64, term: u64, received: u64) {
        let (now, stalled) = (self.now, self.settings.election());
        let Some(out) = self.transfers.outgoing.get_mut(&from) else { return };
        if out.index != index || out.term != term || received > out.image.len() as u64 {
            return;
        }
        if received > out.acked {
            out.acked = received;
            out.sent = out.sent.max(received);
            out.progress = now;
            out.tried = now;
        } else if received == 0 && out.acked > 0 && now >= out.progress + stalled {
            // The receiver has begun anew.
            out.acked = 0;
            out.sent = 0;
        }
        if out.acked == out.image.len() as u64 {
            self.transfers.outgoing.remove(&from);
            self.engine.snapshot_sent(from, true);
        } else {
            self.push_chunks(from);
        }
    }

    /// Sends again what does not arrive, and gives up what has not for long.
    pub(super) fn tick_transfers(&mut self) {
        let (now, again) = (self.now, self.settings.election());
        let (leads, term) = (self.engine.leads(), self.engine.term());
        let mut failed = Vec::new();
        let mut stuck = Vec::new();
        for (to, out) in &mut self.transfers.outgoing {
            if !leads || out.leads != term || now >= out.progress + again * 12 {
                failed.push(*to);
            } else if now >= out.tried + again {
                out.tried = now;
                out.sent = out.acked;
                stuck.push(*to);
            }
        }
        for to in failed {
            self.transfers.outgoing.remove(&to);
            self.engine.snapshot_sent(to, false);
        }
        for to in stuck {
            self.push_chunks(to);
        }
        if self.transfers.outgoing.is_empty() && !self.encoding {
            self.transfers.offer.take_if(|(index, _)| *index + 1 < self.engine.first());
        }
    }

    pub(super) fn chunk(&mut self, from: u64, chunk: &Chunk) {
        if chunk.leads < self.engine.term() || chunk.total > MAX_IMAGE || chunk.total == 0 {
            return;
        }
        if chunk.index <= self.applied {
            // It is here, or newer is: the answer was lost, or the sender does not know.
            let received = chunk.total;
            self.send(from, Body::ChunkAck { index: chunk.index, term: chunk.term, received });
            return;
        }
        let newer = |incoming: &Incoming| {
            !incoming.is_of(from, chunk) && (chunk.leads, chunk.index) >= (incoming.leads, incoming.index)
        };
        if self.transfers.incoming.as_ref().is_none_or(newer) {
            self.transfers.incoming = Some(Incoming::new(from, chunk));
        }
        let Some(incoming) = self.transfers.incoming.as_mut().filter(|incoming| incoming.is_of(from, chunk))
        else {
            return;
        };
        incoming.take(chunk.offset, chunk.data.clone());
        let received = incoming.received();
        self.send(from, Body::ChunkAck { index: chunk.index, term: chunk.term, received });
        if received == chunk.total {
            self.complete(from, chunk);
        }
    }

    /// A snapshot is whole: the engine decides whether it is of use.
    fn complete(&mut self, from: u64, chunk: &Chunk) {
        let Some(incoming) = self.transfers.incoming.take() else { return };
        let image = incoming.data.freeze();
        let machine = match Machine::decode(&image) {
            Ok(machine) => machine,
            Err(fault @ MachineFault::Level { .. }) => return self.halt(fault.into()),
            // Damaged on its way: the leader sends it again.
            Err(MachineFault::Entry(_)) => return,
        };
        if machine.applied() != chunk.index {
            return;
        }
        let meta = SnapshotMeta { index: chunk.index, term: chunk.term, members: machine.members().clone() };
        self.transfers.arrived = Some(Arrived { index: chunk.index, term: chunk.term, machine, image });
        self.step(Message {
            kind: MessageKind::Snapshot,
            from,
            to: self.settings.id,
            term: chunk.leads,
            log_term: 0,
            index: 0,
            entries: Vec::new(),
            commit: 0,
            commit_term: 0,
            reject: false,
            reject_hint: 0,
            request_snapshot: 0,
            context: Bytes::new(),
            snapshot: Some(meta),
        });
    }
}
