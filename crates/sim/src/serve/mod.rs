//! The simulator to learn on: a page on this machine's own address, behind it a cluster to play with ([`crate::cluster::lab`]).
//!
//! ```text
//! browser ──HTTP──▶ http ──requests, in turn──▶ engine (a thread of its own) ──▶ Lab
//! ```
//!
//! The page asks for what has changed since it asked last ([`diff`]), some times a second; nothing is pushed, and nothing is kept for
//! whoever does not ask. Who may ask: see [`http`].

mod diff;
mod engine;
mod http;

pub use http::{ServeError, Server};
