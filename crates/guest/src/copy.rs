//! What the record says of a copy of a guest: a process of one epoch on one node.
//!
//! Who may run a guest is recorded as (owner, epoch). A process whose node and epoch the record names is the guest; one
//! under the next epoch may become it by a hand-over; every other one is an old copy, which never executes
//! again.

use stead_model::{Epoch, NodeName, Ownership};

/// What the record says of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is the guest.
    Owner,
    /// A hand-over may still make it the guest: it waits, and does not run.
    Heir,
    /// It is old.
    Old,
}

/// The claim of a copy on node `me` under `epoch`. `own`: the record, none where the guest does not exist any more. A
/// record that can't be read says nothing, and so nothing may be done: there is no claim to ask for.
pub fn claim(own: Option<&Ownership>, me: &NodeName, epoch: Epoch) -> Claim {
    match own {
        Some(o) if o.owner == *me && o.epoch == epoch => Claim::Owner,
        Some(o) if o.owner != *me && o.epoch.next() == epoch => Claim::Heir,
        _ => Claim::Old,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::GuestKind;

    #[test]
    fn the_record_decides() {
        let [me, other]: [NodeName; 2] = ["n1", "n2"].map(|n| n.parse().unwrap());
        let own = |owner: &NodeName| Ownership {
            kind: GuestKind::Qemu,
            owner: owner.clone(),
            epoch: Epoch(7),
            armed: true,
            running: true,
            recovered: false,
        };
        for (epoch, mine, theirs) in [
            (6, Claim::Old, Claim::Old),
            (7, Claim::Owner, Claim::Old),
            // To this node's own next epoch leads no hand-over from itself.
            (8, Claim::Old, Claim::Heir),
            (9, Claim::Old, Claim::Old),
        ] {
            assert_eq!(claim(Some(&own(&me)), &me, Epoch(epoch)), mine, "{epoch}");
            assert_eq!(claim(Some(&own(&other)), &me, Epoch(epoch)), theirs, "{epoch}");
            assert_eq!(claim(None, &me, Epoch(epoch)), Claim::Old);
        }
    }
}
