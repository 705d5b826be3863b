//! The fence process: leases' deadline, registered guests, first cont.
