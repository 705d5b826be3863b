//! Streams that another node opens to this one for its guests: memory and disks of those that come here.

use stead_model::{NodeName, Vmid};
use stead_ops::guest::{along, carry, fetch};
use stead_ops::peers::Duplex;
use stead_ops::{Ops, OpsError};
use stead_transport::stream::{Carried, splice};
use tokio::net::UnixStream;

/// Takes a stream of this name from a node, to its end. One that nobody knows is closed.
pub async fn take(ops: &Ops, from: &NodeName, call: &str, stream: impl Duplex + 'static) {
    if let Some(vmid) = of_guest(call, "guest/migration-stream/") {
        into(vmid, "the incoming migration", stream, ops.migration_inlet(from, vmid).await).await;
    } else if let Some(vmid) = of_guest(call, along::STREAM) {
        into(vmid, "an incoming disk", stream, ops.disk_inlet(from, vmid).await).await;
    } else if let Some(vmid) = of_guest(call, fetch::STREAM) {
        into(vmid, "memory that is fetched", stream, ops.fetch_inlet(from, vmid).await).await;
    } else if let Some(which) = call.strip_prefix(carry::STREAM) {
        ops.take_volume(from, which, stream).await;
    }
}

/// The guest that a stream of this name is about.
fn of_guest(call: &str, name: &str) -> Option<Vmid> {
    call.strip_prefix(name)?.parse().ok()
}

/// Joins a stream with where it goes.
async fn into(vmid: Vmid, what: &str, stream: impl Duplex, inlet: Result<UnixStream, OpsError>) {
    match inlet {
        Ok(inlet) => {
            if let Err(e) = splice(stream, inlet, &Carried::default()).await {
                tracing::info!("guest {vmid}: the stream of {what} ended: {e}");
            }
        }
        Err(e) => tracing::warn!("guest {vmid}: {e}"),
    }
}
