//! `datacenter.cfg`: options of the whole cluster, `key: value` lines below a description in `#` lines.

use crate::network::Network;
use crate::property::PropertyString;
use crate::text::{FormatError, parse_bool, split_list};
use crate::vmconfig::{KeyError, Refusal, Settings};
use std::fmt;

/// The known options; whether they work, and of those that do not, the values that ask for what happens anyway.
const KEYS: &[(&str, bool, &[&str])] = &[
    ("bwlimit", false, &[]),
    ("consent-text", false, &[]),
    ("console", false, &["html5"]),
    ("crs", true, &[]),
    ("description", true, &[]),
    ("email_from", false, &[]),
    ("fencing", false, &["watchdog"]),
    ("ha", true, &[]),
    ("http_proxy", false, &[]),
    ("keyboard", false, &[]),
    ("language", false, &[]),
    ("location", false, &[]),
    ("mac_prefix", true, &[]),
    ("max_workers", true, &[]),
    ("migration", true, &[]),
    ("migration_unsecure", false, &["0"]),
    ("next-id", true, &[]),
    ("notify", false, &[]),
    ("registered-tags", false, &[]),
    ("replication", false, &["secure", "type=secure"]),
    ("tag-style", true, &[]),
    ("u2f", false, &[]),
    ("user-tag-access", false, &["user-allow=free"]),
    ("webauthn", false, &[]),
];

/// The range from which new VMIDs are proposed: the first included, the last not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextId {
    /// Default 100.
    pub lower: u32,
    /// Default 1,000,000.
    pub upper: u32,
}

/// How guests move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// By those of the nodes' links that are in it.
    pub network: Option<Network>,
    /// By how many streams memory goes at most: 1 to 8, default 1.
    pub streams: u8,
    /// After how many rounds over memory that changes faster than it is sent the target fetches the rest, while the guest runs there
    /// already: 1 to 100; 0: never, the default. Until all is fetched, losing either node loses the guest's memory.
    pub postcopy: u8,
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Datacenter {
    /// All options as they are written, those of other versions too.
    pub settings: Settings,
}

impl Datacenter {
    /// Reads the file's text; `Display` prints it.
    ///
    /// # Errors
    /// Names the line that cannot be read.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let lines =
            text.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l)).enumerate().map(|(i, l)| (i + 1, l));
        let (settings, delete) = Settings::parse(lines)?;
        match delete.first() {
            None => Ok(Self { settings }),
            Some(_) => FormatError::at(1, "'delete' is no option of a cluster"),
        }
    }

    /// Sets an option that somebody gave, after [`accept`].
    ///
    /// # Errors
    /// If it is unknown, does not work yet, or the value is wrong.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), KeyError> {
        let value = accept(key, value)?;
        self.settings.set(key, &value)
    }

    /// Takes an option out, also one that does not work yet.
    ///
    /// # Errors
    /// If there is no such option.
    pub fn delete(&mut self, key: &str) -> Result<(), KeyError> {
        if !KEYS.iter().any(|(k, ..)| *k == key) && self.settings.get(key).is_none() {
            return Err(unknown(key));
        }
        self.settings.remove(key);
        Ok(())
    }

    /// The first three bytes of generated hardware addresses, `BC:24:11` by default.
    pub fn mac_prefix(&self) -> &str {
        self.settings.get("mac_prefix").filter(|p| is_mac_prefix(p)).unwrap_or("BC:24:11")
    }

    /// The range from which new VMIDs are proposed.
    ///
    /// # Errors
    /// If the value in the file is wrong.
    pub fn next_id(&self) -> Result<NextId, KeyError> {
        self.settings.get("next-id").map_or(Ok(NextId { lower: 100, upper: 1_000_000 }), next_id)
    }

    /// How many guests an action on many of them acts on at a time.
    pub fn max_workers(&self) -> Option<usize> {
        self.settings.get("max_workers").and_then(workers)
    }

    /// How guests move.
    ///
    /// # Errors
    /// If the value in the file is wrong.
    pub fn migration(&self) -> Result<Migration, KeyError> {
        migration(self.settings.get("migration").unwrap_or("secure"))
    }

    /// Tags that only those who may change the cluster's options can give.
    pub fn registered_tags(&self) -> Vec<&str> {
        split_list(self.settings.get("registered-tags").unwrap_or_default()).collect()
    }

    /// See [`crate::vmconfig::digest`].
    pub fn digest(&self) -> String {
        crate::vmconfig::digest(&self.to_string())
    }
}

fn unknown(key: &str) -> KeyError {
    let why = "there is no such option of a cluster".to_owned();
    KeyError { key: key.to_owned(), refusal: Refusal::Unknown, why }
}

/// Up to five bytes with colons; the first not of a group.
fn is_mac_prefix(text: &str) -> bool {
    let bytes: Vec<&str> = text.split(':').collect();
    let hex = |b: &&str| b.len() == 2 && b.bytes().all(|c| c.is_ascii_hexdigit());
    let single = |b: &&str| u8::from_str_radix(b, 16).is_ok_and(|n| n & 1 == 0);
    (1..=5).contains(&bytes.len()) && bytes.iter().all(hex) && bytes.first().is_some_and(single)
}

fn next_id(text: &str) -> Result<NextId, KeyError> {
    let props = properties("next-id", text, &["lower", "upper"])?;
    let number = |name: &str, default: u32, max: u32| match props.get(name) {
        None => Ok(default),
        Some(text) => match text.parse() {
            Ok(n) if (100..=max).contains(&n) => Ok(n),
            _ => KeyError::value("next-id", format_args!("{name}: value must lie in 100 to {max}")),
        },
    };
    let range = NextId {
        lower: number("lower", 100, 999_999_999)?,
        upper: number("upper", 1_000_000, 1_000_000_000)?,
    };
    if range.lower >= range.upper {
        return KeyError::value("next-id", "lower must be less than upper");
    }
    Ok(range)
}

fn migration(text: &str) -> Result<Migration, KeyError> {
    const KEY: &str = "migration";
    let props: PropertyString = text.parse().or_else(|e| KeyError::value(KEY, e))?;
    let mut how = Migration { network: None, streams: 1, postcopy: 0 };
    for (name, value) in props.iter() {
        match (name.unwrap_or("type"), value) {
            ("type", "secure") => {}
            ("type", "insecure") => {
                return KeyError::unsupported(KEY, "type: a guest's memory never leaves a node unencrypted");
            }
            ("type", other) => {
                return KeyError::value(
                    KEY,
                    format_args!("type: value '{other}' is not one of secure, insecure"),
                );
            }
            ("network", text) => match text.parse() {
                Ok(network) => how.network = Some(network),
                Err(e) => return KeyError::value(KEY, format_args!("network: {e}")),
            },
            ("streams", text) => match text.parse() {
                Ok(n) if (1..=8).contains(&n) => how.streams = n,
                _ => return KeyError::value(KEY, "streams: value must lie in 1 to 8"),
            },
            ("postcopy", text) => match text.parse() {
                Ok(n) if n <= 100 => how.postcopy = n,
                _ => return KeyError::value(KEY, "postcopy: value must lie in 0 to 100"),
            },
            (name, _) => return KeyError::value(KEY, format_args!("there is no property '{name}'")),
        }
    }
    Ok(how)
}

fn workers(text: &str) -> Option<usize> {
    text.parse().ok().filter(|n| (1..=64).contains(n))
}

fn properties(key: &str, text: &str, known: &[&str]) -> Result<PropertyString, KeyError> {
    let props: PropertyString = text.parse().or_else(|e| KeyError::value(key, e))?;
    for (name, value) in props.iter() {
        match name {
            None => return KeyError::value(key, format_args!("'{value}' has no name")),
            Some(name) if !known.contains(&name) => {
                return KeyError::value(key, format_args!("there is no property '{name}'"));
            }
            Some(_) => {}
        }
    }
    Ok(props)
}

fn one_of(key: &str, props: &PropertyString, name: &str, all: &[&str]) -> Result<(), KeyError> {
    match props.get(name) {
        Some(value) if !all.contains(&value) => {
            KeyError::value(key, format_args!("{name}: value '{value}' is not one of {}", all.join(", ")))
        }
        _ => Ok(()),
    }
}

fn is_tag(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-+.".contains(c))
}

/// Every known option.
pub fn option_names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|(name, ..)| *name)
}

/// Checks an option that somebody sets; returns what is stored.
///
/// # Errors
/// If it is unknown, does not work yet, or the value is wrong.
pub fn accept(key: &str, value: &str) -> Result<String, KeyError> {
    let Some((_, works, except)) = KEYS.iter().find(|(k, ..)| *k == key) else { return Err(unknown(key)) };
    if key == "description" {
        if value.chars().count() > 65_536 {
            return KeyError::value(key, "value must have at most 65536 characters");
        }
        return Ok(value.to_owned());
    }
    let value = value.trim();
    if value.is_empty() || value.chars().any(char::is_control) {
        return KeyError::value(key, "value must be one line of text");
    }
    if !works && !except.contains(&value) {
        return KeyError::unsupported(key, "not supported yet");
    }
    match key {
        "ha" => drop(crate::ha_options::ha_options(value).or_else(|e| KeyError::value(key, e))?),
        "crs" => drop(crate::ha_options::crs_options(value).or_else(|e| KeyError::value(key, e))?),
        "mac_prefix" if !is_mac_prefix(value) => {
            return KeyError::value(
                key,
                format_args!("'{value}' is not the beginning of a device's hardware address"),
            );
        }
        "mac_prefix" => return Ok(value.to_ascii_uppercase()),
        "max_workers" if workers(value).is_none() => {
            return KeyError::value(key, "value must be a number from 1 to 64");
        }
        "migration" => drop(migration(value)?),
        "next-id" => drop(next_id(value)?),
        "tag-style" => {
            let props = properties(key, value, &["case-sensitive", "color-map", "ordering", "shape"])?;
            one_of(key, &props, "ordering", &["config", "alphabetical"])?;
            one_of(key, &props, "shape", &["full", "circle", "dense", "none"])?;
            if props.get("case-sensitive").is_some_and(|text| parse_bool(text).is_none()) {
                return KeyError::value(key, "case-sensitive: value must be a boolean (1 or 0)");
            }
            for entry in props.get("color-map").unwrap_or_default().split(';').filter(|e| !e.is_empty()) {
                let mut parts = entry.split(':');
                let colour = |c: &str| c.len() == 6 && c.bytes().all(|b| b.is_ascii_hexdigit());
                let (tag, colours) = (parts.next().unwrap_or_default(), parts.collect::<Vec<_>>());
                if !is_tag(tag) || !(1..=2).contains(&colours.len()) || !colours.iter().all(|c| colour(c)) {
                    return KeyError::value(
                        key,
                        format_args!("color-map: '{entry}' is not of the form tag:RRGGBB"),
                    );
                }
            }
        }
        _ => {}
    }
    Ok(value.to_owned())
}

impl fmt::Display for Datacenter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.settings.print(&mut out);
        f.write_str(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &str = "\
#Two racks%3A A and B
future: thing
keyboard: de
mac_prefix: AA:BB
next-id: lower=500,upper=600
registered-tags: prod;test
";

    #[test]
    fn the_number_of_workers_is_a_small_one() {
        for wrong in ["0", "65", "many", "-1"] {
            assert_eq!(
                accept("max_workers", wrong).unwrap_err().to_string(),
                "max_workers: value must be a number from 1 to 64"
            );
        }
        let mut cfg = Datacenter::default();
        assert_eq!(cfg.max_workers(), None);
        cfg.set("max_workers", "8").unwrap();
        assert_eq!(cfg.max_workers(), Some(8));
    }

    #[test]
    fn a_file_prints_as_it_was_read() {
        let cfg = Datacenter::parse(GOLDEN).unwrap();
        assert_eq!(cfg.to_string(), GOLDEN);
        assert_eq!((cfg.mac_prefix(), cfg.registered_tags()), ("AA:BB", vec!["prod", "test"]));
        assert_eq!(cfg.next_id().unwrap(), NextId { lower: 500, upper: 600 });
        let none = Datacenter::default();
        assert_eq!((none.mac_prefix(), none.next_id().unwrap().lower), ("BC:24:11", 100));
    }

    #[test]
    fn options_are_accepted_or_refused_with_their_name() {
        let said = |key: &str, value: &str| accept(key, value).unwrap_or_else(|e| e.to_string());
        assert_eq!(said("mac_prefix", "aa:bb:cc"), "AA:BB:CC");
        assert_eq!(
            said("mac_prefix", "01:00"),
            "mac_prefix: '01:00' is not the beginning of a device's hardware address"
        );
        assert_eq!(said("next-id", "lower=700,upper=600"), "next-id: lower must be less than upper");
        assert_eq!(said("next-id", "lower=7"), "next-id: lower: value must lie in 100 to 999999999");
        assert_eq!(said("migration", "type=secure"), "type=secure");
        assert_eq!(said("migration", "secure,network=10.1.0.0/16"), "secure,network=10.1.0.0/16");
        assert_eq!(
            said("migration", "insecure"),
            "migration: type: a guest's memory never leaves a node unencrypted"
        );
        assert_eq!(said("migration", "secure,streams=9"), "migration: streams: value must lie in 1 to 8");
        assert_eq!(said("migration", "secure,postcopy=2"), "secure,postcopy=2");
        assert_eq!(said("migration", "postcopy=-1"), "migration: postcopy: value must lie in 0 to 100");
        assert!(said("migration", "network=10.1").starts_with("migration: network: '10.1' is no network"));
        assert_eq!(said("migration", "speed=1"), "migration: there is no property 'speed'");
        assert_eq!(said("colour", "blue"), "colour: there is no such option of a cluster");
        assert_eq!(
            said("tag-style", "shape=full,color-map=a:ff00AA;b:000000:ffffff"),
            "shape=full,color-map=a:ff00AA;b:000000:ffffff"
        );
        assert_eq!(
            said("tag-style", "color-map=a:red"),
            "tag-style: color-map: 'a:red' is not of the form tag:RRGGBB"
        );
        assert_eq!(said("tag-style", "round"), "tag-style: 'round' has no name");
        assert_eq!(said("user-tag-access", "user-allow=free"), "user-allow=free");
        assert_eq!(said("user-tag-access", "user-allow=none"), "user-tag-access: not supported yet");
        assert_eq!(said("registered-tags", "a;b"), "registered-tags: not supported yet");
        let mut cfg = Datacenter::parse(GOLDEN).unwrap();
        cfg.set("description", "").unwrap();
        for key in ["keyboard", "future", "next-id"] {
            cfg.delete(key).unwrap();
        }
        assert!(cfg.delete("colour").is_err());
        assert_eq!(cfg.to_string(), "mac_prefix: AA:BB\nregistered-tags: prod;test\n");
    }

    proptest! {
        #[test]
        fn what_is_read_prints_and_reads_alike(text in "((#|[a-z]{1,4}:|migration: )[ -~ä]{0,8}\\n){0,8}") {
            if let Ok(read) = Datacenter::parse(&text) {
                prop_assert_eq!(Datacenter::parse(&read.to_string()).unwrap(), read);
            }
        }
    }
}
