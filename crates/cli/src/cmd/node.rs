//! `stead node`.

use super::Cx;
use crate::failure::Failure;
use crate::output::{Column, Format, Kind};
use crate::params::escape;
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
