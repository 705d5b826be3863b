//! Where each device sits on the PCI bus. Addresses are for ever: a change here breaks migrations.
//!
//! ```text
//!  main bus:  01 chipset (i440fx)  02 screen  03 balloon  04 USB (q35)  05 06 SCSI  07 SATA  08 agent  09 random
//!             0a-0f virtio0-5   10 watchdog  11 sound  12-17 net0-5   1b-1d bridges to pci.3, pci.2, pci.1
//!  pci.1:     01-1a net6-31        pci.2: 01-0a virtio6-15        pci.3: 01-1f further SCSI controllers
//! ```

use std::collections::BTreeMap;

/// The machine's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chipset {
    /// `pc-i440fx-*`.
    I440fx,
    /// `pc-q35-*`.
    Q35,
}

impl Chipset {
    /// By a machine type's name.
    pub fn of(machine: &str) -> Self {
        if machine.starts_with("pc-q35") { Self::Q35 } else { Self::I440fx }
    }

    fn bus(self) -> &'static str {
        match self {
            Self::I440fx => "pci.0",
            Self::Q35 => "pcie.0",
        }
    }
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
const USB: u32 = 0x4;
const SCSI: u32 = 0x5;
const VIRTIO: u32 = 0xa;
const NET: u32 = 0x12;

/// Gives out addresses and remembers which bridges they need.
#[derive(Debug)]
pub struct Pci {
    chipset: Chipset,
    bridges: BTreeMap<u32, u32>,
}

impl Pci {
    /// Of one machine.
    pub fn new(chipset: Chipset) -> Self {
        Self { chipset, bridges: BTreeMap::new() }
    }

    /// The machine's family.
    pub fn chipset(&self) -> Chipset {
        self.chipset
    }

    /// A slot of the main bus.
    pub fn main(&self, slot: u32) -> String {
        format!("bus={},addr={slot:#x}", self.chipset.bus())
    }

    /// The USB controller: a function of the chipset where that has a place for it.
    pub fn usb(&self) -> String {
        match self.chipset {
            Chipset::I440fx => "bus=pci.0,addr=0x1.0x2".to_owned(),
            Chipset::Q35 => self.main(USB),
        }
    }

    fn behind(&mut self, bridge: u32, slot: u32) -> String {
        self.bridges.insert(bridge, 0x1e - bridge);
        format!("bus=pci.{bridge},addr={slot:#x}")
    }

    /// `netN`.
    pub fn net(&mut self, index: u32) -> String {
        if index < 6 { self.main(NET + index) } else { self.behind(1, index - 5) }
    }

    /// `virtioN`.
    pub fn virtio(&mut self, index: u32) -> String {
        if index < 6 { self.main(VIRTIO + index) } else { self.behind(2, index - 5) }
    }

    /// The SCSI controller of that number.
    pub fn scsi(&mut self, controller: u32) -> String {
        if controller < 2 { self.main(SCSI + controller) } else { self.behind(3, controller - 1) }
    }

    /// The bridges that the addresses given out need, as devices.
    pub fn bridges(&self) -> impl Iterator<Item = String> + '_ {
        self.bridges
            .iter()
            .map(|(n, slot)| format!("pci-bridge,id=pci.{n},chassis_nr={n},{}", self.main(*slot)))
    }
}
