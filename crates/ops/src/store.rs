//! Typed reads of the configuration tree, and the transactions built from them.

use crate::{Ops, OpsError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stead_conf::{Check, Op, Revision, Tree, Txn, WatchEvent};
use stead_model::{ClusterRecord, GuestKind, NodeName, NodeRecord, Ownership, Vmid, paths};

/// A value with the revision that it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// For the precondition of a write that is built on it.
    pub revision: Revision,
}

/// A JSON record. A record that cannot be read is an error, never an absence.
pub fn record<T: DeserializeOwned>(tree: &Tree, path: &str) -> Result<Option<At<T>>, OpsError> {
    let Some(entry) = tree.get(path) else { return Ok(None) };
    let value = serde_json::from_slice(&entry.data)
        .map_err(|e| OpsError::failed(format!("the record '{path}' cannot be read: {e}")))?;
    Ok(Some(At { value, revision: entry.revision }))
}

/// A text file.
pub fn text(tree: &Tree, path: &str) -> Result<Option<At<String>>, OpsError> {
    let Some(entry) = tree.get(path) else { return Ok(None) };
    let value = String::from_utf8(entry.data.to_vec())
        .map_err(|_| OpsError::failed(format!("the file '{path}' is not UTF-8 text")))?;
    Ok(Some(At { value, revision: entry.revision }))
}

/// A record's bytes.
pub fn bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, OpsError> {
    serde_json::to_vec(value).map_err(|e| OpsError::failed(format!("a record cannot be written: {e}")))
}

/// A transaction under construction.
pub fn txn(author: &str, note: impl Into<String>) -> Txn {
    Txn { author: author.to_owned(), note: note.into(), checks: vec![], ops: vec![] }
}

/// Puts a file: over the revision that was read, or as a new one.
pub fn put_over(txn: &mut Txn, path: &str, old: Option<Revision>, data: impl Into<Vec<u8>>) {
    txn.checks.push(match old {
        Some(r) => Check::Revision(path.to_owned(), r),
        None => Check::Absent(path.to_owned()),
    });
    let data: Vec<u8> = data.into();
    txn.ops.push(Op::Put(path.to_owned(), data.into()));
}

/// Whether a change under `prefix` may lie behind an event of the watch.
pub fn touches(event: &WatchEvent, prefix: &str) -> bool {
    match event {
        WatchEvent::Commit(c) => c.changes.iter().any(|p| p.path.starts_with(prefix)),
        WatchEvent::Snapshot { .. } => true,
    }
}

/// A guest as recorded: who may run it and with what configuration.
#[derive(Debug, Clone)]
pub struct GuestAt {
    /// The guest.
    pub vmid: Vmid,
    /// The ownership record.
    pub own: At<Ownership>,
    /// The configuration's text.
    pub config: At<String>,
}

impl GuestAt {
    /// Where its configuration lies.
    pub fn path(&self) -> String {
        paths::guest(&self.own.value.owner, self.own.value.kind, self.vmid)
    }
}

/// Reads a guest from a tree.
pub fn guest(tree: &Tree, vmid: Vmid) -> Result<GuestAt, OpsError> {
    let missing = || OpsError::failed(format!("guest {vmid} does not exist"));
    let own: At<Ownership> = record(tree, &paths::ownership(vmid))?.ok_or_else(missing)?;
    let path = paths::guest(&own.value.owner, own.value.kind, vmid);
    let config = text(tree, &path)?.ok_or_else(|| {
        OpsError::failed(format!("the configuration '{path}' of guest {vmid} does not exist"))
    })?;
    Ok(GuestAt { vmid, own, config })
}

/// Every guest's number, kind and owner.
pub fn guests(tree: &Tree) -> Vec<(Vmid, Ownership)> {
    tree.list(paths::OWNERSHIP)
        .filter_map(|(path, entry)| {
            let vmid = path.strip_prefix(paths::OWNERSHIP)?.parse().ok()?;
            Some((vmid, serde_json::from_slice(&entry.data).ok()?))
        })
        .collect()
}

/// Every member, by name.
pub fn nodes(tree: &Tree) -> Vec<NodeRecord> {
    tree.list(paths::NODES).filter_map(|(_, e)| serde_json::from_slice(&e.data).ok()).collect()
}

impl Ops {
    /// A guest, from the local state.
    pub fn guest_at(&self, vmid: Vmid) -> Result<GuestAt, OpsError> {
        self.conf.view(|t| guest(t, vmid))
    }

    /// Who may run a guest, from the local state; none if there is no such guest. A record that can't be read is an
    /// error, never an absence: on an absence copies are destroyed.
    pub fn ownership(&self, vmid: Vmid) -> Result<Option<Ownership>, OpsError> {
        Ok(self.conf.view(|t| record(t, &paths::ownership(vmid)))?.map(|r| r.value))
    }

    /// A VM, from the local state; containers are not found.
    pub fn vm_at(&self, vmid: Vmid) -> Result<GuestAt, OpsError> {
        let g = self.guest_at(vmid)?;
        if g.own.value.kind == GuestKind::Qemu {
            Ok(g)
        } else {
            Err(OpsError::failed(format!("VM {vmid} does not exist (it is a container)")))
        }
    }

    /// A member's record.
    pub fn node_record(&self, name: &NodeName) -> Result<At<NodeRecord>, OpsError> {
        self.conf
            .view(|t| record(t, &paths::node(name)))?
            .ok_or_else(|| OpsError::failed(format!("no such cluster node '{name}'")))
    }

    /// The members that guests can run on.
    pub fn guest_nodes(&self) -> Vec<NodeRecord> {
        self.node_records().into_iter().filter(|n| !n.witness).collect()
    }

    /// All members, witnesses too.
    pub fn node_records(&self) -> Vec<NodeRecord> {
        self.conf.view(nodes)
    }

    /// The cluster's record.
    pub fn cluster_record(&self) -> Result<At<ClusterRecord>, OpsError> {
        self.conf
            .view(|t| record(t, paths::CLUSTER))?
            .ok_or_else(|| OpsError::failed("this node belongs to no cluster yet"))
    }

    /// A file's text, or empty.
    pub fn file(&self, path: &str) -> Result<(String, Option<Revision>), OpsError> {
        Ok(match self.conf.view(|t| text(t, path))? {
            Some(at) => (at.value, Some(at.revision)),
            None => (String::new(), None),
        })
    }
}
