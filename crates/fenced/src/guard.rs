//! One guest's guard: how it is made safe, and how it is continued.
//!
//! An acknowledged command is not a state: whatever is asked for here is then read back. To make a guest safe:
//!
//! ```text
//!  yank migration (out of band) ─▶ cancel it, wait for its end ─▶ stop ─▶ cancel jobs ─▶ drop exports ─▶ verify all
//!        ▲                          ▲                                                                     │    │
//!  half of the time is gone:        └───────────────────────── not so ────────────────────────────────────┘    ▼
//!  yank storage connections too                                            record it ─▶ freeze ─▶ verify ─▶ Safe
//! ```
//!
//! The migration's end is awaited before `stop`, since QEMU may continue the CPUs by itself when a migration fails.
//! `stop` returns when I/O in flight has been drained. Jobs are cancelled after it: a disk that is on its way to another place may be
//! recorded there already, and the guest must hear of no write that has reached the old one alone. Connections to network storage are yanked only when this
//! does not come about, since a guest that is thawed later would miss them.
//!
//! A guest that fetches memory from where it came from (post-copy) is stopped as it is, its connection left alone: without it its CPUs may
//! stand in a page that never comes, and can't be stopped. One that does not stop in half of the time is killed: its memory is torn then.
//! One whose main loop hangs in such a page can't say that it fetches: that it may is registered, from its beginning until it has all.
//! The source of such a guest has its connection cut, and its CPUs stand for good: that its migration has no end is none of a guest that
//! could run.
//!
//! "Paused" is recorded *before* the freeze and withdrawn *before* the first `cont`. So a guest that is frozen and
//! recorded as paused is safe, whoever reads the record.

use crate::clock::Clock;
use crate::freezer::{self, Freezer};
use crate::log;
use crate::monitor::{Monitor, MonitorError};
use crate::process::Process;
use crate::protocol::Registration;
use crate::record::Entry;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use stead_membership::{Moment, Report};

/// How often states are read that QEMU announces to nobody.
const POLL: Duration = Duration::from_millis(5);
/// How often the kernel is asked whether a cgroup is frozen.
const FREEZE_POLL: Duration = Duration::from_millis(1);
/// How long a guest may take to say whether it fetches memory. Of one that does not say its registration does.
const SAYS: Duration = Duration::from_millis(100);
/// How long a guest may take to continue.
const RUN: Duration = Duration::from_secs(10);

/// What went wrong with a guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuardError {
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error("its freezer: {0}")]
    Freezer(#[from] std::io::Error),
    #[error("it has no process (by {0})")]
    NoProcess(PathBuf),
    #[error("it is {0}, from which it is not continued")]
    NotNow(String),
    #[error("it was continued and is {0}")]
    NotRunning(String),
    #[error("it was thawed alone, and runs")]
    Runs,
    #[error("it did not continue within {} s", RUN.as_secs())]
    TooSlow,
}

/// Says whether the record on disk is behind.
#[derive(Debug, Default)]
pub(crate) struct Dirty(Cell<bool>);

impl Dirty {
    pub fn take(&self) -> bool {
        self.0.take()
    }

    /// Waits until the record has been written.
    async fn stored(&self) {
        self.0.set(true);
        poll_fn(|_| if self.0.get() { Poll::Pending } else { Poll::Ready(()) }).await;
    }
}

#[derive(Debug, Clone, Default)]
struct Facts {
    process: Option<Process>,
    /// Verified paused, and not continued since.
    paused: bool,
    /// It was paused by its user when it was made safe.
    user_paused: bool,
    /// `user_paused` was found out since it was last continued.
    asked: bool,
}

/// The guard of one guest.
#[derive(Debug)]
pub(crate) struct Guard {
    registration: Registration,
    pub monitor: Monitor,
    clock: Rc<Clock>,
    dirty: Rc<Dirty>,
    facts: RefCell<Facts>,
    /// It may fetch memory from where it came from, as it is registered.
    may_fetch: Cell<bool>,
    /// It does, as far as is known now.
    fetches: Cell<bool>,
    /// The last failure that was told: it is tried again twenty times a second, and told when it changes.
    told: RefCell<String>,
}

impl Guard {
    pub fn new(registration: Registration, clock: Rc<Clock>, dirty: Rc<Dirty>) -> Self {
        let monitor = Monitor::new(&registration.monitor);
        Self {
            may_fetch: Cell::new(registration.fetches),
            registration,
            monitor,
            clock,
            dirty,
            facts: RefCell::default(),
            fetches: Cell::default(),
            told: RefCell::default(),
        }
    }

    /// The guard of a guest that an earlier fence process had.
    pub fn adopt(entry: Entry, clock: Rc<Clock>, dirty: Rc<Dirty>) -> Self {
        let Entry { registration, process, paused, user_paused } = entry;
        // Whether it was paused by its user cannot be told any more: the earlier process may have begun to stop it.
        let facts = Facts { process, paused, user_paused, asked: true };
        Self { facts: facts.into(), ..Self::new(registration, clock, dirty) }
    }

    pub fn entry(&self) -> Entry {
        let Facts { process, paused, user_paused, .. } = self.facts.borrow().clone();
        let registration = Registration { fetches: self.may_fetch.get(), ..self.registration.clone() };
        Entry { registration, process, paused, user_paused }
    }

    /// Takes in whether it may fetch memory. Whether that is new.
    pub fn may_fetch(&self, may: bool) -> bool {
        self.may_fetch.replace(may) != may
    }

    /// Whether the guest has a process.
    pub fn is_alive(&self) -> bool {
        self.process().is_some()
    }

    /// Whether it is verified paused and frozen.
    pub fn is_held(&self) -> bool {
        let process = self.process();
        self.facts.borrow().paused && process.is_some() && self.freezer().is_frozen(process.as_ref())
    }

    /// SIGKILL: for a guest that cannot be made safe where there is no power switch.
    pub fn kill(&self) -> std::io::Result<()> {
        self.freezer().kill(self.process().as_ref())
    }

    /// Makes the guest safe.
    pub async fn make_safe(&self, by: Moment) -> Report {
        let vmid = self.registration.vmid;
        let now = self.clock.now();
        let late = now + by.saturating_sub(now) / 2;
        let escalate = async {
            self.clock.at(late).await;
            if self.fetches.get() {
                log(&format!(
                    "guest {vmid} does not stop while it fetches memory that does not come; it is killed"
                ));
                if let Err(e) = self.kill() {
                    log(&format!("guest {vmid} could not be killed: {e}"));
                }
                return;
            }
            log(&format!("guest {vmid} does not stop; cutting its storage connections"));
            self.yank(true).await;
        };
        let result = beside(self.try_make_safe(), escalate).await;
        match result {
            Ok(()) => {
                self.told.borrow_mut().clear();
                Report::Safe
            }
            Err(_) if !self.is_alive() => match self.end_what_remains() {
                true => Report::Gone,
                false => Report::Failed,
            },
            Err(e) => {
                self.tell(&format!("guest {vmid} is not safe yet: {e}"));
                Report::Failed
            }
        }
    }

    /// Programs that stood beside the guest's process, and may write for it still, are killed. Whether there are none.
    fn end_what_remains(&self) -> bool {
        let Some(group) = self.registration.cgroup.as_deref() else { return true };
        let none = freezer::is_empty(group);
        if !none && let Err(e) = Freezer::find(Some(group), None).kill(None) {
            self.tell(&format!(
                "guest {}: what has outlived it could not be killed: {e}",
                self.registration.vmid
            ));
        }
        none
    }

    fn tell(&self, what: &str) {
        if *self.told.borrow() != what {
            what.clone_into(&mut self.told.borrow_mut());
            log(what);
        }
    }

    /// Continues the guest and verifies that it runs.
    pub async fn run(&self) -> Result<(), GuardError> {
        let timer = async {
            self.clock.after(RUN).await;
            Err(GuardError::TooSlow)
        };
        first(self.try_run(), timer).await
    }

    /// Thaws a guest whose CPUs stand for good, and verifies that they do.
    pub async fn thaw(&self) -> Result<(), GuardError> {
        let timer = async {
            self.clock.after(RUN).await;
            Err(GuardError::TooSlow)
        };
        first(self.try_thaw(), timer).await
    }

    async fn try_make_safe(&self) -> Result<(), GuardError> {
        // A guest that may use little of the CPUs must not take long to answer now.
        crate::quota::lift(self.some_process()?.pid);
        if self.is_held() {
            return Ok(());
        }
        // One that hangs in a page that does not come says nothing, not even to a monitor that has just been opened.
        self.fetches.set(self.may_fetch.get());
        self.monitor.ready().await?;
        self.find_whether_it_fetches().await;
        if !self.fetches.get() {
            self.yank(false).await;
        }
        let status = self.status().await?;
        {
            let mut facts = self.facts.borrow_mut();
            if !facts.asked {
                // Its watchdog may have paused it, which is no less meant.
                facts.user_paused = matches!(status.name.as_str(), "paused" | "watchdog");
                facts.asked = true;
            }
        }
        loop {
            if !self.fetches.get() {
                self.end_migration().await?;
            }
            self.monitor.ask("stop").await?;
            self.end_jobs().await?;
            self.end_exports().await?;
            if self.is_quiet().await? {
                break;
            }
            self.clock.after(POLL).await;
        }
        self.facts.borrow_mut().paused = true;
        self.dirty.stored().await;
        self.freeze().await
    }

    /// Undoes a freeze, also one that is not complete any more, by whomever.
    async fn unfreeze(&self) -> Result<(), GuardError> {
        let process = self.some_process()?;
        let freezer = self.freezer();
        if self.facts.borrow().paused || freezer.is_frozen(Some(&process)) {
            freezer.thaw(Some(&process))?;
            while freezer.is_frozen(Some(&process)) {
                self.clock.after(FREEZE_POLL).await;
            }
        }
        Ok(())
    }

    async fn try_thaw(&self) -> Result<(), GuardError> {
        self.unfreeze().await?;
        // No `cont` follows that it would have to be recorded before.
        self.facts.borrow_mut().paused = false;
        self.dirty.stored().await;
        self.monitor.ready().await?;
        if self.status().await?.running { Err(GuardError::Runs) } else { Ok(()) }
    }

    async fn try_run(&self) -> Result<(), GuardError> {
        let held = self.facts.borrow().paused;
        self.unfreeze().await?;
        self.monitor.ready().await?;
        let status = self.status().await?;
        if matches!(&*status.name, "inmigrate" | "finish-migrate") {
            return Err(GuardError::NotNow(status.name));
        }
        let user_paused = held && self.facts.borrow().user_paused;
        {
            let mut facts = self.facts.borrow_mut();
            (facts.paused, facts.user_paused, facts.asked) = (false, false, false);
        }
        self.dirty.stored().await;
        if status.running || user_paused {
            return Ok(());
        }
        self.monitor.ask("cont").await?;
        let status = self.status().await?;
        if status.running { Ok(()) } else { Err(GuardError::NotRunning(status.name)) }
    }

    async fn freeze(&self) -> Result<(), GuardError> {
        loop {
            let process = self.some_process()?;
            let freezer = self.freezer();
            freezer.freeze(Some(&process))?;
            if freezer.is_frozen(Some(&process)) {
                return Ok(());
            }
            self.clock.after(FREEZE_POLL).await;
        }
    }

    /// Looks whether it is the target of a post-copy migration that has not ended.
    async fn find_whether_it_fetches(&self) {
        let asked = async {
            let migration = self.monitor.ask("query-migrate").await.ok()?;
            Some(in_post_copy(&migration) && !is_source(&self.status().await.ok()?))
        };
        let late = async {
            self.clock.after(SAYS).await;
            None
        };
        // What was found at an earlier end of the lease says nothing of this one.
        let fetches = first(asked, late).await.unwrap_or(self.may_fetch.get());
        self.fetches.set(fetches);
    }

    /// Cuts connections, out of band: of migrations, with `storage` of disks and mirrors too. That there is nothing to
    /// cut is no failure; whether it helped shows elsewhere.
    async fn yank(&self, storage: bool) {
        let Ok(Value::Array(all)) = self.monitor.command(true, "query-yank", Value::Null).await else {
            return;
        };
        let wanted = |i: &Value| i["type"] == "migration" || (storage && i["type"] == "block-node");
        let instances: Vec<Value> = all.into_iter().filter(wanted).collect();
        if !instances.is_empty() {
            let cut = self.monitor.command(true, "yank", json!({ "instances": instances })).await;
            if let Err(e) = cut {
                log(&format!("guest {}: {e}", self.registration.vmid));
            }
        }
    }

    async fn end_migration(&self) -> Result<(), GuardError> {
        let mut cancelled = false;
        while !migration_ended(&self.monitor.ask("query-migrate").await?) {
            if !cancelled {
                cancelled = true;
                ignore_refusal(self.monitor.ask("migrate_cancel").await)?;
            }
            self.clock.after(POLL).await;
        }
        Ok(())
    }

    async fn end_jobs(&self) -> Result<(), GuardError> {
        loop {
            let jobs = alive_jobs(&self.monitor.ask("query-jobs").await?);
            if jobs.is_empty() {
                return Ok(());
            }
            for id in jobs {
                ignore_refusal(self.monitor.command(false, "job-cancel", json!({ "id": id })).await)?;
            }
            self.clock.after(POLL).await;
        }
    }

    async fn end_exports(&self) -> Result<(), GuardError> {
        loop {
            let exports = self.monitor.ask("query-block-exports").await?;
            let exports = exports.as_array().map(Vec::as_slice).unwrap_or_default();
            for export in exports {
                let arguments = json!({ "id": export["id"], "mode": "hard" });
                ignore_refusal(self.monitor.command(false, "block-export-del", arguments).await)?;
            }
            ignore_refusal(self.monitor.ask("nbd-server-stop").await)?;
            if exports.is_empty() {
                return Ok(());
            }
            self.clock.after(POLL).await;
        }
    }

    /// Reads everything back.
    async fn is_quiet(&self) -> Result<bool, GuardError> {
        let status = self.status().await?;
        let migration = self.monitor.ask("query-migrate").await?;
        // QEMU says so to the end of a source of which is fetched, and never starts it.
        let stopped = !status.running && (!is_source(&status) || in_post_copy(&migration));
        let migration = migration_ended(&migration) || (self.fetches.get() && in_post_copy(&migration));
        let jobs = alive_jobs(&self.monitor.ask("query-jobs").await?).is_empty()
            && alive_jobs(&self.monitor.ask("query-block-jobs").await?).is_empty();
        let exports = self.monitor.ask("query-block-exports").await?;
        Ok(stopped && migration && jobs && exports.as_array().is_some_and(Vec::is_empty))
    }

    async fn status(&self) -> Result<Status, GuardError> {
        let answer = self.monitor.ask("query-status").await?;
        let name = answer["status"].as_str().unwrap_or("unknown").to_owned();
        Ok(Status { running: answer["running"] != false, name })
    }

    fn freezer(&self) -> Freezer {
        let process = self.process();
        Freezer::find(self.registration.cgroup.as_deref(), process.as_ref())
    }

    fn some_process(&self) -> Result<Process, GuardError> {
        self.process().ok_or_else(|| GuardError::NoProcess(self.registration.pidfile.clone()))
    }

    /// The guest's process while it lives. Once seen it is not looked for anew: a process that came after it is
    /// another registration's.
    fn process(&self) -> Option<Process> {
        let mut facts = self.facts.borrow_mut();
        if facts.process.is_none() {
            facts.process = Process::from_pidfile(&self.registration.pidfile);
        }
        facts.process.filter(Process::is_alive)
    }
}

struct Status {
    name: String,
    running: bool,
}

/// Whether a migration, if there was one, will change nothing any more.
fn migration_ended(answer: &Value) -> bool {
    // After a broken post-copy the source stays paused until someone recovers it by a command.
    let ended = ["none", "completed", "failed", "cancelled", "postcopy-paused"];
    answer.get("status").is_none_or(|s| s.as_str().is_some_and(|s| ended.contains(&s)))
}

/// Whether a target runs, or can, that has not all of its memory.
fn in_post_copy(answer: &Value) -> bool {
    answer["status"].as_str().is_some_and(|s| s.starts_with("postcopy-"))
}

/// Whether its CPUs stand since its migration is ending.
fn is_source(status: &Status) -> bool {
    status.name == "finish-migrate"
}

/// Ids of the jobs that can still write.
fn alive_jobs(answer: &Value) -> Vec<String> {
    let ended = |j: &&Value| !(j["status"] == "concluded" || j["status"] == "null");
    let id = |j: &Value| j["id"].as_str().or(j["device"].as_str()).unwrap_or_default().to_owned();
    answer.as_array().into_iter().flatten().filter(ended).map(id).collect()
}

/// A refusal ("nothing to cancel") is no failure where the state is read back anyway.
fn ignore_refusal(result: Result<Value, MonitorError>) -> Result<(), MonitorError> {
    match result {
        Ok(_) | Err(MonitorError::Refused { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Runs `aside` along with `main`, and ends with `main`.
async fn beside<T>(main: impl Future<Output = T>, aside: impl Future<Output = ()>) -> T {
    let (mut main, mut aside) = (pin!(main), pin!(aside));
    let mut done = false;
    poll_fn(move |cx| {
        let result = main.as_mut().poll(cx);
        if result.is_pending() && !done {
            done = aside.as_mut().poll(cx).is_ready();
        }
        result
    })
    .await
}

/// Whichever ends first.
async fn first<T>(a: impl Future<Output = T>, b: impl Future<Output = T>) -> T {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(move |cx| match a.as_mut().poll(cx) {
        Poll::Pending => b.as_mut().poll(cx),
        ready => ready,
    })
    .await
}
