//! What the tiers share: runtimes, and stories that many tests begin with.

use anyhow::{Context, Result};
use serde_json::Value;
use std::time::Duration;
use stead_testbed::api::until;
use stead_testbed::cluster::Builder;
use stead_testbed::poll::Poller;
use stead_testbed::{ApiClient, Cluster, Shape, machine, netns, skip};

/// A guest may take so long to boot on a loaded machine.
pub const BOOT: Duration = Duration::from_secs(60);
/// A recovery may take so long; figures are the benchmark's.
pub const RECOVERY: Duration = Duration::from_secs(90);

/// Runs a test that needs no privileges.
pub fn loopback(test: impl AsyncFnOnce(Builder) -> Result<()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let done = runtime.block_on(test(Cluster::builder()));
    finish(done);
}

/// Runs a test whose nodes have networks of their own. Everything it does stays on this thread, and so in its namespace.
pub fn namespaces(test: impl AsyncFnOnce(Builder) -> Result<()>) {
    if !skip::is_root() {
        skip!("needs root for network namespaces");
    }
    isolated(Shape::Namespace, test);
}

/// Runs a test whose nodes are machines.
pub fn machines(test: impl AsyncFnOnce(Builder) -> Result<()>) {
    if let Some(why) = machine::missing() {
        skip!("{why}");
    }
    isolated(Shape::Machine, test);
}

fn isolated(shape: Shape, test: impl AsyncFnOnce(Builder) -> Result<()>) {
    netns::enter_own().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    finish(runtime.block_on(test(Cluster::builder().shape(shape))));
}

fn finish(done: Result<()>) {
    if let Err(e) = done {
        panic!("{e:#}");
    }
}

/// Three nodes in one cluster, with shared storage.
pub async fn cluster(builder: Builder) -> Result<Cluster> {
    let mut cluster = builder.form().await?;
    cluster.add_shared_storage().await?;
    if std::env::var_os("STEAD_KEEP").is_some() {
        cluster.keep_logs();
    }
    Ok(cluster)
}

/// Starts a VM where it is and waits until its CPUs run.
pub async fn start(cluster: &Cluster, api: &ApiClient, node: usize, vmid: u32) -> Result<()> {
    let path = format!("/nodes/{}/qemu/{vmid}/status/start", cluster.node(node).name());
    api.post_and_wait(&path, &[], BOOT).await.with_context(|| format!("starting VM {vmid}"))?;
    runs_on(cluster, api, vmid, BOOT, |n| n == node).await.map(drop)
}

/// Puts a VM under HA with requested state started.
pub async fn ha_started(api: &ApiClient, vmid: u32) -> Result<()> {
    let form = [("sid", format!("vm:{vmid}")), ("state", "started".to_owned())];
    let form: Vec<(&str, &str)> = form.iter().map(|(k, v)| (*k, v.as_str())).collect();
    api.post("/cluster/ha/resources", &form)
        .await
        .with_context(|| format!("putting VM {vmid} under HA"))
        .map(drop)
}

/// Waits until a VM's CPUs run on a node that `wanted` accepts; gives the node.
pub async fn runs_on(
    cluster: &Cluster,
    api: &ApiClient,
    vmid: u32,
    within: Duration,
    wanted: impl Fn(usize) -> bool,
) -> Result<usize> {
    until(&format!("VM {vmid} runs where it should"), within, async || {
        let row = cluster.guest_row(api, vmid).await?;
        let node = cluster.number(row["node"].as_str().unwrap_or(""))?;
        if !wanted(node) || row["status"] != "running" {
            return Ok(None);
        }
        let name = cluster.node(node).name();
        let status = api.get(&format!("/nodes/{name}/qemu/{vmid}/status/current")).await?;
        Ok((status["qmpstatus"] == "running").then_some(node))
    })
    .await
}

/// Waits until HA says that a VM is armed: from then on it is recovered when its node is lost.
pub async fn ha_settled(api: &ApiClient, vmid: u32) -> Result<()> {
    let sid = format!("vm:{vmid}");
    until(&format!("{sid} is started and armed"), BOOT, async || {
        let rows = api.get("/cluster/ha/status/current").await?;
        let settled = rows.as_array().is_some_and(|rows| {
            rows.iter().any(|r| r["sid"] == *sid && r["state"] == "started" && r["guarded"] == 1)
        });
        Ok(settled.then_some(()))
    })
    .await
}

/// An HTTP VM that runs on a node under HA, and is armed, with a client that has had its first answer.
pub async fn armed(cluster: &Cluster, node: usize, vmid: u32) -> Result<Poller> {
    let api = cluster.api(0).await?;
    cluster.create_http_guest(node, vmid, "web").await?;
    start(cluster, &api, node, vmid).await?;
    ha_started(&api, vmid).await?;
    ha_settled(&api, vmid).await?;
    let poller = Poller::start(cluster.guest_places(vmid));
    poller.wait(BOOT, |_| true).await.context("the first answer")?;
    Ok(poller)
}

/// Waits until the HA manager places services on a node: a member that has just come back holds no lease for a moment.
pub async fn ha_takes(cluster: &Cluster, api: &ApiClient, node: usize) -> Result<()> {
    let name = cluster.node(node).name();
    until(&format!("HA counts on {name}"), RECOVERY, async || {
        let status = api.get("/cluster/ha/status/manager_status").await?;
        Ok((status["manager_status"]["node_status"][name] == "online").then_some(()))
    })
    .await
}

/// Waits until node `seen` stands as online, or not, in the view of `api`'s node.
pub async fn node_is(cluster: &Cluster, api: &ApiClient, seen: usize, online: bool) -> Result<()> {
    let name = cluster.node(seen).name();
    until(&format!("{name} is {}", if online { "online" } else { "offline" }), RECOVERY, async || {
        let rows = api.get("/cluster/status").await?;
        let rows = rows.as_array().context("/cluster/status is no list")?;
        let row = rows
            .iter()
            .find(|r| r["type"] == "node" && r["name"] == name)
            .context("the node is not there")?;
        let is = row["online"] == 1 && row["lost"] != 1;
        Ok((is == online).then_some(()))
    })
    .await
}

/// Fails if the data disk of a VM shows two writers.
pub fn one_writer(cluster: &Cluster, vmid: u32) -> Result<()> {
    match cluster.disk_log(vmid)?.two_writers() {
        None => Ok(()),
        Some(why) => anyhow::bail!("VM {vmid} ran twice:\n{why}"),
    }
}

/// The cluster's own row of its status.
pub async fn about(api: &ApiClient) -> Result<Value> {
    let rows = api.get("/cluster/status").await?;
    let row = rows.as_array().and_then(|rows| rows.iter().find(|r| r["type"] == "cluster"));
    row.cloned().context("no row of the cluster")
}

/// What it warns of.
pub fn warnings(row: &Value) -> impl Iterator<Item = &str> {
    row["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str)
}
