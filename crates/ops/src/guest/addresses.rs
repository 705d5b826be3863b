//! The addresses of this node's VMs, as the agents in them tell.
//!
//! They are asked now and then, beside the node's reports, which carry what was told last. An agent that is at something else, or whose
//! VM stands, is not news: what it has told counts for a while, as long as the same process runs.

use crate::{Ops, OpsError};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use stead_driver::guest::{GuestProcess, RunState};
use stead_model::Vmid;

/// What tells them.
const COMMAND: &str = "guest-network-get-interfaces";
/// How long an agent may take to be there, and then to answer. Whoever else wants it waits meanwhile, and the shortest time for which
/// anybody does is three seconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many are kept: a guest could name any number.
const MOST: usize = 16;
/// For so many rounds without an answer what was told last counts.
const ROUNDS: u32 = 6;
/// An agent that has not answered so often is asked in each such round alone.
const SELDOM: u32 = 3;

/// What the agent in a VM has told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The process in which it runs.
    pid: u32,
    /// Rounds since it has answered.
    missed: u32,
    /// In the order in which its system names them.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Told {
    /// Whether it was told in this process, and not in an earlier one of that number.
    pub(crate) fn is_of(&self, pid: u32) -> bool {
        self.pid == pid
    }
}

/// The addresses at which others may reach a guest, of what its agent answers.
fn read(answer: &Value) -> Vec<IpAddr> {
    let mut all = vec![];
    let cards = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let named = cards.iter().filter_map(|card| card["ip-addresses"].as_array()).flatten();
    for text in named.filter_map(|entry| entry["ip-address"].as_str()) {
        // A scope may follow: fe80::1%eth0.
        let address = text.split('%').next().unwrap_or_default().parse::<IpAddr>();
        if let Ok(address) = address
            && is_of_use(address)
            && !all.contains(&address)
            && all.len() < MOST
        {
            all.push(address);
        }
    }
    all
}

fn is_of_use(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !link_local && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

/// Whether an agent is asked in this round.
fn is_due(told: &Told) -> bool {
    told.missed < SELDOM || told.missed.is_multiple_of(SELDOM)
}

impl Ops {
    /// One round: asks the agents of this node's VMs, all at once, and keeps what they tell for the node's reports.
    pub async fn ask_addresses(&self) {
        let mut known = self.status.told();
        let running = self.guests.list().await;
        known.retain(|vmid, told| running.iter().any(|p| p.vmid == *vmid && p.pid == told.pid));
        let asked = running.iter().map(|process| {
            let fresh = Told { pid: process.pid, ..Told::default() };
            let told = known.get(&process.vmid).cloned().unwrap_or(fresh);
            async move { (process.vmid, self.ask_one(process, told).await) }
        });
        let told: BTreeMap<Vmid, Told> = join_all(asked).await.into_iter().collect();
        self.status.tell(told);
    }

    async fn ask_one(&self, process: &GuestProcess, mut told: Told) -> Told {
        let answer = match self.has_agent(process) {
            Ok(true) if is_due(&told) => {
                self.guests.agent(process.vmid, COMMAND, &json!({}), PATIENCE).await.ok()
            }
            _ => None,
        };
        match answer {
            Some(answer) => (told.missed, told.addresses) = (0, read(&answer)),
            None => {
                told.missed = told.missed.saturating_add(1);
                if told.missed >= ROUNDS {
                    told.addresses.clear();
                }
            }
        }
        told
    }

    /// Whether a VM's system is said to run the agent, and nobody is at the VM.
    fn has_agent(&self, process: &GuestProcess) -> Result<bool, OpsError> {
        let guest = self.vm_at(process.vmid)?;
        let settings = super::config::parse(&guest.config.value)?.current;
        let own = guest.own.value.owner == self.me.name && guest.own.value.epoch == process.epoch;
        Ok(own
            && process.state == RunState::Running
            && settings.lock().is_none()
            && settings.agent()?.enabled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_at_which_nobody_reaches_it_are_left_out() {
        let answer = json!([
            { "name": "lo", "ip-addresses": [{ "ip-address": "127.0.0.1" }, { "ip-address": "::1" }] },
            { "name": "eth0", "hardware-address": "bc:24:11:00:00:01", "ip-addresses": [
                { "ip-address": "10.0.0.5", "ip-address-type": "ipv4", "prefix": 24 },
                { "ip-address": "fe80::be24:11ff:fe00:1%eth0" },
                { "ip-address": "2001:db8::5" },
                { "ip-address": "10.0.0.5" },
            ] },
            { "name": "eth1", "ip-addresses": [{ "ip-address": "169.254.7.7" }, { "ip-address": "<b>1</b>" }, 7] },
            { "name": "eth2" },
        ]);
        let all: Vec<String> = read(&answer).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["10.0.0.5", "2001:db8::5"]);
        assert_eq!(read(&json!({ "ip-addresses": 7 })), [] as [IpAddr; 0]);
        let many: Vec<Value> = (0..99).map(|n| json!({ "ip-address": format!("10.0.1.{n}") })).collect();
        assert_eq!(read(&json!([{ "ip-addresses": many }])).len(), MOST);
    }
}
