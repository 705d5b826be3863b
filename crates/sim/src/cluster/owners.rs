//! Who owns each guest, in pieces that later trees share with earlier ones: a commit copies the piece that it changes, so that
//! a cluster of twenty thousand guests has a history too.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use stead_model::{NodeName, Ownership, Vmid};

/// So many numbers of guests share a piece.
const PIECE: u32 = 64;

/// A guest's owner, and how often that was written.
type Entry = (Ownership, u64);

/// Every guest's owner.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    pieces: BTreeMap<u32, Rc<BTreeMap<Vmid, Entry>>>,
    /// The guests of each node.
    of: Rc<BTreeMap<NodeName, Rc<BTreeSet<Vmid>>>>,
}

impl Owners {
    fn entry(&self, vmid: Vmid) -> Option<&Entry> {
        self.pieces.get(&(vmid.get() / PIECE))?.get(&vmid)
    }

    /// A guest's owner.
    pub fn get(&self, vmid: &Vmid) -> Option<&Ownership> {
        self.entry(*vmid).map(|(own, _)| own)
    }

    /// How often a guest's ownership was written.
    pub fn revision(&self, vmid: Vmid) -> u64 {
        self.entry(vmid).map_or(0, |(_, revision)| *revision)
    }

    /// All, by their guests' numbers.
    pub fn iter(&self) -> impl Iterator<Item = (&Vmid, &Ownership)> {
        self.pieces.values().flat_map(|piece| piece.iter()).map(|(vmid, (own, _))| (vmid, own))
    }

    /// Those of one node, by their guests' numbers.
    pub fn of<'o>(&'o self, node: &NodeName) -> impl Iterator<Item = (&'o Vmid, &'o Ownership)> + use<'o> {
        let guests = self.of.get(node).map(|all| all.iter()).into_iter().flatten();
        guests.filter_map(|vmid| Some((vmid, self.get(vmid)?)))
    }

    /// Writes a guest's owner. That counts as a revision, unless it is the guest's first.
    pub fn write(&mut self, vmid: Vmid, own: Ownership) {
        let revision = self.entry(vmid).map_or(0, |(_, revision)| revision + 1);
        self.write_at(vmid, own, revision);
    }

    /// Writes a guest's owner, as of a revision.
    pub fn write_at(&mut self, vmid: Vmid, own: Ownership, revision: u64) {
        let piece = Rc::make_mut(self.pieces.entry(vmid.get() / PIECE).or_default());
        let old = piece.get(&vmid);
        if old.is_none_or(|(o, _)| o.owner != own.owner) {
            let of = Rc::make_mut(&mut self.of);
            if let Some(all) = old.and_then(|(o, _)| of.get_mut(&o.owner)) {
                Rc::make_mut(all).remove(&vmid);
            }
            Rc::make_mut(of.entry(own.owner.clone()).or_default()).insert(vmid);
        }
        piece.insert(vmid, (own, revision));
    }
}

impl FromIterator<(Vmid, Ownership)> for Owners {
    fn from_iter<I: IntoIterator<Item = (Vmid, Ownership)>>(all: I) -> Self {
        let mut owners = Self::default();
        all.into_iter().for_each(|(vmid, own)| owners.write(vmid, own));
        owners
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;
    use stead_model::{Epoch, GuestKind};

    #[test]
    fn later_owners_leave_earlier_ones_as_they_were() {
        let name = |n: &str| -> NodeName { n.parse().unwrap() };
        let own = |owner: &str| Ownership {
            kind: GuestKind::Qemu,
            owner: name(owner),
            epoch: Epoch(1),
            armed: false,
            running: false,
            recovered: false,
        };
        let vmid = |n| Vmid::new(n).unwrap();
        let first: Owners = (100..300).map(|n| (vmid(n), own("a"))).collect();
        let mut later = first.clone();
        later.write(vmid(170), own("b"));
        later.write(vmid(170), own("b"));
        assert_eq!((first.revision(vmid(170)), later.revision(vmid(170))), (0, 2));
        assert_eq!((first.of(&name("a")).count(), first.of(&name("b")).count()), (200, 0));
        assert_eq!((later.of(&name("a")).count(), later.of(&name("b")).count()), (199, 1));
        assert_eq!(
            later.iter().map(|(v, _)| *v).collect::<Vec<_>>(),
            (100..300).map(vmid).collect::<Vec<_>>()
        );
    }
}
