//! A guest never runs twice.

use crate::cluster::world::World;
use std::collections::BTreeMap;

pub(in crate::cluster) fn check(world: &World) -> Option<String> {
    let mut runs = BTreeMap::new();
    for node in &world.nodes {
        for vmid in node.copies.keys() {
            let Some(epoch) = node.guest_executes(world.now, *vmid) else { continue };
            if let Some((other, older)) = runs.insert(*vmid, (&node.name, epoch)) {
                return Some(format!(
                    "guest {vmid} runs on {other} (epoch {older}) and on {} (epoch {epoch})",
                    node.name
                ));
            }
        }
    }
    None
}
