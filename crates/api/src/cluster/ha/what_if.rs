//! `/cluster/ha/what-if`: what the loss of nodes would mean. Beyond Proxmox VE.

use crate::framework::{Access, Json};
use stead_api_derive::Params;
use stead_model::NodeName;
use stead_ops::what_if::WhatIfView;

#[derive(Params)]
pub struct Loss {
    /// The nodes that are lost at once. Without any, only whether the cluster survives the loss of any one is told.
    nodes: Vec<NodeName>,
}

endpoint! {
    /// What would become of the cluster if these nodes were lost now: which guests go where, which stay down and why, what memory
    /// is left, which rules are not kept; and whether it survives the loss of any one node.
    Read = get("/cluster/ha/what-if"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, p: Loss) -> Json<WhatIfView> {
        Ok(Json(cx.ops().ha_what_if(p.nodes).await?))
    }
}
