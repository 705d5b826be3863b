//! `/version`.

use crate::framework::{Access, Json};
use serde::Serialize;
use stead_api_derive::{Params, Schema};
use stead_ops::cluster::PVE_VERSION;

/// No parameters.
#[derive(Params)]
pub struct Nothing;

/// What clients decide by, and what this really is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct Versions {
    /// The version of Proxmox VE's API that this is like.
    pub version: &'static str,
    /// Its first two parts.
    pub release: String,
    /// Looks like a commit to clients; the daemon's version in hexadecimal.
    pub repoid: String,
    /// The daemon's own version.
    pub stead: &'static str,
}

/// The versions of a daemon.
pub fn version(stead: &'static str) -> Versions {
    let repoid: String = format!("{stead:>8}").bytes().map(|b| format!("{b:02x}")).collect();
    let release: Vec<&str> = PVE_VERSION.split('.').take(2).collect();
    Versions { version: PVE_VERSION, release: release.join("."), repoid, stead }
}

endpoint! {
    /// The API's version, as Proxmox VE's clients know it, and Stead's own.
    Version = get("/version"), Anywhere, Access::Authenticated;
    fn call(cx, _p: Nothing) -> Json<Versions> {
        Ok(Json(version(cx.ops().me.version)))
    }
}
