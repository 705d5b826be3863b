//! The cluster as a whole: who is in it, what lies in it.

use crate::status::NodeReport;
use crate::task_view::TaskRow;
use crate::{Actor, Ops, OpsError};
use serde::Serialize;
use std::collections::BTreeSet;
use stead_api_derive::Schema;
use stead_model::{DomainName, NodeName, NodeRecord, Place, StorageId, Vmid};

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

/// What an entry of the cluster's status is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Schema)]
#[serde(rename_all = "lowercase")]
pub enum MemberKind {
    /// The cluster itself.
    #[default]
    Cluster,
    /// One of its nodes.
    Node,
}

/// A member that votes and keeps the configuration, and runs no guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct Witness {
    /// Its name.
    pub name: NodeName,
    /// Its address and port.
    pub addr: String,
    /// It reports.
    pub online: bool,
    /// It has its vote: it gets one when it has caught up, and where an odd number of votes wants one.
    pub votes: bool,
    /// It was elected to lead, until a node takes over.
    pub leads: bool,
    /// Its daemon's version.
    pub version: String,
}

/// An entry of `/cluster/status`: the cluster itself, or one of its nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Schema)]
pub struct StatusEntry {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: MemberKind,
    /// `cluster`, or `node/NAME`.
    pub id: String,
    /// The cluster's or the node's name.
    pub name: String,
    /// Of the cluster: how many nodes it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<usize>,
    /// Of the cluster: a majority is in contact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quorate: Option<bool>,
    /// Of the cluster: the configuration's revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Of the cluster: the node that leads it, if one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<NodeName>,
    /// Of the cluster: it survives the loss of any one node. Not there before that has been found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub survives: Option<bool>,
    /// Of the cluster: the same in one line, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlook: Option<String>,
    /// Of the cluster: how its votes lie over sites or racks, in one line, where nodes are said to stand at several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<String>,
    /// Of the cluster: its epoch, which an operator raises when a majority is lost for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// Of the cluster: what somebody should look at, a line each; not there where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<String>>,
    /// Of a node: its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodeid: Option<u64>,
    /// Of a node: its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Of a node: its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Of a node: it is the one that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<bool>,
    /// Of a node: it takes part and reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// Of a node: always empty; clients expect it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Of a node: committed lost, so that its guests are started elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<bool>,
    /// Of a node: it votes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub votes: Option<bool>,
    /// Of a node: the site that it stands at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<DomainName>,
    /// Of a node: the rack that it stands in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rack: Option<DomainName>,
}

/// What a resource is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Schema)]
#[serde(rename_all = "lowercase")]
pub enum ResourceType {
    /// A node.
    #[default]
    Node,
    /// A virtual machine.
    Qemu,
    /// A storage as a node sees it.
    Storage,
}

/// A row of `/cluster/resources`. Bytes, seconds, shares of 1. Which fields are there depends on `type`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Schema)]
pub struct Resource {
    /// `node/NAME`, `qemu/VMID`, `storage/NODE/NAME`.
    pub id: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ResourceType,
    /// The node, or where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Of a node `online` or `offline`; of a guest `running`, `stopped` or `unknown`; of a storage `available` or
    /// `unknown`.
    pub status: String,
    /// Of a guest: its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmid: Option<Vmid>,
    /// Of a guest: its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of a guest: it is a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<bool>,
    /// Of a guest: tags, joined by `;`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<String>,
    /// Of a guest: the lock in its configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
    /// Of a guest: where others may reach it, by the word of the agent in it; for who may ask that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<String>>,
    /// Of a guest under HA: its state there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hastate: Option<String>,
    /// Of a node: always empty; clients expect it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Share of all its CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maxcpu: Option<u32>,
    /// Memory taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem: Option<u64>,
    /// Memory in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maxmem: Option<u64>,
    /// Disk taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Disk in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maxdisk: Option<u64>,
    /// Since its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime: Option<u64>,
    /// Of a guest, since its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netin: Option<u64>,
    /// Of a guest, since its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netout: Option<u64>,
    /// Of a guest, since its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diskread: Option<u64>,
    /// Of a guest, since its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diskwrite: Option<u64>,
    /// Of a storage: its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageId>,
    /// Of a storage: its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugintype: Option<String>,
    /// Of a storage: all nodes see the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// Of a storage: what it may hold, joined by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

impl Resource {
    /// What everybody may see of a node.
    pub fn public(self) -> Self {
        Self { id: self.id, kind: self.kind, node: self.node, status: self.status, ..Self::default() }
    }
}

/// A kernel, as `uname` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct Kernel {
    /// `Linux`.
    pub sysname: &'static str,
    /// Its release.
    pub release: String,
    /// Its build.
    pub version: String,
    /// The architecture.
    pub machine: &'static str,
}

/// How full something is, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct Filled {
    /// In all.
    pub total: u64,
    /// Taken.
    pub used: u64,
    /// Not taken.
    pub free: u64,
    /// What could be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<u64>,
    /// As `available`, of file systems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avail: Option<u64>,
}

impl Filled {
    fn new(total: u64, used: u64) -> Self {
        Self { total, used, free: total.saturating_sub(used), available: None, avail: None }
    }
}

/// The host's CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct CpuInfo {
    /// Their name.
    pub model: String,
    /// How many, each thread of a core counted.
    pub cpus: u32,
    /// Cores, of all sockets.
    pub cores: u32,
    /// Sockets.
    pub sockets: u32,
    /// How fast the first one runs now, if the kernel tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mhz: Option<String>,
    /// `1` if they can run guests by themselves, else `0`; where the kernel tells what they can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hvm: Option<&'static str>,
    /// What they can, as the kernel names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
}

impl CpuInfo {
    /// From the text of `/proc/cpuinfo`.
    fn read(cpuinfo: &str, model: String, cpus: u32, sockets: u32) -> Self {
        let value = |block: &str, key: &str| {
            let of = |l: &str| {
                l.split_once(':').filter(|(k, _)| k.trim() == key).map(|(_, v)| v.trim().to_owned())
            };
            block.lines().find_map(of)
        };
        let core = |block: &str| Some((value(block, "physical id")?, value(block, "core id")?));
        let cores: BTreeSet<_> = cpuinfo.split("\n\n").filter_map(core).collect();
        let flags = value(cpuinfo, "flags");
        let guests = |f: &String| if f.split(' ').any(|f| f == "vmx" || f == "svm") { "1" } else { "0" };
        Self {
            model,
            cpus,
            // Not every architecture tells its cores apart.
            cores: u32::try_from(cores.len()).ok().filter(|n| *n > 0).unwrap_or(cpus),
            sockets,
            mhz: value(cpuinfo, "cpu MHz"),
            hvm: flags.as_ref().map(guests),
            flags,
        }
    }
}

/// How the host was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct BootInfo {
    /// `efi` or `legacy-bios`.
    pub mode: &'static str,
}

/// `/nodes/{node}/status`. Bytes, seconds, shares of 1.
#[derive(Debug, Clone, PartialEq, Serialize, Schema)]
pub struct NodeStatus {
    /// Since the host booted.
    pub uptime: u64,
    /// Share of all CPUs.
    pub cpu: f64,
    /// The rest of the CPUs.
    pub idle: f64,
    /// Load of the last 1, 5 and 15 minutes.
    pub loadavg: [String; 3],
    /// The kernel's name and release.
    pub kversion: String,
    /// The kernel.
    #[serde(rename = "current-kernel")]
    pub current_kernel: Kernel,
    /// What clients read a version of.
    pub pveversion: String,
    /// The daemon's version.
    pub steadversion: &'static str,
    /// Memory.
    pub memory: Filled,
    /// Swap.
    pub swap: Filled,
    /// The root file system.
    pub rootfs: Filled,
    /// The CPUs.
    pub cpuinfo: CpuInfo,
    /// How the host was started.
    #[serde(rename = "boot-info")]
    pub boot_info: BootInfo,
    /// The node holds a lease: it may run guests under HA.
    pub lease: bool,
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

    /// What somebody should look at, a line each.
    fn warnings(&self) -> Vec<String> {
        let clocks = self.status.wrong_clocks().into_iter().map(|(node, ahead_ms)| {
            let way = if ahead_ms < 0 { "behind" } else { "ahead of" };
            format!(
                "the clock of node '{node}' is {} s {way} those of the other nodes: set it right",
                ahead_ms.unsigned_abs() / 1000
            )
        });
        let restored = self.conf.view(|t| t.get(stead_model::paths::RESTORED).is_some()).then(|| {
            "the configuration was restored from a backup: no guest starts by itself. Look at where guests are, then: stead ha arm".to_owned()
        });
        let certificates = self.certificate_warnings();
        self.epoch_warnings().into_iter().chain(restored).chain(clocks).chain(certificates).collect()
    }

    /// `/cluster/status`: the cluster, then its nodes.
    pub fn cluster_status(&self) -> Result<Vec<StatusEntry>, OpsError> {
        let cluster = self.cluster_record()?;
        let nodes = self.guest_nodes();
        let raft = self.conf.status().borrow().clone();
        let leader = self.node_records().into_iter().find(|n| Some(n.raft_id) == raft.leader).map(|n| n.name);
        let outlook = self.status.outlook();
        let mut out = vec![StatusEntry {
            kind: MemberKind::Cluster,
            id: "cluster".into(),
            name: cluster.value.name,
            nodes: Some(nodes.len()),
            quorate: Some(raft.quorate),
            version: Some(raft.revision.0),
            leader,
            survives: outlook.as_ref().map(|o| o.survives),
            outlook: outlook.map(|o| o.to_string()),
            spread: self.spread(),
            epoch: Some(self.me.era.to_string()),
            warnings: Some(self.warnings()).filter(|w| !w.is_empty()),
            ..StatusEntry::default()
        }];
        let mut places = self.node_places();
        let mut placed = |n: &NodeRecord| places.remove(&n.name).unwrap_or_default();
        out.extend(nodes.iter().map(|n| (n, placed(n))).map(|(n, Place { site, rack })| StatusEntry {
            kind: MemberKind::Node,
            site,
            rack,
            id: format!("node/{}", n.name),
            name: n.name.to_string(),
            nodeid: Some(n.raft_id.0),
            ip: Some(n.addr.ip().to_string()),
            port: Some(n.addr.port()),
            local: Some(n.name == self.me.name),
            online: Some(self.online(n)),
            level: Some(String::new()),
            lost: Some(n.state.is_lost()),
            votes: Some(raft.voters.contains(&n.raft_id)),
            ..StatusEntry::default()
        }));
        Ok(out)
    }

    /// The members that vote without running guests.
    pub fn witnesses(&self) -> Vec<Witness> {
        let raft = self.conf.status().borrow().clone();
        let shown = |n: NodeRecord| Witness {
            online: self.online(&n),
            votes: raft.voters.contains(&n.raft_id),
            leads: raft.leader == Some(n.raft_id),
            name: n.name,
            addr: n.addr.to_string(),
            version: n.version,
        };
        self.node_records().into_iter().filter(|n| n.witness).map(shown).collect()
    }

    /// `/cluster/resources`: what the actor may see.
    pub fn resources(&self, actor: &Actor, kind: Option<ResourceKind>) -> Result<Vec<Resource>, OpsError> {
        let wants = |k: ResourceKind| kind.is_none_or(|only| only == k);
        let mut out = vec![];
        if wants(ResourceKind::Vm) {
            out.extend(self.vm_resources(actor)?);
        }
        if wants(ResourceKind::Node) {
            let seen = self
                .guest_nodes()
                .into_iter()
                .filter(|n| actor.may(&format!("/nodes/{}", n.name), "Sys.Audit"));
            out.extend(seen.map(|n| self.node_resource(&n)));
        }
        if wants(ResourceKind::Storage) {
            out.extend(self.storage_resources(actor)?);
        }
        Ok(out)
    }

    fn vm_resources(&self, actor: &Actor) -> Result<Vec<Resource>, OpsError> {
        let mut out = vec![];
        for (node, vm) in self.vms() {
            if !actor.may(&format!("/vms/{}", vm.vmid), "VM.Audit") {
                continue;
            }
            let vm = vm.seen_by(actor);
            out.push(Resource {
                id: format!("qemu/{}", vm.vmid),
                kind: ResourceType::Qemu,
                node: Some(node),
                status: vm.status.to_owned(),
                vmid: Some(vm.vmid),
                name: Some(vm.name),
                template: Some(vm.template),
                tags: vm.tags,
                lock: vm.lock,
                addresses: vm.addresses,
                hastate: self.ha_state_of(vm.vmid)?,
                cpu: Some(vm.cpu),
                maxcpu: Some(vm.cpus),
                mem: Some(vm.mem),
                maxmem: Some(vm.maxmem),
                disk: Some(vm.disk),
                maxdisk: Some(vm.maxdisk),
                uptime: Some(vm.uptime),
                netin: Some(vm.netin),
                netout: Some(vm.netout),
                diskread: Some(vm.diskread),
                diskwrite: Some(vm.diskwrite),
                ..Resource::default()
            });
        }
        Ok(out)
    }

    fn node_resource(&self, n: &NodeRecord) -> Resource {
        let online = self.online(n);
        let report = self.status.node(&n.name).filter(|_| online);
        let stats = report.map(|r| r.stats).unwrap_or_default();
        Resource {
            id: format!("node/{}", n.name),
            kind: ResourceType::Node,
            node: Some(n.name.clone()),
            status: if online { "online" } else { "offline" }.to_owned(),
            level: Some(String::new()),
            cpu: Some(stats.cpu),
            maxcpu: Some(stats.maxcpu),
            mem: Some(stats.mem),
            maxmem: Some(stats.maxmem),
            disk: Some(stats.disk),
            maxdisk: Some(stats.maxdisk),
            uptime: Some(stats.uptime),
            ..Resource::default()
        }
    }

    fn storage_resources(&self, actor: &Actor) -> Result<Vec<Resource>, OpsError> {
        let mut out = vec![];
        for storage in self.storages()? {
            if !actor.may(&format!("/storage/{}", storage.id), "Datastore.Audit") {
                continue;
            }
            let content: Vec<&str> = storage.content.iter().map(String::as_str).collect();
            for n in self.guest_nodes().iter().filter(|n| storage.is_enabled_on(&n.name)) {
                let report = self.status.node(&n.name);
                let seen = report
                    .as_ref()
                    .and_then(|r| r.storages.iter().find(|s| s.storage == storage.id.as_str()).cloned());
                let active = seen.as_ref().is_some_and(|s| s.active);
                out.push(Resource {
                    id: format!("storage/{}/{}", n.name, storage.id),
                    kind: ResourceType::Storage,
                    node: Some(n.name.clone()),
                    status: if active { "available" } else { "unknown" }.to_owned(),
                    storage: Some(storage.id.clone()),
                    plugintype: Some(storage.kind.clone()),
                    shared: Some(storage.shared),
                    content: Some(content.join(",")),
                    disk: Some(seen.as_ref().map_or(0, |s| s.used)),
                    maxdisk: Some(seen.as_ref().map_or(0, |s| s.total)),
                    ..Resource::default()
                });
            }
        }
        Ok(out)
    }

    /// The lowest free VMID of the range that the cluster's option `next-id` gives, or the one asked about if it is free.
    pub fn next_id(&self, wanted: Option<Vmid>) -> Result<Vmid, OpsError> {
        let taken = |v: Vmid| self.conf.view(|t| t.get(&stead_model::paths::ownership(v)).is_some());
        if let Some(v) = wanted {
            return if taken(v) {
                Err(OpsError::invalid("vmid", format!("VM {v} already exists")))
            } else {
                Ok(v)
            };
        }
        let range = self.datacenter()?.0.next_id()?;
        (range.lower.max(Vmid::MIN)..range.upper.min(Vmid::MAX + 1))
            .filter_map(|n| Vmid::new(n).ok())
            .find(|v| !taken(*v))
            .ok_or_else(|| {
                OpsError::failed(format!(
                    "there is no free VMID from {} to {} (the cluster's option next-id)",
                    range.lower,
                    range.upper - 1
                ))
            })
    }

    /// Tasks of all nodes, the latest first.
    pub fn cluster_tasks(&self) -> Vec<TaskRow> {
        let mut all: Vec<TaskRow> = self.status.all().into_iter().flat_map(|r: NodeReport| r.tasks).collect();
        all.sort_by_key(|t| std::cmp::Reverse(t.head.starttime));
        all
    }

    /// `/nodes`.
    pub fn node_list(&self) -> Vec<Resource> {
        self.guest_nodes().iter().map(|n| self.node_resource(n)).collect()
    }

    /// `/nodes/{node}/status` of this node.
    pub fn node_status(&self) -> Result<NodeStatus, OpsError> {
        let report = self.status.node(&self.me.name).ok_or_else(|| {
            OpsError::failed(format!("node '{}' has not read its own status yet", self.me.name))
        })?;
        let s = report.stats;
        let (memory, rootfs) = (Filled::new(s.maxmem, s.mem), Filled::new(s.maxdisk, s.disk));
        let told = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let efi = std::path::Path::new("/sys/firmware/efi").exists();
        Ok(NodeStatus {
            uptime: s.uptime,
            cpu: s.cpu,
            idle: 1.0 - s.cpu,
            loadavg: s.loadavg.map(|l| format!("{l:.2}")),
            kversion: format!("Linux {}", s.kernel),
            current_kernel: Kernel {
                sysname: "Linux",
                release: s.kernel,
                version: told("/proc/sys/kernel/version").trim().to_owned(),
                machine: std::env::consts::ARCH,
            },
            pveversion: format!("pve-manager/{PVE_VERSION}/stead"),
            steadversion: self.me.version,
            memory: Filled { available: Some(memory.free), ..memory },
            swap: Filled::new(s.swap.1, s.swap.0),
            rootfs: Filled { avail: Some(rootfs.free), ..rootfs },
            cpuinfo: CpuInfo::read(&told("/proc/cpuinfo"), s.cpu_model, s.maxcpu, s.sockets),
            boot_info: BootInfo { mode: if efi { "efi" } else { "legacy-bios" } },
            lease: self.lease.borrow().held,
        })
    }

    /// The node that a guest is on, if it is the one named: who changes a guest says where it is. A number typed for
    /// another node's guest changes nothing.
    ///
    /// # Errors
    /// If the guest is on another node, or nowhere.
    pub async fn guest_of(&self, node: &str, vmid: Vmid) -> Result<NodeName, OpsError> {
        let owner = self.guest_at(vmid)?.own.value.owner;
        if owner.as_str() == node {
            return Ok(owner);
        }
        // It may have moved just now, and the news not be here yet.
        self.conf.barrier().await?;
        let owner = self.guest_at(vmid)?.own.value.owner;
        if owner.as_str() == node {
            return Ok(owner);
        }
        // Not said: where it is. Who asks need not be allowed to see it.
        Err(OpsError::failed(format!(
            "VM {vmid} does not exist on node '{node}'; 'stead vm list' shows where a VM is"
        )))
    }

    /// A member by name, or the error that clients know.
    pub fn member(&self, name: &NodeName) -> Result<NodeRecord, OpsError> {
        Ok(self.node_record(name)?.value)
    }
}

/// The version that clients see: what they do depends on it.
pub const PVE_VERSION: &str = "9.0.3";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_cpus_is_told_what_the_kernel_tells() {
        let cpu = |socket: u32, core: u32, flags: &str| {
            format!(
                "processor\t: 0\ncpu MHz\t\t: 2899.1\nphysical id\t: {socket}\ncore id\t\t: {core}\nflags\t\t: {flags}\n"
            )
        };
        let four = [cpu(0, 0, "fpu vmx"), cpu(0, 0, "fpu vmx"), cpu(1, 0, "fpu vmx"), cpu(1, 1, "fpu vmx")];
        let info = CpuInfo::read(&four.join("\n"), "A CPU".into(), 4, 2);
        assert_eq!((info.cpus, info.cores, info.sockets), (4, 3, 2));
        assert_eq!(
            (info.mhz.as_deref(), info.hvm, info.flags.as_deref()),
            (Some("2899.1"), Some("1"), Some("fpu vmx"))
        );
        assert_eq!(CpuInfo::read(&cpu(0, 0, "fpu vmxish"), String::new(), 1, 1).hvm, Some("0"));
        let silent = CpuInfo::read("processor\t: 0\nFeatures\t: fp\n", String::new(), 8, 1);
        assert_eq!((silent.cores, silent.mhz, silent.hvm, silent.flags), (8, None, None, None));
    }
}
