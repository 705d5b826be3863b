//! Storages that a joining node brings along: those that its guests use, so that their volumes are found again.
//!
//! Pure. A storage of the cluster takes the place of one that is the same in all that says where volumes lie; one
//! that the cluster lacks is added for that node alone; any other clash of names refuses the join, since a guest's
//! volume would silently be looked for somewhere else.

use crate::OpsError;
use crate::storage_place::LOCAL;
use std::collections::{BTreeMap, BTreeSet};
use stead_model::storage_cfg::{Storage, StorageCfg};
use stead_model::{NodeName, StorageId, Vmid};
use stead_transport::join::JoinStorage;

/// Options that say nothing about where a storage's volumes lie.
const ASIDE: [&str; 7] =
    ["nodes", "content", "disable", "prune-backups", "bwlimit", "max-protected-backups", "preallocation"];

fn place(kind: &str, options: &BTreeMap<String, String>) -> (String, BTreeMap<String, String>) {
    let counts = |key: &&String| !ASIDE.contains(&key.as_str());
    let options = options.iter().filter(|(k, _)| counts(k)).map(|(k, v)| (k.clone(), v.clone()));
    (kind.to_owned(), options.collect())
}

/// Of a node's storages those that its guests' configurations name, in order.
///
/// # Errors
/// If a configuration can't be read: what it names could get lost.
pub fn used(all: &[Storage], guests: &[(Vmid, String)]) -> Result<Vec<JoinStorage>, OpsError> {
    let mut named: BTreeMap<StorageId, Vec<Vmid>> = BTreeMap::new();
    for (vmid, text) in guests {
        let config = crate::guest::config::parse(text)
            .map_err(|e| OpsError::failed(format!("VM {vmid} can't be taken along: {e}")))?;
        let ids: BTreeSet<StorageId> = config.all_volumes().into_iter().map(|v| v.storage).collect();
        for id in ids {
            named.entry(id).or_default().push(*vmid);
        }
    }
    let one = |s: &Storage| {
        let vmids = named.get(&s.id)?.clone();
        Some(JoinStorage { id: s.id.clone(), kind: s.kind.clone(), options: s.options.clone(), vmids })
    };
    Ok(all.iter().filter_map(one).collect())
}

/// The cluster's `storage.cfg` with what the node brings; none if it needs no change.
///
/// # Errors
/// The reason for the user, with every storage that clashes.
pub fn merge(
    cfg: &StorageCfg,
    node: &NodeName,
    brought: &[JoinStorage],
) -> Result<Option<StorageCfg>, String> {
    let mut merged = cfg.clone();
    let mut clashes = vec![];
    for storage in brought {
        if let Err(why) = take(&mut merged, node, storage) {
            let vmids: Vec<String> = storage.vmids.iter().map(ToString::to_string).collect();
            clashes.push(format!("storage '{}' (used by VM {}): {why}", storage.id, vmids.join(", ")));
        }
    }
    match clashes.is_empty() {
        true if merged == *cfg => Ok(None),
        true => Ok(Some(merged)),
        false => Err(format!("guests of this node would lose their volumes: {}", clashes.join("; "))),
    }
}

fn take(cfg: &mut StorageCfg, node: &NodeName, storage: &JoinStorage) -> Result<(), String> {
    let known = cfg.list().0.into_iter().find(|s| s.id == storage.id);
    let built_in = storage.options.get("path").is_some_and(|p| !p.starts_with('/'));
    match known {
        // The one that every node starts with, and the cluster has removed: its path, and no other, is no user's.
        None if built_in => {
            let mut with = StorageCfg::parse(&format!("{cfg}\n{LOCAL}")).map_err(|e| e.to_string())?;
            let mut options = storage.options.clone();
            options.remove("path");
            options.insert("nodes".to_owned(), node.to_string());
            let options = options.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            let made = with.update(&storage.id, options, []).map_err(|e| e.to_string())?;
            if place(&made.kind, &made.options) != place(&storage.kind, &storage.options) {
                return Err("its path is not absolute".to_owned());
            }
            *cfg = with;
            Ok(())
        }
        None => {
            let nodes = node.to_string();
            let mut options = storage.options.clone();
            options.insert("nodes".to_owned(), nodes);
            let options = options.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            cfg.add(&storage.id, &storage.kind, options).map(drop).map_err(|e| e.to_string())
        }
        Some(there) if place(&there.kind, &there.options) != place(&storage.kind, &storage.options) => {
            Err("the cluster has another one of that name; rename it on this node first".to_owned())
        }
        Some(there) if !there.is_enabled_on(node) => {
            Err(format!("in the cluster it is not for node '{node}'; add this node to its 'nodes' first"))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cfg(text: &str) -> StorageCfg {
        StorageCfg::parse(text).unwrap()
    }

    fn vmid(n: u32) -> Vmid {
        Vmid::new(n).unwrap()
    }

    const MINE: &str = "dir: local\n\tpath /var/local\n\tcontent images,iso\n\ndir: fast\n\tpath /mnt/fast\n\tcontent images\n\ndir: idle\n\tpath /mnt/idle\n";

    fn brought() -> Vec<JoinStorage> {
        let guests = [
            (vmid(100), "scsi0: local:100/vm-100-disk-0.raw\n".to_owned()),
            (vmid(101), "name: x\n[PENDING]\nscsi0: fast:101/vm-101-disk-0.raw\n".to_owned()),
            (vmid(102), "scsi0: fast:102/vm-102-disk-0.raw\nide2: none,media=cdrom\n".to_owned()),
        ];
        used(&cfg(MINE).list().0, &guests).unwrap()
    }

    #[test]
    fn what_no_guest_uses_stays_behind() {
        let names: Vec<_> = brought().iter().map(|s| (s.id.to_string(), s.vmids.clone())).collect();
        assert_eq!(
            names,
            [("local".to_owned(), vec![vmid(100)]), ("fast".to_owned(), vec![vmid(101), vmid(102)])]
        );
    }

    #[test]
    fn what_the_cluster_lacks_is_added_for_that_node_alone() {
        let node: NodeName = "n2".parse().unwrap();
        let theirs = cfg("dir: local\n\tpath /var/local\n\tcontent iso\n\tprune-backups keep-last=1\n");
        let merged = merge(&theirs, &node, &brought()).unwrap().unwrap();
        let (all, bad) = merged.list();
        assert!(bad.is_empty() && all.len() == 2, "{merged}");
        let fast = merged.get(&"fast".parse().unwrap()).unwrap();
        assert!(fast.is_enabled_on(&node) && !fast.is_enabled_on(&"n1".parse().unwrap()), "{merged}");
        assert_eq!(fast.options["path"], "/mnt/fast");
        // Asked again, after a join that was cut off.
        assert_eq!(merge(&merged, &node, &brought()).unwrap(), None);
    }

    #[test]
    fn a_clash_refuses_and_names_storage_and_guests() {
        let node: NodeName = "n2".parse().unwrap();
        let theirs = cfg(
            "dir: local\n\tpath /somewhere/else\n\tcontent images\n\ndir: fast\n\tpath /mnt/fast\n\tcontent images\n\tnodes n1\n",
        );
        let why = merge(&theirs, &node, &brought()).unwrap_err();
        assert!(why.contains("storage 'local' (used by VM 100): the cluster has another one"), "{why}");
        assert!(
            why.contains("storage 'fast' (used by VM 101, 102): in the cluster it is not for node 'n2'"),
            "{why}"
        );
        let shared = cfg("dir: local\n\tpath /var/local\n\tcontent images\n\tshared 1\n");
        assert!(
            merge(&shared, &node, &brought()).is_err(),
            "taken for shared, it would be expected elsewhere"
        );
    }

    #[test]
    fn the_built_in_storage_is_the_same_on_all_nodes_and_comes_back_where_it_was_removed() {
        let node: NodeName = "n2".parse().unwrap();
        let guests = [(vmid(100), "scsi0: local:100/vm-100-disk-0.raw\n".to_owned())];
        let brought = used(&cfg(LOCAL).list().0, &guests).unwrap();
        assert_eq!(merge(&cfg(LOCAL), &node, &brought).unwrap(), None);
        let merged = merge(&cfg("dir: fast\n\tpath /mnt/fast\n"), &node, &brought).unwrap().unwrap();
        let local = merged.get(&"local".parse().unwrap()).unwrap();
        assert_eq!((local.options["path"].as_str(), local.options["nodes"].as_str()), ("local", "n2"));
        let elsewhere = JoinStorage {
            options: [("path".to_owned(), "../etc".to_owned())].into(),
            ..brought.into_iter().next().unwrap()
        };
        assert!(merge(&StorageCfg::default(), &node, &[elsewhere]).is_err());
    }

    #[test]
    fn a_guest_that_can_t_be_read_is_not_left_behind_silently() {
        let e = used(&[], &[(vmid(100), "no such line".to_owned())]).unwrap_err();
        assert!(e.to_string().starts_with("VM 100 can't be taken along"), "{e}");
    }
}
