//! `stead vm`.

use super::{Cx, agent, clone, cloudinit, snapshot};
use crate::api::{rows, text};
use crate::failure::Failure;
use crate::output::{self, Column, Format, Kind};
use crate::params::{self, Params, escape, put, settings, switch};
use crate::terminal;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::io::{BufRead, IsTerminal, Write};

pub const COLUMNS: [Column; 10] = [
    ("VMID", "vmid", Kind::Number),
    ("NAME", "name", Kind::Text),
    ("STATUS", "status", Kind::Text),
    ("NODE", "node", Kind::Text),
    ("HA", "hastate", Kind::Text),
    ("LOCK", "lock", Kind::Text),
    ("CPU", "cpu", Kind::Share),
    ("MEMORY", "maxmem", Kind::Bytes),
    ("UPTIME", "uptime", Kind::Seconds),
    ("ADDRESS", "address", Kind::Text),
];

/// A VM.
#[derive(Debug, Args)]
pub struct Which {
    /// The VM's number
    pub vmid: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    stead vm create --name web --memory 2048 --cores 2 --disk local:8 --iso local:iso/debian.iso --start\n  \
    stead vm create 200 --name db --disk nfs:32 onboot=1 agent=1 'net0=virtio,bridge=vmbr1'")]
pub struct Create {
    /// Its number (default: the next free one)
    pub vmid: Option<String>,
    /// The node to create it on (default: the node that is spoken to)
    #[arg(long)]
    pub node: Option<String>,
    /// Its name
    #[arg(long)]
    pub name: Option<String>,
    /// Memory, in MiB
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// Cores
    #[arg(long)]
    pub cores: Option<u32>,
    /// A new disk: STORAGE:GIB, or an existing volume; may be repeated
    #[arg(long, value_name = "STORAGE:GIB")]
    pub disk: Vec<String>,
    /// An image in the CD drive: STORAGE:iso/FILE
    #[arg(long, value_name = "VOLUME")]
    pub iso: Option<String>,
    /// A network interface on this bridge; may be repeated
    #[arg(long, value_name = "BRIDGE")]
    pub bridge: Vec<String>,
    /// Start it when it was created
    #[arg(long)]
    pub start: bool,
    /// Further settings, with the names of the VM's configuration
    #[arg(value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the VMs of the cluster
    List {
        /// Only those on this node
        #[arg(long)]
        node: Option<String>,
    },
    /// Show a VM: state, load, where it runs
    Show(Which),
    /// Create a VM
    Create(Create),
    /// Show a VM's configuration
    Config {
        #[command(flatten)]
        which: Which,
        /// What it runs with now, without changes that wait for the next start
        #[arg(long)]
        current: bool,
        /// What waits for the next start, too
        #[arg(long, conflicts_with = "current")]
        pending: bool,
    },
    /// Change a VM's configuration
    #[command(
        after_help = "Examples:\n  stead vm set 100 memory=4096 cores=4\n  stead vm set 100 --delete ide2"
    )]
    Set {
        #[command(flatten)]
        which: Which,
        /// Settings, with the names of the VM's configuration
        #[arg(value_name = "KEY=VALUE", required_unless_present_any = ["delete", "revert"])]
        settings: Vec<String>,
        /// Settings to remove, separated by commas
        #[arg(long, value_name = "KEYS")]
        delete: Option<String>,
        /// Changes that wait for the next start and shall not be made, separated by commas
        #[arg(long, value_name = "KEYS")]
        revert: Option<String>,
        /// Only if the configuration still has this digest
        #[arg(long)]
        digest: Option<String>,
    },
    /// Start a VM
    Start(Which),
    /// Ask a VM's system to shut down
    Shutdown {
        #[command(flatten)]
        which: Which,
        /// Seconds that it may take
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Stop it if it has not shut down by then
        #[arg(long)]
        force: bool,
    },
    /// Stop a VM at once, as pulling its plug
    Stop(Which),
    /// Reset a VM, as its reset button
    Reset(Which),
    /// Shut a VM down and start it again
    Reboot {
        #[command(flatten)]
        which: Which,
        /// Seconds that the shutdown may take
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// Pause a VM, or suspend it to disk
    #[command(
        after_help = "Examples:\n  stead vm suspend 100\n  stead vm suspend 100 --todisk     its next start has it go on"
    )]
    Suspend {
        #[command(flatten)]
        which: Which,
        /// Write its memory to disk and end its process
        #[arg(long)]
        todisk: bool,
        /// The storage for its memory
        #[arg(long, value_name = "STORAGE", requires = "todisk")]
        statestorage: Option<String>,
    },
    /// Let a paused VM go on
    Resume(Which),
    /// Remove a lock that nobody holds; of a VM that is suspended to disk, give its memory up
    Unlock(Which),
    /// Move a VM to another node; a running one keeps running
    #[command(
        after_help = "Examples:\n  stead vm migrate 100 pve2\n  stead vm migrate 100 pve2 --with-local-disks   also disks that its node alone has\n  \
                      stead vm migrate 100 pve2 --quick              over a shared storage"
    )]
    Migrate {
        #[command(flatten)]
        which: Which,
        /// The node to move it to
        target: String,
        /// Refuse if it runs
        #[arg(long)]
        offline: bool,
        /// At most so many KiB/s
        #[arg(long, value_name = "KIB_PER_S")]
        bwlimit: Option<u64>,
        /// Where the disks of one that does not run go: STORAGE, or pairs FROM:TO
        #[arg(long, value_name = "STORAGES", conflicts_with = "quick")]
        targetstorage: Option<String>,
        /// Over a shared storage: its memory is written there while it runs, and read by the other node
        #[arg(long, conflicts_with_all = ["offline", "bwlimit"])]
        quick: bool,
        /// The shared storage for its memory
        #[arg(long, value_name = "STORAGE", requires = "quick")]
        statestorage: Option<String>,
    },
    /// Move a VM to another cluster of Stead's
    #[command(
        after_help = "Examples:\n  stead vm remote-migrate 100 - --target-storage local < endpoint\n  \
                      stead vm remote-migrate 100 - --target-vmid 200 --delete --target-storage fast:nvme,1 --target-bridge vmbr0:vmbr2\n\n\
                      where the file 'endpoint' is one line:\n  \
                      apitoken=PVEAPIToken=mover@pve!away=SECRET,host=pve9,fingerprint=AB:CD:…\n\n\
                      Who gives the endpoint itself shows the token to all who list processes; with '-' it is read from standard input, and\n\
                      it may be in STEAD_TARGET_ENDPOINT. 'pve_fp' of 'stead cluster join-info -o json' there is the fingerprint.\n\
                      docs/moves.md says which rights the token needs."
    )]
    RemoteMigrate {
        #[command(flatten)]
        which: Which,
        /// The other cluster: apitoken=PVEAPIToken=USER@REALM!TOKEN=SECRET,host=ADDRESS[,fingerprint=FP][,port=PORT]; '-': a line of standard input
        #[arg(env = "STEAD_TARGET_ENDPOINT", hide_env_values = true)]
        target_endpoint: String,
        /// Its number there (default: the same)
        #[arg(long, value_name = "VMID")]
        target_vmid: Option<String>,
        /// Where its disks go: 1 (the same names), STORAGE, or pairs FROM:TO
        #[arg(long, value_name = "STORAGES", default_value = "1")]
        target_storage: String,
        /// What its network interfaces are attached to: 1 (the same names), BRIDGE, or pairs FROM:TO
        #[arg(long, value_name = "BRIDGES", default_value = "1")]
        target_bridge: String,
        /// While it runs, with its memory
        #[arg(long)]
        online: bool,
        /// Remove it here once it is there
        #[arg(long)]
        delete: bool,
        /// At most so many KiB/s
        #[arg(long, value_name = "KIB_PER_S")]
        bwlimit: Option<u64>,
    },
    /// Make another VM of one, or of a template
    #[command(
        after_help = "Examples:\n  stead vm clone 100 101 --name web2\n  stead vm clone 100 101 --storage nfs --format qcow2"
    )]
    Clone {
        #[command(flatten)]
        which: Which,
        /// The clone's number
        newid: String,
        #[command(flatten)]
        what: clone::What,
    },
    /// Make a template of a VM: it never runs again, and others are made of it
    Template {
        #[command(flatten)]
        which: Which,
        /// Only this disk becomes one of which others are made
        #[arg(long)]
        disk: Option<String>,
        /// Don't ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Move a disk to another storage or format; a running VM keeps running
    #[command(
        name = "move-disk",
        after_help = "Example:\n  stead vm move-disk 100 scsi0 nfs --format qcow2 --delete"
    )]
    MoveDisk {
        #[command(flatten)]
        which: Which,
        /// The disk
        disk: String,
        /// The storage where it is to lie
        storage: Option<String>,
        /// The format: raw or qcow2
        #[arg(long)]
        format: Option<String>,
        /// Remove the old volume, instead of keeping it as unused
        #[arg(long)]
        delete: bool,
        /// At most so many KiB/s
        #[arg(long, value_name = "KIB_PER_S")]
        bwlimit: Option<u64>,
    },
    /// Make a disk of an image: of qcow2, raw or vmdk, also in an OVA archive
    #[command(
        after_help = "Examples:\n  stead vm import 100 nas:import/x.qcow2 local\n  stead vm import 100 nas:import/x.ova/disk.vmdk local --disk sata0"
    )]
    Import {
        #[command(flatten)]
        which: Which,
        /// A volume, or a file of the VM's node
        image: String,
        /// The storage where the disk is to lie
        storage: String,
        /// The disk; the first free SCSI disk if it is left out
        #[arg(long)]
        disk: Option<String>,
        /// The format: raw or qcow2
        #[arg(long)]
        format: Option<String>,
    },
    /// Give a disk to another VM of the same node
    #[command(after_help = "Example:\n  stead vm reassign 100 scsi1 101 --target-disk scsi2")]
    Reassign {
        #[command(flatten)]
        which: Which,
        /// The disk
        disk: String,
        /// The VM that is to have it
        target: String,
        /// As which disk it is to have it
        #[arg(long, value_name = "DISK")]
        target_disk: Option<String>,
    },
    /// Delete a VM and its disks
    Delete {
        #[command(flatten)]
        which: Which,
        /// Remove it from HA and other configuration, too
        #[arg(long)]
        purge: bool,
        /// Don't ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Take a snapshot of a VM: of its configuration and its disks, also while it runs
    #[command(after_help = "Example:\n  stead vm snapshot 100 before-upgrade --description 'as it was'")]
    Snapshot {
        #[command(flatten)]
        which: Which,
        /// The snapshot's name
        name: String,
        /// What is to be remembered of it
        #[arg(long)]
        description: Option<String>,
        /// Keep its memory, too
        #[arg(long)]
        vmstate: bool,
    },
    /// List a VM's snapshots
    #[command(name = "listsnapshot")]
    ListSnapshot(Which),
    /// Have a VM go back to a snapshot; what it is now is lost
    Rollback {
        #[command(flatten)]
        which: Which,
        /// The snapshot
        name: String,
        /// Start it afterwards
        #[arg(long)]
        start: bool,
        /// Don't ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Remove a snapshot of a VM
    #[command(name = "delsnapshot")]
    RemoveSnapshot {
        #[command(flatten)]
        which: Which,
        /// The snapshot
        name: String,
        /// Also where a disk does not let go of it
        #[arg(long)]
        force: bool,
    },
    /// Give commands to a VM's QEMU monitor
    #[command(after_help = "Example:\n  stead vm monitor 100 info status")]
    Monitor {
        #[command(flatten)]
        which: Which,
        /// The command (default: read commands from the terminal)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Ask the guest agent: ping, get-osinfo, network-get-interfaces, fsfreeze-status, fstrim …
    #[command(after_help = "Example:\n  stead vm agent 100 network-get-interfaces")]
    Agent {
        #[command(flatten)]
        which: Which,
        /// The agent's command, without 'guest-'
        command: String,
    },
    /// Run a program in the guest by its agent, and show what it prints
    #[command(after_help = "Example:\n  stead vm exec 100 -- ls -l /etc")]
    Exec {
        #[command(flatten)]
        which: Which,
        /// Seconds to wait for its end; 0: as long as it takes
        #[arg(long, value_name = "S", default_value_t = 30)]
        timeout: u64,
        /// The program, and its arguments
        #[arg(required = true, last = true, value_name = "WORD")]
        command: Vec<String>,
    },
    /// What a VM tells its guest by cloud-init
    #[command(
        name = "cloudinit",
        after_help = "Examples:\n  stead vm cloudinit dump 100 user\n  stead vm cloudinit update 100"
    )]
    CloudInit {
        #[command(subcommand)]
        command: cloudinit::Command,
    },
    /// Press keys of a VM's keyboard together
    #[command(name = "sendkey", after_help = "Example:\n  stead vm sendkey 100 ctrl-alt-delete")]
    SendKey {
        #[command(flatten)]
        which: Which,
        /// The keys by QEMU's names, joined by '-'
        keys: String,
    },
    /// Open a VM's serial console; Ctrl-O ends it
    Terminal {
        #[command(flatten)]
        which: Which,
        /// Which serial port (default: the first)
        #[arg(long, value_name = "serialN")]
        serial: Option<String>,
    },
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    let mut p = Params::new();
    match command {
        Command::List { node } => list(cx, node.as_deref()).await,
        Command::Show(Which { vmid }) => {
            let path = cx.api.vm(&vmid).await?;
            let mut status = cx.api.get(&format!("{path}/status/current")).await?;
            if cx.format() == Format::Table {
                super::node::flatten(&mut status);
            }
            cx.format().object(&status)
        }
        Command::Create(create) => self::create(cx, create).await,
        Command::Config { which, pending: true, .. } => pending(cx, &which.vmid).await,
        Command::Config { which, current, .. } => {
            switch(&mut p, "current", current);
            config(cx, &which.vmid, &p).await
        }
        Command::Set { which, settings: words, delete, revert, digest } => {
            p = settings(&words)?;
            put(&mut p, "delete", delete);
            put(&mut p, "revert", revert);
            put(&mut p, "digest", digest);
            set(cx, &which.vmid, &p).await
        }
        Command::Start(w) => status(cx, &w.vmid, "start", &p).await,
        Command::Shutdown { which, timeout, force } => {
            put(&mut p, "timeout", timeout);
            switch(&mut p, "forceStop", force);
            status(cx, &which.vmid, "shutdown", &p).await
        }
        Command::Stop(w) => status(cx, &w.vmid, "stop", &p).await,
        Command::Reset(w) => status(cx, &w.vmid, "reset", &p).await,
        Command::Reboot { which, timeout } => {
            put(&mut p, "timeout", timeout);
            status(cx, &which.vmid, "reboot", &p).await
        }
        Command::Suspend { which, todisk, statestorage } => {
            switch(&mut p, "todisk", todisk);
            put(&mut p, "statestorage", statestorage);
            status(cx, &which.vmid, "suspend", &p).await
        }
        Command::Resume(w) => status(cx, &w.vmid, "resume", &p).await,
        Command::Unlock(w) => unlock(cx, &w.vmid, p).await,
        Command::Migrate { which, target, quick: true, statestorage, .. } => {
            put(&mut p, "target", Some(target));
            put(&mut p, "statestorage", statestorage);
            quick_migrate(cx, &which.vmid, &p).await
        }
        Command::Migrate { which, target, offline, bwlimit, targetstorage, .. } => {
            put(&mut p, "target", Some(target));
            put(&mut p, "targetstorage", targetstorage);
            switch(&mut p, "online", !offline);
            put(&mut p, "bwlimit", bwlimit);
            migrate(cx, &which.vmid, &p).await
        }
        Command::RemoteMigrate {
            which,
            target_endpoint,
            target_vmid,
            target_storage,
            target_bridge,
            online,
            delete,
            bwlimit,
        } => {
            put(&mut p, "target-endpoint", Some(target_endpoint));
            put(&mut p, "target-vmid", target_vmid);
            put(&mut p, "target-storage", Some(target_storage));
            put(&mut p, "target-bridge", Some(target_bridge));
            switch(&mut p, "online", online);
            switch(&mut p, "delete", delete);
            put(&mut p, "bwlimit", bwlimit);
            remote_migrate(cx, &which.vmid, p).await
        }
        Command::Clone { which, newid, what } => clone::make(cx, &which.vmid, &newid, what.params(p)).await,
        Command::Template { which, disk, yes } => {
            put(&mut p, "disk", disk);
            if !yes {
                confirm(&format!("Make a template of VM {}, which then never runs again", which.vmid))?;
            }
            clone::template(cx, &which.vmid, &p).await
        }
        Command::MoveDisk { which, disk, storage, format, delete, bwlimit } => {
            put(&mut p, "storage", storage);
            put(&mut p, "format", format);
            switch(&mut p, "delete", delete);
            put(&mut p, "bwlimit", bwlimit);
            clone::move_disk(cx, &which.vmid, &disk, p).await
        }
        Command::Import { which, image, storage, disk, format } => {
            put(&mut p, "disk", disk);
            put(&mut p, "format", format);
            clone::import(cx, &which.vmid, &image, &storage, p, false).await
        }
        Command::Reassign { which, disk, target, target_disk } => {
            put(&mut p, "target-vmid", Some(target));
            put(&mut p, "target-disk", target_disk);
            clone::move_disk(cx, &which.vmid, &disk, p).await
        }
        Command::Delete { which, purge, yes } => {
            switch(&mut p, "purge", purge);
            if !yes {
                confirm(&format!("Delete VM {} and its disks", which.vmid))?;
            }
            delete(cx, &which.vmid, &p).await
        }
        Command::Snapshot { which, name, description, vmstate } => {
            put(&mut p, "description", description);
            switch(&mut p, "vmstate", vmstate);
            snapshot::take(cx, &which.vmid, &name, p).await
        }
        Command::ListSnapshot(which) => snapshot::list(cx, &which.vmid).await,
        Command::Rollback { which, name, start, yes } => {
            switch(&mut p, "start", start);
            if !yes {
                confirm(&format!("Have VM {} go back to {name}, and lose what it is now", which.vmid))?;
            }
            snapshot::roll_back(cx, &which.vmid, &name, &p).await
        }
        Command::RemoveSnapshot { which, name, force } => {
            switch(&mut p, "force", force);
            snapshot::remove(cx, &which.vmid, &name, &p).await
        }
        Command::Agent { which, command } => agent::command(cx, &which.vmid, &command).await,
        Command::Exec { which, timeout, command } => agent::exec(cx, &which.vmid, &command, timeout).await,
        Command::CloudInit { command } => cloudinit::run(cx, command).await,
        Command::SendKey { which, keys } => send_key(cx, &which.vmid, &keys, Params::new()).await,
        Command::Monitor { which, command } => monitor(cx, &which.vmid, &command.join(" ")).await,
        Command::Terminal { which, serial } => {
            let path = cx.api.vm(&which.vmid).await?;
            terminal::open(&cx.api, &path, serial.as_deref()).await
        }
    }
}

/// The first of a VM's addresses, and how many there are beside it.
fn name_address(guest: &mut Value) {
    let all = guest["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let address = match all {
        [] => return,
        [one] => text(one),
        [first, rest @ ..] => format!("{} +{}", text(first), rest.len()),
    };
    guest["address"] = address.into();
}

async fn list(cx: &Cx, node: Option<&str>) -> Result<(), Failure> {
    let mut guests = cx.api.guests().await?;
    guests.retain(|g| g["type"] == "qemu" && node.is_none_or(|n| g["node"] == n));
    guests.sort_by_key(|g| g["vmid"].as_u64());
    if cx.format() == Format::Table {
        guests.iter_mut().for_each(name_address);
    }
    cx.format().list(&Value::Array(guests), &COLUMNS)
}

async fn create(cx: &Cx, mut create: Create) -> Result<(), Failure> {
    // Without a number, the first setting stands in its place.
    if let Some(setting) = create.vmid.take_if(|word| word.contains('=')) {
        create.settings.insert(0, setting);
    }
    let vmid = match create.vmid {
        Some(vmid) => vmid,
        None => cx.api.next_id().await?,
    };
    let node = match create.node {
        Some(node) => node,
        None => cx.api.local_node().await?,
    };
    let mut p = Params::new();
    put(&mut p, "vmid", Some(&vmid));
    put(&mut p, "name", create.name);
    put(&mut p, "memory", create.memory);
    put(&mut p, "cores", create.cores);
    for (n, disk) in create.disk.iter().enumerate() {
        put(&mut p, &format!("scsi{n}"), Some(disk));
    }
    if !create.disk.is_empty() {
        put(&mut p, "scsihw", Some("virtio-scsi-single"));
    }
    put(&mut p, "ide2", create.iso.map(|iso| format!("{iso},media=cdrom")));
    for (n, bridge) in create.bridge.iter().enumerate() {
        put(&mut p, &format!("net{n}"), Some(format!("virtio,bridge={bridge}")));
    }
    // As a task of its own the start is followed, too; by itself it would go on behind the creation's end.
    switch(&mut p, "start", create.start && cx.follow.no_wait);
    // What is said outright counts more than what follows from a short option.
    for (name, value) in settings(&create.settings)? {
        p.retain(|(n, _)| *n != name);
        p.push((name, value));
    }
    make(cx, &node, &p).await?;
    if create.start && !cx.follow.no_wait {
        let answer =
            cx.api.post(&format!("/nodes/{}/qemu/{vmid}/status/start", escape(&node)), &vec![]).await?;
        cx.answer(&answer, "started").await?;
    }
    if cx.format() == Format::Table { output::print(&format!("VM {vmid}")) } else { Ok(()) }
}

/// Creates a VM with exactly these parameters.
pub async fn make(cx: &Cx, node: &str, p: &Params) -> Result<(), Failure> {
    let answer = cx.api.post(&format!("/nodes/{}/qemu", escape(node)), p).await?;
    cx.answer(&answer, "created").await
}

/// Shows a configuration, and what waits for the next start.
pub async fn pending(cx: &Cx, vmid: &str) -> Result<(), Failure> {
    let path = cx.api.vm(vmid).await?;
    let columns: [Column; 4] = [
        ("KEY", "key", Kind::Text),
        ("NOW", "value", Kind::Text),
        ("AFTER THE NEXT START", "pending", Kind::Text),
        ("REMOVED", "delete", Kind::Truth),
    ];
    cx.format().list(&cx.api.get(&format!("{path}/pending")).await?, &columns)
}

/// Shows a configuration as the file it is kept in.
pub async fn config(cx: &Cx, vmid: &str, p: &Params) -> Result<(), Failure> {
    let path = cx.api.vm(vmid).await?;
    let config = cx.api.call(http::Method::GET, &format!("{path}/config"), p).await?;
    if cx.format() == Format::Json {
        return output::json(&config);
    }
    let empty = serde_json::Map::new();
    let mut lines: Vec<String> = config
        .as_object()
        .unwrap_or(&empty)
        .iter()
        .filter(|(key, _)| *key != "digest")
        .map(|(key, value)| format!("{key}: {}", text(value).replace('\n', "%0A")))
        .collect();
    lines.sort();
    output::print(&lines.join("\n"))
}

/// Changes a configuration. The answer comes when the change is made, or as a task.
pub async fn set(cx: &Cx, vmid: &str, p: &Params) -> Result<(), Failure> {
    let path = cx.api.vm(vmid).await?;
    // POST gives a task where disks must be made; PUT would have to make them within its answer's time.
    let answer = cx.api.post(&format!("{path}/config"), p).await?;
    cx.answer(&answer, &format!("VM {vmid} changed")).await
}

/// Removes a lock.
pub async fn unlock(cx: &Cx, vmid: &str, mut p: Params) -> Result<(), Failure> {
    put(&mut p, "delete", Some("lock"));
    put(&mut p, "skiplock", Some(1));
    set(cx, vmid, &p).await
}

/// One of the eight verbs of `status`.
pub async fn status(cx: &Cx, vmid: &str, verb: &str, p: &Params) -> Result<(), Failure> {
    let path = cx.api.vm(vmid).await?;
    let answer = cx.api.post(&format!("{path}/status/{verb}"), p).await?;
    cx.answer(&answer, &format!("VM {vmid}: {verb} done")).await
}

/// Moves a VM.
pub async fn migrate(cx: &Cx, vmid: &str, p: &Params) -> Result<(), Failure> {
    let path = cx.api.vm(vmid).await?;
    let answer = cx.api.post(&format!("{path}/migrate"), p).await?;
    cx.answer(&answer, &format!("VM {vmid} moved")).await
}

/// Moves a running VM over a shared storage.
async fn quick_migrate(cx: &Cx, vmid: &str, p: &Params) -> Result<(), Failure> {
    let path = cx.api.vm(vmid).await?;
    let answer = cx.api.post(&format!("{path}/quick_migrate"), p).await?;
    cx.answer(&answer, &format!("VM {vmid} moved")).await
}

/// Moves a VM to another cluster.
pub async fn remote_migrate(cx: &Cx, vmid: &str, mut p: Params) -> Result<(), Failure> {
    let endpoint = p.iter_mut().find(|(name, value)| name == "target-endpoint" && value == "-");
    if let Some((_, endpoint)) = endpoint {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        *endpoint = line.trim().to_owned();
    }
    let path = cx.api.vm(vmid).await?;
    let answer = cx.api.post(&format!("{path}/remote_migrate"), &p).await?;
    cx.answer(&answer, &format!("VM {vmid} moved")).await
}

/// Deletes a VM.
pub async fn delete(cx: &Cx, vmid: &str, p: &Params) -> Result<(), Failure> {
    let answer = cx.api.delete(&cx.api.vm(vmid).await?, p).await?;
    cx.answer(&answer, &format!("VM {vmid} deleted")).await
}

/// Presses keys.
pub async fn send_key(cx: &Cx, vmid: &str, keys: &str, mut more: Params) -> Result<(), Failure> {
    put(&mut more, "key", Some(keys.to_owned()));
    let path = format!("{}/sendkey", cx.api.vm(vmid).await?);
    let answer = cx.api.put(&path, &more).await?;
    cx.answer(&answer, &format!("{keys} pressed")).await
}

/// Gives a command to the monitor, or those that are typed until the end.
pub async fn monitor(cx: &Cx, vmid: &str, command: &str) -> Result<(), Failure> {
    let path = format!("{}/monitor", cx.api.vm(vmid).await?);
    if !command.is_empty() {
        return one_command(cx, &path, command).await;
    }
    let asks = std::io::stdin().is_terminal();
    if asks {
        output::print(&format!("QEMU monitor of VM {vmid}; 'quit' or Ctrl-D ends this, not the VM"))?;
    }
    loop {
        if asks {
            print!("qm> ");
            std::io::stdout().flush()?;
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line)?;
        match line.trim() {
            // QEMU's own 'quit' would end the VM.
            "quit" | "q" | "exit" => return Ok(()),
            _ if read == 0 => return Ok(()),
            "" => {}
            command => match one_command(cx, &path, command).await {
                Err(Failure::Failed(why) | Failure::Away(why)) if asks => {
                    output::print(&format!("error: {why}"))?;
                }
                done => done?,
            },
        }
    }
}

async fn one_command(cx: &Cx, path: &str, command: &str) -> Result<(), Failure> {
    let mut p = Params::new();
    put(&mut p, "command", Some(command));
    let answer = cx.api.post(path, &p).await?;
    cx.format().done(&answer, text(&answer).trim_end())
}

/// Asks before something is destroyed. Without a terminal the word must have been given before, as `--yes`.
pub fn confirm(what: &str) -> Result<(), Failure> {
    ask(what, "--yes")
}

/// Asks; without a terminal `option` must have been given before.
pub fn ask(what: &str, option: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{what}? There is no terminal to ask on: give {option}")));
    }
    print!("{what}? [y/N] ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    match line.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was done")),
    }
}

/// The VMs on one node, with what `qm list` shows of them.
pub async fn on_node(cx: &Cx, node: &str, p: &Params) -> Result<Vec<Value>, Failure> {
    let path = format!("/nodes/{}/qemu", params::escape(node));
    let list = cx.api.call(http::Method::GET, &path, p).await?;
    let mut list = rows(&list).to_vec();
    list.sort_by_key(|g| g["vmid"].as_u64());
    Ok(list)
}
