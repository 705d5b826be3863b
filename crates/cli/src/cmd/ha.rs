//! `stead ha`.

use super::Cx;
use crate::api::{rows, text, truth};
use crate::failure::Failure;
use crate::output::{Column, Format, Kind, print, table};
use crate::params::{Params, escape, put, settings};
use clap::{Args, Subcommand};
use serde_json::Value;

const RESOURCES: [Column; 6] = [
    ("RESOURCE", "sid", Kind::Text),
    ("STATE", "state", Kind::Text),
    ("RESTARTS", "max_restart", Kind::Number),
    ("RELOCATES", "max_relocate", Kind::Number),
    ("FAILBACK", "failback", Kind::Truth),
    ("COMMENT", "comment", Kind::Text),
];
const STATUS: [Column; 5] = [
    ("KIND", "type", Kind::Text),
    ("ID", "id", Kind::Text),
    ("NODE", "node", Kind::Text),
    ("WANTED", "request_state", Kind::Text),
    ("STATUS", "status", Kind::Text),
];

const FATES: [Column; 5] = [
    ("GUEST", "sid", Kind::Text),
    ("FROM", "from", Kind::Text),
    ("THEN", "then", Kind::Text),
    ("HA", "ha", Kind::Truth),
    ("WHY", "reason", Kind::Text),
];
const ROOM: [Column; 5] = [
    ("NODE", "node", Kind::Text),
    ("MEMORY", "total", Kind::Bytes),
    ("USED NOW", "used", Kind::Bytes),
    ("USED THEN", "after", Kind::Bytes),
    ("LEFT THEN", "left", Kind::Bytes),
];
const BROKEN: [Column; 2] = [("RULE NOT KEPT", "rule", Kind::Text), ("BECAUSE OF", "reason", Kind::Text)];

const RULES_PATH: &str = "/cluster/ha/rules";
const RULES: [Column; 8] = [
    ("RULE", "rule", Kind::Text),
    ("TYPE", "type", Kind::Text),
    ("AFFINITY", "affinity", Kind::Text),
    ("RESOURCES", "resources", Kind::Text),
    ("NODES", "nodes", Kind::Text),
    ("STRICT", "strict", Kind::Truth),
    ("DISABLED", "disable", Kind::Truth),
    ("COMMENT", "comment", Kind::Text),
];
const PROFILE_PATH: &str = "/cluster/ha/profile";
const PROFILE: [Column; 7] = [
    ("PROFILE", "profile", Kind::Text),
    ("BEFORE", "previous", Kind::Text),
    ("HEARTBEAT", "heartbeat", Kind::Number),
    ("LEASE", "lease", Kind::Number),
    ("DRAIN", "drain", Kind::Number),
    ("WATCHDOG", "watchdog", Kind::Number),
    ("FENCE TIME (s)", "fence-time", Kind::Number),
];

/// Rules about where guests may be.
#[derive(Debug, Subcommand)]
pub enum Rule {
    /// List the rules
    List,
    /// Make a rule; refused, with the reason, if it can't be kept together with the others
    #[command(
        after_help = "Examples:\n  stead ha rule add node-affinity db-nodes --resources vm:100,vm:101 --nodes n1:2,n2 --strict\n  \
                            stead ha rule add resource-affinity apart --resources vm:100,vm:101 --affinity negative"
    )]
    Add {
        /// What it is about
        #[arg(value_parser = ["node-affinity", "resource-affinity"])]
        kind: String,
        /// Its name
        name: String,
        #[command(flatten)]
        options: RuleOptions,
    },
    /// Change a rule
    Set {
        /// What it is about
        #[arg(value_parser = ["node-affinity", "resource-affinity"])]
        kind: String,
        /// Its name
        name: String,
        #[command(flatten)]
        options: RuleOptions,
    },
    /// Take a rule out
    Remove {
        /// Its name
        name: String,
    },
}

/// What a rule says.
#[derive(Debug, Args)]
pub struct RuleOptions {
    /// The guests: vm:100,vm:101
    #[arg(long, value_name = "LIST")]
    resources: Option<String>,
    /// The nodes, with priorities: n1:2,n2
    #[arg(long, value_name = "LIST")]
    nodes: Option<String>,
    /// On these nodes alone: stopped, rather than elsewhere
    #[arg(long, num_args = 0..=1, default_missing_value = "1", value_parser = ["0", "1"])]
    strict: Option<String>,
    /// positive: together, or on these nodes; negative: apart, or on any but these
    #[arg(long, value_parser = ["positive", "negative"])]
    affinity: Option<String>,
    /// Keep the rule, but let it not count
    #[arg(long, num_args = 0..=1, default_missing_value = "1", value_parser = ["0", "1"])]
    disable: Option<String>,
    /// A comment
    #[arg(long)]
    comment: Option<String>,
}

impl RuleOptions {
    fn params(self, kind: String) -> Params {
        let mut p = Params::new();
        put(&mut p, "type", Some(kind));
        put(&mut p, "resources", self.resources);
        put(&mut p, "nodes", self.nodes);
        put(&mut p, "strict", self.strict);
        put(&mut p, "affinity", self.affinity);
        put(&mut p, "disable", self.disable);
        put(&mut p, "comment", self.comment);
        p
    }
}

const HISTORY: [Column; 5] = [
    ("TIME", "at", Kind::Time),
    ("STATE", "state", Kind::Text),
    ("NODE", "node", Kind::Text),
    ("TARGET", "target", Kind::Text),
    ("WHY", "reason", Kind::Text),
];

/// How a resource is kept.
#[derive(Debug, Args)]
pub struct Keeping {
    /// The state to keep it in: started, stopped, disabled, ignored
    #[arg(long)]
    pub state: Option<String>,
    /// Starts on the same node after a failure, before it is moved
    #[arg(long, value_name = "N")]
    pub max_restart: Option<u32>,
    /// Moves to other nodes, before it is given up
    #[arg(long, value_name = "N")]
    pub max_relocate: Option<u32>,
    /// A comment
    #[arg(long)]
    pub comment: Option<String>,
    /// Further settings
    #[arg(value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

impl Keeping {
    fn params(self) -> Result<Params, Failure> {
        let mut p = Params::new();
        put(&mut p, "state", self.state);
        put(&mut p, "max_restart", self.max_restart);
        put(&mut p, "max_relocate", self.max_relocate);
        put(&mut p, "comment", self.comment);
        p.extend(settings(&self.settings)?);
        Ok(p)
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the guests under HA
    List,
    /// Show what HA sees and does
    Status,
    /// Show what would happen if nodes were lost now: who goes where, who stays down and why
    #[command(
        name = "what-if",
        after_help = "Nothing is changed: the manager's own code decides on a copy of what it sees. Without a node it says whether the \
                      cluster survives the loss of any one.\n\n\
                      Examples:\n  stead ha what-if --node pve2\n  stead ha what-if --node pve2 --node pve3"
    )]
    WhatIf {
        /// A node that is lost; more than one: all at once
        #[arg(long = "node", value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Put a guest under HA: it is kept in its state, and recovered when its node is lost
    #[command(after_help = "Examples:\n  stead ha add 100\n  stead ha add vm:100 --max-restart 3")]
    Add {
        /// The guest: VMID or vm:VMID
        resource: String,
        #[command(flatten)]
        keeping: Keeping,
    },
    /// Change how a guest is kept
    #[command(after_help = "Example:\n  stead ha set 100 --state stopped")]
    Set {
        /// The guest: VMID or vm:VMID
        resource: String,
        #[command(flatten)]
        keeping: Keeping,
    },
    /// Ask HA to move a guest to another node; it keeps running
    #[command(after_help = "Example:\n  stead ha migrate 100 pve2")]
    Migrate {
        /// The guest: VMID or vm:VMID
        resource: String,
        /// The node
        target: String,
    },
    /// Ask HA to stop a guest and start it on another node
    #[command(after_help = "Example:\n  stead ha relocate 100 pve2")]
    Relocate {
        /// The guest: VMID or vm:VMID
        resource: String,
        /// The node
        target: String,
    },
    /// Where guests may be: on which nodes, together or apart
    #[command(subcommand)]
    Rule(Rule),
    /// Show the fence profile (how soon a silent node is given up), or change it on the live cluster
    #[command(
        after_help = "fast: a quiet local network, 3 s. default: 7 s. wan: links of 50 ms and more, 30 s.\n\n\
                            Examples:\n  stead ha profile\n  stead ha profile wan"
    )]
    Profile {
        /// The new one
        #[arg(value_parser = ["fast", "default", "wan"])]
        name: Option<String>,
    },
    /// Stop a guest: its plug is pulled when it has not shut down in time
    #[command(after_help = "Example:\n  stead ha stop 100 --timeout 120")]
    Stop {
        /// The guest: VMID or vm:VMID
        resource: String,
        /// Seconds; 0 pulls the plug at once
        #[arg(long, default_value_t = 60)]
        timeout: u32,
    },
    /// Show what became of a guest, and why
    History {
        /// The guest: VMID or vm:VMID
        resource: String,
    },
    /// Empty a node for maintenance, or end that: its guests come back
    #[command(
        after_help = "Examples:\n  stead ha maintenance enable pve2\n  stead ha maintenance disable pve2"
    )]
    Maintenance {
        /// enable or disable
        #[arg(value_parser = ["enable", "disable"])]
        how: String,
        /// The node
        node: String,
    },
    /// Stop HA from acting, on the whole cluster
    Disarm {
        /// freeze: guests stay as they are; ignore: they can be handled by hand
        #[arg(value_parser = ["freeze", "ignore"])]
        mode: String,
    },
    /// Let HA act again
    Arm,
    /// Take a guest out of HA; it goes on running
    Remove {
        /// The guest: VMID or vm:VMID
        resource: String,
    },
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => list(cx).await,
        Command::Status => status(cx).await,
        Command::WhatIf { nodes } => what_if(cx, &nodes).await,
        Command::Add { resource, keeping } => add(cx, &resource, keeping.params()?).await,
        Command::Set { resource, keeping } => set(cx, &resource, &keeping.params()?).await,
        Command::Migrate { resource, target } => shift(cx, "migrate", &resource, &target).await,
        Command::Relocate { resource, target } => shift(cx, "relocate", &resource, &target).await,
        Command::Rule(rule) => rules(cx, rule).await,
        Command::Profile { name: None } => {
            cx.format().list(&serde_json::json!([cx.api.get(PROFILE_PATH).await?]), &PROFILE)
        }
        Command::Profile { name: Some(name) } => change_profile(cx, name).await,
        Command::Stop { resource, timeout } => stop(cx, &resource, &timeout.to_string()).await,
        Command::History { resource } => {
            let answer = cx.api.get(&format!("{}/history", path(&resource))).await?;
            cx.format().list(&answer, &HISTORY)
        }
        Command::Maintenance { how, node } => maintenance(cx, &how, &node).await,
        Command::Disarm { mode } => disarm(cx, &mode).await,
        Command::Arm => arm(cx).await,
        Command::Remove { resource } => remove(cx, &resource, &vec![]).await,
    }
}

/// `100` means `vm:100`.
fn sid(resource: &str) -> String {
    if resource.parse::<u32>().is_ok() { format!("vm:{resource}") } else { resource.to_owned() }
}

fn path(resource: &str) -> String {
    format!("/cluster/ha/resources/{}", escape(&sid(resource)))
}

/// The resources.
pub async fn list(cx: &Cx) -> Result<(), Failure> {
    cx.format().list(&cx.api.get("/cluster/ha/resources").await?, &RESOURCES)
}

/// What HA sees.
pub async fn status(cx: &Cx) -> Result<(), Failure> {
    let current = cx.api.get("/cluster/ha/status/current").await?;
    cx.format().list(&current, &STATUS)?;
    match rows(&current).iter().find_map(|r| r["outlook"].as_str()) {
        Some(outlook) if cx.format() == Format::Table => print(&format!("\n{outlook}")),
        _ => Ok(()),
    }
}

/// What the loss of these nodes would mean.
async fn what_if(cx: &Cx, nodes: &[String]) -> Result<(), Failure> {
    let query: String = nodes.iter().map(|n| format!("nodes={}", escape(n))).collect::<Vec<_>>().join("&");
    let path = "/cluster/ha/what-if";
    let answer = cx.api.get(&if query.is_empty() { path.into() } else { format!("{path}?{query}") }).await?;
    if cx.format() != Format::Table {
        return cx.format().any(&answer);
    }
    print(&what_if_text(&answer))
}

/// The answer, for people.
fn what_if_text(answer: &Value) -> String {
    let mut parts = vec![];
    if let Some(loss) = answer.get("loss") {
        let guests: Vec<Value> = rows(&loss["guests"]).iter().map(guest_row).collect();
        parts.push(match guests.is_empty() {
            true => "no guest is concerned".to_owned(),
            false => table(&guests, &FATES),
        });
        parts.push(table(rows(&loss["nodes"]), &ROOM));
        let rules = rows(&loss["rules"]);
        if !rules.is_empty() {
            parts.push(table(rules, &BROKEN));
        }
        let lost = rows(&loss["lost"]).iter().map(text).collect::<Vec<_>>().join(", ");
        parts.push(match (truth(&loss["quorate"]), truth(&loss["survives"])) {
            (false, _) => {
                format!("without {lost} no majority is left: nothing is recovered until one is back")
            }
            (true, true) => format!("without {lost} all that HA keeps running runs again"),
            (true, false) => format!("without {lost} not all that HA keeps running runs again"),
        });
    }
    parts.push(match answer["any-one"]["text"].as_str() {
        Some(text) => text.to_owned(),
        None => "whether this cluster survives the loss of any one node is not known yet".to_owned(),
    });
    parts.join("\n\n")
}

/// A guest with the words that people look for.
fn guest_row(guest: &Value) -> Value {
    let mut row = guest.clone();
    row["then"] = match (guest["fate"].as_str(), guest["to"].as_str()) {
        (Some("runs"), Some(to)) => to.into(),
        (Some("stopped"), Some(to)) => format!("{to} (stopped)").into(),
        (Some("paused"), _) => "paused".into(),
        _ if truth(&guest["wanted"]) => "down".into(),
        _ => "stays (stopped)".into(),
    };
    row
}

/// A line each, as `ha-manager status` shows them.
pub fn status_lines(current: &Value) -> String {
    let line = |r: &Value| {
        let id = match text(&r["sid"]) {
            sid if sid.is_empty() => text(&r["id"]),
            sid => sid,
        };
        match r["type"].as_str() {
            Some("quorum") => format!("quorum {}", text(&r["status"])),
            Some("service") => format!("service {id} ({}, {})", text(&r["node"]), text(&r["state"])),
            Some(kind @ ("master" | "lrm")) => format!("{kind} {}", text(&r["status"])),
            other => format!("{} {}", other.unwrap_or_default(), text(&r["status"])),
        }
    };
    rows(current).iter().map(line).collect::<Vec<_>>().join("\n")
}

async fn rules(cx: &Cx, rule: Rule) -> Result<(), Failure> {
    let path = |name: &str| format!("{RULES_PATH}/{}", escape(name));
    match rule {
        Rule::List => {
            let rules = cx.api.get(RULES_PATH).await?;
            cx.format().list(&rules, &RULES)?;
            for conflict in rows(&rules).iter().filter_map(|r| r["errors"]["resources"].as_array()).flatten()
            {
                eprintln!("left out: {}", text(conflict));
            }
            Ok(())
        }
        Rule::Add { kind, name, options } => {
            let mut p = options.params(kind);
            put(&mut p, "rule", Some(&name));
            cx.format().done(&cx.api.post(RULES_PATH, &p).await?, &format!("rule '{name}' made"))
        }
        Rule::Set { kind, name, options } => {
            let answer = cx.api.put(&path(&name), &options.params(kind)).await?;
            cx.format().done(&answer, &format!("rule '{name}' changed"))
        }
        Rule::Remove { name } => {
            let answer = cx.api.delete(&path(&name), &Params::new()).await?;
            cx.format().done(&answer, &format!("rule '{name}' removed"))
        }
    }
}

/// Changes the fence profile.
async fn change_profile(cx: &Cx, name: String) -> Result<(), Failure> {
    let mut p = Params::new();
    let done = format!("the fence profile is '{name}'");
    put(&mut p, "profile", Some(name));
    let answer = cx.api.put(PROFILE_PATH, &p).await?;
    cx.format().done(&answer, &done)
}

/// Puts a guest under HA.
pub async fn add(cx: &Cx, resource: &str, mut p: Params) -> Result<(), Failure> {
    put(&mut p, "sid", Some(sid(resource)));
    let answer = cx.api.post("/cluster/ha/resources", &p).await?;
    cx.format().done(&answer, &format!("{} is under HA", sid(resource)))
}

/// Changes how a guest is kept.
pub async fn set(cx: &Cx, resource: &str, p: &Params) -> Result<(), Failure> {
    let answer = cx.api.put(&path(resource), p).await?;
    cx.format().done(&answer, &format!("{} changed", sid(resource)))
}

/// Takes a guest out of HA.
pub async fn remove(cx: &Cx, resource: &str, p: &Params) -> Result<(), Failure> {
    let answer = cx.api.delete(&path(resource), p).await?;
    cx.format().done(&answer, &format!("{} is no longer under HA", sid(resource)))
}

/// Asks HA to stop a guest within so many seconds.
pub async fn stop(cx: &Cx, resource: &str, timeout: &str) -> Result<(), Failure> {
    let mut p = Params::new();
    put(&mut p, "timeout", Some(timeout));
    let answer = cx.api.post(&format!("{}/stop", path(resource)), &p).await?;
    cx.format().done(&answer, &format!("the stop of {} was asked for", sid(resource)))
}

/// Begins or ends the maintenance of a node: `enable`, `disable`.
pub async fn maintenance(cx: &Cx, how: &str, node: &str) -> Result<(), Failure> {
    let on = match how {
        "enable" => "1",
        "disable" => "0",
        other => return Err(Failure::usage(format!("'{other}' is neither enable nor disable"))),
    };
    let mut p = Params::new();
    put(&mut p, "enable", Some(on));
    let answer = cx.api.put(&format!("/cluster/ha/status/maintenance/{}", escape(node)), &p).await?;
    cx.format().done(&answer, &format!("to {how} maintenance of '{node}' was asked for"))
}

/// Disarms HA.
pub async fn disarm(cx: &Cx, mode: &str) -> Result<(), Failure> {
    let mut p = Params::new();
    put(&mut p, "resource-mode", Some(mode));
    let answer = cx.api.post("/cluster/ha/status/disarm-ha", &p).await?;
    cx.format().done(&answer, "to disarm HA was asked for")
}

/// Arms HA again.
pub async fn arm(cx: &Cx) -> Result<(), Failure> {
    let answer = cx.api.post("/cluster/ha/status/arm-ha", &Params::new()).await?;
    cx.format().done(&answer, "to arm HA was asked for")
}

/// Asks HA to move a guest: `migrate` while it runs, `relocate` by stop and start.
pub async fn shift(cx: &Cx, how: &str, resource: &str, node: &str) -> Result<(), Failure> {
    let mut p = Params::new();
    put(&mut p, "node", Some(node));
    let answer = cx.api.post(&format!("{}/{how}", path(resource)), &p).await?;
    let blocking: Vec<String> = rows(&answer["blocking-resources"])
        .iter()
        .map(|b| format!("{} ({})", text(&b["sid"]), text(&b["cause"])))
        .collect();
    if !blocking.is_empty() {
        let why = format!("{} cannot go to '{node}' by the rules: {}", sid(resource), blocking.join(", "));
        return Err(Failure::failed(why));
    }
    let with: Vec<String> = rows(&answer["comigrated-resources"]).iter().map(text).collect();
    let with = if with.is_empty() { String::new() } else { format!(", together with {}", with.join(", ")) };
    cx.format().done(&answer, &format!("{how} of {} to '{node}'{with} was asked for", sid(resource)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_number_is_a_vm() {
        assert_eq!(path("100"), "/cluster/ha/resources/vm%3A100");
        assert_eq!(path("ct:101"), "/cluster/ha/resources/ct%3A101");
    }

    #[test]
    fn what_would_happen_reads_as_tables_with_a_line_at_the_end() {
        let loss = json!({
            "lost": ["pve2"], "survives": 0, "quorate": 1,
            "guests": [
                {"sid": "vm:100", "from": "pve2", "to": "pve1", "fate": "runs", "ha": 1, "wanted": 1, "reason": "room"},
                {"sid": "vm:101", "from": "pve2", "fate": "down", "ha": 1, "wanted": 1, "reason": "no node"},
                {"sid": "vm:102", "from": "pve2", "to": "pve1", "fate": "stopped", "ha": 1, "wanted": 0, "reason": "room"},
                {"sid": "vm:103", "from": "pve2", "fate": "down", "ha": 0, "wanted": 0, "reason": "it is not under HA"},
            ],
            "nodes": [
                {"node": "pve1", "total": 4294967296_u64, "used": 1073741824_u64, "after": 2147483648_u64,
                 "left": 2147483648_u64},
                {"node": "pve2", "total": 4294967296_u64, "used": 1073741824_u64},
            ],
            "rules": [{"rule": "rather", "reason": "vm:100 on 'pve1'"}],
        });
        let answer = json!({"loss": loss, "any-one": {"text": "this cluster survives the loss of any one node: no, because x"}});
        let shown = what_if_text(&answer);
        let lines: Vec<String> =
            shown.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "GUEST FROM THEN HA WHY",
                "vm:100 pve2 pve1 yes room",
                "vm:101 pve2 down yes no node",
                "vm:102 pve2 pve1 (stopped) yes room",
                "vm:103 pve2 stays (stopped) no it is not under HA",
                "",
                "NODE MEMORY USED NOW USED THEN LEFT THEN",
                "pve1 4 GiB 1 GiB 2 GiB 2 GiB",
                "pve2 4 GiB 1 GiB - -",
                "",
                "RULE NOT KEPT BECAUSE OF",
                "rather vm:100 on 'pve1'",
                "",
                "without pve2 not all that HA keeps running runs again",
                "",
                "this cluster survives the loss of any one node: no, because x",
            ]
        );
        assert_eq!(
            what_if_text(&json!({})),
            "whether this cluster survives the loss of any one node is not known yet"
        );
    }

    #[test]
    fn the_status_reads_as_ha_managers() {
        let current = json!([
            {"type": "quorum", "id": "quorum", "node": "pve1", "status": "OK"},
            {"type": "master", "id": "master", "node": "pve1", "status": "pve1 (active, Sat Nov 21 04:05:06 2026)"},
            {"type": "service", "id": "service:vm:100", "sid": "vm:100", "node": "pve2", "state": "started"},
        ]);
        assert_eq!(
            status_lines(&current),
            "quorum OK\nmaster pve1 (active, Sat Nov 21 04:05:06 2026)\nservice vm:100 (pve2, started)"
        );
    }
}
