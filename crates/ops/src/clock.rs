//! The wall clock, for people. What is decided between nodes goes by the members' median of it
//! ([`crate::status::ClusterStatus::cluster_ms`]), and leases by another clock altogether.

use std::time::SystemTime;

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
