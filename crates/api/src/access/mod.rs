//! `/access`: signing in, permissions, tokens.

pub mod permissions;
pub mod ticket;
pub mod tokens;

use crate::framework::{Access, Json};
use crate::version::Nothing;
use serde_json::{Value, json};

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
