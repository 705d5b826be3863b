//! Real QEMU processes with a guest of one sector pass the guests' suite.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::Machines;

stead_driver::guest_conformance!(Machines);
