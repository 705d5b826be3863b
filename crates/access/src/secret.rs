//! Passwords and tokens' secrets. Only hashes are kept.
//!
//! A password is a person's choice, so its hash is slow (Argon2id). A token's secret is random with 122
//! bits, so a plain SHA-256 of it can't be searched, and checking it costs every request nothing.

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::OnceLock;
use stead_model::{TokenId, UserId};

/// Somebody has not shown who they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Wrong password, unknown user, disabled: which one is not said.
    #[error("authentication failure")]
    Failure,
    /// There were too many wrong passwords of late; this one was not checked.
    #[error("authentication failure: too many wrong passwords, try again in {seconds} s")]
    TooMany {
        /// When to try again.
        seconds: u64,
    },
    /// The realm cannot be asked.
    #[error("authentication failure: {0}")]
    Unavailable(String),
    /// A store of hashes is not readable.
    #[error("line {line} of {file}: {why}")]
    Store {
        /// Which store.
        file: &'static str,
        /// Counted from one.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// A password that can't be taken.
    #[error("{0}")]
    Unfit(&'static str),
}

/// The shortest password that can be set.
pub const MIN_PASSWORD: usize = 8;

/// Hashes a password; `salt` is random. Slow by intention: keep it off the async threads.
pub fn hash_password(password: &str, salt: &[u8; 16]) -> Result<String, AuthError> {
    match Argon2::default().hash_password_with_salt(password.as_bytes(), salt) {
        Ok(h) => Ok(h.to_string()),
        Err(_) => Err(AuthError::Unfit("this password cannot be hashed")),
    }
}

/// Hashes a password as the C library's `crypt` does (SHA-512, `$6$`), for systems other than this one; `salt` is random.
/// Takes milliseconds: keep it off the async threads.
pub fn crypt(password: &str, salt: &[u8; 12]) -> Result<String, AuthError> {
    match sha_crypt::ShaCrypt::SHA512.hash_password_with_salt(password.as_bytes(), salt) {
        Ok(hash) => Ok(hash.to_string()),
        Err(_) => Err(AuthError::Unfit("this password cannot be hashed")),
    }
}

/// Whether a hash of [`crypt`]'s kind, `$5$` or `$6$`, is one of this password. Slow as that.
pub fn is_crypt_of(password: &str, hash: &str) -> bool {
    sha_crypt::ShaCrypt::SHA512.verify_password(password.as_bytes(), hash).is_ok()
}

/// Checks a password against its hash. Slow by intention.
pub fn verify_password(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|h| Argon2::default().verify_password(password.as_bytes(), &h).is_ok())
}

/// Where users of a kind prove who they are.
pub trait Realm: Send + Sync {
    /// Whether `password` is `user`'s. May block for long.
    fn authenticate(&self, user: &UserId, password: &str) -> Result<(), AuthError>;
}

/// The hashes of passwords: a line `user@realm:HASH:` each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShadowStore(BTreeMap<String, String>);

impl ShadowStore {
    /// Reads the store.
    pub fn parse(text: &str) -> Result<Self, AuthError> {
        let wrong = |line, why| AuthError::Store { file: "shadow.cfg", line, why };
        let mut all = BTreeMap::new();
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let (user, rest) =
                line.split_once(':').ok_or_else(|| wrong(i + 1, "expected user@realm:hash:"))?;
            let hash = rest.strip_suffix(':').unwrap_or(rest);
            if user.parse::<UserId>().is_err() {
                return Err(wrong(i + 1, "not a user ID"));
            }
            all.insert(user.to_owned(), hash.to_owned());
        }
        Ok(Self(all))
    }

    /// The text to keep.
    pub fn to_text(&self) -> String {
        self.0.iter().fold(String::new(), |mut t, (user, hash)| {
            // Writing to a string cannot fail.
            let _ = writeln!(t, "{user}:{hash}:");
            t
        })
    }

    /// Sets a user's password; `salt` is random.
    pub fn set(&mut self, user: &UserId, password: &str, salt: &[u8; 16]) -> Result<(), AuthError> {
        if password.chars().count() < MIN_PASSWORD {
            return Err(AuthError::Unfit("a password must have at least 8 characters"));
        }
        self.0.insert(user.to_string(), hash_password(password, salt)?);
        Ok(())
    }

    /// Forgets a user.
    pub fn remove(&mut self, user: &UserId) {
        self.0.remove(user.as_str());
    }

    /// Whether the user has a password.
    pub fn has(&self, user: &UserId) -> bool {
        self.0.contains_key(user.as_str())
    }
}

/// Which password each user has now, as nobody can use it: it is another one after each change, even to the same
/// password. What was given for a password is bound to it, and ends with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps(BTreeMap<String, String>);

impl From<&ShadowStore> for Stamps {
    fn from(shadow: &ShadowStore) -> Self {
        // The hash has a salt of its own; what is signed must not be the hash itself.
        Self(shadow.0.iter().map(|(user, hash)| (user.clone(), sha256(hash))).collect())
    }
}

impl Stamps {
    /// A user's; empty without a password.
    pub fn of(&self, user: &str) -> &str {
        self.0.get(user).map_or("", String::as_str)
    }
}

/// The realm of Stead's own store. Realm `pve`, and root@pam where the system's PAM is not to be asked.
#[derive(Debug, Clone, Default)]
pub struct Builtin(pub ShadowStore);

impl Realm for Builtin {
    fn authenticate(&self, user: &UserId, password: &str) -> Result<(), AuthError> {
        static NOBODY: OnceLock<String> = OnceLock::new();
        match self.0.0.get(user.as_str()) {
            Some(hash) if verify_password(password, hash) => Ok(()),
            Some(_) => Err(AuthError::Failure),
            None => {
                // As slow as for a known user, so that the time tells nothing.
                let hash = NOBODY.get_or_init(|| hash_password("nobody", &[0; 16]).unwrap_or_default());
                verify_password(password, hash);
                Err(AuthError::Failure)
            }
        }
    }
}

/// The hashes of tokens' secrets: a line `user@realm!name sha256:HEX` each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenStore(BTreeMap<String, String>);

fn sha256(text: &str) -> String {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    hash.as_ref().iter().fold("sha256:".to_owned(), |mut t, b| {
        // Writing to a string cannot fail.
        let _ = write!(t, "{b:02x}");
        t
    })
}

impl TokenStore {
    /// Reads the store.
    pub fn parse(text: &str) -> Result<Self, AuthError> {
        let wrong = |line, why| AuthError::Store { file: "token.cfg", line, why };
        let mut all = BTreeMap::new();
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let (id, hash) =
                line.split_once(' ').ok_or_else(|| wrong(i + 1, "expected user@realm!name hash"))?;
            if id.parse::<TokenId>().is_err() {
                return Err(wrong(i + 1, "not a token ID"));
            }
            all.insert(id.to_owned(), hash.trim().to_owned());
        }
        Ok(Self(all))
    }

    /// The text to keep.
    pub fn to_text(&self) -> String {
        self.0.iter().fold(String::new(), |mut t, (id, hash)| {
            // Writing to a string cannot fail.
            let _ = writeln!(t, "{id} {hash}");
            t
        })
    }

    /// Makes a secret of random bytes, keeps its hash, and returns it: it is shown this once.
    pub fn generate(&mut self, id: &TokenId, random: [u8; 16]) -> String {
        let secret = uuid_v4(random);
        self.0.insert(id.to_string(), sha256(&secret));
        secret
    }

    /// Forgets a token.
    pub fn remove(&mut self, id: &TokenId) {
        self.0.remove(&id.to_string());
    }

    /// Whether `secret` is the token's. In constant time.
    pub fn verify(&self, id: &TokenId, secret: &str) -> bool {
        let given = sha256(secret);
        self.0
            .get(&id.to_string())
            .is_some_and(|kept| verify_slices_are_equal(kept.as_bytes(), given.as_bytes()).is_ok())
    }
}

/// A random UUID in its text form.
fn uuid_v4(mut b: [u8; 16]) -> String {
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (i, byte) in b.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
