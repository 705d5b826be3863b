//! The simulator: ha, membership and conf on a modelled cluster; fault search, and a cluster to play with.

pub mod cluster;

pub mod conf;

pub mod linear;

pub mod scenario;

pub mod serve;
