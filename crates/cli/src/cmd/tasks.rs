//! `stead task`.

use super::Cx;
use crate::api::text;
use crate::failure::Failure;
use crate::output::{Column, Format, Kind};
use crate::params::{Params, escape, put, switch};
use crate::task;
use clap::Subcommand;
use http::Method;
use serde_json::Value;

const COLUMNS: [Column; 7] = [
    ("STARTED (UTC)", "starttime", Kind::Time),
    ("ENDED (UTC)", "endtime", Kind::Time),
    ("NODE", "node", Kind::Text),
    ("USER", "user", Kind::Text),
    ("TYPE", "type", Kind::Text),
    ("STATUS", "status", Kind::Text),
    ("UPID", "upid", Kind::Text),
];

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List tasks, the newest first
    List {
        /// All that this node remembers (default: the recent ones of the cluster)
        #[arg(long)]
        node: Option<String>,
        /// Only those of this guest; needs --node
        #[arg(long, requires = "node")]
        vmid: Option<String>,
        /// Only those that failed; needs --node
        #[arg(long, requires = "node")]
        errors: bool,
        /// At most so many; needs --node
        #[arg(long, requires = "node")]
        limit: Option<u32>,
    },
    /// Show a task's state
    Show {
        /// The task
        upid: String,
    },
    /// Show a task's log
    Log {
        /// The task
        upid: String,
        /// Show what is added, until it ends
        #[arg(long, short = 'f')]
        follow: bool,
    },
    /// Stop a task
    Stop {
        /// The task
        upid: String,
    },
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { node, vmid, errors, limit } => {
            let mut p = Params::new();
            put(&mut p, "vmid", vmid);
            switch(&mut p, "errors", errors);
            put(&mut p, "limit", limit);
            let path = match node {
                Some(node) => {
                    put(&mut p, "source", Some("all"));
                    format!("/nodes/{}/tasks", escape(&node))
                }
                None => "/cluster/tasks".to_owned(),
            };
            let mut list = cx.api.call(Method::GET, &path, &p).await?;
            if let Some(rows) = list.as_array_mut() {
                rows.sort_by_key(|t| std::cmp::Reverse(t["starttime"].as_i64()));
                let unfinished = |t: &&mut Value| t["endtime"].is_null() && t["status"].is_null();
                if cx.format() == Format::Table {
                    rows.iter_mut().filter(unfinished).for_each(|t| t["status"] = "running".into());
                }
            }
            cx.format().list(&list, &COLUMNS)
        }
        Command::Show { upid } => {
            cx.format().object(&cx.api.get(&format!("{}/status", task::path(&upid)?)).await?)
        }
        Command::Log { upid, follow } => task::log(&cx.api, &upid, follow).await,
        Command::Stop { upid } => {
            let answer = cx.api.delete(&task::path(&upid)?, &vec![]).await?;
            cx.format().done(&answer, &format!("{} is asked to stop", text(&upid.into())))
        }
    }
}
