//! Nodes of different cluster epochs meet: who gives way.
//!
//! An operator's word on a survivor begins a new epoch of the cluster ([`stead_model::era`]). The others come back with the old
//! one. Each node asks the members which epoch they are in, before it takes part, and decides by itself:
//!
//! ```text
//!              nobody is in a newer one ──▶ stays
//!  starts ──┤
//!              somebody is ──┬─ this node has had no majority, and knows of none ──▶ yields: takes the newer epoch's state
//!                            └─ a majority of its own epoch is there ──▶ contested: both go on, and an operator decides
//! ```
//!
//! An old epoch with a majority was not off, whatever the operator has said: what it has committed since counts, its guests
//! run, and it must not vanish by itself because a node restarts.

use stead_model::{Era, Lineage, NodeName};

/// What another member says of its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Which member.
    pub node: NodeName,
    /// Its epoch.
    pub era: Era,
    /// How that came about.
    pub lineage: Lineage,
    /// It is in contact with a majority of its epoch.
    pub quorate: bool,
}

/// How another epoch relates to one's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// It is the same.
    Same,
    /// It has followed one's own, perhaps over others.
    Newer,
    /// One's own has followed it.
    Older,
    /// Both have followed the same one: two survivors were told to go on alone.
    Rival,
}

/// How `theirs`, which came about by `their_lineage`, relates to one's own epoch.
pub fn relation(own: (Era, &Lineage), theirs: (Era, &Lineage)) -> Relation {
    if own.0 == theirs.0 {
        Relation::Same
    } else if theirs.1.after(own.0).is_some() {
        Relation::Newer
    } else if own.1.after(theirs.0).is_some() {
        Relation::Older
    } else {
        Relation::Rival
    }
}

/// What a node does about the epochs that it sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    /// It goes on in its own.
    Stay,
    /// It gives up its own, and takes the state of this node's.
    Yield(NodeName),
    /// It goes on in its own, as do these in theirs: an operator must say which of them ends.
    Contested(Vec<(NodeName, Era)>),
}

/// Decides for a node in epoch `own`. `was_quorate`: this daemon has been in contact with a majority of it.
pub fn stand(own: (Era, &Lineage), was_quorate: bool, said: &[Said]) -> Stand {
    let related = |s: &Said| relation(own, (s.era, &s.lineage));
    let lives = was_quorate || said.iter().any(|s| related(s) == Relation::Same && s.quorate);
    let newer = said.iter().filter(|s| related(s) == Relation::Newer);
    // One that can let this node in at once, and of several epochs in a row the last.
    let best = newer.max_by_key(|s| (s.era.number(), s.quorate));
    match best {
        Some(best) if !lives => Stand::Yield(best.node.clone()),
        _ => {
            let goes_on = |s: &&Said| match related(s) {
                Relation::Newer | Relation::Rival => true,
                // Without a majority it gives way by itself.
                Relation::Older => s.quorate,
                Relation::Same => false,
            };
            let others = said.iter().filter(goes_on);
            let others: Vec<_> = others.map(|s| (s.node.clone(), s.era)).collect();
            if others.is_empty() { Stand::Stay } else { Stand::Contested(others) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Succession;

    fn line(eras: &[Era]) -> Lineage {
        let began = |era: &Era| Succession {
            era: *era,
            base: 1,
            survivor: "n1".parse().unwrap(),
            off: vec![],
            by: "root@pam".into(),
            at_ms: 0,
        };
        Lineage(eras.iter().map(began).collect())
    }

    fn said(node: &str, eras: &[Era], quorate: bool) -> Said {
        let lineage = line(eras);
        Said { node: node.parse().unwrap(), era: lineage.era(), lineage, quorate }
    }

    fn first() -> Lineage {
        Lineage::default()
    }

    #[test]
    fn who_comes_back_without_a_majority_yields() {
        let (own, second) = (first(), Era::FIRST.next(5));
        let newer = said("n1", &[second], true);
        let old = said("n3", &[], false);
        let yields = Stand::Yield("n1".parse().unwrap());
        assert_eq!(stand((Era::FIRST, &own), false, &[newer.clone(), old.clone()]), yields);
        assert_eq!(stand((Era::FIRST, &own), false, &[old]), Stand::Stay);
        // Over two epochs at once, to the later one.
        let third = said("n2", &[second, second.next(6)], false);
        assert_eq!(stand((Era::FIRST, &own), false, &[newer, third]), Stand::Yield("n2".parse().unwrap()),);
    }

    #[test]
    fn a_majority_of_the_old_epoch_never_yields_by_itself() {
        let (own, second) = (first(), Era::FIRST.next(5));
        let newer = said("n1", &[second], true);
        let contested = Stand::Contested(vec![("n1".parse().unwrap(), second)]);
        assert_eq!(stand((Era::FIRST, &own), true, &[newer.clone()]), contested);
        // This node has only just started, but the majority is there.
        let old = said("n3", &[], true);
        assert_eq!(stand((Era::FIRST, &own), false, &[newer, old]), contested);
    }

    #[test]
    fn a_survivor_stays_and_two_survivors_contest() {
        let (second, rival) = (Era::FIRST.next(5), Era::FIRST.next(6));
        let own = line(&[second]);
        assert_eq!(stand((second, &own), true, &[said("n2", &[], false)]), Stand::Stay, "older ones come");
        // The others were on.
        let contested = Stand::Contested(vec![("n2".parse().unwrap(), Era::FIRST)]);
        assert_eq!(stand((second, &own), false, &[said("n2", &[], true)]), contested);
        let other = said("n2", &[rival], true);
        let contested = Stand::Contested(vec![("n2".parse().unwrap(), rival)]);
        assert_eq!(stand((second, &own), false, &[other]), contested);
    }
}
