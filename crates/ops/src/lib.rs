//! The use cases: authorize → decide → act. The one place where things are done.
//!
//! The API, the command line, the HA agent and autostart call the same functions here. A function checks
//! what only it can know (the endpoint's declared permission was checked before), asks the pure cores what to
//! do, and carries it out through the drivers, the configuration and other nodes.

pub mod access;
pub mod actor;
pub mod admin;
pub mod admit;
pub mod bulk;
pub mod certificates;
pub mod clock;
pub mod cluster;
pub mod confirm_off;
pub mod cpu;
pub mod cpu_models;
pub mod datacenter;
pub mod departure;
pub mod epochs;
pub mod error;
pub mod events;
pub mod fence_devices;
pub mod files;
pub mod guest;
pub mod ha;
pub mod ha_rules;
pub mod ha_view;
pub mod hardware;
pub mod history;
pub mod join;
mod join_storage;
pub mod kept_open;
pub mod leave;
pub mod life;
pub mod links;
pub mod mapping;
pub mod peers;
pub mod place;
pub mod profile;
pub mod remote;
pub mod report;
pub mod status;
pub mod storage;
pub mod storage_health;
pub mod storage_place;
pub mod storage_view;
pub mod store;
pub mod task_view;
pub mod what_if;

pub use actor::Actor;
pub use error::OpsError;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use stead_conf::Conf;
use stead_driver::fence::Fence;
use stead_driver::guest::GuestDriver;
use stead_driver::storage::StorageType;
use stead_model::{BootId, NodeName, NodeUuid, Vmid};
use stead_tasks::Tasks;
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot, watch};

/// Who this node is.
#[derive(Debug, Clone)]
pub struct Me {
    /// Its name.
    pub name: NodeName,
    /// Its identity.
    pub uuid: NodeUuid,
    /// This boot.
    pub boot: BootId,
    /// Its one TLS port.
    pub addr: SocketAddr,
    /// Its data directory.
    pub dir: PathBuf,
    /// When this daemon started: milliseconds since 1970.
    pub started: u64,
    /// The cluster epoch that this daemon takes part in.
    pub era: stead_model::Era,
    /// The daemon's version.
    pub version: &'static str,
    /// It votes, and runs no guests.
    pub witness: bool,
}

/// The lease as the node knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lease {
    /// The last answer granted one that has not run out.
    pub held: bool,
}

/// Asks that the node's status be reported to every node now; resolves when it has been.
#[derive(Debug, Clone)]
pub struct Flush(pub mpsc::Sender<oneshot::Sender<()>>);

impl Flush {
    /// Reports soon, without waiting for it. When many wait already, one of them will do.
    pub fn soon(&self) {
        let _ = self.0.try_send(oneshot::channel().0);
    }

    /// Reports now. Bounded: a node that does not answer does not hold it up for more than two seconds.
    pub async fn now(&self) {
        let (done, wait) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            // The reporter answers or is gone; both end the wait.
            let _ = tokio::time::timeout(Duration::from_secs(2), wait).await;
        }
    }
}

/// Everything that the use cases of one node stand on.
pub struct Ops {
    /// This node.
    pub me: Me,
    /// The configuration.
    pub conf: Conf,
    /// Tasks of this node.
    pub tasks: Tasks,
    /// Guests of this node.
    pub guests: Arc<dyn GuestDriver>,
    /// The fence process of this node.
    pub fence: Arc<dyn Fence>,
    /// The programs that speak to fence devices.
    pub fence_agents: fence_devices::agent::Agents,
    /// Makes images of CDs.
    pub cds: Arc<dyn stead_driver::cd::CdImages>,
    /// The storage types that this node knows.
    pub storage_types: Vec<Arc<dyn StorageType>>,
    /// Members of other cluster epochs.
    pub epochs: epochs::Epochs,
    /// This node's certificate.
    pub certificates: certificates::Certificates,
    /// Other nodes.
    pub peers: Arc<dyn peers::PeerLink>,
    /// Other clusters.
    pub remotes: Arc<dyn remote::RemoteLink>,
    /// What runs where.
    pub status: status::ClusterStatus,
    /// The event stream.
    pub events: events::Events,
    /// This node's lease.
    pub lease: watch::Receiver<Lease>,
    /// Reports the status.
    pub flush: Flush,
    /// What the daemon does for its use cases.
    pub host: Arc<dyn join::Host>,
    /// One request at a time a guest.
    pub guest_locks: GuestLocks,
    /// Brakes the guessing of passwords.
    pub sign_ins: access::SignIns,
    /// Whether this host is to go down.
    pub departure: departure::Departure,
}

/// One mutex a guest, and what goes on without it: moves of guests to this node, copies of disks.
#[derive(Debug, Default)]
pub struct GuestLocks {
    all: Mutex<HashMap<Vmid, Arc<tokio::sync::Mutex<()>>>>,
    /// Why nothing may be done with guests of this node now.
    closed: Mutex<Option<&'static str>>,
    /// Moves to this node.
    pub incoming: guest::incoming::Incomings,
    /// Moves of running guests from this node.
    pub sending: guest::places::Places,
    /// Tasks that read guests' disks.
    pub readers: guest::copies::Readers,
    /// Moves from other clusters to this node.
    pub tunnels: guest::arrive::Tunnels,
}

impl GuestLocks {
    /// Waits at most ten seconds for the guest's mutex: for tasks.
    pub async fn lock(&self, vmid: Vmid) -> Result<OwnedMutexGuard<()>, OpsError> {
        self.lock_within(vmid, Duration::from_secs(10)).await
    }

    /// Waits at most three seconds for the guest's mutex: clients give up a request after five.
    pub async fn lock_for_request(&self, vmid: Vmid) -> Result<OwnedMutexGuard<()>, OpsError> {
        self.lock_within(vmid, Duration::from_secs(3)).await
    }

    /// Waits at most so long for the guest's mutex.
    pub async fn lock_within(&self, vmid: Vmid, limit: Duration) -> Result<OwnedMutexGuard<()>, OpsError> {
        let mutex = {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|id, m| *id == vmid || Arc::strong_count(m) > 1);
            all.entry(vmid).or_default().clone()
        };
        let locked =
            tokio::time::timeout(limit, mutex.lock_owned()).await.map_err(|_| {
                OpsError::failed(format!(
                    "can't lock VM {vmid}: another request or task has held it for more than {} s; try again when it \
                     has ended",
                    limit.as_secs()
                ))
            })?;
        // Asked under the mutex: whoever closes finds it held, or has closed before this.
        match self.why_closed() {
            None => Ok(locked),
            Some(why) => Err(OpsError::failed(format!("can't lock VM {vmid}: {why}"))),
        }
    }

    /// From now on no guest's mutex can be had, until the answer is dropped. Refused with a guest whose mutex is
    /// held, or when closed already.
    pub fn close(&self, why: &'static str) -> Result<Closed<'_>, OpsError> {
        {
            let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(why) = *closed {
                return Err(OpsError::failed(why));
            }
            *closed = Some(why);
        }
        let closed = Closed { locks: self, keep: false };
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        match all.iter().find(|(_, mutex)| mutex.try_lock().is_err()) {
            None => Ok(closed),
            Some((vmid, _)) => Err(OpsError::failed(format!("a request for guest {vmid} is under way"))),
        }
    }

    fn why_closed(&self) -> Option<&'static str> {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the mutex if it is free.
    pub fn try_lock(&self, vmid: Vmid) -> Option<OwnedMutexGuard<()>> {
        let mutex = {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(vmid).or_default().clone()
        };
        mutex.try_lock_owned().ok().filter(|_| self.why_closed().is_none())
    }
}

/// No guest's mutex can be had while this is there.
#[derive(Debug)]
pub struct Closed<'a> {
    locks: &'a GuestLocks,
    keep: bool,
}

impl Closed<'_> {
    /// They stay closed for as long as the daemon runs.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        if !self.keep {
            *self.locks.closed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closed_locks_give_no_mutex_and_a_held_mutex_prevents_closing() {
        let locks = GuestLocks::default();
        let vmid: Vmid = "100".parse().unwrap();
        let held = locks.lock(vmid).await.unwrap();
        assert_eq!(locks.close("leaving").unwrap_err().to_string(), "a request for guest 100 is under way");
        drop(held);
        let closed = locks.close("leaving").unwrap();
        assert_eq!(locks.close("again").unwrap_err().to_string(), "leaving");
        assert_eq!(locks.lock(vmid).await.unwrap_err().to_string(), "can't lock VM 100: leaving");
        assert!(locks.try_lock(vmid).is_none());
        drop(closed);
        assert!(locks.try_lock(vmid).is_some(), "open again");
        locks.close("leaving").unwrap().keep();
        assert!(locks.try_lock(vmid).is_none(), "for good");
    }
}
