//! A VM's options as parameters, from the model's list of them.

use crate::framework::ParamSchema;
use crate::framework::params::Kind;
use stead_model::vmconfig::keys::{KEYS, KeySpec, Kind as Values, Support};

/// Every option that a user may name. Which of them work, and their values, is the model's to check.
pub fn all() -> Vec<ParamSchema> {
    let named = |k: &&KeySpec| k.support != Support::Internal || k.name == "lock";
    KEYS.iter().filter(named).map(schema).collect()
}

fn schema(key: &KeySpec) -> ParamSchema {
    let name = if key.count > 0 { format!("{}[n]", key.name) } else { key.name.to_owned() };
    let about = match key.support {
        Support::Works => "An option of the VM.".to_owned(),
        Support::Never(why) => format!("Refused: {why}."),
        Support::ByNode(needs) => format!("Refused by a node, with its reason: it needs {needs}."),
        Support::Internal => "Set by the cluster alone.".to_owned(),
        Support::AliasOf(other) => format!("Another name of {other}."),
    };
    let plain = |kind| ParamSchema::plain(&name, kind, &about).optional();
    match key.kind {
        Values::Bool => plain(Kind::Boolean),
        Values::Int { min, max } => plain(Kind::Integer).min(min as f64).max(max as f64),
        Values::Number { min, max } => plain(Kind::Number).min(min).max(max),
        Values::Choice(words) => plain(Kind::String).choices(words),
        Values::Text { max } => plain(Kind::String).max_length(max),
        Values::Checked(_) => plain(Kind::String),
    }
}
