//! The event stream: what a task says on one node is heard at every other.

use super::super::support::{BOOT, cluster, loopback};
use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use stead_testbed::ApiClient;
use stead_testbed::api::escape;
use stead_transport::Body;

const VM: u32 = 100;

/// One who reads a node's stream.
struct Reader {
    body: Body,
    text: String,
}

impl Reader {
    async fn at(api: &ApiClient, since: &str) -> Result<Self> {
        let mut reader =
            Self { body: api.stream(&format!("/cluster/events{since}")).await?, text: String::new() };
        let greeting = reader.frame().await?;
        ensure!(greeting == ": following", "{greeting}");
        Ok(reader)
    }

    async fn frame(&mut self) -> Result<String> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let frame = frame.to_owned();
                self.text = rest.to_owned();
                return Ok(frame);
            }
            let more = self.body.frame().await.context("the stream has ended")?;
            let more = more.map_err(|e| anyhow::anyhow!("the stream broke: {e}"))?;
            if let Ok(data) = more.into_data() {
                self.text += std::str::from_utf8(&data)?;
            }
        }
    }

    /// The lines of a task's log by their numbers, once its end and as many lines have come; and the last cursor.
    async fn log_of(&mut self, upid: &str, lines: usize) -> Result<(BTreeMap<u64, String>, String)> {
        let (mut log, mut ended, mut cursor) = (BTreeMap::new(), false, String::new());
        while !ended || log.len() < lines {
            let frame = self.frame().await?;
            let field = |name: &str| frame.lines().find_map(|l| l.strip_prefix(name));
            cursor = field("id: ").map_or(cursor, str::to_owned);
            let Some(data) = field("data: ") else { continue };
            let event: Value = serde_json::from_str(data)?;
            ensure!(event["kind"] != "reset", "lines were lost: {event}");
            if event["id"] == upid && event["kind"] == "task-log" {
                let line = &event["data"];
                log.insert(line["n"].as_u64().context("n")?, line["t"].as_str().context("t")?.to_owned());
            }
            ended |= event["id"] == upid && event["kind"] == "task-end";
        }
        Ok((log, cursor))
    }
}

/// Starts or stops the VM; gives the task and the lines of its log.
async fn task(api: &ApiClient, action: &str) -> Result<(String, Vec<Value>)> {
    let upid = api.post(&format!("/nodes/n2/qemu/{VM}/status/{action}"), &[]).await?;
    api.wait_task(&upid, BOOT).await?;
    let upid = upid.as_str().context("a task")?.to_owned();
    let log = api.get(&format!("/nodes/n2/tasks/{}/log?limit=0", escape(&upid))).await?;
    Ok((upid, log.as_array().context("a log")?.clone()))
}

/// Reads a task's log from the stream of each node, and compares; gives where each may go on.
async fn all_hear(readers: &mut [Reader], upid: &str, log: &[Value]) -> Result<Vec<String>> {
    ensure!(!log.is_empty() && log[0]["t"] != "no content", "a task that says nothing");
    let mut cursors = vec![];
    for (n, reader) in readers.iter_mut().enumerate() {
        let heard = tokio::time::timeout(Duration::from_secs(20), reader.log_of(upid, log.len())).await;
        let (heard, cursor) = heard.with_context(|| format!("at n{}: not in time", n + 1))??;
        for line in log {
            let same = heard.get(&line["n"].as_u64().context("n")?).map(String::as_str) == line["t"].as_str();
            ensure!(same, "n{} has heard {heard:?}, not {line}", n + 1);
        }
        cursors.push(cursor);
    }
    Ok(cursors)
}

#[test]
fn the_log_of_a_task_is_heard_at_every_node_and_after_coming_back() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        cluster.create_tick_guest(1, VM).await?;
        let mut apis = vec![];
        let mut readers = vec![];
        for n in 0..3 {
            apis.push(cluster.api(n).await?);
            readers.push(Reader::at(&apis[n], "").await?);
        }
        let (upid, log) = task(&apis[0], "start").await?;
        let cursors = all_hear(&mut readers, &upid, &log).await?;

        // Said while nobody reads, and kept for those who come back.
        readers.clear();
        task(&apis[2], "stop").await?;
        let (upid, log) = task(&apis[2], "start").await?;
        for (api, cursor) in apis.iter().zip(&cursors) {
            readers.push(Reader::at(api, &format!("?since={cursor}")).await?);
        }
        all_hear(&mut readers, &upid, &log).await?;
        Ok(())
    });
}
