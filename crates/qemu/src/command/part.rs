//! One thing that a machine is made of. QEMU is told of it in one of two ways, and both say the same: by words of its command line,
//! or by a command while it runs. So what was plugged in is what a start, and a migration's target, would have made.

use serde_json::{Map, Value, json};

/// What QEMU makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A thread, a backend.
    Object,
    /// The host's end of a network device.
    Netdev,
    /// What the guest sees.
    Device,
}

/// A device, or what stands behind one.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// A node of the block layer.
    Blockdev(Value),
    /// All that has a driver, an id and properties.
    Other {
        /// What it is.
        kind: Kind,
        /// Its driver or type.
        driver: String,
        /// Its id.
        id: String,
        /// Its properties, in the order in which people read them.
        properties: Vec<(&'static str, Value)>,
    },
}

/// Where a device sits: the properties that say so.
pub type Place = Vec<(&'static str, Value)>;

/// A command of the machine protocol, and its arguments.
pub type Command = (&'static str, Value);

impl Part {
    fn other(kind: Kind, driver: &str, id: impl Into<String>) -> Self {
        Self::Other { kind, driver: driver.to_owned(), id: id.into(), properties: vec![] }
    }

    /// An object.
    pub fn object(kind: &str, id: impl Into<String>) -> Self {
        Self::other(Kind::Object, kind, id)
    }

    /// The host's end of a network device.
    pub fn netdev(kind: &str, id: impl Into<String>) -> Self {
        Self::other(Kind::Netdev, kind, id)
    }

    /// A device.
    pub fn device(driver: &str, id: impl Into<String>) -> Self {
        Self::other(Kind::Device, driver, id)
    }

    /// With a property. Its type is QEMU's: what is a number or a truth value there must be one here.
    pub fn with(self, name: &'static str, value: impl Into<Value>) -> Self {
        self.at(vec![(name, value.into())])
    }

    /// With a property, if there is one.
    pub fn maybe(self, name: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// At a place.
    pub fn at(mut self, place: Place) -> Self {
        if let Self::Other { properties, .. } = &mut self {
            properties.extend(place);
        }
        self
    }

    /// By what it is known; a node's name and a device's id may be the same.
    pub fn id(&self) -> &str {
        match self {
            Self::Blockdev(node) => node["node-name"].as_str().unwrap_or_default(),
            Self::Other { id, .. } => id,
        }
    }

    /// Whether the guest sees it, and so has to let go of it.
    pub fn is_device(&self) -> bool {
        matches!(self, Self::Other { kind: Kind::Device, .. })
    }

    /// Whether it is the same thing as another, perhaps with other properties.
    pub fn is(&self, other: &Self) -> bool {
        self.is_device() == other.is_device() && self.id() == other.id()
    }

    /// The two words of the command line.
    pub fn words(&self) -> [String; 2] {
        let (kind, driver, id, properties) = match self {
            Self::Blockdev(node) => return ["-blockdev".to_owned(), node.to_string()],
            Self::Other { kind, driver, id, properties } => (kind, driver, id, properties),
        };
        let flag = match kind {
            Kind::Object => "-object",
            Kind::Netdev => "-netdev",
            Kind::Device => "-device",
        };
        let mut text = format!("{driver},id={id}");
        for (name, value) in properties {
            for value in texts(value) {
                text.push_str(&format!(",{name}={}", super::quoted(&value)));
            }
        }
        [flag.to_owned(), text]
    }

    /// How a running machine gets it.
    pub fn add(&self) -> Command {
        let (kind, driver, id, properties) = match self {
            Self::Blockdev(node) => return ("blockdev-add", node.clone()),
            Self::Other { kind, driver, id, properties } => (kind, driver, id, properties),
        };
        let (command, of) = match kind {
            Kind::Object => ("object-add", "qom-type"),
            Kind::Netdev => ("netdev_add", "type"),
            Kind::Device => ("device_add", "driver"),
        };
        let mut arguments = Map::from_iter([(of.to_owned(), json!(driver)), ("id".to_owned(), json!(id))]);
        arguments.extend(properties.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        (command, arguments.into())
    }

    /// How a running machine loses it; of a device: how its guest is asked to let go of it.
    pub fn remove(&self) -> Command {
        match self {
            Self::Blockdev(_) => ("blockdev-del", json!({ "node-name": self.id() })),
            Self::Other { kind, id, .. } => {
                let command = match kind {
                    Kind::Object => "object-del",
                    Kind::Netdev => "netdev_del",
                    Kind::Device => "device_del",
                };
                (command, json!({ "id": id }))
            }
        }
    }
}

/// The value of a property in the word that [`Part::words`] makes.
pub fn text_of(word: &str, property: &str) -> Option<String> {
    let mut parts = word.split(',').filter_map(|part| part.split_once('='));
    parts.find(|(name, _)| *name == property).map(|(_, value)| value.to_owned())
}

/// A value as the command line has it; of a list each.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Bool(on) => vec![if *on { "on" } else { "off" }.to_owned()],
        Value::String(text) => vec![text.clone()],
        Value::Array(all) => all.iter().flat_map(|v| texts(&v["str"])).collect(),
        other => vec![other.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_commands_say_the_same() {
        let card = Part::device("virtio-net-pci", "net0-dev").with("netdev", "net0").with("bootindex", 100);
        assert_eq!(card.words(), ["-device", "virtio-net-pci,id=net0-dev,netdev=net0,bootindex=100"]);
        let arguments =
            json!({ "driver": "virtio-net-pci", "id": "net0-dev", "netdev": "net0", "bootindex": 100 });
        assert_eq!(card.add(), ("device_add", arguments));
        assert_eq!(card.remove(), ("device_del", json!({ "id": "net0-dev" })));
        let net =
            Part::netdev("user", "net0").with("hostfwd", json!([{ "str": "tcp::1-:2" }])).with("x", true);
        assert_eq!(net.words()[1], "user,id=net0,hostfwd=tcp::1-:2,x=on");
        assert_eq!(net.add().1["hostfwd"][0]["str"], "tcp::1-:2");
        let disk = Part::device("scsi-hd", "scsi0").with("serial", "a,b").maybe("wwn", None::<u64>);
        assert_eq!(disk.words()[1], "scsi-hd,id=scsi0,serial=a,,b");
        assert_eq!(disk.add().1["serial"], "a,b");
        let node = Part::Blockdev(json!({ "node-name": "drive-scsi0" }));
        assert_eq!((node.id(), node.remove().0), ("drive-scsi0", "blockdev-del"));
        assert!(!node.is(&Part::device("x", "drive-scsi0")));
    }
}
