//! How votes lie over failure domains: sites first, racks second.
//!
//! The measure is the sum of squares of the domains' votes. It is least where votes are spread as evenly as the nodes allow,
//! so that no domain has more of them than it must. Domains lie within one another, and a square grows faster the larger it is: a set
//! of voters that no exchange of *one* of them makes better is the best of all. So one exchange after another ends there.

use std::collections::BTreeMap;
use stead_model::{DomainName, NodeName, NodeRecord, Place, RaftId};

/// How far votes are from being spread. Less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unevenness {
    sites: usize,
    racks: usize,
}

/// Where each member stands. Those of which nothing is said stand together.
#[derive(Debug, Clone)]
pub struct Domains(BTreeMap<RaftId, Place>);

impl Domains {
    /// Of these nodes.
    pub fn new(nodes: &[NodeRecord], places: &BTreeMap<NodeName, Place>) -> Self {
        let place = |n: &NodeRecord| (n.raft_id, places.get(&n.name).cloned().unwrap_or_default());
        Self(nodes.iter().map(place).collect())
    }

    fn of(&self, id: RaftId) -> (Option<&DomainName>, Option<&DomainName>) {
        self.0.get(&id).map_or((None, None), |p| (p.site.as_ref(), p.rack.as_ref()))
    }

    /// How these would be spread.
    pub fn unevenness(&self, voters: impl IntoIterator<Item = RaftId>) -> Unevenness {
        let (mut sites, mut racks) = (BTreeMap::<_, usize>::new(), BTreeMap::<_, usize>::new());
        for place in voters.into_iter().map(|id| self.of(id)) {
            *sites.entry(place.0).or_default() += 1;
            *racks.entry(place).or_default() += 1;
        }
        let squares = |n: &usize| n * n;
        Unevenness { sites: sites.values().map(squares).sum(), racks: racks.values().map(squares).sum() }
    }

    /// How the votes lie: by site where members stand at several, else by rack. None where all stand together.
    pub fn outlook(&self, voters: &[RaftId]) -> Option<Outlook> {
        let differ = |of: fn(&Place) -> &Option<DomainName>| {
            let mut all = self.0.values().map(of);
            all.next().is_some_and(|first| all.any(|other| other != first))
        };
        let sites = differ(|p| &p.site);
        if !sites && !differ(|p| &p.rack) {
            return None;
        }
        let mut votes = BTreeMap::<Option<DomainName>, usize>::new();
        for place in self.0.values() {
            votes.entry(if sites { &place.site } else { &place.rack }.clone()).or_default();
        }
        for id in voters {
            let (site, rack) = self.of(*id);
            *votes.entry(if sites { site } else { rack }.cloned()).or_default() += 1;
        }
        Some(Outlook { level: if sites { "site" } else { "rack" }, votes })
    }
}

/// How the votes lie over the domains of one level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    level: &'static str,
    votes: BTreeMap<Option<DomainName>, usize>,
}

impl Outlook {
    /// Domains whose loss leaves no majority.
    fn decisive(&self) -> impl Iterator<Item = &Option<DomainName>> {
        let all: usize = self.votes.values().sum();
        self.votes.iter().filter(move |(_, n)| (all - **n) * 2 <= all).map(|(name, _)| name)
    }
}

fn named(name: Option<&DomainName>, level: &str) -> String {
    name.map_or_else(|| format!("no {level}"), |name| format!("'{name}'"))
}

impl std::fmt::Display for Outlook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = self.level;
        let lie: Vec<String> =
            self.votes.iter().map(|(name, n)| format!("{} {n}", named(name.as_ref(), level))).collect();
        write!(f, "votes by {level}: {}; ", lie.join(", "))?;
        let decisive: Vec<String> = self.decisive().map(|name| named(name.as_ref(), level)).collect();
        if decisive.is_empty() {
            return write!(f, "with all of them on, a majority is left whichever {level} is lost");
        }
        write!(f, "no majority is left when {} is lost", decisive.join(" or "))?;
        match self.votes.len() {
            2 => write!(f, ": a node or a witness at a third {level} would change that"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(places: &[(&str, &str)]) -> Domains {
        let name = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        let place = |(site, rack): &(&str, &str)| Place { site: name(site), rack: name(rack) };
        Domains((1..).map(RaftId).zip(places.iter().map(place)).collect())
    }

    fn told(places: &[(&str, &str)], voters: &[u64]) -> Option<String> {
        let voters: Vec<RaftId> = voters.iter().copied().map(RaftId).collect();
        domains(places).outlook(&voters).map(|o| o.to_string())
    }

    #[test]
    fn the_domain_is_named_without_which_nothing_is_decided() {
        assert_eq!(told(&[("", ""), ("", "")], &[1, 2]), None);
        assert_eq!(told(&[("a", "1"), ("a", "1")], &[1, 2]), None, "they stand together");
        let two = [("a", ""), ("a", ""), ("b", "")];
        assert_eq!(
            told(&two, &[1, 2, 3]).unwrap(),
            "votes by site: 'a' 2, 'b' 1; no majority is left when 'a' is lost: a node or a witness at a third site would \
             change that"
        );
        let three = [("a", "1"), ("", "1"), ("b", "1")];
        assert_eq!(
            told(&three, &[1, 2, 3]).unwrap(),
            "votes by site: no site 1, 'a' 1, 'b' 1; with all of them on, a majority is left whichever site is lost"
        );
        let racks = [("a", "1"), ("a", "2"), ("a", "3"), ("a", "3")];
        assert_eq!(
            told(&racks, &[1, 3, 4]).unwrap(),
            "votes by rack: '1' 1, '2' 0, '3' 2; no majority is left when '3' is lost"
        );
        assert!(told(&[("a", ""), ("b", "")], &[1, 2]).unwrap().contains("when 'a' or 'b' is lost"));
    }

    #[test]
    fn a_rack_is_a_rack_of_its_site() {
        let of = |places: &[(&str, &str)]| domains(places).unevenness((1..=2).map(RaftId));
        assert_eq!(of(&[("a", "1"), ("b", "1")]), Unevenness { sites: 2, racks: 2 });
        assert_eq!(of(&[("a", "1"), ("a", "1")]), Unevenness { sites: 4, racks: 4 });
        assert!(of(&[("a", "1"), ("b", "1")]) < of(&[("a", "1"), ("a", "2")]), "sites come first");
    }
}
