//! The simulator: ha, membership and conf on a modelled cluster; fault search.

pub mod cluster;

pub mod conf;

pub mod scenario;
