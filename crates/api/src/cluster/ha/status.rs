//! `/cluster/ha/status` and below.

use crate::framework::{Access, Json};
use crate::shapes::HaEntry;
use crate::version::Nothing;
use serde_json::{Value, json};
use stead_model::schema::Schema;

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
        Ok(Json(json!({"manager_status": cx.ops().ha_manager_status()?, "quorum": quorum})))
    }
}
