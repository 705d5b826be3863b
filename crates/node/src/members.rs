//! Who the members are, for those who connect: by UUID, by address.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use stead_conf::{Conf, Revision};
use stead_model::{NodeRecord, NodeUuid};
use stead_ops::store;
use stead_transport::Membership;

/// All addresses, as of a revision.
type Addresses = (Revision, HashSet<IpAddr>);

/// The members, as committed, or as told at joining while nothing is committed here yet. Clones share everything.
#[derive(Clone)]
pub struct Members {
    conf: Conf,
    first: Arc<Vec<NodeRecord>>,
    /// Their addresses, and of which revision: every connection asks, a crowd of strangers' too.
    addresses: Arc<Mutex<Option<Addresses>>>,
}

impl Members {
    /// Those that `conf` knows; `first`, those that were told at joining.
    pub fn new(conf: Conf, first: Vec<NodeRecord>) -> Self {
        Self { conf, first: Arc::new(first), addresses: Arc::default() }
    }

    /// All of them.
    pub fn all(&self) -> Vec<NodeRecord> {
        let committed = self.conf.view(store::nodes);
        if committed.is_empty() { self.first.to_vec() } else { committed }
    }
}

impl Membership for Members {
    fn is_member(&self, node: &NodeUuid) -> bool {
        self.all().iter().any(|n| n.uuid == *node)
    }

    fn has_address(&self, address: IpAddr) -> bool {
        let mut kept = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.conf.view(stead_conf::Tree::revision);
        let fresh = kept.take().filter(|(revision, _)| *revision == now);
        let of_now = || {
            let addresses =
                self.all().iter().flat_map(NodeRecord::addrs).map(|a| a.ip().to_canonical()).collect();
            (now, addresses)
        };
        kept.insert(fresh.unwrap_or_else(of_now)).1.contains(&address)
    }
}
