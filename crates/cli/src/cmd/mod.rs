//! The verbs of `stead`: each parses, calls the API, shows the answer.

pub mod agent;
pub mod clone;
pub mod cloudinit;
pub mod cluster;
pub mod conf;
pub mod events;
pub mod fence;
pub mod ha;
pub mod mapping;
pub mod node;
pub mod raw;
pub mod sim;
pub mod snapshot;
pub mod storage;
pub mod tasks;
pub mod token;
pub mod vm;
pub mod witness;

use crate::api::{Api, rows, text, truth};
use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::output::{self, Column, Format, Kind};
use crate::task::Follow;
use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use serde_json::{Value, json};
use std::ffi::OsString;
use stead_testbed::demo::{Out, Play};

/// A connection and how to show what comes of it.
#[derive(Debug)]
pub struct Cx {
    /// Signed in.
    pub api: Api,
    /// How to treat tasks, and with it how to show results.
    pub follow: Follow,
}

impl Cx {
    /// How to show results.
    pub fn format(&self) -> Format {
        self.follow.format
    }

    /// Shows an answer; a task is followed to its end.
    pub async fn answer(&self, answer: &Value, said: &str) -> Result<(), Failure> {
        self.follow.answer(&self.api, answer, said).await
    }
}

/// Parses and does it.
pub async fn run(args: Vec<OsString>) -> Result<(), Failure> {
    let mut cli = Cli::try_parse_from(args)
        .map_err(|e| Failure::Told { text: e.render().to_string(), good: !e.use_stderr() })?;
    match cli.command {
        Command::Completion { shell } => return completion(shell),
        Command::Sim(command) => return sim::run(command, cli.options.output).await,
        Command::Witness(ref args) => return witness::run(args, cli.options.connection.dir.as_deref()),
        Command::Conf(ref command) => {
            if let Some(done) = conf::by_store(command, &cli.options.connection) {
                return done;
            }
        }
        Command::Demo => return demo(Play::Show).await,
        Command::DemoFailover => return demo(Play::Failover).await,
        _ => {}
    }
    if let Command::Cluster(cluster::Command::Join(join)) = &mut cli.command {
        join.idle_password = cli.options.connection.has_idle_password();
    }
    let follow = cli.options.follow();
    let api = match (cli.options.connection.open().await, &cli.command) {
        (Ok(api), _) => api,
        // This program's own version is known without any daemon.
        (Err(e), Command::Version) => return version(None, follow.format, Some(e)),
        (Err(e), _) => return Err(e),
    };
    let cx = Cx { api, follow };
    match cli.command {
        Command::Version => match cx.api.get("/version").await {
            Ok(v) => version(Some(v), follow.format, None),
            Err(e) => version(None, follow.format, Some(e)),
        },
        Command::Status => status(&cx).await,
        Command::Node(c) => node::run(&cx, c).await,
        Command::Vm(c) => vm::run(&cx, c).await,
        Command::Storage(c) => storage::run(&cx, c).await,
        Command::Task(c) => tasks::run(&cx, c).await,
        Command::Ha(c) => ha::run(&cx, c).await,
        Command::Fence(c) => fence::run(&cx, c).await,
        Command::Mapping(c) => mapping::run(&cx, c).await,
        Command::Cluster(c) => cluster::run(&cx, c).await,
        Command::Token(c) => token::run(&cx, c).await,
        Command::Api(a) => raw::api(&cx, a).await,
        Command::Events(a) => events::follow(&cx, a).await,
        Command::History(a) => raw::history(&cx, a).await,
        Command::Conf(c) => conf::run(&cx, c).await,
        Command::Completion { .. }
        | Command::Sim(_)
        | Command::Witness(_)
        | Command::Demo
        | Command::DemoFailover => Ok(()),
    }
}

fn completion(shell: Shell) -> Result<(), Failure> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "stead", &mut script);
    output::print(String::from_utf8_lossy(&script).trim_end())
}

async fn demo(play: Play) -> Result<(), Failure> {
    stead_testbed::demo::run(play, Out::Stdout).await.map_err(|e| Failure::failed(format!("{e:#}")))
}

fn version(daemon: Option<Value>, format: Format, problem: Option<Failure>) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    if format == Format::Json {
        return output::json(&json!({ "client": own, "server": daemon }));
    }
    output::print(&format!("stead {own}"))?;
    match (daemon, problem) {
        (Some(v), _) => {
            let daemon = ["stead", "stead-version"].iter().find_map(|k| v.get(*k)).map(text);
            let api = format!("API as of Proxmox VE {}", text(&v["version"]));
            output::print(&daemon.map_or(api.clone(), |d| format!("steadd {d}, {api}")))
        }
        (None, Some(problem)) => Err(problem),
        (None, None) => Ok(()),
    }
}

/// `stead status`: a page about everything.
async fn status(cx: &Cx) -> Result<(), Failure> {
    let cluster = cx.api.get("/cluster/status").await?;
    let resources = cx.api.get("/cluster/resources").await?;
    let device = cx.api.get("/cluster/config/qdevice").await?;
    if cx.format() == Format::Json {
        let witnesses = device.get("witnesses").cloned().unwrap_or_else(|| json!([]));
        return output::json(&json!({ "cluster": cluster, "resources": resources, "witnesses": witnesses }));
    }
    output::print(&format!("{}{}", witness_lines(&device), status_page(&cluster, &resources)))
}

fn witness_lines(device: &Value) -> String {
    let line = |w: &Value| {
        let state = if truth(&w["online"]) { "online" } else { "OFFLINE" };
        let vote = if truth(&w["votes"]) { "votes" } else { "has no vote yet" };
        format!("witness '{}' at {}: {state}, {vote}\n", text(&w["name"]), text(&w["addr"]))
    };
    rows(&device["witnesses"]).iter().map(line).collect()
}

fn status_page(cluster: &Value, resources: &Value) -> String {
    let of = |list: &Value, kind: &str| -> Vec<Value> {
        rows(list).iter().filter(|r| r["type"] == kind).cloned().collect()
    };
    let mut page = String::new();
    match of(cluster, "cluster").first() {
        Some(c) => {
            let quorum =
                if truth(&c["quorate"]) { "quorate" } else { "NO QUORUM: nothing can be changed or started" };
            page.push_str(&format!(
                "cluster '{}': {} nodes, {quorum}\n\n",
                text(&c["name"]),
                text(&c["nodes"])
            ));
        }
        None => page.push_str("a single node, not in a cluster\n\n"),
    }
    let used: Vec<Value> = of(cluster, "node")
        .into_iter()
        .map(|mut n| {
            let name = n["name"].clone();
            if let Some(r) = of(resources, "node").into_iter().find(|r| r["node"] == name) {
                for key in ["cpu", "mem", "maxmem", "uptime"] {
                    n[key] = r[key].clone();
                }
            }
            let online = truth(&n["online"]);
            n["state"] = json!(if truth(&n["lost"]) {
                "lost"
            } else if online {
                "online"
            } else {
                "OFFLINE"
            });
            n
        })
        .collect();
    let nodes: [Column; 7] = [
        ("NODE", "name", Kind::Text),
        ("STATE", "state", Kind::Text),
        ("ADDRESS", "ip", Kind::Text),
        ("CPU", "cpu", Kind::Share),
        ("MEMORY", "mem", Kind::Bytes),
        ("OF", "maxmem", Kind::Bytes),
        ("UPTIME", "uptime", Kind::Seconds),
    ];
    page.push_str(&output::table(&used, &nodes));
    let guests: Vec<Value> = ["qemu", "lxc"].iter().flat_map(|kind| of(resources, kind)).collect();
    let running = guests.iter().filter(|g| g["status"] == "running").count();
    page.push_str(&format!("\n\n{} guests, {running} running", guests.len()));
    for storage in of(resources, "storage").iter().filter(|s| s["status"] != "available") {
        page.push_str(&format!(
            "\nstorage '{}' on {}: {}",
            text(&storage["storage"]),
            text(&storage["node"]),
            text(&storage["status"])
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_page_tells_what_is_wrong() {
        let cluster = json!([
            {"type": "cluster", "name": "prod", "nodes": 2, "quorate": 0},
            {"type": "node", "name": "pve1", "online": 1, "ip": "192.0.2.1", "lost": 0},
            {"type": "node", "name": "pve2", "online": 0, "ip": "192.0.2.2", "lost": 1},
        ]);
        let resources = json!([
            {"type": "node", "node": "pve1", "cpu": 0.5, "mem": 1073741824, "maxmem": 2147483648u64, "uptime": 61},
            {"type": "qemu", "vmid": 100, "status": "running"},
            {"type": "qemu", "vmid": 101, "status": "stopped"},
            {"type": "storage", "storage": "nfs", "node": "pve1", "status": "unknown"},
            {"type": "storage", "storage": "local", "node": "pve1", "status": "available"},
        ]);
        assert_eq!(
            status_page(&cluster, &resources),
            "cluster 'prod': 2 nodes, NO QUORUM: nothing can be changed or started\n\n\
             NODE  STATE   ADDRESS       CPU  MEMORY     OF  UPTIME\n\
             pve1  online  192.0.2.1  50.0 %   1 GiB  2 GiB  1m 1s\n\
             pve2  lost    192.0.2.2       -       -      -  -\n\n\
             2 guests, 1 running\n\
             storage 'nfs' on pve1: unknown"
        );
    }
}
