use super::*;
use crate::vmconfig::VmConfig;

const VM: &str = "\
ciuser: zoë
cipassword: $6$salt$hash
ipconfig0: ip=10.0.0.5/22,gw=10.0.0.1,ip6=2001:db8::5/60,gw6=fe80::1
ipconfig1: ip6=auto
name: web
nameserver: 1.1.1.1 2606:4700::1111
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
net1: virtio=BC:24:11:00:00:02,bridge=vmbr0
net3: virtio=BC:24:11:00:00:03,bridge=vmbr0
searchdomain: example.org lan
sshkeys: ssh-ed25519%20AAAA%20me%40home%0A%0A%23%20a%20comment%0Assh-rsa%20BBBB%20%22q%22%3A%20yes
";

fn settings(text: &str) -> Settings {
    VmConfig::parse(text).unwrap().current
}

fn vmid() -> Vmid {
    Vmid::new(100).unwrap()
}

fn seed(text: &str, files: &[(Part, &str)]) -> Seed {
    let files = files.iter().map(|(part, text)| (*part, (*text).to_owned())).collect();
    Seed::of(vmid(), &settings(text), &files).unwrap()
}

fn printed(seed: &Seed) -> String {
    let files = seed.files().into_iter().map(|(path, text)| format!("== {path}\n{text}"));
    files.fold(format!("label {}\n", seed.layout.label()), |all, file| all + &file)
}

#[test]
fn a_linux_guest_is_told_by_nocloud() {
    insta::assert_snapshot!(printed(&seed(VM, &[])));
}

#[test]
fn a_drive_of_openstacks_layout() {
    insta::assert_snapshot!(printed(&seed(&format!("{VM}citype: configdrive2\n"), &[])));
    let windows = seed("ostype: win11\nsearchdomain: lan\nnet0: virtio=BC:24:11:00:00:01\n", &[]);
    insta::assert_snapshot!(printed(&windows));
}

#[test]
fn a_guest_of_which_nothing_is_said_asks_for_its_address() {
    insta::assert_snapshot!(printed(&seed(
        "ciupgrade: 0\nciuser: root\nname: db.example.org\nnet0: virtio=BC:24:11:00:00:01\n",
        &[]
    )));
}

#[test]
fn files_of_users_stand_in_the_place_of_what_is_made() {
    let all = [(Part::User, "u\n"), (Part::Network, "n\n"), (Part::Meta, "m\n"), (Part::Vendor, "v\n")];
    let nocloud = seed("name: a\n", &all);
    let expected =
        [("user-data", "u\n"), ("network-config", "n\n"), ("meta-data", "m\n"), ("vendor-data", "v\n")];
    assert_eq!(nocloud.files(), expected);
    let drive = seed("citype: configdrive2\n", &all[..2]);
    let paths: Vec<&str> = drive.files().into_iter().map(|(path, _)| path).collect();
    let expected =
        ["openstack/latest/user_data", "openstack/content/0000", "openstack/latest/meta_data.json"];
    assert_eq!(paths, expected);
    assert!(drive.meta.contains("\"content_path\": \"/content/0000\""), "{}", drive.meta);
}

#[test]
fn the_instance_changes_exactly_when_what_it_is_told_does() {
    let meta = |text: &str, files: &[(Part, &str)]| seed(text, files).meta;
    let first = meta(VM, &[]);
    for same in ["memory: 4096\n", "onboot: 1\n", "citype: nocloud\n", "ostype: l26\n", "description: x\n"] {
        assert_eq!(meta(&format!("{VM}{same}"), &[]), first, "{same}");
    }
    let bridge = VM.replace("vmbr0", "vmbr1");
    assert_eq!(meta(&bridge, &[]), first, "a guest sees no bridge");
    let mut all = vec![first];
    for (old, new) in
        [("zoë", "zoe"), ("$hash", "$hush"), (":00:02", ":00:04"), ("10.0.0.5", "10.0.0.6"), ("web", "wob")]
    {
        all.push(meta(&VM.replace(old, new), &[]));
    }
    all.push(meta(&format!("{VM}ciupgrade: 0\n"), &[]));
    all.push(meta(VM, &[(Part::Vendor, "v")]));
    all.push(meta(VM, &[(Part::User, "v")]));
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[test]
fn what_a_drive_holds_is_told_apart_by_its_volume_too() {
    let digest = |text: &str, volume: &str| seed(text, &[]).digest(&volume.parse().unwrap());
    let one = digest(VM, "local:100/vm-100-cloudinit.raw");
    assert_eq!(digest(VM, "local:100/vm-100-cloudinit.raw"), one);
    assert_ne!(digest(VM, "other:100/vm-100-cloudinit.raw"), one);
    assert_ne!(digest(&format!("{VM}citype: configdrive2\n"), "local:100/vm-100-cloudinit.raw"), one);
    let section = held(&settings(&format!("{VM}memory: 512\n")), &one).unwrap();
    assert!(holds(Some(&section), &one) && !holds(Some(&section), "0") && !holds(None, &one));
    assert_eq!((section.get("memory"), section.get("cipassword")), (None, Some("$6$salt$hash")));
    // It stands in a file, and comes out of it as it went in.
    let mut config = VmConfig::parse(VM).unwrap();
    config.special.insert(SECTION.to_owned(), section.clone());
    assert_eq!(VmConfig::parse(&config.to_string()).unwrap().special[SECTION], section);
}

#[test]
fn what_has_changed_since_is_shown_without_passwords() {
    let section = held(&settings(VM), "x").unwrap();
    let now = VM.replace("$hash", "$other").replace("web", "web2").replace("vmbr0", "vmbr9");
    let now = now.replace("ciuser: zoë\n", "ciupgrade: 0\n");
    let told = compare(Some(&section), &settings(&now));
    let line = |t: &Told| format!("{} {:?} {:?} {}", t.key, t.value, t.pending, t.delete);
    let changed: Vec<String> = told.iter().filter(|t| t.pending.is_some() || t.delete).map(line).collect();
    let expected = [
        "cipassword Some(\"**********\") Some(\"**********\") false",
        "ciupgrade None Some(\"0\") false",
        "ciuser Some(\"zoë\") None true",
        "name Some(\"web\") Some(\"web2\") false",
    ];
    assert_eq!(changed, expected);
    assert!(told.iter().all(|t| t.key != "digest"));
    assert!(compare(None, &settings(VM)).iter().all(|t| t.value.is_none() && t.pending.is_some()));
}

#[test]
fn drives_are_known_by_their_names() {
    let is = |volume: &str| is_drive(&volume.parse().unwrap());
    assert!(is("local:100/vm-100-cloudinit.qcow2") && is("lvm:vm-100-cloudinit"));
    for no in
        ["local:100/vm-100-disk-0.raw", "local:iso/cloudinit.iso", "lvm:vm-x-cloudinit", "lvm:cloudinit"]
    {
        assert!(!is(no), "{no}");
    }
}

#[test]
fn hashes_are_told_from_passwords() {
    for hash in ["$6$salt$hash", "$5$rounds=5000$salt$hash", "$y$j9T$salt$hash", "$2y$10$saltandhash"] {
        assert!(options::is_hashed(hash), "{hash}");
    }
    for password in ["secret", "$6$", "$6$salt", "$100", "$9$salt$hash", "a$6$salt$hash", ""] {
        assert!(!options::is_hashed(password), "{password}");
    }
}

#[test]
fn a_drive_that_is_taken_off_is_removed_and_so_is_what_is_said_of_it() {
    use crate::vmconfig::Change;
    let text = "ide2: local:100/vm-100-cloudinit.raw,media=cdrom\nscsi0: local:100/vm-100-disk-0.raw\n\n\
                [special:cloudinit]\ndigest: x\n";
    for change in [Change::delete("ide2", false), Change::set("ide2", "none,media=cdrom")] {
        let mut config = VmConfig::parse(text).unwrap();
        let changed = config.change(vmid(), &[change.unwrap()], |_| true).unwrap();
        let freed: Vec<String> = changed.freed.iter().map(ToString::to_string).collect();
        assert_eq!(freed, ["local:100/vm-100-cloudinit.raw"]);
        assert!(config.special.is_empty() && config.current.get("unused0").is_none());
    }
    let two = format!("sata1: local:100/vm-100-cloudinit.raw,media=cdrom\n{text}");
    let e = VmConfig::parse(&two).unwrap().current.check().unwrap_err();
    assert_eq!(
        e.to_string(),
        "sata1: a VM has one cloud-init drive at most, and 'ide2' is that: take it out first"
    );
}
