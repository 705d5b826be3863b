use super::*;
use stead_model::vmconfig::VmConfig;

fn machines() -> Machines {
    let names = ["pc-i440fx-10.0", "pc-i440fx-9.0", "pc-q35-10.0", "pc-q35-9.0"];
    Machines {
        names: names.into_iter().map(str::to_owned).collect(),
        pc: "pc-i440fx-10.0".into(),
        q35: "pc-q35-10.0".into(),
        cpus: ["EPYC", "EPYC-v1", "qemu64"].into_iter().map(|n| (n.to_owned(), vec![])).collect(),
        flags: ["aes", "avx2", "pcid", "vmx"].into_iter().map(str::to_owned).collect(),
        features: ["aes", "pcid"].into_iter().map(str::to_owned).collect(),
        version: "10.0.2".into(),
        numbers: (10, 0, 2),
    }
}

struct Case {
    text: &'static str,
    accel: Accel,
    incoming: Option<Incoming>,
    nets: Vec<NetPlan>,
    firmware: Option<Firmware>,
    passed: Vec<Passed>,
    page_mib: Option<u64>,
}

fn case(text: &'static str) -> Case {
    Case {
        text,
        accel: Accel::Kvm,
        incoming: None,
        nets: vec![],
        firmware: None,
        passed: vec![],
        page_mib: None,
    }
}

fn line(case: &Case) -> Result<CommandLine, GuestError> {
    let config = VmConfig::parse(case.text).unwrap();
    let vmid = Vmid::new(100).unwrap();
    let volumes: Vec<ResolvedVolume> = config
        .current
        .volumes()
        .into_iter()
        .filter(|(_, v)| !v.name.contains("missing"))
        .map(|(_, v)| ResolvedVolume {
            volume: v.to_string(),
            path: format!("/srv/{}/{}", v.storage, v.name).into(),
            format: if v.name.ends_with("qcow2") { "qcow2" } else { "raw" }.into(),
        })
        .collect();
    build(&Context {
        vmid,
        settings: &config.current,
        volumes: &volumes,
        incoming: case.incoming.as_ref(),
        accel: case.accel,
        machines: &machines(),
        dir: &RunDir::new(Path::new("/run/stead"), vmid),
        nets: &case.nets,
        passed: &case.passed,
        firmware: case.firmware.as_ref(),
        monitors: [Endpoint::Path; 2],
        locks: true,
        page_mib: case.page_mib,
    })
}

/// The line as people read it: an option and its value.
fn shown(case: &Case) -> String {
    let mut out = String::new();
    for word in line(case).unwrap().argv {
        if word.starts_with('-') && !out.is_empty() {
            out.push('\n');
        } else if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&word);
    }
    out
}

#[test]
fn the_smallest_guest() {
    insta::assert_snapshot!(shown(&case("memory: 16\n")));
}

#[test]
fn a_usual_linux_guest() {
    let mut c = case(
        "agent: 1\nballoon: 1024\nboot: order=scsi0;ide2;net0\ncores: 2\ncpu: x86-64-v2-AES\nide2: local:iso/debian.iso,media=cdrom,size=600M\n\
         memory: 2048\nname: web\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nostype: l26\nrng0: source=/dev/urandom\n\
         scsi0: shared:100/vm-100-disk-0.qcow2,discard=on,iothread=1,size=32G,ssd=1\nscsihw: virtio-scsi-single\n\
         serial0: socket\nsmbios1: uuid=1d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10\nsockets: 2\n",
    );
    c.nets = vec![NetPlan::Tap {
        ifname: "tap100i0".into(),
        bridge: "vmbr0".into(),
        vhost: true,
        mtu: 1500,
        rate: None,
    }];
    insta::assert_snapshot!(shown(&c));
}

#[test]
fn a_windows_guest_on_q35_with_uefi() {
    let mut c = case(
        "bios: ovmf\ncpu: host,flags=+aes;-pcid\nide0: none,media=cdrom\nkvm: 1\nmachine: pc-q35-9.0+pve1\nmemory: 4096\n\
         net0: e1000e=BC:24:11:00:00:01\nostype: win11\nsata0: local:100/vm-100-disk-0.raw,cache=writethrough\n\
         vga: virtio,memory=64\n",
    );
    c.nets = vec![NetPlan::User { forward: Some("tcp:127.0.0.11:8100-:80".into()) }];
    c.firmware = Some(Firmware {
        code: "/fw/CODE.fd".into(),
        secure: Some("/fw/CODE.secboot.fd".into()),
        vars: "/run/stead/100/vars.fd".into(),
        format: "raw".into(),
        node: "pflash1".into(),
    });
    insta::assert_snapshot!(shown(&c));
}

#[test]
fn every_bus_and_more_devices_than_the_main_bus_holds() {
    let mut c = case(
        "args: -device 'pvpanic' -set \"a=b c\"\nboot: cdn\nide0: local:100/a.raw\nide1: local:100/b.raw,aio=threads\nide3: none,media=cdrom\n\
         kvm: 0\nmemory: 64\nnet6: virtio=BC:24:11:00:00:06\nsata5: local:100/c.raw,cache=unsafe\nscsi0: local:100/d.raw,ro=1\n\
         scsi15: /dev/sdx,serial=A%20B\nserial1: /dev/ttyS0\nserial0: socket\nvga: serial0\nvirtio15: local:100/e.qcow2,iothread=1,cache=directsync\n\
         virtio0: local:100/f.raw,cache=writeback\n",
    );
    c.nets = vec![NetPlan::User { forward: None }];
    insta::assert_snapshot!(shown(&c));
}

#[test]
fn an_incoming_guest_is_what_its_source_is() {
    let mut c =
        case("machine: q35\nmemory: 64\nscsi0: local:100/a.raw\nscsihw: virtio-scsi-pci\nvga: none\n");
    c.incoming = Some(Incoming::stream("pc-q35-9.0", "tcg"));
    let made = line(&c).unwrap();
    assert_eq!((made.machine.as_str(), made.accel), ("pc-q35-9.0", Accel::Tcg));
    insta::assert_snapshot!(shown(&c));
}

#[test]
fn devices_stay_where_they_are_when_others_come_and_go() {
    let of = |text| line(&case(text)).unwrap().argv;
    let all = of(
        "boot: order=scsi3\nmemory: 64\nscsi0: l0:100/a.raw\nscsi3: l0:100/b.raw\nscsihw: virtio-scsi-pci\nvirtio2: l0:100/c.raw\n",
    );
    let one = of("boot: order=scsi3\nmemory: 64\nscsi3: l0:100/b.raw\nscsihw: virtio-scsi-pci\n");
    let device = |argv: &[String]| argv.iter().find(|w| w.starts_with("scsi-hd,id=scsi3")).cloned().unwrap();
    assert_eq!(device(&all), device(&one));
}

#[test]
fn a_cpu_that_qemu_does_not_know_is_refused() {
    let check = |text: &str| {
        let cpu = stead_model::vmconfig::Cpu::parse("cpu", text).unwrap();
        check_cpu(&cpu, &machines()).map_err(|e| e.to_string())
    };
    for good in ["EPYC", "host", "max", "x86-64-v3"] {
        assert_eq!(check(good), Ok(()));
    }
    let said = check("nix").unwrap_err();
    assert!(said.starts_with("cpu: QEMU of this node has no CPU model 'nix'; there are x86-64-v2"), "{said}");
    assert!(check("epyc").unwrap_err().ends_with("did you mean EPYC, EPYC-v1?"));
    assert_eq!(check("EPYC,flags=+pcid;-avx2"), Ok(()));
    let said = check("EPYC,flags=+pcdi").unwrap_err();
    assert_eq!(said, "cpu: flags: QEMU 10.0.2 of this node knows no feature 'pcdi'");
}

#[test]
fn what_a_node_lacks_of_a_running_cpu_is_named() {
    let mut machines = machines();
    machines.cpus.insert("Haswell".into(), vec!["avx2".into(), "pcid".into()]);
    let lacks = |cpu: &str| cpu_lacks(cpu, &machines);
    assert_eq!(lacks("qemu64,svm=off,aes=on,pcid=on,hv_relaxed,enforce"), None);
    let said = "cpu: the CPU of this node lacks avx2, which the VM runs with";
    assert_eq!(lacks("qemu64,aes=on,avx2=on").as_deref(), Some(said));
    assert_eq!(lacks("Haswell,pcid=off,enforce").as_deref(), Some(said));
    assert!(lacks("Nehalem").unwrap().contains("no CPU model 'Nehalem'"));
    assert_eq!(lacks("EPYC,phys-bits=40,enforce"), None);
}

/// What a guest runs with stays what it is where it moves to, whatever its configuration says by then.
#[test]
fn a_cpu_moves_as_it_is() {
    let mut c = case("cpu: host\ncores: 4\nvcpus: 2");
    let cpu = Some("EPYC,pcid=on,enforce".to_owned());
    c.incoming = Some(Incoming { cpu, ..Incoming::stream("pc-q35-9.0", "tcg") });
    let argv = line(&c).unwrap().argv;
    assert_eq!(cpu_of(&argv), Some("EPYC,pcid=on,enforce"));
    assert!(argv.iter().any(|word| word.starts_with("EPYC-x86_64-cpu,id=cpu1")), "{argv:?}");
    let why = |text: &'static str| line(&case(text)).unwrap_err().to_string();
    assert_eq!(why("cpu: cluster"), "cpu: the driver was not told what 'cluster' is");
    assert_eq!(why("cpu: custom-fast"), "cpu: the driver was not told what 'custom-fast' is");
}

#[test]
fn what_tells_a_guest_who_it_is_and_where_the_pointer_is() {
    let text = "memory: 64\nsmbios1: uuid=1d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10,serial=S 7,base64=0\n\
                vmgenid: 2d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10\ntablet: 0\n";
    let argv = line(&case(text)).unwrap().argv;
    let has = |word: &str| argv.iter().any(|w| w == word);
    assert!(has("type=1,uuid=1d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10,serial=S 7"), "{argv:?}");
    assert!(has("vmgenid,id=vmgenid0,guid=2d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10"), "{argv:?}");
    assert!(!argv.iter().any(|w| w.contains("usb-tablet")), "{argv:?}");
    assert!(!line(&case("memory: 64\nvmgenid: 0\n")).unwrap().argv.iter().any(|w| w.contains("vmgenid")));
}

#[test]
fn small_options_of_the_machine() {
    let c = case(
        "acpi: 0\nallow-ksm: 0\naudio0: device=ich9-intel-hda\ncores: 4\nkeyboard: de\nkvm: 0\nlocaltime: 1\nmemory: 64\n\
         parallel1: /dev/parport0\ntdf: 1\nvcpus: 2\nvga: none\nwatchdog: model=i6300esb,action=poweroff\n",
    );
    insta::assert_snapshot!(shown(&c));
    let words = |text| line(&case(text)).unwrap().argv.join(" ");
    let slept = words("machine: q35,enable-s3=0,enable-s4=1\nmemory: 64\n");
    assert!(slept.contains("-global ICH9-LPC.disable_s3=1 -global ICH9-LPC.disable_s4=0"), "{slept}");
    let hidden = words("cpu: max,hidden=1,phys-bits=host,guest-phys-bits=40\nmemory: 64\n");
    assert!(hidden.contains("-cpu max,kvm=off,host-phys-bits=on,guest-phys-bits=40"), "{hidden}");
    let vendor = words("cpu: max,hv-vendor-id=abc\nmemory: 64\n");
    assert!(vendor.contains("-cpu max,hv-vendor-id=abc "), "{vendor}");
    assert!(words("memory: 64\nreboot: 0\n").contains("-action reboot=shutdown"));
    assert!(words("memory: 64\nstartdate: 2006-06-17T16:01:21\n").contains("base=2006-06-17T16:01:21"));
    assert!(words("memory: 64\nostype: win11\nlocaltime: 0\n").contains("base=utc,driftfix=slew"));
    assert!(words("audio0: device=AC97\nmemory: 64\n").contains("AC97,id=audiodev0,audiodev=audio0"));
    assert!(words("memory: 64\nwatchdog: ib700\n").contains("ib700,id=watchdog0 -action watchdog=reset"));
}

#[test]
fn queues_and_the_size_of_packets() {
    let words = |net: &str| {
        let mut c = case(format!("memory: 64\nnet0: {net}\n").leak());
        let (ifname, bridge) = ("tap100i0".to_owned(), "vmbr0".to_owned());
        c.nets = vec![NetPlan::Tap { ifname, bridge, vhost: true, mtu: 9000, rate: Some(1) }];
        line(&c).unwrap().argv.join(" ")
    };
    let said = words("virtio=BC:24:11:00:00:01,bridge=vmbr0,queues=4,mtu=1400,rate=1");
    assert!(
        said.contains("tap,id=net0,ifname=tap100i0,script=no,downscript=no,queues=4,vhost=on "),
        "{said}"
    );
    assert!(said.contains(",mac=BC:24:11:00:00:01,mq=on,vectors=10,host_mtu=1400,"), "{said}");
    assert!(words("virtio=BC:24:11:00:00:01,bridge=vmbr0,mtu=1").contains(",host_mtu=9000,"), "the bridge's");
    let plain = words("virtio=BC:24:11:00:00:01,bridge=vmbr0,queues=1");
    assert!(!plain.contains("queues") && !plain.contains("mq=") && !plain.contains("host_mtu"), "{plain}");
}

#[test]
fn memory_in_nodes_and_pages() {
    let mut c = case(
        "cores: 4\nmemory: 64\nnuma: 1\nnuma0: cpus=0;2-3,memory=48,hostnodes=0-1;3,policy=bind\nnuma1: cpus=1,memory=16\n",
    );
    let words = |c: &Case| line(c).unwrap().argv.join(" ");
    let said = words(&c);
    assert!(
        said.contains(
            "-m size=64M -object memory-backend-ram,id=ram-node0,size=48M,host-nodes=0-1,host-nodes=3,policy=bind \
             -numa node,nodeid=0,cpus=0,cpus=2-3,memdev=ram-node0 -object memory-backend-ram,id=ram-node1,size=16M \
             -numa node,nodeid=1,cpus=1,memdev=ram-node1 "
        ),
        "{said}"
    );
    c.page_mib = Some(2);
    let said = words(&c);
    let page = "memory-backend-memfd,id=ram-node1,size=16M,hugetlb=on,hugetlbsize=2M,share=on,prealloc=on";
    assert!(said.contains(page), "{said}");
}

#[test]
fn small_options_of_disks() {
    let c = case(
        "ide0: local:100/a.raw,model=Old%20Disk,detect_zeroes=0\nkvm: 0\nmemory: 64\n\
         scsi0: local:100/b.raw,wwn=0x500000123456789a,vendor=ACME,product=Fast 1,queues=4,rerror=stop,werror=enospc\n\
         scsihw: virtio-scsi-single\nvga: none\n",
    );
    insta::assert_snapshot!(shown(&c));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    for (text, incoming, key, word) in [
        ("vga: qxl\n", None, "vga", "SPICE"),
        ("cpu: host\nkvm: 0\n", None, "cpu", "KVM"),
        ("machine: pc-q35-99.0\n", None, "machine", "newest"),
        ("hotplug: memory\nmemory: 2048\n", None, "hotplug", "numa=1"),
        ("bios: ovmf\n", None, "bios", "ovmf"),
        ("scsi0: local:100/missing.raw\n", None, "scsi0", "not found"),
        ("scsi0: local:8\n", None, "scsi0", "never made"),
        ("ide0: local:100/a.raw,cache=writeback,aio=native\n", None, "ide0", "aio"),
        ("memory: 64\n", Some(("pc-i440fx-11.0", "tcg")), "machine", "pc-i440fx-11.0"),
    ] {
        let mut c = case(text);
        c.incoming = incoming.map(|(m, a)| Incoming::stream(m, a));
        match line(&c) {
            Err(GuestError::Config { key: at, why }) => {
                assert_eq!(at, key);
                assert!(why.contains(word), "{why}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let mut c = case("memory: 64\n");
    c.accel = Accel::Tcg;
    c.incoming = Some(Incoming::stream("pc-i440fx-10.0", "kvm"));
    assert!(line(&c).unwrap_err().to_string().contains("cannot move here"));
}

fn passed(key: &str, functions: &[&str]) -> Passed {
    let functions = functions.iter().map(|f| (*f).to_owned()).collect();
    Passed { key: key.into(), functions, mdev: None, romfile: None }
}

/// The devices of a line that begin so.
fn devices(case: &Case, driver: &str) -> Vec<String> {
    let argv = line(case).unwrap().argv;
    argv.into_iter().filter(|word| word.starts_with(driver)).collect()
}

#[test]
fn devices_of_the_host_have_places_of_their_own() {
    let usb = case("usb0: 046d:c52b\nusb2: 1-2.3\nusb5: spice\nboot: order=usb2");
    let expected = [
        "usb-host,id=usb0,bus=xhci.0,port=1,vendorid=1133,productid=50475",
        "usb-host,id=usb2,bus=xhci.0,port=3,bootindex=100,hostbus=1,hostport=2.3",
    ];
    assert_eq!(devices(&usb, "usb-host"), expected);
    let mut gpu =
        case("machine: q35\nhostpci0: 01:00,pcie=1,x-vga=1,rombar=0,vendor-id=0x10de\nhostpci9: 02:00.0");
    gpu.passed =
        vec![passed("hostpci0", &["0000:01:00.0", "0000:01:00.1"]), passed("hostpci9", &["0000:02:00.0"])];
    let expected = [
        "vfio-pci,id=hostpci0.0,host=0000:01:00.0,bus=hostport.0,addr=0x0,multifunction=on,rombar=0,x-vga=on,x-pci-vendor-id=4318",
        "vfio-pci,id=hostpci0.1,host=0000:01:00.1,bus=hostport.0,addr=0x0.0x1",
        "vfio-pci,id=hostpci9,host=0000:02:00.0,bus=pci.4,addr=0xa",
    ];
    assert_eq!(devices(&gpu, "vfio-pci"), expected);
    assert_eq!(devices(&gpu, "VGA"), [""; 0], "the guest's screen is the device's");
    assert_eq!(devices(&gpu, "pcie-root-port,id=hostport").len(), 1);
    let argv = line(&gpu).unwrap().argv;
    assert_eq!(passed_addresses(&argv), ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0"]);
    let memory = case("ivshmem: size=32,name=frames");
    assert_eq!(
        devices(&memory, "ivshmem"),
        ["ivshmem-plain,id=ivshmem,memdev=shmmem-ivshmem,bus=pci.0,addr=0x19"]
    );
    assert_eq!(shared_files(&line(&memory).unwrap().argv), [Path::new("/dev/shm/pve-shm-frames")]);
}

#[test]
fn what_a_machine_has_no_place_for_is_refused() {
    let why = |text: &'static str| {
        let mut case = case(text);
        case.passed = vec![passed("hostpci0", &["0000:01:00.0"])];
        line(&case).unwrap_err().to_string()
    };
    assert_eq!(why("hostpci0: 01:00,pcie=1"), "hostpci0: pcie: PCI Express needs the machine type q35");
    assert!(why("machine: q35\nhostpci0: 01:00,legacy-igd=1").contains("i440fx"));
    assert!(why("hostpci1: 01:00").contains("was not told"));
    assert!(why("usb0: mapping=key").contains("the mapping 'key'"));
}

/// What one device's option adds moves no other device.
#[test]
fn a_device_of_the_host_moves_no_other() {
    let before = line(&case("scsi0: none,media=cdrom\nrng0: source=/dev/urandom")).unwrap().argv;
    let mut with = case(
        "scsi0: none,media=cdrom\nrng0: source=/dev/urandom\nhostpci3: 01:00\nusb1: 1-2\nivshmem: size=4",
    );
    with.passed = vec![passed("hostpci3", &["0000:01:00.0"])];
    let after = line(&with).unwrap().argv;
    let missing: Vec<&String> = before.iter().filter(|word| !after.contains(word)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn sockets_have_an_older_name() {
    let smp = |text: &'static str| {
        let argv = line(&case(text)).unwrap().argv;
        let at = argv.iter().position(|word| word == "-smp").unwrap();
        argv[at + 1].clone()
    };
    assert_eq!(smp("smp: 2\ncores: 3"), "6,sockets=2,cores=3,maxcpus=6");
    assert_eq!(smp("smp: 2\nsockets: 1"), "1,sockets=1,cores=1,maxcpus=1");
}

#[test]
fn shared_directories_have_shared_memory_of_every_shape() {
    let whole = case("memory: 64\nvirtiofs0: share,path=/srv/a\nvirtiofs9: dirid=other,path=/srv/b\n");
    let argv = line(&whole).unwrap().argv.join(" ");
    for part in [
        ",memory-backend=ram ",
        "-object memory-backend-memfd,id=ram,share=on,size=67108864 ",
        "-device pci-bridge,id=pci.4,",
        "-chardev socket,id=char-virtiofs0,path=/run/stead/100/fs0 \
         -device vhost-user-fs-pci,id=virtiofs0,chardev=char-virtiofs0,tag=share,queue-size=1024,bus=pci.4,addr=0x11",
        "-device vhost-user-fs-pci,id=virtiofs9,chardev=char-virtiofs9,tag=other,queue-size=1024,bus=pci.4,addr=0x1a",
    ] {
        assert!(argv.contains(part), "{part} in\n{argv}");
    }
    let nodes = case("cores: 2\nhotplug: memory\nmemory: 1536\nnuma: 1\nvirtiofs1: share,path=/srv/a\n");
    let argv = line(&nodes).unwrap().argv.join(" ");
    assert!(argv.contains("memory-backend-memfd,id=ram-node0,size=1024M,share=on "), "{argv}");
    assert!(argv.contains("memory-backend-memfd,id=mem-dimm0,share=on,size=536870912"), "{argv}");
    assert!(!argv.contains("memory-backend-ram") && !argv.contains(",memory-backend="), "{argv}");
    let mut incoming = case("memory: 64\nvirtiofs0: share,path=/srv/a\n");
    incoming.incoming = Some(Incoming::stream("pc-i440fx-10.0", "tcg"));
    assert!(line(&incoming).unwrap_err().to_string().starts_with("virtiofs0: what a guest has open"));
}
