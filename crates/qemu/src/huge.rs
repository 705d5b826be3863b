//! The host's part in a guest's memory: its NUMA nodes, and huge pages.
//!
//! Huge pages are a pool of the kernel's. What a start finds missing there it adds, and what was added for a guest goes back
//! when it ends, unless its configuration keeps it; the record of its process says how much that is.

use crate::command::{refuse, unusable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use stead_driver::guest::GuestError;
use stead_model::size::Mebibytes;
use stead_model::vmconfig::Settings;

/// Pages that were added to one of the kernel's pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// The pool's folder.
    pub pool: PathBuf,
    /// How many.
    pub pages: u64,
}

/// What is known of the host, below `/sys`.
#[derive(Debug, Clone)]
pub struct Host(PathBuf);

impl Default for Host {
    fn default() -> Self {
        Self("/sys".into())
    }
}

/// One at a time counts pages and changes their number.
static COUNTING: Mutex<()> = Mutex::new(());

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Pages of a pool that nobody has or has been promised.
fn free(pool: &Path) -> u64 {
    let promised = number(&pool.join("resv_hugepages")).unwrap_or(0);
    number(&pool.join("free_hugepages")).unwrap_or(0).saturating_sub(promised)
}

impl Host {
    /// The size of the huge pages that a guest's memory is made of, if it is. Refuses nodes and sizes that this host has not.
    pub fn page(&self, settings: &Settings) -> Result<Option<Mebibytes>, GuestError> {
        let nodes = settings.numa_nodes().map_err(unusable)?;
        for (guest, (hosts, _)) in
            nodes.iter().enumerate().filter_map(|(n, node)| Some((n, node.host.as_ref()?)))
        {
            let missing = hosts.iter().flat_map(|(from, to)| *from..=*to).find(|n| !self.node(*n).exists());
            if let Some(missing) = missing {
                let why = format!("hostnodes: this host has no NUMA node {missing}");
                return refuse(&format!("numa{guest}"), why);
            }
        }
        let sizes = settings.huge_pages().map_err(unusable)?;
        match sizes.iter().find(|size| pool(&self.0.join("kernel/mm"), **size).exists()) {
            Some(size) => Ok(Some(*size)),
            None if sizes.is_empty() => Ok(None),
            None => {
                let sizes: Vec<String> = sizes.iter().map(|s| format!("{} MiB", s.0)).collect();
                refuse("hugepages", format!("this host has no pages of {}", sizes.join(" or ")))
            }
        }
    }

    fn node(&self, number: u32) -> PathBuf {
        self.0.join(format!("devices/system/node/node{number}"))
    }

    /// Sees to it that there are pages enough, and says which were added.
    pub fn take(&self, settings: &Settings) -> Result<Vec<Added>, GuestError> {
        let Some(size) = self.page(settings)? else { return Ok(vec![]) };
        let mut needed = BTreeMap::<PathBuf, u64>::new();
        for node in settings.numa_nodes().map_err(unusable)? {
            // Where it may be any of several nodes, the kernel has the choice.
            let at = match node.host.as_ref().map(|(hosts, _)| hosts.as_slice()) {
                Some([(from, to)]) if from == to => pool(&self.node(*from), size),
                _ => pool(&self.0.join("kernel/mm"), size),
            };
            *needed.entry(at).or_default() += node.memory.0 / size.0;
        }
        let _counting = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut added = vec![];
        for (pool, pages) in needed {
            match add(&pool, pages) {
                Ok(more) => added.extend((more > 0).then_some(Added { pool, pages: more })),
                Err(why) => {
                    give_back_now(&added);
                    return refuse("hugepages", format!("{pages} pages of {} MiB are needed: {why}", size.0));
                }
            }
        }
        Ok(added)
    }
}

fn pool(below: &Path, size: Mebibytes) -> PathBuf {
    below.join(format!("hugepages/hugepages-{}kB", size.0 << 10))
}

/// Adds what is missing; how much that was. All of it or nothing.
fn add(pool: &Path, pages: u64) -> Result<u64, String> {
    let Some(missing) = pages.checked_sub(free(pool)).filter(|n| *n > 0) else { return Ok(0) };
    let file = pool.join("nr_hugepages");
    let before = number(&file).ok_or_else(|| format!("{} can't be read", file.display()))?;
    let write = |n: u64| std::fs::write(&file, n.to_string()).map_err(|e| format!("{}: {e}", file.display()));
    write(before + missing)?;
    let got = number(&file).unwrap_or(before).saturating_sub(before);
    if got < missing {
        let _ = write(before);
        return Err(format!(
            "{} are free, and the kernel finds memory in one piece for {got} more: reserve them at boot, or move other guests away",
            free(pool)
        ));
    }
    Ok(missing)
}

/// Gives back what was added for a guest that has ended, as far as nobody else has taken it.
pub fn give_back(added: &[Added]) {
    if !added.is_empty() {
        let _counting = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
        give_back_now(added);
    }
}

fn give_back_now(added: &[Added]) {
    for Added { pool, pages } in added {
        let file = pool.join("nr_hugepages");
        let Some(now) = number(&file) else { continue };
        let left = now.saturating_sub(free(pool).min(*pages));
        if let Err(e) = std::fs::write(&file, left.to_string()) {
            tracing::warn!(file = %file.display(), error = %e, "huge pages could not be given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::vmconfig::VmConfig;

    fn settings(text: &str) -> Settings {
        VmConfig::parse(text).unwrap().current
    }

    /// A host with one node and pages of 2 MiB, whose kernel finds as many as are asked for.
    fn host() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        for below in ["kernel/mm", "devices/system/node/node0"] {
            let pool = pool(&dir.path().join(below), Mebibytes(2));
            std::fs::create_dir_all(&pool).unwrap();
            std::fs::write(pool.join("nr_hugepages"), "10\n").unwrap();
            std::fs::write(pool.join("free_hugepages"), "8\n").unwrap();
        }
        let host = Host(dir.path().to_owned());
        (dir, host)
    }

    #[test]
    fn what_the_host_has_not_is_refused_by_name() {
        let (_dir, host) = host();
        let said = |text: &str| host.page(&settings(text)).map_err(|e| e.to_string());
        assert_eq!(said("memory: 64\n"), Ok(None));
        let numa = "memory: 2048\nnuma: 1\n";
        assert_eq!(said(&format!("{numa}hugepages: any\n")), Ok(Some(Mebibytes(2))));
        let e = said(&format!("{numa}hugepages: 1024\n")).unwrap_err();
        assert_eq!(e, "hugepages: this host has no pages of 1024 MiB");
        let node = "cpus=0,memory=2048,policy=bind,hostnodes";
        assert_eq!(said(&format!("{numa}numa0: {node}=0\n")), Ok(None));
        let e = said(&format!("{numa}numa0: {node}=0-1\n")).unwrap_err();
        assert_eq!(e, "numa0: hostnodes: this host has no NUMA node 1");
    }

    #[test]
    fn what_is_missing_is_added_and_goes_back() {
        let (dir, host) = host();
        let nr =
            |below: &str| number(&pool(&dir.path().join(below), Mebibytes(2)).join("nr_hugepages")).unwrap();
        assert_eq!(host.take(&settings("memory: 16\nnuma: 1\nhugepages: 2\n")).unwrap(), []);
        let added = host.take(&settings("memory: 32\nnuma: 1\nhugepages: 2\n")).unwrap();
        assert_eq!((added[0].pages, nr("kernel/mm")), (8, 18));
        give_back(&added);
        assert_eq!(nr("kernel/mm"), 10);
        let bound = "memory: 20\nnuma: 1\nhugepages: 2\nnuma0: cpus=0,memory=20,hostnodes=0,policy=bind\n";
        assert_eq!(host.take(&settings(bound)).unwrap()[0].pages, 2);
        assert_eq!((nr("kernel/mm"), nr("devices/system/node/node0")), (10, 12));
        // Not more than there are can be made: here the file stays as it is.
        let full = pool(&dir.path().join("kernel/mm"), Mebibytes(2)).join("nr_hugepages");
        std::fs::remove_file(&full).unwrap();
        std::fs::create_dir(&full).unwrap();
        let e = host.take(&settings("memory: 32\nnuma: 1\nhugepages: 2\n")).unwrap_err().to_string();
        assert!(e.starts_with("hugepages: 16 pages of 2 MiB are needed: "), "{e}");
        std::fs::remove_dir(&full).unwrap();
        std::fs::write(&full, "10").unwrap();
        // Others have taken them meanwhile.
        std::fs::write(pool(&dir.path().join("kernel/mm"), Mebibytes(2)).join("free_hugepages"), "3")
            .unwrap();
        give_back(&added);
        assert_eq!(nr("kernel/mm"), 7);
    }
}
