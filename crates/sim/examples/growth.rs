//! How the modelled cluster grows from 10 to 1,000 nodes of 20 guests each, as a table for docs/benchmarks.md:
//! `cargo run --release -p stead-sim --example growth [NODES…]`.
//!
//! Each size starts all of its guests, settles, is measured at rest, then one of its nodes loses power and its 20 guests are recovered.
//! Times of guests are simulated; how long this machine takes for them is given as well.

use std::error::Error;
use std::time::{Duration, Instant};
use stead_sim::cluster::Lab;

/// Guests of each node.
const GUESTS: usize = 20;

/// A cluster in which not all runs after so long never will.
const PATIENCE: Duration = Duration::from_secs(300);

/// This process's memory, MiB.
fn memory() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.split_whitespace().next());
    Ok(kib.ok_or("no VmRSS in /proc/self/status")?.parse::<u64>()? / 1024)
}

/// Goes on until every guest runs. Returns the simulated and the real time that took.
fn settle(lab: &mut Lab) -> Result<(Duration, Duration), Box<dyn Error>> {
    let (began, from) = (Instant::now(), lab.now());
    loop {
        lab.advance(lab.now() + Duration::from_millis(100));
        let view = lab.view();
        if let Some(how) = view.summary.broken {
            return Err(how.into());
        }
        if view.guests.iter().all(|g| g.state == "runs") {
            return Ok((lab.now() - from, began.elapsed()));
        }
        if lab.now() - from > PATIENCE {
            return Err("not all guests run".into());
        }
    }
}

fn measure(nodes: usize) -> Result<(), Box<dyn Error>> {
    let mut lab = Lab::open(&format!("nodes {nodes}\nguests {}\n", nodes * GUESTS))?;
    let (booted, boot_cost) = settle(&mut lab)?;
    lab.advance(lab.now() + Duration::from_secs(5));
    let began = Instant::now();
    lab.advance(lab.now() + Duration::from_secs(5));
    let second = began.elapsed() / 5;
    let began = Instant::now();
    let view = lab.view();
    let look = began.elapsed();
    let victim = nodes / 2;
    let at = lab.now();
    lab.act(&format!("power n{victim} off"))?;
    lab.advance(at + Duration::from_millis(100));
    let (_, cost) = settle(&mut lab)?;
    let outages =
        view.guests.iter().filter(|g| g.node + 1 == victim).filter_map(|g| lab.tale(g.sid)).map(|t| t.outage);
    let mut outages: Vec<Duration> = outages.map(|o| o.last).collect();
    outages.sort();
    let (Some(first), Some(last)) = (outages.first(), outages.last()) else {
        return Err("no guest was on it".into());
    };
    println!(
        "| {nodes} | {} | {:.1} s in {:.1} s | {:.0} ms | {:.1} s to {:.1} s in {:.1} s | {:.1} ms | {} MiB |",
        view.guests.len(),
        booted.as_secs_f64(),
        boot_cost.as_secs_f64(),
        second.as_secs_f64() * 1e3,
        first.as_secs_f64(),
        last.as_secs_f64(),
        cost.as_secs_f64(),
        look.as_secs_f64() * 1e3,
        memory()?,
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let sizes = if sizes.is_empty() { vec![10, 30, 100, 300, 1000] } else { sizes };
    println!(
        "| nodes | guests | all guests started, in | a second at rest | {GUESTS} guests recovered after, in | a look | memory |"
    );
    println!("|---|---|---|---|---|---|---|");
    sizes.into_iter().try_for_each(measure)
}
