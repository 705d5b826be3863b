//! Looks after this node's storages, for its status report: beside the report, so that a storage that hangs delays none.
//!
//! Each storage is probed every few seconds, one probe at a time; a probe that does not come back is waited for, not
//! repeated ([`stead_ops::kept_open`]). Where guests' disks may lie it writes some bytes through, so 1,000 nodes make 200
//! small writes a second on a storage that all of them share.

use crate::clock::boottime;
use std::sync::Arc;
use std::time::Duration;
use stead_ops::Ops;
use stead_ops::status::StorageReport;
use stead_ops::storage_health::Health;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// How often each storage is probed.
const PERIOD: Duration = Duration::from_secs(5);

/// For as long as the daemon runs, and its report is wanted.
pub async fn run(ops: Arc<Ops>, tell: watch::Sender<Vec<StorageReport>>) {
    let mut health = Health::default();
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let found = ops.probe_storages().await;
        let (reports, news) = health.note(boottime(), found);
        for text in &news {
            tracing::warn!("{text}");
        }
        let first = tell.borrow().len() != reports.len();
        if tell.send(reports).is_err() {
            return;
        }
        if first || !news.is_empty() {
            ops.flush.soon();
        }
    }
}
