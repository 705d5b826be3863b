//! `resize`, `move_disk` and `unlink`.

use super::asked;
use super::clone::Format;
use crate::framework::{Access, Error, Null};
use stead_api_derive::Params;
use stead_model::size::Size;
use stead_model::{NodeName, StorageId, Upid, Vmid};
use stead_ops::Ops;
use stead_ops::guest::config::ConfigChange;
use stead_ops::guest::move_disk::MoveOptions;
use stead_ops::storage::Resize;

const DISK: Access = Access::All("/vms/{vmid}", &["VM.Config.Disk"]);

#[derive(Params)]
pub struct ResizeDisk {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The disk: `scsi0`, `virtio1`, ...
    disk: String,
    /// The new size, or with a plus how much more: `32G`, `+512M`.
    size: String,
    /// Change only if the configuration is still this version.
    #[param(max_length = 40)]
    digest: Option<String>,
    /// Over a lock; root@pam alone.
    #[param(default = "0")]
    skiplock: bool,
}

#[derive(Params)]
pub struct Unlink {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Disks to take out.
    #[param(required)]
    idlist: Vec<String>,
    /// Remove their volumes, instead of keeping them as unused.
    #[param(default = "0")]
    force: bool,
}

#[derive(Params)]
pub struct MoveDisk {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The disk: `scsi0`, `virtio1`, `efidisk0`, ...; `unused0`, ... to give it to another VM.
    disk: String,
    /// The storage where it is to lie. Default: where it does.
    storage: Option<StorageId>,
    /// The format: `raw` or `qcow2`. Default: that which it has.
    format: Option<Format>,
    /// Remove the old volume, instead of keeping it as unused.
    #[param(default = "0")]
    delete: bool,
    /// KiB a second at most; 0: no limit.
    #[param(min = 0)]
    bwlimit: Option<u64>,
    /// Change only if the configuration is still this version.
    #[param(max_length = 40)]
    digest: Option<String>,
    /// The VM of the same node that is to have it.
    #[param(name = "target-vmid")]
    target_vmid: Option<Vmid>,
    /// The option by which that VM has it. Default: the same.
    #[param(name = "target-disk")]
    target_disk: Option<String>,
    /// Change only if that VM's configuration is still this version.
    #[param(name = "target-digest", max_length = 40)]
    target_digest: Option<String>,
}

fn size(text: &str) -> Result<Resize, Error> {
    let wrong = |e: stead_model::IdError| Error::parameter("size", e.to_string());
    let bytes = |t: &str| t.parse::<Size>().map(Size::get).map_err(wrong);
    match text.strip_prefix('+') {
        Some(more) => Ok(Resize::By(bytes(more)?)),
        None => Ok(Resize::To(bytes(text)?)),
    }
}

endpoint! {
    /// Grows a disk.
    Grow = put("/nodes/{node}/qemu/{vmid}/resize"), AtGuest, DISK;
    fn call(cx, p: ResizeDisk) -> Upid {
        cx.ops().member(&p.node)?;
        Ops::check_skiplock(&cx.actor(), p.skiplock)?;
        cx.ops().check_vm_digest(p.vmid, p.digest.as_deref())?;
        Ok(cx.ops().resize_disk(&cx.actor(), p.vmid, p.disk, size(&p.size)?)?)
    }
}

endpoint! {
    /// Moves a disk to another storage or format, also while the VM runs; or gives it to another VM.
    Move = post("/nodes/{node}/qemu/{vmid}/move_disk"), AtGuest, DISK;
    fn call(cx, p: MoveDisk) -> Upid {
        cx.ops().member(&p.node)?;
        let options = MoveOptions {
            disk: p.disk,
            storage: p.storage,
            format: p.format.map(|f| f.word().to_owned()),
            delete: p.delete,
            bwlimit: p.bwlimit,
            digest: p.digest,
            target: p.target_vmid,
            target_disk: p.target_disk,
            target_digest: p.target_digest,
        };
        Ok(cx.ops().move_disk(&cx.actor(), p.vmid, options).await?)
    }
}

endpoint! {
    /// Takes disks out.
    Take = put("/nodes/{node}/qemu/{vmid}/unlink"), AtGuest, DISK;
    fn call(cx, p: Unlink) -> Null {
        cx.ops().member(&p.node)?;
        let change = ConfigChange { delete: p.idlist, force: p.force, ..ConfigChange::default() };
        cx.ops().configure(&cx.actor(), p.vmid, change, asked(false)).await?;
        Ok(Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_absolute_or_growth() {
        assert_eq!(size("+1G").unwrap(), Resize::By(1 << 30));
        assert_eq!(size("2M").unwrap(), Resize::To(2 << 20));
        assert!(size("big").is_err());
    }
}
