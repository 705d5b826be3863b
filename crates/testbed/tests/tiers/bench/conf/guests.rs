//! A configuration of 20,000 guests: a node's start, a new node's copy, memory, and all of it read as files.
//!
//! The guests are put into the stores of two stopped nodes, by the code that the daemons have, in transactions of 200; through the API
//! each would need a disk. Half of them belong to either node.

use super::super::super::support::{BOOT, namespaces};
use super::super::memory::Memory;
use super::super::{Figures, Report, pid_of, runs, verdict};
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use stead_conf::{ClusterKey, Conf, Options, Txn};
use stead_model::{Epoch, GuestKind, NodeName, Ownership, RaftId, paths};
use stead_testbed::Cluster;
use stead_testbed::api::until;
use stead_testbed::node::Node;

const GUESTS: u32 = 20_000;
const FIRST: u32 = 1_000;
/// Guests in one transaction.
const AT_ONCE: u32 = 200;
/// How long a node at rest is looked at.
const REST: Duration = Duration::from_secs(10);

#[test]
fn conf_20000_guests() {
    namespaces(async |builder| {
        let mut cluster = builder.nodes(4).files().start().await?;
        let done = measured(&cluster).await;
        if done.is_err() {
            cluster.keep_logs();
        }
        done
    });
}

async fn measured(cluster: &Cluster) -> Result<()> {
    let mut report = Report::new(&format!("A configuration of {GUESTS} guests"));
    report.table("| few | with the guests | aim");
    cluster.join(1).await?;
    let few = starts(cluster, 0).await?;
    let few_joined = joined(cluster, 2).await?;
    let before = Memory::of(cluster.node(0), "steadd")?;
    let few_rest = rest(cluster.node(0)).await?;
    // Two of three are enough, and the third has to catch up.
    cluster.node(2).power_off()?;
    let imported = import(cluster).await?;
    let many = starts(cluster, 0).await?;
    let (n1, n2) = (cluster.node(0), cluster.node(1));
    let api = cluster.api(0).await?;
    let cells = |of: &Figures| format!("{:.2}, {:.2}", of.p50(), of.max());
    report.row(&format!(
        "a node's start → it answers, s (p50, max of {}) | {} | {} |",
        many.0.len(),
        cells(&few),
        cells(&many)
    ));
    let back = caught_up(cluster, 2).await?;
    report.row(&format!("a node that was away starts → it has all of it, by a snapshot, s | | {back:.2} |"));
    let many_joined = joined(cluster, 3).await?;
    report.row(&format!("a new node joins and has all of it, s | {few_joined:.2} | {many_joined:.2} |"));
    let many_rest = rest(n1).await?;
    report.row(&format!("CPU of a node's daemon at rest, % of one | {few_rest:.1} | {many_rest:.1} |"));
    files(n1, &mut report)?;
    let sizes = api.get("/cluster/history/status").await?;
    let mib = |key: &str| {
        sizes[key]
            .as_f64()
            .map(|bytes| bytes / f64::from(1 << 20))
            .with_context(|| format!("no {key}: {sizes}"))
    };
    let (tree, history) = (mib("bytes")?, mib("history_bytes")?);
    report.text(&format!(
        "The tree has {tree:.1} MiB, of which {GUESTS} files of {:.0} bytes; its history {history:.1} MiB. Put into two stopped stores in {imported:.1} s.",
        f64::from(u32::try_from(config(FIRST).len())?)
    ));
    report.table("MiB of `steadd` beyond what it had with few | RSS | own | own, less the history | aim: ≤ 3 × the tree");
    for (what, node) in [
        ("n1, started with it", n1),
        ("n2, the same", n2),
        ("n3, which was away", cluster.node(2)),
        ("n4, which has joined", cluster.node(3)),
    ] {
        let now = Memory::of(node, "steadd")?;
        let (rss, own) = (now.rss - before.rss, now.anonymous - before.anonymous);
        let aim = verdict(&format!("{:.1} ×", (own - history) / tree), own - history <= 3.0 * tree);
        report.row(&format!("{what} | {rss:.1} | {own:.1} | {:.1} | {aim}", own - history));
    }
    let begin = Instant::now();
    let rows = api.get("/cluster/resources?type=vm").await?;
    ensure!(rows.as_array().map_or(0, Vec::len) == GUESTS as usize, "not all guests are listed");
    let (took, now) = (begin.elapsed().as_secs_f64(), Memory::of(n1, "steadd")?);
    report.text(&format!(
        "`GET /cluster/resources` of all: {took:.2} s, afterwards n1 has {:.1} MiB of its own more than with few.",
        now.anonymous - before.anonymous
    ));
    report.publish()
}

/// Seconds from the start of a node's daemon to its first answer.
async fn starts(cluster: &Cluster, n: usize) -> Result<Figures> {
    let mut all = Figures::default();
    let node = cluster.node(n);
    for _ in 0..runs(5) {
        node.stop_daemon()?;
        let begin = Instant::now();
        node.start_daemon()?;
        cluster.wait_up(node).await?;
        all.0.push(begin.elapsed().as_secs_f64());
    }
    Ok(all)
}

/// Seconds that a join takes, until the new node shows all files.
async fn joined(cluster: &Cluster, n: usize) -> Result<f64> {
    let begin = Instant::now();
    cluster.join(n).await?;
    shows_all(cluster, n).await?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Seconds from the start of a node that was off to the moment at which it shows all files.
async fn caught_up(cluster: &Cluster, n: usize) -> Result<f64> {
    let begin = Instant::now();
    cluster.node(n).power_on()?;
    shows_all(cluster, n).await?;
    let took = begin.elapsed().as_secs_f64();
    cluster.wait_up(cluster.node(n)).await?;
    Ok(took)
}

async fn shows_all(cluster: &Cluster, n: usize) -> Result<()> {
    let count = "ls nodes/*/qemu-server | grep -c conf || true";
    let wanted = sh(cluster.node(0), count)?;
    until("the node shows all files", BOOT, async || {
        Ok(sh(cluster.node(n), count).ok().filter(|has| *has == wanted))
    })
    .await
    .map(drop)
}

/// How much of a CPU a node's daemon takes while nobody asks it anything, in percent.
async fn rest(node: &Node) -> Result<f64> {
    let pid = pid_of(node, "steadd")?;
    let used = || -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or("").split(' ').collect();
        let ticks = |n: usize| fields.get(n).and_then(|t| t.parse::<f64>().ok()).context("no figure");
        Ok((ticks(11)? + ticks(12)?) / 100.0)
    };
    let before = used()?;
    tokio::time::sleep(REST).await;
    Ok((used()? - before) / REST.as_secs_f64() * 100.0)
}

/// What a shell at the top of a node's files says of a script.
fn sh(node: &Node, script: &str) -> Result<String> {
    let mut command = node.in_its_mounts("cd \"$1\" && eval \"$2\"")?;
    let out = command.arg(node.files()).arg(script).env("LC_ALL", "C").output()?;
    if !out.status.success() {
        bail!("{script}: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// All of it as files: twice, since the kernel may remember.
fn files(node: &Node, report: &mut Report) -> Result<()> {
    for (script, least) in [("ls -lR . | wc -l", GUESTS), ("grep -r memory: nodes | wc -l", GUESTS)] {
        let mut took = Vec::new();
        for _ in 0..2 {
            let begin = Instant::now();
            let lines: u32 = sh(node, script)?.parse()?;
            took.push(begin.elapsed().as_secs_f64());
            ensure!(lines >= least, "{script}: {lines} lines");
        }
        let script = script.trim_end_matches(" | wc -l");
        report.row(&format!("`{script}`, s: first, again | | {:.2}, {:.2} |", took[0], took[1]));
    }
    Ok(())
}

/// A VM's file as administrators have them.
fn config(vmid: u32) -> String {
    let mut text = String::new();
    let mac = |n: u32| {
        format!("BC:24:11:{:02X}:{:02X}:{:02X}", vmid >> 16 & 0xff, vmid >> 8 & 0xff, (vmid + n) & 0xff)
    };
    let uuid =
        |n: u32| format!("{:08x}-7a3c-4f52-8f0e-4d9b{:08x}", vmid.wrapping_mul(2_654_435_761), vmid + n);
    let _ = write!(
        text,
        "agent: 1\nboot: order=virtio0;net0\ncores: 4\ncpu: host\ndescription: Customer {}, ticket {vmid}\nmemory: 4096\n\
         name: web-{vmid}\nnet0: virtio={},bridge=vmbr0\nnet1: virtio={},bridge=vmbr1\nnuma: 0\nonboot: 0\nostype: l26\n\
         scsihw: virtio-scsi-single\nsmbios1: uuid={}\nsockets: 1\ntags: prod;web\nvga: std\n\
         virtio0: shared:{vmid}/vm-{vmid}-disk-0.qcow2,cache=none,discard=on,size=32G\n\
         virtio1: shared:{vmid}/vm-{vmid}-disk-1.qcow2,cache=none,discard=on,size=128G\nvmgenid: {}\n",
        vmid % 97,
        mac(0),
        mac(1),
        uuid(1),
        uuid(2)
    );
    text
}

/// Stops the first two nodes, opens their stores here, and writes the guests. How long the writing took.
async fn import(cluster: &Cluster) -> Result<f64> {
    let mut stores = Vec::new();
    for node in &cluster.nodes()[..2] {
        node.stop_daemon()?;
        stores.push(open(node)?);
    }
    // Two that hear each other, as by the daemons' streams.
    let ids: Vec<RaftId> = stores.iter().map(|(id, _)| *id).collect();
    for (at, (_, conf)) in stores.iter().enumerate() {
        let (mut outbox, other) = (conf.outbox(), stores[1 - at].1.clone());
        let to = ids[1 - at];
        tokio::spawn(async move {
            while let Some((id, frame)) = outbox.recv().await {
                if id == to {
                    other.step(frame).await;
                }
            }
        });
    }
    let conf = &stores[0].1;
    tokio::time::timeout(BOOT, conf.status().wait_for(|status| status.quorate)).await??;
    let begin = Instant::now();
    for first in (FIRST..FIRST + GUESTS).step_by(AT_ONCE as usize) {
        let mut txn = Txn::new("root@pam").note("import");
        for vmid in first..first + AT_ONCE {
            let owner: NodeName = cluster.node((vmid % 2) as usize).name().parse()?;
            let id = vmid.to_string().parse()?;
            let record = Ownership {
                kind: GuestKind::Qemu,
                owner: owner.clone(),
                epoch: Epoch(1),
                armed: false,
                running: false,
                recovered: false,
            };
            txn = txn.put(paths::guest(&owner, GuestKind::Qemu, id), config(vmid));
            txn = txn.put(paths::ownership(id), serde_json::to_vec(&record)?);
        }
        conf.transact(txn).await.with_context(|| format!("importing from {first} on"))?;
    }
    for (_, conf) in &stores {
        conf.barrier().await?;
    }
    let took = begin.elapsed().as_secs_f64();
    for (_, conf) in stores {
        conf.shutdown().await;
    }
    for node in &cluster.nodes()[..2] {
        node.start_daemon()?;
    }
    for node in &cluster.nodes()[..2] {
        cluster.wait_up(node).await?;
    }
    Ok(took)
}

/// The store of a stopped node.
fn open(node: &Node) -> Result<(RaftId, Conf)> {
    let read = |file: &str| -> Result<serde_json::Value> {
        let path = node.dir().join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(serde_json::from_str(&text)?)
    };
    let identity = read("node.json")?;
    let id: RaftId = serde_json::from_value(identity["raft_id"].clone())?;
    let keys = read("tls/keys.json")?;
    let digits = keys["cluster_key"].as_str().context("no cluster key")?;
    let byte = |n: usize| u8::from_str_radix(digits.get(2 * n..2 * n + 2).unwrap_or("x"), 16);
    let bytes: Vec<u8> = (0..32).map(byte).collect::<Result<_, _>>()?;
    let key: [u8; 32] = bytes.try_into().map_err(|_| anyhow::anyhow!("a key of another length"))?;
    let conf = Conf::open(Options::new(node.dir().join("conf"), ClusterKey::from(key), id));
    Ok((id, conf.with_context(|| format!("opening the store of {}", node.name()))?))
}
