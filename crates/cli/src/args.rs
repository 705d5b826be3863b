//! The command line of `stead`.

use crate::cmd::{
    cluster, conf, events, fence, ha, mapping, node, raw, sim, storage, tasks, token, vm, witness,
};
use crate::options::Options;
use clap::{Parser, Subcommand};

const LONG: &str = "\
Administer a Stead cluster: virtual machines, storage, high availability and the nodes themselves.

On a node, run it as root: it speaks to the local daemon and needs no password. From elsewhere, name a node with
--server. Every command of the API can also be called as it is: see 'stead api --help'.";

const EXAMPLES: &str = "\
Examples:
  stead status                                     how the cluster is
  stead vm create --name web --memory 2048 --disk local:8 --start
  stead vm migrate 100 pve2                        a running VM stays running
  stead ha add 100                                 start it elsewhere when its node fails
  stead --server https://pve1:8006 --fingerprint AB:CD:… vm list
  stead vm list -o json | jq -r '.[].name'

Exit codes: 0 done, 1 failed, 2 used wrongly.";

/// All of it.
#[derive(Debug, Parser)]
#[command(name = "stead", version, about = "Administer a Stead cluster", long_about = LONG, after_help = EXAMPLES)]
#[command(arg_required_else_help = true, infer_subcommands = true)]
pub struct Cli {
    #[command(flatten)]
    pub options: Options,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the versions of this program and of the daemon
    Version,
    /// Show how the cluster, its nodes and its guests are
    Status,
    /// Nodes
    #[command(subcommand)]
    Node(node::Command),
    /// Virtual machines
    #[command(subcommand)]
    Vm(vm::Command),
    /// Storages and what lies on them
    #[command(subcommand)]
    Storage(storage::Command),
    /// Tasks: what runs, what ran, how it ended
    #[command(subcommand)]
    Task(tasks::Command),
    /// High availability
    #[command(subcommand)]
    Ha(ha::Command),
    /// Fence devices: what takes a lost node's power
    #[command(subcommand)]
    Fence(fence::Command),
    /// Names for what each node has of its own: PCI and USB devices, directories
    #[command(subcommand)]
    Mapping(mapping::Command),
    /// The cluster itself: create, join, remove
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// API tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Call the API as it is
    Api(raw::ApiArgs),
    /// Follow what happens in the cluster
    Events(events::EventArgs),
    /// Show who changed what in the configuration
    History(raw::HistoryArgs),
    /// Files of the configuration, and their past
    #[command(subcommand)]
    Conf(conf::Command),
    /// Simulate: play scenarios on a modelled cluster; needs no daemon
    #[command(subcommand)]
    Sim(sim::Command),
    /// Be a witness: a vote without guests, for a cluster of two nodes
    #[command(
        after_help = "Runs steadd as a witness until it is told to end. Then, on the same machine:\n  stead cluster join \
        INFORMATION      (printed by 'stead cluster join-info' on a node)\n\nA witness keeps the configuration, secrets \
        included, and votes. It needs a disk, little memory, and a link of at most about 200 ms; no virtualization. \
        Put it where it does not fail together with one of the nodes."
    )]
    Witness(witness::Args),
    /// Start a cluster of three nodes with a running VM on this machine, to look at; Ctrl-C ends it
    Demo,
    /// Play a failover on such a cluster: migrate a VM, power off its node, see it recovered
    DemoFailover,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  stead completion bash > /etc/bash_completion.d/stead")]
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_argument_is_taken_for_an_option_of_all_commands() {
        fn check(command: &clap::Command, taken: &[String]) {
            for sub in command.get_subcommands() {
                // A global option is propagated as itself; another argument under its id would shadow it.
                for arg in sub.get_arguments().filter(|a| !a.is_global_set()) {
                    assert!(
                        !taken.contains(&arg.get_id().to_string()),
                        "{} in {}",
                        arg.get_id(),
                        sub.get_name()
                    );
                }
                check(sub, taken);
            }
        }
        let cli = Cli::command();
        let globals: Vec<String> =
            cli.get_arguments().filter(|a| a.is_global_set()).map(|a| a.get_id().to_string()).collect();
        assert!(globals.len() >= 9);
        check(&cli, &globals);
    }

    #[test]
    fn every_command_has_help() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|s| s.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} says nothing about itself");
                for arg in sub.get_arguments() {
                    assert!(arg.get_help().is_some(), "{path} {} has no help", arg.get_id());
                }
                check(sub, &path);
            }
        }
        let mut cli = Cli::command();
        cli.build();
        check(&cli, "stead");
    }
}
