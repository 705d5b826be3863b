//! A guest's cgroup: a v2 group, or one of the v1 freezer.
//!
//! It exists for two things: the fence process freezes it, and SIGKILL reaches all of it. A frozen group is
//! never thawed before SIGKILL is pending for everything in it, since a process that is thawed first would
//! write.

use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often it is asked who is left in one.
const LOOK: Duration = Duration::from_millis(10);
/// After so long it is said that somebody is.
const SLOW: Duration = Duration::from_secs(10);

/// A folder of a cgroup tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes the folder, or takes the one that is there. One in which nobody is left is thawed: whoever was frozen there is
    /// dead, and who comes next would never run.
    pub fn create(path: PathBuf) -> io::Result<Self> {
        let group = Self::make(path)?;
        if group.is_frozen() && group.members().is_empty() {
            group.thaw()?;
        }
        Ok(group)
    }

    fn make(path: PathBuf) -> io::Result<Self> {
        // The last guest of another node may just remove the group above.
        let mut made = std::fs::create_dir_all(&path);
        for _ in 0..8 {
            match made {
                Err(e) if e.kind() == io::ErrorKind::NotFound => made = std::fs::create_dir_all(&path),
                other => return other.map(|()| Self(path)),
            }
        }
        made.map(|()| Self(path))
    }

    /// The folder of a group that exists.
    pub fn at(path: PathBuf) -> Option<Self> {
        path.join("cgroup.procs").exists().then_some(Self(path))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The file into which a process writes `0` to become a member.
    pub fn entrance(&self) -> io::Result<std::fs::File> {
        std::fs::File::options().write(true).open(self.0.join("cgroup.procs"))
    }

    /// Makes a process a member, with all its threads.
    pub fn take_in(&self, pid: u32) -> io::Result<()> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }

    /// Whether all of it is frozen, by the kernel's word.
    pub fn is_frozen(&self) -> bool {
        let read = |file| std::fs::read_to_string(self.0.join(file)).unwrap_or_default();
        read("cgroup.events").lines().any(|l| l == "frozen 1")
            || matches!(read("freezer.state").trim(), "FROZEN" | "FREEZING")
    }

    fn members(&self) -> Vec<Pid> {
        let text = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| Pid::from_raw(l.parse().ok()?)).collect()
    }

    /// SIGKILL to all members; they die at once, frozen or not.
    pub fn kill(&self) -> io::Result<()> {
        let all_at_once = self.0.join("cgroup.kill");
        if all_at_once.exists() {
            return std::fs::write(all_at_once, "1");
        }
        for pid in self.members() {
            // One that ended meanwhile is no failure.
            let _ = kill_process(pid, Signal::KILL);
        }
        // SIGKILL is pending for every member: none returns to its own code.
        self.thaw()
    }

    fn thaw(&self) -> io::Result<()> {
        for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            let file = self.0.join(file);
            if file.exists() {
                std::fs::write(file, word)?;
            }
        }
        Ok(())
    }

    /// Waits until nobody is left in it: also those who do not end at once, in the middle of a write.
    pub async fn emptied(&self) {
        let mut told = tokio::time::Instant::now() + SLOW;
        while !self.members().is_empty() {
            if tokio::time::Instant::now() > told {
                tracing::warn!(group = %self.0.display(), members = ?self.members(), "what is in it was killed, and does not end yet");
                told += SLOW;
            }
            // No event tells it of all kinds of groups.
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Removes the empty group, and those above it with their last guest.
    pub fn remove(&self) {
        remove_upwards(&self.0);
    }
}

/// Removes a folder and the two above it (the node's, and the one of all nodes), as far as they are empty.
fn remove_upwards(path: &Path) {
    for folder in path.ancestors().take(3) {
        // Where others are in it, or where it is not ours to remove.
        if std::fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

/// Where guests' groups can be made by this process: below the v2 tree, or the v1 freezer. `tag` tells nodes
/// on one machine apart. None without privileges, or where no such tree is mounted.
pub fn find_cgroup_root(tag: &str) -> Option<PathBuf> {
    let trees = [
        ("/sys/fs/cgroup", "cgroup.kill"),
        ("/sys/fs/cgroup/unified", "cgroup.kill"),
        ("/sys/fs/cgroup/freezer", "freezer.state"),
    ];
    trees.into_iter().find_map(|(tree, proof)| {
        let root = Path::new(tree).join("stead").join(tag);
        // The roots of the trees have none of these files; a group that is made has.
        let probe = Cgroup::create(root.join("probe")).ok()?;
        let usable = probe.path().join(proof).exists();
        probe.remove();
        usable.then_some(root)
    })
}
