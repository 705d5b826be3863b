//! The two guests that tests run, and what they leave on their disks.
//!
//! - *http*: Debian's cloud kernel with busybox and `guestd` on a bootable raw disk ([`image`]); answers HTTP and writes
//!   sequence numbers to a data disk, which [`disklog`] reads: two writers show in it.
//! - *tick*: a boot sector that ticks on the serial port and writes a counter to its own disk ([`tick`]); for tests
//!   with many guests.

pub mod disklog;
pub mod image;
mod kernel;
pub mod tick;
