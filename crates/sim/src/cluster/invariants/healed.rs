//! When faults have ended for long enough, every guest is in its requested state: it runs, on the node that owns it.

use crate::cluster::world::World;

pub(in crate::cluster) fn check(world: &World) -> Option<String> {
    let tree = world.store.newest();
    for (vmid, own) in &tree.owners {
        let owner = world.nodes.iter().find(|n| n.name == own.owner)?;
        if owner.guest_executes(world.now, *vmid).is_none() {
            let sid = stead_model::ServiceId { kind: own.kind, vmid: *vmid };
            let state = tree.manager.0.service_status.get(&sid);
            let copy = owner.copies.get(vmid);
            return Some(format!(
                "healed: guest {vmid} does not run on {} (epoch {}): {copy:?}, {state:?}, {:?}, {:?}",
                own.owner,
                own.epoch,
                tree.nodes.get(&own.owner),
                owner.holds()
            ));
        }
    }
    None
}
