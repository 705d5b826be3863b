//! `stead node`.

use super::Cx;
use super::vm::confirm;
use crate::failure::Failure;
use crate::output::{Column, Format, Kind};
use crate::params::{Params, escape, put};
use clap::Subcommand;
use serde_json::Value;

pub const COLUMNS: [Column; 8] = [
    ("NODE", "node", Kind::Text),
    ("STATUS", "status", Kind::Text),
    ("CPU", "cpu", Kind::Share),
    ("CPUS", "maxcpu", Kind::Number),
    ("MEMORY", "mem", Kind::Bytes),
    ("OF", "maxmem", Kind::Bytes),
    ("UPTIME", "uptime", Kind::Seconds),
    ("FINGERPRINT", "ssl_fingerprint", Kind::Text),
];

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the nodes of the cluster
    List,
    /// Show a node: load, memory, versions
    Show {
        /// Its name (default: the node that is spoken to)
        node: Option<String>,
    },
    /// Say that a lost node is off, so that its guests can run elsewhere
    #[command(
        after_help = "The cluster can't see whether a node that it has lost still runs guests that HA does not guard. Look at the \
                      node itself: its power must be off. Then guests under HA are recovered, and the others get another \
                      node, stopped. Guests whose disks no other node has stay where they are."
    )]
    ConfirmOff {
        /// The node that is off
        node: String,
        /// Where guests go that HA does not recover (default: the node with the fewest guests)
        #[arg(long, value_name = "NODE")]
        target: Option<String>,
        /// Don't ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => cx.format().list(&cx.api.get("/nodes").await?, &COLUMNS),
        Command::Show { node } => {
            let node = match node {
                Some(node) => node,
                None => cx.api.local_node().await?,
            };
            let mut status = cx.api.get(&format!("/nodes/{}/status", escape(&node))).await?;
            if cx.format() == Format::Table {
                flatten(&mut status);
            }
            cx.format().object(&status)
        }
        Command::ConfirmOff { node, target, yes } => {
            if !yes {
                confirm(&format!(
                    "If node '{node}' still runs, its guests will run twice and destroy their disks. I have made sure that its \
                     power is off"
                ))?;
            }
            let mut p = Params::new();
            put(&mut p, "target", target);
            let path = format!("/cluster/config/nodes/{}/confirm-off", escape(&node));
            let answer = cx.api.post(&path, &p).await?;
            cx.answer(&answer, &format!("node '{node}' counts as off")).await
        }
    }
}

/// Objects inside an object become keys with a dot, as `memory.used`.
pub fn flatten(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    let mut flat = serde_json::Map::new();
    for (key, inner) in std::mem::take(fields) {
        match inner {
            Value::Object(inner) => flat.extend(inner.into_iter().map(|(k, v)| (format!("{key}.{k}"), v))),
            other => {
                flat.insert(key, other);
            }
        }
    }
    *fields = flat;
}
