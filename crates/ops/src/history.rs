//! The configuration's past: who changed what, when and why, and what a file held at a moment.
//!
//! The history is part of the replicated state, and bounded: the newest changes of each file stay. What it can't tell it says, rather than
//! guess. Secrets and who owns guests have no history.

use crate::{Ops, OpsError};
use serde::Serialize;
use stead_api_derive::Schema;
use stead_conf::{Change, ChangeKind, Past, PastError};
pub use stead_conf::{Moment, Revision};

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum HistoryKind {
    /// It was written.
    Put,
    /// It was removed.
    Delete,
    /// It came from `other`.
    MovedHere,
    /// It went to `other`.
    MovedAway,
}

/// A change of a file of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct HistoryEntry {
    /// Which transaction.
    pub revision: u64,
    /// Seconds since 1970.
    pub time: u64,
    /// Who.
    pub author: String,
    /// The file.
    pub path: String,
    /// Why.
    pub note: String,
    /// What became of it.
    pub kind: HistoryKind,
    /// Of a move, its other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
}

impl From<&Change> for HistoryEntry {
    fn from(c: &Change) -> Self {
        let (kind, other) = match &c.kind {
            ChangeKind::Put => (HistoryKind::Put, None),
            ChangeKind::Delete => (HistoryKind::Delete, None),
            ChangeKind::MovedFrom(from) => (HistoryKind::MovedHere, Some(from.clone())),
            ChangeKind::MovedTo(to) => (HistoryKind::MovedAway, Some(to.clone())),
        };
        Self {
            revision: c.revision.0,
            time: c.at_ms / 1000,
            author: c.author.clone(),
            path: c.path.clone(),
            note: c.note.clone(),
            kind,
            other,
        }
    }
}

/// What a file held at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct FileThen {
    /// The file.
    pub path: String,
    /// Its text; missing if it was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The change that made it so; missing if that is not kept any more, or if there never was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<HistoryEntry>,
}

impl Ops {
    /// Changes of the configuration, the latest first: of all files, of one, or of all below a folder. Secrets and
    /// who owns guests have no history.
    pub fn history(&self, path: Option<&str>, limit: usize) -> Vec<HistoryEntry> {
        let Some(path) = path.map(|p| p.trim_matches('/')).filter(|p| !p.is_empty()) else {
            return self.conf.recent(limit).iter().map(HistoryEntry::from).collect();
        };
        let below = format!("{path}/");
        let all = self.conf.recent(usize::MAX);
        let of = all.iter().filter(|c| c.path == path || c.path.starts_with(&below));
        of.take(limit).map(HistoryEntry::from).collect()
    }

    /// What a file held at a moment; without one, what it holds now.
    ///
    /// # Errors
    /// If the history does not tell, or if it is no text.
    pub fn file_then(&self, path: &str, moment: Option<Moment>) -> Result<FileThen, OpsError> {
        let path = path.trim_matches('/');
        // As it is now: its revision is the newest.
        let moment = moment.unwrap_or_else(|| Moment::Revision(self.conf.view(stead_conf::Tree::revision)));
        let Past { value, change } = self.conf.past(path, moment).map_err(|e| refused(&e))?;
        if value.is_none() && change.is_none() && self.conf.view(|t| t.get(path).is_none()) {
            return Err(OpsError::invalid(
                "path",
                format!("the configuration has no file '{path}', and had none"),
            ));
        }
        let text = |value: bytes::Bytes| {
            String::from_utf8(value.into())
                .map_err(|_| OpsError::failed(format!("'{path}' was no text then")))
        };
        Ok(FileThen {
            path: path.to_owned(),
            content: value.map(text).transpose()?,
            change: change.as_ref().map(HistoryEntry::from),
        })
    }
}

fn refused(e: &PastError) -> OpsError {
    let parameter = match e {
        PastError::Never(_) => "path",
        PastError::Forgotten { .. } => "at",
        PastError::Future { .. } => "revision",
    };
    OpsError::invalid(parameter, e.to_string())
}
