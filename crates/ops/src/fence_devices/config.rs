//! Fence devices as users make, change and see them.

use super::agent::Agents;
use crate::{Actor, Ops, OpsError, store};
use serde::Serialize;
use stead_api_derive::Schema;
use stead_conf::{Op, Revision, Txn};
use stead_model::fence_cfg::{
    AgentOptions, Connection, FenceDevice, check_agent, check_option, delay, is_secret, options_text, pairs,
};
use stead_model::{DeviceId, FenceCfg, FenceSecrets, NodeName, paths};

/// What a client says of a device. Nothing given: nothing changed.
#[derive(Clone, Default)]
pub struct DeviceOptions {
    /// The program.
    pub agent: Option<String>,
    /// Seconds.
    pub delay: Option<String>,
    /// `key=value …`: all of the agent's options, in place of those that there are.
    pub options: Option<String>,
    /// A line each: `node=n1 plug=3`; all connections, in place of those that there are.
    pub connect: Option<String>,
    /// `password=…`: secrets to set.
    pub secrets: Option<String>,
}

/// A device as it is shown: without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct FenceDeviceView {
    /// Its name.
    pub device: String,
    /// The program that speaks to it.
    pub agent: String,
    /// For how many seconds longer than its lease a node must be silent; none: for one heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<String>,
    /// The agent's options: `key=value …`.
    pub options: String,
    /// What it powers: `node=n1 plug=3`.
    pub connect: Vec<String>,
    /// The names of its secrets.
    pub secrets: Vec<String>,
    /// The file's version.
    pub digest: String,
}

/// Options of one kind: secrets, or none.
fn only(text: &str, parameter: &str, secret: bool) -> Result<AgentOptions, OpsError> {
    let bad = |why: String| OpsError::invalid(parameter, why);
    let options = pairs(text).map_err(bad)?;
    for (key, value) in &options {
        check_option(key, value).map_err(bad)?;
        if is_secret(key) != secret {
            return Err(bad(match secret {
                false => format!("'{key}' is a secret: give it as one, so that it is sealed"),
                true => format!("'{key}' is no secret by its name: give it as an option"),
            }));
        }
    }
    Ok(options)
}

fn with(mut device: FenceDevice, given: &DeviceOptions) -> Result<FenceDevice, OpsError> {
    if let Some(agent) = &given.agent {
        check_agent(agent).map_err(|why| OpsError::invalid("agent", why))?;
        device.agent.clone_from(agent);
    }
    if let Some(text) = &given.delay {
        device.delay = Some(delay(text).map_err(|why| OpsError::invalid("delay", why))?);
    }
    if let Some(text) = &given.options {
        device.options = only(text, "options", false)?;
        if device.options.contains_key("delay") {
            return Err(OpsError::invalid("options", "'delay' is an option of its own"));
        }
    }
    if let Some(text) = &given.connect {
        device.connections = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(str::parse::<Connection>)
            .collect::<Result<_, _>>()
            .map_err(|why| OpsError::invalid("connect", why))?;
    }
    Ok(device)
}

struct Files {
    cfg: (FenceCfg, Option<Revision>),
    secrets: (FenceSecrets, Option<Revision>),
}

impl Ops {
    fn fence_files(&self) -> Result<Files, OpsError> {
        let sealed = self.conf.view(|tree| tree.get(paths::FENCE_SECRETS).map(|entry| entry.revision));
        Ok(Files { cfg: self.fence_cfg()?, secrets: (self.fence_secrets()?, sealed) })
    }

    async fn commit_fence(
        &self,
        actor: &Actor,
        note: String,
        before: &Files,
        cfg: &FenceCfg,
        secrets: &FenceSecrets,
    ) -> Result<(), OpsError> {
        // What cannot be read again must not be written.
        FenceCfg::parse(&cfg.to_string()).map_err(|e| OpsError::invalid("connect", e.reason))?;
        let mut txn = store::txn(&actor.who, note);
        store::put_over(&mut txn, paths::FENCE_CFG, before.cfg.1, cfg.to_string());
        if *secrets != before.secrets.0 {
            let sealed = self.sealed(paths::FENCE_SECRETS, &secrets.to_text())?;
            store::put_over(&mut txn, paths::FENCE_SECRETS, before.secrets.1, sealed);
        }
        self.conf.transact(txn).await?;
        Ok(())
    }

    fn known_device(&self, device: &FenceDevice) -> Result<(), OpsError> {
        for connection in &device.connections {
            let known = self.guest_nodes().into_iter().any(|n| n.name == connection.node);
            if !known {
                let node = &connection.node;
                return Err(OpsError::invalid(
                    "connect",
                    format!("the cluster has no node '{node}' that guests run on"),
                ));
            }
        }
        Self::installed(&self.fence_agents, &device.agent)
    }

    fn installed(agents: &Agents, agent: &str) -> Result<(), OpsError> {
        if agents.has(agent) {
            return Ok(());
        }
        Err(OpsError::invalid(
            "agent",
            format!("there is no '{agent}' on this node: install the package fence-agents, on every node"),
        ))
    }

    /// Every device.
    pub fn fence_devices(&self) -> Result<Vec<FenceDeviceView>, OpsError> {
        let Files { cfg: (cfg, _), secrets: (secrets, _) } = self.fence_files()?;
        let digest = stead_model::vmconfig::digest(&cfg.to_string());
        let shown = |(id, device): (&DeviceId, &FenceDevice)| FenceDeviceView {
            device: id.to_string(),
            agent: device.agent.clone(),
            delay: device.delay.map(|d| d.as_secs_f64().to_string()),
            options: options_text(&device.options),
            connect: device.connections.iter().map(ToString::to_string).collect(),
            secrets: secrets.of(id).keys().cloned().collect(),
            digest: digest.clone(),
        };
        Ok(cfg.devices.iter().map(shown).collect())
    }

    /// One device.
    pub fn fence_device(&self, id: &DeviceId) -> Result<FenceDeviceView, OpsError> {
        let found = self.fence_devices()?.into_iter().find(|d| d.device == id.as_str());
        found.ok_or_else(|| missing(id))
    }

    /// Makes a device.
    pub async fn fence_device_add(
        &self,
        actor: &Actor,
        id: &DeviceId,
        given: DeviceOptions,
    ) -> Result<(), OpsError> {
        let before = self.fence_files()?;
        let (mut cfg, mut secrets) = (before.cfg.0.clone(), before.secrets.0.clone());
        if cfg.devices.contains_key(id) {
            return Err(OpsError::invalid("device", format!("the fence device '{id}' is defined already")));
        }
        let blank = FenceDevice {
            agent: String::new(),
            delay: None,
            options: AgentOptions::new(),
            connections: vec![],
        };
        let device = with(blank, &given)?;
        self.known_device(&device)?;
        cfg.devices.insert(id.clone(), device);
        secrets.forget(id);
        for (key, value) in only(given.secrets.as_deref().unwrap_or_default(), "secrets", true)? {
            secrets.set(id, &key, Some(value));
        }
        self.commit_fence(actor, format!("fence device '{id}' added"), &before, &cfg, &secrets).await
    }

    /// Changes a device. `delete`: `delay`, or names of secrets.
    pub async fn fence_device_change(
        &self,
        actor: &Actor,
        id: &DeviceId,
        given: DeviceOptions,
        delete: &[String],
        digest: Option<&str>,
    ) -> Result<(), OpsError> {
        let before = self.fence_files()?;
        let (mut cfg, mut secrets) = (before.cfg.0.clone(), before.secrets.0.clone());
        if digest.is_some_and(|d| d != stead_model::vmconfig::digest(&cfg.to_string())) {
            return Err(OpsError::failed(
                "detected modified configuration - file changed by other user? Try again.",
            ));
        }
        let old = cfg.devices.get(id).cloned().ok_or_else(|| missing(id))?;
        let mut device = with(old, &given)?;
        for key in delete {
            if key == "delay" {
                device.delay = None;
            } else if secrets.of(id).contains_key(key) {
                secrets.set(id, key, None);
            } else {
                let why = format!("'{key}' is neither 'delay' nor a secret of '{id}'");
                return Err(OpsError::invalid("delete", why));
            }
        }
        for (key, value) in only(given.secrets.as_deref().unwrap_or_default(), "secrets", true)? {
            secrets.set(id, &key, Some(value));
        }
        self.known_device(&device)?;
        cfg.devices.insert(id.clone(), device);
        self.commit_fence(actor, format!("fence device '{id}' changed"), &before, &cfg, &secrets).await
    }

    /// Takes a device out, with its secrets.
    pub async fn fence_device_remove(&self, actor: &Actor, id: &DeviceId) -> Result<(), OpsError> {
        let before = self.fence_files()?;
        let (mut cfg, mut secrets) = (before.cfg.0.clone(), before.secrets.0.clone());
        cfg.devices.remove(id).ok_or_else(|| missing(id))?;
        secrets.forget(id);
        self.commit_fence(actor, format!("fence device '{id}' removed"), &before, &cfg, &secrets).await
    }

    /// Adds to the transaction that removes a node that its fence devices are not connected to it any more: a later node of its
    /// name is another machine. A file that can't be read stays as it is; nothing is done by it.
    pub(crate) fn disconnect_fence(&self, txn: &mut Txn, node: &NodeName) {
        let Ok((cfg, Some(revision))) = self.fence_cfg() else { return };
        let without = cfg.clone().without_node(node);
        if without != cfg {
            txn.checks.push(stead_conf::Check::Revision(paths::FENCE_CFG.to_owned(), revision));
            txn.ops.push(Op::Put(paths::FENCE_CFG.to_owned(), without.to_string().into_bytes().into()));
        }
    }
}

fn missing(id: &DeviceId) -> OpsError {
    OpsError::failed(format!("no such fence device '{id}'"))
}
