//! Copies of VMs and of their disks: `stead vm clone`, `template`, `move-disk`, `reassign`, `import`.

use super::Cx;
use crate::failure::Failure;
use crate::output;
use crate::params::{Params, put, switch, take};

/// What a clone is to be.
#[derive(Debug, clap::Args)]
pub struct What {
    /// Its name
    #[arg(long)]
    name: Option<String>,
    /// What is to be remembered of it
    #[arg(long)]
    description: Option<String>,
    /// Copy all disks, rather than keep what differs from a template's
    #[arg(long)]
    full: bool,
    /// Keep what differs from a template's disks, or fail
    #[arg(long, conflicts_with = "full")]
    linked: bool,
    /// Of the VM as it was in this snapshot
    #[arg(long, value_name = "NAME")]
    snapname: Option<String>,
    /// Where its disks are to lie
    #[arg(long)]
    storage: Option<String>,
    /// The format of its disks: raw or qcow2
    #[arg(long)]
    format: Option<String>,
    /// The node that is to have it
    #[arg(long, value_name = "NODE")]
    target: Option<String>,
    /// At most so many KiB/s
    #[arg(long, value_name = "KIB_PER_S")]
    bwlimit: Option<u64>,
}

impl What {
    /// As the API has it.
    pub fn params(self, mut p: Params) -> Params {
        put(&mut p, "name", self.name);
        put(&mut p, "description", self.description);
        switch(&mut p, "full", self.full);
        if self.linked {
            put(&mut p, "full", Some(0));
        }
        put(&mut p, "snapname", self.snapname);
        put(&mut p, "storage", self.storage);
        put(&mut p, "format", self.format);
        put(&mut p, "target", self.target);
        put(&mut p, "bwlimit", self.bwlimit);
        p
    }
}

/// Makes a clone.
pub async fn make(cx: &Cx, vmid: &str, newid: &str, mut p: Params) -> Result<(), Failure> {
    put(&mut p, "newid", Some(newid));
    let answer = cx.api.post(&format!("{}/clone", cx.api.vm(vmid).await?), &p).await?;
    cx.answer(&answer, &format!("VM {newid} is a clone of VM {vmid}")).await
}

/// Makes a template.
pub async fn template(cx: &Cx, vmid: &str, p: &Params) -> Result<(), Failure> {
    let answer = cx.api.post(&format!("{}/template", cx.api.vm(vmid).await?), p).await?;
    cx.answer(&answer, &format!("VM {vmid} is a template")).await
}

/// Moves a disk to another storage, format or VM.
pub async fn move_disk(cx: &Cx, vmid: &str, disk: &str, mut p: Params) -> Result<(), Failure> {
    put(&mut p, "disk", Some(disk));
    let answer = cx.api.post(&format!("{}/move_disk", cx.api.vm(vmid).await?), &p).await?;
    cx.answer(&answer, &format!("disk {disk} of VM {vmid} moved")).await
}

/// Makes a disk of an image: a volume, or a file of the VM's node. `unused`: the VM owns it and does not use it.
pub async fn import(
    cx: &Cx,
    vmid: &str,
    image: &str,
    storage: &str,
    mut p: Params,
    unused: bool,
) -> Result<(), Failure> {
    let config = format!("{}/config", cx.api.vm(vmid).await?);
    let disk = match take(&mut p, "target-disk").or_else(|| take(&mut p, "disk")) {
        Some(disk) => disk,
        None => {
            let there = cx.api.get(&config).await?;
            let free = (0..31).map(|n| format!("scsi{n}")).find(|key| there[key.as_str()].is_null());
            free.ok_or_else(|| Failure::failed("the VM has no free SCSI disk: give --disk"))?
        }
    };
    // The API's node may stand in another folder.
    let image = match std::fs::canonicalize(image) {
        Ok(path) if !image.contains(':') => path.display().to_string(),
        _ => image.to_owned(),
    };
    let format = take(&mut p, "format").map_or_else(String::new, |format| format!(",format={format}"));
    put(&mut p, &disk, Some(format!("{storage}:0,import-from={image}{format}")));
    let answer = cx.api.post(&config, &p).await?;
    cx.answer(&answer, &format!("{image} is disk {disk} of VM {vmid}")).await?;
    if !unused {
        return Ok(());
    }
    let mut p = Params::new();
    put(&mut p, "idlist", Some(&disk));
    cx.api.put(&format!("{}/unlink", cx.api.vm(vmid).await?), &p).await?;
    output::print("it is an unused disk of the VM")
}
