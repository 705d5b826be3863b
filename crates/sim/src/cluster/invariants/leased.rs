//! A node without a lease runs no guest after L + D + W (after L + D where its fence process works; the watchdog
//! has W more).

use crate::cluster::daemon::PROFILE;
use crate::cluster::world::World;
use std::time::Duration;

/// Timers ring within this, whatever the clocks' rates.
const ROUNDING: Duration = Duration::from_millis(1);

pub(in crate::cluster) fn check(world: &World) -> Option<String> {
    let grace = PROFILE.drain() + PROFILE.watchdog() + ROUNDING;
    for node in &world.nodes {
        if world.now <= node.lease_ends + grace {
            continue;
        }
        let running = node.copies.keys().find(|vmid| node.guest_executes(world.now, **vmid).is_some());
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
