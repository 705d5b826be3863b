//! The configuration itself: beside etcd, with 20,000 guests, when its leader is lost, and over slow links (docs/conf.md).

mod etcd;
mod guests;
mod leader;
mod slow;

use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};
use stead_testbed::ApiClient;

/// The cluster's options.
const OPTIONS: &str = "/cluster/options";

/// Commits one small change, of something that has a description, by the API; how long it took.
async fn commit(api: &ApiClient, of: &str, text: &str) -> Result<Duration> {
    let begin = Instant::now();
    api.put(of, &[("description", text)]).await?;
    Ok(begin.elapsed())
}

/// The lines of a node's log that tell of a leader: when, in seconds since 1970, and whether there was one.
fn leaders(log: &Path) -> Result<Vec<(f64, bool)>> {
    let text = std::fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    let told = text.lines().filter(|line| line.contains("configuration's leader"));
    Ok(told.filter_map(|line| Some((moment(line)?, line.contains("Some(")))).collect())
}

/// The moment that a line of a log begins with, in seconds since the day it was written began.
fn moment(line: &str) -> Option<f64> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let mut parts = time.split(':');
    let mut next = || parts.next()?.parse::<f64>().ok();
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    Some((hours * 60.0 + minutes) * 60.0 + seconds)
}

/// Now, in seconds since the day began, as [`moment`] tells it.
fn of_day() -> f64 {
    super::now() % 86_400.0
}

#[test]
fn the_moment_of_a_line_is_read() {
    let line = "2026-11-23T04:35:44.250000Z  INFO stead_conf::shell: configuration's leader id=2 term=3 leader=Some(1)";
    assert!((moment(line).unwrap() - (4.0 * 3600.0 + 35.0 * 60.0 + 44.25)).abs() < 1e-6);
    assert_eq!(moment("no time"), None);
}
