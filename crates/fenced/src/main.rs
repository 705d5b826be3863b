//! `stead-fenced`.
fn main() {}
