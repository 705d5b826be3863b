//! `/access/users/{userid}/token` and below.

use crate::framework::{Access, Caller, Error, Json, Null, Param, ParamSchema};
use stead_access::AuthId;
use stead_api_derive::Params;
use stead_model::{TokenId, UserId};
use stead_ops::access::{self, ChangedToken, NamedToken, TokenChange, TokenInfo};

const ACCESS: Access = Access::Inside(
    "the user themself (not by a token), or User.Modify on a group of theirs; root@pam's: root@pam alone",
);
const CHANGES: Access = Access::Inside(
    "the user themself, or User.Modify on a group of theirs; none of the user's own tokens; root@pam's: root@pam alone",
);

/// A token's name among its user's.
pub struct TokenName(String);

impl Param for TokenName {
    fn describe(s: ParamSchema) -> ParamSchema {
        s.max_length(64)
    }
    fn read(text: &str) -> Result<Self, String> {
        // The rule is the whole token's; any user does to check it.
        match format!("root@pam!{text}").parse::<TokenId>() {
            Ok(id) => Ok(Self(id.name)),
            Err(e) => Err(format!("invalid format - '{text}' is no token's name: {}", e.why)),
        }
    }
}

#[derive(Params)]
pub struct OneUser {
    /// The user.
    #[param(max_length = 64)]
    userid: UserId,
}

#[derive(Params)]
pub struct OneToken {
    /// The user.
    #[param(max_length = 64)]
    userid: UserId,
    /// The token's name.
    tokenid: TokenName,
}

#[derive(Params)]
pub struct NewToken {
    /// The user.
    #[param(max_length = 64)]
    userid: UserId,
    /// The token's name.
    tokenid: TokenName,
    /// For people.
    #[param(max_length = 255)]
    comment: Option<String>,
    /// When it ends, in seconds since 1970; 0: never.
    #[param(min = 0)]
    expire: Option<u64>,
    /// It has entries of its own in access control lists, and never more than its user.
    privsep: Option<bool>,
}

#[derive(Params)]
pub struct ChangeToken {
    /// The user.
    #[param(max_length = 64)]
    userid: UserId,
    /// The token's name.
    tokenid: TokenName,
    /// For people.
    #[param(max_length = 255)]
    comment: Option<String>,
    /// Settings to take back.
    delete: Vec<String>,
    /// When it ends, in seconds since 1970; 0: never.
    #[param(min = 0)]
    expire: Option<u64>,
    /// It has entries of its own in access control lists, and never more than its user.
    privsep: Option<bool>,
    /// Make a new secret; the old one ends.
    #[param(default = "0")]
    regenerate: bool,
}

fn id(user: UserId, name: TokenName) -> TokenId {
    TokenId { user, name: name.0 }
}

/// A token must not make, change or remove its user's other tokens: it could give itself more than it has.
fn changes(caller: &Caller, user: &UserId) -> Result<(), Error> {
    match &caller.id {
        AuthId::Token(token) if token.user == *user => {
            Err(Error::forbidden("Permission check failed (a token can't handle its user's tokens)"))
        }
        _ => authorize(caller, user),
    }
}

/// Who may see a user's tokens, and but for those themselves change them.
fn authorize(caller: &Caller, user: &UserId) -> Result<(), Error> {
    if caller.id == AuthId::User(user.clone()) {
        return Ok(());
    }
    if user.is_root() {
        return Err(Error::forbidden("Permission check failed (only root@pam may handle root@pam's tokens)"));
    }
    super::may_modify(caller, user)
}

endpoint! {
    /// A user's tokens.
    List = get("/access/users/{userid}/token"), Anywhere, ACCESS;
    authorize: |caller, p| authorize(caller, &p.userid);
    fn call(cx, p: OneUser) -> Json<Vec<NamedToken>> {
        Ok(Json(cx.ops().token_list(&p.userid)?))
    }
}

endpoint! {
    /// One token.
    Read = get("/access/users/{userid}/token/{tokenid}"), Anywhere, ACCESS;
    authorize: |caller, p| authorize(caller, &p.userid);
    fn call(cx, p: OneToken) -> Json<TokenInfo> {
        Ok(Json(cx.ops().token(&id(p.userid, p.tokenid))?))
    }
}

endpoint! {
    /// Makes a token. The answer is the only place where its secret stands.
    Create = post("/access/users/{userid}/token/{tokenid}"), Anywhere, CHANGES;
    authorize: |caller, p| changes(caller, &p.userid);
    fn call(cx, p: NewToken) -> Json<access::NewToken> {
        let change = TokenChange { comment: p.comment, expire: p.expire, privsep: p.privsep, regenerate: false };
        Ok(Json(cx.ops().create_token(&cx.actor(), &id(p.userid, p.tokenid), change).await?))
    }
}

endpoint! {
    /// Changes a token.
    Change = put("/access/users/{userid}/token/{tokenid}"), Anywhere, CHANGES;
    authorize: |caller, p| changes(caller, &p.userid);
    fn call(cx, p: ChangeToken) -> Json<ChangedToken> {
        let (mut comment, mut expire) = (p.comment, p.expire);
        for key in &p.delete {
            match key.as_str() {
                "comment" => comment = Some(String::new()),
                "expire" => expire = Some(0),
                other => return Err(Error::parameter("delete", format!("'{other}' cannot be deleted"))),
            }
        }
        let change = TokenChange { comment, expire, privsep: p.privsep, regenerate: p.regenerate };
        Ok(Json(cx.ops().change_token(&cx.actor(), &id(p.userid, p.tokenid), change).await?))
    }
}

endpoint! {
    /// Removes a token.
    Remove = delete("/access/users/{userid}/token/{tokenid}"), Anywhere, CHANGES;
    authorize: |caller, p| changes(caller, &p.userid);
    fn call(cx, p: OneToken) -> Null {
        cx.ops().remove_token(&cx.actor(), &id(p.userid, p.tokenid)).await?;
        Ok(Null)
    }
}
