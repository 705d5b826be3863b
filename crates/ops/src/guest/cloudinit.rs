//! A VM's cloud-init drive: a small CD whose content is made of the VM's options.
//!
//! ```text
//! [special:cloudinit] says X ──▶ nothing ──▶ the volume gets its content ──▶ it says Y
//! ```
//!
//! The drive is written before a start that finds that it holds something else than the options say, and when somebody
//! asks for it. What it holds is said in the configuration, and taken back before it is written: whoever dies in
//! between leaves a drive of which nothing is said, and the next start writes it. A start that finds all as it was needs neither the
//! program that makes images nor a storage that can be written: so a recovery does not depend on them.

use super::config::{Made, parse};
use crate::store::GuestAt;
use crate::{Actor, Ops, OpsError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use stead_driver::storage::{Content, NewVolume};
use stead_model::cloudinit::{self, Part, SECTION, Seed, Told, options};
use stead_model::size::Size;
use stead_model::vmconfig::{Change, Disk, Settings, VmConfig};
use stead_model::{StorageId, Vmid, VolumeId};
use stead_tasks::TaskContext;
use tokio::io::AsyncReadExt;

/// What a drive has room for.
const SIZE: u64 = 4 << 20;
/// The largest snippet: four of them fit, with what lies around them.
const SNIPPET: u64 = 512 << 10;

/// The option that is the drive, and its volume.
fn drive_of(settings: &Settings) -> Result<Option<(String, VolumeId)>, OpsError> {
    let disks = settings.disks()?;
    Ok(disks.into_iter().find_map(|disk| disk.cloudinit().cloned().map(|volume| (disk.key, volume))))
}

/// Whether the drive was made of these options, as far as they can tell without files of users.
fn is_of(held: Option<&Settings>, current: &Settings) -> bool {
    let same = |told: Told| told.pending.is_none() && !told.delete;
    held.is_some() && cloudinit::compare(held, current).into_iter().all(same)
}

/// Refuses a password for a guest that could not use it.
pub(crate) fn check_password(changes: &[Change], settings: &Settings) -> Result<(), OpsError> {
    let sets = changes.iter().any(|c| matches!(c, Change::Set { key, .. } if key == "cipassword"));
    if sets && settings.ostype()?.is_windows() {
        return Err(OpsError::invalid("cipassword", options::NO_PASSWORD));
    }
    Ok(())
}

/// A password as it is kept. One that is there already, as a hash of the same, stays: the guest need not be told again.
pub(crate) async fn hashed(password: &str, there: Option<&str>) -> Result<String, OpsError> {
    if options::is_hashed(password) {
        return Ok(password.to_owned());
    }
    let (password, there) = (password.to_owned(), there.map(str::to_owned));
    let work = move || match there.filter(|hash| stead_access::secret::is_crypt_of(&password, hash)) {
        Some(hash) => Ok(hash),
        None => stead_access::secret::crypt(&password, &rand::random()),
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| OpsError::failed(e.to_string()))?;
    done.map_err(|e| OpsError::invalid("cipassword", e.to_string()))
}

impl Ops {
    /// The volume of a new drive: made, or the one that is there. What it holds is written before a start.
    pub(crate) async fn allot_drive(
        &self,
        vmid: Vmid,
        config: &VmConfig,
        disk: &Disk,
        storage: &StorageId,
        made: &mut Made,
    ) -> Result<String, OpsError> {
        let mut others = vec![];
        for settings in [&config.current, &config.pending.set] {
            others.extend(drive_of(settings)?.filter(|(key, _)| *key != disk.key).map(|(key, _)| key));
        }
        others.extend(made.volumes.iter().filter(|v| cloudinit::is_drive(v)).map(ToString::to_string));
        if let Some(other) = others.first() {
            let why =
                format!("a VM has one cloud-init drive at most, and '{other}' is that: take it out first");
            return Err(OpsError::invalid(&disk.key, why));
        }
        let there = self.volumes(storage, Some(Content::Images), Some(vmid)).await?;
        let info = match there.into_iter().find(|info| cloudinit::is_drive(&info.volid)) {
            Some(info) => info,
            None => {
                let name = Some(format!("vm-{vmid}-cloudinit"));
                let new = NewVolume { vmid, name, format: disk.format.clone(), size: SIZE };
                let info = self.alloc(storage, &new).await?;
                made.volumes.push(info.volid.clone());
                info
            }
        };
        Ok(disk.with_volume(&info.volid, Some(Size::bytes(info.size)))?)
    }

    /// Before a start: writes the drive if it holds something else than the options say.
    pub(crate) async fn ready_drive(&self, cx: &TaskContext, guest: GuestAt) -> Result<GuestAt, OpsError> {
        let config = parse(&guest.config.value)?;
        let Some((_, volume)) = drive_of(&config.current)? else { return Ok(guest) };
        let held = config.special.get(SECTION);
        let seed = match self.seed(guest.vmid, &config.current).await {
            Ok(seed) => seed,
            Err(e) if is_of(held, &config.current) => {
                cx.warn(format!("the cloud-init drive stays as it is: {e}"));
                return Ok(guest);
            }
            Err(e) => return Err(e),
        };
        if cloudinit::holds(held, &seed.digest(&volume)) {
            return Ok(guest);
        }
        cx.log(format!("writing the cloud-init drive '{volume}'"));
        self.write_drive(&Actor::system(), guest, config, &volume, &seed).await
    }

    /// Writes a VM's drive as its options are now, also while it runs: its guest finds another medium.
    pub async fn update_cloudinit(self: &Arc<Self>, actor: &Actor, vmid: Vmid) -> Result<(), OpsError> {
        // Comes to its end even if the caller goes away: a medium is not left half changed.
        let (ops, by) = (self.clone(), actor.clone());
        let work = tokio::spawn(async move { ops.update_cloudinit_now(&by, vmid).await });
        work.await.unwrap_or_else(|e| Err(OpsError::failed(e.to_string())))
    }

    async fn update_cloudinit_now(&self, actor: &Actor, vmid: Vmid) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock_for_request(vmid).await?;
        let guest = self.own_guest(vmid).await?;
        if let Some(lock) = parse(&guest.config.value)?.current.lock() {
            return Err(OpsError::failed(format!("VM is locked ({lock})")));
        }
        if !self.renew_drive(actor, guest).await? {
            return Err(OpsError::failed(format!(
                "VM {vmid} has no cloud-init drive: give it one, as ide2=STORAGE:cloudinit"
            )));
        }
        Ok(())
    }

    /// Writes the drive, and puts it into a running VM anew; false if there is none.
    pub(crate) async fn renew_drive(&self, actor: &Actor, guest: GuestAt) -> Result<bool, OpsError> {
        let vmid = guest.vmid;
        let config = parse(&guest.config.value)?;
        let Some((key, volume)) = drive_of(&config.current)? else { return Ok(false) };
        let seed = self.seed(vmid, &config.current).await?;
        self.write_drive(actor, guest, config, &volume, &seed).await?;
        if self.guests.state(vmid).await.is_some() {
            let medium = self.resolve_volume(&volume).await?;
            self.guests.change_medium(vmid, &key, Some(medium)).await.map_err(|e| {
                OpsError::failed(format!(
                    "the cloud-init drive of VM {vmid} is written, but as it runs it did not take it ({e}): it has it from \
                     its next start on"
                ))
            })?;
        }
        Ok(true)
    }

    async fn write_drive(
        &self,
        actor: &Actor,
        mut guest: GuestAt,
        mut config: VmConfig,
        volume: &VolumeId,
        seed: &Seed,
    ) -> Result<GuestAt, OpsError> {
        if config.special.remove(SECTION).is_some() {
            self.commit_config(actor, &guest, &config).await?;
            guest = self.vm_at(guest.vmid)?;
        }
        let written = self.fill_drive(&guest, volume, seed).await;
        written.map_err(|e| OpsError::failed(format!("cloud-init drive '{volume}': {e}")))?;
        let held = cloudinit::held(&config.current, &seed.digest(volume))?;
        config.special.insert(SECTION.to_owned(), held);
        self.commit_config(actor, &guest, &config).await?;
        self.vm_at(guest.vmid)
    }

    async fn fill_drive(&self, guest: &GuestAt, volume: &VolumeId, seed: &Seed) -> Result<(), OpsError> {
        let spooled = self.spool_for(volume).await?;
        let made = match self.make_image(seed, &spooled).await {
            // The VM may have been given to another node while the image was made, and have the drive open there.
            Ok(()) => match self.own_guest(guest.vmid).await {
                Ok(now) if now.own.value.epoch != guest.own.value.epoch => {
                    Err(OpsError::failed("the VM has another ownership by now"))
                }
                now => now.map(drop),
            },
            Err(e) => Err(e),
        };
        self.fill(volume, spooled, made).await.map(drop)
    }

    /// An image as large as every drive is.
    async fn make_image(&self, seed: &Seed, to: &Path) -> Result<(), OpsError> {
        let failed = |e: &dyn std::fmt::Display| OpsError::failed(format!("its image: {e}"));
        self.cds.make(seed.layout.label(), &seed.files(), to).await.map_err(|e| failed(&e))?;
        let file = tokio::fs::OpenOptions::new().write(true).open(to).await.map_err(|e| failed(&e))?;
        let size = file.metadata().await.map_err(|e| failed(&e))?.len();
        if size > SIZE {
            return Err(failed(&format_args!("it takes {size} bytes, and there is room for {SIZE}")));
        }
        file.set_len(SIZE).await.map_err(|e| failed(&e))
    }

    /// What a drive is to hold, with the files of users.
    async fn seed(&self, vmid: Vmid, settings: &Settings) -> Result<Seed, OpsError> {
        let mut files = BTreeMap::new();
        for (part, volume) in settings.get("cicustom").map(options::custom).transpose()?.unwrap_or_default() {
            let text = self.snippet(&volume).await;
            let text = text.map_err(|e| OpsError::invalid("cicustom", format!("snippet '{volume}': {e}")))?;
            files.insert(part, text);
        }
        Ok(Seed::of(vmid, settings, &files)?)
    }

    async fn snippet(&self, volume: &VolumeId) -> Result<String, OpsError> {
        if !self.storage(&volume.storage)?.holds("snippets") {
            let why = format!("storage '{}' does not support content-type 'snippets'", volume.storage);
            return Err(OpsError::failed(why));
        }
        let failed = |e: std::io::Error| OpsError::failed(e.to_string());
        let file = tokio::fs::File::open(self.resolve_volume(volume).await?.path).await.map_err(failed)?;
        let mut bytes = vec![];
        file.take(SNIPPET + 1).read_to_end(&mut bytes).await.map_err(failed)?;
        if bytes.len() as u64 > SNIPPET {
            return Err(OpsError::failed(format!("it is larger than {} KiB", SNIPPET >> 10)));
        }
        String::from_utf8(bytes).map_err(|_| OpsError::failed("it is no text in UTF-8"))
    }

    /// What a VM's drive holds, and what it will hold when it is written next. No password is shown.
    pub fn cloudinit_pending(&self, vmid: Vmid) -> Result<Vec<Told>, OpsError> {
        let config = parse(&self.vm_at(vmid)?.config.value)?;
        Ok(cloudinit::compare(config.special.get(SECTION), &config.current))
    }

    /// What a VM's drive would hold if it were written now. The hash of a password is not shown.
    pub async fn cloudinit_dump(&self, vmid: Vmid, part: Part) -> Result<String, OpsError> {
        let mut settings = parse(&self.vm_at(vmid)?.config.value)?.current;
        // The guest's id follows from what it is told, password included.
        if part != Part::Meta && settings.get("cipassword").is_some() {
            settings.set("cipassword", cloudinit::MASK)?;
        }
        let seed = self.seed(vmid, &settings).await?;
        Ok(match part {
            Part::User => seed.user,
            Part::Network => seed.network,
            Part::Meta => seed.meta,
            Part::Vendor => seed.vendor.unwrap_or_default(),
        })
    }
}
