//! The boot-sector guest: its disk, and what it wrote there.

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The boot sector itself.
pub const SECTOR: &[u8; 512] = include_bytes!(concat!(env!("OUT_DIR"), "/tick.bin"));

/// The same of one that changes 12 MiB of its memory, faster than 4 MiB a second are sent.
pub const WRITES: &[u8; 512] = include_bytes!(concat!(env!("OUT_DIR"), "/writes.bin"));

/// Bytes of the disk: the boot sector, the cell, and room so that no driver finds it too small.
pub const DISK_BYTES: u64 = 1 << 20;

/// Writes a bootable raw disk.
pub fn write_disk(path: &Path) -> Result<()> {
    write_disk_of(path, SECTOR)
}

/// Writes a bootable raw disk that begins with this sector.
pub fn write_disk_of(path: &Path, sector: &[u8; 512]) -> Result<()> {
    std::fs::write(path, sector).with_context(|| format!("writing the guest's disk {}", path.display()))?;
    File::options().write(true).open(path)?.set_len(DISK_BYTES)?;
    Ok(())
}

/// What the guest last wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Distinguishes boots.
    pub id: u64,
    /// Raised about five times a second, over all boots.
    pub count: u32,
    /// How often a boot found another writer's cell in place of its own, over all boots. Anything but 0 is a guest
    /// that ran twice.
    pub conflicts: u32,
}

/// Reads the cell; none if the guest never wrote.
pub fn read_cell(path: &Path) -> Result<Option<Cell>> {
    let mut file =
        File::open(path).with_context(|| format!("opening the guest's disk {}", path.display()))?;
    let mut sectors = [0u8; 1024];
    file.read_exact(&mut sectors).with_context(|| format!("reading the guest's disk {}", path.display()))?;
    ensure!(sectors[510..512] == [0x55, 0xaa], "{} is not a disk of the tick guest", path.display());
    let cell = &sectors[512..];
    if !cell.starts_with(b"STEADTIK") {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes([cell[at], cell[at + 1], cell[at + 2], cell[at + 3]]);
    Ok(Some(Cell {
        id: u64::from(word(12)) << 32 | u64::from(word(8)),
        count: word(16),
        conflicts: word(24),
    }))
}
