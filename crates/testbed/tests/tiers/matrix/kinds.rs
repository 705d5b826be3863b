//! The kinds of moves, their steps, and the faults: all that is to be said of a new kind is here.

use super::spot::At;

/// Where a VM's disk lies before a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A raw image on the shared storage.
    Shared,
    /// A qcow2 image there, which can keep snapshots.
    Snapshots,
    /// A raw image on a storage that its node alone has.
    Local,
}

/// What a VM does before a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    Runs,
    IsStopped,
    /// Its memory is on disk.
    IsSuspended,
    /// It runs, and has a snapshot with its memory: [`KEPT`].
    HasSnapshot,
}

/// The snapshot that a VM has which is to go back.
pub const KEPT: &str = "kept";
/// The one that is taken.
pub const TAKEN: &str = "taken";

/// What a move's call is told.
pub struct Told {
    /// The target's name.
    pub target: String,
    /// The storage that the target alone has.
    pub theirs: String,
}

/// Further parameters of a call.
type More = fn(&Told) -> Vec<(&'static str, String)>;

/// A kind of move.
pub struct Kind {
    pub name: &'static str,
    pub place: Place,
    pub before: Before,
    /// Its call, below the VM.
    pub call: &'static str,
    pub more: More,
    /// The type of its task.
    pub task: &'static str,
    /// It goes to another node.
    pub is_far: bool,
    /// The guest runs all the time, and afterwards.
    pub keeps_running: bool,
    /// What is left of its memory is fetched: it changes that too quickly.
    pub is_fetched: bool,
    pub steps: &'static [Step],
}

/// A step, at which a fault comes.
pub struct Step {
    pub name: &'static str,
    /// How it is seen from outside.
    pub at: At,
    /// What makes it last, in KiB a second.
    pub slowed: Option<&'static str>,
    /// Something is written on the storage `far`, or on the target's own, from here on.
    pub writes: bool,
    /// The VM may be lost with the connection of its memory: it is handed over, and the target has not what it runs by.
    pub is_open: bool,
}

const fn step(name: &'static str, at: At) -> Step {
    Step { name, at, slowed: None, writes: false, is_open: false }
}

impl Step {
    const fn slowed(self, kib: &'static str) -> Self {
        Self { slowed: Some(kib), ..self }
    }

    const fn writing(self) -> Self {
        Self { writes: true, ..self }
    }

    const fn open(self) -> Self {
        Self { is_open: true, ..self }
    }

    /// Whether a fault at it may take the process that runs the guest, or what that needs.
    pub fn may_kill(&self, fault: Fault) -> bool {
        let cuts = matches!(fault, Fault::SourceDaemon | Fault::TargetDaemon | Fault::Cut);
        fault.kills_guests() || (self.is_open && cuts)
    }
}

/// What may befall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    SourceDaemon,
    SourceOff,
    TargetDaemon,
    TargetOff,
    LeaderOff,
    /// Between source and target; of a kind without a target, around the source.
    Cut,
    Full,
    Cancel,
}

impl Fault {
    const ALL: [Self; 8] = [
        Self::SourceDaemon,
        Self::SourceOff,
        Self::TargetDaemon,
        Self::TargetOff,
        Self::LeaderOff,
        Self::Cut,
        Self::Full,
        Self::Cancel,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::SourceDaemon => "source-daemon",
            Self::SourceOff => "source-off",
            Self::TargetDaemon => "target-daemon",
            Self::TargetOff => "target-off",
            Self::LeaderOff => "leader-off",
            Self::Cut => "cut",
            Self::Full => "full",
            Self::Cancel => "cancel",
        }
    }

    /// Whether it may take the process that runs the guest.
    pub fn kills_guests(self) -> bool {
        matches!(self, Self::SourceOff | Self::TargetOff)
    }
}

impl Kind {
    /// What may befall it at a step.
    pub fn faults(&self, step: &Step) -> impl Iterator<Item = Fault> {
        let (is_far, writes) = (self.is_far, step.writes);
        Fault::ALL.into_iter().filter(move |fault| match fault {
            Fault::TargetDaemon | Fault::TargetOff => is_far,
            Fault::Full => writes,
            _ => true,
        })
    }
}

fn to_target(told: &Told) -> Vec<(&'static str, String)> {
    vec![("target", told.target.clone())]
}

fn online(told: &Told) -> Vec<(&'static str, String)> {
    vec![("target", told.target.clone()), ("online", "1".to_owned())]
}

fn with_disks(told: &Told) -> Vec<(&'static str, String)> {
    vec![("target", told.target.clone()), ("targetstorage", told.theirs.clone())]
}

fn disk(_: &Told) -> Vec<(&'static str, String)> {
    let form = [("disk", "virtio0"), ("storage", "far"), ("delete", "1")];
    form.map(|(k, v)| (k, v.to_owned())).to_vec()
}

pub const LIVE: Kind = Kind {
    name: "live",
    place: Place::Shared,
    before: Before::Runs,
    call: "migrate",
    more: online,
    task: "qmigrate",
    is_far: true,
    keeps_running: true,
    is_fetched: false,
    steps: &[
        step("prepare", At::Log("starting migration")),
        step("sending", At::Log("waits for the state")).slowed("1"),
        step("sent", At::Log("state sent")),
        step("handed", At::Moved),
    ],
};

/// Slower than its VM writes, and as quick as that has all of its memory sent once soon enough.
const SLOWER: &str = "3072";

pub const FETCHED: Kind = Kind {
    name: "fetched",
    is_fetched: true,
    steps: &[
        step("sending", At::Log("waits for the state")).slowed(SLOWER),
        step("turning", At::Log("to fetch what is left")).slowed(SLOWER).open(),
        step("handed", At::Moved).slowed(SLOWER).open(),
        step("fetching", At::Log("runs on node")).slowed(SLOWER),
    ],
    ..LIVE
};

pub const QUICK: Kind = Kind {
    name: "quick",
    call: "quick_migrate",
    more: |told| [to_target(told), vec![("statestorage", "far".to_owned())]].concat(),
    steps: &[
        step("room", At::Volume).writing(),
        step("writing", At::Log("writing the memory")),
        step("written", At::Log("memory written")),
        step("handed", At::Moved),
        step("reading", At::TargetLog { task: "qmstart", text: "resuming suspended" }),
    ],
    ..LIVE
};

pub const OFFLINE: Kind = Kind {
    name: "offline",
    before: Before::IsStopped,
    more: to_target,
    keeps_running: false,
    steps: &[step("begun", At::Begun), step("handed", At::Moved)],
    ..LIVE
};

pub const CARRIED: Kind = Kind {
    name: "carried",
    place: Place::Local,
    more: with_disks,
    steps: &[
        step("room", At::Volume).slowed("1024"),
        step("sending", At::Log("sending")).slowed("1024").writing(),
        step("sent", At::Log("is there")),
        step("handed", At::Moved),
    ],
    ..OFFLINE
};

pub const ALONG: Kind = Kind {
    name: "along",
    place: Place::Local,
    more: |told| {
        let also = [("online", "1"), ("with-local-disks", "1")].map(|(k, v)| (k, v.to_owned()));
        [with_disks(told), also.to_vec()].concat()
    },
    steps: &[
        step("room", At::Volume).slowed("1024"),
        step("mirroring", At::Log("mirroring")).slowed("1024").writing(),
        step("in-step", At::Log("copied 100")),
        step("settled", At::Log("the disks are the same")),
        step("handed", At::Moved),
    ],
    ..LIVE
};

pub const DISK: Kind = Kind {
    name: "disk",
    before: Before::IsStopped,
    call: "move_disk",
    more: disk,
    task: "qmmove",
    is_far: false,
    keeps_running: false,
    steps: &[
        step("copying", At::Log("moving")).slowed("1024").writing(),
        step("copied", At::Volume),
        step("dropping", At::Log("copied 100")),
    ],
    ..LIVE
};

pub const DISK_LIVE: Kind = Kind {
    name: "disk-live",
    before: Before::Runs,
    keeps_running: true,
    steps: &[
        step("named", At::Log("moving")).slowed("1024"),
        step("copying", At::Volume).slowed("1024").writing(),
        step("in-step", At::Log("copied 100")),
        step("over", At::Log("virtio0 is on")),
    ],
    ..DISK
};

pub const SNAPSHOT: Kind = Kind {
    name: "snapshot",
    place: Place::Snapshots,
    call: "snapshot",
    more: |_| vec![("snapname", TAKEN.to_owned()), ("vmstate", "1".to_owned())],
    task: "qmsnapshot",
    is_far: false,
    steps: &[
        step("begun", At::Begun),
        step("room", At::Volume).writing(),
        step("locked", At::Locked("snapshot")),
        step("written", At::Log("memory written")),
    ],
    ..LIVE
};

pub const ROLLBACK: Kind = Kind {
    name: "rollback",
    before: Before::HasSnapshot,
    call: "snapshot/kept/rollback",
    more: |_| vec![],
    task: "qmrollback",
    keeps_running: false,
    steps: &[
        step("stopping", At::Log("stopping VM")),
        step("disks-back", At::Log("has gone back")),
        step("reading", At::Log("starting VM")),
    ],
    ..SNAPSHOT
};

pub const SUSPEND: Kind = Kind {
    name: "suspend",
    call: "status/suspend",
    more: |_| vec![("todisk", "1".to_owned()), ("statestorage", "far".to_owned())],
    task: "qmsuspend",
    is_far: false,
    keeps_running: false,
    steps: &[
        step("begun", At::Begun),
        step("room", At::Volume).writing(),
        step("writing", At::Log("writing the memory")),
        step("written", At::Log("memory written")),
        step("recorded", At::Log("is suspended to disk")),
    ],
    ..LIVE
};

pub const RESUME: Kind = Kind {
    name: "resume",
    before: Before::IsSuspended,
    call: "status/start",
    more: |_| vec![],
    task: "qmstart",
    steps: &[
        step("begun", At::Begun),
        step("reading", At::Log("resuming suspended")),
        step("given-up", At::Unlocked),
    ],
    ..SUSPEND
};
