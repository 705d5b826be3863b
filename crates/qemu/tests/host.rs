//! What the host does for QEMU guests: their share of its CPUs, their taps, the pages of their memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
#[path = "common/host.rs"]
mod host;

use common::Machines;
use host::{in_own_network, ip, skip, told_by};
use std::path::PathBuf;
use std::time::Duration;
use stead_driver::guest::{GuestDriver, Launch, RunState};
use stead_driver::suite::guest::GuestHarness;
use stead_model::{Epoch, Vmid};
use stead_qemu::{Bridges, CpuRoot, QemuDriver, QemuOptions};

/// A guest that never rests.
fn spinning(h: &Machines, id: Vmid, more: &str) -> Launch {
    let mut launch = h.launch(id, Epoch(1));
    let mut disk = vec![0; 1 << 20];
    // It jumps to where it is.
    disk[..2].copy_from_slice(&[0xeb, 0xfe]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(h.disk(id), disk).unwrap();
    launch.config.push_str(more);
    launch
}

/// The seconds of CPU that a process takes in one.
async fn busy(pid: u32) -> f64 {
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
        // In clock ticks, of which the kernel shows a hundred a second.
        (fields[12].parse::<f64>().unwrap() + fields[13].parse::<f64>().unwrap()) / 100.0
    };
    let (begun, before) = (std::time::Instant::now(), used());
    tokio::time::sleep(Duration::from_secs(1)).await;
    (used() - before) / begun.elapsed().as_secs_f64()
}

/// What the kernel was told of a guest: its limit and its weight.
fn told(root: &CpuRoot, id: Vmid) -> (String, String) {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap().trim().to_owned();
    match root {
        CpuRoot::V1(root) => {
            let group = root.join(id.to_string());
            (read(group.join("cpu.cfs_quota_us")), read(group.join("cpu.shares")))
        }
        CpuRoot::V2(root) => {
            let group = root.join(id.to_string());
            let limit = read(group.join("cpu.max"));
            (limit.split(' ').next().unwrap().replace("max", "-1"), read(group.join("cpu.weight")))
        }
    }
}

/// At its start, while it runs, and where it moves.
#[tokio::test]
async fn a_guest_gets_its_share_of_the_cpus() {
    let h = Machines::new().await;
    let [here, there] = [0, 1].map(|node| h.options(node));
    let (Some(root), Some(other)) = (here.cpu_root.clone(), there.cpu_root.clone()) else {
        return skip("there is no controller of CPUs here");
    };
    let (driver, id) = (QemuDriver::new(here), Vmid::new(100).unwrap());
    let launch = spinning(&h, id, "cpulimit: 0.2\ncpuunits: 300\n");
    assert_eq!(driver.warnings(&launch).await, Vec::<String>::new());
    driver.prepare(id, Epoch(1)).await.unwrap();
    let process = driver.launch(launch.clone()).await.unwrap();
    assert_eq!(told(&root, id), ("20000".into(), "300".into()));
    driver.resume(id).await.unwrap();
    let bounded = busy(process.pid).await;
    assert!((0.02..0.35).contains(&bounded), "a fifth of a CPU was allowed, {bounded} were taken");

    let without = launch.config.replace("cpulimit: 0.2\n", "");
    driver.tune(id, "cpulimit", &without).await.unwrap();
    assert_eq!(told(&root, id), ("-1".into(), "300".into()));
    let free = busy(process.pid).await;
    assert!(free > 1.5 * bounded, "without a limit it takes {free}");

    let target = QemuDriver::new(there);
    let incoming = Some(process.as_incoming());
    target.prepare(id, Epoch(2)).await.unwrap();
    target.launch(Launch { epoch: Epoch(2), incoming, ..launch }).await.unwrap();
    assert_eq!(told(&other, id), ("20000".into(), "300".into()));
    target.kill(id).await.unwrap();
    driver.stop(id).await.unwrap();
    for node in [0, 1] {
        assert_eq!(h.traces(node, id), Vec::<String>::new());
    }
}

/// One that had asked for nothing is given a limit as it runs, with all its threads; a later daemon takes the group away.
#[tokio::test]
async fn a_running_guest_is_bounded() {
    let h = Machines::new().await;
    let Some(root) = h.options(0).cpu_root else {
        return skip("there is no controller of CPUs here");
    };
    let (driver, id) = (QemuDriver::new(h.options(0)), Vmid::new(100).unwrap());
    let launch = spinning(&h, id, "");
    driver.prepare(id, Epoch(1)).await.unwrap();
    let process = driver.launch(launch.clone()).await.unwrap();
    driver.resume(id).await.unwrap();
    driver.tune(id, "cpulimit", &(launch.config + "cpulimit: 0.2\n")).await.unwrap();
    let default = if matches!(root, CpuRoot::V1(_)) { "1024" } else { "100" };
    assert_eq!(told(&root, id), ("20000".into(), default.into()));
    let bounded = busy(process.pid).await;
    assert!((0.02..0.35).contains(&bounded), "a fifth of a CPU was allowed, {bounded} were taken");
    drop(driver);
    let driver = QemuDriver::new(h.options(0));
    assert_eq!(driver.adopt().await[0].state, RunState::Running);
    driver.kill(id).await.unwrap();
    assert_eq!(h.traces(0, id), Vec::<String>::new());
}

/// What a daemon has left that died before it had noted anything.
#[tokio::test]
async fn a_group_that_was_left_is_taken_away() {
    let h = Machines::new().await;
    let Some(CpuRoot::V1(root)) = h.options(0).cpu_root else {
        return skip("CPUs have no tree of groups of their own here");
    };
    let (driver, id) = (QemuDriver::new(h.options(0)), Vmid::new(100).unwrap());
    std::fs::create_dir_all(root.join("100")).unwrap();
    std::fs::write(root.join("100/cpu.cfs_quota_us"), "5000").unwrap();
    driver.prepare(id, Epoch(1)).await.unwrap();
    assert!(!root.join("100").exists());
    let mut launch = h.broken(id);
    launch.config.push_str("cpulimit: 1\n");
    driver.launch(launch).await.unwrap_err();
    assert_eq!(h.traces(0, id), Vec::<String>::new(), "nor does a start that fails leave one");
}

#[tokio::test]
async fn a_node_that_cannot_bound_guests_says_so_and_runs_them() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(QemuOptions { cpu_root: None, ..h.options(0) });
    let id = Vmid::new(100).unwrap();
    let launch = spinning(&h, id, "cpuunits: 300\n");
    let warned = driver.warnings(&launch).await;
    assert!(warned.len() == 1 && warned[0].starts_with("cpulimit, cpuunits: this node has no"), "{warned:?}");
    driver.prepare(id, Epoch(1)).await.unwrap();
    driver.launch(launch.clone()).await.unwrap();
    let refused = driver.tune(id, "cpuunits", &launch.config).await.unwrap_err().to_string();
    assert!(refused.starts_with("cpuunits: this node has no"), "{refused}");
    driver.kill(id).await.unwrap();
}

fn on_bridge(h: &Machines, id: Vmid, net: &str) -> Launch {
    spinning(h, id, &format!("net0: virtio=BC:24:11:00:00:01,bridge=vmbr7{net}\n"))
}

/// QEMU opens each queue of the tap, and takes the interrupts and the size that the guest is told.
#[tokio::test]
async fn a_tap_has_its_queues_and_the_size_of_its_bridge() {
    if !in_own_network("a_tap_has_its_queues_and_the_size_of_its_bridge") {
        return;
    }
    ip("link add vmbr7 mtu 4000 type bridge");
    ip("link set vmbr7 up");
    let h = Machines::new().await;
    let driver = QemuDriver::new(QemuOptions { bridges: Bridges::Required, ..h.options(0) });
    let id = Vmid::new(100).unwrap();
    driver.prepare(id, Epoch(1)).await.unwrap();
    let refused = driver.launch(on_bridge(&h, id, ",mtu=4001")).await.unwrap_err().to_string();
    assert!(refused.contains("net0: mtu=4001: bridge 'vmbr7' takes packets of at most 4000"), "{refused}");
    driver.prepare(id, Epoch(1)).await.unwrap();
    driver.launch(on_bridge(&h, id, ",queues=3,mtu=1")).await.unwrap();
    let shown = ip("-d link show dev tap100i0");
    assert!(shown.contains("mtu 4000") && shown.contains("multi_queue"), "{shown}");
    assert!(shown.contains("numqueues 3") || shown.contains("numtxqueues"), "{shown}");
    let tree = driver.monitor(id, "info qtree").await.unwrap();
    for word in ["vectors = 8", "mq = true", "host_mtu = 4000"] {
        assert!(tree.contains(word), "{word}: {tree}");
    }
    driver.kill(id).await.unwrap();
}

/// Where the kernel can, what passes a tap is bounded; where it can't, nothing is half bounded, and the option is named.
#[tokio::test]
async fn what_passes_a_tap_is_bounded() {
    if !in_own_network("what_passes_a_tap_is_bounded") {
        return;
    }
    ip("link add vmbr7 type bridge");
    ip("link set vmbr7 up");
    ip("tuntap add dev probe0 mode tap");
    told_by("tc", "qdisc add dev probe0 handle ffff: ingress").unwrap();
    let can = told_by(
        "tc",
        "filter add dev probe0 parent ffff: protocol all prio 1 matchall action police rate 8mbit burst 131072 drop",
    );
    let h = Machines::new().await;
    let driver = QemuDriver::new(QemuOptions { bridges: Bridges::Required, ..h.options(0) });
    let id = Vmid::new(100).unwrap();
    let limits = || told_by("tc", "qdisc show dev tap100i0").unwrap();
    let limited = on_bridge(&h, id, ",rate=0.5");
    driver.prepare(id, Epoch(1)).await.unwrap();
    if can.is_err() {
        eprintln!("SKIP what the guest sends: this kernel can't bound it");
        // That it runs matters more than how fast its network is.
        driver.launch(limited.clone()).await.unwrap();
        assert!(!limits().contains("tbf") && !limits().contains("ingress"), "{}", limits());
        let refused = driver.tune(id, "net0", &limited.config).await.unwrap_err().to_string();
        assert!(refused.starts_with("net0: rate: this node can't limit"), "{refused}");
        assert!(!limits().contains("tbf") && !limits().contains("ingress"), "{}", limits());
    } else {
        driver.launch(limited.clone()).await.unwrap();
        assert!(limits().contains("tbf") && limits().contains("rate 4194"), "{}", limits());
        let filter = || told_by("tc", "filter show dev tap100i0 parent ffff:").unwrap();
        assert!(filter().contains("police") && filter().contains("rate 4194"), "{}", filter());
        driver.tune(id, "net0", &limited.config.replace("rate=0.5", "rate=1")).await.unwrap();
        assert!(limits().contains("rate 8388") && filter().contains("rate 8388"), "{}", limits());
        driver.tune(id, "net0", &limited.config.replace(",rate=0.5", "")).await.unwrap();
        assert!(!limits().contains("tbf") && !limits().contains("ingress"), "{}", limits());
    }
    driver.kill(id).await.unwrap();
}

/// A guest sees its nodes, on pages of the host that are made for it and go back.
#[tokio::test]
async fn memory_is_cut_into_nodes_and_made_of_huge_pages() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let id = Vmid::new(100).unwrap();
    let of = |more: &str| {
        let mut launch = spinning(&h, id, "sockets: 2\nnuma: 1\n");
        launch.config.push_str(more);
        launch
    };
    let start = async |launch: Launch| {
        driver.prepare(id, Epoch(1)).await.unwrap();
        driver.launch(launch).await
    };
    start(of("")).await.unwrap();
    let seen = driver.monitor(id, "info numa").await.unwrap();
    assert!(seen.contains("2 nodes") && seen.contains("node 1 size: 8 MB"), "{seen}");
    driver.kill(id).await.unwrap();
    let refused = start(of("numa0: cpus=0-1,memory=16,hostnodes=77,policy=bind\n")).await.unwrap_err();
    assert_eq!(refused.to_string(), "numa0: hostnodes: this host has no NUMA node 77");

    let pool = std::path::Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB");
    let read =
        |file: &str| -> u64 { std::fs::read_to_string(pool.join(file)).unwrap().trim().parse().unwrap() };
    let nr = pool.join("nr_hugepages");
    if !nr.exists() || std::fs::write(&nr, read("nr_hugepages").to_string()).is_err() {
        let refused = start(of("hugepages: 2\n")).await.unwrap_err().to_string();
        assert!(refused.starts_with("hugepages: "), "{refused}");
        return skip("no huge pages can be made here");
    }
    let (before, spare) = (read("nr_hugepages"), read("free_hugepages"));
    let made = 8_u64.saturating_sub(spare);
    let process = start(of("hugepages: 2\n")).await.unwrap();
    assert_eq!(read("nr_hugepages"), before + made);
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", process.pid)).unwrap();
    let huge = maps.lines().filter(|l| l.starts_with("KernelPageSize:") && l.ends_with(" 2048 kB"));
    assert_eq!(huge.count(), 2, "each node has a piece of its own");
    driver.kill(id).await.unwrap();
    assert_eq!(read("nr_hugepages"), before, "what was made goes back");
    // A start that fails leaves none, and what is kept is found by the next one.
    let mut broken = of("hugepages: 2\n");
    broken.volumes[0].path = "/nowhere/disk.raw".into();
    start(broken).await.unwrap_err();
    assert_eq!(read("nr_hugepages"), before);
    start(of("hugepages: 2\nkeephugepages: 1\n")).await.unwrap();
    driver.kill(id).await.unwrap();
    let kept = read("nr_hugepages");
    std::fs::write(&nr, before.to_string()).unwrap();
    assert_eq!(kept, before + made);
}

/// What the program tells of CPUs is what it then takes: a guest with every feature that it names starts.
#[tokio::test]
async fn the_cpu_that_a_node_can_run_runs() {
    let h = Machines::new().await;
    let driver = QemuDriver::new(h.options(0));
    let can = driver.capabilities().await.unwrap();
    assert!(can.machines.contains("pc") || can.machines.iter().any(|m| m.starts_with("pc-i440fx")));
    assert!(can.features.len() > 20 && can.features.is_subset(&can.flags), "{:?}", can.features);
    assert!(can.models["max"].is_empty() && can.models.contains_key("EPYC"));
    let unknown: Vec<_> =
        stead_model::cpu::FLAGS.iter().filter(|(flag, _)| !can.flags.contains(*flag)).collect();
    assert!(unknown.is_empty(), "QEMU knows no {unknown:?}");
    let facts = stead_model::cpu::CpuFacts {
        accel: can.accel.clone(),
        features: can.features.clone(),
        ..stead_model::cpu::CpuFacts::default()
    };
    let nodes = [("n1".parse().unwrap(), facts)].into();
    let common = stead_model::cpu::common(&nodes, &can.accel).unwrap().text();
    let id = Vmid::new(100).unwrap();
    let mut launch = h.launch(id, Epoch(1));
    launch.config.push_str(&format!("cpu: {common}\n"));
    driver.check(&launch.config).await.unwrap();
    assert_eq!(driver.obstacles(&launch).await, [""; 0]);
    driver.prepare(id, Epoch(1)).await.unwrap();
    let process = driver.launch(launch.clone()).await.unwrap_or_else(|e| panic!("{common}: {e}"));
    let runs_with = process.model.clone().unwrap();
    assert!(runs_with.starts_with("qemu64,svm=off,"), "{runs_with}");
    driver.kill(id).await.unwrap();
    // Where it moves to, the configuration says nothing of it any more.
    launch.config = launch.config.replace(&common, "EPYC");
    launch.incoming = Some(process.as_incoming());
    assert_eq!(driver.obstacles(&launch).await, [""; 0]);
    driver.prepare(id, Epoch(1)).await.unwrap();
    let copy = driver.launch(launch.clone()).await.unwrap();
    assert_eq!(copy.model, Some(runs_with));
    driver.kill(id).await.unwrap();
    let lacking = can.flags.iter().find(|flag| flag.starts_with("avx512") && !can.features.contains(*flag));
    if let (Some(flag), Some(incoming)) = (lacking, launch.incoming.as_mut()) {
        incoming.cpu = Some(format!("qemu64,{flag}=on,enforce"));
        let why = driver.obstacles(&launch).await.join("; ");
        assert_eq!(why, format!("cpu: the CPU of this node lacks {flag}, which the VM runs with"));
    }
    launch.config = launch.config.replace("cpu: EPYC", "cpu: max,flags=+no-such-feature");
    let why = driver.check(&launch.config).await.unwrap_err().to_string();
    assert!(why.contains("knows no feature 'no-such-feature'"), "{why}");
}
