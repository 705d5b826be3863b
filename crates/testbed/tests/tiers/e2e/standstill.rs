//! What stands still or is late without being off: a whole machine, a daemon that is started anew, a node with too much to do.

use super::super::support::{RECOVERY, armed, cluster, loopback, node_is, one_writer, runs_on};
use anyhow::{Context, Result, ensure};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use stead_testbed::api::until;

const VM: u32 = 100;

#[test]
fn a_machine_that_stands_still_is_reset_by_its_watchdog_before_its_vm_runs_elsewhere() {
    loopback(async |builder| {
        let cluster = cluster(builder.watchdog()).await?;
        let _poller = armed(&cluster, 1, VM).await?;
        let (node, api) = (cluster.node(1), cluster.api(0).await?);
        let began = Instant::now();
        node.freeze();
        until("its watchdog resets it", RECOVERY, async || Ok((node.bites() == 1).then_some(()))).await?;
        println!("reset after {:.2} s", began.elapsed().as_secs_f64());
        let row = cluster.guest_row(&api, VM).await?;
        ensure!(row["node"] == node.name(), "recovered before the old copy was gone: {row}");
        runs_on(&cluster, &api, VM, RECOVERY, |n| n != 1).await.context("the recovery")?;
        println!("runs elsewhere after {:.2} s", began.elapsed().as_secs_f64());
        node.power_on()?;
        cluster.wait_up(node).await?;
        node_is(&cluster, &api, 1, true).await?;
        one_writer(&cluster, VM)
    });
}

#[test]
fn a_vm_runs_on_while_its_node_s_daemon_is_started_anew_however_long_that_takes() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        let (node, api) = (cluster.node(1), cluster.api(0).await?);
        poller.take_counts();
        node.stop_daemon()?;
        // Longer than the fence time of the default profile, which a death would be counted by.
        tokio::time::sleep(Duration::from_secs(12)).await;
        let away = poller.take_counts();
        println!("while the daemon was away: {away:?}");
        node.start_daemon()?;
        cluster.wait_up(node).await?;
        node_is(&cluster, &api, 1, true).await?;
        let now = poller.now();
        poller.wait(RECOVERY, |s| s.at > now + Duration::from_secs(2)).await?;
        let back = poller.take_counts();
        println!("when it was back: {back:?}");
        for counts in [&away, &back] {
            ensure!(counts.longest_gap < Duration::from_secs(2), "it was paused: {counts:?}");
        }
        let row = cluster.guest_row(&api, VM).await?;
        ensure!(row["node"] == node.name(), "it was recovered elsewhere: {row}");
        // The restart lease is over: a loss is found out as soon as ever.
        until("the mark is gone", RECOVERY, async || {
            let config = std::fs::read_to_string(node.log())?;
            Ok(config.contains("the restart lease is over").then_some(()))
        })
        .await?;
        let began = Instant::now();
        node.power_off()?;
        runs_on(&cluster, &api, VM, RECOVERY, |n| n != 1).await.context("the recovery")?;
        let took = began.elapsed();
        println!("recovered after {:.2} s", took.as_secs_f64());
        ensure!(took < Duration::from_secs(30), "as if the restart lease were alive: {took:?}");
        one_writer(&cluster, VM)
    });
}

/// Busy processes; they end with it.
struct Hogs(Vec<Child>);

impl Hogs {
    fn start(count: usize) -> Result<Self> {
        let mut hogs = Self(vec![]);
        for _ in 0..count {
            let mut hog = Command::new("sh");
            // The time is a bound for the case that nobody ends it.
            hog.args(["-c", "exec timeout 120 sh -c 'while :; do :; done'"]);
            hogs.0.push(hog.stdin(Stdio::null()).spawn().context("starting a busy process")?);
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            // `timeout` passes a TERM on; a KILL would leave its child behind.
            let pid = rustix::process::Pid::from_child(hog);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = hog.wait();
        }
    }
}

#[test]
fn a_machine_with_far_too_much_to_do_runs_its_vm_once() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        let api = cluster.api(0).await?;
        let cpus = std::thread::available_parallelism()?.get();
        let hogs = Hogs::start(cpus * 24)?;
        // All nodes share the CPUs: heartbeats, rounds and answers are late everywhere.
        tokio::time::sleep(Duration::from_secs(15)).await;
        println!("under load: {:?}", poller.take_counts());
        drop(hogs);
        runs_on(&cluster, &api, VM, RECOVERY, |_| true).await?;
        let now = poller.now();
        poller.wait(RECOVERY, |s| s.at > now).await.context("an answer afterwards")?;
        for n in 0..3 {
            node_is(&cluster, &api, n, true).await?;
        }
        one_writer(&cluster, VM)
    });
}
