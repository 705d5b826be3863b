//! Leases, epochs, liveness and fencing decisions. Pure.
