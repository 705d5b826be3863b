//! Loopback addresses and ports of a testbed's own.
//!
//! Each testbed has a block 127.x.y.0/24, held by a lock as long as it lives, so that several at once never meet. In its
//! block it takes port 8006, or the next that is free: whoever listens on 0.0.0.0:8006 has that port on every address.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};

/// A block of loopback addresses. Free again when dropped.
#[derive(Debug)]
pub struct Block {
    x: u8,
    y: u8,
    _lock: File,
}

impl Block {
    /// Takes a free block: 127.86.0.0/24 if nobody has it, else one by chance.
    pub fn take() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("stead-blocks-{}", rustix::process::geteuid().as_raw()));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let chance = (0..200).map(|_| (rand::random_range(87..=250), rand::random_range(0..=250)));
        for (x, y) in [(86, 0)].into_iter().chain(chance) {
            let lock = File::create(dir.join(format!("127.{x}.{y}")))?;
            // Another user's testbed has its own locks: the address must be free too.
            let free = TcpListener::bind((Ipv4Addr::new(127, x, y, 10), 0)).is_ok();
            if free && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(Self { x, y, _lock: lock });
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
    fn a_taken_port_is_passed_over() {
        let block = Block::take().unwrap();
        let first = block.port(1, 30_000, 0).unwrap();
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, first));
        if taken.is_ok() {
            assert_ne!(block.port(1, first, 0).unwrap(), first);
        }
    }
}
