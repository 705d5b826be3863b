//! A node's folder: who the node is and its keys ([`identity`]), and what is done with its store while its daemon does not run:
//! backups and checks ([`offline`]), and what replaces it ([`restore`], once all others are known to be off: [`others`]). Part of the daemon's program, apart from its wiring; so errors are
//! `anyhow`'s here, too.

pub mod identity;
pub mod offline;
pub mod others;
pub mod restore;
