//! Names, addresses and certificates outlive the machines that have them.

use super::super::support::{
    BOOT, RECOVERY, about, cluster, ha_settled, ha_started, loopback, node_is, runs_on, start, warnings,
};
use super::epochs::{done, refused};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stead_testbed::api::until;
use stead_testbed::guest::tick;
use stead_testbed::{ApiClient, Cluster};

const VM: u32 = 100;
const YEAR: u64 = 365 * 86_400;

/// Whether a client that trusts the cluster's CA is content with what a node shows at an address, by a clock that is so many
/// seconds ahead.
fn verified(cluster: &Cluster, ca: &str, at: SocketAddr, ahead: u64) -> Result<bool> {
    let file = cluster.dir().join("ca.pem");
    std::fs::write(&file, ca)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + ahead;
    let done = Command::new("openssl")
        .args(["s_client", "-verify_return_error", "-x509_strict", "-attime", &now.to_string()])
        .args(["-connect", &at.to_string(), "-verify_ip", &at.ip().to_string(), "-CAfile"])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .context("running openssl")?;
    Ok(done.status.success())
}

/// The CA's certificate and a node's own, as the node tells them.
async fn certificates(api: &ApiClient, node: &str) -> Result<[Value; 2]> {
    let all = api.get(&format!("/nodes/{node}/certificates/info")).await?;
    match &all.as_array().context("no list")?[..] {
        [ca, own] => Ok([ca.clone(), own.clone()]),
        other => bail!("two certificates: {other:?}"),
    }
}

fn pem(certificate: &Value) -> Result<&str> {
    certificate["pem"].as_str().context("no PEM")
}

/// The members as every client sees them: names, numbers and addresses.
async fn members(api: &ApiClient) -> Result<Vec<(String, u64, String)>> {
    let all = api.get("/cluster/config/nodes").await?;
    let row = |n: &Value| {
        let text = |key: &str| n[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {n}"));
        Ok((text("name")?, text("nodeid")?.parse()?, text("ring0_addr")?))
    };
    all.as_array().context("no list")?.iter().map(row).collect()
}

/// Waits until the configuration says where all nodes are, and all are online.
async fn all_there(cluster: &Cluster, at: usize) -> Result<ApiClient> {
    until(&format!("all nodes are at their new addresses, says {at}"), RECOVERY, async || {
        let Ok(api) = cluster.api(at).await else { return Ok(None) };
        let there = members(&api).await?;
        let status = api.get("/cluster/status").await?;
        let online = status.as_array().context("no list")?.iter().filter(|r| r["online"] == 1).count();
        let right = there.iter().all(|(name, _, ip)| {
            cluster.number(name).is_ok_and(|n| *ip == cluster.node(n).addr().ip().to_string())
        });
        Ok((right && online == cluster.nodes().len()).then_some(api))
    })
    .await
}

/// Waits until each node's certificate is good for its address, to a client with this CA.
async fn all_verified(cluster: &Cluster, ca: &str, ahead: u64) -> Result<()> {
    for node in cluster.nodes() {
        let what = format!("a client is content with {} at {}", node.name(), node.addr());
        until(&what, RECOVERY, async || Ok(verified(cluster, ca, node.addr(), ahead)?.then_some(()))).await?;
    }
    Ok(())
}

#[test]
fn a_cluster_whose_certificates_have_all_ended_is_cured_by_one_command() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let before = cluster.api(0).await?;
        let [old_ca, old] = certificates(&before, "n1").await?;
        ensure!(
            verified(&cluster, pem(&old_ca)?, cluster.node(0).addr(), 0)?,
            "a client is content at first"
        );
        // The nodes' are good for two years, and the CA's for ten.
        for node in cluster.nodes() {
            node.set_clock(Some("+12y"))?;
        }
        let api = until("the nodes find each other", RECOVERY, async || {
            let Ok(api) = cluster.api(1).await else { return Ok(None) };
            let row = about(&api).await?;
            Ok((row["quorate"] == 1).then_some(api))
        })
        .await?;
        let said = done(cluster.node(1), &["cluster", "renew-certificates", "-o", "json"]).await?;
        let made: Value = serde_json::from_str(&said).with_context(|| said)?;
        for row in made.as_array().context("no list")? {
            ensure!(row["error"].is_null(), "{made}");
            ensure!(row["notafter"].as_u64() > old["notafter"].as_u64().map(|t| t + 9 * YEAR), "{made}");
        }
        let [new_ca, new] = certificates(&api, "n1").await?;
        ensure!(new_ca["pem"] != old_ca["pem"] && new["fingerprint"] != old["fingerprint"], "{new_ca} {new}");
        all_verified(&cluster, pem(&new_ca)?, 12 * YEAR).await?;
        let row = about(&api).await?;
        ensure!(!warnings(&row).any(|w| w.contains("certificate")), "{row}");
        // What they have is on their disks, and a member that is let in now is content.
        for node in cluster.nodes() {
            node.restart_daemon()?;
        }
        let api = all_there(&cluster, 2).await?;
        let [again, _] = certificates(&api, "n3").await?;
        ensure!(again["pem"] == new_ca["pem"], "the CA's certificate was made anew once");
        all_verified(&cluster, pem(&new_ca)?, 12 * YEAR).await?;

        // The clocks were wrong: what has not begun yet is made anew by an operator's word.
        for node in cluster.nodes() {
            node.set_clock(None)?;
        }
        let _api = all_there(&cluster, 0).await?;
        done(cluster.node(0), &["cluster", "renew-certificates", "--force"]).await?;
        all_verified(&cluster, pem(&new_ca)?, 0).await
    });
}

#[test]
fn another_machine_comes_under_the_name_of_a_node_that_was_removed() {
    loopback(async |builder| {
        let cluster = builder.nodes(4).spare("n3").start().await?;
        for n in [1, 2] {
            cluster.join(n).await?;
        }
        cluster.add_shared_storage().await?;
        let api = cluster.api(0).await?;
        let before = members(&api).await?;
        cluster.create_tick_guest(2, VM).await?;
        start(&cluster, &api, 2, VM).await?;
        ha_started(&api, VM).await?;
        ha_settled(&api, VM).await?;
        let (old, new) = (cluster.node(2), cluster.node(3));
        old.power_off()?;
        let home = runs_on(&cluster, &api, VM, RECOVERY, |n| n < 2).await?;
        node_is(&cluster, &api, 2, false).await?;
        until("n3 can be removed", RECOVERY, async || Ok(api.delete("/cluster/config/nodes/n3").await.ok()))
            .await?;

        let info = api.get("/cluster/config/join").await?;
        let fingerprint = info["nodelist"][0]["pve_fp"].as_str().context("no fingerprint")?;
        let hostname = cluster.node(0).addr().to_string();
        let form =
            [("hostname", hostname.as_str()), ("fingerprint", fingerprint), ("password", cluster.password())];
        cluster.api(3).await?.post("/cluster/config/join", &form).await?;
        node_is(&cluster, &api, 2, true).await.context("the new n3")?;
        let after = members(&api).await?;
        let n3 = after.iter().find(|m| m.0 == "n3").context("no n3")?;
        ensure!(before.iter().all(|m| m.1 < n3.1), "numbers are never used again: {before:?} {after:?}");
        ensure!(n3.2 == new.addr().ip().to_string(), "{after:?}");
        let path = format!("/nodes/{}/qemu/{VM}/migrate", cluster.node(home).name());
        until("the guest is asked to move to the new n3", RECOVERY, async || {
            Ok(api.post_and_wait(&path, &[("target", "n3"), ("online", "1")], BOOT).await.ok())
        })
        .await?;
        runs_on(&cluster, &api, VM, RECOVERY, |n| cluster.node(n).name() == "n3").await?;

        // The old machine is switched on: refused, without a vote, and it runs nothing, though it believes that the guest is its own.
        old.power_on()?;
        let log = || std::fs::read_to_string(old.log()).unwrap_or_default();
        until("the old n3 hears that it is no member", RECOVERY, async || {
            Ok(log().contains("knows this node as none of its cluster").then_some(()))
        })
        .await
        .with_context(log)?;
        let watched = std::time::Instant::now();
        while watched.elapsed() < Duration::from_secs(15) {
            ensure!(!old.runs_a_guest(), "the old machine runs a guest");
            let row = cluster.guest_row(&api, VM).await?;
            ensure!(row["status"] == "running" && row["node"] == "n3", "{row}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        ensure!(new.runs_a_guest(), "the new one has it");
        ensure!(members(&api).await? == after, "nothing has changed");
        let cell = tick::read_cell(&cluster.disk_path(VM, 0))?.context("the guest has never written")?;
        ensure!(cell.conflicts == 0, "two writers");
        // It can't be cured by a certificate of its own making either: nobody of a majority answers it.
        let words = ["cluster", "renew-certificates", "--node", "n3", "--force"];
        refused(old, &words, "not all certificates could be looked after").await
    });
}
