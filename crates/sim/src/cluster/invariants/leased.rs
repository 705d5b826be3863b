//! A node without a lease runs no guest under HA after L + D + W (after L + D where its fence process works; the
//! watchdog has W more). A guest that is ignored is under nobody's guard.

use crate::cluster::daemon::PROFILE;
use crate::cluster::world::World;
use std::time::Duration;
use stead_model::Vmid;

/// Timers ring within this, whatever the clocks' rates.
const ROUNDING: Duration = Duration::from_millis(1);

pub(in crate::cluster) fn check(world: &World) -> Option<String> {
    let grace = PROFILE.drain() + PROFILE.watchdog() + ROUNDING;
    let tree = world.store.newest();
    for node in &world.nodes {
        if world.now <= node.lease_ends + grace {
            continue;
        }
        let executes = |vmid: &Vmid| node.guest_executes(world.now, *vmid).is_some();
        let running = node.copies.keys().find(|v| executes(v) && tree.is_guarded(**v));
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
