//! `/access/permissions`.

use crate::framework::{Access, Caller, Error, Json};
use std::collections::BTreeMap;
use stead_access::AuthId;
use stead_api_derive::Params;

#[derive(Params)]
pub struct ReadPermissions {
    /// This path alone.
    path: Option<String>,
    /// Another user's or token's.
    userid: Option<AuthId>,
}

/// One's own and one's tokens' are free to see.
fn authorize(caller: &Caller, p: &ReadPermissions) -> Result<(), Error> {
    match &p.userid {
        None => Ok(()),
        Some(id) if *id == caller.id => Ok(()),
        Some(AuthId::Token(t)) if caller.id == AuthId::User(t.user.clone()) => Ok(()),
        Some(_) => caller.require("/access", &["Sys.Audit"]),
    }
}

endpoint! {
    /// What a user or token may do: by path, the privileges, and whether they hold below.
    Read = get("/access/permissions"), Anywhere, Access::Inside("anybody their own; Sys.Audit on /access for others'");
    authorize: authorize;
    fn call(cx, p: ReadPermissions) -> Json<BTreeMap<String, BTreeMap<&'static str, bool>>> {
        let (caller, id) = (&cx.caller, p.userid.as_ref().unwrap_or(&cx.caller.id));
        let all = match p.path {
            None => caller.directory.overview(id, caller.now),
            Some(path) if path.starts_with('/') => {
                BTreeMap::from([(path.clone(), caller.directory.map(id, &path, caller.now))])
            }
            Some(_) => return Err(Error::parameter("path", "a path begins with '/'")),
        };
        Ok(Json(all))
    }
}
