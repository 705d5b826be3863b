//! Real clusters, real guests, real faults.

mod demo;
mod disk;
mod events;
mod faults;
mod guests;
mod join;
mod network;
mod story;
mod word;
