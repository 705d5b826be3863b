//! The table of all options of a VM: what kind of value each takes, and whether it works.
//!
//! Every option of Proxmox VE's schema is here, so that configurations made elsewhere are read and kept.
//! What does not work yet is refused when somebody sets it, never silently ignored.

use super::{check, host, shares};
use crate::cloudinit::options;
use std::fmt;

/// An option that cannot be set, or a value in a file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct KeyError {
    /// The option, as the API names the parameter.
    pub key: String,
    /// In which way.
    pub refusal: Refusal,
    /// Why, for people.
    pub why: String,
}

/// In which way an option was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such option.
    Unknown,
    /// There is, but it does not work yet.
    Unsupported,
    /// It is set by the system, not by users.
    Internal,
    /// The value is wrong.
    Value,
}

impl KeyError {
    /// That the value of an option is wrong.
    ///
    /// # Errors
    /// Always.
    pub fn value<T>(key: &str, why: impl fmt::Display) -> Result<T, Self> {
        Err(Self { key: key.to_owned(), refusal: Refusal::Value, why: why.to_string() })
    }

    pub(crate) fn unsupported<T>(key: &str, why: impl fmt::Display) -> Result<T, Self> {
        Err(Self { key: key.to_owned(), refusal: Refusal::Unsupported, why: why.to_string() })
    }
}

/// What values an option takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Stored as `1` or `0`.
    Bool,
    /// A whole number, both limits included.
    Int {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A number with an optional fraction, both limits included.
    Number {
        /// Least.
        min: f64,
        /// Most.
        max: f64,
    },
    /// One of these.
    Choice(&'static [&'static str]),
    /// Free text on one line, of at most so many characters.
    Text {
        /// The limit.
        max: usize,
    },
    /// Checked by its own rule, often a property string: `(key, value)`.
    Checked(fn(&str, &str) -> Result<(), KeyError>),
}

/// Whether an option can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It works.
    Works,
    /// It is read and kept, and refused when set, for this reason.
    Never(&'static str),
    /// It is taken as it is, and refused by a node that does not have what it needs, with its reason.
    ByNode(&'static str),
    /// Set by the system alone.
    Internal,
    /// Another name of that option.
    AliasOf(&'static str),
}

/// When a change reaches a running VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live {
    /// At once: the running process has no part in it.
    Now,
    /// At once if the driver can tell the process (a medium, a link); else with the next start.
    Device,
    /// With the next start.
    Restart,
}

/// One option, or one family of numbered options.
#[derive(Debug, Clone, Copy)]
pub struct KeySpec {
    /// Its name, without the number.
    pub name: &'static str,
    /// How many there are, numbered from 0; 0 for an option without a number.
    pub count: u32,
    /// Its values.
    pub kind: Kind,
    /// Whether it can be set.
    pub support: Support,
    /// When a change takes effect.
    pub live: Live,
}

impl KeySpec {
    const fn of(self, count: u32) -> Self {
        Self { count, ..self }
    }
    const fn now(self) -> Self {
        Self { live: Live::Now, ..self }
    }
    const fn device(self) -> Self {
        Self { live: Live::Device, ..self }
    }
}

const fn works(name: &'static str, kind: Kind) -> KeySpec {
    KeySpec { name, count: 0, kind, support: Support::Works, live: Live::Restart }
}
const fn never(name: &'static str, why: &'static str) -> KeySpec {
    KeySpec { name, count: 0, kind: LINE, support: Support::Never(why), live: Live::Now }
}
const fn by_node(name: &'static str, needs: &'static str) -> KeySpec {
    KeySpec { name, count: 0, kind: LINE, support: Support::ByNode(needs), live: Live::Restart }
}
const fn internal(name: &'static str) -> KeySpec {
    KeySpec { name, count: 0, kind: LINE, support: Support::Internal, live: Live::Now }
}
const fn alias(name: &'static str, of: &'static str) -> KeySpec {
    KeySpec { name, count: 0, kind: LINE, support: Support::AliasOf(of), live: Live::Restart }
}

const LINE: Kind = Kind::Text { max: 65_536 };
const fn int(min: u64, max: u64) -> Kind {
    Kind::Int { min, max }
}
const fn number(min: f64, max: f64) -> Kind {
    Kind::Number { min, max }
}

/// The most CPUs, the limit of QEMU's machine types.
pub const MAX_CPUS: u64 = 4096;
/// The greatest weight, that of the older of the kernel's scales.
pub const MAX_CPU_UNITS: u64 = 262_144;
/// The greatest weight when memory is shared out.
pub const MAX_SHARES: u64 = 50_000;
/// The most memory in MiB: 4 TiB.
pub const MAX_MEMORY: u64 = 4 << 20;

const LOCKS: Kind = Kind::Choice(&[
    "backup",
    "clone",
    "create",
    "migrate",
    "rollback",
    "snapshot",
    "snapshot-delete",
    "suspending",
    "suspended",
]);
const OSTYPES: Kind = Kind::Choice(&[
    "other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26",
    "solaris",
]);

const KEYBOARDS: Kind = Kind::Choice(&[
    "de", "de-ch", "da", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it",
    "ja", "lt", "mk", "nl", "no", "pl", "pt", "pt-br", "sv", "sl", "tr",
]);

/// Every option.
pub static KEYS: &[KeySpec] = &[
    // What works.
    works("acpi", Kind::Bool),
    works("affinity", Kind::Checked(check::affinity)),
    works("agent", Kind::Checked(check::agent)),
    works("allow-ksm", Kind::Bool),
    works("arch", Kind::Checked(check::arch)),
    works("args", Kind::Checked(check::args)),
    works("audio0", Kind::Checked(check::audio)),
    // Without effect for long, elsewhere too.
    works("autostart", Kind::Bool).now(),
    works("balloon", int(0, MAX_MEMORY)).device(),
    works("bios", Kind::Choice(&["seabios", "ovmf"])),
    works("boot", Kind::Checked(check::boot)),
    works("bootdisk", Kind::Checked(check::bootdisk)),
    works("cicustom", Kind::Checked(check::cicustom)).now(),
    works("cipassword", Kind::Checked(options::password)).now(),
    works("citype", Kind::Checked(options::layout)).now(),
    works("ciupgrade", Kind::Bool).now(),
    works("ciuser", Kind::Text { max: 256 }).now(),
    works("cores", int(1, MAX_CPUS)),
    works("cpu", Kind::Checked(check::cpu)),
    works("cpulimit", number(0.0, 128.0)).device(),
    works("cpuunits", int(1, MAX_CPU_UNITS)).device(),
    works("description", Kind::Text { max: 8192 }).now(),
    works("efidisk0", Kind::Checked(check::efidisk)),
    works("freeze", Kind::Bool),
    works("hookscript", Kind::Checked(check::hookscript)).now(),
    works("hostpci", Kind::Checked(host::hostpci)).of(16),
    works("hotplug", Kind::Checked(check::hotplug)).now(),
    works("hugepages", Kind::Choice(&["any", "2", "1024"])),
    works("ide", Kind::Checked(check::disk)).of(4).device(),
    works("ipconfig", Kind::Checked(check::ipconfig)).of(32).now(),
    works("ivshmem", Kind::Checked(host::ivshmem)),
    works("keephugepages", Kind::Bool),
    works("keyboard", KEYBOARDS),
    works("kvm", Kind::Bool),
    works("localtime", Kind::Bool),
    works("machine", Kind::Checked(check::machine)),
    works("memory", Kind::Checked(check::memory)).device(),
    // QEMU takes 2,000 seconds at most.
    works("migrate_downtime", number(0.0, 2000.0)).device(),
    works("migrate_speed", int(0, u64::MAX)).now(),
    works("name", Kind::Checked(check::name)).now(),
    works("nameserver", Kind::Checked(check::nameserver)).now(),
    works("net", Kind::Checked(check::net)).of(32).device(),
    works("numa", Kind::Bool),
    works("numa", Kind::Checked(check::numa_node)).of(8),
    works("onboot", Kind::Bool).now(),
    works("ostype", OSTYPES),
    works("parallel", Kind::Checked(check::parallel)).of(3),
    works("protection", Kind::Bool).now(),
    works("reboot", Kind::Bool),
    works("rng0", Kind::Checked(check::rng)),
    works("sata", Kind::Checked(check::disk)).of(6).device(),
    works("scsi", Kind::Checked(check::disk)).of(31).device(),
    works(
        "scsihw",
        Kind::Choice(&["lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi"]),
    ),
    works("searchdomain", Kind::Checked(check::searchdomain)).now(),
    works("serial", Kind::Checked(check::serial)).of(4),
    works("shares", int(0, MAX_SHARES)).now(),
    works("smbios1", Kind::Checked(check::smbios1)),
    works("smp", int(1, MAX_CPUS)),
    works("sockets", int(1, MAX_CPUS)),
    works("sshkeys", Kind::Checked(check::sshkeys)).now(),
    works("startdate", Kind::Checked(check::startdate)),
    works("startup", Kind::Checked(check::startup)).now(),
    works("tablet", Kind::Bool),
    works("tags", Kind::Checked(check::tags)).now(),
    works("tdf", Kind::Bool),
    works("template", Kind::Bool).now(),
    works("tpmstate0", Kind::Checked(check::tpmstate)),
    works("unused", Kind::Checked(check::unused)).of(256).now(),
    works("usb", Kind::Checked(host::usb)).of(14).device(),
    works("vcpus", int(1, MAX_CPUS)).device(),
    works("vga", Kind::Checked(check::vga)),
    works("virtio", Kind::Checked(check::disk)).of(16).device(),
    works("virtiofs", Kind::Checked(shares::virtiofs)).of(10),
    works("vmgenid", Kind::Checked(check::vmgenid)),
    works("vmstatestorage", Kind::Checked(check::storage)).now(),
    works("watchdog", Kind::Checked(check::watchdog)),
    // Other names.
    alias("cdrom", "ide2"),
    // Set by the system.
    KeySpec { name: "lock", count: 0, kind: LOCKS, support: Support::Internal, live: Live::Now },
    internal("meta"),
    internal("parent"),
    internal("running-nets-host-mtu"),
    internal("runningaccel"),
    internal("runningcpu"),
    internal("runningmachine"),
    internal("snapstate"),
    internal("snaptime"),
    internal("vmstate"),
    // Read and kept.
    by_node("amd-sev", "a CPU with SEV, and a QEMU set up for it"),
    by_node("intel-tdx", "a CPU with TDX, and QEMU 10.1 or newer"),
    never("spice_enhancements", "QEMU on Debian has no SPICE"),
];

/// A name with its number: `scsi12` is `("scsi", 12)`.
pub fn split_index(key: &str) -> Option<(&str, u32)> {
    let name = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &key[name.len()..];
    if name.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    Some((name, digits.parse().ok()?))
}

/// The option of that name, with its number where it has one.
pub fn lookup(key: &str) -> Option<(&'static KeySpec, Option<u32>)> {
    if let Some(spec) = KEYS.iter().find(|spec| spec.count == 0 && spec.name == key) {
        return Some((spec, None));
    }
    let (name, index) = split_index(key)?;
    KEYS.iter().find(|spec| spec.name == name && index < spec.count).map(|spec| (spec, Some(index)))
}

/// The name under which an option is stored: `cdrom` is `ide2`.
///
/// # Errors
/// If there is no such option.
pub fn canonical_key(key: &str) -> Result<&str, KeyError> {
    match lookup(key) {
        Some((KeySpec { support: Support::AliasOf(of), .. }, _)) => Ok(of),
        Some(_) => Ok(key),
        None => Err(KeyError {
            key: key.to_owned(),
            refusal: Refusal::Unknown,
            why: "there is no such option of a VM".to_owned(),
        }),
    }
}

/// When a change of `key` reaches a running VM; of an unknown option, with the next start.
pub fn live(key: &str) -> Live {
    lookup(key).map_or(Live::Restart, |(spec, _)| spec.live)
}

/// Checks what a user sets. Returns the name and the value as they are stored; an empty value (of a description
/// or of tags) takes the option out.
///
/// # Errors
/// If the option is unknown, does not work yet, is the system's own, or if the value is wrong.
pub fn accept<'k>(key: &'k str, value: &str) -> Result<(&'k str, String), KeyError> {
    let stored = canonical_key(key)?;
    let Some((spec, _)) = lookup(stored) else {
        return KeyError::value(key, "there is no such option of a VM");
    };
    refuse_internal(key, spec)?;
    let value = check::normal(spec, stored, value).map_err(|e| KeyError { key: key.to_owned(), ..e })?;
    if let Support::Never(why) = spec.support {
        return KeyError::unsupported(key, why);
    }
    Ok((stored, value))
}

/// Checks what a user takes out, and returns its name as it is stored. A lock can be: that is how it is forced open.
///
/// # Errors
/// If the option is unknown or the system's own.
pub fn removable(key: &str) -> Result<&str, KeyError> {
    let stored = canonical_key(key)?;
    if let Some((spec, _)) = lookup(stored).filter(|_| stored != "lock") {
        refuse_internal(key, spec)?;
    }
    Ok(stored)
}

/// What the system keeps in a configuration is not for users to change.
fn refuse_internal(key: &str, spec: &KeySpec) -> Result<(), KeyError> {
    if spec.support != Support::Internal {
        return Ok(());
    }
    let why = "it is set by the system and cannot be changed".to_owned();
    Err(KeyError { key: key.to_owned(), refusal: Refusal::Internal, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_is_listed_twice() {
        for (i, a) in KEYS.iter().enumerate() {
            for b in &KEYS[i + 1..] {
                assert!(a.name != b.name || a.count != b.count, "{}", a.name);
            }
        }
    }

    #[test]
    fn numbers_have_limits() {
        assert_eq!(lookup("scsi30").map(|(s, i)| (s.name, i)), Some(("scsi", Some(30))));
        assert_eq!(lookup("numa").map(|(s, i)| (s.name, i)), Some(("numa", None)));
        assert_eq!(lookup("numa0").map(|(s, i)| (s.name, i)), Some(("numa", Some(0))));
        assert_eq!(lookup("rng0").map(|(s, i)| (s.name, i)), Some(("rng0", None)));
        for wrong in ["scsi31", "scsi", "scsi01", "ide4", "net-1", "net4294967296", "0", "nosuch", "memory0"]
        {
            assert!(lookup(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn what_is_set_is_accepted_or_refused_with_its_name() {
        let said = |key: &str, value: &str| match accept(key, value) {
            Ok((key, value)) => format!("{key}={value}"),
            Err(e) => e.to_string(),
        };
        let all: Vec<String> = [
            ("memory", "8"),
            ("memory", "current=2048"),
            ("cores", "0"),
            ("cores", "two"),
            ("onboot", "yes"),
            ("onboot", "maybe"),
            ("cdrom", "none"),
            ("bios", "coreboot"),
            ("numa", "no"),
            ("numa", "1"),
            ("hostpci0", "01:00"),
            ("hostpci0", "mapping=gpu,pcie=1,x-vga=1"),
            ("hostpci0", "01"),
            ("hostpci0", "01:00,driver=nvidia"),
            ("arch", "x86_64"),
            ("arch", "aarch64"),
            ("smp", "2"),
            ("migrate_speed", "100"),
            ("spice_enhancements", "foldersharing=1"),
            ("amd-sev", "type=std"),
            ("cpu", "cluster"),
            ("cpu", "custom-fast,flags=+aes"),
            ("cpu", "max,reported-model=Haswell"),
            ("usb0", "046d:c52b,usb3=1"),
            ("usb0", "spice"),
            ("usb13", "mapping=key"),
            ("usb14", "mapping=key"),
            ("virtiofs0", "share"),
            ("virtiofs9", "dirid=share,cache=metadata,direct-io=1,expose-acl=1,expose-xattr=0"),
            ("virtiofs0", "dirid=share,cache=none"),
            ("virtiofs0", "dirid=share,path=/etc"),
            ("virtiofs10", "share"),
            ("ivshmem", "size=32,name=frames"),
            ("ivshmem", "size=31"),
            ("hotplug", "0"),
            ("hotplug", "network,disk"),
            ("hotplug", "network,memory"),
            ("hotplug", "network,floppy"),
            ("hotplug", "network,cloudinit"),
            ("autostart", "1"),
            ("tablet", "0"),
            ("vmgenid", "1"),
            ("vmgenid", "next"),
            ("smbios1", "uuid=1d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10,serial=7"),
            ("smbios1", "uuid=1d0f2f9e"),
            ("smbios1", "base64=1,serial=Nw=="),
            ("startup", "order=1,down=60"),
            ("startup", "order=1,down=180"),
            ("net0", "virtio,bridge=vmbr0,firewall=1"),
            ("net0", "virtio,bridge=vmbr0,rate=10,queues=4,mtu=1"),
            ("net0", "e1000,bridge=vmbr0,queues=4"),
            ("net0", "e1000,bridge=vmbr0,mtu=1400"),
            ("net0", "virtio,bridge=vmbr0,trunks=2;3"),
            ("net0", "virtio,bridge=vmbr0,tag=5"),
            ("net0", "virtio,bridge=vmbr0,firewall=0,rate=0"),
            ("ide2", "local:cloudinit"),
            ("scsi1", "local:cloudinit,media=cdrom,format=raw"),
            ("ide2", "local:cloudinit,media=disk"),
            ("virtio1", "local:cloudinit"),
            ("citype", "nocloud"),
            ("citype", "opennebula"),
            ("citype", "floppy"),
            ("cipassword", "**********"),
            ("ciupgrade", "off"),
            ("cicustom", "user=local:snippets/user.yaml,network=local:snippets/net.yaml"),
            ("cicustom", "user=local:iso/a.iso"),
            ("cicustom", "local:snippets/user.yaml"),
            ("cicustom", "user=user.yaml"),
            ("sshkeys", "ssh-ed25519%20AAAA%20me%40home%0A"),
            ("sshkeys", "ssh-ed25519 AAAA me@home"),
            ("sshkeys", "ssh-ed25519%2"),
            ("sshkeys", "a%00b"),
            ("nameserver", "1.1.1.1 2606:4700::1111"),
            ("nameserver", "one.one"),
            ("searchdomain", "example.org lan"),
            ("searchdomain", "exa_mple"),
            ("ipconfig0", "ip=10.0.0.5/24,gw=10.0.0.1,ip6=auto"),
            ("ipconfig31", "ip6=2001:db8::5/64,gw6=fe80::1"),
            ("ipconfig32", "ip=dhcp"),
            ("ipconfig0", "ip=10.0.0.5"),
            ("ipconfig0", "ip=10.0.0.5/33"),
            ("ipconfig0", "ip=auto"),
            ("ipconfig0", "ip=2001:db8::5/64"),
            ("ipconfig0", "ip=dhcp,gw=10.0.0.1"),
            ("ipconfig0", "gw6=fe80::1"),
            ("ipconfig0", "ip=10.0.0.5/24,gw=fe80::1"),
            ("ipconfig0", "dhcp"),
            ("ipconfig0", "ip=dhcp,mtu=9000"),
            ("scsi0", "local:99999999"),
            ("meta", "x=1"),
            ("lock", "backup"),
            ("colour", "blue"),
            ("args", "-device 'x"),
            ("name", "web_1"),
            ("name", "web-1.example.org"),
            ("tags", "b, a;b"),
            ("serial0", "/etc/passwd"),
            ("startup", "1,up=30"),
            ("vga", "memory=1000"),
            ("vga", "qxl"),
            ("agent", "1,fstrim_cloned_disks=1"),
            ("scsi0", "local:8,mbps=10"),
            ("scsi0", "local:8,ssd=perhaps"),
            ("scsi0", "local:8,colour=blue"),
            ("virtio0", "local:8,ssd=1"),
            ("scsi0", "local:../x"),
            ("net0", "virtio,bridge=vmbr0,tag=5000"),
            ("net0", "virtio=01:00:00:00:00:01"),
            ("boot", "order=scsi0;rng0"),
            ("boot", "order="),
            ("boot", "c,order="),
            ("tpmstate0", "local:1,version=v2.0"),
            ("tpmstate0", "local:1"),
            ("tpmstate0", "local:1,version=v3.0"),
            ("tpmstate0", "local:1,format=qcow2"),
            ("tpmstate0", "local:0,import-from=local:100/vm-100-disk-0.raw"),
            ("tpmstate0", "none"),
            ("machine", "pc-i440fx-10.0"),
            ("machine", "toaster"),
            ("cpu", "host,flags=+aes;-pcid"),
            ("cpu", "host,flags=aes"),
            ("cpu", "max,hidden=1,phys-bits=host,guest-phys-bits=40"),
            ("cpu", "max,phys-bits=65"),
            ("cpu", "max,hv-vendor-id=proxmox"),
            ("cpu", "max,hv-vendor-id=not so"),
            ("vga", "std,clipboard=vnc"),
            ("vga", "std,clipboard=spice"),
            ("vga", "serial0,clipboard=vnc"),
            ("numa0", "cpus=0-1;3,memory=512,hostnodes=0,policy=preferred"),
            ("numa0", "cpus=0,memory=512,policy=preferred"),
            ("numa0", "cpus=0,memory=512,hostnodes=0,policy=strict"),
            ("numa8", "cpus=0,memory=512"),
            ("hugepages", "2"),
            ("hugepages", "4"),
            ("migrate_downtime", "0.05"),
            ("migrate_downtime", "3600"),
            ("machine", "q35,enable-s3=0,enable-s4=1"),
            ("machine", "q35,enable-s3=perhaps"),
            ("machine", "q35,viommu=intel"),
            ("rng0", "source=/dev/sda"),
            ("smbios1", "base64=1,serial=Nw==,family=?"),
            ("affinity", "0,4-7"),
            ("affinity", "7-4"),
            ("affinity", "0,1024"),
            ("affinity", ","),
            ("audio0", "device=ich9-intel-hda"),
            ("audio0", "device=AC97,driver=spice"),
            ("audio0", "driver=none"),
            ("bootdisk", "scsi0"),
            ("bootdisk", "unused0"),
            ("keyboard", "de-ch"),
            ("keyboard", "klingon"),
            ("parallel0", "/dev/parport0"),
            ("parallel0", "/dev/sda"),
            ("hookscript", "local:snippets/hook.pl"),
            ("hookscript", "local:iso/hook.pl"),
            ("hookscript", "local:snippets/sub/hook.pl"),
            ("hookscript", "/srv/hook.pl"),
            ("startdate", "now"),
            ("startdate", "2006-06-17T16:01:21"),
            ("startdate", "2006-6-7"),
            ("startdate", "2006-13-17"),
            ("startdate", "17.6.2006"),
            ("watchdog", "i6300esb,action=poweroff"),
            ("watchdog", "action=none"),
            ("watchdog", "dog"),
            ("watchdog", "ib700,action=bark"),
            ("scsi0", "local:8,wwn=0x500000123456789a,vendor=ACME,product=Fast-1,queues=4,rerror=stop,werror=enospc"),
            ("scsi0", "local:8,wwn=500000123456789a"),
            ("scsi0", "local:8,vendor=ACME Limited"),
            ("scsi0", "local:8,queues=1"),
            ("scsi0", "local:8,rerror=enospc"),
            ("scsi0", "local:8,scsiblock=1"),
            ("sata0", "local:8,model=A%20B"),
            ("ide0", "local:8,model=A%20B"),
            ("scsi0", "local:8,mbps=1.5,mbps_max=10,bps_max_length=60,iops_rd=100,iops_rd_max=200,iops_rd_length=2"),
            ("scsi0", "local:8,mbps=10,mbps_rd=5"),
            ("scsi0", "local:8,mbps=10,mbps_max=5"),
            ("scsi0", "local:8,iops_max=5"),
            ("scsi0", "local:8,iops=5,iops_max_length=5"),
            ("scsi0", "local:8,mbps=fast"),
            ("ide2", "local:iso/a.iso,media=cdrom,mbps=1"),
        ]
        .iter()
        .map(|(k, v)| said(k, v))
        .collect();
        insta::assert_snapshot!(all.join("\n"));
    }
}
