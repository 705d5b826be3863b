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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Idle connections are not used after this long: less than the server's own patience.
const IDLE_LIMIT: Duration = Duration::from_secs(25);
/// So many idle connections are kept.
const IDLE_KEPT: usize = 8;

type Idle = Arc<Mutex<Vec<(SendRequest<Body>, Instant)>>>;

#[derive(Debug)]
pub(crate) struct Pool {
    dial: Dial,
    idle: Idle,
    slots: Arc<Semaphore>,
}

fn lock(idle: &Idle) -> MutexGuard<'_, Vec<(SendRequest<Body>, Instant)>> {
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
            let (mut sender, used) = match self.take() {
                Some(sender) => (sender, true),
                None => (self.dial.http().await?, false),
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
                                idle.push((sender, Instant::now()));
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

    /// The idle connection used last, so that the others may grow old.
    fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = lock(&self.idle);
        idle.retain(|(sender, since)| since.elapsed() < IDLE_LIMIT && sender.is_ready());
        idle.pop().map(|(sender, _)| sender)
    }

    /// Gives up all idle connections.
    pub(crate) fn forget_idle(&self) {
        lock(&self.idle).clear();
    }
}
