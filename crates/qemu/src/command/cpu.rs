//! CPU models.
//!
//! A model must mean the same on every node, whatever its processor and QEMU's version: the levels
//! `x86-64-v2` and so on are spelled out, and `enforce` makes a node without a feature refuse the guest rather than hide
//! the feature from it.

use super::part::Part;
use super::{refuse, unusable};
use crate::accel::Accel;
use crate::probe::Machines;
use stead_driver::guest::GuestError;
use stead_model::cpu::{CLUSTER_MODEL, CUSTOM, DEFAULT_MODEL, LEVELS, LEVELS_ON, level_features};
use stead_model::vmconfig::{Cpu, OsType, PhysBits, Settings};

/// What is whatever there is.
const ALL_THERE_IS: [&str; 2] = ["max", "host"];

/// Refuses a model, or a feature, that QEMU does not know.
pub fn check(cpu: &Cpu, machines: &Machines) -> Result<(), GuestError> {
    let unknown =
        cpu.flags.iter().find(|(_, flag)| !machines.flags.is_empty() && !machines.flags.contains(flag));
    if let Some((_, flag)) = unknown {
        return refuse(
            "cpu",
            format!("flags: QEMU {} of this node knows no feature '{flag}'", machines.version),
        );
    }
    let Some(name) = cpu.model.as_deref() else { return Ok(()) };
    let beyond = || LEVELS.iter().map(|level| level.name).chain(ALL_THERE_IS);
    if beyond().any(|known| known == name) || machines.cpus.contains_key(name) {
        return Ok(());
    }
    let alike = |k: &&String| k.to_ascii_lowercase().contains(&name.to_ascii_lowercase());
    let alike: Vec<&str> = machines.cpus.keys().filter(alike).take(5).map(String::as_str).collect();
    let hint = if alike.is_empty() {
        let levels: Vec<&str> = beyond().collect();
        format!("there are {}, kvm64, qemu64 and others", levels.join(", "))
    } else {
        format!("did you mean {}?", alike.join(", "))
    };
    refuse("cpu", format!("QEMU of this node has no CPU model '{name}'; {hint}"))
}

/// What a node lacks of the CPU that a guest runs with, which is the value of its `-cpu`.
pub fn lacks(runs_with: &str, machines: &Machines) -> Option<String> {
    let mut words = runs_with.split(',');
    let model = words.next().unwrap_or_default();
    let Some(of_model) = machines.cpus.get(model) else {
        let version = &machines.version;
        return Some(format!(
            "cpu: QEMU {version} of this node has no CPU model '{model}', which the VM runs with"
        ));
    };
    let (mut on, mut off) = (vec![], vec![]);
    for word in words {
        match word.split_once('=') {
            Some((flag, "on")) if machines.flags.contains(flag) => on.push(flag),
            Some((flag, "off")) => off.push(flag),
            _ => {}
        }
    }
    let mut missing: Vec<&str> = on.into_iter().filter(|flag| !machines.features.contains(*flag)).collect();
    missing.extend(of_model.iter().map(String::as_str).filter(|flag| !off.contains(flag)));
    missing.sort_unstable();
    missing.dedup();
    (!missing.is_empty())
        .then(|| format!("cpu: the CPU of this node lacks {}, which the VM runs with", missing.join(", ")))
}

/// The CPUs up to a number as devices, but for the first, which the machine has by itself. `model`: the value of `-cpu`.
pub fn parts(settings: &Settings, model: &str, number: u32) -> Result<Vec<Part>, GuestError> {
    let driver = format!("{}-x86_64-cpu", model.split(',').next().unwrap_or_default());
    let cores = settings.cores().map_err(unusable)?;
    Ok((1..number)
        .map(|n| {
            let device = Part::device(&driver, format!("cpu{n}"));
            device.with("socket-id", n / cores).with("core-id", n % cores).with("thread-id", 0)
        })
        .collect())
}

/// QEMU's `-cpu`.
pub fn model(cpu: &Cpu, accel: Accel, ostype: OsType) -> Result<String, GuestError> {
    let name = cpu.model.as_deref().unwrap_or(DEFAULT_MODEL);
    if name == CLUSTER_MODEL || name.starts_with(CUSTOM) {
        return refuse("cpu", format!("the driver was not told what '{name}' is"));
    }
    let mut words = match (level_features(name), name) {
        (Some(features), _) => {
            let mut words = vec![LEVELS_ON.to_owned(), "svm=off".to_owned()];
            words.extend(features.iter().map(|f| format!("{f}=on")));
            words
        }
        (None, "host") if accel == Accel::Tcg => {
            return refuse(
                "cpu",
                "'host' needs KVM, which the guest does not run under: use 'max' or a named model",
            );
        }
        (None, other) => vec![other.to_owned()],
    };
    if accel == Accel::Kvm && ostype.is_windows() {
        words.extend(["hv_relaxed", "hv_vapic", "hv_time", "hv_spinlocks=0x1fff"].map(str::to_owned));
    }
    words.extend(cpu.flags.iter().map(|(on, flag)| format!("{flag}={}", if *on { "on" } else { "off" })));
    if cpu.hidden {
        words.push("kvm=off".to_owned());
    }
    words.extend(cpu.hv_vendor_id.as_ref().map(|id| format!("hv-vendor-id={id}")));
    match cpu.phys_bits {
        Some(PhysBits::Host) => words.push("host-phys-bits=on".to_owned()),
        Some(PhysBits::Bits(bits)) => words.push(format!("phys-bits={bits}")),
        None => {}
    }
    words.extend(cpu.guest_phys_bits.map(|bits| format!("guest-phys-bits={bits}")));
    words.extend(cpu.level.map(|level| format!("level={level}")));
    if !ALL_THERE_IS.contains(&name) {
        words.push("enforce".to_owned());
    }
    Ok(words.join(","))
}
