//! A socket of this node whose other side is elsewhere: what connects to it is joined with a stream there, over TLS.

use super::migrate::Source;
use crate::peers::Duplex;
use crate::{Ops, OpsError};
use futures_util::future::BoxFuture;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use stead_model::{NodeRecord, Vmid};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Bytes at a time towards the other node, and back.
const THERE: usize = 1 << 20;
const BACK: usize = 1 << 16;

/// What is joined, until this is dropped.
pub(super) struct Tunnel {
    task: JoinHandle<()>,
    ended: Arc<AtomicBool>,
}

impl Tunnel {
    /// Whether a stream of it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens another stream to the other side.
pub(super) type Opens = Arc<dyn Fn() -> BoxFuture<'static, Result<Box<dyn Duplex>, OpsError>> + Send + Sync>;

/// Carries bytes until both sides have no more.
pub(super) async fn join(mut near: UnixStream, mut far: impl Duplex) -> Result<(), OpsError> {
    let both = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, THERE, BACK);
    both.await.map(drop).map_err(|e| OpsError::failed(e.to_string()))
}

/// As [`join`], until what was sent is answered by nothing for so long, or up to twice that: of who keeps a connection and says nothing
/// TCP tells nobody.
async fn join_unless_mute(near: UnixStream, mut far: impl Duplex, mute: Duration) -> Result<(), OpsError> {
    let asked = Arc::new(Mutex::new(None));
    let mut near = Watched { io: near, asked: asked.clone() };
    let since = || *asked.lock().unwrap_or_else(PoisonError::into_inner);
    let is_mute = async {
        loop {
            let now = Instant::now();
            let since = since().unwrap_or(now);
            if now.duration_since(since) >= mute {
                return;
            }
            tokio::time::sleep_until(since + mute).await;
        }
    };
    tokio::select! {
        done = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, THERE, BACK) => {
            done.map(drop).map_err(|e| OpsError::failed(e.to_string()))
        }
        () = is_mute => Err(OpsError::failed(format!("what was sent was not answered within {mute:?}"))),
    }
}

/// A stream of questions, and when the first of them came that nothing has come back since.
struct Watched {
    io: UnixStream,
    asked: Arc<Mutex<Option<Instant>>>,
}

impl Watched {
    fn asked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.asked().get_or_insert_with(Instant::now);
        }
        done
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        // Before it is written: what is asked next may be read beside it.
        *self.asked() = None;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Source<'_> {
    /// [`tunnel`] to the target.
    pub(super) async fn tunnel(&self, path: &Path, name: &str) -> Result<Tunnel, OpsError> {
        tunnel(self.ops, self.vmid(), &self.far, path, name).await
    }
}

/// [`joined`] to a node, as a stream of that name.
pub(super) async fn tunnel(
    ops: &Ops,
    vmid: Vmid,
    far: &NodeRecord,
    path: &Path,
    name: &str,
) -> Result<Tunnel, OpsError> {
    let (peers, target, name) = (ops.peers.clone(), far.clone(), name.to_owned());
    let opens: Opens = Arc::new(move || {
        let (peers, target, name) = (peers.clone(), target.clone(), name.clone());
        Box::pin(async move { Ok(peers.open(&target, &name).await?) })
    });
    joined(vmid, format!("node '{}'", far.name), path, opens, None).await
}

/// Listens at a path, and joins what connects with a stream to the other side. The first is opened at once: one that can't be reached is
/// found out before anything relies on it. `to`: where, for people. `mute`: how long what is sent may be answered by nothing, if that
/// matters.
pub(super) async fn joined(
    vmid: Vmid,
    to: String,
    path: &Path,
    opens: Opens,
    mute: Option<Duration>,
) -> Result<Tunnel, OpsError> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)
        .map_err(|e| OpsError::failed(format!("could not listen on {}: {e}", path.display())))?;
    let mut first = Some(opens().await?);
    let ended = Arc::new(AtomicBool::new(false));
    let tell = ended.clone();
    let task = tokio::spawn(async move {
        let mut streams = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let (opens, first, ended, to) = (opens.clone(), first.take(), tell.clone(), to.clone());
            streams.spawn(async move {
                let joined = async {
                    let far = match first {
                        Some(far) => far,
                        None => opens().await?,
                    };
                    match mute {
                        Some(mute) => join_unless_mute(near, far, mute).await,
                        None => join(near, far).await,
                    }
                };
                let joined = joined.await;
                ended.store(true, Ordering::Relaxed);
                if let Err(e) = joined {
                    tracing::info!("guest {vmid}: a stream to {to} ended: {e}");
                }
            });
        }
    });
    Ok(Tunnel { task, ended })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_is_asked_has_to_be_answered_by_and_by() {
        let mute = Duration::from_millis(100);
        let (mut asks, near) = UnixStream::pair().unwrap();
        let (far, mut answers) = tokio::io::duplex(1 << 10);
        let joined = tokio::spawn(join_unless_mute(near, far, mute));
        // Nobody asks for long.
        tokio::time::sleep(3 * mute).await;
        let mut byte = [0];
        for _ in 0..3 {
            asks.write_all(b"?").await.unwrap();
            answers.read_exact(&mut byte).await.unwrap();
            tokio::time::sleep(mute / 2).await;
            answers.write_all(b"!").await.unwrap();
            asks.read_exact(&mut byte).await.unwrap();
            assert!(!joined.is_finished());
        }
        // Taken, and never answered.
        asks.write_all(b"?").await.unwrap();
        answers.read_exact(&mut byte).await.unwrap();
        let since = Instant::now();
        let why = joined.await.unwrap().unwrap_err().to_string();
        assert!(why.contains("not answered within 100ms"), "{why}");
        assert!(since.elapsed() >= mute / 2, "{:?}", since.elapsed());
    }
}
