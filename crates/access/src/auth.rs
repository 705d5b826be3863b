//! The one that a request is made by.

use std::fmt;
use std::str::FromStr;
use stead_model::{IdError, TokenId, UserId};

/// A user, or a token of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuthId {
    /// `user@realm`.
    User(UserId),
    /// `user@realm!token`.
    Token(TokenId),
}

impl AuthId {
    /// The user; of a token, its owner.
    pub fn user(&self) -> &UserId {
        match self {
            Self::User(u) => u,
            Self::Token(t) => &t.user,
        }
    }

    /// Whether this is root@pam itself, not one of its tokens: some things are for it alone.
    pub fn is_root(&self) -> bool {
        matches!(self, Self::User(u) if u.is_root())
    }
}

impl FromStr for AuthId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        if s.contains('!') { Ok(Self::Token(s.parse()?)) } else { Ok(Self::User(s.parse()?)) }
    }
}

impl fmt::Display for AuthId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(u) => write!(f, "{u}"),
            Self::Token(t) => write!(f, "{t}"),
        }
    }
}
