//! The fence process with real QEMU processes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;
mod lease;
mod states;
