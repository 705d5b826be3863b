//! The event stream that consoles and programs follow, with a cursor to resume.
//!
//! Every node makes the whole stream by itself, from what every node has anyway: committed changes of the
//! configuration, merged status reports, and the tasks in them. A cursor is good on the node that gave it; on another, or
//! after it has left the ring, the reader is told to start afresh.

use serde::Serialize;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::broadcast;

/// How many events are kept for readers that resume.
const KEPT: usize = 4096;

/// One event.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Where to resume: `start-number`.
    pub cursor: String,
    /// `object`, `task-start`, `task-end`, `task-log`, `node`, `guest`, `reset`.
    pub kind: &'static str,
    /// What it concerns, e.g. `qemu/100`, a path of the configuration, a UPID.
    pub id: String,
    /// More of it.
    pub data: Value,
}

#[derive(Debug)]
struct Ring {
    next: u64,
    events: VecDeque<(u64, Arc<Event>)>,
}

/// The bus of one node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    start: u64,
    ring: Arc<Mutex<Ring>>,
    live: broadcast::Sender<Arc<Event>>,
}

impl Events {
    /// A bus; `start` names this start of the daemon (milliseconds since 1970).
    pub fn new(start: u64) -> Self {
        let ring = Ring { next: 1, events: VecDeque::new() };
        Self { start, ring: Arc::new(Mutex::new(ring)), live: broadcast::channel(KEPT).0 }
    }

    /// Publishes an event.
    pub fn emit(&self, kind: &'static str, id: impl Into<String>, data: Value) {
        let mut ring = self.ring.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let n = ring.next;
        ring.next += 1;
        let event = Arc::new(Event { cursor: format!("{:x}-{n:x}", self.start), kind, id: id.into(), data });
        ring.events.push_back((n, event.clone()));
        if ring.events.len() > KEPT {
            ring.events.pop_front();
        }
        // Nobody listening is no error.
        let _ = self.live.send(event);
    }

    /// The events after `cursor` that are still kept, and a receiver for those that follow without a gap.
    /// `None` in the first place: the cursor is too old or from elsewhere; read all objects afresh.
    pub fn follow(&self, cursor: Option<&str>) -> (Option<Vec<Arc<Event>>>, broadcast::Receiver<Arc<Event>>) {
        let ring = self.ring.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let live = self.live.subscribe();
        let Some(cursor) = cursor else { return (Some(vec![]), live) };
        let after = cursor
            .split_once('-')
            .filter(|(start, _)| u64::from_str_radix(start, 16) == Ok(self.start))
            .and_then(|(_, n)| u64::from_str_radix(n, 16).ok());
        let oldest = ring.events.front().map_or(ring.next, |(n, _)| *n);
        let kept = after.filter(|n| n + 1 >= oldest && *n < ring.next);
        let missed =
            kept.map(|n| ring.events.iter().filter(|(k, _)| *k > n).map(|(_, e)| e.clone()).collect());
        (missed, live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_resumes_without_gap_and_a_foreign_one_is_told_so() {
        let bus = Events::new(7);
        bus.emit("node", "n1", Value::Null);
        bus.emit("node", "n2", Value::Null);
        let (missed, _) = bus.follow(Some("7-1"));
        assert_eq!(missed.unwrap().iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["n2"]);
        assert!(bus.follow(Some("8-1")).0.is_none());
        assert!(bus.follow(Some("7-9")).0.is_none());
        for i in 0..KEPT {
            bus.emit("node", i.to_string(), Value::Null);
        }
        assert!(bus.follow(Some("7-1")).0.is_none());
    }
}
