//! A node's links: the networks over which the other nodes reach it.
//!
//! Link 0 is the address that every node has. Up to seven more may lie on networks that fail apart from it, so that a
//! dead switch costs nothing. They answer at the same port. As with corosync's, a link's number says which network it
//! is: link 1 of one node reaches link 1 of another.

use crate::{NodeName, NodeRecord, PropertyString};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// The highest number of a link.
pub const MAX_LINK: u8 = 7;

/// Links beside link 0, by number: 1 to [`MAX_LINK`].
pub type Links = BTreeMap<u8, IpAddr>;

/// Links that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLink {
    /// The text of one.
    #[error("'{0}' is no link: expected an IP address, e.g. link1=10.0.1.11")]
    Text(String),
    /// Order among links.
    #[error("links are tried in the order of their numbers; leave the priority out")]
    Priority,
    /// A number that no further link has.
    #[error("link {0} cannot be given: further links have the numbers 1 to {MAX_LINK}")]
    Number(u8),
    /// An address that leads nowhere.
    #[error("link {number} cannot have the address {addr}: {why}")]
    Address {
        /// Which link.
        number: u8,
        /// Its address.
        addr: IpAddr,
        /// Why.
        why: &'static str,
    },
    /// Two links on one address.
    #[error(
        "links {first} and {second} have the same address {addr}: give each its own, on a network of its own"
    )]
    Twice {
        /// One.
        first: u8,
        /// The other.
        second: u8,
        /// Their address.
        addr: IpAddr,
    },
    /// It belongs to another node.
    #[error("link {number} cannot have the address {addr}: node '{node}' has it")]
    Taken {
        /// Which link.
        number: u8,
        /// Its address.
        addr: IpAddr,
        /// Whose it is.
        node: NodeName,
    },
}

/// Reads the value of `link[n]`: `[address=]IP[,priority=N]`.
///
/// # Errors
/// If it is no IP address, or names a priority other than 0.
pub fn parse(text: &str) -> Result<IpAddr, BadLink> {
    let bad = || BadLink::Text(text.to_owned());
    let parts: PropertyString = text.parse().map_err(|_| bad())?;
    let known = |key: Option<&str>| matches!(key, None | Some("address" | "priority"));
    if !parts.iter().all(|(key, _)| known(key)) {
        return Err(bad());
    }
    if parts.get("priority").is_some_and(|p| p != "0") {
        return Err(BadLink::Priority);
    }
    let ip: Option<IpAddr> = parts.get_default("address").and_then(|a| a.parse().ok());
    ip.map(|ip| ip.to_canonical()).ok_or_else(bad)
}

/// Checks the links of a node that has `addr` as link 0, beside the other nodes.
///
/// # Errors
/// The first link that can't be, and why.
pub fn check<'a>(
    addr: SocketAddr,
    links: &Links,
    others: impl IntoIterator<Item = (&'a NodeName, Vec<SocketAddr>)>,
) -> Result<(), BadLink> {
    let mut seen = BTreeMap::from([(addr.ip().to_canonical(), 0)]);
    for (&number, &ip) in links {
        if !(1..=MAX_LINK).contains(&number) {
            return Err(BadLink::Number(number));
        }
        let refuse = |why| Err(BadLink::Address { number, addr: ip, why });
        if ip != ip.to_canonical() {
            return refuse("it is an IPv4 address in the clothes of IPv6: write it as such");
        }
        if leads_nowhere(ip) {
            return refuse("it is no address that others could reach this node by");
        }
        if ip.is_loopback() != addr.ip().is_loopback() {
            return refuse("loopback addresses and others do not go together");
        }
        if let Some(first) = seen.insert(ip, number) {
            return Err(BadLink::Twice { first, second: number, addr: ip });
        }
    }
    for (node, theirs) in others {
        let theirs: BTreeSet<SocketAddr> = theirs.into_iter().collect();
        if let Some((&number, &ip)) =
            links.iter().find(|(_, ip)| theirs.contains(&SocketAddr::new(**ip, addr.port())))
        {
            return Err(BadLink::Taken { number, addr: ip, node: node.clone() });
        }
    }
    Ok(())
}

/// Whether nobody can be reached by an address, or not without saying by which of one's own networks.
fn leads_nowhere(ip: IpAddr) -> bool {
    let scoped = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let everybody = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    ip.is_unspecified() || ip.is_multicast() || everybody || scoped
}

impl NodeRecord {
    /// Its links with their addresses, link 0 first.
    pub fn links(&self) -> impl Iterator<Item = (u8, SocketAddr)> {
        let more = self.links.iter().map(|(n, ip)| (*n, SocketAddr::new(*ip, self.addr.port())));
        std::iter::once((0, self.addr)).chain(more)
    }

    /// Where its port answers, link 0 first.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.links().map(|(_, addr)| addr).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_an_address_and_nothing_else() {
        let ip: IpAddr = "10.1.0.11".parse().unwrap();
        for text in ["10.1.0.11", "address=10.1.0.11", "10.1.0.11,priority=0"] {
            assert_eq!(parse(text), Ok(ip), "{text}");
        }
        assert_eq!(parse("::ffff:10.1.0.11"), Ok(ip));
        assert_eq!(parse("fd00::1"), Ok("fd00::1".parse().unwrap()));
        for text in ["", "n1", "10.1.0.11:8006", "10.1.0.11,port=1", "priority=0"] {
            assert_eq!(parse(text), Err(BadLink::Text(text.to_owned())), "{text}");
        }
        assert_eq!(parse("10.1.0.11,priority=5"), Err(BadLink::Priority));
    }

    fn checked(links: &[(u8, &str)]) -> Result<(), String> {
        let other: NodeName = "n2".parse().unwrap();
        let theirs = vec!["10.0.0.12:8006".parse().unwrap(), "10.1.0.12:8006".parse().unwrap()];
        let links = links.iter().map(|(n, ip)| (*n, ip.parse().unwrap())).collect();
        check("10.0.0.11:8006".parse().unwrap(), &links, [(&other, theirs)]).map_err(|e| e.to_string())
    }

    #[test]
    fn each_link_has_an_address_of_its_own() {
        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&[(1, "10.1.0.11"), (7, "fd00::11")]), Ok(()));
        for nowhere in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "fe80::1", "::", "::ffff:10.0.0.12"] {
            assert!(checked(&[(1, nowhere)]).is_err(), "{nowhere}");
        }
        let bad: [&[(u8, &str)]; 7] = [
            &[(0, "10.1.0.11")],
            &[(8, "10.1.0.11")],
            &[(1, "0.0.0.0")],
            &[(1, "127.0.0.1")],
            &[(1, "10.0.0.11")],
            &[(1, "10.1.0.11"), (2, "10.1.0.11")],
            &[(1, "10.1.0.12")],
        ];
        let words = bad.map(|links| checked(links).unwrap_err()).join("\n");
        assert_eq!(
            words,
            "link 0 cannot be given: further links have the numbers 1 to 7\n\
             link 8 cannot be given: further links have the numbers 1 to 7\n\
             link 1 cannot have the address 0.0.0.0: it is no address that others could reach this node by\n\
             link 1 cannot have the address 127.0.0.1: loopback addresses and others do not go together\n\
             links 0 and 1 have the same address 10.0.0.11: give each its own, on a network of its own\n\
             links 1 and 2 have the same address 10.1.0.11: give each its own, on a network of its own\n\
             link 1 cannot have the address 10.1.0.12: node 'n2' has it"
        );
    }
}
