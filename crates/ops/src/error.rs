//! What a use case answers when it cannot do what was asked.

use stead_conf::{ConfError, TxnError};
use stead_driver::fence::FenceError;
use stead_driver::guest::GuestError;
use stead_driver::storage::StorageError;
use stead_model::NodeName;

/// A failed use case. The text is for the user: what was attempted, on what, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// A parameter's value cannot be taken (HTTP 400, with the parameter named).
    #[error("{parameter}: {why}")]
    Invalid {
        /// The parameter.
        parameter: String,
        /// What is wrong with it.
        why: String,
    },
    /// The actor lacks a privilege (HTTP 403).
    #[error("Permission check failed ({path}, {privilege})")]
    Forbidden {
        /// On which path.
        path: String,
        /// Which privilege.
        privilege: String,
    },
    /// It failed (HTTP 500).
    #[error("{0}")]
    Failed(String),
    /// There is no majority (HTTP 503).
    #[error("{0}")]
    NoQuorum(String),
    /// Nobody could tell in time whether the change was recorded (HTTP 500): nothing may be undone on that ground.
    #[error("{0}")]
    Undecided(String),
    /// Another node, which must carry it out, cannot be reached (HTTP 595).
    #[error("node '{node}' cannot be reached: {why}")]
    Unreachable {
        /// Which.
        node: NodeName,
        /// Why.
        why: String,
    },
}

impl OpsError {
    /// A plain failure with a text.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    /// A refused parameter.
    pub fn invalid(parameter: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { parameter: parameter.into(), why: why.into() }
    }
}

impl From<GuestError> for OpsError {
    fn from(e: GuestError) -> Self {
        match e {
            GuestError::Config { key, why } => Self::Invalid { parameter: key, why },
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<StorageError> for OpsError {
    fn from(e: StorageError) -> Self {
        match e {
            StorageError::Invalid { parameter, why } => {
                Self::Invalid { parameter: parameter.to_owned(), why }
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<FenceError> for OpsError {
    fn from(e: FenceError) -> Self {
        Self::Failed(e.to_string())
    }
}

impl From<TxnError> for OpsError {
    fn from(e: TxnError) -> Self {
        match e {
            e @ TxnError::NoQuorum { .. } => Self::NoQuorum(e.to_string()),
            e @ TxnError::Refused(_) => Self::Failed(e.to_string()),
            e @ (TxnError::Unknown { .. } | TxnError::Stopped { .. }) => Self::Undecided(e.to_string()),
        }
    }
}

impl From<ConfError> for OpsError {
    fn from(e: ConfError) -> Self {
        match e {
            e @ ConfError::NoQuorum { .. } => Self::NoQuorum(e.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}
