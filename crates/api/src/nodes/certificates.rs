//! `/nodes/{node}/certificates`: what a node shows to clients.

use super::OneNode;
use crate::framework::{Access, Json};
use stead_ops::certificates::CertificateInfo;

endpoint! {
    /// The certificates of a node: the cluster's CA (`pve-root-ca.pem`), and the node's own (`pve-ssl.pem`).
    Info = get("/nodes/{node}/certificates/info"), AtNode, Access::Authenticated;
    fn call(cx, p: OneNode) -> Json<Vec<CertificateInfo>> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().certificate_info()?))
    }
}
