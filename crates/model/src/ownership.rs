//! Who may run a guest: the record on which "a guest never runs twice" rests.

use crate::{Epoch, GuestKind, NodeName};
use serde::{Deserialize, Serialize};

/// The committed record of one guest's owner, at [`crate::paths::ownership`].
///
/// It changes only by its owner's own release (a migration's hand-over, an offline move), by recovery after
/// the owner was committed lost and the fence time has passed, or by an operator's word that the owner is off.
/// Every change raises `epoch` and names the epoch that it starts from as its precondition. It lies outside
/// the history, so no rollback brings an old owner back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// VM or container.
    pub kind: GuestKind,
    /// The only node that may run the guest; the guest's configuration lies in its folder.
    pub owner: NodeName,
    /// Raised at every change of the owner.
    pub epoch: Epoch,
    /// The owner's fence process has registered the running guest, so that it is made safe when the lease is
    /// lost. A guest that runs unarmed must not be recovered elsewhere.
    #[serde(default)]
    pub armed: bool,
    /// The owner may be running it: committed before the process starts, cleared after it is gone.
    /// A recovery of a guest that is `running` but not `armed` is refused.
    #[serde(default)]
    pub running: bool,
    /// It was recovered once: while a node is lost, a frozen copy of its process there may still hold the locks
    /// of its images, which a start then passes over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovered: bool,
}
