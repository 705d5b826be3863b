//! What the files stand on: the tree, what is known beside it, and changes.

use crate::special::{Facts, Member};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use stead_conf::{Revision, Tree};
use stead_model::NodeName;
use stead_ops::files::{FileChange, FileFault};
use stead_ops::{Actor, Ops, store};
use tokio::runtime::Handle;

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
    /// Commits a change, and returns once it is in the tree here.
    ///
    /// # Errors
    /// Why it was refused.
    fn change(&self, change: FileChange) -> Result<(), FileFault>;
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
}

impl OpsStore {
    /// Changes are made by tasks of `runtime`. Who reaches the files is root, or reads.
    pub fn new(ops: Arc<Ops>, runtime: Handle) -> Self {
        Self { ops, runtime, root: Actor::system() }
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

    fn change(&self, change: FileChange) -> Result<(), FileFault> {
        self.runtime.block_on(self.ops.change_file(&self.root, change)).map(drop)
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
