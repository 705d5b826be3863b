//! What a guest uses of its host.

use crate::process::{self, Stat};
use std::time::{Duration, Instant};

/// Two questions in quick succession (a page and a status sender) must not shorten each other's interval.
const INTERVAL: Duration = Duration::from_secs(1);

/// The share of its CPUs that a guest used between two questions.
#[derive(Debug, Default)]
pub struct CpuMeter {
    last: Option<(Instant, u64)>,
    share: f64,
}

impl CpuMeter {
    /// The share, 0 to 1, given the process's time on CPUs in clock ticks.
    pub fn read(&mut self, now: Instant, ticks: u64, ticks_per_second: u64, cpus: u32) -> f64 {
        if let Some((then, before)) = self.last {
            let passed = now.saturating_duration_since(then);
            if passed < INTERVAL {
                return self.share;
            }
            #[allow(clippy::cast_precision_loss, reason = "a share needs no 53 bits")]
            let used = ticks.saturating_sub(before) as f64 / ticks_per_second.max(1) as f64;
            self.share = (used / passed.as_secs_f64() / f64::from(cpus.max(1))).clamp(0.0, 1.0);
        }
        self.last = Some((now, ticks));
        self.share
    }
}

/// Clock ticks in a second.
pub fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second()
}

/// Seconds since the process started.
pub fn uptime(stat: &Stat) -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let now = text.split('.').next().and_then(|s| s.parse::<u64>().ok()).unwrap_or(0);
    now.saturating_sub(stat.start / ticks_per_second().max(1))
}

/// Resident memory in bytes.
pub fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text.split_ascii_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Whether its first thread is stopped by a signal.
pub fn is_stopped(pid: u32) -> bool {
    process::stat(pid).is_some_and(|s| s.state == 'T')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_all_its_cpus() {
        let mut meter = CpuMeter::default();
        let start = Instant::now();
        let read = |m: &mut CpuMeter, s: u64, ticks| m.read(start + Duration::from_secs(s), ticks, 100, 2);
        assert_eq!(read(&mut meter, 0, 500), 0.0);
        assert_eq!(read(&mut meter, 0, 600), 0.0, "too soon");
        assert_eq!(read(&mut meter, 2, 700), 0.5);
        assert_eq!(read(&mut meter, 4, 5000), 1.0);
    }
}
