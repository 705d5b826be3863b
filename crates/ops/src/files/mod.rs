//! The configuration as files: what it means to write, remove or rename one.
//!
//! Who edits a file is held to the rules of the API. A file that Stead reads is checked by the parser that reads it ([`check`]); a
//! guest's configuration is compared with what it was, and the difference is asked of the node that has the guest, as the API would
//! ([`guests`]). All other files are the administrators' own: any bytes.
//!
//! | files | written | removed, renamed away |
//! |---|---|---|
//! | what Stead reads (`storage.cfg`, `ha/rules.cfg`, ...) | if it can be read and breaks nothing in use | never: an empty one says the same |
//! | `nodes/N/qemu-server/VMID.conf` | as a change of the VM; new: as a new VM with volumes that are there | to another node's folder: the VM is handed over |
//! | `stead/...`, keys of the cluster, `ha/manager_status` | never | never |
//! | all others | yes | yes |
//!
//! Every change names the revision on which it is built: what somebody else has written meanwhile is never written over.

pub mod check;
pub mod guests;

use crate::{Actor, Ops, OpsError, ha, store};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use stead_conf::{Check, Op, Refusal, Revision, Tree, Txn, TxnError};
use stead_model::paths;

/// The name of the empty file by which the tree, which knows only files, has a folder that somebody made.
pub const MARKER: &str = ".stead-folder";

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// The content cannot be taken (`EINVAL`).
    Invalid,
    /// It may not be done this way at all (`EPERM`).
    Never,
    /// There is no majority (`EACCES`).
    NoQuorum,
    /// Not now, or somebody else has changed it meanwhile (`EBUSY`).
    Busy,
    /// It is there already (`EEXIST`).
    Exists,
    /// It is not there (`ENOENT`).
    Missing,
    /// The file is too large (`EFBIG`).
    FileSize,
    /// The tree is full (`ENOSPC`).
    TreeSize,
    /// Whether it took effect is not known, or this node failed (`EIO`).
    Unknown,
}

/// A refused change of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{path}: {}{reason}", .line.map(|n| format!("line {n}: ")).unwrap_or_default())]
pub struct FileFault {
    /// What kind of failure it is.
    pub why: Why,
    /// Which file.
    pub path: String,
    /// Which of its lines, from 1, if it is one.
    pub line: Option<usize>,
    /// Why, and what to do.
    pub reason: String,
}

impl FileFault {
    /// A fault of a file as a whole.
    pub fn new(why: Why, path: &str, reason: impl Into<String>) -> Self {
        Self { why, path: path.to_owned(), line: None, reason: reason.into() }
    }

    /// A use case's refusal, as one of a file with that text: a parameter's name leads to its line.
    #[expect(clippy::needless_pass_by_value, reason = "errors come by value")]
    pub(crate) fn of(path: &str, text: &str, e: OpsError) -> Self {
        let why = match &e {
            OpsError::Invalid { parameter, why } => {
                let line = check::line_of(text, parameter);
                let reason = format!("{parameter}: {why}");
                return Self { why: Why::Invalid, path: path.to_owned(), line, reason };
            }
            OpsError::NoQuorum(_) => Why::NoQuorum,
            OpsError::Undecided(_) => Why::Unknown,
            OpsError::Unreachable { .. } => Why::Busy,
            OpsError::Forbidden { .. } | OpsError::Failed(_) => Why::Invalid,
        };
        Self::new(why, path, e.to_string())
    }

    /// A refused transaction, as a fault of a file.
    pub fn of_txn(path: &str, e: &TxnError) -> Self {
        let why = match e {
            TxnError::NoQuorum { .. } => Why::NoQuorum,
            TxnError::Unknown { .. } | TxnError::Stopped { .. } => Why::Unknown,
            TxnError::Refused(why) => match why {
                Refusal::Check { .. } => Why::Busy,
                Refusal::Missing { .. } => Why::Missing,
                Refusal::Occupied { .. } | Refusal::Duplicate { .. } | Refusal::Folder { .. } => Why::Exists,
                Refusal::FileSize { .. } | Refusal::TxnSize { .. } => Why::FileSize,
                Refusal::TreeSize { .. } => Why::TreeSize,
                Refusal::Path { .. } => Why::Invalid,
                _ => Why::Never,
            },
        };
        Self::new(why, path, e.to_string())
    }
}

/// A change of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChange {
    /// A file gets this content.
    Put {
        /// Which.
        path: String,
        /// Over which version of it; none: it is new.
        over: Option<Revision>,
        /// All of it. Below `priv/` it is sealed before it goes anywhere.
        data: Bytes,
    },
    /// A file goes.
    Remove {
        /// Which.
        path: String,
        /// Which version of it.
        at: Revision,
    },
    /// A file gets another name, and takes the place of what has that.
    Move {
        /// Which, and which version of it.
        from: (String, Revision),
        /// Its content.
        data: Bytes,
        /// To where, and over which version of what is there.
        to: (String, Option<Revision>),
    },
    /// A new, empty folder.
    MakeFolder {
        /// Which.
        path: String,
    },
    /// A folder that is empty goes.
    RemoveFolder {
        /// Which.
        path: String,
    },
}

impl FileChange {
    /// The file or folder that is there, or not there, by it.
    pub fn path(&self) -> &str {
        match self {
            Self::Put { path, .. }
            | Self::Remove { path, .. }
            | Self::Move { to: (path, _), .. }
            | Self::MakeFolder { path }
            | Self::RemoveFolder { path } => path,
        }
    }
}

/// Folders of records that are made and taken by Stead alone, beside `stead/`.
const OWN_FOLDERS: [&str; 3] = [crate::ha::COMMANDS, crate::ha::HISTORY, crate::join::JOIN_TOKENS];

/// What is Stead's own: it is read as a file, and never written as one.
pub fn is_own(path: &str) -> bool {
    path == "stead"
        || path.starts_with("stead/")
        || OWN_FOLDERS.iter().any(|own| path == own.trim_end_matches('/') || path.starts_with(own))
        || [paths::HA_STATUS, paths::CA_CERT, paths::CA_KEY, paths::AUTH_KEY].contains(&path)
        || path.rsplit('/').next() == Some(MARKER)
}

/// Whether a file or folder is root's alone.
pub fn is_private(path: &str) -> bool {
    let below = |folder: &str| path.strip_prefix(folder).is_some_and(|r| r.is_empty() || r.starts_with('/'));
    below("priv") || below("stead")
}

/// Whether a file would be a guest's configuration by its place, however its number is written.
pub fn is_guest(path: &str) -> bool {
    let mut parts = path.split('/');
    let at = (parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
    let (Some("nodes"), Some(_), Some("qemu-server" | "lxc"), Some(file), None) = at else { return false };
    file.strip_suffix(".conf").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Refuses to make, change or remove what no file operation may.
pub fn may_touch(path: &str) -> Result<(), FileFault> {
    let never = |reason: &str| Err(FileFault::new(Why::Never, path, reason));
    if is_own(path) {
        return never("this is Stead's own, and changes by what Stead does alone");
    }
    let mut parts = path.split('/');
    if (parts.next(), parts.nth(1)) == (Some("nodes"), Some("priv")) {
        return never("secrets lie below priv/, where they are sealed");
    }
    Ok(())
}

/// Whether files may lie in a node's folder: below `nodes/` only members have one.
fn check_place(tree: &Tree, path: &str) -> Result<(), FileFault> {
    let Some(rest) = path.strip_prefix("nodes/") else { return Ok(()) };
    let node = rest.split('/').next().unwrap_or_default();
    if tree.get(&format!("{}{node}", paths::NODES)).is_some() {
        return Ok(());
    }
    Err(FileFault::new(Why::Never, path, format!("the cluster has no node '{node}'")))
}

/// Seals a value for its path.
pub type Seal<'a> = &'a dyn Fn(&str, &[u8]) -> Result<Bytes, String>;

/// The transaction of a change that concerns no guest's configuration. The content was checked before.
///
/// # Errors
/// If the change may not be made as the tree is.
pub fn plan(tree: &Tree, author: &str, change: &FileChange, seal: Seal<'_>) -> Result<Txn, FileFault> {
    let mut txn = store::txn(author, "");
    let stored = |path: &str, data: &Bytes| match path.starts_with(paths::PRIVATE) {
        true => seal(path, data).map_err(|e| FileFault::new(Why::Unknown, path, e)),
        false => Ok(data.clone()),
    };
    match change {
        FileChange::Put { path, over, data } => {
            may_touch(path)?;
            check_place(tree, path)?;
            txn.note = format!("file '{path}' written");
            txn.checks.push(expected(path, *over));
            txn.ops.push(Op::Put(path.clone(), stored(path, data)?));
        }
        FileChange::Remove { path, at } => {
            may_touch(path)?;
            must_stay(path)?;
            txn.note = format!("file '{path}' removed");
            txn.checks.push(expected(path, Some(*at)));
            txn.ops.push(Op::Delete(path.clone()));
        }
        FileChange::Move { from: (from, at), data, to: (to, over) } => {
            for path in [from, to] {
                may_touch(path)?;
                check_place(tree, path)?;
            }
            must_stay(from)?;
            txn.note = format!("file '{from}' renamed to '{to}'");
            txn.checks.extend([expected(from, Some(*at)), expected(to, *over)]);
            if over.is_none() && ![from, to].iter().any(|p| p.starts_with(paths::PRIVATE)) {
                txn.ops.push(Op::Move { from: from.clone(), to: to.clone() });
            } else {
                txn.ops.extend([Op::Put(to.clone(), stored(to, data)?), Op::Delete(from.clone())]);
            }
        }
        FileChange::MakeFolder { path } => {
            may_touch(path)?;
            if is_guest(path) || check::is_known(path) {
                return Err(FileFault::new(Why::Never, path, "this is the name of a file"));
            }
            check_place(tree, path)?;
            if path.starts_with("nodes/") && !path[6..].contains('/') {
                return Err(FileFault::new(Why::Never, path, "a node has its folder when it joins"));
            }
            let marker = format!("{path}/{MARKER}");
            txn.note = format!("folder '{path}' made");
            txn.checks.extend([Check::Absent(path.clone()), Check::Absent(marker.clone())]);
            txn.ops.push(Op::Put(marker.clone(), stored(&marker, &Bytes::new())?));
        }
        FileChange::RemoveFolder { path } => {
            may_touch(path)?;
            let marker = format!("{path}/{MARKER}");
            txn.note = format!("folder '{path}' removed");
            txn.ops.push(Op::Delete(marker));
        }
    }
    Ok(txn)
}

fn expected(path: &str, at: Option<Revision>) -> Check {
    match at {
        Some(at) => Check::Revision(path.to_owned(), at),
        None => Check::Absent(path.to_owned()),
    }
}

/// Refuses to take away what Stead reads: an editor that renames a file before it writes it anew would leave the cluster without
/// its storages, or a VM without its configuration, in between.
fn must_stay(path: &str) -> Result<(), FileFault> {
    let never = |reason: String| Err(FileFault::new(Why::Never, path, reason));
    if let Some((_, _, vmid)) = paths::as_guest(path) {
        return never(format!(
            "a guest's configuration goes with the guest: 'qm destroy {vmid}' removes it, 'qm migrate' or a rename into another node's \
             folder moves it"
        ));
    }
    if check::is_known(path) {
        return never(
            "Stead reads this file: it can be changed, or made empty, and not taken away".to_owned(),
        );
    }
    Ok(())
}

impl Ops {
    /// Changes a file as an administrator has changed it on this node. Returns the tree's revision by it, which is the file's, too; none for
    /// a guest's configuration, which its node writes in its own way.
    ///
    /// # Errors
    /// Why it was refused; nothing of it took effect then, but where that is said not to be known.
    pub async fn change_file(
        self: &Arc<Self>,
        actor: &Actor,
        change: FileChange,
    ) -> Result<Option<Revision>, FileFault> {
        self.change_file_for(actor, change, None).await
    }

    /// The same for a reason, which the history then gives.
    pub(crate) async fn change_file_for(
        self: &Arc<Self>,
        actor: &Actor,
        change: FileChange,
        reason: Option<&str>,
    ) -> Result<Option<Revision>, FileFault> {
        match &change {
            FileChange::Put { path, over, data } if is_guest(path) => {
                return self.write_guest(actor, path, *over, data, reason).await.map(|()| None);
            }
            FileChange::Move { from: (from, _), to: (to, over), .. } if is_guest(from) => {
                return self.rename_guest(actor, from, to, *over).await.map(|()| None);
            }
            FileChange::Move { from: (from, at), data, to: (to, over) } if is_guest(to) => {
                let beside = (from.as_str(), *at);
                let place = (to.as_str(), *over);
                return self.put_in_guest_s_place(actor, beside, data, place, reason).await.map(|()| None);
            }
            FileChange::Put { path, over, data } | FileChange::Move { data, to: (path, over), .. } => {
                self.check_file(path, *over, data).await?;
            }
            FileChange::Remove { .. } | FileChange::MakeFolder { .. } | FileChange::RemoveFolder { .. } => {}
        }
        self.commit_file(actor, &change, reason).await.map(Some)
    }

    /// What an editor wrote beside a guest's configuration is put in its place. The guest is changed by its node, in its own transactions,
    /// and only then the other file goes: so all that could keep that from going is looked at before.
    async fn put_in_guest_s_place(
        self: &Arc<Self>,
        actor: &Actor,
        (from, at): (&str, Revision),
        data: &Bytes,
        (to, over): (&str, Option<Revision>),
        reason: Option<&str>,
    ) -> Result<(), FileFault> {
        let remove = FileChange::Remove { path: from.to_owned(), at };
        self.conf.view(|t| {
            let is_as_read = t.get(from).is_some_and(|e| e.revision == at);
            let changed = || FileFault::new(Why::Busy, from, "it was changed by somebody else meanwhile");
            plan(t, &actor.who, &remove, &|_, data| Ok(Bytes::copy_from_slice(data)))?;
            is_as_read.then_some(()).ok_or_else(changed)
        })?;
        self.write_guest(actor, to, over, data, reason).await?;
        self.commit_file(actor, &remove, None).await.map(drop).map_err(|e| {
            let reason = format!("'{to}' was written by it, but this file is still there: {}", e.reason);
            FileFault::new(Why::Unknown, from, reason)
        })
    }

    async fn commit_file(
        &self,
        actor: &Actor,
        change: &FileChange,
        reason: Option<&str>,
    ) -> Result<Revision, FileFault> {
        let seal = |path: &str, data: &[u8]| self.conf.seal(path, data).map_err(|e| e.to_string());
        let mut txn = self.conf.view(|t| plan(t, &actor.who, change, &seal))?;
        if let Some(reason) = reason {
            reason.clone_into(&mut txn.note);
        }
        let path = change.path();
        if let FileChange::Put { data, .. } | FileChange::Move { data, .. } = change
            && path == paths::HA_RESOURCES
        {
            let gone = check::left_out(&self.file_before(path)?, &String::from_utf8_lossy(data));
            let asked = self.conf.view(|t| gone.iter().flat_map(|sid| ha::asked_of(t, *sid)).collect());
            ha::forget(&mut txn, asked);
        }
        let done = self.conf.transact(txn).await.map_err(|e| FileFault::of_txn(path, &e))?;
        if path.starts_with(paths::PRIVATE) {
            // Secrets have no history: this line is all that tells of it.
            tracing::info!("the file '{path}' was changed by {}", actor.who);
        }
        Ok(done.revision)
    }

    /// A file's content as root sees it: what is sealed is opened.
    ///
    /// # Errors
    /// If a secret cannot be opened.
    pub fn read_file(&self, path: &str, stored: &Bytes) -> Result<Bytes, FileFault> {
        if !path.starts_with(paths::PRIVATE) {
            return Ok(stored.clone());
        }
        let opened = self.conf.unseal(path, stored).map(Bytes::from);
        opened.map_err(|e| FileFault::new(Why::Unknown, path, e.to_string()))
    }

    /// The content of a file, or nothing.
    fn file_before(&self, path: &str) -> Result<String, FileFault> {
        let Some(stored) = self.conf.view(|t| t.get(path).map(|e| e.data.clone())) else {
            return Ok(String::new());
        };
        Ok(String::from_utf8_lossy(&self.read_file(path, &stored)?).into_owned())
    }
}
