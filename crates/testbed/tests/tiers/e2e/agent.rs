//! QEMU's agent in a guest, over the API.

use super::super::support::{BOOT, cluster, loopback, start};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use stead_testbed::ApiClient;
use stead_testbed::api::until;

const VM: u32 = 100;

/// Runs a line of shell in the guest; how it ended.
async fn run(api: &ApiClient, path: &str, line: &str) -> Result<Value> {
    let words = [("command", "/bin/busybox"), ("command", "sh"), ("command", "-c"), ("command", line)];
    let pid = api.post(&format!("{path}/exec"), &words).await?["pid"].to_string();
    until("the program ends", BOOT, async || {
        let status = api.get(&format!("{path}/exec-status?pid={pid}")).await?;
        Ok((status["exited"] == 1).then_some(status))
    })
    .await
}

/// Whether the guest's log grows on its disk. There is no event for *nothing happens*.
async fn writes(disk: &Path) -> Result<bool> {
    let before = std::fs::read(disk)?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    Ok(std::fs::read(disk)? != before)
}

#[test]
fn the_agent_in_a_guest_tells_runs_and_freezes() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        // Asked through another node than the guest's.
        let api = cluster.api(2).await?;
        cluster.create_agent_guest(0, VM, "agent").await?;
        start(&cluster, &cluster.api(0).await?, 0, VM).await?;
        let path = format!("/nodes/n1/qemu/{VM}/agent");
        let early =
            api.post(&format!("{path}/ping"), &[]).await.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(early.is_empty() || early.contains("QEMU guest agent is not running"), "{early}");
        until("the agent answers", BOOT, async || Ok(api.post(&format!("{path}/ping"), &[]).await.ok()))
            .await?;
        let info = api.get(&format!("{path}/info")).await?;
        ensure!(info["result"]["version"].is_string(), "{info}");
        until("the guest has its address", BOOT, async || {
            let told = api.get(&format!("{path}/network-get-interfaces")).await?;
            let all = told["result"].as_array().cloned().unwrap_or_default();
            let card = all.iter().find(|card| card["name"] == "eth0");
            Ok(card.filter(|c| c["ip-addresses"].to_string().contains("ipv4")).map(drop))
        })
        .await?;

        let ended = run(&api, &path, "echo $((6 * 7)), a,b; echo oh >&2; exit 3").await?;
        let expected = json!({ "exited": 1, "exitcode": 3, "out-data": "42, a,b\n", "err-data": "oh\n" });
        ensure!(ended == expected, "{ended}");
        let note = [("file", "/run/note"), ("content", "grüße, 100 %\n")];
        api.post(&format!("{path}/file-write"), &note).await?;
        let read = api.get(&format!("{path}/file-read?file=/run/note")).await?;
        ensure!(read == json!({ "content": "grüße, 100 %\n" }), "{read}");
        let part = api.get(&format!("{path}/file-read?file=/run/note&offset=8&count=3")).await?;
        ensure!(part == json!({ "content": " 10", "truncated": 1 }), "{part}");
        // More than one answer of the agent's holds.
        run(&api, &path, "head -c 3000000 /dev/zero | tr '\\0' x >/run/large").await?;
        let large = api.get(&format!("{path}/file-read?file=/run/large")).await?;
        let content = large["content"].as_str().context("no content")?;
        ensure!(content.len() == 3_000_000 && content.bytes().all(|b| b == b'x'), "{} bytes", content.len());
        let missing =
            api.get(&format!("{path}/file-read?file=/nowhere")).await.err().context("read")?.to_string();
        ensure!(missing.contains("guest-file-open") && missing.contains("/nowhere"), "{missing}");

        let disk = cluster.disk_path(VM, 2);
        until("the guest writes to its file system", BOOT, async || Ok(writes(&disk).await?.then_some(())))
            .await?;
        let frozen = api.post(&format!("{path}/fsfreeze-freeze"), &[]).await?;
        ensure!(frozen["result"] == 1, "{frozen}");
        ensure!(api.post(&format!("{path}/fsfreeze-status"), &[]).await?["result"] == "frozen", "not frozen");
        ensure!(!writes(&disk).await?, "it writes though its file systems are frozen");
        let thawed = api.post(&format!("{path}/fsfreeze-thaw"), &[]).await?;
        ensure!(thawed["result"] == 1, "{thawed}");
        until("it writes again", BOOT, async || Ok(writes(&disk).await?.then_some(()))).await
    });
}
