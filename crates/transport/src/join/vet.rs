//! Whether a node may join: pure, with the facts as arguments.

use super::{JOIN_PROTOCOL, JoinRequest};
use crate::Body;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use stead_model::{NodeName, NodeUuid, Vmid};

/// Clocks may differ by this much: tickets and logs need them close together.
pub const MAX_CLOCK_OFFSET: Duration = Duration::from_secs(30);
/// Minor versions may be so far apart while a cluster is upgraded.
const MAX_MINOR_APART: u64 = 1;

/// What the member that is asked knows.
#[derive(Debug)]
pub struct ClusterFacts<'a> {
    /// Its clock, in milliseconds since 1970.
    pub wall_clock_ms: u64,
    /// Its version of Stead.
    pub version: &'a str,
    /// The feature level that the cluster has committed.
    pub feature_level: u32,
    /// Whether a majority is in contact.
    pub quorate: bool,
    /// The members: name, identity, address.
    pub members: &'a [(NodeName, NodeUuid, Vec<SocketAddr>)],
    /// The guests' numbers.
    pub vmids: &'a BTreeSet<Vmid>,
}

/// Why a node is not let in, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum JoinRefusal {
    /// The messages are of another version.
    #[error("the node speaks join protocol {node}, the cluster {cluster}; bring both to the same version")]
    Protocol {
        /// The node's.
        node: u32,
        /// The cluster's.
        cluster: u32,
    },
    /// The daemons' versions are too far apart.
    #[error(
        "the node runs version {node}, the cluster {cluster}; they may be one minor version apart at most: \
         upgrade the older one first"
    )]
    Version {
        /// The node's.
        node: String,
        /// The cluster's.
        cluster: String,
    },
    /// The node does not understand what the cluster already uses.
    #[error(
        "the cluster uses feature level {cluster}, the node knows up to {node}; upgrade the node before it joins"
    )]
    FeatureLevel {
        /// The highest one the node knows.
        node: u32,
        /// The one in use.
        cluster: u32,
    },
    /// The clocks differ too much.
    #[error(
        "the node's clock is {} s {} the cluster's; set up time synchronisation on both (chrony) and try again",
        .ahead_ms.unsigned_abs().div_ceil(1000),
        if *.ahead_ms > 0 { "ahead of" } else { "behind" }
    )]
    Clock {
        /// By how much the node is ahead, in milliseconds.
        ahead_ms: i64,
    },
    /// A member has that name.
    #[error(
        "a node named '{name}' is already in the cluster; give this one another name, or remove the old one first \
         with 'stead cluster remove {name}'"
    )]
    Name {
        /// The name.
        name: NodeName,
    },
    /// The node is a member already.
    #[error("this node is already in the cluster, as '{name}'")]
    AlreadyIn {
        /// Under this name.
        name: NodeName,
    },
    /// A member has that address.
    #[error("node '{name}' has the address {addr} already; give this one another with '--listen'")]
    Address {
        /// The address.
        addr: SocketAddr,
        /// Whose it is.
        name: NodeName,
    },
    /// One of its further links can't be.
    #[error("{why}")]
    Link {
        /// Which, and why.
        why: String,
    },
    /// The members could not reach that address.
    #[error("the members cannot reach {addr}: {why}; name a reachable address with '--listen'")]
    Unreachable {
        /// The address.
        addr: SocketAddr,
        /// Why.
        why: String,
    },
    /// Guests of the node have numbers that are taken.
    #[error(
        "VMIDs exist on both sides: {}; move or rename these guests on the joining node first",
        .vmids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Vmids {
        /// Which, ascending.
        vmids: Vec<Vmid>,
    },
    /// The cluster can't decide anything now.
    #[error("the cluster has no quorum and cannot take a node in; bring its nodes back first")]
    NoQuorum,
    /// The signing request can't be honoured.
    #[error("{why}")]
    Request {
        /// Why.
        why: String,
    },
    /// The one-time token is unknown, used or too old.
    #[error(
        "the join token is not valid (any more); make a new one with 'stead cluster join-info --with-token' on a member"
    )]
    Token,
    /// The token was made for another node.
    #[error("the join token was made for another node than '{name}' at {addr}; make one for it on a member")]
    TokenForOther {
        /// Who has shown it.
        name: NodeName,
        /// From where.
        addr: SocketAddr,
    },
    /// Who asks may not.
    #[error("only root@pam may add a node to the cluster")]
    Permission,
}

/// Decides whether a node may join. Everything that can be known beforehand is checked here; the transaction
/// that lets it in checks name and VMIDs again.
pub fn vet_join(request: &JoinRequest, cluster: &ClusterFacts<'_>) -> Result<(), JoinRefusal> {
    if request.protocol != JOIN_PROTOCOL {
        return Err(JoinRefusal::Protocol { node: request.protocol, cluster: JOIN_PROTOCOL });
    }
    if !cluster.quorate {
        return Err(JoinRefusal::NoQuorum);
    }
    vet_versions(request, cluster)?;
    vet_clock(request.wall_clock_ms, cluster.wall_clock_ms)?;
    vet_place(request, cluster)?;
    let vmids: BTreeSet<Vmid> = request.vmids.iter().filter(|v| cluster.vmids.contains(v)).copied().collect();
    if vmids.is_empty() { Ok(()) } else { Err(JoinRefusal::Vmids { vmids: vmids.into_iter().collect() }) }
}

fn vet_versions(request: &JoinRequest, cluster: &ClusterFacts<'_>) -> Result<(), JoinRefusal> {
    let near = match (major_minor(&request.version), major_minor(cluster.version)) {
        (Some((a, b)), Some((x, y))) => a == x && b.abs_diff(y) <= MAX_MINOR_APART,
        _ => request.version == cluster.version,
    };
    if !near {
        let (node, cluster) = (request.version.clone(), cluster.version.to_owned());
        return Err(JoinRefusal::Version { node, cluster });
    }
    if request.feature_level < cluster.feature_level {
        let (node, cluster) = (request.feature_level, cluster.feature_level);
        return Err(JoinRefusal::FeatureLevel { node, cluster });
    }
    Ok(())
}

fn major_minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn vet_clock(node_ms: u64, cluster_ms: u64) -> Result<(), JoinRefusal> {
    let apart = i64::try_from(node_ms.abs_diff(cluster_ms)).unwrap_or(i64::MAX);
    if u128::from(apart.unsigned_abs()) <= MAX_CLOCK_OFFSET.as_millis() {
        return Ok(());
    }
    Err(JoinRefusal::Clock { ahead_ms: if node_ms > cluster_ms { apart } else { -apart } })
}

fn vet_place(request: &JoinRequest, cluster: &ClusterFacts<'_>) -> Result<(), JoinRefusal> {
    let addr = request.addr;
    let unreachable = |why: &str| Err(JoinRefusal::Unreachable { addr, why: why.to_owned() });
    for (name, uuid, theirs) in cluster.members {
        if *uuid == request.uuid {
            return Err(JoinRefusal::AlreadyIn { name: name.clone() });
        }
        if *name == request.name {
            return Err(JoinRefusal::Name { name: name.clone() });
        }
        if theirs.contains(&addr) {
            return Err(JoinRefusal::Address { addr, name: name.clone() });
        }
    }
    if addr.ip().is_unspecified() || addr.port() == 0 {
        return unreachable("it is no address that others could use");
    }
    if addr.ip().is_loopback()
        && cluster.members.iter().flat_map(|(_, _, a)| a).any(|a| !a.ip().is_loopback())
    {
        return unreachable("it is a loopback address, and there are members on other machines");
    }
    let others = cluster.members.iter().map(|(name, _, theirs)| (name, theirs.clone()));
    stead_model::link::check(addr, &request.links, others)
        .map_err(|e| JoinRefusal::Link { why: e.to_string() })
}

/// The answer with which a member refuses.
pub fn refusal_response(refusal: &JoinRefusal) -> Response<Body> {
    let status = match refusal {
        JoinRefusal::Token => StatusCode::UNAUTHORIZED,
        JoinRefusal::Permission | JoinRefusal::TokenForOther { .. } => StatusCode::FORBIDDEN,
        JoinRefusal::NoQuorum => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    };
    let body = serde_json::json!({ "message": refusal.to_string(), "refusal": refusal });
    let mut response = Response::new(crate::full(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_790_000_000_000;

    fn uuid(n: u32) -> NodeUuid {
        format!("7a3c1f52-8f0e-4d9b-9d5f-{n:012}").parse().unwrap()
    }

    fn request() -> JoinRequest {
        JoinRequest {
            protocol: JOIN_PROTOCOL,
            name: "pve3".parse().unwrap(),
            uuid: uuid(3),
            csr: String::new(),
            addr: "192.0.2.3:8006".parse().unwrap(),
            links: stead_model::link::Links::new(),
            ips: vec![],
            version: "1.4.2".into(),
            feature_level: 2,
            vmids: [300, 301].map(|v| Vmid::new(v).unwrap()).to_vec(),
            storages: vec![],
            witness: false,
            wall_clock_ms: NOW,
        }
    }

    /// Vets a request that `change` has made different from a good one.
    fn vet(change: impl FnOnce(&mut JoinRequest)) -> Result<(), JoinRefusal> {
        let members: Vec<_> = (1..3)
            .map(|n| {
                (
                    format!("pve{n}").parse().unwrap(),
                    uuid(n),
                    vec![format!("192.0.2.{n}:8006").parse().unwrap()],
                )
            })
            .collect();
        let facts = ClusterFacts {
            wall_clock_ms: NOW,
            version: "1.4.0",
            feature_level: 2,
            quorate: true,
            members: &members,
            vmids: &[100, 300].map(|v| Vmid::new(v).unwrap()).into(),
        };
        let mut r = request();
        r.vmids.clear();
        change(&mut r);
        vet_join(&r, &facts)
    }

    #[test]
    fn a_node_like_the_others_is_let_in() {
        assert_eq!(vet(|_| {}), Ok(()));
        assert_eq!(vet(|r| r.version = "1.5.0-rc1".into()), Ok(()));
        assert_eq!(vet(|r| r.wall_clock_ms = NOW - 30_000), Ok(()));
        assert_eq!(vet(|r| r.feature_level = 3), Ok(()));
        assert_eq!(vet(|r| r.addr = "192.0.2.1:8007".parse().unwrap()), Ok(()));
        assert_eq!(vet(|r| r.vmids = vec![Vmid::new(301).unwrap()]), Ok(()));
    }

    #[test]
    fn each_clash_has_its_own_refusal() {
        let refusals = [
            vet(|r| r.protocol = 2),
            vet(|r| r.version = "1.6.0".into()),
            vet(|r| r.version = "2.4.0".into()),
            vet(|r| r.version = "unknown".into()),
            vet(|r| r.feature_level = 1),
            vet(|r| r.wall_clock_ms = NOW + 30_001),
            vet(|r| r.wall_clock_ms = NOW - 3_600_000),
            vet(|r| r.name = "pve1".parse().unwrap()),
            vet(|r| r.uuid = uuid(2)),
            vet(|r| r.addr = "192.0.2.2:8006".parse().unwrap()),
            vet(|r| r.addr = "0.0.0.0:8006".parse().unwrap()),
            vet(|r| r.addr = "127.0.0.1:8006".parse().unwrap()),
            vet(|r| r.links = [(1, "192.0.2.2".parse().unwrap())].into()),
            vet(|r| r.vmids = [300, 100, 301, 300].map(|v| Vmid::new(v).unwrap()).to_vec()),
        ];
        let texts = refusals.map(|r| r.unwrap_err().to_string()).join("\n");
        assert_eq!(
            texts,
            "the node speaks join protocol 2, the cluster 1; bring both to the same version\n\
             the node runs version 1.6.0, the cluster 1.4.0; they may be one minor version apart at most: upgrade the older one first\n\
             the node runs version 2.4.0, the cluster 1.4.0; they may be one minor version apart at most: upgrade the older one first\n\
             the node runs version unknown, the cluster 1.4.0; they may be one minor version apart at most: upgrade the older one first\n\
             the cluster uses feature level 2, the node knows up to 1; upgrade the node before it joins\n\
             the node's clock is 31 s ahead of the cluster's; set up time synchronisation on both (chrony) and try again\n\
             the node's clock is 3600 s behind the cluster's; set up time synchronisation on both (chrony) and try again\n\
             a node named 'pve1' is already in the cluster; give this one another name, or remove the old one first with 'stead cluster remove pve1'\n\
             this node is already in the cluster, as 'pve2'\n\
             node 'pve2' has the address 192.0.2.2:8006 already; give this one another with '--listen'\n\
             the members cannot reach 0.0.0.0:8006: it is no address that others could use; name a reachable address with '--listen'\n\
             the members cannot reach 127.0.0.1:8006: it is a loopback address, and there are members on other machines; name a reachable address with '--listen'\n\
             link 1 cannot have the address 192.0.2.2: node 'pve2' has it\n\
             VMIDs exist on both sides: 100, 300; move or rename these guests on the joining node first"
        );
    }

    #[test]
    fn a_cluster_without_quorum_takes_nobody_in() {
        let facts = ClusterFacts {
            wall_clock_ms: NOW,
            version: "1.4.0",
            feature_level: 2,
            quorate: false,
            members: &[],
            vmids: &BTreeSet::new(),
        };
        assert_eq!(vet_join(&request(), &facts), Err(JoinRefusal::NoQuorum));
    }

    #[test]
    fn refusals_travel_whole() {
        let refusal = JoinRefusal::Vmids { vmids: vec![Vmid::new(100).unwrap()] };
        let text = serde_json::to_string(&refusal).unwrap();
        assert_eq!(text, r#"{"is":"vmids","vmids":[100]}"#);
        assert_eq!(serde_json::from_str::<JoinRefusal>(&text).unwrap(), refusal);
    }
}
