//! Resource mappings: made, changed, seen, and held against what a node has.
//!
//! Who may see one has any of the three privileges on it. Whether a node really has what a mapping says is asked of the node itself,
//! and again at each start of a VM that uses it.

use crate::peers::call;
use crate::{Actor, Ops, OpsError, store};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use stead_api_derive::Schema;
use stead_conf::Revision;
use stead_driver::hardware::Hardware;
use stead_model::mapping::is_mapping_id;
use stead_model::vmconfig::digest;
use stead_model::{Mapping, MappingEntry, MappingError, MappingKind, Mappings, NodeName};

/// The call by which a node is asked whether it has what the mappings say.
pub const CHECK_CALL: &str = "mapping/check";
/// How long it may take: whoever asks gives up after five seconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a directory may take to answer.
const LOOK: Duration = Duration::from_secs(2);

/// What a client says of a mapping. Nothing given: nothing changed.
#[derive(Debug, Clone, Default)]
pub struct MappingOptions {
    /// For people.
    pub description: Option<String>,
    /// What the nodes have, in place of all that there is.
    pub map: Vec<String>,
    /// See [`Mapping::mdev`].
    pub mdev: Option<bool>,
    /// See [`Mapping::live_migration`].
    pub live_migration: Option<bool>,
}

/// A mapping as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct MappingView {
    /// Its name.
    pub id: String,
    /// `pci`, `usb` or `dir`.
    #[serde(rename = "type")]
    pub kind: String,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What each node has: `id=10de:2204,node=n1,path=0000:01:00.0`.
    pub map: Vec<String>,
    /// 1: of a PCI device, what is given away are mediated devices that it makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mdev: Option<u8>,
    /// 1: a running VM can move with it.
    #[serde(rename = "live-migration-capable", skip_serializing_if = "Option::is_none")]
    pub live_migration: Option<u8>,
    /// What is wrong with it on the node that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checks: Option<Vec<Fault>>,
    /// The same of USB devices, as clients know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Vec<Fault>>,
    /// The file's version.
    pub digest: String,
}

/// What is wrong with a mapping on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Fault {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub message: String,
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// No VM can use it there, and none is meant to.
    Warning,
    /// A VM that uses it would not start there.
    Error,
}

fn refused(e: MappingError) -> OpsError {
    OpsError::invalid(e.key, e.why)
}

/// What is wrong with an entry on its node.
async fn entry_faults(kind: MappingKind, entry: &MappingEntry, hardware: &Hardware) -> Vec<String> {
    match kind {
        MappingKind::Dir => dir_faults(entry.path.clone().unwrap_or_default()).await,
        MappingKind::Usb => usb_faults(entry, hardware),
        MappingKind::Pci => {
            let paths = entry.path.as_deref().unwrap_or_default().split(';');
            paths.flat_map(|path| pci_faults(entry, path, hardware)).collect()
        }
    }
}

async fn dir_faults(path: String) -> Vec<String> {
    // It may be on a storage that does not answer.
    match tokio::time::timeout(LOOK, tokio::fs::metadata(&path)).await {
        Ok(Ok(found)) if found.is_dir() => vec![],
        Ok(Ok(_)) => vec![format!("'{path}' is no directory")],
        Ok(Err(e)) => vec![format!("the directory '{path}': {e}")],
        Err(_) => vec![format!("the directory '{path}' does not answer")],
    }
}

fn usb_faults(entry: &MappingEntry, hardware: &Hardware) -> Vec<String> {
    let id = entry.id.as_deref().unwrap_or_default();
    match &entry.path {
        None if hardware.usb.iter().any(|d| d.id() == id) => vec![],
        None => vec![format!("no USB device {id} is plugged in")],
        Some(path) => match hardware.usb_at(path) {
            None => vec![format!("no USB device is plugged in at {path}")],
            Some(found) if found.id() == id => vec![],
            Some(found) => vec![format!("the USB device at {path} is {}, not {id}", found.id())],
        },
    }
}

fn pci_faults(entry: &MappingEntry, path: &str, hardware: &Hardware) -> Vec<String> {
    let found = hardware.pci_at(path);
    let Some(first) = found.first() else { return vec![format!("there is no PCI device {path}")] };
    let mut wrong = vec![];
    if entry.id.as_ref().is_some_and(|id| *id != first.id()) {
        wrong.push(format!(
            "the PCI device {path} is {}, not {}",
            first.id(),
            entry.id.as_deref().unwrap_or_default()
        ));
    }
    if entry.subsystem_id.is_some() && entry.subsystem_id != first.subsystem_id() {
        let is = first.subsystem_id().unwrap_or_else(|| "none".to_owned());
        let wanted = entry.subsystem_id.as_deref().unwrap_or_default();
        wrong.push(format!("the subsystem of the PCI device {path} is {is}, not {wanted}"));
    }
    match (first.iommu_group, entry.iommugroup) {
        (None, _) => wrong.push(format!(
            "the PCI device {path} is in no IOMMU group: the host has no IOMMU, or its firmware or kernel has it switched off"
        )),
        (Some(is), Some(wanted)) if i64::from(is) != wanted => {
            wrong.push(format!("the PCI device {path} is in IOMMU group {is}, not {wanted}"));
        }
        _ => {}
    }
    wrong
}

async fn faults(kind: MappingKind, mapping: &Mapping, node: &NodeName, hardware: &Hardware) -> Vec<Fault> {
    let entries: Vec<&MappingEntry> = mapping.at(node).collect();
    if entries.is_empty() {
        return vec![Fault {
            severity: Severity::Warning,
            message: format!("it has nothing for node '{node}'"),
        }];
    }
    let asked = entries.into_iter().map(|entry| entry_faults(kind, entry, hardware));
    let wrong = join_all(asked).await.into_iter().flatten();
    wrong.map(|message| Fault { severity: Severity::Error, message }).collect()
}

fn shown(kind: MappingKind, id: &str, mapping: &Mapping, digest: &str) -> MappingView {
    let one = |on: bool| on.then_some(1);
    MappingView {
        id: id.to_owned(),
        kind: kind.to_string(),
        description: mapping.description.clone(),
        map: mapping.entries.iter().map(ToString::to_string).collect(),
        mdev: one(mapping.mdev),
        live_migration: one(mapping.live_migration),
        checks: None,
        error: None,
        digest: digest.to_owned(),
    }
}

fn with(kind: MappingKind, mut old: Mapping, given: MappingOptions) -> Result<Mapping, OpsError> {
    if let Some(text) = given.description {
        let text = text.trim();
        if text.chars().any(char::is_control) {
            return Err(OpsError::invalid("description", "it must be one line of text"));
        }
        old.description = (!text.is_empty()).then(|| text.to_owned());
    }
    if !given.map.is_empty() {
        let entries = given.map.iter().map(|text| MappingEntry::parse(kind, text));
        old.entries = entries.collect::<Result<_, _>>().map_err(refused)?;
    }
    old.mdev = given.mdev.unwrap_or(old.mdev);
    old.live_migration = given.live_migration.unwrap_or(old.live_migration);
    old.check(kind).map_err(refused)?;
    Ok(old)
}

fn missing(kind: MappingKind, id: &str) -> OpsError {
    OpsError::failed(format!("{kind} mapping '{id}' does not exist"))
}

impl Ops {
    /// The mappings of a kind, with the version of their file.
    pub fn mapping_file(&self, kind: MappingKind) -> Result<(Mappings, Option<Revision>), OpsError> {
        let (text, revision) = self.file(kind.file())?;
        let read = Mappings::parse(kind, &text)
            .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", kind.file())))?;
        Ok((read, revision))
    }

    /// A mapping.
    pub fn mapping(&self, kind: MappingKind, id: &str) -> Result<Mapping, OpsError> {
        self.mapping_file(kind)?.0.all.remove(id).ok_or_else(|| missing(kind, id))
    }

    /// What this node has behind a mapping, each as the host has it; an error where it has nothing, or something else.
    pub async fn mapped_here(&self, kind: MappingKind, id: &str) -> Result<Vec<MappingEntry>, OpsError> {
        let mapping = self.mapping(kind, id)?;
        let entries: Vec<MappingEntry> = mapping.at(&self.me.name).cloned().collect();
        if entries.is_empty() {
            let node = &self.me.name;
            return Err(OpsError::failed(format!("{kind} mapping '{id}' has nothing for node '{node}'")));
        }
        let hardware = self.guests.hardware().await;
        let (mut good, mut wrong) = (vec![], vec![]);
        for entry in entries {
            match entry_faults(kind, &entry, &hardware).await {
                faults if faults.is_empty() => good.push(entry),
                faults => wrong.extend(faults),
            }
        }
        if good.is_empty() {
            return Err(OpsError::failed(format!("{kind} mapping '{id}': {}", wrong.join("; "))));
        }
        Ok(good)
    }

    /// What is wrong with each mapping of a kind on this node.
    pub async fn mapping_faults(&self, kind: String) -> Result<BTreeMap<String, Vec<Fault>>, OpsError> {
        let found = MappingKind::ALL.into_iter().find(|k| k.as_str() == kind);
        let kind = found.ok_or_else(|| OpsError::failed(format!("there are no mappings of '{kind}'")))?;
        let hardware = self.guests.hardware().await;
        let all = self.mapping_file(kind)?.0.all;
        let asked =
            all.iter().map(async |(id, m)| (id.clone(), faults(kind, m, &self.me.name, &hardware).await));
        Ok(join_all(asked).await.into_iter().collect())
    }

    /// The mappings of a kind that the actor may see; held against what a node has, if one is named.
    pub async fn mappings(
        &self,
        actor: &Actor,
        kind: MappingKind,
        check: Option<&NodeName>,
    ) -> Result<Vec<MappingView>, OpsError> {
        let (file, _) = self.mapping_file(kind)?;
        let mut faults: Option<BTreeMap<String, Vec<Fault>>> = match check {
            None => None,
            Some(node) if *node == self.me.name => Some(self.mapping_faults(kind.to_string()).await?),
            Some(node) => {
                let node = self.node_record(node)?.value;
                Some(call(&*self.peers, &node, CHECK_CALL, &kind.as_str(), PATIENCE).await?)
            }
        };
        let digest = digest(&file.to_string());
        let may = |id: &String| {
            let path = kind.acl(id);
            ["Mapping.Audit", "Mapping.Use", "Mapping.Modify"].iter().any(|p| actor.may(&path, p))
        };
        let mut all = vec![];
        for (id, mapping) in file.all.iter().filter(|(id, _)| may(id)) {
            let mut view = shown(kind, id, mapping, &digest);
            let faults = faults.as_mut().map(|faults| faults.remove(id).unwrap_or_default());
            match kind {
                MappingKind::Usb => view.error = faults,
                MappingKind::Pci | MappingKind::Dir => view.checks = faults,
            }
            all.push(view);
        }
        Ok(all)
    }

    /// One mapping.
    pub fn mapping_view(&self, kind: MappingKind, id: &str) -> Result<MappingView, OpsError> {
        let (file, _) = self.mapping_file(kind)?;
        let mapping = file.all.get(id).ok_or_else(|| missing(kind, id))?;
        Ok(shown(kind, id, mapping, &digest(&file.to_string())))
    }

    /// Makes a mapping.
    pub async fn mapping_add(
        &self,
        actor: &Actor,
        kind: MappingKind,
        id: &str,
        given: MappingOptions,
    ) -> Result<(), OpsError> {
        let (mut file, revision) = self.mapping_file(kind)?;
        if !is_mapping_id(id) {
            let why = "a name begins with a letter, and has 2 to 128 letters, digits, '-' and '_'";
            return Err(OpsError::invalid("id", why));
        }
        if file.all.contains_key(id) {
            return Err(OpsError::invalid("id", format!("{kind} mapping '{id}' already exists")));
        }
        file.all.insert(id.to_owned(), with(kind, Mapping::default(), given)?);
        self.commit_mappings(actor, kind, format!("{kind} mapping '{id}' added"), &file, revision).await
    }

    /// Changes a mapping. `delete`: options to take out.
    pub async fn mapping_change(
        &self,
        actor: &Actor,
        kind: MappingKind,
        id: &str,
        given: MappingOptions,
        delete: &[String],
        seen: Option<&str>,
    ) -> Result<(), OpsError> {
        let (mut file, revision) = self.mapping_file(kind)?;
        if seen.is_some_and(|d| d != digest(&file.to_string())) {
            return Err(OpsError::failed(
                "detected modified configuration - file changed by other user? Try again.",
            ));
        }
        let mut old = file.all.get(id).cloned().ok_or_else(|| missing(kind, id))?;
        for key in delete {
            match (key.as_str(), kind) {
                ("description", _) => old.description = None,
                ("mdev", MappingKind::Pci) => old.mdev = false,
                ("live-migration-capable", MappingKind::Pci) => old.live_migration = false,
                _ => {
                    return Err(OpsError::invalid(
                        "delete",
                        format!("'{key}' can't be taken out of a mapping"),
                    ));
                }
            }
        }
        file.all.insert(id.to_owned(), with(kind, old, given)?);
        self.commit_mappings(actor, kind, format!("{kind} mapping '{id}' changed"), &file, revision).await
    }

    /// Takes a mapping out. A VM that uses it does not start any more; one that runs goes on.
    pub async fn mapping_remove(&self, actor: &Actor, kind: MappingKind, id: &str) -> Result<(), OpsError> {
        let (mut file, revision) = self.mapping_file(kind)?;
        file.all.remove(id).ok_or_else(|| missing(kind, id))?;
        self.commit_mappings(actor, kind, format!("{kind} mapping '{id}' removed"), &file, revision).await
    }

    async fn commit_mappings(
        &self,
        actor: &Actor,
        kind: MappingKind,
        note: String,
        file: &Mappings,
        revision: Option<Revision>,
    ) -> Result<(), OpsError> {
        let mut txn = store::txn(&actor.who, note);
        store::put_over(&mut txn, kind.file(), revision, file.to_string());
        self.conf.transact(txn).await?;
        Ok(())
    }
}
