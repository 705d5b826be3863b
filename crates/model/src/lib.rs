//! Domain types and the text formats that administrators know.
//!
//! Everything here is pure: no clock, no random source, no file, no socket. What can be told apart by its
//! type is: a [`Vmid`] is not a number of something else and a [`NodeName`] is not any text.

pub mod cloudinit;
pub mod cluster;
pub mod cpu;
pub mod cpu_models;
pub mod datacenter;
pub mod era;
pub mod fence_cfg;
pub mod ha_cfg;
pub mod ha_groups;
pub mod ha_options;
pub mod ids;
pub mod link;
pub mod mapping;
pub mod network;
pub mod ova;
pub mod ownership;
pub mod paths;
pub mod place;
pub mod property;
pub mod remote;
pub mod schema;
pub mod sectionconfig;
pub mod size;
pub mod storage_cfg;
pub mod text;
pub mod user_cfg;
pub mod vmconfig;

pub use cluster::{ClusterRecord, FenceProfile, NoProfile, NodeRecord, NodeState, PoweredOff};
pub use datacenter::Datacenter;
pub use era::{Era, Lineage, NoEra, Succession};
pub use fence_cfg::{FenceCfg, FenceSecrets};
pub use ha_cfg::{HaResource, HaResources, HaRule, HaRuleKind, HaRules, RequestedState};
pub use ha_groups::HaGroup;
pub use ha_options::{
    AutoRebalance, BalanceMethod, CrsMode, CrsOptions, HaOptions, ShutdownPolicy, StorageLossOptions,
    StorageLossPolicy,
};
pub use ids::{
    BootId, DeviceId, DomainName, Epoch, GuestKind, IdError, NodeName, NodeUuid, RaftId, ServiceId,
    StorageId, TokenId, Upid, UserId, Vmid, VolumeId,
};
pub use mapping::{Mapping, MappingEntry, MappingError, MappingKind, Mappings};
pub use ownership::Ownership;
pub use place::Place;
pub use property::PropertyString;
pub use remote::Remote;
pub use sectionconfig::SectionConfig;
pub use size::{Mebibytes, Size};
pub use storage_cfg::{Storage, StorageCfg};
pub use text::FormatError;
pub use user_cfg::UserCfg;
pub use vmconfig::VmConfig;
