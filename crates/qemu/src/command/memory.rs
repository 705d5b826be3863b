//! A guest's memory where it is more than one piece of no particular kind.

use super::part::Part;
use super::{Argv, Context, unusable};
use stead_driver::guest::GuestError;
use stead_model::size::Mebibytes;
use stead_model::vmconfig::{NumaNode, Settings};

/// Memory that is one piece, where it has to be of a kind.
const WHOLE: &str = "ram";

/// A module of memory: what it is made of, and what the guest sees.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// The host's memory.
    pub backend: Part,
    /// What is plugged in.
    pub device: Part,
}

/// How much of it there is at the start, and how much there may be.
pub fn size(settings: &Settings) -> Result<String, GuestError> {
    Ok(match settings.modules().map_err(unusable)? {
        None => format!("size={}M", settings.memory().map_err(unusable)?.0),
        Some(modules) => {
            format!(
                "size={}M,slots={},maxmem={}M",
                modules.memory_of(0).0,
                modules.places().len(),
                modules.most().0
            )
        }
    })
}

/// All modules that can be, in the order in which each finds the place that it has on every other machine, and how many of them are to
/// be there.
pub fn modules(settings: &Settings) -> Result<(Vec<Module>, usize), GuestError> {
    let Some(modules) = settings.modules().map_err(unusable)? else { return Ok((vec![], 0)) };
    let nodes = settings.numa_nodes().map_err(unusable)?.len().max(1);
    let module = |(number, size): (usize, &Mebibytes)| {
        let backend = format!("mem-dimm{number}");
        let device = Part::device("pc-dimm", format!("dimm{number}"));
        Module {
            device: device.with("memdev", backend.as_str()).with("node", number % nodes),
            backend: backend_of(settings, backend).with("size", size.0 << 20),
        }
    };
    Ok((modules.places().iter().enumerate().map(module).collect(), modules.number))
}

/// Memory of the host, which other programs can be given where the guest needs that.
fn backend_of(settings: &Settings, id: String) -> Part {
    match settings.shares_memory() {
        true => Part::object("memory-backend-memfd", id).with("share", true),
        false => Part::object("memory-backend-ram", id),
    }
}

/// The piece that is all memory of a machine without nodes, where it is not QEMU's own.
pub fn of_machine(cx: &Context<'_>) -> Result<Option<&'static str>, GuestError> {
    let is_whole = cx.settings.numa_nodes().map_err(unusable)?.is_empty();
    Ok((is_whole && cx.settings.shares_memory()).then_some(WHOLE))
}

/// Each NUMA node with the memory that it has. The names of the pieces are part of what a migration sends.
pub fn add(argv: &mut Argv, cx: &Context<'_>) -> Result<(), GuestError> {
    if let Some(id) = of_machine(cx)? {
        let size = cx.settings.memory().map_err(unusable)?;
        argv.part(&backend_of(cx.settings, id.to_owned()).with("size", size.0 << 20));
    }
    for (number, node) in cx.settings.numa_nodes().map_err(unusable)?.iter().enumerate() {
        let id = format!("ram-node{number}");
        let size = node.memory.0;
        let kind = match cx.page_mib {
            Some(page) => format!(
                "memory-backend-memfd,id={id},size={size}M,hugetlb=on,hugetlbsize={page}M,share=on,prealloc=on"
            ),
            None if cx.settings.shares_memory() => {
                format!("memory-backend-memfd,id={id},size={size}M,share=on")
            }
            None => format!("memory-backend-ram,id={id},size={size}M"),
        };
        argv.option("-object", kind + &place(node));
        let cpus: String = node.cpus.iter().map(|range| format!(",cpus={}", words(*range))).collect();
        argv.option("-numa", format!("node,nodeid={number}{cpus},memdev={id}"));
    }
    Ok(())
}

/// Where on the host it lies.
fn place(node: &NumaNode) -> String {
    let Some((nodes, policy)) = &node.host else { return String::new() };
    let nodes: String = nodes.iter().map(|range| format!(",host-nodes={}", words(*range))).collect();
    format!("{nodes},policy={policy}")
}

fn words((from, to): (u32, u32)) -> String {
    if from == to { from.to_string() } else { format!("{from}-{to}") }
}
