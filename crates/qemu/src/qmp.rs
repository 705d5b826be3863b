//! A client of QEMU's machine protocol: JSON lines with ids, over a unix socket.
//!
//! Thin by intent: commands and answers are JSON values; whoever sends a command reads from its answer what
//! it needs, and fields, events and commands that are not known here pass through. A caller may drop a
//! command's future at any time: lines are written whole by one task, and an answer that nobody waits for is
//! dropped.

use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::codec::{FramedRead, LinesCodec};

/// The longest line that is taken: the answer to `query-qmp-schema` has about 200 KiB.
const MAX_LINE: usize = 8 << 20;
/// How long an answer may take unless the caller says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A command that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// The socket cannot be reached, or speaks something else.
    #[error("its monitor cannot be reached: {0}")]
    Connect(String),
    /// The connection ended before the answer.
    #[error("its monitor closed the connection")]
    Closed,
    /// QEMU says no.
    #[error("{desc}")]
    Refused {
        /// QEMU's class, e.g. `GenericError`, `CommandNotFound`.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// No answer in time; the command may still be carried out.
    #[error("its monitor did not answer '{command}' within {seconds} s")]
    Silent {
        /// The command.
        command: String,
        /// The limit.
        seconds: u64,
    },
}

/// Something that QEMU announced by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// E.g. `SHUTDOWN`.
    pub name: String,
    /// Its data; an empty object where it has none.
    pub data: Value,
}

type Answer = Result<Value, QmpError>;

#[derive(Debug)]
struct Shared {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    events: broadcast::Sender<Event>,
    closed: watch::Sender<bool>,
    /// The reason of the last `SHUTDOWN` since the guest last ran.
    shutdown: Mutex<Option<String>>,
}

/// A connection to a monitor. Dropping it ends it.
#[derive(Debug)]
pub struct Qmp {
    shared: Arc<Shared>,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    next: AtomicU64,
    version: (u64, u64, u64),
    oob: bool,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for Qmp {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Forgets a command whose answer nobody waits for any more.
struct Waiting<'a>(&'a Shared, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

type Lines = FramedRead<OwnedReadHalf, LinesCodec>;

impl Qmp {
    /// Connects, reads the greeting and agrees on capabilities. Waits as long as QEMU takes to begin.
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path).await.map_err(|e| QmpError::Connect(e.to_string()))?;
        Self::over(stream).await
    }

    /// As [`Self::connect`], on a connection that is there.
    pub async fn over(stream: UnixStream) -> Result<Self, QmpError> {
        let (read, write) = stream.into_split();
        let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(MAX_LINE));
        let greeting = next(&mut lines).await?;
        let number = |part: &str| greeting["QMP"]["version"]["qemu"][part].as_u64();
        let (Some(major), Some(minor), Some(micro)) = (number("major"), number("minor"), number("micro"))
        else {
            return Err(QmpError::Connect("it does not greet as QEMU does".to_owned()));
        };
        let offered = greeting["QMP"]["capabilities"].as_array();
        let oob = offered.is_some_and(|c| c.iter().any(|c| c == "oob"));
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            events: broadcast::channel(256).0,
            closed: watch::channel(false).0,
            shutdown: Mutex::default(),
        });
        let (outgoing, queue) = mpsc::unbounded_channel();
        let tasks =
            [tokio::spawn(read_lines(lines, shared.clone())), tokio::spawn(write_lines(write, queue))];
        let qmp =
            Self { shared, outgoing, next: AtomicU64::new(1), version: (major, minor, micro), oob, tasks };
        let enable: &[&str] = if oob { &["oob"] } else { &[] };
        // Without a limit of its own: QEMU answers once its machine is made.
        qmp.send("execute", "qmp_capabilities", json!({ "enable": enable })).await?;
        Ok(qmp)
    }

    /// QEMU's version.
    pub fn version(&self) -> (u64, u64, u64) {
        self.version
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Why the guest shut down, if it did since it last ran: `guest-shutdown`, `host-qmp-quit`, ...
    pub fn shutdown_reason(&self) -> Option<String> {
        self.shared.shutdown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when the connection has ended and all that came over it was taken in.
    pub async fn closed(&self) {
        // An error means that the sender is gone, which is the same.
        let _ = self.shared.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Carries out a command without arguments.
    pub async fn ask(&self, command: &str) -> Answer {
        self.execute(command, json!({})).await
    }

    /// Carries out a command and waits up to [`PATIENCE`] for its answer.
    pub async fn execute(&self, command: &str, arguments: Value) -> Answer {
        self.execute_within(command, arguments, PATIENCE).await
    }

    /// Carries out a command and waits for its answer.
    pub async fn execute_within(&self, command: &str, arguments: Value, limit: Duration) -> Answer {
        match tokio::time::timeout(limit, self.send("execute", command, arguments)).await {
            Ok(answer) => answer,
            Err(_) => Err(QmpError::Silent { command: command.to_owned(), seconds: limit.as_secs() }),
        }
    }

    /// Carries out a command out of band: at once, even while QEMU's main loop hangs. Where QEMU does not
    /// offer this, it waits its turn.
    pub async fn execute_oob(&self, command: &str, arguments: Value) -> Answer {
        let verb = if self.oob { "exec-oob" } else { "execute" };
        match tokio::time::timeout(PATIENCE, self.send(verb, command, arguments)).await {
            Ok(answer) => answer,
            Err(_) => Err(QmpError::Silent { command: command.to_owned(), seconds: PATIENCE.as_secs() }),
        }
    }

    async fn send(&self, verb: &str, command: &str, arguments: Value) -> Answer {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let _waiting = Waiting(&self.shared, id);
        self.shared.waiting().insert(id, answer);
        if *self.shared.closed.borrow() {
            return Err(QmpError::Closed);
        }
        let mut line = Map::new();
        line.insert(verb.to_owned(), command.into());
        line.insert("arguments".to_owned(), arguments);
        line.insert("id".to_owned(), id.into());
        let mut bytes = Value::Object(line).to_string().into_bytes();
        bytes.push(b'\n');
        self.outgoing.send(bytes).map_err(|_| QmpError::Closed)?;
        answered.await.unwrap_or(Err(QmpError::Closed))
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, mut message: Value) {
        if let Some(name) = message["event"].as_str() {
            let event = Event { name: name.to_owned(), data: message["data"].clone() };
            self.note(&event);
            // Nobody listening is no error.
            let _ = self.events.send(event);
            return;
        }
        let Some(waiting) = message["id"].as_u64().and_then(|id| self.waiting().remove(&id)) else {
            return;
        };
        let answer = match message.get("error") {
            None => Ok(message["return"].take()),
            Some(error) => {
                let text = |part: &str| error[part].as_str().unwrap_or("unknown").to_owned();
                Err(QmpError::Refused { class: text("class"), desc: text("desc") })
            }
        };
        let _ = waiting.send(answer);
    }

    fn note(&self, event: &Event) {
        let mut shutdown = self.shutdown.lock().unwrap_or_else(PoisonError::into_inner);
        match event.name.as_str() {
            "SHUTDOWN" => *shutdown = Some(event.data["reason"].as_str().unwrap_or("unknown").to_owned()),
            "RESET" | "RESUME" => *shutdown = None,
            _ => {}
        }
    }
}

/// The next line, as JSON.
async fn next(lines: &mut Lines) -> Answer {
    match lines.next().await {
        None => Err(QmpError::Closed),
        Some(Err(e)) => Err(QmpError::Connect(e.to_string())),
        Some(Ok(line)) => serde_json::from_str(&line).map_err(|e| QmpError::Connect(e.to_string())),
    }
}

async fn read_lines(mut lines: Lines, shared: Arc<Shared>) {
    loop {
        match next(&mut lines).await {
            Ok(message) => shared.take(message),
            Err(QmpError::Closed) => break,
            Err(e) => {
                tracing::warn!(error = %e, "a monitor's line cannot be read; the connection is given up");
                break;
            }
        }
    }
    shared.closed.send_replace(true);
    shared.waiting().clear();
}

async fn write_lines(mut socket: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(line) = queue.recv().await {
        if socket.write_all(&line).await.is_err() {
            // The reader notices the end too, and tells those who wait.
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};

    type Server = (BufReader<OwnedReadHalf>, OwnedWriteHalf);

    async fn say(server: &mut Server, line: &str) {
        server.1.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hear(server: &mut Server) -> Value {
        let mut line = String::new();
        server.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn pair() -> (Qmp, Server) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = theirs.into_split();
        let mut server = (BufReader::new(read), write);
        let serve = async {
            say(&mut server, r#"{"QMP":{"version":{"qemu":{"major":10,"minor":0,"micro":2},"new":1},"capabilities":["oob","later"]}}"#).await;
            let asked = hear(&mut server).await;
            assert_eq!(asked["arguments"]["enable"], json!(["oob"]));
            say(&mut server, &format!(r#"{{"return":{{}},"id":{}}}"#, asked["id"])).await;
        };
        let (qmp, ()) = tokio::join!(Qmp::over(ours), serve);
        (qmp.unwrap(), server)
    }

    #[tokio::test]
    async fn answers_find_their_commands_in_any_order() {
        let (qmp, mut server) = pair().await;
        assert_eq!(qmp.version(), (10, 0, 2));
        let serve = async {
            let (a, b) = (hear(&mut server).await, hear(&mut server).await);
            say(&mut server, r#"{"event":"NEVER_HEARD_OF","timestamp":{},"more":[]}"#).await;
            say(&mut server, &format!(r#"{{"id":{},"return":"b"}}"#, b["id"])).await;
            say(&mut server, r#"{"id":999,"return":"nobody's"}"#).await;
            say(
                &mut server,
                &format!(r#"{{"id":{},"error":{{"class":"GenericError","desc":"no"}}}}"#, a["id"]),
            )
            .await;
        };
        let mut events = qmp.events();
        let (a, b, ()) = tokio::join!(qmp.ask("a"), qmp.ask("b"), serve);
        assert_eq!(b, Ok(json!("b")));
        assert_eq!(a.unwrap_err().to_string(), "no");
        assert_eq!(events.recv().await.unwrap().name, "NEVER_HEARD_OF");
    }

    #[tokio::test]
    async fn a_dropped_command_harms_no_later_one() {
        let (qmp, mut server) = pair().await;
        let limit = Duration::from_millis(1);
        assert!(matches!(qmp.execute_within("slow", json!({}), limit).await, Err(QmpError::Silent { .. })));
        let serve = async {
            let slow = hear(&mut server).await;
            let quick = hear(&mut server).await;
            assert_eq!((&quick["exec-oob"], &slow["execute"]), (&json!("quick"), &json!("slow")));
            say(&mut server, &format!(r#"{{"id":{},"return":1}}"#, slow["id"])).await;
            say(&mut server, &format!(r#"{{"id":{},"return":2}}"#, quick["id"])).await;
        };
        let (answer, ()) = tokio::join!(qmp.execute_oob("quick", json!({})), serve);
        assert_eq!(answer, Ok(json!(2)));
        assert!(qmp.shared.waiting().is_empty());
    }

    #[tokio::test]
    async fn the_end_reaches_everyone_who_waits() {
        let (qmp, mut server) = pair().await;
        let serve = async {
            hear(&mut server).await;
            say(&mut server, r#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}"#).await;
            drop(server);
        };
        let (answer, ()) = tokio::join!(qmp.ask("query-status"), serve);
        assert_eq!(answer, Err(QmpError::Closed));
        qmp.closed().await;
        assert_eq!(qmp.shutdown_reason().as_deref(), Some("guest-shutdown"));
        assert_eq!(qmp.ask("query-status").await, Err(QmpError::Closed));
    }

    #[tokio::test]
    async fn a_line_without_end_ends_the_connection() {
        let (qmp, mut server) = pair().await;
        let flood = async {
            let part = vec![b'x'; 1 << 20];
            while server.1.write_all(&part).await.is_ok() {}
        };
        tokio::select! {
            () = flood => {}
            () = qmp.closed() => {}
        }
        qmp.closed().await;
    }

    #[tokio::test]
    async fn what_is_not_qemu_is_not_taken_for_it() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (_read, mut write) = theirs.into_split();
        write.write_all(b"SSH-2.0-OpenSSH\n").await.unwrap();
        assert!(matches!(Qmp::over(ours).await, Err(QmpError::Connect(_))));
    }
}
