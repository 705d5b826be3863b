//! `/cluster/ha/status` and below.

use crate::framework::{Access, Json, Null};
use crate::shapes::HaEntry;
use crate::version::Nothing;
use serde_json::{Value, json};
use stead_api_derive::Params;
use stead_model::NodeName;
use stead_model::schema::Schema;
use stead_ops::ha::{DisarmMode, Request};

endpoint! {
    /// The manager, the nodes' agents and every resource, with what HA does and why.
    Current = get("/cluster/ha/status/current"), Anywhere, Access::All("/", &["Sys.Audit"]);
    returns: Vec::<HaEntry>::schema();
    fn call(cx, _p: Nothing) -> Json<Vec<Value>> {
        Ok(Json(cx.ops().ha_status()?))
    }
}

endpoint! {
    /// The manager's state as it keeps it.
    Manager = get("/cluster/ha/status/manager_status"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, _p: Nothing) -> Json<Value> {
        let quorum = json!({"node": cx.ops().me.name, "quorate": cx.ops().quorate()});
        let fenced = |n: stead_model::NodeRecord| Some((n.name.to_string(), json!(cx.ops().fenced_words(&n)?)));
        let fenced: serde_json::Map<_, _> = cx.ops().guest_nodes().into_iter().filter_map(fenced).collect();
        Ok(Json(json!({
            "manager_status": cx.ops().ha_manager_status()?, "quorum": quorum, "fenced": fenced,
        })))
    }
}

choice! {
    /// What becomes of resources while HA is disarmed.
    pub enum ResourceMode { Freeze = "freeze", Ignore = "ignore" }
}

#[derive(Params)]
pub struct DisarmHow {
    /// `freeze`: they stay as they are; `ignore`: HA forgets them, so that they can be handled by hand.
    #[param(name = "resource-mode")]
    mode: ResourceMode,
}

const WRITE: Access = Access::All("/", &["Sys.Console"]);

endpoint! {
    /// Stops HA from acting on the whole cluster: nothing is recovered, started or moved until it is armed again.
    Disarm = post("/cluster/ha/status/disarm-ha"), Anywhere, WRITE;
    fn call(cx, p: DisarmHow) -> Null {
        let mode = match p.mode {
            ResourceMode::Freeze => DisarmMode::Freeze,
            ResourceMode::Ignore => DisarmMode::Ignore,
        };
        cx.ops().ha_request(&cx.actor().who, &Request::Disarm { mode }).await?;
        Ok(Null)
    }
}

endpoint! {
    /// Lets HA act again.
    Arm = post("/cluster/ha/status/arm-ha"), Anywhere, WRITE;
    fn call(cx, _p: Nothing) -> Null {
        cx.ops().ha_request(&cx.actor().who, &Request::Arm).await?;
        Ok(Null)
    }
}

#[derive(Params)]
pub struct MaintainNode {
    /// The node.
    node: NodeName,
    /// Whether it is to be empty.
    enable: bool,
}

endpoint! {
    /// Begins or ends the maintenance of a node: HA moves its resources away, places none there, and brings them back.
    Maintain = put("/cluster/ha/status/maintenance/{node}"), Anywhere, WRITE;
    fn call(cx, p: MaintainNode) -> Null {
        let request = Request::Maintenance { node: p.node, on: p.enable };
        cx.ops().ha_request(&cx.actor().who, &request).await?;
        Ok(Null)
    }
}
