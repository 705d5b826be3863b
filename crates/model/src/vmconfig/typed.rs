//! Options as the VM driver and the use cases need them: typed, with defaults.
//!
//! An error here means that a *stored* value cannot be used; it names the option.

use super::Settings;
use super::check::{choice, integer};
use super::devices::{Bus, Disk, DiskSource, Net, as_disk, named, spelled};
use super::keys::{KeyError, KeySpec, MAX_CPUS, MAX_MEMORY, Support, lookup, split_index};
use crate::property::PropertyString;
use crate::size::Mebibytes;
use crate::text::{parse_bool, split_list};
use crate::{Size, VolumeId};
use std::fmt;

spelled!(
    /// The firmware.
    Bios {
        /// Legacy BIOS; the default.
        SeaBios = "seabios",
        /// UEFI.
        Ovmf = "ovmf",
    }
);
spelled!(
    /// The SCSI controller.
    ScsiHw {
        /// LSI 53C895A; the default.
        Lsi = "lsi",
        /// LSI 53C810.
        Lsi53c810 = "lsi53c810",
        /// One paravirtual controller for all disks.
        VirtioScsiPci = "virtio-scsi-pci",
        /// A paravirtual controller a disk, so that each can have its own thread.
        VirtioScsiSingle = "virtio-scsi-single",
        /// LSI MegaRAID.
        Megasas = "megasas",
        /// VMware's paravirtual one.
        Pvscsi = "pvscsi",
    }
);
spelled!(
    /// The guest's system, which decides on details of the machine.
    OsType {
        /// Not known; the default.
        Other = "other",
        /// Windows XP.
        Wxp = "wxp",
        /// Windows 2000.
        W2k = "w2k",
        /// Windows 2003.
        W2k3 = "w2k3",
        /// Windows 2008.
        W2k8 = "w2k8",
        /// Windows Vista.
        Wvista = "wvista",
        /// Windows 7.
        Win7 = "win7",
        /// Windows 8, 2012.
        Win8 = "win8",
        /// Windows 10, 2016, 2019.
        Win10 = "win10",
        /// Windows 11, 2022, 2025.
        Win11 = "win11",
        /// Linux 2.4.
        L24 = "l24",
        /// Linux 2.6 and later.
        L26 = "l26",
        /// Solaris.
        Solaris = "solaris",
    }
);

impl OsType {
    /// Whether it is a Windows, whose clock runs in local time.
    pub fn is_windows(self) -> bool {
        self.as_str().starts_with('w')
    }
}

/// The CPU that a guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// QEMU's name of the model; `None`: the driver's default.
    pub model: Option<String>,
    /// Features switched on (`true`) and off.
    pub flags: Vec<(bool, String)>,
    /// All properties as they are written.
    pub props: PropertyString,
}

impl Cpu {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        let plain =
            |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        let model = props.get_default("cputype").map(str::to_owned);
        if let Some(model) = model.as_deref().filter(|m| !plain(m)) {
            return KeyError::value(key, format_args!("'{model}' is not the name of a CPU model"));
        }
        let mut flags = Vec::new();
        for flag in props.get("flags").unwrap_or_default().split(';').filter(|f| !f.is_empty()) {
            let parsed =
                flag.strip_prefix('+').map(|f| (true, f)).or(flag.strip_prefix('-').map(|f| (false, f)));
            match parsed {
                Some((on, name)) if plain(name) && !name.starts_with('-') => {
                    flags.push((on, name.to_owned()));
                }
                _ => {
                    return KeyError::value(
                        key,
                        format_args!("flags: '{flag}' must be +feature or -feature"),
                    );
                }
            }
        }
        Ok(Self { model, flags, props })
    }
}

/// The guest agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Whether the guest is said to run it.
    pub enabled: bool,
    /// Whether its port is an ISA serial port rather than a VirtIO one.
    pub isa: bool,
}

pub(super) fn agent(key: &str, text: &str) -> Result<Agent, KeyError> {
    let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
    let enabled = match props.get_default("enabled") {
        None => false,
        Some(text) => match parse_bool(text) {
            Some(on) => on,
            None => return KeyError::value(key, format_args!("'{text}' is not a boolean (1 or 0)")),
        },
    };
    if let Some(kind) = props.get("type") {
        named(key, "type", |key| choice(key, kind, &["virtio", "isa"]))?;
    }
    Ok(Agent { enabled, isa: props.get("type") == Some("isa") })
}

/// The graphics card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vga {
    /// `std`, `cirrus`, `vmware`, `virtio`, `virtio-gl`, `qxl`..., `none`, or `serial0` to `serial3`: no card,
    /// the screen is that terminal.
    pub kind: String,
    /// Its memory, 4 to 512 MiB.
    pub memory: Option<Mebibytes>,
}

impl Vga {
    const KINDS: [&'static str; 14] = [
        "std",
        "cirrus",
        "vmware",
        "virtio",
        "virtio-gl",
        "qxl",
        "qxl2",
        "qxl3",
        "qxl4",
        "none",
        "serial0",
        "serial1",
        "serial2",
        "serial3",
    ];

    pub(super) fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        let kind = props.get_default("type").unwrap_or("std");
        choice(key, kind, &Self::KINDS)?;
        let memory = match props.get("memory") {
            Some(text) => Some(Mebibytes(named(key, "memory", |key| integer(key, text, 4, 512))?)),
            None => None,
        };
        Ok(Self { kind: kind.to_owned(), memory })
    }
}

/// The random number generator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng {
    /// `/dev/urandom`, `/dev/random` or `/dev/hwrng` of the host.
    pub source: String,
    /// Bytes a period; 0: no limit. Default 1024.
    pub max_bytes: u64,
    /// Milliseconds. Default 1000.
    pub period_ms: u64,
}

impl Rng {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        let source = props.get_default("source").unwrap_or_default();
        named(key, "source", |key| choice(key, source, &["/dev/urandom", "/dev/random", "/dev/hwrng"]))?;
        let number = |name: &str, min: u64, default: u64| match props.get(name) {
            Some(text) => named(key, name, |key| integer(key, text, min, u64::from(u32::MAX))),
            None => Ok(default),
        };
        Ok(Self {
            source: source.to_owned(),
            max_bytes: number("max_bytes", 0, 1024)?,
            period_ms: number("period", 1, 1000)?,
        })
    }
}

/// A serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serial {
    /// A terminal, reached through a socket.
    Socket,
    /// A device of the host below `/dev/`.
    Device(String),
}

impl Serial {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        if text == "socket" {
            return Ok(Self::Socket);
        }
        let climbs = text.split('/').any(|part| part == "..");
        match text.strip_prefix("/dev/") {
            Some(name) if !name.is_empty() && !name.contains(',') && !climbs => {
                Ok(Self::Device(text.to_owned()))
            }
            _ => KeyError::value(key, "value must be 'socket' or a device below /dev/"),
        }
    }
}

/// Order and delays of automatic starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Startup {
    /// Lower ones start first and stop last; `None`: after all others.
    pub order: Option<u64>,
    /// Seconds to wait after its start.
    pub up: Option<u64>,
    /// Seconds that its shutdown may take.
    pub down: Option<u64>,
}

impl Startup {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        let number = |name: &str, text: Option<&str>| match text {
            Some(text) => named(key, name, |key| integer(key, text, 0, u64::from(u32::MAX))).map(Some),
            None => Ok(None),
        };
        Ok(Self {
            order: number("order", props.get_default("order"))?,
            up: number("up", props.get("up"))?,
            down: number("down", props.get("down"))?,
        })
    }
}

/// What the firmware tries to start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// These devices (`scsi0`, `net0`), in this order; with none, from nothing.
    Order(Vec<String>),
    /// Letters of kinds: `c` the first disk, `d` the first CD drive, `n` the first network device; `a` (floppy)
    /// names nothing.
    Legacy(String),
}

impl Boot {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        // `order=` alone is a list of none, which is no property string.
        if text == "order=" {
            return Ok(Self::Order(Vec::new()));
        }
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        if let Some(order) = props.get("order") {
            let devices: Vec<String> =
                order.split(';').filter(|d| !d.is_empty()).map(str::to_owned).collect();
            for (i, device) in devices.iter().enumerate() {
                let bootable = as_disk(device).is_some_and(|(bus, _)| bus != Bus::Unused)
                    || matches!(split_index(device), Some(("net", 0..=31) | ("usb" | "hostpci", 0..=15)));
                if !bootable {
                    return KeyError::value(key, format_args!("'{device}' is not a device to boot from"));
                }
                if devices[..i].contains(device) {
                    return KeyError::value(key, format_args!("'{device}' is given twice"));
                }
            }
            return Ok(Self::Order(devices));
        }
        let letters = props.get_default("legacy").unwrap_or_default();
        if letters.is_empty() || letters.len() > 4 || !letters.chars().all(|c| "acdn".contains(c)) {
            return KeyError::value(key, "value must be order=device;device;... or letters of 'acdn'");
        }
        Ok(Self::Legacy(letters.to_owned()))
    }
}

/// The tags in a value, each once, in order.
pub(super) fn tags(text: &str) -> Vec<&str> {
    let mut all = Vec::new();
    for tag in split_list(text) {
        if !all.contains(&tag) {
            all.push(tag);
        }
    }
    all
}

/// Splits a line into words as a shell does: blanks separate, `'...'` and `"..."` and `\` quote.
pub fn split_words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\\' => match chars.next() {
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err("it ends with a single '\\'".to_owned()),
            },
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => match chars.next() {
                            Some(x @ ('"' | '\\' | '$' | '`')) => word.push(x),
                            Some(x) => word.extend(['\\', x]),
                            None => return Err(format!("the quote {c} is not closed")),
                        },
                        Some(x) => word.push(x),
                        None => return Err(format!("the quote {c} is not closed")),
                    }
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

impl Settings {
    fn boolean(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(parse_bool).unwrap_or(default)
    }

    fn integer(&self, key: &str, min: u64, max: u64) -> Result<Option<u64>, KeyError> {
        self.get(key).map(|text| integer(key, text, min, max)).transpose()
    }

    fn count(&self, key: &str) -> Result<u32, KeyError> {
        // The limit fits.
        Ok(self.integer(key, 1, MAX_CPUS)?.and_then(|n| u32::try_from(n).ok()).unwrap_or(1))
    }

    fn spelled<T>(
        &self,
        key: &str,
        read: fn(&str) -> Option<T>,
        all: &[&str],
        default: T,
    ) -> Result<T, KeyError> {
        let Some(text) = self.get(key) else { return Ok(default) };
        match read(text) {
            Some(v) => Ok(v),
            None => KeyError::value(key, format_args!("value '{text}' is not one of {}", all.join(", "))),
        }
    }

    /// The keys of a numbered family that are set, by number.
    fn family<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut found: Vec<(u32, &str, &str)> = self
            .iter()
            .filter_map(|(key, value)| match split_index(key) {
                Some((n, index)) if n == name && lookup(key).is_some() => Some((index, key, value)),
                _ => None,
            })
            .collect();
        found.sort_unstable_by_key(|(index, ..)| *index);
        found.into_iter().map(|(_, key, value)| (key, value))
    }

    /// The guest's name.
    pub fn name(&self) -> Option<&str> {
        self.get("name")
    }

    /// Its tags, each once.
    pub fn tags(&self) -> Vec<&str> {
        tags(self.get("tags").unwrap_or_default())
    }

    /// Whether it is a template, which cannot be started.
    pub fn template(&self) -> bool {
        self.boolean("template", false)
    }

    /// Whether it starts with its node.
    pub fn onboot(&self) -> bool {
        self.boolean("onboot", false)
    }

    /// Whether it and its disks must not be removed.
    pub fn protection(&self) -> bool {
        self.boolean("protection", false)
    }

    /// Whether hardware acceleration is wanted. Default: yes.
    pub fn kvm(&self) -> bool {
        self.boolean("kvm", true)
    }

    /// Whether its pointer is where the screen's viewer has it. Default: yes.
    pub fn tablet(&self) -> bool {
        self.boolean("tablet", true)
    }

    /// The id that changes when the guest becomes another (a clone, a rollback).
    pub fn vmgenid(&self) -> Option<&str> {
        // `1` is what a file of another system may hold: one is to be made.
        self.get("vmgenid").filter(|id| !matches!(*id, "0" | "1"))
    }

    /// What the firmware tells of the machine, by name.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn smbios1(&self) -> Result<Vec<(String, String)>, KeyError> {
        let Some(text) = self.get("smbios1") else { return Ok(Vec::new()) };
        let props: PropertyString = text.parse().or_else(|e| KeyError::value("smbios1", e))?;
        let known = props.iter().filter_map(|(k, v)| Some((k?.to_owned(), v.to_owned())));
        Ok(known.filter(|(k, _)| k != "base64").collect())
    }

    /// The task kind that holds the guest, e.g. `migrate`.
    pub fn lock(&self) -> Option<&str> {
        self.get("lock")
    }

    /// The snapshot that the current state descends from.
    pub fn parent(&self) -> Option<&str> {
        self.get("parent")
    }

    /// Cores a socket. Default 1.
    pub fn cores(&self) -> Result<u32, KeyError> {
        self.count("cores")
    }

    /// Sockets. Default 1.
    pub fn sockets(&self) -> Result<u32, KeyError> {
        self.count("sockets")
    }

    /// CPUs present at the start; `None`: all of them.
    pub fn vcpus(&self) -> Result<Option<u32>, KeyError> {
        Ok(self.integer("vcpus", 1, MAX_CPUS)?.and_then(|n| u32::try_from(n).ok()))
    }

    /// All CPUs: sockets times cores.
    pub fn cpus(&self) -> Result<u32, KeyError> {
        let all = self.sockets()?.saturating_mul(self.cores()?);
        if u64::from(all) > MAX_CPUS {
            return KeyError::value(
                "sockets",
                format_args!("sockets times cores must be at most {MAX_CPUS}"),
            );
        }
        Ok(all)
    }

    /// The CPU model.
    pub fn cpu(&self) -> Result<Cpu, KeyError> {
        match self.get("cpu") {
            Some(text) => Cpu::parse("cpu", text),
            None => Ok(Cpu { model: None, flags: Vec::new(), props: PropertyString::new() }),
        }
    }

    /// Memory. Default 512 MiB.
    pub fn memory(&self) -> Result<Mebibytes, KeyError> {
        let Some(text) = self.get("memory") else { return Ok(Mebibytes(512)) };
        let props: PropertyString = text.parse().or_else(|e| KeyError::value("memory", e))?;
        match props.get_default("current") {
            Some(n) => integer("memory", n, 16, MAX_MEMORY).map(Mebibytes),
            None => Ok(Mebibytes(512)),
        }
    }

    /// The balloon's target; `Some(0)`: no balloon; `None`: a balloon that takes nothing.
    pub fn balloon(&self) -> Result<Option<Mebibytes>, KeyError> {
        Ok(self.integer("balloon", 0, MAX_MEMORY)?.map(Mebibytes))
    }

    /// The machine type as it is written; `None`: the driver's default. May have no version.
    pub fn machine(&self) -> Result<Option<String>, KeyError> {
        let Some(text) = self.get("machine") else { return Ok(None) };
        let props: PropertyString = text.parse().or_else(|e| KeyError::value("machine", e))?;
        Ok(props.get_default("type").map(str::to_owned))
    }

    /// The firmware.
    pub fn bios(&self) -> Result<Bios, KeyError> {
        self.spelled("bios", Bios::from_text, Bios::ALL, Bios::SeaBios)
    }

    /// The guest's system.
    pub fn ostype(&self) -> Result<OsType, KeyError> {
        self.spelled("ostype", OsType::from_text, OsType::ALL, OsType::Other)
    }

    /// The SCSI controller.
    pub fn scsihw(&self) -> Result<ScsiHw, KeyError> {
        self.spelled("scsihw", ScsiHw::from_text, ScsiHw::ALL, ScsiHw::Lsi)
    }

    /// Disks and CD drives, by bus (ide, sata, scsi, virtio) and number. Unused ones: [`Self::unused`].
    pub fn disks(&self) -> Result<Vec<Disk>, KeyError> {
        [Bus::Ide, Bus::Sata, Bus::Scsi, Bus::Virtio]
            .iter()
            .flat_map(|bus| self.family(bus.as_str()))
            .map(|(key, value)| Disk::parse(key, value))
            .collect()
    }

    /// Volumes that the guest owns and does not use.
    pub fn unused(&self) -> Result<Vec<Disk>, KeyError> {
        self.family(Bus::Unused.as_str()).map(|(key, value)| Disk::parse(key, value)).collect()
    }

    /// Network devices by number.
    pub fn nets(&self) -> Result<Vec<Net>, KeyError> {
        self.family("net").map(|(key, value)| Net::parse(key, value)).collect()
    }

    /// Serial ports by number, each with its key.
    pub fn serials(&self) -> Result<Vec<(String, Serial)>, KeyError> {
        self.family("serial").map(|(key, text)| Ok((key.to_owned(), Serial::parse(key, text)?))).collect()
    }

    /// The graphics card. Default `std`.
    pub fn vga(&self) -> Result<Vga, KeyError> {
        self.get("vga").map_or_else(|| Vga::parse("vga", "std"), |text| Vga::parse("vga", text))
    }

    /// The guest agent.
    pub fn agent(&self) -> Result<Agent, KeyError> {
        self.get("agent").map_or(Ok(Agent { enabled: false, isa: false }), |text| agent("agent", text))
    }

    /// The random number generator.
    pub fn rng0(&self) -> Result<Option<Rng>, KeyError> {
        self.get("rng0").map(|text| Rng::parse("rng0", text)).transpose()
    }

    /// Order and delays of automatic starts.
    pub fn startup(&self) -> Result<Startup, KeyError> {
        self.get("startup").map_or(Ok(Startup::default()), |text| Startup::parse("startup", text))
    }

    /// Further words for the program's command line.
    pub fn args(&self) -> Result<Vec<String>, KeyError> {
        split_words(self.get("args").unwrap_or_default()).or_else(|why| KeyError::value("args", why))
    }

    /// What the firmware tries, as written; none is `cdn`.
    pub fn boot(&self) -> Result<Boot, KeyError> {
        self.get("boot").map_or_else(|| Ok(Boot::Legacy("cdn".to_owned())), |text| Boot::parse("boot", text))
    }

    /// The devices to boot from, in order: those that are there. Letters are resolved: the disk is `bootdisk`'s
    /// or else the first, the CD drive and the network device are the first ones.
    pub fn boot_order(&self) -> Result<Vec<String>, KeyError> {
        let letters = match self.boot()? {
            Boot::Order(devices) => {
                return Ok(devices.into_iter().filter(|d| self.get(d).is_some()).collect());
            }
            Boot::Legacy(letters) => letters,
        };
        let (disks, nets) = (self.disks()?, self.nets()?);
        let named = self.get("bootdisk").filter(|key| disks.iter().any(|d| d.key == *key));
        let mut order: Vec<String> = Vec::new();
        for letter in letters.chars() {
            let device = match letter {
                'c' => named.or_else(|| disks.iter().find(|d| !d.cdrom).map(|d| d.key.as_str())),
                'd' => disks.iter().find(|d| d.cdrom).map(|d| d.key.as_str()),
                'n' => nets.first().map(|n| n.key.as_str()),
                _ => None,
            };
            if let Some(device) = device.filter(|d| !order.iter().any(|o| o == d)) {
                order.push(device.to_owned());
            }
        }
        Ok(order)
    }

    /// Hardware that can be changed while the guest runs, as written; none is none.
    pub fn hotplug(&self) -> Vec<&str> {
        split_list(self.get("hotplug").unwrap_or_default()).filter(|f| *f != "0").collect()
    }

    /// Every volume named, with the option that names it; CD images and unused volumes too.
    pub fn volumes(&self) -> Vec<(&str, VolumeId)> {
        self.iter()
            .filter_map(|(key, value)| {
                let family = split_index(key).map_or(key, |(name, _)| name);
                if as_disk(key).is_none() && !matches!(family, "efidisk" | "tpmstate" | "vmstate") {
                    return None;
                }
                let props: PropertyString = value.parse().ok()?;
                let file = props.get_default("file").or_else(|| props.get("volume"))?;
                match file.parse() {
                    Ok(DiskSource::Volume(volume)) => Some((key, volume)),
                    _ => None,
                }
            })
            .collect()
    }

    /// What the disk that it boots from holds for a guest, for `maxdisk`: the first disk's size.
    pub fn root_size(&self) -> Option<Size> {
        let disks = self.disks().ok()?;
        let boot = self.boot_order().ok()?;
        let first = boot.iter().find_map(|key| disks.iter().find(|d| d.key == *key && !d.cdrom));
        first.or_else(|| disks.iter().find(|d| !d.cdrom))?.size
    }

    /// Options that are set and kept but have no effect yet.
    pub fn without_effect(&self) -> Vec<&str> {
        let idle = |(key, value): (&'_ str, &'_ str)| match lookup(key) {
            None => true,
            Some((KeySpec { support: Support::NotYet(except), .. }, _)) => {
                !except.contains(&value) && !matches!(key, "vcpus" | "bootdisk")
            }
            Some(_) => false,
        };
        self.iter().filter(|entry| idle(*entry)).map(|(key, _)| key).collect()
    }

    /// Checks what no option can tell alone.
    ///
    /// # Errors
    /// Names the first option at fault.
    pub fn check(&self) -> Result<(), KeyError> {
        let memory = self.memory()?;
        if self.balloon()?.is_some_and(|balloon| balloon > memory) {
            return KeyError::value("balloon", "value must not be larger than memory");
        }
        let cpus = self.cpus()?;
        if self.vcpus()?.is_some_and(|n| n > cpus) {
            return KeyError::value("vcpus", "value must not be larger than sockets times cores");
        }
        if let Boot::Order(devices) = self.boot()?
            && let Some(missing) = devices.iter().find(|d| self.get(d).is_none())
        {
            return KeyError::value("boot", format_args!("device '{missing}' does not exist"));
        }
        let vga = self.vga()?;
        if vga.kind.starts_with("serial") && self.get(&vga.kind).is_none() {
            return KeyError::value("vga", format_args!("there is no serial port '{}'", vga.kind));
        }
        self.disks()?;
        self.nets()?;
        self.serials()?;
        Ok(())
    }
}

/// As it is written in a configuration.
impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(devices) => write!(f, "order={}", devices.join(";")),
            Self::Legacy(letters) => f.write_str(letters),
        }
    }
}
