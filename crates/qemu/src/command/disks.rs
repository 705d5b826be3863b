//! Disks and CD drives.

use super::pci::{Chipset, Pci, SATA};
use super::{Argv, Context, boot_index, refuse, unusable};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use stead_driver::guest::GuestError;
use stead_model::vmconfig::devices::{Aio, Bus, Cache};
use stead_model::vmconfig::{Disk, DiskSource, ScsiHw};

/// The node that a drive's device is attached to.
pub fn node_name(key: &str) -> String {
    format!("drive-{key}")
}

/// Adds all of them, with their controllers.
pub(super) fn add(argv: &mut Argv, cx: &Context<'_>, pci: &mut Pci) -> Result<(), GuestError> {
    let disks = cx.settings.disks().map_err(unusable)?;
    let scsihw = cx.settings.scsihw().map_err(unusable)?;
    let mut controllers = BTreeSet::new();
    for disk in &disks {
        if let Some(node) = block_node(cx, disk)? {
            argv.option("-blockdev", node.to_string());
        }
        if disk.iothread && has_iothread(disk, scsihw) {
            argv.option("-object", format!("iothread,id=iothread-{}", disk.key));
        }
        let place = match disk.bus {
            Bus::Scsi => scsi(argv, pci, disk, scsihw, &mut controllers)?,
            Bus::Virtio => pci.virtio(disk.index),
            Bus::Sata => {
                if controllers.insert("ahci0".to_owned()) {
                    argv.device(format!("ahci,id=ahci0,{}", pci.main(SATA)));
                }
                format!("bus=ahci0.{}", disk.index)
            }
            Bus::Ide => ide(pci.chipset(), disk.index),
            Bus::Unused => continue,
        };
        argv.device(device(cx, disk, &place)?);
    }
    Ok(())
}

fn has_iothread(disk: &Disk, scsihw: ScsiHw) -> bool {
    disk.bus == Bus::Virtio || scsihw == ScsiHw::VirtioScsiSingle
}

/// The old machine has two channels of two drives; the newer one has six channels.
fn ide(chipset: Chipset, index: u32) -> String {
    match chipset {
        Chipset::I440fx => format!("bus=ide.{},unit={}", index / 2, index % 2),
        Chipset::Q35 => format!("bus=ide.{index},unit=0"),
    }
}

/// The controller of a SCSI disk, made with its first disk, and the disk's place on it.
fn scsi(
    argv: &mut Argv,
    pci: &mut Pci,
    disk: &Disk,
    scsihw: ScsiHw,
    made: &mut BTreeSet<String>,
) -> Result<String, GuestError> {
    let (driver, per_controller) = match scsihw {
        ScsiHw::Lsi => ("lsi53c895a", 7),
        ScsiHw::Lsi53c810 => ("lsi53c810", 7),
        ScsiHw::VirtioScsiPci => ("virtio-scsi-pci", 31),
        ScsiHw::VirtioScsiSingle => ("virtio-scsi-pci", 1),
        ScsiHw::Megasas => ("megasas", 31),
        ScsiHw::Pvscsi => ("pvscsi", 31),
    };
    let number = disk.index / per_controller;
    let name = if scsihw == ScsiHw::VirtioScsiSingle { "virtioscsi" } else { "scsihw" };
    let id = format!("{name}{number}");
    if made.insert(id.clone()) {
        let thread = if disk.iothread && scsihw == ScsiHw::VirtioScsiSingle {
            format!(",iothread=iothread-{}", disk.key)
        } else {
            String::new()
        };
        let own = scsihw == ScsiHw::VirtioScsiSingle;
        let queues = disk
            .details()
            .map_err(unusable)?
            .queues
            .filter(|_| own)
            .map_or_else(String::new, |n| format!(",num_queues={n}"));
        argv.device(format!("{driver},id={id}{thread}{queues},{}", pci.scsi(number)));
    }
    Ok(format!("bus={id}.0,scsi-id={}", disk.index % per_controller))
}

fn device(cx: &Context<'_>, disk: &Disk, place: &str) -> Result<String, GuestError> {
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
    let mut text = format!("{driver},id={key},{place}");
    if disk.source != DiskSource::Empty {
        text.push_str(&format!(",drive={}", node_name(key)));
    }
    if disk.iothread && disk.bus == Bus::Virtio {
        text.push_str(&format!(",iothread=iothread-{key}"));
    }
    if disk.ssd && !disk.cdrom && disk.bus != Bus::Virtio {
        text.push_str(",rotation_rate=1");
    }
    for (name, value) in [
        ("serial", &disk.serial),
        ("wwn", &details.wwn),
        ("vendor", &details.vendor),
        ("product", &details.product),
        ("model", &details.model),
    ] {
        if let Some(value) = value {
            text.push_str(&format!(",{name}={}", super::quoted(value)));
        }
    }
    for (name, what) in [("rerror", details.read_error), ("werror", details.write_error)] {
        if let Some(what) = what {
            text.push_str(&format!(",{name}={what}"));
        }
    }
    // These flush with every write; the guest need not.
    if !disk.cdrom && matches!(disk.cache, Some(Cache::Writethrough | Cache::Directsync)) {
        text.push_str(",write-cache=off");
    }
    text.push_str(&boot_index(cx, key)?);
    Ok(text)
}

/// What is in a drive, as QEMU's block layer opens it; none for an empty drive.
fn block_node(cx: &Context<'_>, disk: &Disk) -> Result<Option<Value>, GuestError> {
    let (path, format) = match &disk.source {
        DiskSource::Empty => return Ok(None),
        DiskSource::HostDrive => (Path::new("/dev/cdrom"), "raw"),
        DiskSource::Path(path) => (Path::new(path.as_str()), disk.format.as_deref().unwrap_or("raw")),
        DiskSource::Volume(volume) => {
            let name = volume.to_string();
            match cx.volumes.iter().find(|v| v.volume == name) {
                Some(v) => (v.path.as_path(), v.format.as_str()),
                None => return refuse(&disk.key, format!("volume '{name}' was not found on its storage")),
            }
        }
        DiskSource::New { .. } => return refuse(&disk.key, "its volume was never made"),
    };
    if disk.cdrom {
        return Ok(Some(medium(&disk.key, path)));
    }
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
    Ok(Some(json!({
        "driver": format,
        "node-name": node_name(&disk.key),
        "read-only": disk.read_only,
        "cache": flags,
        "discard": discard,
        "detect-zeroes": zeroes,
        "file": {
            "driver": if path.starts_with("/dev") { "host_device" } else { "file" },
            "node-name": format!("file-{}", disk.key),
            "filename": path,
            "read-only": disk.read_only,
            "cache": flags,
            "discard": discard,
            "aio": aio.as_str(),
            "locking": if cx.locks { "auto" } else { "off" },
        },
    })))
}

/// The node of a CD.
pub fn medium(key: &str, path: &Path) -> Value {
    let driver = match path {
        p if p == Path::new("/dev/cdrom") => "host_cdrom",
        p if p.starts_with("/dev") => "host_device",
        _ => "file",
    };
    json!({
        "driver": "raw",
        "node-name": node_name(key),
        "read-only": true,
        "file": { "driver": driver, "node-name": format!("file-{key}"), "filename": path, "read-only": true },
    })
}
