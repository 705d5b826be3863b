//! `/access/password`.

use crate::backend::Cx;
use crate::framework::{Access, Caller, Error, Null};
use stead_access::{AuthError, AuthId};
use stead_api_derive::Params;
use stead_model::UserId;

#[derive(Params)]
pub struct ChangePassword {
    /// Whose password.
    #[param(max_length = 64)]
    userid: UserId,
    /// The new one: 8 to 64 characters.
    #[param(max_length = 64)]
    password: String,
    /// The caller's own password, as it is now. Not needed by root@pam for others, and on the node's own socket.
    #[param(name = "confirmation-password", max_length = 64)]
    confirmation: Option<String>,
}

/// A token is not its user: who has one must not be able to sign in.
fn authorize(caller: &Caller, p: &ChangePassword) -> Result<(), Error> {
    let AuthId::User(me) = &caller.id else {
        return Err(Error::forbidden("Permission check failed (a token can't change passwords)"));
    };
    if *me == p.userid || me.is_root() {
        return Ok(());
    }
    if p.userid.is_root() {
        return Err(Error::forbidden(
            "Permission check failed (only root@pam may change root@pam's password)",
        ));
    }
    caller.require(&format!("/access/realm/{}", p.userid.realm()), &["Realm.AllocateUser"])?;
    super::may_modify(caller, &p.userid)
}

/// Whoever finds a console where somebody is signed in must not be able to keep it.
async fn confirm(cx: &Cx, p: &ChangePassword) -> Result<(), Error> {
    let me = cx.caller.id.user();
    let free = me.is_root() && (*me != p.userid || cx.remote.is_none());
    let Some(own) = &p.confirmation else {
        return if free { Ok(()) } else { Err(refuse("your own password is needed to confirm this")) };
    };
    match cx.ops().check_password(me, own.clone(), cx.from(), cx.caller.now).await {
        Ok(()) => Ok(()),
        Err(AuthError::Failure) => Err(refuse("this is not your password")),
        Err(e) => Err(refuse(&e.to_string())),
    }
}

fn refuse(why: &str) -> Error {
    Error::parameter("confirmation-password", why)
}

endpoint! {
    /// Changes a user's password. Their tickets end, the caller's own too: whoever holds a stolen one is out. Tokens stay.
    Change = put("/access/password"), Anywhere, Access::Inside(
        "the user themself (not by a token); for others' Realm.AllocateUser on /access/realm/{realm} and User.Modify on a \
         group of theirs; root@pam's: root@pam alone");
    authorize: authorize;
    fn call(cx, p: ChangePassword) -> Null {
        confirm(cx, &p).await?;
        cx.ops().set_password(&cx.actor(), &p.userid, p.password).await?;
        Ok(Null)
    }
}
