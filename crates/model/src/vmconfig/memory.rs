//! How a guest's memory is cut: the NUMA nodes that it sees, where on the host each lies, and of pages of which size; and the modules that
//! may be plugged into it while it runs.

use super::PhysBits;
use super::Settings;
use super::check::{choice, integer};
use super::devices::{named, spelled, spelled_prop};
use super::keys::{KeyError, MAX_CPUS, MAX_MEMORY};
use crate::cpu::CUSTOM;
use crate::property::PropertyString;
use crate::size::Mebibytes;
use std::fmt;

spelled!(
    /// How strictly memory lies on the host's nodes that were named.
    NumaPolicy {
        /// There, as long as they have some.
        Preferred = "preferred",
        /// There, or nowhere.
        Bind = "bind",
        /// There, page by page in turn.
        Interleave = "interleave",
    }
);

/// A NUMA node that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaNode {
    /// Its CPUs, as ranges with both ends.
    pub cpus: Vec<(u32, u32)>,
    /// Its memory.
    pub memory: Mebibytes,
    /// The nodes of the host that its memory lies on, as ranges with both ends; `None`: any.
    pub host: Option<(Vec<(u32, u32)>, NumaPolicy)>,
}

/// The part of a guest's memory that is always there, where the rest of it is in modules.
pub const FIXED: Mebibytes = Mebibytes(1024);
/// Modules come in sizes that double: so many of each, beginning with that one.
const OF_A_SIZE: usize = 32;
const FIRST: u64 = 512;
const SIZES: u32 = 8;
/// As many as the firmware's tables describe, but for one.
const MAX_MODULES: usize = 255;
/// What a CPU can address unless something else is said, as a power of two.
const ADDRESS_BITS: u64 = 40;

/// Memory that is made of modules. Which they are follows from its size alone, and each is plugged in after those before it: so a
/// migration's target has the same ones in the same places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modules {
    /// The sizes of those that can be, in their order.
    places: Vec<Mebibytes>,
    /// How many of them there are to be.
    pub number: usize,
}

impl Modules {
    /// The sizes of all that can be.
    pub fn places(&self) -> &[Mebibytes] {
        &self.places
    }

    /// The most memory that there can be.
    pub fn most(&self) -> Mebibytes {
        self.memory_of(self.places.len())
    }

    /// The memory with so many modules.
    pub fn memory_of(&self, number: usize) -> Mebibytes {
        Mebibytes(FIXED.0 + self.places.iter().take(number).map(|size| size.0).sum::<u64>())
    }
}

/// The sizes of all modules below a limit of the whole memory.
fn places(most: u64) -> Vec<Mebibytes> {
    let sizes = (0..SIZES).flat_map(|n| std::iter::repeat_n(FIRST << n, OF_A_SIZE)).take(MAX_MODULES);
    let below = sizes.scan(FIXED.0, |sum, size| {
        *sum += size;
        (*sum <= most).then_some(Mebibytes(size))
    });
    below.collect()
}

/// `0-1;4`: ranges with both ends.
fn ranges(key: &str, text: &str, most: u64) -> Result<Vec<(u32, u32)>, KeyError> {
    let number = |text: &str| integer(key, text, 0, most).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let mut all = vec![];
    for part in text.split(';') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (number(from)?, number(to)?);
        if from > to {
            return KeyError::value(key, format_args!("'{part}' begins after its end"));
        }
        all.push((from, to));
    }
    Ok(all)
}

impl NumaNode {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        let (Some(cpus), Some(memory)) = (props.get("cpus"), props.get("memory")) else {
            return KeyError::value(key, "a node has 'cpus' and 'memory'");
        };
        let policy = spelled_prop(key, &props, "policy", NumaPolicy::from_text, NumaPolicy::ALL)?;
        let host = match (props.get("hostnodes"), policy) {
            (None, None) => None,
            (Some(nodes), Some(policy)) => {
                Some((named(key, "hostnodes", |key| ranges(key, nodes, 1023))?, policy))
            }
            _ => return KeyError::value(key, "'hostnodes' and 'policy' go together"),
        };
        Ok(Self {
            cpus: named(key, "cpus", |key| ranges(key, cpus, MAX_CPUS - 1))?,
            memory: Mebibytes(named(key, "memory", |key| integer(key, memory, 1, MAX_MEMORY))?),
            host,
        })
    }
}

impl Settings {
    /// The modules of its memory, if `hotplug` lets some come and go.
    ///
    /// # Errors
    /// Names the option that does not fit the others.
    pub fn modules(&self) -> Result<Option<Modules>, KeyError> {
        if !self.hotplug().contains(&"memory") {
            return Ok(None);
        }
        if !self.boolean("numa", false) {
            return KeyError::value("hotplug", "memory that comes and goes needs numa=1");
        }
        if self.get("hugepages").is_some() {
            return KeyError::unsupported(
                "hugepages",
                "memory that comes and goes (hotplug) is made of other pages",
            );
        }
        // The half of what can be addressed: devices and gaps between modules are in it, too.
        let cpu = self.cpu()?;
        let is_custom = cpu.model.as_deref().is_some_and(|model| model.starts_with(CUSTOM));
        let bits = match cpu.phys_bits {
            Some(PhysBits::Bits(bits)) => bits,
            // What the model says by now need not be what a running VM has.
            None if is_custom => {
                let why =
                    "memory that comes and goes (hotplug) needs phys-bits here, beside a model of one's own";
                return KeyError::value("cpu", why);
            }
            // Not as many as this host has: another one may have fewer.
            Some(PhysBits::Host) | None => ADDRESS_BITS,
        };
        let most = (1_u64 << bits.saturating_sub(21).min(42)).min(MAX_MEMORY);
        let mut modules = Modules { places: places(most), number: 0 };
        let memory = self.memory()?;
        while modules.memory_of(modules.number) < memory && modules.number < modules.places.len() {
            modules.number += 1;
        }
        let there = modules.memory_of(modules.number);
        if there == memory {
            return Ok(Some(modules));
        }
        let why = match modules.number {
            _ if memory > there => format!("value must be at most {}", there.0),
            0 => format!("value must be at least {}", there.0),
            n => format!("next to it are {} and {}", modules.memory_of(n - 1).0, there.0),
        };
        KeyError::value("memory", format_args!("of memory that comes and goes (hotplug), {why}"))
    }

    /// The memory that it always has.
    fn fixed_memory(&self) -> Result<Mebibytes, KeyError> {
        Ok(if self.modules()?.is_some() { FIXED } else { self.memory()? })
    }

    /// The nodes that the guest sees, by number; none: it sees one machine. They are as `numa0` and so on say, or else one a socket.
    ///
    /// # Errors
    /// Names the option that does not fit the others.
    pub fn numa_nodes(&self) -> Result<Vec<NumaNode>, KeyError> {
        if !self.boolean("numa", false) {
            return Ok(vec![]);
        }
        let (memory, cpus) = (self.fixed_memory()?, self.cpus()?);
        let own: Vec<(&str, &str)> = self.family("numa").collect();
        if own.is_empty() {
            return self.node_a_socket(memory);
        }
        let mut nodes: Vec<NumaNode> = vec![];
        for (number, (key, text)) in own.into_iter().enumerate() {
            if key != format!("numa{number}") {
                return KeyError::value(
                    key,
                    format_args!("there is no numa{number}: nodes are numbered from 0"),
                );
            }
            let node = NumaNode::parse(key, text)?;
            let others = nodes.iter().flat_map(|n| &n.cpus);
            let of_other = |(from, to): &(u32, u32)| others.clone().any(|(f, t)| from <= t && f <= to);
            if let Some((from, to)) = node.cpus.iter().find(|r| of_other(r) || r.1 >= cpus) {
                return KeyError::value(
                    key,
                    format_args!("cpus: {from}-{to}: the VM has CPUs 0 to {}, each in one node", cpus - 1),
                );
            }
            nodes.push(node);
        }
        let sum: u64 = nodes.iter().map(|n| n.memory.0).sum();
        if sum != memory.0 {
            return KeyError::value(
                "numa0",
                format_args!(
                    "the nodes have {sum} MiB together, and the VM has {} MiB{}",
                    memory.0,
                    if memory == self.memory()? { "" } else { " that stay (hotplug)" }
                ),
            );
        }
        Ok(nodes)
    }

    fn node_a_socket(&self, memory: Mebibytes) -> Result<Vec<NumaNode>, KeyError> {
        let (sockets, cores) = (self.sockets()?, self.cores()?);
        if !memory.0.is_multiple_of(u64::from(sockets)) && memory != self.memory()? {
            let why = format!(
                "value must divide {} MiB, which stay of memory that comes and goes (hotplug)",
                memory.0
            );
            return KeyError::value("sockets", why);
        }
        if !memory.0.is_multiple_of(u64::from(sockets)) {
            return KeyError::value(
                "memory",
                format_args!("with numa=1 value must be a multiple of the number of sockets, {sockets}"),
            );
        }
        let of = |socket: u32| NumaNode {
            cpus: vec![(socket * cores, socket * cores + cores - 1)],
            memory: Mebibytes(memory.0 / u64::from(sockets)),
            host: None,
        };
        Ok((0..sockets).map(of).collect())
    }

    /// The sizes of the host's pages that its memory may be made of, the best first; empty: what the host likes.
    ///
    /// # Errors
    /// If it cannot be read, or does not fit the others.
    pub fn huge_pages(&self) -> Result<Vec<Mebibytes>, KeyError> {
        const KEY: &str = "hugepages";
        let Some(text) = self.get(KEY) else { return Ok(vec![]) };
        choice(KEY, text, &["any", "2", "1024"])?;
        let nodes = self.numa_nodes()?;
        if nodes.is_empty() {
            return KeyError::value(KEY, "they need numa=1");
        }
        let fits = |size: &u64| nodes.iter().all(|node| node.memory.0.is_multiple_of(*size));
        let sizes: Vec<Mebibytes> = [1024, 2]
            .into_iter()
            .filter(|s| text == "any" || text == s.to_string())
            .filter(fits)
            .map(Mebibytes)
            .collect();
        if sizes.is_empty() {
            return KeyError::value(KEY, "the memory of each node must be a multiple of a page's size");
        }
        Ok(sizes)
    }

    /// Whether huge pages that were made for it are kept for its next start.
    pub fn keeps_huge_pages(&self) -> bool {
        self.boolean("keephugepages", false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::VmConfig;
    use super::*;

    fn read(text: &str) -> Settings {
        VmConfig::parse(text).unwrap().current
    }

    #[test]
    fn a_socket_is_a_node_where_nothing_else_is_said() {
        assert_eq!(read("memory: 64\nsockets: 2\n").numa_nodes().unwrap(), []);
        let nodes = read("memory: 64\nsockets: 2\ncores: 2\nnuma: 1\n").numa_nodes().unwrap();
        let node = |cpus| NumaNode { cpus: vec![cpus], memory: Mebibytes(32), host: None };
        assert_eq!(nodes, [node((0, 1)), node((2, 3))]);
        let e = read("memory: 64\nsockets: 3\nnuma: 1\n").numa_nodes().unwrap_err();
        assert!(e.key == "memory" && e.why.contains("3"), "{e}");
    }

    #[test]
    fn places_for_modules_follow_from_what_the_vm_itself_says() {
        let of = |cpu: &str| read(&format!("cpu: {cpu}\nhotplug: memory\nmemory: 2048\nnuma: 1\n")).modules();
        let places = |cpu: &str| of(cpu).unwrap().unwrap().places.len();
        assert!(places("qemu64,phys-bits=46") > places("qemu64"));
        assert_eq!(places("custom-big,phys-bits=46"), places("qemu64,phys-bits=46"));
        let e = of("custom-big").unwrap_err();
        assert!(e.key == "cpu" && e.why.contains("needs phys-bits here"), "{e}");
    }

    #[test]
    fn nodes_share_out_cpus_and_memory() {
        let of = |nodes: &str| read(&format!("memory: 64\ncores: 4\nnuma: 1\n{nodes}")).numa_nodes();
        let nodes =
            of("numa0: cpus=0;2-3,memory=48,hostnodes=0-1;3,policy=bind\nnuma1: cpus=1,memory=16\n").unwrap();
        assert_eq!(nodes[0].cpus, [(0, 0), (2, 3)]);
        assert_eq!(nodes[0].host, Some((vec![(0, 1), (3, 3)], NumaPolicy::Bind)));
        for (wrong, key, why) in [
            ("numa0: cpus=0-3,memory=63\n", "numa0", "have 63 MiB together"),
            ("numa0: cpus=0-2,memory=32\nnuma1: cpus=2-3,memory=32\n", "numa1", "each in one node"),
            ("numa0: cpus=0-4,memory=64\n", "numa0", "CPUs 0 to 3"),
            ("numa1: cpus=0-3,memory=64\n", "numa1", "no numa0"),
            ("numa0: cpus=3-0,memory=64\n", "numa0", "begins after its end"),
            ("numa0: cpus=0-3\n", "numa0", "'memory'"),
            ("numa0: cpus=0-3,memory=64,hostnodes=0\n", "numa0", "go together"),
        ] {
            let e = of(wrong).unwrap_err();
            assert!(e.key == key && e.why.contains(why), "{wrong}: {e}");
        }
    }

    #[test]
    fn modules_follow_from_the_size_alone() {
        let of = |more: &str| read(&format!("hotplug: memory\nnuma: 1\n{more}")).modules();
        assert_eq!(read("memory: 2048\nnuma: 1\n").modules(), Ok(None));
        let number = |more: &str| of(more).unwrap().unwrap().number;
        assert_eq!(number("memory: 1024\n"), 0);
        assert_eq!(number("memory: 2560\n"), 3);
        assert_eq!(number("memory: 17408\n"), 32);
        assert_eq!(number("memory: 18432\n"), 33, "the next ones are of 1 GiB");
        let all = of("memory: 1024\n").unwrap().unwrap();
        assert!(all.most() <= Mebibytes(512 << 10) && all.places().len() <= MAX_MODULES);
        let larger = of("memory: 1024\ncpu: max,phys-bits=46\n").unwrap().unwrap();
        assert_eq!((larger.places().len(), &larger.places()[..160]), (MAX_MODULES, &all.places()[..160]));
        let nodes = read("hotplug: memory\nnuma: 1\nmemory: 4096\nsockets: 2\n").numa_nodes().unwrap();
        assert_eq!(
            nodes.iter().map(|n| n.memory.0).sum::<u64>(),
            FIXED.0,
            "modules are not in the nodes yet"
        );
        for (wrong, key, why) in [
            ("memory: 512\n", "memory", "at least 1024"),
            ("memory: 1025\n", "memory", "1024 and 1536"),
            ("memory: 4194304\n", "memory", "at most"),
            ("memory: 1024\nhugepages: 2\n", "hugepages", "other pages"),
        ] {
            let e = of(wrong).unwrap_err();
            assert!(e.key == key && e.why.contains(why), "{wrong}: {e}");
        }
        let e = read("hotplug: memory\nmemory: 1024\n").modules().unwrap_err();
        assert_eq!(e.to_string(), "hotplug: memory that comes and goes needs numa=1");
        let e = read("hotplug: memory\nmemory: 3072\nnuma: 1\nsockets: 3\n").numa_nodes().unwrap_err();
        assert_eq!(e.key, "sockets");
    }

    #[test]
    fn pages_fit_every_node() {
        let of = |text: &str| read(text).huge_pages().map(|all| all.iter().map(|s| s.0).collect::<Vec<_>>());
        assert_eq!(of("memory: 4096\nnuma: 1\nsockets: 2\nhugepages: any\n"), Ok(vec![1024, 2]));
        assert_eq!(of("memory: 3072\nnuma: 1\nsockets: 2\nhugepages: any\n"), Ok(vec![2]));
        assert_eq!(of("memory: 3072\n"), Ok(vec![]));
        for wrong in [
            "memory: 64\nhugepages: 2\n",
            "memory: 63\nnuma: 1\nhugepages: 2\n",
            "memory: 64\nnuma: 1\nhugepages: 1024\n",
        ] {
            assert_eq!(of(wrong).unwrap_err().key, "hugepages", "{wrong}");
        }
    }
}
