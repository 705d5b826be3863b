//! Our own scenarios: one text file each, the story recorded in it below a line of dashes.
//!
//! ```text
//! # A node loses its power: its guest runs elsewhere within ten seconds.
//! node n1 maxcpu=8 maxmem=16384
//! node n2
//! node n3 power=off
//! service vm:101 n1 started max_restart=2
//! service ct:102 n2 stopped
//! rule node-affinity home resources=vm:101 nodes=n1:2,n2
//! group old nodes=n1 nofailback=1
//! ha shutdown_policy=migrate
//! crs ha=static
//! at 20 power n1 off
//! until 60
//! ----
//! (the story)
//! ```
//!
//! `nodes 30` and `guests 600` make nodes `n1` to `n30` and started VMs from number 100 on, in turn on all of them. `seed 7` leaves to chance
//! what is chance in a cluster - delays, clocks, how long a reset takes -, by that seed; `profile fast` begins with other times of leases.
//!
//! Memory is written in MiB, time in seconds. Commands are those of [`super::command`]. Nodes have power and network unless it is said
//! otherwise; a scenario ends 60 s after its last step unless it is said otherwise.

use super::command::{self, Named, section};
use super::folder;
use super::{Command, Hardware, Load, MIB, Scenario, Setup, Step};
use std::collections::BTreeMap;
use std::time::Duration;
use stead_model::ha_cfg::{HaResource, RequestedState};
use stead_model::{GuestKind, ServiceId, Vmid};

/// How long after its last step a scenario goes on.
const AFTER: Duration = Duration::from_secs(60);

/// The round of a cluster.
const ROUND: Duration = Duration::from_secs(10);

/// How many nodes and guests there are at most.
const MOST_NODES: u32 = 1000;
const MOST_GUESTS: u32 = 20_000;

/// What parts a scenario from its story.
pub const LINE: &str = "----\n";

/// A text that is no scenario.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct TextError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// The scenario and its recorded story, as they are in the file.
pub fn split(file: &str) -> (&str, &str) {
    file.split_once(LINE).unwrap_or((file, ""))
}

/// Reads the part before the line.
///
/// # Errors
/// Names the line that cannot be understood.
pub fn read(text: &str) -> Result<Scenario, TextError> {
    let mut scenario = Scenario::default();
    let (mut rules, mut groups, mut until) = (String::new(), String::new(), None);
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        let said = |why: String| TextError { line: index + 1, why };
        match words.as_slice() {
            [] => {}
            ["node", name, options @ ..] => scenario.nodes.push(hardware(name, options).map_err(said)?),
            ["service", name, node, state, options @ ..] => {
                let named = Named::parse(name).map_err(said)?;
                if named.fails {
                    scenario.names.insert(named.sid, named.to_string());
                }
                scenario.services.push(service(named, node, state, options).map_err(said)?);
            }
            ["rule", kind, id, options @ ..] => section(&mut rules, kind, id, options),
            ["group", id, options @ ..] => section(&mut groups, "group", id, options),
            ["nodes", count] => add_nodes(&mut scenario, count).map_err(said)?,
            ["guests", count] => add_guests(&mut scenario, count).map_err(said)?,
            ["seed", seed] => {
                let seed = seed.parse().map_err(|_| said(format!("'{seed}' is no seed")))?;
                scenario.seed = Some(seed);
            }
            ["profile", profile] => scenario.profile = command::profile(profile).map_err(said)?,
            ["ha", options] => scenario.ha = (*options).to_owned(),
            ["crs", options] => scenario.crs = (*options).to_owned(),
            ["at", at, ..] => {
                let at = seconds(at).map_err(said)?;
                let command = line.splitn(3, char::is_whitespace).nth(2).unwrap_or_default();
                let command = Command::parse(command).map_err(|e| said(e.to_string()))?;
                if let Command::Service(named, _) = &command
                    && named.fails
                {
                    scenario.names.insert(named.sid, named.to_string());
                }
                scenario.steps.push(Step { at, command });
            }
            ["until", at] => until = Some(seconds(at).map_err(said)?),
            _ => return Err(said(format!("'{line}' is not understood"))),
        }
    }
    let whole = |why: String| TextError { line: 0, why };
    scenario.rules = folder::rules(&rules).map_err(|e| whole(e.to_string()))?;
    if !groups.is_empty() {
        scenario.groups = Some(groups.parse().map_err(|e: stead_model::FormatError| whole(e.to_string()))?);
    }
    let last = scenario.steps.iter().map(|s| s.at).max().unwrap_or_default();
    scenario.round = ROUND;
    scenario.end = until.unwrap_or(last + AFTER);
    Ok(scenario)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let s: f64 = text.parse().map_err(|_| format!("'{text}' is no number of seconds"))?;
    Duration::try_from_secs_f64(s).map_err(|e| e.to_string())
}

/// Nodes `n1` to `nN`.
fn add_nodes(scenario: &mut Scenario, count: &str) -> Result<(), String> {
    let count: u32 = number(count, MOST_NODES)?;
    for n in 1..=count {
        let name = format!("n{n}").parse().map_err(|e: stead_model::IdError| e.to_string())?;
        scenario.nodes.push(Hardware::new(name));
    }
    Ok(())
}

/// Started VMs from number 100 on, in turn on the nodes that there are.
fn add_guests(scenario: &mut Scenario, count: &str) -> Result<(), String> {
    let count: u32 = number(count, MOST_GUESTS)?;
    let nodes: Vec<_> = scenario.nodes.iter().map(|h| h.name.clone()).collect();
    for (i, node) in (0..count).zip(nodes.iter().cycle()) {
        let vmid = Vmid::new(100 + i).map_err(|e| e.to_string())?;
        let sid = ServiceId { kind: GuestKind::Qemu, vmid };
        let resource = HaResource { state: RequestedState::Started, ..HaResource::new(sid) };
        scenario.services.push(Setup { resource, ..Setup::new(sid, node.clone()) });
    }
    Ok(())
}

fn number(text: &str, most: u32) -> Result<u32, String> {
    text.parse().ok().filter(|n| *n <= most).ok_or_else(|| format!("'{text}' is no number up to {most}"))
}

fn options<'t>(words: &[&'t str]) -> BTreeMap<&'t str, &'t str> {
    words.iter().map(|w| w.split_once('=').unwrap_or((w, "1"))).collect()
}

/// Takes an option's value, if it is there.
fn take<T: std::str::FromStr>(options: &mut BTreeMap<&str, &str>, key: &str) -> Result<Option<T>, String> {
    let Some(text) = options.remove(key) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{key}: '{text}' is no such value"))
}

fn nothing_left(options: &BTreeMap<&str, &str>) -> Result<(), String> {
    options.keys().next().map_or(Ok(()), |key| Err(format!("the option '{key}' is not known")))
}

fn is_on(options: &mut BTreeMap<&str, &str>, key: &str) -> bool {
    options.remove(key).is_none_or(|v| v == "on")
}

fn hardware(name: &str, words: &[&str]) -> Result<Hardware, String> {
    let base = Hardware::new(name.parse().map_err(|e: stead_model::IdError| e.to_string())?);
    let mut o = options(words);
    let hardware = Hardware {
        power: is_on(&mut o, "power"),
        network: is_on(&mut o, "network"),
        maxcpu: take(&mut o, "maxcpu")?.unwrap_or(base.maxcpu),
        maxmem: take::<u64>(&mut o, "maxmem")?.map_or(base.maxmem, |m| m.saturating_mul(MIB)),
        ..base
    };
    nothing_left(&o)?;
    Ok(hardware)
}

fn service(named: Named, node: &str, state: &str, words: &[&str]) -> Result<Setup, String> {
    let node = node.parse().map_err(|e: stead_model::IdError| e.to_string())?;
    let mut o = options(words);
    let state = RequestedState::from_text(state)
        .ok_or_else(|| format!("'{state}' is no state that can be requested"))?;
    let base = Load::default();
    let load = Load {
        maxcpu: take(&mut o, "maxcpu")?.unwrap_or(base.maxcpu),
        maxmem: take::<u64>(&mut o, "maxmem")?.map_or(base.maxmem, |m| m.saturating_mul(MIB)),
        cpu: take(&mut o, "cpu")?.unwrap_or(base.cpu),
        mem: take::<u64>(&mut o, "mem")?.map_or(base.mem, |m| m.saturating_mul(MIB)),
    };
    let flag = |v: Option<u8>| v.is_none_or(|v| v != 0);
    let resource = HaResource {
        state,
        max_restart: take(&mut o, "max_restart")?.unwrap_or(1),
        max_relocate: take(&mut o, "max_relocate")?.unwrap_or(1),
        failback: flag(take(&mut o, "failback")?),
        auto_rebalance: flag(take(&mut o, "auto-rebalance")?),
        group: o.remove("group").map(str::to_owned),
        ..HaResource::new(named.sid)
    };
    let lock = o.remove("lock").map(str::to_owned);
    nothing_left(&o)?;
    Ok(Setup { resource, load, lock, failing: named.failing(), ..Setup::new(named.sid, node) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_read() {
        let text = "# title\nnode n1 maxmem=1024\nnode n2 power=off\nservice fa:130 n1 started max_restart=3 mem=512\n\
                    rule node-affinity home resources=fa:130 nodes=n1:2,n2 strict\ngroup g nodes=n1\n\
                    ha shutdown_policy=freeze\nat 20 power n1 off\nat 30.5 service fa:130 stopped\n";
        let s = read(text).unwrap();
        assert_eq!((s.nodes[0].maxmem, s.nodes[1].power), (1 << 30, false));
        let fa = &s.services[0];
        assert_eq!((fa.resource.max_restart, fa.failing.starts, fa.load.mem), (3, 3, 512 * MIB));
        assert_eq!(s.name(fa.resource.sid), "fa:130");
        assert!(s.rules[0].resources.contains(&fa.resource.sid));
        assert_eq!(s.steps.len(), 2);
        assert_eq!(s.end, Duration::from_millis(90_500));
    }

    #[test]
    fn a_wrong_line_is_named() {
        let said = |text: &str| read(text).unwrap_err().to_string();
        assert_eq!(said("node n1\nnode n2 colour=red\n"), "line 2: the option 'colour' is not known");
        assert_eq!(said("knots n1\n"), "line 1: 'knots n1' is not understood");
        assert_eq!(said("nodes 1001\n"), "line 1: '1001' is no number up to 1000");
        assert!(said("at 20 power\n").starts_with("line 1: the command 'power'"));
    }
}
