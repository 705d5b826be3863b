//! Disks that a waiting process lends to the one whose place it takes: exports by QEMU's NBD server, on a socket in its directory.
//!
//! What is lent can be written from outside, so it ends before the guest's CPUs run. Where it has not, QEMU refuses to continue them,
//! since only one may write.

use crate::command::node_name;
use crate::guest::Guest;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_driver::guest::{GuestError, RunState};

type Answer<T> = Result<T, GuestError>;

const LEND: &str = "lend disks of";
/// How long writes that are under way may take.
const END: Duration = Duration::from_secs(30);
/// How often it is asked whether an export has gone, which is told for none that goes at once.
const LOOK: Duration = Duration::from_millis(5);

/// Lends the disks of a guest that waits. Where.
pub async fn lend(guest: &Guest, disks: &[String]) -> Answer<PathBuf> {
    let path = guest.dir.lending();
    let _ = std::fs::remove_file(&path);
    let addr = json!({ "type": "unix", "data": { "path": path } });
    guest.ask(LEND, "nbd-server-start", json!({ "addr": addr })).await?;
    for disk in disks {
        let export = json!({ "type": "nbd", "id": disk, "node-name": node_name(disk), "name": disk, "writable": true });
        guest.ask(LEND, "block-export-add", export).await?;
    }
    Ok(path)
}

/// Where they are lent.
pub async fn inlet(guest: &Guest) -> Answer<PathBuf> {
    let path = guest.dir.lending();
    if guest.run_state().await == RunState::Inmigrate && path.exists() {
        return Ok(path);
    }
    Err(GuestError::Refused { what: LEND, vmid: guest.vmid, why: "it lends none".to_owned() })
}

/// Ends it. What was written is where it belongs when this returns: whoever wrote it has had it flushed.
pub async fn end(guest: &Guest) -> Answer<()> {
    let until = tokio::time::Instant::now() + END;
    loop {
        let exports = guest.ask(LEND, "query-block-exports", json!({})).await?;
        let exports = exports.as_array().cloned().unwrap_or_default();
        if exports.is_empty() {
            break;
        }
        if tokio::time::Instant::now() > until {
            return Err(GuestError::TimedOut {
                what: "lending disks",
                vmid: guest.vmid,
                seconds: END.as_secs(),
            });
        }
        for export in exports.iter().filter(|e| e["shutting-down"] != true) {
            guest.ask(LEND, "block-export-del", json!({ "id": export["id"], "mode": "hard" })).await?;
        }
        tokio::time::sleep(LOOK).await;
    }
    guest.ask(LEND, "nbd-server-stop", json!({})).await?;
    let _ = std::fs::remove_file(guest.dir.lending());
    Ok(())
}

/// The node of a disk that another process lends.
pub fn node(disk: &str, node: &str, socket: &Path) -> Value {
    json!({
        "driver": "nbd",
        "node-name": node,
        "server": { "type": "unix", "path": socket },
        "export": disk,
        "discard": "unmap",
    })
}
