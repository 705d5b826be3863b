//! The cluster's certificate authority and what its certificates say.
//!
//! A node makes its own key and sends a signing request; the key never leaves it. Of the request only the public
//! key is taken: name, UUID and addresses are what the cluster knows about the node, not what it claims.
//! A certificate names its node by a URI `stead:node:UUID`, since names and addresses may be used again.
//!
//! The CA's certificate is made anew for the same key and under the same name ([`ClusterCa::renewed`]): what it has signed
//! stays good by the new one, and what it signs from then on is good by the old one until that ends. So there is no moment
//! at which anybody must know two CAs.

use crate::renewal::{Due, Validity, renewal_due};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
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

pub(crate) fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
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

/// The moment a certificate ends, in seconds since 1970: a node makes a new one well before.
pub fn not_after(cert: &CertificateDer<'_>) -> Result<i64, CaError> {
    Ok(parse(cert)?.validity().not_after.timestamp())
}

/// Whether two certificates are of the same name and for the same key, as those of a CA are that was made anew.
///
/// # Errors
/// If one of them can't be read.
pub fn same_subject_and_key(one: &CertificateDer<'_>, other: &CertificateDer<'_>) -> Result<bool, CaError> {
    let (a, b) = (parse(one)?, parse(other)?);
    Ok(a.subject().as_raw() == b.subject().as_raw() && a.public_key().raw == b.public_key().raw)
}

/// A moment as certificates have it.
fn seconds(at: SystemTime) -> i64 {
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
    }
}

/// The same the other way.
fn moment(seconds: i64) -> SystemTime {
    let away = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - away } else { SystemTime::UNIX_EPOCH + away }
}

/// A number that no certificate had before. Left to itself, one would follow from the key: two of one CA would have the same,
/// which browsers refuse.
fn serial() -> Result<SerialNumber, CaError> {
    let mut random = [0; 16];
    let filled = crate::tls::provider().secure_random.fill(&mut random);
    filled.map_err(|_| CaError::Request("there are no random bytes for its number".into()))?;
    // Positive, and never zero.
    random[0] = random[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&random))
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
        let mut name = common_name(&format!("{cluster_name} cluster CA"));
        name.push(DnType::OrganizationName, "Stead");
        name.push(DnType::OrganizationalUnitName, cluster_uuid);
        let cert_pem = ca_params(name, seconds(now - BACKDATED), seconds(now + CA_VALIDITY))?;
        let cert_pem = cert_pem.self_signed(&key).map_err(make)?.pem();
        Self::load(&cert_pem, &key.serialize_pem())
    }

    /// Whether the CA's certificate is to be made anew.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn due(&self, now: SystemTime) -> Result<Option<Due>, CaError> {
        Ok(renewal_due(seconds(now), self.validity()?, CA_VALIDITY))
    }

    /// The same CA, good for ten years from now: a new certificate for its key, under its name. It begins no later than the old
    /// one and ends no earlier, so that whatever was good by that is good by this.
    ///
    /// # Errors
    /// If its certificate can't be read, or has a name that a CA made here never has.
    pub fn renewed(&self, now: SystemTime) -> Result<Self, CaError> {
        let make = |source| CaError::Make { what: "cluster's CA", source };
        let (old, key) = (certificate(&self.cert_pem)?, KeyPair::from_pem(&self.key_pem).map_err(make)?);
        let mut name = DistinguishedName::new();
        for part in parse(&old)?.subject().iter_attributes() {
            let kind = match part.attr_type().to_id_string().as_str() {
                "2.5.4.3" => DnType::CommonName,
                "2.5.4.10" => DnType::OrganizationName,
                "2.5.4.11" => DnType::OrganizationalUnitName,
                other => return Err(CaError::Unusable(format!("its name has a part {other}"))),
            };
            let text = part.as_str().map_err(|e| CaError::Unusable(e.to_string()))?;
            name.push(kind, text);
        }
        let was = self.validity()?;
        // A clock that begins anew in 1970 puts nothing before that: some can't read it.
        let begins = was.not_before.min(seconds(now - BACKDATED)).max(0);
        let ends = was.not_after.max(seconds(now + CA_VALIDITY));
        let cert_pem = ca_params(name, begins, ends)?.self_signed(&key).map_err(make)?.pem();
        if !same_subject_and_key(&old, &certificate(&cert_pem)?)? {
            return Err(CaError::Unusable("its name can't be written as it was".into()));
        }
        Self::load(&cert_pem, &self.key_pem)
    }

    /// When its certificate is good.
    fn validity(&self) -> Result<Validity, CaError> {
        let cert = certificate(&self.cert_pem)?;
        Ok(Validity { not_before: not_before(&cert)?, not_after: not_after(&cert)? })
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

    /// Signs a node's certificate (PEM): valid as server and as client, for two years from now.
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
        let ca_ends = self.validity()?.not_after;
        if ca_ends <= seconds(now) {
            return Err(CaError::Unusable("it has expired".into()));
        }
        let (begins, ends) = (now - BACKDATED, now + NODE_VALIDITY);
        let validity = Validity { not_before: seconds(begins).max(0), not_after: seconds(ends).min(ca_ends) };
        self.sign_for(request, node, ips, validity)
    }

    /// The same, good for as long as is said: as another one was, whose time is not to change.
    pub fn sign_for(
        &self,
        request: &str,
        node: &PeerIdentity,
        ips: &[IpAddr],
        validity: Validity,
    ) -> Result<String, CaError> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|e| CaError::Request(e.to_string()))?;
        let make = |source| CaError::Make { what: "node's certificate", source };
        let uri = format!("{NODE_URI}{}", node.uuid);
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial()?);
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
        params.not_before = moment(validity.not_before).into();
        params.not_after = moment(validity.not_after).into();
        Ok(params.signed_by(&request.public_key, &self.issuer).map_err(make)?.pem())
    }
}

/// What a CA's certificate says.
fn ca_params(name: DistinguishedName, begins: i64, ends: i64) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial()?);
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = moment(begins).into();
    params.not_after = moment(ends).into();
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Facts;

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

    /// Whether a certificate is good by a CA's, by that moment.
    fn good(cert: &str, ca: &str, at: SystemTime) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate(ca).unwrap()).unwrap();
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let at = rustls::pki_types::UnixTime::since_unix_epoch(since);
        crate::trust::check_signed(&certificate(cert).unwrap(), &roots, at).is_ok()
    }

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    #[test]
    fn a_ca_that_was_made_anew_stands_for_what_the_old_one_has_signed_and_the_other_way_round() {
        let begin = SystemTime::now();
        let old = ClusterCa::create("prod", UUID, begin).unwrap();
        assert_eq!(old.due(begin).unwrap(), None);
        assert_eq!(old.due(begin + YEAR * 6).unwrap(), None);
        let late = begin + YEAR * 7;
        assert_eq!(old.due(late).unwrap(), Some(Due::EndsSoon));
        let new = old.renewed(late).unwrap();
        assert_eq!(new.due(late).unwrap(), None);
        assert_eq!(new.due(late + YEAR * 6).unwrap(), None);
        let request = NodeKey::generate().unwrap().signing_request(&"n".parse().unwrap()).unwrap();
        let signed = [&old, &new].map(|ca| ca.sign(&request, &node(), &[], late).unwrap());
        for (cert, ca) in [(0, &old), (0, &new), (1, &old), (1, &new)] {
            assert!(good(&signed[cert], ca.cert_pem(), late), "{cert}");
        }
        let another = ClusterCa::create("prod", UUID, begin).unwrap();
        assert!(!good(&signed[1], another.cert_pem(), late));
        // Browsers refuse two certificates of one issuer and number.
        let number = |pem: &str| parse(&certificate(pem).unwrap()).unwrap().raw_serial().to_vec();
        assert_ne!(number(old.cert_pem()), number(new.cert_pem()));
        assert_ne!(number(&signed[0]), number(&ca_signs_again(&old, &request, late)));
    }

    fn ca_signs_again(ca: &ClusterCa, request: &str, now: SystemTime) -> String {
        ca.sign(request, &node(), &[], now).unwrap()
    }

    #[test]
    fn a_ca_that_has_ended_can_be_made_anew_and_a_wrong_clock_takes_nothing_from_it() {
        let begin = SystemTime::now();
        let ca = ClusterCa::create("prod", UUID, begin).unwrap();
        let after = begin + YEAR * 12;
        assert_eq!(ca.due(after).unwrap(), Some(Due::Ended));
        let ca = ca.renewed(after).unwrap();
        // The clock was wrong: what is made by the right one is good all the same.
        assert_eq!(ca.due(begin).unwrap(), None);
        let before = begin - YEAR * 20;
        assert_eq!(ca.due(before).unwrap(), Some(Due::NotBegun));
        let ca = ca.renewed(before).unwrap();
        for now in [before, begin, after, after + YEAR * 6] {
            assert_eq!(ca.due(now).unwrap(), None);
        }
        let request = NodeKey::generate().unwrap().signing_request(&"n".parse().unwrap()).unwrap();
        assert!(good(&ca.sign(&request, &node(), &[], begin).unwrap(), ca.cert_pem(), begin));
    }

    #[test]
    fn names_can_change_while_the_time_stays() {
        let now = SystemTime::now();
        let ca = ClusterCa::create("prod", UUID, now).unwrap();
        let request = NodeKey::generate().unwrap().signing_request(&"n".parse().unwrap()).unwrap();
        let old =
            Facts::of(&ca.sign(&request, &node(), &["192.0.2.1".parse().unwrap()], now).unwrap()).unwrap();
        let ips = ["192.0.2.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        let new = Facts::of(&ca.sign_for(&request, &node(), &ips, old.validity).unwrap()).unwrap();
        assert_eq!(new.validity, old.validity);
        assert_eq!(new.addresses, ips.into());
        assert_eq!(new.names, ["pve1", &format!("stead:node:{UUID}"), "192.0.2.9", "2001:db8::9"]);
        assert_eq!(
            (new.subject.as_str(), new.key_kind.as_str(), new.key_bits),
            ("/CN=pve1", "id-ecPublicKey", 256)
        );
        assert_eq!(new.issuer, format!("/CN=prod cluster CA/O=Stead/OU={UUID}"));
        assert_ne!(new.fingerprint, old.fingerprint);
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
