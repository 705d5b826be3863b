//! How much of the host's CPUs a guest gets: the `cpu` controller of cgroups, of either version.
//!
//! In the second version it is the guest's own group that has the files; in the first the controller is a tree of its own, and a
//! guest whose options ask for it gets a group there, besides the one that the fence process freezes and kills. Nothing here touches
//! that one but by writing what share it has.

use crate::QemuOptions;
use crate::cgroup::Cgroup;
use crate::guest::Guest;
use std::io;
use std::path::{Path, PathBuf};
use stead_model::Vmid;
use stead_model::vmconfig::{CpuShare, Settings};

/// Over so long, in microseconds, the kernel counts what a group has used.
const PERIOD: u32 = 100_000;
/// The least that a group can have of it.
const LEAST: u32 = 1_000;

/// The groups of a node's guests lie below such a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuRoot {
    /// Of the first version: guests have their groups here for this alone.
    V1(PathBuf),
    /// Of the second: each guest's own group is below.
    V2(PathBuf),
}

/// The tree in which this process can bound guests, if there is one. `tag` tells nodes on one machine apart.
pub fn find_cpu_root(tag: &str) -> Option<CpuRoot> {
    let v2 = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new).into_iter().find_map(|tree| {
        let root = tree.join("stead").join(tag);
        let has = std::fs::read_to_string(tree.join("cgroup.controllers")).ok()?;
        has.split_ascii_whitespace().any(|c| c == "cpu").then_some(())?;
        usable(&root, "cpu.max", || hand_down(&root)).then_some(CpuRoot::V2(root))
    });
    v2.or_else(|| {
        let root = Path::new("/sys/fs/cgroup/cpu/stead").join(tag);
        usable(&root, "cpu.cfs_quota_us", || ()).then_some(CpuRoot::V1(root))
    })
}

/// Whether a group that is made below has the file.
fn usable(root: &Path, file: &str, prepare: impl FnOnce()) -> bool {
    let Ok(probe) = Cgroup::create(root.join("probe")) else { return false };
    prepare();
    let usable = probe.path().join(file).exists();
    probe.remove();
    usable
}

/// A group of the second version has the controller where all above it hand it down.
fn hand_down(root: &Path) {
    let above: Vec<&Path> = root.ancestors().take(3).collect();
    for folder in above.into_iter().rev() {
        // Where it can't be, the file is missing below, which is what counts.
        let _ = std::fs::write(folder.join("cgroup.subtree_control"), "+cpu");
    }
}

/// The files of a group, and what is written into them.
fn values(root: &CpuRoot, share: CpuShare) -> Vec<(&'static str, String)> {
    let quota = (share.limit > 0.0).then(|| {
        // Within the range of the option no digit that counts is lost.
        let quota = (share.limit * f64::from(PERIOD)).round() as u64;
        quota.max(LEAST.into())
    });
    match root {
        CpuRoot::V1(_) => vec![
            ("cpu.cfs_period_us", PERIOD.to_string()),
            ("cpu.cfs_quota_us", quota.map_or_else(|| "-1".to_owned(), |q| q.to_string())),
            ("cpu.shares", share.units.unwrap_or(1024).max(2).to_string()),
        ],
        CpuRoot::V2(_) => vec![
            ("cpu.max", format!("{} {PERIOD}", quota.map_or_else(|| "max".to_owned(), |q| q.to_string()))),
            ("cpu.weight", share.units.unwrap_or(100).clamp(1, 10_000).to_string()),
        ],
    }
}

/// The group of the first version that a guest has for this; made by [`bound`].
pub fn own_group(options: &QemuOptions, vmid: Vmid) -> Option<PathBuf> {
    match options.cpu_root.as_ref()? {
        CpuRoot::V1(root) => Some(root.join(vmid.to_string())),
        CpuRoot::V2(_) => None,
    }
}

/// Removes what an earlier process of the guest has left; nothing where one is in it.
pub fn clear(group: Option<PathBuf>) {
    if let Some(group) = group.and_then(Cgroup::at) {
        group.remove();
    }
}

/// Gives a guest its share. The group that its process must enter for that, if it is not in it anyway.
pub fn bound(options: &QemuOptions, vmid: Vmid, share: CpuShare) -> io::Result<Option<Cgroup>> {
    let missing = || io::Error::new(io::ErrorKind::Unsupported, NONE);
    let Some(root) = &options.cpu_root else {
        return if share.is_default() { Ok(None) } else { Err(missing()) };
    };
    let group = match root {
        CpuRoot::V1(root) => {
            let path = root.join(vmid.to_string());
            // Whoever asks for nothing needs no group; one that is there is told so.
            if share.is_default() && !path.exists() {
                return Ok(None);
            }
            Cgroup::create(path)?
        }
        CpuRoot::V2(root) => {
            hand_down(root);
            match Cgroup::at(root.join(vmid.to_string())) {
                Some(group) => group,
                None if share.is_default() => return Ok(None),
                None => {
                    return Err(io::Error::new(io::ErrorKind::NotFound, "the guest has no group of its own"));
                }
            }
        }
    };
    for (file, text) in values(root, share) {
        let path = group.path().join(file);
        // Whoever asks for nothing misses nothing.
        if share.is_default() && !path.exists() {
            continue;
        }
        std::fs::write(&path, &text).map_err(|e| {
            io::Error::new(e.kind(), format!("{} does not take '{text}': {e}", path.display()))
        })?;
    }
    Ok(matches!(root, CpuRoot::V1(_)).then_some(group))
}

const NONE: &str = "this node has no 'cpu' controller of cgroups that its daemon may use";

/// What an option that this node can't carry out does to a start: it is told, and the guest runs without.
pub fn warning(options: &QemuOptions, settings: &Settings) -> Option<String> {
    let share = settings.cpu_share().ok()?;
    (options.cpu_root.is_none() && !share.is_default())
        .then(|| format!("cpulimit, cpuunits: {NONE}: the VM runs without them"))
}

/// As [`bound`], but for the limit: what a process does before its guest runs, and at its end, is not the guest's.
pub fn bound_later(options: &QemuOptions, vmid: Vmid, share: CpuShare) -> io::Result<Option<Cgroup>> {
    let group = bound(options, vmid, share)?;
    if share.limit > 0.0 {
        bound(options, vmid, CpuShare { limit: 0.0, ..share })?;
    }
    Ok(group)
}

/// Takes the limit off a guest that is about to end.
pub fn unbound(options: &QemuOptions, vmid: Vmid) {
    let Some(root) = &options.cpu_root else { return };
    let (CpuRoot::V1(folder) | CpuRoot::V2(folder)) = root;
    for (file, text) in values(root, CpuShare { limit: 0.0, units: None }) {
        let path = folder.join(vmid.to_string()).join(file);
        if file != "cpu.shares" && file != "cpu.weight" && path.exists() {
            // Where it stays, the end takes longer.
            let _ = std::fs::write(path, text);
        }
    }
}

/// Gives a running guest its share. Its record knows of a group before there is one.
pub fn give(options: &QemuOptions, guest: &Guest, share: CpuShare) -> io::Result<()> {
    if let Some(group) = own_group(options, guest.vmid).filter(|_| !share.is_default()) {
        guest.note(|meta| meta.cpu_cgroup = Some(group))?;
    }
    bound(options, guest.vmid, share)?.map_or(Ok(()), |group| group.take_in(guest.process.pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_told_the_same() {
        let of = |root: CpuRoot, limit: f64, units: Option<u32>| {
            let all = values(&root, CpuShare { limit, units });
            all.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(" ")
        };
        let (v1, v2) = (|| CpuRoot::V1("/".into()), || CpuRoot::V2("/".into()));
        assert_eq!(of(v1(), 0.0, None), "100000 -1 1024");
        assert_eq!(of(v2(), 0.0, None), "max 100000 100");
        assert_eq!(of(v1(), 0.5, Some(2048)), "100000 50000 2048");
        assert_eq!(of(v2(), 1.25, Some(2048)), "125000 100000 2048");
        // What the kernel does not take is the least or the most that it does.
        assert_eq!(of(v1(), 0.0001, Some(1)), "100000 1000 2");
        assert_eq!(of(v2(), 128.0, Some(262_144)), "12800000 100000 10000");
    }

    #[test]
    fn where_there_is_no_controller_only_who_asks_for_it_hears_of_it() {
        let options = QemuOptions::new("/tmp/x");
        let vmid = Vmid::new(100).unwrap();
        let default = CpuShare { limit: 0.0, units: None };
        assert!(bound(&options, vmid, default).unwrap().is_none());
        let e = bound(&options, vmid, CpuShare { limit: 1.0, units: None }).unwrap_err();
        assert!(e.to_string().contains("controller"), "{e}");
    }
}
