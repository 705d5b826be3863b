//! Where members are that are not where the configuration says: nodes that have got another address.
//!
//! A node records its address itself. One that starts at another one can't, before it hears the others: Raft's answers go where it
//! was. So it tells every member that it reaches where it is, and they try there *as well*:
//!
//! ```text
//!  the node that has moved                      a member
//!    "here" over its certificate's connection ──▶ tries that address, too, until the record changes
//!    hears Raft                              ◀──
//!    changes the address in its record       ──▶ what was told lapses
//! ```
//!
//! Where all have moved nobody reaches anybody: an operator tells one node where the others are ([`Ops::meet`]), and each that hears
//! of one hears of those that this one knows.
//!
//! Nothing is believed by this. Who answers at an address must show a certificate of the very node that is looked for, and what the
//! configuration says is tried as before: a wrong word costs attempts, and lets nobody in.

use crate::peers::call;
use crate::store::{self, At};
use crate::{Ops, OpsError};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use stead_model::{NodeName, NodeRecord, NodeUuid, paths};
use stead_transport::Peer;
use tokio::sync::watch;

/// Tells a member where the caller is.
pub const HERE_CALL: &str = "here";
/// Beside a node's links, which have numbers up to 7: where it was said to be.
const TOLD: u8 = u8::MAX;
/// How long a member may take to answer.
const LIMIT: Duration = Duration::from_secs(3);
/// More than a cluster has nodes: whoever tells of more is not listened to.
const MOST: usize = 4096;

/// Where a node was said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Contact {
    at: SocketAddr,
    /// What the configuration said then: as long as it does, this counts.
    instead_of: SocketAddr,
    /// The node itself has said so, or an operator.
    first_hand: bool,
}

/// Where nodes were said to be. Clones share it; it is forgotten when the daemon ends.
#[derive(Debug, Clone, Default)]
pub struct Contacts(Arc<watch::Sender<BTreeMap<NodeUuid, Contact>>>);

/// What a node says of itself, and of others; the answer to it likewise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Here {
    /// Where it is.
    pub at: SocketAddr,
    /// Where others are that are not where the configuration says.
    pub others: Vec<(NodeUuid, SocketAddr)>,
}

impl Contacts {
    /// Notes where a member is.
    fn note(&self, node: &NodeRecord, at: SocketAddr, first_hand: bool) {
        self.0.send_if_modified(|all| {
            if node.addrs().contains(&at) {
                // What was said of it before is no longer so; what others say may be older.
                return first_hand && all.remove(&node.uuid).is_some();
            }
            let known = all.get(&node.uuid).filter(|c| c.instead_of == node.addr);
            if known.is_some_and(|c| c.at == at || (c.first_hand && !first_hand)) {
                return false;
            }
            tracing::info!("node '{}' is said to be at {at}; it is tried there, too", node.name);
            all.insert(node.uuid.clone(), Contact { at, instead_of: node.addr, first_hand });
            true
        });
    }

    /// Where a member was said to be, if that still counts.
    fn of(&self, node: &NodeRecord) -> Option<SocketAddr> {
        let all = self.0.borrow();
        all.get(&node.uuid).filter(|c| c.instead_of == node.addr).map(|c| c.at)
    }

    /// A member as it is to be called: where the configuration says, and where it was said to be.
    pub fn peer(&self, node: &NodeRecord) -> Peer {
        let mut peer = Peer::from(node);
        peer.addrs.extend(self.of(node).map(|at| (TOLD, at)));
        peer
    }

    /// Tells of changes.
    pub fn watch(&self) -> watch::Receiver<impl Sized + use<>> {
        self.0.subscribe()
    }
}

impl Ops {
    /// Whether this node is not where the configuration says: the others are to be told.
    pub fn has_moved(&self) -> bool {
        self.node_record(&self.me.name)
            .is_ok_and(|n| n.value.uuid == self.me.uuid && n.value.addr != self.me.addr)
    }

    /// Records where this node is: its address alone, so that one that is lost stays so until it enters.
    ///
    /// # Errors
    /// If no majority is in contact, this node is no member, or its record changes meanwhile: try again.
    pub async fn record_where(&self) -> Result<(), OpsError> {
        self.conf.barrier().await?;
        if !self.has_moved() {
            return Ok(());
        }
        let At { value: mut record, revision } = self.node_record(&self.me.name)?;
        record.addr = self.me.addr;
        // What was a further link may have become the first.
        record.links.retain(|_, ip| *ip != self.me.addr.ip());
        let mut txn = store::txn("root@pam", format!("node '{}' is at {}", self.me.name, self.me.addr));
        store::put_over(&mut txn, &paths::node(&self.me.name), Some(revision), store::bytes(&record)?);
        self.conf.transact(txn).await?;
        tracing::info!("this node is recorded at {}", self.me.addr);
        Ok(())
    }

    /// What this node says.
    fn here(&self) -> Here {
        let all = self.others();
        let others = all.iter().filter_map(|n| Some((n.uuid.clone(), self.contacts.of(n)?)));
        Here { at: self.me.addr, others: others.collect() }
    }

    /// Tells all members that can be reached where this node is.
    pub async fn tell_where(&self) {
        let (here, others) = (self.here(), self.others());
        join_all(others.iter().map(|node| async {
            if let Err(e) = self.tell_one(node, &here).await {
                tracing::debug!("node '{}' was not told where this one is: {e}", node.name);
            }
        }))
        .await;
    }

    async fn tell_one(&self, node: &NodeRecord, here: &Here) -> Result<(), OpsError> {
        let answer: Here = call(&*self.peers, node, HERE_CALL, here, LIMIT).await?;
        self.hear_of(&answer);
        Ok(())
    }

    /// What was told of other nodes. Each is looked for at its new place, and believed by its certificate alone.
    fn hear_of(&self, here: &Here) {
        let all = self.others();
        for (uuid, at) in here.others.iter().take(MOST) {
            if let Some(node) = all.iter().find(|n| n.uuid == *uuid)
                && self.may_be_at(*at)
            {
                self.contacts.note(node, *at, false);
            }
        }
    }

    /// A member says where it is, and hears where others are.
    ///
    /// # Errors
    /// If that is no address that this node could use.
    pub fn hear_where(&self, from: &NodeName, here: &Here) -> Result<Here, OpsError> {
        let node = self.node_record(from)?.value;
        if !self.may_be_at(here.at) {
            return Err(OpsError::failed(format!("node '{from}' can't be reached at {} from here", here.at)));
        }
        self.contacts.note(&node, here.at, true);
        self.hear_of(here);
        Ok(self.here())
    }

    /// Whether another machine can be at an address.
    fn may_be_at(&self, at: SocketAddr) -> bool {
        let ip = at.ip();
        at.port() != 0
            && at != self.me.addr
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && (!ip.is_loopback() || self.me.addr.ip().is_loopback())
    }

    /// An operator says where a member is now. It is called there, hears where this node is, and each of those that the other knows.
    /// Without a port, that which it had.
    ///
    /// # Errors
    /// If it does not answer there, or another one does: then nothing is noted.
    pub async fn meet(&self, name: &NodeName, at: &str) -> Result<SocketAddr, OpsError> {
        let At { value: node, .. } =
            self.node_record(name).map_err(|e| OpsError::invalid("node", e.to_string()))?;
        if *name == self.me.name {
            return Err(OpsError::invalid(
                "node",
                "that is this node: where it is, its daemon is told by '--listen' (STEAD_LISTEN in /etc/default/stead)",
            ));
        }
        let bare = at.parse().map(|ip| SocketAddr::new(ip, node.addr.port()));
        let at = at.parse().or(bare).ok().filter(|at| self.may_be_at(*at));
        let at =
            at.ok_or_else(|| OpsError::invalid("address", "an address of another machine: IP or IP:PORT"))?;
        // There and nowhere else: it is that address which is to be tried.
        let there = NodeRecord { addr: at, links: stead_model::link::Links::new(), ..node.clone() };
        self.tell_one(&there, &self.here()).await?;
        self.contacts.note(&node, at, true);
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::link::Links;
    use stead_model::{NodeState, RaftId};

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 8006))
    }

    fn node(addr: SocketAddr) -> NodeRecord {
        let id = "22222222-2222-4222-8222-222222222222";
        NodeRecord {
            name: "n2".parse().unwrap(),
            uuid: id.parse().unwrap(),
            raft_id: RaftId(2),
            addr,
            links: Links::from([(1, [198, 51, 100, 2].into())]),
            state: NodeState::Member { boot: id.parse().unwrap() },
            version: String::new(),
            witness: false,
            off: None,
            restart: None,
        }
    }

    #[test]
    fn where_a_node_was_said_to_be_is_tried_beside_its_links_until_its_record_changes() {
        let (contacts, old) = (Contacts::default(), node(at(2)));
        let addrs = |n: &NodeRecord| contacts.peer(n).addrs.into_values().collect::<Vec<_>>();
        let link = SocketAddr::from(([198, 51, 100, 2], 8006));
        assert_eq!(addrs(&old), [at(2), link]);
        contacts.note(&old, at(9), false);
        assert_eq!(addrs(&old), [at(2), link, at(9)]);
        // Its own word counts for more than that of others.
        contacts.note(&old, at(10), true);
        contacts.note(&old, at(11), false);
        assert_eq!(addrs(&old), [at(2), link, at(10)]);
        // It has entered there, and later moves once more.
        assert_eq!(addrs(&node(at(10))), [at(10), link]);
        contacts.note(&node(at(10)), at(12), false);
        assert_eq!(addrs(&node(at(10))), [at(10), link, at(12)]);
        // It is where its record says.
        contacts.note(&node(at(10)), at(10), true);
        assert_eq!(addrs(&node(at(10))), [at(10), link]);
    }

    #[test]
    fn what_others_say_of_a_node_that_is_where_it_was_takes_nothing_back() {
        let (contacts, old) = (Contacts::default(), node(at(2)));
        contacts.note(&old, at(9), true);
        contacts.note(&old, at(2), false);
        assert_eq!(contacts.of(&old), Some(at(9)));
    }
}
