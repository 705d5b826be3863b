//! Domain types and the text formats that administrators know.
//!
//! Everything here is pure: no clock, no random source, no file, no socket. What can be told apart by its
//! type is: a [`Vmid`] is not a number of something else and a [`NodeName`] is not any text.

pub mod cluster;
pub mod ids;
pub mod ownership;
pub mod paths;
pub mod property;
pub mod size;
pub mod text;
pub mod vmconfig;

pub use cluster::{ClusterRecord, FenceProfile, NodeRecord, NodeState};
pub use ids::{
    BootId, Epoch, GuestKind, IdError, NodeName, NodeUuid, RaftId, ServiceId, StorageId, TokenId, Upid,
    UserId, Vmid, VolumeId,
};
pub use ownership::Ownership;
pub use property::PropertyString;
pub use size::{Mebibytes, Size};
pub use text::FormatError;
pub use vmconfig::VmConfig;
