//! What some answers look like whose use cases give JSON rather than a type of their own. Tests hold real answers
//! against these, as against all others.

use serde_json::Value;
use stead_api_derive::Schema;
use stead_model::{NodeName, StorageId};

/// What a node needs to join by the member that is asked.
#[derive(Debug, Schema)]
pub struct JoinInformation {
    /// Changes with the members.
    pub config_digest: String,
    /// The member that is asked.
    pub preferred_node: NodeName,
    /// The members.
    pub nodelist: Vec<JoinMember>,
    /// What clients know of corosync's configuration.
    pub totem: Totem,
    /// Address and fingerprint in one string, to be copied.
    pub information: String,
    /// Lets one node in, once, within an hour; if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A member.
#[derive(Debug, Schema)]
pub struct JoinMember {
    /// Its name.
    pub name: NodeName,
    /// Its number.
    pub nodeid: u64,
    /// Its address.
    pub pve_addr: String,
    /// Its port.
    pub port: u16,
    /// SHA-256 of the certificate of the member that is asked; of others empty: ask them.
    pub pve_fp: String,
    /// 1.
    pub quorum_votes: u64,
    /// Its address.
    pub ring0_addr: String,
}

/// What clients know of corosync's configuration.
#[derive(Debug, Schema)]
pub struct Totem {
    /// The cluster's name.
    pub cluster_name: String,
    /// `2`.
    pub version: String,
}

/// What an entry of HA's status is about.
#[derive(Debug, Schema)]
#[serde(rename_all = "lowercase")]
pub enum HaEntryKind {
    /// The cluster's quorum.
    Quorum,
    /// The node whose manager decides.
    Master,
    /// A node's agent.
    Lrm,
    /// A guest under HA's care.
    Service,
    /// Whether HA is armed.
    Fencing,
}

/// An entry of HA's status.
#[derive(Debug, Schema)]
pub struct HaEntry {
    /// `quorum`, `master`, `lrm:NODE`, `service:SID`.
    pub id: String,
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: HaEntryKind,
    /// Where; empty where that is not known.
    pub node: String,
    /// For people.
    pub status: String,
    /// Of the quorum: a majority is in contact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quorate: Option<bool>,
    /// Of the quorum: the cluster survives the loss of any one node. Not there before that has been found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub survives: Option<bool>,
    /// Of the quorum: the same in one line, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlook: Option<String>,
    /// Of the master: seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Option<u64>>,
    /// Of a guest: its name under HA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// Of a guest: the manager's state of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Of a guest: the manager's state of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crm_state: Option<String>,
    /// Of a guest: what HA is asked to keep it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_state: Option<String>,
    /// Of a guest: tries on the same node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_restart: Option<u32>,
    /// Of a guest: tries on other nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_relocate: Option<u32>,
    /// Of a guest: the fence process guards it, so that it can be recovered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guarded: Option<bool>,
    /// Of a guest: why it is in that state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Option<String>>,
    /// Of a node's agent: what its fence devices did, or why they could not, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fenced: Option<String>,
    /// Of fencing: `armed`, `standby`, `disarming`, `disarmed`.
    #[serde(rename = "armed-state", skip_serializing_if = "Option::is_none")]
    pub armed_state: Option<String>,
    /// Of fencing: what becomes of resources while HA is disarmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_mode: Option<Option<String>>,
}

/// A guest under HA's care.
#[derive(Debug, Schema)]
pub struct HaResource {
    /// Its name under HA: `vm:100`.
    pub sid: String,
    /// `vm` or `ct`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What HA is asked to keep it in.
    pub state: String,
    /// A group of nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Tries on the same node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_restart: Option<u32>,
    /// Tries on other nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_relocate: Option<u32>,
    /// It goes back to a better node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failback: Option<u32>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// The file's version, of a resource that is asked for by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A storage's options; further ones by its type, as texts.
#[derive(Debug, Schema)]
pub struct StorageConfig {
    /// Its name.
    pub storage: StorageId,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it may hold, joined by commas.
    pub content: String,
    /// All nodes see the same.
    pub shared: bool,
    /// It is not used.
    pub disable: bool,
    /// The file's version.
    pub digest: String,
    /// Options by name.
    #[serde(flatten)]
    pub options: std::collections::BTreeMap<String, Value>,
}

/// A storage as a node sees it. Bytes.
#[derive(Debug, Schema)]
pub struct StorageState {
    /// Its name.
    pub storage: StorageId,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it may hold, joined by commas.
    pub content: String,
    /// All nodes see the same.
    pub shared: bool,
    /// The node uses it.
    pub enabled: bool,
    /// It answers.
    pub active: bool,
    /// In all.
    pub total: u64,
    /// Taken.
    pub used: u64,
    /// Not taken.
    pub avail: u64,
    /// Share of it that is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_fraction: Option<f64>,
    /// Formats of disks, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formats: Option<Formats>,
}

/// Formats of disks.
#[derive(Debug, Schema)]
pub struct Formats {
    /// The one that is taken unless another is named.
    pub default: String,
    /// All.
    pub supported: Vec<String>,
}

/// A volume's place and size. Bytes.
#[derive(Debug, Schema)]
pub struct VolumePlace {
    /// On the node.
    pub path: String,
    /// As a guest sees it.
    pub size: u64,
    /// On the storage.
    pub used: u64,
    /// How it is written.
    pub format: String,
}
