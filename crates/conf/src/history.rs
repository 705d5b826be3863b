//! Who changed what, when and why: the change log, bounded, part of the replicated state.
//!
//! Values below `priv/` (secrets) and `stead/owner/` (who may run a guest: no rollback may bring an old owner
//! back) never enter it; neither do their paths.

use crate::raw;
use crate::tree::{ChangeKind, Changed, Entry};
use crate::txn::Revision;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use stead_model::paths;

/// How many changes are kept of one path.
pub const PER_PATH: usize = 64;
/// How many bytes the whole history may have; the oldest changes go first.
pub const MAX_BYTES: u64 = 16 << 20;

/// A past change of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The transaction.
    pub revision: Revision,
    /// Who.
    pub author: String,
    /// Why.
    pub note: String,
    /// When it was proposed, in milliseconds since 1970, by the proposing node's clock.
    pub at_ms: u64,
    /// The path.
    pub path: String,
    /// What happened.
    pub kind: ChangeKind,
    /// The value before; `None` if there was none.
    #[serde(with = "raw::option")]
    pub old: Option<Bytes>,
    /// The value after; `None` if there is none. With `old` it gives the difference.
    #[serde(with = "raw::option")]
    pub new: Option<Bytes>,
}

impl Change {
    fn bytes(&self) -> u64 {
        let values = self.old.as_ref().map_or(0, Bytes::len) + self.new.as_ref().map_or(0, Bytes::len);
        (64 + self.author.len() + self.note.len() + self.path.len() + values) as u64
    }
}

/// A moment of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Right after a transaction.
    Revision(Revision),
    /// A time in milliseconds since 1970, by the clocks of the nodes that proposed.
    Time(u64),
}

impl Moment {
    /// Whether a change had taken place by then.
    fn is_after(self, change: &Change) -> bool {
        match self {
            Self::Revision(revision) => change.revision <= revision,
            Self::Time(at_ms) => change.at_ms <= at_ms,
        }
    }
}

/// What a path held at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// Its value; `None` if there was nothing.
    pub value: Option<Bytes>,
    /// The change that made it so, if that is kept.
    pub change: Option<Change>,
}

/// Why it can't be told what a path held at a moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PastError {
    /// Secrets and ownership have no history.
    #[error("'{0}' has no history: secrets and ownership records are kept out of it")]
    Never(String),
    /// What is kept begins later.
    #[error("the history of '{path}' does not reach back so far: it begins with revision {since}")]
    Forgotten {
        /// The path.
        path: String,
        /// Of the oldest change that is kept, or of the value that is there.
        since: Revision,
    },
    /// The moment is yet to come.
    #[error("there is no revision {wanted} yet: the newest is {newest}")]
    Future {
        /// What was asked for.
        wanted: Revision,
        /// The newest.
        newest: Revision,
    },
}

/// The change log.
#[derive(Debug, Clone, Default)]
pub struct History {
    changes: BTreeMap<u64, Change>,
    next: u64,
    /// Derived: where each path's changes are, oldest first.
    paths: BTreeMap<String, VecDeque<u64>>,
    /// Derived.
    bytes: u64,
}

/// The durable form: what is not derived.
#[derive(Serialize, Deserialize)]
pub(crate) struct HistoryImage<C> {
    pub changes: C,
    pub next: u64,
}

/// Whose, why and when, of all changes of one transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub revision: Revision,
    pub author: &'a str,
    pub note: &'a str,
    pub at_ms: u64,
}

impl History {
    /// A path's changes, oldest first.
    pub fn of<'a>(&'a self, path: &str) -> impl DoubleEndedIterator<Item = &'a Change> {
        self.paths.get(path).into_iter().flatten().filter_map(|at| self.changes.get(at))
    }

    /// All changes that are kept, oldest first.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.values()
    }

    /// What a path held at a moment. `now`: what it holds, as a tree of this history has it.
    ///
    /// # Errors
    /// If what is kept does not tell.
    pub fn past(&self, path: &str, now: Option<&Entry>, moment: Moment) -> Result<Past, PastError> {
        if !is_kept(path) {
            return Err(PastError::Never(path.to_owned()));
        }
        if let Some(change) = self.of(path).rev().find(|change| moment.is_after(change)) {
            return Ok(Past { value: change.new.clone(), change: Some(change.clone()) });
        }
        let forgotten = |since| Err(PastError::Forgotten { path: path.to_owned(), since });
        let oldest = self.all().next();
        // Nothing of that time was dropped to make room.
        let is_whole = self.changes.len() as u64 == self.next || oldest.is_some_and(|c| moment.is_after(c));
        match (self.of(path).next(), now) {
            (Some(first), _) => {
                let begins = first.old.is_none() && is_whole && self.of(path).count() < PER_PATH;
                if begins { Ok(Past { value: None, change: None }) } else { forgotten(first.revision) }
            }
            (None, Some(now)) => {
                let is_older = match moment {
                    Moment::Revision(revision) => now.revision <= revision,
                    // It was written before all that is kept.
                    Moment::Time(_) => is_whole,
                };
                match is_older {
                    true => Ok(Past { value: Some(now.data.clone()), change: None }),
                    false => forgotten(now.revision),
                }
            }
            (None, None) if is_whole => Ok(Past { value: None, change: None }),
            (None, None) => forgotten(oldest.map_or(Revision(0), |c| c.revision)),
        }
    }

    pub(crate) fn record(&mut self, origin: Origin<'_>, changed: &[Changed]) {
        for changed in changed.iter().filter(|changed| is_kept(&changed.path)) {
            self.add(Change {
                revision: origin.revision,
                author: origin.author.to_owned(),
                note: origin.note.to_owned(),
                at_ms: origin.at_ms,
                path: changed.path.clone(),
                kind: changed.kind.clone(),
                old: changed.old.clone(),
                new: changed.new.clone(),
            });
        }
        while self.bytes > MAX_BYTES
            && let Some(oldest) = self.changes.keys().next().copied()
        {
            self.drop_change(oldest);
        }
    }

    fn add(&mut self, change: Change) {
        let at = self.next;
        self.next += 1;
        self.index(at, change);
    }

    fn index(&mut self, at: u64, change: Change) {
        self.bytes += change.bytes();
        let of_path = self.paths.entry(change.path.clone()).or_default();
        of_path.push_back(at);
        let oldest = if of_path.len() > PER_PATH { of_path.front().copied() } else { None };
        self.changes.insert(at, change);
        if let Some(oldest) = oldest {
            self.drop_change(oldest);
        }
    }

    /// Drops a change, which is the oldest of its path.
    fn drop_change(&mut self, at: u64) {
        let Some(change) = self.changes.remove(&at) else { return };
        self.bytes -= change.bytes();
        if let Some(of_path) = self.paths.get_mut(&change.path) {
            of_path.pop_front();
            if of_path.is_empty() {
                self.paths.remove(&change.path);
            }
        }
    }

    pub(crate) fn image(&self) -> HistoryImage<Cow<'_, BTreeMap<u64, Change>>> {
        HistoryImage { changes: Cow::Borrowed(&self.changes), next: self.next }
    }

    pub(crate) fn from_image(image: HistoryImage<BTreeMap<u64, Change>>) -> Self {
        let mut history = Self { next: image.next, ..Self::default() };
        for (at, change) in image.changes {
            history.index(at, change);
        }
        history
    }
}

/// Whether changes of a path are kept.
fn is_kept(path: &str) -> bool {
    !path.starts_with(paths::PRIVATE) && !path.starts_with(paths::OWNERSHIP)
}
