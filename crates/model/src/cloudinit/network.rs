//! A guest's network, as cloud-init's own format (version 1) and as OpenStack's.

use super::options::{Address, Addresses, words};
use super::{pretty, yaml};
use crate::vmconfig::{KeyError, Settings};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network device and its addresses. In the guest it is called `eth` and its number.
pub struct Card {
    /// Its number.
    pub index: u32,
    /// Its hardware address, in small letters.
    pub mac: Option<String>,
    /// What it is given.
    pub addresses: Addresses,
}

impl Card {
    fn name(&self) -> String {
        format!("eth{}", self.index)
    }
}

/// A prefix as a mask.
fn mask(address: IpAddr, bits: u8) -> IpAddr {
    let high = |size: u8| u128::MAX.checked_shl(u32::from(size.saturating_sub(bits))).unwrap_or(0);
    match address {
        // The low half of what was shifted is what such an address has.
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(high(32) & 0xffff_ffff).unwrap_or(0)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(high(128)).into(),
    }
}

/// Resolvers and domains to search.
fn dns(settings: &Settings) -> Result<(Vec<String>, Vec<&str>), KeyError> {
    let servers = settings.get("nameserver").map_or(Ok(vec![]), super::options::servers)?;
    let domains = settings.get("searchdomain").map(|text| words(text).collect()).unwrap_or_default();
    Ok((servers.iter().map(ToString::to_string).collect(), domains))
}

/// cloud-init's own format, which it has known since 2016.
pub fn version_1(cards: &[Card], settings: &Settings) -> Result<String, KeyError> {
    let mut config: Vec<Value> = cards.iter().map(physical).collect();
    let (servers, domains) = dns(settings)?;
    if !servers.is_empty() || !domains.is_empty() {
        config.push(json!({ "type": "nameserver", "address": servers, "search": domains }));
    }
    Ok(yaml::print(&json!({ "version": 1, "config": config })))
}

fn physical(card: &Card) -> Value {
    let mut subnets = vec![];
    match &card.addresses.v4 {
        Some(Address::Dhcp) => subnets.push(json!({ "type": "dhcp4" })),
        Some(Address::Fixed(address, bits)) => subnets.push(json!({
            "type": "static", "address": address.to_string(), "netmask": mask(*address, *bits).to_string(),
        })),
        Some(Address::Auto) | None => {}
    }
    if let (Some(gateway), Some(last)) = (card.addresses.gateway4, subnets.last_mut()) {
        last["gateway"] = gateway.to_string().into();
    }
    match &card.addresses.v6 {
        Some(Address::Dhcp) => subnets.push(json!({ "type": "dhcp6" })),
        Some(Address::Auto) => subnets.push(json!({ "type": "ipv6_slaac" })),
        Some(Address::Fixed(address, bits)) => {
            subnets.push(json!({ "type": "static6", "address": format!("{address}/{bits}") }));
        }
        None => {}
    }
    if let (Some(gateway), Some(last)) = (card.addresses.gateway6, subnets.last_mut()) {
        last["gateway"] = gateway.to_string().into();
    }
    let mut out = json!({ "type": "physical", "name": card.name() });
    if let Some(mac) = &card.mac {
        out["mac_address"] = mac.as_str().into();
    }
    out["subnets"] = subnets.into();
    out
}

/// OpenStack's `network_data.json`. That a service has domains to search is cloud-init's own; others pass over them.
pub fn openstack(cards: &[Card], settings: &Settings) -> Result<String, KeyError> {
    let link = |card: &Card| {
        let name = card.name();
        let mut link = json!({ "id": name, "name": name, "type": "phy" });
        if let Some(mac) = &card.mac {
            link["ethernet_mac_address"] = mac.as_str().into();
        }
        link
    };
    let links: Vec<Value> = cards.iter().map(link).collect();
    let networks: Vec<Value> = cards.iter().flat_map(networks).collect();
    let (servers, domains) = dns(settings)?;
    let mut services: Vec<Value> =
        servers.iter().map(|address| json!({ "type": "dns", "address": address })).collect();
    if !domains.is_empty() {
        match services.first_mut() {
            Some(first) => first["search"] = json!(domains),
            None => services.push(json!({ "type": "dns", "address": [], "search": domains })),
        }
    }
    Ok(pretty(&json!({ "links": links, "networks": networks, "services": services })))
}

fn networks(card: &Card) -> Vec<Value> {
    let link = card.name();
    let of = |kind: &str, address: &Address, gateway: Option<IpAddr>, nowhere: &str| {
        let id = format!("{link}-{kind}");
        let word = match address {
            Address::Dhcp => format!("{kind}_dhcp"),
            Address::Auto => format!("{kind}_slaac"),
            Address::Fixed(..) => kind.to_owned(),
        };
        let mut out = json!({ "id": id, "link": link, "type": word });
        if let Address::Fixed(address, bits) = address {
            out["ip_address"] = address.to_string().into();
            out["netmask"] = mask(*address, *bits).to_string().into();
        }
        if let Some(gateway) = gateway {
            out["routes"] =
                json!([{ "network": nowhere, "netmask": nowhere, "gateway": gateway.to_string() }]);
        }
        out
    };
    let Addresses { v4, gateway4, v6, gateway6 } = &card.addresses;
    let v4 = v4.iter().map(|address| of("ipv4", address, *gateway4, "0.0.0.0"));
    v4.chain(v6.iter().map(|address| of("ipv6", address, *gateway6, "::"))).collect()
}
