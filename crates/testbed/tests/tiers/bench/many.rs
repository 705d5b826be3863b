//! Ten clones and ten starts: one after the other, and all ordered at once.

use super::super::support::{BOOT, cluster, loopback};
use super::{Figures, Report, runs};
use anyhow::{Result, bail};
use serde_json::Value;
use std::time::{Duration, Instant};
use stead_testbed::ApiClient;
use stead_testbed::api::escape;

const TEMPLATE: u32 = 100;
const FIRST: u32 = 200;
const MANY: u32 = 10;
/// Between two looks at a task: less than what a task's own time may be.
const LOOK: Duration = Duration::from_millis(5);

#[test]
fn ten_clones_and_ten_starts() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        cluster.create_http_guest(0, TEMPLATE, "template").await?;
        api.post_and_wait(&of(TEMPLATE, "template"), &[], BOOT).await?;
        let mut report = Report::new("Ten at once");
        report.table("ms | one after the other: n | min | p50 | max | at once: n | min | p50 | max | at once, to the other");
        for (name, full) in [("ten linked clones", "0"), ("ten full clones", "1")] {
            let clone = async |vmid: u32| {
                let newid = vmid.to_string();
                api.post(&of(TEMPLATE, "clone"), &[("newid", &newid), ("full", full)]).await
            };
            row(&mut report, &api, name, clone, async |vmid| {
                api.delete(&format!("/nodes/n1/qemu/{vmid}")).await
            })
            .await?;
        }
        for vmid in FIRST..FIRST + MANY {
            cluster.create_tick_guest(0, vmid).await?;
        }
        let order = async |vmid: u32, what: &str| api.post(&of(vmid, &format!("status/{what}")), &[]).await;
        row(
            &mut report,
            &api,
            "ten starts",
            async |vmid| order(vmid, "start").await,
            async |vmid| order(vmid, "stop").await,
        )
        .await?;
        report.publish()
    });
}

fn of(vmid: u32, below: &str) -> String {
    format!("/nodes/n1/qemu/{vmid}/{below}")
}

/// Measures what `order` gives a task for, either way, and has `undo` undo it each time.
async fn row(
    report: &mut Report,
    api: &ApiClient,
    name: &str,
    order: impl AsyncFn(u32) -> Result<Value>,
    undo: impl AsyncFn(u32) -> Result<Value>,
) -> Result<()> {
    let (mut in_turn, mut at_once) = (Figures::default(), Figures::default());
    // The first time warms caches up.
    for n in 0..=runs(5) {
        let begin = Instant::now();
        for vmid in FIRST..FIRST + MANY {
            ended(api, &order(vmid).await?).await?;
        }
        let turn = begin.elapsed().as_secs_f64() * 1e3;
        undo_all(api, &undo).await?;
        let begin = Instant::now();
        let mut tasks = Vec::new();
        for vmid in FIRST..FIRST + MANY {
            tasks.push(order(vmid).await?);
        }
        for task in &tasks {
            ended(api, task).await?;
        }
        let once = begin.elapsed().as_secs_f64() * 1e3;
        undo_all(api, &undo).await?;
        println!("{name}, run {n}: one after the other {turn:.0} ms, at once {once:.0} ms");
        if n > 0 {
            in_turn.0.push(turn);
            at_once.0.push(once);
        }
    }
    let ratio = at_once.p50() / in_turn.p50();
    report.row(&format!("{name} | {} | {} | {ratio:.2}", in_turn.cells(0), at_once.cells(0)));
    Ok(())
}

async fn undo_all(api: &ApiClient, undo: &impl AsyncFn(u32) -> Result<Value>) -> Result<()> {
    let mut tasks = Vec::new();
    for vmid in FIRST..FIRST + MANY {
        tasks.push(undo(vmid).await?);
    }
    for task in &tasks {
        ended(api, task).await?;
    }
    Ok(())
}

/// Waits for a task, with closer looks than others take.
async fn ended(api: &ApiClient, task: &Value) -> Result<()> {
    let path = format!("/nodes/n1/tasks/{}/status", escape(task.as_str().unwrap_or("")));
    let begin = Instant::now();
    while begin.elapsed() < BOOT {
        let status = api.get(&path).await?;
        if status["status"] == "stopped" {
            // It tells the reason where it has failed.
            return if status["exitstatus"] == "OK" { Ok(()) } else { api.wait_task(task, BOOT).await };
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!("{task} has not ended within {BOOT:?}")
}
