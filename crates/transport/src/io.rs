//! Sockets: their options, and the register by which a removed node's connections are cut.

use bytes::{Buf, BytesMut};
use rustix::net::sockopt;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, Shutdown};
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
pub(crate) const PATIENCE_MS: u32 = 20_000;
/// The same where there is another way.
pub(crate) const PATIENCE_WITH_LINKS_MS: u32 = 4_000;
/// The same for what must go on as soon as a network that was away is back: TCP itself would wait for as long again as it
/// has waited, up to minutes. A new connection is made sooner.
pub(crate) const PATIENCE_URGENT_MS: u32 = 1_500;

/// No delay for small writes; a peer that has vanished is noticed, at the latest `patience_ms` after something was sent.
pub(crate) fn prepare(stream: &TcpStream, patience_ms: u32) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, patience_ms)?;
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

/// How many connections there are from each address; of IPv6 from each network, since one host has as many addresses
/// there as it likes.
#[derive(Debug, Clone)]
pub(crate) struct PerAddress(Arc<Mutex<HashMap<IpAddr, usize>>>, usize);

/// The address that a connection is counted under.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl PerAddress {
    /// Counts up to `most` from each.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::default(), most)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection for as long as the result lives; none if there are too many.
    pub(crate) fn count(&self, from: IpAddr) -> Option<Counted> {
        self.count_as(network(from))
    }

    /// The same for this very address: members of one network are not one host.
    pub(crate) fn count_one(&self, from: IpAddr) -> Option<Counted> {
        self.count_as(from.to_canonical())
    }

    fn count_as(&self, from: IpAddr) -> Option<Counted> {
        let mut all = self.lock();
        let n = all.entry(from).or_default();
        if *n >= self.1 {
            return None;
        }
        *n += 1;
        Some(Counted { of: self.clone(), from })
    }
}

/// A connection counted in [`PerAddress`].
#[derive(Debug)]
pub(crate) struct Counted {
    of: PerAddress,
    from: IpAddr,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.of.lock();
        if let Some(n) = all.get_mut(&self.from) {
            *n -= 1;
            if *n == 0 {
                all.remove(&self.from);
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
    pub(crate) counted: Option<Counted>,
}

impl Tracked {
    pub(crate) fn new(io: TcpStream) -> Self {
        Self { io, ahead: BytesMut::new(), registered: None, permit: None, counted: None }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_address_and_of_ipv6_by_network() {
        let most = PerAddress::new(1);
        let from = |ip: &str| most.count(ip.parse().unwrap());
        let (v4, v6) = (from("192.0.2.1").unwrap(), from("2001:db8::1").unwrap());
        assert!(from("192.0.2.1").is_none() && from("::ffff:192.0.2.1").is_none());
        assert!(from("2001:db8::2").is_none() && from("2001:db8:0:1::1").is_some());
        drop((v4, v6));
        assert!(most.lock().is_empty(), "nothing is kept of who has gone");
        assert!(from("192.0.2.1").is_some());
    }
}
