//! Who makes a request.
//!
//! | shown | who |
//! |---|---|
//! | nothing, on the local socket by root or the daemon's own user | root@pam |
//! | `x-stead-auth`, on a connection from another node | as that node found |
//! | `Authorization: PVEAPIToken=user@realm!name=secret` | the token |
//! | cookie `PVEAuthCookie`, and for changes `CSRFPreventionToken` | the ticket's user |

use super::endpoint::Error;
use super::router::decode;
use super::serve::{ConnInfo, From};
use super::{Authority, Services};
use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use stead_access::{AuthId, TicketError};
use stead_model::{TokenId, UserId};

/// Names the caller on a request that one node forwards to another.
pub const FORWARDED_AUTH: &str = "x-stead-auth";
/// Names the caller's address on such a request.
pub const FORWARDED_REMOTE: &str = "x-stead-remote";
/// How often a request has been forwarded.
pub const FORWARDED_HOPS: &str = "x-stead-hops";

/// All headers that mean something between nodes only.
pub const INTERNAL: [&str; 3] = [FORWARDED_AUTH, FORWARDED_REMOTE, FORWARDED_HOPS];

const COOKIE_NAME: &str = "PVEAuthCookie";
const CSRF: &str = "CSRFPreventionToken";

/// Finds out who calls. `changes`: the method may change something, so a cookie alone is not enough.
pub fn identify<S: Services>(
    services: &S,
    authority: &Authority,
    conn: &ConnInfo,
    headers: &HeaderMap,
    changes: bool,
) -> Result<Option<AuthId>, Error> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    match &conn.from {
        From::Local { trusted: true } => return Ok(Some(AuthId::User(root()?))),
        From::Peer { .. } => {
            if let Some(id) = text(FORWARDED_AUTH) {
                let id =
                    id.parse().map_err(|_| Error::unauthorized("invalid identity forwarded by a node"))?;
                return Ok(Some(id));
            }
        }
        From::Local { trusted: false } | From::Public => {}
    }
    let now = services.now();
    if let Some(token) = text(AUTHORIZATION.as_str()).and_then(|a| a.strip_prefix("PVEAPIToken=")) {
        return by_token(authority, token, now).map(Some);
    }
    let Some(ticket) = cookie(headers) else { return Ok(None) };
    let user = by_ticket(authority, &ticket, now)?;
    if changes {
        let keyring = authority.keyring.as_ref().ok_or_else(not_ready)?;
        text(CSRF)
            .ok_or(TicketError::Invalid)
            .and_then(|t| keyring.check_csrf(&decode(t), &user, now))
            .map_err(|_| Error::unauthorized("Permission denied - invalid csrf token"))?;
    }
    Ok(Some(AuthId::User(user)))
}

fn root() -> Result<UserId, Error> {
    UserId::new(UserId::ROOT).map_err(|e| Error::failed(e.to_string()))
}

fn not_ready() -> Error {
    Error::new(503, "cluster not ready - this node belongs to no cluster yet")
}

/// The user of a ticket who may still sign in, by the password that they have now.
pub fn by_ticket(authority: &Authority, ticket: &str, now: u64) -> Result<UserId, Error> {
    let keyring = authority.keyring.as_ref().ok_or_else(not_ready)?;
    let user = keyring
        .check_ticket(ticket, &authority.stamps, now)
        .map_err(|e| Error::unauthorized(format!("permission denied - {e}")))?;
    if authority.directory.user_active(&user, now) {
        Ok(user)
    } else {
        Err(Error::unauthorized("permission denied - user is disabled, expired or does not exist"))
    }
}

fn by_token(authority: &Authority, text: &str, now: u64) -> Result<AuthId, Error> {
    let refused = || Error::unauthorized("no such API token, or its secret is wrong or has expired");
    let (id, secret) = text.rsplit_once('=').ok_or_else(refused)?;
    let token: TokenId = decode(id).parse().map_err(|_| refused())?;
    let good = authority.tokens.verify(&token, secret);
    let id = AuthId::Token(token);
    if good && authority.directory.active(&id, now) { Ok(id) } else { Err(refused()) }
}

/// The ticket in the cookies. Clients send it raw, with `:`, `+`, `/` and `=`, or percent-encoded.
fn cookie(headers: &HeaderMap) -> Option<String> {
    let all = headers.get_all(COOKIE);
    let mut pairs = all.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    let value = pairs.find_map(|p| {
        let (name, value) = p.trim().split_once('=')?;
        (name == COOKIE_NAME).then(|| value.trim_matches('"').to_owned())
    })?;
    Some(if value.contains('%') { decode(&value) } else { value }).filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Option<String> {
        let mut h = HeaderMap::new();
        h.insert(COOKIE, text.parse().unwrap());
        cookie(&h)
    }

    #[test]
    fn the_cookie_is_found_raw_and_encoded() {
        let ticket = "PVE:root@pam:6553F100::a+b/c=";
        assert_eq!(from(&format!("x=1; PVEAuthCookie={ticket}; y=2")).as_deref(), Some(ticket));
        assert_eq!(
            from("PVEAuthCookie=PVE%3Aroot%40pam%3A6553F100%3A%3Aa%2Bb%2Fc%3D").as_deref(),
            Some(ticket)
        );
        assert_eq!(from("XPVEAuthCookie=a"), None);
        assert_eq!(from("PVEAuthCookie="), None);
    }
}
