//! What tests run under QEMU: two guests, what they leave on their disks, and a machine.
//!
//! - *http*: Debian's cloud kernel with busybox and `guestd` on a bootable raw disk ([`image`]); answers HTTP and writes
//!   sequence numbers to a data disk, which [`disklog`] reads: two writers show in it.
//! - *tick*: a boot sector that ticks on the serial port and writes a counter to its own disk ([`tick`]); for tests
//!   with many guests.
//! - *machine*: no guest but a stand-in for a node's host: what takes power over a machine is tried in there ([`machine`]).

pub mod disklog;
pub mod image;
mod kernel;
pub mod machine;
pub mod tick;
