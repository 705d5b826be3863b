//! `/cluster/config/nodes/{node}/confirm-off`: an operator's word. Beyond Proxmox VE.

use crate::framework::Access;
use stead_api_derive::Params;
use stead_model::{NodeName, Upid};

#[derive(Params)]
pub struct Off {
    /// The lost node that is off.
    node: NodeName,
    /// Where guests go that HA does not recover; without it, to the node with the fewest guests.
    target: Option<NodeName>,
}

endpoint! {
    /// Takes the operator's word that a lost node is off: HA recovers what it did not guard, too; other guests get another
    /// node, stopped; those whose disks no other node has stay. If the node runs after all, they run twice.
    Confirm = post("/cluster/config/nodes/{node}/confirm-off"), Anywhere, Access::All("/", &["Sys.Modify"]);
    fn call(cx, p: Off) -> Upid {
        Ok(cx.ops().confirm_off(&cx.actor(), &p.node, p.target).await?)
    }
}
