//! Drivers without a machine behind them, for the tests of what is above drivers.
//!
//! They pass the same conformance suites as the real ones and can be told to fail.

mod cd;
mod guests;
mod images;
mod machines;
mod storage;

pub use cd::FakeCds;
pub use guests::FakeGuests;
pub use machines::FakeMachines;
pub use storage::FakeStorage;
