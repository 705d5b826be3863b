//! Making a VM.

use super::config::Made;
use crate::{Actor, Ops, OpsError, store};
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_conf::Txn;
use stead_model::cpu::CLUSTER_MODEL;
use stead_model::vmconfig::{Change, VmConfig};
use stead_model::{Epoch, GuestKind, Ownership, Upid, Vmid, paths};
use stead_tasks::TaskContext;

impl Ops {
    /// Makes a VM on this node.
    pub fn create_vm(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        options: &BTreeMap<String, String>,
        start: bool,
    ) -> Result<Upid, OpsError> {
        Self::may_configure(actor, vmid, options.iter().map(|(k, v)| (k.as_str(), Some(v.as_str()))))?;
        let changes = options
            .iter()
            .map(|(k, v)| Change::set(k, v).map_err(OpsError::from))
            .collect::<Result<Vec<_>, _>>()?;
        Self::may_use_storages(actor, &changes)?;
        let mut config = VmConfig::default();
        config.change(vmid, &changes, |_| true)?;
        config.current.check()?;
        config.current.check_boot()?;
        super::cloudinit::check_password(&changes, &config.current)?;
        self.check_free(vmid)?;
        let (ops, by) = (self.clone(), actor.clone());
        self.task("qmcreate", &vmid.to_string(), &actor.who, move |cx| async move {
            ops.create_now(&cx, &by, vmid, changes).await?;
            if start {
                let upid = ops.start(&by, vmid, super::Asked::default()).await?;
                cx.log(format!("started: {upid}"));
            }
            Ok(())
        })
    }

    /// Refuses options that the program of this node cannot take, such as a model of a CPU that it does not know.
    pub async fn check_options(&self, options: &BTreeMap<String, String>) -> Result<(), OpsError> {
        let mut config = VmConfig::default();
        for (key, value) in options {
            if let Change::Set { key, value } = Change::set(key, value)? {
                config.current.set(&key, &value)?;
            }
        }
        // Of what nothing is recorded yet a start will tell.
        if config.current.cpu()?.model.as_deref() == Some(CLUSTER_MODEL) && self.common_cpu().is_err() {
            return Ok(());
        }
        self.spell_out_cpu(&mut config.current)?;
        Ok(self.guests.check(&config.to_string()).await?)
    }

    pub(crate) fn check_free(&self, vmid: Vmid) -> Result<(), OpsError> {
        let taken = self.conf.view(|t| {
            let path = paths::ownership(vmid);
            t.get(&path).is_some().then(|| t.guest(vmid.get()).unwrap_or(&path).to_owned())
        });
        match taken {
            None => Ok(()),
            Some(path) => Err(OpsError::failed(format!(
                "unable to create VM {vmid}: config file already exists ({path})"
            ))),
        }
    }

    async fn create_now(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        changes: Vec<Change>,
    ) -> Result<(), OpsError> {
        self.conf.barrier().await?;
        self.check_free(vmid)?;
        let mut made = Made::default();
        let done = match self.import_disks(cx, actor, vmid, changes, &mut made).await {
            Ok(changes) => self.create_locked(cx, actor, vmid, changes, &mut made).await,
            Err(e) => Err(e),
        };
        match done {
            Ok(()) => Ok(()),
            Err(e) => {
                self.undo_made(&e, &made).await;
                Err(OpsError::failed(format!("unable to create VM {vmid} - {e}")))
            }
        }
    }

    async fn create_locked(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        changes: Vec<Change>,
        made: &mut Made,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        self.conf.barrier().await?;
        self.check_free(vmid)?;
        self.create_with(cx, actor, vmid, changes, made).await
    }

    async fn create_with(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        changes: Vec<Change>,
        made: &mut Made,
    ) -> Result<(), OpsError> {
        let mut config = VmConfig::default();
        let changes = self.fulfil(actor, vmid, &config, changes, made).await?;
        for volume in &made.volumes {
            cx.log(format!("made volume '{volume}'"));
        }
        config.change(vmid, &changes, |_| true)?;
        config.current.check()?;
        config.current.check_boot()?;
        let txn = store::txn(&actor.who, format!("VM {vmid} made"));
        let (txn, _) = self.new_guest(vmid, &config, txn)?;
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Adds to a transaction that this node has a new guest; under which epoch.
    pub(crate) fn new_guest(
        &self,
        vmid: Vmid,
        config: &VmConfig,
        mut txn: Txn,
    ) -> Result<(Txn, Epoch), OpsError> {
        // Above every epoch that any guest of this number ever had, so that an old copy of an earlier guest
        // can never be taken for this one: each change of an owner costs a revision and one epoch.
        let epoch = Epoch(self.conf.view(stead_conf::Tree::revision).0 + 1);
        let own = Ownership {
            kind: GuestKind::Qemu,
            owner: self.me.name.clone(),
            epoch,
            armed: false,
            running: false,
            recovered: false,
        };
        store::put_over(&mut txn, &paths::ownership(vmid), None, store::bytes(&own)?);
        let path = paths::guest(&self.me.name, GuestKind::Qemu, vmid);
        store::put_over(&mut txn, &path, None, config.to_string());
        Ok((txn, epoch))
    }
}
