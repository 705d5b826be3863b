//! The configuration's past: who changed what, when and why, and what a file held at a moment.
//!
//! The history is part of the replicated state, and bounded: the newest changes of each file stay. What it can't tell it says, rather than
//! guess. Secrets and who owns guests have no history.
//!
//! Going back is a new change, by the rules of writing the file ([`files`]): what Stead would refuse
//! to read, or what is in use, does not come back by it.

use crate::files::{self, FileChange, FileFault, Why};
use crate::{Actor, Ops, OpsError};
use serde::Serialize;
use std::sync::Arc;
use stead_api_derive::Schema;
use stead_conf::{Change, ChangeKind, Past, PastError};
pub use stead_conf::{Moment, Revision};
use stead_model::paths;

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
    /// The change that made it what it is now; missing if it is not there now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<u64>,
}

/// What of an older change's note a newer note repeats, in bytes.
const REPEATED: usize = 400;

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
            now: self.conf.view(|t| t.get(path).map(|e| e.revision.0)),
        })
    }

    /// Writes a file as it was at a moment, or removes it if it was not there, as who edits files would. `over`: only if its
    /// last change is still that one; 0: only if it is not there. What is so already stays untouched.
    ///
    /// # Errors
    /// If the history does not tell, the actor may not, it was changed meanwhile, or the file may not be written so.
    pub async fn roll_back_file(
        self: &Arc<Self>,
        actor: &Actor,
        path: &str,
        moment: Moment,
        over: Option<u64>,
    ) -> Result<(), OpsError> {
        let path = path.trim_matches('/');
        may_roll_back(actor, path)?;
        // What others have changed before this was asked for is seen.
        self.conf.barrier().await?;
        let Past { value, change } = self.conf.past(path, moment).map_err(|e| refused(&e))?;
        let now = self.conf.view(|t| t.get(path).cloned());
        let at = now.as_ref().map(|e| e.revision);
        if over.is_some_and(|over| over != at.map_or(0, |r| r.0)) {
            let is = at.map_or_else(|| "it is not there".to_owned(), |r| format!("it is at revision {r}"));
            return Err(OpsError::failed(format!(
                "'{path}' was changed by somebody else meanwhile ({is}): look at it again"
            )));
        }
        let reason = self.went_back(moment, change.as_ref());
        let change = match (value, at) {
            (Some(data), over) => {
                if now.is_some_and(|now| now.data == data) {
                    return Ok(());
                }
                FileChange::Put { path: path.to_owned(), over, data }
            }
            (None, Some(at)) => FileChange::Remove { path: path.to_owned(), at },
            (None, None) => return Ok(()),
        };
        self.change_file_for(actor, change, Some(&reason)).await.map_err(fault)
    }

    /// What the history says of a roll-back: where it was asked for, and to what it went.
    fn went_back(&self, moment: Moment, change: Option<&Change>) -> String {
        let to = match (moment, change) {
            (_, Some(change)) if change.note.is_empty() => format!("revision {}", change.revision),
            (_, Some(change)) => {
                let said = &change.note[..change.note.floor_char_boundary(REPEATED)];
                format!("revision {} ({said})", change.revision)
            }
            (Moment::Revision(revision), None) => format!("revision {revision}"),
            (Moment::Time(at_ms), None) => format!("what it was at {} s after 1970", at_ms / 1000),
        };
        format!("rolled back to {to}, on node '{}'", self.me.name)
    }
}

/// What an actor needs beside Sys.Modify on `/`: what the API asks of who changes the same. What decides who may do what,
/// and guests, whose nodes change them as root's files, are root's.
fn may_roll_back(actor: &Actor, path: &str) -> Result<(), OpsError> {
    actor.require("/", &["Sys.Modify"])?;
    let of_root = files::is_private(path)
        || files::is_guest(path)
        || [paths::USER_CFG, paths::FENCE_CFG].contains(&path);
    if of_root && !actor.root {
        return Err(OpsError::Forbidden { path: path.to_owned(), privilege: "root@pam".to_owned() });
    }
    match path.split('/').next() {
        Some(paths::STORAGE_CFG) => actor.require("/storage", &["Datastore.Allocate"]),
        Some("ha") => actor.require("/", &["Sys.Console"]),
        Some("mapping" | "virtual-guest") => actor.require("/mapping", &["Mapping.Modify"]),
        _ => Ok(()),
    }
}

/// A refused change of a file, as a refused request.
#[expect(clippy::needless_pass_by_value, reason = "errors come by value")]
fn fault(e: FileFault) -> OpsError {
    match e.why {
        Why::Invalid | Why::Never => OpsError::invalid("path", e.to_string()),
        Why::NoQuorum => OpsError::NoQuorum(e.to_string()),
        Why::Unknown => OpsError::Undecided(e.to_string()),
        _ => OpsError::failed(e.to_string()),
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
