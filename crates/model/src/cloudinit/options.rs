//! The options of cloud-init: what they may say, and what they mean.

use super::MASK;
use crate::VolumeId;
use crate::property::PropertyString;
use crate::text::{decode, split_list};
use crate::vmconfig::KeyError;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What can be had instead of another layout.
pub(super) const ONLY: &str = "its drive is a shell script; use nocloud or configdrive2";

/// Why a guest is given no password.
pub const NO_PASSWORD: &str = "a Windows guest takes a password in plain text alone, which is never kept";

/// The words of a list of domains.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    split_list(text)
}

/// An address of a network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Asked for by DHCP.
    Dhcp,
    /// Made by itself from what routers tell; of IPv6 alone.
    Auto,
    /// Given, with the length of its network's prefix.
    Fixed(IpAddr, u8),
}

/// The value of `ipconfigN`. Without any address it is asked for by DHCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Of IPv4.
    pub v4: Option<Address>,
    /// The router, of a given address alone.
    pub gateway4: Option<IpAddr>,
    /// Of IPv6.
    pub v6: Option<Address>,
    /// The router, of a given address alone.
    pub gateway6: Option<IpAddr>,
}

impl Addresses {
    /// Reads the value of `ipconfigN`.
    ///
    /// # Errors
    /// Names the property at fault.
    pub fn parse(key: &str, text: &str) -> Result<Self, KeyError> {
        let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
        for (name, value) in props.iter() {
            match name {
                Some("ip" | "gw" | "ip6" | "gw6") => {}
                Some(other) => return KeyError::value(key, format_args!("there is no property '{other}'")),
                None => return KeyError::value(key, format_args!("'{value}' has no name")),
            }
        }
        let (v4, gateway4) = family(key, &props, ["ip", "gw"], IpAddr::is_ipv4, false)?;
        let (v6, gateway6) = family(key, &props, ["ip6", "gw6"], IpAddr::is_ipv6, true)?;
        let v4 = v4.or_else(|| v6.is_none().then_some(Address::Dhcp));
        Ok(Self { v4, gateway4, v6, gateway6 })
    }
}

fn family(
    key: &str,
    props: &PropertyString,
    [ip, gw]: [&str; 2],
    fits: fn(&IpAddr) -> bool,
    auto: bool,
) -> Result<(Option<Address>, Option<IpAddr>), KeyError> {
    let address = match props.get(ip) {
        None => None,
        Some("dhcp") => Some(Address::Dhcp),
        Some("auto") if auto => Some(Address::Auto),
        Some(text) => match cidr(text).filter(|(address, _)| fits(address)) {
            Some((address, bits)) => Some(Address::Fixed(address, bits)),
            None => {
                let words = if auto { "dhcp, auto" } else { "dhcp" };
                let why = format!("{ip}: '{text}' is neither {words} nor an address with its prefix");
                return KeyError::value(key, why);
            }
        },
    };
    let Some(text) = props.get(gw) else { return Ok((address, None)) };
    if !matches!(address, Some(Address::Fixed(..))) {
        return KeyError::value(key, format_args!("{gw}: a gateway needs an address of its own in '{ip}'"));
    }
    match text.parse::<IpAddr>().ok().filter(fits) {
        Some(gateway) => Ok((address, Some(gateway))),
        None => KeyError::value(key, format_args!("{gw}: '{text}' is not an address of that family")),
    }
}

/// `10.0.0.5/24`.
fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = bits.parse().ok().filter(|_| bits.bytes().all(|b| b.is_ascii_digit()))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    (1..=most).contains(&bits).then_some((address, bits))
}

/// A file that a user may bring in the place of one that would be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What the guest is.
    Meta,
    /// Its network.
    Network,
    /// What it is to do.
    User,
    /// What its maker has it do.
    Vendor,
}

impl Part {
    fn from_text(text: &str) -> Option<Self> {
        match text {
            "meta" => Some(Self::Meta),
            "network" => Some(Self::Network),
            "user" => Some(Self::User),
            "vendor" => Some(Self::Vendor),
            _ => None,
        }
    }
}

/// The value of `cicustom`: files of users.
pub type Custom = BTreeMap<Part, VolumeId>;

/// Reads the value of `cicustom`.
///
/// # Errors
/// Names the property at fault.
pub fn custom(text: &str) -> Result<Custom, KeyError> {
    const KEY: &str = "cicustom";
    let props: PropertyString = text.parse().or_else(|e| KeyError::value(KEY, e))?;
    let mut out = Custom::new();
    for (name, value) in props.iter() {
        let Some(part) = name.and_then(Part::from_text) else {
            let name = name.unwrap_or(value);
            return KeyError::value(KEY, format_args!("'{name}' is not one of meta, network, user, vendor"));
        };
        let volume: VolumeId = value.parse().or_else(|e| KeyError::value(KEY, e))?;
        if !volume.name.starts_with("snippets/") {
            let why = format!("'{value}' is no snippet, as STORAGE:snippets/FILE is");
            return KeyError::value(KEY, why);
        }
        out.insert(part, volume);
    }
    if out.is_empty() {
        return KeyError::value(KEY, "it names no file");
    }
    Ok(out)
}

/// Reads the value of `sshkeys`: lines, encoded as in a URL. Empty lines and comments are left out.
///
/// # Errors
/// If it is not encoded so, or no text.
pub fn ssh_keys(text: &str) -> Result<Vec<String>, KeyError> {
    const KEY: &str = "sshkeys";
    let plain = |c: char| c.is_ascii_alphanumeric() || "-%_.!~*'()".contains(c);
    let escapes = text.split('%').skip(1);
    let whole = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    if !text.chars().all(plain) || !escapes.into_iter().all(whole) {
        return KeyError::value(
            KEY,
            "value must be encoded as in a URL: %20 for a blank, %0A for a line break",
        );
    }
    let keys = decode(text);
    if keys.chars().any(|c| (c.is_control() && !matches!(c, '\n' | '\r' | '\t')) || c == '\u{fffd}') {
        return KeyError::value(KEY, "value must be lines of text");
    }
    let lines = keys.lines().map(|line| line.replace('\t', " ").trim().to_owned());
    Ok(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect())
}

/// Reads the value of `nameserver`: addresses.
///
/// # Errors
/// Names what is no address.
pub fn servers(text: &str) -> Result<Vec<IpAddr>, KeyError> {
    let address = |word: &str| match word.parse() {
        Ok(address) => Ok(address),
        Err(_) => KeyError::value("nameserver", format_args!("'{word}' is not an address")),
    };
    words(text).map(address).collect()
}

/// Checks `citype`.
pub(crate) fn layout(key: &str, value: &str) -> Result<(), KeyError> {
    match value {
        "configdrive2" | "nocloud" => Ok(()),
        "opennebula" => KeyError::unsupported(key, format_args!("'{value}' is not supported: {ONLY}")),
        _ => KeyError::value(
            key,
            format_args!("value '{value}' is not one of configdrive2, nocloud, opennebula"),
        ),
    }
}

/// Checks `cipassword`. What is shown in its place cannot be one.
pub(crate) fn password(key: &str, value: &str) -> Result<(), KeyError> {
    if value == MASK {
        let why = format!("'{MASK}' stands for the password that is there; leave it out to keep that");
        return KeyError::value(key, why);
    }
    match value.chars().count() {
        0..=1024 => Ok(()),
        _ => KeyError::value(key, "value must have at most 1024 characters"),
    }
}

/// Whether a password is hashed already, in one of the ways of `crypt`.
pub fn is_hashed(password: &str) -> bool {
    let Some((kind, rest)) = password.strip_prefix('$').and_then(|rest| rest.split_once('$')) else {
        return false;
    };
    let parts = rest.split_once('$');
    matches!(kind, "1" | "2a" | "2y" | "5" | "6" | "y")
        && parts.is_some_and(|(salt, hash)| !salt.is_empty() && !hash.is_empty())
}
