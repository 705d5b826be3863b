//! The event stream that consoles and programs follow, with a cursor to resume.
//!
//! Every node makes the whole stream by itself, from what every node has anyway: committed changes of the
//! configuration, merged status reports, and the tasks in them. A cursor is good on the node that gave it; on another, or
//! after it has left the ring, the reader is told to start afresh.
//!
//! Log lines of tasks are the exception: they are many, and of use only while somebody looks. A node's report says
//! whether it *listens*; while some node does, the others send their lines to the leader, which hands them to those that
//! listen. Lines are numbered by their sender, so that a loss is noticed, and told to readers as a `reset`.
//!
//! ```text
//!            a reader comes            the last one goes         a while later (it may come back with its cursor)
//!  deaf ───────────────────▶ listening ────────────────▶ lingering ────────────────▶ deaf
//!   ▲ cursors of before are refused       ◀──── a reader comes ────┘
//! ```

use crate::Ops;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stead_model::{NodeName, Upid};
use tokio::sync::broadcast;

/// How many events are kept for readers that resume.
const KEPT: usize = 4096;
/// How long a node listens on after its last reader has gone.
const LINGER: Duration = Duration::from_secs(120);

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

/// A line of a task's log on its way to readers on other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Counts the lines that its node has sent: one more than the one before, unless one was lost.
    pub seq: u64,
    /// Whose log.
    pub upid: Upid,
    /// The line's number in the log.
    pub n: u64,
    /// The line.
    pub t: String,
}

/// Lines of one node's tasks, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// Whose tasks they are.
    pub node: NodeName,
    /// Which start of its daemon: milliseconds since 1970. Each counts anew.
    pub started: u64,
    /// The lines.
    pub lines: Vec<Line>,
}

#[derive(Debug)]
struct Ring {
    next: u64,
    events: VecDeque<(u64, Arc<Event>)>,
    /// Cursors of before are of a time at which lines of other nodes were not heard.
    whole_from: u64,
    readers: usize,
    /// How long it listens without a reader.
    until: Option<Instant>,
    /// The last line heard of each node: its daemon's start and the line's number.
    heard: HashMap<NodeName, (u64, u64)>,
}

impl Ring {
    fn listens(&self, now: Instant) -> bool {
        self.readers > 0 || self.until.is_some_and(|until| now < until)
    }
}

/// The bus of one node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    start: u64,
    ring: Arc<Mutex<Ring>>,
    live: broadcast::Sender<Arc<Event>>,
}

/// Somebody outside who reads; while there is one, lines of all nodes' tasks are fetched.
#[derive(Debug)]
pub struct Reader {
    /// The events after its cursor. None: too much was missed, read all objects afresh.
    pub missed: Option<Vec<Arc<Event>>>,
    /// Those that follow, without a gap.
    pub live: broadcast::Receiver<Arc<Event>>,
    /// The node was deaf before, and others do not know yet that it listens.
    pub first: bool,
    bus: Events,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut ring = self.bus.ring();
        ring.readers -= 1;
        ring.until = Some(Instant::now() + LINGER);
    }
}

impl Events {
    /// A bus; `start` names this start of the daemon (milliseconds since 1970).
    pub fn new(start: u64) -> Self {
        let ring = Ring {
            next: 1,
            events: VecDeque::new(),
            whole_from: 0,
            readers: 0,
            until: None,
            heard: HashMap::new(),
        };
        Self { start, ring: Arc::new(Mutex::new(ring)), live: broadcast::channel(KEPT).0 }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes an event.
    pub fn emit(&self, kind: &'static str, id: impl Into<String>, data: Value) {
        self.emit_in(&mut self.ring(), kind, id.into(), data);
    }

    fn emit_in(&self, ring: &mut Ring, kind: &'static str, id: String, data: Value) {
        let n = ring.next;
        ring.next += 1;
        let event = Arc::new(Event { cursor: format!("{:x}-{n:x}", self.start), kind, id, data });
        ring.events.push_back((n, event.clone()));
        if ring.events.len() > KEPT {
            ring.events.pop_front();
        }
        // Nobody listening is no error.
        let _ = self.live.send(event);
    }

    /// The events after `cursor` that are still kept, and a receiver for those that follow without a gap.
    /// `None` in the first place: the cursor is too old or from elsewhere; read all objects afresh.
    /// For the daemon's own parts: other nodes' lines are not fetched for them.
    pub fn follow(&self, cursor: Option<&str>) -> (Option<Vec<Arc<Event>>>, broadcast::Receiver<Arc<Event>>) {
        let ring = self.ring();
        (self.missed(&ring, cursor), self.live.subscribe())
    }

    /// As [`Self::follow`], for a reader outside.
    pub fn read(&self, cursor: Option<&str>, now: Instant) -> Reader {
        let mut ring = self.ring();
        let first = !ring.listens(now);
        if first {
            // A number without an event, so that every cursor of before is older than this.
            ring.whole_from = ring.next;
            ring.next += 1;
            ring.heard.clear();
        }
        ring.readers += 1;
        Reader { missed: self.missed(&ring, cursor), live: self.live.subscribe(), first, bus: self.clone() }
    }

    fn missed(&self, ring: &Ring, cursor: Option<&str>) -> Option<Vec<Arc<Event>>> {
        let Some(cursor) = cursor else { return Some(vec![]) };
        let after = cursor
            .split_once('-')
            .filter(|(start, _)| u64::from_str_radix(start, 16) == Ok(self.start))
            .and_then(|(_, n)| u64::from_str_radix(n, 16).ok());
        let oldest = ring.events.front().map_or(ring.next, |(n, _)| *n);
        let n = after.filter(|n| *n >= ring.whole_from && n + 1 >= oldest && *n < ring.next)?;
        Some(ring.events.iter().filter(|(k, _)| *k > n).map(|(_, e)| e.clone()).collect())
    }

    /// Whether lines of other nodes' tasks are of use here.
    pub fn listens(&self, now: Instant) -> bool {
        self.ring().listens(now)
    }

    /// Publishes a log line of a task of this or another node.
    pub fn line(&self, upid: &Upid, n: u64, t: &str) {
        self.emit("task-log", upid.to_string(), json!({"n": n, "t": t}));
    }

    /// Publishes lines of another node's tasks, those that are new. A gap before them is told as a `reset`.
    pub fn hear(&self, lines: &Lines, now: Instant) {
        let mut ring = self.ring();
        if !ring.listens(now) {
            return;
        }
        for line in &lines.lines {
            let last = ring.heard.get(&lines.node).filter(|(start, _)| *start == lines.started);
            match last.map(|(_, seq)| *seq) {
                // Sent again, since the sender could not know that it had arrived.
                Some(last) if line.seq <= last => continue,
                Some(last) if line.seq > last + 1 => {
                    let why = format!("log lines of node '{}' were lost", lines.node);
                    self.emit_in(&mut ring, "reset", String::new(), json!({"why": why}));
                }
                Some(_) | None => {}
            }
            ring.heard.insert(lines.node.clone(), (lines.started, line.seq));
            let data = json!({"n": line.n, "t": line.t});
            self.emit_in(&mut ring, "task-log", line.upid.to_string(), data);
        }
    }
}

impl Ops {
    /// Lets somebody outside read the events. When this ends, every node that can be reached knows that this one listens.
    pub async fn read_events(&self, cursor: Option<&str>) -> Reader {
        let reader = self.events.read(cursor, Instant::now());
        if reader.first {
            self.flush.now().await;
        }
        reader
    }

    /// The nodes other than this that listen to log lines of `node`'s tasks, by their latest reports.
    pub fn listeners(&self, node: &NodeName) -> Vec<NodeName> {
        let all = self.status.all().into_iter();
        all.filter(|r| r.listens && r.node != *node && r.node != self.me.name).map(|r| r.node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(events: &[Arc<Event>]) -> Vec<&str> {
        events.iter().map(|e| e.id.as_str()).collect()
    }

    #[test]
    fn a_cursor_resumes_without_gap_and_a_foreign_one_is_told_so() {
        let bus = Events::new(7);
        bus.emit("node", "n1", Value::Null);
        bus.emit("node", "n2", Value::Null);
        let (missed, _) = bus.follow(Some("7-1"));
        assert_eq!(ids(&missed.unwrap()), ["n2"]);
        assert!(bus.follow(Some("8-1")).0.is_none());
        assert!(bus.follow(Some("7-9")).0.is_none());
        for i in 0..KEPT {
            bus.emit("node", i.to_string(), Value::Null);
        }
        assert!(bus.follow(Some("7-1")).0.is_none());
    }

    #[test]
    fn a_reader_that_comes_back_soon_misses_nothing_and_a_late_one_is_told_so() {
        let (bus, now) = (Events::new(7), Instant::now());
        assert!(!bus.listens(now));
        let mut first = bus.read(None, now);
        assert!(first.first && bus.listens(now));
        assert!(!bus.read(None, now).first, "the others know already");
        bus.emit("node", "n1", Value::Null);
        let cursor = first.live.try_recv().unwrap().cursor.clone();
        drop(first);
        bus.emit("node", "n2", Value::Null);
        assert!(bus.listens(now));
        let back = bus.read(Some(&cursor), now);
        assert!(!back.first);
        assert_eq!(ids(back.missed.as_ref().unwrap()), ["n2"]);
        drop(back);
        let later = Instant::now() + LINGER;
        assert!(!bus.listens(later), "lines are not fetched for ever");
        let mut late = bus.read(Some(&cursor), later);
        assert!(late.first && late.missed.is_none(), "lines of other nodes may have been missed");
        bus.emit("node", "n3", Value::Null);
        bus.emit("node", "n4", Value::Null);
        let cursor = late.live.try_recv().unwrap().cursor.clone();
        let another = bus.read(Some(&cursor), later);
        assert_eq!(ids(another.missed.as_ref().unwrap()), ["n4"]);
    }

    fn lines(started: u64, seqs: &[u64]) -> Lines {
        let upid: Upid = "UPID:n2:00000001:00000001:00000001:t:1:root@pam:".parse().unwrap();
        let line = |seq: &u64| Line { seq: *seq, upid: upid.clone(), n: *seq, t: format!("line {seq}") };
        Lines { node: "n2".parse().unwrap(), started, lines: seqs.iter().map(line).collect() }
    }

    #[test]
    fn lines_are_published_once_and_a_loss_is_told() {
        let (bus, now) = (Events::new(7), Instant::now());
        bus.hear(&lines(1, &[1, 2]), now);
        let mut reader = bus.read(None, now);
        let mut heard = |what: Lines| {
            bus.hear(&what, now);
            let mut all = vec![];
            while let Ok(e) = reader.live.try_recv() {
                all.push(e.data["n"].as_u64().map_or(e.kind.to_owned(), |n| n.to_string()));
            }
            all.join(" ")
        };
        assert_eq!(heard(lines(1, &[3, 4])), "3 4", "what came before it listened is no loss");
        assert_eq!(heard(lines(1, &[4, 5])), "5", "sent again");
        assert_eq!(heard(lines(1, &[7])), "reset 7");
        assert_eq!(heard(lines(2, &[1])), "1", "a new start of its daemon counts anew");
    }
}
