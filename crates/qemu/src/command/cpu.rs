//! CPU models.
//!
//! A model must mean the same on every node, whatever its processor and QEMU's version: the levels
//! `x86-64-v2` and so on are spelled out, and `enforce` makes a node without a feature refuse the guest rather than hide
//! the feature from it.

use super::part::Part;
use super::{refuse, unusable};
use crate::accel::Accel;
use std::collections::BTreeSet;
use stead_driver::guest::GuestError;
use stead_model::vmconfig::{Cpu, OsType, PhysBits, Settings};

/// The model of guests that name none.
const DEFAULT: &str = "x86-64-v2-AES";

/// The model that the levels add their features to.
const LEVELS_ON: &str = "qemu64";

const V2: [&str; 7] = ["cx16", "lahf-lm", "popcnt", "pni", "sse4.1", "sse4.2", "ssse3"];
const V3: [&str; 9] = ["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"];
const V4: [&str; 5] = ["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];

/// Levels of features that are no models of QEMU's, and what is whatever there is.
const BEYOND: [&str; 6] = ["x86-64-v2", "x86-64-v2-AES", "x86-64-v3", "x86-64-v4", "max", "host"];

/// Refuses a model that QEMU does not know.
pub fn check(name: &str, known: &BTreeSet<String>) -> Result<(), GuestError> {
    if BEYOND.contains(&name) || known.contains(name) {
        return Ok(());
    }
    let alike = |k: &&String| k.to_ascii_lowercase().contains(&name.to_ascii_lowercase());
    let alike: Vec<&str> = known.iter().filter(alike).take(5).map(String::as_str).collect();
    let hint = if alike.is_empty() {
        format!("there are {}, kvm64, qemu64 and others", BEYOND.join(", "))
    } else {
        format!("did you mean {}?", alike.join(", "))
    };
    refuse("cpu", format!("QEMU of this node has no CPU model '{name}'; {hint}"))
}

/// The CPUs up to a number as devices, but for the first, which the machine has by itself.
pub fn parts(settings: &Settings, number: u32) -> Result<Vec<Part>, GuestError> {
    let cpu = settings.cpu().map_err(unusable)?;
    let name = cpu.model.as_deref().unwrap_or(DEFAULT);
    let driver = format!("{}-x86_64-cpu", if name.starts_with("x86-64-v") { LEVELS_ON } else { name });
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
    let name = cpu.model.as_deref().unwrap_or(DEFAULT);
    let level = match name {
        "x86-64-v2" => Some(V2.to_vec()),
        "x86-64-v2-AES" => Some([&V2[..], &["aes"]].concat()),
        "x86-64-v3" => Some([&V2[..], &["aes"], &V3].concat()),
        "x86-64-v4" => Some([&V2[..], &["aes"], &V3, &V4].concat()),
        _ => None,
    };
    let mut words = match (level, name) {
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
    // `max` and `host` are whatever there is.
    if !matches!(name, "max" | "host") {
        words.push("enforce".to_owned());
    }
    Ok(words.join(","))
}
