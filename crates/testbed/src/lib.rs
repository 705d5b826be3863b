//! Real clusters on one machine: start, cut, freeze, power off.

pub mod guest;
