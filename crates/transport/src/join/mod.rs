//! Joining a cluster, as a protocol: what is said, and the joining node's half.
//!
//! ```text
//!  new node                                   member (any)
//!     │ JoinInfo: addresses, fingerprint, cluster   (copied by the administrator)
//!     │──── TLS, certificate pinned ────────────►│
//!     │──── password → ticket, or one-time token ►│
//!     │──── JoinRequest: CSR, name, VMIDs, clock ►│ vet_join, then commit
//!     │◄─── JoinAnswer: certificate, CA, members ─│
//!     │ checked against what was asked
//! ```
//!
//! The node's key is made by the node and never leaves it. What a member may refuse, and why, is [`JoinRefusal`];
//! it travels as JSON, so that the joining side can say the same words.

mod client;
mod info;
mod vet;

pub use client::{JoinAuth, JoinClient, JoinError};
pub use info::{Admits, BadJoinInfo, JoinInfo, JoinToken, TokenRecord};
pub use vet::{ClusterFacts, JoinRefusal, MAX_CLOCK_OFFSET, refusal_response, vet_join};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use stead_model::link::Links;
use stead_model::{Era, NodeName, NodeUuid, RaftId, StorageId, Vmid};

/// Where a member takes join requests, on its public side. `POST`, JSON. The asker shows a root's ticket (cookie
/// and CSRF header, as for any call of the API) or `Authorization: SteadJoin TOKEN`.
pub const JOIN_PATH: &str = "/stead/v1/join";
/// The scheme of the `Authorization` header that carries a one-time token.
pub const TOKEN_SCHEME: &str = "SteadJoin";
/// The version of the messages below; a member refuses any other.
pub const JOIN_PROTOCOL: u32 = 1;

/// What a node says to be let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// [`JOIN_PROTOCOL`].
    pub protocol: u32,
    /// Its name.
    pub name: NodeName,
    /// Its identity.
    pub uuid: NodeUuid,
    /// Its signing request, PEM.
    pub csr: String,
    /// Where its TLS port can be reached by all members.
    pub addr: SocketAddr,
    /// Its further links.
    #[serde(default, skip_serializing_if = "Links::is_empty")]
    pub links: Links,
    /// Further addresses that its certificate shall name.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Its version of Stead.
    pub version: String,
    /// The highest feature level it understands.
    pub feature_level: u32,
    /// The guests that it brings.
    #[serde(default)]
    pub vmids: Vec<Vmid>,
    /// The storages that these guests use.
    #[serde(default)]
    pub storages: Vec<JoinStorage>,
    /// It is to be a witness: a vote, without guests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub witness: bool,
    /// Its clock when this was sent, in milliseconds since 1970.
    pub wall_clock_ms: u64,
}

/// A storage that guests of the joining node use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinStorage {
    /// Its name.
    pub id: StorageId,
    /// Its type.
    pub kind: String,
    /// Its options, as in `storage.cfg`.
    pub options: BTreeMap<String, String>,
    /// Which guests use it, for people.
    pub vmids: Vec<Vmid>,
}

/// A member, as the joining node must know it to take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its identity.
    pub uuid: NodeUuid,
    /// Its number in Raft.
    pub raft_id: RaftId,
    /// Where its TLS port is.
    pub addr: SocketAddr,
    /// Its further links.
    #[serde(default, skip_serializing_if = "Links::is_empty")]
    pub links: Links,
}

/// What a node gets when it is let in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// Its certificate, PEM.
    pub cert: String,
    /// The cluster's CA certificate, PEM.
    pub ca: String,
    /// The cluster's name.
    pub cluster_name: String,
    /// The cluster's identity.
    pub cluster_uuid: String,
    /// The key that the cluster's secrets are sealed with, base64. Secret.
    pub seal_key: String,
    /// The node's number in Raft, never used before.
    pub raft_id: RaftId,
    /// All members, the new one included.
    pub members: Vec<Member>,
    /// The cluster epoch.
    #[serde(default)]
    pub era: Era,
}

impl std::fmt::Debug for JoinAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinAnswer")
            .field("cluster", &self.cluster_name)
            .field("raft_id", &self.raft_id)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}
