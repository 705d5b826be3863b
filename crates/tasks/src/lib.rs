//! Tasks: what takes longer than an answer may.
//!
//! A task has a UPID, a log, steps that survive the daemon, and an end. One [`Tasks`] keeps those of one node:
//!
//! ```text
//!            start                 job returns            on_end hook done
//!   (none) ────────▶ active ────────────────────▶ ending ──────────────────▶ finished (index, bounded)
//!                      │  stop: its token is cancelled,        ▲
//!                      │  the job ends when it can             │ no resumer: "daemon restarted ..."
//!                      └─ daemon gone ─▶ left over ── adopt ───┴─▶ active again, with its steps
//! ```
//!
//! A client that sees a task ended must see its result everywhere; so the end is written to disk first, then
//! the hook (which reports this node's status to all others) is awaited, and only then is the task shown as
//! ended.
//!
//! On disk: `active/UPID` holds the steps of a task that has not ended, `index` one line a finished task,
//! `XX/UPID` its log, where `XX` are the last two hex digits of its start.

mod context;
mod filter;
mod manager;
mod store;

pub use context::{Step, TaskContext, TaskError};
pub use filter::{Filter, Outcome, Source};
pub use manager::{LogLine, LogPage, Resumer, TaskEvent, Tasks};
pub use store::TasksError;

use serde::{Deserialize, Serialize};
use stead_model::Upid;

/// What one knows of a task without its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Its id.
    pub upid: Upid,
    /// When it ended, seconds since 1970; none while it runs.
    #[serde(default)]
    pub endtime: Option<u32>,
    /// `OK`, `WARNINGS: n` or the error's text; none while it runs.
    #[serde(default)]
    pub exitstatus: Option<String>,
}

impl TaskInfo {
    /// How it ended, or that it runs.
    pub fn outcome(&self) -> Option<Outcome> {
        self.exitstatus.as_deref().map(Outcome::of)
    }
}
