//! Tests with real daemons and real guests. The outermost module is the tier (see `.config/nextest.toml`).

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod bench;
mod clients;
mod console;
mod e2e;
mod figures;
mod matrix;
mod soak;
mod support;
