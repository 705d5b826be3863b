//! A node's own devices, as clients know them.

use crate::{Ops, OpsError};
use serde::Serialize;
use stead_api_derive::Schema;
use stead_driver::hardware::{PciDevice, UsbDevice};
use stead_model::MappingKind;

/// A function of a PCI device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct PciView {
    /// Its address: `0000:01:00.0`.
    pub id: String,
    /// What it is: `0x030000`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Who made it: `0x10de`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// What its maker calls it: `0x2204`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The same of its subsystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subsystem_vendor: Option<String>,
    /// See `subsystem_vendor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subsystem_device: Option<String>,
    /// The group of devices that the host can't keep apart; -1: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommugroup: Option<i64>,
    /// 1: it can make mediated devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mdev: Option<u8>,
}

/// A USB device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct UsbView {
    /// Its bus.
    pub busnum: u32,
    /// Its number there.
    pub devnum: u32,
    /// What it is, by USB's numbers; 9: a hub.
    pub class: u32,
    /// How many ports are on the way to it.
    pub level: usize,
    /// The last of them, counted from 0.
    pub port: u32,
    /// The ports on the way: `2.3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usbpath: Option<String>,
    /// Megabits a second.
    pub speed: String,
    /// Who made it.
    pub vendid: String,
    /// What its maker calls it.
    pub prodid: String,
    /// Who made it, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// What it is, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Its serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// A kind of mediated devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct MdevView {
    /// Its name to the kernel.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What its driver says of it.
    pub description: String,
    /// How many more can be made.
    pub available: u32,
}

fn pci(device: PciDevice, verbose: bool) -> PciView {
    let hex = |text: String| verbose.then(|| format!("0x{text}"));
    PciView {
        class: hex(device.class),
        vendor: hex(device.vendor),
        device: hex(device.device),
        subsystem_vendor: device.subsystem_vendor.and_then(hex),
        subsystem_device: device.subsystem_device.and_then(hex),
        iommugroup: verbose.then(|| device.iommu_group.map_or(-1, i64::from)),
        mdev: (verbose && !device.mdevs.is_empty()).then_some(1),
        id: device.address,
    }
}

fn usb(device: UsbDevice) -> UsbView {
    let ports: Vec<u32> =
        device.ports.iter().flat_map(|p| p.split('.')).filter_map(|n| n.parse().ok()).collect();
    UsbView {
        busnum: device.bus,
        devnum: device.number,
        class: device.class,
        level: ports.len(),
        port: ports.last().map_or(0, |n| n.saturating_sub(1)),
        usbpath: device.ports,
        speed: device.speed,
        vendid: device.vendor,
        prodid: device.product,
        manufacturer: device.manufacturer_name,
        product: device.product_name,
        serial: device.serial,
    }
}

impl Ops {
    /// This node's PCI devices, but for those whose class begins so.
    pub async fn pci_devices(&self, without: &[String], verbose: bool) -> Vec<PciView> {
        let left_out = |d: &PciDevice| without.iter().any(|class| d.class.starts_with(class.as_str()));
        let all = self.guests.hardware().await.pci.into_iter();
        all.filter(|d| !left_out(d)).map(|d| pci(d, verbose)).collect()
    }

    /// This node's USB devices.
    pub async fn usb_devices(&self) -> Vec<UsbView> {
        self.guests.hardware().await.usb.into_iter().map(usb).collect()
    }

    /// The kinds of mediated devices that a PCI device of this node, or what it has behind a mapping, can make.
    pub async fn mdev_types(&self, device: &str) -> Result<Vec<MdevView>, OpsError> {
        let hardware = self.guests.hardware().await;
        let paths: Vec<String> = if device.contains(':') {
            vec![device.to_owned()]
        } else {
            let mapping = self.mapping(MappingKind::Pci, device)?;
            mapping.at(&self.me.name).filter_map(|e| e.path.clone()).collect()
        };
        let mut all: Vec<MdevView> = vec![];
        for found in paths.iter().flat_map(|path| hardware.pci_at(path)).flat_map(|d| &d.mdevs) {
            match all.iter_mut().find(|m| m.kind == found.kind) {
                Some(known) => known.available += found.available,
                None => all.push(MdevView {
                    kind: found.kind.clone(),
                    name: found.name.clone(),
                    description: found.description.clone(),
                    available: found.available,
                }),
            }
        }
        Ok(all)
    }
}
