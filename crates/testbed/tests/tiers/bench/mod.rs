//! The figures of docs/benchmarks.md: `make bench`. Ratios are taken within one run, side by side.
//!
//! A benchmark measures and says whether an aim is met; it fails only where it could not measure, or where something
//! wrong was seen on the way. What it finds is printed, and appended to the file that `STEAD_BENCH_REPORT` names.
//! `STEAD_BENCH_RUNS` sets how often each measurement is repeated.

mod conf;
mod events;
pub mod failover;
pub mod hand;
mod libvirt;
mod local_disks;
mod many;
mod memory;
mod migration;
mod pair;
mod saved;
mod start;
pub mod trace;

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};
use stead_testbed::node::Node;
use stead_testbed::{ApiClient, Cluster};

/// How often a measurement is repeated, unless the user says otherwise.
pub fn runs(default: usize) -> usize {
    std::env::var("STEAD_BENCH_RUNS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(default)
}

/// Seconds since 1970, on the clock that QEMU stamps its traces with.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Measurements of one kind.
#[derive(Debug, Clone, Default)]
pub struct Figures(pub Vec<f64>);

impl Figures {
    fn sorted(&self) -> Vec<f64> {
        let mut all = self.0.clone();
        all.sort_by(f64::total_cmp);
        all
    }

    pub fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(f64::NAN)
    }

    pub fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(f64::NAN)
    }

    /// The median: between the two in the middle where there are two.
    pub fn p50(&self) -> f64 {
        let all = self.sorted();
        match all.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => all[n / 2],
            n => f64::midpoint(all[n / 2 - 1], all[n / 2]),
        }
    }

    /// The least value that a share of all does not exceed (nearest rank).
    pub fn quantile(&self, share: f64) -> f64 {
        let all = self.sorted();
        let rank = (share * all.len() as f64).ceil() as usize;
        all.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// Cells of a table: how many, min, p50, max.
    fn cells(&self, decimals: usize) -> String {
        let cell = |x: f64| {
            if x.is_nan() { "-".to_owned() } else { format!("{x:.decimals$}") }
        };
        format!("{} | {} | {} | {}", self.0.len(), cell(self.min()), cell(self.p50()), cell(self.max()))
    }

    /// One cell of a table: min, p50, max; empty where there is nothing.
    fn cell(&self, decimals: usize) -> String {
        if self.p50().is_nan() {
            return String::new();
        }
        format!("{:.decimals$}, **{:.decimals$}**, {:.decimals$}", self.min(), self.p50(), self.max())
    }
}

impl FromIterator<f64> for Figures {
    fn from_iter<T: IntoIterator<Item = f64>>(all: T) -> Self {
        Self(all.into_iter().collect())
    }
}

/// The process of a program which a node runs once.
fn pid_of(node: &Node, program: &str) -> Result<i32> {
    let is_it =
        |command: &str| command.split(' ').next().is_some_and(|c| c.ends_with(&format!("/{program}")));
    let all = node.processes();
    let found = all.iter().find(|p| is_it(&p.command)).with_context(|| format!("no {program} runs"))?;
    Ok(found.pid)
}

/// The one process that has begun to write a trace since these were known.
fn pids_since(traces: &trace::Traces, known: &BTreeSet<i32>) -> Result<i32> {
    let new: Vec<i32> = traces.pids().difference(known).copied().collect();
    anyhow::ensure!(new.len() == 1, "one new QEMU was expected: {new:?}");
    Ok(new[0])
}

/// Whether an aim is met, as a cell says it.
pub fn verdict(aim: &str, met: bool) -> String {
    format!("{aim}: {}", if met { "met" } else { "**missed**" })
}

/// What one benchmark has found.
#[derive(Debug)]
pub struct Report(String);

impl Report {
    pub fn new(title: &str) -> Self {
        Self(format!("### {title}\n\n"))
    }

    /// Begins a table.
    pub fn table(&mut self, head: &str) {
        let rule = "---|".repeat(head.split('|').count());
        let _ = writeln!(self.0, "| {head} |\n|{rule}");
    }

    pub fn row(&mut self, cells: &str) {
        let _ = writeln!(self.0, "| {cells} |");
    }

    pub fn text(&mut self, text: &str) {
        let _ = writeln!(self.0, "\n{text}\n");
    }

    /// Prints it, and appends it to the report's file.
    pub fn publish(mut self) -> Result<()> {
        self.0.push('\n');
        println!("\n{}", self.0);
        let Some(path) = std::env::var_os("STEAD_BENCH_REPORT") else { return Ok(()) };
        let mut file = std::fs::File::options().create(true).append(true).open(&path)?;
        file.write_all(self.0.as_bytes()).with_context(|| format!("writing {}", path.display()))
    }
}

/// Sets options of a VM that is not running.
pub async fn set(
    cluster: &Cluster,
    api: &ApiClient,
    node: usize,
    vmid: u32,
    form: &[(&str, &str)],
) -> Result<()> {
    let path = format!("/nodes/{}/qemu/{vmid}/config", cluster.node(node).name());
    api.put(&path, form).await.with_context(|| format!("setting options of VM {vmid}")).map(drop)
}

#[test]
fn the_median_lies_in_the_middle() {
    let of = |all: &[f64]| Figures(all.to_vec());
    assert!((of(&[3.0, 1.0, 2.0]).p50() - 2.0).abs() < 1e-9);
    assert!((of(&[4.0, 1.0, 2.0, 3.0]).p50() - 2.5).abs() < 1e-9);
    let hundred = Figures((1..=100).map(f64::from).collect());
    assert!((hundred.quantile(0.99) - 99.0).abs() < 1e-9 && (hundred.quantile(1.0) - 100.0).abs() < 1e-9);
    assert!((of(&[1.0, 2.0]).quantile(0.99) - 2.0).abs() < 1e-9 && of(&[]).quantile(0.5).is_nan());
    assert_eq!(of(&[0.2, 0.1]).cells(1), "2 | 0.1 | 0.2 | 0.2");
    assert_eq!(of(&[]).cells(1), "0 | - | - | -");
}
