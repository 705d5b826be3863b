//! What only QEMU guests have: screens, terminals, frozen groups, locks, many devices.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
#[path = "common/host.rs"]
mod host;

use common::{CONFIG, Machines, kill, processes};
use host::{in_own_network, ip, skip};
use std::path::Path;
use std::time::Duration;
use stead_driver::guest::{
    GuestDriver, GuestError, GuestEvent, Incoming, Launch, ResolvedVolume, RunState, Sending,
};
use stead_driver::suite::guest::GuestHarness;
use stead_driver::suite::sector;
use stead_model::{Epoch, Vmid};
use stead_qemu::{Accel, Bridges, Forward, QemuDriver, QemuOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn vmid(n: u32) -> Vmid {
    Vmid::new(n).unwrap()
}

async fn start(h: &Machines, driver: &QemuDriver, launch: Launch) {
    let id = launch.vmid;
    driver.prepare(id, launch.epoch).await.unwrap();
    driver.launch(launch).await.unwrap();
    driver.resume(id).await.unwrap();
    ticking(h, id).await;
}

async fn ticking(h: &Machines, id: Vmid) {
    let before = h.ticks(id);
    let again = async {
        while h.ticks(id) <= before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("the guest does not tick");
}

#[tokio::test]
async fn screen_terminal_and_monitor() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let id = vmid(100);
    let mut launch = h.launch(id, Epoch(1));
    launch.config = launch.config.replace("vga: none", "vga: std");
    start(&h, &driver, launch).await;
    let mut terminal = driver.terminal(id, "serial0").await.unwrap();
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(10), terminal.read_u8()).await.unwrap().unwrap(),
        b't'
    );
    assert!(driver.terminal(id, "serial1").await.is_err());
    assert!(driver.terminal(id, "../100/qmp").await.is_err());

    let mut screen = driver.screen(id, "secret12").await.unwrap();
    let mut hello = [0; 12];
    screen.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"RFB 003.008\n");
    screen.write_all(&hello).await.unwrap();
    let (count, kind) = (screen.read_u8().await.unwrap(), screen.read_u8().await.unwrap());
    assert_eq!((count, kind), (1, 2), "a password is asked for");
    assert!(driver.screen(id, "longer than eight").await.is_err());

    let text = driver.monitor(id, "info status").await.unwrap();
    assert!(text.contains("running"), "{text}");
    // What presses keys by it takes silence for success.
    assert_eq!(driver.monitor(id, "sendkey ctrl-alt-f1").await.unwrap(), "");
    assert!(!driver.monitor(id, "sendkey nosuchkey").await.unwrap().is_empty());
    let process = driver.state(id).await.unwrap();
    assert!(process.mem > 1 << 20 && process.disk_write > 0 && process.disk_read > 0, "{process:?}");
    driver.kill(id).await.unwrap();
}

#[tokio::test]
async fn disks_grow_and_media_change_while_it_runs() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let id = vmid(100);
    let mut launch = h.launch(id, Epoch(1));
    launch.config.push_str("ide2: none,media=cdrom\n");
    start(&h, &driver, launch).await;
    driver.resize_disk(id, "virtio0", 3 << 20).await.unwrap();
    assert_eq!(std::fs::metadata(h.disk(id)).unwrap().len(), 3 << 20);
    assert!(driver.resize_disk(id, "virtio1", 3 << 20).await.is_err());

    let medium = |name: &str| {
        let path = h.folder.path().join(name);
        std::fs::write(&path, vec![0; 4096]).unwrap();
        ResolvedVolume { volume: format!("local:iso/{name}"), path, format: "raw".into() }
    };
    for name in ["a.iso", "b.iso"] {
        driver.change_medium(id, "ide2", Some(medium(name))).await.unwrap();
        let shown = driver.monitor(id, "info block").await.unwrap();
        assert!(shown.contains(name), "{shown}");
    }
    let missing = ResolvedVolume { path: "/nowhere.iso".into(), ..medium("c.iso") };
    assert!(driver.change_medium(id, "ide2", Some(missing)).await.is_err());
    driver.change_medium(id, "ide2", None).await.unwrap();
    let shown = driver.monitor(id, "info block").await.unwrap();
    assert!(shown.contains("ide2") && !shown.contains(".iso"), "{shown}");
    assert!(driver.change_medium(id, "virtio0", None).await.is_err(), "a disk is no drive");
    ticking(&h, id).await;
    driver.stop(id).await.unwrap();
}

/// Freezes a guest as the fence process does.
fn freeze(group: &Path) {
    if group.join("cgroup.freeze").exists() {
        std::fs::write(group.join("cgroup.freeze"), "1").unwrap();
        while !std::fs::read_to_string(group.join("cgroup.events")).unwrap().contains("frozen 1") {
            std::thread::yield_now();
        }
    } else {
        std::fs::write(group.join("freezer.state"), "FROZEN").unwrap();
        while std::fs::read_to_string(group.join("freezer.state")).unwrap().trim() != "FROZEN" {
            std::thread::yield_now();
        }
    }
}

/// A group that was left frozen, and in which nobody is, does not hold the next guest.
async fn left_frozen(h: &Machines, options: QemuOptions) {
    let id = vmid(101);
    let driver = QemuDriver::new(options);
    let group = driver.prepare(id, Epoch(1)).await.unwrap().cgroup.unwrap();
    freeze(&group);
    start(h, &driver, h.launch(id, Epoch(2))).await;
    ticking(h, id).await;
    driver.kill(id).await.unwrap();
}

/// A frozen guest reads as paused, takes no commands, is adopted, and dies without another tick.
async fn frozen(h: &Machines, options: QemuOptions) {
    let id = vmid(100);
    let driver = QemuDriver::new(options.clone());
    let registration = driver.prepare(id, Epoch(1)).await.unwrap();
    start(h, &driver, h.launch(id, Epoch(1))).await;
    let group = registration.cgroup.unwrap();
    let pid = driver.state(id).await.unwrap().pid;
    assert_eq!(std::fs::read_to_string(group.join("cgroup.procs")).unwrap().trim(), pid.to_string());
    freeze(&group);
    let before = h.ticks(id);
    assert_eq!(driver.state(id).await.unwrap().state, RunState::Paused);
    assert!(driver.resume(id).await.unwrap_err().to_string().contains("frozen"));
    drop(driver);
    let driver = QemuDriver::new(options);
    let found = driver.adopt().await;
    assert_eq!((found.len(), found[0].state), (1, RunState::Paused));
    let mut events = driver.events();
    driver.kill(id).await.unwrap();
    assert_eq!(h.ticks(id), before, "it ran once more before it died");
    assert_eq!(h.traces(0, id), Vec::<String>::new());
    assert!(!group.exists());
    let told =
        async { while !matches!(events.recv().await.unwrap(), GuestEvent::Gone { clean: false, .. }) {} };
    tokio::time::timeout(Duration::from_secs(1), told).await.unwrap();
}

#[tokio::test]
async fn a_frozen_group_dies_without_a_thaw() {
    let h = Machines::new().await;
    let options = h.options(0);
    if options.cgroup_root.is_none() {
        return skip("no cgroup can be made here");
    }
    frozen(&h, options.clone()).await;
    left_frozen(&h, options).await;
}

#[tokio::test]
async fn a_frozen_group_of_the_old_kind_dies_before_it_is_thawed() {
    let h = Machines::new().await;
    let tag = h.folder.path().file_name().unwrap().to_str().unwrap().to_owned();
    let root = Path::new("/sys/fs/cgroup/freezer/stead").join(format!("{tag}-old"));
    if std::fs::create_dir_all(&root).is_err() || !root.join("freezer.state").exists() {
        return skip("there is no freezer of cgroups' first version here");
    }
    let options = QemuOptions { cgroup_root: Some(root.clone()), ..h.options(0) };
    frozen(&h, options.clone()).await;
    left_frozen(&h, options).await;
    assert!(!root.exists(), "the last guest's end removes the group above");
}

#[tokio::test]
async fn a_stopped_process_without_a_group_reads_as_paused() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(QemuOptions { cgroup_root: None, ..h.options(0) });
    let id = vmid(100);
    assert_eq!(driver.prepare(id, Epoch(1)).await.unwrap().cgroup, None);
    start(&h, &driver, h.launch(id, Epoch(1))).await;
    let pid = driver.state(id).await.unwrap().pid;
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    while driver.state(id).await.unwrap().state != RunState::Paused {
        tokio::task::yield_now().await;
    }
    let before = h.ticks(id);
    driver.stop(id).await.expect("it is killed at once");
    assert_eq!(h.ticks(id), before);
}

#[tokio::test]
async fn a_disk_is_opened_once_unless_its_guest_has_moved_on() {
    let h = Machines::new().await;
    let (a, b) = (QemuDriver::new(h.options(0)), QemuDriver::new(h.options(1)));
    let id = vmid(100);
    start(&h, &a, h.launch(id, Epoch(1))).await;
    // The same ownership, or another guest with the same disk: the image's lock holds.
    let mut other = h.launch(id, Epoch(5));
    other.vmid = vmid(101);
    for launch in [h.launch(id, Epoch(1)), h.launch(id, Epoch(2)), other] {
        b.prepare(launch.vmid, launch.epoch).await.unwrap();
        match b.launch(launch).await {
            Err(GuestError::Launch { why, .. }) => assert!(why.contains("lock"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(processes(&h.options(1).run_dir), Vec::<u32>::new());
    }
    // Recovered: what still holds the lock is an old copy, frozen elsewhere.
    a.pause(id).await.unwrap();
    b.prepare(id, Epoch(2)).await.unwrap();
    b.launch(Launch { recovered: true, ..h.launch(id, Epoch(2)) }).await.unwrap();
    b.resume(id).await.unwrap();
    ticking(&h, id).await;
}

#[tokio::test]
async fn what_an_unfinished_launch_left_is_ended() {
    let h = Machines::new().await;
    let id = vmid(100);
    let driver = QemuDriver::new(h.options(0));
    driver.prepare(id, Epoch(1)).await.unwrap();
    driver.launch(h.launch(id, Epoch(1))).await.unwrap();
    drop(driver);
    // As if the daemon had died before it noted the process.
    let meta = h.options(0).run_dir.join("100/meta.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&meta).unwrap()).unwrap();
    record["process"] = serde_json::Value::Null;
    std::fs::write(&meta, record.to_string()).unwrap();
    let driver = QemuDriver::new(h.options(0));
    assert_eq!(driver.adopt().await, []);
    assert_eq!(h.traces(0, id), Vec::<String>::new());
}

#[tokio::test]
async fn a_launch_that_nobody_waits_for_comes_to_its_end() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let id = vmid(100);
    driver.prepare(id, Epoch(1)).await.unwrap();
    let limit = Duration::from_millis(5);
    assert!(tokio::time::timeout(limit, driver.launch(h.launch(id, Epoch(1)))).await.is_err());
    while driver.state(id).await.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(driver.state(id).await.unwrap().state, RunState::Prelaunch);
    driver.kill(id).await.unwrap();
}

/// QEMU takes every kind of device that the configuration can name.
#[tokio::test]
async fn all_devices_are_accepted() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(QemuOptions { bridges: Bridges::Never, ..h.options(0) });
    let more = "agent: 1\nballoon: 32\ncores: 2\nname: all, of them\nnet0: virtio=BC:24:11:00:00:01,bridge=nosuchbr0,link_down=1\n\
        net1: e1000=BC:24:11:00:00:02\nnet7: rtl8139=BC:24:11:00:00:03\nrng0: source=/dev/urandom\nserial1: socket\nide2: none,media=cdrom\n\
        smbios1: uuid=1d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10,serial=S 7,family=F\nostype: win10\n\
        vmgenid: 2d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10\nvcpus: 1\nkeyboard: de-ch\nallow-ksm: 0\n";
    let disks = "scsi0: shared:100/a.raw,ssd=1,serial=A%20B,discard=on,wwn=0x500000123456789a,vendor=ACME,product=F 1,rerror=stop,iops=50,iops_max=60\n\
        scsi8: shared:100/b.qcow2,cache=writeback,detect_zeroes=0,werror=report,mbps_rd=1.5,mbps_wr=2\n\
        sata0: shared:100/c.raw,cache=unsafe,aio=threads,wwn=0x500000123456789b,mbps=10\n\
        ide1: shared:100/d.raw,cache=directsync,aio=io_uring,model=Old%20Disk,iops_wr=9,werror=enospc\n\
        virtio8: shared:100/e.raw,iothread=1,ro=1,cache=writethrough,mbps=1,mbps_max=2,bps_max_length=3\n";
    for (n, (machine, scsihw, vga, cpu, small)) in [
        (
            "pc",
            "virtio-scsi-single",
            "std,clipboard=vnc",
            "x86-64-v3,hv-vendor-id=abc",
            "watchdog: i6300esb,action=pause\naudio0: device=ich9-intel-hda\n",
        ),
        (
            "q35",
            "virtio-scsi-pci",
            "virtio,clipboard=vnc",
            "max,phys-bits=40,guest-phys-bits=39",
            "watchdog: ib700\naudio0: device=intel-hda\nacpi: 0\n",
        ),
        (
            "pc,enable-s3=1,enable-s4=0",
            "lsi",
            "cirrus",
            "kvm64,hidden=1,phys-bits=40",
            "audio0: device=AC97\nstartdate: 2006-06-17T16:01:21\n",
        ),
        (
            "q35,enable-s3=0",
            "megasas",
            "vmware",
            "qemu64,flags=+aes",
            "watchdog: action=shutdown\nlocaltime: 0\n",
        ),
        ("q35", "pvscsi", "serial1", "x86-64-v2", "audio0: device=AC97\nstartdate: 2006-6-7\ntdf: 1\n"),
        ("pc", "lsi53c810", "none", "Nehalem", "acpi: 0\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = vmid(200 + u32::try_from(n).unwrap());
        let mut launch = h.launch(id, Epoch(1));
        launch.config = format!(
            "{more}{disks}{small}boot: order=scsi0;ide2;net0\nmachine: {machine}\nmemory: 64\nscsihw: {scsihw}\nvga: {vga}\ncpu: {cpu}\nserial0: socket\n"
        );
        launch.volumes =
            ["a.raw", "b.qcow2", "c.raw", "d.raw", "e.raw"].map(|name| volume(&h, name)).to_vec();
        driver.check(&launch.config).await.unwrap();
        assert_eq!(driver.warnings(&launch).await, Vec::<String>::new());
        driver.prepare(id, Epoch(1)).await.unwrap();
        let process =
            driver.launch(launch).await.unwrap_or_else(|e| panic!("{machine} {scsihw} {vga} {cpu}: {e}"));
        assert_eq!(process.state, RunState::Prelaunch);
        driver.resume(id).await.unwrap();
        driver.stop(id).await.unwrap();
    }
}

/// A guest that restarts itself ends where its configuration says so, also after a restart by request that it did not obey.
#[tokio::test]
async fn a_restart_is_an_end_where_it_shall_be_one() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let of = |id: Vmid, code: &[u8], more: &str| {
        let mut launch = h.launch(id, Epoch(1));
        let mut disk = vec![0; 1 << 20];
        disk[..code.len()].copy_from_slice(code);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(h.disk(id), disk).unwrap();
        launch.config.push_str(more);
        launch
    };
    // The keyboard's controller resets the machine; or nothing happens.
    let (resets, waits) = ([0xb0, 0xfe, 0xe6, 0x64, 0xf4], [0xeb, 0xfe]);
    let mut events = driver.events();
    let mut gone = async |id: Vmid| {
        let gone = async {
            loop {
                if let GuestEvent::Gone { vmid, clean, .. } = events.recv().await.unwrap() {
                    assert_eq!(vmid, id, "another one has ended");
                    return clean;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap()
    };
    for launch in [of(vmid(100), &resets, ""), of(vmid(101), &resets, "reboot: 0\n")] {
        let id = launch.vmid;
        driver.prepare(id, Epoch(1)).await.unwrap();
        driver.launch(launch).await.unwrap();
        driver.resume(id).await.unwrap();
    }
    assert!(gone(vmid(101)).await, "it was meant to end");
    assert_eq!(driver.state(vmid(100)).await.unwrap().state, RunState::Running);

    let id = vmid(102);
    driver.prepare(id, Epoch(1)).await.unwrap();
    driver.launch(of(id, &waits, "reboot: 0\n")).await.unwrap();
    driver.resume(id).await.unwrap();
    let late = driver.reboot(id, Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(late, GuestError::TimedOut { .. }), "{late}");
    driver.reset(id).await.unwrap();
    assert!(gone(id).await);
    driver.kill(vmid(100)).await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_migration_may_take_so_long() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let id = vmid(100);
    let mut launch = h.launch(id, Epoch(1));
    let config = launch.config.clone();
    launch.config.push_str("migrate_downtime: 0.05\n");
    driver.prepare(id, Epoch(1)).await.unwrap();
    driver.launch(launch).await.unwrap();
    let limit = async || {
        let shown = driver.monitor(id, "info migrate_parameters").await.unwrap();
        shown.lines().find(|l| l.starts_with("downtime-limit")).unwrap().trim().to_owned()
    };
    assert_eq!(limit().await, "downtime-limit: 50 ms");
    driver.tune(id, "migrate_downtime", &(config.clone() + "migrate_downtime: 2\n")).await.unwrap();
    assert_eq!(limit().await, "downtime-limit: 2000 ms");
    driver.tune(id, "migrate_downtime", &config).await.unwrap();
    assert_eq!(limit().await, "downtime-limit: 300 ms");
    driver.kill(id).await.unwrap();
}

/// The UEFI firmware writes its variables to the guest's own disk, whatever the disk's format and the machine's kind.
#[tokio::test]
async fn the_firmware_keeps_its_variables_on_their_disk() {
    use stead_model::vmconfig::EfiVariables;
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let files = [(true, false), (true, true)].map(|(large, enrolled)| EfiVariables { large, enrolled });
    let Ok(plain) = driver.efi_variables(files[0]).await else { return skip("the package ovmf is missing") };
    let enrolled = driver.efi_variables(files[1]).await.unwrap();
    for (n, (machine, format, template, more)) in
        [("pc", "raw", &plain, ""), ("q35", "qcow2", &enrolled, ",pre-enrolled-keys=1")]
            .into_iter()
            .enumerate()
    {
        let id = vmid(200 + u32::try_from(n).unwrap());
        let path = h.folder.path().join(format!("efi.{format}"));
        let made = std::process::Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", format])
            .args([template, &path])
            .status()
            .unwrap();
        assert!(made.success());
        let before = std::fs::read(&path).unwrap();
        let mut launch = h.launch(id, Epoch(1));
        launch.config.insert_str(
            0,
            &format!("bios: ovmf\nefidisk0: shared:100/efi.{format},efitype=4m{more}\nmachine: {machine}\n"),
        );
        launch.config = launch.config.replace("memory: 16", "memory: 128");
        launch.volumes.push(ResolvedVolume {
            volume: format!("shared:100/efi.{format}"),
            path: path.clone(),
            format: format.into(),
        });
        assert_eq!(driver.warnings(&launch).await, Vec::<String>::new(), "{machine}");
        driver.prepare(id, Epoch(1)).await.unwrap();
        driver.launch(launch.clone()).await.unwrap_or_else(|e| panic!("{machine}: {e}"));
        assert!(driver.monitor(id, "info block -n").await.unwrap().contains("drive-efidisk0"));
        driver.resume(id).await.unwrap();
        let written = async {
            // The firmware announces nothing.
            while std::fs::read(&path).unwrap() == before {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), written)
            .await
            .unwrap_or_else(|_| panic!("{machine}: nothing was written"));

        // Its variables go along with it, and no lock of theirs is in the way.
        let process = driver.state(id).await.unwrap();
        let target = QemuDriver::new(h.options(1));
        target.prepare(id, Epoch(2)).await.unwrap();
        let streams = driver.streams(Some(id), target.streams(None, 3).await).await;
        let incoming = Some(Incoming { streams, ..process.as_incoming() });
        target.launch(Launch { epoch: Epoch(2), incoming, ..launch }).await.unwrap();
        let mut events = target.events();
        let sending = Sending { streams, ..Sending::to(target.migration_inlet(id).await.unwrap()) };
        driver.migrate(id, &sending).await.unwrap();
        let sent = async {
            let mut now = driver.migration(id).await.unwrap();
            while !now.phase.is_terminal() {
                now = driver.migration_changed(id, now.phase).await.unwrap();
            }
            now
        };
        let sent = tokio::time::timeout(Duration::from_secs(60), sent).await.unwrap();
        assert_eq!(sent.error, None, "{machine}");
        let told = driver.monitor(id, "info migrate").await.unwrap();
        let beside = told.lines().find_map(|l| {
            l.to_lowercase().split_once("multifd")?.1.split_once(':').map(|p| p.1.trim().to_owned())
        });
        let beside: f64 = beside.and_then(|b| b.split(' ').next()?.parse().ok()).unwrap_or_default();
        assert_eq!(beside > 0.0, streams > 1, "{machine}, by {streams} streams: {told}");
        driver.kill(id).await.unwrap();
        while target.state(id).await.unwrap().state != RunState::Received {
            events.recv().await.unwrap();
        }
        target.resume(id).await.unwrap();
        target.kill(id).await.unwrap();
    }
    let mut launch = h.launch(vmid(210), Epoch(1));
    launch.config.insert_str(0, "bios: ovmf\n");
    assert!(driver.warnings(&launch).await[0].contains("no efidisk0"));
}

/// The kernel keeps each of its threads on the CPUs that were named; those that the host has not are told.
#[tokio::test]
async fn a_guest_runs_on_the_cpus_that_were_named() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let id = vmid(100);
    let of = |cpus: &str| {
        let mut launch = h.launch(id, Epoch(1));
        launch.config.push_str(&format!("affinity: {cpus}\n"));
        launch
    };
    let launch = of("0,1000");
    let warned = driver.warnings(&launch).await;
    assert!(warned.len() == 1 && warned[0].ends_with("and not 1000"), "{warned:?}");
    driver.prepare(id, Epoch(1)).await.unwrap();
    let process = driver.launch(launch).await.unwrap();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid)).unwrap();
    for task in tasks.flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    }
    driver.stop(id).await.unwrap();
    // With none of them it runs all the same.
    let launch = of("1000");
    let warned = driver.warnings(&launch).await;
    assert!(warned.len() == 1 && warned[0].ends_with("runs on any of them"), "{warned:?}");
    driver.prepare(id, Epoch(1)).await.unwrap();
    driver.launch(launch).await.unwrap();
    driver.stop(id).await.unwrap();
}

/// A guest that writes several times a second writes once a second when that is its limit, here and where it moves.
#[tokio::test]
async fn a_limit_holds_a_guest_back() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    for (id, limit) in [(vmid(100), ""), (vmid(101), ",iops_wr=1")] {
        let mut launch = h.launch(id, Epoch(1));
        launch.config = launch.config.replace("disk-0.raw", &format!("disk-0.raw{limit}"));
        driver.prepare(id, Epoch(1)).await.unwrap();
        driver.launch(launch).await.unwrap();
        driver.resume(id).await.unwrap();
    }
    let writes = async |id: Vmid, n: u64| {
        while h.ticks(id) < n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::join!(writes(vmid(100), 2), writes(vmid(101), 2));
    let begun = std::time::Instant::now();
    let held_back = h.ticks(vmid(101));
    writes(vmid(101), held_back + 3).await;
    assert!(begun.elapsed() > Duration::from_secs(2), "three writes took {:?}", begun.elapsed());
    assert!(h.ticks(vmid(100)) > 6, "the other one was held back, too");
    driver.stop(vmid(100)).await.unwrap();

    // No state that is sent says so: the target is told.
    let there = QemuDriver::new(h.options(1));
    let process = driver.state(vmid(101)).await.unwrap();
    let mut launch = h.launch(vmid(101), Epoch(2));
    launch.config = launch.config.replace("disk-0.raw", "disk-0.raw,iops_wr=1");
    launch.incoming = Some(process.as_incoming());
    there.prepare(vmid(101), Epoch(2)).await.unwrap();
    there.launch(launch).await.unwrap();
    let inlet = there.migration_inlet(vmid(101)).await.unwrap();
    driver.migrate(vmid(101), &Sending::to(inlet)).await.unwrap();
    while there.state(vmid(101)).await.unwrap().state != RunState::Received {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    driver.kill(vmid(101)).await.unwrap();
    there.resume(vmid(101)).await.unwrap();
    writes(vmid(101), h.ticks(vmid(101)) + 1).await;
    let begun = std::time::Instant::now();
    writes(vmid(101), h.ticks(vmid(101)) + 3).await;
    assert!(
        begun.elapsed() > Duration::from_secs(2),
        "where it moved three writes took {:?}",
        begun.elapsed()
    );
    there.stop(vmid(101)).await.unwrap();
}

#[tokio::test]
async fn a_cpu_that_the_program_does_not_know_is_refused_before_a_start() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let said = driver.check("cpu: nix\n").await.unwrap_err().to_string();
    assert!(said.starts_with("cpu: QEMU of this node has no CPU model 'nix'"), "{said}");
    driver.check("cpu: Haswell-noTSX\n").await.unwrap();
}

fn volume(h: &Machines, name: &str) -> ResolvedVolume {
    let path = h.folder.path().join(name);
    let format = name.rsplit('.').next().unwrap();
    if !path.exists() {
        let made = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", format, path.to_str().unwrap(), "4M"])
            .status()
            .unwrap();
        assert!(made.success());
    }
    ResolvedVolume { volume: format!("shared:100/{name}"), path, format: format.into() }
}

#[tokio::test]
async fn a_port_of_a_user_mode_network_is_forwarded() {
    let h = Machines::new().await;
    let forward = Forward { guest_port: 80, host_ip: "127.0.0.1".parse().unwrap(), host_port_base: 23_000 };
    let options = QemuOptions { forward: Some(forward), bridges: Bridges::Never, ..h.options(0) };
    let driver = QemuDriver::new(options);
    let id = vmid(100);
    let mut launch = h.launch(id, Epoch(1));
    launch.config.push_str("net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n");
    let shown = driver.describe(&launch).await.unwrap().join(" ");
    assert!(shown.contains("hostfwd=tcp:127.0.0.1:23100-:80"), "{shown}");
    driver.prepare(id, Epoch(1)).await.unwrap();
    driver.launch(launch).await.unwrap();
    tokio::net::TcpStream::connect(("127.0.0.1", 23_100)).await.expect("QEMU listens");
    driver.kill(id).await.unwrap();
    let huge = forward.port(vmid(999_999));
    assert_eq!(huge, None);
}

#[tokio::test]
async fn a_bridge_that_must_be_there_is_missed_by_name() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(QemuOptions { bridges: Bridges::Required, ..h.options(0) });
    let mut launch = h.launch(vmid(100), Epoch(1));
    launch.config.push_str("net3: virtio=BC:24:11:00:00:01,bridge=nosuchbr0\n");
    driver.prepare(launch.vmid, Epoch(1)).await.unwrap();
    let answer = driver.launch(launch).await.unwrap_err().to_string();
    assert!(answer.contains("net3") && answer.contains("nosuchbr0"), "{answer}");
}

#[tokio::test]
async fn a_guest_does_not_change_its_accelerator_on_the_way() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(QemuOptions { accel: Some(Accel::Tcg), ..h.options(0) });
    let mut launch = h.launch(vmid(100), Epoch(1));
    launch.incoming = Some(Incoming::stream("pc-i440fx-7.2", "kvm"));
    driver.prepare(launch.vmid, Epoch(1)).await.unwrap();
    let answer = driver.launch(launch).await.unwrap_err().to_string();
    assert!(answer.contains("KVM"), "{answer}");
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(QemuOptions { binary: "/no/such/qemu".into(), ..h.options(0) });
    driver.prepare(vmid(100), Epoch(1)).await.unwrap();
    let answer = driver.launch(h.launch(vmid(100), Epoch(1))).await.unwrap_err().to_string();
    assert!(answer.contains("/no/such/qemu") && answer.contains("installed"), "{answer}");
}

#[tokio::test]
async fn twenty_guests_on_one_node() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let ids: Vec<Vmid> = (300..320).map(vmid).collect();
    for id in &ids {
        let path = h.disk(*id);
        std::fs::write(&path, sector::disk()).unwrap();
        let mut launch = h.launch(vmid(100), Epoch(1));
        (launch.vmid, launch.config, launch.volumes[0].path) = (*id, CONFIG.to_owned(), path);
        driver.prepare(*id, Epoch(1)).await.unwrap();
        driver.launch(launch).await.unwrap();
        driver.resume(*id).await.unwrap();
    }
    for id in &ids {
        ticking(&h, *id).await;
    }
    assert_eq!(driver.list().await.iter().filter(|p| p.state == RunState::Running).count(), ids.len());
    processes(&h.options(0).run_dir).into_iter().for_each(kill);
    let ended = async {
        while !driver.list().await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap();
}

#[tokio::test]
async fn the_programs_own_words_are_told() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let id = vmid(100);
    for (more, word) in
        [("args: -device no-such-device\n", "no-such-device"), ("args: -nonsense\n", "nonsense")]
    {
        let mut launch = h.launch(id, Epoch(1));
        launch.config.push_str(more);
        driver.prepare(id, Epoch(1)).await.unwrap();
        match driver.launch(launch).await {
            Err(GuestError::Launch { why, .. }) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(h.traces(0, id), Vec::<String>::new());
    }
}

/// How much longer a launch takes than the bare program: printed, with a generous bound.
#[tokio::test]
async fn a_launch_costs_little_more_than_its_program() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let id = vmid(100);
    let mut best = Duration::MAX;
    for _ in 0..4 {
        driver.prepare(id, Epoch(1)).await.unwrap();
        let begun = std::time::Instant::now();
        driver.launch(h.launch(id, Epoch(1))).await.unwrap();
        best = best.min(begun.elapsed());
        driver.kill(id).await.unwrap();
    }
    println!("launch, the program's start included: {best:?}");
    assert!(best < Duration::from_secs(2), "{best:?}");
}

#[tokio::test]
async fn a_tap_joins_its_bridge_and_goes_with_its_guest() {
    if !in_own_network("a_tap_joins_its_bridge_and_goes_with_its_guest") {
        return;
    }
    ip("link add vmbr7 type bridge");
    ip("link set vmbr7 up");
    let h = Machines::new().await;
    let driver = QemuDriver::new(QemuOptions { bridges: Bridges::Required, ..h.options(0) });
    let id = vmid(100);
    let mut launch = h.launch(id, Epoch(1));
    launch.config.push_str(
        "net0: virtio=BC:24:11:00:00:01,bridge=vmbr7\nnet2: e1000=BC:24:11:00:00:02,bridge=vmbr7\n",
    );
    let mut tagged = launch.clone();
    tagged.config = tagged.config.replace("bridge=vmbr7\nnet2", "bridge=vmbr7,tag=5\nnet2");
    driver.prepare(id, Epoch(1)).await.unwrap();
    let refused = driver.launch(tagged).await.unwrap_err().to_string();
    assert!(refused.contains("VLAN"), "it must not land in the wrong network: {refused}");
    driver.launch(launch).await.unwrap();
    let members = ip("-o link show master vmbr7 up");
    assert!(members.contains("tap100i0:") && members.contains("tap100i2:"), "{members}");
    driver.resume(id).await.unwrap();
    ticking(&h, id).await;
    // One that comes later, and goes over to another bridge.
    let config = format!("net5: virtio=BC:24:11:00:00:05,bridge=vmbr7\n{}", h.launch(id, Epoch(1)).config);
    driver.plug(id, "net5", &config, None).await.unwrap();
    assert!(ip("-o link show master vmbr7 up").contains("tap100i5:"));
    ip("link add vmbr8 type bridge");
    driver.tune(id, "net5", &config.replace("vmbr7", "vmbr8")).await.unwrap();
    assert!(ip("-o link show master vmbr8 up").contains("tap100i5:"));
    let nowhere = config.replace("net5", "net6").replace("vmbr7", "vmbr9");
    assert!(driver.plug(id, "net6", &nowhere, None).await.unwrap_err().to_string().contains("vmbr9"));
    driver.stop(id).await.unwrap();
    assert_eq!(ip("-o link show master vmbr7") + &ip("-o link show master vmbr8"), "");
}
