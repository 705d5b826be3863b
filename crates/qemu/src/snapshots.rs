//! Snapshots of a running guest's disks, kept in their qcow2 images, and of its memory, in a file.
//!
//! QEMU takes them in its main loop, within one transaction: between two of them the guest can write nothing, and where one
//! fails none is kept. Its CPUs are never continued here, so that one that its user or the fence process has paused stays so; they are
//! stopped only for a snapshot with the guest's memory.

use crate::copies;
use crate::guest::Guest;
use crate::migration;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use stead_driver::guest::GuestError;

/// How long QEMU may be at it: it goes over the tables of all clusters of an image.
const LIMIT: Duration = Duration::from_secs(600);

/// Keeps the present state of these disks under a name.
pub async fn take(guest: &Guest, disks: &[String], name: &str) -> Result<(), GuestError> {
    const WHAT: &str = "take a snapshot of";
    if disks.is_empty() {
        return Ok(());
    }
    let mut actions: Vec<Value> = vec![];
    for disk in disks {
        let device = copies::drive(guest, WHAT, disk).await?;
        let data = json!({ "device": device, "name": name });
        actions.push(json!({ "type": "blockdev-snapshot-internal-sync", "data": data }));
    }
    guest.ask_within(WHAT, "transaction", json!({ "actions": actions }), LIMIT).await.map(drop)
}

/// As [`take`], and begins to write the guest's memory. Its CPUs stand from the disks' transaction on.
pub async fn take_with_memory(
    guest: &Guest,
    disks: &[String],
    name: &str,
    to: &Path,
) -> Result<(), GuestError> {
    migration::can_write_memory(guest).await?;
    guest.ask("pause", "stop", json!({})).await?;
    take(guest, disks, name).await?;
    migration::write_memory(guest, to).await
}

/// Has a disk forget what it keeps under a name, if it does.
pub async fn forget(guest: &Guest, disk: &str, name: &str) -> Result<(), GuestError> {
    const WHAT: &str = "remove a snapshot of";
    let node = copies::drive(guest, WHAT, disk).await?;
    let nodes = guest.ask(WHAT, "query-named-block-nodes", json!({ "flat": true })).await?;
    match keeps(&nodes, &node, name) {
        Some(false) => Ok(()),
        Some(true) => {
            let args = json!({ "device": node, "name": name });
            guest.ask_within(WHAT, "blockdev-snapshot-delete-internal-sync", args, LIMIT).await.map(drop)
        }
        None => {
            let why = format!("it has no disk '{disk}' open");
            Err(GuestError::Refused { what: WHAT, vmid: guest.vmid, why })
        }
    }
}

/// Whether a node's image keeps something under a name; none where there is no such node.
fn keeps(nodes: &Value, node: &str, name: &str) -> Option<bool> {
    let found = nodes.as_array()?.iter().find(|n| n["node-name"] == node)?;
    let all = found["image"]["snapshots"].as_array();
    Some(all.is_some_and(|all| all.iter().any(|s| s["name"] == name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_s_snapshots_are_its_own() {
        let nodes = json!([
            { "node-name": "drive-scsi0", "image": { "snapshots": [{ "id": "1", "name": "a" }] } },
            { "node-name": "drive-scsi1", "image": {} },
        ]);
        assert_eq!(keeps(&nodes, "drive-scsi0", "a"), Some(true));
        assert_eq!(keeps(&nodes, "drive-scsi0", "1"), Some(false));
        assert_eq!(keeps(&nodes, "drive-scsi1", "a"), Some(false));
        assert_eq!(keeps(&nodes, "drive-scsi2", "a"), None);
    }
}
