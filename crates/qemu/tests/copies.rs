//! Copies of a real guest's disks while it writes to them, judged by what is on them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::{CONFIG, Machines, writing};
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_driver::guest::{
    CopyKind, CopyPhase, CopyProgress, CopyTo, DiskCopy, GuestDriver, Incoming, Launch, MigrationPhase,
    ResolvedVolume, RunState, Sending,
};
use stead_driver::suite::sector;
use stead_model::{Epoch, Vmid};
use stead_qemu::QemuDriver;

fn vmid() -> Vmid {
    Vmid::new(100).unwrap()
}

fn qemu_img(words: &[&str]) -> String {
    let out = std::process::Command::new("qemu-img").args(words).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The guest's counter in an image.
fn ticks(h: &Machines, image: &Path, format: &str) -> u64 {
    let raw = h.folder.path().join("read.raw");
    qemu_img(&["convert", "-f", format, "-O", "raw", text(image), text(&raw)]);
    sector::ticks(&raw)
}

fn volume(name: &str, path: &Path, format: &str) -> ResolvedVolume {
    ResolvedVolume { volume: format!("shared:100/{name}"), path: path.to_owned(), format: format.to_owned() }
}

/// A guest that counts on a qcow2 disk and has a raw one of 8 MiB beside it, and runs.
async fn started(h: &Machines, driver: &QemuDriver) -> PathBuf {
    let [raw, image, other] = ["made.raw", "100.qcow2", "other.raw"].map(|n| h.folder.path().join(n));
    std::fs::write(&raw, sector::disk()).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&image)]);
    std::fs::write(&other, vec![7; 8 << 20]).unwrap();
    let config = CONFIG.replace("disk-0.raw", "disk-0.qcow2") + "scsi1: shared:100/vm-100-disk-1.raw\n";
    let volumes =
        vec![volume("vm-100-disk-0.qcow2", &image, "qcow2"), volume("vm-100-disk-1.raw", &other, "raw")];
    let launch = Launch { vmid: vmid(), epoch: Epoch(1), config, volumes, recovered: false, incoming: None };
    driver.prepare(vmid(), Epoch(1)).await.unwrap();
    driver.launch(launch).await.unwrap();
    driver.resume(vmid()).await.unwrap();
    writing(driver).await;
    image
}

/// A new image, and what is to be copied to it.
fn copy(h: &Machines, disk: &str, name: &str, format: &str) -> (PathBuf, DiskCopy) {
    let path = h.folder.path().join(name);
    let size = if disk == "scsi1" { 8 << 20 } else { sector::disk().len() };
    qemu_img(&["create", "-q", "-f", format, text(&path), &size.to_string()]);
    let value = format!("shared:100/{disk},cache=writeback,discard=on");
    (path.clone(), DiskCopy { disk: disk.to_owned(), value, to: CopyTo::Volume(volume(name, &path, format)) })
}

/// Waits for a phase.
async fn come_to(driver: &QemuDriver, phase: CopyPhase) -> CopyProgress {
    let come = async {
        let mut seen = CopyPhase::None;
        loop {
            let now = driver.copies_changed(vmid(), seen).await.unwrap();
            if now.phase == phase {
                return now;
            }
            assert!(!matches!(now.phase, CopyPhase::Failed), "{now:?}");
            seen = now.phase;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), come).await.expect("no such phase")
}

#[tokio::test]
async fn a_running_guest_goes_over_to_its_mirror_and_on_to_the_next() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let first = started(&h, &driver).await;
    let (second, to_raw) = copy(&h, "virtio0", "second.raw", "raw");
    driver.copy_disks(vmid(), &[to_raw], CopyKind::Mirror, None).await.unwrap();
    come_to(&driver, CopyPhase::InStep).await;
    assert_eq!(driver.disk_place(vmid(), "virtio0").await.unwrap(), first);
    writing(&driver).await;
    driver.pivot(vmid(), "virtio0").await.unwrap();
    assert_eq!(driver.disk_place(vmid(), "virtio0").await.unwrap(), second);
    let left = ticks(&h, &first, "qcow2");
    writing(&driver).await;
    assert_eq!(ticks(&h, &first, "qcow2"), left, "the old place is closed");
    driver.end_copies(vmid()).await.expect("nothing is left, which is no error");
    driver.resize_disk(vmid(), "virtio0", 4 << 20).await.unwrap();
    let (third, to_qcow2) = copy(&h, "virtio0", "third.qcow2", "qcow2");
    qemu_img(&["resize", "-q", text(&third), "4M"]);
    driver.copy_disks(vmid(), &[to_qcow2], CopyKind::Mirror, None).await.unwrap();
    drop(driver);
    // Whoever comes later finds it, and what is under way.
    let later = QemuDriver::new(h.options(0));
    assert_eq!(later.disk_place(vmid(), "virtio0").await.unwrap(), second);
    come_to(&later, CopyPhase::InStep).await;
    later.pivot(vmid(), "virtio0").await.unwrap();
    assert_eq!(later.disk_place(vmid(), "virtio0").await.unwrap(), third);
    later.snapshot_disks(vmid(), &["virtio0".to_owned()], "one").await.unwrap();
    writing(&later).await;
    later.stop(vmid()).await.unwrap();
    let [a, b, c] = [(&first, "qcow2"), (&second, "raw"), (&third, "qcow2")].map(|(p, f)| ticks(&h, p, f));
    assert!(0 < a && a + 4 < b && b + 4 < c, "{a}, {b}, {c}");
    qemu_img(&["check", "-q", "-f", "qcow2", text(&third)]);
}

#[tokio::test]
async fn a_copy_that_is_ended_leaves_the_guest_where_it_was() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let image = started(&h, &driver).await;
    let (path, slow) = copy(&h, "scsi1", "slow.raw", "raw");
    driver.copy_disks(vmid(), std::slice::from_ref(&slow), CopyKind::Mirror, Some(65536)).await.unwrap();
    let begun = async {
        // It has a size once its job runs.
        let mut seen = CopyPhase::None;
        loop {
            let now = driver.copies_changed(vmid(), seen).await.unwrap();
            assert_eq!(now.phase, CopyPhase::Active, "{now:?}");
            if now.total >= 8 << 20 {
                return;
            }
            seen = now.phase;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), begun).await.expect("it has no size");
    let twice = driver.copy_disks(vmid(), std::slice::from_ref(&slow), CopyKind::Mirror, None).await;
    assert!(twice.unwrap_err().to_string().contains("under way"));
    assert!(driver.pivot(vmid(), "scsi1").await.is_err(), "it is not in step");
    driver.end_copies(vmid()).await.unwrap();
    assert_eq!(driver.copies_changed(vmid(), CopyPhase::Active).await.unwrap().phase, CopyPhase::None);
    assert_eq!(driver.disk_place(vmid(), "scsi1").await.unwrap(), h.folder.path().join("other.raw"));
    // Nobody has it open.
    qemu_img(&["resize", "-q", "-f", "raw", text(&path), "16M"]);
    let missing =
        DiskCopy { to: CopyTo::Volume(volume("no", Path::new("/nowhere/no.raw"), "raw")), ..slow.clone() };
    assert!(driver.copy_disks(vmid(), &[missing], CopyKind::Moment, None).await.is_err());
    driver.copy_disks(vmid(), &[slow], CopyKind::Moment, None).await.expect_err("it is larger by now");
    writing(&driver).await;
    assert_eq!(driver.state(vmid()).await.unwrap().state, RunState::Running);
    driver.kill(vmid()).await.unwrap();
    assert!(ticks(&h, &image, "qcow2") > 0);
}

#[tokio::test]
async fn a_copy_of_a_moment_has_all_disks_and_what_was_there_then() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let image = started(&h, &driver).await;
    let (one, first) = copy(&h, "virtio0", "one.raw", "raw");
    let (two, other) = copy(&h, "scsi1", "two.qcow2", "qcow2");
    driver.copy_disks(vmid(), &[first, other], CopyKind::Moment, Some(4 << 20)).await.unwrap();
    writing(&driver).await;
    come_to(&driver, CopyPhase::Completed).await;
    driver.end_copies(vmid()).await.unwrap();
    let then = ticks(&h, &one, "raw");
    writing(&driver).await;
    assert_eq!(ticks(&h, &one, "raw"), then, "it is nobody's any more");
    driver.stop(vmid()).await.unwrap();
    let now = ticks(&h, &image, "qcow2");
    assert!(0 < then && then + 8 < now, "{then}, {now}");
    let back = h.folder.path().join("back.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(&two), text(&back)]);
    assert_eq!(std::fs::read(&back).unwrap(), vec![7; 8 << 20]);
}

/// The configuration and volumes of [`started`], elsewhere: raw images without content.
fn elsewhere(h: &Machines, incoming: Incoming) -> (Launch, [PathBuf; 2]) {
    let paths = ["far-0.raw", "far-1.raw"].map(|n| h.folder.path().join(n));
    for (path, size) in paths.iter().zip([sector::disk().len() as u64, 8 << 20]) {
        std::fs::File::create(path).unwrap().set_len(size).unwrap();
    }
    let config = CONFIG.replace("disk-0.raw", "far-0.raw") + "scsi1: shared:100/vm-100-far-1.raw\n";
    let volumes = ["far-0.raw", "far-1.raw"].iter().zip(&paths);
    let volumes = volumes.map(|(n, path)| volume(&format!("vm-100-{n}"), path, "raw")).collect();
    let incoming = Some(incoming);
    (Launch { vmid: vmid(), epoch: Epoch(2), config, volumes, recovered: false, incoming }, paths)
}

/// A guest that runs, and a copy that waits elsewhere and lends its disks; both mirrored, and in step.
async fn in_step(h: &Machines) -> ([QemuDriver; 2], PathBuf, [PathBuf; 2]) {
    let [here, there] = [0, 1].map(|n| QemuDriver::new(h.options(n)));
    let image = started(h, &here).await;
    let (launch, far) = elsewhere(h, here.state(vmid()).await.unwrap().as_incoming());
    there.prepare(vmid(), Epoch(2)).await.unwrap();
    there.launch(launch).await.unwrap();
    assert!(there.disk_inlet(vmid()).await.is_err(), "it lends none yet");
    let disks = ["virtio0", "scsi1"].map(str::to_owned);
    let socket = there.lend_disks(vmid(), &disks).await.unwrap();
    let copy = |disk: &String| DiskCopy {
        disk: disk.clone(),
        value: format!("shared:100/{disk},cache=writeback,discard=on"),
        to: CopyTo::Lent(socket.clone()),
    };
    here.copy_disks(vmid(), &disks.each_ref().map(copy), CopyKind::Mirror, None).await.unwrap();
    come_to(&here, CopyPhase::InStep).await;
    ([here, there], image, far)
}

async fn held(driver: &QemuDriver, inlet: PathBuf) {
    let how = Sending { hold: true, ..Sending::to(inlet) };
    driver.migrate(vmid(), &how).await.unwrap();
    let wait = async {
        let mut seen = MigrationPhase::None;
        while seen != MigrationPhase::Held {
            seen = driver.migration_changed(vmid(), seen).await.unwrap().phase;
            assert!(!seen.is_terminal(), "{seen:?}");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it does not come to its end");
}

#[tokio::test]
async fn a_guest_goes_elsewhere_with_its_disks() {
    let h = Machines::new().await;
    let ([here, there], image, far) = in_step(&h).await;
    writing(&here).await;
    assert!(here.end_mirrors(vmid()).await.is_err(), "it runs");
    held(&here, there.migration_inlet(vmid()).await.unwrap()).await;
    here.end_mirrors(vmid()).await.unwrap();
    there.end_lending(vmid()).await.unwrap();
    assert!(there.disk_inlet(vmid()).await.is_err());
    here.send_rest(vmid()).await.unwrap();
    let ended = async {
        let mut events = there.events();
        while there.state(vmid()).await.unwrap().state == RunState::Inmigrate {
            let _ = tokio::time::timeout(Duration::from_millis(100), events.recv()).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    here.kill(vmid()).await.unwrap();
    let raw = h.folder.path().join("was.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(&image), text(&raw)]);
    assert!(std::fs::read(&raw).unwrap() == std::fs::read(&far[0]).unwrap(), "what it wrote is there");
    assert!(std::fs::read(&far[1]).unwrap().iter().all(|b| *b == 7));
    let before = sector::ticks(&far[0]);
    there.resume(vmid()).await.unwrap();
    writing(&there).await;
    there.stop(vmid()).await.unwrap();
    assert!(sector::ticks(&far[0]) > before + 4 && ticks(&h, &image, "qcow2") == before);
}

#[tokio::test]
async fn a_guest_whose_new_place_dies_goes_on_with_its_own_disks() {
    let h = Machines::new().await;
    let ([here, there], image, far) = in_step(&h).await;
    held(&here, there.migration_inlet(vmid()).await.unwrap()).await;
    there.kill(vmid()).await.unwrap();
    assert!(here.end_mirrors(vmid()).await.is_err(), "what was not flushed is not there");
    here.cancel_migration(vmid()).await.unwrap();
    here.end_copies(vmid()).await.unwrap();
    assert_eq!(here.copies_changed(vmid(), CopyPhase::Active).await.unwrap().phase, CopyPhase::None);
    assert_eq!(here.state(vmid()).await.unwrap().state, RunState::Running);
    let before = sector::ticks(&far[0]);
    writing(&here).await;
    here.stop(vmid()).await.unwrap();
    assert!(ticks(&h, &image, "qcow2") > before + 4);
}
