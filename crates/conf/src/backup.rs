//! The whole configuration in one file, from which another store can be made.
//!
//! ```text
//! magic (with the version) | length of the head u32 LE | head | state | SHA-256 of all before
//!                                                       in their envelopes (codec)
//! ```
//!
//! The state is what a snapshot holds: the tree, its history, who took part. The head says whose it is, and has the cluster's key:
//! without it the secrets in the tree could not be opened where the cluster's nodes are gone. Whoever has the file has the cluster.

use crate::codec::{self, CodecError, Kind};
use crate::machine::{Machine, MachineFault};
use crate::seal::ClusterKey;
use crate::tree::{StateHash, Tree};
use crate::txn::Revision;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stead_model::Era;

/// What every backup begins with; another format would have another.
const MAGIC: &[u8; 16] = b"stead-backup-1\r\n";
const SUM: usize = 32;
const HEAD: Kind = Kind { id: b'B', version: 1, name: "backup's head" };

/// Whose state a backup holds, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHead {
    /// When: milliseconds since 1970.
    pub at_ms: u64,
    /// Which node has made it.
    pub node: String,
    /// The cluster epoch.
    pub era: Era,
    /// The tree's last transaction.
    pub revision: Revision,
    /// The tree's fingerprint.
    pub hash: StateHash,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    head: BackupHead,
    key: [u8; 32],
}

/// A backup that was read and found whole.
#[derive(Debug)]
pub struct Backup {
    head: BackupHead,
    key: ClusterKey,
    machine: Machine,
}

/// Why a file is no backup that can be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It begins with something else.
    #[error("it is no backup of a configuration, or one of a newer version")]
    Foreign,
    /// It was cut, or something of it was changed.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It needs a newer version.
    #[error(transparent)]
    State(#[from] MachineFault),
}

impl From<CodecError> for BackupError {
    fn from(e: CodecError) -> Self {
        Self::Damaged(e.to_string())
    }
}

impl Backup {
    /// A backup of a state: by `node` in the epoch `era`, at `at_ms` milliseconds since 1970.
    pub fn of(machine: Machine, key: ClusterKey, node: &str, era: Era, at_ms: u64) -> Self {
        let tree = machine.tree();
        let head =
            BackupHead { at_ms, node: node.to_owned(), era, revision: tree.revision(), hash: tree.hash() };
        Self { head, key, machine }
    }

    /// The file's content.
    ///
    /// # Errors
    /// If the state is larger than an envelope can say.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let stored = Stored { head: self.head.clone(), key: *self.key.expose() };
        let (head, state) = (codec::pack(HEAD, &stored)?, self.machine.encode()?);
        let len =
            u32::try_from(head.len()).map_err(|_| CodecError::Cut { name: HEAD.name, len: head.len() })?;
        let mut out = Vec::with_capacity(MAGIC.len() + 4 + head.len() + state.len() + SUM);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(&state);
        let sum: [u8; SUM] = Sha256::digest(&out).into();
        out.extend_from_slice(&sum);
        Ok(out)
    }

    /// Reads a file's content, and all that it says of itself.
    ///
    /// # Errors
    /// If it is none, is damaged, or needs a newer version.
    pub fn decode(data: &[u8]) -> Result<Self, BackupError> {
        let cut = || BackupError::Damaged("it is cut".to_owned());
        if !data.starts_with(MAGIC) {
            return Err(BackupError::Foreign);
        }
        let (body, sum) = data.split_last_chunk::<SUM>().ok_or_else(cut)?;
        let expected: [u8; SUM] = Sha256::digest(body).into();
        if expected != *sum {
            return Err(BackupError::Damaged("its checksum is another: it was cut or changed".to_owned()));
        }
        let rest = body.get(MAGIC.len()..).ok_or_else(cut)?;
        let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let (head, state) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(cut)?;
        let Stored { head, key } = codec::unpack(HEAD, head)?;
        let machine = Machine::decode(state)?;
        if machine.hash() != head.hash || machine.tree().revision() != head.revision {
            return Err(BackupError::Damaged("its state is not the one that it was made of".to_owned()));
        }
        Ok(Self { head, key: ClusterKey::from(key), machine })
    }

    /// Whose, and when.
    pub fn head(&self) -> &BackupHead {
        &self.head
    }

    /// The cluster's key.
    pub fn key(&self) -> &ClusterKey {
        &self.key
    }

    /// The tree.
    pub fn tree(&self) -> &Tree {
        self.machine.tree()
    }

    /// The whole state.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(crate) fn into_machine(self) -> Machine {
        self.machine
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::{Op, Txn};

    fn backup() -> Backup {
        let machine = Machine::found(1, &Txn::new("root@pam").note("first").put("a", "1"), 1_000).unwrap();
        Backup::of(machine, ClusterKey::from([7; 32]), "n1", Era::FIRST.next(5), 2_000)
    }

    #[test]
    fn golden_backup() {
        let data = backup().encode().unwrap();
        codec::golden(&data, "golden/backup.hex");
        let read = Backup::decode(&data).unwrap();
        assert_eq!(read.head(), backup().head());
        assert_eq!((read.key(), read.tree().text("a")), (&ClusterKey::from([7; 32]), Some("1")));
        assert_eq!(read.machine().encode().unwrap(), backup().machine().encode().unwrap());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let data = backup().encode().unwrap();
        for bit in 0..data.len() * 8 {
            let mut bad = data.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Backup::decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..data.len() {
            assert!(Backup::decode(&data[..len]).is_err(), "cut to {len}");
        }
        let longer = [&data[..], b"x"].concat();
        assert!(Backup::decode(&longer).is_err());
    }

    #[test]
    fn a_backup_of_a_newer_level_is_refused_by_its_level() {
        let level = crate::machine::SUPPORTED_LEVEL + 1;
        let newer = Machine::found(1, &Txn::new("x").op(Op::Level(level)), 0).unwrap();
        let data = Backup::of(newer, ClusterKey::from([7; 32]), "n1", Era::FIRST, 0).encode().unwrap();
        assert!(matches!(Backup::decode(&data), Err(BackupError::State(MachineFault::Level { .. }))));
    }

    #[test]
    fn the_key_does_not_show() {
        assert!(!format!("{:?}", backup()).contains("7, 7"));
    }
}
