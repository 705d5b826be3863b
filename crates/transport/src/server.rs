//! The server: the TLS port and the local socket.
//!
//! ```text
//!  accepted ─► first byte ─► ClientHello ─► handshake ─► HTTP/1.1 requests ─► ended
//!     │           │ not TLS      │ stead-peer/1: certificate, member         └► upgraded: the handler's own
//!     │           ▼              │ else: public, counted
//!     │        redirect          ▼
//!     └ until the handshake is done: counted, 10 s       refused
//! ```
//!
//! Public connections are limited in number, in all and from each address, and peers are not, so that no crowd of
//! clients can keep a heartbeat out, nor one client all others. Who it is shows at the end of the handshake only, so
//! addresses of members have places of their own in the handshake, each its own, which no crowd elsewhere takes; a
//! node that connects from another address than its record names has to find room among the others. Graceful stop: no new connections, requests under way are answered, then what is left is cut.

use crate::ca::PeerIdentity;
use crate::io::{Counted, Cuts, PATIENCE_MS, PerAddress, Tracked, prepare};
use crate::redirect::{TLS_RECORD, answer_plain};
use crate::tls::Tls;
use crate::{Body, CaError};
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use stead_model::NodeUuid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnKind {
    /// Anybody, over TLS. Who it is, a ticket or token must tell.
    Public,
    /// A node of the cluster, by its certificate.
    Peer(PeerIdentity),
    /// A process on this machine, by the kernel's word.
    Local {
        /// Its user.
        uid: u32,
    },
}

/// What is known about a request's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnInfo {
    /// Where it comes from; none for a local socket.
    pub remote: Option<SocketAddr>,
    /// The address it has reached; none for a local socket.
    pub local: Option<SocketAddr>,
    /// Who it is.
    pub kind: ConnKind,
}

/// Answers requests of all kinds of connections.
pub type Handler =
    Arc<dyn Fn(Request<Incoming>, ConnInfo) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// How much a server lets be done to it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From accepting a connection to the end of the TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request's head to its last; also how long an idle connection stays.
    pub head: Duration,
    /// Connections in the handshake at once, those from members' addresses aside; further ones are refused.
    pub handshakes: usize,
    /// The same from one address; of a member's address, all that there are.
    pub handshakes_each: usize,
    /// Public connections at once, upgraded ones included; further ones are refused.
    pub public: usize,
    /// The same from one address.
    pub public_each: usize,
    /// Local connections at once; further ones wait.
    pub local: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(60),
            handshakes: 1024,
            handshakes_each: 256,
            public: 4096,
            public_each: 512,
            local: 1024,
        }
    }
}

/// Serves connections. Clones share everything.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    tls: Tls,
    handler: Handler,
    limits: Limits,
    handshakes: Arc<Semaphore>,
    handshakes_each: PerAddress,
    members_handshakes: PerAddress,
    public: Arc<Semaphore>,
    public_each: PerAddress,
    local: Arc<Semaphore>,
    cuts: Cuts,
    tasks: TaskTracker,
    /// No new connections and requests.
    stop: CancellationToken,
    /// No connections at all.
    cut_all: CancellationToken,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("tls", &self.0.tls).finish_non_exhaustive()
    }
}

/// A place in the handshake; a member's address has its own, which no semaphore counts.
type Turn = (Counted, Option<OwnedSemaphorePermit>);

/// Why a connection was not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("its certificate cannot be read: {0}")]
    Certificate(#[from] CaError),
    #[error("it has shown no certificate")]
    NoCertificate,
    #[error("node '{}' ({}) is not a member", .0.name, .0.uuid)]
    NotAMember(PeerIdentity),
    #[error("there are too many public connections")]
    TooMany,
    #[error("there are too many public connections from this address")]
    TooManyOfOne,
}

impl Server {
    /// A server that listens nowhere yet.
    pub fn new(tls: Tls, handler: Handler, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            tls,
            handler,
            limits,
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            handshakes_each: PerAddress::new(limits.handshakes_each),
            members_handshakes: PerAddress::new(limits.handshakes_each),
            public: Arc::new(Semaphore::new(limits.public)),
            public_each: PerAddress::new(limits.public_each),
            local: Arc::new(Semaphore::new(limits.local)),
            cuts: Cuts::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            cut_all: CancellationToken::new(),
        }))
    }

    /// Serves the TLS port at one address, in the background, until [`shutdown`](Self::shutdown) or until what is
    /// returned is cancelled, which leaves the connections that there are.
    pub fn listen_tls(&self, listener: TcpListener) -> CancellationToken {
        let (server, end) = (self.clone(), self.0.stop.child_token());
        let until = end.clone();
        self.0.tasks.spawn(async move {
            while let Some((stream, remote)) = server.accept(&until, || listener.accept()).await {
                let Some(turn) = server.turn(remote.ip()) else {
                    tracing::warn!("connection of {remote} refused: too many in the handshake");
                    continue;
                };
                server.0.tasks.spawn(server.clone().serve_tcp(stream, remote, turn));
            }
        });
        end
    }

    /// A place in the handshake for a connection from an address; none if there is none free.
    fn turn(&self, from: IpAddr) -> Option<Turn> {
        if self.0.tls.is_members_address(from) {
            return self.0.members_handshakes.count_one(from).map(|counted| (counted, None));
        }
        let counted = self.0.handshakes_each.count(from)?;
        let permit = self.0.handshakes.clone().try_acquire_owned().ok()?;
        Some((counted, Some(permit)))
    }

    /// Serves a local socket, in the background, until [`shutdown`](Self::shutdown).
    pub fn listen_unix(&self, listener: UnixListener) {
        let server = self.clone();
        self.0.tasks.spawn(async move {
            while let Some((stream, _)) = server.accept(&server.0.stop, || listener.accept()).await {
                let Ok(permit) = server.0.local.clone().acquire_owned().await else { return };
                server.0.tasks.spawn(server.clone().serve_unix(stream, permit));
            }
        });
    }

    /// Cuts every connection from a node that was removed, streams included; gives how many there were.
    pub fn drop_peer(&self, node: &NodeUuid) -> usize {
        self.0.cuts.cut(node)
    }

    /// How many connections are open from a node.
    pub fn connections(&self, node: &NodeUuid) -> usize {
        self.0.cuts.count(node)
    }

    /// Stops listening, lets requests under way be answered for up to `grace`, then cuts what is left. Upgraded
    /// streams are their handlers' to end.
    pub async fn shutdown(&self, grace: Duration) {
        self.0.stop.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(grace, self.0.tasks.wait()).await.is_err() {
            self.0.cut_all.cancel();
            self.0.tasks.wait().await;
        }
    }

    /// The next connection; none when there is an end to it.
    async fn accept<S, A, F>(&self, end: &CancellationToken, mut accept: impl FnMut() -> F) -> Option<(S, A)>
    where
        F: Future<Output = io::Result<(S, A)>>,
    {
        loop {
            let accepted = tokio::select! {
                () = end.cancelled() => return None,
                accepted = accept() => accepted,
            };
            match accepted {
                Ok(got) => return Some(got),
                // Out of descriptors or memory: nothing tells when there will be some again.
                Err(e) if !of_one_connection(&e) => {
                    tracing::error!("cannot accept connections: {e}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(_) => {}
            }
        }
    }

    async fn serve_unix(self, stream: UnixStream, _permit: OwnedSemaphorePermit) {
        match stream.peer_cred() {
            Ok(cred) => {
                let kind = ConnKind::Local { uid: cred.uid() };
                self.serve(stream, ConnInfo { remote: None, local: None, kind }).await;
            }
            Err(e) => tracing::warn!("local connection refused: its user is not known: {e}"),
        }
    }

    async fn serve_tcp(self, stream: TcpStream, remote: SocketAddr, handshake: Turn) {
        let ready = async {
            let mut first = [0];
            if stream.peek(&mut first).await? == 1 && first[0] != TLS_RECORD {
                answer_plain(stream).await;
                return Ok(None);
            }
            prepare(&stream, PATIENCE_MS)?;
            self.handshake(stream, remote).await.map(Some)
        };
        let ready = tokio::select! {
            () = self.0.stop.cancelled() => return,
            ready = tokio::time::timeout(self.0.limits.handshake, ready) => ready,
        };
        drop(handshake);
        match ready {
            Ok(Ok(Some((stream, info)))) => self.serve(stream, info).await,
            Ok(Ok(None)) => {}
            Ok(Err(Refused::Io(e))) => tracing::debug!("no TLS session with {remote}: {e}"),
            Ok(Err(why)) => tracing::warn!("connection of {remote} refused: {why}"),
            Err(_) => tracing::debug!("no TLS session with {remote} in time"),
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
    ) -> Result<(TlsStream<Tracked>, ConnInfo), Refused> {
        let local = stream.local_addr().ok();
        let start =
            LazyConfigAcceptor::new(rustls::server::Acceptor::default(), Tracked::new(stream)).await?;
        let (config, is_peer) = self.0.tls.for_hello(start.client_hello().alpn());
        let (counted, permit) = if is_peer {
            (None, None)
        } else {
            let counted = self.0.public_each.count(remote.ip()).ok_or(Refused::TooManyOfOne)?;
            let permit = self.0.public.clone().try_acquire_owned().map_err(|_| Refused::TooMany)?;
            (Some(counted), Some(permit))
        };
        let mut stream = start.into_stream(config).await?;
        let kind = if is_peer { ConnKind::Peer(self.admit_peer(&mut stream)?) } else { ConnKind::Public };
        let tracked = stream.get_mut().0;
        (tracked.permit, tracked.counted) = (permit, counted);
        Ok((stream, ConnInfo { remote: Some(remote), local, kind }))
    }

    fn admit_peer(&self, stream: &mut TlsStream<Tracked>) -> Result<PeerIdentity, Refused> {
        let (tracked, session) = stream.get_mut();
        let cert = session.peer_certificates().and_then(|c| c.first()).ok_or(Refused::NoCertificate)?;
        let peer = PeerIdentity::of(cert)?;
        tracked.registered = Some(self.0.cuts.register(&peer.uuid, &tracked.io)?);
        // The handshake has asked already, but a removal since then has found nothing to cut.
        if self.0.tls.is_member(&peer.uuid) { Ok(peer) } else { Err(Refused::NotAMember(peer)) }
    }

    async fn serve<S>(&self, stream: S, info: ConnInfo)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let handler = &self.0.handler;
        let service = service_fn(|request| {
            let answer = handler(request, info.clone());
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.0.limits.head)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.0.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = self.0.cut_all.cancelled() => return,
                }
            }
        };
        if let Err(e) = ended {
            tracing::debug!("connection of {:?} ended: {e}", info.kind);
        }
    }
}

fn of_one_connection(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
