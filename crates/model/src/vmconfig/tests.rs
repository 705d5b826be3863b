use super::*;
use crate::Vmid;
use crate::size::{Mebibytes, Size};
use proptest::prelude::*;

const GOLDEN: &str = "\
#Front end%3A 50%25 of the load
#
#ask Zo%C3%AB
agent: 1
args: -device 'virtio-foo,x=a b' -S
boot: order=scsi0;ide2;net0
cores: 4
cpu: host,flags=+aes;-pcid
future-thing: kept
hostpci0: 0000:01:00.0,pcie=1
ide2: isos:iso/install disk.iso,media=cdrom,size=700M
machine: q35
memory: 2048
name: web
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,tag=12
net10: e1000=BC:24:11:00:00:02
numa: 0
onboot: 1
ostype: l26
rng0: source=/dev/urandom
scsi0: shared:100/vm-100-disk-0.qcow2,iothread=1,size=32G
scsihw: virtio-scsi-single
serial0: socket
sockets: 2
startup: order=2,up=30
tags: blue;prod
unused0: shared:100/vm-100-disk-7.raw

[PENDING]
memory: 4096
delete: !ide2,vga

[special:cloudinit]
ciuser: zoe

[before_upgrade]
#as it was
memory: 1024
scsi0: shared:100/vm-100-disk-0.qcow2,size=32G
snaptime: 1730000000
";

fn golden() -> VmConfig {
    GOLDEN.parse().unwrap()
}

fn vmid() -> Vmid {
    Vmid::new(100).unwrap()
}

#[test]
fn a_file_prints_as_it_was_read() {
    let config = golden();
    assert_eq!(config.to_string(), GOLDEN);
    assert_eq!(config.current.description(), Some("Front end: 50% of the load\n\nask Zoë"));
    assert_eq!(config.snapshots["before_upgrade"].description(), Some("as it was"));
    assert_eq!(config.pending.delete.get("ide2"), Some(&true));
    // The first 20 bytes of the SHA-256 of the empty text.
    assert_eq!(digest(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4");
    assert_eq!(config.digest(), digest(GOLDEN));
}

#[test]
fn options_are_typed() {
    let c = golden().current;
    assert_eq!((c.cores(), c.sockets(), c.cpus(), c.vcpus()), (Ok(4), Ok(2), Ok(8), Ok(None)));
    assert_eq!((c.memory(), c.balloon()), (Ok(Mebibytes(2048)), Ok(None)));
    let cpu = c.cpu().unwrap();
    assert_eq!(cpu.model.as_deref(), Some("host"));
    assert_eq!(cpu.flags, [(true, "aes".to_owned()), (false, "pcid".to_owned())]);
    assert_eq!(c.args().unwrap(), ["-device", "virtio-foo,x=a b", "-S"]);
    assert_eq!(c.boot_order().unwrap(), ["scsi0", "ide2", "net0"]);
    let keys: Vec<String> = c.disks().unwrap().into_iter().map(|d| d.key).collect();
    assert_eq!(keys, ["ide2", "scsi0"]);
    let nets: Vec<u32> = c.nets().unwrap().into_iter().map(|n| n.index).collect();
    assert_eq!(nets, [0, 10]);
    assert_eq!(c.serials().unwrap(), [("serial0".to_owned(), Serial::Socket)]);
    assert_eq!(c.startup().unwrap(), Startup { order: Some(2), up: Some(30), down: None });
    assert_eq!(
        (c.bios(), c.ostype(), c.scsihw()),
        (Ok(Bios::SeaBios), Ok(OsType::L26), Ok(ScsiHw::VirtioScsiSingle))
    );
    assert_eq!(c.rng0().unwrap().map(|r| r.max_bytes), Some(1024));
    assert_eq!(c.vga().unwrap().kind, "std");
    assert_eq!(c.tags(), ["blue", "prod"]);
    assert!(c.agent().unwrap().enabled && c.onboot() && c.kvm() && !c.template() && !c.protection());
    let idle: Vec<String> = c.without_effect().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(idle.join("\n"));
    assert_eq!(c.root_size(), Some(Size::gib(32)));
    assert_eq!(c.check(), Ok(()));
    assert_eq!(golden().all_volumes().len(), 3);
}

#[test]
fn limits_of_a_disk_are_read() {
    let of = |text: &str| {
        Disk::parse("scsi0", &format!("local:100/a.raw,{text}")).unwrap().details().unwrap().limits
    };
    assert!(of("size=1G,mbps=0,iops=0").is_none());
    let limits =
        of("mbps=1.5,mbps_max=10,bps_max_length=60,iops_rd=100,iops_rd_max=200,iops_rd_length=2,iops_wr=5");
    let total = Rate { sustained: 1_572_864, burst: 10 << 20, burst_seconds: 60 };
    assert_eq!(limits.bytes, Rates { total, ..Rates::default() });
    let read = Rate { sustained: 100, burst: 200, burst_seconds: 2 };
    let write = Rate { sustained: 5, ..Rate::default() };
    assert_eq!(limits.operations, Rates { read, write, ..Rates::default() });
    assert_eq!(of("bps=4096").bytes.total.sustained, 4096);
}

#[test]
fn what_the_firmware_tells_may_be_encoded() {
    let read = |text: &str| text.parse::<VmConfig>().unwrap().current.smbios1();
    let one = |name: &str, value: &str| Ok(vec![(name.to_owned(), value.to_owned())]);
    assert_eq!(read("smbios1: base64=1,serial=UyA3\n"), one("serial", "S 7"));
    assert_eq!(read("smbios1: base64=0,serial=UyA3\n"), one("serial", "UyA3"));
    assert!(read("smbios1: base64=1,serial=CgA=\n").is_err(), "control characters");
}

#[test]
fn letters_name_the_first_of_their_kind() {
    let read = |text: &str| text.parse::<VmConfig>().unwrap().current.boot_order().unwrap();
    let devices = "ide2: none,media=cdrom\nnet1: virtio\nscsi0: a1:vm-1-x\nvirtio0: a1:vm-1-y\n";
    assert_eq!(read(devices), ["scsi0", "ide2", "net1"]);
    assert_eq!(read(&format!("boot: dcn\nbootdisk: virtio0\n{devices}")), ["ide2", "virtio0", "net1"]);
    assert_eq!(read(&format!("boot: order=net1;scsi5\n{devices}")), ["net1"]);
    assert!(read(&format!("boot: order=\n{devices}")).is_empty());
}

#[test]
fn what_cannot_be_read_is_named_by_its_line() {
    for (text, error) in [
        ("cores: 2\nnonsense\n", "line 2: 'nonsense' is not of the form 'key: value'"),
        ("cores:\n", "line 1: cores: value must be one line of text"),
        ("a b: 1\n", "line 1: a b: this is no name of an option"),
        ("[snap]\ncores: 1\n[snap]\n", "line 3: section [snap] is there twice"),
        ("[../x]\n", "line 1: '../x' is no name of a section"),
        ("delete: vga\n", "line 1: 'delete' belongs in the section [PENDING]"),
    ] {
        assert_eq!(VmConfig::parse(text).unwrap_err().to_string(), error);
    }
    // Line ends of other systems, blank lines, an older spelling of the description, no line break at the end.
    let read = VmConfig::parse("\r\ncores:2\r\n\r\ndescription: a%3Ab\r\n[pending]\r\ncores: 3").unwrap();
    assert_eq!(read.to_string(), "#a%3Ab\ncores: 2\n\n[PENDING]\ncores: 3\n");
}

#[test]
fn a_value_cannot_begin_another_line() {
    let mut settings = Settings::default();
    assert!(settings.set("name", "web\nargs: -S").is_err());
    assert!(settings.set("na:me", "web").is_err());
    assert!(settings.set("delete", "web").is_err());
    settings.set("description", "a\n[snap]\n#b\nargs: -S").unwrap();
    let config = VmConfig { current: settings, ..VmConfig::default() };
    assert_eq!(config.to_string().parse::<VmConfig>().unwrap(), config);
    assert!(Change::set("name", "web\nargs: -S").is_err());
}

#[test]
fn a_stopped_vm_changes_at_once() {
    let mut config = golden();
    let changes = [
        Change::set("memory", "8192").unwrap(),
        Change::delete("scsi0", false).unwrap(),
        Change::set("cdrom", "none").unwrap(),
        Change::delete("unused0", false).unwrap(),
    ];
    let changed = config.change(vmid(), &changes, |_| true).unwrap();
    assert_eq!(config.current.get("memory"), Some("8192"));
    assert_eq!(config.pending.set.get("memory"), None);
    assert_eq!(config.current.get("ide2"), Some("none"));
    assert!(!config.pending.delete.contains_key("ide2"), "a change takes the pending one back");
    assert_eq!(config.current.get("scsi0"), None);
    assert_eq!(changed.freed, ["shared:100/vm-100-disk-7.raw".parse().unwrap()]);
    assert_eq!(changed.applied, ["memory", "scsi0", "unused1", "ide2", "unused0"]);
}

#[test]
fn what_a_snapshot_has_is_never_freed() {
    let text = "scsi0: a1:100/vm-100-disk-0.qcow2\nscsi1: a1:100/vm-100-disk-1.qcow2\n\n\
                [before]\nscsi0: a1:100/vm-100-disk-0.qcow2\n";
    let mut config: VmConfig = text.parse().unwrap();
    let by_force = [Change::delete("scsi0", true).unwrap(), Change::delete("scsi1", true).unwrap()];
    let changed = config.change(vmid(), &by_force, |_| true).unwrap();
    assert_eq!(config.current.get("unused0"), Some("a1:100/vm-100-disk-0.qcow2"));
    assert_eq!(changed.freed, ["a1:100/vm-100-disk-1.qcow2".parse().unwrap()]);
    let refused = config.clone().change(vmid(), &[Change::delete("unused0", true).unwrap()], |_| true);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("unused0") && refused.contains("snapshot 'before'"), "{refused}");
    config.snapshots.clear();
    let changed = config.change(vmid(), &[Change::delete("unused0", false).unwrap()], |_| true).unwrap();
    assert_eq!(changed.freed, ["a1:100/vm-100-disk-0.qcow2".parse().unwrap()]);
}

#[test]
fn a_disk_taken_off_is_kept_unless_forced() {
    let text =
        "scsi0: a1:100/vm-100-disk-0.raw\nscsi1: a1:100/vm-100-disk-1.raw\nscsi2: a1:7/vm-7-disk-0.raw\n";
    let mut config: VmConfig = text.parse().unwrap();
    let all: Vec<Change> = [("scsi0", false), ("scsi1", true), ("scsi2", true)]
        .iter()
        .map(|(key, force)| Change::delete(key, *force).unwrap())
        .collect();
    let changed = config.change(vmid(), &all, |_| true).unwrap();
    assert_eq!(config.to_string(), "unused0: a1:100/vm-100-disk-0.raw\n");
    assert_eq!(changed.freed, ["a1:100/vm-100-disk-1.raw".parse().unwrap()], "another guest's volume stays");
    // Attached again it is no longer unused; replaced it is again.
    let attach = |value: &str| [Change::set("virtio0", value).unwrap()];
    config.change(vmid(), &attach("a1:100/vm-100-disk-0.raw,cache=none"), |_| true).unwrap();
    assert_eq!(config.to_string(), "virtio0: a1:100/vm-100-disk-0.raw,cache=none\n");
    config.change(vmid(), &attach("a1:100/vm-100-disk-5.raw"), |_| true).unwrap();
    assert_eq!(config.to_string(), "unused0: a1:100/vm-100-disk-0.raw\nvirtio0: a1:100/vm-100-disk-5.raw\n");
}

#[test]
fn a_running_vm_changes_with_its_next_start() {
    let mut config: VmConfig = "cores: 2\nmemory: 512\nname: a\nvga: std\n".parse().unwrap();
    let running = |change: &Change| keys::live(change.key()) == Live::Now;
    let changes = [
        Change::set("name", "b").unwrap(),
        Change::set("cores", "4").unwrap(),
        Change::delete("vga", false).unwrap(),
        Change::set("memory", "512").unwrap(),
        Change::delete("cpu", false).unwrap(),
    ];
    let changed = config.change(vmid(), &changes, running).unwrap();
    assert_eq!(
        (changed.applied, changed.pending),
        (vec!["name".to_owned()], vec!["cores".to_owned(), "vga".to_owned()])
    );
    let text = "cores: 2\nmemory: 512\nname: b\nvga: std\n\n[PENDING]\ncores: 4\ndelete: vga\n";
    assert_eq!(config.to_string(), text);
    let items = config.pending_items();
    assert_eq!(items[0].pending.as_deref(), Some("4"));
    assert_eq!(items.iter().find(|i| i.key == "vga").and_then(|i| i.delete), Some(1));

    // Set to what it is, or taken back: nothing is pending.
    let mut back = config.clone();
    back.change(vmid(), &[Change::set("cores", "2").unwrap()], running).unwrap();
    assert!(back.revert("vga") && !back.revert("vga"));
    assert!(back.pending.is_empty());

    config.apply_pending(vmid()).unwrap();
    assert_eq!(config.to_string(), "cores: 4\nmemory: 512\nname: b\n");
}

#[test]
fn what_reaches_into_the_host_is_for_root() {
    let root = |key: &str, value: &str| Change::set(key, value).unwrap().needs_root().is_some();
    assert!(root("parallel0", "/dev/parport0"));
    assert!(root("args", "-S") && root("serial1", "/dev/ttyS0") && root("scsi0", "/dev/sdb,size=1G"));
    assert!(root("rng0", "/dev/hwrng") && root("rng0", "max_bytes=1,source=/dev/hwrng"));
    assert!(root("ide2", "cdrom") && root("cdrom", "/dev/sr0,media=cdrom") && !root("rng0", "/dev/urandom"));
    assert!(!root("serial1", "socket") && !root("scsi0", "local:8") && !root("ide2", "none,media=cdrom"));
    assert_eq!(Change::delete("args", false).unwrap().needs_root(), None);
}

#[test]
fn what_the_system_keeps_cannot_be_taken_out() {
    for key in ["meta", "parent", "vmstate", "snaptime", "runningmachine"] {
        let refused = Change::delete(key, true).unwrap_err();
        assert_eq!((refused.refusal, refused.key.as_str()), (Refusal::Internal, key));
        assert_eq!(Change::set(key, "1").unwrap_err().refusal, Refusal::Internal, "{key}");
    }
    // Root forces a lock open so.
    assert!(Change::delete("lock", false).is_ok());
}

#[test]
fn an_empty_text_takes_the_option_out() {
    for (key, value) in [("description", "\n"), ("tags", ""), ("tags", " ,;")] {
        assert_eq!(Change::set(key, value), Change::delete(key, false), "{key}");
    }
    assert!(Change::set("name", " ").is_err() && Change::set("cpu", ",").is_err());
}

#[test]
fn options_are_checked_together() {
    let said = |text: &str| text.parse::<VmConfig>().unwrap().current.check().unwrap_err().to_string();
    assert_eq!(said("memory: 512\nballoon: 1024"), "balloon: value must not be larger than memory");
    let order = "boot: order=scsi0".parse::<VmConfig>().unwrap().current;
    assert_eq!(order.check_boot().unwrap_err().to_string(), "boot: device 'scsi0' does not exist");
    assert_eq!(order.check(), Ok(()), "it may have gone later");
    assert_eq!(said("sockets: 4096\ncores: 2"), "sockets: sockets times cores must be at most 4096");
    assert_eq!(said("vga: serial0"), "vga: there is no serial port 'serial0'");
    assert_eq!(said("memory: lots"), "memory: 'lots' is not a whole number");
}

fn settings() -> impl Strategy<Value = Settings> {
    let value = "[!-~äλ]([ -~äλ]{0,20}[!-~äλ])?";
    (any::<String>(), proptest::collection::btree_map("[a-z][a-z_.-]{0,8}[0-9]{0,2}", value, 0..6)).prop_map(
        |(description, values)| {
            let mut settings = Settings::default();
            settings.set("description", &description).unwrap();
            for (key, value) in values.iter().filter(|(k, _)| !matches!(k.as_str(), "delete" | "description"))
            {
                settings.set(key, value).unwrap();
            }
            settings
        },
    )
}

prop_compose! {
    fn config()(
        current in settings(),
        set in settings(),
        delete in proptest::collection::btree_map("[a-z]{1,6}[0-9]?", any::<bool>(), 0..3),
        special in proptest::collection::btree_map("[a-z]{1,6}", settings(), 0..2),
        snapshots in proptest::collection::btree_map("[a-z][a-z0-9_-]{1,8}", settings(), 0..3),
    ) -> VmConfig {
        let snapshots = snapshots.into_iter().filter(|(name, _)| is_snapshot_name(name)).collect();
        VmConfig { current, pending: Pending { set, delete }, special, snapshots }
    }
}

proptest! {
    #[test]
    fn a_configuration_reads_as_it_prints(config in config()) {
        let text = config.to_string();
        let read: VmConfig = text.parse().unwrap();
        prop_assert_eq!(&read, &config);
        prop_assert_eq!(read.to_string(), text);
    }

    #[test]
    fn what_is_read_prints_and_reads_alike(
        text in "((#|key: |cores: |delete: |\\[snap\\]|\\[PENDING\\]|\\[special:x\\]|[ -~]{0,6})[ -~]{0,8}\\n){0,8}",
    ) {
        if let Ok(read) = text.parse::<VmConfig>() {
            prop_assert_eq!(read.to_string().parse::<VmConfig>().unwrap(), read);
        }
    }

    #[test]
    fn nothing_that_is_accepted_breaks_the_file(
        key in prop::sample::select(keys::KEYS).prop_flat_map(|s| (0..s.count.max(1)).prop_map(move |i| {
            if s.count == 0 { s.name.to_owned() } else { format!("{}{i}", s.name) }
        })),
        value in "[a-z0-9:/,=;. \\n\"'\\\\-]{0,24}",
    ) {
        if let Ok(change) = Change::set(&key, &value) {
            let mut config = VmConfig::default();
            config.change(vmid(), std::slice::from_ref(&change), |_| true).unwrap();
            prop_assert_eq!(config.to_string().parse::<VmConfig>().unwrap(), config.clone());
            // Accepted again, it is the same.
            if let Change::Set { key, value } = &change {
                prop_assert_eq!(Change::set(key, value).unwrap(), change.clone());
                // What users can set, the accessors can read.
                if config.current.get("vga").is_none() && key != "boot" && key != "balloon" {
                    prop_assert_eq!(config.current.check(), Ok(()));
                }
            }
        }
    }
}
