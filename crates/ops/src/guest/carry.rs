//! Volumes that go along with a guest, from its node to one that has them not.
//!
//! ```text
//!  source: ask for places ──▶ target: names them (loose), makes them ──▶ source sends each ──▶ one commit: the guest is the target's,
//!          its configuration names the new ones, the old ones are loose ──▶ the source frees them
//! ```
//!
//! They are sent byte for byte, as they lie in the storage, so that what an image keeps inside goes along. Holes are not sent.
//! What a guest that runs writes is only given room here, and is [`super::along`]'s.

use super::along::mirrored;
use super::images::{Pace, STALLED, answered, send_image, write_parts};
use super::loose;
use crate::peers::{Duplex, call};
use crate::store::GuestAt;
use crate::{Ops, OpsError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use stead_conf::Revision;
use stead_driver::storage::{Content, NewVolume, VolumeInfo};
use stead_guest::carried::{self, StorageMap};
use stead_model::vmconfig::VmConfig;
use stead_model::{Epoch, NodeName, NodeRecord, StorageId, Vmid, VolumeId, cloudinit};
use stead_tasks::TaskContext;

/// Asks a node to make room for volumes.
pub const ROOM_CALL: &str = "guest/room";
/// Tells a node that they do not come.
pub const NO_ROOM_CALL: &str = "guest/no-room";
/// What the stream of a volume is called: guest and place in the list follow.
pub const STREAM: &str = "guest/volume-stream/";

/// How long a node may take to make room: storages that answer slowly, and blocks that are written.
const ROOM: Duration = Duration::from_secs(120);
/// What an image is made with, before it is what was sent.
pub(super) const SMALL: u64 = 1 << 20;

/// A volume that goes along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// As it is called at the source.
    pub volume: VolumeId,
    /// Where to.
    pub storage: StorageId,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Bytes that it takes in its storage.
    pub size: u64,
    /// The option of the running guest's disk that it is, and the disk's size in bytes: what the guest sees of it goes along, and not
    /// the image.
    #[serde(default)]
    pub disk: Option<(String, u64)>,
}

impl Carried {
    /// Tells a task how many bytes of it were sent.
    pub(super) fn tell(&self, cx: &TaskContext, sent: u64) {
        cx.progress(sent as f64 / self.size.max(1) as f64);
        cx.log(format!("{} of {} MiB", sent >> 20, self.size >> 20));
    }
}

/// Asks for room.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoomRequest {
    /// The guest.
    pub vmid: Vmid,
    /// The ownership that it has.
    pub epoch: Epoch,
    /// Who asks.
    pub source: NodeName,
    /// Its configuration.
    pub config: String,
    /// What goes along.
    pub volumes: Vec<Carried>,
}

/// Where they go, in the same order, and the record that names them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Room {
    volumes: Vec<VolumeId>,
    revision: Revision,
}

/// What was carried: the hand-over says it.
#[derive(Debug)]
pub(super) struct HandedOver {
    /// From the old names to the new.
    pub names: BTreeMap<VolumeId, VolumeId>,
    /// The record that names the new ones.
    pub revision: Revision,
}

impl HandedOver {
    /// The old ones.
    pub fn left(&self) -> Vec<VolumeId> {
        self.names.keys().cloned().collect()
    }
}

fn failed(what: &str, path: &Path) -> impl Fn(std::io::Error) -> OpsError {
    move |e| OpsError::failed(format!("could not {what} '{}': {e}", path.display()))
}

impl Ops {
    /// The volumes that go along with a VM, and what is to be said of those that can't.
    pub(super) async fn carried(
        &self,
        vmid: Vmid,
        config: &VmConfig,
        storages: &StorageMap,
        runs: bool,
    ) -> Result<(Vec<Carried>, Vec<String>), OpsError> {
        let (mut all, mut why) = (vec![], vec![]);
        for volume in config.all_volumes() {
            if self.storage(&volume.storage)?.shared {
                continue;
            }
            let sections =
                [&config.current, &config.pending.set].into_iter().chain(config.snapshots.values());
            if sections.into_iter().any(|s| carried::is_cd(s, &volume)) && !cloudinit::is_drive(&volume) {
                why.push(format!("the CD '{volume}' is on a storage that is not shared: take it out"));
                continue;
            }
            let info = match self.own_image(vmid, &volume).await {
                Ok(info) => info,
                Err(e) => {
                    why.push(format!("{e}; and its storage is not shared"));
                    continue;
                }
            };
            let disk = match if runs { mirrored(config, &volume) } else { Ok(None) } {
                Ok(disk) => disk,
                Err(e) => {
                    why.push(e.to_string());
                    continue;
                }
            };
            let storage = storages.of(&volume.storage);
            let disk = disk.map(|key| (key, info.size));
            all.push(Carried { volume, storage, format: info.format, size: info.used, disk });
        }
        Ok((all, why))
    }

    /// What is known of a VM's volume that can be sent: its own, and whole by itself.
    pub(super) async fn own_image(&self, vmid: Vmid, volume: &VolumeId) -> Result<VolumeInfo, OpsError> {
        let info = self.volume_info(volume).await?;
        if info.content != Content::Images || info.vmid != Some(vmid) {
            return Err(OpsError::failed(format!("volume '{volume}' is not the VM's own")));
        }
        if info.parent.is_some() || volume.is_base() {
            return Err(OpsError::failed(format!("volume '{volume}' is a template's disk, or built on one")));
        }
        Ok(info)
    }

    /// Sends the volumes that go along with a VM to where it goes, by those of its links that streams go by.
    pub(super) async fn carry(
        &self,
        cx: &TaskContext,
        guest: &GuestAt,
        (target, far): (&NodeRecord, &NodeRecord),
        volumes: &[Carried],
        limit: Option<u64>,
    ) -> Result<HandedOver, OpsError> {
        let request = RoomRequest {
            vmid: guest.vmid,
            epoch: guest.own.value.epoch,
            source: self.me.name.clone(),
            config: guest.config.value.clone(),
            volumes: volumes.to_vec(),
        };
        let asked = call::<_, Room>(&*self.peers, target, ROOM_CALL, &request, ROOM);
        let room = cx.or_cancelled(asked).await.map_err(|e| OpsError::failed(e.to_string()))??;
        let mut names = BTreeMap::new();
        for (n, (from, to)) in volumes.iter().zip(&room.volumes).enumerate() {
            names.insert(from.volume.clone(), to.clone());
            // It is written by the guest, and mirrored.
            if from.disk.is_some() {
                continue;
            }
            cx.log(format!(
                "sending '{}' to '{to}' on node '{}': {} MiB",
                from.volume,
                target.name,
                from.size >> 20
            ));
            let sent = self.send_volume(cx, guest.vmid, far, n, from, limit);
            let bytes = cx.or_cancelled(sent).await.map_err(|e| OpsError::failed(e.to_string()))??;
            cx.log(format!("'{}' is there: {} MiB were sent", from.volume, bytes >> 20));
        }
        Ok(HandedOver { names, revision: room.revision })
    }

    /// Sends one volume; says how much of it that was.
    async fn send_volume(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        target: &NodeRecord,
        n: usize,
        from: &Carried,
        limit: Option<u64>,
    ) -> Result<u64, OpsError> {
        let path = self.resolve_volume(&from.volume).await?.path;
        let far = self.peers.open(target, &format!("{STREAM}{vmid}/{n}")).await?;
        let names = (from.volume.to_string(), format!("node '{}'", target.name));
        let pace = Pace { limit, patience: STALLED };
        send_image(far, &path, (&names.0, &names.1), pace, |sent| from.tell(cx, sent)).await
    }

    /// Tells a target that nothing comes. One that does not hear it finds out.
    pub(super) async fn give_up_room(&self, vmid: Vmid, target: &NodeRecord) {
        let told = call::<_, ()>(&*self.peers, target, NO_ROOM_CALL, &vmid, Duration::from_secs(30)).await;
        if let Err(e) = told {
            tracing::info!("guest {vmid}: node '{}' was not told to free what it has made: {e}", target.name);
        }
    }

    /// Makes volumes for a guest of another node.
    pub async fn make_room(&self, rq: RoomRequest) -> Result<Room, OpsError> {
        let _lock = self.guest_locks.lock(rq.vmid).await?;
        self.conf.barrier().await?;
        let own = self.guest_at(rq.vmid)?.own.value;
        if own.owner != rq.source || own.epoch != rq.epoch {
            return Err(OpsError::failed(format!(
                "guest {} belongs to '{}' under epoch {}, not to '{}' under epoch {}",
                rq.vmid, own.owner, own.epoch, rq.source, rq.epoch
            )));
        }
        if self.guests.state(rq.vmid).await.is_some() {
            return Err(OpsError::failed(format!("an old copy of it is still on node '{}'", self.me.name)));
        }
        self.free_loose(rq.vmid).await?;
        let mut volumes = vec![];
        for wanted in &rq.volumes {
            self.active(&wanted.storage).await?;
            volumes.push(new_name(rq.vmid, wanted)?);
        }
        let revision = self.name_loose(rq.vmid, Some(&rq.source), &volumes).await?;
        for (volume, wanted) in volumes.iter().zip(&rq.volumes) {
            if let Err(e) = self.make_empty(rq.vmid, volume, wanted).await {
                if let Err(left) = self.free_loose(rq.vmid).await {
                    tracing::warn!("{left}");
                }
                return Err(OpsError::failed(format!("no room for '{}': {e}", wanted.volume)));
            }
        }
        Ok(Room { volumes, revision })
    }

    /// The volume is there then, of no content.
    async fn make_empty(&self, vmid: Vmid, volume: &VolumeId, wanted: &Carried) -> Result<(), OpsError> {
        let file = volume.name.rsplit('/').next().unwrap_or(&volume.name).to_owned();
        let size = wanted.disk.as_ref().map_or(SMALL, |(_, size)| *size);
        let new = NewVolume { vmid, name: Some(file), format: Some(wanted.format.clone()), size };
        let made = self.alloc(&volume.storage, &new).await?;
        if wanted.disk.is_some() && made.size != size {
            return Err(OpsError::failed(format!(
                "storage '{}' makes it {} bytes large, and the running VM's disk has {size}: stop the VM, or choose another storage",
                volume.storage, made.size
            )));
        }
        Ok(())
    }

    /// The source has given up: what was made for it goes, unless it is the guest's.
    pub async fn free_room(&self, from: &NodeName, vmid: Vmid) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        self.conf.barrier().await?;
        let found = self.conf.view(|t| loose::of(t, &self.me.name, vmid))?;
        match found {
            Some(found) if found.value.source.as_ref() == Some(from) => self.free_loose(vmid).await,
            _ => Ok(()),
        }
    }

    /// Takes the stream of a volume that this node has made room for, and says how it went.
    pub async fn take_volume(&self, from: &NodeName, which: &str, stream: impl Duplex) {
        let kept = answered(stream, async |stream| self.write_volume(from, which, stream).await).await;
        if let Err(e) = kept {
            tracing::warn!("volume {which} from node '{from}': {e}");
        }
    }

    async fn write_volume(
        &self,
        from: &NodeName,
        which: &str,
        stream: &mut impl Duplex,
    ) -> Result<(), OpsError> {
        let unknown = || OpsError::failed(format!("node '{}' has made no room for {which}", self.me.name));
        let (vmid, n) = which.split_once('/').ok_or_else(unknown)?;
        let (vmid, n): (Vmid, usize) =
            (vmid.parse().map_err(|_| unknown())?, n.parse().map_err(|_| unknown())?);
        let _lock = self.guest_locks.lock(vmid).await?;
        let found = self.conf.view(|t| loose::of(t, &self.me.name, vmid))?.ok_or_else(unknown)?.value;
        if found.source.as_ref() != Some(from) || found.claimed {
            return Err(unknown());
        }
        let path = self.resolve_volume(found.volumes.get(n).ok_or_else(unknown)?).await?.path;
        write_parts(&path, stream).await.map_err(failed("write", &path))
    }
}

/// How a volume that goes along is called where it goes: as no other is, on no node and at no time. What is freed as nobody's by this
/// name is nothing else.
fn new_name(vmid: Vmid, wanted: &Carried) -> Result<VolumeId, OpsError> {
    let (folder, file) = wanted.volume.name.rsplit_once('/').unwrap_or(("", &wanted.volume.name));
    // It goes by its name, and is made anew whenever it is not what the options say.
    if cloudinit::is_drive(&wanted.volume) {
        if !file.starts_with(&format!("vm-{vmid}-cloudinit.")) {
            return Err(OpsError::failed(format!("'{}' is another VM's", wanted.volume)));
        }
        return Ok(VolumeId { storage: wanted.storage.clone(), name: wanted.volume.name.clone() });
    }
    let (format, mark) = (&wanted.format, rand::random::<u64>());
    let name = format!("{folder}/vm-{vmid}-disk-{mark:016x}.{format}");
    let name = name.trim_start_matches('/').to_owned();
    Ok(VolumeId { storage: wanted.storage.clone(), name })
}
