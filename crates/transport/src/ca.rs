//! The cluster's certificate authority and what its certificates say.
//!
//! A node makes its own key and sends a signing request; the key never leaves it. Of the request only the public
//! key is taken: name, UUID and addresses are what the cluster knows about the node, not what it claims.
//! A certificate names its node by a URI `stead:node:UUID`, since names and addresses may be used again.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};
use stead_model::{IdError, NodeName, NodeUuid};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long a CA certificate is valid: 10 years.
pub const CA_VALIDITY: Duration = Duration::from_secs(3652 * 86_400);
/// How long a node's certificate is valid: 2 years.
pub const NODE_VALIDITY: Duration = Duration::from_secs(730 * 86_400);
/// A certificate is valid from this long before it was made, since clocks differ.
const BACKDATED: Duration = Duration::from_secs(86_400);
const NODE_URI: &str = "stead:node:";

/// A certificate, key or signing request that is not what it must be.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A text that is no such PEM block.
    #[error("the {what} is not valid PEM: {why}")]
    Pem {
        /// Which text.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// A certificate that can't be read or lacks what every node's certificate has.
    #[error("the certificate is not that of a node: {0}")]
    NotANode(String),
    /// A signing request that can't be honoured.
    #[error("the signing request is not valid: {0}; the joining node must make a new one")]
    Request(String),
    /// Key or certificate could not be made.
    #[error("cannot make the {what}: {source}")]
    Make {
        /// What.
        what: &'static str,
        /// Why.
        source: rcgen::Error,
    },
    /// The cluster's CA is no longer or not yet valid by this node's clock.
    #[error("the cluster's CA certificate cannot be used: {0}; check the clock of this node")]
    Unusable(String),
}

impl From<IdError> for CaError {
    fn from(e: IdError) -> Self {
        Self::NotANode(e.to_string())
    }
}

/// The SHA-256 of a certificate, printed as Proxmox VE does: upper-case hex with colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// That of a certificate.
    pub fn of(cert: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(cert).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 32 pairs of hex digits, separated by colons")]
pub struct BadFingerprint;

impl FromStr for Fingerprint {
    type Err = BadFingerprint;
    /// Upper or lower case, with or without colons.
    fn from_str(s: &str) -> Result<Self, BadFingerprint> {
        let digits: Vec<u8> = s.bytes().filter(|b| *b != b':' && !b.is_ascii_whitespace()).collect();
        let mut out = [0; 32];
        if digits.len() != 64 {
            return Err(BadFingerprint);
        }
        for (byte, pair) in out.iter_mut().zip(digits.chunks(2)) {
            let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => *byte = high * 16 + low,
                _ => return Err(BadFingerprint),
            }
        }
        Ok(Self(out))
    }
}

impl serde::Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Whose certificate it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The node's name when the certificate was made.
    pub name: NodeName,
    /// The node.
    pub uuid: NodeUuid,
}

impl PeerIdentity {
    /// Reads a node's certificate. Whether the CA has signed it is for TLS to check.
    pub fn of(cert: &CertificateDer<'_>) -> Result<Self, CaError> {
        let parsed = parse(cert)?;
        let name = parsed.subject().iter_common_name().next().and_then(|n| n.as_str().ok());
        let name = name.ok_or_else(|| CaError::NotANode("it has no common name".into()))?;
        let sans = parsed.subject_alternative_name().map_err(|e| CaError::NotANode(e.to_string()))?;
        let uris = sans.iter().flat_map(|s| &s.value.general_names).filter_map(|n| match n {
            GeneralName::URI(uri) => uri.strip_prefix(NODE_URI),
            _ => None,
        });
        match uris.collect::<Vec<_>>()[..] {
            [uuid] => Ok(Self { name: name.parse()?, uuid: uuid.parse()? }),
            _ => Err(CaError::NotANode(format!("it does not have exactly one name {NODE_URI}UUID"))),
        }
    }
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    match X509Certificate::from_der(cert) {
        Ok((_, parsed)) => Ok(parsed),
        Err(e) => Err(CaError::NotANode(e.to_string())),
    }
}

/// The first certificate in a PEM text.
pub fn certificate(pem: &str) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| CaError::Pem { what: "certificate", why: e.to_string() })
}

/// The moment a certificate ends, in seconds since 1970: a node asks for a new one well before.
pub fn not_after(cert: &CertificateDer<'_>) -> Result<i64, CaError> {
    Ok(parse(cert)?.validity().not_after.timestamp())
}

/// The moment a certificate begins, in seconds since 1970.
pub(crate) fn not_before(cert: &CertificateDer<'_>) -> Result<i64, CaError> {
    Ok(parse(cert)?.validity().not_before.timestamp())
}

/// The public key in a certificate, as its DER block.
pub(crate) fn public_key(cert: &CertificateDer<'_>) -> Result<Vec<u8>, CaError> {
    Ok(parse(cert)?.public_key().subject_public_key.data.to_vec())
}

/// A node's private key, made on the node and kept there.
pub struct NodeKey(KeyPair);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

impl NodeKey {
    /// A new key (ECDSA P-256).
    pub fn generate() -> Result<Self, CaError> {
        Ok(Self(KeyPair::generate().map_err(|source| CaError::Make { what: "key", source })?))
    }

    /// A key that was kept.
    pub fn from_pem(pem: &str) -> Result<Self, CaError> {
        let bad = |e: rcgen::Error| CaError::Pem { what: "node's key", why: e.to_string() };
        Ok(Self(KeyPair::from_pem(pem).map_err(bad)?))
    }

    /// For keeping. Secret: mode 0600.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A signing request, PEM. It proves that the sender has the key.
    pub fn signing_request(&self, name: &NodeName) -> Result<String, CaError> {
        let make = |source| CaError::Make { what: "signing request", source };
        let mut params = CertificateParams::new(vec![name.to_string()]).map_err(make)?;
        params.distinguished_name = common_name(name.as_str());
        params.serialize_request(&self.0).and_then(|r| r.pem()).map_err(make)
    }

    /// The public half, as it stands in a certificate.
    pub(crate) fn public(&self) -> &[u8] {
        self.0.public_key_raw()
    }
}

/// The cluster's CA: signs the nodes' certificates.
pub struct ClusterCa {
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa").field("cert", &self.cert_pem).finish_non_exhaustive()
    }
}

impl ClusterCa {
    /// A new CA for a cluster.
    pub fn create(cluster_name: &str, cluster_uuid: &str, now: SystemTime) -> Result<Self, CaError> {
        let make = |source| CaError::Make { what: "cluster's CA", source };
        let key = KeyPair::generate().map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("{cluster_name} cluster CA"));
        params.distinguished_name.push(DnType::OrganizationName, "Stead");
        params.distinguished_name.push(DnType::OrganizationalUnitName, cluster_uuid);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + CA_VALIDITY).into();
        let cert_pem = params.self_signed(&key).map_err(make)?.pem();
        Self::load(&cert_pem, &key.serialize_pem())
    }

    /// A CA that was kept: certificate and key, PEM.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let bad = |what| move |e: rcgen::Error| CaError::Pem { what, why: e.to_string() };
        let key = KeyPair::from_pem(key_pem).map_err(bad("CA's key"))?;
        if public_key(&certificate(cert_pem)?)? != key.public_key_raw() {
            return Err(CaError::Unusable("its key is not the certificate's".into()));
        }
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(bad("CA's certificate"))?;
        Ok(Self { cert_pem: cert_pem.to_owned(), key_pem: key_pem.to_owned(), issuer })
    }

    /// The CA's certificate, for all to know.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The CA's key. Secret: kept sealed.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs a node's certificate (PEM): valid as server and as client.
    ///
    /// `request` is what [`NodeKey::signing_request`] gave; `ips` are the addresses that clients use.
    /// It ends no later than the CA itself.
    pub fn sign(
        &self,
        request: &str,
        node: &PeerIdentity,
        ips: &[IpAddr],
        now: SystemTime,
    ) -> Result<String, CaError> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|e| CaError::Request(e.to_string()))?;
        let make = |source| CaError::Make { what: "node's certificate", source };
        let uri = format!("{NODE_URI}{}", node.uuid);
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(node.name.as_str());
        params.subject_alt_names = vec![
            SanType::DnsName(node.name.as_str().try_into().map_err(make)?),
            SanType::URI(uri.as_str().try_into().map_err(make)?),
        ];
        params.subject_alt_names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATED).into();
        params.not_after = self.last_moment(now)?.into();
        Ok(params.signed_by(&request.public_key, &self.issuer).map_err(make)?.pem())
    }

    fn last_moment(&self, now: SystemTime) -> Result<SystemTime, CaError> {
        let ca_ends = u64::try_from(not_after(&certificate(&self.cert_pem)?)?)
            .map_err(|_| CaError::Unusable("it ended before 1970".into()))?;
        let ca_ends = SystemTime::UNIX_EPOCH + Duration::from_secs(ca_ends);
        if ca_ends <= now {
            return Err(CaError::Unusable("it has expired".into()));
        }
        Ok(ca_ends.min(now + NODE_VALIDITY))
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "7a3c1f52-8f0e-4d9b-9d5f-0d4f1c2b3a49";

    fn node() -> PeerIdentity {
        PeerIdentity { name: "pve1".parse().unwrap(), uuid: UUID.parse().unwrap() }
    }

    #[test]
    fn a_certificate_says_whose_it_is_whatever_the_request_claims() {
        let now = SystemTime::now();
        let ca = ClusterCa::create("prod", UUID, now).unwrap();
        let key = NodeKey::generate().unwrap();
        let request = key.signing_request(&"liar".parse().unwrap()).unwrap();
        let pem = ca.sign(&request, &node(), &["127.0.0.1".parse().unwrap()], now).unwrap();
        let cert = certificate(&pem).unwrap();
        assert_eq!(PeerIdentity::of(&cert).unwrap(), node());
        assert_eq!(public_key(&cert).unwrap(), key.public());
        let days = (not_after(&cert).unwrap()
            - i64::try_from(now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap())
            / 86_400;
        assert!((729..=730).contains(&days), "{days}");
    }

    #[test]
    fn a_kept_ca_signs_as_before_and_needs_its_own_key() {
        let now = SystemTime::now();
        let ca = ClusterCa::create("prod", UUID, now).unwrap();
        let again = ClusterCa::load(ca.cert_pem(), ca.key_pem()).unwrap();
        assert_eq!(again.cert_pem(), ca.cert_pem());
        let other = ClusterCa::create("prod", UUID, now).unwrap();
        assert!(matches!(ClusterCa::load(ca.cert_pem(), other.key_pem()), Err(CaError::Unusable(_))));
    }

    #[test]
    fn no_certificate_outlives_its_ca() {
        let now = SystemTime::now();
        let ca = ClusterCa::create("prod", UUID, now).unwrap();
        let request = NodeKey::generate().unwrap().signing_request(&"n".parse().unwrap()).unwrap();
        let late = now + CA_VALIDITY - Duration::from_secs(86_400 * 30);
        let cert = certificate(&ca.sign(&request, &node(), &[], late).unwrap()).unwrap();
        let ca_cert = certificate(ca.cert_pem()).unwrap();
        assert_eq!(not_after(&cert).unwrap(), not_after(&ca_cert).unwrap());
        let after = now + CA_VALIDITY + Duration::from_secs(1);
        assert!(matches!(ca.sign(&request, &node(), &[], after), Err(CaError::Unusable(_))));
    }

    #[test]
    fn a_request_that_was_changed_is_refused() {
        let ca = ClusterCa::create("prod", UUID, SystemTime::now()).unwrap();
        let request = NodeKey::generate().unwrap().signing_request(&"n".parse().unwrap()).unwrap();
        let mut lines: Vec<&str> = request.lines().collect();
        lines.swap(1, 2);
        let broken = lines.join("\n");
        assert!(matches!(ca.sign(&broken, &node(), &[], SystemTime::now()), Err(CaError::Request(_))));
    }

    #[test]
    fn the_ca_certificate_itself_names_no_node() {
        let ca = ClusterCa::create("prod", UUID, SystemTime::now()).unwrap();
        assert!(PeerIdentity::of(&certificate(ca.cert_pem()).unwrap()).is_err());
    }

    #[test]
    fn fingerprints_read_as_they_print() {
        let print = Fingerprint(std::array::from_fn(|i| u8::try_from(i * 7).unwrap()));
        let text = print.to_string();
        assert!(text.starts_with("00:07:0E:15"), "{text}");
        assert_eq!(text.parse(), Ok(print));
        assert_eq!(text.to_lowercase().replace(':', "").parse(), Ok(print));
        for bad in ["", "00:07", &text[1..], &text.replace('0', "G")] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(BadFingerprint), "{bad}");
        }
    }
}
