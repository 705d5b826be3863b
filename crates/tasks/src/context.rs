//! What a job sees of its task.

use crate::TaskInfo;
use crate::manager::{Entry, Inner, TaskEvent};
use crate::store::TasksError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::{Arc, PoisonError};
use stead_model::Upid;
use tokio_util::sync::CancellationToken;

/// Something that a job did and need not do again after a restart of the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its name; the last step of a name counts.
    pub name: String,
    /// What the job needs to go on from it.
    pub data: Value,
}

/// How a job ends when it does not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// It failed; the text becomes the task's exit status.
    #[error("{0}")]
    Failed(String),
    /// It was asked to stop and did.
    #[error("interrupted by signal")]
    Interrupted,
}

impl TaskError {
    /// A failure with a text.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }
}

impl From<TasksError> for TaskError {
    fn from(e: TasksError) -> Self {
        Self::Failed(e.to_string())
    }
}

/// A job's hold on its task. Cheap to clone.
#[derive(Clone)]
pub struct TaskContext {
    pub(crate) inner: Arc<Inner>,
    pub(crate) entry: Arc<Entry>,
}

impl std::fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskContext").field("upid", &self.entry.upid).finish_non_exhaustive()
    }
}

impl TaskContext {
    /// The task's id.
    pub fn upid(&self) -> &Upid {
        &self.entry.upid
    }

    /// What lists show of it.
    pub fn info(&self) -> TaskInfo {
        TaskInfo { upid: self.entry.upid.clone(), endtime: None, exitstatus: None }
    }

    /// Adds to the log; a text of several lines becomes several lines.
    pub fn log(&self, text: impl AsRef<str>) {
        self.inner.append_log(&self.entry, text.as_ref());
    }

    /// Adds a warning to the log; a task that succeeds with warnings ends as `WARNINGS: n`.
    pub fn warn(&self, text: impl AsRef<str>) {
        self.entry.count_warning();
        self.log(format!("WARN: {}", text.as_ref()));
    }

    /// Tells followers how far it is: 0 to 1. Neither logged nor kept.
    pub fn progress(&self, share: f64) {
        let share = share.clamp(0.0, 1.0);
        self.inner.emit(TaskEvent::Progress { upid: self.entry.upid.clone(), share });
    }

    /// Cancelled when somebody asked the task to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.entry.token
    }

    /// Whether somebody asked the task to stop.
    pub fn is_cancelled(&self) -> bool {
        self.entry.token.is_cancelled()
    }

    /// Resolves when somebody asks the task to stop.
    pub async fn cancelled(&self) {
        self.entry.token.cancelled().await;
    }

    /// Refuses to go on once somebody asked the task to stop.
    pub fn check(&self) -> Result<(), TaskError> {
        if self.is_cancelled() { Err(TaskError::Interrupted) } else { Ok(()) }
    }

    /// Awaits `work`, but drops it when somebody asks the task to stop.
    pub async fn or_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, TaskError> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.cancelled() => Err(TaskError::Interrupted),
        }
    }

    /// Keeps a step; returns when it would survive a power cut.
    pub async fn save_step(&self, name: &str, data: &(impl Serialize + Sync)) -> Result<(), TaskError> {
        let data = serde_json::to_value(data)
            .map_err(|e| TaskError::failed(format!("the step '{name}' cannot be written: {e}")))?;
        let writing = self.entry.writing.clone().lock_owned().await;
        let (inner, entry) = (self.inner.clone(), self.entry.clone());
        let step = Step { name: name.to_owned(), data };
        let wrote = tokio::task::spawn_blocking(move || {
            let _writing = writing;
            let mut steps = entry.steps();
            steps.retain(|s| s.name != step.name);
            steps.push(step);
            inner.store.write_active(&entry.upid, &steps)?;
            *entry.steps.lock().unwrap_or_else(PoisonError::into_inner) = steps;
            Ok::<_, TasksError>(())
        });
        match wrote.await {
            Ok(r) => Ok(r?),
            Err(e) => Err(TaskError::failed(format!("the step '{name}' was not written: {e}"))),
        }
    }

    /// The steps kept so far, those of an earlier daemon included; in the order of their last writing.
    pub fn steps(&self) -> Vec<Step> {
        self.entry.steps()
    }

    /// What was kept under a step's name.
    pub fn step(&self, name: &str) -> Option<Value> {
        self.entry.steps().into_iter().rev().find(|s| s.name == name).map(|s| s.data)
    }
}
