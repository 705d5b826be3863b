//! Storage drivers, one file or folder each.
//!
//! A driver knows one type of storage and nothing of the others; `node` alone names them. Each passes
//! the conformance suite of [`stead_driver::suite::storage`]. Images of CDs, which go into volumes, are made here too.

pub mod dir;
mod qcow2;
mod qemu_img;
pub mod xorriso;

pub use dir::DirType;
pub use xorriso::Xorriso;
