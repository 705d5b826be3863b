//! A socket of this node whose other side is elsewhere: what connects to it is joined with a stream there, over TLS.

use super::migrate::Source;
use crate::peers::Duplex;
use crate::{Ops, OpsError};
use futures_util::future::BoxFuture;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use stead_model::{NodeRecord, Vmid};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

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
    joined(vmid, format!("node '{}'", far.name), path, opens).await
}

/// Listens at a path, and joins what connects with a stream to the other side. The first is opened at once: one that can't be reached is
/// found out before anything relies on it. `to`: where, for people.
pub(super) async fn joined(vmid: Vmid, to: String, path: &Path, opens: Opens) -> Result<Tunnel, OpsError> {
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
                    join(near, far).await
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
