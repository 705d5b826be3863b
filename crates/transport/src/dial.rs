//! Making one connection: TCP or unix socket, TLS, who is at the other end, HTTP.

use crate::io::{Cuts, Tracked, prepare};
use crate::tls::Tls;
use crate::{Body, ClientError, Fingerprint, Peer, PeerIdentity, Trust};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long reaching a server and agreeing on TLS may take.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

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
    Peer { peer: Peer, tls: Tls, cuts: Cuts },
}

impl Dial {
    /// The server, as a user would name it.
    pub(crate) fn to(&self) -> String {
        match self {
            Self::Public { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Public { host, port, .. } => format!("{host}:{port}"),
            Self::Unix(path) => path.display().to_string(),
            Self::Peer { peer, .. } => format!("node '{}' at {}", peer.name, peer.addr),
        }
    }

    /// The `Host` header.
    pub(crate) fn host(&self) -> String {
        match self {
            Self::Public { .. } => self.to(),
            Self::Unix(_) => "localhost".into(),
            Self::Peer { peer, .. } => peer.addr.to_string(),
        }
    }

    /// A connection that speaks HTTP. Its driver is a task that ends with it.
    pub(crate) async fn http(&self) -> Result<SendRequest<Body>, ClientError> {
        let stream = TokioIo::new(self.raw().await?);
        let broken = |source| ClientError::Broken { to: self.to(), source };
        let (sender, connection) = Builder::new().handshake(stream).await.map_err(broken)?;
        tokio::spawn(async move {
            if let Err(e) = connection.with_upgrades().await {
                tracing::debug!("client connection ended: {e}");
            }
        });
        Ok(sender)
    }

    /// A connection on which nothing was said yet, within [`CONNECT_LIMIT`].
    pub(crate) async fn raw(&self) -> Result<Box<dyn Duplex>, ClientError> {
        match tokio::time::timeout(CONNECT_LIMIT, self.connect()).await {
            Ok(done) => done,
            Err(_) => {
                let why = format!("no connection within {} s", CONNECT_LIMIT.as_secs());
                Err(ClientError::Connect {
                    to: self.to(),
                    source: io::Error::new(io::ErrorKind::TimedOut, why),
                })
            }
        }
    }

    async fn connect(&self) -> Result<Box<dyn Duplex>, ClientError> {
        let fail = |source| ClientError::Connect { to: self.to(), source };
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(fail)?)),
            Self::Public { host, port, trust, config } => {
                let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(fail)?;
                prepare(&tcp).map_err(fail)?;
                let name = ServerName::try_from(host.clone())
                    .map_err(|e| ClientError::Protocol { to: self.to(), why: e.to_string() })?;
                let tls = self.handshake(Tracked::new(tcp), config.clone(), name).await?;
                if let Trust::Fingerprint(expected) = trust {
                    let seen = Fingerprint::of(&self.shown(&tls)?);
                    if seen != *expected {
                        return Err(ClientError::WrongFingerprint {
                            to: self.to(),
                            expected: *expected,
                            seen,
                        });
                    }
                }
                Ok(Box::new(tls))
            }
            Self::Peer { peer, tls, cuts } => {
                if !tls.is_member(&peer.uuid) {
                    return Err(ClientError::NotAMember(peer.uuid.clone()));
                }
                let tcp = TcpStream::connect(peer.addr).await.map_err(fail)?;
                prepare(&tcp).map_err(fail)?;
                let name = ServerName::IpAddress(peer.addr.ip().into());
                let mut stream = self.handshake(Tracked::new(tcp), tls.peer_client(), name).await?;
                let seen = PeerIdentity::of(&self.shown(&stream)?)
                    .map_err(|e| ClientError::Protocol { to: self.to(), why: e.to_string() })?;
                if seen.uuid != peer.uuid {
                    let (to, expected) = (self.to(), peer.uuid.clone());
                    return Err(ClientError::WrongPeer { to, expected, seen: Box::new(seen) });
                }
                let tracked = stream.get_mut().0;
                tracked.registered = Some(cuts.register(&peer.uuid, &tracked.io).map_err(fail)?);
                // A removal between the first look and the registration has cut nothing: look again.
                if !tls.is_member(&peer.uuid) {
                    return Err(ClientError::NotAMember(peer.uuid.clone()));
                }
                Ok(Box::new(stream))
            }
        }
    }

    async fn handshake(
        &self,
        tcp: Tracked,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<TlsStream<Tracked>, ClientError> {
        let tls = TlsConnector::from(config).connect(name, tcp).await;
        tls.map_err(|source| ClientError::Tls { to: self.to(), source })
    }

    fn shown(&self, tls: &TlsStream<Tracked>) -> Result<CertificateDer<'static>, ClientError> {
        let first = tls.get_ref().1.peer_certificates().and_then(|c| c.first());
        first
            .map(|c| c.clone().into_owned())
            .ok_or_else(|| ClientError::Protocol { to: self.to(), why: "it has shown no certificate".into() })
    }
}
