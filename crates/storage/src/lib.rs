//! Storage drivers, one file or folder each.
//!
//! A driver knows one type of storage and nothing of the others; `node` alone names them. Each passes
//! the conformance suite of [`stead_driver::suite::storage`].

pub mod dir;
mod qcow2;
mod qemu_img;

pub use dir::DirType;
