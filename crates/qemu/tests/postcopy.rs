//! Memory that is fetched, between two real QEMUs: of a guest that writes to it faster than it is sent.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::Machines;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_driver::guest::{
    GuestDriver, Incoming, Launch, MigrationPhase, MigrationProgress, RunState, Sending,
};
use stead_driver::suite::guest::GuestHarness;
use stead_model::{Epoch, Vmid};
use stead_qemu::QemuDriver;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// Writes to each page of 14 MiB, again and again. In protected mode:
///
/// ```text
/// again: mov $0x100000,%edi
/// 1: incl (%edi)
///  add $4096,%edi
///  cmp $0xf00000,%edi
///  jb 1b
///  mov $0x3f8,%edx
///  mov $'d',%al
///  out %al,%dx
///  jmp again
/// ```
const WRITES: [u8; 90] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x0f, 0x01, 0x16, 0x54, 0x7c, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22,
    0xc0, 0xea, 0x17, 0x7c, 0x08, 0x00, 0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0xbf, 0x00, 0x00, 0x10, 0x00,
    0xff, 0x07, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x81, 0xff, 0x00, 0x00, 0xf0, 0x00, 0x72, 0xf0, 0xba,
    0xf8, 0x03, 0x00, 0x00, 0xb0, 0x64, 0xee, 0xeb, 0xe1, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, 0x17,
    0x00, 0x3c, 0x7c, 0x00, 0x00,
];

/// So slow that it would never end.
const SLOW: u64 = 8 << 20;
const LIMIT: Duration = Duration::from_secs(30);

fn vmid() -> Vmid {
    Vmid::new(100).unwrap()
}

/// What connects to a path comes out at another, until it is dropped.
struct Joined(JoinHandle<()>);

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn join(h: &Machines, name: &str, inlet: &Path) -> (PathBuf, Joined) {
    let path = h.folder.path().join(name);
    let listener = UnixListener::bind(&path).unwrap();
    let inlet = inlet.to_owned();
    let joined = tokio::spawn(async move {
        let mut all = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = UnixStream::connect(&inlet).await.unwrap();
            all.spawn(async move { drop(tokio::io::copy_bidirectional(&mut near, &mut far).await) });
        }
    });
    (path, Joined(joined))
}

async fn come_to(driver: &QemuDriver, phase: MigrationPhase) -> MigrationProgress {
    until(driver, |now| now.phase == phase).await
}

async fn until(driver: &QemuDriver, is: impl Fn(&MigrationProgress) -> bool) -> MigrationProgress {
    let mut last = MigrationProgress::default();
    let come = async {
        loop {
            last = driver.migration_changed(vmid(), last.phase).await.unwrap();
            if is(&last) {
                return last.clone();
            }
            assert!(!matches!(last.phase, MigrationPhase::Failed | MigrationPhase::Cancelled), "{last:?}");
        }
    };
    tokio::time::timeout(LIMIT, come).await.expect("its migration does not come so far")
}

async fn in_state(driver: &QemuDriver, state: RunState) {
    let mut events = driver.events();
    let come = async {
        while driver.state(vmid()).await.unwrap().state != state {
            let _ = tokio::time::timeout(Duration::from_millis(50), events.recv()).await;
        }
    };
    tokio::time::timeout(LIMIT, come).await.unwrap_or_else(|_| panic!("it is never {state:?}"));
}

/// How often the guest has written to all of it.
async fn passes(driver: &QemuDriver) -> impl AsyncFnMut(usize) + use<> {
    use tokio::io::AsyncReadExt;
    let mut console = driver.terminal(vmid(), "serial0").await.unwrap();
    async move |count| {
        let mut some = vec![0; count];
        tokio::time::timeout(LIMIT, console.read_exact(&mut some)).await.expect("it stands").unwrap();
    }
}

struct Pair {
    h: Machines,
    source: QemuDriver,
    target: QemuDriver,
    joined: Option<Joined>,
}

impl Pair {
    /// A guest that writes is on its way, and is held for the target to fetch.
    async fn held() -> Option<Self> {
        let pair = Self::sending().await?;
        let source = &pair.source;
        assert!(source.begin_fetching(vmid()).await.unwrap(), "it has no end");
        come_to(source, MigrationPhase::Held).await;
        in_state(source, RunState::Postmigrate).await;
        assert!(source.state(vmid()).await.unwrap().stands, "who does not answer is known by it");
        assert_eq!(pair.target.state(vmid()).await.unwrap().state, RunState::Inmigrate);
        Some(pair)
    }

    /// A guest that writes is sent, and has no end.
    async fn sending() -> Option<Self> {
        let h = Machines::new().await;
        let (source, target) = (QemuDriver::new(h.options(0)), QemuDriver::new(h.options(1)));
        let mut disk = vec![0; 1 << 20];
        disk[..WRITES.len()].copy_from_slice(&WRITES);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(h.disk(vmid()), disk).unwrap();
        let launch = h.launch(vmid(), Epoch(1));
        source.prepare(vmid(), Epoch(1)).await.unwrap();
        source.launch(launch.clone()).await.unwrap();
        source.resume(vmid()).await.unwrap();
        (passes(&source).await)(3).await;
        let process = source.state(vmid()).await.unwrap();
        let incoming = Some(Incoming { streams: 1, ..process.as_incoming() });
        target.prepare(vmid(), Epoch(2)).await.unwrap();
        target.launch(Launch { epoch: Epoch(2), incoming, ..launch }).await.unwrap();
        if let Err(e) = target.can_fetch(vmid()).await {
            let strict = std::env::var("STEAD_STRICT").is_ok_and(|v| v == "1");
            assert!(!strict, "{e}");
            println!("skipped: userfaultfd: {e}");
            return None;
        }
        let (to, joined) = join(&h, "there", &target.migration_inlet(vmid()).await.unwrap());
        let how = Sending { fetch: true, bytes_per_second: Some(SLOW), ..Sending::to(to) };
        source.migrate(vmid(), &how).await.unwrap();
        until(&source, |now| now.rounds > 2).await;
        Some(Self { h, source, target, joined: Some(joined) })
    }

    /// The target runs, and fetches.
    async fn fetching() -> Option<Self> {
        let pair = Self::held().await?;
        pair.source.send_rest(vmid()).await.unwrap();
        come_to(&pair.source, MigrationPhase::Fetching).await;
        in_state(&pair.source, RunState::Serving).await;
        in_state(&pair.target, RunState::Received).await;
        pair.target.resume(vmid()).await.unwrap();
        Some(pair)
    }

    async fn ends_well(&self) {
        come_to(&self.source, MigrationPhase::Completed).await;
        come_to(&self.target, MigrationPhase::Completed).await;
        in_state(&self.source, RunState::Postmigrate).await;
        (passes(&self.target).await)(3).await;
        assert_eq!(self.target.state(vmid()).await.unwrap().state, RunState::Running);
    }
}

#[tokio::test]
async fn a_guest_that_writes_faster_than_it_is_sent_goes_over() {
    let Some(pair) = Pair::fetching().await else { return };
    let Pair { source, .. } = &pair;
    assert!(source.resume(vmid()).await.is_err(), "it never runs again");
    assert!(source.cancel_migration(vmid()).await.is_err(), "too late");
    pair.ends_well().await;
}

#[tokio::test]
async fn what_is_held_is_taken_back_and_runs_by_a_word_alone() {
    let Some(pair) = Pair::held().await else { return };
    let Pair { h, source, .. } = pair;
    // Whoever comes later takes it for no guest that its user has paused.
    drop(source);
    let source = QemuDriver::new(h.options(0));
    in_state(&source, RunState::Postmigrate).await;
    assert_eq!(source.cancel_migration(vmid()).await.unwrap().phase, MigrationPhase::Cancelled);
    in_state(&source, RunState::Postmigrate).await;
    source.resume(vmid()).await.unwrap();
    (passes(&source).await)(3).await;
    source.pause(vmid()).await.unwrap();
    in_state(&source, RunState::Paused).await;
}

/// A later daemon would take it for paused by its user, or for an old copy.
#[tokio::test]
async fn what_can_t_be_noted_is_not_stopped() {
    let Some(pair) = Pair::sending().await else { return };
    let record = pair.h.options(0).run_dir.join(vmid().to_string());
    std::fs::create_dir(record.join("meta.new")).unwrap();
    let why = pair.source.begin_fetching(vmid()).await.unwrap_err().to_string();
    assert!(why.contains("noted"), "{why}");
    assert_eq!(pair.source.state(vmid()).await.unwrap().state, RunState::Running);
    (passes(&pair.source).await)(3).await;
}

/// A QEMU whose sending fails has its CPUs go on where it has stopped them itself.
#[tokio::test]
async fn a_source_whose_connection_breaks_at_the_word_to_go_on_does_not_run() {
    let Some(mut pair) = Pair::held().await else { return };
    pair.joined = None;
    pair.source.send_rest(vmid()).await.unwrap();
    let mut seen = MigrationPhase::Held;
    let ended = async {
        while seen != MigrationPhase::Failed {
            seen = pair.source.migration_changed(vmid(), seen).await.unwrap().phase;
        }
    };
    tokio::time::timeout(LIMIT, ended).await.expect("its end is not seen");
    assert_eq!(pair.source.state(vmid()).await.unwrap().state, RunState::Postmigrate);
}

#[tokio::test]
async fn a_broken_connection_is_made_anew_also_by_those_who_come_later() {
    let Some(mut pair) = Pair::fetching().await else { return };
    pair.joined = None;
    come_to(&pair.source, MigrationPhase::Broken).await;
    in_state(&pair.source, RunState::Serving).await;
    pair.source = QemuDriver::new(pair.h.options(0));
    in_state(&pair.source, RunState::Serving).await;
    // Where nobody is.
    pair.source.send_again(vmid(), &pair.h.folder.path().join("nowhere")).await.unwrap();
    let again = async {
        loop {
            match pair.target.fetch_again(vmid()).await {
                Ok(inlet) => return inlet,
                // It may not have heard of the end.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let inlet = tokio::time::timeout(LIMIT, again).await.expect("it does not wait");
    assert_eq!(pair.target.fetch_again(vmid()).await.unwrap(), inlet, "whoever asked first has not come");
    let (to, joined) = join(&pair.h, "again", &inlet);
    pair.joined = Some(joined);
    let sent = async {
        // The attempt before has to be over.
        while pair.source.send_again(vmid(), &to).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, sent).await.expect("it does not send");
    pair.ends_well().await;
}

#[tokio::test]
async fn a_target_that_can_t_fetch_says_why() {
    let h = Machines::new().await;
    let (source, driver) = (QemuDriver::new(h.options(0)), QemuDriver::new(h.options(1)));
    let launch = h.launch(vmid(), Epoch(1));
    source.prepare(vmid(), Epoch(1)).await.unwrap();
    let process = source.launch(launch.clone()).await.unwrap();
    driver.prepare(vmid(), Epoch(2)).await.unwrap();
    let streams = driver.streams(None, 2).await;
    let incoming = Some(Incoming { streams, ..process.as_incoming() });
    driver.launch(Launch { epoch: Epoch(2), incoming, ..launch }).await.unwrap();
    if streams == 1 {
        return;
    }
    let why = driver.can_fetch(vmid()).await.unwrap_err().to_string();
    assert!(why.contains("multifd"), "{why}");
}
