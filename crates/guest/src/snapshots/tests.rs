//! Snapshots against a model that keeps whole copies.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const GENERATION: &str = "11111111-2222-4333-8444-555555555555";

fn vmid() -> Vmid {
    Vmid::new(100).unwrap()
}

fn config(text: &str) -> VmConfig {
    VmConfig::parse(text).unwrap()
}

fn new(name: &str) -> New {
    New { name: name.to_owned(), description: String::new(), time: 1_700_000_000 }
}

fn take(config: &mut VmConfig, name: &str) {
    prepare(config, &new(name)).unwrap();
    finish(config, name).unwrap();
}

fn remove(config: &mut VmConfig, name: &str) {
    begin_removal(config, name).unwrap();
    finish_removal(config, vmid(), name).unwrap();
}

#[test]
fn a_snapshot_holds_the_options_and_not_what_is_the_vm_s_own() {
    let mut c = config(
        "#the VM\nlock: snapshot\nmemory: 512\nname: web\nparent: old\nscsi0: a1:100/vm-100-disk-0.qcow2\n\
         unused0: a1:100/vm-100-disk-1.qcow2\n\n[PENDING]\nmemory: 1024\n\n[old]\nmemory: 256\n",
    );
    prepare(&mut c, &New { description: "before\nit".to_owned(), ..new("next") }).unwrap();
    assert_eq!(unfinished(&c), ["next"]);
    let told = c.to_string();
    let (_, taken) = told.split_once("[next]\n").unwrap();
    assert_eq!(
        taken.split("\n\n").next().unwrap(),
        "#before\n#it\nmemory: 512\nname: web\nparent: old\nscsi0: a1:100/vm-100-disk-0.qcow2\nsnapstate: prepare\n\
         snaptime: 1700000000"
    );
    assert_eq!(c.current.parent(), Some("old"), "it follows the new one once that is whole");
    finish(&mut c, "next").unwrap();
    assert_eq!((c.current.parent(), unfinished(&c).len()), (Some("next"), 0));
    assert_eq!(c.pending.set.get("memory"), Some("1024"), "what is pending stays so");
}

#[test]
fn names_have_rules() {
    let mut c = config("memory: 512\n");
    for wrong in ["", "a", "1a", "current", "Pending", "a.b", "ä1", "a b", "x]y", &"a".repeat(41)] {
        let refused = prepare(&mut c, &new(wrong)).unwrap_err();
        assert_eq!(refused, SnapshotError::Name(wrong.to_owned()));
    }
    for right in ["ab", "A-1", "x_", &"a".repeat(40)] {
        take(&mut c, right);
        assert_eq!(prepare(&mut c, &new(right)).unwrap_err(), SnapshotError::Taken(right.to_owned()));
    }
    assert_eq!(config(&c.to_string()), c);
}

#[test]
fn disks_that_hold_no_state_are_named() {
    let keys = |text: &str, running| {
        let held = disks(&config(text).current, running).map_err(|e| e.to_string());
        held.map(|all| all.into_iter().map(|h| h.key).collect::<Vec<_>>())
    };
    let text = "scsi0: a1:100/vm-100-disk-0.qcow2\nide2: a1:iso/x.iso,media=cdrom\n\
                ide0: a1:100/vm-100-cloudinit.qcow2,media=cdrom\nunused0: a1:100/vm-100-disk-9.raw\n\
                virtio1: a1:100/vm-100-disk-1.qcow2,ro=1\n";
    assert_eq!(keys(text, false).unwrap(), ["scsi0", "virtio1"]);
    assert!(keys(text, true).unwrap_err().contains("'virtio1' is read-only"));
    assert!(keys("sata0: /dev/sdb\n", false).unwrap_err().contains("'sata0' is a path of the host"));
    let efi = "efidisk0: a1:100/vm-100-disk-3.qcow2\n";
    assert_eq!(keys(efi, false).unwrap(), ["efidisk0"]);
    assert!(keys(efi, true).unwrap_err().contains("'efidisk0'"), "no process has it open");
    assert_eq!(keys(&format!("bios: ovmf\n{efi}"), true).unwrap(), ["efidisk0"]);
    let tpm = "tpmstate0: a1:100/vm-100-disk-3.raw\n";
    assert_eq!(keys(tpm, false).unwrap(), ["tpmstate0"]);
    assert!(keys(tpm, true).unwrap_err().contains("'tpmstate0'"), "it may be written to");
    assert_eq!(keys("memory: 512\n", true).unwrap(), [""; 0], "a VM without disks has snapshots, too");
}

#[test]
fn removal_joins_what_it_parts_and_keeps_what_it_alone_had() {
    let mut c = config("memory: 1\nscsi0: a1:100/vm-100-disk-0.qcow2\nscsi1: a1:7/vm-7-disk-0.qcow2\n");
    for name in ["one", "two", "three"] {
        take(&mut c, name);
    }
    c.current.remove("scsi0");
    c.current.remove("scsi1");
    remove(&mut c, "two");
    assert_eq!(c.snapshots["three"].parent(), Some("one"));
    remove(&mut c, "three");
    assert_eq!((c.current.parent(), c.current.get("unused0")), (Some("one"), None));
    remove(&mut c, "one");
    assert_eq!(
        c.to_string(),
        "memory: 1\nunused0: a1:100/vm-100-disk-0.qcow2\n",
        "another VM's is left alone"
    );
    assert_eq!(begin_removal(&mut c, "one").unwrap_err(), SnapshotError::Missing("one".to_owned()));
}

#[test]
fn going_back_takes_the_options_of_then() {
    let mut c = config(
        "#now\nmemory: 512\nscsi0: a1:100/vm-100-disk-0.qcow2,size=1G\nvmgenid: 00000000-0000-4000-8000-000000000000\n",
    );
    take(&mut c, "then");
    c.current.set("memory", "1024").unwrap();
    c.current.set("lock", ROLLBACK).unwrap();
    c.current.set("scsi0", "a1:100/vm-100-disk-1.qcow2").unwrap();
    c.current.set("unused0", "a1:100/vm-100-disk-0.qcow2").unwrap();
    c.current.set("unused1", "a1:100/vm-100-disk-2.qcow2").unwrap();
    c.current.set("ide2", "a1:iso/x.iso,media=cdrom").unwrap();
    c.pending.set.set("scsi5", "a1:100/vm-100-disk-5.qcow2").unwrap();
    c.pending.delete.insert("memory".to_owned(), false);
    roll_back(&mut c, vmid(), "then", GENERATION).unwrap();
    assert!(c.pending.is_empty());
    let told = c.to_string();
    assert_eq!(
        told.split_once("\n[then]").unwrap().0,
        format!(
            "#now\nmemory: 512\nparent: then\nscsi0: a1:100/vm-100-disk-0.qcow2,size=1G\n\
             unused0: a1:100/vm-100-disk-1.qcow2\nunused1: a1:100/vm-100-disk-2.qcow2\n\
             unused2: a1:100/vm-100-disk-5.qcow2\nvmgenid: {GENERATION}\n"
        )
    );
}

#[test]
fn what_is_half_done_is_not_gone_back_to() {
    let mut c = config("memory: 512\n");
    prepare(&mut c, &new("half")).unwrap();
    assert!(rollback_disks(&c, "half").unwrap_err().to_string().contains("half done (snapstate 'prepare')"));
    assert_eq!(rollback_disks(&c, "no").unwrap_err().to_string(), "snapshot 'no' does not exist");
}

#[test]
fn memory_is_kept_with_a_snapshot_and_nowhere_else() {
    let mut c = config("scsi0: a1:100/vm-100-disk-0.qcow2\nscsi1: b1:100/vm-100-disk-0.qcow2\n");
    let held = disks(&c.current, true).unwrap();
    let room = |shared: &str| room_for_memory(&held, |id| id.as_str() == shared).unwrap();
    assert_eq!((room("b1").as_str(), room("z1").as_str()), ("b1", "a1"));
    assert!(room_for_memory(&[], |_| true).is_err());
    prepare(&mut c, &new("with")).unwrap();
    let volume = "b1:100/vm-100-state-with.raw".parse().unwrap();
    let kept = Memory {
        volume,
        machine: "pc-i440fx-10.0".to_owned(),
        accel: "tcg".to_owned(),
        cpu: Some("max".to_owned()),
    };
    keep_memory(&mut c, "with", &kept).unwrap();
    finish(&mut c, "with").unwrap();
    assert_eq!(memory(&c, "with"), Some(kept.clone()));
    assert!(list(&c)[0].memory && further_volumes(&c).contains(&kept.volume));
    roll_back(&mut c, vmid(), "with", GENERATION).unwrap();
    for key in ["vmstate", "runningmachine", "runningaccel"] {
        assert_eq!(c.current.get(key), None);
    }
    assert_eq!(memory_of(&c, "with"), [kept.volume]);
    remove(&mut c, "with");
    assert_eq!(c.to_string(), "scsi0: a1:100/vm-100-disk-0.qcow2\nscsi1: b1:100/vm-100-disk-0.qcow2\n");
}

#[test]
fn media_of_snapshots_do_not_count_as_the_vm_s_volumes() {
    let mut c = config("scsi0: a1:100/vm-100-disk-0.qcow2\nide2: b1:iso/x.iso,media=cdrom\n");
    take(&mut c, "then");
    c.current.remove("scsi0");
    c.current.remove("ide2");
    let further: Vec<String> = further_volumes(&c).iter().map(ToString::to_string).collect();
    assert_eq!(further, ["a1:100/vm-100-disk-0.qcow2"]);
}

/// What a user does to a VM.
#[derive(Debug, Clone)]
enum Act {
    Take(u8),
    Remove(u8),
    Back(u8),
    Memory(u16),
    Attach(u8),
    Detach(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0..5u8).prop_map(Act::Take),
        (0..5u8).prop_map(Act::Remove),
        (0..5u8).prop_map(Act::Back),
        (64..2048u16).prop_map(Act::Memory),
        (0..4u8).prop_map(Act::Attach),
        (0..4u8).prop_map(Act::Detach),
    ]
}

/// A VM whose snapshots are whole copies: its memory and its disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Copy {
    memory: u16,
    disks: BTreeSet<u8>,
}

#[derive(Debug, Default)]
struct Model {
    now: Copy,
    parent: Option<u8>,
    snapshots: BTreeMap<u8, (Copy, Option<u8>)>,
    /// Disks that it ever had: none of them may get lost.
    ever: BTreeSet<u8>,
}

fn name(n: u8) -> String {
    format!("s{n}")
}

fn volume(n: u8) -> String {
    format!("a1:100/vm-100-disk-{n}.qcow2")
}

impl Model {
    /// Whether it can be done.
    fn does(&mut self, act: &Act) -> bool {
        match *act {
            Act::Take(n) if self.snapshots.contains_key(&n) => return false,
            Act::Take(n) => {
                self.snapshots.insert(n, (self.now.clone(), self.parent));
                self.parent = Some(n);
            }
            Act::Remove(n) => {
                let Some((_, before)) = self.snapshots.remove(&n) else { return false };
                let parents = self.snapshots.values_mut().map(|s| &mut s.1).chain([&mut self.parent]);
                parents.filter(|p| **p == Some(n)).for_each(|p| *p = before);
            }
            Act::Back(n) => {
                let Some((copy, _)) = self.snapshots.get(&n) else { return false };
                (self.now, self.parent) = (copy.clone(), Some(n));
            }
            Act::Memory(m) => self.now.memory = m,
            Act::Attach(n) => {
                self.now.disks.insert(n);
                self.ever.insert(n);
            }
            Act::Detach(n) => drop(self.now.disks.remove(&n)),
        }
        true
    }

    fn is(&self, config: &VmConfig) {
        let copy = |s: &Settings| Copy {
            memory: s.get("memory").map_or(0, |m| m.parse().unwrap()),
            disks: (0..4).filter(|n| s.get(&format!("scsi{n}")).is_some()).collect(),
        };
        assert_eq!(copy(&config.current), self.now);
        assert_eq!(config.current.parent().map(str::to_owned), self.parent.map(name));
        assert_eq!(config.snapshots.len(), self.snapshots.len());
        for (n, (then, parent)) in &self.snapshots {
            let section = &config.snapshots[&name(*n)];
            assert_eq!(copy(section), *then);
            assert_eq!(section.parent().map(str::to_owned), parent.map(name));
            assert_eq!(section.get("snapstate"), None);
        }
        let all = config.all_volumes();
        for n in &self.ever {
            assert!(all.contains(&volume(*n).parse().unwrap()), "disk {n} is lost: {config}");
        }
        // A disk is either in use or unused.
        let named: Vec<_> = config.current.volumes().into_iter().map(|(_, v)| v).collect();
        assert_eq!(named.iter().collect::<BTreeSet<_>>().len(), named.len(), "{config}");
    }
}

/// Does it to a configuration; whether it could be done.
fn does(config: &mut VmConfig, act: &Act) -> bool {
    let change = |config: &mut VmConfig, change| config.change(vmid(), &[change], |_| true).is_ok();
    use stead_model::vmconfig::Change;
    match *act {
        Act::Take(n) => prepare(config, &new(&name(n))).is_ok_and(|()| finish(config, &name(n)).is_ok()),
        Act::Remove(n) => {
            begin_removal(config, &name(n)).is_ok_and(|()| finish_removal(config, vmid(), &name(n)).is_ok())
        }
        Act::Back(n) => {
            rollback_disks(config, &name(n)).is_ok()
                && roll_back(config, vmid(), &name(n), GENERATION).is_ok()
        }
        Act::Memory(m) => change(config, Change::set("memory", &m.to_string()).unwrap()),
        Act::Attach(n) => change(config, Change::set(&format!("scsi{n}"), &volume(n)).unwrap()),
        Act::Detach(n) => change(config, Change::delete(&format!("scsi{n}"), false).unwrap()),
    }
}

proptest! {
    /// Whatever a user does in whatever order: the configuration is what a model of whole copies says, parents lead to
    /// snapshots that are there, no volume gets lost, and the file reads as it was written.
    #[test]
    fn any_history_is_that_of_whole_copies(acts in proptest::collection::vec(act(), 0..40)) {
        let mut config = VmConfig::default();
        let mut model = Model::default();
        for act in acts {
            let mut changed = config.clone();
            let did = does(&mut changed, &act);
            prop_assert_eq!(did, model.does(&act), "{:?}", act);
            if did {
                config = changed;
            }
            model.is(&config);
            prop_assert_eq!(&VmConfig::parse(&config.to_string()).unwrap(), &config);
        }
    }

    /// Where a task is cut off between its two writes: what was half taken goes without a trace, and what was half removed is
    /// removed by doing it again.
    #[test]
    fn what_is_cut_off_can_be_finished(acts in proptest::collection::vec(act(), 0..20), n in 0..5u8) {
        let mut config = VmConfig::default();
        for act in acts {
            let mut changed = config.clone();
            if does(&mut changed, &act) {
                config = changed;
            }
        }
        let before = config.clone();
        if prepare(&mut config, &new(&name(n))).is_ok() {
            prop_assert!(rollback_disks(&config, &name(n)).is_err());
            remove(&mut config, &name(n));
            prop_assert_eq!(&config, &before);
        } else {
            begin_removal(&mut config, &name(n)).unwrap();
            prop_assert!(rollback_disks(&config, &name(n)).is_err());
            let mut again = config.clone();
            remove(&mut again, &name(n));
            finish_removal(&mut config, vmid(), &name(n)).unwrap();
            prop_assert_eq!(again, config);
        }
    }
}
