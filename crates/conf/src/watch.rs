//! Following the tree: every committed change once and in order, or word that some were missed.

use crate::tree::ChangeKind;
use crate::txn::Revision;
use std::sync::Arc;
use tokio::sync::broadcast;

/// How many commits a subscriber may fall behind before it gets [`WatchEvent::Snapshot`].
pub const WATCH_BACKLOG: usize = 1024;

/// A committed transaction, without values: read them with [`Conf::view`](crate::Conf::view), which may then show
/// a later revision already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The tree's revision after it.
    pub revision: Revision,
    /// Who.
    pub author: String,
    /// Why.
    pub note: String,
    /// When it was proposed, in milliseconds since 1970, by the proposing node's clock.
    pub at_ms: u64,
    /// What was touched, in order of paths.
    pub changes: Vec<PathChange>,
}

/// One path's part in a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathChange {
    /// The path.
    pub path: String,
    /// What happened.
    pub kind: ChangeKind,
}

/// What a subscriber gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// The next commit.
    Commit(Arc<Committed>),
    /// Commits were missed, since the subscriber was slow or the node got the whole tree anew. The tree is at
    /// `revision` or later: read all that matters anew; commits after `revision` follow.
    Snapshot {
        /// Where the sequence goes on.
        revision: Revision,
    },
}

/// What goes through the channel.
#[derive(Debug, Clone)]
pub(crate) enum Feed {
    Commit(Arc<Committed>),
    Reset(Revision),
}

/// A subscription, from the moment it was made.
pub struct Watch {
    feed: broadcast::Receiver<Feed>,
    current: Box<dyn Fn() -> Revision + Send + Sync>,
    seen: Revision,
}

impl Watch {
    pub(crate) fn new(
        feed: broadcast::Receiver<Feed>,
        seen: Revision,
        current: Box<dyn Fn() -> Revision + Send + Sync>,
    ) -> Self {
        Self { feed, current, seen }
    }

    /// The revision up to which events were delivered, or where the subscription began.
    pub fn revision(&self) -> Revision {
        self.seen
    }

    /// The next event; `None` once the node's configuration is shut down. Cancel-safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            match self.feed.recv().await {
                Ok(Feed::Commit(commit)) if commit.revision <= self.seen => {}
                Ok(Feed::Commit(commit)) => {
                    self.seen = commit.revision;
                    return Some(WatchEvent::Commit(commit));
                }
                Ok(Feed::Reset(revision)) if revision <= self.seen => {}
                Ok(Feed::Reset(revision)) => return Some(self.restart(revision)),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    // From the channel's end on, or what is still kept in it would be overrun again.
                    self.feed = self.feed.resubscribe();
                    let revision = (self.current)();
                    return Some(self.restart(revision));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    fn restart(&mut self, revision: Revision) -> WatchEvent {
        self.seen = revision;
        WatchEvent::Snapshot { revision }
    }
}
