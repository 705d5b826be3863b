//! What speaks against a move, all of it named before anything is begun.
//!
//! Its source knows what the VM has of its host alone. All else is asked of the target itself: whether it has the storages, the
//! bridges, the machine type, the CPU. What it finds is no promise; it makes its copy before the source does anything.

use super::carry::Carried;
use crate::guest::spelled::{mapped, of_this_host};
use crate::peers::{PeerError, call};
use crate::status::StorageReport;
use crate::store::GuestAt;
use crate::{Ops, OpsError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use stead_driver::guest::{Incoming, Launch, ResolvedVolume};
use stead_guest::carried::StorageMap;
use stead_ha::{StorageFault, Use};
use stead_model::vmconfig::{Bus, Disk, DiskSource, Serial, VmConfig};
use stead_model::{Epoch, NodeName, NodeRecord, StorageId, Vmid};

/// The call by which a node is asked.
pub const FITS_CALL: &str = "guest/fits";
/// How long a node may take to answer: whoever asks gives up after five seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// What may speak against a migration, all named at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// It runs.
    pub running: bool,
    /// Nodes that could take it.
    pub allowed_nodes: Vec<NodeName>,
    /// Nodes that could not, and why.
    pub not_allowed: Vec<(NodeName, Vec<String>)>,
    /// Volumes on storages that the target does not share.
    pub local_volumes: Vec<LocalVolume>,
    /// Options that give it devices of this host.
    pub local_resources: Vec<String>,
    /// Options that give it devices under names of the cluster's, and the names.
    pub mapped_resources: Vec<(String, String)>,
}

/// A volume, path or drive that other nodes do not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalVolume {
    /// The volume or path.
    pub volid: String,
    /// It is in a CD drive.
    pub cdrom: bool,
    /// The VM owns it and does not use it.
    pub is_unused: bool,
    /// Bytes, if it is known.
    pub size: Option<u64>,
}

/// The question whether a node could take a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FitsRequest {
    /// The guest.
    pub vmid: Vmid,
    /// Its configuration.
    pub config: String,
    /// Of a running guest: what the processes must have in common.
    pub incoming: Option<Incoming>,
    /// Where it is. None from a version that does not say.
    #[serde(default)]
    pub source: Option<NodeName>,
    /// What of its volumes would go along.
    #[serde(default)]
    pub carried: Vec<Carried>,
}

/// What is known of a move before it begins.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// All that speaks against it.
    pub why: Vec<String>,
    /// That the target did not answer.
    pub silent: Option<String>,
    /// Which volumes go along.
    pub carried: Vec<Carried>,
}

/// Options that give a VM devices of its host.
fn local_resources(config: &VmConfig) -> Result<Vec<String>, OpsError> {
    let of_host = |(key, port)| matches!(port, Serial::Device(_)).then_some(key);
    let serials = config.current.serials()?.into_iter().filter_map(of_host);
    let parallels = config.current.parallels()?.into_iter().map(|(key, _)| key.to_owned());
    Ok(serials.chain(parallels).collect())
}

/// Whether an option's device is the host's, as a part of [`Preconditions::local_resources`].
fn shown_local(config: &VmConfig) -> Result<Vec<String>, OpsError> {
    let mut all = local_resources(config)?;
    all.extend(of_this_host(&config.current)?);
    all.extend(config.current.ivshmem()?.map(|_| "ivshmem".to_owned()));
    Ok(all)
}

impl Ops {
    /// What speaks for and against migrating a VM of this node.
    pub async fn migrate_preconditions(&self, vmid: Vmid) -> Result<Preconditions, OpsError> {
        let guest = self.vm_at(vmid)?;
        let config = super::config::parse(&guest.config.value)?;
        let local = self.local_volumes(&config)?;
        let mut found = Preconditions {
            running: self.guests.state(vmid).await.is_some(),
            local_volumes: self.describe_local(&config, &local).await?,
            local_resources: shown_local(&config)?,
            mapped_resources: mapped(&config.current)?.into_iter().map(|m| (m.key, m.id)).collect(),
            ..Preconditions::default()
        };
        // HA moves no VM with disks of its node while it runs.
        let along = !self.ha_maintains(vmid)?;
        let others = self.guest_nodes().into_iter().filter(|n| n.name != self.me.name);
        let asked = others.map(|node| {
            let guest = &guest;
            async move { (self.obstacles(guest, &node, &StorageMap::default(), along).await, node.name) }
        });
        for (all, name) in futures_util::future::join_all(asked).await {
            let mut all = all?;
            all.why.extend(all.silent);
            match all.why {
                why if why.is_empty() => found.allowed_nodes.push(name),
                why => found.not_allowed.push((name, why)),
            }
        }
        Ok(found)
    }

    /// Whether all of a VM's volumes are on storages that other nodes have, too.
    pub(super) fn shares_all(&self, guest: &GuestAt) -> Result<bool, OpsError> {
        let config = super::config::parse(&guest.config.value)?;
        let mut all = true;
        for volume in config.all_volumes() {
            all &= self.storage(&volume.storage)?.shared;
        }
        Ok(all)
    }

    /// A storage that does not answer here, with one of a VM's disks: that its process has ended does not mean that its writes
    /// have.
    pub(super) fn silent_disk(&self, config: &VmConfig) -> Option<StorageId> {
        let report = self.status.node(&self.me.name)?;
        let needs = crate::ha_view::storages_of(config);
        let silent = |id: &StorageId| {
            let of_it = |s: &&StorageReport| s.storage == id.as_str();
            let loss = report.storages.iter().find(of_it).and_then(|s| s.loss.as_ref());
            loss.is_some_and(|loss| loss.fault == StorageFault::Silent)
        };
        needs.into_iter().find(|(id, how)| *how == Use::Disk && silent(id)).map(|(id, _)| id)
    }

    /// All that speaks against moving a VM of this node to another. One that does not run takes its volumes along; one that runs, if
    /// it is to.
    pub(super) async fn obstacles(
        &self,
        guest: &GuestAt,
        target: &NodeRecord,
        storages: &StorageMap,
        with_local_disks: bool,
    ) -> Result<Found, OpsError> {
        let config = super::config::parse(&guest.config.value)?;
        let process = self.guests.state(guest.vmid).await;
        let mut local = self.local_volumes(&config)?;
        let (mut carried, mut why) = (vec![], vec![]);
        if process.is_none() || with_local_disks {
            (carried, why) = self.carried(guest.vmid, &config, storages, process.is_some()).await?;
            let volumes: Vec<String> = config.all_volumes().iter().map(ToString::to_string).collect();
            local.retain(|v| !volumes.contains(v));
        }
        let how =
            if process.is_some() && !with_local_disks { " (with-local-disks takes disks along)" } else { "" };
        why.extend(local.iter().map(|v| format!("volume '{v}' is on a storage that is not shared{how}")));
        if process.is_some() {
            let devices = local_resources(&config)?.into_iter();
            why.extend(devices.map(|key| format!("{key} is a device of node '{}'", self.me.name)));
        }
        why.extend(self.host_obstacles(&config.current, process.as_ref())?);
        let request = FitsRequest {
            vmid: guest.vmid,
            config: VmConfig { current: config.current, ..VmConfig::default() }.to_string(),
            incoming: process.map(|p| p.as_incoming()),
            source: Some(self.me.name.clone()),
            carried: carried.clone(),
        };
        let mut silent = None;
        match call::<_, Vec<String>>(&*self.peers, target, FITS_CALL, &request, PATIENCE).await {
            Ok(theirs) => why.extend(theirs),
            Err(PeerError::Unreachable { node, why: how }) => {
                silent = Some(format!("node '{node}' does not answer ({how})"));
            }
            Err(e) => why.push(e.to_string()),
        }
        Ok(Found { why, silent, carried })
    }

    /// What on this node speaks against taking another node's guest.
    pub async fn fits(&self, rq: FitsRequest) -> Result<Vec<String>, OpsError> {
        let mut config = super::config::parse(&rq.config)?;
        let me = self.node_record(&self.me.name)?.value;
        let mut why = vec![];
        if me.state.is_lost() || *me.state.boot() != self.me.boot {
            why.push(format!("node '{}' has not re-entered the cluster yet", self.me.name));
        }
        if self.guests.state(rq.vmid).await.is_some() {
            why.push(format!("an old copy of it is still on node '{}'", self.me.name));
        }
        let mut volumes = vec![];
        for disk in config.current.disks()? {
            let DiskSource::Volume(volume) = &disk.source else { continue };
            if let Some(comes) = rq.carried.iter().find(|c| c.volume == *volume) {
                let (volume, format) = (volume.to_string(), comes.format.clone());
                volumes.push(ResolvedVolume { volume, path: "/".into(), format });
                continue;
            }
            match self.resolve_volume(volume).await {
                Ok(found) => volumes.push(found),
                Err(e) => {
                    why.push(format!("{} on node '{}': {e}", disk.key, self.me.name));
                    let (volume, format) = (volume.to_string(), "raw".to_owned());
                    volumes.push(ResolvedVolume { volume, path: "/".into(), format });
                }
            }
        }
        why.extend(self.no_room(&rq.carried).await);
        let runs_with = rq.incoming.as_ref().and_then(|incoming| incoming.cpu.as_deref());
        if let (Some(cpu), Some(source)) = (runs_with, &rq.source) {
            why.extend(self.cpu_obstacles(cpu, source)?);
        }
        let unknown = self.spell_out(&mut config.current, runs_with.is_some()).await;
        why.extend(unknown.into_iter().map(|e| format!("on node '{}': {e}", self.me.name)));
        // A stopped VM can wait on a node where it can't be started.
        if let Some(incoming) = rq.incoming {
            let launch = Launch {
                vmid: rq.vmid,
                epoch: Epoch(0),
                config: config.to_string(),
                volumes,
                recovered: false,
                incoming: Some(incoming),
            };
            let theirs = self.guests.obstacles(&launch).await.into_iter();
            why.extend(theirs.map(|e| format!("on node '{}': {e}", self.me.name)));
        }
        Ok(why)
    }

    /// What of this node's storages speaks against taking these volumes.
    pub(super) async fn no_room(&self, carried: &[Carried]) -> Vec<String> {
        let mut sizes: BTreeMap<&StorageId, u64> = BTreeMap::new();
        for volume in carried {
            // A raw image that a running guest's disk is mirrored to is written whole.
            let whole = volume.disk.as_ref().filter(|_| volume.format == "raw").map_or(0, |(_, size)| *size);
            *sizes.entry(&volume.storage).or_default() += volume.size.max(whole);
        }
        let mut why = vec![];
        for (id, size) in sizes {
            let room = async {
                if !self.storage(id)?.holds("images") {
                    return Err(OpsError::failed(format!(
                        "storage '{id}' does not support content-type 'images'"
                    )));
                }
                Ok(self.active(id).await?.space().await?.avail)
            };
            match room.await {
                Ok(avail) if avail < size => why.push(format!(
                    "storage '{id}' on node '{}' has {} MiB free, and {} MiB would come",
                    self.me.name,
                    avail >> 20,
                    size >> 20
                )),
                Ok(_) => {}
                Err(e) => why.push(format!("on node '{}': {e}", self.me.name)),
            }
        }
        why
    }

    /// What is known of volumes that other nodes do not have.
    async fn describe_local(
        &self,
        config: &VmConfig,
        local: &[String],
    ) -> Result<Vec<LocalVolume>, OpsError> {
        let mut disks = config.current.disks()?;
        disks.extend(config.current.unused()?);
        let mut out = vec![];
        for volid in local {
            let of = |d: &&Disk| match &d.source {
                DiskSource::Volume(v) => v.to_string() == *volid,
                DiskSource::Path(path) => path == volid,
                DiskSource::HostDrive => volid == "cdrom",
                DiskSource::Empty | DiskSource::New { .. } | DiskSource::NewCloudInit { .. } => false,
            };
            let disk = disks.iter().find(of);
            let volume = disk.and_then(Disk::volume);
            let measured = match volume {
                Some(volume) => self.volume_info(volume).await.ok().map(|info| info.size),
                None => None,
            };
            out.push(LocalVolume {
                volid: volid.clone(),
                cdrom: disk.is_some_and(|d| d.cdrom),
                is_unused: disk.is_some_and(|d| d.bus == Bus::Unused),
                size: measured.or_else(|| Some(disk?.size?.get())),
            });
        }
        Ok(out)
    }
}
