//! What reaches beyond one node's use cases: who is in the cluster, and power over the host.
//!
//! Joining ends the node's own configuration and takes over another's, and the host belongs to the operating
//! system; so both are done by the daemon around the use cases.

use crate::links::LinkWish;
use crate::{Actor, OpsError};
use async_trait::async_trait;
use serde_json::Value;
use stead_model::{NodeName, Upid};

/// What a node needs to join a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// A member's address, with its port where it is not the usual one.
    pub hostname: String,
    /// SHA-256 of that member's certificate, in hexadecimal with colons.
    pub fingerprint: String,
    /// root@pam's password there, or a one-time token.
    pub password: String,
    /// Join although guests or an earlier cluster are here.
    pub force: bool,
    /// This node's links.
    pub links: LinkWish,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

/// What to do with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPower {
    /// Start it anew.
    Reboot,
    /// Switch it off.
    Shutdown,
}

/// The daemon around the use cases.
#[async_trait]
pub trait Admin: Send + Sync {
    /// Gives the node's own cluster of one a name, so that others can join, and this node its links.
    async fn create_cluster(&self, actor: &Actor, name: &str, links: LinkWish) -> Result<Upid, OpsError>;
    /// What others need to join by `node`, or by this one: its address and fingerprint, and, if asked for, a one-time
    /// token.
    async fn join_information(
        &self,
        actor: &Actor,
        node: Option<&NodeName>,
        with_token: bool,
    ) -> Result<Value, OpsError>;
    /// Joins a cluster.
    async fn join_cluster(&self, actor: &Actor, request: JoinRequest) -> Result<Upid, OpsError>;
    /// Removes a member that is gone for good, or takes this node out of its cluster. Its guests must have been
    /// moved away or recovered.
    async fn remove_node(&self, actor: &Actor, node: &NodeName) -> Result<(), OpsError>;
    /// Power over the host; refused where the package has not armed it.
    async fn host_power(&self, actor: &Actor, what: HostPower) -> Result<(), OpsError>;
}
