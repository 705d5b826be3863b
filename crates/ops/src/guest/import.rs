//! Disks that are made of images from elsewhere: `scsi0: local:0,import-from=nas:import/x.qcow2`.
//!
//! They are copied before the VM's mutex is taken, since that may take long; what is made then is a disk like any other. An image
//! that a user has brought may name other files, and is refused then; what lies in an OVA archive is read where it is.

use super::config::Made;
use crate::{Actor, Ops, OpsError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use stead_api_derive::Schema;
use stead_driver::storage::{Content, Image, NewCopy};
use stead_model::ova::{BLOCK, Machine, Member};
use stead_model::vmconfig::devices::as_disk;
use stead_model::vmconfig::{Change, Disk, DiskSource};
use stead_model::{StorageId, Vmid, VolumeId};
use stead_tasks::TaskContext;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// The largest OVF file that is read.
const OVF: u64 = 4 << 20;
/// How many files an archive may have.
const MEMBERS: usize = 1000;

/// What a VM would be made with, of a package.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Schema)]
pub struct ImportMetadata {
    /// Of what kind: `vm`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it is from: `ova`.
    pub source: String,
    /// Options of the VM.
    #[serde(rename = "create-args")]
    pub options: BTreeMap<String, String>,
    /// Its disks by their options: what `import-from` is to say.
    pub disks: BTreeMap<String, String>,
    /// Its network devices by their options: their models.
    pub net: BTreeMap<String, BTreeMap<String, String>>,
}

/// An archive, and a file in it: of `import/x.ova/disk.vmdk`.
fn in_archive(volume: &VolumeId) -> Option<(VolumeId, &str)> {
    let at = volume.name.to_ascii_lowercase().find(".ova/")? + ".ova".len();
    let archive = VolumeId { storage: volume.storage.clone(), name: volume.name[..at].to_owned() };
    Some((archive, &volume.name[at + 1..]))
}

fn format_of(name: &str) -> Result<String, OpsError> {
    let suffix = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    match suffix.as_str() {
        "raw" | "qcow2" | "vmdk" => Ok(suffix),
        "img" => Ok("raw".to_owned()),
        _ => Err(OpsError::invalid(
            "import-from",
            format!(
                "'{name}' is no image that can be imported: its name ends in .raw, .img, .qcow2 or .vmdk"
            ),
        )),
    }
}

/// The files of an archive, and where the content of each begins.
async fn members(archive: &Path) -> Result<Vec<(Member, u64)>, OpsError> {
    let failed = |e: std::io::Error| OpsError::failed(format!("could not read '{}': {e}", archive.display()));
    let mut file = tokio::fs::File::open(archive).await.map_err(failed)?;
    let (mut at, mut out, mut block) = (0, vec![], [0; BLOCK as usize]);
    while out.len() < MEMBERS {
        file.seek(std::io::SeekFrom::Start(at)).await.map_err(failed)?;
        match file.read_exact(&mut block).await {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(failed(e)),
        }
        let Some(member) = Member::parse(&block) else { break };
        let begins = at + BLOCK;
        let Some(next) = member.padded().and_then(|size| begins.checked_add(size)) else { break };
        at = next;
        out.push((member, begins));
    }
    Ok(out)
}

impl Ops {
    /// Makes the disks that are to hold images from elsewhere, and has the changes name them as disks that are there. What was made
    /// is named in `made`, also after an error.
    pub(super) async fn import_disks(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        changes: Vec<Change>,
        made: &mut Made,
    ) -> Result<Vec<Change>, OpsError> {
        let mut out = vec![];
        for change in changes {
            match imported(&change)? {
                None => out.push(change),
                Some((disk, storage, from)) => {
                    let done = self.import_disk(cx, actor, vmid, (&disk, &storage, &from), made).await;
                    let value = done.map_err(|e| match e {
                        OpsError::Invalid { why, .. } => {
                            OpsError::invalid(&disk.key, format!("import-from: {why}"))
                        }
                        e => OpsError::failed(format!("{}: could not import: {e}", disk.key)),
                    })?;
                    out.push(Change::Set { key: disk.key, value });
                }
            }
        }
        Ok(out)
    }

    async fn import_disk(
        &self,
        cx: &TaskContext,
        actor: &Actor,
        vmid: Vmid,
        (disk, storage, from): (&Disk, &StorageId, &DiskSource),
        made: &mut Made,
    ) -> Result<String, OpsError> {
        actor.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
        let of = self.importable(actor, vmid, from).await?;
        cx.log(format!("{}: importing '{}'", disk.key, of.path.display()));
        let format = disk.format.clone();
        let new = NewCopy { vmid, name: None, format, of, size: None, limit: None };
        let info = self.copy_image(cx, storage, &new).await?;
        cx.log(format!("{}: made volume '{}'", disk.key, info.volid));
        made.volumes.push(info.volid.clone());
        let mut disk = disk.clone();
        disk.props.remove("import-from");
        super::copies::placed(&disk, &info.volid, info.size)
    }

    /// The image that an actor may have a disk made of.
    async fn importable(&self, actor: &Actor, vmid: Vmid, from: &DiskSource) -> Result<Image, OpsError> {
        let refuse = |why: String| Err(OpsError::invalid("import-from", why));
        let image = |path, format| Image { path, format, snapshot: None, foreign: true, within: None };
        let volume = match from {
            DiskSource::Volume(volume) => volume,
            DiskSource::Path(path) if actor.root => {
                return Ok(image(PathBuf::from(path), format_of(path)?));
            }
            DiskSource::Path(_) => {
                return Err(OpsError::Forbidden {
                    path: format!("/vms/{vmid}"),
                    privilege: "only root can import a file of the host".to_owned(),
                });
            }
            _ => return refuse("name a volume, or a path of the host".to_owned()),
        };
        let place = format!("/storage/{}", volume.storage);
        if let Some((archive, member)) = in_archive(volume) {
            actor.require(&place, &["Datastore.Audit"])?;
            let path = self.archive(&archive).await?;
            let found = members(&path).await?.into_iter().find(|(m, _)| m.name == member);
            let Some((found, begins)) = found else {
                return refuse(format!("archive '{archive}' has no file '{member}'"));
            };
            return Ok(Image { within: Some((begins, found.size)), ..image(path, format_of(member)?) });
        }
        let info = self.volume_info(volume).await?;
        let path = self.resolve_volume(volume).await?.path;
        match (info.content, info.vmid) {
            (Content::Import, _) => {
                actor.require(&place, &["Datastore.Audit"])?;
                Ok(image(path, format_of(&volume.name)?))
            }
            (Content::Images, Some(owner)) => {
                actor.require(&place, &["Datastore.AllocateSpace"])?;
                actor.require(&format!("/vms/{owner}"), &["VM.Clone"])?;
                // Its own: a linked clone names its base.
                Ok(Image { foreign: false, ..image(path, info.format) })
            }
            _ => refuse(format!("volume '{volume}' is no image that can be imported")),
        }
    }

    async fn archive(&self, archive: &VolumeId) -> Result<PathBuf, OpsError> {
        let info = self.volume_info(archive).await?;
        if info.content != Content::Import || info.format != "ova" {
            let why = format!("volume '{archive}' is no OVA archive");
            return Err(OpsError::invalid("volume", why));
        }
        Ok(self.resolve_volume(archive).await?.path)
    }

    /// What a VM would be made with, of an archive.
    pub async fn import_metadata(&self, archive: &VolumeId) -> Result<ImportMetadata, OpsError> {
        let path = self.archive(archive).await?;
        let all = members(&path).await?;
        let is_ovf = |m: &Member| m.name.to_ascii_lowercase().ends_with(".ovf") && m.size <= OVF;
        let Some((member, begins)) = all.iter().find(|(m, _)| is_ovf(m)) else {
            return Err(OpsError::invalid("volume", format!("archive '{archive}' has no OVF file")));
        };
        let failed = |e: std::io::Error| OpsError::failed(format!("could not read '{archive}': {e}"));
        let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
        file.seek(std::io::SeekFrom::Start(*begins)).await.map_err(failed)?;
        let mut bytes = vec![];
        file.take(member.size).read_to_end(&mut bytes).await.map_err(failed)?;
        let machine = Machine::parse(&String::from_utf8_lossy(&bytes));
        let there: Vec<&str> = all.iter().map(|(m, _)| m.name.as_str()).collect();
        Ok(described(archive, &machine, &there))
    }
}

/// What a machine is as a VM.
fn described(archive: &VolumeId, machine: &Machine, there: &[&str]) -> ImportMetadata {
    let mut found =
        ImportMetadata { kind: "vm".to_owned(), source: "ova".to_owned(), ..ImportMetadata::default() };
    if let Some(name) = &machine.name {
        // As far as it can be one.
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let name = name.trim_matches('-').chars().take(63).collect::<String>();
        found.options.extend((!name.is_empty()).then(|| ("name".to_owned(), name)));
    }
    found.options.extend(machine.cpus.map(|n| ("cores".to_owned(), n.to_string())));
    found.options.extend(machine.memory.map(|n| ("memory".to_owned(), n.to_string())));
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for (bus, file) in machine.disks.iter().filter(|(_, file)| there.contains(&file.as_str())) {
        let n = counts.entry(bus).or_default();
        let key = format!("{bus}{n}");
        *n += 1;
        if as_disk(&key).is_some() {
            found.disks.insert(key, format!("{archive}/{file}"));
        }
    }
    for n in 0..machine.nets.min(32) {
        let model = [("model".to_owned(), "e1000".to_owned())].into();
        found.net.insert(format!("net{n}"), model);
    }
    found
}

/// The disk, its storage and the image, of a change that imports one.
fn imported(change: &Change) -> Result<Option<(Disk, StorageId, DiskSource)>, OpsError> {
    let Change::Set { key, value } = change else { return Ok(None) };
    if as_disk(key).is_none() {
        return Ok(None);
    }
    let disk = Disk::parse(key, value)?;
    match (disk.import_from()?, disk.source.clone()) {
        (Some(from), DiskSource::New { storage, .. }) => Ok(Some((disk, storage, from))),
        _ => Ok(None),
    }
}

/// The option of a change that imports an image, if one does.
pub(crate) fn imports(changes: &[Change]) -> Option<&str> {
    changes.iter().find(|c| imported(c).is_ok_and(|i| i.is_some())).map(Change::key)
}
