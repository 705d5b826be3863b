//! What nodes and the leader say to each other about leases. Versioned; JSON.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use stead_model::{BootId, FenceProfile, NodeName, NodeUuid};

/// The version of these messages that this program speaks.
pub const VERSION: u32 = 1;

/// A node asks for its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// [`VERSION`] of the sender.
    pub v: u32,
    /// Who asks. The receiver checks it against the peer's certificate.
    pub node: NodeName,
    /// Its identity; a namesake that was added anew has another.
    pub uuid: NodeUuid,
    /// Its boot.
    pub boot: BootId,
    /// From its live fence process, which noted the moment.
    pub nonce: u64,
    /// It asks for a restart lease ([`crate::RESTART_LEASE`]): its daemon is about to be started anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart: bool,
}

/// The leader's answer to one heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// [`VERSION`] of the sender.
    pub v: u32,
    /// The heartbeat's nonce.
    pub nonce: u64,
    /// What was decided.
    pub outcome: Outcome,
}

/// What was decided on a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Outcome {
    /// A lease, counted by the node from the moment of the nonce.
    Granted {
        /// L in milliseconds.
        lease_ms: u64,
        /// D in milliseconds.
        drain_ms: u64,
        /// W in milliseconds.
        watchdog_ms: u64,
    },
    /// No lease.
    Refused {
        /// Why not.
        reason: Refusal,
    },
}

impl Outcome {
    /// The grant of a profile.
    pub fn granted(profile: FenceProfile) -> Self {
        Self::granted_for(profile.lease(), profile)
    }

    /// The grant of another length, with the profile's D and W.
    pub fn granted_for(lease: Duration, profile: FenceProfile) -> Self {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Self::Granted {
            lease_ms: ms(lease),
            drain_ms: ms(profile.drain()),
            watchdog_ms: ms(profile.watchdog()),
        }
    }
}

/// Why a heartbeat got no lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Refusal {
    /// The receiver does not lead, or could not confirm that it does. Ask again, there or elsewhere.
    #[error("this node does not lead the cluster now")]
    NotLeader,
    /// A later heartbeat of the same node took this one's place.
    #[error("a later heartbeat took this one's place")]
    Superseded,
    /// No such node in the configuration.
    #[error("the cluster has no node of this name")]
    Unknown,
    /// The name belongs to another node.
    #[error("the cluster knows this name with another UUID")]
    WrongUuid,
    /// The node entered with another boot; it must enter again by a commit of its own.
    #[error("the node has entered with another boot ({entered}); it must enter again")]
    WrongBoot {
        /// The boot that entered.
        entered: BootId,
    },
    /// The node was committed lost, or is about to be; it must enter again by a commit of its own.
    #[error("the node was given up for lost; it must enter again")]
    Lost,
    /// The message is of a version that the receiver does not know.
    #[error("the leader knows heartbeats of version {known} only")]
    Version {
        /// What the receiver speaks.
        known: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is on the wire between mixed versions must not change by accident.
    #[test]
    fn golden() {
        let beat = Heartbeat {
            v: VERSION,
            node: "n1".parse().unwrap(),
            uuid: "11111111-1111-4111-8111-111111111111".parse().unwrap(),
            boot: "22222222-2222-4222-8222-222222222222".parse().unwrap(),
            nonce: 7,
            restart: false,
        };
        let text = r#"{"v":1,"node":"n1","uuid":"11111111-1111-4111-8111-111111111111","boot":"22222222-2222-4222-8222-222222222222","nonce":7}"#;
        assert_eq!(serde_json::to_string(&beat).unwrap(), text);
        assert_eq!(serde_json::from_str::<Heartbeat>(text).unwrap(), beat);
        let restart = Heartbeat { restart: true, ..beat };
        let text = text.replace('}', r#","restart":true}"#);
        assert_eq!(serde_json::to_string(&restart).unwrap(), text);
        assert_eq!(serde_json::from_str::<Heartbeat>(&text).unwrap(), restart);

        let yes = HeartbeatAnswer { v: VERSION, nonce: 7, outcome: Outcome::granted(FenceProfile::Default) };
        let text = r#"{"v":1,"nonce":7,"outcome":{"is":"granted","lease_ms":4000,"drain_ms":1000,"watchdog_ms":2000}}"#;
        assert_eq!(serde_json::to_string(&yes).unwrap(), text);
        assert_eq!(serde_json::from_str::<HeartbeatAnswer>(text).unwrap(), yes);

        let no =
            HeartbeatAnswer { v: VERSION, nonce: 7, outcome: Outcome::Refused { reason: Refusal::Lost } };
        let text = r#"{"v":1,"nonce":7,"outcome":{"is":"refused","reason":{"why":"lost"}}}"#;
        assert_eq!(serde_json::to_string(&no).unwrap(), text);
        assert_eq!(serde_json::from_str::<HeartbeatAnswer>(text).unwrap(), no);
        for reason in [
            Refusal::WrongBoot { entered: "22222222-2222-4222-8222-222222222222".parse().unwrap() },
            Refusal::NotLeader,
        ] {
            let text = serde_json::to_string(&reason).unwrap();
            assert_eq!(serde_json::from_str::<Refusal>(&text).unwrap(), reason, "{text}");
        }
    }
}
