//! What outlives this process: who was registered, in `SOCKET.state` beside the socket. JSON, versioned.

use crate::process::Process;
use crate::protocol::Registration;
use serde::{Deserialize, Serialize};
use std::path::Path;

const VERSION: u32 = 1;

/// The whole record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    v: u32,
    /// The kernel's boot id: after another boot nothing of this lives any more.
    boot: String,
    pub drain_ms: u64,
    pub watchdog_ms: u64,
    pub guests: Vec<Entry>,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub registration: Registration,
    pub process: Option<Process>,
    /// It was verified paused, and not continued since.
    pub paused: bool,
    /// It was paused by its user when it was made safe: a thaw leaves it so.
    pub user_paused: bool,
}

impl Record {
    pub fn new(drain_ms: u64, watchdog_ms: u64, guests: Vec<Entry>) -> Self {
        Self { v: VERSION, boot: boot_id(), drain_ms, watchdog_ms, guests }
    }

    /// The record of an earlier process of this boot, if there is one. One that cannot be read is an error: to go on
    /// as if there were no guests would leave them unguarded.
    pub fn load(path: &Path) -> std::io::Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let record: Self = serde_json::from_slice(&text)?;
        if record.v != VERSION {
            return Err(std::io::Error::other(format!(
                "it is of version {}, this program knows 1",
                record.v
            )));
        }
        Ok(Some(record).filter(|r| r.boot == boot_id()))
    }

    /// Replaces the record on disk. Not synced: it need not outlive the boot.
    pub fn store(&self, path: &Path) -> std::io::Result<()> {
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(&new, path)
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_for_one_boot_and_one_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert_eq!(Record::load(&path).unwrap(), None);
        let record = Record::new(1000, 2000, Vec::new());
        record.store(&path).unwrap();
        assert_eq!(Record::load(&path).unwrap(), Some(record.clone()));
        Record { boot: "another".into(), ..record.clone() }.store(&path).unwrap();
        assert_eq!(Record::load(&path).unwrap(), None);
        Record { v: 2, ..record }.store(&path).unwrap();
        assert!(Record::load(&path).is_err());
        std::fs::write(&path, "{").unwrap();
        assert!(Record::load(&path).is_err());
    }

    #[test]
    fn golden() {
        let registration = Registration {
            vmid: stead_model::Vmid::new(100).unwrap(),
            epoch: stead_model::Epoch(3),
            cgroup: None,
            monitor: "/r/f".into(),
            pidfile: "/r/p".into(),
            fetches: false,
        };
        let entry = Entry { registration, process: None, paused: true, user_paused: false };
        let record = Record { boot: "b".into(), ..Record::new(1000, 2000, vec![entry]) };
        let text = r#"{"v":1,"boot":"b","drain_ms":1000,"watchdog_ms":2000,"guests":[{"registration":{"vmid":100,"epoch":3,"cgroup":null,"monitor":"/r/f","pidfile":"/r/p"},"process":null,"paused":true,"user_paused":false}]}"#;
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }
}
