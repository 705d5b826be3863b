//! A guest's memory where it is more than one piece of no particular kind.

use super::{Argv, Context, unusable};
use stead_driver::guest::GuestError;
use stead_model::vmconfig::NumaNode;

/// Each NUMA node with the memory that it has. The names of the pieces are part of what a migration sends.
pub fn add(argv: &mut Argv, cx: &Context<'_>) -> Result<(), GuestError> {
    for (number, node) in cx.settings.numa_nodes().map_err(unusable)?.iter().enumerate() {
        let id = format!("ram-node{number}");
        let size = node.memory.0;
        let kind = match cx.page_mib {
            Some(page) => format!(
                "memory-backend-memfd,id={id},size={size}M,hugetlb=on,hugetlbsize={page}M,share=on,prealloc=on"
            ),
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
