//! `/cluster/ha/resources` and below.

use crate::framework::{Access, Error, Json, Null};
use crate::shapes::HaResource;
use serde::Serialize;
use serde_json::Value;
use stead_api_derive::{Params, Schema};
use stead_model::schema::Schema as _;
use stead_model::{GuestKind, NodeName, ServiceId};
use stead_ops::ha::{self, Request};

choice! {
    /// What a resource is.
    pub enum ResourceType { Vm = "vm", Ct = "ct" }
}

choice! {
    /// What HA is asked to keep a resource in.
    pub enum Requested {
        Started = "started",
        Stopped = "stopped",
        Enabled = "enabled",
        Disabled = "disabled",
        Ignored = "ignored",
    }
}

#[derive(Params)]
pub struct ListResources {
    /// Resources of this type alone.
    #[param(name = "type")]
    kind: Option<ResourceType>,
}

#[derive(Params)]
pub struct OneResource {
    /// `vm:100`, `ct:101`, or a VMID.
    sid: ServiceId,
}

#[derive(Params)]
pub struct RemoveResource {
    /// `vm:100`, `ct:101`, or a VMID.
    sid: ServiceId,
    /// Take it out of rules too; a rule that would say nothing without it goes with it.
    #[param(default = "1")]
    purge: bool,
}

#[derive(Params)]
pub struct AddResource {
    /// `vm:100`, `ct:101`, or a VMID.
    sid: ServiceId,
    /// What it is, if `sid` does not say.
    #[param(name = "type")]
    kind: Option<ResourceType>,
    /// For people.
    #[param(max_length = 4096)]
    comment: Option<String>,
    /// Move it back to a better node once that is there.
    failback: Option<bool>,
    /// Whether it may be moved to even out the load.
    #[param(name = "auto-rebalance")]
    auto_rebalance: Option<bool>,
    /// A group of nodes.
    group: Option<String>,
    /// How often to try on another node.
    #[param(min = 0)]
    max_relocate: Option<u32>,
    /// How often to try on the same node.
    #[param(min = 0)]
    max_restart: Option<u32>,
    /// What to keep it in.
    #[param(default = "started")]
    state: Requested,
}

#[derive(Params)]
pub struct ChangeResource {
    /// `vm:100`, `ct:101`, or a VMID.
    sid: ServiceId,
    /// Options to take out.
    delete: Vec<String>,
    /// Change only if the file is still this version.
    #[param(max_length = 64)]
    digest: Option<String>,
    /// For people.
    #[param(max_length = 4096)]
    comment: Option<String>,
    /// Move it back to a better node once that is there.
    failback: Option<bool>,
    /// Whether it may be moved to even out the load.
    #[param(name = "auto-rebalance")]
    auto_rebalance: Option<bool>,
    /// A group of nodes.
    group: Option<String>,
    /// How often to try on another node.
    #[param(min = 0)]
    max_relocate: Option<u32>,
    /// How often to try on the same node.
    #[param(min = 0)]
    max_restart: Option<u32>,
    /// What to keep it in.
    state: Option<Requested>,
}

#[derive(Params)]
pub struct MoveResource {
    /// `vm:100`, `ct:101`, or a VMID.
    sid: ServiceId,
    /// Where to.
    node: NodeName,
}

/// The options that are given, as the file has them.
fn options(given: [(&str, Option<String>); 7]) -> Vec<(String, String)> {
    given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

fn flag(b: bool) -> String {
    u8::from(b).to_string()
}

const READ: Access = Access::All("/", &["Sys.Audit"]);
const WRITE: Access = Access::All("/", &["Sys.Console"]);

endpoint! {
    /// Guests that HA maintains.
    List = get("/cluster/ha/resources"), Anywhere, READ;
    returns: Vec::<HaResource>::schema();
    fn call(cx, p: ListResources) -> Json<Vec<Value>> {
        let mut all = cx.ops().ha_resources()?;
        all.retain(|r| p.kind.is_none_or(|k| r["type"] == k.word()));
        Ok(Json(all))
    }
}

endpoint! {
    /// Puts a guest under HA's care.
    Add = post("/cluster/ha/resources"), Anywhere, WRITE;
    fn call(cx, p: AddResource) -> Null {
        let kind = if p.sid.kind == GuestKind::Qemu { ResourceType::Vm } else { ResourceType::Ct };
        if p.kind.is_some_and(|k| k != kind) {
            return Err(Error::parameter("type", format!("resource '{}' is of another type", p.sid)));
        }
        let options = options([
            ("comment", p.comment),
            ("failback", p.failback.map(flag)),
            ("auto-rebalance", p.auto_rebalance.map(flag)),
            ("group", p.group),
            ("max_relocate", p.max_relocate.map(|n| n.to_string())),
            ("max_restart", p.max_restart.map(|n| n.to_string())),
            ("state", Some(p.state.word().to_owned())),
        ]);
        cx.ops().ha_add(&cx.actor(), p.sid, &options).await?;
        Ok(Null)
    }
}

endpoint! {
    /// One guest that HA maintains.
    Read = get("/cluster/ha/resources/{sid}"), Anywhere, READ;
    returns: HaResource::schema();
    fn call(cx, p: OneResource) -> Json<Value> {
        Ok(Json(cx.ops().ha_resource(p.sid)?))
    }
}

endpoint! {
    /// Changes what HA is asked to do for a guest.
    Change = put("/cluster/ha/resources/{sid}"), Anywhere, WRITE;
    fn call(cx, p: ChangeResource) -> Null {
        let set = options([
            ("comment", p.comment),
            ("failback", p.failback.map(flag)),
            ("auto-rebalance", p.auto_rebalance.map(flag)),
            ("group", p.group),
            ("max_relocate", p.max_relocate.map(|n| n.to_string())),
            ("max_restart", p.max_restart.map(|n| n.to_string())),
            ("state", p.state.map(|s| s.word().to_owned())),
        ]);
        cx.ops().ha_change(&cx.actor().who, p.sid, &set, &p.delete, p.digest.as_deref()).await?;
        Ok(Null)
    }
}

endpoint! {
    /// Takes a guest out of HA's care; it goes on as it is.
    Remove = delete("/cluster/ha/resources/{sid}"), Anywhere, WRITE;
    fn call(cx, p: RemoveResource) -> Null {
        cx.ops().ha_delete(&cx.actor(), p.sid, p.purge).await?;
        Ok(Null)
    }
}

/// That HA was asked to move a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct HaAsked {
    /// The guest.
    sid: ServiceId,
    /// Where to.
    #[serde(rename = "requested-node")]
    requested_node: NodeName,
    /// Guests that go with it, by rules.
    #[serde(rename = "comigrated-resources", skip_serializing_if = "Vec::is_empty")]
    comigrated: Vec<ServiceId>,
    /// What speaks against it: then it was not asked for.
    #[serde(rename = "blocking-resources", skip_serializing_if = "Vec::is_empty")]
    blocking: Vec<HaBlocking>,
}

/// What speaks against a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct HaBlocking {
    /// The guest in the way; the moved one itself if the node is not allowed to it.
    sid: ServiceId,
    /// By what kind of rule: `node-affinity` or `resource-affinity`.
    cause: String,
}

async fn request(cx: &crate::backend::Cx, p: MoveResource, relocate: bool) -> Result<Json<HaAsked>, Error> {
    let asked = Request::Move { sid: p.sid, target: p.node.clone(), relocate };
    let preview = cx.ops().ha_preview(p.sid, &p.node)?;
    if preview.blocked_by.is_empty() {
        cx.ops().ha_request(&cx.actor().who, &asked).await?;
    }
    let blocking = |(sid, cause): (ServiceId, ha::Cause)| {
        let cause = match cause {
            ha::Cause::NodeAffinity => "node-affinity",
            ha::Cause::ResourceAffinity => "resource-affinity",
        };
        HaBlocking { sid, cause: cause.to_owned() }
    };
    Ok(Json(HaAsked {
        sid: p.sid,
        requested_node: p.node,
        comigrated: preview.with,
        blocking: preview.blocked_by.into_iter().map(blocking).collect(),
    }))
}

endpoint! {
    /// Asks HA to move a guest while it runs.
    Migrate = post("/cluster/ha/resources/{sid}/migrate"), Anywhere, WRITE;
    fn call(cx, p: MoveResource) -> Json<HaAsked> {
        request(cx, p, false).await
    }
}

endpoint! {
    /// Asks HA to stop a guest, move it, and start it there.
    Relocate = post("/cluster/ha/resources/{sid}/relocate"), Anywhere, WRITE;
    fn call(cx, p: MoveResource) -> Json<HaAsked> {
        request(cx, p, true).await
    }
}

#[derive(Params)]
pub struct StopResource {
    /// `vm:100`, `ct:101`, or a VMID.
    sid: ServiceId,
    /// Seconds for its shutdown, after which its plug is pulled. 0: at once.
    #[param(default = "60")]
    timeout: u32,
}

endpoint! {
    /// Sets a resource's state to `stopped`, and says how long its shutdown may take.
    Stop = post("/cluster/ha/resources/{sid}/stop"), Anywhere, WRITE;
    fn call(cx, p: StopResource) -> Null {
        let request = Request::Stop { sid: p.sid, timeout: p.timeout };
        cx.ops().ha_request(&cx.actor().who, &request).await?;
        Ok(Null)
    }
}

/// A change of a resource's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct HaChange {
    /// When: seconds since 1970.
    at: u64,
    /// Its state from then on; none when HA let go of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// Where it was.
    node: NodeName,
    /// Where it was to go.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<NodeName>,
    /// Why.
    reason: String,
}

endpoint! {
    /// What became of a resource, and why: the oldest first.
    History = get("/cluster/ha/resources/{sid}/history"), Anywhere, READ;
    fn call(cx, p: OneResource) -> Json<Vec<HaChange>> {
        let history = cx.ops().ha_history(p.sid)?;
        let shown = |c: &ha::Change| HaChange {
            at: c.at,
            state: c.state.map(|s| s.as_str().to_owned()),
            node: c.node.clone(),
            target: c.target.clone(),
            reason: c.reason.clone(),
        };
        Ok(Json(history.iter().map(shown).collect()))
    }
}
