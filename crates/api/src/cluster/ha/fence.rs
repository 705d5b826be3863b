//! `/cluster/ha/fence`: fence devices. Beyond Proxmox VE.

use crate::framework::{Access, Json, Null};
use crate::version::Nothing;
use stead_api_derive::Params;
use stead_model::{DeviceId, NodeName};
use stead_ops::fence_devices::{DeviceOptions, FenceDeviceView, FenceTest};

#[derive(Params)]
pub struct OneDevice {
    /// The device's name.
    device: DeviceId,
}

#[derive(Params)]
pub struct OneNode {
    /// The node.
    node: NodeName,
}

/// What may be said of a device, new or old.
#[derive(Params)]
pub struct Given {
    /// For so many seconds longer than its lease a node must be silent before it is powered off, 0 to 60. Default: one heartbeat.
    #[param(max_length = 8)]
    delay: Option<String>,
    /// The agent's options, in words: `ip=192.0.2.12 username=stead`. A value with blanks stands in double quotes.
    #[param(max_length = 8192)]
    options: Option<String>,
    /// What it powers, a line a connection: `node=n2 plug=3`. A node with several connections is off when each says so.
    #[param(max_length = 65536)]
    connect: Option<String>,
    /// Secret options, in words: `password=…`. They are sealed, and never shown.
    #[param(max_length = 8192)]
    secrets: Option<String>,
}

impl Given {
    fn with(self, agent: Option<String>) -> DeviceOptions {
        let Self { delay, options, connect, secrets } = self;
        DeviceOptions { agent, delay, options, connect, secrets }
    }
}

#[derive(Params)]
pub struct AddDevice {
    /// The device's name.
    device: DeviceId,
    /// The program that speaks to it, of the package fence-agents: `fence_redfish`, `fence_ipmilan`.
    #[param(max_length = 64)]
    agent: String,
    /// Its options.
    #[param(flatten)]
    given: Given,
}

#[derive(Params)]
pub struct ChangeDevice {
    /// The device's name.
    device: DeviceId,
    /// The program that speaks to it.
    #[param(max_length = 64)]
    agent: Option<String>,
    /// What to take out: `delay`, or the names of secrets.
    delete: Vec<String>,
    /// Change only if the file is still this version.
    #[param(max_length = 64)]
    digest: Option<String>,
    /// Its options: those that are given take the place of all that there are.
    #[param(flatten)]
    given: Given,
}

const READ: Access = Access::All("/", &["Sys.Audit"]);
/// Agents are programs that run as root, and some of their options name files and programs.
const WRITE: Access = Access::Root;

endpoint! {
    /// The fence devices, without their secrets.
    List = get("/cluster/ha/fence/devices"), Anywhere, READ;
    fn call(cx, _p: Nothing) -> Json<Vec<FenceDeviceView>> {
        Ok(Json(cx.ops().fence_devices()?))
    }
}

endpoint! {
    /// Makes a fence device. From then on the nodes that it powers are powered off when they are lost.
    Add = post("/cluster/ha/fence/devices"), Anywhere, WRITE;
    fn call(cx, p: AddDevice) -> Null {
        cx.ops().fence_device_add(&cx.actor(), &p.device, p.given.with(Some(p.agent))).await?;
        Ok(Null)
    }
}

endpoint! {
    /// One fence device, without its secrets.
    Read = get("/cluster/ha/fence/devices/{device}"), Anywhere, READ;
    fn call(cx, p: OneDevice) -> Json<FenceDeviceView> {
        Ok(Json(cx.ops().fence_device(&p.device)?))
    }
}

endpoint! {
    /// Changes a fence device.
    Change = put("/cluster/ha/fence/devices/{device}"), Anywhere, WRITE;
    fn call(cx, p: ChangeDevice) -> Null {
        let (given, digest) = (p.given.with(p.agent), p.digest.as_deref());
        cx.ops().fence_device_change(&cx.actor(), &p.device, given, &p.delete, digest).await?;
        Ok(Null)
    }
}

endpoint! {
    /// Takes a fence device out, with its secrets.
    Remove = delete("/cluster/ha/fence/devices/{device}"), Anywhere, WRITE;
    fn call(cx, p: OneDevice) -> Null {
        cx.ops().fence_device_remove(&cx.actor(), &p.device).await?;
        Ok(Null)
    }
}

endpoint! {
    /// Asks every fence device of a node, from the node that answers, whether the power is on. Changes nothing.
    Test = get("/cluster/ha/fence/nodes/{node}"), Anywhere, Access::All("/", &["Sys.Modify"]);
    fn call(cx, p: OneNode) -> Json<Vec<FenceTest>> {
        Ok(Json(cx.ops().fence_test(&p.node).await?))
    }
}
