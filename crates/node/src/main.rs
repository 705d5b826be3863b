//! `steadd`: wiring only.
fn main() {}
