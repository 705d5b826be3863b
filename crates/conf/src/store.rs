//! The log, term and vote, and the last whole state, on disk.
//!
//! One redb file. A batch of [`Persist`]s is one transaction, on stable storage before it is reported: group commit.
//! Every row is in an envelope with a checksum, and the head says which rows there must be, so that damage and loss
//! are found when the store is opened. A damaged store is never used and never taken for an empty one.
//!
//! ```text
//! head   "head"         format, whose, boots, term and vote, first and last entry, where the state is
//! log    index       -> entry
//! state  piece       -> part of the machine's image, all of one state
//! ```
//!
//! [`Disk`] is all that the host of a driver needs, so that the simulator can supply a modelled one. The file's own
//! behaviour under crashes is searched through redb's backend.

use crate::codec::{self, CodecError};
use crate::driver::{Persist, Recovered, StoredState};
use crate::engine::Hard;
use crate::error::StoreError;
use crate::machine::{Machine, MachineFault};
use crate::wire::LogEntry;
use redb::backends::InMemoryBackend;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// The format that is written.
pub const FORMAT: u32 = 1;

const FILE: &str = "conf.redb";
const HEAD: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("head");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const STATE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("state");
/// Bytes of the state in one row.
const PIECE: usize = 256 << 10;
/// The store is read whole when it is opened and only written afterwards.
const CACHE: usize = 2 << 20;

/// Something that keeps [`Persist`]s.
pub trait Disk {
    /// Makes all of them durable, in their order. After an error nothing may be written any more.
    fn write(&mut self, batch: &[Persist]) -> Result<(), StoreError>;
}

/// What must be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    format: u32,
    id: u64,
    boot: u64,
    hard: Hard,
    truncated: (u64, u64),
    last: u64,
    state_index: u64,
    state_pieces: u64,
    state_bytes: u64,
}

/// The store on disk.
#[derive(Debug)]
pub struct Store {
    db: Database,
    dir: PathBuf,
    head: Head,
}

/// Whether a folder holds a store.
pub fn exists(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

/// Bytes that the store in a folder has on the disk; 0 if there is none.
pub fn size(dir: &Path) -> u64 {
    fs::metadata(dir.join(FILE)).map_or(0, |meta| meta.len())
}

/// What a store holds that was looked at and not opened.
#[derive(Debug)]
pub struct Inspected {
    /// Whose it is, by its number in Raft.
    pub id: u64,
    /// How often it was opened.
    pub boots: u64,
    /// What it holds.
    pub recovered: Recovered,
}

/// Reads and checks the store in a folder, which nobody may have open, and leaves it as it is: in memory, which takes as much as the
/// file has. What was cut off by a crash is mended there alone.
///
/// # Errors
/// If there is none, or it can't be read or makes no sense.
pub fn inspect(dir: &Path) -> Result<Inspected, StoreError> {
    let data = match fs::read(dir.join(FILE)) {
        Ok(data) if data.is_empty() => return Err(damaged(dir, &"the file is empty")),
        Ok(data) => data,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::Missing { dir: dir.to_owned() });
        }
        Err(source) => return Err(StoreError::Io { action: "read", dir: dir.to_owned(), source }),
    };
    let copied = |source| StoreError::Io { action: "copy", dir: dir.to_owned(), source };
    let memory = InMemoryBackend::new();
    memory.set_len(data.len() as u64).map_err(copied)?;
    memory.write(0, &data).map_err(copied)?;
    drop(data);
    let read = catch_unwind(AssertUnwindSafe(|| {
        let of = |error| of_database(dir, "read", error);
        let mut db = Database::builder().set_cache_size(CACHE).create_with_backend(memory).map_err(of)?;
        if !db.check_integrity().map_err(of)? {
            return Err(damaged(dir, &"its pages do not fit each other"));
        }
        let store = Store::with(db, dir)?;
        if store.head.format > FORMAT {
            return Err(StoreError::Format { dir: dir.to_owned(), found: store.head.format, known: FORMAT });
        }
        let recovered = store.read().map_err(|error| error.at(dir, "read"))?;
        Ok(Inspected { id: store.head.id, boots: store.head.boot, recovered })
    }));
    read.unwrap_or_else(|_| Err(damaged(dir, &"its structure makes no sense")))
}

impl Store {
    /// Makes a store with a first state, in a folder that has none. It is there whole or not at all.
    pub fn create(dir: &Path, id: u64, machine: &Machine) -> Result<(Self, Recovered, u64), StoreError> {
        if exists(dir) {
            return Err(StoreError::Exists { dir: dir.to_owned() });
        }
        let io = |action| move |source| StoreError::Io { action, dir: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("create"))?;
        let new = dir.join("conf.redb.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("create")(error)),
            _ => {}
        }
        let db = Database::builder()
            .set_cache_size(CACHE)
            .create(&new)
            .map_err(|error| of_database(dir, "create", error))?;
        drop(Self::fill(db, dir, id, machine)?);
        fs::rename(&new, dir.join(FILE)).map_err(io("create"))?;
        File::open(dir).and_then(|folder| folder.sync_all()).map_err(io("create"))?;
        Self::open(dir, id)
    }

    /// Makes a store in a backend, for a simulation of disks.
    pub fn create_in(
        backend: impl redb::StorageBackend,
        id: u64,
        machine: &Machine,
    ) -> Result<(Self, Recovered, u64), StoreError> {
        let dir = Path::new("simulated");
        let db = Database::builder()
            .set_cache_size(CACHE)
            .create_with_backend(backend)
            .map_err(|error| of_database(dir, "create", error))?;
        Self::fill(db, dir, id, machine)?.load(id)
    }

    /// Opens a store in a backend, for a simulation of disks.
    pub fn open_in(
        backend: impl redb::StorageBackend,
        id: u64,
    ) -> Result<(Self, Recovered, u64), StoreError> {
        let dir = Path::new("simulated");
        let db = Database::builder()
            .set_cache_size(CACHE)
            .create_with_backend(backend)
            .map_err(|error| of_database(dir, "open", error))?;
        Self::with(db, dir)?.load(id)
    }

    /// Opens the store in a folder. Gives what it holds and how often it has now been opened.
    pub fn open(dir: &Path, id: u64) -> Result<(Self, Recovered, u64), StoreError> {
        let file = dir.join(FILE);
        match fs::metadata(&file) {
            Ok(meta) if meta.len() == 0 => return Err(damaged(dir, &"the file is empty")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { dir: dir.to_owned() });
            }
            Err(source) => return Err(StoreError::Io { action: "open", dir: dir.to_owned(), source }),
        }
        // A file that is damaged in a way that redb did not think of is damaged all the same.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let db = Database::builder()
                .set_cache_size(CACHE)
                .open(&file)
                .map_err(|error| of_database(dir, "open", error))?;
            Self::with(db, dir)?.load(id)
        }));
        opened.unwrap_or_else(|_| Err(damaged(dir, &"its structure makes no sense")))
    }

    fn fill(db: Database, dir: &Path, id: u64, machine: &Machine) -> Result<Self, StoreError> {
        let index = machine.applied();
        let term = u64::from(index > 0);
        let head = Head {
            format: FORMAT,
            id,
            boot: 0,
            hard: Hard { term, vote: 0, commit: index },
            truncated: (index, term),
            last: index,
            state_index: 0,
            state_pieces: 0,
            state_bytes: 0,
        };
        let mut store = Self { db, dir: dir.to_owned(), head };
        let image = machine.encode().map_err(|error| damaged(dir, &error))?;
        let state = Some(StoredState { index, image: image.into() });
        store.write(&[Persist { state, ..Persist::default() }])?;
        Ok(store)
    }

    fn with(db: Database, dir: &Path) -> Result<Self, StoreError> {
        let head = read_head(&db).map_err(|error| error.at(dir, "open"))?;
        Ok(Self { db, dir: dir.to_owned(), head })
    }

    /// Reads everything, checks it, and counts the opening.
    fn load(mut self, id: u64) -> Result<(Self, Recovered, u64), StoreError> {
        if self.head.format > FORMAT {
            let dir = self.dir;
            return Err(StoreError::Format { dir, found: self.head.format, known: FORMAT });
        }
        if self.head.id != id {
            return Err(StoreError::Identity { dir: self.dir, found: self.head.id, expected: id });
        }
        let recovered = self.read().map_err(|error| error.at(&self.dir, "read"))?;
        self.head.boot += 1;
        self.write(&[])?;
        let boot = self.head.boot;
        Ok((self, recovered, boot))
    }

    fn read(&self) -> Result<Recovered, Fault> {
        let head = &self.head;
        let transaction = self.db.begin_read()?;
        let log = transaction.open_table(LOG)?;
        let mut entries: Vec<LogEntry> = Vec::new();
        let mut next = head.truncated.0 + 1;
        for row in log.iter()? {
            let (index, row) = row?;
            let entry: LogEntry = codec::unpack(codec::LOG, row.value())?;
            if index.value() != next || entry.index != next {
                return Err(Fault::Content(format!("log entry {} where {next} should be", index.value())));
            }
            next += 1;
            entries.push(entry);
        }
        if next != head.last + 1 {
            return Err(Fault::Content(format!("the log ends at {}, not {}", next - 1, head.last)));
        }
        let machine = self.read_state(&transaction)?;
        let index = machine.applied();
        if index != head.state_index || index < head.truncated.0 || index > head.last {
            return Err(Fault::Content(format!("the state of entry {index} does not fit its log")));
        }
        Ok(Recovered { hard: head.hard, truncated: head.truncated, entries, machine })
    }

    fn read_state(&self, transaction: &redb::ReadTransaction) -> Result<Machine, Fault> {
        let table = transaction.open_table(STATE)?;
        let mut image = Vec::new();
        for (piece, row) in (0..).zip(table.iter()?) {
            let (key, part) = row?;
            if key.value() != piece {
                return Err(Fault::Content(format!("piece {piece} of the state is missing")));
            }
            image.extend_from_slice(part.value());
        }
        if image.len() as u64 != self.head.state_bytes {
            return Err(Fault::Content("the state is cut".to_owned()));
        }
        Ok(Machine::decode(&image)?)
    }

    fn commit(&mut self, batch: &[Persist]) -> Result<(), Fault> {
        let transaction = self.db.begin_write()?;
        {
            let mut log = transaction.open_table(LOG)?;
            let mut state = transaction.open_table(STATE)?;
            for persist in batch {
                put(&mut self.head, &mut log, &mut state, persist)?;
            }
            let row = codec::pack(codec::HEAD, &self.head)?;
            transaction.open_table(HEAD)?.insert("head", row.as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }
}

impl Disk for Store {
    fn write(&mut self, batch: &[Persist]) -> Result<(), StoreError> {
        self.commit(batch).map_err(|error| error.at(&self.dir, "write"))
    }
}

fn put(
    head: &mut Head,
    log: &mut redb::Table<'_, u64, &'static [u8]>,
    state: &mut redb::Table<'_, u64, &'static [u8]>,
    persist: &Persist,
) -> Result<(), Fault> {
    if let Some(hard) = persist.hard {
        head.hard = hard;
    }
    if persist.reset {
        log.retain(|_, _| false)?;
    }
    if let Some(first) = persist.entries.first() {
        log.retain_in(first.index.., |_, _| false)?;
        for entry in &persist.entries {
            log.insert(entry.index, codec::pack(codec::LOG, entry)?.as_slice())?;
            head.last = entry.index;
        }
    }
    if let Some((index, term)) = persist.truncate {
        log.retain_in(..=index, |_, _| false)?;
        head.truncated = (index, term);
        head.last = if persist.reset && persist.entries.is_empty() { index } else { head.last.max(index) };
    }
    if let Some(stored) = &persist.state {
        state.retain(|_, _| false)?;
        head.state_pieces = 0;
        for part in stored.image.chunks(PIECE) {
            state.insert(head.state_pieces, part)?;
            head.state_pieces += 1;
        }
        head.state_index = stored.index;
        head.state_bytes = stored.image.len() as u64;
    }
    Ok(())
}

fn read_head(db: &Database) -> Result<Head, Fault> {
    let transaction = db.begin_read()?;
    let table = transaction.open_table(HEAD)?;
    let row = table.get("head")?.ok_or_else(|| Fault::Content("it has no head".to_owned()))?;
    Ok(codec::unpack(codec::HEAD, row.value())?)
}

fn damaged(dir: &Path, what: &impl ToString) -> StoreError {
    StoreError::Damaged { dir: dir.to_owned(), what: what.to_string() }
}

/// What can go wrong inside, before it is known where.
enum Fault {
    Io(io::Error),
    Content(String),
    Level { found: u32, known: u32 },
}

impl Fault {
    fn at(self, dir: &Path, action: &'static str) -> StoreError {
        match self {
            Self::Io(source) => StoreError::Io { action, dir: dir.to_owned(), source },
            Self::Content(what) => damaged(dir, &what),
            Self::Level { found, known } => StoreError::Level { dir: dir.to_owned(), found, known },
        }
    }
}

impl From<MachineFault> for Fault {
    fn from(fault: MachineFault) -> Self {
        match fault {
            MachineFault::Level { level, supported } => Self::Level { found: level, known: supported },
            MachineFault::Entry(error) => error.into(),
        }
    }
}

impl From<CodecError> for Fault {
    fn from(error: CodecError) -> Self {
        Self::Content(error.to_string())
    }
}

impl From<redb::StorageError> for Fault {
    fn from(error: redb::StorageError) -> Self {
        match error {
            redb::StorageError::Io(error) if error.kind() != io::ErrorKind::InvalidData => Self::Io(error),
            redb::StorageError::PreviousIo => Self::Io(io::Error::other("an earlier write failed")),
            other => Self::Content(other.to_string()),
        }
    }
}

macro_rules! by_storage {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for Fault {
            fn from(error: redb::$error) -> Self {
                match error {
                    redb::$error::Storage(error) => error.into(),
                    other => Self::Content(other.to_string()),
                }
            }
        }
    )*};
}

by_storage!(TableError, TransactionError, CommitError);

fn of_database(dir: &Path, action: &'static str, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::Storage(error) => Fault::from(error).at(dir, action),
        DatabaseError::DatabaseAlreadyOpen => {
            let source = io::Error::new(io::ErrorKind::ResourceBusy, "another process has it open");
            StoreError::Io { action, dir: dir.to_owned(), source }
        }
        other => damaged(dir, &other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_head() {
        let head = Head {
            format: 1,
            id: 2,
            boot: 3,
            hard: Hard { term: 4, vote: 5, commit: 600 },
            truncated: (500, 4),
            last: 601,
            state_index: 550,
            state_pieces: 2,
            state_bytes: 300_000,
        };
        let row = codec::pack(codec::HEAD, &head).unwrap();
        codec::golden(&row, "golden/head.hex");
        assert_eq!(codec::unpack::<Head>(codec::HEAD, &row).unwrap(), head);
    }
}
