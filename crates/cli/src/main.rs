//! `stead`: the command line.
fn main() {}
