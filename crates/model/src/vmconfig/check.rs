//! Rules for values that somebody sets. Stricter than reading: a file may hold what does not work yet.

use super::devices::{Disk, DiskSource, MAX_DISK, Net, NetModel, as_disk, flag};
use super::keys::{KeyError, KeySpec, Kind, MAX_MEMORY, split_index};
use super::memory::NumaNode;
use super::values::{self, split_words};
use crate::cloudinit::options;
use crate::property::PropertyString;
use crate::text::{parse_bool, split_list};
use crate::{StorageId, VolumeId};

/// The value as it is stored, checked by the option's kind.
pub(super) fn normal(spec: &KeySpec, key: &str, value: &str) -> Result<String, KeyError> {
    if spec.name == "description" {
        let Kind::Text { max } = spec.kind else { return KeyError::value(key, "it takes a text") };
        if value.chars().count() > max {
            return KeyError::value(key, format_args!("value must have at most {max} characters"));
        }
        return Ok(value.trim_end_matches('\n').to_owned());
    }
    let value = value.trim();
    if value.is_empty() && spec.name != "tags" {
        return KeyError::value(key, "value must not be empty; delete the option to take it out");
    }
    if value.chars().any(char::is_control) {
        return KeyError::value(key, "value must not contain control characters");
    }
    match spec.kind {
        Kind::Bool => match parse_bool(value) {
            Some(on) => return Ok(if on { "1" } else { "0" }.to_owned()),
            None => return KeyError::value(key, format_args!("'{value}' is not a boolean (1 or 0)")),
        },
        Kind::Int { min, max } => {
            return integer(key, value, min, max).map(|n| n.to_string());
        }
        Kind::Number { min, max } => match value.parse::<f64>() {
            Ok(n) if n >= min && n <= max => {}
            Ok(_) => return KeyError::value(key, format_args!("value must lie in {min} to {max}")),
            Err(_) => return KeyError::value(key, format_args!("'{value}' is not a number")),
        },
        Kind::Choice(all) => choice(key, value, all)?,
        Kind::Text { max } => {
            if value.chars().count() > max {
                return KeyError::value(key, format_args!("value must have at most {max} characters"));
            }
        }
        Kind::Checked(rule) => rule(key, value)?,
    }
    Ok(if spec.name == "tags" { values::tags(value).join(";") } else { value.to_owned() })
}

/// A whole number within limits.
pub(super) fn integer(key: &str, value: &str, min: u64, max: u64) -> Result<u64, KeyError> {
    let n = match value.parse::<u64>() {
        Ok(n) if !value.starts_with('+') => n,
        _ if value.strip_prefix('-').is_some_and(|v| v.parse::<u64>().is_ok()) => {
            return KeyError::value(key, format_args!("value must be at least {min}"));
        }
        _ => return KeyError::value(key, format_args!("'{value}' is not a whole number")),
    };
    if n < min {
        return KeyError::value(key, format_args!("value must be at least {min}"));
    }
    if n > max {
        return KeyError::value(key, format_args!("value must be at most {max}"));
    }
    Ok(n)
}

/// One of a list.
pub(super) fn choice(key: &str, value: &str, all: &[&str]) -> Result<(), KeyError> {
    if all.contains(&value) {
        return Ok(());
    }
    KeyError::value(key, format_args!("value '{value}' is not one of {}", all.join(", ")))
}

/// The rules for the properties of one option.
pub(super) struct Rules {
    /// What a value without a key means.
    pub default: &'static str,
    /// Properties that work.
    pub works: &'static [&'static str],
    /// Properties that do not, with the values that ask for what happens anyway.
    pub later: &'static [(&'static str, &'static [&'static str])],
}

impl Rules {
    pub fn check(&self, key: &str, text: &str) -> Result<PropertyString, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        if props.is_empty() {
            return KeyError::value(key, "value must not be empty");
        }
        if props.bare().is_some() && (self.default.is_empty() || props.get(self.default).is_some()) {
            return KeyError::value(key, format_args!("'{}' has no name", props.bare().unwrap_or_default()));
        }
        for (name, value) in props.iter() {
            let name = name.unwrap_or(self.default);
            if name == self.default || self.works.contains(&name) {
                continue;
            }
            match self.later.iter().find(|(later, _)| *later == name) {
                Some((_, except)) if except.contains(&value) => {}
                Some(_) => {
                    return KeyError::unsupported(key, format_args!("'{name}={value}' is not supported yet"));
                }
                None => return KeyError::value(key, format_args!("there is no property '{name}'")),
            }
        }
        Ok(props)
    }
}

/// Properties of disks that do not work yet.
pub(super) const DISK_LATER: &[(&str, &[&str])] = &[("scsiblock", &["0"]), ("snapshot", &["0"])];

/// Properties of disks that work. `backup`, `replicate` and `shared` are for other parts of the system to read.
pub(super) const DISK_WORKS: &[&str] = &[
    "aio",
    "backup",
    "bps",
    "bps_max_length",
    "bps_rd",
    "bps_rd_length",
    "bps_rd_max_length",
    "bps_wr",
    "bps_wr_length",
    "bps_wr_max_length",
    "cache",
    "detect_zeroes",
    "discard",
    "format",
    "import-from",
    "iops",
    "iops_max",
    "iops_max_length",
    "iops_rd",
    "iops_rd_length",
    "iops_rd_max",
    "iops_rd_max_length",
    "iops_wr",
    "iops_wr_length",
    "iops_wr_max",
    "iops_wr_max_length",
    "iothread",
    "mbps",
    "mbps_max",
    "mbps_rd",
    "mbps_rd_max",
    "mbps_wr",
    "mbps_wr_max",
    "media",
    "model",
    "product",
    "queues",
    "replicate",
    "rerror",
    "ro",
    "serial",
    "shared",
    "size",
    "ssd",
    "vendor",
    "volume",
    "werror",
    "wwn",
];

/// Those of some buses alone.
pub(super) const DISK_OF_BUS: [(&str, &[&str]); 9] = [
    ("iothread", &["scsi", "virtio"]),
    ("model", &["ide"]),
    ("product", &["scsi"]),
    ("queues", &["scsi"]),
    ("ro", &["scsi", "virtio"]),
    ("scsiblock", &["scsi"]),
    ("ssd", &["ide", "sata", "scsi"]),
    ("vendor", &["scsi"]),
    ("wwn", &["ide", "sata", "scsi"]),
];

pub(super) fn disk(key: &str, value: &str) -> Result<(), KeyError> {
    let rules = Rules { default: "file", works: DISK_WORKS, later: DISK_LATER };
    let props = rules.check(key, value)?;
    let bus = split_index(key).map_or("", |(bus, _)| bus);
    for (name, buses) in DISK_OF_BUS {
        if props.get(name).is_some() && !buses.contains(&bus) {
            return KeyError::value(key, format_args!("a disk on '{bus}' has no property '{name}'"));
        }
    }
    let disk = Disk::parse(key, value)?;
    disk.import_from()?;
    if !disk.details()?.limits.is_none() && disk.cdrom {
        return KeyError::unsupported(key, "a CD drive has no limits of its input and output");
    }
    match disk.source {
        DiskSource::New { size, .. } if size > MAX_DISK => {
            KeyError::value(key, format_args!("a disk can have at most {} GiB", MAX_DISK.get() >> 30))
        }
        DiskSource::Volume(v) if v.name.starts_with('-') => {
            KeyError::value(key, format_args!("'{}' is neither a volume nor a size in GiB", v.name))
        }
        DiskSource::NewCloudInit { .. } if !disk.cdrom => {
            KeyError::value(key, "media: a cloud-init drive is a CD drive")
        }
        _ => Ok(()),
    }
}

pub(super) fn unused(key: &str, value: &str) -> Result<(), KeyError> {
    let rules = Rules { default: "file", works: &["volume"], later: &[] };
    rules.check(key, value)?;
    match Disk::parse(key, value)?.volume() {
        Some(_) => Ok(()),
        None => KeyError::value(key, "value must be a volume"),
    }
}

/// Properties of network devices that work, or have a reason of their own.
const NET_WORKS: &[&str] =
    &["bridge", "firewall", "link_down", "macaddr", "model", "mtu", "queues", "rate", "tag"];

pub(super) fn net(key: &str, value: &str) -> Result<(), KeyError> {
    let net = Net::parse(key, value)?;
    for (name, value) in net.props.iter() {
        let Some(name) = name else { continue };
        if NET_WORKS.contains(&name) || name == net.model.as_str() {
            continue;
        }
        if matches!(name, "host-tunnel" | "trunks") {
            return KeyError::unsupported(key, format_args!("'{name}={value}' is not supported yet"));
        }
        return KeyError::value(key, format_args!("there is no property '{name}'"));
    }
    let later = [
        ("firewall=1", net.firewall, "there is no firewall yet: nothing would be filtered"),
        ("tag", net.tag.is_some(), "VLANs are not supported yet"),
    ];
    if let Some((name, _, why)) = later.into_iter().find(|(_, asked, _)| *asked) {
        return KeyError::unsupported(key, format_args!("{name}: {why}"));
    }
    for (name, asked) in [("queues", net.queues.is_some()), ("mtu", net.mtu.is_some())] {
        if asked && net.model != NetModel::Virtio {
            return KeyError::value(key, format_args!("{name}: a card of model '{}' has none", net.model));
        }
    }
    Ok(())
}

pub(super) fn affinity(key: &str, value: &str) -> Result<(), KeyError> {
    values::cpu_list(key, value).map(drop)
}

pub(super) fn agent(key: &str, value: &str) -> Result<(), KeyError> {
    let later: &[(&str, &[&str])] = &[("fstrim_cloned_disks", &["0"])];
    let works = &["type", "freeze-fs", "freeze-fs-on-backup", "guest-fsfreeze"];
    Rules { default: "enabled", works, later }.check(key, value)?;
    values::agent(key, value).map(drop)
}

pub(super) fn arch(key: &str, value: &str) -> Result<(), KeyError> {
    choice(key, value, &["x86_64", "aarch64"])?;
    if value == "x86_64" {
        return Ok(());
    }
    KeyError::unsupported(
        key,
        format_args!("'{value}' needs another QEMU and other firmware: VMs here are x86_64"),
    )
}

pub(super) fn args(key: &str, value: &str) -> Result<(), KeyError> {
    split_words(value).map(drop).or_else(|why| KeyError::value(key, why))
}

/// The UEFI firmware's disk. Its size is that of the variables, whatever is asked for.
pub(super) fn efidisk(key: &str, value: &str) -> Result<(), KeyError> {
    let works = &["efitype", "format", "import-from", "pre-enrolled-keys", "size", "volume"];
    let later: &[(&str, &[&str])] = &[("ms-cert", &["2011"])];
    Rules { default: "file", works, later }.check(key, value)?;
    let disk = Disk::parse(key, value)?;
    disk.import_from()?;
    match disk.source {
        DiskSource::New { .. } | DiskSource::Volume(_) => disk.efi().map(drop),
        _ => KeyError::value(key, "it is kept on a volume: give one, or a storage for a new one ('local:1')"),
    }
}

/// What a TPM keeps. Its size is always the same, whatever is asked for.
pub(super) fn tpmstate(key: &str, value: &str) -> Result<(), KeyError> {
    let works = &["size", "version", "volume"];
    // The program that is the TPM opens a file or block device by itself, and knows of no format.
    let later: &[(&str, &[&str])] = &[("format", &["raw"]), ("import-from", &[])];
    Rules { default: "file", works, later }.check(key, value)?;
    let disk = Disk::parse(key, value)?;
    match disk.source {
        DiskSource::New { .. } | DiskSource::Volume(_) => disk.tpm().map(drop),
        _ => KeyError::value(key, "it is kept on a volume: give one, or a storage for a new one ('local:1')"),
    }
}

pub(super) fn audio(key: &str, value: &str) -> Result<(), KeyError> {
    let later: &[(&str, &[&str])] = &[("driver", &["none"])];
    Rules { default: "", works: &["device"], later }.check(key, value)?;
    values::audio(key, value).map(drop)
}

pub(super) fn bootdisk(key: &str, value: &str) -> Result<(), KeyError> {
    match as_disk(value) {
        Some((bus, _)) if bus.has_drives() => Ok(()),
        _ => KeyError::value(key, format_args!("'{value}' is not the option of a disk, as scsi0 is")),
    }
}

pub(super) fn boot(key: &str, value: &str) -> Result<(), KeyError> {
    // A list of no devices is no property string.
    if value != "order=" {
        Rules { default: "legacy", works: &["order"], later: &[] }.check(key, value)?;
    }
    values::Boot::parse(key, value).map(drop)
}

pub(super) fn cpu(key: &str, value: &str) -> Result<(), KeyError> {
    let works = &["flags", "guest-phys-bits", "hidden", "hv-vendor-id", "phys-bits", "reported-model"];
    let props = Rules { default: "cputype", works, later: &[] }.check(key, value)?;
    if props.get("reported-model").is_some() {
        return KeyError::value(
            key,
            "reported-model: it is said of a model of your own (/cluster/qemu/custom-cpu-models), which a VM has as 'custom-NAME'",
        );
    }
    values::Cpu::parse(key, value).map(drop)
}

/// A file of a storage, which is run around starts and stops.
pub(super) fn hookscript(key: &str, value: &str) -> Result<(), KeyError> {
    let volume = value.parse::<VolumeId>().or_else(|e| KeyError::value(key, e))?;
    match volume.name.strip_prefix("snippets/") {
        Some(file) if !file.contains('/') => Ok(()),
        _ => KeyError::value(key, format_args!("'{value}' is no script: STORAGE:snippets/FILE is expected")),
    }
}

/// What may change at once where it can; all else is pending, and shown so. The features of the default, which clients
/// send as a matter of course, are taken: they permit, and order nothing.
pub(super) fn hotplug(key: &str, value: &str) -> Result<(), KeyError> {
    if matches!(value, "0" | "1") {
        return Ok(());
    }
    for feature in split_list(value) {
        choice(key, feature, &["network", "disk", "cpu", "memory", "usb", "cloudinit"])?;
    }
    Ok(())
}

pub(super) fn cicustom(_: &str, value: &str) -> Result<(), KeyError> {
    options::custom(value).map(drop)
}

pub(super) fn ipconfig(key: &str, value: &str) -> Result<(), KeyError> {
    options::Addresses::parse(key, value).map(drop)
}

pub(super) fn nameserver(_: &str, value: &str) -> Result<(), KeyError> {
    options::servers(value).map(drop)
}

pub(super) fn searchdomain(key: &str, value: &str) -> Result<(), KeyError> {
    split_list(value).try_for_each(|domain| name(key, domain))
}

pub(super) fn sshkeys(_: &str, value: &str) -> Result<(), KeyError> {
    options::ssh_keys(value).map(drop)
}

/// `type=1` of the tables that firmware shows to a guest's system.
pub(super) fn smbios1(key: &str, value: &str) -> Result<(), KeyError> {
    let works = &["base64", "uuid", "manufacturer", "product", "version", "serial", "sku", "family"];
    let props = Rules { default: "", works, later: &[] }.check(key, value)?;
    props.get("uuid").map_or(Ok(()), |text| uuid(key, text))?;
    values::smbios(key, value).map(drop)
}

fn uuid(key: &str, text: &str) -> Result<(), KeyError> {
    let parts: Vec<&str> = text.split('-').collect();
    let shape = parts.iter().map(|p| p.len()).eq([8, 4, 4, 4, 12]);
    if shape && parts.iter().all(|p| p.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Ok(());
    }
    KeyError::value(key, format_args!("'{text}' is not a UUID"))
}

/// `1` asks for a new one, `0` for none.
pub(super) fn vmgenid(key: &str, value: &str) -> Result<(), KeyError> {
    if matches!(value, "0" | "1") { Ok(()) } else { uuid(key, value) }
}

pub(super) fn machine(key: &str, value: &str) -> Result<(), KeyError> {
    let later: &[(&str, &[&str])] = &[("aw-bits", &[]), ("viommu", &[])];
    let props = Rules { default: "type", works: &["enable-s3", "enable-s4"], later }.check(key, value)?;
    for name in ["enable-s3", "enable-s4"] {
        flag(key, &props, name, true)?;
    }
    let machine = props.get_default("type").unwrap_or_default();
    let version = |v: &str| {
        let v = v.strip_suffix(".pxe").unwrap_or(v);
        let (v, revision) = v.split_once("+pve").unwrap_or((v, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        v.contains('.') && v.split('.').all(digits) && digits(revision)
    };
    let known = matches!(machine, "pc" | "q35")
        || ["pc-i440fx-", "pc-q35-", "pc-"].iter().any(|p| machine.strip_prefix(p).is_some_and(version));
    if machine == "virt" || machine.starts_with("virt-") {
        return KeyError::unsupported(key, "machines of other architectures are not supported yet");
    }
    if !known || machine.len() > 40 {
        return KeyError::value(
            key,
            format_args!("'{machine}' is not a machine type (pc, q35 or one with a version)"),
        );
    }
    Ok(())
}

pub(super) fn memory(key: &str, value: &str) -> Result<(), KeyError> {
    let props = Rules { default: "current", works: &[], later: &[] }.check(key, value)?;
    integer(key, props.get_default("current").unwrap_or_default(), 16, MAX_MEMORY).map(drop)
}

pub(super) fn name(key: &str, value: &str) -> Result<(), KeyError> {
    let label = |l: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        l.len() <= 63
            && edge(l.chars().next())
            && edge(l.chars().last())
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if value.len() <= 253 && value.split('.').all(label) {
        return Ok(());
    }
    KeyError::value(key, format_args!("'{value}' is not a valid DNS name"))
}

pub(super) fn numa_node(key: &str, value: &str) -> Result<(), KeyError> {
    Rules { default: "", works: &["cpus", "hostnodes", "memory", "policy"], later: &[] }.check(key, value)?;
    NumaNode::parse(key, value).map(drop)
}

/// A port of the host, for which the host's kernel has a driver.
pub(super) fn parallel(key: &str, value: &str) -> Result<(), KeyError> {
    let port = ["/dev/parport", "/dev/usb/lp"].iter().find_map(|kind| value.strip_prefix(kind));
    if port.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
        return Ok(());
    }
    KeyError::value(key, "value must be /dev/parport or /dev/usb/lp with a number")
}

pub(super) fn rng(key: &str, value: &str) -> Result<(), KeyError> {
    Rules { default: "source", works: &["max_bytes", "period"], later: &[] }.check(key, value)?;
    values::Rng::parse(key, value).map(drop)
}

pub(super) fn serial(key: &str, value: &str) -> Result<(), KeyError> {
    values::Serial::parse(key, value).map(drop)
}

/// `now`, or a day with or without a time. The firmware's clock shows it in the time zone that it runs in.
pub(super) fn startdate(key: &str, value: &str) -> Result<(), KeyError> {
    if value == "now" || values::is_date(value) {
        return Ok(());
    }
    KeyError::value(
        key,
        format_args!("'{value}' is neither 'now' nor a date as 2006-06-17T16:01:21 or 2006-06-17"),
    )
}

pub(super) fn startup(key: &str, value: &str) -> Result<(), KeyError> {
    Rules { default: "order", works: &["up", "down"], later: &[] }.check(key, value)?;
    values::Startup::parse(key, value).map(drop)
}

pub(super) fn tags(key: &str, value: &str) -> Result<(), KeyError> {
    for tag in split_list(value) {
        let head = tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if !head || !tag.chars().all(|c| c.is_ascii_alphanumeric() || "_-+.".contains(c)) {
            return KeyError::value(
                key,
                format_args!("'{tag}' is not a tag: letters, digits, '_', '-', '+' and '.' are allowed"),
            );
        }
    }
    Ok(())
}

pub(super) fn storage(key: &str, value: &str) -> Result<(), KeyError> {
    value.parse::<StorageId>().map(drop).or_else(|e| KeyError::value(key, e))
}

pub(super) fn watchdog(key: &str, value: &str) -> Result<(), KeyError> {
    Rules { default: "model", works: &["action"], later: &[] }.check(key, value)?;
    values::Watchdog::parse(key, value).map(drop)
}

pub(super) fn vga(key: &str, value: &str) -> Result<(), KeyError> {
    Rules { default: "type", works: &["clipboard", "memory"], later: &[] }.check(key, value)?;
    let vga = values::Vga::parse(key, value)?;
    if vga.clipboard && (vga.kind == "none" || vga.kind.starts_with("serial")) {
        return KeyError::value(key, format_args!("clipboard: '{}' has no viewer that keeps one", vga.kind));
    }
    if vga.kind.starts_with("qxl") || vga.kind == "virtio-gl" {
        return KeyError::unsupported(key, format_args!("'{}' is not supported yet", vga.kind));
    }
    Ok(())
}
