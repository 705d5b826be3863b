//! The load itself, the same for both: what is measured, and in which order.

use crate::children::Member;
use crate::{Places, etcd, stead};
use bytes::Bytes;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How many keys are written over and over.
const KEYS: usize = 1000;
/// Connections that writers share.
const CONNECTIONS: usize = 8;
/// What comes before a measurement and is not counted.
const WARM: Duration = Duration::from_millis(500);

/// A connection to a member of a store.
pub trait Store: Clone + Send + Sync + 'static {
    fn put(&self, key: &str, value: &Bytes) -> impl Future<Output = Result<(), String>> + Send;
    /// `fresh`: not older than what was committed anywhere before.
    fn read(&self, key: &str, fresh: bool) -> impl Future<Output = Result<Bytes, String>> + Send;
    fn leads(&self) -> impl Future<Output = bool> + Send;
    fn watch(&self, prefix: &str) -> impl Future<Output = mpsc::UnboundedReceiver<Bytes>> + Send;
}

/// What many clients do at once.
#[derive(Debug, Clone, Copy)]
enum Work {
    Put(usize),
    Read { fresh: bool },
}

/// One kind of load.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    work: Work,
    clients: usize,
    /// At the leader, or at the two others.
    leader: bool,
}

const fn put(clients: usize, bytes: usize, leader: bool) -> Kind {
    Kind { name: "put", work: Work::Put(bytes), clients, leader }
}

const KINDS: [Kind; 11] = [
    put(1, 200, true),
    put(16, 200, true),
    put(256, 200, true),
    put(16, 200, false),
    Kind { name: "read", work: Work::Read { fresh: false }, clients: 16, leader: false },
    Kind { name: "fresh read", work: Work::Read { fresh: true }, clients: 16, leader: true },
    Kind { name: "fresh read", work: Work::Read { fresh: true }, clients: 16, leader: false },
    put(1, 8192, true),
    put(16, 8192, true),
    put(256, 8192, true),
    put(16, 8192, false),
];

fn number(variable: &str, default: f64) -> f64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn key(n: usize) -> String {
    format!("bench/{:04}.conf", n % KEYS)
}

/// A value that no two writes share.
fn value(bytes: usize, n: usize) -> Bytes {
    let mut text = format!("{n:016}").into_bytes();
    text.resize(bytes, b'.');
    text.into()
}

/// Both, in turn.
pub async fn run(dir: &Path, places: &Places) {
    let rounds = number("ROUNDS", 3.0) as usize;
    let lasting = Duration::from_secs_f64(number("SECONDS", 2.5));
    let only = std::env::var("ONLY").unwrap_or_default();
    let etcds = if only == "stead" { vec![] } else { etcd::start(dir, places) };
    let steads = if only == "etcd" { vec![] } else { stead::start(dir, places).await };
    let mut ours = Side::new("stead", &steads);
    let mut theirs = Side::new("etcd", &etcds);
    if !steads.is_empty() {
        ours.clients = connected(async |n| stead::connect(places, n).await).await;
        ours.prepare().await;
    }
    if !etcds.is_empty() {
        theirs.clients = connected(async |n| etcd::connect(places, n).await).await;
        theirs.prepare().await;
    }
    let kinds = std::env::var("KINDS").ok();
    let wanted = |n: usize| kinds.as_ref().is_none_or(|k| k.split(',').any(|k| k == n.to_string()));
    for (n, kind) in KINDS.iter().enumerate().filter(|(n, _)| wanted(*n)) {
        for round in 0..rounds {
            ours.measure(n, round, *kind, lasting).await;
            theirs.measure(n, round, *kind, lasting).await;
        }
    }
    for round in 0..rounds {
        ours.watch(round).await;
        theirs.watch(round).await;
    }
    ours.memory("afterwards");
    theirs.memory("afterwards");
}

async fn connected<S>(connect: impl AsyncFn(usize) -> S) -> Vec<Vec<S>> {
    let mut all = Vec::new();
    for n in 0..3 {
        let mut each = Vec::new();
        for _ in 0..CONNECTIONS {
            each.push(connect(n).await);
        }
        all.push(each);
    }
    all
}

/// One of the two.
struct Side<'a, S> {
    name: &'static str,
    members: &'a [Member],
    clients: Vec<Vec<S>>,
}

impl<'a, S: Store> Side<'a, S> {
    fn new(name: &'static str, members: &'a [Member]) -> Self {
        Self { name, members, clients: vec![] }
    }

    async fn leader(&self) -> usize {
        loop {
            for (n, clients) in self.clients.iter().enumerate() {
                if clients[0].leads().await {
                    return n;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Writes each key once.
    async fn prepare(&mut self) {
        let at = self.leader().await;
        for n in 0..KEYS {
            self.clients[at][0].put(&key(n), &value(200, n)).await.unwrap();
        }
        self.memory("before");
    }

    fn memory(&self, when: &str) {
        for (n, member) in self.members.iter().enumerate() {
            let (rss, own) = member.memory();
            println!(
                r#"{{"store":"{}","figure":"memory","when":"{when}","member":{n},"rss":{rss:.1},"own":{own:.1}}}"#,
                self.name
            );
        }
    }

    async fn measure(&self, number: usize, round: usize, kind: Kind, lasting: Duration) {
        if self.members.is_empty() {
            return;
        }
        let leader = self.leader().await;
        let at: Vec<&S> =
            (0..3).filter(|n| (*n == leader) == kind.leader).flat_map(|n| &self.clients[n]).collect();
        let cpu = |all: &[Member]| all.iter().map(Member::cpu).sum::<f64>();
        let used = cpu(self.members);
        let begin = Instant::now() + WARM;
        let end = begin + lasting;
        let mut working = Vec::new();
        for n in 0..kind.clients {
            // The first to the first, whoever shares a connection: in turn.
            let store = at[n * at.len() / kind.clients.max(at.len()) % at.len()].clone();
            working.push(tokio::spawn(client(store, n, kind.work, begin, end)));
        }
        let (mut all, mut failed) = (Vec::new(), 0);
        for work in working {
            let (took, errors) = work.await.unwrap();
            all.extend(took);
            failed += errors;
        }
        let used = cpu(self.members) - used;
        all.sort_by(f64::total_cmp);
        let quantile = |share: f64| all.get((all.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
        println!(
            r#"{{"store":"{}","figure":"{}","kind":{number},"round":{round},"clients":{},"bytes":{},"leader":{},"per_s":{:.1},"p50":{:.4},"p99":{:.4},"failed":{failed},"cpu":{used:.2},"leads":{leader}}}"#,
            self.name,
            kind.name,
            kind.clients,
            if let Work::Put(bytes) = kind.work { bytes } else { 0 },
            kind.leader,
            all.len() as f64 / lasting.as_secs_f64(),
            quantile(0.5),
            quantile(0.99),
        );
    }

    /// From the moment at which a value is sent to the leader to that at which a watcher at another member has it.
    async fn watch(&self, round: usize) {
        if self.members.is_empty() {
            return;
        }
        let leader = self.leader().await;
        let mut watching = Vec::new();
        for n in (0..3).filter(|n| *n != leader) {
            watching.push(self.clients[n][0].watch("bench/watched/").await);
        }
        let (mut sent, mut seen, mut after) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..200 {
            let (begin, value) = (Instant::now(), value(200, n));
            let put = self.clients[leader][0].put("bench/watched/one", &value);
            let events = watching.iter_mut().map(async |w| {
                while w.recv().await.as_ref() != Some(&value) {}
                begin.elapsed().as_secs_f64() * 1e3
            });
            let put = async {
                put.await.unwrap();
                begin.elapsed().as_secs_f64() * 1e3
            };
            let (put, events) = futures_util::future::join(put, futures_util::future::join_all(events)).await;
            sent.push(put);
            after.extend(events.iter().map(|e| e - put));
            seen.extend(events);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        for all in [&mut sent, &mut seen, &mut after] {
            all.sort_by(f64::total_cmp);
        }
        let cell = |all: &[f64]| format!("[{:.4},{:.4}]", all[all.len() / 2], all[all.len() * 99 / 100]);
        println!(
            r#"{{"store":"{}","figure":"watch","round":{round},"put":{},"seen":{},"after":{}}}"#,
            self.name,
            cell(&sent),
            cell(&seen),
            cell(&after)
        );
    }
}

/// Milliseconds of each answer that came between the two moments, and how many errors.
async fn client<S: Store>(store: S, n: usize, work: Work, begin: Instant, end: Instant) -> (Vec<f64>, usize) {
    let (mut took, mut failed) = (Vec::new(), 0);
    for turn in 0.. {
        let since = Instant::now();
        let at = n * 37 + turn * 257;
        let done = match work {
            Work::Put(bytes) => store.put(&key(at), &value(bytes, at)).await,
            Work::Read { fresh } => store.read(&key(at), fresh).await.map(|value| assert!(!value.is_empty())),
        };
        let now = Instant::now();
        if now >= end {
            break;
        }
        match done {
            Ok(()) if now >= begin => took.push((now - since).as_secs_f64() * 1e3),
            Ok(()) => {}
            Err(why) => {
                failed += 1;
                if failed == 1 {
                    eprintln!("refused: {why}");
                }
            }
        }
    }
    (took, failed)
}
