//! A socket of this node whose other side is on another node: what connects to it is joined with a stream there, over the cluster's TLS.

use super::migrate::Source;
use crate::OpsError;
use crate::peers::Duplex;
use std::path::Path;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// Bytes at a time towards the other node, and back.
const THERE: usize = 1 << 20;
const BACK: usize = 1 << 16;

/// What is joined, until this is dropped.
pub(super) struct Tunnel(JoinHandle<()>);

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn join(mut near: UnixStream, mut far: Box<dyn Duplex>) -> Result<(), OpsError> {
    let both = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, THERE, BACK);
    both.await.map(drop).map_err(|e| OpsError::failed(e.to_string()))
}

impl Source<'_> {
    /// Listens at a path, and has what connects come out at the target as a stream of that name. The first is opened at once: a
    /// target that can't be reached is found out before anything relies on it.
    pub(super) async fn tunnel(&self, path: &Path, name: &str) -> Result<Tunnel, OpsError> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)
            .map_err(|e| OpsError::failed(format!("could not listen on {}: {e}", path.display())))?;
        let mut first = Some(self.ops.peers.open(&self.far, name).await?);
        let (peers, target, name, vmid) =
            (self.ops.peers.clone(), self.far.clone(), name.to_owned(), self.vmid());
        Ok(Tunnel(tokio::spawn(async move {
            let mut streams = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (peers, target, name, first) =
                    (peers.clone(), target.clone(), name.clone(), first.take());
                streams.spawn(async move {
                    let joined = async {
                        let far = match first {
                            Some(far) => far,
                            None => peers.open(&target, &name).await?,
                        };
                        join(near, far).await
                    };
                    if let Err(e) = joined.await {
                        tracing::info!("guest {vmid}: a stream to node '{}' ended: {e}", target.name);
                    }
                });
            }
        })))
    }
}
