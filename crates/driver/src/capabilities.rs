//! What a node's program can make of guests.

use std::collections::{BTreeMap, BTreeSet};

/// All of it, under the accelerator that guests get here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `kvm` or `tcg`.
    pub accel: String,
    /// The program's version.
    pub version: String,
    /// Who made the CPU: `GenuineIntel`.
    pub vendor: String,
    /// Machine types with their versions: `pc-i440fx-10.0`.
    pub machines: BTreeSet<String>,
    /// Models of CPUs, each with the features that it has and this node has not.
    pub models: BTreeMap<String, Vec<String>>,
    /// Features of CPUs that it knows.
    pub flags: BTreeSet<String>,
    /// Features that a guest can have here.
    pub features: BTreeSet<String>,
}
