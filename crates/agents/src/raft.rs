//! Carries Raft's frames between nodes: a stream to each other node by each of its links, opened when there is something
//! to send.
//!
//! ```text
//!   outbox ──▶ numbered ──┬─▶ stream by link 0 ──┬─▶ heard before? ──▶ configuration
//!                         └─▶ stream by link 1 ──┘        dropped
//! ```
//!
//! A frame goes by every link, and the first to arrive counts: a dead switch costs no election and no time, where
//! another link leads to the node. Large ones (a snapshot's chunks) go by one of the links that have a stream, in turn, so that
//! what Raft sends again goes by another. Raft bears loss,
//! repetition and disorder: a frame that cannot be sent now is dropped, and a queue that is full drops, too, so that a slow
//! node holds nobody up.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use stead_conf::Conf;
use stead_model::{NodeUuid, RaftId};
use stead_transport::stream::{FrameError, frames};
use stead_transport::{Peer, PeerClient, Purpose, Stream};
use tokio::sync::{mpsc, watch};

/// The largest frame in bytes: a chunk of a snapshot and its head fit well.
pub const MAX_FRAME: usize = 16 << 20;
/// Larger ones go by one link alone.
const BY_ALL: usize = 64 << 10;
/// Frames that may wait for one link of one node.
const QUEUE: usize = 4096;
/// How long opening a stream may take.
const OPEN: Duration = Duration::from_secs(2);
/// After a stream could not be opened, frames by that link are dropped for so long.
const REST: Duration = Duration::from_millis(200);
/// What is before a frame: the sender's start, and the frame's number, zero for one that goes by one link alone.
const HEAD: usize = 16;

/// The nodes by their numbers in Raft.
pub type Directory = HashMap<RaftId, Peer>;

/// Sends what the configuration wants sent, for as long as it runs. `start` tells this start of the daemon from any
/// other.
pub async fn send(conf: Conf, client: PeerClient, mut directory: watch::Receiver<Directory>, start: u64) {
    let mut outbox = conf.outbox();
    let mut ways: HashMap<RaftId, Vec<Way>> = HashMap::new();
    let mut number = 0;
    while let Some((to, frame)) = outbox.recv().await {
        if directory.has_changed().unwrap_or(false) {
            let known = directory.borrow_and_update();
            ways.retain(|to, ways| {
                let Some(peer) = known.get(to) else { return false };
                reroute(ways, peer, &client);
                true
            });
        }
        let ways = ways.entry(to).or_default();
        if ways.is_empty()
            && let Some(peer) = directory.borrow().get(&to)
        {
            reroute(ways, peer, &client);
        }
        number += 1;
        route(ways, start, number, &frame);
    }
}

/// One link to one node.
struct Way {
    peer: Peer,
    link: SocketAddr,
    queue: mpsc::Sender<Bytes>,
    open: Arc<AtomicBool>,
}

/// Brings the ways to a node in line with its links.
fn reroute(ways: &mut Vec<Way>, peer: &Peer, client: &PeerClient) {
    // A way that is dropped ends with its queue.
    ways.retain(|way| way.peer == *peer);
    for &link in peer.addrs.values() {
        if ways.iter().all(|way| way.link != link) {
            let (queue, waiting) = mpsc::channel(QUEUE);
            let open = Arc::new(AtomicBool::new(false));
            tokio::spawn(send_by(link, peer.clone(), client.clone(), waiting, open.clone()));
            ways.push(Way { peer: peer.clone(), link, queue, open });
        }
    }
}

/// Hands a frame to those ways that it is to go.
fn route(ways: &[Way], start: u64, number: u64, frame: &Bytes) {
    let open: Vec<&Way> = ways.iter().filter(|w| w.open.load(Ordering::Relaxed)).collect();
    let one = (frame.len() > BY_ALL && !open.is_empty()).then(|| open[number as usize % open.len()]);
    let mut headed = BytesMut::with_capacity(HEAD + frame.len());
    headed.put_u64(start);
    headed.put_u64(if frame.len() > BY_ALL { 0 } else { number });
    headed.put_slice(frame);
    let headed = headed.freeze();
    for way in one.map_or(ways, std::slice::from_ref) {
        // Full: dropped. Closed: cannot be, its task ends with this sender.
        let _ = way.queue.try_send(headed.clone());
    }
}

async fn send_by(
    link: SocketAddr,
    peer: Peer,
    client: PeerClient,
    mut queue: mpsc::Receiver<Bytes>,
    open: Arc<AtomicBool>,
) {
    while let Some(first) = queue.recv().await {
        match client.open_by(link, &peer, Purpose::Raft, "raft", OPEN).await {
            Ok(stream) => {
                open.store(true, Ordering::Relaxed);
                let ended = pump(stream, first, &mut queue).await;
                open.store(false, Ordering::Relaxed);
                if let Err(e) = ended {
                    tracing::debug!("Raft's stream to '{}' by {link} broke: {e}", peer.name);
                    client.broke(link, &peer, &e);
                }
            }
            Err(e) => rest(&e.to_string(), &mut queue).await,
        }
    }
}

async fn pump(stream: Stream, first: Bytes, queue: &mut mpsc::Receiver<Bytes>) -> Result<(), FrameError> {
    let (mut from, mut writer) = frames(stream, HEAD + MAX_FRAME);
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
async fn rest(why: &str, queue: &mut mpsc::Receiver<Bytes>) {
    tracing::debug!("no stream for Raft: {why}");
    let until = tokio::time::Instant::now() + REST;
    while let Ok(Some(_)) = tokio::time::timeout_at(until, queue.recv()).await {}
}

/// Which frames were heard of whom. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<HashMap<NodeUuid, (u64, u64)>>>);

impl Heard {
    /// Takes a frame's head off; none if the frame has come by another link already, or has no head.
    fn fresh(&self, from: &NodeUuid, mut frame: Bytes) -> Option<Bytes> {
        if frame.len() < HEAD {
            return None;
        }
        let (start, number) = (frame.get_u64(), frame.get_u64());
        if number == 0 {
            return Some(frame);
        }
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = heard.entry(from.clone()).or_default();
        // Each link keeps the order, so whatever is behind the last has come by another, or was lost: Raft sends it again.
        if last.0 == start && number <= last.1 {
            return None;
        }
        *last = (start, number);
        Some(frame)
    }
}

/// Takes the frames of one incoming stream of a node until it ends.
pub async fn receive(conf: Conf, heard: Heard, from: NodeUuid, stream: Stream) {
    let (mut reader, _writer) = frames(stream, HEAD + MAX_FRAME);
    loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                if let Some(frame) = heard.fresh(&from, frame) {
                    conf.step(frame).await;
                }
            }
            Ok(None) => return,
            Err(e) => {
                tracing::debug!("an incoming stream of Raft broke: {e}");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(open: [bool; 2]) -> (Vec<Way>, [mpsc::Receiver<Bytes>; 2]) {
        let addrs = (0..2).map(|n| (n, SocketAddr::from(([192, 0, 2, n], 8006)))).collect();
        let uuid = "7a3c1f52-8f0e-4d9b-9d5f-000000000001".parse().unwrap();
        let peer = Peer { name: "n1".parse().unwrap(), uuid, addrs };
        let channels = [mpsc::channel(8), mpsc::channel(8)];
        let mut out = vec![];
        let ends = channels.map(|(queue, end)| {
            let link = peer.addrs[&(out.len() as u8)];
            let open = Arc::new(AtomicBool::new(open[out.len()]));
            out.push(Way { peer: peer.clone(), link, queue, open });
            end
        });
        (out, ends)
    }

    #[test]
    fn a_frame_that_comes_by_two_links_is_heard_once() {
        let (ways, [mut a, mut b]) = ways([true, true]);
        let (heard, from) = (Heard::default(), ways[0].peer.uuid.clone());
        let hear = |end: &mut mpsc::Receiver<Bytes>| heard.fresh(&from, end.try_recv().unwrap());
        for (number, text) in [(1, "one"), (2, "two"), (3, "three")] {
            route(&ways, 7, number, &Bytes::from(text));
        }
        assert_eq!(hear(&mut a).as_deref(), Some(&b"one"[..]));
        assert_eq!(hear(&mut b), None);
        assert_eq!(hear(&mut b).as_deref(), Some(&b"two"[..]));
        assert_eq!(hear(&mut b).as_deref(), Some(&b"three"[..]));
        assert_eq!((hear(&mut a), hear(&mut a)), (None, None));
        // The sender was started anew and counts from the beginning.
        route(&ways, 8, 1, &Bytes::from("again"));
        assert_eq!(hear(&mut a).as_deref(), Some(&b"again"[..]));
        assert_eq!(heard.fresh(&from, Bytes::from("short")), None);
    }

    #[test]
    fn a_large_frame_goes_by_one_link_and_is_never_taken_for_an_old_one() {
        let large = Bytes::from(vec![1; BY_ALL + 1]);
        let (ways, [mut a, mut b]) = ways([false, true]);
        route(&ways, 7, 1, &large);
        route(&ways, 7, 2, &Bytes::from("small"));
        assert_eq!(
            a.try_recv().unwrap().len(),
            HEAD + 5,
            "the small one alone: there is no stream by this link"
        );
        let (heard, from) = (Heard::default(), ways[0].peer.uuid.clone());
        let (first, second) = (b.try_recv().unwrap(), b.try_recv().unwrap());
        // The small one overtakes it.
        assert!(heard.fresh(&from, second).is_some());
        assert_eq!(heard.fresh(&from, first), Some(large.clone()));

        let (ways, [mut a, mut b]) = self::ways([true, true]);
        for number in 1..=4 {
            route(&ways, 7, number, &large);
        }
        let count = |end: &mut mpsc::Receiver<Bytes>| std::iter::from_fn(|| end.try_recv().ok()).count();
        assert_eq!((count(&mut a), count(&mut b)), (2, 2), "one link may swallow what is large");

        let (ways, [mut a, mut b]) = self::ways([false, false]);
        route(&ways, 7, 1, &large);
        assert!(a.try_recv().is_ok() && b.try_recv().is_ok(), "which link will open is not known");
    }
}
