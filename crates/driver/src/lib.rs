//! The traits that drivers implement, with their conformance suites and fakes.
//!
//! `ops` and `agents` know guests, storages and the fence process by these traits alone; `node` (and the
//! testbed) name the concrete drivers. Whoever writes a driver gets its tests with the trait.

pub mod capabilities;
pub mod cd;
pub mod fake;
pub mod fake_fence;
pub mod fence;
pub mod guest;
pub mod hardware;
pub mod storage;
pub mod suite;
