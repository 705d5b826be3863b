//! What is shown of VMs: configuration overlaid with volatile status.

use crate::status::{GuestKnown, GuestReport};
use crate::store::{self, GuestAt};
use crate::{Actor, Ops, OpsError};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use stead_api_derive::Schema;
use stead_driver::guest::{Balloon, RunState};
use stead_model::cloudinit::MASK;
use stead_model::vmconfig::VmConfig;
use stead_model::{GuestKind, NodeName, Vmid};

/// A VM's status as clients know it. Bytes, seconds, shares of one CPU... of all CPUs 1.
#[derive(Debug, Clone, Serialize, Schema)]
pub struct VmStatus {
    /// Its number.
    pub vmid: Vmid,
    /// `running`, `stopped`, or `unknown` where its owner does not report.
    pub status: &'static str,
    /// The program's own word: `running`, `paused`, `prelaunch`, `inmigrate`, ...
    pub qmpstatus: String,
    /// Its name.
    pub name: String,
    /// It is a template.
    pub template: bool,
    /// CPUs.
    pub cpus: u32,
    /// Share of its CPUs.
    pub cpu: f64,
    /// Memory taken: by its system's word, if that tells; else what its process takes on the host.
    pub mem: u64,
    /// Memory in all.
    pub maxmem: u64,
    /// Memory that its process takes on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memhost: Option<u64>,
    /// Not measured from outside: 0.
    pub disk: u64,
    /// Size of its first disk.
    pub maxdisk: u64,
    /// Since its start.
    pub uptime: u64,
    /// Since its start.
    pub netin: u64,
    /// Since its start.
    pub netout: u64,
    /// Since its start.
    pub diskread: u64,
    /// Since its start.
    pub diskwrite: u64,
    /// Its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The lock in its configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
    /// Tags, joined by `;`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<String>,
    /// The versioned machine type that runs.
    #[serde(rename = "running-machine", skip_serializing_if = "Option::is_none")]
    pub running_machine: Option<String>,
    /// The program's version that runs.
    #[serde(rename = "running-qemu", skip_serializing_if = "Option::is_none")]
    pub running_qemu: Option<String>,
    /// Where others may reach it, by the word of the agent in it a while ago; for who may ask that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<String>>,
}

impl VmStatus {
    /// Without what this actor may not ask the agent in the VM.
    pub fn seen_by(self, actor: &Actor) -> Self {
        let path = format!("/vms/{}", self.vmid);
        let may = ["VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted"].iter().any(|p| actor.may(&path, p));
        Self { addresses: self.addresses.filter(|_| may), ..self }
    }
}

/// Addresses as they are shown; none where there are none.
fn texts(addresses: &[IpAddr]) -> Option<Vec<String>> {
    (!addresses.is_empty()).then(|| addresses.iter().map(ToString::to_string).collect())
}

/// How HA sees a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Schema)]
pub struct VmHa {
    /// It is under HA's care.
    pub managed: bool,
    /// What HA is asked to keep it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested: Option<String>,
    /// The manager's state of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// A VM's status with what its owner alone knows.
#[derive(Debug, Clone, Serialize, Schema)]
pub struct VmCurrent {
    /// As everywhere.
    #[serde(flatten)]
    pub status: VmStatus,
    /// How HA sees it.
    pub ha: VmHa,
    /// It is told to have a guest agent.
    pub agent: bool,
    /// The epoch under which its owner may run it.
    pub epoch: u64,
    /// What runs its CPUs: `kvm` or `tcg`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accel: Option<String>,
    /// What its balloon leaves it, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<u64>,
    /// Memory in which its system has nothing, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freemem: Option<u64>,
    /// What its system tells by its balloon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ballooninfo: Option<BalloonInfo>,
    /// Its weight when memory is shared out, where its balloon follows the host's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<u32>,
}

/// What a VM's balloon tells. Bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct BalloonInfo {
    /// What it leaves the VM.
    pub actual: u64,
    /// What the VM was given.
    pub max_mem: u64,
    /// When its system told the rest: seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update: Option<u64>,
    /// All that its system can use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_mem: Option<u64>,
    /// What nothing is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_mem: Option<u64>,
    /// Read back from disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_swapped_in: Option<u64>,
    /// Put out to disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_swapped_out: Option<u64>,
    /// Pages that had to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_page_faults: Option<u64>,
    /// Pages that only had to be found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_page_faults: Option<u64>,
}

impl BalloonInfo {
    fn of(balloon: &Balloon, memory: u64) -> Self {
        let told = balloon.stats.unwrap_or_default();
        Self {
            actual: balloon.actual,
            max_mem: memory,
            last_update: balloon.stats.map(|stats| stats.at),
            total_mem: told.total,
            free_mem: told.free,
            mem_swapped_in: told.swapped_in,
            mem_swapped_out: told.swapped_out,
            major_page_faults: told.major_faults,
            minor_page_faults: told.minor_faults,
        }
    }
}

/// An option of a VM with what is pending.
#[derive(Debug, Clone, PartialEq, Serialize, Schema)]
pub struct PendingOption {
    /// Its name.
    pub key: String,
    /// What holds now: a number or text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<NumberOrText>,
    /// What will hold after the next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<NumberOrText>,
    /// It will be taken out: 1, or 2 by force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete: Option<u8>,
}

/// A value as clients know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum NumberOrText {
    /// A number or switch.
    Number(i64),
    /// Anything else.
    Text(String),
}

impl stead_model::schema::Schema for NumberOrText {
    fn schema() -> Value {
        json!({"type": ["integer", "string"]})
    }
}

fn run_state_name(state: RunState) -> &'static str {
    match state {
        RunState::Prelaunch => "prelaunch",
        RunState::Inmigrate => "inmigrate",
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Received | RunState::Postmigrate | RunState::Serving => "postmigrate",
        RunState::Shutdown => "shutdown",
        RunState::Unresponsive => "unresponsive",
    }
}

/// The memory that a guest's system has taken, or, where it does not tell, what its process takes.
fn taken(report: &GuestReport) -> u64 {
    let told = report.balloon.as_deref().and_then(|balloon| balloon.stats);
    told.and_then(|stats| stats.total?.checked_sub(stats.free?)).unwrap_or(report.mem)
}

/// A VM's status from its configuration and what is known of its process.
fn status_of(guest: &GuestAt, known: &GuestKnown, addresses: &[IpAddr]) -> VmStatus {
    // A configuration that cannot be read must not hide the guest.
    let config = VmConfig::parse(&guest.config.value).unwrap_or_default().current;
    let report = match known {
        GuestKnown::Process(r) => Some(r),
        GuestKnown::Absent | GuestKnown::Unknown => None,
    };
    let count = |f: fn(&GuestReport) -> u64| report.map_or(0, f);
    let tags = config.tags().join(";");
    VmStatus {
        vmid: guest.vmid,
        status: match known {
            // A copy that waits for its state is not the guest yet.
            GuestKnown::Process(_) => "running",
            GuestKnown::Absent => "stopped",
            GuestKnown::Unknown => "unknown",
        },
        qmpstatus: match known {
            GuestKnown::Process(r) => run_state_name(r.state).to_owned(),
            GuestKnown::Absent => "stopped".to_owned(),
            GuestKnown::Unknown => "unknown".to_owned(),
        },
        name: config.name().map_or_else(|| format!("VM {}", guest.vmid), str::to_owned),
        template: config.template(),
        cpus: config.cpus().unwrap_or(1),
        cpu: report.map_or(0.0, |r| r.cpu),
        mem: count(taken),
        memhost: report.map(|r| r.mem),
        maxmem: config.memory().map_or(0, |m| m.0 << 20),
        disk: 0,
        maxdisk: config.root_size().map_or(0, stead_model::Size::get),
        uptime: count(|r| r.uptime),
        netin: count(|r| r.net_in),
        netout: count(|r| r.net_out),
        diskread: count(|r| r.disk_read),
        diskwrite: count(|r| r.disk_write),
        pid: report.map(|r| r.pid),
        lock: config.lock().map(str::to_owned),
        tags: (!tags.is_empty()).then_some(tags),
        running_machine: report.map(|r| r.machine.clone()),
        running_qemu: report.map(|r| r.version.clone()),
        addresses: report.and_then(|_| texts(addresses)),
    }
}

impl Ops {
    /// Every VM of a node, as the actor may see it.
    pub fn vm_list(&self, actor: &Actor, node: &NodeName) -> Vec<VmStatus> {
        self.vms().into_iter().filter(|(n, _)| n == node).map(|(_, s)| s.seen_by(actor)).collect()
    }

    /// Every VM of the cluster with its node.
    pub fn vms(&self) -> Vec<(NodeName, VmStatus)> {
        let all = self.conf.view(|t| {
            let ids = store::guests(t).into_iter().filter(|(_, o)| o.kind == GuestKind::Qemu);
            ids.filter_map(|(vmid, _)| store::guest(t, vmid).ok()).collect::<Vec<_>>()
        });
        let with = |g: GuestAt| {
            let owner = g.own.value.owner.clone();
            let known = self.status.guest(&owner, g.vmid);
            let status = status_of(&g, &known, &self.status.addresses(&owner, g.vmid));
            (owner, status)
        };
        all.into_iter().map(with).collect()
    }

    /// A VM of this node, as `status/current` shows it to the actor.
    pub async fn vm_status(&self, actor: &Actor, vmid: Vmid) -> Result<VmCurrent, OpsError> {
        let guest = self.vm_at(vmid)?;
        let known = match self.guests.state(vmid).await {
            Some(p) => GuestKnown::Process(p),
            None => GuestKnown::Absent,
        };
        let config = super::config::parse(&guest.config.value)?;
        let told = match &known {
            GuestKnown::Process(p) => self.status.told().remove(&vmid).filter(|told| told.is_of(p.pid)),
            GuestKnown::Absent | GuestKnown::Unknown => None,
        };
        let told = told.unwrap_or_default().addresses;
        let status = status_of(&guest, &known, &told).seen_by(actor);
        let balloon = match &known {
            GuestKnown::Process(report) => report.balloon.as_deref().copied(),
            GuestKnown::Absent | GuestKnown::Unknown => None,
        };
        let memory = config.current.memory()?;
        let least = config.current.balloon()?.filter(|least| least.0 > 0 && *least < memory);
        Ok(VmCurrent {
            balloon: balloon.map(|b| b.actual),
            freemem: balloon.and_then(|b| b.stats?.free),
            ballooninfo: balloon.map(|b| BalloonInfo::of(&b, status.maxmem)),
            shares: least.map(|_| config.current.shares()).transpose()?,
            status,
            ha: self.ha_of(vmid)?,
            agent: config.current.agent()?.enabled,
            epoch: guest.own.value.epoch.0,
            accel: match known {
                GuestKnown::Process(r) => Some(r.accel),
                GuestKnown::Absent | GuestKnown::Unknown => None,
            },
        })
    }

    /// A VM's configuration: with its pending changes in place unless `current`.
    pub fn vm_config(
        &self,
        vmid: Vmid,
        current: bool,
        snapshot: Option<&str>,
    ) -> Result<BTreeMap<String, NumberOrText>, OpsError> {
        let guest = self.vm_at(vmid)?;
        let config = super::config::parse(&guest.config.value)?;
        let digest = config.digest();
        let mut settings = match snapshot {
            None => config.current.clone(),
            Some(name) => config
                .snapshots
                .get(name)
                .cloned()
                .ok_or_else(|| OpsError::failed(format!("snapshot '{name}' does not exist")))?,
        };
        if !current && snapshot.is_none() {
            for (key, value) in config.pending.set.iter() {
                settings.set(key, value)?;
            }
            for key in config.pending.delete.keys() {
                settings.remove(key);
            }
        }
        let mut out: BTreeMap<_, _> = settings.iter().map(|(k, v)| (k.to_owned(), shown(k, v))).collect();
        out.insert("digest".into(), NumberOrText::Text(digest));
        Ok(out)
    }

    /// A VM's options with what is pending.
    pub fn vm_pending(&self, vmid: Vmid) -> Result<Vec<PendingOption>, OpsError> {
        let config = super::config::parse(&self.vm_at(vmid)?.config.value)?;
        let item = |i: stead_model::vmconfig::PendingItem| PendingOption {
            value: i.value.map(|v| shown(&i.key, &v)),
            pending: i.pending.map(|v| shown(&i.key, &v)),
            delete: i.delete,
            key: i.key,
        };
        Ok(config.pending_items().into_iter().map(item).collect())
    }
}

/// As [`typed`], without what nobody is shown.
fn shown(key: &str, value: &str) -> NumberOrText {
    typed(key, if key == "cipassword" { MASK } else { value })
}

/// Numbers and switches go out as numbers where the schema says so, all else as text.
fn typed(key: &str, value: &str) -> NumberOrText {
    use stead_model::vmconfig::keys::{Kind, lookup};
    let number = matches!(lookup(key), Some((spec, _)) if matches!(spec.kind, Kind::Bool | Kind::Int { .. }));
    match value.parse::<i64>() {
        Ok(n) if number => NumberOrText::Number(n),
        _ => NumberOrText::Text(value.to_owned()),
    }
}
