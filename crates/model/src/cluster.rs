//! The cluster and its nodes, as recorded in the configuration.

use crate::era::Lineage;
use crate::link::Links;
use crate::{BootId, Epoch, NodeName, NodeUuid, RaftId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// The cluster itself, at [`crate::paths::CLUSTER`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// The name shown to users.
    pub name: String,
    /// Distinguishes this cluster from any other, also on shared storage.
    pub uuid: String,
    /// Raised when a majority was given up for lost by the operator's word.
    pub epoch: Epoch,
    /// Times of leases and fencing.
    #[serde(default)]
    pub profile: FenceProfile,
    /// The profile that was in force before, while leases granted by it may be alive. Until the leader has taken it
    /// out, the profile is not changed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_profile: Option<FenceProfile>,
    /// How the cluster epochs after the first began; the last of them is the present one, as `epoch` numbers it.
    #[serde(default, skip_serializing_if = "Lineage::is_empty")]
    pub lineage: Lineage,
}

impl ClusterRecord {
    /// How often a node asks for its lease: while the profile changes as the quicker of the two wants it.
    pub fn heartbeat(&self) -> Duration {
        self.previous_profile
            .map_or(self.profile.heartbeat(), |p| p.heartbeat().min(self.profile.heartbeat()))
    }
}

/// A node, at [`crate::paths::node`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// Its identity.
    pub uuid: NodeUuid,
    /// Its number in Raft.
    pub raft_id: RaftId,
    /// Where its one TLS port is: link 0.
    pub addr: SocketAddr,
    /// Its further links: other addresses at which the same port answers.
    #[serde(default, skip_serializing_if = "Links::is_empty")]
    pub links: Links,
    /// Whether it takes part.
    pub state: NodeState,
    /// The daemon's version, for the limit on how far versions may be apart.
    #[serde(default)]
    pub version: String,
    /// It votes and keeps the configuration, and runs no guests: it needs no lease and is never lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub witness: bool,
    /// The last boot of it that its fence devices have confirmed to be off. That stays true whatever comes after, since it
    /// is of that boot alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off: Option<PoweredOff>,
    /// The boot whose daemon is, or was last, started anew on purpose: it may hold a restart lease. Taken out once its fence
    /// process holds to an ordinary lease again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<BootId>,
}

impl NodeRecord {
    /// Whether the boot by which it is, or was last, a member may hold a restart lease.
    pub fn may_restart(&self) -> bool {
        self.restart.as_ref() == Some(self.state.boot())
    }

    /// Whether the boot by which it was last a member is confirmed off, and it has not entered again.
    pub fn is_off(&self) -> bool {
        self.state.is_lost() && self.off.as_ref().is_some_and(|off| off.boot == *self.state.boot())
    }
}

/// A node's power is off, by the word of all of its fence devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoweredOff {
    /// The boot that ended by it, or had ended before.
    pub boot: BootId,
    /// The devices, in their order.
    pub devices: String,
    /// Milliseconds from the order to the confirmation.
    pub took_ms: u64,
}

/// Whether a node takes part. *Lost is sticky*: once committed, the node gets no lease until it has come back
/// by a commit of its own, with a new boot id or after it has destroyed what it no longer owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "is")]
pub enum NodeState {
    /// It takes part; `boot` is the boot that entered.
    Member {
        /// The boot that entered or re-entered.
        boot: BootId,
    },
    /// Its lease ran out and the fence time has passed: its guests may be recovered elsewhere.
    Lost {
        /// The boot that was lost.
        boot: BootId,
    },
}

impl NodeState {
    /// The boot concerned.
    pub fn boot(&self) -> &BootId {
        match self {
            Self::Member { boot } | Self::Lost { boot } => boot,
        }
    }

    /// Whether the node was committed lost.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// A named set of times for leases and fencing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FenceProfile {
    /// A quiet local network.
    Fast,
    /// Most clusters.
    #[default]
    Default,
    /// Links of 50 ms and more.
    Wan,
}

/// No profile has that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no fence profile: it must be fast, default or wan")]
pub struct NoProfile(pub String);

impl std::str::FromStr for FenceProfile {
    type Err = NoProfile;

    fn from_str(text: &str) -> Result<Self, NoProfile> {
        let named = Self::ALL.into_iter().find(|p| p.name() == text);
        named.ok_or_else(|| NoProfile(text.to_owned()))
    }
}

impl std::fmt::Display for FenceProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FenceProfile {
    /// Every profile, the quickest first.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Default, Self::Wan];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Default => "default",
            Self::Wan => "wan",
        }
    }

    /// How often a node asks for its lease.
    pub fn heartbeat(self) -> Duration {
        Duration::from_millis(match self {
            Self::Fast => 200,
            Self::Default => 500,
            Self::Wan => 2000,
        })
    }

    /// L: how long a lease lasts, from the sending of the heartbeat.
    pub fn lease(self) -> Duration {
        Duration::from_millis(match self {
            Self::Fast => 1500,
            Self::Default => 4000,
            Self::Wan => 20_000,
        })
    }

    /// D: after L, how long the fence process may take to verify that every guest is safe.
    pub fn drain(self) -> Duration {
        Duration::from_millis(match self {
            Self::Fast => 500,
            Self::Default => 1000,
            Self::Wan => 5000,
        })
    }

    /// W: after L + D, by when the watchdog has reset a machine that did not reset itself.
    pub fn watchdog(self) -> Duration {
        Duration::from_millis(match self {
            Self::Fast => 1000,
            Self::Default => 2000,
            Self::Wan => 5000,
        })
    }

    /// L + D + W with 1 % for clocks that drift: the time after which a silent node's guests are safe.
    pub fn fence_time(self) -> Duration {
        (self.lease() + self.drain() + self.watchdog()) * 101 / 100
    }
}
