//! A real swtpm beside a real QEMU, whose firmware uses it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
#[path = "common/host.rs"]
#[allow(dead_code, reason = "of what tests need of this machine, these need a part")]
mod host;

use common::Machines;
use host::skip;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_driver::guest::{GuestDriver, GuestError, GuestEvent, Launch, ResolvedVolume, RunState, Sending};
use stead_driver::suite::guest::GuestHarness;
use stead_model::{Epoch, Vmid};
use stead_qemu::{QemuDriver, QemuOptions};

fn is_there() -> bool {
    let there = std::process::Command::new("swtpm").arg("--version").output().is_ok();
    if !there {
        skip("swtpm is missing");
    }
    there
}

/// A guest with a TPM whose volume is empty.
fn launch(h: &Machines, options: &str) -> (Launch, PathBuf) {
    let path = h.folder.path().join("tpm.raw");
    std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let mut launch = h.launch(Vmid::new(100).unwrap(), Epoch(1));
    launch.config.insert_str(0, options);
    let (volume, format) = ("shared:100/tpm.raw".into(), "raw".into());
    launch.volumes.push(ResolvedVolume { volume, path: path.clone(), format });
    (launch, path)
}

/// The TPMs whose state lies in a folder.
fn tpms(folder: &Path) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let state = format!("backend-uri=file://{}/", folder.display());
    let of_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&state)
    };
    pids.filter(of_it).collect()
}

/// Waits until a file is another than it was: nothing announces what a TPM writes.
async fn other_than(path: &Path, before: &[u8], what: &str) -> Vec<u8> {
    let changed = async {
        loop {
            let now = std::fs::read(path).unwrap();
            if now != before {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), changed).await.unwrap_or_else(|_| panic!("{what}"))
}

async fn moved(source: &QemuDriver, target: &QemuDriver, launch: Launch) {
    let id = launch.vmid;
    let process = source.state(id).await.unwrap();
    target.prepare(id, Epoch(2)).await.unwrap();
    let incoming = Some(process.as_incoming());
    target.launch(Launch { epoch: Epoch(2), incoming, ..launch }).await.unwrap();
    let mut events = target.events();
    source.migrate(id, &Sending::to(target.migration_inlet(id).await.unwrap())).await.unwrap();
    let mut now = source.migration(id).await.unwrap();
    while !now.phase.is_terminal() {
        now = source.migration_changed(id, now.phase).await.unwrap();
    }
    assert_eq!(now.error, None);
    while target.state(id).await.unwrap().state != RunState::Received {
        events.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_tpm_keeps_its_state_on_its_volume_moves_and_ends_with_its_guest() {
    if !is_there() {
        return;
    }
    for (machine, version) in [("q35", "v2.0"), ("pc", "v1.2")] {
        let h = Machines::new().await;
        let (launch, path) =
            launch(&h, &format!("machine: {machine}\ntpmstate0: shared:100/tpm.raw,version={version}\n"));
        let (id, folder) = (launch.vmid, h.folder.path());
        let driver = QemuDriver::new(h.options(0));
        let group = driver.prepare(id, Epoch(1)).await.unwrap().cgroup;
        driver.launch(launch.clone()).await.unwrap_or_else(|e| panic!("{machine}: {e}"));
        let [tpm] = tpms(folder)[..] else { panic!("{machine}: {:?}", tpms(folder)) };
        if let Some(group) = &group {
            let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
            assert!(members.lines().any(|pid| pid == tpm.to_string()), "it would not be frozen: {members}");
        }
        let fresh = std::fs::read(&path).unwrap();
        assert!(!fresh.iter().all(|b| *b == 0), "{machine}: it has written nothing");
        driver.resume(id).await.unwrap();
        let used = other_than(&path, &fresh, "the firmware has not used it").await;

        let target = QemuDriver::new(h.options(1));
        moved(&driver, &target, launch.clone()).await;
        driver.kill(id).await.unwrap();
        let [moved] = tpms(folder)[..] else { panic!("{machine}: {:?}", tpms(folder)) };
        assert_ne!(moved, tpm);
        target.resume(id).await.unwrap();
        target.reset(id).await.unwrap();
        if version == "v2.0" {
            // The older kind counts no restarts.
            other_than(&path, &used, "the firmware has not used it since it has moved").await;
        }

        // A later daemon finds both, and ends both.
        drop(target);
        let target = QemuDriver::new(h.options(1));
        assert_eq!(target.adopt().await.len(), 1);
        target.stop(id).await.unwrap();
        assert_eq!(tpms(folder), [0; 0], "{machine}: it is left behind");
        assert!(group.is_none_or(|group| !group.exists()), "{machine}");

        // What it keeps outlives it, and what was killed leaves none.
        let kept = std::fs::read(&path).unwrap();
        driver.prepare(id, Epoch(3)).await.unwrap();
        driver.launch(Launch { epoch: Epoch(3), ..launch }).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[..16], kept[..16], "{machine}: it was begun anew");
        let pid = driver.state(id).await.unwrap().pid;
        let mut events = driver.events();
        common::kill(pid);
        let gone = async { while !matches!(events.recv().await.unwrap(), GuestEvent::Gone { .. }) {} };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
        assert_eq!(tpms(folder), [0; 0], "{machine}: it is left behind");
    }
}

#[tokio::test]
async fn no_tpm_is_left_by_a_launch_that_fails() {
    if !is_there() {
        return;
    }
    let h = Machines::new().await;
    let (mut launch, path) = launch(&h, "tpmstate0: shared:100/tpm.raw,version=v2.0\n");
    let (id, good) = (launch.vmid, launch.clone());
    // Without a group of its own, too.
    for options in [h.options(0), QemuOptions { cgroup_root: None, ..h.options(0) }] {
        launch.volumes[0].path = "/nowhere/disk.raw".into();
        let driver = QemuDriver::new(options.clone());
        driver.prepare(id, Epoch(1)).await.unwrap();
        assert!(matches!(driver.launch(launch.clone()).await, Err(GuestError::Launch { .. })));
        assert_eq!(tpms(h.folder.path()), [0; 0]);

        // A daemon that dies in between leaves one that nobody has spoken to.
        driver.prepare(id, Epoch(1)).await.unwrap();
        let run = options.run_dir.join("100");
        let left = std::process::Command::new("swtpm")
            .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
            .arg(format!("backend-uri=file://{}", path.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", run.join("tpm").display()))
            .arg("--pid")
            .arg(format!("file={}", run.join("tpm.pid").display()))
            .spawn();
        let mut left = left.unwrap();
        // It says nothing when it listens.
        let listens = async {
            while !run.join("tpm").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), listens).await.unwrap();
        QemuDriver::new(options).adopt().await;
        // The driver has taken its exit status, as of every process that it ends.
        assert!(left.wait().is_err() && tpms(h.folder.path()).is_empty());
    }
    let driver = QemuDriver::new(QemuOptions { tpm: "/nowhere/swtpm".into(), ..h.options(0) });
    let told = driver.obstacles(&good).await;
    assert!(told.len() == 1 && told[0].contains("install the package swtpm"), "{told:?}");
    let refused = driver.launch(good).await.unwrap_err().to_string();
    assert!(refused.starts_with("tpmstate0: '/nowhere/swtpm' is not on this node"), "{refused}");
}
