//! What a guest's balloon has taken, and what the guest's system tells of its memory by it.

use crate::qmp::Qmp;
use serde_json::{Value, json};
use std::time::Duration;
use stead_driver::guest::{Balloon, BalloonStats};

const PATH: &str = "/machine/peripheral/balloon0";
/// How often the guest's system is asked, in seconds.
const PERIOD: u64 = 2;

/// Asks; none where there is no balloon, or no answer within a limit.
pub async fn ask(qmp: &Qmp, limit: Duration) -> Option<Balloon> {
    let size = qmp.execute_within("query-balloon", json!({}), limit).await.ok()?;
    let asked = json!({ "path": PATH, "property": "guest-stats" });
    let told = qmp.execute_within("qom-get", asked, limit).await.unwrap_or_default();
    let found = read(&size, &told)?;
    if found.stats.is_none() {
        // Nobody has had the guest asked yet, or it has no driver for it; saying so again changes nothing.
        let period = json!({ "path": PATH, "property": "guest-stats-polling-interval", "value": PERIOD });
        let _ = qmp.execute_within("qom-set", period, limit).await;
    }
    Some(found)
}

fn read(size: &Value, told: &Value) -> Option<Balloon> {
    let stat = |name: &str| {
        // What the system does not know is the greatest number that there is.
        told["stats"][format!("stat-{name}")].as_u64().filter(|n| *n != u64::MAX)
    };
    let at = told["last-update"].as_u64().filter(|at| *at > 0);
    let stats = at.map(|at| BalloonStats {
        at,
        total: stat("total-memory"),
        free: stat("free-memory"),
        swapped_in: stat("swap-in"),
        swapped_out: stat("swap-out"),
        major_faults: stat("major-faults"),
        minor_faults: stat("minor-faults"),
    });
    Some(Balloon { actual: size["actual"].as_u64()?, stats })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_system_does_not_tell_is_not_known() {
        let size = json!({ "actual": 5 << 20 });
        assert_eq!(read(&size, &Value::Null), Some(Balloon { actual: 5 << 20, stats: None }));
        let silent = json!({ "last-update": 0, "stats": { "stat-free-memory": -1 } });
        assert_eq!(read(&size, &silent).unwrap().stats, None);
        let told = json!({ "last-update": 7, "stats": { "stat-free-memory": 3, "stat-total-memory": 4, "stat-swap-in": u64::MAX } });
        let stats = read(&size, &told).unwrap().stats.unwrap();
        assert_eq!((stats.at, stats.free, stats.total, stats.swapped_in), (7, Some(3), Some(4), None));
        assert_eq!(read(&json!({}), &told), None);
    }
}
