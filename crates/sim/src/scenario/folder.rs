//! Scenarios in folders, in the form of a well-known HA manager's regression cases.
//!
//! Each file is JSON, but for `rules_config` and `groups`, which are section configs. Steps are carried out at the moments
//! of that manager's rounds: a round lasts max(20, 2 × nodes) s, a step comes at the end of every fifth, and `delay` holds
//! the next one.

use super::command::{Named, ServiceCommand};
use super::{Command, CommandError, Hardware, Load, Scenario, Setup, Step};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_model::ha_cfg::{HaResource, HaRule, HaRules, RequestedState};
use stead_model::{FormatError, SectionConfig};

/// How long after its last step a scenario goes on.
const AFTER: Duration = Duration::from_secs(600);

/// A folder that cannot be read as a scenario.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{file}: {why}")]
    Content {
        /// The file's name.
        file: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A step cannot be understood.
    #[error("cmdlist: {0}")]
    Command(#[from] CommandError),
}

fn wrong<T>(file: &'static str, why: impl std::fmt::Display) -> Result<T, FolderError> {
    Err(FolderError::Content { file, why: why.to_string() })
}

/// Reads a folder.
///
/// # Errors
/// Names the file that is missing or wrong. Files that are optional may be missing.
pub fn read(dir: &Path) -> Result<Scenario, FolderError> {
    let mut scenario = Scenario::default();
    for (name, entry) in object(dir, "hardware_status", true)? {
        scenario.nodes.push(hardware(&name, &entry)?);
    }
    scenario.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let fixed = object(dir, "static_service_stats", false)?;
    let used = object(dir, "dynamic_service_stats", false)?;
    for (name, entry) in object(dir, "service_config", false)? {
        let named = named("service_config", &name)?;
        let load = load(fixed.get(&name), used.get(&name));
        scenario.services.push(setup(named, &entry, load)?);
        if named.fails {
            scenario.names.insert(named.sid, name);
        }
    }
    scenario.services.sort_by_key(|s| s.resource.sid);
    let datacenter = object(dir, "datacenter.cfg", false)?;
    scenario.ha = property(datacenter.get("ha"));
    scenario.crs = property(datacenter.get("crs"));
    let manager = object(dir, "manager_status", false)?;
    scenario.manager = (!manager.is_empty()).then_some(Value::Object(manager));
    if let Some(text) = text(dir, "rules_config", false)? {
        scenario.rules = rules(&text)?;
    }
    if let Some(text) = text(dir, "groups", false)? {
        let groups: SectionConfig = text.parse().or_else(|e: FormatError| wrong("groups", e))?;
        scenario.groups = Some(groups);
    }
    steps(dir, &mut scenario)?;
    late_stats(&mut scenario, &fixed, &used);
    Ok(scenario)
}

fn text(dir: &Path, file: &'static str, required: bool) -> Result<Option<String>, FolderError> {
    let path = dir.join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => Ok(None),
        Err(source) => Err(FolderError::File { path, source }),
    }
}

fn object(dir: &Path, file: &'static str, required: bool) -> Result<Map<String, Value>, FolderError> {
    let Some(text) = text(dir, file, required)? else { return Ok(Map::new()) };
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => wrong(file, "is no JSON object"),
        Err(e) => wrong(file, e),
    }
}

fn hardware(name: &str, entry: &Value) -> Result<Hardware, FolderError> {
    let name = name.parse().or_else(|e: stead_model::IdError| wrong("hardware_status", e))?;
    let base = Hardware::new(name);
    Ok(Hardware {
        power: entry["power"] == "on",
        network: entry["network"] == "on",
        maxcpu: number(&entry["maxcpu"]).unwrap_or(base.maxcpu),
        maxmem: bytes(&entry["maxmem"]).unwrap_or(base.maxmem),
        ..base
    })
}

fn named(file: &'static str, name: &str) -> Result<Named, FolderError> {
    Named::parse(name).or_else(|e| wrong(file, e))
}

/// Numbers are written as such or as text.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn whole(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| n.try_into().ok()).or_else(|| value.as_str()?.parse().ok())
}

fn bytes(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn load(fixed: Option<&Value>, used: Option<&Value>) -> Load {
    let base = Load::default();
    let get = |of: Option<&Value>, key: &str| of.map(|v| v[key].clone()).unwrap_or_default();
    Load {
        maxcpu: number(&get(fixed, "maxcpu")).unwrap_or(base.maxcpu),
        maxmem: bytes(&get(fixed, "maxmem")).unwrap_or(base.maxmem),
        cpu: number(&get(used, "cpu")).unwrap_or(base.cpu),
        mem: bytes(&get(used, "mem")).unwrap_or(base.mem),
    }
}

fn setup(named: Named, entry: &Value, load: Load) -> Result<Setup, FolderError> {
    let file = "service_config";
    let node = entry["node"].as_str().unwrap_or_default();
    let node = node.parse().or_else(|e: stead_model::IdError| wrong(file, format_args!("{named}: {e}")))?;
    let state = match entry["state"].as_str() {
        None => RequestedState::Disabled,
        Some(text) => match RequestedState::from_text(text) {
            Some(state) => state,
            None => return wrong(file, format_args!("{named}: '{text}' is no state")),
        },
    };
    let resource = HaResource {
        state,
        max_restart: whole(&entry["max_restart"]).unwrap_or(1),
        max_relocate: whole(&entry["max_relocate"]).unwrap_or(1),
        failback: whole(&entry["failback"]).is_none_or(|f| f != 0),
        group: entry["group"].as_str().filter(|g| !g.is_empty()).map(str::to_owned),
        ..HaResource::new(named.sid)
    };
    let lock = entry["lock"].as_str().map(str::to_owned);
    Ok(Setup { resource, failing: named.failing(), load, lock, ..Setup::new(named.sid, node) })
}

/// An option of `datacenter.cfg`, which is an object here, as the property string that it is there.
fn property(option: Option<&Value>) -> String {
    let Some(Value::Object(map)) = option else { return String::new() };
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    map.iter().map(|(k, v)| format!("{k}={}", text(v))).collect::<Vec<_>>().join(",")
}

/// Rules, with the services' names in them as the cluster has them.
///
/// # Errors
/// If the text is no section config, or a rule is wrong.
pub fn rules(text: &str) -> Result<Vec<HaRule>, FolderError> {
    let mut sections: SectionConfig = text.parse().or_else(|e: FormatError| wrong("rules_config", e))?;
    let ids: Vec<String> = sections.iter().map(|s| s.id().to_owned()).collect();
    for id in ids {
        let Ok(section) = sections.get_mut(&id) else { continue };
        let Some(names) = section.get("resources").map(str::to_owned) else { continue };
        let sids: Result<Vec<String>, FolderError> = stead_model::text::split_list(&names)
            .map(|name| Ok(named("rules_config", name)?.sid.to_string()))
            .collect();
        section.set("resources", &sids?.join(",")).or_else(|e| wrong("rules_config", e))?;
    }
    let rules = HaRules::parse(&sections.to_string()).or_else(|e| wrong("rules_config", e))?;
    let (good, bad) = rules.list();
    match bad.first() {
        Some((id, e)) => wrong("rules_config", format_args!("rule '{id}': {e}")),
        None => Ok(good),
    }
}

fn steps(dir: &Path, scenario: &mut Scenario) -> Result<(), FolderError> {
    let list = text(dir, "cmdlist", true)?.unwrap_or_default();
    let list: Vec<Vec<String>> = serde_json::from_str(&list).or_else(|e| wrong("cmdlist", e))?;
    let nodes = u64::try_from(scenario.nodes.len()).unwrap_or(u64::MAX);
    let round = Duration::from_secs(nodes.saturating_mul(2).max(20));
    scenario.round = round;
    let mut at = round;
    let mut last = at;
    for commands in list {
        let mut held = Duration::ZERO;
        for command in commands {
            let command = Command::parse(&command)?;
            if let Command::Service(named, _) = &command
                && named.fails
            {
                scenario.names.insert(named.sid, named.to_string());
            }
            let now = at + held;
            if let Command::Delay(time) = command {
                held += time;
            }
            scenario.steps.push(Step { at: now, command });
        }
        last = at + held;
        // The round in which the step was carried out ends with it; the next one comes four rounds later if it was held.
        at = if held.is_zero() { at + round * 5 } else { last + round * 4 };
    }
    scenario.end = last + AFTER;
    Ok(())
}

/// The files may hold the load of services that are added later.
fn late_stats(scenario: &mut Scenario, fixed: &Map<String, Value>, used: &Map<String, Value>) {
    for step in &scenario.steps {
        let Command::Service(named, ServiceCommand::Add { .. }) = &step.command else { continue };
        let name = named.to_string();
        if fixed.contains_key(&name) || used.contains_key(&name) {
            scenario.later.insert(named.sid, load(fixed.get(&name), used.get(&name)));
        }
    }
}
