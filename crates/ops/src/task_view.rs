//! Tasks of this node, as far as the actor may see them: one's own, and others' with `Sys.Audit` on the node.

use crate::{Actor, Ops, OpsError};
use serde_json::Value;
use stead_model::{Upid, Vmid};
use stead_tasks::TaskInfo;
pub use stead_tasks::{Filter, LogPage, Outcome, Source};

impl Ops {
    fn is_own(actor: &Actor, upid: &Upid) -> bool {
        // A token sees its user's tasks and those of the user's other tokens, as the user does.
        let owner = |who: &str| who.split('!').next().unwrap_or_default().to_owned();
        owner(&actor.who) == owner(&upid.user)
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
    pub fn task_list(&self, actor: &Actor, filter: &Filter) -> (Vec<Value>, usize) {
        let all = actor.may(&format!("/nodes/{}", self.me.name), "Sys.Audit");
        if all {
            let (tasks, total) = self.tasks.list(filter);
            return (tasks.iter().map(TaskInfo::listed).collect(), total);
        }
        let whole = Filter { start: 0, limit: 0, ..filter.clone() };
        let own: Vec<TaskInfo> =
            self.tasks.list(&whole).0.into_iter().filter(|t| Self::is_own(actor, &t.upid)).collect();
        let limit = if filter.limit == 0 { usize::MAX } else { filter.limit };
        let page = own.iter().skip(filter.start).take(limit).map(TaskInfo::listed).collect();
        (page, own.len())
    }

    /// Tasks of all nodes that the actor may see, the latest first.
    pub fn cluster_tasks_of(&self, actor: &Actor) -> Vec<Value> {
        let seen = |t: &Value| {
            let upid = t.get("upid").and_then(Value::as_str).and_then(|u| u.parse::<Upid>().ok());
            upid.is_some_and(|u| Self::is_own(actor, &u) || actor.may(&Self::node_path(&u), "Sys.Audit"))
        };
        self.cluster_tasks().into_iter().filter(seen).collect()
    }

    /// How a task of this node stands.
    pub fn task_status(&self, actor: &Actor, upid: &Upid) -> Result<Value, OpsError> {
        Ok(self.seen_task(actor, upid)?.status())
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
