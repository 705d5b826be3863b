//! What happened, in the words that scenarios are judged by.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is its word in `Kind::as_str`")]
pub enum Kind {
    InPowerOn,
    InPowerOff,
    InNetOff,
    InNetOn,
    InShutdown,
    InReboot,
    InCommand,
    Start,
    Stop,
    StartFail,
    StopFail,
    Lost,
    Pause,
    Thaw,
    Died,
    Destroyed,
    Refused,
    State,
    Migrate,
    Relocate,
    MoveFail,
    Recover,
    NoRecover,
    Error,
    Unmanaged,
    FenceRequest,
    FenceOk,
    SelfFence,
    Off,
    NodeState,
    Disarmed,
    Armed,
}

impl Kind {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InPowerOn => "in.power_on",
            Self::InPowerOff => "in.power_off",
            Self::InNetOff => "in.net_off",
            Self::InNetOn => "in.net_on",
            Self::InShutdown => "in.shutdown",
            Self::InReboot => "in.reboot",
            Self::InCommand => "in.cmd",
            Self::Start => "svc.start",
            Self::Stop => "svc.stop",
            Self::StartFail => "svc.start_fail",
            Self::StopFail => "svc.stop_fail",
            Self::Lost => "svc.lost",
            Self::Pause => "svc.pause",
            Self::Thaw => "svc.thaw",
            Self::Died => "svc.died",
            Self::Destroyed => "svc.destroyed",
            Self::Refused => "ha.refused",
            Self::State => "svc.state",
            Self::Migrate => "svc.migrate",
            Self::Relocate => "svc.relocate",
            Self::MoveFail => "svc.move_fail",
            Self::Recover => "svc.recover",
            Self::NoRecover => "svc.norecover",
            Self::Error => "svc.error",
            Self::Unmanaged => "svc.unmanaged",
            Self::FenceRequest => "node.fence_req",
            Self::FenceOk => "node.fence_ok",
            Self::SelfFence => "node.selffence",
            Self::Off => "node.off",
            Self::NodeState => "node.state",
            Self::Disarmed => "ha.disarmed",
            Self::Armed => "ha.armed",
        }
    }
}

impl Kind {
    /// Whether it is no word of the scenarios' common format, but one of ours.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Pause | Self::Thaw | Self::Died | Self::Destroyed | Self::Refused | Self::State)
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// Time since the beginning.
    pub at: Duration,
    /// What.
    pub kind: Kind,
    /// To which service, by the scenario's name.
    pub service: Option<String>,
    /// On which node; of a move, its target.
    pub node: Option<String>,
    /// What else is to be said: a move's source, a state, a command's words.
    pub extra: Option<String>,
}

/// A service at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEnd {
    /// Where its configuration is; none when HA does not know it any more.
    pub node: Option<String>,
    /// What its user wants.
    pub want: Option<String>,
    /// The manager's state.
    pub state: Option<String>,
    /// Where its CPUs execute.
    pub running_on: Option<String>,
    /// Why it is in its state, by the manager's word.
    pub reason: Option<String>,
}

/// A node at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEnd {
    /// Has power.
    pub power: bool,
    /// Its network is plugged in.
    pub network: bool,
    /// The manager's word.
    pub state: Option<String>,
}

/// What came of a scenario.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Story {
    /// What happened, in order.
    pub events: Vec<Happening>,
    /// Services at the end.
    pub services: BTreeMap<String, ServiceEnd>,
    /// Nodes at the end.
    pub nodes: BTreeMap<String, NodeEnd>,
    /// Rules that the manager has left out, and why.
    pub rules: BTreeMap<String, String>,
    /// The first safety invariant that was broken, when, and how. There must be none.
    pub broken: Option<String>,
}

impl Story {
    /// Starts of a service while an old copy of it may still run, by what the machines have told. There must be none.
    pub fn unsafe_starts(&self) -> Vec<String> {
        let mut running: BTreeMap<&str, &str> = BTreeMap::new();
        let mut found = vec![];
        for e in &self.events {
            let (Some(sid), node) = (e.service.as_deref(), e.node.as_deref().unwrap_or_default()) else {
                continue;
            };
            match e.kind {
                Kind::Start => {
                    if let Some(other) = running.insert(sid, node).filter(|n| *n != node) {
                        found.push(format!("at {:?} {sid} starts on {node} and may run on {other}", e.at));
                    }
                }
                Kind::Stop | Kind::Died | Kind::Lost | Kind::Migrate | Kind::Relocate => {
                    running.remove(sid);
                }
                Kind::InCommand if e.extra.as_deref().is_some_and(|x| x.starts_with("manual-migrate")) => {
                    running.remove(sid);
                }
                _ => {}
            }
        }
        found
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

impl Story {
    /// As `stead sim run` prints it: times in seconds, to the millisecond.
    pub fn to_json(&self) -> Value {
        let t = |at: Duration| (at.as_secs_f64() * 1000.0).round() / 1000.0;
        let event = |e: &Happening| json!({"t": t(e.at), "kind": e.kind.as_str(), "service": e.service, "node": e.node, "extra": e.extra});
        let service = |s: &ServiceEnd| json!({"node": s.node, "want": s.want, "state": s.state, "running_on": s.running_on, "reason": s.reason});
        let node =
            |n: &NodeEnd| json!({"power": on_off(n.power), "network": on_off(n.network), "state": n.state});
        json!({
            "events": self.events.iter().filter(|e| !e.kind.is_own()).map(event).collect::<Vec<_>>(),
            "final": {
                "services": self.services.iter().map(|(k, s)| (k.clone(), service(s))).collect::<BTreeMap<_, _>>(),
                "nodes": self.nodes.iter().map(|(k, n)| (k.clone(), node(n))).collect::<BTreeMap<_, _>>(),
            },
            "broken": self.broken,
        })
    }

    /// As it is recorded beside a scenario: a line for each event, then how it ended and why.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for e in &self.events {
            let words = [e.service.as_deref(), e.node.as_deref(), e.extra.as_deref()];
            let words: Vec<&str> = words.into_iter().flatten().collect();
            let line = format!("{:7.1} {:<15} {}", e.at.as_secs_f64(), e.kind.as_str(), words.join(" "));
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out.push('\n');
        for (sid, s) in &self.services {
            let say = |o: &Option<String>| o.clone().unwrap_or_else(|| "-".to_owned());
            let reason = s.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
            let line = format!(
                "{sid} on {}, wanted {}, {}, runs on {}{reason}\n",
                say(&s.node),
                say(&s.want),
                say(&s.state),
                say(&s.running_on)
            );
            out.push_str(&line);
        }
        for (name, n) in &self.nodes {
            let state = n.state.as_deref().unwrap_or("-");
            out.push_str(&format!(
                "{name} power {}, network {}, {state}\n",
                on_off(n.power),
                on_off(n.network)
            ));
        }
        for (id, why) in &self.rules {
            out.push_str(&format!("rule {id} left out: {why}\n"));
        }
        if let Some(why) = &self.broken {
            out.push_str(&format!("BROKEN {why}\n"));
        }
        out
    }
}
