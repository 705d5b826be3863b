//! Cloud-init: what a VM's options tell its guest at its first start, as the files of a CD.
//!
//! ```text
//! Settings + snippets ──▶ Seed ──▶ files of a volume labelled `cidata` or `config-2`
//! ```
//!
//! Pure: the same options give the same bytes on every node. So a guest's instance id, by which cloud-init decides
//! whether all of it is to be done once more, stays as it is when the guest is recovered elsewhere. For the same
//! reason nothing is taken from the host: names and addresses of resolvers are those that the options give.

mod network;
pub mod options;
mod yaml;

use crate::vmconfig::{KeyError, Net, Settings};
use crate::{Vmid, VolumeId};
use network::Card;
pub use options::{Custom, Part};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What stands for a password that nobody is shown.
pub const MASK: &str = "**********";
/// The special section of a configuration that says what the drive holds.
pub const SECTION: &str = "cloudinit";
/// The option of that section which tells contents apart.
const DIGEST: &str = "digest";

/// How the files are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// cloud-init's own.
    NoCloud,
    /// OpenStack's, second version, which Windows guests read too.
    ConfigDrive2,
}

impl Layout {
    /// The label by which a guest finds the drive.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoCloud => "cidata",
            Self::ConfigDrive2 => "config-2",
        }
    }

    /// What `citype` says, or else what the guest's system reads.
    fn of(settings: &Settings) -> Result<Self, KeyError> {
        match settings.get("citype") {
            Some("nocloud") => Ok(Self::NoCloud),
            Some("configdrive2") => Ok(Self::ConfigDrive2),
            Some(other) => {
                KeyError::unsupported("citype", format_args!("'{other}' is not supported: {}", options::ONLY))
            }
            None if settings.ostype()?.is_windows() => Ok(Self::ConfigDrive2),
            None => Ok(Self::NoCloud),
        }
    }
}

/// What a drive is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// How it is laid out.
    pub layout: Layout,
    /// What the guest is to do.
    pub user: String,
    /// Its network.
    pub network: String,
    /// What it is.
    pub meta: String,
    /// What its maker has it do.
    pub vendor: Option<String>,
    /// The network is a user's own file.
    own_network: bool,
}

impl Seed {
    /// What the options ask for; files of users stand in the place of what would be made.
    ///
    /// # Errors
    /// Names an option that cannot be read.
    pub fn of(vmid: Vmid, settings: &Settings, files: &BTreeMap<Part, String>) -> Result<Self, KeyError> {
        let layout = Layout::of(settings)?;
        let given = |part: Part| files.get(&part).cloned();
        let user = match given(Part::User) {
            Some(text) => text,
            None => user_data(vmid, settings)?,
        };
        let own_network = files.contains_key(&Part::Network);
        let network = match (given(Part::Network), layout) {
            (Some(text), _) => text,
            (None, Layout::NoCloud) => network::version_1(&cards(settings)?, settings)?,
            (None, Layout::ConfigDrive2) => network::openstack(&cards(settings)?, settings)?,
        };
        let vendor = given(Part::Vendor);
        let id = hex(&[&user, &network, vendor.as_deref().unwrap_or_default()], 40);
        let meta = given(Part::Meta).unwrap_or_else(|| meta_data(layout, &id, own_network));
        Ok(Self { layout, user, network, meta, vendor, own_network })
    }

    /// The drive's files: paths from its root, and contents.
    pub fn files(&self) -> Vec<(&'static str, &str)> {
        let mut files = match self.layout {
            Layout::NoCloud => vec![
                ("user-data", self.user.as_str()),
                ("network-config", self.network.as_str()),
                ("meta-data", self.meta.as_str()),
            ],
            Layout::ConfigDrive2 => vec![
                ("openstack/latest/user_data", self.user.as_str()),
                (
                    if self.own_network { OWN_NETWORK } else { "openstack/latest/network_data.json" },
                    self.network.as_str(),
                ),
                ("openstack/latest/meta_data.json", self.meta.as_str()),
            ],
        };
        let vendor = match self.layout {
            Layout::NoCloud => "vendor-data",
            Layout::ConfigDrive2 => "openstack/latest/vendor_data.json",
        };
        files.extend(self.vendor.as_deref().map(|text| (vendor, text)));
        files
    }

    /// Tells what one volume holds from all else that any may.
    pub fn digest(&self, volume: &VolumeId) -> String {
        let volume = volume.to_string();
        let mut parts = vec![volume.as_str(), self.layout.label()];
        parts.extend(self.files().into_iter().flat_map(|(path, text)| [path, text]));
        hex(&parts, 64)
    }
}

/// Where a configuration drive has a network that is no `network_data.json`.
const OWN_NETWORK: &str = "openstack/content/0000";

/// The beginning of a hash over texts, each with its length.
fn hex(texts: &[&str], digits: usize) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    let mut out = String::new();
    for byte in hash.finalize().iter().take(digits / 2) {
        // Writing into a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// The guest's name without and with its domain, as far as one is known.
fn names(vmid: Vmid, settings: &Settings) -> (String, Option<String>) {
    let name = settings.name().map_or_else(|| format!("VM{vmid}"), str::to_owned);
    let domain = settings.get("searchdomain").and_then(|text| options::words(text).next());
    match (name.split_once('.'), domain) {
        (Some((host, _)), _) => (host.to_owned(), Some(name)),
        (None, Some(domain)) => {
            let full = format!("{name}.{domain}");
            (name, Some(full))
        }
        (None, None) => (name, None),
    }
}

fn user_data(vmid: Vmid, settings: &Settings) -> Result<String, KeyError> {
    let (host, full) = names(vmid, settings);
    let mut out = json!({ "hostname": host, "manage_etc_hosts": true });
    if let Some(full) = full {
        out["fqdn"] = full.into();
    }
    let user = settings.get("ciuser");
    if let Some(user) = user {
        out["user"] = user.into();
        if user == "root" {
            out["disable_root"] = false.into();
        }
    }
    if let Some(hash) = settings.get("cipassword") {
        out["password"] = hash.into();
    }
    let keys = settings.get("sshkeys").map(options::ssh_keys).transpose()?.unwrap_or_default();
    if !keys.is_empty() {
        out["ssh_authorized_keys"] = keys.into();
    }
    out["chpasswd"] = json!({ "expire": false });
    // The image's own user is renamed, which root must not be.
    if user != Some("root") {
        out["users"] = json!(["default"]);
    }
    out["package_upgrade"] = (settings.get("ciupgrade") != Some("0")).into();
    Ok(format!("#cloud-config\n{}", yaml::print(&out)))
}

fn meta_data(layout: Layout, id: &str, own_network: bool) -> String {
    let meta = match layout {
        Layout::NoCloud => return yaml::print(&json!({ "instance-id": id })),
        Layout::ConfigDrive2 if own_network => {
            json!({ "uuid": id, "network_config": { "content_path": "/content/0000" } })
        }
        Layout::ConfigDrive2 => json!({ "uuid": id }),
    };
    pretty(&meta)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The guest's network devices with their addresses. One of which nothing is said asks for its address.
fn cards(settings: &Settings) -> Result<Vec<Card>, KeyError> {
    let with = |net: Net| {
        let key = format!("ipconfig{}", net.index);
        let addresses = options::Addresses::parse(&key, settings.get(&key).unwrap_or("ip=dhcp"))?;
        Ok(Card { index: net.index, mac: net.mac.map(|mac| mac.to_lowercase()), addresses })
    };
    settings.nets()?.into_iter().map(with).collect()
}

/// Whether an option is one that the drive is made from.
pub fn is_told(key: &str) -> bool {
    match key {
        "cicustom" | "cipassword" | "citype" | "ciupgrade" | "ciuser" | "name" | "nameserver"
        | "searchdomain" | "sshkeys" => true,
        _ => {
            let family = key.trim_end_matches(|c: char| c.is_ascii_digit());
            family != key && matches!(family, "ipconfig" | "net")
        }
    }
}

/// The section that says what a drive holds.
///
/// # Errors
/// If a value cannot stand in the file, which those of a configuration can.
pub fn held(settings: &Settings, digest: &str) -> Result<Settings, KeyError> {
    let mut held = Settings::default();
    for (key, value) in settings.iter().filter(|(key, _)| is_told(key)) {
        held.set(key, value)?;
    }
    held.set(DIGEST, digest)?;
    Ok(held)
}

/// Whether the section says that the drive holds this.
pub fn holds(held: Option<&Settings>, digest: &str) -> bool {
    held.and_then(|held| held.get(DIGEST)) == Some(digest)
}

/// An option as the drive has it, and as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The option.
    pub key: String,
    /// As the drive has it.
    pub value: Option<String>,
    /// As the next drive will have it, if that is something else.
    pub pending: Option<String>,
    /// The next drive will have none.
    pub delete: bool,
}

/// What the drive holds, and what it would. Passwords are not shown.
pub fn compare(held: Option<&Settings>, current: &Settings) -> Vec<Told> {
    let none = Settings::default();
    let held = held.unwrap_or(&none);
    let mut keys: Vec<&str> =
        held.iter().chain(current.iter()).map(|(key, _)| key).filter(|key| is_told(key)).collect();
    keys.sort_unstable();
    keys.dedup();
    let shown = |key: &str, value: &str| if key == "cipassword" { MASK } else { value }.to_owned();
    keys.into_iter()
        .map(|key| {
            let (old, new) = (held.get(key), current.get(key));
            let same = match (old, new) {
                (Some(old), Some(new)) => old == new || same_card(key, old, new),
                _ => false,
            };
            Told {
                key: key.to_owned(),
                value: old.map(|value| shown(key, value)),
                pending: new.filter(|_| !same).map(|value| shown(key, value)),
                delete: new.is_none(),
            }
        })
        .collect()
}

/// Of a network device a guest is told its hardware address alone.
fn same_card(key: &str, old: &str, new: &str) -> bool {
    let mac = |value: &str| Net::parse(key, value).ok().and_then(|net| net.mac);
    matches!((mac(old), mac(new)), (Some(old), Some(new)) if old.eq_ignore_ascii_case(&new))
}

/// Whether a drive is one that is made of a VM's options, by its volume's name: `vm-100-cloudinit`, with a suffix
/// where volumes are files.
pub fn is_drive(volume: &VolumeId) -> bool {
    let file = volume.name.rsplit('/').next().unwrap_or_default();
    let stem = file.split_once('.').map_or(file, |(stem, _)| stem);
    let vmid = stem.strip_prefix("vm-").and_then(|rest| rest.strip_suffix("-cloudinit"));
    vmid.is_some_and(|vmid| vmid.parse::<Vmid>().is_ok())
}

#[cfg(test)]
mod tests;
