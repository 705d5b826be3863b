//! The storage that all guests' disks are on, which a node may lose though it is well itself.
//!
//! | on a node | a guest there | one that is to start there |
//! |---|---|---|
//! | lost | runs on, and its disks answer errors | does not start |
//! | hung | answers nothing, and nothing ends it | does not start |
//!
//! A node says of a hung storage that it does not answer, so the manager takes nothing away from there. A user may ask for
//! it, and what hangs may have been lost before: then the node must not say that a guest has ended which has not.

use super::Plan;
use super::node::Node;
use super::script::Act;
use super::world::World;
use crate::scenario::command::Disks;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::time::Duration;
use stead_ha::{StorageFault, StorageLoss, StorageView};
use stead_model::{HaOptions, StorageId};

/// For how long a storage is lost before guests are moved, in a search: seconds.
const HOLD: [u64; 3] = [0, 5, 15];

/// Its name.
pub(super) fn id() -> StorageId {
    "shared".parse().unwrap_or_else(|e| unreachable!("{e}"))
}

/// The storages that there are.
pub(super) fn configured() -> BTreeMap<StorageId, StorageView> {
    [(id(), StorageView { shared: true, nodes: None, disabled: false })].into()
}

/// What befalls it: something in every fifth history. It has a source of chance of its own, so that all else is as it would be
/// without it.
pub(super) fn draw(seed: u64, plan: &Plan, script: &mut Vec<(Duration, Act)>, options: &mut HaOptions) {
    if seed % 5 != 3 {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed.rotate_left(32));
    options.storage_loss.hold = HOLD[rng.random_range(0..HOLD.len())];
    let last = u64::try_from(plan.faults.as_millis()).unwrap_or(u64::MAX).max(5001);
    for _ in 0..rng.random_range(1..8) {
        let at = Duration::from_millis(rng.random_range(5000..last));
        let disks = [Disks::Well, Disks::Lost, Disks::Lost, Disks::Hung][rng.random_range(0..4)];
        script.push((at, Act::Disks { node: rng.random_range(0..plan.nodes), disks }));
    }
    script.sort_by_key(|(at, _)| *at);
}

impl Node {
    /// What it says of its storage.
    pub fn lost_storage(&self, now: Duration) -> Option<StorageLoss> {
        let (disks, since) = self.disks;
        let fault = match disks {
            Disks::Well => return None,
            Disks::Lost => StorageFault::Inactive { why: "gone".to_owned() },
            Disks::Hung => StorageFault::Silent,
        };
        Some(StorageLoss { fault, seconds: now.saturating_sub(since).as_secs() })
    }
}

impl World {
    /// From now on a node finds its storage so.
    pub fn set_disks(&mut self, node: usize, disks: Disks) {
        let now = self.now;
        let n = &mut self.nodes[node];
        if n.disks.0 == disks {
            return;
        }
        let hung = disks == Disks::Hung;
        // Whoever waited for it goes on when it answers, be it with errors.
        if hung || n.disks.0 == Disks::Hung {
            n.copies.values_mut().for_each(|copy| copy.hung = hung);
        }
        n.disks = (disks, now);
    }
}
