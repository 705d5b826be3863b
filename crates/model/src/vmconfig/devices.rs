//! Disks, CD drives and network devices. Reading is lenient towards properties that it does not know.

use super::check::{choice, integer};
use super::keys::{KeyError, split_index};
use super::limits::Limits;
use crate::cloudinit;
use crate::property::PropertyString;
use crate::text::{decode, parse_bool};
use crate::{Size, StorageId, VolumeId};
use std::fmt;
use std::str::FromStr;

/// Declares an enum whose variants have one spelling each.
macro_rules! spelled {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every spelling.
            pub const ALL: &'static [&'static str] = &[$($text),+];

            /// Its spelling.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The one spelled so.
            pub fn from_text(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(super) use spelled;

spelled!(
    /// What a disk is attached to.
    Bus {
        /// IDE: 4 drives.
        Ide = "ide",
        /// SATA: 6 drives.
        Sata = "sata",
        /// SCSI: 31 drives.
        Scsi = "scsi",
        /// VirtIO block: 16 drives.
        Virtio = "virtio",
        /// Not on a bus: the variables that the UEFI firmware keeps.
        Efidisk = "efidisk",
        /// Not on a bus: what a TPM keeps.
        Tpmstate = "tpmstate",
        /// Not attached: a volume that the VM owns and does not use.
        Unused = "unused",
    }
);
spelled!(
    /// How the host caches a disk.
    Cache {
        /// Neither; the default.
        None = "none",
        /// Host cache, every write flushed.
        Writethrough = "writethrough",
        /// Host cache, flushed when the guest asks.
        Writeback = "writeback",
        /// Host cache, never flushed.
        Unsafe = "unsafe",
        /// No host cache, every write flushed.
        Directsync = "directsync",
    }
);
spelled!(
    /// How QEMU does a disk's input and output.
    Aio {
        /// Linux AIO; needs a cache mode without host cache.
        Native = "native",
        /// A thread pool.
        Threads = "threads",
        /// io_uring.
        IoUring = "io_uring",
    }
);
spelled!(
    /// What a network device looks like to the guest.
    NetModel {
        /// Intel 82540EM by its short name.
        E1000 = "e1000",
        /// Intel 82540EM.
        E100082540em = "e1000-82540em",
        /// Intel 82544GC.
        E100082544gc = "e1000-82544gc",
        /// Intel 82545EM.
        E100082545em = "e1000-82545em",
        /// Intel 82574.
        E1000e = "e1000e",
        /// Intel 82551.
        I82551 = "i82551",
        /// Intel 82557B.
        I82557b = "i82557b",
        /// Intel 82559ER.
        I82559er = "i82559er",
        /// NE2000, ISA.
        Ne2kIsa = "ne2k_isa",
        /// NE2000, PCI.
        Ne2kPci = "ne2k_pci",
        /// AMD PCnet.
        Pcnet = "pcnet",
        /// Realtek 8139.
        Rtl8139 = "rtl8139",
        /// Paravirtual.
        Virtio = "virtio",
        /// VMware's paravirtual one.
        Vmxnet3 = "vmxnet3",
    }
);

spelled!(
    /// What happens when a disk can't be read or written.
    OnError {
        /// The guest stops if the disk's storage is full; other errors are the guest's.
        Enospc = "enospc",
        /// The guest is told nothing.
        Ignore = "ignore",
        /// The guest is told.
        Report = "report",
        /// The guest stops.
        Stop = "stop",
    }
);

spelled!(
    /// The specification that a TPM follows.
    TpmVersion {
        /// The older one.
        V12 = "v1.2",
        /// The one that Windows 11 asks for.
        V20 = "v2.0",
    }
);

/// What is in a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// Nothing: an empty CD drive.
    Empty,
    /// The host's own CD drive.
    HostDrive,
    /// A volume.
    Volume(VolumeId),
    /// A file or block device of the host; starts with `/`.
    Path(String),
    /// To be made: `local:32` asks for a new volume of 32 GiB. Never in a stored configuration.
    New {
        /// Where.
        storage: StorageId,
        /// How large.
        size: Size,
    },
    /// To be made: `local:cloudinit` asks for a cloud-init drive. Never in a stored configuration.
    NewCloudInit {
        /// Where.
        storage: StorageId,
    },
}

impl FromStr for DiskSource {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => return Ok(Self::Empty),
            "cdrom" => return Ok(Self::HostDrive),
            path if path.starts_with('/') => {
                if path.split('/').any(|part| part == "..") {
                    return Err(format!("the path '{path}' must not contain '..'"));
                }
                return Ok(Self::Path(path.to_owned()));
            }
            _ => {}
        }
        if let Some((storage, size)) = text.split_once(':')
            && size.starts_with(|c: char| c.is_ascii_digit())
            && let Ok(size) = Size::from_gib(size)
        {
            let storage = storage.parse().map_err(|e: crate::IdError| e.to_string())?;
            return Ok(Self::New { storage, size });
        }
        if let Some((storage, "cloudinit")) = text.split_once(':') {
            let storage = storage.parse().map_err(|e: crate::IdError| e.to_string())?;
            return Ok(Self::NewCloudInit { storage });
        }
        text.parse().map(Self::Volume).map_err(|e: crate::IdError| e.to_string())
    }
}

/// The largest disk that is made or grown to: no file system in use takes a larger file.
pub const MAX_DISK: Size = Size::gib(128 << 10);

/// Details of a disk or CD drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskDetails {
    /// Whether zeroes that the guest writes take no room. Default: yes.
    pub detect_zeroes: bool,
    /// Its World Wide Name: 16 hexadecimal digits after `0x`.
    pub wwn: Option<String>,
    /// Who made it, as the guest sees it: at most 8 characters.
    pub vendor: Option<String>,
    /// What it is, as the guest sees it: at most 16 characters.
    pub product: Option<String>,
    /// The same of an IDE disk, decoded: at most 40 bytes.
    pub model: Option<String>,
    /// Queues of its controller, where that is its own; `None`: one for each CPU.
    pub queues: Option<u32>,
    /// What happens when it can't be read; `None`: QEMU's choice.
    pub read_error: Option<OnError>,
    /// What happens when it can't be written; `None`: QEMU's choice.
    pub write_error: Option<OnError>,
    /// How much a guest may read and write.
    pub limits: Limits,
}

/// A disk or CD drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The option, e.g. `scsi0`.
    pub key: String,
    /// What it is attached to.
    pub bus: Bus,
    /// Its number there.
    pub index: u32,
    /// What is in it.
    pub source: DiskSource,
    /// Whether it is a CD drive.
    pub cdrom: bool,
    /// What a guest sees; `None` where it was not written down.
    pub size: Option<Size>,
    /// `raw`, `qcow2`, ...; `None`: what the storage says.
    pub format: Option<String>,
    /// `None`: the default, as [`Cache::None`].
    pub cache: Option<Cache>,
    /// `None`: the driver's choice.
    pub aio: Option<Aio>,
    /// Whether discards of the guest reach the storage.
    pub discard: bool,
    /// Whether it has a thread of its own.
    pub iothread: bool,
    /// Whether it tells the guest that it is a solid-state drive.
    pub ssd: bool,
    /// The serial number shown to the guest, decoded.
    pub serial: Option<String>,
    /// Whether the guest can only read it.
    pub read_only: bool,
    /// Whether backups hold it.
    pub backup: bool,
    /// All properties as they are written.
    pub props: PropertyString,
}

/// Which variables the UEFI firmware begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EfiVariables {
    /// Those of the firmware of 4 MiB, rather than of 2.
    pub large: bool,
    /// With the keys of distributions and of Microsoft, so that Secure Boot is on.
    pub enrolled: bool,
}

impl Disk {
    /// Reads the value of a disk option.
    ///
    /// # Errors
    /// If `key` names no disk, or a property has a wrong value.
    pub fn parse(key: &str, value: &str) -> Result<Self, KeyError> {
        let Some((bus, index)) = as_disk(key) else { return KeyError::value(key, "it is not a disk") };
        let props: PropertyString = value.parse().or_else(|e| KeyError::value(key, e))?;
        let Some(file) = props.get_default("file").or_else(|| props.get("volume")) else {
            return KeyError::value(key, "it names no volume");
        };
        let source: DiskSource = file.parse().or_else(|e| KeyError::value(key, e))?;
        let cdrom = match props.get("media") {
            None => matches!(source, DiskSource::HostDrive | DiskSource::NewCloudInit { .. }),
            Some("cdrom") => true,
            Some("disk") => false,
            Some(other) => {
                return KeyError::value(
                    key,
                    format_args!("media: value '{other}' is not one of cdrom, disk"),
                );
            }
        };
        let no_drive = matches!(bus, Bus::Virtio | Bus::Efidisk | Bus::Tpmstate);
        let cdrom = cdrom || (source == DiskSource::Empty && !no_drive);
        if cdrom && no_drive {
            let why = format!("a CD drive cannot be attached to '{bus}'; use ide, sata or scsi");
            return KeyError::value(key, why);
        }
        if !cdrom && matches!(source, DiskSource::Empty | DiskSource::HostDrive) {
            return KeyError::value(key, format_args!("only a CD drive can have '{file}'"));
        }
        Ok(Self {
            bus,
            index,
            cdrom,
            size: props.get("size").map(Size::from_str).transpose().or_else(|e| KeyError::value(key, e))?,
            format: props.get("format").map(|f| format_of(key, f)).transpose()?,
            cache: spelled_prop(key, &props, "cache", Cache::from_text, Cache::ALL)?,
            aio: spelled_prop(key, &props, "aio", Aio::from_text, Aio::ALL)?,
            discard: match props.get("discard") {
                None | Some("ignore") => false,
                Some("on") => true,
                Some(other) => {
                    return KeyError::value(
                        key,
                        format_args!("discard: value '{other}' is not one of ignore, on"),
                    );
                }
            },
            iothread: flag(key, &props, "iothread", false)?,
            ssd: flag(key, &props, "ssd", false)?,
            serial: props.get("serial").map(|s| serial_of(key, s)).transpose()?,
            read_only: flag(key, &props, "ro", false)? || cdrom,
            backup: flag(key, &props, "backup", !cdrom)?,
            key: key.to_owned(),
            source,
            props,
        })
    }

    /// Details that a process is given. They are read apart: a value that cannot be used keeps a VM from starting, and nothing else.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub fn details(&self) -> Result<DiskDetails, KeyError> {
        let (key, props) = (&self.key, &self.props);
        Ok(DiskDetails {
            detect_zeroes: flag(key, props, "detect_zeroes", true)?,
            wwn: props.get("wwn").map(|text| wwn_of(key, text)).transpose()?,
            vendor: props.get("vendor").map(|text| label_of(key, "vendor", text, 8)).transpose()?,
            product: props.get("product").map(|text| label_of(key, "product", text, 16)).transpose()?,
            model: props.get("model").map(|text| drive_model_of(key, text)).transpose()?,
            queues: props.get("queues").map(|text| queues_of(key, text)).transpose()?,
            read_error: match spelled_prop(key, props, "rerror", OnError::from_text, OnError::ALL)? {
                Some(OnError::Enospc) => {
                    return KeyError::value(key, "rerror: 'enospc' is about writing alone");
                }
                other => other,
            },
            write_error: spelled_prop(key, props, "werror", OnError::from_text, OnError::ALL)?,
            limits: Limits::parse(key, props)?,
        })
    }

    /// Of the UEFI firmware's disk: what its variables are.
    ///
    /// # Errors
    /// If a property cannot be used.
    pub fn efi(&self) -> Result<EfiVariables, KeyError> {
        Ok(EfiVariables {
            large: match self.props.get("efitype") {
                None | Some("2m") => false,
                Some("4m") => true,
                Some(other) => {
                    let why = format!("efitype: value '{other}' is not one of 2m, 4m");
                    return KeyError::value(&self.key, why);
                }
            },
            enrolled: flag(&self.key, &self.props, "pre-enrolled-keys", false)?,
        })
    }

    /// What a volume that is to be made is to hold: an image, on a storage or at a path of the host.
    ///
    /// # Errors
    /// If that names no image, or nothing is to be made.
    pub fn import_from(&self) -> Result<Option<DiskSource>, KeyError> {
        let Some(text) = self.props.get("import-from") else { return Ok(None) };
        let refuse = |why: &str| KeyError::value(&self.key, format_args!("import-from: {why}"));
        if self.cdrom || !matches!(self.source, DiskSource::New { .. }) {
            return refuse("it needs a new disk: STORAGE:0,import-from=IMAGE");
        }
        match decode(text).parse() {
            Ok(source @ (DiskSource::Volume(_) | DiskSource::Path(_))) => Ok(Some(source)),
            _ => refuse("it is neither a volume nor a path of the host"),
        }
    }

    /// Of the volume that a TPM keeps its state on: which kind of TPM it is. Default: the older one.
    ///
    /// # Errors
    /// If there is no such kind.
    pub fn tpm(&self) -> Result<TpmVersion, KeyError> {
        let named = spelled_prop(&self.key, &self.props, "version", TpmVersion::from_text, TpmVersion::ALL)?;
        Ok(named.unwrap_or(TpmVersion::V12))
    }

    /// Its volume, if it has one.
    pub fn volume(&self) -> Option<&VolumeId> {
        match &self.source {
            DiskSource::Volume(volume) => Some(volume),
            _ => None,
        }
    }

    /// Its volume, if that is one made of the VM's cloud-init options.
    pub fn cloudinit(&self) -> Option<&VolumeId> {
        self.volume().filter(|volume| self.cdrom && cloudinit::is_drive(volume))
    }

    /// The option's value with another volume in it, and the size as a guest sees it; all else stays.
    ///
    /// # Errors
    /// If the volume's name cannot stand in a property string.
    pub fn with_volume(&self, volume: &VolumeId, size: Option<Size>) -> Result<String, KeyError> {
        let mut props = self.props.clone();
        for key in ["file", "volume"] {
            props.remove(key);
        }
        let set = props.set_bare(&volume.to_string()).and_then(|()| match self.cdrom {
            true => props.set("media", "cdrom"),
            false => Ok(()),
        });
        let set = set.and_then(|()| match size {
            Some(size) => props.set("size", &size.to_string()),
            None => Ok(()),
        });
        set.or_else(|e| KeyError::value(&self.key, e))?;
        Ok(props.to_string())
    }
}

impl Bus {
    /// Whether a guest sees a drive there.
    pub fn has_drives(self) -> bool {
        !matches!(self, Self::Efidisk | Self::Tpmstate | Self::Unused)
    }
}

/// Which disk an option is, if it is one.
pub fn as_disk(key: &str) -> Option<(Bus, u32)> {
    let (name, index) = split_index(key)?;
    let bus = Bus::from_text(name)?;
    let count = match bus {
        Bus::Ide => 4,
        Bus::Sata => 6,
        Bus::Scsi => 31,
        Bus::Virtio => 16,
        Bus::Efidisk | Bus::Tpmstate => 1,
        Bus::Unused => 256,
    };
    (index < count).then_some((bus, index))
}

/// Which network device an option is, if it is one.
pub fn as_net(key: &str) -> Option<u32> {
    split_index(key).filter(|(name, index)| *name == "net" && *index < 32).map(|(_, index)| index)
}

fn format_of(key: &str, text: &str) -> Result<String, KeyError> {
    choice(key, text, &["raw", "qcow", "qed", "qcow2", "vmdk", "cloop"])?;
    Ok(text.to_owned())
}

fn serial_of(key: &str, text: &str) -> Result<String, KeyError> {
    let serial = decode(text);
    if text.len() > 60 || serial.chars().any(|c| c.is_control() || c == '\u{fffd}') {
        return KeyError::value(key, "serial: value must have at most 60 printable characters");
    }
    Ok(serial)
}

fn wwn_of(key: &str, text: &str) -> Result<String, KeyError> {
    match text.strip_prefix("0x") {
        Some(digits) if digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok(text.to_owned())
        }
        _ => KeyError::value(key, format_args!("wwn: '{text}' is not 0x and 16 hexadecimal digits")),
    }
}

fn label_of(key: &str, name: &str, text: &str, max: usize) -> Result<String, KeyError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_ ".contains(c);
    if text.is_empty() || text.len() > max || !text.chars().all(plain) {
        return KeyError::value(
            key,
            format_args!("{name}: value must have at most {max} letters, digits, blanks, '-' and '_'"),
        );
    }
    Ok(text.to_owned())
}

fn drive_model_of(key: &str, text: &str) -> Result<String, KeyError> {
    let model = decode(text);
    if text.len() > 120 || model.len() > 40 || model.chars().any(|c| c.is_control() || c == '\u{fffd}') {
        return KeyError::value(key, "model: value must have at most 40 printable characters");
    }
    Ok(model)
}

fn queues_of(key: &str, text: &str) -> Result<u32, KeyError> {
    // QEMU: "must be a positive integer less than 1022".
    let queues = named(key, "queues", |key| integer(key, text, 2, 1021))?;
    Ok(u32::try_from(queues).unwrap_or(u32::MAX))
}

pub(super) fn flag(key: &str, props: &PropertyString, name: &str, default: bool) -> Result<bool, KeyError> {
    let Some(text) = props.get(name) else { return Ok(default) };
    match parse_bool(text) {
        Some(on) => Ok(on),
        None => KeyError::value(key, format_args!("{name}: '{text}' is not a boolean (1 or 0)")),
    }
}

pub(super) fn spelled_prop<T>(
    key: &str,
    props: &PropertyString,
    name: &str,
    read: fn(&str) -> Option<T>,
    all: &[&str],
) -> Result<Option<T>, KeyError> {
    let Some(text) = props.get(name) else { return Ok(None) };
    match read(text) {
        Some(v) => Ok(Some(v)),
        None => KeyError::value(key, format_args!("{name}: value '{text}' is not one of {}", all.join(", "))),
    }
}

/// A network device.
#[derive(Debug, Clone, PartialEq)]
pub struct Net {
    /// The option, e.g. `net0`.
    pub key: String,
    /// Its number.
    pub index: u32,
    /// What it looks like to the guest.
    pub model: NetModel,
    /// In upper case with colons. `None` only in a request: stored configurations carry one.
    pub mac: Option<String>,
    /// The bridge on the host; `None`: user-mode network.
    pub bridge: Option<String>,
    /// VLAN, 1 to 4094.
    pub tag: Option<u16>,
    /// Limit of each direction in MB/s (of 2^20 bytes); `None`: no limit.
    pub rate: Option<f64>,
    /// Queues of its packets, at least 2; `None`: one.
    pub queues: Option<u32>,
    /// The largest packet that the guest is told to send, in bytes; 1: as large as the bridge takes. `None`: it is told nothing.
    pub mtu: Option<u32>,
    /// Whether the firewall filters it.
    pub firewall: bool,
    /// Whether its cable is unplugged.
    pub link_down: bool,
    /// All properties as they are written.
    pub props: PropertyString,
}

impl Net {
    /// Reads the value of a network option.
    ///
    /// # Errors
    /// If `key` names no network device, or a property has a wrong value.
    pub fn parse(key: &str, value: &str) -> Result<Self, KeyError> {
        let index = match split_index(key) {
            Some(("net", index)) if index < 32 => index,
            _ => return KeyError::value(key, "it is not a network device"),
        };
        let props: PropertyString = value.parse().or_else(|e| KeyError::value(key, e))?;
        let (model, mac) = model_of(key, &props)?;
        Ok(Self {
            index,
            model,
            mac: mac.map(|text| mac_of(key, text)).transpose()?,
            bridge: props.get("bridge").map(|b| bridge_of(key, b)).transpose()?,
            tag: match props.get("tag") {
                Some(tag) => {
                    let tag = named(key, "tag", |key| integer(key, tag, 1, 4094))?;
                    u16::try_from(tag).ok()
                }
                None => None,
            },
            rate: match props.get("rate").map(|text| (text, text.parse::<f64>())) {
                None => None,
                Some((_, Ok(rate))) if rate.is_finite() && rate >= 0.0 => (rate > 0.0).then_some(rate),
                Some((text, _)) => {
                    return KeyError::value(
                        key,
                        format_args!("rate: '{text}' is not a number of at least 0"),
                    );
                }
            },
            queues: number_of(key, &props, "queues", 0, 64)?.filter(|queues| *queues > 1),
            mtu: number_of(key, &props, "mtu", 1, 65_520)?,
            firewall: flag(key, &props, "firewall", false)?,
            link_down: flag(key, &props, "link_down", false)?,
            key: key.to_owned(),
            props,
        })
    }

    /// The option's value with that hardware address, written `model=address,...`; all else stays.
    ///
    /// # Errors
    /// If it is no address of a single device.
    pub fn with_mac(&self, mac: &str) -> Result<String, KeyError> {
        let mac = mac_of(&self.key, mac)?;
        let mut rest = self.props.clone();
        for name in [self.model.as_str(), "model", "macaddr"] {
            rest.remove(name);
        }
        rest.remove_bare();
        let mut text = format!("{}={mac}", self.model);
        if !rest.is_empty() {
            text.push(',');
            text.push_str(&rest.to_string());
        }
        Ok(text)
    }
}

fn number_of(
    key: &str,
    props: &PropertyString,
    name: &str,
    min: u64,
    max: u64,
) -> Result<Option<u32>, KeyError> {
    let Some(text) = props.get(name) else { return Ok(None) };
    let number = named(key, name, |key| integer(key, text, min, max))?;
    Ok(u32::try_from(number).ok())
}

/// The error of a property under the name of its option.
pub(super) fn named<T>(
    key: &str,
    property: &str,
    read: impl FnOnce(&str) -> Result<T, KeyError>,
) -> Result<T, KeyError> {
    read(key).map_err(|e| KeyError { why: format!("{property}: {}", e.why), ..e })
}

/// `virtio=MAC`, `virtio,macaddr=MAC`, `model=virtio,macaddr=MAC` or without an address.
fn model_of<'p>(key: &str, props: &'p PropertyString) -> Result<(NetModel, Option<&'p str>), KeyError> {
    let mut found: Option<(NetModel, Option<&str>)> = None;
    for (name, value) in props.iter() {
        let this = match name {
            None | Some("model") => match NetModel::from_text(value) {
                Some(model) => (model, None),
                None => {
                    let all = NetModel::ALL.join(", ");
                    return KeyError::value(key, format_args!("model: value '{value}' is not one of {all}"));
                }
            },
            Some(name) => match NetModel::from_text(name) {
                Some(model) => (model, Some(value)),
                None => continue,
            },
        };
        if found.is_some() {
            return KeyError::value(key, "it names more than one model");
        }
        found = Some(this);
    }
    match (found, props.get("macaddr")) {
        (None, _) => KeyError::value(key, "it names no model, such as 'virtio'"),
        (Some((_, Some(_))), Some(_)) => KeyError::value(key, "it has more than one hardware address"),
        (Some((model, mac)), other) => Ok((model, mac.or(other))),
    }
}

fn mac_of(key: &str, text: &str) -> Result<String, KeyError> {
    let bytes: Vec<Option<u8>> =
        text.split(':')
            .map(|b| {
                if b.len() == 2 {
                    u8::from_str_radix(b, 16).ok().filter(|_| !b.starts_with('+'))
                } else {
                    None
                }
            })
            .collect();
    match bytes.as_slice() {
        [Some(first), rest @ ..] if rest.len() == 5 && rest.iter().all(Option::is_some) => {
            if first & 1 == 1 {
                return KeyError::value(
                    key,
                    format_args!("'{text}' is the hardware address of a group, not a device"),
                );
            }
            Ok(text.to_ascii_uppercase())
        }
        _ => {
            KeyError::value(key, format_args!("'{text}' is not a hardware address such as BC:24:11:0A:0B:0C"))
        }
    }
}

fn bridge_of(key: &str, text: &str) -> Result<String, KeyError> {
    let ok = (1..=15).contains(&text.len())
        && !text.starts_with('-')
        && text != "."
        && text != ".."
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if ok {
        return Ok(text.to_owned());
    }
    KeyError::value(
        key,
        format_args!("bridge: '{text}' is not the name of a bridge (1 to 15 letters and digits)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_its_properties() {
        let text = "shared:100/vm-100-disk-0.qcow2,aio=io_uring,cache=none,discard=on,iothread=1,mbps_rd=10,\
                    serial=A%20B,size=32G,ssd=1";
        let disk = Disk::parse("scsi0", text).unwrap();
        assert_eq!((disk.bus, disk.index, disk.cdrom), (Bus::Scsi, 0, false));
        assert_eq!(disk.volume().unwrap().name, "100/vm-100-disk-0.qcow2");
        assert_eq!(
            (disk.size, disk.cache, disk.aio),
            (Some(Size::gib(32)), Some(Cache::None), Some(Aio::IoUring))
        );
        assert!(disk.discard && disk.iothread && disk.ssd && disk.backup && !disk.read_only);
        assert_eq!(disk.serial.as_deref(), Some("A B"));
        assert_eq!(disk.props.get("mbps_rd"), Some("10"));
        let other: VolumeId = "other:vm-100-disk-3".parse().unwrap();
        assert_eq!(
            Disk::parse("scsi1", "shared:100/a.raw,size=1G,ssd=1")
                .unwrap()
                .with_volume(&other, Some(Size::gib(2))),
            Ok("other:vm-100-disk-3,size=2G,ssd=1".to_owned())
        );
    }

    #[test]
    fn a_drive_holds_what_its_text_says() {
        let source = |text: &str| Disk::parse("ide2", text).map(|d| (d.source, d.cdrom));
        assert_eq!(source("none,media=cdrom"), Ok((DiskSource::Empty, true)));
        assert_eq!(source("cdrom"), Ok((DiskSource::HostDrive, true)));
        assert_eq!(source("/dev/sdb"), Ok((DiskSource::Path("/dev/sdb".to_owned()), false)));
        let storage: StorageId = "local".parse().unwrap();
        assert_eq!(source("local:0.5"), Ok((DiskSource::New { storage, size: Size::mib(512) }, false)));
        assert!(matches!(source("local:iso/a b.iso,media=cdrom"), Ok((DiskSource::Volume(_), true))));
        for wrong in
            ["", "size=1G", "none,media=disk,x", "local:", "../x", "/a/../b", "local:1,size=big", "a,b"]
        {
            assert!(source(wrong).is_err(), "{wrong}");
        }
        assert!(Disk::parse("virtio0", "none").is_err());
        assert!(Disk::parse("virtio0", "local:iso/a.iso,media=cdrom").is_err());
        assert!(Disk::parse("virtio16", "local:8").is_err());
    }

    #[test]
    fn a_network_device_names_its_model_in_three_ways() {
        for text in [
            "virtio=bc:24:11:00:00:01,bridge=vmbr0",
            "virtio,macaddr=BC:24:11:00:00:01,bridge=vmbr0",
            "bridge=vmbr0,model=virtio,macaddr=BC:24:11:00:00:01",
        ] {
            let net = Net::parse("net3", text).unwrap();
            assert_eq!((net.index, net.model, net.bridge.as_deref()), (3, NetModel::Virtio, Some("vmbr0")));
            assert_eq!(net.mac.as_deref(), Some("BC:24:11:00:00:01"));
            assert_eq!(net.with_mac("bc:24:11:aa:00:02").unwrap(), "virtio=BC:24:11:AA:00:02,bridge=vmbr0");
        }
        let net = Net::parse("net0", "e1000,tag=7,rate=1.5,link_down=1,firewall=0,queues=4").unwrap();
        assert_eq!((net.mac, net.tag, net.rate), (None, Some(7), Some(1.5)));
        assert!(net.link_down && !net.firewall);
        let net = Net::parse("net0", "virtio,queues=4,mtu=1").unwrap();
        assert_eq!((net.queues, net.mtu), (Some(4), Some(1)));
        assert_eq!(Net::parse("net0", "virtio,queues=1").unwrap().queues, None);
        for wrong in [
            "bridge=vmbr0",
            "virtio,e1000=BC:24:11:00:00:01",
            "virtio=BC:24:11:00:00",
            "virtio,bridge=a/b",
            "virtio,bridge=-x",
            "virtio,tag=0",
            "virtio,rate=NaN",
            "virtio,queues=65",
            "virtio,mtu=0",
            "virtio=BC:24:11:00:00:01,macaddr=BC:24:11:00:00:01",
        ] {
            assert!(Net::parse("net0", wrong).is_err(), "{wrong}");
        }
    }
}
