//! A VM that goes to another cluster: what the two clusters say to each other, and what of a VM can't go.
//!
//! The two share no record of who may run it. So its source gives it away first, in its own configuration, and says so only then:
//!
//! ```text
//!  source                                              target
//!  hello ─────────────────────────────────────────────▶ VM reserved (lock 'create')
//!  fits: configuration, volumes ──────────────────────▶ all that speaks against it; none: go on
//!  make ──────────────────────────────────────────────▶ its configuration names new volumes, which are made
//!  each volume, by a channel of its own ──────────────▶ on disk, looked into, 'kept'
//!  given away: lock 'migrate', held by no task
//!  commit ────────────────────────────────────────────▶ unlocked: the VM is this cluster's
//!  ◀──────────────────────────────────────── committed
//!  removed (delete), or kept as it is, locked
//! ```
//!
//! Until *commit* was sent anything that breaks leaves the VM with its source, and the target removes what it has made. From then on
//! the source asks what became of it, and takes it back on the answer *gone* alone.
//!
//! One that runs goes along with its memory, where the target says in its first answer that it takes such:
//!
//! ```text
//!  source                                              target
//!  make, and what it does not write, as above ────────▶ new volumes, of the size that it sees
//!  wait ──────────────────────────────────────────────▶ a process that waits, and lends these
//!  mirrors, then its memory, each by channels of its own
//!  its CPUs stand, the mirrors have ended: settle ────▶ nobody writes its disks any more; they are on disk
//!  all of it is sent
//!  given away, as above: commit ──────────────────────▶ recorded as running here, and only then continued
//!  ◀──────────────────────────────────────── committed
//!  its process is killed
//! ```
//!
//! The first message says which version of this is spoken. Messages are lines of JSON; a message that one side does not know it
//! refuses.

use crate::saved;
use serde::{Deserialize, Serialize};
use stead_model::vmconfig::host::{as_hostpci, as_usb};
use stead_model::vmconfig::shares::as_virtiofs;
use stead_model::vmconfig::{DiskSource, Serial, Settings, VmConfig};
use stead_model::{StorageId, VolumeId};

/// The version that is spoken.
pub const PROTOCOL: u32 = 1;
/// The most bytes that a message has. A configuration has one MiB.
pub const LONGEST: usize = 4 << 20;

/// Why a target has ended what its source has given up.
pub const GIVEN_UP: &str = "the other cluster has given up";

/// A WebSocket of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Messages.
    Control,
    /// The content of one of the volumes, by its place in the list.
    Disk(usize),
    /// The disks that a waiting process lends, as NBD names them by their options. Each connection is one of these.
    Disks,
    /// The memory that a waiting process takes.
    Memory,
}

impl Channel {
    /// As the parameter `socket` names it.
    pub fn name(self) -> String {
        match self {
            Self::Control => "control".to_owned(),
            Self::Disk(n) => format!("disk:{n}"),
            Self::Disks => "disks".to_owned(),
            Self::Memory => "memory".to_owned(),
        }
    }

    /// The one of that name.
    pub fn named(text: &str) -> Option<Self> {
        match text {
            "control" => Some(Self::Control),
            "disks" => Some(Self::Disks),
            "memory" => Some(Self::Memory),
            _ => text.strip_prefix("disk:")?.parse().ok().map(Self::Disk),
        }
    }
}

/// A volume that goes along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// As the configuration names it.
    pub volume: VolumeId,
    /// The target's storage.
    pub storage: StorageId,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Bytes that it takes.
    pub size: u64,
    /// Of one that runs and writes it: the option of its disk, and the bytes that it sees. It is mirrored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<(String, u64)>,
}

/// How a VM runs: the process that takes its place has to be alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runs {
    /// The versioned machine type.
    pub machine: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// The CPU, in the words of the driver.
    pub cpu: Option<String>,
    /// Its user has paused it, and it stays so.
    pub paused: bool,
}

impl Runs {
    /// Why nothing of another cluster may say so. These words become some of a command line.
    pub fn obstacle(&self) -> Option<String> {
        let plain = |text: &str, more: &str| {
            (1..=4096).contains(&text.len())
                && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c) || more.contains(c))
        };
        if !plain(&self.machine, "+") {
            return Some(format!("machine: '{}' is no machine type", self.machine.escape_debug()));
        }
        if !matches!(self.accel.as_str(), "kvm" | "tcg") {
            return Some(format!("'{}' is nothing that runs VMs", self.accel.escape_debug()));
        }
        let cpu = self.cpu.as_deref()?;
        if !plain(cpu, ",=+") {
            return Some(format!("cpu: '{}' is no CPU", cpu.escape_debug()));
        }
        unknown_cpu(cpu.split(',').next().unwrap_or_default())
    }
}

/// Why a VM that runs with that model goes to no other cluster.
pub fn unknown_cpu(model: &str) -> Option<String> {
    matches!(model, "host" | "max").then(|| {
        format!(
            "cpu: the VM has all that the CPU of its node can do ('{model}'), which is not known of another cluster: move it while it \
             does not run, or give it a model by name and start it anew"
        )
    })
}

/// What the target reads of a VM that it was told to have, by a read as new as any commit before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Of the node and the epoch that it was made under.
    pub is_ours: bool,
    /// It is in the making.
    pub is_made: bool,
    /// Its ownership was written since it was told, as the target's own commit does and no unlocking by hand.
    pub is_rewritten: bool,
    /// It is recorded as running.
    pub running: bool,
}

/// Whose a VM is that the target was told to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// The target's: its commit has landed.
    Landed,
    /// Nobody's yet.
    Open,
    /// Not the target's, and no commit of it can land any more.
    Never,
    /// It may have been the target's, and is whoever's now: nothing definite can be said.
    Unclear,
}

/// What that read says. `proposed`: a commit of the target's may have landed; `runs`: that would have recorded the VM as running.
pub fn landing(seen: Option<Seen>, proposed: bool, runs: bool) -> Landing {
    match seen {
        Some(s) if s.is_ours && s.is_made => Landing::Open,
        _ if !proposed => Landing::Never,
        Some(s) if s.is_ours && s.is_rewritten && (s.running || !runs) => Landing::Landed,
        // Somebody has unlocked it, which no commit that was built on the lock survives.
        Some(s) if s.is_ours && !s.is_rewritten => Landing::Never,
        _ => Landing::Unclear,
    }
}

/// The most bytes of another cluster's words that are shown here.
const SHOWN: usize = 1 << 10;
/// The most obstacles of it that are.
const OBSTACLES: usize = 100;

/// Words of another cluster, as they are fit for people and logs here: not too many, and none that do anything to a terminal.
pub fn shown(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        if plain.len() >= SHOWN {
            return plain + "...";
        }
        match c {
            c if c.is_control() => plain.extend(c.escape_default()),
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                plain.extend(c.escape_unicode());
            }
            c => plain.push(c),
        }
    }
    plain
}

/// What the source says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "lowercase")]
pub enum Say {
    /// First of all.
    Hello {
        /// The version of these messages.
        protocol: u32,
        /// The daemon's, for people.
        version: String,
    },
    /// Asks what speaks against it.
    Fits {
        /// The VM's configuration: the target's storages and bridges, the source's names of volumes.
        config: String,
        /// Which go along.
        volumes: Vec<Sent>,
        /// How it runs; none: it does not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        runs: Option<Runs>,
    },
    /// Has the volumes of the last question made.
    Make,
    /// Has a process wait for its memory, and lend the disks that it writes.
    Wait,
    /// Its CPUs stand, and its disks hold all that they will.
    Settle,
    /// It is given away: the target is to have it.
    Commit,
    /// Asks what became of it. Before [`Say::Commit`] it ends it.
    Outcome,
    /// It is still being sent.
    Alive,
    /// Nothing comes of it.
    Quit,
}

/// What the target answers. To [`Say::Alive`] and [`Say::Quit`] it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// To the first message.
    Hello {
        /// The version that is spoken.
        protocol: u32,
        /// It takes VMs that run.
        #[serde(default, skip_serializing_if = "is_false")]
        live: bool,
    },
    /// All that speaks against it; nothing: it fits.
    Obstacles {
        /// In words.
        why: Vec<String>,
    },
    /// The volumes are there, in the same order.
    Made {
        /// Their names.
        volumes: Vec<VolumeId>,
    },
    /// A process waits.
    Waits,
    /// Nobody writes its disks any more, and they are on disk.
    Settled,
    /// The VM is the target's.
    Committed,
    /// The VM is not the target's, and never will be by this move.
    Gone {
        /// Why.
        why: String,
    },
}

impl Answer {
    /// With words that are fit to be shown.
    #[must_use]
    pub fn shown(self) -> Self {
        match self {
            Self::Gone { why } => Self::Gone { why: shown(&why) },
            Self::Obstacles { why } => {
                let more = why.len().saturating_sub(OBSTACLES);
                let mut why: Vec<String> = why.iter().take(OBSTACLES).map(|why| shown(why)).collect();
                why.extend((more > 0).then(|| format!("and {more} more")));
                Self::Obstacles { why }
            }
            other => other,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's shape")]
fn is_false(is: &bool) -> bool {
    !*is
}

/// Why a first message is refused.
pub fn check_protocol(protocol: u32) -> Result<(), String> {
    if protocol == PROTOCOL {
        return Ok(());
    }
    Err(format!(
        "moves between clusters are spoken in version {PROTOCOL} here, and in version {protocol} by the other cluster: bring both to the \
         same version of Stead"
    ))
}

/// A VM's configuration without what is about its cluster alone: its lock, and what was found out of it.
pub fn outfit(config: &mut VmConfig) {
    config.current.remove("lock");
    config.special.clear();
}

/// What a VM has that can't go to another cluster.
pub fn bound(config: &VmConfig) -> Vec<String> {
    let mut why = vec![];
    if config.current.template() {
        why.push("it is a template, on which others may be built: clone it, and move the clone".to_owned());
    }
    if saved::is_saved(config) || config.current.get("vmstate").is_some() {
        why.push("it is suspended to disk: start it and shut it down, or unlock it".to_owned());
    }
    for (name, snapshot) in &config.snapshots {
        if snapshot.get("vmstate").is_some() {
            why.push(format!(
                "its snapshot '{name}' keeps memory, which goes to no other cluster: remove the snapshot"
            ));
        }
        if snapshot.get("snapstate").is_some() {
            why.push(format!("its snapshot '{name}' is not whole: remove the snapshot"));
        }
    }
    for section in crate::carried::sections(config) {
        for (key, _) in section.iter() {
            match bound_by(section, key) {
                Some(what) if !why.iter().any(|w: &String| w.starts_with(&format!("{key}: "))) => {
                    why.push(format!("{key}: {what}"));
                }
                _ => {}
            }
        }
        for disk in section.disks().into_iter().chain(section.unused()).flatten() {
            let what = match (&disk.source, disk.import_from()) {
                (DiskSource::Volume(_) | DiskSource::Empty, Ok(None)) => continue,
                (DiskSource::Path(path), _) => format!("{}: '{path}' is a file of its host", disk.key),
                (DiskSource::HostDrive, _) => format!("{}: it is a drive of its host", disk.key),
                _ => format!("{}: it names no volume", disk.key),
            };
            if !why.contains(&what) {
                why.push(what);
            }
        }
    }
    why
}

/// What binds a VM to its host or its cluster in an option.
fn bound_by(section: &Settings, key: &str) -> Option<&'static str> {
    const HOST: &str = "it is a device of its host: take it out";
    let value = section.get(key).unwrap_or_default();
    let family = key.trim_end_matches(|c: char| c.is_ascii_digit());
    if as_hostpci(key).is_some() || as_usb(key).is_some() || family == "parallel" {
        return Some(HOST);
    }
    if as_virtiofs(key).is_some() {
        return Some("it is a directory of its host: take it out");
    }
    match key {
        "ivshmem" => Some("it is memory that programs of its host see: take it out"),
        "cicustom" => Some("it names files of its cluster: take it out"),
        "hookscript" => Some("it names a file of its cluster: take it out"),
        "cpu" if value.contains("custom-") => {
            Some("it names a model that its cluster has defined: choose another")
        }
        _ if family == "serial" => {
            let serials = section.serials().unwrap_or_default();
            serials.iter().any(|(k, s)| k == key && matches!(s, Serial::Device(_))).then_some(HOST)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What another version of the daemon reads and writes, too.
    #[test]
    fn messages_are_written_as_ever() {
        let volume = Sent {
            volume: "local:100/vm-100-disk-0.qcow2".parse().unwrap(),
            storage: "fast".parse().unwrap(),
            format: "qcow2".into(),
            size: 7,
            disk: None,
        };
        let mirrored = Sent { disk: Some(("scsi0".into(), 9)), ..volume.clone() };
        let runs = Runs {
            machine: "pc-q35-10.0".into(),
            accel: "kvm".into(),
            cpu: Some("qemu64".into()),
            paused: false,
        };
        let says = [
            (
                Say::Hello { protocol: 1, version: "0.1.0".into() },
                r#"{"say":"hello","protocol":1,"version":"0.1.0"}"#,
            ),
            (
                Say::Fits { config: "memory: 16\n".into(), volumes: vec![volume], runs: None },
                r#"{"say":"fits","config":"memory: 16\n","volumes":[{"volume":"local:100/vm-100-disk-0.qcow2","storage":"fast","format":"qcow2","size":7}]}"#,
            ),
            (
                Say::Fits { config: String::new(), volumes: vec![mirrored], runs: Some(runs) },
                r#"{"say":"fits","config":"","volumes":[{"volume":"local:100/vm-100-disk-0.qcow2","storage":"fast","format":"qcow2","size":7,"disk":["scsi0",9]}],"runs":{"machine":"pc-q35-10.0","accel":"kvm","cpu":"qemu64","paused":false}}"#,
            ),
            (Say::Make, r#"{"say":"make"}"#),
            (Say::Wait, r#"{"say":"wait"}"#),
            (Say::Settle, r#"{"say":"settle"}"#),
            (Say::Commit, r#"{"say":"commit"}"#),
            (Say::Outcome, r#"{"say":"outcome"}"#),
            (Say::Alive, r#"{"say":"alive"}"#),
            (Say::Quit, r#"{"say":"quit"}"#),
        ];
        for (say, text) in says {
            assert_eq!(serde_json::to_string(&say).unwrap(), text);
            assert_eq!(serde_json::from_str::<Say>(text).unwrap(), say);
        }
        let answers = [
            (Answer::Hello { protocol: 1, live: false }, r#"{"answer":"hello","protocol":1}"#),
            (Answer::Hello { protocol: 1, live: true }, r#"{"answer":"hello","protocol":1,"live":true}"#),
            (Answer::Waits, r#"{"answer":"waits"}"#),
            (Answer::Settled, r#"{"answer":"settled"}"#),
            (Answer::Obstacles { why: vec!["a".into()] }, r#"{"answer":"obstacles","why":["a"]}"#),
            (
                Answer::Made { volumes: vec!["fast:200/vm-200-disk-0.qcow2".parse().unwrap()] },
                r#"{"answer":"made","volumes":["fast:200/vm-200-disk-0.qcow2"]}"#,
            ),
            (Answer::Committed, r#"{"answer":"committed"}"#),
            (Answer::Gone { why: "b".into() }, r#"{"answer":"gone","why":"b"}"#),
        ];
        for (answer, text) in answers {
            assert_eq!(serde_json::to_string(&answer).unwrap(), text);
            assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), answer);
        }
    }

    #[test]
    fn what_another_cluster_says_is_short_and_does_nothing_to_a_terminal() {
        assert_eq!(shown("storage 'a' is full"), "storage 'a' is full");
        assert_eq!(shown("a\u{1b}[2Jb\nc\u{202e}d"), "a\\u{1b}[2Jb\\nc\\u{202e}d");
        let long = shown(&"x".repeat(4 << 20));
        assert!(long.len() <= SHOWN + 3 && long.ends_with("..."), "{}", long.len());
        assert_eq!(Answer::Gone { why: "a\nb".into() }.shown(), Answer::Gone { why: "a\\nb".into() });
        let many = Answer::Obstacles { why: vec!["\r".into(); 1000] }.shown();
        let Answer::Obstacles { why } = many else { panic!("{many:?}") };
        assert_eq!((why.len(), why[0].as_str(), why[100].as_str()), (101, "\\r", "and 900 more"));
    }

    #[test]
    fn a_vm_is_the_target_s_by_its_own_commit_alone() {
        let open = Seen { is_ours: true, is_made: true, is_rewritten: false, running: false };
        let unlocked = Seen { is_made: false, ..open };
        let came = Seen { is_rewritten: true, ..unlocked };
        let runs = Seen { running: true, ..came };
        let elsewhere = Seen { is_ours: false, ..runs };
        for (seen, proposed, live, wanted) in [
            (Some(open), false, true, Landing::Open),
            (Some(open), true, true, Landing::Open),
            (Some(open), true, false, Landing::Open),
            (Some(runs), true, true, Landing::Landed),
            (Some(came), true, false, Landing::Landed),
            // Its user has started it already.
            (Some(runs), true, false, Landing::Landed),
            // Somebody else's unlocking is no commit of ours.
            (Some(unlocked), true, true, Landing::Never),
            (Some(unlocked), true, false, Landing::Never),
            (Some(unlocked), false, false, Landing::Never),
            (None, false, true, Landing::Never),
            (Some(elsewhere), false, true, Landing::Never),
            // The commit may have landed before.
            (None, true, false, Landing::Unclear),
            (Some(elsewhere), true, true, Landing::Unclear),
            (Some(Seen { is_made: true, ..elsewhere }), true, false, Landing::Unclear),
            (Some(came), true, true, Landing::Unclear),
        ] {
            assert_eq!(landing(seen, proposed, live), wanted, "{seen:?} proposed {proposed} live {live}");
        }
    }

    #[test]
    fn another_version_is_refused_by_both_numbers() {
        check_protocol(PROTOCOL).unwrap();
        let why = check_protocol(9).unwrap_err();
        assert!(why.contains("version 1") && why.contains("version 9"), "{why}");
        // A later version may say more in its first message.
        let first = r#"{"say":"hello","protocol":9,"version":"2","more":[1]}"#;
        assert!(matches!(serde_json::from_str(first).unwrap(), Say::Hello { protocol: 9, .. }));
    }

    #[test]
    fn channels_have_names() {
        for channel in
            [Channel::Control, Channel::Disk(0), Channel::Disk(12), Channel::Disks, Channel::Memory]
        {
            assert_eq!(Channel::named(&channel.name()), Some(channel));
        }
        for bad in ["", "disk", "disk:", "disk:-1", "ram", "control:1"] {
            assert_eq!(Channel::named(bad), None, "{bad}");
        }
    }

    #[test]
    fn how_a_vm_runs_says_nothing_else_on_a_command_line() {
        let runs = |machine: &str, accel: &str, cpu: Option<&str>| {
            let (machine, accel, cpu) = (machine.into(), accel.into(), cpu.map(Into::into));
            Runs { machine, accel, cpu, paused: false }.obstacle()
        };
        assert_eq!(runs("pc-i440fx-10.0", "tcg", None), None);
        assert_eq!(runs("pc-q35-9.2+pve1", "kvm", Some("x86-64-v2-AES,+aes,vendor=GenuineIntel")), None);
        for (machine, accel, cpu) in [
            ("", "tcg", None),
            ("pc-q35-9.2,firmware=/etc/shadow", "tcg", None),
            ("-machine", "tcg", None),
            ("pc-q35-9.2", "tcg,thread=multi", None),
            ("pc-q35-9.2", "tcg", Some("qemu64 -device x")),
            ("pc-q35-9.2", "tcg", Some("a/b")),
            ("pc-q35-9.2", "kvm", Some("host")),
            ("pc-q35-9.2", "tcg", Some("max,-svm")),
        ] {
            assert!(runs(machine, accel, cpu).is_some(), "{machine} {accel} {cpu:?}");
        }
    }

    #[test]
    fn what_binds_a_vm_to_its_cluster_is_named_all_of_it() {
        let bound = |text: &str| bound(&VmConfig::parse(text).unwrap());
        let free = "boot: order=scsi0\ncores: 2\nide2: local:iso/a.iso,media=cdrom\nide0: none,media=cdrom\nmemory: 512\n\
            net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nscsi0: local:100/a.qcow2,size=1G\nserial0: socket\nunused0: local:100/b.raw\n\n\
            [one]\nscsi0: local:100/a.qcow2,size=1G\nsnaptime: 1\n";
        assert_eq!(bound(free), [""; 0]);
        let all = bound(
            "cicustom: user=local:snippets/u.yaml\ncpu: custom-big\nhookscript: local:snippets/h.pl\nhostpci0: mapping=gpu\n\
             ide2: cdrom,media=cdrom\nlock: suspended\nparallel0: /dev/parport0\nscsi0: /dev/sdb\nscsi1: local:8\nserial1: /dev/ttyS0\n\
             template: 1\nusb0: host=1-2\nvirtiofs0: data\nvmstate: local:100/s.raw\n\n[one]\nsnaptime: 1\nusb1: mapping=stick\n\
             vmstate: local:100/t.raw\n",
        );
        for key in [
            "cicustom: ",
            "cpu: ",
            "hookscript: ",
            "hostpci0: ",
            "ide2: ",
            "parallel0: ",
            "scsi0: ",
            "scsi1: ",
            "serial1: ",
            "usb0: ",
            "usb1: ",
            "virtiofs0: ",
            "it is a template",
            "it is suspended",
            "its snapshot 'one' keeps memory",
        ] {
            assert!(all.iter().filter(|w| w.starts_with(key)).count() == 1, "{key} in {all:#?}");
        }
    }
}
