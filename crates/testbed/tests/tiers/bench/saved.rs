//! A VM's memory on a storage, while somebody uses the VM: quick migrations, and snapshots with memory.
//!
//! The VM's memory is filled first, so that as much has to be written. Before or after each quick migration as many bytes are
//! written to the same storage and read again, by hand.

use super::super::support::{BOOT, cluster, loopback, one_writer, start};
use super::{Figures, Report, runs, set, verdict};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use stead_testbed::api::{escape, until};
use stead_testbed::poll::{Counts, Poller, ask, write_memory};
use stead_testbed::{ApiClient, Cluster};

const VM: u32 = 100;
/// What of a guest's memory is filled: the rest is its system's, which needs the more the more there is.
const fn filled(memory_mib: u32) -> u32 {
    memory_mib - memory_mib / 8 - 128
}
/// Four GiB are written, filled or read within it.
const LIMIT: Duration = Duration::from_secs(300);
/// What is seen after it counts as much.
const AROUND: Duration = Duration::from_millis(500);

#[test]
fn quick_migration_of_one_gib() {
    quick(1024, 6);
}

#[test]
fn quick_migration_of_four_gib() {
    quick(4096, 3);
}

/// One quick migration and its counterpart; times in seconds.
#[derive(Debug)]
struct Quick {
    /// The longest time between two answers.
    gap: f64,
    lost: u64,
    /// What the task says: MiB, and the time of writing, during which the VM runs for the most part.
    mib: u64,
    written: f64,
    /// Of the whole task.
    whole: f64,
    /// As many bytes by hand.
    raw: Raw,
}

/// As many bytes by hand; times in seconds.
#[derive(Debug)]
struct Raw {
    write: f64,
    /// Into memory that holds all of it, of the same kind as a VM's.
    read: f64,
    /// In pieces, of which none is kept.
    pieces: f64,
}

fn quick(memory_mib: u32, default_runs: usize) {
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(2)).await?;
        let api = cluster.api(0).await?;
        cluster.create_http_guest(0, VM, "quick").await?;
        set(&cluster, &api, 0, VM, &[("memory", &memory_mib.to_string())]).await?;
        start(&cluster, &api, 0, VM).await?;
        fill(cluster.guest_places(VM)[0], filled(memory_mib)).await?;
        let poller = Poller::start(cluster.guest_places(VM));
        let mut all = Vec::new();
        for n in 0..runs(default_runs) {
            let one = one_quick(&cluster, &api, &poller, n % 2).await.with_context(|| format!("run {n}"))?;
            println!("run {n}: {one:.2?}");
            all.push(one);
        }
        drop(poller);
        one_writer(&cluster, VM)?;
        report_quick(memory_mib, &all)
    });
}

/// Has the guest hold so much memory with something in each page.
async fn fill(place: SocketAddr, mib: u32) -> Result<()> {
    let answers = async || Ok(ask(place, Duration::from_secs(1)).await.ok());
    let before = until("the guest has booted", BOOT, answers).await?.written_mib;
    write_memory(place, mib, 0).await?;
    until("the guest's memory is full", LIMIT, async || {
        let written = ask(place, Duration::from_secs(5)).await?.written_mib;
        Ok((written >= before + u64::from(mib)).then_some(()))
    })
    .await
}

async fn one_quick(cluster: &Cluster, api: &ApiClient, poller: &Poller, from: usize) -> Result<Quick> {
    let to = 1 - from;
    let before = poller.wait(BOOT, |s| s.place == from).await?;
    tokio::time::sleep(AROUND).await;
    poller.take_counts();
    let node = cluster.node(from).name();
    let path = format!("/nodes/{node}/qemu/{VM}/quick_migrate");
    let begin = Instant::now();
    let task = api.post(&path, &[("target", cluster.node(to).name())]).await?;
    api.wait_task(&task, LIMIT).await?;
    let whole = begin.elapsed().as_secs_f64();
    let after = poller.wait(BOOT, |s| s.place == to).await?;
    tokio::time::sleep(AROUND).await;
    let Counts { longest_gap, lost, .. } = poller.take_counts();
    let same = after.answer.boot_id == before.answer.boot_id && after.answer.conflicts == 0;
    ensure!(same, "{before:?} became {after:?}");
    let (mib, ms) = written(api, node, &task).await?;
    let raw = by_hand(&cluster.shared_dir().join("by-hand.raw"), mib)?;
    let (gap, written) = (longest_gap.as_secs_f64(), ms / 1e3);
    Ok(Quick { gap, lost, mib, written, whole, raw })
}

/// "memory written: 868 MiB in 1200 ms", as a task's log says it.
async fn written(api: &ApiClient, node: &str, task: &serde_json::Value) -> Result<(u64, f64)> {
    let log = format!("/nodes/{node}/tasks/{}/log", escape(task.as_str().unwrap_or("")));
    let log = api.get(&log).await?;
    let lines = log.as_array().into_iter().flatten().filter_map(|l| l["t"].as_str());
    let figures = |line: &str| {
        let (mib, rest) = line.strip_prefix("memory written: ")?.split_once(" MiB in ")?;
        Some((mib.parse().ok()?, rest.strip_suffix(" ms")?.parse().ok()?))
    };
    lines
        .filter_map(figures)
        .next()
        .with_context(|| format!("the log does not say how much was written: {log}"))
}

/// Writes so much to a storage until it is on disk, and reads it again as it is then.
fn by_hand(path: &Path, mib: u64) -> Result<Raw> {
    // No hole, and nothing that could be packed.
    let mut chunk = vec![0u8; 1 << 20];
    chunk.iter_mut().for_each(|byte| *byte = rand::random());
    let begin = Instant::now();
    let mut file = File::create(path)?;
    for _ in 0..mib {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    let write = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let mut all = Vec::with_capacity(usize::try_from(mib << 20)?);
    ask_for_huge_pages(&mut all)?;
    File::open(path)?.read_to_end(&mut all)?;
    let read = begin.elapsed().as_secs_f64();
    ensure!(all.len() as u64 == mib << 20, "{} has ended early", path.display());
    drop(all);
    let begin = Instant::now();
    let mut file = File::open(path)?;
    for _ in 0..mib {
        file.read_exact(&mut chunk)?;
    }
    let pieces = begin.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(Raw { write, read, pieces })
}

/// As QEMU does for a VM's memory. How long the kernel takes to give such memory out is no small part of reading into it.
fn ask_for_huge_pages(memory: &mut Vec<u8>) -> Result<()> {
    let page = rustix::param::page_size();
    let spare = memory.spare_capacity_mut();
    let whole = spare.as_mut_ptr().align_offset(page);
    let whole = spare.get_mut(whole..).unwrap_or_default();
    let size = whole.len() - whole.len() % page;
    // SAFETY: the range is within what the vector has allocated and nobody else refers to; the advice changes no content.
    unsafe { rustix::mm::madvise(whole.as_mut_ptr().cast(), size, rustix::mm::Advice::LinuxHugepage)? };
    Ok(())
}

fn report_quick(memory_mib: u32, all: &[Quick]) -> Result<()> {
    let of = |what: fn(&Quick) -> f64| all.iter().map(what).collect::<Figures>();
    let mut report = Report::new(&format!("Quick migration of a guest of {} GiB", memory_mib / 1024));
    report.table("seconds | n | min | p50 | max | aim");
    let ratio = of(|q| q.gap / (q.raw.write + q.raw.read)).p50();
    let pieces = of(|q| q.gap / (q.raw.write + q.raw.pieces)).p50();
    let aim = format!("≤ 1.3 × by hand (is {ratio:.2}; {pieces:.2} with what is read in pieces)");
    let aim = verdict(&aim, ratio <= 1.3);
    report
        .row(&format!("longest time between two answers (every 20 ms) | {} | {aim}", of(|q| q.gap).cells(2)));
    report.row(&format!("as many bytes by hand: written, and on disk | {} |", of(|q| q.raw.write).cells(2)));
    report.row(&format!(
        "as many bytes by hand: read into memory such as a VM's | {} |",
        of(|q| q.raw.read).cells(2)
    ));
    report.row(&format!("as many bytes by hand: read in pieces | {} |", of(|q| q.raw.pieces).cells(2)));
    report.row(&format!("memory is written, while it runs | {} |", of(|q| q.written).cells(2)));
    report.row(&format!("the whole task | {} |", of(|q| q.whole).cells(2)));
    report.row(&format!("MiB written | {} |", of(|q| q.mib as f64).cells(0)));
    report.row(&format!("requests lost | {} |", of(|q| q.lost as f64).cells(0)));
    report.publish()
}

#[test]
fn snapshot_with_memory() {
    const MEMORY_MIB: u32 = 1024;
    const WRITTEN_MIB: u32 = 256;
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(2)).await?;
        let api = cluster.api(0).await?;
        cluster.create_http_guest(0, VM, "snapshot").await?;
        set(&cluster, &api, 0, VM, &[("memory", &MEMORY_MIB.to_string())]).await?;
        let path = format!("/nodes/n1/qemu/{VM}");
        for disk in ["virtio0", "virtio1"] {
            let form = [("disk", disk), ("format", "qcow2"), ("delete", "1")];
            api.post_and_wait(&format!("{path}/move_disk"), &form, LIMIT).await?;
        }
        start(&cluster, &api, 0, VM).await?;
        let place = cluster.guest_places(VM)[0];
        let mut report = Report::new("Snapshot with memory of a guest of 1 GiB");
        report.table("ms | n | min | p50 | max | aim");
        for (name, held, rate) in
            [("it idles", filled(MEMORY_MIB), 0), ("it writes 200 MiB a second", WRITTEN_MIB, 200)]
        {
            fill(place, held).await?;
            write_memory(place, held, rate).await?;
            let poller = Poller::start(vec![place]);
            let (mut gaps, mut lost, mut whole, mut mibs) =
                (Figures::default(), Figures::default(), Figures::default(), Figures::default());
            for n in 0..runs(8) {
                poller.wait(BOOT, |_| true).await?;
                tokio::time::sleep(AROUND).await;
                poller.take_counts();
                let begin = Instant::now();
                let form = [("snapname", "bench"), ("vmstate", "1")];
                let task = api.post(&format!("{path}/snapshot"), &form).await?;
                api.wait_task(&task, LIMIT).await?;
                whole.0.push(begin.elapsed().as_secs_f64() * 1e3);
                tokio::time::sleep(AROUND).await;
                let counts = poller.take_counts();
                gaps.0.push(counts.longest_gap.as_secs_f64() * 1e3);
                lost.0.push(counts.lost as f64);
                mibs.0.push(written(&api, "n1", &task).await?.0 as f64);
                println!("{name}, run {n}: {counts:?}");
                let task = api.delete(&format!("{path}/snapshot/bench")).await?;
                api.wait_task(&task, LIMIT).await?;
            }
            let aim = verdict("max ≤ 500", gaps.max() <= 500.0);
            report.row(&format!(
                "longest time between two answers (every 20 ms), {name} | {} | {aim}",
                gaps.cells(0)
            ));
            report.row(&format!("requests lost, {name} | {} |", lost.cells(0)));
            report.row(&format!("the whole task, {name} | {} |", whole.cells(0)));
            report.row(&format!("MiB written, {name} | {} |", mibs.cells(0)));
        }
        let said = ask(place, BOOT).await?;
        ensure!(said.conflicts == 0 && said.disk_errors == 0, "{said:?}");
        report.publish()
    });
}
