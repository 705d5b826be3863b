//! Live migration over a unix socket, and into a file and out of it.
//!
//! The source sends, with the return path on: it reports *completed* only after the target has said that it
//! loaded everything, so that ownership is never handed to a copy that could not be continued. After that
//! the source stays paused (`postmigrate`) and the target, started with stopped CPUs, paused as well: whoever
//! commits the new owner decides which one goes on. QEMU's own `pause-before-switchover` is used only where disks go along, or memory may be
//! fetched: it adds a stop of the same kind before the last state is sent, in which the copies of disks are ended. A change of owner would be
//! too early there, but for memory that is fetched: see [`crate::postcopy`].

use crate::guest::Guest;
use crate::qmp::{Qmp, QmpError};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use stead_driver::guest::{GuestError, MigrationPhase, MigrationProgress, SavedState, Sending};
use tokio::sync::broadcast::error::RecvError;

/// QEMU limits itself to 128 MiB/s unless told otherwise; this is no limit.
const UNLIMITED: u64 = 1 << 40;
/// How long a cancelled migration may take to end, before and after its connection is cut.
const POLITE: Duration = Duration::from_secs(2);
const CUT: Duration = Duration::from_secs(10);

fn capabilities(on: &[&str]) -> Value {
    with_capabilities(&Value::Null, on, &[])
}

/// What a process is to do, and what not: it remembers what it was told for an earlier one. What it does not know it was not told:
/// older programs refuse to hear of it.
fn with_capabilities(told: &Value, on: &[&str], off: &[&str]) -> Value {
    let one = |state: bool| move |c: &&str| json!({ "capability": c, "state": state });
    let off = off.iter().filter(|c| knows(told, c));
    let all: Vec<Value> = on.iter().map(one(true)).chain(off.map(one(false))).collect();
    json!({ "capabilities": all })
}

/// Whether a program tells of a capability.
fn knows(told: &Value, capability: &str) -> bool {
    told.as_array().is_some_and(|all| all.iter().any(|c| c["capability"] == capability))
}

async fn told(guest: &Guest, what: &'static str) -> Result<Value, GuestError> {
    guest.ask(what, "query-migrate-capabilities", json!({})).await
}

pub fn uri(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn file(path: &Path) -> String {
    format!("file:{}", path.display())
}

/// What memory that goes by several streams needs. Older programs than 9.0 tell the streams apart by their order alone.
const MULTIFD: &str = "multifd";
const MULTIFD_SINCE: (u64, u64, u64) = (9, 0, 0);
/// More help nobody: each is a thread on both nodes.
const MOST_STREAMS: u8 = 8;

/// By how many streams a program of that version takes memory when so many are wanted.
pub fn streams(version: (u64, u64, u64), wanted: u8) -> u8 {
    if version < MULTIFD_SINCE { 1 } else { wanted.clamp(1, MOST_STREAMS) }
}

/// Makes a target listen.
pub async fn listen(qmp: &Qmp, path: &Path, streams: u8) -> Result<(), QmpError> {
    let mut wanted = vec!["events", "return-path", "late-block-activate"];
    wanted.extend((streams > 1).then_some(MULTIFD));
    qmp.execute("migrate-set-capabilities", capabilities(&wanted)).await?;
    if streams > 1 {
        qmp.execute("migrate-set-parameters", json!({ "multifd-channels": streams })).await?;
    }
    qmp.execute("migrate-incoming", json!({ "uri": uri(path) })).await?;
    Ok(())
}

/// Makes a target read its state. One that can't ends.
pub async fn load(qmp: &Qmp, state: &SavedState) -> Result<(), QmpError> {
    let wanted: &[&str] = match state.mapped {
        true => &["events", "late-block-activate", "mapped-ram"],
        false => &["events", "late-block-activate"],
    };
    qmp.execute("migrate-set-capabilities", capabilities(wanted)).await?;
    qmp.execute("migrate-incoming", json!({ "uri": file(&state.path) })).await?;
    Ok(())
}

/// Makes a source write its state while it runs: a page that changes again is written again, in its place.
pub async fn save(guest: &Guest, to: &Path) -> Result<(), GuestError> {
    const WHAT: &str = "save the state of";
    let told = told(guest, WHAT).await?;
    if !knows(&told, "mapped-ram") {
        let why = "its QEMU is older than 9.0, and can't write its memory to a file while it runs".to_owned();
        return Err(GuestError::Refused { what: WHAT, vmid: guest.vmid, why });
    }
    let on = ["events", "mapped-ram", "auto-converge"];
    let wanted = with_capabilities(&told, &on, &["background-snapshot", "return-path", HOLD, FETCH, MULTIFD]);
    guest.ask(WHAT, "migrate-set-capabilities", wanted).await?;
    guest.ask(WHAT, "migrate-set-parameters", json!({ "max-bandwidth": UNLIMITED })).await?;
    guest.ask(WHAT, "migrate", json!({ "uri": file(to) })).await.map(drop)
}

const SEND: &str = "migrate";
const HOLD: &str = "pause-before-switchover";
/// Memory may be fetched by the target: see [`crate::postcopy`].
pub const FETCH: &str = "postcopy-ram";

/// Makes a source send.
pub async fn send(guest: &Guest, how: &Sending) -> Result<(), GuestError> {
    let (mut on, mut off) = (vec!["events", "return-path"], vec!["background-snapshot", "mapped-ram"]);
    if how.hold || how.fetch { &mut on } else { &mut off }.push(HOLD);
    if how.fetch { &mut on } else { &mut off }.push(FETCH);
    // What is fetched in the end need not be slowed down until it can be sent.
    if how.fetch { &mut off } else { &mut on }.push("auto-converge");
    if how.streams > 1 { &mut on } else { &mut off }.push(MULTIFD);
    let wanted = with_capabilities(&told(guest, SEND).await?, &on, &off);
    guest.ask(SEND, "migrate-set-capabilities", wanted).await?;
    let rate = how.bytes_per_second.filter(|r| *r > 0).unwrap_or(UNLIMITED);
    let mut parameters = json!({ "max-bandwidth": rate, "multifd-channels": how.streams.max(1) });
    if how.fetch {
        // What the guest waits for is sent at once, whatever is said here.
        parameters["max-postcopy-bandwidth"] = how.bytes_per_second.unwrap_or(0).into();
    }
    guest.ask(SEND, "migrate-set-parameters", parameters).await?;
    guest.ask(SEND, "migrate", json!({ "uri": uri(&how.to) })).await?;
    Ok(())
}

/// Has one that is held go on.
pub async fn send_rest(guest: &Guest) -> Result<(), GuestError> {
    guest.ask(SEND, "migrate-continue", json!({ "state": "pre-switchover" })).await.map(drop)
}

/// How often it is asked whether memory is being written: no event says so. The guest stands meanwhile.
const LOOK: Duration = Duration::from_millis(3);
/// How long the memory may be held by an earlier writing that has ended.
const LETS_GO: Duration = Duration::from_secs(2);
/// How long it may take until memory is being written.
const BEGIN: Duration = Duration::from_secs(20);

/// Refuses what can't write its memory while it runs.
pub async fn can_write_memory(guest: &Guest) -> Result<(), GuestError> {
    let wanted = with_capabilities(
        &told(guest, MEMORY).await?,
        &["events", "background-snapshot"],
        // One that came here itself has been told to open its disks late.
        &["return-path", "auto-converge", "mapped-ram", "late-block-activate", HOLD, FETCH, MULTIFD],
    );
    let until = tokio::time::Instant::now() + LETS_GO;
    loop {
        match guest.ask(MEMORY, "migrate-set-capabilities", wanted.clone()).await {
            // An earlier one lets go of the memory only after it has said that it has ended, which nothing tells.
            Err(GuestError::Refused { why, .. })
                if why.contains("not compatible with guest memory")
                    && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(LOOK).await;
            }
            done => return done.map(drop),
        }
    }
}

const MEMORY: &str = "write the memory of";

/// Begins to write the memory of a guest that stands, as [`can_write_memory`] has prepared it. When it returns the guest may go on: its
/// devices' state is written, and each page is before it changes.
pub async fn write_memory(guest: &Guest, to: &Path) -> Result<(), GuestError> {
    guest.ask(MEMORY, "migrate-set-parameters", json!({ "max-bandwidth": UNLIMITED })).await?;
    guest.ask(MEMORY, "migrate", json!({ "uri": file(to) })).await?;
    let begun = async {
        loop {
            let answer = guest.ask(MEMORY, "query-migrate", json!({})).await?;
            let pages = |which: &str| answer["ram"][which].as_u64().unwrap_or(0);
            let now = read(&answer);
            match now.phase {
                MigrationPhase::Failed | MigrationPhase::Cancelled => {
                    let why = now.error.unwrap_or_else(|| "it was cancelled".to_owned());
                    return Err(GuestError::Refused { what: MEMORY, vmid: guest.vmid, why });
                }
                MigrationPhase::Completed => return Ok(()),
                // "Active" it is before the devices' state is written; the first page follows that.
                _ if pages("normal") + pages("duplicate") > 0 => return Ok(()),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    };
    let late =
        |_| GuestError::TimedOut { what: "writing the memory", vmid: guest.vmid, seconds: BEGIN.as_secs() };
    tokio::time::timeout(BEGIN, begun).await.map_err(late)?
}

/// How it stands.
pub async fn progress(guest: &Guest) -> Result<MigrationProgress, GuestError> {
    let answer = guest.ask("ask for the migration of", "query-migrate", json!({})).await?;
    let now = read(&answer);
    // QEMU 10.0 says so for ever where its connection breaks after the word to go on and before the target has what it runs by.
    let is_stuck = now.phase == MigrationPhase::Switchover && now.error.is_some() && guest.meta().stands;
    Ok(if is_stuck { MigrationProgress { phase: MigrationPhase::Failed, ..now } } else { now })
}

fn read(answer: &Value) -> MigrationProgress {
    let ram = |which: &str| answer["ram"][which].as_u64().unwrap_or(0);
    let number = |which: &str| answer[which].as_u64().unwrap_or(0);
    let phase = phase(answer["status"].as_str().unwrap_or("none"));
    let downtime = if phase == MigrationPhase::Completed { "downtime" } else { "expected-downtime" };
    MigrationProgress {
        phase,
        transferred: ram("transferred"),
        remaining: ram("remaining"),
        total: ram("total"),
        rounds: ram("dirty-sync-count"),
        downtime_ms: number(downtime),
        total_ms: number("total-time"),
        error: answer["error-desc"].as_str().map(str::to_owned),
    }
}

pub fn phase(status: &str) -> MigrationPhase {
    match status {
        "none" => MigrationPhase::None,
        "completed" => MigrationPhase::Completed,
        "failed" => MigrationPhase::Failed,
        "cancelled" => MigrationPhase::Cancelled,
        "pre-switchover" => MigrationPhase::Held,
        "device" | "postcopy-device" => MigrationPhase::Switchover,
        "postcopy-active" => MigrationPhase::Fetching,
        "postcopy-paused" | "postcopy-recover-setup" | "postcopy-recover" => MigrationPhase::Broken,
        // setup, active, cancelling, and what later versions add on the way.
        _ => MigrationPhase::Active,
    }
}

/// Waits until the phase differs from `seen`, or `limit` has passed.
pub async fn changed(
    guest: &Guest,
    seen: MigrationPhase,
    limit: Duration,
) -> Result<MigrationProgress, GuestError> {
    let qmp = guest.monitor("follow the migration of").await?;
    let wait = until(guest, &qmp, |phase| phase != seen);
    match tokio::time::timeout(limit, wait).await {
        Ok(progress) => progress,
        Err(_) => progress(guest).await,
    }
}

/// Waits until the phase is as wanted.
async fn until(
    guest: &Guest,
    qmp: &Arc<Qmp>,
    wanted: impl Fn(MigrationPhase) -> bool,
) -> Result<MigrationProgress, GuestError> {
    let mut events = qmp.events();
    loop {
        let now = progress(guest).await?;
        if wanted(now.phase) {
            return Ok(now);
        }
        loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                () = qmp.closed() => return Err(GuestError::NotRunning(guest.vmid)),
            };
            match event {
                Ok(event) if event.name == "MIGRATION" || event.name == "MIGRATION_PASS" => break,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return Err(GuestError::NotRunning(guest.vmid)),
            }
        }
    }
}

/// Cancels it and waits for its end; a connection that hangs is cut.
pub async fn cancel(guest: &Guest) -> Result<MigrationProgress, GuestError> {
    const WHAT: &str = "cancel the migration of";
    let qmp = guest.monitor(WHAT).await?;
    let begun = progress(guest).await?;
    if begun.phase == MigrationPhase::None || begun.phase.is_terminal() {
        return Ok(begun);
    }
    guest.ask(WHAT, "migrate_cancel", json!({})).await?;
    if let Ok(ended) = tokio::time::timeout(POLITE, until(guest, &qmp, MigrationPhase::is_terminal)).await {
        return ended;
    }
    // Out of band, since the main loop may hang on the connection. It refuses when there is nothing to cut.
    let _ = qmp.execute_oob("yank", json!({ "instances": [{ "type": "migration" }] })).await;
    let late = |_| GuestError::TimedOut { what: WHAT, vmid: guest.vmid, seconds: CUT.as_secs() };
    tokio::time::timeout(CUT, until(guest, &qmp, MigrationPhase::is_terminal)).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_program_hears_of_nothing_that_it_does_not_know() {
        let told = json!([{ "capability": "background-snapshot", "state": true }]);
        let wanted = with_capabilities(&told, &["events"], &["background-snapshot", "mapped-ram"]);
        let all = wanted["capabilities"].as_array().unwrap();
        let named: Vec<&str> = all.iter().filter_map(|c| c["capability"].as_str()).collect();
        assert_eq!(named, ["events", "background-snapshot"]);
    }

    #[test]
    fn progress_reads_what_qemu_tells_and_survives_what_it_does_not() {
        let p = read(&json!({
            "status": "active", "expected-downtime": 300, "total-time": 1200, "later": {},
            "ram": { "transferred": 5, "remaining": 7, "total": 12, "dirty-sync-count": 2 },
        }));
        assert_eq!((p.phase, p.transferred, p.remaining, p.total), (MigrationPhase::Active, 5, 7, 12));
        assert_eq!((p.rounds, p.downtime_ms, p.total_ms), (2, 300, 1200));
        assert_eq!(read(&json!({})).phase, MigrationPhase::None);
        let failed = read(&json!({ "status": "failed", "error-desc": "broken pipe" }));
        assert_eq!((failed.phase, failed.error.as_deref()), (MigrationPhase::Failed, Some("broken pipe")));
    }
}
