//! Three of Stead's configuration stores against three members of etcd, in one run and on one disk, under the same load.
//!
//! Each of Stead's is a process of its own with what the daemon has for it - `stead-conf`, and Raft's streams over mutual TLS - and a
//! port for the load. etcd is Debian's, with its defaults: it syncs what it acknowledges, and speaks without TLS. The load is an optimised
//! program, `conf-bench` of `stead-agents`, which speaks gRPC to etcd, and much the same to Stead.

use super::super::{Figures, Report, runs, verdict};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::{Command, Stdio};
use stead_testbed::addr::Block;
use stead_testbed::cluster::program;

/// From so many writers on the aim is half as much again.
const MANY: u64 = 16;

#[test]
fn conf_beside_etcd() {
    if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
        stead_testbed::skip!("etcd is missing (scripts/deps.sh bench)");
    }
    if let Err(e) = measured() {
        panic!("{e:#}");
    }
}

fn measured() -> Result<()> {
    let load = program("examples/conf-bench")
        .context("it is built by `cargo build --release -p stead-agents --example conf-bench`")?;
    let block = Block::take()?;
    let port = block.port(3, 21_000, 3)?;
    // Where testbeds are: on the same disk.
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(load);
    command.arg("load").arg(dir.path()).args((1..=3).map(|n| block.ip(n).to_string())).arg(port.to_string());
    command.env("ROUNDS", runs(3).to_string()).stdin(Stdio::null());
    let out = command.stderr(Stdio::inherit()).output().context("running the load")?;
    ensure!(out.status.success(), "the load ended with {}", out.status);
    let lines = String::from_utf8(out.stdout)?;
    let all: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    report(&all)
}

/// A figure's median over the rounds, of one store.
fn median(all: &[Value], store: &str, is: impl Fn(&Value) -> bool, of: impl Fn(&Value) -> &Value) -> f64 {
    let rounds = all.iter().filter(|v| v["store"] == store && is(v));
    rounds.filter_map(|v| of(v).as_f64()).collect::<Figures>().p50()
}

fn report(all: &[Value]) -> Result<()> {
    let mut report = Report::new("The configuration beside etcd");
    report.table(
        "clients, at | Stead: a second | p50, ms | p99, ms | etcd: a second | p50, ms | p99, ms | aim",
    );
    let kinds: Vec<u64> = (0..).take_while(|n| all.iter().any(|v| v["kind"] == *n)).collect();
    for kind in kinds {
        let is = |v: &Value| v["kind"] == kind;
        let first = all.iter().find(|v| is(v)).context("a kind without a round")?;
        let failed: u64 = all.iter().filter(|v| is(v)).filter_map(|v| v["failed"].as_u64()).sum();
        ensure!(failed == 0, "{failed} requests were refused: {first}");
        let of = |store, key: &str| median(all, store, is, |v| &v[key]);
        let cells = |store| {
            let (rate, p50, p99) = (of(store, "per_s"), of(store, "p50"), of(store, "p99"));
            format!("{rate:.0} | {p50:.2} | {p99:.2}")
        };
        let times = of("stead", "per_s") / of("etcd", "per_s");
        let clients = first["clients"].as_u64().context("clients")?;
        let bytes = first["bytes"].as_u64().context("bytes")?;
        let wanted = if bytes > 0 && clients >= MANY { 1.5 } else { 1.0 };
        let what = match bytes {
            0 => format!("{clients} × {}", first["figure"].as_str().unwrap_or("?")),
            _ => format!("{clients} × write of {bytes} bytes"),
        };
        let at = if first["leader"] == true { "the leader" } else { "the others" };
        let aim = verdict(&format!("≥ {wanted} ×: {times:.2} ×"), times >= wanted);
        let slower = of("stead", "p99") > of("etcd", "p99");
        let aim = if slower { format!("{aim}; p99 **above etcd's**") } else { aim };
        report.row(&format!("{what}, {at} | {} | {} | {aim}", cells("stead"), cells("etcd")));
    }
    watches(all, &mut report);
    memory(all, &mut report);
    report.publish()
}

fn watches(all: &[Value], report: &mut Report) {
    let is = |v: &Value| v["figure"] == "watch";
    report.text("A watcher at another member than the leader, nothing else going on. From the moment at which a writer sends 200 bytes to the leader:");
    report.table("ms, p50 and p99 | Stead | etcd | aim");
    let of = |store, key: &str, n: usize| median(all, store, is, |v| &v[key][n]);
    for (what, key) in [("→ the writer has its answer", "put"), ("→ the watcher has the value", "seen")] {
        let cell = |store| format!("{:.2}, {:.2}", of(store, key, 0), of(store, key, 1));
        let met = of("stead", key, 0) <= of("etcd", key, 0);
        report.row(&format!(
            "{what} | {} | {} | {}",
            cell("stead"),
            cell("etcd"),
            verdict("p50 ≤ etcd's", met)
        ));
    }
}

fn memory(all: &[Value], report: &mut Report) {
    report.text("Memory, the largest of three. Stead's holds each key's last changes, 16 MiB of them; etcd's every version since its start.");
    report.table("MiB resident | Stead | etcd | aim");
    for (what, when) in [("1,000 keys of 200 bytes", "before"), ("after all of the above", "afterwards")] {
        let of = |store: &str| {
            let rows = all.iter().filter(|v| v["store"] == store && v["when"] == when);
            rows.filter_map(|v| v["rss"].as_f64()).collect::<Figures>().max()
        };
        let (ours, theirs) = (of("stead"), of("etcd"));
        let aim = verdict("≤ etcd's", ours <= theirs);
        report.row(&format!("{what} | {ours:.1} | {theirs:.1} | {aim}"));
    }
}
