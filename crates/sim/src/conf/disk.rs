//! Disks that can be cut from power at any operation.
//!
//! [`ModelDisk`] keeps what a store means: a group of writes is there whole or not at all, and what was not synced
//! may be lost. It is fast. [`PageDisk`] runs the real store over a file of modelled sectors, in which each write
//! since the last sync survives, is lost or is torn by itself; it shows that the real store keeps the model's word.

use super::dice::Dice;
use redb::StorageBackend;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stead_conf::driver::{Persist, Recovered};
use stead_conf::store::{Disk, Store};
use stead_conf::{Hard, LogEntry, Machine};

const SECTOR: usize = 512;

/// A node's disk.
#[derive(Debug)]
pub enum SimDisk {
    /// By meaning.
    Model(ModelDisk),
    /// By sectors.
    Pages(PageDisk),
}

impl SimDisk {
    /// A disk with a first state.
    pub fn new(id: u64, machine: &Machine, pages: bool) -> Result<Self, String> {
        if pages {
            Ok(Self::Pages(PageDisk::new(id, machine)?))
        } else {
            Ok(Self::Model(ModelDisk::new(machine)?))
        }
    }

    /// Writes and syncs.
    pub fn write(&mut self, batch: &[Persist]) -> Result<(), String> {
        match self {
            Self::Model(disk) => {
                disk.write(batch);
                Ok(())
            }
            Self::Pages(disk) => disk.write(batch),
        }
    }

    /// The power goes while a batch is being written.
    pub fn cut(&mut self, batch: &[Persist], dice: &mut Dice) {
        match self {
            Self::Model(disk) => {
                if dice.chance(500) {
                    disk.write(batch);
                }
            }
            Self::Pages(disk) => disk.cut(batch, dice),
        }
    }

    /// What was written last is not there any more, and nothing tells. Of the model alone.
    pub fn lose_tail(&mut self) {
        if let Self::Model(disk) = self {
            disk.log.pop_last();
            let last = disk.log.last_key_value().map_or(disk.truncated.0, |(index, _)| *index);
            disk.hard.commit = disk.hard.commit.min(last);
        }
    }

    /// What is there when the node starts again, and how often it has started.
    pub fn recover(&mut self) -> Result<(Recovered, u64), String> {
        match self {
            Self::Model(disk) => disk.recover(),
            Self::Pages(disk) => disk.recover(),
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct ModelDisk {
    hard: Hard,
    truncated: (u64, u64),
    log: BTreeMap<u64, LogEntry>,
    image: Vec<u8>,
    boot: u64,
}

impl ModelDisk {
    fn new(machine: &Machine) -> Result<Self, String> {
        let index = machine.applied();
        let term = u64::from(index > 0);
        Ok(Self {
            hard: Hard { term, vote: 0, commit: index },
            truncated: (index, term),
            log: BTreeMap::new(),
            image: machine.encode().map_err(|error| error.to_string())?,
            boot: 0,
        })
    }

    fn write(&mut self, batch: &[Persist]) {
        for persist in batch {
            self.hard = persist.hard.unwrap_or(self.hard);
            if persist.reset {
                self.log.clear();
            }
            if let Some(first) = persist.entries.first() {
                self.log.split_off(&first.index);
                self.log.extend(persist.entries.iter().map(|entry| (entry.index, entry.clone())));
            }
            if let Some(truncated) = persist.truncate {
                self.log = self.log.split_off(&(truncated.0 + 1));
                self.truncated = truncated;
            }
            if let Some(state) = &persist.state {
                self.image = state.image.to_vec();
            }
        }
    }

    fn recover(&mut self) -> Result<(Recovered, u64), String> {
        self.boot += 1;
        let machine = Machine::decode(&self.image).map_err(|error| error.to_string())?;
        let entries = self.log.values().cloned().collect();
        Ok((Recovered { hard: self.hard, truncated: self.truncated, entries, machine }, self.boot))
    }
}

/// See the module.
#[derive(Debug)]
pub struct PageDisk {
    id: u64,
    file: Pages,
    store: Option<Store>,
}

impl PageDisk {
    fn new(id: u64, machine: &Machine) -> Result<Self, String> {
        let file = Pages::default();
        drop(Store::create_in(file.clone(), id, machine).map_err(|error| error.to_string())?);
        Ok(Self { id, file, store: None })
    }

    fn write(&mut self, batch: &[Persist]) -> Result<(), String> {
        let store = self.store.as_mut().ok_or("the store is not open")?;
        store.write(batch).map_err(|error| error.to_string())
    }

    fn cut(&mut self, batch: &[Persist], dice: &mut Dice) {
        self.file.lock().left = Some(dice.below(24));
        if let Some(mut store) = self.store.take() {
            // It fails at some operation, or has just been done.
            let _cut = store.write(batch);
        }
        self.file.lock().crash(dice);
    }

    fn recover(&mut self) -> Result<(Recovered, u64), String> {
        let opened = Store::open_in(self.file.clone(), self.id);
        let (store, recovered, boot) = opened.map_err(|error| error.to_string())?;
        self.store = Some(store);
        Ok((recovered, boot))
    }
}

/// A file of sectors.
#[derive(Debug, Clone, Default)]
pub struct Pages(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    /// As seen by who reads now.
    seen: Vec<u8>,
    /// As it is on stable storage.
    safe: Vec<u8>,
    /// Written since the last sync, in order.
    unsafe_writes: Vec<(usize, Vec<u8>)>,
    /// How many operations more succeed, if the power is going.
    left: Option<u64>,
}

impl Content {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Each write since the last sync survives, is lost, or survives up to some sector.
    fn crash(&mut self, dice: &mut Dice) {
        self.left = None;
        let mut safe = std::mem::take(&mut self.safe);
        safe.resize(self.seen.len().max(safe.len()), 0);
        for (at, data) in std::mem::take(&mut self.unsafe_writes) {
            let kept = match dice.below(3) {
                0 => 0,
                1 => data.len(),
                _ => {
                    let sectors = (data.len() / SECTOR) as u64;
                    usize::try_from(dice.below(sectors + 1)).unwrap_or(0) * SECTOR
                }
            };
            let end = (at + kept).min(safe.len());
            safe[at..end].copy_from_slice(&data[..end - at]);
        }
        self.seen.clone_from(&safe);
        self.safe = safe;
    }
}

impl Pages {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
    let at = usize::try_from(offset).map_err(io::Error::other)?;
    Ok(at..at + len)
}

impl StorageBackend for Pages {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let content = self.lock();
        let range = place(offset, out.len())?;
        out.copy_from_slice(content.seen.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut content = self.lock();
        content.step()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        content.seen.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut content = self.lock();
        content.step()?;
        let len = content.seen.len();
        content.safe.resize(len, 0);
        for (at, data) in std::mem::take(&mut content.unsafe_writes) {
            let end = (at + data.len()).min(len);
            content.safe[at..end].copy_from_slice(&data[..end - at]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut content = self.lock();
        content.step()?;
        let range = place(offset, data.len())?;
        if range.end > content.seen.len() {
            content.seen.resize(range.end, 0);
        }
        content.seen[range.clone()].copy_from_slice(data);
        content.unsafe_writes.push((range.start, data.to_vec()));
        Ok(())
    }
}
