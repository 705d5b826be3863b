//! A service whose node has lost a storage that its disks are on, while the node itself is well.
//!
//! ```text
//!                                               others have it
//!   inactive ──hold time──▶ move? ─────yes──────────────────────▶ relocate: stopped by force, released by its node, and
//!                             │no: policy `report`, or no node                started elsewhere
//!                             ▼
//!   does not answer ──────▶ report: the service's reason and history say so
//! ```
//!
//! It is relocated, not migrated: what its system was told about its disks is in its memory, and would go with it. It is
//! stopped on its old node first, and that node releases it only when its process is gone. Where the storage does not
//! answer, what the guest has written may arrive later, even if its process has ended: a network file system's client goes on
//! sending. So the service starts nowhere else, running or not, at nobody's wish, until the storage has answered.
//! (A lost node is another matter: it has no lease, or no power.)

use super::Round;
use crate::placement::Ask;
use crate::state::{NodeWord, Process, Service, ServiceState, ServiceView, StorageFault};
use stead_model::{NodeName, ServiceId, StorageLossPolicy};

/// Seconds that a guest without its disks has to shut down.
const SHUTDOWN: u32 = 10;

impl<'v> Round<'v, '_> {
    /// Why a service can't leave its node, where a storage does not answer that one of its disks is on.
    pub(super) fn is_tied(&self, seen: &ServiceView, node: &NodeName) -> Option<String> {
        if self.word(node) != NodeWord::Online {
            return None;
        }
        let (storage, _) =
            self.view.lost_disk(seen, node).filter(|(_, loss)| loss.fault == StorageFault::Silent)?;
        Some(format!(
            "storage '{storage}', which does not answer on '{node}': what it has written there may still arrive, so it is not \
             started elsewhere"
        ))
    }

    /// Moves a service away from a node that has lost its storage, or says why it stays. Returns whether that is all for now.
    pub(super) fn bears_loss(&mut self, sid: ServiceId, seen: &'v ServiceView, s: &Service) -> bool {
        if let Some(why) = self.is_tied(seen, &s.node) {
            self.waits(sid, s, &why);
            return true;
        }
        let at_rest = seen.process != Process::Running || self.word(&s.node) != NodeWord::Online;
        // A node that is to be empty is left as ever: live, where that works.
        if at_rest || self.draining.contains(&s.node) {
            return false;
        }
        let Some((storage, loss)) = self.view.lost_disk(seen, &s.node) else { return false };
        let StorageFault::Inactive { why } = &loss.fault else { return false };
        let how = format!("'{}' has lost storage '{storage}' ({why})", s.node);
        let options = self.view.options.storage_loss;
        if options.policy == StorageLossPolicy::Report {
            self.waits(sid, s, &format!("{how}: it stays there, by the cluster's option 'ha: storage_loss'"));
            return true;
        }
        if s.retry_at.is_some_and(|t| t > self.now) {
            return true;
        }
        if loss.seconds < options.hold {
            self.waits(sid, s, &format!("{how}: it is moved if that lasts for {} s", options.hold));
            return true;
        }
        self.update(sid, |s| s.retry_at = None);
        let ask =
            Ask { sid, here: None, stay: false, content: true, running: true, avoid: Some(&s.failed_nodes) };
        match self.places.choose(&ask) {
            Ok((to, why)) => {
                self.go(sid, s, ServiceState::Relocate, to.clone(), format!("{how}; to '{to}': {why}"));
                self.update(sid, |s| s.timeout = Some(SHUTDOWN));
            }
            Err(why) => self.waits(sid, s, &format!("{how}, but {why}")),
        }
        true
    }
}
