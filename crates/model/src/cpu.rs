//! CPUs: what each node's can do, and what all of them can.
//!
//! A VM that is to run on any node gets the features that every node has: of the levels `x86-64-v1` to `x86-64-v4` the highest that all
//! can run, and beyond it those further features that all have. Nodes of one accelerator are compared: a VM never moves between two.

use crate::NodeName;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a node's QEMU can give to guests under its accelerator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFacts {
    /// `kvm` or `tcg`.
    pub accel: String,
    /// QEMU's version.
    pub version: String,
    /// Who made the CPU: `GenuineIntel`, `AuthenticAMD`.
    pub vendor: String,
    /// All features that a guest can have, by QEMU's names.
    pub features: BTreeSet<String>,
    /// QEMU's models of which it can run all of.
    pub models: BTreeSet<String>,
}

/// A level of features: its name, and what it has beyond the one below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Its name in configurations.
    pub name: &'static str,
    /// What it adds to the one below it.
    adds: &'static [&'static str],
}

/// The model of guests that name none.
pub const DEFAULT_MODEL: &str = "x86-64-v2-AES";
/// QEMU's model that the levels add their features to: it has those of x86-64-v1.
pub const LEVELS_ON: &str = "qemu64";
/// The model that is what all nodes can run.
pub const CLUSTER_MODEL: &str = "cluster";
/// What models of administrators begin with.
pub const CUSTOM: &str = "custom-";

/// The levels above the first, lowest first.
pub const LEVELS: [Level; 4] = [
    Level { name: "x86-64-v2", adds: &["cx16", "lahf-lm", "popcnt", "pni", "sse4.1", "sse4.2", "ssse3"] },
    Level { name: "x86-64-v2-AES", adds: &["aes"] },
    Level {
        name: "x86-64-v3",
        adds: &["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"],
    },
    Level { name: "x86-64-v4", adds: &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"] },
];

/// The features that a level adds to [`LEVELS_ON`], those of the levels below it too; none if there is no such level.
pub fn level_features(name: &str) -> Option<Vec<&'static str>> {
    let at = LEVELS.iter().position(|level| level.name == name)?;
    Some(LEVELS[..=at].iter().flat_map(|level| level.adds).copied().collect())
}

/// Features that somebody might switch on or off, or that guests are safer or faster with, each with what it is.
pub const FLAGS: &[(&str, &str)] = &[
    ("3dnowprefetch", "prefetching for writing"),
    ("abm", "counting of bits"),
    ("adx", "additions with two carries"),
    ("aes", "AES encryption"),
    ("amd-no-ssb", "the CPU does not suffer from speculative store bypass (AMD)"),
    ("amd-psfd", "predictive store forwarding can be switched off (AMD)"),
    ("amd-ssbd", "speculative store bypass can be switched off (AMD)"),
    ("arch-capabilities", "the CPU tells which attacks it does not suffer from (Intel)"),
    ("auto-ibrs", "indirect branches are restricted by themselves (AMD)"),
    ("avx", "vectors of 256 bits"),
    ("avx2", "integers in vectors of 256 bits"),
    ("avx512-vpopcntdq", "counting of bits in vectors"),
    ("avx512bw", "bytes and words in vectors of 512 bits"),
    ("avx512cd", "conflicts within vectors of 512 bits"),
    ("avx512dq", "long integers in vectors of 512 bits"),
    ("avx512f", "vectors of 512 bits"),
    ("avx512vbmi", "permutations of bytes in vectors"),
    ("avx512vl", "AVX-512 on shorter vectors"),
    ("avx512vnni", "neural networks in vectors of 512 bits"),
    ("bmi1", "operations on single bits"),
    ("bmi2", "more operations on single bits"),
    ("clflushopt", "faster flushes of a cache line"),
    ("clwb", "cache lines are written back and kept"),
    ("clzero", "a cache line is zeroed"),
    ("cx16", "exchange of 16 bytes"),
    ("erms", "fast copies of strings"),
    ("f16c", "numbers of 16 bits"),
    ("flush-l1d", "the first cache can be flushed, against L1TF"),
    ("fma", "multiplication and addition in one"),
    ("fsgsbase", "segment bases are read and written by programs"),
    ("fsrm", "fast copies of short strings"),
    ("gfni", "arithmetic in Galois fields"),
    ("hv-evmcs", "Hyper-V: faster nested virtualization (Intel, Windows)"),
    ("hv-tlbflush", "Hyper-V: flushes of other CPUs' TLB by the hypervisor (Windows)"),
    ("ibpb", "indirect branch prediction can be cleared, against Spectre (AMD)"),
    ("ibrs", "indirect branches can be restricted, against Spectre (AMD)"),
    ("ibrs-all", "indirect branches are restricted all the time (Intel)"),
    ("invpcid", "single entries of the TLB can be dropped"),
    ("lahf-lm", "flags are read and written in 64-bit mode"),
    ("md-clear", "buffers can be cleared, against MDS (Intel)"),
    ("movbe", "moves with the order of bytes changed"),
    ("mds-no", "the CPU does not suffer from MDS (Intel)"),
    ("pcid", "process ids in the TLB: Meltdown's remedy costs less (Intel)"),
    ("pclmulqdq", "multiplication without carries"),
    ("pdpe1gb", "pages of 1 GiB"),
    ("pku", "memory protection keys"),
    ("pni", "SSE3"),
    ("popcnt", "counting of ones"),
    ("rdctl-no", "the CPU does not suffer from Meltdown (Intel)"),
    ("rdpid", "the CPU's number is read fast"),
    ("rdrand", "random numbers"),
    ("rdseed", "random seeds"),
    ("rdtscp", "time stamp and CPU number in one"),
    ("sha-ni", "SHA hashes"),
    ("smap", "the kernel is kept from programs' data"),
    ("smep", "the kernel is kept from programs' code"),
    ("spec-ctrl", "indirect branches can be restricted, against Spectre (Intel)"),
    ("ssb-no", "the CPU does not suffer from speculative store bypass (Intel)"),
    ("ssbd", "speculative store bypass can be switched off (Intel)"),
    ("sse4.1", "SSE4.1"),
    ("sse4.2", "SSE4.2"),
    ("ssse3", "supplemental SSE3"),
    ("stibp", "branch prediction is not shared by threads (Intel)"),
    ("svm", "nested virtualization (AMD)"),
    ("taa-no", "the CPU does not suffer from asynchronous aborts (Intel)"),
    ("umip", "programs are kept from system registers"),
    ("vaes", "AES in vectors"),
    ("virt-ssbd", "speculative store bypass can be switched off by the hypervisor (AMD)"),
    ("vmx", "nested virtualization (Intel)"),
    ("vpclmulqdq", "multiplication without carries in vectors"),
    ("wbnoinvd", "caches are written back and kept"),
    ("xgetbv1", "which state is in use is read"),
    ("xsave", "state of the processor is saved"),
    ("xsavec", "state is saved compactly"),
    ("xsaveopt", "only changed state is saved"),
    ("xsaves", "the kernel's state is saved compactly"),
];

/// Features of [`FLAGS`] that a guest does not get by itself: with nested virtualization it does not move while it runs everywhere,
/// and those of Hyper-V are for one system alone.
const ON_REQUEST: [&str; 4] = ["hv-evmcs", "hv-tlbflush", "svm", "vmx"];

/// What all of some nodes can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommonCpu {
    /// The highest level that all can run; [`LEVELS_ON`] where none is.
    pub model: &'static str,
    /// Features beyond it that all have.
    pub flags: Vec<String>,
    /// QEMU's models that all can run.
    pub models: BTreeSet<String>,
    /// The nodes.
    pub nodes: BTreeSet<NodeName>,
    /// For each level that not all can run: which nodes lack what.
    pub lacking: BTreeMap<&'static str, BTreeMap<NodeName, Vec<String>>>,
}

impl CommonCpu {
    /// As an option `cpu` says it.
    pub fn text(&self) -> String {
        let flags: Vec<String> = self.flags.iter().map(|flag| format!("+{flag}")).collect();
        match flags.is_empty() {
            true => self.model.to_owned(),
            false => format!("{},flags={}", self.model, flags.join(";")),
        }
    }
}

/// The CPU that every node with that accelerator can run; none if there is no such node.
pub fn common(nodes: &BTreeMap<NodeName, CpuFacts>, accel: &str) -> Option<CommonCpu> {
    let alike: BTreeMap<&NodeName, &CpuFacts> =
        nodes.iter().filter(|(_, facts)| facts.accel == accel).collect();
    let mut facts = alike.values();
    let first = facts.next()?;
    let (mut features, mut models) = (first.features.clone(), first.models.clone());
    for other in facts {
        features = features.intersection(&other.features).cloned().collect();
        models = models.intersection(&other.models).cloned().collect();
    }
    let mut lacking = BTreeMap::new();
    let mut model = LEVELS_ON;
    for level in LEVELS {
        let needed = level_features(level.name).unwrap_or_default();
        let short: BTreeMap<NodeName, Vec<String>> = alike
            .iter()
            .map(|(node, facts)| ((*node).clone(), missing(&needed, &facts.features)))
            .filter(|(_, missing)| !missing.is_empty())
            .collect();
        if short.is_empty() && lacking.is_empty() {
            model = level.name;
        } else {
            lacking.insert(level.name, short);
        }
    }
    let has = level_features(model).unwrap_or_default();
    let beyond = |flag: &&str| features.contains(*flag) && !has.contains(flag) && !ON_REQUEST.contains(flag);
    let flags = FLAGS.iter().map(|(flag, _)| *flag).filter(beyond).map(str::to_owned).collect();
    Some(CommonCpu { model, flags, models, nodes: alike.into_keys().cloned().collect(), lacking })
}

/// Those of some features that a node has not.
pub fn missing<T: AsRef<str>>(needed: &[T], features: &BTreeSet<String>) -> Vec<String> {
    needed.iter().map(AsRef::as_ref).filter(|f| !features.contains(*f)).map(str::to_owned).collect()
}

/// What speaks against moving a VM that has all that its CPU can do: features that one node has and the other has not. Whether
/// something is added or missing, its system would find another CPU than it began with.
pub fn unlike(source: &CpuFacts, target: &CpuFacts) -> Vec<String> {
    let list =
        |a: &CpuFacts, b: &CpuFacts| -> Vec<String> { a.features.difference(&b.features).cloned().collect() };
    let mut why = vec![];
    if source.vendor != target.vendor {
        why.push(format!("it is made by {}, not by {}", target.vendor, source.vendor));
    }
    let (lacks, has_more) = (list(source, target), list(target, source));
    if !lacks.is_empty() {
        why.push(format!("it lacks {}", lacks.join(", ")));
    }
    if !has_more.is_empty() {
        why.push(format!("it has {} beyond", has_more.join(", ")));
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(accel: &str, level: &str, more: &[&str], models: &[&str]) -> CpuFacts {
        let features = level_features(level).unwrap_or_default();
        CpuFacts {
            accel: accel.into(),
            vendor: "GenuineIntel".into(),
            features: features.iter().chain(more).map(|f| (*f).to_owned()).collect(),
            models: models.iter().map(|m| (*m).to_owned()).collect(),
            ..CpuFacts::default()
        }
    }

    fn nodes(all: &[(&str, CpuFacts)]) -> BTreeMap<NodeName, CpuFacts> {
        all.iter().map(|(name, facts)| (name.parse().unwrap(), facts.clone())).collect()
    }

    #[test]
    fn the_common_cpu_is_what_every_node_can_run() {
        let old = facts("kvm", "x86-64-v2-AES", &["pcid", "avx", "rdrand", "vmx"], &["Westmere", "Nehalem"]);
        let new = facts("kvm", "x86-64-v4", &["pcid", "rdrand", "vmx", "sha-ni"], &["Haswell", "Westmere"]);
        let emulated = facts("tcg", "x86-64-v3", &[], &["EPYC"]);
        let all = nodes(&[("n1", old), ("n2", new.clone()), ("n3", emulated)]);
        let found = common(&all, "kvm").unwrap();
        assert_eq!(found.text(), "x86-64-v2-AES,flags=+avx;+pcid;+rdrand");
        assert_eq!(found.models.iter().collect::<Vec<_>>(), ["Westmere"]);
        assert_eq!(found.nodes.len(), 2);
        let n1 = "n1".parse::<NodeName>().unwrap();
        assert_eq!(
            found.lacking["x86-64-v3"][&n1],
            ["abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"]
        );
        assert!(!found.lacking.contains_key("x86-64-v2"));
        assert_eq!(common(&all, "tcg").unwrap().text(), "x86-64-v3");
        assert_eq!(common(&all, "xen"), None);
        let bare = common(&nodes(&[("n1", facts("kvm", "", &[], &[])), ("n2", new)]), "kvm").unwrap();
        assert_eq!((bare.text().as_str(), bare.lacking.len()), ("qemu64", 4));
    }

    #[test]
    fn each_level_has_all_of_the_one_below() {
        for pair in LEVELS.windows(2) {
            let (below, above) =
                (level_features(pair[0].name).unwrap(), level_features(pair[1].name).unwrap());
            assert!(below.iter().all(|f| above.contains(f)), "{}", pair[1].name);
        }
        assert_eq!(level_features("qemu64"), None);
        assert!(FLAGS.windows(2).all(|pair| pair[0].0 != pair[1].0));
    }

    #[test]
    fn unlike_cpus_are_told_apart_in_both_directions() {
        let (one, two) =
            (facts("kvm", "x86-64-v2", &["pcid"], &[]), facts("kvm", "x86-64-v2", &["rdrand"], &[]));
        assert_eq!(unlike(&one, &one), [""; 0]);
        assert_eq!(unlike(&one, &two), ["it lacks pcid", "it has rdrand beyond"]);
        let amd = CpuFacts { vendor: "AuthenticAMD".into(), ..one.clone() };
        assert_eq!(unlike(&one, &amd), ["it is made by AuthenticAMD, not by GenuineIntel"]);
    }
}
