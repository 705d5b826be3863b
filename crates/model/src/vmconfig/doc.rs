//! The table of options for users, made from the rules that check them.

use super::check::{DISK_LATER, DISK_OF_BUS, DISK_WORKS};
use super::keys::{KEYS, KeySpec, Kind, Live, Support};
use std::fmt::Write as _;

/// What of each option that works a test sees.
const TESTED: &[(&str, &str)] = &[
    ("acpi", TAKEN),
    ("affinity", SEEN),
    ("agent", TAKEN),
    ("allow-ksm", TAKEN),
    ("arch", API),
    ("args", LINE),
    ("audio0", TAKEN),
    ("autostart", KEPT),
    ("balloon", SEEN),
    ("bios", LINE),
    ("boot", SEEN),
    ("bootdisk", LINE),
    ("cicustom", API),
    ("cipassword", SEEN),
    ("citype", API),
    ("ciupgrade", API),
    ("ciuser", SEEN),
    ("cores", TAKEN),
    ("cpu", TAKEN),
    ("cpulimit", SEEN),
    ("cpuunits", SEEN),
    ("description", KEPT),
    ("efidisk0", SEEN),
    ("freeze", SEEN),
    ("hookscript", SEEN),
    ("hostpci", LINE),
    ("hotplug", SEEN),
    ("hugepages", SEEN),
    ("ide", TAKEN),
    ("ipconfig", SEEN),
    ("ivshmem", SEEN),
    ("keephugepages", SEEN),
    ("keyboard", TAKEN),
    ("kvm", LINE),
    ("localtime", TAKEN),
    ("machine", SEEN),
    ("memory", SEEN),
    ("migrate_downtime", SEEN),
    ("migrate_speed", API),
    ("name", SEEN),
    ("nameserver", API),
    ("net", SEEN),
    ("numa", SEEN),
    ("onboot", SEEN),
    ("ostype", TAKEN),
    ("parallel", LINE),
    ("protection", API),
    ("reboot", SEEN),
    ("rng0", TAKEN),
    ("sata", TAKEN),
    ("scsi", SEEN),
    ("scsihw", TAKEN),
    ("searchdomain", API),
    ("serial", SEEN),
    ("shares", SEEN),
    ("smbios1", TAKEN),
    ("smp", LINE),
    ("sockets", TAKEN),
    ("sshkeys", API),
    ("startdate", TAKEN),
    ("startup", SEEN),
    ("tablet", LINE),
    ("tags", KEPT),
    ("tdf", TAKEN),
    ("template", API),
    ("tpmstate0", SEEN),
    ("unused", API),
    ("usb", TAKEN),
    ("vcpus", SEEN),
    ("vga", TAKEN),
    ("virtio", SEEN),
    ("virtiofs", SEEN),
    ("vmgenid", TAKEN),
    ("vmstatestorage", API),
    ("watchdog", TAKEN),
    ("cdrom", SEEN),
    ("lock", API),
    ("meta", KEPT),
    ("parent", KEPT),
];
/// How options reach a guest that asks by cloud-init.
const CLOUDINIT: &str = "
## Cloud-init

`ide2: STORAGE:cloudinit` (or another place for a CD) makes a drive of 4 MiB, `vm-VMID-cloudinit`, from which cloud-init in the guest reads
`ciuser`, `cipassword`, `sshkeys`, `ciupgrade`, `ipconfigN`, `nameserver`, `searchdomain` and the VM's name: `citype=nocloud` (label
`cidata`) or `configdrive2` (`config-2`, the default for Windows). It goes with the VM, and is written by `xorrisofs` before a start that finds it
differs from the options, and by `stead vm cloudinit update` or `qm cloudinit update`, which a running guest sees as another medium; with
`hotplug=cloudinit` each change does that. `stead vm cloudinit pending` shows what has changed since, `dump` what it would hold.

- cloud-init does everything once more when its instance id changes, which it does exactly when what it is told does. Nothing is taken from the
  host, as its resolvers elsewhere are: a guest that is recovered on another node is told the same.
- A password is kept as its hash (SHA-512), and shown by no answer. A Windows guest could not use that: there it is refused.
- A network device without `ipconfigN` asks for an address by DHCP.
- `cicustom=user=STORAGE:snippets/FILE` (also `network`, `meta`, `vendor`) puts a file of the storage, of at most 512 KiB, in the place of what
  would be made. `network` of a `configdrive2` is in the format of `/etc/network/interfaces`. Where the file is not there, a VM whose options are
  as they were starts with the drive that it has, and its task says so.
- A drive on a storage that is not shared keeps its VM on its node, as every local volume does.
";
const SEEN: &str = "effect";
const TAKEN: &str = "QEMU";
const LINE: &str = "command line";
const API: &str = "API";
const KEPT: &str = "kept";

fn name(spec: &KeySpec) -> String {
    match spec.count {
        0 => spec.name.to_owned(),
        count => format!("{0}0 to {0}{1}", spec.name, count - 1),
    }
}

fn values(kind: Kind) -> String {
    match kind {
        Kind::Bool => "0, 1".to_owned(),
        Kind::Int { min, max } if max == u64::MAX => format!("at least {min}"),
        Kind::Int { min, max } => format!("{min} to {max}"),
        Kind::Number { min, max } => format!("{min} to {max}, fractions too"),
        Kind::Choice(all) => all.join(", "),
        Kind::Text { .. } => "text".to_owned(),
        Kind::Checked(_) => "its own format".to_owned(),
    }
}

fn row(spec: &KeySpec) -> String {
    let state = match spec.support {
        Support::Works => "works".to_owned(),
        Support::Never(why) => format!("refused: {why}"),
        Support::ByNode(needs) => format!("refused by a node, with its reason: it needs {needs}"),
        Support::Internal => "the system's own".to_owned(),
        Support::AliasOf(of) => format!("another name of {of}"),
    };
    let works = spec.support == Support::Works;
    let live = match spec.live {
        _ if !works => "",
        Live::Now => "at once",
        Live::Device => "in parts at once",
        Live::Restart => "with its next start",
    };
    let since = if works { "0.1" } else { "" };
    let tested = TESTED.iter().find(|(name, _)| *name == spec.name && (works || spec.count == 0));
    let tested = tested.map_or("", |(_, how)| how);
    format!("| `{}` | {state} | {} | {live} | {since} | {tested} |\n", name(spec), values(spec.kind))
}

/// The table as a page of the documentation.
pub fn options_page() -> String {
    let mut specs: Vec<&KeySpec> = KEYS.iter().collect();
    specs.sort_by_key(|spec| (spec.name, spec.count));
    let mut text = "# Options of a VM\n\n\
        Made from the rules that check them. An option that does not work yet is refused when somebody sets it; one that a\n\
        configuration made elsewhere brings is kept, and named in the log of each start. So is a part of an option's value.\n\n\
        *A running VM takes a change* at once, in parts at once (network devices, USB devices, and disks of the buses `virtio` and `scsi`, the\n\
        latter with a `virtio-scsi` controller, come and go as `hotplug` lets them, CPUs where `vcpus` was set at the start and `hotplug` names\n\
        `cpu`, and leave again where it runs with KVM; memory where `hotplug` named `memory` at the start; media of CD drives; limits of disks;\n\
        links, bridges and limits of network devices; the balloon's target; limit and weight of its CPUs), or with its next start: until then\n\
        the change is pending, and shown as such.\n\n\
        *Tested by*: **effect**: a test sees what the option does, to a real guest or in a real cluster. **QEMU**: a real QEMU takes it.\n\
        **API**: a test of the API sees it, with QEMU modelled. **command line**: the text that QEMU would be given. **kept**: it is\n\
        read, kept and shown.\n\n\
        | option | state | values | a running VM takes a change | since | tested by |\n|---|---|---|---|---|---|\n"
        .to_owned();
    text.extend(specs.into_iter().map(row));
    text += CLOUDINIT;
    text += "\n## Properties of disks\n\n| property | state | buses |\n|---|---|---|\n";
    let mut properties: Vec<(&str, String)> = DISK_WORKS.iter().map(|p| (*p, "works".to_owned())).collect();
    properties.extend(DISK_LATER.iter().map(|(p, except)| match except {
        [] => (*p, "not yet".to_owned()),
        values => (*p, format!("not yet, but for {}", values.join(", "))),
    }));
    properties.sort_unstable();
    for (property, state) in properties {
        let buses = DISK_OF_BUS.iter().find(|(name, _)| *name == property);
        let buses = buses.map_or_else(|| "all".to_owned(), |(_, buses)| buses.join(", "));
        let _ = writeln!(text, "| `{property}` | {state} | {buses} |");
    }
    text += NOTES;
    text
}

/// What a value does not tell.
const NOTES: &str = "
## Hook scripts

`hookscript: STORAGE:snippets/FILE` names an executable file on a storage whose content has `snippets`; root@pam alone may set it. It
is run by the node's daemon with two arguments, the VM's number and the phase, and its output goes into the task's log.

| phase | when | if it fails | its time |
|---|---|---|---|
| `pre-start` | before a start | the VM is not started | 300 s, within the start's own limit |
| `post-start` | once the VM runs | a warning | the same |
| `pre-stop` | before a stop or shutdown by request | a warning | half of a shutdown's limit; 6 s before a plain stop |
| `post-stop` | once its end is recorded, however it came; after a start that failed, too | a warning | what is left of a \
shutdown's limit; 6 s after any other end |

Starts by HA, recoveries and those with the node have all of it. A VM that moves while it runs is neither started nor stopped: no phase on
either side. A node that is lost runs none. A restart of its system is no end. A script that takes too long, or whose task is
stopped, is killed with all that it has started. `post-stop` runs once for each end, or, if the daemon dies in that moment, not at all.

## What the host does

`cpulimit` and `cpuunits` need the `cpu` controller of cgroups (version 2, or 1); a node without it says so at each start, and runs the VM
without. `cpuunits` is 1 to 10,000 in version 2 (100 unless set; more counts as 10,000), 2 to 262,144 in version 1 (1,024).

`queues`, `mtu` and `rate` of a network device need a bridge: with a user-mode network the VM is not started. `mtu=1` is the bridge's.
`rate` is in MiB a second for each direction; it needs the kernel's `tbf`, `ingress`, `matchall` and `police` of traffic control, without
which the VM is not started.

`tpmstate0` needs the package `swtpm` on the node. Its volume is made empty, of 4 MiB and raw; one of `version=v2.0` is what Windows 11 asks for. The
program runs beside QEMU, in the VM's cgroup: it is frozen with the VM, and ends with it. The VM moves while it runs if the volume is on a shared
storage. A snapshot has the TPM's state where the storage can keep one of a raw volume, and is taken while the VM is stopped.

`freeze=1` leaves the VM paused at its start. Under HA it is refused: what HA guards is continued whenever a lease comes back.

A VM whose `balloon` is less than its `memory` starts with so little, and never has less. Once its system has a driver for the balloon, it gets more as long as
less than 80 % of the node's memory are taken, and gives some back when more are: every ten seconds 2 % of the node's memory at the most, shared
out among such VMs by `shares` (1,000 unless set). `balloon=0` takes the balloon out; with `shares=0` it stays where it was set.

`hotplug=memory` needs `numa=1`, and has a running VM take more `memory`, and give some back if its system lets go of it: what it keeps stays pending. 1024
MiB are always there; the rest is in modules, 32 of 512 MiB, 32 of 1 GiB and so on, which are plugged in in this order: of these sums alone can
`memory` be. The most is half of what the CPU addresses (`phys-bits` of `cpu`; 40: 497 GiB). Whether `hotplug` names `memory` changes with the next
start. Linux may have to be told to use what comes (`memhp_default_state=online_movable`, with which it also gives back more).

`usbN` and `hostpciN` take `mapping=NAME`, what the cluster calls so (`stead mapping`), for whoever has Mapping.Use on it; `host=`, and
`ivshmem`, is root@pam's alone. USB devices come and go while the VM runs, with `hotplug=usb`; one that is not plugged in is seen by the
guest once it is. A PCI device is bound to the kernel's vfio-pci before the start, which needs an IOMMU; several behind one name are given away
one by one. `pcie=1` needs the machine q35. A VM with a device of its host does not move: mapped, it moves while it is stopped to where
the name has something, and while it runs if the mapping says `live-migration-capable`.

`virtiofsN: dirid=NAME` is a directory, which the mapping NAME (`stead mapping`) says for each node, for whoever has Mapping.Use on it; the guest mounts it
by `mount -t virtiofs NAME /mnt` (Linux 5.4 or newer; Windows with WinFsp and the driver of virtio-win). A program for each directory, `virtiofsd`, reads
and writes it for the guest, whose root is root there; it runs in the VM's cgroup, is frozen with the VM, and sees no other file of the node. It comes with Debian 13's
package `virtiofsd`, and with the QEMU of Debian 12 (7.2; of that `cache=metadata` is refused), but not with QEMU from Debian 12's backports.
`cache=auto` is for what others change, too; with `never` their changes are seen at once, with `always` perhaps never. The VM's memory is shared with the program, so that
KSM merges none of it. Such a VM moves while it is stopped, to a node for which the mapping says a directory that is there. It does not move while it
runs, it is not suspended to disk, and no snapshot has its memory: what the guest has open is known to the program alone. Where the program ends before the
VM, its directory does not answer until the VM is stopped and started again, and the node's log says so.
Where the directory lies on a network storage, mount that `soft` and, for VMs under HA, `sync`: a program that waits for a storage which hangs can't be
stopped, so that the whole node is reset when its lease ends; and what a node keeps unwritten for such a directory it may write later, after the VM has
gone on elsewhere.

`cpu: cluster` is what every node with the same accelerator can run (`stead cluster cpu` shows it, and which node stands in the way of
more): found anew at each start, and kept by a running VM wherever it moves. `cpu: custom-NAME` is a model of `stead api ls
/cluster/qemu/custom-cpu-models`. A VM with `host` or `max` moves while it runs only to a node whose CPU can do exactly the same.

`smp` is an older name of `sockets`, which counts for more. `migrate_speed` is in MiB a second, for moves that say no limit of
their own. `autostart` is kept, and has no effect.

`ivshmem` is the file `/dev/shm/pve-shm-NAME` (the VM's number unless named), which goes with the last VM of the node that has it. A VM that
has it does not move while it runs.

`hugepages` needs `numa=1`. Pages that are not there are made at the start and given back at the end, but for `keephugepages=1`. Where the
kernel finds no memory in one piece the VM is not started.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_of_every_option_how_it_is_tested() {
        for spec in KEYS.iter().filter(|s| s.support == Support::Works) {
            assert!(TESTED.iter().any(|(name, _)| *name == spec.name), "how is '{}' tested?", spec.name);
        }
    }
}
