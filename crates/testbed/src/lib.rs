//! Real clusters on one machine: start, cut, freeze, power off. Used by the demo and by end-to-end tests.
//!
//! - [`cluster`]: daemons that form a cluster, guests on it; [`node`]: one of them and what can be done to it.
//! - [`machine`]: nodes with a systemd and the Debian package of their own.
//! - [`netns`], [`addr`], [`power`], [`procs`], [`bed`]: what they stand on. Nothing here can touch the machine's own
//!   network or power: networks are cut in namespaces of the test's own, and a node's power switch is a socket.
//! - [`delay`]: slow links between nodes.
//! - [`peer`]: machines without Stead, for what it is compared with.
//! - [`bmc`]: service processors that press the nodes' switches.
//! - [`guest`]: the guests that tests run; [`poll`]: a client that follows one; [`watch`]: what its users see; [`api`]: a
//!   client of a node.
//! - [`demo`]: `stead demo` and `stead demo-failover`.

pub mod addr;
pub mod api;
mod bed;
pub mod bmc;
pub mod cluster;
pub mod control;
pub mod delay;
pub mod demo;
pub mod guest;
pub mod machine;
pub mod netns;
pub mod node;
pub mod peer;
pub mod poll;
pub mod power;
pub mod procs;
pub mod skip;
pub mod watch;

pub use api::ApiClient;
pub use cluster::{Cluster, Shape};
