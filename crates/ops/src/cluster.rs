//! The cluster as a whole: who is in it, what lies in it.

use crate::status::NodeReport;
use crate::{Actor, Ops, OpsError};
use serde_json::{Map, Value, json};
use stead_model::{NodeName, NodeRecord, Vmid};

/// What `resources` may be narrowed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceKind {
    /// Guests.
    Vm,
    /// Storages.
    Storage,
    /// Nodes.
    Node,
}

impl Ops {
    /// Whether a majority is in contact.
    pub fn quorate(&self) -> bool {
        self.conf.status().borrow().quorate
    }

    /// Whether a node takes part and reports.
    pub fn online(&self, node: &NodeRecord) -> bool {
        node.name == self.me.name || (!node.state.is_lost() && self.status.node(&node.name).is_some())
    }

    /// `/cluster/status`: the cluster, then its nodes.
    pub fn cluster_status(&self) -> Result<Vec<Value>, OpsError> {
        let cluster = self.cluster_record()?;
        let nodes = self.node_records();
        let raft = self.conf.status().borrow().clone();
        let leader = nodes.iter().find(|n| Some(n.raft_id) == raft.leader).map(|n| n.name.to_string());
        let mut out = vec![json!({
            "type": "cluster",
            "id": "cluster",
            "name": cluster.value.name,
            "nodes": nodes.len(),
            "quorate": u8::from(raft.quorate),
            "version": raft.revision.0,
            "leader": leader,
        })];
        for n in &nodes {
            out.push(json!({
                "type": "node",
                "id": format!("node/{}", n.name),
                "name": n.name,
                "nodeid": n.raft_id.0,
                "ip": n.addr.ip().to_string(),
                "port": n.addr.port(),
                "local": u8::from(n.name == self.me.name),
                "online": u8::from(self.online(n)),
                "level": "",
                "lost": u8::from(n.state.is_lost()),
                "votes": u8::from(raft.voters.contains(&n.raft_id)),
            }));
        }
        Ok(out)
    }

    /// `/cluster/resources`: what the actor may see.
    pub fn resources(&self, actor: &Actor, kind: Option<ResourceKind>) -> Result<Vec<Value>, OpsError> {
        let wants = |k: ResourceKind| kind.is_none_or(|only| only == k);
        let mut out = vec![];
        if wants(ResourceKind::Vm) {
            out.extend(self.vm_resources(actor)?);
        }
        if wants(ResourceKind::Node) {
            let seen = self
                .node_records()
                .into_iter()
                .filter(|n| actor.may(&format!("/nodes/{}", n.name), "Sys.Audit"));
            out.extend(seen.map(|n| self.node_resource(&n)));
        }
        if wants(ResourceKind::Storage) {
            out.extend(self.storage_resources(actor)?);
        }
        Ok(out)
    }

    fn vm_resources(&self, actor: &Actor) -> Result<Vec<Value>, OpsError> {
        let mut out = vec![];
        for (node, vm) in self.vms() {
            if !actor.may(&format!("/vms/{}", vm.vmid), "VM.Audit") {
                continue;
            }
            let mut o = Map::new();
            let id = vm.vmid;
            let ha = self.ha_state_of(id)?;
            let fields = json!({
                "id": format!("qemu/{id}"), "type": "qemu", "vmid": id, "node": node, "name": vm.name,
                "status": vm.status, "template": vm.template, "maxcpu": vm.cpus, "cpu": vm.cpu, "mem": vm.mem,
                "maxmem": vm.maxmem, "disk": vm.disk, "maxdisk": vm.maxdisk, "uptime": vm.uptime,
                "netin": vm.netin, "netout": vm.netout, "diskread": vm.diskread, "diskwrite": vm.diskwrite,
            });
            if let Value::Object(fields) = fields {
                o.extend(fields);
            }
            for (key, value) in [("tags", vm.tags), ("lock", vm.lock), ("hastate", ha)] {
                if let Some(v) = value {
                    o.insert(key.into(), json!(v));
                }
            }
            out.push(Value::Object(o));
        }
        Ok(out)
    }

    fn node_resource(&self, n: &NodeRecord) -> Value {
        let online = self.online(n);
        let report = self.status.node(&n.name).filter(|_| online);
        let stats = report.map(|r| r.stats).unwrap_or_default();
        json!({
            "id": format!("node/{}", n.name), "type": "node", "node": n.name,
            "status": if online { "online" } else { "offline" }, "level": "",
            "cpu": stats.cpu, "maxcpu": stats.maxcpu, "mem": stats.mem, "maxmem": stats.maxmem,
            "disk": stats.disk, "maxdisk": stats.maxdisk, "uptime": stats.uptime, "cgroup-mode": 2,
        })
    }

    fn storage_resources(&self, actor: &Actor) -> Result<Vec<Value>, OpsError> {
        let mut out = vec![];
        for storage in self.storages()? {
            if !actor.may(&format!("/storage/{}", storage.id), "Datastore.Audit") {
                continue;
            }
            for n in self.node_records().iter().filter(|n| storage.is_enabled_on(&n.name)) {
                let report = self.status.node(&n.name);
                let seen = report
                    .as_ref()
                    .and_then(|r| r.storages.iter().find(|s| s.storage == storage.id.as_str()).cloned());
                let active = seen.as_ref().is_some_and(|s| s.active);
                out.push(json!({
                    "id": format!("storage/{}/{}", n.name, storage.id), "type": "storage",
                    "storage": storage.id, "node": n.name, "plugintype": storage.kind,
                    "status": if active { "available" } else { "unknown" },
                    "shared": u8::from(storage.shared), "content": storage.content.iter().map(String::as_str).collect::<Vec<_>>().join(","),
                    "disk": seen.as_ref().map_or(0, |s| s.used), "maxdisk": seen.as_ref().map_or(0, |s| s.total),
                }));
            }
        }
        Ok(out)
    }

    /// The lowest free VMID, or the one asked about if it is free.
    pub fn next_id(&self, wanted: Option<Vmid>) -> Result<Vmid, OpsError> {
        let taken = |v: Vmid| self.conf.view(|t| t.get(&stead_model::paths::ownership(v)).is_some());
        if let Some(v) = wanted {
            return if taken(v) {
                Err(OpsError::invalid("vmid", format!("VM {v} already exists")))
            } else {
                Ok(v)
            };
        }
        (Vmid::MIN..=Vmid::MAX)
            .filter_map(|n| Vmid::new(n).ok())
            .find(|v| !taken(*v))
            .ok_or_else(|| OpsError::failed("there is no free VMID left"))
    }

    /// Tasks of all nodes, the latest first.
    pub fn cluster_tasks(&self) -> Vec<Value> {
        let mut all: Vec<Value> = self.status.all().into_iter().flat_map(|r: NodeReport| r.tasks).collect();
        let start = |t: &Value| t.get("starttime").and_then(Value::as_u64).unwrap_or(0);
        all.sort_by_key(|t| std::cmp::Reverse(start(t)));
        all
    }

    /// `/nodes`.
    pub fn node_list(&self) -> Vec<Value> {
        self.node_records().iter().map(|n| self.node_resource(n)).collect()
    }

    /// `/nodes/{node}/status` of this node.
    pub fn node_status(&self) -> Result<Value, OpsError> {
        let report = self.status.node(&self.me.name).ok_or_else(|| {
            OpsError::failed(format!("node '{}' has not read its own status yet", self.me.name))
        })?;
        let s = report.stats;
        Ok(json!({
            "uptime": s.uptime, "cpu": s.cpu, "wait": 0, "idle": 1.0 - s.cpu,
            "loadavg": s.loadavg.map(|l| format!("{l:.2}")),
            "kversion": format!("Linux {}", s.kernel),
            "current-kernel": {"sysname": "Linux", "release": s.kernel, "version": "", "machine": std::env::consts::ARCH},
            "pveversion": format!("pve-manager/{}/stead", crate::cluster::PVE_VERSION),
            "steadversion": self.me.version,
            "memory": {"total": s.maxmem, "used": s.mem, "free": s.maxmem.saturating_sub(s.mem), "available": s.maxmem.saturating_sub(s.mem)},
            "swap": {"total": s.swap.1, "used": s.swap.0, "free": s.swap.1.saturating_sub(s.swap.0)},
            "rootfs": {"total": s.maxdisk, "used": s.disk, "free": s.maxdisk.saturating_sub(s.disk), "avail": s.maxdisk.saturating_sub(s.disk)},
            "cpuinfo": {"model": s.cpu_model, "cpus": s.maxcpu, "cores": s.maxcpu, "sockets": s.sockets, "mhz": "", "hvm": "0", "flags": "", "user_hz": 100},
            "ksm": {"shared": 0},
            "boot-info": {"mode": if std::path::Path::new("/sys/firmware/efi").exists() { "efi" } else { "legacy-bios" }},
            "lease": u8::from(self.lease.borrow().held),
        }))
    }

    /// A member by name, or the error that clients know.
    pub fn member(&self, name: &NodeName) -> Result<NodeRecord, OpsError> {
        Ok(self.node_record(name)?.value)
    }
}

/// The version that clients see: what they do depends on it.
pub const PVE_VERSION: &str = "9.0.3";
