//! Shells around the pure cores: heartbeats, HA, status, scheduler.
