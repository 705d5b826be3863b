//! Disks that go along with a VM while it runs.
//!
//! ```text
//!  room on the target, named (loose) ─▶ what the VM does not write is sent ─▶ the target's copy waits, and lends its disks
//!   ─▶ mirrors, over the cluster's TLS ─▶ in step ─▶ memory ─▶ the CPUs stand ─▶ mirrors end, lending ends ─▶ the rest
//!   ─▶ one commit: the VM is the target's, its configuration names the new disks, the old ones are loose ─▶ they are freed
//! ```
//!
//! From the moment when a mirror is in step the VM hears of no write that has not reached both nodes. Until the hand-over is committed
//! its own disks are whole, so whatever fails leaves it where it was, and the target's room is freed by whoever finds it.

use super::carry::{Carried, HandedOver};
use super::copies::Telling;
use super::migrate::Source;
use super::tunnel::Tunnel;
use crate::peers::call;
use crate::{Ops, OpsError};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use stead_driver::guest::{CopyKind, CopyPhase, CopyTo, DiskCopy};
use stead_guest::carried;
use stead_guest::migration::Event;
use stead_model::vmconfig::VmConfig;
use stead_model::{Vmid, VolumeId};

/// What the stream to a disk of a waiting copy is called: the guest follows.
pub const STREAM: &str = "guest/disk-stream/";
/// Tells a target that its disks hold all that the source's hold.
pub const DISKS_SENT_CALL: &str = "guest/disks-sent";

/// How long it may take until both nodes' disks are known to hold the same. The VM stands meanwhile.
pub(super) const SETTLE: Duration = Duration::from_secs(20);

/// What goes along.
pub(super) struct Along {
    /// What the hand-over says of it.
    pub handed: HandedOver,
    /// The disks that are mirrored.
    disks: Vec<DiskCopy>,
    /// Bytes that they have.
    size: u64,
    /// Where they seem to be, and what carries them to the target.
    socket: PathBuf,
    tunnel: Mutex<Option<Tunnel>>,
}

impl Along {
    /// The options of the disks that are mirrored.
    pub(super) fn keys(&self) -> Vec<String> {
        self.disks.iter().map(|d| d.disk.clone()).collect()
    }

    /// Cuts the connections to the target's disks: whatever waits for an answer of a target that hangs has failed then.
    fn cut(&self) {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Source<'_> {
    /// A live move with volumes that the target has not.
    pub(super) async fn live_along(mut self, carried: &[Carried]) -> Result<(), OpsError> {
        let vmid = self.vmid();
        let limit = self.bytes_per_second;
        let begun = async {
            let handed =
                self.ops.carry(self.cx, &self.guest, (&self.target, &self.far), carried, limit).await?;
            self.mirrored(carried, handed)
        };
        let done = match begun.await {
            Ok(along) => {
                self.along = Some(along);
                let done = self.live().await;
                self.along.iter().for_each(Along::cut);
                done
            }
            Err(e) => {
                self.ops.clear_lock(vmid).await;
                Err(e)
            }
        };
        if done.is_err() {
            // Which frees nothing that was handed over.
            self.ops.give_up_room(vmid, &self.target).await;
        }
        if let Err(e) = self.ops.free_loose(vmid).await {
            self.cx.warn(e.to_string());
        }
        done
    }

    fn mirrored(&self, carried: &[Carried], handed: HandedOver) -> Result<Along, OpsError> {
        let socket = self.ops.me.dir.join("run").join(format!("nbd-{}.sock", self.vmid()));
        let config = super::config::parse(&self.guest.config.value)?;
        let disks: Vec<DiskCopy> = carried
            .iter()
            .filter_map(|c| c.disk.as_ref())
            .map(|(key, _)| DiskCopy {
                disk: key.clone(),
                value: config.current.get(key).unwrap_or_default().to_owned(),
                to: CopyTo::Lent(socket.clone()),
            })
            .collect();
        let size = carried.iter().filter_map(|c| c.disk.as_ref()).map(|(_, size)| size).sum();
        Ok(Along { handed, disks, size, socket, tunnel: Mutex::default() })
    }

    /// The VM's configuration as the target has it.
    pub(super) fn config_there(&self) -> Result<String, OpsError> {
        let Some(along) = &self.along else { return Ok(self.guest.config.value.clone()) };
        let mut config = super::config::parse(&self.guest.config.value)?;
        carried::rename(&mut config, &along.handed.names)?;
        Ok(config.to_string())
    }

    /// Mirrors the disks, until they are in step.
    pub(super) async fn mirror_disks(&self) -> Event {
        let Some(along) = &self.along else { return Event::DisksInStep };
        if along.disks.is_empty() {
            return Event::DisksInStep;
        }
        let number = u64::try_from(along.disks.len()).unwrap_or(1);
        let limit = self.bytes_per_second.map(|rate| (rate / number).max(1));
        let mirrored = async {
            let tunnel = self.tunnel(&along.socket, &format!("{STREAM}{}", self.vmid())).await?;
            *along.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
            self.cx.log(format!("mirroring {} to node '{}'", along.keys().join(", "), self.target.name));
            self.ops.guests.copy_disks(self.vmid(), &along.disks, CopyKind::Mirror, limit).await?;
            let tell = Telling::new(self.cx, Some(along.size));
            self.ops.follow_copies(self.cx, self.vmid(), CopyPhase::InStep, &tell).await
        };
        let done = mirrored.await;
        if done.is_err() {
            along.cut();
        }
        match done {
            Ok(()) => Event::DisksInStep,
            Err(_) if self.cx.is_cancelled() => Event::CancelRequested,
            Err(e) => Event::Failed(e.to_string()),
        }
    }

    /// Ends with the first mirror that fails, and says why.
    pub(super) async fn mirrors_fail(&self) -> String {
        match &self.along {
            Some(along) if !along.disks.is_empty() => self.ops.mirrors_fail(self.vmid()).await,
            _ => std::future::pending().await,
        }
    }

    /// Makes sure, the VM standing, that both nodes' disks hold the same, and that the target's belong to its copy alone.
    pub(super) async fn settle_disks(&self) -> Event {
        let Some(along) = &self.along else { return Event::DisksSettled };
        let begun = std::time::Instant::now();
        let settled = async {
            if along.disks.is_empty() {
                return Ok(());
            }
            self.ops.guests.end_mirrors(self.vmid()).await?;
            let copy = self.copy_there();
            call::<_, ()>(&*self.ops.peers, &self.target, DISKS_SENT_CALL, &copy, SETTLE).await?;
            Ok::<_, OpsError>(())
        };
        match tokio::time::timeout(SETTLE, settled).await {
            Ok(Ok(())) => {
                self.cx.log(format!(
                    "the disks are the same on both nodes ({} ms)",
                    begun.elapsed().as_millis()
                ));
                Event::DisksSettled
            }
            Ok(Err(e)) => {
                along.cut();
                Event::Failed(e.to_string())
            }
            Err(_) => {
                along.cut();
                Event::Failed(format!(
                    "its disks were not the same on both nodes within {} s of its standing still",
                    SETTLE.as_secs()
                ))
            }
        }
    }

    /// Ends mirrors of a VM that stays.
    pub(super) async fn end_mirrors(&self) {
        if let Some(along) = &self.along {
            along.cut();
        }
        if let Err(e) = self.ops.guests.end_copies(self.vmid()).await {
            self.is_stuck.store(true, Ordering::Relaxed);
            self.cx.warn(format!("copies of its disks may still be under way: {e}"));
        }
    }
}

impl Ops {
    /// Ends with the first of a VM's mirrors that fails, and says why. It has some, in step.
    pub(super) async fn mirrors_fail(&self, vmid: Vmid) -> String {
        loop {
            match self.guests.copies_changed(vmid, CopyPhase::InStep).await {
                Ok(now) if matches!(now.phase, CopyPhase::InStep | CopyPhase::Active) => {}
                Ok(now) => {
                    let why = now.error.unwrap_or_else(|| "somebody has ended it".to_owned());
                    return format!("mirroring its disks has failed: {why}");
                }
                // It is asked for its memory, too, which says what is wrong with it.
                Err(_) => return std::future::pending().await,
            }
        }
    }
}

/// The option of the disk that a volume of a running VM is, if the VM writes it: what it sees of it is mirrored. An error where more would
/// have to go along.
pub(super) fn mirrored(config: &VmConfig, volume: &VolumeId) -> Result<Option<String>, OpsError> {
    let disk = carried::written(&config.current, volume)?;
    if let Some(key) = &disk
        && config.snapshots.values().any(|s| s.volumes().iter().any(|(_, v)| v.is_same(volume)))
    {
        return Err(OpsError::failed(format!(
            "{key} ('{volume}') keeps snapshots in its image, which do not go along while the VM runs: remove them, or stop it"
        )));
    }
    Ok(disk)
}
