//! A configuration becomes a command line. Pure: nothing here looks at the machine.
//!
//! Every device has an id and an address that follow from its option's name alone, never from its order or
//! from what else is there: a migration fits its target, and a system finds its cards where they were.

mod cpu;
mod disks;
mod hostdevs;
mod memory;
mod nets;
mod part;
mod pci;
mod shares;

use crate::accel::Accel;
use crate::firmware::Firmware;
use crate::probe::Machines;
use crate::rundir::RunDir;
use crate::vfio::Passed;
/// The CPUs that a guest may have, as devices, but for the first. `model`: what it runs with.
pub(crate) fn cpus(settings: &Settings, model: &str) -> Result<Vec<Part>, GuestError> {
    cpu::parts(settings, model, settings.cpus().map_err(unusable)?)
}

/// What a command line says of the CPU.
pub(crate) fn cpu_of(argv: &[String]) -> Option<&str> {
    let at = argv.iter().position(|word| word == "-cpu")?;
    argv.get(at + 1).map(String::as_str)
}

pub(crate) use cpu::{check as check_cpu, lacks as cpu_lacks};
pub(crate) use disks::{image_of, medium, node_name};
pub(crate) use hostdevs::{passed_addresses, shared_file, shared_files};
pub(crate) use memory::{Module, modules};
pub(crate) use part::Part;
pub(crate) use pci::Chipset;
use std::path::Path;
use stead_driver::guest::{GuestError, Incoming, ResolvedVolume};
use stead_model::Vmid;
use stead_model::vmconfig::{Audio, Bios, Boot, KeyError, Serial, Settings, TpmVersion, WatchdogModel};

/// How a network device reaches the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetPlan {
    /// A tap that QEMU makes and someone puts on the bridge.
    Tap {
        /// Its name.
        ifname: String,
        /// Where it belongs.
        bridge: String,
        /// Whether the kernel moves its packets.
        vhost: bool,
        /// The largest packet of the bridge, in bytes.
        mtu: u32,
        /// How many bytes a second may pass in each direction.
        rate: Option<u64>,
    },
    /// A user-mode network.
    User {
        /// A forwarding rule.
        forward: Option<String>,
    },
}

/// A monitor's socket: a path, or a listening descriptor that QEMU inherits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// QEMU makes it.
    Path,
    /// It is there already.
    Fd(i32),
}

/// All that a command line depends on.
#[derive(Debug)]
pub struct Context<'a> {
    /// The guest.
    pub vmid: Vmid,
    /// Its options.
    pub settings: &'a Settings,
    /// Its volumes.
    pub volumes: &'a [ResolvedVolume],
    /// The source of an incoming migration.
    pub incoming: Option<&'a Incoming>,
    /// What this node has.
    pub accel: Accel,
    /// What the program has.
    pub machines: &'a Machines,
    /// Where its sockets lie.
    pub dir: &'a RunDir,
    /// One for each network device.
    pub nets: &'a [NetPlan],
    /// One for each PCI device of the host.
    pub passed: &'a [Passed],
    /// Where the firmware is UEFI.
    pub firmware: Option<&'a Firmware>,
    /// The driver's and the fence process's monitor.
    pub monitors: [Endpoint; 2],
    /// Whether QEMU locks its images.
    pub locks: bool,
    /// The size in MiB of the huge pages that its memory is made of; none: it is made of others.
    pub page_mib: Option<u64>,
}

/// What disks and network devices depend on: all that may come and go while a guest runs.
#[derive(Debug)]
pub struct Hardware<'a> {
    /// Its options.
    pub settings: &'a Settings,
    /// Its volumes.
    pub volumes: &'a [ResolvedVolume],
    /// One for each network device.
    pub nets: &'a [NetPlan],
    /// What it is plugged into.
    pub chipset: Chipset,
    /// Whether QEMU locks its images.
    pub locks: bool,
}

impl Hardware<'_> {
    /// All of it, in an order in which it can be made.
    ///
    /// # Errors
    /// If an option cannot be carried out.
    pub fn parts(&self) -> Result<Vec<Part>, GuestError> {
        let mut parts = disks::parts(self)?;
        parts.extend(nets::parts(self)?);
        parts.extend(hostdevs::usb_parts(self)?);
        Ok(parts)
    }
}

/// A command line and what it settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The arguments.
    pub argv: Vec<String>,
    /// The versioned machine type.
    pub machine: String,
    /// The accelerator.
    pub accel: Accel,
    /// The number of CPUs that are present.
    pub cpus: u32,
}

/// An option that cannot be carried out.
pub(crate) fn refuse<T>(key: &str, why: impl Into<String>) -> Result<T, GuestError> {
    Err(GuestError::Config { key: key.to_owned(), why: why.into() })
}

pub(crate) fn unusable(e: KeyError) -> GuestError {
    GuestError::Config { key: e.key, why: e.why }
}

/// What makes a restart from inside end the process.
pub(crate) const REBOOT_ENDS: &str = "reboot=shutdown";

/// The words of a command line.
#[derive(Debug, Default)]
struct Argv(Vec<String>);

impl Argv {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    fn option(&mut self, flag: &str, value: impl Into<String>) {
        self.0.extend([flag.to_owned(), value.into()]);
    }

    fn device(&mut self, value: impl Into<String>) {
        self.option("-device", value);
    }

    fn part(&mut self, part: &Part) {
        self.0.extend(part.words());
    }
}

/// A text within QEMU's own comma-separated lists.
fn quoted(text: &str) -> String {
    text.replace(',', ",,")
}

fn utf8(path: &Path) -> Result<&str, GuestError> {
    path.to_str().map_or_else(|| refuse("path", format!("'{}' is not valid UTF-8", path.display())), Ok)
}

/// A path within QEMU's own comma-separated lists.
fn path(path: &Path) -> Result<String, GuestError> {
    utf8(path).map(quoted)
}

/// Makes the command line.
pub fn build(cx: &Context<'_>) -> Result<CommandLine, GuestError> {
    let s = cx.settings;
    let accel = accel(cx)?;
    let machine = machine(cx)?;
    let cpus = s.cpus().map_err(unusable)?;
    let mut argv = Argv::default();
    basics(&mut argv, cx)?;
    machine_options(&mut argv, cx, &machine, accel)?;
    let (sockets, cores) = (s.sockets().map_err(unusable)?, s.cores().map_err(unusable)?);
    let vcpus = s.vcpus().map_err(unusable)?;
    let present = vcpus.unwrap_or(cpus).min(cpus);
    // Of those that may go again each is a device.
    let fixed = if vcpus.is_some() { 1 } else { cpus };
    argv.option("-smp", format!("{fixed},sockets={sockets},cores={cores},maxcpus={cpus}"));
    let model = match cx.incoming.and_then(|incoming| incoming.cpu.clone()) {
        // What it runs with, whatever the configuration says by now.
        Some(model) => model,
        None => cpu::model(&s.cpu().map_err(unusable)?, accel, s.ostype().map_err(unusable)?)?,
    };
    argv.option("-cpu", model.as_str());
    argv.option("-m", memory::size(s)?);
    memory::add(&mut argv, cx)?;
    let (modules, number) = memory::modules(s)?;
    modules.iter().take(number).flat_map(|m| [&m.backend, &m.device]).for_each(|part| argv.part(part));
    if vcpus.is_some() {
        cpu::parts(s, &model, present)?.iter().for_each(|cpu| argv.part(cpu));
    }
    let chipset = Chipset::of(&machine);
    chipset.bridges().iter().for_each(|bridge| argv.part(bridge));
    argv.device(format!("qemu-xhci,id=xhci,p2=15,p3=15,{}", text(&chipset.main(pci::XHCI))));
    graphics(&mut argv, cx, chipset)?;
    small_devices(&mut argv, cx, chipset)?;
    serials(&mut argv, cx)?;
    parallels(&mut argv, cx)?;
    let (settings, volumes, nets, locks) = (cx.settings, cx.volumes, cx.nets, cx.locks);
    Hardware { settings, volumes, nets, chipset, locks }.parts()?.iter().for_each(|part| argv.part(part));
    hostdevs::check_spelled_out(s)?;
    hostdevs::pci(&mut argv, cx, chipset)?;
    hostdevs::shared_memory(&mut argv, cx, chipset)?;
    shares::add(&mut argv, cx, chipset)?;
    if cx.incoming.is_some() {
        argv.option("-incoming", "defer");
    }
    argv.0.extend(s.args().map_err(unusable)?);
    Ok(CommandLine { argv: argv.0, machine, accel, cpus: present })
}

/// A guest never moves between accelerators: what the source runs under is what counts.
fn accel(cx: &Context<'_>) -> Result<Accel, GuestError> {
    let wanted = match cx.incoming {
        Some(incoming) => incoming.accel.parse().or_else(|e: String| refuse("kvm", e))?,
        None if cx.settings.kvm() => cx.accel,
        None => Accel::Tcg,
    };
    if wanted == Accel::Kvm && cx.accel == Accel::Tcg {
        return refuse("kvm", "the guest runs under KVM, which this node does not have: it cannot move here");
    }
    Ok(wanted)
}

/// The versioned machine type: the source's, the configured one, or the newest.
fn machine(cx: &Context<'_>) -> Result<String, GuestError> {
    let configured = cx.settings.machine().map_err(unusable)?;
    let name = match (cx.incoming, configured.as_deref()) {
        (Some(incoming), _) => incoming.machine.clone(),
        (None, None | Some("pc")) => cx.machines.pc.clone(),
        (None, Some("q35")) => cx.machines.q35.clone(),
        (None, Some(other)) => {
            let plain = other.strip_suffix(".pxe").unwrap_or(other);
            plain.split_once("+pve").map_or(plain, |(name, _)| name).to_owned()
        }
    };
    if cx.machines.names.contains(&name) {
        return Ok(name);
    }
    let Machines { version, pc, q35, .. } = cx.machines;
    refuse(
        "machine",
        format!("QEMU {version} of this node has no machine type '{name}' (its newest are {pc} and {q35})"),
    )
}

fn basics(argv: &mut Argv, cx: &Context<'_>) -> Result<(), GuestError> {
    let name = cx.settings.name().map_or_else(|| format!("VM {}", cx.vmid), str::to_owned);
    argv.option("-name", format!("guest={},debug-threads=on", quoted(&name)));
    argv.flag("-no-user-config");
    argv.flag("-nodefaults");
    // The CPUs wait for the first push.
    argv.flag("-S");
    argv.option("-pidfile", utf8(&cx.dir.pidfile())?);
    for ((id, socket), endpoint) in
        [("qmp", cx.dir.qmp()), ("fence", cx.dir.fence())].into_iter().zip(cx.monitors)
    {
        let address = match endpoint {
            Endpoint::Path => format!("path={}", path(&socket)?),
            Endpoint::Fd(fd) => format!("fd={fd}"),
        };
        argv.option("-chardev", format!("socket,id={id},{address},server=on,wait=off"));
        argv.option("-mon", format!("chardev={id},mode=control"));
    }
    let fields = cx.settings.smbios1().map_err(unusable)?;
    if !fields.is_empty() {
        let fields: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={}", quoted(v))).collect();
        argv.option("-smbios", format!("type=1,{}", fields.join(",")));
    }
    Ok(())
}

fn machine_options(argv: &mut Argv, cx: &Context<'_>, machine: &str, accel: Accel) -> Result<(), GuestError> {
    let windows = cx.settings.ostype().map_err(unusable)?.is_windows();
    let mut text = format!("type={machine},vmport=off,dump-guest-core=off");
    if windows {
        text.push_str(",hpet=off");
    }
    if !cx.settings.acpi() {
        text.push_str(",acpi=off");
    }
    if let Some(memory) = memory::of_machine(cx)? {
        text.push_str(&format!(",memory-backend={memory}"));
    }
    if !cx.settings.allow_ksm() {
        text.push_str(",mem-merge=off");
    }
    if cx.settings.bios().map_err(unusable)? == Bios::Ovmf {
        let Some(firmware) = cx.firmware else {
            return refuse("bios", "the UEFI firmware is not installed on this node (package ovmf)");
        };
        let (code, secure) = firmware.code(Chipset::of(machine));
        let locking = if cx.locks { "auto" } else { "off" };
        for (flash, node, file, format, read_only) in [
            ("pflash0", "pflash0", code, "raw", true),
            ("pflash1", firmware.node.as_str(), firmware.vars.as_path(), firmware.format.as_str(), false),
        ] {
            let part = serde_json::json!({
                "driver": format, "node-name": node, "read-only": read_only,
                "file": { "driver": "file", "filename": file, "read-only": read_only, "locking": locking },
            });
            argv.option("-blockdev", part.to_string());
            text.push_str(&format!(",{flash}={node}"));
        }
        if secure {
            // Only code in system management mode may write the variables.
            text.push_str(",smm=on");
            argv.option("-global", "driver=cfi.pflash01,property=secure,value=on");
        }
    }
    argv.option("-machine", text);
    argv.option(
        "-accel",
        match accel {
            Accel::Kvm => "kvm",
            // A translation cache of its default size would be an eighth of the host's memory.
            Accel::Tcg => "tcg,tb-size=256",
        },
    );
    argv.option("-rtc", clock(cx.settings, windows)?);
    let device = if Chipset::of(machine) == Chipset::Q35 { "ICH9-LPC" } else { "PIIX4_PM" };
    for (state, can) in ["s3", "s4"].into_iter().zip(cx.settings.sleep_states().map_err(unusable)?) {
        if let Some(can) = can {
            argv.option("-global", format!("{device}.disable_{state}={}", u8::from(!can)));
        }
    }
    if accel == Accel::Kvm {
        argv.option("-global", "kvm-pit.lost_tick_policy=discard");
    }
    Ok(())
}

/// Where the guest's clock begins. Windows keeps local time, and loses ticks.
fn clock(s: &Settings, windows: bool) -> Result<String, GuestError> {
    let zone = if s.localtime().unwrap_or(windows) { "localtime" } else { "utc" };
    let slew = if windows || s.time_drift_fix() { ",driftfix=slew" } else { "" };
    Ok(format!("base={}{slew}", s.startdate().map_err(unusable)?.unwrap_or(zone)))
}

fn graphics(argv: &mut Argv, cx: &Context<'_>, chipset: Chipset) -> Result<(), GuestError> {
    let vga = cx.settings.vga().map_err(unusable)?;
    argv.option("-display", "none");
    argv.option("-vnc", format!("unix:{},password=on", path(&cx.dir.vnc())?));
    if let Some(layout) = cx.settings.keyboard().map_err(unusable)? {
        argv.option("-k", layout);
    }
    let memory = |option: &str| vga.memory.map_or_else(String::new, |m| format!(",{option}={}", m.0));
    let card = match vga.kind.as_str() {
        "std" => format!("VGA{}", memory("vgamem_mb")),
        "cirrus" => format!("cirrus-vga{}", memory("vgamem_mb")),
        "vmware" => format!("vmware-svga{}", memory("vgamem_mb")),
        "virtio" => {
            let bytes = vga.memory.map_or_else(String::new, |m| format!(",max_hostmem={}", m.0 << 20));
            format!("virtio-vga{bytes}")
        }
        "none" | "serial0" | "serial1" | "serial2" | "serial3" => return Ok(()),
        kind if kind.starts_with("qxl") => {
            return refuse("vga", "QXL needs SPICE, which QEMU on Debian does not have: use std or virtio");
        }
        kind => return refuse("vga", format!("'{kind}' is not supported: use std or virtio")),
    };
    if !hostdevs::has_screen(cx.settings)? {
        argv.device(format!("{card},id=vga,{}", text(&chipset.main(pci::VGA))));
    }
    // A pointer that is where the screen's viewer has it.
    argv.device(format!("piix3-usb-uhci,id=uhci,{}", text(&chipset.usb())));
    if cx.settings.tablet() {
        argv.device("usb-tablet,id=tablet,bus=uhci.0,port=1");
    }
    if vga.clipboard {
        argv.option("-chardev", "qemu-vdagent,id=vdagent,name=vdagent,clipboard=on");
        argv.device(format!("virtio-serial-pci,id=clipboard,{}", text(&chipset.main(pci::CLIPBOARD))));
        argv.device("virtserialport,chardev=vdagent,name=com.redhat.spice.0,bus=clipboard.0");
    }
    Ok(())
}

fn small_devices(argv: &mut Argv, cx: &Context<'_>, chipset: Chipset) -> Result<(), GuestError> {
    let s = cx.settings;
    if s.balloon().map_err(unusable)?.is_none_or(|b| b.0 > 0) {
        argv.device(format!(
            "virtio-balloon-pci,id=balloon0,free-page-reporting=on,{}",
            text(&chipset.main(pci::BALLOON))
        ));
    }
    if let Some(id) = s.vmgenid() {
        argv.device(format!("vmgenid,id=vmgenid0,guid={id}"));
    }
    let agent = s.agent().map_err(unusable)?;
    if agent.enabled {
        argv.option("-chardev", format!("socket,id=qga0,path={},server=on,wait=off", path(&cx.dir.agent())?));
        if agent.isa {
            argv.device("isa-serial,id=qga,chardev=qga0,index=3");
        } else {
            argv.device(format!("virtio-serial-pci,id=qga,{}", text(&chipset.main(pci::AGENT))));
            argv.device("virtserialport,chardev=qga0,name=org.qemu.guest_agent.0,bus=qga.0");
        }
    }
    if let Some(rng) = s.rng0().map_err(unusable)? {
        argv.option("-object", format!("rng-random,id=rng0,filename={}", rng.source));
        let limit = match rng.max_bytes {
            0 => String::new(),
            bytes => format!(",max-bytes={bytes},period={}", rng.period_ms),
        };
        argv.device(format!("virtio-rng-pci,id=rng-dev0,rng=rng0{limit},{}", text(&chipset.main(pci::RNG))));
    }
    if let Some(state) = s.tpmstate().map_err(unusable)? {
        argv.option("-chardev", format!("socket,id=tpmchar,path={}", path(&cx.dir.tpm())?));
        argv.option("-tpmdev", "emulator,id=tpmdev,chardev=tpmchar");
        argv.device(match state.tpm().map_err(unusable)? {
            // Of the newer interface the older TPM knows nothing.
            TpmVersion::V12 => "tpm-tis,id=tpm0,tpmdev=tpmdev",
            TpmVersion::V20 => "tpm-crb,id=tpm0,tpmdev=tpmdev",
        });
    }
    if let Some(watchdog) = s.watchdog().map_err(unusable)? {
        argv.device(match watchdog.model {
            WatchdogModel::I6300esb => {
                format!("i6300esb,id=watchdog0,{}", text(&chipset.main(pci::WATCHDOG)))
            }
            WatchdogModel::Ib700 => "ib700,id=watchdog0".to_owned(),
        });
        argv.option("-action", format!("watchdog={}", watchdog.action));
    }
    if !s.reboot() {
        argv.option("-action", REBOOT_ENDS);
    }
    if let Some(card) = s.audio0().map_err(unusable)? {
        sound(argv, card, chipset);
    }
    Ok(())
}

/// A sound card that nobody hears: the viewer's protocol carries no sound.
fn sound(argv: &mut Argv, card: Audio, chipset: Chipset) {
    argv.option("-audiodev", "none,id=audio0");
    let place = text(&chipset.main(pci::AUDIO));
    if card == Audio::Ac97 {
        return argv.device(format!("AC97,id=audiodev0,audiodev=audio0,{place}"));
    }
    argv.device(format!("{card},id=audiodev0,{place}"));
    for (number, codec) in ["hda-micro", "hda-duplex"].iter().enumerate() {
        argv.device(format!(
            "{codec},id=audiodev0-codec{number},bus=audiodev0.0,cad={number},audiodev=audio0"
        ));
    }
}

fn serials(argv: &mut Argv, cx: &Context<'_>) -> Result<(), GuestError> {
    let agent = cx.settings.agent().map_err(unusable)?;
    for (key, port) in cx.settings.serials().map_err(unusable)? {
        let index = key.trim_start_matches("serial");
        if index == "3" && agent.enabled && agent.isa {
            return refuse(&key, "the guest agent's ISA port takes the place of serial3");
        }
        let backend = match port {
            Serial::Socket => {
                format!("socket,id={key},path={},server=on,wait=off", path(&cx.dir.serial(&key))?)
            }
            Serial::Device(device) => format!("serial,id={key},path={}", quoted(&device)),
        };
        argv.option("-chardev", backend);
        argv.device(format!("isa-serial,id={key}-dev,chardev={key},index={index}"));
    }
    Ok(())
}

fn parallels(argv: &mut Argv, cx: &Context<'_>) -> Result<(), GuestError> {
    for (key, device) in cx.settings.parallels().map_err(unusable)? {
        let index = key.trim_start_matches("parallel");
        // A printer on USB is no parallel port to the host's kernel.
        let kind = if device.starts_with("/dev/usb/") { "serial" } else { "parallel" };
        argv.option("-chardev", format!("{kind},id={key},path={}", quoted(device)));
        argv.device(format!("isa-parallel,id={key}-dev,chardev={key},index={index}"));
    }
    Ok(())
}

/// A place on the command line.
fn text(place: &part::Place) -> String {
    let words: Vec<String> =
        place.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    words.join(",")
}

/// The place of a device in the boot order, if it has one.
fn boot_index(settings: &Settings, key: &str) -> Result<Option<usize>, GuestError> {
    let order = match settings.boot().map_err(unusable)? {
        // A device that is not there keeps its place for when it comes.
        Boot::Order(order) => order,
        Boot::Legacy(_) => settings.boot_order().map_err(unusable)?,
    };
    Ok(order.iter().position(|d| d == key).map(|at| at + 100))
}

#[cfg(test)]
mod tests;
