//! What other nodes ask of this one: `POST /peer/v1/{call}` with JSON, from a peer that its certificate names.

use crate::clock::unix_ms;
use crate::grant::GrantHandle;
use crate::report::fan_out;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;
use stead_membership::wire::Heartbeat;
use stead_model::{NodeName, Vmid};
use stead_ops::bulk::{ACT_CALL, STOP_CALL, WAIT_CALL};
use stead_ops::certificates::RENEW_CALL;
use stead_ops::epochs::{EPOCH_CALL, REJOIN_CALL};
use stead_ops::events::Lines;
use stead_ops::files::guests::FILE_CALL;
use stead_ops::guest::along::DISKS_SENT_CALL;
use stead_ops::guest::carry::{NO_ROOM_CALL, ROOM_CALL, RoomRequest};
use stead_ops::guest::fetch::{FETCHES_CALL, SERVES_CALL};
use stead_ops::guest::incoming::{ContinueRequest, IncomingRequest};
use stead_ops::guest::migrate::GO_ON_CALL;
use stead_ops::guest::preconditions::FITS_CALL;
use stead_ops::leave::{LEAVE_CALL, LEFT_CALL};
use stead_ops::mapping::CHECK_CALL;
use stead_ops::status::NodeReport;
use stead_ops::{Ops, OpsError};

/// Answers calls.
#[derive(Clone)]
pub struct Rpc {
    /// The use cases.
    pub ops: Arc<Ops>,
    /// The leader's side of leases.
    pub grant: GrantHandle,
}

fn take<T: DeserializeOwned>(call: &str, body: Value) -> Result<T, OpsError> {
    serde_json::from_value(body).map_err(|e| OpsError::failed(format!("call {call}: {e}")))
}

fn give<T: Serialize>(call: &str, answer: &T) -> Result<Value, OpsError> {
    serde_json::to_value(answer).map_err(|e| OpsError::failed(format!("call {call}: {e}")))
}

impl Rpc {
    /// Answers one call of node `from`.
    pub async fn call(&self, from: &NodeName, call: &str, body: Value) -> Result<Value, OpsError> {
        let ops = &self.ops;
        match call {
            "heartbeat" => {
                let beat: Heartbeat = take(call, body)?;
                same(from, &beat.node)?;
                let answer = self.grant.heartbeat(beat).await;
                give(call, &answer.ok_or_else(|| OpsError::failed("leases are not granted here now"))?)
            }
            RENEW_CALL => give(call, &ops.renew_own(&take(call, body)?).await?),
            EPOCH_CALL => give(call, &ops.epoch_answer()),
            REJOIN_CALL => give(call, &ops.let_in_again(from, &take(call, body)?).await?),
            "status" => {
                let report: NodeReport = take(call, body)?;
                same(from, &report.node)?;
                give(call, &hand_on(ops, report).await)
            }
            "status/merge" => {
                let report: NodeReport = take(call, body)?;
                crate::events::from_leader(ops, from)?;
                others(&ops.me.name, &report.node)?;
                hear_clock(ops, &report);
                ops.take_report(&report);
                Ok(Value::Null)
            }
            "events" => {
                let lines: Lines = take(call, body)?;
                same(from, &lines.node)?;
                crate::events::relay(ops, &lines).await;
                Ok(Value::Null)
            }
            "events/merge" => {
                crate::events::from_leader(ops, from)?;
                ops.events.hear(&take(call, body)?, std::time::Instant::now());
                Ok(Value::Null)
            }
            "status/all" => give(call, &ops.status.all()),
            LEAVE_CALL => give(call, &ops.let_go(from, &take(call, body)?).await?),
            LEFT_CALL => give(call, &ops.forget_left(from, &take(call, body)?).await?),
            FITS_CALL => give(call, &ops.fits(take(call, body)?).await?),
            CHECK_CALL => give(call, &ops.mapping_faults(take(call, body)?).await?),
            FILE_CALL => give(call, &ops.guest_file_of(from, take(call, body)?).await.err()),
            "guest/incoming" => {
                let request: IncomingRequest = take(call, body)?;
                same(from, &request.source)?;
                // A version that knows of one stream alone takes no other answer.
                let is_old = request.incoming.streams == 0;
                let prepared = ops.incoming(request).await?;
                if is_old { Ok(Value::Null) } else { give(call, &prepared) }
            }
            ROOM_CALL => {
                let request: RoomRequest = take(call, body)?;
                same(from, &request.source)?;
                give(call, &ops.make_room(request).await?)
            }
            NO_ROOM_CALL => give(call, &ops.free_room(from, take(call, body)?).await?),
            GO_ON_CALL => {
                ops.resume_if_moved(take(call, body)?).await?;
                Ok(Value::Null)
            }
            DISKS_SENT_CALL => {
                let request: ContinueRequest = take(call, body)?;
                ops.check_source(from, request.vmid, request.epoch)?;
                ops.disks_sent(&request).await?;
                Ok(Value::Null)
            }
            "guest/continue" => {
                let request: ContinueRequest = take(call, body)?;
                ops.check_source(from, request.vmid, request.epoch)?;
                ops.continue_incoming(request.vmid, request.epoch).await?;
                Ok(Value::Null)
            }
            SERVES_CALL => give(call, &ops.serves(&take(call, body)?).await),
            FETCHES_CALL => give(call, &ops.fetches(&take(call, body)?).await),
            "guest/abort" => {
                let request: ContinueRequest = take(call, body)?;
                ops.check_source(from, request.vmid, request.epoch)?;
                ops.abort_incoming(request.vmid, request.epoch, request.attempt).await?;
                Ok(Value::Null)
            }
            ACT_CALL => give(call, &ops.act_for(&take(call, body)?).await?),
            WAIT_CALL => give(call, &ops.wait_a_little(&take(call, body)?).await?),
            STOP_CALL => give(call, &ops.tasks.stop(&take(call, body)?)),
            "guest/migrating" => {
                let vmid: Vmid = take(call, body)?;
                // Whoever migrates holds the guest's mutex for all of it.
                give(call, &ops.guest_locks.try_lock(vmid).is_none())
            }
            _ => Err(OpsError::failed(format!(
                "node '{}' knows no call '{call}': its version differs",
                ops.me.name
            ))),
        }
    }
}

/// Takes a node's report and hands it on. How far its clock is ahead, which it learns by the answer.
async fn hand_on(ops: &Ops, mut report: NodeReport) -> Option<i64> {
    report.ahead_ms = hear_clock(ops, &report);
    ops.take_report(&report);
    fan_out(ops, &report).await;
    report.ahead_ms
}

/// Notes the clock of a node that reports. How far it is ahead of the cluster's, milliseconds, if that can be told.
fn hear_clock(ops: &Ops, report: &NodeReport) -> Option<i64> {
    // A version that does not say.
    if report.clock_ms == 0 {
        return None;
    }
    ops.status.hear_clock(&report.node, ahead(report.clock_ms, unix_ms()))
}

/// How far a clock is ahead of another, in milliseconds.
fn ahead(theirs: u64, own: u64) -> i64 {
    let apart = i64::try_from(theirs.abs_diff(own)).unwrap_or(i64::MAX);
    if theirs < own { -apart } else { apart }
}

/// A node speaks for itself alone.
fn same(from: &NodeName, named: &NodeName) -> Result<(), OpsError> {
    if from == named {
        Ok(())
    } else {
        Err(OpsError::failed(format!("node '{from}' can't speak for '{named}'")))
    }
}

/// What is told of other nodes concerns other nodes.
fn others(me: &NodeName, named: &NodeName) -> Result<(), OpsError> {
    if me == named {
        return Err(OpsError::failed(format!("node '{me}' knows its own status")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_clock_is_ahead() {
        assert_eq!((ahead(5_000, 2_000), ahead(2_000, 5_000), ahead(7, 7)), (3_000, -3_000, 0));
        assert_eq!((ahead(u64::MAX, 0), ahead(0, u64::MAX)), (i64::MAX, -i64::MAX));
    }
}
