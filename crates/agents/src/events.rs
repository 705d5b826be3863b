//! Turns what happens on this node into events for those who follow: committed changes, and log lines of its tasks.

use serde_json::json;
use std::sync::Arc;
use stead_conf::WatchEvent;
use stead_model::paths;
use stead_ops::Ops;
use stead_tasks::TaskEvent;
use tokio::sync::broadcast::error::RecvError;

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    let mut watch = ops.conf.watch();
    let mut tasks = ops.tasks.events();
    loop {
        tokio::select! {
            event = watch.next() => match event {
                Some(event) => committed(&ops, &event),
                None => return,
            },
            event = tasks.recv() => match event {
                Ok(TaskEvent::Log { upid, line }) => {
                    ops.events.emit("task-log", upid.to_string(), json!({"n": line.n, "t": line.t}));
                }
                // Starts and ends go out with the status report, to every node.
                Ok(_) => ops.flush.soon(),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
        }
    }
}

fn committed(ops: &Ops, event: &WatchEvent) {
    match event {
        WatchEvent::Commit(commit) => {
            let told = commit.changes.iter().filter(|c| !c.path.starts_with(paths::PRIVATE));
            for change in told {
                let data =
                    json!({"revision": commit.revision.0, "author": commit.author, "note": commit.note});
                ops.events.emit("object", change.path.clone(), data);
            }
        }
        WatchEvent::Snapshot { revision } => ops.events.emit("reset", "", json!({"revision": revision.0})),
    }
}
