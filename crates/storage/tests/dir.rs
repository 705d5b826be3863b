//! The directory driver: the storages' suite, and what only a directory can get wrong.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use stead_driver::storage::{Content, NewVolume, StorageDriver, StorageError, StorageType};
use stead_driver::suite::storage::StorageHarness;
use stead_model::Vmid;
use stead_storage::DirType;

fn open(path: &Path, more: &[(&str, &str)]) -> Arc<dyn StorageDriver> {
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    options.insert("path".into(), path.to_str().unwrap().into());
    options.insert("content".into(), "images,iso,snippets,import".into());
    options.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    DirType.open(&"local".parse().unwrap(), &options).unwrap()
}

struct Dir {
    base: tempfile::TempDir,
    mounted: std::sync::Mutex<bool>,
}

impl Dir {
    async fn new() -> Self {
        Self { base: tempfile::tempdir().unwrap(), mounted: std::sync::Mutex::new(false) }
    }
}

impl StorageHarness for Dir {
    fn open(&self) -> Arc<dyn StorageDriver> {
        open(&self.base.path().join("all"), &[("shared", "1")])
    }

    fn small(&self) -> Result<Arc<dyn StorageDriver>, String> {
        let point = self.base.path().join("small");
        std::fs::create_dir_all(&point).unwrap();
        let size = c"size=16m";
        rustix::mount::mount("tmpfs", &point, "tmpfs", rustix::mount::MountFlags::empty(), size)
            .map_err(|e| format!("a full disk needs a small tmpfs, which cannot be mounted here: {e}"))?;
        *self.mounted.lock().unwrap() = true;
        Ok(open(&point, &[("preallocation", "falloc"), ("is_mountpoint", "yes")]))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if *self.mounted.lock().unwrap() {
            let point = self.base.path().join("small");
            let _ = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

stead_driver::storage_conformance!(Dir);

fn disk() -> NewVolume {
    NewVolume { vmid: Vmid::new(100).unwrap(), name: None, format: None, size: 1 << 20 }
}

#[tokio::test]
async fn the_layout_is_the_known_one() {
    let base = tempfile::tempdir().unwrap();
    let s = open(base.path(), &[]);
    s.activate().await.unwrap();
    for dir in ["images", "template/iso", "snippets", "import"] {
        assert!(base.path().join(dir).is_dir(), "{dir}");
    }
    assert!(!base.path().join("dump").exists(), "content that it does not hold gets no folder");
    let v = s.alloc(&NewVolume { format: Some("qcow2".into()), ..disk() }).await.unwrap();
    assert_eq!(v.volid.to_string(), "local:100/vm-100-disk-0.qcow2");
    let path = base.path().join("images/100/vm-100-disk-0.qcow2");
    assert_eq!(s.resolve(&v.volid.name).await.unwrap().path, path);
    assert_eq!(&std::fs::read(path).unwrap()[..4], b"QFI\xfb");
    s.free(&v.volid.name).await.unwrap();
    assert!(!base.path().join("images/100").exists());
    std::fs::write(base.path().join("template/iso/x.iso"), b"abc").unwrap();
    std::fs::write(base.path().join("template/iso/.part"), b"abc").unwrap();
    let isos = s.list(Some(Content::Iso), None).await.unwrap();
    assert_eq!(isos.iter().map(|v| v.volid.to_string()).collect::<Vec<_>>(), ["local:iso/x.iso"]);
}

#[tokio::test]
async fn symbolic_links_do_not_lead_out() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret.iso"), b"secret").unwrap();
    let base = tempfile::tempdir().unwrap();
    let s = open(base.path(), &[]);
    s.activate().await.unwrap();
    let iso = base.path().join("template/iso");
    std::os::unix::fs::symlink(outside.path().join("secret.iso"), iso.join("out.iso")).unwrap();
    std::fs::write(iso.join("in.iso"), b"abc").unwrap();
    std::os::unix::fs::symlink("in.iso", iso.join("link.iso")).unwrap();
    for answer in [s.info("iso/out.iso").await.err(), s.resolve("iso/out.iso").await.err()] {
        assert!(answer.unwrap().to_string().contains("symbolic link"));
    }
    assert_eq!(s.resolve("iso/link.iso").await.unwrap().path, iso.join("link.iso"));
    // A folder that leads out: nothing is made or removed there.
    std::fs::remove_dir_all(base.path().join("images")).unwrap();
    std::os::unix::fs::symlink(outside.path(), base.path().join("images")).unwrap();
    s.alloc(&disk()).await.unwrap_err();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    let names: Vec<_> = s.list(Some(Content::Iso), None).await.unwrap();
    assert_eq!(names.len(), 2, "the listing shows what can be opened");
}

#[tokio::test]
async fn leftovers_of_a_dead_daemon_are_removed_and_those_of_a_living_one_are_not() {
    let base = tempfile::tempdir().unwrap();
    let alive = open(base.path(), &[]);
    alive.activate().await.unwrap();
    let uploading = alive.spool().await.unwrap();
    // What a killed daemon leaves: a folder with a lock file that nobody holds.
    let dead = base.path().join(".stead-spool/3f0e5c1e-1f43-4b7e-9d0c-0c9a2f1f7a11");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(dead.join("lock"), b"").unwrap();
    std::fs::write(dead.join("half"), b"half an upload").unwrap();
    open(base.path(), &[("shared", "1")]).activate().await.unwrap();
    assert!(dead.exists(), "on a shared directory it might be another node's: it must rest first");
    open(base.path(), &[]).activate().await.unwrap();
    assert!(!dead.exists());
    assert!(uploading.exists());
    drop(alive);
    open(base.path(), &[]).activate().await.unwrap();
    assert!(!uploading.exists());
}

#[tokio::test]
async fn an_idle_driver_leaves_no_folder() {
    let base = tempfile::tempdir().unwrap();
    let s = open(base.path(), &[]);
    s.activate().await.unwrap();
    s.alloc(&disk()).await.unwrap();
    drop(s);
    assert_eq!(std::fs::read_dir(base.path().join(".stead-spool")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_storage_that_is_not_there_says_so() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("away");
    let s = open(&path, &[("mkdir", "0")]);
    assert!(matches!(s.activate().await, Err(StorageError::Unavailable { .. })));
    assert!(matches!(s.space().await, Err(StorageError::Unavailable { .. })));
    let s = open(base.path(), &[("is_mountpoint", "1")]);
    let why = s.activate().await.unwrap_err().to_string();
    assert!(why.contains("nothing is mounted"), "{why}");
    assert!(matches!(s.alloc(&disk()).await, Err(StorageError::Unavailable { .. })));
    assert_eq!(
        std::fs::read_dir(base.path()).unwrap().count(),
        0,
        "nothing was written below the mount point"
    );
}

#[tokio::test]
async fn a_probe_finds_what_is_gone_and_makes_nothing_in_its_place() {
    let base = tempfile::tempdir().unwrap();
    let (path, aside) = (base.path().join("disks"), base.path().join("aside"));
    let s = open(&path, &[("shared", "1")]);
    assert!(s.probe().await.unwrap().total > 0, "a new one is made");
    std::fs::rename(&path, &aside).unwrap();
    let why = s.probe().await.unwrap_err().to_string();
    assert!(why.contains("No such file"), "{why}");
    assert!(!path.exists(), "what is gone is not made again");
    // As when a file system is unmounted: another directory appears.
    std::fs::create_dir(&path).unwrap();
    let why = s.probe().await.unwrap_err().to_string();
    assert!(why.contains("is another one than before"), "{why}");
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    s.probe().await.unwrap();
    // Who tidies up takes nothing away from anybody.
    std::fs::remove_dir_all(path.join(".stead-spool")).unwrap();
    s.probe().await.unwrap();
    drop(s);
    assert_eq!(std::fs::read_dir(path.join(".stead-spool")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_probe_finds_what_cannot_be_written_unless_it_is_full() {
    let base = tempfile::tempdir().unwrap();
    let mount = |source: &std::ffi::CStr, kind: &std::ffi::CStr, flags, data: &std::ffi::CStr| {
        rustix::mount::mount(source, base.path(), kind, flags, data)
    };
    if mount(c"tmpfs", c"tmpfs", rustix::mount::MountFlags::empty(), c"size=1m").is_err() {
        println!("skipped: needs root to mount");
        return;
    }
    let s = open(base.path(), &[("is_mountpoint", "1")]);
    s.probe().await.unwrap();
    std::fs::write(base.path().join("full"), vec![1; 2 << 20]).unwrap_err();
    assert_eq!(s.probe().await.unwrap().avail, 0);
    rustix::mount::unmount(base.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let why = s.probe().await.unwrap_err().to_string();
    assert!(why.contains("nothing is mounted"), "{why}");
    mount(c"tmpfs", c"tmpfs", rustix::mount::MountFlags::RDONLY, c"").unwrap();
    let no_dirs = ("create-subdirs", "0");
    let disks = open(base.path(), &[no_dirs]).probe().await;
    let media = open(base.path(), &[("content", "iso"), no_dirs]).probe().await;
    rustix::mount::unmount(base.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let why = disks.unwrap_err().to_string();
    assert!(why.contains("Read-only file system"), "{why}");
    media.unwrap();
}

#[tokio::test]
async fn content_that_it_may_not_hold_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let s = open(base.path(), &[("content", "iso")]);
    s.activate().await.unwrap();
    assert!(matches!(s.alloc(&disk()).await, Err(StorageError::Unsupported { .. })));
    let spooled = s.spool().await.unwrap();
    let answer = s.adopt_file(spooled, Content::Import, "x.qcow2").await;
    assert!(answer.unwrap_err().to_string().contains("'import'"));
}

#[tokio::test]
async fn an_overlay_tells_its_base() {
    let base = tempfile::tempdir().unwrap();
    let s = open(base.path(), &[("format", "qcow2")]);
    s.activate().await.unwrap();
    let v = s.alloc(&disk()).await.unwrap();
    let path = s.resolve(&v.volid.name).await.unwrap().path;
    let top = path.with_file_name("vm-100-disk-1.qcow2");
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "vm-100-disk-0.qcow2"])
        .arg(&top)
        .status()
        .unwrap();
    assert!(made.success());
    let info = s.info("100/vm-100-disk-1.qcow2").await.unwrap();
    assert_eq!((info.parent.as_deref(), info.size), (Some("vm-100-disk-0.qcow2"), 1 << 20));
}

fn tool(program: &str, words: &[&str], path: &Path) -> String {
    let out = std::process::Command::new(program).args(words).arg(path).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[tokio::test]
async fn snapshots_hold_what_was_written() {
    // A comma is no end of the path.
    let base = tempfile::Builder::new().prefix("a,b").tempdir().unwrap();
    let s = open(base.path(), &[("format", "qcow2")]);
    s.activate().await.unwrap();
    let name = s.alloc(&disk()).await.unwrap().volid.name;
    let path = s.resolve(&name).await.unwrap().path;
    let write =
        |byte: u8| drop(tool("qemu-io", &["-f", "qcow2", "-c", &format!("write -P {byte} 0 64k")], &path));
    let holds = |byte: u8| {
        let told = tool("qemu-io", &["-f", "qcow2", "-c", &format!("read -P {byte} 0 64k")], &path);
        !told.contains("Pattern verification failed")
    };
    write(1);
    s.snapshot(&name, "one").await.unwrap();
    write(2);
    s.snapshot(&name, "two").await.unwrap();
    write(3);
    for (snapshot, byte) in [("one", 1), ("two", 2), ("one", 1)] {
        s.rollback_snapshot(&name, snapshot).await.unwrap();
        assert!(holds(byte), "{snapshot}");
        write(4);
    }
    s.delete_snapshot(&name, "one").await.unwrap();
    s.rollback_snapshot(&name, "two").await.unwrap();
    assert!(holds(2));
    tool("qemu-img", &["check", "-q", "-f", "qcow2"], &path);
}

/// Another process has the image open for writing, as a guest does.
#[tokio::test]
async fn an_image_that_a_guest_has_open_is_not_changed() {
    use std::io::{BufRead, BufReader, Write};
    let base = tempfile::tempdir().unwrap();
    let s = open(base.path(), &[("format", "qcow2")]);
    s.activate().await.unwrap();
    let name = s.alloc(&disk()).await.unwrap().volid.name;
    s.snapshot(&name, "one").await.unwrap();
    let path = s.resolve(&name).await.unwrap().path;
    let mut guest = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = guest.stdin.take().unwrap();
    words.write_all(b"write -P 7 0 64k\n").unwrap();
    // It says so when it has written, and has the image open from then on.
    let told = BufReader::new(guest.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find(|l| l.contains("wrote"));
    assert!(told.is_some());
    assert_eq!(s.snapshots(&name).await.unwrap(), ["one"], "looking is no change");
    for answer in [
        s.snapshot(&name, "two").await,
        s.delete_snapshot(&name, "one").await,
        s.rollback_snapshot(&name, "one").await,
    ] {
        let why = answer.unwrap_err().to_string();
        assert!(why.contains("lock") && why.contains("snapshot"), "{why}");
    }
    drop(words);
    guest.wait().unwrap();
    assert_eq!(s.snapshots(&name).await.unwrap(), ["one"]);
}
