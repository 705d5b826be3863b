//! `stead token`.

use super::Cx;
use crate::api::text;
use crate::failure::Failure;
use crate::output::{self, Column, Format, Kind};
use crate::params::{Params, escape, put};
use clap::Subcommand;

const COLUMNS: [Column; 4] = [
    ("TOKEN", "tokenid", Kind::Text),
    ("EXPIRES (UTC)", "expire", Kind::Time),
    ("SEPARATED", "privsep", Kind::Truth),
    ("COMMENT", "comment", Kind::Text),
];

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an API token and print its secret, once
    #[command(after_help = "Example:\n  stead token create root@pam!ci --comment 'build server'")]
    Create {
        /// The token: USER@REALM!NAME
        token: String,
        /// Let it do all that its user may (default: only what is granted to the token itself)
        #[arg(long)]
        no_privsep: bool,
        /// When it ends, in seconds since 1970 (default: never)
        #[arg(long, value_name = "SECONDS")]
        expire: Option<u64>,
        /// A comment
        #[arg(long)]
        comment: Option<String>,
    },
    /// List a user's tokens
    List {
        /// The user
        #[arg(default_value = "root@pam")]
        user: String,
    },
    /// Remove a token
    Remove {
        /// The token: USER@REALM!NAME
        token: String,
    },
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create { token, no_privsep, expire, comment } => {
            let mut p = Params::new();
            put(&mut p, "privsep", Some(u8::from(!no_privsep)));
            put(&mut p, "expire", expire);
            put(&mut p, "comment", comment);
            let made = cx.api.post(&path(&token)?, &p).await?;
            if cx.format() == Format::Json {
                return output::json(&made);
            }
            output::print(&format!("{token}={}", text(&made["value"])))
        }
        Command::List { user } => list(cx, &user).await,
        Command::Remove { token } => {
            let answer = cx.api.delete(&path(&token)?, &vec![]).await?;
            cx.format().done(&answer, &format!("token {token} removed"))
        }
    }
}

/// A user's tokens.
pub async fn list(cx: &Cx, user: &str) -> Result<(), Failure> {
    let mut list = cx.api.get(&format!("/access/users/{}/token", escape(user))).await?;
    if cx.format() == Format::Table {
        for row in list.as_array_mut().into_iter().flatten().filter(|r| r["expire"] == 0) {
            row["expire"] = "never".into();
        }
    }
    cx.format().list(&list, &COLUMNS)
}

/// The path of a token.
pub fn path(token: &str) -> Result<String, Failure> {
    match token.split_once('!') {
        Some((user, name)) if user.contains('@') && !name.is_empty() => {
            Ok(format!("/access/users/{}/token/{}", escape(user), escape(name)))
        }
        _ => Err(Failure::usage(format!("'{token}' is not a token: it must be USER@REALM!NAME"))),
    }
}
