//! `/cluster/options`.

use crate::framework::params::Kind;
use crate::framework::{Access, Json, Null, ParamSchema};
use crate::version::Nothing;
use serde_json::Value;
use std::collections::BTreeMap;
use stead_api_derive::Params;
use stead_model::datacenter;
use stead_model::schema::Schema;

fn options() -> Vec<ParamSchema> {
    let option = |name| ParamSchema::plain(name, Kind::String, "An option of the cluster.").optional();
    datacenter::option_names().map(option).collect()
}

#[derive(Params)]
pub struct ChangeOptions {
    /// Options to take out.
    delete: Vec<String>,
    /// Options to set.
    #[param(rest = options)]
    set: BTreeMap<String, String>,
}

endpoint! {
    /// The cluster's options; without Sys.Audit those that a console needs.
    Read = get("/cluster/options"), Anywhere, Access::Authenticated;
    returns: serde_json::Map::<String, Value>::schema();
    fn call(cx, _p: Nothing) -> Json<Value> {
        Ok(Json(cx.ops().cluster_options(&cx.actor())?))
    }
}

endpoint! {
    /// Changes the cluster's options.
    Change = put("/cluster/options"), Anywhere, Access::All("/", &["Sys.Modify"]);
    fn call(cx, p: ChangeOptions) -> Null {
        cx.ops().set_cluster_options(&cx.actor(), &p.set, &p.delete).await?;
        Ok(Null)
    }
}
