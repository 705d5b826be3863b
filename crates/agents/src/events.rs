//! Turns what happens into events for those who follow: committed changes, and log lines of tasks. Lines of this node's
//! tasks are sent on while somebody reads elsewhere; see [`stead_ops::events`].
//!
//! ```text
//! task ─▶ here: emit                     ┌─▶ emit, if somebody reads at the leader
//!    └──▶ some node listens? ─▶ leader ──┼─▶ a node that listens ─▶ emit
//!                                        └─▶ ...
//! ```

use crate::lease::leader;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stead_conf::WatchEvent;
use stead_model::{NodeName, paths};
use stead_ops::events::{Line, Lines};
use stead_ops::peers::call;
use stead_ops::{Ops, OpsError};
use stead_tasks::TaskEvent;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

/// Lines that wait for the leader; further ones are lost, which readers are told.
const WAITING: usize = 4096;
/// Lines in one call.
const BATCH: usize = 512;
/// How long one node may take to accept lines.
const LIMIT: Duration = Duration::from_millis(1500);
/// For how long lines are kept while there is no leader to send them to.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    let mut watch = ops.conf.watch();
    let mut tasks = ops.tasks.events();
    let (out, waiting) = mpsc::channel(WAITING);
    tokio::spawn(carry(ops.clone(), waiting));
    let mut seq = 0;
    loop {
        tokio::select! {
            event = watch.next() => match event {
                Some(event) => committed(&ops, &event),
                None => return,
            },
            event = tasks.recv() => match event {
                Ok(TaskEvent::Log { upid, line }) => {
                    ops.events.line(&upid, line.n, &line.t);
                    if !ops.listeners(&ops.me.name).is_empty() {
                        seq += 1;
                        // One that finds no room leaves a gap in the numbers.
                        let _ = out.try_send(Line { seq, upid, n: line.n, t: line.t });
                    }
                }
                // Starts and ends go out with the status report, to every node.
                Ok(_) => ops.flush.soon(),
                // Whoever reads elsewhere finds a gap in the numbers.
                Err(RecvError::Lagged(missed)) => seq += missed,
                Err(RecvError::Closed) => return,
            },
        }
    }
}

/// Sends lines to the leader, in order, as many at once as have come together meanwhile.
async fn carry(ops: Arc<Ops>, mut waiting: mpsc::Receiver<Line>) {
    let mut batch = vec![];
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let lines = std::mem::take(&mut batch);
        let lines = Lines { node: ops.me.name.clone(), started: ops.me.started, lines };
        if tokio::time::timeout(PATIENCE, deliver(&ops, &lines)).await.is_err() {
            tracing::debug!("{} log lines reached no leader", lines.lines.len());
        }
    }
}

/// Ends when the leader has the lines.
async fn deliver(ops: &Ops, lines: &Lines) {
    let mut status = ops.conf.status();
    loop {
        match leader(ops) {
            Some(l) if l.name == ops.me.name => return relay(ops, lines).await,
            Some(l) => match call::<_, ()>(&*ops.peers, &l, "events", lines, LIMIT).await {
                Ok(()) => return,
                Err(e) => tracing::debug!("log lines were not taken by the leader: {e}"),
            },
            None => {}
        }
        // Another leader, or the same one after a while.
        let _ = tokio::time::timeout(LIMIT, status.changed()).await;
    }
}

/// The leader's part: hands lines to the nodes that listen; ends when each has them or did not answer in time.
pub async fn relay(ops: &Ops, lines: &Lines) {
    ops.events.hear(lines, Instant::now());
    let listeners = ops.listeners(&lines.node);
    let nodes = ops.node_records().into_iter().filter(|n| listeners.contains(&n.name));
    let sends = nodes.map(|node| async move {
        if let Err(e) = call::<_, ()>(&*ops.peers, &node, "events/merge", lines, LIMIT).await {
            tracing::debug!("node '{}' did not take log lines: {e}", node.name);
        }
    });
    futures_util::future::join_all(sends).await;
}

/// Other nodes' lines come from the leader alone.
pub fn from_leader(ops: &Ops, from: &NodeName) -> Result<(), OpsError> {
    match leader(ops) {
        Some(l) if l.name == *from => Ok(()),
        _ => Err(OpsError::failed(format!("node '{from}' does not lead: it can't speak for others"))),
    }
}

fn committed(ops: &Ops, event: &WatchEvent) {
    match event {
        WatchEvent::Commit(commit) => {
            let told = commit.changes.iter().filter(|c| !c.path.starts_with(paths::PRIVATE));
            for change in told {
                let data = serde_json::json!(
                    {"revision": commit.revision.0, "author": commit.author, "note": commit.note}
                );
                ops.events.emit("object", change.path.clone(), data);
            }
        }
        WatchEvent::Snapshot { revision } => {
            ops.events.emit("reset", "", serde_json::json!({"revision": revision.0}));
        }
    }
}
