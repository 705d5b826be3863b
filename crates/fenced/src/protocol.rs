//! What the daemon and the fence process say to each other: one JSON object a line.
//!
//! `{"id":1,"op":"nonce"}` is answered by `{"id":1,"ok":{"is":"nonce","nonce":7}}` or
//! `{"id":1,"error":{"kind":"no_lease"}}`. Answers may come in another order than their requests.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use stead_membership::Hold;
use stead_model::{Epoch, Vmid};

/// The version of this protocol. A daemon that finds another does not start: it would not know what is guarded.
pub const PROTOCOL: u32 = 1;
/// The longest line either side takes, in bytes.
pub const MAX_LINE: usize = 256 * 1024;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back with the answer.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub op: Op,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Op {
    /// Which version and power switch.
    Version,
    /// A nonce for a heartbeat.
    Nonce,
    /// A lease was granted to a nonce.
    Renew {
        /// The heartbeat's nonce.
        nonce: u64,
        /// L in milliseconds.
        lease_ms: u64,
        /// D in milliseconds.
        drain_ms: u64,
        /// W in milliseconds.
        watchdog_ms: u64,
    },
    /// Holds to the lease granted last alone, although one before it ends later: the end of a restart lease. Refused where that lease
    /// is longer than is said.
    Shorten {
        /// L in milliseconds.
        lease_ms: u64,
    },
    /// Makes a guest known before its process is executed.
    Register(Registration),
    /// Forgets a guest that has no process any more.
    Forget {
        /// The guest.
        vmid: Vmid,
    },
    /// First `cont`, or the thaw of a held guest. Answered when the guest is verified to run.
    Run {
        /// The guest.
        vmid: Vmid,
        /// The ownership that was confirmed by a linearizable read.
        epoch: Epoch,
    },
    /// The thaw of a held guest whose CPUs stand for good: it is another node's, and fetched from. Answered when it is verified not to run.
    Thaw {
        /// The guest.
        vmid: Vmid,
        /// The ownership under which it is registered.
        epoch: Epoch,
    },
    /// What is held.
    Status,
    /// Stops the watchdog and ends the process. Refused while a guest that is guarded lives.
    StandDown,
}

/// A guest to be guarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The guest.
    pub vmid: Vmid,
    /// The ownership under which it will run.
    pub epoch: Epoch,
    /// Its cgroup folder (v2, or v1 freezer), where there is one.
    pub cgroup: Option<PathBuf>,
    /// The QMP monitor that only the fence process uses.
    pub monitor: PathBuf,
    /// Where the guest's process writes its pid. When the guest is registered the file must not exist, or name the
    /// living guest: a stale one could name a stranger.
    pub pidfile: PathBuf,
    /// It may fetch memory while it runs, and may be beyond saying so. Registered again without this, it does not any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fetches: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// What came of it.
    #[serde(flatten)]
    pub result: Outcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Done.
    Ok(Answer),
    /// Refused or failed.
    Error(Refusal),
}

/// The answer to a request that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Answer {
    /// Done.
    Done,
    /// To `version`.
    Version {
        /// [`PROTOCOL`] of the process.
        protocol: u32,
        /// The program's version.
        version: String,
        /// `none`, `socket` or `host`.
        power: String,
        /// Its process id.
        pid: u32,
    },
    /// To `nonce`.
    Nonce {
        /// The nonce.
        nonce: u64,
    },
    /// To `status`.
    Status {
        /// Milliseconds until the lease ends; none when there is no lease.
        lease_left_ms: Option<u64>,
        /// Every registered guest.
        guests: Vec<(Vmid, Epoch, Hold)>,
    },
}

/// Why a request was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Refusal {
    /// The lease is not good.
    #[error("this node holds no lease")]
    NoLease,
    /// No guest of that epoch.
    #[error("the guest is not registered under this epoch")]
    Unknown,
    /// The guest did not do as asked, or is not in a state for it.
    #[error("{why}")]
    Guest {
        /// Why.
        why: String,
    },
    /// The grant does not count.
    #[error("{why}")]
    Grant {
        /// Why.
        why: String,
    },
    /// Not a request of this protocol.
    #[error("{why}")]
    Request {
        /// Why.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon and a fence process of different versions must understand each other.
    #[test]
    fn golden() {
        let reg = Registration {
            vmid: Vmid::new(100).unwrap(),
            epoch: Epoch(3),
            cgroup: None,
            monitor: "/r/f".into(),
            pidfile: "/r/p".into(),
            fetches: false,
        };
        let fetching = Registration { fetches: true, ..reg.clone() };
        for (op, text) in [
            (Op::Version, r#"{"id":1,"op":"version"}"#),
            (Op::Nonce, r#"{"id":1,"op":"nonce"}"#),
            (
                Op::Renew { nonce: 7, lease_ms: 4000, drain_ms: 1000, watchdog_ms: 2000 },
                r#"{"id":1,"op":"renew","nonce":7,"lease_ms":4000,"drain_ms":1000,"watchdog_ms":2000}"#,
            ),
            (Op::Shorten { lease_ms: 4000 }, r#"{"id":1,"op":"shorten","lease_ms":4000}"#),
            (
                Op::Register(reg),
                r#"{"id":1,"op":"register","vmid":100,"epoch":3,"cgroup":null,"monitor":"/r/f","pidfile":"/r/p"}"#,
            ),
            (
                Op::Register(fetching),
                r#"{"id":1,"op":"register","vmid":100,"epoch":3,"cgroup":null,"monitor":"/r/f","pidfile":"/r/p","fetches":true}"#,
            ),
            (
                Op::Thaw { vmid: Vmid::new(100).unwrap(), epoch: Epoch(3) },
                r#"{"id":1,"op":"thaw","vmid":100,"epoch":3}"#,
            ),
            (Op::Forget { vmid: Vmid::new(100).unwrap() }, r#"{"id":1,"op":"forget","vmid":100}"#),
            (
                Op::Run { vmid: Vmid::new(100).unwrap(), epoch: Epoch(3) },
                r#"{"id":1,"op":"run","vmid":100,"epoch":3}"#,
            ),
            (Op::Status, r#"{"id":1,"op":"status"}"#),
            (Op::StandDown, r#"{"id":1,"op":"stand_down"}"#),
        ] {
            let request = Request { id: 1, op };
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
        let guests = vec![(Vmid::new(100).unwrap(), Epoch(3), Hold::Held)];
        for (result, text) in [
            (Outcome::Ok(Answer::Done), r#"{"id":1,"ok":{"is":"done"}}"#),
            (Outcome::Ok(Answer::Nonce { nonce: 7 }), r#"{"id":1,"ok":{"is":"nonce","nonce":7}}"#),
            (
                Outcome::Ok(Answer::Status { lease_left_ms: None, guests }),
                r#"{"id":1,"ok":{"is":"status","lease_left_ms":null,"guests":[[100,3,"held"]]}}"#,
            ),
            (Outcome::Error(Refusal::NoLease), r#"{"id":1,"error":{"kind":"no_lease"}}"#),
            (
                Outcome::Error(Refusal::Guest { why: "x".into() }),
                r#"{"id":1,"error":{"kind":"guest","why":"x"}}"#,
            ),
        ] {
            let response = Response { id: 1, result };
            assert_eq!(serde_json::to_string(&response).unwrap(), text);
            assert_eq!(serde_json::from_str::<Response>(text).unwrap(), response);
        }
    }
}
