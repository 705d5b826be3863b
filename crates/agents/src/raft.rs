//! Carries Raft's frames between nodes: one stream to each other node, opened when there is something to send.
//!
//! Raft bears loss: a frame that cannot be sent now is dropped, and a queue that is full drops, too, so that a slow node
//! holds nobody up.

use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use stead_conf::Conf;
use stead_model::{NodeRecord, RaftId};
use stead_transport::stream::{FrameError, frames};
use stead_transport::{Peer, PeerClient, Purpose, Stream};
use tokio::sync::mpsc;

/// The largest frame in bytes: a chunk of a snapshot and its head fit well.
pub const MAX_FRAME: usize = 16 << 20;
/// Frames that may wait for one node.
const QUEUE: usize = 4096;
/// How long opening a stream may take.
const OPEN: Duration = Duration::from_secs(2);
/// After a stream could not be opened, frames to that node are dropped for so long.
const REST: Duration = Duration::from_millis(200);

/// Finds a node by its number in Raft.
pub type Find = Arc<dyn Fn(RaftId) -> Option<NodeRecord> + Send + Sync>;

/// Sends what the configuration wants sent, for as long as it runs.
pub async fn send(conf: Conf, client: PeerClient, find: Find) {
    let mut outbox = conf.outbox();
    let mut queues: HashMap<RaftId, mpsc::Sender<Bytes>> = HashMap::new();
    while let Some((to, frame)) = outbox.recv().await {
        let queue = queues.entry(to).or_insert_with(|| {
            let (send, receive) = mpsc::channel(QUEUE);
            tokio::spawn(send_to(to, client.clone(), find.clone(), receive));
            send
        });
        // Full: dropped. Closed: cannot be, its task ends with this sender.
        let _ = queue.try_send(frame);
    }
}

async fn send_to(to: RaftId, client: PeerClient, find: Find, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(first) = queue.recv().await {
        let Some(node) = find(to) else { continue };
        let opened =
            tokio::time::timeout(OPEN, client.open(&Peer::from(&node), Purpose::Control, "raft")).await;
        match opened {
            Ok(Ok(stream)) => {
                if let Err(e) = pump(stream, first, &mut queue).await {
                    tracing::debug!("Raft's stream to '{}' broke: {e}", node.name);
                }
            }
            Ok(Err(e)) => rest(&node, &e.to_string(), &mut queue).await,
            Err(_) => rest(&node, "no answer", &mut queue).await,
        }
    }
}

async fn pump(stream: Stream, first: Bytes, queue: &mut mpsc::Receiver<Bytes>) -> Result<(), FrameError> {
    let (mut from, mut writer) = frames(stream, MAX_FRAME);
    writer.send(&first).await?;
    loop {
        tokio::select! {
            frame = queue.recv() => match frame {
                Some(frame) => {
                    writer.feed(&frame).await?;
                    while let Ok(more) = queue.try_recv() {
                        writer.feed(&more).await?;
                    }
                    writer.flush().await?;
                }
                None => return writer.finish().await,
            },
            // The other side never sends on this stream: whatever comes is its end.
            end = from.next() => return end.map(|_| ()),
        }
    }
}

/// Drops what waits, for a moment.
async fn rest(node: &NodeRecord, why: &str, queue: &mut mpsc::Receiver<Bytes>) {
    tracing::debug!("node '{}' can't be reached for Raft: {why}", node.name);
    let until = tokio::time::Instant::now() + REST;
    while let Ok(Some(_)) = tokio::time::timeout_at(until, queue.recv()).await {}
}

/// Takes the frames of one incoming stream until it ends.
pub async fn receive(conf: Conf, stream: Stream) {
    let (mut reader, _writer) = frames(stream, MAX_FRAME);
    loop {
        match reader.next().await {
            Ok(Some(frame)) => conf.step(frame).await,
            Ok(None) => return,
            Err(e) => {
                tracing::debug!("an incoming stream of Raft broke: {e}");
                return;
            }
        }
    }
}
