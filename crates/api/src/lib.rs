//! The endpoint registry and its handlers; folders mirror the URL tree.
//!
//! A handler parses, calls one function of `ops`, and shapes the answer. Everything that is the same for
//! all endpoints is in [`framework`].

// `derive(Params)` names this crate from the outside.
extern crate self as stead_api;

#[macro_use]
pub mod framework;
mod access;
mod backend;
mod cluster;
mod nodes;
mod pools;
mod registry;
pub mod shapes;
mod storage;
mod version;

pub use backend::Backend;
pub use framework::{Api, Cluster, ConnInfo, Place, Registry, Target};
pub use registry::registry;
