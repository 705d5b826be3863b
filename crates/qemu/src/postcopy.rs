//! Memory that is fetched: post-copy.
//!
//! A target that has the state of the devices runs, and asks for each page that it touches and has not. Both halves of the memory are
//! needed from then on, and QEMU knows no way back. What is not QEMU's to decide is who may run, so:
//!
//! - The source's CPUs are stopped by a word before it is told to go over. A QEMU whose sending fails while it is ending starts the CPUs
//!   that it has stopped by itself; those that it found stopped it leaves alone. Whether it found them so its own run state tells.
//! - That it was this word is noted on disk: a later daemon takes the guest for one whose state was sent, not for one that its user has
//!   paused.
//! - Sending is held before the devices' state goes over. Whoever commits the new owner has it go on then, and not before.
//!
//! Where the connection breaks both sides keep what they have, in `postcopy-paused`, until they are joined anew. The target's main loop may
//! hang in a page that never comes: it is spoken to out of band.

use crate::guest::Guest;
use crate::migration::{self, FETCH};
use crate::qmp::{Qmp, QmpError};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_driver::guest::{GuestError, MigrationPhase, RunState};

const WHAT: &str = "fetch memory of";

/// Has a target that waits be ready to fetch. It refuses where its kernel or its kind of memory can't.
pub async fn ready(guest: &Guest) -> Result<(), GuestError> {
    let wanted = json!({ "capabilities": [{ "capability": FETCH, "state": true }] });
    guest.ask(WHAT, "migrate-set-capabilities", wanted).await.map(drop)
}

/// Stops a source, and has the target fetch what is left. False: it stands for its own end already.
pub async fn begin(guest: &Guest) -> Result<bool, GuestError> {
    let refused = |why: String| GuestError::Refused { what: WHAT, vmid: guest.vmid, why };
    // A later daemon that did not find it would take the guest for one that its user has paused, or for an old copy.
    guest.note_stands().map_err(|e| refused(format!("it could not be noted that it stands: {e}")))?;
    let qmp = guest.monitor(WHAT).await?;
    match qmp.execute("stop", json!({})).await {
        Ok(_) => {}
        // It runs on. One that does not answer may still stop, as the note says.
        Err(e @ QmpError::Refused { .. }) => {
            guest.note_goes();
            return Err(refused(e.to_string()));
        }
        Err(e) => return Err(refused(e.to_string())),
    }
    let status = guest.ask(WHAT, "query-status", json!({})).await?;
    // "finish-migrate" it is where QEMU has stopped it itself: that it stays so is known of a migration that has completed alone. It is sent
    // to its end then, and nothing is ever fetched from it: the note is not for it.
    if status["status"] != "paused" {
        guest.note_goes();
        return Ok(false);
    }
    guest.ask(WHAT, "migrate-start-postcopy", json!({})).await?;
    Ok(true)
}

/// What a source is whose CPUs stand for the sake of those who fetch from it.
pub async fn state_of_source(qmp: &Qmp, limit: Duration) -> RunState {
    let Ok(answer) = qmp.execute_within("query-migrate", json!({}), limit).await else {
        return RunState::Unresponsive;
    };
    match migration::phase(answer["status"].as_str().unwrap_or("none")) {
        MigrationPhase::Fetching | MigrationPhase::Broken => RunState::Serving,
        _ => RunState::Postmigrate,
    }
}

/// Has a target whose connection is broken wait for another.
pub async fn wait_again(guest: &Guest) -> Result<PathBuf, GuestError> {
    let qmp = guest.monitor(WHAT).await?;
    let inlet = guest.dir.inlet();
    match qmp.execute_oob("migrate-recover", json!({ "uri": migration::uri(&inlet) })).await {
        Ok(_) => Ok(inlet),
        // Whoever asked before has not come.
        Err(QmpError::Refused { desc, .. }) if desc.contains("triggered already") => Ok(inlet),
        Err(e) => {
            // It may not have noticed yet.
            let _ = qmp.execute_oob("migrate-pause", json!({})).await;
            Err(GuestError::Refused { what: WHAT, vmid: guest.vmid, why: e.to_string() })
        }
    }
}

/// Has a source go on over another connection.
pub async fn send_again(guest: &Guest, to: &Path) -> Result<(), GuestError> {
    let how = json!({ "uri": migration::uri(to), "resume": true });
    guest.ask(WHAT, "migrate", how).await.map(drop)
}
