//! Two nodes on one machine, with a folder that both see.

use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use stead_driver::guest::{GuestDriver, GuestProcess, Launch, ResolvedVolume};
use stead_driver::suite::guest::GuestHarness;
use stead_driver::suite::sector;
use stead_model::{Epoch, Vmid};
use stead_qemu::{CpuRoot, QemuDriver, QemuOptions};

/// The nodes.
pub struct Machines {
    pub folder: tempfile::TempDir,
    cgroups: [Option<PathBuf>; 2],
    cpus: [Option<CpuRoot>; 2],
}

impl Machines {
    pub async fn new() -> Self {
        // Short, since sockets lie below.
        let folder = tempfile::Builder::new().prefix("sq").tempdir_in("/tmp").unwrap();
        let tag = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
        let cgroups = [0, 1].map(|node| stead_qemu::find_cgroup_root(&format!("{tag}-{node}")));
        let cpus = [0, 1].map(|node| stead_qemu::find_cpu_root(&format!("{tag}-{node}")));
        Self { folder, cgroups, cpus }
    }

    pub fn options(&self, node: usize) -> QemuOptions {
        let run_dir = self.folder.path().join(node.to_string());
        QemuOptions {
            cgroup_root: self.cgroups[node].clone(),
            cpu_root: self.cpus[node].clone(),
            ..QemuOptions::new(run_dir)
        }
    }

    pub fn disk(&self, vmid: Vmid) -> PathBuf {
        self.folder.path().join(format!("{vmid}.raw"))
    }
}

/// The guests' processes of a run directory, by their command lines.
pub fn processes(run_dir: &Path) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let run_dir = run_dir.to_str().unwrap();
    let ours = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|w| w.starts_with(run_dir) && w.ends_with("/pid"))
    };
    pids.filter(ours).collect()
}

pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Waits until guest 100 has written a few times more, which nothing announces.
#[allow(dead_code, reason = "some binaries' tests alone look at what a guest writes")]
pub async fn writing(driver: &stead_qemu::QemuDriver) {
    use stead_driver::guest::GuestDriver;
    let id = Vmid::new(100).unwrap();
    let before = driver.state(id).await.unwrap().disk_write;
    let again = async {
        while driver.state(id).await.unwrap().disk_write < before + 5 * 512 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("the guest does not write");
}

/// Kills a process and waits until it has ended.
#[allow(dead_code, reason = "one binary's tests alone end processes so")]
pub fn end(pid: u32) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let raw = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let end = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).unwrap();
    kill(pid);
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert!(poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&limit)).unwrap() > 0, "{pid} does not end");
}

impl Drop for Machines {
    fn drop(&mut self) {
        for node in ["0", "1"] {
            processes(&self.folder.path().join(node)).into_iter().for_each(kill);
        }
        let shares = self.cpus.iter().flatten().map(|root| match root {
            CpuRoot::V1(root) | CpuRoot::V2(root) => root,
        });
        let groups =
            self.cgroups.iter().flatten().chain(shares).flat_map(std::fs::read_dir).flatten().flatten();
        for group in groups.map(|g| g.path()).filter(|g| g.is_dir()) {
            // Its processes were killed; they are gone soon.
            let until = std::time::Instant::now() + Duration::from_secs(5);
            while std::fs::read_to_string(group.join("cgroup.events"))
                .is_ok_and(|e| e.contains("populated 1"))
                && std::time::Instant::now() < until
            {
                std::thread::yield_now();
            }
            for folder in group.ancestors().take(3) {
                let _ = std::fs::remove_dir(folder);
            }
        }
    }
}

pub const CONFIG: &str = "balloon: 0\nboot: order=virtio0\nmemory: 16\nserial0: socket\nvga: none\n\
                          virtio0: shared:100/vm-100-disk-0.raw\n";

#[async_trait]
impl GuestHarness for Machines {
    fn driver(&self, node: usize) -> Arc<dyn GuestDriver> {
        Arc::new(QemuDriver::new(self.options(node)))
    }

    fn launch(&self, vmid: Vmid, epoch: Epoch) -> Launch {
        let path = self.disk(vmid);
        if !path.exists() {
            std::fs::write(&path, sector::disk()).unwrap();
        }
        let volume =
            ResolvedVolume { volume: "shared:100/vm-100-disk-0.raw".into(), path, format: "raw".into() };
        Launch { vmid, epoch, config: CONFIG.into(), volumes: vec![volume], recovered: false, incoming: None }
    }

    fn broken(&self, vmid: Vmid) -> Launch {
        let mut launch = self.launch(vmid, Epoch(1));
        launch.volumes[0].path = "/nowhere/disk.raw".into();
        launch
    }

    fn ticks(&self, vmid: Vmid) -> u64 {
        sector::ticks(&self.disk(vmid))
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(300)
    }

    async fn crash(&self, _node: usize, process: &GuestProcess) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(process.pid).unwrap()).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        kill(process.pid);
        // Its end, also where nobody watches.
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
    }

    fn traces(&self, node: usize, vmid: Vmid) -> Vec<String> {
        let dir = self.options(node).run_dir;
        let mut all: Vec<String> = processes(&dir).iter().map(|pid| format!("process {pid}")).collect();
        let group = self.cgroups[node].as_ref().map(|root| root.join(vmid.to_string()));
        let share = match &self.cpus[node] {
            Some(CpuRoot::V1(root)) => Some(root.join(vmid.to_string())),
            _ => None,
        };
        for path in [Some(dir.join(vmid.to_string())), group, share].into_iter().flatten() {
            if path.exists() {
                all.push(path.display().to_string());
            }
        }
        all
    }
}
