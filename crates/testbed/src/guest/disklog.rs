//! Reads the HTTP guest's data disk and tells whether two writers ever ran (format: `guests/http/record.rs`).

#[path = "../../../../guests/http/record.rs"]
pub mod record;

use anyhow::{Context, Result, ensure};
use record::{CELL, CONFLICTS, DISK, KIND_CONFLICT, KIND_LANE, KIND_RECORD, LANE, Record, SECTOR};
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What one boot of the guest wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Its boot id, in hexadecimal.
    pub boot: String,
    /// The sequence number that it found.
    pub found: u64,
    /// The last number that it wrote; `found` if it wrote none.
    pub last: u64,
    /// The guest's clock at its first and last record, in milliseconds since 1970.
    pub times_ms: (u64, u64),
    /// Other writers that it met.
    pub conflicts: Vec<Record>,
}

/// The whole disk's story, boots in the order of their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskLog {
    /// Each boot that wrote.
    pub boots: Vec<Boot>,
    /// The number in the cell, which the next boot finds. One more than the last boot's last where it was cut off between a
    /// tick's two writes.
    pub cell: u64,
}

impl DiskLog {
    /// Reads a raw data disk.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening the data disk {}", path.display()))?;
        let bytes = file.metadata()?.len();
        Self::from_reader(bytes, |sector, buf| file.read_exact_at(buf, sector * SECTOR as u64))
            .with_context(|| format!("reading the data disk {}", path.display()))
    }

    /// Reads a disk of so many bytes by sectors.
    pub fn from_reader(
        bytes: u64,
        read: impl Fn(u64, &mut [u8; SECTOR]) -> std::io::Result<()>,
    ) -> Result<Self> {
        let get = |sector: u64| -> Result<Option<Record>> {
            let mut buf = [0u8; SECTOR];
            read(sector, &mut buf).with_context(|| format!("sector {sector}"))?;
            Ok(Record::from_sector(&buf))
        };
        ensure!(get(0)?.is_some_and(|r| r.kind == DISK), "no guest has marked this disk as its data disk");
        let mut boots = Vec::new();
        for lane in 0..record::lanes(bytes) {
            let first = record::lane_sector(lane);
            let Some(header) = get(first)?.filter(|r| r.kind == KIND_LANE) else { continue };
            let mut boot = Boot {
                boot: hex(&header.boot),
                found: header.seq,
                last: header.seq,
                times_ms: (header.time_ms, header.time_ms),
                conflicts: Vec::new(),
            };
            for sector in first + 1..first + LANE {
                let Some(r) = get(sector)? else { continue };
                if r.kind == KIND_CONFLICT && sector <= first + CONFLICTS {
                    boot.conflicts.push(r);
                } else if r.kind == KIND_RECORD {
                    boot.last = boot.last.max(r.seq);
                    boot.times_ms.1 = boot.times_ms.1.max(r.time_ms);
                }
            }
            boots.push(boot);
        }
        boots.sort_by_key(|b| (b.found, b.last));
        let cell = get(CELL)?.map_or(0, |c| c.seq);
        Ok(Self { boots, cell })
    }

    /// The highest number written.
    pub fn last(&self) -> u64 {
        self.boots.iter().map(|b| b.last).max().unwrap_or(0)
    }

    /// Why this disk was written by two at a time; nothing if it was not.
    pub fn two_writers(&self) -> Option<String> {
        let mut why = String::new();
        for boot in &self.boots {
            if let Some(c) = boot.conflicts.first() {
                let _ = writeln!(
                    why,
                    "boot {} met boot {} at number {}, which had written {} ({} times in all)",
                    boot.boot,
                    hex(&c.other_boot),
                    c.seq,
                    c.other_seq,
                    boot.conflicts.len()
                );
            }
        }
        for pair in self.boots.windows(2) {
            if pair[0].last > pair[1].found {
                let _ = writeln!(
                    why,
                    "boot {} wrote up to {} although boot {} had begun at {}",
                    pair[0].boot, pair[0].last, pair[1].boot, pair[1].found
                );
            }
        }
        (!why.is_empty()).then_some(why)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{KIND_CELL, RING, checksum};
    use std::collections::BTreeMap;

    /// A disk in memory with writers that follow the guest's own steps.
    #[derive(Default)]
    struct Disk(BTreeMap<u64, [u8; SECTOR]>);

    const BYTES: u64 = 64 << 20;

    struct Writer {
        boot: [u8; 16],
        lane: u64,
        seq: u64,
        written: u64,
        conflicts: u64,
    }

    impl Disk {
        fn get(&self, sector: u64) -> Option<Record> {
            self.0.get(&sector).and_then(Record::from_sector)
        }
        fn put(&mut self, sector: u64, r: Record) {
            self.0.insert(sector, r.to_sector());
        }
        fn begin(&mut self, id: u8) -> Writer {
            let base =
                Record { kind: DISK, boot: [id; 16], seq: 0, time_ms: 7, other_boot: [0; 16], other_seq: 0 };
            self.put(0, base);
            let seq = self.get(CELL).map_or(0, |c| c.seq);
            let lane = record::lane_sector(checksum(&[id; 16]) % record::lanes(BYTES));
            self.put(lane, Record { kind: KIND_LANE, seq, ..base });
            self.put(CELL, Record { kind: KIND_CELL, seq, ..base });
            Writer { boot: [id; 16], lane, seq, written: 0, conflicts: 0 }
        }
        fn tick(&mut self, w: &mut Writer) {
            self.tick_until(w, false);
        }
        /// A tick; `cut` off between its two writes, if so told.
        fn tick_until(&mut self, w: &mut Writer, cut: bool) {
            let base = Record {
                kind: KIND_RECORD,
                boot: w.boot,
                seq: w.seq,
                time_ms: 8,
                other_boot: [0; 16],
                other_seq: 0,
            };
            let c = self.get(CELL).unwrap();
            if (c.boot, c.seq) != (w.boot, w.seq) {
                let met = Record { kind: KIND_CONFLICT, other_boot: c.boot, other_seq: c.seq, ..base };
                self.put(w.lane + 1 + w.conflicts, met);
                w.conflicts += 1;
            }
            w.seq += 1;
            self.put(CELL, Record { kind: KIND_CELL, seq: w.seq, ..base });
            if !cut {
                self.put(w.lane + 1 + CONFLICTS + w.written % RING, Record { seq: w.seq, ..base });
            }
            w.written += 1;
        }
        fn log(&self) -> DiskLog {
            DiskLog::from_reader(BYTES, |s, buf| {
                *buf = self.0.get(&s).copied().unwrap_or([0; SECTOR]);
                Ok(())
            })
            .unwrap()
        }
    }

    #[test]
    fn boots_one_after_the_other_are_no_two_writers() {
        let mut disk = Disk::default();
        for id in 1..4 {
            let mut w = disk.begin(id);
            for _ in 0..3000 {
                disk.tick(&mut w);
            }
        }
        let log = disk.log();
        assert_eq!(log.boots.len(), 3);
        assert_eq!(log.last(), 9000);
        assert_eq!(log.two_writers(), None);
    }

    #[test]
    fn a_boot_that_is_cut_off_between_its_writes_is_no_second_writer() {
        let mut disk = Disk::default();
        for id in 1..4 {
            let mut w = disk.begin(id);
            disk.tick(&mut w);
            disk.tick_until(&mut w, true);
        }
        let log = disk.log();
        assert_eq!(log.two_writers(), None);
        assert_eq!((log.cell, log.last()), (6, 5));
    }

    #[test]
    fn an_old_boot_that_writes_once_more_shows() {
        let mut disk = Disk::default();
        let mut old = disk.begin(1);
        disk.tick(&mut old);
        let mut new = disk.begin(2);
        disk.tick(&mut new);
        disk.tick(&mut new);
        assert_eq!(disk.log().two_writers(), None);
        disk.tick(&mut old);
        let why = disk.log().two_writers().unwrap();
        assert!(why.contains("met boot 0202"), "{why}");
        assert!(why.contains("although boot 0202"), "{why}");
    }

    #[test]
    fn two_copies_of_one_boot_show() {
        let mut disk = Disk::default();
        let mut one = disk.begin(1);
        disk.tick(&mut one);
        let mut copy = Writer { ..one };
        disk.tick(&mut one);
        disk.tick(&mut copy);
        assert!(disk.log().two_writers().is_some());
    }

    #[test]
    fn a_damaged_sector_is_no_record() {
        let r = Record {
            kind: KIND_RECORD,
            boot: [3; 16],
            seq: 9,
            time_ms: 1,
            other_boot: [0; 16],
            other_seq: 0,
        };
        let mut s = r.to_sector();
        assert_eq!(Record::from_sector(&s), Some(r));
        s[30] ^= 1;
        assert_eq!(Record::from_sector(&s), None);
        assert_eq!(Record::from_sector(&[0; SECTOR]), None);
    }
}
