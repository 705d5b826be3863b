//! What a host has that it can give to a guest: devices on its PCI and USB buses.

use serde::{Deserialize, Serialize};

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// By address.
    pub pci: Vec<PciDevice>,
    /// Hubs too, by bus and place.
    pub usb: Vec<UsbDevice>,
}

/// A function of a PCI device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// Its address: `0000:01:00.0`.
    pub address: String,
    /// What it is: six hexadecimal digits, `030000` for a screen's.
    pub class: String,
    /// Four hexadecimal digits.
    pub vendor: String,
    /// Four hexadecimal digits.
    pub device: String,
    /// Four hexadecimal digits.
    pub subsystem_vendor: Option<String>,
    /// Four hexadecimal digits.
    pub subsystem_device: Option<String>,
    /// The group of devices that the host can't keep apart; none: there is no IOMMU, and it can't be given away.
    pub iommu_group: Option<u32>,
    /// Kinds of mediated devices that it can make.
    pub mdevs: Vec<MdevType>,
}

/// A kind of mediated devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdevType {
    /// Its name to the kernel: `nvidia-63`.
    pub kind: String,
    /// Its name for people.
    pub name: Option<String>,
    /// What its driver says of it.
    pub description: String,
    /// How many more can be made.
    pub available: u32,
}

/// A USB device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsbDevice {
    /// Its bus.
    pub bus: u32,
    /// Its number there, another one each time that it is plugged in.
    pub number: u32,
    /// The ports on the way to it, `2.3`; none: the bus itself.
    pub ports: Option<String>,
    /// What it is, by USB's numbers.
    pub class: u32,
    /// Megabits a second.
    pub speed: String,
    /// Four hexadecimal digits.
    pub vendor: String,
    /// Four hexadecimal digits.
    pub product: String,
    /// Who made it, as it says.
    pub manufacturer_name: Option<String>,
    /// What it is called, as it says.
    pub product_name: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
}

impl PciDevice {
    /// `10de:2204`.
    pub fn id(&self) -> String {
        format!("{}:{}", self.vendor, self.device)
    }

    /// The same of its subsystem.
    pub fn subsystem_id(&self) -> Option<String> {
        Some(format!("{}:{}", self.subsystem_vendor.as_ref()?, self.subsystem_device.as_ref()?))
    }

    /// Whether a path of a configuration, `0000:01:00.0`, or `0000:01:00` for all functions, means it. The domain 0 may be left out.
    pub fn is_at(&self, path: &str) -> bool {
        let full = if path.matches(':').count() == 1 { format!("0000:{path}") } else { path.to_owned() };
        self.address == full || self.address.rsplit_once('.').is_some_and(|(slot, _)| slot == full)
    }
}

impl UsbDevice {
    /// `046d:c52b`.
    pub fn id(&self) -> String {
        format!("{}:{}", self.vendor, self.product)
    }

    /// Where it is plugged in: `1-2.3`.
    pub fn path(&self) -> Option<String> {
        Some(format!("{}-{}", self.bus, self.ports.as_ref()?))
    }
}

impl Hardware {
    /// The functions of a PCI device that a path means, the first function first.
    pub fn pci_at(&self, path: &str) -> Vec<&PciDevice> {
        self.pci.iter().filter(|d| d.is_at(path)).collect()
    }

    /// The USB device that is plugged in there.
    pub fn usb_at(&self, path: &str) -> Option<&UsbDevice> {
        self.usb.iter().find(|d| d.path().as_deref() == Some(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_means_a_function_or_all_of_them() {
        let device = |address: &str| PciDevice { address: address.to_owned(), ..PciDevice::default() };
        let all = ["0000:01:00.0", "0000:01:00.1", "0000:01:01.0", "0001:01:00.0"].map(device).to_vec();
        let hardware = Hardware { pci: all, usb: vec![] };
        let at = |path: &str| hardware.pci_at(path).iter().map(|d| d.address.clone()).collect::<Vec<_>>();
        assert_eq!(at("0000:01:00"), ["0000:01:00.0", "0000:01:00.1"]);
        assert_eq!(at("01:00.1"), ["0000:01:00.1"]);
        assert_eq!(at("01:02"), [""; 0]);
    }
}
