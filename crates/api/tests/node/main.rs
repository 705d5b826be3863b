//! Requests to one node's use cases, over HTTP: one program, so that all of it shares one bed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agent;
mod bed;
mod clones;
mod cloudinit;
mod cpu;
mod life;
mod many;
mod mapping;
mod schema;
mod snapshots;
mod vm_options;
