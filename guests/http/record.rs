//! What the guest writes to its data disk, and how two writers show in it.
//!
//! Shared by the guest's program, which writes it, and the testbed, which reads it. All numbers are little-endian, every
//! write is one sector, and every sector ends with a checksum of itself.
//!
//! ```text
//!   sector 0          header: marks the disk as ours
//!   sector 1          the cell: boot id and sequence number of the last write
//!   from sector 64    lanes of 2048 sectors, one a boot: its header, 63 conflicts, a ring of 1984 records
//! ```
//!
//! A writer that held the cell and finds in it anything but its own last write has met another writer, be it another boot
//! or another copy of itself, and says so in its own lane, where nobody overwrites it. Independently of that, a boot
//! goes on with the sequence number it found, so that an older boot which still writes shows by numbers that overlap. The
//! cell is written before the record: power may go between the two.

/// Bytes in a sector.
pub const SECTOR: usize = 512;
/// The sector of the cell.
pub const CELL: u64 = 1;
/// The first lane's first sector.
pub const FIRST_LANE: u64 = 64;
/// Sectors in a lane.
pub const LANE: u64 = 2048;
/// Conflicts that a lane can hold; later ones are not written.
pub const CONFLICTS: u64 = 63;
/// Records in a lane's ring.
pub const RING: u64 = LANE - 1 - CONFLICTS;

/// The header of the disk.
pub const DISK: [u8; 8] = *b"STEADLG1";
/// The cell.
pub const KIND_CELL: [u8; 8] = *b"STEADCEL";
/// The header of a lane: `seq` is the number that the boot found in the cell.
pub const KIND_LANE: [u8; 8] = *b"STEADLAN";
/// A record of the ring.
pub const KIND_RECORD: [u8; 8] = *b"STEADREC";
/// A conflict: `other_boot` and `other_seq` were found in the cell instead of the writer's own last write.
pub const KIND_CONFLICT: [u8; 8] = *b"STEADCON";

/// One sector's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// One of the kinds above.
    pub kind: [u8; 8],
    /// Who wrote it: random, made at boot.
    pub boot: [u8; 16],
    /// The sequence number.
    pub seq: u64,
    /// The guest's real time in milliseconds since 1970, as good as its clock.
    pub time_ms: u64,
    /// In a conflict, the boot found.
    pub other_boot: [u8; 16],
    /// In a conflict, the sequence number found.
    pub other_seq: u64,
}

impl Record {
    /// The sector to write.
    pub fn to_sector(self) -> [u8; SECTOR] {
        let mut s = [0u8; SECTOR];
        s[0..8].copy_from_slice(&self.kind);
        s[8..24].copy_from_slice(&self.boot);
        s[24..32].copy_from_slice(&self.seq.to_le_bytes());
        s[32..40].copy_from_slice(&self.time_ms.to_le_bytes());
        s[40..56].copy_from_slice(&self.other_boot);
        s[56..64].copy_from_slice(&self.other_seq.to_le_bytes());
        let sum = checksum(&s[..SECTOR - 8]);
        s[SECTOR - 8..].copy_from_slice(&sum.to_le_bytes());
        s
    }

    /// The record in a sector; none if it was never written or is damaged.
    pub fn from_sector(s: &[u8; SECTOR]) -> Option<Self> {
        fn take<const N: usize>(s: &[u8; SECTOR], at: usize) -> [u8; N] {
            let mut out = [0u8; N];
            out.copy_from_slice(&s[at..at + N]);
            out
        }
        let sum = u64::from_le_bytes(take(s, SECTOR - 8));
        let kind = take(s, 0);
        if !kind.starts_with(b"STEAD") || sum != checksum(&s[..SECTOR - 8]) {
            return None;
        }
        Some(Self {
            kind,
            boot: take(s, 8),
            seq: u64::from_le_bytes(take(s, 24)),
            time_ms: u64::from_le_bytes(take(s, 32)),
            other_boot: take(s, 40),
            other_seq: u64::from_le_bytes(take(s, 56)),
        })
    }
}

/// How many lanes a disk of so many bytes has.
pub fn lanes(bytes: u64) -> u64 {
    (bytes / SECTOR as u64).saturating_sub(FIRST_LANE) / LANE
}

/// The first sector of a lane.
pub fn lane_sector(lane: u64) -> u64 {
    FIRST_LANE + lane * LANE
}

/// FNV-1a; enough to tell a whole sector from a torn or foreign one.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}
