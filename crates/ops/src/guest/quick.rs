//! What is a quick migration's alone: where the memory goes, and how its target is seen to go on with it.

use super::migrate::Source;
use crate::peers::call;
use crate::{Ops, OpsError};
use std::time::Duration;
use stead_guest::migration::Event;
use stead_model::StorageId;
use stead_model::vmconfig::VmConfig;

/// How long a target may take to read a VM's memory.
const GOES_ON: Duration = Duration::from_secs(300);
/// Asks a node to have a VM go on that has come to it with its memory on disk.
pub const GO_ON_CALL: &str = "guest/go-on";

/// Of a quick migration.
#[derive(Debug, Clone, Default)]
pub struct Quick {
    /// Where its memory is written, if not where the VM's options say.
    pub storage: Option<StorageId>,
}

impl Ops {
    /// Where the memory of a quick migration goes, if that is said. The target must have it, too.
    pub(super) fn shared_room(
        &self,
        quick: &Quick,
        config: &VmConfig,
    ) -> Result<Option<StorageId>, OpsError> {
        let said = config.current.get("vmstatestorage").and_then(|id| id.parse().ok());
        let named = quick.storage.clone().or(said);
        if let Some(storage) = &named
            && !self.storage(storage)?.shared
        {
            return Err(OpsError::invalid(
                "statestorage",
                format!("storage '{storage}' is not shared: the target could not read the VM's memory there"),
            ));
        }
        Ok(named)
    }
}

impl Source<'_> {
    /// The target has the VM go on. One that can't be told finds it by itself.
    pub(super) async fn ask_target_to_go_on(&self) -> Event {
        let vmid = self.vmid();
        let limit = Duration::from_secs(20);
        let said = call::<_, ()>(&*self.ops.peers, &self.target, GO_ON_CALL, &vmid, limit).await;
        let until = tokio::time::Instant::now() + GOES_ON;
        if let Err(e) = &said {
            self.cx.log(format!("node '{}' was not told that the VM is its own now: {e}", self.target.name));
        }
        match tokio::time::timeout_at(until, self.gone_on()).await {
            Ok(Ok(())) => {
                self.cx.log(format!("VM {vmid} runs on node '{}'", self.target.name));
                Event::TargetRuns
            }
            Ok(Err(e)) => Event::TargetSilent(e.to_string()),
            Err(_) => Event::TargetSilent(format!(
                "it is suspended there, with its memory on disk, and was not seen to go on within {} s",
                GOES_ON.as_secs()
            )),
        }
    }

    /// Waits until the VM's memory on disk was given up, or it is said not to run.
    async fn gone_on(&self) -> Result<(), OpsError> {
        let mut watch = self.ops.conf.watch();
        loop {
            let guest = self.ops.vm_at(self.vmid())?;
            if !super::suspend::is_saved(&guest) {
                return Ok(());
            }
            if !guest.own.value.running {
                return Err(OpsError::failed(
                    "it could not go on there, and is suspended with its memory on disk: see its log there, and start it",
                ));
            }
            // Whatever changes, and nothing, both look again.
            let _ = tokio::time::timeout(Duration::from_secs(1), watch.next()).await;
        }
    }
}
