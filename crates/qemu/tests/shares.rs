//! A real virtiofsd beside a real QEMU. That a guest reads and writes by it, a tier of its own shows.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
#[path = "common/host.rs"]
#[allow(dead_code, reason = "of what tests need of this machine, these need a part")]
mod host;

use common::Machines;
use host::skip;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_driver::guest::{GuestDriver, GuestError, GuestEvent, Launch};
use stead_driver::suite::guest::GuestHarness;
use stead_model::{Epoch, Vmid};
use stead_qemu::{QemuDriver, QemuOptions};

/// A virtiofsd that can put itself into its sandbox here.
fn is_there() -> bool {
    let all = ["/usr/libexec/virtiofsd", "/usr/local/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
    let known = all.iter().any(|path| Path::new(path).exists())
        || std::process::Command::new("virtiofsd").arg("--version").output().is_ok();
    if !known {
        skip("virtiofsd is missing");
    } else if !rustix::process::geteuid().is_root() {
        skip("virtiofsd needs privileges for its sandbox");
        return false;
    }
    known
}

/// A guest with two directories.
fn launch(h: &Machines, options: &str) -> Launch {
    let mut launch = h.launch(Vmid::new(100).unwrap(), Epoch(1));
    for (number, name) in ["one", "two"].into_iter().enumerate() {
        let path = h.folder.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        let line = format!("virtiofs{number}: dirid={name},expose-acl=1,path={}\n", path.display());
        launch.config.insert_str(0, &line);
    }
    launch.config.insert_str(0, options);
    launch
}

/// The processes that carry directories of a folder, with their children.
fn carriers(folder: &Path) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let of_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("--fd=") && line.contains(&folder.display().to_string())
    };
    pids.filter(of_it).collect()
}

async fn gone(events: &mut tokio::sync::broadcast::Receiver<GuestEvent>) {
    let gone = async { while !matches!(events.recv().await.unwrap(), GuestEvent::Gone { .. }) {} };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
}

fn groups(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

#[tokio::test]
async fn each_directory_has_a_program_that_ends_with_its_guest() {
    if !is_there() {
        return;
    }
    // Memory in one piece, and in nodes with modules.
    for shape in ["machine: q35\n", "cores: 2\nhotplug: memory\nmemory: 1536\nnuma: 1\n"] {
        let h = Machines::new().await;
        let folder = h.folder.path();
        let driver = QemuDriver::new(h.options(0));
        let mut launch = launch(&h, shape);
        if shape.contains("memory: 1536") {
            launch.config = launch.config.replace("memory: 16\n", "");
        }
        let id = launch.vmid;
        driver.prepare(id, Epoch(1)).await.unwrap();
        let process = driver.launch(launch.clone()).await.unwrap();
        let all = carriers(folder);
        assert!(all.len() >= 2, "{all:?}");
        if h.options(0).cgroup_root.is_some() {
            assert!(all.iter().all(|pid| groups(*pid) == groups(process.pid)), "{all:?} are in other groups");
        }
        // By a daemon that has started neither of them.
        drop(driver);
        let driver = QemuDriver::new(h.options(0));
        driver.adopt().await;
        let mut events = driver.events();
        driver.kill(id).await.unwrap();
        gone(&mut events).await;
        assert_eq!(carriers(folder), [0; 0], "left behind by a kill");

        driver.prepare(id, Epoch(2)).await.unwrap();
        let process = driver.launch(Launch { epoch: Epoch(2), ..launch }).await.unwrap();
        let mut events = driver.events();
        common::kill(process.pid);
        gone(&mut events).await;
        assert_eq!(carriers(folder), [0; 0], "left behind by the end of QEMU");
        assert_eq!(h.traces(0, id), [""; 0]);
    }
}

#[tokio::test]
async fn no_program_is_left_by_a_launch_that_fails() {
    if !is_there() {
        return;
    }
    let h = Machines::new().await;
    let folder = h.folder.path();
    let good = launch(&h, "");
    let id = good.vmid;
    // Without a group of its own, too.
    for options in [h.options(0), QemuOptions { cgroup_root: None, ..h.options(0) }] {
        let driver = QemuDriver::new(options.clone());
        let refused = async |launch: Launch| {
            driver.prepare(id, Epoch(1)).await.unwrap();
            let e = driver.launch(launch).await.unwrap_err();
            assert_eq!(carriers(folder), [0; 0]);
            e
        };
        let mut broken = good.clone();
        broken.volumes[0].path = "/nowhere/disk.raw".into();
        assert!(matches!(refused(broken).await, GuestError::Launch { .. }));
        let nowhere = format!("path={}", folder.join("two").display());
        let nowhere = Launch { config: good.config.replace(&nowhere, "path=/nowhere/dir"), ..good.clone() };
        let said = refused(nowhere).await.to_string();
        assert!(said.contains("/nowhere/dir"), "{said}");
    }
    let none = QemuOptions { virtiofsd: Some(PathBuf::from("/nowhere/virtiofsd")), ..h.options(0) };
    let driver = QemuDriver::new(none);
    let told = driver.obstacles(&good).await;
    assert!(told.len() == 1 && told[0].contains("install the package virtiofsd"), "{told:?}");
    let refused = driver.launch(good).await.unwrap_err().to_string();
    assert!(refused.starts_with("virtiofs0: no virtiofsd is on this node"), "{refused}");
}

/// What an earlier daemon has started of a launch that it did not finish ends with the next one.
#[tokio::test]
async fn what_an_unfinished_launch_leaves_is_ended() {
    if !is_there() {
        return;
    }
    let h = Machines::new().await;
    let options = QemuOptions { cgroup_root: None, ..h.options(0) };
    let run = options.run_dir.join("100");
    let driver = QemuDriver::new(options.clone());
    let good = launch(&h, "");
    driver.prepare(good.vmid, Epoch(1)).await.unwrap();
    let process = driver.launch(good).await.unwrap();
    // As its record was when QEMU did not exist yet.
    let meta = std::fs::read_to_string(run.join("meta.json")).unwrap();
    let mut meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
    assert_eq!(meta["shares"].as_object().unwrap().len(), 2);
    meta["process"] = serde_json::Value::Null;
    std::fs::write(run.join("meta.json"), meta.to_string()).unwrap();
    // Its daemon dies, and QEMU hangs, so that nobody's connection ends.
    drop(driver);
    let stop = rustix::process::Pid::from_raw(i32::try_from(process.pid).unwrap()).unwrap();
    rustix::process::kill_process(stop, rustix::process::Signal::STOP).unwrap();
    QemuDriver::new(options).adopt().await;
    assert_eq!(carriers(h.folder.path()), [0; 0]);
    assert!(!run.exists());
}
