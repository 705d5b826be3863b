//! `/nodes/{node}/storage/{storage}/content` and below: volumes.

use super::LOOK;
use crate::framework::{Access, Error, Json};
use crate::shapes::VolumePlace;
use serde::Serialize;
use serde_json::Value;
use stead_api_derive::{Params, Schema};
use stead_model::schema::Schema as _;
use stead_model::{NodeName, StorageId, Upid, Vmid, VolumeId};
use stead_ops::storage_view::{Content, NewVolume, VolumeInfo};

choice! {
    /// What a volume is.
    pub enum ContentType {
        Images = "images",
        Rootdir = "rootdir",
        Iso = "iso",
        Vztmpl = "vztmpl",
        Backup = "backup",
        Snippets = "snippets",
        Import = "import",
    }
}

impl From<ContentType> for Content {
    fn from(c: ContentType) -> Self {
        match c {
            ContentType::Images => Self::Images,
            ContentType::Rootdir => Self::Rootdir,
            ContentType::Iso => Self::Iso,
            ContentType::Vztmpl => Self::Vztmpl,
            ContentType::Backup => Self::Backup,
            ContentType::Snippets => Self::Snippets,
            ContentType::Import => Self::Import,
        }
    }
}

choice! {
    /// A disk's format.
    pub enum DiskFormat { Raw = "raw", Qcow2 = "qcow2", Subvol = "subvol", Vmdk = "vmdk" }
}

#[derive(Params)]
pub struct ListContent {
    /// The node.
    node: NodeName,
    /// The storage.
    storage: StorageId,
    /// Volumes of this kind alone.
    content: Option<ContentType>,
    /// Volumes of this guest alone.
    vmid: Option<Vmid>,
}

#[derive(Params)]
pub struct AskImport {
    /// The node.
    node: NodeName,
    /// The storage.
    storage: StorageId,
    /// The archive: `storage:import/x.ova`, or its name on the storage.
    volume: String,
}

#[derive(Params)]
pub struct AllocDisk {
    /// The node.
    node: NodeName,
    /// The storage.
    storage: StorageId,
    /// The volume's name.
    filename: String,
    /// Its format, unless the storage's own.
    #[param(requires = "size")]
    format: Option<DiskFormat>,
    /// Its size: in KiB, or with the unit M or G.
    size: String,
    /// Whose it is.
    vmid: Vmid,
}

#[derive(Params)]
pub struct OneVolume {
    /// The node.
    node: NodeName,
    /// The storage, if the volume's name does not begin with it.
    storage: Option<StorageId>,
    /// The volume: `storage:name`, or its name on the storage.
    volume: String,
}

#[derive(Params)]
pub struct RemoveVolume {
    /// The node.
    node: NodeName,
    /// The storage, if the volume's name does not begin with it.
    storage: Option<StorageId>,
    /// The volume: `storage:name`, or its name on the storage.
    volume: String,
}

fn volume_id(storage: Option<&StorageId>, text: &str) -> Result<VolumeId, Error> {
    let wrong = |why: String| Error::parameter("volume", why);
    let whole = match storage {
        Some(s) if !text.contains(':') => format!("{s}:{text}"),
        _ => text.to_owned(),
    };
    let volume: VolumeId = whole.parse().map_err(|e: stead_model::IdError| wrong(e.to_string()))?;
    match storage {
        Some(s) if *s != volume.storage => Err(wrong(format!("volume '{volume}' is not on storage '{s}'"))),
        _ => Ok(volume),
    }
}

/// A size in KiB, or with a unit.
fn size(text: &str) -> Result<u64, Error> {
    let wrong = || {
        Error::parameter("size", format!("'{text}' is not a size: a number, with M or G or without a unit"))
    };
    let (digits, shift) =
        match text.strip_suffix('M').map(|t| (t, 20)).or(text.strip_suffix('G').map(|t| (t, 30))) {
            Some(found) => found,
            None => (text, 10),
        };
    let n: u64 = digits.parse().map_err(|_| wrong())?;
    n.checked_mul(1 << shift).filter(|n| *n > 0).ok_or_else(wrong)
}

/// A volume. Bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct Volume {
    /// Which.
    volid: VolumeId,
    /// What it is.
    content: &'static str,
    /// How it is written.
    format: String,
    /// As a guest sees it.
    size: u64,
    /// On the storage.
    used: u64,
    /// When it was made: seconds since 1970.
    ctime: u64,
    /// Whose disk it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    vmid: Option<Vmid>,
    /// What it is based on.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
}

impl From<VolumeInfo> for Volume {
    fn from(v: VolumeInfo) -> Self {
        Self {
            volid: v.volid,
            content: ContentType::from(v.content).word(),
            format: v.format,
            size: v.size,
            used: v.used,
            ctime: v.ctime,
            vmid: v.vmid,
            parent: v.parent,
        }
    }
}

impl From<Content> for ContentType {
    fn from(content: Content) -> Self {
        match content {
            Content::Images => Self::Images,
            Content::Rootdir => Self::Rootdir,
            Content::Iso => Self::Iso,
            Content::Vztmpl => Self::Vztmpl,
            Content::Backup => Self::Backup,
            Content::Snippets => Self::Snippets,
            Content::Import => Self::Import,
        }
    }
}

endpoint! {
    /// A storage's volumes.
    List = get("/nodes/{node}/storage/{storage}/content"), AtNode, LOOK;
    fn call(cx, p: ListContent) -> Json<Vec<Volume>> {
        cx.ops().member(&p.node)?;
        let all = cx.ops().volumes(&p.storage, p.content.map(Content::from), p.vmid).await?;
        Ok(Json(all.into_iter().map(Volume::from).collect()))
    }
}

endpoint! {
    /// Makes a disk.
    Alloc = post("/nodes/{node}/storage/{storage}/content"), AtNode,
        Access::All("/storage/{storage}", &["Datastore.AllocateSpace"]);
    fn call(cx, p: AllocDisk) -> Json<VolumeId> {
        cx.ops().member(&p.node)?;
        let format = match p.format {
            Some(f @ (DiskFormat::Subvol | DiskFormat::Vmdk)) => {
                return Err(Error::parameter("format", format!("format '{}' is not supported yet", f.word())));
            }
            other => other.map(|f| f.word().to_owned()),
        };
        let new = NewVolume { vmid: p.vmid, name: Some(p.filename), format, size: size(&p.size)? };
        Ok(Json(cx.ops().alloc_in_request(&p.storage, &new).await?.volid))
    }
}

endpoint! {
    /// A volume's place and size.
    Read = get("/nodes/{node}/storage/{storage}/content/{volume}"), AtNode, LOOK;
    returns: VolumePlace::schema();
    fn call(cx, p: OneVolume) -> Json<Value> {
        cx.ops().member(&p.node)?;
        let volume = volume_id(p.storage.as_ref(), &p.volume)?;
        Ok(Json(cx.ops().volume_details(&volume).await?))
    }
}

endpoint! {
    /// Removes a volume that no guest names.
    Remove = delete("/nodes/{node}/storage/{storage}/content/{volume}"), AtNode,
        Access::All("/storage/{storage}", &["Datastore.Allocate"]);
    missing: &["delay: the answer is always the task"];
    fn call(cx, p: RemoveVolume) -> Upid {
        cx.ops().member(&p.node)?;
        let volume = volume_id(p.storage.as_ref(), &p.volume)?;
        Ok(cx.ops().remove_volume(&cx.actor(), volume)?)
    }
}

endpoint! {
    /// What a VM would be made with, of an OVA archive that was brought: options, and what its disks are to be imported from.
    ImportMetadata = get("/nodes/{node}/storage/{storage}/import-metadata"), AtNode, LOOK;
    fn call(cx, p: AskImport) -> Json<stead_ops::guest::import::ImportMetadata> {
        cx.ops().member(&p.node)?;
        let name = p.volume.strip_prefix(&format!("{}:", p.storage)).unwrap_or(&p.volume);
        let volume: VolumeId = format!("{}:{name}", p.storage)
            .parse()
            .map_err(|e: stead_model::IdError| Error::parameter("volume", e.to_string()))?;
        Ok(Json(cx.ops().import_metadata(&volume).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_named_whole_or_by_its_name_on_the_storage() {
        let local: StorageId = "local".parse().unwrap();
        let id = |t: &str| volume_id(Some(&local), t).map(|v| v.to_string());
        assert_eq!(id("local:iso/a b.iso").unwrap(), "local:iso/a b.iso");
        assert_eq!(id("iso/a.iso").unwrap(), "local:iso/a.iso");
        assert!(id("other:iso/a.iso").is_err(), "permission was checked on 'local'");
        assert!(id("local:../etc/passwd").is_err());
    }

    #[test]
    fn a_size_without_unit_is_in_kib() {
        assert_eq!(size("4").unwrap(), 4096);
        assert_eq!(size("2M").unwrap(), 2 << 20);
        assert_eq!(size("1G").unwrap(), 1 << 30);
        for wrong in ["", "1T", "-1", "0", "99999999999999999999", "18446744073709551615G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
