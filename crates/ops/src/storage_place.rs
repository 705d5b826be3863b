//! Where a storage lies on a node, and who would miss it.

use crate::{OpsError, store};
use std::collections::BTreeMap;
use std::path::Path;
use stead_conf::Tree;
use stead_model::storage_cfg::Storage;
use stead_model::{StorageId, Vmid};

/// The storage that a new cluster has. Its path is that of a folder in each node's own data directory: nodes on one
/// machine differ in that directory, and what is on one node's must not be taken for another's.
pub const LOCAL: &str = "dir: local\n\tpath local\n\tcontent images,iso,snippets,import\n";

/// A storage's options as they are on a node with this data directory: there a path that is not absolute begins.
pub(crate) fn options_on(dir: &Path, storage: &Storage) -> Result<BTreeMap<String, String>, OpsError> {
    let mut options = storage.options.clone();
    if let Some(path) = options.get_mut("path").filter(|p| !p.starts_with('/')) {
        if storage.shared {
            let why =
                format!("storage '{}' lies in each node's own directory: it can't be shared", storage.id);
            return Err(OpsError::invalid("shared", why));
        }
        *path = dir.join(&*path).display().to_string();
    }
    Ok(options)
}

/// The guests whose configurations name a storage, what is pending and snapshots included. One that can't be read is
/// among them: what it names could get lost.
pub(crate) fn users_of(tree: &Tree, id: &StorageId) -> Vec<Vmid> {
    let names =
        |vmid: Vmid| match store::guest(tree, vmid).map(|g| crate::guest::config::parse(&g.config.value)) {
            Ok(Ok(config)) => config.all_volumes().iter().any(|v| v.storage == *id),
            Ok(Err(_)) => true,
            // Its number alone is taken: it is on its way with a node that joins.
            Err(_) => false,
        };
    store::guests(tree).into_iter().map(|(v, _)| v).filter(|v| names(*v)).collect()
}

/// An error with the path of the storage that it is about.
pub(crate) fn naming(e: OpsError, storage: &Storage) -> OpsError {
    match (e, storage.options.get("path")) {
        (OpsError::Failed(why), Some(path)) if !why.contains(path) => {
            OpsError::Failed(format!("{why} (path {path})"))
        }
        (e, _) => e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::storage_cfg::StorageCfg;

    fn storage(text: &str) -> Storage {
        StorageCfg::parse(text).unwrap().list().0.remove(0)
    }

    #[test]
    fn the_built_in_storage_is_each_node_s_own() {
        let local = storage(LOCAL);
        let path = |dir: &str| options_on(Path::new(dir), &local).unwrap()["path"].clone();
        assert_eq!(path("/tmp/bed/n1"), "/tmp/bed/n1/local");
        assert_eq!(path("/tmp/bed/n2"), "/tmp/bed/n2/local");
        let absolute = storage("dir: srv\n\tpath /srv/x\n\tshared 1\n");
        assert_eq!(options_on(Path::new("/n1"), &absolute).unwrap(), absolute.options);
        let shared = storage(&format!("{LOCAL}\tshared 1\n"));
        let e = options_on(Path::new("/n1"), &shared).unwrap_err().to_string();
        assert!(e.starts_with("shared: storage 'local' lies in each node's own directory"), "{e}");
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_path() {
        let proc = storage("dir: srv\n\tpath /proc/nope\n");
        let said = |why: &str| naming(OpsError::failed(why), &proc).to_string();
        assert_eq!(said("No such file"), "No such file (path /proc/nope)");
        assert_eq!(said("/proc/nope: no such file"), "/proc/nope: no such file");
    }
}
