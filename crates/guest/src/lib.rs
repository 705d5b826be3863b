//! What VMs and containers share: request queue, migration plan. Pure.
