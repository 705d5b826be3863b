//! Tells the members where this node is, for as long as the configuration says another address, and records it: see
//! [`stead_ops::contacts`].

use std::sync::Arc;
use std::time::Duration;
use stead_model::paths;
use stead_ops::{Ops, store};

/// How often the others are told, until the new address is recorded.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    let mut watch = ops.conf.watch();
    let mut told = false;
    loop {
        let moved = ops.has_moved();
        if moved {
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("this node is at {} now: the others are told", ops.me.addr);
            }
            ops.tell_where().await;
            if ops.quorate()
                && let Err(e) = ops.record_where().await
            {
                tracing::debug!("where this node is could not be recorded yet: {e}");
            }
        }
        let changed = async {
            loop {
                match watch.next().await {
                    Some(event) if !store::touches(&event, paths::NODES) => {}
                    other => return other.is_some(),
                }
            }
        };
        let again = if moved { AGAIN } else { Duration::MAX };
        if tokio::time::timeout(again, changed).await == Ok(false) {
            return;
        }
    }
}
