//! Which pending changes of a running VM can be carried out while it runs, and what is to be done for one.
//!
//! ```text
//!   current   pending     device in the machine
//!   -         new         to be plugged in, or it is there and that is yet to be written
//!   old       deletion    to be unplugged, or it is gone and that is yet to be written
//!   old       new         of a network or USB device: unplugged, then as in the first row; of a disk: waits for the next start
//!   vcpus     vcpus       CPUs come, or go as far as the guest lets them
//!   memory    memory      its modules, the same
//! ```
//!
//! A disk that its guest uses is never exchanged by itself: what a guest has not written yet would be lost.

use std::collections::BTreeSet;
use stead_model::vmconfig::devices::{as_disk, as_net};
use stead_model::vmconfig::host::as_usb;
use stead_model::vmconfig::{Bus, Disk, Net, NetModel, ScsiHw, Settings, Usb, UsbSource, VmConfig};

/// What is to be done for a pending change. Each may be done again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The device is plugged in, then the change is no longer pending.
    Plug {
        /// The configuration that the machine will have: all that is current, and the device.
        with: Settings,
        /// What the device is, as the option says.
        value: String,
    },
    /// The device is unplugged, then the configuration is without it.
    Unplug,
    /// CPUs come or go one by one, as far as the guest goes along; the configuration says how many are there.
    Cpus {
        /// The configuration that the machine will have.
        with: Settings,
    },
    /// Modules of memory come or go one by one, in the same way.
    Memory {
        /// The configuration that the machine will have.
        with: Settings,
    },
}

/// What can be done for one option now. None where nothing is pending, or where it waits for the next start.
pub fn next(config: &VmConfig, key: &str) -> Option<Step> {
    let current = &config.current;
    let waits = |value: &str| !can_come_and_go(current, key, value);
    let going = config.pending.delete.contains_key(key);
    let with = |new: &str| {
        let mut with = current.clone();
        with.set(key, new).ok().map(|()| with)
    };
    if key == "vcpus" {
        // Where the VM was started with all its CPUs, each is part of the machine.
        let new = config.pending.set.get(key).filter(|_| current.get(key).is_some())?;
        return with(new).filter(|_| current.hotplug().contains(&"cpu")).map(|with| Step::Cpus { with });
    }
    if key == "memory" {
        // A machine that was not started with places for modules never gets them.
        let new = config.pending.set.get(key).filter(|_| has_modules(current))?;
        return with(new).filter(has_modules).map(|with| Step::Memory { with });
    }
    match (current.get(key), config.pending.set.get(key)) {
        (None, Some(new)) if !waits(new) => with(new).map(|with| Step::Plug { with, value: new.to_owned() }),
        (Some(old), None) if going && !waits(old) => Some(Step::Unplug),
        (Some(old), Some(new)) if is_exchanged(key) && !waits(old) && !waits(new) => Some(Step::Unplug),
        _ => None,
    }
}

/// What has come true of a running VM's devices while nobody was there to write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// What was to come is there.
    Came,
    /// What was to go is gone.
    Went,
    /// What was to stay is gone.
    Lost,
    /// It has another number of CPUs.
    Cpus(u32),
    /// It has another number of modules of memory.
    Memory(usize),
}

/// What a running machine has of all that can come and go.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// The options whose devices are there.
    pub there: &'a BTreeSet<String>,
    /// Those that its guest was asked for and may let go of at any time.
    pub asked: &'a BTreeSet<String>,
    /// Its CPUs.
    pub cpus: u32,
    /// Its modules of memory.
    pub modules: usize,
}

/// Whether memory is made of modules.
fn has_modules(settings: &Settings) -> bool {
    settings.modules().is_ok_and(|modules| modules.is_some())
}

/// What is yet to be written of a VM with this machine. A device that its guest was asked for, and still has, has neither come nor
/// gone.
pub fn truths(config: &VmConfig, machine: Machine<'_>) -> Vec<(String, Truth)> {
    let Machine { there, asked, cpus, modules } = machine;
    let (current, pending) = (&config.current, &config.pending);
    let all = current.iter().chain(pending.set.iter()).map(|(key, _)| key);
    let mut keys: Vec<&str> = all.collect();
    keys.sort_unstable();
    keys.dedup();
    let mut found = vec![];
    for key in keys {
        let truth = match (current.get(key), pending.set.get(key)) {
            (Some(_), _) if key == "vcpus" => {
                current.vcpus().is_ok_and(|n| n != Some(cpus)).then_some(Truth::Cpus(cpus))
            }
            (Some(_), _) if key == "memory" => match current.modules() {
                Ok(Some(known)) if known.number != modules => Some(Truth::Memory(modules)),
                _ => None,
            },
            (Some(old), new) if is_pluggable(current, key, old) && !there.contains(key) => {
                let wanted = pending.delete.contains_key(key) || new.is_some_and(|_| is_exchanged(key));
                Some(if wanted { Truth::Went } else { Truth::Lost })
            }
            (None, Some(new)) if is_pluggable(current, key, new) => {
                (there.contains(key) && !asked.contains(key)).then_some(Truth::Came)
            }
            _ => None,
        };
        found.extend(truth.map(|truth| (key.to_owned(), truth)));
    }
    found
}

/// Whether another device may take its place at once.
fn is_exchanged(key: &str) -> bool {
    as_net(key).is_some() || as_usb(key).is_some()
}

/// Whether a device of this kind can come and go while the VM runs, and its administrator lets it.
fn can_come_and_go(current: &Settings, key: &str, value: &str) -> bool {
    let feature = match key {
        _ if as_net(key).is_some() => "network",
        _ if as_usb(key).is_some() => "usb",
        _ => "disk",
    };
    current.hotplug().contains(&feature) && is_pluggable(current, key, value)
}

/// Whether the machine can take, and give back, a device of this kind while it runs.
fn is_pluggable(current: &Settings, key: &str, value: &str) -> bool {
    if as_net(key).is_some() {
        return Net::parse(key, value).is_ok_and(|net| net.model != NetModel::Ne2kIsa);
    }
    if as_usb(key).is_some() {
        return Usb::parse(key, value).is_ok_and(|usb| usb.source != UsbSource::Spice);
    }
    let Some((bus, _)) = as_disk(key) else { return false };
    let controller = match bus {
        Bus::Virtio => true,
        Bus::Scsi => {
            let hardware = current.scsihw();
            hardware.is_ok_and(|hw| matches!(hw, ScsiHw::VirtioScsiPci | ScsiHw::VirtioScsiSingle))
        }
        Bus::Ide | Bus::Sata | Bus::Efidisk | Bus::Tpmstate | Bus::Unused => false,
    };
    controller && Disk::parse(key, value).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Vmid;

    fn config(text: &str) -> VmConfig {
        VmConfig::parse(text).unwrap()
    }

    /// The options for which there is a next step.
    fn due(config: &VmConfig) -> Vec<&str> {
        let pending = config.pending.set.iter().map(|(key, _)| key);
        let all = pending.chain(config.pending.delete.keys().map(String::as_str));
        all.filter(|key| next(config, key).is_some()).collect()
    }

    #[test]
    fn what_comes_what_goes_and_what_waits() {
        let base = "net0: virtio=BC:24:11:00:00:01\nscsi0: local:100/a.raw\nscsihw: virtio-scsi-pci\nvirtio1: local:100/b.raw\n";
        let owned = |config: &VmConfig| due(config).into_iter().map(str::to_owned).collect::<Vec<_>>();
        let of = |pending: &str| owned(&config(&format!("{base}\n[PENDING]\n{pending}\n")));
        assert_eq!(of("net1: e1000"), ["net1"]);
        assert_eq!(of("net0: e1000"), ["net0"], "another card");
        assert_eq!(of("net1: ne2k_isa"), [""; 0], "the ISA bus takes none");
        assert_eq!(of("scsi1: local:100/c.raw"), ["scsi1"]);
        assert_eq!(of("scsi0: local:100/c.raw"), [""; 0], "a disk is not exchanged");
        assert_eq!(of("delete: scsi0,virtio1,net0"), ["net0", "scsi0", "virtio1"]);
        assert_eq!(of("sata0: local:100/c.raw\nide0: local:100/d.raw"), [""; 0]);
        assert_eq!(of("usb0: mapping=key\nusb1: spice"), ["usb0"]);
        assert_eq!(of("memory: 512\ndelete: cores"), [""; 0]);
        let other =
            |first: &str, pending: &str| owned(&config(&format!("{first}\n\n[PENDING]\n{pending}\n")));
        assert_eq!(other("hotplug: disk", "net1: virtio\nvirtio1: local:100/b.raw"), ["virtio1"]);
        assert_eq!(other("hotplug: 0", "net1: virtio\nvirtio1: local:100/b.raw"), [""; 0]);
        assert_eq!(other("hotplug: 1", "net1: virtio"), ["net1"]);
        assert_eq!(other("hotplug: disk", "usb0: 046d:c52b"), [""; 0]);
        assert_eq!(other("usb0: 046d:c52b", "usb0: 1-2"), ["usb0"], "another device");
        assert_eq!(other("name: a", "scsi0: local:100/b.raw"), [""; 0], "the default controller takes none");
        let cpus = "cores: 4\nhotplug: cpu\nvcpus: 1";
        assert_eq!(other(cpus, "vcpus: 3"), ["vcpus"]);
        assert_eq!(other(cpus, "delete: vcpus"), [""; 0], "all of them are another machine");
        assert_eq!(other("cores: 4\nhotplug: cpu", "vcpus: 3"), [""; 0], "none of them was plugged in");
        assert_eq!(other("cores: 4\nvcpus: 1", "vcpus: 3"), [""; 0], "not by default");
        let changing = "scsihw: virtio-scsi-single\nscsi1: local:100/c.raw";
        let Some(Step::Plug { with, .. }) =
            next(&config(&format!("{base}\n[PENDING]\n{changing}\n")), "scsi1")
        else {
            panic!("it is not plugged in");
        };
        assert_eq!(with.get("scsihw"), Some("virtio-scsi-pci"), "into the machine that there is");
    }

    /// A card is exchanged in two steps, each of which is written.
    #[test]
    fn an_exchange_comes_to_an_end() {
        let vmid = Vmid::new(100).unwrap();
        let mut config =
            config("net0: virtio=BC:24:11:00:00:01\n\n[PENDING]\nnet0: e1000=BC:24:11:00:00:01\n");
        assert_eq!(next(&config, "net0"), Some(Step::Unplug));
        config.unplugged(vmid, "net0", false).unwrap();
        assert!(matches!(next(&config, "net0"), Some(Step::Plug { .. })));
        config.plugged(vmid, "net0").unwrap();
        assert_eq!(next(&config, "net0"), None);
        assert_eq!(config.current.get("net0"), Some("e1000=BC:24:11:00:00:01"));
        assert!(config.pending.is_empty());
    }

    #[test]
    fn what_has_come_true_is_found() {
        let set = |keys: &[&str]| keys.iter().map(|k| (*k).to_owned()).collect::<BTreeSet<String>>();
        let text = "cores: 4\nide2: none,media=cdrom\nnet0: virtio\nnet1: virtio\nnet2: virtio\nvcpus: 4\nvirtio0: local:100/a.raw\n\n\
                    [PENDING]\nnet1: e1000\nnet3: virtio\nnet4: virtio\nvirtio0: local:100/b.raw\nvirtio1: local:100/c.raw\ndelete: net0\n";
        let truths = |text: &str, there: &[&str], asked: &[&str], cpus, modules| {
            let (there, asked) = (set(there), set(asked));
            super::truths(&config(text), Machine { there: &there, asked: &asked, cpus, modules })
        };
        let found = truths(text, &["net3", "net4", "virtio0"], &["net4"], 3, 0);
        let expected = [
            ("net0", Truth::Went),
            ("net1", Truth::Went),
            ("net2", Truth::Lost),
            ("net3", Truth::Came),
            ("vcpus", Truth::Cpus(3)),
        ];
        assert_eq!(found, expected.map(|(key, truth)| (key.to_owned(), truth)));
        let there = ["net0", "net1", "net2", "virtio0"];
        assert_eq!(truths(text, &there, &["net0"], 4, 0), [], "all of it is still to be done");
        let text = "hotplug: memory\nmemory: 2048\nnuma: 1\n\n[PENDING]\nmemory: 3072\n";
        assert_eq!(truths(text, &[], &[], 1, 2), []);
        assert_eq!(truths(text, &[], &[], 1, 3), [("memory".to_owned(), Truth::Memory(3))]);
    }

    #[test]
    fn memory_is_as_large_as_its_modules() {
        let machine = "hotplug: memory\nmemory: 2048\nnuma: 1\n\n[PENDING]\n";
        let of = |text: &str| due(&config(text)).into_iter().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(of(&format!("{machine}memory: 1024\n")), ["memory"]);
        assert_eq!(of(&format!("{machine}memory: 1000\n")), [""; 0], "no modules have that size");
        assert_eq!(
            of(&machine.replace("hotplug: memory\n", "memory: 1024\n")),
            [""; 0],
            "it has no places for modules"
        );
        assert_eq!(of(&format!("{machine}delete: memory\n")), [""; 0]);
        let mut config = config(&format!("{machine}memory: current=3072\n"));
        config.has_modules(3).unwrap();
        assert_eq!((config.current.get("memory"), due(&config)), (Some("2560"), vec!["memory"]));
        config.has_modules(4).unwrap();
        assert!(config.pending.is_empty() && config.current.get("memory") == Some("3072"));
    }

    #[test]
    fn cpus_are_counted_as_they_are_there() {
        let mut config = config("cores: 4\nhotplug: cpu\nvcpus: 4\n\n[PENDING]\nvcpus: 2\n");
        config.has_cpus(3).unwrap();
        assert_eq!((config.current.get("vcpus"), config.pending.set.get("vcpus")), (Some("3"), Some("2")));
        assert_eq!(due(&config), ["vcpus"]);
        config.has_cpus(2).unwrap();
        assert!(config.pending.is_empty() && config.current.get("vcpus") == Some("2"));
    }
}
