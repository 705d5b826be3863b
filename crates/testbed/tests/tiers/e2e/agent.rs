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

/// The guest reads its cloud-init drive, made by the real program and kept as a storage keeps its disks, and sees another
/// medium when it is written while it runs.
#[test]
fn a_guest_reads_what_its_cloudinit_drive_tells() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        cluster.create_agent_guest(0, VM, "told").await?;
        let vm = format!("/nodes/n1/qemu/{VM}");
        let options = [
            ("ide2", "shared:cloudinit,format=qcow2"),
            ("ciuser", "zoe"),
            ("cipassword", "open sesame"),
            ("ipconfig0", "ip=10.0.0.5/24,gw=10.0.0.1"),
        ];
        api.put(&format!("{vm}/config"), &options).await?;
        start(&cluster, &api, 0, VM).await?;
        let agent = format!("{vm}/agent");
        until("the agent answers", BOOT, async || Ok(api.post(&format!("{agent}/ping"), &[]).await.ok()))
            .await?;
        let read = async || -> Result<String> {
            // The first that is read of another medium fails by telling so.
            let line = "mkdir -p /run/cd; m='mount -t iso9660 -o ro /dev/sr0 /run/cd'; $m || $m && cd /run/cd && \
                        cat user-data network-config meta-data && cd / && umount /run/cd";
            let ended = run(&api, &agent, line).await?;
            ensure!(ended["exitcode"] == 0, "{ended}");
            Ok(ended["out-data"].as_str().context("it printed nothing")?.to_owned())
        };
        let told = read().await?;
        for part in [
            "#cloud-config\n",
            "hostname: \"told\"\n",
            "user: \"zoe\"\n",
            "password: \"$6$",
            "\"10.0.0.5\"",
            "instance-id: \"",
        ] {
            ensure!(told.contains(part), "{part} in {told}");
        }
        api.put(&format!("{vm}/config"), &[("ciuser", "ada")]).await?;
        ensure!(read().await? == told, "nobody has asked for another drive yet");
        api.put(&format!("{vm}/cloudinit"), &[]).await?;
        let told = read().await?;
        ensure!(told.contains("user: \"ada\"\n"), "{told}");
        Ok(())
    });
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
        until("the address is in its status, and in the cluster's list", BOOT, async || {
            let status = api.get(&format!("/nodes/n1/qemu/{VM}/status/current")).await?;
            let row = cluster.guest_row(&api, VM).await?;
            let of_user_network =
                |seen: &Value| seen["addresses"][0].as_str().is_some_and(|a| a.starts_with("10.0."));
            Ok((of_user_network(&status) && of_user_network(&row)).then_some(()))
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
