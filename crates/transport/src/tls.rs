//! A node's TLS: its credentials and the configurations made from them, exchanged while running.
//!
//! Peers never resume sessions: a resumed session skips the check of the certificate, and a removed node would
//! keep its access until the ticket ends.

use crate::ca::{CaError, Fingerprint, PeerIdentity};
use crate::trust;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use stead_model::NodeUuid;

/// The ALPN id of connections between nodes. Its number is the version of what is spoken there.
pub const PEER_ALPN: &[u8] = b"stead-peer/1";
/// The only ALPN id of the public side.
const PUBLIC_ALPN: &[u8] = b"http/1.1";

/// The one cryptographic provider, named explicitly so that no process-wide default matters.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// Says who belongs to the cluster now. Asked at every peer connection, on both sides.
pub trait Membership: Send + Sync {
    /// Whether the node takes part: it was not removed. A node that is lost is still a member.
    fn is_member(&self, node: &NodeUuid) -> bool;

    /// Whether a member has this address. Connections from there have places in the handshake that no others take. Asked
    /// at every connection, by whomever: it must be quick.
    fn has_address(&self, _address: IpAddr) -> bool {
        // Where addresses are not known, all have the same places.
        false
    }
}

impl<F: Fn(&NodeUuid) -> bool + Send + Sync> Membership for F {
    fn is_member(&self, node: &NodeUuid) -> bool {
        self(node)
    }
}

/// Credentials that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key can't be read.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Certificate and key don't go together, or the certificate is not the CA's.
    #[error("the {what} cannot be used: {source}")]
    Unusable {
        /// Which.
        what: &'static str,
        /// Why.
        source: rustls::Error,
    },
    /// The CA's certificate can't anchor trust.
    #[error("the cluster's CA certificate cannot be used: {0}")]
    Verifier(String),
}

/// What a node has from its cluster, as PEM texts.
#[derive(Clone)]
pub struct Credentials {
    /// The cluster's CA certificate.
    pub ca_pem: String,
    /// The node's certificate.
    pub cert_pem: String,
    /// The node's key. Secret.
    pub key_pem: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("cert", &self.cert_pem).finish_non_exhaustive()
    }
}

/// A certificate of the administrator's own for the public side: chain and key, PEM.
#[derive(Clone)]
pub struct PublicCertificate {
    /// The certificate, then its intermediates.
    pub chain_pem: String,
    /// Its key. Secret.
    pub key_pem: String,
}

impl fmt::Debug for PublicCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicCertificate").field("chain", &self.chain_pem).finish_non_exhaustive()
    }
}

struct Loaded {
    public: Arc<ServerConfig>,
    peer_server: Arc<ServerConfig>,
    peer_client: Arc<ClientConfig>,
    identity: PeerIdentity,
    fingerprint: Fingerprint,
}

/// Credentials that fit together and are not in use yet.
pub struct Prepared(Loaded);

impl Prepared {
    /// Whose they are.
    pub fn identity(&self) -> &PeerIdentity {
        &self.0.identity
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("identity", &self.0.identity).finish_non_exhaustive()
    }
}

/// A handle on the node's TLS; clones share it, and [`Tls::replace`] reaches all of them.
#[derive(Clone)]
pub struct Tls {
    loaded: Arc<RwLock<Arc<Loaded>>>,
    members: Arc<dyn Membership>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("identity", &self.identity()).finish_non_exhaustive()
    }
}

impl Tls {
    /// Takes the credentials into use. `public` replaces the node's certificate on the public side.
    pub fn new(
        credentials: &Credentials,
        public: Option<&PublicCertificate>,
        members: Arc<dyn Membership>,
    ) -> Result<Self, TlsError> {
        let loaded = load(credentials, public, &members)?;
        Ok(Self { loaded: Arc::new(RwLock::new(Arc::new(loaded))), members })
    }

    /// Exchanges the credentials: new connections use them, existing ones go on. On an error the old ones stay.
    pub fn replace(
        &self,
        credentials: &Credentials,
        public: Option<&PublicCertificate>,
    ) -> Result<(), TlsError> {
        self.switch(self.prepare(credentials, public)?);
        Ok(())
    }

    /// Reads credentials and checks that they fit together, for [`Self::switch`]: so that they can be kept on a disk in between.
    pub fn prepare(
        &self,
        credentials: &Credentials,
        public: Option<&PublicCertificate>,
    ) -> Result<Prepared, TlsError> {
        load(credentials, public, &self.members).map(Prepared)
    }

    /// Takes what was prepared into use: new connections use it, existing ones go on.
    pub fn switch(&self, prepared: Prepared) {
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(prepared.0);
    }

    /// Who this node is by its certificate.
    pub fn identity(&self) -> PeerIdentity {
        self.now().identity.clone()
    }

    /// The fingerprint of the certificate that the public side shows.
    pub fn fingerprint(&self) -> Fingerprint {
        self.now().fingerprint
    }

    /// Whether the node belongs to the cluster.
    pub fn is_member(&self, node: &NodeUuid) -> bool {
        self.members.is_member(node)
    }

    /// Whether a member has this address.
    pub(crate) fn is_members_address(&self, address: IpAddr) -> bool {
        self.members.has_address(address.to_canonical())
    }

    /// The configuration for a client that offers these ALPN ids, and whether it is a peer's.
    pub(crate) fn for_hello<'a>(
        &self,
        alpn: Option<impl Iterator<Item = &'a [u8]>>,
    ) -> (Arc<ServerConfig>, bool) {
        let loaded = self.now();
        match alpn.is_some_and(|mut ids| ids.any(|id| id == PEER_ALPN)) {
            true => (loaded.peer_server.clone(), true),
            false => (loaded.public.clone(), false),
        }
    }

    pub(crate) fn peer_client(&self) -> Arc<ClientConfig> {
        self.now().peer_client.clone()
    }

    fn now(&self) -> Arc<Loaded> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn chain(cert_pem: &str, key_pem: &str) -> Result<Chain, TlsError> {
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect();
    let bad = |what| move |e: rustls_pki_types::pem::Error| CaError::Pem { what, why: e.to_string() };
    let certs = certs.map_err(bad("certificate"))?;
    if certs.is_empty() {
        return Err(CaError::Pem { what: "certificate", why: "there is none".into() }.into());
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(bad("key"))?;
    Ok((certs, key))
}

fn load(
    credentials: &Credentials,
    public: Option<&PublicCertificate>,
    members: &Arc<dyn Membership>,
) -> Result<Loaded, TlsError> {
    let unusable = |what| move |source| TlsError::Unusable { what, source };
    let (certs, key) = chain(&credentials.cert_pem, &credentials.key_pem)?;
    let identity = PeerIdentity::of(&certs[0])?;
    let mut roots = RootCertStore::empty();
    roots.add(crate::ca::certificate(&credentials.ca_pem)?).map_err(unusable("cluster's CA certificate"))?;
    let roots = Arc::new(roots);
    trust::check_node(&certs[0], &roots).map_err(unusable("node's certificate"))?;

    let inner = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(|e| TlsError::Verifier(e.to_string()))?;
    let verifier = Arc::new(OnlyMembers { inner, members: members.clone() });
    let mut peer_server = server_builder()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certs.clone(), key.clone_key())
        .map_err(unusable("node's certificate"))?;
    peer_server.alpn_protocols = vec![PEER_ALPN.to_vec()];
    peer_server.session_storage = Arc::new(NoServerSessionStorage {});
    peer_server.send_tls13_tickets = 0;

    let mut peer_client = trust::client_builder()
        .map_err(unusable("cryptographic provider"))?
        .dangerous()
        .with_custom_certificate_verifier(trust::signed_by(roots))
        .with_client_auth_cert(certs.clone(), key.clone_key())
        .map_err(unusable("node's certificate"))?;
    peer_client.alpn_protocols = vec![PEER_ALPN.to_vec()];
    peer_client.resumption = Resumption::disabled();

    let (shown, shown_key) = match public {
        Some(own) => chain(&own.chain_pem, &own.key_pem)?,
        None => (certs, key),
    };
    let fingerprint = Fingerprint::of(&shown[0]);
    let mut public = server_builder()?
        .with_no_client_auth()
        .with_single_cert(shown, shown_key)
        .map_err(unusable("certificate of the public side"))?;
    public.alpn_protocols = vec![PUBLIC_ALPN.to_vec()];
    Ok(Loaded {
        public: Arc::new(public),
        peer_server: Arc::new(peer_server),
        peer_client: Arc::new(peer_client),
        identity,
        fingerprint,
    })
}

fn server_builder() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, TlsError> {
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Unusable { what: "cryptographic provider", source })
}

/// A client certificate must be the CA's *and* name a node that is a member now.
#[derive(Clone)]
struct OnlyMembers {
    inner: Arc<dyn ClientCertVerifier>,
    members: Arc<dyn Membership>,
}

impl fmt::Debug for OnlyMembers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnlyMembers")
    }
}

impl ClientCertVerifier for OnlyMembers {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified =
            self.inner.verify_client_cert(end_entity, intermediates, trust::moment_of(end_entity)?)?;
        let peer =
            PeerIdentity::of(end_entity).map_err(|_| CertificateError::ApplicationVerificationFailure)?;
        if self.members.is_member(&peer.uuid) { Ok(verified) } else { Err(CertificateError::Revoked.into()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
