//! A guest's configuration, written or renamed as a file.
//!
//! A text is compared with what the configuration was, and the difference asked for as the API asks for it, under the guest's mutex,
//! by the node that has the guest: what a running VM cannot take at once waits as pending, a new disk is made, a device that is left out
//! becomes unused. What Stead owns - lock, snapshots, what is pending, what the cloud-init drive holds - is as it was, or the text is
//! refused. The ownership record is never a file.
//!
//! A rename into another node's folder hands the guest over, one transaction with its ownership record under the next epoch:
//!
//! | the guest's node | the guest | |
//! |---|---|---|
//! | takes part | stopped, its disks on shared storages | handed over by its node, as an offline migration |
//! | takes part | runs, is locked, under HA, or has disks that its node alone has | refused |
//! | lost | recorded as stopped, or its node known to be off | handed over, over the record of the loss |
//! | lost | may run there, or HA recovers it | refused |
//!
//! A node that is lost and on may run a guest which nothing guards: only fence devices or an operator's word say that it is off.

use super::{FileFault, Why, check};
use crate::guest::Asked;
use crate::guest::config::{ConfigChange, Made, parse};
use crate::guest::import::imports;
use crate::guest::migrate::MigrateOptions;
use crate::peers::{PeerError, call};
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use stead_conf::Revision;
use stead_model::text::FormatError;
use stead_model::vmconfig::{Change, VmConfig};
use stead_model::{GuestKind, NodeName, Vmid, paths};
use stead_tasks::Outcome;

/// The call by which a node is asked to change a guest of its own as a file was changed elsewhere.
pub const FILE_CALL: &str = "guest/file";
/// How long another node may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a hand-over may take before its outcome is said not to be known.
const HAND_OVER: Duration = Duration::from_secs(10);

/// A change of a guest's file, for the node that has the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum GuestFile {
    /// Its configuration is to be this text, over that version.
    Write {
        /// The guest.
        vmid: Vmid,
        /// The version that was opened.
        over: Revision,
        /// All of it.
        text: String,
        /// Why, for the history.
        #[serde(default)]
        reason: Option<String>,
    },
    /// There is to be a VM with this configuration.
    Create {
        /// Its number.
        vmid: Vmid,
        /// All of it.
        text: String,
        /// Why, for the history.
        #[serde(default)]
        reason: Option<String>,
    },
    /// It is to belong to another node.
    HandOver {
        /// The guest.
        vmid: Vmid,
        /// Whose it is to be.
        to: NodeName,
    },
}

/// What a text changes: only what an administrator may say in a file.
///
/// # Errors
/// The line that cannot be read, or what of Stead's own differs.
pub fn difference(path: &str, old: &VmConfig, text: &str) -> Result<ConfigChange, FileFault> {
    let new = VmConfig::parse(text).map_err(|e: FormatError| FileFault {
        why: Why::Invalid,
        path: path.to_owned(),
        line: Some(e.line),
        reason: e.reason,
    })?;
    let never = |key: &str, reason: &str| {
        let line = check::line_of(text, key);
        Err(FileFault { why: Why::Never, path: path.to_owned(), line, reason: format!("{key}: {reason}") })
    };
    if old.current.lock() != new.current.lock() {
        return never("lock", "a task's mark, which is not set or taken out in the file: see 'qm unlock'");
    }
    if old.snapshots != new.snapshots {
        return never("snapshots", "their sections are changed by 'qm snapshot' and 'qm delsnapshot' alone");
    }
    if old.special != new.special {
        return never("special", "what the cloud-init drive holds is written when the drive is");
    }
    let same = |key: &str, value: &str| old.pending.set.get(key) == Some(value);
    if let Some((key, _)) = new.pending.set.iter().find(|(k, v)| !same(k, v)) {
        return never(key, "write it above [PENDING]: what the VM cannot take at once gets there by itself");
    }
    if let Some(key) =
        new.pending.delete.keys().find(|k| old.pending.delete.get(*k) != new.pending.delete.get(*k))
    {
        return never(key, "leave the option out above [PENDING] instead of listing it there");
    }
    let mut change = ConfigChange::default();
    let waits = old.pending.set.iter().map(|(k, _)| k).chain(old.pending.delete.keys().map(String::as_str));
    let stays = |key: &str| new.pending.set.get(key).is_some() || new.pending.delete.contains_key(key);
    change.revert = waits.filter(|key| !stays(key)).map(str::to_owned).collect();
    for (key, _) in old.current.iter().filter(|(key, _)| new.current.get(key).is_none()) {
        if key.starts_with("unused") {
            return never(key, "left out it would free the volume: 'qm set --delete' does that");
        }
        change.delete.push(key.to_owned());
    }
    let set = new.current.iter().filter(|(key, value)| old.current.get(key) != Some(*value));
    change.set = set.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Ok(change)
}

fn nothing(change: &ConfigChange) -> bool {
    change.set.is_empty() && change.delete.is_empty() && change.revert.is_empty()
}

/// The options of a new VM's text, each as the API would set it; `meta`, which is the system's own, comes along as it is.
fn options_of(path: &str, text: &str) -> Result<(Vec<Change>, Option<String>), FileFault> {
    if text.trim().is_empty() {
        return Err(FileFault::new(Why::Invalid, path, "an empty file makes no VM"));
    }
    let change = difference(path, &VmConfig::default(), text)?;
    let mut meta = None;
    let mut changes = vec![];
    for (key, value) in &change.set {
        if key == "meta" {
            meta = Some(value.clone());
            continue;
        }
        changes.push(Change::set(key, value).map_err(|e| FileFault::of(path, text, e.into()))?);
    }
    Ok((changes, meta))
}

impl Ops {
    /// The guest whose configuration a path is, spelled as Stead spells it, of a kind that it knows.
    fn guest_path(path: &str) -> Result<(NodeName, Vmid), FileFault> {
        match paths::as_guest(path) {
            Some((node, GuestKind::Qemu, vmid)) if paths::guest(&node, GuestKind::Qemu, vmid) == path => {
                Ok((node, vmid))
            }
            Some((_, GuestKind::Lxc, _)) => {
                Err(FileFault::new(Why::Never, path, "containers are not supported yet"))
            }
            _ => Err(FileFault::new(Why::Invalid, path, "this is no VM's number, or not as it is written")),
        }
    }

    pub(super) async fn write_guest(
        self: &Arc<Self>,
        actor: &Actor,
        path: &str,
        over: Option<Revision>,
        data: &[u8],
        reason: Option<&str>,
    ) -> Result<(), FileFault> {
        let (node, vmid) = Self::guest_path(path)?;
        let reason = reason.map(str::to_owned);
        let utf8 = || FileFault::new(Why::Invalid, path, "it is not UTF-8 text");
        let text = std::str::from_utf8(data).map_err(|_| utf8())?.to_owned();
        let what = match over {
            Some(over) => GuestFile::Write { vmid, over, text, reason },
            None => GuestFile::Create { vmid, text, reason },
        };
        self.at_node(actor, path, &node, what).await
    }

    pub(super) async fn rename_guest(
        self: &Arc<Self>,
        actor: &Actor,
        from: &str,
        to: &str,
        over: Option<Revision>,
    ) -> Result<(), FileFault> {
        let (node, vmid) = Self::guest_path(from)?;
        let never = |reason: &str| Err(FileFault::new(Why::Never, from, reason));
        if !super::is_guest(to) {
            return never(
                "a VM's configuration can be renamed into another node's folder alone; copy it to keep its text",
            );
        }
        let (target, renamed) = Self::guest_path(to)?;
        if renamed != vmid {
            return never("a guest keeps its number: clone it to have it under another");
        }
        if over.is_some() {
            return Err(FileFault::new(Why::Exists, to, "this guest is there"));
        }
        let fault = |e: OpsError| FileFault::of(from, "", e);
        self.conf.barrier().await.map_err(|e| fault(e.into()))?;
        let record = self.node_record(&node).map_err(fault)?;
        if !record.value.state.is_lost() {
            return self.at_node(actor, from, &node, GuestFile::HandOver { vmid, to: target }).await;
        }
        self.migration_target(&target).map_err(|e| FileFault::new(Why::Never, from, e.to_string()))?;
        let guest = self.vm_at(vmid).map_err(fault)?;
        let busy = |reason: String| Err(FileFault::new(Why::Busy, from, reason));
        if guest.own.value.owner != node {
            return busy(format!("VM {vmid} belongs to node '{}' by now", guest.own.value.owner));
        }
        if self.ha_recovers(vmid).map_err(fault)? {
            return busy(format!("VM {vmid} is under HA, which recovers it"));
        }
        let locked = parse(&guest.config.value).map_err(fault)?.current.lock().is_some();
        let runs = guest.own.value.running || locked;
        if runs && !record.value.is_off() && !self.is_said_off(&node) {
            return busy(format!(
                "VM {vmid} may run, or be worked on, on node '{node}', which is lost and perhaps on: switch it off, and say so ('stead node confirm-off \
                 {node}'), which sets its guests free"
            ));
        }
        let local = parse(&guest.config.value).and_then(|c| self.local_volumes(&c)).map_err(fault)?;
        if !local.is_empty() {
            return busy(format!("no other node has its disks: {}", local.join(", ")));
        }
        let note = format!("VM {vmid} from '{node}', which is lost, to '{target}': its file was moved");
        match self.set_over(actor, &guest, &record, &target, note).await.map_err(fault)? {
            true => Ok(()),
            false => busy("something has changed meanwhile: try again".to_owned()),
        }
    }

    /// Has the node do it that has the guest, or is to have it.
    async fn at_node(
        self: &Arc<Self>,
        actor: &Actor,
        path: &str,
        node: &NodeName,
        what: GuestFile,
    ) -> Result<(), FileFault> {
        if *node == self.me.name {
            return self.guest_file(actor, what).await;
        }
        let never = |e: OpsError| FileFault::new(Why::Never, path, e.to_string());
        let record = self.node_record(node).map_err(never)?.value;
        if record.state.is_lost() {
            let reason = format!("node '{node}' is lost: move the guest to another one first");
            return Err(FileFault::new(Why::Busy, path, reason));
        }
        match call::<_, Option<FileFault>>(&*self.peers, &record, FILE_CALL, &what, PATIENCE).await {
            Ok(None) => {}
            Ok(Some(fault)) => return Err(fault),
            Err(e @ PeerError::Unreachable { .. }) => {
                let reason = format!("{e}: whether it was done is not known");
                return Err(FileFault::new(Why::Unknown, path, reason));
            }
            Err(e) => return Err(FileFault::new(Why::Busy, path, e.to_string())),
        }
        // So that what was written is read here.
        self.conf.barrier().await.map_err(|e| FileFault::of(path, "", e.into()))
    }

    /// Changes a guest of this node as its file was changed on another one, which takes part in the cluster and may have guests of its own.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn guest_file_of(self: &Arc<Self>, from: &NodeName, what: GuestFile) -> Result<(), FileFault> {
        let (GuestFile::Write { vmid, .. }
        | GuestFile::Create { vmid, .. }
        | GuestFile::HandOver { vmid, .. }) = &what;
        let path = paths::guest(&self.me.name, GuestKind::Qemu, *vmid);
        let never = |reason: String| Err(FileFault::new(Why::Never, &path, reason));
        match self.node_record(from).map(|record| record.value) {
            Err(e) => never(e.to_string()),
            Ok(record) if record.state.is_lost() => never(format!(
                "node '{from}' is lost: what is written there concerns nobody until it is back"
            )),
            Ok(record) if record.witness => never(format!(
                "node '{from}' is a witness: guests are changed on the nodes that can run them"
            )),
            Ok(_) => self.guest_file(&Actor::system(), what).await,
        }
    }

    /// Changes a guest of this node as its file was changed, here or on another node.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn guest_file(self: &Arc<Self>, actor: &Actor, what: GuestFile) -> Result<(), FileFault> {
        let path = |vmid| paths::guest(&self.me.name, GuestKind::Qemu, vmid);
        match what {
            GuestFile::Write { vmid, over, text, reason } => {
                self.rewrite(actor, &path(vmid), vmid, (over, &text), reason).await
            }
            GuestFile::Create { vmid, text, reason } => {
                self.create_by_file(actor, &path(vmid), vmid, &text, reason).await
            }
            GuestFile::HandOver { vmid, to } => self.hand_over_by_file(actor, &path(vmid), vmid, &to).await,
        }
    }

    async fn rewrite(
        self: &Arc<Self>,
        actor: &Actor,
        path: &str,
        vmid: Vmid,
        (over, text): (Revision, &str),
        reason: Option<String>,
    ) -> Result<(), FileFault> {
        let busy = |e: OpsError| FileFault::new(Why::Busy, path, e.to_string());
        let lock = self.guest_locks.lock_for_request(vmid).await.map_err(busy)?;
        let guest: GuestAt = self.own_guest(vmid).await.map_err(|e| FileFault::of(path, text, e))?;
        if guest.config.revision != over {
            let reason = "it was changed by somebody else meanwhile: read it again";
            return Err(FileFault::new(Why::Busy, path, reason));
        }
        let old = parse(&guest.config.value).map_err(|e| FileFault::of(path, text, e))?;
        let change = difference(path, &old, text)?;
        if nothing(&change) {
            return Ok(());
        }
        if let Some(lock) = old.current.lock() {
            return Err(FileFault::new(Why::Busy, path, format!("VM {vmid} is locked ({lock})")));
        }
        let sets = change.set.iter().map(|(key, value)| Change::set(key, value));
        let sets = sets.collect::<Result<Vec<_>, _>>().map_err(|e| FileFault::of(path, text, e.into()))?;
        if let Some(key) = imports(&sets) {
            let reason = "an image is imported by 'qm set' or 'qm disk import', which take their time";
            return Err(FileFault::of(path, text, OpsError::invalid(key, reason)));
        }
        let made = Made { in_request: true, reason, ..Made::default() };
        let done = self.configure_under(lock, actor, vmid, change, Asked::default(), made).await;
        done.map_err(|e| FileFault::of(path, text, e))
    }

    async fn create_by_file(
        self: &Arc<Self>,
        actor: &Actor,
        path: &str,
        vmid: Vmid,
        text: &str,
        reason: Option<String>,
    ) -> Result<(), FileFault> {
        let (changes, meta) = options_of(path, text)?;
        let fault = |e: OpsError| FileFault::of(path, text, e);
        if let Some(key) = imports(&changes) {
            return Err(fault(OpsError::invalid(
                key,
                "an image is imported by 'qm create' or 'qm disk import'",
            )));
        }
        let _lock = self.guest_locks.lock_for_request(vmid).await.map_err(fault)?;
        self.conf.barrier().await.map_err(|e| fault(e.into()))?;
        self.check_free(vmid).map_err(|e| FileFault::new(Why::Exists, path, e.to_string()))?;
        let mut made = Made { in_request: true, ..Made::default() };
        let done = async {
            let mut config = VmConfig::default();
            let changes = self.fulfil(actor, vmid, &config, changes, &mut made).await?;
            config.change(vmid, &changes, |_| true)?;
            if let Some(meta) = meta {
                config.current.set("meta", &meta)?;
            }
            config.current.check()?;
            config.current.check_boot()?;
            let options = config.current.iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
            let by_node = options.filter(|(k, _)| ["cpu", "amd-sev", "intel-tdx"].contains(&k.as_str()));
            self.check_options(&by_node.collect()).await?;
            crate::guest::cloudinit::check_password(&changes, &config.current)?;
            let reason = reason.unwrap_or_else(|| format!("VM {vmid} made by its file"));
            let txn = store::txn(&actor.who, reason);
            let (txn, _) = self.new_guest(vmid, &config, txn)?;
            Ok(self.conf.transact(txn).await.map(drop)?)
        };
        let done: Result<(), OpsError> = done.await;
        if let Err(e) = &done {
            self.undo_made(e, &made).await;
        }
        done.map_err(fault)
    }

    async fn hand_over_by_file(
        self: &Arc<Self>,
        actor: &Actor,
        path: &str,
        vmid: Vmid,
        to: &NodeName,
    ) -> Result<(), FileFault> {
        let busy = |reason: String| Err(FileFault::new(Why::Busy, path, reason));
        let fault = |e: OpsError| FileFault::new(Why::Busy, path, e.to_string());
        let guest = self.own_guest(vmid).await.map_err(|e| FileFault::of(path, "", e))?;
        if guest.own.value.running || self.guests.state(vmid).await.is_some() {
            return busy(format!("VM {vmid} runs: 'qm migrate {vmid} {to} --online' moves it"));
        }
        if self.ha_maintains(vmid).map_err(fault)? {
            return busy(format!("VM {vmid} is under HA: 'ha-manager migrate vm:{vmid} {to}' moves it"));
        }
        let config = parse(&guest.config.value).map_err(fault)?;
        if let Some(lock) = config.current.lock() {
            return busy(format!("VM {vmid} is locked ({lock})"));
        }
        let local = self.local_volumes(&config).map_err(fault)?;
        if !local.is_empty() {
            return busy(format!(
                "no other node has {}: 'qm migrate {vmid} {to}' takes its disks along",
                local.join(", ")
            ));
        }
        // The task looks at all of this again, under the guest's mutex.
        let options = MigrateOptions::to(to.clone(), false);
        let upid = self.migrate(actor, vmid, options, Asked::default()).await.map_err(fault)?;
        let late = format!("the task {upid} goes on: its log says how it ends");
        let Ok(ended) = tokio::time::timeout(HAND_OVER, self.tasks.wait(&upid)).await else {
            return Err(FileFault::new(Why::Unknown, path, late));
        };
        let status = ended.and_then(|t| t.exitstatus).unwrap_or_default();
        match Outcome::of(&status) {
            Outcome::Ok | Outcome::Warning => Ok(()),
            Outcome::Error | Outcome::Unknown => busy(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "nodes/n1/qemu-server/100.conf";
    const OLD: &str = "cores: 1\nmemory: 512\nscsi0: local:100/vm-100-disk-0.raw\nunused0: local:100/vm-100-disk-1.raw\n\n\
        [PENDING]\nmemory: 1024\ndelete: onboot\n\n[before]\ncores: 1\n";

    fn asked(text: &str) -> Result<ConfigChange, FileFault> {
        difference(PATH, &VmConfig::parse(OLD).unwrap(), text)
    }

    #[test]
    fn a_text_is_the_difference_from_what_was() {
        assert!(nothing(&asked(OLD).unwrap()));
        assert!(nothing(&asked(&VmConfig::parse(OLD).unwrap().to_string()).unwrap()), "in whatever order");
        let change =
            asked(&OLD.replacen("cores: 1", "cores: 4\nname: web", 1).replace("delete: onboot\n", ""))
                .unwrap();
        assert_eq!(
            change.set.into_iter().collect::<Vec<_>>(),
            [("cores".into(), "4".into()), ("name".into(), "web".into())]
        );
        assert_eq!((change.delete, change.revert), (vec![], vec!["onboot".to_owned()]));
        let change = asked(&OLD.replacen("memory: 512\n", "", 1)).unwrap();
        assert_eq!(change.delete, ["memory"]);
    }

    #[test]
    fn what_is_stead_s_own_stays_as_it_is() {
        for text in [
            format!("lock: backup\n{OLD}"),
            OLD.replace("[before]\ncores: 1\n", ""),
            OLD.replace("memory: 1024", "memory: 2048"),
            OLD.replace("delete: onboot", "delete: onboot,name"),
            OLD.replace("unused0: local:100/vm-100-disk-1.raw\n", ""),
        ] {
            let fault = asked(&text).unwrap_err();
            assert_eq!(fault.why, Why::Never, "{fault}");
        }
        let broken = asked(&OLD.replacen("memory: 512", "memory 512", 1)).unwrap_err();
        assert_eq!((broken.why, broken.line), (Why::Invalid, Some(2)));
    }

    #[test]
    fn a_new_vm_s_text_says_options_alone() {
        let (changes, meta) = options_of(PATH, "cores: 2\nmeta: creation-qemu=9.0.0\n").unwrap();
        assert_eq!((changes.len(), meta.as_deref()), (1, Some("creation-qemu=9.0.0")));
        for text in ["", "lock: create\n", "cores: 0\n", "cores: 2\n\n[old]\ncores: 1\n", "frob: 1\n"] {
            assert!(options_of(PATH, text).is_err(), "{text}");
        }
    }
}
