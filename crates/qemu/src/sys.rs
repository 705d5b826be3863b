//! The host's devices, as its kernel tells of them below `/sys`.

use crate::command::refuse;
use std::path::{Path, PathBuf};
use stead_driver::guest::GuestError;
use stead_driver::hardware::{Hardware, MdevType, PciDevice, UsbDevice};
use stead_model::vmconfig::Settings;

/// The first line of a file.
pub fn line(path: impl AsRef<Path>) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// What a link's last part says: a driver's name, a group's number.
pub fn link(path: impl AsRef<Path>) -> Option<String> {
    Some(std::fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

/// What a folder holds, by name. One that is not there holds nothing.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let found = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<(String, PathBuf)> =
        found.filter_map(|e| Some((e.file_name().to_str()?.to_owned(), e.path()))).collect();
    all.sort();
    all
}

/// Refuses a guest whose memory its host is not to read, with what this host lacks: it must never run without that. `dev` is `/dev`.
pub fn encrypted(dev: &Path, settings: &Settings) -> Result<(), GuestError> {
    if settings.get("amd-sev").is_some() {
        let why = match dev.join("sev").exists() {
            false => {
                "/dev/sev is missing: the CPU has no SEV, or the firmware or the kernel has it switched off"
            }
            true => "this host has SEV, but this version does not start VMs with it: take the option out",
        };
        return refuse("amd-sev", why);
    }
    if settings.get("intel-tdx").is_some() {
        let why = "it needs a CPU with TDX and QEMU 10.1 or newer, which this version does not use: take the option out";
        return refuse("intel-tdx", why);
    }
    Ok(())
}

/// All devices. `root` is `/sys`.
pub fn hardware(root: &Path) -> Hardware {
    let pci = entries(&root.join("bus/pci/devices")).into_iter().filter_map(|(name, path)| pci(name, &path));
    let mut usb: Vec<UsbDevice> = entries(&root.join("bus/usb/devices"))
        .into_iter()
        .filter_map(|(name, path)| usb(&name, &path))
        .collect();
    usb.sort_by_key(|d| (d.bus, d.ports.as_deref().map(ports)));
    Hardware { pci: pci.collect(), usb }
}

fn ports(text: &str) -> Vec<u32> {
    text.split('.').filter_map(|n| n.parse().ok()).collect()
}

fn pci(address: String, path: &Path) -> Option<PciDevice> {
    let number = |name: &str| Some(line(path.join(name))?.trim_start_matches("0x").to_ascii_lowercase());
    Some(PciDevice {
        class: number("class")?,
        vendor: number("vendor")?,
        device: number("device")?,
        subsystem_vendor: number("subsystem_vendor"),
        subsystem_device: number("subsystem_device"),
        iommu_group: link(path.join("iommu_group")).and_then(|n| n.parse().ok()),
        mdevs: entries(&path.join("mdev_supported_types"))
            .into_iter()
            .map(|(kind, path)| mdev(kind, &path))
            .collect(),
        address,
    })
}

fn mdev(kind: String, path: &Path) -> MdevType {
    MdevType {
        name: line(path.join("name")),
        description: std::fs::read_to_string(path.join("description")).unwrap_or_default().trim().to_owned(),
        available: line(path.join("available_instances")).and_then(|n| n.parse().ok()).unwrap_or(0),
        kind,
    }
}

/// Interfaces of devices (`1-2:1.0`) are in the same folder, and have no vendor.
fn usb(name: &str, path: &Path) -> Option<UsbDevice> {
    let text = |name: &str| line(path.join(name));
    let number = |name: &str| text(name)?.parse().ok();
    Some(UsbDevice {
        bus: number("busnum")?,
        number: number("devnum")?,
        ports: name.split_once('-').map(|(_, ports)| ports.to_owned()),
        class: text("bDeviceClass").and_then(|n| u32::from_str_radix(&n, 16).ok()).unwrap_or(0),
        speed: text("speed").unwrap_or_default(),
        vendor: text("idVendor")?,
        product: text("idProduct")?,
        manufacturer_name: text("manufacturer"),
        product_name: text("product"),
        serial: text("serial"),
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Writes files below a folder, each with its text.
    pub fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    /// A host with a card of two functions in group 14, and a stick behind a hub.
    pub fn host(root: &Path) {
        for function in 0..2 {
            let dir = format!("bus/pci/devices/0000:01:00.{function}");
            write(
                root,
                &[
                    (&format!("{dir}/class"), "0x030000\n"),
                    (&format!("{dir}/vendor"), "0x10de\n"),
                    (&format!("{dir}/device"), "0x2204\n"),
                    (&format!("{dir}/subsystem_vendor"), "0x1458\n"),
                    (&format!("{dir}/subsystem_device"), "0x403b\n"),
                ],
            );
            let group = root.join("kernel/iommu_groups/14");
            std::fs::create_dir_all(&group).unwrap();
            std::os::unix::fs::symlink(&group, root.join(&dir).join("iommu_group")).unwrap();
        }
        let types = "bus/pci/devices/0000:01:00.0/mdev_supported_types/nvidia-63";
        write(
            root,
            &[
                (&format!("{types}/name"), "GRID P40-1Q\n"),
                (&format!("{types}/description"), "num_heads=4,\nframebuffer=1024M\n"),
                (&format!("{types}/available_instances"), "3\n"),
            ],
        );
        for (name, number, vendor, product) in [("usb1", "1", "1d6b", "0002"), ("1-2.3", "7", "046d", "c52b")]
        {
            let of = |file: &str| format!("bus/usb/devices/{name}/{file}");
            write(
                root,
                &[
                    (&of("busnum"), "1\n"),
                    (&of("devnum"), number),
                    (&of("idVendor"), vendor),
                    (&of("idProduct"), product),
                    (&of("bDeviceClass"), "09\n"),
                    (&of("speed"), "480\n"),
                ],
            );
        }
        write(root, &[("bus/usb/devices/1-2.3:1.0/bInterfaceClass", "03\n")]);
    }

    #[test]
    fn a_guest_that_is_to_be_encrypted_never_runs_without() {
        let dev = tempfile::tempdir().unwrap();
        let why = |text: &str| {
            let config = stead_model::VmConfig::parse(text).unwrap();
            encrypted(dev.path(), &config.current).map_err(|e| e.to_string())
        };
        assert_eq!(why("memory: 64"), Ok(()));
        assert!(why("amd-sev: type=std").unwrap_err().starts_with("amd-sev: /dev/sev is missing"));
        write(dev.path(), &[("sev", "")]);
        assert!(why("amd-sev: type=std").unwrap_err().contains("does not start VMs with it"));
        assert!(why("intel-tdx: type=tdx").unwrap_err().starts_with("intel-tdx: it needs a CPU with TDX"));
    }

    #[test]
    fn devices_are_read_as_the_kernel_tells_of_them() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(hardware(root.path()), Hardware::default());
        host(root.path());
        let found = hardware(root.path());
        let card = &found.pci[0];
        assert_eq!((card.id(), card.subsystem_id()), ("10de:2204".into(), Some("1458:403b".into())));
        assert_eq!((found.pci.len(), card.iommu_group, card.mdevs[0].available), (2, Some(14), 3));
        assert_eq!(card.mdevs[0].name.as_deref(), Some("GRID P40-1Q"));
        let paths: Vec<_> = found.usb.iter().map(|d| (d.id(), d.path(), d.class)).collect();
        assert_eq!(paths, [("1d6b:0002".into(), None, 9), ("046d:c52b".into(), Some("1-2.3".into()), 9)]);
    }
}
