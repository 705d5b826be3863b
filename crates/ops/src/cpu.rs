//! CPUs of the cluster: what each node's can do, and what all of them can.
//!
//! What a node's QEMU can give to guests changes with its hardware, its kernel and its packages, so seldom that each node commits it as
//! a record: it is known of nodes that are off, too, and where a VM starts after a failure. A VM with `cpu: cluster` gets at its start
//! what every node with the same accelerator can run, and keeps that for as long as its process lives, wherever it moves.

use crate::{Ops, OpsError, store};
use serde::Serialize;
use std::collections::BTreeMap;
use stead_api_derive::Schema;
use stead_conf::{Op, Txn};
use stead_driver::capabilities::Capabilities;
use stead_model::cpu::{CLUSTER_MODEL, CUSTOM, CommonCpu, CpuFacts, FLAGS, LEVELS, common, unlike};
use stead_model::vmconfig::Settings;
use stead_model::{NodeName, cpu_models, paths};

/// What every node can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct CommonView {
    /// `kvm` or `tcg`: nodes of one accelerator are compared.
    pub accel: String,
    /// The highest of the levels x86-64-v1 (which QEMU calls qemu64) to v4 that all can run.
    pub model: String,
    /// Features beyond it that all have.
    pub flags: Vec<String>,
    /// What `cpu: cluster` is at a start now.
    pub cpu: String,
    /// QEMU's models that all can run.
    pub models: Vec<String>,
    /// The nodes that were compared.
    pub nodes: Vec<NodeName>,
    /// Makers of their CPUs.
    pub vendors: Vec<String>,
    /// Why it is no more: for each higher level the nodes that can't run it, with what they lack.
    pub lacking: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// Nodes of which nothing is known yet.
    pub unknown: Vec<NodeName>,
}

/// A model of a CPU that a VM can have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct ModelView {
    /// Its name, as a VM's `cpu` has it.
    pub name: String,
    /// 1: an administrator has made it.
    pub custom: bool,
    /// Whose CPU it is; `default`: nobody's, or that of the host.
    pub vendor: String,
    /// What this node lacks of it, if anything.
    #[serde(rename = "unavailable-features", skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<String>,
}

/// A feature of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct FlagView {
    /// Its name.
    pub name: String,
    /// What it is.
    pub description: String,
    /// Nodes whose guests can have it.
    #[serde(rename = "supported-on")]
    pub supported_on: Vec<NodeName>,
}

/// A type of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct MachineView {
    /// Its name, as a VM's `machine` has it.
    pub id: String,
    /// `q35` or `i440fx`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its version.
    pub version: String,
}

/// Who makes a CPU like that.
fn vendor(model: &str) -> &'static str {
    let begins = |all: &[&str]| all.iter().any(|name| model.starts_with(name));
    if begins(&["EPYC", "Opteron", "athlon", "phenom"]) {
        "AuthenticAMD"
    } else if begins(&["Dhyana"]) {
        "HygonGenuine"
    } else if begins(&["YongFeng"]) {
        "CentaurHauls"
    } else if begins(&["max", "host", "base", "kvm", "qemu", "x86-64-v"]) || model == CLUSTER_MODEL {
        "default"
    } else {
        "GenuineIntel"
    }
}

fn facts_of(can: Capabilities) -> CpuFacts {
    let all = can.models.into_iter().filter(|(_, missing)| missing.is_empty());
    CpuFacts {
        accel: can.accel,
        version: can.version,
        vendor: can.vendor,
        features: can.features,
        models: all.map(|(name, _)| name).collect(),
    }
}

fn machine(name: &str) -> Option<MachineView> {
    let (kind, version) = match name.strip_prefix("pc-q35-") {
        Some(version) => ("q35", version),
        None => ("i440fx", name.strip_prefix("pc-i440fx-")?),
    };
    Some(MachineView { id: name.to_owned(), kind: kind.to_owned(), version: version.to_owned() })
}

impl Ops {
    /// Records what this node's CPU can do, if that is not what is recorded. Who can't tell has no record.
    pub async fn record_cpu(&self) -> Result<(), OpsError> {
        if self.me.witness {
            return Ok(());
        }
        let Ok(can) = self.guests.capabilities().await else { return Ok(()) };
        if can.features.is_empty() {
            // Its program did not tell: that is no word about the CPU.
            return Ok(());
        }
        let (facts, path) = (facts_of(can), paths::cpu(&self.me.name));
        let known =
            self.conf.view(|t| t.get(&path).map(|e| (e.revision, serde_json::from_slice(&e.data).ok())));
        if known.as_ref().and_then(|(_, known)| known.as_ref()) == Some(&facts) {
            return Ok(());
        }
        let mut txn = store::txn("root@pam", format!("what the CPU of node '{}' can do", self.me.name));
        store::put_over(&mut txn, &path, known.map(|(revision, _)| revision), store::bytes(&facts)?);
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Adds to the transaction that removes a node that nothing is known of its CPU.
    pub(crate) fn forget_cpu(&self, txn: &mut Txn, node: &NodeName) {
        let path = paths::cpu(node);
        if self.conf.view(|t| t.get(&path).is_some()) {
            txn.ops.push(Op::Delete(path));
        }
    }

    /// What is known of the members' CPUs. A record that can't be read is one of a later version, and tells nothing.
    pub fn cpu_facts(&self) -> BTreeMap<NodeName, CpuFacts> {
        let nodes = self.guest_nodes().into_iter();
        self.conf.view(|t| {
            let read = |name: &NodeName| serde_json::from_slice(&t.get(&paths::cpu(name))?.data).ok();
            nodes.filter_map(|node| Some((node.name.clone(), read(&node.name)?))).collect()
        })
    }

    /// What every node with this node's accelerator can run.
    pub fn common_cpu(&self) -> Result<(CommonCpu, BTreeMap<NodeName, CpuFacts>), OpsError> {
        let facts = self.cpu_facts();
        let accel = facts.get(&self.me.name).map(|facts| facts.accel.clone());
        match accel.and_then(|accel| common(&facts, &accel)) {
            Some(found) => Ok((found, facts)),
            None => Err(OpsError::failed(format!(
                "what the CPU of node '{}' can do is not recorded yet: its daemon does so within a minute",
                self.me.name
            ))),
        }
    }

    /// What every node can run, as it is shown.
    pub fn common_cpu_view(&self) -> Result<CommonView, OpsError> {
        let (found, facts) = self.common_cpu()?;
        let compared = || facts.iter().filter(|(node, _)| found.nodes.contains(*node));
        let mut vendors: Vec<String> = compared().map(|(_, facts)| facts.vendor.clone()).collect();
        vendors.sort();
        vendors.dedup();
        let by_name = |short: &BTreeMap<NodeName, Vec<String>>| {
            short.iter().map(|(node, missing)| (node.to_string(), missing.clone())).collect()
        };
        Ok(CommonView {
            accel: compared().next().map(|(_, facts)| facts.accel.clone()).unwrap_or_default(),
            cpu: found.text(),
            lacking: found
                .lacking
                .iter()
                .map(|(level, short)| ((*level).to_owned(), by_name(short)))
                .collect(),
            unknown: self
                .guest_nodes()
                .into_iter()
                .map(|n| n.name)
                .filter(|n| !facts.contains_key(n))
                .collect(),
            model: found.model.to_owned(),
            flags: found.flags,
            models: found.models.into_iter().collect(),
            nodes: found.nodes.into_iter().collect(),
            vendors,
        })
    }

    /// Spells out a model that has a meaning to the cluster alone.
    pub(crate) fn spell_out_cpu(&self, settings: &mut Settings) -> Result<(), OpsError> {
        let Some(model) = settings.cpu()?.model else { return Ok(()) };
        let base = if model == CLUSTER_MODEL {
            self.common_cpu().map_err(|e| OpsError::invalid("cpu", e.to_string()))?.0.text()
        } else if let Some(name) = model.strip_prefix(CUSTOM) {
            cpu_models::as_cpu(&self.cpu_model(name).map_err(|e| OpsError::invalid("cpu", e.to_string()))?)
        } else {
            return Ok(());
        };
        let text = cpu_models::spell_out(&base, settings.get("cpu").unwrap_or_default())?;
        Ok(settings.set("cpu", &text)?)
    }

    /// What speaks against taking over a running VM's CPU that is whatever its node has. `runs_with`: in the driver's words.
    pub(crate) fn cpu_obstacles(
        &self,
        runs_with: &str,
        source: &NodeName,
    ) -> Result<Option<String>, OpsError> {
        let model = runs_with.split(',').next().unwrap_or_default();
        if !matches!(model, "host" | "max") {
            return Ok(None);
        }
        let (facts, me) = (self.cpu_facts(), &self.me.name);
        let why = match (facts.get(source), facts.get(me)) {
            (Some(theirs), Some(mine)) => unlike(theirs, mine).join("; "),
            (None, _) => format!("what the CPU of node '{source}' can do is not recorded yet"),
            (_, None) => format!("what the CPU of node '{me}' can do is not recorded yet"),
        };
        Ok((!why.is_empty()).then(|| {
            format!("cpu: the VM has all that the CPU of node '{source}' can do ('{model}'), and that of '{me}' is another: {why}")
        }))
    }

    /// Models of CPUs that a VM of this node can have.
    pub async fn cpu_models_here(&self) -> Result<Vec<ModelView>, OpsError> {
        let can = self.guests.capabilities().await?;
        let plain = |name: &str, unavailable: Vec<String>| ModelView {
            name: name.to_owned(),
            custom: false,
            vendor: vendor(name).to_owned(),
            unavailable,
        };
        let mut all: Vec<ModelView> = self
            .cpu_model_file()?
            .0
            .names()
            .map(|name| ModelView { custom: true, ..plain(&format!("{CUSTOM}{name}"), vec![]) })
            .collect();
        all.push(plain(CLUSTER_MODEL, vec![]));
        for level in LEVELS {
            let needed = stead_model::cpu::level_features(level.name).unwrap_or_default();
            all.push(plain(level.name, stead_model::cpu::missing(&needed, &can.features)));
        }
        all.extend(can.models.into_iter().map(|(name, missing)| plain(&name, missing)));
        Ok(all)
    }

    /// Features of CPUs, with the nodes under that accelerator whose guests can have them; of one node, those alone that it knows.
    pub fn cpu_flags(&self, accel: &str, node: Option<&NodeName>) -> Vec<FlagView> {
        let facts = self.cpu_facts();
        let counts =
            |name: &NodeName, facts: &CpuFacts| facts.accel == accel && node.is_none_or(|n| n == name);
        let on = |flag: &str| {
            let having =
                facts.iter().filter(|(name, facts)| counts(name, facts) && facts.features.contains(flag));
            having.map(|(name, _)| name.clone()).collect()
        };
        let shown = |(name, description): &(&str, &str)| FlagView {
            name: (*name).to_owned(),
            description: (*description).to_owned(),
            supported_on: on(name),
        };
        FLAGS.iter().map(shown).collect()
    }

    /// Types of machines that a VM of this node can have, the newest first.
    pub async fn machine_types(&self) -> Result<Vec<MachineView>, OpsError> {
        let can = self.guests.capabilities().await?;
        let mut all: Vec<MachineView> = can.machines.iter().filter_map(|name| machine(name)).collect();
        let number =
            |m: &MachineView| -> Vec<u32> { m.version.split('.').filter_map(|n| n.parse().ok()).collect() };
        all.sort_by(|a, b| a.kind.cmp(&b.kind).then_with(|| number(b).cmp(&number(a))));
        Ok(all)
    }
}
