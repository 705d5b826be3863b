//! The links of the nodes: giving a node more, and whether they answer.
//!
//! Only paths from and to the leader are watched, by heartbeats and Raft's streams, which pass there anyway: that costs nothing in a
//! large cluster, and a dead switch shows on all of them.

use crate::status::LinkReport;
use crate::store::{self, At};
use crate::{Actor, Ops, OpsError};
use serde::Serialize;
use std::cmp::Reverse;
use std::net::SocketAddr;
use stead_api_derive::Schema;
use stead_model::link::{self, BadLink, Links};
use stead_model::{NodeName, NodeRecord, paths};

/// Links to be given, as they are named: link 0 among them is only compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkWish(pub Links);

impl LinkWish {
    /// The further links, for a node that has `addr` as link 0.
    pub fn beside(&self, addr: SocketAddr) -> Result<Links, OpsError> {
        let mut links = self.0.clone();
        match links.remove(&0) {
            Some(ip) if ip != addr.ip() => Err(OpsError::invalid(
                "link0",
                format!(
                    "link 0 of this node is {}, where its daemon listens: to change it, start the daemon with another \
                     '--listen'",
                    addr.ip()
                ),
            )),
            _ => Ok(links),
        }
    }
}

/// A link of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct LinkStatus {
    /// The node.
    pub node: NodeName,
    /// The link's number.
    pub link: u8,
    /// Its address and port.
    pub address: String,
    /// Whether this node and the leader reach each other by it; of the leader, whether any node and it do. Not there where
    /// that is not known: the node is off, or the leader has no such link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<bool>,
    /// Since when, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

/// What is known of every link: whether the node and the leader reach each other by it, each in its own words. By the
/// leader's own, whether anybody does.
fn overview(
    nodes: &[NodeRecord],
    leader: Option<&NodeName>,
    reported: impl Fn(&NodeName) -> Vec<LinkReport>,
) -> Vec<LinkStatus> {
    let reports: Vec<(&NodeName, LinkReport)> =
        nodes.iter().flat_map(|n| reported(&n.name).into_iter().map(|r| (&n.name, r))).collect();
    // Both ways between a node and the leader; whoever knows of a silence is right.
    let path = |node: &NodeName, link: u8| {
        let of = |from: &NodeName, to: Option<&NodeName>| {
            reports.iter().find(|(f, r)| *f == from && Some(&r.to) == to && r.link == link).map(|(_, r)| r)
        };
        let both = [of(node, leader), leader.and_then(|l| of(l, Some(node)))];
        both.into_iter()
            .flatten()
            .map(|r| (r.answers, r.since))
            .min_by_key(|(answers, since)| (*answers, Reverse(*since)))
    };
    let status = |node: &NodeRecord, link: u8, addr: SocketAddr| {
        let known = if leader == Some(&node.name) {
            let others = nodes.iter().filter(|n| n.name != node.name);
            others
                .filter_map(|n| path(&n.name, link))
                .max_by_key(|(answers, since)| (*answers, Reverse(*since)))
        } else {
            path(&node.name, link)
        };
        LinkStatus {
            node: node.name.clone(),
            link,
            address: addr.to_string(),
            answers: known.map(|(answers, _)| answers),
            since: known.map(|(_, since)| since),
        }
    };
    nodes.iter().flat_map(|n| n.links().map(|(link, addr)| status(n, link, addr))).collect()
}

impl Ops {
    /// Every node's links, and whether they answer.
    pub fn links(&self) -> Vec<LinkStatus> {
        let nodes = self.node_records();
        let leads = self.conf.status().borrow().leader;
        let leader = nodes.iter().find(|n| Some(n.raft_id) == leads).map(|n| &n.name);
        overview(&nodes, leader, |node| self.status.node(node).map(|r| r.links).unwrap_or_default())
    }

    /// Gives a node further links, and takes those away that `delete` numbers. The node serves them from then on, and the
    /// others use them; link 0 stays as it is, so that no mistake cuts a node off.
    pub async fn set_links(
        &self,
        actor: &Actor,
        node: &NodeName,
        wish: &LinkWish,
        delete: &[u8],
    ) -> Result<(), OpsError> {
        if wish.0.is_empty() && delete.is_empty() {
            return Err(OpsError::invalid("link1", "name at least one link to set, or one to delete"));
        }
        let At { value: mut record, revision } =
            self.node_record(node).map_err(|e| OpsError::invalid("node", e.to_string()))?;
        for number in delete {
            if record.links.remove(number).is_none() {
                let why = format!("node '{node}' has no link {number} that could be taken away");
                return Err(OpsError::invalid("delete", why));
            }
        }
        record.links.extend(wish.beside(record.addr)?);
        let others = self.node_records();
        check(&record, &others)?;
        let mut txn = store::txn(&actor.who, format!("links of node '{node}' changed"));
        store::put_over(&mut txn, &paths::node(node), Some(revision), store::bytes(&record)?);
        self.conf.transact(txn).await?;
        Ok(())
    }
}

/// Checks a node's links beside those of the others.
pub(crate) fn check(record: &NodeRecord, nodes: &[NodeRecord]) -> Result<(), OpsError> {
    let others = nodes.iter().filter(|n| n.uuid != record.uuid).map(|n| (&n.name, n.addrs()));
    link::check(record.addr, &record.links, others).map_err(|e| {
        let number = match &e {
            BadLink::Number(n)
            | BadLink::Address { number: n, .. }
            | BadLink::Twice { second: n, .. }
            | BadLink::Taken { number: n, .. } => *n,
            BadLink::Text(_) | BadLink::Priority => 0,
        };
        OpsError::invalid(format!("link{number}"), e.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::{NodeState, RaftId};

    fn node(n: u8) -> NodeRecord {
        let id = format!("22222222-2222-4222-8222-{n:012}");
        NodeRecord {
            name: format!("n{n}").parse().unwrap(),
            uuid: id.parse().unwrap(),
            raft_id: RaftId(u64::from(n)),
            addr: SocketAddr::from(([192, 0, 2, n], 8006)),
            links: [(1, [198, 51, 100, n].into())].into(),
            state: NodeState::Member { boot: id.parse().unwrap() },
            version: String::new(),
            witness: false,
            off: None,
            restart: None,
        }
    }

    #[test]
    fn a_link_is_known_by_the_path_to_the_leader() {
        let nodes = [node(1), node(2), node(3), node(4)];
        let report =
            |to: &str, link, answers, since| LinkReport { to: to.parse().unwrap(), link, answers, since };
        let reported = |name: &NodeName| match name.as_str() {
            "n1" => vec![
                report("n2", 0, true, 1),
                report("n2", 1, true, 1),
                report("n3", 0, false, 11),
                report("n3", 1, true, 1),
            ],
            "n2" => vec![report("n1", 0, true, 5), report("n1", 1, true, 7)],
            "n3" => vec![report("n1", 0, true, 6), report("n1", 1, false, 9)],
            _ => vec![],
        };
        let known = |leader: Option<&NodeName>| -> Vec<String> {
            let shown = |s: LinkStatus| {
                let state = s.answers.map(|a| if a { "up" } else { "down" });
                format!("{} {} {} {:?}", s.node, s.link, state.unwrap_or("?"), s.since)
            };
            overview(&nodes, leader, reported).into_iter().map(shown).collect()
        };
        assert_eq!(
            known(Some(&nodes[0].name)),
            [
                "n1 0 up Some(5)",
                "n1 1 up Some(7)",
                "n2 0 up Some(5)",
                "n2 1 up Some(7)",
                "n3 0 down Some(11)",
                "n3 1 down Some(9)",
                "n4 0 ? None",
                "n4 1 ? None",
            ]
        );
        assert!(known(None)[0].ends_with("? None"));
    }

    #[test]
    fn link_0_may_be_named_as_it_is() {
        let addr = "192.0.2.1:8006".parse().unwrap();
        let wish = |ip: &str| LinkWish([(0, ip.parse().unwrap()), (1, [10, 0, 0, 1].into())].into());
        assert_eq!(wish("192.0.2.1").beside(addr).unwrap(), [(1, [10, 0, 0, 1].into())].into());
        let why = wish("192.0.2.9").beside(addr).unwrap_err().to_string();
        assert!(why.contains("--listen"), "{why}");
    }
}
