//! Loopback addresses and ports of a testbed's own.
//!
//! Each testbed has a block 127.x.y.0/24, held by a lock as long as it lives, so that several at once never meet. In its
//! block it takes port 8006, or the next that is free: whoever listens on 0.0.0.0:8006 has that port on every address.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A block of loopback addresses. Free again when dropped.
#[derive(Debug)]
pub struct Block {
    x: u8,
    y: u8,
    place: PathBuf,
    lock: Option<File>,
}

impl Drop for Block {
    fn drop(&mut self) {
        // Removed while it is still locked: whoever has opened it meanwhile finds that it is no longer there.
        let _ = fs::remove_file(&self.place);
        self.lock.take();
        // The last one takes the folder along; it is refused while another's lock lies in it.
        if let Some(dir) = self.place.parent() {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Makes and locks a file; none if another holds it. A file that was removed between the two is no lock.
fn hold(place: &Path) -> Result<Option<File>> {
    if let Some(dir) = place.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let lock = match File::create(place) {
        Ok(lock) => lock,
        // The last testbed has just taken the folder along.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("making {}", place.display())),
    };
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    let same = fs::metadata(place).is_ok_and(|there| {
        lock.metadata().is_ok_and(|held| (held.dev(), held.ino()) == (there.dev(), there.ino()))
    });
    Ok(same.then_some(lock))
}

impl Block {
    /// Takes a free block: 127.86.0.0/24 if nobody has it, else one by chance.
    pub fn take() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("stead-blocks-{}", rustix::process::geteuid().as_raw()));
        let chance = (0..200).map(|_| (rand::random_range(87..=250), rand::random_range(0..=250)));
        for (x, y) in [(86, 0)].into_iter().chain(chance) {
            let place = dir.join(format!("127.{x}.{y}"));
            let Some(lock) = hold(&place)? else { continue };
            let block = Self { x, y, place, lock: Some(lock) };
            // Another user's testbed has its own locks: the address must be free too.
            if TcpListener::bind((Ipv4Addr::new(127, x, y, 10), 0)).is_ok() {
                return Ok(block);
            }
        }
        bail!("no free block of loopback addresses: are 200 testbeds running, or is 127.0.0.0/8 not on lo?")
    }

    /// The address of node `n`, counted from 1.
    pub fn ip(&self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.x, self.y, 10 + n)
    }

    /// A port from `first` on that is free on the addresses of nodes 1 to `nodes`, and `more` ports behind it too.
    pub fn port(&self, nodes: u8, first: u16, more: u16) -> Result<u16> {
        let free = |port: u16| {
            (1..=nodes).all(|n| (port..=port + more).all(|p| TcpListener::bind((self.ip(n), p)).is_ok()))
        };
        (0..100)
            .map(|step| first + step * 100)
            .find(|port| free(*port))
            .with_context(|| format!("no free port from {first} on at 127.{}.{}.11", self.x, self.y))
    }
}

/// An address with a port.
pub fn socket(ip: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_testbeds_never_share_an_address() {
        let (a, b) = (Block::take().unwrap(), Block::take().unwrap());
        assert_ne!(a.ip(1), b.ip(1));
    }

    #[test]
    fn what_is_given_back_leaves_nothing_and_a_lock_that_was_removed_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("blocks/127.1.2");
        let held = hold(&place).unwrap();
        assert!(held.is_some());
        assert!(hold(&place).unwrap().is_none(), "held by the first");
        drop(Block { x: 1, y: 2, place: place.clone(), lock: held });
        assert!(!place.exists() && !dir.path().join("blocks").exists(), "nothing is left over");
        assert!(hold(&place).unwrap().is_some(), "and it can be had again");
    }

    #[test]
    fn a_taken_port_is_passed_over() {
        let block = Block::take().unwrap();
        let first = block.port(1, 30_000, 0).unwrap();
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, first));
        if taken.is_ok() {
            assert_ne!(block.port(1, first, 0).unwrap(), first);
        }
    }
}
