//! Real nodes, each with its own store and threads, connected by channels that a test can cut.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stead_conf::{ClusterKey, Conf, Options, RaftStatus, Txn};
use stead_model::RaftId;
use tempfile::TempDir;

pub type Links = Arc<Mutex<State>>;

#[derive(Default)]
pub struct State {
    nodes: BTreeMap<RaftId, Conf>,
    cut: BTreeSet<(RaftId, RaftId)>,
}

pub struct Cluster {
    pub links: Links,
    dirs: BTreeMap<RaftId, TempDir>,
    key: ClusterKey,
    /// Of transactions and barriers.
    pub timeout: Duration,
}

pub const WAIT: Duration = Duration::from_secs(20);

pub fn id(id: u64) -> RaftId {
    RaftId(id)
}

impl Cluster {
    pub fn new() -> Self {
        Self {
            links: Links::default(),
            dirs: BTreeMap::new(),
            key: ClusterKey::from([9; 32]),
            timeout: Duration::from_secs(5),
        }
    }

    pub fn options(&mut self, node: RaftId) -> Options {
        let dir = self.dirs.entry(node).or_insert_with(|| tempfile::tempdir().unwrap());
        let options = Options::new(dir.path().join("conf"), self.key.clone(), node);
        Options { timeout: self.timeout, ..options }
    }

    pub fn create(&mut self, node: RaftId, initial: &Txn) -> Conf {
        let conf = Conf::create(self.options(node), initial).unwrap();
        self.connect(node, conf)
    }

    pub fn join(&mut self, node: RaftId) -> Conf {
        let conf = Conf::join(self.options(node)).unwrap();
        self.connect(node, conf)
    }

    pub fn open(&mut self, node: RaftId) -> Conf {
        let conf = Conf::open(self.options(node)).unwrap();
        self.connect(node, conf)
    }

    pub fn connect(&mut self, node: RaftId, conf: Conf) -> Conf {
        self.links.lock().unwrap().nodes.insert(node, conf.clone());
        let links = Arc::clone(&self.links);
        let mut outbox = conf.outbox();
        tokio::spawn(async move {
            while let Some((to, frame)) = outbox.recv().await {
                let target = {
                    let links = links.lock().unwrap();
                    if links.cut.contains(&(node, to)) { None } else { links.nodes.get(&to).cloned() }
                };
                if let Some(target) = target {
                    deliver(&target, frame).await;
                }
            }
        });
        conf
    }

    /// Ends a node as a crash would look to the others: no word of farewell.
    pub async fn stop(&mut self, node: RaftId) {
        let conf = self.links.lock().unwrap().nodes.remove(&node).unwrap();
        conf.shutdown().await;
    }

    pub fn cut(&self, node: RaftId) {
        let mut links = self.links.lock().unwrap();
        let others: Vec<_> = links.nodes.keys().copied().collect();
        for other in others {
            links.cut.insert((node, other));
            links.cut.insert((other, node));
        }
    }

    pub fn heal(&self) {
        self.links.lock().unwrap().cut.clear();
    }

    /// Three voters, the first of them the founder.
    pub async fn three(&mut self) -> [Conf; 3] {
        let first = self.create(id(1), &Txn::new("root@pam").put("stead/cluster", "test"));
        let second = self.join(id(2));
        let third = self.join(id(3));
        for node in [id(2), id(3)] {
            grow(&first, node).await;
        }
        // A node that has not heard of the last change yet would still count by the members before it.
        for conf in [&first, &second, &third] {
            until(conf, |status| status.voters.len() == 3).await;
        }
        [first, second, third]
    }
}

async fn deliver(target: &Conf, frame: Bytes) {
    target.step(frame).await;
}

/// Adds a node as a learner and gives it a vote once it has caught up.
pub async fn grow(at: &Conf, node: RaftId) {
    at.add_learner(node).await.unwrap();
    until(at, |status| status.peers.iter().any(|peer| peer.id == node && peer.matched > 0 && peer.active))
        .await;
    at.promote(node).await.unwrap();
}

/// Waits for a status.
pub async fn until(conf: &Conf, want: impl Fn(&RaftStatus) -> bool) -> RaftStatus {
    let mut status = conf.status();
    let seen = tokio::time::timeout(WAIT, status.wait_for(|status| want(status))).await;
    match seen {
        Ok(seen) => seen.unwrap().clone(),
        Err(_) => panic!("not within {WAIT:?}: {:?}", conf.status().borrow().clone()),
    }
}
