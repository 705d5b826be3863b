//! Files that are made when they are read: what programs on a node ask of its cluster, in the form that they know.

use serde_json::{Map, Value, json};
use std::net::IpAddr;
use stead_conf::Tree;
use stead_model::{GuestKind, NodeName, paths};

/// What is known beside the tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// When the daemon started: seconds since 1970.
    pub started: u64,
    /// The cluster's name.
    pub cluster: String,
    /// Whether there is a majority.
    pub quorate: bool,
    /// All members, by name.
    pub members: Vec<Member>,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its number.
    pub id: u64,
    /// Whether it takes part and reports.
    pub online: bool,
    /// Its address.
    pub ip: IpAddr,
}

/// A file that is made when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Special {
    /// Who is in the cluster.
    Members,
    /// Which guest is where.
    VmList,
    /// What has changed.
    Version,
    /// Who changed what, the latest first.
    ClusterLog,
    /// Why changes of files were refused on this node, the latest first.
    LastError,
}

/// All of them, by name.
pub const ALL: [(&str, Special); 5] = [
    (".clusterlog", Special::ClusterLog),
    (".members", Special::Members),
    (".stead-last-error", Special::LastError),
    (".version", Special::Version),
    (".vmlist", Special::VmList),
];

/// Files whose versions `.version` tells.
const VERSIONED: [&str; 8] = [
    paths::DATACENTER_CFG,
    paths::FENCE_CFG,
    paths::HA_GROUPS,
    paths::HA_RESOURCES,
    paths::HA_RULES,
    paths::HA_STATUS,
    paths::STORAGE_CFG,
    paths::USER_CFG,
];

/// `.members`.
pub fn members(tree: &Tree, facts: &Facts, me: &NodeName) -> Value {
    let list: Map<String, Value> = facts
        .members
        .iter()
        .map(|m| {
            (m.name.to_string(), json!({"id": m.id, "online": u8::from(m.online), "ip": m.ip.to_string()}))
        })
        .collect();
    json!({
        "nodename": me.as_str(),
        "version": tree.revision().0,
        "cluster": {
            "name": facts.cluster,
            "version": tree.revision().0,
            "nodes": facts.members.len(),
            "quorate": u8::from(facts.quorate),
        },
        "nodelist": list,
    })
}

/// `.vmlist`.
pub fn vm_list(tree: &Tree) -> Value {
    let mut last = 0;
    let mut ids = Map::new();
    for (vmid, path) in tree.guests() {
        let Some((node, kind, _)) = paths::as_guest(path) else { continue };
        let version = tree.get(path).map_or(0, |entry| entry.revision.0);
        last = last.max(version);
        let kind = match kind {
            GuestKind::Qemu => "qemu",
            GuestKind::Lxc => "lxc",
        };
        ids.insert(vmid.to_string(), json!({"node": node.as_str(), "type": kind, "version": version}));
    }
    json!({"version": last, "ids": ids})
}

/// `.version`. Which guests there are, and who is in the cluster, may have changed with every revision.
pub fn version(tree: &Tree, facts: &Facts) -> Value {
    let now = tree.revision().0;
    let mut all = Map::new();
    all.insert("starttime".into(), json!(facts.started));
    all.insert("clinfo".into(), json!(now));
    all.insert("vmlist".into(), json!(now));
    for path in VERSIONED {
        all.insert(path.into(), json!(tree.get(path).map_or(0, |entry| entry.revision.0)));
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_conf::Txn;

    #[test]
    fn they_have_the_form_that_programs_know() {
        let mut tree = Tree::new();
        tree.apply(&Txn::new("x").put("storage.cfg", "")).unwrap();
        tree.apply(&Txn::new("x").put("nodes/n1/qemu-server/100.conf", "")).unwrap();
        let me: NodeName = "n1".parse().unwrap();
        let member = Member { name: me.clone(), id: 1, online: true, ip: "10.0.0.1".parse().unwrap() };
        let facts = Facts { started: 7, cluster: "c".into(), quorate: true, members: vec![member] };
        assert_eq!(
            vm_list(&tree).to_string(),
            r#"{"version":2,"ids":{"100":{"node":"n1","type":"qemu","version":2}}}"#
        );
        assert_eq!(
            members(&tree, &facts, &me).to_string(),
            r#"{"nodename":"n1","version":2,"cluster":{"name":"c","version":2,"nodes":1,"quorate":1},"nodelist":{"n1":{"id":1,"online":1,"ip":"10.0.0.1"}}}"#
        );
        let version = version(&tree, &facts).to_string();
        assert!(version.starts_with(r#"{"starttime":7,"clinfo":2,"vmlist":2,"#), "{version}");
        assert!(version.contains(r#""storage.cfg":1"#) && version.contains(r#""user.cfg":0"#), "{version}");
    }
}
