//! What the options of a VM say, one by one.
//!
//! An error here means that a *stored* value cannot be used; it names the option.

use super::check::{choice, integer};
use super::devices::{as_disk, flag, named, spelled, spelled_prop};
use super::keys::{KeyError, split_index};
use crate::property::PropertyString;
use crate::size::Mebibytes;
use crate::text::{parse_bool, split_list};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeSet;
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
    /// Whether the guest is not to know that it runs under KVM.
    pub hidden: bool,
    /// Bits of its physical addresses; `None`: QEMU's choice.
    pub phys_bits: Option<PhysBits>,
    /// Of these, the bits that the guest can use: 32 to 52; `None`: all.
    pub guest_phys_bits: Option<u64>,
    /// What a Windows is told that its hypervisor is called: 1 to 12 letters and digits.
    pub hv_vendor_id: Option<String>,
    /// The highest number of CPUID's leaves that it sees; `None`: the model's.
    pub level: Option<u64>,
    /// All properties as they are written.
    pub props: PropertyString,
}

/// Bits of physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhysBits {
    /// As many as the host has.
    Host,
    /// So many: 32 to 52, what QEMU makes.
    Bits(u64),
}

impl Cpu {
    /// Reads an option.
    ///
    /// # Errors
    /// If it cannot be read; of what is said of a property, by its name.
    pub fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
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
        let bits = |name: &str| match props.get(name) {
            Some(text) => named(key, name, |key| integer(key, text, 32, 52)).map(Some),
            None => Ok(None),
        };
        let phys_bits = match props.get("phys-bits") {
            Some("host") => Some(PhysBits::Host),
            _ => bits("phys-bits")?.map(PhysBits::Bits),
        };
        let guest_phys_bits = bits("guest-phys-bits")?;
        if matches!((phys_bits, guest_phys_bits), (Some(PhysBits::Bits(all)), Some(some)) if some > all) {
            return KeyError::value(key, "guest-phys-bits: value must not be larger than phys-bits");
        }
        let hv_vendor_id = props.get("hv-vendor-id").map(str::to_owned);
        if let Some(id) = hv_vendor_id.as_deref()
            && !((1..=12).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric()))
        {
            return KeyError::value(
                key,
                format_args!("hv-vendor-id: '{id}' must have 1 to 12 letters and digits"),
            );
        }
        let level = match props.get("level") {
            Some(text) => Some(named(key, "level", |key| integer(key, text, 0, u64::from(u32::MAX)))?),
            None => None,
        };
        Ok(Self {
            level,
            hidden: flag(key, &props, "hidden", false)?,
            hv_vendor_id,
            phys_bits,
            guest_phys_bits,
            model,
            flags,
            props,
        })
    }
}

/// CPUs of the host, as the kernel writes lists of them: `0,4-7`. At most 1024, the size of the kernel's usual sets.
pub(super) fn cpu_list(key: &str, text: &str) -> Result<BTreeSet<u32>, KeyError> {
    let number =
        |text: &str| integer(key, text.trim(), 0, 1023).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (number(from)?, number(to)?);
        if from > to {
            return KeyError::value(key, format_args!("'{part}' ends before it begins"));
        }
        all.extend(from..=to);
    }
    Ok(all)
}

/// The guest agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Whether the guest is said to run it.
    pub enabled: bool,
    /// Whether its port is an ISA serial port rather than a VirtIO one.
    pub isa: bool,
    /// Whether it freezes the guest's file systems for what copies or keeps the state of disks.
    pub freeze: bool,
}

pub(super) fn agent(key: &str, text: &str) -> Result<Agent, KeyError> {
    let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
    let flag = |text: Option<&str>, default| match text.map(|t| (t, parse_bool(t))) {
        None => Ok(default),
        Some((_, Some(on))) => Ok(on),
        Some((text, None)) => KeyError::value(key, format_args!("'{text}' is not a boolean (1 or 0)")),
    };
    let enabled = flag(props.get_default("enabled"), false)?;
    let freeze =
        ["freeze-fs", "guest-fsfreeze", "freeze-fs-on-backup"].iter().find_map(|name| props.get(name));
    let freeze = flag(freeze, true)?;
    if let Some(kind) = props.get("type") {
        named(key, "type", |key| choice(key, kind, &["virtio", "isa"]))?;
    }
    Ok(Agent { enabled, isa: props.get("type") == Some("isa"), freeze })
}

/// The graphics card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vga {
    /// `std`, `cirrus`, `vmware`, `virtio`, `virtio-gl`, `qxl`..., `none`, or `serial0` to `serial3`: no card,
    /// the screen is that terminal.
    pub kind: String,
    /// Its memory, 4 to 512 MiB.
    pub memory: Option<Mebibytes>,
    /// Whether its screen's viewer and its system have one clipboard.
    pub clipboard: bool,
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
        let clipboard = props.get("clipboard");
        if let Some(text) = clipboard {
            named(key, "clipboard", |key| choice(key, text, &["vnc"]))?;
        }
        Ok(Self { kind: kind.to_owned(), memory, clipboard: clipboard.is_some() })
    }
}

spelled!(
    /// A sound card.
    Audio {
        /// Intel HD Audio of the ICH9.
        Ich9IntelHda = "ich9-intel-hda",
        /// Intel HD Audio of the ICH6.
        IntelHda = "intel-hda",
        /// Intel AC'97.
        Ac97 = "AC97",
    }
);

pub(super) fn audio(key: &str, text: &str) -> Result<Audio, KeyError> {
    let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
    match spelled_prop(key, &props, "device", Audio::from_text, Audio::ALL)? {
        Some(device) => Ok(device),
        None => KeyError::value(key, "it names no device"),
    }
}

/// A watchdog that the guest feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watchdog {
    /// What the guest sees. Default: i6300esb.
    pub model: WatchdogModel,
    /// What happens when the guest does not feed it. Default: reset.
    pub action: WatchdogAction,
}

spelled!(
    /// A watchdog as the guest sees it.
    WatchdogModel {
        /// Intel 6300ESB, on the PCI bus.
        I6300esb = "i6300esb",
        /// iBase 700, on the ISA bus.
        Ib700 = "ib700",
    }
);
spelled!(
    /// What happens to a guest that does not feed its watchdog.
    WatchdogAction {
        /// It is reset.
        Reset = "reset",
        /// Its power button is pressed.
        Shutdown = "shutdown",
        /// It is switched off.
        Poweroff = "poweroff",
        /// It is paused.
        Pause = "pause",
        /// Its program says so in its messages.
        Debug = "debug",
        /// Nothing.
        None = "none",
    }
);

impl Watchdog {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        let model = match props.get_default("model") {
            Some(text) => match WatchdogModel::from_text(text) {
                Some(model) => model,
                None => {
                    let all = WatchdogModel::ALL.join(", ");
                    return KeyError::value(key, format_args!("model: value '{text}' is not one of {all}"));
                }
            },
            None => WatchdogModel::I6300esb,
        };
        let action = spelled_prop(key, &props, "action", WatchdogAction::from_text, WatchdogAction::ALL)?;
        Ok(Self { model, action: action.unwrap_or(WatchdogAction::Reset) })
    }
}

/// What the firmware tells of the machine, by name, decoded.
pub(super) fn smbios(key: &str, text: &str) -> Result<Vec<(String, String)>, KeyError> {
    let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
    let encoded = flag(key, &props, "base64", false)?;
    let known = props.iter().filter_map(|(name, value)| Some((name?, value)));
    let decoded = known.filter(|(name, _)| *name != "base64").map(|(name, value)| {
        if !encoded || name == "uuid" {
            return Ok((name.to_owned(), value.to_owned()));
        }
        let bytes = STANDARD.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match bytes.filter(|text| !text.chars().any(char::is_control)) {
            Some(text) => Ok((name.to_owned(), text)),
            None => KeyError::value(key, format_args!("{name}: '{value}' is not a text in base64")),
        }
    });
    decoded.collect()
}

/// Whether a text is a day, with or without a time.
pub(super) fn is_date(text: &str) -> bool {
    let numbers = |text: &str, by: char, limits: &[(usize, u32, u32)]| {
        let parts: Vec<&str> = text.split(by).collect();
        parts.len() == limits.len()
            && parts.iter().zip(limits).all(|(part, (digits, min, max))| {
                part.len() <= *digits
                    && part.bytes().all(|b| b.is_ascii_digit())
                    && part.parse().is_ok_and(|n: u32| (*min..=*max).contains(&n))
            })
    };
    let (day, time) = text.split_once('T').map_or((text, None), |(day, time)| (day, Some(time)));
    numbers(day, '-', &[(4, 1970, 9999), (2, 1, 12), (2, 1, 31)])
        && time.is_none_or(|time| numbers(time, ':', &[(2, 0, 23), (2, 0, 59), (2, 0, 59)]))
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

/// How much of the host's CPUs a guest gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuShare {
    /// At most so many CPUs; 0: as many as it can use.
    pub limit: f64,
    /// Its weight against other guests; `None`: the kernel's default.
    pub units: Option<u32>,
}

impl CpuShare {
    /// Whether nothing was asked for.
    pub fn is_default(self) -> bool {
        self.limit <= 0.0 && self.units.is_none()
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
                let bootable = as_disk(device).is_some_and(|(bus, _)| bus.has_drives())
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

/// As it is written in a configuration.
impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(devices) => write!(f, "order={}", devices.join(";")),
            Self::Legacy(letters) => f.write_str(letters),
        }
    }
}
