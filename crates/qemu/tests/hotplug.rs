//! A real QEMU gets devices and loses them. Its guest is a boot sector that answers no event of its machine: what needs a system that
//! lets go is tried in a cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::Machines;
use std::time::Duration;
use stead_driver::guest::{GuestDriver, GuestError, GuestEvent, Launch, ResolvedVolume, Sending};
use stead_driver::suite::guest::GuestHarness;
use stead_model::{Epoch, Vmid};
use stead_qemu::{Accel, Bridges, QemuDriver, QemuOptions};

const SOON: Duration = Duration::from_millis(300);

struct Guest {
    h: Machines,
    driver: QemuDriver,
    id: Vmid,
    base: String,
}

impl Guest {
    /// A running guest; its configuration is the usual one with `more` before it.
    async fn start(more: &str) -> Self {
        let h = Machines::new().await;
        let driver = QemuDriver::new(QemuOptions { bridges: Bridges::Never, ..h.options(0) });
        let id = Vmid::new(100).unwrap();
        let mut launch: Launch = h.launch(id, Epoch(1));
        launch.config.insert_str(0, more);
        let base = launch.config.clone();
        driver.prepare(id, Epoch(1)).await.unwrap();
        driver.launch(launch).await.unwrap();
        driver.resume(id).await.unwrap();
        Self { h, driver, id, base }
    }

    fn volume(&self, name: &str) -> ResolvedVolume {
        let path = self.h.folder.path().join(name);
        if !path.exists() {
            std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        }
        ResolvedVolume { volume: format!("shared:100/{name}"), path, format: "raw".into() }
    }

    async fn plug(&self, key: &str, value: &str, volume: Option<ResolvedVolume>) -> Result<(), GuestError> {
        let config = format!("{key}: {value}\n{}", self.base);
        self.driver.plug(self.id, key, &config, volume).await
    }

    async fn unplug(&self, key: &str, value: &str) -> Result<(), GuestError> {
        let config = format!("{key}: {value}\n{}", self.base);
        self.driver.unplug(self.id, key, &config, SOON).await
    }

    async fn has(&self, key: &str) -> bool {
        self.driver.inventory(self.id).await.unwrap().devices.contains(key)
    }

    async fn ask(&self, line: &str) -> String {
        self.driver.monitor(self.id, line).await.unwrap()
    }
}

/// What an option says is typed as QEMU wants it, at each place that a device can have.
#[tokio::test]
async fn every_device_that_can_come_comes() {
    let disk = "shared:100/a.raw,iothread=1,serial=A%20B,discard=on,cache=writethrough,rerror=stop,werror=enospc,iops=50";
    let scsi = format!("{disk},ssd=1,wwn=0x500000123456789a,vendor=ACME,product=F 1,queues=2");
    for machine in ["pc", "q35"] {
        let more = format!("machine: {machine}\nscsihw: virtio-scsi-single\nboot: order=net1;scsi1\n");
        let guest = Guest::start(&more).await;
        for key in ["virtio3", "virtio15", "scsi1", "scsi2", "scsi30"] {
            let value = if key.starts_with("scsi") { &scsi } else { disk };
            let name = format!("{key}.raw");
            let value = value.replace("a.raw", &name);
            guest
                .plug(key, &value, Some(guest.volume(&name)))
                .await
                .unwrap_or_else(|e| panic!("{machine} {key}: {e}"));
            assert!(guest.has(key).await);
        }
        guest.plug("scsi3", "none,media=cdrom", None).await.unwrap();
        for (key, model) in [("net1", "virtio"), ("net6", "e1000"), ("net31", "rtl8139")] {
            let value = format!("{model}=BC:24:11:00:00:01,bridge=vmbr0,link_down=1");
            guest.plug(key, &value, None).await.unwrap_or_else(|e| panic!("{machine} {key}: {e}"));
            let again = guest.plug(key, &value, None).await.unwrap_err().to_string();
            assert!(again.contains("not let go yet"), "{again}");
        }
        let nets = guest.ask("info network").await;
        assert_eq!(nets.matches("link=down").count() + nets.matches("link down").count(), 0, "{nets}");
        assert!(guest.ask("info iothreads").await.contains("iothread-scsi30"));
        assert!(!guest.has("net2").await && !guest.has("virtio4").await);
        guest.driver.kill(guest.id).await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_plugged_in_leaves_nothing() {
    let guest = Guest::start("scsihw: virtio-scsi-single\n").await;
    let value = "shared:100/b.raw,iothread=1";
    let missing = ResolvedVolume { path: "/nowhere/b.raw".into(), ..guest.volume("b.raw") };
    let refused = guest.plug("scsi1", value, Some(missing)).await.unwrap_err().to_string();
    assert!(refused.contains("/nowhere/b.raw"), "{refused}");
    assert!(!guest.has("scsi1").await && !guest.ask("info iothreads").await.contains("iothread-scsi1"));
    guest.plug("scsi1", value, Some(guest.volume("b.raw"))).await.unwrap();
    // A disk that another process writes to.
    let other = Guest::start("").await;
    let refused = other.plug("virtio1", "shared:100/b.raw", Some(guest.volume("b.raw"))).await.unwrap_err();
    assert!(refused.to_string().contains("lock"), "{refused}");
    assert!(!other.has("virtio1").await);
}

#[tokio::test]
async fn a_device_goes_when_its_guest_lets_go_and_not_before() {
    let guest = Guest::start("scsihw: virtio-scsi-pci\n").await;
    let (disk, card) = ("shared:100/d.raw,iothread=1", "virtio=BC:24:11:00:00:01");
    guest.plug("virtio1", disk, Some(guest.volume("d.raw"))).await.unwrap();
    guest.plug("net1", card, None).await.unwrap();
    let mut events = guest.driver.events();
    for (key, value) in [("virtio1", disk), ("net1", card)] {
        for _ in 0..2 {
            let late = guest.unplug(key, value).await.unwrap_err();
            assert!(matches!(late, GuestError::TimedOut { .. }), "{late}");
        }
        assert!(guest.has(key).await);
    }
    assert_eq!(
        guest.driver.inventory(guest.id).await.unwrap().asked,
        ["net1", "virtio1"].map(str::to_owned).into()
    );
    assert!(guest.ask("info block -n").await.contains("d.raw"), "its guest may still write to it");
    // A machine that is reset has let go of what it was asked for.
    guest.driver.reset(guest.id).await.unwrap();
    let told = async {
        while !matches!(events.recv().await.unwrap(), GuestEvent::Unplugged { .. }) {}
        while guest.has("net1").await || guest.has("virtio1").await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.expect("nobody is told");
    assert!(
        guest.ask("info block -n").await.contains("d.raw"),
        "what stood behind it stays until it is asked for"
    );
    guest.unplug("virtio1", disk).await.unwrap();
    guest.unplug("net1", card).await.unwrap();
    assert!(
        !guest.ask("info block -n").await.contains("d.raw")
            && !guest.ask("info network").await.contains("net1")
    );
    assert!(!guest.ask("info iothreads").await.contains("iothread-virtio1"));
    guest.plug("virtio1", disk, Some(guest.volume("d.raw"))).await.expect("it comes again");
}

#[tokio::test]
async fn cpus_come_one_by_one_and_are_counted() {
    let guest = Guest::start("cores: 2\nsockets: 2\nvcpus: 2\n").await;
    let set = async |number: u32| {
        let config = guest.base.replace("vcpus: 2", &format!("vcpus: {number}"));
        guest.driver.set_cpus(guest.id, &config, SOON).await
    };
    assert_eq!(set(4).await.unwrap(), 4);
    assert_eq!(guest.ask("info cpus").await.matches("CPU #").count(), 4);
    assert_eq!(set(4).await.unwrap(), 4);
    let refused = set(1).await.unwrap_err().to_string();
    // With KVM it is asked, and its guest knows nothing of CPUs that go.
    assert!(refused.contains("could not unplug"), "{refused}");
    let translated = guest.driver.accel() == Accel::Tcg;
    assert_eq!(refused.contains("it runs without KVM"), translated, "{refused}");
    assert_eq!(guest.ask("info cpus").await.matches("CPU #").count(), 4);
    let none = guest.base.replace("vcpus: 2\n", "");
    assert!(guest.driver.set_cpus(guest.id, &none, SOON).await.is_err());
}

/// What `info memory-devices` says of each module, but for whether it came later.
fn modules(said: &str) -> Vec<&str> {
    let told = said.lines().map(str::trim);
    told.filter(|line| ["addr:", "slot:", "node:", "size:", "memdev:"].iter().any(|p| line.starts_with(p)))
        .collect()
}

#[tokio::test]
async fn memory_comes_in_modules_and_moves_with_them() {
    for machine in ["pc", "q35"] {
        let h = Machines::new().await;
        let (driver, target) = (QemuDriver::new(h.options(0)), QemuDriver::new(h.options(1)));
        let mut launch: Launch = h.launch(Vmid::new(100).unwrap(), Epoch(1));
        let id = launch.vmid;
        let more = format!("hotplug: memory\nmachine: {machine}\nnuma: 1\nsockets: 2\n");
        launch.config = more + &launch.config.replace("memory: 16", "memory: 1536");
        let with = |memory: u64| launch.config.replace("memory: 1536", &format!("memory: {memory}"));
        driver.prepare(id, Epoch(1)).await.unwrap();
        driver.launch(launch.clone()).await.unwrap_or_else(|e| panic!("{machine}: {e}"));
        driver.resume(id).await.unwrap();
        assert_eq!(driver.inventory(id).await.unwrap().modules, 1);
        assert_eq!(driver.set_modules(id, &with(2560), SOON).await.unwrap(), 3);
        assert_eq!(driver.set_modules(id, &with(2560), SOON).await.unwrap(), 3, "again");
        assert_eq!(driver.inventory(id).await.unwrap().modules, 3);
        let there = driver.monitor(id, "info memory-devices").await.unwrap();
        assert_eq!(modules(&there).len(), 15, "{there}");

        let process = driver.state(id).await.unwrap();
        target.prepare(id, Epoch(2)).await.unwrap();
        let incoming = Some(process.as_incoming());
        let copy = Launch { epoch: Epoch(2), incoming, config: with(2560), ..launch.clone() };
        target.launch(copy).await.unwrap();
        driver.migrate(id, &Sending::to(target.migration_inlet(id).await.unwrap())).await.unwrap();
        let mut now = driver.migration(id).await.unwrap();
        while !now.phase.is_terminal() {
            now = driver.migration_changed(id, now.phase).await.unwrap();
        }
        assert_eq!(now.error, None, "{machine}");
        driver.kill(id).await.unwrap();
        let moved = target.monitor(id, "info memory-devices").await.unwrap();
        assert_eq!(modules(&moved), modules(&there), "{machine}: they are elsewhere");
        // Its guest knows nothing of memory that goes: it keeps all of it, and is asked for the last module.
        assert_eq!(target.set_modules(id, &with(1536), SOON).await.unwrap(), 3);
        assert_eq!(target.inventory(id).await.unwrap().asked, ["memory".to_owned()].into());
        target.kill(id).await.unwrap();
    }
}
