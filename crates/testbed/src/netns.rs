//! Network namespaces without names: they end with the process, and leave nothing behind.
//!
//! ```text
//!   the test's own namespace ("the switch"): bridge sw0 10.86.0.1
//!      │ vn1             │ vn2             │ vn3        ← cut, partition, one way: here, by link and nft
//!   ┌──┴───────────┐  ┌──┴───────────┐  ┌──┴───────────┐
//!   │ eth0         │  │              │  │              │
//!   │ vmbr0 .11    │  │ vmbr0 .12    │  │ vmbr0 .13    │  taps of guests are in vmbr0 too
//!   └──────────────┘  └──────────────┘  └──────────────┘
//! ```
//!
//! Further switches (sw1 with 10.87.0.1, ...) are like the first, but that guests are not on them: the nodes' eth1, ... lead there.
//!
//! A namespace belongs to a thread: [`enter_own`] moves the calling thread, and what that thread opens or starts from then
//! on lies in it. Nothing of the machine's own network is touched.

use crate::procs::run;
use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// The address of node `n` (from 1); 0 is out of use, the switch itself has .1.
pub fn node_ip(n: u8) -> Ipv4Addr {
    link_ip(0, n)
}

/// The address of node `n` (from 1) at a switch, counted from 0.
pub fn link_ip(link: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 86 + link, 0, 10 + n)
}

/// The address of a guest by its VMID, and the network card's that tells the test guest so.
pub fn guest_ip(vmid: u32) -> (Ipv4Addr, String) {
    let (hi, lo) = (1 + (vmid / 250 % 250) as u8, 1 + (vmid % 250) as u8);
    (Ipv4Addr::new(10, 86, hi, lo), format!("02:53:54:56:{hi:02X}:{lo:02X}"))
}

/// Moves the calling thread into a network and mount namespace of its own, with lo up and mounts private.
pub fn enter_own() -> Result<()> {
    // SAFETY: the namespaces of this thread alone are left; no descriptor table is shared or lost by it.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
        .context("making a namespace (needs root)")?;
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )
    .context("making this thread's mounts private")?;
    run(Command::new("ip").args(["link", "set", "lo", "up"]))
}

/// Lets the command have mounts of its own: what is mounted among them, others do not see.
pub(crate) fn own_mounts(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec it makes one system call, which concerns the new process alone.
    unsafe { command.pre_exec(|| unshare_unsafe(UnshareFlags::NEWNS).map_err(Into::into)) }
}

/// A node's network namespace.
#[derive(Debug, Clone)]
pub struct NetNs(Arc<OwnedFd>);

impl NetNs {
    /// Makes one.
    pub(crate) fn new() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<OwnedFd> {
            // SAFETY: as above; the thread ends at once and the namespace lives on in the descriptor.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .context("making a network namespace (needs root)")?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        });
        let fd = made.join().map_err(|_| anyhow::anyhow!("the thread that makes a namespace died"))??;
        Ok(Self(Arc::new(fd)))
    }

    /// Moves the calling thread into it.
    pub(crate) fn enter(&self) -> Result<()> {
        let moved = move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network));
        moved.context("entering a network namespace")
    }

    /// Lets the command run in it.
    pub fn inside<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let fd = Arc::clone(&self.0);
        // SAFETY: between fork and exec it makes one system call on a descriptor that the closure keeps open.
        unsafe {
            command.pre_exec(move || {
                move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Into::into)
            })
        }
    }

    /// What `ip` may call it.
    fn path(&self) -> String {
        let fd = rustix::fd::AsRawFd::as_raw_fd(&*self.0);
        format!("/proc/{}/fd/{fd}", std::process::id())
    }

    fn ip(&self, args: &str) -> Result<()> {
        run(self.inside(Command::new("ip").args(args.split(' '))))
    }
}

/// The nodes' network and what is broken in it. Lives in the namespace of the thread that made it.
#[derive(Debug)]
pub struct Network {
    /// The switch's own namespace, since faults may be made from other threads.
    switch: NetNs,
    nodes: Vec<NetNs>,
    /// Where the other ends of nodes' cables are that are not in the switch ([`crate::delay`]).
    elsewhere: Mutex<BTreeMap<u8, NetNs>>,
    /// Pairs (from, to), counted from 1, over which nothing passes.
    broken: Mutex<BTreeSet<(u8, u8)>>,
}

impl Network {
    /// Makes switches in this thread's namespace (see [`enter_own`]), and a namespace for each node, which is plugged into
    /// all of them.
    pub fn new(nodes: u8, links: u8) -> Result<Self> {
        let own: OwnedFd = File::open("/proc/thread-self/ns/net")?.into();
        let switch = NetNs(Arc::new(own));
        switch.ip("link add sw0 type bridge")?;
        switch.ip("addr add 10.86.0.1/16 dev sw0")?;
        switch.ip("link set sw0 up")?;
        let nodes: Vec<NetNs> = (1..=nodes).map(|n| Self::plug(&switch, n)).collect::<Result<_>>()?;
        let network = Self { switch, nodes, elsewhere: Mutex::default(), broken: Mutex::default() };
        (1..links).try_for_each(|link| network.add_switch(link))?;
        Ok(network)
    }

    fn add_switch(&self, link: u8) -> Result<()> {
        self.switch.ip(&format!("link add sw{link} type bridge"))?;
        self.switch.ip(&format!("addr add 10.{}.0.1/16 dev sw{link}", 86 + link))?;
        self.switch.ip(&format!("link set sw{link} up"))?;
        for (n, node) in (1..).zip(&self.nodes) {
            let plug = format!("v{link}n{n}");
            self.switch
                .ip(&format!("link add {plug} type veth peer name eth{link} netns {}", node.path()))?;
            self.switch.ip(&format!("link set {plug} master sw{link} up"))?;
            node.ip(&format!("addr add {}/16 dev eth{link}", link_ip(link, n)))?;
            node.ip(&format!("link set eth{link} up"))?;
        }
        Ok(())
    }

    fn plug(switch: &NetNs, n: u8) -> Result<NetNs> {
        let ns = NetNs::new()?;
        switch.ip(&format!("link add vn{n} type veth peer name eth0 netns {}", ns.path()))?;
        switch.ip(&format!("link set vn{n} master sw0 up"))?;
        ns.ip("link set lo up")?;
        ns.ip("link add vmbr0 type bridge")?;
        ns.ip("link set eth0 master vmbr0 up")?;
        ns.ip(&format!("addr add {}/16 dev vmbr0", node_ip(n)))?;
        ns.ip("link set vmbr0 up")?;
        Ok(ns)
    }

    /// The namespace of node `n`, counted from 1.
    pub fn node(&self, n: u8) -> &NetNs {
        &self.nodes[usize::from(n) - 1]
    }

    /// How many nodes there are.
    pub(crate) fn count(&self) -> u8 {
        self.nodes.len() as u8
    }

    /// Unplugs node `n` from the first switch and plugs it into another namespace, which gets all other nodes' addresses on that link. From
    /// this thread's namespace the node is still reached at its own, by a link of its own.
    pub(crate) fn replug(&self, n: u8, into: &NetNs) -> Result<()> {
        let (ip, node) = (node_ip(n), self.node(n));
        self.switch.ip(&format!("link add t{n} type veth peer name test netns {}", node.path()))?;
        self.switch.ip(&format!("addr add 10.99.{n}.1/24 dev t{n}"))?;
        self.switch.ip(&format!("link set t{n} up"))?;
        node.ip(&format!("addr add 10.99.{n}.2/24 dev test"))?;
        node.ip("link set test up")?;
        self.switch.ip(&format!("route add {ip}/32 via 10.99.{n}.2 dev t{n}"))?;
        self.switch.ip(&format!("link set vn{n} nomaster netns {}", into.path()))?;
        into.ip("link set lo up")?;
        for other in (1..=self.count()).filter(|other| *other != n) {
            into.ip(&format!("addr add {}/16 dev vn{n}", node_ip(other)))?;
        }
        into.ip(&format!("link set vn{n} up"))?;
        node.ip("neigh flush dev vmbr0")?;
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).insert(n, into.clone());
        Ok(())
    }

    /// Switches a whole switch on or off, counted from 0.
    pub fn switch(&self, link: u8, on: bool) -> Result<()> {
        self.switch.ip(&format!("link set sw{link} {}", if on { "up" } else { "down" }))
    }

    /// Plugs node `n` in or out of the first switch; guests on it are cut off with it.
    pub fn link(&self, n: u8, up: bool) -> Result<()> {
        let elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        let at = elsewhere.get(&n).unwrap_or(&self.switch);
        at.ip(&format!("link set vn{n} {}", if up { "up" } else { "down" }))
    }

    /// Drops what goes from one node to another, counted from 1.
    pub fn one_way(&self, from: u8, to: u8) -> Result<()> {
        self.change(|broken| {
            broken.insert((from, to));
        })
    }

    /// Drops what goes between two nodes.
    pub fn partition(&self, a: u8, b: u8) -> Result<()> {
        self.change(|broken| {
            broken.extend([(a, b), (b, a)]);
        })
    }

    /// Mends all that [`Self::one_way`] and [`Self::partition`] broke, and plugs every node in.
    pub fn heal(&self) -> Result<()> {
        self.change(BTreeSet::clear)?;
        (1..=self.nodes.len()).try_for_each(|n| self.link(n as u8, true))
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<(u8, u8)>)) -> Result<()> {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut broken);
        let rules: String =
            broken.iter().map(|(a, b)| format!("    iifname \"vn{a}\" oifname \"vn{b}\" drop\n")).collect();
        // One transaction: the table is made where it is not there yet, deleted, and made anew.
        let script = format!(
            "table bridge cut\ndelete table bridge cut\ntable bridge cut {{\n  chain f {{\n    type filter hook \
             forward priority 0;\n{rules}  }}\n}}\n"
        );
        let mut nft = Command::new("nft");
        let mut child =
            self.switch.inside(nft.args(["-f", "-"]).stdin(Stdio::piped())).spawn().context("running nft")?;
        if let Some(mut input) = child.stdin.take() {
            std::io::Write::write_all(&mut input, script.as_bytes())?;
        }
        ensure!(child.wait()?.success(), "nft refused:\n{script}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pings once from node `a` to node `b`.
    fn reaches(net: &Network, a: u8, b: u8) -> bool {
        // A TCP connection that is refused has been answered: `ping` would be one more program to need.
        let target = node_ip(b);
        let mut probe = Command::new("bash");
        probe.args(["-c", &format!("exec 2>&1; exec 3<>/dev/tcp/{target}/9")]).stdin(Stdio::null());
        let mut bounded = Command::new("timeout");
        bounded.arg("0.5").arg(probe.get_program()).args(probe.get_args()).stdin(Stdio::null());
        let out = net.node(a).inside(&mut bounded).output().unwrap();
        String::from_utf8_lossy(&out.stdout).contains("refused")
    }

    #[test]
    fn networks_are_cut_and_mended() {
        if !crate::skip::is_root() {
            crate::skip!("needs root for network namespaces");
        }
        enter_own().unwrap();
        let net = Network::new(3, 1).unwrap();
        assert!(reaches(&net, 1, 2) && reaches(&net, 1, 3));
        net.partition(1, 2).unwrap();
        assert!(!reaches(&net, 1, 2) && reaches(&net, 1, 3) && reaches(&net, 2, 3));
        net.heal().unwrap();
        assert!(reaches(&net, 1, 2));
        net.link(3, false).unwrap();
        assert!(!reaches(&net, 1, 3) && reaches(&net, 1, 2));
        net.heal().unwrap();
        assert!(reaches(&net, 3, 1));
    }
}
