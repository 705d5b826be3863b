//! A client that asks a guest over and over, wherever it runs, and counts what it loses.
//!
//! Every 20 ms a request goes out, whether or not the one before was answered. It goes to where the guest last answered;
//! after a failure, to the next place. A request that is not answered within half a second is lost.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Between two requests.
pub const INTERVAL: Duration = Duration::from_millis(20);
/// After which a request is lost.
pub const LOST_AFTER: Duration = Duration::from_millis(500);

/// What the guest answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GuestAnswer {
    /// Goes up ten times a second, over all boots as long as there is a data disk.
    pub counter: u64,
    /// Made anew at each boot; a migration keeps it.
    pub boot_id: String,
    /// Told by the network card's address.
    pub hostname: String,
    /// Since its program began, in milliseconds.
    pub uptime_ms: u64,
    /// Other writers that it met on its data disk.
    pub conflicts: u64,
    /// The data disk's name, or `none`.
    pub disk: String,
    /// Reads and writes of the data disk that failed.
    pub disk_errors: u64,
    /// MiB of memory that it was told to write, and has; see [`write_memory`].
    #[serde(default)]
    pub written_mib: u64,
}

/// Asks once.
pub async fn ask(addr: SocketAddr, within: Duration) -> Result<GuestAnswer> {
    get(addr, "/", within).await
}

/// Has the guest hold so much memory, something in each page of it, and go on writing to so much of it each second. It is
/// held as soon as [`GuestAnswer::written_mib`] has risen by as much.
pub async fn write_memory(addr: SocketAddr, mib: u32, mib_a_second: u32) -> Result<GuestAnswer> {
    get(addr, &format!("/ram/{mib}/{mib_a_second}"), Duration::from_secs(5)).await
}

async fn get(addr: SocketAddr, path: &str, within: Duration) -> Result<GuestAnswer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n");
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(16 << 10).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(within, exchange).await.context("no answer in time")??;
    let text = String::from_utf8_lossy(&answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("no HTTP answer: {text:?}") };
    ensure!(head.starts_with("HTTP/1.1 200 "), "not 200: {head}");
    Ok(serde_json::from_str(body)?)
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// When it came, since the poller began.
    pub at: Duration,
    /// From which of the places.
    pub place: usize,
    /// What it said.
    pub answer: GuestAnswer,
}

/// Counts since the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were not.
    pub lost: u64,
    /// The longest time between two answers.
    pub longest_gap: Duration,
}

#[derive(Debug, Default)]
struct Story {
    counts: Counts,
    last_answer: Option<Instant>,
}

#[derive(Debug)]
struct Shared {
    places: Vec<SocketAddr>,
    current: AtomicUsize,
    began: Instant,
    story: Mutex<Story>,
    latest: watch::Sender<Option<Sample>>,
}

/// A poller that runs until it is dropped.
#[derive(Debug)]
pub struct Poller {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Poller {
    /// Begins to ask at these places, one a node, or one in all where the guest takes its address along.
    pub fn start(places: Vec<SocketAddr>) -> Self {
        let shared = Arc::new(Shared {
            places,
            current: AtomicUsize::new(0),
            began: Instant::now(),
            story: Mutex::default(),
            latest: watch::Sender::new(None),
        });
        let task = tokio::spawn(run(Arc::clone(&shared)));
        Self { shared, task }
    }

    /// The time on the poller's clock.
    pub fn now(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// What was counted since the last call.
    pub fn take_counts(&self) -> Counts {
        let mut story = self.shared.story.lock().unwrap_or_else(PoisonError::into_inner);
        // A gap that is still open counts as far as it has come.
        if let Some(last) = story.last_answer {
            let open = last.elapsed();
            story.counts.longest_gap = story.counts.longest_gap.max(open);
        }
        std::mem::take(&mut story.counts)
    }

    /// Waits for an answer that `wanted` accepts.
    pub async fn wait(&self, within: Duration, wanted: impl Fn(&Sample) -> bool) -> Result<Sample> {
        let mut latest = self.shared.latest.subscribe();
        let found = latest.wait_for(|s| s.as_ref().is_some_and(&wanted));
        let found = tokio::time::timeout(within, found)
            .await
            .with_context(|| format!("no such answer within {within:?}"))?;
        found.context("the poller ended")?.clone().context("no answer")
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(shared: Arc<Shared>) {
    let mut clock = tokio::time::interval(INTERVAL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        tokio::spawn(one(Arc::clone(&shared)));
    }
}

async fn one(shared: Arc<Shared>) {
    let place = shared.current.load(Relaxed);
    let answer = ask(shared.places[place], LOST_AFTER).await;
    let mut story = shared.story.lock().unwrap_or_else(PoisonError::into_inner);
    match answer {
        Ok(answer) => {
            let gap = story.last_answer.map_or(Duration::ZERO, |last| last.elapsed());
            story.counts.longest_gap = story.counts.longest_gap.max(gap);
            story.counts.answered += 1;
            story.last_answer = Some(Instant::now());
            shared.latest.send_replace(Some(Sample { at: shared.began.elapsed(), place, answer }));
        }
        Err(_) => {
            story.counts.lost += 1;
            let next = (place + 1) % shared.places.len();
            // Only the first that failed here moves on.
            let _ = shared.current.compare_exchange(place, next, Relaxed, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn guest(listener: TcpListener, boot: &'static str, answers: usize) {
        for n in 0..answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buf = [0u8; 512];
            let _ = stream.read(&mut buf).await.unwrap();
            let body = format!(
                r#"{{"counter":{n},"boot_id":"{boot}","hostname":"h","uptime_ms":1,"conflicts":0,"disk":"vdb","disk_errors":0}}"#
            );
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_poller_follows_the_guest() {
        let here = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let places = vec![here.local_addr().unwrap(), there.local_addr().unwrap()];
        tokio::spawn(async move {
            guest(here, "one", 5).await;
            guest(there, "two", usize::MAX).await;
        });
        let poller = Poller::start(places);
        let first = poller.wait(Duration::from_secs(10), |s| s.answer.boot_id == "one").await.unwrap();
        assert_eq!(first.place, 0);
        let moved = poller.wait(Duration::from_secs(10), |s| s.answer.boot_id == "two").await.unwrap();
        assert_eq!(moved.place, 1);
        let counts = poller.take_counts();
        assert!(counts.answered >= 6 && counts.lost >= 1, "{counts:?}");
        assert_eq!(poller.take_counts().lost, 0);
    }
}
