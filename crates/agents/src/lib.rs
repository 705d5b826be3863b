//! Shells around the pure cores: they feed them time and events and carry out what they command, and decide nothing.

pub mod addresses;
pub mod balloon;
pub mod certificates;
pub mod clock;
pub mod epochs;
pub mod events;
pub mod fence_client;
pub mod grant;
pub mod guardian;
pub mod guests;
pub mod ha;
pub mod lease;
pub mod members;
pub mod peers;
pub mod raft;
pub mod remote;
pub mod report;
pub mod restart;
pub mod rpc;
pub mod stats;
pub mod storages;
pub mod streams;
pub mod witness;
