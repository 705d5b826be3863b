//! Asks the agents in this node's VMs for their addresses, beside the node's reports: an agent may be slow.

use std::sync::Arc;
use std::time::Duration;
use stead_ops::Ops;

/// How often.
const PERIOD: Duration = Duration::from_secs(20);

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        ops.ask_addresses().await;
    }
}
