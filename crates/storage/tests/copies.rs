//! Copies and linked clones of real images, judged by what is in them.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stead_driver::storage::{Image, NewCopy, NewVolume, StorageDriver, StorageType};
use stead_model::Vmid;
use stead_storage::DirType;

fn open(path: &Path, id: &str) -> Arc<dyn StorageDriver> {
    let options: BTreeMap<String, String> =
        [("path", path.to_str().unwrap()), ("content", "images,import"), ("preallocation", "off")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
    DirType.open(&id.parse().unwrap(), &options).unwrap()
}

fn vmid(n: u32) -> Vmid {
    Vmid::new(n).unwrap()
}

fn run(program: &str, words: &[&str]) -> String {
    let out = std::process::Command::new(program).args(words).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Writes a byte over the first 64 KiB of an image.
fn write(path: &Path, format: &str, byte: &str) {
    let path = path.to_str().unwrap();
    run("qemu-io", &["-f", format, "-c", &format!("write -P {byte} 0 64k"), path]);
}

fn reads(path: &Path, format: &str, byte: &str) -> bool {
    let path = path.to_str().unwrap();
    let words = ["-r", "-f", format, "-c", &format!("read -P {byte} 0 64k"), path];
    let out = std::process::Command::new("qemu-io").args(words).output().unwrap();
    out.status.success() && !String::from_utf8_lossy(&out.stdout).contains("verification failed")
}

fn copy_of(path: &Path, format: &str) -> NewCopy {
    let of =
        Image { path: path.to_owned(), format: format.into(), snapshot: None, foreign: false, within: None };
    NewCopy { vmid: vmid(101), name: None, format: None, of, size: None, limit: None }
}

async fn disk(s: &dyn StorageDriver, format: &str) -> (String, std::path::PathBuf) {
    let new = NewVolume { vmid: vmid(100), name: None, format: Some(format.into()), size: 4 << 20 };
    let name = s.alloc(&new).await.unwrap().volid.name;
    let path = s.resolve(&name).await.unwrap().path;
    (name, path)
}

#[tokio::test]
async fn what_is_copied_is_what_was_there_then_or_at_a_snapshot() {
    let base = tempfile::tempdir().unwrap();
    let (a, b) = (open(&base.path().join("a,b"), "aa"), open(&base.path().join("b"), "bb"));
    a.activate().await.unwrap();
    b.activate().await.unwrap();
    let (name, path) = disk(&*a, "qcow2").await;
    write(&path, "qcow2", "1");
    a.snapshot(&name, "one").await.unwrap();
    write(&path, "qcow2", "2");
    let told = Mutex::new(vec![]);
    let now = b.copy(&copy_of(&path, "qcow2"), &|share| told.lock().unwrap().push(share)).await.unwrap();
    assert_eq!((now.format.as_str(), now.size), ("raw", 4 << 20));
    assert!(now.used <= 1 << 20, "sparse: {now:?}");
    assert_eq!(told.lock().unwrap().last(), Some(&1.0));
    assert!(reads(&b.resolve(&now.volid.name).await.unwrap().path, "raw", "2"));
    let mut then = copy_of(&path, "qcow2");
    (then.of.snapshot, then.format) = (Some("one".into()), Some("qcow2".into()));
    let then = b.copy(&then, &|_| {}).await.unwrap();
    assert!(reads(&b.resolve(&then.volid.name).await.unwrap().path, "qcow2", "1"));
    assert_eq!(b.snapshots(&then.volid.name).await.unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_nobody_waits_for_in_its_last_moment_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    let s = open(base.path(), "aa");
    s.activate().await.unwrap();
    let (name, path) = disk(&*s, "raw").await;
    let new = copy_of(&path, "raw");
    let (mut kept, mut given_up) = (0, 0);
    for n in 0..40 {
        let whole = tokio::sync::Notify::new();
        let tell = |share| {
            if share >= 1.0 {
                whole.notify_one();
            }
        };
        // From then on it is given its name, which can't be stopped half-way.
        let last_moment = async {
            whole.notified().await;
            tokio::time::sleep(Duration::from_micros(n * 100)).await;
        };
        let made = tokio::select! {
            made = s.copy(&new, &tell) => Some(made.unwrap()),
            () = last_moment => None,
        };
        if let Some(made) = made {
            s.free(&made.volid.name).await.unwrap();
            kept += 1;
            continue;
        }
        given_up += 1;
        let mut left = s.list(None, None).await.unwrap();
        for _ in 0..200 {
            if left.len() == 1 && spooled(base.path()) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            left = s.list(None, None).await.unwrap();
        }
        let left: Vec<_> = left.iter().map(|v| v.volid.name.clone()).collect();
        assert_eq!((left, spooled(base.path())), (vec![name.clone()], 0), "{n}");
    }
    assert!(given_up > 0, "{kept} kept");
}

/// Files below a storage's spool, but for its lock.
fn spooled(path: &Path) -> usize {
    let folders = std::fs::read_dir(path.join(".stead-spool")).unwrap().flatten();
    let files = folders.flat_map(|f| std::fs::read_dir(f.path())).flatten().flatten();
    files.filter(|f| f.file_name() != "lock").count()
}

#[tokio::test]
async fn a_copy_that_is_given_up_or_fails_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    let s = open(base.path(), "aa");
    s.activate().await.unwrap();
    let (_, path) = disk(&*s, "raw").await;
    write(&path, "raw", "7");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(64 << 20).unwrap();
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 0 64M", path.to_str().unwrap()]);
    let slow = NewCopy { limit: Some(1 << 20), ..copy_of(&path, "raw") };
    let begun = tokio::time::timeout(Duration::from_millis(300), s.copy(&slow, &|_| {})).await;
    assert!(begun.is_err(), "64 MiB at 1 MiB a second");
    assert_eq!(spooled(base.path()), 0);
    let refused = s.copy(&copy_of(Path::new("/nowhere"), "raw"), &|_| {}).await.unwrap_err().to_string();
    assert!(refused.contains("could not copy a disk") && refused.contains("/nowhere"), "{refused}");
    let (_, other) = disk(&*s, "raw").await;
    assert!(s.copy(&copy_of(&other, "qcow2"), &|_| {}).await.is_err(), "it is no qcow2 image");
    assert_eq!(spooled(base.path()), 0);
    assert_eq!(s.list(None, Some(vmid(101))).await.unwrap(), []);
}

#[tokio::test]
async fn a_linked_clone_has_what_its_base_has_wherever_that_lies() {
    let base = tempfile::tempdir().unwrap();
    for format in ["raw", "qcow2"] {
        let place = base.path().join(format);
        let s = open(&place, "aa");
        s.activate().await.unwrap();
        let (name, path) = disk(&*s, format).await;
        write(&path, format, "5");
        let made = s.make_base(&name).await.unwrap().volid.name;
        s.free(&name).await.unwrap();
        let clone = s.clone_base(&made, vmid(101), None).await.unwrap();
        assert_eq!(clone.volid.name, format!("100/base-100-disk-0.{format}/101/vm-101-disk-0.qcow2"));
        assert_eq!(clone.parent, Some(format!("../100/base-100-disk-0.{format}")));
        let path = s.resolve(&clone.volid.name).await.unwrap().path;
        assert!(reads(&path, "qcow2", "5"));
        assert_eq!(s.info("101/vm-101-disk-0.qcow2").await.unwrap(), clone, "by its short name too");
        write(&path, "qcow2", "6");
        let below = s.resolve(&made).await.unwrap().path;
        assert!(reads(&below, format, "5"));
        // A copy is whole.
        let whole = s.copy(&NewCopy { vmid: vmid(103), ..copy_of(&path, "qcow2") }, &|_| {}).await.unwrap();
        assert_eq!(whole.parent, None);
        let given = s.rename(&clone.volid.name, vmid(102), None).await.unwrap();
        s.free(&clone.volid.name).await.unwrap();
        assert_eq!(given.volid.name, format!("{made}/102/vm-102-disk-0.qcow2"));
        let elsewhere = base.path().join(format!("{format}-moved"));
        std::fs::rename(&place, &elsewhere).unwrap();
        let s = open(&elsewhere, "aa");
        assert!(reads(&s.resolve(&given.volid.name).await.unwrap().path, "qcow2", "6"));
        assert!(s.free(&made).await.is_err());
    }
}

#[tokio::test]
async fn an_image_from_elsewhere_names_no_file_of_this_host() {
    let base = tempfile::tempdir().unwrap();
    let s = open(&base.path().join("s"), "aa");
    s.activate().await.unwrap();
    let at = |name: &str| base.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("secret"), vec![9; 1 << 20]).unwrap();
    let make = |words: &[&str]| run("qemu-img", words);
    make(&["create", "-q", "-f", "qcow2", "-b", &at("secret"), "-F", "raw", &at("backed.qcow2")]);
    make(&["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", &at("flat.vmdk"), "1M"]);
    let data = format!("data_file={}", at("data"));
    make(&["create", "-q", "-f", "qcow2", "-o", &data, &at("external.qcow2"), "1M"]);
    make(&["convert", "-f", "raw", "-O", "vmdk", &at("secret"), &at("sparse.vmdk")]);
    let stream = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    make(&[&stream[..], &[&at("secret"), &at("stream.vmdk")]].concat());
    let foreign = |name: &str| {
        let mut new = copy_of(Path::new(&at(name)), name.rsplit('.').next().unwrap());
        new.of.foreign = true;
        new
    };
    for wrong in ["backed.qcow2", "external.qcow2", "flat.vmdk"] {
        let refused = s.copy(&foreign(wrong), &|_| {}).await.unwrap_err().to_string();
        assert!(refused.starts_with("import-from: the image can't be taken"), "{wrong}: {refused}");
    }
    // In the middle of another file, as in an archive.
    let mut inside = vec![3; 512];
    inside.extend(std::fs::read(at("stream.vmdk")).unwrap());
    let size = inside.len() as u64 - 512;
    inside.extend([4; 512]);
    std::fs::write(at("archive.ova"), inside).unwrap();
    let mut within = foreign("archive.ova");
    (within.of.format, within.of.within) = ("vmdk".into(), Some((512, size)));
    let made = s.copy(&NewCopy { vmid: vmid(102), ..within }, &|_| {}).await.unwrap();
    assert!(reads(&s.resolve(&made.volid.name).await.unwrap().path, "raw", "9"));
    for right in ["sparse.vmdk", "stream.vmdk"] {
        let made = s.copy(&foreign(right), &|_| {}).await.unwrap();
        assert!(reads(&s.resolve(&made.volid.name).await.unwrap().path, "raw", "9"), "{right}");
    }
    assert_eq!(s.list(None, Some(vmid(101))).await.unwrap().len(), 2);
}
