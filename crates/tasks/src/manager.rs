//! The tasks of one node.

use crate::store::{Store, TasksError};
use crate::{Filter, Source, Step, TaskContext, TaskError, TaskInfo};
use futures_util::future::BoxFuture;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use stead_model::{NodeName, Upid};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

/// How many finished tasks are kept, with their logs.
const KEPT: usize = 1000;
/// The index is rewritten when it has grown by this many lines.
const SLACK: usize = 200;
/// A log's limit in bytes; what comes after is left out.
const MAX_LOG: u64 = 8 << 20;
/// How many events a slow follower may lag behind before it misses some.
const EVENTS: usize = 4096;
/// The text of a task that nobody could resume.
const LOST: &str = "daemon restarted while the task was running; it was not resumed";

/// What happens to tasks.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskEvent {
    /// One began, or was adopted.
    Started(TaskInfo),
    /// One ended.
    Ended(TaskInfo),
    /// One wrote to its log.
    Log {
        /// Which.
        upid: Upid,
        /// The line.
        line: LogLine,
    },
    /// One is so far: 0 to 1.
    Progress {
        /// Which.
        upid: Upid,
        /// How far.
        share: f64,
    },
}

/// A line of a log, numbered from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Its number.
    pub n: u64,
    /// Its text.
    pub t: String,
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPage {
    /// The lines asked for.
    pub lines: Vec<LogLine>,
    /// How many the log has now.
    pub total: u64,
}

/// Goes on with a task of an earlier daemon; its steps are in the context.
pub type Resumer = Arc<dyn Fn(TaskContext) -> BoxFuture<'static, Result<(), TaskError>> + Send + Sync>;

type Hook = Box<dyn Fn(TaskInfo) -> BoxFuture<'static, ()> + Send + Sync>;

struct Log {
    file: Option<File>,
    lines: u64,
    bytes: u64,
}

/// A task that has not ended.
pub(crate) struct Entry {
    pub upid: Upid,
    pub token: CancellationToken,
    pub steps: Mutex<Vec<Step>>,
    /// Held while steps are written, so that two writings keep their order.
    pub writing: Arc<tokio::sync::Mutex<()>>,
    warnings: AtomicU32,
    log: Mutex<Log>,
    ended: watch::Sender<Option<TaskInfo>>,
}

impl Entry {
    fn new(upid: Upid, steps: Vec<Step>, file: Option<File>, lines: u64) -> Self {
        let bytes = file.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        Self {
            upid,
            token: CancellationToken::new(),
            steps: Mutex::new(steps),
            writing: Arc::default(),
            warnings: AtomicU32::new(0),
            log: Mutex::new(Log { file, lines, bytes }),
            ended: watch::Sender::new(None),
        }
    }

    pub fn count_warning(&self) {
        self.warnings.fetch_add(1, Ordering::Relaxed);
    }

    pub fn steps(&self) -> Vec<Step> {
        lock(&self.steps).clone()
    }

    fn info(&self) -> TaskInfo {
        TaskInfo { upid: self.upid.clone(), endtime: None, exitstatus: None }
    }

    fn exitstatus(&self, result: Result<(), TaskError>) -> String {
        match (result, self.warnings.load(Ordering::Relaxed)) {
            (Ok(()), 0) => "OK".to_owned(),
            (Ok(()), n) => format!("WARNINGS: {n}"),
            (Err(_), _) if self.token.is_cancelled() => TaskError::Interrupted.to_string(),
            // A status is one line; the whole text is in the log.
            (Err(e), _) => match e.to_string().lines().find(|l| !l.trim().is_empty()) {
                Some(line) => line.to_owned(),
                None => "failed without a reason".to_owned(),
            },
        }
    }
}

#[derive(Default)]
struct State {
    active: BTreeMap<(u32, u64, Upid), Arc<Entry>>,
    /// Of an earlier daemon, not adopted yet.
    left_over: Vec<Arc<Entry>>,
    /// Ended on disk, not shown as ended yet.
    ending: Vec<TaskInfo>,
    /// Oldest first.
    finished: VecDeque<TaskInfo>,
    lines_in_index: usize,
}

pub(crate) struct Inner {
    node: NodeName,
    pub store: Store,
    state: Mutex<State>,
    /// Held while the index is written, so that a line added meanwhile is not lost when it is rewritten.
    index: Mutex<()>,
    events: broadcast::Sender<TaskEvent>,
    hook: OnceLock<Hook>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(upid: &Upid) -> (u32, u64, Upid) {
    (upid.starttime, upid.pstart, upid.clone())
}

fn now() -> u32 {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    u32::try_from(secs).unwrap_or(u32::MAX)
}

/// An id as a UPID may carry it: other characters than its own are written as `%XX`.
fn upid_part(text: &str) -> String {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"_-.@!".contains(&c);
    text.bytes().map(|c| if plain(c) { char::from(c).to_string() } else { format!("%{c:02X}") }).collect()
}

/// The tasks of one node. Cheap to clone.
#[derive(Clone)]
pub struct Tasks(Arc<Inner>);

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks").field("node", &self.0.node).finish_non_exhaustive()
    }
}

impl Tasks {
    /// Reads what earlier daemons left in `dir`. Tasks that had not ended are shown as running until
    /// [`Self::adopt`]. Blocking; meant for the daemon's start.
    pub fn open(dir: impl Into<PathBuf>, node: NodeName) -> Result<Self, TasksError> {
        let store = Store::open(dir.into())?;
        let mut finished: VecDeque<TaskInfo> = store.read_index()?.into();
        while finished.len() > KEPT {
            if let Some(old) = finished.pop_front() {
                store.remove_log(&old.upid)?;
            }
        }
        store.write_index(finished.iter())?;
        let mut left_over = vec![];
        for a in store.read_active()? {
            if finished.iter().any(|f| f.upid == a.upid) {
                store.remove_active(&a.upid)?;
                continue;
            }
            let (_, lines) = store.read_log(&a.upid, 0, 0)?;
            let file = store.open_log(&a.upid)?;
            left_over.push(Arc::new(Entry::new(a.upid, a.steps, Some(file), lines as u64)));
        }
        let state = State { lines_in_index: finished.len(), left_over, finished, ..State::default() };
        Ok(Self(Arc::new(Inner {
            node,
            store,
            state: Mutex::new(state),
            index: Mutex::new(()),
            events: broadcast::channel(EVENTS).0,
            hook: OnceLock::new(),
        })))
    }

    /// Sets what is awaited before a task is shown as ended. Only the first call counts.
    pub fn on_end<F, Fut>(&self, hook: F)
    where
        F: Fn(TaskInfo) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        // A second hook is a mistake of the wiring; the first stays.
        let _ = self.0.hook.set(Box::new(move |t| Box::pin(hook(t))));
    }

    /// Goes on with tasks of an earlier daemon whose type has a resumer, and ends the others honestly.
    /// Must be called once within the runtime; later calls find nothing left over.
    pub fn adopt(&self, resumers: &HashMap<&str, Resumer>) {
        let left: Vec<Arc<Entry>> = {
            let mut state = lock(&self.0.state);
            let left = std::mem::take(&mut state.left_over);
            state.active.extend(left.iter().map(|e| (key(&e.upid), e.clone())));
            left
        };
        for entry in left {
            let cx = TaskContext { inner: self.0.clone(), entry: entry.clone() };
            match resumers.get(entry.upid.worker.as_str()) {
                Some(resume) => {
                    cx.log("the daemon was restarted; going on with the task");
                    self.0.run(entry, resume(cx), false);
                }
                None => self.0.run(entry, Box::pin(async { Err(TaskError::failed(LOST)) }), false),
            }
        }
    }

    /// Starts a job. `worker` is the type (`qmstart`), `id` what it works on, `user` who asked.
    /// The task's record is on disk before the job begins.
    pub fn start<F, Fut>(&self, worker: &str, id: &str, user: &str, job: F) -> Result<Upid, TasksError>
    where
        F: FnOnce(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let upid = Upid {
            node: self.0.node.clone(),
            pid: std::process::id(),
            pstart: COUNT.fetch_add(1, Ordering::Relaxed),
            starttime: now(),
            worker: upid_part(worker),
            id: upid_part(id),
            user: user.to_owned(),
        };
        let log = self.0.store.open_log(&upid)?;
        let entry = Arc::new(Entry::new(upid.clone(), vec![], Some(log), 0));
        lock(&self.0.state).active.insert(key(&upid), entry.clone());
        let cx = TaskContext { inner: self.0.clone(), entry: entry.clone() };
        // The job itself is made inside its task: whatever it does before its first await is caught too.
        self.0.run(entry, Box::pin(async move { job(cx).await }), true);
        Ok(upid)
    }

    /// Asks a task to stop. False if there is no such task running.
    pub fn stop(&self, upid: &Upid) -> bool {
        let state = lock(&self.0.state);
        match state.active.get(&key(upid)) {
            Some(e) => {
                e.token.cancel();
                true
            }
            None => false,
        }
    }

    /// What is known of a task.
    pub fn get(&self, upid: &Upid) -> Option<TaskInfo> {
        let state = lock(&self.0.state);
        if state.active.contains_key(&key(upid)) || state.left_over.iter().any(|e| e.upid == *upid) {
            return Some(TaskInfo { upid: upid.clone(), endtime: None, exitstatus: None });
        }
        state.finished.iter().rev().find(|t| t.upid == *upid).cloned()
    }

    /// Waits until a task has ended; none if there is no such task.
    pub async fn wait(&self, upid: &Upid) -> Option<TaskInfo> {
        let mut ended = {
            let state = lock(&self.0.state);
            let left = || state.left_over.iter().find(|e| e.upid == *upid);
            match state.active.get(&key(upid)).or_else(left) {
                Some(e) => e.ended.subscribe(),
                None => return state.finished.iter().rev().find(|t| t.upid == *upid).cloned(),
            }
        };
        ended.wait_for(Option::is_some).await.ok().and_then(|t| t.clone())
    }

    /// The selected tasks, newest first, and how many the selection has without `start` and `limit`.
    pub fn list(&self, filter: &Filter) -> (Vec<TaskInfo>, usize) {
        let all = {
            let state = lock(&self.0.state);
            let mut all: Vec<TaskInfo> = vec![];
            if filter.source != Source::Archive {
                all.extend(state.active.values().chain(&state.left_over).map(|e| e.info()));
            }
            if filter.source != Source::Active {
                all.extend(state.finished.iter().cloned());
            }
            all
        };
        let mut hits: Vec<TaskInfo> = all.into_iter().filter(|t| filter.matches(t)).collect();
        hits.sort_by_key(|t| std::cmp::Reverse((t.upid.starttime, t.upid.pstart)));
        let total = hits.len();
        let limit = if filter.limit == 0 { usize::MAX } else { filter.limit };
        (hits.into_iter().skip(filter.start).take(limit).collect(), total)
    }

    /// Lines of a task's log from `start` (counted from zero), at most `limit`; zero gives all.
    pub async fn log(&self, upid: &Upid, start: usize, limit: usize) -> Result<LogPage, TasksError> {
        let (inner, upid) = (self.0.clone(), upid.clone());
        let limit = if limit == 0 { usize::MAX } else { limit };
        let path = inner.store.log_path(&upid);
        let read = tokio::task::spawn_blocking(move || inner.store.read_log(&upid, start, limit)).await;
        let failed = |e| TasksError { what: "read", path, source: std::io::Error::other(e) };
        let (lines, total) = read.map_err(failed)??;
        let numbered = |(i, t)| LogLine { n: (start + i + 1) as u64, t };
        Ok(LogPage { lines: lines.into_iter().enumerate().map(numbered).collect(), total: total as u64 })
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<TaskEvent> {
        self.0.events.subscribe()
    }

    /// How many tasks run.
    pub fn running(&self) -> usize {
        lock(&self.0.state).active.len()
    }
}

impl Inner {
    pub fn emit(&self, event: TaskEvent) {
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    pub fn append_log(&self, entry: &Entry, text: &str) {
        let mut log = lock(&entry.log);
        for line in text.lines() {
            if log.bytes >= MAX_LOG {
                return;
            }
            let written = format!("{line}\n");
            log.bytes += written.len() as u64;
            let full = log.bytes >= MAX_LOG;
            let last = if full { "(the log is full; the rest is left out)\n" } else { "" };
            if let Some(f) = log.file.as_mut()
                && let Err(e) = f.write_all(written.as_bytes()).and_then(|()| f.write_all(last.as_bytes()))
            {
                tracing::warn!("could not write to the log of {}: {e}", entry.upid);
            }
            log.lines += 1;
            let line = LogLine { n: log.lines, t: line.to_owned() };
            self.emit(TaskEvent::Log { upid: entry.upid.clone(), line });
        }
    }

    /// Runs a job and sees to its end; `fresh`: its record is not on disk yet.
    fn run(self: &Arc<Self>, entry: Arc<Entry>, job: BoxFuture<'static, Result<(), TaskError>>, fresh: bool) {
        self.emit(TaskEvent::Started(entry.info()));
        let inner = self.clone();
        tokio::spawn(async move {
            let recorded = if fresh { inner.record(&entry).await } else { Ok(()) };
            let result = match recorded {
                Ok(()) => match tokio::spawn(job).await {
                    Ok(result) => result,
                    Err(e) => Err(TaskError::failed(format!("the task broke off: {e}"))),
                },
                Err(e) => Err(e),
            };
            inner.end(entry, result).await;
        });
    }

    async fn record(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<(), TaskError> {
        let (inner, upid) = (self.clone(), entry.upid.clone());
        match tokio::task::spawn_blocking(move || inner.store.write_active(&upid, &[])).await {
            Ok(r) => Ok(r?),
            Err(e) => Err(TaskError::failed(format!("the task's record was not written: {e}"))),
        }
    }

    async fn end(self: Arc<Self>, entry: Arc<Entry>, result: Result<(), TaskError>) {
        let last = match &result {
            Ok(()) => "TASK OK".to_owned(),
            Err(_) if entry.token.is_cancelled() => "TASK ERROR: interrupted by signal".to_owned(),
            Err(e) => format!("TASK ERROR: {e}"),
        };
        let info = TaskInfo {
            endtime: Some(now()),
            exitstatus: Some(entry.exitstatus(result)),
            upid: entry.upid.clone(),
        };
        let last = match &info.exitstatus {
            Some(s) if s.starts_with("WARNINGS") => format!("TASK {s}"),
            _ => last,
        };
        self.append_log(&entry, &last);
        let (inner, ended) = (self.clone(), info.clone());
        let written = tokio::task::spawn_blocking(move || inner.keep_end(&ended)).await;
        if let Ok(Err(e)) = &written {
            tracing::error!("the end of {} could not be kept: {e}", info.upid);
        }
        if let Some(hook) = self.hook.get()
            && let Err(e) = tokio::spawn(hook(info.clone())).await
        {
            tracing::error!("what should follow the end of {} broke off: {e}", info.upid);
        }
        let dropped = self.show_ended(&info);
        self.emit(TaskEvent::Ended(info.clone()));
        entry.ended.send_replace(Some(info.clone()));
        // Without its line in the index the record stays, and the next daemon ends the task again.
        let keep_record = !matches!(written, Ok(Ok(())));
        let inner = self.clone();
        let clean = tokio::task::spawn_blocking(move || inner.tidy(&info.upid, &dropped, keep_record)).await;
        if let Ok(Err(e)) = clean {
            tracing::warn!("{e}");
        }
    }

    /// Moves a task among the finished; returns those that fell out at the other end.
    fn show_ended(&self, info: &TaskInfo) -> Vec<TaskInfo> {
        let mut state = lock(&self.state);
        state.active.remove(&key(&info.upid));
        state.ending.retain(|t| t.upid != info.upid);
        state.finished.push_back(info.clone());
        state.lines_in_index += 1;
        let over = state.finished.len().saturating_sub(KEPT);
        state.finished.drain(..over).collect()
    }

    fn tidy(&self, ended: &Upid, dropped: &[TaskInfo], keep_record: bool) -> Result<(), TasksError> {
        if !keep_record {
            self.store.remove_active(ended)?;
        }
        for t in dropped {
            self.store.remove_log(&t.upid)?;
        }
        self.shorten_index()
    }

    /// Keeps a task's end, durably.
    fn keep_end(&self, info: &TaskInfo) -> Result<(), TasksError> {
        let _writing = lock(&self.index);
        lock(&self.state).ending.push(info.clone());
        self.store.append_index(info)
    }

    fn shorten_index(&self) -> Result<(), TasksError> {
        let _writing = lock(&self.index);
        let kept: Vec<TaskInfo> = {
            let mut state = lock(&self.state);
            if state.lines_in_index <= KEPT + SLACK {
                return Ok(());
            }
            let kept: Vec<TaskInfo> = state.finished.iter().chain(&state.ending).cloned().collect();
            state.lines_in_index = kept.len();
            kept
        };
        self.store.write_index(kept.iter())
    }
}
