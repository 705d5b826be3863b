//! `stead sim`: the cluster's own decisions on a modelled cluster. It needs no daemon.

use crate::failure::Failure;
use crate::output;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use stead_sim::{cluster, scenario};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Play a scenario, and print what happened
    #[command(
        after_help = "Examples:\n  stead sim run scenarios/loss-of-power.txt --story\n  stead sim run test-basic5\n\n\
        A folder holds 'cmdlist', 'hardware_status', 'service_config' and so on; a file is a scenario of Stead's own. \
        The result is one JSON object: 'events', and 'final' with services and nodes. Fails if a guest ran twice."
    )]
    Run(RunArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// A folder or a file
    pub path: PathBuf,
    /// Print a line for each event instead, with the reasons of the manager
    #[arg(long)]
    pub story: bool,
}

/// Does it.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => play(&args),
    }
}

fn play(args: &RunArgs) -> Result<(), Failure> {
    let named = |e: String| Failure::failed(format!("{}: {e}", args.path.display()));
    let scenario = scenario::open(&args.path).map_err(|e| named(e.to_string()))?;
    let story = cluster::play(&scenario).map_err(|e| named(e.to_string()))?;
    if args.story {
        output::print(story.to_text().trim_end())?;
    } else {
        output::json(&story.to_json())?;
    }
    match story.broken {
        None => Ok(()),
        Some(why) => Err(named(format!("an invariant is broken: {why}"))),
    }
}
