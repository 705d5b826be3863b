//! Scenarios: what happens to a small cluster, step by step, and what came of it.
//!
//! A [`Scenario`] is read from a folder in the form of known regression cases ([`folder`]) or from a text file of our own
//! ([`text`]). [`crate::cluster::play`] plays it on the modelled cluster, with the very code of HA and membership, and
//! answers with a [`Story`]. The modelled cluster is calm: no chance is involved, so that one scenario is one story.

pub mod command;
pub mod folder;
pub mod story;
pub mod text;

pub use command::{Command, CommandError};
pub use story::{Happening, Kind, Story};

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use stead_model::ha_cfg::{HaResource, HaRule};
use stead_model::{FenceProfile, NodeName, SectionConfig, ServiceId};

/// A path that holds no scenario.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be read as one.
    #[error(transparent)]
    Folder(#[from] folder::FolderError),
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// The file's text is no scenario.
    #[error(transparent)]
    Text(#[from] text::TextError),
}

/// Reads a scenario from a folder or a file.
///
/// # Errors
/// Says what is wrong with it.
pub fn open(path: &Path) -> Result<Scenario, OpenError> {
    if path.is_dir() {
        return Ok(folder::read(path)?);
    }
    let file = std::fs::read_to_string(path)?;
    Ok(text::read(text::split(&file).0)?)
}

/// Bytes in a MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// A machine at the start.
#[derive(Debug, Clone, PartialEq)]
pub struct Hardware {
    /// Its name.
    pub name: NodeName,
    /// Has power.
    pub power: bool,
    /// Its network is plugged in.
    pub network: bool,
    /// Logical CPUs.
    pub maxcpu: f64,
    /// Memory in bytes.
    pub maxmem: u64,
}

impl Hardware {
    /// One with power and network, of the size that is used where none is given.
    pub fn new(name: NodeName) -> Self {
        Self { name, power: true, network: true, maxcpu: 24.0, maxmem: 128 * 1024 * MIB }
    }
}

/// What a guest may use at most, and what it uses while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// CPUs that it is given.
    pub maxcpu: f64,
    /// Memory that it is given, in bytes.
    pub maxmem: u64,
    /// CPUs that it keeps busy.
    pub cpu: f64,
    /// Memory that it uses, in bytes.
    pub mem: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self { maxcpu: 4.0, maxmem: 4096 * MIB, cpu: 2.0, mem: 2048 * MIB }
    }
}

/// How a guest fails by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failing {
    /// So many starts fail before one succeeds.
    pub starts: u32,
    /// So many migrations fail before one succeeds.
    pub moves: u32,
    /// It cannot be stopped.
    pub stop: bool,
    /// Starts fail on that node only, counted from 1; on every node for `None`.
    pub on: Option<usize>,
}

/// A guest, and what HA is to do with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// What its user wants.
    pub resource: HaResource,
    /// Where it is.
    pub node: NodeName,
    /// What it uses.
    pub load: Load,
    /// How it fails.
    pub failing: Failing,
    /// A lock in its configuration.
    pub lock: Option<String>,
}

impl Setup {
    /// A guest on that node, started by HA, that fails in nothing.
    pub fn new(sid: ServiceId, node: NodeName) -> Self {
        Self {
            resource: HaResource::new(sid),
            node,
            load: Load::default(),
            failing: Failing::default(),
            lock: None,
        }
    }
}

/// A command and its moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Time since the beginning.
    pub at: Duration,
    /// What is done.
    pub command: Command,
}

/// A story to be played.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scenario {
    /// The machines. All are members of the cluster, with power or without.
    pub nodes: Vec<Hardware>,
    /// Guests.
    pub services: Vec<Setup>,
    /// Rules in force.
    pub rules: Vec<HaRule>,
    /// Groups of the older form.
    pub groups: Option<SectionConfig>,
    /// The `ha` option of the cluster, as a property string.
    pub ha: String,
    /// The `crs` option of the cluster, as a property string.
    pub crs: String,
    /// What an earlier manager left behind, in the form of `manager_status`.
    pub manager: Option<serde_json::Value>,
    /// The load of guests that come later.
    pub later: BTreeMap<ServiceId, Load>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// How long a round of the manager lasts where something is counted in rounds.
    pub round: Duration,
    /// When it ends.
    pub end: Duration,
    /// What is left to chance comes from this seed; nothing is for `None`.
    pub seed: Option<u64>,
    /// Times of leases and fencing at the beginning.
    pub profile: FenceProfile,
    /// Services that have another name in the scenario than in the cluster.
    pub names: BTreeMap<ServiceId, String>,
}

impl Scenario {
    /// The scenario's name of a service.
    pub fn name(&self, sid: ServiceId) -> String {
        self.names.get(&sid).cloned().unwrap_or_else(|| sid.to_string())
    }

    /// The load of every guest that there ever is, as it is in the end, by the scenario's names.
    pub fn loads(&self) -> impl Iterator<Item = (String, Load)> {
        let mut loads: BTreeMap<ServiceId, Load> = self.later.clone();
        loads.extend(self.services.iter().map(|s| (s.resource.sid, s.load)));
        for step in &self.steps {
            if let Command::Service(named, change) = &step.command {
                change.change_load(loads.entry(named.sid).or_default());
            }
        }
        loads.into_iter().map(|(sid, load)| (self.name(sid), load))
    }
}
