//! A node leaves its cluster, and goes on as one of its own.
//!
//! ```text
//! the node that leaves                          the leader
//!   takes no request for a guest any more
//!   owns and holds nothing, does not lead
//!   cluster/leave ────────────────────────────▶ out of Raft, while the node still votes on it
//!   leave.json: from here on it leaves
//!   cluster/left ─────────────────────────────▶ its record goes, its connections are cut
//!   starts anew: the old configuration is kept aside
//! ```
//!
//! The two calls come in this order, since of two voters the one that leaves must still agree. Each step can be
//! asked for again. Should the last call get lost, the cluster sees a node that is off and owns nothing.

use crate::peers::{PeerError, call};
use crate::store::{self, At};
use crate::{Actor, Ops, OpsError};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use stead_access::{AuthError, ShadowStore};
use stead_conf::{Check, Op};
use stead_model::{NodeName, NodeRecord, UserId, paths};
use tokio::time::Instant;

/// The call that takes a node out of Raft.
pub const LEAVE_CALL: &str = "cluster/leave";
/// The call that forgets a node which has left Raft.
pub const LEFT_CALL: &str = "cluster/left";
/// How long another node may take to lead.
const HAND_OVER: Duration = Duration::from_secs(5);
/// How long a leader is looked for.
const FIND_LEADER: Duration = Duration::from_secs(10);
/// How long the leader may take: longer than a change of members, which ends by itself.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two rounds of asking.
const AGAIN: Duration = Duration::from_millis(500);

/// What a node that leaves tells with its calls; who it is, its certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveRequest {
    /// Who has asked for it.
    pub by: String,
}

/// What a member answers to a node that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaveAnswer {
    /// It is so.
    Done,
    /// Only the leader can do it.
    NotLeader,
}

/// What asking every other member once has come to.
enum Round {
    Done,
    /// Somebody answered, and nobody leads.
    NotLeader,
    /// Nobody answered.
    Silence(PeerError),
}

impl Ops {
    /// Takes this node out of its cluster and starts the daemon anew as a cluster of one. It must own no guest.
    pub async fn leave_cluster(&self, actor: &Actor) -> Result<(), OpsError> {
        let others: Vec<NodeRecord> =
            self.node_records().into_iter().filter(|n| n.name != self.me.name).collect();
        if others.is_empty() {
            return Err(OpsError::failed(
                "this node is the only one of its cluster: there is nothing to leave",
            ));
        }
        // Nothing comes or starts here while it leaves; on an error it goes on as before.
        let closed = self.guest_locks.close("this node is leaving its cluster")?;
        self.holds_nothing().await?;
        self.let_another_lead().await?;
        self.ask_to_leave(&others, actor).await?;
        let keep = |why: String| {
            OpsError::failed(format!("this node is out of Raft but can't go on: {why}; try again"))
        };
        let shadow = self.conf.secret(paths::SHADOW_CFG).map_err(|e| keep(e.to_string()))?;
        let shadow = root_alone(&String::from_utf8_lossy(&shadow.unwrap_or_default()));
        let shadow = shadow.map_err(|e| keep(e.to_string()))?;
        self.host.keep_leave(&shadow).map_err(keep)?;
        closed.keep();
        self.tell_left(&others, actor).await;
        self.host.restart();
        Ok(())
    }

    /// Refuses while a guest of any owner executes here, or is guarded here.
    async fn holds_nothing(&self) -> Result<(), OpsError> {
        let mut held: Vec<_> = self.guests.list().await.into_iter().map(|p| p.vmid).collect();
        if !self.me.witness {
            held.extend(self.fence.status().await?.guests.into_iter().map(|(vmid, ..)| vmid));
        }
        held.sort_unstable();
        held.dedup();
        if held.is_empty() {
            return self.owns_nothing(&self.me.name);
        }
        let held: Vec<String> = held.iter().map(ToString::to_string).collect();
        Err(OpsError::failed(format!(
            "this node can't leave its cluster: guests run here: {}; move them away or stop them first",
            held.join(", ")
        )))
    }

    /// Hands leadership over, if this node has it, and waits until another one leads.
    async fn let_another_lead(&self) -> Result<(), OpsError> {
        let mut status = self.conf.status();
        let to = {
            let s = status.borrow();
            if !s.is_leader {
                return Ok(());
            }
            s.peers.iter().find(|p| p.active && p.id != s.id && s.voters.contains(&p.id)).map(|p| p.id)
        };
        let none = || OpsError::failed("this node leads the cluster, and no other one can take over now");
        self.conf.transfer_leader(to.ok_or_else(none)?).await;
        let other_leads = status.wait_for(|s| !s.is_leader && s.leader.is_some());
        match tokio::time::timeout(HAND_OVER, other_leads).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(none()),
        }
    }

    async fn ask_to_leave(&self, others: &[NodeRecord], actor: &Actor) -> Result<(), OpsError> {
        let until = Instant::now() + FIND_LEADER;
        loop {
            match self.ask_all(others, LEAVE_CALL, actor).await? {
                Round::Done => return Ok(()),
                Round::Silence(e) if Instant::now() > until => return Err(e.into()),
                Round::NotLeader if Instant::now() > until => {
                    return Err(OpsError::failed("the cluster has no leader now; try again"));
                }
                // This node may be out of Raft already, and then nothing tells it of a new leader.
                _ => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Asks that the record be removed. That cuts the connection that would carry the answer: silence is a yes.
    async fn tell_left(&self, others: &[NodeRecord], actor: &Actor) {
        let until = Instant::now() + FIND_LEADER;
        let why = loop {
            match self.ask_all(others, LEFT_CALL, actor).await {
                Ok(Round::Done | Round::Silence(_)) => return,
                Ok(Round::NotLeader) if Instant::now() > until => break "it has no leader now".to_owned(),
                Ok(Round::NotLeader) => tokio::time::sleep(AGAIN).await,
                Err(e) => break e.to_string(),
            }
        };
        tracing::warn!(
            "the cluster still lists this node ({why}): remove it there with 'stead cluster remove {}'",
            self.me.name
        );
    }

    /// Asks each other member, the leader first where it is known. A refusal ends it.
    async fn ask_all(&self, others: &[NodeRecord], name: &str, actor: &Actor) -> Result<Round, OpsError> {
        let request = LeaveRequest { by: actor.who.clone() };
        let leader = self.conf.status().borrow().leader;
        let mut sorted: Vec<&NodeRecord> = others.iter().collect();
        sorted.sort_by_key(|n| Some(n.raft_id) != leader);
        let mut silence = None;
        let mut answered = false;
        for node in sorted {
            match call(&*self.peers, node, name, &request, ANSWER).await {
                Ok(LeaveAnswer::Done) => return Ok(Round::Done),
                Ok(LeaveAnswer::NotLeader) => answered = true,
                Err(e @ PeerError::Refused(_)) => return Err(e.into()),
                Err(e) => silence = Some(e),
            }
        }
        Ok(match silence {
            Some(e) if !answered => Round::Silence(e),
            _ => Round::NotLeader,
        })
    }

    /// The leader's half of [`LEAVE_CALL`]: takes the node that asks out of Raft; its record stays.
    pub async fn let_go(&self, name: &NodeName, request: &LeaveRequest) -> Result<LeaveAnswer, OpsError> {
        if !self.conf.status().borrow().is_leader {
            return Ok(LeaveAnswer::NotLeader);
        }
        self.conf.barrier().await?;
        let node = self.node_record(name)?.value;
        self.owns_nothing(name)?;
        let removed = self.conf.remove(node.raft_id).await;
        removed.map_err(|e| OpsError::failed(format!("can't take node '{name}' out of the cluster: {e}")))?;
        tracing::info!("node '{name}' is out of Raft: it leaves the cluster, as {} wishes", request.by);
        Ok(LeaveAnswer::Done)
    }

    /// The leader's half of [`LEFT_CALL`]: removes the record of a node that is out of Raft by its own wish, and
    /// with that its certificate's worth.
    pub async fn forget_left(
        &self,
        name: &NodeName,
        request: &LeaveRequest,
    ) -> Result<LeaveAnswer, OpsError> {
        if !self.conf.status().borrow().is_leader {
            return Ok(LeaveAnswer::NotLeader);
        }
        self.conf.barrier().await?;
        let Ok(At { value: node, revision }) = self.node_record(name) else { return Ok(LeaveAnswer::Done) };
        let is_member = {
            let status = self.conf.status();
            let s = status.borrow();
            s.voters.contains(&node.raft_id) || s.learners.contains(&node.raft_id)
        };
        if is_member {
            return Err(OpsError::failed(format!("node '{name}' is in Raft still: it has not left")));
        }
        self.owns_nothing(name)?;
        let mut txn = store::txn(&request.by, format!("node '{name}' has left"));
        txn.checks.push(Check::Revision(paths::node(name), revision));
        txn.ops.push(Op::Delete(paths::node(name)));
        self.disconnect_fence(&mut txn, name);
        self.forget_cpu(&mut txn, name);
        self.forget_place(&mut txn, name);
        self.conf.view(|t| crate::guest::loose::forget(t, &mut txn, name));
        self.conf.transact(txn).await?;
        self.status.forget(name);
        Ok(LeaveAnswer::Done)
    }

    /// Refuses while a node owns guests.
    pub(crate) fn owns_nothing(&self, name: &NodeName) -> Result<(), OpsError> {
        let guests = self.conf.view(store::guests);
        let owned: Vec<String> =
            guests.iter().filter(|(_, o)| o.owner == *name).map(|(v, _)| v.to_string()).collect();
        if owned.is_empty() {
            return Ok(());
        }
        Err(OpsError::failed(format!(
            "node '{name}' still owns guests: {}; move or remove them first",
            owned.join(", ")
        )))
    }
}

/// Of all passwords' hashes root@pam's: it stays the node's own; other users are the cluster's.
fn root_alone(shadow: &str) -> Result<String, AuthError> {
    let root = format!("{}:", UserId::ROOT);
    let line = shadow.lines().filter(|l| l.starts_with(&root)).fold(String::new(), |t, l| t + l + "\n");
    ShadowStore::parse(&line).map(|s| s.to_text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_clusters_passwords_a_node_keeps_roots_alone() {
        let all = "bob@pve:$argon2id$b:\nroot@pam:$argon2id$r:\nroot@pamela:$argon2id$x:\n";
        assert_eq!(root_alone(all).unwrap(), "root@pam:$argon2id$r:\n");
        assert_eq!(root_alone("").unwrap(), "");
    }
}
