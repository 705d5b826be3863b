//! A guest's QMP monitor: JSON lines over a unix socket that never blocks.
//!
//! Commands are carried out by QEMU in their order, out-of-band ones at once, even while its main loop hangs.

use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::Poll;

/// The longest line that is taken from QEMU.
const MAX_LINE: usize = 4 * 1024 * 1024;

/// A command that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MonitorError {
    /// Nobody listens.
    #[error("its monitor {path} cannot be reached: {why}")]
    Connect { path: PathBuf, why: String },
    /// The connection ended.
    #[error("its monitor closed the connection")]
    Closed,
    /// QEMU says no.
    #[error("{command}: {desc}")]
    Refused { command: &'static str, desc: String },
}

#[derive(Debug, Default)]
struct Inner {
    stream: Option<Rc<UnixStream>>,
    /// Grows with each connection, so that a command does not wait for an answer on another one.
    connection: u64,
    input: Vec<u8>,
    output: Vec<u8>,
    next_id: u64,
    /// Commands that wait, and their answers.
    replies: BTreeMap<u64, Option<Result<Value, String>>>,
    /// The greeting's capabilities, once it came.
    greeting: Option<Vec<String>>,
    negotiated: bool,
}

/// The monitor of one guest.
#[derive(Debug)]
pub(crate) struct Monitor {
    path: PathBuf,
    inner: RefCell<Inner>,
}

/// Forgets a command whose answer nobody waits for any more.
struct Waiting<'a>(&'a Monitor, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.inner.borrow_mut().replies.remove(&self.1);
    }
}

impl Monitor {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), inner: RefCell::default() }
    }

    /// The connection to be polled, and whether something waits to be written.
    pub fn stream(&self) -> Option<(Rc<UnixStream>, bool)> {
        let inner = self.inner.borrow();
        Some((inner.stream.clone()?, !inner.output.is_empty()))
    }

    /// Reads and writes what can be without waiting.
    pub fn pump(&self) {
        let mut inner = self.inner.borrow_mut();
        if inner.pump().is_err() {
            inner.close();
        }
    }

    /// Connects and negotiates, unless that was done.
    pub async fn ready(&self) -> Result<(), MonitorError> {
        if self.inner.borrow().stream.is_none() {
            self.connect()
                .map_err(|e| MonitorError::Connect { path: self.path.clone(), why: e.to_string() })?;
        }
        let connection = self.inner.borrow().connection;
        let capabilities = poll_fn(|_| {
            let inner = self.inner.borrow();
            match &inner.greeting {
                _ if inner.stream.is_none() || inner.connection != connection => {
                    Poll::Ready(Err(MonitorError::Closed))
                }
                Some(capabilities) => Poll::Ready(Ok(capabilities.clone())),
                None => Poll::Pending,
            }
        })
        .await?;
        if !self.inner.borrow().negotiated {
            let oob: Vec<_> = capabilities.into_iter().filter(|c| c == "oob").collect();
            let asked = self.command(false, "qmp_capabilities", json!({ "enable": oob })).await;
            match asked {
                // A negotiation that an aborted procedure began has been carried out all the same.
                Ok(_) | Err(MonitorError::Refused { .. }) => self.inner.borrow_mut().negotiated = true,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// A command without arguments.
    pub async fn ask(&self, command: &'static str) -> Result<Value, MonitorError> {
        self.command(false, command, Value::Null).await
    }

    /// A command; `oob` if it must not wait for others.
    pub async fn command(
        &self,
        oob: bool,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, MonitorError> {
        let (id, connection) = self.send(oob, command, arguments)?;
        let _waiting = Waiting(self, id);
        poll_fn(|_| {
            let mut inner = self.inner.borrow_mut();
            match inner.replies.get_mut(&id).and_then(Option::take) {
                Some(Ok(value)) => Poll::Ready(Ok(value)),
                Some(Err(desc)) => Poll::Ready(Err(MonitorError::Refused { command, desc })),
                None if inner.stream.is_none() || inner.connection != connection => {
                    Poll::Ready(Err(MonitorError::Closed))
                }
                None => Poll::Pending,
            }
        })
        .await
    }

    fn connect(&self) -> std::io::Result<()> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Does not wait: with a full backlog it fails.
        connect(&fd, &SocketAddrUnix::new(&self.path)?)?;
        let mut inner = self.inner.borrow_mut();
        let (connection, next_id) = (inner.connection + 1, inner.next_id);
        *inner =
            Inner { stream: Some(Rc::new(UnixStream::from(fd))), connection, next_id, ..Inner::default() };
        Ok(())
    }

    fn send(&self, oob: bool, command: &str, arguments: Value) -> Result<(u64, u64), MonitorError> {
        let mut inner = self.inner.borrow_mut();
        if inner.stream.is_none() {
            return Err(MonitorError::Closed);
        }
        inner.next_id += 1;
        let id = inner.next_id;
        let mut line = json!({ (if oob { "exec-oob" } else { "execute" }): command, "id": id });
        if !arguments.is_null() {
            line["arguments"] = arguments;
        }
        inner.output.extend_from_slice(line.to_string().as_bytes());
        inner.output.push(b'\n');
        inner.replies.insert(id, None);
        if inner.pump().is_err() {
            inner.close();
        }
        Ok((id, inner.connection))
    }
}

impl Inner {
    fn close(&mut self) {
        self.stream = None;
        self.greeting = None;
        self.negotiated = false;
        self.input.clear();
        self.output.clear();
    }

    fn pump(&mut self) -> std::io::Result<()> {
        let Some(stream) = self.stream.clone() else { return Ok(()) };
        let mut stream = &*stream;
        while !self.output.is_empty() {
            match stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        let mut chunk = [0; 8192];
        let ended = loop {
            match stream.read(&mut chunk) {
                Ok(0) => break true,
                Ok(n) if self.input.len() + n <= MAX_LINE => self.input.extend_from_slice(&chunk[..n]),
                Ok(_) => return Err(std::io::ErrorKind::InvalidData.into()),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break false,
                Err(e) => return Err(e),
            }
        };
        while let Some(end) = self.input.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            self.take(&serde_json::from_slice(&line)?);
        }
        if ended { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// One line of QEMU's. Events and what is not known are passed over.
    fn take(&mut self, line: &Value) {
        if let Some(greeting) = line.get("QMP") {
            let names = greeting["capabilities"].as_array().into_iter().flatten();
            self.greeting = Some(names.filter_map(|v| v.as_str().map(str::to_owned)).collect());
        }
        let Some(slot) = line.get("id").and_then(Value::as_u64).and_then(|id| self.replies.get_mut(&id))
        else {
            return;
        };
        if let Some(value) = line.get("return") {
            *slot = Some(Ok(value.clone()));
        } else if let Some(error) = line.get("error") {
            *slot = Some(Err(error["desc"].as_str().unwrap_or("unknown error").to_owned()));
        }
    }
}
