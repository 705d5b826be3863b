//! Snapshots of a real guest's disks, judged by what is on them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::{CONFIG, Machines, writing};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use stead_driver::guest::{
    GuestDriver, Launch, MigrationPhase, ResolvedVolume, RunState, SavedState, Sending,
};
use stead_driver::suite::sector;
use stead_model::{Epoch, Vmid};
use stead_qemu::QemuDriver;

fn vmid() -> Vmid {
    Vmid::new(100).unwrap()
}

fn qemu_img(words: &[&str], path: &Path) -> String {
    let out = std::process::Command::new("qemu-img").args(words).arg(path).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The guest's counter in an image, or in a snapshot of it.
fn ticks(h: &Machines, image: &Path, snapshot: Option<&str>) -> u64 {
    let raw = h.folder.path().join("read.raw");
    let mut command = std::process::Command::new("qemu-img");
    command.args(["convert", "-f", "qcow2", "-O", "raw"]);
    if let Some(name) = snapshot {
        command.args(["-l", &format!("snapshot.name={name}")]);
    }
    assert!(command.arg(image).arg(&raw).status().unwrap().success());
    sector::ticks(&raw)
}

/// A guest that counts on one qcow2 disk, and has another one beside it.
fn launch(h: &Machines, other: &str) -> (Launch, [PathBuf; 2]) {
    let images = ["100.qcow2", "other.img"].map(|n| h.folder.path().join(n));
    let [image, beside] = &images;
    if !image.exists() {
        let raw = h.folder.path().join("made.raw");
        std::fs::write(&raw, sector::disk()).unwrap();
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap()], image);
        let words = ["create", "-q", "-f", other, beside.to_str().unwrap()];
        qemu_img(&words, Path::new("1M"));
    }
    let volume = |name: &str, path: &Path, format: &str| ResolvedVolume {
        volume: format!("shared:100/{name}"),
        path: path.to_owned(),
        format: format.to_owned(),
    };
    let config = CONFIG.replace("disk-0.raw", "disk-0.qcow2") + "scsi1: shared:100/vm-100-disk-1.qcow2\n";
    let volumes =
        vec![volume("vm-100-disk-0.qcow2", image, "qcow2"), volume("vm-100-disk-1.qcow2", beside, other)];
    (Launch { vmid: vmid(), epoch: Epoch(1), config, volumes, recovered: false, incoming: None }, images)
}

async fn start(driver: &QemuDriver, launch: Launch) {
    driver.prepare(vmid(), Epoch(1)).await.unwrap();
    driver.launch(launch).await.unwrap();
    driver.resume(vmid()).await.unwrap();
    writing(driver).await;
}

fn disks() -> [String; 2] {
    ["virtio0", "scsi1"].map(str::to_owned)
}

#[tokio::test]
async fn a_running_guest_is_kept_as_it_was_and_goes_on_from_there() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let (spec, [image, beside]) = launch(&h, "qcow2");
    start(&driver, spec.clone()).await;
    driver.snapshot_disks(vmid(), &disks(), "one").await.unwrap();
    writing(&driver).await;
    driver.snapshot_disks(vmid(), &disks(), "two").await.unwrap();
    writing(&driver).await;
    assert_eq!(driver.state(vmid()).await.unwrap().state, RunState::Running);
    driver.stop(vmid()).await.unwrap();
    let [one, two, now] = [Some("one"), Some("two"), None].map(|name| ticks(&h, &image, name));
    assert!(0 < one && one + 4 < two && two + 4 < now, "{one}, {two}, {now}");
    for path in [&image, &beside] {
        let told = qemu_img(&["snapshot", "-l"], path);
        assert!(told.contains("one") && told.contains("two"), "{told}");
    }
    qemu_img(&["snapshot", "-a", "one"], &image);
    assert_eq!(ticks(&h, &image, None), one);
    start(&driver, spec).await;
    driver.stop(vmid()).await.unwrap();
    let on = ticks(&h, &image, None);
    assert!(one < on && on < one + (now - one), "it went on from {one}, not from {now}: {on}");
    qemu_img(&["check", "-q", "-f", "qcow2"], &image);
}

#[tokio::test]
async fn of_all_disks_or_of_none() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let (spec, [image, _]) = launch(&h, "raw");
    start(&driver, spec).await;
    let refused = driver.snapshot_disks(vmid(), &disks(), "one").await.unwrap_err().to_string();
    assert!(refused.contains("take a snapshot of guest 100") && refused.contains("raw"), "{refused}");
    assert_eq!(qemu_img(&["snapshot", "-U", "-l"], &image), "");
    let mut gone = disks();
    gone[1] = "scsi7".to_owned();
    assert!(driver.snapshot_disks(vmid(), &gone, "one").await.is_err());
    assert_eq!(qemu_img(&["snapshot", "-U", "-l"], &image), "");
    writing(&driver).await;
    driver.kill(vmid()).await.unwrap();
}

#[tokio::test]
async fn what_is_kept_is_forgotten_while_it_runs_and_a_paused_guest_stays_so() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let (spec, [image, beside]) = launch(&h, "qcow2");
    start(&driver, spec).await;
    driver.pause(vmid()).await.unwrap();
    driver.snapshot_disks(vmid(), &disks(), "one").await.unwrap();
    assert_eq!(driver.state(vmid()).await.unwrap().state, RunState::Paused);
    let twice = driver.snapshot_disks(vmid(), &disks(), "one").await.unwrap_err().to_string();
    assert!(twice.contains("already exists"), "{twice}");
    driver.forget_disk_snapshot(vmid(), "virtio0", "one").await.unwrap();
    driver.forget_disk_snapshot(vmid(), "virtio0", "one").await.expect("what is not there is no error");
    assert!(driver.forget_disk_snapshot(vmid(), "scsi7", "one").await.is_err());
    assert_eq!(driver.state(vmid()).await.unwrap().state, RunState::Paused);
    driver.resume(vmid()).await.unwrap();
    writing(&driver).await;
    driver.resize_disk(vmid(), "virtio0", 3 << 20).await.unwrap();
    driver.stop(vmid()).await.unwrap();
    assert_eq!(qemu_img(&["snapshot", "-l"], &image), "");
    assert!(qemu_img(&["snapshot", "-l"], &beside).contains("one"));
    assert!(driver.snapshot_disks(vmid(), &disks(), "two").await.is_err(), "it does not run");
}

/// What one was before it grew has its old size.
#[tokio::test]
async fn a_disk_grows_over_a_snapshot_and_goes_back() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let (spec, [image, _]) = launch(&h, "qcow2");
    start(&driver, spec).await;
    driver.snapshot_disks(vmid(), &disks(), "small").await.unwrap();
    driver.resize_disk(vmid(), "virtio0", 4 << 20).await.unwrap();
    writing(&driver).await;
    driver.stop(vmid()).await.unwrap();
    let size = |image: &Path| {
        let told = qemu_img(&["info", "-f", "qcow2", "--output=json"], image);
        serde_json::from_str::<serde_json::Value>(&told).unwrap()["virtual-size"].as_u64().unwrap()
    };
    assert_eq!(size(&image), 4 << 20);
    qemu_img(&["snapshot", "-a", "small"], &image);
    assert_eq!(size(&image), 1 << 20);
}

/// Waits until the memory is written; how it ended.
async fn written(driver: &QemuDriver) -> MigrationPhase {
    let end = async {
        let mut seen = MigrationPhase::None;
        while !seen.is_terminal() {
            seen = driver.migration_changed(vmid(), seen).await.unwrap().phase;
        }
        seen
    };
    tokio::time::timeout(Duration::from_secs(60), end).await.unwrap()
}

/// A snapshot with memory, continued at once; for how long it stood.
async fn with_memory(driver: &QemuDriver, name: &str, to: &Path) -> Duration {
    let begun = Instant::now();
    driver.snapshot_with_memory(vmid(), &disks(), name, to).await.unwrap();
    driver.resume(vmid()).await.unwrap();
    begun.elapsed()
}

#[tokio::test]
async fn memory_is_of_the_same_moment_as_the_disks() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let (spec, [image, _]) = launch(&h, "qcow2");
    start(&driver, spec.clone()).await;
    let state = h.folder.path().join("state.raw");
    // A volume that was made before, larger than what is written.
    std::fs::write(&state, vec![7; 1 << 20]).unwrap();
    with_memory(&driver, "one", &state).await;
    assert_eq!(written(&driver).await, MigrationPhase::Completed);
    for _ in 0..3 {
        writing(&driver).await;
    }
    let process = driver.state(vmid()).await.unwrap();
    assert_eq!(process.state, RunState::Running);
    driver.stop(vmid()).await.unwrap();
    let (then, now) = (ticks(&h, &image, Some("one")), ticks(&h, &image, None));
    assert!(then + 10 < now, "{then}, {now}");
    // The guest counts in its memory: it goes on from there, whatever is on its disk.
    let mut incoming = process.as_incoming();
    incoming.state = Some(SavedState { path: state, mapped: false });
    driver.prepare(vmid(), Epoch(1)).await.unwrap();
    driver.launch(Launch { incoming: Some(incoming), ..spec }).await.unwrap();
    assert_eq!(received(&driver).await, Some(RunState::Received));
    driver.resume(vmid()).await.unwrap();
    writing(&driver).await;
    driver.stop(vmid()).await.unwrap();
    let on = ticks(&h, &image, None);
    assert!(then < on && on < now, "it was at {then} then, and came to {now}: {on}");
}

/// What becomes of a process that reads its state.
async fn received(driver: &QemuDriver) -> Option<RunState> {
    let mut events = driver.events();
    loop {
        match driver.state(vmid()).await.map(|p| p.state) {
            // While it reads it may not answer, and neither does one that ends.
            Some(RunState::Inmigrate | RunState::Unresponsive) => {}
            other => return other,
        }
        let _ = tokio::time::timeout(Duration::from_millis(100), events.recv()).await;
    }
}

/// Its state is written while it runs, and goes on in another process, with what it had in its memory.
#[tokio::test]
async fn what_is_saved_to_a_file_goes_on_from_there() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let (spec, image) = launch(&h, "qcow2");
    start(&driver, spec.clone()).await;
    writing(&driver).await;
    let path = h.folder.path().join("state.raw");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    driver.save(vmid(), &path).await.unwrap();
    assert_eq!(written(&driver).await, MigrationPhase::Completed);
    let process = driver.state(vmid()).await.unwrap();
    driver.kill(vmid()).await.unwrap();
    let then = ticks(&h, &image[0], None);
    let mut incoming = process.as_incoming();
    incoming.state = Some(SavedState { path: path.clone(), mapped: true });
    let again = Launch { incoming: Some(incoming), ..spec };
    driver.prepare(vmid(), Epoch(1)).await.unwrap();
    driver.launch(again.clone()).await.unwrap();
    assert_eq!(received(&driver).await, Some(RunState::Received));
    driver.resume(vmid()).await.unwrap();
    writing(&driver).await;
    // It can be moved and saved again, and have a snapshot: what it was told for the one does not stay for the other.
    with_memory(&driver, "one", &h.folder.path().join("one.raw")).await;
    assert_eq!(written(&driver).await, MigrationPhase::Completed);
    driver.save(vmid(), &path).await.unwrap();
    assert_eq!(written(&driver).await, MigrationPhase::Completed);
    driver.kill(vmid()).await.unwrap();
    let now = ticks(&h, &image[0], None);
    assert!(then < now, "{then}, {now}");
    // A file that is cut short gives no guest.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 16).unwrap();
    let launched = driver.launch(again).await;
    let state = if launched.is_ok() { received(&driver).await } else { None };
    assert_eq!(state, None, "{launched:?}");
}

#[tokio::test]
async fn a_guest_of_a_gigabyte_hardly_stands() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let (mut spec, _) = launch(&h, "qcow2");
    spec.config = spec.config.replace("memory: 16", "memory: 1024");
    start(&driver, spec).await;
    let state = h.folder.path().join("state.raw");
    let mut stood = vec![];
    // The best of some, since the machine has other things to do, too.
    for name in ["one", "two", "three"] {
        stood.push(with_memory(&driver, name, &state).await);
        assert_eq!(written(&driver).await, MigrationPhase::Completed);
    }
    println!("stood for {stood:?}");
    assert!(*stood.iter().min().unwrap() <= Duration::from_millis(500), "{stood:?}");
    // The process is not spoilt for a move.
    let there = QemuDriver::new(h.options(1));
    let process = driver.state(vmid()).await.unwrap();
    let (mut spec, _) = launch(&h, "qcow2");
    spec.config = spec.config.replace("memory: 16", "memory: 1024");
    spec.epoch = Epoch(2);
    spec.incoming = Some(process.as_incoming());
    there.prepare(vmid(), Epoch(2)).await.unwrap();
    there.launch(spec).await.unwrap();
    let inlet = there.migration_inlet(vmid()).await.unwrap();
    driver.migrate(vmid(), &Sending::to(inlet)).await.unwrap();
    assert_eq!(written(&driver).await, MigrationPhase::Completed);
    driver.kill(vmid()).await.unwrap();
    there.kill(vmid()).await.unwrap();
}

#[tokio::test]
async fn memory_that_cannot_be_written_leaves_the_guest_to_go_on() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let (spec, _) = launch(&h, "qcow2");
    start(&driver, spec).await;
    let nowhere = h.folder.path().join("nowhere/state.raw");
    let refused =
        driver.snapshot_with_memory(vmid(), &disks(), "one", &nowhere).await.unwrap_err().to_string();
    assert!(refused.contains("write the memory of guest 100"), "{refused}");
    driver.resume(vmid()).await.unwrap();
    writing(&driver).await;
    driver.forget_disk_snapshot(vmid(), "virtio0", "one").await.unwrap();
    // Cancelled on its way, as the fence process does.
    let state = h.folder.path().join("state.raw");
    driver.snapshot_with_memory(vmid(), &disks()[..1], "one", &state).await.unwrap();
    driver.cancel_migration(vmid()).await.unwrap();
    driver.resume(vmid()).await.unwrap();
    writing(&driver).await;
    driver.stop(vmid()).await.unwrap();
}
