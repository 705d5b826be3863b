//! `/access`: signing in, permissions, tokens.

pub mod password;
pub mod permissions;
pub mod ticket;
pub mod tokens;

use crate::framework::{Access, Caller, Error, Json};
use crate::version::Nothing;
use serde_json::{Value, json};
use stead_model::UserId;

/// Refuses unless the caller holds User.Modify on a group of the user's, or on all groups.
fn may_modify(caller: &Caller, user: &UserId) -> Result<(), Error> {
    let mut groups = caller.directory.groups.iter().filter(|(_, members)| members.contains(user.as_str()));
    let held = groups.any(|(name, _)| caller.may(&format!("/access/groups/{name}"), "User.Modify"));
    if held { Ok(()) } else { caller.require("/access/groups", &["User.Modify"]) }
}

endpoint! {
    /// Realms that one can sign in to.
    Domains = get("/access/domains"), Anywhere, Access::Everyone;
    fn call(_cx, _p: Nothing) -> Json<Vec<Value>> {
        let realm = |(realm, kind, comment): &(&str, &str, &str)| {
            let mut value = json!({"realm": realm, "type": kind, "comment": comment});
            if *realm == "pam" {
                value["default"] = json!(1);
            }
            value
        };
        Ok(Json(stead_ops::access::REALMS.iter().map(realm).collect()))
    }
}
