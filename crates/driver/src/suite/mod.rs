//! What every driver of a trait must do, as tests that the driver's own tests call.
//!
//! Each function is one test: it takes a harness that makes drivers, and panics with the rule that was
//! broken. A driver lists them all in its tests (see the `*_conformance!` macros), so that each shows by name.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests that live in a library: to panic is to fail"
)]

pub mod guest;
pub mod sector;
pub mod storage;
