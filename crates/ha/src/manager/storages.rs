//! A guest whose node has lost a storage that its disks are on, while the node itself is well.
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
//! answer, the process may hang where no signal ends it, and what it has written may arrive later: nobody can say that it
//! has stopped, so nothing is even tried until the storage has answered.

use super::Round;
use crate::placement::Ask;
use crate::state::{NodeWord, Process, Service, ServiceState, ServiceView, StorageFault};
use stead_model::{ServiceId, StorageLossPolicy};

/// Seconds that a guest without its disks has to shut down.
const SHUTDOWN: u32 = 10;

impl<'v> Round<'v, '_> {
    /// Moves a service away from a node that has lost its storage, or says why it stays. Returns whether that is all for now.
    pub(super) fn bears_loss(&mut self, sid: ServiceId, seen: &'v ServiceView, s: &Service) -> bool {
        if seen.process != Process::Running || self.word(&s.node) != NodeWord::Online {
            return false;
        }
        let Some((storage, loss)) = self.view.lost_disk(seen, &s.node) else { return false };
        let how = match &loss.fault {
            StorageFault::Silent => {
                let why = format!(
                    "storage '{storage}', which does not answer on '{}': nobody could say that it has stopped there, so \
                     it is not started elsewhere",
                    s.node
                );
                self.waits(sid, s, &why);
                return true;
            }
            StorageFault::Inactive { why } => format!("'{}' has lost storage '{storage}' ({why})", s.node),
        };
        let options = self.view.options.storage_loss;
        let drains = self.draining.contains(&s.node);
        if options.policy == StorageLossPolicy::Report && !drains {
            self.waits(sid, s, &format!("{how}: it stays there, by the cluster's option 'ha: storage_loss'"));
            return true;
        }
        if s.retry_at.is_some_and(|t| t > self.now) {
            return true;
        }
        if loss.seconds < options.hold && !drains {
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
