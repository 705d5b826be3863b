//! How a client decides whether it speaks to the right server.
//!
//! A pinned certificate and a peer's identity are compared after the handshake and before the first byte of a
//! request: the handshake has proven that the server holds the certificate's key, and the comparison gives an
//! error that says what was seen.

use crate::ca::moment_of;
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

    pub(crate) fn config(&self) -> Result<ClientConfig, rustls::Error> {
        let verifier: Arc<dyn ServerCertVerifier> = match self {
            Self::Fingerprint(_) | Self::Insecure => Arc::new(Verifier { authority: None }),
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

/// The cluster's CA, as nodes ask it of each other.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    pub roots: Arc<RootCertStore>,
    ca: CertificateDer<'static>,
}

impl Authority {
    pub fn new(ca: CertificateDer<'static>) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        Ok(Self { roots: Arc::new(roots), ca })
    }

    /// When a certificate is to be verified: see [`moment_of`].
    pub fn moment(&self, cert: &CertificateDer<'_>) -> Result<UnixTime, rustls::Error> {
        moment_of(cert, &self.ca).map_err(|_| CertificateError::BadEncoding.into())
    }

    /// Whether it has issued a certificate.
    pub fn check(&self, cert: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        check_signed(cert, &self.roots, self.moment(cert)?)
    }
}

/// Accepts what this CA has issued, whatever its names and whatever the clock says.
pub(crate) fn signed_by(authority: Authority) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Verifier { authority: Some(authority) })
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

/// Checks that the server has the key of its certificate and, with an authority, that it has issued it.
#[derive(Debug)]
struct Verifier {
    authority: Option<Authority>,
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
        if let Some(authority) = &self.authority {
            authority.check(end_entity)?;
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
