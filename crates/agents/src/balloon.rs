//! Has the balloons of this node's guests follow its memory.

use std::sync::Arc;
use std::time::Duration;
use stead_ops::Ops;

/// How often. Guests take and give memory within seconds, and the node's report shows that after another two.
const PERIOD: Duration = Duration::from_secs(10);

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    let mut period = tokio::time::interval(PERIOD);
    loop {
        period.tick().await;
        // What this node has reported last; nothing yet, just after its start.
        if let Some(report) = ops.status.node(&ops.me.name) {
            ops.balance_memory(report.stats.maxmem, report.stats.mem).await;
        }
    }
}
