//! `/nodes/{node}/qemu/{vmid}/remote_migrate`, `mtunnel` and `mtunnelwebsocket`: moves between clusters.

use crate::framework::{Access, Error, Json, Socket};
use serde::Serialize;
use std::str::FromStr;
use stead_api_derive::{Params, Schema};
use stead_model::{NodeName, Remote, StorageId, Upid, Vmid};
use stead_ops::guest::arrive::NoChannel;
use stead_ops::guest::depart::{Bridge, BridgeMap, RemoteOptions, StorageMap};

const INCOMING: Access =
    Access::And(&[Access::All("/vms/{vmid}", &["VM.Allocate"]), Access::All("/", &["Sys.Incoming"])]);

#[derive(Params)]
pub struct RemoteMigrate {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The other cluster, and a token of its own:
    /// `apitoken=PVEAPIToken=USER@REALM!TOKEN=SECRET,host=ADDRESS[,fingerprint=FP][,port=PORT]`.
    #[param(name = "target-endpoint", max_length = 4096)]
    target_endpoint: String,
    /// Its number there. Default: the same.
    #[param(name = "target-vmid")]
    target_vmid: Option<Vmid>,
    /// Where its volumes go: `1` to storages of the same names, `STORAGE` for all, or pairs `FROM:TO`, separated by commas.
    #[param(name = "target-storage", max_length = 4096)]
    target_storage: String,
    /// What its network devices are attached to: `1`, a bridge, or pairs, likewise.
    #[param(name = "target-bridge", max_length = 4096)]
    target_bridge: String,
    /// While it runs, with its memory. One that runs is refused otherwise.
    online: Option<bool>,
    /// Remove it here once the other cluster has it (VM.Allocate). Default: it stays, stopped and locked `migrate`.
    #[param(default = "0")]
    delete: bool,
    /// KiB a second at most; 0: no limit.
    #[param(min = 0)]
    bwlimit: Option<u64>,
}

#[derive(Params)]
pub struct OpenTunnel {
    /// The node.
    node: NodeName,
    /// The number that the VM is to have, which nobody has.
    vmid: Vmid,
    /// Storages that it will want, separated by commas.
    storages: Option<String>,
    /// Bridges that it will want, separated by commas.
    bridges: Option<String>,
}

#[derive(Params)]
pub struct OpenChannel {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Which: `control`, `disk:N`, `disks` or `memory`.
    #[param(max_length = 64)]
    socket: String,
    /// The tunnel's ticket.
    #[param(max_length = 512)]
    ticket: String,
}

/// What opens a tunnel's channels. Contains a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Schema)]
pub struct Tunnel {
    /// The task that serves it, and ends with the move.
    upid: Upid,
    /// Opens its channels, for its user alone.
    ticket: String,
    /// The first of them.
    socket: String,
}

fn read<T: FromStr<Err: std::fmt::Display>>(name: &str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|e: T::Err| Error::parameter(name, e.to_string()))
}

fn list<T: FromStr<Err: std::fmt::Display>>(name: &str, text: Option<&str>) -> Result<Vec<T>, Error> {
    let parts = text.unwrap_or_default().split([',', ';', ' ']).map(str::trim).filter(|p| !p.is_empty());
    parts.map(|part| read(name, part)).collect()
}

endpoint! {
    /// Moves a VM to another cluster.
    Post = post("/nodes/{node}/qemu/{vmid}/remote_migrate"), AtGuest, Access::All("/vms/{vmid}", &["VM.Migrate"]);
    fn call(cx, p: RemoteMigrate) -> Upid {
        cx.ops().member(&p.node)?;
        let remote: Remote = read("target-endpoint", &p.target_endpoint)?;
        let storages: StorageMap = read("target-storage", &p.target_storage)?;
        let bridges: BridgeMap = read("target-bridge", &p.target_bridge)?;
        let RemoteMigrate { vmid, target_vmid, online, delete, bwlimit, .. } = p;
        let online = online.unwrap_or(false);
        let options = RemoteOptions { remote, target_vmid, storages, bridges, online, delete, bwlimit };
        Ok(cx.ops().remote_migrate(&cx.actor(), vmid, options).await?)
    }
}

endpoint! {
    /// Opens the way for a VM of another cluster. Its number is reserved for as long as the move goes on.
    Open = post("/nodes/{node}/qemu/{vmid}/mtunnel"), AtNode, INCOMING;
    fn call(cx, p: OpenTunnel) -> Json<Tunnel> {
        cx.ops().member(&p.node)?;
        let storages: Vec<StorageId> = list("storages", p.storages.as_deref())?;
        let bridges: Vec<Bridge> = list("bridges", p.bridges.as_deref())?;
        let opened = cx.ops().open_tunnel(&cx.actor(), p.vmid, &storages, &bridges).await?;
        Ok(Json(Tunnel { upid: opened.upid, ticket: opened.ticket, socket: opened.socket }))
    }
}

endpoint! {
    /// A channel of a tunnel: a WebSocket of subprotocol `binary`, for the user who has opened it. What it carries is Stead's own.
    Channel = get("/nodes/{node}/qemu/{vmid}/mtunnelwebsocket"), AtNode, Access::Authenticated;
    fn call(cx, p: OpenChannel) -> Socket {
        cx.ops().member(&p.node)?;
        let user = cx.caller.id.to_string();
        let channel = cx.ops().tunnel_channel(&user, p.vmid, &p.ticket, &p.socket).await;
        Ok(Socket::screen(channel.map_err(|e| match e {
            NoChannel::Ticket => Error::unauthorized(format!("permission denied - {e}")),
            NoChannel::Socket => Error::parameter("socket", e.to_string()),
        })?))
    }
}
