//! Reports what runs on this node to the leader, which hands it on to every node.

use crate::lease::leader;
use crate::stats::Host;
use std::sync::Arc;
use std::time::Duration;
use stead_model::{NodeName, NodeRecord};
use stead_ops::Ops;
use stead_ops::peers::call;
use stead_ops::status::{LinkReport, NodeReport, StorageReport, is_clock_wrong};
use stead_ops::task_view::TaskRow;
use stead_tasks::Filter;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// How often a node reports without a cause.
const PERIOD: Duration = Duration::from_secs(2);
/// How long one node may take to accept a report.
const LIMIT: Duration = Duration::from_millis(1500);
/// How long the leader may take: it answers when it has handed the report on, for which a silent node has all of [`LIMIT`].
const LEADER_LIMIT: Duration = Duration::from_secs(2);
/// How many finished tasks a report names.
const TASKS: usize = 50;

/// Reports for as long as the daemon runs.
pub async fn run(
    ops: Arc<Ops>,
    mut flushes: mpsc::Receiver<oneshot::Sender<()>>,
    ha: watch::Receiver<crate::ha::Reports>,
    storages: watch::Receiver<Vec<StorageReport>>,
) {
    let mut host = Host::default();
    let mut seq = 0;
    let mut guests = ops.guests.events();
    let mut lease = ops.lease.clone();
    let mut asked_of = None;
    loop {
        let mut asked = vec![];
        tokio::select! {
            flush = flushes.recv() => match flush {
                Some(done) => asked.push(done),
                None => return,
            },
            event = guests.recv() => if matches!(event, Err(broadcast::error::RecvError::Closed)) { return },
            changed = lease.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PERIOD) => {}
        }
        while let Ok(done) = flushes.try_recv() {
            asked.push(done);
        }
        let leads = leader(&ops).map(|l| l.raft_id);
        if leads != asked_of {
            asked_of = leads;
            catch_up(&ops).await;
        }
        seq += 1;
        let seen = storages.borrow().clone();
        judge_clock(&ops);
        let report = collect(&ops, &mut host, seq, seen, &ha).await;
        ops.take_report(&report);
        let ops = ops.clone();
        // Delivered beside the loop, so that one slow node does not hold up the next report.
        let delivery = tokio::spawn(async move { deliver(&ops, report).await });
        tokio::spawn(async move {
            let _ = delivery.await;
            for done in asked {
                let _ = done.send(());
            }
        });
    }
}

/// What all nodes have reported lately, from the leader: whoever has just started knows nothing of the others, and
/// would take them for offline until they report again.
async fn catch_up(ops: &Ops) {
    let Some(leader) = leader(ops).filter(|l| l.name != ops.me.name) else { return };
    match call::<_, Vec<NodeReport>>(&*ops.peers, &leader, "status/all", &(), LIMIT).await {
        Ok(reports) => reports.iter().filter(|r| r.node != ops.me.name).for_each(|r| ops.take_report(r)),
        Err(e) => tracing::debug!("the leader did not tell the nodes' status: {e}"),
    }
}

async fn collect(
    ops: &Ops,
    host: &mut Host,
    seq: u64,
    storages: Vec<StorageReport>,
    ha: &watch::Receiver<crate::ha::Reports>,
) -> NodeReport {
    let guests = ops.guests.list().await;
    let (tasks, _) =
        ops.tasks.list(&Filter { limit: TASKS, source: stead_tasks::Source::All, ..Filter::default() });
    NodeReport {
        node: ops.me.name.clone(),
        boot: ops.me.boot.clone(),
        seq,
        started: ops.me.started,
        clock_ms: crate::clock::unix_ms(),
        // As heard last. The leader, who has it from nobody, is named in warnings by this.
        ahead_ms: Some(ops.status.ahead_ms()),
        lease: ops.lease.borrow().held,
        listens: ops.events.listens(std::time::Instant::now()),
        fingerprint: Some(ops.host.fingerprint()),
        links: links(ops),
        stats: host.read(&ops.me.dir),
        addresses: ops.status.own_addresses(&guests),
        guests,
        storages,
        tasks: tasks.iter().map(TaskRow::from).collect(),
        ha: serde_json::to_value(&*ha.borrow()).unwrap_or_default(),
        outlook: ops.status.own_outlook(),
        fenced: ops.status.own_fenced(),
        elsewhere: ops.heard_elsewhere(),
    }
}

/// By which links this node reaches the leader; if it leads, everybody.
fn links(ops: &Ops) -> Vec<LinkReport> {
    let Some(leader) = leader(ops) else { return vec![] };
    let of = |node: &NodeRecord| ops.peers.links(node);
    if leader.name != ops.me.name {
        return of(&leader);
    }
    ops.node_records().iter().filter(|n| n.name != ops.me.name).flat_map(of).collect()
}

/// To the leader, or on to everybody when this node leads.
async fn deliver(ops: &Ops, report: NodeReport) {
    match leader(ops) {
        Some(l) if l.name == ops.me.name => fan_out(ops, &report).await,
        Some(l) => match call::<_, Option<i64>>(&*ops.peers, &l, "status", &report, LEADER_LIMIT).await {
            Ok(ahead_ms) => take_clock(ops, ahead_ms),
            Err(e) => tracing::debug!("the status report was not taken: {e}"),
        },
        None => {}
    }
}

/// What this node can tell of its own clock: all, if it leads; and with no leader, what was heard last is no longer good.
fn judge_clock(ops: &Ops) {
    match leader(ops) {
        Some(l) if l.name == ops.me.name => take_clock(ops, ops.status.own_ahead()),
        Some(_) => {}
        None => take_clock(ops, None),
    }
}

/// Takes how far this node's clock is ahead of the cluster's. None: nobody can tell, and it goes by its own.
fn take_clock(ops: &Ops, ahead_ms: Option<i64>) {
    let before = is_clock_wrong(ops.status.ahead_ms());
    match ahead_ms {
        Some(ms) if is_clock_wrong(ms) && !before => tracing::warn!(
            "this node's clock is {} s {} those of the cluster's nodes: set it right",
            ms.unsigned_abs() / 1000,
            if ms < 0 { "behind" } else { "ahead of" }
        ),
        Some(ms) if !is_clock_wrong(ms) && before => {
            tracing::info!("this node's clock goes with those of the cluster's nodes");
        }
        _ => {}
    }
    ops.status.is_ahead(ahead_ms.unwrap_or(0));
    ops.status.knows_clock(ahead_ms.is_some());
}

/// Hands a report on to every node but its own and this one; ends when each has it or did not answer in time.
pub async fn fan_out(ops: &Ops, report: &NodeReport) {
    let others = ops.node_records().into_iter().filter(|n| wants(n, &report.node, &ops.me.name));
    let sends = others.map(|node| async move {
        if let Err(e) = call::<_, ()>(&*ops.peers, &node, "status/merge", report, LIMIT).await {
            tracing::debug!("node '{}' did not take a status report: {e}", node.name);
        }
    });
    futures_util::future::join_all(sends).await;
}

fn wants(node: &NodeRecord, reporter: &NodeName, me: &NodeName) -> bool {
    node.name != *reporter && node.name != *me && !node.state.is_lost()
}
