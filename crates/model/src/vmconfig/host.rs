//! Options that give a VM what is its host's: USB and PCI devices, memory that other programs see.

use super::check::{Rules, integer};
use super::devices::{flag, named};
use super::keys::{KeyError, split_index};
use super::{Settings, keys};
use crate::mapping::{is_device_id, is_mapping_id, is_pci_path, is_usb_path};
use crate::property::PropertyString;
use crate::size::Mebibytes;

/// A USB device of the host, `usb0` to `usb13`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usb {
    /// The option.
    pub key: String,
    /// Its number.
    pub index: u32,
    /// Which device.
    pub source: UsbSource,
}

/// Which USB device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsbSource {
    /// By vendor and product, wherever it is plugged in.
    Id(String, String),
    /// Whatever is plugged in there: a bus, and the ports on the way.
    Port(u32, String),
    /// What the cluster calls so.
    Mapping(String),
    /// A viewer's. There is none here: QEMU on Debian has no SPICE.
    Spice,
}

/// A PCI device of the host, `hostpci0` to `hostpci15`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPci {
    /// The option.
    pub key: String,
    /// Its number.
    pub index: u32,
    /// Which device.
    pub source: PciSource,
    /// Whether the guest sees it on PCI Express.
    pub pcie: bool,
    /// Whether the guest sees its ROM.
    pub rombar: bool,
    /// Whether it is the guest's screen.
    pub x_vga: bool,
    /// Which kind of mediated device it is to make, if that is what the guest gets.
    pub mdev: Option<String>,
    /// A file of `/usr/share/kvm` with the ROM that the guest sees.
    pub romfile: Option<String>,
    /// Whether it sits where Intel's screens do.
    pub legacy_igd: bool,
    /// Numbers that the guest sees in the place of its own, by QEMU's properties: `x-pci-vendor-id`.
    pub ids: Vec<(&'static str, u32)>,
}

/// Which PCI devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PciSource {
    /// Any one of these, the first that nobody has; each is several addresses that the guest gets together, `0000:01:00.0` or
    /// `0000:01:00` for all functions. Of a user's there is one.
    Host(Vec<Vec<String>>),
    /// What the cluster calls so.
    Mapping(String),
}

/// Memory that other programs of the host see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ivshmem {
    /// How much, a power of two.
    pub size: Mebibytes,
    /// The end of its name below `/dev/shm`; none: the VM's number.
    pub name: Option<String>,
}

/// What stands between devices to choose from, in what the cluster's names are resolved to.
const OR: char = '|';

fn mapped(key: &str, props: &PropertyString) -> Result<Option<String>, KeyError> {
    match (props.get("mapping"), props.get_default("host")) {
        (Some(_), Some(_)) => KeyError::value(key, "it is either 'host' or 'mapping'"),
        (None, None) => KeyError::value(key, "it names no device: give 'host' or 'mapping'"),
        (Some(id), None) if is_mapping_id(id) => Ok(Some(id.to_owned())),
        (Some(id), None) => KeyError::value(key, format_args!("mapping: '{id}' is no name of a mapping")),
        (None, Some(_)) => Ok(None),
    }
}

impl Usb {
    /// Reads an option.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        // Every port is both: what it asks for happens anyway.
        flag(key, &props, "usb3", false)?;
        let host = props.get_default("host").unwrap_or_default();
        let source = match mapped(key, &props)? {
            Some(id) => UsbSource::Mapping(id),
            None if host.eq_ignore_ascii_case("spice") => UsbSource::Spice,
            None => usb_source(key, host)?,
        };
        Ok(Self { key: key.to_owned(), index: split_index(key).map_or(0, |(_, n)| n), source })
    }
}

fn usb_source(key: &str, host: &str) -> Result<UsbSource, KeyError> {
    let plain: Vec<&str> = host.split(':').map(|part| part.trim_start_matches("0x")).collect();
    let id = plain.join(":").to_ascii_lowercase();
    if is_device_id(&id)
        && let Some((vendor, product)) = id.split_once(':')
    {
        return Ok(UsbSource::Id(vendor.to_owned(), product.to_owned()));
    }
    if is_usb_path(host)
        && let Some((bus, ports)) = host.split_once('-')
        && let Ok(bus) = bus.parse()
    {
        return Ok(UsbSource::Port(bus, ports.to_owned()));
    }
    KeyError::value(
        key,
        format_args!("host: '{host}' is neither VENDOR:PRODUCT, as 046d:c52b, nor BUS-PORT, as 1-2.3"),
    )
}

const IDS: [(&str, &str); 4] = [
    ("device-id", "x-pci-device-id"),
    ("sub-device-id", "x-pci-sub-device-id"),
    ("sub-vendor-id", "x-pci-sub-vendor-id"),
    ("vendor-id", "x-pci-vendor-id"),
];

impl HostPci {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        let source = match mapped(key, &props)? {
            Some(id) => PciSource::Mapping(id),
            None => pci_source(key, props.get_default("host").unwrap_or_default())?,
        };
        let mut ids = vec![];
        for (name, property) in IDS {
            let Some(text) = props.get(name) else { continue };
            match text
                .strip_prefix("0x")
                .filter(|t| (1..=4).contains(&t.len()))
                .map(|t| u32::from_str_radix(t, 16))
            {
                Some(Ok(number)) => ids.push((property, number)),
                _ => return KeyError::value(key, format_args!("{name}: '{text}' is not of the form 0x10de")),
            }
        }
        let file = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            match props.get(name) {
                Some(text) if text.starts_with('.') || !text.chars().all(plain) => {
                    KeyError::value(key, format_args!("{name}: '{text}' is no plain name"))
                }
                text => Ok(text.map(str::to_owned)),
            }
        };
        let made = Self {
            key: key.to_owned(),
            index: split_index(key).map_or(0, |(_, n)| n),
            source,
            pcie: flag(key, &props, "pcie", false)?,
            rombar: flag(key, &props, "rombar", true)?,
            x_vga: flag(key, &props, "x-vga", false)?,
            mdev: file("mdev")?,
            romfile: file("romfile")?,
            legacy_igd: flag(key, &props, "legacy-igd", false)?,
            ids,
        };
        if made.mdev.is_some() && made.legacy_igd {
            return KeyError::value(key, "legacy-igd: a mediated device is no Intel screen");
        }
        Ok(made)
    }
}

fn pci_source(key: &str, text: &str) -> Result<PciSource, KeyError> {
    let full =
        |part: &str| if part.matches(':').count() == 1 { format!("0000:{part}") } else { part.to_owned() };
    let mut choice = vec![];
    for one in text.split(OR) {
        let paths: Vec<String> = one.split(';').map(|part| full(&part.to_ascii_lowercase())).collect();
        if let Some(wrong) = paths.iter().find(|path| !is_pci_path(path)) {
            return KeyError::value(
                key,
                format_args!("host: '{wrong}' is not of the form 0000:01:00.0 or 01:00"),
            );
        }
        choice.push(paths);
    }
    Ok(PciSource::Host(choice))
}

impl Ivshmem {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        let Some(size) = props.get("size") else { return KeyError::value(key, "size: it must be given") };
        let size = named(key, "size", |key| integer(key, size, 1, 1 << 20))?;
        if !size.is_power_of_two() {
            return KeyError::value(
                key,
                format_args!("size: {size} is not a power of two, which the guest's card needs"),
            );
        }
        let name = props.get("name").map(str::to_owned);
        let plain = |n: &String| {
            !n.is_empty() && n.len() <= 64 && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if let Some(name) = name.as_ref().filter(|n| !plain(n)) {
            return KeyError::value(
                key,
                format_args!("name: '{name}' must have 1 to 64 letters, digits and '-'"),
            );
        }
        Ok(Self { size: Mebibytes(size), name })
    }
}

/// Whether the option is a USB device's, and which.
pub fn as_usb(key: &str) -> Option<u32> {
    split_index(key).filter(|(name, _)| *name == "usb" && keys::lookup(key).is_some()).map(|(_, n)| n)
}

/// Whether the option is a PCI device's, and which.
pub fn as_hostpci(key: &str) -> Option<u32> {
    split_index(key).filter(|(name, _)| *name == "hostpci" && keys::lookup(key).is_some()).map(|(_, n)| n)
}

pub(super) fn usb(key: &str, value: &str) -> Result<(), KeyError> {
    Rules { default: "host", works: &["mapping", "usb3"], later: &[] }.check(key, value)?;
    match Usb::parse(key, value)?.source {
        UsbSource::Spice => KeyError::unsupported(
            key,
            "'spice' needs SPICE, which QEMU on Debian does not have: plug the device into a node",
        ),
        _ => Ok(()),
    }
}

pub(super) fn hostpci(key: &str, value: &str) -> Result<(), KeyError> {
    let works = &[
        "device-id",
        "legacy-igd",
        "mapping",
        "mdev",
        "pcie",
        "rombar",
        "romfile",
        "sub-device-id",
        "sub-vendor-id",
        "vendor-id",
        "x-vga",
    ];
    Rules { default: "host", works, later: &[("driver", &["vfio"])] }.check(key, value)?;
    match HostPci::parse(key, value)?.source {
        PciSource::Host(choice) if choice.len() > 1 => {
            KeyError::value(key, "host: it is one device, or several with ';'")
        }
        _ => Ok(()),
    }
}

pub(super) fn ivshmem(key: &str, value: &str) -> Result<(), KeyError> {
    Rules { default: "", works: &["name", "size"], later: &[] }.check(key, value)?;
    Ivshmem::parse(key, value).map(drop)
}

impl Settings {
    /// USB devices by number.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn usbs(&self) -> Result<Vec<Usb>, KeyError> {
        self.family("usb").map(|(key, value)| Usb::parse(key, value)).collect()
    }

    /// PCI devices of the host by number.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn hostpcis(&self) -> Result<Vec<HostPci>, KeyError> {
        self.family("hostpci").map(|(key, value)| HostPci::parse(key, value)).collect()
    }

    /// Memory that other programs of the host see.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn ivshmem(&self) -> Result<Option<Ivshmem>, KeyError> {
        self.get("ivshmem").map(|text| Ivshmem::parse("ivshmem", text)).transpose()
    }

    /// The configuration with an option that says on which device of this host it stands, in the place of a name of the
    /// cluster's: each of `choice` is one to choose from.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn spell_out(&mut self, key: &str, choice: &[String]) -> Result<(), KeyError> {
        let text = self.get(key).unwrap_or_default();
        let mut props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        props.remove("mapping");
        props.remove_bare();
        let one = choice.join(&OR.to_string());
        props.set("host", &one).or_else(|e| KeyError::value(key, e))?;
        self.set(key, &props.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usb_devices_are_named_in_four_ways() {
        let source = |text: &str| Usb::parse("usb3", text).map(|u| (u.index, u.source));
        let id = || UsbSource::Id("046d".into(), "c52b".into());
        assert_eq!(source("046D:C52B"), Ok((3, id())));
        assert_eq!(source("host=0x046d:0xc52b,usb3=1"), Ok((3, id())));
        assert_eq!(source("host=1-2.3"), Ok((3, UsbSource::Port(1, "2.3".into()))));
        assert_eq!(source("mapping=key"), Ok((3, UsbSource::Mapping("key".into()))));
        assert!(usb("usb0", "spice").is_err(), "it is kept, and refused");
        for wrong in ["host=1-", "host=46d:1", "mapping=key,host=1-2", "usb3=1", "mapping=a b"] {
            assert!(source(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pci_devices_have_full_addresses() {
        let paths = |text: &str| match HostPci::parse("hostpci0", text).map(|d| d.source) {
            Ok(PciSource::Host(choice)) => choice,
            other => panic!("{other:?}"),
        };
        assert_eq!(paths("01:00.0"), [["0000:01:00.0"]]);
        assert_eq!(paths("host=0000:01:00;0001:02:00.1,pcie=1"), [["0000:01:00", "0001:02:00.1"]]);
        let gpu = HostPci::parse("hostpci0", "01:00,x-vga=1,vendor-id=0x10de,romfile=card.rom").unwrap();
        assert!(gpu.x_vga && gpu.rombar && !gpu.pcie);
        assert_eq!(gpu.ids, [("x-pci-vendor-id", 0x10de)]);
        for wrong in ["01.0", "01:00|02:00", "01:00,romfile=../x", "01:00,vendor-id=10de", "01:00,driver=x"] {
            assert!(hostpci("hostpci0", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_of_the_clusters_is_spelled_out() {
        let mut settings = Settings::default();
        settings.set("hostpci1", "mapping=gpu,pcie=1").unwrap();
        settings.spell_out("hostpci1", &["0000:01:00;0000:02:00.1".into(), "0000:03:00.0".into()]).unwrap();
        let found = settings.hostpcis().unwrap().remove(0);
        let choice = vec![vec!["0000:01:00".into(), "0000:02:00.1".into()], vec!["0000:03:00.0".into()]];
        assert_eq!((found.source, found.pcie), (PciSource::Host(choice), true));
    }

    #[test]
    fn shared_memory_is_a_power_of_two() {
        assert!(ivshmem("ivshmem", "size=32,name=frames").is_ok());
        for wrong in ["size=33", "name=x", "size=32,name=a/b", "32"] {
            assert!(ivshmem("ivshmem", wrong).is_err(), "{wrong}");
        }
    }
}
