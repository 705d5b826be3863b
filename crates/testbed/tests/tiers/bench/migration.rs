//! Live migration of a guest of 1 GiB over shared storage: Stead, QEMU by hand, and libvirt.
//!
//! Three guests boot the same image with the same machine, idle for the same time, and move to and fro in turn between the same two
//! networks: Stead's from node to node; the second from one process to the next with Stead's own command line; the third under libvirt.
//! The second moves once as plain bytes and once under QEMU's own TLS, which tells what encryption costs on the machine. Times are
//! QEMU's own words on either side; what users see is asked of the guest, which takes its address along.

use super::super::support::{BOOT, cluster, namespaces, one_writer, start};
use super::hand::Line;
use super::libvirt::Libvirt;
use super::pair::Pair;
use super::trace::Traces;
use super::{Figures, Report, now, pid_of, runs, set, verdict};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use stead_testbed::api::{escape, until};
use stead_testbed::poll::{Counts, GuestAnswer, ask, write_memory};
use stead_testbed::watch::{Seen, Watch};
use stead_testbed::{ApiClient, Cluster};

pub const VM: u32 = 100;
pub const MEMORY_MIB: &str = "1024";
/// All guests have been up for so long before the first migration.
const IDLE_MS: u64 = 10_000;
/// What a guest that writes has in hand, and writes a second.
const WRITTEN_MIB: u32 = 256;
const MIB_A_SECOND: u32 = 200;
/// What is seen before and after a migration counts as much.
const AROUND: Duration = Duration::from_millis(500);

/// One migration; times in ms.
#[derive(Debug, Clone)]
pub struct Move {
    /// The source was sending.
    sending: f64,
    /// From the order to the running target.
    whole: f64,
    /// No copy's CPUs ran.
    pause: f64,
    /// The part of it after the source had sent all: who owns it now, and that it may run.
    handed: f64,
    mib: f64,
    /// CPU time of all nodes' daemons meanwhile; NaN where none takes part.
    daemons: f64,
    /// MiB a second that the guest wrote before.
    rate: f64,
    seen: Seen,
}

impl Move {
    /// What the two processes say of it.
    pub fn of(traces: &Traces, source: i32, target: i32, begin: f64, mib: f64) -> Result<Self> {
        let (source, target) = (traces.of(source)?, traces.of(target)?);
        let running = target.running().context("the target does not run")?;
        let stopped = source.stopped().context("the source has not stopped")?;
        let sending = source.sending().context("the source does not say that it has completed")?;
        let sent = source.sent().context("the source does not say when it has completed")?;
        let (sending, whole, pause) = (sending * 1e3, (running - begin) * 1e3, (running - stopped) * 1e3);
        let (handed, daemons, rate) = ((running - sent) * 1e3, f64::NAN, f64::NAN);
        Ok(Self { sending, whole, pause, handed, mib, daemons, rate, seen: Seen::default() })
    }
}

#[test]
fn live_migration_of_a_guest_that_idles() {
    measure(false);
}

#[test]
fn live_migration_of_a_guest_that_writes() {
    measure(true);
}

/// Whom it is done by, as the columns have it.
const BY: [&str; 4] = ["Stead", "by hand", "by hand, QEMU's TLS", "libvirt"];

fn measure(writes: bool) {
    namespaces(async |builder| {
        let cluster = cluster(builder).await?;
        let traces = Traces::new(cluster.dir())?;
        cluster.create_http_guest(0, VM, "move").await?;
        let api = cluster.api(2).await?;
        set(&cluster, &api, 0, VM, &[("args", &traces.args()), ("memory", MEMORY_MIB)]).await?;
        let mut pair = Pair::prepare(&cluster)?;
        let mut libvirt = match Libvirt::missing() {
            Some(why) => {
                println!("{why}");
                None
            }
            None => Some(Libvirt::prepare(&cluster)?),
        };
        start(&cluster, &api, 0, VM).await?;
        pair.begin(&Line::of(cluster.node(0), VM)?)?;
        if let Some(libvirt) = &mut libvirt {
            libvirt.begin(&cluster, &traces).await.context("libvirt")?;
        }
        let places = [cluster.guest_places(VM)[0], Pair::place(), Pair::place(), Libvirt::place()];
        let mut all: [Vec<Move>; 4] = Default::default();
        for n in 0..=runs(10) {
            let (from, to) = (n % 2, (n + 1) % 2);
            for (who, name) in BY.iter().enumerate() {
                let moved = match (who, &mut libvirt) {
                    (0, _) => {
                        let work = async || through_api(&cluster, &api, &traces, from, to).await;
                        watched(places[who], writes, work).await
                    }
                    // Slower than the guest writes on two CPUs: one took 54 s, and sent 4.6 GiB.
                    (2, _) if writes => continue,
                    (1 | 2, _) => {
                        watched(places[who], writes, async || pair.migrate(&traces, who == 2)).await
                    }
                    (_, Some(libvirt)) => {
                        watched(places[who], writes, async || libvirt.migrate(&traces)).await
                    }
                    (_, None) => continue,
                };
                let moved = moved.with_context(|| format!("run {n}, {name}"))?;
                println!("run {n}, {name}: {moved:.0?}");
                // The first finds memory as the boot has left it.
                if n > 0 {
                    all[who].push(moved);
                }
            }
        }
        one_writer(&cluster, VM)?;
        report(&all, writes)
    });
}

/// Has users watch the guest while it moves.
async fn watched(place: SocketAddr, writes: bool, work: impl AsyncFnOnce() -> Result<Move>) -> Result<Move> {
    let before = idle(place).await?;
    if writes {
        write_memory(place, WRITTEN_MIB, MIB_A_SECOND).await?;
        until("the guest writes", BOOT, async || {
            let written = ask(place, Duration::from_secs(1)).await?.written_mib - before.written_mib;
            Ok((written > u64::from(WRITTEN_MIB + MIB_A_SECOND)).then_some(()))
        })
        .await?;
    }
    let watch = Watch::start(place)?;
    let (first, begin) = (ask(place, BOOT).await?, Instant::now());
    tokio::time::sleep(if writes { 2 * AROUND } else { AROUND }).await;
    let rate =
        (ask(place, BOOT).await?.written_mib - first.written_mib) as f64 / begin.elapsed().as_secs_f64();
    let moved = work().await;
    tokio::time::sleep(AROUND).await;
    let seen = watch.finish()?;
    let moved = Move { rate, seen, ..moved? };
    if writes {
        write_memory(place, WRITTEN_MIB, 0).await?;
    }
    goes_on(place, &before).await?;
    Ok(moved)
}

/// Waits until a guest has been up for a while.
async fn idle(place: SocketAddr) -> Result<GuestAnswer> {
    until("the guest has booted and idles", BOOT, async || {
        Ok(ask(place, Duration::from_secs(1)).await.ok().filter(|a| a.uptime_ms > IDLE_MS))
    })
    .await
}

/// A moved guest is the same, and works.
async fn goes_on(place: SocketAddr, before: &GuestAnswer) -> Result<()> {
    let again = until("an answer after the migration", BOOT, async || {
        Ok(ask(place, Duration::from_secs(1)).await.ok().filter(|a| a.counter > before.counter))
    });
    let again = again.await?;
    ensure!(again.boot_id == before.boot_id && again.conflicts == 0, "{before:?} became {again:?}");
    Ok(())
}

async fn through_api(
    cluster: &Cluster,
    api: &ApiClient,
    traces: &Traces,
    from: usize,
    to: usize,
) -> Result<Move> {
    let guest = async |n: usize| {
        let path = format!("/nodes/{}/qemu/{VM}/status/current", cluster.node(n).name());
        let pid = api.get(&path).await?["pid"].as_i64().context("a running guest has no pid")?;
        anyhow::Ok(i32::try_from(pid)?)
    };
    let source = guest(from).await?;
    let path = format!("/nodes/{}/qemu/{VM}/migrate", cluster.node(from).name());
    let cpu_before = daemons(cluster)?;
    let begin = now();
    let task = api.post(&path, &[("target", cluster.node(to).name()), ("online", "1")]).await?;
    api.wait_task(&task, BOOT).await?;
    let cpu = daemons(cluster)? - cpu_before;
    let target = guest(to).await?;
    let log =
        format!("/nodes/{}/tasks/{}/log", cluster.node(from).name(), escape(task.as_str().unwrap_or("")));
    let log = api.get(&log).await?;
    let lines = log.as_array().context("a log is no list")?.iter().filter_map(|l| l["t"].as_str());
    // "state sent: 152.7 MiB in 700 ms, paused for 12 ms"
    let sent =
        lines.filter_map(|l| l.strip_prefix("state sent: ")?.split_once(" MiB")?.0.parse().ok()).next();
    let sent = sent.context("the log does not say how much was sent")?;
    Ok(Move { daemons: cpu, ..Move::of(traces, source, target, begin, sent)? })
}

/// CPU time that the nodes' daemons have used, in ms.
fn daemons(cluster: &Cluster) -> Result<f64> {
    let tick_ms = 1e3 / rustix::param::clock_ticks_per_second() as f64;
    let mut all = 0.0;
    for node in cluster.nodes() {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid_of(node, "steadd")?))?;
        // After the name, which may hold anything: state, then numbers, of which the 11th and 12th are utime and stime.
        let (_, rest) = stat.rsplit_once(')').context("no name in a process's stat")?;
        for ticks in rest.split_whitespace().skip(11).take(2) {
            all += ticks.parse::<f64>()? * tick_ms;
        }
    }
    Ok(all)
}

/// A figure of a migration.
type Of = fn(&Move) -> f64;

fn report(all: &[Vec<Move>; 4], writes: bool) -> Result<()> {
    let load = if writes { "writes" } else { "idles" };
    let mut report = Report::new(&format!("Live migration of a guest of 1 GiB that {load}"));
    report.text(&format!(
        "min, **p50**, max of {} each; times in ms. libvirt {}.",
        all[0].len(),
        if all[3].is_empty() { "is not here: left out".to_owned() } else { Libvirt::version() }
    ));
    report.table(&format!("| {} | aim for Stead", BY.join(" | ")));
    let of = |who: usize, what: Of| all[who].iter().map(what).collect::<Figures>();
    let mut row = |name: &str, decimals: usize, what: Of, aim: &str| {
        let cells: Vec<String> = (0..BY.len()).map(|who| of(who, what).cell(decimals)).collect();
        report.row(&format!("{name} | {} | {aim}", cells.join(" | ")));
    };
    let to_hand = |what: Of| of(0, what).p50() / of(1, what).p50();
    let whole: Of = |m| m.whole;
    let ratio = to_hand(whole);
    let mut aim = verdict(&format!("p50 ≤ 1.05 × by hand (is {ratio:.2})"), ratio <= 1.05);
    if !all[3].is_empty() {
        let below = of(0, whole).p50() < of(3, whole).p50();
        aim = format!("{aim}; {}", verdict("below libvirt", below));
    }
    row("order → the target's vCPUs run", 0, whole, &aim);
    let sending: Of = |m| m.sending;
    let ratio = to_hand(sending);
    let aim = verdict(&format!("p50 ≤ 1.05 × by hand (is {ratio:.2})"), ratio <= 1.05);
    row("state sent (the source's `setup` → `completed`)", 0, sending, &aim);
    let pause: Of = |m| m.pause;
    let aim = if writes { String::new() } else { verdict("max ≤ 100", of(0, pause).max() <= 100.0) };
    row("no vCPU runs anywhere (downtime)", 0, pause, &aim);
    row("its part after all was sent: the hand-over", 0, |m| m.handed, "");
    row("MiB sent", 0, |m| m.mib, "");
    row("requests lost (one each 20 ms)", 0, |m| m.seen.requests.lost as f64, "");
    row("longest time between two answers", 0, |m| ms(&m.seen.requests), "");
    row("pings lost (one each 10 ms)", 0, |m| m.seen.pings.lost as f64, "");
    row("longest time between two answers to a ping", 0, |m| ms(&m.seen.pings), "");
    row("longest time of a byte on the open connection", 0, |m| ms(&m.seen.echoes), "");
    let broken: Of = |m| f64::from(u8::from(m.seen.broken.is_some()));
    row("open connections broken", 0, broken, &verdict("0", of(0, broken).max() <= 0.0));
    if writes {
        row("MiB a second that the guest wrote before", 0, |m| m.rate, "");
    }
    row("CPU time of the daemons", 0, |m| m.daemons, "");
    report.publish()
}

fn ms(counts: &Counts) -> f64 {
    counts.longest_gap.as_secs_f64() * 1e3
}
