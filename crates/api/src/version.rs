//! `/version`.

use crate::framework::{Access, Json};
use serde_json::{Value, json};
use stead_api_derive::Params;
use stead_ops::cluster::PVE_VERSION;

/// No parameters.
#[derive(Params)]
pub struct Nothing;

/// What clients decide by, and what this really is.
pub fn version(stead: &str) -> Value {
    // `repoid` must look like a commit to clients; the daemon's own version stands beside it.
    let repoid: String = format!("{stead:>8}").bytes().map(|b| format!("{b:02x}")).collect();
    let release: Vec<&str> = PVE_VERSION.split('.').take(2).collect();
    json!({"version": PVE_VERSION, "release": release.join("."), "repoid": repoid, "stead": stead})
}

endpoint! {
    /// The API's version, as Proxmox VE's clients know it, and Stead's own.
    Version = get("/version"), Anywhere, Access::Authenticated;
    fn call(cx, _p: Nothing) -> Json<Value> {
        Ok(Json(version(cx.ops().me.version)))
    }
}
