//! The memory of a VM that does not run: written to a volume when it was suspended to disk or is moved over a storage, and read once
//! when it goes on.
//!
//! ```text
//!  runs ──vmstate named, lock: suspending──▶ memory is written ──lock: suspended, it does not run──▶ on disk
//!    ▲                                                                                                  │
//!    └───────────── the options are gone again, then its CPUs run ◀── a process has read it ◀───────────┘
//! ```
//!
//! Its disks are those of the moment at which the memory was written. So the memory is given up by a commit before the CPUs run: what
//! was read once is never read again, and a VM that is started in any other way starts without it.

use crate::snapshots::Memory;
use stead_model::VolumeId;
use stead_model::vmconfig::{KeyError, VmConfig};

/// The lock while the memory is written.
pub const SAVING: &str = "suspending";
/// The lock of a VM whose memory is on disk.
pub const SAVED: &str = "suspended";

const KEYS: [&str; 4] = ["vmstate", "runningmachine", "runningaccel", "runningcpu"];

/// Writes down where the memory will be, and how it is made.
///
/// # Errors
/// If one of the options takes no such value.
pub fn begin(config: &mut VmConfig, memory: &Memory) -> Result<(), KeyError> {
    config.current.set("vmstate", &memory.volume.to_string())?;
    config.current.set("runningmachine", &memory.machine)?;
    if let Some(cpu) = &memory.cpu {
        config.current.set("runningcpu", cpu)?;
    }
    config.current.set("runningaccel", &memory.accel)
}

/// Whether the VM's memory is on disk, and it is to go on with it.
pub fn is_saved(config: &VmConfig) -> bool {
    config.current.lock() == Some(SAVED)
}

/// Where the memory is. That of a VM which was suspended by another program does not say how it was made, and can't be read.
pub fn memory(config: &VmConfig) -> Option<Memory> {
    Some(Memory {
        volume: config.current.get("vmstate")?.parse().ok()?,
        machine: config.current.get("runningmachine")?.to_owned(),
        accel: config.current.get("runningaccel")?.to_owned(),
        cpu: config.current.get("runningcpu").map(str::to_owned),
    })
}

/// Gives the memory up. The volume that is of no use any more.
pub fn forget(config: &mut VmConfig) -> Option<VolumeId> {
    let volume = config.current.get("vmstate").and_then(|v| v.parse().ok());
    for key in KEYS {
        config.current.remove(key);
    }
    volume
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_found_and_given_up_whole() {
        let before = "cores: 2\nlock: suspended\nscsi0: local:100/a.raw\n";
        let mut config = VmConfig::parse(before).unwrap();
        assert_eq!((memory(&config), forget(&mut config)), (None, None));
        let saved = Memory {
            volume: "local:100/vm-100-state-suspend-7.raw".parse().unwrap(),
            machine: "pc-i440fx-10.0".into(),
            accel: "tcg".into(),
            cpu: Some("qemu64,+aes".into()),
        };
        begin(&mut config, &saved).unwrap();
        let read = VmConfig::parse(&config.to_string()).unwrap();
        assert!(is_saved(&read));
        assert_eq!(memory(&read), Some(saved.clone()));
        assert_eq!(forget(&mut config), Some(saved.volume));
        assert_eq!(config.to_string(), before);
    }

    #[test]
    fn memory_of_another_program_is_not_read_and_can_be_given_up() {
        let text = "lock: suspended\nrunningcpu: kvm64\nrunningmachine: pc-i440fx-9.0+pve0\nvmstate: local:100/s.raw\n";
        let mut config = VmConfig::parse(text).unwrap();
        assert_eq!(memory(&config), None);
        assert!(forget(&mut config).is_some());
        assert_eq!(config.to_string(), "lock: suspended\n");
    }
}
