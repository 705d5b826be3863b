//! `stead fence`.

use super::Cx;
use crate::connect::ask_password;
use crate::failure::Failure;
use crate::output::{Column, Format, Kind};
use crate::params::{Params, escape, put};
use clap::{Args, Subcommand};
use std::io::BufRead;

const DEVICES_PATH: &str = "/cluster/ha/fence/devices";
const DEVICES: [Column; 6] = [
    ("DEVICE", "device", Kind::Text),
    ("AGENT", "agent", Kind::Text),
    ("DELAY", "delay", Kind::Text),
    ("OPTIONS", "options", Kind::Text),
    ("POWERS", "powers", Kind::Text),
    ("SECRETS", "kept", Kind::Text),
];
const TESTS: [Column; 5] = [
    ("DEVICE", "device", Kind::Text),
    ("AGENT", "agent", Kind::Text),
    ("POWER", "power", Kind::Text),
    ("SECONDS", "took", Kind::Number),
    ("ERROR", "error", Kind::Text),
];

/// What is said of a device.
#[derive(Debug, Args)]
pub struct Device {
    /// The agent's options; together they take the place of all that there are
    #[arg(value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// A node that it powers, with no options of its own
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// A node that it powers, with options: 'node=pve2 plug=3'. All of --node and --connect take the place of what there is
    #[arg(long = "connect", value_name = "WORDS")]
    connect: Vec<String>,
    /// For how many seconds longer than its lease a node must be silent (default: one heartbeat)
    #[arg(long, value_name = "SECONDS")]
    delay: Option<String>,
    /// A secret option, like password: asked for, or a line each from standard input where that is no terminal
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the fence devices; their secrets are not shown
    List,
    /// Make a fence device: nodes that it powers are powered off when they are lost, which takes the place of the wait
    #[command(
        after_help = "The agents are those of the package fence-agents, which every node needs: see 'man fence_redfish'.\n\n\
                            Examples:\n  \
                            stead fence add bmc2 fence_redfish ip=192.0.2.12 username=stead ssl_insecure=1 --secret password --node pve2\n  \
                            stead fence add pdu1 fence_apc_snmp ip=192.0.2.9 --connect 'node=pve1 plug=3' --connect 'node=pve2 plug=4'"
    )]
    Add {
        /// Its name
        name: String,
        /// The agent
        agent: String,
        #[command(flatten)]
        device: Device,
    },
    /// Change a fence device
    #[command(
        after_help = "Examples:\n  stead fence set bmc2 --delay 2\n  stead fence set bmc2 --secret password"
    )]
    Set {
        /// Its name
        name: String,
        /// Another agent
        #[arg(long)]
        agent: Option<String>,
        /// What to take out: delay, or the name of a secret
        #[arg(long, value_name = "NAME")]
        delete: Vec<String>,
        #[command(flatten)]
        device: Device,
    },
    /// Remove a fence device, with its secrets
    Remove {
        /// Its name
        name: String,
    },
    /// Ask every fence device of a node whether the power is on; nothing is turned off
    Test {
        /// The node
        node: String,
    },
}

impl Device {
    fn params(self) -> Result<Params, Failure> {
        let mut p = Params::new();
        put(&mut p, "delay", self.delay);
        let words = |all: &[String]| all.iter().map(|o| pair(o)).collect::<Result<Vec<_>, _>>();
        if !self.options.is_empty() {
            put(&mut p, "options", Some(words(&self.options)?.join(" ")));
        }
        let mut connect: Vec<String> = self.nodes.iter().map(|node| format!("node={node}")).collect();
        connect.extend(self.connect);
        if !connect.is_empty() {
            put(&mut p, "connect", Some(connect.join("\n")));
        }
        let mut secrets = vec![];
        for name in self.secrets {
            let value = secret(&name)?;
            secrets.push(format!("{name}={}", quoted(&value)));
        }
        if !secrets.is_empty() {
            put(&mut p, "secrets", Some(secrets.join(" ")));
        }
        Ok(p)
    }
}

/// `key=value`, as it stands in the file.
fn pair(word: &str) -> Result<String, Failure> {
    match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(format!("{key}={}", quoted(value))),
        _ => Err(Failure::usage(format!("'{word}' is not of the form KEY=VALUE"))),
    }
}

/// As a word of the configuration's text.
fn quoted(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !matches!(c, '"' | '\\');
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Never from the command line, where every user of the machine could read it.
fn secret(name: &str) -> Result<String, Failure> {
    if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        return ask_password(&format!("{name}: "), "give it on standard input");
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    match line.trim_end_matches(['\r', '\n']) {
        "" => Err(Failure::usage(format!("standard input has no line for the secret '{name}'"))),
        value => Ok(value.to_owned()),
    }
}

fn path(name: &str) -> String {
    format!("{DEVICES_PATH}/{}", escape(name))
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => list(cx).await,
        Command::Add { name, agent, device } => {
            let mut p = device.params()?;
            put(&mut p, "device", Some(&name));
            put(&mut p, "agent", Some(agent));
            cx.format().done(&cx.api.post(DEVICES_PATH, &p).await?, &format!("fence device '{name}' made"))
        }
        Command::Set { name, agent, delete, device } => {
            let mut p = device.params()?;
            put(&mut p, "agent", agent);
            if !delete.is_empty() {
                put(&mut p, "delete", Some(delete.join(",")));
            }
            cx.format().done(&cx.api.put(&path(&name), &p).await?, &format!("fence device '{name}' changed"))
        }
        Command::Remove { name } => {
            let answer = cx.api.delete(&path(&name), &Params::new()).await?;
            cx.format().done(&answer, &format!("fence device '{name}' removed"))
        }
        Command::Test { node } => test(cx, &node).await,
    }
}

async fn list(cx: &Cx) -> Result<(), Failure> {
    let mut devices = cx.api.get(DEVICES_PATH).await?;
    if cx.format() == Format::Table {
        for row in devices.as_array_mut().into_iter().flatten() {
            let joined = |value: &serde_json::Value, by: &str| {
                let parts = value.as_array().into_iter().flatten().filter_map(|v| v.as_str());
                parts.collect::<Vec<_>>().join(by)
            };
            row["powers"] = joined(&row["connect"], "; ").into();
            row["kept"] = joined(&row["secrets"], ", ").into();
        }
    }
    cx.format().list(&devices, &DEVICES)
}

/// Fails where a device did not say that the power is on: this node runs, or is known to be off.
async fn test(cx: &Cx, node: &str) -> Result<(), Failure> {
    let said = cx.api.get(&format!("/cluster/ha/fence/nodes/{}", escape(node))).await?;
    cx.format().list(&said, &TESTS)?;
    let silent = said.as_array().into_iter().flatten().filter(|row| row["power"].is_null()).count();
    match silent {
        0 => Ok(()),
        n => {
            Err(Failure::failed(format!("{n} fence devices of '{node}' did not say whether the power is on")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_words_and_connections_lines() {
        let device = Device {
            options: vec!["ip=192.0.2.1".into(), "note=two words".into()],
            nodes: vec!["pve1".into()],
            connect: vec!["node=pve2 plug=3".into()],
            delay: Some("1.5".into()),
            secrets: vec![],
        };
        let p = device.params().unwrap();
        let of = |name: &str| p.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(of("options"), Some("ip=192.0.2.1 note=\"two words\""));
        assert_eq!(of("connect"), Some("node=pve1\nnode=pve2 plug=3"));
        assert_eq!((of("delay"), of("secrets")), (Some("1.5"), None));
        assert!(pair("password").is_err());
    }
}
