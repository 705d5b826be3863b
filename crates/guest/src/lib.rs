//! What virtual machines and containers share, as pure decisions: which request a guest accepts now
//! ([`request`]), what the record says of a copy ([`copy`]), what comes and goes while one runs ([`hotplug`]), how a live migration
//! proceeds through every failure ([`migration`]), what snapshots are to a configuration ([`snapshots`]) and what clones are
//! ([`clones`]), what memory on disk is ([`saved`]), which volumes go along with a guest ([`carried`]), how one goes to
//! another cluster ([`remote`]), and how much memory each gets
//! where there is little ([`balloon`]).

pub mod balloon;
pub mod carried;
pub mod clones;
pub mod copy;
pub mod hotplug;
pub mod migration;
pub mod remote;
pub mod request;
pub mod saved;
pub mod snapshots;
