//! Machines without Stead, for what it is compared with: the same kind of machine on the same kind of network, with a folder
//! that all of them see and a service processor for each.
//!
//! The service processors have power and a network of their own: they answer when the node they belong to does not. Each machine
//! sees the power switches of all, too.

use crate::addr;
use crate::bed::Bed;
use crate::bmc::Bmc;
use crate::machine::{Content, Machine};
use crate::netns::{self, Network};
use crate::node::{Node, Plan};
use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where service processors are: beyond every cable that can be cut.
const SWITCH: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 86, 0, 1));
/// corosync's.
const PORT: u16 = 5405;

/// A file of a machine, there from the first boot on.
#[derive(Debug, Clone)]
pub struct Given {
    /// Below the machine's root, without a `/` in front.
    pub path: &'static str,
    /// What it holds.
    pub text: String,
    /// Whether it is a program.
    pub program: bool,
}

/// Machines called n1, n2, ..., counted from 0 here. Nothing of them is left when this is dropped.
#[derive(Debug)]
pub struct Peer {
    bmcs: Vec<Bmc>,
    nodes: Vec<Node>,
    shared: PathBuf,
    bed: Bed,
}

impl Peer {
    /// Boots machines in this thread's network namespace ([`netns::enter_own`]), each with its service processor. `given` is
    /// asked for their files, with the folder that all of them see, at the same path as here.
    ///
    /// # Errors
    /// One of them does not come up.
    pub async fn start(count: u8, given: impl FnOnce(&Path) -> Vec<Given>) -> Result<Self> {
        ensure!((1..=60).contains(&count), "a testbed has 1 to 60 nodes");
        let bed = Bed::make()?;
        let shared = bed.dir().join("shared");
        fs::create_dir_all(&shared)?;
        let given = given(&shared);
        let network = Arc::new(Network::new(count, 1)?);
        let (mut nodes, mut bmcs) = (vec![], vec![]);
        for number in 1..=count {
            nodes.push(node(bed.dir(), &shared, number, &network, (count, &given))?);
            bmcs.push(Bmc::start(bed.dir(), &name(number), SWITCH)?);
        }
        let peer = Self { bmcs, nodes, shared, bed };
        for node in &peer.nodes {
            node.power_on()?;
        }
        try_join_all(peer.nodes.iter().map(Node::wait_booted)).await?;
        Ok(peer)
    }

    /// All machines.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A machine by its number.
    pub fn node(&self, n: usize) -> &Node {
        &self.nodes[n]
    }

    /// The service processor of a machine.
    pub fn bmc(&self, n: usize) -> &Bmc {
        &self.bmcs[n]
    }

    /// Where the power switch of a machine is, for all of them: a socket (see [`crate::power`]).
    pub fn switch(&self, n: usize) -> PathBuf {
        switch(self.bed.dir(), self.nodes[n].name())
    }

    /// Presses the power button of a machine that is off.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn power_on(&self, n: usize) -> Result<()> {
        self.bmcs[n].turned_on()?;
        self.nodes[n].power_on()
    }

    /// The folder that all of them see.
    pub fn shared_dir(&self) -> &Path {
        &self.shared
    }

    /// Keeps all files when this is dropped, for their logs.
    pub fn keep_logs(&mut self) {
        self.bed.keep();
    }
}

fn switch(bed: &Path, name: &str) -> PathBuf {
    bed.join(format!("{name}.power"))
}

fn name(number: u8) -> String {
    format!("n{number}")
}

fn node(
    bed: &Path,
    shared: &Path,
    number: u8,
    network: &Arc<Network>,
    (count, given): (u8, &[Given]),
) -> Result<Node> {
    let name = name(number);
    let seen = (1..=count).map(|n| switch(bed, &self::name(n))).chain([shared.to_owned()]);
    let machine = Machine::new(&bed.join(&name), &name, Content::Peer, seen.collect())?;
    let host = |n: u8| format!("{} n{n}\n", netns::node_ip(n));
    let hosts: String = (1..=count).map(host).collect();
    machine.debian().write("etc/hosts", &format!("127.0.0.1 localhost\n{hosts}"))?;
    for file in given {
        let path = machine.debian().root().join(file.path);
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        machine.debian().write(file.path, &file.text)?;
        let mode = if file.program { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Node::new(Plan {
        folder: name.clone(),
        name,
        number,
        bed: bed.to_owned(),
        listen: addr::socket(netns::node_ip(number), PORT),
        daemon: PathBuf::from("systemd-nspawn"),
        arguments: vec![],
        network: Some(Arc::clone(network)),
        own_mounts: false,
        machine: Some(machine),
    })
}
