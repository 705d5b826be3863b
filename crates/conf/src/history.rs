//! Who changed what, when and why: the change log, bounded, part of the replicated state.
//!
//! It is bounded by three things: changes of one path ([`PER_PATH`]), bytes, and age. The last two are in the tree itself
//! ([`HistoryLimits`]), and age is counted by the times that the changes carry: every node drops the same changes at
//! the same transaction. What is dropped is always the oldest of all, but for what is over [`PER_PATH`].
//!
//! Values below `priv/` (secrets) and `stead/owner/` (who may run a guest: no rollback may bring an old owner
//! back) never enter it; neither do their paths.

use crate::raw;
use crate::tree::{ChangeKind, Changed, Entry, Tree};
use crate::txn::Revision;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use stead_model::paths;

/// How many changes are kept of one path.
pub const PER_PATH: usize = 64;
/// So many of the latest changes stay however old they are: one node's clock that is years ahead does not clear the history.
pub const NEWEST: usize = 256;

/// How much of the past is kept. It is written at `stead/history` of the tree, as lines `max-bytes N` and `max-age-ms N`, and
/// counts from feature level [`HistoryLimits::LEVEL`] on; before, and where nothing or something else is written there, the defaults do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// How many bytes it may have, within [`HistoryLimits::BYTES`], 16 MiB by default; the oldest changes go first.
    pub max_bytes: u64,
    /// How old a change may be, in milliseconds, by the time of the latest transaction; the [`NEWEST`] may be older. None by default.
    pub max_age_ms: Option<u64>,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { max_bytes: 16 << 20, max_age_ms: None }
    }
}

impl HistoryLimits {
    /// From this feature level on they count.
    pub const LEVEL: u32 = 2;
    /// What may be said of bytes: the history is part of every snapshot, which has 256 MiB at most, with a tree of 128 MiB.
    pub const BYTES: RangeInclusive<u64> = 1 << 20..=64 << 20;

    /// As they are written. What is not understood says nothing: the meaning must be the same on every node.
    pub fn parse(text: &str) -> Option<Self> {
        let mut limits = Self::default();
        for line in text.lines() {
            let (key, value) = line.split_once(' ')?;
            let value: u64 = value.parse().ok()?;
            match key {
                "max-bytes" => limits.max_bytes = value.clamp(*Self::BYTES.start(), *Self::BYTES.end()),
                "max-age-ms" => limits.max_age_ms = Some(value),
                _ => return None,
            }
        }
        Some(limits)
    }

    /// As [`Self::parse`] reads them.
    pub fn text(self) -> String {
        let age = self.max_age_ms.map(|age| format!("max-age-ms {age}\n")).unwrap_or_default();
        format!("max-bytes {}\n{age}", self.max_bytes)
    }

    /// Those that a tree says.
    pub fn of(tree: &Tree) -> Self {
        let said = || Self::parse(tree.text(paths::HISTORY)?);
        if tree.level() >= Self::LEVEL { said().unwrap_or_default() } else { Self::default() }
    }
}

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

    /// Bytes of what is kept.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many changes are kept.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
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

    pub(crate) fn record(&mut self, origin: Origin<'_>, changed: &[Changed], limits: HistoryLimits) {
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
        self.trim(origin.at_ms, limits);
    }

    /// Drops what is too much or too old. From the front alone, so that what is kept is all that there was since a moment: a change that
    /// carries a time to come keeps those behind it until there are too many bytes.
    fn trim(&mut self, now_ms: u64, limits: HistoryLimits) {
        let too_old = limits.max_age_ms.map_or(0, |age| now_ms.saturating_sub(age));
        while let Some((&at, oldest)) = self.changes.first_key_value() {
            // The latest tells who has said so.
            if self.changes.len() == 1 {
                return;
            }
            let is_old = self.changes.len() > NEWEST && oldest.at_ms < too_old;
            if !is_old && self.bytes <= limits.max_bytes {
                return;
            }
            self.drop_change(at);
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
