//! Copies of a running guest's disks, by QEMU's jobs.
//!
//! A copy of a moment is a backup job: what the guest overwrites is copied first. All disks begin within one transaction, and end
//! together. A mirror follows the guest; once it is whole, each write reaches both places before the guest hears of it, and the guest
//! can go over to it. Its disk is then on another node of the block graph: which one, QEMU is asked. Or the other place is that of a
//! process on another node, which goes on with it when this one has sent all else.

use crate::command::{self, node_name, refuse, unusable};
use crate::guest::Guest;
use crate::{jobs, lent};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use stead_driver::guest::{CopyKind, CopyPhase, CopyProgress, CopyTo, DiskCopy, GuestError};
use stead_model::vmconfig::Disk;

type Answer<T> = Result<T, GuestError>;

const COPY: &str = "copy disks of";
const MOVE: &str = "move a disk of";
/// How the jobs' names begin, and those of the nodes that are not a start's.
const PREFIX: &str = "copy-";
/// How long a job may take to end once it has nothing more to copy.
const END: Duration = Duration::from_secs(120);
/// How often it is asked whether a mirror is in step, which no event tells.
const LOOK: Duration = Duration::from_millis(20);
/// The first QEMU that changes how a mirror copies while it does.
const CHANGES: (u64, u64, u64) = (8, 2, 0);

fn job(disk: &str) -> String {
    format!("{PREFIX}{disk}")
}

/// The node of the block graph that a drive is on.
pub async fn drive(guest: &Guest, what: &'static str, key: &str) -> Answer<String> {
    let all = guest.ask(what, "query-block", json!({})).await?;
    Ok(drive_in(&all, key).unwrap_or_else(|| node_name(key)))
}

fn drive_in(all: &Value, key: &str) -> Option<String> {
    let of = |device: &&Value| {
        let path = device["qdev"].as_str().unwrap_or_default();
        let id = path.strip_prefix("/machine/peripheral/").unwrap_or(path);
        id.split('/').next() == Some(key)
    };
    let found = all.as_array()?.iter().find(of)?;
    found["inserted"]["node-name"].as_str().map(str::to_owned)
}

/// The two names that a drive's node can have: it goes from one to the other.
fn other(key: &str, now: &str) -> String {
    let usual = node_name(key);
    if now == usual { job(key) } else { usual }
}

/// Closes a node, if it is there.
async fn close(guest: &Guest, node: &str) -> Answer<()> {
    match guest.ask(COPY, "blockdev-del", json!({ "node-name": node })).await {
        Err(GuestError::Refused { why, .. }) if why.contains("Failed to find node") => Ok(()),
        done => done.map(drop),
    }
}

/// Closes the place that a drive which is gone has gone over to.
pub async fn let_go(guest: &Guest, key: &str) -> Answer<()> {
    close(guest, &job(key)).await
}

/// Begins them.
pub async fn begin(guest: &Guest, copies: &[DiskCopy], kind: CopyKind, rate: Option<u64>) -> Answer<()> {
    if !jobs::named(guest, COPY, PREFIX).await?.is_empty() {
        let why = "copies of its disks are under way".to_owned();
        return Err(GuestError::Refused { what: COPY, vmid: guest.vmid, why });
    }
    let begun = begin_all(guest, copies, kind, rate).await;
    if begun.is_err()
        && let Err(e) = end(guest).await
    {
        tracing::warn!(vmid = %guest.vmid, "what was begun of a copy is not closed: {e}");
    }
    begun
}

async fn begin_all(guest: &Guest, copies: &[DiskCopy], kind: CopyKind, rate: Option<u64>) -> Answer<()> {
    let version = guest.monitor(COPY).await?.version();
    let mut actions = vec![];
    for copy in copies {
        let from = drive(guest, COPY, &copy.disk).await?;
        let to = other(&copy.disk, &from);
        // Of one that was cut off.
        close(guest, &to).await?;
        let disk = Disk::parse(&copy.disk, &copy.value).map_err(unusable)?;
        if disk.read_only && kind == CopyKind::Mirror {
            return refuse(
                &copy.disk,
                "a read-only disk can't be moved while it is in use: stop the VM first",
            );
        }
        let place = match &copy.to {
            CopyTo::Volume(volume) => command::image_of(&disk, &to, volume)?,
            CopyTo::Lent(socket) => lent::node(&copy.disk, &to, socket),
        };
        guest.ask(COPY, "blockdev-add", place).await?;
        let mut data = json!({
            "job-id": job(&copy.disk), "device": from, "target": to, "sync": "full", "auto-dismiss": false,
        });
        if let Some(rate) = rate {
            data["speed"] = rate.into();
        }
        if kind == CopyKind::Mirror {
            data["copy-mode"] = (if version < CHANGES { "write-blocking" } else { "background" }).into();
            guest.ask(COPY, "blockdev-mirror", data).await?;
            continue;
        }
        actions.push(json!({ "type": "blockdev-backup", "data": data }));
    }
    if actions.is_empty() {
        return Ok(());
    }
    let all = json!({ "actions": actions, "properties": { "completion-mode": "grouped" } });
    guest.ask_within(COPY, "transaction", all, END).await.map(drop)
}

/// How they stand.
async fn progress(guest: &Guest) -> Answer<CopyProgress> {
    let all = jobs::named(guest, COPY, PREFIX).await?;
    let (done, total) = all.iter().fold((0, 0), |(done, total), job| (done + job.done, total + job.total));
    let error = all.iter().find_map(|job| job.error.clone());
    let phase = if all.is_empty() {
        CopyPhase::None
    } else if error.is_some() || all.iter().any(|job| job.status == "aborting") {
        CopyPhase::Failed
    } else if all.iter().all(jobs::Job::is_over) {
        CopyPhase::Completed
    } else if all.iter().all(|job| job.status == "ready") && in_step(guest).await? {
        CopyPhase::InStep
    } else {
        CopyPhase::Active
    };
    Ok(CopyProgress { phase, done, total, error })
}

/// Whether each write reaches both places before the guest hears of it. A mirror that is whole is made so.
async fn in_step(guest: &Guest) -> Answer<bool> {
    if guest.monitor(COPY).await?.version() < CHANGES {
        // It copies so from the beginning, and is so when it is ready; that it is, it does not tell in words of its own.
        return Ok(true);
    }
    let all = guest.ask(COPY, "query-block-jobs", json!({})).await?;
    let ours = |j: &&Value| j["device"].as_str().is_some_and(|id| id.starts_with(PREFIX));
    let mut all = all.as_array().into_iter().flatten().filter(ours).peekable();
    if all.peek().is_none() {
        return Ok(false);
    }
    for mirror in all {
        if mirror["actively-synced"] == true {
            continue;
        }
        let id = mirror["device"].clone();
        let arguments = json!({ "id": id, "type": "mirror", "copy-mode": "write-blocking" });
        guest.ask(COPY, "block-job-change", arguments).await?;
        return Ok(false);
    }
    Ok(true)
}

/// How they stand, as soon as that differs, or after a while.
pub async fn changed(guest: &Guest, seen: CopyPhase, limit: Duration) -> Answer<CopyProgress> {
    let mut events = guest.monitor(COPY).await?.events();
    let until = tokio::time::Instant::now() + limit;
    loop {
        let now = progress(guest).await?;
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        if now.phase != seen || left.is_zero() {
            return Ok(now);
        }
        let whole = now.phase == CopyPhase::Active && now.total > 0 && now.done >= now.total;
        jobs::changed(guest, &mut events, PREFIX, if whole { LOOK.min(left) } else { left }).await?;
    }
}

/// Has the guest go over to a mirror.
pub async fn pivot(guest: &Guest, disk: &str) -> Answer<()> {
    let before = drive(guest, MOVE, disk).await?;
    guest.ask(MOVE, "job-complete", json!({ "id": job(disk) })).await?;
    jobs::concluded(guest, MOVE, &job(disk), END).await?;
    if drive(guest, MOVE, disk).await? == before {
        let why = "the mirror has ended, and the disk is where it was".to_owned();
        return Err(GuestError::Refused { what: MOVE, vmid: guest.vmid, why });
    }
    close(guest, &before).await
}

/// Ends mirrors in step of a guest that stands, which stays where it is. Cancelled softly, each writes what is left and flushes it.
pub async fn end_mirrors(guest: &Guest) -> Answer<()> {
    let refused = |why: &str| Err(GuestError::Refused { what: COPY, vmid: guest.vmid, why: why.to_owned() });
    if guest.ask(COPY, "query-status", json!({})).await?["running"] != false {
        return refused("its CPUs run: it would write to the one place alone");
    }
    let all = jobs::named(guest, COPY, PREFIX).await?;
    if all.is_empty() || !all.iter().all(|job| job.status == "ready") || !in_step(guest).await? {
        return refused("a copy was not in step to its end");
    }
    for job in &all {
        guest.ask(COPY, "block-job-cancel", json!({ "device": job.id, "force": false })).await?;
    }
    for job in &all {
        jobs::concluded(guest, COPY, &job.id, END).await?;
    }
    end(guest).await
}

/// Ends them, and closes all that no drive is on.
pub async fn end(guest: &Guest) -> Answer<()> {
    jobs::end(guest, COPY, PREFIX, END).await?;
    let nodes = guest.ask(COPY, "query-named-block-nodes", json!({ "flat": true })).await?;
    let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
    let drives = guest.ask(COPY, "query-block", json!({})).await?;
    for node in nodes.iter().filter_map(|n| n["node-name"].as_str()) {
        let Some(key) = node.strip_prefix(PREFIX) else { continue };
        // Of the two that a drive's node can be, the one that it is not.
        match drive_in(&drives, key) {
            Some(now) => close(guest, &other(key, &now)).await?,
            None => close(guest, node).await?,
        }
    }
    Ok(())
}

/// The path that a disk is on.
pub async fn place(guest: &Guest, disk: &str) -> Answer<PathBuf> {
    const WHAT: &str = "look into";
    let node = drive(guest, WHAT, disk).await?;
    let nodes = guest.ask(WHAT, "query-named-block-nodes", json!({ "flat": true })).await?;
    let found = nodes.as_array().into_iter().flatten().find(|n| n["node-name"] == node.as_str());
    // That of the format's node may be one in JSON; the file's below it is a path.
    let file = found.and_then(|n| n["image"]["filename"].as_str().or_else(|| n["file"].as_str()));
    let path = |text: &str| match text.strip_prefix("json:").map(serde_json::from_str::<Value>) {
        Some(Ok(told)) => told["file"]["filename"].as_str().map(PathBuf::from),
        _ => Some(PathBuf::from(text)),
    };
    file.and_then(path).ok_or_else(|| GuestError::Refused {
        what: WHAT,
        vmid: guest.vmid,
        why: format!("it has no disk '{disk}' open"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_found_by_its_device() {
        let all = json!([
            { "qdev": "/machine/peripheral/virtio0/virtio-backend", "inserted": { "node-name": "copy-virtio0" } },
            { "qdev": "scsi1", "inserted": { "node-name": "drive-scsi1" } },
            { "qdev": "ide2" },
        ]);
        assert_eq!(drive_in(&all, "virtio0").as_deref(), Some("copy-virtio0"));
        assert_eq!(drive_in(&all, "scsi1").as_deref(), Some("drive-scsi1"));
        assert_eq!((drive_in(&all, "ide2"), drive_in(&all, "scsi")), (None, None));
        assert_eq!(other("scsi1", "drive-scsi1"), "copy-scsi1");
        assert_eq!(other("scsi1", "copy-scsi1"), "drive-scsi1");
    }
}
