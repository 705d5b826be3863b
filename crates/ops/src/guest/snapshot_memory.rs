//! The memory of a VM in its snapshots: written while it runs on, and read again when it goes back.
//!
//! The VM stands from the moment of its disks' snapshot until the state of its devices is written, tens of milliseconds; its memory is
//! written behind its back, each page as it was. It is continued under its mutex, and by the fence process where that guards
//! it: one that has lost its lease meanwhile stays paused. Who cancels the writing, as the fence process does, ends the snapshot.

use super::hook::{BRIEF, LIMIT, Phase};
use crate::store::GuestAt;
use crate::{Ops, OpsError};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use stead_driver::guest::{Incoming, Launch, MigrationPhase, RunState, SavedState};
use stead_driver::storage::{NewVolume, StorageError};
use stead_guest::snapshots::{self, Held, Memory};
use stead_model::vmconfig::VmConfig;
use stead_model::{StorageId, Vmid, VolumeId};
use stead_tasks::TaskContext;
use tokio::fs::File;

/// What is written beside the memory at most: the state of devices, a graphics card's memory among it.
const DEVICES: u64 = 1 << 30;
/// The option that says where memory is kept, else beside a disk.
const STORAGE: &str = "vmstatestorage";
/// How often a process that reads its memory is looked at, should nothing be heard of it.
const LOOK: Duration = Duration::from_secs(1);
/// Between two times at which what was written is sent to disk.
const SYNC: Duration = Duration::from_millis(100);

/// A volume that is to be made for memory.
#[derive(Debug)]
pub(super) struct MemoryRoom {
    storage: StorageId,
    new: NewVolume,
}

impl Ops {
    /// Has the configuration say where a snapshot that is being taken keeps the memory of a VM: the volume is to be made by this.
    pub(super) async fn name_memory(
        &self,
        vmid: Vmid,
        config: &mut VmConfig,
        disks: &[Held],
        name: &str,
    ) -> Result<MemoryRoom, OpsError> {
        let (memory, room) = self.room_for_memory(vmid, config, disks, None, name).await?;
        snapshots::keep_memory(config, name, &memory)?;
        Ok(room)
    }

    /// Where the memory of a VM that runs will be: on this storage, on that of its options, or else beside one of its disks. A
    /// configuration names the volume before it is made, so that it is known whose it is, whoever dies when.
    pub(super) async fn room_for_memory(
        &self,
        vmid: Vmid,
        config: &VmConfig,
        disks: &[Held],
        storage: Option<StorageId>,
        name: &str,
    ) -> Result<(Memory, MemoryRoom), OpsError> {
        let process = self.running(vmid).await?;
        let storage = self.memory_storage(config, disks, storage)?;
        self.check_holds_disks(&storage)?;
        let file = format!("vm-{vmid}-state-{name}.raw");
        let driver = self.active(&storage).await?;
        // In the same folder as its disks.
        let disk = driver.next_name(vmid, Some("raw"), None, &[]).await?.name;
        let name =
            disk.rsplit_once('/').map_or_else(|| file.clone(), |(folder, _)| format!("{folder}/{file}"));
        let volume = VolumeId { storage, name };
        // What has that name is another's, and would be taken for it.
        if !matches!(driver.info(&volume.name).await, Err(StorageError::NoVolume(_))) {
            let why = format!("there may be a volume '{volume}' already, where its memory would go");
            return Err(OpsError::failed(why));
        }
        let size = (config.current.memory()?.0 << 20) + DEVICES;
        let new = NewVolume { vmid, name: Some(file), format: Some("raw".to_owned()), size };
        let room = MemoryRoom { storage: volume.storage.clone(), new };
        Ok((Memory { volume, machine: process.machine, accel: process.accel, cpu: process.model }, room))
    }

    /// Makes the volume that a configuration names by now.
    pub(super) async fn make_memory_room(&self, room: &MemoryRoom) -> Result<(), OpsError> {
        self.alloc(&room.storage, &room.new).await.map(drop)
    }

    /// Where the memory of a VM goes.
    pub(super) fn memory_storage(
        &self,
        config: &VmConfig,
        disks: &[Held],
        storage: Option<StorageId>,
    ) -> Result<StorageId, OpsError> {
        let shared = |id: &StorageId| self.storage(id).is_ok_and(|s| s.shared);
        match (storage, config.current.get(STORAGE)) {
            (Some(storage), _) => Ok(storage),
            (None, Some(id)) => {
                id.parse().map_err(|e: stead_model::IdError| OpsError::invalid(STORAGE, e.to_string()))
            }
            (None, None) => Ok(snapshots::room_for_memory(disks, shared)?),
        }
    }

    /// Has a VM's disks and its memory kept as they are at one moment.
    pub(super) async fn take_with_memory(
        &self,
        cx: &TaskContext,
        guest: &GuestAt,
        disks: &[String],
        name: &str,
        memory: &Memory,
    ) -> Result<(), OpsError> {
        let vmid = guest.vmid;
        self.is_whole(vmid).await?;
        let to = self.resolve_volume(&memory.volume).await?.path;
        let begun = self.guests.snapshot_with_memory(vmid, disks, name, &to).await;
        let goes_on = self.go_on(guest).await;
        let written = match (begun, goes_on) {
            (Ok(()), Ok(())) => self.follow_memory(cx, vmid, &to).await,
            (Err(e), Ok(())) => Err(e.into()),
            (_, Err(e)) => {
                Err(OpsError::failed(format!("VM {vmid} is paused and could not be continued: {e}")))
            }
        };
        if written.is_err()
            && let Err(e) = self.guests.cancel_migration(vmid).await
        {
            tracing::warn!("guest {vmid}: the writing of its memory could not be ended: {e}");
        }
        written
    }

    /// Continues a VM that stands for a snapshot.
    pub(super) async fn go_on(&self, guest: &GuestAt) -> Result<(), OpsError> {
        match self.guests.state(guest.vmid).await.map(|p| p.state) {
            Some(RunState::Paused) => {
                self.resume_now(guest).await?;
                // The fence process may have taken the pause for its user's, and left it so once.
                match self.guests.state(guest.vmid).await.map(|p| p.state) {
                    Some(RunState::Paused) => self.resume_now(guest).await,
                    _ => Ok(()),
                }
            }
            Some(RunState::Running) => Ok(()),
            Some(state) => Err(OpsError::failed(format!("it is {state:?}"))),
            None => Err(OpsError::failed("it has ended")),
        }
    }

    /// Waits until it is written, and on disk.
    pub(super) async fn follow_memory(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        to: &Path,
    ) -> Result<(), OpsError> {
        let not_there =
            |e| OpsError::failed(format!("its memory may not be on disk ({}): {e}", to.display()));
        // Both from the begin, and two: the kernel tells an error of writing once to each that has the file open by then, and the one at
        // the end must hear of it whatever becomes of the other.
        let file = File::open(to).await.map_err(not_there)?;
        let aside = File::open(to).await.map_err(not_there)?;
        let mut failing = pin!(sync_meanwhile(aside));
        let mut seen = MigrationPhase::None;
        loop {
            let now = tokio::select! {
                now = self.guests.migration_changed(vmid, seen) => now?,
                e = &mut failing => return Err(not_there(e)),
                () = cx.cancelled() => return Err(OpsError::failed("cancelled")),
            };
            seen = now.phase;
            match seen {
                MigrationPhase::Completed => {
                    file.sync_all().await.map_err(not_there)?;
                    cx.log(format!("memory written: {} MiB in {} ms", now.transferred >> 20, now.total_ms));
                    return Ok(());
                }
                MigrationPhase::Active
                | MigrationPhase::Held
                | MigrationPhase::Switchover
                | MigrationPhase::Fetching
                | MigrationPhase::Broken => {
                    cx.progress(now.transferred as f64 / now.total.max(1) as f64);
                }
                MigrationPhase::None | MigrationPhase::Failed | MigrationPhase::Cancelled => {
                    let why = now.error.unwrap_or_else(|| "somebody has cancelled it".to_owned());
                    return Err(OpsError::failed(format!("its memory could not be written: {why}")));
                }
            }
        }
    }

    /// Ends the writing of memory that a dead task has left, and continues the VM, which ran.
    pub(super) async fn end_memory(&self, guest: &GuestAt) -> Result<(), OpsError> {
        if self.guests.state(guest.vmid).await.is_none() {
            return Ok(());
        }
        self.guests.cancel_migration(guest.vmid).await?;
        self.go_on(guest).await
    }

    /// Starts a VM with the memory that it had.
    pub(super) async fn start_with_memory(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        memory: Memory,
    ) -> Result<(), OpsError> {
        let guest = self.vm_at(vmid)?;
        let launch = self.launch_with_memory(&guest, &memory, false).await?;
        if self.begin_start(cx, &guest, &launch, LIMIT).await? {
            // HA has come to it in this moment: it starts it as it does.
            self.undo_start(cx, vmid).await;
            return Err(OpsError::failed(format!(
                "VM {vmid} is under HA now, which starts it without its memory"
            )));
        }
        cx.log(format!("starting VM {vmid} with the memory that it had"));
        let started = async {
            self.launch_and_load(cx, launch).await?;
            Ok::<_, OpsError>(self.guests.resume(vmid).await?)
        };
        if let Err(e) = started.await {
            self.undo_start(cx, vmid).await;
            return Err(OpsError::failed(format!(
                "VM {vmid} has gone back, but could not go on with the memory that it had: {e}. It can be started without it"
            )));
        }
        self.hook_or_warn(cx, &guest, Phase::PostStart, BRIEF).await;
        Ok(())
    }

    /// What makes a process that reads its memory. `mapped`: as [`SavedState::mapped`].
    pub(super) async fn launch_with_memory(
        &self,
        guest: &GuestAt,
        memory: &Memory,
        mapped: bool,
    ) -> Result<Launch, OpsError> {
        let path = self.resolve_volume(&memory.volume).await?.path;
        let mut incoming = Incoming::stream(memory.machine.clone(), memory.accel.clone());
        incoming.cpu.clone_from(&memory.cpu);
        incoming.state = Some(SavedState { path, mapped });
        self.launch_spec(guest, Some(incoming)).await
    }

    /// Makes a process and waits until it has read its memory. Its CPUs stand then.
    pub(super) async fn launch_and_load(&self, cx: &TaskContext, launch: Launch) -> Result<(), OpsError> {
        let vmid = launch.vmid;
        self.guests.launch(launch).await?;
        let loaded = cx.or_cancelled(self.await_loaded(vmid)).await;
        loaded.map_err(|e| OpsError::failed(e.to_string()))?
    }

    async fn await_loaded(&self, vmid: Vmid) -> Result<(), OpsError> {
        let mut events = self.guests.events();
        loop {
            match self.guests.state(vmid).await.map(|p| p.state) {
                Some(RunState::Received) => return Ok(()),
                // While it reads it may not answer, and neither does one that ends.
                Some(RunState::Inmigrate | RunState::Unresponsive) => {}
                Some(state) => return Err(OpsError::failed(format!("its process is {state:?}"))),
                None => return Err(OpsError::failed("its process could not read it, and has ended")),
            }
            // Whatever is heard, and nothing, both ask again.
            let _ = tokio::time::timeout(LOOK, events.recv()).await;
        }
    }
}

/// Has what is written so far go to disk, over and over, while more is written; ends with the first error. Whoever waits at the end for
/// all to be on disk - a VM that moves by way of a storage stands meanwhile - waits for the rest alone.
async fn sync_meanwhile(file: File) -> std::io::Error {
    loop {
        tokio::time::sleep(SYNC).await;
        if let Err(e) = file.sync_data().await {
            return e;
        }
    }
}
