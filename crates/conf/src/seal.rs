//! Secrets in the tree are sealed: encrypted under the cluster's key and bound to their path, so that neither the
//! store on disk, nor a snapshot, nor the history shows them, and none can be put in another's place.
//!
//! A sealed value: `sealed1` `\n`, 4 bytes that name the key, 12 bytes of nonce, AES-256-GCM ciphertext and tag.
//! The path is the associated data.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::fmt;

const MAGIC: &[u8] = b"sealed1\n";
const KEY_NAME: usize = 4;
const OVERHEAD: usize = MAGIC.len() + KEY_NAME + NONCE_LEN;

/// The cluster's key: 32 random bytes that every member holds outside the tree. It seals secrets, and frames of
/// another cluster are told by it.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey([u8; 32]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

impl From<[u8; 32]> for ClusterKey {
    fn from(key: [u8; 32]) -> Self {
        Self(key)
    }
}

impl ClusterKey {
    /// A new key.
    pub fn generate() -> Result<Self, SealError> {
        let mut key = [0; 32];
        rand::fill(&mut key).map_err(|_| SealError::Random)?;
        Ok(Self(key))
    }

    /// The key's bytes, to be stored where only the daemon reads or handed to a node that joins.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// A number that differs between clusters and tells nothing of the key.
    pub fn tag(&self) -> u64 {
        let digest = self.digest(b"stead frame tag");
        u64::from_le_bytes([
            digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
        ])
    }

    fn name(&self) -> [u8; KEY_NAME] {
        let digest = self.digest(b"stead key name");
        [digest[0], digest[1], digest[2], digest[3]]
    }

    fn digest(&self, purpose: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(purpose).chain_update(self.0).finalize().into()
    }

    fn aead(&self, path: &str) -> Result<LessSafeKey, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, &self.0);
        Ok(LessSafeKey::new(key.map_err(|_| SealError::Damaged { path: path.to_owned() })?))
    }

    /// Seals a value for a path.
    pub fn seal(&self, path: &str, plain: &[u8]) -> Result<Bytes, SealError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut body = plain.to_vec();
        self.aead(path)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(path.as_bytes()),
                &mut body,
            )
            .map_err(|_| SealError::Random)?;
        let mut sealed = Vec::with_capacity(OVERHEAD + body.len());
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(&self.name());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&body);
        Ok(sealed.into())
    }

    /// Opens a value that was sealed for a path.
    pub fn unseal(&self, path: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let damaged = || SealError::Damaged { path: path.to_owned() };
        let body = sealed.strip_prefix(MAGIC).ok_or_else(damaged)?;
        let (name, body) = body.split_first_chunk::<KEY_NAME>().ok_or_else(damaged)?;
        if *name != self.name() {
            return Err(SealError::OtherKey { path: path.to_owned() });
        }
        let (nonce, body) = body.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let mut plain = body.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = self
            .aead(path)?
            .open_in_place(nonce, Aad::from(path.as_bytes()), &mut plain)
            .map_err(|_| damaged())?
            .len();
        plain.truncate(len);
        Ok(plain)
    }
}

/// Whether a value has the form of a sealed one.
pub fn is_sealed(data: &[u8]) -> bool {
    data.starts_with(MAGIC) && data.len() >= OVERHEAD
}

/// Why a secret could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The system gave no random bytes.
    #[error("no random bytes could be had from the system to seal a secret")]
    Random,
    /// Sealed under another key.
    #[error(
        "the secret at '{path}' is sealed under another cluster key than this node holds; join the node again"
    )]
    OtherKey {
        /// Its path.
        path: String,
    },
    /// Not what was sealed for this path.
    #[error("the secret at '{path}' is damaged, or was sealed for another path")]
    Damaged {
        /// Its path.
        path: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_only_for_its_path_under_its_key() {
        let key = ClusterKey::from([7; 32]);
        let sealed = key.seal("priv/a", b"secret").unwrap();
        assert!(is_sealed(&sealed));
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(key.unseal("priv/a", &sealed).unwrap(), b"secret");
        assert_eq!(key.unseal("priv/b", &sealed), Err(SealError::Damaged { path: "priv/b".into() }));
        let other = ClusterKey::from([8; 32]);
        assert_eq!(other.unseal("priv/a", &sealed), Err(SealError::OtherKey { path: "priv/a".into() }));
        assert_ne!(key.seal("priv/a", b"secret").unwrap(), sealed, "every nonce is new");
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let key = ClusterKey::from([7; 32]);
        let sealed = key.seal("priv/a", b"secret").unwrap();
        for at in 0..sealed.len() {
            let mut bad = sealed.to_vec();
            bad[at] ^= 1;
            assert!(key.unseal("priv/a", &bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_key_does_not_show() {
        assert_eq!(format!("{:?}", ClusterKey::from([7; 32])), "ClusterKey(..)");
    }
}
