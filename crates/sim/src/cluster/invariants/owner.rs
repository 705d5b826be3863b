//! Only the committed owner runs a guest, under the committed epoch: once a guest was recovered or moved, no older
//! copy of it executes a single instruction more.

use crate::cluster::world::World;

pub(in crate::cluster) fn check(world: &World) -> Option<String> {
    let tree = world.store.newest();
    for node in &world.nodes {
        for vmid in node.copies.keys() {
            let Some(epoch) = node.guest_executes(world.now, *vmid) else { continue };
            let Some(own) = tree.owners.get(vmid) else { continue };
            if own.owner != node.name || own.epoch != epoch {
                return Some(format!(
                    "guest {vmid} executes on {} under epoch {epoch}, but {} owns it under epoch {}",
                    node.name, own.owner, own.epoch
                ));
            }
        }
    }
    None
}
