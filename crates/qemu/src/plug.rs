//! Devices that come and go while a guest runs.
//!
//! What is plugged in are the parts that a configuration has with an option and has not without it; what is unplugged, the same. Of
//! these the guest is asked for one alone, behind which all the others are: a card, or a disk's own controller, with which the disk
//! goes. It may take its time, or never let go: then all of it stays. Only a SCSI disk on a controller that others share has no say in it.
//!
//! ```text
//!  plug:    [leftovers of a broken try go]  controller, backend, device   an error takes all of it out again, or asks for it
//!  unplug:  asked for, and noted so ─▶ the guest lets go ─▶ backends      done again where it was cut short
//! ```

use crate::accel::Accel;
use crate::command::{self, Chipset, Hardware, Module, NetPlan, Part, refuse, unusable};
use crate::guest::Guest;
use crate::rundir::Meta;
use crate::{copies, net, tune};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use stead_driver::guest::{GuestError, Inventory, ResolvedVolume};
use stead_model::vmconfig::devices::{as_disk, as_net};
use stead_model::vmconfig::host::as_usb;
use stead_model::vmconfig::{Boot, Net, Settings, VmConfig};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

type Answer<T> = Result<T, GuestError>;

/// How long a guest may take to let go of what could not be plugged in.
const TAKE_BACK: Duration = Duration::from_secs(2);
/// The option for all CPUs.
const CPUS: &str = "vcpus";
/// The option for all modules of memory.
const MEMORY: &str = "memory";
const PLUG: &str = "plug a device into";
const UNPLUG: &str = "unplug a device from";

/// A configuration with an option that names a device.
#[derive(Debug)]
pub struct Plug {
    key: String,
    settings: Settings,
    net: Option<Net>,
}

impl Plug {
    /// Reads the configuration, which must have the option.
    pub fn new(key: &str, config: &str) -> Answer<Self> {
        let config = VmConfig::parse(config).or_else(|e| refuse("config", e.to_string()))?;
        let mut settings = config.current;
        if matches!(settings.boot().map_err(unusable)?, Boot::Legacy(_)) {
            // Which is the first disk changes with what there is; it counts from the next start on.
            settings.remove("boot");
            settings.set("boot", "order=").map_err(unusable)?;
        }
        if settings.get(key).is_none() {
            return refuse(key, "the configuration has no such device");
        }
        let net = settings.nets().map_err(unusable)?.into_iter().find(|n| n.key == key);
        Ok(Self { key: key.to_owned(), settings, net })
    }

    /// Its network device, if it is one.
    pub fn net(&self) -> Option<&Net> {
        self.net.as_ref()
    }

    /// Whether the guest has no other network device.
    pub fn is_only_net(&self) -> Answer<bool> {
        Ok(self.settings.nets().map_err(unusable)?.len() == 1)
    }

    /// What comes, or goes, with the option.
    fn parts(&self, guest: &Guest, volumes: &[ResolvedVolume], plan: Option<&NetPlan>) -> Answer<Vec<Part>> {
        let chipset = Chipset::of(&guest.meta().machine);
        let mut without = self.settings.clone();
        without.remove(&self.key);
        let others = parts(&without, chipset, volumes, |_| None)?;
        let all = parts(&self.settings, chipset, volumes, |net| plan.filter(|_| net.key == self.key))?;
        Ok(all.into_iter().filter(|part| !others.iter().any(|other| other.is(part))).collect())
    }

    /// Plugs it in. After an error nothing of it is left, but for what the guest has to let go of.
    pub async fn plug(
        &self,
        guest: &Guest,
        volumes: &[ResolvedVolume],
        plan: Option<&NetPlan>,
    ) -> Answer<()> {
        let parts = self.parts(guest, volumes, plan)?;
        let there = devices(guest, PLUG).await?;
        if parts.iter().any(|part| part.is_device() && there.contains(part.id())) {
            let why = format!("its system has not let go yet of what '{}' was before", self.key);
            return Err(GuestError::Refused { what: PLUG, vmid: guest.vmid, why });
        }
        let mut made: Vec<&Part> = vec![];
        let result = self.make(guest, &parts, plan, &mut made).await;
        if result.is_err() {
            Self::take_out(guest, &made).await;
        } else if let Some(NetPlan::Tap { ifname, .. }) = plan {
            note(guest, |meta| meta.taps.push(ifname.clone()));
        }
        result
    }

    async fn make<'a>(
        &self,
        guest: &Guest,
        parts: &'a [Part],
        plan: Option<&NetPlan>,
        made: &mut Vec<&'a Part>,
    ) -> Answer<()> {
        for part in parts {
            if !part.is_device() {
                // Of a try that was cut short. Nothing else has its name.
                let _ = remove(guest, part).await;
            }
            // Where no answer comes it may be there all the same.
            made.push(part);
            let (command, arguments) = part.add();
            guest.ask(PLUG, command, arguments).await?;
            if let Some(plan) = plan.filter(|_| !part.is_device()) {
                let failed = |why| GuestError::Refused { what: PLUG, vmid: guest.vmid, why };
                net::attach(plan).await.map_err(failed)?;
            }
        }
        for key in tune::after_start(&self.settings)?.iter().filter(|key| **key == self.key) {
            let (command, arguments) = tune::command(&self.settings, key)?;
            guest.ask(PLUG, command, arguments).await?;
        }
        Ok(())
    }

    /// Takes out what a broken try has made, or asks the guest for it.
    async fn take_out(guest: &Guest, made: &[&Part]) {
        let until = Instant::now() + TAKE_BACK;
        if let Some(first) = asked_for(made.iter().copied())
            && let Err(e) = let_go(guest, first, until, TAKE_BACK).await
        {
            tracing::warn!(vmid = %guest.vmid, part = first.id(), "not taken out again yet: {e}");
            return;
        }
        for part in made.iter().rev().filter(|part| !part.is_device()) {
            if let Err(e) = remove(guest, part).await {
                tracing::warn!(vmid = %guest.vmid, part = part.id(), "not taken out again: {e}");
            }
        }
    }

    /// Asks the guest to let go of it, and takes out what stood behind it.
    pub async fn unplug(&self, guest: &Guest, patience: Duration) -> Answer<()> {
        let parts = self.parts(guest, &[], None)?;
        let until = Instant::now() + patience;
        if let Some(device) = asked_for(parts.iter()) {
            let_go(guest, device, until, patience).await?;
        }
        for part in parts.iter().rev().filter(|part| !part.is_device()) {
            remove(guest, part).await?;
        }
        if as_disk(&self.key).is_some() {
            // It may have gone over to another place.
            copies::let_go(guest, &self.key).await?;
        }
        if let Some(net) = &self.net {
            let tap = net::tap_name(guest.vmid, net);
            note(guest, |meta| meta.taps.retain(|name| *name != tap));
        }
        Ok(())
    }
}

/// The device that a guest is asked for, with which the others go: the first, since whatever stands on another comes after it.
fn asked_for<'a>(mut parts: impl Iterator<Item = &'a Part>) -> Option<&'a Part> {
    parts.find(|part| part.is_device())
}

/// What the machine has.
pub async fn inventory(guest: &Guest) -> Answer<Inventory> {
    let there = devices(guest, "look into").await?;
    let asked = guest.meta().asked;
    let asked = asked.iter().filter(|id| there.contains(*id)).map(|id| option_of(id)).collect();
    let cpus = there.iter().filter(|id| option_of(id) == CPUS).count() + 1;
    Ok(Inventory {
        devices: there.iter().map(|id| option_of(id)).filter(|key| is_option(key)).collect(),
        asked,
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        modules: there.iter().filter(|id| option_of(id) == MEMORY).count(),
    })
}

fn is_option(key: &str) -> bool {
    as_disk(key).is_some() || as_net(key).is_some() || as_usb(key).is_some()
}

/// The option by which a device is there: of a controller that a disk has for itself, the disk's.
fn option_of(id: &str) -> String {
    if let Some(number) = id.strip_prefix("virtioscsi") {
        return format!("scsi{number}");
    }
    let numbered = |kind: &str| {
        let number = id.strip_prefix(kind).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    match id {
        _ if numbered("cpu") => CPUS.to_owned(),
        _ if numbered("dimm") => MEMORY.to_owned(),
        _ => id.strip_suffix("-dev").unwrap_or(id).to_owned(),
    }
}

/// Gives the guest as many CPUs as its configuration says, or asks for the last of them back. How many are there then.
pub async fn set_cpus(guest: &Guest, config: &str, patience: Duration) -> Answer<u32> {
    let settings = VmConfig::parse(config).or_else(|e| refuse("config", e.to_string()))?.current;
    let Some(wanted) = settings.vcpus().map_err(unusable)? else {
        return refuse("vcpus", "it does not say how many CPUs there are to be");
    };
    let Some(model) = command::cpu_of(&guest.meta().argv).map(str::to_owned) else {
        return refuse("vcpus", "nobody has written down which CPU it runs with");
    };
    let all = command::cpus(&settings, &model)?;
    let (mine, others) = all.split_at(all.len().min(wanted.saturating_sub(1) as usize));
    let until = Instant::now() + patience;
    let there = devices(guest, PLUG).await?;
    let changed = async {
        for cpu in mine.iter().filter(|cpu| !there.contains(cpu.id())) {
            let (command, arguments) = cpu.add();
            guest.ask(PLUG, command, arguments).await?;
        }
        if others.iter().any(|cpu| there.contains(cpu.id())) {
            can_lose_cpus(guest)?;
        }
        // One after the other: they come back in the order of their numbers.
        for cpu in others.iter().rev().filter(|cpu| there.contains(cpu.id())) {
            let_go(guest, cpu, until, patience).await?;
        }
        Ok(())
    };
    let changed = changed.await;
    let count = |there: &BTreeSet<String>| 1 + all.iter().filter(|cpu| there.contains(cpu.id())).count();
    let (before, after) = (count(&there), count(&devices(guest, PLUG).await?));
    let number = u32::try_from(after).unwrap_or(u32::MAX);
    note(guest, |meta| meta.cpus = number);
    come_of(guest, changed, before != after)?;
    Ok(number)
}

/// Refuses where QEMU translates: there it goes on to wait for a CPU that has left, at every look at which memory has changed
/// (10.0: the CPU's address space keeps its listener), and the guest's next move never ends.
fn can_lose_cpus(guest: &Guest) -> Answer<()> {
    if guest.meta().accel == Accel::Kvm {
        return Ok(());
    }
    let why = "it runs without KVM, where QEMU can't do without a CPU once it is there".to_owned();
    Err(GuestError::Refused { what: UNPLUG, vmid: guest.vmid, why })
}

/// The failure of what came and went one by one, where nothing has. What has come of it else its number tells.
fn come_of(guest: &Guest, result: Answer<()>, has_changed: bool) -> Answer<()> {
    match result {
        Err(e) if has_changed => tracing::warn!(vmid = %guest.vmid, "not all have come or gone: {e}"),
        Err(e @ GuestError::TimedOut { .. }) => tracing::debug!(vmid = %guest.vmid, "{e}"),
        done => return done,
    }
    Ok(())
}

/// Gives the guest as many modules of memory as its configuration has, or asks for the last of them back. How many are there then.
pub async fn set_modules(guest: &Guest, config: &str, patience: Duration) -> Answer<usize> {
    let settings = VmConfig::parse(config).or_else(|e| refuse("config", e.to_string()))?.current;
    let (all, wanted) = command::modules(&settings)?;
    let (mine, others) = all.split_at(wanted);
    let until = Instant::now() + patience;
    let there = devices(guest, PLUG).await?;
    let changed = async {
        for module in mine.iter().filter(|module| !there.contains(module.device.id())) {
            add_module(guest, module).await?;
        }
        // Each has the place that follows from those before it: what stays are always the first.
        for module in others.iter().rev().filter(|module| there.contains(module.device.id())) {
            let_go(guest, &module.device, until, patience).await?;
        }
        Ok(())
    };
    let changed = changed.await;
    let now = devices(guest, PLUG).await?;
    free_memory(guest, &all, &now).await?;
    let count =
        |there: &BTreeSet<String>| all.iter().filter(|module| there.contains(module.device.id())).count();
    come_of(guest, changed, count(&there) != count(&now))?;
    Ok(count(&now))
}

async fn add_module(guest: &Guest, module: &Module) -> Answer<()> {
    // Of a try that was cut short.
    remove(guest, &module.backend).await?;
    for part in [&module.backend, &module.device] {
        let (command, arguments) = part.add();
        if let Err(e) = guest.ask(PLUG, command, arguments).await {
            // Where the device is there all the same, this is refused.
            let _ = remove(guest, &module.backend).await;
            return Err(e);
        }
    }
    Ok(())
}

/// Gives the host the memory of modules that are gone, however late their guest let go of them.
async fn free_memory(guest: &Guest, all: &[Module], there: &BTreeSet<String>) -> Answer<()> {
    let objects = named(guest, UNPLUG, "/objects").await?;
    for module in all.iter().filter(|m| objects.contains(m.backend.id()) && !there.contains(m.device.id())) {
        remove(guest, &module.backend).await?;
    }
    Ok(())
}

/// Records whether the guest was asked for a device and has yet to answer: another daemon must know it too.
fn note_asked(guest: &Guest, part: &Part, is_asked: bool) {
    note(guest, |meta| {
        if is_asked {
            meta.asked.insert(part.id().to_owned());
        } else {
            meta.asked.remove(part.id());
        }
    });
}

/// Changes the record. Where that can't be written the machine has changed all the same.
fn note(guest: &Guest, change: impl FnOnce(&mut Meta)) {
    if let Err(e) = guest.note(change) {
        tracing::warn!(vmid = %guest.vmid, error = %e, "could not record what the guest has become");
    }
}

/// The parts of a configuration. What a volume or a network reaches on the host counts for `plan`'s device and for given volumes
/// alone: the others only have names here.
fn parts<'a>(
    settings: &Settings,
    chipset: Chipset,
    volumes: &[ResolvedVolume],
    plan: impl Fn(&Net) -> Option<&'a NetPlan>,
) -> Answer<Vec<Part>> {
    let mut all = volumes.to_vec();
    all.extend(settings.volumes().into_iter().map(|(_, volume)| ResolvedVolume {
        volume: volume.to_string(),
        path: PathBuf::new(),
        format: "raw".to_owned(),
    }));
    let nets = settings.nets().map_err(unusable)?;
    let plans: Vec<NetPlan> =
        nets.iter().map(|net| plan(net).cloned().unwrap_or(NetPlan::User { forward: None })).collect();
    Hardware { settings, volumes: &all, nets: &plans, chipset, locks: true }.parts()
}

/// The ids of all devices that have one.
async fn devices(guest: &Guest, what: &'static str) -> Answer<BTreeSet<String>> {
    named(guest, what, "/machine/peripheral").await
}

/// The ids of all that is in a folder of the machine.
async fn named(guest: &Guest, what: &'static str, folder: &str) -> Answer<BTreeSet<String>> {
    let all = guest.ask(what, "qom-list", json!({ "path": folder })).await?;
    let named = all.as_array().map(Vec::as_slice).unwrap_or_default();
    // Beside the devices there is the property `type`, of the folder itself.
    let is_device = |type_: &str| type_.starts_with("child<");
    Ok(named
        .iter()
        .filter(|p| p["type"].as_str().is_some_and(is_device))
        .filter_map(|p| p["name"].as_str().map(str::to_owned))
        .collect())
}

/// Takes a part out, or asks for it; one that is not there is out.
async fn remove(guest: &Guest, part: &Part) -> Answer<()> {
    let (command, arguments) = part.remove();
    match guest.ask(UNPLUG, command, arguments).await {
        Err(GuestError::Refused { why, .. }) if is_missing(&why) => Ok(()),
        done => done.map(drop),
    }
}

/// By QEMU's words of devices, nodes, and the rest.
fn is_missing(why: &str) -> bool {
    why.contains("not found") || why.contains("Failed to find node")
}

/// Waits until the guest has let go of a device.
async fn let_go(guest: &Guest, part: &Part, until: Instant, patience: Duration) -> Answer<()> {
    let mut events = guest.monitor(UNPLUG).await?.events();
    if !devices(guest, UNPLUG).await?.contains(part.id()) {
        note_asked(guest, part, false);
        return Ok(());
    }
    match remove(guest, part).await {
        // Asked already, and still to be answered.
        Err(GuestError::Refused { why, .. }) if why.contains("already in the process of unplug") => {}
        asked => asked?,
    }
    note_asked(guest, part, true);
    let answered = async {
        loop {
            let event = match events.recv().await {
                Ok(event) => event,
                Err(RecvError::Lagged(_)) => return Ok(()),
                Err(RecvError::Closed) => return Err(GuestError::NotRunning(guest.vmid)),
            };
            if event.data["device"] != part.id() {
                continue;
            }
            match event.name.as_str() {
                "DEVICE_DELETED" => return Ok(()),
                "DEVICE_UNPLUG_GUEST_ERROR" => {
                    note_asked(guest, part, false);
                    let why = format!("its system refuses to let go of '{}'", part.id());
                    return Err(GuestError::Refused { what: UNPLUG, vmid: guest.vmid, why });
                }
                _ => {}
            }
        }
    };
    let late =
        || GuestError::TimedOut { what: "the unplugging", vmid: guest.vmid, seconds: patience.as_secs() };
    match tokio::time::timeout_at(until, answered).await {
        Ok(answer) => answer?,
        Err(_) => return Err(late()),
    }
    // An event may have been missed.
    if devices(guest, UNPLUG).await?.contains(part.id()) {
        return Err(late());
    }
    note_asked(guest, part, false);
    Ok(())
}

/// Puts a medium in a CD drive, or with none takes out what is in it.
pub async fn change_medium(
    guest: &Guest,
    device: &str,
    medium: Option<ResolvedVolume>,
) -> Result<(), GuestError> {
    const WHAT: &str = "change a medium of";
    let node = crate::command::node_name(device);
    let id = json!({ "id": device });
    guest.ask(WHAT, "blockdev-open-tray", json!({ "id": device, "force": true })).await?;
    guest.ask(WHAT, "blockdev-remove-medium", id.clone()).await?;
    // Refused when the drive was empty.
    let _ = guest.ask(WHAT, "blockdev-del", json!({ "node-name": node })).await;
    let insert = async {
        let Some(medium) = medium else { return Ok(()) };
        guest.ask(WHAT, "blockdev-add", crate::command::medium(device, &medium.path, &medium.format)).await?;
        let args = json!({ "id": device, "node-name": node });
        guest.ask(WHAT, "blockdev-insert-medium", args).await.map(drop)
    };
    let inserted = insert.await;
    guest.ask(WHAT, "blockdev-close-tray", id).await?;
    inserted
}
