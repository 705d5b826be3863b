//! Storages and their volumes.

use crate::storage_health::Found;
use crate::{Actor, Ops, OpsError};
use crate::{storage_place, store};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use stead_driver::guest::ResolvedVolume;
use stead_driver::storage::{Content, NewVolume, StorageDriver, StorageError, VolumeInfo};
use stead_ha::StorageView;
use stead_model::storage_cfg::{Storage, StorageCfg, StorageCfgError};
use stead_model::vmconfig::devices::{MAX_DISK, as_disk};
use stead_model::vmconfig::{DiskSource, VmConfig};
use stead_model::{StorageId, Upid, Vmid, VolumeId, paths};

/// The largest disk, in bytes, that is made within a request where all of it is written.
const QUICK: u64 = 256 << 20;

fn refused(e: StorageCfgError) -> OpsError {
    match e {
        StorageCfgError::Option { key, why } => OpsError::invalid(key, why),
        StorageCfgError::Id(e) => OpsError::invalid("storage", e.to_string()),
        e @ StorageCfgError::Section(_) => OpsError::Failed(e.to_string()),
    }
}

impl Ops {
    fn storage_cfg(&self) -> Result<(StorageCfg, Option<stead_conf::Revision>), OpsError> {
        let (text, revision) = self.file(paths::STORAGE_CFG)?;
        let cfg = StorageCfg::parse(&text)
            .map_err(|e| OpsError::failed(format!("storage.cfg cannot be read: {e}")))?;
        Ok((cfg, revision))
    }

    /// Every configured storage that can be read; the others are logged.
    pub fn storages(&self) -> Result<Vec<Storage>, OpsError> {
        let (good, bad) = self.storage_cfg()?.0.list();
        for (id, why) in bad {
            tracing::warn!("storage.cfg: '{id}' cannot be used: {why}");
        }
        Ok(good)
    }

    /// One configured storage.
    pub fn storage(&self, id: &StorageId) -> Result<Storage, OpsError> {
        let found = self.storages()?.into_iter().find(|s| s.id == *id);
        found.ok_or_else(|| OpsError::failed(format!("storage '{id}' does not exist")))
    }

    /// Whether this node uses a storage. A witness uses none.
    pub(crate) fn uses(&self, storage: &Storage) -> bool {
        !self.me.witness && storage.is_enabled_on(&self.me.name)
    }

    /// A storage's driver on this node.
    pub fn driver(&self, id: &StorageId) -> Result<Arc<dyn StorageDriver>, OpsError> {
        let info = self.storage(id)?;
        if info.disable {
            return Err(OpsError::failed(format!("storage '{id}' is disabled")));
        }
        if !self.uses(&info) {
            return Err(OpsError::failed(format!(
                "storage '{id}' is not available on node '{}'",
                self.me.name
            )));
        }
        self.open_storage(&info)
    }

    pub(crate) fn open_storage(&self, info: &Storage) -> Result<Arc<dyn StorageDriver>, OpsError> {
        let kind = self.storage_types.iter().find(|t| t.name() == info.kind).ok_or_else(|| {
            let known: Vec<_> = self.storage_types.iter().map(|t| t.name()).collect();
            OpsError::invalid(
                "type",
                format!("storage type '{}' is not supported yet; there is: {}", info.kind, known.join(", ")),
            )
        })?;
        Ok(kind.open(&info.id, &storage_place::options_on(&self.me.dir, info)?)?)
    }

    /// A driver, ready for use.
    pub async fn active(&self, id: &StorageId) -> Result<Arc<dyn StorageDriver>, OpsError> {
        let driver = self.driver(id)?;
        driver.activate().await?;
        Ok(driver)
    }

    /// Probes this node's storages, all at once. Each is given up for now after some seconds.
    pub async fn probe_storages(&self) -> Vec<(StorageId, Found)> {
        let all = self.storages().unwrap_or_default().into_iter().filter(|s| self.uses(s));
        let probes = all.map(|s| async move {
            let found = match self.open_storage(&s) {
                Ok(driver) => match driver.probe().await {
                    Ok(space) => Found::Usable(space),
                    Err(StorageError::Silent { seconds, .. }) => Found::Silent(seconds),
                    // A daemon that has no descriptors left knows nothing of its storages.
                    Err(_) if std::fs::File::open("/").is_err() => Found::Unasked,
                    Err(StorageError::Unavailable { why, .. }) => Found::Inactive(why),
                    Err(e) => Found::Inactive(e.to_string()),
                },
                Err(e) => Found::Inactive(e.to_string()),
            };
            (s.id, found)
        });
        futures_util::future::join_all(probes).await
    }

    /// Every configured storage, for those who decide where guests go. Where they can't be read nothing is known against any
    /// node, which must not keep HA from recovering.
    pub(crate) fn storage_views(&self) -> BTreeMap<StorageId, StorageView> {
        let view = |s: Storage| (s.id, StorageView { shared: s.shared, nodes: s.nodes, disabled: s.disable });
        self.storage_cfg().map(|(cfg, _)| cfg.list().0.into_iter().map(view).collect()).unwrap_or_default()
    }

    /// Makes a disk for a guest.
    pub async fn alloc_disk(
        &self,
        storage: &StorageId,
        vmid: Vmid,
        format: Option<&str>,
        size: u64,
    ) -> Result<VolumeInfo, OpsError> {
        self.alloc(storage, &NewVolume { vmid, name: None, format: format.map(str::to_owned), size }).await
    }

    /// Makes a disk within a request.
    pub async fn alloc_in_request(
        &self,
        storage: &StorageId,
        new: &NewVolume,
    ) -> Result<VolumeInfo, OpsError> {
        self.check_quick(storage, "size", new.size)?;
        self.alloc(storage, new).await
    }

    /// Refuses, within a request, a disk whose blocks are written when it is made: clients wait five seconds.
    pub(crate) fn check_quick(
        &self,
        storage: &StorageId,
        parameter: &str,
        size: u64,
    ) -> Result<(), OpsError> {
        let storage = self.storage(storage)?;
        match storage.options.get("preallocation").map(String::as_str) {
            Some(way @ ("full" | "falloc")) if size > QUICK => Err(OpsError::invalid(
                parameter,
                format!(
                    "storage '{}' writes all of a new disk (preallocation={way}), which may take longer than a request \
                     for more than {} MiB: give it to the VM by POST /nodes/{{node}}/qemu/{{vmid}}/config, which is a task",
                    storage.id,
                    QUICK >> 20
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Makes a disk.
    pub async fn alloc(&self, storage: &StorageId, new: &NewVolume) -> Result<VolumeInfo, OpsError> {
        if !self.storage(storage)?.holds("images") {
            return Err(OpsError::failed(format!(
                "storage '{storage}' does not support content-type 'images'"
            )));
        }
        Ok(self.active(storage).await?.alloc(new).await?)
    }

    /// One volume.
    pub async fn volume_info(&self, volume: &VolumeId) -> Result<VolumeInfo, OpsError> {
        Ok(self.active(&volume.storage).await?.info(&volume.name).await?)
    }

    /// A storage's volumes.
    pub async fn volumes(
        &self,
        storage: &StorageId,
        content: Option<Content>,
        vmid: Option<Vmid>,
    ) -> Result<Vec<VolumeInfo>, OpsError> {
        Ok(self.active(storage).await?.list(content, vmid).await?)
    }

    /// Removes a volume that no guest names, as a task.
    pub fn remove_volume(self: &Arc<Self>, actor: &Actor, volume: VolumeId) -> Result<Upid, OpsError> {
        if let Some((vmid, key)) = self.user_of(&volume)? {
            return Err(OpsError::failed(format!(
                "volume '{volume}' is used by VM {vmid} ({key}): take it out there first"
            )));
        }
        let ops = self.clone();
        let id = format!("{}@{}", volume.name.rsplit('/').next().unwrap_or("volume"), volume.storage);
        self.task(
            "imgdel",
            &id.replace(|c: char| !c.is_ascii_alphanumeric() && !"_-.@".contains(c), "_"),
            &actor.who,
            move |cx| async move {
                ops.free_volume(&volume).await?;
                cx.log(format!("removed volume '{volume}'"));
                Ok(())
            },
        )
    }

    /// Which guest names a volume, and where.
    pub fn user_of(&self, volume: &VolumeId) -> Result<Option<(Vmid, String)>, OpsError> {
        let all = self.conf.view(|t| {
            store::guests(t).into_iter().filter_map(|(v, _)| store::guest(t, v).ok()).collect::<Vec<_>>()
        });
        for guest in all {
            let config = crate::guest::config::parse(&guest.config.value)?;
            if let Some((key, _)) = config.current.volumes().into_iter().find(|(_, v)| v.is_same(volume)) {
                return Ok(Some((guest.vmid, key.to_owned())));
            }
            if config.all_volumes().iter().any(|v| v.is_same(volume)) {
                return Ok(Some((guest.vmid, "pending or snapshot".to_owned())));
            }
        }
        Ok(None)
    }

    /// Removes a volume; false if there is none of that name.
    pub(crate) async fn free_if_there(&self, volume: &VolumeId) -> Result<bool, OpsError> {
        match self.active(&volume.storage).await?.free(&volume.name).await {
            Ok(()) => Ok(true),
            Err(StorageError::NoVolume(_)) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a volume.
    pub async fn free_volume(&self, volume: &VolumeId) -> Result<(), OpsError> {
        Ok(self.active(&volume.storage).await?.free(&volume.name).await?)
    }

    /// Removes volumes of which nothing is left to say if it fails; it is logged.
    pub(crate) async fn free_volumes(&self, volumes: &[VolumeId]) {
        for volume in volumes {
            if let Err(e) = self.free_volume(volume).await {
                tracing::error!("volume '{volume}' is left over: {e}");
            }
        }
    }

    /// Whether a volume is the guest's own and may be removed with it.
    pub(crate) async fn is_own_volume(&self, volume: &VolumeId, vmid: Vmid) -> bool {
        match self.volume_info(volume).await {
            Ok(info) => info.vmid == Some(vmid) && info.content == Content::Images,
            // What cannot be seen is not skipped: removing it will say why.
            Err(_) => volume.name.contains(&format!("-{vmid}-")),
        }
    }

    /// Every disk that is a guest's by name, on the storages of this node.
    pub(crate) async fn volumes_of(&self, vmid: Vmid) -> Result<Vec<VolumeId>, OpsError> {
        let mut out = vec![];
        for s in self.storages()?.into_iter().filter(|s| self.uses(s) && s.holds("images")) {
            let found = self.volumes(&s.id, Some(Content::Images), Some(vmid)).await?;
            out.extend(found.into_iter().map(|v| v.volid));
        }
        Ok(out)
    }

    /// A volume as a guest's process opens it.
    pub async fn resolve_volume(&self, volume: &VolumeId) -> Result<ResolvedVolume, OpsError> {
        Ok(self.active(&volume.storage).await?.resolve(&volume.name).await?)
    }

    /// A new file for what a disk is to hold.
    pub(crate) async fn spool_for(&self, volume: &VolumeId) -> Result<PathBuf, OpsError> {
        Ok(self.active(&volume.storage).await?.spool().await?)
    }

    /// Gives a disk what was made in its new file: all of it, or, where that has failed, nothing.
    pub(crate) async fn fill(
        &self,
        volume: &VolumeId,
        spooled: PathBuf,
        made: Result<(), OpsError>,
    ) -> Result<VolumeInfo, OpsError> {
        let done = match (made, self.active(&volume.storage).await) {
            (Ok(()), Ok(storage)) => {
                storage.replace(&volume.name, spooled.clone()).await.map_err(OpsError::from)
            }
            (Err(e), _) | (_, Err(e)) => Err(e),
        };
        if done.is_err() {
            // It may be gone already.
            let _ = tokio::fs::remove_file(&spooled).await;
        }
        done
    }

    /// Every volume of a configuration as the process opens it.
    pub async fn resolve_volumes(&self, config: &VmConfig) -> Result<Vec<ResolvedVolume>, OpsError> {
        let mut out = vec![];
        for disk in config.current.disks()? {
            match &disk.source {
                DiskSource::Volume(v) => out.push(self.resolve_volume(v).await?),
                DiskSource::Path(p) => out.push(ResolvedVolume {
                    volume: p.clone(),
                    path: PathBuf::from(p),
                    format: disk.format.clone().unwrap_or_else(|| "raw".to_owned()),
                }),
                DiskSource::Empty
                | DiskSource::HostDrive
                | DiskSource::New { .. }
                | DiskSource::NewCloudInit { .. } => {}
            }
        }
        Ok(out)
    }

    /// Volumes of a configuration that other nodes do not see, those of its snapshots included.
    pub fn local_volumes(&self, config: &VmConfig) -> Result<Vec<String>, OpsError> {
        let mut out = vec![];
        let now = config.current.volumes().into_iter().map(|(_, volume)| volume);
        let further = stead_guest::snapshots::further_volumes(config);
        for volume in now.chain(further) {
            let name = volume.to_string();
            if !out.contains(&name) && !self.storage(&volume.storage)?.shared {
                out.push(name);
            }
        }
        let paths = config.current.disks()?.into_iter().filter_map(|d| match d.source {
            DiskSource::Path(p) => Some(p),
            DiskSource::HostDrive => Some("cdrom".to_owned()),
            _ => None,
        });
        out.extend(paths);
        Ok(out)
    }

    /// Grows a disk of a VM: to `size` bytes, or by them.
    pub fn resize_disk(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        disk: String,
        size: Resize,
    ) -> Result<Upid, OpsError> {
        if as_disk(&disk).is_none_or(|(bus, _)| !bus.has_drives()) {
            let why = format!(
                "value '{disk}' is not one of ide0 to ide3, sata0 to sata5, scsi0 to scsi30, virtio0 to virtio15"
            );
            return Err(OpsError::invalid("disk", why));
        }
        let config = crate::guest::config::parse(&self.vm_at(vmid)?.config.value)?;
        let there = config.current.disks()?.into_iter().find(|d| d.key == disk && !d.cdrom);
        let there =
            there.ok_or_else(|| OpsError::invalid("disk", format!("disk '{disk}' does not exist")))?;
        size.of(there.size.map_or(0, stead_model::Size::get))?;
        let (ops, by) = (self.clone(), actor.clone());
        self.task("resize", &vmid.to_string(), &actor.who, move |_| async move {
            ops.resize_now(&by, vmid, &disk, size).await
        })
    }

    async fn resize_now(&self, actor: &Actor, vmid: Vmid, key: &str, size: Resize) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        let guest = self.own_guest(vmid).await?;
        let mut config = crate::guest::config::parse(&guest.config.value)?;
        if let Some(lock) = config.current.lock() {
            return Err(OpsError::failed(format!("VM is locked ({lock})")));
        }
        let disk = config.current.disks()?.into_iter().find(|d| d.key == key && !d.cdrom);
        let disk = disk.ok_or_else(|| OpsError::invalid("disk", format!("disk '{key}' does not exist")))?;
        let volume =
            disk.volume().ok_or_else(|| OpsError::invalid("disk", format!("'{key}' has no volume")))?;
        if stead_guest::clones::is_fixed(&config, key) {
            let why = format!(
                "can't resize disk '{key}' of VM {vmid}: it is a template, and clones may be built on it"
            );
            return Err(OpsError::failed(why));
        }
        let driver = self.active(&volume.storage).await?;
        let old = driver.info(&volume.name).await?.size;
        let new = size.of(old)?;
        if new > old {
            if self.guests.state(vmid).await.is_some() {
                self.guests.resize_disk(vmid, key, new).await?;
            } else {
                driver.resize(&volume.name, new).await?;
            }
        }
        let info = driver.info(&volume.name).await?;
        config
            .current
            .set(key, &disk.with_volume(volume, Some(stead_model::size::Size::bytes(info.size)))?)?;
        self.commit_config(actor, &guest, &config).await
    }

    /// Adds a storage.
    pub async fn add_storage(
        &self,
        actor: &Actor,
        id: &StorageId,
        kind: &str,
        options: BTreeMap<String, String>,
    ) -> Result<(), OpsError> {
        let (mut cfg, revision) = self.storage_cfg()?;
        let options = options.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let added = cfg.add(id, kind, options).map_err(refused)?;
        self.commit_storage(actor, &cfg, revision, &added).await
    }

    /// Changes a storage's options.
    pub async fn change_storage(
        &self,
        actor: &Actor,
        id: &StorageId,
        set: BTreeMap<String, String>,
        delete: &[String],
        digest: Option<&str>,
    ) -> Result<(), OpsError> {
        let (mut cfg, revision) = self.storage_cfg()?;
        self.storage(id)?;
        if digest.is_some_and(|d| d != cfg.digest()) {
            return Err(OpsError::failed(
                "detected modified configuration - file changed by other user? Try again.",
            ));
        }
        let set = set.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let changed = cfg.update(id, set, delete.iter().map(String::as_str)).map_err(refused)?;
        self.commit_storage(actor, &cfg, revision, &changed).await
    }

    /// Forgets a storage; its content stays where it is.
    pub async fn remove_storage(&self, actor: &Actor, id: &StorageId) -> Result<(), OpsError> {
        let (mut cfg, revision) = self.storage_cfg()?;
        self.storage(id)?;
        let users = self.conf.view(|t| storage_place::users_of(t, id));
        if !users.is_empty() {
            let listed: Vec<String> = users.iter().map(ToString::to_string).collect();
            return Err(OpsError::failed(format!(
                "storage '{id}' is used by VM {}: move their disks or take them out first",
                listed.join(", ")
            )));
        }
        cfg.remove(id).map_err(refused)?;
        let mut txn = store::txn(&actor.who, format!("storage '{id}' removed"));
        store::put_over(&mut txn, paths::STORAGE_CFG, revision, cfg.to_string());
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Writes the storages after the changed one was opened once, which checks its options.
    async fn commit_storage(
        &self,
        actor: &Actor,
        cfg: &StorageCfg,
        revision: Option<stead_conf::Revision>,
        storage: &Storage,
    ) -> Result<(), OpsError> {
        let driver = self.open_storage(storage)?;
        if self.uses(storage) {
            driver.activate().await.map_err(|e| storage_place::naming(e.into(), storage))?;
        }
        let mut txn = store::txn(&actor.who, format!("storage '{}'", storage.id));
        store::put_over(&mut txn, paths::STORAGE_CFG, revision, cfg.to_string());
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// The digest of `storage.cfg`.
    pub fn storage_digest(&self) -> Result<String, OpsError> {
        Ok(self.storage_cfg()?.0.digest())
    }
}

/// A new size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// This size.
    To(u64),
    /// So much more.
    By(u64),
}

impl Resize {
    /// The new size of a disk of `old` bytes.
    fn of(self, old: u64) -> Result<u64, OpsError> {
        let new = match self {
            Self::To(n) => n,
            Self::By(n) => old.saturating_add(n),
        };
        if new < old {
            return Err(OpsError::invalid("size", "shrinking disks is not supported"));
        }
        if new > MAX_DISK.get() {
            let why = format!("the disk would be too large: at most {MAX_DISK} are possible");
            return Err(OpsError::invalid("size", why));
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_grow_within_limits() {
        assert_eq!(Resize::By(5).of(6).unwrap(), 11);
        assert_eq!(Resize::To(6).of(6).unwrap(), 6);
        assert!(Resize::To(5).of(6).unwrap_err().to_string().starts_with("size: shrinking"));
        for much in [Resize::By(u64::MAX), Resize::By(900 << 40), Resize::To(u64::MAX)] {
            assert_eq!(
                much.of(6).unwrap_err().to_string(),
                "size: the disk would be too large: at most 128T are possible"
            );
        }
    }
}
