//! Which tasks a list shows.

use crate::TaskInfo;

/// Where to look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Source {
    /// Finished ones.
    #[default]
    Archive,
    /// Running ones.
    Active,
    /// Both.
    All,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// `OK`.
    Ok,
    /// `WARNINGS: n`.
    Warning,
    /// An error's text.
    Error,
    /// Its end is not known.
    Unknown,
}

impl Outcome {
    /// Reads an exit status.
    pub fn of(exitstatus: &str) -> Self {
        match exitstatus {
            "OK" => Self::Ok,
            "" | "unknown" => Self::Unknown,
            s if s.starts_with("WARNINGS: ") => Self::Warning,
            _ => Self::Error,
        }
    }

    /// Reads `ok`, `warning`, `error` or `unknown`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "ok" => Self::Ok,
            "warning" => Self::Warning,
            "error" => Self::Error,
            "unknown" => Self::Unknown,
            _ => return None,
        })
    }
}

/// A selection of tasks, newest first.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// How many of the selection to leave out at its beginning.
    pub start: usize,
    /// How many to give at most; zero gives all.
    pub limit: usize,
    /// A part of the user's name.
    pub user: Option<String>,
    /// The worker type.
    pub worker: Option<String>,
    /// The guest worked on.
    pub vmid: Option<u32>,
    /// Only those that failed.
    pub errors: bool,
    /// Where to look.
    pub source: Source,
    /// Started at or after, seconds since 1970.
    pub since: Option<u32>,
    /// Started at or before, seconds since 1970.
    pub until: Option<u32>,
    /// Only those that ended so; empty: all.
    pub outcomes: Vec<Outcome>,
}

impl Filter {
    /// Whether a task belongs to the selection, apart from `source`.
    pub fn matches(&self, task: &TaskInfo) -> bool {
        let u = &task.upid;
        let outcome = task.outcome();
        self.user.as_ref().is_none_or(|part| u.user.contains(part.as_str()))
            && self.worker.as_ref().is_none_or(|w| *w == u.worker)
            && self.vmid.is_none_or(|id| u.id == id.to_string())
            && self.since.is_none_or(|t| u.starttime >= t)
            && self.until.is_none_or(|t| u.starttime <= t)
            && (!self.errors || matches!(outcome, Some(Outcome::Error | Outcome::Unknown)))
            && (self.outcomes.is_empty() || outcome.is_some_and(|o| self.outcomes.contains(&o)))
    }
}
