//! Real clusters, real guests, real faults.

mod demo;
mod disk;
mod events;
mod faults;
mod guests;
mod network;
mod story;
