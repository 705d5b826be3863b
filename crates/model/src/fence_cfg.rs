//! `ha/fence.cfg`: fence devices, and which nodes each of them powers.
//!
//! ```text
//! # two power supplies, a switched outlet for each
//! device pdu1 fence_apc_snmp ip=192.0.2.11 delay=2
//! device pdu2 fence_apc_snmp ip=192.0.2.12
//! connect pdu1 node=n1 plug=3
//! connect pdu2 node=n1 plug=3
//! ```
//!
//! A line is one device or one connection, in words parted by blanks; a value with blanks stands in double quotes, where
//! `\"` and `\\` are taken for `"` and `\`. The options are those of the fence agent, handed to it as they are; those of a
//! connection come on top of the device's. `delay` alone is the cluster's own: for so many seconds longer than its lease a
//! node must be silent before it is powered off.
//!
//! A node with several connections counts as off only when every one of them says so.
//!
//! Passwords do not stand here but in `priv/fence.cfg`, which is sealed: see [`FenceSecrets`].

use crate::text::FormatError;
use crate::{DeviceId, NodeName};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The longest `delay`.
pub const MAX_DELAY: Duration = Duration::from_mins(1);

/// An agent's options, by name.
pub type AgentOptions = BTreeMap<String, String>;

/// Options that the cluster itself gives to an agent, or whose effect would be to write passwords into a file.
const NOT_YOURS: [&str; 8] =
    ["action", "option", "agent", "nodename", "debug", "debug_file", "verbose", "verbose_level"];

/// Older names of options, which agents take beside the newer ones and which count before them: one for a whole device
/// would silently take the place of what each of its connections says.
const OLD_NAMES: [(&str, &str); 5] = [
    ("ipaddr", "ip"),
    ("login", "username"),
    ("passwd", "password"),
    ("passwd_script", "password_script"),
    ("port", "plug"),
];

/// Agents whose *off* is no power-off: they take a machine's storage or network, ask somebody, or do nothing at all. To them
/// a machine is off that runs on. (`fence_zvmip` takes a machine that it does not know for one that is off.)
const NO_POWER: [&str; 14] = [
    "fence_ack_manual",
    "fence_brocade",
    "fence_cisco_mds",
    "fence_compute",
    "fence_dummy",
    "fence_evacuate",
    "fence_heuristics_ping",
    "fence_ifmib",
    "fence_kdump",
    "fence_mpath",
    "fence_sanbox2",
    "fence_sbd",
    "fence_scsi",
    "fence_zvmip",
];

/// What makes an option a secret, wherever in its name it stands.
const SECRET: [&str; 8] =
    ["passw", "secret", "token", "community", "api_key", "apikey", "private_key", "hexadecimal_kg"];

/// Whether an option of an agent is a secret, by its name.
pub fn is_secret(key: &str) -> bool {
    SECRET.iter().any(|part| key.contains(part))
}

/// Checks an option and its value.
///
/// # Errors
/// Why no device can have it.
pub fn check_option(key: &str, value: &str) -> Result<(), String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    if !key.starts_with(|c: char| c.is_ascii_lowercase()) || !key.chars().all(inner) || key.len() > 64 {
        return Err(format!(
            "'{key}' is no name of an option: it must be small letters, digits, '_' and '-', and begin with a letter"
        ));
    }
    if NOT_YOURS.contains(&key.replace('-', "_").as_str()) {
        return Err(format!(
            "'{key}' cannot be set: what is to be done the cluster says, and what an agent does in detail is not logged, since \
             passwords are among it"
        ));
    }
    if key.replace('-', "_") == "missing_as_off" {
        return Err(format!(
            "'{key}' cannot be set: it takes a machine that the device does not know, by a slip of the pen, for one that is off"
        ));
    }
    if let Some((_, new)) = OLD_NAMES.iter().find(|(old, _)| *old == key) {
        return Err(format!("'{key}' is an older name of the option '{new}': use that one"));
    }
    if value.chars().any(char::is_control) || value.len() > 1024 {
        return Err(format!("the value of '{key}' has a control character, or more than 1024 bytes"));
    }
    Ok(())
}

/// Checks the name of a fence agent, which is that of a program.
///
/// # Errors
/// Why it is none.
pub fn check_agent(agent: &str) -> Result<(), String> {
    let rest = agent.strip_prefix("fence_").unwrap_or_default();
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if rest.is_empty() || agent.len() > 64 || !rest.chars().all(inner) {
        return Err(format!(
            "'{agent}' is no fence agent: it must be one like fence_redfish or fence_ipmilan"
        ));
    }
    if NO_POWER.contains(&agent) {
        return Err(format!(
            "'{agent}' can't be used: when it says 'off' the machine may still run, and its guests would run twice; take an \
             agent that switches the power"
        ));
    }
    Ok(())
}

/// One connection of a device to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The node that it powers.
    pub node: NodeName,
    /// What is special to it: a plug, a system's address.
    pub options: AgentOptions,
}

/// A fence device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceDevice {
    /// The program that speaks to it.
    pub agent: String,
    /// For how much longer than its lease a node must be silent. None: for one heartbeat.
    pub delay: Option<Duration>,
    /// The agent's options, without secrets.
    pub options: AgentOptions,
    /// What it powers.
    pub connections: Vec<Connection>,
}

/// What is to be asked of one device about one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCall {
    /// The device.
    pub device: DeviceId,
    /// The program.
    pub agent: String,
    /// All options, secrets too.
    pub options: AgentOptions,
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FenceCfg {
    /// The comments, which are kept at its beginning.
    comments: Vec<String>,
    /// The devices.
    pub devices: BTreeMap<DeviceId, FenceDevice>,
}

impl FenceCfg {
    /// Reads the file.
    ///
    /// # Errors
    /// The first line that cannot be read, and what to do about it.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let mut cfg = Self::default();
        for (number, line) in text.lines().enumerate() {
            let at = |reason: String| FormatError { line: number + 1, reason };
            let trimmed = line.trim();
            if trimmed.starts_with('#') {
                cfg.comments.push(trimmed.to_owned());
                continue;
            }
            let words = words(trimmed).map_err(at)?;
            let mut words = words.into_iter();
            match words.next().as_deref() {
                None => {}
                Some("device") => cfg.take_device(words).map_err(at)?,
                Some("connect") => cfg.take_connection(words).map_err(at)?,
                Some(other) => {
                    return FormatError::at(
                        number + 1,
                        format!("'{other}' is not known: a line begins with 'device' or 'connect'"),
                    );
                }
            }
        }
        Ok(cfg)
    }

    fn take_device(&mut self, mut words: impl Iterator<Item = String>) -> Result<(), String> {
        const FORM: &str = "it must be 'device NAME AGENT key=value …'";
        let id: DeviceId = words.next().ok_or(FORM)?.parse().map_err(|e: crate::IdError| e.to_string())?;
        let agent = words.next().ok_or(FORM)?;
        check_agent(&agent)?;
        let mut options = options(words)?;
        let delay = options.remove("delay").map(|text| delay(&text)).transpose()?;
        if self.devices.contains_key(&id) {
            return Err(format!("the device '{id}' is defined twice"));
        }
        self.devices.insert(id, FenceDevice { agent, delay, options, connections: vec![] });
        Ok(())
    }

    fn take_connection(&mut self, mut words: impl Iterator<Item = String>) -> Result<(), String> {
        let id = words.next().ok_or("it must be 'connect DEVICE node=NODE key=value …'")?;
        let id: DeviceId = id.parse().map_err(|e: crate::IdError| e.to_string())?;
        let connection = connection(words)?;
        let device = self.devices.get_mut(&id).ok_or_else(|| {
            format!("there is no device '{id}' above: define it by a line 'device {id} AGENT …'")
        })?;
        if device.connections.contains(&connection) {
            return Err(format!("the same connection of '{id}' stands there twice"));
        }
        device.connections.push(connection);
        Ok(())
    }

    /// What is to be asked, and of whom, to have a node powered off or to know whether it has power. Empty: it has no device.
    pub fn calls(&self, node: &NodeName, secrets: &FenceSecrets) -> Vec<AgentCall> {
        let mut calls = vec![];
        for (id, device) in &self.devices {
            for connection in device.connections.iter().filter(|c| c.node == *node) {
                let mut options = device.options.clone();
                options.extend(secrets.of(id).clone());
                options.extend(connection.options.clone());
                calls.push(AgentCall { device: id.clone(), agent: device.agent.clone(), options });
            }
        }
        calls
    }

    /// For every node that has devices, but for `me`: how much longer than its lease it must be silent until they are used,
    /// which is what the most patient of them says; none: one heartbeat. A node that turned itself off could confirm nothing.
    pub fn delays(&self, me: &NodeName) -> BTreeMap<NodeName, Option<Duration>> {
        let mut delays = BTreeMap::new();
        for device in self.devices.values() {
            for connection in device.connections.iter().filter(|c| c.node != *me) {
                let delay: &mut Option<Duration> = delays.entry(connection.node.clone()).or_default();
                *delay = (*delay).max(device.delay);
            }
        }
        delays
    }

    /// Without the connections of a node that is no more.
    #[must_use]
    pub fn without_node(mut self, node: &NodeName) -> Self {
        for device in self.devices.values_mut() {
            device.connections.retain(|c| c.node != *node);
        }
        self
    }
}

impl fmt::Display for FenceCfg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for comment in &self.comments {
            writeln!(f, "{comment}")?;
        }
        for (id, device) in &self.devices {
            write!(f, "device {id} {}", device.agent)?;
            if let Some(delay) = device.delay {
                let text = format!("{}.{:03}", delay.as_secs(), delay.subsec_millis());
                write!(f, " delay={}", text.trim_end_matches('0').trim_end_matches('.'))?;
            }
            write_options(f, &device.options)?;
            writeln!(f)?;
            for connection in &device.connections {
                write!(f, "connect {id} {connection}")?;
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node={}", self.node)?;
        write_options(f, &self.options)
    }
}

impl std::str::FromStr for Connection {
    type Err = String;

    /// `node=n1 plug=3`.
    fn from_str(text: &str) -> Result<Self, String> {
        connection(words(text)?.into_iter())
    }
}

/// The passwords of the devices, at `priv/fence.cfg`: sealed, and outside of history, events and logs.
///
/// ```text
/// secret pdu1 password="two words"
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FenceSecrets(BTreeMap<DeviceId, AgentOptions>);

impl fmt::Debug for FenceSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FenceSecrets").field(&self.0.keys().collect::<Vec<_>>()).finish()
    }
}

impl FenceSecrets {
    /// Reads the file.
    ///
    /// # Errors
    /// The first line that cannot be read; without its text.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let mut all = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let bad =
                || FormatError { line: number + 1, reason: "it is no secret of a fence device".to_owned() };
            let mut words = words(line.trim()).map_err(|_| bad())?.into_iter();
            match words.next().as_deref() {
                None => continue,
                Some("secret") => {}
                Some(_) => return Err(bad()),
            }
            let id: DeviceId = words.next().and_then(|w| w.parse().ok()).ok_or_else(bad)?;
            let mut options = AgentOptions::new();
            for word in words {
                let (key, value) = word.split_once('=').ok_or_else(bad)?;
                check_option(key, value).map_err(|_| bad())?;
                options.insert(key.to_owned(), value.to_owned());
            }
            all.insert(id, options);
        }
        Ok(Self(all))
    }

    /// A device's secrets.
    pub fn of(&self, device: &DeviceId) -> &AgentOptions {
        static NONE: AgentOptions = BTreeMap::new();
        self.0.get(device).unwrap_or(&NONE)
    }

    /// Sets a secret, or takes it out.
    pub fn set(&mut self, device: &DeviceId, key: &str, value: Option<String>) {
        let options = self.0.entry(device.clone()).or_default();
        match value {
            Some(value) => drop(options.insert(key.to_owned(), value)),
            None => drop(options.remove(key)),
        }
        self.0.retain(|_, options| !options.is_empty());
    }

    /// Takes all secrets of a device out.
    pub fn forget(&mut self, device: &DeviceId) {
        self.0.remove(device);
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        struct Line<'a>(&'a DeviceId, &'a AgentOptions);
        impl fmt::Display for Line<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "secret {}", self.0)?;
                write_options(f, self.1)?;
                writeln!(f)
            }
        }
        self.0.iter().map(|(id, options)| Line(id, options).to_string()).collect()
    }
}

/// Options as words, `key=value …`, quoted where they must be.
pub fn options_text(options: &AgentOptions) -> String {
    let words: Vec<String> = options.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    words.join(" ")
}

/// Reads what [`options_text`] writes; what an option is called and may be is not looked at.
///
/// # Errors
/// Why it cannot be read.
pub fn pairs(text: &str) -> Result<AgentOptions, String> {
    let mut options = AgentOptions::new();
    for word in words(text)? {
        let (key, value) = word.split_once('=').ok_or("it must be 'key=value …'")?;
        if options.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("the option '{key}' stands there twice"));
        }
    }
    Ok(options)
}

fn write_options(f: &mut fmt::Formatter<'_>, options: &AgentOptions) -> fmt::Result {
    options.iter().try_for_each(|(key, value)| write!(f, " {key}={}", quoted(value)))
}

fn quoted(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !matches!(c, '"' | '\\');
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The words of a line.
fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut all, mut word, mut within) = (vec![], None::<String>, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                within = !within;
                word.get_or_insert_default();
            }
            '\\' if within => match chars.next() {
                Some(c @ ('"' | '\\')) => word.get_or_insert_default().push(c),
                _ => return Err("within quotes, '\\' must be followed by '\"' or '\\'".to_owned()),
            },
            c if c.is_whitespace() && !within => all.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    if within {
        return Err("a quote is opened and not closed".to_owned());
    }
    all.extend(word);
    Ok(all)
}

/// Options without secrets.
fn options(words: impl Iterator<Item = String>) -> Result<AgentOptions, String> {
    let mut options = AgentOptions::new();
    for word in words {
        let (key, value) =
            word.split_once('=').ok_or_else(|| format!("'{word}' is no option: it must be 'key=value'"))?;
        check_option(key, value)?;
        if is_secret(key) {
            return Err(format!(
                "'{key}' is a secret and must not stand here: take it out, and give it with 'stead fence set NAME --secret {key}'"
            ));
        }
        if options.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("the option '{key}' stands there twice"));
        }
    }
    Ok(options)
}

fn connection(words: impl Iterator<Item = String>) -> Result<Connection, String> {
    let mut options = options(words)?;
    if options.contains_key("delay") {
        return Err("'delay' belongs to the device, not to a connection".to_owned());
    }
    let node = options.remove("node").ok_or("it must name its node: node=NODE")?;
    Ok(Connection { node: node.parse().map_err(|e: crate::IdError| e.to_string())?, options })
}

/// Reads a delay: seconds, with at most three places.
///
/// # Errors
/// Why it is none.
pub fn delay(text: &str) -> Result<Duration, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |t: &str, most| !t.is_empty() && t.len() <= most && t.bytes().all(|b| b.is_ascii_digit());
    let number = |t: &str| t.parse::<u64>().unwrap_or_default();
    let delay = (digits(whole, 2) && digits(part, 3))
        .then(|| Duration::from_millis(number(whole) * 1000 + number(&format!("{part:0<3}"))));
    delay.filter(|d| *d <= MAX_DELAY).ok_or_else(|| {
        format!("'{text}' is no delay: it must be seconds from 0 to {}, like 1.5", MAX_DELAY.as_secs())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "# the rack\ndevice bmc2 fence_redfish delay=1.5 ip=192.0.2.12 systems_uri=/redfish/v1/Systems/1\n\
        connect bmc2 node=n2\ndevice pdu fence_apc_snmp ip=192.0.2.9 note=\"two \\\"words\\\"\"\n\
        connect pdu node=n2 plug=3\nconnect pdu node=n2 plug=4\nconnect pdu node=n1 plug=1\n";

    fn name(n: &str) -> NodeName {
        n.parse().unwrap()
    }

    #[test]
    fn reads_and_writes() {
        let cfg = FenceCfg::parse(TEXT).unwrap();
        assert_eq!(cfg.to_string(), TEXT);
        let mut secrets = FenceSecrets::default();
        let pdu: DeviceId = "pdu".parse().unwrap();
        secrets.set(&pdu, "password", Some("a b".to_owned()));
        assert_eq!(secrets.to_text(), "secret pdu password=\"a b\"\n");
        assert_eq!(FenceSecrets::parse(&secrets.to_text()).unwrap(), secrets);
        assert!(!format!("{secrets:?}").contains("a b"));
        let calls = cfg.calls(&name("n2"), &secrets);
        let devices: Vec<_> = calls.iter().map(|c| (c.device.as_str(), c.options.get("plug"))).collect();
        assert_eq!(devices, [("bmc2", None), ("pdu", Some(&"3".to_owned())), ("pdu", Some(&"4".to_owned()))]);
        assert_eq!(calls[1].options["password"], "a b");
        assert!(!calls[0].options.contains_key("password") && !calls[0].options.contains_key("delay"));
        assert!(cfg.calls(&name("n3"), &secrets).is_empty());
        secrets.set(&pdu, "password", None);
        assert_eq!(secrets, FenceSecrets::default());
    }

    #[test]
    fn the_most_patient_device_counts_and_oneself_is_left_out() {
        let cfg = FenceCfg::parse(TEXT).unwrap();
        let delays = cfg.delays(&name("n3"));
        assert_eq!(delays, [(name("n1"), None), (name("n2"), Some(Duration::from_millis(1500)))].into());
        assert_eq!(cfg.delays(&name("n2")).keys().collect::<Vec<_>>(), [&name("n1")]);
        assert_eq!(cfg.without_node(&name("n2")).delays(&name("n3")).len(), 1);
    }

    #[test]
    fn errors_name_the_line_and_what_to_do() {
        for (text, line, says) in [
            ("devise a fence_x", 1, "begins with 'device' or 'connect'"),
            ("device a", 1, "device NAME AGENT"),
            ("device a /bin/sh", 1, "fence_redfish"),
            ("device a fence_x/../y", 1, "fence_redfish"),
            ("device a fence_x\ndevice a fence_x", 2, "defined twice"),
            ("\n\ndevice a fence_x password=x", 3, "stead fence set"),
            ("device a fence_scsi ip=192.0.2.1", 1, "twice"),
            ("device a fence_x port=3", 1, "older name of the option 'plug'"),
            ("device a fence_x missing_as_off=1", 1, "cannot be set"),
            ("device a fence_x hexadecimal_kg=00", 1, "secret"),
            ("device a fence_x snmp_priv_passwd=x", 1, "secret"),
            ("device a fence_x action=off", 1, "cannot be set"),
            ("device a fence_x debug-file=/x", 1, "cannot be set"),
            ("device a fence_x delay=90", 1, "no delay"),
            ("device a fence_x delay=1e3", 1, "no delay"),
            ("device a fence_x ip", 1, "key=value"),
            ("device a fence_x ip=1 ip=2", 1, "twice"),
            ("device a fence_x ip=\"1", 1, "not closed"),
            ("connect a node=n1", 1, "define it"),
            ("device a fence_x\nconnect a plug=1", 2, "node=NODE"),
            ("device a fence_x\nconnect a node=n1 delay=1", 2, "belongs to the device"),
            ("device a fence_x\nconnect a node=n1\nconnect a node=n1", 3, "twice"),
        ] {
            let error = FenceCfg::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(error.reason.contains(says), "{text}: {error}");
        }
        let error = FenceSecrets::parse("secret a password").unwrap_err().to_string();
        assert!(!error.contains("password"), "{error}");
    }

    fn value() -> impl Strategy<Value = String> {
        "[ -~äß]{0,20}"
    }

    fn devices() -> impl Strategy<Value = FenceCfg> {
        let options = || prop::collection::btree_map("x[a-z0-9_-]{0,8}", value(), 0..4);
        let connection = ("[a-z][a-z0-9]{0,6}", options())
            .prop_map(|(node, options)| Connection { node: node.parse().unwrap(), options });
        let device = (
            "fence_[a-z0-9_]{1,10}",
            prop::option::of(0u64..=60_000),
            options(),
            prop::collection::vec(connection, 0..3),
        )
            .prop_map(|(agent, delay, options, mut connections)| {
                connections.sort_by(|a, b| (&a.node, &a.options).cmp(&(&b.node, &b.options)));
                connections.dedup();
                FenceDevice { agent, delay: delay.map(Duration::from_millis), options, connections }
            });
        prop::collection::btree_map("[a-z][a-z0-9_-]{1,8}", device, 0..4).prop_map(|devices| FenceCfg {
            comments: vec![],
            devices: devices.into_iter().map(|(id, d)| (id.parse().unwrap(), d)).collect(),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(cfg in devices()) {
            let text = cfg.to_string();
            prop_assert_eq!(FenceCfg::parse(&text).map_err(|e| format!("{e}: {text}")), Ok(cfg));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(device |connect |secret |[a-z=\" \\\\\n#0-9]){0,30}") {
            if let Ok(cfg) = FenceCfg::parse(&text) {
                prop_assert_eq!(FenceCfg::parse(&cfg.to_string()), Ok(cfg));
            }
            let _ = FenceSecrets::parse(&text);
        }
    }
}
