//! `/cluster/ha`: what HA maintains, and how it stands.

pub mod fence;
pub mod profile;
pub mod resources;
pub mod rules;
pub mod status;
pub mod what_if;
