//! What can go wrong with a call, and an answer that was read whole.

use crate::{Fingerprint, PeerIdentity};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use stead_model::NodeUuid;

/// An answer, read whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// The reason phrase: the server's own words where it sent some, else the status' usual ones.
    pub reason: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// What to show a user of a failure: the body's `message` if it is JSON with one, else the reason phrase.
    pub fn message(&self) -> String {
        let body: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        match body.as_ref().and_then(|b| b.get("message")).and_then(|m| m.as_str()) {
            Some(text) if !text.trim().is_empty() => text.trim().to_owned(),
            _ => self.reason.clone(),
        }
    }

    /// The body, read as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        // A call without a result may answer with no body at all.
        serde_json::from_slice(if self.body.is_empty() { b"null" } else { &self.body })
    }
}

/// A call that failed. `to` names the server as a user would.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection. Nothing was done there.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// Whom.
        to: String,
        /// Why.
        source: io::Error,
    },
    /// No TLS session. Nothing was done there.
    #[error("no TLS session with {to}: {source}")]
    Tls {
        /// With whom.
        to: String,
        /// Why.
        source: io::Error,
    },
    /// The server's certificate is not the pinned one. Nothing was sent.
    #[error(
        "{to} shows another certificate than expected: expected {expected}, seen {seen}; \
         if the server's certificate was changed on purpose, fetch its fingerprint again, else someone is in between"
    )]
    WrongFingerprint {
        /// Who.
        to: String,
        /// The pinned one.
        expected: Fingerprint,
        /// The one shown.
        seen: Fingerprint,
    },
    /// Another node of the cluster answers at that address. Nothing was sent.
    #[error("{to} is node '{}' ({}), not the node {expected}; its address has changed hands", seen.name, seen.uuid)]
    WrongPeer {
        /// Where.
        to: String,
        /// Who was expected.
        expected: NodeUuid,
        /// Who is there.
        seen: Box<PeerIdentity>,
    },
    /// The node has been removed from the cluster. Nothing was sent.
    #[error("node {0} is not a member of this cluster")]
    NotAMember(NodeUuid),
    /// It did not answer in time. It may have done what was asked.
    #[error("{to} did not answer within {} s", after.as_secs_f32())]
    Timeout {
        /// Who.
        to: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke. It may have done what was asked.
    #[error("the connection to {to} broke: {source}")]
    Broken {
        /// With whom.
        to: String,
        /// Why.
        source: hyper::Error,
    },
    /// It answered that it would not or could not.
    #[error("{}", .0.message())]
    Refused(Box<Answer>),
    /// What came back can't be understood, or what should be sent can't be put in words.
    #[error("{to}: {why}")]
    Protocol {
        /// Who.
        to: String,
        /// What is wrong.
        why: String,
    },
}

impl ClientError {
    /// Whether it is certain that the server has not seen the request.
    pub fn never_sent(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::Tls { .. }
                | Self::WrongFingerprint { .. }
                | Self::WrongPeer { .. }
                | Self::NotAMember(_)
        )
    }

    /// Whether the server says that this node's certificate is one of a node that was removed.
    pub fn is_outcast(&self) -> bool {
        use rustls::AlertDescription::CertificateRevoked;
        let first: &(dyn std::error::Error + 'static) = self;
        let mut errors = std::iter::successors(Some(first), |e| {
            // An error inside an I/O error is none of its sources.
            let inner = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| e.source())
        });
        errors.any(|e| matches!(e.downcast_ref(), Some(rustls::Error::AlertReceived(CertificateRevoked))))
    }

    /// Whether the server could not be reached or did not answer, as against having refused.
    pub fn unreachable(&self) -> bool {
        self.never_sent() || matches!(self, Self::Timeout { .. } | Self::Broken { .. })
    }
}
