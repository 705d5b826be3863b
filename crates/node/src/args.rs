//! The command line of `steadd`.

use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use stead_model::NodeName;

/// Stead's daemon: one a node.
///
/// On its first start it founds a cluster of this one node, to which others can be joined, or which can be
/// joined to another.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Args {
    /// Folder for everything this node keeps.
    #[arg(long, default_value = "/var/lib/stead", env = "STEAD_DIR")]
    pub dir: PathBuf,
    /// The node's name; default: the host's name. It cannot be changed after the first start.
    #[arg(long)]
    pub name: Option<NodeName>,
    /// Address and port of the one TLS port, as other nodes reach it.
    #[arg(long, default_value = "127.0.0.1:8006")]
    pub listen: SocketAddr,
    /// What the fence process may do as its last resort: `none`, `socket:PATH` (a test bed's switch), `watchdog:PATH` (one with a watchdog) or `host`
    /// (accepted only where the package has armed the host).
    #[arg(long, default_value = "none")]
    pub power: String,
    /// First start: root@pam's password, of at least 8 characters, is the first line of this file. Without it
    /// nobody can sign in over the network; `stead` on the node itself works without signing in.
    #[arg(long)]
    pub root_password_file: Option<PathBuf>,
    /// First start: the name of the cluster.
    #[arg(long, default_value = "stead")]
    pub cluster_name: String,
    /// Forwards a port of guests with user-mode network: `GUESTPORT:BASE` makes GUESTPORT reachable at this
    /// node's address, port BASE + VMID.
    #[arg(long, value_name = "GUESTPORT:BASE", value_parser = parse_forward)]
    pub user_net_forward: Option<(u16, u16)>,
    /// How guests' network devices reach the bridges that they name: `bridge`, by a tap (a daemon that may make none uses
    /// user-mode, with a warning), or `user`, always by a user-mode network of their own.
    #[arg(long, value_enum, default_value = "bridge")]
    pub network: Network,
    /// Be a witness: vote and keep the configuration, and run no guests. For a third vote beside two nodes. It cannot be
    /// changed once this machine is in a cluster.
    #[arg(long)]
    pub witness: bool,
    /// For tests: after how many seconds of silence a voter loses its vote, instead of 300. Votes that are badly spread wait no longer,
    /// either.
    #[arg(long, value_name = "SECONDS", hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub replace_voters_after: Option<u64>,
    /// Never use hardware acceleration.
    #[arg(long)]
    pub no_kvm: bool,
    /// The fence process's program; default: beside this one.
    #[arg(long)]
    pub fenced: Option<PathBuf>,
    /// The service manager runs the fence process: wait for it, and never start one.
    #[arg(long, conflicts_with = "fenced")]
    pub await_fence: bool,
    /// Where the fence agents are: the programs that speak to fence devices.
    #[arg(long, value_name = "DIR", default_value = stead_ops::fence_devices::agent::AGENTS)]
    pub fence_agents: PathBuf,
    #[command(flatten)]
    pub files: stead_files::FilesArgs,
    #[command(subcommand)]
    pub offline: Option<stead_home::offline::Offline>,
}

/// How guests' network devices reach bridges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// By taps.
    Bridge,
    /// Not at all: each has a user-mode network.
    User,
}

fn parse_forward(text: &str) -> Result<(u16, u16), String> {
    let parts = text.split_once(':').and_then(|(g, b)| Some((g.parse().ok()?, b.parse().ok()?)));
    match parts {
        Some((guest, base)) if guest > 0 && base > 0 && base <= 64_000 => Ok((guest, base)),
        _ => Err("expected GUESTPORT:BASE, e.g. 80:18000, with a base of at most 64000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
        assert_eq!(parse_forward("80:18000"), Ok((80, 18000)));
        assert!(parse_forward("80").is_err() && parse_forward("80:65000").is_err());
    }
}
