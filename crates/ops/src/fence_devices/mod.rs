//! Fence devices: kept, tried, and used.
//!
//! What they are stands in `ha/fence.cfg`, their passwords in `priv/fence.cfg`. When they are used the leader's
//! `membership::Grantor` decides; [`Ops::power_off`] is how.

pub mod agent;
mod config;

pub use config::{DeviceOptions, FenceDeviceView};

use crate::clock::unix_ms;
use crate::{Ops, OpsError};
use agent::{Action, AgentError, Ended};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use stead_api_derive::Schema;
use stead_conf::Revision;
use stead_ha::{AgentMode, AgentReport};
use stead_model::fence_cfg::AgentCall;
use stead_model::{BootId, FenceCfg, FenceSecrets, NodeName, NodeRecord, PoweredOff, paths};

/// What came of the last order to power a node off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// The node.
    pub node: NodeName,
    /// The boot that was to end.
    pub boot: BootId,
    /// When it was ordered: milliseconds since 1970.
    pub at_ms: u64,
    /// Milliseconds until the result; none while it is under way.
    pub took_ms: Option<u64>,
    /// Why it failed.
    pub failure: Option<String>,
    /// It was off before: nobody but who turned it off turns it on.
    #[serde(default)]
    pub was_off: bool,
}

/// What one device says of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Schema)]
pub struct FenceTest {
    /// The device.
    pub device: String,
    /// The program that speaks to it.
    pub agent: String,
    /// `on` or `off`; none: it did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<String>,
    /// Why it did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Seconds that it took.
    pub took: f64,
}

impl Ops {
    /// The file, with the revision that it was read at.
    fn fence_cfg(&self) -> Result<(FenceCfg, Option<Revision>), OpsError> {
        let (text, revision) = self.file(paths::FENCE_CFG)?;
        let cfg = FenceCfg::parse(&text)
            .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::FENCE_CFG)))?;
        Ok((cfg, revision))
    }

    fn fence_secrets(&self) -> Result<FenceSecrets, OpsError> {
        FenceSecrets::parse(&self.secret_text(paths::FENCE_SECRETS)?)
            .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::FENCE_SECRETS)))
    }

    fn fence_calls(&self, node: &NodeName) -> Result<Vec<AgentCall>, OpsError> {
        Ok(self.fence_cfg()?.0.calls(node, &self.fence_secrets()?))
    }

    /// Which other nodes may be powered off, and how much longer than its lease each must be silent before. None is, while HA is
    /// disarmed; nor is one that has said that it goes down in order.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn fence_delays(&self) -> Result<BTreeMap<NodeName, Option<Duration>>, OpsError> {
        let mut delays = self.fence_cfg()?.0.delays(&self.me.name);
        if !delays.is_empty() && self.ha_manager_status()?.get("disarm").is_some_and(|d| !d.is_null()) {
            delays.clear();
        }
        delays.retain(|node, _| {
            let report = self.status.node(node).map(|r| serde_json::from_value::<AgentReport>(r.ha));
            !report.is_some_and(|r| r.is_ok_and(|r| r.mode != AgentMode::Active))
        });
        Ok(delays)
    }

    /// Takes a node's power by all of its devices, then asks each whether it is off. When one of them fails, or says otherwise,
    /// all give back what they may have taken: neither half of a machine's power supplies nor a machine that nobody turns on
    /// again is a state to leave it in.
    ///
    /// # Errors
    /// Anything but: each has done it, and says afterwards that the power is off.
    pub async fn power_off(&self, node: &NodeName, boot: &BootId) -> Result<PoweredOff, OpsError> {
        let begun = Instant::now();
        let at_ms = unix_ms();
        let ordered = Fenced {
            node: node.clone(),
            boot: boot.clone(),
            at_ms,
            took_ms: None,
            failure: None,
            was_off: false,
        };
        self.status.fenced(ordered.clone());
        let done = self.take_power(node).await;
        let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let failure = done.as_ref().err().map(ToString::to_string);
        let was_off = done.as_ref().is_ok_and(|(_, was_off)| *was_off);
        self.status.fenced(Fenced { took_ms: Some(took), failure, was_off, ..ordered });
        self.flush.soon();
        Ok(PoweredOff { boot: boot.clone(), devices: done?.0, took_ms: took })
    }

    /// The devices' names, and whether the power was off before.
    async fn take_power(&self, node: &NodeName) -> Result<(String, bool), OpsError> {
        let calls = self.fence_calls(node)?;
        if calls.is_empty() {
            return Err(OpsError::failed(format!("node '{node}' has no fence device")));
        }
        let taken = join_all(calls.iter().map(|call| self.fence_agents.run(call, Action::Off))).await;
        let confirmed = match failures(&taken) {
            Some(why) => Err(OpsError::failed(why)),
            None => self.all_off(&calls).await,
        };
        if let Err(e) = confirmed {
            // One that failed may have done it all the same.
            let back = calls.iter().zip(&taken).filter(|(_, taken)| **taken != Ok(Ended::WasOff));
            self.give_power(back.map(|(call, _)| call)).await;
            return Err(e);
        }
        let names: Vec<String> = calls.iter().map(|c| c.device.to_string()).collect();
        Ok((names.join(", "), taken.iter().all(|t| *t == Ok(Ended::WasOff))))
    }

    /// Asks every device whether the power is off.
    async fn all_off(&self, calls: &[AgentCall]) -> Result<(), OpsError> {
        let seen = join_all(calls.iter().map(|call| self.fence_agents.run(call, Action::Status))).await;
        if let Some(why) = failures(&seen) {
            return Err(OpsError::failed(why));
        }
        match calls.iter().zip(&seen).find(|(_, seen)| **seen != Ok(Ended::Off)) {
            None => Ok(()),
            Some((call, _)) => Err(OpsError::failed(format!(
                "{}: it took the order, and says that the power is on",
                call.device
            ))),
        }
    }

    async fn give_power(&self, calls: impl Iterator<Item = &AgentCall>) {
        for failed in join_all(calls.map(|call| self.fence_agents.run(call, Action::On))).await {
            if let Err(e) = failed {
                tracing::warn!("a fence device did not give power back: {e}");
            }
        }
    }

    /// Gives a node its power back, unless it had none before [`Self::power_off`] was called here.
    ///
    /// # Errors
    /// If its devices can't be read from the configuration.
    pub async fn power_on(&self, node: &NodeName) -> Result<(), OpsError> {
        if self.status.own_fenced().iter().any(|f| f.node == *node && f.was_off) {
            return Ok(());
        }
        let calls = self.fence_calls(node)?;
        self.give_power(calls.iter()).await;
        Ok(())
    }

    /// Asks every device of a node whether it has power. Changes nothing.
    ///
    /// # Errors
    /// If the node has none, or the file can't be read.
    pub async fn fence_test(&self, node: &NodeName) -> Result<Vec<FenceTest>, OpsError> {
        let calls = self.fence_calls(node)?;
        if calls.is_empty() {
            return Err(OpsError::failed(format!(
                "node '{node}' has no fence device: connect one with 'stead fence set DEVICE --node {node}'"
            )));
        }
        Ok(join_all(calls.iter().map(|call| self.ask_device(call))).await)
    }

    async fn ask_device(&self, call: &AgentCall) -> FenceTest {
        let begun = Instant::now();
        let said = self.fence_agents.run(call, Action::Status).await;
        FenceTest {
            device: call.device.to_string(),
            agent: call.agent.clone(),
            power: said.as_ref().ok().map(|e| if *e == Ended::Off { "off" } else { "on" }.to_owned()),
            error: said.err().map(|e| e.to_string()),
            took: begun.elapsed().as_secs_f64(),
        }
    }

    /// What is to be told of a node's fencing: of its devices' confirmation while it is lost, or of their last failure.
    pub fn fenced_words(&self, node: &NodeRecord) -> Option<String> {
        if let Some(off) = node.off.as_ref().filter(|_| node.is_off()) {
            let (devices, seconds) = (&off.devices, seconds(off.took_ms));
            return Some(format!("powered off by {devices} in {seconds} s"));
        }
        let last = self.status.last_fenced(&node.name).filter(|f| f.boot == *node.state.boot())?;
        match (last.failure, last.took_ms) {
            (Some(why), took) => {
                Some(format!("not powered off after {} s: {why}", seconds(took.unwrap_or_default())))
            }
            (None, None) => Some("being powered off".to_owned()),
            (None, Some(_)) => None,
        }
    }
}

fn seconds(ms: u64) -> String {
    format!("{:.1}", Duration::from_millis(ms).as_secs_f64())
}

fn failures(all: &[Result<Ended, AgentError>]) -> Option<String> {
    let words: Vec<String> = all.iter().filter_map(|r| r.as_ref().err()).map(ToString::to_string).collect();
    (!words.is_empty()).then(|| words.join("; "))
}
