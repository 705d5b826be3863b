//! What is the host's: USB and PCI devices, memory that other programs see.

use super::part::{Part, text_of};
use super::pci::Chipset;
use super::{Argv, Context, Hardware, boot_index, refuse, unusable};
use crate::vfio::Passed;
use std::path::PathBuf;
use stead_driver::guest::GuestError;
use stead_model::Vmid;
use stead_model::vmconfig::{HostPci, Ivshmem, Settings, Usb, UsbSource};

/// Where shared memory has names, and how those begin.
const SHARED: &str = "/dev/shm/pve-shm-";

/// USB devices. Each has the port of its option's number, of which every speed is.
pub(super) fn usb_parts(hw: &Hardware<'_>) -> Result<Vec<Part>, GuestError> {
    let all = hw.settings.usbs().map_err(unusable)?;
    all.iter().filter_map(|usb| usb_part(hw.settings, usb).transpose()).collect()
}

fn usb_part(settings: &Settings, usb: &Usb) -> Result<Option<Part>, GuestError> {
    let part = Part::device("usb-host", usb.key.as_str())
        .with("bus", "xhci.0")
        .with("port", (usb.index + 1).to_string())
        .maybe("bootindex", boot_index(settings, &usb.key)?);
    let number = |text: &str| u32::from_str_radix(text, 16).unwrap_or_default();
    Ok(match &usb.source {
        UsbSource::Spice => None,
        // Only to be known by its id: what is made of it was spelled out before.
        UsbSource::Mapping(_) => Some(part),
        UsbSource::Id(vendor, product) => {
            Some(part.with("vendorid", number(vendor)).with("productid", number(product)))
        }
        UsbSource::Port(bus, ports) => Some(part.with("hostbus", *bus).with("hostport", ports.as_str())),
    })
}

/// Refuses a name of the cluster's that nobody has spelled out.
pub(super) fn check_spelled_out(settings: &Settings) -> Result<(), GuestError> {
    for usb in settings.usbs().map_err(unusable)? {
        if let UsbSource::Mapping(name) = usb.source {
            return refuse(
                &usb.key,
                format!("the driver was not told what the mapping '{name}' is on this node"),
            );
        }
    }
    Ok(())
}

/// Whether a device of the host is the guest's screen.
pub(super) fn has_screen(settings: &Settings) -> Result<bool, GuestError> {
    Ok(settings.hostpcis().map_err(unusable)?.iter().any(|pci| pci.x_vga || pci.legacy_igd))
}

/// PCI devices, with what they are behind.
pub(super) fn pci(argv: &mut Argv, cx: &Context<'_>, chipset: Chipset) -> Result<(), GuestError> {
    let all = cx.settings.hostpcis().map_err(unusable)?;
    if let Some(pci) = all.iter().find(|pci| pci.pcie && chipset != Chipset::Q35) {
        return refuse(&pci.key, "pcie: PCI Express needs the machine type q35");
    }
    if let Some(pci) = all.iter().find(|pci| pci.legacy_igd && chipset == Chipset::Q35) {
        return refuse(&pci.key, "legacy-igd: it needs the machine type pc (i440fx)");
    }
    let placed = all.iter().filter(|pci| !pci.legacy_igd).map(|pci| (pci.index, pci.pcie));
    chipset.hostpci_bridges(placed, cx.settings.shares_memory()).iter().for_each(|bridge| argv.part(bridge));
    for pci in &all {
        let Some(passed) = cx.passed.iter().find(|passed| passed.key == pci.key) else {
            return refuse(&pci.key, "the driver was not told which device of this node it is");
        };
        for part in pci_parts(cx, pci, passed, chipset)? {
            argv.part(&part);
        }
    }
    Ok(())
}

fn pci_parts(
    cx: &Context<'_>,
    pci: &HostPci,
    passed: &Passed,
    chipset: Chipset,
) -> Result<Vec<Part>, GuestError> {
    let several = passed.functions.len() > 1;
    let mut parts = vec![];
    for (number, address) in (0_u32..).zip(&passed.functions) {
        let id = if several { format!("{}.{number}", pci.key) } else { pci.key.clone() };
        let part = Part::device("vfio-pci", id);
        let part = match &passed.mdev {
            Some(mdev) => part.with("sysfsdev", mdev.path().display().to_string()),
            None => part.with("host", address.as_str()),
        };
        let place = match pci.legacy_igd {
            true => chipset.main(super::pci::VGA),
            false => chipset.hostpci(pci.index, pci.pcie, number),
        };
        let mut part = part.at(place).maybe("multifunction", (several && number == 0).then_some(true));
        if number == 0 {
            part = part
                .maybe("rombar", (!pci.rombar).then_some(0))
                .maybe("romfile", passed.romfile.as_ref().map(|file| file.display().to_string()))
                .maybe("x-vga", pci.x_vga.then_some(true))
                .maybe("bootindex", boot_index(cx.settings, &pci.key)?);
            part = pci.ids.iter().fold(part, |part, (property, id)| part.with(property, *id));
        }
        parts.push(part);
    }
    Ok(parts)
}

/// The file of shared memory.
pub fn shared_file(vmid: Vmid, memory: &Ivshmem) -> PathBuf {
    PathBuf::from(format!("{SHARED}{}", memory.name.clone().unwrap_or_else(|| vmid.to_string())))
}

/// Memory that other programs see, and the card behind which the guest sees it.
pub(super) fn shared_memory(argv: &mut Argv, cx: &Context<'_>, chipset: Chipset) -> Result<(), GuestError> {
    let Some(memory) = cx.settings.ivshmem().map_err(unusable)? else { return Ok(()) };
    let file = shared_file(cx.vmid, &memory).display().to_string();
    argv.part(
        &Part::object("memory-backend-file", SHARED_ID)
            .with("size", memory.size.0 << 20)
            .with("share", true)
            .with("mem-path", file),
    );
    argv.part(&Part::device("ivshmem-plain", "ivshmem").with("memdev", SHARED_ID).at(chipset.ivshmem()));
    Ok(())
}

/// The object that is the shared memory.
const SHARED_ID: &str = "shmmem-ivshmem";

/// The files of shared memory on a command line.
pub fn shared_files(argv: &[String]) -> Vec<PathBuf> {
    // Of these objects alone: what else a command line says may be its user's words.
    let objects = argv.windows(2).filter(|pair| pair[0] == "-object" && pair[1].contains(SHARED_ID));
    objects
        .flat_map(|pair| pair[1].split(','))
        .filter_map(|p| p.strip_prefix("mem-path="))
        .filter(|p| p.strip_prefix(SHARED).is_some_and(|name| !name.contains('/')))
        .map(PathBuf::from)
        .collect()
}

/// The addresses of the host's PCI devices on a command line.
pub fn passed_addresses(argv: &[String]) -> Vec<String> {
    let devices = argv.iter().filter(|word| word.starts_with("vfio-pci,"));
    let host = |word: &String| text_of(word, "host");
    devices.filter_map(host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_program_s_own_words_name_files_that_go_with_it() {
        let words = |all: &[&str]| all.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let own = format!("memory-backend-file,id={SHARED_ID},mem-path={SHARED}frames,share=on,size=4M");
        assert_eq!(shared_files(&words(&["-object", &own])), [PathBuf::from(format!("{SHARED}frames"))]);
        let said = format!("type=1,serial=x,,mem-path={SHARED}other");
        assert!(shared_files(&words(&["-smbios", &said, "-object", "iothread,id=a"])).is_empty());
        let out = own.replace("frames", "a/../../../etc/passwd");
        assert!(shared_files(&words(&["-object", &out])).is_empty());
    }
}
