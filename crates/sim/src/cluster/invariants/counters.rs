//! Counters never exceed their limits: a service is tried `max_restart` times again on a node and on `max_relocate` others,
//! then it is in error.

use crate::cluster::store::{Tree, Txn};
use crate::cluster::world::World;
use stead_ha::ServiceState;

pub(in crate::cluster) fn check(world: &mut World, before: &Tree, txn: &Txn) -> Option<String> {
    for ((sid, uid, _), failed) in &world.failed_starts {
        let limit = before.config.resources.get(sid).map(|r| r.max_restart);
        if limit.is_some_and(|limit| *failed > limit + 1) {
            return Some(format!("{sid} has failed {failed} times to start in its state {uid}"));
        }
    }
    let Txn::Manager(now, ..) = txn else { return None };
    for (sid, s) in &now.service_status {
        let Some(limit) = before.config.resources.get(sid).map(|r| r.max_relocate) else { continue };
        let goes_on = matches!(s.state, ServiceState::RequestStart | ServiceState::Relocate);
        let given_up = s.relocate_tries > limit;
        let was = before.service_status_tries(sid);
        if s.relocate_tries > limit + 1 || (given_up && goes_on && was <= limit) {
            return Some(format!(
                "{sid} was given up by {} nodes and is {}, although max_relocate is {limit}",
                s.relocate_tries,
                s.state.as_str()
            ));
        }
    }
    None
}

impl Tree {
    fn service_status_tries(&self, sid: &stead_model::ServiceId) -> u32 {
        self.manager.0.service_status.get(sid).map_or(0, |s| s.relocate_tries)
    }
}
