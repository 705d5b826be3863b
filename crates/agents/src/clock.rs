//! CLOCK_BOOTTIME: goes on while the machine sleeps and knows no steps, as leases need.

use std::time::Duration;

pub use stead_ops::clock::unix_ms;

/// Time since the machine booted.
pub fn boottime() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}
