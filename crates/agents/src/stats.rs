//! The host's load, from /proc.

use std::path::Path;
use stead_ops::status::NodeStats;

/// Reads the host's load; remembers the last reading of the CPUs' time.
#[derive(Debug, Default)]
pub struct Host {
    last: Option<(u64, u64)>,
    fixed: Option<(String, u32, u32, String)>,
}

impl Host {
    /// The load now. `dir` tells which file system is shown.
    pub fn read(&mut self, dir: &Path) -> NodeStats {
        let (cpu_model, maxcpu, sockets, kernel) = self.fixed.get_or_insert_with(read_fixed).clone();
        let memory = read("/proc/meminfo");
        let kib = |key: &str| {
            let line = memory.lines().find(|l| l.starts_with(key));
            line.and_then(|l| l.split_whitespace().nth(1)).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
                * 1024
        };
        let (maxmem, swap) = (kib("MemTotal:"), kib("SwapTotal:"));
        let fs = rustix::fs::statvfs(dir).ok();
        let bytes = |blocks: u64| fs.as_ref().map_or(0, |f| blocks * f.f_frsize);
        let (blocks, free) = fs.as_ref().map_or((0, 0), |f| (f.f_blocks, f.f_bfree));
        let mut load =
            read("/proc/loadavg").split_whitespace().map(|n| n.parse().unwrap_or(0.0)).collect::<Vec<f64>>();
        load.resize(3, 0.0);
        NodeStats {
            uptime: read("/proc/uptime").split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0),
            cpu: self.cpu(&read("/proc/stat")),
            maxcpu,
            mem: maxmem.saturating_sub(kib("MemAvailable:")),
            maxmem,
            disk: bytes(blocks.saturating_sub(free)),
            maxdisk: bytes(blocks),
            loadavg: [load[0], load[1], load[2]],
            kernel,
            cpu_model,
            sockets,
            swap: (swap.saturating_sub(kib("SwapFree:")), swap),
        }
    }

    /// Share of the CPUs' time since the last call that was not idle.
    fn cpu(&mut self, stat: &str) -> f64 {
        let line = stat.lines().next().unwrap_or("");
        let t: Vec<u64> = line.split_whitespace().skip(1).map(|n| n.parse().unwrap_or(0)).collect();
        let all: u64 = t.iter().take(8).sum();
        let idle = t.get(3).unwrap_or(&0) + t.get(4).unwrap_or(&0);
        let (last_all, last_idle) = self.last.replace((all, idle)).unwrap_or((0, 0));
        let spent = all.saturating_sub(last_all);
        if spent == 0 { 0.0 } else { 1.0 - idle.saturating_sub(last_idle) as f64 / spent as f64 }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn read_fixed() -> (String, u32, u32, String) {
    let info = read("/proc/cpuinfo");
    let values = |key: &str| {
        let of = |l: &str| l.split_once(':').map(|(_, v)| v.trim().to_owned());
        info.lines().filter(|l| l.starts_with(key)).filter_map(of).collect::<Vec<_>>()
    };
    let model = values("model name").into_iter().next().unwrap_or_default();
    let cpus = u32::try_from(values("processor").len()).unwrap_or(1).max(1);
    let sockets = values("physical id").into_iter().collect::<std::collections::BTreeSet<_>>().len();
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    (model, cpus, u32::try_from(sockets).unwrap_or(1).max(1), kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_share_is_that_since_the_last_reading() {
        let mut host = Host::default();
        host.cpu("cpu  100 0 0 100 0 0 0 0 0 0\n");
        assert!((host.cpu("cpu  175 0 0 125 0 0 0 0 0 0\n") - 0.75).abs() < 1e-9);
        assert!(host.cpu("cpu  175 0 0 125 0 0 0 0 0 0\n").abs() < 1e-9);
    }

    #[test]
    fn this_host_has_memory_and_cpus() {
        let stats = Host::default().read(Path::new("/"));
        assert!(stats.maxmem > 0 && stats.maxcpu > 0 && stats.maxdisk > 0 && !stats.kernel.is_empty());
    }
}
