//! What the files stand on: the tree, what is known beside it, and changes.

use crate::special::{Facts, Member};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use stead_conf::{Revision, Tree};
use stead_model::NodeName;
use stead_ops::files::{FileChange, FileFault, Why};
use stead_ops::{Actor, Ops, store};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

/// How long a change may take until its caller is told that it is undecided: less than the clock of [`crate::shell`] gives, so that the
/// reason is told.
const PATIENCE: Duration = Duration::from_secs(18);
/// How many changes there may be that have begun and not ended.
const AT_A_TIME: usize = 16;
/// How many lines of the cluster's log are shown.
const LOG_LINES: usize = 50;

/// The tree of a node, and the way to change it. Every call may block.
pub trait Store: Send + Sync + 'static {
    /// This node.
    fn me(&self) -> &NodeName;
    /// Reads the tree. `f` is called once.
    fn view(&self, f: &mut dyn FnMut(&Tree));
    /// Whether changes can be made now: there is a majority.
    fn is_writable(&self) -> bool;
    /// A stored value as root sees it.
    ///
    /// # Errors
    /// If a secret cannot be opened.
    fn open(&self, path: &str, stored: &Bytes) -> Result<Bytes, FileFault>;
    /// When a version of a file was written, in milliseconds since 1970, if that is known.
    fn modified_ms(&self, path: &str, revision: Revision) -> Option<u64>;
    /// Commits a change, and returns once it is in the tree here: the revision that the file has by it, if that is known.
    ///
    /// # Errors
    /// Why it was refused.
    fn change(&self, change: FileChange) -> Result<Option<Revision>, FileFault>;
    /// What is known beside the tree.
    fn facts(&self) -> Facts;
    /// The cluster's log, the latest first.
    fn log(&self) -> Value;
}

/// A node's use cases.
pub struct OpsStore {
    ops: Arc<Ops>,
    runtime: Handle,
    root: Actor,
    /// How many more changes may be made at a time.
    free: Arc<Semaphore>,
}

impl OpsStore {
    /// Changes are made by tasks of `runtime`. Who reaches the files is root, or reads.
    pub fn new(ops: Arc<Ops>, runtime: Handle) -> Self {
        Self { ops, runtime, root: Actor::system(), free: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

/// Has a change made, and waits for it, but not for ever: one that was begun goes on by itself then, since cut off in its middle it would
/// leave what it has made so far, and the log tells how it ends.
async fn within<T: Send + 'static>(
    limit: Duration,
    free: &Arc<Semaphore>,
    path: String,
    change: impl Future<Output = Result<T, FileFault>> + Send + 'static,
) -> Result<T, FileFault> {
    let Ok(permit) = free.clone().try_acquire_owned() else {
        let reason =
            "too many changes of files were begun and are not decided yet: nothing was done, try again later";
        return Err(FileFault::new(Why::Busy, &path, reason));
    };
    let (tell, told) = oneshot::channel();
    let of = path.clone();
    tokio::spawn(async move {
        let done = change.await;
        drop(permit);
        match tell.send(done) {
            Ok(()) => {}
            Err(Ok(_)) => tracing::warn!("{of}: a change that was not answered in time was made after all"),
            Err(Err(fault)) => tracing::warn!("a change that was not answered in time has failed: {fault}"),
        }
    });
    match tokio::time::timeout(limit, told).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => {
            Err(FileFault::new(Why::Unknown, &path, "it ended by a mistake in this program: see the log"))
        }
        Err(_) => {
            let reason = format!(
                "no answer within {} s: it was begun, and the log tells how it ends; read it again",
                limit.as_secs()
            );
            Err(FileFault::new(Why::Unknown, &path, reason))
        }
    }
}

impl Store for OpsStore {
    fn me(&self) -> &NodeName {
        &self.ops.me.name
    }

    fn view(&self, f: &mut dyn FnMut(&Tree)) {
        self.ops.conf.view(|tree| f(tree));
    }

    fn is_writable(&self) -> bool {
        self.ops.quorate()
    }

    fn open(&self, path: &str, stored: &Bytes) -> Result<Bytes, FileFault> {
        self.ops.read_file(path, stored)
    }

    fn modified_ms(&self, path: &str, revision: Revision) -> Option<u64> {
        let history = self.ops.conf.history(path);
        history.iter().rev().find(|c| c.revision == revision).map(|c| c.at_ms)
    }

    fn change(&self, change: FileChange) -> Result<Option<Revision>, FileFault> {
        let (ops, root, path) = (self.ops.clone(), self.root.clone(), change.path().to_owned());
        let change = async move { ops.change_file(&root, change).await };
        self.runtime.block_on(within(PATIENCE, &self.free, path, change))
    }

    fn facts(&self) -> Facts {
        let ops = &self.ops;
        let member = |node: stead_model::NodeRecord| Member {
            online: ops.online(&node),
            id: node.raft_id.0,
            ip: node.addr.ip(),
            name: node.name,
        };
        Facts {
            started: ops.me.started / 1000,
            cluster: ops.cluster_record().map(|c| c.value.name).unwrap_or_default(),
            quorate: ops.quorate(),
            members: ops.conf.view(store::nodes).into_iter().map(member).collect(),
        }
    }

    fn log(&self) -> Value {
        json!(self.ops.cluster_log(&self.root, LOG_LINES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_that_takes_long_goes_on_by_itself_and_others_are_refused_then() {
        let free = Arc::new(Semaphore::new(1));
        let (go, wait) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        let slow = async move {
            wait.await.unwrap();
            let _ = end.send(());
            Ok(1)
        };
        let late = within(Duration::from_millis(20), &free, "a".into(), slow).await.unwrap_err();
        assert!(late.why == Why::Unknown && late.reason.contains("begun"), "{late}");
        let refused = within(PATIENCE, &free, "b".into(), async { Ok(2) }).await.unwrap_err();
        assert!(refused.why == Why::Busy && refused.reason.contains("nothing was done"), "{refused}");
        go.send(()).unwrap();
        ended.await.unwrap();
        while free.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(within(PATIENCE, &free, "c".into(), async { Ok(3) }).await, Ok(3));
    }
}
