//! How a step is seen from outside, at once: in a task's log as its node writes it, in the folders of storages, or as a node that
//! takes part answers it.

use super::bed::Bed;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A step's sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The task is there.
    Begun,
    /// Its log says so.
    Log(&'static str),
    /// The log of another task says so, on the target.
    TargetLog { task: &'static str, text: &'static str },
    /// There is a volume that was not there before.
    Volume,
    /// The VM has this lock.
    Locked(&'static str),
    /// It has none any more.
    Unlocked,
    /// The target says that the VM is its own.
    Moved,
}

/// Who takes part in a cell, by the nodes' numbers from 0.
#[derive(Debug, Clone, Copy)]
pub struct Roles {
    pub source: usize,
    pub target: usize,
    pub leader: usize,
}

/// A step that lasts is slower than this.
const WITHIN: Duration = Duration::from_secs(20);
/// A task may be answered so long before its record is on disk.
const RECORDED: Duration = Duration::from_millis(500);

/// The task of a VM that is under way on a node, by its id.
pub fn active(node_dir: &Path, task: &str, vmid: u32) -> Option<String> {
    let mark = format!(":{task}:{vmid}:");
    let all = std::fs::read_dir(node_dir.join("tasks/active")).ok()?;
    all.flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .find(|name| name.contains(&mark) && !name.starts_with('.'))
}

/// Any task of a VM on a node.
pub fn any_active(node_dir: &Path, vmid: u32) -> Option<String> {
    let all = std::fs::read_dir(node_dir.join("tasks/active")).ok()?;
    all.flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .find(|name| !name.starts_with('.') && name.split(':').nth(6) == Some(&vmid.to_string()))
}

/// Its log.
fn log(node_dir: &Path, upid: &str) -> String {
    let start = upid.split(':').nth(4).and_then(|t| u64::from_str_radix(t, 16).ok()).unwrap_or_default();
    let path = node_dir.join(format!("tasks/{:02X}/{upid}", start & 0xff));
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The files that a VM has in these folders.
pub fn files(folders: &[(String, PathBuf)], vmid: u32) -> BTreeSet<(String, String)> {
    let mut all = BTreeSet::new();
    for (storage, folder) in folders {
        let entries = std::fs::read_dir(folder.join(format!("images/{vmid}")));
        for entry in entries.into_iter().flatten().flatten() {
            all.insert((storage.clone(), entry.file_name().to_string_lossy().into_owned()));
        }
    }
    all
}

/// What is looked at on disk, without asking anybody.
#[derive(Debug, Clone)]
struct OnDisk {
    at: At,
    source: PathBuf,
    target: PathBuf,
    task: &'static str,
    vmid: u32,
    folders: Vec<(String, PathBuf)>,
    before: BTreeSet<(String, String)>,
    seen: Option<String>,
    begun: Arc<AtomicBool>,
    begun_at: Option<Instant>,
}

impl OnDisk {
    /// Whether its sign is there, and whether the move was over before.
    fn look(&mut self) -> (bool, bool) {
        if self.begun_at.is_none() && self.begun.load(Ordering::SeqCst) {
            self.begun_at = Some(Instant::now());
        }
        let now = active(&self.source, self.task, self.vmid);
        let is_late = self.begun_at.is_some_and(|at| at.elapsed() > RECORDED);
        let is_over = now.is_none() && (self.seen.is_some() || is_late);
        self.seen = now.or(self.seen.take());
        let is_there = match self.at {
            At::Begun => self.seen.is_some(),
            At::Log(text) => self.seen.as_ref().is_some_and(|upid| log(&self.source, upid).contains(text)),
            At::TargetLog { task, text } => active(&self.target, task, self.vmid)
                .is_some_and(|upid| log(&self.target, &upid).contains(text)),
            At::Volume => files(&self.folders, self.vmid).difference(&self.before).next().is_some(),
            At::Locked(_) | At::Unlocked | At::Moved => false,
        };
        (is_there, is_over)
    }
}

/// Waits for a step's sign; whether it was seen before the move was over. `begun`: the move's call was answered.
pub async fn spot(
    bed: &Bed,
    at: At,
    task: &'static str,
    roles: Roles,
    begun: Arc<AtomicBool>,
    before: BTreeSet<(String, String)>,
) -> Result<bool> {
    let dir = |n: usize| bed.cluster().node(n).dir().to_owned();
    let mut on_disk = OnDisk {
        at,
        source: dir(roles.source),
        target: dir(roles.target),
        task,
        vmid: bed.vmid(),
        folders: bed.folders().to_vec(),
        before,
        seen: None,
        begun,
        begun_at: None,
    };
    let until = Instant::now() + WITHIN;
    if !matches!(at, At::Locked(_) | At::Unlocked | At::Moved) {
        // A thread of its own: a step may be over in a millisecond.
        let look = move || loop {
            match on_disk.look() {
                (true, _) => return true,
                (false, is_over) if is_over || Instant::now() > until => return false,
                _ => std::thread::sleep(Duration::from_micros(300)),
            }
        };
        return Ok(tokio::task::spawn_blocking(look).await?);
    }
    let asked = if at == At::Moved { roles.target } else { roles.source };
    let api = bed.api(asked)?;
    let (path, target) = (format!("{}/config", bed.path(asked)), bed.cluster().node(roles.target).name());
    loop {
        let (_, is_over) = on_disk.look();
        let is_there = match at {
            At::Moved => bed.cluster().guest_row(&api, bed.vmid()).await.is_ok_and(|r| r["node"] == target),
            At::Locked(lock) => api.get(&path).await.is_ok_and(|config| config["lock"] == lock),
            _ => api.get(&path).await.is_ok_and(|config| config["lock"].is_null()),
        };
        if is_there {
            return Ok(true);
        }
        if is_over || Instant::now() > until {
            return Ok(false);
        }
        tokio::task::yield_now().await;
    }
}
