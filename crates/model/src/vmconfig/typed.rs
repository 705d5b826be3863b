//! Options as the VM driver and the use cases need them: typed, with defaults.
//!
//! An error here means that a *stored* value cannot be used; it names the option.

use super::Settings;
use super::check::integer;
use super::devices::{Bus, Disk, DiskSource, Net, as_disk, flag};
use super::keys::{
    KeyError, MAX_CPU_UNITS, MAX_CPUS, MAX_MEMORY, MAX_SHARES, Refusal, accept, lookup, split_index,
};
use super::values::{self, split_words};
use super::{Agent, Audio, Bios, Boot, Cpu, CpuShare, OsType, Rng, ScsiHw, Serial, Startup, Vga, Watchdog};
use crate::cloudinit::options::NO_PASSWORD;
use crate::property::PropertyString;
use crate::size::Mebibytes;
use crate::text::{parse_bool, split_list};
use crate::{Size, VolumeId};
use std::collections::BTreeSet;

impl Settings {
    pub(super) fn boolean(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(parse_bool).unwrap_or(default)
    }

    fn integer(&self, key: &str, min: u64, max: u64) -> Result<Option<u64>, KeyError> {
        self.get(key).map(|text| integer(key, text, min, max)).transpose()
    }

    /// A stored value that is used as it is written, if it could be set today.
    fn checked(&self, key: &str) -> Result<Option<&str>, KeyError> {
        self.get(key).map(|value| accept(key, value).map(|_| value)).transpose()
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
    pub(super) fn family<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
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
        values::tags(self.get("tags").unwrap_or_default())
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

    /// The CPUs of the host that it may run on; `None`: any.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn affinity(&self) -> Result<Option<BTreeSet<u32>>, KeyError> {
        self.get("affinity").map(|text| values::cpu_list("affinity", text)).transpose()
    }

    /// Whether the firmware describes the machine by ACPI. Default: yes.
    pub fn acpi(&self) -> bool {
        self.boolean("acpi", true)
    }

    /// Whether the host may share equal pages of its memory with others. Default: yes.
    pub fn allow_ksm(&self) -> bool {
        self.boolean("allow-ksm", true)
    }

    /// Whether a restart from inside restarts it; else it ends it. Default: yes.
    pub fn reboot(&self) -> bool {
        self.boolean("reboot", true)
    }

    /// Whether its CPUs wait after a start for somebody to continue them.
    pub fn freeze(&self) -> bool {
        self.boolean("freeze", false)
    }

    /// How long it may stand still at the end of a live migration, in seconds; `None`: as long as the driver thinks fit.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn migrate_downtime(&self) -> Result<Option<f64>, KeyError> {
        let text = self.checked("migrate_downtime")?;
        text.map(|text| text.parse().or_else(|e| KeyError::value("migrate_downtime", e))).transpose()
    }

    /// How many bytes a second a move of it may send, if it does not say itself; `None`: as many as there can be.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn migrate_speed(&self) -> Result<Option<u64>, KeyError> {
        let mebibytes = self.integer("migrate_speed", 0, u64::MAX)?.filter(|n| *n > 0);
        Ok(mebibytes.map(|n| n.saturating_mul(1 << 20)))
    }

    /// Whether its clock is set by local time; `None`: as its system expects it.
    pub fn localtime(&self) -> Option<bool> {
        self.get("localtime").and_then(parse_bool)
    }

    /// What its clock shows at the start; `None`: the time.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn startdate(&self) -> Result<Option<&str>, KeyError> {
        Ok(self.checked("startdate")?.filter(|date| *date != "now"))
    }

    /// Whether lost ticks of its clock are made up for.
    pub fn time_drift_fix(&self) -> bool {
        self.boolean("tdf", false)
    }

    /// The layout of the keyboard that a screen's viewer has; `None`: the viewer's own.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn keyboard(&self) -> Result<Option<&str>, KeyError> {
        self.checked("keyboard")
    }

    /// Its sound card.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn audio0(&self) -> Result<Option<Audio>, KeyError> {
        self.get("audio0").map(|text| values::audio("audio0", text)).transpose()
    }

    /// Its watchdog.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn watchdog(&self) -> Result<Option<Watchdog>, KeyError> {
        self.get("watchdog").map(|text| Watchdog::parse("watchdog", text)).transpose()
    }

    /// The host's ports that are its parallel ports, by number, each with its key.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn parallels(&self) -> Result<Vec<(&str, &str)>, KeyError> {
        self.family("parallel").map(|(key, value)| accept(key, value).map(|_| (key, value))).collect()
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
        self.get("smbios1").map_or(Ok(Vec::new()), |text| values::smbios("smbios1", text))
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

    /// Sockets, which an older configuration calls `smp`. Default 1.
    pub fn sockets(&self) -> Result<u32, KeyError> {
        self.count(if self.get("sockets").is_none() { "smp" } else { "sockets" })
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

    /// How much of the host's CPUs it gets.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn cpu_share(&self) -> Result<CpuShare, KeyError> {
        let limit = match self.checked("cpulimit")? {
            Some(text) => text.parse().or_else(|e| KeyError::value("cpulimit", e))?,
            None => 0.0,
        };
        let units = self.integer("cpuunits", 1, MAX_CPU_UNITS)?.and_then(|n| u32::try_from(n).ok());
        Ok(CpuShare { limit, units })
    }

    /// The CPU model.
    pub fn cpu(&self) -> Result<Cpu, KeyError> {
        match self.get("cpu") {
            Some(text) => Cpu::parse("cpu", text),
            None => Cpu::parse("cpu", ""),
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

    /// Its weight when the memory that its balloon may take is shared out; 0: the balloon stays where it was set. Default 1000.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn shares(&self) -> Result<u32, KeyError> {
        Ok(self.integer("shares", 0, MAX_SHARES)?.and_then(|n| u32::try_from(n).ok()).unwrap_or(1000))
    }

    /// The machine type as it is written; `None`: the driver's default. May have no version.
    pub fn machine(&self) -> Result<Option<String>, KeyError> {
        let Some(text) = self.get("machine") else { return Ok(None) };
        let props: PropertyString = text.parse().or_else(|e| KeyError::value("machine", e))?;
        Ok(props.get_default("type").map(str::to_owned))
    }

    /// What the firmware tells of sleep: whether the guest can sleep in RAM, and on disk; `None`: as the machine type has it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn sleep_states(&self) -> Result<[Option<bool>; 2], KeyError> {
        let Some(text) = self.get("machine") else { return Ok([None, None]) };
        let props: PropertyString = text.parse().or_else(|e| KeyError::value("machine", e))?;
        let state = |name: &str| match props.get(name) {
            Some(_) => flag("machine", &props, name, true).map(Some),
            None => Ok(None),
        };
        Ok([state("enable-s3")?, state("enable-s4")?])
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

    /// Disks and CD drives, by bus (ide, sata, scsi, virtio) and number; last the UEFI firmware's and the TPM's. Unused ones: [`Self::unused`].
    pub fn disks(&self) -> Result<Vec<Disk>, KeyError> {
        [Bus::Ide, Bus::Sata, Bus::Scsi, Bus::Virtio, Bus::Efidisk, Bus::Tpmstate]
            .iter()
            .flat_map(|bus| self.family(bus.as_str()))
            .map(|(key, value)| Disk::parse(key, value))
            .collect()
    }

    /// The disk for the UEFI firmware's variables.
    pub fn efidisk(&self) -> Result<Option<Disk>, KeyError> {
        self.get("efidisk0").map(|value| Disk::parse("efidisk0", value)).transpose()
    }

    /// What its TPM keeps its state on.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn tpmstate(&self) -> Result<Option<Disk>, KeyError> {
        self.get("tpmstate0").map(|value| Disk::parse("tpmstate0", value)).transpose()
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
        self.get("agent").map_or(Ok(Agent { enabled: false, isa: false, freeze: true }), |text| {
            values::agent("agent", text)
        })
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

    /// Refuses an order of devices that names one which is not there. A device may go later, and come again: then it is passed over.
    ///
    /// # Errors
    /// If there is such a device.
    pub fn check_boot(&self) -> Result<(), KeyError> {
        match self.boot()? {
            Boot::Order(devices) => match devices.iter().find(|d| self.get(d).is_none()) {
                Some(missing) => KeyError::value("boot", format_args!("device '{missing}' does not exist")),
                None => Ok(()),
            },
            Boot::Legacy(_) => Ok(()),
        }
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
                'c' => named.or_else(|| {
                    disks.iter().find(|d| !d.cdrom && d.bus.has_drives()).map(|d| d.key.as_str())
                }),
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

    /// The kinds of hardware that may come and go while the guest runs: `network`, `disk`, `usb` where nothing is said.
    pub fn hotplug(&self) -> Vec<&str> {
        match self.get("hotplug") {
            None | Some("1") => vec!["network", "disk", "usb"],
            Some(list) => split_list(list).filter(|f| *f != "0").collect(),
        }
    }

    /// Every volume named, with the option that names it; CD images and unused volumes too.
    pub fn volumes(&self) -> Vec<(&str, VolumeId)> {
        self.iter()
            .filter_map(|(key, value)| {
                let family = split_index(key).map_or(key, |(name, _)| name);
                if as_disk(key).is_none() && family != "vmstate" {
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

    /// Options that are set and kept but have no effect, or a part of whose value has none, each with why.
    pub fn without_effect(&self) -> Vec<KeyError> {
        let refused = self.iter().filter_map(|(key, value)| accept(key, value).err());
        let mut idle: Vec<KeyError> =
            refused.filter(|e| matches!(e.refusal, Refusal::Unknown | Refusal::Unsupported)).collect();
        if self.get("cipassword").is_some() && self.ostype().is_ok_and(OsType::is_windows) {
            idle.extend(KeyError::unsupported::<()>("cipassword", NO_PASSWORD).err());
        }
        if !self.boolean("numa", false) {
            let nodes = self.family("numa").map(|(key, _)| key);
            idle.extend(nodes.filter_map(|key| KeyError::unsupported::<()>(key, "only with numa=1").err()));
        }
        // A controller that several disks share has queues for all of them.
        if self.scsihw().is_ok_and(|hw| hw != ScsiHw::VirtioScsiSingle) {
            let why = "queues: only with scsihw=virtio-scsi-single does a disk have queues of its own";
            let with_queues =
                self.disks().unwrap_or_default().into_iter().filter(|d| d.props.get("queues").is_some());
            idle.extend(with_queues.filter_map(|d| KeyError::unsupported::<()>(&d.key, why).err()));
        }
        idle
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
        self.modules()?;
        self.huge_pages()?;
        self.numa_nodes()?;
        self.boot()?;
        let vga = self.vga()?;
        if vga.kind.starts_with("serial") && self.get(&vga.kind).is_none() {
            return KeyError::value("vga", format_args!("there is no serial port '{}'", vga.kind));
        }
        let told = |d: &Disk| d.cloudinit().is_some() || matches!(d.source, DiskSource::NewCloudInit { .. });
        let mut drives = self.disks()?.into_iter().filter(told);
        if let (Some(one), Some(two)) = (drives.next(), drives.next()) {
            let why = format!(
                "a VM has one cloud-init drive at most, and '{}' is that: take it out first",
                one.key
            );
            return KeyError::value(&two.key, why);
        }
        self.nets()?;
        self.serials()?;
        self.usbs()?;
        self.hostpcis()?;
        self.ivshmem()?;
        self.virtiofs()?;
        Ok(())
    }
}
