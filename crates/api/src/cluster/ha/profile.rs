//! `/cluster/ha/profile`: the times of leases and fencing. Beyond Proxmox VE.

use crate::framework::{Access, Json, Null};
use crate::version::Nothing;
use serde::Serialize;
use stead_api_derive::{Params, Schema};
use stead_model::FenceProfile;

choice! {
    /// A profile by its name.
    pub enum Name { Fast = "fast", Default = "default", Wan = "wan" }
}

impl From<Name> for FenceProfile {
    fn from(name: Name) -> Self {
        match name {
            Name::Fast => Self::Fast,
            Name::Default => Self::Default,
            Name::Wan => Self::Wan,
        }
    }
}

/// The profile in force, with its times.
#[derive(Debug, Serialize, Schema)]
pub struct Profile {
    /// Its name: `fast`, `default` or `wan`.
    profile: String,
    /// The one before it, while leases of that may be alive.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<String>,
    /// Seconds between two heartbeats.
    heartbeat: f64,
    /// L: for how many seconds a lease is good.
    lease: f64,
    /// D: within how many seconds after L guests are made safe.
    drain: f64,
    /// W: within how many seconds after D the machine is reset if they are not.
    watchdog: f64,
    /// After how many seconds of silence a node is given up.
    #[serde(rename = "fence-time")]
    fence_time: f64,
}

endpoint! {
    /// The fence profile in force, with its times in seconds, and the one before it while leases of that may be alive.
    Read = get("/cluster/ha/profile"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, _p: Nothing) -> Json<Profile> {
        let cluster = cx.ops().cluster_record()?.value;
        let profile = cluster.profile;
        Ok(Json(Profile {
            profile: profile.to_string(),
            previous: cluster.previous_profile.map(|p| p.to_string()),
            heartbeat: cluster.heartbeat().as_secs_f64(),
            lease: profile.lease().as_secs_f64(),
            drain: profile.drain().as_secs_f64(),
            watchdog: profile.watchdog().as_secs_f64(),
            fence_time: profile.fence_time().as_secs_f64(),
        }))
    }
}

#[derive(Params)]
pub struct Wanted {
    /// fast: a quiet local network. default: most clusters. wan: links of 50 ms and more.
    profile: Name,
}

endpoint! {
    /// Changes the fence profile of the live cluster. Until no lease of the profile before can be alive the longer times
    /// of both count for a recovery, and another change is refused.
    Change = put("/cluster/ha/profile"), Anywhere, Access::All("/", &["Sys.Modify"]);
    fn call(cx, p: Wanted) -> Null {
        cx.ops().set_profile(&cx.actor(), p.profile.into()).await?;
        Ok(Null)
    }
}
