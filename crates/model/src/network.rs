//! A range of addresses, as `10.1.0.0/16`.

use crate::cluster::NodeRecord;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// All addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// A text that is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no network: write it as 10.1.0.0/16")]
pub struct BadNetwork(String);

/// An address as a number of 128 bits, its first bit the highest.
fn bits_of(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Network {
    /// Whether an address is one of these.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same_kind = self.address.to_canonical().is_ipv4() == address.to_canonical().is_ipv4();
        let differ = bits_of(self.address) ^ bits_of(address);
        same_kind && differ.leading_zeros() >= u32::from(self.bits)
    }
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let bad = || BadNetwork(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let is_number = bits.bytes().all(|b| b.is_ascii_digit());
        let bits: u8 = bits.parse().ok().filter(|n| is_number && *n <= most).ok_or_else(bad)?;
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl NodeRecord {
    /// The node with those of its links alone that lie in a network; none if it has none there.
    pub fn within(&self, network: &Network) -> Option<Self> {
        let mut inside = self.links().filter(|(_, addr)| network.contains(addr.ip()));
        let (_, addr) = inside.next()?;
        let links = inside.map(|(n, addr)| (n, addr.ip())).collect();
        Some(Self { addr, links, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_in_a_network_or_not() {
        let lies = |address: &str, network: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };
        assert!(lies("10.1.255.7", "10.1.0.0/16") && !lies("10.2.0.7", "10.1.0.0/16"));
        assert!(lies("10.1.0.7", "10.1.0.9/24"), "the address of a host stands for its network");
        assert!(lies("10.1.0.7", "10.1.0.7/32") && !lies("10.1.0.6", "10.1.0.7/32"));
        assert!(lies("8.8.8.8", "0.0.0.0/0") && !lies("fd00::1", "0.0.0.0/0"));
        assert!(lies("fd00::1:2", "fd00::/64") && !lies("fd00:0:0:1::2", "fd00::/64"));
        assert!(!lies("10.0.0.1", "::/0") && lies("::ffff:10.1.0.1", "10.1.0.0/16"));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/+8", "10.0.0.0/", "n1/8"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
        assert_eq!("10.1.0.0/16".parse::<Network>().unwrap().to_string(), "10.1.0.0/16");
    }
}
