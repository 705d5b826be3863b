//! `/cluster/config/qdevice`: votes that come from no node.

use crate::framework::{Access, Json};
use crate::version::Nothing;
use serde::Serialize;
use stead_api_derive::Schema;
use stead_ops::cluster::Witness;

/// The votes beside the nodes'. Empty where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Schema)]
pub struct Device {
    /// `witness`.
    #[serde(rename = "Model", skip_serializing_if = "Option::is_none")]
    model: Option<&'static str>,
    /// Whether each of them is in contact: `Connected`, or `Disconnected`.
    #[serde(rename = "State", skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    /// Each of them. Beyond Proxmox VE.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    witnesses: Vec<Witness>,
}

endpoint! {
    /// The cluster's witnesses: votes without guests.
    Read = get("/cluster/config/qdevice"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, _p: Nothing) -> Json<Device> {
        let witnesses = cx.ops().witnesses();
        if witnesses.is_empty() {
            return Ok(Json(Device::default()));
        }
        let state = if witnesses.iter().all(|w| w.online) { "Connected" } else { "Disconnected" };
        Ok(Json(Device { model: Some("witness"), state: Some(state), witnesses }))
    }
}
