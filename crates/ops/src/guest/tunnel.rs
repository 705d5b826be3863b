//! A socket of this node whose other side is on another node: what connects to it is joined with a stream there, over the cluster's TLS.

use super::migrate::Source;
use crate::peers::Duplex;
use crate::{Ops, OpsError};
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

async fn join(mut near: UnixStream, mut far: Box<dyn Duplex>) -> Result<(), OpsError> {
    let both = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, THERE, BACK);
    both.await.map(drop).map_err(|e| OpsError::failed(e.to_string()))
}

impl Source<'_> {
    /// [`tunnel`] to the target.
    pub(super) async fn tunnel(&self, path: &Path, name: &str) -> Result<Tunnel, OpsError> {
        tunnel(self.ops, self.vmid(), &self.far, path, name).await
    }
}

/// Listens at a path, and has what connects come out at a node as a stream of that name. The first is opened at once: a
/// node that can't be reached is found out before anything relies on it.
pub(super) async fn tunnel(
    ops: &Ops,
    vmid: Vmid,
    far: &NodeRecord,
    path: &Path,
    name: &str,
) -> Result<Tunnel, OpsError> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)
        .map_err(|e| OpsError::failed(format!("could not listen on {}: {e}", path.display())))?;
    let mut first = Some(ops.peers.open(far, name).await?);
    let (peers, target, name) = (ops.peers.clone(), far.clone(), name.to_owned());
    let ended = Arc::new(AtomicBool::new(false));
    let tell = ended.clone();
    let task = tokio::spawn(async move {
        let mut streams = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let (peers, target, name, first, ended) =
                (peers.clone(), target.clone(), name.clone(), first.take(), tell.clone());
            streams.spawn(async move {
                let joined = async {
                    let far = match first {
                        Some(far) => far,
                        None => peers.open(&target, &name).await?,
                    };
                    join(near, far).await
                };
                let joined = joined.await;
                ended.store(true, Ordering::Relaxed);
                if let Err(e) = joined {
                    tracing::info!("guest {vmid}: a stream to node '{}' ended: {e}", target.name);
                }
            });
        }
    });
    Ok(Tunnel { task, ended })
}
