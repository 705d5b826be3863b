//! How a client decides whether it speaks to the right server.
//!
//! A pinned certificate and a peer's identity are compared after the handshake and before the first byte of a
//! request: the handshake has proven that the server holds the certificate's key, and the comparison gives an
//! error that says what was seen.

use crate::ca::not_before;
use crate::tls::provider;
use crate::{CaError, Fingerprint};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use std::sync::Arc;
use std::time::Duration;

/// Where systems keep the certificates that they trust: the first that is there.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What makes a public TLS server trustworthy.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Its certificate has this fingerprint.
    Fingerprint(Fingerprint),
    /// Its certificate was issued by one of these and names the host.
    Ca(Vec<CertificateDer<'static>>),
    /// Anything will do. Only when the user has said so.
    Insecure,
}

impl Trust {
    /// Trusts the certificates in a PEM text.
    pub fn ca_pem(pem: &str) -> Result<Self, CaError> {
        let bad = |why: String| CaError::Pem { what: "CA file", why };
        let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let certs = certs.map_err(|e| bad(e.to_string()))?;
        if certs.is_empty() { Err(bad("it has no certificate".into())) } else { Ok(Self::Ca(certs)) }
    }

    /// Trusts what this system trusts, and the certificates in a PEM text. What of the system's can't be read is left out.
    pub fn of_system(pem: &str) -> Self {
        let mut scratch = RootCertStore::empty();
        let files = SYSTEM.iter().filter_map(|path| std::fs::read(path).ok()).take(1);
        let texts: Vec<Vec<u8>> = files.chain([pem.as_bytes().to_vec()]).collect();
        let certs = texts.iter().flat_map(|text| CertificateDer::pem_slice_iter(text).flatten());
        Self::Ca(certs.filter(|cert| scratch.add(cert.clone()).is_ok()).collect())
    }

    pub(crate) fn config(&self) -> Result<ClientConfig, rustls::Error> {
        let verifier: Arc<dyn ServerCertVerifier> = match self {
            Self::Fingerprint(_) | Self::Insecure => Arc::new(Verifier { roots: None }),
            Self::Ca(certs) => {
                let mut roots = RootCertStore::empty();
                for cert in certs {
                    roots.add(cert.clone())?;
                }
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
                    .build()
                    .map_err(|e| rustls::Error::General(e.to_string()))?
            }
        };
        let mut config =
            client_builder()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

pub(crate) fn client_builder()
-> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()
}

/// A moment at which a node's certificate is valid, whatever the clock says: what is asked between nodes is whether the CA
/// has signed, and whether the node is a member. A clock that is set wrong, or a certificate that nobody has renewed,
/// would only part nodes that belong together. Of a CA that is trusted the validity is not looked at.
pub(crate) fn moment_of(cert: &CertificateDer<'_>) -> Result<UnixTime, rustls::Error> {
    let seconds = not_before(cert).map_err(|_| CertificateError::BadEncoding)?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
}

/// Whether a node's certificate was issued by one of `roots`, whatever the clock says.
pub(crate) fn check_node(cert: &CertificateDer<'_>, roots: &RootCertStore) -> Result<(), rustls::Error> {
    check_signed(cert, roots, moment_of(cert)?)
}

/// Accepts what these CAs have issued, whatever its names and whatever the clock says.
pub(crate) fn signed_by(roots: Arc<RootCertStore>) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Verifier { roots: Some(roots) })
}

/// Whether a certificate was issued by one of `roots` and is valid at `now`.
pub(crate) fn check_signed(
    cert: &CertificateDer<'_>,
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let parsed = ParsedCertificate::try_from(cert)?;
    let algorithms = provider().signature_verification_algorithms;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, &[], now, algorithms.all)
}

/// Checks that the server has the key of its certificate and, with `roots`, that one of them has issued it.
#[derive(Debug)]
struct Verifier {
    roots: Option<Arc<RootCertStore>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            check_node(end_entity, roots)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
