//! Whether a state is one that `apply` can have made: what the checksums of its envelopes cannot tell.

use crate::machine::Machine;
use crate::seal::{ClusterKey, is_sealed};
use crate::tree::Tree;
use crate::txn::{MAX_FILE, MAX_TREE, check_path};
use std::collections::BTreeSet;
use stead_model::paths;

/// What is wrong with a state, a line each; nothing if it is sound. With the cluster's key its secrets are opened, too.
pub fn faults(machine: &Machine, key: Option<&ClusterKey>) -> Vec<String> {
    let mut out = of_tree(machine.tree());
    if let Some(key) = key {
        out.extend(of_secrets(machine.tree(), key));
    }
    out.extend(of_history(machine));
    let members = machine.members();
    let back: Vec<u64> = members.all().intersection(machine.removed()).copied().collect();
    if !back.is_empty() {
        out.push(format!("members {back:?} are said to be removed, too"));
    }
    // One that waits to be let in has neither.
    if members.voters.is_empty() && !machine.tree().is_empty() {
        out.push("nobody votes".to_owned());
    }
    out
}

fn of_tree(tree: &Tree) -> Vec<String> {
    let mut out = vec![];
    let mut vmids: BTreeSet<u32> = BTreeSet::new();
    let mut bytes = 0;
    for (path, entry) in tree.list("") {
        bytes += (path.len() + entry.data.len()) as u64;
        if let Err(e) = check_path(path) {
            out.push(e.to_string());
        }
        if entry.data.len() > MAX_FILE {
            out.push(format!("'{path}' has {} bytes, more than a file may have", entry.data.len()));
        }
        if entry.revision > tree.revision() {
            out.push(format!("'{path}' is of revision {}, which is yet to come", entry.revision));
        }
        if path.starts_with(paths::PRIVATE) && !is_sealed(&entry.data) {
            out.push(format!("'{path}' is not sealed"));
        }
        if let Some((at, _)) = path.match_indices('/').find(|(at, _)| tree.get(&path[..*at]).is_some()) {
            out.push(format!("'{}' is a file, and a folder with '{path}'", &path[..at]));
        }
        if let Some((_, _, vmid)) = paths::as_guest(path)
            && !vmids.insert(vmid.get())
        {
            out.push(format!("VM {vmid} is there twice: '{path}' is one of them"));
        }
    }
    if bytes != tree.bytes() || bytes > MAX_TREE {
        out.push(format!("the tree has {bytes} bytes; it counts {}, and may have {MAX_TREE}", tree.bytes()));
    }
    out
}

fn of_secrets(tree: &Tree, key: &ClusterKey) -> Vec<String> {
    let secrets = tree.list(paths::PRIVATE);
    secrets.filter_map(|(path, entry)| key.unseal(path, &entry.data).err()).map(|e| e.to_string()).collect()
}

/// What a path holds is what its last change wrote.
fn of_history(machine: &Machine) -> Vec<String> {
    let (tree, mut out) = (machine.tree(), vec![]);
    let mut seen = BTreeSet::new();
    for change in machine.history().all().rev() {
        if change.revision > tree.revision() {
            out.push(format!(
                "a change of '{}' is of revision {}, yet to come",
                change.path, change.revision
            ));
        }
        if !seen.insert(change.path.as_str()) {
            continue;
        }
        let now = tree.get(&change.path);
        let same = match (now, &change.new) {
            (None, None) => true,
            (Some(now), Some(new)) => now.data == *new && now.revision == change.revision,
            _ => false,
        };
        if !same {
            out.push(format!("'{}' is not what its last change, {}, made it", change.path, change.revision));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;
    use crate::tree::TreeImage;
    use crate::txn::{Revision, Txn};
    use std::collections::BTreeMap;

    fn entry(data: &str, revision: u64) -> crate::tree::Entry {
        crate::tree::Entry { data: data.to_owned().into(), revision: Revision(revision) }
    }

    #[test]
    fn what_apply_made_is_sound_and_what_it_never_makes_is_told() {
        let key = ClusterKey::from([3; 32]);
        let txn = Txn::new("x").put("a", "1").put("priv/s", key.seal("priv/s", b"s").unwrap());
        let machine = Machine::found(1, &txn, 0).unwrap();
        assert_eq!(faults(&machine, Some(&key)), Vec::<String>::new());
        let other = faults(&machine, Some(&ClusterKey::from([4; 32])));
        assert!(other.len() == 1 && other[0].contains("another cluster key"), "{other:?}");
        let entries: BTreeMap<String, crate::tree::Entry> = [
            ("a", entry("not what was written", 1)),
            ("f", entry("", 1)),
            ("f/g", entry("", 9)),
            ("nodes/n1/qemu-server/100.conf", entry("", 1)),
            ("nodes/n2/qemu-server/100.conf", entry("", 1)),
            ("priv/s", entry("plain", 1)),
            ("x//y", entry("", 1)),
        ]
        .map(|(path, entry)| (path.to_owned(), entry))
        .into();
        let broken = Machine::with(
            Tree::from_image(TreeImage { entries, revision: Revision(1), level: 1 }),
            History::clone(machine.history()),
        );
        let told = faults(&broken, None).join("\n");
        for word in [
            "'a' is not what",
            "'f' is a file",
            "'f/g' is of revision 9",
            "VM 100",
            "not sealed",
            "x//y",
            "votes",
        ] {
            assert!(told.contains(word), "{word}: {told}");
        }
    }
}
