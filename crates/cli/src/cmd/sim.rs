//! `stead sim`: the cluster's own decisions on a modelled cluster. It needs no daemon.

use crate::failure::Failure;
use crate::output::{self, Format};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use stead_sim::cluster::{Conf, Cut, Finding, Outcome, Plan, Plant, Progress, Search, replay, shrink};
use stead_sim::serve::Server;
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
    /// Search random faults for one that breaks a promise of HA
    #[command(
        after_help = "Examples:\n  stead sim search --seeds 100000\n  stead sim search --hours 1000 --nodes 5 --guests 6\n  \
        stead sim search --plant lost-not-sticky\n  stead sim search --conf real --seeds 1000\n\n\
        A seed is one history of a cluster: faults and users' changes drawn at random for --length seconds, then all faults \
        end and the cluster heals. The same seed is always the same history. What is found is shrunk to a short story.\n\n\
        Exit code: 0 nothing is broken; 1 something is, and the command that replays it is printed; 2 called wrongly."
    )]
    Search(SearchArgs),
    /// Tell the whole history of a seed
    #[command(
        after_help = "Examples:\n  stead sim replay 3528\n  stead sim replay 3528 --plant thaw-in-handover --only 4,7,9 --first-guests 1\n\n\
        --only and --first-... leave parts out, as shrinking does. Exit code: 1 if a promise is broken."
    )]
    Replay(ReplayArgs),
    /// A cluster to learn on, in your browser: pull plugs, cut cables, watch the guests, go back in time
    #[command(
        after_help = "Examples:\n  stead sim serve\n  stead sim serve --nodes 1000 --guests 20000 --profile fast\n  \
        stead sim serve --scenario story.txt\n\n\
        Prints the address of the page, and serves it until Ctrl-C. Nobody signs in, so it listens on this machine's own addresses \
        only; from elsewhere use a tunnel (ssh -L 8086:127.0.0.1:8086 HOST). 'Save story' on the page gives a file that --scenario \
        opens again and that 'stead sim run --story' plays."
    )]
    Serve(ServeArgs),
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where the page is; port 0 is any free one
    #[arg(long, default_value = "127.0.0.1:8086", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=1000), value_name = "N")]
    pub nodes: u32,
    /// Guests, in turn on all nodes [default: three for each node]
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=20_000), value_name = "N")]
    pub guests: Option<u32>,
    /// What is left to chance comes from this number
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub seed: u64,
    /// Times of leases and fencing
    #[arg(long, default_value = "default", value_parser = ["fast", "default", "wan"])]
    pub profile: String,
    /// A scenario, or a saved story, in place of all that
    #[arg(long, value_name = "FILE", conflicts_with_all = ["nodes", "guests", "seed", "profile"])]
    pub scenario: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// A folder or a file
    pub path: PathBuf,
    /// Print a line for each event instead, with the reasons of the manager
    #[arg(long)]
    pub story: bool,
}

/// How a history is made.
#[derive(Debug, Args)]
pub struct Shape {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9), value_name = "N")]
    pub nodes: u8,
    /// Guests, most of them under HA from the beginning
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    pub guests: u32,
    /// For how long faults go on in each history, in simulated seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(10..=86_400), value_name = "SECONDS")]
    pub length: u32,
    /// By how many thousandths clocks err at most. The promise rests on 10: beyond it guests can run twice
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=500), value_name = "PER MILLE")]
    pub drift: u32,
    /// Who keeps the configuration: a model of it, or on each node the real driver over a modelled disk
    #[arg(long, default_value = "model", value_parser = ["model", "real"], value_name = "model|real")]
    pub conf: String,
    /// Plant a mistake, to see that it is found (see 'stead sim search --list-plants')
    #[arg(long, value_name = "NAME", value_parser = plant)]
    pub plant: Option<Plant>,
}

#[derive(Debug, Args)]
pub struct SearchArgs {
    /// How many seeds [default: 10000, or as many as --hours allows]
    #[arg(long, value_name = "N")]
    pub seeds: Option<u64>,
    /// The first seed
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub first: u64,
    /// Stop when so many hours have been simulated, over all seeds
    #[arg(long, value_name = "H")]
    pub hours: Option<f64>,
    #[command(flatten)]
    pub shape: Shape,
    /// List the mistakes that can be planted
    #[arg(long)]
    pub list_plants: bool,
    /// Threads [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Print the whole history of what is found, instead of the short story
    #[arg(long)]
    pub trace: bool,
}

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The seed
    pub seed: u64,
    #[command(flatten)]
    pub shape: Shape,
    /// Only these acts, by their numbers
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    pub only: Option<Vec<usize>>,
    /// Only the first so many nodes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    pub first_nodes: Option<u8>,
    /// Only the first so many guests
    #[arg(long, value_name = "N")]
    pub first_guests: Option<u32>,
    /// Nothing but the acts is left to chance: shortest delays, clocks that do not err
    #[arg(long)]
    pub calm: bool,
}

fn plant(name: &str) -> Result<Plant, String> {
    Plant::named(name).ok_or_else(|| "no such mistake: see 'stead sim search --list-plants'".to_owned())
}

/// Does it.
pub async fn run(command: Command, format: Format) -> Result<(), Failure> {
    match command {
        Command::Run(args) => play(&args),
        Command::Search(args) if args.list_plants => list_plants(format),
        Command::Search(args) => search(&args, format),
        Command::Replay(args) => tell(&args, format),
        Command::Serve(args) => serve(&args, format).await,
    }
}

async fn serve(args: &ServeArgs, format: Format) -> Result<(), Failure> {
    let scenario = match &args.scenario {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?
        }
        None => {
            let ServeArgs { nodes, seed, profile, .. } = args;
            let guests = args.guests.unwrap_or(3 * nodes);
            format!("nodes {nodes}\nguests {guests}\nseed {seed}\nprofile {profile}\n")
        }
    };
    let failed = |e: &dyn std::fmt::Display| Failure::failed(e.to_string());
    let server = Server::open(args.listen, scenario).await.map_err(|e| failed(&e))?;
    let url = format!("http://{}/", server.address());
    if format == Format::Json {
        output::json(&json!({"url": url}))?;
    } else {
        output::print(&format!("The simulator is at {url} (Ctrl-C ends it)."))?;
    }
    tokio::select! {
        () = server.serve() => Ok(()),
        ended = tokio::signal::ctrl_c() => ended.map_err(|e| failed(&e)),
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

fn list_plants(format: Format) -> Result<(), Failure> {
    let row = |p: &Plant| json!({"name": p.name(), "what": p.what()});
    let rows: Vec<Value> = Plant::ALL.iter().map(row).collect();
    format
        .list(&json!(rows), &[("NAME", "name", output::Kind::Text), ("MISTAKE", "what", output::Kind::Text)])
}

impl Shape {
    fn plan(&self) -> Plan {
        let plan = Plan {
            nodes: self.nodes.into(),
            guests: self.guests,
            faults: Duration::from_secs(self.length.into()),
            drift: self.drift,
            conf: if self.is_real() { Conf::Real } else { Conf::Modelled },
            ..Plan::default()
        };
        self.plant.map_or(plan, |plant| plant.plan(plan))
    }

    fn is_real(&self) -> bool {
        self.conf == "real"
    }

    /// The options that differ from the defaults, as they are written.
    fn options(&self) -> String {
        let mut out = String::new();
        let mut say = |name: &str, value: u32, default: u32| {
            if value != default {
                out.push_str(&format!(" --{name} {value}"));
            }
        };
        say("nodes", self.nodes.into(), 3);
        say("guests", self.guests, 3);
        say("length", self.length, 60);
        say("drift", self.drift, 10);
        if self.is_real() {
            out.push_str(" --conf real");
        }
        if let Some(plant) = self.plant {
            out.push_str(&format!(" --plant {}", plant.name()));
        }
        out
    }
}

/// The options that leave out what was left out.
fn cut_options(cut: &Cut) -> String {
    let mut out = String::new();
    if let Some(only) = &cut.only {
        let all: Vec<String> = only.iter().map(ToString::to_string).collect();
        out.push_str(&format!(" --only {}", all.join(",")));
    }
    if let Some(nodes) = cut.nodes {
        out.push_str(&format!(" --first-nodes {nodes}"));
    }
    if let Some(guests) = cut.guests {
        out.push_str(&format!(" --first-guests {guests}"));
    }
    if cut.calm {
        out.push_str(" --calm");
    }
    out
}

fn hours(time: Duration) -> f64 {
    time.as_secs_f64() / 3600.0
}

fn progress_bar(format: Format) -> ProgressBar {
    if format == Format::Json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn line(p: &Progress) -> String {
    format!(
        "{} seeds, {:.1} simulated hours: {} recoveries, {} resets, {} thaws, {} live migrations, {} confirmed power-offs",
        p.seeds,
        hours(p.time),
        p.recoveries,
        p.resets,
        p.thaws,
        p.moves,
        p.offs
    )
}

fn search(args: &SearchArgs, format: Format) -> Result<(), Failure> {
    if args.hours.is_some_and(|h| !h.is_finite() || h <= 0.0) {
        return Err(Failure::usage("--hours must be more than 0"));
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let search = Search {
        first: args.first,
        seeds: args.seeds.unwrap_or(if args.hours.is_some() { u64::MAX } else { 10_000 }),
        time: args.hours.map(|h| Duration::try_from_secs_f64(h * 3600.0).unwrap_or(Duration::MAX)),
        plan: args.shape.plan(),
        jobs: args.jobs.map_or(cpus, usize::from),
    };
    let (began, bar) = (Instant::now(), progress_bar(format));
    let finding = search.run(|p| bar.set_message(line(p)));
    bar.finish_and_clear();
    let took = began.elapsed();
    let shrunk = finding.found.as_ref().and_then(|f| {
        if args.trace {
            let whole = Cut::default();
            let outcome = replay(f.seed, &search.plan, &whole, true);
            Some((whole, outcome))
        } else {
            shrink(f.seed, &search.plan)
        }
    });
    show(args, format, &finding, shrunk.as_ref(), took)
}

fn show(
    args: &SearchArgs,
    format: Format,
    finding: &Finding,
    shrunk: Option<&(Cut, Outcome)>,
    took: Duration,
) -> Result<(), Failure> {
    let p = &finding.progress;
    let rate = hours(p.time) / took.as_secs_f64().max(1e-9);
    let found = finding.found.as_ref().zip(shrunk).map(|(f, (cut, outcome))| {
        let whole = format!("stead sim replay {}{}", f.seed, args.shape.options());
        (f, cut, outcome, whole)
    });
    if format == Format::Json {
        let of = |(f, cut, outcome, whole): &(&cluster::Found, &Cut, &Outcome, String)| {
            json!({
                "seed": f.seed, "invariant": f.breach.invariant, "at": f.breach.at.as_secs_f64(), "how": f.breach.how,
                "replay": whole, "replay_short": format!("{whole}{}", cut_options(cut)), "story": outcome.story,
            })
        };
        output::json(&json!({
            "seeds": p.seeds, "simulated_hours": hours(p.time), "seconds": took.as_secs_f64(),
            "simulated_hours_per_second": rate, "events": p.events, "recoveries": p.recoveries,
            "resets": p.resets, "thaws": p.thaws, "live_migrations": p.moves,
            "confirmed_power_offs": p.offs,
            "found": found.as_ref().map(of),
        }))?;
    } else {
        output::print(&line(p))?;
        output::print(&format!("in {:.1} s: {rate:.2} simulated hours per second", took.as_secs_f64()))?;
        if let Some((_, cut, outcome, whole)) = &found {
            output::print(&format!("\n{}\n\n{whole}{}", outcome.story.join("\n"), cut_options(cut)))?;
        }
    }
    match found {
        None => Ok(()),
        Some((f, _, _, whole)) => {
            Err(Failure::failed(format!("seed {}: {}\nthe whole of it: {whole}", f.seed, f.breach)))
        }
    }
}

fn tell(args: &ReplayArgs, format: Format) -> Result<(), Failure> {
    let cut = Cut {
        only: args.only.as_ref().map(|all| all.iter().copied().collect::<BTreeSet<_>>()),
        nodes: args.first_nodes.map(usize::from),
        guests: args.first_guests,
        calm: args.calm,
    };
    let plan = args.shape.plan();
    if cut.nodes.is_some_and(|n| n > plan.nodes) || cut.guests.is_some_and(|g| g > plan.guests) {
        return Err(Failure::usage("--first-nodes and --first-guests leave out, they add nothing"));
    }
    let outcome = replay(args.seed, &plan, &cut, true);
    if format == Format::Json {
        output::json(&json!({
            "seed": args.seed, "story": outcome.story, "simulated_seconds": outcome.time.as_secs_f64(),
            "broken": outcome.broken.as_ref().map(ToString::to_string),
        }))?;
    } else {
        output::print(&outcome.story.join("\n"))?;
    }
    match outcome.broken {
        None => Ok(()),
        Some(breach) => Err(Failure::failed(format!("seed {}: {breach}", args.seed))),
    }
}
