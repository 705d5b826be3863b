//! `pveum`: the part that concerns tokens.

use super::{Tool, Words, unknown};
use crate::cmd::{Cx, token};
use crate::failure::Failure;
use crate::output::{self, Format};
use serde_json::json;

pub const HELP: &str = "\
pveum: API tokens

  pveum user token list USER@REALM
  pveum user token add USER@REALM NAME [--privsep 0] [--expire SECONDS] [--comment TEXT]
  pveum user token modify USER@REALM NAME [--regenerate] [--NAME VALUE …]
  pveum user token remove USER@REALM NAME
";

pub async fn run(cx: &Cx, verb: &str, mut words: Words) -> Result<(), Failure> {
    let no = |what: &str| Err(unknown(Tool::Pveum, what));
    // The original takes `pveum user token VERB` and, shorter, `pveum token VERB`.
    match verb {
        "token" => {}
        "user" => match words.next("'token'")?.as_str() {
            "token" => {}
            other => return no(&format!("user {other}")),
        },
        other => return no(other),
    }
    let what = words.next("what to do: list, add, modify or remove")?;
    if !["list", "add", "modify", "remove", "delete"].contains(&what.as_str()) {
        return no(&format!("token {what}"));
    }
    let user = words.next("the user")?;
    if what == "list" {
        words.nothing()?;
        return token::list(cx, &user).await;
    }
    let name = words.next("the token's name")?;
    words.end()?;
    let id = format!("{user}!{name}");
    let path = token::path(&id)?;
    match what.as_str() {
        "add" => {
            let made = cx.api.post(&path, &words.params).await?;
            match cx.format() {
                Format::Json => output::json(&made),
                Format::Table => cx.format().object(&json!({
                    "full-tokenid": made["full-tokenid"], "info": made["info"], "value": made["value"],
                })),
            }
        }
        "modify" => {
            let changed = cx.api.put(&path, &words.params).await?;
            // A new secret is shown this once.
            match (cx.format(), changed.get("value")) {
                (Format::Table, Some(_)) => cx.format().object(&changed),
                _ => cx.format().done(&changed, &format!("{id} changed")),
            }
        }
        _ => {
            words.nothing()?;
            cx.format().done(&cx.api.delete(&path, &vec![]).await?, &format!("{id} removed"))
        }
    }
}
