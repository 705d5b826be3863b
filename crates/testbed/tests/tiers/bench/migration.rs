//! Live migration of a guest of 1 GiB, against two QEMUs by hand.
//!
//! Both guests boot the same image with the same command line, idle for the same time, and move to and fro in turn: ours
//! from node to node, the other from one process to the next over a unix socket, with the capabilities and the bandwidth that
//! Stead sets: once as plain bytes, once under QEMU's own TLS, which tells what encryption costs on the machine. Times are
//! QEMU's own words on either side.

use super::super::support::{BOOT, cluster, loopback, one_writer, start};
use super::hand::{Hand, Line, run_dir};
use super::trace::Traces;
use super::{Figures, Report, now, pid_of, runs, set, verdict};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_testbed::api::{escape, until};
use stead_testbed::guest::image;
use stead_testbed::poll::{GuestAnswer, ask};
use stead_testbed::{ApiClient, Cluster, addr};

const VM: u32 = 100;
const MEMORY_MIB: &str = "1024";
/// Both guests have been up for so long before the first migration.
const IDLE_MS: u64 = 10_000;

/// One migration; times in ms.
#[derive(Debug, Clone, Copy)]
struct Move {
    /// The source was sending.
    sending: f64,
    /// From the order to the running target.
    whole: f64,
    /// No copy's CPUs ran.
    pause: f64,
    mib: f64,
    /// CPU time of all nodes' daemons meanwhile; NaN where none takes part.
    daemons: f64,
}

/// A figure of a migration.
type Of = fn(&Move) -> f64;

#[test]
fn live_migration_of_one_gib() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let traces = Traces::new(cluster.dir())?;
        cluster.create_http_guest(0, VM, "move").await?;
        let api = cluster.api(2).await?;
        set(&cluster, &api, 0, VM, &[("args", &traces.args()), ("memory", MEMORY_MIB)]).await?;
        let mut pair = Pair::prepare(&cluster)?;
        start(&cluster, &api, 0, VM).await?;
        pair.begin(&cluster, &Line::of(cluster.node(0), VM)?)?;
        let places = cluster.guest_places(VM);
        let mut ours_said = idle(places[0]).await.context("Stead's guest")?;
        let mut pair_said = idle(pair.place()).await.context("the guest by hand")?;
        let (mut ours, mut plain, mut encrypted) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..=runs(12) {
            let (from, to) = (n % 2, (n + 1) % 2);
            let a = through_api(&cluster, &api, &traces, from, to).await?;
            ours_said = goes_on(places[to], &ours_said).await.context("Stead's guest")?;
            let b = pair.migrate(&traces, false)?;
            pair_said = goes_on(pair.place(), &pair_said).await.context("the guest by hand")?;
            let c = pair.migrate(&traces, true)?;
            pair_said = goes_on(pair.place(), &pair_said).await.context("the guest by hand")?;
            println!("run {n}: Stead {a:.0?}\n  by hand {b:.0?}\n with TLS {c:.0?}");
            // The first finds memory as the boot has left it.
            if n > 0 {
                ours.push(a);
                plain.push(b);
                encrypted.push(c);
            }
        }
        one_writer(&cluster, VM)?;
        report(&ours, &plain, &encrypted)
    });
}

fn report(ours: &[Move], plain: &[Move], encrypted: &[Move]) -> Result<()> {
    let of = |all: &[Move], what: Of| all.iter().map(what).collect::<Figures>();
    let mut report = Report::new("Live migration of a guest of 1 GiB");
    report.table("ms | n | min | p50 | max | Stead's p50 to this one");
    let rows: [(&str, Of, Option<f64>); 4] = [
        ("state sent (the source's `setup` → `completed`)", |m| m.sending, Some(1.1)),
        ("order → the target's vCPUs run", |m| m.whole, None),
        ("no vCPU runs anywhere (downtime)", |m| m.pause, None),
        ("MiB sent", |m| m.mib, None),
    ];
    for (name, what, aim) in rows {
        let stead = of(ours, what);
        report.row(&format!("{name}: Stead | {} |", stead.cells(0)));
        let plain = of(plain, what);
        let ratio = stead.p50() / plain.p50();
        let aim =
            aim.map_or_else(String::new, |aim| format!("; {}", verdict(&format!("≤ {aim}"), ratio <= aim)));
        report.row(&format!("{name}: by hand | {} | {ratio:.2}{aim}", plain.cells(0)));
        let encrypted = of(encrypted, what);
        let ratio = stead.p50() / encrypted.p50();
        report.row(&format!("{name}: by hand, QEMU's TLS | {} | {ratio:.2}", encrypted.cells(0)));
    }
    report.row(&format!("CPU time of the daemons: Stead | {} |", of(ours, |m| m.daemons).cells(0)));
    report.publish()
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

/// Waits until a guest has been up for a while.
async fn idle(place: SocketAddr) -> Result<GuestAnswer> {
    until("the guest has booted and idles", BOOT, async || {
        Ok(ask(place, Duration::from_secs(1)).await.ok().filter(|a| a.uptime_ms > IDLE_MS))
    })
    .await
}

/// A moved guest is the same, and works.
async fn goes_on(place: SocketAddr, before: &GuestAnswer) -> Result<GuestAnswer> {
    let again = until("an answer after the migration", BOOT, async || {
        Ok(ask(place, Duration::from_secs(1)).await.ok().filter(|a| a.counter > before.counter))
    });
    let again = again.await?;
    ensure!(again.boot_id == before.boot_id && again.conflicts == 0, "{before:?} became {again:?}");
    Ok(again)
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
    Ok(Move { daemons: cpu, ..measured(traces, source, target, begin, sent)? })
}

fn measured(traces: &Traces, source: i32, target: i32, begin: f64, mib: f64) -> Result<Move> {
    let (source, target) = (traces.of(source)?, traces.of(target)?);
    let running = target.running().context("the target does not run")?;
    let stopped = source.stopped().context("the source has not stopped")?;
    let sending = source.sending().context("the source does not say that it has completed")?;
    let (sending, whole, pause) = (sending * 1e3, (running - begin) * 1e3, (running - stopped) * 1e3);
    Ok(Move { sending, whole, pause, mib, daemons: f64::NAN })
}

/// The guest by hand: one QEMU, and the place for the next.
struct Pair {
    dir: PathBuf,
    places: [SocketAddr; 2],
    /// Its command line, with `@DIR@` and `@PLACE@` for what differs.
    line: Option<Line>,
    qemu: Option<Hand>,
    at: usize,
    _block: addr::Block,
}

impl Pair {
    /// Copies the disks before either guest has run.
    fn prepare(cluster: &Cluster) -> Result<Self> {
        let dir = cluster.dir().join("hand");
        fs::create_dir_all(&dir)?;
        let block = addr::Block::take()?;
        let port = block.port(2, 18_000, 0)?;
        let places = [addr::socket(block.ip(1), port), addr::socket(block.ip(2), port)];
        let name = |disk: &Path| {
            Ok::<_, anyhow::Error>(dir.join(disk.file_name().context("a disk without a name")?))
        };
        let (system, data) = (cluster.disk_path(VM, 0), cluster.disk_path(VM, 1));
        image::copy_disk(&system, &name(&system)?)?;
        // Empty as yet, and sparse.
        File::create(name(&data)?)?.set_len(fs::metadata(&data)?.len())?;
        // A key for QEMU's TLS, where it looks for one.
        fs::write(dir.join("keys.psk"), format!("qemu:{:032x}\n", rand::random::<u128>()))?;
        Ok(Self { dir, places, line: None, qemu: None, at: 0, _block: block })
    }

    fn place(&self) -> SocketAddr {
        self.places[self.at]
    }

    /// Boots from a command line of Stead's.
    fn begin(&mut self, cluster: &Cluster, line: &Line) -> Result<()> {
        let disks = cluster.disk_path(VM, 0);
        let disks = disks.parent().and_then(Path::to_str).context("no folder for disks")?;
        let place = cluster.guest_places(VM)[0].to_string();
        let line = line.with(disks, &self.dir.display().to_string());
        let line = line.with(&run_dir(cluster.node(0), VM), "@DIR@").with(&place, "@PLACE@");
        self.line = Some(line);
        let mut qemu = self.line(0)?.start(&self.slot(0))?;
        qemu.ask("cont", &json!({}))?;
        self.qemu = Some(qemu);
        Ok(())
    }

    fn slot(&self, n: usize) -> PathBuf {
        self.dir.join(["a", "b"][n])
    }

    fn line(&self, n: usize) -> Result<Line> {
        let line = self.line.as_ref().context("it has not begun")?;
        Ok(line
            .with("@DIR@", &self.slot(n).display().to_string())
            .with("@PLACE@", &self.places[n].to_string()))
    }

    /// Sets the way of the stream: plain, or under TLS with the key at hand.
    fn set_tls(&self, qemu: &mut Hand, tls: bool, endpoint: &str) -> Result<()> {
        let creds = if tls { endpoint } else { "" };
        if tls {
            let dir = self.dir.display().to_string();
            let object =
                json!({"qom-type": "tls-creds-psk", "id": endpoint, "dir": dir, "endpoint": endpoint});
            qemu.ask("object-add", &object)?;
        }
        qemu.ask("migrate-set-parameters", &json!({"tls-creds": creds})).map(drop)
    }

    /// Moves it to a process of its own making.
    fn migrate(&mut self, traces: &Traces, tls: bool) -> Result<Move> {
        let to = 1 - self.at;
        let uri = json!({"uri": format!("unix:{}", self.slot(to).join("mig").display())});
        let on = |names: &[&str]| {
            let all: Vec<_> = names.iter().map(|n| json!({"capability": n, "state": true})).collect();
            json!({"capabilities": all})
        };
        let mut source = self.qemu.take().context("it does not run")?;
        let begin = now();
        let mut target = self.line(to)?.waiting().start(&self.slot(to))?;
        target.ask("migrate-set-capabilities", &on(&["events", "return-path", "late-block-activate"]))?;
        self.set_tls(&mut target, tls, "server")?;
        target.ask("migrate-incoming", &uri)?;
        source.ask("migrate-set-capabilities", &on(&["events", "return-path", "auto-converge"]))?;
        source.ask("migrate-set-parameters", &json!({"max-bandwidth": 1u64 << 40}))?;
        self.set_tls(&mut source, tls, "client")?;
        source.ask("migrate", &uri)?;
        source.migrated()?;
        target.ask("cont", &json!({}))?;
        let sent =
            source.ask("query-migrate", &json!({}))?["ram"]["transferred"].as_f64().unwrap_or(f64::NAN);
        let (old, new) = (source.pid()?, target.pid()?);
        drop(source);
        self.qemu = Some(target);
        self.at = to;
        measured(traces, old, new, begin, sent / f64::from(1 << 20))
    }
}
