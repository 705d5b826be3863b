//! What virtual machines and containers share, as pure decisions: which request a guest accepts now
//! ([`request`]) and how a live migration proceeds through every failure ([`migration`]).

pub mod migration;
pub mod request;
