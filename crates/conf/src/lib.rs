//! The replicated configuration tree: what all nodes of a cluster agree on.
//!
//! Keys are paths, values are small text files in the layout that administrators know. Every write is a
//! transaction ([`Txn`]) that goes through Raft; every node holds the whole tree and reads it locally.
//!
//! ```text
//!            Conf (handle)                           what the rest of the node sees
//!              │  ▲
//!  shell ──────┼──┼───────────────────────────────   threads, clock, disk, channels; decides nothing
//!              ▼  │
//!            driver: requests, reads, members,       sans-IO: inputs in, commands out
//!              │     snapshots, compaction
//!              ▼
//!            engine: one narrow trait over raft-rs   the only place that knows it
//!
//!            machine: tree, history, sessions        pure: committed entries in, the same state everywhere
//!            store: log and state on disk (redb)
//! ```
//!
//! The simulator runs driver and machine as they are, over modelled disks and networks.

mod backup;
pub mod check;
mod codec;
mod conf;
pub mod driver;
mod engine;
mod error;
mod history;
mod machine;
mod raw;
mod seal;
mod shell;
mod status;
pub mod store;
pub mod succession;
mod tree;
mod txn;
mod watch;
mod wire;

pub use backup::{Backup, BackupError, BackupHead};
pub use codec::CodecError;
pub use conf::{Conf, Leadership, Options};
pub use driver::MemberChange;
pub use engine::{EngineFault, Hard};
pub use error::{ConfError, MemberError, NotLeader, SecretError, StoreError, TxnError};
pub use history::{Change, History, HistoryLimits, Moment, Past, PastError};
pub use machine::{
    Applied, CommittedEntry, Machine, MachineFault, Members, Proposal, ProposalId, SUPPORTED_LEVEL,
};
pub use seal::{ClusterKey, SealError, is_sealed};
pub use status::{PeerStatus, RaftStatus};
pub use tree::{ChangeKind, Changed, Entry, FIRST_LEVEL, StateHash, Tree};
pub use txn::{
    Check, Commit, Expected, Found, MAX_FILE, MAX_NOTE, MAX_PATH, MAX_TREE, MAX_TXN, Op, PathFault, Refusal,
    Revision, Txn, check_path,
};
pub use watch::{Committed, PathChange, WATCH_BACKLOG, Watch, WatchEvent};
pub use wire::{LogBody, LogChange, LogEntry};
