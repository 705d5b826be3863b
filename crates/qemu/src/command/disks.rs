//! Disks and CD drives.

use super::part::{Part, Place};
use super::pci::{Chipset, SATA};
use super::{Hardware, refuse, unusable};
use serde_json::{Value, json};
use std::path::Path;
use stead_driver::guest::{GuestError, ResolvedVolume};
use stead_model::vmconfig::devices::{Aio, Bus, Cache};
use stead_model::vmconfig::{Disk, DiskSource, ScsiHw};

/// The node that a drive's device is attached to.
pub fn node_name(key: &str) -> String {
    format!("drive-{key}")
}

/// All of them, with their controllers; whatever stands on another comes after it.
pub(super) fn parts(hw: &Hardware<'_>) -> Result<Vec<Part>, GuestError> {
    let disks = hw.settings.disks().map_err(unusable)?;
    let scsihw = hw.settings.scsihw().map_err(unusable)?;
    let mut parts: Vec<Part> = vec![];
    if scsihw == ScsiHw::VirtioScsiPci {
        // Shared by all that may come, so it never goes.
        parts.push(controller(hw.chipset, "virtio-scsi-pci", "scsihw0", 0));
    }
    for disk in &disks {
        // Before all that the guest sees: what can't be opened has then left no trace in its machine.
        if disk.bus.has_drives() {
            parts.extend(block_node(hw, disk)?.map(Part::Blockdev));
        }
        if disk.iothread && has_iothread(disk, scsihw) {
            parts.push(Part::object("iothread", format!("iothread-{}", disk.key)));
        }
        let (controller, place) = match disk.bus {
            Bus::Scsi => {
                let (controller, place) = scsi(hw.chipset, disk, scsihw)?;
                (Some(controller), place)
            }
            Bus::Virtio => (None, hw.chipset.virtio(disk.index)),
            Bus::Sata => {
                let controller = Part::device("ahci", "ahci0").at(hw.chipset.main(SATA));
                (Some(controller), vec![("bus", json!(format!("ahci0.{}", disk.index)))])
            }
            Bus::Ide => (None, ide(hw.chipset, disk.index)),
            Bus::Efidisk | Bus::Tpmstate | Bus::Unused => continue,
        };
        parts.extend(controller.filter(|c| !parts.iter().any(|p| p.is(c))));
        parts.push(device(hw, disk, place)?);
    }
    Ok(parts)
}

fn has_iothread(disk: &Disk, scsihw: ScsiHw) -> bool {
    disk.bus == Bus::Virtio || scsihw == ScsiHw::VirtioScsiSingle
}

/// The old machine has two channels of two drives; the newer one has six channels.
fn ide(chipset: Chipset, index: u32) -> Place {
    let (channel, unit) = match chipset {
        Chipset::I440fx => (index / 2, index % 2),
        Chipset::Q35 => (index, 0),
    };
    vec![("bus", json!(format!("ide.{channel}"))), ("unit", json!(unit))]
}

/// The controller of a SCSI disk, and the disk's place on it.
fn scsi(chipset: Chipset, disk: &Disk, scsihw: ScsiHw) -> Result<(Part, Place), GuestError> {
    let (driver, per_controller) = match scsihw {
        ScsiHw::Lsi => ("lsi53c895a", 7),
        ScsiHw::Lsi53c810 => ("lsi53c810", 7),
        ScsiHw::VirtioScsiPci => ("virtio-scsi-pci", 31),
        ScsiHw::VirtioScsiSingle => ("virtio-scsi-pci", 1),
        ScsiHw::Megasas => ("megasas", 31),
        ScsiHw::Pvscsi => ("pvscsi", 31),
    };
    let number = disk.index / per_controller;
    let own = scsihw == ScsiHw::VirtioScsiSingle;
    let id = format!("{}{number}", if own { "virtioscsi" } else { "scsihw" });
    let mut controller = controller(chipset, driver, &id, number);
    if own {
        let thread = disk.iothread.then(|| format!("iothread-{}", disk.key));
        let queues = disk.details().map_err(unusable)?.queues;
        controller = controller.maybe("iothread", thread).maybe("num_queues", queues);
    }
    let place = vec![("bus", json!(format!("{id}.0"))), ("scsi-id", json!(disk.index % per_controller))];
    Ok((controller, place))
}

fn controller(chipset: Chipset, driver: &str, id: &str, number: u32) -> Part {
    Part::device(driver, id).at(chipset.scsi(number))
}

fn device(hw: &Hardware<'_>, disk: &Disk, place: Place) -> Result<Part, GuestError> {
    let key = &disk.key;
    let driver = match (disk.bus, disk.cdrom) {
        (Bus::Scsi, false) => "scsi-hd",
        (Bus::Scsi, true) => "scsi-cd",
        (Bus::Virtio, _) => "virtio-blk-pci",
        (_, false) if disk.read_only => {
            return refuse(key, "IDE and SATA disks cannot be read-only: use scsi or virtio");
        }
        (_, false) => "ide-hd",
        (_, true) => "ide-cd",
    };
    let details = disk.details().map_err(unusable)?;
    let wwn = details.wwn.as_deref().map(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16));
    let Ok(wwn) = wwn.transpose() else { return refuse(key, "its wwn is no hexadecimal number") };
    let thread = (disk.iothread && disk.bus == Bus::Virtio).then(|| format!("iothread-{key}"));
    // These flush with every write; the guest need not.
    let through = !disk.cdrom && matches!(disk.cache, Some(Cache::Writethrough | Cache::Directsync));
    let ssd = disk.ssd && !disk.cdrom && disk.bus != Bus::Virtio;
    Ok(Part::device(driver, key.as_str())
        .at(place)
        .maybe("drive", (disk.source != DiskSource::Empty).then(|| node_name(key)))
        .maybe("iothread", thread)
        .maybe("rotation_rate", ssd.then_some(1))
        .maybe("serial", disk.serial.clone())
        .maybe("wwn", wwn)
        .maybe("vendor", details.vendor)
        .maybe("product", details.product)
        .maybe("model", details.model)
        .maybe("rerror", details.read_error.map(|what| what.to_string()))
        .maybe("werror", details.write_error.map(|what| what.to_string()))
        .maybe("write-cache", through.then_some("off"))
        .maybe("bootindex", super::boot_index(hw.settings, key)?))
}

/// What is in a drive, as QEMU's block layer opens it; none for an empty drive.
fn block_node(hw: &Hardware<'_>, disk: &Disk) -> Result<Option<Value>, GuestError> {
    let (path, format) = match &disk.source {
        DiskSource::Empty => return Ok(None),
        DiskSource::HostDrive => (Path::new("/dev/cdrom"), "raw"),
        DiskSource::Path(path) => (Path::new(path.as_str()), disk.format.as_deref().unwrap_or("raw")),
        DiskSource::Volume(volume) => {
            let name = volume.to_string();
            match hw.volumes.iter().find(|v| v.volume == name) {
                Some(v) => (v.path.as_path(), v.format.as_str()),
                None => return refuse(&disk.key, format!("volume '{name}' was not found on its storage")),
            }
        }
        DiskSource::New { .. } | DiskSource::NewCloudInit { .. } => {
            return refuse(&disk.key, "its volume was never made");
        }
    };
    if disk.cdrom {
        return Ok(Some(medium(&disk.key, path, format)));
    }
    image(disk, &node_name(&disk.key), &format!("file-{}", disk.key), path, format, hw.locks).map(Some)
}

/// The node of a disk's volume under another name than a start gives it, as options say of the disk.
pub fn image_of(disk: &Disk, node: &str, volume: &ResolvedVolume) -> Result<Value, GuestError> {
    image(disk, node, &format!("file-{node}"), &volume.path, &volume.format, true)
}

fn image(
    disk: &Disk,
    node: &str,
    file: &str,
    path: &Path,
    format: &str,
    locks: bool,
) -> Result<Value, GuestError> {
    let cache = disk.cache.unwrap_or(Cache::None);
    let direct = matches!(cache, Cache::None | Cache::Directsync);
    let aio = match disk.aio {
        Some(Aio::Native) if !direct => {
            return refuse(&disk.key, "aio=native needs cache=none or cache=directsync");
        }
        Some(aio) => aio,
        None if direct => Aio::Native,
        None => Aio::Threads,
    };
    let flags = json!({ "direct": direct, "no-flush": cache == Cache::Unsafe });
    let discard = if disk.discard { "unmap" } else { "ignore" };
    let zeroes = match (disk.details().map_err(unusable)?.detect_zeroes, disk.discard) {
        (false, _) => "off",
        (true, true) => "unmap",
        (true, false) => "on",
    };
    Ok(json!({
        "driver": format,
        "node-name": node,
        "read-only": disk.read_only,
        "cache": flags,
        "discard": discard,
        "detect-zeroes": zeroes,
        "file": {
            "driver": if path.starts_with("/dev") { "host_device" } else { "file" },
            "node-name": file,
            "filename": path,
            "read-only": disk.read_only,
            "cache": flags,
            "discard": discard,
            "aio": aio.as_str(),
            "locking": if locks { "auto" } else { "off" },
        },
    }))
}

/// The node of a CD. What it holds is what a guest reads, but for a volume that its storage has made as qcow2.
pub fn medium(key: &str, path: &Path, format: &str) -> Value {
    let driver = match path {
        p if p == Path::new("/dev/cdrom") => "host_cdrom",
        p if p.starts_with("/dev") => "host_device",
        _ => "file",
    };
    json!({
        "driver": if format == "qcow2" { format } else { "raw" },
        "node-name": node_name(key),
        "read-only": true,
        "file": { "driver": driver, "node-name": format!("file-{key}"), "filename": path, "read-only": true },
    })
}
