//! Tasks of this node, as far as the actor may see them: one's own (see [`is_own`]), and others' with `Sys.Audit` on the
//! node.

use crate::{Actor, Ops, OpsError};
use serde::{Deserialize, Serialize};
use stead_api_derive::Schema;
use stead_model::{NodeName, Upid, Vmid};
use stead_tasks::TaskInfo;
pub use stead_tasks::{Filter, LogPage, Outcome, Source};

/// What a task's id tells, part by part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct TaskHead {
    /// The task.
    pub upid: Upid,
    /// Where it runs or ran.
    pub node: NodeName,
    /// The daemon's process.
    pub pid: u32,
    /// The task's number in that process.
    pub pstart: u64,
    /// When it began: seconds since 1970.
    pub starttime: u32,
    /// What it does: `qmstart`, ...
    #[serde(rename = "type")]
    pub worker: String,
    /// What it works on.
    pub id: String,
    /// Who asked for it.
    pub user: String,
}

impl From<&Upid> for TaskHead {
    fn from(u: &Upid) -> Self {
        Self {
            upid: u.clone(),
            node: u.node.clone(),
            pid: u.pid,
            pstart: u.pstart,
            starttime: u.starttime,
            worker: u.worker.clone(),
            id: u.id.clone(),
            user: u.user.clone(),
        }
    }
}

/// A task in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct TaskRow {
    /// Which.
    #[serde(flatten)]
    pub head: TaskHead,
    /// When it ended: seconds since 1970. Not there while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endtime: Option<u32>,
    /// How it ended: `OK`, `WARNINGS: n`, or what went wrong. Not there while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

impl From<&TaskInfo> for TaskRow {
    fn from(task: &TaskInfo) -> Self {
        let ended = task.endtime.zip(task.exitstatus.clone());
        let (endtime, status) = ended.map_or((None, None), |(end, status)| (Some(end), Some(status)));
        Self { head: TaskHead::from(&task.upid), endtime, status }
    }
}

/// Whether a task goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Schema)]
#[serde(rename_all = "lowercase")]
pub enum TaskStage {
    /// It goes on.
    Running,
    /// It has ended.
    Stopped,
}

/// How one task stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct TaskStatus {
    /// Which.
    #[serde(flatten)]
    pub head: TaskHead,
    /// Whether it goes on.
    pub status: TaskStage,
    /// How it ended: `OK`, `WARNINGS: n`, or what went wrong. Not there while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exitstatus: Option<String>,
}

/// Whether a task is `who`'s own: a user's are those of their tokens too, a token's are its own alone.
pub fn is_own(who: &str, upid: &Upid) -> bool {
    upid.user == who || upid.user.split_once('!').is_some_and(|(user, _)| user == who)
}

impl Ops {
    fn is_own(actor: &Actor, upid: &Upid) -> bool {
        is_own(&actor.who, upid)
    }

    fn node_path(upid: &Upid) -> String {
        format!("/nodes/{}", upid.node)
    }

    fn seen_task(&self, actor: &Actor, upid: &Upid) -> Result<TaskInfo, OpsError> {
        if !Self::is_own(actor, upid) {
            actor.require(&Self::node_path(upid), &["Sys.Audit"])?;
        }
        self.tasks.get(upid).ok_or_else(|| OpsError::failed(format!("no such task '{upid}'")))
    }

    /// Tasks of this node, newest first, and how many there are in all.
    pub fn task_list(&self, actor: &Actor, filter: &Filter) -> (Vec<TaskRow>, usize) {
        let all = actor.may(&format!("/nodes/{}", self.me.name), "Sys.Audit");
        if all {
            let (tasks, total) = self.tasks.list(filter);
            return (tasks.iter().map(TaskRow::from).collect(), total);
        }
        let whole = Filter { start: 0, limit: 0, ..filter.clone() };
        let own: Vec<TaskInfo> =
            self.tasks.list(&whole).0.into_iter().filter(|t| Self::is_own(actor, &t.upid)).collect();
        let limit = if filter.limit == 0 { usize::MAX } else { filter.limit };
        let page = own.iter().skip(filter.start).take(limit).map(TaskRow::from).collect();
        (page, own.len())
    }

    /// Tasks of all nodes that the actor may see, the latest first.
    pub fn cluster_tasks_of(&self, actor: &Actor) -> Vec<TaskRow> {
        let seen = |t: &TaskRow| {
            let upid = &t.head.upid;
            Self::is_own(actor, upid) || actor.may(&Self::node_path(upid), "Sys.Audit")
        };
        self.cluster_tasks().into_iter().filter(seen).collect()
    }

    /// How a task of this node stands.
    pub fn task_status(&self, actor: &Actor, upid: &Upid) -> Result<TaskStatus, OpsError> {
        let task = self.seen_task(actor, upid)?;
        let status = if task.exitstatus.is_some() { TaskStage::Stopped } else { TaskStage::Running };
        Ok(TaskStatus { head: TaskHead::from(&task.upid), status, exitstatus: task.exitstatus })
    }

    /// Lines of a task's log, from `start` (counted from zero); `limit` 0 gives all.
    pub async fn task_log(
        &self,
        actor: &Actor,
        upid: &Upid,
        start: usize,
        limit: usize,
    ) -> Result<LogPage, OpsError> {
        self.seen_task(actor, upid)?;
        self.tasks.log(upid, start, limit).await.map_err(|e| OpsError::failed(e.to_string()))
    }

    /// Asks a task to stop.
    pub fn task_stop(&self, actor: &Actor, upid: &Upid) -> Result<(), OpsError> {
        if !Self::is_own(actor, upid) {
            actor.require(&Self::node_path(upid), &["Sys.Modify"])?;
        }
        self.seen_task(actor, upid)?;
        // One that has ended meanwhile is stopped, too.
        self.tasks.stop(upid);
        Ok(())
    }

    /// Asks graceful shutdowns of a VM that are under way to stop, so that it can be stopped at once.
    pub fn abort_shutdowns(&self, vmid: Vmid) {
        let filter = Filter {
            source: Source::Active,
            worker: Some("qmshutdown".to_owned()),
            vmid: Some(vmid.get()),
            ..Filter::default()
        };
        for task in self.tasks.list(&filter).0 {
            self.tasks.stop(&task.upid);
        }
    }
}
