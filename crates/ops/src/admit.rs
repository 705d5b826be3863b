//! A member prepares to let one node in, by name: `pvecm addnode` as clients know it.
//!
//! Proxmox VE answers with corosync's configuration and key. There is no corosync here, and a node's keys are given out
//! only to the node itself, when it joins; so what is prepared is a one-time token that lets in that node alone.

use crate::{Actor, Ops, OpsError};
use serde::Serialize;
use std::net::IpAddr;
use stead_api_derive::Schema;
use stead_model::link::Links;
use stead_model::{NodeName, NodeRecord};
use stead_transport::JoinInfo;
use stead_transport::join::Admits;

/// The node that is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its name.
    pub node: NodeName,
    /// Where it will join from; none: from anywhere.
    pub ip: Option<IpAddr>,
    /// A node of that name may be in the cluster still, if it is removed before the new one joins.
    pub force: bool,
    /// The links that it is to have.
    pub links: Links,
}

/// What the node to be added needs. Contains a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct Admission {
    /// What to look after before it can join.
    pub warnings: Vec<String>,
    /// Lets that node in, once, within an hour.
    pub token: String,
    /// The member's address and fingerprint with the token, as one string.
    pub information: String,
    /// To be run on the node to be added.
    pub command: String,
}

impl Ops {
    /// Makes a one-time token that lets in one node alone, by this member.
    pub async fn expect_node(&self, actor: &Actor, expected: Expected) -> Result<Admission, OpsError> {
        let warnings = concerns(&expected, &self.node_records())?;
        let cluster = self.cluster_record()?.value;
        let Expected { node, ip, links, .. } = expected;
        let token = self.make_join_token(actor, Some(Admits { node, ip })).await?;
        let info = JoinInfo {
            v: 1,
            addrs: vec![self.me.addr],
            fingerprint: self.host.fingerprint(),
            cluster: cluster.name,
            uuid: cluster.uuid,
            token: Some(token.clone()),
        };
        let information = info.to_string();
        let mut command = format!("stead cluster join {information}");
        for (number, addr) in links {
            command += &format!(" --link {number}={addr}");
        }
        Ok(Admission { warnings, token, command, information })
    }
}

/// What speaks against a node: an error, or with `force` a warning.
fn concerns(expected: &Expected, members: &[NodeRecord]) -> Result<Vec<String>, OpsError> {
    let mut warnings = vec![];
    if members.iter().any(|m| m.name == expected.node) {
        let why = format!("a node named '{}' is in the cluster already", expected.node);
        if !expected.force {
            return Err(OpsError::failed(format!(
                "{why}: give the new one another name, or remove the old one with 'stead cluster remove {}'",
                expected.node
            )));
        }
        warnings.push(format!("{why}: the new one can join only once that one is removed"));
    }
    if let Some(other) = expected.ip.and_then(|ip| members.iter().find(|m| m.addr.ip() == ip)) {
        warnings.push(format!(
            "node '{}' has the address {}: the new one needs another port there",
            other.name,
            other.addr.ip()
        ));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::{NodeState, RaftId};

    fn member(name: &str, addr: &str) -> NodeRecord {
        let id = "22222222-2222-4222-8222-222222222222";
        NodeRecord {
            name: name.parse().unwrap(),
            uuid: id.parse().unwrap(),
            raft_id: RaftId(1),
            addr: addr.parse().unwrap(),
            links: Links::new(),
            state: NodeState::Member { boot: id.parse().unwrap() },
            version: String::new(),
            witness: false,
            off: None,
            restart: None,
        }
    }

    #[test]
    fn a_name_that_is_taken_is_refused_and_with_force_warned_of() {
        let members = [member("n1", "192.0.2.1:8006")];
        let of = |node: &str, ip: Option<&str>, force| {
            let ip = ip.map(|i| i.parse().unwrap());
            let found =
                concerns(&Expected { node: node.parse().unwrap(), ip, force, links: Links::new() }, &members);
            found.map_err(|e| e.to_string())
        };
        assert_eq!(of("n2", None, false), Ok(vec![]));
        assert_eq!(of("n2", Some("192.0.2.2"), false), Ok(vec![]));
        assert_eq!(
            of("n1", None, false).unwrap_err(),
            "a node named 'n1' is in the cluster already: give the new one another name, or remove the old one with \
             'stead cluster remove n1'"
        );
        assert_eq!(
            of("n1", Some("192.0.2.1"), true).unwrap(),
            [
                "a node named 'n1' is in the cluster already: the new one can join only once that one is removed",
                "node 'n1' has the address 192.0.2.1: the new one needs another port there",
            ]
        );
    }
}
