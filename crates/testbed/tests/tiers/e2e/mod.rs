//! Real clusters, real guests, real faults.

mod admit;
mod agent;
mod boot;
mod clocks;
mod clones;
mod demo;
mod departure;
mod devices;
mod disk;
mod epochs;
mod events;
mod faults;
mod guests;
mod hotplug;
mod join;
mod links;
mod machine;
mod moves;
mod network;
mod power;
mod standstill;
mod storages;
mod story;
mod tpm;
mod witness;
mod word;
