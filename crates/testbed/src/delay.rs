//! Slow links between the nodes of a testbed: a proxy, since not every kernel has a network that is slow by itself.
//!
//! ```text
//!   n1 ──veth── relay 1: has n2's and n3's addresses ─┐
//!   n2 ──veth── relay 2: has n1's and n3's ───────────┼─ one process: what is read at one is written at the other, later
//!   n3 ──veth── relay 3: has n1's and n2's ───────────┘
//! ```
//!
//! Each node is unplugged from the switch and plugged into a namespace of its own, where a relay takes the connections to the other nodes'
//! port and makes them anew from the other's, with the first one's address. What is sent takes its time each way; that a connection is
//! made or ended does not. The testbed itself still reaches each node, by a link that nodes do not know of.

use crate::netns::{NetNs, Network, node_ip};
use anyhow::{Context, Result};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// What is under way on one connection, at most, in pieces of [`PIECE`].
const UNDER_WAY: usize = 1024;
const PIECE: usize = 64 << 10;

/// A connection that a relay has taken: from which node it comes.
type Taken = (u8, std::net::TcpStream);

/// The relays. They end when dropped; the nodes are then without a network.
#[derive(Debug)]
pub struct SlowLinks {
    _stop: Vec<oneshot::Sender<()>>,
}

impl SlowLinks {
    /// Unplugs all nodes from the first switch and connects them, at one port, by links that take `delay` each way.
    ///
    /// # Errors
    /// The namespaces or links cannot be made.
    pub fn lay(network: &Network, port: u16, delay: Duration) -> Result<Self> {
        let nodes = network.count();
        let queues: Vec<_> = (0..nodes).map(|_| mpsc::unbounded_channel::<Taken>()).collect();
        let ways: Vec<_> = queues.iter().map(|(way, _)| way.clone()).collect();
        let mut stops = Vec::new();
        for (n, (_, queue)) in (1..).zip(queues) {
            let space = NetNs::new()?;
            network.replug(n, &space)?;
            let (stop, stopped) = oneshot::channel();
            stops.push(stop);
            let (ready, is_ready) = std::sync::mpsc::channel();
            let relay = Relay { n, nodes, port, delay, ways: ways.clone() };
            std::thread::Builder::new().name(format!("relay {n}")).spawn(move || {
                let run = || -> Result<()> {
                    space.enter()?;
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    runtime.block_on(relay.run(queue, stopped, &ready))
                };
                if let Err(e) = run() {
                    eprintln!("testbed: relay {n}: {e:#}");
                }
            })?;
            is_ready.recv().with_context(|| format!("relay {n} did not start"))?;
        }
        Ok(Self { _stop: stops })
    }
}

struct Relay {
    n: u8,
    nodes: u8,
    port: u16,
    delay: Duration,
    /// To the relay of each node.
    ways: Vec<mpsc::UnboundedSender<Taken>>,
}

impl Relay {
    async fn run(
        self,
        mut queue: mpsc::UnboundedReceiver<Taken>,
        mut stopped: oneshot::Receiver<()>,
        ready: &std::sync::mpsc::Sender<()>,
    ) -> Result<()> {
        for other in (1..=self.nodes).filter(|other| *other != self.n) {
            let listener = TcpListener::bind((node_ip(other), self.port)).await?;
            tokio::spawn(take(listener, self.n, self.ways[usize::from(other) - 1].clone()));
        }
        let _gone = ready.send(());
        loop {
            tokio::select! {
                _ = &mut stopped => return Ok(()),
                taken = queue.recv() => match taken {
                    Some((from, stream)) => {
                        let to = SocketAddr::new(IpAddr::V4(node_ip(self.n)), self.port);
                        tokio::spawn(carry(from, stream, to, self.delay));
                    }
                    None => return Ok(()),
                },
            }
        }
    }
}

/// Hands the connections that a node makes to another one to that one's relay.
async fn take(listener: TcpListener, from: u8, way: mpsc::UnboundedSender<Taken>) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(stream) = stream.into_std() else { continue };
        if way.send((from, stream)).is_err() {
            return;
        }
    }
}

/// Makes a connection anew to where it was to go, and joins the two. A failure ends both.
async fn carry(from: u8, stream: std::net::TcpStream, to: SocketAddr, delay: Duration) {
    let joined = async {
        let near = TcpStream::from_std(stream)?;
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(node_ip(from)), 0))?;
        let far = socket.connect(to).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        tokio::try_join!(later(near_read, far_write, delay), later(far_read, near_write, delay))
    };
    // Broken at either end: the other end sees it as the streams are dropped.
    let _ended: std::io::Result<_> = joined.await;
}

/// Writes all that is read, each piece so much later.
async fn later(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
) -> std::io::Result<()> {
    let (queue, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let read = async move {
        loop {
            let mut piece = vec![0; PIECE];
            let len = from.read(&mut piece).await?;
            piece.truncate(len);
            if queue.send((Instant::now() + delay, piece)).await.is_err() || len == 0 {
                return std::io::Result::Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = pieces.recv().await {
            tokio::time::sleep_until(due).await;
            if piece.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&piece).await?;
        }
        Ok(())
    };
    tokio::try_join!(read, write).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_comes_later_whole_and_in_order() {
        let (mut near, from) = tokio::io::duplex(1 << 20);
        let (to, mut far) = tokio::io::duplex(1 << 20);
        let delay = Duration::from_millis(30);
        tokio::spawn(later(from, to, delay));
        let begin = Instant::now();
        near.write_all(b"one").await.unwrap();
        near.write_all(b"two").await.unwrap();
        drop(near);
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "onetwo");
        assert!(begin.elapsed() >= delay);
    }
}
