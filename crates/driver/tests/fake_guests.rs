//! The guests without machines pass the guests' suite.

#![allow(clippy::unwrap_used, reason = "tests")]

use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use stead_driver::fake::{FakeGuests, FakeMachines};
use stead_driver::guest::{GuestDriver, GuestProcess, Launch, ResolvedVolume};
use stead_driver::suite::guest::GuestHarness;
use stead_model::{Epoch, Vmid};

struct Fakes {
    folder: tempfile::TempDir,
    machines: FakeMachines,
}

impl Fakes {
    async fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), machines: FakeMachines::default() }
    }
}

fn name(node: usize) -> String {
    format!("n{node}")
}

#[async_trait]
impl GuestHarness for Fakes {
    fn driver(&self, node: usize) -> Arc<dyn GuestDriver> {
        Arc::new(FakeGuests::new(&self.machines, &name(node), self.folder.path()))
    }

    fn launch(&self, vmid: Vmid, epoch: Epoch) -> Launch {
        Launch {
            vmid,
            epoch,
            config: "memory: 16\n".into(),
            volumes: vec![],
            recovered: false,
            incoming: None,
        }
    }

    fn broken(&self, vmid: Vmid) -> Launch {
        let volume = ResolvedVolume { volume: "x:y".into(), path: "/broken".into(), format: "raw".into() };
        Launch { volumes: vec![volume], ..self.launch(vmid, Epoch(1)) }
    }

    fn ticks(&self, vmid: Vmid) -> u64 {
        self.machines.ticks(vmid)
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(10)
    }

    async fn crash(&self, node: usize, process: &GuestProcess) {
        assert!(self.machines.crash(&name(node), process.vmid));
    }

    fn traces(&self, node: usize, vmid: Vmid) -> Vec<String> {
        let process = self.machines.state(&name(node), vmid).map(|s| format!("{s:?}"));
        let prefix = format!("{}-{vmid}.", name(node));
        let files = std::fs::read_dir(self.folder.path()).unwrap().flatten();
        let files = files.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(&prefix));
        process.into_iter().chain(files).collect()
    }
}

stead_driver::guest_conformance!(Fakes);
