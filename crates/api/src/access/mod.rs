//! `/access`: signing in, permissions, tokens.

pub mod password;
pub mod permissions;
pub mod ticket;
pub mod tokens;

use crate::framework::{Access, Caller, Error, Json};
use crate::version::Nothing;
use serde::Serialize;
use stead_api_derive::Schema;
use stead_model::UserId;

/// Refuses unless the caller holds User.Modify on a group of the user's, or on all groups.
fn may_modify(caller: &Caller, user: &UserId) -> Result<(), Error> {
    let mut groups = caller.directory.groups.iter().filter(|(_, members)| members.contains(user.as_str()));
    let held = groups.any(|(name, _)| caller.may(&format!("/access/groups/{name}"), "User.Modify"));
    if held { Ok(()) } else { caller.require("/access/groups", &["User.Modify"]) }
}

/// A realm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct RealmInfo {
    /// Its name.
    realm: &'static str,
    /// Its type.
    #[serde(rename = "type")]
    kind: &'static str,
    /// For people.
    comment: &'static str,
    /// It is the one that is offered first.
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<bool>,
}

endpoint! {
    /// Realms that one can sign in to.
    Domains = get("/access/domains"), Anywhere, Access::Everyone;
    fn call(_cx, _p: Nothing) -> Json<Vec<RealmInfo>> {
        let realms = stead_ops::access::REALMS.into_iter();
        Ok(Json(realms.map(|(realm, kind, comment)| {
            RealmInfo { realm, kind, comment, default: (realm == "pam").then_some(true) }
        }).collect()))
    }
}
