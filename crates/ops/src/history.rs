//! The configuration's past: who changed what, when and why, and what a file held at a moment.
//!
//! The history is part of the replicated state, and bounded: the newest changes of each file stay. What it can't tell it says, rather than
//! guess. Secrets and who owns guests have no history.
//!
//! Going back is a new change, by the rules of writing the file ([`files`]): what Stead would refuse
//! to read, or what is in use, does not come back by it.

use crate::files::{self, FileChange, FileFault, Why};
use crate::{Actor, Ops, OpsError, store};
use serde::Serialize;
use std::sync::Arc;
use stead_api_derive::Schema;
use stead_conf::{Change, ChangeKind, Op, Past, PastError};
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

/// How large the configuration and what is kept of its past are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct HistoryStatus {
    /// The last transaction.
    pub revision: u64,
    /// The files, Stead's own too.
    pub files: u64,
    /// Bytes of their names and contents; 128 MiB at most.
    pub bytes: u64,
    /// The changes that are kept.
    pub changes: u64,
    /// Their bytes.
    pub history_bytes: u64,
    /// How many MiB they may have; the oldest go first.
    pub max_size: u64,
    /// How many days old they may be, but for the latest 256; missing if that does not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<u64>,
    /// When the oldest that is kept was made: seconds since 1970; missing if none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest: Option<u64>,
    /// Bytes of the whole store on the asked node's disk: this, and the log.
    pub store_bytes: u64,
    /// The feature level that the cluster has reached.
    pub level: u32,
}

/// Milliseconds of a day.
const DAY: u64 = 86_400_000;

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

    /// How large the configuration and its past are, here.
    pub fn history_status(&self) -> HistoryStatus {
        let (revision, files, bytes, level, limits) = self.conf.view(|t| {
            (t.revision().0, t.len() as u64, t.bytes(), t.level(), stead_conf::HistoryLimits::of(t))
        });
        let (changes, history_bytes, oldest) = self.conf.changes(|history| {
            let oldest = history.all().next().map(|c| c.at_ms / 1000);
            (history.len() as u64, history.bytes(), oldest)
        });
        HistoryStatus {
            revision,
            files,
            bytes,
            changes,
            history_bytes,
            max_size: limits.max_bytes >> 20,
            max_age: limits.max_age_ms.map(|age| age / DAY),
            oldest,
            store_bytes: stead_conf::store::size(&self.me.dir.join("conf")),
            level,
        }
    }

    /// Says how much of the past is kept: at most so many MiB, and so many days (0: however old). What is not said stays as it is. It
    /// takes a feature level that all members must support.
    ///
    /// # Errors
    /// If a number is out of range, or a member is too old or was not heard.
    pub async fn limit_history(
        &self,
        actor: &Actor,
        max_size: Option<u64>,
        max_age: Option<u64>,
    ) -> Result<(), OpsError> {
        self.conf.barrier().await?;
        let (mut limits, level, at) = self.conf.view(|t| {
            let at = t.get(paths::HISTORY).map(|e| e.revision);
            (stead_conf::HistoryLimits::of(t), t.level(), at)
        });
        if let Some(mib) = max_size {
            limits.max_bytes = mib.saturating_mul(1 << 20);
        }
        match max_age {
            Some(0) => limits.max_age_ms = None,
            Some(days) => limits.max_age_ms = Some(days.saturating_mul(DAY)),
            None => {}
        }
        if !stead_conf::HistoryLimits::BYTES.contains(&limits.max_bytes) {
            return Err(OpsError::invalid("max-size", "from 1 to 64 MiB"));
        }
        let age = limits.max_age_ms.map_or_else(String::new, |age| format!(", {} days", age / DAY));
        let note = format!("history: {} MiB{age}", limits.max_bytes >> 20);
        let mut txn = store::txn(&actor.who, note);
        if level < stead_conf::HistoryLimits::LEVEL {
            txn.ops.push(Op::Level(stead_conf::HistoryLimits::LEVEL));
        }
        store::put_over(&mut txn, paths::HISTORY, at, limits.text());
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// The whole configuration as a file's content, secrets and the cluster's key too. With a majority it holds all that was committed
    /// anywhere before; without one, what this node has, which may not be the newest: the second half tells.
    ///
    /// # Errors
    /// If a majority does not answer in time, this node's store is an older copy of itself, or the state can't be restored or written
    /// down.
    pub async fn backup(&self, actor: &Actor) -> Result<(Vec<u8>, bool), OpsError> {
        if self.conf.status().borrow().lost {
            return Err(OpsError::failed(
                "this node's configuration is an older copy of what it has acknowledged: make the backup on another node",
            ));
        }
        let newest = self.quorate();
        if newest {
            self.conf.barrier().await?;
        }
        let backup = self.conf.backup(self.me.name.as_str(), self.me.era);
        tracing::info!("{} has the configuration backed up, with its secrets", actor.who);
        let failed = |why: &dyn std::fmt::Display| {
            OpsError::failed(format!("the configuration can't be backed up: {why}"))
        };
        let node = self.me.name.clone();
        let encoded = tokio::task::spawn_blocking(move || {
            // What could not be restored is found out while there is time.
            match crate::epochs::faults(backup.machine(), backup.key(), &node).as_slice() {
                [] => backup.encode().map_err(|e| e.to_string()),
                faults => Err(format!("{} things are wrong: {}", faults.len(), faults.join("; "))),
            }
        });
        let encoded = encoded.await.map_err(|e| failed(&e))?;
        Ok((encoded.map_err(|e| failed(&e))?, newest))
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
        self.change_file_for(actor, change, Some(&reason)).await.map(drop).map_err(fault)
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
/// guests, whose nodes change them as root's files, and what Stead does not read are root's.
fn may_roll_back(actor: &Actor, path: &str) -> Result<(), OpsError> {
    actor.require("/", &["Sys.Modify"])?;
    let of_root = files::is_private(path)
        || files::is_guest(path)
        // Who reads it, and what it does there, is not known here.
        || !files::check::is_known(path)
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
