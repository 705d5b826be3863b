//! The configuration tree as files, at `/etc/pve` where that is free.
//!
//! ```text
//!   kernel (FUSE) ── shell: a thread that reads requests, workers, an answer within a deadline whatever happens
//!                      │
//!                    files: open files and what was written to them; no FUSE, no runtime
//!                      │  ╲
//!                      │   layout, special: what the tree looks like; pure
//!                    store: the tree, and changes of it, as `ops::files` makes them
//!
//!   keeper: a process of its own, which takes the mount away when the daemon dies or does not answer
//! ```
//!
//! **A write is one transaction, at close.** What is written to an open file is seen by all of this node who have it open, and by nobody
//! else until it is closed; then it is checked and committed as a whole, over the version that was opened, or refused as a whole. The
//! answer to `close` (and `fsync`) is the answer of the cluster. A shell that opens, duplicates and closes descriptors flushes more than
//! once: an empty file is committed only when the last descriptor is gone, so that `>` never shows an empty file to the cluster.
//!
//! **Nobody waits for long.** Each request is answered by a worker or, after its time, by the clock with `EIO`. That helps against a
//! store that hangs; against a daemon that hangs as a whole helps the keeper, whose word to the kernel ends all waiting at once.

pub mod files;
pub mod ground;
mod inodes;
pub mod keeper;
pub mod lane;
pub mod late;
pub mod layout;
pub mod mount;
pub mod shell;
pub mod special;
pub mod store;

pub use mount::{FilesArgs, Mounted, start};
