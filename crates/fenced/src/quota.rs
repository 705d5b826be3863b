//! What bounds a guest's share of the CPUs is taken off before the guest is made safe, and stays off until its daemon sets it again:
//! a process that has used up its share answers nothing for a tenth of a second each time, and a freeze waits for it.
//!
//! Found by the process itself, since the bound may be set and changed while it runs. Of groups that are not Stead's nothing is
//! touched.

use std::path::{Path, PathBuf};

const TREES: &str = "/sys/fs/cgroup";

/// Takes the bound off, if there is one.
pub(crate) fn lift(pid: i32) {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    for (file, none) in groups.lines().flat_map(|line| files(Path::new(TREES), line)) {
        if file.exists()
            && let Err(e) = std::fs::write(&file, none)
        {
            crate::log(&format!("{} could not be taken off: {e}", file.display()));
        }
    }
}

/// The files that may bound a process, by a line of its `cgroup`, and what is written into them for no bound.
fn files(trees: &Path, line: &str) -> Vec<(PathBuf, &'static str)> {
    let mut parts = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return vec![];
    };
    if !path.contains("/stead/") {
        return vec![];
    }
    let below = |tree: &str, file: &str| trees.join(tree).join(path.trim_start_matches('/')).join(file);
    if controllers.is_empty() {
        return ["", "unified"].map(|tree| (below(tree, "cpu.max"), "max")).to_vec();
    }
    if !controllers.split(',').any(|c| c == "cpu") {
        return vec![];
    }
    ["cpu", controllers].map(|tree| (below(tree, "cpu.cfs_quota_us"), "-1")).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_and_bounds_is_touched() {
        let of = |line: &str| {
            let found = files(Path::new("/t"), line).into_iter();
            found.map(|(path, none)| format!("{}={none}", path.display())).collect::<Vec<_>>()
        };
        let v1 = "4:cpu,cpuacct:/stead/n1/100";
        let expected =
            ["/t/cpu/stead/n1/100/cpu.cfs_quota_us=-1", "/t/cpu,cpuacct/stead/n1/100/cpu.cfs_quota_us=-1"];
        assert_eq!(of(v1), expected);
        assert_eq!(of("0::/stead/n1/100")[0], "/t/stead/n1/100/cpu.max=max");
        assert_eq!(of("4:cpu:/user.slice"), [""; 0]);
        assert_eq!(of("7:freezer:/stead/n1/100"), [""; 0]);
        assert_eq!(of("nonsense"), [""; 0]);
    }
}
