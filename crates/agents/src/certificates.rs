//! Makes this node's certificate anew long before its end, and when the node's addresses have changed.
//!
//! It is looked at when the daemon starts, once a day, and when the records of the nodes or the CA's certificate change. What goes by
//! the time is done once a day at most, whatever the clocks say meanwhile, unless the certificate has ended.

use crate::clock::boottime;
use std::sync::Arc;
use std::time::Duration;
use stead_model::paths;
use stead_ops::certificates::RenewRequest;
use stead_ops::{Ops, OpsError, store};

/// How often certificates are looked at.
const DAILY: Duration = Duration::from_secs(86_400);
/// The same while there is no majority, or after something went wrong, for the first time; twice as long each time.
const AGAIN: Duration = Duration::from_secs(5);
/// The same in the long run.
const AT_MOST: Duration = Duration::from_secs(600);

/// When it may be done again for reasons of time.
#[derive(Debug, Default)]
struct Brake {
    /// When it was done, since the machine's boot.
    done: Option<Duration>,
}

impl Brake {
    fn is_off(&self, now: Duration) -> bool {
        self.done.is_none_or(|done| now.saturating_sub(done) >= DAILY)
    }
}

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    let mut watch = ops.conf.watch();
    let (mut brake, mut wait) = (Brake::default(), AGAIN);
    loop {
        let next = match round(&ops, &mut brake, boottime()).await {
            Ok(()) => {
                wait = AGAIN;
                DAILY
            }
            Err(e) => {
                tracing::debug!("this node's certificate could not be looked after: {e}");
                let now = wait;
                wait = (wait * 2).min(AT_MOST);
                now
            }
        };
        let changed = async {
            loop {
                match watch.next().await {
                    Some(e) if !store::touches(&e, paths::NODES) && !store::touches(&e, paths::CA_CERT) => {}
                    other => return other.is_some(),
                }
            }
        };
        if tokio::time::timeout(next, changed).await == Ok(false) {
            return;
        }
    }
}

/// Looks, and does what is due.
async fn round(ops: &Ops, brake: &mut Brake, now: Duration) -> Result<(), OpsError> {
    if !ops.quorate() {
        return Err(OpsError::failed("no majority is in contact"));
    }
    let by_time = brake.is_off(now);
    if !ops.certificate_is_due(by_time)? {
        return Ok(());
    }
    let renewal = ops.renew_own(&RenewRequest { force: false, by: "root@pam".to_owned() }).await?;
    if renewal.renewed && by_time {
        brake.done = Some(now);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;
    use stead_ops_testing::Node;
    use stead_transport::Facts;

    const YEARS: i64 = 365 * 86_400_000;

    fn shown(node: &Node) -> Facts {
        Facts::of(&node.ops.host.certificates().cert).unwrap()
    }

    /// A clock that jumps back and forth by years makes one certificate.
    #[tokio::test]
    async fn a_clock_that_jumps_makes_no_certificate_after_the_other() {
        let node = Node::start().await;
        let mut brake = Brake::default();
        let mut made = 0;
        let mut last = shown(&node).fingerprint;
        let days = [0, 0, 0, 1, 1, 2, 2].map(|day| DAILY * day);
        for (turn, now) in days.into_iter().enumerate() {
            // Behind means that the cluster's clock is ahead.
            node.ops.status.is_ahead(if turn % 2 == 0 { -3 * YEARS } else { 0 });
            round(&node.ops, &mut brake, now).await.unwrap();
            if std::mem::replace(&mut last, shown(&node).fingerprint) != shown(&node).fingerprint {
                made += 1;
            }
        }
        assert_eq!(made, 1, "what has not begun stays");
    }

    #[tokio::test]
    async fn what_is_good_stays_as_it_is() {
        let node = Node::start().await;
        let before = node.ops.host.certificates();
        round(&node.ops, &mut Brake::default(), DAILY).await.unwrap();
        assert_eq!(node.ops.host.certificates(), before);
    }
}
