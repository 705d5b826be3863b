//! Nothing moves without a reason: an owner changes only by what the manager had ordered while the guest was under that
//! very epoch, to the node that it had named, with a reason; or by a user's own word.

use crate::cluster::store::{Tree, Txn};
use crate::cluster::world::World;
use stead_ha::ManagerState;
use stead_model::{NodeName, ServiceId, Vmid};

pub(in crate::cluster) fn check(world: &mut World, before: &Tree, txn: &Txn) -> Option<String> {
    match txn {
        Txn::Manager(now, ..) => note_orders(world, before, now),
        Txn::Recover { vmid, to, .. } => ordered(world, before, *vmid, to),
        Txn::Release { vmid, to, .. } | Txn::HandOver { vmid, to, .. } => ordered(world, before, *vmid, to),
        _ => None,
    }
}

fn note_orders(world: &mut World, before: &Tree, now: &ManagerState) -> Option<String> {
    for (sid, s) in &now.service_status {
        if s.reason.is_empty() {
            return Some(format!("{sid} is {} on {} for no reason", s.state.as_str(), s.node));
        }
        if let (Some(target), Some(own)) = (&s.target, before.owners.get(&sid.vmid)) {
            world.ordered.insert((*sid, own.epoch, target.clone()));
        }
    }
    None
}

fn ordered(world: &World, before: &Tree, vmid: Vmid, to: &NodeName) -> Option<String> {
    let own = before.owners.get(&vmid)?;
    let sid = ServiceId { kind: own.kind, vmid };
    let known = world.ordered.contains(&(sid, own.epoch, to.clone()));
    (!known).then(|| format!("{sid} goes from {} to {to}, and nobody has ordered that", own.owner))
}
