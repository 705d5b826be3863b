//! Storage drivers, one file each.
