//! Tickets: signed texts that any node with the cluster's key can check without writing anything.
//!
//! | text | says | good for |
//! |---|---|---|
//! | `PVE:user@realm:HEXTIME::SIG` | who it is | two hours, as long as the password is the same; as password too, to renew |
//! | `HEXTIME:SIG` | that a changing request was meant (CSRF) | as long as the ticket |
//! | `PVEVNC:HEXTIME:NONCE::SIG` | that its holder may open one console, once | 40 seconds |
//!
//! SIG is HMAC-SHA-256 in base64, over the kind and all that the text says or is bound to. A ticket is bound to the
//! password that its user has: who has stolen one could renew it for ever, so a new password ends it. It is bound to the
//! password and not to the time of its change, since nodes' clocks differ.

use crate::secret::Stamps;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::HashMap;
use stead_model::UserId;

/// How long a ticket is good, in seconds.
pub const LIFETIME: u64 = 2 * 3600;
/// How long a console's ticket is good, in seconds.
pub const CONSOLE_LIFETIME: u64 = 40;
/// How far another node's clock may be ahead, in seconds.
pub const SKEW: u64 = 300;
/// A key's length in bytes.
pub const KEY_LEN: usize = 32;

/// A ticket that is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not of the form, or the signature is wrong.
    #[error("invalid PVE ticket")]
    Invalid,
    /// It was good.
    #[error("ticket expired")]
    Expired,
}

/// The cluster's key for tickets.
#[derive(Clone)]
pub struct Keyring(hmac::Key);

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyring")
    }
}

impl Keyring {
    /// A key of random bytes.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Each part is preceded by its length, so that no two lists of parts are alike.
    fn message(parts: &[&str]) -> Vec<u8> {
        let mut m = vec![];
        for p in parts {
            m.extend_from_slice(&(p.len() as u64).to_be_bytes());
            m.extend_from_slice(p.as_bytes());
        }
        m
    }

    fn sign(&self, parts: &[&str]) -> String {
        STANDARD.encode(hmac::sign(&self.0, &Self::message(parts)))
    }

    /// In constant time.
    fn verify(&self, parts: &[&str], sig: &str) -> Result<(), TicketError> {
        let sig = STANDARD.decode(sig).map_err(|_| TicketError::Invalid)?;
        hmac::verify(&self.0, &Self::message(parts), &sig).map_err(|_| TicketError::Invalid)
    }

    fn fresh(time: &str, now: u64, lifetime: u64) -> Result<u64, TicketError> {
        let at = u64::from_str_radix(time, 16).map_err(|_| TicketError::Invalid)?;
        if at > now + SKEW {
            return Err(TicketError::Invalid);
        }
        if now >= at.saturating_add(lifetime) { Err(TicketError::Expired) } else { Ok(at) }
    }

    /// A ticket for a user who has shown who they are.
    pub fn ticket(&self, user: &UserId, stamps: &Stamps, now: u64) -> String {
        let time = format!("{now:08X}");
        let sig = self.sign(&["ticket", user.as_str(), &time, stamps.of(user.as_str())]);
        format!("PVE:{user}:{time}::{sig}")
    }

    /// Whose a ticket is.
    pub fn check_ticket(&self, ticket: &str, stamps: &Stamps, now: u64) -> Result<UserId, TicketError> {
        let rest = ticket.strip_prefix("PVE:").ok_or(TicketError::Invalid)?;
        let (head, sig) = rest.split_once("::").ok_or(TicketError::Invalid)?;
        let (user, time) = head.rsplit_once(':').ok_or(TicketError::Invalid)?;
        self.verify(&["ticket", user, time, stamps.of(user)], sig)?;
        Self::fresh(time, now, LIFETIME)?;
        user.parse().map_err(|_| TicketError::Invalid)
    }

    /// A token to be sent with changing requests.
    pub fn csrf(&self, user: &UserId, now: u64) -> String {
        let time = format!("{now:08X}");
        let sig = self.sign(&["csrf", user.as_str(), &time]);
        format!("{time}:{sig}")
    }

    /// Whether a changing request was meant by the user.
    pub fn check_csrf(&self, token: &str, user: &UserId, now: u64) -> Result<(), TicketError> {
        let (time, sig) = token.split_once(':').ok_or(TicketError::Invalid)?;
        self.verify(&["csrf", user.as_str(), time], sig)?;
        Self::fresh(time, now, LIFETIME).map(|_| ())
    }

    /// A ticket for one console: of `who`, on `path`, by `port`. `nonce`, a random number, makes it a different one from
    /// all others: see [`UsedTickets`].
    pub fn console_ticket(&self, who: &str, path: &str, port: u16, now: u64, nonce: u64) -> String {
        let head = format!("{now:08X}:{nonce:016X}");
        let sig = self.sign(&["console", who, path, &port.to_string(), &head]);
        format!("PVEVNC:{head}::{sig}")
    }

    /// Whether a console may be opened.
    pub fn check_console(
        &self,
        ticket: &str,
        who: &str,
        path: &str,
        port: u16,
        now: u64,
    ) -> Result<(), TicketError> {
        let rest = ticket.strip_prefix("PVEVNC:").ok_or(TicketError::Invalid)?;
        let (head, sig) = rest.split_once("::").ok_or(TicketError::Invalid)?;
        let (time, _) = head.split_once(':').ok_or(TicketError::Invalid)?;
        self.verify(&["console", who, path, &port.to_string(), head], sig)?;
        Self::fresh(time, now, CONSOLE_LIFETIME).map(|_| ())
    }
}

/// The console tickets that one node has seen used and that are fresh still: whoever sees one pass by, in a log or a
/// browser's history, can't use it again.
#[derive(Debug, Default)]
pub struct UsedTickets(HashMap<[u8; 32], u64>);

impl UsedTickets {
    /// Whether a ticket, which has been found good, is used for the first time. From now on it is used.
    pub fn first_use(&mut self, ticket: &str, now: u64) -> bool {
        // By then it is not fresh any more, even if the clock it was made by is ahead.
        const KEPT: u64 = CONSOLE_LIFETIME + SKEW;
        self.0.retain(|_, until| now < *until);
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, ticket.as_bytes()).as_ref());
        self.0.insert(key, now + KEPT).is_none()
    }
}
