//! The HA manager and the agent of each node, pure.
//!
//! The manager ([`manager::step`]) runs on the leader: it sees what is committed and what nodes report, and
//! decides in which state each service shall be, where. The agent ([`agent::Agent`]) runs on every node: it brings
//! the services that the manager has placed there into their states, and reports how that went. Simulator and
//! cluster run this same code.
//!
//! ```text
//!             ┌───────────────┐  done   ┌─────────┐ request started ┌───────────────┐
//!   new ─────▶│ request_start │────────▶│ started │◀────────────────│    stopped    │
//!             └───────────────┘         └─────────┘                 └───────────────┘
//!                     ▲                   │  │  ▲ │  request stopped        ▲
//!      other node     │  failed too often │  │  │ └────────▶ request_stop ──┘
//!      (max_relocate) └───────────────────┘  │  │ moved, or move failed
//!                                            ▼  │
//!      any, node lost ──▶ fence ──▶ recovery  migrate, relocate
//!                                     └──▶ started on the new node
//!      failed on max_relocate + 1 nodes, stop failed ──▶ error (left only by disabling)
//! ```
//!
//! Two rules that the invariants hold: a service is placed anew only after its node was *committed lost*, and only
//! under the epoch that the lost node held; and silence is never taken for *stopped*.

pub mod agent;
mod balance;
pub mod history;
pub mod manager;
mod placement;
pub mod rules;
pub mod state;
mod topsis;
pub mod what_if;

pub use agent::{
    Agent, AgentCommand, AgentMode, AgentReport, AgentService, AgentView, Attempt, Ending, Leave, Outcome,
    Report,
};
pub use history::{Change, History};
pub use manager::{lock_ends_with_its_node, step};
pub use rules::{Cause, Conflict, MovePreview, conflicts, preview};
pub use state::{
    Command, Disarm, DisarmMode, Load, ManagerState, NodeMemory, NodeStatus, NodeView, NodeWord, Process,
    Request, Service, ServiceState, ServiceView, Stats, StorageFault, StorageLoss, StorageView, Use, View,
};
pub use what_if::{Fate, Forecast, GuestFate, Now, Outlook, Room, Unmanaged, Verdict, WhatIf};
