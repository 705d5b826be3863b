//! Making one connection: TCP or unix socket, TLS, who is at the other end, HTTP.

use crate::io::{Cuts, PATIENCE_MS, Tracked, prepare};
use crate::links::{Health, first_of};
use crate::tls::Tls;
use crate::{Body, ClientError, Fingerprint, Peer, PeerIdentity, Trust};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use stead_model::link::Links;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long reaching a server and agreeing on TLS may take.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// After so long without an answer by one link the next is tried as well. A link within a site answers far sooner; one of
/// 50 ms needs three ways there and back.
const STAGGER: Duration = Duration::from_millis(200);
/// The same where there is one link: it is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// So often in all.
const ATTEMPTS: usize = 6;

/// Any two-way stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Where to, and how to know that it is the right one.
#[derive(Debug, Clone)]
pub(crate) enum Dial {
    /// A server's public side.
    Public { host: String, port: u16, trust: Trust, config: Arc<ClientConfig> },
    /// A daemon on this machine.
    Unix(PathBuf),
    /// A node of the cluster.
    Peer(PeerDial),
}

/// How to reach a node of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct PeerDial {
    /// The node.
    pub(crate) peer: Peer,
    /// By this link of its alone; none: by whichever answers.
    pub(crate) only: Option<SocketAddr>,
    /// How long sent bytes may stay unacknowledged.
    pub(crate) patience_ms: u32,
    pub(crate) tls: Tls,
    pub(crate) cuts: Cuts,
    pub(crate) health: Health,
    /// This node's own further links.
    pub(crate) own: Arc<RwLock<Links>>,
}

/// A connection, and by which of a peer's links.
type By<C> = (C, Option<SocketAddr>);

impl Dial {
    /// The server, as a user would name it.
    pub(crate) fn to(&self) -> String {
        match self {
            Self::Public { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Public { host, port, .. } => format!("{host}:{port}"),
            Self::Unix(path) => path.display().to_string(),
            Self::Peer(dial) => dial.to(),
        }
    }

    /// The `Host` header.
    pub(crate) fn host(&self) -> String {
        match self {
            Self::Public { .. } => self.to(),
            Self::Unix(_) => "localhost".into(),
            Self::Peer(dial) => dial.peer.name.to_string(),
        }
    }

    /// Whether connections by this link are better not used.
    pub(crate) fn is_silent(&self, link: SocketAddr) -> bool {
        matches!(self, Self::Peer(dial) if dial.health.is_silent(&dial.peer.uuid, link))
    }

    /// A connection that speaks HTTP. Its driver is a task that ends with it.
    pub(crate) async fn http(&self) -> Result<By<SendRequest<Body>>, ClientError> {
        let (stream, link) = self.connect().await?;
        let stream = TokioIo::new(stream);
        let broken = |source| ClientError::Broken { to: self.to(), source };
        let (sender, connection) = Builder::new().handshake(stream).await.map_err(broken)?;
        tokio::spawn(async move {
            if let Err(e) = connection.with_upgrades().await {
                tracing::debug!("client connection ended: {e}");
            }
        });
        Ok((sender, link))
    }

    /// A connection on which nothing was said yet, within [`CONNECT_LIMIT`].
    pub(crate) async fn raw(&self) -> Result<Box<dyn Duplex>, ClientError> {
        self.connect().await.map(|(stream, _)| stream)
    }

    async fn connect(&self) -> Result<By<Box<dyn Duplex>>, ClientError> {
        let to = self.to();
        let stream = match self {
            Self::Peer(dial) => return dial.connect().await.map(|(stream, link)| (stream, Some(link))),
            Self::Unix(path) => in_time(&to, unix(&to, path)).await?,
            Self::Public { host, port, trust, config } => {
                in_time(&to, public(&to, (host, *port), trust, config)).await?
            }
        };
        Ok((stream, None))
    }
}

fn failed(to: &str) -> impl Fn(io::Error) -> ClientError {
    move |source| ClientError::Connect { to: to.to_owned(), source }
}

async fn unix(to: &str, path: &Path) -> Result<Box<dyn Duplex>, ClientError> {
    Ok(Box::new(UnixStream::connect(path).await.map_err(failed(to))?))
}

async fn public(
    to: &str,
    (host, port): (&str, u16),
    trust: &Trust,
    config: &Arc<ClientConfig>,
) -> Result<Box<dyn Duplex>, ClientError> {
    let tcp = TcpStream::connect((host, port)).await.map_err(failed(to))?;
    prepare(&tcp, PATIENCE_MS).map_err(failed(to))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|e| ClientError::Protocol { to: to.to_owned(), why: e.to_string() })?;
    let tls = handshake(to, Tracked::new(tcp), config.clone(), name).await?;
    if let Trust::Fingerprint(expected) = trust {
        let seen = Fingerprint::of(&shown(to, &tls)?);
        if seen != *expected {
            return Err(ClientError::WrongFingerprint { to: to.to_owned(), expected: *expected, seen });
        }
    }
    Ok(Box::new(tls))
}

impl PeerDial {
    /// The node, as a user would name it.
    fn to(&self) -> String {
        match self.only {
            Some(link) => format!("node '{}' at {link}", self.peer.name),
            None => self.peer.to_string(),
        }
    }

    /// A connection by the first link that answers. Each is given a moment before the next is tried as well.
    async fn connect(&self) -> Result<(Box<dyn Duplex>, SocketAddr), ClientError> {
        let links = self.only.map_or_else(|| self.health.in_order(&self.peer), |link| vec![link]);
        // Over and over: while a network is away TCP asks ever more seldom, and would find late that it is back.
        let stagger = if links.len() > 1 { STAGGER } else { AGAIN };
        let mut attempts = Vec::new();
        for link in links.iter().cycle().take(ATTEMPTS.max(links.len())) {
            attempts.push(self.clone().connect_by(*link));
        }
        let first = first_of(attempts, stagger).await;
        first.unwrap_or_else(|| Err(ClientError::Protocol { to: self.to(), why: "it has no address".into() }))
    }

    /// A connection by one link, within [`CONNECT_LIMIT`]. What comes of it is noted.
    async fn connect_by(self, link: SocketAddr) -> Result<(Box<dyn Duplex>, SocketAddr), ClientError> {
        let to = format!("node '{}' at {link}", self.peer.name);
        let began = Instant::now();
        let connected = in_time(&to, self.connect_to(&to, link)).await;
        match &connected {
            Ok(_) => self.health.answered(&self.peer, link),
            Err(e) => self.health.silent(&self.peer, link, began, e),
        }
        Ok((connected?, link))
    }

    /// A connection from this node's link of the same number, where it has one: so a link is one network at both ends, and
    /// an address that this node does not have is found out.
    async fn connect_from_own(&self, link: SocketAddr) -> io::Result<TcpStream> {
        let number = self.peer.addrs.iter().find(|(_, addr)| **addr == link).map(|(number, _)| number);
        let own = {
            let links = self.own.read().unwrap_or_else(PoisonError::into_inner);
            number.and_then(|number| links.get(number).copied())
        };
        let socket = if link.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(own) = own.filter(|own| own.is_ipv4() == link.is_ipv4()) {
            socket.bind(SocketAddr::new(own, 0))?;
        }
        socket.connect(link).await
    }

    async fn connect_to(&self, to: &str, link: SocketAddr) -> Result<Box<dyn Duplex>, ClientError> {
        let Self { peer, tls, cuts, .. } = self;
        if !tls.is_member(&peer.uuid) {
            return Err(ClientError::NotAMember(peer.uuid.clone()));
        }
        let fail = failed(to);
        let tcp = self.connect_from_own(link).await.map_err(&fail)?;
        prepare(&tcp, self.patience_ms).map_err(&fail)?;
        let name = ServerName::IpAddress(link.ip().into());
        let mut stream = handshake(to, Tracked::new(tcp), tls.peer_client(), name).await?;
        let seen = PeerIdentity::of(&shown(to, &stream)?)
            .map_err(|e| ClientError::Protocol { to: to.to_owned(), why: e.to_string() })?;
        if seen.uuid != peer.uuid {
            let (to, expected) = (to.to_owned(), peer.uuid.clone());
            return Err(ClientError::WrongPeer { to, expected, seen: Box::new(seen) });
        }
        let tracked = stream.get_mut().0;
        tracked.registered = Some(cuts.register(&peer.uuid, &tracked.io).map_err(&fail)?);
        // A removal between the first look and the registration has cut nothing: look again.
        if !tls.is_member(&peer.uuid) {
            return Err(ClientError::NotAMember(peer.uuid.clone()));
        }
        Ok(Box::new(stream))
    }
}

/// A connection within [`CONNECT_LIMIT`].
async fn in_time<T>(
    to: &str,
    connect: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(CONNECT_LIMIT, connect).await.unwrap_or_else(|_| {
        let why = format!("no connection within {} s", CONNECT_LIMIT.as_secs());
        Err(ClientError::Connect { to: to.to_owned(), source: io::Error::new(io::ErrorKind::TimedOut, why) })
    })
}

async fn handshake(
    to: &str,
    tcp: Tracked,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<TlsStream<Tracked>, ClientError> {
    let tls = TlsConnector::from(config).connect(name, tcp).await;
    tls.map_err(|source| ClientError::Tls { to: to.to_owned(), source })
}

fn shown(to: &str, tls: &TlsStream<Tracked>) -> Result<CertificateDer<'static>, ClientError> {
    let first = tls.get_ref().1.peer_certificates().and_then(|c| c.first());
    first
        .map(|c| c.clone().into_owned())
        .ok_or_else(|| ClientError::Protocol { to: to.to_owned(), why: "it has shown no certificate".into() })
}
