//! PCI devices of the host, from the kernel's driver to the guest's.
//!
//! Which device it is to be is found before anything is touched; the first of several that no other guest of this node has. Then each
//! function is taken from the host's driver and given to `vfio-pci`. It stays there when the guest ends: a host's driver does not take
//! every device back, and the next start needs none of this. A mediated device is made for the guest, and goes with it.

use crate::command::refuse;
use crate::sys::{self, hardware};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use stead_driver::guest::GuestError;
use stead_driver::hardware::{Hardware, PciDevice};
use stead_model::Vmid;
use stead_model::vmconfig::{HostPci, PciSource, Settings};

/// Where files with ROMs are.
const ROMS: &str = "/usr/share/kvm";

/// What a guest gets for one option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// The option.
    pub key: String,
    /// Addresses, the first function first. Of a mediated device, of what makes it.
    pub functions: Vec<String>,
    /// A device that is made.
    pub mdev: Option<Mdev>,
    /// A ROM that the guest sees.
    pub romfile: Option<PathBuf>,
}

/// A device that a device of the host makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mdev {
    /// Where the kernel tells of it: `/sys`.
    sys: PathBuf,
    /// The address of what makes it.
    parent: String,
    /// Which kind.
    kind: String,
    /// Its name.
    uuid: String,
}

impl Mdev {
    /// Where it is once it is made.
    pub fn path(&self) -> PathBuf {
        self.sys.join("bus/mdev/devices").join(&self.uuid)
    }

    fn make(&self) -> std::io::Result<()> {
        if self.path().exists() {
            return Ok(());
        }
        let parent = self.sys.join("bus/pci/devices").join(&self.parent);
        std::fs::write(parent.join("mdev_supported_types").join(&self.kind).join("create"), &self.uuid)
    }

    /// Takes it away; one that is not there is no error.
    pub fn remove(&self) {
        let path = self.path();
        if path.exists()
            && let Err(e) = std::fs::write(path.join("remove"), "1")
        {
            tracing::warn!(uuid = self.uuid, error = %e, "a mediated device could not be removed");
        }
    }
}

/// What a guest gets for all its options. `taken`: addresses that other guests of this node have.
pub fn plan(
    root: &Path,
    vmid: Vmid,
    settings: &Settings,
    taken: &BTreeSet<String>,
) -> Result<Vec<Passed>, GuestError> {
    let all = settings.hostpcis().map_err(crate::command::unusable)?;
    if all.is_empty() {
        return Ok(vec![]);
    }
    let there = hardware(root);
    let mut taken = taken.clone();
    let mut planned = vec![];
    for pci in &all {
        let one = plan_one(root, vmid, pci, &there, &taken).or_else(|why| refuse(&pci.key, why))?;
        if one.mdev.is_none() {
            taken.extend(one.functions.iter().cloned());
        }
        planned.push(one);
    }
    Ok(planned)
}

fn plan_one(
    root: &Path,
    vmid: Vmid,
    pci: &HostPci,
    there: &Hardware,
    taken: &BTreeSet<String>,
) -> Result<Passed, String> {
    let romfile = pci.romfile.as_ref().map(|name| Path::new(ROMS).join(name));
    if let Some(file) = romfile.as_ref().filter(|file| !file.is_file()) {
        return Err(format!("romfile: this host has no file '{}'", file.display()));
    }
    let choice = match &pci.source {
        PciSource::Host(choice) => choice,
        PciSource::Mapping(name) => {
            return Err(format!("the driver was not told what the mapping '{name}' is on this node"));
        }
    };
    let mut why = String::new();
    for paths in choice {
        match free(root, vmid, pci, paths, there, taken) {
            Ok((functions, mdev)) => return Ok(Passed { key: pci.key.clone(), functions, mdev, romfile }),
            Err(e) if why.is_empty() => why = e,
            Err(e) => why = format!("{why}; {e}"),
        }
    }
    Err(why)
}

fn free(
    root: &Path,
    vmid: Vmid,
    pci: &HostPci,
    paths: &[String],
    there: &Hardware,
    taken: &BTreeSet<String>,
) -> Result<(Vec<String>, Option<Mdev>), String> {
    let mut found: Vec<&PciDevice> = vec![];
    for path in paths {
        match there.pci_at(path) {
            none if none.is_empty() => return Err(format!("this host has no PCI device {path}")),
            functions => found.extend(functions),
        }
    }
    if let Some(kind) = &pci.mdev {
        let uuid = format!("{:08}-0000-0000-0000-{:012}", pci.index, vmid.get());
        let known = |d: &&&PciDevice| d.mdevs.iter().any(|m| m.kind == *kind);
        let Some(parent) = found.iter().find(known) else {
            return Err(format!("mdev: the PCI device {} makes no '{kind}'", paths.join(" and ")));
        };
        let mdev = Mdev { sys: root.to_owned(), parent: parent.address.clone(), kind: kind.clone(), uuid };
        let left = parent.mdevs.iter().any(|m| m.kind == *kind && m.available > 0);
        if !left && !mdev.path().exists() {
            return Err(format!("mdev: the PCI device {} can make no more '{kind}'", parent.address));
        }
        return Ok((vec![parent.address.clone()], Some(mdev)));
    }
    for device in &found {
        if device.iommu_group.is_none() {
            return Err(no_iommu(root, &device.address));
        }
        if taken.contains(&device.address) {
            return Err(format!("another VM of this host has the PCI device {}", device.address));
        }
    }
    if found.len() > 8 {
        return Err(format!("{} has more than the 8 functions that a device can have", paths.join(";")));
    }
    Ok((found.into_iter().map(|d| d.address.clone()).collect(), None))
}

fn no_iommu(root: &Path, address: &str) -> String {
    let groups = root.join("kernel/iommu_groups");
    if std::fs::read_dir(groups).is_ok_and(|mut groups| groups.next().is_some()) {
        return format!("the PCI device {address} is in no IOMMU group: the host can't give it away");
    }
    "this host has no IOMMU: switch it on in its firmware (VT-d, AMD-Vi) and, on Intel, for its kernel (intel_iommu=on)".to_owned()
}

/// Gives the devices to the kernel's driver for guests, and makes those that are to be made.
pub async fn take(root: &Path, passed: &[Passed]) -> Result<(), GuestError> {
    let drivers = root.join("bus/pci/drivers/vfio-pci");
    if passed.iter().any(|p| p.mdev.is_none()) && !drivers.exists() {
        // Where the program is missing the driver is missed below.
        let _ = tokio::process::Command::new("modprobe").arg("vfio-pci").output().await;
    }
    for one in passed {
        let done = match &one.mdev {
            Some(mdev) => mdev.make().map_err(|e| format!("mdev: {e}")),
            None => one.functions.iter().try_for_each(|address| bind(root, address)),
        };
        if let Err(why) = done {
            return refuse(&one.key, why);
        }
    }
    Ok(())
}

/// What the host itself does with a device: a network card that is up, a disk that is mounted or part of something.
fn in_use(device: &Path) -> Option<String> {
    let names = |folder: PathBuf| {
        let all = std::fs::read_dir(folder).into_iter().flatten().flatten();
        all.filter_map(|e| e.file_name().into_string().ok()).collect::<Vec<String>>()
    };
    let is_up = |card: &String| {
        let state = std::fs::read_to_string(device.join("net").join(card).join("operstate"));
        state.is_ok_and(|state| state.trim() == "up")
    };
    if let Some(card) = names(device.join("net")).into_iter().find(is_up) {
        return Some(format!("its network card '{card}' is up"));
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    for block in blocks_below(device, 8) {
        let disk = block.file_name()?.to_str()?.to_owned();
        if mounts.lines().any(|line| line.starts_with(&format!("/dev/{disk}"))) {
            return Some(format!("its disk '{disk}' is mounted"));
        }
        let parts = names(block.clone()).into_iter().filter(|n| n.starts_with(&disk)).map(|n| block.join(n));
        let held = parts.chain([block.clone()]).find(|part| !names(part.join("holders")).is_empty());
        if held.is_some() {
            return Some(format!("its disk '{disk}' is part of another device"));
        }
    }
    None
}

/// The disks below a device: those of controllers are some folders down.
fn blocks_below(folder: &Path, depth: u8) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if depth == 0 || !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let path = entry.path();
        // A disk's folder is in one that is called so, or is a namespace of its controller.
        let is_disk = path.join("queue").is_dir() && path.join("size").is_file();
        if is_disk { found.push(path) } else { found.extend(blocks_below(&path, depth - 1)) }
    }
    found
}

fn bind(root: &Path, address: &str) -> Result<(), String> {
    let device = root.join("bus/pci/devices").join(address);
    let driver = || sys::link(device.join("driver"));
    if driver().as_deref() == Some("vfio-pci") {
        return Ok(());
    }
    if !root.join("bus/pci/drivers/vfio-pci").exists() {
        return Err("this host's kernel has no driver vfio-pci, by which guests get PCI devices".to_owned());
    }
    let failed = |what: &str, e: std::io::Error| format!("the PCI device {address}: {what}: {e}");
    if let Some(how) = in_use(&device) {
        return Err(format!("the PCI device {address} is in use by this host: {how}"));
    }
    std::fs::write(device.join("driver_override"), "vfio-pci").map_err(|e| failed("driver_override", e))?;
    if device.join("driver").exists() {
        std::fs::write(device.join("driver/unbind"), address).map_err(|e| failed("unbind", e))?;
    }
    std::fs::write(root.join("bus/pci/drivers_probe"), address).map_err(|e| failed("drivers_probe", e))?;
    match driver() {
        Some(name) if name == "vfio-pci" => Ok(()),
        other => Err(format!(
            "the PCI device {address} was not taken by the driver vfio-pci; it has {}",
            other.unwrap_or_else(|| "none".to_owned())
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tests::{host, write};

    fn settings(text: &str) -> Settings {
        stead_model::VmConfig::parse(text).unwrap().current
    }

    fn planned(root: &Path, text: &str, taken: &[&str]) -> Result<Vec<Passed>, String> {
        let taken = taken.iter().map(|t| (*t).to_owned()).collect();
        plan(root, Vmid::new(100).unwrap(), &settings(text), &taken).map_err(|e| e.to_string())
    }

    #[test]
    fn a_device_is_chosen_that_nobody_has() {
        let root = tempfile::tempdir().unwrap();
        let none = planned(root.path(), "hostpci0: 01:00", &[]).unwrap_err();
        assert_eq!(none, "hostpci0: this host has no PCI device 0000:01:00");
        host(root.path());
        let all = planned(root.path(), "hostpci0: 01:00", &[]).unwrap();
        assert_eq!(all[0].functions, ["0000:01:00.0", "0000:01:00.1"]);
        let had = planned(root.path(), "hostpci0: 01:00", &["0000:01:00.1"]).unwrap_err();
        assert_eq!(had, "hostpci0: another VM of this host has the PCI device 0000:01:00.1");
        let second = planned(root.path(), "hostpci0: 0000:01:00.0|0000:01:00.1", &["0000:01:00.0"]).unwrap();
        assert_eq!(second[0].functions, ["0000:01:00.1"]);
        let twice = planned(root.path(), "hostpci0: 01:00.0\nhostpci1: 01:00.0", &[]).unwrap_err();
        assert!(twice.starts_with("hostpci1: another VM"), "{twice}");
        let unknown = planned(root.path(), "hostpci0: mapping=gpu", &[]).unwrap_err();
        assert!(unknown.contains("the mapping 'gpu'"), "{unknown}");
        let rom = planned(root.path(), "hostpci0: 01:00.0,romfile=no-such.rom", &[]).unwrap_err();
        assert!(rom.contains("no-such.rom"), "{rom}");
    }

    #[test]
    fn without_an_iommu_it_is_said_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let dir = "bus/pci/devices/0000:02:00.0";
        let file = |name: &str| format!("{dir}/{name}");
        write(
            root.path(),
            &[(&file("class"), "0x0200"), (&file("vendor"), "0x8086"), (&file("device"), "0x1572")],
        );
        let why = planned(root.path(), "hostpci3: 02:00.0", &[]).unwrap_err();
        assert!(why.starts_with("hostpci3: this host has no IOMMU: switch it on"), "{why}");
        std::fs::create_dir_all(root.path().join("kernel/iommu_groups/3")).unwrap();
        let why = planned(root.path(), "hostpci3: 02:00.0", &[]).unwrap_err();
        assert!(why.contains("is in no IOMMU group"), "{why}");
    }

    #[tokio::test]
    async fn a_device_is_taken_from_the_hosts_driver() {
        let root = tempfile::tempdir().unwrap();
        host(root.path());
        let at = |path: &str| root.path().join(path);
        let passed = planned(root.path(), "hostpci0: 01:00.0", &[]).unwrap();
        let why = take(root.path(), &passed).await.unwrap_err().to_string();
        assert!(why.contains("no driver vfio-pci"), "{why}");
        write(root.path(), &[("bus/pci/drivers/vfio-pci/bind", ""), ("bus/pci/drivers/nouveau/unbind", "")]);
        let device = at("bus/pci/devices/0000:01:00.0");
        std::os::unix::fs::symlink(at("bus/pci/drivers/nouveau"), device.join("driver")).unwrap();
        // Nobody carries out here what is written.
        let why = take(root.path(), &passed).await.unwrap_err().to_string();
        assert!(why.ends_with("was not taken by the driver vfio-pci; it has nouveau"), "{why}");
        let said = |path: &str| std::fs::read_to_string(at(path)).unwrap();
        assert_eq!(said("bus/pci/devices/0000:01:00.0/driver_override"), "vfio-pci");
        assert_eq!(said("bus/pci/drivers/nouveau/unbind"), "0000:01:00.0");
        assert_eq!(said("bus/pci/drivers_probe"), "0000:01:00.0");
        std::fs::remove_file(device.join("driver")).unwrap();
        std::os::unix::fs::symlink(at("bus/pci/drivers/vfio-pci"), device.join("driver")).unwrap();
        take(root.path(), &passed).await.unwrap();
    }

    #[tokio::test]
    async fn what_the_host_uses_itself_is_not_taken_from_it() {
        let root = tempfile::tempdir().unwrap();
        host(root.path());
        write(root.path(), &[("bus/pci/drivers/vfio-pci/bind", "")]);
        let passed = planned(root.path(), "hostpci0: 01:00.0", &[]).unwrap();
        let refused = async || take(root.path(), &passed).await.unwrap_err().to_string();
        let device = "bus/pci/devices/0000:01:00.0";
        write(root.path(), &[(&format!("{device}/net/eth7/operstate"), "up\n")]);
        assert!(refused().await.contains("its network card 'eth7' is up"));
        write(root.path(), &[(&format!("{device}/net/eth7/operstate"), "down\n")]);
        let disk = format!("{device}/nvme/nvme7/nvme7n1");
        write(
            root.path(),
            &[
                (&format!("{disk}/size"), "1"),
                (&format!("{disk}/queue/rotational"), "0"),
                (&format!("{disk}/nvme7n1p1/holders/dm-0"), ""),
            ],
        );
        assert!(refused().await.contains("its disk 'nvme7n1' is part of another device"));
        assert!(!root.path().join(device).join("driver_override").exists(), "it was touched");
    }

    #[tokio::test]
    async fn a_mediated_device_is_made_and_goes() {
        let root = tempfile::tempdir().unwrap();
        host(root.path());
        let passed = planned(root.path(), "hostpci2: 01:00,mdev=nvidia-63", &[]).unwrap();
        let uuid = "00000002-0000-0000-0000-000000000100";
        take(root.path(), &passed).await.unwrap();
        let made: Vec<Mdev> = passed.iter().filter_map(|p| p.mdev.clone()).collect();
        let create = "bus/pci/devices/0000:01:00.0/mdev_supported_types/nvidia-63/create";
        assert_eq!(std::fs::read_to_string(root.path().join(create)).unwrap(), uuid);
        let path = made[0].path();
        assert!(path.ends_with(uuid));
        made[0].remove();
        std::fs::create_dir_all(&path).unwrap();
        made[0].remove();
        assert_eq!(std::fs::read_to_string(path.join("remove")).unwrap(), "1");
        let other = planned(root.path(), "hostpci2: 01:00,mdev=nvidia-99", &[]).unwrap_err();
        assert!(other.contains("makes no 'nvidia-99'"), "{other}");
    }
}
