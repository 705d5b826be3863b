//! Start, stop and what lies between.
//!
//! The order at a start is the promise: the record says *running* before the process exists, the fence
//! process knows an HA guest before it exists and alone gives its first push; the record says *not running*
//! only after the process is gone.

use super::Asked;
use super::hook::{BRIEF, LIMIT, Phase};
use crate::store::GuestAt;
use crate::{Actor, Ops, OpsError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stead_driver::fence::FenceError;
use stead_driver::guest::{GuestError, Launch, RunState};
use stead_guest::request::{Request, Verdict};
use stead_guest::saved;
use stead_model::vmconfig::VmConfig;
use stead_model::{Epoch, Upid, Vmid};
use stead_tasks::TaskContext;

/// How long a start waits for a lease that is being renewed.
pub(super) const LEASE_WAIT: Duration = Duration::from_secs(10);
/// A graceful shutdown's time limit unless the user gives one.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a process may take to flush its disks and end, unless the user says otherwise.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What to do with a running guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerAction {
    /// Pull the plug: the process ends by itself, its disks flushed, or is killed.
    Stop {
        /// How long it may take to end by itself.
        timeout: Duration,
    },
    /// Ask its system to shut down; after `timeout` give up, or pull the plug with `force`.
    Shutdown {
        /// The limit.
        timeout: Duration,
        /// Pull the plug after it.
        force: bool,
    },
    /// Ask its system to restart.
    Reboot {
        /// The limit.
        timeout: Duration,
    },
    /// Press reset.
    Reset,
    /// Stop its CPUs.
    Suspend,
    /// Continue its CPUs.
    Resume,
}

/// By when a start must have led to something.
#[derive(Debug, Clone, Copy)]
struct Limit(Option<(Instant, Duration)>);

impl Limit {
    /// From now on. None and zero: no other limits than each step has.
    fn of(limit: Option<Duration>) -> Self {
        Self(limit.filter(|l| !l.is_zero()).and_then(|l| Some((Instant::now().checked_add(l)?, l))))
    }

    /// What is left of it for a step whose own limit is `own`.
    fn left(self, own: Duration) -> Duration {
        self.0.map_or(own, |(until, _)| until.saturating_duration_since(Instant::now()).min(own))
    }

    /// Refuses to go on after it.
    fn check(self) -> Result<(), OpsError> {
        match self.0 {
            Some((until, limit)) if Instant::now() >= until => Err(OpsError::failed(format!(
                "start failed: got timeout (it did not run within {} s)",
                limit.as_secs()
            ))),
            _ => Ok(()),
        }
    }
}

/// Who lets a guest's CPUs run that was launched.
#[derive(Debug, Clone, Copy)]
enum Run {
    /// The fence process, under a lease.
    UnderLease,
    /// Nobody has to be asked.
    Go,
    /// Its user, later.
    Stand,
}

impl PowerAction {
    fn request(self) -> Request {
        match self {
            Self::Stop { .. } => Request::Stop,
            Self::Shutdown { .. } => Request::Shutdown,
            Self::Reboot { .. } => Request::Reboot,
            Self::Reset => Request::Reset,
            Self::Suspend => Request::Pause,
            Self::Resume => Request::Resume,
        }
    }

    fn worker(self) -> &'static str {
        match self {
            Self::Stop { .. } => "qmstop",
            Self::Shutdown { .. } => "qmshutdown",
            Self::Reboot { .. } => "qmreboot",
            Self::Reset => "qmreset",
            Self::Suspend => "qmpause",
            Self::Resume => "qmresume",
        }
    }
}

impl Ops {
    /// Starts a VM of this node; of one under HA, asks HA to.
    pub async fn start(self: &Arc<Self>, actor: &Actor, vmid: Vmid, asked: Asked) -> Result<Upid, OpsError> {
        self.start_within(actor, vmid, asked, None).await
    }

    /// As [`Self::start`]; a VM that does not run within `limit` is ended again. HA, where it is asked, has limits of its
    /// own.
    pub async fn start_within(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        asked: Asked,
        limit: Option<Duration>,
    ) -> Result<Upid, OpsError> {
        Self::check_skiplock(actor, asked.skiplock)?;
        let guest = self.vm_at(vmid)?;
        match self.admit(&guest, Request::Start, asked).await? {
            Verdict::Refuse(why) => return Err(OpsError::Failed(why)),
            Verdict::ByHa => return self.ha_set_state(actor, vmid, "hastart", "started").await,
            Verdict::Accept | Verdict::Already => {}
        }
        let ops = self.clone();
        self.task("qmstart", &vmid.to_string(), &actor.who, move |cx| async move {
            ops.start_now(&cx, vmid, asked, Limit::of(limit)).await
        })
    }

    /// Carries out another power action on a VM of this node; HA is asked where it would undo it.
    pub async fn power(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        action: PowerAction,
        asked: Asked,
    ) -> Result<Upid, OpsError> {
        Self::check_skiplock(actor, asked.skiplock)?;
        let guest = self.vm_at(vmid)?;
        match self.admit(&guest, action.request(), asked).await? {
            Verdict::Refuse(why) => return Err(OpsError::Failed(why)),
            Verdict::ByHa if matches!(action, PowerAction::Stop { .. }) => {
                return self.stop_under_ha(actor, vmid, action, asked);
            }
            Verdict::ByHa => return self.ha_set_state(actor, vmid, "hastop", "stopped").await,
            Verdict::Accept | Verdict::Already => {}
        }
        if matches!(action, PowerAction::Stop { .. }) {
            // Who pulls the plug does not wait for a shutdown that takes its time.
            self.abort_shutdowns(vmid);
        }
        let ops = self.clone();
        self.task(action.worker(), &vmid.to_string(), &actor.who, move |cx| async move {
            ops.power_now(&cx, vmid, action, asked).await
        })
    }

    /// Who pulls the plug of a guest under HA means now: HA is told that it shall stay stopped, and it is stopped here
    /// without the time that HA gives a shutdown.
    fn stop_under_ha(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        stop: PowerAction,
        asked: Asked,
    ) -> Result<Upid, OpsError> {
        let (ops, who) = (self.clone(), actor.who.clone());
        self.task("qmstop", &vmid.to_string(), &actor.who, move |cx| async move {
            let wanted = [("state".to_owned(), "stopped".to_owned())];
            ops.ha_change(&who, super::service(vmid), &wanted, &[], None).await?;
            cx.log("HA will keep it stopped");
            ops.abort_shutdowns(vmid);
            ops.power_now(&cx, vmid, stop, asked).await
        })
    }

    async fn start_now(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        asked: Asked,
        limit: Limit,
    ) -> Result<(), OpsError> {
        let lock = self.guest_locks.lock_within(vmid, limit.left(Duration::from_secs(10))).await?;
        let guest = self.own_guest(vmid).await?;
        if let Verdict::Refuse(why) =
            self.admit(&guest, Request::Start, Asked { by_ha: true, ..asked }).await?
        {
            return Err(OpsError::Failed(why));
        }
        let guest = self.with_last_end_recorded(cx, guest).await?;
        let config = super::config::parse(&guest.config.value)?;
        self.check_devices_after_recovery(&guest, &config)?;
        if saved::is_saved(&config) {
            return self.start_saved(cx, guest, &config, limit.left(LEASE_WAIT)).await;
        }
        let guest = self.without_memory(cx, guest).await?;
        let guest = self.ready_drive(cx, self.apply_pending(guest).await?).await?;
        let launch = self.launch_spec(&guest, None).await?;
        let frozen = super::config::parse(&launch.config)?.current.freeze();
        if frozen && self.ha_maintains(vmid)? {
            return Err(OpsError::failed(format!(
                "VM {vmid} can't be left standing at its start (freeze), since it is under HA, which lets run what it guards: take \
                 'freeze' out, or the VM from under HA"
            )));
        }
        let ha = self.begin_start(cx, &guest, &launch, limit.left(LIMIT)).await?;
        cx.log(format!("starting VM {vmid} on node '{}', epoch {}", self.me.name, launch.epoch));
        let run = match (ha, frozen) {
            (true, _) => Run::UnderLease,
            (false, true) => Run::Stand,
            (false, false) => Run::Go,
        };
        match self.launch_and_run(launch, run, limit).await {
            Ok(()) => {
                // It runs, and may end, be stopped or moved while its script is still at it.
                drop(lock);
                let patience = if asked.by_ha { BRIEF } else { limit.left(LIMIT) };
                self.hook_or_warn(cx, &guest, Phase::PostStart, patience).await;
                Ok(())
            }
            Err(e) => {
                self.undo_start(cx, vmid).await;
                Err(e)
            }
        }
    }

    /// A device that is named as one host knows it was that of the node which was lost: here the same name is anything.
    fn check_devices_after_recovery(&self, guest: &GuestAt, config: &VmConfig) -> Result<(), OpsError> {
        let of_host = super::spelled::of_this_host(&config.current)?;
        match of_host.first() {
            Some(key) if guest.own.value.recovered && self.any_node_lost() => Err(OpsError::failed(format!(
                "VM {} was recovered from another node, whose device {key} is: take it out, or name it by a mapping",
                guest.vmid
            ))),
            _ => Ok(()),
        }
    }

    /// Whoever starts a guest that has just died may come before its end was recorded. A guest that does not run, under its
    /// mutex.
    async fn with_last_end_recorded(&self, cx: &TaskContext, guest: GuestAt) -> Result<GuestAt, OpsError> {
        if !guest.own.value.running {
            return Ok(guest);
        }
        self.ended(cx, guest.vmid, BRIEF).await;
        self.own_guest(guest.vmid).await
    }

    /// What comes before a process: what it will do otherwise is said, its hook script has `limit`, and its record says that it runs.
    /// Whether it is HA's.
    pub(super) async fn begin_start(
        &self,
        cx: &TaskContext,
        guest: &GuestAt,
        launch: &Launch,
        limit: Duration,
    ) -> Result<bool, OpsError> {
        for warning in self.guests.warnings(launch).await {
            cx.warn(warning);
        }
        self.hook(cx, guest, Phase::PreStart, limit).await?;
        let recorded = self.record_start(guest).await;
        // Where nobody knows whether it is recorded, reconciliation finds out, and records the end.
        if recorded.as_ref().is_err_and(|e| !matches!(e, OpsError::Undecided(_))) {
            self.hook_or_warn(cx, guest, Phase::PostStop, BRIEF).await;
        }
        recorded
    }

    /// The fence process knows a guest of HA's, then its record says that it runs. Whether it is HA's.
    async fn record_start(&self, guest: &GuestAt) -> Result<bool, OpsError> {
        let ha = self.ha_maintains(guest.vmid)?;
        let registration = self.guests.prepare(guest.vmid, guest.own.value.epoch).await?;
        if ha {
            self.fence.register(registration).await?;
        }
        self.mark(guest, true, ha).await?;
        Ok(ha)
    }

    async fn launch_and_run(&self, launch: Launch, run: Run, limit: Limit) -> Result<(), OpsError> {
        let (vmid, epoch) = (launch.vmid, launch.epoch);
        // This one has all of its memory.
        self.forget_fetching(vmid);
        // Has limits of its own. It is not cut short: what it leaves could not be ended.
        self.guests.launch(launch).await?;
        limit.check()?;
        match run {
            Run::UnderLease => self.run_within(vmid, epoch, limit.left(LEASE_WAIT)).await,
            Run::Go => Ok(self.guests.resume(vmid).await?),
            Run::Stand => Ok(self.guests.pause(vmid).await?),
        }
    }

    /// Ends what a failed start has left, and says so in the record once nothing is left.
    pub(super) async fn undo_start(&self, cx: &TaskContext, vmid: Vmid) {
        if let Err(e) = self.guests.kill(vmid).await
            && !matches!(e, GuestError::NotRunning(_))
        {
            tracing::error!("guest {vmid}: could not be ended after a failed start: {e}");
            return;
        }
        self.ended(cx, vmid, BRIEF).await;
    }

    /// Lets the fence process give the push, waiting a little for a lease that is on its way.
    pub(crate) async fn run_under_lease(&self, vmid: Vmid, epoch: Epoch) -> Result<(), OpsError> {
        self.run_within(vmid, epoch, LEASE_WAIT).await
    }

    pub(super) async fn run_within(&self, vmid: Vmid, epoch: Epoch, wait: Duration) -> Result<(), OpsError> {
        let until = Instant::now() + wait;
        let mut lease = self.lease.clone();
        loop {
            lease.borrow_and_update();
            match self.fence.run(vmid, epoch).await {
                Ok(()) => return Ok(()),
                Err(FenceError::NoLease(_)) if Instant::now() < until => {
                    let left = until.saturating_duration_since(Instant::now());
                    // A changed lease or the end of the wait: both ask again.
                    let _ = tokio::time::timeout(left.min(Duration::from_millis(500)), lease.changed()).await;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Everything that the driver needs, resolved.
    pub async fn launch_spec(
        &self,
        guest: &GuestAt,
        incoming: Option<stead_driver::guest::Incoming>,
    ) -> Result<Launch, OpsError> {
        let config = super::config::parse(&guest.config.value)?;
        let volumes = self.resolve_volumes(&config).await?;
        Ok(Launch {
            vmid: guest.vmid,
            epoch: guest.own.value.epoch,
            config: self.spelled_out(config, incoming.as_ref().is_some_and(|i| i.cpu.is_some())).await?,
            volumes,
            recovered: guest.own.value.recovered && self.any_node_lost(),
            incoming,
        })
    }

    /// Whether a node is out that may still hold frozen copies: one that comes back destroys them before it enters.
    fn any_node_lost(&self) -> bool {
        self.guest_nodes().iter().any(|n| n.state.is_lost())
    }

    /// The process is gone, and no request is at it. Under the guest's mutex.
    pub async fn after_exit(&self, vmid: Vmid) {
        if let Some(guest) = self.record_end(vmid).await {
            // Whoever waits for the end does not wait for the script.
            self.flush.now().await;
            self.hook_after_end(&guest).await;
        }
    }

    /// The process is gone by what a task does; its hook script has so long.
    async fn ended(&self, cx: &TaskContext, vmid: Vmid, limit: Duration) {
        if let Some(guest) = self.record_end(vmid).await {
            self.hook_or_warn(cx, &guest, Phase::PostStop, limit).await;
        }
    }

    /// The process is gone: the fence process forgets it, and the record says so. The guest, if that is news. Repeating it is no
    /// error; where it cannot be committed now, reconciliation does it later.
    async fn record_end(&self, vmid: Vmid) -> Option<GuestAt> {
        if let Err(e) = self.fence.forget(vmid).await {
            tracing::warn!("guest {vmid}: {e}");
        }
        let guest = self.guest_at(vmid).ok().filter(|g| g.own.value.owner == self.me.name)?;
        if let Err(e) = self.mark(&guest, false, false).await {
            tracing::warn!("guest {vmid} has stopped, which could not be recorded yet: {e}");
            return None;
        }
        guest.own.value.running.then_some(guest)
    }

    async fn power_now(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        action: PowerAction,
        asked: Asked,
    ) -> Result<(), OpsError> {
        let _lock = self.guest_locks.lock(vmid).await?;
        let guest = self.vm_at(vmid)?;
        match self.admit(&guest, action.request(), Asked { by_ha: true, ..asked }).await? {
            Verdict::Refuse(why) => return Err(OpsError::Failed(why)),
            Verdict::Already => {
                cx.log(format!("VM {vmid}: nothing to do"));
                return Ok(());
            }
            Verdict::Accept | Verdict::ByHa => {}
        }
        match action {
            PowerAction::Stop { timeout } => {
                self.hook_before_stop(cx, &guest, BRIEF).await?;
                self.stop_now(cx, vmid, timeout).await
            }
            PowerAction::Shutdown { timeout, force } => self.shutdown_now(cx, &guest, timeout, force).await,
            PowerAction::Reboot { timeout } => Ok(self.guests.reboot(vmid, timeout).await?),
            PowerAction::Reset => Ok(self.guests.reset(vmid).await?),
            PowerAction::Suspend => Ok(self.guests.pause(vmid).await?),
            PowerAction::Resume => self.resume_now(&guest).await,
        }
    }

    pub(super) async fn stop_now(
        &self,
        cx: &TaskContext,
        vmid: Vmid,
        timeout: Duration,
    ) -> Result<(), OpsError> {
        match self.guests.stop_within(vmid, timeout).await {
            Ok(()) | Err(GuestError::NotRunning(_)) => {}
            Err(e) => return Err(e.into()),
        }
        self.ended(cx, vmid, BRIEF).await;
        Ok(())
    }

    async fn shutdown_now(
        &self,
        cx: &TaskContext,
        guest: &GuestAt,
        timeout: Duration,
        force: bool,
    ) -> Result<(), OpsError> {
        let (vmid, limit) = (guest.vmid, Limit::of(Some(timeout)));
        let paused = self.running(vmid).await?.state == RunState::Paused;
        if paused && !force {
            return Err(OpsError::failed(format!(
                "VM {vmid} is suspended and can't shut down: resume it, or stop it"
            )));
        }
        // A script that hangs leaves the guest's system its time.
        self.hook_before_stop(cx, guest, timeout / 2).await?;
        let asked = if paused {
            Ok(())
        } else {
            let ended = cx.or_cancelled(self.guests.shutdown(vmid, limit.left(timeout))).await;
            ended.map_err(|e| OpsError::failed(e.to_string()))?
        };
        match asked {
            Ok(()) if !paused => {}
            Err(GuestError::NotRunning(_)) => {}
            Ok(()) | Err(_) if force => {
                cx.log(format!("VM {vmid} did not shut down - stopping it now"));
                return self.stop_now(cx, vmid, STOP_TIMEOUT).await;
            }
            Err(GuestError::TimedOut { .. }) => {
                return Err(OpsError::failed("VM quit/powerdown failed - got timeout"));
            }
            Ok(()) => {}
            Err(e) => return Err(e.into()),
        }
        self.ended(cx, vmid, limit.left(LIMIT).max(BRIEF)).await;
        Ok(())
    }

    /// Continues a paused guest: one that the fence process guards, only under a good lease. A process of which the record does not say
    /// that it runs is an old copy, or stands since its guest was given away.
    pub(super) async fn resume_now(&self, guest: &GuestAt) -> Result<(), OpsError> {
        if !guest.own.value.running {
            return Err(OpsError::failed(format!(
                "VM {} is recorded as not running: the process that is there is not continued",
                guest.vmid
            )));
        }
        if guest.own.value.armed {
            self.run_under_lease(guest.vmid, guest.own.value.epoch).await
        } else {
            Ok(self.guests.resume(guest.vmid).await?)
        }
    }

    /// Starts a task whose error text is the use case's.
    pub fn task<F, Fut>(&self, worker: &str, id: &str, who: &str, work: F) -> Result<Upid, OpsError>
    where
        F: FnOnce(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), OpsError>> + Send + 'static,
    {
        self.tasks
            .start(worker, id, who, move |cx| async move {
                work(cx).await.map_err(|e| stead_tasks::TaskError::failed(e.to_string()))
            })
            .map_err(|e| OpsError::failed(format!("could not start task {worker}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_has_the_limit_that_its_user_gives() {
        let own = Duration::from_secs(10);
        for none in [None, Some(Duration::ZERO)] {
            assert_eq!(Limit::of(none).left(own), own);
            assert!(Limit::of(none).check().is_ok());
        }
        assert!(Limit::of(Some(Duration::from_secs(3))).left(own) <= Duration::from_secs(3));
        let over = Limit(Some((Instant::now(), Duration::from_secs(3))));
        assert_eq!(over.left(own), Duration::ZERO);
        assert!(over.check().unwrap_err().to_string().contains("within 3 s"));
    }
}
