//! `/access/ticket`: a ticket for a password, or for an older ticket.

use crate::backend::Cx;
use crate::framework::{Access, Caller, Error, Json, Null};
use crate::version::Nothing;
use serde::Serialize;
use std::collections::BTreeMap;
use stead_access::{AuthError, AuthId};
use stead_api_derive::{Params, Schema};
use stead_model::UserId;

#[derive(Params)]
pub struct SignIn {
    /// `user@realm`, or the user with `realm` beside it.
    #[param(max_length = 64)]
    username: String,
    /// The password, or a ticket that is still good.
    password: String,
    /// The realm, if the user's name has none.
    #[param(max_length = 32)]
    realm: Option<String>,
    /// Only check the ticket given as password, and these privileges on `path`.
    #[param(requires = "path", max_length = 64)]
    privs: Vec<String>,
    /// See `privs`.
    #[param(requires = "privs", max_length = 64)]
    path: Option<String>,
    /// Tickets have one format only; older clients ask for it by name.
    #[param(name = "new-format", default = "1")]
    new_format: bool,
}

endpoint! {
    /// For clients that look whether the path is there.
    Read = get("/access/ticket"), Anywhere, Access::Everyone;
    fn call(_cx, _p: Nothing) -> Null {
        Ok(Null)
    }
}

endpoint! {
    /// Makes a ticket.
    Create = post("/access/ticket"), Anywhere, Access::Everyone;
    missing: &[
        "otp: second factors are not supported yet",
        "tfa-challenge: second factors are not supported yet",
    ];
    fn call(cx, p: SignIn) -> Json<SignedIn> {
        sign_in(cx, p).await.map(Json)
    }
}

/// Who has signed in. With a ticket, unless only privileges were asked about. Contains secrets.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Schema)]
pub struct SignedIn {
    /// The user.
    username: String,
    /// For the cookie PVEAuthCookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    ticket: Option<String>,
    /// For the header of that name, with every change.
    #[serde(rename = "CSRFPreventionToken", skip_serializing_if = "Option::is_none")]
    csrf: Option<String>,
    /// What a console shows at all: privileges held at the top of each kind of object.
    #[serde(skip_serializing_if = "Option::is_none")]
    cap: Option<BTreeMap<&'static str, BTreeMap<&'static str, bool>>>,
    /// The cluster's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    clustername: Option<String>,
}

fn failure() -> Error {
    Error::unauthorized("authentication failure")
}

async fn sign_in(cx: &Cx, p: SignIn) -> Result<SignedIn, Error> {
    if !p.new_format {
        return Err(Error::parameter("new-format", "there is no older format of tickets"));
    }
    let name = match &p.realm {
        Some(realm) if !p.username.ends_with(&format!("@{realm}")) => format!("{}@{realm}", p.username),
        _ => p.username.clone(),
    };
    // A name that cannot be one is as wrong as a wrong password.
    let user: UserId = name.parse().map_err(|_| failure())?;
    let now = cx.caller.now;
    // Read before the password is checked: one that is changed in between makes the ticket good for nothing.
    let identities = cx.ops().identities()?;
    let keyring = identities.keyring.as_ref().ok_or_else(|| Error::new(503, "cluster not ready"))?;
    if p.password.starts_with("PVE:") {
        let of = keyring.check_ticket(&p.password, &identities.stamps, now).map_err(|_| failure())?;
        if of != user || !identities.directory.user_active(&user, now) {
            return Err(failure());
        }
    } else {
        cx.ops().check_password(&user, p.password, cx.from(), now).await.map_err(|e| match e {
            AuthError::Failure => failure(),
            other => Error::unauthorized(other.to_string()),
        })?;
    }
    let caller = Caller { id: AuthId::User(user.clone()), directory: identities.directory.clone(), now };
    if let Some(path) = &p.path {
        caller.require(path, &p.privs.iter().map(String::as_str).collect::<Vec<_>>())?;
        return Ok(SignedIn { username: user.to_string(), ..SignedIn::default() });
    }
    Ok(SignedIn {
        ticket: Some(keyring.ticket(&user, &identities.stamps, now)),
        csrf: Some(keyring.csrf(&user, now)),
        username: user.to_string(),
        cap: Some(capabilities(&caller)),
        clustername: cx.ops().cluster_record().ok().map(|c| c.value.name),
    })
}

/// What a console shows at all: the privileges held at the top of each kind of object.
fn capabilities(caller: &Caller) -> BTreeMap<&'static str, BTreeMap<&'static str, bool>> {
    let places = [
        ("access", "/access"),
        ("dc", "/"),
        ("nodes", "/nodes"),
        ("sdn", "/sdn"),
        ("storage", "/storage"),
        ("vms", "/vms"),
    ];
    let held = |path: &str| {
        let all = caller.directory.map(&caller.id, path, caller.now);
        all.into_keys().map(|p| (p, true)).collect()
    };
    places.into_iter().map(|(key, path)| (key, held(path))).collect()
}
