//! A blocking client, for tests and for people. (The daemon's own is asynchronous and reconnects.)

use crate::protocol::{Answer, Op, Outcome, Refusal, Request, Response};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The fence process refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It does not answer.
    #[error("the fence process does not answer")]
    Io(#[from] std::io::Error),
    /// Its answer makes no sense.
    #[error("the fence process answered with what this program does not understand: {0}")]
    Answer(String),
}

/// A connection to the fence process.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    next: u64,
}

impl Client {
    /// Connects; every later call fails after 30 s without an answer.
    pub fn connect(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream: BufReader::new(stream), next: 1 })
    }

    /// Asks and waits for the answer.
    pub fn call(&mut self, op: Op) -> Result<Answer, CallError> {
        let request = Request { id: self.next, op };
        self.next += 1;
        let mut line = serde_json::to_vec(&request).map_err(|e| CallError::Answer(e.to_string()))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_str::<Response>(&answer) {
            Ok(Response { id, result: Outcome::Ok(answer) }) if id == request.id => Ok(answer),
            Ok(Response { id, result: Outcome::Error(refusal) }) if id == request.id => Err(refusal.into()),
            _ => Err(CallError::Answer(answer)),
        }
    }
}
