//! Where each device sits on the PCI bus. Addresses are for ever: a change here breaks migrations.
//!
//! ```text
//!  i440fx     main bus pci.0, where devices come and go while the guest runs:
//!             01 chipset  02 screen  03 balloon  05 06 SCSI  07 SATA  08 agent  09 random  0a-0f virtio0-5
//!             10 watchdog  11 sound  12-17 net0-5  18 clipboard  19 shared memory  1a bridge to pci.4
//!             1b-1d bridges to pci.3, pci.2, pci.1  1e USB 3
//!  q35        main bus pcie.0, where none comes or goes: as above, but for
//!             04 USB   0a 0b a root port for each of hostpci0-15 that is on PCI Express
//!             19 1a a root port for each of virtio0-5, net0-5 and the first two SCSI controllers
//!             1b root ports to the bridges pci.1, pci.2, pci.3, pci.4   1c shared memory
//!  both       pci.1: 01-1a net6-31        pci.2: 01-0a virtio6-15        pci.3: 01-1d further SCSI controllers
//!             pci.4: 01-10 hostpci0-15  11-1a virtiofs0-9
//! ```
//!
//! Ports and bridges are there whether anything is behind them or not: a guest to which a device was plugged in, and from which it
//! was unplugged again, is the same machine as one that never had it. Those for devices and directories of the host, which never come and go,
//! are there with them alone: root ports cost the firmware time.

use super::part::{Part, Place};
use serde_json::json;

/// The machine's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chipset {
    /// `pc-i440fx-*`.
    I440fx,
    /// `pc-q35-*`.
    Q35,
}

/// The graphics card's slot.
pub const VGA: u32 = 0x2;
/// The balloon's.
pub const BALLOON: u32 = 0x3;
/// The SATA controller's.
pub const SATA: u32 = 0x7;
/// The guest agent's serial card's.
pub const AGENT: u32 = 0x8;
/// The random number generator's.
pub const RNG: u32 = 0x9;
/// The watchdog's.
pub const WATCHDOG: u32 = 0x10;
/// The sound card's.
pub const AUDIO: u32 = 0x11;
/// The clipboard's serial card's.
pub const CLIPBOARD: u32 = 0x18;
/// The USB controller's that devices of the host are plugged into. It is always there.
pub const XHCI: u32 = 0x1e;
const USB: u32 = 0x4;
/// Root ports of devices of the host.
const HOST_PORTS: u32 = 0xa;
/// The bridge of devices of the host, and its slot on the older of the machines.
const HOST_BRIDGE: u32 = 4;
const HOST_BRIDGE_SLOT: u32 = 0x1a;
/// The first slot of shared directories behind it.
const SHARES: u32 = 0x11;
const SCSI: u32 = 0x5;
const VIRTIO: u32 = 0xa;
const NET: u32 = 0x12;
/// The first bridge's; the others' are below it.
const BRIDGE: u32 = 0x1d;
/// So many devices of each kind are not behind a bridge.
const FIRST: u32 = 6;
const FIRST_SCSI: u32 = 2;
/// Slots of eight root ports each.
const PORTS: u32 = 0x19;
const BRIDGE_PORTS: u32 = 0x1b;
const BRIDGES: u32 = 3;

impl Chipset {
    /// By a machine type's name.
    pub fn of(machine: &str) -> Self {
        if machine.starts_with("pc-q35") { Self::Q35 } else { Self::I440fx }
    }

    /// A slot of the main bus.
    pub fn main(self, slot: u32) -> Place {
        let bus = match self {
            Self::I440fx => "pci.0",
            Self::Q35 => "pcie.0",
        };
        slot_of(bus, slot)
    }

    /// The USB controller: a function of the chipset where that has a place for it.
    pub fn usb(self) -> Place {
        match self {
            Self::I440fx => vec![("bus", json!("pci.0")), ("addr", json!("0x1.0x2"))],
            Self::Q35 => self.main(USB),
        }
    }

    /// Shared memory's card.
    pub fn ivshmem(self) -> Place {
        self.main(if self == Self::I440fx { 0x19 } else { 0x1c })
    }

    /// A function of `hostpciN`.
    pub fn hostpci(self, index: u32, pcie: bool, function: u32) -> Place {
        let (bus, slot) =
            if pcie { (format!("hostport.{index}"), 0) } else { (format!("pci.{HOST_BRIDGE}"), index + 1) };
        let addr = if function == 0 { format!("{slot:#x}") } else { format!("{slot:#x}.{function:#x}") };
        vec![("bus", json!(bus)), ("addr", json!(addr))]
    }

    /// `virtiofsN`.
    pub fn virtiofs(self, index: u32) -> Place {
        slot_of(&format!("pci.{HOST_BRIDGE}"), SHARES + index)
    }

    /// What devices of the host are behind: for each its number, and whether it is on PCI Express. `shares`: directories are, too.
    pub fn hostpci_bridges(self, devices: impl Iterator<Item = (u32, bool)>, shares: bool) -> Vec<Part> {
        let (express, plain): (Vec<_>, Vec<_>) = devices.partition(|(_, pcie)| *pcie);
        let mut ports: Vec<u32> = express.iter().map(|(n, _)| *n).collect();
        // The first function of a slot must be there for the others to be found.
        ports.extend(express.iter().map(|(n, _)| n / 8 * 8));
        ports.sort_unstable();
        ports.dedup();
        let mut parts: Vec<Part> =
            ports.into_iter().map(|n| self.port(format!("hostport.{n}"), HOST_PORTS, n)).collect();
        if plain.is_empty() && !shares {
            return parts;
        }
        let id = format!("pci.{HOST_BRIDGE}");
        match self {
            Self::I440fx => {
                let bridge = Part::device("pci-bridge", id).with("chassis_nr", HOST_BRIDGE);
                parts.push(bridge.at(self.main(HOST_BRIDGE_SLOT)));
            }
            Self::Q35 => {
                let port = format!("bridge.{HOST_BRIDGE}");
                parts.push(self.port(port.clone(), BRIDGE_PORTS, HOST_BRIDGE - 1));
                parts.push(Part::device("pcie-pci-bridge", id).at(slot_of(&port, 0)));
            }
        }
        parts
    }

    /// `netN`.
    pub fn net(self, index: u32) -> Place {
        if index < FIRST { self.plug(NET, FIRST, index) } else { behind(1, index - FIRST) }
    }

    /// `virtioN`.
    pub fn virtio(self, index: u32) -> Place {
        if index < FIRST { self.plug(VIRTIO, 0, index) } else { behind(2, index - FIRST) }
    }

    /// The SCSI controller of that number.
    pub fn scsi(self, controller: u32) -> Place {
        if controller < FIRST_SCSI {
            self.plug(SCSI, 2 * FIRST, controller)
        } else {
            behind(3, controller - FIRST_SCSI)
        }
    }

    /// A place that a device can be plugged into, by its family's first slot and first root port.
    fn plug(self, slot: u32, port: u32, index: u32) -> Place {
        match self {
            Self::I440fx => self.main(slot + index),
            Self::Q35 => slot_of(&format!("port.{}", port + index), 0),
        }
    }

    /// The ports and bridges.
    pub fn bridges(self) -> Vec<Part> {
        let numbers = 1..=BRIDGES;
        match self {
            Self::I440fx => numbers
                .map(|n| {
                    let bridge = Part::device("pci-bridge", format!("pci.{n}"));
                    bridge.with("chassis_nr", n).at(self.main(BRIDGE + 1 - n))
                })
                .collect(),
            Self::Q35 => {
                let ports = (0..2 * FIRST + FIRST_SCSI).map(|n| self.port(format!("port.{n}"), PORTS, n));
                let behind = numbers.flat_map(|n| {
                    let port = format!("bridge.{n}");
                    let bridge = Part::device("pcie-pci-bridge", format!("pci.{n}")).at(slot_of(&port, 0));
                    [self.port(port, BRIDGE_PORTS, n - 1), bridge]
                });
                ports.chain(behind).collect()
            }
        }
    }

    /// A root port. Its chassis is its place, so that no two are alike.
    fn port(self, id: String, first: u32, number: u32) -> Part {
        let (slot, function) = (first + number / 8, number % 8);
        let port = Part::device("pcie-root-port", id).with("chassis", slot * 8 + function);
        let port = if function == 0 { port.with("multifunction", true) } else { port };
        port.with("bus", "pcie.0").with("addr", format!("{slot:#x}.{function:#x}"))
    }
}

fn slot_of(bus: &str, slot: u32) -> Place {
    vec![("bus", json!(bus)), ("addr", json!(format!("{slot:#x}")))]
}

/// Behind a bridge, whose slot 0 takes none.
fn behind(bridge: u32, index: u32) -> Place {
    slot_of(&format!("pci.{bridge}"), index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_devices_have_one_place_and_every_bus_is_there() {
        for chipset in [Chipset::I440fx, Chipset::Q35] {
            let fixed = [VGA, BALLOON, SATA, AGENT, RNG, WATCHDOG, AUDIO, CLIPBOARD, XHCI]
                .map(|slot| chipset.main(slot));
            let places: Vec<Place> = fixed
                .into_iter()
                .chain([chipset.usb(), chipset.ivshmem()])
                .chain((0..16).map(|n| chipset.hostpci(n, false, 0)))
                .chain((0..16).filter(|_| chipset == Chipset::Q35).map(|n| chipset.hostpci(n, true, 0)))
                .chain((0..10).map(|n| chipset.virtiofs(n)))
                .chain((0..32).map(|n| chipset.net(n)))
                .chain((0..16).map(|n| chipset.virtio(n)))
                .chain((0..31).map(|n| chipset.scsi(n)))
                .collect();
            let mut bridges = chipset.bridges();
            let express = chipset == Chipset::Q35;
            let hosts = (0..16).flat_map(|n| [(n, false)].into_iter().chain(express.then_some((n, true))));
            bridges.extend(chipset.hostpci_bridges(hosts, true));
            let at =
                |part: &Part| part.words()[1].split_once(",bus=").unwrap().1.replace(",multifunction=on", "");
            let taken: BTreeSet<String> = bridges.iter().map(at).collect();
            assert_eq!(taken.len(), bridges.len(), "no two bridges have one place");
            let buses: BTreeSet<&str> = bridges.iter().map(Part::id).chain(["pci.0", "pcie.0"]).collect();
            for place in &places {
                assert!(buses.contains(place[0].1.as_str().unwrap()), "{place:?}");
                assert_eq!(places.iter().filter(|p| *p == place).count(), 1, "{place:?}");
            }
        }
    }
}
