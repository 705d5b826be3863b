//! A real QEMU with devices of its host, as far as a host without them shows it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::Machines;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_driver::guest::{GuestDriver, Launch};
use stead_driver::suite::guest::GuestHarness;
use stead_model::{Epoch, Vmid};
use stead_qemu::{Bridges, QemuDriver, QemuOptions};

fn vmid(n: u32) -> Vmid {
    Vmid::new(n).unwrap()
}

fn launch(h: &Machines, n: u32, more: &str) -> Launch {
    let mut launch = h.launch(vmid(n), Epoch(1));
    launch.config.insert_str(0, more);
    launch
}

async fn start(driver: &QemuDriver, launch: Launch) {
    let id = launch.vmid;
    driver.prepare(id, Epoch(1)).await.unwrap();
    driver.launch(launch).await.unwrap();
    driver.resume(id).await.unwrap();
}

/// A device that is not plugged in is waited for; one comes and goes while the guest runs, without a word of its system.
#[tokio::test]
async fn usb_devices_come_and_go() {
    let h = Machines::new().await;
    for (n, machine) in [(100, "pc"), (101, "q35")] {
        let driver = QemuDriver::new(QemuOptions { bridges: Bridges::Never, ..h.options(0) });
        let spec = launch(&h, n, &format!("machine: {machine}\nusb13: 9-9.9\nboot: order=usb13;usb0\n"));
        let said = driver.warnings(&spec).await;
        assert_eq!(said, ["usb13: 9-9.9 is not plugged in; the guest sees it once it is"]);
        let base = spec.config.clone();
        start(&driver, spec).await;
        let has = async |key: &str| driver.inventory(vmid(n)).await.unwrap().devices.contains(key);
        assert!(has("usb13").await && !has("usb0").await);
        let with = format!("usb0: 1d6b:ffff\n{base}");
        driver.plug(vmid(n), "usb0", &with, None).await.unwrap();
        assert!(has("usb0").await);
        driver.unplug(vmid(n), "usb0", &with, Duration::from_millis(500)).await.unwrap();
        driver.unplug(vmid(n), "usb13", &base, Duration::from_millis(500)).await.unwrap();
        assert!(!has("usb0").await && !has("usb13").await);
        driver.kill(vmid(n)).await.unwrap();
    }
}

#[tokio::test]
async fn shared_memory_goes_with_the_last_that_has_it() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(QemuOptions { bridges: Bridges::Never, ..h.options(0) });
    let name = format!("test-{}", std::process::id());
    let file = PathBuf::from(format!("/dev/shm/pve-shm-{name}"));
    let more = format!("ivshmem: size=4,name={name}\n");
    start(&driver, launch(&h, 100, &more)).await;
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 4 << 20);
    start(&driver, launch(&h, 101, &format!("machine: q35\n{more}"))).await;
    driver.kill(vmid(100)).await.unwrap();
    assert!(file.exists(), "another guest has it");
    start(&driver, launch(&h, 103, &more)).await;
    // A daemon that was started since finds one of two, and ends it.
    drop(driver);
    for pid in common::processes(&h.options(0).run_dir) {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        if String::from_utf8_lossy(&line).contains("/103/pid") {
            common::end(pid);
        }
    }
    let driver = QemuDriver::new(QemuOptions { bridges: Bridges::Never, ..h.options(0) });
    assert_eq!(driver.adopt().await.len(), 1);
    driver.stop(vmid(101)).await.unwrap();
    assert!(!file.exists());
    let broken = launch(&h, 102, &format!("{more}args: -device no-such-device\n"));
    driver.prepare(vmid(102), Epoch(1)).await.unwrap();
    driver.launch(broken).await.unwrap_err();
    assert!(!file.exists(), "of a start that failed nothing is left");
}

/// `/sys` of a host whose devices nobody has.
fn host(root: &Path) {
    let device = root.join("bus/pci/devices/ffff:01:00.0");
    for (file, text) in [
        ("class", "0x030000"),
        ("vendor", "0x10de"),
        ("device", "0x2204"),
        ("mdev_supported_types/small/available_instances", "2"),
    ] {
        std::fs::create_dir_all(device.join(file).parent().unwrap()).unwrap();
        std::fs::write(device.join(file), text).unwrap();
    }
}

#[tokio::test]
async fn a_pci_device_that_cannot_be_given_away_is_refused_and_leaves_nothing() {
    let h = Machines::new().await;
    let sys = h.folder.path().join("sys");
    host(&sys);
    let options = || QemuOptions { bridges: Bridges::Never, sys: sys.clone(), ..h.options(0) };
    let driver = QemuDriver::new(options());
    let refused = async |more: &str| {
        let spec = launch(&h, 100, more);
        let told = driver.obstacles(&spec).await.join("; ");
        driver.prepare(vmid(100), Epoch(1)).await.unwrap();
        let why = driver.launch(spec).await.unwrap_err().to_string();
        assert!(driver.state(vmid(100)).await.is_none());
        (told, why)
    };
    let (told, why) = refused("hostpci0: 05:00\n").await;
    assert_eq!(why, "hostpci0: this host has no PCI device 0000:05:00");
    assert_eq!(told, why, "it is known before");
    let (told, why) = refused("hostpci0: ffff:01:00\n").await;
    assert!(why.starts_with("hostpci0: this host has no IOMMU: switch it on"), "{why}");
    assert_eq!(told, why);
    // QEMU's own words, of a device that only the folder knows.
    let groups = sys.join("kernel/iommu_groups/1");
    std::fs::create_dir_all(&groups).unwrap();
    std::fs::create_dir_all(sys.join("bus/pci/drivers/vfio-pci")).unwrap();
    let device = sys.join("bus/pci/devices/ffff:01:00.0");
    std::os::unix::fs::symlink(&groups, device.join("iommu_group")).unwrap();
    std::os::unix::fs::symlink(sys.join("bus/pci/drivers/vfio-pci"), device.join("driver")).unwrap();
    let (told, why) = refused("machine: q35\nhostpci0: ffff:01:00,pcie=1\n").await;
    assert_eq!(told, "");
    assert!(why.contains("ffff:01:00.0"), "{why}");
    // What was made for a start that fails goes again.
    let made = sys.join("bus/mdev/devices/00000001-0000-0000-0000-000000000100");
    std::fs::create_dir_all(&made).unwrap();
    let (_, why) = refused("hostpci1: ffff:01:00,mdev=small\n").await;
    assert!(why.contains("00000001-0000"), "{why}");
    assert_eq!(std::fs::read_to_string(made.join("remove")).unwrap(), "1");
}
