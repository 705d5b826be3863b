//! What lies where: the tree as folders and files, with what is there whatever the tree holds.

use crate::special::{self, Special};
use stead_conf::{Revision, Tree};
use stead_model::{NodeName, paths};
use stead_ops::files::{MARKER, is_own, is_private};

/// Folders at the top that are always there.
const FIXED: [&str; 5] = ["ha", "mapping", "nodes", "priv", "virtual-guest"];
/// Folders that each node has.
const OF_NODE: [&str; 2] = ["lxc", "qemu-server"];
/// Names of this node's own at the top.
const LINKS: [&str; 3] = ["local", "lxc", "qemu-server"];

/// What lies at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Other paths.
    Folder,
    /// A value of the tree.
    File {
        /// Which version of it.
        revision: Revision,
        /// How many bytes are stored.
        stored: usize,
    },
    /// A file that is made when it is read.
    Special(Special),
    /// Another name for that path.
    Link(String),
}

fn is_member(tree: &Tree, name: &str) -> bool {
    tree.get(&format!("{}{name}", paths::NODES)).is_some()
}

/// Whether a folder is there whatever it holds, and can't be removed.
pub fn is_fixed(tree: &Tree, path: &str) -> bool {
    if path.is_empty() || FIXED.contains(&path) {
        return true;
    }
    let mut parts = path.split('/');
    let (Some("nodes"), Some(node), below, None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    is_member(tree, node) && below.is_none_or(|b| OF_NODE.contains(&b))
}

/// What lies at a path; `""` is the top.
pub fn look(tree: &Tree, path: &str, me: &NodeName) -> Option<Kind> {
    if !path.contains('/') {
        if let Some((_, special)) = special::ALL.iter().find(|(name, _)| *name == path) {
            return Some(Kind::Special(*special));
        }
        match path {
            "local" => return Some(Kind::Link(format!("nodes/{me}"))),
            "qemu-server" | "lxc" => return Some(Kind::Link(format!("nodes/{me}/{path}"))),
            _ => {}
        }
    }
    if path.rsplit('/').next() == Some(MARKER) {
        return None;
    }
    if let Some(entry) = tree.get(path) {
        return Some(Kind::File { revision: entry.revision, stored: entry.data.len() });
    }
    (is_fixed(tree, path) || tree.is_folder(path)).then_some(Kind::Folder)
}

/// The names in a folder, in order.
pub fn list(tree: &Tree, folder: &str) -> Vec<String> {
    let stored = tree.children(folder).into_iter().map(|(name, _)| name).filter(|name| *name != MARKER);
    let mut names: Vec<String> = stored.map(str::to_owned).collect();
    let mut always: Vec<&str> = vec![];
    let nodes: Vec<&str> =
        tree.list(paths::NODES).filter_map(|(p, _)| p.strip_prefix(paths::NODES)).collect();
    match folder {
        "" => {
            always.extend(special::ALL.map(|(name, _)| name));
            always.extend(FIXED);
            always.extend(LINKS);
        }
        "nodes" => always.extend(nodes),
        _ if folder.strip_prefix("nodes/").is_some_and(|n| nodes.contains(&n)) => always.extend(OF_NODE),
        _ => return names,
    }
    names.extend(always.into_iter().map(str::to_owned));
    names.sort();
    names.dedup();
    names
}

/// Who may do what with it. `writable`: whether anything can be changed now.
pub fn permissions(path: &str, kind: &Kind, writable: bool) -> u16 {
    let all = match kind {
        Kind::Link(_) => return 0o777,
        Kind::Special(Special::LastError) => 0o400,
        Kind::Special(_) => 0o440,
        Kind::Folder if is_private(path) => 0o700,
        Kind::Folder => 0o755,
        Kind::File { .. } if is_private(path) => 0o600,
        Kind::File { .. } => 0o640,
    };
    if writable && !is_own(path) { all } else { all & !0o222 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_conf::Txn;

    fn tree() -> Tree {
        let mut tree = Tree::new();
        let txn = Txn::new("x")
            .put("stead/nodes/n1", "{}")
            .put("stead/nodes/n2", "{}")
            .put("storage.cfg", "x")
            .put("nodes/n1/qemu-server/100.conf", "cores: 1\n")
            .put(format!("mine/{MARKER}"), "");
        tree.apply(&txn).unwrap();
        tree
    }

    #[test]
    fn what_administrators_know_is_where_they_look() {
        let (tree, me) = (tree(), "n1".parse().unwrap());
        let top = [
            ".clusterlog",
            ".members",
            ".stead-last-error",
            ".version",
            ".vmlist",
            "ha",
            "local",
            "lxc",
            "mapping",
            "mine",
            "nodes",
            "priv",
            "qemu-server",
            "stead",
            "storage.cfg",
            "virtual-guest",
        ];
        assert_eq!(list(&tree, ""), top);
        assert!(list(&tree, "").iter().all(|name| look(&tree, name, &me).is_some()));
        assert_eq!(list(&tree, "nodes"), ["n1", "n2"]);
        assert_eq!(list(&tree, "nodes/n2"), OF_NODE);
        assert_eq!(list(&tree, "nodes/n1/qemu-server"), ["100.conf"]);
        assert_eq!(list(&tree, "mine"), Vec::<String>::new());
        assert_eq!(look(&tree, "local", &me), Some(Kind::Link("nodes/n1".into())));
        assert_eq!(look(&tree, "lxc", &me), Some(Kind::Link("nodes/n1/lxc".into())));
        assert_eq!(look(&tree, "nodes/n3", &me), None);
        assert_eq!(look(&tree, &format!("mine/{MARKER}"), &me), None);
    }

    #[test]
    fn private_files_are_root_s_alone() {
        let file = Kind::File { revision: Revision(1), stored: 0 };
        let of = |path: &str, kind: &Kind| permissions(path, kind, true);
        assert_eq!(
            (of("priv", &Kind::Folder), of("priv/a/b", &file), of("priv/a", &Kind::Folder)),
            (0o700, 0o600, 0o700)
        );
        assert_eq!((of("stead/owner/100", &file), of("stead/owner", &Kind::Folder)), (0o400, 0o500));
        assert_eq!(
            (of("storage.cfg", &file), of("private", &file), of("nodes", &Kind::Folder)),
            (0o640, 0o640, 0o755)
        );
        assert_eq!(of("priv/authkey.key", &file), 0o400);
        assert_eq!(permissions("storage.cfg", &file, false), 0o440);
        assert_eq!(permissions("nodes", &Kind::Folder, false), 0o555);
    }
}
