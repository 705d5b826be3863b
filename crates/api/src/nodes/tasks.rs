//! `/nodes/{node}/tasks` and below.

use crate::framework::{Access, Bytes, Either, Error, Json, Null, Page, full};
use serde::Serialize;
use stead_api_derive::{Params, Schema};
use stead_model::{NodeName, Upid, Vmid};
use stead_ops::task_view::{Filter, Outcome, Source, TaskRow, TaskStatus, is_own};

choice! {
    /// Which tasks.
    pub enum Which { Archive = "archive", Active = "active", All = "all" }
}

choice! {
    /// How a task ended.
    pub enum Ended { Ok = "ok", Error = "error", Warning = "warning", Unknown = "unknown" }
}

#[derive(Params)]
pub struct ListTasks {
    /// The node.
    node: NodeName,
    /// Only those that failed.
    #[param(default = "0")]
    errors: bool,
    /// How many at most.
    #[param(min = 0, default = "50")]
    limit: usize,
    /// Started at or after, seconds since 1970.
    since: Option<u32>,
    /// Finished ones, running ones, or both.
    #[param(default = "archive")]
    source: Which,
    /// How many to leave out at the beginning.
    #[param(min = 0, default = "0")]
    start: usize,
    /// Only those that ended so.
    statusfilter: Vec<Ended>,
    /// Only those of this type.
    typefilter: Option<String>,
    /// Started at or before, seconds since 1970.
    until: Option<u32>,
    /// Only those of users whose name has this part.
    userfilter: Option<String>,
    /// Only those on this guest.
    vmid: Option<Vmid>,
}

#[derive(Params)]
pub struct OneTask {
    /// The node.
    node: NodeName,
    /// The task.
    upid: Upid,
}

#[derive(Params)]
pub struct ReadLog {
    /// The node.
    node: NodeName,
    /// The task.
    upid: Upid,
    /// The first line, counted from zero.
    #[param(min = 0, default = "0")]
    start: usize,
    /// How many lines at most.
    #[param(min = 0, default = "50")]
    limit: usize,
    /// The whole log as a file.
    #[param(default = "0")]
    download: bool,
}

impl ListTasks {
    fn filter(self) -> Filter {
        let outcome = |e: Ended| match e {
            Ended::Ok => Outcome::Ok,
            Ended::Error => Outcome::Error,
            Ended::Warning => Outcome::Warning,
            Ended::Unknown => Outcome::Unknown,
        };
        Filter {
            start: self.start,
            limit: self.limit,
            user: self.userfilter,
            worker: self.typefilter,
            vmid: self.vmid.map(Vmid::get),
            errors: self.errors,
            source: match self.source {
                Which::Archive => Source::Archive,
                Which::Active => Source::Active,
                Which::All => Source::All,
            },
            since: self.since,
            until: self.until,
            outcomes: self.statusfilter.into_iter().map(outcome).collect(),
        }
    }
}

/// A line of a task's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct Line {
    /// Its number, from 1.
    n: u64,
    /// Its text.
    t: String,
}

/// A task is found on the node that its id names.
fn on(node: &NodeName, upid: &Upid) -> Result<(), Error> {
    if *node == upid.node {
        Ok(())
    } else {
        Err(Error::failed(format!("no such task '{upid}' on node '{node}'")))
    }
}

endpoint! {
    /// A node's tasks, newest first: one's own, or all with Sys.Audit on the node.
    List = get("/nodes/{node}/tasks"), AtNode, Access::Authenticated;
    fn call(cx, p: ListTasks) -> Page<Vec<TaskRow>> {
        cx.ops().member(&p.node)?;
        let (data, total) = cx.ops().task_list(&cx.actor(), &p.filter());
        Ok(Page { data, total: total as u64 })
    }
}

endpoint! {
    /// How a task stands.
    Status = get("/nodes/{node}/tasks/{upid}/status"), AtNode, Access::Authenticated;
    fn call(cx, p: OneTask) -> Json<TaskStatus> {
        on(&p.node, &p.upid)?;
        Ok(Json(cx.ops().task_status(&cx.actor(), &p.upid)?))
    }
}

endpoint! {
    /// A task's log.
    Log = get("/nodes/{node}/tasks/{upid}/log"), AtNode, Access::Authenticated;
    fn call(cx, p: ReadLog) -> Either<Page<Vec<Line>>, Bytes> {
        on(&p.node, &p.upid)?;
        if p.download {
            let page = cx.ops().task_log(&cx.actor(), &p.upid, 0, 0).await?;
            let text: String = page.lines.into_iter().map(|l| l.t + "\n").collect();
            let filename = Some(format!("task-{}-{}.log", p.upid.node, p.upid.worker));
            return Ok(Either::Right(Bytes { content_type: "text/plain", body: full(text), filename }));
        }
        let page = cx.ops().task_log(&cx.actor(), &p.upid, p.start, p.limit).await?;
        let mut data: Vec<Line> = page.lines.into_iter().map(|l| Line { n: l.n, t: l.t }).collect();
        if page.total == 0 {
            data.push(Line { n: 1, t: "no content".to_owned() });
        }
        Ok(Either::Left(Page { data, total: page.total }))
    }
}

endpoint! {
    /// Asks a task to stop: one's own, or any with Sys.Modify on the node.
    Stop = delete("/nodes/{node}/tasks/{upid}"), AtNode, Access::Inside("one's own task, or Sys.Modify on /nodes/{node}");
    authorize: |caller, p| {
        if is_own(&caller.id.to_string(), &p.upid) {
            Ok(())
        } else {
            caller.require(&format!("/nodes/{}", p.upid.node), &["Sys.Modify"])
        }
    };
    fn call(cx, p: OneTask) -> Null {
        on(&p.node, &p.upid)?;
        cx.ops().task_stop(&cx.actor(), &p.upid)?;
        Ok(Null)
    }
}
