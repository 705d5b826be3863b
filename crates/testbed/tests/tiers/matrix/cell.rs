//! One cell: a move, a fault at one of its steps, and what must be true afterwards.

use super::super::support::{BOOT, node_is};
use super::bed::Bed;
use super::kinds::{Before, Fault, Kind, Place, Step, TAKEN, Told};
use super::spot::{Roles, active, any_active, spot};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use stead_testbed::ApiClient;
use stead_testbed::api::{escape, until};
use stead_testbed::guest::tick::Cell;

/// How long all may take to be well again, once nothing is broken any more.
const SETTLED: Duration = Duration::from_secs(60);
/// How long a fault lasts at most, where the move does not end before.
const LASTS: Duration = Duration::from_secs(4);
/// How long a move that is slowed down goes on before its user gives it up.
const PATIENCE: Duration = Duration::from_secs(1);

/// How the VM is found.
#[derive(Debug)]
struct Found {
    node: usize,
    runs: bool,
    lock: Option<String>,
    config: Value,
}

impl Found {
    /// What is told of it.
    fn tell(&self, roles: Roles) -> String {
        let at = match self.node {
            n if n == roles.source => "source",
            n if n == roles.target => "target",
            _ => "leader",
        };
        let lock = self.lock.as_ref().map_or_else(String::new, |lock| format!(" ({lock})"));
        format!("{} at {at}{lock}", if self.runs { "runs" } else { "stopped" })
    }
}

/// Runs it. What became of the VM, in words.
///
/// # Errors
/// If anything is not as it must be.
pub async fn run(bed: &mut Bed, kind: &Kind, step: &Step, fault: Fault) -> Result<String> {
    let leader = bed.leader().await?;
    let roles = Roles { source: (leader + 1) % 3, target: (leader + 2) % 3, leader };
    place(bed, kind, roles).await.context("before the move")?;
    let api = bed.api(roles.source)?;
    let before = bed.read_disk(&api.get(&format!("{}/config", bed.path(roles.source))).await?)?;
    let (was_seen, told) = strike(bed, kind, step, fault, roles).await?;
    // Asked of a node that nothing has befallen.
    let watch = bed.api(if fault == Fault::LeaderOff { roles.source } else { leader })?;
    let is_right = |found: &Found| check(kind, step, fault, found);
    let first = settled(bed, kind, &watch, is_right).await.with_context(|| format!("afterwards; {told}"))?;
    let after = goes_on(bed, kind, &watch, &first).await.with_context(|| told.clone())?;
    let keeps_memory = kind.keeps_running || matches!(kind.name, "suspend" | "resume");
    if keeps_memory && bed.shows_writes() && !step.may_kill(fault) {
        let ids = (before.map(|c| c.id), after.map(|c| c.id));
        ensure!(ids.0 == ids.1, "it has booted anew, where it was to go on; {told}");
    }
    let late = if was_seen { "" } else { "; the step was over" };
    Ok(format!("{}{late}; {told}", first.tell(roles)))
}

/// Puts the VM, which runs, on the source, as it is to be before the move.
async fn place(bed: &Bed, kind: &Kind, roles: Roles) -> Result<()> {
    let api = bed.api(roles.source)?;
    until("all nodes are in the cluster again", SETTLED, async || {
        let rows = api.get("/cluster/status").await?;
        let nodes = rows.as_array().into_iter().flatten().filter(|row| row["type"] == "node");
        Ok(nodes.into_iter().all(|row| row["online"] == 1).then_some(()))
    })
    .await?;
    // What a node tells of all guests may be of a moment ago.
    let at = until("the VM is where it is said to be", SETTLED, async || {
        let row = bed.cluster().guest_row(&api, bed.vmid()).await?;
        let at = bed.cluster().number(row["node"].as_str().unwrap_or_default())?;
        api.get(&format!("{}/config", bed.path(at))).await.map(|_| Some(at))
    })
    .await?;
    let (source, mut runs) = (roles.source, true);
    if at != source {
        let target = bed.cluster().node(source).name().to_owned();
        let form = match kind.place {
            Place::Local => {
                ordered(bed, &api, at, "status/stop", &[]).await?;
                runs = false;
                [("target", target), ("targetstorage", bed.own_storage(source))]
            }
            Place::Shared | Place::Snapshots => [("target", target), ("online", "1".to_owned())],
        };
        ordered(bed, &api, at, "migrate", &form).await.context("moving it to the source")?;
    }
    match kind.before {
        Before::Runs | Before::HasSnapshot if runs => {}
        Before::Runs | Before::HasSnapshot => {
            let config = api.get(&format!("{}/config", bed.path(source))).await?;
            let boot = || Ok::<_, anyhow::Error>(bed.read_disk(&config)?.map(|cell| cell.id));
            let earlier = boot()?;
            ordered(bed, &api, source, "status/start", &[]).await?;
            // By what it writes it is known again.
            if bed.shows_writes() {
                until("it has booted", BOOT, async || Ok((boot()? != earlier).then_some(()))).await?;
            }
        }
        Before::IsStopped if !runs => {}
        Before::IsStopped => ordered(bed, &api, source, "status/stop", &[]).await?,
        Before::IsSuspended => {
            let form = [("todisk", "1".to_owned()), ("statestorage", "far".to_owned())];
            ordered(bed, &api, source, "status/suspend", &form).await?;
        }
    }
    let config = api.get(&format!("{}/config", bed.path(source))).await?;
    if config["virtio0"].as_str().is_some_and(|v| v.starts_with("far:")) {
        let form = [("disk", "virtio0"), ("storage", "shared"), ("delete", "1")];
        ordered(bed, &api, source, "move_disk", &form.map(|(k, v)| (k, v.to_owned()))).await?;
    }
    if api.get(&format!("{}/snapshot/{TAKEN}/config", bed.path(source))).await.is_ok() {
        let upid = api.delete(&format!("{}/snapshot/{TAKEN}", bed.path(source))).await?;
        api.wait_task(&upid, BOOT).await?;
    }
    Ok(())
}

/// Carries out a call on the VM beside the move, as soon as its nodes have entered the cluster again, which takes a moment.
async fn ordered(bed: &Bed, api: &ApiClient, node: usize, call: &str, form: &[(&str, String)]) -> Result<()> {
    let began = Instant::now();
    loop {
        match order(bed, api, node, call, form).await {
            Err(e)
                if format!("{e:#}").contains("re-entered the cluster yet") && began.elapsed() < SETTLED =>
            {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            done => return done,
        }
    }
}

/// Carries out a call on the VM to its end.
async fn order(bed: &Bed, api: &ApiClient, node: usize, call: &str, form: &[(&str, String)]) -> Result<()> {
    let form: Vec<(&str, &str)> = form.iter().map(|(k, v)| (*k, v.as_str())).collect();
    api.post_and_wait(&format!("{}/{call}", bed.path(node)), &form, BOOT).await
}

/// Begins the move and has the fault come at the step; afterwards all is mended. Whether the step was seen, and how the move ended.
async fn strike(bed: &Bed, kind: &Kind, step: &Step, fault: Fault, roles: Roles) -> Result<(bool, String)> {
    let told = Told {
        target: bed.cluster().node(roles.target).name().to_owned(),
        theirs: bed.own_storage(roles.target),
    };
    let mut form = (kind.more)(&told);
    form.extend(step.slowed.map(|kib| ("bwlimit", kib.to_owned())));
    let (api, path) = (bed.api(roles.source)?, format!("{}/{}", bed.path(roles.source), kind.call));
    let begun = Arc::new(AtomicBool::new(false));
    let was_begun = begun.clone();
    let call = tokio::spawn(async move {
        let form: Vec<(&str, &str)> = form.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let upid = api.post(&path, &form).await;
        was_begun.store(true, Ordering::SeqCst);
        upid
    });
    let was_seen = spot(bed, step.at, kind.task, roles, begun, bed.files()).await?;
    let source = bed.cluster().node(roles.source).dir();
    let upid = active(source, kind.task, bed.vmid());
    befall(bed, kind, fault, roles, upid.as_deref()).await?;
    let called = tokio::time::timeout(LASTS, call).await;
    let upid = match called {
        Ok(Ok(Ok(upid))) => upid.as_str().map(str::to_owned),
        Ok(Ok(Err(e))) if !was_seen => bail!("the move was refused: {e:#}"),
        _ => upid,
    };
    // It goes on as far as it can meanwhile; that of a daemon that is dead does not.
    let began = Instant::now();
    let goes_on = |fault| !matches!(fault, Fault::SourceDaemon | Fault::SourceOff);
    while goes_on(fault) && began.elapsed() < LASTS && active(source, kind.task, bed.vmid()).is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    heal(bed, fault, roles).await?;
    let ended = end_of(bed, kind, roles, upid.as_deref()).await?;
    Ok((was_seen, ended))
}

async fn befall(bed: &Bed, kind: &Kind, fault: Fault, roles: Roles, upid: Option<&str>) -> Result<()> {
    let (cluster, number) = (bed.cluster(), |n: usize| n as u8 + 1);
    let Roles { source, target, leader } = roles;
    match fault {
        Fault::SourceDaemon => cluster.node(source).kill_daemon(),
        Fault::SourceOff => cluster.node(source).power_off(),
        Fault::TargetDaemon => cluster.node(target).kill_daemon(),
        Fault::TargetOff => cluster.node(target).power_off(),
        Fault::LeaderOff => cluster.node(leader).power_off(),
        Fault::Cut if kind.is_far => cluster.network()?.partition(number(source), number(target)),
        Fault::Cut => cluster.network()?.link(number(source), false),
        Fault::Full if kind.place == Place::Local => bed.fill(&bed.own_storage(target)),
        Fault::Full => bed.fill("far"),
        Fault::Cancel => {
            let Some(upid) = upid else { return Ok(()) };
            cancel(&bed.api(source)?, cluster.node(source).name(), upid).await;
            Ok(())
        }
    }
}

async fn cancel(api: &ApiClient, node: &str, upid: &str) {
    // It may have ended since it was seen.
    let _ = api.delete(&format!("/nodes/{node}/tasks/{}", escape(upid))).await;
}

async fn heal(bed: &Bed, fault: Fault, roles: Roles) -> Result<()> {
    let cluster = bed.cluster();
    let again = match fault {
        Fault::SourceDaemon | Fault::SourceOff => roles.source,
        Fault::TargetDaemon | Fault::TargetOff => roles.target,
        Fault::LeaderOff => roles.leader,
        Fault::Cut => return cluster.network()?.heal(),
        Fault::Full => {
            for storage in ["far".to_owned(), bed.own_storage(roles.target)] {
                let _ = std::fs::remove_file(bed.folder(&storage)?.join("filler"));
            }
            return Ok(());
        }
        Fault::Cancel => return Ok(()),
    };
    cluster.node(again).power_on()?;
    cluster.wait_up(cluster.node(again)).await
}

/// Waits until the move's task has ended; one that is slowed down is given up. How it ended.
async fn end_of(bed: &Bed, kind: &Kind, roles: Roles, upid: Option<&str>) -> Result<String> {
    let Some(upid) = upid else { return Ok("never begun".to_owned()) };
    let (api, node) = (bed.api(roles.source)?, bed.cluster().node(roles.source));
    let path = format!("/nodes/{}/tasks/{}/status", node.name(), escape(upid));
    let began = Instant::now();
    let mut is_given_up = false;
    let status = until("the move's task ends", SETTLED, async || {
        if !is_given_up && began.elapsed() > PATIENCE && active(node.dir(), kind.task, bed.vmid()).is_some() {
            is_given_up = true;
            cancel(&api, node.name(), upid).await;
        }
        let status = api.get(&path).await?;
        Ok((status["status"] == "stopped").then_some(status))
    })
    .await?;
    let given_up = if is_given_up { "given up: " } else { "" };
    Ok(format!("{given_up}{}", status["exitstatus"].as_str().unwrap_or("(no status)")))
}

/// Waits until all is well, and stands still, and is right.
async fn settled(
    bed: &Bed,
    kind: &Kind,
    api: &ApiClient,
    is_right: impl Fn(&Found) -> Result<()>,
) -> Result<Found> {
    for n in 0..3 {
        node_is(bed.cluster(), api, n, true).await?;
    }
    let began = Instant::now();
    loop {
        let seen = look(bed, kind, api).await.and_then(|found| is_right(&found).map(|()| found));
        let why = match seen {
            Ok(found) => return Ok(found),
            Err(why) => why,
        };
        if began.elapsed() > SETTLED {
            return Err(why.context(format!("not well within {SETTLED:?}")));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The VM, if all that is the same whatever has happened is so.
async fn look(bed: &Bed, kind: &Kind, api: &ApiClient) -> Result<Found> {
    for node in bed.cluster().nodes() {
        if let Some(upid) = any_active(node.dir(), bed.vmid()) {
            bail!("task {upid} is under way");
        }
    }
    let row = bed.cluster().guest_row(api, bed.vmid()).await?;
    let node = bed.cluster().number(row["node"].as_str().unwrap_or_default())?;
    let config = api.get(&format!("{}/config", bed.path(node))).await?;
    let lock = config["lock"].as_str().map(str::to_owned);
    let is_allowed = match lock.as_deref() {
        None => true,
        Some("suspended") => {
            ensure!(config["vmstate"].is_string(), "it is suspended, and names no memory");
            matches!(kind.name, "quick" | "suspend" | "resume")
        }
        Some("rollback") => kind.name == "rollback",
        Some(_) => false,
    };
    ensure!(is_allowed, "it is locked ({lock:?})");
    ensure!(lock.is_some() || config["vmstate"].is_null(), "it names memory that is of no use: {config}");
    let copies = bed.copies();
    let status = api.get(&format!("{}/status/current", bed.path(node))).await?;
    let runs = status["status"] == "running";
    if runs {
        ensure!(copies == [node], "it is node {node}'s and runs, and there are copies on {copies:?}");
        ensure!(status["qmpstatus"] == "running", "its process is {}", status["qmpstatus"]);
    } else {
        ensure!(copies.is_empty(), "it is said not to run, and there are copies on {copies:?}");
    }
    let unnamed = bed.unnamed(api, node).await?;
    ensure!(unnamed.is_empty(), "left over: {}", unnamed.join(", "));
    Ok(Found { node, runs, lock, config })
}

/// What depends on the move and the fault.
fn check(kind: &Kind, step: &Step, fault: Fault, found: &Found) -> Result<()> {
    let may_be_dead = step.may_kill(fault);
    ensure!(!kind.keeps_running || found.runs || may_be_dead, "it does not run: nothing has killed it");
    ensure!(kind.before != Before::IsStopped || !found.runs, "it runs, and nobody has started it");
    let is_kept = found.runs || found.lock.is_some();
    let is_saved = matches!(kind.before, Before::Runs | Before::IsSuspended) && !kind.keeps_running;
    ensure!(!is_saved || is_kept || may_be_dead, "it neither runs nor has its memory");
    Ok(())
}

/// The VM goes on: what was begun and can only be repeated is, and it starts if it does not run. What it has written last.
async fn goes_on(bed: &Bed, kind: &Kind, api: &ApiClient, found: &Found) -> Result<Option<Cell>> {
    if found.lock.as_deref() == Some("rollback") {
        ordered(bed, api, found.node, kind.call, &[]).await.context("going back again")?;
    }
    let now = settled(bed, kind, api, |_| Ok(())).await?;
    if !now.runs {
        // A node that has just come back may not have known of a lock when it was asked.
        let start = async || match order(bed, api, now.node, "status/start", &[]).await {
            // What was to go on has, meanwhile.
            Err(e) if format!("{e:#}").contains("already running") => Ok(Some(())),
            Err(e) if format!("{e:#}").contains("locked (rollback)") => {
                ordered(bed, api, now.node, kind.call, &[]).await.context("going back again")?;
                Ok(None)
            }
            done => done.map(Some),
        };
        until("it starts", SETTLED, start).await?;
    }
    let is_up = |found: &Found| {
        ensure!(found.runs && found.lock.is_none(), "it was started, and is {found:?}");
        Ok(())
    };
    let now = settled(bed, kind, api, is_up).await.context("started")?;
    let cell = bed.read_disk(&now.config)?;
    if !bed.shows_writes() {
        ensure!(cell.is_none_or(|c| c.conflicts == 0), "it ran twice: {cell:?}");
        return Ok(cell);
    }
    let count = cell.map_or(0, |c| c.count);
    let writes = async || {
        // One that has lost what it had not fetched is seen to run for a moment, until that is known.
        if kind.is_fetched && look(bed, kind, api).await.is_ok_and(|found| !found.runs) {
            order(bed, api, now.node, "status/start", &[]).await?;
        }
        Ok(bed.read_disk(&now.config)?.filter(|c| c.count > count + 1))
    };
    let cell = until("it writes", BOOT, writes).await?;
    ensure!(cell.conflicts == 0, "it ran twice: {cell:?}");
    Ok(Some(cell))
}
