//! Conformance of a [`GuestDriver`].
//!
//! The guests of this suite do one thing: they tick while their CPUs run, on whichever node.

use crate::guest::{
    GuestDriver, GuestError, GuestEvent, GuestProcess, Launch, MigrationPhase, RunState, Sending,
};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use stead_model::{Epoch, Vmid};
use tokio::sync::broadcast;

/// How long anything here may take; what should come at once is not waited for that long.
const LIMIT: Duration = Duration::from_secs(30);
/// A crash is announced within this time.
const NOTICE: Duration = Duration::from_secs(1);
const ONE: Epoch = Epoch(1);

/// Makes the drivers and guests to test. Dropping it ends all that it made.
#[async_trait]
pub trait GuestHarness: Send + Sync {
    /// A driver of node 0 or 1, as a daemon that has just been started has it.
    fn driver(&self, node: usize) -> Arc<dyn GuestDriver>;
    /// What starts a guest with a disk that both nodes see.
    fn launch(&self, vmid: Vmid, epoch: Epoch) -> Launch;
    /// The same, with a disk that is not there.
    fn broken(&self, vmid: Vmid) -> Launch;
    /// How often the guest has ticked.
    fn ticks(&self, vmid: Vmid) -> u64;
    /// A time in which a running guest ticks for sure.
    fn interval(&self) -> Duration;
    /// Ends a guest's process as an accident does.
    async fn crash(&self, node: usize, process: &GuestProcess);
    /// What is left of a guest on a node: processes, files, groups.
    fn traces(&self, node: usize, vmid: Vmid) -> Vec<String>;
}

/// The tests of this suite, for a type with `async fn new() -> Self` that implements [`GuestHarness`].
#[macro_export]
macro_rules! guest_conformance {
    ($harness:ty) => {
        $crate::guest_conformance!(@ $harness:
            a_launched_guest_waits_for_its_push, a_guest_is_left_standing_at_its_start, a_paused_guest_stands_still,
            a_stop_is_clean_and_leaves_nothing,
            a_kill_is_not_clean_and_leaves_nothing, a_crash_is_noticed, a_new_daemon_finds_its_guests,
            what_ended_while_nobody_watched_is_cleared, a_guest_shuts_itself_down, a_deaf_guest_is_waited_for_in_vain,
            a_restart_keeps_the_process, a_guest_moves_there_and_back, a_migration_can_be_cancelled, a_migration_waits_before_its_end,
            a_target_that_dies_leaves_the_source_running, a_broken_disk_leaves_nothing,
            an_ownership_lasts_as_long_as_its_process, what_is_not_there_is_not_running);
    };
    (@ $harness:ty: $($name:ident),*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let harness = <$harness>::new().await;
            $crate::suite::guest::$name(&harness).await;
        })*
    };
}

fn vmid() -> Vmid {
    Vmid::new(100).unwrap()
}

/// Prepared, launched, and continued.
async fn started(h: &dyn GuestHarness, driver: &dyn GuestDriver) -> GuestProcess {
    driver.prepare(vmid(), ONE).await.unwrap();
    driver.launch(h.launch(vmid(), ONE)).await.unwrap();
    driver.resume(vmid()).await.unwrap();
    ticking(h).await;
    driver.state(vmid()).await.unwrap()
}

/// Waits until the guest has ticked again.
async fn ticking(h: &dyn GuestHarness) {
    let before = h.ticks(vmid());
    let again = async {
        // A disk announces no tick.
        while h.ticks(vmid()) <= before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, again).await.expect("the guest does not tick");
}

/// Makes sure that the guest does not tick.
async fn silent(h: &dyn GuestHarness) {
    let before = h.ticks(vmid());
    tokio::time::sleep(h.interval()).await;
    assert_eq!(h.ticks(vmid()), before, "the guest ticks");
}

async fn in_state(driver: &dyn GuestDriver, wanted: RunState) {
    let now = driver.state(vmid()).await.expect("the guest is gone").state;
    assert_eq!(now, wanted);
}

/// Waits for the guest's end and returns whether it was clean.
async fn gone(events: &mut broadcast::Receiver<GuestEvent>, limit: Duration) -> (Epoch, bool) {
    let wait = async {
        loop {
            if let GuestEvent::Gone { vmid: who, epoch, clean } = events.recv().await.unwrap() {
                assert_eq!(who, vmid());
                return (epoch, clean);
            }
        }
    };
    tokio::time::timeout(limit, wait).await.expect("its end was not announced")
}

fn no_traces(h: &dyn GuestHarness, node: usize) {
    assert_eq!(h.traces(node, vmid()), Vec::<String>::new(), "something is left");
}

/// The CPUs stand still until someone gives the push; a second process is refused.
pub async fn a_launched_guest_waits_for_its_push(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    let registration = driver.prepare(vmid(), Epoch(7)).await.unwrap();
    assert_eq!((registration.vmid, registration.epoch), (vmid(), Epoch(7)));
    let launch = h.launch(vmid(), Epoch(7));
    assert!(driver.describe(&launch).await.unwrap().len() > 1);
    let process = driver.launch(launch).await.unwrap();
    assert_eq!((process.vmid, process.epoch, process.state), (vmid(), Epoch(7), RunState::Prelaunch));
    assert!(process.pid > 0 && !process.machine.is_empty() && !process.version.is_empty());
    silent(h).await;
    assert_eq!(driver.prepare(vmid(), Epoch(7)).await.unwrap(), registration);
    let again = driver.launch(h.launch(vmid(), Epoch(7))).await;
    assert!(matches!(again, Err(GuestError::Running(_))), "{again:?}");
    let mut events = driver.events();
    driver.resume(vmid()).await.unwrap();
    ticking(h).await;
    in_state(&*driver, RunState::Running).await;
    let told = tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap();
    assert_eq!(told, GuestEvent::State { vmid: vmid(), state: RunState::Running });
    driver.resume(vmid()).await.expect("continuing what runs is no error");
    let listed: Vec<_> = driver.list().await.into_iter().map(|p| (p.vmid, p.pid)).collect();
    assert_eq!(listed, [(vmid(), process.pid)]);
}

/// Whose CPUs shall stand from the start on is paused, for later daemons too: it is no start that was cut short.
pub async fn a_guest_is_left_standing_at_its_start(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    driver.prepare(vmid(), ONE).await.unwrap();
    driver.launch(h.launch(vmid(), ONE)).await.unwrap();
    driver.pause(vmid()).await.unwrap();
    in_state(&*driver, RunState::Paused).await;
    silent(h).await;
    drop(driver);
    let driver = h.driver(0);
    driver.adopt().await;
    in_state(&*driver, RunState::Paused).await;
    driver.resume(vmid()).await.unwrap();
    ticking(h).await;
}

/// Pausing stops the CPUs before it returns.
pub async fn a_paused_guest_stands_still(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    started(h, &*driver).await;
    driver.pause(vmid()).await.unwrap();
    in_state(&*driver, RunState::Paused).await;
    silent(h).await;
    driver.pause(vmid()).await.expect("pausing what is paused is no error");
    driver.resume(vmid()).await.unwrap();
    ticking(h).await;
    driver.reset(vmid()).await.unwrap();
    ticking(h).await;
}

/// A stop by request is a clean end.
pub async fn a_stop_is_clean_and_leaves_nothing(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    for _ in 0..2 {
        started(h, &*driver).await;
        let mut events = driver.events();
        driver.stop(vmid()).await.unwrap();
        assert!(driver.state(vmid()).await.is_none());
        assert_eq!(gone(&mut events, LIMIT).await, (ONE, true));
        no_traces(h, 0);
        silent(h).await;
    }
}

/// A kill is no clean end; when it returns, nothing is left.
pub async fn a_kill_is_not_clean_and_leaves_nothing(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    started(h, &*driver).await;
    let mut events = driver.events();
    driver.kill(vmid()).await.unwrap();
    assert!(driver.state(vmid()).await.is_none());
    no_traces(h, 0);
    assert_eq!(gone(&mut events, LIMIT).await, (ONE, false));
}

/// A process that ends by itself is announced within a second.
pub async fn a_crash_is_noticed(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    let process = started(h, &*driver).await;
    let mut events = driver.events();
    h.crash(0, &process).await;
    assert_eq!(gone(&mut events, NOTICE).await, (ONE, false));
    assert!(driver.state(vmid()).await.is_none());
    no_traces(h, 0);
    started(h, &*driver).await;
}

/// The process outlives the daemon, and the next one goes on with it.
pub async fn a_new_daemon_finds_its_guests(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    let before = started(h, &*driver).await;
    drop(driver);
    ticking(h).await;
    let driver = h.driver(0);
    let mut events = driver.events();
    let found = driver.adopt().await;
    assert_eq!(found.len(), 1);
    let after = &found[0];
    assert_eq!((after.pid, after.epoch, after.state), (before.pid, ONE, RunState::Running));
    assert_eq!(
        (&after.machine, &after.accel, &after.version),
        (&before.machine, &before.accel, &before.version)
    );
    assert_eq!(driver.adopt().await.len(), 1, "adopting again is no error");
    driver.pause(vmid()).await.unwrap();
    silent(h).await;
    driver.resume(vmid()).await.unwrap();
    h.crash(0, after).await;
    assert_eq!(gone(&mut events, NOTICE).await, (ONE, false));
    no_traces(h, 0);
}

/// What ended without a daemon is not there, and what it left is removed.
pub async fn what_ended_while_nobody_watched_is_cleared(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    let process = started(h, &*driver).await;
    drop(driver);
    h.crash(0, &process).await;
    let driver = h.driver(0);
    assert_eq!(driver.adopt().await, []);
    no_traces(h, 0);
    started(h, &*driver).await;
}

/// A guest that is asked to shut down does, and its end is clean.
pub async fn a_guest_shuts_itself_down(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    started(h, &*driver).await;
    let mut events = driver.events();
    driver.shutdown(vmid(), LIMIT).await.unwrap();
    assert!(driver.state(vmid()).await.is_none());
    assert_eq!(gone(&mut events, LIMIT).await, (ONE, true));
    no_traces(h, 0);
}

/// A guest that does not listen is still there after the time-out.
pub async fn a_deaf_guest_is_waited_for_in_vain(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    driver.prepare(vmid(), ONE).await.unwrap();
    driver.launch(h.launch(vmid(), ONE)).await.unwrap();
    let answer = driver.shutdown(vmid(), Duration::from_millis(300)).await;
    assert!(matches!(answer, Err(GuestError::TimedOut { .. })), "{answer:?}");
    in_state(&*driver, RunState::Prelaunch).await;
    driver.stop(vmid()).await.unwrap();
    no_traces(h, 0);
}

/// A restart of the guest's system is none of its process.
pub async fn a_restart_keeps_the_process(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    let before = started(h, &*driver).await;
    driver.reboot(vmid(), LIMIT).await.unwrap();
    ticking(h).await;
    assert_eq!(driver.state(vmid()).await.unwrap().pid, before.pid);
    let mut events = driver.events();
    driver.shutdown(vmid(), LIMIT).await.expect("afterwards it shuts down as before");
    assert_eq!(gone(&mut events, LIMIT).await, (ONE, true));
}

/// A copy that waits for `from`'s state, and the socket that takes it.
async fn copy(
    h: &dyn GuestHarness,
    to: &dyn GuestDriver,
    from: &GuestProcess,
    epoch: Epoch,
) -> std::path::PathBuf {
    to.prepare(vmid(), epoch).await.unwrap();
    let incoming = from.as_incoming();
    let launch = Launch { incoming: Some(incoming), ..h.launch(vmid(), epoch) };
    let process = to.launch(launch).await.unwrap();
    assert_eq!((process.state, &process.machine), (RunState::Inmigrate, &from.machine));
    let early = to.resume(vmid()).await;
    assert!(early.is_err(), "a copy without state must not be continued, nor later by itself");
    to.migration_inlet(vmid()).await.unwrap()
}

/// Waits for the migration's end.
async fn ended(driver: &dyn GuestDriver) -> crate::guest::MigrationProgress {
    let wait = async {
        let mut seen = MigrationPhase::None;
        loop {
            let now = driver.migration_changed(vmid(), seen).await.unwrap();
            if now.phase.is_terminal() {
                return now;
            }
            seen = now.phase;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the migration does not end")
}

/// After the migration both copies stand still, until one is continued.
pub async fn a_guest_moves_there_and_back(h: &dyn GuestHarness) {
    let nodes = [h.driver(0), h.driver(1)];
    let mut process = started(h, &*nodes[0]).await;
    assert!(nodes[0].migration_inlet(vmid()).await.is_err(), "it waits for nothing");
    assert_eq!(nodes[0].migration(vmid()).await.unwrap().phase, MigrationPhase::None);
    for (from, to, epoch) in [(0, 1, Epoch(2)), (1, 0, Epoch(3))] {
        let (source, target) = (&*nodes[from], &*nodes[to]);
        let inlet = copy(h, target, &process, epoch).await;
        source.migrate(vmid(), &Sending::to(inlet)).await.unwrap();
        let end = ended(source).await;
        assert_eq!(end.phase, MigrationPhase::Completed, "{:?}", end.error);
        assert!(end.total > 0 && end.transferred > 0, "{end:?}");
        sent(source).await;
        received(target).await;
        silent(h).await;
        source.kill(vmid()).await.unwrap();
        no_traces(h, from);
        target.resume(vmid()).await.unwrap();
        ticking(h).await;
        process = target.state(vmid()).await.unwrap();
        assert_eq!((process.state, process.epoch), (RunState::Running, epoch));
    }
    nodes[0].shutdown(vmid(), LIMIT).await.expect("a moved guest still listens");
}

/// Waits until a source whose migration has ended says so of itself: it is paused for a moment in between.
async fn sent(driver: &dyn GuestDriver) {
    let mut events = driver.events();
    let wait = async {
        while driver.state(vmid()).await.expect("the source is gone").state == RunState::Paused {
            let _ = tokio::time::timeout(Duration::from_millis(100), events.recv()).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the source stays paused");
    in_state(driver, RunState::Postmigrate).await;
}

/// Waits until a copy has taken all of its state.
async fn received(driver: &dyn GuestDriver) {
    let mut events = driver.events();
    let wait = async {
        while driver.state(vmid()).await.expect("the copy is gone").state == RunState::Inmigrate {
            let _ = tokio::time::timeout(Duration::from_millis(100), events.recv()).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the copy does not take its state");
    in_state(driver, RunState::Received).await;
}

fn slowly(to: std::path::PathBuf) -> Sending {
    Sending { bytes_per_second: Some(20_000), ..Sending::to(to) }
}

/// A migration that is to wait for a word does so with the guest's CPUs stopped, can be cancelled then, and goes on by it.
pub async fn a_migration_waits_before_its_end(h: &dyn GuestHarness) {
    let (source, target) = (h.driver(0), h.driver(1));
    let process = started(h, &*source).await;
    let held = |inlet| Sending { hold: true, ..Sending::to(inlet) };
    let inlet = copy(h, &*target, &process, Epoch(2)).await;
    source.migrate(vmid(), &held(inlet)).await.unwrap();
    until_held(&*source).await;
    silent(h).await;
    assert_eq!(source.cancel_migration(vmid()).await.unwrap().phase, MigrationPhase::Cancelled);
    in_state(&*source, RunState::Running).await;
    ticking(h).await;
    assert!(source.send_rest(vmid()).await.is_err(), "nothing waits");
    match target.kill(vmid()).await {
        Ok(()) | Err(GuestError::NotRunning(_)) => {}
        Err(e) => panic!("{e}"),
    }
    let inlet = copy(h, &*target, &process, Epoch(2)).await;
    source.migrate(vmid(), &held(inlet)).await.unwrap();
    until_held(&*source).await;
    source.send_rest(vmid()).await.unwrap();
    assert_eq!(ended(&*source).await.phase, MigrationPhase::Completed);
    received(&*target).await;
    silent(h).await;
}

async fn until_held(driver: &dyn GuestDriver) {
    let wait = async {
        let mut seen = MigrationPhase::None;
        while seen != MigrationPhase::Held {
            seen = driver.migration_changed(vmid(), seen).await.unwrap().phase;
            assert!(!seen.is_terminal(), "{seen:?}");
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the migration does not wait");
}

/// A cancelled migration leaves the source running.
pub async fn a_migration_can_be_cancelled(h: &dyn GuestHarness) {
    let (source, target) = (h.driver(0), h.driver(1));
    let process = started(h, &*source).await;
    let inlet = copy(h, &*target, &process, Epoch(2)).await;
    source.migrate(vmid(), &slowly(inlet)).await.unwrap();
    let now = source.migration_changed(vmid(), MigrationPhase::None).await.unwrap();
    assert_eq!(now.phase, MigrationPhase::Active);
    ticking(h).await;
    let end = source.cancel_migration(vmid()).await.unwrap();
    assert_eq!(end.phase, MigrationPhase::Cancelled, "{:?}", end.error);
    in_state(&*source, RunState::Running).await;
    ticking(h).await;
    match target.kill(vmid()).await {
        Ok(()) | Err(GuestError::NotRunning(_)) => {}
        Err(e) => panic!("{e}"),
    }
    no_traces(h, 1);
    let inlet = copy(h, &*target, &process, Epoch(2)).await;
    source.migrate(vmid(), &Sending::to(inlet)).await.expect("another try is possible");
    assert_eq!(ended(&*source).await.phase, MigrationPhase::Completed);
}

/// A migration whose target dies fails, and the source goes on.
pub async fn a_target_that_dies_leaves_the_source_running(h: &dyn GuestHarness) {
    let (source, target) = (h.driver(0), h.driver(1));
    let process = started(h, &*source).await;
    let inlet = copy(h, &*target, &process, Epoch(2)).await;
    source.migrate(vmid(), &slowly(inlet)).await.unwrap();
    source.migration_changed(vmid(), MigrationPhase::None).await.unwrap();
    target.kill(vmid()).await.unwrap();
    let end = ended(&*source).await;
    assert_eq!(end.phase, MigrationPhase::Failed);
    assert!(end.error.is_some_and(|e| !e.is_empty()), "it says why");
    ticking(h).await;
    in_state(&*source, RunState::Running).await;
}

/// A launch that fails leaves nothing and says why.
pub async fn a_broken_disk_leaves_nothing(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    driver.prepare(vmid(), ONE).await.unwrap();
    let answer = driver.launch(h.broken(vmid())).await;
    match answer {
        Err(GuestError::Launch { why, .. }) => assert!(!why.is_empty()),
        other => panic!("{other:?}"),
    }
    assert!(driver.state(vmid()).await.is_none());
    no_traces(h, 0);
    started(h, &*driver).await;
}

/// A process keeps the ownership that it was launched under: an old copy must never be taken for a new one.
pub async fn an_ownership_lasts_as_long_as_its_process(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    started(h, &*driver).await;
    for wrong in [Epoch(0), Epoch(2), Epoch(3)] {
        let answer = driver.prepare(vmid(), wrong).await;
        assert!(matches!(answer, Err(GuestError::Running(_))), "{wrong}: {answer:?}");
    }
    assert_eq!(driver.prepare(vmid(), Epoch(1)).await.unwrap().epoch, Epoch(1));
    assert_eq!(driver.state(vmid()).await.unwrap().epoch, Epoch(1));
    drop(driver);
    assert_eq!(h.driver(0).adopt().await[0].epoch, Epoch(1), "a later daemon knows it too");
}

/// Requests for a guest without a process say so.
pub async fn what_is_not_there_is_not_running(h: &dyn GuestHarness) {
    let driver = h.driver(0);
    assert_eq!(driver.adopt().await, []);
    let id = vmid();
    let answers = [
        driver.resume(id).await,
        driver.pause(id).await,
        driver.reset(id).await,
        driver.stop(id).await,
        driver.kill(id).await,
        driver.shutdown(id, LIMIT).await,
        driver.reboot(id, LIMIT).await,
        driver.migrate(id, &Sending::to("/nowhere")).await,
        driver.migration(id).await.map(drop),
        driver.screen(id, "secret").await.map(drop),
        driver.terminal(id, "serial0").await.map(drop),
        driver.monitor(id, "info status").await.map(drop),
    ];
    for answer in answers {
        assert!(matches!(answer, Err(GuestError::NotRunning(who)) if who == id), "{answer:?}");
    }
}
