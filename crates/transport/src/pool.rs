//! Connections to one server for one purpose: used again when idle, limited in number.
//!
//! A request waits for nobody else's: it takes an idle connection or makes one. The limit counts requests under
//! way, not upgraded streams, which belong to those who asked for them.

use crate::dial::Dial;
use crate::{Body, ClientError};
use http::header::HOST;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Idle connections are not used after this long: less than the server's own patience.
const IDLE_LIMIT: Duration = Duration::from_secs(25);
/// So many idle connections are kept.
const IDLE_KEPT: usize = 8;

/// A connection that waits to be used again.
#[derive(Debug)]
struct Waiting {
    sender: SendRequest<Body>,
    since: Instant,
    /// By which of a peer's links.
    link: Option<SocketAddr>,
}

type Idle = Arc<Mutex<Vec<Waiting>>>;

#[derive(Debug)]
pub(crate) struct Pool {
    dial: Dial,
    idle: Idle,
    slots: Arc<Semaphore>,
}

fn lock(idle: &Idle) -> MutexGuard<'_, Vec<Waiting>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request under way. If its caller gives up, the server is perhaps gone, and idle connections to it are not
/// to be trusted: each would cost the next caller its whole patience.
struct UnderWay<'a> {
    pool: &'a Pool,
    answered: bool,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.answered {
            lock(&self.pool.idle).clear();
        }
    }
}

impl Pool {
    pub(crate) fn new(dial: Dial, at_once: usize) -> Self {
        Self { dial, idle: Idle::default(), slots: Arc::new(Semaphore::new(at_once)) }
    }

    pub(crate) fn dial(&self) -> &Dial {
        &self.dial
    }

    /// Sends a request and waits for the answer's head.
    ///
    /// Cancel-safe: dropped, it ends its connection. A request that an idle connection did not take any more is
    /// sent again on a new one, never one that the server may have seen.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let closed =
            |why: &dyn std::fmt::Display| ClientError::Protocol { to: self.dial.to(), why: why.to_string() };
        if !request.headers().contains_key(HOST) {
            let host = HeaderValue::try_from(self.dial.host()).map_err(|e| closed(&e))?;
            request.headers_mut().insert(HOST, host);
        }
        let slot = self.slots.clone().acquire_owned().await.map_err(|e| closed(&e))?;
        let mut under_way = UnderWay { pool: self, answered: false };
        loop {
            let (mut sender, link, used) = match self.take() {
                Some(waiting) => (waiting.sender, waiting.link, true),
                None => {
                    let (sender, link) = self.dial.http().await?;
                    (sender, link, false)
                }
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    under_way.answered = true;
                    let idle = self.idle.clone();
                    tokio::spawn(async move {
                        // Ready again once the answer's body was read to its end; never after an upgrade.
                        if sender.ready().await.is_ok() {
                            let mut idle = lock(&idle);
                            if idle.len() < IDLE_KEPT {
                                idle.push(Waiting { sender, since: Instant::now(), link });
                            }
                        }
                        drop(slot);
                    });
                    return Ok(response);
                }
                Err(mut e) => match e.take_message() {
                    Some(again) if used => request = again,
                    _ => return Err(ClientError::Broken { to: self.dial.to(), source: e.into_error() }),
                },
            }
        }
    }

    /// The idle connection used last, so that the others may grow old. Those by a link that has fallen silent are given
    /// up.
    fn take(&self) -> Option<Waiting> {
        let mut idle = lock(&self.idle);
        idle.retain(|w| {
            let silent = w.link.is_some_and(|link| self.dial.is_silent(link));
            !silent && w.since.elapsed() < IDLE_LIMIT && w.sender.is_ready()
        });
        idle.pop()
    }

    /// Gives up all idle connections.
    pub(crate) fn forget_idle(&self) {
        lock(&self.idle).clear();
    }
}
