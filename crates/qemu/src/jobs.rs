//! QEMU's jobs: begun, followed, ended.
//!
//! None is dismissed by itself: its end can be read only while it is there, and one that is gone was ended by somebody else, as the
//! fence process does when a lease is lost. So a job that is not there has failed. One that has concluded writes no more, and is
//! dismissed by whoever began it.
//!
//! ```text
//!  created ─▶ running ─▶ ready (a mirror) ─▶ waiting, pending ─▶ concluded ─▶ (dismissed)
//!                 └─────────▶ aborting ───────────────────────────┘
//! ```

use crate::guest::Guest;
use serde_json::{Value, json};
use std::time::Duration;
use stead_driver::guest::GuestError;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

type Answer<T> = Result<T, GuestError>;

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub id: String,
    /// QEMU's word for where it stands.
    pub status: String,
    /// How far it is.
    pub done: u64,
    /// How far it goes.
    pub total: u64,
    /// Why it failed.
    pub error: Option<String>,
}

impl Job {
    /// Whether it does nothing any more.
    pub fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "concluded" | "null")
    }
}

fn read(answer: &Value) -> Vec<Job> {
    let one = |job: &Value| Job {
        id: job["id"].as_str().unwrap_or_default().to_owned(),
        status: job["status"].as_str().unwrap_or_default().to_owned(),
        done: job["current-progress"].as_u64().unwrap_or(0),
        total: job["total-progress"].as_u64().unwrap_or(0),
        error: job["error"].as_str().map(str::to_owned),
    };
    answer.as_array().map(|all| all.iter().map(one).collect()).unwrap_or_default()
}

/// Those whose names begin so.
pub async fn named(guest: &Guest, what: &'static str, prefix: &str) -> Answer<Vec<Job>> {
    let mut all = read(&guest.ask(what, "query-jobs", json!({})).await?);
    all.retain(|job| job.id.starts_with(prefix));
    Ok(all)
}

/// Waits until one of them may stand elsewhere, at most so long.
pub async fn changed(
    guest: &Guest,
    events: &mut Receiver<crate::qmp::Event>,
    prefix: &str,
    limit: Duration,
) -> Answer<()> {
    let heard = async {
        loop {
            match events.recv().await {
                Ok(event) if event.name == "JOB_STATUS_CHANGE" => {
                    if event.data["id"].as_str().is_some_and(|id| id.starts_with(prefix)) {
                        return Ok(());
                    }
                }
                Ok(_) => {}
                // What was missed is found by asking.
                Err(RecvError::Lagged(_)) => return Ok(()),
                Err(RecvError::Closed) => return Err(GuestError::NotRunning(guest.vmid)),
            }
        }
    };
    tokio::time::timeout(limit, heard).await.unwrap_or(Ok(()))
}

/// Waits until it does nothing any more, and dismisses it. One that is not there has failed.
pub async fn concluded(guest: &Guest, what: &'static str, id: &str, limit: Duration) -> Answer<()> {
    let until = Instant::now() + limit;
    let mut events = guest.monitor(what).await?.events();
    loop {
        let all = named(guest, what, id).await?;
        let refused = |why: String| Err(GuestError::Refused { what, vmid: guest.vmid, why });
        match all.into_iter().find(|job| job.id == id) {
            None => return refused("somebody has ended it".to_owned()),
            Some(job) if job.is_over() => {
                dismiss(guest, what, id).await?;
                return job.error.map_or(Ok(()), refused);
            }
            Some(_) if Instant::now() >= until => {
                return Err(GuestError::TimedOut { what, vmid: guest.vmid, seconds: limit.as_secs() });
            }
            Some(_) => changed(guest, &mut events, id, Duration::from_secs(1)).await?,
        }
    }
}

/// Cancels what is not over, waits until all of those named so are, and dismisses them.
pub async fn end(guest: &Guest, what: &'static str, prefix: &str, limit: Duration) -> Answer<()> {
    let until = Instant::now() + limit;
    let mut events = guest.monitor(what).await?.events();
    loop {
        let all = named(guest, what, prefix).await?;
        for job in &all {
            // It may have gone on in this moment: it is asked again.
            let _ = match job.is_over() {
                true => dismiss(guest, what, &job.id).await,
                false => guest.ask(what, "job-cancel", json!({ "id": job.id })).await.map(drop),
            };
        }
        if all.iter().all(Job::is_over) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(GuestError::TimedOut { what, vmid: guest.vmid, seconds: limit.as_secs() });
        }
        changed(guest, &mut events, prefix, Duration::from_secs(1)).await?;
    }
}

async fn dismiss(guest: &Guest, what: &'static str, id: &str) -> Answer<()> {
    guest.ask(what, "job-dismiss", json!({ "id": id })).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_read() {
        let answer = json!([
            { "id": "copy-scsi0", "status": "ready", "current-progress": 5, "total-progress": 9, "type": "mirror" },
            { "id": "x", "status": "concluded", "current-progress": 0, "total-progress": 1, "error": "no" },
        ]);
        let jobs = read(&answer);
        assert_eq!(
            (jobs[0].id.as_str(), jobs[0].done, jobs[0].total, jobs[0].is_over()),
            ("copy-scsi0", 5, 9, false)
        );
        assert_eq!((jobs[1].error.as_deref(), jobs[1].is_over()), (Some("no"), true));
    }
}
