//! What a certificate says, for people, and for who decides about making it anew.

use crate::ca::{CaError, Fingerprint, certificate, parse};
use crate::renewal::Validity;
use std::collections::BTreeSet;
use std::net::IpAddr;
use x509_parser::extensions::GeneralName;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::X509Name;

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Whose it is: `/O=Stead/CN=pve1`.
    pub subject: String,
    /// Who has signed it, likewise.
    pub issuer: String,
    /// When it is good.
    pub validity: Validity,
    /// All names that it is good for: host names, addresses, URIs.
    pub names: Vec<String>,
    /// The addresses among them.
    pub addresses: BTreeSet<IpAddr>,
    /// What kind of key: `id-ecPublicKey` or `rsaEncryption`; else the algorithm's number.
    pub key_kind: String,
    /// How long the key is, in bits.
    pub key_bits: usize,
    /// The SHA-256 of all of it.
    pub fingerprint: Fingerprint,
}

impl Facts {
    /// Reads the first certificate in a PEM text.
    ///
    /// # Errors
    /// If it is none.
    pub fn of(pem: &str) -> Result<Self, CaError> {
        let der = certificate(pem)?;
        let cert = parse(&der)?;
        let validity = cert.validity();
        let validity = Validity {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        };
        let unreadable = |e: &dyn std::fmt::Display| CaError::Pem { what: "certificate", why: e.to_string() };
        let names = cert.subject_alternative_name().map_err(|e| unreadable(&e))?;
        let names: Vec<&GeneralName<'_>> = names.iter().flat_map(|n| &n.value.general_names).collect();
        let key = cert.public_key();
        let bits = key.parsed().map(|parsed| match parsed {
            PublicKey::EC(point) => point.key_size(),
            PublicKey::RSA(rsa) => rsa.key_size(),
            _ => 0,
        });
        let algorithm = key.algorithm.algorithm.to_id_string();
        Ok(Self {
            subject: with_slashes(cert.subject()),
            issuer: with_slashes(cert.issuer()),
            validity,
            names: names.iter().filter_map(|n| shown(n)).collect(),
            addresses: names.iter().filter_map(|n| address(n)).collect(),
            key_kind: match algorithm.as_str() {
                "1.2.840.10045.2.1" => "id-ecPublicKey".to_owned(),
                "1.2.840.113549.1.1.1" => "rsaEncryption".to_owned(),
                _ => algorithm,
            },
            key_bits: bits.map_err(|e| unreadable(&e))?,
            fingerprint: Fingerprint::of(&der),
        })
    }
}

fn with_slashes(name: &X509Name<'_>) -> String {
    let short = |oid: &str| match oid {
        "2.5.4.3" => "CN".to_owned(),
        "2.5.4.10" => "O".to_owned(),
        "2.5.4.11" => "OU".to_owned(),
        other => other.to_owned(),
    };
    let parts = name.iter_attributes();
    parts.fold(String::new(), |text, part| {
        let kind = short(&part.attr_type().to_id_string());
        text + &format!("/{kind}={}", part.as_str().unwrap_or("?"))
    })
}

fn shown(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(text) | GeneralName::URI(text) => Some((*text).to_owned()),
        other => address(other).map(|ip| ip.to_string()),
    }
}

fn address(name: &GeneralName<'_>) -> Option<IpAddr> {
    let GeneralName::IPAddress(bytes) = name else { return None };
    match bytes.len() {
        4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
