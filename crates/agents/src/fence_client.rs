//! The daemon's client of the fence process: one connection, made again when it breaks; many requests at a time.
//!
//! ```text
//!   callers ──requests──▶ task ──lines──▶ stead-fenced
//!      ▲                   │ ▲               │
//!      └──── answers ──────┘ └──── lines ────┘
//! ```
//!
//! The task connects when there is something to ask. When the connection breaks, whoever waits is told that the fence
//! process is gone: a `run` whose answer was lost may have been carried out, so it is asked again, not assumed.

use async_trait::async_trait;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_driver::fence::{Fence, FenceError, FenceStatus, Hold, Registration};
pub use stead_fenced::protocol::PROTOCOL;
use stead_fenced::protocol::{self, Answer, MAX_LINE, Op, Outcome, Refusal, Request, Response};
use stead_model::{Epoch, Vmid};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// How long an answer may take. The fence process never waits for anything but a guest's `cont`.
const LIMIT: Duration = Duration::from_secs(2);
/// How long a guest's `cont` may take: the fence process gives up after ten seconds.
const RUN_LIMIT: Duration = Duration::from_secs(12);

type Reply = oneshot::Sender<Result<Answer, CallError>>;

#[derive(Debug)]
enum CallError {
    Gone(String),
    Refused(Refusal),
}

/// The fence process at a socket.
#[derive(Debug, Clone)]
pub struct FenceClient {
    calls: mpsc::Sender<(Op, Reply)>,
    /// Grows before a registration is sent, shrinks after an answer alone: never less than what it holds.
    entrusted: Arc<Mutex<BTreeSet<Vmid>>>,
}

/// Which fence process answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceVersion {
    /// [`protocol::PROTOCOL`] of it.
    pub protocol: u32,
    /// The program's version.
    pub version: String,
    /// `none`, `socket` or `host`.
    pub power: String,
    /// Its process id.
    pub pid: u32,
}

impl FenceClient {
    /// A client of the fence process that listens there, now or later.
    pub fn new(socket: &Path) -> Self {
        let (calls, receive) = mpsc::channel(64);
        tokio::spawn(
            Task { socket: socket.to_owned(), calls: receive, next: 1, waiting: HashMap::new() }.run(),
        );
        Self { calls, entrusted: Arc::default() }
    }

    fn entrusted(&self) -> MutexGuard<'_, BTreeSet<Vmid>> {
        self.entrusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which fence process answers. The daemon starts one of its own version when none does.
    pub async fn version(&self) -> Result<FenceVersion, FenceError> {
        match self.call(Op::Version, LIMIT).await.map_err(|e| e.into_fence("ask", None))? {
            Answer::Version { protocol, version, power, pid } => {
                Ok(FenceVersion { protocol, version, power, pid })
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn call(&self, op: Op, limit: Duration) -> Result<Answer, CallError> {
        let (reply, answer) = oneshot::channel();
        let ended = || CallError::Gone("its client has ended".to_owned());
        let asked = async {
            self.calls.send((op, reply)).await.map_err(|_| ended())?;
            answer.await.unwrap_or_else(|_| Err(ended()))
        };
        let late = || CallError::Gone(format!("no answer within {} s", limit.as_secs()));
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(late()))
    }

    async fn done(&self, op: Op, what: &'static str, of: Option<(Vmid, Epoch)>) -> Result<(), FenceError> {
        let limit = if matches!(op, Op::Run { .. } | Op::Thaw { .. }) { RUN_LIMIT } else { LIMIT };
        match self.call(op, limit).await.map_err(|e| e.into_fence(what, of))? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

impl CallError {
    fn into_fence(self, what: &'static str, of: Option<(Vmid, Epoch)>) -> FenceError {
        match (self, of) {
            (Self::Gone(why), _) => FenceError::Gone(why),
            (Self::Refused(Refusal::NoLease), Some((vmid, _))) => FenceError::NoLease(vmid),
            (Self::Refused(Refusal::Unknown), Some((vmid, epoch))) => FenceError::Unknown(vmid, epoch),
            (Self::Refused(refusal), Some((vmid, _))) => {
                FenceError::Guest { what, vmid, why: refusal.to_string() }
            }
            (Self::Refused(refusal), None) => FenceError::Gone(format!("it refused to {what}: {refusal}")),
        }
    }
}

fn unexpected(answer: &Answer) -> FenceError {
    FenceError::Gone(format!("it gave an answer to another question: {answer:?}"))
}

fn hold(hold: stead_membership::Hold) -> Hold {
    match hold {
        stead_membership::Hold::Registered => Hold::Registered,
        stead_membership::Hold::Released => Hold::Released,
        stead_membership::Hold::Stopping => Hold::Stopping,
        stead_membership::Hold::Held => Hold::Held,
        stead_membership::Hold::Unsafe => Hold::Unsafe,
    }
}

#[async_trait]
impl Fence for FenceClient {
    async fn nonce(&self) -> Result<u64, FenceError> {
        match self.call(Op::Nonce, LIMIT).await.map_err(|e| e.into_fence("give a nonce", None))? {
            Answer::Nonce { nonce } => Ok(nonce),
            other => Err(unexpected(&other)),
        }
    }

    async fn renew(
        &self,
        nonce: u64,
        lease_ms: u64,
        drain_ms: u64,
        watchdog_ms: u64,
    ) -> Result<(), FenceError> {
        self.done(Op::Renew { nonce, lease_ms, drain_ms, watchdog_ms }, "renew the lease", None).await
    }

    async fn shorten(&self, lease_ms: u64) -> Result<(), FenceError> {
        self.done(Op::Shorten { lease_ms }, "shorten the lease", None).await
    }

    async fn register(&self, guest: Registration) -> Result<(), FenceError> {
        let Registration { vmid, epoch, cgroup, monitor, pidfile, fetches } = guest;
        self.entrusted().insert(vmid);
        let op = Op::Register(protocol::Registration { vmid, epoch, cgroup, monitor, pidfile, fetches });
        self.done(op, "register", Some((vmid, epoch))).await
    }

    async fn forget(&self, vmid: Vmid) -> Result<(), FenceError> {
        self.done(Op::Forget { vmid }, "forget", Some((vmid, Epoch::default()))).await?;
        self.entrusted().remove(&vmid);
        Ok(())
    }

    async fn run(&self, vmid: Vmid, epoch: Epoch) -> Result<(), FenceError> {
        self.done(Op::Run { vmid, epoch }, "run", Some((vmid, epoch))).await
    }

    async fn thaw(&self, vmid: Vmid, epoch: Epoch) -> Result<(), FenceError> {
        self.done(Op::Thaw { vmid, epoch }, "thaw", Some((vmid, epoch))).await
    }

    async fn status(&self) -> Result<FenceStatus, FenceError> {
        match self.call(Op::Status, LIMIT).await.map_err(|e| e.into_fence("tell what it holds", None))? {
            Answer::Status { lease_left_ms, guests } => {
                self.entrusted().extend(guests.iter().map(|(vmid, ..)| *vmid));
                let guests =
                    guests.into_iter().map(|(vmid, epoch, state)| (vmid, epoch, hold(state))).collect();
                Ok(FenceStatus { lease_left_ms, guests })
            }
            other => Err(unexpected(&other)),
        }
    }

    fn entrusted(&self) -> Vec<Vmid> {
        Self::entrusted(self).iter().copied().collect()
    }
}

struct Task {
    socket: PathBuf,
    calls: mpsc::Receiver<(Op, Reply)>,
    next: u64,
    waiting: HashMap<u64, Reply>,
}

impl Task {
    /// Ends with the last client.
    async fn run(mut self) {
        while let Some((op, reply)) = self.calls.recv().await {
            let why = match UnixStream::connect(&self.socket).await {
                Ok(stream) => match self.serve(stream, op, reply).await {
                    Ok(()) => return,
                    Err(e) => format!("the connection to {} broke: {e}", self.socket.display()),
                },
                Err(e) => {
                    let why = format!("could not connect to {}: {e}", self.socket.display());
                    // Whoever asked may have given up.
                    let _ = reply.send(Err(CallError::Gone(why.clone())));
                    why
                }
            };
            for (_, reply) in self.waiting.drain() {
                let _ = reply.send(Err(CallError::Gone(why.clone())));
            }
        }
    }

    /// One connection's life, until it breaks, or until there is no client any more.
    async fn serve(&mut self, mut stream: UnixStream, op: Op, reply: Reply) -> std::io::Result<()> {
        let (read, mut write) = stream.split();
        let mut lines = BufReader::new(read).lines();
        let line = self.enlist(op, reply);
        write.write_all(&line).await?;
        loop {
            tokio::select! {
                call = self.calls.recv() => {
                    let Some((op, reply)) = call else { return Ok(()) };
                    let line = self.enlist(op, reply);
                    // A line is far shorter than a socket's buffer, so that this does not keep answers waiting.
                    write.write_all(&line).await?;
                }
                line = lines.next_line() => match line? {
                    Some(line) if line.len() <= 4 * MAX_LINE => self.take(&line)?,
                    Some(_) => return Err(std::io::ErrorKind::InvalidData.into()),
                    None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                },
            }
        }
    }

    fn enlist(&mut self, op: Op, reply: Reply) -> Vec<u8> {
        self.waiting.retain(|_, reply| !reply.is_closed());
        let id = self.next;
        self.next += 1;
        let mut line = serde_json::to_vec(&Request { id, op }).unwrap_or_default();
        line.push(b'\n');
        self.waiting.insert(id, reply);
        line
    }

    fn take(&mut self, line: &str) -> std::io::Result<()> {
        let Response { id, result } = serde_json::from_str(line)?;
        if let Some(reply) = self.waiting.remove(&id) {
            let result = match result {
                Outcome::Ok(answer) => Ok(answer),
                Outcome::Error(refusal) => Err(CallError::Refused(refusal)),
            };
            // Whoever asked may have given up.
            let _ = reply.send(result);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_fenced::power::Power;

    fn registration(dir: &Path) -> Registration {
        Registration {
            vmid: Vmid::new(100).unwrap(),
            epoch: Epoch(3),
            cgroup: None,
            monitor: dir.join("f"),
            pidfile: dir.join("p"),
            fetches: false,
        }
    }

    /// A fence process in a thread: the real one, without guests.
    fn serve(socket: &Path) {
        let socket = socket.to_owned();
        let (ready, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let server = stead_fenced::Server::open(&socket, Power::None).unwrap();
            ready.send(()).unwrap();
            server.serve().unwrap_err()
        });
        wait.recv().unwrap();
    }

    #[tokio::test]
    async fn it_speaks_with_the_fence_process_and_connects_when_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let client = FenceClient::new(&socket);
        assert!(matches!(client.nonce().await, Err(FenceError::Gone(_))));
        serve(&socket);
        assert_eq!(client.version().await.unwrap().protocol, protocol::PROTOCOL);

        let (vmid, epoch) = (Vmid::new(100).unwrap(), Epoch(3));
        client.register(registration(dir.path())).await.unwrap();
        assert!(matches!(client.run(vmid, epoch).await, Err(FenceError::NoLease(v)) if v == vmid));
        let nonce = client.nonce().await.unwrap();
        client.renew(nonce, 60_000, 1000, 1000).await.unwrap();
        assert!(client.renew(nonce, 60_000, 1000, 1000).await.is_err(), "a nonce counts once");
        assert!(matches!(client.run(vmid, Epoch(2)).await, Err(FenceError::Unknown(_, Epoch(2)))));
        let refused = client.run(vmid, epoch).await.unwrap_err();
        assert!(matches!(refused, FenceError::Guest { what: "run", .. }), "{refused}");
        let status = client.status().await.unwrap();
        assert!(status.lease_left_ms.is_some_and(|left| left > 50_000));
        assert_eq!(status.guests, [(vmid, epoch, Hold::Released)]);
        assert_eq!(Fence::entrusted(&client), [vmid]);
        client.forget(vmid).await.unwrap();
        assert_eq!(client.status().await.unwrap().guests, []);
        assert_eq!(Fence::entrusted(&client), []);
    }

    #[tokio::test]
    async fn a_broken_connection_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let client = FenceClient::new(&socket);
        let silent = async {
            // Takes the first request and hangs up without a word.
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = String::new();
            BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = String::new();
            BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
            let id = serde_json::from_str::<Request>(&line).unwrap().id;
            let answer = Response { id, result: Outcome::Ok(Answer::Nonce { nonce: 9 }) };
            stream
                .write_all(format!("{}\n", serde_json::to_string(&answer).unwrap()).as_bytes())
                .await
                .unwrap();
            stream
        };
        let asking = async {
            assert!(matches!(client.nonce().await, Err(FenceError::Gone(_))));
            assert_eq!(client.nonce().await.unwrap(), 9);
        };
        tokio::join!(silent, asking);
    }
}
