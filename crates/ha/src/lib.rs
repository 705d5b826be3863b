//! HA manager and per-node agent, rules, placement. Pure.
