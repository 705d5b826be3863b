//! A guest never runs twice.

use crate::cluster::world::World;

pub(in crate::cluster) fn check(world: &World) -> Option<String> {
    for (i, node) in world.nodes.iter().enumerate() {
        for vmid in node.copies.keys() {
            let Some(epoch) = node.guest_executes(world.now, *vmid) else { continue };
            let twice =
                world.nodes[i + 1..].iter().find_map(|n| Some((n, n.guest_executes(world.now, *vmid)?)));
            if let Some((other, later)) = twice {
                return Some(format!(
                    "guest {vmid} runs on {} (epoch {epoch}) and on {} (epoch {later})",
                    node.name, other.name
                ));
            }
        }
    }
    None
}
