//! Sockets: their options, and the register by which a removed node's connections are cut.

use bytes::{Buf, BytesMut};
use rustix::net::sockopt;
use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use stead_model::NodeUuid;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::poll_read_buf;

/// After this much silence the kernel asks whether the other side is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;
/// Sent bytes that stay unacknowledged for longer end the connection, in milliseconds.
const USER_TIMEOUT_MS: u32 = 20_000;

/// No delay for small writes; a peer that has vanished is noticed.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS)?;
    Ok(())
}

/// The open connections with each peer, upgraded ones included.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cuts(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    peers: HashMap<NodeUuid, HashMap<u64, std::net::TcpStream>>,
}

impl Cuts {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection for as long as the result lives.
    pub(crate) fn register(&self, peer: &NodeUuid, stream: &TcpStream) -> io::Result<Registered> {
        // A second descriptor of the same socket: it can be shut down whoever holds the first, and however
        // deep inside TLS and HTTP that lies.
        let second = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
        let mut open = self.lock();
        open.next += 1;
        let key = open.next;
        open.peers.entry(peer.clone()).or_default().insert(key, second);
        Ok(Registered { cuts: self.clone(), peer: peer.clone(), key })
    }

    /// Ends every connection with a peer; gives how many there were.
    pub(crate) fn cut(&self, peer: &NodeUuid) -> usize {
        let streams = self.lock().peers.remove(peer).unwrap_or_default();
        for stream in streams.values() {
            // An error means that it is not connected any more, which is what is wanted.
            let _ = stream.shutdown(Shutdown::Both);
        }
        streams.len()
    }

    /// How many connections are open with a peer.
    pub(crate) fn count(&self, peer: &NodeUuid) -> usize {
        self.lock().peers.get(peer).map_or(0, HashMap::len)
    }
}

/// A connection's place in [`Cuts`].
#[derive(Debug)]
pub(crate) struct Registered {
    cuts: Cuts,
    peer: NodeUuid,
    key: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut open = self.cuts.lock();
        if let Some(streams) = open.peers.get_mut(&self.peer) {
            streams.remove(&self.key);
            if streams.is_empty() {
                open.peers.remove(&self.peer);
            }
        }
    }
}

/// What is read at once. TLS asks for 4 KiB at a time: where much arrives, each of them would be a call of the kernel's.
const READ_AHEAD: usize = 64 << 10;

/// A TCP stream with what must end when it ends, wherever an upgrade has carried it.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) io: TcpStream,
    /// What was read and not asked for yet. A connection that waits has no memory here.
    ahead: BytesMut,
    pub(crate) registered: Option<Registered>,
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

impl Tracked {
    pub(crate) fn new(io: TcpStream) -> Self {
        Self { io, ahead: BytesMut::new(), registered: None, permit: None }
    }
}

impl AsyncRead for Tracked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            let mut ahead = BytesMut::with_capacity(READ_AHEAD);
            ready!(poll_read_buf(Pin::new(&mut this.io), cx, &mut ahead))?;
            this.ahead = ahead;
        }
        let n = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..n]);
        this.ahead.advance(n);
        if this.ahead.is_empty() {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
