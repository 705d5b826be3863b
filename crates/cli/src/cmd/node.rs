//! `stead node`.

use super::Cx;
use super::vm::confirm;
use crate::failure::Failure;
use crate::output::{Column, Format, Kind};
use crate::params::{Params, escape, put};
use clap::{Args, Subcommand};
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
    /// Show at which site and in which rack a node stands, or say it: votes are spread over sites and racks
    #[command(
        after_help = "What is lost at once is a site (a building, its power, its line) or a rack within one. A witness stands \
                      somewhere, too. How the votes lie then, and what may be lost, shows 'stead cluster status'.\n\nExamples:\n  \
                      stead node place pve1 --site north --rack r1\n  stead node place pve1\n  stead node place pve1 --delete rack"
    )]
    Place {
        /// The node, or a witness
        node: String,
        /// The site
        #[arg(long)]
        site: Option<String>,
        /// The rack, in that site
        #[arg(long)]
        rack: Option<String>,
        /// What is not said any more: site, rack, separated by commas
        #[arg(long, value_name = "WHAT")]
        delete: Option<String>,
    },
    /// List the devices of a node that it could give to a VM
    #[command(after_help = "Examples:\n  stead node devices pve1 pci\n  stead node devices pve1 usb")]
    Devices {
        /// The node
        node: String,
        /// On which bus
        #[arg(value_enum)]
        bus: Bus,
    },
    /// Show the certificates that a node shows to clients
    #[command(after_help = "See 'stead cluster renew-certificates --help'.")]
    Certificates {
        /// The node (default: the node that is spoken to)
        node: Option<String>,
    },
    /// Start the guests of a node that start with it (`onboot`), in their order
    #[command(
        after_help = "Examples:\n  stead node start-all pve1\n  stead node start-all pve1 --force --vms 100,101"
    )]
    StartAll {
        #[command(flatten)]
        all: All,
        /// Those too that do not start with their node
        #[arg(long)]
        force: bool,
    },
    /// Shut down the guests of a node, the last started first
    #[command(after_help = "Example:\n  stead node stop-all pve1 --timeout 60")]
    StopAll {
        #[command(flatten)]
        all: All,
        /// Seconds that each may take, unless its own `startup` says `down` (default: 180)
        #[arg(long)]
        timeout: Option<u32>,
        /// Leave a guest running that has not shut down in time, instead of stopping it
        #[arg(long)]
        no_force: bool,
    },
    /// Stop the CPUs of the guests of a node
    SuspendAll {
        #[command(flatten)]
        all: All,
    },
    /// Move the guests of a node to another; those that run keep running
    #[command(after_help = "Example:\n  stead node migrate-all pve1 pve2 --workers 2")]
    MigrateAll {
        #[command(flatten)]
        all: All,
        /// Where to
        target: String,
    },
    /// Switch a host off, once its guests have left or are shut down
    #[command(
        after_help = "What becomes of guests under HA says the cluster's option 'ha: shutdown_policy='. The others are shut down, the \
                      last started first. If something still runs in the end, the host stays up.\n\nExamples:\n  stead node \
                      shutdown pve2 --yes\n  stead task list --node pve2       (the task 'nodeshutdown' tells what it waits for)"
    )]
    Shutdown(Down),
    /// Start a host anew, once its guests have left or are shut down
    #[command(after_help = "See 'stead node shutdown --help'.")]
    Reboot(Down),
    /// Bring the guests of a host that goes down by itself to rest
    #[command(
        after_help = "The same as 'stead node shutdown', but for the power: that is somebody else's to take. Where the package is \
                      installed, every shutdown of the host does this (the unit stead-guests). Ends when nothing runs on the node \
                      any more; from then on nothing starts there until its daemon does.\n\nExample:\n  stead node depart \
                      --reboot"
    )]
    Depart {
        /// The node (default: the node that is spoken to)
        node: Option<String>,
        /// The host will be back: shutdown policies tell a reboot from a shutdown
        #[arg(long)]
        reboot: bool,
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

/// A bus with devices.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Bus {
    /// PCI
    Pci,
    /// USB
    Usb,
}

const CERTIFICATES: [Column; 5] = [
    ("FILE", "filename", Kind::Text),
    ("SUBJECT", "subject", Kind::Text),
    ("GOOD FROM", "notbefore", Kind::Time),
    ("UNTIL", "notafter", Kind::Time),
    ("FINGERPRINT", "fingerprint", Kind::Text),
];
const PCI_COLUMNS: [Column; 5] = [
    ("ADDRESS", "id", Kind::Text),
    ("CLASS", "class", Kind::Text),
    ("VENDOR", "vendor", Kind::Text),
    ("DEVICE", "device", Kind::Text),
    ("IOMMU GROUP", "iommugroup", Kind::Number),
];
const USB_COLUMNS: [Column; 6] = [
    ("BUS", "busnum", Kind::Number),
    ("PORTS", "usbpath", Kind::Text),
    ("VENDOR", "vendid", Kind::Text),
    ("PRODUCT", "prodid", Kind::Text),
    ("SPEED", "speed", Kind::Text),
    ("NAME", "product", Kind::Text),
];

async fn devices(cx: &Cx, node: &str, bus: Bus) -> Result<(), Failure> {
    let (word, columns): (_, &[Column]) = match bus {
        Bus::Pci => ("pci", &PCI_COLUMNS),
        Bus::Usb => ("usb", &USB_COLUMNS),
    };
    let all = cx.api.get(&format!("/nodes/{}/hardware/{word}", escape(node))).await?;
    cx.format().list(&all, columns)
}

/// Which host goes down.
#[derive(Debug, Args)]
pub struct Down {
    /// The node
    node: String,
    /// Don't ask
    #[arg(long, short = 'y')]
    yes: bool,
}

/// Which guests of a node, and how many at a time.
#[derive(Debug, Args)]
pub struct All {
    /// The node
    node: String,
    /// These guests alone: 100,101
    #[arg(long, value_name = "LIST")]
    vms: Option<String>,
    /// How many at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: Option<u8>,
}

impl All {
    /// Asks for it, and follows its task.
    async fn ask(
        self,
        cx: &Cx,
        what: &str,
        more: &[(&str, Option<String>)],
        said: &str,
    ) -> Result<(), Failure> {
        let mut p = Params::new();
        put(&mut p, "vms", self.vms);
        put(&mut p, "max-workers", self.workers.map(|n| n.to_string()));
        for (key, value) in more {
            put(&mut p, key, value.clone());
        }
        let answer = cx.api.post(&format!("/nodes/{}/{what}", escape(&self.node)), &p).await?;
        cx.answer(&answer, &format!("{said} of node '{}'", self.node)).await
    }
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    match command {
        Command::StartAll { all, force } => {
            let force = force.then(|| "1".to_owned());
            all.ask(cx, "startall", &[("force", force)], "started the guests").await
        }
        Command::StopAll { all, timeout, no_force } => {
            let (timeout, force) = (timeout.map(|t| t.to_string()), no_force.then(|| "0".to_owned()));
            all.ask(cx, "stopall", &[("timeout", timeout), ("force-stop", force)], "stopped the guests").await
        }
        Command::SuspendAll { all } => all.ask(cx, "suspendall", &[], "suspended the guests").await,
        Command::MigrateAll { all, target } => {
            all.ask(cx, "migrateall", &[("target", Some(target))], "moved the guests").await
        }
        Command::Place { node, site, rack, delete } => place(cx, &node, [site, rack, delete]).await,
        Command::Devices { node, bus } => devices(cx, &node, bus).await,
        Command::Certificates { node } => {
            let node = given_or_local(cx, node).await?;
            let all = cx.api.get(&format!("/nodes/{}/certificates/info", escape(&node))).await?;
            cx.format().list(&all, &CERTIFICATES)
        }
        Command::List => cx.format().list(&cx.api.get("/nodes").await?, &COLUMNS),
        Command::Show { node } => {
            let node = given_or_local(cx, node).await?;
            let mut status = cx.api.get(&format!("/nodes/{}/status", escape(&node))).await?;
            if cx.format() == Format::Table {
                flatten(&mut status);
            }
            cx.format().object(&status)
        }
        Command::Shutdown(down) => power(cx, down, "shutdown", "switched off").await,
        Command::Reboot(down) => power(cx, down, "reboot", "started anew").await,
        Command::Depart { node, reboot } => {
            let node = given_or_local(cx, node).await?;
            let mut p = Params::new();
            put(&mut p, "command", Some(if reboot { "reboot" } else { "shutdown" }));
            let answer = cx.api.post(&format!("/nodes/{}/depart", escape(&node)), &p).await?;
            cx.answer(&answer, &format!("nothing runs on node '{node}' any more")).await
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

async fn place(cx: &Cx, node: &str, said: [Option<String>; 3]) -> Result<(), Failure> {
    let path = format!("/nodes/{}/place", escape(node));
    let mut p = Params::new();
    for (key, value) in ["site", "rack", "delete"].into_iter().zip(said) {
        put(&mut p, key, value);
    }
    if p.is_empty() {
        return cx.format().object(&cx.api.get(&path).await?);
    }
    let said =
        format!("where node '{node}' stands is changed; 'stead cluster status' shows how the votes lie");
    cx.format().done(&cx.api.put(&path, &p).await?, &said)
}

async fn given_or_local(cx: &Cx, node: Option<String>) -> Result<String, Failure> {
    match node {
        Some(node) => Ok(node),
        None => cx.api.local_node().await,
    }
}

async fn power(cx: &Cx, Down { node, yes }: Down, command: &str, done: &str) -> Result<(), Failure> {
    if !yes {
        confirm(&format!(
            "The host of node '{node}' will be {done}, once its guests have left or are shut down"
        ))?;
    }
    let mut p = Params::new();
    put(&mut p, "command", Some(command));
    let answer = cx.api.post(&format!("/nodes/{}/status", escape(&node)), &p).await?;
    let said =
        format!("node '{node}' goes down; 'stead task list --node {node}' shows the task node{command}");
    cx.answer(&answer, &said).await
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
