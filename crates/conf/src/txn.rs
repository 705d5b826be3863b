//! A transaction: what must hold, and what is then changed; all of it or nothing.

use crate::raw;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The largest value of one path, in bytes.
pub const MAX_FILE: usize = 1 << 20;
/// The largest tree, in bytes of paths and values.
pub const MAX_TREE: u64 = 128 << 20;
/// The largest transaction, in bytes of all paths and values it names.
pub const MAX_TXN: usize = 8 << 20;
/// The longest path, in bytes.
pub const MAX_PATH: usize = 1024;
/// The longest author or note, in bytes; longer ones are refused.
pub const MAX_NOTE: usize = 1024;

/// The number of the transaction that wrote a path last, or that the tree has seen last. Grows by one with
/// every transaction that changes something; equal on every node for equal content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A transaction: if every check holds, all operations take effect, in their order and at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Who changes: a user id (`root@pam`), or a part of the cluster (`node/n1`). Kept in the history.
    pub author: String,
    /// What must hold for the transaction to take effect.
    pub checks: Vec<Check>,
    /// What is changed.
    pub ops: Vec<Op>,
    /// Why, for the history; a task's UPID, or empty.
    pub note: String,
}

/// A precondition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// Nothing lies at the path.
    Absent(String),
    /// Something lies at the path.
    Exists(String),
    /// The path was last written by this transaction.
    Revision(String, Revision),
    /// The path holds exactly these bytes.
    Equals(String, #[serde(with = "raw")] Bytes),
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Writes a path, which may exist.
    Put(String, #[serde(with = "raw")] Bytes),
    /// Removes a path, which must exist.
    Delete(String),
    /// Renames: `from` must exist, `to` must not. Refused for sealed values, which are bound to their path.
    Move {
        /// The present path.
        from: String,
        /// The new path.
        to: String,
    },
    /// Raises the feature level: from here on `apply` understands what came with it. Every member must support
    /// it; the leader refuses it otherwise.
    Level(u32),
}

impl Txn {
    /// An empty transaction of an author.
    pub fn new(author: impl Into<String>) -> Self {
        Self { author: author.into(), ..Self::default() }
    }

    /// With a reason for the history.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// With a precondition.
    #[must_use]
    pub fn check(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    /// Only if nothing lies at `path`.
    #[must_use]
    pub fn absent(self, path: impl Into<String>) -> Self {
        self.check(Check::Absent(path.into()))
    }

    /// Only if something lies at `path`.
    #[must_use]
    pub fn exists(self, path: impl Into<String>) -> Self {
        self.check(Check::Exists(path.into()))
    }

    /// Only if `path` was last written by transaction `revision`.
    #[must_use]
    pub fn unchanged(self, path: impl Into<String>, revision: Revision) -> Self {
        self.check(Check::Revision(path.into(), revision))
    }

    /// Only if `path` holds exactly `data`.
    #[must_use]
    pub fn equals(self, path: impl Into<String>, data: impl Into<Bytes>) -> Self {
        self.check(Check::Equals(path.into(), data.into()))
    }

    /// With an operation.
    #[must_use]
    pub fn op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Writing a path.
    #[must_use]
    pub fn put(self, path: impl Into<String>, data: impl Into<Bytes>) -> Self {
        self.op(Op::Put(path.into(), data.into()))
    }

    /// Removing a path.
    #[must_use]
    pub fn delete(self, path: impl Into<String>) -> Self {
        self.op(Op::Delete(path.into()))
    }

    /// Renaming a path.
    #[must_use]
    pub fn rename(self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.op(Op::Move { from: from.into(), to: to.into() })
    }

    /// Bytes of all that it names; at most [`MAX_TXN`].
    pub fn size(&self) -> usize {
        let checks = self.checks.iter().map(|check| match check {
            Check::Absent(path) | Check::Exists(path) | Check::Revision(path, _) => path.len() + 16,
            Check::Equals(path, data) => path.len() + data.len() + 16,
        });
        let ops = self.ops.iter().map(|op| match op {
            Op::Put(path, data) => path.len() + data.len() + 16,
            Op::Delete(path) => path.len() + 16,
            Op::Move { from, to } => from.len() + to.len() + 16,
            Op::Level(_) => 16,
        });
        self.author.len() + self.note.len() + checks.sum::<usize>() + ops.sum::<usize>()
    }
}

/// A committed transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The tree's revision after it. A transaction without operations leaves it as it was.
    pub revision: Revision,
}

/// What a failed check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// Nothing lies there.
    Absent,
    /// Something lies there, last written by this transaction.
    At(Revision),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing"),
            Self::At(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// What a failed check expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// That nothing lies there.
    Absent,
    /// That something lies there.
    Exists,
    /// That it was last written by this transaction.
    At(Revision),
    /// That it holds given bytes (not shown: they may be secret).
    Content,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing"),
            Self::Exists => f.write_str("that it exists"),
            Self::At(revision) => write!(f, "revision {revision}"),
            Self::Content => f.write_str("other content"),
        }
    }
}

/// Why a transaction was refused. It is decided by `apply` alone, so every node refuses it alike, and nothing
/// of it took effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A check did not hold: someone else has changed the path in between. Read again and decide anew.
    #[error("configuration path '{path}' has changed: expected {expected}, found {found}")]
    Check {
        /// The path.
        path: String,
        /// What the check wanted.
        expected: Expected,
        /// What is there.
        found: Found,
    },
    /// To be deleted or moved, but not there.
    #[error("configuration path '{path}' does not exist")]
    Missing {
        /// The path.
        path: String,
    },
    /// A move's target exists.
    #[error("configuration path '{path}' already exists")]
    Occupied {
        /// The path.
        path: String,
    },
    /// The VMID is in use.
    #[error("VMID {vmid} is already in use: '{path}' cannot be made while '{other}' exists")]
    Duplicate {
        /// The VMID.
        vmid: u32,
        /// What was to be made.
        path: String,
        /// What exists.
        other: String,
    },
    /// A path would be a file and a folder at once.
    #[error(
        "configuration path '{path}' cannot be made: '{other}' exists, and a path is either a file or a folder"
    )]
    Folder {
        /// What was to be made.
        path: String,
        /// What exists.
        other: String,
    },
    /// Not a path.
    #[error("'{path}' is not a valid configuration path: {why}")]
    Path {
        /// What was given, shortened.
        path: String,
        /// What is wrong with it.
        why: PathFault,
    },
    /// A value is over [`MAX_FILE`].
    #[error("the value of configuration path '{path}' has {size} bytes; the limit is {MAX_FILE}")]
    FileSize {
        /// The path.
        path: String,
        /// Its size.
        size: u64,
    },
    /// The tree would grow over [`MAX_TREE`].
    #[error("the configuration would grow to {size} bytes; the limit is {MAX_TREE}")]
    TreeSize {
        /// Its size then.
        size: u64,
    },
    /// The transaction is over [`MAX_TXN`], or its author or note over [`MAX_NOTE`].
    #[error("the transaction has {size} bytes; the limit is {limit}")]
    TxnSize {
        /// Its size.
        size: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A value below `priv/` is not sealed.
    #[error("the value of '{path}' is not sealed: what lies below priv/ must be sealed for its path")]
    Unsealed {
        /// The path.
        path: String,
    },
    /// A sealed value was to be moved.
    #[error("'{path}' cannot be moved: what lies below priv/ is sealed for its path")]
    Bound {
        /// The path.
        path: String,
    },
    /// The transaction needs a feature level that the cluster has not reached.
    #[error(
        "the change needs feature level {needs}, the cluster is at {level}: upgrade all nodes, then raise the level"
    )]
    Level {
        /// What it needs.
        needs: u32,
        /// What is committed.
        level: u32,
    },
    /// A member's version does not support the feature level that was to be committed.
    #[error(
        "feature level {level} cannot be committed: node with Raft id {member} does not support it or was not heard"
    )]
    LevelSupport {
        /// The level.
        level: u32,
        /// The member.
        member: u64,
    },
    /// The proposing node is no member of the cluster (any more).
    #[error("the node with Raft id {id} is no member of the cluster: its change was not applied")]
    NotMember {
        /// Its id.
        id: u64,
    },
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PathFault {
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It is over [`MAX_PATH`], or a component over 255 bytes.
    #[error("it is too long")]
    Long,
    /// It starts or ends with a slash or has two in a row.
    #[error("it has an empty component; paths are relative, without a slash at either end")]
    Slash,
    /// It has a component `.` or `..`.
    #[error("it has a component '.' or '..'")]
    Dots,
    /// It has a control character.
    #[error("it has a character that is not printable")]
    Control,
}

/// Whether a path may stand in the tree.
pub fn check_path(path: &str) -> Result<(), Refusal> {
    let fault = if path.is_empty() {
        PathFault::Empty
    } else if path.len() > MAX_PATH || path.split('/').any(|part| part.len() > 255) {
        PathFault::Long
    } else if path.split('/').any(str::is_empty) {
        PathFault::Slash
    } else if path.split('/').any(|part| part == "." || part == "..") {
        PathFault::Dots
    } else if path.chars().any(char::is_control) {
        PathFault::Control
    } else {
        return Ok(());
    };
    Err(Refusal::Path { path: path.chars().take(80).collect(), why: fault })
}
