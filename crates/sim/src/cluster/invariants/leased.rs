//! A node without a lease runs no guest under HA after L + D + W (after L + D where its fence process works; the
//! watchdog has W more). That is: no guest whose record says that it is armed there. What comes under HA on a node that
//! cannot record it is not armed, and is not recovered.

use crate::cluster::watch::grace;
use crate::cluster::world::World;
use std::time::Duration;
use stead_model::Vmid;

/// Timers ring within this, whatever the clocks' rates.
pub(in crate::cluster) const ROUNDING: Duration = Duration::from_millis(1);

pub(in crate::cluster) fn check(world: &World) -> Option<String> {
    let tree = world.store.newest();
    for node in &world.nodes {
        if world.now <= grace(node) {
            continue;
        }
        let armed = |vmid: &Vmid| tree.owners.get(vmid).is_some_and(|o| o.armed && o.owner == node.name);
        let executes = |vmid: &Vmid| node.guest_executes(world.now, *vmid).is_some();
        let running = node.copies.keys().find(|v| armed(v) && executes(v));
        if let Some(vmid) = running {
            let over = world.now - node.lease_ends;
            return Some(format!(
                "guest {vmid} executes on {} although its lease ended {over:?} ago",
                node.name
            ));
        }
    }
    None
}
