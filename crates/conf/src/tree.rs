//! The tree: paths and values, and what a transaction does to them. Pure: the same transactions in the same
//! order give the same tree, revision by revision, on every node.
//!
//! Invariants, held by [`Tree::apply`]:
//! - a VMID exists at most once in the whole cluster, over `nodes/*/qemu-server/*.conf` and `nodes/*/lxc/*.conf`;
//! - a path is a file or a folder, never both (the tree is also shown as files);
//! - a value has at most [`MAX_FILE`](crate::MAX_FILE), the tree at most [`MAX_TREE`](crate::MAX_TREE) bytes;
//! - what lies below `priv/` is sealed for its path.

use crate::raw;
use crate::txn::{
    Check, Expected, Found, MAX_FILE, MAX_NOTE, MAX_TREE, MAX_TXN, Op, Refusal, Revision, Txn, check_path,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The feature level of a new cluster: what this first version of `apply` understands.
pub const FIRST_LEVEL: u32 = 1;

/// One path's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The value; cheap to clone.
    #[serde(with = "raw")]
    pub data: Bytes,
    /// The transaction that wrote it last.
    pub revision: Revision,
}

impl Entry {
    /// The value as text, if it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.data).ok()
    }
}

/// What happened to one path in a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The path.
    pub path: String,
    /// What happened.
    pub kind: ChangeKind,
    /// The value before.
    pub old: Option<Bytes>,
    /// The value after.
    pub new: Option<Bytes>,
}

/// How a path was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// Written, new or over an older value.
    Put,
    /// Removed.
    Delete,
    /// Came here by a move.
    MovedFrom(String),
    /// Left by a move.
    MovedTo(String),
}

/// A fingerprint of the tree's whole content, equal on nodes with the same tree. For comparing replicas; not
/// a defence against a forger.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateHash(pub [u8; 32]);

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The configuration of the whole cluster.
#[derive(Debug, Clone)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    level: u32,
    /// Derived: where each VMID's configuration lies.
    guests: BTreeMap<u32, String>,
    /// Derived: bytes of paths and values.
    bytes: u64,
    /// Derived: the sum of all entries' digests, so that a change costs only the changed paths.
    sum: [u64; 4],
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            revision: Revision(0),
            level: FIRST_LEVEL,
            guests: BTreeMap::new(),
            bytes: 0,
            sum: [0; 4],
        }
    }
}

/// The durable form: what is not derived.
#[derive(Serialize, Deserialize)]
pub(crate) struct TreeImage<E> {
    pub entries: E,
    pub revision: Revision,
    pub level: u32,
}

impl Tree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value at a path.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// The value at a path as text; `None` when it does not exist or is not UTF-8.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.get(path)?.text()
    }

    /// All paths that start with `prefix` (end it with a slash to list a folder), in order.
    pub fn list<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Entry)> {
        self.entries
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .take_while(move |(path, _)| path.starts_with(prefix))
            .map(|(path, entry)| (path.as_str(), entry))
    }

    /// What lies directly in a folder (`""`: the top), by name; a folder has no entry. Costs what is shown, not what lies deeper.
    pub fn children(&self, folder: &str) -> Vec<(&str, Option<&Entry>)> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut found = Vec::new();
        let mut from = std::ops::Bound::Included(prefix.clone());
        loop {
            let next = self.entries.range((from, std::ops::Bound::Unbounded)).next();
            let Some((path, entry)) = next.filter(|(path, _)| path.starts_with(&prefix)) else {
                return found;
            };
            match path[prefix.len()..].split_once('/') {
                None => {
                    found.push((&path[prefix.len()..], Some(entry)));
                    from = std::ops::Bound::Excluded(path.clone());
                }
                Some((name, _)) => {
                    found.push((name, None));
                    // '0' is what follows '/'.
                    from = std::ops::Bound::Included(format!("{prefix}{name}0"));
                }
            }
        }
    }

    /// Whether anything lies below a path.
    pub fn is_folder(&self, path: &str) -> bool {
        path.is_empty() || self.list(&format!("{path}/")).next().is_some()
    }

    /// The transaction that changed the tree last.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The committed feature level.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all paths and values.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where a guest's configuration lies.
    pub fn guest(&self, vmid: u32) -> Option<&str> {
        self.guests.get(&vmid).map(String::as_str)
    }

    /// Every guest's VMID and path, in order of VMIDs.
    pub fn guests(&self) -> impl Iterator<Item = (u32, &str)> {
        self.guests.iter().map(|(vmid, path)| (*vmid, path.as_str()))
    }

    /// The fingerprint of content, revision and level.
    pub fn hash(&self) -> StateHash {
        let mut digest = Sha256::new();
        for lane in self.sum {
            digest.update(lane.to_le_bytes());
        }
        digest.update(self.revision.0.to_le_bytes());
        digest.update(self.level.to_le_bytes());
        StateHash(digest.finalize().into())
    }

    /// Leaves out a stretch of revisions, so that whatever was committed elsewhere meanwhile has none of those that follow.
    pub(crate) fn leap(&mut self, by: u64) {
        self.revision.0 += by;
    }

    /// Applies a transaction: every change it made, in order of paths, or why it was refused, in which case
    /// nothing has changed.
    pub fn apply(&mut self, txn: &Txn) -> Result<Vec<Changed>, Refusal> {
        check_size(txn)?;
        for check in &txn.checks {
            self.check(check)?;
        }
        let mut draft = Draft { tree: self, changes: BTreeMap::new(), level: self.level };
        for op in &txn.ops {
            draft.op(op)?;
        }
        draft.verify()?;
        let Draft { changes, level, .. } = draft;
        if txn.ops.is_empty() {
            return Ok(Vec::new());
        }
        self.level = level;
        self.revision.0 += 1;
        Ok(changes.into_iter().filter_map(|(path, (kind, new))| self.put(path, kind, new)).collect())
    }

    fn check(&self, check: &Check) -> Result<(), Refusal> {
        let (path, expected) = match check {
            Check::Absent(path) => (path, Expected::Absent),
            Check::Exists(path) => (path, Expected::Exists),
            Check::Revision(path, revision) => (path, Expected::At(*revision)),
            Check::Equals(path, _) => (path, Expected::Content),
        };
        let entry = self.entries.get(path);
        let holds = match (check, entry) {
            (Check::Absent(_), entry) => entry.is_none(),
            (_, None) => false,
            (Check::Exists(_), _) => true,
            (Check::Revision(_, revision), Some(entry)) => entry.revision == *revision,
            (Check::Equals(_, data), Some(entry)) => entry.data == *data,
        };
        if holds {
            return Ok(());
        }
        let found = entry.map_or(Found::Absent, |entry| Found::At(entry.revision));
        Err(Refusal::Check { path: path.clone(), expected, found })
    }

    /// Carries one verified change out, keeping what is derived.
    fn put(&mut self, path: String, kind: ChangeKind, new: Option<Bytes>) -> Option<Changed> {
        let old = self.entries.remove(&path);
        if let Some(old) = &old {
            self.bytes -= (path.len() + old.data.len()) as u64;
            self.add(&path, old, false);
            if let Some(vmid) = guest_of(&path)
                && self.guests.get(&vmid) == Some(&path)
            {
                self.guests.remove(&vmid);
            }
        }
        if old.is_none() && new.is_none() {
            return None;
        }
        if let Some(data) = &new {
            let entry = Entry { data: data.clone(), revision: self.revision };
            self.insert(path.clone(), entry);
        }
        Some(Changed { path, kind, old: old.map(|entry| entry.data), new })
    }

    fn insert(&mut self, path: String, entry: Entry) {
        self.bytes += (path.len() + entry.data.len()) as u64;
        self.add(&path, &entry, true);
        if let Some(vmid) = guest_of(&path) {
            self.guests.insert(vmid, path.clone());
        }
        self.entries.insert(path, entry);
    }

    fn add(&mut self, path: &str, entry: &Entry, plus: bool) {
        let mut digest = Sha256::new();
        digest.update((path.len() as u64).to_le_bytes());
        digest.update(path);
        digest.update(entry.revision.0.to_le_bytes());
        digest.update(&entry.data);
        let digest: [u8; 32] = digest.finalize().into();
        for (lane, part) in self.sum.iter_mut().zip(digest.as_chunks::<8>().0) {
            let part = u64::from_le_bytes(*part);
            *lane = if plus { lane.wrapping_add(part) } else { lane.wrapping_sub(part) };
        }
    }

    pub(crate) fn image(&self) -> TreeImage<Cow<'_, BTreeMap<String, Entry>>> {
        TreeImage { entries: Cow::Borrowed(&self.entries), revision: self.revision, level: self.level }
    }

    pub(crate) fn from_image(image: TreeImage<BTreeMap<String, Entry>>) -> Self {
        let mut tree = Self { revision: image.revision, level: image.level, ..Self::default() };
        for (path, entry) in image.entries {
            tree.insert(path, entry);
        }
        tree
    }
}

/// A transaction half applied: the tree below, its changes above.
struct Draft<'a> {
    tree: &'a Tree,
    changes: BTreeMap<String, (ChangeKind, Option<Bytes>)>,
    level: u32,
}

impl Draft<'_> {
    fn get(&self, path: &str) -> Option<&Bytes> {
        match self.changes.get(path) {
            Some((_, data)) => data.as_ref(),
            None => self.tree.entries.get(path).map(|entry| &entry.data),
        }
    }

    fn take(&mut self, path: &str, kind: ChangeKind) -> Result<Bytes, Refusal> {
        let data = self.get(path).cloned().ok_or_else(|| Refusal::Missing { path: path.to_owned() })?;
        self.changes.insert(path.to_owned(), (kind, None));
        Ok(data)
    }

    fn op(&mut self, op: &Op) -> Result<(), Refusal> {
        match op {
            Op::Put(path, data) => {
                check_path(path)?;
                if data.len() > MAX_FILE {
                    return Err(Refusal::FileSize { path: path.clone(), size: data.len() as u64 });
                }
                if path.starts_with(PRIVATE) && !crate::seal::is_sealed(data) {
                    return Err(Refusal::Unsealed { path: path.clone() });
                }
                self.changes.insert(path.clone(), (ChangeKind::Put, Some(data.clone())));
            }
            Op::Delete(path) => {
                self.take(path, ChangeKind::Delete)?;
            }
            Op::Move { from, to } => {
                check_path(to)?;
                if let Some(path) = [from, to].into_iter().find(|path| path.starts_with(PRIVATE)) {
                    return Err(Refusal::Bound { path: path.clone() });
                }
                let data = self.take(from, ChangeKind::MovedTo(to.clone()))?;
                if self.get(to).is_some() {
                    return Err(Refusal::Occupied { path: to.clone() });
                }
                self.changes.insert(to.clone(), (ChangeKind::MovedFrom(from.clone()), Some(data)));
            }
            Op::Level(level) => self.level = self.level.max(*level),
        }
        Ok(())
    }

    /// What must hold once all operations are done, whatever order they had.
    fn verify(&self) -> Result<(), Refusal> {
        let mut size = self.tree.bytes;
        let mut vmids = BTreeMap::new();
        for (path, (_, new)) in &self.changes {
            if let Some(old) = self.tree.entries.get(path) {
                size -= (path.len() + old.data.len()) as u64;
            }
            let Some(new) = new else { continue };
            size += (path.len() + new.len()) as u64;
            self.verify_folders(path)?;
            let Some(vmid) = guest_of(path) else { continue };
            let before =
                self.tree.guests.get(&vmid).filter(|other| *other != path && self.get(other).is_some());
            if let Some(other) = vmids.insert(vmid, path).or(before) {
                return Err(Refusal::Duplicate { vmid, path: path.clone(), other: other.clone() });
            }
        }
        if size > MAX_TREE {
            return Err(Refusal::TreeSize { size });
        }
        Ok(())
    }

    fn verify_folders(&self, path: &str) -> Result<(), Refusal> {
        let clash = |other: &str| Err(Refusal::Folder { path: path.to_owned(), other: other.to_owned() });
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            if self.get(parent).is_some() {
                return clash(parent);
            }
        }
        let folder = format!("{path}/");
        if let Some((below, _)) = self.tree.list(&folder).find(|(below, _)| self.get(below).is_some()) {
            return clash(below);
        }
        let above = self.changes.range(folder.clone()..).take_while(|(below, _)| below.starts_with(&folder));
        for (below, (_, data)) in above {
            if data.is_some() {
                return clash(below);
            }
        }
        Ok(())
    }
}

/// Below it: secrets, sealed.
const PRIVATE: &str = stead_model::paths::PRIVATE;

fn check_size(txn: &Txn) -> Result<(), Refusal> {
    let note = txn.author.len().max(txn.note.len());
    if note > MAX_NOTE {
        return Err(Refusal::TxnSize { size: note as u64, limit: MAX_NOTE as u64 });
    }
    let size = txn.size();
    if size > MAX_TXN {
        return Err(Refusal::TxnSize { size: size as u64, limit: MAX_TXN as u64 });
    }
    Ok(())
}

/// The VMID whose configuration a path is. Deliberately not the model's parser: what counts here is part of the
/// replicated state's meaning and must not change with it. Any node name counts, and every spelling of a number.
fn guest_of(path: &str) -> Option<u32> {
    let mut parts = path.strip_prefix("nodes/")?.split('/');
    let (_node, kind, file) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !matches!(kind, "qemu-server" | "lxc") {
        return None;
    }
    let digits = file.strip_suffix(".conf")?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}
